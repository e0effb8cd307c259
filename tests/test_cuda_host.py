"""CUDA kernels without a GPU: their own source on the host, against the reference.

What is compiled is csrc/cuda itself, by the host's compiler; each CUDA thread is a
fibre (tests/cuda/host_shim.h). Races are looked for by ThreadSanitizer, with a thread
for each, and memory errors by AddressSanitizer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cuda_host
from noisyflow import _core, _reference

ROOT = Path(__file__).parents[1]
NUM_ROWS = [1, 2, 31, 127, 128, 129, 300, 1000]
DIMS = [*range(1, 25), 64, 100, 256, 784, 1000]

pytestmark = pytest.mark.skipif(
    cuda_host.missing() is not None, reason=str(cuda_host.missing())
)


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> cuda_host.HostCuda:
    folder = tmp_path_factory.mktemp("cuda_host")
    return cuda_host.HostCuda(cuda_host.build(folder))


def make_mixture(
    rng: np.random.Generator, m: int, n: int, d: int, noise_std: float, dtype: Any
) -> tuple[Any, Any, Any]:
    """Points around centers uniform on [-1, 1]^d, and their own centers."""
    centers = rng.uniform(-1, 1, (n, d)).astype(dtype)
    own = rng.integers(0, n, m)
    points = centers[own] + noise_std * rng.standard_normal((m, d))
    return points.astype(dtype), centers, own


def make_weights(rng: np.random.Generator, n: int) -> Any:
    """Uneven, some of them zero."""
    weights = rng.random(n)
    weights[rng.random(n) < 0.3] = 0
    weights[rng.integers(n)] = 1
    return weights / weights.sum()


def exact_log_density(
    points: Any, centers: Any, noise_std: float, weights: Any = None
) -> Any:
    step = max(1, 2**22 // centers.size)
    return np.concatenate(
        [
            _reference.mixture_log_density(
                points[i : i + step], centers, noise_std, weights
            )
            for i in range(0, len(points), step)
        ]
    )


def allowed_error(exact: Any, n: int, d: int, noise_std: float, dtype: Any) -> float:
    """A bound from the order of operations, in units of u = eps / 2.

    As `allowed_error` of test_log_density: d + 4 roundings of an exponent, the smallest
    plus log(n / u); 64 additions in a row; the exponential's 2^-22 in float32. The
    smallest exponent, weights included, is at most log n more than minus the sum's
    logarithm. The reference itself has as many roundings, in float64.
    """
    u = (np.finfo(dtype).eps + np.finfo(float).eps) / 2
    log_sum = exact.min() + 0.5 * d * np.log(2 * np.pi * noise_std**2)
    exponent = max(-log_sum, 0) + np.log(n) + np.log(n / u)
    sums = 64 + 5
    return float(u * ((d + 4) * exponent + sums + np.abs(exact).max()))


def shapes_of(d: int) -> list[tuple[int, int]]:
    """Pairs of numbers of rows: all of them met in either place."""
    if d <= 24:
        return list(zip(NUM_ROWS, np.roll(NUM_ROWS, d), strict=True))
    return [(1, 300), (129, 31), (300, 129)]


@pytest.mark.parametrize("d", DIMS)
def test_log_density_matches_the_reference(
    d: int, dtype: Any, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    for m, n in shapes_of(d):
        noise_std = float(rng.choice([0.005, 0.3, 3.0]))
        points, centers, _ = make_mixture(rng, m, n, d, noise_std, dtype)
        weights = make_weights(rng, n) if m % 2 else None
        exact = exact_log_density(points, centers, noise_std, weights)
        ours = cuda.log_density(points, centers, noise_std, weights)
        allowed = allowed_error(exact, n, d, noise_std, dtype)
        assert np.abs(ours - exact).max() <= allowed, (m, n, noise_std)


@pytest.mark.parametrize(("d", "most"), [(256, 1e-5), (784, 2e-5), (4096, 4e-5)])
def test_float32_in_many_dimensions_loses_no_more_than_numerics_says(
    d: int, most: float, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    """At the noise where L is small whatever d is; docs/numerics.md, 12."""
    noise_std = (2 * np.pi * np.e) ** -0.5
    centers = np.tile(rng.uniform(-1, 1, (10, d)), (2, 1)).astype(np.float32)
    noise = noise_std * rng.standard_normal((128, d))
    points = (centers[rng.integers(0, 20, 128)] + noise).astype(np.float32)
    exact = exact_log_density(points, centers, noise_std)
    assert np.abs(cuda.log_density(points, centers, noise_std) - exact).max() <= most


def test_few_points_and_many_centers_are_split_over_blocks(
    dtype: Any, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    """Over 4096 columns and more: blocks sum parts, and a last kernel merges them."""
    for d in (1, 3, 30):
        points, centers, _ = make_mixture(rng, 5, 6000, d, 0.3, dtype)
        exact = exact_log_density(points, centers, 0.3)
        ours = cuda.log_density(points, centers, 0.3)
        assert np.abs(ours - exact).max() <= allowed_error(exact, 6000, d, 0.3, dtype)


def test_rows_of_a_wider_array_are_read_in_place(
    dtype: Any, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    for d in (1, 3, 20, 40):
        wide_points = rng.standard_normal((130, d + 3)).astype(dtype)
        wide_centers = rng.standard_normal((140, d + 1)).astype(dtype)
        points, centers = wide_points[:, 2 : d + 2], wide_centers[:, :d]
        exact = exact_log_density(points, centers, 0.5)
        for path in (1, 2):
            ours = cuda.log_density(points, centers, 0.5, path=path)
            assert np.abs(ours - exact).max() <= allowed_error(
                exact, 140, d, 0.5, dtype
            )


@pytest.mark.parametrize("d", [1, 3, 10, 30])
def test_isolated_and_coincident_points_are_finite_at_little_noise(
    d: int, dtype: Any, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    """Exponents of 1e9 and of 0 in one call; and all centers in one place."""
    centers = rng.uniform(-1, 1, (300, d)).astype(dtype)
    centers[200:] = centers[0]
    points = np.concatenate([centers[:40], 100 * centers[40:80], centers[200:210]])
    for y in (centers, centers[200:]):
        exact = exact_log_density(points, y, 0.005)
        allowed = (d + 8) * np.finfo(dtype).eps * np.maximum(60, np.abs(exact))
        for path in (1, 2):
            ours = cuda.log_density(points, y, 0.005, path=path)
            assert (np.abs(ours - exact) <= allowed).all()


@pytest.mark.parametrize("d", [1, 3, 30])
def test_centers_that_come_nearer_and_nearer_overflow_nothing(
    d: int, dtype: Any, cuda: cuda_host.HostCuda
) -> None:
    """The reference of a sum moves again and again."""
    centers = np.repeat(np.linspace(30, 0, 600)[:, None], d, axis=1).astype(dtype)
    points = np.zeros((20, d), dtype)
    exact = exact_log_density(points, centers, 0.05)
    for path in (1, 2):
        ours = cuda.log_density(points, centers, 0.05, path=path)
        assert np.abs(ours - exact).max() <= 100 * np.finfo(dtype).eps


@pytest.mark.parametrize("d", [1, 3, 30])
def test_the_first_centers_may_all_have_weight_zero(
    d: int, dtype: Any, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    points, centers, _ = make_mixture(rng, 40, 300, d, 0.5, dtype)
    weights = rng.random(300)
    weights[:200] = 0
    weights /= weights.sum()
    exact = exact_log_density(points, centers, 0.5, weights)
    allowed = allowed_error(exact, 300, d, 0.5, dtype)
    for path in (1, 2):
        ours = cuda.log_density(points, centers, 0.5, weights, path)
        assert np.abs(ours - exact).max() <= allowed


# -- parts of the sum ----------------------------------------------------------------


def make_offsets(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    """Blocks of uneven sizes, and outer blocks that are unions of them."""
    inner = np.unique(np.concatenate([[0, n], rng.integers(0, n, max(1, n // 20))]))
    between = inner[1:-1]
    kept = between[rng.random(len(between)) < 0.3]
    return inner, np.unique(np.concatenate([[0, n], kept]))


@pytest.mark.parametrize("d", [1, 2, 3, 7, 10, 20, 24, 64])
def test_block_sums_match_the_reference(
    d: int, dtype: Any, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    for m, n in ((1, 1), (31, 2), (129, 127), (60, 1000), (300, 300)):
        noise_std = float(rng.choice([0.005, 0.3]))
        points, centers, own = make_mixture(rng, m, n, d, noise_std, dtype)
        offsets, outer_offsets = make_offsets(rng, n)
        weights = make_weights(rng, n) if m % 2 else None
        exact = _reference.mixture_block_log_sums(
            points, centers, noise_std, own, offsets, outer_offsets, weights
        )
        blocks = (own, offsets, outer_offsets, weights)
        ours = cuda.block_log_sums(points, centers, noise_std, *blocks)
        own_part = cuda.block_log_sums(
            points, centers, noise_std, *blocks, include_rest=False
        )
        for part, expected in zip(ours, exact, strict=True):
            absent = np.isneginf(expected)
            assert (np.isneginf(part) == absent).all()
            for i in np.flatnonzero(~absent):
                allowed = allowed_error(expected[i : i + 1], n, d, noise_std, dtype)
                assert abs(part[i] - expected[i]) <= allowed
        assert (own_part[0] == ours[0]).all()
        assert (own_part[1] == ours[1]).all()


# -- gradients -----------------------------------------------------------------------


def exact_gradients(
    points: Any, centers: Any, noise_std: float, weights: Any, grad_output: Any
) -> list[Any]:
    """As `_cuda.gradients` says, in float64; and the sums of magnitudes of each."""
    x, y = points.astype(float), centers.astype(float)
    n, d = y.shape
    w = np.full(n, 1 / n) if weights is None else weights
    difference = y[None, :, :] - x[:, None, :]
    squares = (difference**2).sum(axis=2)
    log_kernel = -squares / (2 * noise_std**2)
    log_kernel -= 0.5 * d * np.log(2 * np.pi * noise_std**2)
    log_density = _reference.mixture_log_density(points, centers, noise_std, w)
    with np.errstate(over="ignore"):
        mass = grad_output[:, None] * np.exp(log_kernel - log_density[:, None])
    with np.errstate(divide="ignore"):
        share = np.exp(log_kernel + np.log(w) - log_density[:, None])
    share = grad_output[:, None] * share
    pull = difference / noise_std**2
    stretch = (squares / noise_std**2 - d) / noise_std
    sums = [
        *(np.einsum("ij,ijk->ik", share, pull), -np.einsum("ij,ijk->jk", share, pull)),
        *(mass.sum(axis=0), (share * stretch).sum(axis=1)),
    ]
    # Terms too small to count, or to be normal numbers, may be anything that small.
    size = np.abs(share) + 1e-20 * np.abs(grad_output[:, None])
    sizes = [
        np.einsum("ij,ijk->ik", size, np.abs(pull)),
        np.einsum("ij,ijk->jk", size, np.abs(pull)),
        np.abs(mass).sum(axis=0) + 1e-20 * np.abs(grad_output).sum(),
        (size * np.abs(stretch)).sum(axis=1),
    ]
    return [log_density, sums, sizes]


@pytest.mark.parametrize("d", [*range(1, 25), 64, 100, 256])
def test_gradients_match_the_reference(
    d: int, dtype: Any, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    shapes = ((1, 2), (129, 31), (60, 300)) if d <= 24 else ((31, 129),)
    for m, n in shapes:
        noise_std = float(rng.choice([0.3, 3.0]))
        points, centers, _ = make_mixture(rng, m, n, d, noise_std, dtype)
        weights = make_weights(rng, n) if m % 2 else None
        grad_output = rng.standard_normal(m).astype(dtype)
        log_density, sums, sizes = exact_gradients(
            points, centers, noise_std, weights, grad_output.astype(float)
        )
        saved = log_density.astype(dtype)
        ours = cuda.gradients(points, centers, noise_std, weights, saved, grad_output)
        # Of a term: its exponent's roundings, up to 46 from the smallest (1e-20), the
        # saved value's, and a few of its own.
        relative = allowed_error(log_density, n, d, noise_std, dtype)
        relative += (20 + (d + 4) * 46 / 2) * np.finfo(dtype).eps
        for k, (out, expected, size) in enumerate(zip(ours, sums, sizes, strict=True)):
            assert np.isfinite(out).all()
            with np.errstate(invalid="ignore"):
                wrong = np.abs(out - expected) > relative * size
            # Weights of zero: mass beyond the largest number saturates there.
            wrong &= ~((np.abs(expected) > np.finfo(dtype).max) & (np.abs(out) > 1e37))
            assert not wrong.any(), (m, n, noise_std, k)


def test_gradients_that_are_not_wanted_are_not_written(
    dtype: Any, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    for d in (2, 30):
        points, centers, _ = make_mixture(rng, 40, 50, d, 0.3, dtype)
        grad_output = np.ones(40, dtype)
        saved = exact_log_density(points, centers, 0.3).astype(dtype)
        problem = (points, centers, 0.3, None, saved, grad_output)
        everything = cuda.gradients(*problem)
        for k in range(4):
            wanted = tuple(k == other for other in range(4))
            ours = cuda.gradients(*problem, wanted=wanted)
            assert (ours[k] == everything[k]).all()


@pytest.mark.parametrize("d", [1, 3, 10, 30])
def test_gradients_are_finite_at_little_noise(
    d: int, dtype: Any, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    """Isolated and coincident points: exponents of 1e7 and of 0."""
    centers = rng.uniform(-1, 1, (100, d)).astype(dtype)
    points = np.concatenate([centers[:20], 30 * centers[20:40], 0 * centers[:1]])
    saved = exact_log_density(points, centers, 0.005).astype(dtype)
    grad_output = rng.standard_normal(len(points)).astype(dtype)
    ours = cuda.gradients(points, centers, 0.005, None, saved, grad_output)
    for out in ours:
        assert np.isfinite(out).all()


@pytest.mark.parametrize("d", [1, 3, 24, 40])
@pytest.mark.parametrize("gain", [np.nan, np.inf, -np.inf])
def test_gains_that_are_no_numbers_show(
    d: int, gain: float, dtype: Any, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    """In their own rows, and in sums over points; also of points that are rare."""
    points, centers, _ = make_mixture(rng, 40, 50, d, 0.3, dtype)
    points[7] *= dtype(1e12)
    weights = make_weights(rng, 50)
    saved = exact_log_density(points, centers, 0.3, weights).astype(dtype)
    for wrong in (range(40), [0], [7], [39]):
        for others in (0.0, 1.0):
            grad_output = np.full(40, others, dtype)
            grad_output[wrong] = gain
            problem = (points, centers, 0.3, weights, saved, grad_output)
            of_points, of_centers, weight_mass, noise_terms = cuda.gradients(*problem)
            is_wrong = np.isin(np.arange(40), wrong)
            assert (np.isnan(of_points) == is_wrong[:, None]).all()
            assert (np.isnan(noise_terms) == is_wrong).all()
            assert np.isnan(of_centers).all()
            assert np.isnan(weight_mass).all()


@pytest.mark.parametrize("d", [1, 2, 3, 7, 20, 24, 40, 100])
@pytest.mark.parametrize("size", [1e18, 1e19, 1e20])
def test_squares_beyond_all_numbers_count_for_nothing(
    d: int, size: float, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    """Centers and points at the ends of float32's range, as on the CPU."""
    points, centers, _ = make_mixture(rng, 70, 90, d, 0.3, np.float32)
    centers[10], centers[70, 0], centers[80] = size, -size, -size
    points[20], points[21, -1], points[69] = size, size, -size
    weights = make_weights(rng, 90).astype(np.float32)
    grad_output = rng.standard_normal(70).astype(np.float32)
    is_near = np.ones(70, bool)
    is_near[[20, 21, 69]] = False
    for w in (None, weights):
        exact = _core.log_density(points, centers, 0.3, w, 1)
        for path in (1, 2):
            ours = cuda.log_density(points, centers, 0.3, w, path)
            assert not np.isnan(ours).any()
            assert np.abs(ours[is_near] - exact[is_near]).max() <= 1e-4
        ours = cuda.skipping_log_density(points, centers, 0.3, 1e-6, w)
        assert np.abs(ours[is_near] - exact[is_near]).max() <= 1e-4
        problem = (points, centers, 0.3, w, exact, grad_output)
        found = cuda.gradients(*problem)
        assert all(np.isfinite(out).all() for out in found)
        # Without the far points, which are one or the other's by rounding alone.
        problem = (points, centers, 0.3, w, exact, grad_output * is_near)
        of_points, of_centers, weight_mass, noise_terms = cuda.gradients(*problem)
        of_cpu = _core.log_density_gradients(*problem, *[True] * 4, 0.0, 1)
        scale = np.abs(grad_output).max() / 0.3
        assert np.abs(of_points - of_cpu[0]).max() <= 1e-4 * scale * d**0.5
        assert np.abs(of_centers - of_cpu[1]).max() <= 1e-4 * scale * d**0.5
        assert noise_terms.sum() == pytest.approx(of_cpu[3], rel=1e-4, abs=1e-3 * d)
        if w is None:
            assert np.allclose(weight_mass, of_cpu[2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("distance", [100.0, 1000.0, 1e5])
@pytest.mark.parametrize("d", [1, 3, 100])
def test_far_points_at_little_noise_are_finite_and_right(
    d: int, distance: float, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    """Exponents of up to 1e14: a fused product would keep what their rounding drops."""
    noise_std, m, n = 0.005, 60, 300
    centers = rng.uniform(-1, 1, (n, d)).astype(np.float32)
    directions = rng.standard_normal((m, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    points = (distance * directions).astype(np.float32)
    exact = exact_log_density(points, centers, noise_std)
    # Of the exponent, nearly all of it: a rounding for each dimension, and more.
    allowed = (d + 8) * np.finfo(np.float32).eps * np.abs(exact)
    found = [cuda.log_density(points, centers, noise_std, path=path) for path in (1, 2)]
    found.append(cuda.skipping_log_density(points, centers, noise_std, 1e-6))
    for ours in found:
        assert (np.abs(ours - exact) <= allowed).all()
    grad_output = rng.standard_normal(m).astype(np.float32)
    saved = exact.astype(np.float32)
    problem = (points, centers, noise_std, None, saved, grad_output)
    of_points, of_centers, weight_mass, noise_terms = cuda.gradients(*problem)
    # Which of the centers is nearest, rounding decides: all pull nearly alike.
    pull = -points.astype(float) / noise_std**2
    reach = 2 * d**0.5 / noise_std**2
    g = grad_output.astype(float)
    wrong = np.linalg.norm(of_points - g[:, None] * pull, axis=1)
    assert (wrong <= np.abs(g) * (reach + 1e-5 * distance / noise_std**2)).all()
    sums = of_points.sum(axis=0, dtype=float) + of_centers.sum(axis=0, dtype=float)
    assert np.abs(sums).max() <= 1e-5 * np.abs(of_points).sum(dtype=float)
    assert weight_mass.sum(dtype=float) == pytest.approx(n * g.sum(), rel=1e-3)
    squares = np.full(m, distance**2)
    terms = g * (squares / noise_std**2 - d) / noise_std
    slack = np.abs(g) * (2 * distance * d**0.5 + d) / noise_std**3
    assert (np.abs(noise_terms - terms) <= slack + 1e-4 * np.abs(terms)).all()


# -- skipping ------------------------------------------------------------------------


def make_clusters(
    rng: np.random.Generator, count: int, size: int, d: int, distance: float, dtype: Any
) -> Any:
    """Clusters side by side along the first axis, one after the other."""
    rows = 0.05 * rng.standard_normal((count, size, d))
    rows[:, :, 0] += distance * np.arange(count)[:, None]
    return rows.reshape(-1, d).astype(dtype)


@pytest.mark.parametrize("d", [1, 2, 3, 7, 10, 16, 20, 24])
def test_far_centers_are_skipped_and_the_rest_is_right(
    d: int, dtype: Any, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    noise_std, lost = 0.05, 1e-6
    work = {}
    for distance in (0.0, 10.0):
        points = make_clusters(rng, 6, 256, d, distance, dtype)
        centers = make_clusters(rng, 6, 256, d, distance, dtype)
        weights = make_weights(rng, len(centers)) if d % 2 else None
        before = cuda.num_barriers()
        ours = cuda.skipping_log_density(points, centers, noise_std, lost, weights)
        work[distance] = cuda.num_barriers() - before
        exact = exact_log_density(points, centers, noise_std, weights)
        allowed = allowed_error(exact, len(centers), d, noise_std, dtype)
        assert np.abs(ours - exact).max() <= lost + allowed
    assert work[10.0] < 0.6 * work[0.0]


def test_what_skipping_leaves_out_is_within_its_bound(
    cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    """In float64, where rounding hides nothing: a change, within the share asked."""
    points = np.sort(rng.uniform(0, 1, (700, 1)), axis=0)
    centers = np.sort(rng.uniform(0, 1, (3000, 1)), axis=0)
    exact = exact_log_density(points, centers, 0.02)
    for lost in (1e-3, 1e-6):
        ours = cuda.skipping_log_density(points, centers, 0.02, lost)
        assert np.abs(ours - exact).max() <= lost
        assert np.abs(ours - exact).max() > 1e-12, "nothing was left out"


# -- tensor cores --------------------------------------------------------------------


def tensor_log_density(
    cuda: cuda_host.HostCuda,
    points: Any,
    centers: Any,
    noise_std: float,
    weights: Any = None,
) -> tuple[Any, float]:
    """Path 2, and how many products per 16 points, 8 centers and 16 dimensions: 4 if
    all are evaluated by four products of parts; 0 if all are left to differences."""
    before = cuda.num_tensor_products()
    ours = cuda.log_density(points, centers, noise_std, weights, path=2)
    products = cuda.num_tensor_products() - before
    tiles = -(-len(points) // 128) * 8 * -(-len(centers) // 32) * 4
    return ours, products / (tiles * -(-points.shape[1] // 16))


@pytest.mark.parametrize("d", [24, 33, 64, 100, 256, 784])
def test_the_tensor_path_is_as_accurate_as_the_cpu_or_leaves_it_to_differences(
    d: int, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    """Data in [-1, 1]^d and their neighbours, noise 0.005 to 1, beyond the rounding."""
    m, n = (100, 60) if d > 100 else (130, 300)
    for noise_std in (0.005, 0.1, 0.3, 1.0):
        points, centers, _ = make_mixture(rng, m, n, d, noise_std, np.float32)
        weights = make_weights(rng, n) if noise_std == 0.3 else None
        exact = exact_log_density(points, centers, noise_std, weights)
        ours, products = tensor_log_density(cuda, points, centers, noise_std, weights)
        rounding = np.spacing(np.abs(exact).astype(np.float32)) / 2
        if products > 0:
            assert (np.abs(ours - exact) <= 2e-5 + rounding).all()
        if noise_std in (0.005, 1.0):
            assert (products > 0) == (noise_std == 1.0)


@pytest.mark.parametrize("d", [24, 64, 256])
def test_rivals_equally_near_are_within_the_bound_of_the_tensor_path(
    d: int, cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    """Two centers at each point's distance: either's exponent enters by half."""
    seen = set()
    for noise_std in (0.003, 0.05, 0.2, 1.5):
        points = rng.uniform(-1, 1, (60, d))
        normals = rng.standard_normal((2, 60, d))
        normals *= 2 * noise_std / np.linalg.norm(normals, axis=2, keepdims=True)
        centers = (points + normals).reshape(-1, d).astype(np.float32)
        points = points.astype(np.float32)
        exact = exact_log_density(points, centers, noise_std)
        ours, products = tensor_log_density(cuda, points, centers, noise_std)
        rounding = np.spacing(np.abs(exact).astype(np.float32)) / 2
        if products > 0:
            assert (np.abs(ours - exact) <= 2e-5 + rounding).all()
        seen.add(products)
    assert seen >= {0, 4}
    assert max(seen) >= 6


def test_points_out_of_reach_of_four_products_are_evaluated_by_six(
    cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    """Block by block: the nearest centers of the second one's points are too far."""
    points, centers, _ = make_mixture(rng, 256, 300, 32, 1.0, np.float32)
    points[200:] += np.float32(3.0)
    exact = exact_log_density(points, centers, 1.0)
    ours, products = tensor_log_density(cuda, points, centers, 1.0)
    rounding = np.spacing(np.abs(exact).astype(np.float32)) / 2
    assert (np.abs(ours - exact) <= 2e-5 + rounding).all()
    # Four for the first block and for 128 columns of the second, then six for that.
    assert products == pytest.approx((4 + 4 * 128 / 320 + 6) / 2)


def test_coincident_points_and_centers_are_exact_on_the_tensor_path(
    cuda: cuda_host.HostCuda,
) -> None:
    points = np.full((3, 30), 0.5, np.float32)
    for value in (0.5, 0.25):
        centers = np.full((70, 30), value, np.float32)
        exact = exact_log_density(points, centers, 1.0)
        ours, products = tensor_log_density(cuda, points, centers, 1.0)
        assert products > 0
        assert np.abs(ours - exact).max() <= np.spacing(np.float32(-exact.max()))


def test_the_bound_of_the_tensor_path_is_where_it_ends(
    cuda: cuda_host.HostCuda, rng: np.random.Generator
) -> None:
    """Norms about the centers' mean, over the noise: c N^2 on either side of 2e-5."""
    bound = cuda.module.tensor_error_bound
    assert bound(64, 100.0) == pytest.approx(100 * bound(64, 1.0))
    assert bound(64, 1.0) == pytest.approx(4 * bound(16, 1.0))
    centers = rng.standard_normal((256, 64)).astype(np.float32)
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    centers[1::2] = -centers[::2]  # the mean is zero, all norms are one
    for share, is_used in ((0.98, True), (1.02, False)):
        noise_std = float(np.sqrt(0.5 * bound(64, 1.0) / (share * 2e-5)))
        points = centers + np.float32(1e-4)
        _, products = tensor_log_density(cuda, points, centers, noise_std)
        assert (products > 0) == is_used


def test_sums_cut_off_as_tensor_cores_may_are_within_the_bound(
    cuda: cuda_host.HostCuda, tmp_path: Path
) -> None:
    """The same kernels with products added at 24 bits, the rest of each cut off."""
    script = """
import sys
import numpy as np
import test_cuda_host as t
import cuda_host, importlib.util
spec = importlib.util.spec_from_file_location("_cuda_host", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
cuda = cuda_host.HostCuda(module)
rng = np.random.default_rng(5)
for d, noise_std in ((24, 0.05), (64, 0.06), (64, 1.0), (256, 0.2)):
    points, centers, _ = t.make_mixture(rng, 60, 100, d, noise_std, np.float32)
    exact = t.exact_log_density(points, centers, noise_std)
    ours, products = t.tensor_log_density(cuda, points, centers, noise_std)
    rounding = np.spacing(np.abs(exact).astype(np.float32)) / 2
    assert products > 0
    assert (np.abs(ours - exact) <= 2e-5 + rounding).all(), (d, noise_std)
"""
    paths = [str(ROOT / "tests"), *sys.path]
    environment = os.environ | {
        "NOISYFLOW_SHIM_MMA": "truncate",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    command = [sys.executable, "-c", script, str(cuda.module.__file__)]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)


# -- the end of the interpreter ------------------------------------------------------

DYING = """
import importlib.util, sys, threading, time
sys.path.insert(0, sys.argv[2])
import cuda_host
import numpy as np
spec = importlib.util.spec_from_file_location("_cuda_host", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
cuda = cuda_host.HostCuda(module)
x = np.random.default_rng(0).normal(size=(1000, 3))
started = threading.Event()
def compute():
    while True:
        started.set()
        cuda.log_density(x, x, 0.1)
threading.Thread(target=compute, daemon=True).start()
started.wait()
time.sleep(0.1)
"""


def test_a_thread_that_launches_at_the_end_of_the_interpreter_does_not_abort_it(
    cuda: cuda_host.HostCuda,
) -> None:
    command = [sys.executable, "-c", DYING, str(cuda.module.__file__)]
    tests = str(Path(__file__).parent)
    for _ in range(3):
        done = subprocess.run(
            [*command, tests], capture_output=True, text=True, timeout=300
        )
        assert (done.returncode, done.stderr) == (0, "")


# -- the shim, and sanitizers --------------------------------------------------------


def build_program(folder: Path, name: str, options: list[str], csrc: Path) -> Path:
    """A program of tests/cuda with the launches of a csrc folder."""
    shim = ROOT / "tests" / "cuda"
    sources = [shim / f"{name}.cpp", shim / "host_shim.cpp"]
    if name == "check_launches":
        sources.append(csrc / "cuda" / "launch.cu")
    program = folder / name
    cuda_host.compile_host(program, sources, ["-O0", *options, f"-I{csrc}"])
    return program


def run_program(program: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program)], capture_output=True, text=True)


SANITIZERS = {
    "none": [],
    "memory": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-DSHIM_THREADS", "-fsanitize=thread"],
}


def has_sanitizer(options: list[str], folder: Path) -> bool:
    source = folder / "empty.cpp"
    source.write_text("int main() { return 0; }\n")
    command = [str(cuda_host.COMPILER), *options, str(source), "-o", str(folder / "e")]
    built = subprocess.run(command, capture_output=True)
    return built.returncode == 0 and run_program(folder / "e").returncode == 0


@pytest.mark.parametrize("kind", SANITIZERS)
def test_what_the_shim_promises_holds(kind: str, tmp_path: Path) -> None:
    if not has_sanitizer(SANITIZERS[kind], tmp_path):
        pytest.skip(f"no sanitizer of {kind} here")
    program = build_program(tmp_path, "test_shim", SANITIZERS[kind], ROOT / "csrc")
    result = run_program(program)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("kind", ["memory", "threads"])
def test_sanitizers_find_nothing_in_any_launch(kind: str, tmp_path: Path) -> None:
    if not has_sanitizer(SANITIZERS[kind], tmp_path):
        pytest.skip(f"no sanitizer of {kind} here")
    program = build_program(tmp_path, "check_launches", SANITIZERS[kind], ROOT / "csrc")
    result = run_program(program)
    assert result.returncode == 0, (result.stdout + result.stderr)[:4000]


def test_a_barrier_that_is_missing_is_reported(tmp_path: Path) -> None:
    """The first in a kernel of forward sums: its tile is read while it is written."""
    if not has_sanitizer(SANITIZERS["threads"], tmp_path):
        pytest.skip("no sanitizer of threads here")
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    kernels = csrc / "cuda" / "direct.cuh"
    text = kernels.read_text()
    at = text.index("__syncthreads();", text.index("    log_sums_kernel("))
    kernels.write_text(text[:at] + text[at + len("__syncthreads();") :])
    program = build_program(tmp_path, "check_launches", SANITIZERS["threads"], csrc)
    result = run_program(program)
    assert result.returncode != 0
    assert "data race" in result.stderr
