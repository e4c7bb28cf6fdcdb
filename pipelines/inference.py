"""The hot path: frames in, what is known about every face in them out.

    scan     the whole frame is searched for faces, every k-th frame, perhaps in another thread
    predict  every track moves on to this frame
    correct  a late scan, then a few faces re-detected around where they should be
    crop     chips of the faces whose turn it is to be analysed
    infer    the ensemble, once for all faces of all cameras
    answer   fused emotion, identity, and the tracks as they stand

One `InferencePipeline` is owned by one thread. Nothing here reads a clock except to say how long a
stage took.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .batcher import share_places
from .cropper import AnyCropper
from .detector import Detector, DetectorConfig
from .ensemble import Ensemble, EnsembleConfig
from .errors import ModelError
from .frame import Detection, Frame, Track
from .fuser import Fused, Fuser
from .identity.identity import Identifier
from .message import EMOTIONS, Emotion, Face, Identity
from .tracker import Tracker, TrackerConfig

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scan:
    """The faces found in the whole of frame `seq`."""

    seq: int
    detections: tuple[Detection, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything known about one frame; `embeddings` is `(n, D)`, rows as the faces say.

    `analyses` are those made in this very frame, by track.
    """

    frame: Frame
    faces: list[Face]
    embeddings: F32
    stages_ms: dict[str, float]
    analyses: dict[int, "Analysis"]


@dataclass(frozen=True, slots=True)
class Analysis:
    """What the ensemble said about a track in frame `seq`, of the face at `landmarks` `(5, 2)` px.

    `probabilities` `(K,)` are fused and smoothed over the track; `members` `(E, K)` is what each said here.
    """

    seq: int
    landmarks: F32
    embedding: F32
    probabilities: F32
    members: F32
    disagreement: float
    quality: float
    identity: Identity


@dataclass(slots=True)
class View:
    """One camera's memory. `looked` says in which frame a track was last looked for."""

    tracker: Tracker
    identify: bool
    feel: bool
    last_scan_seq: int = -(10**9)
    looked: dict[int, int] = field(default_factory=dict)
    analyses: dict[int, Analysis] = field(default_factory=dict)


@dataclass(slots=True)
class Work:
    """One frame on its way through the pipeline."""

    frame: Frame
    view: View
    due: list[Track]
    stages_ms: dict[str, float]


