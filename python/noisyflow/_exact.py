"""Log-densities and their gradients to 50 digits, for the accuracy report.

Coordinates are floating-point numbers, so multiples of a power of two: squared
distances are exact in Python's integers. Exponents are integers, too, in units of
2^-240 nats; exponentials and the logarithm are mpmath's, with 60 digits.

Of the terms of a point those are left out that are below e^-cut of its largest, with
cut = 92.2 + log n: all together less than 1e-40 of the sum, for there are fewer than n.
Which they are is seen in float64, whose error in a squared distance, (d + 4) 2^-53 of
it, is allowed for. So a million centers cost no more than the near ones among them.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]

_DIGITS = 60
_EXPONENT_BITS = 240  # of a nat
_SHARE_BITS = 260  # of a posterior probability
_CUT = 92.2  # nats: 1e-40


class MissingMpmathError(ImportError):
    """mpmath is not installed."""


def mpmath() -> Any:
    """The module, or an error that says how to get it."""
    try:
        import mpmath as module
    except ModuleNotFoundError:
        raise MissingMpmathError(
            "the accuracy report compares with mpmath, which is not installed: "
            "pip install mpmath (torch brings it along, too)"
        ) from None
    return module


class Exact(NamedTuple):
    """Numbers to twice the digits of float64: each is `high` + `low`."""

    high: Floats
    low: Floats

    def error_of(self, found: Any) -> Floats:
        """|found - this|, as float64."""
        # The first difference is exact where the two agree to a factor of two.
        error: Floats = np.abs((np.asarray(found, np.float64) - self.high) - self.low)
        return error


class ExactGradients(NamedTuple):
    """Of sum_i grad_output[i] L(x_i), as `_reference.log_density_gradients`."""

    points: Exact
    centers: Exact
    weights: Exact
    noise_std: Exact


def _split(values: Any) -> Exact:
    """From an array of mpmath's numbers."""
    mpf = mpmath().mpf
    values = np.asarray(values, dtype=object)
    high = np.asarray(np.frompyfunc(float, 1, 1)(values), np.float64)
    low = np.frompyfunc(lambda value, head: float(value - mpf(head)), 2, 1)(
        values, high
    )
    return Exact(high, np.asarray(low, np.float64))


def _unit_of(*arrays: Floats) -> int:
    """The largest e for which every number is a multiple of 2^e."""
    least = 0
    for array in arrays:
        mantissa, exponent = np.frexp(array[array != 0].astype(np.float64))
        if not mantissa.size:
            continue
        whole = (mantissa * 2.0**53).astype(np.int64)
        zeros = np.log2((whole & -whole).astype(np.float64)).astype(np.int64)
        least = min(least, int((exponent - 53 + zeros).min()))
    return least


def _integers(array: Floats, unit: int) -> Any:
    """The array over 2^unit, in Python's integers."""
    mantissa, exponent = np.frexp(array.astype(np.float64))
    whole = (mantissa * 2.0**53).astype(np.int64).astype(object)
    shift = exponent.astype(np.int64) - 53 - unit
    up, down = np.maximum(shift, 0), np.maximum(-shift, 0)
    down = np.where(whole == 0, 0, down)  # else exact: 2^unit divides every number
    up = np.where(whole == 0, 0, up)
    return (whole << up.astype(object)) >> down.astype(object)


class _Terms(NamedTuple):
    """Of one point: terms over the largest, of the centers that count."""

    kept: NDArray[np.int64]
    differences: Any  # y_j - x, integers in `unit`
    squares: Any  # integers in unit^2
    kernels: list[Any]  # exp(-(E_j - E_top)), without the weight
    terms: list[Any]  # with it
    top: int  # E_top in 2^-240


