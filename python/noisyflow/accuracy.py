"""The accuracy report: errors against 50 digits, on the machine at hand.

`noisyflow check --accuracy` prints it, bench/accuracy.py keeps it in docs/numerics.md,
tests/test_accuracy.py sees that no entry grows. What is compared are the values that
mpmath finds (`_exact.py`) for the numbers as the kernels get them, rounded to their
dtype; so an entry is the kernels' own error and nothing else. `_accuracy_cases.py` has
the designed set.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisyflow import _core, _device, _exact, prepared, runtime
from noisyflow._accuracy_cases import FAMILIES, Case, cases

Floats = NDArray[Any]

DTYPES = ("float32", "float64")
PATHS = ("direct", "skipping")
QUANTITIES = ("log-density", "gradient")
_BLOCKS, _POINT_BY_POINT = 2, 3  # of _core.Prepared32, as prepared.py numbers them


# Relative to max(1, |L|), and in the units of gradients: see `errors`.
_FLOAT64_BAR, _FLOAT32_GRADIENT_BAR = 1e-12, 2e-5


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
        if self.dtype == "float64":  # far exponents are larger than their rounding
            is_far_gradient = (self.quantity, self.family) == ("gradient", "far")
            return None if is_far_gradient else _FLOAT64_BAR
        family = FAMILIES[self.family]
        if self.quantity == "log-density":
            return family.most_error
        has_bar = family.most_error is not None and not family.is_relative
        return _FLOAT32_GRADIENT_BAR if has_bar else None


@dataclasses.dataclass
class Report:
    """The largest error of every entry.

    Attributes
    ----------
    errors : dict
        By `Entry`; infinite where a result was not finite.
    num_cases : int
        Of all dtypes.
    seconds : float
    """

    errors: dict[Entry, float]
    num_cases: int
    seconds: float

    def _complaint(self, entry: Entry) -> str:
        where = f"{entry.quantity} {entry.dtype} {entry.target} {entry.path}"
        error = f"{self.errors[entry]:.2g} instead of {entry.bar:.2g}"
        return f"{where}, {FAMILIES[entry.family].title}: {error}"

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
            f"*{quantity}, {dtype}*: {unit_of(dtype, quantity)}",
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
            bar = f"{row[0].bar:.2g}" if row[0].bar else ""
            lines.append(f"| {title} | " + " | ".join([*cells, bar]) + " |")
        return "\n".join(lines)

    def __str__(self) -> str:
        """The table of log-densities in columns, and the verdict."""
        lines = []
        for part in self.to_markdown().split("\n\n"):
            rows = [line for line in part.splitlines() if line]
            if rows[0].startswith("|"):
                lines += _aligned(rows)
            else:
                lines += ["", rows[0].replace("*", "")]
        verdict = f"all {len(self.errors)} entries within their bars"
        if self.broken:
            verdict = "NOT accurate: " + "; ".join(map(self._complaint, self.broken))
        lines.append(f"{self.num_cases} cases in {self.seconds:.0f} s: {verdict}")
        return "\n".join(lines)


def unit_of(dtype: str, quantity: str) -> str:
    """What the errors of a table are in."""
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
    cells = [row[2:-2].split(" | ") for row in rows if row.startswith("| ")]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        lines.append(
            "  ".join(
                f"{cell:<{width}}" if at == 0 else f"{cell:>{width}}"
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
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


# A log-density and gradients of it, of a case.
_Results = tuple[Floats, tuple[Any, ...] | None]


def _on_cpu(case: Case, path: str) -> Iterator[_Results]:
    """What the kernels of the CPU target in use give."""
    (x, y, w) = (case.points, case.centers, case.weights)
    threads = runtime.num_threads()
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


def _on_gpu(case: Case, path: str, name: str) -> Iterator[_Results]:
    """What the kernels of a GPU give; gradients are of every pair on either path."""
    import torch

    device = runtime.checked_device(name)

    def uploaded(array: Any) -> Any:
        return None if array is None else torch.as_tensor(array, device=device)

    (x, y, w) = map(uploaded, (case.points, case.centers, case.weights))
    lost = prepared.checked_max_lost_mass(None, case.points.dtype)
    value = _device.log_density(
        x, y, case.noise_std, w, 0.0 if path == "direct" else lost
    )
    gradients = None
    if case.has_gradients and path == "direct":
        found = _device.gradients(
            *(x, y, case.noise_std, w, value, uploaded(case.grad_output)),
            *(True, True, True, True),
        )
        gradients = tuple(np.asarray(part.cpu()) for part in found)
    yield np.asarray(value.cpu()), gradients


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
    try:
        count = module.device_count()
    except RuntimeError:
        return []
    for name in (f"cuda:{index}" for index in range(count)):
        try:
            runtime.checked_device(name)  # with the kernels, too
        except (RuntimeError, ValueError):
            continue  # `noisyflow check` says why
        names.append(name)
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
        Told of every family as it begins.

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
    num_cases = 0
    try:
        for dtype in DTYPES:
            seen = set()
            for case in cases(dtype, is_full=is_full):
                if progress and case.family not in seen:
                    progress(f"{dtype}: {FAMILIES[case.family].title}")
                seen.add(case.family)
                num_cases += 1
                for entry, error in _measure_case(case, targets):
                    worst[entry] = max(worst.get(entry, 0.0), error)
    finally:
        runtime.set_cpu_target(None)
    return Report(worst, num_cases, time.perf_counter() - start)


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
