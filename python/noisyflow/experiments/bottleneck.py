"""The nonlinear information bottleneck: cross-entropy plus beta times I(X; T).

A network whose last hidden layer is noisy, T = S + Z, is trained with a penalty on the
information that this layer carries of the input, over a sweep of beta. S is a function
of X, so that I(X; T) of a batch is that of a known mixture and its gradient is as exact
as its queries are many. Kolchinsky, Tracey, Wolpert (2019), "Nonlinear Information
Bottleneck", have a bound in its place.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noisyflow import _arrays, report
from noisyflow._checks import as_int, as_real
from noisyflow.datasets import Dataset, digits, split, szt
from noisyflow.estimate import UndersampledWarning
from noisyflow.experiments.bottleneck_findings import (
    Study,
    caution,
    claims,
    curve_table,
    difference_table,
    opening,
    plot,
    summary,
    work_table,
)
from noisyflow.experiments.cells import CellRows, CellTable
from noisyflow.experiments.tracked_figures import label_entropy
from noisyflow.information import mutual_information
from noisyflow.nn import GaussianNoise
from noisyflow.runs import Row, RunError, RunFolder, check_device
from noisyflow.runtime import check_device_name
from noisyflow.training import one_thread

__all__ = ["Config", "claims", "configure", "plot", "run"]

SZT, DIGITS = "szt", "digits"
_STREAM = 0x626F74  # "bot": apart from numbers drawn elsewhere with the same seed

_UNITS, _BEFORE, _AFTER = 5, 32, 16  # of the noisy layer, and of those around it
_LEARNING_RATE = 0.005
_BATCH = 256
# The penalty grows to its beta over this part of the training: a full one makes the
# layer forget everything before the labels have taught it anything.
_WARM_UP = 0.25
# Pairs of one penalty: two queries at every input of a batch for the gradient, each of
# two passes, and as many for the value.
_PAIRS_OF_STEP = 8 * _BATCH**2
_NUM_LOGS = 10
_DRAWS = 16  # of the noise, for an accuracy


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Parameters
    ----------
    betas : tuple of float
        Weights of I(X; T) in the loss; increasing, the first is 0, below 1, beyond
        which no information about the label is worth its price.
    num_seeds : int
        Trainings for each beta, at least 2. The same seed means the same initial
        weights, batches and noise, whatever the beta.
    num_steps : int
        Batches of 256 inputs in each training, at least 10.
    noise_std : float
        Of the noisy layer, whose units are in [-1, 1]; 0.05 to 1.
    seed : int
        Decides all random numbers; in [0, 2**63).
    device : str
        Where networks are trained and information is computed: cpu, cuda, cuda:1, ...

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.
    """

    betas: tuple[float, ...] = (0.0, 0.01, 0.03, 0.1, 0.2, 0.4)
    num_seeds: int = 4
    num_steps: int = 600
    noise_std: float = 0.25
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        whole = {
            "num_seeds": (2, 100),
            "num_steps": (10, 100_000),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in whole.items():
            value = as_int(name, getattr(self, name), at_least=low, at_most=high)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "device", check_device_name(self.device))
        noise_std = _arrays.check_noise_std(self.noise_std)
        if not 0.05 <= noise_std <= 1:
            raise ValueError(
                "noise_std must be between 0.05 and 1 for units in [-1, 1], got"
                f" {noise_std:g}"
            )
        object.__setattr__(self, "noise_std", noise_std)
        if not isinstance(self.betas, (list, tuple)):
            raise TypeError(
                "betas must be a list of numbers, such as [0, 0.1], got "
                f"{type(self.betas).__name__}"
            )
        betas = tuple(as_real("betas", beta) for beta in self.betas)
        if len(betas) < 2 or betas[0] != 0 or list(betas) != sorted(set(betas)):
            raise ValueError(
                f"betas must begin with 0 and increase, at least two, got {betas}"
            )
        if betas[-1] >= 1:
            raise ValueError(f"betas must be below 1, got {betas[-1]:g}")
        object.__setattr__(self, "betas", betas)


@dataclass(frozen=True)
class Task:
    """Data to learn: a training part, a test part, and all inputs as X."""

    name: str
    everything: Dataset
    train: Dataset
    test: Dataset
    is_population: bool  # there are no other inputs


@dataclass(frozen=True)
class Cell:
    """One training."""

    task: Task
    beta: float
    repetition: int

    @property
    def name(self) -> str:
        """For the progress line."""
        return f"{self.task.name} beta={self.beta:g} seed={self.repetition}"

    @property
    def cost(self) -> float:
        """About in proportion to its seconds."""
        return 0.25 if self.beta == 0 else 1.0


