"""The CUDA kernels on a GPU against float64 on the CPU: `pytest -m gpu`, bench/gpu.sh.

Nothing here runs without a GPU; `test_device.py` and `test_cuda_host.py` test what can
be tested without one. Allowed errors are those that the CPU's kernels state.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

import noisyflow
from noisyflow import _device, _reference

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Any:
    """The module `_cuda`; skips, and says why, where it cannot be used."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    try:
        return _device.require(torch.device("cuda", torch.cuda.current_device()))
    except RuntimeError as error:
        pytest.skip(str(error))


def on_gpu(array: Any) -> Any:
    return torch.as_tensor(array, device="cuda")


def mixture(
    rng: np.random.Generator, m: int, n: int, d: int, noise_std: float, dtype: Any
) -> tuple[Any, Any, Any]:
    """Points around centers uniform on [-1, 1]^d; weights, one of them zero."""
    centers = rng.uniform(-1, 1, (n, d)).astype(dtype)
    noise = noise_std * rng.normal(size=(m, d))
    points = (centers[rng.integers(0, n, m)] + noise).astype(dtype)
    weights = rng.random(n) + 0.01
    if n > 1:
        weights[n // 2] = 0
    return points, centers, (weights / weights.sum()).astype(dtype)


def allowed(exact: Any, dtype: Any, d: int) -> Any:
    """The CPU's stated error (mixture_log_density), and the result's own rounding."""
    if dtype == np.float32:
        stated = 1e-5 if d <= 10 else 2e-5
        return stated + np.finfo(np.float32).eps * np.abs(exact)
    return 1e-12 * np.maximum(1, np.abs(exact))


def double(array: Any) -> Any:
    return None if array is None else array.astype(np.float64)


def exact_log_density(x: Any, y: Any, noise_std: float, w: Any) -> Any:
    weights = None if w is None else double(w) / double(w).sum()
    return _reference.mixture_log_density(
        double(x), double(y), noise_std, weights=weights
    )


# -- kernels ------------------------------------------------------------------

SHAPES = [(1, 1), (1, 300), (257, 1), (130, 257), (1025, 63), (64, 5000)]


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 7, 10, 16, 20, 33, 64, 128, 784])
@pytest.mark.parametrize("noise_std", [0.005, 0.3])
def test_log_density_is_that_of_float64(
    rng: np.random.Generator, dtype: Any, d: int, noise_std: float
) -> None:
    for m, n in SHAPES:
        (x, y, w) = mixture(rng, m, n, d, noise_std, dtype)
        for weights in (None, w):
            exact = exact_log_density(x, y, noise_std, weights)
            found = _device.log_density(
                on_gpu(x),
                on_gpu(y),
                noise_std,
                None if weights is None else on_gpu(weights),
            )
            error = np.abs(found.cpu().numpy() - exact)
            assert (error <= allowed(exact, dtype, d)).all(), (m, n, error.max())


