"""What the two neurons' run found: figures, tables, and what they show.

Everything here reads the rows of a finished run and trains nothing. Errors over seeds
are standard errors of the mean.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from noisyflow import plotting
from noisyflow.experiments import Claim
from noisyflow.experiments.exact_channels import (
    Floats,
    bent_densities,
    gaussian_densities,
)
from noisyflow.experiments.measured import Measured, at_steps, over_seeds, two_digits
from noisyflow.experiments.single_neuron_findings import NEAR, is_near
from noisyflow.experiments.verdicts import counts
from noisyflow.report import Figure, Table
from noisyflow.runs import Row, RunFolder

SLOPE = 0.1  # of the leaky ReLU below zero
CEILING = math.log(8)
MERGED = math.log(2)

_NAMES = ("w1", "b1", "w2", "b2")
# The end of another implementation's training, as its figures show it.
_ELSEWHERE = (-0.88, 4.3, -0.23, 0.24)
# Training slows down when 99 % of the answers are right, which leaves it at about 1 %
# wrong: "learnt" is clearly less than twice that.
_MOST_WRONG = 0.02
_LEAST_FALL = 0.1  # nats


def bent(u: Floats) -> Floats:
    """The leaky ReLU, max(u, u / 10)."""
    return np.maximum(u, SLOPE * u)


class Study:
    """Rows of a finished run, by seed and step.

    Parameters
    ----------
    metrics : list of dict
    inputs, targets : (8,) array
    noise_std : float
    learnt : (seeds,) array of int
        Step at which the rate was lowered, -1 where it was not.
    """

    def __init__(
        self,
        metrics: list[Row],
        inputs: Floats,
        targets: Floats,
        noise_std: float,
        learnt: NDArray[np.int64],
    ) -> None:
        self.inputs, self.noise_std, self.learnt = inputs, noise_std, learnt
        self.classes = (targets > 0).astype(np.int64)
        self.steps = np.array(sorted({int(row["step"]) for row in metrics}))
        self.num_seeds = 1 + max(int(row["repetition"]) for row in metrics)
        self._rows = {
            (int(row["repetition"]), int(row["step"])): row for row in metrics
        }

    def column(self, name: str) -> Floats:
        """A column as (seeds, steps)."""
        return np.array(
            [
                [float(self._rows[seed, int(step)][name]) for step in self.steps]
                for seed in range(self.num_seeds)
            ]
        )

    def at(self, name: str, index: int) -> Measured:
        """A column over the seeds at one of the logged steps."""
        return over_seeds(self.column(name)[:, index])

    def peak(self, layer: int) -> tuple[Measured, Floats]:
        """The largest I(X;T_layer) of every training, and the steps where they are."""
        exact = self.column(f"exact_{layer}")
        return over_seeds(exact.max(axis=1)), self.steps[exact.argmax(axis=1)]

    def before(self) -> tuple[Floats, Floats]:
        """Noise-free arguments of both activations, (seeds, steps, inputs)."""
        (w1, b1, w2, b2) = (self.column(name)[..., None] for name in _NAMES)
        first = w1 * self.inputs + b1
        return first, w2 * bent(first) + b2


def opening(study: Study, num_steps: int, learning_rate: float) -> list[str]:
    """What the paper says, and what was found."""
    (top_1, _), (top_2, _) = study.peak(1), study.peak(2)
    end_1, end_2 = study.at("exact_1", -1), study.at("exact_2", -1)
    return [
        "The paper (Goldfeld et al. 2019) shows that information can fall without any "
        "saturation: two leaky ReLUs in a chain have slope 1 or 1/10 everywhere, and "
        "yet I(X;T) rises and then falls, as inputs of one class come to lie within "
        "the noise of one another. Found: I(X;T_1) rises to "
        f"{two_digits(top_1)} nats (log 8 = {CEILING:.3f}) and falls to "
        f"{two_digits(end_1)}; I(X;T_2) rises to {two_digits(top_2)} and falls to "
        f"{two_digits(end_2)}, where one symbol per class would be log 2 = "
        f"{MERGED:.3f}. {_slopes(study)}",
        f"Gradient descent at rate {learning_rate:g}, a twentieth of it once 99 % of "
        f"the answers are right, {num_steps} steps on the mean of (T_2 - target)^2 "
        f"over the eight inputs, with fresh noise of standard deviation "
        f"{study.noise_std:g} in both neurons in every step; from w_1 = 0, b_1 = 4.5, "
        f"w_2 = -1, b_2 = 0. {study.num_seeds} seeds, which differ in that noise "
        "alone; ± is one standard error over the seeds, to two digits: what the noise "
        "in the training makes of one and the same start. The information of both is "
        "known: T_1 given X is Gaussian, T_2 a Gaussian bent at zero plus noise.",
    ]


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
    return [
        Figure(
            folder.save_figure("information.png", _information_figure(study)),
            "Above: information over the training, by quadrature (lines: means over "
            "seeds, bands: from the lowest to the highest) and as estimated (points). "
            "Below: squared error and share of wrong answers.",
        ),
        Figure(
            folder.save_figure("symbols.png", _symbols_figure(study)),
            "Noise-free outputs for the eight inputs over the training, with one "
            "standard deviation of the neuron's own noise on either side; blue: target "
            f"0, orange: target 0.25. {_spacing_text(study)} First seed.",
        ),
        Figure(
            folder.save_figure("densities.png", _densities_figure(study)),
            "Densities of T_1 (above) and T_2 (below) at four steps (lines), and the "
            "part of each input in them, in the colour of its target. First seed.",
        ),
    ]


def _information_figure(study: Study) -> bytes:
    figure, (top, bottom) = plotting.new_figure(10, 8, rows=2)
    steps = study.steps[1:]
    plotting.information_over_steps(
        top,
        steps,
        {f"I(X;T_{k})": study.column(f"exact_{k}")[:, 1:] for k in (1, 2)},
        {f"I(X;T_{k})": study.column(f"information_{k}")[:, 1:] for k in (1, 2)},
        levels={"log 8": CEILING, "log 2": MERGED},
    )
    top.legend(fontsize=12, frameon=False, loc="upper left", bbox_to_anchor=(0, 0.92))
    plotting.learning(
        bottom,
        steps,
        study.column("loss")[:, 1:],
        study.column("error_rate")[:, 1:],
        floor=study.noise_std**2,
    )
    return plotting.png(figure)


def _symbols_figure(study: Study) -> bytes:
    figure, axes = plotting.new_figure(12, 5, columns=2)
    for number, (panel, before) in enumerate(
        zip(axes, study.before(), strict=True), start=1
    ):
        plotting.symbols(
            panel,
            study.steps[1:],
            bent(before)[0, 1:],
            study.noise_std,
            study.classes,
            ["x = 1" if x == 1 else f"{x:g}" for x in study.inputs],
            title=f"neuron {number}",
        )
    axes[0].set_ylabel("output without its own noise", fontsize=13)
    return plotting.png(figure)


def _densities_figure(study: Study) -> bytes:
    figure, axes = plotting.new_figure(14, 6, columns=4, rows=2)
    exact = [study.column(f"exact_{k}")[0] for k in (1, 2)]
    top = int(exact[1].argmax())
    shown = [
        int(np.abs(exact[1][: top + 1] - 0.4).argmin()),
        top,
        top + (len(exact[1]) - 1 - top) // 3,
        len(exact[1]) - 1,
    ]
    first, second = (before[0] for before in study.before())
    own = np.abs(study.column("w2")[0]) * study.noise_std
    for column, index in enumerate(shown):
        for row, before in ((0, first), (1, second)):
            levels, reach = bent(before[index]), 6 * study.noise_std
            t = np.linspace(levels.min() - reach, levels.max() + reach, 1500)
            given = (
                gaussian_densities(t, levels, study.noise_std)
                if row == 0
                else bent_densities(
                    t, before[index], own[index], SLOPE, study.noise_std
                )
            )
            plotting.densities(
                axes[4 * row + column],
                t,
                given,
                study.classes,
                title=f"step {study.steps[index]}, I = {exact[row][index]:.3f}",
                names=("target 0", "target 0.25"),
            )
    plotting.legend_above(figure, axes)
    for number in (1, 2):
        axes[4 * number - 4].set_ylabel(f"density of T_{number}", fontsize=13)
    for panel in axes[4:]:
        panel.set_xlabel("t", fontsize=13)
    return plotting.png(figure)


def claims(study: Study) -> list[Claim]:
    """What the paper describes, checked.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of Claim
    """
    (top_1, where_1), (top_2, where_2) = study.peak(1), study.peak(2)
    end_1, end_2 = study.at("exact_1", -1), study.at("exact_2", -1)
    by_1, by_2 = _fall(study, 1), _fall(study, 2)
    wrong = study.at("error_rate", -1)
    return [
        Claim(
            f"I(X;T_1) rises to log 8 = {CEILING:.3f} (to within {NEAR:g} nats).",
            f"largest {two_digits(top_1)}, {at_steps(where_1)}",
            is_near(top_1, CEILING),
        ),
        Claim(
            f"Then I(X;T_1) falls, by more than {_LEAST_FALL:g} nats.",
            f"to {two_digits(end_1)}: by {two_digits(by_1)}",
            by_1.is_above(_LEAST_FALL),
        ),
        Claim(
            f"I(X;T_2) rises and then falls, by more than {_LEAST_FALL:g} nats.",
            f"largest {two_digits(top_2)}, {at_steps(where_2)}; then to "
            f"{two_digits(end_2)}: by {two_digits(by_2)}",
            by_2.is_above(_LEAST_FALL),
        ),
        Claim(
            f"I(X;T_2) falls to log 2 = {MERGED:.3f}, one symbol per class (to within "
            f"{NEAR:g} nats).",
            f"{two_digits(end_2)} at step {study.steps[-1]}, "
            f"{end_2.mean - MERGED:+.3f} away",
            is_near(end_2, MERGED),
        ),
        Claim(
            f"The task is learnt: at the end less than {100 * _MOST_WRONG:g} % of the "
            "answers are wrong.",
            f"{two_digits(Measured(100 * wrong.mean, 100 * wrong.error))} % wrong; "
            + (
                f"99 % of a test were right first {at_steps(study.learnt)}"
                if study.learnt.min() >= 0
                else "99 % of a test were not right in every training"
            ),
            wrong.is_below(_MOST_WRONG),
        ),
    ]


def checks(study: Study) -> list[Claim]:
    """What must be so whatever the paper says: the measurement is checked.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of Claim
    """
    starts = [study.at(f"exact_{k}", 0).mean for k in (1, 2)]
    gain = study.column("exact_2") - study.column("exact_1")
    return [
        Claim(
            "Both amounts of information are 0 at the start, where w_1 = 0.",
            f"{starts[0]:.1e} and {starts[1]:.1e} nats",
            max(abs(start) for start in starts) < 1e-9,
        ),
        Claim(
            "T_2 never tells more of X than T_1 does, as must be.",
            f"largest I(X;T_2) - I(X;T_1): {gain.max():.1e} nats",
            bool(gain.max() <= 1e-9),
        ),
        *_agreement(study),
    ]


def _fall(study: Study, layer: int) -> Measured:
    """By how much the information ends below its largest value."""
    exact = study.column(f"exact_{layer}")
    return over_seeds(exact.max(axis=1) - exact[:, -1])


def _slopes(study: Study) -> str:
    """That nothing saturates, which follows from the activation."""
    shares = [100 * (before[:, -1] < 0).mean() for before in study.before()]
    return (
        "Nothing can saturate: no slope is below 1/10, so that without noise all eight "
        "symbols stay apart; at the end it is 1/10 rather than 1 for "
        f"{shares[0]:.0f} % of the inputs in the first neuron and for {shares[1]:.0f} "
        "% in the second."
    )


def spacings(study: Study) -> Floats:
    """How far apart outputs for neighbouring inputs are at the end, first seed.

    Parameters
    ----------
    study : Study

    Returns
    -------
    (2, 2, 2) array
        By neuron and class: smallest and largest of the three distances, in standard
        deviations of the noise.
    """
    found = np.empty((2, 2, 2))
    for neuron, before in enumerate(study.before()):
        for label in (0, 1):
            outputs = bent(before[0, -1, study.classes == label])
            gaps = np.abs(np.diff(outputs)) / study.noise_std
            found[neuron, label] = gaps.min(), gaps.max()
    return found


def _span(low: float, high: float) -> str:
    """Two numbers to one decimal, or one where they are the same."""
    ends = dict.fromkeys(f"{end:.1f}" for end in (low, high))
    return " to ".join(ends)


def _spacing_text(study: Study) -> str:
    """Which symbols have merged at the end, in numbers."""
    texts = [
        " and ".join(
            f"{_span(low, high)} for target {target}"
            for (low, high), target in zip(of_neuron, ("0", "0.25"), strict=True)
        )
        for of_neuron in spacings(study)
    ]
    return (
        "At the end the outputs of neighbouring inputs are so many standard deviations "
        f"of the noise apart: in neuron 1 {texts[0]}; in neuron 2 {texts[1]}. Symbols "
        "merge where that is no more than about two."
    )


def _agreement(study: Study) -> list[Claim]:
    """The estimates beside the exact values."""
    first = np.abs(study.column("information_1") - study.column("exact_1")).max()
    error = study.column("standard_error_2")
    off = study.column("information_2") - study.column("exact_2")
    outside = np.maximum(
        study.column("lower_2") - study.column("exact_2"),
        study.column("exact_2") - study.column("upper_2"),
    )
    beyond = int((outside > 3 * error + 1e-9).sum())
    exact = study.column("exact_2")
    low, high, chain_error = (
        study.column(f"chain_{name}") for name in ("lower", "upper", "error")
    )
    is_enclosed = np.isfinite(low)
    inside = (low - 3 * chain_error <= exact) & (exact <= high + 3 * chain_error)
    return [
        Claim(
            "The estimate of I(X;T_1), a known mixture, agrees with quadrature to 1e-6 "
            "nats.",
            f"largest distance {first:.1e}, of {exact.size}",
            bool(first <= 1e-6),
        ),
        Claim(
            "The bracket of I(X;T_2), by sample propagation, holds the exact value "
            "within three of its standard errors (in at least 98 % of the "
            "measurements).",
            f"{exact.size - beyond} of {exact.size}; mean error {off.mean():+.4f} "
            f"nats, root mean square {math.sqrt((off**2).mean()):.4f}, largest "
            f"standard error {error.max():.4f}",
            beyond <= 0.02 * exact.size,
        ),
        Claim(
            "The enclosure of I(X;T_2) from the known weights holds the exact value "
            "within three of its standard errors.",
            "; ".join(
                f"{e:.4f} in [{a:.4f}, {b:.4f}] ± {s:.4f}"
                for e, a, b, s in zip(
                    *(some[is_enclosed] for some in (exact, low, high, chain_error)),
                    strict=True,
                )
            ),
            bool(inside[is_enclosed].all()),
        ),
    ]


def weights_table(study: Study) -> Table:
    """The weights at the end beside those of another implementation.

    Parameters
    ----------
    study : Study

    Returns
    -------
    Table
    """
    return Table(
        f"Weights after {study.steps[-1]} steps",
        ["weight", "here", "elsewhere"],
        [
            [name, two_digits(study.at(name, -1)), f"{value:g}"]
            for name, value in zip(_NAMES, _ELSEWHERE, strict=True)
        ],
        "Elsewhere: a third party's implementation, of which only these numbers are "
        "known. They depend on rate and length of the training; they are for "
        "comparison, and nothing is claimed of them.",
    )


def step_table(study: Study) -> Table:
    """The course of the training in numbers.

    Parameters
    ----------
    study : Study

    Returns
    -------
    Table
    """
    rows = []
    for index in range(0, len(study.steps), 3):
        rows.append(
            [
                str(study.steps[index]),
                *(f"{study.at(name, index).mean:.3f}" for name in _NAMES),
                f"{study.at('information_1', index).mean:.4f}",
                f"{study.at('exact_1', index).mean:.4f}",
                f"{study.at('information_2', index).mean:.4f}",
                two_digits(study.at("exact_2", index)),
                f"{100 * study.at('error_rate', index).mean:.1f} %",
            ]
        )
    return Table(
        "The training, every third measurement, means over the seeds",
        [
            "step",
            *_NAMES,
            "I(X;T_1), estimate",
            "quadrature",
            "I(X;T_2), estimate",
            "quadrature",
            "wrong",
        ],
        rows,
        "Information in nats. Wrong: T_2 on the wrong side of 0.125.",
    )


def summary(study: Study) -> str:
    """The end of the run in a few lines."""
    lines = []
    for layer in (1, 2):
        peak, _ = study.peak(layer)
        lines.append(
            f"two-neurons: I(X;T_{layer}) rises to {two_digits(peak)} and falls to "
            f"{two_digits(study.at(f'exact_{layer}', -1))} nats"
        )
    lines.append(f"  {counts(claims(study), checks(study))}")
    return "\n".join(lines)
