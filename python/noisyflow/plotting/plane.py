"""The information plane: what a layer tells of the label against what of the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from noisyflow.plotting.common import Array, ceiling_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One per layer, first to last, and again from the first beyond the sixth.
_MARKERS = ("o", "s", "^", "D", "v", "P")
# An ellipse reaches so many standard errors beyond the bracket.
_ERRORS = 2.0


def information_plane(
    axes: Axes,
    epochs: Array,
    about_input: Mapping[str, Array],
    about_label: Mapping[str, Array],
    *,
    input_entropy: float,
    label_entropy: float,
) -> Axes:
    """I(Y;T_l) over I(X;T_l), a path per layer through the epochs, with error ellipses.

    Parameters
    ----------
    axes : Axes
    epochs : (k,) array
        From 1; colours are logarithmic in them.
    about_input, about_label : mapping of str to (k, L) array
        `value`, `standard_error`, `lower` and `upper` of I(X;T_l) and of I(Y;T_l), in
        nats. An ellipse is around the middle of the bracket [lower, upper]; its half
        axes are half the bracket and two standard errors.
    input_entropy, label_entropy : float
        H(X) and H(Y), the largest possible values, marked by dashed lines.

    Returns
    -------
    Axes
        Its last collection carries the colours of the epochs, for a colour bar.
    """
    from matplotlib.collections import EllipseCollection
    from matplotlib.colors import LogNorm
    from matplotlib.lines import Line2D

    last = max(float(epochs[-1]), float(epochs[0]) + 1)
    colors: dict[str, Any] = {
        "cmap": "plasma_r",
        "norm": LogNorm(float(epochs[0]), last),
    }
    (x, width), (y, height) = (_middle(about) for about in (about_input, about_label))
    handles = []
    for layer in range(x.shape[1]):
        path = np.stack([x[:, layer], y[:, layer]], axis=1)
        axes.plot(*path.T, color="0.75", linewidth=1, zorder=1)
        ellipses = EllipseCollection(
            width[:, layer],
            height[:, layer],
            np.zeros(len(epochs)),
            units="xy",
            offsets=path,
            offset_transform=axes.transData,
            array=epochs,
            alpha=0.3,
            linewidths=0,
            zorder=2,
            **colors,
        )
        axes.add_collection(ellipses)
        shape = _MARKERS[layer % len(_MARKERS)]
        axes.scatter(
            about_input["value"][:, layer],
            about_label["value"][:, layer],
            c=epochs,
            marker=shape,
            s=26,
            edgecolors="0.2",
            linewidths=0.4,
            zorder=3,
            **colors,
        )
        handles.append(
            Line2D([], [], color="0.4", marker=shape, ls="", label=f"layer {layer + 1}")
        )
    _limits(axes, input_entropy, label_entropy)
    axes.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(handles),
        handletextpad=0.1,
        columnspacing=1.2,
        fontsize=12,
        frameon=False,
    )
    return axes


def _middle(about: Mapping[str, Array]) -> tuple[Array, Array]:
    """Middle and whole width of what is drawn for an estimate, (k, L) each."""
    reach = _ERRORS * about["standard_error"]
    low, high = about["lower"] - reach, about["upper"] + reach
    return (low + high) / 2, high - low


def _limits(axes: Axes, input_entropy: float, label_entropy: float) -> None:
    """Names of the axes, their reach, and the largest possible values."""
    axes.axvline(input_entropy, color="0.35", linewidth=1.2, linestyle="--", zorder=0)
    ceiling_line(axes, label_entropy, "H(Y)", zorder=0)
    axes.annotate(
        f"H(X) = {input_entropy:.3f}",
        (input_entropy, 0.03),
        (4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        rotation=90,
        va="bottom",
        fontsize=12,
        color="0.25",
    )
    axes.set_xlim(0, 1.1 * input_entropy)
    axes.set_ylim(0, 1.12 * label_entropy)
    axes.set_xlabel("I(X;T), in nats", fontsize=13)
    axes.set_ylabel("I(Y;T), in nats", fontsize=13)
    axes.tick_params(labelsize=12)
