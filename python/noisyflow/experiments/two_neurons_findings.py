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
from noisyflow.experiments.measured import Measured, over_seeds
from noisyflow.report import Figure, Table
from noisyflow.runs import Row, RunFolder

SLOPE = 0.1  # of the leaky ReLU below zero
CEILING = math.log(8)
MERGED = math.log(2)

_NAMES = ("w1", "b1", "w2", "b2")
# The end of another implementation's training, as its figures show it.
_ELSEWHERE = (-0.88, 4.3, -0.23, 0.24)
_NEAR = 0.05  # nats: what "rises to" and "falls to" are taken to mean


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
        f"{top_1} nats (log 8 = {CEILING:.3f}) and falls to {end_1}; I(X;T_2) rises to "
        f"{top_2} and falls to {end_2}, towards log 2 = {MERGED:.3f}, which it does "
        "not reach.",
        f"Gradient descent at rate {learning_rate:g}, a twentieth of it once 99 % of "
        f"the answers are right, {num_steps} steps on the mean of (T_2 - target)^2 "
        f"over the eight inputs, with fresh noise of standard deviation "
        f"{study.noise_std:g} in both neurons in every step; from w_1 = 0, b_1 = 4.5, "
        f"w_2 = -1, b_2 = 0. {study.num_seeds} seeds, which differ in that noise; ± is "
        "one standard error over the seeds. The information of both is known: T_1 "
        "given X is Gaussian, and T_2 given X is a Gaussian bent at zero plus noise.",
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
            "Both neurons' information rises and falls. Below: squared error and share "
            "of wrong answers.",
        ),
        Figure(
            folder.save_figure("symbols.png", _symbols_figure(study)),
            "Noise-free outputs for the eight inputs over the training, with one "
            "standard deviation of the neuron's own noise on either side; blue: target "
            "0, orange: target 0.25. No output stops moving with its input: the "
            "symbols of one class come within the noise of one another. First seed.",
        ),
        Figure(
            folder.save_figure("densities.png", _densities_figure(study)),
            "Densities of T_1 (above) and T_2 (below) at four steps (lines), and the "
            "part of each input in them, in the colour of its class. First seed.",
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
            )
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
    starts = [study.at(f"exact_{k}", 0).mean for k in (1, 2)]
    (top_1, where_1), (top_2, where_2) = study.peak(1), study.peak(2)
    end_1, end_2 = study.at("exact_1", -1), study.at("exact_2", -1)
    gain = study.column("exact_2") - study.column("exact_1")
    wrong = study.column("error_rate")[:, -1]
    return [
        Claim(
            "Both amounts of information start at 0, where w_1 = 0.",
            f"{starts[0]:.1e} and {starts[1]:.1e} nats",
            max(abs(start) for start in starts) < 1e-9,
        ),
        Claim(
            f"I(X;T_1) rises to log 8 = {CEILING:.3f} (to within {_NEAR:g} nats).",
            f"largest {top_1}, at step {where_1.min():.0f} to {where_1.max():.0f}",
            abs(top_1.mean - CEILING) <= _NEAR,
        ),
        Claim(
            "Then I(X;T_1) falls, beyond three standard errors and 0.1 nats.",
            f"to {end_1}: by {top_1.mean - end_1.mean:.3f}",
            _falls(study, 1),
        ),
        Claim(
            "I(X;T_2) rises and then falls, beyond three standard errors and 0.1 nats.",
            f"largest {top_2}, at step {where_2.min():.0f} to {where_2.max():.0f}; "
            f"then to {end_2}: by {top_2.mean - end_2.mean:.3f}",
            _falls(study, 2),
        ),
        Claim(
            f"I(X;T_2) falls to log 2 = {MERGED:.3f}, one symbol per class (to within "
            f"{_NEAR:g} nats).",
            f"{end_2} at step {study.steps[-1]}, {end_2.mean - MERGED:+.3f} away",
            abs(end_2.mean - MERGED) <= _NEAR,
        ),
        _no_saturation(study),
        Claim(
            "The task is learnt: at the end at most 1 % of the answers are wrong.",
            f"{100 * wrong.mean():.2f} ± {100 * over_seeds(wrong).error:.2f} % wrong; "
            + (
                "99 % of a test were right first at step "
                f"{study.learnt.min()} to {study.learnt.max()}"
                if study.learnt.min() >= 0
                else "99 % of a test were not right in every training"
            ),
            bool(wrong.mean() <= 0.01),
        ),
        Claim(
            "T_2 never tells more of X than T_1 does, as must be.",
            f"largest I(X;T_2) - I(X;T_1): {gain.max():.1e} nats",
            bool(gain.max() <= 1e-9),
        ),
        *_agreement(study),
    ]


def _falls(study: Study, layer: int) -> bool:
    """Whether the information ends clearly below its largest value."""
    exact = study.column(f"exact_{layer}")
    fall = over_seeds(exact.max(axis=1) - exact[:, -1])
    return fall.mean > 0.1 and fall.is_clear


def _no_saturation(study: Study) -> Claim:
    """How the outputs move with what comes in, at the end."""
    shares, gaps = [], []
    for before in study.before():
        last = before[:, -1]
        shares.append(over_seeds((last < 0).mean(axis=1)))
        gaps.append(float(np.diff(np.sort(bent(last), axis=1), axis=1).min()))
    return Claim(
        "Nothing saturates: an activation's slope is nowhere below 1/10, so that "
        "without noise all eight symbols stay apart, and log 8 nats are there.",
        "by construction; at the end the slope is 1/10 rather than 1 for "
        f"{100 * shares[0].mean:.0f} % and {100 * shares[1].mean:.0f} % of the inputs, "
        f"and the nearest symbols are {gaps[0]:.4f} and {gaps[1]:.4f} apart (noise: "
        f"{study.noise_std:g})",
        min(gaps) > 0,
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
            [name, str(study.at(name, -1)), f"{value:g}"]
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
                str(study.at("exact_2", index)),
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
            f"two-neurons: I(X;T_{layer}) rises to {peak} and falls to "
            f"{study.at(f'exact_{layer}', -1)} nats"
        )
    verdicts = [claim.holds for claim in claims(study)]
    lines.append(f"  {verdicts.count(True)} of {len(verdicts)} statements hold")
    return "\n".join(lines)
