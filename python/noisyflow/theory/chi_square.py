"""What a plug-in entropy is off by, through the chi-square information of the channel.

T = S + Z, Z ~ N(0, noise_std^2 I), q the density of T, phi that of Z, and

    I_chi2 = int E[phi(y - S)^2] / q(y) dy - 1,

the chi-square information of S and T. The plug-in entropy of n samples of S is too low
by at most log(1 + I_chi2 / n) on average (bias), and the samples move it around its
mean by at most what `plug_in_std_bound` says (fluctuation). Explicit for every n, dim
and noise_std: no "n large enough" anywhere in this file. Nats throughout.
"""

from __future__ import annotations

import math

import numpy as np

from noisyflow import _checks
from noisyflow.theory._numbers import (
    as_count,
    as_dim,
    as_noise_std,
    as_positive,
    as_share,
    binary_entropy,
    exp,
    expm1,
    square_ratio,
)

# -- the chi-square information of a source -------------------------------------------


def chi_square_atoms(num_atoms: int) -> float:
    """Upper bound of I_chi2 for S with that many values, num_atoms - 1.

    Met with equality, in the limit, by equally likely values that are far apart.

    Examples
    --------
    >>> chi_square_atoms(8)
    7.0
    """
    return float(as_count("num_atoms", num_atoms)) - 1


def chi_square_diameter(diameter: float, noise_std: float) -> float:
    """Upper bound of I_chi2 for S in a set of this diameter, exp(D^2/beta^2) - 1.

    Examples
    --------
    >>> round(chi_square_diameter(1.0, noise_std=1.0), 6)  # e - 1
    1.718282
    """
    beta = as_noise_std(noise_std)
    return expm1(square_ratio(as_positive("diameter", diameter), beta))


def chi_square_cube(dim: int, noise_std: float, *, half_width: float = 1.0) -> float:
    """Upper bound of I_chi2 for S in the cube [-w, w]^d, whatever its distribution.

    (min_k k exp((2 w / k)^2 / beta^2))^d - 1: the cube in k^d cells, each of which has
    a diameter. About (4.66 w / beta)^d at small noise.

    Parameters
    ----------
    dim : int
        Number of dimensions d.
    noise_std : float
        Standard deviation beta of the noise.
    half_width : float
        w; 1 for layers of tanh units.

    Returns
    -------
    float
        Infinite where float64 ends.

    Examples
    --------
    >>> round(chi_square_cube(1, 0.1), 1)
    45.6
    """
    dim = as_dim(dim)
    ratio = 2 * as_positive("half_width", half_width) / as_noise_std(noise_std)
    best = math.sqrt(2) * ratio  # of log k + (ratio / k)^2, were k any number
    cells = {max(1, math.floor(best)), math.ceil(best)}
    return expm1(dim * min(math.log(k) + (ratio / k) ** 2 for k in cells if k))


def chi_square_sub_gaussian(dim: int, constant: float, noise_std: float) -> float:
    """Upper bound of I_chi2 for K-sub-Gaussian S, (1 - 4 K^2/beta^2)^(-d/2) - 1.

    Sub-Gaussian as a vector: E exp(a.(S - ES)) <= exp(K^2 |a|^2 / 2) for all a.
    Infinite for K >= noise_std / 2, where this bound says nothing.

    Examples
    --------
    >>> round(chi_square_sub_gaussian(2, constant=0.25, noise_std=1.0), 6)  # 1/0.75 - 1
    0.333333
    """
    dim, beta = as_dim(dim), as_noise_std(noise_std)
    left = 1 - 4 * square_ratio(as_positive("constant", constant), beta)
    return expm1(-0.5 * dim * math.log(left)) if left > 0 else math.inf


def chi_square_gaussian(dim: int, std: float, noise_std: float) -> float:
    """I_chi2 of S ~ N(m, K^2 I), exactly: (1 + K^2/beta^2)^d - 1.

    Examples
    --------
    >>> round(chi_square_gaussian(3, std=1.0, noise_std=1.0), 9)  # 2^3 - 1
    7.0
    """
    dim, beta = as_dim(dim), as_noise_std(noise_std)
    return expm1(dim * math.log1p(square_ratio(as_positive("std", std), beta)))


