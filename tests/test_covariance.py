"""Mixtures of components with their own covariance, over CPU targets and dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from noisyflow import (
    _reference,
    gaussian_mixture_log_density,
    mixture_log_density,
    runtime,
    whitening_from_covariances,
)

# Unrolled kernels end at 10; blocks of rows are 4.
DIMS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 17, 32]
# Around a block (4 components), a group (32 to 4 points).
NUM_COMPONENTS = [1, 2, 3, 4, 5, 9, 33]
NUM_POINTS = [1, 3, 4, 5, 31, 32, 33]


def make_mixture(
    rng: np.random.Generator,
    m: int,
    n: int,
    d: int,
    scales: Any,
    dtype: Any,
    condition: float = 10.0,
) -> tuple[Any, Any, Any]:
    """Points of the mixture, means uniform on [-1, 1]^d, and whitening factors.

    Axes are random; standard deviations along them are `scales` (a number, or one per
    component) times factors from 1 to the root of the condition number.
    """
    axes = np.linalg.qr(rng.standard_normal((n, d, d)))[0]
    factors = condition ** (0.5 * rng.random((n, d)))
    stds = np.broadcast_to(scales, n)[:, None] * factors
    # R of the QR decomposition of diag(1/stds) axes' whitens; its transpose is upper,
    # so reverse rows and columns to have it lower.
    upper = np.linalg.qr((axes / stds[:, None, :]).swapaxes(1, 2)[:, :, ::-1])[1]
    upper *= np.sign(np.diagonal(upper, axis1=1, axis2=2))[:, :, None]
    whitening = np.tril(upper[:, ::-1, ::-1])
    centers = rng.uniform(-1, 1, (n, d))
    own = rng.integers(0, n, m)
    noise = rng.standard_normal((m, d)) * stds[own]
    points = centers[own] + np.einsum("irk,ik->ir", axes[own], noise)
    return points.astype(dtype), centers.astype(dtype), whitening.astype(dtype)


def scipy_log_density(
    points: Any, centers: Any, whitening: Any, weights: Any = None
) -> Any:
    """SciPy's component densities and log-sum-exp, float64, from covariances."""
    precisions = np.einsum("jrk,jrc->jkc", *2 * (whitening.astype(float),))
    n = len(centers)
    terms = [
        multivariate_normal(center, np.linalg.inv(precision)).logpdf(points)
        for center, precision in zip(centers.astype(float), precisions, strict=True)
    ]
    w = np.full(n, 1 / n) if weights is None else weights
    return logsumexp(np.reshape(terms, (n, len(points))), axis=0, b=w[:, None])


def allowed_error(points: Any, centers: Any, whitening: Any, exact: Any) -> Any:
    """A bound per point from the order of operations, in units of u = eps / 2.

    A row of A (x - mu) carries at most d + 3 roundings of terms |A_rk| |x - mu|_k; the
    sum of squares d + 2 more, of numbers up to the exponent or the offset that
    accumulation starts from. Terms that matter have exponents at most the smallest,
    plus log(n / u), where exponents include the log-determinants. A tile's sum has at
    most 512 additions, the exponential 5 u, and the result is rounded once.
    """
    u = np.finfo(points.dtype).eps / 2
    factors = whitening.astype(float)
    (n, d) = centers.shape
    differences = points[:, None, :].astype(float) - centers
    rows = np.einsum("jrk,ijk->ijr", factors, differences)
    sizes = np.einsum("jrk,ijk->ijr", np.abs(factors), np.abs(differences))
    squares = 0.5 * (rows**2).sum(axis=2)
    log_dets = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
    exponents = squares - log_dets
    limit = exponents.min(axis=1, keepdims=True) + np.log(n / u)
    of_rows = (d + 3) * (np.abs(rows) * sizes).sum(axis=2)
    of_squares = (d + 2) * (squares + np.log(n / u) + 30)
    worst = np.where(exponents <= limit, of_rows + of_squares, 0).max(axis=1)
    return u * (worst + min(n, 512) + 5 + np.abs(exact))


