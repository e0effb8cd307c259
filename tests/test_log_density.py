"""Kernels against the reference, over CPU targets, dtypes and awkward shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from noisyflow import (
    _reference,
    mixture_block_log_sums,
    mixture_log_density,
    runtime,
)

# Around a register block (6 and 3 centers), a group (32 to 4 points), a tile (510).
NUM_CENTERS = [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 509, 510, 511]
NUM_POINTS = [0, 1, 3, 4, 5, 15, 16, 17, 31, 32, 33]
DIMS = [1, 2, 3, 7, 10, 11, 64, 1000]
NOISE_STDS = [0.005, 0.3, 3.0]


def make_mixture(
    rng: np.random.Generator, m: int, n: int, d: int, noise_std: float, dtype: Any
) -> tuple[Any, Any, Any]:
    """Points around centers uniform on [-1, 1]^d, and their own centers in order."""
    centers = rng.uniform(-1, 1, (n, d)).astype(dtype)
    own = np.sort(rng.integers(0, n, m))
    points = centers[own] + noise_std * rng.standard_normal((m, d))
    return points.astype(dtype), centers, own


def allowed_error(
    exact: Any, points: Any, centers: Any, noise_std: float, dtype: Any
) -> float:
    """A bound from the order of operations, in units of u = eps / 2.

    A squared distance carries at most d + 4 roundings, relative to itself (differences
    of near points are exact); the terms that matter have exponents at most the
    smallest, plus log(n / u). A tile's sum has 128 additions in a row, the exponential
    5 u, and the result is rounded once.
    """
    u = np.finfo(dtype).eps / 2
    (n, d) = centers.shape
    squares = ((points[:, None, :].astype(float) - centers) ** 2).sum(axis=2)
    smallest = (squares / (2 * noise_std**2)).min(axis=1).max()
    exponent = smallest + np.log(n / u)
    sums = min(n, 128) + 5
    return float(u * ((d + 4) * exponent + sums + np.abs(exact).max()))


@pytest.mark.parametrize("d", DIMS)
def test_error_is_within_the_rounding_of_its_operations(
    d: int, dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    for n in NUM_CENTERS if d < 64 else [1, 12, 33]:
        for m in NUM_POINTS if d < 64 else [1, 17]:
            for noise_std in NOISE_STDS[:: 1 if n < 500 and m < 17 else 2]:
                points, centers, _ = make_mixture(rng, m, n, d, noise_std, dtype)
                ours = mixture_log_density(points, centers, noise_std)
                assert ours.dtype == dtype
                assert ours.shape == (m,)
                if m == 0:
                    continue
                exact = _reference.mixture_log_density(points, centers, noise_std)
                allowed = allowed_error(exact, points, centers, noise_std, dtype)
                assert np.abs(ours - exact).max() <= allowed, (n, m, noise_std)


def test_calls_of_many_tasks_and_tiles_match_the_reference(
    dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    """512 points are a task of 16 groups; 510 centers a tile."""
    for m, n in ((511, 1021), (513, 1020), (1025, 700)):
        points, centers, _ = make_mixture(rng, m, n, 3, 0.3, dtype)
        exact = _reference.mixture_log_density(points, centers, 0.3)
        allowed = allowed_error(exact, points, centers, 0.3, dtype)
        ours = mixture_log_density(points, centers, 0.3)
        assert np.abs(ours - exact).max() <= allowed


def test_a_distant_own_center_is_not_taken_for_an_absent_one(cpu_target: str) -> None:
    points, centers = np.zeros((1, 1), np.float32), np.full((2, 1), 1e19, np.float32)
    sums = mixture_block_log_sums(points, centers, 1e10, [0], [0, 1, 2])
    assert sums.own_center[0] == pytest.approx(-5e17, rel=1e-6)
    assert sums.rest[0] == pytest.approx(-5e17, rel=1e-6)


@pytest.mark.parametrize(
    ("d", "bound"),
    [
        *((1, 1e-5), (3, 1e-5), (10, 1e-5)),
        *((20, 2e-5), (64, 2e-5), (256, 2e-5), (784, 2e-5), (4096, 1e-4)),
    ],
)
def test_float32_error_is_below_its_bound_beyond_the_rounding_of_the_result(
    d: int, bound: float, cpu_target: str, rng: np.random.Generator
) -> None:
    """Data in [-1, 1]^d, noise 0.005 to 1. A plain sum of d squares is 20 times worse.

    A result of magnitude |L| is itself rounded by up to half a unit: 1e-4 nats at d =
    784 and noise 0.005.
    """
    (m, n) = (48, 1000 if d < 100 else 200)
    for noise_std in (0.005, 0.1, 1.0):
        points, centers, _ = make_mixture(rng, m, n, d, noise_std, np.float32)
        exact = _reference.mixture_log_density(points, centers, noise_std)
        error = np.abs(mixture_log_density(points, centers, noise_std) - exact)
        rounding = np.spacing(np.abs(exact).astype(np.float32)) / 2
        assert (error <= bound + rounding).all(), (noise_std, (error - rounding).max())


@pytest.mark.parametrize("d", [1, 10, 64, 784, 4096])
def test_float64_error_is_below_1e_12_relative(
    d: int, cpu_target: str, rng: np.random.Generator
) -> None:
    """Against the formula with 64 bits of mantissa, where the platform has them."""
    (m, n) = (24, 100)
    for noise_std in (0.005, 0.3, 3.0):
        points, centers, _ = make_mixture(rng, m, n, d, noise_std, np.float64)
        diff = points[:, None, :].astype(np.longdouble) - centers
        exponents = -(diff**2).sum(axis=2) / (2 * np.longdouble(noise_std) ** 2)
        top = exponents.max(axis=1)
        exact = top + np.log(np.exp(exponents - top[:, None]).mean(axis=1))
        variance = np.longdouble(noise_std) ** 2
        exact -= d / 2 * np.log(2 * np.longdouble(np.pi) * variance)
        error = np.abs(mixture_log_density(points, centers, noise_std) - exact)
        assert (error <= 1e-12 * np.maximum(1, np.abs(exact))).all(), noise_std


@pytest.mark.parametrize("d", [1, 3, 20, 100])
@pytest.mark.parametrize("spread", [0, 1e-6, 1e-3], ids=["equal", "near", "apart"])
def test_a_million_noise_widths_from_every_center_is_finite_and_exact(
    d: int, spread: float, dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    """Rounding of the exponent, 1e12, is then more than any exponential can hold."""
    centers = (spread * rng.standard_normal((600, d))).astype(dtype)
    points = np.repeat(rng.uniform(0.5, 1, (40, 1)), d, axis=1).astype(dtype)
    exact = _reference.mixture_log_density(points, centers, 1e-6)
    ours = mixture_log_density(points, centers, 1e-6)
    assert (np.abs(ours / exact - 1) <= (d + 4) * np.finfo(dtype).eps).all()


@pytest.mark.parametrize("d", [1, 3, 40])
def test_centers_whose_distance_overflows_add_nothing(
    d: int, dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    """Whether they come before, among or after those in reach."""
    n = 1200
    centers = rng.uniform(-1, 1, (n, d)).astype(dtype)
    points = rng.uniform(-1, 1, (40, d)).astype(dtype)
    far = np.sqrt(np.finfo(dtype).max) * 4
    for absent in (slice(0, 100), slice(0, n, 2), slice(n - 100, n), slice(0, n - 1)):
        spoilt = centers.copy()
        spoilt[absent] = far
        there = np.delete(centers, np.arange(n)[absent], axis=0)
        exact = _reference.mixture_log_density(points, there, 1.0)
        exact += np.log(len(there) / n)
        ours = mixture_log_density(points, spoilt, 1.0)
        assert np.abs(ours - exact).max() <= 60 * np.finfo(dtype).eps * max(1, d / 3)
    with pytest.raises(ValueError, match="overflow"):
        mixture_log_density(points, np.full_like(centers, far), 1.0)


@pytest.mark.parametrize("d", [2, 40])
def test_equal_centers_are_one_center(
    d: int, dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    points = rng.uniform(-1, 1, (40, d)).astype(dtype)
    center = rng.uniform(-1, 1, (1, d)).astype(dtype)
    one = mixture_log_density(points, center, 0.1)
    squares = ((points.astype(float) - center) ** 2).sum(axis=1)
    exact = -50 * squares - 0.5 * d * np.log(0.02 * np.pi)
    allowed = (d + 4) * np.finfo(dtype).eps * (50 * squares.max() + np.abs(exact).max())
    assert np.abs(one - exact).max() <= allowed
    for n in (2, 6, 7, 1000):
        many = mixture_log_density(points, np.repeat(center, n, axis=0), 0.1)
        assert np.abs(many - exact).max() <= allowed


def test_subnormal_coordinates_are_as_good_as_zero(
    dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    tiny = (np.finfo(dtype).tiny / 8 * rng.standard_normal((50, 3))).astype(dtype)
    ours = mixture_log_density(tiny, tiny, 1.0)
    assert np.abs(ours + 1.5 * np.log(2 * np.pi)).max() <= 4 * np.finfo(dtype).eps


def test_points_far_from_every_center_lose_no_relative_accuracy(
    dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    centers = rng.uniform(-1, 1, (100, 3)).astype(dtype)
    points = (1000 * rng.standard_normal((50, 3))).astype(dtype)
    exact = _reference.mixture_log_density(points, centers, 0.01)
    ours = mixture_log_density(points, centers, 0.01)
    assert np.isfinite(ours).all()
    assert (np.abs(ours / exact - 1) <= 8 * np.finfo(dtype).eps).all()


@pytest.mark.parametrize("d", [1, 3, 12])
def test_an_approaching_sequence_of_centers_overflows_nothing(
    d: int, dtype: Any, cpu_target: str
) -> None:
    """Each center is nearer than all before: the offset moves again and again."""
    steps = np.linspace(30, 0, 600)[:, None]
    centers = np.repeat(steps, d, axis=1).astype(dtype)
    points = np.zeros((20, d), dtype)
    exact = _reference.mixture_log_density(points, centers, 0.05)
    ours = mixture_log_density(points, centers, 0.05)
    assert np.abs(ours - exact).max() <= 100 * np.finfo(dtype).eps


def test_weights_enter_the_sum(
    dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    for d in (1, 3, 12):
        for n in (2, 13, 300):
            points, centers, _ = make_mixture(rng, 40, n, d, 0.2, dtype)
            weights = rng.random(n)
            weights[rng.random(n) < 0.3] = 0
            weights[-1] = 1
            weights = (weights / weights.sum()).astype(dtype)
            exact = _reference.mixture_log_density(points, centers, 0.2, weights)
            ours = mixture_log_density(points, centers, 0.2, weights=weights)
            scale = max(1.0, np.abs(exact).max())
            assert np.abs(ours - exact).max() <= 30 * np.finfo(dtype).eps * scale


def test_a_center_of_weight_zero_counts_for_nothing(
    dtype: Any, cpu_target: str
) -> None:
    centers = np.array([[0.0], [100.0]], dtype)
    weights = np.array([0.0, 1.0], dtype)
    near_the_absent_one = np.zeros((1, 1), dtype)
    ours = mixture_log_density(near_the_absent_one, centers, 0.1, weights=weights)
    exact = -0.5 * 1000.0**2 - 0.5 * np.log(2 * np.pi * 0.01)
    assert abs(ours[0] / exact - 1) <= 8 * np.finfo(dtype).eps


@pytest.mark.parametrize("d", [3, 40])
def test_the_first_centers_may_all_have_weight_zero(
    d: int, dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    for n in (20, 300):
        points, centers, _ = make_mixture(rng, 150, n, d, 0.5, dtype)
        weights = rng.random(n)
        weights[:12] = 0
        weights = (weights / weights.sum()).astype(dtype)
        exact = _reference.mixture_log_density(points, centers, 0.5, weights)
        for m in (40, 150):
            ours = mixture_log_density(points[:m], centers, 0.5, weights=weights)
            error = np.abs(ours - exact[:m]) / np.maximum(1, np.abs(exact[:m]))
            assert error.max() <= 60 * np.finfo(dtype).eps


@pytest.mark.parametrize("d", [1, 3, 10, 12])
def test_block_sums_match_the_reference(
    d: int, dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    tolerance = 60 * np.finfo(dtype).eps
    for n in (1, 2, 13, 40, 513):
        for noise_std in (0.01, 0.5):
            points, centers, own = make_mixture(rng, 37, n, d, noise_std, dtype)
            if n == 40:
                rng.shuffle(own)  # points need not be in the order of their centers
            cuts = rng.integers(1, n, min(n - 1, 6)) if n > 1 else np.empty(0, int)
            offsets = np.unique(np.concatenate([[0], cuts, [n]])).astype(int)
            outer = np.unique(np.concatenate([[0], offsets[1:-1:3], [n]])).astype(int)
            weights = rng.random(n)
            weights = (weights / weights.sum()).astype(dtype)
            for w in (None, weights):
                exact = _reference.mixture_block_log_sums(
                    points, centers, noise_std, own, offsets, outer, w
                )
                ours = mixture_block_log_sums(
                    *(points, centers, noise_std, own, offsets),
                    outer_offsets=outer,
                    weights=w,
                )
                for name, part, expected in zip(ours._fields, ours, exact, strict=True):
                    assert (np.isneginf(part) == np.isneginf(expected)).all(), name
                    there = np.isfinite(expected)
                    error = np.abs(part[there] - expected[there])
                    scale = np.maximum(1, np.abs(expected[there]))
                    assert (error <= tolerance * scale).all(), (name, n, noise_std)


@pytest.mark.parametrize("d", [2, 16, 17, 40])
@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_block_sums_of_many_queries_each_match_the_reference(
    d: int, order: str, dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    """Groups of points end with their block, straddle several, or hold one center."""
    sizes = np.array([50, 1, 5, 120, 2, 3, 40, 600])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    n = int(offsets[-1])
    centers = rng.uniform(-1, 1, (n, d)).astype(dtype)
    own = np.repeat(np.arange(200), 8)
    if order == "shuffled":
        own = rng.integers(0, n, 300)
    noise = 0.1 * rng.standard_normal((len(own), d))
    points = (centers[own] + noise).astype(dtype)
    exact = _reference.mixture_block_log_sums(points, centers, 0.1, own, offsets)
    tolerance = (d + 20) * np.finfo(dtype).eps
    for include_rest in (False, True):
        ours = mixture_block_log_sums(
            points, centers, 0.1, own, offsets, include_rest=include_rest
        )
        for name, part, expected in zip(ours._fields, ours, exact, strict=True):
            if not include_rest and name in ("outer", "rest"):
                assert np.isneginf(part).all()
                continue
            assert (np.isneginf(part) == np.isneginf(expected)).all(), name
            there = np.isfinite(expected)
            error = np.abs(part[there] - expected[there])
            scale = np.maximum(1, np.abs(expected[there]))
            assert (error <= tolerance * scale).all(), (name, include_rest)


def test_own_blocks_alone_are_the_same_sums(
    dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    points, centers, own = make_mixture(rng, 100, 60, 3, 0.3, dtype)
    offsets = np.array([0, 7, 40, 41, 60])
    full = mixture_block_log_sums(points, centers, 0.3, own, offsets)
    alone = mixture_block_log_sums(
        points, centers, 0.3, own, offsets, include_rest=False
    )
    np.testing.assert_array_equal(alone.own_center, full.own_center)
    np.testing.assert_allclose(
        alone.inner, full.inner, rtol=20 * np.finfo(dtype).eps, atol=1e-6
    )
    assert np.isneginf(alone.outer).all()
    assert np.isneginf(alone.rest).all()


def test_the_number_of_threads_does_not_change_a_bit(
    cpu_target: str, rng: np.random.Generator
) -> None:
    points, centers, own = make_mixture(rng, 1500, 3000, 3, 0.1, np.float32)
    offsets = np.arange(0, 3001, 100)
    results = []
    for count in (1, 2, 3, 7):
        runtime.set_num_threads(count)
        results.append(
            (
                mixture_log_density(points, centers, 0.1),
                *mixture_block_log_sums(points, centers, 0.1, own, offsets),
            )
        )
    runtime.set_num_threads(None)
    for result in results[1:]:
        for ours, first in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(ours, first)


# -- the expanded form: |x - o|^2 + |y - o|^2 - 2 (x - o).(y - o) ----------------------
#
# It serves calls of 256 points and 1024 centers and more, where its rounding is small.
# Fewer of the same points are evaluated in differences, which shows which form was
# taken: a point's sum depends on nothing beyond its group of points, 32 at most.


def is_expanded(points: Any, centers: Any, noise_std: float, **options: Any) -> bool:
    many = mixture_log_density(points, centers, noise_std, max_lost_mass=0, **options)
    few = mixture_log_density(
        points[:224], centers, noise_std, max_lost_mass=0, **options
    )
    return not np.array_equal(many[:224], few)


def long_log_density(points: Any, centers: Any, noise_std: float) -> Any:
    """The formula with 64 bits of mantissa, where the platform has them."""
    (n, d) = centers.shape
    variance = np.longdouble(noise_std) ** 2
    exact = np.empty(len(points), np.longdouble)
    for i, point in enumerate(points.astype(np.longdouble)):
        exponents = -((point - centers) ** 2).sum(axis=1) / (2 * variance)
        top = exponents.max()
        exact[i] = top + np.log(np.exp(exponents - top).sum())
    return exact - np.log(n) - d / 2 * np.log(2 * np.pi * variance)


def make_rivals(
    rng: np.random.Generator,
    m: int,
    d: int,
    noise_std: float,
    dtype: Any,
    extent: float = 1.0,
) -> tuple[Any, Any]:
    """Points with two centers each, equally far: either's exponent enters by half.

    A third is farther by 6 nats and comes first, so that neither of the two serves as
    the reference, whose own exponent has hardly an error.
    """
    points = rng.uniform(-extent, extent, (m, d))  # m >= 342 makes 1024 centers or more
    normals = rng.standard_normal((3, m, d))
    normals *= noise_std / np.linalg.norm(normals, axis=2, keepdims=True)
    radii = np.array([4.0, 2.0, 2.0])[:, None, None]
    centers = (points + radii * normals).reshape(-1, d)
    return points.astype(dtype), centers.astype(dtype)


@pytest.mark.parametrize("d", [17, 20, 33, 64, 100, 256, 784])
def test_float32_error_is_below_its_bound_where_the_form_changes(
    d: int, cpu_target: str, rng: np.random.Generator
) -> None:
    seen = set()
    for noise_std in (0.1, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5):
        points, centers = make_rivals(rng, 344, d, noise_std, np.float32)
        exact = long_log_density(points[:24], centers, noise_std)
        ours = mixture_log_density(points, centers, noise_std, max_lost_mass=0)[:24]
        rounding = np.spacing(np.abs(exact).astype(np.float32)) / 2
        excess = (np.abs(ours - exact) - rounding).max()
        assert excess <= 2e-5, noise_std
        seen.add(is_expanded(points, centers, noise_std))
    assert seen == {False, True}


@pytest.mark.parametrize("d", [17, 64, 784])
def test_float64_error_is_below_1e_12_where_the_form_changes(
    d: int, cpu_target: str, rng: np.random.Generator
) -> None:
    seen = set()
    for noise_std in (0.01, 0.03, 0.1, 0.3, 1.0):
        points, centers = make_rivals(rng, 344, d, noise_std, np.float64)
        exact = long_log_density(points[:24], centers, noise_std)
        ours = mixture_log_density(points, centers, noise_std, max_lost_mass=0)[:24]
        assert (np.abs(ours - exact) <= 1e-12 * np.maximum(1, np.abs(exact))).all()
        seen.add(is_expanded(points, centers, noise_std))
    assert seen == {False, True}


@pytest.mark.parametrize("d", [16, 20, 64, 784])
def test_little_noise_and_few_dimensions_are_evaluated_in_differences(
    d: int, dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    noise_std = 1 / np.sqrt(2 * np.pi)  # log-densities near 0 show every difference
    for extent, form in ((0.3, d > 16), (100.0, False)):
        points, centers = make_rivals(rng, 344, d, noise_std, dtype, extent)
        assert is_expanded(points, centers, noise_std) == form
    points, centers = make_rivals(rng, 344, d, 0.005, dtype)
    assert not is_expanded(points, centers, 0.005)


def test_the_least_noise_is_evaluated_in_differences(
    cpu_target: str, rng: np.random.Generator
) -> None:
    """Fourth powers of coordinates, which the form's bound is made of, are 0 here."""
    points, centers = make_rivals(rng, 400, 20, 1e-140, np.float64, extent=1e-136)
    assert not is_expanded(points, centers, 1e-140)


