"""Scenes a person can follow: who should have which id is said in the name of the test.

Faces are 60 px squares at 25 frames a second; an embedding is a direction of length 1, one per person.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from visaged.pipelines.frame import Detection, Track
from visaged.pipelines.tracker import Tracker, TrackerConfig

FRAME_NS = 40_000_000
WHO = np.eye(128, dtype=np.float32)  # any two people are 1.41 apart
ANNA, BEN, CLEO = 0, 1, 2


def face(x: float, y: float = 100.0, score: float = 1.0, side: float = 60.0) -> Detection:
    """A face whose left top corner is at (x, y)."""
    box = np.array([x, y, x + side, y + side], dtype=np.float32)
    marks = box[:2] + side * np.array(
        [[0.8, 0.4], [0.6, 0.4], [0.2, 0.4], [0.4, 0.4], [0.5, 0.7]], dtype=np.float32
    )
    return Detection(box, score, marks.astype(np.float32))


class Scene:
    """A tracker and a film: shows it one frame after the other."""

    def __init__(self, config: TrackerConfig | None = None) -> None:
        self.tracker = Tracker(config or TrackerConfig())
        self.seq = 0
        self.now_ns = 0
        self.renamed: dict[int, int] = {}

    def show(self, people: dict[int, Detection], *, pause_s: float = 0.0) -> dict[int, int]:
        """Show one frame with `people`, give the embeddings it wants; return person -> track id."""
        self.seq += 1
        self.now_ns += FRAME_NS + int(pause_s * 1e9)
        self.tracker.predict(self.seq, self.now_ns)
        self.tracker.update(list(people.values()))
        owner = {t.id: p for t in self.tracker.tracks() for p in people if same_place(t, people[p])}
        wanted = {t: WHO[p] for t, p in owner.items() if self.tracker.wants_embedding(t)}
        self.renamed = self.tracker.remember(wanted)
        return {p: t.id for t in self.tracker.tracks() for p in people if same_place(t, people[p])}


def same_place(track: Track, detection: Detection) -> bool:
    return track.is_visible and float(np.abs(track.box - detection.box).max()) < 20


def test_people_who_pass_each_other_keep_their_ids() -> None:
    scene = Scene()
    for i in range(60):  # Anna walks right, Ben left, 6 px a frame; Ben is hidden behind her in the middle
        anna, ben = 100 + 6 * i, 460 - 6 * i
        people = {ANNA: face(anna)} | ({} if abs(anna - ben) < 50 else {BEN: face(ben)})
        ids = scene.show(people)

    assert ids == {ANNA: 1, BEN: 2}


def test_two_who_meet_and_turn_back_are_told_apart_by_their_looks() -> None:
    scene = Scene()
    there = [150.0 + 8 * i for i in range(15)]
    walk = there + [there[-1]] * 6 + there[::-1]  # motion alone would say that they passed each other
    for x in walk:
        people = {ANNA: face(x)} | ({BEN: face(540 - x)} if x < 230 else {})
        ids = scene.show(people)

    assert ids == {ANNA: 1, BEN: 2}


def test_a_hand_over_the_face_for_half_a_second_changes_nothing() -> None:
    scene = Scene()
    for i in range(40):
        hidden = 15 <= i < 27
        ids = scene.show({} if hidden else {ANNA: face(100 + 2 * i)})
        if hidden:
            (track,) = scene.tracker.tracks()
            assert not track.is_visible
            assert track.box[0] == pytest.approx(100 + 2 * i, abs=6)

    assert ids == {ANNA: 1}


def test_who_leaves_and_returns_within_the_time_has_the_old_id_from_the_first_frame() -> None:
    scene = Scene()
    for i in range(20):
        scene.show({ANNA: face(100 + i), BEN: face(500)})
    for _ in range(100):
        scene.show({BEN: face(500)})

    assert scene.show({ANNA: face(900), BEN: face(500)}) == {ANNA: 1, BEN: 2}
    assert scene.renamed == {3: 1}


def test_who_returns_too_late_is_a_new_track() -> None:
    scene = Scene(TrackerConfig(return_within_s=2.0))
    scene.show({ANNA: face(100)})
    for _ in range(100):
        scene.show({})

    assert scene.show({ANNA: face(100)}) == {ANNA: 2}


def test_somebody_else_in_the_same_place_is_a_new_track() -> None:
    scene = Scene()
    for _ in range(10):
        scene.show({ANNA: face(100)})
    for _ in range(40):
        scene.show({})

    assert scene.show({BEN: face(100)}) == {BEN: 2}


def test_a_camera_that_pauses_for_five_seconds_keeps_the_ids() -> None:
    scene = Scene()
    for i in range(20):
        scene.show({ANNA: face(100 + 4 * i), BEN: face(500)})

    assert scene.show({ANNA: face(180), BEN: face(500)}, pause_s=5.0) == {ANNA: 1, BEN: 2}


def test_people_who_swapped_places_during_a_pause_are_recognised() -> None:
    scene = Scene()
    for _ in range(20):
        scene.show({ANNA: face(100), BEN: face(500)})

    assert scene.show({BEN: face(100), ANNA: face(500)}, pause_s=5.0) == {ANNA: 1, BEN: 2}
    assert scene.renamed == {1: 2, 2: 1}


def test_somebody_else_after_a_pause_gets_another_id() -> None:
    scene = Scene()
    for _ in range(20):
        scene.show({ANNA: face(100)})
    scene.show({BEN: face(105)}, pause_s=5.0)
    for _ in range(5):
        ids = scene.show({BEN: face(105)})

    assert ids == {BEN: 2}


def test_late_detections_move_the_track_to_where_the_face_is_now() -> None:
    tracker = Tracker(TrackerConfig())
    for seq in range(1, 61):  # scanned every 5th frame, the answer comes 3 frames later; 5 px a frame
        tracker.predict(seq, seq * FRAME_NS)
        if seq % 5 == 4 and seq > 3:
            tracker.update([face(100 + 5 * (seq - 3))], seq=seq - 3)

    (track,) = tracker.tracks()
    assert track.id == 1
    assert track.box[0] == pytest.approx(100 + 5 * 60, abs=6)
    assert track.landmarks[:, 0].mean() == pytest.approx(track.box[0] + 30, abs=3)


def test_redetection_between_scans_is_not_undone_by_a_late_scan() -> None:
    tracker = Tracker(TrackerConfig())
    for seq in range(1, 31):
        tracker.predict(seq, seq * FRAME_NS)
        if seq % 5 == 4:
            tracker.update([face(100 + 8 * (seq - 3))], seq=seq - 3)
        tracker.update({t.id: face(100 + 8 * seq) for t in tracker.tracks()})

    (track,) = tracker.tracks()
    assert track.box[0] == pytest.approx(340, abs=3)


def test_a_face_found_once_is_looked_for_farther_away_until_its_speed_is_known() -> None:
    tracker = Tracker(TrackerConfig())
    for seq in range(1, 6):
        tracker.predict(seq, seq * FRAME_NS)
    tracker.update([face(100)], seq=1)
    assert tracker.reach(1) > 0.5

    tracker.update({1: face(148)})
    tracker.predict(6, 6 * FRAME_NS)
    assert tracker.reach(1) == 0
    assert tracker.tracks()[0].box[0] == pytest.approx(160, abs=5)


def test_a_late_scan_that_missed_a_face_seen_since_does_not_hide_it() -> None:
    tracker = Tracker(TrackerConfig())
    tracker.predict(1, FRAME_NS)
    tracker.update([face(100)])
    for seq in (2, 3):
        tracker.predict(seq, seq * FRAME_NS)
    tracker.update({1: face(100)})
    tracker.update([], seq=2)

    assert tracker.tracks()[0].is_visible


def test_a_scan_older_than_the_memory_is_ignored() -> None:
    tracker = Tracker(TrackerConfig())
    for seq in range(1, 300):
        tracker.predict(seq, seq * FRAME_NS)
    tracker.update([face(100)], seq=3)

    assert tracker.tracks() == []


def test_landmarks_of_this_frame_are_given_back_as_detected() -> None:
    tracker = Tracker(TrackerConfig())
    for seq in range(1, 10):
        tracker.predict(seq, seq * FRAME_NS)
        seen = face(100 + 7 * seq)
        tracker.update([seen])

    np.testing.assert_allclose(tracker.tracks()[0].landmarks, seen.landmarks, atol=0.01)


def test_one_face_detected_twice_is_one_track() -> None:
    tracker = Tracker(TrackerConfig())
    tracker.predict(1, FRAME_NS)
    tracker.update([face(100), face(104, 102, score=0.8), face(110, 110, score=0.5, side=30)])

    assert len(tracker.tracks()) == 1


def test_two_redetections_of_one_face_leave_the_hidden_track_hidden() -> None:
    tracker = Tracker(TrackerConfig())
    for seq in range(1, 10):
        tracker.predict(seq, seq * FRAME_NS)
        tracker.update([face(100), face(170)])
    tracker.predict(10, 10 * FRAME_NS)
    tracker.update({1: face(168), 2: face(169)})  # both searches found the right-hand face

    assert [(t.id, t.is_visible) for t in tracker.tracks()] == [(1, False), (2, True)]


def test_a_weak_detection_seen_once_is_never_published() -> None:
    tracker = Tracker(TrackerConfig(sure_score=0.5))
    tracker.predict(1, FRAME_NS)
    tracker.update([face(100, score=0.1)])
    assert tracker.tracks() == []

    for seq in (2, 3):
        tracker.predict(seq, seq * FRAME_NS)
        tracker.update([])
    assert tracker.predict(4, 4 * FRAME_NS) == []


def test_a_weak_detection_seen_again_is_published() -> None:
    tracker = Tracker(TrackerConfig(sure_score=0.5))
    for seq in (1, 2):
        tracker.predict(seq, seq * FRAME_NS)
        tracker.update([face(100, score=0.4)])

    assert [t.id for t in tracker.tracks()] == [1]


def test_what_keeps_scoring_around_zero_is_no_face() -> None:
    tracker = Tracker(TrackerConfig())
    for seq in range(1, 40):
        tracker.predict(seq, seq * FRAME_NS)
        tracker.update([face(100, score=0.13 if seq % 5 == 1 else 0.02)])

    assert tracker.tracks() == []


def test_a_face_that_walks_out_of_the_frame_ends_at_its_border() -> None:
    tracker = Tracker(TrackerConfig(occlusion_s=10))
    for seq in range(1, 20):
        tracker.predict(seq, seq * FRAME_NS, (300, 300))
        tracker.update([face(40 + 10 * seq)] if seq < 12 else [])
    for seq in range(20, 40):
        tracker.predict(seq, seq * FRAME_NS, (300, 300))

    assert tracker.tracks() == []


def test_a_hidden_face_is_lost_after_the_configured_time() -> None:
    tracker = Tracker(TrackerConfig(occlusion_s=0.5))
    for seq in range(1, 10):
        tracker.predict(seq, seq * FRAME_NS)
        tracker.update([face(100)])
    for seq in range(10, 30):
        tracker.predict(seq, seq * FRAME_NS)
        tracker.update([])

    assert tracker.tracks() == []


def test_a_numbering_that_starts_again_is_survived() -> None:
    tracker = Tracker(TrackerConfig())
    for seq in (10, 11, 1, 2):
        tracker.predict(seq, (20 + seq) * FRAME_NS)
        tracker.update([face(100)])

    assert [t.id for t in tracker.tracks()] == [1]


def test_updating_before_the_first_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="predict"):
        Tracker(TrackerConfig()).update([])


person = st.tuples(st.integers(0, 5), st.integers(0, 1200), st.integers(0, 600), st.floats(0, 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(person, max_size=5), st.integers(0, 4), st.booleans()), max_size=25))
def test_ids_are_unique_in_every_frame_and_never_reused(
    film: list[tuple[list[tuple[int, int, int, float]], int, bool]],
) -> None:
    scene = Scene()
    tracker, ever, dead = scene.tracker, set[int](), set[int]()
    for number, (people, late, embed) in enumerate(film, start=1):
        tracker.predict(number, number * FRAME_NS)
        tracker.update([face(x, y, s) for _, x, y, s in people], seq=max(1, number - late))
        before = {t.id for t in tracker.tracks()}
        looks = {t: WHO[people[i % len(people)][0]] for i, t in enumerate(before) if embed and people}
        renamed = tracker.remember(looks)
        ids = [t.id for t in tracker.tracks()]
        fresh = set(ids) - ever

        assert len(ids) == len(set(ids))
        assert renamed.keys() <= before
        assert len(set(renamed.values())) == len(renamed)
        assert not fresh & dead
        dead |= {old for old in renamed if old not in ids}
        ever |= before | set(ids)
