"""Information of Reed-Muller codes over the Gaussian channel, against exact values.

A word of a code, equally likely, is sent as signs and received with noise. The codes of
full order, RM(m, m), are all words, and have an exact value; so have the repetition
codes RM(0, m). In between all words are known, and by symmetry the information is that
of any one word: two ways that share no line. Goldfeld, Greenewald and Polyanskiy
(2018), arXiv 1810.11589, figure 7, have RM(4,4) and RM(5,5) from samples of words.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from noisyflow import report
from noisyflow._checks import as_int
from noisyflow.experiments import sampled_sources, verdicts
from noisyflow.experiments.cells import CellRows, CellTable
from noisyflow.experiments.estimator_findings import LONG_CODE, SHORT_CODE
from noisyflow.experiments.known_sources import (
    full_code,
    noise_entropy,
    reed_muller_words,
)
from noisyflow.experiments.reed_muller_findings import (
    ALL_WORDS,
    ONE_WORD,
    Study,
    checks,
    claims,
    known_table,
    opening,
    plot,
    sampled_table,
    summary,
)
from noisyflow.information import mutual_information
from noisyflow.runs import RunFolder, check_device
from noisyflow.runtime import check_device_name

__all__ = ["Config", "claims", "configure", "plot", "run"]

_STREAM = 0x726D  # "rm": apart from numbers drawn elsewhere with the same seed
_KNOWN = ((0, 4), (1, 4), (2, 4), (0, 5), (1, 5))
_KNOWN_NOISE = tuple(float(s) for s in np.geomspace(0.25, 8, 11).round(4))
_NOISE = tuple(float(s) for s in np.logspace(-1, 1, 11).round(4))
_LONG_CODE_NOISE = 2.0
_TARGET = 0.002  # nats, of the information of a known code
_DRAWS_OF_ONE_WORD = 40_000
_PAIRS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Parameters
    ----------
    num_repetitions : int
        Independent repetitions of samples of RM(5,5), at least 2; fewer beyond 1000
        samples. A third of them, at least one, of RM(4,4).
    max_samples : int
        Largest number of sampled words, from 100 to a million.
    seed : int
        Decides all random numbers; in [0, 2**63).
    device : str
        Where our estimates from samples are computed: cpu, cuda, cuda:1, ...

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.
    """

    num_repetitions: int = 4
    max_samples: int = 100_000
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        whole = {
            "num_repetitions": (2, 1000),
            "max_samples": (100, 1_000_000),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in whole.items():
            value = as_int(name, getattr(self, name), at_least=low, at_most=high)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "device", check_device_name(self.device))


@dataclass(frozen=True)
class KnownCode:
    """A code all of whose words are used, at one noise."""

    order: int
    num_variables: int
    noise_std: float
    cost: float = 0.5

    @property
    def name(self) -> str:
        """The code, as it is written."""
        return f"RM({self.order},{self.num_variables})"


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
    """Measures all codes in an output folder, from its last checkpoint if it has one.

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
        device is not there.

    Notes
    -----
    Full size: one or two minutes on two cores. Resuming gives the same numbers bit for
    bit as not having stopped, on the same machine.
    """
    check_device(config.device)
    folder = RunFolder(out)
    table = CellTable(folder, dict)
    known = [KnownCode(*code, noise) for code in _KNOWN for noise in _KNOWN_NOISE]
    sources = [
        full_code(LONG_CODE, _LONG_CODE_NOISE),
        *(full_code(SHORT_CODE, noise_std) for noise_std in _NOISE),
    ]
    sampled = sampled_sources.cells(sources, config.num_repetitions, config.max_samples)
    work: list[KnownCode | sampled_sources.Cell] = [*known, *sampled]

    def compute(cell: KnownCode | sampled_sources.Cell) -> CellRows:
        if isinstance(cell, KnownCode):
            return _known(config.seed, cell)
        return sampled_sources.compute(config.seed, config.device, cell)

    with folder.open("reed-muller", asdict(config)):
        table.resume()
        if not table.complete(
            "reed-muller",
            work,
            compute,
            f"{len(_KNOWN)} codes whose words are known, RM(4,4) and RM(5,5) from up "
            f"to {config.max_samples} samples",
        ):
            return False
        study = Study(sources, table.metrics, table.history)
        report.write_page(
            folder,
            "Information of Reed-Muller codes over the Gaussian channel",
            [
                *opening(study),
                *plot(study, folder),
                report.claims_table("What the paper's figure shows", claims(study)),
                report.claims_table(verdicts.CHECKS, checks(study)),
                known_table(study),
                sampled_table(study),
                report.settings_table(asdict(config)),
                report.work_table(folder),
            ],
        )
        print(summary(study))
        print(f"reed-muller: report in {folder.report}")
    return True


