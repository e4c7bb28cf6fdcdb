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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .answer import Analysis, Answer, face_of
from .batcher import share_places
from .cropper import AnyCropper
from .detector import Detector, DetectorConfig
from .ensemble import Ensemble, EnsembleConfig, Outputs
from .errors import GalleryError, ModelError
from .frame import Detection, Frame, Track
from .fuser import Fused
from .identity.identity import Identifier
from .message import Identity
from .releases.canary import Canary, Look, check_finite, check_space
from .releases.release import LoadedRelease
from .tracker import Tracker, TrackerConfig

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scan:
    """The faces found in the whole of frame `seq`."""

    seq: int
    detections: tuple[Detection, ...]


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
    """One frame on its way through the pipeline; `fresh` and `renamings` are as in its `Answer`."""

    frame: Frame
    view: View
    due: list[Track]
    stages_ms: dict[str, float]
    fresh: dict[int, Analysis] = field(default_factory=dict)
    renamings: list[dict[int, int]] = field(default_factory=list)


class InferencePipeline:
    """The stages in the order a frame meets them. Owned by one thread."""

    def __init__(
        self,
        detector: Detector,
        cropper: AnyCropper,
        serving: LoadedRelease,
        identifier: Identifier,
        configs: tuple[DetectorConfig, TrackerConfig, EnsembleConfig],
    ) -> None:
        self.detector = detector
        self.serving = serving
        self.identifier = identifier
        self.canary: Canary | None = None
        self.spare: LoadedRelease | None = None
        """Stands in when the serving release fails: the one before it, as long as it is loaded."""
        self.faults: list[tuple[LoadedRelease, str]] = []
        """What failed and was stood in for; whoever reads it takes it away."""
        self.looks: list[Look] = []
        """What the last `run` analysed."""
        self._cropper = cropper
        self._detector_config, self._tracker_config, self._ensemble_config = configs
        self._views: dict[str, View] = {}
        self._first = 0  # whose frame gets a place that is left over; the next one's the next time

    @property
    def ensemble(self) -> Ensemble:
        """The networks of the serving release."""
        return self.serving.ensemble

    def swap(self, loaded: LoadedRelease) -> LoadedRelease:
        """Answer with `loaded`, which must be warm, from the next batch on; return the one before.

        Networks and fusion change together. Called between two batches by the thread that runs them, so
        no answer mixes the two. Faces that another release analysed have their turn at once.

        Raises:
            ModelError: it embeds faces into another space, so that the gallery would not know them.
        """
        check_space(loaded.ensemble, self.ensemble)
        before, self.serving = self.serving, loaded
        return before

    def forget_answers(self, release: str) -> None:
        """Publish no more what this release, by its name in messages, said about faces."""
        for view in self._views.values():
            view.analyses = {t: a for t, a in view.analyses.items() if a.release != release}

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
        self.looks = []
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
        """Return the `(D,)` embedding last computed for a track, or None.

        Raises:
            GalleryError: the camera has identity switched off.
        """
        view = self._views.get(camera)
        if view and not view.identify:
            raise GalleryError(f"camera {camera} has identity = false: nobody is enrolled from it")
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
        camera = frame.camera
        urgent = [t for t in seen if self._is_new(view, camera, t.id) or view.tracker.wants_embedding(t.id)]
        urgent.sort(key=lambda t: view.analyses[t.id].seq if t.id in view.analyses else -1)
        every = self._ensemble_config.refresh_every
        waiting = [t for t in seen if t not in urgent and frame.seq - view.analyses[t.id].seq >= every]
        waiting.sort(key=lambda track: view.analyses[track.id].seq)
        return urgent + waiting[: -(-len(view.analyses) // every)]

    def _is_new(self, view: View, camera: str, track: int) -> bool:
        """Whether the release that is to answer for a track has not looked at it yet."""
        analysis = view.analyses.get(track)
        return analysis is None or analysis.release != self._release_for(camera, track).name

    def _release_for(self, camera: str, track: int) -> LoadedRelease:
        canary = self.canary
        return canary.loaded if canary is not None and canary.takes(camera, track) else self.serving

    def ask(
        self, loaded: LoadedRelease, seen: Sequence[tuple[U8, F32]], stages_ms: dict[str, float] | None = None
    ) -> tuple[Outputs, Fused]:
        """Return what a release says about faces: its members' outputs, and the fused answers.

        Args:
            loaded: the release.
            seen: frames `(H, W, 3)` RGB with the landmarks `(n, 5, 2)` of their faces.
            stages_ms: what the stages took is added to it.
        """
        start = time.perf_counter()
        chips = self._cropper.crop_all(seen, loaded.ensemble.recipes)
        cropped = time.perf_counter()
        outputs = loaded.ensemble.infer(chips)
        inferred = time.perf_counter()
        if stages_ms is not None:
            stages_ms["crop"] = stages_ms.get("crop", 0.0) + (cropped - start) * 1e3
            stages_ms["infer"] = stages_ms.get("infer", 0.0) + (inferred - cropped) * 1e3
        return outputs, loaded.fuser.fuse(outputs)

    def _analyse(self, works: list[Work]) -> None:
        """Ask the releases about the faces that are due, all cameras in one batch of each."""
        stages_ms: dict[str, float] = {}
        for loaded, part in self._by_release(works):
            spare = self.spare if loaded is self.serving else self.serving
            try:
                self._analyse_with(loaded, part, stages_ms, must_be_finite=spare is not None)
            except ModelError as error:
                if spare is None:
                    raise
                self.faults.append((loaded, str(error)))
                self._analyse_with(spare, part, stages_ms, must_be_finite=False)
        for work in works:  # a batch is shared: every frame in it waited this long
            work.stages_ms.update(stages_ms)

    def _by_release(self, works: list[Work]) -> Iterator[tuple[LoadedRelease, list[Work]]]:
        """Yield each release with the works that have faces for it, and only those faces."""
        for loaded in (self.serving, *([self.canary.loaded] if self.canary is not None else [])):
            parts = [
                replace(
                    work, due=[t for t in work.due if self._release_for(work.frame.camera, t.id) is loaded]
                )
                for work in works
            ]
            if parts := [part for part in parts if part.due]:
                yield loaded, parts

    def _analyse_with(
        self, loaded: LoadedRelease, works: list[Work], stages_ms: dict[str, float], *, must_be_finite: bool
    ) -> None:
        """Run one release over the faces that are due to it.

        Raises:
            ModelError: its engine failed, or what it says is no number; nothing is remembered then.
        """
        seen = [(work.frame.rgb, np.stack([track.landmarks for track in work.due])) for work in works]
        outputs, fused = self.ask(loaded, seen, stages_ms)
        if must_be_finite:
            check_finite(loaded, fused.probabilities, outputs.logits, outputs.embeddings)
        start = time.perf_counter()
        first = 0
        for work, (rgb, marks) in zip(works, seen, strict=True):
            rows = slice(first, first + len(work.due))
            first = rows.stop
            quality = self._cropper.quality(rgb, marks)
            self._remember(work, loaded.name, (outputs.embeddings[rows], quality), fused.rows(rows))
            tracks = tuple(track.id for track in work.due)
            self.looks.append(Look(work.frame.camera, rgb, tracks, marks, loaded))
        stages_ms["match"] = stages_ms.get("match", 0.0) + (time.perf_counter() - start) * 1e3

    def _remember(self, work: Work, release: str, faces: tuple[F32, F32], said: Fused) -> None:
        """Keep what `release` said of the faces that were due, with their embeddings and quality."""
        embeddings, quality = faces
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
            if earlier is not None and earlier.release == release:  # no answer mixes two releases
                fused = keep * earlier.probabilities + (1 - keep) * fused
            work.fresh[track] = view.analyses[track] = Analysis(
                seq=work.frame.seq,
                release=release,
                landmarks=work.due[i].landmarks,
                face_px=float(work.due[i].box[2] - work.due[i].box[0]),
                embedding=embeddings[i],
                probabilities=fused,
                members=dict(zip(said.names, said.members[:, i], strict=True)),
                disagreement=float(said.disagreement[i]),
                quality=float(quality[i]),
                identity=identities[i],
            )

    def _rename(self, work: Work, renamed: dict[int, int]) -> None:
        """Follow the tracker, which recognised that new tracks are old ones (or that two were swapped)."""
        view = work.view
        self.identifier.rename(work.frame.camera, renamed)
        view.analyses = _renamed(view.analyses, renamed)
        view.looked = _renamed(view.looked, renamed)
        fresh = _renamed(work.fresh, renamed)
        work.fresh.clear()
        work.fresh.update(fresh)  # in place: the other release's part of this frame shares it
        work.renamings.append(renamed)

    def _answer(self, work: Work) -> Answer:
        view = work.view
        published = [t for t in view.tracker.tracks() if t.id in view.analyses]
        rows = [view.analyses[t.id].embedding for t in published] if view.identify else []
        embeddings: F32 = np.stack(rows) if rows else np.zeros((0, self.ensemble.embedding_dim), np.float32)
        faces = [
            face_of(
                track, view.analyses[track.id], row if view.identify else -1, self.serving.name, view.feel
            )
            for row, track in enumerate(published)
        ]
        self._forget_lost(work)
        return Answer(work.frame, faces, embeddings, work.stages_ms, work.fresh, work.renamings)

    def _forget_lost(self, work: Work) -> None:
        """Drop what is remembered of tracks that can no longer come back."""
        view = work.view
        for track in [t for t in view.analyses if not view.tracker.remembers(t)]:
            del view.analyses[track]
            self.identifier.forget_track(work.frame.camera, track)


def _renamed(by_track: dict[int, T], renamed: dict[int, int]) -> dict[int, T]:
    """Return `by_track` under the new ids; who gives an id up to another loses what was under it."""
    moved = {renamed[t]: value for t, value in by_track.items() if t in renamed}
    return {t: value for t, value in by_track.items() if t not in renamed} | moved
