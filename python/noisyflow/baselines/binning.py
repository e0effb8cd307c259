"""Binning: activations rounded to cells of a grid, and the entropy of the counts.

Bins are [k w, (k + 1) w) for all whole k, so nothing is clipped: a ReLU may be as large
as it likes. What is measured depends on the width w, which therefore has no default;
`sweep` shows how much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from noisyflow import _checks
from noisyflow.baselines._resampling import (
    Indices,
    as_samples,
    checked_num_resamples,
    generator_of,
    groups_of,
)
from noisyflow.estimate import Estimate

# Beyond it neighbouring bins are one float.
_MOST_BINS = 2.0**53


@dataclass(frozen=True)
class Binning:
    """Entropies of activations that are rounded to bins of a given width.

    Takes samples of S, the activations without noise, as Shwartz-Ziv and Tishby do.
    Choose it to see how strongly activations cluster, not as an information that a
    deterministic network would lose: that is constant or infinite.

    Parameters
    ----------
    bin_width : float
        Width of the bins in every dimension, in the units of the samples. Positive. The
        first bin above zero is [0, bin_width).
    num_resamples : int
        Bootstrap samples for the standard error; 0 leaves it infinite.

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.

    Notes
    -----
    Biased low by about (bins that are hit - 1) / (2 n); where most samples have a bin
    of their own the result is log n, whatever the distribution, and the bootstrap says
    nothing of that.

    Source: Shwartz-Ziv and Tishby (2017), arXiv 1703.00810; what it measures: Goldfeld
    et al. (2019).

    Examples
    --------
    >>> import numpy as np
    >>> activations = np.array([[0.02], [0.03], [7.1], [7.1]])
    >>> round(Binning(0.1).entropy(activations).value, 4)  # log 2
    0.6931
    """

    bin_width: float
    num_resamples: int = 100

    def __post_init__(self) -> None:
        width = _checks.as_real("bin_width", self.bin_width)
        if width <= 0:
            raise ValueError(f"bin_width must be positive, got {width}")
        object.__setattr__(self, "bin_width", width)
        number = checked_num_resamples(self.num_resamples)
        object.__setattr__(self, "num_resamples", number)

    def entropy(self, samples: Any, *, seed: int = 0) -> Estimate:
        """Entropy H(Bin(S)) of the cell that a sample falls into, in nats.

        A discrete entropy: h(S) is about H(Bin(S)) + d log(bin_width) where the bins
        are narrow and still hold many samples each. Where S is a function of equally
        probable inputs, one row for each, it is also I(X; Bin(S)).

        Parameters
        ----------
        samples : (n, d) array
            NumPy array or torch tensor, float32 or float64.
        seed : int
            Of the bootstrap.

        Returns
        -------
        Estimate
            Between 0 and log n. No bracket: `lower` and `upper` are infinite.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong shape, type or range.
        """
        counts = np.bincount(self._cells(samples))
        return self._estimate(_discrete_entropy, counts, seed)

    def mutual_information(
        self, samples: Any, about: Any, *, seed: int = 0
    ) -> Estimate:
        """Information I(Y; Bin(S)) = H(Bin(S)) - H(Bin(S) | Y), in nats.

        Parameters
        ----------
        samples : (n, d) array
            NumPy array or torch tensor, float32 or float64.
        about : (n,) array
            Labels Y: integers, booleans or strings. A label for every input, repeated
            where a noisy network was fed the same input again, gives I(X; Bin(S)).
        seed : int
            Of the bootstrap, which draws pairs of sample and label.

        Returns
        -------
        Estimate
            No bracket: `lower` and `upper` are infinite.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong shape, type or range.
        """
        cells = self._cells(samples)
        label = np.empty(len(cells), np.int64)
        for number, group in enumerate(groups_of(about, len(cells))):
            label[group] = number
        pairs, inverse = np.unique(
            np.stack([cells, label], axis=1), axis=0, return_inverse=True
        )
        counts = np.bincount(inverse.ravel())

        def information(counts: Indices) -> float:
            of_cells, of_labels = (
                np.bincount(pairs[:, column], counts) for column in (0, 1)
            )
            return (
                _discrete_entropy(of_cells)
                + _discrete_entropy(of_labels)
                - _discrete_entropy(counts)
            )

        return self._estimate(information, counts, seed)

    def _cells(self, samples: Any) -> Indices:
        """The number of each sample's cell, (n,)."""
        corners = as_samples(samples)
        with np.errstate(over="ignore"):
            corners = np.floor(corners / self.bin_width)
        if np.abs(corners).max() > _MOST_BINS:
            raise ValueError(
                f"bin_width must be at least 2^-53 of the largest sample, got "
                f"{self.bin_width:g}"
            )
        # Column by column: the cells of the columns so far, numbered anew each time.
        cells = np.zeros(len(corners), np.int64)
        for column in corners.T:
            values, number = np.unique(column, return_inverse=True)
            # Below n^2 before, below n after: no overflow in any dimension.
            cells = np.unique(cells * len(values) + number, return_inverse=True)[1]
        return cells

    def _estimate(self, statistic: Any, counts: Indices, seed: int) -> Estimate:
        """A statistic of counts with its bootstrap error."""
        generator = generator_of(seed)
        n = int(counts.sum())
        error = math.inf
        if self.num_resamples:
            again = (
                statistic(generator.multinomial(n, counts / n))
                for _ in range(self.num_resamples)
            )
            error = float(np.std(list(again), ddof=1))
        return Estimate(max(statistic(counts), 0.0), error, -math.inf, math.inf, 0.0, 0)


def sweep(
    samples: Any,
    bin_widths: Iterable[float],
    *,
    about: Any = None,
    num_resamples: int = 100,
    seed: int = 0,
) -> dict[float, Estimate]:
    """Binned entropies, or information about labels, for a range of bin widths.

    Parameters
    ----------
    samples : (n, d) array
        As for `Binning`.
    bin_widths : iterable of float
        At least one; each positive.
    about : (n,) array, optional
        Labels: gives I(Y; Bin(S)) in place of H(Bin(S)).
    num_resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    dict of float to Estimate
        In the order of `bin_widths`.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape, type or range.

    Examples
    --------
    >>> import numpy as np
    >>> activations = np.linspace(-1, 1, 64, endpoint=False)[:, None]
    >>> for width, estimate in sweep(activations, [0.25, 1.0]).items():
    ...     print(width, round(estimate.value / np.log(2), 3), "bits")
    0.25 3.0 bits
    1.0 1.0 bits
    """
    if not np.iterable(bin_widths):
        raise TypeError(
            f"bin_widths must be a sequence, got {type(bin_widths).__name__}"
        )
    widths = list(bin_widths)
    if not widths:
        raise ValueError("bin_widths must hold at least one width, got none")
    estimates = {}
    for width in widths:
        method = Binning(width, num_resamples)
        estimates[method.bin_width] = (
            method.entropy(samples, seed=seed)
            if about is None
            else method.mutual_information(samples, about, seed=seed)
        )
    return estimates


def _discrete_entropy(counts: Any) -> float:
    """-sum p log p of p = counts / sum."""
    n = counts.sum()
    positive = counts[counts > 0]
    return float(np.log(n) - positive @ np.log(positive) / n)
