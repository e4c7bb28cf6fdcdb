"""What Prometheus is told: names, labels, ledgers, ports."""

import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
from visaged.daemon.ledger import Ledger
from visaged.daemon.metrics import (
    SECONDS,
    CaptureMetrics,
    GatewayMetrics,
    InferMetrics,
    LearnMetrics,
    Metrics,
    MetricsConfig,
    SupervisorMetrics,
)
from visaged.pipelines.errors import ConfigError

LABELS = {
    "camera",
    "stage",
    "reason",
    "process",
    "member",
    "le",
    "version",
    "python",
    "source",
    "store",
    "state",
    "result",
}
ROOT = Path(__file__).parents[2]


def busy(metrics: Metrics) -> Metrics:
    """Return `metrics` after something has happened to each of them."""
    if isinstance(metrics, CaptureMetrics):
        metrics.camera_up.labels("door").set(1)
        metrics.reconnects.labels("door").inc()
        metrics.silences.labels("door").inc()
        metrics.capture_seconds.labels("door").observe(0.004)
    elif isinstance(metrics, InferMetrics):
        metrics.stage_seconds.labels("detect").observe(0.01)
        metrics.frame_age_seconds.labels("door").observe(0.03)
        metrics.batch_size.observe(3)
        metrics.faces.labels("door").inc(2)
        metrics.subscribers.set(1)
        metrics.flags.labels("user").inc()
        metrics.flags_dropped.labels("queue_full").inc()
        metrics.samples.labels("review").set(1)
        metrics.control_requests.inc()
        metrics.control_errors.labels("malformed").inc()
    elif isinstance(metrics, GatewayMetrics):
        metrics.refused.labels("revoked").inc()
    elif isinstance(metrics, LearnMetrics):
        metrics.rounds.labels("candidate").inc()
        metrics.promotions.labels("asked").inc()
    elif isinstance(metrics, SupervisorMetrics):
        metrics.process_up.labels("infer").set(1)
        metrics.restarts.labels("infer").inc()
    return metrics


def everything() -> list[Metrics]:
    one_camera = [CaptureMetrics("capture@door"), InferMetrics("infer")]
    return [busy(metrics) for metrics in (*one_camera, GatewayMetrics(), LearnMetrics(), SupervisorMetrics())]


def test_the_two_halves_of_a_ledger_are_exported_by_their_owners(tmp_path: Path) -> None:
    capture, infer = CaptureMetrics("capture@door"), InferMetrics("infer")

    with Ledger.open(tmp_path / "ledger-door") as ledger:
        capture.watch_ledger("door", ledger.capture_counts)
        infer.watch_ledger("door", ledger.infer_counts)
        for _ in range(5):
            ledger.count_captured()
        ledger.drop_at_capture("queue_full")
        ledger.publish()
        ledger.drop_at_infer("stale", 2)
        told_by_capture, told_by_infer = capture.text(), infer.text()

    assert 'visaged_frames_captured_total{camera="door"} 5.0' in told_by_capture
    assert 'visaged_frames_dropped_total{camera="door",reason="queue_full"} 1.0' in told_by_capture
    assert "frames_published" not in told_by_capture
    assert 'visaged_frames_published_total{camera="door"} 1.0' in told_by_infer
    assert 'visaged_frames_dropped_total{camera="door",reason="stale"} 2.0' in told_by_infer
    assert 'visaged_frames_in_flight{camera="door"} 1.0' in told_by_infer
    assert "frames_captured" not in told_by_infer


def test_a_forgotten_ledger_may_be_closed(tmp_path: Path) -> None:
    metrics = CaptureMetrics("capture@door")
    with Ledger.open(tmp_path / "ledger-door") as ledger:
        metrics.watch_ledger("door", ledger.capture_counts)
        metrics.forget_ledger("door")

    assert "visaged_frames" not in metrics.text()


def test_labels_are_only_things_of_which_there_are_few() -> None:
    text = "".join(metrics.text() for metrics in everything())

    names = {
        name for labels in re.findall(r"^\w+\{(.*?)\}", text, re.M) for name in re.findall(r"(\w+)=", labels)
    }
    assert names <= LABELS


def test_all_our_metrics_have_our_prefix_and_help() -> None:
    text = "".join(metrics.text() for metrics in everything())

    names = set(re.findall(r"^# TYPE (\w+) ", text, re.M))
    assert all(name.startswith(("visaged_", "process_")) for name in names), names
    assert names == set(re.findall(r"^# HELP (\w+) \S", text, re.M))


def test_buckets_fit_a_frame_of_33_ms() -> None:
    text = busy(InferMetrics("infer")).text()

    bounds = re.findall(r'stage_duration_seconds_bucket\{le="([^"]+)",stage="detect"\}', text)
    assert [float(bound) for bound in bounds] == [*SECONDS, float("inf")]
    assert {0.001, 0.033, 2.5} <= set(SECONDS)


def test_build_info_says_what_runs() -> None:
    assert re.search(
        r'visaged_build_info\{process="capture",python="3\.\d+\.\d+', CaptureMetrics("capture@x").text()
    )


@pytest.mark.parametrize("metrics", everything(), ids=lambda metrics: type(metrics).__name__)
def test_promtool_finds_nothing_to_complain_about(metrics: Metrics) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")

    check = subprocess.run(
        [promtool, "check", "metrics"], input=metrics.text(), capture_output=True, text=True
    )

    assert (check.returncode, check.stdout + check.stderr) == (0, "")


def test_a_port_is_served_and_given_back(free_port: int) -> None:
    config = MetricsConfig(port=free_port)

    with InferMetrics("infer") as metrics:
        port = metrics.serve(config, 1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    with InferMetrics("infer") as again:
        assert again.serve(config, 1) == port == free_port + 1

    assert "visaged_build_info" in text


def test_a_port_in_use_is_a_sentence_with_exit_code_78(free_port: int) -> None:
    with Metrics("a") as first, Metrics("b") as second:
        first.serve(MetricsConfig(port=free_port), 0)
        with pytest.raises(ConfigError, match=rf"{free_port}.*in use.*\[metrics\] port") as caught:
            second.serve(MetricsConfig(port=free_port), 0)

    assert caught.value.exit_code == 78


def test_an_address_of_another_machine_is_a_sentence(free_port: int) -> None:
    with Metrics("a") as metrics, pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        metrics.serve(MetricsConfig(port=free_port, address="192.0.2.1"), 0)


def test_port_zero_serves_nothing() -> None:
    with Metrics("a") as metrics:
        assert metrics.serve(MetricsConfig(port=0), 10) == 0


def test_the_operations_manual_lists_every_metric() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text()
    text = "".join(metrics.text() for metrics in everything())

    ours = set(re.findall(r"^# TYPE (visaged_\w+) ", text, re.M))
    assert {name for name in ours if f"`{name}`" not in manual} == set()
