"""Figures of binned entropies beside information."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from noisyflow.plotting.common import Array, epoch_axis, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def bin_widths(
    axes: Axes,
    epochs: Array,
    information: Array,
    entropies: Mapping[float, Array],
    *,
    ceiling: float,
    title: str,
) -> Axes:
    """A layer's binned entropy at several widths beside its information, over epochs.

    Parameters
    ----------
    axes : Axes
    epochs : (k,) array
        From 1.
    information : (k,) array
        I(X;T), in nats.
    entropies : mapping of float to (k,) array
        By width in units of the noise's standard deviation, H(Bin(T)) in nats.
    ceiling : float
        Largest possible value, marked by a dashed line.
    title : str

    Returns
    -------
    Axes
    """
    from matplotlib import colormaps

    # From pale to dark with the width; information stands apart in hue.
    shades = colormaps["Oranges"](np.linspace(0.35, 0.95, len(entropies)))
    for color, (width, values) in zip(shades, sorted(entropies.items()), strict=True):
        axes.plot(
            epochs,
            values,
            color=color,
            linewidth=2,
            marker=marker(epochs),
            label=f"H(Bin(T)), bins of {width:g} noise_std",
        )
    axes.plot(
        epochs,
        information,
        color="#1f3b73",
        linewidth=2.4,
        linestyle=(0, (4, 1.5)),
        marker=marker(epochs),
        label="I(X;T)",
    )
    axes.axhline(ceiling, color="0.35", linewidth=1.2, linestyle="--")
    axes.set_ylim(0, 1.08 * ceiling)
    axes.set_title(title, fontsize=15)
    return epoch_axis(axes, epochs)
