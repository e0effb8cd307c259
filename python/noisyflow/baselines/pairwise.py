"""Pairwise distances: bounds of the mixture's entropy in place of the entropy.

Takes samples of S, the layer before its noise, and the noise. No random numbers and no
integral: every distance between samples counts once, in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from noisyflow import _arrays
from noisyflow.baselines._resampling import (
    Floats,
    Indices,
    as_samples,
    checked_num_resamples,
    groups_of,
    information_between,
    subsampling_error,
)
from noisyflow.bounds import entropy_bounds
from noisyflow.estimate import Estimate


@dataclass(frozen=True)
class PairwiseDistance:
    """Bounds of Kolchinsky and Tracey on the entropy of S + Z, as an estimate.

    Takes samples of S, as Saxe et al. do, who treat every layer as if the noise were
    added there and nowhere before. Choose it as a preview of `noisyflow.entropy`: the
    same mixture, its entropy bounded and not computed.

    Parameters
    ----------
    noise_std : float
        Standard deviation of Z, in the units of the samples. Positive.
    bound : "upper" or "lower"
        Which of the two bounds is the value. Their difference does not fall as n grows.
    num_resamples : int
        Subsamples for the standard error; 0 leaves it infinite. The plain bootstrap
        would put samples on top of each other.

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.

    Notes
    -----
    Cost O(n^2 d) time, O(n) memory.

    Source: Kolchinsky and Tracey (2017), Entropy 19, 361; used for layers by Saxe et
    al. (2018).

    Examples
    --------
    >>> import numpy as np
    >>> print(PairwiseDistance(1.0, num_resamples=0).entropy(np.zeros((9, 1))).value)
    1.4189385332046727
    """

    noise_std: float
    bound: Literal["upper", "lower"] = "upper"
    num_resamples: int = 50

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_std", _arrays.check_noise_std(self.noise_std))
        if self.bound not in ("upper", "lower"):
            raise ValueError(f'bound must be "upper" or "lower", got {self.bound!r}')
        number = checked_num_resamples(self.num_resamples)
        object.__setattr__(self, "num_resamples", number)

    def entropy(self, samples: Any, *, seed: int = 0) -> Estimate:
        """A bound of the differential entropy h(S + Z) of the samples' mixture, nats.

        Parameters
        ----------
        samples : (n, d) array
            Samples of S, without the noise. NumPy array or torch tensor, float32 or
            float64.
        seed : int
            Of the subsampling.

        Returns
        -------
        Estimate
            `lower` is the lower bound: on average over samples it lies below h(S + Z),
            as the mixture's entropy does. The upper bound is one of the mixture only,
            so `upper` is infinite.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong shape, type or range.
        """
        points = as_samples(samples)

        def statistic(parts: list[Indices], _: float = 1.0) -> float:
            return self._bound(points[parts[0]])

        bounds = entropy_bounds(points, self.noise_std)
        return Estimate(
            bounds.upper if self.bound == "upper" else bounds.lower,
            self._error(statistic, len(points), seed),
            bounds.lower,
            math.inf,
            0.0,
            2 * len(points) ** 2,
        )

    def mutual_information(
        self, samples: Any, about: Any, *, seed: int = 0
    ) -> Estimate:
        """Information I(Y; T) as the difference of two bounds of one kind, in nats.

        Parameters
        ----------
        samples : (n, d) array
            Samples of S, without the noise. NumPy array or torch tensor, float32 or
            float64.
        about : (n,) array
            Labels Y: integers, booleans or strings. A label of its own for every sample
            gives h(T) - h(Z), which Saxe et al. take for I(X; T).
        seed : int
            Of the subsampling, which draws pairs of sample and label.

        Returns
        -------
        Estimate
            A difference of two upper, or two lower, bounds is no bound: `lower` and
            `upper` are infinite.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong shape, type or range.
        """
        points = as_samples(samples)
        label = np.empty(len(points), np.int64)
        for number, group in enumerate(groups_of(about, len(points))):
            label[group] = number

        def statistic(parts: list[Indices], _: float = 1.0) -> float:
            (members,) = parts
            part, labels = points[members], label[members]
            groups = groups_of(labels, len(labels))
            return information_between(lambda some, _: self._bound(part[some]), groups)

        value = statistic([np.arange(len(points))])
        error = self._error(statistic, len(points), seed)
        pairs = len(points) ** 2 + int((np.bincount(label) ** 2).sum())
        return Estimate(value, error, -math.inf, math.inf, 0.0, pairs)

    def _bound(self, points: Floats) -> float:
        return float(getattr(entropy_bounds(points, self.noise_std), self.bound))

    def _error(self, statistic: Any, n: int, seed: int) -> float:
        return subsampling_error(
            statistic,
            [np.arange(n)],
            at_least=1,
            num_resamples=self.num_resamples,
            seed=seed,
        )
