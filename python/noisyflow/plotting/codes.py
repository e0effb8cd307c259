"""Figures of codes over a noisy channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from noisyflow.plotting.common import Array, layer_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "os^Dv"


def information_of_codes(
    axes: Axes,
    noise_stds: Array,
    values: Mapping[str, Array],
    exact: Mapping[str, tuple[Array, Array]],
    *,
    title: str,
) -> Axes:
    """Information of several codes over the noise, log-log.

    Parameters
    ----------
    axes : Axes
    noise_stds : (k,) array
    values : mapping of str to (k,) array
        Estimates by the name of the code, as points.
    exact : mapping of str to pair of arrays
        Noise and exact information, as lines, dashed.
    title : str

    Returns
    -------
    Axes
    """
    for (name, information), color, marker in zip(
        values.items(), layer_colors(len(values)), _MARKERS, strict=False
    ):
        axes.plot(
            noise_stds,
            information,
            marker,
            linestyle="-",
            linewidth=1.2,
            color=color,
            markersize=6,
            label=name,
        )
    for name, curve in exact.items():
        axes.plot(*curve, color="0.25", linewidth=1.4, linestyle="--", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    doubled = 2.0 ** np.arange(*np.log2([noise_stds[0], 2.01 * noise_stds[-1]]).round())
    axes.set_xticks(doubled, [f"{noise:g}" for noise in doubled])
    axes.set_xlabel("noise standard deviation", fontsize=13)
    axes.set_title(title, fontsize=14)
    axes.tick_params(labelsize=12)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes
