"""IDX files, MNIST's folder and torch data sets, sound and spoilt.

All files are written here, byte by byte as the format says; the real digits are looked
at where they are.
"""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noisyflow.datasets import (
    ImageDataset,
    ImageFileError,
    digits,
    from_torch,
    mnist,
    split,
)
from noisyflow.image_files import read_idx, read_mnist

REAL = Path(__file__).parents[2] / "shared" / "data"
NAMES = {
    part + kind: f"{part}-{name}"
    for part in ("train", "t10k")
    for kind, name in (("images", "images-idx3-ubyte"), ("labels", "labels-idx1-ubyte"))
}


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    """The bytes of an IDX file."""
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, kind, values.ndim]) + sizes + values.tobytes()


def pictures(count: int, height: int = 3, width: int = 5) -> np.ndarray:
    return (
        (np.arange(count * height * width) % 251)
        .astype("u1")
        .reshape(count, height, width)
    )


def labels(count: int) -> np.ndarray:
    return (np.arange(count) % 10).astype("u1")


def write_mnist(folder: Path, ending: str = "") -> Path:
    """A folder with 20 images to train with and 7 to test with."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 20), ("t10k", 7)):
        for kind, values in (("images", pictures(count)), ("labels", labels(count))):
            data = idx(values)
            path = folder / (NAMES[part + kind] + ending)
            path.write_bytes(gzip.compress(data) if ending else data)
    return folder


def complaint(path: Path, read: Any = read_idx) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(ImageFileError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


# --- Sound files


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(8, "u1"), (9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")],
)
def test_values_of_every_type_come_back(
    tmp_path: Path, kind: int, dtype: str, pack: Any
) -> None:
    values = np.array([[1, 2, 3], [100, 0, 7]], dtype)
    (tmp_path / "file").write_bytes(pack(idx(values, kind)))
    found = read_idx(tmp_path / "file")
    np.testing.assert_array_equal(found, values)
    assert found.dtype.isnative
    assert found.dtype.itemsize == values.dtype.itemsize


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "MNIST/raw"])
def test_mnist_is_found_plain_or_gzipped_and_where_torchvision_puts_it(
    tmp_path: Path, ending: str, below: str
) -> None:
    write_mnist(tmp_path / below, ending)
    train, test, is_split = mnist(tmp_path)
    assert not is_split
    assert (train.shape, test.shape) == ((1, 3, 5), (1, 3, 5))
    np.testing.assert_array_equal(train.images[:, 0] * np.float32(255), pictures(20))
    np.testing.assert_array_equal(test.labels, labels(7))


def test_without_training_files_the_others_are_split(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for kind in ("images", "labels"):
        (tmp_path / NAMES[f"train{kind}"]).unlink()
    first, again, other = (mnist(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert first.is_split
    assert (len(first.train), len(first.test)) == (6, 1)
    rows = np.concatenate([first.train.inputs, first.test.inputs])
    np.testing.assert_array_equal(
        np.sort(rows[:, 0] * np.float32(255)), np.sort(pictures(7)[:, 0, 0])
    )
    np.testing.assert_array_equal(first.train.inputs, again.train.inputs)
    assert not np.array_equal(first.train.inputs, other.train.inputs)


def test_the_real_digits_are_those_known() -> None:
    if not (REAL / "t10k-images-idx3-ubyte.gz").is_file():
        pytest.skip("the MNIST test images are not beside the repository")
    ((name, (images, found)),) = read_mnist(REAL).items()
    assert (name, images.shape) == ("t10k", (10_000, 28, 28))
    # How often each digit occurs, as published; the first is a seven.
    assert np.bincount(found).tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    assert found[0] == 7
    train, test, is_split = mnist(REAL)
    assert (len(train), len(test), is_split) == (8000, 2000, True)


def test_the_digits_are_those_of_scikit_learn() -> None:
    pytest.importorskip("sklearn.datasets")
    found = digits()
    assert (found.inputs.shape, found.shape) == ((1797, 64), (1, 8, 8))
    assert found.inputs.max() == 1
    # As in the description that scikit-learn has of them.
    assert np.bincount(found.labels).tolist() == [
        *(178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
    ]


def test_parts_of_images_are_images() -> None:
    whole = ImageDataset(np.ones((10, 6), "f"), np.arange(10), (1, 2, 3))
    train, test = split(whole)
    assert isinstance(train, ImageDataset)
    assert test.images.shape == (2, 1, 2, 3)
    with pytest.raises(ValueError, match="shape must be channels, height and width"):
        ImageDataset(np.ones((10, 6), "f"), np.arange(10), (1, 2, 2))


# --- Files that are missing


def test_missing_files_are_named(tmp_path: Path) -> None:
    text = complaint(tmp_path, mnist)
    assert all(name in text for name in NAMES.values())
    assert "MNIST/raw" in text
    write_mnist(tmp_path)
    (tmp_path / NAMES["trainlabels"]).unlink()
    text = complaint(tmp_path, mnist)
    assert f"lacks {NAMES['trainlabels']}: looked for" in text
    assert NAMES["trainimages"] not in text


def test_a_path_of_the_wrong_kind_is_told(tmp_path: Path) -> None:
    assert "is missing" in complaint(tmp_path / "none", mnist)
    assert "is missing" in complaint(tmp_path / "none")
    assert "is not a file" in complaint(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    assert "is not a folder" in complaint(tmp_path / "file", mnist)
    write_mnist(tmp_path)
    (tmp_path / NAMES["t10kimages"]).unlink()
    (tmp_path / NAMES["t10kimages"]).mkdir()
    with pytest.raises(ImageFileError, match="t10k-images-idx3-ubyte is not a file"):
        mnist(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in complaint(tmp_path / "pipe")


# --- Files that are damaged


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins with the bytes of an empty file; IDX files of images begin with"),
        (b"<html>", "begins with the bytes 3c 68 74 6d; IDX"),
        (b"\0\0\x07\x03", "begins with the bytes 00 00 07 03; IDX"),
        (idx(pictures(2))[:9], "ends after 9 bytes, within its header of 16"),
        (
            idx(pictures(2))[:-1],
            "2 x 3 x 5 values, 30 bytes after its header, and holds 29",
        ),
        (idx(pictures(2)) + b"!", "30 bytes after its header, and holds 31"),
        (bytes([0, 0, 8, 99]) + 99 * b"\0\0\0\1" + b"!", "which no array can have"),
        (bytes([0, 0, 8, 4]) + bytes(4) + 12 * b"\xff", "which no array can have"),
    ],
)
def test_what_is_no_idx_file_is_refused(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "file").write_bytes(data)
    assert message in complaint(tmp_path / "file")


def spoilt_sum(data: bytes) -> bytes:
    return data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(idx(pictures(20)))[:-9], "its gzip stream has no end"),
        (spoilt_sum(gzip.compress(idx(pictures(20)))), "not sound gzip: CRC check"),
        (gzip.compress(idx(pictures(20))) + b"!!", "not sound gzip: Not a gzipped"),
        (b"\x1f\x8b\x08" + bytes(40), "is not sound gzip: "),
        (
            gzip.compress(idx(pictures(20))[:-5]),
            "promises 20 x 3 x 5 values, 300 bytes, and it holds 295",
        ),
        (gzip.compress(idx(pictures(20)) + b"!"), "more than the 20 x 3 x 5 values"),
    ],
    ids=["cut", "sum", "garbage", "stream", "short", "long"],
)
def test_gzip_that_is_damaged_is_refused(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "file.gz").write_bytes(data)
    assert message in complaint(tmp_path / "file.gz")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_promise_beyond_the_file_is_refused_before_it_is_allocated(
    tmp_path: Path, pack: Any
) -> None:
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**20, 2**20, 2**20)
    (tmp_path / "huge").write_bytes(pack(header + bytes(100)))
    assert f"{2**60} bytes; at most {2**28} are read" in complaint(tmp_path / "huge")
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**9, 2**9, 2**10)
    (tmp_path / "large").write_bytes(pack(header + bytes(100)))
    assert f"{2**28} bytes after its header, and holds" in complaint(tmp_path / "large")


def test_a_gzip_that_unpacks_to_more_is_not_unpacked_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = idx(pictures(2)) + bytes(2**26)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(data))
    unpacked = []
    read = gzip.GzipFile.read

    def counted(file: gzip.GzipFile, size: int | None = -1) -> bytes:
        unpacked.append(size)
        return read(file, size)

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    assert "holds more than the 2 x 3 x 5" in complaint(tmp_path / "bomb.gz")
    assert sum(unpacked) == len(idx(pictures(2))) + 1


def test_pixels_take_the_memory_of_their_floats_and_little_more(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    many = np.zeros((300_000, 3, 5), "u1")
    for kind, values in (("images", many), ("labels", labels(300_000))):
        (tmp_path / NAMES[f"train{kind}"]).write_bytes(idx(values))
    tracemalloc.start()
    try:
        found = mnist(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.train.inputs.nbytes == 4 * many.nbytes
    # A byte, four of the float and one that tells whether it is finite, for each pixel;
    # nine for each label; a piece at a time where a file is read.
    assert peak < (1 + 4 + 1) * many.nbytes + 9 * len(many) + 2**22


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "t10kimages",
            labels(7),
            "images are 3 of uint8: these look like labels",
        ),
        (
            "t10klabels",
            pictures(7),
            "labels are 1 of uint8: these look like images",
        ),
        ("t10klabels", labels(6), "holds 7 images and"),
        ("t10klabels", labels(7) + 5, "holds the label 10 for image 5; labels are 0"),
        ("t10kimages", pictures(0), "holds no images: 0 x 3 x 5"),
        ("t10kimages", pictures(7, 5, 3), "images of 3 x 5 pixels to train with and"),
    ],
)
def test_files_that_do_not_fit_one_another_are_refused(
    tmp_path: Path, name: str, values: np.ndarray, message: str
) -> None:
    write_mnist(tmp_path)
    (tmp_path / NAMES[name]).write_bytes(idx(values))
    assert message in complaint(tmp_path, mnist)


def test_values_of_another_type_are_told_before_their_number(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / NAMES["t10kimages"]
    path.write_bytes(idx(pictures(7), kind=13))  # bytes, and a header of floats
    text = complaint(tmp_path, mnist)
    assert text.endswith("holds 3 dimensions of float32; images are 3 of uint8")


def test_images_and_labels_are_read_from_one_place(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    for kind, values in (("images", 1 + pictures(7)), ("labels", labels(7)[::-1])):
        (tmp_path / NAMES[f"t10k{kind}"]).write_bytes(idx(values))
    # Two of the test files are here, all four there.
    found = mnist(tmp_path)
    np.testing.assert_array_equal(found.test.labels, labels(7))
    np.testing.assert_array_equal(found.test.images[:, 0] * 255, pictures(7))
    assert len(found.train) == 20
    # Then two here and two there: the folder itself goes first, and is split.
    for kind in ("images", "labels"):
        (tmp_path / "MNIST" / "raw" / NAMES[f"train{kind}"]).unlink()
    found = mnist(tmp_path)
    assert found.is_split
    both = np.concatenate([found.train.inputs, found.test.inputs])
    assert sorted(both[:, 0] * 255) == sorted(1 + pictures(7)[:, 0, 0])
    # Images here and labels there are no pair.
    (tmp_path / NAMES["t10klabels"]).unlink()
    (tmp_path / "MNIST" / "raw" / NAMES["t10kimages"]).unlink()
    assert f"lacks {NAMES['trainimages']}" in complaint(tmp_path, mnist)


# --- Torch data sets


def test_a_torch_data_set_of_tensors_is_read() -> None:
    images = torch.rand(6, 2, 3, 4)
    found = from_torch(torch.utils.data.TensorDataset(images, torch.arange(6)))
    assert found.shape == (2, 3, 4)
    np.testing.assert_array_equal(found.images, images.numpy())
    np.testing.assert_array_equal(found.labels, np.arange(6))


def test_pictures_of_eight_bits_are_scaled_and_their_channels_put_first() -> None:
    colours = np.arange(2 * 3 * 3, dtype="u1").reshape(2, 3, 3)
    found = from_torch([(colours, 1), (colours, 0)])
    assert found.shape == (3, 2, 3)
    np.testing.assert_array_equal(
        found.images[0] * np.float32(255), np.moveaxis(colours, 2, 0)
    )
    assert from_torch([(colours[0], 1)]).shape == (1, 3, 3)


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (iter([]), TypeError, "must have a length"),
        ([], ValueError, "must hold images, got none"),
        ([np.ones((2, 2))], TypeError, "pairs of image and label, got ndarray at 0"),
        (
            [(np.ones((2, 2)), 0), (np.ones((2, 3)), 0)],
            ValueError,
            r"got \(1, 2, 2\) first and \(1, 2, 3\) at 1",
        ),
        ([(np.ones((2, 2), int), 0)], ValueError, "image 0 must hold floats or 8 bits"),
        (
            [(np.ones(2), 0)],
            ValueError,
            r"image 0 must have height .* got shape \(2,\)",
        ),
        ([(np.full((2, 2), np.nan), 0)], ValueError, "must be finite"),
        ([(np.ones((2, 2)), -1)], ValueError, "label 0 must be at least 0, got -1"),
        ([(np.ones((2, 2)), 10_000)], ValueError, "label 0 must be at most 9999"),
        ([(np.ones((2, 2)), 0.5)], TypeError, "label 0 must be an integer"),
    ],
)
def test_what_is_no_data_set_of_images_is_refused(
    dataset: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        from_torch(dataset)
