"""Images and labels from files in the IDX format, that of MNIST, plain or gzipped.

A file is never trusted: what its header promises is compared with what the file can
hold before anything of that size is read, and a gzip stream is unpacked in small pieces
and never beyond the promise. Nothing is written or executed.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from noisyflow._checks import as_int
from noisyflow._files import as_path, open_regular

_GZIP = b"\x1f\x8b"
# What a gzipped byte can unpack to at most, in the deflate format.
_MOST_UNPACKED = 1032
# The type of a value by the third byte of a file; all are big-endian.
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PIECE_BYTES = 2**20
# Five times the largest file of MNIST, and what a small gzip may unpack to.
_MOST_BYTES = 2**28
_MOST_LABEL = 9

TRAIN, TEST = "train", "t10k"
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


class ImageFileError(Exception):
    """A file that holds no such images or labels, and why, in one line."""


@dataclass(frozen=True)
class _Kind:
    """What a file must hold: bytes of so many dimensions."""

    name: str
    num_dimensions: int

    def check(self, path: Path, kind: np.dtype[Any], num_dimensions: int) -> None:
        """Raises ImageFileError if a header states something else."""
        if kind == np.uint8 and num_dimensions == self.num_dimensions:
            return
        text = (
            f"{path} holds {num_dimensions} dimensions of {kind.name}; {self.name} are "
            f"{self.num_dimensions} of uint8"
        )
        for other in (_OF_IMAGES, _OF_LABELS):
            if kind == np.uint8 and num_dimensions == other.num_dimensions:
                text += f": these look like {other.name}"
        raise ImageFileError(text)


_OF_IMAGES, _OF_LABELS = _Kind("images", 3), _Kind("labels", 1)


def read_idx(path: str | Path, *, max_bytes: int = _MOST_BYTES) -> NDArray[Any]:
    """The array in an IDX file, plain or gzipped, whatever its name ends in.

    Parameters
    ----------
    path : str or Path
        A file.
    max_bytes : int
        The largest array that is accepted.

    Returns
    -------
    array
        Of the shape and type that the header states, in native byte order.

    Raises
    ------
    ImageFileError
        If the file cannot be read, is not in the format, is damaged, or holds less or
        more than its header promises.

    Notes
    -----
    The format: two zero bytes, a byte for the type, one for the number k of dimensions,
    k sizes of four bytes, then the values; all big-endian.

    Examples
    --------
    >>> import tempfile
    >>> header = bytes([0, 0, 8, 1, 0, 0, 0, 3])  # bytes, one dimension, three of them
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels"
    ...     _ = path.write_bytes(header + bytes([5, 0, 4]))
    ...     read_idx(path).tolist()
    [5, 0, 4]
    """
    max_bytes = as_int("max_bytes", max_bytes, at_least=0)
    return _read(as_path("path", path), max_bytes)


def _read(path: Path, max_bytes: int, expected: _Kind | None = None) -> NDArray[Any]:
    """As `read_idx`, of the kind that is expected."""
    try:
        if not path.is_file():
            raise ImageFileError(
                f"{path} is {'not a file' if path.exists() else 'missing'}; it must be "
                "an IDX file"
            )
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            is_gzip = file.read(2) == _GZIP
            file.seek(0)
            if not is_gzip:
                return _array(file, path, size, max_bytes, expected, is_exact=True)
            with gzip.GzipFile(fileobj=file) as unpacked:
                most = size * _MOST_UNPACKED
                return _array(unpacked, path, most, max_bytes, expected)
    except EOFError as error:
        raise ImageFileError(
            f"{path} is cut short: its gzip stream has no end; copy it anew"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ImageFileError(
            f"{path} is not sound gzip: {error}; copy it anew"
        ) from error
    except OSError as error:
        raise ImageFileError(f"cannot read {path}: {error.strerror}") from error


def _array(
    file: BinaryIO | gzip.GzipFile,
    path: Path,
    most: int,
    max_bytes: int,
    expected: _Kind | None,
    *,
    is_exact: bool = False,
) -> NDArray[Any]:
    """What follows from the header on; `most` bytes are there, or fewer of a gzip."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES:
        raise ImageFileError(
            f"{path} begins with the bytes {magic.hex(' ') or 'of an empty file'}; IDX "
            "files of images begin with 00 00 08 03, of labels with 00 00 08 01"
        )
    kind, num_sizes = np.dtype(_TYPES[magic[2]]), magic[3]
    if expected is not None:
        expected.check(path, kind, num_sizes)
    header = file.read(4 * num_sizes)
    if len(header) < 4 * num_sizes:
        raise ImageFileError(
            f"{path} is cut short: it ends after {4 + len(header)} bytes, within its "
            f"header of {4 + 4 * num_sizes}"
        )
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
    promised = math.prod(shape) * kind.itemsize
    there = most - 4 - len(header)
    if promised > max_bytes:
        raise ImageFileError(
            f"{path} promises {_sizes(shape)} values, {promised} bytes; at most "
            f"{max_bytes} are read"
        )
    if promised > there or (is_exact and promised < there):
        raise ImageFileError(
            f"{path} promises {_sizes(shape)} values, {promised} bytes after its "
            f"header, and holds {'' if is_exact else 'at most '}{there}"
        )
    data = bytearray()
    while len(data) < promised:
        piece = file.read(min(_PIECE_BYTES, promised - len(data)))
        if not piece:
            raise ImageFileError(
                f"{path} is cut short: its header promises {_sizes(shape)} values, "
                f"{promised} bytes, and it holds {len(data)}"
            )
        data += piece
    if file.read(1):  # of gzip, this also checks the sum at its end
        raise ImageFileError(
            f"{path} holds more than the {_sizes(shape)} values, {promised} bytes, "
            "that its header promises"
        )
    try:
        values = np.frombuffer(data, kind).reshape(shape)
    except ValueError as error:  # too many dimensions, or a large size beside a zero
        raise ImageFileError(
            f"{path} promises {_sizes(shape)} values, which no array can have"
        ) from error
    return values.astype(kind.newbyteorder("="), copy=False)


