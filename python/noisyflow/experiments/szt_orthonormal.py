"""The SZT network with its weights kept near orthonormal, beside the plain one.

After every optimiser step, in all layers but the last, W <- W - rate (W W^T W - W), as
the authors do (Cisse et al., 2017). Weights that cannot grow cannot saturate the units:
the paper shows that clusters form less, that information is hardly compressed, and that
the network generalises no worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noisyflow.experiments import Claim, binned, szt_comparison
from noisyflow.experiments import szt_comparison_findings as findings
from noisyflow.experiments.szt_comparison import ComparisonConfig, Study
from noisyflow.report import Figure
from noisyflow.runs import RunFolder

__all__ = ["Config", "claims", "configure", "plot", "run"]

PLAIN, ORTHONORMAL = "plain", "orthonormal"
_TITLES = {PLAIN: "plain", ORTHONORMAL: "orthonormal"}
_OPENING = (
    "The paper says that a regulariser which keeps the weights near orthonormal "
    "inhibits clustering and compression in the tanh network, and that the network "
    "generalises no worse for it: compression is not what makes it generalise. Here "
    "both networks are trained from the same starts, seed by seed."
)
_FALL_SHARE = 0.5  # of the plain network's fall: above it nothing is inhibited
_ACCURACY_LOSS = 0.01  # test accuracy that would count as worse
_LOSS_GAIN = 0.05  # nats of test loss that would


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
    Full size: about six minutes on two cores. Resuming gives the same numbers bit for
    bit as not having stopped, on the same machine.
    """
    return szt_comparison.run(
        "szt-orthonormal",
        config,
        out,
        _write,
        opening="tanh networks, plain and orthonormal",
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
    """What the paper says, checked; thresholds were set before the full run.

    Parameters
    ----------
    study : Study
    courses : mapping of str to BinnedCourse
        Of the first seed's networks.

    Returns
    -------
    list of Claim
    """
    return [
        *(fall_claim(study, layer) for layer in (5, 4)),
        findings.is_above(
            "At the end layer 5 of the orthonormal network has more information about "
            "the input than that of the plain one.",
            study.difference(ORTHONORMAL, PLAIN, findings.information(5)),
            " nats",
        ),
        findings.is_above(
            "Clustering is inhibited: H(Bin(T_5)) ends higher.",
            study.difference(ORTHONORMAL, PLAIN, findings.binned_entropy),
            " nats",
        ),
        findings.is_above(
            "Classes are less drawn together: in layer 5 the mean distance within "
            "classes, as a share of that between them, ends higher.",
            study.difference(ORTHONORMAL, PLAIN, findings.distance_ratio),
            "",
        ),
        findings.is_above(
            "Layer 5 ends in more clusters (single linkage at the scale noise_std).",
            study.difference(ORTHONORMAL, PLAIN, findings.clusters),
            "",
        ),
        findings.is_below(
            "Fewer of the activations of layer 5 end saturated (beyond 0.9 in size).",
            study.difference(ORTHONORMAL, PLAIN, findings.saturated_share),
            " points",
        ),
        findings.is_above(
            "Generalisation is not worse: test accuracy ends less than one point "
            "lower.",
            study.difference(ORTHONORMAL, PLAIN, findings.history("test_accuracy")),
            " points",
            bound=-_ACCURACY_LOSS,
        ),
        findings.is_below(
            "Generalisation is not worse: the test loss ends less than 0.05 nats "
            "higher.",
            study.difference(ORTHONORMAL, PLAIN, findings.history("test_loss")),
            " nats",
            bound=_LOSS_GAIN,
        ),
        binned.tracks(courses),
    ]


def fall_claim(study: Study, layer: int) -> Claim:
    """Whether a layer is compressed less."""
    plain, orthonormal = (
        study.spread(arm, findings.fall(layer)) for arm in (PLAIN, ORTHONORMAL)
    )
    beyond = study.difference(
        ORTHONORMAL, PLAIN, findings.fall(layer), share=_FALL_SHARE
    )
    judged = findings.is_below(
        f"Compression of layer {layer} is inhibited: I(X;T_{layer}) falls from its "
        "peak to the end by less than half as much as in the plain network.",
        beyond,
        " nats",
    )
    return replace(
        judged,
        measured=f"falls {orthonormal.text()} instead of {plain.text()} nats; beyond "
        f"half: {judged.measured}",
    )


def _write(study: Study, folder: RunFolder) -> str:
    """Figures, tables and report of a run."""
    courses = findings.tracked_courses(study, _TITLES)
    return findings.write(
        study,
        folder,
        title="The SZT network with weights kept near orthonormal",
        titles=_TITLES,
        opening=_OPENING,
        claims=claims(study, courses),
        courses=courses,
    )