def chi_square_uniform(dim: int, noise_std: float, *, half_width: float = 1.0) -> float:
    """I_chi2 of S uniform on the cube [-w, w]^d, by quadrature in one dimension.

    About (0.564 w / beta)^d at small noise: what "fills the cube" costs, where
    `chi_square_cube` is the worst that a distribution in it can do. Relative error of
    1 + I_chi2 below 1e-9 d.

    Examples
    --------
    >>> round(chi_square_uniform(1, noise_std=0.01))  # about 0.564 / 0.01
    56
    """
    dim = as_dim(dim)
    width = as_positive("half_width", half_width) / as_noise_std(noise_std)
    if width > 1e6:  # edges no longer matter
        return expm1(dim * math.log(width / math.sqrt(math.pi)))
    if width < 1e-3:  # below, differences of tails cancel; the next term is width^4
        return expm1(dim * math.log1p(width**2 / 3))
    # In units of the noise, from the middle: the integrand is even, and constant to
    # within 1e-16 from 9 standard deviations inside the edge.
    start = max(0.0, width - 9)
    y = np.linspace(start, width + 12, 4097)
    tail = np.vectorize(math.erfc)
    root = math.sqrt(2)
    # P(inside) = Q(y - w) - Q(y + w), without cancellation beyond the edge.
    density = 0.5 * (tail((y - width) / root) - tail((y + width) / root)) / (2 * width)
    squares = (
        0.5 * (tail(y - width) - tail(y + width)) / (4 * width * math.sqrt(math.pi))
    )
    ratio = squares / density
    step = y[1] - y[0]
    weights = np.full(len(y), 2.0)
    weights[1::2] = 4
    weights[[0, -1]] = 1
    total = 2 * (float(weights @ ratio) * step / 3 + start * float(ratio[0]))
    return max(0.0, expm1(dim * math.log(total)))


# -- what it bounds -------------------------------------------------------------------


def plug_in_bias_bound(num_samples: int, chi_square: float) -> float:
    """The most that a plug-in entropy is too low on average, log(1 + I_chi2 / n).

    Parameters
    ----------
    num_samples : int
        Number of samples n, independent.
    chi_square : float
        I_chi2 of the source or an upper bound of it; may be infinite.

    Returns
    -------
    float
        Nats. The plug-in is never too high on average (entropy is concave).

    Notes
    -----
    E chi^2(P_n * N || P * N) = I_chi2 / n exactly, and a Kullback-Leibler divergence is
    at most log(1 + chi^2).

    Examples
    --------
    >>> round(plug_in_bias_bound(1000, chi_square_gaussian(3, 1.0, 0.5)), 4)
    0.1169
    """
    n = as_count("num_samples", num_samples)
    return math.log1p(_as_chi_square(chi_square) / n)


def plug_in_bias_estimate(num_samples: int, chi_square: float) -> float:
    """About how much a plug-in entropy is too low on average, I_chi2 / (2 n), nats.

    The first order in 1/n: not a bound, and meaningless unless I_chi2 / n is small.

    Examples
    --------
    >>> plug_in_bias_estimate(1000, chi_square=10.0)
    0.005
    """
    n = as_count("num_samples", num_samples)
    return _as_chi_square(chi_square) / (2 * n)


def plug_in_std_bound(
    num_samples: int,
    *,
    diameter: float | None = None,
    noise_std: float | None = None,
) -> float:
    """The largest standard deviation of a plug-in entropy over the samples, nats.

    Parameters
    ----------
    num_samples : int
        Number of samples n, independent.
    diameter, noise_std : float, optional
        Diameter D of the support of S and noise; both or none. They help where D is
        below about noise_std sqrt(log n).

    Returns
    -------
    float
        sqrt(n) H_b(1/n) / 2, at most (1 + log n) / (2 sqrt n), for any distribution;
        or D^2 / (2 beta^2 sqrt n) where that is less. Without Monte-Carlo error.

    Notes
    -----
    Another value of one sample moves the plug-in by at most H_b(1/n), and by at most
    D^2 / (n beta^2); Efron and Stein's inequality does the rest.

    Examples
    --------
    >>> round(plug_in_std_bound(10_000), 4)
    0.0511
    """
    return (
        0.5
        * math.sqrt(as_count("num_samples", num_samples))
        * _largest_change(num_samples, diameter, noise_std)
    )


