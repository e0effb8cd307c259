"""Figures of the digits' networks: their errors, and how compact their classes are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from noisyflow.plotting.common import METHOD_STYLES, Array, layer_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def errors_by_network(
    axes: Axes,
    errors: Mapping[str, Mapping[str, Array]],
    *,
    num_images: int,
    title: str,
) -> Axes:
    """Errors of several kinds of networks: every seed, mean and standard deviation.

    The caller adds a legend, `legend_above`.

    Parameters
    ----------
    axes : Axes
    errors : mapping of str to mapping of str to (seeds,) array
        By the way they were counted, up to three, and by network, numbers of errors.
        The first way has all networks; the last is hollow.
    num_images : int
        How many could be wrong; the scale is their share in percent.
    title : str

    Returns
    -------
    Axes
        Logarithmic, as noise may do harm many times over; no error at all is drawn at
        a quarter of one image.
    """
    share = 100 / num_images
    least = 0.25 * share
    names = list(next(iter(errors.values())))
    styles = (METHOD_STYLES[0], METHOD_STYLES[2], METHOD_STYLES[1])
    for number, (way, by_network) in enumerate(errors.items()):
        style, is_hollow = styles[number], number == len(errors) - 1
        for name, values in by_network.items():
            num_ways = sum(name in other for other in errors.values())
            at = names.index(name) + 0.24 * (number - (num_ways - 1) / 2)
            axes.plot(
                at + np.linspace(-0.06, 0.06, len(values)),
                np.maximum(values * share, least),
                ".",
                color=style["color"],
                alpha=0.5,
                markersize=7,
                markeredgewidth=0,
            )
            mean, deviation = values.mean() * share, values.std(ddof=1) * share
            axes.errorbar(
                at,
                max(mean, least),
                [[min(deviation, max(mean, least) - least)], [deviation]],
                color=style["color"],
                marker=style["marker"],
                markerfacecolor="white" if is_hollow else style["color"],
                markersize=8,
                linewidth=2,
                capsize=4,
                label=way if name == next(iter(by_network)) else None,
            )
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("errors, in percent of the images", fontsize=13)
    (low, high) = axes.get_ylim()
    ticks = [k * 10.0**e for e in range(-3, 3) for k in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
    axes.minorticks_off()
    axes.set_ylim(low, high)
    axes.set_title(title, fontsize=14)
    axes.tick_params(labelsize=12)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def networks_over_epochs(
    axes: Axes,
    epochs: Array,
    values: Mapping[str, Sequence[tuple[float, float]]],
    *,
    top: float,
    title: str,
) -> Axes:
    """A number of several kinds of networks while they learn.

    Parameters
    ----------
    axes : Axes
    epochs : (k,) array
        From 0, the network before training, which has a place left of the first epoch.
    values : mapping of str to k pairs
        Per network the mean and the standard error at each epoch; positive.
    top : float
        A value marked by a dashed line, which none should be above.
    title : str

    Returns
    -------
    Axes
    """
    places = np.where(epochs > 0, epochs, 0.5)
    colors = layer_colors(len(values))
    markers = ("o", "s", "^", "D")
    for number, (name, pairs) in enumerate(values.items()):
        means, errors = np.array(pairs).T
        axes.fill_between(
            places,
            means - errors,
            means + errors,
            color=colors[number],
            alpha=0.25,
            linewidth=0,
        )
        axes.plot(
            places,
            means,
            color=colors[number],
            marker=markers[number % len(markers)],
            markersize=5,
            linewidth=2,
            label=name,
        )
    axes.axhline(top, color="0.35", linewidth=1.2, linestyle="--")
    axes.set_xscale("log")
    last = int(epochs.max())
    ticks = [0.5, *(10**k for k in range(6) if 2 * 10**k <= last), last]
    axes.set_xticks(ticks, ["0", *(f"{tick:g}" for tick in ticks[1:])])
    axes.minorticks_off()
    axes.set_ylim(0, 1.05 * top)
    axes.set_xlabel("epoch", fontsize=13)
    axes.set_title(title, fontsize=14)
    axes.tick_params(labelsize=12)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes
