"""Check, then warm up, then time: contestants take turns, medians and spread."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

PEERS = ("numpy", "scipy", "torch", "jax", "pykeops", "scikit-learn", "numba")

# What CMakeLists.txt compiles the kernels with.
_FLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
]
_TARGET_FLAGS = {
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"),
        "-mprefer-vector-width=512",
    ],
    "avx2": ["-mavx2", "-mfma"],
    "baseline": [],
    "native": ["-march=native"],
}


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
    for package in ("noisyflow", *PEERS):
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
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[-threads:])


def has_module(name: str) -> bool:
    """Whether a peer can be imported; says so if not."""
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a broken installation raises
        print(f"{name}: absent ({type(error).__name__}: {error})".splitlines()[0])
        return False
    return True


def compiled(source: str, target: str, *, library: bool = False) -> Path:
    """A C++ file of this folder as a program or library, for one target or "native".

    $CXX or g++; built once per content of its sources, in the temporary folder.
    """
    here = Path(__file__).parent
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        raise SystemExit(
            f"bench/{source} needs a C++ compiler: install g++ or set CXX to one"
        )
    command = [*compiler.split(), *_FLAGS, *_TARGET_FLAGS[target]]
    if library:
        command += ["-shared", "-fPIC"]
    headers = sorted((here.parent / "csrc").rglob("*.h"))
    content = hashlib.sha256(" ".join(command).encode())
    for path in (here / source, *headers):
        content.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"noisyflow-bench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise SystemExit(f"{folder} belongs to someone else")
    program = folder / f"{Path(source).stem}-{content.hexdigest()[:16]}"
    if not program.exists():
        # -w: the compiler warns of its own AVX-512 headers.
        built = program.with_suffix(f".{os.getpid()}")
        result = subprocess.run(
            [*command, "-w", str(here / source), "-o", str(built)],
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr}")
        built.rename(program)
    return program


def log_density(
    points: np.ndarray, centers: np.ndarray, noise_std: float
) -> np.ndarray:
    """The formula in float64 by direct differences, one dimension at a time."""
    points, centers = points.astype(np.float64), centers.astype(np.float64)
    (n, d) = centers.shape
    result = np.empty(len(points))
    columns = np.ascontiguousarray(centers.T)
    for i, point in enumerate(points):
        squares = np.zeros(n)
        for k in range(d):
            difference = columns[k] - point[k]
            difference *= difference
            squares += difference
        squares *= -0.5 / noise_std**2
        top = squares.max()
        result[i] = top + math.log(np.exp(squares - top).sum())
    return result + constant(n, d, noise_std)


def constant(n: int, d: int, noise_std: float) -> float:
    """What a log-sum of exponents lacks to be a log-density."""
    return -math.log(n) - 0.5 * d * math.log(2 * math.pi * noise_std**2)


def error_against(result: np.ndarray, exact: np.ndarray) -> float:
    """Largest absolute error; infinite where the result is not finite."""
    error = np.abs(np.asarray(result).astype(np.float64) - exact)
    return float(np.where(np.isfinite(error), error, np.inf).max(initial=0))


_clock = time.perf_counter


def use_clock(args: Any) -> None:
    """The clock of --clock; see add_timing_arguments."""
    global _clock
    if args.clock == "cpu" and args.threads > 1:
        raise SystemExit("--clock cpu adds up all threads: for one thread only")
    _clock = time.process_time if args.clock == "cpu" else time.perf_counter


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
    """Rows printed as they are measured, in columns or as a markdown table."""

    def __init__(self, columns: Sequence[tuple[str, int]], *, markdown: bool) -> None:
        self._columns = columns
        self._markdown = markdown
        if markdown:
            print("| " + " | ".join(name for name, _ in columns) + " |")
            print("|" + "---|" * len(columns), flush=True)
        else:
            print("  ".join(f"{name:>{width}}" for name, width in columns), flush=True)

    def row(self, cells: Iterable[str]) -> None:
        if self._markdown:
            print("| " + " | ".join(cells) + " |", flush=True)
        else:
            widths = (width for _, width in self._columns)
            print(
                "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)),
                flush=True,
            )


def add_timing_arguments(parser: Any) -> None:
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: leave out what other processes take of a machine that is not idle",
    )


def add_output_arguments(parser: Any) -> None:
    parser.add_argument("--markdown", action="store_true", help="print markdown tables")
    parser.add_argument("--json", help="write the record to this file")


def write_json(path: str | None, record: dict[str, Any]) -> None:
    if path:
        Path(path).write_text(json.dumps(record, indent=2) + "\n")
