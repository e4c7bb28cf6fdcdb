"""The units as they are shipped: how much a process that is taken over could do."""

import shutil
import subprocess
from pathlib import Path

import pytest
from visaged.daemon.process_table import TABLE

from tests.conftest import skip_or_fail

FOLDER = Path(__file__).resolve().parents[2] / "systemd"
SERVICES = sorted(path.name for path in FOLDER.glob("*.service"))
MAX_EXPOSURE = 3.0  # systemd's own scale: 0 is locked away, 10 is root with everything


@pytest.mark.parametrize("service", SERVICES)
def test_a_unit_is_hardly_exposed(service: str) -> None:
    if shutil.which("systemd-analyze") is None:
        skip_or_fail("systemd", "NOT TESTED: the exposure of the units (apt install systemd)")
    threshold = f"--threshold={int(MAX_EXPOSURE * 10)}"
    line = ["systemd-analyze", "security", "--offline=true", "--no-pager", threshold, str(FOLDER / service)]

    done = subprocess.run(line, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


def test_every_kind_of_process_has_a_unit_that_starts_it() -> None:
    starts = {
        line.split("visaged.daemon.lifecycle ")[1].split()[0]
        for service in SERVICES
        for line in (FOLDER / service).read_text().splitlines()
        if line.startswith("ExecStart=")
    }

    assert starts == {f"{row.kind}@%i" if row.per_camera else row.kind for row in TABLE}


@pytest.mark.parametrize("service", SERVICES)
def test_a_unit_stays_down_on_a_wrong_configuration_and_dumps_no_faces(service: str) -> None:
    lines = (FOLDER / service).read_text().splitlines()

    assert {"Type=notify", "RestartPreventExitStatus=78", "LimitCORE=0", "Slice=visaged.slice"} <= set(lines)


@pytest.mark.parametrize("service", SERVICES)
def test_a_unit_never_stops_being_started_again_and_not_in_a_hurry(service: str) -> None:
    lines = (FOLDER / service).read_text().splitlines()

    (pause_s,) = (int(line.split("=")[1]) for line in lines if line.startswith("RestartSec="))
    assert {"Restart=on-failure", "StartLimitIntervalSec=0"} <= set(lines) and pause_s >= 2
    assert not any(line.startswith(("StartLimitBurst", "RestartSteps")) for line in lines)


@pytest.mark.parametrize("service", SERVICES)
def test_what_serves_is_the_last_to_be_ended_when_memory_runs_out(service: str) -> None:
    lines = (FOLDER / service).read_text().splitlines()

    (score,) = (int(line.split("=")[1]) for line in lines if line.startswith("OOMScoreAdjust="))
    assert (score < 0) == service.startswith(("visaged-infer", "visaged-capture"))
