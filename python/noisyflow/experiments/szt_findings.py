"""Figures and claims that `szt` shares with the experiments that vary it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import datasets, plotting, report
from noisyflow.experiments import Claim
from noisyflow.experiments.measured import Measured, is_above
from noisyflow.experiments.szt_network import CEILING, Config, layer_outputs
from noisyflow.experiments.tracked_figures import label_entropy
from noisyflow.runs import Results

# Epochs of the scatter plots in the paper's figure.
_SCATTER_EPOCHS = (11, 35, 356, 7389)
# More points than the authors' first 1000 hide one another.
SCATTER_INPUTS = 1000


def information_figure(results: Results) -> bytes:
    """I(X;T_l) and I(Y;T_l) side by side."""
    figure, (left, right) = plotting.new_figure(12, 4.6, columns=2)
    metrics = results.metrics
    for axes, prefix, value, ceiling, name, title in (
        (left, "", "mutual_information", CEILING, "log 4096", "I(X;T), in nats"),
        (
            right,
            "label_",
            "label_information",
            label_entropy(datasets.szt().labels),
            "H(Y)",
            "I(Y;T), in nats",
        ),
    ):
        error = 2 * metrics[f"{prefix}standard_error"]
        plotting.information(
            axes,
            results.epochs,
            metrics[value],
            metrics[f"{prefix}lower"] - error,
            metrics[f"{prefix}upper"] + error,
            ceiling=ceiling,
            ceiling_name=name,
        )
        axes.set_ylabel(title, fontsize=13)
    plotting.legend_of_layers(right)
    return plotting.png(figure)


def history_figure(results: Results) -> bytes:
    """Loss and accuracy side by side."""
    figure, (left, right) = plotting.new_figure(12, 4, columns=2)
    history = results.history
    for axes, quantity, name in (
        (left, "loss", "cross-entropy, in nats"),
        (right, "accuracy", "accuracy"),
    ):
        plotting.history(
            axes,
            results.epochs,
            history[f"train_{quantity}"],
            history[f"test_{quantity}"],
            name=name,
        )
    left.set_ylim(bottom=0)
    return plotting.png(figure)


def scatter_figure(config: Config, results: Results, shown: list[int]) -> bytes:
    """The last hidden layer at some of the logged epochs."""
    figure, panels = plotting.new_figure(15, 4.2, columns=len(shown), projection="3d")
    labels = datasets.szt().labels[:SCATTER_INPUTS]
    for axes, at in zip(panels, shown, strict=True):
        points = layer_outputs(config, results.parameters[at])[-1][:SCATTER_INPUTS]
        plotting.scatter_3d(axes, points, labels, title=f"epoch {results.epochs[at]}")
    panels[0].legend(loc="upper left", fontsize=12, markerscale=2, frameon=False)
    return plotting.png(figure)


def activations_figure(config: Config, results: Results) -> bytes:
    """Histograms of every layer's activations over epochs."""
    outputs = [layer_outputs(config, vector) for vector in results.parameters]
    figure, panels = plotting.new_figure(14, 3.8, columns=results.num_layers)
    for layer, axes in enumerate(panels):
        values = [epoch_outputs[layer] for epoch_outputs in outputs]
        edges = np.linspace(*_activation_range(config.activation, values), 101)
        counts = np.stack([np.histogram(value, edges)[0] for value in values])
        shares = counts / [[value.size] for value in values]
        plotting.activation_histograms(
            axes, results.epochs, edges, shares, title=f"layer {layer + 1}"
        )
        axes.locator_params(axis="y", nbins=5)
    panels[0].set_ylabel("activation", fontsize=13)
    bar = figure.colorbar(panels[-1].collections[-1], ax=panels, pad=0.01)
    bar.set_label("share of activations", fontsize=13)
    return plotting.png(figure)


def _activation_range(
    activation: str, values: Iterable[NDArray[Any]]
) -> tuple[float, float]:
    """The interval that a histogram covers."""
    bounded = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}
    if activation in bounded:
        return bounded[activation]
    arrays = list(values)
    low = min(float(array.min()) for array in arrays)
    high = max(float(array.max()) for array in arrays)
    return low, max(high, low + 1e-6)


def scatter_epochs(epochs: int) -> list[int]:
    """The authors' four epochs in a full run, four spread ones in a shorter."""
    if epochs > _SCATTER_EPOCHS[-1]:
        return list(_SCATTER_EPOCHS)
    return [round((epochs - 1) ** share) for share in (0.25, 0.5, 0.75, 1.0)]


def accuracy_claims(results: Results) -> list[Claim]:
    """How good the measurement is, whatever the settings."""
    check = report.data_processing(results)
    errors = results.metrics["standard_error"]
    widths = results.metrics["upper"] - results.metrics["lower"]
    return [
        Claim(
            "Data processing: I(X;T_1) >= I(X;T_2) >= ... within two standard errors "
            "at every logged epoch.",
            f"{check.num_violations} violations in {check.num_pairs} pairs",
            check.num_violations == 0,
        ),
        Claim(
            "Every standard error of I(X;T_l) is at most 0.05 nats.",
            f"largest {errors.max():.4f}",
            bool(errors.max() <= 0.05),
        ),
        Claim(
            "Every bracket of I(X;T_l) is at most 0.05 nats wide.",
            f"widest {widths.max():.4f}",
            bool(widths.max() <= 0.05),
        ),
    ]


def share_near_ends(config: Config, results: Results) -> tuple[float, float]:
    """Share of layer 5's activations beyond 0.9 in size, at epoch 11 and at the end."""
    first, last = (
        np.abs(layer_outputs(config, results.parameters[at])[-1]) > 0.9
        for at in (results.nearest(11), -1)
    )
    return float(first.mean()), float(last.mean())


def extreme(
    results: Results, values: NDArray[Any], first: int, last: int, *, largest: bool
) -> int | None:
    """Index of the largest or smallest value between two epochs, if any."""
    inside = np.flatnonzero((results.epochs >= first) & (results.epochs <= last))
    if inside.size == 0:
        return None
    chosen = values[inside].argmax() if largest else values[inside].argmin()
    return int(inside[chosen])


def fall(results: Results, layer: int, before: int, after: int) -> Measured:
    """By how much I(X;T_layer) is smaller at one logged epoch than at another.

    Parameters
    ----------
    results : Results
    layer : int
        From 1.
    before, after : int
        Indices of the epochs.

    Returns
    -------
    Measured
        With the standard error of the difference: noise is drawn anew at every epoch.
    """
    values = results.metrics["mutual_information"][:, layer - 1]
    errors = results.metrics["standard_error"][:, layer - 1]
    return Measured(
        float(values[before] - values[after]),
        math.hypot(errors[before], errors[after]),
    )


def by_two_errors(measured: Measured, bound: float) -> bool | None:
    """Whether a number is above a bound; None within two standard errors of it.

    The largest of many noisy values is too large by about one of their errors: a fall
    from it is not known to less than two.
    """
    return is_above(measured.mean, 2 * measured.error, bound)


def too_short(statement: str) -> Claim:
    """A claim that a run of too few epochs can say nothing about."""
    return Claim(statement, "the run is too short", None)
