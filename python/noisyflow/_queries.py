"""Where to put queries: noise around centers, by randomised nets or by quadrature.

A round of random queries holds independent randomisations ("replicates"), because the
points of one net depend on each other: only the spread between replicates is an honest
error. Within a replicate a scrambled Sobol net fills the noise and centers are visited
at even steps along an order in which neighbours in space are neighbours.
"""

from __future__ import annotations

import math
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
_REACH = 6.5  # standard deviations that quadrature covers: 1e-10 is outside
_SHIFTS = {
    1: np.arange(3.0)[:, None] / 3,
    2: np.arange(5.0)[:, None] * [1, 2] / 5 % 1,
}


class Queries(NamedTuple):
    """Centers (replicates, steps) and standard normal noise (replicates, steps, d).

    Of `visit`: without replicates.
    """

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
        # Imported here and not above: it takes a second, and kernels do not need it.
        from scipy.special import ndtri
        from scipy.stats import qmc

        (self._sobol, self._normal_quantile) = (qmc.Sobol, ndtri)
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

    def visit(self, num_visits: int) -> Queries:
        """Every center equally often; own (v,), noise (v, d) of one net.

        Fewer visits than centers: an even part of them, each as likely as any other.
        Neighbours in space have neighbouring noise of the net, and so has each center.
        """
        n = self._n
        if num_visits >= n:
            rows = np.repeat(np.arange(n), num_visits // n)
        else:
            position = (np.arange(num_visits) + self._generator.random()) / num_visits
            rows = np.minimum((position * n).astype(np.int64), n - 1)
        own = rows if self._order is None else self._order[rows]
        return Queries(own, self._net(len(own)))

    def _net(self, steps: int) -> Floats:
        if self._d > _MOST_NET_DIMS:
            return self._generator.standard_normal((steps, self._d))
        net = self._sobol(self._d, scramble=True, bits=_SOBOL_BITS, rng=self._generator)
        size = 1 << (steps - 1).bit_length()  # other sizes are warned of
        uniform = net.random(size)[:steps] + 0.5 ** (_SOBOL_BITS + 1)  # never 0 or 1
        return np.asarray(self._normal_quantile(uniform), np.float64)


def shifted_grids(spacing: float, d: int) -> tuple[Floats, Floats]:
    """Nodes (g, q, d) and weights (g, q) of g grids for E f(z), z ~ N(0, I).

    The trapezoidal rule, which converges exponentially for analytic f. Its error at a
    shift u is a wave in u, of period `spacing`; the shifts sample the period evenly, so
    that the grids' mean cancels the wave and their spread shows its size. Together they
    are a grid (d = 1) or a good lattice (d = 2) with g times the nodes.
    """
    shifts = _SHIFTS[d]
    reach = math.ceil(_REACH / spacing) + 1
    steps = np.arange(-reach, reach + 1.0)
    grid = np.stack(np.meshgrid(*[steps] * d, indexing="ij"), axis=-1).reshape(-1, d)
    # Nodes that are negligible in all grids are dropped in all, so that shapes agree.
    kept = (np.maximum(np.abs(grid) - 1, 0) ** 2).sum(axis=1) * spacing**2 < _REACH**2
    nodes = spacing * (grid[kept] + shifts[:, None, :])
    weights = np.exp(-0.5 * (nodes**2).sum(axis=2))
    return nodes, weights / weights.sum(axis=1, keepdims=True)


def _spatial_order(centers: Points) -> Indices:
    """Neighbours in space become neighbours in the order."""
    rows = centers[:]  # on the host: of centers on a GPU this is a copy
    order: Indices = _core.kd_order(rows, _LEAF, num_threads())
    return order
