"""What the single neuron's run found: figures, table, and what they show.

Everything here reads the rows of a finished run and trains nothing. Errors over seeds
are standard errors of the mean.
"""

from __future__ import annotations

import math

import numpy as np

from noisyflow import plotting
from noisyflow.experiments import Claim
from noisyflow.experiments.exact_channels import Floats, gaussian_densities
from noisyflow.experiments.measured import (
    Measured,
    all_hold,
    at_steps,
    over_seeds,
    two_digits,
)
from noisyflow.experiments.verdicts import counts
from noisyflow.report import Figure, Table
from noisyflow.runs import Row, RunFolder

# What three merged symbols of four leave, H(1/4), and two merged ones, H(1/4,1/4,1/2).
CEILING = math.log(4)
TWO_MERGED = 1.5 * math.log(2)
MERGED = math.log(4) - 0.75 * math.log(3)

NEAR = 0.05  # nats: what "rises to" and "falls to" are taken to mean
_AGREEMENT = 1e-6  # nats, of estimate and quadrature: the estimate's own target


class Study:
    """Rows of a finished run, by seed and step.

    Parameters
    ----------
    metrics : list of dict
    inputs, targets : (4,) array
        What is told apart, and what T is to be.
    noise_std : float
    """

    def __init__(
        self, metrics: list[Row], inputs: Floats, targets: Floats, noise_std: float
    ) -> None:
        self.inputs, self.noise_std = inputs, noise_std
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

    def levels(self) -> Floats:
        """Noise-free outputs, (seeds, steps, inputs)."""
        weight, bias = self.column("weight"), self.column("bias")
        return np.asarray(np.tanh(weight[..., None] * self.inputs + bias[..., None]))

    def at(self, name: str, index: int) -> Measured:
        """A column over the seeds at one of the logged steps."""
        return over_seeds(self.column(name)[:, index])

    def peak(self) -> tuple[Measured, Floats]:
        """The largest I(X;T) of every training, and the steps where they are."""
        exact = self.column("exact")
        return over_seeds(exact.max(axis=1)), self.steps[exact.argmax(axis=1)]

    def disagreement(self) -> float:
        """Largest distance of estimate and quadrature, over all seeds and steps."""
        return float(
            np.abs(self.column("mutual_information") - self.column("exact")).max()
        )


def opening(study: Study, num_steps: int, learning_rate: float) -> list[str]:
    """What the paper says, and what was found."""
    peak, _ = study.peak()
    end = study.at("exact", -1)
    return [
        "The paper (Goldfeld et al. 2019) says of one neuron T = tanh(wX + b) + Z with "
        "four inputs, of which three are one class: while it learns, I(X;T) rises "
        f"towards log 4 = {CEILING:.4f} nats, as the four symbols come apart, and "
        f"then falls to H(1/4) = {MERGED:.4f}, as the three of one class merge at -1. "
        f"Found: it rises to {two_digits(peak)} and falls to {two_digits(end)} after "
        f"{num_steps} steps.",
        "Gradient descent at rate "
        f"{learning_rate:g} on the mean of (T - target)^2 over the four inputs, with "
        f"fresh noise of standard deviation {study.noise_std:g} in every step, from "
        f"w = b = 0; {study.num_seeds} seeds, which differ in that noise alone. ± is "
        "one standard error over the seeds, to two digits: what the noise in the "
        "training makes of one and the same start. T is a mixture of four Gaussians: "
        "the information is known by quadrature, and the estimate is put beside it.",
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
            "Above: I(X;T) over the training, by quadrature (line: mean over seeds, "
            "band: from the lowest to the highest) and as estimated (points). Dotted: "
            "its value with four symbols apart, with two of them merged, with three. "
            "Below: the squared error and the share of wrong answers. The start, step "
            "0, with no information, is left of the axis.",
        ),
        Figure(
            folder.save_figure("symbols.png", _symbols_figure(study)),
            "The constellation over time: the noise-free output for each of the four "
            "inputs, with one standard deviation of the noise on either side; blue: "
            "target -1, orange: target +1. Symbols nearer than the noise is wide are "
            "one symbol. First seed.",
        ),
        Figure(
            folder.save_figure("densities.png", _densities_figure(study)),
            "The density of T at six steps (line), and the part of each input in it, "
            "in the colour of its target: the constellation as the noise shows it. "
            "First seed.",
        ),
    ]


