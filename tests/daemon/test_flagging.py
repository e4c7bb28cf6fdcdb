"""Flags in the inference process, without networks: what is kept and refused, what the gallery learns."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from visaged.daemon.camera import CameraConfig
from visaged.daemon.config import Config
from visaged.daemon.control import Flag
from visaged.daemon.flagging import Flagging
from visaged.daemon.metrics import InferMetrics
from visaged.daemon.outline import PathsConfig
from visaged.pipelines.answer import Analysis, Answer
from visaged.pipelines.assembly import Stages
from visaged.pipelines.errors import GalleryError, SampleError
from visaged.pipelines.frame import Frame
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.identity.identity import Identifier, IdentityConfig
from visaged.pipelines.loop.flag_policy import FlagsConfig
from visaged.pipelines.loop.sample import Sample, SamplesConfig, Source, State
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.message import EMOTIONS, Emotion, Face, FaceFrame, Identity
from visaged.pipelines.privacy.audit import Deed, note, read_chain
from visaged.pipelines.privacy.wall_clock import WallClock

U8 = npt.NDArray[np.uint8]

pytestmark = pytest.mark.patient

SPACE = "face-resnet"
LANDMARKS = np.array([[300, 200], [270, 205], [180, 200], [212, 204], [240, 290]], np.float32)
EMBEDDING = np.full(128, 0.08, np.float32)
ADA = Identity(state="known", person="Ada", distance=0.3, margin=0.3)
NONE = FlagsConfig()
ALWAYS = FlagsConfig(automatic=True, random_share=1, random_per_hour=1000)


def blots(seed: int) -> U8:
    """A frame of soft blots, another for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC), np.uint8)


