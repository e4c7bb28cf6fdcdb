"""visaged as systemd runs it: a real systemd as process 1, the units as shipped, real processes."""

import importlib.util
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from visaged.pipelines.privacy.audit import read_chain
from visaged.pipelines.privacy.wall_clock import SAVE_EVERY_S, Believed, believed_path, boot_id

from tests.conftest import find_free_port, skip_or_fail
from tests.integration.machine import ENVIRONMENT, PYTHON, Machine

INFER, DOOR, YARD = "visaged-infer.service", "visaged-capture@door.service", "visaged-capture@yard.service"
GATEWAY, LEARN, SLICE = "visaged-gateway.service", "visaged-learn.service", "visaged.slice"
CONFIG = "/etc/visaged/visaged.toml"
VISAGED = (PYTHON, "-m", "visaged.tools.cli")
CAMERAS = """
[metrics]
port = 0
[engine]
backend = "onnxruntime"
precision = "fp32"
[[camera]]
name = "door"
source = "synthetic:pattern?width=160&height=120&fps=20"
[[camera]]
name = "yard"
source = "/dev/video97"
"""
OTHERS = """
[learning]
enabled = true
[remote]
results = "{}"
control = "{}"
"""
N_KILLS = 7  # more than systemd's own limit, and than what was once ours
ASK = """
import ctypes, os
from visaged.pipelines.privacy.wall_clock import _Timex
libc, timex = ctypes.CDLL(None, use_errno=True), _Timex()
print("asked:", libc.adjtimex(ctypes.byref(timex)), timex.maxerror, flush=True)
timex.modes = 0x0004  # ADJ_MAXERROR, to what it is
libc.adjtimex(ctypes.byref(timex))
print("cannot set it:", os.strerror(ctypes.get_errno()), flush=True)
"""
SHORT = "[Service]\nWatchdogSec=3\nRestartSec=100ms\n"


@pytest.fixture(scope="module")
def endpoints() -> tuple[str, str]:
    """Where other machines are served; the machine shares the network of this one."""
    port = find_free_port()
    return f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port + 1}"


@pytest.fixture(scope="module")
def machine(cache: Path, endpoints: tuple[str, str]) -> Iterator[Machine]:
    """A machine that runs the installed service, with a camera that works and one that does not."""
    missing = [
        name for name in ("unshare", "nsenter", "systemctl", "systemd-sysusers") if not shutil.which(name)
    ]
    if missing or os.geteuid() != 0:
        skip_or_fail("systemd", f"NOT TESTED: the service (needs root, and has no {', '.join(missing)})")
    try:
        made = Machine(cache)
    except OSError as error:
        skip_or_fail("systemd", f"NOT TESTED: the service (no systemd can be booted here: {error})")
    with made:
        made.visaged("install")
        made.write(CONFIG, made.path(CONFIG).read_text() + CAMERAS + OTHERS.format(*endpoints))
        as_visaged(made, "keys", "init")
        made.visaged("install")
        for unit in (INFER, GATEWAY, "visaged-capture@.service"):  # shorter, so that the test is
            made.write(f"/etc/systemd/system/{unit}.d/short.conf", SHORT)
        made.run("systemctl", "daemon-reload")
        made.run("systemctl", "start", "visaged.target")
        wait_until(lambda: made.show(YARD, "ActiveState") == "active")
        yield made


def as_visaged(machine: Machine, *words: str) -> str:
    """Run `visaged WORDS` as the user of the service."""
    return machine.run("runuser", "-u", "visaged", "--", "env", *ENVIRONMENT, *VISAGED, *words).stdout


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def log_of(machine: Machine, unit: str) -> str:
    return machine.run("journalctl", "--no-pager", "-o", "cat", "-u", unit).stdout


def restarts(machine: Machine, unit: str) -> int:
    return int(machine.show(unit, "NRestarts"))


def test_the_units_are_without_a_fault(machine: Machine) -> None:
    done = machine.run("systemd-analyze", "verify", "visaged.target", SLICE, INFER, DOOR, GATEWAY, LEARN)

    assert done.stdout + done.stderr == ""


