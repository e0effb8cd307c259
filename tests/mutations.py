"""Files that were damaged in many ways, and what the package makes of them.

Every format that the package reads is written once, soundly, then mutated: bits and
blocks by chance, headers and numbers on purpose, and the file itself replaced by a
folder, a loop of links, a pipe, a device. What may follow is one of three:

- refused: one of the format's own errors, in words that name the file or its folder;
- same: read, and equal to what the sound file gives;
- other: read, and by the format's rule what the mutated file says. Only formats without
  a checksum have such a rule; each `Format` states its own.

Anything else is a failure: another exception, other numbers, a hang, more memory than
the worker may have, a command that was run. Nothing here guards against someone who
computes the checksums anew: they find damage, not forgery.

As a script, a thousand mutations of each: `python tests/mutations.py --count 1000`.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import csv
import faulthandler
import gzip
import io
import json
import math
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import noisyflow
from noisyflow import gallery, image_files
from noisyflow.datasets import Dataset
from noisyflow.estimate import Estimate
from noisyflow.estimate_file import FileError, estimate_file
from noisyflow.experiments import Claim
from noisyflow.experiments.cells import CellRows, CellTable
from noisyflow.experiments.tracked_training import TrackedTraining
from noisyflow.nn import NoisyMLP
from noisyflow.report import Figure, Table, claims_table, work_table, write_page
from noisyflow.runs import Interruption, RunError, RunFolder, duration
from noisyflow.tracking import LayerInformation
from noisyflow.training import Trainer

# What a case may take. The sound files are of a few kilobytes; none needs a tenth.
SECONDS = 10
SPARE_BYTES = 2**29

Rng = np.random.Generator


def pick(rng: Rng, choices: Sequence[Any]) -> Any:
    """One of them; NumPy's own would make them of one type."""
    return choices[rng.integers(len(choices))]


class HangError(BaseException):
    """A case took too long; no `except Exception` shall hide it."""


@dataclass(frozen=True)
class Format:
    """One format: how a sound file is written and read, and what is right otherwise.

    Parameters
    ----------
    file : str
        The file that is mutated, within a folder.
    make : callable
        Writes the sound folder.
    read : callable
        What the package makes of a folder, as something that can be compared.
    errors : tuple of exceptions
        What a damaged file may end in, naming it.
    argument : str
        Named in place of the file by a ValueError or TypeError, where a sound file
        holds what an option does not fit.
    tokens : sequence of bytes
        What mutations put into the file beside random bytes.
    forge : callable, optional
        A mutation of this format's own, of its bytes.
    judge : callable, optional
        `judge(found, data)` is whether a reading that differs from the sound one is
        what these bytes say. Without it no such reading is right.
    """

    file: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]
    tokens: tuple[bytes, ...] = ()
    forge: Callable[[bytes, Rng], bytes] | None = None
    judge: Callable[[Any, bytes], bool] | None = None
    argument: str = ""


# -- a run that trains, stopped half way ----------------------------------------


class Pretence:
    """Stands for a tracker: numbers that any other weights would change."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network

    def measure(self, epoch: int) -> list[LayerInformation]:
        weights = torch.cat([p.detach().ravel() for p in self._network.parameters()])
        value = float(weights.double().square().sum())
        estimate = Estimate(value, 0.5, 0.0, value + 1, 0.0, epoch)
        return [LayerInformation(1, estimate, estimate, 1, 1.0, 1.0)]


class AfterPasses(Interruption):
    """As Ctrl-C after so many passes; math.inf for never."""

    def __init__(self, work: TrackedTraining, passes: float) -> None:
        self._work, self._passes = work, passes

    @property
    def is_wanted(self) -> bool:
        return self._work.trainer.epochs_done >= self._passes


SETTINGS = {"epochs": 4, "noise_std": 0.25, "name": "tanh", "device": "cpu"}


def train(path: Path, passes: float = math.inf) -> dict[str, Any]:
    """Takes up a run of four passes; what it leaves that is not a time."""
    inputs = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    data = Dataset(inputs, np.array([0, 1, 1, 0]))

    def build() -> tuple[Trainer, Pretence]:
        network = NoisyMLP([2, 2, 2], noise_std=0.25, seed=1)
        trainer = Trainer(network, data.inputs, data.labels, batch_size=2, seed=2)
        return trainer, Pretence(network)

    folder = RunFolder(path)
    work = TrackedTraining(
        build, data, data, epochs=4, logged_epochs=[0, 1, 3], folder=folder
    )
    with folder.open("xor", SETTINGS):
        work.resume()
        if not work.is_finished:
            with contextlib.redirect_stderr(io.StringIO()):
                work.advance(AfterPasses(work, passes))
    if passes < math.inf:
        return {}
    results = folder.results()
    return {
        "config": {key: folder.config()[key] for key in ("experiment", "settings")},
        "metrics": {key: column.tolist() for key, column in results.metrics.items()},
        "history": {
            key: column.tolist()
            for key, column in results.history.items()
            if not key.endswith("_seconds")
        },
        "parameters": results.parameters.tolist(),
    }


def make_training(path: Path) -> None:
    train(path, passes=2)


# -- a run of cells ---------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One whose numbers follow from those of the cells before it."""

    number: int
    name: str = "cell"
    cost: float = 1.0


