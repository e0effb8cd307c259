"""Information of a few inputs through noise in one dimension, by quadrature.

Densities are sums of Gaussians, or of Gaussians bent at zero, and so analytic or nearly
so; the trapezoid rule over all of them is accurate to 1e-9 and better. Nothing here
uses an estimator of this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_REACH = 12  # standard deviations beyond the outermost mean: the rest is below 1e-32
_POINTS_PER_STD = 40


def gaussian_densities(t: Floats, means: Floats, std: float) -> Floats:
    """Densities of N(means[j], std^2) at t[i]; (len(t), len(means))."""
    offset = (t[:, None] - means) / std
    return np.asarray(np.exp(-0.5 * offset**2) / (math.sqrt(2 * math.pi) * std))


def bent_densities(
    t: Floats, means: Floats, own_std: float, slope: float, noise_std: float
) -> Floats:
    """Densities of max(U, slope U) + Z with U ~ N(means[j], own_std^2), at t[i].

    Parameters
    ----------
    t : (k,) array
    means : (m,) array
    own_std : float
        Standard deviation of U; 0 or more.
    slope : float
        Of the function below zero, in (0, 1].
    noise_std : float
        Of Z; positive.

    Returns
    -------
    (k, m) array

    Notes
    -----
    On either side of zero max(U, slope U) is a Gaussian that is cut off there. Cut off
    and smeared by Z it is the density of the uncut sum times the probability, given the
    sum, of having been on this side.
    """
    from scipy.special import ndtr

    if own_std == 0:
        return gaussian_densities(t, np.maximum(means, slope * means), noise_std)
    total = np.zeros((len(t), len(means)))
    for factor, side in ((1.0, 1.0), (slope, -1.0)):
        mean, std = factor * means, factor * own_std
        sum_std = math.hypot(std, noise_std)
        # Of the Gaussian given the sum t: its mean, and its standard deviation.
        given = (mean * noise_std**2 + t[:, None] * std**2) / sum_std**2
        given_std = std * noise_std / sum_std
        total += gaussian_densities(t, mean, sum_std) * ndtr(side * given / given_std)
    return total


def information(
    densities: Callable[[Floats], Floats], low: float, high: float, std: float
) -> float:
    """I(X; T) of equally likely inputs, h(T) - h(T|X), nats.

    Parameters
    ----------
    densities : callable
        `densities(t)` gives those of T given each input, (len(t), inputs).
    low, high : float
        Outermost means of T.
    std : float
        The smallest width of any density; sets the step. Of the largest widths 12 must
        fit between the ends that are integrated over, 12 `std` beyond the means.

    Returns
    -------
    float
    """
    step = std / _POINTS_PER_STD
    t = np.arange(low - _REACH * std, high + _REACH * std, step)
    given = densities(t)
    own = _minus_p_log_p(given).sum(axis=0).mean()
    return float(step * (_minus_p_log_p(given.mean(axis=1)).sum() - own))


def gaussian_information(means: Floats, std: float) -> float:
    """I(X; T) of T = means[X] + Z, Z ~ N(0, std^2), X equally likely, nats."""

    def densities(t: Floats) -> Floats:
        return gaussian_densities(t, means, std)

    return information(densities, means.min(), means.max(), std)


def bent_information(
    means: Floats, own_std: float, slope: float, noise_std: float
) -> float:
    """I(X; T) of T = max(U, slope U) + Z, U ~ N(means[X], own_std^2), nats."""

    def densities(t: Floats) -> Floats:
        return bent_densities(t, means, own_std, slope, noise_std)

    reach = _REACH * own_std  # of U, beside that of the noise
    low, high = means.min() - reach, means.max() + reach
    return information(
        densities, max(low, slope * low), max(high, slope * high), noise_std
    )


def _minus_p_log_p(p: Floats) -> Floats:
    """-p log p, 0 where p is 0."""
    return np.asarray(-p * np.log(np.where(p > 0, p, 1.0)))
