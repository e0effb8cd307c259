"""Figures of speeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from noisyflow.plotting.common import layer_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vP*X"


def contestants(
    axes: Axes,
    names: Sequence[str],
    values: Mapping[str, Sequence[float]],
    *,
    label: str,
    problems: Mapping[str, str],
) -> Axes:
    """One line of marks per contestant, one mark per case, the first on top.

    Parameters
    ----------
    axes : Axes
    names : sequence of str
        The contestants.
    values : mapping of str to sequence of float
        Per case a value of each of them, above 0; NaN where there is none.
    label : str
        Of the values, on a logarithmic axis.
    problems : mapping of str to str
        By contestant, what to write below a name of which values are missing.

    Returns
    -------
    Axes
    """
    colors = layer_colors(len(values))
    count = len(values)
    for at, (case, of) in enumerate(values.items()):
        known = [i for i, value in enumerate(of) if not math.isnan(value)]
        offset = 0.5 * ((at + 0.5) / count - 0.5)
        axes.plot(
            [of[i] for i in known],
            [i + offset for i in known],
            color=colors[at],
            marker=_MARKERS[at % len(_MARKERS)],
            linestyle="",
            markersize=8,
            label=case,
        )
    axes.set_xscale("log")
    axes.set_xlabel(label, fontsize=13)
    labels = [
        f"{name}\n({problems[name]})" if name in problems else name for name in names
    ]
    axes.set_yticks(range(len(names)), labels, fontsize=13)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=12)
    axes.grid(axis="x", alpha=0.3)
    for i in range(1, len(names)):
        axes.axhline(i - 0.5, color="0.9", linewidth=0.8)
    return axes
