"""Figures of a layer's representations: where its symbols are, and how they cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from noisyflow import _arrays, mixture_log_density
from noisyflow.plotting.common import (
    CLASS_COLORS,
    Array,
    layer_colors,
    plain_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from noisyflow.representations import ClassDistances

# Symbols nearer than this share of the noise are drawn as one: no reader and no
# receiver could tell them apart.
_SAME_SYMBOL = 0.25
_DOT_AREA = 10.0  # points squared, of a symbol of hardly any mass
_MASS_AREA = 400.0  # and of one of all inputs
_HEADROOM = 1.4  # of a histogram with a legend of two lines
_LINE_STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class _Symbols:
    """Symbols of one class: places, and the share of all inputs at each."""

    name: str
    color: Any
    places: Array
    shares: Array


def constellation(
    axes: Any,
    points: Any,
    noise_std: float,
    *,
    labels: Any = None,
    title: str = "",
) -> Any:
    """A layer as the symbols of a noisy channel, in one, two or three dimensions.

    Symbols that are closer than a quarter of the noise are one dot at their mean, its
    area beyond that of the smallest dot in proportion to the inputs it stands for. Two
    dimensions: a disc of radius `noise_std` around every dot. Three: the outline of
    such a ball. One: the density of the noisy T as curves, one for each class, whose
    areas are the shares of the classes.

    Parameters
    ----------
    axes : Axes
        An Axes3D in three dimensions.
    points : (m, d) array
        Symbols, one for each input; d is 1, 2 or 3. NumPy array or tensor on the CPU.
    noise_std : float
        In the units of the points. Positive.
    labels : (m,) array, optional
        Classes; each has a colour and a name for a legend.
    title : str

    Returns
    -------
    Axes

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape, type or range.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or not 1 <= points.shape[1] <= 3 or len(points) == 0:
        raise ValueError(
            "points must have shape (m, 1), (m, 2) or (m, 3) and not be empty, got "
            f"{points.shape}"
        )
    if not np.isfinite(points).all():
        raise ValueError("points must be finite, got NaN or infinity")
    noise_std = _arrays.check_noise_std(noise_std)
    if labels is not None and np.shape(labels) != (len(points),):
        raise ValueError(
            f"labels must hold one class per point, shape ({len(points)},), got shape "
            f"{np.shape(labels)}"
        )
    classes = _symbols_of_classes(points, noise_std, labels)
    draw = (_draw_line, _draw_plane, _draw_space)[points.shape[1] - 1]
    draw(axes, classes, noise_std)
    axes.set_title(title, fontsize=14)
    axes.tick_params(labelsize=12)
    return axes


def _symbols_of_classes(points: Array, noise_std: float, labels: Any) -> list[_Symbols]:
    """The symbols of every class, those that coincide as one."""
    which = np.zeros(len(points), np.int64) if labels is None else np.asarray(labels)
    names = np.unique(which)
    colors = ["#26547c"] if labels is None else _class_colors(len(names))
    classes = []
    for name, color in zip(names, colors, strict=True):
        left = points[which == name]
        places, counts = [], []
        while len(left):
            distances = np.sqrt(((left - left[0]) ** 2).sum(axis=1))
            is_same = distances <= _SAME_SYMBOL * noise_std
            places.append(left[is_same].mean(axis=0))
            counts.append(is_same.sum())
            left = left[~is_same]
        shares = np.array(counts) / len(points)
        label = "" if labels is None else plain_text(f"label {name}")
        classes.append(_Symbols(label, color, np.array(places), shares))
    return classes


def _class_colors(num_classes: int) -> list[Any]:
    """A colour for each class; apart in lightness, too."""
    few = list(CLASS_COLORS[:num_classes])
    return few if num_classes <= len(few) else layer_colors(num_classes)


