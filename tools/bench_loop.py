"""Bench the closed loop on a live daemon: flags, a round of learning, gates, promotion, swaps under load."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..daemon.camera import CameraConfig
from ..daemon.client import Subscriber
from ..daemon.control import ControlClient, Flag, Promote, Status
from ..pipelines.errors import VisagedError
from ..pipelines.learning.metrics import ACCURACY
from ..pipelines.loop.report import FUSED, Report, last_report
from ..pipelines.message import FaceFrame
from ..pipelines.model_store import ModelStore
from ..pipelines.releases.promotion import PromotionJournal
from ..pipelines.releases.release import FACTORY
from .bench_live import START_S, WARM_UP_S, wait_for_results
from .bench_site import EXPRESSIONS, Site, build_site
from .resources import tree_usage
from .tally import percentiles
from .temporary_daemon import TemporaryDaemon

CAMERA = "site"
N_EACH = 32, 50  # faces of each expression: to measure, and to flag
N_FLAGS, WRONG_EVERY = 60, 10
SEEN_FRAMES = 15  # a face has been there so long before anybody says that its emotion is wrong
N_SWAPS, N_FIRST_SWAPS = 100, 10
ASK_S = 0.5  # between two questions how a trial stands
AFTER_SWAP_S = 0.5  # what a swap has delayed is published by then
PATIENCE_S = 600.0
LEAST_GAIN, MOST_LOSS, MOST_SECONDS = 0.10, 0.02, 300.0
MOST_LATE, MOST_MEMORY = 1.25, 1.03
TABLES: dict[str, dict[str, object]] = {
    "tracker": {"return_within_s": 0},  # everybody is new; in fog all look a little alike
    "learning": {"enabled": True, "after_samples": N_FLAGS},
    # few faces and minutes; and most faces of three classes are to be answered otherwise than before
    "promotion": {
        "compared_share": 1.0,
        "least_tracks": 50,
        "shadow_minutes": 0,
        "canary_shares": [0.5, 1.0],
        "canary_minutes": 0,
        "least_agreement": 0.3,
        "max_psi": 2.0,
        "max_confidence_shift": 0.3,
        "gate_slowdown": 1.25,
    },
}


@dataclass(slots=True)
class Watch:
    """What the results say, taken in the order in which they come. Owned by one thread.

    `last` holds for each face the emotion that was published last, in which result, and its track.
    """

    site: Site
    daemon: TemporaryDaemon
    subscriber: Subscriber
    ages_ms: list[tuple[float, float]] = field(default_factory=list)  # monotonic s when published, age
    release: str = ""
    last: dict[int, tuple[str, FaceFrame, int]] = field(default_factory=dict)

    def until(self, is_enough: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Take results until it is enough.

        Raises:
            VisagedError: the daemon ended, or it is not enough within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not is_enough():
            if time.monotonic() > deadline:
                raise VisagedError(f"the loop came no further within {timeout_s:.0f} s")
            self.daemon.check()
            received = self.subscriber.receive(0.1)
            if received is not None and isinstance(received[0], FaceFrame):
                self._take(received[0])

    def for_cycle(self) -> None:
        """Take results until every face was there once more."""
        self.last.clear()
        end = time.monotonic() + self.site.seconds
        self.until(lambda: time.monotonic() >= end, 2 * self.site.seconds)

    def p99_ms(self, since_s: float, until_s: float) -> float:
        """Return the 99th percentile of the ages of what was published between two times."""
        return percentiles(age for at, age in self.ages_ms if since_s <= at < until_s)["p99"]

    def accuracy(self) -> dict[str, float]:
        """Return the share of the measured faces whose expression is right at last, in all and by class."""
        said = {face: emotion for face, (emotion, _, _) in self.last.items() if face < self.site.n_measured}
        right: dict[str, list[bool]] = {name: [] for name in EXPRESSIONS}
        for face, emotion in said.items():
            right[self.site.truths[face]].append(emotion == self.site.truths[face])
        shares = {name: round(float(np.mean(values)), 3) for name, values in right.items() if values}
        everybody = [value for values in right.values() for value in values]
        return {"all": round(float(np.mean(everybody)), 4), "faces": len(everybody), **shares}

    def _take(self, result: FaceFrame) -> None:
        self.release = result.release
        self.ages_ms.append((result.published_ns / 1e9, (result.published_ns - result.captured_ns) / 1e6))
        for face in result.faces:
            there = self.site.face_at(result.frame_seq, face.box)
            if there is None or not face.is_visible or not face.emotion.label:
                continue
            number, since = there
            if since >= SEEN_FRAMES and face.analysed_seq > result.frame_seq - since:
                self.last[number] = face.emotion.label, result, face.track


def bench_loop(ferplus: Path, *, cache: Path, wheels: Path | None, console: Console) -> dict[str, Any]:
    """Return what the loop gains, costs and how long it takes, on faces of the FER+ folder `ferplus`.

    Raises:
        VisagedError: a step failed, or came to no end.
    """
    with tempfile.TemporaryDirectory(prefix="visaged-site-") as folder:
        site = build_site(ferplus, Path(folder) / "site.mp4", N_EACH, ModelStore(cache, wheels), console)
        return _on(site, ferplus, cache, wheels, console)


def loop_rows(figures: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what was measured, the figure and its budget, ready to print."""
    before, after = figures["site"]["before"], figures["site"]["after"]
    yield "loop, accuracy on the site before / after", f"{before['all']:.1%} / {after['all']:.1%}", ""
    yield "loop, gain on the site", f"{100 * figures['gain']:+.1f} points", f"{100 * LEAST_GAIN:+g} points"
    for name in EXPRESSIONS:
        yield f"loop, recall of {name} before / after", f"{before[name]:.0%} / {after[name]:.0%}", ""
    for row in figures["base"]:
        change = row["after"] - row["before"]
        if row["metric"] == ACCURACY.name:
            bound = f"{100 * -MOST_LOSS:+g} points" if row["network"] == FUSED else ""
            yield f"loop, base hold-out, {row['network']}", f"{100 * change:+.1f} points", bound
    for stage, trial in figures["trials"].items():
        said = f"{trial['agreement']:.0%} of {trial['faces']}" if trial["faces"] else "nothing yet"
        yield f"loop, both say the same, {stage}", said, ""
        if trial["faces"]:
            shifts = f"{trial['psi']:.2f} / {trial['confidence_shift']:+.2f}"
            yield f"loop, PSI / shift of confidence, {stage}", shifts, ""
    took, late, swaps = figures["seconds"], figures["p99_ms"], figures["swaps"]
    yield "loop, last flag to live", f"{took['flag_to_live']:.0f} s", f"{MOST_SECONDS:g} s"
    for step in ("learning", "gates", "shadow_and_canary"):
        yield f"loop, of these {step.replace('_', ' ')}", f"{took[step]:.0f} s", ""
    yield "loop, p99 quiet / learning", f"{late['quiet']:.0f} / {late['learning']:.0f} ms", ""
    yield f"loop, p99 in {swaps['n']} swaps / quiet", f"{swaps['p99_ratio']} x", f"{MOST_LATE:g} x"
    yield "loop, memory after the last swaps / the first", f"{swaps['memory_ratio']} x", f"{MOST_MEMORY:g} x"
    frames = figures["frames"]
    dropped = ", ".join(f"{n} {reason}" for reason, n in frames["dropped"].items()) or "0"
    yield "loop, frames captured / published", f"{frames['captured']} / {frames['published']}", ""
    yield "loop, frames dropped", dropped, "0 swap"
    yield "loop, ledger", "balanced" if frames["balanced"] else "NOT balanced", "balanced"


