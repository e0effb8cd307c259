"""One noisy neuron that merges three of its four symbols while it learns.

T = tanh(w X + b) + Z, X equally likely -3, -1, 1 and 3, is to be -1 for the first three
and +1 for the last: Goldfeld et al. (2019), "Estimating Information Flow in Deep Neural
Networks". T is a mixture of four Gaussians, so that I(X; T) is known by quadrature,
beside which the estimate is put.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import _arrays, report
from noisyflow._checks import as_int, as_positive
from noisyflow.experiments import verdicts
from noisyflow.experiments.cells import CellRows, CellTable
from noisyflow.experiments.exact_channels import Floats, gaussian_information
from noisyflow.experiments.single_neuron_findings import (
    Study,
    checks,
    claims,
    opening,
    plot,
    step_table,
    summary,
)
from noisyflow.information import mutual_information
from noisyflow.runs import RunError, RunFolder

__all__ = ["INPUTS", "TARGETS", "Config", "claims", "configure", "plot", "run", "train"]

INPUTS = np.array([-3.0, -1.0, 1.0, 3.0])
TARGETS = np.array([-1.0, -1.0, -1.0, 1.0])

_STREAM = 0x6E6575  # "neu": apart from numbers drawn elsewhere with the same seed
_NUM_LOGS = 60
_TARGET = 1e-6  # of the estimate's standard error, nats


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Parameters
    ----------
    num_seeds : int
        Trainings, which differ by their noise alone; at least 2.
    num_steps : int
        Steps of gradient descent, all four inputs in each; at least 10.
    learning_rate : float
        Positive. The paper does not state it.
    noise_std : float
        Of Z; 0.01 to 0.5.
    seed : int
        Decides all random numbers; in [0, 2**63).

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.
    """

    num_seeds: int = 5
    num_steps: int = 200_000
    learning_rate: float = 0.01
    noise_std: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        whole = {
            "num_seeds": (2, 1000),
            "num_steps": (10, 10_000_000),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in whole.items():
            value = as_int(name, getattr(self, name), at_least=low, at_most=high)
            object.__setattr__(self, name, value)
        rate = as_positive("learning_rate", self.learning_rate)
        object.__setattr__(self, "learning_rate", rate)
        noise_std = _arrays.check_noise_std(self.noise_std)
        if not 0.01 <= noise_std <= 0.5:
            raise ValueError(
                f"noise_std must be between 0.01 and 0.5, got {noise_std:g}"
            )
        object.__setattr__(self, "noise_std", noise_std)


@dataclass(frozen=True)
class Cell:
    """All measurements of one training."""

    repetition: int
    cost: float = 1.0

    @property
    def name(self) -> str:
        """For the progress line."""
        return f"seed {self.repetition}"


def configure(*, quick: bool = False, **settings: Any) -> Config:
    """The settings of a run: full size, or a quick version, with some replaced.

    Parameters
    ----------
    quick : bool
        Two seeds.
    **settings
        Fields of `Config`.
    """
    return Config(**{**({"num_seeds": 2} if quick else {}), **settings})


def run(config: Config, out: Path) -> bool:
    """Trains and measures the neuron in an output folder, resumed if it was begun.

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
        If the folder cannot be used or holds a run with other settings, or if the
        training diverges.

    Notes
    -----
    Full size: some ten seconds. Resuming gives the same numbers bit for bit as not
    having stopped, on the same machine.
    """
    folder = RunFolder(out)
    table = CellTable(folder, lambda: train(config))
    with folder.open("single-neuron", asdict(config)):
        table.resume()
        cells = [Cell(repetition) for repetition in range(config.num_seeds)]
        if not table.complete(
            "single-neuron",
            cells,
            partial(_compute, config, table.prepared),
            f"{config.num_seeds} trainings of {config.num_steps} steps, measured",
        ):
            return False
        study = Study(table.metrics, INPUTS, TARGETS, config.noise_std)
        report.write_page(
            folder,
            "One neuron merges three of its four symbols",
            [
                *opening(study, config.num_steps, config.learning_rate),
                *plot(study, folder),
                report.claims_table("What the paper describes", claims(study)),
                report.claims_table(verdicts.CHECKS, checks(study)),
                step_table(study),
                report.settings_table(asdict(config)),
                report.work_table(folder),
            ],
        )
        print(summary(study))
        print(f"single-neuron: report in {folder.report}")
    return True


def logged_steps(num_steps: int, count: int) -> list[int]:
    """The start, and up to `count` steps evenly on a logarithmic axis."""
    steps = np.geomspace(1, num_steps, count).round().astype(int)
    return sorted({0, *(int(step) for step in steps)})


def train(config: Config) -> dict[str, NDArray[Any]]:
    """Gradient descent on the mean of (T - target)^2 over the inputs, noise included.

    Parameters
    ----------
    config : Config

    Returns
    -------
    dict of arrays
        `steps` (k,), and `weights` (k, num_seeds, 2): w and b after each of them. All
        start at zero.

    Raises
    ------
    RunError
        If the weights leave all bounds.
    """
    generator = np.random.default_rng(
        np.random.SeedSequence(config.seed, spawn_key=(_STREAM,))
    )
    steps = logged_steps(config.num_steps, _NUM_LOGS)
    print("single-neuron: training", flush=True)
    weights = np.zeros((config.num_seeds, 2))
    wanted, logged = set(steps), []
    for step in range(config.num_steps + 1):
        if step in wanted:
            logged.append(weights.copy())
        clean = np.tanh(weights[:, :1] * INPUTS + weights[:, 1:])
        noise = config.noise_std * generator.standard_normal(clean.shape)
        slope = (clean + noise - TARGETS) * (1 - clean**2) * (2 / len(INPUTS))
        weights[:, 0] -= config.learning_rate * (slope @ INPUTS)
        weights[:, 1] -= config.learning_rate * slope.sum(axis=1)
    if not np.isfinite(weights).all():
        raise RunError("training diverged; a smaller learning_rate may help")
    return {"steps": np.array(steps), "weights": np.array(logged)}


def _compute(config: Config, prepared: dict[str, NDArray[Any]], cell: Cell) -> CellRows:
    """Information, loss and accuracy of one training at all logged steps."""
    metrics = []
    for step, weights in zip(
        prepared["steps"], prepared["weights"][:, cell.repetition], strict=True
    ):
        w, b = (float(weight) for weight in weights)
        levels = np.tanh(w * INPUTS + b)
        estimate = mutual_information(
            levels[:, None, None], config.noise_std, standard_error=_TARGET
        )
        metrics.append(
            {
                "repetition": cell.repetition,
                "step": int(step),
                "weight": w,
                "bias": b,
                "mutual_information": estimate.value,
                "standard_error": estimate.standard_error,
                "exact": gaussian_information(levels, config.noise_std),
                "loss": _loss(levels, config.noise_std),
                "error_rate": _error_rate(levels, config.noise_std),
            }
        )
    return CellRows(metrics, [])


def _loss(levels: Floats, noise_std: float) -> float:
    """Mean of (T - target)^2, over the noise as well."""
    return float(((levels - TARGETS) ** 2).mean() + noise_std**2)


def _error_rate(levels: Floats, noise_std: float) -> float:
    """How often T has the wrong sign."""
    from scipy.special import ndtr

    return float(ndtr(-TARGETS * levels / noise_std).mean())
