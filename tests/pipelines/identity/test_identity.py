"""Names of tracks. People are directions; `look(person, r)` is at distance r from the person's template."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.identity.identity import Identifier, IdentityConfig
from visaged.pipelines.identity.matcher import Matcher
from visaged.pipelines.identity.person import Templates
from visaged.pipelines.identity.template_index import F32, ApproximateIndex, ExactIndex
from visaged.pipelines.message import Identity

SPACE = "dlib-1"
ANNA, BEN, CLEO = 0, 1, 2
SECOND_NS = 10**9


def look(person: int, distance: float = 0.0, towards: int = 100) -> F32:
    """An embedding `distance` from the person's template, any two of which are 0.99 apart."""
    embedding = np.zeros(128, np.float32)
    embedding[person] = 0.7
    embedding[towards] += distance
    return embedding


class Clock:
    """Wall clock and frame clock set by hand."""

    def __init__(self) -> None:
        self.seconds = 1e9

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gallery(tmp_path: Path, clock: Clock) -> Iterator[Gallery]:
    with Gallery(tmp_path, now=clock) as gallery:
        gallery.enrol("Anna", look(ANNA)[None], space=SPACE)
        gallery.enrol("Ben", look(BEN)[None], space=SPACE)
        yield gallery


@pytest.fixture
def identifier(gallery: Gallery) -> Identifier:
    return Identifier(gallery, SPACE, IdentityConfig())


def see(
    identifier: Identifier, track: int, embedding: F32, quality: float = 1.0, at_s: float = 0
) -> Identity:
    ns = int(at_s * SECOND_NS)
    (identity,) = identifier.identify("door", [track], embedding[None], np.array([quality], np.float32), ns)
    return identity


@pytest.mark.parametrize(
    ("distance", "state", "person"),
    [
        (0.1, "known", "Anna"),
        (0.49, "known", "Anna"),
        (0.55, "uncertain", "Anna"),
        (0.7, "unknown", "unknown-1"),
    ],
)
def test_the_distance_decides_the_state(
    identifier: Identifier, distance: float, state: str, person: str
) -> None:
    identity = see(identifier, 1, look(ANNA, distance))

    assert (identity.state, identity.person) == (state, person)
    assert identity.distance == pytest.approx(distance, abs=1e-3)


def test_a_face_between_two_people_is_uncertain_however_near(gallery: Gallery) -> None:
    gallery.enrol("Twin", look(ANNA, 0.1)[None], space=SPACE)
    identifier = Identifier(gallery, SPACE, IdentityConfig())

    identity = see(identifier, 1, look(ANNA, 0.04))

    assert (identity.state, identity.person) == ("uncertain", "Anna")
    assert identity.margin == pytest.approx(0.02, abs=1e-3)


def test_the_nearest_of_several_templates_counts(gallery: Gallery) -> None:
    gallery.enrol("Anna", look(ANNA, 0.9)[None], space=SPACE)
    identifier = Identifier(gallery, SPACE, IdentityConfig())

    assert see(identifier, 1, look(ANNA, 0.8)).person == "Anna"


def test_a_negative_nearer_than_the_template_vetoes_the_name(gallery: Gallery) -> None:
    gallery.reject("Anna", look(ANNA, 0.35)[None], space=SPACE)
    identifier = Identifier(gallery, SPACE, IdentityConfig())

    assert see(identifier, 1, look(ANNA, 0.3)).state == "unknown"
    assert see(identifier, 2, look(ANNA, 0.1)).person == "Anna"


def test_a_vetoed_name_leaves_room_for_the_next_person(gallery: Gallery) -> None:
    gallery.enrol("Sister", look(ANNA, 0.6)[None], space=SPACE)
    gallery.reject("Anna", look(ANNA, 0.28)[None], space=SPACE)
    identifier = Identifier(gallery, SPACE, IdentityConfig())

    assert see(identifier, 1, look(ANNA, 0.28)).person == "Sister"


def test_an_empty_gallery_knows_nobody(tmp_path: Path) -> None:
    with Gallery(tmp_path / "empty") as gallery:
        identity = see(Identifier(gallery, SPACE, IdentityConfig()), 1, look(ANNA))

    assert identity == Identity(state="unknown", person="unknown-1")


def test_people_of_another_space_are_strangers_here(gallery: Gallery) -> None:
    assert see(Identifier(gallery, "dlib-2", IdentityConfig()), 1, look(ANNA)).state == "unknown"


