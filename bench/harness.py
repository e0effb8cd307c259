"""Check, then warm up, then time: contestants take turns, medians and spread."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("model name", "cpu family", "model\t", "stepping")):
                model += f" {line.split(':')[1].strip()}"
            if not line:
                break
    versions = {}
    for package in ("noisyflow", "numpy", "torch", "pykeops", "scipy", "scikit-learn"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": model.strip(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }


def error_against(result: np.ndarray, exact: np.ndarray) -> float:
    """Largest absolute error; infinite where the result is not finite."""
    error = np.abs(result.astype(np.float64) - exact)
    return float(np.where(np.isfinite(error), error, np.inf).max(initial=0))


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
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "median": statistics.median(runs),
            "best": min(runs),
            "worst": max(runs),
        }
        for name, runs in seconds.items()
    }


def write_json(path: str | None, record: dict[str, Any]) -> None:
    if path:
        Path(path).write_text(json.dumps(record, indent=2) + "\n")
