"""The folder of a run: settings, tables, checkpoint, and how a run reports and stops.

Every file is written beside its place and renamed into it, so a reader or a run that
takes up the work after `kill -9` never sees half a file. The checkpoint is the truth:
rows of the tables that are later than it are dropped when a run resumes.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

Row = dict[str, float | int]

# Seconds between plain progress lines where there is no terminal to update.
_SECONDS_BETWEEN_LINES = 10.0


class RunError(Exception):
    """A mistake in the settings or an obstacle in the folder, told in one line."""


class RunFolder:
    """The output folder of one run.

    Parameters
    ----------
    path : str or Path
        Created, with its parents, when the run is opened.

    Notes
    -----
    `config.json` names the experiment and its settings; `metrics.csv` and `history.csv`
    hold one row per measurement; `checkpoint.safetensors` holds all that a resumed run
    needs; `figures/` and `report.html` can be made again from these at any time.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"

    @contextlib.contextmanager
    def open(self, experiment: str, settings: Mapping[str, Any]) -> Iterator[None]:
        """Claims the folder for one run with these settings, until the block ends.

        Parameters
        ----------
        experiment : str
            Name of the experiment.
        settings : mapping
            Its settings, as JSON knows them. Written to `config.json` in a new folder,
            compared with it in an old one.

        Raises
        ------
        RunError
            If the folder cannot be written, belongs to another run or holds other
            things, or if a run is working in it now.
        """
        is_new = not (self.path / "config.json").exists()
        try:
            if is_new and self.path.is_dir() and self._has_other_files():
                raise RunError(
                    f"{self.path} holds other files and no run (no config.json)"
                )
            self.figures.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise RunError(f"cannot write to {self.path}: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunError(f"another run is working in {self.path}") from error
            self._write_or_compare(experiment, settings)
            yield

    def config(self) -> dict[str, Any]:
        """The experiment, its settings and the package's version, as written."""
        try:
            config = json.loads((self.path / "config.json").read_text())
        except ValueError as error:
            raise RunError(
                f"{self.path / 'config.json'} is not a run's config"
            ) from error
        return dict(config)

    def write_table(self, name: str, rows: Sequence[Row]) -> None:
        """Writes a CSV file; numbers keep all their digits."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / name, text.getvalue().encode())

    def read_rows(self, name: str) -> list[Row]:
        """Rows of a CSV file, numbers as numbers; none if there is no such file."""
        path = self.path / name
        if not path.exists():
            return []
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            return [{key: _parse(row[key]) for key in row} for row in rows]

    def save_figure(self, name: str, data: bytes) -> Path:
        """Writes a file into `figures/` and returns its path."""
        path = self.figures / name
        write_atomically(path, data)
        return path

    def save_checkpoint(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Replaces the checkpoint by these arrays."""
        # Not np.ascontiguousarray, which turns a number into a vector of one.
        contiguous = {key: np.array(value, order="C") for key, value in tensors.items()}
        data = safetensors.numpy.save(contiguous)
        write_atomically(self.path / "checkpoint.safetensors", data)

    def load_checkpoint(self) -> dict[str, NDArray[Any]] | None:
        """The arrays last saved, or None before the first time.

        Raises
        ------
        RunError
            If the file is damaged.
        """
        path = self.path / "checkpoint.safetensors"
        if not path.exists():
            return None
        try:
            return dict(safetensors.numpy.load(path.read_bytes()))
        except safetensors.SafetensorError as error:
            raise RunError(
                f"{path} is damaged; remove {self.path} to start anew"
            ) from error

    def results(self) -> Results:
        """All measurements up to the last checkpoint.

        Raises
        ------
        RunError
            If a table or the checkpoint is missing, damaged or at odds with the others.
        """
        checkpoint = self.load_checkpoint()
        history, metrics = self.read_rows("history.csv"), self.read_rows("metrics.csv")
        if checkpoint is None or not history:
            raise RunError(f"{self.path} holds no measurements yet")
        num_layers = len(metrics) // len(history)
        if len(checkpoint["logged_parameters"]) != len(history) or num_layers * len(
            history
        ) != len(metrics):
            raise RunError(
                f"history.csv and metrics.csv in {self.path} do not match its "
                "checkpoint; remove the folder to start anew"
            )
        return Results(
            epochs=np.array([row["epoch"] for row in history], np.int64),
            metrics={
                key: np.array([float(row[key]) for row in metrics]).reshape(
                    -1, num_layers
                )
                for key in metrics[0]
            },
            history={
                key: np.array([float(row[key]) for row in history])
                for key in history[0]
            },
            parameters=checkpoint["logged_parameters"],
        )

    def _has_other_files(self) -> bool:
        """Whether there is more than a run killed at its very start can leave."""
        ours = {".lock", "figures", ".config.json.tmp"}
        return any(path.name not in ours for path in self.path.iterdir())

    def _write_or_compare(self, experiment: str, settings: Mapping[str, Any]) -> None:
        """Writes `config.json` in a new folder, else compares it."""
        from noisyflow import __version__

        if not (self.path / "config.json").exists():
            config = {
                "experiment": experiment,
                "noisyflow": __version__,
                "settings": dict(settings),
            }
            text = json.dumps(config, indent=2) + "\n"
            write_atomically(self.path / "config.json", text.encode())
            return
        found = self.config()
        if found.get("experiment") != experiment:
            raise RunError(
                f"{self.path} holds a run of {found.get('experiment')}, not of "
                f"{experiment}; choose another --out"
            )
        before = found.get("settings", {})
        for key, value in json.loads(json.dumps(dict(settings))).items():
            if before.get(key) != value:
                raise RunError(
                    f"{self.path} holds a run with {key} = {before.get(key)}, not "
                    f"{value}; choose another --out"
                )


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old or the new contents, never a part.

    Parameters
    ----------
    path : Path
        In an existing folder that has one writer at a time.
    data : bytes
        On the disk, as `.NAME.tmp` in the same folder, before it takes the name. What a
        kill leaves there is overwritten by the next write.
    """
    part = path.with_name(f".{path.name}.tmp")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


@dataclass(frozen=True)
class Results:
    """Measurements of a run, over its k logged epochs and L hidden layers.

    Parameters
    ----------
    epochs : (k,) int array
        Epoch e is the state after pass number e over the training data, counted from 0.
    metrics : dict of str to (k, L) array
        Columns of `metrics.csv`, in nats where they are information.
    history : dict of str to (k,) array
        Columns of `history.csv`: losses (nats), accuracies (0 to 1), seconds so far.
    parameters : (k, p) float32 array
        The network's weights at every logged epoch.
    """

    epochs: NDArray[np.int64]
    metrics: dict[str, NDArray[np.float64]]
    history: dict[str, NDArray[np.float64]]
    parameters: NDArray[np.float32]

    @property
    def num_layers(self) -> int:
        """Number of hidden layers, L."""
        return int(self.metrics["mutual_information"].shape[1])

    def nearest(self, epoch: int) -> int:
        """Index of the logged epoch nearest to `epoch`."""
        return int(np.abs(self.epochs - epoch).argmin())


class Progress:
    """One line that updates itself on a terminal; a plain line now and then elsewhere.

    Parameters
    ----------
    stream : TextIO, optional
        Standard error by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._wait = 0.2 if self._is_terminal else _SECONDS_BETWEEN_LINES
        self._last = -self._wait

    def is_due(self) -> bool:
        """Whether the next line would be shown now."""
        return time.monotonic() - self._last >= self._wait

    def show(self, line: str) -> None:
        """Shows a line if one is due."""
        if not self.is_due():
            return
        self._last = time.monotonic()
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r{line[:width]}\033[K")
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def finish(self) -> None:
        """Leaves the updating line, so that what follows stands on its own."""
        if self._is_terminal:
            self._stream.write("\n")
            self._stream.flush()


class Interruption:
    """Turns the first Ctrl-C into a wish to stop, kept until the work at hand is done.

    Use as a context manager on the main thread; afterwards Ctrl-C acts as before. A
    second Ctrl-C stops at once.

    Attributes
    ----------
    is_wanted : bool
        Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.is_wanted = False

    def __enter__(self) -> Interruption:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_wanted:
            raise KeyboardInterrupt
        self.is_wanted = True


def duration(seconds: float) -> str:
    """A time span for people: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _parse(text: str) -> float | int:
    """The number that a field of a table holds."""
    try:
        return int(text)
    except ValueError:
        return float(text)
