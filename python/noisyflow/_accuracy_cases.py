"""The designed set of the accuracy report: what every kernel is asked.

The same numbers on every machine, from seeds that are made of the cases' own names.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]


class Family(NamedTuple):
    """Cases of one kind; the table has a row for each.

    most_error: the float32 bar of the log-density, in nats beyond the rounding of the
    result: for data in [-1, 1]^d and noise_std >= 0.005. is_relative: float32 errors of
    the log-density and its bar are relative to max(1, |L|), too, as that is large.
    """

    title: str
    most_error: float | None = None
    is_relative: bool = False


# At this noise |L| of points drawn from the mixture is small, whatever d is: the
# rounding of a float32 result, which is not counted, hides nothing.
_NOISE_OF_SMALL_VALUES = (2 * math.pi * math.e) ** -0.5
# Of an exponent's size: 34 roundings of it by (3.2), 5 of exponentials, 1 at last.
_OF_FLOAT32_EXPONENTS = 40 * 2.0**-24

FAMILIES = {
    "usual": Family("[-1, 1]^d, d = 1 to 10, noise 0.005 to 1", 1e-5),
    "clusters": Family("the same, clusters and ties", 1e-5),
    "weights": Family("the same, weights down to 1e-30 and 0", 1e-5),
    "wide": Family("all of these, d = 16 to 784", 1e-5),
    "widest": Family("all of these, d = 1024 to 4096", 1e-5),
    "million": Family("the same, a million centers", 1e-5),
    "inside": Family(
        "isolated queries inside [-1, 1]^d", _OF_FLOAT32_EXPONENTS, is_relative=True
    ),
    "noise": Family("noise 0.001, 3 and 10"),
    "offset": Family("data about 1000 and 1e6, noise 0.1 and 1"),
    "far": Family("queries 10 to 1e6 noise widths away", is_relative=True),
    "ratios": Family("float64 weights down to 1e-300"),
    "subnormal": Family("subnormal coordinates, the least noise_std", is_relative=True),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One call, and those of its points that are compared with the truth."""

    family: str
    points: Floats
    centers: Floats
    noise_std: float
    weights: Floats | None = None
    rows: slice = dataclasses.field(default_factory=lambda: slice(None))
    has_gradients: bool = True

    @property
    def grad_output(self) -> Floats:
        """Of both signs and sizes, the same for every case of this many points."""
        values = np.random.default_rng(0).normal(size=len(self.points))
        return np.asarray(values, self.points.dtype)


def _generator(*names: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(names).encode()))


def _drawn(
    family: str,
    dtype: str,
    centers: Floats,
    noise_std: float,
    m: int,
    *,
    weights: Floats | None = None,
) -> Case:
    """A case whose points are drawn from the mixture, at centers that have weight."""
    rng = _generator(family, dtype, centers.shape, noise_std, m)
    centers = centers.astype(dtype)
    if weights is not None:
        weights = (weights / weights.sum()).astype(dtype)
    own = rng.choice(len(centers), m, p=None if weights is None else _normed(weights))
    noise = noise_std * rng.standard_normal((m, centers.shape[1]))
    points = (centers[own] + noise).astype(dtype)
    return Case(family, points, centers, noise_std, weights)


def _normed(weights: Floats) -> Floats:
    total: Floats = weights.astype(np.float64) / weights.astype(np.float64).sum()
    return total


def cases(dtype: str, *, is_full: bool = False) -> Iterator[Case]:
    """The designed set, the same on every machine; is_full adds to it."""
    for build in (_usual, _wide, _beyond, _edges):
        yield from build(dtype, is_full)
    if is_full:
        yield from _million(dtype)


