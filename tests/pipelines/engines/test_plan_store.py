"""The plan store: a plan is whole or absent, whatever fails, and roles protect what is in use."""

import errno
import hashlib
import os
import resource
from pathlib import Path
from typing import Any

import msgspec
import pytest
from visaged.pipelines.engines.parity import ParityReport
from visaged.pipelines.engines.plan import Backend, Hardware, PlanKey, PlanRecord, Precision, Profile
from visaged.pipelines.engines.plan_store import UNFINISHED, PlanStore, StoredPlan
from visaged.pipelines.errors import ModelError

KEY = PlanKey(
    network="face-resnet",
    onnx_sha256="a" * 64,
    backend=Backend.ONNXRUNTIME,
    backend_version="1.32.0",
    precision=Precision.FP32,
    profiles=(Profile(minimum=(1, 3, 8, 8), optimum=(1, 3, 8, 8), maximum=(16, 3, 8, 8)),),
    hardware=Hardware(cpu="Some CPU avx2"),
)
OTHERS: dict[str, Any] = {
    "onnx_sha256": "b" * 64,
    "backend": Backend.OPENVINO,
    "backend_version": "1.31.0",
    "precision": Precision.INT8,
    "profiles": (Profile(minimum=(1, 3, 8, 8), optimum=(1, 3, 8, 8), maximum=(32, 3, 8, 8)),),
    "hardware": Hardware(cpu="Another CPU"),
    "flags": ("no TF32",),
    "ranges_sha256": "c" * 64,
}
OLD, NEW = b"old" * 5000, b"new plan" * 5000


def record_of(key: PlanKey, data: bytes, built_at: float = 0.0) -> PlanRecord:
    return PlanRecord(
        key=key,
        sha256=hashlib.sha256(data).hexdigest(),
        n_bytes=len(data),
        seconds=0.1,
        built_at=built_at,
        parity=ParityReport(ran="the plan", n_inputs=0, outputs=()),
        licence="CC0-1.0",
    )


def publish(store: PlanStore, data: bytes, key: PlanKey = KEY, built_at: float = 0.0) -> StoredPlan:
    return store.publish(record_of(key, data, built_at), data, f"log of {len(data)} bytes")


def variant(index: int, network: str = "face-resnet") -> PlanKey:
    return msgspec.structs.replace(KEY, backend_version=f"1.{index}", network=network)


def content(store: PlanStore, key: PlanKey = KEY) -> bytes | None:
    found = store.find(key)
    return found.path.read_bytes() if found else None


def leftovers(store: PlanStore) -> list[Path]:
    return [path for name in (f"{UNFINISHED}*", ".writing-*", ".new-*") for path in store.folder.rglob(name)]


@pytest.fixture
def store(tmp_path: Path) -> PlanStore:
    return PlanStore(tmp_path)


def test_a_published_plan_is_found_with_all_that_is_known_about_it(store: PlanStore) -> None:
    assert store.find(KEY) is None

    published = publish(store, NEW)

    found = store.find(KEY)
    assert found is not None and found == published
    assert found.record == record_of(KEY, NEW)
    assert found.path.read_bytes() == NEW and found.is_whole
    assert found.log() == f"log of {len(NEW)} bytes"
    assert found.folder == store.folder / "face-resnet" / KEY.fingerprint
    assert found.folder.stat().st_mode & 0o777 == 0o755, "a daemon of another user must read it"
    assert leftovers(store) == []


def test_another_process_finds_what_was_published(store: PlanStore, tmp_path: Path) -> None:
    publish(store, NEW)

    assert content(PlanStore(tmp_path)) == NEW


@pytest.mark.parametrize("field", OTHERS)
def test_a_plan_for_something_else_is_not_found(field: str, store: PlanStore) -> None:
    publish(store, NEW)
    other = msgspec.structs.replace(KEY, **{field: OTHERS[field]})

    assert store.find(other) is None


@pytest.mark.parametrize("field", OTHERS)
def test_a_plan_copied_under_the_name_of_another_is_not_found(field: str, store: PlanStore) -> None:
    folder = publish(store, NEW).folder
    other = msgspec.structs.replace(KEY, **{field: OTHERS[field]})
    folder.rename(folder.with_name(other.fingerprint))

    assert store.find(other) is None and store.find(KEY) is None


