"""What a tree leaves out or aggregates stays within what was allowed."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

from noisyflow import (
    _core,
    _reference,
    explain,
    mixture_block_log_sums,
    mixture_log_density,
    prepare,
    prepared,
)


def dataset(kind: str, n: int, d: int, rng: np.random.Generator) -> Any:
    """Centers of very different geometry, most within [-1, 1]^d."""
    match kind:
        case "uniform":
            return rng.uniform(-1, 1, (n, d))
        case "clustered":
            means = rng.uniform(-1, 1, (16, d))
            return means[rng.integers(0, 16, n)] + 0.02 * rng.standard_normal((n, d))
        case "heavy-tailed":
            return rng.standard_cauchy((n, d)).clip(-1e4, 1e4)
        case "duplicated":
            return np.repeat(rng.uniform(-1, 1, (n // 50 + 1, d)), 50, axis=0)[:n]
        case "collapsed":  # hundreds of centers within a fraction of the noise
            means = rng.uniform(-1, 1, (4, d))
            return means[rng.integers(0, 4, n)] + 1e-3 * rng.standard_normal((n, d))
        case "collinear":
            return rng.uniform(-1, 1, (n, 1)) * np.ones((1, d))
    raise AssertionError(kind)


_BLOCKS, _POINT_BY_POINT = 2, 3


def tree(y: Any, noise_std: float, w: Any, allowed: float, has_cells: bool) -> Any:
    kind = _core.Prepared32 if y.dtype == np.float32 else _core.Prepared64
    return kind(y, noise_std, w, allowed, has_cells, 1)


@pytest.mark.parametrize("d", [1, 2, 5, 20])
@pytest.mark.parametrize(
    "kind",
    ["uniform", "clustered", "heavy-tailed", "duplicated", "collinear", "collapsed"],
)
def test_changes_stay_within_the_certificate(
    kind: str, d: int, cpu_target: str, rng: np.random.Generator
) -> None:
    """0 <= L - L' <= log(1 + allowed) by skipping; with polynomials on both sides.

    In float64, where rounding (1e-12 of an exponent) hides nothing, near and far.
    """
    (n, m) = (900, 150)
    centers = dataset(kind, n, d, rng)
    for noise_std in (0.005, 0.1, 1.0, 10.0):
        own = rng.integers(0, n, m)
        points = centers[own] + noise_std * rng.standard_normal((m, d))
        points[::7] = dataset("uniform", len(points[::7]), d, rng)  # far from all
        weights = rng.random(n)
        weights[rng.random(n) < 0.6] = 0
        for w in (None, weights / weights.sum()):
            exact = mixture_log_density(
                points, centers, noise_std, weights=w, max_lost_mass=0
            )
            rounding = 1e-12 * np.maximum(1, np.abs(exact))
            for allowed in (1e-10, 1e-2):
                for has_cells in (False, True):
                    built = tree(centers, noise_std, w, allowed, has_cells)
                    for path in (_BLOCKS, _POINT_BY_POINT):
                        ours, _, _, _, _, counts = built.log_density(points, path, 1)
                        above = -np.log1p(-allowed) if counts[1] else 0.0
                        assert (ours - exact <= above + rounding).all()
                        assert (exact - ours <= np.log1p(allowed) + rounding).all()
                        assert counts[0] + counts[1] > 0


@pytest.mark.parametrize("d", [1, 2, 5, 20])
@pytest.mark.parametrize("kind", ["uniform", "clustered", "duplicated", "collapsed"])
def test_the_sum_of_all_others_has_the_certificate_of_its_own(
    kind: str, d: int, cpu_target: str, rng: np.random.Generator
) -> None:
    """Without the own center, however much it outweighs the others; against SciPy."""
    (n, m) = (900, 100)
    centers = dataset(kind, n, d, rng)
    weights = rng.random(n)
    weights[rng.random(n) < 0.6] = 0
    for noise_std in (0.005, 0.1, 1.0):
        own = rng.integers(0, n, m)
        points = centers[own] + noise_std * rng.standard_normal((m, d))
        squares = ((points[:, None] - centers[None]) ** 2).sum(-1)
        for w in (None, weights / weights.sum()):
            terms = -squares / (2 * noise_std**2)
            with np.errstate(divide="ignore"):
                terms += -np.log(n) if w is None else np.log(w)
            terms -= d / 2 * np.log(2 * np.pi * noise_std**2)
            terms[np.arange(m), own] = -np.inf
            exact = logsumexp(terms, axis=1)
            rounding = 1e-12 * np.maximum(1, np.abs(exact))
            for allowed in (1e-10, 1e-2):
                built = tree(centers, noise_std, w, allowed, True)
                for path in (_BLOCKS, _POINT_BY_POINT):
                    ours = built.log_density(points, path, 1, own)[0]
                    bound = -np.log1p(-allowed) + rounding
                    assert (np.abs(ours - exact) <= bound).all()


def test_own_and_others_are_those_of_every_pair(
    dtype: Any, rng: np.random.Generator
) -> None:
    centers = rng.uniform(-1, 1, (12_000, 2)).astype(dtype)
    own = np.arange(12_000)
    points = (centers + 0.05 * rng.standard_normal(centers.shape)).astype(dtype)
    mixture = prepare(centers, 0.05)
    own_center, others = mixture.log_own_and_others(points, own)
    assert mixture._tree is not None  # not what it is compared with
    sums = mixture_block_log_sums(
        points, centers, 0.05, own, np.array([0, 12_000]), include_rest=False
    )
    tolerance = 2e-5 if dtype == np.float32 else 1e-11
    np.testing.assert_allclose(own_center, sums.own_center, rtol=0, atol=tolerance)
    np.testing.assert_allclose(others, sums.inner, rtol=0, atol=tolerance)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_float32_is_as_good_as_the_type(
    d: int, cpu_target: str, rng: np.random.Generator
) -> None:
    """The defaults, 1e-6, against float64: 1e-5 nats, rounding included."""
    for kind, noise_std in (("uniform", 0.1), ("uniform", 0.5), ("clustered", 0.1)):
        centers = dataset(kind, 8000, d, rng).astype(np.float32)
        noise = rng.standard_normal((600, d))
        points = (centers[:600] + noise_std * noise).astype(np.float32)
        exact = mixture_log_density(
            points.astype(np.float64), centers.astype(np.float64), noise_std
        )
        built = tree(centers, noise_std, None, 1e-6, True)
        ours = built.log_density(points, _BLOCKS, 1)[0]
        assert np.abs(ours - exact).max() < 1e-5


def test_cells_stand_for_most_pairs_of_tight_clusters(
    cpu_target: str, dtype: Any, rng: np.random.Generator
) -> None:
    centers = dataset("clustered", 20_000, 2, rng).astype(dtype)
    points = (centers + 0.1 * rng.standard_normal(centers.shape)).astype(dtype)
    built = tree(centers, 0.1, None, 1e-6, True)
    *_, counts = built.log_density(points, _BLOCKS, 1)
    assert built.num_cells > 0
    assert counts[0] < 0.05 * 20_000**2  # one by one
    assert counts[2] < 0.05 * 20_000**2  # terms of polynomials


def test_far_pairs_are_left_out(cpu_target: str, rng: np.random.Generator) -> None:
    centers = rng.uniform(-1, 1, (20_000, 3)).astype(np.float32)
    points = centers + np.float32(0.005) * rng.standard_normal((20_000, 3), np.float32)
    built = tree(centers, 0.005, None, 1e-6, False)
    for path in (_BLOCKS, _POINT_BY_POINT):
        assert built.log_density(points, path, 1)[-1][0] < 0.05 * 20_000**2


def test_a_tree_is_built_only_where_it_pays(rng: np.random.Generator) -> None:
    centers = rng.uniform(-1, 1, (20_000, 3)).astype(np.float32)
    points = centers + np.float32(0.005) * rng.standard_normal((20_000, 3), np.float32)
    assert prepared.is_worth_a_tree(points, centers, 0.005, 1e-6)
    assert prepared.is_worth_a_tree(points, centers, 1.0, 1e-6)  # cells
    assert not prepared.is_worth_a_tree(points[:500], centers[:500], 0.005, 1e-6)
    wide = rng.uniform(-1, 1, (20_000, 10)).astype(np.float32)
    assert not prepared.is_worth_a_tree(wide, wide, 1.0, 1e-6)


def test_the_public_function_leaves_out_no_more_than_it_may(
    dtype: Any, rng: np.random.Generator
) -> None:
    centers = rng.uniform(-1, 1, (30_000, 2)).astype(dtype)
    points = (centers + 0.01 * rng.standard_normal(centers.shape)).astype(dtype)
    exact = mixture_log_density(points[:2000], centers, 0.01, max_lost_mass=0)
    ours = mixture_log_density(points, centers, 0.01, max_lost_mass=1e-4)[:2000]
    rounding = 200 * np.finfo(dtype).eps
    assert np.abs(exact - ours).max() <= 1e-4 + rounding
    plan = explain(points, centers, 0.01, max_lost_mass=1e-4)
    assert plan.path != "every pair"
    assert plan.evaluated_pairs is not None
    assert plan.evaluated_pairs < 0.1 * 30_000**2
    every = explain(points[:2000], centers, 0.01, max_lost_mass=0)
    assert every.path == "every pair"
    assert every.evaluated_pairs == 2000 * 30_000


def test_a_prepared_mixture_serves_many_sets_of_points(
    dtype: Any, rng: np.random.Generator
) -> None:
    centers = rng.uniform(-1, 1, (20_000, 3)).astype(dtype)
    mixture = prepare(centers, 0.02)
    for m in (0, 1, 5, 20_000):
        points = (centers[:m] + 0.02 * rng.standard_normal((m, 3))).astype(dtype)
        exact = mixture_log_density(points, centers, 0.02, max_lost_mass=0)
        rounding = 200 * np.finfo(dtype).eps
        np.testing.assert_allclose(
            mixture.log_density(points), exact, rtol=0, atol=1e-6 + rounding
        )
    assert mixture.explain(points).num_bytes > 0
    with pytest.raises(ValueError, match="points must have the dimension"):
        mixture.log_density(points[:, :2])
    with pytest.raises(TypeError, match="points must have the dtype"):
        mixture.log_density(points.astype(_other(dtype)))


def _other(dtype: Any) -> Any:
    return np.float64 if dtype == np.float32 else np.float32


@pytest.mark.parametrize("noise_std", [0.3, 1.0, 3.0])
def test_cells_beside_points_hundreds_of_widths_away(
    noise_std: float, cpu_target: str, dtype: Any, rng: np.random.Generator
) -> None:
    """A block may hold both: the cell's polynomial is not for all of its points."""
    for d in (1, 2):
        centers = rng.standard_t(1, (4000, d)).astype(dtype)
        built = tree(centers, noise_std, None, 1e-6, True)
        assert built.num_cells > 0
        ours = built.log_density(centers, _BLOCKS, 1)[0]
        exact = mixture_log_density(centers, centers, noise_std, max_lost_mass=0)
        rounding = 200 * np.finfo(dtype).eps
        np.testing.assert_allclose(ours, exact, rtol=0, atol=2e-6 + rounding)


