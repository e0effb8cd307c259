"""The SZT network with its weights kept near orthonormal, beside the plain one.

After every optimiser step, in all layers but the last, W <- W - rate (W W^T W - W), as
the authors do (Cisse et al., 2017). Weights that cannot grow cannot saturate the units:
the paper shows that clusters form less, that information is hardly compressed, and that
the network generalises no worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisyflow.experiments import szt_comparison
from noisyflow.experiments.szt_comparison import ComparisonConfig

__all__ = ["Config", "configure", "run"]

PLAIN, ORTHONORMAL = "plain", "orthonormal"


@dataclass(frozen=True)
class Config(ComparisonConfig):
    """Settings of one run: those of `ComparisonConfig` and these.

    Parameters
    ----------
    orthonormal_rate : float
        Step of the orthonormality regulariser; 1e-4 is the authors'. Positive, less
        than 1.
    """

    orthonormal_rate: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.orthonormal_rate > 0:
            raise ValueError(
                f"orthonormal_rate must be positive, got {self.orthonormal_rate}"
            )

    def arms(self) -> dict[str, dict[str, Any]]:
        """Without and with the regulariser."""
        return {PLAIN: {}, ORTHONORMAL: {"orthonormal_rate": self.orthonormal_rate}}


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
        "szt-orthonormal",
        config,
        out,
        lambda study, folder: "",
        opening="",
    )
