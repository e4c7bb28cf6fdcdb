"""The samples on disk: each once, sealed, limited, found again, and gone when they should be."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from visaged.kernels.looks import difference_hash
from visaged.pipelines.cropper import Cropper
from visaged.pipelines.errors import SampleError, StoreError
from visaged.pipelines.loop.sample import (
    N_BUCKETS,
    TRAIN,
    Label,
    SamplesConfig,
    Source,
    State,
    bucket_of,
    bucket_of_person,
)
from visaged.pipelines.loop.sample_schema import MIGRATIONS
from visaged.pipelines.loop.sample_store import SampleStore, Wanted
from visaged.pipelines.loop.sighting import Sighting
from visaged.pipelines.message import Identity
from visaged.pipelines.privacy.wall_clock import Correction
from visaged.pipelines.registry import EMOTION_XCEPTION, FACE_RESNET

MakeSighting = Callable[..., Sighting]
DAY_S = 86_400.0
SAMPLE_MB = 0.121  # noise does not compress


class Wall:
    """A wall clock set by hand."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def store(tmp_path: Path, wall: Wall) -> Iterator[SampleStore]:
    config = SamplesConfig(keep_labelled_days=100, keep_review_days=10)
    with SampleStore(tmp_path, config, now=wall) as store:
        yield store


def ids(store: SampleStore, wanted: Wanted | None = None) -> list[str]:
    return [sample.id for sample in store.samples(wanted)]


def said(emotion: str = "", person: str = "", *not_people: str) -> Label:
    return Label(emotion=emotion, person=person, not_people=not_people, is_face=True)


def test_a_sighting_comes_back_as_it_went_in(
    store: SampleStore, make_sighting: MakeSighting, tmp_path: Path
) -> None:
    seen = make_sighting()
    store.add(seen, Source.USER, said("fear"))

    with SampleStore(tmp_path) as again:
        (sample,) = again.samples()
        face = again.face(sample.id)

    assert (sample.camera, sample.track, sample.seq, sample.captured_at) == ("door", 3, 10, 1_700_000_001.0)
    assert (sample.source, sample.state, sample.label) == (Source.USER, State.CORRECTED, said("fear"))
    assert (sample.shown_emotion, sample.identity, sample.release) == ("neutral", seen.identity, "abc")
    np.testing.assert_array_equal(face.chip, seen.chip)
    np.testing.assert_array_equal(face.landmarks, seen.landmarks)
    assert face.embedding is not None and face.probabilities is not None
    np.testing.assert_array_equal(face.embedding, seen.embedding)
    np.testing.assert_array_equal(face.probabilities, seen.probabilities)
    assert face.members.keys() == seen.members.keys()
    np.testing.assert_array_equal(face.members["face-resnet"], seen.members["face-resnet"])


def test_what_a_camera_does_not_say_is_not_stored(store: SampleStore, make_sighting: MakeSighting) -> None:
    seen = make_sighting(embedding=None, probabilities=None, members={}, identity=Identity())

    face = store.face(store.add(seen, Source.USER, Label(is_face=False)).id)

    assert (face.embedding, face.probabilities, face.members) == (None, None, {})


def test_the_same_flag_again_changes_nothing(store: SampleStore, make_sighting: MakeSighting) -> None:
    first = store.add(make_sighting(), Source.USER, said("fear", "Ben"))
    again = store.add(make_sighting(), Source.USER, said("fear", "Ben"))

    assert again == first
    assert ids(store) == [first.id]


def test_another_flag_of_the_same_face_replaces_what_it_is_about(
    store: SampleStore, make_sighting: MakeSighting
) -> None:
    def flag(label: Label) -> tuple[Label, State]:
        sample = store.add(make_sighting(), Source.USER, label)
        return sample.label, sample.state

    assert flag(said("fear")) == (said("fear"), State.CORRECTED)
    assert flag(said("", "Ben")) == (said("fear", "Ben"), State.CORRECTED)
    assert flag(said("anger")) == (said("anger", "Ben"), State.CORRECTED)
    assert flag(said("", "", "Ben")) == (said("anger", "", "Ben"), State.CORRECTED)
    assert flag(said("", "", "Ada")) == (said("anger", "", "Ben", "Ada"), State.CORRECTED)
    assert flag(said("neutral", "Ada")) == (said("neutral", "Ada", "Ben"), State.CORRECTED)
    assert flag(Label(is_face=False)) == (Label(is_face=False), State.CORRECTED)
    assert flag(said("neutral", "Ada")) == (said("neutral", "Ada"), State.CONFIRMED)
    assert len(store.samples()) == 1


