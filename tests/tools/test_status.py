"""What `visaged status` says, of answers of a daemon and without one."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner
from visaged.pipelines.errors import VisagedError
from visaged.tools.cli import build_app
from visaged.tools.status import cameras_of, lines_of, promotion_lines


def answer(**changes: Any) -> dict[str, Any]:
    engine = {
        "backend": "onnxruntime",
        "precision": "int8",
        "device": "cpu",
        "plan": "fc19b9af9a767105",
        "is_fallback": False,
        "reason": "",
    }
    return {
        "release": {"running": "abc"},
        "engines": {"face-resnet": engine | changes},
        "upgrade": changes.get("upgrade", "none needed"),
        "cameras": {},
        "samples": {"review": 2, "corrected": 1, "confirmed": 0},
        "automatic_flags": False,
    }


def test_the_engine_of_each_member_is_said() -> None:
    assert lines_of(answer()) == [
        "release abc",
        "  face-resnet: int8 on onnxruntime, cpu, plan fc19b9af9a767105",
        "samples: 2 review, 1 corrected, 0 confirmed; automatic flags off",
    ]


def test_a_clock_that_is_not_believed_is_said() -> None:
    assert "jumped by -90000 s" in "".join(lines_of(answer() | {"clock_step_s": -90_000.0}))
    assert "jumped" not in "".join(lines_of(answer() | {"clock_step_s": 0.0}))


def test_a_stand_in_says_why_and_what_is_done_about_it() -> None:
    lines = lines_of(
        answer(precision="fp32", plan="", is_fallback=True, reason="not built yet", upgrade="building x")
    )

    assert "stands in: not built yet" in lines[1]
    assert lines[2] == "  plans: building x"


def test_a_release_on_trial_and_one_that_failed_are_said() -> None:
    trial = {"release": "3fa2c1", "stage": "canary", "share": 0.5, "faces": 120, "tracks": 9}
    figures = {"agreement": 0.97, "psi": 0.01}

    lines = promotion_lines({"trial": trial | figures, "loading": "", "failure": "no room"})

    assert lines == [
        "  3fa2c1 is in canary, answers for 50% of the tracks; "
        "120 faces of 9 tracks compared, 97% agree, PSI 0.01",
        "  [yellow]releases: no room[/yellow]",
    ]
    assert promotion_lines({"trial": None}) == []


def test_the_books_of_a_camera_name_what_was_dropped(tmp_path: Path) -> None:
    book = {"captured": 9, "published": 6, "in_flight": 1, "dropped": {"stale": 2, "swap": 0}}
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))

    console.print(cameras_of({"door": book}))

    text = console.export_text()
    console.file.close()
    assert "2 stale" in text and "swap" not in text


def test_without_a_daemon_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = tmp_path / "v.toml"
    toml.write_text(f'[paths]\nruntime = "{tmp_path}"\n')

    result = CliRunner().invoke(build_app("status"), ["status", "--config", str(toml)])

    assert isinstance(result.exception, VisagedError)
    assert str(tmp_path) in str(result.exception)