def check_against_reference(points: Any, centers: Any, whitening: Any) -> None:
    ours = gaussian_mixture_log_density(points, centers, whitening)
    exact = _reference.gaussian_mixture_log_density(points, centers, whitening)
    assert ours.dtype == points.dtype
    assert ours.shape == (len(points),)
    allowed = allowed_error(points, centers, whitening, exact)
    assert (np.abs(ours - exact) <= allowed).all()


@pytest.mark.parametrize("d", [1, 2, 3, 7, 20])
def test_values_are_scipys(d: int, dtype: Any, cpu_target: str, rng: Any) -> None:
    points, centers, whitening = make_mixture(rng, 40, 9, d, 0.3, dtype)
    weights = rng.dirichlet(np.ones(9)).astype(dtype)
    for w in (None, weights):
        exact = scipy_log_density(points, centers, whitening, w)
        ours = gaussian_mixture_log_density(points, centers, whitening, weights=w)
        scale = 1 + np.abs(exact).max()
        # 1e-12: SciPy's own error, through inverse and eigenvalues.
        allowed = max(1e-12, 50 * np.finfo(dtype).eps) * scale
        assert np.abs(ours - exact).max() <= allowed
        specified = _reference.gaussian_mixture_log_density(
            points, centers, whitening, w
        )
        assert np.abs(specified - exact).max() <= 1e-12 * scale


@pytest.mark.parametrize("d", DIMS)
def test_error_is_within_the_rounding_of_its_operations(
    d: int, dtype: Any, cpu_target: str, rng: Any
) -> None:
    for n in NUM_COMPONENTS:
        for m in NUM_POINTS[:: 1 if n in (1, 5) else 3]:
            for scale in (0.005, 0.3, 3.0):
                check_against_reference(*make_mixture(rng, m, n, d, scale, dtype))


@pytest.mark.parametrize(("n", "d"), [(1030, 1), (1025, 2), (250, 10), (50, 32)])
def test_calls_of_many_tasks_and_tiles_match_the_reference(
    n: int, d: int, dtype: Any, cpu_target: str, rng: Any
) -> None:
    """A tile has 512 components at d = 2, at least 16 at d = 32; a task 512 points."""
    for scale in (0.01, 1.0):
        check_against_reference(*make_mixture(rng, 513, n, d, scale, dtype))


@pytest.mark.parametrize("d", [1, 2, 5, 10, 20, 32])
def test_error_keeps_the_stated_bounds(
    d: int, dtype: Any, cpu_target: str, rng: Any
) -> None:
    spread = np.exp(rng.uniform(np.log(0.005), 0, 300))
    for scales in (0.005, 0.1, 1.0, spread):
        points, centers, whitening = make_mixture(rng, 400, 300, d, scales, dtype)
        exact = _reference.gaussian_mixture_log_density(points, centers, whitening)
        error = np.abs(gaussian_mixture_log_density(points, centers, whitening) - exact)
        if dtype == np.float64:
            assert (error <= 1e-12 * np.maximum(1, np.abs(exact))).all()
        else:
            assert error.max() <= (1e-5 if d <= 10 else 2e-5)


@pytest.mark.parametrize("d", [1, 3, 10, 15])
def test_equal_covariances_are_the_isotropic_mixture(
    d: int, dtype: Any, cpu_target: str, rng: Any
) -> None:
    centers = rng.uniform(-1, 1, (70, d)).astype(dtype)
    points = (centers[:50] + 0.25 * rng.standard_normal((50, d))).astype(dtype)
    weights = rng.dirichlet(np.ones(70)).astype(dtype)
    whitening = np.tile(np.eye(d, dtype=dtype) / dtype(0.25), (70, 1, 1))
    ours = gaussian_mixture_log_density(points, centers, whitening, weights=weights)
    isotropic = mixture_log_density(points, centers, 0.25, weights=weights)
    scale = 1 + np.abs(isotropic)
    assert (np.abs(ours - isotropic) <= 40 * np.finfo(dtype).eps * scale).all()


