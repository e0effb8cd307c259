"""The folder of a run: settings, tables, checkpoint, and how a run reports and stops.

Every file is written beside its place and renamed into it, so a reader or a run that
takes up the work after `kill -9` never sees half a file. The checkpoint is the truth:
it holds the length and hash of every table as it was then, so that later rows are
dropped and altered ones are noticed when a run resumes, and hashes of its own arrays
and of the settings. They find damage, not forgery.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, TextIO

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from noisyflow import _machine, _ranks, runtime
from noisyflow._files import open_regular, read_regular

Row = dict[str, Any]  # numbers and words

# Seconds between plain progress lines where there is no terminal to update.
_SECONDS_BETWEEN_LINES = 10.0

_TABLES = ("metrics.csv", "history.csv")
_FILES = (
    "config.json",
    "checkpoint.safetensors",
    "usage.json",
    "report.html",
    "report.json",
    *_TABLES,
)
# int() and float() take more, such as "1_0", " 1" and "infinity".
_INT = re.compile("-?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?([0-9]+\.[0-9]+(e[+-]?[0-9]+)?|[0-9]+e[+-]?[0-9]+|inf|nan)")
# A hundred times those that are written; what is longer is none of ours.
_MOST_CONFIG_BYTES, _MOST_USAGE_BYTES = 2**20, 2**14
# Among the arrays of a checkpoint: hashes of all others, and of the settings.
_OWN_HASH, _CONFIG_HASH = "sha256", "config.json.sha256"
# What a damaged but readable file can raise while it is taken apart.
DAMAGE = (ValueError, KeyError, TypeError, IndexError, RuntimeError, OverflowError)


@dataclass(frozen=True)
class Usage:
    """What the work in a folder took so far, figures and report apart.

    Parameters
    ----------
    seconds : float
        Time that passed while the work went on, over all times it was taken up; a kill
        loses those of its own.
    peak_mib : float
        Largest memory of a process that did it, in MiB.
    """

    seconds: float = 0.0
    peak_mib: float = 0.0


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
    needs; `usage.json` says what the work took; `figures/`, `report.html` and
    `report.json` can be made again from these at any time.
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

        Notes
        -----
        Of several ranks (`noisyflow._ranks`) the first alone has the folder; on the
        others nothing is read, written or printed to standard output.
        """
        if not _ranks.current().is_first:
            with (
                open(os.devnull, "w") as nowhere,
                contextlib.redirect_stdout(nowhere),
            ):
                yield
            return
        existed = self.path.exists()
        self._check_contents(experiment, settings)
        try:
            self.figures.mkdir(parents=True, exist_ok=True)
            lock = _open_lock(self.path / ".lock")
        except OSError as error:
            raise RunError(f"cannot write to {self.path}: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunError(f"another run is working in {self.path}") from error
            self._check_contents(experiment, settings)  # now nobody else writes
            self._remove_leftovers()
            try:
                self._write_config(experiment, settings)
                yield
            except BaseException:
                if not (self.path / "checkpoint.safetensors").exists():
                    self._give_up(remove_folder=not existed)
                raise

    def config(self) -> dict[str, Any]:
        """The experiment, its settings and the package's version, as written."""
        path = self.path / "config.json"
        try:
            config = json.loads(read_regular(path, _MOST_CONFIG_BYTES))
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path} is not a run's config") from error
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}") from error
        kinds = {"experiment": str, "noisyflow": str, "settings": dict}
        if not isinstance(config, dict) or not all(
            isinstance(config.get(key), kind) for key, kind in kinds.items()
        ):
            raise RunError(f"{path} is not a run's config")
        return config

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Counts the time of a block and the process's memory as the run's usage."""
        if not _ranks.current().is_first:
            yield
            return
        before, started = self.usage(), time.monotonic()
        try:
            yield
        finally:
            usage = Usage(
                round(before.seconds + time.monotonic() - started, 3),
                max(before.peak_mib, round(_machine.peak_bytes() / 2**20, 1)),
            )
            with contextlib.suppress(OSError):  # the work matters more
                write_atomically(
                    self.path / "usage.json", json.dumps(asdict(usage)).encode()
                )

    def usage(self) -> Usage:
        """What the work took so far; nothing where that is not known."""
        try:
            path = self.path / "usage.json"
            found = json.loads(read_regular(path, _MOST_USAGE_BYTES))
            usage = Usage(float(found["seconds"]), float(found["peak_mib"]))
        except (*DAMAGE, RecursionError, OSError):
            return Usage()
        is_possible = 0 <= usage.seconds < math.inf and 0 <= usage.peak_mib < math.inf
        return usage if is_possible else Usage()

    def save(
        self, tables: Mapping[str, Sequence[Row]], tensors: Mapping[str, NDArray[Any]]
    ) -> None:
        """Writes the tables, then the checkpoint that vouches for them.

        Parameters
        ----------
        tables : mapping of file name to rows
            A table without rows is not written.
        tensors : mapping of str to array
            The rest of the checkpoint.
        """
        vouchers: dict[str, NDArray[Any]] = {}
        for name, rows in tables.items():
            data = table_bytes(rows)
            if rows:
                write_atomically(self.path / name, data)
            vouchers[f"{name}.size"] = np.array(len(data))
            vouchers[f"{name}.sha256"] = _sha256(data)
        self.save_checkpoint({**tensors, **vouchers})

    def load_table(
        self, name: str, checkpoint: Mapping[str, NDArray[Any]]
    ) -> list[Row]:
        """The rows of a table that the checkpoint vouches for; later ones are dropped.

        Raises
        ------
        RunError
            If they are not those that were there when the checkpoint was saved.
        """
        path = self.path / name
        try:
            size = int(checkpoint[f"{name}.size"])
            data = _start_of(path, size) if size else b""
            if not np.array_equal(_sha256(data), checkpoint[f"{name}.sha256"]):
                raise ValueError(name)
            rows = csv.DictReader(io.StringIO(data.decode()))
            return [{key: _parse(row[key]) for key in row} for row in rows]
        except (*DAMAGE, OSError) as error:
            raise RunError(
                f"the rows of {path} do not match its checkpoint; "
                "remove the folder to start anew"
            ) from error

    def save_figure(self, name: str, data: bytes) -> Path:
        """Writes a file into `figures/` and returns its path."""
        path = self.figures / name
        write_atomically(path, data)
        return path

    def save_checkpoint(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Replaces the checkpoint by these arrays."""
        # Not np.ascontiguousarray, which turns a number into a vector of one.
        contiguous = {key: np.array(value, order="C") for key, value in tensors.items()}
        if (self.path / "config.json").exists():
            contiguous[_CONFIG_HASH] = _hash_of_config(self.config())
        contiguous[_OWN_HASH] = _hash_of_arrays(contiguous)
        data = safetensors.numpy.save(contiguous)
        write_atomically(self.path / "checkpoint.safetensors", data)

    def load_checkpoint(self) -> dict[str, NDArray[Any]] | None:
        """The arrays last saved, or None before the first time.

        Raises
        ------
        RunError
            If the file is damaged or older than its format, or `config.json` is not
            what it was then.
        """
        path = self.path / "checkpoint.safetensors"
        if not os.path.lexists(path):
            return None
        try:
            arrays = _arrays_of(path)
            own_hash = arrays.pop(_OWN_HASH, None)
            if own_hash is None:
                raise RunError(
                    f"{path} was saved by an earlier build, without a hash of its "
                    f"content; remove {self.path} to start anew, or finish with that "
                    "build"
                )
            if not np.array_equal(own_hash, _hash_of_arrays(arrays)):
                raise ValueError(path)
        except (safetensors.SafetensorError, *DAMAGE) as error:
            raise self.damaged_checkpoint() from error
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}") from error
        expected = arrays.pop(_CONFIG_HASH, None)
        if expected is not None and not np.array_equal(
            expected, _hash_of_config(self.config())
        ):
            raise RunError(
                f"{self.path / 'config.json'} does not match its checkpoint; "
                "remove the folder to start anew"
            )
        return arrays

    def damaged_checkpoint(self) -> RunError:
        """What to raise where the checkpoint cannot be what was saved."""
        return RunError(
            f"{self.path / 'checkpoint.safetensors'} is damaged; remove {self.path} to "
            "start anew"
        )

    def results(self) -> Results:
        """All measurements up to the last checkpoint.

        Raises
        ------
        RunError
            If a table or the checkpoint is missing, damaged or at odds with the others.
        """
        checkpoint = self.load_checkpoint()
        if checkpoint is None:
            raise RunError(f"{self.path} holds no measurements yet")
        metrics, history = (self.load_table(name, checkpoint) for name in _TABLES)
        if not history:
            raise RunError(f"{self.path} holds no measurements yet")
        try:
            return _results(metrics, history, checkpoint["logged_parameters"])
        except DAMAGE as error:
            raise self.damaged_checkpoint() from error

    def _check_contents(self, experiment: str, settings: Mapping[str, Any]) -> None:
        """Raises RunError unless the folder is new, empty or holds this very run."""
        try:
            for name in _FILES:
                path = self.path / name
                if path.exists() and not path.is_file():
                    raise RunError(f"{path} is in the way: it is not a file")
            check_is_within(self.figures)
            if (self.path / "config.json").exists():
                self.compare(experiment, settings)
                self._check_tables()
            elif self.path.is_dir() and self._has_other_files():
                raise RunError(
                    f"{self.path} holds other files and no run (no config.json)"
                )
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror}") from error

    def _has_other_files(self) -> bool:
        """Whether there is more than a run killed at its very start can leave."""
        ours = {".lock", "figures", ".config.json.tmp"}
        return any(path.name not in ours for path in self.path.iterdir())

    def _check_tables(self) -> None:
        """Raises RunError at tables that no checkpoint vouches for.

        A run saves a checkpoint before its first table, so nothing that stops it can
        leave them.
        """
        found = [name for name in _TABLES if (self.path / name).exists()]
        if found and not (self.path / "checkpoint.safetensors").exists():
            raise RunError(
                f"{self.path} holds {' and '.join(found)} but no "
                "checkpoint.safetensors; remove the folder to start anew"
            )

    def compare(
        self,
        experiment: str,
        settings: Mapping[str, Any],
        *,
        remedy: str = "choose another --out",
    ) -> None:
        """Raises RunError unless `config.json` is that of this run.

        Parameters
        ----------
        experiment : str
        settings : mapping
            As for `open`.
        remedy : str
            What to do otherwise, as the caller's user can.
        """
        from noisyflow import __version__

        found = self.config()
        if found["experiment"] != experiment:
            raise RunError(
                f"{self.path} holds a run of {found['experiment']}, not of "
                f"{experiment}; {remedy}"
            )
        if found["noisyflow"] != __version__:
            raise RunError(
                f"{self.path} holds a run of noisyflow {found['noisyflow']}, and this "
                f"is {__version__}: the two do not mix; {remedy}"
            )
        before, now = found["settings"], json.loads(json.dumps(dict(settings)))
        for key in {**now, **before}:
            if before.get(key) != now.get(key):
                raise RunError(
                    f"{self.path} holds a run with {key} = {before.get(key)}, not "
                    f"{now.get(key)}; {remedy}"
                )

    def _write_config(self, experiment: str, settings: Mapping[str, Any]) -> None:
        """Writes `config.json` in a new folder."""
        from noisyflow import __version__

        if (self.path / "config.json").exists():
            return
        config = {
            "experiment": experiment,
            "noisyflow": __version__,
            "settings": dict(settings),
            "device": runtime.device_name(str(settings.get("device", "cpu"))),
        }
        text = json.dumps(config, indent=2) + "\n"
        write_atomically(self.path / "config.json", text.encode())

    def _remove_leftovers(self) -> None:
        """Removes what a kill left half-written."""
        for folder in (self.path, self.figures):
            for part in folder.glob(".*.tmp"):
                part.unlink(missing_ok=True)

    def _give_up(self, *, remove_folder: bool) -> None:
        """Undoes the claim of a run that failed before its first checkpoint.

        `config.json` goes after all that could not be told from a stranger's file
        without it: a kill or another Ctrl-C may come here, too.
        """
        with contextlib.suppress(OSError):
            self._remove_leftovers()
            (self.path / "usage.json").unlink(missing_ok=True)
            (self.path / "config.json").unlink(missing_ok=True)
            self.figures.rmdir()
            (self.path / ".lock").unlink()
            if remove_folder:
                self.path.rmdir()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old or the new contents, never a part.

    Parameters
    ----------
    path : Path
        In an existing folder that has one writer at a time.
    data : bytes
        On the disk, as `.NAME.tmp` in the same folder, before it takes the name.

    Raises
    ------
    OSError
        With the file's name, after the half-written part was removed: a full disk has
        its space again.
    """
    part = path.with_name(f".{path.name}.tmp")
    try:
        # Anew: one that is there may be a link to somewhere else, or a pipe.
        part.unlink(missing_ok=True)
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    # The new name, too, shall outlive a power cut; not every disk can promise that.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_is_within(folder: Path) -> None:
    """Raises RunError where a folder of a run's own leads out of it, or is a file."""
    if folder.is_symlink():
        raise RunError(f"{folder} is in the way: it is a link, not a folder")
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is in the way: it is not a folder")


