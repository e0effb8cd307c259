"""Equal samples are one center with a larger weight: less work, the same mixture."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisyflow._rows import AbstractRows

Floats = NDArray[Any]
Points = NDArray[np.floating]
Indices = NDArray[np.int64]

_MULTIPLIER_SEED = 0x6D65726765  # "merge"


class Merged(NamedTuple):
    """Where each distinct center was met first, how often it is there, and which."""

    first: Indices  # (k,) ascending
    counts: Indices  # (k,)
    center: Indices  # (n,) of every sample, among the k


def merge_duplicates(centers: Any, blocks: Indices | None = None) -> Merged | None:
    """Equal rows of (n, d) centers within each block; None where there are none.

    blocks (b + 1,): first row of every block, and n; one block by default.
    """
    if isinstance(centers, AbstractRows):
        found = centers.duplicates(blocks)
        return None if found is None else Merged(*found)
    key = row_hash(centers)
    if blocks is not None:
        block = np.repeat(np.arange(len(blocks) - 1), np.diff(blocks))
        key = key + block_hash(block)
    merged = equal_keys(key)
    if merged is None:
        return None
    if not (centers == centers[merged.first[merged.center]]).all():
        return None  # two different rows of one hash: once in 2^64 pairs
    return merged


def equal_keys(key: NDArray[np.uint64]) -> Merged | None:
    """Rows of equal keys (n,), as `merge_duplicates`; None where all differ."""
    (_, first, inverse, counts) = np.unique(
        key, return_index=True, return_inverse=True, return_counts=True
    )
    if len(first) == len(key):
        return None
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return Merged(first[order], counts[order], rank[inverse])


def split_own_center(
    own_center: Floats, counts: Indices | None
) -> tuple[Floats, Floats | float]:
    """Log-terms of one sample of a merged center, and of the others equal to it."""
    if counts is None:
        return own_center, -np.inf
    with np.errstate(divide="ignore"):  # log 0: there is no other
        equal = own_center + np.log1p(-1 / counts)
    return own_center - np.log(counts), equal


def row_hash(centers: Points, seed: int = _MULTIPLIER_SEED) -> NDArray[np.uint64]:
    """64 bits that equal rows share."""
    bits = (centers + 0).view(f"u{centers.itemsize}")  # -0.0 becomes 0.0
    total = np.zeros(len(centers), np.uint64)
    multipliers = _multipliers(centers.shape[1], seed)
    for column, multiplier in zip(bits.T, multipliers, strict=True):
        mixed = (column.astype(np.uint64) + multiplier) * multiplier
        total += (mixed ^ (mixed >> np.uint64(29))) * multiplier
    return total


def block_hash(block: Indices) -> NDArray[np.uint64]:
    """What the block of a row adds to its hash."""
    return np.asarray(_multipliers(2)[1] * block.astype(np.uint64))


def _multipliers(count: int, seed: int = _MULTIPLIER_SEED) -> NDArray[np.uint64]:
    generator = np.random.default_rng(seed)
    return generator.integers(2**63, 2**64, size=count, dtype=np.uint64) | np.uint64(1)
