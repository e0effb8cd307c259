"""A mean over independent repetitions with its standard error."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

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

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"


def over_seeds(values: ArrayLike) -> Measured:
    """The mean of independent values, and the standard error of that mean.

    Parameters
    ----------
    values : (k,) array
        One per seed, two or more.

    Returns
    -------
    Measured
    """
    array = np.asarray(values, np.float64)
    return Measured(
        float(array.mean()), float(array.std(ddof=1)) / math.sqrt(len(array))
    )