def check_device(name: str) -> None:
    """Raises RunError unless networks and estimates can be on the device."""
    try:
        runtime.checked_device(name)
    except ValueError as error:
        raise RunError(str(error)) from error


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
        # Python has no standard error where it was closed.
        self._stream = stream or sys.stderr or io.StringIO()
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
            self._write(f"\r{line[:width]}\033[K")
        else:
            self._write(f"{line}\n")

    def finish(self) -> None:
        """Leaves the updating line, so that what follows stands on its own."""
        if self._is_terminal:
            self._write("\n")

    def _write(self, text: str) -> None:
        """Writes if the stream still takes it: a closed pipe must not stop the run."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()


_STOPPING = (
    b"noisyflow: stopping once the work at hand is saved; Ctrl-C again stops at once\n"
)


class Interruption:
    """Turns the first Ctrl-C into a wish to stop, kept until the work at hand is done.

    Use as a context manager on the main thread; afterwards Ctrl-C acts as before. A
    second Ctrl-C stops at once. Of several ranks the first alone is stopped so, and
    stops the others; these ignore Ctrl-C.

    Parameters
    ----------
    is_told : bool
        Whether the first Ctrl-C is answered with a line on standard error.

    Attributes
    ----------
    is_wanted : bool
        Whether Ctrl-C was pressed.
    """

    def __init__(self, *, is_told: bool = True) -> None:
        self.is_wanted = False
        self._is_told = is_told

    def __enter__(self) -> Interruption:
        is_ours = _ranks.current().is_first
        self._before = signal.signal(
            signal.SIGINT, self._handle if is_ours else signal.SIG_IGN
        )
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_wanted:
            raise KeyboardInterrupt
        self.is_wanted = True
        if self._is_told:  # not by way of a stream, which may be at work
            with contextlib.suppress(OSError):
                os.write(2, b"\n" * os.isatty(2) + _STOPPING)


def duration(seconds: float) -> str:
    """A time span for people: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _results(
    metrics: Sequence[Row], history: Sequence[Row], parameters: NDArray[Any]
) -> Results:
    """Rows as arrays; raises ValueError where they do not fit one another."""
    num_layers = len(metrics) // len(history)
    epochs = [int(row["epoch"]) for row in history]
    expected = [(epoch, 1 + layer) for epoch in epochs for layer in range(num_layers)]
    if (
        [(row["epoch"], row["layer"]) for row in metrics] != expected
        or num_layers == 0
        or parameters.ndim != 2
        or len(parameters) != len(history)
    ):
        raise ValueError("tables and parameters differ in their epochs")
    return Results(
        epochs=np.array(epochs, np.int64),
        metrics={
            key: np.array([float(row[key]) for row in metrics]).reshape(-1, num_layers)
            for key in metrics[0]
        },
        history={
            key: np.array([float(row[key]) for row in history]) for key in history[0]
        },
        parameters=parameters,
    )