class Network(torch.nn.Module):
    """An encoder to the layer S, noise, T = S + Z, and a decoder; tanh throughout."""

    def __init__(
        self, num_inputs: int, num_classes: int, noise_std: float, seed: int
    ) -> None:
        super().__init__()
        linear, tanh = torch.nn.Linear, torch.nn.Tanh
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = torch.nn.Sequential(
                *(linear(num_inputs, _BEFORE), tanh(), linear(_BEFORE, _UNITS), tanh())
            )
            self.decoder = torch.nn.Sequential(
                *(linear(_UNITS, _AFTER), tanh(), linear(_AFTER, num_classes))
            )
        self.noise = GaussianNoise(noise_std, seed=seed)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """S, of shape (m, units), and logits."""
        clean = self.encoder(inputs)
        return clean, self.decoder(self.noise(clean))


def configure(*, quick: bool = False, **settings: Any) -> Config:
    """The settings of a run: full size, or a quick version, with some replaced.

    Parameters
    ----------
    quick : bool
        Three betas, two seeds and 250 steps: less than a minute.
    **settings
        Fields of `Config`.
    """
    brief = {"betas": (0.0, 0.1, 0.4), "num_seeds": 2, "num_steps": 250}
    return Config(**{**(brief if quick else {}), **settings})


def run(config: Config, out: Path) -> bool:
    """Trains all networks in an output folder, from its last checkpoint if it has one.

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
        is not there, or if the folder holds results on the digits and scikit-learn is
        gone.

    Notes
    -----
    Full size: some minutes on two cores. Resuming gives the same numbers bit for bit as
    not having stopped, on the same machine. The digits are those of scikit-learn's
    `load_digits`, which come with it; where it is not installed they are left out, and
    a run resumed after it was installed adds them.
    """
    check_device(config.device)
    folder = RunFolder(out)
    table = CellTable(folder, dict)
    with folder.open("bottleneck", asdict(config)):
        table.resume()
        tasks = _tasks(config)
        cells = list(_cells(config, tasks))
        if table.num_done > len(cells):
            raise RunError(
                f"{out} holds results on the digits, and scikit-learn is not installed;"
                " run: pip install scikit-learn"
            )
        with one_thread(torch.device(config.device)):
            is_finished = table.complete(
                "bottleneck", cells, partial(_compute, config), _plan(config, tasks)
            )
        if not is_finished:
            return False
        study = Study(
            table.metrics,
            table.history,
            {task.name: label_entropy(task.everything.labels) for task in tasks},
            {task.name: len(task.everything) for task in tasks},
        )
        report.write_page(
            folder,
            "The information bottleneck: accuracy against information",
            [
                *opening(study, config.noise_std),
                *plot(study, folder),
                *caution(study),
                report.claims_table("What the penalty does", claims(study)),
                *(difference_table(study, name) for name in study.tasks),
                *(curve_table(study, name) for name in study.tasks),
                report.settings_table(asdict(config)),
                work_table(study, folder),
            ],
        )
        print(summary(study))
        print(f"bottleneck: report in {folder.report}")
    return True


def _tasks(config: Config) -> list[Task]:
    """What is learned, the digits last: a run without them can be gone on with."""
    patterns = szt()
    tasks = [Task(SZT, patterns, *split(patterns, seed=config.seed), True)]
    images = _digits()
    if images is not None:
        tasks.append(Task(DIGITS, images, *split(images, seed=config.seed), False))
    return tasks


def _digits() -> Dataset | None:
    """The digits that come with scikit-learn; None without it."""
    return digits() if importlib.util.find_spec("sklearn") is not None else None


def _cells(config: Config, tasks: Sequence[Task]) -> Iterator[Cell]:
    """All trainings, in their order."""
    for task in tasks:
        for beta in config.betas:
            for repetition in range(config.num_seeds):
                yield Cell(task, beta, repetition)