def damage(folder: Path, how: str) -> None:
    plan, record = folder / "plan", folder / "plan.json"
    if how == "cut":
        plan.write_bytes(NEW[:-1])
    elif how == "altered":
        plan.write_bytes(b"N" + NEW[1:])
    elif how == "longer":
        plan.write_bytes(NEW + b"\0")
    elif how == "empty":
        plan.write_bytes(b"")
    elif how == "no plan":
        plan.unlink()
    elif how == "no record":
        record.unlink()
    elif how == "half a record":
        record.write_bytes(record.read_bytes()[:100])
    elif how == "a foreign record":
        record.write_bytes(b"\xff\xfe not JSON")
    else:  # a record that no visaged would write
        record.write_bytes(record.read_bytes().replace(b'"maximum":[16', b'"maximum":[0'))


DAMAGE = (
    "cut", "altered", "longer", "empty", "no plan",
    "no record", "half a record", "a foreign record", "an impossible profile",
)  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_plan_is_not_found_and_publishing_repairs_it(how: str, store: PlanStore) -> None:
    damage(publish(store, NEW).folder, how)
    assert store.find(KEY) is None

    publish(store, NEW)

    assert content(store) == NEW
    assert leftovers(store) == []


def test_a_damaged_plan_does_not_hide_the_others(store: PlanStore) -> None:
    damage(publish(store, NEW, variant(1)).folder, "half a record")
    publish(store, NEW, variant(2))
    (store.folder / "face-resnet" / "notes.txt").write_text("somebody's")
    (store.folder / "timing-10.cache").write_text("no folder")

    assert [plan.record.key for plan in store.plans()] == [variant(2)]


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("before", [None, OLD], ids=["first", "again"])
def test_a_full_disk_leaves_nothing_half_written_and_the_old_plan(
    before: bytes | None, call: int, store: PlanStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        publish(store, before)
    real, calls = os.fsync, iter(range(1, 100))

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match=r"cannot be written: No space left on device; free space") as error:
        publish(store, NEW)
    monkeypatch.undo()

    assert "\n" not in str(error.value)
    assert content(store) == before
    assert leftovers(store) == []
    publish(store, NEW)
    assert content(store) == NEW