def test_the_service_comes_before_what_else_the_machine_does(machine: Machine) -> None:
    weights = {unit: machine.show(unit, "CPUWeight") for unit in (SLICE, DOOR, INFER, GATEWAY)}

    assert weights == {SLICE: "1000", DOOR: "600", INFER: "400", GATEWAY: "100"}
    assert {machine.show(unit, "Slice") for unit in (DOOR, INFER, GATEWAY)} == {SLICE}


def test_the_service_serves_what_works_and_says_what_does_not(machine: Machine) -> None:
    wait_until(lambda: "frames/s" in machine.show(DOOR, "StatusText"))
    wait_until(lambda: "serving 2 cameras" in machine.show(INFER, "StatusText"))

    assert float(machine.show(INFER, "StatusText").split()[3]) > 1.0  # frames per second
    assert "/dev/video97 does not exist" in machine.show(YARD, "StatusText")
    assert "door" in machine.visaged("status").stdout


def test_cameras_wait_until_the_first_batch_is_warm(machine: Machine) -> None:
    ready_us = int(machine.show(INFER, "ActiveEnterTimestampMonotonic"))

    assert int(machine.show(DOOR, "ExecMainStartTimestampMonotonic")) > ready_us


def test_the_key_reaches_infer_as_a_credential_only(machine: Machine) -> None:
    direct = machine.run("runuser", "-u", "visaged", "--", "cat", "/etc/visaged/gallery.key", check=False)
    people = machine.visaged("people")  # root finds the same key by way of the state folder

    assert "Permission denied" in direct.stderr
    assert "Nobody is enrolled yet" in people.stdout
    assert machine.show(INFER, "ActiveState") == "active"


def test_the_gateway_serves_another_machine(machine: Machine, endpoints: tuple[str, str]) -> None:
    wait_until(lambda: machine.show(GATEWAY, "ActiveState") == "active")
    roles = ("--role", "subscribe", "--role", "enrol")
    as_visaged(machine, "keys", "add", "laptop", *roles, "--to", "/tmp/laptop.key")
    key, (results, control) = ("--key", "/tmp/laptop.key"), endpoints

    status = machine.visaged("status", "--endpoint", control, *key)
    watch = ("timeout", "20", *VISAGED, "watch", "--json", "--endpoint", results, *key)
    first = machine.run("sh", "-c", f"{' '.join(watch)} | head -n 1")
    nobody = machine.visaged("enroll", "Ada", "--track", "door:1", "--endpoint", control, *key, check=False)

    assert "door" in status.stdout
    assert '"camera":"door"' in first.stdout
    assert results in machine.show(GATEWAY, "StatusText") and restarts(machine, GATEWAY) == 0
    assert "camera door has no track 1" in nobody.stderr
    (asked,) = [deed for deed in read_chain(machine.path("/var/lib/visaged")).deeds if "asked" in deed.what]
    assert asked.who == "client laptop" and abs(asked.at - time.time()) < 60


def test_learn_waits_for_labels_behind_everything_else(machine: Machine) -> None:
    if importlib.util.find_spec("torch") is None:
        skip_or_fail("torch", "NOT TESTED: the unit of learn (pip install 'visaged[learn]')")
    wait_until(lambda: machine.show(LEARN, "ActiveState") == "active")

    wait_until(lambda: "waiting" in machine.show(LEARN, "StatusText"))
    pid = machine.show(LEARN, "MainPID")
    scheduling = machine.run("ps", "-o", "cls=,ni=", "-p", pid).stdout.split()
    assert scheduling == ["B", "19"]  # SCHED_BATCH
    assert restarts(machine, LEARN) == 0


def test_infer_may_ask_the_kernel_about_the_clock_and_not_set_it(machine: Machine) -> None:
    unit = machine.path(f"/etc/systemd/system/{INFER}").read_text()
    lines = [line for line in unit.splitlines() if not line.startswith(("ExecStart=", "Type=", "Watchdog"))]
    at = lines.index("[Service]") + 1
    machine.write("/etc/visaged/ask.py", ASK)
    lines[at:at] = ["Type=oneshot", f"ExecStart={PYTHON} /etc/visaged/ask.py"]
    machine.write("/etc/systemd/system/ask.service", "\n".join(lines))
    machine.run("systemctl", "daemon-reload")

    machine.run("systemctl", "start", "ask.service", check=False)

    said = log_of(machine, "ask.service")
    assert re.search(r"asked: [0-5]\b", said), said
    assert "cannot set it: Operation not permitted" in said
    believed = msgspec.json.decode(
        believed_path(machine.path("/var/lib/visaged")).read_bytes(), type=Believed
    )
    assert believed.boot == boot_id() and abs(believed.at - time.time()) < 2 * SAVE_EVERY_S


