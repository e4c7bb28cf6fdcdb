"""A release learned again without the erased: what is left, from where, and that nothing of them is in it."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from visaged.pipelines.assembly import StageConfigs
from visaged.pipelines.errors import ReleaseError
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.loop.rebuild import Left, Remains, relearn, remains_of
from visaged.pipelines.loop.report import Report, last_report, save_report
from visaged.pipelines.loop.sample import Label, SamplesConfig, Source
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.loop.sighting import Sighting
from visaged.pipelines.message import Identity
from visaged.pipelines.privacy.erasure import forget

from tests.pipelines.privacy.test_erasure import keep

MakeSighting = Callable[..., Sighting]
PEOPLE = ("Ada", "Eve", "Bob")
SAMPLES = SamplesConfig()


@pytest.fixture
def ids(tmp_path: Path, make_sighting: MakeSighting) -> dict[str, str]:
    """A sample of each of three people, in `tmp_path`; name -> id."""
    with SampleStore(tmp_path) as store:
        found = {}
        for seq, name in enumerate(PEOPLE):
            seen = make_sighting(seq, identity=Identity(state="known", person=name))
            found[name] = store.add(seen, Source.USER, Label(emotion="fear", is_face=True)).id
    return found


def forget_in(state: Path, name: str) -> None:
    with Gallery(state) as gallery, SampleStore(state) as store:
        forget(name, gallery, store, state)


def remains_in(state: Path, release: str) -> Remains:
    with SampleStore(state) as store:
        return remains_of(release, state, store)


def test_what_was_learned_since_the_clean_ancestor_is_erased_gone_or_left(
    tmp_path: Path, ids: dict[str, str]
) -> None:
    clean = keep(tmp_path, 1, samples=(ids["Bob"],))
    marked = keep(tmp_path, 2, parent=clean, samples=(ids["Ada"], "0ff"))
    child = keep(tmp_path, 3, parent=marked, samples=(ids["Eve"],))
    forget_in(tmp_path, "Ada")

    remains = remains_in(tmp_path, child[:5])

    assert (remains.release, remains.parent) == (child, clean)
    assert remains.learned == {ids["Ada"], ids["Eve"], "0ff"}
    assert remains.erased == {ids["Ada"]}
    assert remains.left == {ids["Eve"]}
    assert str(remains).endswith(
        "3 samples after " + clean + ": 1 are erased, 1 went with their time, 1 are left"
    )
    assert remains.configs(StageConfigs()).ensemble.release == clean


def test_a_release_without_a_mark_is_not_rebuilt(tmp_path: Path, ids: dict[str, str]) -> None:
    clean = keep(tmp_path, 1, samples=(ids["Bob"],))
    forget_in(tmp_path, "Ada")

    with pytest.raises(ReleaseError, match=f"{clean} learned from nothing that is erased"):
        remains_in(tmp_path, clean)


def test_only_what_is_left_is_to_be_seen_and_what_sat_out_is_no_news(
    tmp_path: Path, ids: dict[str, str]
) -> None:
    marked = keep(tmp_path, 1, samples=(ids["Ada"], ids["Eve"]))
    forget_in(tmp_path, "Ada")
    before = Report(run="a", parent="p", outcome="", finished_at=1, seconds=1, labels={ids["Bob"]: "fear"})
    save_report(before, tmp_path / "learning")
    seen: list[str] = []

    def learn(left: Left) -> Report:
        seen.extend(sample.id for sample in left.samples())
        found = msgspec.structs.replace(before, run="b", finished_at=2, labels={ids["Eve"]: "fear"})
        save_report(found, tmp_path / "learning")
        return found

    report = relearn(remains_in(tmp_path, marked), tmp_path, SAMPLES, learn)

    assert seen == [ids["Eve"]]
    assert report == last_report(tmp_path / "learning")
    assert report is not None and report.labels == {ids["Bob"]: "fear", ids["Eve"]: "fear"}
    assert relearn(remains_in(tmp_path, marked), tmp_path, SAMPLES, lambda left: None) is None
