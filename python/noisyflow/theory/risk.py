"""The theorems of Goldfeld, Greenewald and Polyanskiy on the plug-in entropy, computed.

"P2" is arXiv 1810.11589 v1, "Estimating Differential Entropy under Gaussian
Convolutions". T = S + Z, Z ~ N(0, noise_std^2 I); the plug-in entropy is that of the
Gaussian mixture centered at n independent samples of S. Risk: the expected absolute
error, for the worst distribution of a class. Where a theorem holds only "for n large
enough" its function says so, or proves more. Nats throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from noisyflow import _checks
from noisyflow.theory._numbers import (
    as_count,
    as_dim,
    as_noise_std,
    as_positive,
    binary_entropy,
    exp,
    normal_tail,
)

# -- upper bounds of the plug-in's risk -----------------------------------------------


def plug_in_risk_bounded(
    dim: int, noise_std: float, num_samples: int, *, epsilon: float | None = None
) -> float:
    """Upper bound of the plug-in entropy's risk for S in [-1, 1]^d: P2, Theorem 2.

    Parameters
    ----------
    dim : int
        Number of dimensions d.
    noise_std : float
        Standard deviation beta of the noise (sigma in P2).
    num_samples : int
        Number of samples n, at least 2.
    epsilon : float, optional
        Positive: the bound as P2 prints it, eq. (52), which reproduces its Table I at
        about 0.004. By default a bound with the same main term that holds for every n.

    Returns
    -------
    float
        Nats. Without `epsilon` at most (d/2) log(1 + 1/beta^2), which no two entropies
        of the class differ by more than; with it, infinite where float64 ends.

    Notes
    -----
    Both split space into the cube widened by r and the rest. P2 takes r^2 = (2 +
    epsilon) beta^2 log n and bounds what is outside by 2/n times a constant, for n so
    large that epsilon log n > d + 2 sqrt(d log n): not yet at the n = 10^9 of its
    table. The default relates densities q to their largest possible value M, so that
    q log(M/q) >= 0 everywhere and M cancels, and is, for every r,

        v M w(f / M) + d (2 t phi(t) + 2 (d + 4 d/beta^2) Q(t)),      t = r / beta,

    v = (2 + 2r)^d, f = (4 pi beta^2)^(-d/4) / sqrt(v n), w(x) = x log(1/x) up to its
    maximum and constant beyond; log M/q <= (|Z|^2 + 4 d)/beta^2 outside. The least over
    a grid of t is returned.

    Examples
    --------
    >>> round(plug_in_risk_bounded(5, 1.0, 10**9, epsilon=0.004), 4)  # Table I: 0.0179
    0.0179
    """
    dim, beta = as_dim(dim), as_noise_std(noise_std)
    n = as_count("num_samples", num_samples, at_least=2)
    if epsilon is not None:
        return _printed_risk(dim, beta, n, as_positive("epsilon", epsilon))
    return _risk(dim, beta, n)


def _printed_risk(d: int, beta: float, n: int, epsilon: float) -> float:
    """P2, eq. (52)."""
    side = 2 + 2 * beta * math.sqrt((2 + epsilon) * math.log(n))
    inside = math.log(n) + d * math.log(side) - 0.5 * d * math.log(math.pi * beta**2)
    scale = exp(
        0.5 * d * math.log(side)
        - 0.25 * d * math.log(4 * math.pi * beta**2)
        - 0.5 * math.log(n)
    )
    c = 0.5 * d * math.log(2 * math.pi * beta**2) + d / beta**2
    outside = (
        c * c + 2 * c * d * (1 + beta**-2) + 8 * d * (d * beta**-2 * beta**-2 + 2 + d)
    )
    return 0.5 * scale * inside + outside * 2 / n


def _risk(d: int, beta: float, n: float) -> float:
    """What holds for every n > 0; n may be a part of the samples, hence no integer."""
    ceiling = 0.5 * d * math.log1p(beta**-2)
    t = np.linspace(0.0, 12 + 4 * math.sqrt(math.log(d + 2) + abs(math.log(beta))), 512)
    log_volume = d * np.log(2 + 2 * t * beta)
    log_largest = -0.5 * d * math.log(2 * math.pi * beta**2)
    log_mean = -0.25 * d * math.log(4 * math.pi * beta**2) - 0.5 * (
        log_volume + math.log(n)
    )
    log_share = np.minimum(log_mean - log_largest, -1.0)  # w(x): x log(1/x), x <= 1/e
    with np.errstate(over="ignore"):
        inside = np.exp(log_volume + log_largest + log_share) * -log_share
    density = np.exp(-0.5 * t**2) / math.sqrt(2 * math.pi)
    tails = np.array([normal_tail(x) for x in t])
    outside = d * 2 * (t * density + (d + 4 * d / beta**2) * tails)
    return min(ceiling, float((inside + outside).min()))


def plug_in_risk_sub_gaussian(
    dim: int, noise_std: float, num_samples: int, *, constant: float
) -> float:
    """Upper bound of the plug-in entropy's risk for sub-Gaussian S: P2, Theorem 3.

    Parameters
    ----------
    dim : int
        Number of dimensions d.
    noise_std : float
        Standard deviation of the noise (sigma in P2).
    num_samples : int
        Number of samples n, at least 2.
    constant : float
        K, with sup_p p^(-1/2) (E|S_k|^p)^(1/p) <= K for every coordinate: 1 for
        [-1, 1]^d. Not the K of `chi_square_sub_gaussian`.

    Returns
    -------
    float
        Nats; infinite where float64 ends.

    Notes
    -----
    P2, eq. (59), for n large enough; how large, the theorem does not say. What is
    outside the widened region counts for both densities, 2 e d / n, where the paper
    prints e d / n. `plug_in_bias_bound` and `plug_in_std_bound` hold for every n.

    Examples
    --------
    >>> few = plug_in_risk_sub_gaussian(2, 1.0, 10**6, constant=1.0)
    >>> plug_in_risk_sub_gaussian(2, 1.0, 10**8, constant=1.0) < few
    True
    """
    d, beta = as_dim(dim), as_noise_std(noise_std)
    n = as_count("num_samples", num_samples, at_least=2)
    k = as_positive("constant", constant)
    log_square = math.log(2 * math.log(n) / ((math.e - 1) * math.pi)) + 2 * math.log1p(
        k / beta
    )
    log_two, log_eight = 0.25 * d * log_square, 0.25 * d * (log_square + math.log(4))
    inside = (0.5 * math.log(n) + log_eight) * exp(log_two - 0.5 * math.log(n))
    c = 0.5 * d * math.log(2 * math.pi * beta**2)
    ratio = (k / beta) ** 2
    outside = (c + 2 * d * ratio) * (c + 2 * d + 6 * d * ratio) + 8 * (
        16 * d * d * ratio * ratio + d * (2 + d)
    )
    return inside + outside * 2 * math.e * d / n


# -- lower bounds ---------------------------------------------------------------------


def plug_in_bias_lower_bound(dim: int, noise_std: float, num_samples: int) -> float:
    """Lower bound of the plug-in's bias for the worst S in [-1, 1]^d: P2, Theorem 4.

    log(k^(d (1 - e)) / n) - H_b(e) for the best error probability e of a grid of k^d
    points, k = floor(1 / (beta Q^-1((1 - (1 - e)^(1/d)) / 2))) >= 2; at least 0.

    Parameters
    ----------
    dim : int
        Number of dimensions d.
    noise_std : float
        Standard deviation of the noise (sigma in P2).
    num_samples : int
        Number of samples n.

    Returns
    -------
    float
        Nats. For every n: some S in the cube has a plug-in entropy that is too low by
        this much on average.

    Examples
    --------
    >>> round(plug_in_bias_lower_bound(20, 0.1, 10_000), 2)
    12.25
    """
    n = as_count("num_samples", num_samples)
    return max(
        0.0, _log_distinguishable(as_dim(dim), as_noise_std(noise_std)) - math.log(n)
    )


def plug_in_samples_necessary(dim: int, noise_std: float, bias: float) -> float:
    """Samples without which the plug-in's bias exceeds `bias` for some S in [-1, 1]^d.

    P2, Theorem 4 (`plug_in_bias_lower_bound`) solved for n: exponential in the number
    of dimensions. At least 1; infinite where float64 ends.

    Examples
    --------
    >>> f"{plug_in_samples_necessary(40, 0.1, 0.1):.1g}"
    '2e+18'
    """
    dim, beta = as_dim(dim), as_noise_std(noise_std)
    bias = as_positive("bias", bias)
    return max(1.0, exp(_log_distinguishable(dim, beta) - bias))


def _log_distinguishable(d: int, beta: float) -> float:
    """Least possible information of the best grid through the noise, by Fano; nats."""
    best = 0.0
    for e in np.geomspace(1e-12, 0.5, 256).tolist():
        tail = -0.5 * math.expm1(math.log1p(-e) / d)
        deviate = -NormalDist().inv_cdf(tail) * beta
        if deviate <= 0.5:  # k >= 2
            k = math.floor(1 / deviate)
            best = max(best, d * (1 - e) * math.log(k) - binary_entropy(e))
    return best


def sample_complexity_exponent(noise_std: float) -> float:
    """Bits per dimension g in P2, Theorem 1: 2^(g d) / (d e) samples, any estimator.

    Parameters
    ----------
    noise_std : float
        Standard deviation of the noise (sigma in P2).

    Returns
    -------
    float
        Bits. A lower bound, by the best equally likely and equally spaced values in
        [-1, 1], of the capacity of the Gaussian channel with inputs in [-1, 1], which
        is the supremum of the theorem's exponents.

    Notes
    -----
    Theorem 1, part 1: the number of samples that the best of all estimators needs for
    an expected error e of the entropy of the worst S in [-1, 1]^d is at least a
    constant times 2^(g d) / (d e), for d large and e small enough; part 2: with g = 1
    for noise small enough. The constant is in neither, so this is a rate of growth and
    no number of samples. `plug_in_samples_necessary` is one, for the plug-in.

    Examples
    --------
    >>> round(sample_complexity_exponent(1.0), 3)  # two values: BPSK
    0.486
    """
    beta = as_noise_std(noise_std)
    if beta < 0.03:  # uniform S: I >= h(S) - h(Z); the best levels add 0.03 bits
        return math.log2(2 / (math.sqrt(2 * math.pi * math.e) * beta))
    best = 0.0
    for k in range(2, 3 + math.ceil(1.5 / beta)):
        information = _uniform_levels_information(k, beta)
        if information < best:
            break
        best = information
    return best / math.log(2)


def _uniform_levels_information(k: int, beta: float) -> float:
    """I(S; S + Z) for k equally likely values from -1 to 1, nats."""
    levels = np.linspace(-1, 1, k) / beta
    z, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / math.sqrt(2 * math.pi)
    exponents = -0.5 * (
        (levels[:, None, None] + z[None, :, None] - levels) ** 2 - z[None, :, None] ** 2
    )
    gaps = np.logaddexp.reduce(exponents, axis=2)
    return math.log(k) - float((gaps @ weights).mean())


# -- Monte-Carlo integration ----------------------------------------------------------


def monte_carlo_rmse(dim: int, num_queries: int) -> float:
    """Upper bound of the Monte-Carlo error of a mixture's entropy, sqrt(d / N).

    For any centers, weights and noise, N queries in all (as many at every center):
    root mean square error of minus the mean log-density at the queries, no control
    variates. Sharper than P2, Theorem 5.

    Parameters
    ----------
    dim : int
        Number of dimensions d.
    num_queries : int
        N, noise draws over all centers together.

    Returns
    -------
    float
        Nats. Well separated centers come within a factor of sqrt(2) of it.

    Notes
    -----
    Poincare's inequality bounds the variance by beta^2 E|grad log q|^2, and grad log
    q(T) = -E[Z|T] / beta^2, so by d.

    Examples
    --------
    >>> round(monte_carlo_rmse(10, 100_000), 4)
    0.01
    """
    return math.sqrt(as_dim(dim) / as_count("num_queries", num_queries))


def monte_carlo_rmse_bounded(dim: int, noise_std: float, num_queries: int) -> float:
    """The bound of P2, Theorem 5 (i), for centers in [-1, 1]^d, nats.

    sqrt(2 d (2 + beta^2) / (beta^2 N)). Never below `monte_carlo_rmse`.

    Examples
    --------
    >>> round(monte_carlo_rmse_bounded(1, noise_std=1.0, num_queries=600), 6)
    0.1
    """
    n = as_count("num_queries", num_queries)
    return math.sqrt(2 * as_dim(dim) / n) * math.hypot(
        math.sqrt(2) / as_noise_std(noise_std), 1
    )


def monte_carlo_rmse_second_moment(
    dim: int, noise_std: float, num_queries: int, *, second_moment: float
) -> float:
    """The bound of P2, Theorem 5 (ii), for centers with E|C|^2 = `second_moment`, nats.

    sqrt((9 d beta^2 + 49 M + 42 beta sqrt(d M)) / (beta^2 N)): what follows from the
    premises of the paper's proof, |grad log q(v)| <= (3 |v| + 4 E|C|) / beta^2. As
    printed it adds terms of different units. Never below `monte_carlo_rmse`.

    Examples
    --------
    >>> monte_carlo_rmse_second_moment(1, 1.0, 10_000, second_moment=1.0)  # sqrt(1e-2)
    0.1
    """
    d, beta = as_dim(dim), as_noise_std(noise_std)
    n = as_count("num_queries", num_queries)
    root = math.sqrt(as_positive("second_moment", second_moment)) / beta
    return math.sqrt((9 * d + 49 * root * root + 42 * math.sqrt(d) * root) / n)


# -- mutual information ---------------------------------------------------------------


def mutual_information_risk(
    dim: int,
    noise_std: float,
    num_samples: int,
    num_draws: int | None = None,
    *,
    inputs: Literal["fixed", "sampled"] = "sampled",
) -> float:
    """Upper bound of the plug-in I(X;T)'s risk for S in [-1, 1]^d: P2, Proposition 1.

    Parameters
    ----------
    dim : int
        Number of dimensions d of the layer; that of X does not matter.
    noise_std : float
        Standard deviation of the noise (sigma in P2).
    num_samples : int
        Number of samples of S in all, n. At least 2.
    num_draws : int, optional
        Samples of S for every input; as many as `num_samples` by default, as in P2.
    inputs : {"sampled", "fixed"}
        "sampled": n inputs are a sample of an unknown P_X, which costs another
        d log(1 + 1/beta^2) / (4 sqrt n). "fixed": they are all that X can be.

    Returns
    -------
    float
        Nats; with `plug_in_risk_bounded` as the risk of each entropy, for every n.

    Examples
    --------
    >>> few = mutual_information_risk(2, noise_std=1.0, num_samples=10**4)
    >>> mutual_information_risk(2, noise_std=1.0, num_samples=10**6) < few
    True
    """
    d, beta = as_dim(dim), as_noise_std(noise_std)
    n = as_count("num_samples", num_samples, at_least=2)
    draws = n
    if num_draws is not None:
        draws = as_count("num_draws", num_draws, at_least=2)
    if inputs not in ("fixed", "sampled"):
        raise ValueError(f"inputs must be 'fixed' or 'sampled', got {inputs!r}")
    risk = _risk(d, beta, n) + _risk(d, beta, draws)
    if inputs == "sampled":
        risk += d * math.log1p(beta**-2) / (4 * math.sqrt(n))
    return risk


def label_information_risk(
    dim: int, noise_std: float, num_samples: int, probabilities: Sequence[float]
) -> float:
    """Upper bound of the plug-in I(Y;T)'s risk for S in [-1, 1]^d: P2, Proposition 2.

    Parameters
    ----------
    dim : int
        Number of dimensions d of the layer.
    noise_std : float
        Standard deviation of the noise (sigma in P2).
    num_samples : int
        Number of samples n, at least 2, independent, each with its label.
    probabilities : sequence of float
        Of the K labels: positive, summing to 1.

    Returns
    -------
    float
        Nats; with `plug_in_risk_bounded` as the risk of each entropy, for every n.

    Examples
    --------
    >>> few = label_information_risk(2, 1.0, 10**4, probabilities=[0.5, 0.5])
    >>> label_information_risk(2, 1.0, 10**6, probabilities=[0.5, 0.5]) < few
    True
    """
    d, beta = as_dim(dim), as_noise_std(noise_std)
    n = as_count("num_samples", num_samples, at_least=2)
    if not np.iterable(probabilities):
        raise TypeError(
            "probabilities must be a sequence, one for every label, got "
            f"{type(probabilities).__name__}"
        )
    shares = [_as_probability(p) for p in probabilities]
    if not shares or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"probabilities must sum to 1, got {sum(shares)}")
    least, most, k = min(shares), max(shares), len(shares)
    log_noise = math.log(2 * math.pi * math.e * beta**2)
    log_most = math.log(2 * math.pi * math.e * (1 + beta**2))
    per_share = 0.5 * d * max(-log_noise, log_most)
    worst = 0.5 * d * math.log1p(beta**-2)  # of the risk, whatever n
    rare = worst * math.exp(-n * least**2 / (8 * most))
    return (
        _risk(d, beta, n)
        + per_share * math.sqrt((k - 1) / n)
        + k * (rare + _risk(d, beta, 0.5 * n * least))
    )


def _as_probability(value: Any) -> float:
    number = _checks.as_real("probabilities", value)
    if not 0 < number <= 1:
        raise ValueError(f"probabilities must be positive and at most 1, got {number}")
    return number
