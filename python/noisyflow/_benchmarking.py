"""Check, then warm up, then time: contestants take turns, medians and spread."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from noisyflow import _machine, _reference

Array = NDArray[Any]

_CLUSTERS = 32

PEERS = ("numpy", "scipy", "torch", "jax", "pykeops", "scikit-learn", "numba")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    versions = {}
    for package in ("noisyflow", *PEERS):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _machine.cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }


def use_cpus(threads: int) -> None:
    """Confines this process to `threads` CPUs; call it before peers are imported.

    Thread pools count CPUs when they start, and not all of them can be told otherwise.
    """
    for name in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
        os.environ[f"{name}_NUM_THREADS"] = str(threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, _machine.cpus()[-threads:])


def data(kind: str, n: int, d: int, seed: int) -> Array:
    """Points on [-1, 1]^d, all over it or in 32 clusters near corners; or normal."""
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        return rng.uniform(-1, 1, (n, d))
    if kind == "gaussian":
        return rng.standard_normal((n, d))
    layout = np.random.default_rng(12345 + d)
    corners = layout.choice([-1.0, 1.0], (_CLUSTERS, d))
    means = corners * (1 - 0.15 * layout.uniform(0, 1, (_CLUSTERS, d)))
    own = rng.integers(0, _CLUSTERS, n)
    return np.clip(means[own] + 0.02 * rng.standard_normal((n, d)), -1, 1)


def log_density(points: Array, centers: Array, noise_std: float) -> NDArray[np.float64]:
    """The specification, point by point: differences of all pairs need much memory."""
    rows = [points[i : i + 1] for i in range(len(points))]
    return np.concatenate(
        [_reference.mixture_log_density(row, centers, noise_std) for row in rows]
    )


def constant(n: int, d: int, noise_std: float) -> float:
    """What a log-sum of exponents lacks to be a log-density."""
    return -math.log(n) - 0.5 * d * math.log(2 * math.pi * noise_std**2)


def error_against(result: Array, exact: Array) -> float:
    """Largest absolute error; infinite where the result is not finite."""
    error = np.abs(np.asarray(result).astype(np.float64) - exact)
    return float(np.where(np.isfinite(error), error, np.inf).max(initial=0))


_clock = time.perf_counter


def set_clock(clock: Callable[[], float]) -> None:
    """What `seconds_of` reads; `time.perf_counter` unless this says otherwise."""
    global _clock
    _clock = clock


def seconds_of(call: Callable[[], Any]) -> float:
    start = _clock()
    call()
    return _clock() - start


def time_interleaved(
    contestants: dict[str, Callable[[], Any]], *, repeats: int, warmups: int = 2
) -> dict[str, dict[str, float]]:
    """Seconds of each contestant: median, best and worst of runs taken in turns.

    Taking turns spreads the drift of a shared machine over all of them.
    """
    for call in contestants.values():
        for _ in range(warmups):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, call in contestants.items():
            time.sleep(0.02)  # idle threads of the last one's pool stop spinning
            seconds[name].append(seconds_of(call))
    return {
        name: {
            "median": statistics.median(runs),
            "best": min(runs),
            "worst": max(runs),
        }
        for name, runs in seconds.items()
    }


def num_points(evaluate: Callable[[int], Callable[[], Any]], seconds: float) -> int:
    """How many points, a multiple of 64, a contestant evaluates in about so long.

    Parameters
    ----------
    evaluate : callable
        `evaluate(m)` gives what evaluates m points when it is called.
    seconds : float

    Returns
    -------
    int
        At most 2^20.
    """
    m = 1024
    while True:
        call = evaluate(m)
        call()  # compiles what depends on the shape
        taken = seconds_of(call)
        wanted = m * seconds / taken
        if taken > seconds / 8 or m >= 2**20:
            return int(min(max(wanted, 64), 2**20)) // 64 * 64
        m = int(min(2**20, 8 * m, wanted)) // 1024 * 1024 + 1024


def peak_bytes(call: Callable[[], Any]) -> int | None:
    """Resident memory that a call reaches beyond what was resident before it.

    The kernel's own high-water mark, reset before the call, freed pages returned to it
    first: so it sees what any library allocates. None where Linux does not allow that.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    before = _status_bytes("VmRSS")
    call()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


class Table:
    """Rows printed as they are measured, in columns or as a markdown table.

    Parameters
    ----------
    columns : sequence of (str, int)
        Names and widths.
    markdown : bool
    stream : TextIO, optional
        Standard output by default.
    """

    def __init__(
        self,
        columns: Sequence[tuple[str, int]],
        *,
        markdown: bool,
        stream: TextIO | None = None,
    ) -> None:
        self._columns = columns
        self._markdown = markdown
        self._stream = stream
        self.row(name for name, _ in columns)
        if markdown:
            self._print("|" + "---|" * len(columns))

    def row(self, cells: Iterable[str]) -> None:
        """Prints one row."""
        if self._markdown:
            self._print("| " + " | ".join(cells) + " |")
        else:
            widths = (width for _, width in self._columns)
            self._print(
                "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
            )

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)
