"""The specification: what every kernel computes, in plain NumPy and float64.

Kernels are optimisations of these functions and are tested against them. Nothing here is
fast, and memory is O(m n d). The one rule: direct differences, never |x|^2 + |y|^2 - 2 x.y,
which loses all digits at small noise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


class BlockLogSums(NamedTuple):
    """Four log-sums per point, each (m,), in nats: see `mixture_block_log_sums`."""

    own_center: Array
    inner: Array
    outer: Array
    rest: Array


def _log_terms(
    points: Array, centers: Array, noise_std: float, weights: Array | None
) -> Array:
    """log( w_j N(x_i; y_j, noise_std^2 I) ), (m, n)."""
    points = np.asarray(points, np.float64)
    centers = np.asarray(centers, np.float64)
    (n, d) = centers.shape
    squares = ((points[:, None, :] - centers[None, :, :]) ** 2).sum(axis=2)
    exponents = -squares / (2 * noise_std**2)
    with np.errstate(divide="ignore"):
        log_weights = (
            np.full(n, -np.log(n))
            if weights is None
            else np.log(np.asarray(weights, np.float64))
        )
    normaliser = 0.5 * d * np.log(2 * np.pi * noise_std**2)
    return np.asarray(exponents + log_weights - normaliser)


def _log_sum_exp(terms: Array, where: NDArray[np.bool_]) -> Array:
    """log sum over axis 1 of the chosen terms; -inf where none is chosen."""
    terms = np.where(where, terms, -np.inf)
    top = terms.max(axis=1, initial=-np.inf)
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(terms - shift[:, None]).sum(axis=1)) + shift)


def mixture_log_density(
    points: Array, centers: Array, noise_std: float, weights: Array | None = None
) -> Array:
    """log sum_j w_j N(x_i; y_j, noise_std^2 I), (m,), nats; uniform weights by default."""
    terms = _log_terms(points, centers, noise_std, weights)
    return _log_sum_exp(terms, np.ones(terms.shape, bool))


def mixture_block_log_sums(
    points: Array,
    centers: Array,
    noise_std: float,
    own: NDArray[np.integer],
    offsets: NDArray[np.integer],
    outer_offsets: NDArray[np.integer] | None = None,
    weights: Array | None = None,
) -> BlockLogSums:
    """The mixture's sum at each point, split by the point's own block of centers.

    Block b holds the centers offsets[b] .. offsets[b+1]-1; outer blocks are unions of
    consecutive blocks, by default the same blocks. Point i belongs to center own[i], and

        own_center[i] = log of that center's term,
        inner[i]      = log sum over the other centers of its block,
        outer[i]      = log sum over its outer block without its block,
        rest[i]       = log sum over all other centers,

    so that the mixture's log-density is the log-sum-exp of the four.
    """
    terms = _log_terms(points, centers, noise_std, weights)
    (n,) = terms.shape[1:]
    own = np.asarray(own)
    outer_offsets = offsets if outer_offsets is None else outer_offsets
    block = np.searchsorted(offsets, np.arange(n), side="right")
    outer_block = np.searchsorted(outer_offsets, np.arange(n), side="right")
    is_own = np.arange(n)[None, :] == own[:, None]
    is_inner = block[None, :] == block[own][:, None]
    is_outer = outer_block[None, :] == outer_block[own][:, None]
    return BlockLogSums(
        own_center=_log_sum_exp(terms, is_own),
        inner=_log_sum_exp(terms, is_inner & ~is_own),
        outer=_log_sum_exp(terms, is_outer & ~is_inner),
        rest=_log_sum_exp(terms, ~is_outer),
    )