def test_a_sample_keeps_the_reason_it_came_for(store: SampleStore, make_sighting: MakeSighting) -> None:
    store.add(make_sighting(), Source.RANDOM)
    sample = store.add(make_sighting(), Source.USER, said("fear"))
    unchanged = store.add(make_sighting(), Source.DISAGREEMENT)

    assert (sample.source, sample.state) == (Source.RANDOM, State.CORRECTED)
    assert unchanged == sample


def test_the_same_numbers_after_a_restart_are_another_sample(
    store: SampleStore, make_sighting: MakeSighting
) -> None:
    store.add(make_sighting(), Source.USER, said("fear"))
    store.add(make_sighting(captured_at=1_700_000_777.0), Source.USER, said("fear"))

    assert len(set(ids(store))) == 2


def test_samples_are_found_by_what_is_known_of_them(store: SampleStore, make_sighting: MakeSighting) -> None:
    fear = store.add(make_sighting(1), Source.USER, said("fear", "Ben"))
    nothing = store.add(make_sighting(2, track=4), Source.RANDOM)
    no_face = store.add(make_sighting(3, camera="yard"), Source.USER, Label(is_face=False))

    for wanted, found in (
        (Wanted(), [fear, nothing, no_face]),
        (Wanted(states=(State.REVIEW,)), [nothing]),
        (Wanted(states=(State.REVIEW, State.CORRECTED)), [fear, nothing, no_face]),
        (Wanted(source=Source.USER), [fear, no_face]),
        (Wanted(camera="yard"), [no_face]),
        (Wanted(emotion="fear"), [fear]),
        (Wanted(person="ben"), [fear]),
        (Wanted(is_face=True), [fear]),
        (Wanted(is_face=False), [no_face]),
        (Wanted(buckets=(fear.bucket,), emotion="fear"), [fear]),
        (Wanted(buckets=tuple(set(range(10)) - {fear.bucket}), emotion="fear"), []),
        (Wanted(buckets=()), []),
    ):
        assert store.samples(wanted) == found, wanted
    assert store.sample(fear.id[:6]) == fear
    assert store.counts() == {State.REVIEW: 1, State.CORRECTED: 2, State.CONFIRMED: 0}


@pytest.mark.parametrize(("id", "sentence"), [("", "several samples"), ("x", "no sample begins with 'x'")])
def test_an_id_that_is_not_one_samples_is_refused(
    store: SampleStore, make_sighting: MakeSighting, id: str, sentence: str
) -> None:
    for seq in range(2):
        store.add(make_sighting(seq), Source.USER)

    with pytest.raises(SampleError, match=sentence):
        store.sample(id)


def test_chips_are_what_the_cropper_cuts_from_the_kept_one(
    store: SampleStore, make_sighting: MakeSighting
) -> None:
    seen = make_sighting()
    sample = store.add(seen, Source.USER, said("fear"))

    for recipe in (FACE_RESNET.recipe, EMOTION_XCEPTION.recipe):
        ((found, chip),) = store.chips(recipe, Wanted(emotion="fear"))
        assert found == sample
        np.testing.assert_array_equal(chip, Cropper().crop(seen.chip, seen.landmarks[None], recipe)[0])


def test_a_track_has_one_bucket_a_day_and_the_buckets_are_even() -> None:
    noon = 1_700_000_000.0 // DAY_S * DAY_S + DAY_S / 2

    same_day = {bucket_of("door", 3, noon + hour * 3600) for hour in range(-12, 12)}
    many = [bucket_of("door", track, noon) for track in range(5000)]

    assert len(same_day) == 1
    assert set(many) == set(range(N_BUCKETS))
    assert sum(bucket in TRAIN for bucket in many) / 5000 == pytest.approx(0.7, abs=0.03)
    assert len({bucket_of("door", 3, noon + day * DAY_S) for day in range(30)}) > 1


