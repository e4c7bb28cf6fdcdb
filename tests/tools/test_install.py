"""`visaged install` and `uninstall` into the root folder of another system."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result
from visaged.pipelines.errors import ConfigError, VisagedError
from visaged.pipelines.identity.gallery import Gallery
from visaged.tools import cli

from tests.conftest import skip_or_fail

PYTHON = "/opt/visaged/bin/python3"
KEYS = "etc/visaged/gallery.key", "etc/visaged/samples.key"
CAMERA = '\n[[camera]]\nname = "door"\nsource = "synthetic:pattern"\n'


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("systemd-sysusers") is None:
        skip_or_fail("systemd", "NOT TESTED: visaged install (needs root and systemd)")
    yield tmp_path


def visaged(*words: str) -> Result:
    done = CliRunner().invoke(cli.build_app(words[0]), list(words))
    if isinstance(done.exception, VisagedError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def install(root: Path, *more: str) -> str:
    return visaged("install", "--root", str(root), "--python", PYTHON, *more).output


def files(root: Path) -> dict[str, str]:
    """Return every file and its text; what systemd keeps for itself left out."""
    return {str(p.relative_to(root)): p.read_text() for p in sorted(root.rglob("*")) if p.is_file()}


def wanted(root: Path) -> set[str]:
    return {path.name for path in (root / "etc/systemd/system/visaged.target.wants").glob("*")}


def test_a_dry_run_names_every_action_and_does_none(root: Path) -> None:
    output = install(root, "--dry-run")

    assert list(root.iterdir()) == []
    for name in (
        "visaged-infer.service",
        "visaged.toml",
        "gallery.key",
        "systemd-sysusers",
        "systemd-tmpfiles",
    ):
        assert name in output
    assert all(line.startswith(("would ", "next: ")) for line in output.splitlines())


def test_a_second_run_finds_nothing_to_do(root: Path) -> None:
    install(root)
    before = files(root)

    output = install(root)

    assert output.startswith("nothing to do\n")
    assert files(root) == before


def test_keys_folders_and_configuration_are_for_whom_they_concern(root: Path) -> None:
    install(root)

    modes = {
        name: (root / name).stat().st_mode & 0o777
        for name in (*KEYS, "etc/visaged/visaged.toml", "var/lib/visaged", "run/visaged")
    }
    assert list(modes.values()) == [0o600, 0o600, 0o640, 0o700, 0o750]
    assert {(root / key).stat().st_uid for key in KEYS} == {0}
    assert (root / "var/lib/visaged").stat().st_uid == uid_of_visaged(root) != 0
    assert f"ExecStart={PYTHON} -m" in files(root)["etc/systemd/system/visaged-infer.service"]


def uid_of_visaged(root: Path) -> int:
    rows = [row.split(":") for row in (root / "etc/passwd").read_text().splitlines()]
    return next(int(row[2]) for row in rows if row[0] == "visaged")


def test_an_edited_configuration_is_kept_and_a_changed_unit_is_shown_and_replaced(root: Path) -> None:
    install(root)
    config, unit = root / "etc/visaged/visaged.toml", root / "etc/systemd/system/visaged-infer.service"
    config.write_text(config.read_text() + "# mine\n")
    shipped = unit.read_text()
    unit.write_text(shipped.replace("WatchdogSec=30", "WatchdogSec=31"))

    shown = install(root, "--dry-run")
    assert "WatchdogSec=31" in unit.read_text()
    install(root)

    assert "-WatchdogSec=31\n" in shown and "+WatchdogSec=30\n" in shown
    assert unit.read_text() == shipped
    assert config.read_text().endswith("# mine\n")


def test_the_enabled_units_follow_the_cameras(root: Path) -> None:
    install(root)
    config = root / "etc/visaged/visaged.toml"
    empty = config.read_text()
    assert wanted(root) == set()

    config.write_text(empty + CAMERA)
    install(root)
    assert wanted(root) == {"visaged-infer.service", "visaged-capture@door.service"}

    config.write_text(empty + CAMERA.replace("door", "yard"))
    install(root)
    assert wanted(root) == {"visaged-infer.service", "visaged-capture@yard.service"}


def test_a_wrong_configuration_is_said(root: Path) -> None:
    install(root)
    (root / "etc/visaged/visaged.toml").write_text('[[camera]]\nnmae = "door"\n')

    with pytest.raises(ConfigError, match="did you mean 'name'"):
        install(root)


def test_the_key_of_an_earlier_gallery_goes_on_opening_it(root: Path) -> None:
    state = root / "var/lib/visaged"
    with Gallery(state):
        key = (state / "gallery.key").read_text()

    assert "move the key" in install(root)

    assert (root / "etc/visaged/gallery.key").read_text() == key
    assert (state / "gallery.key").readlink() == Path("/etc/visaged/gallery.key")


def test_a_gallery_without_its_key_is_not_given_another(root: Path) -> None:
    state = root / "var/lib/visaged"
    with Gallery(state):
        (state / "gallery.key").unlink()

    with pytest.raises(VisagedError, match="its key is not"):
        install(root)


def test_uninstall_says_what_it_keeps_and_purge_keeps_nothing(root: Path) -> None:
    install(root)
    config = root / "etc/visaged/visaged.toml"
    config.write_text(config.read_text() + CAMERA)
    install(root)

    own = root / "etc/systemd/system/visaged-infer.service.d/override.conf"
    own.parent.mkdir()
    own.write_text("[Service]\nMemoryMax=4G\n")

    kept = visaged("uninstall", "--root", str(root)).output

    left = [name for name in files(root) if "etc/systemd" in name or "sysusers" in name]
    assert left == [str(own.relative_to(root))] and f"kept {own.parent}: your changes" in kept
    assert wanted(root) == set()
    for name in ("etc/visaged", "var/lib/visaged", "var/cache/visaged"):
        assert f"kept {root / name}: " in kept and (root / name).exists()

    visaged("uninstall", "--root", str(root), "--purge")

    assert [name for name in files(root) if "visaged" in name] == []
    assert "visaged" not in (root / "etc/passwd").read_text()
    assert visaged("uninstall", "--root", str(root), "--purge").output == "nothing to do\n"


def test_a_python_in_a_home_folder_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VisagedError, match="home folder, which a service cannot see"):
        visaged("install", "--dry-run", "--python", "/home/ada/.venv/bin/python")


def test_without_root_only_a_dry_run_is_possible(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(VisagedError, match="needs root"):
        install(root)
    assert "would write" in install(root, "--dry-run")
