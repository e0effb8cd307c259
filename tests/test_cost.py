"""The cost model: what it looks at and what it says. No time is compared with another.

How near its seconds are is measured by bench/bench_cost.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from noisyflow import cost, prepare


@pytest.fixture
def clustered(rng: np.random.Generator) -> np.ndarray:
    corners = rng.choice([-1.0, 1.0], (16, 3))
    noise = 0.01 * rng.standard_normal((20_000, 3))
    return corners[rng.integers(0, 16, 20_000)] + noise


def test_the_path_is_that_of_the_call(clustered: np.ndarray) -> None:
    mixture = prepare(clustered, 0.05)
    predicted = cost.measure_cost(mixture, 20_000)
    assert predicted.path == mixture.explain(clustered + 0.01).path != "every pair"
    exact = prepare(clustered, 0.05, max_lost_mass=0)
    assert cost.measure_cost(exact, 20_000).path == "every pair"


def test_a_tree_that_was_built_for_the_answer_is_kept(clustered: np.ndarray) -> None:
    mixture = prepare(clustered, 0.05)
    first = cost.measure_cost(mixture, 20_000)
    tree = mixture._tree
    assert tree is not None
    second = cost.measure_cost(mixture, 20_000)
    assert mixture._tree is tree
    assert second.overhead_seconds == 0 < first.overhead_seconds  # its building


def test_no_tree_is_built_where_every_pair_is_little_work(
    clustered: np.ndarray,
) -> None:
    mixture = prepare(clustered, 0.05)
    assert cost.measure_cost(mixture, 10).path == "every pair"
    assert mixture._tree is None


def test_a_cost_adds_up(clustered: np.ndarray) -> None:
    for lost in (0.0, 1e-6):
        mixture = prepare(clustered, 0.05, max_lost_mass=lost)
        for m in (1, 1000, 10**6, 10**12):
            answer = cost.measure_cost(mixture, m)
            assert answer.seconds_per_point > 0
            assert answer.overhead_seconds >= 0
            assert answer.seconds == pytest.approx(
                m * answer.seconds_per_point + answer.overhead_seconds
            )


@pytest.mark.parametrize("weights", [None, np.full(500, 1 / 500)])
def test_points_may_be_given_or_not(
    weights: np.ndarray | None, rng: np.random.Generator
) -> None:
    centers = rng.standard_normal((500, 2)).astype(np.float32)
    if weights is not None:
        weights = weights.astype(np.float32)
    for points in (None, centers[:7]):
        seconds = cost.predict_seconds(
            1000, centers, 0.1, weights=weights, points=points
        )
        assert 0 < seconds < math.inf


@pytest.mark.parametrize("size", [1, 63, 64, 200, 5000])
@pytest.mark.parametrize("count", [1, 2, 16])
def test_clumps_are_neighbours_from_all_over(
    size: int, count: int, rng: np.random.Generator
) -> None:
    x = rng.uniform(-1, 1, (4096, 1))
    clumps = cost._clumps(x, size, count, rng)
    together = np.concatenate(clumps)[:, 0]
    assert len(np.unique(together)) == len(together) <= max(len(x), size * count)
    if size * count >= len(x):
        assert len(together) == len(x)
        return
    assert len(clumps) == count
    for clump in clumps:
        assert size / 2 <= len(clump) <= size
        inside = (x >= clump.min()) & (x <= clump.max())
        assert inside.sum() == len(clump)  # nobody between them is missing
    if count > 1:
        half = np.median(x)
        assert sum(clump.max() <= half for clump in clumps) == count / 2


def test_the_cost_of_sizes_grows_with_both() -> None:
    one, two, three = (cost.predict_pair_seconds(m, 1000, 3) for m in (10, 20, 30))
    assert 0 < one < two < three
    assert three - two == pytest.approx(two - one)
    assert one == cost.predict_pair_seconds(10, 1000, 3)  # measured once
    many, more = (cost.predict_pair_seconds(10, n, 3) for n in (10**7, 10**9))
    assert more == pytest.approx(100 * many)
    assert cost.predict_pair_seconds(10**18, 10**18, 1, dtype="float64") < math.inf


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda y: cost.predict_seconds(0, y, 0.1),
            ValueError,
            "num_points must be at",
        ),
        (
            lambda y: cost.predict_seconds(1.5, y, 0.1),
            TypeError,
            "num_points must be an",
        ),
        (lambda y: cost.predict_seconds(9, y, -0.1), ValueError, "noise_std must be"),
        (
            lambda y: cost.predict_seconds(9, y, 0.1, points=y[:, :1]),
            ValueError,
            "points must have the dimension of the centers",
        ),
        (
            lambda y: cost.predict_seconds(9, y, 0.1, points=y[:0]),
            ValueError,
            "points must hold at least one point, got none",
        ),
        (lambda y: cost.predict_pair_seconds(9, 9, 0), ValueError, "dim must be at"),
        (
            lambda y: cost.predict_pair_seconds(9, 9, 1, dtype="int8"),
            TypeError,
            "dtype must be float32 or float64, got int8",
        ),
    ],
)
def test_bad_input_is_named(
    call: Callable[[np.ndarray], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(np.zeros((10, 2)))
