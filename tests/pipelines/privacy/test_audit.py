"""The audit log: what it holds, and which hands in it are noticed."""

import fcntl
import multiprocessing
from pathlib import Path
from threading import Barrier

import pytest
from visaged.pipelines.privacy.audit import note, read_chain

SPAWN = multiprocessing.get_context("spawn")


def filled(state: Path, n: int = 4) -> list[bytes]:
    for person in range(n):
        note(state, "enrol", person=person)
    return (state / "audit.log").read_bytes().splitlines(keepends=True)


def test_deeds_come_back_in_order_and_the_file_is_private(tmp_path: Path) -> None:
    filled(tmp_path)
    note(tmp_path, "flag", who="client laptop", detail="sample a1")
    chain = read_chain(tmp_path)

    assert [deed.person for deed in chain.deeds] == [0, 1, 2, 3, None] and not chain.problems
    assert chain.deeds[0].who.startswith("uid ") and chain.deeds[-1].who == "client laptop"
    assert (tmp_path / "audit.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("hand", ["change", "take out", "put in", "swap", "behead"])
def test_a_hand_in_the_middle_is_noticed(tmp_path: Path, hand: str) -> None:
    first, second, third, fourth = filled(tmp_path)
    changed = {
        "change": [first, second.replace(b'"person":1', b'"person":9'), third, fourth],
        "take out": [first, third, fourth],
        "put in": [first, second, second, third, fourth],
        "swap": [first, third, second, fourth],
        "behead": [second, third, fourth],
    }[hand]
    (tmp_path / "audit.log").write_bytes(b"".join(changed))

    assert read_chain(tmp_path).problems


def test_a_line_whose_writer_died_is_named_and_does_not_break_what_follows(tmp_path: Path) -> None:
    lines = filled(tmp_path)
    (tmp_path / "audit.log").write_bytes(b"".join(lines)[:-9])
    note(tmp_path, "enrol", person=7)
    chain = read_chain(tmp_path)

    assert [deed.person for deed in chain.deeds] == [0, 1, 2, 7]
    assert len(chain.problems) == 1 and "line 4 is not whole" in chain.problems[0]


def note_many(state: Path, start: Barrier) -> None:
    start.wait(60)
    for person in range(25):
        note(state, "enrol", person=person)


def test_a_process_waits_for_another_that_is_writing(tmp_path: Path) -> None:
    start = SPAWN.Barrier(2)
    filled(tmp_path)
    writer = SPAWN.Process(target=note_many, args=(tmp_path, start))
    with (tmp_path / "audit.log").open("ab") as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)
        writer.start()
        start.wait(60)
        writer.join(0.3)
        n_while_locked = len(read_chain(tmp_path).deeds)
    writer.join(60)
    chain = read_chain(tmp_path)

    assert n_while_locked == 4 and len(chain.deeds) == 29 and not chain.problems


def test_what_cannot_be_written_is_an_error_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "audit.log").mkdir()
    note(tmp_path, "enrol")

    assert "'enrol' could not be written" in caplog.text