def _information_figure(study: Study) -> bytes:
    figure, (top, bottom) = plotting.new_figure(10, 8, rows=2)
    steps = study.steps[1:]
    plotting.information_over_steps(
        top,
        steps,
        {"I(X;T)": study.column("exact")[:, 1:]},
        {"I(X;T)": study.column("mutual_information")[:, 1:]},
        levels={"log 4": CEILING, "H(1/4, 1/4, 1/2)": TWO_MERGED, "H(1/4)": MERGED},
    )
    top.legend(fontsize=12, frameon=False, loc="lower center")
    plotting.learning(
        bottom,
        steps,
        study.column("loss")[:, 1:],
        study.column("error_rate")[:, 1:],
        floor=study.noise_std**2,
    )
    return plotting.png(figure)


def _symbols_figure(study: Study) -> bytes:
    figure, (axes,) = plotting.new_figure(10, 5)
    plotting.symbols(
        axes,
        study.steps[1:],
        study.levels()[0, 1:],
        study.noise_std,
        study.classes,
        [f"x = {x:g}" for x in study.inputs],
    )
    axes.set_ylabel("tanh(wx + b)", fontsize=13)
    return plotting.png(figure)


def _densities_figure(study: Study) -> bytes:
    figure, axes = plotting.new_figure(12, 6, columns=3, rows=2)
    reach = 1 + 4 * study.noise_std
    t = np.linspace(-reach, reach, 1500)
    exact = study.column("exact")[0]
    for panel, index in zip(axes, _shown(study), strict=True):
        given = gaussian_densities(t, study.levels()[0, index], study.noise_std)
        plotting.densities(
            panel,
            t,
            given,
            study.classes,
            title=f"step {study.steps[index]}, I = {exact[index]:.3f}",
            names=("target -1", "target +1"),
        )
    plotting.legend_above(figure, axes)
    for panel in axes[3:]:
        panel.set_xlabel("t", fontsize=13)
    for panel in axes[::3]:
        panel.set_ylabel("density", fontsize=13)
    return plotting.png(figure)


def _shown(study: Study) -> list[int]:
    """Six logged steps: one while it rises, the peak, and the fall to its end."""
    exact = study.column("exact")[0]
    top = int(exact.argmax())
    rising = int(np.abs(exact[: top + 1] - 0.5 * CEILING).argmin())
    falling = [
        top + int(np.abs(exact[top:] - value).argmin())
        for value in (0.5 * (CEILING + TWO_MERGED), TWO_MERGED, 0.8)
    ]
    return [rising, top, *falling, len(exact) - 1]


def claims(study: Study) -> list[Claim]:
    """What the paper describes, checked.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of Claim
    """
    end = study.at("exact", -1)
    peak, where = study.peak()
    levels = study.levels()[:, -1]
    same = levels[:, study.classes == 0]
    width = over_seeds(np.ptp(same, axis=1) / study.noise_std)
    apart = over_seeds((levels[:, -1] - same.max(axis=1)) / study.noise_std)
    wrong = study.column("error_rate")
    learnt = (wrong < 1e-3).argmax(axis=1)
    is_learnt = bool((wrong.min(axis=1) < 1e-3).all())
    seeds = np.arange(study.num_seeds)
    exact = study.column("exact")
    then = over_seeds(exact[seeds, learnt])
    # Of every training; where nothing falls, nothing of it is to come.
    whole = np.maximum(exact.max(axis=1) - exact[:, -1], 1e-12)
    to_come = over_seeds((exact[seeds, learnt] - exact[:, -1]) / whole)
    return [
        Claim(
            f"It rises towards log 4 = {CEILING:.4f} (to within {NEAR:g} nats).",
            f"largest {two_digits(peak)}, {CEILING - peak.mean:.4f} below, "
            f"{at_steps(where)}",
            is_near(peak, CEILING),
        ),
        Claim(
            f"Then it falls to H(1/4) = {MERGED:.4f} (to within {NEAR:g} nats).",
            f"{two_digits(end)} at step {study.steps[-1]}, {end.mean - MERGED:+.4f} "
            "away",
            is_near(end, MERGED),
        ),
        Claim(
            "The symbols that merge are those of one class: at the end the three lie "
            "within two standard deviations of the noise, and the fourth at least six "
            "away from the nearest.",
            f"within {two_digits(width)}; {two_digits(apart)} away",
            all_hold([width.is_below(2), apart.is_above(6)]),
        ),
        Claim(
            "It goes on after the task is learnt: most of the fall comes after the "
            "first logged step at which fewer than 0.1 % of the answers are wrong.",
            f"at that step, {study.steps[learnt].min()} to "
            f"{study.steps[learnt].max()}, I(X;T) = {two_digits(then)}: "
            f"{100 * to_come.mean:.0f} % of the fall is still to come"
            if is_learnt
            else f"{100 * wrong.min():.2g} % wrong at best",
            to_come.is_above(0.5) if is_learnt else False,
        ),
    ]