@pytest.mark.parametrize("unit", [YARD, GATEWAY])
def test_a_process_that_is_killed_again_and_again_is_started_again_and_again(
    machine: Machine, unit: str
) -> None:
    before = restarts(machine, unit)

    for _ in range(N_KILLS):
        wait_until(lambda: machine.show(unit, "MainPID") != "0")
        pid = machine.show(unit, "MainPID")
        machine.run("kill", "-KILL", pid, check=False)
        wait_until(lambda pid=pid: machine.show(unit, "MainPID") != pid)  # type: ignore[misc]

    wait_until(lambda: machine.show(unit, "ActiveState") == "active")
    assert restarts(machine, unit) >= before + N_KILLS


def test_a_reload_takes_the_new_level_and_a_wrong_file_changes_nothing(machine: Machine) -> None:
    config = machine.path(CONFIG)
    before, pid = config.read_text(), machine.show(DOOR, "MainPID")

    config.write_text('[logging]\nlevel = "loud"\n' + before)
    machine.run("systemctl", "reload", DOOR)
    wait_until(lambda: "the configuration stays as it was" in log_of(machine, DOOR))
    config.write_text('[logging]\nlevel = "debug"\n' + before)
    machine.run("systemctl", "reload", DOOR)
    config.write_text(before)

    wait_until(lambda: "read [logging] of /etc/visaged/visaged.toml again" in log_of(machine, DOOR))
    assert (machine.show(DOOR, "ActiveState"), machine.show(DOOR, "MainPID")) == ("active", pid)


def test_an_infer_that_hangs_loses_the_watchdog_and_is_started_again(machine: Machine) -> None:
    before, n_yard = restarts(machine, INFER), restarts(machine, YARD)
    machine.run("kill", "-STOP", machine.show(INFER, "MainPID"))

    wait_until(lambda: restarts(machine, INFER) > before)
    wait_until(lambda: machine.show(INFER, "ActiveState") == "active")

    wait_until(lambda: "Watchdog timeout" in log_of(machine, INFER))
    assert (restarts(machine, DOOR), restarts(machine, YARD)) == (0, n_yard)  # a lost camera is no hang


def test_the_target_stops_everything_in_order_and_leaves_no_frame(machine: Machine) -> None:
    machine.run("systemctl", "stop", "visaged.target")

    for unit in (INFER, DOOR, YARD, GATEWAY, LEARN):
        wait_until(lambda unit=unit: machine.show(unit, "ActiveState") == "inactive")  # type: ignore[misc]
        assert machine.show(unit, "Result") == "success"
    assert list(machine.path("/dev/shm").iterdir()) == []
    left = {path.name for path in machine.path("/run/visaged").iterdir()}
    assert left - {"learning.json"} == {"ledger-door", "ledger-yard"}


def test_a_wrong_configuration_stays_down_with_78_and_says_why(machine: Machine) -> None:
    config = machine.path(CONFIG)
    before = config.read_text()
    config.write_text(before.replace("onnxruntime", "abacus"))

    assert machine.run("systemctl", "start", INFER, check=False).returncode != 0
    config.write_text(before)

    assert machine.show(INFER, "ActiveState") == "failed"
    assert machine.show(INFER, "ExecMainStatus") == "78"
    assert "backend" in machine.show(INFER, "StatusText")
    assert restarts(machine, INFER) == 0


def test_uninstalling_leaves_no_unit_and_keeps_the_gallery(machine: Machine) -> None:
    output = machine.visaged("uninstall").stdout

    assert machine.show(INFER, "LoadState") == "not-found"
    assert "kept /var/lib/visaged: the gallery" in output
    assert machine.path("/var/lib/visaged/gallery.db").exists()