def test_one_bad_frame_does_not_change_the_name(identifier: Identifier) -> None:
    for _ in range(3):
        see(identifier, 1, look(ANNA, 0.1))

    assert see(identifier, 1, look(BEN)).person == "Anna"
    assert see(identifier, 1, look(ANNA, 0.1)).person == "Anna"


def test_a_track_that_really_became_somebody_else_follows_at_the_second_look(identifier: Identifier) -> None:
    for _ in range(5):
        see(identifier, 1, look(ANNA))
    see(identifier, 1, look(BEN))

    assert see(identifier, 1, look(BEN)).person == "Ben"


def test_a_name_survives_drifting_a_little_over_the_threshold(identifier: Identifier) -> None:
    config = IdentityConfig(evidence=1)
    fresh = Identifier(identifier._gallery, SPACE, config)
    assert see(fresh, 1, look(ANNA, 0.52)).state == "uncertain"
    assert see(fresh, 2, look(ANNA, 0.45)).state == "known"

    assert see(fresh, 2, look(ANNA, 0.52)).state == "known"
    assert see(fresh, 2, look(ANNA, 0.57)).state == "uncertain"


def test_a_poor_look_counts_only_while_there_is_no_better(identifier: Identifier) -> None:
    assert see(identifier, 1, look(ANNA, 0.58), quality=0.05).state == "uncertain"
    assert see(identifier, 1, look(ANNA, 0.1), quality=0.9).distance == pytest.approx(0.1, abs=1e-3)


def test_a_stranger_keeps_the_number_over_tracks_cameras_and_restarts(
    gallery: Gallery, identifier: Identifier
) -> None:
    assert see(identifier, 1, look(CLEO)).person == "unknown-1"
    assert see(identifier, 2, look(CLEO, 0.2)).person == "unknown-1"
    assert see(identifier, 3, look(50)).person == "unknown-2"

    restarted = Identifier(gallery, SPACE, IdentityConfig())
    assert see(restarted, 1, look(CLEO, 0.1)).person == "unknown-1"


def test_a_track_has_one_stranger_number_even_when_it_drifts(identifier: Identifier) -> None:
    names = {see(identifier, 1, look(CLEO, 0.05 * i)).person for i in range(13)}

    assert names == {"unknown-1"}


def test_a_blurred_stranger_waits_for_a_number(identifier: Identifier) -> None:
    assert see(identifier, 1, look(CLEO), quality=0.1).person == ""
    assert see(identifier, 1, look(CLEO), quality=0.9).person == "unknown-1"


def test_a_number_given_to_somebody_known_is_taken_back(gallery: Gallery, identifier: Identifier) -> None:
    assert see(identifier, 1, look(ANNA, 0.64), quality=0.35).person == "unknown-1"
    assert see(identifier, 1, look(ANNA), quality=0.9).person == "Anna"

    assert [p.name for p in gallery.people()] == ["Anna", "Ben"]


def test_strangers_are_deleted_after_their_time(
    gallery: Gallery, identifier: Identifier, clock: Clock
) -> None:
    see(identifier, 1, look(CLEO))
    clock.seconds += 86_401
    see(identifier, 2, look(ANNA), at_s=86_401)
    identifier.refresh()

    assert see(identifier, 3, look(CLEO), at_s=86_402).person == "unknown-2"


def test_a_change_by_the_command_line_is_taken_over(
    gallery: Gallery, identifier: Identifier, tmp_path: Path
) -> None:
    assert see(identifier, 1, look(CLEO)).person == "unknown-1"
    with Gallery(tmp_path) as command_line:
        command_line.name_stranger("unknown-1", "Cleo")
        command_line.forget("Anna")

    assert identifier.refresh()
    assert not identifier.refresh()
    assert see(identifier, 1, look(CLEO)).person == "Cleo"
    assert see(identifier, 2, look(ANNA)).person == "unknown-2"


def test_enrolling_a_live_track_names_it_at_once(identifier: Identifier) -> None:
    see(identifier, 1, look(CLEO))
    assert identifier.enrol("Cleo", look(CLEO)[None], source="track door:1") == 1

    assert see(identifier, 1, look(CLEO)).person == "Cleo"