def test_the_bucket_is_that_of_the_person_where_one_is_known_when_it_is_stored(
    store: SampleStore, make_sighting: MakeSighting
) -> None:
    """Else what is trained on by its person's part would be reserved by its track's, three times of ten."""
    nobody = Identity(state="unknown")
    stranger = Identity(state="unknown", person="unknown-7")
    at = make_sighting().captured_at

    taken = [store.add(make_sighting(n, track=n, identity=stranger), Source.RANDOM) for n in range(20)]
    said_so = store.add(make_sighting(30, identity=stranger), Source.USER, said("fear", "Ada"))
    denied = store.add(make_sighting(40, identity=stranger), Source.USER, said("fear", "", "unknown-7"))
    nameless = store.add(make_sighting(50, identity=nobody), Source.RANDOM)
    named = store.label(nameless.id, said("", "Ada"))

    assert {sample.bucket for sample in taken} == {bucket_of_person("unknown-7")}
    assert said_so.bucket == bucket_of_person("ada")
    assert denied.bucket == nameless.bucket == named.bucket == bucket_of("door", 3, at)


def test_the_bucket_is_stored_and_not_worked_out_again(
    store: SampleStore, make_sighting: MakeSighting, tmp_path: Path
) -> None:
    bucket = store.add(make_sighting(), Source.USER).bucket
    with sqlite3.connect(tmp_path / "samples.db") as db:
        db.execute("UPDATE samples SET bucket = ?", ((bucket + 1) % 10,))
    db.close()

    assert store.add(make_sighting(), Source.USER, said("fear")).bucket == (bucket + 1) % 10


def test_nothing_of_a_face_lies_open_on_the_disk(
    store: SampleStore, make_sighting: MakeSighting, tmp_path: Path
) -> None:
    seen = make_sighting()
    store.add(seen, Source.USER, said("fear"))
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    look = difference_hash(seen.chip)

    assert seen.embedding is not None and seen.probabilities is not None
    for secret in (
        b"\x89PNG", b"IDAT", seen.chip.tobytes()[:64], seen.embedding.tobytes()[:32],
        seen.landmarks.tobytes(), seen.probabilities.tobytes(),
        look.to_bytes(8, "big"), look.to_bytes(8, "little"), str(look).encode(),
    ):  # fmt: skip
        assert secret not in content
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}


def test_a_face_moved_to_another_sample_does_not_open(
    store: SampleStore, make_sighting: MakeSighting, tmp_path: Path
) -> None:
    one, two = (store.add(make_sighting(seq, seed=seq), Source.USER) for seq in (1, 2))
    with sqlite3.connect(tmp_path / "samples.db") as forger:
        forger.execute(
            "UPDATE samples SET sealed_face = (SELECT sealed_face FROM samples WHERE id = ?) WHERE id = ?",
            (one.id, two.id),
        )
    forger.close()

    with pytest.raises(StoreError, match="altered or moved"):
        store.face(two.id)


def test_what_is_too_old_goes_by_its_class(
    store: SampleStore, make_sighting: MakeSighting, wall: Wall
) -> None:
    store.add(make_sighting(1), Source.RANDOM)
    labelled = store.add(make_sighting(2), Source.USER, said("fear"))

    wall.seconds += 10 * DAY_S
    assert store.expire() == 0
    wall.seconds += 1
    assert store.expire() == 1
    assert ids(store) == [labelled.id]
    wall.seconds += 90 * DAY_S
    assert store.expire() == 1


def test_what_was_stored_by_a_wrong_clock_is_dated_anew_and_nothing_else(
    store: SampleStore, make_sighting: MakeSighting, wall: Wall
) -> None:
    times = {}
    for seq, at in enumerate((100.0, 200.0, 300.0, 400.0), 1):
        wall.seconds = at
        times[store.add(make_sighting(seq), Source.RANDOM).id] = at

    assert store.redate(Correction(since=150, until=300, step_s=1000, uptime=0)) == 2

    moved = {sample.id: sample.stored_at for sample in store.samples()}
    assert {times[id]: at for id, at in moved.items()} == {100: 100, 200: 1200, 300: 1300, 400: 400}


def test_when_there_is_no_room_the_oldest_without_a_label_goes_first(
    tmp_path: Path, make_sighting: MakeSighting, wall: Wall
) -> None:
    with SampleStore(tmp_path, SamplesConfig(max_mb=3.5 * SAMPLE_MB), now=wall) as store:

        def add(seq: int, label: Label | None = None) -> str:
            wall.seconds += 1
            return store.add(make_sighting(seq, seed=seq), Source.RANDOM, label).id

        labelled = add(1, said("fear"))
        add(2)
        third, fourth = add(3), add(4)
        assert ids(store) == [labelled, third, fourth]

        others = [add(seq, said("fear")) for seq in (5, 6, 7)]
        assert ids(store) == others


