"""The faces of the last minutes: how many, how old, and what is found."""

import re
from collections.abc import Callable

import pytest
from visaged.pipelines.errors import SampleError
from visaged.pipelines.loop.recent_faces import RecentFaces
from visaged.pipelines.loop.sample import SamplesConfig
from visaged.pipelines.loop.sighting import Sighting
from visaged.pipelines.message import Identity

MakeSighting = Callable[..., Sighting]
FACE_MB = (200 * 200 * 3 + 128 * 4) / 1e6


def test_a_result_is_found_by_its_frame_or_by_that_of_its_analysis(make_sighting: MakeSighting) -> None:
    recent = RecentFaces(SamplesConfig())
    for seq in (10, 20, 30):
        recent.add(make_sighting(seq))
        recent.add(make_sighting(seq + 1, track=4))

    assert recent.find("door", 3, None, 0).seq == 30
    assert recent.find("door", 3, 29, 0).seq == 20
    assert recent.find("door", 3, 20, 0).seq == 20
    assert recent.find("door", 4, 29, 0).seq == 21


def test_two_tracks_that_swapped_their_ids_are_found_by_the_ids_of_each_result(
    make_sighting: MakeSighting,
) -> None:
    recent = RecentFaces(SamplesConfig())
    recent.add(make_sighting(10))
    recent.add(make_sighting(11, track=4))
    recent.rename("door", {3: 4, 4: 3}, 20)

    assert [recent.find("door", 3, seq, 0).seq for seq in (10, 19, 20, None)] == [10, 10, 11, 11]
    assert [recent.find("door", 4, seq, 0).seq for seq in (11, 19, 20, None)] == [11, 11, 10, 10]


def test_a_track_that_got_its_id_late_is_found_from_there_and_by_its_analysis(
    make_sighting: MakeSighting,
) -> None:
    recent = RecentFaces(SamplesConfig())
    recent.add(make_sighting(10))
    recent.rename("door", {3: 9}, 20)

    found = [recent.find("door", 9, seq, 0) for seq in (10, 20)]
    assert [(sighting.track, sighting.seq) for sighting in found] == [(9, 10)] * 2
    with pytest.raises(SampleError, match="at frame 19 is gone from memory, which begins at frame 20"):
        recent.find("door", 9, 19, 0)


def test_each_camera_keeps_so_many(make_sighting: MakeSighting) -> None:
    recent = RecentFaces(SamplesConfig(recent_faces=2))
    recent.add(make_sighting(1, camera="yard"))
    for seq in (10, 20, 30):
        recent.add(make_sighting(seq))

    assert len(recent) == 3
    assert recent.find("yard", 3, None, 0).seq == 1
    with pytest.raises(SampleError, match="at frame 15 is gone from memory, which begins at frame 20"):
        recent.find("door", 3, 15, 0)


def test_all_cameras_share_the_bytes_and_the_oldest_goes(make_sighting: MakeSighting) -> None:
    recent = RecentFaces(SamplesConfig(recent_mb=2.5 * FACE_MB))
    for seq, camera in ((10, "yard"), (20, "door"), (30, "door")):
        recent.add(make_sighting(seq, camera=camera))

    assert len(recent) == 2
    assert recent.n_bytes == pytest.approx(2 * FACE_MB * 1e6)
    with pytest.raises(SampleError, match="no face of track 3 of camera yard in memory"):
        recent.find("yard", 3, None, 0)


def test_what_is_too_old_goes_also_when_nothing_new_comes(make_sighting: MakeSighting) -> None:
    recent = RecentFaces(SamplesConfig(recent_s=5))
    first = make_sighting(10)
    recent.add(first)

    recent.expire(first.captured_ns + 5 * 10**9)
    assert len(recent) == 1
    recent.expire(first.captured_ns + 5 * 10**9 + 1)
    assert (len(recent), recent.n_bytes) == (0, 0)


def test_a_refusal_says_how_far_back_it_reaches(make_sighting: MakeSighting) -> None:
    recent = RecentFaces(SamplesConfig())
    recent.add(make_sighting(10))
    now_ns = make_sighting(10).captured_ns + 42 * 10**9

    for track, seq in ((3, 5), (8, None)):
        with pytest.raises(SampleError) as refusal:
            recent.find("door", track, seq, now_ns)
        assert re.search("faces of door can be flagged for 42 s back", str(refusal.value))


def test_faces_of_a_forgotten_person_go(make_sighting: MakeSighting) -> None:
    recent = RecentFaces(SamplesConfig())
    recent.add(make_sighting(10))
    recent.add(make_sighting(11, identity=Identity(state="unknown", person="unknown-1")))
    recent.add(make_sighting(12, identity=Identity()))

    assert recent.names == {"Ada", "unknown-1"}
    recent.forget({"Ada"})
    assert recent.names == {"unknown-1"}
    assert recent.n_bytes == pytest.approx(2 * FACE_MB * 1e6)


def test_nothing_is_kept_when_switched_off(make_sighting: MakeSighting) -> None:
    recent = RecentFaces(SamplesConfig(recent_faces=0))
    recent.add(make_sighting(10))

    assert (len(recent), recent.n_bytes) == (0, 0)
