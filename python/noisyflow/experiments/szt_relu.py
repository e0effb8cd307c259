"""The SZT network with ReLUs, with and without a penalty on the weights.

ReLUs are bounded on one side only and weights may grow without end, so that noise of a
given size hides ever less. A penalty on the weights (weight decay) keeps activations
small against the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisyflow.experiments import szt_comparison
from noisyflow.experiments.szt_comparison import ComparisonConfig

__all__ = ["Config", "configure", "run"]

PLAIN, DECAY = "plain", "decay"


@dataclass(frozen=True)
class Config(ComparisonConfig):
    """Settings of one run: those of `ComparisonConfig` and these.

    Parameters
    ----------
    weight_decay : float
        The penalty: this times each weight and bias is added to its gradient. Positive,
        at most 1. By default the largest power of ten with which the network learns:
        0.01 holds all its weights at zero.
    """

    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weight_decay > 0:
            raise ValueError(f"weight_decay must be positive, got {self.weight_decay}")

    def arms(self) -> dict[str, dict[str, Any]]:
        """Without and with the penalty."""
        return {
            PLAIN: {"activation": "relu"},
            DECAY: {"activation": "relu", "weight_decay": self.weight_decay},
        }


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
        "szt-relu",
        config,
        out,
        lambda study, folder: "",
        opening="",
    )
