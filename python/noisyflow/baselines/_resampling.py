"""Standard errors of estimators that have no formula for it, by drawing samples again.

The bootstrap draws with replacement. Where repeated samples spoil a method (a
neighbour at distance zero, a kernel on top of a sample) half of the samples or fewer
are drawn without replacement instead, and the spread is scaled to all of them: valid
for any estimate whose error falls as 1/sqrt(n) (Politis and Romano, 1994).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import _arrays, _checks
from noisyflow._device import on_host

Floats = NDArray[np.floating]
Indices = NDArray[np.int64]

_STREAM = (0x72657361,)  # "resa": apart from samples drawn with the same seed
# Enough for the spread to have settled, few enough that a hundred of these cost no more
# than the estimate itself from 100,000 samples.
_MOST_SUBSAMPLES = 1000


def generator_of(seed: Any) -> np.random.Generator:
    """The random numbers of a seed that are used here alone."""
    sequence = np.random.SeedSequence(_checks.as_seed(seed), spawn_key=_STREAM)
    return np.random.default_rng(sequence)


def checked_num_resamples(value: Any) -> int:
    """0, where no standard error is wanted, or at least 2."""
    number = _checks.as_int("num_resamples", value, at_least=0, at_most=1_000_000)
    if number == 1:
        raise ValueError("num_resamples must be 0 or at least 2, got 1")
    return number


def as_samples(samples: Any) -> NDArray[np.float64]:
    """(n, d) finite samples in float64."""
    return np.asarray(_arrays.as_matrix("samples", on_host(samples)), np.float64)


def groups_of(about: Any, num_samples: int) -> list[Indices]:
    """The samples of each label."""
    order, sizes = _arrays.group_by_label(about, num_samples)
    return np.split(order, np.cumsum(sizes)[:-1])


def information_between(
    entropy_of: Callable[[Indices, int], float], groups: list[Indices]
) -> float:
    """h(T) - sum_y p(y) h(T | Y = y), the samples being grouped by label.

    `entropy_of` is given the members of a set and its number: 0 for all samples, 1, 2,
    ... for the groups.
    """
    everyone = np.sort(np.concatenate(groups))
    within = sum(
        len(group) * entropy_of(group, number)
        for number, group in enumerate(groups, start=1)
    )
    return entropy_of(everyone, 0) - within / len(everyone)


def queries_of(n: int, limit: int | None, seed: int) -> Indices:
    """All of n indices, or as many of them as the limit allows, in order."""
    if limit is None or limit >= n:
        return np.arange(n)
    return np.sort(generator_of(seed).permutation(n)[:limit])


def scaled_queries(limit: int | None, size: int, share: float) -> int | None:
    """Queries in `size` samples, a share of all n, for `subsampling_error` to be right.

    The mean over q' of n values has the variance v (1/q' - 1/n), which is multiplied by
    share / (1 - share) and shall be v / limit. Without a limit, q' = size.
    """
    if limit is None or share == 1:
        return limit
    return max(1, round(1 / ((1 - share) / (share * limit) + share / size)))


def subsampling_error(
    statistic: Callable[[list[Indices], float], float],
    groups: list[Indices],
    *,
    at_least: int,
    num_resamples: int,
    seed: int,
) -> float:
    """Standard error by subsampling every group; infinite where groups are too small.

    Parameters
    ----------
    statistic : callable
        The estimate from some of the samples, given as indices of every group, and the
        share of its usual queries that it may take: an average over few queries has the
        spread of those, and both have to shrink alike.
    groups : list of arrays of int
        Samples that are independent and alike; how many each holds is not random.
    at_least : int
        The fewest samples of a group that the statistic can do with.
    num_resamples : int
        0 gives infinity.
    seed : int
    """
    generator = generator_of(seed)
    n = sum(len(group) for group in groups)
    share = min(0.5, _MOST_SUBSAMPLES / n)
    sizes = [max(at_least, int(share * len(group))) for group in groups]
    if num_resamples == 0 or any(
        2 * size > len(group) for size, group in zip(sizes, groups, strict=True)
    ):
        return math.inf
    values = [
        statistic(
            [
                group[generator.permutation(len(group))[:size]]
                for size, group in zip(sizes, groups, strict=True)
            ],
            sum(sizes) / n,
        )
        for _ in range(num_resamples)
    ]
    m = sum(sizes)
    # A mean of m of n has the variance of one of m, less what the two share.
    return float(np.std(values, ddof=1) * math.sqrt(m / (n - m)))