@pytest.mark.parametrize("d", [1, 3, 8, 17, 20])
def test_overflowing_distances_are_an_error(
    d: int, cpu_target: str, dtype: Any, rng: np.random.Generator
) -> None:
    centers = dataset("clustered", 5000, d, rng).astype(dtype)
    points = centers.copy()
    points[50] = 1e25 if dtype == np.float32 else 1e200
    built = tree(centers, 0.02, None, 1e-6, True)
    exact = mixture_log_density(centers, centers, 0.02, max_lost_mass=0)
    others = np.arange(5000) != 50
    for path in (_BLOCKS, _POINT_BY_POINT):
        ours = built.log_density(points, path, 1)[0]
        assert not np.isfinite(ours[50])
        np.testing.assert_allclose(ours[others], exact[others], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="distances overflow"):
        prepare(centers, 0.02).log_density(points)


def test_light_cells_keep_their_weight(
    cpu_target: str, dtype: Any, rng: np.random.Generator
) -> None:
    """Subnormal weights, in cells and beside ordinary ones."""
    tiny = 1e-44 if dtype == np.float32 else 1e-322
    centers = np.repeat([[0.0], [50.0]], 2000, axis=0)
    centers = (centers + 0.1 * rng.standard_normal((4000, 1))).astype(dtype)
    weights = np.repeat([tiny, 1 / 2000], 2000).astype(dtype)
    points = np.linspace(-2, 52, 200)[:, None].astype(dtype)
    exact = mixture_log_density(points, centers, 1.0, weights=weights, max_lost_mass=0)
    ours = tree(centers, 1.0, weights, 1e-6, True).log_density(points, _BLOCKS, 1)[0]
    np.testing.assert_allclose(ours, exact, rtol=1e-5)


