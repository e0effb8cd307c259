"""noisyflow beside other packages on this machine, in one run: `noisyflow bench`.

First every contestant's log-densities are compared with the formula in float64, and
what is wrong is not timed. Then all are timed in turns on the same data and threads,
each at the best of its settings. The time to 0.01 nats is that of an entropy estimate:
ours, or plain draws around the centers with the contestant's log-density.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import io
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import (
    _benchmarking,
    _machine,
    _peers,
    entropy,
    mixture_log_density,
    runtime,
)
from noisyflow._peers import Contestant

Array = NDArray[Any]

OURS = "noisyflow"
# Nats that a log-density may be off before it is called wrong, and the error wanted of
# an entropy.
ALLOWED_ERROR = 1e-3
TARGET = 0.01
_NUM_CHECKED = 256
_PILOT = 1024  # centers, two draws each: the variance of plain draws to some percent


@dataclass(frozen=True)
class Case:
    """A mixture: `n` centers in `d` dimensions, and the noise around them.

    Parameters
    ----------
    kind : str
        `clustered`: in 32 clusters near corners of [-1, 1]^d, as the units of a trained
        layer are; `uniform`: all over it.
    n, d : int
    noise_std : float
    """

    kind: str
    n: int
    d: int
    noise_std: float

    def __str__(self) -> str:
        return f"{self.kind}, n = {self.n:,}, d = {self.d}, noise {self.noise_std:g}"

    def centers(self) -> Array:
        """The centers, (n, d), in float64; the same every time."""
        return _benchmarking.data(self.kind, self.n, self.d, seed=3)


CASES = (
    Case("clustered", 10_000, 3, 0.1),
    Case("clustered", 10_000, 10, 0.1),
    Case("uniform", 4_096, 5, 0.1),
)
MORE_CASES = (
    Case("clustered", 10_000, 64, 0.1),
    Case("clustered", 100_000, 3, 0.02),
    Case("uniform", 10_000, 2, 0.02),
    Case("uniform", 10_000, 10, 0.5),
    Case("uniform", 2_000, 784, 1.0),
)


@dataclass(frozen=True)
class Peer:
    """A contestant.

    Parameters
    ----------
    name : str
    makers : sequence of callable
        `maker(centers)` for each of its settings, the best of which is timed; as
        described in `noisyflow._peers`.
    modules : sequence of str
        What it needs beside NumPy and SciPy.
    packages : str
        What pip installs them from.
    """

    name: str
    makers: Sequence[Callable[[Array], Contestant]]
    modules: Sequence[str] = ()
    packages: str = ""

    def is_installed(self) -> bool:
        """Whether its modules are there; not whether they work."""
        return all(importlib.util.find_spec(name) is not None for name in self.modules)


def _default(centers: Array) -> Contestant:
    """This package as it is: what provably adds nothing is skipped."""
    return lambda points, noise_std: mixture_log_density(points, centers, noise_std)


def _every_pair(centers: Array) -> Contestant:
    """This package's kernel alone."""
    return lambda points, noise_std: mixture_log_density(
        points, centers, noise_std, max_lost_mass=0
    )


PEERS = (
    Peer(OURS, [_default]),
    Peer("noisyflow, every pair", [_every_pair]),
    Peer("NumPy and SciPy", [_peers.scipy_cdist]),
    Peer("torch", [_peers.torch_eager], ["torch"], "torch"),
    Peer(
        "torch.compile",
        [partial(_peers.torch_compile, chunk=chunk) for chunk in (64, 256, 1024)],
        ["torch"],
        "torch",
    ),
    Peer(
        "JAX",
        [partial(_peers.jax_direct, chunk=chunk) for chunk in (32, 64, 256)],
        ["jax"],
        "jax",
    ),
    Peer(
        "JAX, matrix product",
        [partial(_peers.jax_matmul, chunk=chunk) for chunk in (64, 256)],
        ["jax"],
        "jax",
    ),
    Peer("KeOps", [_peers.keops], ["pykeops", "torch"], "pykeops torch"),
    Peer(
        "scikit-learn",
        [partial(_peers.sklearn_tree, rtol=1e-6)],
        ["sklearn"],
        "scikit-learn",
    ),
)