def table_bytes(rows: Sequence[Row]) -> bytes:
    """Rows as CSV; numbers keep all their digits. Nothing at all for no rows."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue().encode()


def _sha256(data: bytes) -> NDArray[np.uint8]:
    """The hash as an array, (32,)."""
    return np.frombuffer(hashlib.sha256(data).digest(), np.uint8)


def _open_lock(path: Path) -> BinaryIO:
    """Opens the file that is locked; a link's target is not touched."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)


def _hash_of_arrays(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """A hash of names, types, shapes and numbers, whatever their order; (32,)."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        total.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        total.update(array.tobytes())
    return np.frombuffer(total.digest(), np.uint8)


def _hash_of_config(config: Mapping[str, Any]) -> NDArray[np.uint8]:
    """A hash of what a config says, however it is written; (32,)."""
    return _sha256(json.dumps(config, sort_keys=True).encode())


def _arrays_of(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays in a safetensors file, whose length is checked before it is read.

    ValueError where it is not that which its header promises.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if not length <= size - 8:
            raise ValueError(f"a header of {length} bytes in {size}")
        header = file.read(length)
        ends = [
            entry["data_offsets"][1]
            for name, entry in json.loads(header).items()
            if name != "__metadata__"
        ]
        if size != 8 + length + max(ends, default=0):
            raise ValueError(f"{size} bytes, and its header promises others")
        rest = file.read(size)
    return dict(safetensors.numpy.load(start + header + rest))


def _start_of(path: Path, size: int) -> bytes:
    """The first bytes of a regular file, as many as these if it has them."""
    with open_regular(path) as file:
        return file.read(max(0, min(size, os.fstat(file.fileno()).st_size)))


def _parse(text: str) -> float | int | str:
    """What a field of a table holds: a number as Python writes it, or else a word."""
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