def _compute(config: Config, cell: Cell) -> CellRows:
    """Trains one network and measures it now and then."""
    started = time.perf_counter()
    task, train = cell.task, cell.task.train
    key = (_STREAM, *task.name.encode(), cell.repetition)
    words = np.random.SeedSequence(config.seed, spawn_key=key).generate_state(
        3, np.uint64
    )
    (network_seed, batch_seed, query_seed) = (int(word) for word in words)
    network = Network(
        train.inputs.shape[1],
        int(task.everything.labels.max()) + 1,
        config.noise_std,
        network_seed,
    ).to(config.device)
    optimizer = torch.optim.Adam(network.parameters(), _LEARNING_RATE)
    batches = _batches(train, torch.Generator().manual_seed(batch_seed), config.device)
    logged = _logged_steps(config.num_steps)
    rows = [_measured(config, cell, network, 0, query_seed)]
    step_seconds = []
    for step in range(1, config.num_steps + 1):
        began = time.perf_counter()
        (inputs, labels) = next(batches)
        network.train()
        (clean, logits) = network(inputs)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        if cell.beta > 0:
            information = mutual_information(
                clean[:, None],
                config.noise_std,
                max_pairs=_PAIRS_OF_STEP,
                seed=(query_seed + step) % 2**64,
            )
            grown = min(1.0, step / (_WARM_UP * config.num_steps))
            loss = loss + cell.beta * grown * information.value
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        loss.item()  # waits for a GPU; what it has left to do falls to the next step
        step_seconds.append(time.perf_counter() - began)
        if step in logged:
            rows.append(_measured(config, cell, network, step, query_seed))
    if not math.isfinite(rows[-1]["train_loss"]):
        raise RunError(f"training diverged on {task.name} at beta = {cell.beta:g}")
    seconds = time.perf_counter() - started
    history: Row = {
        "task": task.name,
        "beta": cell.beta,
        "seconds": round(seconds, 3),
        # Of a training step, measurements apart; the first ones warm up.
        "step_seconds": round(
            statistics.median(step_seconds[config.num_steps // 5 :]), 6
        ),
    }
    return CellRows(rows, [history])


def _batches(
    data: Dataset, generator: torch.Generator, device: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Whole batches of shuffled inputs without end."""
    (inputs, labels) = _on(device, data)
    while True:
        order = torch.randperm(len(inputs), generator=generator).to(device)
        for rows in torch.split(order[: len(order) // _BATCH * _BATCH], _BATCH):
            yield inputs[rows], labels[rows]


def _on(device: str, data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels as tensors on the device."""
    return (
        torch.from_numpy(data.inputs).to(device),
        torch.from_numpy(data.labels).to(device),
    )


def _logged_steps(num_steps: int) -> list[int]:
    """Steps after which a network is measured, evenly on a logarithmic axis."""
    steps = np.geomspace(min(8, num_steps), num_steps, _NUM_LOGS)
    return sorted({round(step) for step in steps})


@torch.no_grad()
def _measured(
    config: Config, cell: Cell, network: Network, step: int, seed: int
) -> Row:
    """One row of `metrics.csv`; all with the noise on, as the network was trained."""
    task = cell.task
    network.eval()
    (inputs, labels) = _on(config.device, task.everything)
    clean = network.encoder(inputs)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndersampledWarning)  # a column says so
        about_input, about_label = (
            mutual_information(
                clean,
                config.noise_std,
                labels=of,
                inputs="fixed" if task.is_population else "sampled",
                seed=seed,
            )
            for of in (None, labels)
        )
    generator = torch.Generator(config.device).manual_seed(seed % 2**63)
    (train_loss, on_train) = _evaluated(
        network, *_on(config.device, task.train), generator
    )
    (_, on_test) = _evaluated(network, *_on(config.device, task.test), generator)
    return {
        "task": task.name,
        "beta": cell.beta,
        "repetition": cell.repetition,
        "step": step,
        "mutual_information": about_input.value,
        "standard_error": about_input.standard_error,
        "lower": about_input.lower,
        "upper": about_input.upper,
        "is_undersampled": int(about_input.is_undersampled),
        "label_information": about_label.value,
        "label_standard_error": about_label.standard_error,
        "train_loss": train_loss,
        "train_accuracy": float(on_train.mean()),
        "test_accuracy": float(on_test.mean()),
        # Of the inputs that happen to be in the test set.
        "test_standard_error": float(on_test.std(ddof=1)) / math.sqrt(len(on_test)),
    }


def _evaluated(
    network: Network,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    generator: torch.Generator,
) -> tuple[float, np.ndarray[Any, np.dtype[np.float64]]]:
    """Mean cross-entropy, and per input the share of noise draws classified rightly."""
    clean = network.encoder(inputs).expand(_DRAWS, -1, -1)
    logits = network.decoder(network.noise.add_noise(clean, generator))
    labels = labels.expand(_DRAWS, -1)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    is_right = (logits.argmax(dim=2) == labels).double()
    return loss.item(), is_right.mean(dim=0).cpu().numpy()


def _plan(config: Config, tasks: Sequence[Task]) -> str:
    """What will be done, and what is missing."""
    num_cells = len(tasks) * len(config.betas) * config.num_seeds
    text = (
        f"{num_cells} trainings of {config.num_steps} steps, beta "
        + ", ".join(f"{beta:g}" for beta in config.betas)
        + f", on {' and '.join(task.name for task in tasks)}"
    )
    if len(tasks) == 1:
        text += (
            "\n  without the digits, as scikit-learn is not installed; pip install"
            " scikit-learn adds them"
        )
    return text
