"""The estimators that the papers argue with, behind one interface.

Every method is a frozen record of its settings with two functions, `entropy(samples)`
and `mutual_information(samples, about)`, which return an `Estimate` in nats. No bias
bracket is known for any of them, so `lower` and `upper` are infinite unless a method
says otherwise. `KernelDensity` and `NearestNeighbor` take samples of the noisy T = S +
Z, as in the papers: they do not know the noise. `Binning` and `PairwiseDistance` take
samples of S, the layer before its noise.
"""

from __future__ import annotations

from typing import Any, Protocol

from noisyflow.baselines.binning import Binning, sweep
from noisyflow.baselines.kde import KernelDensity
from noisyflow.baselines.knn import NearestNeighbor
from noisyflow.baselines.pairwise import PairwiseDistance
from noisyflow.estimate import Estimate

__all__ = [
    "AbstractBaseline",
    "Binning",
    "KernelDensity",
    "NearestNeighbor",
    "PairwiseDistance",
    "sweep",
]


class AbstractBaseline(Protocol):
    """What all methods have in common."""

    def entropy(self, samples: Any, *, seed: int = 0) -> Estimate:
        """Entropy of the distribution of (n, d) samples; `seed` is for the error."""
        ...

    def mutual_information(
        self, samples: Any, about: Any, *, seed: int = 0
    ) -> Estimate:
        """Information of (n, d) samples about (n,) labels."""
        ...