def test_a_plan_accounts_for_every_pair(rng: np.random.Generator) -> None:
    for kind, noise_std in (("uniform", 0.02), ("clustered", 0.1), ("clustered", 1.0)):
        centers = dataset(kind, 20_000, 2, rng).astype(np.float32)
        noise = rng.standard_normal(centers.shape)
        points = (centers + noise_std * noise).astype(np.float32)
        plan = explain(points, centers, noise_std)
        done = plan.evaluated_pairs + plan.aggregated_pairs
        assert 0 < done <= plan.num_pairs
        assert plan.path == "blocks of points"
        assert "skipped" in str(plan)


def test_a_prepared_mixture_is_a_value(rng: np.random.Generator) -> None:
    """It can be pickled and copied, with its tree or without, and not be changed."""
    centers = rng.uniform(-1, 1, (20_000, 2))
    mixture = prepare(centers, 0.02)
    before = mixture.log_density(centers)
    assert mixture._tree is not None
    for copied in (pickle.loads(pickle.dumps(mixture)), copy.deepcopy(mixture)):
        np.testing.assert_array_equal(copied.log_density(centers), before)
    with pytest.raises(AttributeError):
        mixture.noise_std = 0.2
    assert "20000 centers, d = 2, noise_std = 0.02" in repr(mixture)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (1, 64), (33, 65)])
