"""What is left out stays within what was allowed, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from noisyflow import _core, mixture, mixture_log_density


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
        case "collinear":
            return rng.uniform(-1, 1, (n, 1)) * np.ones((1, d))
    raise AssertionError(kind)


@pytest.mark.parametrize("d", [1, 3, 10, 40])
@pytest.mark.parametrize(
    "kind", ["uniform", "clustered", "heavy-tailed", "duplicated", "collinear"]
)
def test_the_loss_stays_within_its_certificate(
    kind: str, d: int, cpu_target: str, rng: np.random.Generator
) -> None:
    """0 <= L - L' <= log(1 + max_lost_mass), plus rounding, on points near and far.

    In float64, where rounding (1e-13 of an exponent) hides nothing.
    """
    (n, m) = (1500, 700)
    centers = dataset(kind, n, d, rng)
    for noise_std in (0.005, 0.1, 10.0):
        own = rng.integers(0, n, m)
        points = centers[own] + noise_std * rng.standard_normal((m, d))
        points[::7] = dataset("uniform", len(points[::7]), d, rng)  # far from all
        weights = rng.random(n)
        weights[rng.random(n) < 0.2] = 0
        for w in (None, weights / weights.sum()):
            exact = mixture_log_density(points, centers, noise_std, weights=w)
            for allowed in (1e-12, 1e-3, 0.5):
                skipped, evaluated = _core.skipping_log_density(
                    points, centers, noise_std, w, allowed, 1
                )
                loss = exact - skipped
                rounding = 1e-13 * np.maximum(1, np.abs(exact))
                assert (loss >= -rounding).all()
                assert (loss <= np.log1p(allowed) + rounding).all()
                assert evaluated > 0


def test_far_pairs_are_left_out(cpu_target: str, rng: np.random.Generator) -> None:
    centers = rng.uniform(-1, 1, (20_000, 3)).astype(np.float32)
    points = centers + np.float32(0.005) * rng.standard_normal((20_000, 3), np.float32)
    _, evaluated = _core.skipping_log_density(points, centers, 0.005, None, 1e-6, 1)
    assert evaluated < 0.05 * 20_000**2
    assert mixture._skipping_pays(points, centers, 0.005, 1e-6)
    assert not mixture._skipping_pays(points, centers, 1.0, 1e-6)
    assert not mixture._skipping_pays(points[:500], centers[:500], 0.005, 1e-6)


def test_the_public_function_leaves_out_no_more_than_it_may(
    dtype: Any, rng: np.random.Generator
) -> None:
    centers = rng.uniform(-1, 1, (30_000, 2)).astype(dtype)
    points = (centers + 0.01 * rng.standard_normal(centers.shape)).astype(dtype)
    exact = mixture_log_density(points[:2000], centers, 0.01)
    ours = mixture_log_density(points, centers, 0.01, max_lost_mass=1e-4)[:2000]
    rounding = 200 * np.finfo(dtype).eps
    assert mixture._skipping_pays(points, centers, 0.01, 1e-4)
    assert (exact - ours >= -rounding).all()
    assert (exact - ours <= 1e-4 + rounding).all()


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (1, 64), (33, 65)])
def test_small_problems_are_the_same(
    shape: tuple[int, int], cpu_target: str, rng: np.random.Generator
) -> None:
    (m, n) = shape
    centers, points = rng.standard_normal((n, 3)), rng.standard_normal((m, 3))
    exact = mixture_log_density(points, centers, 0.3)
    skipped, _ = _core.skipping_log_density(points, centers, 0.3, None, 1e-13, 2)
    np.testing.assert_allclose(skipped, exact, rtol=1e-12)


def test_the_number_of_threads_does_not_change_a_bit(rng: np.random.Generator) -> None:
    centers = rng.uniform(-1, 1, (5000, 3))
    results = [
        _core.skipping_log_density(centers, centers, 0.02, None, 1e-6, count)
        for count in (1, 2, 3, 7)
    ]
    for result, evaluated in results[1:]:
        np.testing.assert_array_equal(result, results[0][0])
        assert evaluated == results[0][1]


@pytest.mark.parametrize("value", [-1e-3, 1.0, 2.0, np.nan, "0.1", True])
def test_bad_max_lost_mass_is_named(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="max_lost_mass must be"):
        mixture_log_density(
            np.zeros((1, 1)), np.zeros((1, 1)), 1.0, max_lost_mass=value
        )
