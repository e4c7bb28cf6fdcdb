"""The command line as an operator meets it: help, sentences, exit codes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import typer
from rich.console import Console
from visaged.daemon.publisher import Publisher
from visaged.pipelines.message import CameraEnded, Emotion, Face, FaceFrame, Identity
from visaged.tools import cli
from visaged.tools.live_table import LiveTable

CAMERA = '[[camera]]\nname = "door"\nsource = "synthetic:pattern"\n'


def visaged(*words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "visaged.tools.cli", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout, env=environment())


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "VISAGED_CONFIG"}
    return {**kept, "COLUMNS": "120"}


def result(camera: str = "door", seq: int = 1, faces: list[Face] | None = None) -> FaceFrame:
    now = time.monotonic_ns()
    return FaceFrame(
        camera=camera,
        run="r",
        seq=seq,
        frame_seq=seq,
        captured_ns=now - 33_000_000,
        captured_at=time.time(),
        published_ns=now,
        width=640,
        height=480,
        release="x",
        embedding_space="s",
        embedding_dim=2,
        faces=faces or [],
        drops={"stale": 2},
    )


def face(person: str = "Ada", state: str = "known") -> Face:
    return Face(
        track=3,
        box=(0, 0, 9, 9),
        quality=0.8,
        identity=Identity(state=state, person=person),  # type: ignore[arg-type]
        emotion=Emotion(label="happiness", probability=0.93),
    )


def row_of(name: str) -> cli.Command:
    return next(row for row in cli.COMMANDS if row.name == name)


def test_help_lists_every_command_without_loading_it() -> None:
    done = visaged("--help")

    assert done.returncode == 0
    for command in cli.COMMANDS:
        assert f" {command.name} " in done.stdout
    program = (
        "import sys, visaged.tools.cli as cli; cli.build_app(''); "
        "print({'numpy', 'cv2', 'zmq'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"


@pytest.mark.parametrize("command", [row.name for row in cli.COMMANDS])
def test_every_command_has_help_with_an_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("visaged.daemon.logs.configure", lambda *_: None)

    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])

    assert ended.value.code == 0
    is_group = isinstance(cli.load(row_of(command)), typer.Typer)  # its commands have the examples
    assert capsys.readouterr().out.count(f"visaged {command}") >= (1 if is_group else 2)


def test_a_wrong_command_is_exit_2() -> None:
    done = visaged("wach")

    assert done.returncode == 2
    assert "No such command" in done.stderr


def test_an_error_is_one_sentence_with_its_exit_code(tmp_path: Path) -> None:
    done = visaged("check-config", str(tmp_path / "absent.toml"))

    assert done.returncode == 78
    assert done.stderr.startswith("error: ")
    assert "absent.toml" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_debug_shows_where_it_came_from(tmp_path: Path) -> None:
    done = visaged("--debug", "check-config", str(tmp_path / "absent.toml"))

    assert done.returncode == 78
    assert "Traceback" in done.stderr


def test_a_missing_extra_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_torch(command: cli.Command) -> typer.Typer:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli, "load", without_torch)
    monkeypatch.setattr("visaged.daemon.logs.configure", lambda *_: None)

    with pytest.raises(SystemExit) as ended:
        cli.main(["train-emotion"])

    assert ended.value.code == 1
    assert "pip install 'visaged[learn]'" in capsys.readouterr().err


def test_a_right_configuration_is_said_to_be_right(tmp_path: Path) -> None:
    file = tmp_path / "v.toml"
    file.write_text(CAMERA)

    done = visaged("check-config", str(file))

    assert (done.returncode, done.stdout) == (0, f"{file} is right: door\n")


def test_all_values_in_force_can_be_shown(tmp_path: Path) -> None:
    file = tmp_path / "v.toml"
    file.write_text(CAMERA)

    shown = json.loads(visaged("check-config", str(file), "--show").stdout)

    assert shown["camera"][0]["name"] == "door"
    assert shown["metrics"]["port"] == 9480


def test_run_without_a_camera_is_exit_78(tmp_path: Path) -> None:
    file = tmp_path / "v.toml"
    file.write_text('instance = "x"\n')

    done = visaged("run", "--config", str(file))

    assert done.returncode == 78
    assert "[[camera]]" in done.stderr


def test_the_schema_is_json() -> None:
    schema = json.loads(visaged("schema").stdout)

    assert "FaceFrame" in json.dumps(schema)


def test_version_prints_it() -> None:
    assert visaged("version").stdout.startswith("visaged ")


def config_for(runtime: Path) -> Path:
    file = runtime / "v.toml"
    file.write_text(f'[paths]\nruntime = "{runtime}"\n{CAMERA}')
    return file


def publish_while(runtime: Path, popen: subprocess.Popen[str], faces: list[Face]) -> None:
    """Publish results, one every 10 ms, until `popen` has ended."""
    with Publisher(runtime) as publisher:
        seq = 0
        while popen.poll() is None:
            seq += 1
            publisher.publish(result(seq=seq, faces=faces))
            threading.Event().wait(0.01)


def watching(runtime: Path, *words: str) -> tuple[int, str, str]:
    """Run `visaged watch` beside a daemon that publishes; return exit code, output and errors."""
    line = [sys.executable, "-m", "visaged.tools.cli", "watch", "--config", str(config_for(runtime)), *words]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as popen:
        publish_while(runtime, popen, [face()])
        out, err = popen.communicate()
    return popen.returncode, out, err


def test_watch_prints_lines_in_a_pipe(runtime: Path) -> None:
    code, out, err = watching(runtime, "--count", "5", "--every", "0")

    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("door track 3 Ada happiness 93 % quality 0.80;")


def test_watch_prints_json(runtime: Path) -> None:
    code, out, _ = watching(runtime, "--json", "--count", "3")

    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [event["faces"][0]["identity"]["person"] for event in events] == ["Ada"] * 3
    assert [event["seq"] - events[0]["seq"] for event in events] == [0, 1, 2]


def test_watch_ends_by_the_clock(runtime: Path) -> None:
    code, out, _ = watching(runtime, "--seconds", "1")

    assert code == 0
    assert out


def test_watch_says_when_there_is_no_daemon(runtime: Path) -> None:
    done = visaged("watch", "--config", str(config_for(runtime)), "--seconds", "0.2")

    assert done.returncode == 1
    assert "no daemon runs" in done.stderr and "visaged run" in done.stderr


def test_ctrl_c_is_quiet(runtime: Path) -> None:
    words = ["watch", "--json", "--config", str(config_for(runtime))]
    line = [sys.executable, "-m", "visaged.tools.cli", *words]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as popen:
        daemon = threading.Thread(target=publish_while, args=(runtime, popen, [face()]))
        daemon.start()
        assert popen.stdout is not None and popen.stdout.readline()
        popen.send_signal(signal.SIGINT)
        _, err = popen.communicate(timeout=20)
        daemon.join()

    assert popen.returncode == 130
    assert "Traceback" not in err


def test_the_table_shows_person_emotion_and_drops() -> None:
    table = LiveTable()
    for seq in range(1, 4):
        table.add(result(seq=seq, faces=[face()]))
    table.add(result("yard"))
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123

    with console.file:
        console.print(table.render())
    text = console.export_text()

    assert all(word in text for word in ("door", "Ada", "happiness 93 %", "33 ms", "6", "yard", "no face"))


def test_names_cannot_draw_on_the_terminal() -> None:
    table = LiveTable()
    table.add(result(faces=[face("[red]Eve\x1b[2J[/red]")]))

    line = table.lines("door")[0]

    assert "\x1b" not in line
    assert "[red]Eve" in line


def test_an_ended_camera_is_said_to_have_ended() -> None:
    table = LiveTable()
    table.add(result())
    table.add(CameraEnded(camera="door", run="r", seq=2, reason="end of file"))

    assert table.lines("door") == ["door ended: end of file"]
