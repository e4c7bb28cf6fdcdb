"""`visaged clock`: whether the clock is believed, and an operator's word for it."""

import time
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner
from visaged.pipelines.errors import VisagedError
from visaged.pipelines.privacy.audit import read_chain
from visaged.pipelines.privacy.wall_clock import Believed, WallClock, believed_path, boot_id, since_boot_s
from visaged.tools.cli import build_app


def believe(state: Path, behind_s: float) -> None:
    """Leave a state folder in which it was so much earlier, and no time has passed since."""
    at = time.time() - behind_s
    known = Believed(at=at, uptime=since_boot_s(), boot=boot_id(), since=at)
    believed_path(state).write_bytes(msgspec.json.encode(known))


def run(state: Path, *words: str) -> str:
    result = CliRunner().invoke(build_app("clock"), ["clock", "--state", str(state), *words])
    if isinstance(result.exception, VisagedError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_a_clock_that_is_believed_needs_no_word(tmp_path: Path) -> None:
    believe(tmp_path, 0)

    assert "it is believed" in run(tmp_path, "--believe")
    assert read_chain(tmp_path).deeds == ()


def test_a_clock_that_jumped_is_shown_and_changes_nothing(tmp_path: Path) -> None:
    believe(tmp_path, 30 * 86_400.0)

    shown = run(tmp_path)

    assert "jumped by +2592000 s" in shown and "visaged clock --believe" in shown
    assert not WallClock(tmp_path).look()


def test_a_word_is_taken_and_written_down(tmp_path: Path) -> None:
    believe(tmp_path, 30 * 86_400.0)

    run(tmp_path, "--believe")

    assert WallClock(tmp_path).look()
    (deed,) = read_chain(tmp_path).deeds
    assert (deed.what, "+2592000 s" in deed.detail) == ("clock believed", True)
    assert abs(deed.at - (time.time() - 30 * 86_400)) < 60  # it is written before it is believed


def test_a_folder_that_is_closed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "v.toml"
    file.write_text(f'[paths]\nstate = "{tmp_path}"\n')
    monkeypatch.setattr("os.access", lambda path, *_: path != tmp_path)

    result = CliRunner().invoke(build_app("clock"), ["clock", "--config", str(file)])

    assert isinstance(result.exception, VisagedError) and "closed to this user" in str(result.exception)


def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    believe(tmp_path, 30 * 86_400.0)
    monkeypatch.setattr("visaged.pipelines.privacy.wall_clock.write_atomically", read_only)

    with pytest.raises(VisagedError, match="cannot be written"):
        run(tmp_path, "--believe")
