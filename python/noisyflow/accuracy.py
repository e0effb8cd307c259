"""The accuracy report: errors against 50 digits, on the machine at hand.

`noisyflow check --accuracy` prints it, bench/accuracy.py keeps it in docs/numerics.md,
tests/test_accuracy.py sees that no entry grows. What is compared are the values that
mpmath finds for the numbers as the kernels get them, rounded to their dtype
(`_exact.py`); so an entry is the kernels' own error and nothing else.
"""

from __future__ import annotations

import itertools
import math
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisyflow import _core, _device, _exact, mixture, prepared, runtime

Floats = NDArray[Any]

DTYPES = ("float32", "float64")
PATHS = ("direct", "skipping")
QUANTITIES = ("log-density", "gradient")
_BLOCKS, _POINT_BY_POINT = 2, 3  # of _core.Prepared32, as prepared.py numbers them


class Family(NamedTuple):
    """Cases of one kind; the table has a row for each.

    is_barred: data in [-1, 1]^d and noise_std >= 0.005, to which the float32 bar
    applies. is_relative: float32 errors of the log-density, too, are relative to
    max(1, |L|), which is large.
    """

    title: str
    is_barred: bool = False
    is_relative: bool = False


FAMILIES = {
    "usual": Family("[-1, 1]^d, d = 1 to 10, noise 0.005 to 1", is_barred=True),
    "clusters": Family("the same, clusters and ties", is_barred=True),
    "weights": Family("the same, weights down to 1e-30 and 0", is_barred=True),
    "wide": Family("the same, d = 16 to 784", is_barred=True),
    "widest": Family("the same, d = 1024 to 4096", is_barred=True),
    "million": Family("the same, a million centers", is_barred=True),
    "inside": Family("isolated queries inside [-1, 1]^d", is_relative=True),
    "noise": Family("noise 0.001, 3 and 10"),
    "offset": Family("data about 1000 and 1e6, noise 0.1 and 1"),
    "far": Family("queries 10 to 1e6 noise widths away", is_relative=True),
    "ratios": Family("float64 weights down to 1e-300"),
    "subnormal": Family("subnormal coordinates, the least noise_std", is_relative=True),
}

# The bars: relative to max(1, |L|) in float64, nats in float32 beyond the rounding of
# the result, half a unit in its last place. Gradients: see `errors`.
BARS = {
    ("float64", "log-density"): 1e-12,
    ("float64", "gradient"): 1e-12,
    ("float32", "log-density"): 1e-5,
    ("float32", "gradient"): 2e-5,
}


class Entry(NamedTuple):
    """What a largest error is of."""

    target: str
    dtype: str
    path: str
    quantity: str
    family: str

    @property
    def bar(self) -> float | None:
        """What the error must not exceed; None where nothing is promised."""
        is_held = self.dtype == "float64" or FAMILIES[self.family].is_barred
        return BARS[self.dtype, self.quantity] if is_held else None


@dataclass(frozen=True)
class Case:
    """One call, and those of its points that are compared with the truth."""

    family: str
    points: Floats
    centers: Floats
    noise_std: float
    weights: Floats | None = None
    rows: slice = field(default_factory=lambda: slice(None))
    has_gradients: bool = True

    @property
    def grad_output(self) -> Floats:
        """Of both signs and sizes, the same for every case of this many points."""
        values = np.random.default_rng(0).normal(size=len(self.points))
        return np.asarray(values, self.points.dtype)