@pytest.mark.parametrize("d", [20, 100])
def test_data_far_from_the_origin_are_as_accurate(
    d: int, dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    points, centers = make_rivals(rng, 344, d, 0.4, np.float64, 0.3)
    points, centers = (points + 1e4).astype(dtype), (centers + 1e4).astype(dtype)
    assert is_expanded(points, centers, 0.4)
    exact = long_log_density(points[:24], centers, 0.4)
    ours = mixture_log_density(points, centers, 0.4, max_lost_mass=0)[:24]
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    assert (np.abs(ours - exact) <= tolerance).all()


@pytest.mark.parametrize("d", [17, 20, 40])
def test_any_number_of_centers_matches_in_expanded_form(
    d: int, dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    """Weighted, with weights of zero; the last centers of a call fill no block."""
    for n in (2, 1023, *range(1024, 1036), 2000):
        points, centers, _ = make_mixture(rng, 300, n, d, 1.0, dtype)
        weights = rng.random(n)
        weights[rng.random(n) < 0.3] = 0
        weights[-1] = 1
        weights = (weights / weights.sum()).astype(dtype)
        for w in (None, weights):
            exact = _reference.mixture_log_density(points, centers, 1.0, w)
            ours = mixture_log_density(points, centers, 1.0, weights=w, max_lost_mass=0)
            allowed = 60 * np.finfo(dtype).eps * np.maximum(1, np.abs(exact))
            assert (np.abs(ours - exact) <= allowed).all(), n


@pytest.mark.parametrize("distance", [1e3, 1e25, 1e200])
def test_a_few_distant_rows_do_not_spoil_the_expanded_form(
    distance: float, dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    """Not even where their squares overflow: such centers add nothing."""
    if distance > float(np.finfo(dtype).max):
        pytest.skip("no float32")
    (n, d) = (1200, 30)
    points, centers, _ = make_mixture(rng, 700, n, d, 1.0, dtype)
    distant = [3, 700, 701, 1195]
    there = np.delete(centers, distant, axis=0)
    centers[distant] = distance
    exact = _reference.mixture_log_density(points, there, 1.0) + np.log(1 - 4 / n)
    assert is_expanded(points, centers, 1.0)
    ours = mixture_log_density(points, centers, 1.0, max_lost_mass=0)
    eps = np.finfo(dtype).eps
    assert (np.abs(ours - exact) <= 60 * eps * np.abs(exact)).all()
    if distance < 1e4:
        points[77] = distance
        ours = mixture_log_density(points, centers, 1.0, max_lost_mass=0)
        exact[77] = _reference.mixture_log_density(points[77:78], centers, 1.0)[0]
        assert (np.abs(ours - exact) <= 60 * eps * np.abs(exact)).all()


def test_centers_with_too_large_a_spread_are_evaluated_in_differences(
    dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    """Points far out, most centers at the origin, and three that matter.

    The block of the first moves the offset and is evaluated in differences in any case.
    """
    (m, n, d, noise_std) = (300, 1280, 64, 0.4)
    direction = (0.47 if dtype == np.float32 else 1.37) * rng.choice([-1.0, 1.0], d)
    points = (direction + 0.1 * rng.standard_normal((m, d))).astype(dtype)
    centers = (0.04 * rng.standard_normal((n, d))).astype(dtype)
    three = 1.3 * direction + 0.005 * rng.standard_normal((3, d))
    centers[[501, 521, 541]] = three  # none of them in the sample
    few = mixture_log_density(points[:224], centers, noise_std, max_lost_mass=0)
    many = mixture_log_density(points, centers, noise_std, max_lost_mass=0)[:224]
    assert np.abs(many - few).max() <= 4 * np.finfo(dtype).eps * np.abs(few).max()


def test_the_number_of_threads_does_not_change_a_bit_of_the_expanded_form(
    dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    points, centers, _ = make_mixture(rng, 1500, 1000, 20, 1.0, dtype)
    results = []
    for count in (1, 2, 7):
        runtime.set_num_threads(count)
        results.append(mixture_log_density(points, centers, 1.0, max_lost_mass=0))
    runtime.set_num_threads(None)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("layout", ["fortran", "strided", "transposed", "reversed"])
def test_any_memory_layout_gives_the_same_bits(
    layout: str, dtype: Any, rng: np.random.Generator
) -> None:
    points, centers, _ = make_mixture(rng, 30, 50, 4, 0.3, dtype)
    expected = mixture_log_density(points, centers, 0.3)

    def laid_out(array: Any) -> Any:
        match layout:
            case "fortran":
                return np.asfortranarray(array)
            case "strided":
                wide = np.zeros((2 * len(array), 9), dtype)
                wide[::2, :8:2] = array
                return wide[::2, :8:2]
            case "transposed":
                return np.ascontiguousarray(array.T).T
            case _:
                return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]

    np.testing.assert_array_equal(
        mixture_log_density(laid_out(points), laid_out(centers), 0.3), expected
    )


def test_rows_of_a_wider_array_are_read_in_place(rng: np.random.Generator) -> None:
    wide = rng.uniform(-1, 1, (64, 8))
    result = mixture_log_density(wide[:, :3], wide[::2, 2:5], 0.3)
    expected = _reference.mixture_log_density(wide[:, :3], wide[::2, 2:5], 0.3)
    np.testing.assert_allclose(result, expected, rtol=1e-13)


def test_torch_tensors_give_torch_tensors_of_the_same_bits(
    dtype: Any, rng: np.random.Generator
) -> None:
    points, centers, own = make_mixture(rng, 20, 30, 3, 0.3, dtype)
    ours = mixture_log_density(torch.from_numpy(points), torch.from_numpy(centers), 0.3)
    assert isinstance(ours, torch.Tensor)
    np.testing.assert_array_equal(
        ours.numpy(), mixture_log_density(points, centers, 0.3)
    )
    sums = mixture_block_log_sums(
        torch.from_numpy(points), torch.from_numpy(centers), 0.3, own, [0, 10, 30]
    )
    assert all(isinstance(part, torch.Tensor) for part in sums)


X = np.zeros((3, 2))
Y = np.ones((4, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], Y, 1.0), ValueError, r"points must have shape \(n, d\)"),
        ((X, Y[0], 1.0), ValueError, r"centers must have shape \(n, d\)"),
        ((X, np.ones((4, 3)), 1.0), ValueError, r"same dimension.*\(3, 2\).*\(4, 3\)"),
        ((X, Y[:0], 1.0), ValueError, "centers must not be empty"),
        ((X[:, :0], Y[:, :0], 1.0), ValueError, "must not be empty"),
        ((X.astype(int), Y, 1.0), TypeError, "points must be float32 or float64.*int"),
        ((X.astype(np.float16), Y, 1.0), TypeError, "float16"),
        ((X.astype(np.float32), Y, 1.0), TypeError, "same dtype"),
        ((torch.zeros(3, 2), Y, 1.0), TypeError, "both be NumPy arrays or both torch"),
        (
            (torch.zeros(3, 2).bfloat16(), Y, 1.0),
            TypeError,
            r"bfloat16; pass points.float\(\)",
        ),
        ((torch.zeros(3, 2, device="meta"), Y, 1.0), ValueError, "points must be on"),
        ((torch.zeros(3, 2, requires_grad=True), Y, 1.0), TypeError, "both be NumPy"),
        ((X, torch.zeros(3, 2, requires_grad=True), 1.0), TypeError, "both be NumPy"),
        ((X + np.nan, Y, 1.0), ValueError, r"points must be finite, got nan at \[0, 0"),
        ((X, Y * [1, np.inf], 1.0), ValueError, r"centers must be finite.*\[0, 1\]"),
        ((X, Y, 0.0), ValueError, "noise_std must be positive"),
        ((X, Y, -0.1), ValueError, "noise_std must be positive and finite, got -0.1"),
        ((X, Y, np.nan), ValueError, "noise_std"),
        ((X, Y, np.inf), ValueError, "noise_std"),
        ((X, Y, "0.1"), TypeError, "noise_std must be a real number, got str"),
        ((X, Y, True), TypeError, "noise_std"),
        ((X, Y, torch.tensor(1.0)), TypeError, r"Tensor; pass float\(noise_std\)"),
        ((X, Y, np.ones(1)), ValueError, r"got shape \(1,\); pass noise_std\[0\]"),
        ((X, Y, np.ones(2)), ValueError, r"noise_std .* got shape \(2,\)$"),
        ((X, Y, 1e-200), ValueError, "rescale"),
        ((X * 0 + 1e200, Y, 1.0), ValueError, "overflow"),
        ((X, [[1.0], [2.0, 3.0]], 1.0), ValueError, "centers must be an array"),
        ((X, Y, 10**400), ValueError, "noise_std must be positive and finite"),
        ((np.ma.masked_array(X, X < 1), Y, 1.0), TypeError, "masked array"),
    ],
)
def test_bad_input_is_named(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        mixture_log_density(*arguments)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (np.full(3, 1 / 3), ValueError, r"weights must have shape \(4,\)"),
        (np.array([0.5, 0.6, -0.1, 0.0]), ValueError, "not negative, got -0.1"),
        (np.array([0.5, np.nan, 0.5, 0.0]), ValueError, "finite.*got nan"),
        (np.full(4, 0.3), ValueError, r"1, got a sum of 1.2; pass weights / weights.s"),
        ([0.3] * 4, ValueError, "sum to 1, got a sum of 1.2"),
        ([[0.5], [0.5, 0.0]], ValueError, "weights must be an array of numbers"),
        (["a"] * 4, TypeError, "weights must be float32 or float64"),
        (np.full(4, 0.25, np.float32), TypeError, "dtype of centers"),
        (np.array([True, False, False, False]), TypeError, "bool"),
    ],
)
def test_bad_weights_are_named(
    weights: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        mixture_log_density(X, Y, 1.0, weights=weights)


@pytest.mark.parametrize("weights", [[0.5, 0.25, 0.25, 0], (1, 0, 0, 0), "integers"])
@pytest.mark.parametrize("is_tensor", [False, True])
def test_weights_without_a_dtype_take_that_of_the_centers(
    weights: Any, is_tensor: bool, dtype: Any, rng: np.random.Generator
) -> None:
    if weights == "integers":
        weights = np.array([0, 0, 1, 0])
    points, centers = rng.normal(size=(5, 2)), rng.normal(size=(4, 2))
    (x, y) = (array.astype(dtype) for array in (points, centers))
    if is_tensor:
        (x, y) = (torch.from_numpy(array) for array in (x, y))
    found = mixture_log_density(x, y, 0.7, weights=weights)
    exact = np.asarray(weights, dtype)
    expected = mixture_log_density(np.asarray(x), np.asarray(y), 0.7, weights=exact)
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_weights_may_be_off_by_the_rounding_of_a_softmax() -> None:
    """A million logits in float32 gave a sum of 1.000072; that of four is exact."""
    off = 1 + 7.2e-5
    many = np.full(10**6, off / 10**6, np.float32)
    found = mixture_log_density(
        np.zeros((1, 1), np.float32),
        np.zeros((10**6, 1), np.float32),
        1.0,
        weights=many,
    )
    np.testing.assert_allclose(found, -0.5 * np.log(2 * np.pi), atol=2e-4)
    few = np.full(4, off / 4, np.float32)
    with pytest.raises(ValueError, match="weights must sum to 1"):
        mixture_log_density(
            X.astype(np.float32), Y.astype(np.float32), 1.0, weights=few
        )


@pytest.mark.parametrize(
    ("own", "offsets", "outer", "error", "message"),
    [
        ([0, 1], [0, 4], None, ValueError, r"own must have shape \(3,\)"),
        ([0, 1, 4], [0, 4], None, ValueError, "own must index the 4 centers.*to 4"),
        ([0, -1, 2], [0, 4], None, ValueError, "from -1"),
        ([0.0, 1.0, 2.0], [0, 4], None, TypeError, "own must be integers"),
        ([0, 1, 2], [0, 3], None, ValueError, "offsets must run from 0 to the number"),
        ([0, 1, 2], [0, 2, 2, 4], None, ValueError, "increase, got 2 followed by 2"),
        ([0, 1, 2], [0, 2, 4], [0, 1, 4], ValueError, "union of blocks, got 1"),
    ],
)
def test_bad_blocks_are_named(
    own: Any, offsets: Any, outer: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        mixture_block_log_sums(X, Y, 1.0, own, offsets, outer_offsets=outer)


def test_include_rest_must_be_a_bool() -> None:
    with pytest.raises(TypeError, match="include_rest must be True or False, got 'no'"):
        mixture_block_log_sums(X, Y, 1.0, [0, 1, 2], [0, 4], include_rest="no")  # type: ignore[arg-type]


def test_an_unknown_cpu_target_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"must be one of.*'(baseline|neon)'.*got 'sse9'"
    ):
        runtime.set_cpu_target("sse9")


def test_the_cpu_target_can_be_forced_by_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    last = runtime.available_cpu_targets()[-1]
    monkeypatch.setenv("NOISYFLOW_CPU_TARGET", last)
    assert runtime.cpu_target() == last
    monkeypatch.setenv("NOISYFLOW_CPU_TARGET", "nonsense")
    with pytest.raises(ValueError, match="NOISYFLOW_CPU_TARGET must be one of"):
        mixture_log_density(X, Y, 1.0)


@pytest.mark.parametrize("count", [0, -1])
def test_a_thread_count_below_one_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"got {count}"):
        runtime.set_num_threads(count)


