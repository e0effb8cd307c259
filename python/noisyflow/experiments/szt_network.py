"""The network of the SZT task: how it is set, built, trained and looked at.

Shared by `szt` and the experiments that compare several such networks. A `Config` is
all that decides one training and its measurements.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import datasets
from noisyflow._arrays import check_noise_std
from noisyflow._checks import as_int, as_real
from noisyflow.experiments.several_trainings import Arm
from noisyflow.nn import NoisyMLP, check_activation
from noisyflow.runtime import check_device_name
from noisyflow.tracking import InformationTracker
from noisyflow.training import Trainer, set_parameters

SIZES = (12, 10, 7, 5, 4, 3, 2)
CEILING = math.log(4096)

# Targets of the measurement, in nats.
STANDARD_ERROR = 0.04
BRACKET_WIDTH = 0.04

# Fixed: the figures of a run must not depend on when they are made.
_FIGURE_SEED = 0

# A thousand times the authors' run; what is more is a slip of the keyboard.
_MOST_EPOCHS = 10_000_000


@dataclass(frozen=True)
class Config:
    """Settings of one run; the defaults are the authors'.

    Parameters
    ----------
    epochs : int
        Passes over the training inputs, from 2 to 10 million; the last epoch is
        `epochs - 1`.
    num_log_points : int
        Logarithmically spaced epochs to measure at, before rounding makes some of them
        coincide. 100 gives 84 of 10,000.
    noise_std : float
        Standard deviation of the noise in every hidden layer, positive.
    activation : str
        tanh, relu, leaky_relu, linear or sigmoid.
    learning_rate : float
        Of Adam; at most 1.
    batch_size : int
        Inputs per step.
    orthonormal_rate : float
        Step of the orthonormality regulariser; 0 leaves it out, 1e-4 is the authors'
        choice. Less than 1, where it would diverge.
    weight_decay : float
        Adam's penalty on the weights and biases: this times each is added to its
        gradient. 0 leaves it out, as the authors did; at most 1.
    seed : int
        Decides split, initial weights, order of inputs, noise and measurement; in
        [0, 2**63).
    device : str
        Where network and data are: cpu, cuda, cuda:1, ... Path importance, which
        measures, runs on the CPU from a copy of the weights.

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.
    """

    epochs: int = 10_000
    num_log_points: int = 100
    noise_std: float = 0.005
    activation: str = "tanh"
    learning_rate: float = 4e-4
    batch_size: int = 256
    orthonormal_rate: float = 0.0
    weight_decay: float = 0.0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        whole = {
            "epochs": (2, _MOST_EPOCHS),
            "num_log_points": (1, 100_000),
            "batch_size": (1, None),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in whole.items():
            value = as_int(name, getattr(self, name), at_least=low, at_most=high)
            object.__setattr__(self, name, value)
        check_noise_std(self.noise_std, np.dtype(np.float32))
        check_activation(self.activation)
        if not 0 < as_real("learning_rate", self.learning_rate) <= 1:
            raise ValueError(
                f"learning_rate must be positive and at most 1, got "
                f"{self.learning_rate}"
            )
        if not 0 <= as_real("orthonormal_rate", self.orthonormal_rate) < 1:
            raise ValueError(
                f"orthonormal_rate must be 0 or more and below 1, got "
                f"{self.orthonormal_rate}"
            )
        if not 0 <= as_real("weight_decay", self.weight_decay) <= 1:
            raise ValueError(
                f"weight_decay must be between 0 and 1, got {self.weight_decay}"
            )
        for name in ("noise_std", "learning_rate", "orthonormal_rate", "weight_decay"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "device", check_device_name(self.device))

    @property
    def is_authors_training(self) -> bool:
        """Whether training is as the authors', but for seed, device and length."""
        return self == Config(
            epochs=self.epochs,
            num_log_points=self.num_log_points,
            seed=self.seed,
            device=self.device,
        )


def logged_epochs(epochs: int, num_log_points: int) -> list[int]:
    """Epochs at which a run of `epochs` passes is measured, from 1 to `epochs - 1`.

    Returns
    -------
    list of int
        unique(round(logspace(0, log10(epochs - 1), num_log_points))), as the authors
        did.
    """
    spaced = np.logspace(0, math.log10(epochs - 1), num_log_points)
    return sorted({round(epoch) for epoch in spaced} | {epochs - 1})


def build(
    config: Config, train: datasets.Dataset
) -> tuple[Trainer, InformationTracker]:
    """A fresh network's trainer and tracker, equal at every call.

    Parameters
    ----------
    config : Config
    train : Dataset
        What it learns.

    Returns
    -------
    (Trainer, InformationTracker)
        The tracker measures over all 4096 inputs.
    """
    network = NoisyMLP(
        SIZES,
        activation=config.activation,
        noise_std=config.noise_std,
        seed=config.seed,
    )
    trainer = Trainer(
        network,
        train.inputs,
        train.labels,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        orthonormal_rate=config.orthonormal_rate,
        weight_decay=config.weight_decay,
        seed=config.seed,
        device=config.device,
    )
    everything = datasets.szt()
    tracker = InformationTracker(
        network,
        everything.inputs,
        everything.labels,
        seed=config.seed,
        standard_error=STANDARD_ERROR,
        bracket_width=BRACKET_WIDTH,
    )
    return trainer, tracker


def arm(name: str, config: Config) -> Arm:
    """A network for `several_trainings.complete`, a run of `szt` in its own folder.

    Parameters
    ----------
    name : str
    config : Config

    Returns
    -------
    Arm
    """
    train, test = datasets.split(datasets.szt(), seed=config.seed)
    return Arm(
        name,
        lambda: build(config, train),
        train,
        test,
        logged_epochs(config.epochs, config.num_log_points),
        asdict(config),
        experiment="szt",
    )


def layer_outputs(
    config: Config, parameters: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    """S_l of every hidden layer with the weights of one logged epoch.

    Parameters
    ----------
    config : Config
    parameters : (p,) array
        A row of `Results.parameters`.

    Returns
    -------
    list of (4096, d_l) arrays
        One draw of the noise of earlier layers, always the same.
    """
    network = NoisyMLP(SIZES, activation=config.activation, noise_std=config.noise_std)
    set_parameters(network, parameters)
    inputs = torch.from_numpy(datasets.szt().inputs)
    outputs = network.clean_outputs(inputs, seed=_FIGURE_SEED)
    return [layer[:, 0].numpy() for layer in outputs]


def labels(config: Config) -> NDArray[np.int64]:
    """The class of every input that information is measured over, (4096,)."""
    return datasets.szt().labels