@dataclass
class Report:
    """The largest error of every entry.

    Attributes
    ----------
    errors : dict
        By `Entry`; infinite where a result was not finite.
    num_cases : int
        For each dtype.
    seconds : float
    """

    errors: dict[Entry, float]
    num_cases: int
    seconds: float

    @property
    def broken(self) -> list[Entry]:
        """Entries beyond their bar."""
        return [e for e, error in self.errors.items() if e.bar and not error <= e.bar]

    def to_markdown(self) -> str:
        """A table for each dtype and quantity; ! behind what is beyond its bar."""
        parts = []
        for dtype, quantity in itertools.product(reversed(DTYPES), QUANTITIES):
            parts.append(self._table(dtype, quantity))
        return "\n\n".join(parts)

    def _table(self, dtype: str, quantity: str) -> str:
        chosen = {
            e: v
            for e, v in self.errors.items()
            if (e.dtype, e.quantity) == (dtype, quantity)
        }
        columns = list(dict.fromkeys((e.target, e.path) for e in chosen))
        lines = [
            f"*{quantity}, {dtype}*: {_unit(dtype, quantity)}",
            "",
            "| cases | " + " | ".join(f"{t} {p}" for t, p in columns) + " | bar |",
            "|---|" + "---|" * (len(columns) + 1),
        ]
        for name, family in FAMILIES.items():
            row = [e for e in chosen if e.family == name]
            if not row:
                continue
            cells = [
                _cell(chosen.get(Entry(t, dtype, p, quantity, name)), row[0].bar)
                for t, p in columns
            ]
            is_relative = family.is_relative and (dtype, quantity) == (
                "float32",
                "log-density",
            )
            title = family.title + (" (relative)" if is_relative else "")
            bar = f"{row[0].bar:.0e}" if row[0].bar else ""
            lines.append(f"| {title} | " + " | ".join([*cells, bar]) + " |")
        return "\n".join(lines)

    def __str__(self) -> str:
        """The table of log-densities in columns, and the verdict."""
        lines = []
        for part in self.to_markdown().split("\n\n"):
            rows = [line for line in part.splitlines() if line]
            lines += _aligned(rows)
        found = self.broken
        verdict = (
            f"all {len(self.errors)} entries within their bars"
            if not found
            else "NOT accurate: "
            + "; ".join(
                f"{e.quantity} {e.dtype} {e.target} {e.path}, {FAMILIES[e.family].title}:"
                f" {self.errors[e]:.2g} instead of {e.bar:.0e}"
                for e in found
            )
        )
        lines.append(
            f"{self.num_cases} cases of each dtype in {self.seconds:.0f} s: {verdict}"
        )
        return "\n".join(lines)


def _unit(dtype: str, quantity: str) -> str:
    if quantity == "gradient":
        return "in units of max(1 / noise_std, the largest)"
    if dtype == "float64":
        return "relative to max(1, |L|)"
    return "nats beyond the rounding of the result"


def _cell(error: float | None, bar: float | None) -> str:
    if error is None:
        return ""
    return f"{rounded_up(error):.1e}" + (" !" if bar and not error <= bar else "")


def _aligned(rows: list[str]) -> list[str]:
    """A markdown table in columns."""
    cells = [row.strip("| ").split(" | ") for row in rows if row.startswith("| ")]
    widths = [max(map(len, column)) for column in zip(*cells, strict=False)]
    lines = ["", rows[0].replace("*", "")]
    for row in cells:
        lines.append(
            "  ".join(
                f"{cell:<{width}}" if at == 0 else f"{cell:>{width}}"
                for at, (cell, width) in enumerate(zip(row, widths, strict=False))
            ).rstrip()
        )
    return lines


def rounded_up(error: float) -> float:
    """To two digits, never below."""
    if error == 0 or not math.isfinite(error):
        return error
    power = math.floor(math.log10(error)) - 1
    digits = math.ceil(error * 10.0**-power)
    return float(f"{digits}e{power}")


# -- the designed set ------------------------------------------------------------------


def _generator(*names: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(names).encode()))


def _drawn(
    family: str,
    dtype: str,
    centers: Floats,
    noise_std: float,
    m: int,
    *,
    weights: Floats | None = None,
    **options: Any,
) -> Case:
    """A case whose points are drawn from the mixture, at centers that have weight."""
    rng = _generator(family, dtype, centers.shape, noise_std, m)
    centers = centers.astype(dtype)
    if weights is not None:
        weights = (weights / weights.sum()).astype(dtype)
    own = rng.choice(len(centers), m, p=None if weights is None else _normed(weights))
    noise = noise_std * rng.standard_normal((m, centers.shape[1]))
    points = (centers[own] + noise).astype(dtype)
    return Case(family, points, centers, noise_std, weights, **options)


def _normed(weights: Floats) -> Floats:
    total: Floats = weights.astype(np.float64) / weights.astype(np.float64).sum()
    return total


