"""`visaged release` and `visaged evaluate`: from networks to a release that is measured and served."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner
from visaged.pipelines.assembly import StageConfigs, assemble
from visaged.pipelines.ensemble import EnsembleConfig, blank_chips
from visaged.pipelines.errors import ConfigError, ModelError, ReleaseError
from visaged.pipelines.fuser import CommitteeFusion, DecisionFusion, Fusion, Group
from visaged.pipelines.learning.combiner import How
from visaged.pipelines.releases.promotion import PromotionJournal
from visaged.pipelines.releases.release_store import ReleaseStore
from visaged.tools.cli import build_app
from visaged.tools.release import groups_of

BOTH = "--member", "face-resnet", "--member", "emotion-xception"


@pytest.fixture(scope="module")
def ferplus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright and dark squares, as happy and sad as ten people would find them."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("ferplus")
    for name, n in (("Training", 300), ("PublicTest", 24)):
        pictures = random.integers(0, 120, (n, 48, 48)).astype(np.uint8)
        votes = np.zeros((n, 10), np.uint8)
        pictures[::2, 8:40, 8:40] += np.uint8(120)
        votes[::2, 1] = votes[1::2, 3] = 10
        np.savez(folder / f"{name}.npz", x=pictures, votes=votes)
    return folder


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "visaged.toml"
    path.write_text(f'[paths]\nstate = "{tmp_path / "state"}"\n')
    return path


def run(command: str, *words: str) -> str:
    done = CliRunner().invoke(build_app(command), [command, *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def made(ferplus: Path, toml: Path, *words: str) -> str:
    """Return the id of a release that was just made."""
    output = run("release", "make", str(ferplus), *words, "--config", str(toml))
    found = re.search(r"release ([0-9a-f]{12}): measure", output)
    assert found, output
    return found[1]


@pytest.mark.parametrize(
    ("how", "kind"),
    [("accuracy", DecisionFusion), ("committee", CommitteeFusion)],
)
def test_a_release_is_made_measured_and_served(
    ferplus: Path, toml: Path, tmp_path: Path, cache: Path, how: How, kind: type[Fusion]
) -> None:
    release = made(ferplus, toml, *BOTH, "--fuse", how, "--note", "first try")

    listed = run("release", "list", "--config", str(toml))
    shown = msgspec.json.decode(run("release", "show", release, "--json", "--config", str(toml)))
    report = run("evaluate", release, str(ferplus), "--config", str(toml), "--out", str(tmp_path / "out"))
    configs = StageConfigs(ensemble=EnsembleConfig(release=release[:6]))
    with assemble(configs, state=tmp_path / "state", cache=cache) as stages:
        outputs = stages.ensemble.infer({r: blank_chips(r, 2) for r in stages.ensemble.recipes})
        fused = stages.serving.fuser.fuse(outputs).probabilities

    assert release in listed and "first try" in listed
    assert shown["id"] == release == stages.serving.release.id and isinstance(
        stages.serving.release.fusion, kind
    )
    assert "24 faces of 24 groups" in report and "fused" in report and "diversity" in report
    written = msgspec.json.decode((tmp_path / "out" / "report.json").read_bytes())
    assert written["release"]["id"] == release and np.sum(written["confusion"]) == 24
    assert (tmp_path / "out" / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    assert fused.sum(axis=1) == pytest.approx([1, 1], abs=1e-5)
    temperatures = [o["temperature"] for m in shown["members"] for o in m["network"]["outputs"]]
    assert set(temperatures) != {1.0, 1.54}, "they were not fitted"


def test_the_factory_is_measured_without_a_release(ferplus: Path, toml: Path) -> None:
    report = run("evaluate", "factory", str(ferplus), "--part", "tune", "--config", str(toml))

    assert "face-resnet" in report and "more right" in report
    assert list(ReleaseStore(toml.parent / "state").all()) == []


def test_a_cascade_needs_two_members_with_features(ferplus: Path, toml: Path) -> None:
    with pytest.raises(ConfigError, match=r"cascade needs two members that give features.*face-resnet"):
        made(ferplus, toml, *BOTH, "--fuse", "cascade")


def test_what_is_no_release_no_member_and_no_group_is_named(ferplus: Path, toml: Path, cache: Path) -> None:
    with pytest.raises(ReleaseError, match="no releases begin with 'abc'"):
        run("evaluate", "abc", str(ferplus), "--config", str(toml))
    with pytest.raises(ModelError, match=r"mood\.onnx and mood\.json beside it"):
        made(ferplus, toml, "--member", str(toml.parent / "mood.onnx"))
    with pytest.raises(ConfigError, match="one name"):
        made(ferplus, toml, "--member", "face-resnet", "--member", "face-resnet")
    with pytest.raises(ModelError, match="mmod finds faces"):
        made(ferplus, toml, "--member", "mmod")
    with pytest.raises(ConfigError, match="'c' is none of a, b"):
        groups_of(["all=a,c"], ("a", "b"))
    with pytest.raises(ConfigError, match="there is no ="):
        groups_of(["a,b"], ("a", "b"))
    with pytest.raises(ReleaseError, match="no releases begin with 'abc'"):
        assemble(
            StageConfigs(ensemble=EnsembleConfig(release="abc")), state=toml.parent / "state", cache=cache
        )


def test_groups_may_hold_earlier_groups() -> None:
    top = groups_of(["grey=a,b", "all=grey,c"], ("a", "b", "c"))

    assert top == Group(name="all", parts=(Group(name="grey", parts=("a", "b")), "c"))
    assert groups_of([], ("a", "b")) == Group(name="all", parts=("a", "b"))


def test_a_removed_release_is_gone_unless_it_is_configured(ferplus: Path, toml: Path) -> None:
    release = made(ferplus, toml, *BOTH, "--fuse", "sum")
    plain = toml.read_text()
    toml.write_text(f'{plain}[ensemble]\nrelease = "{release[:4]}"\n')

    with pytest.raises(ConfigError, match="configure another"):
        run("release", "remove", release, "--config", str(toml))
    toml.write_text(plain)
    run("release", "remove", release, "--config", str(toml))

    assert "no releases" in run("release", "list", "--config", str(toml))


@pytest.mark.realtime
def test_gates_are_measured_kept_shown_and_decide_what_may_be_promoted(
    ferplus: Path, toml: Path, tmp_path: Path
) -> None:
    """The test part holds 24 faces: too few to tell, so the factory release stays."""
    release = made(ferplus, toml, *BOTH, "--fuse", "sum")
    journal = PromotionJournal(tmp_path / "state")

    said = run("release", "gates", release, str(ferplus), "--runs", "20", "--config", str(toml))
    shown = run("release", "show", release, "--out", str(tmp_path / "gates.png"), "--config", str(toml))
    written = msgspec.json.decode(run("release", "show", release, "--json", "--config", str(toml)))

    assert "refused" in said and "too few" in " ".join(said.split())
    assert "non-inferiority" in shown and "refuse: refused" in shown
    results = {result["name"]: result for result in written["gates"]["results"]}
    assert results["compatibility"]["passed"] and not results["non-inferiority"]["passed"]
    assert results["latency"]["n"] == 20 and results["memory"]["passed"]
    assert (tmp_path / "gates.png").read_bytes()[:4] == b"\x89PNG"
    assert journal.read().state_of(release) == "refused"
    with pytest.raises(ReleaseError, match="did not pass its gates"):
        journal.check(release, "promote")
