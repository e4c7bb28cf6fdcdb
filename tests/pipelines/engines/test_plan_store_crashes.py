"""Processes that die while they publish, and processes that publish at once: no half plan is ever found."""

import hashlib
import random
import signal
from collections.abc import Iterator
from functools import partial
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

from visaged.pipelines.engines.parity import ParityReport
from visaged.pipelines.engines.plan import Backend, Hardware, PlanKey, PlanRecord, Precision, Profile
from visaged.pipelines.engines.plan_store import UNFINISHED, PlanStore

from tests.crashes import SPAWN, die_at_operation, gets_through, outcomes_of

OLD, NEW = b"old" * 5000, b"new plan" * 5000
N_KILLS = 6
N_ROUNDS = 20


def key_of(version: int) -> PlanKey:
    return PlanKey(
        network="face-resnet",
        onnx_sha256="a" * 64,
        backend=Backend.ONNXRUNTIME,
        backend_version=f"1.{version}",
        precision=Precision.FP32,
        profiles=(Profile(minimum=(1, 3, 8, 8), optimum=(1, 3, 8, 8), maximum=(16, 3, 8, 8)),),
        hardware=Hardware(cpu="Some CPU avx2"),
    )


def publish(store: PlanStore, data: bytes, version: int = 0) -> None:
    record = PlanRecord(
        key=key_of(version),
        sha256=hashlib.sha256(data).hexdigest(),
        n_bytes=len(data),
        seconds=0.1,
        built_at=0.0,
        parity=ParityReport(ran="the plan", n_inputs=0, outputs=()),
        licence="CC0-1.0",
    )
    store.publish(record, data, "log")


def content(store: PlanStore, version: int = 0) -> bytes | None:
    """What a daemon would load; a plan that is replaced under its hands counts as none."""
    found = store.find(key_of(version))
    try:
        return None if found is None else found.path.read_bytes()
    except FileNotFoundError:
        return None


def leftovers(store: PlanStore) -> list[Path]:
    return list(store.folder.rglob(f"{UNFINISHED}*"))


def publish_and_die(cache: Path, step: int) -> None:
    die_at_operation(step, cache)
    publish(PlanStore(cache), NEW)


def die_at_every_step(cache: Path, before: bytes | None) -> Iterator[tuple[bytes | None, bytes | None, int]]:
    """Yield for every step: what is found after dying there, and after the next publish, and what is left."""
    step, is_done = 0, False
    while not is_done:
        step += 1
        store = PlanStore(cache / str(step))
        if before is not None:
            publish(store, before)
        is_done = gets_through(partial(publish_and_die, cache / str(step), step))
        found = content(store)
        publish(store, NEW)
        yield found, content(store), len(leftovers(store))


def test_dying_at_any_step_of_the_first_publish_leaves_all_or_nothing(tmp_path: Path) -> None:
    outcomes = outcomes_of(die_at_every_step, tmp_path, None)

    found = [outcome[0] for outcome in outcomes]
    assert set(found) == {None, NEW}
    assert found == sorted(found, key=lambda data: data is not None), "there, and then gone again"
    assert [outcome[1:] for outcome in outcomes] == [(NEW, 0)] * len(outcomes)
    assert len(outcomes) > 10, "hardly a step was tried"


def test_dying_at_any_step_of_replacing_a_plan_leaves_the_old_or_the_new_or_none(tmp_path: Path) -> None:
    outcomes = outcomes_of(die_at_every_step, tmp_path, OLD)

    found = [outcome[0] for outcome in outcomes]
    assert set(found) <= {OLD, None, NEW} and found[0] == OLD and found[-1] == NEW
    assert found.count(None) <= 1, "none is there only between the two renames"
    assert [outcome[1:] for outcome in outcomes] == [(NEW, 0)] * len(outcomes)


def publish_forever(cache: Path, is_under_way: Event) -> None:
    """Publish the same plan and a new one in turn, each filled with one byte."""
    for version in range(1_000_000):
        data = bytes([version % 256]) * 200_000
        publish(PlanStore(cache), data)
        publish(PlanStore(cache), data, 1 + version)
        is_under_way.set()


def test_a_process_killed_at_any_moment_leaves_no_half_plan(tmp_path: Path) -> None:
    moments = random.Random(0)
    store = PlanStore(tmp_path)
    for _ in range(N_KILLS):
        is_under_way = SPAWN.Event()
        process = SPAWN.Process(target=publish_forever, args=(tmp_path, is_under_way))
        process.start()
        assert is_under_way.wait(60)
        process.join(moments.uniform(0, 0.05))  # it never ends: this is how long it may go on
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL

        assert all(plan.is_whole for plan in store.plans())
        found = content(store)
        assert found is None or found == found[:1] * 200_000
        publish(store, NEW, 0)
        assert content(store) == NEW and leftovers(store) == []


def publish_together(cache: Path, mine: int, start: Barrier) -> None:
    store = PlanStore(cache)
    start.wait(60)
    for index in range(N_ROUNDS):
        publish(store, bytes([mine]) * 100_000)
        publish(store, bytes([mine]) * 1000, 1 + N_ROUNDS * mine + index)


def test_processes_that_publish_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    start = SPAWN.Barrier(3)
    processes = [SPAWN.Process(target=publish_together, args=(tmp_path, mine, start)) for mine in range(2)]
    for process in processes:
        process.start()
    store, seen = PlanStore(tmp_path), set()
    start.wait(60)
    while any(process.is_alive() for process in processes):
        seen.add(content(store))
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0, 0]
    assert seen <= {None, bytes([0]) * 100_000, bytes([1]) * 100_000}, "half a plan was found"
    assert content(store) in (bytes([0]) * 100_000, bytes([1]) * 100_000)
    assert [content(store, 1 + n) for n in range(2 * N_ROUNDS)] == [
        bytes([n // N_ROUNDS]) * 1000 for n in range(2 * N_ROUNDS)
    ]
    assert leftovers(store) == []