def cases(dtype: str, *, is_full: bool = False) -> Iterator[Case]:
    """The designed set, the same on every machine; is_full adds to it."""
    for build in (_usual, _wide, _beyond, _edges):
        yield from build(dtype, is_full)
    if is_full:
        yield from _million(dtype)


def _usual(dtype: str, is_full: bool) -> Iterator[Case]:
    dims = (1, 2, 3, 5, 7, 10) if is_full else (1, 3, 10)
    sizes = (1, 2, 13, 511, 1500) if is_full else (1, 511)
    m = 24 if is_full else 8
    for d, n, noise_std in itertools.product(dims, sizes, (0.005, 0.05, 0.3, 1.0)):
        rng = _generator("usual", d, n, noise_std)
        yield _drawn("usual", dtype, rng.uniform(-1, 1, (n, d)), noise_std, m)
    for d, noise_std in itertools.product(dims, (0.005, 0.1, 1.0)):
        rng = _generator("clusters", d, noise_std)
        means = rng.uniform(-0.9, 0.9, (4, d))[rng.integers(0, 4, 300)]
        for width in (0.0, 1e-6, 0.02):  # 0: equal centers, ties all
            centers = means + width * rng.uniform(-1, 1, means.shape)
            yield _drawn("clusters", dtype, centers, noise_std, m)
        # Corners of a cube and its middle: as far from each as from the other.
        corners = rng.choice([-1.0, 1.0], (200, d))
        middle = np.zeros((1, d), dtype)
        yield Case("clusters", middle, corners.astype(dtype), noise_std)
        rng = _generator("weights", d, noise_std)
        weights = 10.0 ** -rng.uniform(0, 30, 300)
        weights[rng.random(300) < 0.2] = 0
        weights[0] = 1
        centers = rng.uniform(-1, 1, (300, d))
        yield _drawn("weights", dtype, centers, noise_std, m, weights=weights)


def _wide(dtype: str, is_full: bool) -> Iterator[Case]:
    m = 16 if is_full else 4
    for d in (16, 17, 20, 33, 64, 100, 256, 784) if is_full else (17, 64, 784):
        for noise_std in (0.005, 0.05, 0.3, 1.0):
            rng = _generator("wide", d, noise_std)
            centers = rng.uniform(-1, 1, (200 if d < 256 else 40, d))
            yield _drawn("wide", dtype, centers, noise_std, m)
    # Calls large enough for the expanded form; gradients of 6 points say enough.
    for d, noise_std in itertools.product((20, 64, 256), (0.3, 1.0, 2.0)):
        if d != 64 and not is_full:
            continue
        rng = _generator("expanded", d, noise_std)
        centers = rng.uniform(-1, 1, (1024, d))
        own = {"rows": slice(0, 6), "has_gradients": False}
        yield _drawn("wide", dtype, centers, noise_std, 256, **own)
    for d in (1024, 4096) if is_full else (4096,):
        for noise_std in (0.005, 0.3, 1.0):
            rng = _generator("widest", d, noise_std)
            centers = rng.uniform(-1, 1, (12, d))
            yield _drawn("widest", dtype, centers, noise_std, 6 if is_full else 3)


def _beyond(dtype: str, is_full: bool) -> Iterator[Case]:
    """Other noise, other places, other distances."""
    m = 16 if is_full else 6
    for d in (1, 2, 3, 10, 20, 100) if is_full else (1, 3, 20):
        for noise_std in (0.001, 3.0, 10.0):
            rng = _generator("noise", d, noise_std)
            centers = rng.uniform(-1, 1, (200, d))
            yield _drawn("noise", dtype, centers, noise_std, m)
        for offset, noise_std in itertools.product((1e3, 1e6), (0.1, 1.0)):
            rng = _generator("offset", d, offset, noise_std)
            centers = offset * rng.choice([-1, 1], d) + rng.uniform(-1, 1, (200, d))
            yield _drawn("offset", dtype, centers, noise_std, m)
        for noise_std in (0.005, 0.1):
            rng = _generator("inside", d, noise_std)
            centers, points = rng.uniform(-1, 1, (2, 60, d)).astype(dtype)
            yield Case("inside", points[:m], centers, noise_std)
        for widths, noise_std in itertools.product((10, 1e3, 1e6), (0.001, 1.0)):
            rng = _generator("far", d, widths, noise_std)
            centers = rng.uniform(-1, 1, (60, d)).astype(dtype)
            away = rng.standard_normal((m, d))
            away *= widths * noise_std / np.linalg.norm(away, axis=1, keepdims=True)
            points = (centers[rng.integers(0, 60, m)] + away).astype(dtype)
            yield Case("far", points, centers, noise_std)