def _known(seed: int, cell: KnownCode) -> CellRows:
    """The information of a known code, from all words and by symmetry from one."""
    words = reed_muller_words(cell.order, cell.num_variables)
    (count, d) = words.shape
    key = (_STREAM, cell.order, cell.num_variables, round(1e4 * cell.noise_std))
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    started = time.perf_counter()
    estimate = mutual_information(
        words[:, None],
        cell.noise_std,
        standard_error=_TARGET,
        seed=int(sequence.generate_state(1)[0]),
    )
    seconds = time.perf_counter() - started
    value, error = one_word(words, cell.noise_std, np.random.default_rng(sequence))
    exact = math.nan
    if cell.order == 0:  # d equal bits are one of d times the power
        exact = full_code(1, cell.noise_std / math.sqrt(d)).information
    shift = noise_entropy(d, cell.noise_std)
    common = {
        "source": cell.name,
        "num_dimensions": d,
        "noise_std": cell.noise_std,
        "num_samples": count,
        "repetition": 0,
    }
    ours = {
        "entropy": estimate.value + shift,
        "standard_error": estimate.standard_error,
        "lower": estimate.lower + shift,
        "upper": estimate.upper + shift,
        "exact": exact + shift,
    }
    check = {
        "entropy": value + shift,
        "standard_error": error,
        "lower": value + shift,
        "upper": value + shift,
        "exact": exact + shift,
    }
    return CellRows(
        [
            {**common, "method": ALL_WORDS, **ours},
            {**common, "method": ONE_WORD, **check},
        ],
        [{"method": ALL_WORDS, "seconds": round(seconds, 4)}],
    )


def one_word(
    words: np.ndarray[Any, np.dtype[np.float32]],
    noise_std: float,
    generator: np.random.Generator,
) -> tuple[float, float]:
    """The information of a linear code when its first word is sent, and its error.

    log M - E log sum_c exp((|t - c_0|^2 - |t - c|^2) / (2 noise_std^2)), t = c_0 + Z:
    a linear code looks the same from each of its words.

    Parameters
    ----------
    words : (M, d) array
        Of signs.
    noise_std : float
    generator : numpy.random.Generator

    Returns
    -------
    (float, float)
        Mean over independent draws of the noise, and its standard error, nats.
    """
    signs = words.astype(np.float64)
    (count, d) = signs.shape
    step = max(1, _PAIRS_AT_ONCE // count)
    values = []
    for start in range(0, _DRAWS_OF_ONE_WORD, step):
        some = min(step, _DRAWS_OF_ONE_WORD - start)
        t = signs[0] + noise_std * generator.standard_normal((some, d))
        # Signs have the same length: of the squares only the products differ.
        exponents = t @ (signs - signs[0]).T / noise_std**2
        top = exponents.max(axis=1)
        values.append(
            math.log(count) - top - np.log(np.exp(exponents - top[:, None]).sum(axis=1))
        )
    all_values = np.concatenate(values)
    error = all_values.std(ddof=1) / math.sqrt(len(all_values))
    return float(all_values.mean()), float(error)
