"""Entropy of a noisy network's third layer against the number of samples.

A network 2-8-9-10-3 with noise 0.2 tells the arms of a spiral apart: Goldfeld,
Greenewald and Polyanskiy (2018), arXiv 1810.11589, figure 6. The entropy of its third
layer is estimated by three methods, and known from many samples and, independently,
from the weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from noisyflow import report
from noisyflow._checks import as_int
from noisyflow.experiments import (
    estimator_findings,
    sampled_sources,
    spiral_layer,
    verdicts,
)
from noisyflow.experiments.cells import CellTable
from noisyflow.experiments.spiral_findings import (
    Study,
    checks,
    claims,
    opening,
    plot,
    summary,
)
from noisyflow.runs import RunFolder, check_device
from noisyflow.runtime import check_device_name

__all__ = ["Config", "claims", "configure", "plot", "run"]


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Parameters
    ----------
    num_repetitions : int
        Independent repetitions up to 1000 samples, at least 2; fewer beyond.
    max_samples : int
        Largest number of samples, from 100 to 10 million.
    seed : int
        Decides the spiral, the network and all random numbers; in [0, 2**63).
    device : str
        Where the network is trained and our entropies are computed: cpu, cuda, ...

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
        3 repetitions of up to 10,000 samples: less than a minute.
    **settings
        Fields of `Config`.
    """
    brief = {"num_repetitions": 3, "max_samples": 10_000} if quick else {}
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
        is not there, or if the network does not learn.

    Notes
    -----
    Full size: a minute or two on two cores. Resuming gives the same numbers bit for bit
    as not having stopped, on the same machine. With the same seed the network and the
    samples are those of the experiment `estimators`.
    """
    check_device(config.device)
    folder = RunFolder(out)
    table = CellTable(folder, lambda: _prepared(config))
    with folder.open("spiral", asdict(config)):
        table.resume()
        source = spiral_layer.source(table.prepared)
        cells = list(
            sampled_sources.cells([source], config.num_repetitions, config.max_samples)
        )
        if not table.complete(
            "spiral",
            cells,
            partial(sampled_sources.compute, config.seed, config.device),
            f"{len(cells)} pieces of work, up to n = {cells[-1].num_samples}",
        ):
            return False
        study = Study([source], table.metrics, table.history, table.prepared)
        report.write_page(
            folder,
            "Entropy of a noisy network's third layer",
            [
                *opening(study),
                *plot(study, folder, config.seed),
                report.claims_table("What the paper's figure shows", claims(study)),
                report.claims_table(verdicts.CHECKS, checks(study)),
                estimator_findings.error_table(study),
                report.settings_table(asdict(config)),
                report.work_table(folder),
            ],
        )
        print(summary(study))
        print(f"spiral: report in {folder.report}")
    return True


def _prepared(config: Config) -> dict[str, NDArray[Any]]:
    """The trained network and the entropy to compare with."""
    print("spiral: training the network", flush=True)
    return sampled_sources.prepare_spiral(config.seed, config.device)