class InferencePipeline:
    """The stages in the order a frame meets them. Owned by one thread."""

    def __init__(
        self,
        detector: Detector,
        cropper: AnyCropper,
        ensemble: Ensemble,
        fuser: Fuser,
        identifier: Identifier,
        configs: tuple[DetectorConfig, TrackerConfig, EnsembleConfig],
    ) -> None:
        self.detector = detector
        self.ensemble = ensemble
        self.identifier = identifier
        self._cropper = cropper
        self._fuser = fuser
        self._detector_config, self._tracker_config, self._ensemble_config = configs
        self._views: dict[str, View] = {}
        self._first = 0  # whose frame gets a place that is left over; the next one's the next time

    def swap(self, ensemble: Ensemble) -> Ensemble:
        """Infer with `ensemble`, which must be warm, from the next batch on; return the one before.

        Called between two batches by the thread that runs them, so no answer mixes the two.

        Raises:
            ModelError: it embeds faces into another space, so that the gallery would not know them.
        """
        if ensemble.embedding_space != self.ensemble.embedding_space:
            raise ModelError(
                f"the embeddings of {ensemble.embedding_space} cannot be compared with those of "
                f"{self.ensemble.embedding_space} in the gallery; enrol the people again, then restart"
            )
        before, self.ensemble = self.ensemble, ensemble
        return before

    def add_camera(self, camera: str, *, identify: bool = True, feel: bool = True) -> None:
        """Begin with `camera`; `identify` and `feel` are its switches for identity and emotion."""
        self._views[camera] = View(Tracker(self._tracker_config), identify, feel)

    def warm_up(self) -> None:
        """Do what costs time once, in the thread that calls: dlib's detector is made anew in each."""
        blank = np.zeros((240, 320, 3), np.uint8)
        self.detector.detect(blank)
        self.detector.detect_near(blank, np.array([[80, 60, 180, 160]], np.float32))

    def is_scan_due(self, frame: Frame) -> bool:
        """Return whether the whole of `frame` should be searched for faces."""
        return frame.seq - self._views[frame.camera].last_scan_seq >= self._detector_config.every

    def begin_scan(self, frame: Frame) -> None:
        """Note that a scan of `frame` has begun, so that none is due for a while."""
        self._views[frame.camera].last_scan_seq = frame.seq

    def scan(self, frame: Frame) -> Scan:
        """Search the whole of `frame` for faces. May run in another thread than `run`."""
        return Scan(frame.seq, tuple(self.detector.detect(frame.rgb)))

    def run(self, frames: Sequence[tuple[Frame, Scan | None]], places: int | None = None) -> list[Answer]:
        """Return one answer per frame; at most one frame per camera. A scan may be of an earlier frame.

        At most `places` faces are analysed, shared fairly between the cameras; the others have their turn
        in the frames after. None: all of them.
        """
        works = [self._follow(frame, scan) for frame, scan in frames]
        if places is not None:
            self._share(works, places)
        self._analyse([work for work in works if work.due])
        return [self._answer(work) for work in works]

    def _share(self, works: list[Work], places: int) -> None:
        """Leave each frame the faces that it has places for, those in need first."""
        self._first = (self._first + 1) % len(works)
        granted = share_places([len(work.due) for work in works], places, self._first)
        for work, n in zip(works, granted, strict=True):
            del work.due[n:]

    def embedding_of(self, camera: str, track: int) -> F32 | None:
        """Return the `(D,)` embedding last computed for a track, or None."""
        view = self._views.get(camera)
        analysis = view.analyses.get(track) if view else None
        return analysis.embedding if analysis else None

    def _follow(self, frame: Frame, scan: Scan | None) -> Work:
        view, stages = self._views[frame.camera], {}
        start = time.perf_counter()
        height, width = frame.rgb.shape[:2]
        view.tracker.predict(frame.seq, frame.captured_ns, (width, height))
        if scan is not None:
            view.tracker.update(scan.detections, seq=scan.seq)
        stages["track"] = lap = time.perf_counter() - start

        if scan is not None and scan.seq == frame.seq:
            seen = {track.id for track in view.tracker.followed() if track.is_visible}
            view.looked.update(dict.fromkeys(seen, frame.seq))
        else:
            seen = self._look_again(frame, view, view.tracker.followed())
        tracks = view.tracker.followed()
        stages["detect"] = time.perf_counter() - start - lap
        view.looked = {t.id: view.looked.get(t.id, -1) for t in tracks}

        due = self._due(view, [track for track in tracks if track.id in seen], frame)
        return Work(frame, view, due, {name: seconds * 1e3 for name, seconds in stages.items()})

    def _look_again(self, frame: Frame, view: View, tracks: list[Track]) -> set[int]:
        """Re-detect the faces that most need it around where they should be; return those found."""

        def need(track: Track) -> tuple[bool, int]:
            return (not view.tracker.wants_embedding(track.id), view.looked.get(track.id, -1))

        chosen = sorted(tracks, key=need)[: self._detector_config.near_per_frame]
        if not chosen:
            return set()
        reach = np.array([view.tracker.reach(track.id) for track in chosen], np.float32)
        found = self.detector.detect_near(frame.rgb, np.stack([track.box for track in chosen]), reach)
        view.tracker.update({t.id: d for t, d in zip(chosen, found, strict=True)})
        view.looked.update({t.id: frame.seq for t in chosen})  # also in vain: the others have their turn
        return {t.id for t, d in zip(chosen, found, strict=True) if d is not None}

    def _due(self, view: View, seen: list[Track], frame: Frame) -> list[Track]:
        """Return the faces to analyse now: all that are new or in doubt, of the others those next in turn.

        The turns are spread over `refresh_every` frames, so that no frame waits for many faces at once.
        """
        urgent = [t for t in seen if t.id not in view.analyses or view.tracker.wants_embedding(t.id)]
        urgent.sort(key=lambda t: view.analyses[t.id].seq if t.id in view.analyses else -1)
        every = self._ensemble_config.refresh_every
        waiting = [t for t in seen if t not in urgent and frame.seq - view.analyses[t.id].seq >= every]
        waiting.sort(key=lambda track: view.analyses[track.id].seq)
        return urgent + waiting[: -(-len(view.analyses) // every)]

    def _analyse(self, works: list[Work]) -> None:
        """Run the ensemble over the faces that are due, all cameras in one batch."""
        if not works:
            return
        start = time.perf_counter()
        seen = [(work.frame.rgb, np.stack([track.landmarks for track in work.due])) for work in works]
        chips = self._cropper.crop_all(seen, self.ensemble.recipes)
        quality = [self._cropper.quality(rgb, marks) for rgb, marks in seen]
        cropped = time.perf_counter()
        outputs = self.ensemble.infer(chips)
        inferred = time.perf_counter()
        fused = self._fuser.fuse(outputs)

        first = 0
        for work, q in zip(works, quality, strict=True):
            rows = slice(first, first + len(work.due))
            first = rows.stop
            said = Fused(fused.probabilities[rows], fused.disagreement[rows], fused.members[:, rows])
            self._remember(work, outputs.embeddings[rows], said, q)
        done = time.perf_counter()
        for work in works:  # a batch is shared: every frame in it waited this long
            work.stages_ms["crop"] = (cropped - start) * 1e3
            work.stages_ms["infer"] = (inferred - cropped) * 1e3
            work.stages_ms["match"] = (done - inferred) * 1e3

    def _remember(self, work: Work, embeddings: F32, said: Fused, quality: F32) -> None:
        view, camera = work.view, work.frame.camera
        ids = [track.id for track in work.due]
        renamed = view.tracker.remember(dict(zip(ids, embeddings, strict=True)))
        if renamed:
            self._rename(work, renamed)
            ids = [renamed.get(track, track) for track in ids]
        identities = [Identity()] * len(ids)
        if view.identify:
            identities = self.identifier.identify(camera, ids, embeddings, quality, work.frame.captured_ns)
        keep = np.float32(self._ensemble_config.smoothing)
        for i, track in enumerate(ids):
            earlier = view.analyses.get(track)
            fused = said.probabilities[i]
            if earlier is not None:
                fused = keep * earlier.probabilities + (1 - keep) * fused
            view.analyses[track] = Analysis(
                seq=work.frame.seq,
                landmarks=work.due[i].landmarks,
                embedding=embeddings[i],
                probabilities=fused,
                members=said.members[:, i],
                disagreement=float(said.disagreement[i]),
                quality=float(quality[i]),
                identity=identities[i],
            )

    def _rename(self, work: Work, renamed: dict[int, int]) -> None:
        """Follow the tracker, which recognised that new tracks are old ones (or that two were swapped)."""
        view = work.view
        self.identifier.rename(work.frame.camera, renamed)
        moved = {renamed[t]: a for t, a in view.analyses.items() if t in renamed}
        view.analyses = {t: a for t, a in view.analyses.items() if t not in renamed} | moved
        looked = {renamed[t]: s for t, s in view.looked.items() if t in renamed}
        view.looked = {t: s for t, s in view.looked.items() if t not in renamed} | looked

    def _answer(self, work: Work) -> Answer:
        view = work.view
        published = [t for t in view.tracker.tracks() if t.id in view.analyses]
        rows = [view.analyses[t.id].embedding for t in published] if view.identify else []
        embeddings: F32 = np.stack(rows) if rows else np.zeros((0, self.ensemble.embedding_dim), np.float32)
        faces = [
            face_of(track, view.analyses[track.id], row if view.identify else -1, feel=view.feel)
            for row, track in enumerate(published)
        ]
        fresh = {t.id: a for t in published if (a := view.analyses[t.id]).seq == work.frame.seq}
        self._forget_lost(work)
        return Answer(work.frame, faces, embeddings, work.stages_ms, fresh)

    def _forget_lost(self, work: Work) -> None:
        """Drop what is remembered of tracks that can no longer come back."""
        view = work.view
        for track in [t for t in view.analyses if not view.tracker.remembers(t)]:
            del view.analyses[track]
            self.identifier.forget_track(work.frame.camera, track)


def face_of(track: Track, analysis: Analysis, row: int, *, feel: bool) -> Face:
    """Return what is published about one track."""
    left, top, right, bottom = (float(v) for v in track.box)
    return Face(
        track=track.id,
        box=(left, top, right, bottom),
        landmarks=[(float(x), float(y)) for x, y in track.landmarks],
        score=track.score,
        is_visible=track.is_visible,
        quality=analysis.quality,
        identity=analysis.identity,
        emotion=emotion_of(analysis.probabilities, analysis.disagreement) if feel else Emotion(),
        analysed_seq=analysis.seq,
        embedding_row=row,
    )


def emotion_of(probabilities: F32, disagreement: float) -> Emotion:
    """Return the fused emotion for `(K,)` probabilities in the order of `EMOTIONS`."""
    best = int(probabilities.argmax())
    clipped = np.clip(probabilities, 0.0, 1.0)
    return Emotion(
        label=EMOTIONS[best],
        probability=float(clipped[best]),
        probabilities=[float(p) for p in clipped],
        disagreement=min(max(disagreement, 0.0), 1.0),
    )
