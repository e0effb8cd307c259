"""Figures that every training with tracked information has in its report."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from noisyflow import plotting
from noisyflow.report import Figure
from noisyflow.runs import Results, RunFolder

_QUANTITIES = ("standard_error", "lower", "upper")


def information_plane(
    folder: RunFolder,
    results: Results,
    labels: NDArray[np.int64],
    *,
    name: str = "plane.png",
    note: str = "",
) -> Figure:
    """I(Y;T_l) over I(X;T_l) of every layer, coloured by epoch.

    Parameters
    ----------
    folder : RunFolder
        Where the figure is saved.
    results : Results
        What is drawn; of that run or of one within it.
    labels : (m,) array
        The class of each of the m equally likely inputs.
    name : str
        File name within `figures/`.
    note : str
        What the caption begins with: which network it is, where there are several.

    Returns
    -------
    Figure
    """
    metrics = results.metrics
    figure, (axes,) = plotting.new_figure(8.5, 5.4)
    plotting.information_plane(
        axes,
        results.epochs,
        {"value": metrics["mutual_information"]}
        | {key: metrics[key] for key in _QUANTITIES},
        {"value": metrics["label_information"]}
        | {key: metrics[f"label_{key}"] for key in _QUANTITIES},
        input_entropy=math.log(len(labels)),
        label_entropy=label_entropy(labels),
    )
    bar = figure.colorbar(axes.collections[-1], ax=axes, pad=0.02)
    bar.set_label("epoch", fontsize=13)
    bar.ax.tick_params(labelsize=12)
    return Figure(
        folder.save_figure(name, plotting.png(figure)),
        f"{note}The information plane: I(Y;T_l) over I(X;T_l), one marker per layer "
        "and logged epoch, from light (early) to dark (late). Ellipses: their half "
        "axes are half the bias bracket and two standard errors, each axis for itself; "
        "where none is seen it is smaller than the marker. Dashed: the largest "
        "possible values, the entropies of input and label.",
    )


def label_entropy(labels: NDArray[np.int64]) -> float:
    """H(Y) of equally likely inputs with these labels, in nats."""
    counts = np.bincount(labels)
    shares = counts[counts > 0] / len(labels)
    return float(-(shares * np.log(shares)).sum())
