"""Fixtures shared by all tests: CPU targets, dtypes, and a seed per test."""

from __future__ import annotations

import platform
import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from bounds_everywhere import bounds_hold_everywhere  # noqa: F401  of all tests
from noisyflow import runtime

_IS_ARM64 = platform.machine().lower() in ("aarch64", "arm64")
CPU_TARGETS = ["neon"] if _IS_ARM64 else ["avx512", "avx2", "baseline"]


@pytest.fixture(params=CPU_TARGETS)
def cpu_target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each CPU target in turn; skipped where this CPU lacks it."""
    if request.param not in runtime.available_cpu_targets():
        pytest.skip(f"this CPU has no {request.param}")
    runtime.set_cpu_target(request.param)
    yield request.param
    runtime.set_cpu_target(None)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> type[np.floating]:
    return request.param


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator whose seed is the test's name."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))