def is_near(measured: Measured, value: float) -> bool | None:
    """Whether information comes to a value; None where its error leaves that open.

    Parameters
    ----------
    measured : Measured
    value : float

    Returns
    -------
    bool or None
    """
    return Measured(abs(measured.mean - value), measured.error).is_below(NEAR)


def checks(study: Study) -> list[Claim]:
    """What must be so whatever the paper says: the measurement is checked.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of Claim
    """
    start = study.at("exact", 0)
    largest_error = float(study.column("standard_error").max())
    loss = study.column("loss")
    return [
        Claim(
            "I(X;T) is 0 at the start, where w = b = 0.",
            f"{start.mean:.1e} nats",
            abs(start.mean) < 1e-9,
        ),
        Claim(
            "The squared error falls from each logged step to the next (within 1 % of "
            "it).",
            f"from {loss[:, 0].mean():.3f} to {loss[:, -1].mean():.4f}, of which the "
            f"noise is {study.noise_std**2:.4f}; largest rise "
            f"{100 * (loss[:, 1:] / loss[:, :-1] - 1).max():.2g} %",
            bool((loss[:, 1:] <= 1.01 * loss[:, :-1]).all()),
        ),
        Claim(
            f"The estimate agrees with quadrature to {_AGREEMENT:g} nats.",
            f"largest distance {study.disagreement():.1e} nats over "
            f"{study.num_seeds * len(study.steps)} measurements; largest standard "
            f"error that the estimate states: {largest_error:.1e}",
            study.disagreement() <= _AGREEMENT,
        ),
    ]


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
    levels = study.levels().mean(axis=0)
    for index in range(0, len(study.steps), 4):
        rows.append(
            [
                str(study.steps[index]),
                *(f"{study.at(name, index)}" for name in ("weight", "bias")),
                ", ".join(f"{level:.3f}" for level in levels[index]),
                f"{study.at('mutual_information', index).mean:.6f}",
                f"{study.at('exact', index).mean:.6f}",
                f"{study.at('loss', index).mean:.4f}",
                f"{100 * study.at('error_rate', index).mean:.2g} %",
            ]
        )
    return Table(
        "The training, every fourth measurement, means over the seeds",
        [
            "step",
            "w",
            "b",
            "symbols",
            "I(X;T), estimate",
            "I(X;T), quadrature",
            "squared error",
            "wrong",
        ],
        rows,
        "Information in nats. Squared error and share of wrong answers (T of the wrong "
        "sign) are exact averages over the noise.",
    )


def summary(study: Study) -> str:
    """The end of the run in a few lines."""
    peak, _ = study.peak()
    end = study.at("exact", -1)
    return (
        f"single-neuron: I(X;T) rises to {two_digits(peak)} and falls to "
        f"{two_digits(end)} nats; estimate and quadrature agree to "
        f"{study.disagreement():.1e}\n"
        f"  {counts(claims(study), checks(study))}"
    )
