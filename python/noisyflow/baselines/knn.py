"""Nearest neighbours: entropy and information from the distances between samples.

Takes samples of T = S + Z and knows nothing of the noise. scipy's k-d tree finds the
neighbours; it is imported when it is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from noisyflow import _arrays, _checks
from noisyflow._device import on_host
from noisyflow.baselines._resampling import (
    Floats,
    Indices,
    as_samples,
    checked_num_resamples,
    groups_of,
    queries_of,
    scaled_queries,
    subsampling_error,
)
from noisyflow.estimate import Estimate
from noisyflow.runtime import num_threads

# A query takes some microseconds, starting a thread a hundred.
_FEW_QUERIES = 2000
_LARGEST = 1e150  # whose squares are finite, in a thousand dimensions too


@dataclass(frozen=True)
class NearestNeighbor:
    """Entropy by Kozachenko and Leonenko, information by Kraskov et al. (KSG) and Ross.

    Takes samples of T = S + Z, as in Goldfeld et al. Choose it where nothing is known
    of the density and dimensions are few: it needs no width and hardly any samples to
    be finite, but in 10 dimensions it is off by nats.

    Parameters
    ----------
    num_neighbors : int
        k; more lower the variance and raise the bias.
    num_queries : int, optional
        Samples to average over, drawn at random; all of them by default.
    num_resamples : int
        Subsamples for the standard error; 0 leaves it infinite. The bootstrap is not
        valid here: it repeats samples, whose neighbours are then at distance zero.

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.

    Notes
    -----
    Cost about O(n d log n) time in few dimensions, O(num_queries n d) in many.

    Source: Kozachenko and Leonenko (1987); Kraskov, Stoegbauer and Grassberger (2004),
    eqs. (20) and (8); Ross (2014) for labels.

    Examples
    --------
    >>> import numpy as np
    >>> samples = np.random.default_rng(0).standard_normal((2000, 1))
    >>> estimate = NearestNeighbor().entropy(samples)
    >>> bool(abs(estimate.value - 1.4189) < 3 * estimate.standard_error)
    True
    """

    num_neighbors: int = 3
    num_queries: int | None = None
    num_resamples: int = 50

    def __post_init__(self) -> None:
        number = _checks.as_int("num_neighbors", self.num_neighbors, at_least=1)
        object.__setattr__(self, "num_neighbors", number)
        if self.num_queries is not None:
            number = _checks.as_int("num_queries", self.num_queries, at_least=1)
            object.__setattr__(self, "num_queries", number)
        number = checked_num_resamples(self.num_resamples)
        object.__setattr__(self, "num_resamples", number)

    def entropy(self, samples: Any, *, seed: int = 0) -> Estimate:
        """Differential entropy h(T) by Kozachenko and Leonenko, in nats.

        psi(n) - psi(k) + log V_d + d mean log r_k, r_k being the distance to the k-th
        neighbour and V_d the volume of the unit ball.

        Parameters
        ----------
        samples : (n, d) array
            Samples of T, noise included; more than `num_neighbors`, and none that
            repeats. NumPy array or torch tensor, float32 or float64.
        seed : int
            Of the queries and of the subsampling.

        Returns
        -------
        Estimate
            No bracket: `lower` and `upper` are infinite. The standard error is infinite
            with fewer than 2 (num_neighbors + 1) samples.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong shape, type or range, or if samples repeat.
        """
        points = as_samples(samples)

        def statistic(parts: list[Indices], share: float) -> float:
            return self._entropy(points[parts[0]], seed, share)

        return self._estimate(statistic, [np.arange(len(points))], "", seed)

    def mutual_information(
        self, samples: Any, about: Any, *, seed: int = 0
    ) -> Estimate:
        """Information I(Y; T) of samples about labels or about other samples, in nats.

        Parameters
        ----------
        samples : (n, d) array
            Samples of T, noise included, none that repeats. NumPy array or torch
            tensor, float32 or float64.
        about : (n,) or (n, c) array
            Y: labels (integers, booleans or strings), more than `num_neighbors` samples
            of each, for Ross's estimator; or a matrix of floats, samples of a
            continuous Y, for that of Kraskov et al.
        seed : int
            Of the queries and of the subsampling, which keeps the labels' shares.

        Returns
        -------
        Estimate
            May be negative. No bracket: `lower` and `upper` are infinite. The standard
            error is infinite with fewer than 2 (num_neighbors + 1) samples (of a
            label).

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong shape, type or range, or if samples repeat.
        """
        points = as_samples(samples)
        if not _arrays.is_tensor(about):
            about = _arrays.to_any_numpy("about", about)
        if about.ndim == 2:
            others = np.asarray(_arrays.as_matrix("about", on_host(about)), np.float64)
            if len(others) != len(points):
                raise ValueError(
                    f"about must have a row for every sample, {len(points)}, got "
                    f"{len(others)}"
                )

            def statistic(parts: list[Indices], share: float) -> float:
                (part,) = parts
                return self._of_pairs(points[part], others[part], seed, share)

            return self._estimate(statistic, [np.arange(len(points))], "", seed)

        def of_labels(parts: list[Indices], share: float) -> float:
            return self._of_labels([points[part] for part in parts], seed, share)

        groups = groups_of(about, len(points))
        return self._estimate(of_labels, groups, " of every label", seed)

    def _estimate(
        self, statistic: Any, groups: list[Indices], whose: str, seed: int
    ) -> Estimate:
        """A statistic of all samples with its error."""
        least = self.num_neighbors + 1
        fewest = min(len(group) for group in groups)
        if fewest < least:
            raise ValueError(
                f"samples must hold at least num_neighbors + 1 = {least} rows{whose}, "
                f"got {fewest}"
            )
        error = subsampling_error(
            statistic,
            groups,
            at_least=least,
            num_resamples=self.num_resamples,
            seed=seed,
        )
        return Estimate(statistic(groups, 1.0), error, -math.inf, math.inf, 0.0, 0)

    def _entropy(self, points: Floats, seed: int, share: float) -> float:
        (n, d) = points.shape
        radii = self._radii(points, points[self._queries(n, seed, share)], norm=2)
        log_ball = 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1)
        psi = _digamma()
        return float(
            psi(n) - psi(self.num_neighbors) + log_ball + d * np.log(radii).mean()
        )

    def _of_pairs(
        self, points: Floats, others: Floats, seed: int, share: float
    ) -> float:
        """psi(k) + psi(n) - mean of psi(n_x + 1) + psi(n_y + 1), in the max norm."""
        own = self._queries(len(points), seed, share)
        both = np.concatenate([points, others], axis=1)
        radii = np.nextafter(self._radii(both, both[own], norm=np.inf), 0)
        psi = _digamma()
        # The counts hold the sample itself, the 1 of the formula.
        counts = [
            _tree_of(part).query_ball_point(
                part[own],
                radii,
                p=np.inf,
                return_length=True,
                workers=_num_workers(len(own)),
            )
            for part in (points, others)
        ]
        return float(
            psi(self.num_neighbors)
            + psi(len(points))
            - np.mean(psi(counts[0]) + psi(counts[1]))
        )

    def _of_labels(self, parts: list[Floats], seed: int, share: float) -> float:
        """psi(k) + psi(n) - mean of psi(n_y) + psi(neighbours of any label)."""
        everyone = np.concatenate(parts)
        whole, n = _tree_of(everyone), len(everyone)
        psi = _digamma()
        mean = 0.0
        for part in parts:
            queries = part[self._queries(len(part), seed, share)]
            radii = np.nextafter(self._radii(part, queries, norm=2), 0)
            counts = whole.query_ball_point(
                queries,
                radii,
                return_length=True,
                workers=_num_workers(len(queries)),
            )
            mean += len(part) / n * float(psi(counts).mean() + psi(len(part)))
        return float(psi(self.num_neighbors) + psi(n) - mean)

    def _radii(self, points: Floats, queries: Floats, *, norm: float) -> Floats:
        """Distances of queries, which are points too, to their k-th neighbours."""
        k = self.num_neighbors + 1  # the query is its own nearest point
        distances, _ = _tree_of(points).query(
            queries, k=[k], p=norm, workers=_num_workers(len(queries))
        )
        radii = np.asarray(distances[:, 0])
        if radii.min() == 0:
            raise ValueError(
                f"samples must not repeat, got {k} or more equal rows: with neighbours "
                "at distance zero there is no density; add the noise to them"
            )
        return radii

    def _queries(self, n: int, seed: int, share: float) -> Indices:
        """All of n indices, or a share of as many as are wanted."""
        return queries_of(n, scaled_queries(self.num_queries, n, share), seed)


def _tree_of(points: Floats) -> Any:
    """scipy's k-d tree of the points; ValueError where distances would overflow."""
    largest = np.abs(points).max(initial=0)
    if largest > _LARGEST:
        raise ValueError(
            f"samples must be at most {_LARGEST:g} in size, got {largest:g}; rescale "
            "them"
        )
    from scipy.spatial import cKDTree

    return cKDTree(points)


def _num_workers(num_queries: int) -> int:
    """Threads for scipy: none for what takes less time than starting them."""
    return num_threads() if num_queries > _FEW_QUERIES else 1


def _digamma() -> Any:
    """The digamma function of arrays."""
    from scipy.special import digamma

    return digamma
