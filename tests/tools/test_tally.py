"""Adding up results as a subscriber sees them."""

import pytest
from visaged.pipelines.message import EMOTIONS, Emotion, Face, FaceFrame, Identity
from visaged.tools.tally import Tally, main_face, percentiles

MS = 1_000_000


def probabilities_of(label: str) -> list[float]:
    return [0.93 if name == label else 0.01 for name in EMOTIONS]


def face(track: int = 1, label: str = "", side: float = 100, person: str = "", visible: bool = True) -> Face:
    emotion = Emotion(label=label, probability=0.93, probabilities=probabilities_of(label)) if label else None
    identity = Identity(state="known", person=person) if person else Identity()
    return Face(
        track=track,
        box=(0, 0, side, side),
        is_visible=visible,
        emotion=emotion or Emotion(),
        identity=identity,
    )


def result(
    seq: int,
    frame_seq: int,
    *faces: Face,
    drops: dict[str, int] | None = None,
    run: str = "a",
    at_s: float = 0.0,
) -> FaceFrame:
    captured_ns = 5_000 * MS + round(at_s * 1000) * MS
    return FaceFrame(
        camera="door", run=run, seq=seq, frame_seq=frame_seq, captured_ns=captured_ns, captured_at=0.0,
        published_ns=captured_ns + (20 + seq) * MS, width=640, height=360, release="", embedding_space="",
        embedding_dim=0, faces=list(faces), drops=drops or {}, stages_ms={"detect": float(seq)},
    )  # fmt: skip


def test_drops_that_explain_every_hole_balance_the_ledger() -> None:
    tally = Tally("door")

    tally.add(result(1, 2, drops={"stale": 1}))
    tally.add(result(2, 3))
    tally.add(result(3, 6, drops={"stale": 1, "ring_overrun": 1}))

    assert tally.in_flight == 0
    assert tally.ledger_sentence() == (
        "6 captured = 3 published + 3 dropped (1 ring_overrun, 2 stale), ledger balanced"
    )


def test_a_hole_nobody_explains_is_not_balanced() -> None:
    tally = Tally("door")

    tally.add(result(1, 1))
    tally.add(result(2, 4))

    assert tally.in_flight == 2
    assert "balanced" not in tally.ledger_sentence()


def test_results_this_subscriber_missed_count_as_published() -> None:
    tally = Tally("door")

    tally.add(result(1, 1))
    tally.add(result(4, 4))

    assert (tally.lost, tally.in_flight) == (2, 0)


def test_a_new_run_of_the_daemon_is_not_a_loss() -> None:
    tally = Tally("door")

    tally.add(result(90, 90, run="a"))
    tally.add(result(1, 91, run="b"))

    assert tally.lost == 89  # those before the first one this subscriber saw


def test_what_was_before_the_first_result_can_be_left_out() -> None:
    tally = Tally("door", is_from_start=False)

    tally.add(result(50, 60, drops={"stale": 3}))
    tally.add(result(51, 62, drops={"stale": 1}))

    assert tally.ledger_sentence() == "3 captured = 2 published + 1 dropped (1 stale), ledger balanced"


def test_emotions_are_read_second_by_second_from_the_largest_visible_face() -> None:
    tally = Tally("door")

    for i in range(40):
        label = "sadness" if i < 20 else "happiness"
        small = face(2, "anger", side=20)
        hidden = face(3, "fear", side=500, visible=False)
        tally.add(result(i + 1, i + 1, small, face(1, label), hidden, at_s=i / 10))

    assert tally.mood_sentence() == "sadness 0-1 s, happiness 2-3 s"
    second, label, probability = tally.mood_by_second()[0]
    assert (second, label) == (0, "sadness")
    assert probability == pytest.approx(0.93)


def test_people_tracks_and_latency_are_counted() -> None:
    tally = Tally("door")

    tally.add(result(1, 1, face(1, person="Ann"), face(2)))
    tally.add(result(2, 2, face(1, person="Ann")))

    assert (tally.faces, tally.tracks, dict(tally.people)) == (3, {1, 2}, {"Ann": 2})
    assert percentiles(tally.latencies_ms)["p50"] == pytest.approx(21.5)
    assert list(tally.stages_ms["detect"]) == [1.0, 2.0]


def test_nobody_there_is_no_main_face_and_no_samples_are_zeros() -> None:
    assert main_face([face(1)]) is None
    assert percentiles([]) == {"p50": 0.0, "p95": 0.0, "p99": 0.0}