def _edges(dtype: str, is_full: bool) -> Iterator[Case]:
    """Numbers at the ends of the dtype."""
    m = 16 if is_full else 6
    tiny, least = float(np.finfo(dtype).tiny), {"float32": 1e-15, "float64": 1e-140}
    for d in (1, 3, 20):
        rng = _generator("subnormal", d)
        unit = rng.uniform(-1, 1, (60, d))
        for spread, noise_std in (
            (tiny, 1.0),
            (tiny, least[dtype]),
            (least[dtype], least[dtype]),
            (1e4 * least[dtype], least[dtype]),
        ):
            yield _drawn("subnormal", dtype, spread * unit, noise_std, m)
        mixed = np.where(rng.random(unit.shape) < 0.5, tiny, 1) * unit
        yield _drawn("subnormal", dtype, mixed, 0.1, m)
        if dtype == "float64":
            weights = 10.0 ** -rng.uniform(0, 300, 60)
            weights[0] = 1
            for noise_std in (0.005, 0.3):
                yield _drawn("ratios", dtype, unit, noise_std, m, weights=weights)
                # Drawn without them: beside centers that weigh next to nothing.
                drawn = _drawn("ratios", dtype, unit, noise_std, m)
                w = (weights / weights.sum()).astype(dtype)
                yield Case("ratios", drawn.points, drawn.centers, noise_std, w)


def _million(dtype: str) -> Iterator[Case]:
    own = {"has_gradients": False}
    for d, noise_std in ((1, 0.005), (3, 0.005), (3, 0.05), (10, 0.05)):
        rng = _generator("million", d)
        centers = rng.uniform(-1, 1, (10**6, d))
        yield _drawn("million", dtype, centers, noise_std, 3, **own)
    # All in reach of each other, as far as 30,000 different ones can be.
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 31)] * 3), -1).reshape(-1, 3)
    centers = np.resize(grid, (10**6, 3))
    yield _drawn("million", dtype, centers, 1.0, 2, **own)


# -- the measurement -------------------------------------------------------------------

# A log-density and gradients of it, of a case.
_Results = tuple[Floats, tuple[Any, ...] | None]


def _on_cpu(case: Case, path: str) -> Iterator[_Results]:
    """What the kernels of the CPU target in use give."""
    (x, y, w, threads) = (case.points, case.centers, case.weights, runtime.num_threads())
    lost = prepared.checked_max_lost_mass(None, y.dtype)
    if path == "direct":
        lost = 0.0
        values = [_core.log_density(x, y, case.noise_std, w, threads)]
    else:
        kind = _core.Prepared32 if y.itemsize == 4 else _core.Prepared64
        tree = kind(y, case.noise_std, w, lost, True, threads)
        values = [
            np.asarray(tree.log_density(x, way, threads)[0])
            for way in (_BLOCKS, _POINT_BY_POINT)
        ]
    gradients = None
    if case.has_gradients:
        gradients = _core.log_density_gradients(
            *(x, y, case.noise_std, w, values[0], case.grad_output),
            *(True, True, True, True, lost, threads),
        )
    yield values[0], gradients
    for value in values[1:]:
        yield value, None


def _on_gpu(case: Case, path: str, device: Any) -> Iterator[_Results]:
    """What the kernels of a GPU give."""
    import torch

    arrays = (case.points, case.centers, case.weights, case.grad_output)
    (x, y, w, g) = (a if a is None else torch.as_tensor(a).to(device) for a in arrays)
    lost = 0.0 if path == "direct" else None
    value = mixture.mixture_log_density(
        x, y, case.noise_std, weights=w, max_lost_mass=lost
    )
    gradients = None
    if case.has_gradients and path == "direct":  # every pair on either path
        found = _device.gradients(
            *(x, y, case.noise_std, w, value, g), *(True, True, True, True)
        )
        gradients = tuple(part.cpu().numpy() for part in found)
    yield value.cpu().numpy(), gradients