def fill_cells(path: Path, count: int) -> dict[str, Any]:
    """Takes up a run of three cells as far as `count`; what it leaves."""
    folder = RunFolder(path)
    with folder.open("cells", {"num_cells": 3}):
        table = CellTable(folder, lambda: {"start": np.arange(3.0)})
        table.resume()

        def compute(cell: Cell) -> CellRows:
            before = sum(array.sum() for array in table.arrays.values())
            value = np.array([before, *table.prepared["start"]]) + cell.number
            row = {"value": float(value.sum())}
            return CellRows([row], [{"kind": "a"}], {f"of_{cell.number}": value})

        silent = io.StringIO()
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            table.complete("cells", [Cell(i) for i in range(count)], compute, "")
    arrays = {name: array.tolist() for name, array in table.arrays.items()}
    return {"metrics": table.metrics, "history": table.history, "arrays": arrays}


def make_cells(path: Path) -> None:
    fill_cells(path, 2)


def read_cells(path: Path) -> dict[str, Any]:
    return fill_cells(path, 3)


# -- what a run says of itself ----------------------------------------------------


def png(width: int, height: int) -> bytes:
    """The bytes of a PNG file as far as its size."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height)


def make_report(path: Path) -> None:
    folder = RunFolder(path)
    with folder.open("szt", {"epochs": 4}):
        folder.save({"metrics.csv": [], "history.csv": []}, {})
        figure = Figure(folder.save_figure("information.png", png(4, 2)), "A curve.")
        claims = [Claim("It falls.", "by 1", True), Claim("So?", "0 ± 1", None)]
        table = Table("What was run", ["what", "value"], [["szt", "1 | 2"]], "note")
        write_page(
            folder, "A run", ["Words.", figure, claims_table("C", claims), table]
        )


def make_usage(path: Path) -> None:
    make_report(path)
    (path / "usage.json").write_text('{"seconds": 12.5, "peak_mib": 345.5}')


def read_usage(path: Path) -> dict[str, Any]:
    folder = RunFolder(path)
    (row,) = [row for row in work_table(folder).rows if row[0].startswith("time")]
    return {**asdict(folder.usage()), "row": row[1]}


def is_usage(found: Any, data: bytes) -> bool:
    """Two numbers that are finite and not negative are a usage; else it is unknown."""
    try:
        said = json.loads(data)
        times = {name: float(said[name]) for name in ("seconds", "peak_mib")}
    except Exception:
        times = {"seconds": 0.0, "peak_mib": 0.0}
    if not all(0 <= time < math.inf for time in times.values()):
        times = {"seconds": 0.0, "peak_mib": 0.0}
    return {key: found[key] for key in times} == times and bool(found["row"])


def read_report(path: Path) -> dict[str, Any]:
    report = gallery.read_report(path)
    pages = gallery.page(report) + duration(report.seconds)
    figures = [
        str(figure.path.relative_to(path.resolve())) for figure in report.figures
    ]
    return {**asdict(report), "figures": figures, "pages": pages.encode()}


def is_report(found: Any, data: bytes) -> bool:
    """A report is believed: the gallery has every run write its own anew before."""
    said = json.loads(data)
    kinds = collections.Counter(part["kind"] for part in said["parts"])
    return (
        (found["title"], found["experiment"]) == (said["title"], said["experiment"])
        and 0 <= found["seconds"] == float(said["seconds"]) < math.inf
        and 0 <= found["peak_mib"] == float(said["peak_mib"]) < math.inf
        and len(found["paragraphs"]) == kinds["paragraph"]
        and len(found["figures"]) == kinds["figure"]
        and len(found["tables"]) == kinds["table"]
        and all(name.startswith("figures/") for name in found["figures"])
    )


# -- images -----------------------------------------------------------------------

_IMAGES, _LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    """An IDX file of bytes, by the description of the format."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def make_images(path: Path) -> None:
    generator = np.random.default_rng(0)
    path.mkdir()
    pixels = generator.integers(0, 256, (6, 3, 4), np.uint8)
    (path / _IMAGES).write_bytes(idx(pixels))
    (path / _LABELS).write_bytes(idx(np.arange(6, dtype=np.uint8)))


