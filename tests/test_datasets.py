"""The data sets are the published ones."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from noisyflow.datasets import Dataset, check_learnable, spiral, split, szt


def test_szt_labels_are_the_published_ones() -> None:
    labels = szt().labels.astype(np.uint8).tobytes()
    assert hashlib.sha256(labels).hexdigest() == (
        "77732f16f85e91b49d3997196b56163b3bd362d8cf631468a8de3f986e88359f"
    )


def test_szt_inputs_count_in_binary_with_the_first_bit_most_significant() -> None:
    inputs = szt().inputs
    assert inputs.shape == (4096, 12)
    assert inputs.dtype == np.float32
    np.testing.assert_array_equal(
        inputs @ 2.0 ** np.arange(11, -1, -1), np.arange(4096)
    )


def test_split_is_a_partition_of_the_sizes_of_the_paper() -> None:
    data = szt()
    train, test = split(data, seed=3)
    assert (len(train), len(test)) == (3277, 819)
    rows = np.concatenate([train.inputs, test.inputs])
    labels = np.concatenate([train.labels, test.labels])
    order = np.lexsort(rows.T[::-1])
    np.testing.assert_array_equal(rows[order], data.inputs)
    np.testing.assert_array_equal(labels[order], data.labels)


def test_split_depends_on_the_seed_alone() -> None:
    first, again, other = (split(szt(), seed=seed)[0].inputs for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("train_share", [0.0, 1.0, -0.5, 1e-5, float("nan")])
def test_split_refuses_an_empty_part(train_share: float) -> None:
    with pytest.raises(ValueError, match="train_share must"):
        split(szt(), train_share=train_share)


@pytest.mark.parametrize(
    ("inputs", "labels", "error", "message"),
    [
        (np.ones((3, 2)), np.zeros(3, np.int64), TypeError, "inputs must be float32"),
        (np.ones((3, 2), "f"), np.zeros(3), TypeError, "labels must be int64"),
        (np.ones(3, "f"), np.zeros(3, np.int64), ValueError, r"got shape \(3,\)"),
        (np.ones((0, 2), "f"), np.zeros(0, np.int64), ValueError, "non-empty"),
        (np.full((3, 2), np.nan, "f"), np.zeros(3, np.int64), ValueError, "finite"),
        (np.ones((3, 2), "f"), np.zeros(2, np.int64), ValueError, "one class per"),
        (np.ones((3, 2), "f"), np.full(3, -1), ValueError, "labels must be 0 or more"),
        ([[1.0]], np.zeros(1, np.int64), TypeError, "inputs must be a NumPy array"),
        (np.ones((3, 2), "f"), None, TypeError, "labels must be a NumPy array"),
    ],
)
def test_dataset_names_what_is_wrong(
    inputs: np.ndarray, labels: np.ndarray, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Dataset(inputs, labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": None}, "seed must be an integer, got NoneType"),
        ({"seed": 1.5}, "seed must be an integer, got float"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"train_share": "a"}, "train_share must be a real number, got str"),
        ({"dataset": np.zeros((3, 2))}, "dataset must be a Dataset, got ndarray"),
    ],
)
def test_split_names_what_is_wrong(arguments: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        split(**{"dataset": szt()} | arguments)


def test_split_does_not_follow_a_users_generator_of_the_same_seed() -> None:
    order = np.random.default_rng(3).permutation(4096)[:3277]
    assert not np.array_equal(split(szt(), seed=3)[0].inputs, szt().inputs[order])


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            0 * spiral().inputs,
            spiral().inputs,
            "to train with must differ; all",
        ),
        (
            spiral().inputs,
            0 * spiral().inputs + 1,
            "to test with must differ; all",
        ),
        (
            spiral().inputs[:100],
            spiral().inputs,
            "two classes; all .*, 100, are 0$",
        ),
        (
            spiral().inputs[:31],
            spiral().inputs,
            "at least 32 .* train with, got 31",
        ),
    ],
)
def test_what_leaves_nothing_to_learn_is_named(
    train: np.ndarray, test: np.ndarray, message: str
) -> None:
    parts = [Dataset(part, spiral().labels[: len(part)]) for part in (train, test)]
    with pytest.raises(ValueError, match=message):
        check_learnable(*parts, num_train=32)


def test_parts_of_a_task_can_be_learned() -> None:
    check_learnable(*split(szt()), num_train=3277)


def test_spiral_arms_wind_from_the_center_to_the_unit_circle() -> None:
    """Without jitter: radius r at the angle 4 (c + r), from the vertical axis."""
    data = spiral(num_classes=3, num_per_class=5, jitter=0.0)
    assert data.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    radius = np.hypot(*data.inputs.T).reshape(3, 5)
    np.testing.assert_allclose(radius, np.tile([0, 0.25, 0.5, 0.75, 1], (3, 1)))
    ends = data.inputs.reshape(3, 5, 2)[:, -1]
    expected = [(np.sin(4 * (c + 1)), np.cos(4 * (c + 1))) for c in range(3)]
    np.testing.assert_allclose(ends, expected, atol=1e-6)


def test_spiral_has_the_stated_jitter_and_depends_on_the_seed_alone() -> None:
    many = spiral(num_per_class=4000, jitter=0.2, seed=1)
    plain = spiral(num_per_class=4000, jitter=0.0, seed=1)
    turned = np.sum(many.inputs * plain.inputs, axis=1)[1:4000]
    cosine = turned / np.sum(plain.inputs[1:4000].astype(float) ** 2, axis=1)
    # E cos(a) = exp(-jitter^2 / 2) for a normal angle; its spread is about 0.03.
    assert cosine.mean() == pytest.approx(np.exp(-0.02), abs=5 * 0.03 / 4000**0.5)
    first, again, other = (spiral(seed=seed).inputs for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"num_per_class": 1}, "num_per_class must be at least 2"),
        ({"num_per_class": 2.5}, "num_per_class must be an integer"),
        ({"jitter": -0.1}, "jitter must be 0 or more, got -0.1"),
        ({"jitter": float("nan")}, "jitter must be finite"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_spiral_names_what_is_wrong(arguments: dict[str, float], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        spiral(**arguments)