def test_after_a_swap_each_id_keeps_its_own_evidence(identifier: Identifier) -> None:
    for _ in range(3):
        see(identifier, 1, look(ANNA))
        see(identifier, 2, look(BEN))
    identifier.rename("door", {1: 2, 2: 1})

    assert see(identifier, 1, look(ANNA)).person == "Anna"
    assert see(identifier, 2, look(BEN)).person == "Ben"


def test_a_temporary_id_leaves_no_stranger_behind(gallery: Gallery, identifier: Identifier) -> None:
    see(identifier, 1, look(CLEO))
    assert see(identifier, 7, look(CLEO, 0.5)).person == "unknown-2"
    identifier.rename("door", {7: 1})

    assert see(identifier, 1, look(CLEO)).person == "unknown-1"
    assert [p.name for p in gallery.people() if p.is_stranger] == ["unknown-1"]


def test_a_number_that_was_taken_back_is_no_longer_that_of_another_track(identifier: Identifier) -> None:
    see(identifier, 1, look(CLEO))
    see(identifier, 7, look(CLEO, 0.5))
    assert see(identifier, 8, look(CLEO, 0.5)).person == "unknown-2"
    identifier.rename("door", {7: 1})

    assert see(identifier, 8, look(CLEO, 0.5)).person == "unknown-3"


def test_a_forgotten_track_starts_afresh(identifier: Identifier) -> None:
    for _ in range(5):
        see(identifier, 1, look(ANNA))
    identifier.forget_track("door", 1)

    assert see(identifier, 1, look(BEN)).person == "Ben"


def test_the_same_track_id_on_two_cameras_is_two_tracks(identifier: Identifier) -> None:
    one = np.ones(1, np.float32)
    for _ in range(5):
        identifier.identify("door", [1], look(ANNA)[None], one, 0)

    assert identifier.identify("yard", [1], look(BEN)[None], one, 0)[0].person == "Ben"


def test_no_faces_are_no_identities(identifier: Identifier) -> None:
    assert identifier.identify("door", [], np.zeros((0, 128), np.float32), np.zeros(0, np.float32), 0) == []


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 12))
def test_the_exact_index_agrees_with_a_plain_loop(seed: int, rows: int, people: int) -> None:
    draw = np.random.default_rng(seed)
    templates = draw.normal(0, 0.1, (rows, 16)).astype(np.float32)
    owners = np.sort(draw.integers(0, people, rows))
    query = draw.normal(0, 0.1, 16).astype(np.float32)

    distances, found = ExactIndex(templates, owners).nearest(query[None], 3)

    plain = {
        int(p): min(np.linalg.norm(templates[owners == p] - query, axis=1)) for p in set(owners.tolist())
    }
    expected = sorted(plain.values())[:3]
    np.testing.assert_allclose(distances[0, : len(expected)], expected, atol=1e-4)
    assert found[0, 0] == min(plain, key=lambda p: plain[p]) or expected[0] == pytest.approx(expected[1])
    assert (found[0, len(expected) :] == -1).all()
    assert np.isinf(distances[0, len(expected) :]).all()


def test_the_approximate_index_finds_what_the_exact_one_finds() -> None:
    draw = np.random.default_rng(3)
    people = draw.normal(0, 0.12, (1000, 128)).astype(np.float32)
    owners = np.repeat(np.arange(1000), 3)
    templates = (people[owners] + draw.normal(0, 0.02, (3000, 128))).astype(np.float32)
    queries = (people[:200] + draw.normal(0, 0.02, (200, 128))).astype(np.float32)

    exact_d, exact = ExactIndex(templates, owners).nearest(queries, 2)
    approximate_d, approximate = ApproximateIndex(templates, owners).nearest(queries, 2)

    assert (approximate[:, 0] == exact[:, 0]).mean() >= 0.99
    np.testing.assert_allclose(np.median(approximate_d[:, 1] - exact_d[:, 1]), 0, atol=1e-4)


def test_a_large_gallery_matches_through_the_approximate_index() -> None:
    draw = np.random.default_rng(4)
    people = draw.normal(0, 0.12, (600, 128)).astype(np.float32)
    templates = Templates(people, np.arange(600), tuple(f"person {i}" for i in range(600)))
    nobody = Templates(np.zeros((0, 0), np.float32), np.zeros(0, np.intp), ())
    matcher = Matcher(templates, nobody, IdentityConfig(exact_up_to=100))

    assert [i.person for i in matcher.match(people[:20])] == [f"person {i}" for i in range(20)]
