"""A whole round of learning again on real networks: nothing of the forgotten is in what comes out."""

from pathlib import Path

import pytest
from typer.testing import CliRunner
from visaged.daemon.config import load_config
from visaged.pipelines.loop.lineage import marks_of
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.releases.release_store import ReleaseStore
from visaged.tools.cli import build_app
from visaged.tools.doctor_state import releases

from tests.pipelines.loop.test_learner import CONFIG, Whole, champion, state, whole  # noqa: F401
from tests.pipelines.loop.test_rebuild import forget_in

pytestmark = pytest.mark.torch


def run(config: Path, *words: str) -> str:
    line = ["release", *words, "--config", str(config)]
    done = CliRunner().invoke(build_app("release"), line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_forget_rebuild_remove_leaves_nothing_that_learned_from_them(
    state: Path,  # noqa: F811
    whole: Whole,  # noqa: F811
    cache: Path,
    tmp_path: Path,
) -> None:
    kept, old = ReleaseStore(state), whole.report.release
    config = tmp_path / "visaged.toml"
    config.write_text(
        f'[paths]\nstate = "{state}"\nruntime = "{tmp_path}"\ncache = "{cache}"\n'
        f"[learning]\nmin_samples = {CONFIG.min_samples}\nmax_steps = {CONFIG.max_steps}\n"
    )
    learned = set(kept.get(old).about.samples)
    with SampleStore(state) as samples:
        people = {s.identity.person: s.id for s in samples.samples() if s.id in learned}
    for name in sorted(people)[:2]:
        forget_in(state, name)
    erased = {people[name] for name in sorted(people)[:2]}

    doctor = {finding.check: finding for finding in releases(load_config(config))}
    said = run(config, "rebuild", old[:6])

    assert f"visaged release rebuild {old}" in doctor[f"release {old}"].mend
    (new,) = (stored for stored in kept.all() if stored.release.id != old)
    assert f"rebuilt {old} as {new.release.id}" in said and f"visaged release remove {old}" in said
    assert new.about.parent == kept.get(old).about.parent
    assert set(new.about.samples) < learned and not erased & set(new.about.samples)
    assert len(new.about.samples) > len(learned) / 2
    assert set(marks_of(state)) == {old}
    run(config, "remove", old)
    assert marks_of(state) == {}
    new.networks()  # its files are whole without the old one's
    assert f"release {old}" not in {finding.check for finding in releases(load_config(config))}

    for name in sorted(people)[2:]:
        forget_in(state, name)
    assert "nothing is left to learn from: factory is the answer" in run(config, "rebuild", new.release.id)
