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
CAMERAS = """
[metrics]
port = 0
[[camera]]
name = "door"
source = "synthetic:pattern?width=160&height=120&fps=20"
[[camera]]
name = "yard"
source = "/dev/video97"
"""
WATCHDOG = "[Service]\nWatchdogSec=3\n"


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
        config = made.path("/etc/visaged/visaged.toml")
        config.write_text(config.read_text() + CAMERAS)
        made.visaged("install")
        for unit in (INFER, "visaged-capture@.service"):  # shorter, so that the test is
            made.run("mkdir", "-p", f"/etc/systemd/system/{unit}.d")
            made.path(f"/etc/systemd/system/{unit}.d/short.conf").write_text(WATCHDOG)
        made.run("systemctl", "daemon-reload")
        made.run("systemctl", "start", "visaged.target")
        wait_until(lambda: made.show(YARD, "ActiveState") == "active")
        yield made


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_the_service_serves_what_works_and_says_what_does_not(machine: Machine) -> None:
    wait_until(lambda: "frames/s" in machine.show(DOOR, "StatusText"))

    assert machine.show(INFER, "ActiveState") == "active"
    assert "2 cameras" in machine.show(INFER, "StatusText")
    assert "/dev/video97 does not exist" in machine.show(YARD, "StatusText")
