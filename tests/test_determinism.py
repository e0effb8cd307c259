"""Every public number is the same bit for bit, whatever the threads and the call.

Sizes lie around what threads share: groups of 32 to 4 points, 16 groups a task, tiles
of 510 centers, chunks of 256 rows. CPU targets round in another order: between them
stand the bounds of docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import noisyflow
from noisyflow import _core, runtime
from noisyflow.importance import NoisyLayers, path_log_densities

torch = pytest.importorskip("torch")
from noisyflow.chain import NoisyChain, chain_information  # noqa: E402

THREADS = (1, 2, 3, 7)
# Points and centers: below and above a group, a task, a tile; enough for every thread.
SHAPES = [(1, 1), (33, 5), (511, 513), (513, 511), (1537, 700)]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    runtime.set_num_threads(None)
    torch.set_num_threads(before)


def bits(value: Any) -> bytes:
    """All that a result holds, as bytes; floats by their bits, so that NaN is NaN."""
    if value is None:
        return b"None"
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return b"".join(bits(part) for part in value.values())
    if isinstance(value, (tuple, list)):
        return b"".join(bits(part) for part in value)
    return np.asarray(value).tobytes()


def assert_one_result(call: Callable[[], Any]) -> None:
    """The same for every number of threads, and from call to call."""
    first = None
    # torch's own threads are slow beside a busy process: two, once, say enough.
    for count, of_torch in [*((count, 1) for count in THREADS), (THREADS[-1], 2)]:
        runtime.set_num_threads(count)
        torch.set_num_threads(of_torch)
        found = bits(call())
        assert first is None or found == first, f"{count} threads"
        first = found
    assert first


def make(
    rng: np.random.Generator, m: int, n: int, d: int, noise_std: float, dtype: Any
) -> tuple[Any, Any, Any]:
    """Points of a mixture with weights."""
    centers = rng.uniform(-1, 1, (n, d)).astype(dtype)
    noise = noise_std * rng.standard_normal((m, d))
    points = (centers[rng.integers(0, n, m)] + noise).astype(dtype)
    weights = rng.random(n)
    return points, centers, (weights / weights.sum()).astype(dtype)


@pytest.mark.parametrize("d", [1, 3, 20])
def test_log_densities(d: int, dtype: Any, rng: np.random.Generator) -> None:
    """Every pair, and through a tree on both of its ways."""
    kind = _core.Prepared32 if dtype == np.float32 else _core.Prepared64
    for m, n in SHAPES:
        x, y, w = make(rng, m, n, d, 0.1, dtype)

        def call(x: Any = x, y: Any = y, w: Any = w) -> Any:
            threads = runtime.num_threads()
            tree = kind(y, 0.1, w, 1e-6, True, threads)
            return (
                noisyflow.mixture_log_density(x, y, 0.1, weights=w, max_lost_mass=0),
                *(tree.log_density(x, way, threads)[0] for way in (2, 3)),
            )

        assert_one_result(call)


def test_log_densities_that_choose_their_path(
    dtype: Any, rng: np.random.Generator
) -> None:
    """As called, large enough for the tree, and for the expanded form."""
    x, y, _ = make(rng, 4000, 12000, 2, 0.01, dtype)
    assert noisyflow.explain(x, y, 0.01).path != "every pair"
    assert_one_result(lambda: noisyflow.mixture_log_density(x, y, 0.01))
    wide, far, _ = make(rng, 300, 1100, 24, 1.0, dtype)
    assert_one_result(lambda: noisyflow.mixture_log_density(wide, far, 1.0))


@pytest.mark.parametrize("d", [2, 20])
def test_gradients(d: int, dtype: Any, rng: np.random.Generator) -> None:
    """Of points, centers, weights and noise_std, for every pair and with a radius."""
    for m, n in SHAPES[1:]:
        arrays = [torch.from_numpy(part) for part in make(rng, m, n, d, 0.1, dtype)]

        def call(arrays: Any = arrays) -> Any:
            x, y, w = (part.clone().requires_grad_() for part in arrays)
            noise_std = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
            for lost in (0.0, 1e-6):
                value = noisyflow.mixture_log_density(
                    x, y, noise_std, weights=w, max_lost_mass=lost
                )
                value.backward(torch.linspace(-1, 1, len(x), dtype=value.dtype))
            return x.grad, y.grad, w.grad, noise_std.grad

        assert_one_result(call)


def test_moments_blocks_and_covariances(dtype: Any, rng: np.random.Generator) -> None:
    for m, n in SHAPES:
        x, y, w = make(rng, m, n, 3, 0.1, dtype)
        own, offsets = rng.integers(0, n, m), np.unique([0, n // 3, n])
        factors = rng.normal(size=(n, 3, 3))
        whitening = noisyflow.whitening_from_covariances(
            (0.01 * (factors @ factors.swapaxes(1, 2) + np.eye(3))).astype(dtype)
        )

        def call(
            x: Any = x,
            y: Any = y,
            w: Any = w,
            own: Any = own,
            at: Any = offsets,
            whitening: Any = whitening,
        ) -> Any:
            return (
                tuple(noisyflow.posterior_moments(x, y, 0.1, weights=w)),
                tuple(noisyflow.mixture_block_log_sums(x, y, 0.1, own, at, weights=w)),
                noisyflow.gaussian_mixture_log_density(x, y, whitening, weights=w),
            )

        assert_one_result(call)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_estimates(dtype: Any, rng: np.random.Generator) -> None:
    """Down to the number of queries: what is spent depends on no clock."""
    samples = rng.normal(size=(8, 25, 2)).astype(dtype)
    few = {"standard_error": 0.05, "seed": 3}

    def call() -> Any:
        found = [
            noisyflow.entropy(samples.reshape(-1, 2), 0.3, **few),
            noisyflow.conditional_entropy(samples, 0.3, **few),
            noisyflow.mutual_information(samples, 0.3, **few),
        ]
        return [(e.value, e.standard_error, e.lower, e.upper) for e in found]

    assert_one_result(call)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gradients_of_estimates(rng: np.random.Generator) -> None:
    samples = torch.from_numpy(rng.normal(size=(30, 4, 3)))

    def call() -> Any:
        leaf = samples.clone().requires_grad_()
        found = noisyflow.mutual_information(leaf, 0.3, max_pairs=200_000, seed=3)
        torch.autograd.backward(found.value)
        return found.value, leaf.grad

    assert_one_result(call)


def test_path_importance(rng: np.random.Generator) -> None:
    layers = NoisyLayers(
        [rng.normal(size=(3, 3)), rng.normal(size=(2, 3))],
        [np.zeros(3), np.zeros(2)],
        *("tanh", 0.1),
    )
    inputs = rng.uniform(-1, 1, (70, 3))
    own = rng.integers(0, 70, 150)
    noise = rng.standard_normal((150, sum(layers.widths)))
    points = layers.clean_outputs(inputs[own], noise)[-1] + 0.1 * noise[:, -2:]
    groups = np.stack(
        [np.stack([own, own + 1], axis=1), np.tile([0, len(inputs)], (150, 1))]
    )

    def call() -> Any:
        sides = path_log_densities(
            *(layers, 2, inputs, points, own, noise[:, :-2], groups),
            num_proposals=9,
            generator=np.random.default_rng(0),
        )
        return sides.lower, sides.upper

    assert_one_result(call)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_chain_information(rng: np.random.Generator) -> None:
    """torch computes the layers: its threads change, too."""
    second = torch.from_numpy(rng.normal(size=(3, 3)))
    chain = NoisyChain([torch.tanh, lambda t: torch.tanh(t @ second)], 0.3)
    inputs = rng.uniform(-1, 1, (8, 3))

    def call() -> Any:
        found = chain_information(
            *(chain, inputs, 2),
            standard_error=0.2,
            bracket_width=1.0,
            num_proposals=4,
            seed=1,
        )
        e = found.mutual_information
        return e.value, e.standard_error, e.lower, e.upper

    assert_one_result(call)


def test_targets_agree_within_twice_the_bound(
    dtype: Any, rng: np.random.Generator
) -> None:
    """Each is within (3.1) and section 4 of the truth (docs/numerics.md)."""
    targets = runtime.available_cpu_targets()
    if len(targets) < 2:
        pytest.skip(f"{targets[0]} is the only CPU target here")
    u = float(np.finfo(dtype).eps) / 2
    for d, noise_std in ((1, 0.005), (3, 0.1), (10, 1.0)):
        x, y, _ = make(rng, 300, 900, d, noise_std, dtype)
        results = []
        for target in targets:
            runtime.set_cpu_target(target)
            results.append(
                noisyflow.mixture_log_density(x, y, noise_std, max_lost_mass=0)
            )
        runtime.set_cpu_target(None)
        squares = ((x[:, None].astype(float) - y) ** 2).sum(2).min(1)
        exponent = (squares / (2 * noise_std**2)).max() + np.log(len(y) / u)
        size = np.abs(results[0]).max()
        bound = u * ((d + 4) * exponent + 128 + 5 + size)
        for other in results[1:]:
            assert np.abs(other.astype(float) - results[0]).max() <= 2 * bound