@pytest.mark.parametrize("d", [2, 20, 70])
def test_centers_of_weight_zero_before_any_other(
    d: int, cpu_target: str, dtype: Any, rng: np.random.Generator
) -> None:
    """They are met first, at no distance that could be compared with others."""
    centers = rng.uniform(-1, 1, (500, d)).astype(dtype)
    points = (centers[300:400] + 0.1 * rng.standard_normal((100, d))).astype(dtype)
    weights = np.zeros(500, dtype)
    weights[rng.permutation(np.arange(50, 500))[:100]] = 0.01
    exact = _reference.mixture_log_density(
        points.astype(np.float64), centers.astype(np.float64), 0.1, weights
    )
    ours = mixture_log_density(points, centers, 0.1, weights=weights)
    rtol = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(ours, exact, rtol=rtol)


@pytest.mark.parametrize("d", [17, 32, 130, 300])
@pytest.mark.parametrize("n", [2, 3, 5, 7, 13])
def test_the_others_of_few_centers_are_all_but_the_own(
    n: int, d: int, dtype: Any, cpu_target: str, rng: np.random.Generator
) -> None:
    """Fewer than a block: a lane may meet what is hidden before anything else."""
    points, centers, own = make_mixture(rng, 200, n, d, 0.5, dtype)
    offsets = np.array([0, n])
    exact = _reference.mixture_block_log_sums(points, centers, 0.5, own, offsets)
    ours = mixture_block_log_sums(points, centers, 0.5, own, offsets)
    for part, expected in zip(ours[:2], exact[:2], strict=True):
        scale = np.maximum(1, np.abs(expected))
        assert (np.abs(part - expected) <= (d + 20) * np.finfo(dtype).eps * scale).all()
