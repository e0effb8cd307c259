"""Gradients of entropy and information: exact ones, budgets, what an Estimate holds.

The truth are central differences of exact entropies: quadrature in one and two
dimensions, and products of one-dimensional mixtures in more. Nothing random is compared
with anything random.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from fake_cuda import FakeCuda, PosingTensor, posing
from noisyflow import (
    Estimate,
    TargetWarning,
    UndersampledWarning,
    _device,
    conditional_entropy,
    entropy,
    mutual_information,
)
from oracles import mixture_entropy_1d, noise_entropy, normal_density

LINE = np.array([[-1.0], [-0.2], [0.1], [0.9], [0.9], [0.15]])  # two are equal
PLANE = np.array([[-1, 0], [-0.3, 0.4], [0.1, -0.2], [0.8, 0.5], [0.8, 0.5], [0, 1.0]])
WEIGHTS = np.array([0.1, 0.25, 0.2, 0.15, 0.2, 0.1])
LABELS = np.array([0, 1, 0, 1, 1, 0])
NOISE = 0.4
STEP = 1e-5
# Of a central difference: rounding of an entropy, 1e-13 or so, over twice the step.
CLOSE = {"atol": 2e-7, "rtol": 0.0}


def exact_entropy(centers: np.ndarray, noise_std: float, weights: np.ndarray) -> float:
    """-int g log g by the trapezoidal rule; the weights need not sum to 1."""
    (n, d) = centers.shape
    axes, density = [], []
    for k in range(d):
        low, high = centers[:, k].min(), centers[:, k].max()
        # The rule's nodes must not move with the centers: whole multiples of 0.05.
        axis = np.arange(round((low - 5) / 0.05), round((high + 5) / 0.05) + 1) * 0.05
        axes.append(axis)
        density.append(normal_density(axis[:, None] - centers[:, k], noise_std))
    g = np.einsum(
        "xj,yj,j->xy", density[0], density[-1] if d == 2 else np.ones((1, n)), weights
    )
    return -float((g * np.log(np.where(g > 0, g, 1))).sum()) * 0.05**d


def slopes(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Central differences with respect to every entry."""
    at = np.array(at, float)
    result = np.empty_like(at)
    for index in np.ndindex(at.shape):
        ends = []
        for sign in (1, -1):
            moved = at.copy()
            moved[index] += sign * STEP
            ends.append(function(moved))
        result[index] = (ends[0] - ends[1]) / (2 * STEP)
    return result


