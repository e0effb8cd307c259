"""Data sets of the papers, as plain NumPy arrays.

Inputs are float32, labels int64 starting at 0. Nothing is downloaded: what can be
generated is generated, the small digits come with scikit-learn, MNIST from files that
are there (image_files.py).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from noisyflow import image_files
from noisyflow._arrays import to_any_numpy
from noisyflow._checks import as_int, as_real, as_seed
from noisyflow.image_files import ImageFileError

__all__ = [
    "Dataset",
    "ImageDataset",
    "ImageFileError",
    "TrainTest",
    "check_learnable",
    "digits",
    "from_torch",
    "mnist",
    "spiral",
    "split",
    "szt",
]

# Keeps a split apart from data that its user draws from default_rng of the same seed.
_SPLIT_STREAM = 2
_SPIRAL_STREAM = 3
# Radians; an angle of more has no digits left within a turn, in float32.
_MOST_JITTER = 1e6
# Labels from elsewhere beyond it are no classes but something else.
_MOST_CLASSES = 10_000

# The twelve input bits of the SZT task sit on the vertices of an icosahedron.
# Bit 0 is the most significant bit of the pattern's number, the first input column.
# fmt: off
_ICOSAHEDRON_EDGES = (
    (0, 1), (0, 3), (0, 5), (0, 10), (0, 11), (1, 2), (1, 3), (1, 4), (1, 11), (2, 3),
    (2, 4), (2, 8), (2, 9), (3, 8), (3, 10), (4, 6), (4, 9), (4, 11), (5, 6), (5, 7),
    (5, 10), (5, 11), (6, 7), (6, 9), (6, 11), (7, 8), (7, 9), (7, 10), (8, 9), (8, 10),
)
_ICOSAHEDRON_ANTIPODES = ((0, 9), (1, 7), (2, 5), (3, 6), (4, 10), (8, 11))
# fmt: on


@dataclass(frozen=True)
class Dataset:
    """Inputs and their class labels.

    Parameters
    ----------
    inputs : (m, d) float32 array
        One input per row. Finite.
    labels : (m,) int64 array
        The class of each input, 0, 1, ...

    Raises
    ------
    ValueError
        If `inputs` is not a matrix, is empty or holds NaN or infinity, if there is not
        one label per input or if a label is negative.
    TypeError
        If `inputs` is not a float32 array or `labels` not an int64 one.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        for name in ("inputs", "labels"):
            found: object = getattr(self, name)
            if not isinstance(found, np.ndarray):
                raise TypeError(
                    f"{name} must be a NumPy array, got {type(found).__name__}"
                )
        if self.inputs.dtype != np.float32:
            raise TypeError(f"inputs must be float32, got {self.inputs.dtype}")
        if self.labels.dtype != np.int64:
            raise TypeError(f"labels must be int64, got {self.labels.dtype}")
        if self.inputs.ndim != 2 or self.inputs.size == 0:
            raise ValueError(
                "inputs must be a non-empty matrix of shape (m, d), "
                f"got shape {self.inputs.shape}"
            )
        if not np.isfinite(self.inputs).all():
            raise ValueError("inputs must be finite, got NaN or infinity")
        if self.labels.shape != (len(self.inputs),):
            raise ValueError(
                f"labels must hold one class per input, shape ({len(self.inputs)},), "
                f"got shape {self.labels.shape}"
            )
        if self.labels.min() < 0:
            raise ValueError(f"labels must be 0 or more, got {self.labels.min()}")

    def __len__(self) -> int:
        """Number of inputs, m."""
        return len(self.inputs)


@dataclass(frozen=True)
class ImageDataset(Dataset):
    """A data set whose inputs are images, flattened.

    Parameters
    ----------
    inputs, labels
        As of `Dataset`; pixels are ordered by channel, row, column.
    shape : (int, int, int)
        Channels, height and width, whose product is d.

    Raises
    ------
    TypeError, ValueError
        As `Dataset`, or if `shape` does not fit the inputs.
    """

    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.shape, tuple | list):
            raise TypeError(
                "shape must be channels, height and width, got "
                f"{type(self.shape).__name__}"
            )
        shape = tuple(as_int("shape", size, at_least=1) for size in self.shape)
        if len(shape) != 3 or math.prod(shape) != self.inputs.shape[1]:
            raise ValueError(
                "shape must be channels, height and width of "
                f"{self.inputs.shape[1]} values, got {shape}"
            )
        object.__setattr__(self, "shape", shape)

    @property
    def images(self) -> NDArray[np.float32]:
        """The inputs as (m, channels, height, width); a view."""
        return self.inputs.reshape(-1, *self.shape)