@pytest.mark.parametrize("d", [2, 5, 16])
def test_a_change_of_coordinates_subtracts_its_log_determinant(
    d: int, cpu_target: str, rng: Any
) -> None:
    """L(M x + b; M mu + b, M Sigma M') = L(x; mu, Sigma) - log |det M|."""
    points, centers, whitening = make_mixture(rng, 40, 30, d, 0.2, np.float64)
    sigma = np.linalg.inv(np.einsum("jrk,jrc->jkc", whitening, whitening))
    change = np.linalg.qr(rng.standard_normal((d, d)))[0] * rng.uniform(0.5, 3, d)
    moved = change @ sigma @ change.T
    shift = rng.standard_normal(d)
    before = gaussian_mixture_log_density(points, centers, whitening)
    after = gaussian_mixture_log_density(
        points @ change.T + shift,
        centers @ change.T + shift,
        whitening_from_covariances((moved + moved.swapaxes(1, 2)) / 2),
    )
    expected = before - np.linalg.slogdet(change)[1]
    np.testing.assert_allclose(after, expected, rtol=1e-11, atol=1e-11)


def test_weights_enter_the_sum(dtype: Any, cpu_target: str, rng: Any) -> None:
    for d in (1, 3, 12):
        for n in (2, 13, 300):
            points, centers, whitening = make_mixture(rng, 40, n, d, 0.2, dtype)
            weights = rng.random(n)
            weights[rng.random(n) < 0.3] = 0
            weights[-1] = 1
            weights = (weights / weights.sum()).astype(dtype)
            problem = (points, centers, whitening)
            exact = _reference.gaussian_mixture_log_density(*problem, weights)
            ours = gaussian_mixture_log_density(*problem, weights=weights)
            # A term as large as its weight is small may now matter: the largest bound.
            allowed = allowed_error(*problem, exact).max() * 2
            assert np.abs(ours - exact).max() <= allowed


def test_a_component_of_weight_zero_counts_for_nothing(
    dtype: Any, cpu_target: str
) -> None:
    centers = np.array([[0.0], [100.0]], dtype)
    whitening = np.full((2, 1, 1), 10.0, dtype)
    weights = np.array([0.0, 1.0], dtype)
    near_the_absent_one = np.zeros((1, 1), dtype)
    ours = gaussian_mixture_log_density(
        near_the_absent_one, centers, whitening, weights=weights
    )
    exact = -0.5 * 1000.0**2 - 0.5 * np.log(2 * np.pi * 0.01)
    assert abs(ours[0] / exact - 1) <= 8 * np.finfo(dtype).eps


def test_points_far_from_every_component_lose_no_relative_accuracy(
    dtype: Any, cpu_target: str, rng: Any
) -> None:
    _, centers, whitening = make_mixture(rng, 1, 100, 3, 0.01, dtype, condition=1)
    points = (1000 * rng.standard_normal((50, 3))).astype(dtype)
    exact = _reference.gaussian_mixture_log_density(points, centers, whitening)
    ours = gaussian_mixture_log_density(points, centers, whitening)
    assert np.isfinite(ours).all()
    assert (np.abs(ours / exact - 1) <= 20 * np.finfo(dtype).eps).all()


@pytest.mark.parametrize("d", [1, 3, 12])
def test_an_approaching_sequence_of_components_overflows_nothing(
    d: int, dtype: Any, cpu_target: str
) -> None:
    """Each component is nearer than all before: offsets move again and again."""
    steps = np.linspace(30, 0, 600)[:, None]
    centers = np.repeat(steps, d, axis=1).astype(dtype)
    whitening = np.tile(20 * np.eye(d, dtype=dtype), (600, 1, 1))
    points = np.zeros((20, d), dtype)
    exact = _reference.gaussian_mixture_log_density(points, centers, whitening)
    ours = gaussian_mixture_log_density(points, centers, whitening)
    assert np.abs(ours - exact).max() <= 100 * np.finfo(dtype).eps


