"""Tensors on a GPU, without one: a stand-in for the kernels, and tensors that pose.

What runs is all of the Python between the public functions and the kernels, on memory
of the host. Truth is the reference in float64 and, for estimates, the CPU's kernels,
which are given the same queries.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import noisyflow
from noisyflow import _device, _reference, baselines
from noisyflow._dense import covariance_log_density
from noisyflow._dense import posterior_moments as dense_posterior_moments
from noisyflow._device_mixture import DeviceRows, duplicates
from noisyflow._merge import merge_duplicates
from noisyflow._morton import morton_order

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from fake_cuda import FakeCuda, PosingTensor, posing  # noqa: E402  needs torch


@pytest.fixture(scope="session")
def host_kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kernels' own source compiled for the host: tests/cuda_host.py."""
    cuda_host = pytest.importorskip("cuda_host", reason="no kernels for the host")
    why_not = cuda_host.missing()
    if why_not:
        pytest.skip(why_not)
    return cuda_host.build(tmp_path_factory.mktemp("cuda_host"))


@pytest.fixture
def posing_counts(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Tensors of `posing` count as tensors on a GPU."""
    monkeypatch.setattr(
        _device, "is_on_device", lambda value: isinstance(value, PosingTensor)
    )
    _device._check_device.cache_clear()
    return monkeypatch


@pytest.fixture
def fake(posing_counts: pytest.MonkeyPatch) -> FakeCuda:
    """Formulas in place of the kernels."""
    module = FakeCuda()
    posing_counts.setattr(_device, "extension", lambda: module)
    return module


@pytest.fixture(params=["formulas", "kernels on the host"])
def cuda(request: pytest.FixtureRequest, posing_counts: pytest.MonkeyPatch) -> Any:
    """Formulas, or the kernels' own source on the host, in place of the kernels."""
    if request.param == "formulas":
        module: Any = FakeCuda()
    else:
        module = request.getfixturevalue("host_kernels")
        posing_counts.setattr(_device, "_check_device", lambda *_: None)
    posing_counts.setattr(_device, "extension", lambda: module)
    return module


def rounding(dtype: Any) -> float:
    """What sums of a hundred terms may differ by, relative to the larger of 1 and x."""
    return 1e-5 if dtype == np.float32 else 1e-12


def problem(
    rng: np.random.Generator, dtype: Any, m: int = 23, n: int = 31, d: int = 3
) -> tuple[Any, Any, Any]:
    """Points, centers and weights, one of them zero."""
    points = rng.uniform(-1, 1, (m, d)).astype(dtype)
    centers = rng.uniform(-1, 1, (n, d)).astype(dtype)
    weights = rng.random(n)
    weights[n // 2] = 0
    return points, centers, (weights / weights.sum()).astype(dtype)


# -- functions ----------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 5, 40])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_log_density_is_that_of_the_reference(
    cuda: Any, rng: np.random.Generator, dtype: Any, d: int, is_weighted: bool
) -> None:
    (x, y, w) = problem(rng, dtype, d=d)
    w = w if is_weighted else None
    exact = _reference.mixture_log_density(
        x.astype(np.float64), y.astype(np.float64), 0.4, weights=w
    )
    found = _device.log_density(
        posing(x), posing(y), 0.4, None if w is None else posing(w)
    )
    assert isinstance(found, PosingTensor)
    assert np.abs(found.numpy() - exact).max() <= rounding(dtype) * np.abs(exact).max()


@pytest.mark.parametrize("include_rest", [False, True])
def test_block_log_sums_are_those_of_the_cpu(
    cuda: Any, rng: np.random.Generator, dtype: Any, include_rest: bool
) -> None:
    (x, y, w) = problem(rng, dtype)
    own = rng.integers(0, len(y), len(x))
    settings = {
        "offsets": np.array([0, 1, 7, 20, 31]),
        "outer_offsets": torch.tensor([0, 7, 31]),
        "include_rest": include_rest,
    }
    exact = noisyflow.mixture_block_log_sums(
        *(part.astype(np.float64) for part in (x, y)),
        *(0.4, own),
        **{**settings, "weights": w / w.sum(dtype=np.float64)},
    )
    for indices in (own, posing(own), posing(own.astype(np.int32))):
        found = noisyflow.mixture_block_log_sums(
            posing(x), posing(y), 0.4, indices, weights=posing(w), **settings
        )
        for ours, theirs in zip(found, exact, strict=True):
            assert isinstance(ours, PosingTensor)
            np.testing.assert_allclose(
                ours.numpy(), theirs, rtol=rounding(dtype), atol=rounding(dtype)
            )


def test_gradients_are_those_of_autograd(
    cuda: Any, rng: np.random.Generator, dtype: Any
) -> None:
    (x, y, w) = problem(rng, dtype)
    upstream = rng.normal(size=len(x))
    leaves = [
        torch.tensor(part, dtype=torch.float64, requires_grad=True)
        for part in (x, y, w, 0.4)
    ]
    (points, centers, weights, noise_std) = leaves
    squares = ((points[:, None] - centers) ** 2).sum(dim=2)
    d = x.shape[1]
    normal = torch.exp(-squares / (2 * noise_std**2)) / (
        2 * math.pi * noise_std**2
    ) ** (d / 2)
    value = torch.log(normal @ weights)
    wanted = torch.autograd.grad(value, leaves, torch.tensor(upstream))
    found = _device.gradients(
        *(posing(x), posing(y), 0.4, posing(w)),
        posing(value.detach().numpy().astype(dtype)),
        posing(upstream.astype(dtype)),
        *(True, True, True, True, 0.0),
    )
    for ours, exact in zip(found, wanted, strict=True):
        scale = float(exact.abs().max())
        assert (ours - exact).abs().max() <= 10 * rounding(dtype) * scale
    assert found[3].dtype == torch.float64
    assert found[3].ndim == 0


def test_gradients_that_nobody_wants_are_none(fake: FakeCuda) -> None:
    (x, y) = (posing(np.zeros((4, 2))), posing(np.zeros((3, 2))))
    given = (x, y, 1.0, None, x[:, 0], x[:, 0].expand(4))
    assert _device.gradients(*given, False, False, False, False) == (None,) * 4
    assert fake.calls == {}
    only_centers = _device.gradients(*given, False, True, False, False)
    assert [part is None for part in only_centers] == [True, False, True, True]


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("far", [0.0, 30.0])
def test_dense_moments_are_those_of_the_cpu(
    rng: np.random.Generator,
    dtype: Any,
    is_weighted: bool,
    far: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also for points far from all centers, or near a few of them, and in pieces."""
    (x, y, w) = problem(rng, dtype)
    y[-4:] += dtype(far)  # most of them in a piece of their own
    x[::3] += dtype(far)
    x[1::3] -= dtype(far)
    w = w if is_weighted else None
    exact = noisyflow.posterior_moments(
        *(part.astype(np.float64) for part in (x, y)),
        0.4,
        weights=None if w is None else w / w.sum(dtype=np.float64),
        in_noise_units=True,
    )
    for entries in (2**26, 3 * 7 * 4):
        monkeypatch.setattr("noisyflow._dense._MOST_ENTRIES", entries)
        (log_density, mean, covariance) = dense_posterior_moments(
            torch.from_numpy(x),
            torch.from_numpy(y),
            0.4,
            None if w is None else torch.from_numpy(w),
            0.4,
        )
        for ours, theirs in (
            (log_density, exact.log_density),
            (mean, exact.mean),
            (covariance, exact.covariance),
        ):
            allowed = 10 * rounding(dtype) * np.abs(theirs).max().clip(1)
            assert np.abs(ours.numpy() - theirs).max() <= allowed


def test_dense_moments_are_found_in_pieces_of_bounded_memory(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the moments of a point are more than its distances from two centers."""
    (points, centers) = (torch.from_numpy(rng.normal(size=(k, 4))) for k in (64, 2))
    most = 256  # 16 of 64 points at a time
    monkeypatch.setattr("noisyflow._dense._MOST_ENTRIES", most)
    made = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(
            self, op: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = op(*args, **(kwargs or {}))
            made.append(out.numel() if torch.is_tensor(out) else 0)
            return out

    with Sizes():
        parts = dense_posterior_moments(points, centers, 0.4, None, 1.0)
    assert max(part.numel() for part in parts) == 64 * 4 * 4
    assert sorted(made)[-2] <= most  # all but the covariances themselves


def test_dense_covariance_log_density_is_that_of_the_cpu(
    rng: np.random.Generator, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (x, y, w) = problem(rng, np.float64, d=4)
    factors = np.tril(rng.normal(size=(len(y), 4, 4)))
    factors += np.eye(4) * (
        3 - 2 * (np.diagonal(factors, axis1=1, axis2=2) < 0)[:, None]
    )
    factors[:, range(4), range(4)] = np.abs(factors[:, range(4), range(4)]) + 0.5
    exact = noisyflow.gaussian_mixture_log_density(x, y, factors, weights=w)
    for entries in (2**26, 4 * 7 * 3):
        monkeypatch.setattr("noisyflow._dense._MOST_ENTRIES", entries)
        found = covariance_log_density(
            *(torch.from_numpy(part.astype(dtype)) for part in (x, y, factors, w))
        )
        allowed = 10 * rounding(dtype) * np.abs(exact).max()
        assert np.abs(found.numpy() - exact).max() <= allowed


def test_the_public_functions_answer_on_the_device_of_their_input(
    cuda: Any, rng: np.random.Generator
) -> None:
    (x, y, w) = problem(rng, np.float32)
    (points, centers, weights) = (posing(part) for part in (x, y, w))
    factors = noisyflow.whitening_from_covariances(
        posing(np.tile(np.float32(0.16) * np.eye(3, dtype=np.float32), (31, 1, 1)))
    )
    assert isinstance(factors, torch.Tensor)
    factors = posing(factors)
    exact = noisyflow.mixture_log_density(x, y, 0.4, weights=w)
    for found in (
        noisyflow.prepare(centers, 0.4, weights=weights).log_density(points),
        noisyflow.gaussian_mixture_log_density(
            points, centers, factors, weights=weights
        ),
        noisyflow.posterior_moments(points, centers, 0.4, weights=weights).log_density,
    ):
        assert isinstance(found, PosingTensor)
        np.testing.assert_allclose(found.numpy(), exact, rtol=2e-5, atol=2e-5)
    plan = noisyflow.explain(points, centers, 0.4, weights=weights)
    assert (plan.path, plan.num_pairs) == ("every pair", len(x) * len(y))
    moments = noisyflow.posterior_moments(points, centers, 0.4, in_noise_units=True)
    assert moments.covariance.shape == (23, 3, 3)


# -- estimates ----------------------------------------------------------------


def close(found: Any, expected: Any) -> None:
    """Two estimates from the same queries, but for rounding."""
    for name in (
        "value",
        "lower",
        "upper",
        "isolated",
        "num_pairs",
        "saturation",
        "standard_error",
        "monte_carlo_error",
        "stopped_by",
        "bounded_difference",
    ):
        (ours, theirs) = (getattr(found, name), getattr(expected, name))
        if isinstance(ours, str):
            assert ours == theirs, name
        elif name == "isolated":  # a few of 4096 queries or more are at the threshold
            assert ours == pytest.approx(theirs, abs=4 / 4096)
        else:
            assert ours == pytest.approx(theirs, rel=1e-4, abs=2e-5), name


@pytest.mark.filterwarnings("ignore::noisyflow.UndersampledWarning")
@pytest.mark.parametrize("d", [1, 2, 4])
@pytest.mark.parametrize("kind", ["distinct", "repeated", "weighted", "population"])
def test_entropy_is_that_of_the_cpu(
    fake: FakeCuda, rng: np.random.Generator, d: int, kind: str
) -> None:
    samples = rng.normal(size=(300, d)).astype(np.float32)
    if kind in ("repeated", "population"):
        samples = samples[rng.integers(0, 200, 300)]
    weights = None
    if kind == "weighted":
        weights = rng.random(300).astype(np.float32)
        weights[5] = 0
        weights /= weights.sum()
    settings = {"population": kind == "population", "seed": 3, "max_pairs": 4_000_000}
    expected = noisyflow.entropy(samples, 0.5, weights=weights, **settings)
    found = noisyflow.entropy(
        posing(samples),
        0.5,
        weights=None if weights is None else posing(weights),
        **settings,
    )
    close(found, expected)
    assert fake.calls["block_log_sums"] > 0


@pytest.mark.filterwarnings("ignore::noisyflow.UndersampledWarning")
@pytest.mark.parametrize("is_ragged", [False, True])
@pytest.mark.parametrize("is_repeated", [False, True])
def test_conditional_entropy_and_information_are_those_of_the_cpu(
    fake: FakeCuda, rng: np.random.Generator, is_ragged: bool, is_repeated: bool
) -> None:
    samples = rng.normal(size=(12, 20, 3)).astype(np.float32)
    samples += 2 * rng.normal(size=(12, 1, 3)).astype(np.float32)
    if is_repeated:
        samples = samples[:, rng.integers(0, 12, 20)]
    labels = rng.integers(0, 3, 12)
    (on_cpu, on_gpu) = (samples, posing(samples))
    if is_ragged:
        on_cpu = [block[: 15 + i % 5] for i, block in enumerate(samples)]
        on_gpu = [posing(block) for block in on_cpu]
    settings = {"seed": 1, "max_pairs": 3_000_000}
    of_cpu = [noisyflow.conditional_entropy(on_cpu, 0.5, **settings)]
    of_gpu = [noisyflow.conditional_entropy(on_gpu, 0.5, **settings)]
    for more in ({}, {"labels": labels}, {"inputs": "sampled"}):
        of_cpu.append(noisyflow.mutual_information(on_cpu, 0.5, **more, **settings))
        if "labels" in more:
            more = {"labels": posing(labels)}
        of_gpu.append(noisyflow.mutual_information(on_gpu, 0.5, **more, **settings))
    for ours, theirs in zip(of_gpu, of_cpu, strict=True):
        close(ours, theirs)


@pytest.mark.filterwarnings("ignore::noisyflow.UndersampledWarning")
def test_information_of_a_function_of_the_input_is_that_of_the_cpu(
    fake: FakeCuda, rng: np.random.Generator
) -> None:
    samples = rng.normal(size=(200, 1, 3))
    samples[50:] = samples[:150]
    labels = rng.integers(0, 3, 200)
    for settings in ({}, {"labels": labels}, {"inputs": "sampled"}):
        expected = noisyflow.mutual_information(samples, 0.5, **settings)
        found = noisyflow.mutual_information(posing(samples), 0.5, **settings)
        close(found, expected)


def test_bounds_and_baselines_are_those_of_the_cpu(
    cuda: Any, rng: np.random.Generator
) -> None:
    (_, samples, weights) = problem(rng, np.float64, n=60)
    assert noisyflow.entropy_bounds(
        posing(samples), 0.3, weights=posing(weights)
    ) == pytest.approx(noisyflow.entropy_bounds(samples, 0.3, weights=weights))
    method = baselines.PairwiseDistance(0.3, num_resamples=2)
    assert method.entropy(posing(samples)) == method.entropy(samples)


def test_duplicates_are_found_as_on_the_cpu(
    cuda: Any, rng: np.random.Generator, dtype: Any
) -> None:
    rows = rng.normal(size=(40, 3)).astype(dtype)[rng.integers(0, 40, 100)]
    rows[3] = 0
    rows[7] = -rows[3]  # -0.0 equals 0.0
    for blocks in (None, np.array([0, 10, 60, 100])):
        expected = merge_duplicates(rows, blocks)
        found = duplicates(DeviceRows.checked("rows", posing(rows)), blocks)
        assert expected is not None
        assert found is not None
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    distinct = DeviceRows.checked("rows", posing(np.arange(6.0).reshape(3, 2)))
    assert duplicates(distinct, None) is None


def test_queries_in_any_layout(fake: FakeCuda, rng: np.random.Generator) -> None:
    (x, y, _) = problem(rng, np.float64)
    own = rng.integers(0, len(y), len(x))
    mixture = noisyflow.prepare(posing(y), 0.4)
    expected = mixture.log_own_and_others(x, own)
    for points, members in (
        (np.asfortranarray(x), own),
        (x[::-1].copy()[::-1], own[::-1].copy()[::-1]),
        (np.repeat(x, 2, axis=1)[:, ::2], np.repeat(own, 2)[::2]),
    ):
        found = mixture.log_own_and_others(points, members)
        np.testing.assert_array_equal(found, expected)


def test_a_capture_leaves_nothing_to_a_kept_mixture(
    fake: FakeCuda, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is computed then has no values before a replay, and nothing is checked."""
    (x, y, w) = (posing(part) for part in problem(rng, np.float64))
    mixture = _device.Mixture.of(y, 0.4, w)
    made = dict(vars(mixture))
    with monkeypatch.context() as patch:
        patch.setattr(_device, "_is_capturing", lambda _: True)
        _device.mixture_log_density(mixture, x, 1e-13)
    assert all(value is made[name] for name, value in vars(mixture).items())
    y[3, 1] = math.nan
    with pytest.raises(ValueError, match="centers must be finite"):
        _device.mixture_log_density(mixture, x, 1e-13)


# -- skipping -----------------------------------------------------------------


def test_skipping_is_chosen_where_it_pays_and_keeps_the_order(
    fake: FakeCuda, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    (x, y, w) = problem(rng, np.float64, m=200, n=300, d=2)
    exact = _reference.mixture_log_density(x, y, 0.01, weights=w)
    given = (posing(x), posing(y), 0.01, posing(w))
    _device.log_density(*given, 1e-6)
    assert fake.calls == {"log_density": 1}, "too small to ask"
    monkeypatch.setattr(_device, "_WORTH_A_QUESTION", 0.0)
    found = _device.log_density(*given, 1e-6)
    assert fake.calls == {"log_density": 1, "skipping_log_density": 1}
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-12)
    _device.log_density(*given, 0.0)
    assert fake.calls["log_density"] == 2, "nothing may be lost"
    _device.log_density(posing(x), posing(y), 1.0, None, 1e-6)
    assert fake.calls["log_density"] == 3, "everything is near"
    plan = noisyflow.explain(*given[:3], weights=given[3], max_lost_mass=1e-6)
    assert plan.path == "blocks of points"
    assert 0 < plan.expected_pairs < 0.5 * plan.num_pairs


@pytest.mark.parametrize("d", [1, 2, 3, 20])
def test_morton_order_puts_neighbours_together(
    rng: np.random.Generator, dtype: Any, d: int
) -> None:
    rows = torch.from_numpy(rng.uniform(-3, 2, (4000, d)).astype(dtype))
    order = morton_order(rows)
    assert sorted(order.tolist()) == list(range(4000))
    blocks = rows[order][:3968].reshape(-1, 64, d)
    spread = blocks.amax(dim=1) - blocks.amin(dim=1)
    # 62 blocks of a cube of side 5: along each axis a block of volume 1/62 is as wide
    # as 62^(-1/d) of it, and boxes that straddle a border of the curve a few times so.
    assert float(spread[:, :3].mean()) < 5 * min(1.0, 2 * 62 ** (-1 / d))
    if d <= 3:
        assert float(spread.median()) < 2.2 * 5 * 62 ** (-1 / d)


def test_morton_order_of_equal_rows_is_an_order() -> None:
    assert sorted(morton_order(torch.ones(5, 2)).tolist()) == list(range(5))


# -- bad input ----------------------------------------------------------------


def rows(shape: tuple[int, ...] = (3, 2), dtype: Any = np.float32) -> PosingTensor:
    return posing(np.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("points", "centers", "weights", "error", "words"),
    [
        (np.zeros((3, 2), np.float32), rows(), None, TypeError, "torch tensor like"),
        (torch.zeros(3, 2), rows(), None, ValueError, r"points is on cpu.*\.cuda\(\)"),
        (rows(), torch.zeros(3, 2), None, ValueError, "centers is on cpu"),
        (rows(dtype=np.float64), rows(), None, TypeError, "same dtype"),
        (rows(dtype=np.int64), rows(), None, TypeError, "float32 or float64"),
        (rows().half(), rows().half(), None, TypeError, "float32 or float64"),
        (rows((3,)), rows(), None, ValueError, r"shape \(n, d\)"),
        (rows((3, 4)), rows(), None, ValueError, "same dimension"),
        (rows(), rows((0, 2)), None, ValueError, "centers must not be empty"),
        (rows(), rows((3, 0)), None, ValueError, "must not be empty"),
        (rows(), rows(), rows((3,)) + 1, ValueError, "sum to 1"),
        (rows(), rows(), rows((4,)), ValueError, r"shape \(3,\)"),
        (rows(), rows(), torch.zeros(3), ValueError, "weights is on cpu"),
        (rows(), rows(), posing(np.float32([2, -1, 0])), ValueError, "negative"),
        (rows() * math.nan, rows(), None, ValueError, "points must be finite, got nan"),
        (rows(), rows() + math.inf, None, ValueError, "centers must be finite"),
        (rows() + 1e25, rows() - 1e25, None, ValueError, "not representable"),
        (rows((1, 2)).expand(2**31, 2), rows(), None, ValueError, r"2\^31 rows"),
    ],
)  # fmt: skip
def test_bad_input_is_named(
    fake: FakeCuda, points: Any, centers: Any, weights: Any, error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        _device.log_density(points, centers, 0.5, weights)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.T.contiguous().T,  # columns are contiguous
        lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],  # wider rows
        lambda x: torch.cat([x, x])[::2],
        lambda x: x[:1].expand(len(x), -1),  # all rows at one address
        lambda x: torch._neg_view(-x),
    ],
)
def test_strides_of_any_kind_give_the_same(
    fake: FakeCuda, rng: np.random.Generator, change: Any
) -> None:
    (x, y, _) = problem(rng, np.float64)
    for points, centers in (
        (change(posing(x)), posing(y)),
        (posing(x), change(posing(y))),
    ):
        exact = _reference.mixture_log_density(
            points.contiguous().resolve_neg().numpy(),
            centers.contiguous().resolve_neg().numpy(),
            0.4,
        )
        found = _device.log_density(points, centers, 0.4)
        np.testing.assert_allclose(found.numpy(), exact, rtol=1e-12)


def test_sparse_tensors_are_refused(
    fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_device, "is_on_device", lambda value: True)
    with pytest.raises(TypeError, match=r"dense tensor.*to_dense"):
        _device.log_density(torch.zeros(3, 2).to_sparse(), torch.zeros(3, 2), 0.5)


def test_misaligned_memory_is_copied(fake: FakeCuda, rng: np.random.Generator) -> None:
    (x, y, _) = problem(rng, np.float64)
    buffer = np.zeros(x.nbytes + 1, np.uint8)
    buffer[1:] = np.frombuffer(x.tobytes(), np.uint8)
    crooked = buffer[1:].view(np.float64).reshape(x.shape)
    assert not crooked.flags.aligned
    points = posing(torch.from_numpy(crooked))
    assert points.data_ptr() % 8 == 1
    found = _device.log_density(points, posing(y), 0.4)
    exact = _reference.mixture_log_density(x, y, 0.4)
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-12)


def test_a_sample_that_is_not_finite_is_named_as_it_was_given(fake: FakeCuda) -> None:
    samples = np.zeros((3, 4, 2))
    samples[1, 2, 0] = math.nan
    words = r"samples must be finite, got nan at \[1, 2, 0\]"
    with pytest.raises(ValueError, match=words):
        noisyflow.mutual_information(posing(samples), 1.0)


def test_no_points_give_an_empty_result(fake: FakeCuda) -> None:
    assert _device.log_density(rows((0, 2)), rows(), 0.5).shape == (0,)
    empty = rows((0,))
    sums = _device.block_log_sums(
        *(rows((0, 2)), rows(), 0.5, np.zeros(0, np.int64)),
        *(np.array([0, 3]), np.array([0, 3])),
    )
    assert [part.shape for part in sums] == [(0,)] * 4
    grads = _device.gradients(
        *(rows((0, 2)), rows(), 0.5, None, empty, empty, True, True, True, True)
    )
    assert all(bool((part == 0).all()) for part in grads)


@pytest.mark.parametrize(
    ("own", "error", "words"),
    [
        ([0, 1, 3], ValueError, "index the 3 centers, got values from 0 to 3"),
        ([0, 1, -1], ValueError, "from -1 to 1"),
        ([0.0, 1.0, 2.0], TypeError, "must be integers"),
        ([0, 1], ValueError, r"shape \(3,\)"),
        ([True, False, True], TypeError, "must be integers"),
    ],
)
def test_own_centers_are_checked_before_a_kernel_reads_them(
    fake: FakeCuda, own: Any, error: Any, words: str
) -> None:
    for given in (np.array(own), posing(np.array(own))):
        with pytest.raises(error, match=words):
            noisyflow.mixture_block_log_sums(rows(), rows(), 0.5, given, [0, 3])
    assert fake.calls == {}


def test_gradients_are_refused_where_they_would_be_lost(fake: FakeCuda) -> None:
    x = rows().requires_grad_()
    for call in (
        lambda: noisyflow.prepare(x, 0.5),
        lambda: noisyflow.mixture_block_log_sums(x, x, 0.5, [0, 1, 2], [0, 3]),
        lambda: noisyflow.posterior_moments(x, x, 0.5),
        lambda: noisyflow.entropy_bounds(x, 0.5),
    ):
        with pytest.raises(ValueError, match=r"requires gradients.*detach"):
            call()


def test_out_of_memory_says_what_to_lower(
    fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.")

    monkeypatch.setattr(_device, "launch_log_density", fail)
    with pytest.raises(torch.OutOfMemoryError, match=r"1 TiB(.|\n)*fewer points"):
        _device.log_density(rows(), rows(), 0.5)


# -- what is there ------------------------------------------------------------


def test_without_the_extension_the_build_is_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_device, "extension", lambda: None)
    with pytest.raises(RuntimeError, match=r"built without CUDA.*NOISYFLOW_CUDA=ON"):
        _device.require()


def test_why_no_kernel_can_run_is_said(fake: FakeCuda) -> None:
    def refusal(index: int = 0) -> str:
        _device._check_device.cache_clear()
        with pytest.raises(RuntimeError) as caught:
            _device.require(index)
        return str(caught.value)

    assert _device.require() is fake
    assert "no CUDA device 1" in refusal(1)
    fake.devices = [(8, 9), (7, 5)]
    assert "capability 7.5" in refusal(1)
    assert "NOISYFLOW_CUDA_ARCHITECTURES=75" in refusal(1)
    fake.driver = 12020
    assert "insufficient" in refusal()
    assert "knows CUDA 12.2" in refusal()
    assert "compiled with 13.0" in refusal()
    fake.driver = 0
    assert "no NVIDIA driver" in refusal()


@pytest.mark.parametrize(
    ("architectures", "capability", "is_covered"),
    [
        (["80-real"], (8, 0), True),
        (["80-real"], (8, 9), True),  # machine code runs within its generation
        (["80-real"], (9, 0), False),
        (["86-real"], (8, 0), False),
        (["90-virtual"], (10, 0), True),  # PTX runs on all that is later
        (["90-virtual"], (8, 0), False),
        (["90a-real"], (9, 0), True),  # a letter: that one alone
        (["90a-real"], (10, 0), False),
        (["80"], (12, 0), True),  # CMake's short form is both
        (["sm_80", "compute_90"], (10, 0), True),
        (["sm_80", "compute_90"], (7, 0), False),
        ([], (9, 0), False),
    ],
)
def test_architectures_that_cover_a_device(
    architectures: list[str], capability: tuple[int, int], is_covered: bool
) -> None:
    assert _device.is_covered(*capability, architectures) == is_covered