@dataclass
class Row:
    """What was found of a contestant in a case.

    Attributes
    ----------
    peer, setting : str
        Its name, and with the setting that was the quickest.
    verdict : str
        `timed`; `wrong`, where the error is above `ALLOWED_ERROR`; `failed`, where it
        raised, with what it said in `problem`.
    error : float
        Largest difference from the formula in float64, nats; infinite where a result
        is not finite.
    points : int
        Evaluated in a call that was timed.
    seconds : dict
        Median, best and worst of the calls.
    pairs_per_second : float
        Of a point and a center, skipped ones included.
    peak_bytes : int or None
        What a call adds to the process's memory; None where Linux does not tell.
    entropy, entropy_error : float
        Nats, and its standard error; ours meets `TARGET`, others are from the points
        that were timed.
    seconds_to_target : float
        Until an entropy has a standard error of `TARGET`.
    """

    case: Case
    peer: str
    setting: str = ""
    verdict: str = "failed"
    problem: str = ""
    error: float = math.nan
    points: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    pairs_per_second: float = math.nan
    peak_bytes: int | None = None
    entropy: float = math.nan
    entropy_error: float = math.nan
    seconds_to_target: float = math.nan


@dataclass(frozen=True)
class PlainDraws:
    """What plain draws cost: noise around the centers in turn, and the mean.

    Parameters
    ----------
    within, total : float
        Variance of minus the log-density around a center, and over all.
    n : int
    """

    within: float
    total: float
    n: int

    def standard_error(self, num_draws: int) -> float:
        """Of an entropy from so many."""
        variance = self.within if num_draws >= self.n else self.total
        return math.sqrt(variance / num_draws)

    def needed(self) -> int:
        """The fewest whose standard error is `TARGET`."""
        several_each = math.ceil(self.within / TARGET**2)
        if several_each >= self.n:
            return several_each
        return max(1, min(self.n, math.ceil(self.total / TARGET**2)))


