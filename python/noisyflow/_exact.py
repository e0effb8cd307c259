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
_WEIGHT_BITS = 1100  # more than a float64 has behind the point
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


def _split(values: list[Any]) -> Exact:
    """From mpmath's numbers."""
    high = [float(value) for value in values]
    low = [float(v - mpmath().mpf(h)) for v, h in zip(values, high, strict=True)]
    return Exact(np.array(high), np.array(low))


def _scaled(values: Any, factor: Fraction, bits: int) -> Any:
    """Integers times a positive factor, of which `bits` bits are taken; floors."""
    size = factor.numerator.bit_length() - factor.denominator.bit_length()
    shift = bits - size
    integer = math.floor(factor * Fraction(2) ** shift)
    return (values * integer) >> shift if shift >= 0 else (values * integer) << -shift


def _split_integers(values: Any, factor: Fraction) -> Exact:
    """From integers times a factor, with 140 bits of the largest."""
    largest = int(np.abs(values).max(initial=0))
    if largest == 0:
        zeros = np.zeros(np.shape(values))
        return Exact(zeros, zeros)
    size = largest.bit_length()
    size += factor.numerator.bit_length() - factor.denominator.bit_length()
    power = 140 - size
    whole = _scaled(values, factor * Fraction(2) ** power, 300)
    high = np.asarray(whole, dtype=object).astype(np.float64)
    back = np.frompyfunc(int, 1, 1)(high)
    low = np.asarray(whole - back, dtype=object).astype(np.float64)
    return Exact(np.ldexp(high, -power), np.ldexp(low, -power))


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
    """Of one point, of the centers that count; all integers."""

    kept: NDArray[np.int64]
    differences: Any  # y_j - x, in `unit`
    squares: Any  # in unit^2
    kernels: Any  # exp(-(E_j - E_top)), without the weight, in 2^-260
    terms: Any  # with it, in 2^-260 times what weights are in
    top: int  # E_top in 2^-240


def _terms(
    x: Floats, centers: Floats, noise_std: float, weights: Floats, unit: int
) -> _Terms:
    """The terms of point x (d,)."""
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
    factor = Fraction(2) ** (2 * unit + _EXPONENT_BITS) / (2 * Fraction(noise_std) ** 2)
    exact = _scaled(squares, factor, 300)
    top = exact[int(below[kept].argmin())]
    found = {e: _kernel(top - e) for e in set(exact)}
    kernels = np.array([found[e] for e in exact], dtype=object)
    return _Terms(
        kept, differences, squares, kernels, kernels * _weights_of(weights[kept]), top
    )


def _kernel(exponent: int) -> int:
    """exp of an exponent in 2^-240, in 2^-260."""
    mp = mpmath().mp
    power = mp.exp(mp.ldexp(mp.mpf(exponent), -_EXPONENT_BITS))
    return int(mp.ldexp(power, _SHARE_BITS))


def _weights_of(weights: Floats) -> Any:
    """In 2^-_WEIGHT_BITS, exactly; in 1 where all are 1."""
    if (weights == 1).all():
        return np.array([1] * len(weights), dtype=object)
    return _integers(weights, -_WEIGHT_BITS)


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
        is_one = bool((w == 1).all())
        unit = _unit_of(points, centers)
        constant = mp.log(2 * mp.pi * mp.mpf(noise_std) ** 2) * d / 2
        if weights is None:
            constant += mp.log(n)
        weight_bits = 0 if is_one else _WEIGHT_BITS
        values = []
        sums = None if grad_output is None else _GradientSums(m, n, d, weight_bits)
        for i in range(m):
            found = _terms(points[i], centers, noise_std, w, unit)
            mass = int(found.terms.sum())
            top = mp.ldexp(mp.mpf(found.top), -_EXPONENT_BITS)
            values.append(
                mp.log(mp.ldexp(mp.mpf(mass), -_SHARE_BITS - weight_bits))
                - top
                - constant
            )
            if sums is not None and grad_output is not None:
                sums.add(i, found, mass, float(grad_output[i]))
        if sums is None or grad_output is None:
            return _split(values), None
        total = n if weights is None else 1
        gradients = sums.result(noise_std, unit, total, grad_output)
        return _split(values), gradients


class _GradientSums:
    """Sums over pairs: integers, in 2^-260 times the coordinates' unit or its square.

    Those of weights are in 2^-260.
    """

    def __init__(self, m: int, n: int, d: int, weight_bits: int) -> None:
        self.d = d
        self.weight_bits = weight_bits
        self.points = np.full((m, d), 0, dtype=object)
        self.centers = np.full((n, d), 0, dtype=object)
        self.weights = np.full(n, 0, dtype=object)
        self.squares = 0

    def add(self, i: int, found: _Terms, mass: int, output: float) -> None:
        (numerator, denominator) = output.as_integer_ratio()
        per_mass = Fraction(numerator << _SHARE_BITS, denominator * mass)
        (upper, lower) = per_mass.as_integer_ratio()
        shares = (found.terms * upper) // lower
        along = shares[:, None] * found.differences
        self.points[i] = along.sum(axis=0)
        self.centers[found.kept] -= along
        self.squares += int((shares * found.squares).sum())
        self.weights[found.kept] += (
            found.kernels * (upper << self.weight_bits)
        ) // lower

    def result(
        self, noise_std: float, unit: int, total: int, grad_output: Any
    ) -> ExactGradients:
        s = Fraction(noise_std)
        share = Fraction(1, 2**_SHARE_BITS)
        along = share * Fraction(2) ** unit / s**2
        squares = share * self.squares * Fraction(2) ** (2 * unit) / s**3
        slope = squares - sum(Fraction(float(g)) for g in grad_output) * self.d / s
        high = float(slope)
        return ExactGradients(
            _split_integers(self.points, along),
            _split_integers(self.centers, along),
            _split_integers(self.weights, share * total),
            Exact(np.array(high), np.array(float(slope - Fraction(high)))),
        )
