"""A mean over independent repetitions with its standard error, and what it decides."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A difference that a few seeds show is one beyond so many of its standard errors.
_CLEAR = 3.0


class Measured(NamedTuple):
    """A mean with its standard error."""

    mean: float
    error: float

    @property
    def is_clear(self) -> bool:
        """Whether it is more than three standard errors away from zero."""
        return abs(self.mean) > _CLEAR * self.error

    def is_above(self, bound: float) -> bool | None:
        """Whether it is, by three standard errors; None where these reach across."""
        return is_above(self.mean, _CLEAR * self.error, bound)

    def is_below(self, bound: float) -> bool | None:
        """Whether it is, by three standard errors; None where these reach across."""
        return is_above(-self.mean, _CLEAR * self.error, -bound)

    def __str__(self) -> str:
        error = f" ± {self.error:.3f}" if math.isfinite(self.error) else ""
        return f"{self.mean:.3f}{error}"


def two_digits(measured: Measured) -> str:
    """A mean and its error to two significant digits of the error.

    Parameters
    ----------
    measured : Measured

    Returns
    -------
    str
        At least three decimals and at most six; a smaller error as a power of ten.
    """
    mean, error = measured
    if not math.isfinite(error):
        return str(measured)
    decimals = 7 if error < 1e-9 else 1 - math.floor(math.log10(error))
    if decimals > 6:
        return f"{mean:.6f} ± {error:.1e}"
    return f"{mean:.{max(decimals, 3)}f} ± {error:.{max(decimals, 3)}f}"


def is_above(value: float, margin: float, bound: float) -> bool | None:
    """Whether a value known to a margin is above a bound; None where it may be either.

    Parameters
    ----------
    value, margin, bound : float

    Returns
    -------
    bool or None
    """
    if value - margin > bound:
        return True
    return False if value + margin <= bound else None


def all_hold(verdicts: Iterable[bool | None]) -> bool | None:
    """Whether all of some statements hold; None where one is open and none is false."""
    found = list(verdicts)
    if False in found:
        return False
    return None if None in found else True


def at_steps(found: NDArray[np.number]) -> str:
    """Steps of some seeds: `at step 5`, or `at step 5 to 7`."""
    (low, high) = (int(found.min()), int(found.max()))
    return f"at step {low}" if low == high else f"at step {low} to {high}"


def over_seeds(values: ArrayLike) -> Measured:
    """The mean of independent values, and the standard error of that mean.

    Parameters
    ----------
    values : (k,) array
        One per seed; of a single one the error is infinite.

    Returns
    -------
    Measured
    """
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return Measured(float(array.mean()), math.inf)
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    return Measured(float(array.mean()), error)
