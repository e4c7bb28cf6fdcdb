"""What is too old goes: receipts, and the beginning of the audit log, whose rest still verifies."""

import fcntl
import multiprocessing
from pathlib import Path
from threading import Barrier

import msgspec
import pytest
from visaged.pipelines.privacy.audit import Anchor, Deed, note, read_chain
from visaged.pipelines.privacy.erasure import Receipt, write_receipt
from visaged.pipelines.privacy.retention import DAY_S, RecordsConfig, expire_records
from visaged.pipelines.privacy.seal import open_signer

SPAWN = multiprocessing.get_context("spawn")
NOW = 1_800_000_000.0
CONFIG = RecordsConfig(keep_receipts_days=100, keep_audit_days=10)


def write_log(state: Path, ages_days: list[float]) -> list[str]:
    """A log with a deed of each age, by persons 0, 1, ...; return the hashes of its lines."""
    log = state / "audit.log"
    for person, days in enumerate(ages_days):
        before = read_chain(state).hashes
        deed = Deed(
            at=NOW - days * DAY_S,
            who="uid 1",
            what="enrol",
            person=person,
            before=before[-1] if before else "",
        )
        with log.open("ab") as file:
            file.write(msgspec.json.encode(deed) + b"\n")
    return list(read_chain(state).hashes)


def expire(state: Path, days_later: float = 0.0) -> None:
    expire_records(state, CONFIG, lambda: NOW + days_later * DAY_S)


def persons(state: Path) -> list[int | None]:
    return [deed.person for deed in read_chain(state).deeds]


def test_old_lines_are_cut_off_and_the_rest_verifies_and_goes_on(tmp_path: Path) -> None:
    hashes = write_log(tmp_path, [30, 20, 5, 1])

    expire(tmp_path)
    note(tmp_path, "enrol", person=9)
    chain = read_chain(tmp_path)

    assert persons(tmp_path) == [2, 3, 9]
    assert chain.problems == ()
    assert list(chain.hashes[:3]) == hashes[1:]
    assert chain.anchor is not None
    assert (chain.anchor.n_lines, chain.anchor.until) == (2, NOW - 20 * DAY_S)
    assert b'"person":1' not in (tmp_path / "audit.log").read_bytes()
    assert (tmp_path / "audit.log").stat().st_mode & 0o777 == 0o600


def test_a_second_cut_counts_on_and_everything_may_go(tmp_path: Path) -> None:
    write_log(tmp_path, [30, 5, 1])

    expire(tmp_path)
    expire(tmp_path, days_later=7)
    once = read_chain(tmp_path)
    expire(tmp_path, days_later=50)
    nothing = read_chain(tmp_path)
    note(tmp_path, "enrol", person=9)

    assert [deed.person for deed in once.deeds] == [2]
    assert nothing.deeds == () and nothing.anchor is not None and nothing.anchor.n_lines == 3
    assert persons(tmp_path) == [9] and not read_chain(tmp_path).problems


def test_nothing_is_rewritten_when_nothing_is_old(tmp_path: Path) -> None:
    write_log(tmp_path, [5, 1])
    before = (tmp_path / "audit.log").stat()

    expire(tmp_path)

    assert (tmp_path / "audit.log").stat().st_ino == before.st_ino
    assert not (tmp_path / "receipts.key").exists()
    expire_records(tmp_path / "none", CONFIG, lambda: NOW)
    assert not (tmp_path / "none").exists()


def anchored(state: Path) -> list[bytes]:
    write_log(state, [30, 20, 5, 1, 0])
    expire(state)
    return (state / "audit.log").read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("hand", ["behead", "cut more", "forge", "own key", "no key"])
def test_a_hand_at_the_beginning_is_noticed(tmp_path: Path, hand: str) -> None:
    first, *rest = anchored(tmp_path)
    anchor = msgspec.json.decode(first, type=Anchor)
    (tmp_path / "other").mkdir()
    theirs = msgspec.structs.replace(anchor, key=open_signer(tmp_path / "other").public, signature="")
    signed = msgspec.structs.replace(
        theirs, signature=open_signer(tmp_path / "other").sign(msgspec.json.encode(theirs))
    )
    changed = {
        "behead": rest,
        "cut more": [first, *rest[1:]],
        "forge": [first.replace(b'"n_lines":2', b'"n_lines":1'), *rest],
        "own key": [msgspec.json.encode(signed) + b"\n", *rest],
        "no key": [first, *rest],
    }[hand]
    assert signed.is_genuine and not read_chain(tmp_path).problems
    (tmp_path / "audit.log").write_bytes(b"".join(changed))
    if hand == "no key":
        (tmp_path / "receipts.key").unlink()

    assert len(read_chain(tmp_path).problems) == 1
    assert (tmp_path / "receipts.key").exists() == (hand != "no key")


def test_what_was_wrong_before_the_cut_is_still_told(tmp_path: Path) -> None:
    write_log(tmp_path, [30, 20, 5])
    log = tmp_path / "audit.log"
    log.write_bytes(log.read_bytes().replace(b'"person":0', b'"person":7'))
    n_before = len(read_chain(tmp_path).problems)

    expire(tmp_path)
    expire(tmp_path, days_later=9)

    assert n_before == 1
    assert read_chain(tmp_path).problems == (
        "the chain was broken 1 times among the lines that were cut off",
    )


def note_one(state: Path, start: Barrier) -> None:
    start.wait(60)
    note(state, "enrol", person=9)


def test_who_waited_for_a_cut_writes_to_what_is_left(tmp_path: Path) -> None:
    """The writer holds the file that the cut replaced, and would write where nobody reads."""
    write_log(tmp_path, [30, 5])
    start = SPAWN.Barrier(2)
    writer = SPAWN.Process(target=note_one, args=(tmp_path, start))
    with (tmp_path / "audit.log").open("ab") as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)
        writer.start()
        start.wait(60)
        writer.join(0.5)
        is_waiting = writer.is_alive()
        # as `cut` does, while it holds the lock
        (tmp_path / "half").write_bytes((tmp_path / "audit.log").read_bytes())
        (tmp_path / "half").replace(tmp_path / "audit.log")
    writer.join(60)

    assert is_waiting
    assert persons(tmp_path) == [0, 1, 9]


def test_old_receipts_go_and_files_that_are_none_stay(tmp_path: Path) -> None:
    def keep(id: str, days: float) -> Path:
        signer = open_signer(tmp_path)
        receipt = Receipt(
            id=id, at=NOW - days * DAY_S, person="", templates=1, negatives=0, merges=0, samples=0,
            checkpoints=0, releases=(), is_scrubbed=True, key=signer.public,
        )  # fmt: skip
        return write_receipt(receipt, tmp_path / "receipts")

    old, young = keep("a1", 101), keep("b2", 99)
    other = tmp_path / "receipts" / "notes.json"
    other.write_text("{}")

    expire(tmp_path)

    assert not old.exists()
    assert young.exists() and other.exists()


def test_what_cannot_be_cut_is_an_error_in_the_log_and_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_log(tmp_path, [30])
    (tmp_path / "receipts.key").write_text("no key")

    expire(tmp_path)

    assert "could not be deleted" in caplog.text
    assert persons(tmp_path) == [0]