def make_gzipped(path: Path) -> None:
    make_images(path)
    for name in (_IMAGES, _LABELS):
        data = (path / name).read_bytes()
        (path / name).unlink()
        (path / f"{name}.gz").write_bytes(gzip.compress(data, mtime=1))


def read_images(path: Path) -> dict[str, Any]:
    pixels, labels = image_files.read_mnist(path)[image_files.TEST]
    return {"shape": pixels.shape, "values": pixels.tolist(), "labels": labels.tolist()}


def is_images(found: Any, data: bytes) -> bool:
    """Pixels have no checksum: those of the file, whose header says as many."""
    shape = struct.unpack(">3I", data[4:16])
    return (
        data[:4] == b"\0\0\x08\x03"
        and found["shape"] == shape
        and len(data) == 16 + math.prod(shape)
        and np.ravel(found["values"]).tolist() == list(data[16:])
        and found["labels"] == list(range(6))
    )


def is_gzipped(found: Any, data: bytes) -> bool:
    """Another way to pack: what zlib unpacks, its own checks passed, is the file."""
    return is_images(found, gzip.decompress(data))


def forge_idx(data: bytes, rng: Rng) -> bytes:
    """Another type, number of dimensions or size."""
    header = bytearray(data)
    match rng.integers(3):
        case 0:
            header[2] = pick(rng, [0, 8, 9, 11, 12, 13, 14, 255])
        case 1:
            header[3] = pick(rng, [0, 1, 2, 4, 64, 255])
        case _:
            at = 4 + 4 * int(rng.integers(3))
            sizes = [0, 1, 5, 7, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
            header[at : at + 4] = struct.pack(">I", pick(rng, sizes))
    return bytes(header)


def forge_gzip(data: bytes, rng: Rng) -> bytes:
    """A sound stream of something else: more, less, twice, or very much."""
    inner = gzip.decompress(data)
    match rng.integers(5):
        case 0:
            return gzip.compress(forge_idx(inner, rng))
        case 1:
            return data + gzip.compress(b"\0" * pick(rng, [1, 10, 2**24]))
        case 2:
            return gzip.compress(inner[:16] + b"\0" * 2**24)
        case 3:
            half = int(rng.integers(len(inner)))
            return gzip.compress(inner[:half]) + gzip.compress(inner[half:])
        case _:
            return zlib.compress(inner)


# -- arrays -----------------------------------------------------------------------

_OPTIONS: dict[str, Any] = {"standard_error": 0.5, "max_pairs": 20_000}


def make_array(path: Path) -> None:
    path.mkdir()
    np.save(path / "samples.npy", np.random.default_rng(0).normal(size=(8, 2)))


def read_array(path: Path) -> dict[str, Any]:
    report = estimate_file(path / "samples.npy", 0.5, **_OPTIONS)
    record = json.loads(report.to_json())
    return {key: record[key] for key in ("shape", "dtype", "estimates")}


def is_array(found: Any, data: bytes) -> bool:
    """Numbers have no checksum: the estimate is that of those in the file."""
    array = array_of(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if array.ndim == 2:
            name, estimate = "h(T)", noisyflow.entropy(array, 0.5, **_OPTIONS)
        else:
            name = "I(X;T)"
            estimate = noisyflow.mutual_information(array, 0.5, **_OPTIONS)
    value = found["estimates"][name]["value"]
    return (
        found["shape"] == list(array.shape)
        and found["dtype"] == str(array.dtype)
        and bool(np.isfinite(array).all())
        and value == estimate.value
    )


def array_of(data: bytes) -> np.ndarray:
    """The array of a .npy file, by the description of the format."""
    (size,) = struct.unpack_from("<H" if data[6] == 1 else "<I", data, 8)
    start = 10 if data[6] == 1 else 12
    said = ast.literal_eval(data[start : start + size].decode("latin1"))
    values = np.frombuffer(
        data, np.dtype(said["descr"]), math.prod(said["shape"]), start + size
    )
    return values.reshape(said["shape"], order="F" if said["fortran_order"] else "C")


class Bomb:
    """What runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(CANARY),)


CANARY = Path(tempfile.gettempdir()) / f"noisyflow-unpickled-{os.getpid()}"


def forge_npy(data: bytes, rng: Rng) -> bytes:
    """Another header: types, orders, shapes, versions; or Python objects."""
    if rng.integers(8) == 0:
        buffer = io.BytesIO()
        np.save(buffer, np.array([Bomb()], object), allow_pickle=True)
        return bytes(pick(rng, [buffer.getvalue(), pickle.dumps(Bomb())]))
    kinds = ["<f8", ">f8", "<f4", "<f2", "<i8", "|O", "|V8", "<c16", "<M8[s]", "|b1"]
    kinds += ["<U2", "|S8", "<f16", "|O8", "f8,f8", "('<f8', (2,))", "x", "<f0", "|V0"]
    shapes = ["(8, 2)", "(16, 1)", "(2, 4, 2)", "(16,)", "()", "(8, 2, 1)", "(-1, 2)"]
    shapes += ["(8, -2)", "(0, 2)", "(8, 0)", "(4, 2)", "(10**12, 2)", "(2**62, 4)"]
    shapes += [str((2**63, 2)), str((2**31, 2**31)), "(8.0, 2)", "(True, 2)", "[8, 2]"]
    shapes += [str((1,) * 70), "(1e400,)", "'8'", "None", str((4,) * 5), "(8, 2", "{8}"]
    kind, shape = pick(rng, kinds), pick(rng, shapes)
    descr = kind if kind.startswith("(") else f"'{kind}'"
    order = pick(rng, ["False", "False", "True", "1", "None"])
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    match rng.integers(8):
        case 0:
            text += " " * 20_000
        case 1:
            text = "(" * 5000 + text
        case 2:
            text = f"__import__('os').mkdir({str(CANARY)!r}) or {text}"
        case 3:
            text = text.replace("8", "8L")  # as Python 2 wrote it
        case _:
            pass
    version = pick(rng, [1, 1, 1, 2, 3, 0, 4, 255])
    header = text.encode() + b"\n"
    if rng.integers(2):
        header = text.encode().ljust(118 - 1) + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(header) % 2**16)
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data[128:]


def make_labels(path: Path) -> None:
    path.mkdir()
    np.save(path / "samples.npy", np.random.default_rng(0).normal(size=(6, 2, 2)))
    np.save(path / "labels.npy", np.array([0, 0, 1, 1, 2, 2]))


def read_labels(path: Path) -> dict[str, Any]:
    report = estimate_file(
        path / "samples.npy", 0.5, labels_path=path / "labels.npy", **_OPTIONS
    )
    return {key: q.estimate.value for key, q in report.quantities.items()}


def is_labels(found: Any, data: bytes) -> bool:
    """Labels have no checksum: the estimate is that for those in the file."""
    labels = array_of(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = np.random.default_rng(0).normal(size=(6, 2, 2))
        estimate = noisyflow.mutual_information(samples, 0.5, labels=labels, **_OPTIONS)
    return bool(found["I(Y;T)"] == estimate.value)


# -- numbers and headers on purpose -------------------------------------------------


def forge_json(data: bytes, rng: Rng) -> bytes:
    """A value of another kind or size, a key more or less, very deep nesting."""
    record = json.loads(data)
    values = [None, True, -1, 0, 1e308, 10**400, math.nan, math.inf, -math.inf, "", "x"]
    values += ["../../etc/passwd", "<script>", "nan", "\0", "\ud800", [], {}, [[]], [1]]
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            spots.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(record)
    node, key = pick(rng, spots)
    match rng.integers(6):
        case 0:
            return b"[" * pick(rng, [900, 10**5, 10**6]) + data
        case 1:
            del node[key]
        case 2 if isinstance(node, dict):
            node[key + "x"] = node[key]
        case 3:
            return json.dumps(record, sort_keys=True, indent=3).encode()
        case _:
            node[key] = pick(rng, values)
    return json.dumps(record).encode()


def forge_table(data: bytes, rng: Rng) -> bytes:
    """A number, a row or a column changed, repeated or lost."""
    rows = list(csv.reader(io.StringIO(data.decode())))
    row, column = int(rng.integers(len(rows))), int(rng.integers(len(rows[0])))
    match rng.integers(7):
        case 0:
            rows[row][column] = pick(rng, ["nan", "inf", "", "1", "-0.0", "9" * 99])
        case 1:
            rows.insert(row, rows[row])
        case 2:
            del rows[row]
        case 3:
            for line in rows:
                line.insert(column, line[column])
        case 4:
            for line in rows:
                del line[column]
        case 5:
            rows.append(rows[-1])
        case _:
            rows[row][column] = f'"{rows[row][column]}'
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def forge_checkpoint(data: bytes, rng: Rng) -> bytes:
    """Another header, or another number in one of the arrays."""
    (size,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    names = sorted(set(header) - {"__metadata__"})
    name = pick(rng, names)
    entry = header[name]
    match rng.integers(9):
        case 0:
            size = pick(rng, [0, 1, 2**32, 2**63, 2**64 - 1])
            return struct.pack("<Q", size) + data[8:]
        case 1:
            entry["shape"] = [pick(rng, [-1, 0, 1, 2**40, 2**63])]
        case 2:
            entry["dtype"] = pick(rng, ["F32", "I32", "F64", "U8", "BOOL", "F8", "O"])
        case 3:
            entry["data_offsets"] = [0, pick(rng, [0, 8, 2**40, 2**63])]
        case 4:
            header[name + "x"] = header.pop(name)
        case 5:
            del header[name]
        case 6:
            header["__metadata__"] = {"x": "y" * int(rng.integers(100))}
        case 7:
            other = pick(rng, names)
            header[name], header[other] = header[other], header[name]
        case _:
            start, stop = entry["data_offsets"]
            if stop > start:
                body[int(rng.integers(start, stop))] ^= 1 << int(rng.integers(8))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(body)


_JSON = (b"null", b"NaN", b"Infinity", b"1e999", b'"', b"\\u0000", b"{", b"]", b"true")
_CSV = (b",", b'"', b"\n", b"\r", b"nan", b"epoch", b";")
_NPY = (b"(", b")", b"'", b"|O", b"<f4", b"\x93NUMPY", b"True", b"99", b"\\N{x}", b"#")

FORMATS: dict[str, Format] = {
    "checkpoint.safetensors": Format(
        "checkpoint.safetensors",
        make_training,
        train,
        (RunError,),
        _JSON,
        forge_checkpoint,
    ),
    "checkpoint.safetensors of cells": Format(
        "checkpoint.safetensors",
        make_cells,
        read_cells,
        (RunError,),
        _JSON,
        forge_checkpoint,
    ),
    "metrics.csv": Format(
        "metrics.csv", make_training, train, (RunError,), _CSV, forge_table
    ),
    "history.csv": Format(
        "history.csv", make_training, train, (RunError,), _CSV, forge_table
    ),
    "config.json": Format(
        "config.json", make_training, train, (RunError,), _JSON, forge_json
    ),
    "usage.json": Format(
        "usage.json", make_usage, read_usage, (), _JSON, forge_json, is_usage
    ),
    "report.json": Format(
        "report.json",
        make_report,
        read_report,
        (RunError,),
        _JSON,
        forge_json,
        is_report,
    ),
    "IDX": Format(
        _IMAGES,
        make_images,
        read_images,
        (image_files.ImageFileError,),
        (),
        forge_idx,
        is_images,
    ),
    "IDX.gz": Format(
        f"{_IMAGES}.gz",
        make_gzipped,
        read_images,
        (image_files.ImageFileError,),
        (b"\x1f\x8b", b"\x1f\x8b\x08\x1f"),
        forge_gzip,
        is_gzipped,
    ),
    "npy": Format(
        "samples.npy",
        make_array,
        read_array,
        (FileError, OSError),
        _NPY,
        forge_npy,
        is_array,
        "--noise-std must be",
    ),
    "npy of labels": Format(
        "labels.npy",
        make_labels,
        read_labels,
        (FileError, OSError),
        _NPY,
        forge_npy,
        is_labels,
        "labels must be",
    ),
}

# -- mutations of any file ----------------------------------------------------------


def flip(data: bytes, rng: Rng) -> bytes:
    """One to four bits."""
    changed = bytearray(data)
    for at in rng.integers(len(data), size=rng.integers(1, 5)):
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def block(data: bytes, rng: Rng) -> tuple[int, int]:
    """A part of the data that is not empty, short as often as long."""
    start = int(rng.integers(len(data)))
    most = min(len(data) - start, int(2 ** rng.integers(1, 12)))
    return start, start + int(rng.integers(1, most + 1))


def truncate(data: bytes, rng: Rng) -> bytes:
    return data[: rng.integers(len(data))]


def insert(data: bytes, rng: Rng) -> bytes:
    at = int(rng.integers(len(data) + 1))
    return data[:at] + rng.bytes(int(2 ** rng.integers(0, 8))) + data[at:]


def delete(data: bytes, rng: Rng) -> bytes:
    start, stop = block(data, rng)
    return data[:start] + data[stop:]


def duplicate(data: bytes, rng: Rng) -> bytes:
    start, stop = block(data, rng)
    return data[:stop] + data[start:]


def blank(data: bytes, rng: Rng) -> bytes:
    """A block of zeros, as of a disk that never wrote it."""
    start, stop = block(data, rng)
    return data[:start] + bytes(stop - start) + data[stop:]


def exchange(data: bytes, rng: Rng) -> bytes:
    """Two halves in the wrong order."""
    at = int(rng.integers(len(data)))
    return data[at:] + data[:at]


def append(data: bytes, rng: Rng) -> bytes:
    tails = [b"\0", b"\n", b" ", b"\0" * 4096, data, b"\x1a", b"\n#", b"PK\3\4"]
    return data + pick(rng, tails)


def prepend(data: bytes, rng: Rng) -> bytes:
    heads = [b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\n", b" ", b"\x1f\x8b", b"PK\3\4"]
    return pick(rng, heads) + data


def other_line_ends(data: bytes, rng: Rng) -> bytes:
    return data.replace(b"\n", pick(rng, [b"\r\n", b"\r", b"\n\n"]))


def invalid_text(data: bytes, rng: Rng) -> bytes:
    at = int(rng.integers(len(data)))
    bad = pick(rng, [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\0", b"\x80"])
    return data[:at] + bad + data[at + int(rng.integers(2)) :]


def empty(data: bytes, rng: Rng) -> bytes:
    return b""


OF_BYTES: tuple[Callable[[bytes, Rng], bytes], ...] = (
    *(flip, flip, truncate, insert, delete, duplicate, blank, exchange, append),
    *(prepend, other_line_ends, invalid_text, empty),
)
# In place of the file: what reads them must neither wait nor read without end.
IN_PLACE = (
    *("missing", "folder", "loop", "dangling link", "pipe", "/dev/zero", "/dev/null"),
    *("another format",),
)


def mutate(path: Path, kind: Format, rng: Rng) -> tuple[str, bytes | None]:
    """Mutates a file; what was done, and its bytes if it is still a file."""
    data = path.read_bytes()
    draw = int(rng.integers(24))
    if draw == 0:
        name = pick(rng, IN_PLACE)
        return name, replace_file(path, name, rng)
    if draw < 9 and kind.forge is not None:
        name, changed = "forged", kind.forge(data, rng)
    elif draw < 12 and kind.tokens:
        at = int(rng.integers(len(data)))
        token = pick(rng, kind.tokens)
        over = at + len(token) * int(rng.integers(2))
        name, changed = "token", data[:at] + token + data[over:]
    else:
        change = pick(rng, OF_BYTES)
        name, changed = change.__name__, change(data, rng)
    if rng.integers(10) == 0 and changed:
        name, changed = f"{name} and flip", flip(changed, rng)
    path.write_bytes(changed)
    return name, changed


def replace_file(path: Path, name: str, rng: Rng) -> bytes | None:
    """Puts something else in place of a file; its bytes where it is a file again."""
    path.unlink()
    match name:
        case "missing":
            pass
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case "dangling link":
            path.symlink_to("nowhere")
        case "pipe":
            os.mkfifo(path)
        case "another format":
            others = [p for p in path.parent.iterdir() if p.is_file()]
            data = pick(rng, others).read_bytes() if others else b"PK"
            path.write_bytes(data)
            return data
        case device:
            path.symlink_to(device)
    return None


# -- judgement ----------------------------------------------------------------------


def judged(kind: Format, path: Path, sound: Any, data: bytes | None) -> str:
    """The outcome of reading a mutated folder; what is wrong begins with FAILURE."""
    try:
        with within_limits():
            found = kind.read(path)
    except kind.errors as error:
        words = str(error)
        if isinstance(error, OSError):
            words = f"{error.filename}: {error.strerror}"
        # A run is known by its folder, an array or images by the file.
        file = kind.file.removesuffix(".gz")
        place = file if kind.errors != (RunError,) else path.name
        if place not in words:
            return f"FAILURE: does not name the file: {error!r}"
        return "refused"
    except (ValueError, TypeError) as error:
        if kind.argument and str(error).startswith(kind.argument):
            return "refused"
        return f"FAILURE: {type(error).__name__}: {str(error)[:300]}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"FAILURE: {type(error).__name__}: {str(error)[:300]}"
    if CANARY.exists():
        CANARY.rmdir()
        return "FAILURE: a command of the file was run"
    if canonical(found) == canonical(sound):
        return "same"
    if kind.judge is None:
        return f"FAILURE: other numbers, unnoticed: {str(found)[:300]}"
    try:
        if kind.judge(found, data or b""):
            return "other"
    except Exception as error:
        return f"FAILURE: read, though: {error!r}"
    return f"FAILURE: read as something else: {str(found)[:300]}"


def canonical(found: Any) -> str:
    """What was read, whatever the order of its names."""
    return json.dumps(found, sort_keys=True, default=repr)


@contextlib.contextmanager
def within_limits() -> Iterator[None]:
    """Ends a case that waits or grows; kills the process where Python cannot."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    faulthandler.dump_traceback_later(6 * SECONDS, exit=True, file=sys.__stderr__)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def limit_memory() -> None:
    """Leaves the process what it holds now and a little more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run(name: str, count: int, seed: int, scratch: Path) -> dict[str, Any]:
    """Outcomes of so many mutations of a format, with the failures themselves."""
    kind = FORMATS[name]
    sound_folder = scratch / "sound"
    kind.make(sound_folder)
    copy = scratch / "read"
    shutil.copytree(sound_folder, copy)
    sound = kind.read(copy)
    shutil.rmtree(copy)
    outcomes: collections.Counter[str] = collections.Counter()
    failures = []
    for number in range(count):
        rng = np.random.default_rng([seed, list(FORMATS).index(name), number])
        path = scratch / f"folder-{number}"
        shutil.copytree(sound_folder, path)
        what, data = mutate(path / kind.file, kind, rng)
        outcome = judged(kind, path, sound, data)
        if outcome.startswith("FAILURE"):
            failures.append(f"{number} ({what}): {outcome}")
            outcome = "failed"
        outcomes[outcome] += 1
        shutil.rmtree(path)
    shutil.rmtree(sound_folder)
    return {"outcomes": outcomes, "failures": failures}


def main() -> int:
    """Runs all formats, or those that are named; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--count", type=int, default=1000, help="of each (1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    # What is loaded late, on first use, would count as a case's own memory.
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    os.fsync = lambda _: None  # nothing here has to outlive a power cut
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.formats or FORMATS:
            if not found:
                run(name, 1, 0, Path(scratch))
                limit_memory()
            found[name] = run(name, options.count, options.seed, Path(scratch))
            if not options.json:
                told = sorted(found[name]["outcomes"].items())
                print(f"{name:<33}", *(f"{k} {n:>5} " for k, n in told), flush=True)
                for failure in found[name]["failures"]:
                    print(f"    {failure}", flush=True)
    if options.json:
        print(json.dumps(found))
    return int(any(one["failures"] for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
