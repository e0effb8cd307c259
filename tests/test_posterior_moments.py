"""Mean and covariance of the center given the point, over CPU targets and dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisyflow import (
    _core,
    _reference,
    mixture_log_density,
    posterior_moments,
    runtime,
)

# Rows of the matrix of sums, d + 1, come in blocks of 4 or 3.
DIMS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 31, 32]
# Around a block of centers (8), the buffer (8 to 64) and what is summed in T (512).
NUM_CENTERS = [1, 2, 7, 8, 9, 17, 65, 600]
# Around a vector of points (16 to 2).
NUM_POINTS = [1, 2, 3, 15, 16, 17, 33]


def make_mixture(
    rng: np.random.Generator, m: int, n: int, d: int, noise_std: float, dtype: Any
) -> tuple[Any, Any]:
    """Points of the mixture, and centers uniform on [-1, 1]^d."""
    centers = rng.uniform(-1, 1, (n, d)).astype(dtype)
    noise = noise_std * rng.standard_normal((m, d))
    return (centers[rng.integers(0, n, m)] + noise).astype(dtype), centers


def sparse_weights(rng: np.random.Generator, n: int, dtype: Any) -> Any:
    weights = rng.random(n)
    weights[rng.random(n) < 0.3] = 0
    weights[-1] = 1
    return (weights / weights.sum()).astype(dtype)


def allowed_errors(
    points: Any, centers: Any, noise_std: float, weights: Any
) -> tuple[Any, Any]:
    """Bounds for mean and covariance in noise units, from the order of operations.

    With u = eps / 2 and all lengths in units of noise_std. A center matters whose
    exponent is within log(n / u) of the smallest, plus the 10 bits by which an offset
    may lag. Differences e from the pivot, squares and their sum from the offset: d + 4
    roundings of numbers up to `size`. Then 10 u for the exponential's root and its
    products, and 512 additions. The pivot is the point where centers are nearer than
    128^0.5, else a center that matters: then squared distances are e.(e + 2 a), with a
    the distance of the pivot. A weight's relative error changes second moments about
    the pivot by as much, and the covariance by at most four times that.
    """
    u = np.finfo(points.dtype).eps / 2
    x, y = (array.astype(float) / noise_std for array in (points, centers))
    (n, d) = y.shape
    squares = ((x[:, None, :] - y) ** 2).sum(axis=2)
    w = np.full(n, 1 / n) if weights is None else weights.astype(float)
    with np.errstate(divide="ignore"):
        exponents = 0.5 * squares - np.log(w)
    least = exponents.min(axis=1, keepdims=True)
    matters = exponents <= least + np.log(n / u) + 10 * np.log(2)

    farthest = np.sqrt(np.where(matters, squares, 0).max(axis=1))
    nearest = np.sqrt(np.where(matters, squares, np.inf).min(axis=1))
    spread = np.array([np.ptp(y[row], axis=0) for row in matters])
    width = np.sqrt((spread**2).sum(axis=1))
    is_near, is_far = nearest**2 <= 129, farthest**2 >= 127
    near_size = 2 * (least[:, 0] + np.log(n / u) + 7)
    far_size = 0.5 * width * (width + 2 * farthest) + np.log(n / u) + 7
    size = np.maximum(is_near * near_size, is_far * far_size)
    reach = np.maximum(is_near * farthest, is_far * width)

    # The specification rounds the whole exponents, in float64.
    relative = u * ((d + 4) * size + min(n, 512) + 20)
    relative += 2**-53 * (d + 4) * near_size
    # All that a center adds that matters too little to be right, or to be there at all.
    rest = np.where(matters, 0, np.exp(least - exponents))
    lengths = np.sqrt(squares) + farthest[:, None]
    of_mean = relative * reach + 4 * u * farthest + 2 * (rest * lengths).sum(axis=1)
    of_covariance = 4 * relative * reach**2 + 4 * (rest * lengths**2).sum(axis=1)
    return of_mean, of_covariance


def check_against_reference(
    points: Any, centers: Any, noise_std: float, weights: Any = None
) -> None:
    ours = posterior_moments(
        points, centers, noise_std, weights=weights, in_noise_units=True
    )
    (m, d) = points.shape
    assert [part.dtype for part in ours] == 3 * [points.dtype]
    assert [part.shape for part in ours] == [(m,), (m, d), (m, d, d)]
    if m == 0:
        return
    exact = _reference.posterior_moments(points, centers, noise_std, weights)
    of_mean, of_covariance = allowed_errors(points, centers, noise_std, weights)
    mean_error = np.abs(ours.mean - exact[1] / noise_std).max(axis=1)
    covariance_error = np.abs(ours.covariance - exact[2] / noise_std**2)
    eps = np.finfo(points.dtype).eps
    densities = eps * (np.abs(exact[0]) * (d + 8) + min(len(centers), 512) + 100)
    largest = np.abs(exact[2]).max(axis=(1, 2)) / noise_std**2
    assert (np.abs(ours.log_density - exact[0]) <= densities).all()
    assert (mean_error <= of_mean).all()
    assert (covariance_error.max(axis=(1, 2)) <= of_covariance + eps * largest).all()
    np.testing.assert_array_equal(ours.covariance, ours.covariance.swapaxes(1, 2))


@pytest.mark.parametrize("noise_std", [0.005, 0.1, 1.0])
def test_moments_are_the_references(
    noise_std: float, dtype: Any, cpu_target: str, rng: Any
) -> None:
    for d in DIMS:
        check_against_reference(
            *make_mixture(rng, 17, 65, d, noise_std, dtype), noise_std
        )
    for m in NUM_POINTS:
        check_against_reference(
            *make_mixture(rng, m, 40, 3, noise_std, dtype), noise_std
        )
    for n in NUM_CENTERS:
        points, centers = make_mixture(rng, 20, n, 5, noise_std, dtype)
        check_against_reference(points, centers, noise_std)
        weights = sparse_weights(rng, n, dtype)
        check_against_reference(points, centers, noise_std, weights)


@pytest.mark.parametrize("d", [1, 2, 5, 10, 20, 32])
def test_the_declared_error_holds(
    d: int, dtype: Any, cpu_target: str, rng: Any
) -> None:
    """The docstring's: 1e-4 in float32; in float64 the same number of roundings."""
    for noise_std in (0.005, 0.05, 0.3, 1.0):
        points, centers = make_mixture(rng, 150, 700, d, noise_std, dtype)
        ours = posterior_moments(points, centers, noise_std, in_noise_units=True)
        exact = _reference.posterior_moments(points, centers, noise_std)
        covariance = exact[2] / noise_std**2
        scale = np.maximum(1, np.abs(covariance).max(axis=(1, 2)))
        error = np.abs(ours.covariance - covariance).max(axis=(1, 2)) / scale
        allowed = 1e-4 * np.finfo(dtype).eps / np.finfo(np.float32).eps
        assert error.max() <= allowed
        mean_error = np.abs(ours.mean - exact[1] / noise_std).max(axis=1)
        assert (mean_error / scale).max() <= allowed


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(0, 40),
    n=st.integers(1, 70),
    d=st.integers(1, 32),
    log_scale=st.floats(-8, 8),
    seed=st.integers(0, 2**32 - 1),
    is_single=st.booleans(),
    is_weighted=st.booleans(),
)
def test_any_shape_and_scale_matches_the_reference(
    m: int,
    n: int,
    d: int,
    log_scale: float,
    seed: int,
    is_single: bool,
    is_weighted: bool,
) -> None:
    dtype = np.float32 if is_single else np.float64
    rng = np.random.default_rng(seed)
    noise_std = float(np.exp(log_scale))
    weights = sparse_weights(rng, n, dtype) if is_weighted else None
    check_against_reference(
        *make_mixture(rng, m, n, d, noise_std, dtype), noise_std, weights
    )