@pytest.mark.parametrize("d", [16, 24, 64, 100, 256])
@pytest.mark.parametrize("noise_std", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("path", [1, 2])
def test_every_path_is_right(
    rng: np.random.Generator, d: int, noise_std: float, path: int
) -> None:
    """1: every pair by differences; 2: tensor cores."""
    (x, y, _) = mixture(rng, 300, 700, d, noise_std, np.float32)
    exact = exact_log_density(x, y, noise_std, None)
    kept = _device.Mixture.of(on_gpu(y), noise_std, None)
    found = _device.launch_log_density(kept, on_gpu(x), 0.0, path).cpu().numpy()
    assert (np.abs(found - exact) <= allowed(exact, np.float32, d)).all()


@pytest.mark.parametrize("d", [1, 3, 10, 40])
@pytest.mark.parametrize("include_rest", [False, True])
def test_block_log_sums_are_those_of_float64(
    rng: np.random.Generator, dtype: Any, d: int, include_rest: bool
) -> None:
    (x, y, w) = mixture(rng, 333, 500, d, 0.3, dtype)
    own = rng.integers(0, 500, 333)
    settings = {
        "offsets": [0, 1, 70, 200, 500],
        "outer_offsets": [0, 70, 500],
        "include_rest": include_rest,
    }
    exact = noisyflow.mixture_block_log_sums(
        *(double(x), double(y), 0.3, own),
        weights=double(w) / double(w).sum(),
        **settings,
    )
    for indices in (own, on_gpu(own)):
        found = noisyflow.mixture_block_log_sums(
            on_gpu(x), on_gpu(y), 0.3, indices, weights=on_gpu(w), **settings
        )
        for ours, theirs in zip(found, exact, strict=True):
            part = ours.cpu().numpy()
            is_empty = np.isneginf(theirs)
            assert (np.isneginf(part) == is_empty).all()
            (part, theirs) = (part[~is_empty], theirs[~is_empty])
            assert (np.abs(part - theirs) <= allowed(theirs, dtype, d)).all()


@pytest.mark.parametrize("d", [1, 2, 3, 5, 10, 20, 64, 200])
@pytest.mark.parametrize("noise_std", [0.005, 0.3])
def test_gradients_are_those_of_autograd_in_float64(
    rng: np.random.Generator, dtype: Any, d: int, noise_std: float
) -> None:
    for m, n in ((1, 1), (130, 257), (1025, 63)):
        (x, y, w) = mixture(rng, m, n, d, noise_std, dtype)
        w = np.maximum(w, w.max() / 50)  # the formula below would divide 0 by 0
        upstream = rng.normal(size=m).astype(dtype)
        leaves = [
            torch.tensor(double(part) if part is not noise_std else part)
            .double()
            .requires_grad_()
            for part in (x, y, w, np.float64(noise_std))
        ]
        (points, centers, weights, scale) = leaves
        squares = ((points[:, None] - centers) ** 2).sum(dim=2)
        exponent = -squares / (2 * scale**2) - d * torch.log(scale)
        top = exponent.detach().max(dim=1, keepdim=True).values
        value = torch.log(torch.exp(exponent - top) @ weights) + top[:, 0]
        value = value - 0.5 * d * math.log(2 * math.pi)
        exact = torch.autograd.grad(value, leaves, torch.tensor(upstream).double())
        found = _device.gradients(
            *(on_gpu(x), on_gpu(y), noise_std, on_gpu(w)),
            on_gpu(value.detach().numpy().astype(dtype)),
            *(on_gpu(upstream), True, True, True, True),
        )
        # The saved value is rounded: that of 1e4 in float32 by 1e-3, as on the CPU.
        eps = np.finfo(dtype).eps
        relative = 100 * eps * max(1.0, float(value.detach().abs().max()))
        for ours, theirs in zip(found, exact, strict=True):
            part = ours.cpu().double()
            assert bool(torch.isfinite(part).all())
            is_large = theirs.abs() > np.finfo(dtype).max / 2
            limit = relative * float(theirs[~is_large].abs().max()) if n > 1 else 1.0
            error = (part - theirs)[~is_large].abs()
            assert float(error.max()) <= max(limit, relative), (m, n)


@pytest.mark.parametrize("far", [0.0, 1e3])
def test_gradients_are_finite_where_points_coincide_or_are_alone(
    dtype: Any, far: float
) -> None:
    x = on_gpu(np.full((70, 1000), far, dtype))
    y = on_gpu(np.zeros((90, 1000), dtype))
    value = _device.log_density(x, y, 0.005)
    found = _device.gradients(
        *(x, y, 0.005, None, value, torch.ones_like(value), True, True, True, True)
    )
    assert all(bool(torch.isfinite(part).all()) for part in found)


@pytest.mark.parametrize("d", [1, 2, 3, 6])
@pytest.mark.parametrize("max_lost_mass", [1e-6, 1e-2])
def test_skipping_keeps_its_promise(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    dtype: Any,
    d: int,
    max_lost_mass: float,
) -> None:
    monkeypatch.setattr(_device, "is_worth_skipping", lambda *_: True)
    for noise_std in (0.005, 0.1, 1.0):
        (x, y, w) = mixture(rng, 700, 3000, d, noise_std, dtype)
        exact = exact_log_density(x, y, noise_std, w)
        found = _device.log_density(
            *(on_gpu(x), on_gpu(y), noise_std, on_gpu(w), max_lost_mass)
        )
        change = found.cpu().numpy() - exact
        rounding = allowed(exact, dtype, d)
        assert (change >= math.log1p(-max_lost_mass) - rounding).all()
        assert (change <= rounding).all()


def test_moments_and_covariances_are_those_of_the_cpu(
    rng: np.random.Generator, dtype: Any
) -> None:
    (x, y, _) = mixture(rng, 50, 400, 6, 0.3, dtype)
    exact = noisyflow.posterior_moments(double(x), double(y), 0.3, in_noise_units=True)
    found = noisyflow.posterior_moments(on_gpu(x), on_gpu(y), 0.3, in_noise_units=True)
    for ours, theirs in zip(found, exact, strict=True):
        limit = (1e-4 if dtype == np.float32 else 1e-10) * max(1, np.abs(theirs).max())
        assert np.abs(ours.cpu().numpy() - theirs).max() <= limit
    factors = np.tril(rng.normal(size=(400, 6, 6)))
    factors[:, range(6), range(6)] = rng.uniform(1, 3, (400, 6))
    exact = noisyflow.gaussian_mixture_log_density(double(x), double(y), factors)
    found = noisyflow.gaussian_mixture_log_density(
        on_gpu(x), on_gpu(y), on_gpu(factors.astype(dtype))
    )
    limit = (1e-5 if dtype == np.float32 else 1e-12) * np.abs(exact).max()
    assert np.abs(found.cpu().numpy() - exact).max() <= limit


# -- estimates and training ---------------------------------------------------


@pytest.mark.filterwarnings("ignore::noisyflow.UndersampledWarning")
@pytest.mark.parametrize("d", [1, 2, 5, 20])
def test_estimates_are_those_of_the_cpu(rng: np.random.Generator, d: int) -> None:
    """The same queries, so the same numbers but for rounding."""
    samples = np.tanh(rng.normal(size=(16, 250, d))).astype(np.float32)
    samples[:, 100:] += rng.normal(size=(16, 1, d)).astype(np.float32)
    labels = rng.integers(0, 3, 16)
    flat = samples.reshape(-1, d)
    bounds = noisyflow.entropy_bounds(on_gpu(flat), 0.3)
    assert bounds == pytest.approx(noisyflow.entropy_bounds(flat, 0.3), rel=1e-4)
    budget = {"max_pairs": 60_000_000, "seed": 5}
    for of_cpu, of_gpu in (
        (noisyflow.entropy(x, 0.3, **budget) for x in (flat, on_gpu(flat))),
        (
            noisyflow.mutual_information(x, 0.3, labels=labels, **budget)
            for x in (samples, on_gpu(samples))
        ),
        (
            noisyflow.conditional_entropy(x, 0.3, **budget)
            for x in (samples, on_gpu(samples))
        ),
    ):
        for name in ("value", "lower", "upper", "standard_error"):
            expected = getattr(of_cpu, name)
            assert getattr(of_gpu, name) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_network_trains_and_is_tracked_on_the_gpu(rng: np.random.Generator) -> None:
    from noisyflow.nn import NoisyMLP
    from noisyflow.tracking import InformationTracker
    from noisyflow.training import Trainer, evaluate

    inputs = rng.normal(size=(200, 4)).astype(np.float32)
    labels = (inputs[:, 0] > 0).astype(np.int64)
    network = NoisyMLP((4, 6, 3, 2), noise_std=0.2)
    trainer = Trainer(network, inputs, labels, learning_rate=0.01, device="cuda")
    for _ in range(30):
        trainer.train_epoch()
    assert evaluate(network, inputs, labels).accuracy > 0.9
    trainer.load_state(trainer.state())
    for method in ("sample-propagation", "path-importance"):
        tracker = InformationTracker(
            network, on_gpu(inputs), labels, method=method, standard_error=0.2
        )
        with warnings.catch_warnings(action="ignore"):  # few samples
            layers = tracker.measure(0)
        assert len(layers) == 2
        assert 0 < layers[1].mutual_information.value < math.log(200) + 1e-6


# -- device, streams and memory -----------------------------------------------


def test_results_are_the_same_every_time(rng: np.random.Generator) -> None:
    (x, y, w) = (on_gpu(part) for part in mixture(rng, 3000, 9000, 3, 0.1, np.float32))
    first = _device.log_density(x, y, 0.1, w)
    ones = torch.ones_like(first)
    gradients = _device.gradients(x, y, 0.1, w, first, ones, True, True, True, True)
    for _ in range(3):
        assert torch.equal(_device.log_density(x, y, 0.1, w), first)
        again = _device.gradients(x, y, 0.1, w, first, ones, True, True, True, True)
        assert all(torch.equal(a, b) for a, b in zip(again, gradients, strict=True))


def test_launches_follow_the_current_stream(rng: np.random.Generator) -> None:
    (x, y, _) = mixture(rng, 5000, 5000, 3, 0.1, np.float32)
    exact = exact_log_density(x[:50], y, 0.1, None)
    stream = torch.cuda.Stream()
    late = torch.zeros(x.shape, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # 0.1 s: what comes later must wait for it
        late.copy_(on_gpu(x))
        found = _device.launch_log_density(
            _device.Mixture.of(on_gpu(y), 0.1, None), late, 0.0
        )
    stream.synchronize()
    assert np.abs(found[:50].cpu().numpy() - exact).max() <= 2e-5


def test_a_launch_can_be_captured_in_a_graph(rng: np.random.Generator) -> None:
    (x, y, _) = (on_gpu(part) for part in mixture(rng, 300, 400, 3, 0.1, np.float32))
    expected = _device.log_density(x, y, 0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = _device.log_density(x, y, 0.1)
    x.mul_(0.5)
    graph.replay()
    assert torch.equal(found, _device.log_density(x, y, 0.1))
    assert not torch.equal(found, expected)


def test_torch_knows_of_all_memory(rng: np.random.Generator) -> None:
    (x, y, _) = (
        on_gpu(part) for part in mixture(rng, 20_000, 20_000, 5, 0.1, np.float32)
    )
    _device.log_density(x, y, 0.1)  # loads the kernels
    torch.cuda.synchronize()
    outside = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    for _ in range(5):
        _device.log_density(x, y, 0.1)
    torch.cuda.synchronize()
    later = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    assert abs(outside - later) <= 2**21  # other processes may take a page


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.device_count() < 2,
    reason="needs two GPUs",
)
def test_tensors_on_the_second_gpu_are_computed_there(rng: np.random.Generator) -> None:
    (x, y, _) = mixture(rng, 100, 200, 3, 0.1, np.float32)
    (points, centers) = (torch.as_tensor(part, device="cuda:1") for part in (x, y))
    found = _device.log_density(points, centers, 0.1)
    assert found.device == points.device
    exact = exact_log_density(x, y, 0.1, None)
    assert np.abs(found.cpu().numpy() - exact).max() <= 2e-5
    with pytest.raises(ValueError, match=r"cuda:1 and centers on cuda:0"):
        _device.log_density(points, on_gpu(y), 0.1)


def test_more_than_two_to_the_31_numbers_are_no_problem() -> None:
    """2.4e9 coordinates at the origin but for those of the last center."""
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of free memory")
    n = 240_000_000
    centers = torch.zeros((n, 10), device="cuda")
    centers[-1] = 50
    points = torch.zeros((3, 10), device="cuda")
    points[1] = 50
    points[2] = 1
    found = _device.log_density(points, centers, 1.0).cpu()
    constant = -5 * math.log(2 * math.pi)
    at_origin = constant + math.log((n - 1) / n)
    exact = torch.tensor([at_origin, constant - math.log(n), at_origin - 5])
    assert (found - exact).abs().max() <= 1e-5 + 30 * 1e-7


@pytest.mark.parametrize(
    ("points", "centers", "words"),
    [
        (torch.zeros(3, 2), "cuda", r"points is on cpu.*\.cuda\(\)"),
        (np.zeros((3, 2), np.float32), "cuda", "torch tensor"),
        ("nan", "cuda", "points must be finite, got nan"),
        ("half", "half", "float32 or float64"),
    ],
)
def test_bad_input_is_named(points: Any, centers: Any, words: str) -> None:
    def made(what: Any) -> Any:
        if not isinstance(what, str):
            return what
        rows = torch.zeros((3, 2), device="cuda")
        return {"cuda": rows, "nan": rows * math.nan, "half": rows.half()}[what]

    with pytest.raises((TypeError, ValueError), match=words):
        noisyflow.mixture_log_density(made(points), made(centers), 0.5)


def test_out_of_memory_is_an_exception_with_a_hint() -> None:
    free = torch.cuda.mem_get_info()[0]
    x = torch.zeros((1, 1), device="cuda").expand(min(free // 4 + 2**20, 2**31 - 1), 1)
    if x.numel() * 4 < free:
        pytest.skip("more memory than 2^31 rows take")
    with pytest.raises(torch.OutOfMemoryError):
        _device.log_density(x, torch.zeros((1, 1), device="cuda"), 1.0)


def test_the_command_reports_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    from noisyflow import cli

    assert cli.main(["check"]) == 0
    out = capsys.readouterr().out
    assert torch.cuda.get_device_name() in out
    assert "GPU 0 test" in out
    assert "FAILED" not in out