def _terms(
    x: Floats, centers: Floats, noise_std: float, weights: Floats, unit: int
) -> _Terms:
    """The terms of point x (d,)."""
    mp = mpmath().mp
    n, d = centers.shape
    half = centers.astype(np.float64) / 2 - x.astype(np.float64) / 2  # no overflow
    # In noise_std before squared: neither the square nor the exponent underflows.
    exponents = 2 * np.einsum("jk,jk->j", half / noise_std, half / noise_std)
    with np.errstate(divide="ignore"):
        below = exponents - np.log(weights)
    doubt = 4 * (d + 8) * 2.0**-53
    cut = _CUT + math.log(n) + 1
    is_kept = below * (1 - doubt) - 1 <= below.min() * (1 + doubt) + cut
    # Without their weight: what a center's weight would do.
    is_kept |= exponents * (1 - doubt) - 1 <= exponents.min() * (1 + doubt) + cut
    kept = np.flatnonzero(is_kept)
    differences = _integers(centers[kept], unit) - _integers(x[None, :], unit)
    squares = (differences * differences).sum(axis=1)
    # 1 / (2 noise_std^2) in units of 2^-240 nats per 2^(2 unit), to 300 bits.
    factor = Fraction(2) ** (2 * unit + _EXPONENT_BITS) / (2 * Fraction(noise_std) ** 2)
    scale_bits = 300 - math.floor(math.log2(factor.numerator)) + math.floor(
        math.log2(factor.denominator)
    )
    scale = math.floor(factor * Fraction(2) ** scale_bits)
    exact = (
        (squares * scale) >> scale_bits
        if scale_bits >= 0
        else (squares * scale) << -scale_bits
    )
    top = exact[int(below[kept].argmin())]
    kernels = [mp.exp(mp.ldexp(mp.mpf(top - e), -_EXPONENT_BITS)) for e in exact]
    terms = [
        k * mp.mpf(float(w)) for k, w in zip(kernels, weights[kept], strict=True)
    ]
    return _Terms(kept, differences, squares, kernels, terms, top)


def exact_log_density(
    points: Floats,
    centers: Floats,
    noise_std: float,
    weights: Floats | None,
    grad_output: Floats | None = None,
) -> tuple[Exact, ExactGradients | None]:
    """log sum_j w_j N(x_i; y_j, noise_std^2 I) of the numbers given, and gradients.

    points (m, d), centers (n, d), weights (n,) or 1/n, grad_output (m,) where gradients
    are wanted; any floating-point type, taken as exact.
    """
    mp = mpmath().mp
    with mp.workdps(_DIGITS):
        (m, d), n = points.shape, len(centers)
        w = np.ones(n) if weights is None else weights.astype(np.float64)
        total = mp.mpf(n) if weights is None else mp.mpf(1)
        unit = _unit_of(points, centers)
        variance = mp.mpf(noise_std) ** 2
        constant = mp.log(2 * mp.pi * variance) * d / 2 + mp.log(total)
        values = []
        sums = None if grad_output is None else _GradientSums(m, n, d)
        for i in range(m):
            found = _terms(points[i], centers, noise_std, w, unit)
            mass = mp.fsum(found.terms)
            top = mp.ldexp(mp.mpf(found.top), -_EXPONENT_BITS)
            values.append(mp.log(mass) - top - constant)
            if sums is not None and grad_output is not None:
                sums.add(i, found, mass, float(grad_output[i]), total)
        if sums is None:
            return _split(values), None
        return _split(values), sums.result(noise_std, unit, grad_output)


class _GradientSums:
    """Sums over pairs, as integers in units of 2^-260 and of the coordinates."""

    def __init__(self, m: int, n: int, d: int) -> None:
        self.d = d
        self.points = np.zeros((m, d), dtype=object)
        self.centers = np.zeros((n, d), dtype=object)
        self.weights = np.array([mpmath().mpf(0)] * n, dtype=object)
        self.squares = 0

    def add(
        self, i: int, found: _Terms, mass: Any, output: float, total: Any
    ) -> None:
        mp = mpmath().mp
        g = mp.mpf(output)
        shares = np.array(
            [int(mp.ldexp(g * t / mass, _SHARE_BITS)) for t in found.terms],
            dtype=object,
        )
        along = shares[:, None] * found.differences
        self.points[i] = along.sum(axis=0)
        self.centers[found.kept] -= along
        self.squares += int((shares * found.squares).sum())
        for j, kernel in zip(found.kept, found.kernels, strict=True):
            self.weights[j] += g * kernel * total / mass

    def result(self, s: float, unit: int, grad_output: Any) -> ExactGradients:
        mp = mpmath().mp
        beta = mp.mpf(s)

        def scaled(integers: Any, power: int) -> Exact:
            factor = mp.ldexp(1 / beta**2, power - _SHARE_BITS)
            return _split(np.frompyfunc(lambda v: factor * mp.mpf(v), 1, 1)(integers))

        squared = mp.ldexp(mp.mpf(self.squares), 2 * unit - _SHARE_BITS) / beta**3
        outputs = mp.fsum(mp.mpf(float(g)) for g in grad_output)
        return ExactGradients(
            scaled(self.points, unit),
            scaled(self.centers, unit),
            _split(self.weights),
            _split(squared - outputs * self.d / beta),
        )
