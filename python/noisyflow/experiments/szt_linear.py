"""The SZT network without any nonlinearity: compression without saturation.

Linear units cannot saturate. The paper shows that the last layers still lose some
information about the input, because the weights draw the images of one class together.
Its noise is 0.01, twice that of the tanh network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisyflow.experiments import szt_comparison
from noisyflow.experiments.szt_comparison import ComparisonConfig

__all__ = ["Config", "configure", "run"]

LINEAR = "linear"


@dataclass(frozen=True)
class Config(ComparisonConfig):
    """Settings of one run: those of `ComparisonConfig`, with the paper's noise."""

    noise_std: float = 0.01

    def arms(self) -> dict[str, dict[str, Any]]:
        """One."""
        return {LINEAR: {"activation": "linear"}}


def configure(*, quick: bool = False, **settings: Any) -> Config:
    """The settings of a run, or of a quick one, with some replaced.

    Parameters
    ----------
    quick : bool
        A run of less than a minute: 300 epochs, two seeds.
    **settings
        Fields of `Config`.
    """
    brief = szt_comparison.QUICK if quick else {}
    return Config(**{**brief, **settings})


def run(config: Config, out: Path) -> bool:
    return szt_comparison.run(
        "szt-linear",
        config,
        out,
        lambda study, folder: "",
        opening="",
    )
