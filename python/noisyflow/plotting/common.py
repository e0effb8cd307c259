"""What all figures share: size, colours, axes, legends."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]

# From the colour map viridis, dark to light: layers are an ordered family, and the
# order survives grey printing and colour blindness. The yellow end is left out, too
# pale for lines.
_LIGHTEST = 0.85
# Two classes that differ in lightness as well as hue.
CLASS_COLORS = ("#3b4cc0", "#f0a030")
# Methods, ours first: apart in hue, lightness and marker.
METHOD_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#1f3b73", "marker": "o"},
    {"color": "#d1495b", "marker": "s"},
    {"color": "#e0a030", "marker": "^"},
    {"color": "#1f3b73", "marker": "", "linestyle": ":"},  # ours again, in another way
)
# Up to this many epochs every one is marked: a line through one point is invisible.
FEW = 12
_LEAST_GAP = 0.2  # of an axis, between the names of two epochs


def new_figure(
    width: float,
    height: float,
    *,
    columns: int = 1,
    rows: int = 1,
    projection: str | None = None,
) -> tuple[Figure, list[Any]]:
    """A figure without a window and its axes, row by row.

    Parameters
    ----------
    width, height : float
        Inches; at 150 dots per inch and letters of 12 points a figure of up to 12
        inches stays legible at half its size.
    columns, rows : int
        Number of axes side by side and one below another.
    projection : str, optional
        `3d` for three-dimensional axes.

    Returns
    -------
    (Figure, list of Axes)
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = [
        figure.add_subplot(rows, columns, number + 1, projection=projection)
        for number in range(rows * columns)
    ]
    return figure, axes


def plain_text(text: str) -> str:
    """A text that matplotlib shows as it is: between dollars it would see formulas."""
    return text.replace("$", r"\$")


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def layer_colors(num_layers: int) -> list[Any]:
    """One colour per layer, first to last from dark to light."""
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, _LIGHTEST, num_layers)))


def legend_above(
    figure: Figure, axes: Sequence[Axes], *, columns: int | None = None
) -> Figure:
    """One legend above all axes of a figure, of every name that any of them has.

    Parameters
    ----------
    figure : Figure
    axes : sequence of Axes
    columns : int, optional
        At most so many names beside one another; all by default.

    Returns
    -------
    Figure
    """
    entries: dict[str, Any] = {}
    for some in axes:
        handles, names = some.get_legend_handles_labels()
        # Lines with error bars, the methods, before what they are compared with.
        pairs = sorted(
            zip(names, handles, strict=True),
            key=lambda pair: not hasattr(pair[1], "lines"),
        )
        for name, handle in pairs:
            entries.setdefault(name, handle)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside upper center",
        ncols=min(len(entries), columns or len(entries)),
        columnspacing=1.4,
        fontsize=12,
        frameon=False,
    )
    return figure


def legend_of_layers(axes: Axes) -> Axes:
    """A legend of the layers, outside to the right, last layer at the bottom."""
    axes.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=13, frameon=False
    )
    return axes


def samples_axis(axes: Axes, title: str) -> Axes:
    """A logarithmic horizontal axis of the number of samples."""
    axes.set_xscale("log")
    axes.set_xlabel("number of samples n", fontsize=13)
    axes.set_title(title, fontsize=14)
    axes.tick_params(labelsize=12)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def marker(epochs: Array) -> str:
    """A marker for every epoch where they are few, else none."""
    return "o" if len(epochs) <= FEW else ""


def last_shown(epochs: Sequence[int] | Array) -> float:
    """Where the axis of the epochs ends, a little beyond the last."""
    return float(max(1.02 * epochs[-1], epochs[0] + 1))


def _apart(epochs: Sequence[int] | Array) -> list[int]:
    """Epochs whose names do not touch on a logarithmic axis; the last is one."""
    least = max(1.0, (epochs[-1] / epochs[0]) ** _LEAST_GAP)
    shown = [int(epochs[-1])]
    for epoch in reversed(epochs[:-1]):
        if shown[-1] >= least * epoch:
            shown.append(int(epoch))
    return shown[::-1]


def ceiling_line(
    axes: Axes, value: float, name: str, *, fontsize: int = 12, zorder: float = 2
) -> Axes:
    """The largest possible value as a dashed line with its name and number."""
    axes.axhline(value, color="0.35", linewidth=1.2, linestyle="--", zorder=zorder)
    axes.annotate(
        f"{name} = {value:.3f}",
        (0.02, value),
        (0, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=fontsize,
        color="0.25",
    )
    return axes


def epoch_axis(axes: Axes, epochs: Sequence[int] | Array) -> Axes:
    """A logarithmic horizontal axis named `epoch`."""
    from matplotlib.ticker import LogFormatter

    axes.set_xscale("log")
    first = epochs[0] if len(epochs) > FEW else 0.95 * epochs[0]  # room for a marker
    axes.set_xlim(first, last_shown(epochs))
    if len(epochs) > FEW:
        axes.xaxis.set_major_formatter(LogFormatter())
    else:
        axes.minorticks_off()
        shown = _apart(epochs)
        axes.set_xticks(shown, [str(epoch) for epoch in shown])
    axes.set_xlabel("epoch", fontsize=13)
    axes.tick_params(labelsize=12)
    return axes
