"""Figures: every function takes results and an Axes, draws, and returns the Axes.

The only module that knows matplotlib, which it imports when a figure is made.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
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
_CLASS_COLORS = ("#3b4cc0", "#f0a030")
# Methods, ours first: apart in hue, lightness and marker.
_METHOD_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#1f3b73", "marker": "o"},
    {"color": "#d1495b", "marker": "s"},
    {"color": "#e0a030", "marker": "^"},
    {"color": "#1f3b73", "marker": "", "linestyle": ":"},  # ours again, in another way
)
# Up to this many epochs every one is marked: a line through one point is invisible.
_FEW = 12


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


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def layer_colors(num_layers: int) -> list[Any]:
    """One colour per layer, first to last from dark to light."""
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, _LIGHTEST, num_layers)))


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
            marker=_marker(epochs),
            label=f"layer {layer + 1}",
        )
    axes.axhline(ceiling, color="0.35", linewidth=1.2, linestyle="--")
    axes.annotate(
        f"{ceiling_name} = {ceiling:.3f}",
        (0.02, ceiling),
        (0, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=12,
        color="0.25",
    )
    axes.set_ylim(0, 1.12 * ceiling)
    return _epoch_axis(axes, epochs)


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
            marker=_marker(epochs),
            label=label,
        )
    axes.set_ylabel(name, fontsize=13)
    axes.legend(fontsize=13, frameon=False)
    return _epoch_axis(axes, epochs)


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
    for label, color in enumerate(_CLASS_COLORS):
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
    end = np.log([_last_shown(epochs)])
    time_edges = np.exp(np.concatenate([logs[:1], between, end]))
    image = np.where(shares > 0, shares, np.nan).T
    axes.set_facecolor("white")
    axes.pcolormesh(time_edges, edges, image, cmap="magma_r", norm=LogNorm(1e-4, 1))
    axes.set_title(title, fontsize=15)
    return _epoch_axis(axes, epochs)


def estimates(
    axes: Axes,
    num_samples: Array,
    values: Mapping[str, Sequence[Sequence[float]]],
    *,
    exact: float,
    bracket: tuple[Array, Array] | None = None,
    title: str,
) -> Axes:
    """Estimates of several methods over the number of samples, and the exact value.

    Parameters
    ----------
    axes : Axes
    num_samples : (k,) array
    values : mapping of str to k sequences
        Per method and number of samples the values of all repetitions; none where the
        method was not tried. Points are means, bars standard deviations.
    exact : float
        Marked by a dashed line.
    bracket : pair of (k,) arrays, optional
        Mean lower and upper end of the bracket of the first method, shaded as far as
        the axes reach.
    title : str

    Returns
    -------
    Axes
    """
    shown = [exact]
    for (name, runs), style in zip(values.items(), _METHOD_STYLES, strict=False):
        tried, means, spreads = _means(num_samples, runs)
        axes.errorbar(
            tried,
            means,
            spreads,
            label=name,
            linewidth=2,
            markersize=6,
            capsize=3,
            elinewidth=1.2,
            **style,
        )
        shown += [*means]
    low, high = min(shown), max(shown)
    margin = 0.06 * (high - low) or 1.0
    if bracket is not None:
        axes.fill_between(
            num_samples,
            bracket[0],
            np.minimum(bracket[1], high + 2 * margin),
            color=_METHOD_STYLES[0]["color"],
            alpha=0.15,
            linewidth=0,
            label="bracket",
        )
    axes.axhline(exact, color="0.25", linewidth=1.4, linestyle="--", label="exact")
    axes.set_ylim(low - margin, high + margin)
    return _samples_axis(axes, title)


def errors(
    axes: Axes,
    num_samples: Array,
    values: Mapping[str, Sequence[Sequence[float]]],
    *,
    exact: float,
    title: str,
) -> Axes:
    """Root mean square errors of several methods over the number of samples, log-log.

    Parameters
    ----------
    axes : Axes
    num_samples : (k,) array
    values : mapping of str to k sequences
        As for `estimates`.
    exact : float
    title : str

    Returns
    -------
    Axes
    """
    for (name, runs), style in zip(values.items(), _METHOD_STYLES, strict=False):
        tried = [n for n, run in zip(num_samples, runs, strict=True) if len(run)]
        rmse = [
            np.sqrt(np.mean((np.array(run) - exact) ** 2)) for run in runs if len(run)
        ]
        axes.plot(tried, rmse, label=name, linewidth=2, markersize=6, **style)
    axes.set_yscale("log")
    return _samples_axis(axes, title)


def legend_above(figure: Figure, axes: Sequence[Axes]) -> Figure:
    """One legend above all axes of a figure, of every name that any of them has.

    Parameters
    ----------
    figure : Figure
    axes : sequence of Axes

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
        ncols=len(entries),
        columnspacing=1.4,
        fontsize=12,
        frameon=False,
    )
    return figure


