"""Alerts fire when they should, and rules and dashboard ask for nothing that the daemon does not export."""

import json
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from visaged.daemon.ledger import Ledger
from visaged.daemon.metrics import (
    CaptureMetrics,
    GatewayMetrics,
    InferMetrics,
    LearnMetrics,
    SupervisorMetrics,
)

from tests.conftest import skip_or_fail
from tests.systemd.monitoring.promql import (
    DASHBOARD,
    MONITORING,
    RULES,
    dashboard_queries,
    labels_in,
    metrics_in,
    rule_queries,
)

RULES_TEST = Path(__file__).with_name("visaged.rules.test.yml")
SAMPLES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
OF_PROMETHEUS = {"job", "instance"}  # labels that every scraped metric has
ALL_QUERIES = {**rule_queries(), **dashboard_queries()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Return the labels of every metric that a process of the daemon exports, and of Prometheus' own `up`."""
    capture, infer = CaptureMetrics("capture@door"), InferMetrics("infer")
    found: dict[str, set[str]] = {"up": set()}
    with Ledger.open(tmp_path_factory.mktemp("runtime") / "ledger-door") as ledger:
        capture.watch_ledger("door", ledger.capture_counts)
        infer.watch_ledger("door", ledger.infer_counts)
        for process in (capture, infer, GatewayMetrics(), LearnMetrics(), SupervisorMetrics()):
            declared = process.registry._names_to_collectors
            for family in process.registry.collect():
                labels = set(getattr(declared.get(family.name), "_labelnames", ()))
                labels.update(*(sample.labels for sample in family.samples))
                for ending in SAMPLES.get(family.type, ()):
                    found[family.name + ending] = labels | ({"le"} if ending == "_bucket" else set())
    return found


def run_promtool(*words: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        skip_or_fail("promtool", "NOT TESTED: the alert rules (no promtool; Debian: apt install prometheus)")
    done = subprocess.run([str(promtool), *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_sound() -> None:
    run_promtool("check", "rules", str(RULES))


def test_every_alert_fires_when_it_should_and_is_silent_when_all_is_well() -> None:
    run_promtool("test", "rules", str(RULES_TEST))


def test_every_alert_is_tried() -> None:
    tried = RULES_TEST.read_text()

    assert rule_queries().keys() == {
        name for name in rule_queries() if f'"{name}", alertstate="firing"' in tried
    }


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    text = RULES.read_text()

    for words in ("severity:", "summary:", "action:"):
        assert text.count(words) == len(rule_queries()), words


@pytest.mark.parametrize("name", ALL_QUERIES)
def test_a_query_names_metrics_and_labels_that_exist(name: str, exported: dict[str, set[str]]) -> None:
    query = ALL_QUERIES[name]
    metrics = metrics_in(query)

    assert metrics and metrics <= exported.keys(), f"{metrics - exported.keys()} in {query}"
    everything = set().union(*(exported[metric] for metric in metrics))
    for metric, labels in labels_in(query):
        known = exported[metric] if metric else everything
        assert labels <= known | OF_PROMETHEUS, f"{labels - known} in {query}"


@pytest.mark.parametrize(
    ("query", "metrics"),
    [
        ('sum by (le) (rate(a_bucket{x="b_total"}[5m])) > 0.1', {"a_bucket"}),
        ("a unless on (camera) b offset 1h", {"a", "b"}),
        ("rate(a_total[$__rate_interval]) / vector(1)", {"a_total"}),
    ],
)
def test_metrics_are_told_from_functions_labels_and_times(query: str, metrics: set[str]) -> None:
    assert metrics_in(query) == metrics


def test_panels_have_a_place_of_their_own() -> None:
    board = json.loads(DASHBOARD.read_text())
    cells = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in board["panels"]
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]

    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_rules_and_dashboard_are_in_the_package() -> None:
    systemd = MONITORING.parent
    settings = tomllib.loads((systemd.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["visaged.systemd"]

    assert {path for pattern in patterns for path in systemd.glob(pattern)} >= set(MONITORING.iterdir())