@pytest.mark.parametrize("noise_std", [0.005, 1.0])
def test_two_centers_have_a_hyperbolic_posterior(
    noise_std: float, dtype: Any, cpu_target: str
) -> None:
    """Centers -a and a: mean a tanh(a x / s^2), variance (a / cosh(a x / s^2))^2."""
    a = 1.5 * noise_std
    centers = np.array([[-a], [a]]).astype(dtype)
    a = float(centers[1, 0])
    points = (np.linspace(-3, 3, 41)[:, None] * noise_std).astype(dtype)
    at = a * points[:, 0].astype(float) / noise_std**2
    ours = posterior_moments(points, centers, noise_std)
    eps = np.finfo(dtype).eps
    mean = ours.mean[:, 0].astype(float) + points[:, 0]
    assert np.abs(mean - a * np.tanh(at)).max() <= 40 * eps * noise_std
    variance = (a / np.cosh(at)) ** 2
    assert np.abs(ours.covariance[:, 0, 0] - variance).max() <= 200 * eps * noise_std**2


def test_a_gaussian_cloud_of_centers_has_the_conjugate_posterior(
    dtype: Any, cpu_target: str
) -> None:
    """Variances t^2 along the axes: mean -x s^2 / (s^2 + t^2), 1 / (1/s^2 + 1/t^2).

    On a grid finer than every width, sums are integrals up to exp(-2 (pi / 0.3)^2).
    """
    stds, noise_std = np.array([0.5, 1.0]), 1.0
    axes = [np.arange(-8 * std, 8 * std, 0.3 * std) for std in stds]
    centers = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    weights = np.exp(-0.5 * ((centers / stds) ** 2).sum(axis=1))
    weights = (weights / weights.sum()).astype(dtype)
    points = np.array([[0.0, 0.0], [1.0, -2.0], [-0.3, 0.1]], dtype)
    ours = posterior_moments(points, centers.astype(dtype), noise_std, weights=weights)
    allowed = 1e-4 if dtype == np.float32 else 1e-12
    mean = -points / (1 + stds**2)
    assert np.abs(ours.mean - mean).max() <= allowed
    covariance = np.diag(1 / (1 + 1 / stds**2))
    assert np.abs(ours.covariance - covariance).max() <= allowed


