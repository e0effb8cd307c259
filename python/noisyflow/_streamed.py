"""Mixtures whose centers stay on disk: memory-mapped, read in blocks, never whole."""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import _arrays
from noisyflow.prepared import prepare

Floats = NDArray[np.float64]
Points = NDArray[np.floating]
Indices = NDArray[np.int64]

_BLOCK_BYTES = 2**26  # of centers in memory at a time; a tree over them is three times
SMALLEST_STREAMED_BYTES = 2**26


def is_streamed(value: Any) -> bool:
    """Whether an array is a memory map that is worth reading in blocks."""
    return isinstance(value, np.memmap) and value.nbytes > SMALLEST_STREAMED_BYTES


class StreamedMixture:
    """What `PreparedMixture` answers, with the centers read once for every call."""

    def __init__(
        self, centers: Points, noise_std: float, weights: Points | None
    ) -> None:
        self._centers = centers
        self._noise_std = noise_std
        self._weights = weights
        self._file = _shared_file(centers)
        (n, d) = centers.shape
        self._rows = max(1, _BLOCK_BYTES // (d * centers.itemsize))
        self._starts = range(0, n, self._rows)

    def check(self, name: str) -> None:
        """Finite, and not so large that the noise is rounded away."""
        for start in self._starts:
            rows = self._read(start)
            bad = np.argwhere(~np.isfinite(rows))
            if len(bad):
                (row, column) = bad[0]
                raise ValueError(
                    f"{name} must be finite, got {rows[row, column]} at "
                    f"[{start + row}, {column}]"
                )
            _arrays.check_resolution(name, rows, self._noise_std)

    def log_own_and_others(self, points: Points, own: Indices) -> tuple[Floats, Floats]:
        """As `PreparedMixture.log_own_and_others`; best called with many points."""
        n = len(self._centers)
        own_center = np.full(len(points), -np.inf)
        others = np.full(len(points), -np.inf)
        for start in self._starts:
            rows = self._read(start)
            weights, share = None, math.log(len(rows) / n)
            if self._weights is not None:
                part = np.asarray(self._weights[start : start + len(rows)], np.float64)
                if not part.sum() > 0:
                    continue
                share = math.log(part.sum())
                weights = (part / part.sum()).astype(rows.dtype)
            mixture = prepare(rows, self._noise_std, weights=weights)
            is_here = (own >= start) & (own < start + len(rows))
            here, elsewhere = np.flatnonzero(is_here), np.flatnonzero(~is_here)
            if len(here):
                (term, rest) = mixture.log_own_and_others(
                    points[here], own[here] - start
                )
                own_center[here] = term + share
                others[here] = np.logaddexp(others[here], rest + share)
            if len(elsewhere):
                density = mixture.log_density(points[elsewhere])
                others[elsewhere] = np.logaddexp(others[elsewhere], density + share)
        return own_center, others

    def _read(self, start: int) -> Points:
        """A block of centers in memory; its pages of the file are given back."""
        rows = np.array(self._centers[start : start + self._rows])
        if self._file is not None:
            self._file.madvise(mmap.MADV_DONTNEED)
        return rows


def _shared_file(array: Any) -> mmap.mmap | None:
    """The mapping behind an array; None if dropping its pages could lose a change."""
    if getattr(array, "mode", None) not in ("r", "r+"):
        return None
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array if hasattr(array, "madvise") else None