def _dots(axes: Any, classes: Sequence[_Symbols], *, flat: bool = False) -> None:
    """All dots, none of a class in front of another: heavy first, the rest mixed."""
    places = np.concatenate([symbols.places for symbols in classes])
    shares = np.concatenate([symbols.shares for symbols in classes])
    colors = np.concatenate(
        [[_rgb(symbols.color)] * len(symbols.places) for symbols in classes]
    )
    mixed = np.random.default_rng(0).permutation(len(places))
    order = mixed[np.argsort(-shares[mixed], kind="stable")]
    columns = list(places[order].T)
    if flat:
        columns.append(np.zeros(len(places)))
    axes.scatter(
        *columns,
        s=_DOT_AREA + _MASS_AREA * shares[order],
        c=colors[order],
        alpha=0.7,
        linewidths=0,
        zorder=3,
        clip_on=not flat,
    )
    for symbols in classes:
        _name(axes, symbols, *[[]] * len(columns))


def _name(axes: Any, symbols: _Symbols, *nowhere: Any) -> None:
    """A dot of middle size for the legend, whatever the masses are."""
    if symbols.name:
        axes.scatter(*nowhere, s=60, color=symbols.color, label=symbols.name)


def _limits(classes: Sequence[_Symbols], noise_std: float) -> Array:
    """(d, 2): what holds all symbols and three deviations of noise around them."""
    places = np.concatenate([symbols.places for symbols in classes])
    margin = 3 * noise_std + 0.03 * float(np.ptp(places, axis=0).max())
    return np.stack([places.min(axis=0) - margin, places.max(axis=0) + margin], axis=1)


def _draw_line(axes: Axes, classes: Sequence[_Symbols], noise_std: float) -> None:
    ((low, high),) = _limits(classes, noise_std)
    # Five points within a deviation draw a smooth bell; a figure has 2000 dots or so.
    num_places = int(np.clip(5 * (high - low) / noise_std, 500, 20_000))
    places = np.linspace(low, high, num_places)
    for symbols in classes:
        density = symbols.shares.sum() * np.exp(
            mixture_log_density(
                places[:, None],
                symbols.places,
                noise_std,
                weights=symbols.shares / symbols.shares.sum(),
            )
        )
        axes.fill_between(places, density, color=symbols.color, alpha=0.3, linewidth=0)
        axes.plot(places, density, color=symbols.color, linewidth=1.6)
    _dots(axes, classes, flat=True)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("unit 1", fontsize=13)
    axes.set_ylabel("density of T", fontsize=13)


def _draw_plane(axes: Axes, classes: Sequence[_Symbols], noise_std: float) -> None:
    from matplotlib.collections import EllipseCollection

    for symbols in classes:
        widths = np.full(len(symbols.places), 2 * noise_std)
        discs = EllipseCollection(
            widths,
            widths,
            np.zeros(len(widths)),
            units="xy",
            offsets=symbols.places,
            offset_transform=axes.transData,
            facecolors=[(*_rgb(symbols.color), 0.12)],
            edgecolors=[(*_rgb(symbols.color), 0.45)],
            linewidths=0.6,
        )
        axes.add_collection(discs, autolim=False)
    _dots(axes, classes)
    x, y = _limits(classes, noise_std)
    axes.set(xlim=x, ylim=y)
    axes.set_aspect("equal")
    axes.set_xlabel("unit 1", fontsize=13)
    axes.set_ylabel("unit 2", fontsize=13)


