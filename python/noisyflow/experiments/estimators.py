"""Error against the number of samples: ours, nearest neighbours and kernel densities.

The simulation study of Goldfeld, Greenewald and Polyanskiy (2018), arXiv 1810.11589,
figures 2, 3, 4, 6 and 7: Gaussians at the corners of a cube, the third layer of a noisy
network, and codes over the Gaussian channel. Ours sees samples of S and knows the
noise; the others see samples of T = S + Z, as in the paper.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import report
from noisyflow._checks import as_int
from noisyflow.experiments import spiral_layer
from noisyflow.experiments.cells import CellTable
from noisyflow.experiments.estimator_findings import (
    LONG_CODE,
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
from noisyflow.experiments.sampled_sources import cells, compute, prepare_spiral
from noisyflow.runs import RunFolder, check_device
from noisyflow.runtime import check_device_name

__all__ = ["Config", "claims", "configure", "plot", "run"]

_CUBE_NOISE = (0.05, 0.1, 0.2)
_OPEN_CUBE_NOISE = (0.1, 0.2)

_LONG_CODE_NOISE = 2.0
_SHORT_CODE_NOISE = tuple(float(s) for s in np.logspace(-1, 1, 11).round(4))


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
        sources = _sources(spiral_layer.source(table.prepared))
        work = list(cells(sources, config.num_repetitions, config.max_samples))
        opening_words = (
            f"{len({cell.source.name for cell in work})} sources, {len(work)} pieces "
            f"of work, up to n = {max(cell.num_samples for cell in work)}"
        )
        if not table.complete(
            "estimators",
            work,
            partial(compute, config.seed, config.device),
            opening_words,
        ):
            return False
        study = Study(
            sources,
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


def _prepared(config: Config) -> dict[str, NDArray[Any]]:
    """What all cells need: the network whose layer is one of the sources."""
    print("estimators: training the network on the spiral", flush=True)
    return prepare_spiral(config.seed, config.device)
