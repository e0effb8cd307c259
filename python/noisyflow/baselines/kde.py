"""Kernel density estimation: a Gaussian on every sample, its width chosen or given.

Takes samples of T = S + Z and knows nothing of the noise; the width of the kernel is a
guess at the density's smoothness. That is the difference to `noisyflow.entropy`, whose
width is the noise itself. The sums run through the package's own kernel and are exact
to 1e-13: nothing but the method is to blame for what comes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from noisyflow import _arrays, _checks
from noisyflow.baselines._resampling import (
    Floats,
    Indices,
    as_samples,
    checked_num_resamples,
    groups_of,
    information_between,
    queries_of,
    scaled_queries,
    subsampling_error,
)
from noisyflow.estimate import Estimate
from noisyflow.prepared import prepare

# Bandwidths that are tried, as shares of the samples' spread, in steps of a third and
# then four rounds of ever smaller ones. All of them: samples in clusters may have two
# maxima of the likelihood, a factor of ten or more apart.
_COARSE_STEP = 4 / 3
_SMALLEST, _LARGEST = 1e-140, 1e140  # what squares of distances allow
_LARGEST_SHARE = 3.0  # nothing but one Gaussian is left
_SMALL_SHARE = 1e-3  # tried always
_SMALLEST_SHARE = 1e-7  # tried where smaller ones are likelier and likelier
_SEARCH_QUERIES = 1000


@dataclass(frozen=True)
class KernelDensity:
    """Entropy by a Gaussian kernel density estimate.

    Takes samples of T = S + Z, as in Goldfeld et al. Choose it only to compare: its
    bias falls slowly in n and has no known bound.

    Parameters
    ----------
    bandwidth : float, optional
        Standard deviation of the kernel, in the units of the samples. Positive. By
        default the one of largest leave-one-out likelihood (cross-validation), judged
        at up to 1000 of the samples.
    evaluate : "leave-one-out" or "resubstitution"
        Whether a sample's own kernel is left out of the density at that sample. With
        it (resubstitution) the entropy is biased low and tends to -infinity as the
        bandwidth falls.
    num_queries : int, optional
        Samples to average the log-density over, drawn at random; all of them by
        default.
    num_resamples : int
        Subsamples for the standard error; 0 leaves it infinite. The plain bootstrap
        would put samples on top of each other.

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.

    Notes
    -----
    Cost at most O(num_queries n d) time, and the same for no more than 1000 queries for
    each of about 40 widths that are tried.

    Source: Parzen (1962); Hall and Morton (1993) for the entropy; the likelihood's
    cross-validation: Habbema, Hermans and van den Broek (1974).

    Examples
    --------
    >>> import numpy as np
    >>> samples = np.random.default_rng(0).standard_normal((2000, 1))
    >>> estimate = KernelDensity().entropy(samples)
    >>> bool(abs(estimate.value - 1.4189) < 3 * estimate.standard_error)
    True
    """

    bandwidth: float | None = None
    evaluate: Literal["leave-one-out", "resubstitution"] = "leave-one-out"
    num_queries: int | None = None
    num_resamples: int = 50

    def __post_init__(self) -> None:
        if self.bandwidth is not None:
            width = _checks.as_real("bandwidth", self.bandwidth)
            if width <= 0:
                raise ValueError(f"bandwidth must be positive, got {width}")
            if not _SMALLEST <= width <= _LARGEST:
                raise ValueError(
                    f"bandwidth must be between {_SMALLEST:g} and {_LARGEST:g}, got "
                    f"{width}; rescale the samples"
                )
            object.__setattr__(self, "bandwidth", width)
        if self.evaluate not in ("leave-one-out", "resubstitution"):
            raise ValueError(
                'evaluate must be "leave-one-out" or "resubstitution", got '
                f"{self.evaluate!r}"
            )
        if self.num_queries is not None:
            number = _checks.as_int("num_queries", self.num_queries, at_least=1)
            object.__setattr__(self, "num_queries", number)
        number = checked_num_resamples(self.num_resamples)
        object.__setattr__(self, "num_resamples", number)

    def entropy(self, samples: Any, *, seed: int = 0) -> Estimate:
        """Differential entropy h(T), the mean of -log of the estimated density, nats.

        Parameters
        ----------
        samples : (n, d) array
            At least 2 samples of T, noise included. NumPy array or torch tensor,
            float32 or float64. May repeat where the bandwidth is given.
        seed : int
            Of the queries and of the subsampling.

        Returns
        -------
        Estimate
            No bracket: `lower` and `upper` are infinite.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong shape, type or range, or if the samples repeat
            so often that no bandwidth is too small for them.
        """
        points = as_samples(samples)
        return self._estimate(points, [np.arange(len(points))], seed, is_entropy=True)

    def mutual_information(
        self, samples: Any, about: Any, *, seed: int = 0
    ) -> Estimate:
        """Information I(Y; T) = h(T) - sum_y p(y) h(T | Y = y), in nats.

        Parameters
        ----------
        samples : (n, d) array
            Samples of T, noise included. NumPy array or torch tensor, float32 or
            float64.
        about : (n,) array
            Labels Y: integers, booleans or strings; at least 2 samples of each. Every
            label's density has a bandwidth of its own where none is given.
        seed : int
            Of the queries and of the subsampling, which keeps the labels' shares.

        Returns
        -------
        Estimate
            May be negative. No bracket: `lower` and `upper` are infinite. The standard
            error is infinite with fewer than 4 samples of a label.

        Raises
        ------
        TypeError, ValueError
            As `entropy` does, and if a label has fewer than 2 samples.
        """
        points = as_samples(samples)
        return self._estimate(
            points, groups_of(about, len(points)), seed, is_entropy=False
        )

    def chosen_bandwidth(self, samples: Any, *, seed: int = 0) -> float:
        """The bandwidth that `entropy` uses for these samples."""
        return self._bandwidth(as_samples(samples), seed)

    def _estimate(
        self, points: Floats, groups: list[Indices], seed: int, *, is_entropy: bool
    ) -> Estimate:
        """h(T), or its difference to the groups' mean entropy, with its error."""
        smallest = min(len(group) for group in groups)
        if smallest < 2:
            whose = "" if is_entropy else " of every label"
            raise ValueError(
                f"samples must hold at least 2 rows{whose}, got {smallest}"
            )
        sets = [np.sort(np.concatenate(groups)), *([] if is_entropy else groups)]
        widths = [self._bandwidth(points[members], seed) for members in sets]
        (d,) = points.shape[1:]

        def entropy_of(members: Indices, number: int, share: float) -> float:
            """Of all samples of a set, or of some at a bandwidth scaled accordingly.

            To first order the bandwidth's own error does not matter for the standard
            error: it minimises the leave-one-out entropy.
            """
            width = widths[number]
            if self.bandwidth is None:
                width *= (len(sets[number]) / len(members)) ** (1 / (d + 4))
            return self._mean(points[members], width, seed, share)

        def statistic(parts: list[Indices], share: float) -> float:
            if is_entropy:
                return entropy_of(parts[0], 0, share)
            return information_between(
                lambda members, number: entropy_of(members, number, share), parts
            )

        error = subsampling_error(
            statistic, groups, at_least=2, num_resamples=self.num_resamples, seed=seed
        )
        num_pairs = sum(
            len(queries_of(len(members), self.num_queries, seed)) * len(members)
            for members in sets
        )
        return Estimate(
            statistic(groups, 1.0), error, -math.inf, math.inf, 0.0, num_pairs
        )

    def _mean(self, points: Floats, width: float, seed: int, share: float) -> float:
        """Mean of -log density over a share of the queries."""
        limit = scaled_queries(self.num_queries, len(points), share)
        own = queries_of(len(points), limit, seed)
        return _mean_surprise(points, width, own, self.evaluate == "leave-one-out")

    def _bandwidth(self, points: Floats, seed: int) -> float:
        """The given bandwidth, or that of the largest leave-one-out likelihood."""
        if self.bandwidth is not None:
            _arrays.check_resolution("samples", points, self.bandwidth)
            return self.bandwidth
        centered = points - points.mean(axis=0)
        spread = math.sqrt(float((centered**2).mean()))
        if spread == 0:
            raise ValueError(
                "samples must differ for a bandwidth to be chosen, got one point "
                f"{len(points)} times; give the bandwidth"
            )
        own = queries_of(len(points), _SEARCH_QUERIES, seed)
        known: dict[float, float] = {}

        def loss(width: float) -> float:
            if width not in known:
                known[width] = _mean_surprise(centered, width, own, True)
            return known[width]

        best = _LARGEST_SHARE * spread
        step = _COARSE_STEP
        while best > _SMALL_SHARE * spread or loss(best * step) == min(known.values()):
            if best < _SMALLEST_SHARE * spread:
                raise ValueError(
                    "samples must not repeat for a bandwidth to be chosen: the "
                    "smaller, the likelier they are; give the bandwidth, or add the "
                    "noise to them"
                )
            loss(best)
            best /= step
        best = min(known, key=known.__getitem__)
        for _ in range(4):
            step = math.sqrt(step)
            best = min((best / step, best, best * step), key=loss)
        return best


def _mean_surprise(
    points: Floats, width: float, own: Indices, is_left_out: bool
) -> float:
    """Mean of -log density at the samples `own`, with or without their own kernel."""
    log_own, log_others = prepare(points, width).log_own_and_others(points[own], own)
    if not is_left_out:
        return -float(np.logaddexp(log_own, log_others).mean())
    n = len(points)
    return -float(np.asarray(log_others).mean() + math.log(n / (n - 1)))