class TrainTest(NamedTuple):
    """Two parts of a data set of images.

    Parameters
    ----------
    train, test : ImageDataset
        Of the same shape.
    is_split : bool
        Whether the parts were drawn here, from what came as one.
    """

    train: ImageDataset
    test: ImageDataset
    is_split: bool


_Data = TypeVar("_Data", bound=Dataset)


def szt() -> Dataset:
    """The 4096 binary patterns of Shwartz-Ziv and Tishby with their labels.

    Twelve bits on the vertices of an icosahedron; with k ones, e edges whose ends are
    both one and a antipodal pairs that are both one,

        label = 1 if 30 k - 3 k^2 + 8 e - 4 a >= 120, else 0.

    Returns
    -------
    Dataset
        `inputs` (4096, 12), zeros and ones, row i the binary digits of i with the most
        significant first; `labels` (4096,), 2118 of them 1.

    Notes
    -----
    The rule was found for this package and gives all 4096 published labels; their
    sha256 is a test. Task: Shwartz-Ziv and Tishby (2017), "Opening the Black Box of
    Deep Neural Networks via Information".

    Examples
    --------
    >>> data = szt()
    >>> data.inputs.shape, sorted(set(data.labels.tolist()))
    ((4096, 12), [0, 1])
    """
    patterns = (np.arange(4096)[:, None] >> np.arange(11, -1, -1)) & 1
    ones = patterns.sum(axis=1)
    edges = sum(patterns[:, i] * patterns[:, j] for i, j in _ICOSAHEDRON_EDGES)
    antipodes = sum(patterns[:, i] * patterns[:, j] for i, j in _ICOSAHEDRON_ANTIPODES)
    score = 30 * ones - 3 * ones**2 + 8 * edges - 4 * antipodes
    return Dataset(patterns.astype(np.float32), (score >= 120).astype(np.int64))


