"""Where to put queries: noise around centers, by randomised nets or by quadrature.

A round of random queries holds independent randomisations ("replicates"), because the
points of one net depend on each other: only the spread between replicates is an honest
error. Within a replicate a scrambled Sobol net fills the noise and centers are visited
at even steps along an order in which neighbours in space are neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisyflow import _core
from noisyflow.runtime import num_threads

Floats = NDArray[np.float64]
Points = NDArray[np.floating]
Indices = NDArray[np.int64]

NUM_REPLICATES = 16
# Nets in more dimensions are no better than random numbers at the sizes used here.
_MOST_NET_DIMS = 256
# Above, ordering costs more than even steps through space gain: there are more centers
# than queries, and what differs between centers is sampling error too.
_MOST_ORDERED_CENTERS = 200_000
_LEAF = 4  # centers that stand in any order
_SOBOL_BITS = 30
_NEGLIGIBLE = 1e-12  # weight of a node, next to 1


class Queries(NamedTuple):
    """Centers (replicates, steps) and standard normal noise (replicates, steps, d)."""

    own: Indices
    noise: Floats


class QuerySource:
    """Rounds of queries for centers that are chosen with these probabilities."""

    def __init__(
        self,
        centers: Points,
        weights: Floats | None,
        generator: np.random.Generator,
    ) -> None:
        (self._n, self._d) = centers.shape
        self._generator = generator
        self._order: Indices | None = None
        if 2 < self._n <= _MOST_ORDERED_CENTERS:
            self._order = _spatial_order(centers)
        self._ends: Floats | None = None
        if weights is not None:
            ordered = weights if self._order is None else weights[self._order]
            ends = np.cumsum(ordered)
            self._ends = ends / ends[-1]

    def steps_for(self, steps: int) -> int:
        """About this many steps a replicate: the same number at every center."""
        if self._ends is None and steps >= self._n:
            return int(self._n * (steps // self._n))
        return steps

    def draw(self, steps: int) -> Queries:
        """A round of independent replicates."""
        shifts = self._generator.random((NUM_REPLICATES, 1))
        position = (np.arange(steps) + shifts) / steps
        if self._ends is None:
            rows = (position * self._n).astype(np.int64)
        else:
            rows = np.searchsorted(self._ends, position, side="right")
        rows = np.minimum(rows, self._n - 1)
        own = rows if self._order is None else self._order[rows]
        return Queries(own, np.stack([self._net(steps) for _ in range(NUM_REPLICATES)]))

    def _net(self, steps: int) -> Floats:
        if self._d > _MOST_NET_DIMS:
            return self._generator.standard_normal((steps, self._d))
        # Imported here: it takes a second, and kernels do not need it.
        from scipy.special import ndtri
        from scipy.stats import qmc

        net = qmc.Sobol(self._d, scramble=True, bits=_SOBOL_BITS, rng=self._generator)
        size = 1 << (steps - 1).bit_length()  # other sizes are warned of
        uniform = net.random(size)[:steps] + 0.5 ** (_SOBOL_BITS + 1)  # never 0 or 1
        return np.asarray(ndtri(uniform), np.float64)


def gauss_hermite(num_nodes: int, d: int) -> tuple[Floats, Floats]:
    """Nodes (q, d) and weights (q,) of E f(z), z ~ N(0, I); negligible ones left out.

    Exact for polynomials of degree 2 num_nodes - 1 in every coordinate.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    weights = weights / weights.sum()
    grid = np.stack(np.meshgrid(*[nodes] * d, indexing="ij"), axis=-1).reshape(-1, d)
    product = weights
    for _ in range(d - 1):
        product = np.multiply.outer(product, weights).ravel()
    kept = product > _NEGLIGIBLE
    return grid[kept], product[kept] / product[kept].sum()


def _spatial_order(centers: Points) -> Indices:
    """Neighbours in space become neighbours in the order."""
    order: Indices = _core.kd_order(centers, _LEAF, num_threads())
    return order
