"""Error against the number of samples: ours, nearest neighbours and kernel densities.

The simulation study of Goldfeld, Greenewald and Polyanskiy (2018), arXiv 1810.11589,
figures 2, 3, 4, 6 and 7: Gaussians at the corners of a cube, the third layer of a noisy
network, and codes over the Gaussian channel. Ours sees samples of S and knows the
noise; the others see samples of T = S + Z, as in the paper.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import report
from noisyflow._checks import as_int
from noisyflow.baselines import KernelDensity, NearestNeighbor
from noisyflow.estimate import Estimate, TargetWarning, UndersampledWarning
from noisyflow.experiments import spiral_layer
from noisyflow.experiments.cells import CellRows, CellTable
from noisyflow.experiments.estimator_findings import (
    LONG_CODE,
    METHODS,
    NEIGHBORS,
    OURS,
    SHORT_CODE,
    Study,
    claims,
    error_table,
    opening,
    plot,
    summary,
    work_table,
)
from noisyflow.experiments.known_sources import Source, cube_mixture, full_code
from noisyflow.information import entropy
from noisyflow.runs import RunFolder, check_device
from noisyflow.runtime import check_device_name

__all__ = ["Config", "claims", "configure", "plot", "run"]

_STREAM = 0x65737469  # "esti": apart from samples drawn elsewhere with the same seed
_CUBE_NOISE = (0.05, 0.1, 0.2)
_OPEN_CUBE_NOISE = (0.1, 0.2)

_LONG_CODE_NOISE = 2.0
_SHORT_CODE_NOISE = tuple(float(s) for s in np.logspace(-1, 1, 11).round(4))
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
class Config:
    """Settings of one run.

    Parameters
    ----------
    num_repetitions : int
        Independent repetitions up to 1000 samples, at least 2; fewer beyond, as the
        root of their number, but 3 where so many are asked for.
    max_samples : int
        Largest number of samples, from 100 to 10 million. The paper went to 10 million
        in figure 2.
    seed : int
        Decides all random numbers; in [0, 2**63).
    device : str
        Where the spiral's network is trained and our entropies are computed: cpu, cuda,
        cuda:1, ... The other methods run on the CPU.

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.
    """

    num_repetitions: int = 10
    max_samples: int = 100_000
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        whole = {
            "num_repetitions": (2, 1000),
            "max_samples": (100, 10_000_000),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in whole.items():
            value = as_int(name, getattr(self, name), at_least=low, at_most=high)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "device", check_device_name(self.device))


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


def configure(*, quick: bool = False, **settings: Any) -> Config:
    """The settings of a run: full size, or a quick version, with some replaced.

    Parameters
    ----------
    quick : bool
        3 repetitions of up to 3162 samples: less than a minute.
    **settings
        Fields of `Config`.
    """
    brief = {"num_repetitions": 3, "max_samples": 3162} if quick else {}
    return Config(**{**brief, **settings})


def run(config: Config, out: Path) -> bool:
    """Estimates everything in an output folder, from its last checkpoint if it has one.

    Parameters
    ----------
    config : Config
    out : Path
        Created if needed. A finished run there has its figures and report made again.

    Returns
    -------
    bool
        Whether the run is finished; False after Ctrl-C.

    Raises
    ------
    RunError
        If the folder cannot be used or holds a run with other settings, if the device
        is not there, or if the spiral network does not learn.

    Notes
    -----
    Full size: some minutes on two cores. Resuming gives the same numbers bit for bit as
    not having stopped, on the same machine.
    """
    check_device(config.device)
    folder = RunFolder(out)
    table = CellTable(folder, lambda: _prepared(config))
    with folder.open("estimators", asdict(config)):
        table.resume()
        cells = list(_cells(config, spiral_layer.source(table.prepared)))
        opening_words = (
            f"{len({cell.source.name for cell in cells})} sources, {len(cells)} pieces "
            f"of work, up to n = {max(cell.num_samples for cell in cells)}"
        )
        if not table.complete(
            "estimators", cells, partial(_compute, config), opening_words
        ):
            return False
        study = Study(
            _sources(spiral_layer.source(table.prepared)),
            table.metrics,
            table.history,
            table.prepared,
        )
        report.write_page(
            folder,
            "Estimators of entropy against the number of samples",
            [
                opening(study),
                *plot(study, folder),
                report.claims_table("What the papers' figures show", claims(study)),
                error_table(study),
                report.settings_table(asdict(config)),
                work_table(study, folder),
            ],
        )
        print(summary(study))
        print(f"estimators: report in {folder.report}")
    return True


def _entropy(
    samples: Any,
    noise_std: float,
    seed: int,
    *,
    device: str = "cpu",
    standard_error: float = _TARGET,
    max_pairs: int = _MOST_PAIRS,
) -> Estimate:
    """Our estimate: the only call of it in this study."""
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


def _sources(spiral: Source) -> list[Source]:
    """Everything that is estimated, in the order of the report."""
    return [
        *(
            cube_mixture(d, noise_std, is_truncated=True)
            for d in (5, 10)
            for noise_std in _CUBE_NOISE
        ),
        *(cube_mixture(10, noise, is_truncated=False) for noise in _OPEN_CUBE_NOISE),
        spiral,
        full_code(LONG_CODE, _LONG_CODE_NOISE),
        *(full_code(SHORT_CODE, noise_std) for noise_std in _SHORT_CODE_NOISE),
    ]


def _cells(config: Config, spiral: Source) -> Iterator[Cell]:
    """All pieces of work, in their order."""
    for source in _sources(spiral):
        is_swept = source.num_dimensions == SHORT_CODE
        exponents = np.arange(4, 15, 2) if is_swept else np.arange(2, 15)
        for n in (round(10 ** (exponent / 2)) for exponent in exponents):
            if n > config.max_samples:
                break
            most = config.num_repetitions
            wanted = round(most * min(1.0, math.sqrt(1000 / n)))
            count = max(wanted, min(3, most))
            if is_swept:
                count = max(1, count // 3)
            methods = (OURS,) if is_swept else METHODS
            for repetition in range(count):
                yield Cell(source, n, repetition, methods)


def _compute(config: Config, cell: Cell) -> CellRows:
    """Estimates of all methods of a cell, from the same samples of S."""
    source = cell.source
    key = (_STREAM, *source.name.encode(), cell.num_samples, cell.repetition)
    generator = np.random.default_rng(
        np.random.SeedSequence(config.seed, spawn_key=key)
    )
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
            estimate = _entropy(clean, source.noise_std, seed, device=config.device)
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


def _prepared(config: Config) -> dict[str, NDArray[Any]]:
    """What all cells need: the network whose layer is one of the sources."""
    print("estimators: training the network on the spiral", flush=True)
    precise = partial(_entropy, device=config.device, max_pairs=_MOST_REFERENCE_PAIRS)
    return spiral_layer.prepare(config.seed, precise, device=config.device)
