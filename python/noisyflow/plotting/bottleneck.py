"""Figures of accuracy against information."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from noisyflow.plotting.common import (
    METHOD_STYLES,
    Array,
    layer_colors,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trade_off(
    axes: Axes,
    betas: Sequence[float],
    information: Sequence[tuple[float, float]],
    accuracy: Sequence[tuple[float, float]],
    runs: Sequence[tuple[Array, Array]],
    *,
    hollow: Sequence[bool],
    enough: float,
    title: str,
) -> Axes:
    """Accuracy against information, a point per penalty, joined in their order.

    Parameters
    ----------
    axes : Axes
    betas : sequence of float
        Penalties, for a legend.
    information, accuracy : sequence of (float, float)
        Mean and standard error at each.
    runs : sequence of pairs of arrays
        Information and accuracy of single trainings at each, as small points.
    hollow : sequence of bool
        Points to be drawn hollow.
    enough : float
        Information marked by a dashed line.
    title : str

    Returns
    -------
    Axes
    """
    axes.plot(
        [mean for mean, _ in information],
        [mean for mean, _ in accuracy],
        color="0.7",
        linewidth=1.2,
        zorder=1,
    )
    colors = layer_colors(len(betas))
    for index, (beta, color) in enumerate(zip(betas, colors, strict=True)):
        (x, x_error), (y, y_error) = information[index], accuracy[index]
        axes.plot(*runs[index], ".", color=color, alpha=0.5, markersize=4, zorder=2)
        axes.errorbar(
            x,
            y,
            y_error,
            x_error,
            color=color,
            marker="o",
            markersize=8,
            markerfacecolor="white" if hollow[index] else color,
            capsize=3,
            zorder=3,
            label=f"{beta:g}",
        )
    axes.axvline(enough, color="0.35", linewidth=1.2, linestyle="--")
    axes.set_xlim(left=0)
    axes.set_xlabel("I(X;T), in nats", fontsize=13)
    axes.set_title(title, fontsize=14)
    axes.tick_params(labelsize=12)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def information_over_beta(
    axes: Axes,
    betas: Sequence[float],
    about_input: Sequence[tuple[float, float]],
    about_label: Sequence[tuple[float, float]],
    *,
    bracket: Sequence[tuple[float, float]],
    hollow: Sequence[bool],
    enough: float,
    title: str,
) -> Axes:
    """Information about the input and about the label at every penalty.

    Parameters
    ----------
    axes : Axes
    betas : sequence of float
        Penalties, at even steps.
    about_input, about_label : sequence of (float, float)
        Mean and standard error at each.
    bracket : sequence of (float, float)
        Of the information about the input; shaded.
    hollow : sequence of bool
        Points about the input to be drawn hollow.
    enough : float
        Information marked by a dashed line.
    title : str

    Returns
    -------
    Axes
    """
    places = np.arange(len(betas))
    axes.fill_between(
        places,
        [low for low, _ in bracket],
        [high for _, high in bracket],
        color=METHOD_STYLES[0]["color"],
        alpha=0.15,
        linewidth=0,
    )
    for name, values, style, marked in (
        ("I(X;T)", about_input, METHOD_STYLES[0], hollow),
        ("I(Y;T)", about_label, METHOD_STYLES[2], [False] * len(betas)),
    ):
        means, errors = np.array(values).T
        axes.errorbar(
            places,
            means,
            errors,
            linewidth=2,
            capsize=3,
            markersize=7,
            label=name,
            **style,
        )
        for place, mean in zip(places[marked], means[marked], strict=True):
            axes.plot(
                place,
                mean,
                color=style["color"],
                marker=style["marker"],
                markersize=7,
                markerfacecolor="white",
                zorder=3,
            )
    axes.axhline(enough, color="0.35", linewidth=1.2, linestyle="--", label="H(Y)")
    axes.set_xticks(places, [f"{beta:g}" for beta in betas])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("beta", fontsize=13)
    axes.set_title(title, fontsize=14)
    axes.tick_params(labelsize=12)
    axes.legend(fontsize=12, frameon=False)
    return axes


def information_while_training(
    axes: Axes,
    steps: Array,
    values: Mapping[float, Sequence[tuple[float, float]]],
    *,
    grown: float,
    title: str,
) -> Axes:
    """Information over the steps of trainings with several penalties.

    Parameters
    ----------
    axes : Axes
    steps : (k,) array
        From 1; logarithmic.
    values : mapping of float to k pairs
        Per penalty the mean and the standard error at each step.
    grown : float
        A step marked by a dotted line.
    title : str

    Returns
    -------
    Axes
    """
    colors = layer_colors(len(values))
    for (beta, pairs), color in zip(values.items(), colors, strict=True):
        means, errors = np.array(pairs).T
        axes.fill_between(
            steps, means - errors, means + errors, color=color, alpha=0.25, linewidth=0
        )
        axes.plot(steps, means, "o-", color=color, linewidth=2, label=f"{beta:g}")
    axes.axvline(grown, color="0.5", linewidth=1.2, linestyle=":")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step", fontsize=13)
    axes.set_title(title, fontsize=14)
    axes.tick_params(labelsize=12)
    return axes