def _draw_space(axes: Any, classes: Sequence[_Symbols], noise_std: float) -> None:
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    angles = np.linspace(0, 2 * np.pi, 25)
    cosine, sine, zero = np.cos(angles), np.sin(angles), np.zeros(25)
    circles = noise_std * np.array(
        [
            np.stack(circle, axis=1)
            for circle in (
                (cosine, sine, zero),
                (cosine, zero, sine),
                (zero, cosine, sine),
            )
        ]
    )
    num_symbols = sum(len(symbols.places) for symbols in classes)
    alpha = float(np.clip(40 / num_symbols, 0.06, 0.6))
    for symbols in classes:
        outlines = (symbols.places[:, None, None, :] + circles).reshape(-1, 25, 3)
        axes.add_collection3d(
            Line3DCollection(
                outlines, colors=[symbols.color], alpha=alpha, linewidths=0.6
            )
        )
    _dots(axes, classes)
    limits = _limits(classes, noise_std)
    middle, reach = limits.mean(axis=1), np.ptp(limits, axis=1).max() / 2
    axes.set(
        xlim=(middle[0] - reach, middle[0] + reach),
        ylim=(middle[1] - reach, middle[1] + reach),
        zlim=(middle[2] - reach, middle[2] + reach),
    )
    for number, axis in enumerate((axes.xaxis, axes.yaxis, axes.zaxis), start=1):
        axis.set_label_text(f"unit {number}", fontsize=13)
        axis.get_major_locator().set_params(nbins=3)
    # As in `scatter_3d`: room for the label of the vertical axis.
    axes.set_box_aspect(None, zoom=0.8)
    axes.patch.set_visible(False)
    axes.tick_params(pad=0)
    axes.zaxis.labelpad = -1


def _rgb(color: Any) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(color)


def distance_histograms(axes: Axes, distances: ClassDistances, *, title: str) -> Axes:
    """Distances between pairs of one class and of two, with their means.

    Parameters
    ----------
    axes : Axes
    distances : ClassDistances
    title : str

    Returns
    -------
    Axes
    """
    for name, shares, mean, error, color in (
        (
            "within a class",
            distances.within,
            distances.mean_within,
            distances.within_error,
            CLASS_COLORS[0],
        ),
        (
            "between classes",
            distances.between,
            distances.mean_between,
            distances.between_error,
            CLASS_COLORS[1],
        ),
    ):
        axes.stairs(
            100 * shares,
            distances.edges,
            fill=True,
            facecolor=(*_rgb(color), 0.35),
            edgecolor=color,
            linewidth=1.6,
            label=f"{name}: mean {_with_error(mean, error)}",
        )
        axes.axvline(  # to below the legend
            mean, ymax=1 / _HEADROOM, color=color, linewidth=2, linestyle="--"
        )
    highest = 100 * max(distances.within.max(), distances.between.max())
    axes.set_ylim(0, _HEADROOM * highest)
    axes.set_xlim(distances.edges[0], distances.edges[-1])
    axes.set_ylabel("share of pairs, in %", fontsize=13)
    axes.legend(loc="upper left", fontsize=12, frameon=False)
    return _plain(axes, "distance between representations", title)


def _with_error(value: float, error: float) -> str:
    """A value and its error, to the error's two leading digits."""
    if not 0 < error < np.inf:
        return f"{value:.3g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def similarity_histograms(
    axes: Axes, similarities: Mapping[str, Array], *, title: str
) -> Axes:
    """Cosine similarities of pairs of networks, a histogram for each pair.

    The caller adds a legend, `legend_above` for one or several of these.

    Parameters
    ----------
    axes : Axes
    similarities : mapping of str to (m,) array
        Per name of a pair, the cosine for each input.
    title : str

    Returns
    -------
    Axes
    """
    lowest = min(float(values.min()) for values in similarities.values())
    low = max(-1.0, min(lowest, 0.98))
    edges = np.linspace(low, 1, 51)
    colors = layer_colors(len(similarities))
    highest = 0.0
    for number, (name, values) in enumerate(similarities.items()):
        counts, _ = np.histogram(values, edges)
        shares = 100 * counts / len(values)
        highest = max(highest, float(shares.max()))
        axes.stairs(
            shares,
            edges,
            color=colors[number],
            linewidth=2,
            linestyle=_LINE_STYLES[number % len(_LINE_STYLES)],
            label=name,
        )
    axes.set_ylim(0, 1.05 * highest)
    axes.set_xlim(low, 1)
    axes.set_ylabel("share of inputs, in %", fontsize=13)
    return _plain(axes, "cosine similarity", title)


def _plain(axes: Axes, name: str, title: str) -> Axes:
    """Horizontal axis, title and grid of a histogram."""
    axes.set_xlabel(name, fontsize=13)
    axes.set_title(title, fontsize=14)
    axes.tick_params(labelsize=12)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes
