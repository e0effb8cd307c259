"""What the information bottleneck's runs found: figures, tables, and what they show.

Everything here reads the rows of a finished run and trains nothing. Errors over seeds
are of the mean; differences are between trainings that share their seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import plotting, report
from noisyflow.experiments import Claim
from noisyflow.experiments.measured import Measured, over_seeds
from noisyflow.report import Figure, Table
from noisyflow.runs import Row, RunFolder

Floats = NDArray[np.float64]

_TITLES = {"szt": "4096 binary patterns", "digits": "digits of 8 x 8 pixels"}
# Of fewer seeds the standard error is itself known too badly for that.
_ENOUGH_SEEDS = 4


class Study:
    """Rows of a finished run, by task, beta, seed and step.

    Parameters
    ----------
    metrics, history : list of dict
        Rows of the two tables.
    label_entropy : mapping of str to float
        H(Y) of every task, nats.
    num_inputs : mapping of str to int
        Inputs of every task, over which I(X; T) is measured.
    """

    def __init__(
        self,
        metrics: list[Row],
        history: list[Row],
        label_entropy: Mapping[str, float],
        num_inputs: Mapping[str, int],
    ) -> None:
        self.history = history
        self.label_entropy = label_entropy
        self.num_inputs = num_inputs
        self.tasks = list(dict.fromkeys(str(row["task"]) for row in metrics))
        self.betas = list(dict.fromkeys(float(row["beta"]) for row in metrics))
        self.steps = sorted({int(row["step"]) for row in metrics})
        self.num_seeds = 1 + max(int(row["repetition"]) for row in metrics)
        self._rows = {
            (row["task"], float(row["beta"]), row["repetition"], row["step"]): row
            for row in metrics
        }

    @property
    def has_enough_seeds(self) -> bool:
        """Whether errors over the seeds are known well enough to judge by them."""
        return self.num_seeds >= _ENOUGH_SEEDS

    def column(self, task: str, beta: float, name: str, step: int = -1) -> Floats:
        """A column over the seeds, after the last step unless another is given."""
        at = self.steps[-1] if step < 0 else step
        seeds = range(self.num_seeds)
        return np.array(
            [float(self._rows[task, beta, seed, at][name]) for seed in seeds]
        )

    def information(self, task: str, beta: float, step: int = -1) -> Measured:
        """I(X; T): the seeds' spread and the estimates' own errors together."""
        values = self.column(task, beta, "mutual_information", step)
        own = self.column(task, beta, "standard_error", step)
        return _mean(values, own)

    def label_information(self, task: str, beta: float) -> Measured:
        """I(Y; T), with errors as of `information`."""
        values = self.column(task, beta, "label_information")
        return _mean(values, self.column(task, beta, "label_standard_error"))

    def accuracy(self, task: str, beta: float) -> Measured:
        """On the test inputs: over the seeds and over these inputs together."""
        values = self.column(task, beta, "test_accuracy")
        return _mean(values, self.column(task, beta, "test_standard_error"))

    def difference(self, task: str, beta: float, name: str) -> Measured:
        """A column less that without penalty, over the seeds."""
        return _mean(self.column(task, beta, name) - self.column(task, 0.0, name))

    def is_undersampled(self, task: str, beta: float) -> bool:
        """Whether the estimate of any trained network is."""
        return bool(self.column(task, beta, "is_undersampled").any())


def _mean(values: Floats, own_errors: Floats | None = None) -> Measured:
    """Over seeds; own errors are taken as common to all seeds, which none is beyond."""
    (mean, spread) = over_seeds(values)
    own = 0.0 if own_errors is None else math.sqrt(float((own_errors**2).mean()))
    return Measured(mean, math.hypot(spread, own))


def opening(study: Study, noise_std: float) -> list[str]:
    """The outcome in words."""
    paragraphs = [
        "A network is trained on the cross-entropy plus beta times I(X;T), the "
        "information that its noisy layer T = S + Z (five tanh units, noise "
        f"{noise_std:g}) carries of the input, with the gradient that noisyflow "
        "gives. The penalty grows to its beta over the first quarter of the training. "
        "All is in nats, and measured with the noise on. ± is one standard error: of "
        f"information over {study.num_seeds} seeds and of the estimate, of accuracy "
        "over seeds and test inputs, of differences over the seeds, whose trainings "
        "share their initial weights, batches and noise."
    ]
    paragraphs += [_outcome(study, task) for task in study.tasks]
    if "digits" not in study.tasks:
        paragraphs.append(
            "The digits are missing: scikit-learn, which they come with, was not "
            "installed. After `pip install scikit-learn` the same command adds them."
        )
    return paragraphs


def _outcome(study: Study, task: str) -> str:
    """Whether the penalty moves the information, and what that costs."""
    last = study.betas[-1]
    moved = study.difference(task, last, "mutual_information")
    cost = study.difference(task, last, "test_accuracy")
    verb = "lowers" if moved.mean < 0 else "raises"
    clear = "" if moved.is_clear else ", which these seeds do not tell from nothing"
    if not study.has_enough_seeds:
        clear = f" (of {study.num_seeds} seeds, too few to conclude anything)"
    text = (
        f"{_TITLES[task].capitalize()}: without a penalty I(X;T) is "
        f"{study.information(task, 0.0)} and {_percent(study.accuracy(task, 0.0))} of "
        f"the test inputs are classified correctly. A beta of {last:g} {verb} I(X;T) "
        f"by {abs(moved.mean):.3f} ± {moved.error:.3f}{clear}, to "
        f"{study.information(task, last).mean:.3f}; the accuracy changes by "
        f"{_points(cost)}. H(Y) is {study.label_entropy[task]:.3f}."
    )
    cheap = _cheapest(study, task)
    if cheap is not None:
        moved = study.difference(task, cheap, "mutual_information")
        cost = study.difference(task, cheap, "test_accuracy")
        text += (
            " The strongest penalty that costs less than one percent of these test "
            f"inputs, by two standard errors, is {cheap:g}: it changes I(X;T) by "
            f"{moved.mean:+.3f} ± "
            f"{moved.error:.3f} and the accuracy by {_points(cost)}."
        )
    return text


def _cheapest(study: Study, task: str) -> float | None:
    """The largest beta that surely costs less than one percent of the test inputs.

    By two standard errors over the seeds, on the test inputs that there are. None where
    the seeds are too few.
    """
    if not study.has_enough_seeds:
        return None
    cheap = []
    for beta in study.betas[1:]:
        change = study.difference(task, beta, "test_accuracy")
        if change.mean - 2 * change.error > -0.01:
            cheap.append(beta)
    return max(cheap) if cheap else None


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
    marks = (
        " Hollow: the estimate of a seed is undersampled, trust only its bracket."
        if any(study.is_undersampled(t, b) for t in study.tasks for b in study.betas)
        else ""
    )
    return [
        Figure(
            folder.save_figure("trade-off.png", _trade_off_figure(study)),
            "Test accuracy against I(X;T), a point for every beta; bars: one standard "
            "error; small points: single seeds. Dashed: H(Y), all that a layer need "
            f"carry.{marks}",
        ),
        Figure(
            folder.save_figure("information.png", _information_figure(study)),
            "I(X;T) and I(Y;T) of the trained networks against beta; bars: one "
            "standard error; shaded: the bracket of I(X;T), which closes where all "
            f"inputs are known. Dashed: H(Y).{marks}",
        ),
        Figure(
            folder.save_figure("training.png", _training_figure(study)),
            "I(X;T) while the networks learn, mean over the seeds; bands: one standard "
            "error. Dotted: where the penalty has grown to its beta.",
        ),
    ]


def _trade_off_figure(study: Study) -> bytes:
    figure, axes = plotting.new_figure(
        6 * len(study.tasks), 5, columns=len(study.tasks)
    )
    for task, panel in zip(study.tasks, axes, strict=True):
        plotting.trade_off(
            panel,
            study.betas,
            [study.information(task, beta) for beta in study.betas],
            [study.accuracy(task, beta) for beta in study.betas],
            [
                (
                    study.column(task, beta, "mutual_information"),
                    study.column(task, beta, "test_accuracy"),
                )
                for beta in study.betas
            ],
            hollow=[study.is_undersampled(task, beta) for beta in study.betas],
            enough=study.label_entropy[task],
            title=_TITLES[task],
        )
    axes[0].set_ylabel("test accuracy", fontsize=13)
    _legend_of_betas(axes[-1])
    return plotting.png(figure)


def _information_figure(study: Study) -> bytes:
    figure, axes = plotting.new_figure(
        6 * len(study.tasks), 5, columns=len(study.tasks)
    )
    for task, panel in zip(study.tasks, axes, strict=True):
        plotting.information_over_beta(
            panel,
            study.betas,
            [study.information(task, beta) for beta in study.betas],
            [study.label_information(task, beta) for beta in study.betas],
            bracket=[
                (
                    study.column(task, beta, "lower").mean(),
                    study.column(task, beta, "upper").mean(),
                )
                for beta in study.betas
            ],
            hollow=[study.is_undersampled(task, beta) for beta in study.betas],
            enough=study.label_entropy[task],
            title=_TITLES[task],
        )
    axes[0].set_ylabel("information, in nats", fontsize=13)
    return plotting.png(figure)


def _training_figure(study: Study) -> bytes:
    figure, axes = plotting.new_figure(
        6 * len(study.tasks), 5, columns=len(study.tasks)
    )
    steps = [step for step in study.steps if step > 0]
    for task, panel in zip(study.tasks, axes, strict=True):
        plotting.information_while_training(
            panel,
            np.array(steps),
            {
                beta: [study.information(task, beta, step) for step in steps]
                for beta in study.betas
            },
            grown=0.25 * steps[-1],
            title=_TITLES[task],
        )
    axes[0].set_ylabel("I(X;T), in nats", fontsize=13)
    _legend_of_betas(axes[-1])
    return plotting.png(figure)


def _legend_of_betas(axes: Any) -> None:
    """One legend for all panels, right of the last."""
    axes.legend(
        title="beta",
        title_fontsize=12,
        fontsize=12,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )


def caution(study: Study) -> list[str]:
    """What must be said before the claims: a paragraph where the seeds are few."""
    if study.has_enough_seeds:
        return []
    freedom = study.num_seeds - 1
    return [
        f"With {study.num_seeds} seeds the standard errors over the seeds have "
        f"{'one degree' if freedom == 1 else f'{freedom} degrees'} of freedom: they "
        "may be too small many times over, and nothing is concluded from them below. "
        f"It takes {_ENOUGH_SEEDS} seeds or more."
    ]


def claims(study: Study) -> list[Claim]:
    """What the penalty should do, checked; not judged where the seeds are too few.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of Claim
    """
    return [
        claim
        for task in study.tasks
        for claim in (
            _it_moves(study, task),
            _it_falls(study, task),
            _some_is_free(study, task),
            _label_within_input(study, task),
        )
    ]


def _it_moves(study: Study, task: str) -> Claim:
    moved = study.difference(task, study.betas[-1], "mutual_information")
    return Claim(
        f"{_TITLES[task]}: a beta of {study.betas[-1]:g} lowers I(X;T) by more than "
        "three standard errors.",
        f"{moved.mean:+.3f} ± {moved.error:.3f} nats",
        _judged(study, moved.mean < 0 and moved.is_clear),
    )


def _judged(study: Study, holds: bool) -> bool | None:
    """The verdict on what is seen over the seeds."""
    return holds if study.has_enough_seeds else None


def _it_falls(study: Study, task: str) -> Claim:
    rises = []
    for before, beta in zip(study.betas[:-1], study.betas[1:], strict=True):
        values, earlier = (
            study.column(task, b, "mutual_information") for b in (beta, before)
        )
        step = _mean(values - earlier)
        if step.mean > 2 * step.error:
            rises.append(f"{step.mean:+.3f} ± {step.error:.3f} at {beta:g}")
    return Claim(
        f"{_TITLES[task]}: I(X;T) falls from beta to beta, or rises within two "
        "standard errors.",
        f"not {', '.join(rises)}"
        if rises
        else " → ".join(
            f"{study.information(task, beta).mean:.3f}" for beta in study.betas
        ),
        _judged(study, not rises),
    )


def _some_is_free(study: Study, task: str) -> Claim:
    cheap = _cheapest(study, task)
    statement = (
        f"{_TITLES[task]}: some penalty takes away 0.1 nats or more of I(X;T), beyond "
        "three standard errors, and costs less than one percent of these test inputs, "
        "by two standard errors over the seeds."
    )
    if not study.has_enough_seeds:
        return Claim(statement, "too few seeds", None)
    if cheap is None:
        return Claim(statement, "every penalty costs more, or may", False)
    moved = study.difference(task, cheap, "mutual_information")
    cost = study.difference(task, cheap, "test_accuracy")
    return Claim(
        statement,
        f"beta = {cheap:g}: {moved.mean:+.3f} ± {moved.error:.3f} nats, accuracy "
        f"{_points(cost)}",
        moved.mean <= -0.1 and moved.is_clear,
    )


def _label_within_input(study: Study, task: str) -> Claim:
    beyond = -math.inf
    for beta in study.betas:
        label = study.column(task, beta, "label_information")
        input_ = study.column(task, beta, "mutual_information")
        error = np.hypot(
            study.column(task, beta, "label_standard_error"),
            study.column(task, beta, "standard_error"),
        )
        # Both are plug-in estimates, of a bias that the bracket's upper end bounds.
        excess = label - np.maximum(input_, study.column(task, beta, "upper"))
        beyond = max(beyond, float((excess - 2 * error).max()))
    return Claim(
        f"{_TITLES[task]}: T tells no more of the label than of the input, as must be.",
        f"largest excess beyond two standard errors {beyond:+.3f} nats",
        beyond <= 0,
    )


def difference_table(study: Study, task: str) -> Table:
    """What every penalty changes, against the training without one.

    Parameters
    ----------
    study : Study
    task : str

    Returns
    -------
    Table
    """
    rows = []
    for beta in study.betas[1:]:
        moved = study.difference(task, beta, "mutual_information")
        rows.append(
            [
                f"{beta:g}",
                f"{moved.mean:+.4f} ± {moved.error:.4f}",
                _points(study.difference(task, beta, "test_accuracy")),
                "too few seeds"
                if not study.has_enough_seeds
                else "yes"
                if moved.mean < 0 and moved.is_clear
                else "no",
            ]
        )
    return Table(
        f"Against no penalty: {_TITLES[task]}",
        ["beta", "change of I(X;T), nats", "change of test accuracy", "lowers I(X;T)"],
        rows,
        "Mean over the seeds of differences between trainings that share their seed, "
        "and its standard error; the test inputs are the same. Lowers: by more than "
        "three standard errors.",
    )


def curve_table(study: Study, task: str) -> Table:
    """The trade-off in numbers.

    Parameters
    ----------
    study : Study
    task : str

    Returns
    -------
    Table
    """
    rows = []
    for beta in study.betas:
        lower, upper = (
            study.column(task, beta, name).mean() for name in ("lower", "upper")
        )
        accuracy = _mean(study.column(task, beta, "test_accuracy"))
        over_inputs = study.column(task, beta, "test_standard_error").mean()
        rows.append(
            [
                f"{beta:g}",
                str(study.information(task, beta)),
                f"[{lower:.3f}, {upper:.3f}]",
                f"{100 * study.column(task, beta, 'is_undersampled').mean():.0f} %",
                str(study.label_information(task, beta)),
                f"{100 * accuracy.mean:.2f} %",
                f"{100 * accuracy.error:.2f} %",
                f"{100 * over_inputs:.2f} %",
                f"{100 * study.column(task, beta, 'train_accuracy').mean():.2f} %",
            ]
        )
    return Table(
        f"Trained networks: {_TITLES[task]}, I(X;T) over {study.num_inputs[task]} "
        "inputs (nats)",
        [
            "beta",
            "I(X;T)",
            "bracket",
            "undersampled",
            "I(Y;T)",
            "test accuracy",
            "± over seeds",
            "± over test inputs",
            "train accuracy",
        ],
        rows,
        f"The most that I(X;T) can be is log {study.num_inputs[task]} = "
        f"{math.log(study.num_inputs[task]):.3f} of these inputs; to name the label "
        f"takes H(Y) = {study.label_entropy[task]:.3f}. Bracket: mean over the "
        "seeds. Undersampled: share of the seeds whose estimate is, and of which only "
        "the bracket counts.",
    )


def work_table(study: Study, folder: RunFolder) -> Table:
    """What was run and how long it took.

    Parameters
    ----------
    study : Study
    folder : RunFolder

    Returns
    -------
    Table
    """
    plain, rest = (
        1000
        * np.median(
            [
                float(row["step_seconds"])
                for row in study.history
                if (float(row["beta"]) > 0) is has_penalty
            ]
        )
        for has_penalty in (False, True)
    )
    return report.work_table(
        folder,
        [
            ["trainings", str(len(study.history))],
            [
                "median time of a training step, with and without the penalty",
                f"{rest:.1f} and {plain:.1f} ms",
            ],
        ],
    )


def summary(study: Study) -> str:
    """The end of the run in a few lines."""
    lines = []
    for task in study.tasks:
        lines.append(f"bottleneck: {_TITLES[task]}, I(X;T) and test accuracy")
        lines += [
            f"  beta {beta:<6g}{study.information(task, beta)} nats   "
            f"{_percent(study.accuracy(task, beta))}"
            for beta in study.betas
        ]
    return "\n".join(lines)


def _percent(accuracy: Measured) -> str:
    return f"{100 * accuracy.mean:.2f} ± {100 * accuracy.error:.2f} %"


def _points(change: Measured) -> str:
    """A change of an accuracy, in percent of the inputs."""
    return f"{100 * change.mean:+.2f} ± {100 * change.error:.2f} %"
