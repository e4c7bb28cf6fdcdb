"""A real Prometheus scrapes the real daemon, and a query returns what happened."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FPS, SECONDS = 15, 4


def required(program: str) -> str:
    """Return the path of `program`, or skip."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian: apt install prometheus)")
    return path


def write_daemon_config(runtime: Path, cache: Path, port: int) -> Path:
    file = runtime / "visaged.toml"
    instance = "t" + runtime.name.removeprefix("visaged-test-").replace("_", "x")
    file.write_text(
        f'instance = "{instance}"\n'
        f'[paths]\nruntime = "{runtime}"\nstate = "{runtime}/state"\ncache = "{cache}"\n'
        f"[metrics]\nport = {port}\n"
        f'[[camera]]\nname = "door"\nsource = "synthetic:pattern?width=160&height=120&fps={FPS}"\n'
    )
    return file


def write_prometheus_config(folder: Path, ports: list[int]) -> Path:
    file = folder / "prometheus.yml"
    targets = json.dumps([f"127.0.0.1:{port}" for port in ports])
    file.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        f"scrape_configs: [{{job_name: visaged, static_configs: [{{targets: {targets}}}]}}]\n"
    )
    return file


@contextlib.contextmanager
def running(line: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output, subprocess.Popen(line, stdout=output, stderr=output) as popen:
        try:
            yield popen
        finally:
            popen.terminate()
            popen.wait(30)
            print(log.read_text()[-4000:])


def query(port: int, expression: str) -> dict[str, float]:
    """Return label set -> value of an instant query; empty while Prometheus is not up."""
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            result = json.load(answer)["data"]["result"]
    except OSError:
        return {}
    return {",".join(sorted(row["metric"].values())): float(row["value"][1]) for row in result}


def wait_for(condition: Callable[[], object], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.25)


def another_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_prometheus_reads_the_daemon_and_its_books_balance(
    runtime: Path, cache: Path, free_port: int, tmp_path: Path
) -> None:
    prometheus, promtool = required("prometheus"), required("promtool")
    web = another_port()
    daemon_ports = [free_port, free_port + 1, free_port + 10]
    settings = write_prometheus_config(tmp_path, daemon_ports)
    daemon_line = [sys.executable, "-m", "visaged.daemon.lifecycle", "supervisor"]
    daemon_line += ["--config", str(write_daemon_config(runtime, cache, free_port))]
    prometheus_line = [prometheus, f"--config.file={settings}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    prometheus_line += [f"--web.listen-address=127.0.0.1:{web}", "--log.level=warn"]

    with running(daemon_line, tmp_path / "daemon.log"), running(prometheus_line, tmp_path / "prometheus.log"):
        wait_for(lambda: query(web, f"visaged_frames_published_total > {FPS * SECONDS}"))
        scrapes = "count_over_time(visaged_frames_captured_total[4s])"  # fewer, and the rate is a guess
        wait_for(lambda: min(query(web, scrapes).values(), default=0) >= 4)
        up = query(web, "up")
        camera_up = query(web, "visaged_camera_up")
        processes = query(web, "sum by (process) (visaged_process_up)")
        builds = query(web, "count by (process) (visaged_build_info)")
        per_second = query(web, "rate(visaged_frames_captured_total[4s])")
        age = query(web, "histogram_quantile(0.5, rate(visaged_frame_age_seconds_bucket[30s]))")
        scraped = [scrape(port) for port in daemon_ports]

    assert list(up.values()) == [1.0, 1.0, 1.0]
    assert list(camera_up.values()) == [1.0]
    assert processes == {"capture@door": 1.0, "infer": 1.0}
    assert builds == {"supervisor": 1.0, "infer": 1.0, "capture": 1.0}
    assert next(iter(per_second.values())) == pytest.approx(FPS, rel=0.3)
    assert 0 < next(iter(age.values())) < 0.5
    for text in scraped:
        check = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
        assert (check.returncode, check.stdout + check.stderr) == (0, "")
    assert books(scraped[1] + scraped[2]) == 0


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def books(text: str) -> float:
    """Return captured - published - dropped - in flight, less the frames between the two scrapes."""
    total = {"captured_total": 0.0, "published_total": 0.0, "dropped_total": 0.0, "in_flight": 0.0}
    for line in text.splitlines():
        for name in total:
            if line.startswith(f"visaged_frames_{name}{{"):
                total[name] += float(line.split()[-1])
    difference = total.pop("captured_total") - sum(total.values())
    return 0 if abs(difference) <= FPS else difference