def plug_in_deviation_bound(
    num_samples: int,
    confidence: float = 0.95,
    *,
    diameter: float | None = None,
    noise_std: float | None = None,
) -> float:
    """What a plug-in entropy exceeds its mean by at most, with this probability.

    c sqrt(n log(1/delta) / 2), delta = 1 - confidence, c as in `plug_in_std_bound`. As
    the mean is never above the entropy, h >= plug-in - this value with the same
    probability: a confidence bound that assumes nothing.

    Parameters
    ----------
    num_samples : int
        Number of samples n, independent.
    confidence : float
        Between 0 and 1, both excluded. Half of what may fail for each of two sides.
    diameter, noise_std : float, optional
        As in `plug_in_std_bound`.

    Returns
    -------
    float
        Nats.

    Notes
    -----
    Source: McDiarmid (1989), "On the Method of Bounded Differences".

    Examples
    --------
    >>> round(plug_in_deviation_bound(10_000), 3)
    0.125
    """
    n = as_count("num_samples", num_samples)
    failing = 1 - as_share("confidence", confidence)
    change = _largest_change(n, diameter, noise_std)
    return change * math.sqrt(-0.5 * n * math.log(failing))


def _largest_change(
    num_samples: int, diameter: float | None, noise_std: float | None
) -> float:
    """The most that another value of one sample moves a plug-in entropy."""
    change = binary_entropy(1 / num_samples)
    if (diameter is None) != (noise_std is None):
        raise ValueError("diameter and noise_std belong together: give both or none")
    if diameter is None or noise_std is None:
        return change
    ratio = square_ratio(as_positive("diameter", diameter), as_noise_std(noise_std))
    return min(change, ratio / num_samples)


def _as_chi_square(value: float) -> float:
    if isinstance(value, float) and value == math.inf:
        return value
    number = _checks.as_real("chi_square", value)
    if number < 0:
        raise ValueError(f"chi_square must not be negative, got {value}")
    return number


# -- other distances ------------------------------------------------------------------


def total_variation_bound(
    dim: int, constant: float, noise_std: float, num_samples: int
) -> float:
    """Upper bound of E TV(P_n * N, P * N), (1/2) (1 + 2 K^2/beta^2)^(d/4) / sqrt n.

    For S centered and K-sub-Gaussian as a vector (see `chi_square_sub_gaussian`). By
    Cauchy and Schwarz against a Gaussian weight; of the kind of Goldfeld et al. (2020),
    "Convergence of Smoothed Empirical Measures", whose constants it does not use. Never
    above 1.

    Examples
    --------
    >>> round(total_variation_bound(4, 1.0, noise_std=1.0, num_samples=900), 9)
    0.05
    """
    dim, beta = as_dim(dim), as_noise_std(noise_std)
    ratio = square_ratio(as_positive("constant", constant), beta)
    n = as_count("num_samples", num_samples)
    return min(1.0, 0.5 * exp(0.25 * dim * math.log1p(2 * ratio) - 0.5 * math.log(n)))


def wasserstein_bound(
    dim: int, constant: float, noise_std: float, num_samples: int
) -> float:
    """Upper bound of E W_1(P_n * N, P * N), beta sqrt(d) (1 + 2 K^2/beta^2)^(d/4 + 1/2)
    / sqrt n.

    The conditions and the argument of `total_variation_bound`; in units of the samples.

    Examples
    --------
    >>> bound = wasserstein_bound(4, 1.0, noise_std=1.0, num_samples=900)
    >>> round(bound / 3**0.5, 9)
    0.2
    """
    dim, beta = as_dim(dim), as_noise_std(noise_std)
    ratio = square_ratio(as_positive("constant", constant), beta)
    n = as_count("num_samples", num_samples)
    growth = (0.25 * dim + 0.5) * math.log1p(2 * ratio)
    return exp(math.log(beta) + 0.5 * math.log(dim) + growth - 0.5 * math.log(n))