def _on(site: Site, ferplus: Path, cache: Path, wheels: Path | None, console: Console) -> dict[str, Any]:
    """Return the figures on one site."""
    camera = CameraConfig(name=CAMERA, source=str(site.video), policy="live", loop=True, identity=False)
    with TemporaryDaemon([camera], cache=cache, wheels=wheels, tables=TABLES) as daemon:
        console.print("making the base memory")
        _run(daemon, "learn", "base", str(ferplus), "--jobs", "2")
        daemon.start()
        with Subscriber(daemon.endpoint, [CAMERA]) as subscriber:
            wait_for_results(daemon, subscriber, START_S)
            with ControlClient(daemon.runtime) as control:
                watch = Watch(site, daemon, subscriber)
                figures = _Loop(watch, control, daemon, ferplus, console).run()
            figures["lost"] = subscriber.n_lost
        code = daemon.stop()
        book = daemon.books()[CAMERA]
    balanced = book.captured == book.published + sum(book.dropped.values()) + book.in_flight
    figures["frames"] = {
        "captured": book.captured,
        "published": book.published,
        "dropped": {str(reason): n for reason, n in book.dropped.items() if n},
        "balanced": balanced,
        "exit": code,
    }
    return figures


class _Loop:
    """The steps of the bench in their order. Owned by `bench_loop`."""

    def __init__(
        self, watch: Watch, control: ControlClient, daemon: TemporaryDaemon, ferplus: Path, console: Console
    ) -> None:
        self._watch, self._control, self._daemon = watch, control, daemon
        self._ferplus, self._console = ferplus, console
        self._state = daemon.folder / "state"
        self.figures: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Go through all of it."""
        begun_s = time.monotonic()
        self._watch.until(lambda: time.monotonic() > begun_s + WARM_UP_S)
        quiet_s = time.monotonic()
        self._console.print("how it is before")
        self._watch.for_cycle()
        before, old = self._watch.accuracy(), self._watch.release
        flagged_s = self._flag()
        quiet = quiet_s, time.monotonic()
        report = self._learned()
        learned_s = time.monotonic()
        self._gate(report)
        gated_s = time.monotonic()
        live_s = self._promoted(report)
        self._console.print("how it is after")
        self._watch.for_cycle()
        after = self._watch.accuracy()
        self.figures |= {
            "site": {"before": before, "after": after},
            "gain": round(after["all"] - before["all"], 4),
            "base": [
                {
                    "network": e.network,
                    "metric": e.metric,
                    "before": e.before.value,
                    "after": e.after.value,
                    "faces": e.n_faces,
                }
                for e in report.evidence
                if e.part == "base"
            ],
            "counts": report.counts,
            "seconds": {
                "flag_to_live": round(live_s - flagged_s, 1),
                "learning": round(learned_s - flagged_s, 1),
                "gates": round(gated_s - learned_s, 1),
                "shadow_and_canary": round(live_s - gated_s, 1),
            },
            "p99_ms": {
                "quiet": round(self._watch.p99_ms(*quiet), 1),
                "learning": round(self._watch.p99_ms(flagged_s, learned_s), 1),
            },
        }
        self._swap(report.release, old)
        return self.figures

    def _flag(self) -> float:
        """Flag faces that the daemon has wrong, some of them wrongly; return when the last was accepted."""
        self._console.print(f"flagging {N_FLAGS} faces, {N_FLAGS // WRONG_EVERY} of them wrongly")
        done: set[int] = set()
        refused: dict[int, str] = {}

        def flag_some() -> bool:
            for face, (emotion, result, track) in list(self._watch.last.items()):
                truth = self._watch.site.truths[face]
                if face < self._watch.site.n_measured or face in done or emotion == truth:
                    continue
                is_wrong = len(done) % WRONG_EVERY == WRONG_EVERY - 1
                said = next(e for e in EXPRESSIONS if e not in (truth, emotion)) if is_wrong else truth
                flag = Flag(camera=CAMERA, track=track, seq=result.frame_seq, emotion=said)
                try:
                    self._control.request(flag, timeout_s=10)
                except VisagedError as error:  # as for a person: the look is gone; the next one will do
                    refused[face] = str(error)
                    del self._watch.last[face]
                    continue
                done.add(face)
                if len(done) == N_FLAGS:
                    return True
            return False

        self._watch.last.clear()
        self._watch.until(flag_some, 3 * self._watch.site.seconds)
        self.figures["refused_flags"] = refused
        return time.monotonic()

    def _learned(self) -> Report:
        self._console.print("learning, beside the live video")
        found: list[Report] = []

        def is_there() -> bool:
            report = last_report(self._state / "learning")
            return report is not None and not found.append(report)  # type: ignore[func-returns-value]

        self._watch.until(is_there)
        if not found[-1].release:
            raise VisagedError(f"nothing was learned: {found[-1].outcome}")
        return found[-1]

    def _gate(self, report: Report) -> None:
        self._console.print("gates")
        line = _line(self._daemon, "release", "gates", report.release, str(self._ferplus))
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as asking:
            self._watch.until(lambda: asking.poll() is not None)
            said = asking.stdout.read() if asking.stdout else ""
        self.figures["gates"] = said.splitlines()
        if asking.returncode:
            raise VisagedError(f"the gates refused what was learned:\n{said}")

    def _promoted(self, report: Report) -> float:
        """Promote through shadow and canary; return when the release answers for all."""
        self._console.print("shadow, canary")
        self._control.request(Promote(release=report.release), timeout_s=PATIENCE_S)
        journal, trials = PromotionJournal(self._state), self.figures.setdefault("trials", {})
        asked_s = 0.0

        def is_over() -> bool:
            nonlocal asked_s
            if time.monotonic() > asked_s + ASK_S:
                asked_s = time.monotonic()
                if trial := self._control.request(Status(), timeout_s=60)["promotion"]["trial"]:
                    trials[f"{trial['stage']} {trial['share']:.0%}"] = trial
            return journal.read().state_of(report.release) in ("probation", "rolled back")

        self._watch.until(is_over)
        if journal.read().state_of(report.release) == "rolled back":
            raise VisagedError(f"it was rolled back: {journal.read().history[-1].why}; {trials}")
        self._watch.until(lambda: self._watch.release.startswith(report.release))
        return time.monotonic()

    def _swap(self, new: str, old: str) -> None:
        """Exchange the two releases again and again under load."""
        self._console.print(f"{N_SWAPS} swaps under load")
        spans: list[tuple[float, float]] = []
        memory: list[int] = []
        for turn in range(N_SWAPS):
            name, shown = ((FACTORY, old), (new, new))[turn % 2]
            begun_s = time.monotonic()
            self._control.request(Promote(release=name, skip=("gates", "shadow", "canary")), timeout_s=60)
            self._watch.until(lambda shown=shown: self._watch.release.startswith(shown))  # type: ignore[misc]
            end_s = time.monotonic() + AFTER_SWAP_S
            self._watch.until(lambda end_s=end_s: time.monotonic() >= end_s)  # type: ignore[misc]
            spans.append((begun_s, end_s))
            memory.append(tree_usage(self._daemon.pid).pss_bytes)
        during = percentiles(
            age for at, age in self._watch.ages_ms if any(begun <= at < end for begun, end in spans)
        )
        after = self._watch.ages_ms[-1][0]
        self._watch.for_cycle()
        quiet_ms = self._watch.p99_ms(after, time.monotonic())
        first, last = (float(np.median(part)) for part in (memory[:N_FIRST_SWAPS], memory[-N_FIRST_SWAPS:]))
        self.figures["swaps"] = {
            "n": N_SWAPS,
            "p99_ms": round(during["p99"], 1),
            "p99_quiet_ms": round(quiet_ms, 1),
            "p99_ratio": round(during["p99"] / quiet_ms, 3),
            "memory_mb": [round(first / 1e6, 1), round(last / 1e6, 1)],
            "memory_ratio": round(last / first, 4),
            "seconds_each": round(float(np.median([end - begun for begun, end in spans])) - AFTER_SWAP_S, 2),
            "running": self._control.request(Status(), timeout_s=60)["release"]["running"],
        }


def _line(daemon: TemporaryDaemon, *words: str) -> list[str]:
    return [sys.executable, "-m", "visaged.tools.cli", *words, "--config", str(daemon.config_file)]


def _run(daemon: TemporaryDaemon, *words: str) -> None:
    done = subprocess.run(_line(daemon, *words), capture_output=True, text=True, check=False)
    if done.returncode:
        raise VisagedError(f"visaged {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
