"""Several networks on the SZT task beside one another: settings, work, differences.

Every arm is one way to set or train the network; all arms have the same seeds, and with
one seed the same split, initial weights, order of inputs and noise. So arms are
compared seed by seed, and measured at the same epochs: the largest of few values is
lower than that of many. Each network is a run of `szt` in a folder of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from noisyflow._checks import as_int
from noisyflow.experiments import szt_network
from noisyflow.experiments.measured import over_seeds
from noisyflow.experiments.several_trainings import complete
from noisyflow.runs import Results, RunError, RunFolder, check_device

_MOST_SEEDS = 100
# Of a run of less than a minute.
QUICK = {"epochs": 200, "num_log_points": 4, "num_seeds": 2}
# One-sided: a difference is claimed in one direction.
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class ComparisonConfig:
    """Settings that all comparisons of SZT networks have.

    Parameters
    ----------
    epochs : int
        Passes over the training inputs of each network, from 2 to 10 million. Half of
        the paper's by default, for the sake of the seeds.
    num_log_points : int
        Logarithmically spaced epochs to measure at, before rounding makes some of them
        coincide. 32 gives 28 of 5,000.
    num_seeds : int
        Networks in each arm: `seed`, `seed + 1`, ... At least 2, to have a spread.
    noise_std : float
        Standard deviation of the noise in every hidden layer, positive.
    learning_rate : float
        Of Adam; at most 1.
    batch_size : int
        Inputs per step.
    seed : int
        The first; in [0, 2**63).
    device : str
        Where networks and data are: cpu, cuda, cuda:1, ... What is measured runs on the
        CPU.

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.
    """

    epochs: int = 5_000
    num_log_points: int = 32
    num_seeds: int = 3
    noise_std: float = 0.005
    learning_rate: float = 4e-4
    batch_size: int = 256
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        number = as_int("num_seeds", self.num_seeds, at_least=2, at_most=_MOST_SEEDS)
        object.__setattr__(self, "num_seeds", number)
        last_seed = as_int("seed", self.seed, at_least=0) + number - 1
        as_int("seed + num_seeds - 1", last_seed, at_least=0, at_most=2**63 - 1)
        # The rest is checked where it is used, and taken from there as it is kept.
        network = next(iter(self.networks().values()))
        for name in ("epochs", "num_log_points", "noise_std", "learning_rate"):
            object.__setattr__(self, name, getattr(network, name))
        for name in ("batch_size", "seed", "device"):
            object.__setattr__(self, name, getattr(network, name))

    def arms(self) -> dict[str, dict[str, Any]]:
        """By name, the settings in which an arm differs from `szt`."""
        raise NotImplementedError

    def networks(self) -> dict[str, szt_network.Config]:
        """The settings of every network, by name, in the order of training."""
        return {
            network_name(arm, seed): szt_network.Config(
                **{
                    "epochs": self.epochs,
                    "num_log_points": self.num_log_points,
                    "noise_std": self.noise_std,
                    "learning_rate": self.learning_rate,
                    "batch_size": self.batch_size,
                    "seed": seed,
                    "device": self.device,
                    **different,
                }
            )
            for seed in range(self.seed, self.seed + self.num_seeds)
            for arm, different in self.arms().items()
        }


def network_name(arm: str, seed: int) -> str:
    """How a network is called, in tables and as a folder."""
    return f"{arm}-{seed}"


@dataclass(frozen=True)
class Spread:
    """A mean over seeds.

    Parameters
    ----------
    values : tuple of float
        One for each seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return float(np.mean(self.values))

    @property
    def standard_error(self) -> float:
        """Of the mean, from the spread over seeds."""
        return over_seeds(self.values).error

    @property
    def margin(self) -> float:
        """How far the true mean may be to one side at 95 % confidence (Student's t)."""
        degrees = len(self.values) - 1
        return float(scipy.stats.t.ppf(_CONFIDENCE, degrees)) * self.standard_error

    def text(self, digits: int = 2, *, percent: bool = False) -> str:
        """The mean with its standard error, for a table."""
        scale, unit = (100, " %") if percent else (1, "")
        return (
            f"{scale * self.mean:.{digits}f} ± "
            f"{scale * self.standard_error:.{digits}f}{unit}"
        )