def test_many_terms_just_below_the_slack_overflow_nothing(
    dtype: Any, cpu_target: str
) -> None:
    """2000 terms 2^19.5 above the first one's, which set the offset."""
    exponents = np.full(2001, 0.0)
    exponents[0] = 19.5 * np.log(2)
    centers = np.sqrt(2 * exponents)[:, None].astype(dtype)
    whitening = np.ones((2001, 1, 1), dtype)
    points = np.zeros((5, 1), dtype)
    exact = _reference.gaussian_mixture_log_density(points, centers, whitening)
    ours = gaussian_mixture_log_density(points, centers, whitening)
    assert np.abs(ours - exact).max() <= 60 * np.finfo(dtype).eps


def test_determinants_of_any_size_are_exact(dtype: Any, cpu_target: str) -> None:
    """At the means of isolated components, the log-density is their normaliser."""
    d, stds = 32, np.array([1e-12, 1e-3, 1.0, 1e5, 1e11], dtype)
    centers = np.zeros((5, d), dtype)
    centers[:, 0] = [0, 1e2, 1e3, 1e10, 1e15]
    whitening = (np.eye(d)[None] / stds[:, None, None].astype(float)).astype(dtype)
    ours = gaussian_mixture_log_density(centers[:1], centers, whitening)
    log_det = np.log(whitening[0].diagonal().astype(float)).sum()
    exact = log_det - 0.5 * d * np.log(2 * np.pi) - np.log(5)
    assert abs(ours[0] / exact - 1) <= 2 * np.finfo(dtype).eps
    for j in range(5):
        alone = gaussian_mixture_log_density(
            centers[j : j + 1], centers[j : j + 1], whitening[j : j + 1]
        )
        log_det = np.log(whitening[j].diagonal().astype(float)).sum()
        exact = log_det - 0.5 * d * np.log(2 * np.pi)
        assert abs(alone[0] - exact) <= np.finfo(dtype).eps * abs(exact)


@pytest.mark.parametrize("d", [2, 6, 14])
def test_near_singular_covariances_stay_within_their_rounding(
    d: int, dtype: Any, cpu_target: str, rng: Any
) -> None:
    condition = 1e6 if dtype == np.float32 else 1e14
    check_against_reference(
        *make_mixture(rng, 60, 40, d, 0.01, dtype, condition=condition)
    )


def test_components_whose_squares_overflow_are_infinitely_far(
    dtype: Any, cpu_target: str
) -> None:
    """The near one is first, last of its block of 4, or after far blocks."""
    large = np.sqrt(np.finfo(dtype).max) * 8
    points = np.zeros((3, 1), dtype)
    for near in (0, 3, 8):
        centers = np.full((9, 1), large, dtype)
        centers[near] = 0
        ours = gaussian_mixture_log_density(points, centers, np.ones((9, 1, 1), dtype))
        exact = -0.5 * np.log(2 * np.pi) - np.log(9)
        assert np.abs(ours - exact).max() <= 4 * np.finfo(dtype).eps


def test_far_points_with_large_determinants_are_finite(cpu_target: str) -> None:
    """Exponents of about 2^33 in float32 are multiples of 1024, the power is -512."""
    d, factor = 32, np.float32(2**16)
    whitening = (factor * np.eye(d, dtype=np.float32))[None]
    whitening[0, -1, -1] /= 2
    points = np.zeros((500, d), np.float32)
    points[:, 0] = np.linspace(1.7, 2.3, 500)
    centers = np.zeros((1, d), np.float32)
    exact = _reference.gaussian_mixture_log_density(points, centers, whitening)
    ours = gaussian_mixture_log_density(points, centers, whitening)
    assert (np.abs(ours / exact - 1) <= 20 * np.finfo(np.float32).eps).all()