@pytest.mark.parametrize("d", [1, 2, 6])
def test_mean_and_covariance_are_gradient_and_hessian(
    d: int, cpu_target: str, rng: Any
) -> None:
    """Central differences: truncation about (h / s)^2, rounding about 1e-14 s / h."""
    noise_std = 0.3
    points, centers = make_mixture(rng, 20, 50, d, noise_std, np.float64)
    weights = sparse_weights(rng, 50, np.float64)
    moments = posterior_moments(points, centers, noise_std, weights=weights)
    gradient = moments.mean / noise_std**2
    hessian = (moments.covariance / noise_std**2 - np.eye(d)) / noise_std**2
    h = 1e-4 * noise_std
    for k in range(d):
        step = h * np.eye(d)[k]

        def log_density(at: Any) -> Any:
            return mixture_log_density(
                at, centers, noise_std, weights=weights, max_lost_mass=0
            )

        def mean(at: Any) -> Any:
            return posterior_moments(at, centers, noise_std, weights=weights).mean

        slope = (log_density(points + step) - log_density(points - step)) / (2 * h)
        assert np.abs(slope - gradient[:, k]).max() <= 1e-6 / noise_std
        curve = (mean(points + step) - mean(points - step)) / (2 * h * noise_std**2)
        assert np.abs(curve - hessian[:, k]).max() <= 1e-6 / noise_std**2


@pytest.mark.parametrize("d", [2, 5])
def test_far_points_keep_their_covariance(d: int, dtype: Any, cpu_target: str) -> None:
    """A point 1e4 noise_std away, on the plane between two centers: variance a^2.

    Relative to the point, second moments of 1e8 in float32 would be multiples of 8.
    """
    noise_std = 0.005
    centers = np.zeros((30, d), dtype)
    centers[:, 1] = 50 + np.arange(30)  # beyond the two
    centers[:2, 1] = 0
    centers[0, 0], centers[1, 0] = -noise_std, noise_std
    a = float(centers[1, 0])
    points = np.zeros((3, d), dtype)
    points[:, 1] = -1e4 * noise_std
    ours = posterior_moments(points, centers, noise_std)
    eps = np.finfo(dtype).eps
    expected = np.zeros((d, d))
    expected[0, 0] = a**2
    assert np.abs(ours.covariance - expected).max() <= 100 * eps * a**2
    assert np.abs(ours.mean[:, 0]).max() <= 100 * eps * a
    assert np.abs(ours.mean[:, 1] / (1e4 * noise_std) - 1).max() <= 4 * eps


def test_far_points_have_the_references_moments(
    dtype: Any, cpu_target: str, rng: Any
) -> None:
    for d in (1, 3, 12):
        centers = rng.uniform(-1, 1, (300, d)).astype(dtype)
        points = (30 * rng.standard_normal((40, d))).astype(dtype)
        points[::2] /= 30  # lanes of both kinds
        check_against_reference(points, centers, 0.1)


