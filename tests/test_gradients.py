"""Gradients of the log-density against the specification, and that against torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisyflow import _core, _reference

ALL = (True, True, True, True)
# Around what vectors hold (32 to 4 rows), a block of columns (6 or 3), chunks (16, 32).
DIMS = [1, 2, 3, 5, 16, 17, 20, 32, 33, 48, 64, 100]
SHAPES = [(1, 1), (2, 7), (33, 5), (17, 65), (70, 31), (40, 600), (600, 40)]


class Problem(NamedTuple):
    points: Any
    centers: Any
    noise_std: float
    weights: Any
    grad_output: Any

    def log_density(self) -> Any:
        return _core.log_density(*self[:4], 1)

    def gradients(
        self,
        want: tuple[bool, bool, bool, bool] = ALL,
        *,
        log_density: Any = None,
        max_lost_mass: float = 0,
        threads: int = 1,
    ) -> Any:
        saved = self.log_density() if log_density is None else log_density
        return _core.log_density_gradients(
            *self[:4], saved, self.grad_output, *want, max_lost_mass, threads
        )

    def pairs(self, max_lost_mass: float) -> int:
        return _core.gradient_pairs(
            *self[:4], self.log_density(), self.grad_output, *ALL, max_lost_mass, 1
        )

    def exact(self) -> Any:
        zeros = np.zeros(len(self.points))
        return _reference.log_density_gradients(*self[:4], zeros, self.grad_output)

    def posterior(self) -> Any:
        """p_ij and differences (m, n, d), in float64."""
        terms = _reference._log_terms(*self[:4])
        terms -= terms.max(axis=1, keepdims=True)
        posterior = np.exp(terms)
        posterior /= posterior.sum(axis=1, keepdims=True)
        x, y = self.points.astype(float), self.centers.astype(float)
        return posterior, y[None, :, :] - x[:, None, :]


def make_problem(
    rng: np.random.Generator,
    m: int,
    n: int,
    d: int,
    noise_std: float,
    dtype: Any,
    *,
    is_weighted: bool = False,
) -> Problem:
    """Points of the mixture; weights, if any, are zero for a third of the centers."""
    centers = rng.normal(size=(n, d)).astype(dtype)
    noise = noise_std * rng.standard_normal((m, d))
    points = (centers[rng.integers(0, n, m)] + noise).astype(dtype)
    weights = None
    if is_weighted:
        w = rng.random(n)
        w[rng.random(n) < 0.3] = 0
        w[-1] = 1
        weights = (w / w.sum()).astype(dtype)
    return Problem(
        points, centers, noise_std, weights, rng.normal(size=m).astype(dtype)
    )


def allowed_errors(problem: Problem) -> tuple[Any, Any, Any, float]:
    """Bounds of the four gradients' errors, from the order of operations.

    u = eps / 2. Exponents that matter are within log(n / u) of the smallest; they are
    sums of d squares, from an offset, with d + 6 roundings of numbers up to `size`, or
    |x|^2 + |y|^2 - 2 x.y where that is exact to most_error. A posterior then has a
    relative error, twice for its normaliser, and 512 additions and products follow.
    What is added to a gradient is the sum of absolute terms times that. The expanded
    form sums coordinates from an origin, of 11 noise_std at most, in differences'
    place.
    """
    u = float(np.finfo(problem.points.dtype).eps) / 2
    most_error = 1e-4 if u > 1e-10 else 1e-12
    posterior, differences = problem.posterior()
    (m, n, d), s = differences.shape, problem.noise_std
    squares = (differences**2).sum(axis=2) / s**2
    w = np.full(n, 1 / n) if problem.weights is None else problem.weights.astype(float)
    with np.errstate(divide="ignore"):
        least = (0.5 * squares - np.log(w)).min(axis=1)
    size = least + np.log(n / u) + 10
    relative = 2 * (u * ((d + 6) * size + min(max(m, n), 512) + 20))
    relative += most_error if d > 16 else 0
    relative = np.expm1(np.minimum(relative, 100))
    g = np.abs(problem.grad_output.astype(float))
    reach = np.abs(differences) / s + (11 if d > 16 else 0)
    along = (g * relative)[:, None, None] * posterior[:, :, None] * reach
    # Sums in which nothing cancels: of the rounding of each point's own terms.
    of_points, of_centers = along.sum(axis=1) / s, along.sum(axis=0) / s
    log_kernels = _reference._log_terms(*problem[:3], None) + np.log(n)
    log_kernels -= _reference.mixture_log_density(*problem[:4])[:, None]
    # A term of a center without weight may have a larger exponent; and be infinite.
    doubt = (g * relative)[:, None] * (1 + np.abs(log_kernels) / 20)
    with np.errstate(over="ignore"):
        of_weights = (doubt * np.exp(log_kernels)).sum(axis=0)
    squared = ((g * relative)[:, None] * posterior * (squares + d)).sum() / s
    tiny = float(np.finfo(problem.points.dtype).tiny)
    floor = u * max(float(g.max(initial=0)), tiny)
    return (
        of_points + floor,
        of_centers + floor,
        of_weights + floor * n,
        float(squared + floor),
    )


def assert_exact(problem: Problem, found: Any) -> None:
    dtype = problem.points.dtype
    most = float(np.finfo(dtype).max)
    names = ("points", "centers", "weights", "noise_std")
    for name, ours, exact, allowed in zip(
        names, found, problem.exact(), allowed_errors(problem), strict=True
    ):
        if name != "noise_std":
            assert ours.dtype == dtype
        assert np.isfinite(ours).all(), name
        error = np.abs(np.asarray(ours, float) / 2 - np.clip(exact, -most, most) / 2)
        np.testing.assert_array_less(error, allowed / 2 + 1e-300, err_msg=name)
        if name == "weights" and dtype == np.float32:
            is_beyond = np.abs(exact) > allowed + most
            np.testing.assert_array_equal(
                ours[is_beyond], np.sign(exact[is_beyond]) * most
            )


# -- the specification -----------------------------------------------------------------


@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_specification_is_the_derivative(rng, is_weighted):
    problem = make_problem(rng, 23, 31, 3, 0.4, np.float64, is_weighted=is_weighted)
    x, y, s, w = (
        torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for value in (
            problem.points,
            problem.centers,
            problem.noise_std,
            np.full(31, 1 / 31) if problem.weights is None else problem.weights,
        )
    )
    squares = (x[:, None] - y[None]).square().sum(2)
    normaliser = (2 * np.pi * s * s) ** 1.5
    density = (torch.exp(-squares / (2 * s * s)) * w).sum(1) / normaliser
    gradients = torch.autograd.grad(
        torch.log(density), (x, y, w, s), torch.tensor(problem.grad_output)
    )
    for ours, truth in zip(problem.exact(), gradients, strict=True):
        np.testing.assert_allclose(ours, truth.numpy(), rtol=1e-11, atol=1e-12)


def test_the_specification_in_parts_is_the_same(rng, monkeypatch):
    problem = make_problem(rng, 9, 500, 500, 3.0, np.float64)  # 8 points at a time
    parts = [problem._replace(points=problem.points[i : i + 1]) for i in range(9)]
    whole = problem.exact()
    found = [
        part._replace(grad_output=problem.grad_output[i : i + 1]).exact()
        for i, part in enumerate(parts)
    ]
    np.testing.assert_allclose(whole[0], np.vstack([f[0] for f in found]), atol=1e-13)
    for which in (1, 2, 3):
        np.testing.assert_allclose(
            whole[which], sum(f[which] for f in found), rtol=1e-9, atol=1e-9
        )


def test_kernels_follow_the_forward(rng, cpu_target):
    """Finite differences of the log-density's own kernel."""
    problem = make_problem(rng, 6, 9, 2, 0.5, np.float64)
    step = 1e-6

    def total(changed: Problem) -> float:
        return float(changed.log_density() @ problem.grad_output)

    of_points, of_centers, _, of_noise_std = problem.gradients()
    for name, found in (("points", of_points), ("centers", of_centers)):
        for at in np.ndindex(found.shape):
            ends = []
            for sign in (1, -1):
                moved = getattr(problem, name).copy()
                moved[at] += sign * step
                ends.append(total(problem._replace(**{name: moved})))
            assert found[at] == pytest.approx(
                (ends[0] - ends[1]) / (2 * step), abs=1e-7
            )
    ends = [total(problem._replace(noise_std=0.5 + e)) for e in (step, -step)]
    assert of_noise_std == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)