def test_equal_components_are_one(dtype: Any, cpu_target: str, rng: Any) -> None:
    points, centers, whitening = make_mixture(rng, 33, 1, 4, 0.3, dtype)
    one = gaussian_mixture_log_density(points, centers, whitening)
    many = gaussian_mixture_log_density(
        points, np.repeat(centers, 700, axis=0), np.repeat(whitening, 700, axis=0)
    )
    np.testing.assert_allclose(many, one, rtol=0, atol=100 * np.finfo(dtype).eps)


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(0, 70),
    n=st.integers(1, 40),
    d=st.integers(1, 32),
    log_scale=st.floats(-8, 8),
    seed=st.integers(0, 2**32 - 1),
    is_single=st.booleans(),
)
def test_any_shape_and_scale_matches_the_reference(
    m: int, n: int, d: int, log_scale: float, seed: int, is_single: bool
) -> None:
    dtype = np.float32 if is_single else np.float64
    rng = np.random.default_rng(seed)
    check_against_reference(*make_mixture(rng, m, n, d, np.exp(log_scale), dtype))


def test_the_number_of_threads_does_not_change_a_bit(cpu_target: str, rng: Any) -> None:
    problem = make_mixture(rng, 1500, 2000, 3, 0.1, np.float32)
    results = []
    for count in (1, 2, 3, 7):
        runtime.set_num_threads(count)
        results.append(gaussian_mixture_log_density(*problem))
    runtime.set_num_threads(None)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_any_memory_layout_gives_the_same_bits(dtype: Any, rng: Any) -> None:
    points, centers, whitening = make_mixture(rng, 30, 20, 4, 0.3, dtype)
    weights = rng.dirichlet(np.ones(20)).astype(dtype)
    expected = gaussian_mixture_log_density(points, centers, whitening, weights=weights)
    wide = np.zeros((20, 8, 8), dtype)
    wide[:, ::2, ::2] = whitening
    ours = gaussian_mixture_log_density(
        np.asfortranarray(points),
        np.asfortranarray(centers),
        wide[:, ::2, ::2],
        weights=np.repeat(weights, 2)[::2],
    )
    np.testing.assert_array_equal(ours, expected)


def test_torch_tensors_give_torch_tensors_of_the_same_bits(
    dtype: Any, rng: Any
) -> None:
    problem = make_mixture(rng, 20, 30, 3, 0.3, dtype)
    ours = gaussian_mixture_log_density(*map(torch.from_numpy, problem))
    assert isinstance(ours, torch.Tensor)
    np.testing.assert_array_equal(ours.numpy(), gaussian_mixture_log_density(*problem))
    sigma = torch.eye(3, dtype=ours.dtype)[None] * 4
    assert torch.equal(whitening_from_covariances(sigma), sigma / 8)


X = np.zeros((3, 2))
Y = np.ones((4, 2))
A = np.tile(np.eye(2), (4, 1, 1))