def noisy(rgb: U8, seed: int) -> U8:
    """The frame as a camera sees it once more."""
    values = rgb + np.random.default_rng(seed).normal(0, 3, rgb.shape)
    return np.clip(values, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class FakeEnsemble:
    """What flagging asks of an ensemble."""

    embedding_space: str = SPACE


@dataclass(frozen=True)
class FakeStages:
    """A real gallery beside an ensemble without networks."""

    gallery: Gallery
    clock: WallClock
    identifier: Identifier
    ensemble: FakeEnsemble = FakeEnsemble()


class Bench:
    """Flagging with two cameras, of which `yard` says nothing about people, and frames made by hand."""

    def __init__(self, state: Path, flags: FlagsConfig = NONE, **samples: Any) -> None:
        cameras = (
            CameraConfig(name="door", source="synthetic:pattern"),
            CameraConfig(name="yard", source="synthetic:pattern", identity=False, emotion=False),
        )
        self.state, self.metrics = state, InferMetrics("infer")
        self.error_s, self.is_synchronised = 0.0, False
        self.config = Config(
            paths=PathsConfig(state=state), camera=cameras, flags=flags, samples=SamplesConfig(**samples)
        )
        self.clock = WallClock(state, self.wall, is_synchronised=lambda: self.is_synchronised)
        self.gallery = Gallery(state, now=self.clock.now)
        identifier = Identifier(self.gallery, SPACE, IdentityConfig())
        self.flagging = Flagging(
            self.config, cast(Stages, FakeStages(self.gallery, self.clock, identifier)), self.metrics
        )

    def wall(self) -> float:
        """What the wall clock says."""
        return time.time() + self.error_s

    def see(
        self,
        seq: int,
        camera: str = "door",
        identity: Identity = ADA,
        picture: U8 | None = None,
        *,
        is_published: bool = True,
    ) -> None:
        """Answer one frame with one face, track 3; without a `picture` it is grey, by its number."""
        shares = np.zeros(len(EMOTIONS), np.float32)
        shares[1] = 1
        analysis = Analysis(
            seq=seq, landmarks=LANDMARKS, face_px=180, embedding=EMBEDDING, probabilities=shares,
            members={"one": shares, "two": shares}, release="abc",
            disagreement=0.0, quality=0.9, identity=identity,
        )  # fmt: skip
        grey = np.full((480, 640, 3), seq % 256, np.uint8)
        frame = Frame(camera, seq, time.monotonic_ns(), grey if picture is None else picture)
        face = Face(track=3, box=(150, 100, 330, 310), identity=identity, emotion=Emotion(label="happiness"))
        faces = [face] if is_published else []
        result = FaceFrame(
            camera=camera, run="r", seq=seq, frame_seq=seq, captured_ns=frame.captured_ns,
            captured_at=1_700_000_000.0 + seq, published_ns=0, width=640, height=480, release="abc",
            embedding_space=SPACE, embedding_dim=128, faces=faces,
        )  # fmt: skip
        embeddings = np.zeros((0, 128), np.float32)
        self.flagging.see(Answer(frame, faces, embeddings, {}, {3: analysis}), result)

    def settle(self) -> None:
        """Wait until what was picked is stored, and known to be."""
        while self.flagging._automatic:
            self.flagging.keep_house(is_gallery_changed=False)

    def flag(self, camera: str = "door", track: int = 3, **said: Any) -> Sample:
        """Flag, and wait for the answer."""
        later = self.flagging.flag(Flag(camera=camera, track=track, **said))
        deadline = time.monotonic() + 10
        while (values := later()) is None:
            assert time.monotonic() < deadline
        return msgspec.convert(values["sample"], Sample)

    def stored(self) -> list[Sample]:
        """What is on disk once everything is written."""
        self.flagging.close()
        with SampleStore(self.state) as store:
            return store.samples()

    def templates(self) -> dict[str, tuple[int, int]]:
        """Name -> templates and negatives."""
        return {p.name: (p.templates, p.negatives) for p in self.gallery.people()}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(flags: FlagsConfig = NONE, **samples: Any) -> Bench:
        made.append(Bench(tmp_path, flags, **samples))
        return made[-1]

    yield make
    for bench in made:
        bench.flagging.close()
        bench.gallery.close()


def test_a_sample_of_a_camera_without_identity_has_no_embedding_and_no_opinion(
    make: Callable[..., Bench],
) -> None:
    bench = make()
    bench.see(1, "yard", Identity())

    sample = bench.flag("yard", is_face=False)

    with SampleStore(bench.state) as store:
        face = store.face(sample.id)
    assert face.embedding is None and face.probabilities is None and face.members == {}
    assert bench.templates() == {}


def test_what_was_said_before_a_face_was_published_can_be_flagged_and_is_not_kept_by_itself(
    make: Callable[..., Bench],
) -> None:
    bench = make(ALWAYS)
    bench.see(7, is_published=False)

    assert bench.flag(seq=8, emotion="anger").seq == 7
    assert [sample.source for sample in bench.stored()] == [Source.USER]


def test_nothing_is_stored_of_a_face_that_nobody_flags(make: Callable[..., Bench]) -> None:
    bench = make()
    for seq in range(1, 20):
        bench.see(seq)

    assert bench.stored() == []


def test_a_flag_stores_the_look_that_was_meant(make: Callable[..., Bench]) -> None:
    bench = make()
    for seq in (10, 20, 30):
        bench.see(seq)

    sample = bench.flag(seq=25, emotion="fear")

    assert (sample.seq, sample.shown_emotion, sample.label.emotion) == (20, "happiness", "fear")
    assert bench.stored() == [sample]
    with SampleStore(bench.state) as store:
        face = store.face(sample.id)
    assert {int(v) for v in np.unique(face.chip)} == {20}
    assert face.members.keys() == {"one", "two"}
    assert bench.metrics.text().count('visaged_flags_total{source="user"} 1.0') == 1


@pytest.mark.realtime
def test_on_a_slow_disk_a_flag_waits_for_its_answer_and_the_frames_do_not(make: Callable[..., Bench]) -> None:
    bench, may_go_on = make(), threading.Event()
    bench.see(10)

    def hang(store: SampleStore) -> None:
        may_go_on.wait(30)

    bench.flagging._writer.submit(hang, is_urgent=True)

    later = bench.flagging.flag(Flag(camera="door", track=3, emotion="fear"))
    start = time.perf_counter()
    bench.see(20)
    answers = [later() for _ in range(3)]
    took_s = time.perf_counter() - start
    may_go_on.set()

    assert answers == [None] * 3
    assert took_s < 1
    bench.flagging.close()
    assert later() is not None


def test_a_person_is_taught_to_the_gallery_and_taken_back(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.gallery.enrol("Ada", -EMBEDDING[None], space=SPACE)
    bench.see(10)

    bench.flag(person=" Ben ")
    bench.flag(person="Ben")
    assert bench.templates() == {"Ada": (1, 0), "Ben": (1, 0)}
    bench.flag(person="ada")
    assert bench.templates() == {"Ada": (2, 0), "Ben": (0, 0)}
    bench.flag(not_person="Ada")
    bench.flag(not_person="Ada")
    assert bench.templates() == {"Ada": (1, 1), "Ben": (0, 0)}
    bench.flag(is_face=False)
    assert bench.templates() == {"Ada": (1, 0), "Ben": (0, 0)}
    (sample,) = bench.stored()
    assert sample.label.is_face is False


def test_confirming_says_what_was_published(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.gallery.enrol("Ada", -EMBEDDING[None], space=SPACE)
    bench.see(10)

    sample = bench.flag(confirm=True)

    assert (sample.label.emotion, sample.label.person) == ("happiness", "Ada")
    assert sample.state is State.CONFIRMED
    assert bench.templates() == {"Ada": (2, 0)}


@pytest.mark.parametrize(
    ("camera", "track", "said", "sentence"),
    [
        ("door", 9, {"confirm": True}, "no face of track 9 of camera door"),
        ("door", 3, {"confirm": True, "seq": 5}, "at frame 5 is gone from memory"),
        ("attic", 3, {"confirm": True}, "no camera attic; there are: door, yard"),
        ("yard", 3, {"emotion": "fear"}, "camera yard has emotion = false"),
        ("yard", 3, {"person": "Ada"}, "camera yard has identity = false"),
        ("yard", 3, {"confirm": True}, "nothing was published of this face"),
        ("door", 3, {"not_person": "Zoe"}, "nobody is called Zoe"),
        ("door", 3, {"person": "unknown-3"}, "belong to strangers"),
    ],
)
def test_what_cannot_be_flagged_is_refused_and_nothing_is_stored(
    make: Callable[..., Bench], camera: str, track: int, said: dict[str, Any], sentence: str
) -> None:
    bench = make()
    bench.see(10)
    bench.see(10, "yard", Identity())

    with pytest.raises((SampleError, GalleryError), match=sentence):
        bench.flag(camera, track, **said)
    assert bench.stored() == []


def test_a_camera_that_does_not_say_who_keeps_no_embedding(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.see(10, "yard", Identity())

    sample = bench.flag("yard", is_face=False)

    bench.flagging.close()
    with SampleStore(bench.state) as store:
        face = store.face(sample.id)
    assert (face.embedding, face.probabilities, face.members) == (None, None, {})
    assert (sample.identity, sample.shown_emotion) == (Identity(), "")


def test_automatic_flags_keep_faces_for_review_but_not_of_cameras_with_a_switch_off(
    make: Callable[..., Bench],
) -> None:
    bench = make(ALWAYS)
    for seq in (10, 20):
        bench.see(seq, picture=blots(seq))
        bench.see(seq, "yard", picture=blots(seq))

    stored = bench.stored()

    assert [(s.camera, s.source, s.state) for s in stored] == [("door", Source.RANDOM, State.REVIEW)] * 2
    assert 'visaged_flags_total{source="random"} 2.0' in bench.metrics.text()


def test_a_still_face_is_kept_once_and_not_again_after_a_restart(make: Callable[..., Bench]) -> None:
    bench, still = make(ALWAYS), blots(1)
    for seq in range(10, 200):
        bench.see(seq, picture=noisy(still, seq))
        bench.settle()
    (first,) = bench.stored()

    after = make(ALWAYS)
    after.see(300, picture=still)
    after.see(310, picture=blots(2))

    assert [sample.seq for sample in after.stored()] == [first.seq, 310]


def test_the_budget_of_a_day_outlives_a_restart(make: Callable[..., Bench]) -> None:
    """What people flag themselves is not on it."""
    flags, before = msgspec.structs.replace(ALWAYS, per_day=3), make()
    before.see(5, picture=blots(5))
    before.flag(emotion="fear")
    before.flagging.close()
    bench = make(flags)
    for seq in range(10, 12):
        bench.see(seq, picture=blots(seq))
    assert len(bench.stored()) == 3

    after = make(flags)
    for seq in range(20, 30):
        after.see(seq, picture=blots(seq))

    assert [sample.seq for sample in after.stored()] == [5, 10, 11, 20]


def test_automatic_flags_that_find_no_place_are_dropped_and_counted(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visaged.daemon.sample_writer.RESERVED", 32)
    bench = make(ALWAYS)
    bench.see(10)

    assert bench.stored() == []
    assert 'visaged_flags_dropped_total{reason="queue_full"} 1.0' in bench.metrics.text()


def test_faces_of_somebody_forgotten_cannot_be_flagged_any_more(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.gallery.enrol("Ada", EMBEDDING[None], space=SPACE)
    bench.see(10)
    bench.flagging.keep_house(is_gallery_changed=True)
    assert bench.flag(emotion="fear").seq == 10

    bench.gallery.forget("Ada")
    bench.flagging.keep_house(is_gallery_changed=True)
    with pytest.raises(SampleError, match="no face of track 3"):
        bench.flag(emotion="fear")


def test_the_look_of_somebody_forgotten_by_another_process_is_remembered_no_longer(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visaged.daemon.flagging.EXPIRE_EVERY_S", 0.0)
    bench = make(ALWAYS)
    bench.see(10, picture=blots(1))
    bench.settle()
    bench.see(20, picture=blots(1))
    with SampleStore(bench.state) as store:
        assert [sample.seq for sample in store.samples()] == [10], "it looks the same"
        store.forget(["Ada"])

    deadline = time.monotonic() + 10
    while not bench.flagging._automatic and time.monotonic() < deadline:
        bench.flagging.keep_house(is_gallery_changed=False)
        bench.see(30, picture=blots(1))

    assert [sample.seq for sample in bench.stored()] == [30]


def test_old_samples_go_while_the_daemon_runs(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visaged.daemon.flagging.EXPIRE_EVERY_S", 0.0)
    bench = make(keep_labelled_days=1e-9)
    bench.see(10)
    bench.flag(emotion="fear")
    assert bench.flagging.status()["samples"] == {"review": 0, "corrected": 1, "confirmed": 0}

    bench.flagging.keep_house(is_gallery_changed=False)

    assert bench.stored() == []


def test_old_lines_of_the_audit_log_go_while_the_daemon_runs(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visaged.daemon.flagging.EXPIRE_EVERY_S", 0.0)
    bench = make()
    old = Deed(at=time.time() - 400 * 86_400, who="uid 0", what="enrol", person=1)
    (bench.state / "audit.log").write_bytes(msgspec.json.encode(old) + b"\n")
    note(bench.state, "enrol", person=2)

    bench.flagging.keep_house(is_gallery_changed=False)
    bench.stored()
    chain = read_chain(bench.state)

    assert [deed.person for deed in chain.deeds] == [2]
    assert chain.anchor is not None and chain.anchor.n_lines == 1 and not chain.problems


def test_a_clock_that_jumps_deletes_nothing_says_so_and_is_believed_when_it_is_synchronised(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("visaged.daemon.flagging.EXPIRE_EVERY_S", 0.0)
    bench = make(keep_labelled_days=1, recent_s=1e9)
    bench.see(10)
    before = bench.flag(emotion="fear")

    bench.error_s = 30 * 365 * 86_400.0
    for _ in range(3):
        bench.flagging.keep_house(is_gallery_changed=False)
    bench.see(20)
    during = bench.flag(emotion="anger")
    assert bench.flagging.status()["clock_step_s"] == pytest.approx(bench.error_s)
    assert caplog.text.count("the clock jumped by +946080") == 1
    with SampleStore(bench.state) as store:
        assert [sample.id for sample in store.samples()] == [before.id, during.id]

    bench.is_synchronised = True
    deadline = time.monotonic() + 10
    while "visaged_clock_step_seconds 0.0" not in bench.metrics.text():
        bench.flagging.keep_house(is_gallery_changed=False)
        assert time.monotonic() < deadline

    assert bench.flagging.status()["clock_step_s"] == 0.0
    assert [sample.id for sample in bench.stored()] == [before.id, during.id]


def test_the_status_says_how_far_back_faces_can_be_flagged(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.see(10)

    status = bench.flagging.status()

    assert 0 < status["flaggable_s"]["door"] < 10
    assert status["flaggable_s"]["yard"] == 0
    assert status["automatic_flags"] is False