@pytest.mark.parametrize("path", [_BLOCKS, _POINT_BY_POINT])
def test_small_problems_are_the_same(
    shape: tuple[int, int], path: int, cpu_target: str, rng: np.random.Generator
) -> None:
    (m, n) = shape
    centers, points = rng.standard_normal((n, 3)), rng.standard_normal((m, 3))
    exact = mixture_log_density(points, centers, 0.3)
    ours = tree(centers, 0.3, None, 1e-13, True).log_density(points, path, 2)[0]
    np.testing.assert_allclose(ours, exact, rtol=1e-12)


def test_equal_centers_are_one_cell(cpu_target: str, dtype: Any) -> None:
    centers = np.full((5000, 4), 0.3, dtype)
    points = np.linspace(-1, 1, 200, dtype=dtype)[:, None] * np.ones((1, 4), dtype)
    built = tree(centers, 0.1, None, 1e-6, True)
    ours, _, _, _, _, counts = built.log_density(points, _BLOCKS, 1)
    exact = mixture_log_density(points, centers[:1], 0.1)
    np.testing.assert_allclose(ours, exact, rtol=4e-6 if dtype == np.float32 else 1e-6)
    assert built.num_cells == 1
    assert counts[0] == 0


@pytest.mark.parametrize("d", [1, 3, 20, 100])
def test_points_a_million_noise_widths_away(
    d: int, cpu_target: str, dtype: Any, rng: np.random.Generator
) -> None:
    """Against the specification: the rounding of distances exceeds any exponent."""
    centers = rng.uniform(-1, 1, (2000, d)).astype(dtype)
    far = np.array([1e3, 1e5])[rng.integers(0, 2, (60, 1))]
    points = (far * rng.standard_normal((60, d))).astype(dtype)
    for noise_std in (0.005, 0.1):
        exact = _reference.mixture_log_density(
            points.astype(np.float64), centers.astype(np.float64), noise_std
        )
        for path in (_BLOCKS, _POINT_BY_POINT):
            ours = tree(centers, noise_std, None, 1e-9, True).log_density(
                points, path, 1
            )[0]
            rtol = 1e-6 if dtype == np.float32 else 1e-12
            np.testing.assert_allclose(ours, exact, rtol=rtol)


