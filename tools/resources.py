"""What processes cost: CPU seconds and memory over a whole process tree. The door to psutil."""

import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..pipelines.errors import VisagedError


@dataclass(frozen=True, slots=True)
class TreeUsage:
    """What a process and everything below it has used.

    `cpu_s` is user plus system time since each process started. `pss_bytes` counts a page shared by k
    processes as 1/k in each, so the sum is the memory really taken; `rss_bytes` counts it k times.
    """

    cpu_s: float
    pss_bytes: int
    rss_bytes: int
    n_processes: int


def tree_usage(pid: int) -> TreeUsage:
    """Return the usage of process `pid` and its descendants.

    Raises:
        VisagedError: there is no such process.
    """
    cpu_s, pss, rss, counted = 0.0, 0, 0, 0
    for process in _family(pid):
        try:
            times, memory = process.cpu_times(), process.memory_full_info()
        except psutil.Error:  # it ended between the listing and the question
            continue
        cpu_s += times.user + times.system
        pss, rss, counted = pss + int(memory.pss), rss + int(memory.rss), counted + 1
    return TreeUsage(cpu_s, pss, rss, counted)


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """What one process of the daemon holds: its proportional share of memory, open files, threads.

    `cpu_s` is its user plus system time since it started.
    """

    cpu_s: float
    pss_bytes: int
    n_fds: int
    n_threads: int


def process_usages(pid: int) -> dict[str, ProcessUsage]:
    """Return the usage of the daemon whose supervisor is `pid`, by the names of its processes.

    Raises:
        VisagedError: there is no such process.
    """
    found = {}
    for process in _family(pid):
        try:
            with process.oneshot():
                name = _name_of(process.cmdline(), process.pid)
                times, pss = process.cpu_times(), int(process.memory_full_info().pss)
                found[name] = ProcessUsage(
                    times.user + times.system, pss, process.num_fds(), process.num_threads()
                )
        except psutil.Error:  # it ended between the listing and the question
            continue
    return found


def _name_of(line: list[str], pid: int) -> str:
    """Return what a process is called in the daemon's table, as its command line says."""
    module = "visaged.daemon.lifecycle"
    return line[line.index(module) + 1] if module in line[:-1] else f"pid {pid}"


def _family(pid: int) -> list[psutil.Process]:
    """Return process `pid` and its descendants.

    Raises:
        VisagedError: there is no such process.
    """
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess as error:
        raise VisagedError(f"process {pid} has ended; nothing can be measured") from error


def load_average() -> float:
    """Return the machine's load over the last minute: runnable processes."""
    return float(psutil.getloadavg()[0])


def cpu_model() -> str:
    """Return the processor's name as the kernel knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()


def cores() -> int:
    """Return the number of cores this process may run on."""
    return len(psutil.Process().cpu_affinity())


def memory_bytes() -> int:
    """Return the machine's memory."""
    return int(psutil.virtual_memory().total)