def _usual(dtype: str, is_full: bool) -> Iterator[Case]:
    dims = (1, 2, 3, 5, 7, 10) if is_full else (1, 3, 10)
    sizes = (1, 2, 13, 511, 1500) if is_full else (1, 511)
    m = 24 if is_full else 8
    for d, n, noise_std in itertools.product(dims, sizes, (0.005, 0.05, 0.3, 1.0)):
        rng = _generator("usual", d, n, noise_std)
        yield _drawn("usual", dtype, rng.uniform(-1, 1, (n, d)), noise_std, m)
    for d, noise_std in itertools.product(dims, (0.005, 0.1, 1.0)):
        rng = _generator("clusters", d, noise_std)
        means = rng.uniform(-0.9, 0.9, (4, d))[rng.integers(0, 4, 300)]
        for width in (0.0, 1e-6, 0.02):  # 0: equal centers, ties all
            centers = means + width * rng.uniform(-1, 1, means.shape)
            yield _drawn("clusters", dtype, centers, noise_std, m)
        # Corners of a cube and its middle: as far from each as from the other.
        corners = rng.choice([-1.0, 1.0], (200, d))
        middle = np.zeros((1, d), dtype)
        yield Case("clusters", middle, corners.astype(dtype), noise_std)
        rng = _generator("weights", d, noise_std)
        weights = 10.0 ** -rng.uniform(0, 30, 300)
        weights[rng.random(300) < 0.2] = 0
        weights[0] = 1
        centers = rng.uniform(-1, 1, (300, d))
        yield _drawn("weights", dtype, centers, noise_std, m, weights=weights)


def _wide(dtype: str, is_full: bool) -> Iterator[Case]:
    m = 16 if is_full else 4
    for d in (16, 17, 20, 33, 64, 100, 256, 784) if is_full else (17, 64, 784):
        for noise_std in (0.005, 0.05, _NOISE_OF_SMALL_VALUES, 1.0):
            rng = _generator("wide", d, noise_std)
            centers = rng.uniform(-1, 1, (200 if d < 256 else 40, d))
            yield _drawn("wide", dtype, centers, noise_std, m)
        yield from _wide_clusters("wide", dtype, d, 48 if is_full else 8)
    # Calls large enough for the expanded form.
    for d, noise_std in itertools.product((20, 64, 256), (0.3, 1.0, 2.0)):
        if d != 64 and not is_full:
            continue
        rng = _generator("expanded", d, noise_std)
        centers = rng.uniform(-1, 1, (1024, d))
        drawn = _drawn("wide", dtype, centers, noise_std, 256)
        yield dataclasses.replace(drawn, rows=slice(0, 6), has_gradients=False)
    for d in (1024, 2048, 4096) if is_full else (4096,):
        for noise_std in (0.005, _NOISE_OF_SMALL_VALUES, 1.0):
            rng = _generator("widest", d, noise_std)
            centers = rng.uniform(-1, 1, (12, d))
            yield _drawn("widest", dtype, centers, noise_std, 6 if is_full else 3)
        yield from _wide_clusters("widest", dtype, d, 48 if is_full else 6)


def _wide_clusters(family: str, dtype: str, d: int, m: int) -> Iterator[Case]:
    """Points near several centers, each of which has roundings of its own."""
    noise_std = _NOISE_OF_SMALL_VALUES
    rng = _generator("wide clusters", d)
    means = rng.uniform(-0.9, 0.9, (3, d))[rng.integers(0, 3, 24)]
    spread = rng.uniform(-1, 1, means.shape)
    for widths in (0.0, 1.0, 4.0):  # equal; less than a nat apart; some nats
        centers = means + widths * noise_std / d**0.5 * spread
        drawn = _drawn(family, dtype, centers, noise_std, m)
        yield dataclasses.replace(drawn, has_gradients=False)
    weights = np.where(np.arange(24) % 4 > 0, 1.0, 1e-3)
    yield _drawn(family, dtype, means, noise_std, 4, weights=weights)
    # Near centers that weigh next to nothing beside a far one.
    drawn = _drawn(family, dtype, means, noise_std, m)
    centers = np.concatenate([drawn.centers, -drawn.centers[:1]])
    weights = np.where(np.arange(25) < 24, 1e-12, 1.0).astype(dtype)
    yield Case(family, drawn.points, centers, noise_std, weights, has_gradients=False)