# -- every kernel ----------------------------------------------------------------------


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("noise_std", [0.3, 2.0])
def test_kernels_match_the_specification(rng, cpu_target, dtype, d, noise_std):
    for i, (m, n) in enumerate(SHAPES):
        is_weighted = (i + d) % 2 == 0
        problem = make_problem(rng, m, n, d, noise_std, dtype, is_weighted=is_weighted)
        assert_exact(problem, problem.gradients())


@given(
    m=st.integers(0, 70),
    n=st.integers(1, 70),
    d=st.integers(1, 40),
    log_noise=st.floats(-5, 3),
    offset=st.sampled_from([0.0, 3.0]),
    is_weighted=st.booleans(),
    is_double=st.booleans(),
    steps=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=150)
def test_kernels_match_on_any_shape(
    m, n, d, log_noise, offset, is_weighted, is_double, steps, seed
):
    rng = np.random.default_rng(seed)
    dtype = np.float64 if is_double else np.float32
    problem = make_problem(
        rng, m, n, d, np.exp(log_noise), dtype, is_weighted=is_weighted
    )
    # Rows with gaps between them.
    points = np.full((m, steps[0] * d), np.nan, dtype)[:, :d]
    centers = np.full((n, steps[1] * d), np.nan, dtype)[:, :d]
    points[:], centers[:] = (
        problem.points + dtype(offset),
        problem.centers + dtype(offset),
    )
    gains = np.repeat(problem.grad_output, 2)[::2]
    problem = problem._replace(points=points, centers=centers, grad_output=gains)
    assert_exact(problem, problem.gradients())


