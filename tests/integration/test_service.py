"""visaged as systemd runs it: a real systemd as process 1, the units as shipped, real processes."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import skip_or_fail
from tests.integration.machine import Machine

INFER, DOOR, YARD = "visaged-infer.service", "visaged-capture@door.service", "visaged-capture@yard.service"
CONFIG = "/etc/visaged/visaged.toml"
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
SHORT = "[Service]\nWatchdogSec=3\nRestartSec=100ms\n"


@pytest.fixture(scope="module")
def machine(cache: Path) -> Iterator[Machine]:
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
        made.write(CONFIG, made.path(CONFIG).read_text() + CAMERAS)
        made.visaged("install")
        for unit in (INFER, "visaged-capture@.service"):  # shorter, so that the test is
            made.write(f"/etc/systemd/system/{unit}.d/short.conf", SHORT)
        made.run("systemctl", "daemon-reload")
        made.run("systemctl", "start", "visaged.target")
        wait_until(lambda: made.show(YARD, "ActiveState") == "active")
        yield made


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
    done = machine.run("systemd-analyze", "verify", "visaged.target", INFER, DOOR)

    assert done.stdout + done.stderr == ""


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
    before = restarts(machine, INFER)
    machine.run("kill", "-STOP", machine.show(INFER, "MainPID"))

    wait_until(lambda: restarts(machine, INFER) > before)
    wait_until(lambda: machine.show(INFER, "ActiveState") == "active")

    wait_until(lambda: "Watchdog timeout" in log_of(machine, INFER))
    assert (restarts(machine, DOOR), restarts(machine, YARD)) == (0, 0)  # a lost camera is no hang


def test_the_target_stops_everything_in_order_and_leaves_no_frame(machine: Machine) -> None:
    machine.run("systemctl", "stop", "visaged.target")

    for unit in (INFER, DOOR, YARD):
        wait_until(lambda unit=unit: machine.show(unit, "ActiveState") == "inactive")  # type: ignore[misc]
        assert machine.show(unit, "Result") == "success"
    assert list(machine.path("/dev/shm").iterdir()) == []
    assert {path.name for path in machine.path("/run/visaged").iterdir()} == {"ledger-door", "ledger-yard"}


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
