"""What a command costs, with all that descends from it: CPU-seconds, wall seconds, memory of every process over time.

    run(command) -> this process adopts orphans -> /proc of every descendant, ten times a second -> Usage

Forkservers and Ray's daemons leave their parent, and Ray's own do not wait for their children, so `RUSAGE_CHILDREN` misses
them. Here this process is their "subreaper" (prctl): whoever loses its parent stays among its descendants. A process's last
tenth of a second is not seen; between two sizes of a corpus that cancels.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

EVERY = 0.1  # seconds between looks at /proc
TICKS = os.sysconf("SC_CLK_TCK")
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Usage:
    """What a command took: seconds, and what it wrote to its standard output."""

    cpu: float
    wall: float
    output: str


@dataclass
class Seen:
    """One process as it was seen: (seconds, resident bytes) over time, and its greatest PSS."""

    role: str
    samples: list[tuple[float, int]] = field(default_factory=list)
    pss: int = 0

    @property
    def peak(self) -> int:
        """Most resident bytes."""
        return max(resident for _, resident in self.samples)

    @property
    def seconds(self) -> float:
        """How long it was seen."""
        return self.samples[-1][0] - self.samples[0][0]

    @property
    def slope(self) -> float:
        """Bytes a second by least squares, without the first fifth, in which everything is loaded."""
        later = np.array(self.samples[len(self.samples) // 5 :], float)
        return float(np.polyfit(later[:, 0], later[:, 1], 1)[0]) if len(later) > 2 else 0.0


@dataclass(frozen=True)
class Watched:
    """Every process that lived for a while, and the whole command's wall seconds."""

    processes: list[Seen]
    wall: float


def run(command: list[str]) -> Usage:
    """Run to the end; RuntimeError with what it printed, if it failed."""
    _adopt()
    began = time.perf_counter()
    spent: dict[tuple[int, int], int] = {}
    with tempfile.TemporaryFile() as told:
        with subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT) as process:
            while process.poll() is None:
                _look(spent)
                time.sleep(EVERY)
        wall = time.perf_counter() - began
        told.seek(0)
        text = told.read().decode("utf-8", "replace")
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {text[-2000:]}")
    _orphans(spent)
    return Usage(sum(spent.values()) / TICKS, wall, text)


def watched(command: list[str], discard: Path) -> Watched:
    """Run to the end and watch the memory of every process; files that are finished in `discard` are emptied meanwhile.

    The output of a corpus of 20 GB would be half as large; nobody reads a committed shard again while the job runs.
    """
    _adopt()
    began, seen, looks = time.perf_counter(), dict[tuple[int, float], Seen](), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            now = time.perf_counter() - began
            for other in psutil.Process().children(recursive=True):
                try:
                    key = (other.pid, other.create_time())
                    if key not in seen:
                        seen[key] = Seen("driver" if other.pid == process.pid else _role(other))
                    seen[key].samples.append((now, other.memory_info().rss))
                    if looks % 20 == 0:
                        seen[key].pss = max(seen[key].pss, other.memory_full_info().pss)
                except psutil.Error:
                    continue  # it has just ended
            if looks % 20 == 0 and discard.is_dir():
                for file in discard.iterdir():
                    os.truncate(file, 0)
            looks += 1
            time.sleep(0.5)
    wall = time.perf_counter() - began
    _orphans({})
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return Watched([each for each in seen.values() if each.seconds > wall / 4], wall)


def machine() -> str:
    """Processor, cores, memory, system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    gigabytes = psutil.virtual_memory().total / 1e9
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {gigabytes:.0f} GB, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def _role(process: psutil.Process) -> str:
    """What a process is: a worker's child is forked from the forkserver, and has its command line."""
    command, parent = " ".join(process.cmdline()), process.parent()
    if "forkserver" in command:
        return "worker" if parent and "forkserver" in " ".join(parent.cmdline()) else "forkserver"
    return next((name for name in ("resource_tracker", "gcs_server", "raylet") if name in command), command[-40:])


def _adopt() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _look(spent: dict[tuple[int, int], int]) -> None:
    """Note the ticks of every descendant: (process, start) -> user + system."""
    parents, ticks = dict[int, int](), dict[int, tuple[int, int]]()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it has just ended
            parents[int(name)] = int(fields[1])
            ticks[int(name)] = (int(fields[19]), int(fields[11]) + int(fields[12]))
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    for pid in ours - {os.getpid()}:
        start, used = ticks[pid]
        spent[pid, start] = used


def _orphans(spent: dict[tuple[int, int], int]) -> None:
    """Wait for what the command has left behind (daemons that are about to end), a few seconds at most."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        _look(spent)
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            time.sleep(EVERY)