@pytest.mark.parametrize("d", [1, 3, 10, 20, 64, 784])
def test_errors_are_the_forwards(rng, cpu_target, d):
    """In units of |g| / noise_std, where several centers share a point."""
    noise_std = {1: 0.1, 3: 0.3, 10: 1.0}.get(d, 0.35 * d**0.5)
    problem = make_problem(rng, 100, 300, d, noise_std, np.float32)
    found, exact = problem.gradients(), problem.exact()
    posterior, _ = problem.posterior()
    assert np.median(1 / (posterior**2).sum(axis=1)) > 1.5  # centers that count
    scale = np.abs(problem.grad_output)[:, None] / noise_std
    assert (np.abs(found[0] - exact[0]) / scale).max() < 2e-5
    of_centers = np.abs(found[1] - exact[1]).max()
    assert of_centers < 2e-5 * np.abs(problem.grad_output).max() / noise_std
    mass = np.abs(problem.grad_output).sum()
    assert abs(found[3] - exact[3]) < 2e-5 * mass * d / noise_std


@pytest.mark.parametrize("n", [200, 512, 2000])
def test_the_gradient_of_noise_std_keeps_its_digits_among_ties(cpu_target, dtype, n):
    """Exponents of n equal terms start 2 log n too low, and roundings are all alike."""
    centers = np.where(np.arange(n) % 2, 1.0, -1.0)[:, None].astype(dtype)
    points, output = np.zeros((1, 1), dtype), np.ones(1, dtype)
    problem = Problem(points, centers, 1.0, None, output)
    # |x - y|^2 / s^3 - d / s = 0. Two roundings of each of two sums, and those of six
    # terms between them, of numbers of 2 log n.
    allowed = (2 * 2 + 2 * 6) * np.finfo(dtype).eps / 2 * 2 * np.log(n)
    assert abs(problem.gradients()[3]) <= allowed


@pytest.mark.parametrize("d", [20, 33])
def test_the_least_noise_has_the_digits_of_any_other(rng, cpu_target, d):
    """Fourth powers of coordinates, which a bound is made of, are 0 here."""
    found = {}
    for unit in (1.0, 2.0**-465):  # 1e-140
        centers = np.repeat(1e4 * np.random.default_rng(0).normal(size=(12, d)), 5, 0)
        centers += np.random.default_rng(1).normal(size=centers.shape) / d**0.5
        points = centers[::7] + np.random.default_rng(2).normal(size=(9, d)) / d**0.5
        problem = Problem(
            *(unit * points, unit * centers, unit, None),
            np.linspace(-1, 1, 9),
        )
        found[unit] = [part * unit for part in problem.gradients()[:2]]
    for one, other in zip(found[1.0], found[2.0**-465], strict=True):
        # L differs, and with it the term that the exponents start from.
        assert np.abs(one - other).max() < 1e-12


