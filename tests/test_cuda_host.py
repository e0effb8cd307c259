"""CUDA kernels without a GPU: their own source on the host, against the reference.

What is compiled is csrc/cuda itself, by the host's compiler; each CUDA thread is a
fibre (tests/cuda/host_shim.h). Races are looked for by ThreadSanitizer, with a thread
for each, and memory errors by AddressSanitizer.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cuda_host
from noisyflow import _reference

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