class _Guarded:
    """A call that keeps what it raises, and is not made again then."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.error: Exception | None = None
        self.result: Any = None

    def __call__(self) -> Any:
        if self.error is None:
            try:
                self.result = self._call()
            except Exception as error:  # whatever a package of others raises
                self.error = error
        return self.result


def measure(
    case: Case,
    peers: Sequence[Peer] = PEERS,
    *,
    dtype: str = "float32",
    seconds: float = 0.2,
    repeats: int = 5,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """One row per contestant: checked first, then timed in turns.

    Parameters
    ----------
    case : Case
    peers : sequence of Peer
        All installed.
    dtype : str
        `float32` or `float64`.
    seconds : float
        That a timed call is to take.
    repeats : int
        Calls of which the median is taken, after one that is not counted.
    tell : callable
        Told what is being done.

    Returns
    -------
    list of Row
        In the order of `peers`.
    """
    centers = case.centers().astype(dtype)
    rng = np.random.default_rng(0)

    def draw(m: int) -> Array:
        noise = rng.standard_normal((m, case.d))
        own = centers[np.arange(m) % case.n]
        return (own + case.noise_std * noise).astype(dtype)

    checked = draw(_NUM_CHECKED if case.d <= 64 else _NUM_CHECKED // 4)
    exact = _benchmarking.log_density(checked, centers, case.noise_std)
    plain = _plain_draws(case, centers)
    rows, calls = [], {}
    for peer in peers:
        tell(f"{case}: {peer.name}")
        row = Row(case, peer.name, setting=peer.name)
        rows.append(row)
        try:
            with _quiet():
                call = _prepare(row, peer, centers, (checked, exact), draw, seconds)
        except Exception as error:  # a peer that fails is a row, not the end
            row.problem = _first_line(error)
            continue
        if call is not None:
            calls[peer.name] = _Guarded(call)
    ours = _Guarded(lambda: _our_entropy(case, centers))
    draws = _Guarded(lambda: draw(_NUM_CHECKED * 64))
    tell(f"{case}: timing")
    with _quiet():
        for row in rows:
            if row.peer in calls:
                row.peak_bytes = _benchmarking.peak_bytes(calls[row.peer])
        timed = _benchmarking.time_interleaved(
            {**calls, "our entropy": ours, "draws": draws}, repeats=repeats, warmups=1
        )
    per_draw = timed["draws"]["median"] / (_NUM_CHECKED * 64)
    for row in rows:
        if row.peer not in calls:
            continue
        done = calls[row.peer]
        if done.error is not None:
            row.problem = _first_line(done.error)
            continue
        row.verdict = "timed"
        row.seconds = timed[row.peer]
        median = row.seconds["median"]
        row.pairs_per_second = row.points * case.n / median
        row.entropy = -float(np.mean(done.result, dtype=np.float64))
        row.entropy_error = plain.standard_error(row.points)
        row.seconds_to_target = plain.needed() * (median / row.points + per_draw)
        if row.peer == OURS and ours.error is None:
            row.entropy, row.entropy_error = ours.result
            row.seconds_to_target = timed["our entropy"]["median"]
    return rows


def _prepare(
    row: Row,
    peer: Peer,
    centers: Array,
    checked: tuple[Array, Array],
    draw: Callable[[int], Array],
    seconds: float,
) -> Callable[[], Array] | None:
    """What is to be timed; None where it is wrong. The row says which.

    `checked`: points and their exact log-densities.
    """
    case, (points, exact) = row.case, checked
    trial = draw(1024 if case.d <= 64 else 256)
    row.setting, contestant = _peers.at_best_setting(
        peer.name, peer.makers, centers, trial, case.noise_std
    )
    result = np.asarray(contestant(points, case.noise_std))
    if result.shape != exact.shape:
        raise ValueError(f"shape {result.shape} instead of {exact.shape}")
    row.error = _benchmarking.error_against(result, exact)
    if not row.error <= ALLOWED_ERROR:
        row.verdict = "wrong"
        return None
    row.points = _benchmarking.num_points(
        lambda m: partial(contestant, draw(m), case.noise_std), seconds
    )
    return partial(contestant, draw(row.points), case.noise_std)


def _plain_draws(case: Case, centers: Array) -> PlainDraws:
    """Their variances, from two draws at each of some centers."""
    rng = np.random.default_rng(11)
    chosen = centers[rng.permutation(case.n)[:_PILOT]].astype(np.float64)
    noise = rng.standard_normal((2, *chosen.shape))
    first, second = (
        -mixture_log_density(
            chosen + case.noise_std * some, centers.astype(np.float64), case.noise_std
        )
        for some in noise
    )
    within = float(((first - second) ** 2).mean() / 2)
    total = float(np.concatenate([first, second]).var())
    return PlainDraws(within, max(within, total), case.n)


def _our_entropy(case: Case, centers: Array) -> tuple[float, float]:
    """The estimate that is timed, and its standard error."""
    estimate = entropy(
        centers, case.noise_std, population=True, standard_error=TARGET, seed=1
    )
    return float(estimate.value), float(estimate.monte_carlo_error)


def run(
    cases: Sequence[Case],
    peers: Sequence[Peer] = PEERS,
    *,
    threads: int | None = None,
    clock: str = "wall",
    dtype: str = "float32",
    seconds: float = 0.2,
    repeats: int = 5,
    show: Callable[[str], None] = print,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measures all cases and shows a table of each as soon as it is there.

    Parameters
    ----------
    cases : sequence of Case
    peers : sequence of Peer
        Those that are not installed are named.
    threads : int, optional
        Of every contestant; the process is kept to so many CPUs meanwhile. By default
        `runtime.num_threads()`.
    clock : str
        `wall`, or `cpu` for one thread: without what other processes take of a machine
        that is not idle.
    dtype, seconds, repeats, tell
        As for `measure`.
    show : callable
        Takes what is to be printed.

    Returns
    -------
    dict
        The machine, the versions and all rows, as JSON knows them.
    """
    threads = checked_threads(threads, clock)
    present = [peer for peer in peers if peer.is_installed()]
    absent = {
        peer.name: f"pip install {peer.packages}"
        for peer in peers
        if peer not in present
    }
    record: dict[str, Any] = {
        "machine": _benchmarking.machine(),
        "target": runtime.cpu_target(),
        "threads": threads,
        "clock": clock,
        "dtype": dtype,
        "nats": TARGET,
        "absent": absent,
        "rows": [],
    }
    show(heading(record))
    with _confined(threads), _timed_by(clock):
        for case in cases:
            rows = measure(
                case, present, dtype=dtype, seconds=seconds, repeats=repeats, tell=tell
            )
            record["rows"] += [_finite(asdict(row)) for row in rows]
            show("\n" + table(rows))
    return record