@pytest.mark.parametrize(
    "want", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
)
def test_what_is_not_wanted_is_none(rng, cpu_target, want):
    for d in (3, 20):
        problem = make_problem(rng, 50, 40, d, 0.5, np.float32, is_weighted=True)
        everything = problem.gradients()
        found = problem.gradients(tuple(map(bool, want)))
        for one, other, is_wanted in zip(found, everything, want, strict=True):
            if is_wanted:
                scale = np.abs(other).max()
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * scale)
            else:
                assert one is None


# -- points far from all centers, and on them ------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 10, 40, 1000])
@pytest.mark.parametrize("distance", [0.0, 30.0, 1e3, 1e5, 1e8])
def test_isolated_and_coincident_points(rng, cpu_target, dtype, d, distance):
    """`distance` noise_std from a center, and what is nearest decides."""
    noise_std = 0.005
    problem = make_problem(rng, 20, 12, d, noise_std, dtype)
    points = problem.points
    points[:12] = problem.centers
    points[::2, 0] += dtype(distance * noise_std)
    problem = problem._replace(points=points)
    found, exact = problem.gradients(), problem.exact()
    for ours, truth in zip(found, exact, strict=True):
        assert np.isfinite(ours).all()
        # One center has all of a posterior, or, beyond 1e3, rounding decides it.
        scale = np.abs(truth).max() + np.abs(problem.grad_output).sum() * d / noise_std
        tolerance = 1e-4 if dtype == np.float32 else 1e-9
        if distance <= 1e3:
            assert np.abs(ours - truth).max() <= tolerance * scale
    # What pulls points pulls centers.
    sums = found[0].astype(float).sum(axis=0) + found[1].astype(float).sum(axis=0)
    total = np.abs(found[0].astype(float)).sum() + 1 / noise_std
    assert np.abs(sums).max() <= 1e-5 * total


@pytest.mark.parametrize("distance", [4e3, 1.5e5])
def test_points_beyond_the_log_densitys_digits(rng, cpu_target, distance):
    """Exponents of 10^7 and 10^10, where a float log-density is right to 1 and 10^3."""
    problem = make_problem(rng, 40, 30, 3, 1.0, np.float32, is_weighted=True)
    points = problem.points
    points[:20] += np.float32(distance) * rng.normal(size=(20, 3)).astype(np.float32)
    problem = problem._replace(points=points)
    found, exact = problem.gradients(), problem.exact()
    for which in (0, 1):
        scale = np.abs(exact[which]).max()
        np.testing.assert_allclose(
            found[which], exact[which], rtol=1e-5, atol=1e-6 * scale
        )
    assert found[3] == pytest.approx(exact[3], rel=1e-5)
    most = float(np.finfo(np.float32).max)
    np.testing.assert_allclose(
        found[2], np.clip(exact[2], -most, most), rtol=1e-3, atol=1e-3
    )