def information_over_noise(
    axes: Axes,
    noise_stds: Array,
    values: Mapping[int, Array],
    exact: tuple[Array, Array],
    *,
    title: str,
) -> Axes:
    """Estimated information of a channel over its noise, a line per number of samples.

    Parameters
    ----------
    axes : Axes
    noise_stds : (k,) array
    values : mapping of int to (k,) array
        Mean estimates per number of samples.
    exact : pair of arrays
        Noise and exact information, drawn as a dashed line.
    title : str

    Returns
    -------
    Axes
    """
    for (n, means), color in zip(
        values.items(), layer_colors(len(values)), strict=True
    ):
        axes.plot(noise_stds, means, "o-", color=color, linewidth=2, label=f"n = {n}")
    axes.plot(*exact, color="0.25", linewidth=1.4, linestyle="--", label="exact")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("noise standard deviation", fontsize=13)
    axes.set_title(title, fontsize=14)
    axes.tick_params(labelsize=12)
    return axes


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
        color=_METHOD_STYLES[0]["color"],
        alpha=0.15,
        linewidth=0,
    )
    for name, values, style, marked in (
        ("I(X;T)", about_input, _METHOD_STYLES[0], hollow),
        ("I(Y;T)", about_label, _METHOD_STYLES[2], [False] * len(betas)),
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


def legend_of_layers(axes: Axes) -> Axes:
    """A legend of the layers, outside to the right, last layer at the bottom."""
    axes.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=13, frameon=False
    )
    return axes


def _means(
    num_samples: Array, runs: Sequence[Sequence[float]]
) -> tuple[list[float], list[float], list[float]]:
    """Where a method was tried, its means and its standard deviations there."""
    tried = [(n, run) for n, run in zip(num_samples, runs, strict=True) if len(run) > 0]
    return (
        [n for n, _ in tried],
        [float(np.mean(run)) for _, run in tried],
        [float(np.std(run, ddof=1)) if len(run) > 1 else 0.0 for _, run in tried],
    )


def _samples_axis(axes: Axes, title: str) -> Axes:
    """A logarithmic horizontal axis of the number of samples."""
    axes.set_xscale("log")
    axes.set_xlabel("number of samples n", fontsize=13)
    axes.set_title(title, fontsize=14)
    axes.tick_params(labelsize=12)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _marker(epochs: Array) -> str:
    """A marker for every epoch where they are few, else none."""
    return "o" if len(epochs) <= _FEW else ""


def _last_shown(epochs: Sequence[int] | Array) -> float:
    """Where the axis of the epochs ends, a little beyond the last."""
    return float(max(1.02 * epochs[-1], epochs[0] + 1))


def _epoch_axis(axes: Axes, epochs: Sequence[int] | Array) -> Axes:
    """A logarithmic horizontal axis named `epoch`."""
    from matplotlib.ticker import LogFormatter

    axes.set_xscale("log")
    first = epochs[0] if len(epochs) > _FEW else 0.95 * epochs[0]  # room for a marker
    axes.set_xlim(first, _last_shown(epochs))
    if len(epochs) > _FEW:
        axes.xaxis.set_major_formatter(LogFormatter())
    else:
        axes.minorticks_off()
        axes.set_xticks(list(epochs), [str(epoch) for epoch in epochs])
    axes.set_xlabel("epoch", fontsize=13)
    axes.tick_params(labelsize=12)
    return axes
