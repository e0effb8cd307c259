"""Data sets of the papers, as plain NumPy arrays.

Inputs are float32, labels int64 starting at 0. Nothing is downloaded and no file is
read: what can be generated is generated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from noisyflow._checks import as_int, as_real, as_seed

# Keeps a split apart from data that its user draws from default_rng of the same seed.
_SPLIT_STREAM = 2
_SPIRAL_STREAM = 3

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
    """
    num_classes = as_int("num_classes", num_classes, at_least=1)
    num_per_class = as_int("num_per_class", num_per_class, at_least=2)
    if as_real("jitter", jitter) < 0:
        raise ValueError(f"jitter must be 0 or more, got {jitter}")
    sequence = np.random.SeedSequence(as_seed(seed), spawn_key=(_SPIRAL_STREAM,))
    generator = np.random.default_rng(sequence)
    labels = np.repeat(np.arange(num_classes), num_per_class)
    radii = np.tile(np.linspace(0, 1, num_per_class), num_classes)
    angles = 4 * (labels + radii) + jitter * generator.standard_normal(len(labels))
    inputs = radii[:, None] * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return Dataset(inputs.astype(np.float32), labels.astype(np.int64))


def split(
    dataset: Dataset, *, train_share: float = 0.8, seed: int = 0
) -> tuple[Dataset, Dataset]:
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
        Train and test part: 3277 and 819 inputs for `szt()` at the default share.

    Raises
    ------
    ValueError
        If a part would be empty or `seed` is out of range.
    TypeError
        If an argument has the wrong type.
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
        Dataset(dataset.inputs[train], dataset.labels[train]),
        Dataset(dataset.inputs[test], dataset.labels[test]),
    )