def altered(value: float, *at: int) -> Any:
    array = A.copy()
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], Y, A), ValueError, r"points must have shape \(n, d\)"),
        ((X, np.ones((4, 3)), A), ValueError, r"same dimension.*\(3, 2\).*\(4, 3\)"),
        ((X, Y[:0], A), ValueError, "centers must not be empty"),
        ((X, Y, A[0]), ValueError, r"whitening must have shape \(n, d, d\), got shape"),
        ((X, Y, A[:, :1]), ValueError, r"whitening must have shape \(n, d, d\)"),
        ((X, Y, A[:0]), ValueError, "whitening must not be empty"),
        ((X, Y, A[:3]), ValueError, r"shape \(4, 2, 2\), one factor per center, got"),
        ((X, Y, A.astype(np.float32)), TypeError, "whitening and centers.*same dtype"),
        ((X, Y, A.astype(int)), TypeError, "whitening must be float32 or float64"),
        ((X, Y, torch.from_numpy(A)), TypeError, "both be NumPy arrays or both torch"),
        ((X, Y, altered(np.nan, 2, 1, 0)), ValueError, r"finite, got nan at \[2, 1, 0"),
        ((X, Y, altered(np.inf, 3, 1, 1)), ValueError, r"finite, got inf at \[3, 1, 1"),
        ((X, Y, altered(0.5, 1, 0, 1)), ValueError, r"triangular, got 0.5 at \[1, 0, "),
        ((X, Y, altered(0.0, 0, 1, 1)), ValueError, "positive diagonal, got 0.0 at"),
        ((X, Y, altered(-2.0, 3, 0, 0)), ValueError, "positive diagonal, got -2.0 at"),
        ((X + np.nan, Y, A), ValueError, r"points must be finite, got nan at \[0, 0"),
        ((X + 1e200, Y, A), ValueError, "log-density is not representable.*overflow"),
        (
            (X + 1e200, Y, A * 1e200),
            ValueError,
            "whitening times points - centers over",
        ),
        ((X + 1.7e308, Y - 1.7e308, A * 1e-300), ValueError, "overflows float64"),
        (
            (np.zeros((1, 33)), np.zeros((1, 33)), np.eye(33)[None]),
            ValueError,
            "at most 32 dimensions, got 33",
        ),
    ],
)
def test_bad_input_is_named(
    arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        gaussian_mixture_log_density(*arguments)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (np.ones(3) / 3, ValueError, r"weights must have shape \(4,\)"),
        (np.ones(4), ValueError, "weights must sum to 1, got a sum of 4"),
        (np.array([0.5, 0.5, 0.5, -0.5]), ValueError, "not negative, got -0.5"),
        (np.ones(4, np.float32) / 4, TypeError, "dtype of centers"),
    ],
)
def test_bad_weights_are_named(
    weights: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        gaussian_mixture_log_density(X, Y, A, weights=weights)


def test_no_points_give_no_values() -> None:
    assert gaussian_mixture_log_density(X[:0], Y, A).shape == (0,)


@pytest.mark.parametrize("d", [1, 2, 5, 32])
def test_whitening_makes_covariances_the_identity(d: int, dtype: Any, rng: Any) -> None:
    roots = rng.standard_normal((20, d, d + 3))
    sigma = (roots @ roots.swapaxes(1, 2)).astype(dtype)
    whitening = whitening_from_covariances(sigma)
    assert whitening.dtype == dtype
    assert (np.triu(whitening, 1) == 0).all()
    assert (np.diagonal(whitening, axis1=1, axis2=2) > 0).all()
    white = whitening @ sigma.astype(float) @ whitening.swapaxes(1, 2)
    conditions = np.linalg.cond(sigma.astype(float))
    error = np.abs(white - np.eye(d)).max(axis=(1, 2))
    assert (error <= 4 * d * np.finfo(dtype).eps * conditions).all()


def test_the_first_matrix_that_is_not_positive_definite_is_named() -> None:
    sigma = np.tile(np.eye(2), (4, 1, 1))
    sigma[2] = sigma[3] = [[1.0, 2.0], [2.0, 1.0]]
    with pytest.raises(
        np.linalg.LinAlgError, match=r"covariances\[2\].*eigenvalue.*-1"
    ):
        whitening_from_covariances(sigma)


@pytest.mark.parametrize(
    ("covariances", "error", "message"),
    [
        (np.eye(2), ValueError, r"covariances must have shape \(n, d, d\)"),
        (A[:0], ValueError, "covariances must not be empty"),
        (altered(np.nan, 1, 0, 1), ValueError, r"finite, got nan at \[1, 0, 1\]"),
        (altered(0.5, 3, 0, 1), ValueError, r"symmetric, got covariances\[3\].* 0.5"),
        (A.astype(int), TypeError, "covariances must be float32 or float64"),
    ],
)
def test_bad_covariances_are_named(
    covariances: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        whitening_from_covariances(covariances)
