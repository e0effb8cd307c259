"""A film of a layer: its points, epoch by epoch, beside the growing curve of I(X;T)."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from noisyflow.plotting.common import (
    CLASS_COLORS,
    Array,
    ceiling_line,
    epoch_axis,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# 900 x 420 pixels; MP4 wants even numbers.
_INCHES = (9.0, 4.2)
_DOTS_PER_INCH = 100
# As many as GIF has. The palette of a few frames serves all.
_NUM_COLORS = 256
_NUM_PALETTE_FRAMES = 8
_CURVE_COLOR = "#1f3b73"
# The end stays longer than the other frames.
_SECONDS_AT_END = 2.0


@dataclass(frozen=True)
class Scenes:
    """What a film shows, over its k epochs.

    Parameters
    ----------
    epochs : (k,) array
        From 1.
    points : sequence of k (m, d) arrays
        Of one, two or three dimensions.
    labels : (m,) array of int
        The class of each point, from 0.
    values, low, high : (k,) array
        I(X;T) of the layer in nats, and the ends of its band.
    ceiling : float
        The largest possible value.
    layer : int
        Which hidden layer, from 1.
    remark : str
        What else the points are, for the title; may be empty.
    axis_names : sequence of d str
    """

    epochs: Array
    points: Sequence[Array]
    labels: Array
    values: Array
    low: Array
    high: Array
    ceiling: float
    layer: int
    remark: str
    axis_names: Sequence[str]


def film(scenes: Scenes, suffix: str, *, fps: int) -> bytes:
    """The contents of a film's file, a frame per epoch.

    Parameters
    ----------
    scenes : Scenes
    suffix : str
        `.gif` or `.mp4`; the latter needs the program ffmpeg.
    fps : int
        Frames per second.

    Returns
    -------
    bytes
    """
    frames = _frames(scenes)
    figure = next(frames)
    return _gif(figure, frames, fps) if suffix == ".gif" else _mp4(figure, frames, fps)


def has_ffmpeg() -> bool:
    """Whether there is a program that makes MP4 files."""
    from matplotlib.animation import FFMpegWriter

    return bool(FFMpegWriter.isAvailable())


def _gif(figure: Figure, frames: Iterator[Figure], fps: int) -> bytes:
    """A GIF file that repeats itself, with one palette for all frames.

    matplotlib's own writer chooses a palette per frame, which doubles the size and
    flickers.
    """
    from PIL import Image

    pictures = [_pixels(figure) for _ in frames]
    chosen = np.linspace(0, len(pictures) - 1, _NUM_PALETTE_FRAMES).round()
    mosaic = np.concatenate([pictures[int(at)] for at in chosen])
    palette = Image.fromarray(mosaic).quantize(_NUM_COLORS)
    # A pattern of dots in place of a colour would not compress.
    first, *others = (
        Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE)
        for picture in pictures
    )
    file = io.BytesIO()
    first.save(
        file,
        "gif",
        save_all=True,
        append_images=others,
        duration=[round(1000 / fps)] * len(others) + [round(1000 * _SECONDS_AT_END)],
        loop=0,
    )
    return file.getvalue()


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure as (height, width, 3) numbers."""
    width, height = (round(_DOTS_PER_INCH * inches) for inches in _INCHES)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=_DOTS_PER_INCH)
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]