def _beyond(dtype: str, is_full: bool) -> Iterator[Case]:
    """Other noise, other places, other distances."""
    m = 16 if is_full else 6
    for d in (1, 2, 3, 10, 20, 100) if is_full else (1, 3, 20):
        for noise_std in (0.001, 3.0, 10.0):
            rng = _generator("noise", d, noise_std)
            centers = rng.uniform(-1, 1, (200, d))
            yield _drawn("noise", dtype, centers, noise_std, m)
        for offset, noise_std in itertools.product((1e3, 1e6), (0.1, 1.0)):
            rng = _generator("offset", d, offset, noise_std)
            centers = offset * rng.choice([-1, 1], d) + rng.uniform(-1, 1, (200, d))
            yield _drawn("offset", dtype, centers, noise_std, m)
        for noise_std in (0.005, 0.1):
            rng = _generator("inside", d, noise_std)
            centers, points = rng.uniform(-1, 1, (2, 60, d)).astype(dtype)
            yield Case("inside", points[:m], centers, noise_std)
        for widths, noise_std in itertools.product((10, 1e3, 1e6), (0.001, 1.0)):
            rng = _generator("far", d, widths, noise_std)
            centers = rng.uniform(-1, 1, (60, d)).astype(dtype)
            away = rng.standard_normal((m, d))
            away *= widths * noise_std / np.linalg.norm(away, axis=1, keepdims=True)
            points = (centers[rng.integers(0, 60, m)] + away).astype(dtype)
            yield Case("far", points, centers, noise_std)


def _edges(dtype: str, is_full: bool) -> Iterator[Case]:
    """Numbers at the ends of the dtype."""
    m = 16 if is_full else 6
    tiny, least = float(np.finfo(dtype).tiny), {"float32": 1e-15, "float64": 1e-140}
    for d in (1, 3, 20):
        rng = _generator("subnormal", d)
        unit = rng.uniform(-1, 1, (60, d))
        for spread, noise_std in (
            (tiny, 1.0),
            (tiny, least[dtype]),
            (least[dtype], least[dtype]),
            (1e4 * least[dtype], least[dtype]),
        ):
            yield _drawn("subnormal", dtype, spread * unit, noise_std, m)
        mixed = np.where(rng.random(unit.shape) < 0.5, tiny, 1) * unit
        yield _drawn("subnormal", dtype, mixed, 0.1, m)
        if dtype == "float64":
            weights = 10.0 ** -rng.uniform(0, 300, 60)
            weights[0] = 1
            for noise_std in (0.005, 0.3):
                yield _drawn("ratios", dtype, unit, noise_std, m, weights=weights)
                # Drawn without them: beside centers that weigh next to nothing.
                drawn = _drawn("ratios", dtype, unit, noise_std, m)
                w = (weights / weights.sum()).astype(dtype)
                yield Case("ratios", drawn.points, drawn.centers, noise_std, w)


def _million(dtype: str) -> Iterator[Case]:
    for d, noise_std in ((1, 0.005), (3, 0.005), (3, 0.05), (10, 0.05)):
        rng = _generator("million", d)
        centers = rng.uniform(-1, 1, (10**6, d))
        drawn = _drawn("million", dtype, centers, noise_std, 3)
        yield dataclasses.replace(drawn, has_gradients=False)
    # All in reach of each other, as far as 30,000 different ones can be.
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 31)] * 3), -1).reshape(-1, 3)
    centers = np.resize(grid, (10**6, 3))
    drawn = _drawn("million", dtype, centers, 1.0, 2)
    yield dataclasses.replace(drawn, has_gradients=False)
