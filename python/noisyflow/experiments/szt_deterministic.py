"""The SZT network without noise, beside the noisy one: what bins make of a constant.

Both networks have the same split, initial weights and order of inputs. The outputs of
the deterministic one are a function of the input that maps no two inputs to one point,
so that I(X;T_l) is log 4096 whatever it learns; what bins show is a matter of their
width. The noisy one has an information that changes, and it is enclosed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import datasets
from noisyflow._checks import as_real
from noisyflow.experiments import szt_deterministic_findings as findings
from noisyflow.experiments import szt_network
from noisyflow.experiments.several_trainings import Arm, complete
from noisyflow.experiments.szt_without_noise import (
    DistinctOutputs,
    Floats,
    clean_outputs,
)
from noisyflow.nn import NoisyMLP
from noisyflow.report import write_page
from noisyflow.runs import RunError, RunFolder, check_device
from noisyflow.tracking import AbstractTracker
from noisyflow.training import Trainer

DETERMINISTIC, NOISY = "deterministic", "noisy"

plot, claims = findings.plot, findings.claims


@dataclass(frozen=True)
class Config:
    """Settings of one run; those of the networks are the authors'.

    Parameters
    ----------
    epochs : int
        Passes over the training inputs of each network, from 2 to 10 million.
    num_log_points : int
        Logarithmically spaced epochs to measure at, before rounding makes some of them
        coincide. 100 gives 84 of 10,000.
    noise_std : float
        Standard deviation of the noise in every hidden layer of the noisy network,
        positive.
    bin_widths : sequence of float
        Widths of the bins, positive, one or more, all different; kept in increasing
        order. Beside them, bins of 10 noise_std are looked at.
    learning_rate : float
        Of Adam; at most 1.
    batch_size : int
        Inputs per step.
    seed : int
        Decides split, initial weights, order of inputs, noise and measurement; in
        [0, 2**63).
    device : str
        Where networks and data are: cpu, cuda, cuda:1, ... What is measured runs on the
        CPU.

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.
    """

    epochs: int = 10_000
    num_log_points: int = 100
    noise_std: float = 0.005
    bin_widths: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1)
    learning_rate: float = 4e-4
    batch_size: int = 256
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        network = self.network()  # checks what it has, and keeps it as it should be
        for name, value in asdict(network).items():
            if hasattr(self, name):
                object.__setattr__(self, name, value)
        if isinstance(self.bin_widths, str) or not isinstance(
            self.bin_widths, Sequence
        ):
            raise TypeError(
                "bin_widths must be a sequence of numbers, got "
                f"{type(self.bin_widths).__name__}"
            )
        widths = tuple(sorted(as_real("bin_widths", one) for one in self.bin_widths))
        if not widths or widths[0] <= 0 or len(set(widths)) < len(widths):
            raise ValueError(
                f"bin_widths must be positive and all different, got {widths}"
            )
        object.__setattr__(self, "bin_widths", widths)

    def network(self) -> szt_network.Config:
        """The settings of the noisy network, as `szt` has them."""
        return szt_network.Config(
            epochs=self.epochs,
            num_log_points=self.num_log_points,
            noise_std=self.noise_std,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device,
        )


def configure(*, quick: bool = False, **settings: Any) -> Config:
    """The settings of a run, or of a quick one, with some replaced.

    Parameters
    ----------
    quick : bool
        A run of less than a minute: 500 epochs, measured at 13 of them.
    **settings
        Fields of `Config`.
    """
    brief = {"epochs": 500, "num_log_points": 13} if quick else {}
    return Config(**{**brief, **settings})


def run(config: Config, out: Path) -> bool:
    """Trains both networks, measures, and writes the report; resumes what is there.

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
        If the folder cannot be used or holds a run with other settings, the device is
        not there, or a training diverges.

    Notes
    -----
    Full size: some five minutes on two cores. Resuming gives the same numbers bit for
    bit as not having stopped, on the same machine.
    """
    check_device(config.device)
    folder = RunFolder(out)
    try:
        # Noisy first: the time that is told is that of the network that takes longer.
        arms = [szt_network.arm(NOISY, config.network()), _deterministic(config)]
    except (ValueError, MemoryError) as error:
        raise RunError(f"cannot set up this run: {error}") from error
    with folder.open("szt-deterministic", asdict(config)):
        results = complete(
            "szt-deterministic",
            folder,
            arms,
            opening="a tanh network without and with noise "
            f"{config.noise_std:g} learns the 4096 patterns, {config.epochs} passes "
            f"each, seed {config.seed}, on {config.device}",
        )
        if results is None:
            return False
        study = findings.Study(config, results[DETERMINISTIC], results[NOISY])
        write_page(
            folder,
            "Bins and information in the SZT network without noise",
            findings.parts(study, folder),
        )
        print(findings.summary(study))
        print(f"szt-deterministic: report in {folder.report}")
    return True


def layer_outputs(config: Config, parameters: NDArray[np.float32]) -> list[Floats]:
    """T_l of every hidden layer of the deterministic network, in float64.

    Parameters
    ----------
    config : Config
    parameters : (p,) array
        A row of `Results.parameters`.

    Returns
    -------
    list of (4096, d_l) arrays
    """
    return clean_outputs(parameters, np.float64)


def labels(config: Config) -> NDArray[np.int64]:
    """The class of every input that information is measured over, (4096,)."""
    return datasets.szt().labels


def _deterministic(config: Config) -> Arm:
    """The network that is trained without its noise."""
    train, test = datasets.split(datasets.szt(), seed=config.seed)

    def build() -> tuple[Trainer, AbstractTracker]:
        network = NoisyMLP(
            szt_network.SIZES, noise_std=config.noise_std, seed=config.seed
        )
        trainer = Trainer(
            network,
            train.inputs,
            train.labels,
            learning_rate=config.learning_rate,
            batch_size=config.batch_size,
            noise=False,
            seed=config.seed,
            device=config.device,
        )
        return trainer, DistinctOutputs(network)

    return Arm(
        DETERMINISTIC,
        build,
        train,
        test,
        szt_network.logged_epochs(config.epochs, config.num_log_points),
        asdict(config),
        experiment="szt-deterministic",
    )