def checked_threads(threads: int | None, clock: str = "wall") -> int:
    """How many threads all shall have.

    Raises
    ------
    ValueError
        If this process has not so many CPUs, or the clock cannot time so many.
    """
    cpus = len(_machine.cpus())
    if threads is None:
        threads = min(runtime.num_threads(), cpus)
    if clock == "cpu" and threads > 1:
        raise ValueError(
            f"clock cpu adds up all threads: it needs threads = 1, got {threads}"
        )
    if not 1 <= threads <= cpus:
        raise ValueError(
            f"threads must be from 1 to {cpus}, the CPUs of this process, got {threads}"
        )
    return threads


def chosen(names: Sequence[str]) -> list[Peer]:
    """This package and the peers of these names; all for no names.

    Raises
    ------
    ValueError
        If there is no such peer, or it is not installed.
    """
    known = {peer.name: peer for peer in PEERS}
    for name in names:
        if name not in known:
            raise ValueError(
                f"unknown peer {name!r}; known, to be separated by spaces: "
                f"{' '.join(map(shlex.quote, known))}"
            )
        if not known[name].is_installed():
            raise ValueError(
                f"{name} is not installed; run: pip install {known[name].packages}"
            )
    if not names:
        return list(PEERS)
    return [peer for peer in PEERS if peer.name in (OURS, *names)]


def check_out(out: Path) -> None:
    """Tries the folder that `save` will write to; one that is new is removed again.

    Raises
    ------
    RunError
        If it cannot be written to.
    ModuleNotFoundError
        If what draws the figure is not installed.
    """
    from noisyflow.runs import RunError

    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("no module named 'matplotlib'", name="matplotlib")
    new: list[Path] = []
    try:
        new = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror}") from error
    finally:
        for folder in new:  # the innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()


def heading(record: Mapping[str, Any]) -> str:
    """The machine, the versions, and what is not installed."""
    machine = dict(record["machine"])
    cpu, cores, python = (machine.pop(key) for key in ("cpu", "cores", "python"))
    versions = ", ".join(f"{name} {version}" for name, version in machine.items())
    lines = [
        f"{cpu}, {cores} CPUs",
        f"{record['threads']} thread(s), {record['target']}, {record['dtype']}, "
        f"{record['clock']} clock",
        f"Python {python}, {versions}",
    ]
    if record["absent"]:
        absent = "; ".join(f"{name} ({how})" for name, how in record["absent"].items())
        lines.append(f"not installed: {absent}")
    return "\n".join(lines)


_COLUMNS = (
    ("", 31),
    ("error, nats", 11),
    ("G pairs/s", 9),
    ("slower", 7),
    ("MiB", 6),
    ("h(T), nats", 17),
    (f"s to {TARGET:g} nats", 14),
    ("slower", 7),
)


def table(rows: Sequence[Row]) -> str:
    """The rows of one case in columns, "slower" being times the first row."""
    text = io.StringIO()
    text.write(f"{rows[0].case}\n")
    printed = _benchmarking.Table(_COLUMNS, markdown=False, stream=text)
    first = rows[0]
    for row in rows:
        if row.verdict == "timed":
            printed.row(
                [
                    row.setting,
                    f"{row.error:.0e}" if row.error else "0",
                    f"{row.pairs_per_second / 1e9:.3g}",
                    _times(first.pairs_per_second, row.pairs_per_second),
                    "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
                    f"{row.entropy:.3f} ± {row.entropy_error:.3f}",
                    f"{row.seconds_to_target:.2g}",
                    _times(row.seconds_to_target, first.seconds_to_target),
                ]
            )
        elif row.verdict == "wrong":
            text.write(f"{row.setting:>31}  {row.error:>11.0e}  wrong, not timed\n")
        else:
            text.write(f"{row.setting:>31}  failed: {row.problem}\n")
    return text.getvalue().rstrip()


