"""Two leaky ReLUs in a chain: information falls though nothing saturates.

T_1 = R(w_1 X + b_1) + Z_1 and T_2 = R(w_2 T_1 + b_2) + Z_2 with R(u) = max(u, u / 10),
X equally likely 1 to 8; T_2 is to be 0 up to 4 and 0.25 beyond: Goldfeld et al. (2019),
"Estimating Information Flow in Deep Neural Networks". Their information is given by
integrals in one dimension, which the estimates are put beside.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import _arrays, report
from noisyflow._checks import as_int, as_positive
from noisyflow.chain import NoisyChain, chain_information
from noisyflow.experiments import verdicts
from noisyflow.experiments.cells import CellRows, CellTable
from noisyflow.experiments.exact_channels import (
    Floats,
    bent_information,
    gaussian_information,
)
from noisyflow.experiments.single_neuron import logged_steps
from noisyflow.experiments.two_neurons_findings import (
    SLOPE,
    Study,
    bent,
    checks,
    claims,
    opening,
    plot,
    step_table,
    summary,
    weights_table,
)
from noisyflow.information import mutual_information
from noisyflow.runs import Row, RunError, RunFolder

__all__ = ["INPUTS", "TARGETS", "Config", "claims", "configure", "plot", "run", "train"]

INPUTS = np.arange(1.0, 9.0)
TARGETS = np.where(INPUTS <= 4, 0.0, 0.25)

_STREAM = 0x74776F  # "two": apart from numbers drawn elsewhere with the same seed
_START = (0.0, 4.5, -1.0, 0.0)  # w_1, b_1, w_2, b_2
_NUM_LOGS = 45
_DRAWS = 128  # of Z_1, for an estimate of I(X; T_2)
_CHAIN_ERROR = 0.01  # nats, of the enclosure from the known weights
# The rate falls to a twentieth once 99 % of these draws, 64 of each input, are right.
_LOOK_EVERY, _LOOK_DRAWS = 500, 64
_ACCURACY, _SLOWER = 0.99, 20


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Parameters
    ----------
    num_seeds : int
        Trainings, which differ by their noise alone; at least 2.
    num_steps : int
        Steps of gradient descent, all eight inputs in each; at least 10.
    learning_rate : float
        Positive; a twentieth of it once 99 % of the answers are right.
    noise_std : float
        Of both noises; 0.01 to 0.5.
    seed : int
        Decides all random numbers; in [0, 2**63).

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.
    """

    num_seeds: int = 5
    num_steps: int = 200_000
    learning_rate: float = 1e-3
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
    """The measurement of one training after one step."""

    repetition: int
    index: int
    with_enclosure: bool

    @property
    def name(self) -> str:
        """For the progress line."""
        return f"seed {self.repetition}"

    @property
    def cost(self) -> float:
        """About in proportion to its seconds."""
        return 15.0 if self.with_enclosure else 1.0


def configure(*, quick: bool = False, **settings: Any) -> Config:
    """The settings of a run: full size, or a quick version, with some replaced.

    Parameters
    ----------
    quick : bool
        Two seeds, and a fifth of the steps at five times the rate.
    **settings
        Fields of `Config`.
    """
    brief = {"num_seeds": 2, "num_steps": 40_000, "learning_rate": 5e-3}
    return Config(**{**(brief if quick else {}), **settings})


def run(config: Config, out: Path) -> bool:
    """Trains and measures the neurons in an output folder, resumed if it was begun.

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
    Full size: about a minute. Resuming gives the same numbers bit for bit as not having
    stopped, on the same machine.
    """
    folder = RunFolder(out)
    table = CellTable(folder, lambda: train(config))
    with folder.open("two-neurons", asdict(config)):
        table.resume()
        cells = _cells(config, table.prepared)
        if not table.complete(
            "two-neurons",
            cells,
            partial(_compute, config, table.prepared),
            f"{config.num_seeds} trainings of {config.num_steps} steps, measured",
        ):
            return False
        study = Study(
            table.metrics,
            INPUTS,
            TARGETS,
            config.noise_std,
            table.prepared["learnt"],
        )
        report.write_page(
            folder,
            "Two leaky ReLUs compress without saturation",
            [
                *opening(study, config.num_steps, config.learning_rate),
                *plot(study, folder),
                report.claims_table("What the paper describes", claims(study)),
                report.claims_table(verdicts.CHECKS, checks(study)),
                weights_table(study),
                step_table(study),
                report.settings_table(asdict(config)),
                report.work_table(folder),
            ],
        )
        print(summary(study))
        print(f"two-neurons: report in {folder.report}")
    return True


def train(config: Config) -> dict[str, NDArray[Any]]:
    """Gradient descent on the mean of (T_2 - target)^2 over the inputs, noise included.

    Parameters
    ----------
    config : Config

    Returns
    -------
    dict of arrays
        `steps` (k,); `weights` (k, num_seeds, 4): w_1, b_1, w_2, b_2 after each of
        them; `learnt` (num_seeds,): the step at which the rate fell, -1 if it did not.

    Raises
    ------
    RunError
        If the weights leave all bounds.
    """
    generator = np.random.default_rng(
        np.random.SeedSequence(config.seed, spawn_key=(_STREAM,))
    )
    print("two-neurons: training", flush=True)
    steps = logged_steps(config.num_steps, _NUM_LOGS)
    wanted, logged = set(steps), []
    weights = np.tile(_START, (config.num_seeds, 1))
    rate = np.full((config.num_seeds, 1), config.learning_rate)
    learnt = np.full(config.num_seeds, -1)
    for step in range(config.num_steps + 1):
        if step in wanted:
            logged.append(weights.copy())
        if step % _LOOK_EVERY == 0 and (learnt < 0).any():
            noise = generator.standard_normal((2, _LOOK_DRAWS, len(weights), 8))
            noisy = _forward(weights, config.noise_std * noise)[1]
            is_right = (noisy > TARGETS.mean()) == (TARGETS > 0)
            reached = (is_right.mean(axis=(0, 2)) >= _ACCURACY) & (learnt < 0)
            learnt[reached] = step
            rate[reached] /= _SLOWER
        noise = config.noise_std * generator.standard_normal((2, len(weights), 8))
        weights -= rate * _gradient(weights, noise)
    if not np.isfinite(weights).all():
        raise RunError("training diverged; a smaller learning_rate may help")
    return {"steps": np.array(steps), "weights": np.array(logged), "learnt": learnt}