def test_forgetting_somebody_takes_every_sample_of_them(
    store: SampleStore, make_sighting: MakeSighting
) -> None:
    ben = Identity(state="known", person="Ben", distance=0.3)
    store.add(make_sighting(1), Source.RANDOM)  # taken for Ada
    store.add(make_sighting(2, identity=ben), Source.USER, said("", "ada"))
    others = [
        store.add(make_sighting(3), Source.USER, said("", "", "ADA")),
        store.add(make_sighting(4, identity=ben), Source.USER, said("", "", "Ada", "Cleo")),
    ]

    n_deleted, is_scrubbed = store.forget(["Ada", "Countess"])

    assert (n_deleted, is_scrubbed) == (2, True)
    left = store.samples()
    assert [sample.id for sample in left] == [other.id for other in others]
    assert [sample.label.not_people for sample in left] == [(), ("Cleo",)]
    assert [sample.identity.person for sample in left] == ["", "Ben"]


def test_forgetting_leaves_no_byte_of_a_sample_in_the_files(
    store: SampleStore, make_sighting: MakeSighting, tmp_path: Path
) -> None:
    sample = store.add(make_sighting(), Source.USER, said("", "Ada"))
    sealed = store._file.rows("SELECT sealed_face FROM samples")[0][0]

    store.forget(["Ada"])

    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert sealed[1000:1032] not in content
    assert sample.id.encode() not in content and b"Ada" not in content


def test_a_sample_that_was_taken_for_somebody_but_is_somebody_else_stays(
    store: SampleStore, make_sighting: MakeSighting
) -> None:
    kept = store.add(make_sighting(), Source.USER, said("", "Ben"))

    assert store.forget(["Ada"])[0] == 0
    assert ids(store) == [kept.id]
    assert store.samples()[0].identity == Identity()


def test_removing_takes_one(store: SampleStore, make_sighting: MakeSighting) -> None:
    one, two = (store.add(make_sighting(seq), Source.USER) for seq in (1, 2))

    store.remove(one.id)

    assert ids(store) == [two.id]
    with pytest.raises(SampleError, match="is gone"):
        store.face(one.id)


def test_embeddings_are_of_one_space_and_the_newest(
    store: SampleStore, make_sighting: MakeSighting, wall: Wall
) -> None:
    for seq in range(3):
        wall.seconds += 1
        store.add(make_sighting(seq, seed=seq, space="other" if seq == 1 else "dlib"), Source.USER)

    expected = [make_sighting(seed=seed).embedding for seed in (2, 0)]
    np.testing.assert_array_equal(
        store.embeddings("dlib", 9), np.stack([e for e in expected if e is not None])
    )
    assert len(store.embeddings("dlib", 1)) == 1
    assert len(store.embeddings("none", 9)) == 0


def test_a_commit_waits_for_the_disk(store: SampleStore) -> None:
    assert store._file.rows("PRAGMA synchronous") == [(2,)]  # FULL: fsync of the log at every commit
    assert store._file.rows("PRAGMA journal_mode") == [("wal",)]


def test_a_store_of_a_newer_visaged_is_left_alone(tmp_path: Path) -> None:
    SampleStore(tmp_path).close()
    db = sqlite3.connect(tmp_path / "samples.db")
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()

    with pytest.raises(SampleError, match=r"samples\.db was written by a newer visaged"):
        SampleStore(tmp_path)


def test_a_store_without_its_key_is_not_given_a_new_one(tmp_path: Path) -> None:
    SampleStore(tmp_path).close()
    (tmp_path / "samples.key").unlink()

    with pytest.raises(StoreError, match="restore it"):
        SampleStore(tmp_path)


def test_a_damaged_store_is_one_clear_sentence(tmp_path: Path) -> None:
    SampleStore(tmp_path).close()
    (tmp_path / "samples.db").write_bytes(b"this is no database at all " * 100)

    with pytest.raises(SampleError, match=r"the samples .*samples\.db is damaged"):
        SampleStore(tmp_path)