def _times(larger: float, smaller: float) -> str:
    """A ratio; nothing where one of the two is not known."""
    ratio = larger / smaller
    return f"{ratio:.3g}" if math.isfinite(ratio) else ""


def save(record: Mapping[str, Any], out: Path) -> list[Path]:
    """Writes the figure and the record, each whole or not at all.

    Parameters
    ----------
    record : mapping
        As `run` returns it.
    out : Path
        Folder, created if needed.

    Returns
    -------
    list of Path
        `benchmark.png` and `benchmark.json`.
    """
    from noisyflow.runs import write_atomically

    out.mkdir(parents=True, exist_ok=True)
    files = {
        "benchmark.png": figure(record),
        "benchmark.json": (json.dumps(record, indent=2) + "\n").encode(),
    }
    for name, data in files.items():
        write_atomically(out / name, data)
    return [out / name for name in files]


def figure(record: Mapping[str, Any]) -> bytes:
    """Pairs per second, and seconds to the target, of all contestants, as a PNG."""
    from noisyflow import plotting

    rows = record["rows"]
    names = list(dict.fromkeys(row["peer"] for row in rows))
    by_case: dict[str, dict[str, Any]] = {}
    for row in rows:
        by_case.setdefault(str(Case(**row["case"])), {})[row["peer"]] = row
    problems = {}
    for name in names:
        found = [row for row in rows if row["peer"] == name]
        amiss = [row for row in found if row["verdict"] != "timed"]
        if amiss:
            dims = ", ".join(dict.fromkeys(str(row["case"]["d"]) for row in amiss))
            where = "" if len(amiss) == len(found) else f" at d = {dims}"
            problems[name] = amiss[0]["verdict"] + where
    height = 2 + 0.45 * len(names) + 0.3 * math.ceil(len(by_case) / 3)
    drawn, (left, right) = plotting.new_figure(13, height, columns=2)
    for axes, column, label in (
        (left, "pairs_per_second", "pairs of a point and a center per second"),
        (right, "seconds_to_target", f"seconds to ±{record['nats']:g} nats of entropy"),
    ):
        plotting.contestants(
            axes,
            names,
            {
                case: [
                    math.nan if of[name][column] is None else of[name][column]
                    for name in names
                ]
                for case, of in by_case.items()
            },
            label=label,
            problems=problems,
        )
    right.set_yticklabels([])
    return plotting.png(plotting.legend_above(drawn, [left, right], columns=3))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null, and the largest float."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else sys.float_info.max
    return value


@contextlib.contextmanager
def _confined(threads: int) -> Iterator[None]:
    """Keeps this process and all pools to so many CPUs, and lets go afterwards."""
    environment = dict(os.environ)
    has_affinity = hasattr(os, "sched_getaffinity")
    affinity = os.sched_getaffinity(0) if has_affinity else None
    before = runtime._chosen_num_threads()
    torch: Any = None
    if importlib.util.find_spec("torch") is not None:
        with contextlib.suppress(Exception):  # a broken one is a row of the table
            torch = importlib.import_module("torch")
    torch_threads = None if torch is None else torch.get_num_threads()
    try:
        _benchmarking.use_cpus(threads)
        runtime.set_num_threads(threads)
        if torch is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        runtime.set_num_threads(before)
        if affinity is not None:
            os.sched_setaffinity(0, affinity)
        if torch is not None and torch_threads is not None:
            torch.set_num_threads(torch_threads)


@contextlib.contextmanager
def _timed_by(clock: str) -> Iterator[None]:
    """The clock of all that is timed, then the usual one again."""
    if clock == "cpu":
        _benchmarking.set_clock(time.process_time)
    try:
        yield
    finally:
        _benchmarking.set_clock(time.perf_counter)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What other packages print is no part of the table."""
    with contextlib.redirect_stdout(sys.stderr or io.StringIO()):
        yield


def _first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:100]