def read_images(images: Path, labels: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pictures (m, height, width) and their labels (m,), both uint8.

    Parameters
    ----------
    images, labels : Path
        IDX files.

    Raises
    ------
    ImageFileError
        If a file is not what `read_idx` takes, if one has another type or number of
        dimensions, if there is no image or not one label for each, or if a label is not
        in 0 to 9.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     images, labels = Path(folder) / "images", Path(folder) / "labels"
    ...     shape = bytes([0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2])  # 1 x 2 x 2
    ...     pixels = bytes([0, 255, 255, 0])
    ...     _ = images.write_bytes(bytes([0, 0, 8, 3]) + shape + pixels)
    ...     _ = labels.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
    ...     pictures, classes = read_images(images, labels)
    >>> pictures.shape, classes.tolist()
    ((1, 2, 2), [7])
    """
    images, labels = as_path("images", images), as_path("labels", labels)
    pixels = _read(images, _MOST_BYTES, _OF_IMAGES)
    digits = _read(labels, _MOST_BYTES, _OF_LABELS)
    if pixels.size == 0:
        raise ImageFileError(f"{images} holds no images: {_sizes(pixels.shape)} values")
    if len(pixels) != len(digits):
        raise ImageFileError(
            f"{images} holds {len(pixels)} images and {labels} holds {len(digits)} "
            "labels; there must be one for each"
        )
    if digits.max() > _MOST_LABEL:
        at = int((digits > _MOST_LABEL).argmax())
        raise ImageFileError(
            f"{labels} holds the label {digits[at]} for image {at}; labels are 0 to "
            f"{_MOST_LABEL}"
        )
    return pixels, digits


def read_mnist(folder: str | Path) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """The parts of MNIST that a folder holds: `train` and `t10k`, or `t10k` alone.

    Parameters
    ----------
    folder : str or Path
        With the four files by their names, plain or with `.gz`, or with these in
        `MNIST/raw`, where torchvision puts them; all are read from the place that has
        more of them. A plain file goes before a gzipped one. Without any of the two
        training files the other two are enough.

    Returns
    -------
    dict of str to (images, labels)
        As of `read_images`.

    Raises
    ------
    ImageFileError
        If files are missing, or are not what `read_images` takes, or if the images of
        the two parts differ in size.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:  # empty: says what is missing
    ...     try:
    ...         read_mnist(folder)
    ...     except ImageFileError as error:
    ...         print(str(error).startswith(folder))
    True
    """
    folder = as_path("folder", folder)
    try:
        found = _found(folder)
    except OSError as error:
        raise ImageFileError(f"cannot read {folder}: {error.strerror}") from error
    missing = [name for name, path in found.items() if path is None]
    test_only = [f"{TRAIN}-{IMAGES}", f"{TRAIN}-{LABELS}"]
    if missing and missing != test_only:
        raise ImageFileError(
            f"{folder} lacks {', '.join(missing)}: looked for these, plain or with "
            ".gz, there and in MNIST/raw; all must be in one of the two"
        )
    parts = {}
    for part in (TRAIN, TEST):
        images, labels = (found[f"{part}-{kind}"] for kind in (IMAGES, LABELS))
        if images is not None and labels is not None:
            parts[part] = read_images(images, labels)
    sizes = {part: images.shape[1:] for part, (images, _) in parts.items()}
    if len(set(sizes.values())) > 1:
        raise ImageFileError(
            f"{folder} holds images of {_sizes(sizes[TRAIN])} pixels to train with and "
            f"of {_sizes(sizes[TEST])} to test with; they must be equal"
        )
    return parts


def _found(folder: Path) -> dict[str, Path | None]:
    """Where each of the four files is, or None."""
    if not folder.is_dir():
        raise ImageFileError(
            f"{folder} is {'not a folder' if folder.exists() else 'missing'}; it must "
            "be a folder with MNIST's IDX files"
        )
    names = [f"{part}-{kind}" for part in (TRAIN, TEST) for kind in (IMAGES, LABELS)]
    places = [
        {name: _plain_or_gzip(place / name) for name in names}
        for place in (folder, folder / "MNIST" / "raw")
    ]
    # All of one place: images of one data set do not fit the labels of another.
    return max(places, key=lambda place: len([*filter(None, place.values())]))


def _plain_or_gzip(path: Path) -> Path | None:
    """The file of this name or, without it, the one with `.gz`; None without both."""
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.exists():
            return candidate
    return None


def _sizes(shape: tuple[int, ...]) -> str:
    """A shape for people: 60000 x 28 x 28."""
    return " x ".join(str(size) for size in shape) or "1"