def _forward(weights: Floats, noise: Floats) -> tuple[Floats, Floats]:
    """T_1 and T_2 of all inputs, (..., seeds, inputs)."""
    (w1, b1, w2, b2) = (weights[:, k, None] for k in range(4))
    first = bent(w1 * INPUTS + b1) + noise[0]
    return first, bent(w2 * first + b2) + noise[1]


def _gradient(weights: Floats, noise: Floats) -> Floats:
    """Of the mean squared error in all weights, by the chain rule; (seeds, 4)."""
    (w1, b1, w2, b2) = (weights[:, k, None] for k in range(4))
    before = w1 * INPUTS + b1
    first = bent(before) + noise[0]
    between = w2 * first + b2
    off = bent(between) + noise[1] - TARGETS
    at_second = 2 / len(INPUTS) * off * np.where(between > 0, 1.0, SLOPE)
    at_first = at_second * w2 * np.where(before > 0, 1.0, SLOPE)
    return np.stack(
        [
            at_first @ INPUTS,
            at_first.sum(axis=1),
            (at_second * first).sum(axis=1),
            at_second.sum(axis=1),
        ],
        axis=1,
    )


def _cells(config: Config, prepared: dict[str, NDArray[Any]]) -> list[Cell]:
    """All measurements; of the first seed some with an enclosure beside."""
    count = len(prepared["steps"])
    enclosed = {count // 2, 3 * count // 4, count - 1}
    return [
        Cell(repetition, index, repetition == 0 and index in enclosed)
        for repetition in range(config.num_seeds)
        for index in range(count)
    ]


def _compute(config: Config, prepared: dict[str, NDArray[Any]], cell: Cell) -> CellRows:
    """Information of both neurons, exact and estimated, with loss and accuracy."""
    noise_std = config.noise_std
    (w1, b1, w2, b2) = (
        float(weight) for weight in prepared["weights"][cell.index, cell.repetition]
    )
    generator = np.random.default_rng(
        np.random.SeedSequence(
            config.seed, spawn_key=(_STREAM, cell.repetition, cell.index)
        )
    )
    first = bent(w1 * INPUTS + b1)
    noise = noise_std * generator.standard_normal((len(INPUTS), _DRAWS))
    second = bent(w2 * (first[:, None] + noise) + b2)
    about_first = mutual_information(
        first[:, None, None], noise_std, standard_error=1e-6
    )
    about_second = mutual_information(second[..., None], noise_std)
    row: Row = {
        "repetition": cell.repetition,
        "step": int(prepared["steps"][cell.index]),
        "w1": w1,
        "b1": b1,
        "w2": w2,
        "b2": b2,
        "exact_1": gaussian_information(first, noise_std),
        "information_1": about_first.value,
        "exact_2": bent_information(
            w2 * first + b2, abs(w2) * noise_std, SLOPE, noise_std
        ),
        "information_2": about_second.value,
        "standard_error_2": about_second.standard_error,
        "lower_2": about_second.lower,
        "upper_2": about_second.upper,
        "loss": float(((second - TARGETS[:, None]) ** 2).mean() + noise_std**2),
        "error_rate": _error_rate(second, noise_std),
        "chain_lower": float("nan"),
        "chain_upper": float("nan"),
        "chain_error": float("nan"),
    }
    if cell.with_enclosure:
        enclosure = chain_information(
            _chain(w1, b1, w2, b2, noise_std),
            INPUTS[:, None],
            2,
            standard_error=_CHAIN_ERROR,
            bracket_width=_CHAIN_ERROR,
            seed=config.seed,
        ).mutual_information
        row["chain_lower"] = enclosure.lower
        row["chain_upper"] = enclosure.upper
        row["chain_error"] = enclosure.standard_error
    return CellRows([row], [])


def _error_rate(second: Floats, noise_std: float) -> float:
    """How often T_2 is on the wrong side of the middle; exact over Z_2."""
    from scipy.special import ndtr

    side = np.where(TARGETS > 0, 1.0, -1.0)[:, None]
    return float(ndtr(side * (TARGETS.mean() - second) / noise_std).mean())


def _chain(w1: float, b1: float, w2: float, b2: float, noise_std: float) -> NoisyChain:
    """The two neurons as modules of torch."""
    layers = []
    for weight, bias in ((w1, b1), (w2, b2)):
        linear = torch.nn.Linear(1, 1, dtype=torch.float64)
        torch.nn.init.constant_(linear.weight, weight)
        torch.nn.init.constant_(linear.bias, bias)
        layers.append(torch.nn.Sequential(linear, torch.nn.LeakyReLU(SLOPE)))
    return NoisyChain(layers, noise_std)
