"""Rows of samples that are no array of this process: on a GPU, or on other ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
Indices = NDArray[np.int64]


class AbstractRows(ABC):
    """(n, d) finite rows: what estimators ask of the array of centers.

    Indexing brings rows here. `largest` is the largest entry by its size.
    """

    largest: float

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]: ...

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, rows: Any) -> Floats:
        """These rows as a NumPy array: a slice, or indices."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("these rows are not an array; index them, rows[:] for all")

    @abstractmethod
    def take(self, rows: NDArray[Any]) -> AbstractRows:
        """Some of the rows, where they are: indices or a mask."""

    @abstractmethod
    def duplicates(
        self, blocks: Indices | None
    ) -> tuple[Indices, Indices, Indices] | None:
        """Equal rows within each block: first row, number and group; None without any.

        first and number (k,) of every group, groups in the order of their first rows;
        group (n,) of every row.
        """

    @abstractmethod
    def mixture(
        self, noise_std: float, weights: Floats | None, max_lost_mass: float
    ) -> Any:
        """What `prepare` gives; weights are on the host."""

    @abstractmethod
    def block_log_sums(
        self,
        points: Floats,
        noise_std: float,
        own: Indices,
        offsets: Indices,
        outer_offsets: Indices | None,
        weights: Floats | None,
        include_rest: bool,
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """`mixture_block_log_sums` of NumPy queries; trusted."""

    @abstractmethod
    def covariances(self, noise_std: float, weights: Floats | None) -> Floats:
        """Posterior covariances at the rows themselves, (n, d, d), on the host."""


class SampledRows(NamedTuple):
    """Checked samples, input after input, and how many each input has."""

    rows: AbstractRows
    sizes: Indices
