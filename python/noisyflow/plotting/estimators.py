"""Figures of estimates over the number of samples and over noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from noisyflow.plotting.common import (
    METHOD_STYLES,
    Array,
    layer_colors,
    samples_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    for (name, runs), style in zip(values.items(), METHOD_STYLES, strict=False):
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
            color=METHOD_STYLES[0]["color"],
            alpha=0.15,
            linewidth=0,
            label="bracket",
        )
    axes.axhline(exact, color="0.25", linewidth=1.4, linestyle="--", label="exact")
    axes.set_ylim(low - margin, high + margin)
    return samples_axis(axes, title)


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
    for (name, runs), style in zip(values.items(), METHOD_STYLES, strict=False):
        tried = [n for n, run in zip(num_samples, runs, strict=True) if len(run)]
        rmse = [
            np.sqrt(np.mean((np.array(run) - exact) ** 2)) for run in runs if len(run)
        ]
        axes.plot(tried, rmse, label=name, linewidth=2, markersize=6, **style)
    axes.set_yscale("log")
    return samples_axis(axes, title)


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