Measure = Callable[[szt_network.Config, Results], float]


@dataclass(frozen=True)
class Study:
    """The networks of a comparison with what was measured.

    Parameters
    ----------
    config : ComparisonConfig
    networks : dict of str to Config
        Settings by name.
    results : dict of str to Results
        By the same names.
    """

    config: ComparisonConfig
    networks: Mapping[str, szt_network.Config]
    results: Mapping[str, Results]
    _known: dict[tuple[str, Measure], float] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def arms(self) -> list[str]:
        """Names of the arms."""
        return list(self.config.arms())

    @property
    def seeds(self) -> range:
        """Seeds that every arm has."""
        return range(self.config.seed, self.config.seed + self.config.num_seeds)

    @property
    def is_long_enough(self) -> bool:
        """Whether what the paper says of the course of training can be judged."""
        defaults = ComparisonConfig
        return (
            self.config.epochs >= defaults.epochs
            and self.config.num_seeds >= defaults.num_seeds
        )

    def first(self, arm: str) -> tuple[szt_network.Config, Results]:
        """The network of an arm that figures show, of the first seed."""
        name = network_name(arm, self.config.seed)
        return self.networks[name], self.results[name]

    def spread(self, arm: str, measure: Measure) -> Spread:
        """A measure of an arm's networks, over seeds."""
        values = []
        for seed in self.seeds:
            key = network_name(arm, seed), measure
            if key not in self._known:  # some take a second
                name = key[0]
                self._known[key] = measure(self.networks[name], self.results[name])
            values.append(self._known[key])
        return Spread(tuple(values))

    def difference(
        self, arm: str, other: str, measure: Measure, *, share: float = 1.0
    ) -> Spread:
        """A measure of one arm minus a share of that of another, seed by seed."""
        first, second = self.spread(arm, measure), self.spread(other, measure)
        pairs = zip(first.values, second.values, strict=True)
        return Spread(tuple(one - share * two for one, two in pairs))


def run(
    experiment: str,
    config: ComparisonConfig,
    out: Path,
    write: Callable[[Study, RunFolder], str],
    *,
    opening: str,
) -> bool:
    """Trains and measures all networks in an output folder and writes its report.

    Parameters
    ----------
    experiment : str
        Its name.
    config : ComparisonConfig
    out : Path
        Created if needed; a run there is taken up.
    write : callable
        `write(study, folder)` writes figures and report and returns what to print.
    opening : str
        What is about to be done.

    Returns
    -------
    bool
        Whether the run is finished; False after Ctrl-C.

    Raises
    ------
    RunError
        If the folder cannot be used or holds a run with other settings, the device is
        not there, or a training diverges.
    """
    check_device(config.device)
    folder = RunFolder(out)
    networks = config.networks()
    try:
        arms = [szt_network.arm(name, one) for name, one in networks.items()]
    except (ValueError, MemoryError) as error:
        raise RunError(f"cannot set up this run: {error}") from error
    with folder.open(experiment, asdict(config)):
        results = complete(
            experiment,
            folder,
            arms,
            opening=f"{len(arms)} {opening}, learn the 4096 patterns\n"
            f"  {config.epochs} passes each, noise {config.noise_std:g}, Adam "
            f"{config.learning_rate:g}, batches of {config.batch_size}, seeds "
            f"{config.seed} to {config.seed + config.num_seeds - 1}, on "
            f"{config.device}",
        )
        if results is None:
            return False
        print(write(Study(config, networks, results), folder))
        print(f"{experiment}: report in {folder.report}")
    return True