def test_the_number_of_threads_does_not_change_a_bit(rng: np.random.Generator) -> None:
    for kind in ("uniform", "clustered"):
        centers = dataset(kind, 6000, 3, rng)
        kinds = [
            _core.Prepared64(centers, 0.05, None, 1e-6, True, count)
            for count in (1, 2, 3, 7)
        ]
        for path in (_BLOCKS, _POINT_BY_POINT):
            first, *_, counts = kinds[0].log_density(centers, path, 1)
            for built, threads in zip(kinds[1:], (2, 3, 7), strict=True):
                other, *_, other_counts = built.log_density(centers, path, threads)
                np.testing.assert_array_equal(other, first)
                assert other_counts == counts


@pytest.mark.parametrize("value", [-1e-3, 1.0, 2.0, np.nan, "0.1", True])
def test_bad_max_lost_mass_is_named(value: Any) -> None:
    for function in (mixture_log_density, explain):
        with pytest.raises((TypeError, ValueError), match="max_lost_mass must be"):
            function(np.zeros((1, 1)), np.zeros((1, 1)), 1.0, max_lost_mass=value)
    with pytest.raises((TypeError, ValueError), match="max_lost_mass must be"):
        prepare(np.zeros((1, 1)), 1.0, max_lost_mass=value)


@pytest.mark.parametrize("d", [130, 300, 1100])
@pytest.mark.parametrize("path", [_BLOCKS, _POINT_BY_POINT])
def test_in_many_dimensions_the_nearest_center_is_exact(
    d: int, path: int, cpu_target: str, rng: np.random.Generator
) -> None:
    """One near center, also many times, beside a heavy one elsewhere."""
    noise_std = (2 * np.pi * np.e) ** -0.5  # L is small whatever d is
    centers = rng.uniform(-1, 1, (50, d)).astype(np.float32)
    centers[40:] = centers[:10]
    weights = np.full(50, 1e-9)
    weights[39] = 1
    weights = (weights / weights.sum()).astype(np.float32)
    noise = noise_std * rng.standard_normal((200, d))
    points = (centers[rng.integers(0, 39, 200)] + noise).astype(np.float32)
    for w in (None, weights):
        exact = _reference.mixture_log_density(points, centers, noise_std, w)
        ours = tree(centers, noise_std, w, 2.0**-24, True).log_density(points, path, 1)
        half_a_unit = np.spacing(np.abs(exact).astype(np.float32)) / 2
        error = np.abs(ours[0] - exact) - half_a_unit
        # Roundings of the sum and the logarithm of a weight; of hundreds of squares
        # there would be 5e-6.
        assert error.max() < (4e-7 if w is None else 2e-6)