def test_far_points_between_two_centers(rng, cpu_target):
    """What decides is 1e-8 of the squared distances, and of the log-density."""
    centers = np.array([[1, 0], [-1, 0]], np.float32)
    points = rng.normal(size=(40, 2)).astype(np.float32)
    points[:, 1] += np.float32(1.2e4)
    problem = Problem(points, centers, 1.0, None, np.ones(40, np.float32))
    found, exact = problem.gradients(), problem.exact()
    np.testing.assert_allclose(found[0], exact[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[2], exact[2], rtol=1e-5)


@pytest.mark.parametrize(
    "wrong", [3.0, -3.0, 40.0, -40.0, 1e4, -1e4, np.nan, np.inf, -np.inf]
)
def test_a_wrong_log_density_costs_time_alone(rng, cpu_target, dtype, wrong):
    problem = make_problem(rng, 60, 50, 3, 0.5, dtype, is_weighted=True)
    saved = problem.log_density()
    saved[::3] += dtype(wrong)
    assert_exact(problem, problem.gradients(log_density=saved))


def test_coordinates_at_the_ends_of_the_range(rng, cpu_target, dtype):
    most = np.finfo(dtype).max
    points = np.array([[0.5], [0.25], [most], [-most]], dtype)
    centers = np.array([[0.0], [1.0], [most], [-most]], dtype)
    problem = Problem(points, centers, 0.5, None, np.ones(4, dtype))
    for ours in problem.gradients():
        assert np.isfinite(ours).all()
    near = problem.gradients()[0][:2]
    exact = problem._replace(
        points=points[:2], centers=centers[:2], grad_output=np.ones(2, dtype)
    ).exact()[0]
    np.testing.assert_allclose(near, exact, rtol=1e-5)


# -- gains and weights at their ends ---------------------------------------------------


def test_gains_of_any_size(rng, cpu_target, dtype):
    problem = make_problem(rng, 50, 40, 3, 0.5, dtype)
    expected = problem.gradients()
    for factor in (2.0**100, 2.0**-90):
        scaled = problem._replace(grad_output=problem.grad_output * dtype(factor))
        for ours, plain in zip(scaled.gradients(), expected, strict=True):
            np.testing.assert_allclose(ours, plain * dtype(factor), rtol=1e-5)
    huge = problem._replace(
        grad_output=np.full(50, np.finfo(dtype).max), noise_std=1e-3
    )
    for ours in huge.gradients():
        assert np.isfinite(ours).all()
    assert np.abs(huge.gradients()[0]).max() == np.finfo(dtype).max
    for ours in problem._replace(grad_output=np.zeros(50, dtype)).gradients():
        assert (np.asarray(ours) == 0).all()


def test_no_points_and_one_center(cpu_target, dtype):
    centers = np.ones((1, 2), dtype)
    empty = Problem(np.empty((0, 2), dtype), centers, 1.0, None, np.empty(0, dtype))
    of_points, of_centers, of_weights, of_noise_std = empty.gradients()
    assert of_points.shape == (0, 2)
    assert (of_centers == 0).all()
    assert (of_weights == 0).all()
    assert of_noise_std == 0
    one = Problem(np.zeros((1, 2), dtype), centers, 1.0, None, np.ones(1, dtype))
    of_points, of_centers, of_weights, of_noise_std = one.gradients()
    np.testing.assert_array_equal(of_points, [[1, 1]])  # log N(x; y, I): y - x
    np.testing.assert_array_equal(of_centers, [[-1, -1]])
    np.testing.assert_allclose(of_weights, [1], rtol=1e-6)
    assert of_noise_std == pytest.approx(0)  # |x - y|^2 = 2 = d


@pytest.mark.parametrize("is_zero", [False, True])
def test_weights_near_zero(rng, cpu_target, dtype, is_zero):
    """Centers that are as good as absent, and far nearer to points than all others."""
    light = 0 if is_zero else float(np.finfo(dtype).tiny) / 16
    problem = make_problem(rng, 40, 30, 2, 0.2, dtype)
    weights = np.full(30, 1 / 20)
    weights[::3] = light
    problem = problem._replace(weights=weights.astype(dtype))
    assert_exact(problem, problem.gradients())
    # exp(r^2 / 2 s^2) overflows: both signs of the largest number, never their sum.
    centers = np.array([[0.0], [100.0], [-100.0]], dtype)
    weights = np.array([1, 0, 0], dtype)
    points = np.array([[100.0], [-100.0], [0.1]], dtype)
    gains = np.array([1, -1, 1], dtype)
    extreme = Problem(points, centers, 1.0, weights, gains)
    of_points, of_centers, of_weights, _ = extreme.gradients()
    most = np.finfo(dtype).max
    np.testing.assert_array_equal(of_weights[1:], [most, -most])
    np.testing.assert_allclose(of_points[:, 0], [-100, -100, -0.1], rtol=1e-5)
    assert (of_centers[1:] == 0).all()


@pytest.mark.parametrize("gain", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["all", "one of zeros", "the first", "the last"])
def test_gains_that_are_no_numbers_show(rng, cpu_target, dtype, gain, where):
    for max_lost_mass in (0, 1e-3):
        problem = make_problem(rng, 50, 40, 3, 0.5, dtype, is_weighted=True)
        gains = problem.grad_output
        if where == "all":
            gains[:] = gain
        elif where == "one of zeros":
            gains[:] = 0
            gains[7] = gain
        else:
            gains[0 if where == "the first" else -1] = gain
        for found in problem.gradients(max_lost_mass=max_lost_mass):
            assert np.isnan(found).all()
        want = (False, False, False, True)
        assert np.isnan(problem.gradients(want, max_lost_mass=max_lost_mass)[3])


@pytest.mark.parametrize(("d", "noise_std"), [(3, 0.5), (3, 0.02), (40, 1.0)])
def test_points_without_gain_take_no_time(rng, cpu_target, dtype, d, noise_std):
    problem = make_problem(rng, 1100, 1000, d, noise_std, dtype, is_weighted=True)
    problem.grad_output[:] *= rng.random(1100) < 0.1
    problem.grad_output[5] = -0.0
    problem.points[6] += dtype(1e7)  # beyond the passes
    problem.grad_output[6] = 0
    kept = np.flatnonzero(problem.grad_output)
    part = problem._replace(
        points=problem.points[kept], grad_output=problem.grad_output[kept]
    )
    saved = problem.log_density()
    for max_lost_mass in (0, 1e-3):
        assert problem.pairs(max_lost_mass) == part.pairs(max_lost_mass)
        of_points, *others = problem.gradients(
            log_density=saved, max_lost_mass=max_lost_mass
        )
        of_kept, *expected = part.gradients(
            log_density=saved[kept], max_lost_mass=max_lost_mass
        )
        assert (np.delete(of_points, kept, axis=0) == 0).all()
        np.testing.assert_array_equal(of_points[kept], of_kept)
        for one, other in zip(others, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    assert part.pairs(0) <= 3 * len(kept) * 1000  # light centers take a third pass
    of_points, *others = problem.gradients()
    assert_exact(part, (of_points[kept], *others))
    no_points = (False, True, True, True)
    assert problem.gradients(no_points)[0] is None


# -- leaving out far pairs -------------------------------------------------------------


def make_clusters(
    rng: np.random.Generator, d: int, dtype: Any, *, is_weighted: bool
) -> Problem:
    """Data with much to leave out."""
    m, n, noise_std = 1100, 1000, 0.02
    clusters = rng.uniform(-1, 1, (40, d))
    centers = clusters[rng.integers(0, 40, n)] + 0.05 * rng.normal(size=(n, d)) / d**0.5
    points = centers[rng.integers(0, n, m)] + noise_std * rng.normal(size=(m, d))
    points[:5] += 1  # isolated
    weights = None
    if is_weighted:
        weights = rng.random(n) * (rng.random(n) > 0.2)
        weights = (weights / weights.sum()).astype(dtype)
    gains = rng.normal(size=m).astype(dtype)
    return Problem(
        points.astype(dtype), centers.astype(dtype), noise_std, weights, gains
    )


def assert_certified(problem: Problem, found: Any, max_lost_mass: float) -> None:
    """Errors against the bounds of docs/numerics.md."""
    noise_std, (n, d) = problem.noise_std, problem.centers.shape
    exact = problem.exact()
    rounding = 2e-4 if problem.points.dtype == np.float32 else 1e-10
    g = np.abs(problem.grad_output.astype(float))
    unit = max_lost_mass * g / noise_std
    of_points = np.linalg.norm(found[0] - exact[0], axis=1)
    reach = np.linalg.norm(exact[0], axis=1)
    assert (of_points <= unit + rounding * (reach + g / noise_std)).all()
    of_centers = np.linalg.norm(found[1] - exact[1], axis=1).sum()
    total = np.linalg.norm(exact[1], axis=1).sum()
    assert of_centers <= unit.sum() + rounding * (total + g.sum() / noise_std)
    assert abs(found[3] - exact[3]) <= unit.sum() + rounding * (
        abs(exact[3]) + g.sum() * d / noise_std
    )
    w = problem.weights
    w = np.full(n, 1 / n) if w is None else w.astype(float)
    of_weights = np.abs(found[2] - exact[2])
    of_weights = np.where(np.abs(exact[2]) < 1e30, of_weights, 0)
    mass = (w * of_weights).sum()
    assert mass <= max_lost_mass * g.sum() + rounding * g.sum()


@pytest.mark.parametrize("max_lost_mass", [0.3, 1e-2, 1e-4])
@pytest.mark.parametrize(
    ("d", "is_weighted"), [(1, True), (2, False), (3, True), (8, False)]
)
def test_skipping_is_certified(rng, cpu_target, dtype, max_lost_mass, d, is_weighted):
    problem = make_clusters(rng, d, dtype, is_weighted=is_weighted)
    every = len(problem.points) * len(problem.centers)
    assert problem.pairs(0) >= 2 * every
    assert problem.pairs(max_lost_mass) < 0.8 * 2 * every
    found = problem.gradients(max_lost_mass=max_lost_mass)
    assert_certified(problem, found, max_lost_mass)
    if max_lost_mass >= 1e-2 and d < 8:  # something was left out
        everything = problem.gradients()
        assert np.abs(found[0] - everything[0]).max() > 1e-12


@pytest.mark.parametrize("max_lost_mass", [1e-3, 1e-6])
@pytest.mark.parametrize("wrong", [1.0, 3.0, -15.0, 15.0, -20.0, 20.0])
def test_a_wrong_log_density_leaves_out_no_more(
    rng, cpu_target, dtype, max_lost_mass, wrong
):
    """Too large a value claims mass that is not there, and so too small a radius."""
    for d, is_weighted in ((1, True), (3, False)):
        problem = make_clusters(rng, d, dtype, is_weighted=is_weighted)
        saved = problem.log_density() + dtype(wrong)  # of one and all: tiles are shared
        found = problem.gradients(log_density=saved, max_lost_mass=max_lost_mass)
        assert_certified(problem, found, max_lost_mass)


@pytest.mark.parametrize("beyond", [0.5, 4.0, 7.0, 9.0])
def test_skipping_counts_second_moments(rng, cpu_target, beyond):
    """All but one center where their mass could be left out, and their squares not."""
    m, n, max_lost_mass = 1000, 1100, 1e-6
    centers = np.full((n, 1), np.sqrt(-2 * np.log(max_lost_mass / 2 / n) + beyond))
    centers[0] = 0
    centers += 1e-6 * rng.normal(size=(n, 1))
    points = 1e-6 * rng.normal(size=(m, 1))
    problem = Problem(points, centers, 1.0, None, np.ones(m))
    found, exact = problem.gradients(max_lost_mass=max_lost_mass), problem.exact()
    assert np.abs(found[0] - exact[0]).max() <= max_lost_mass
    assert np.abs(found[1] - exact[1]).sum() <= max_lost_mass * m
    assert abs(found[3] - exact[3]) <= max_lost_mass * m
    assert (problem.pairs(max_lost_mass) < m * n) == (beyond > 8)


def test_skipping_takes_every_pair_where_it_does_not_pay(rng, dtype):
    problem = make_problem(rng, 1200, 1100, 5, 2.0, dtype)
    assert problem.pairs(1e-6) == problem.pairs(0)
    for one, other in zip(
        problem.gradients(), problem.gradients(max_lost_mass=1e-6), strict=True
    ):
        np.testing.assert_array_equal(one, other)


# -- threads ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "noise_std"), [(2, 0.5), (2, 0.01), (24, 3.0), (64, 0.3)]
)
def test_threads_change_nothing(rng, dtype, d, noise_std):
    problem = make_problem(rng, 1100, 1000, d, noise_std, dtype, is_weighted=True)
    problem.points[:3] += dtype(1e7)  # beyond the passes
    saved = problem.log_density()
    for max_lost_mass in (0, 1e-4):
        expected = problem.gradients(log_density=saved, max_lost_mass=max_lost_mass)
        for threads in (2, 3, 7):
            found = problem.gradients(
                log_density=saved, max_lost_mass=max_lost_mass, threads=threads
            )
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)


# -- bad input -------------------------------------------------------------------------


def test_what_would_crash_is_refused(rng):
    problem = make_problem(rng, 5, 4, 2, 0.5, np.float64)
    with pytest.raises(ValueError, match="one log-density per point"):
        problem.gradients(log_density=np.zeros(4))
    with pytest.raises(ValueError, match="one grad_output per point"):
        problem._replace(grad_output=np.zeros(6)).gradients(log_density=np.zeros(5))
    with pytest.raises(ValueError, match="max_lost_mass"):
        problem.gradients(max_lost_mass=1.0)
    with pytest.raises(TypeError):
        problem.gradients(log_density=np.zeros(5, np.float32))
