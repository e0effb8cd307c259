"""Figures of a network while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from noisyflow.plotting.common import (
    CLASS_COLORS,
    METHOD_STYLES,
    Array,
    ceiling_line,
    epoch_axis,
    last_shown,
    layer_colors,
    marker,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def information(
    axes: Axes,
    epochs: Array,
    values: Array,
    low: Array,
    high: Array,
    *,
    ceiling: float,
    ceiling_name: str,
) -> Axes:
    """Information per layer over epochs, with bands, on a logarithmic epoch axis.

    Parameters
    ----------
    axes : Axes
    epochs : (k,) array
        From 1.
    values, low, high : (k, L) array
        Estimates and ends of the bands, in nats.
    ceiling : float
        Largest possible value, marked by a dashed line.
    ceiling_name : str
        How the ceiling is called beside the line.

    Returns
    -------
    Axes
    """
    for layer, color in enumerate(layer_colors(values.shape[1])):
        axes.fill_between(
            epochs, low[:, layer], high[:, layer], color=color, alpha=0.3, linewidth=0
        )
        if len(epochs) == 1:  # a band of no width
            axes.vlines(epochs, low[:, layer], high[:, layer], color=color, alpha=0.6)
        axes.plot(
            epochs,
            values[:, layer],
            color=color,
            linewidth=2,
            marker=marker(epochs),
            label=f"layer {layer + 1}",
        )
    ceiling_line(axes, ceiling, ceiling_name)
    axes.set_ylim(0, 1.12 * ceiling)
    return epoch_axis(axes, epochs)


def history(axes: Axes, epochs: Array, train: Array, test: Array, *, name: str) -> Axes:
    """A quantity on the training and on the test inputs over epochs.

    Parameters
    ----------
    axes : Axes
    epochs, train, test : (k,) array
    name : str
        What is drawn, with its unit, for the vertical axis.

    Returns
    -------
    Axes
    """
    for values, color, style, label in (
        (train, "#26547c", "-", "train"),
        (test, "#d1495b", "--", "test"),
    ):
        axes.plot(
            epochs,
            values,
            color=color,
            linewidth=2,
            linestyle=style,
            marker=marker(epochs),
            label=label,
        )
    axes.set_ylabel(name, fontsize=13)
    axes.legend(fontsize=13, frameon=False)
    return epoch_axis(axes, epochs)


def histories(
    axes: Axes, courses: Mapping[str, tuple[Array, Array, Array]], *, name: str
) -> Axes:
    """A quantity on the training and on the test inputs, for several networks.

    Parameters
    ----------
    axes : Axes
    courses : mapping of str to three (k,) arrays
        By network: epochs, values on the training inputs (lines), on the test inputs
        (dashed). At most three networks, the first with the most epochs.
    name : str
        What is drawn, with its unit, for the vertical axis.

    Returns
    -------
    Axes
    """
    for (label, (epochs, train, test)), style in zip(
        courses.items(), METHOD_STYLES, strict=False
    ):
        for values, line, which in ((train, "-", "train"), (test, "--", "test")):
            axes.plot(
                epochs,
                values,
                color=style["color"],
                linewidth=2,
                linestyle=line,
                marker=marker(epochs),
                label=f"{label}, {which}",
            )
    axes.set_ylabel(name, fontsize=13)
    return epoch_axis(axes, next(iter(courses.values()))[0])


def scatter_3d(axes: Any, points: Array, labels: Array, *, title: str) -> Any:
    """Points of a three-dimensional layer, coloured by class.

    Parameters
    ----------
    axes : Axes3D
    points : (m, 3) array
    labels : (m,) array of int
        Two classes, 0 and 1.
    title : str

    Returns
    -------
    Axes3D
    """
    for label, color in enumerate(CLASS_COLORS):
        axes.scatter(
            *points[labels == label].T,
            s=14,
            color=color,
            alpha=0.6,
            linewidths=0,
            label=f"label {label}",
        )
    reach = 1.05 * max(1.0, float(np.abs(points).max()))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
    axes.set_title(title, fontsize=15)
    for number, axis in enumerate((axes.xaxis, axes.yaxis, axes.zaxis), start=1):
        axis.set_label_text(f"unit {number}", fontsize=13)
        if reach < 2:
            axis.set_ticks((-1, 0, 1))
    axes.tick_params(labelsize=11, pad=0)
    # Layout engines overlook the label of the vertical axis: leave room for it, and do
    # not let the next axes cover it.
    axes.set_box_aspect(None, zoom=0.8)
    axes.patch.set_visible(False)
    axes.zaxis.labelpad = -2
    return axes


def activation_histograms(
    axes: Axes, epochs: Array, edges: Array, shares: Array, *, title: str
) -> Axes:
    """Histograms of a layer's activations over epochs, as an image.

    Parameters
    ----------
    axes : Axes
    epochs : (k,) array
        Increasing, from 1.
    edges : (b + 1,) array
        Ends of the bins.
    shares : (k, b) array
        Share of the activations in each bin; each row sums to 1.
    title : str

    Returns
    -------
    Axes
        The drawn image is its last collection, for a colour bar.
    """
    from matplotlib.colors import LogNorm

    logs = np.log(epochs)
    between = (logs[1:] + logs[:-1]) / 2
    end = np.log([last_shown(epochs)])
    time_edges = np.exp(np.concatenate([logs[:1], between, end]))
    image = np.where(shares > 0, shares, np.nan).T
    axes.set_facecolor("white")
    axes.pcolormesh(time_edges, edges, image, cmap="magma_r", norm=LogNorm(1e-4, 1))
    axes.set_title(title, fontsize=15)
    return epoch_axis(axes, epochs)