def leaf(value: object, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def uniform(n: int) -> np.ndarray:
    return np.full(n, 1 / n)


# --- Against quadrature, in one and two dimensions


def test_the_quadrature_is_that_of_the_oracles() -> None:
    ours = exact_entropy(LINE, NOISE, WEIGHTS)
    assert ours == pytest.approx(mixture_entropy_1d(LINE[:, 0], NOISE, WEIGHTS))
    plane = LINE * [1, 0]
    ours = exact_entropy(plane, NOISE, WEIGHTS)
    own = mixture_entropy_1d(LINE[:, 0], NOISE, WEIGHTS) + noise_entropy(1, NOISE)
    assert ours == pytest.approx(own)


@pytest.mark.parametrize("centers", [LINE, PLANE], ids=["d1", "d2"])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_entropy_has_the_exact_gradient(centers: np.ndarray, is_weighted: bool) -> None:
    w = WEIGHTS if is_weighted else uniform(len(centers))
    points, noise_std, weights = leaf(centers), leaf(NOISE), leaf(w)
    given = {"weights": weights} if is_weighted else {}
    entropy(
        points, noise_std, population=True, standard_error=1e-6, **given
    ).value.backward()
    by_center = slopes(lambda y: exact_entropy(y, NOISE, w), centers)
    by_noise = slopes(lambda s: exact_entropy(centers, s[()], w), np.array(NOISE))
    np.testing.assert_allclose(points.grad, by_center, **CLOSE)
    np.testing.assert_allclose(noise_std.grad, by_noise, **CLOSE)
    if is_weighted:
        by_weight = slopes(lambda v: exact_entropy(centers, NOISE, v), w)
        np.testing.assert_allclose(weights.grad, by_weight, **CLOSE)


def test_a_center_of_weight_zero_has_a_gradient_of_its_weight() -> None:
    w = np.array([0.3, 0.2, 0.2, 0.2, 0.1, 0.0])
    points, weights = leaf(LINE), leaf(w)
    entropy(points, NOISE, weights=weights, population=True).value.backward()
    up = [
        exact_entropy(LINE, NOISE, w + STEP * np.eye(6)[j])
        - exact_entropy(LINE, NOISE, w)
        for j in range(6)
    ]
    np.testing.assert_allclose(weights.grad, np.array(up) / STEP, atol=1e-3)
    assert (points.grad[w == 0] == 0).all()
    assert (points.grad[w > 0] != 0).all()


@pytest.mark.parametrize("centers", [LINE, PLANE], ids=["d1", "d2"])
def test_information_of_labels_has_the_exact_gradient(centers: np.ndarray) -> None:
    """Labels in no order, and two equal samples of one label."""

    def exact(y: np.ndarray, noise_std: float) -> float:
        of_labels = [y[k == LABELS] for k in (0, 1)]
        return exact_entropy(y, noise_std, uniform(6)) - sum(
            len(part) / 6 * exact_entropy(part, noise_std, uniform(len(part)))
            for part in of_labels
        )

    samples, noise_std = leaf(centers[:, None]), leaf(NOISE)
    estimate = mutual_information(
        samples, noise_std, labels=LABELS, standard_error=1e-6
    )
    assert estimate.detached().value == pytest.approx(exact(centers, NOISE), abs=1e-7)
    estimate.value.backward()
    by_center = slopes(lambda y: exact(y, NOISE), centers)
    by_noise = slopes(lambda s: exact(centers, s[()]), np.array(NOISE))
    np.testing.assert_allclose(samples.grad[:, 0], by_center, **CLOSE)
    np.testing.assert_allclose(noise_std.grad, by_noise, **CLOSE)


SIZES = (2, 4)  # draws of two inputs


def exact_conditional(y: np.ndarray, noise_std: float) -> float:
    parts = np.split(y, np.cumsum(SIZES)[:-1])
    return sum(
        exact_entropy(part, noise_std, uniform(len(part))) / len(SIZES)
        for part in parts
    )


def exact_information(y: np.ndarray, noise_std: float) -> float:
    w = np.concatenate([uniform(size) / len(SIZES) for size in SIZES])
    return exact_entropy(y, noise_std, w) - exact_conditional(y, noise_std)


@pytest.mark.filterwarnings("ignore::noisyflow.UndersampledWarning")
@pytest.mark.parametrize("centers", [LINE, PLANE], ids=["d1", "d2"])
@pytest.mark.parametrize(
    ("estimator", "exact"),
    [(conditional_entropy, exact_conditional), (mutual_information, exact_information)],
)
def test_several_draws_have_the_exact_gradient(
    centers: np.ndarray, estimator: Callable[..., Estimate], exact: Callable[..., float]
) -> None:
    """As a list of tensors of different length."""
    parts = [leaf(part) for part in np.split(centers, np.cumsum(SIZES)[:-1])]
    noise_std = leaf(NOISE)
    estimator(parts, noise_std).value.backward()
    found = np.concatenate([part.grad for part in parts])
    by_center = slopes(lambda y: exact(y, NOISE), centers)
    by_noise = slopes(lambda s: exact(centers, s[()]), np.array(NOISE))
    np.testing.assert_allclose(found, by_center, **CLOSE)
    np.testing.assert_allclose(noise_std.grad, by_noise, **CLOSE)


@pytest.mark.filterwarnings("ignore::noisyflow.UndersampledWarning")
def test_labels_of_several_draws_have_the_exact_gradient() -> None:
    """Three inputs of 2, 3 and 2 draws; the first and the last share a label."""
    centers = np.append(LINE, [[-0.5]], axis=0)
    ends, labels = np.array([2, 5]), np.array(["b", "a", "b"])
    w = np.array([1, 1, 2 / 3, 2 / 3, 2 / 3, 1, 1]) / 6

    def exact(y: np.ndarray) -> float:
        b = [0, 1, 5, 6]
        return (
            exact_entropy(y, NOISE, w)
            - exact_entropy(y[b], NOISE, uniform(4)) * 2 / 3
            - exact_entropy(y[2:5], NOISE, uniform(3)) / 3
        )

    parts = [leaf(part) for part in np.split(centers, ends)]
    mutual_information(parts, NOISE, labels=labels).value.backward()
    found = np.concatenate([part.grad for part in parts])
    np.testing.assert_allclose(found, slopes(exact, centers), **CLOSE)


def test_one_draw_of_every_input_leaves_the_noise_alone() -> None:
    samples, noise_std = leaf(PLANE[:, None]), leaf(0.3)
    conditional_entropy(samples, noise_std).value.backward()
    assert float(noise_std.grad) == pytest.approx(2 / 0.3, rel=1e-15)
    assert (samples.grad == 0).all()


def test_float32_has_the_gradient_of_float64() -> None:
    results = []
    for dtype in (torch.float32, torch.float64):
        centers = leaf(PLANE.astype(np.float32), dtype)
        estimate = entropy(centers, 0.2, population=True)
        assert estimate.value.dtype == dtype
        estimate.value.backward()
        assert centers.grad.dtype == dtype
        results.append(centers.grad.double())
    torch.testing.assert_close(*results, atol=2e-6, rtol=0)


def test_gradients_scale_with_what_comes_after() -> None:
    """Of 3 value^2, through a layer before it."""
    inputs = leaf(PLANE)
    value = entropy(torch.tanh(inputs), NOISE, population=True).value
    (3 * value**2).backward()
    s = np.tanh(PLANE)
    expected = slopes(lambda y: exact_entropy(y, NOISE, uniform(6)), s) * (1 - s**2)
    expected *= 6 * exact_entropy(s, NOISE, uniform(6))
    np.testing.assert_allclose(inputs.grad, expected, atol=2e-6)


# --- In more dimensions: unbiased within standard errors


def box(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners of a box with sides of its own length in every dimension, and those."""
    sides = np.linspace(0.3, 1.0, d)
    return sides * np.array(list(product((-1.0, 1.0), repeat=d))), sides


def box_gradient(d: int) -> tuple[np.ndarray, float]:
    """Exact dH/ds_j and dH/dnoise_std: coordinates of a box are independent."""
    (corners, sides) = box(d)
    by_center = np.empty_like(corners)
    by_noise = 0.0
    for k, side in enumerate(sides):
        of_pair = slopes(lambda y: mixture_entropy_1d(y, NOISE), [-side, side])
        # One of the 2^(d-1) corners that share a level moves its share of the level.
        by_center[:, k] = of_pair[(corners[:, k] > 0).astype(int)] / 2 ** (d - 1)
        by_noise += float(
            slopes(
                lambda s, y=(-side, side): mixture_entropy_1d(y, s[()]), np.array(NOISE)
            )
        )
    return by_center, by_noise


def gradients(
    seeds: Sequence[int], corners: np.ndarray, **options: object
) -> tuple[np.ndarray, np.ndarray]:
    """Of the information with several seeds: (k, n, d) and (k,)."""
    by_center, by_noise = [], []
    for seed in seeds:
        samples, noise_std = leaf(corners[:, None]), leaf(NOISE)
        mutual_information(samples, noise_std, seed=seed, **options).value.backward()
        by_center.append(samples.grad[:, 0].numpy())
        by_noise.append(float(noise_std.grad))
    return np.array(by_center), np.array(by_noise)


def assert_unbiased(found: np.ndarray, exact: np.ndarray | float) -> None:
    """Student's t from seed to seed: an unbiased gradient fails once in 10^4.

    Only the seeds, found (seeds, ...), are independent. The entries of one seed come
    from one net; a bound for any one of them, shared among all, needs nothing of that.
    """
    count = len(found)
    error = found.std(axis=0, ddof=1) / math.sqrt(count)
    scores = (found.mean(axis=0) - exact) / error
    most = student.isf(1e-4 / (2 * scores.size), count - 1)
    assert np.abs(scores).max() < most


@pytest.mark.parametrize(
    ("d", "options"),
    [
        (5, {}),
        (10, {}),
        (5, {"max_pairs": 32 * 32 * 300}),  # two mirrored queries a center
        # Not every center is met, but each as likely.
        (10, {"max_pairs": 1024 * 600}),
    ],
    ids=["d5", "d10", "few-queries", "part-of-the-centers"],
)
def test_gradient_is_unbiased(d: int, options: dict[str, int]) -> None:
    (corners, _) = box(d)
    (by_center, by_noise) = gradients(range(16), corners, **options)
    (exact_center, exact_noise) = box_gradient(d)
    assert_unbiased(by_noise, exact_noise - d / NOISE)
    # What a layer sees are sums over samples: along the box's own directions.
    along = np.einsum("kns,ns->ks", by_center, corners)
    assert_unbiased(along, (exact_center * corners).sum(axis=0))
    # Along itself: its length.
    length = np.einsum("kns,ns->k", by_center, exact_center)
    assert_unbiased(length, (exact_center**2).sum())
    if (by_center != 0).all():
        assert_unbiased(by_center.mean(axis=2), exact_center.mean(axis=1))


def test_gradient_of_label_information_is_unbiased() -> None:
    """The first coordinate is the label; no other tells anything of it."""
    (corners, _) = box(5)
    labels = (corners[:, 0] > 0).astype(int)
    (by_center, by_noise) = gradients(range(16), corners, labels=labels)
    (exact_center, _) = box_gradient(5)
    exact_center[:, 1:] = 0
    along = np.einsum("kns,ns->ks", by_center, corners)
    assert_unbiased(along, (exact_center * corners).sum(axis=0))

    def exact(s: np.ndarray) -> float:
        return mixture_entropy_1d((-0.3, 0.3), s[()]) - noise_entropy(1, s[()])

    assert_unbiased(by_noise, float(slopes(exact, np.array(NOISE))))


def test_gradient_of_several_draws_is_unbiased() -> None:
    """Inputs are the levels of the first coordinate; the draws are all the corners."""
    (corners, _) = box(5)
    order = np.argsort(corners[:, 0], kind="stable")
    (exact_center, _) = box_gradient(5)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndersampledWarning)
        for seed in range(16):
            draws = leaf(corners[order].reshape(2, 16, 5))
            mutual_information(draws, NOISE, seed=seed).value.backward()
            found.append(draws.grad.reshape(32, 5).numpy() * corners[order])
    exact = np.zeros(5)
    exact[0] = (exact_center * corners)[:, 0].sum()
    assert_unbiased(np.array(found).sum(axis=1), exact)


def test_the_errors_of_a_gradient_are_those_of_the_docstring() -> None:
    """256 samples of 4 tanh units, noise 0.2, from seed to seed."""
    rng = np.random.default_rng(0)
    centers = np.tanh(rng.normal(size=(256, 4)))
    found = []
    for seed in range(8):
        samples = leaf(centers[:, None])
        mutual_information(samples, 0.2, seed=seed).value.backward()
        found.append(samples.grad[:, 0].numpy())
    spread, mean = np.std(found, axis=0, ddof=1), np.mean(found, axis=0)
    assert 0.1 < np.linalg.norm(spread) / np.linalg.norm(mean) < 0.2
    along = (np.array(found) * centers).sum(axis=(1, 2))
    assert along.std(ddof=1) / along.mean() < 0.02


# --- What comes back


CLOUD = np.random.default_rng(3).uniform(-1, 1, (60, 1, 5))


@pytest.mark.filterwarnings("ignore::noisyflow.UndersampledWarning")
@pytest.mark.parametrize(
    "estimator",
    [
        lambda s, b: entropy(s[:, 0], b, seed=4),
        lambda s, b: entropy(s[:, 0], b, population=True, standard_error=0.1),
        lambda s, b: mutual_information(
            s, b, inputs="sampled", labels=CLOUD[:, 0, 0] > 0
        ),
        lambda s, b: conditional_entropy(s.reshape(6, 10, 5), b),
    ],
)
def test_all_but_the_gradient_is_as_without(
    estimator: Callable[..., Estimate],
) -> None:
    plain = estimator(torch.from_numpy(CLOUD), NOISE)
    assert isinstance(plain.value, float)
    found = estimator(leaf(CLOUD), leaf(NOISE))
    assert found.value.shape == ()
    assert found.value.grad_fn is not None
    plain, found = plain.to_dict(), found.to_dict()
    assert found.pop("num_pairs") > plain.pop("num_pairs")
    assert found == plain


def test_without_gradients_the_value_is_a_float() -> None:
    samples, noise_std = leaf(CLOUD), leaf(NOISE)
    with torch.no_grad():
        estimate = mutual_information(samples, noise_std)
    assert estimate == mutual_information(CLOUD, NOISE)
    assert isinstance(estimate.value, float)
    estimate = mutual_information(samples.detach(), noise_std.detach())
    assert estimate == mutual_information(CLOUD, NOISE)


def test_noise_alone_may_require_a_gradient() -> None:
    noise_std = leaf(NOISE)
    estimate = entropy(PLANE.astype(np.float32), noise_std, population=True)
    assert estimate.value.dtype == torch.float32
    estimate.value.backward()
    assert noise_std.grad.dtype == torch.float64
    assert noise_std.grad > 0


@pytest.mark.parametrize("order", [1, -1])
def test_a_list_of_arrays_and_tensors_is_refused(order: int) -> None:
    samples = [PLANE, leaf(PLANE)][::order]
    with pytest.raises(TypeError, match="both be NumPy arrays or both torch tensors"):
        mutual_information(samples, NOISE)


def test_an_estimate_with_a_tensor_is_told_written_and_compared() -> None:
    samples = leaf(CLOUD)
    estimate = mutual_information(samples, NOISE)
    plain = estimate.detached()
    assert isinstance(plain.value, float)
    assert plain.detached() is plain
    assert str(estimate) == str(plain)
    assert estimate == plain
    assert estimate != mutual_information(samples, 2 * NOISE)
    assert json.loads(json.dumps(estimate.to_dict()))["value"] == plain.value
    assert isinstance(estimate.lower_confidence_bound(), float)
    assert estimate.value.requires_grad  # still


def test_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    (first, again, other) = (gradients([seed], CLOUD[:, 0])[0] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_equal_samples_share_a_gradient() -> None:
    """Two equal samples have half each of the gradient of one with their weight."""
    doubled = np.concatenate([PLANE[:3], PLANE[:1]])
    samples = leaf(doubled)
    entropy(samples, NOISE, population=True).value.backward()
    weighted = leaf(PLANE[:3])
    w = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    entropy(weighted, NOISE, weights=w, population=True).value.backward()
    torch.testing.assert_close(samples.grad[0], samples.grad[3])
    torch.testing.assert_close(samples.grad[0] + samples.grad[3], weighted.grad[0])


# --- Budgets


@pytest.mark.parametrize("queries", [256, 1000, 5000])
def test_a_limit_of_pairs_holds_for_value_and_gradient_together(queries: int) -> None:
    estimate = mutual_information(leaf(CLOUD), NOISE, max_pairs=60 * queries)
    assert 0.8 * 60 * queries < estimate.num_pairs <= 60 * queries


@pytest.mark.parametrize("n", [1, 8, 28, 60])
def test_fewer_pairs_than_a_gradient_needs_are_refused(n: int) -> None:
    """The same number is asked for whatever is given, and then is enough."""
    samples = leaf(np.random.default_rng(0).normal(size=(n, 1, 4)))
    for given in (1, 100 * n, 140 * n, 256 * n - 1):
        with pytest.raises(ValueError, match=f"max_pairs must be at least {256 * n} "):
            mutual_information(samples, NOISE, max_pairs=given)
    mutual_information(samples, NOISE, max_pairs=256 * n).value.backward()
    # One sample has no information, but for rounding.
    assert (samples.grad.abs().sum() > 1e-9) == (n > 1)


def test_pairs_are_counted_within_blocks_where_only_these_matter() -> None:
    blocks = [leaf(CLOUD[:20, 0]), leaf(CLOUD[20:25, 0])]
    with pytest.raises(ValueError, match=r"at least 5120 .* 256 queries of 20 centers"):
        conditional_entropy(blocks, NOISE, max_pairs=5119)
    with pytest.warns(UndersampledWarning):
        conditional_entropy(blocks, NOISE, max_pairs=5120).value.backward()
    assert all(block.grad.abs().sum() > 0 for block in blocks)


@pytest.mark.filterwarnings("ignore::noisyflow.TargetWarning")
def test_a_limit_of_time_holds_for_value_and_gradient_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock that stands still: half the time is the value's, by its own rate."""
    from noisyflow import _differentiable

    monkeypatch.setattr(_differentiable.time, "perf_counter", lambda: 0.0)

    grid = np.arange(100.0)[:, None]
    limits = {"standard_error": 1e-9, "max_seconds": 8.0, "max_pairs": None}
    budget = _differentiable._Budget("entropy", {"centers": grid, **limits})
    assert budget.of_value() == {"max_seconds": 4.0, "max_pairs": None}
    monkeypatch.setattr(_differentiable.time, "perf_counter", lambda: 4.0)
    spent = Estimate(0.0, 0.0, 0.0, 0.0, 0.0, num_pairs=4_000_000)
    # A million pairs a second, for four seconds, at 2.5 times the price, two a query.
    parts = _differentiable._Parts(leaf(grid), uniform(100), 1, 0, np.array([0, 100]))
    distinct = _differentiable._Distinct(parts, grid, NOISE)
    assert budget.after(spent).queries(distinct, least=200) == 8000


# --- Tensors on a GPU, by a stand-in for its kernels


@pytest.mark.parametrize("labels", [None, CLOUD[:, 0, 0] > 0])
def test_gradients_of_tensors_on_a_gpu_are_those_of_the_cpu(
    labels: np.ndarray | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = leaf(CLOUD)
    mutual_information(found, NOISE, labels=labels).value.backward()
    fake = FakeCuda()
    monkeypatch.setattr(
        _device, "is_on_device", lambda value: isinstance(value, PosingTensor)
    )
    monkeypatch.setattr(_device, "extension", lambda: fake)
    _device._check_device.cache_clear()
    posed = posing(CLOUD).requires_grad_()
    value = mutual_information(posed, NOISE, labels=labels).value
    assert fake.calls["gradients"] > 0
    assert isinstance(value, PosingTensor)
    value.backward()
    _device._check_device.cache_clear()
    torch.testing.assert_close(torch.Tensor(posed.grad), found.grad)


# --- Warnings and mistakes


def test_warnings_are_kept_and_name_this_file() -> None:
    with pytest.warns(UndersampledWarning, match="too few") as found:
        entropy(leaf(CLOUD[:, 0]), 0.1)
    assert found[0].filename == __file__
    with pytest.warns(TargetWarning, match="not the 1e-06 asked for") as found:
        mutual_information(leaf(CLOUD), NOISE, standard_error=1e-6, max_pairs=10**6)
    assert found[0].filename == __file__


@pytest.mark.parametrize("has_gradients", [True, False])
@pytest.mark.parametrize("noise_std", [0.1, 0.3])  # most isolated; merely biased
def test_a_training_loop_is_told_once_that_samples_are_too_few(
    noise_std: float, has_gradients: bool
) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for step in range(4):
            samples = leaf(CLOUD[step : step + 40, 0] * (1 + 0.1 * step))
            entropy(samples if has_gradients else samples.detach(), noise_std)
    assert (len(found) == 1) is has_gradients
    assert {warning.category for warning in found} == {UndersampledWarning}
    assert {warning.filename for warning in found} == {__file__}


def test_a_deep_copy_is_without_the_graph() -> None:
    estimate = mutual_information(leaf(CLOUD), NOISE)
    copied = copy.deepcopy({"last": estimate})["last"]
    assert copied == estimate.detached()
    assert type(copied.value) is float
    estimate.value.backward()


def test_second_derivatives_are_refused() -> None:
    """Also where the first gradient's own factor is a constant."""
    samples = leaf(CLOUD)
    value = mutual_information(torch.tanh(samples), NOISE).value
    (first,) = torch.autograd.grad(value, samples, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once, not twice"):
        first.sum().backward()


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_function_transforms_are_refused(transform: Callable[..., object]) -> None:
    samples = torch.from_numpy(CLOUD)
    given = samples if transform is torch.func.grad else torch.stack([samples] * 2)
    with pytest.raises(TypeError, match=r"use backward\(\)"):
        transform(lambda s: mutual_information(2 * s, NOISE).value)(given)


@pytest.mark.parametrize(
    ("noise_std", "error", "message"),
    [
        (
            torch.tensor([0.4]),
            ValueError,
            r"noise_std .*shape \(1,\); .*noise_std\[0\]",
        ),
        (torch.tensor(0.4, device="meta"), ValueError, "noise_std .* a tensor on meta"),
        (torch.tensor(1), TypeError, "noise_std must be .*int64"),
        (torch.tensor(-1.0, requires_grad=True), ValueError, "must be positive"),
        (torch.tensor(math.nan), ValueError, "must be positive and finite"),
    ],
)
def test_a_bad_noise_is_named(
    noise_std: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        entropy(leaf(PLANE), noise_std)


def test_bad_samples_are_named_as_without_gradients() -> None:
    with pytest.raises(ValueError, match="centers must have shape"):
        entropy(leaf([1.0, 2.0]), 1.0)
    with pytest.raises(
        ValueError, match=r"centers must be finite, got nan at \[1, 0\]"
    ):
        entropy(leaf([[1.0], [math.nan]]), 1.0)
    with pytest.raises(TypeError, match="float32 or float64"):
        entropy(leaf([[1.0]], torch.float16), 1.0)
    with pytest.raises(TypeError, match="unexpected keyword"):
        entropy(leaf(PLANE), 1.0, wings=2)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo's own
def test_a_compiled_function_calls_it_as_it_is() -> None:
    def loss(samples: torch.Tensor) -> torch.Tensor:
        return 2 * mutual_information(torch.tanh(samples), NOISE, seed=1).value

    plain, compiled = leaf(CLOUD), leaf(CLOUD)
    loss(plain).backward()
    torch.compile(loss, backend="eager")(compiled).backward()
    torch.testing.assert_close(compiled.grad, plain.grad)