def errors(
    case: Case, found: _Results, truth: tuple[_exact.Exact, Any]
) -> dict[str, float]:
    """The largest error of each quantity.

    The log-density's is in nats in float32, beyond half a unit in the last place of the
    result, and relative to max(1, |L|) in float64 and where the family says so. The
    gradients' is in units of 1 / noise_std (of 1 and of d / noise_std times the sum of
    |grad_output| for weights and noise_std) or of the largest, whichever is more.
    """
    value, gradients = found
    exact, exact_gradients = truth
    largest = np.abs(exact.high)
    error = exact.error_of(value[case.rows])
    if case.points.dtype == np.float64 or FAMILIES[case.family].is_relative:
        error = error / np.maximum(1, largest)
    else:
        half_unit = np.spacing(largest.astype(np.float32)).astype(np.float64) / 2
        error = np.where(np.isfinite(error), np.maximum(error - half_unit, 0), error)
    result = {"log-density": _largest(error)}
    if gradients is None or exact_gradients is None:
        return result
    outputs = float(np.abs(case.grad_output.astype(np.float64)).sum())
    scale, d = 1 / case.noise_std, case.points.shape[1]
    units = (scale, scale, 1.0, outputs * d * scale)
    worst = 0.0
    for ours, part, unit in zip(gradients, exact_gradients, units, strict=True):
        if not np.isfinite(part.high).all():
            continue  # beyond float64: what the kernels saturate
        size = max(unit, float(np.abs(part.high).max()))
        worst = max(worst, _largest(part.error_of(ours) / size))
    result["gradient"] = worst
    return result


def _largest(error: Any) -> float:
    error = np.asarray(error)
    return float(np.where(np.isfinite(error), error, np.inf).max(initial=0))


def _gpus() -> list[str]:
    """GPUs whose kernels can run."""
    module = _device.extension()
    if module is None or not module.driver_version():
        return []
    names = []
    for index in range(module.device_count()):
        try:
            runtime.checked_device(f"cuda:{index}")
            _device.require(index)
        except (RuntimeError, ValueError):
            continue  # `noisyflow check` says why
        names.append(f"cuda:{index}")
    return names


def measure(
    *,
    is_full: bool = False,
    targets: list[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Errors of every CPU target and GPU, dtype and path, over the designed set.

    Parameters
    ----------
    is_full : bool
        Minutes instead of seconds: more sizes and dimensions, and a million centers.
    targets : list of str, optional
        Of `runtime.available_cpu_targets()` and "cuda:0", ..; all by default.
    progress : callable, optional
        Told of every family as it is done.

    Returns
    -------
    Report

    Raises
    ------
    ImportError
        If mpmath is not installed.

    Notes
    -----
    The CPU target in use is put back to the automatic choice.
    """
    _exact.mpmath()
    start = time.perf_counter()
    if targets is None:
        targets = runtime.available_cpu_targets() + _gpus()
    worst: dict[Entry, float] = {}
    counts = dict.fromkeys(DTYPES, 0)
    try:
        for dtype in DTYPES:
            last = ""
            for case in cases(dtype, is_full=is_full):
                if progress and case.family != last:
                    progress(f"{dtype}: {FAMILIES[case.family].title}")
                last = case.family
                counts[dtype] += 1
                for entry, error in _measure_case(case, targets):
                    worst[entry] = max(worst.get(entry, 0.0), error)
    finally:
        runtime.set_cpu_target(None)
    return Report(worst, counts["float64"], time.perf_counter() - start)


def _measure_case(case: Case, targets: list[str]) -> Iterator[tuple[Entry, float]]:
    truth = _exact.exact_log_density(
        *(case.points[case.rows], case.centers, case.noise_std, case.weights),
        case.grad_output if case.has_gradients else None,
    )
    for target, path in itertools.product(targets, PATHS):
        if target.startswith("cuda"):
            results = _on_gpu(case, path, target)
        else:
            runtime.set_cpu_target(target)
            results = _on_cpu(case, path)
        for found in results:
            for quantity, error in errors(case, found, truth).items():
                dtype = str(case.points.dtype)
                yield Entry(target, dtype, path, quantity, case.family), error