def spiral(
    *,
    num_classes: int = 3,
    num_per_class: int = 100,
    jitter: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Points in the plane on as many spiral arms as there are classes.

    Point number i of class c has radius r = i / (num_per_class - 1) and the angle
    4 (c + r) plus `jitter` times a standard normal number, from the vertical axis:
    inputs r (sin, cos).

    Parameters
    ----------
    num_classes : int
        Arms, at least 1.
    num_per_class : int
        Points on every arm, at least 2.
    jitter : float
        Standard deviation of the angle, in radians; 0 or more.
    seed : int
        Same seed, same points. In [0, 2**64).

    Returns
    -------
    Dataset
        `inputs` (num_classes num_per_class, 2) within the unit circle, class by class.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or range.

    Notes
    -----
    The usual generator of this picture (the course CS231n). Goldfeld et al. (2018),
    arXiv 1810.11589, figure 6, show such a set of three classes without naming theirs.

    Examples
    --------
    >>> data = spiral(num_classes=3, num_per_class=100)
    >>> data.inputs.shape, data.labels[[0, 100, 200]].tolist()
    ((300, 2), [0, 1, 2])
    """
    most = 2**31 - 1
    num_classes = as_int("num_classes", num_classes, at_least=1, at_most=most)
    num_per_class = as_int("num_per_class", num_per_class, at_least=2, at_most=most)
    jitter = as_real("jitter", jitter)
    if jitter < 0:
        raise ValueError(f"jitter must be 0 or more, got {jitter}")
    if jitter > _MOST_JITTER:
        raise ValueError(f"jitter must be at most {_MOST_JITTER:g}, got {jitter:g}")
    sequence = np.random.SeedSequence(as_seed(seed), spawn_key=(_SPIRAL_STREAM,))
    generator = np.random.default_rng(sequence)
    labels = np.repeat(np.arange(num_classes), num_per_class)
    radii = np.tile(np.linspace(0, 1, num_per_class), num_classes)
    angles = 4 * (labels + radii) + jitter * generator.standard_normal(len(labels))
    inputs = radii[:, None] * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return Dataset(inputs.astype(np.float32), labels.astype(np.int64))


def digits() -> ImageDataset:
    """The 1797 digits of 8 x 8 pixels that come with scikit-learn, in its order.

    Returns
    -------
    ImageDataset
        Pixels in [0, 1], ten classes.

    Raises
    ------
    ModuleNotFoundError
        If scikit-learn is not installed.

    Notes
    -----
    The test part of "Optical Recognition of Handwritten Digits", Alpaydin and Kaynak
    (1998).

    Examples
    --------
    >>> digits().inputs.shape
    (1797, 64)
    """
    sklearn = importlib.import_module("sklearn.datasets")  # optional
    pixels, labels = sklearn.load_digits(return_X_y=True)
    inputs = (np.asarray(pixels) / 16).astype(np.float32)
    return ImageDataset(inputs, np.asarray(labels, np.int64), (1, 8, 8))


def mnist(folder: str | Path, *, seed: int = 0) -> TrainTest:
    """MNIST, or what has its format, from the IDX files in a folder.

    Parameters
    ----------
    folder : str or Path
        With train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte
        and t10k-labels-idx1-ubyte, plain or with `.gz`, there or in `MNIST/raw` as
        torchvision has them. If both training files are missing, the others are split.
    seed : int
        Of that split; see `split`. In [0, 2**64).

    Returns
    -------
    TrainTest
        Pixels in [0, 1], labels 0 to 9.

    Raises
    ------
    ImageFileError
        If files are missing, damaged or of another kind: one line that names the file,
        what was seen and what would be right.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:  # empty: says what is missing
    ...     try:
    ...         mnist(folder)
    ...     except ImageFileError as error:
    ...         print(str(error).startswith(folder))
    True
    """
    seed = as_seed(seed)
    found = image_files.read_mnist(folder)
    # Each part's bytes go once its floats, four times as many, are there.
    parts = {name: _scaled(*found.pop(name)) for name in list(found)}
    test = parts[image_files.TEST]
    if image_files.TRAIN in parts:
        return TrainTest(parts[image_files.TRAIN], test, is_split=False)
    if len(test) < 3:  # four fifths of two are two
        raise ImageFileError(
            f"{folder} holds {len(test)} images; to split them takes three"
        )
    return TrainTest(*split(test, seed=seed), is_split=True)


def _scaled(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> ImageDataset:
    """Pictures of 8 bits, (m, height, width), with pixels in [0, 1]."""
    inputs = np.divide(pixels.reshape(len(pixels), -1), 255, dtype=np.float32)
    return ImageDataset(inputs, labels.astype(np.int64), (1, *pixels.shape[1:]))


def from_torch(dataset: Any) -> ImageDataset:
    """A torch data set of (image, label) pairs, all of them, in memory.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset or sequence
        Of known length, as those of torchvision are. An image is an array, a tensor or
        a PIL image: (height, width) or, of tensors, (channels, height, width), and
        otherwise (height, width, channels). A label is a whole number from 0.

    Returns
    -------
    ImageDataset
        Pixels of 8 bits are scaled to [0, 1], floats are taken as they are.

    Raises
    ------
    TypeError
        If `dataset` has no length, or holds no pairs of image and label.
    ValueError
        If it is empty, or if an image is not of the shape of the first, not finite or
        not of floats or 8 bits, or a label below 0 or above 9999.

    Examples
    --------
    >>> import torch
    >>> pictures = torch.rand(6, 1, 4, 4)
    >>> data = from_torch(list(zip(pictures, [0, 1, 2, 0, 1, 2])))
    >>> data.inputs.shape, data.labels.tolist()
    ((6, 16), [0, 1, 2, 0, 1, 2])
    """
    try:
        count = len(dataset)
    except TypeError:
        raise TypeError(
            "dataset must have a length, as torch's map-style data sets have, got "
            f"{type(dataset).__name__}"
        ) from None
    if count == 0:
        raise ValueError("dataset must hold images, got none")
    images, labels = [], np.empty(count, np.int64)
    for index, (image, label) in _pairs(dataset, count):
        images.append(_image(index, image))
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"dataset must hold images of one shape, got {images[0].shape} first "
                f"and {images[-1].shape} at {index}"
            )
        labels[index] = as_int(
            f"label {index}",
            to_any_numpy(f"label {index}", label)[()],
            at_least=0,
            at_most=_MOST_CLASSES - 1,
        )
    shape = images[0].shape
    inputs = np.stack(images).reshape(count, -1)
    return ImageDataset(inputs, labels, (shape[0], shape[1], shape[2]))


def _pairs(dataset: Any, count: int) -> Iterator[tuple[int, tuple[Any, Any]]]:
    """Index, image and label, one after another."""
    for index in range(count):
        pair = dataset[index]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(
                "dataset must hold pairs of image and label, got "
                f"{type(pair).__name__} at {index}"
            )
        yield index, (pair[0], pair[1])


def _image(index: int, image: Any) -> NDArray[np.float32]:
    """An image as float32 (channels, height, width)."""
    is_tensor = hasattr(image, "detach")
    pixels = to_any_numpy(f"image {index}", image)
    if pixels.dtype != np.uint8 and pixels.dtype.kind != "f":
        raise ValueError(
            f"image {index} must hold floats or 8 bits, got {pixels.dtype}; convert "
            "it, by torchvision's ToTensor for instance"
        )
    if pixels.ndim not in (2, 3) or pixels.size == 0:
        raise ValueError(
            f"image {index} must have height and width and may have channels, got "
            f"shape {pixels.shape}"
        )
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif not is_tensor:
        pixels = np.moveaxis(pixels, 2, 0)
    scale = np.float32(255 if pixels.dtype == np.uint8 else 1)
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
        values = (pixels / scale).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"image {index} must be finite in float32")
    return values


def check_learnable(train: Dataset, test: Dataset, *, num_train: int = 2) -> None:
    """Raises ValueError where inputs and labels leave nothing to learn.

    Parameters
    ----------
    train, test : Dataset
        What a network is trained and tested with.
    num_train : int
        The fewest inputs to train with.

    Raises
    ------
    ValueError
        If there are fewer inputs to train with, if their labels are all of one class,
        or if the inputs of a part are all equal: one line that says which.

    Examples
    --------
    >>> train, test = split(spiral(), seed=0)
    >>> check_learnable(train, test)  # nothing to complain of
    """
    for name, part in (("train", train), ("test", test)):
        if not isinstance(part, Dataset):
            raise TypeError(f"{name} must be a Dataset, got {type(part).__name__}")
    num_train = as_int("num_train", num_train, at_least=0)
    if len(train) < num_train:
        raise ValueError(
            f"there must be at least {num_train} inputs to train with, got {len(train)}"
        )
    for part, use in ((train, "train"), (test, "test")):
        if (part.inputs == part.inputs[0]).all():
            raise ValueError(
                f"the inputs to {use} with must differ; all of them, {len(part)}, are "
                "equal"
            )
    if (train.labels == train.labels[0]).all():
        raise ValueError(
            "the labels to train with must hold at least two classes; all of them, "
            f"{len(train)}, are {train.labels[0]}"
        )


def split(
    dataset: _Data, *, train_share: float = 0.8, seed: int = 0
) -> tuple[_Data, _Data]:
    """Two disjoint parts of a data set, for training and for testing, drawn at random.

    Parameters
    ----------
    dataset : Dataset
        What to split, m inputs.
    train_share : float
        Share of the inputs in the first part, between 0 and 1; rounded to whole inputs.
    seed : int
        Same seed, same split. In [0, 2**64).

    Returns
    -------
    (Dataset, Dataset)
        Train and test part, of the class of `dataset`: 3277 and 819 inputs for
        `szt()` at the default share.

    Raises
    ------
    ValueError
        If a part would be empty or `seed` is out of range.
    TypeError
        If an argument has the wrong type.

    Examples
    --------
    >>> train, test = split(spiral(), train_share=0.8, seed=0)
    >>> len(train.inputs), len(test.inputs)
    (240, 60)
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(f"dataset must be a Dataset, got {type(dataset).__name__}")
    train_share = as_real("train_share", train_share)
    num_train = round(train_share * len(dataset)) if 0 < train_share < 1 else 0
    if not 0 < num_train < len(dataset):
        raise ValueError(
            f"train_share must leave inputs in both parts, got {train_share} of "
            f"{len(dataset)} inputs"
        )
    sequence = np.random.SeedSequence(as_seed(seed), spawn_key=(_SPLIT_STREAM,))
    order = np.random.default_rng(sequence).permutation(len(dataset))
    train, test = order[:num_train], order[num_train:]
    return (
        replace(dataset, inputs=dataset.inputs[train], labels=dataset.labels[train]),
        replace(dataset, inputs=dataset.inputs[test], labels=dataset.labels[test]),
    )
