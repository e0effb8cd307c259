"""Figures of a few neurons: information, symbols and densities while they learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from noisyflow.plotting.common import CLASS_COLORS, METHOD_STYLES, Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THREE_CLASSES = ("#3b4cc0", "#e08a20", "#2f8f6b")
_LINES = ("#1f3b73", "#c8791a", "#5b8c5a")
_LINE_STYLES = ("-", "--", "-.")


def information_over_steps(
    axes: Axes,
    steps: Array,
    exact: Mapping[str, Array],
    estimated: Mapping[str, Array],
    *,
    levels: Mapping[str, float],
    title: str = "",
) -> Axes:
    """Information over training steps: lines by quadrature, points as estimated.

    Parameters
    ----------
    axes : Axes
    steps : (k,) array
        Positive.
    exact, estimated : mapping of str to (seeds, k) array
        By the name of what is shown. Lines are means over the seeds with a band from
        the smallest to the largest; points are those of the first seed, every third.
    levels : mapping of str to float
        Values to compare with, dashed, by their names.
    title : str

    Returns
    -------
    Axes
    """
    names = zip(exact, _LINES, _LINE_STYLES, strict=False)
    for name, color, style in names:
        runs = exact[name]
        axes.fill_between(
            steps, runs.min(axis=0), runs.max(axis=0), color=color, alpha=0.2, lw=0
        )
        axes.plot(
            steps, runs.mean(axis=0), style, color=color, linewidth=2.2, label=name
        )
        axes.plot(
            steps[::3],
            estimated[name][0, ::3],
            "o",
            color=color,
            markersize=5,
            markerfacecolor="white",
            label=f"{name}, estimate",
        )
    for name, value in levels.items():
        axes.axhline(value, color="0.35", linewidth=1.1, linestyle=":")
        axes.annotate(
            f"{name} = {value:.3f}",
            (0.99, value),
            (0, -3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=12,
            color="0.25",
        )
    axes.set_ylim(0, 1.12 * max(levels.values()))
    axes.set_ylabel("information, in nats", fontsize=13)
    return _step_axis(axes, steps, title)


def learning(
    axes: Axes, steps: Array, loss: Array, error_rate: Array, *, floor: float
) -> Axes:
    """Squared error and share of wrong answers over training steps, log-log.

    Parameters
    ----------
    axes : Axes
    steps : (k,) array
    loss, error_rate : (seeds, k) array
        Means over the seeds are drawn; a share below 1e-6 is left out.
    floor : float
        The loss that the noise leaves, marked by a dotted line.

    Returns
    -------
    Axes
    """
    wrong = error_rate.mean(axis=0)
    axes.plot(
        steps, loss.mean(axis=0), color=_LINES[0], linewidth=2.2, label="squared error"
    )
    axes.axhline(floor, color="0.35", linewidth=1.1, linestyle=":", label="noise alone")
    axes.plot(
        steps,
        np.where(wrong > 1e-6, wrong, np.nan),
        "--",
        color=METHOD_STYLES[1]["color"],
        linewidth=2.2,
        label="share of wrong answers",
    )
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5 * floor)
    axes.set_ylabel("squared error; share of answers", fontsize=13)
    axes.legend(fontsize=12, frameon=False)
    return _step_axis(axes, steps, "")


def symbols(
    axes: Axes,
    steps: Array,
    levels: Array,
    noise_std: float,
    classes: Array,
    names: Sequence[str],
    *,
    title: str = "",
) -> Axes:
    """Where every input's symbol is over training steps, with the noise around it.

    Parameters
    ----------
    axes : Axes
    steps : (k,) array
    levels : (k, m) array
        Noise-free output for every input; bands are one standard deviation wide on
        either side.
    noise_std : float
    classes : (m,) array of int
        0 or 1, for the colour.
    names : sequence of str
        Of the inputs, written at the right ends.
    title : str

    Returns
    -------
    Axes
    """
    for level, label in zip(levels.T, classes, strict=True):
        color = CLASS_COLORS[label]
        axes.fill_between(
            steps, level - noise_std, level + noise_std, color=color, alpha=0.18, lw=0
        )
        axes.plot(steps, level, color=color, linewidth=1.8)
    low, high = axes.get_ylim()
    for place, end, name in zip(
        _apart(levels[-1], 0.055 * (high - low)), levels[-1], names, strict=True
    ):
        axes.annotate(
            name,
            (steps[-1], end),
            (1.03, place),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=12,
            color="0.15",
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.8},
            annotation_clip=False,
        )
    axes.set_ylim(low, high)
    return _step_axis(axes, steps, title)


def densities(
    axes: Axes,
    t: Array,
    given: Array,
    classes: Array,
    *,
    title: str,
    names: Sequence[str],
) -> Axes:
    """The density of T, and the part that every input has in it.

    Parameters
    ----------
    axes : Axes
    t : (k,) array
    given : (k, m) array
        Density of T given each input.
    classes : (m,) array of int
        0 or 1, for the colour.
    title : str
    names : sequence of str
        Of both classes, for a legend.

    Returns
    -------
    Axes
    """
    m = given.shape[1]
    axes.plot(t, given.mean(axis=1), color="0.2", linewidth=1.3, label="all inputs")
    for part, label in zip(given.T / m, classes, strict=True):
        color = CLASS_COLORS[label]
        axes.fill_between(
            t, part, color=color, alpha=0.45, lw=0, label=f"an input of {names[label]}"
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(t[0], t[-1])
    axes.set_title(title, fontsize=13)
    axes.tick_params(labelsize=11)
    return axes


def decision_regions(
    axes: Axes, x: Array, y: Array, regions: Array, points: Array, labels: Array
) -> Axes:
    """Where in the plane a network decides for which class, and its inputs.

    Parameters
    ----------
    axes : Axes
    x, y : (k,) array
        Of the grid.
    regions : (k, k) array of int
        Class at [row of y, column of x]; up to three.
    points : (m, 2) array
    labels : (m,) array of int

    Returns
    -------
    Axes
    """
    from matplotlib.colors import ListedColormap

    axes.pcolormesh(
        x,
        y,
        regions,
        cmap=ListedColormap(THREE_CLASSES),
        vmin=0,
        vmax=2,
        alpha=0.25,
        linewidth=0,
        rasterized=True,
    )
    axes.set_aspect("equal")
    return class_scatter(axes, points, labels)


def class_scatter(axes: Axes, points: Array, labels: Array) -> Axes:
    """Points in the plane, coloured and marked by class.

    Parameters
    ----------
    axes : Axes
    points : (m, 2) array
    labels : (m,) array of int
        Up to three classes.

    Returns
    -------
    Axes
    """
    for label, (color, marker) in enumerate(zip(THREE_CLASSES, "os^", strict=True)):
        axes.scatter(
            points[labels == label, 0],
            points[labels == label, 1],
            s=14,
            color=color,
            marker=marker,
            edgecolors="white",
            linewidths=0.3,
            label=f"class {label + 1}",
        )
    axes.tick_params(labelsize=12)
    return axes


def _apart(places: Array, gap: float) -> Array:
    """The places, those nearer to one another than `gap` pushed apart."""
    order = np.argsort(places)
    moved = places[order].astype(np.float64)
    for _ in range(200):
        lack = np.maximum(gap - np.diff(moved), 0)
        moved[:-1] -= 0.5 * lack
        moved[1:] += 0.5 * lack
    result = np.empty_like(moved)
    result[order] = moved
    return result


def _step_axis(axes: Axes, steps: Array, title: str) -> Axes:
    """A logarithmic horizontal axis of training steps."""
    axes.set_xscale("log")
    axes.set_xlim(steps[0], steps[-1])
    axes.set_xlabel("training step", fontsize=13)
    axes.set_title(title, fontsize=14)
    axes.tick_params(labelsize=12)
    return axes
