"""Noise draws around every center, and the error of averages over them.

Every estimator here is a weighted mean over centers of E f(center + noise). This file
draws the noise, keeps a few sums per center (so memory does not grow with the number of
draws), removes what |z|^2 explains of the noise, and states the standard error. It
knows nothing of densities: `information.py` says what f is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Points = NDArray[np.floating]
Indices = NDArray[np.int64]

# What is random beside the noise. "noise": nothing, the centers are the population;
# "draws": the centers of each block, the blocks are fixed; "inputs": the blocks.
Sampled = Literal["noise", "draws", "inputs"]

_STREAM = (0x6E6F697365,)  # "noise": sets this use of a seed apart from all others
_MIN_QUERIES = 10_000  # relative error of a standard error: 1 / sqrt(2 * 10,000) < 1 %
# Smaller blocks hide their error: the two centers of a pair have equal values whatever
# their distance. Measured understatement of the error by the spread within a block: up
# to 1.3 times at 10 centers, 1.5 at 5, 4 at 2.
_MIN_BLOCK = 10
_QUERIES_PER_CALL = 65_536  # enough to occupy every core; 16 MiB of points at d = 32
_COORDINATES_PER_CALL = 2**21  # the same limit for larger d


class QueryTerms(NamedTuple):
    """What single queries contribute, each (m,), in nats."""

    value: Points
    lower_gap: Points | float  # value minus the lower end of its bracket
    upper_gap: Points | float  # upper end of its bracket minus value
    isolated: NDArray[np.bool_]


class NoiseAverages(NamedTuple):
    """Averages over the noise draws of each center, each (n,); u = |z|^2/2 - d/2."""

    num_draws: int
    value: Floats
    lower_gap: Floats
    upper_gap: Floats
    isolated: Floats
    control: Floats
    value_square: Floats
    value_times_control: Floats
    control_square: Floats


def default_num_noise_draws(num_centers: int, *, at_least: int = 1) -> int:
    """As many draws per center as give 10,000 queries, and no fewer than `at_least`."""
    return max(at_least, -(-_MIN_QUERIES // num_centers))


def average_over_noise(
    centers: Points,
    noise_std: float,
    num_draws: int,
    seed: int,
    evaluate: Callable[[Points, Indices], QueryTerms],
) -> NoiseAverages:
    """Per-center averages of `evaluate(points, own)` over draws of the noise.

    `own[i]` is the center of point i; the points come in the order of their centers.
    The noise is drawn in the centers' dtype, the averages are float64.
    """
    (n, d) = centers.shape
    # Not default_rng(seed): the caller's samples may well come from that very stream.
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=_STREAM))
    queries_per_call = max(1, min(_QUERIES_PER_CALL, _COORDINATES_PER_CALL // d))
    draws_per_call = max(1, queries_per_call // n)
    sums = np.zeros((8, n))
    for start in range(0, n, queries_per_call):
        part = np.arange(start, min(start + queries_per_call, n))
        for done in range(0, num_draws, draws_per_call):
            shape = (len(part), min(draws_per_call, num_draws - done), d)
            noise = generator.standard_normal(shape, dtype=centers.dtype.type)
            points = centers[part, None, :] + noise_std * noise
            terms = evaluate(points.reshape(-1, d), np.repeat(part, shape[1]))
            value = np.asarray(terms.value, np.float64)
            control = (
                0.5 * (noise.astype(np.float64) ** 2).sum(axis=2) - d / 2
            ).ravel()
            rows = (  # in the order of NoiseAverages
                value,
                terms.lower_gap,
                terms.upper_gap,
                terms.isolated,
                control,
                value**2,
                value * control,
                control**2,
            )
            for total, row in zip(sums, rows, strict=True):
                total[part] += (
                    (row + np.zeros_like(value)).reshape(shape[:2]).sum(axis=1)
                )
    return NoiseAverages(num_draws, *(sums / num_draws))


def mean_and_standard_error(
    averages: NoiseAverages, weights: Floats, blocks: Indices, sampled: Sampled
) -> tuple[float, float]:
    """Weighted mean of `averages.value`, |z|^2 regressed out, and its standard error.

    Block b holds the centers blocks[b] .. blocks[b+1]-1. To first order the error of a
    plug-in entropy is that of a mean of its per-center averages (influence function),
    so the spread between centers holds sampling and Monte-Carlo error together. Where
    nothing but the noise is random, the spread within centers counts. A spread that is
    unknown, within centers of one draw or within blocks of a few centers, is replaced
    by the one a level higher, never smaller on average.
    """
    (n,) = weights.shape
    within_centers = sampled == "noise" and averages.num_draws > 1
    is_unknown_in_blocks = np.diff(blocks).min() < _MIN_BLOCK
    if sampled == "draws" and len(blocks) > 2 and is_unknown_in_blocks:
        sampled = "inputs"
    if sampled == "draws":
        strata = blocks
    else:
        strata = np.arange(n + 1) if within_centers else np.array([0, n])

    slope = _control_slope(averages, weights, strata)
    values = averages.value - slope * averages.control
    mean = float(weights @ values)
    if within_centers:
        squares = (
            averages.value_square
            - 2 * slope * averages.value_times_control
            + slope**2 * averages.control_square
        )
        variance = weights**2 @ np.maximum(squares - values**2, 0)
        return mean, float(np.sqrt(variance / (averages.num_draws - 1)))
    if sampled == "inputs":
        block_weights = np.add.reduceat(weights, blocks[:-1])
        values = np.add.reduceat(weights * values, blocks[:-1]) / block_weights
        weights = block_weights
        strata = np.array([0, len(weights)])
    return mean, float(np.sqrt(_variance_of_mean(values, weights, strata)))


def _control_slope(averages: NoiseAverages, weights: Floats, strata: Indices) -> float:
    """Least-squares coefficient of u; 0 unless two standard errors away from 0."""
    squared = weights**2
    mean = _stratum_means(averages.value, weights, strata)
    product = squared @ (averages.value_times_control - mean * averages.control)
    control_mean = _stratum_means(averages.control, weights, strata)
    control = squared @ (averages.control_square - control_mean * averages.control)
    spread = squared @ (averages.value_square - 2 * mean * averages.value + mean**2)
    num_queries = averages.num_draws * squared.sum() ** 2 / (squared**2).sum()
    is_significant = product**2 * num_queries > 4 * control * spread
    return float(product / control) if is_significant else 0.0


def _stratum_means(values: Floats, weights: Floats, strata: Indices) -> Floats:
    """Weighted mean of each center's stratum, (n,)."""
    totals = np.add.reduceat(weights, strata[:-1])
    means = np.add.reduceat(weights * values, strata[:-1]) / totals
    return np.repeat(means, np.diff(strata))


def _variance_of_mean(values: Floats, weights: Floats, strata: Indices) -> float:
    """Variance of the weighted mean of values independent within fixed strata.

    A center is part of its own mixture, which pulls its value towards the mean like a
    regression point of leverage w; dividing by 1 - w undoes that (HC3, the jackknife to
    first order).
    """
    totals = np.repeat(np.add.reduceat(weights, strata[:-1]), np.diff(strata))
    deviations = values - _stratum_means(values, weights, strata)
    return float(((weights * deviations / (1 - weights / totals)) ** 2).sum())
