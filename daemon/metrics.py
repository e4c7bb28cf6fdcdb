"""The door to Prometheus: one registry and one HTTP port per process.

Labels are only things of which there are few: camera, stage, reason, process, member. Never a person,
a track or a pid. The frame counters are read from the ledgers when Prometheus asks, so they cannot
disagree with them.
"""

import errno
import platform
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Protocol, Self

import prometheus_client as prometheus
from msgspec import Meta, Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..pipelines.errors import ConfigError
from .version import version

prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]

SECONDS = (.001, .002, .005, .010, .015, .020, .033, .050, .075, .100, .150, .250, .500, 1, 2.5)  # fmt: skip
"""Histogram buckets around a frame of 33 ms."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class MetricsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prometheus endpoints, one port per process."""

    port: Annotated[int, Meta(ge=0, le=65000)] = 9480
    """Port of the supervisor; infer has the next, learn the one after, cameras have +10, +11, ... in their
    order. 0: none."""
    address: str = "127.0.0.1"
    """Address to listen on. There is no encryption: leave it on the loopback or a trusted network."""


class Counts(Protocol):
    """What a process knows about the frames of a camera; None where another process owns the number."""

    @property
    def captured(self) -> int | None:
        """Frames captured."""

    @property
    def published(self) -> int | None:
        """Frames published."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """Frames dropped, by reason."""

    @property
    def in_flight(self) -> int | None:
        """Frames neither published nor dropped yet."""


class _Ledgers(Collector):
    """Exports ledger snapshots. The lock keeps a ledger from being closed while it is read."""

    def __init__(self) -> None:
        self._snapshots: dict[str, Callable[[], Counts]] = {}
        self._lock = threading.Lock()

    def add(self, camera: str, snapshot: Callable[[], Counts]) -> None:
        with self._lock:
            self._snapshots[camera] = snapshot

    def forget(self, camera: str) -> None:
        with self._lock:
            self._snapshots.pop(camera, None)

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            counts = {camera: snapshot() for camera, snapshot in self._snapshots.items()}
        return _families(counts)


def _families(counts_of: Mapping[str, Counts]) -> list[Metric]:
    label = ["camera"]
    captured = CounterMetricFamily("visaged_frames_captured", "Frames captured.", labels=label)
    published = CounterMetricFamily("visaged_frames_published", "Frames published.", labels=label)
    dropped = CounterMetricFamily(
        "visaged_frames_dropped",
        "Frames deliberately not published, by reason.",
        labels=["camera", "reason"],
    )
    in_flight = GaugeMetricFamily(
        "visaged_frames_in_flight", "Frames neither published nor dropped yet.", labels=label
    )
    for camera, counts in counts_of.items():
        for family, value in (
            (captured, counts.captured),
            (published, counts.published),
            (in_flight, counts.in_flight),
        ):
            if value is not None:
                family.add_metric([camera], value)
        for reason, value in counts.dropped.items():
            dropped.add_metric([camera, reason], value)
    return [family for family in (captured, published, dropped, in_flight) if family.samples]


class Metrics:
    """The metrics of one process. Its methods may be called from any thread of it."""

    def __init__(self, process: str) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._ledgers = _Ledgers()
        self._server: tuple[object, object] | None = None
        self.registry.register(self._ledgers)
        prometheus.ProcessCollector(registry=self.registry)
        build = prometheus.Gauge(
            "visaged_build_info",
            "Always 1; the labels say what is running.",
            ["version", "python", "process"],
            registry=self.registry,
        )
        build.labels(version(), platform.python_version(), process.partition("@")[0]).set(1)

    def watch_ledger(self, camera: str, snapshot: Callable[[], Counts]) -> None:
        """Export what `snapshot` returns about `camera` at every scrape."""
        self._ledgers.add(camera, snapshot)

    def forget_ledger(self, camera: str) -> None:
        """Export nothing about `camera` any more; its ledger may then be closed."""
        self._ledgers.forget(camera)

    def serve(self, config: MetricsConfig, offset: int) -> int:
        """Answer Prometheus on port `config.port + offset`; return the port, 0 when switched off.

        Raises:
            ConfigError: the port is in use, or the address is not one of this machine.
        """
        if config.port == 0:
            return 0
        port = config.port + offset
        try:
            server, thread = prometheus.start_http_server(port, config.address, self.registry)
        except OSError as error:
            why = "in use by another program" if error.errno == errno.EADDRINUSE else error.strerror
            raise ConfigError(
                f"cannot serve metrics on {config.address} port {port}: {why}; "
                f"set [metrics] port to another number, or to 0 for none"
            ) from error
        self._server = (server, thread)
        return port

    def close(self) -> None:
        """Stop answering; a second call does nothing."""
        if self._server is not None:
            server, thread = self._server
            self._server = None
            server.shutdown()  # type: ignore[attr-defined]
            server.server_close()  # type: ignore[attr-defined]
            thread.join()  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def text(self) -> str:
        """Return what a scrape would get."""
        return prometheus.generate_latest(self.registry).decode()


class CaptureMetrics(Metrics):
    """What a capture process counts besides its ledger."""

    def __init__(self, process: str) -> None:
        super().__init__(process)
        label, registry = ["camera"], self.registry
        self.camera_up = prometheus.Gauge(
            "visaged_camera_up", "1 while the camera yields frames.", label, registry=registry
        )
        self.reconnects = prometheus.Counter(
            "visaged_camera_reconnects_total", "Times the camera was opened again.", label, registry=registry
        )
        self.silences = prometheus.Counter(
            "visaged_camera_silences_total",
            "Times the camera was given up because it yielded nothing for too long.",
            label,
            registry=registry,
        )
        self.size_changes = prometheus.Counter(
            "visaged_camera_size_changes_total",
            "Times its pictures got another size.",
            label,
            registry=registry,
        )
        self.capture_seconds = prometheus.Histogram(
            "visaged_capture_duration_seconds",
            "Time from a complete frame to its descriptor sent, waits of policy replay included.",
            label,
            buckets=SECONDS,
            registry=registry,
        )


class InferMetrics(Metrics):
    """What the inference process counts besides its ledgers."""

    def __init__(self, process: str) -> None:
        super().__init__(process)
        registry = self.registry
        self.stage_seconds = prometheus.Histogram(
            "visaged_stage_duration_seconds",
            "Time of one stage for one frame.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.frame_age_seconds = prometheus.Histogram(
            "visaged_frame_age_seconds",
            "Time from capture to publication.",
            ["camera"],
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_size = prometheus.Histogram(
            "visaged_batch_size", "Faces per run of the ensemble.", buckets=BATCHES, registry=registry
        )
        self.engine_info = prometheus.Gauge(
            "visaged_engine_info",
            "Always 1; the labels say what runs each member.",
            ["member", "backend", "precision", "device"],
            registry=registry,
        )
        self.engine_fallback = prometheus.Gauge(
            "visaged_engine_fallback",
            "1 while ONNX Runtime stands in for a plan that is missing or cannot be loaded.",
            ["member"],
            registry=registry,
        )
        self.plan_builds = prometheus.Counter(
            "visaged_plan_builds_total", "Builds of missing plans, by result.", ["result"], registry=registry
        )
        self.swaps = prometheus.Counter(
            "visaged_swaps_total", "Times another ensemble took over between two batches.", registry=registry
        )
        self.promotion_stage = prometheus.Gauge(
            "visaged_promotion_stage",
            "1 for the stage that a release is in: shadow, canary or probation.",
            ["stage"],
            registry=registry,
        )
        self.trial_faces = prometheus.Counter(
            "visaged_trial_faces_total", "Faces shown to two releases to compare them.", registry=registry
        )
        self.trial_agreement = prometheus.Gauge(
            "visaged_trial_agreement",
            "Share of these of which both say the same emotion, in this stage.",
            registry=registry,
        )
        self.rollbacks = prometheus.Counter(
            "visaged_rollbacks_total", "Releases rolled back, by reason.", ["reason"], registry=registry
        )
        self.release_refused = prometheus.Gauge(
            "visaged_release_refused",
            "1 while the active release is damaged on disk and another one serves.",
            registry=registry,
        )
        self.faces = prometheus.Counter(
            "visaged_faces_total", "Faces published.", ["camera"], registry=registry
        )
        self.malformed = prometheus.Counter(
            "visaged_descriptors_malformed_total",
            "Messages on the socket of a camera that are no frame descriptors.",
            ["camera"],
            registry=registry,
        )
        self.subscribers = prometheus.Gauge(
            "visaged_subscribers",
            "Subscriptions held by clients; one that follows two cameras counts twice.",
            registry=registry,
        )
        self.flags = prometheus.Counter(
            "visaged_flags_total",
            "Faces stored or labelled, by what asked for it.",
            ["source"],
            registry=registry,
        )
        self.flags_dropped = prometheus.Counter(
            "visaged_flags_dropped_total",
            "Faces that the daemon picked itself and could not store, by reason.",
            ["reason"],
            registry=registry,
        )
        self.clock_step_seconds = prometheus.Gauge(
            "visaged_clock_step_seconds",
            "By how much the wall clock is ahead of the time that ages are counted by; 0: it is believed.",
            registry=registry,
        )
        self.results_missed = prometheus.Counter(
            "visaged_results_missed_total",
            "Results that a client read too slowly to get.",
            registry=registry,
        )
        self.store_failures = prometheus.Counter(
            "visaged_store_failures_total",
            "Times the gallery or the sample store could not be read or written.",
            ["store"],
            registry=registry,
        )
        for store in ("gallery", "samples"):
            self.store_failures.labels(store)
        self.samples = prometheus.Gauge(
            "visaged_samples",
            "Samples in the store, by what people said of them.",
            ["state"],
            registry=registry,
        )
        self.control_requests = prometheus.Counter(
            "visaged_control_requests_total", "Control requests answered.", registry=registry
        )
        self.control_errors = prometheus.Counter(
            "visaged_control_errors_total",
            "Control requests refused, by reason.",
            ["reason"],
            registry=registry,
        )

    def count_build(self, is_built: bool) -> None:
        """Count a build of missing plans by its result."""
        self.plan_builds.labels("done" if is_built else "failed").inc()


class GatewayMetrics(Metrics):
    """What the gateway to other machines counts."""

    def __init__(self, process: str = "gateway") -> None:
        super().__init__(process)
        registry = self.registry
        self.connections = prometheus.Counter(
            "visaged_remote_connections_total", "Connections from other machines.", registry=registry
        )
        self.requests = prometheus.Counter(
            "visaged_remote_requests_total", "Control requests from other machines.", registry=registry
        )
        self.refused = prometheus.Counter(
            "visaged_auth_refused_total",
            "Connections and requests from other machines refused, by reason.",
            ["reason"],
            registry=registry,
        )
        self.cuts = prometheus.Counter(
            "visaged_remote_cuts_total",
            "Times everybody on an endpoint was disconnected: one lost its right, or there were too many.",
            registry=registry,
        )
        self.subscriptions = prometheus.Gauge(
            "visaged_remote_subscriptions", "Subscriptions held from other machines.", registry=registry
        )


class LearnMetrics(Metrics):
    """What the learn process counts."""

    def __init__(self, process: str = "learn") -> None:
        super().__init__(process)
        registry = self.registry
        self.is_learning = prometheus.Gauge(
            "visaged_learning", "1 while a round of learning is under way and not paused.", registry=registry
        )
        self.step = prometheus.Gauge(
            "visaged_learning_step", "Step that the round of learning has reached.", registry=registry
        )
        self.rounds = prometheus.Counter(
            "visaged_learning_rounds_total", "Rounds of learning, by result.", ["result"], registry=registry
        )
        self.promotions = prometheus.Counter(
            "visaged_automatic_promotions_total",
            "Candidates that were brought a step further without a person, by result.",
            ["result"],
            registry=self.registry,
        )
        self.paused_seconds = prometheus.Counter(
            "visaged_learning_paused_seconds_total",
            "Time that learning waited because frames were late.",
            registry=registry,
        )


class SupervisorMetrics(Metrics):
    """What the supervisor counts."""

    def __init__(self, process: str = "supervisor") -> None:
        super().__init__(process)
        self.process_up = prometheus.Gauge(
            "visaged_process_up", "1 while the process runs.", ["process"], registry=self.registry
        )
        self.restarts = prometheus.Counter(
            "visaged_process_restarts_total",
            "Times a process was started again after it ended by itself.",
            ["process"],
            registry=self.registry,
        )
