"""Correlation of two courses over epochs, with an interval that knows they are smooth.

Neighbouring epochs are alike, so k of them say less than k independent pairs would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_QUANTILE = 1.96  # 95 % of the normal distribution


@dataclass(frozen=True)
class Correlation:
    """A correlation coefficient.

    Parameters
    ----------
    value : float
        In [-1, 1]; NaN where one of the courses is constant.
    low, high : float
        Ends of its 95 % interval; -1 and 1 where there is too little to tell.
    num_effective : float
        Number of independent pairs that would say as much.
    """

    value: float
    low: float
    high: float
    num_effective: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "constant"
        return f"{self.value:.3f} [{self.low:.2f}, {self.high:.2f}]"


def correlation(first: Any, second: Any, *, of_ranks: bool = False) -> Correlation:
    """Pearson's or Spearman's coefficient of two courses.

    Parameters
    ----------
    first, second : (k,) array
        Finite, at the same epochs in their order; at least three.
    of_ranks : bool
        Spearman's, which sees any monotone relation, in place of Pearson's.

    Returns
    -------
    Correlation

    Notes
    -----
    The interval is Fisher's, tanh(artanh r ± 1.96 / sqrt(n - 3)), with the effective
    number n = k / (1 + 2 sum_j a_j b_j) in place of k (Bartlett, 1946): a_j and b_j are
    the autocorrelations at lag j, and the sum ends before the first product that is not
    positive. It takes the courses as stationary, which those of a training are not: it
    says how much chance could do, not what another seed would give.
    """
    x, y = (np.asarray(series, np.float64) for series in (first, second))
    if of_ranks:
        x, y = scipy.stats.rankdata(x), scipy.stats.rankdata(y)
    k = len(x)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(math.nan, -1.0, 1.0, float(k))
    x, y = x - x.mean(), y - y.mean()
    value = float(np.clip(x @ y / math.sqrt((x @ x) * (y @ y)), -1, 1))
    n = k / (1 + 2 * _common_memory(x, y))
    if n <= 3:
        return Correlation(value, -1.0, 1.0, n)
    # Rounded to at most a float below 1, where artanh is finite.
    middle = math.atanh(math.copysign(min(abs(value), 1 - 2**-53), value))
    reach = _QUANTILE / math.sqrt(n - 3)
    return Correlation(value, math.tanh(middle - reach), math.tanh(middle + reach), n)


def _common_memory(x: Floats, y: Floats) -> float:
    """The sum of the products of autocorrelations, both centred, from lag 1 on."""
    total = 0.0
    for lag in range(1, len(x)):
        a, b = ((series[:-lag] @ series[lag:]) / (series @ series) for series in (x, y))
        if a <= 0 or b <= 0:
            break
        total += float(a * b)
    return total