def _mp4(figure: Figure, frames: Iterator[Figure], fps: int) -> bytes:
    """An MP4 file that browsers play."""
    from matplotlib.animation import FFMpegWriter

    hold = f"tpad=stop_mode=clone:stop_duration={_SECONDS_AT_END}"
    options = ["-pix_fmt", "yuv420p", "-crf", "24", "-vf", hold]
    writer = FFMpegWriter(fps=fps, codec="h264", extra_args=options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        with writer.saving(figure, str(path), _DOTS_PER_INCH):
            for _ in frames:
                writer.grab_frame()
        return path.read_bytes()


def _frames(scenes: Scenes) -> Iterator[Figure]:
    """One and the same figure, first as it is, then drawn anew for every epoch."""
    dimensions = scenes.points[0].shape[1]
    figure, _ = new_figure(*_INCHES, columns=0)
    left = figure.add_subplot(1, 2, 1, projection="3d" if dimensions == 3 else None)
    right = figure.add_subplot(1, 2, 2)
    yield figure
    for number in range(len(scenes.epochs)):
        left.clear()
        _draw_points(left, scenes, number)
        right.clear()
        _draw_curve(right, scenes, number)
        if number == 0:  # nothing shall move from frame to frame but the data
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        yield figure


def _draw_points(axes: Any, scenes: Scenes, number: int) -> None:
    """The points of an epoch, coloured by class."""
    points = scenes.points[number]
    num_classes = int(scenes.labels.max()) + 1
    # Shades for depth would take up the palette, and are mistaken for classes.
    style: dict[str, Any] = {"depthshade": False} if points.shape[1] == 3 else {}
    for label, color in enumerate(_class_colors(num_classes)):
        chosen = points[scenes.labels == label]
        if points.shape[1] == 1:  # classes in rows, one above another
            height = np.linspace(label - 0.4, label + 0.4, len(chosen))
            chosen = np.stack([chosen[:, 0], height], axis=1)
        axes.scatter(
            *chosen.T,
            s=12,
            color=color,
            alpha=0.7,
            linewidths=0,
            label=f"label {label}",
            **style,
        )
    low, high = _reach(scenes.points)
    names = list(scenes.axis_names)
    axes.set_xlim(low[0], high[0])
    axes.set_xlabel(names[0], fontsize=11)
    if points.shape[1] == 1:
        axes.set_ylabel("label", fontsize=11)
        axes.set_yticks(range(num_classes))
    else:
        axes.set_ylim(low[1], high[1])
        axes.set_ylabel(names[1], fontsize=11)
    if points.shape[1] == 3:
        axes.set_zlim(low[2], high[2])
        axes.set_zlabel(names[2], fontsize=11)
        axes.set_box_aspect(None, zoom=0.85)
        axes.zaxis.labelpad = -2
    axes.locator_params(nbins=4)
    axes.tick_params(labelsize=10, pad=0 if points.shape[1] == 3 else 3)
    title = f"layer {scenes.layer}, epoch {scenes.epochs[number]}"
    axes.set_title(title + scenes.remark, fontsize=12)
    if num_classes <= 3:
        axes.legend(loc="upper left", fontsize=10, markerscale=2, frameon=False)


def _draw_curve(axes: Any, scenes: Scenes, number: int) -> None:
    """I(X;T) up to an epoch."""
    shown = slice(0, number + 1)
    epochs = scenes.epochs[shown]
    axes.fill_between(
        epochs,
        scenes.low[shown],
        scenes.high[shown],
        color=_CURVE_COLOR,
        alpha=0.3,
        linewidth=0,
    )
    axes.plot(epochs, scenes.values[shown], color=_CURVE_COLOR, linewidth=2)
    axes.plot(epochs[-1:], scenes.values[number : number + 1], "o", color=_CURVE_COLOR)
    ceiling_line(axes, scenes.ceiling, "H(X)", fontsize=10)
    axes.set_ylim(0, 1.12 * scenes.ceiling)
    epoch_axis(axes, scenes.epochs)
    axes.set_xlabel("epoch", fontsize=11)
    axes.tick_params(labelsize=10)
    value = f"I(X;T_{scenes.layer}) = {scenes.values[number]:.2f} nats"
    axes.set_title(value, fontsize=12)


def _reach(points: Sequence[Array]) -> tuple[Array, Array]:
    """Ends of the axes that hold all points of all epochs, (d,) each."""
    low = np.min([cloud.min(axis=0) for cloud in points], axis=0)
    high = np.max([cloud.max(axis=0) for cloud in points], axis=0)
    margin = 0.05 * np.maximum(high - low, 1e-6)
    return low - margin, high + margin


def _class_colors(num_classes: int) -> Sequence[Any]:
    """A colour per class: two that are apart in lightness too, or a palette."""
    if num_classes <= len(CLASS_COLORS):
        return CLASS_COLORS[:num_classes]
    from matplotlib import colormaps

    palette = colormaps["tab10" if num_classes <= 10 else "tab20"]
    return [palette(label % palette.N) for label in range(num_classes)]