def test_an_isolated_center_is_certain(dtype: Any, cpu_target: str, rng: Any) -> None:
    centers = np.arange(40.0)[:, None].repeat(3, axis=1).astype(dtype)
    points = (centers + 0.005 * rng.standard_normal((40, 3))).astype(dtype)
    ours = posterior_moments(points, centers, 0.005)
    eps = np.finfo(dtype).eps
    difference = centers.astype(float) - points
    assert np.abs(ours.mean - difference).max() <= 8 * eps * np.abs(difference).max()
    assert np.abs(ours.covariance).max() <= 8 * eps * np.abs(difference).max() ** 2
    assert (np.diagonal(ours.covariance, axis1=1, axis2=2) >= 0).all()


@pytest.mark.parametrize("d", [1, 3, 12])
def test_an_approaching_sequence_of_centers_overflows_nothing(
    d: int, dtype: Any, cpu_target: str
) -> None:
    """Each center is nearer than all before: offsets and pivots keep moving."""
    steps = np.linspace(30, 0, 600)[:, None]
    centers = np.repeat(steps, d, axis=1).astype(dtype)
    points = np.zeros((20, d), dtype)
    points[:, 0] = np.linspace(-1, 1, 20)
    check_against_reference(points, centers, 0.05)


def test_many_terms_just_below_the_slack_overflow_nothing(
    dtype: Any, cpu_target: str
) -> None:
    """2000 terms 2^9.5 above those of the first, which set the offset."""
    centers = np.zeros((2100, 1), dtype)
    centers[:100] = np.sqrt(2 * 9.5 * np.log(2))
    points = np.zeros((5, 1), dtype)
    check_against_reference(points, centers, 1.0)


def test_centers_of_weight_zero_count_for_nothing(
    dtype: Any, cpu_target: str, rng: Any
) -> None:
    centers = np.array([[0.0], [3.0], [100.0]], dtype)
    weights = np.array([0.0, 1.0, 0.0], dtype)
    points = np.array([[0.0], [2.0], [100.0]], dtype)
    ours = posterior_moments(points, centers, 1.0, weights=weights)
    eps = np.finfo(dtype).eps
    assert np.abs(ours.mean - (3 - points)).max() <= 8 * eps * 100
    assert np.abs(ours.covariance).max() <= 16 * eps * 3**2


def test_centers_far_out_of_range_beside_near_ones_count_for_nothing(
    dtype: Any, cpu_target: str
) -> None:
    """In one block with them, where not every target has terms that vanish."""
    far = float(np.finfo(dtype).max) / 4
    centers = np.array([[-1.0], [1.0], [far**0.25], [far]], dtype)
    points = np.zeros((3, 1), dtype)
    ours = posterior_moments(points, centers, 1.0)
    assert np.abs(ours.mean).max() <= 8 * np.finfo(dtype).eps
    assert np.abs(ours.covariance - 1).max() <= 8 * np.finfo(dtype).eps


def test_equal_centers_are_one(dtype: Any, cpu_target: str, rng: Any) -> None:
    """So many of them that sums in float32 would lose digits."""
    points, centers = make_mixture(rng, 33, 4, 3, 0.3, dtype)
    few = posterior_moments(points, centers, 0.3)
    many = posterior_moments(points, np.tile(centers, (50_000, 1)), 0.3)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=300 * np.finfo(dtype).eps)


def test_noise_units_divide_by_the_noise(dtype: Any, rng: Any) -> None:
    points, centers = make_mixture(rng, 20, 30, 3, 0.25, dtype)
    raw = posterior_moments(points, centers, 0.25)
    scaled = posterior_moments(points, centers, 0.25, in_noise_units=True)
    np.testing.assert_array_equal(scaled.log_density, raw.log_density)
    np.testing.assert_array_equal(scaled.mean, raw.mean * 4)
    np.testing.assert_array_equal(scaled.covariance, raw.covariance * 16)


def test_the_log_density_is_that_of_the_mixture(
    dtype: Any, cpu_target: str, rng: Any
) -> None:
    for noise_std in (0.005, 0.3):
        points, centers = make_mixture(rng, 50, 400, 4, noise_std, dtype)
        ours = posterior_moments(points, centers, noise_std).log_density
        theirs = mixture_log_density(points, centers, noise_std, max_lost_mass=0)
        assert np.abs(ours - theirs).max() <= 200 * np.finfo(dtype).eps


