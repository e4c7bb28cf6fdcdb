"""`visaged keys`, as an operator would use it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from visaged.daemon.keys import read_client
from visaged.tools.cli import main

Visaged = Callable[..., tuple[int, str]]


@pytest.fixture
def visaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Visaged:
    """Return a function that runs a command in a folder of its own; it gives exit code and output."""
    file = tmp_path / "visaged.toml"
    file.write_text(f'[paths]\nstate = "{tmp_path}/state"\nruntime = "{tmp_path}"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            main([*words, "--config", str(file)])
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out + said.err

    return run


def test_a_client_is_added_listed_and_revoked(visaged: Visaged, tmp_path: Path) -> None:
    code, said = visaged("keys", "add", "laptop", "--role", "subscribe")
    assert (code, "visaged keys init" in said) == (78, True)

    assert visaged("keys", "init")[0] == 0
    assert visaged("keys", "add", "laptop", "--role", "subscribe", "--role", "enrol")[0] == 0
    assert visaged("keys", "revoke", "laptop")[0] == 0
    code, said = visaged("keys", "list")

    key = read_client(tmp_path / "laptop.key")
    row = next(line.split() for line in said.splitlines() if "laptop" in line)
    assert code == 0
    assert row[:3] == ["laptop", "subscribe,", "enrol"]
    assert row[-1] == key.pair.public
    assert [word[0] for word in row[3:5]] == ["2", "2"]  # since and revoked, both a date
    assert key.server in said
    assert key.pair.secret not in said
    assert visaged("keys", "revoke", "laptop")[0] == 1


def test_rotating_says_what_clients_need(visaged: Visaged, tmp_path: Path) -> None:
    visaged("keys", "init")
    visaged("keys", "add", "laptop", "--role", "admin")

    code, said = visaged("keys", "rotate", "--yes")

    new = said.split('"')[1]
    assert (code, len(new)) == (0, 40)
    assert new != read_client(tmp_path / "laptop.key").server
    assert new in visaged("keys", "list")[1]


def test_an_endpoint_without_a_key_is_a_wrong_command_line(visaged: Visaged) -> None:
    code, said = visaged("status", "--endpoint", "tcp://127.0.0.1:1")

    assert (code, "--key" in said) == (2, True)
