"""The film of a run: a hidden layer while it learns, beside its I(X;T).

A run's folder holds the weights of every logged epoch. Its experiment says how layers
and labels follow from them, in two functions that every experiment with tracked
information offers: `layer_outputs(config, parameters)`, a list of (m, d_l) arrays, and
`labels(config)`, (m,).
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import experiments, plotting
from noisyflow._checks import as_int
from noisyflow.runs import DAMAGE, Results, RunError, RunFolder, write_atomically

Floats = NDArray[np.floating[Any]]

_SUFFIXES = (".gif", ".mp4")
# More points hide one another.
_MOST_POINTS = 1000
# Beyond it a layer is shown by its principal components.
_MOST_DIMENSIONS = 3
# What GIF files can say, and players play.
_MOST_FPS = 50
# The same points in every film of a task.
_SEED = 0


def make_film(
    path: Path, out: Path | None = None, *, fps: int = 10, layer: int | None = None
) -> Path:
    """Makes the film of a run with tracked information, as far as it is.

    Parameters
    ----------
    path : Path
        The folder of a run, finished or not; it may be running.
    out : Path, optional
        A name that ends in .gif or .mp4 (needs the program ffmpeg) in an existing
        folder. By default `figures/film.gif` in the run's folder for the last layer,
        `figures/film-layer-1.gif` and so on for others. Replaced if there.
    fps : int
        Frames, that is logged epochs, per second; from 1 to 50.
    layer : int, optional
        Hidden layer, from 1; the last by default.

    Returns
    -------
    Path
        Of the film.

    Raises
    ------
    RunError
        If the folder holds no such run, the file cannot be written there, or ffmpeg is
        needed and missing.
    TypeError, ValueError
        If `fps` or `layer` is not allowed.

    Notes
    -----
    Up to 1000 inputs are shown, the same ones in every frame. The band is from the
    lower to the upper end of the bias bracket with two standard errors on either side.
    Layers of more than three units are projected on the first three principal
    components of all epochs together.
    """
    folder = RunFolder(path)
    fps = as_int("fps", fps, at_least=1, at_most=_MOST_FPS)
    if not (folder.path / "config.json").is_file():
        raise RunError(f"{folder.path} is not a run's folder: it has no config.json")
    _check_is_one_network(folder)
    folder.load_checkpoint()  # which vouches for the config
    module, config = _experiment(folder)
    results = folder.results()
    last = results.num_layers
    layer = as_int("layer", last if layer is None else layer, at_least=1, at_most=last)
    if out is None:
        name = "film.gif" if layer == last else f"film-layer-{layer}.gif"
        out = folder.figures / name
    out = Path(out)
    _check_output(out)
    try:
        scenes = _scenes(module, config, results, layer)
    except DAMAGE as error:
        raise RunError(
            f"the weights in {folder.path} do not fit its settings: {error}"
        ) from error
    data = plotting.film(scenes, out.suffix, fps=fps)
    try:
        write_atomically(out, data)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}") from error
    return out


def _check_is_one_network(folder: RunFolder) -> None:
    """Raises RunError at a run of several networks, which have folders within."""
    names = sorted(
        one.parent.name for one in folder.path.glob("networks/*/config.json")
    )
    if names:
        raise RunError(
            f"{folder.path} holds several networks; name the folder of one: "
            f"{folder.path / 'networks' / names[0]}"
            + (f", or of {', '.join(names[1:])}" if names[1:] else "")
        )


def _check_output(out: Path) -> None:
    """Raises RunError unless a film can be written there."""
    if out.suffix not in _SUFFIXES:
        raise RunError(f"a film's name must end in .gif or .mp4, got {out}")
    if out.suffix == ".mp4" and not plotting.has_ffmpeg():
        raise RunError("MP4 needs the program ffmpeg, which is not here; choose .gif")
    if not out.parent.is_dir():
        raise RunError(f"cannot write {out}: {out.parent} is not a folder")
    if out.is_dir():
        raise RunError(f"cannot write {out}: it is a folder")
    if not os.access(out.parent, os.W_OK):  # to be known before the work
        raise RunError(f"cannot write {out}: {out.parent} is not writable")


def _experiment(folder: RunFolder) -> tuple[ModuleType, Any]:
    """The module of the run's experiment, and its settings."""
    found = folder.config()
    name = found["experiment"]
    try:
        module = experiments.load(name)
    except ValueError as error:
        raise RunError(f"{folder.path} holds an {error}") from error
    if not (hasattr(module, "layer_outputs") and hasattr(module, "labels")):
        raise RunError(
            f"{folder.path} holds a run of {name}, which tracks no layers over epochs: "
            "there is nothing to film"
        )
    try:
        return module, module.Config(**found["settings"])
    except (TypeError, ValueError) as error:
        raise RunError(
            f"{folder.path} has settings that {name} does not know: {error}"
        ) from error


def _scenes(
    module: ModuleType, config: Any, results: Results, layer: int
) -> plotting.Scenes:
    """What the film of a layer shows."""
    labels = module.labels(config)
    order = np.random.default_rng(_SEED).permutation(len(labels))
    shown = np.sort(order[:_MOST_POINTS])
    points = [
        np.asarray(module.layer_outputs(config, vector)[layer - 1])[shown]
        for vector in results.parameters
    ]
    num_units = points[0].shape[1]
    remark, axis_names = "", [f"unit {unit + 1}" for unit in range(num_units)]
    if num_units > _MOST_DIMENSIONS:
        points = _principal_components(points)
        remark = f"\n(3 principal components of {num_units} units)"
        axis_names = [f"component {number + 1}" for number in range(_MOST_DIMENSIONS)]
    metrics = {key: column[:, layer - 1] for key, column in results.metrics.items()}
    reach = 2 * metrics["standard_error"]
    return plotting.Scenes(
        epochs=results.epochs,
        points=points,
        labels=labels[shown],
        values=metrics["mutual_information"],
        low=metrics["lower"] - reach,
        high=metrics["upper"] + reach,
        ceiling=math.log(len(labels)),
        layer=layer,
        remark=remark,
        axis_names=axis_names,
    )


def _principal_components(points: list[Floats]) -> list[Floats]:
    """The clouds in the first three principal axes of all of them together."""
    together = np.concatenate(points).astype(np.float64)
    center = together.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(together - center, rowvar=False))
    largest = axes[:, ::-1][:, :_MOST_DIMENSIONS]  # eigh: in ascending order
    return [(cloud - center) @ largest for cloud in points]