def test_the_number_of_threads_does_not_change_a_bit(cpu_target: str, rng: Any) -> None:
    points, centers = make_mixture(rng, 1500, 700, 3, 0.1, np.float32)
    results = []
    for count in (1, 2, 3, 7):
        runtime.set_num_threads(count)
        results.append(posterior_moments(points, centers, 0.1))
    runtime.set_num_threads(None)
    for result in results[1:]:
        for part, expected in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(part, expected)


def test_any_memory_layout_gives_the_same_bits(dtype: Any, rng: Any) -> None:
    points, centers = make_mixture(rng, 30, 20, 4, 0.3, dtype)
    weights = rng.dirichlet(np.ones(20)).astype(dtype)
    expected = posterior_moments(points, centers, 0.3, weights=weights)
    wide = np.zeros((20, 9), dtype)
    wide[:, :4] = centers
    for x, y in [
        (np.asfortranarray(points), np.asfortranarray(centers)),
        (points[::-1].copy()[::-1], wide[:, :4]),
    ]:
        ours = posterior_moments(x, y, 0.3, weights=np.repeat(weights, 2)[::2])
        for part, wanted in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(part, wanted)


def test_torch_tensors_give_torch_tensors_of_the_same_bits(
    dtype: Any, rng: Any
) -> None:
    problem = make_mixture(rng, 20, 30, 3, 0.3, dtype)
    ours = posterior_moments(*map(torch.from_numpy, problem), 0.3)
    expected = posterior_moments(*problem, 0.3)
    for part, wanted in zip(ours, expected, strict=True):
        assert isinstance(part, torch.Tensor)
        np.testing.assert_array_equal(part.numpy(), wanted)


def test_no_points_give_no_moments() -> None:
    ours = posterior_moments(np.zeros((0, 3)), np.zeros((4, 3)), 1.0)
    assert [part.shape for part in ours] == [(0,), (0, 3), (0, 3, 3)]


X = np.zeros((3, 2))
Y = np.ones((4, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], Y, 1.0), ValueError, r"points must have shape \(n, d\)"),
        ((X, np.ones((4, 3)), 1.0), ValueError, r"same dimension.*\(3, 2\).*\(4, 3\)"),
        ((X, Y[:0], 1.0), ValueError, "centers must not be empty"),
        ((X, Y, 0.0), ValueError, "noise_std must be positive"),
        ((X, Y.astype(np.float32), 1.0), TypeError, "same dtype"),
        ((X + np.nan, Y, 1.0), ValueError, r"points must be finite, got nan at \[0, 0"),
        ((X + 1e200, Y, 1.0), ValueError, "log-density is not representable.*overflow"),
        (
            (np.zeros((1, 33)), np.zeros((1, 33)), 1.0),
            ValueError,
            "at most 32 dimensions, got 33",
        ),
    ],
)
def test_bad_input_is_named(
    arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        posterior_moments(*arguments)


def test_bad_weights_and_flags_are_named() -> None:
    with pytest.raises(ValueError, match="weights must sum to 1, got a sum of 4"):
        posterior_moments(X, Y, 1.0, weights=np.ones(4))
    with pytest.raises(TypeError, match="in_noise_units must be True or False, got 2"):
        posterior_moments(X, Y, 1.0, in_noise_units=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 1000])
@pytest.mark.parametrize("d", [1, 3, 40])
def test_a_kd_order_is_a_permutation(n: int, d: int, dtype: Any, rng: Any) -> None:
    order = _core.kd_order(rng.standard_normal((n, d)).astype(dtype), 16, 2)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize("d", [1, 2, 5])
def test_runs_of_a_kd_order_lie_close_together(d: int, dtype: Any, rng: Any) -> None:
    """4096 uniform rows in runs of 16: cells of 2^-8 the volume, 2^(-8/d) the width."""
    rows = rng.random((4096, d)).astype(dtype)
    order = _core.kd_order(rows, 16, 2)
    runs = rows[order].reshape(-1, 16, d)
    width = float(np.ptp(runs, axis=1).mean())
    assert width <= 1.5 * 2 ** (-8 / d)
    np.testing.assert_array_equal(order, _core.kd_order(rows, 16, 1))


def test_a_kd_order_needs_a_positive_leaf() -> None:
    with pytest.raises(ValueError, match="leaf must be positive"):
        _core.kd_order(np.zeros((3, 1)), 0, 1)