def test_a_write_that_the_kernel_cuts_short_leaves_the_old_plan(store: PlanStore) -> None:
    publish(store, OLD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(NEW) // 2, hard))
    try:
        with pytest.raises(ModelError, match="cannot be written: File too large"):
            publish(store, NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert content(store) == OLD
    assert leftovers(store) == []


def test_a_rename_that_fails_puts_the_old_plan_back(
    store: PlanStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, OLD)
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if target.name == KEY.fingerprint and (path / "plan").read_bytes() == NEW:
            raise OSError(errno.EIO, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ModelError, match="cannot be written: Input/output error"):
        publish(store, NEW)

    assert content(store) == OLD
    assert leftovers(store) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    store = PlanStore(tmp_path / "cache")

    with pytest.raises(ModelError, match=r"cache folder .* cannot be written: .* `cache` under \[paths\]"):
        publish(store, NEW)
    assert store.find(KEY) is None and list(store.plans()) == []


def test_promoting_makes_the_current_plan_the_previous_one(store: PlanStore) -> None:
    first, second, third = (publish(store, NEW, variant(index)) for index in range(3))
    assert store.pins("face-resnet") == {}

    store.promote(first)
    assert store.pins("face-resnet") == {"current": first.folder.name}
    store.promote(second)
    store.promote(second)  # as at every start of the daemon
    assert store.pins("face-resnet") == {"current": second.folder.name, "previous": first.folder.name}
    store.promote(third)

    assert store.pins("face-resnet") == {"current": third.folder.name, "previous": second.folder.name}
    assert (store.folder / "face-resnet" / "current" / "plan").read_bytes() == NEW


def test_a_candidate_is_none_any_more_once_it_is_promoted(store: PlanStore) -> None:
    first, second = publish(store, NEW, variant(1)), publish(store, NEW, variant(2))
    store.promote(first)
    store.pin(second, "candidate")
    assert store.pins("face-resnet") == {"current": first.folder.name, "candidate": second.folder.name}
    assert store.roles() == {first.folder.name: "current", second.folder.name: "candidate"}

    store.promote(first)
    assert "candidate" in store.pins("face-resnet"), "another was promoted"
    store.promote(second)

    assert store.pins("face-resnet") == {"current": second.folder.name, "previous": first.folder.name}


def test_a_role_passes_to_the_next_that_takes_it(store: PlanStore) -> None:
    first, second = publish(store, NEW, variant(1)), publish(store, NEW, variant(2))

    store.pin(first, "candidate")
    store.pin(second, "candidate")

    assert store.pins("face-resnet") == {"candidate": second.folder.name}
    assert leftovers(store) == []


def test_roles_are_per_network_and_links_are_no_plans(store: PlanStore) -> None:
    face, mmod = publish(store, NEW), publish(store, NEW, variant(1, network="mmod"))
    store.promote(face)
    store.promote(mmod)
    store.pin(mmod, "previous")

    assert store.roles() == {face.folder.name: "current", mmod.folder.name: "current, previous"}
    assert [plan.folder for plan in store.plans()] == [face.folder, mmod.folder]


def test_a_role_on_a_folder_that_takes_no_files_is_one_sentence(
    store: PlanStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = publish(store, NEW)

    def full(link: Path, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "symlink_to", full)
    with pytest.raises(ModelError, match="cannot be written: No space left"):
        store.promote(plan)
    with pytest.raises(ModelError, match="cannot be written: No space left"):
        store.pin(plan, "candidate")


def test_pruning_keeps_what_has_a_role(store: PlanStore) -> None:
    plans = [publish(store, NEW, variant(index), built_at=index) for index in range(4)]
    store.promote(plans[0])
    store.promote(plans[1])
    store.pin(plans[2], "candidate")

    assert [record.key for record in store.prune()] == [variant(3)]

    assert [plan.folder for plan in store.plans()] == [plan.folder for plan in plans[:3]]
    assert store.prune() == [] and leftovers(store) == []


def test_pruning_keeps_the_newest_of_each_network_besides(store: PlanStore) -> None:
    for index in (3, 1, 2, 0):  # not in the order of their age
        publish(store, NEW, variant(index), built_at=index)
        publish(store, NEW, variant(index, network="mmod"), built_at=-index)
    store.promote(store.get(variant(0).fingerprint))  # the oldest, in use

    deleted = store.prune(keep=2)

    assert {record.key for record in deleted} == {
        variant(1), variant(3, network="mmod"), variant(2, network="mmod"),
    }  # fmt: skip
    kept = {plan.record.key for plan in store.plans()}
    assert kept == {
        variant(0), variant(2), variant(3), variant(0, network="mmod"), variant(1, network="mmod"),
    }  # fmt: skip
    assert store.prune(keep=5) == []


def test_pruning_what_another_process_deleted_meanwhile_is_no_error(
    store: PlanStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, NEW, variant(1))
    publish(store, NEW, variant(2))
    seen = list(store.plans())
    monkeypatch.setattr(store, "plans", lambda: iter(seen))
    assert len(PlanStore(store.folder.parent).prune()) == 2

    assert store.prune() == []


def test_a_plan_is_got_by_how_its_fingerprint_begins(store: PlanStore) -> None:
    plans = [publish(store, NEW, variant(index)) for index in range(20)]

    for plan in plans:
        assert store.get(plan.folder.name) == plan
    wanted = plans[0].folder.name
    unique = next(n for n in range(17) if sum(p.folder.name.startswith(wanted[:n]) for p in plans) == 1)
    assert store.get(wanted[:unique]) == plans[0]


def test_none_or_several_of_that_beginning_are_one_sentence(store: PlanStore) -> None:
    with pytest.raises(ModelError, match=r"^no plans begin with 'x'; `visaged plans list` shows them$"):
        store.get("x")
    for index in range(3):
        publish(store, NEW, variant(index))
    with pytest.raises(ModelError, match=r"^3 plans begin with ''; `visaged plans list` shows them$"):
        store.get("")
