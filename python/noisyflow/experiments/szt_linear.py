"""The SZT network without any nonlinearity: compression without saturation.

Linear units cannot saturate. The paper shows that the last layers still lose some
information about the input, because the weights draw the images of one class together.
Its noise is 0.01, twice that of the tanh network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisyflow.experiments import Claim, binned, szt_comparison
from noisyflow.experiments import szt_comparison_findings as findings
from noisyflow.experiments.szt_comparison import ComparisonConfig, Spread, Study
from noisyflow.report import Figure
from noisyflow.runs import RunFolder

__all__ = ["Config", "claims", "configure", "plot", "run"]

LINEAR = "linear"
_TITLES = {LINEAR: "linear"}
_OPENING = (
    "The paper says that a network without any nonlinearity also compresses to some "
    "extent, and its representations cluster: saturation is not needed."
)
# Nats: four times what chance makes of the largest of some values with errors of 0.04.
_LEAST_FALL = 0.25


@dataclass(frozen=True)
class Config(ComparisonConfig):
    """Settings of one run: those of `ComparisonConfig`, with the paper's noise.

    More seeds than elsewhere, as there is but one arm. An earlier run of 3 seeds, two
    of them logged at 8 epochs that missed their peaks, left both statements on
    compression undecided (falls of 0.71 and 0.76 nats, known to 0.9).
    """

    noise_std: float = 0.01
    num_seeds: int = 5

    def arms(self) -> dict[str, dict[str, Any]]:
        """One."""
        return {LINEAR: {"activation": "linear"}}


def configure(*, quick: bool = False, **settings: Any) -> Config:
    """The settings of a run, or of a quick one, with some replaced.

    Parameters
    ----------
    quick : bool
        A run of less than a minute: 200 epochs, two seeds.
    **settings
        Fields of `Config`.
    """
    brief = szt_comparison.QUICK if quick else {}
    return Config(**{**brief, **settings})


def run(config: Config, out: Path) -> bool:
    """Trains and measures in an output folder, from where it stopped if it did.

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
    Full size: about three minutes on two cores. Resuming gives the same numbers bit for
    bit as not having stopped, on the same machine.
    """
    return szt_comparison.run(
        "szt-linear", config, out, _write, opening="linear networks"
    )


def plot(study: Study, folder: RunFolder) -> list[Figure]:
    """Makes all figures of a run in its folder.

    Parameters
    ----------
    study : Study
    folder : RunFolder

    Returns
    -------
    list of Figure
        Files and captions, in the order of the report.
    """
    courses = findings.tracked_courses(study, _TITLES)
    return findings.figures(study, folder, courses, _TITLES)


def claims(study: Study, courses: Mapping[str, binned.BinnedCourse]) -> list[Claim]:
    """What the paper says, checked; thresholds were set before the first full run.

    Parameters
    ----------
    study : Study
    courses : mapping of str to BinnedCourse
        Of the first seed's networks.

    Returns
    -------
    list of Claim
    """
    ratio = Spread(
        tuple(
            last - first
            for last, first in zip(
                study.spread(LINEAR, findings.distance_ratio).values,
                study.spread(LINEAR, findings.first_distance_ratio).values,
                strict=True,
            )
        )
    )
    return [
        *(
            findings.is_above(
                f"Layer {layer} is compressed: I(X;T_{layer}) falls from its peak to "
                "the end by more than 0.25 nats.",
                study.spread(LINEAR, findings.fall(layer)),
                " nats",
                bound=_LEAST_FALL,
            )
            for layer in (5, 4)
        ),
        findings.is_below(
            "Classes are drawn together: in layer 5 the mean distance within classes, "
            "as a share of that between them, ends lower than it began.",
            ratio,
            "",
        ),
        binned.tracks(courses),
    ]


def _write(study: Study, folder: RunFolder) -> str:
    """Figures, tables and report of a run."""
    courses = findings.tracked_courses(study, _TITLES)
    return findings.write(
        study,
        folder,
        title="The SZT network without any nonlinearity",
        titles=_TITLES,
        opening=_OPENING,
        claims=claims(study, courses),
        courses=courses,
        saturates=False,
    )
