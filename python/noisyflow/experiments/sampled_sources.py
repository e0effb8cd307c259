"""Samples of a source, the same for every estimator, and what each makes of them.

Ours sees samples of S and knows the noise; the others see samples of T = S + Z. Several
studies share these pieces of work, and with the same seed their numbers.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow.baselines import KernelDensity, NearestNeighbor
from noisyflow.estimate import Estimate, TargetWarning, UndersampledWarning
from noisyflow.experiments import spiral_layer
from noisyflow.experiments.cells import CellRows
from noisyflow.experiments.estimator_findings import (
    LONG_CODE,
    METHODS,
    NEIGHBORS,
    OURS,
    SHORT_CODE,
)
from noisyflow.experiments.known_sources import Source
from noisyflow.information import entropy

_STREAM = 0x65737469  # "esti": apart from samples drawn elsewhere with the same seed
# Samples that the baselines' averages run over. Of a hundred thousand samples in 32
# dimensions a tree query looks at all; the spread of a single term, 4 nats at most,
# divided by the root of this number is far below their errors there.
_QUERIES, _QUERIES_OF_LONG_CODE = 10_000, 1000

# The standard error asked of ours, below what the samples themselves leave in most
# cases, and where it ends in any case: some 30,000 queries of 100,000 samples.
_TARGET = 0.002
_MOST_PAIRS = 3 * 10**9
_MOST_REFERENCE_PAIRS = 10**10


@dataclass(frozen=True)
class Cell:
    """One repetition of all methods on one source at one number of samples."""

    source: Source
    num_samples: int
    repetition: int
    methods: Sequence[str]

    @property
    def name(self) -> str:
        """For the progress line."""
        return f"{self.source.name} n={self.num_samples}"

    @property
    def cost(self) -> float:
        """About in proportion to its seconds."""
        d, n = self.source.num_dimensions, self.num_samples
        return 0.01 + 1e-5 * n + (1e-5 * d * n / 16 if d > 10 else 0.0)


def our_entropy(
    samples: Any,
    noise_std: float,
    seed: int,
    *,
    device: str = "cpu",
    standard_error: float = _TARGET,
    max_pairs: int = _MOST_PAIRS,
) -> Estimate:
    """Our estimate: the only call of it in these studies."""
    if device != "cpu":
        samples = torch.as_tensor(samples, device=device)
    with warnings.catch_warnings():
        # Few samples, and what they leave out of reach, are what is studied here.
        warnings.simplefilter("ignore", UndersampledWarning)
        warnings.simplefilter("ignore", TargetWarning)
        return entropy(
            samples,
            noise_std,
            standard_error=standard_error,
            max_pairs=max_pairs,
            seed=seed,
        )


def cells(
    sources: Sequence[Source], num_repetitions: int, max_samples: int
) -> Iterator[Cell]:
    """All pieces of work on these sources, in their order.

    Parameters
    ----------
    sources : sequence of Source
        The short code is swept over noise, with ours alone and at fewer numbers of
        samples.
    num_repetitions : int
        Up to 1000 samples; fewer beyond.
    max_samples : int

    Yields
    ------
    Cell
    """
    for source in sources:
        is_swept = source.num_dimensions == SHORT_CODE
        exponents = np.arange(4, 15, 2) if is_swept else np.arange(2, 15)
        for n in (round(10 ** (exponent / 2)) for exponent in exponents):
            if n > max_samples:
                break
            wanted = round(num_repetitions * min(1.0, math.sqrt(1000 / n)))
            count = max(wanted, min(3, num_repetitions))
            if is_swept:
                count = max(1, count // 3)
            methods = (OURS,) if is_swept else METHODS
            for repetition in range(count):
                yield Cell(source, n, repetition, methods)


def prepare_spiral(seed: int, device: str) -> dict[str, NDArray[Any]]:
    """The network whose layer is one of the sources, with the entropy to compare with.

    Parameters
    ----------
    seed : int
    device : str

    Returns
    -------
    dict of arrays
        As `spiral_layer.prepare` returns it.

    Raises
    ------
    RunError
        If the network does not learn.
    """
    precise = partial(our_entropy, device=device, max_pairs=_MOST_REFERENCE_PAIRS)
    return spiral_layer.prepare(seed, precise, device=device)


def compute(seed: int, device: str, cell: Cell) -> CellRows:
    """Estimates of all methods of a cell, from the same samples of S.

    Parameters
    ----------
    seed : int
        Of the run.
    device : str
        Where ours is computed.
    cell : Cell

    Returns
    -------
    CellRows
    """
    source = cell.source
    key = (_STREAM, *source.name.encode(), cell.num_samples, cell.repetition)
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    clean = source.sample(generator, cell.num_samples)
    noise = generator.standard_normal(clean.shape)
    noisy = clean.astype(np.float64) + source.noise_std * noise
    seed = int(generator.integers(2**63))
    is_long = source.num_dimensions == LONG_CODE
    queries = _QUERIES_OF_LONG_CODE if is_long else _QUERIES
    metrics, history = [], []
    for method in cell.methods:
        started = time.perf_counter()
        if method == OURS:
            estimate = our_entropy(clean, source.noise_std, seed, device=device)
        elif method == NEIGHBORS:
            estimate = NearestNeighbor(num_queries=queries, num_resamples=0).entropy(
                noisy, seed=seed
            )
        else:
            estimate = KernelDensity(num_queries=queries, num_resamples=0).entropy(
                noisy, seed=seed
            )
        seconds = time.perf_counter() - started
        metrics.append(
            {
                "source": source.name,
                "num_dimensions": source.num_dimensions,
                "noise_std": source.noise_std,
                "num_samples": cell.num_samples,
                "repetition": cell.repetition,
                "method": method,
                "entropy": estimate.value,
                "standard_error": estimate.standard_error,
                "lower": estimate.lower,
                "upper": estimate.upper,
                "exact": source.entropy,
            }
        )
        history.append({"method": method, "seconds": round(seconds, 4)})
    return CellRows(metrics, history)
