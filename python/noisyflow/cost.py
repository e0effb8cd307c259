"""How many seconds log-densities will take on this machine, before they are computed.

Nothing here knows a CPU: the kernels themselves are run for a few milliseconds, with
the type, dimension, noise, centers and number of threads of the call in question. What
a tree saves depends on the data, so it is measured on a few groups of neighbouring
points, which are as dense as the points of the whole call will be.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisyflow import _arrays, _checks, _core, runtime
from noisyflow.prepared import (
    SMALLEST_WORK,
    PreparedMixture,
    checked_max_lost_mass,
    is_worth_a_tree,
    pair_work,
)

Floats = NDArray[Any]

_clock = time.perf_counter

_CHOOSE, _EVERY_PAIR = 0, 1
_PATHS = {1: "every pair", 2: "blocks of points", 3: "point by point"}
_BLOCK = 32  # points that go through a tree together, at most
_NUM_CLUMPS = 16
_ENOUGH_SECONDS = 0.004  # beside which a clock and a thread's start are nothing
_PROBE_WORK = 2e7  # instructions, about: some 5 ms
# In many dimensions the kernel may expand squares, for which every call has to prepare
# the centers: as much as 100 points. Fewer points than these would not show the rest.
_MANY_DIMS, _LEAST_POINTS = 17, 512
_SAMPLE_WORK = 4e8  # the most for a sample of the points, were every pair evaluated
_MOST_POINTS, _MOST_COORDINATES = 2**17, 2**22  # of points drawn to be sampled from


class Cost(NamedTuple):
    """What log-densities at so many points will take, all threads together.

    Attributes
    ----------
    seconds : float
        All of it: `overhead_seconds` and, for every point, `seconds_per_point`.
    seconds_per_point : float
    overhead_seconds : float
        Per call; for a tree that is yet to be built, its building.
    path : str
        "every pair", "blocks of points" or "point by point", as in `Plan`.
    """

    seconds: float
    seconds_per_point: float
    overhead_seconds: float
    path: str


def predict_seconds(
    num_points: int,
    centers: Any,
    noise_std: float,
    *,
    weights: Any = None,
    max_lost_mass: float | None = None,
    points: Any = None,
    seed: int = 0,
) -> float:
    """Seconds that `mixture_log_density` will take at so many points, on this machine.

    Parameters
    ----------
    num_points : int
        Number of points m.
    centers : (n, d) array
        Component means. NumPy array or torch tensor, float32 or float64.
    noise_std : float
        Standard deviation of every component. Positive.
    weights, max_lost_mass
        As in `mixture_log_density`.
    points : (k, d) array, optional
        A sample of the points, or all of them. By default they are taken to be centers
        with noise, as the estimators have them.
    seed : int
        Of that noise.

    Returns
    -------
    float
        Within a factor of two in all cases of bench/bench_cost.py, as far as the
        machine does the same at both times.

    Raises
    ------
    TypeError, ValueError
        As `mixture_log_density`; if num_points is no positive integer.

    Notes
    -----
    Costs some 40 ms, and where a tree is worth building for so many points, the time
    to build it: `measure_cost` of a prepared mixture keeps it.

    Examples
    --------
    >>> import numpy as np
    >>> centers = np.random.default_rng(0).uniform(-1, 1, (1000, 3))
    >>> 0 < predict_seconds(100_000, centers, 0.1) < 10
    True
    """
    y = _arrays.as_matrix("centers", centers)
    beta = _arrays.check_noise_std(noise_std, y.dtype)
    w = None if weights is None else _arrays.as_weights(weights, len(y), y.dtype)
    mixture = PreparedMixture(y, beta, w, checked_max_lost_mass(max_lost_mass, y.dtype))
    return measure_cost(
        mixture, num_points, points=points, is_kept=False, seed=seed
    ).seconds


def measure_cost(
    mixture: PreparedMixture,
    num_points: int,
    *,
    points: Any = None,
    is_kept: bool = True,
    seed: int = 0,
) -> Cost:
    """What `mixture.log_density` will take at so many points, by a few milliseconds.

    Parameters
    ----------
    mixture : PreparedMixture
        Of `prepare`. Its tree is built if it is worth it for so many points, and kept.
    num_points : int
        Number of points m, in one call.
    points : (m, d) array, optional
        As in `predict_seconds`.
    is_kept : bool
        False: as if the tree were for this one call.
    seed : int
        As in `predict_seconds`.

    Returns
    -------
    Cost
        Includes a tree that was built for this answer: it is there for the call.

    Raises
    ------
    TypeError, ValueError
        As `predict_seconds`.

    Examples
    --------
    >>> import numpy as np
    >>> from noisyflow import prepare
    >>> measure_cost(prepare(np.zeros((10, 2)), 1.0), 100).path
    'every pair'
    """
    m = _checks.as_int("num_points", num_points, at_least=1, at_most=2**62)
    seed = _checks.as_seed(seed)
    given = None if points is None else mixture._as_points(points)
    if given is not None and not len(given):
        raise ValueError("points must hold at least one point, got none")
    y, threads = mixture._centers, runtime.num_threads()
    (n, d) = y.shape

    probe = min(_probe_size(n, d, y.itemsize, threads), max(m, 2 * _BLOCK * threads))
    x = given if given is not None else _draw(mixture, min(m, probe), seed)
    small = probe // 2 if d >= _MANY_DIMS else _BLOCK
    dense = _line(lambda x: _every_pair(mixture, x), x, probe, small)
    all_pairs = dense.at(m)
    work = pair_work(m, n, d, y.itemsize)
    if mixture.max_lost_mass == 0 or work < SMALLEST_WORK:
        return all_pairs

    if given is None:
        x = _draw(
            mixture, min(m, _MOST_POINTS, max(4096, _MOST_COORDINATES // d)), seed
        )
    start = _clock()
    build = 0.0
    if mixture._tree is None:
        is_worth_it = is_worth_a_tree(
            x,
            y,
            mixture.noise_std,
            mixture.max_lost_mass,
            is_kept=is_kept,
            num_points=m,
        )
        build = _clock() - start
        if not is_worth_it:
            return all_pairs._replace(
                seconds=all_pairs.seconds + build,
                overhead_seconds=all_pairs.overhead_seconds + build,
            )
        mixture._build()
        build = _clock() - start
    tree = _through_tree(mixture, x, m, seed)
    if tree is None:  # it is asked, and every pair is evaluated all the same
        tree = all_pairs
    overhead = tree.overhead_seconds + build
    return tree._replace(
        seconds=tree.seconds_per_point * m + overhead, overhead_seconds=overhead
    )


def predict_pair_seconds(
    num_points: int, num_centers: int, dim: int, *, dtype: Any = np.float32
) -> float:
    """Seconds to evaluate every pair of so many points and centers, on this machine.

    Parameters
    ----------
    num_points, num_centers, dim : int
        m, n and d.
    dtype : dtype
        float32 or float64.

    Returns
    -------
    float
        The most that `mixture_log_density` takes, about: a tree may do with a small
        part of it, which depends on the data and which `predict_seconds` sees.

    Raises
    ------
    TypeError, ValueError
        If a size is no positive integer or the dtype is another.

    Notes
    -----
    Measured once per process, dimension, type, number of threads and CPU target, and
    for numbers of centers within a factor of four: about 20 ms.

    Examples
    --------
    >>> 0 < predict_pair_seconds(1000, 1000, 3) < 1
    True
    """
    m = _checks.as_int("num_points", num_points, at_least=1, at_most=2**62)
    n = _checks.as_int("num_centers", num_centers, at_least=1, at_most=2**62)
    d = _checks.as_int("dim", dim, at_least=1, at_most=2**24)
    kind = np.dtype(dtype)
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype must be float32 or float64, got {kind}")
    # Powers of four; no larger than what caches see of a larger one.
    most = max(64, min(2**18, 2**24 // d))
    measured = min(4 ** math.ceil(math.log(n, 4)), most)
    key = (measured, d, kind.name, runtime.num_threads(), runtime.cpu_target())
    cost = _uniform_cost(*key)
    return float(n / measured * (cost.seconds_per_point * m + cost.overhead_seconds))


@functools.lru_cache(maxsize=256)
def _uniform_cost(n: int, d: int, dtype: str, threads: int, target: str) -> Cost:
    """Every pair, on centers that fill a cube; threads and target are those in use."""
    rng = np.random.default_rng(0)
    y = (2 * rng.random((n, d), np.float32) - 1).astype(dtype)
    mixture = PreparedMixture(y, 0.1, None, 0.0)
    return measure_cost(mixture, _probe_size(n, d, y.itemsize, threads))


# -- how it is measured ---------------------------------------------------------------


class _Line(NamedTuple):
    """Seconds of a call as a function of its number of points."""

    overhead: float
    per_point: float

    def at(self, num_points: int) -> Cost:
        total = self.overhead + num_points * self.per_point
        return Cost(total, self.per_point, self.overhead, _PATHS[_EVERY_PAIR])


def _probe_size(n: int, d: int, itemsize: int, threads: int) -> int:
    """Points that keep all threads busy for a few milliseconds; whole groups."""
    group = _BLOCK * threads
    wanted = _PROBE_WORK * threads / pair_work(1, n, d, itemsize)
    least = _LEAST_POINTS // group if d >= _MANY_DIMS else 2
    return group * int(np.clip(wanted / group, max(least, 2), 4096))


def _every_pair(mixture: PreparedMixture, x: Floats) -> Any:
    return _core.log_density(
        x,
        mixture._centers,
        mixture.noise_std,
        mixture._weights,
        runtime.num_threads(),
    )


def _line(call: Callable[[Floats], Any], x: Floats, size: int, small: int) -> _Line:
    """Through calls of two sizes; points are repeated at need."""
    rows = np.ascontiguousarray(x[np.arange(size) % len(x)])
    few = rows[:small]
    call(few)
    whole = _least_seconds(lambda: call(rows))
    part = min(_least_seconds(lambda: call(few)), whole)
    per_point = (whole - part) / (size - small)
    # No more than all of it; no less than half: overhead is small beside a few ms.
    per_point = min(max(per_point, 0.5 * whole / size), whole / size)
    return _Line(max(0.0, min(whole - size * per_point, part)), per_point)


def _least_seconds(call: Callable[[], Any]) -> float:
    """The least of three calls: whatever else the machine does only adds to it."""
    best = math.inf
    for _ in range(3):
        start = _clock()
        call()
        best = min(best, _clock() - start)
        if best > 10 * _ENOUGH_SECONDS:
            break
    return best


def _draw(mixture: PreparedMixture, count: int, seed: int) -> Floats:
    """So many centers with noise, spread evenly over the mixture's."""
    y = mixture._centers
    rng = np.random.default_rng(seed)
    rows = (np.arange(count) * (len(y) / count)).astype(np.int64) % len(y)
    if count > len(y):
        rows = np.arange(count) % len(y)
    noise = rng.standard_normal((count, y.shape[1]), dtype=y.dtype.type)
    return np.asarray(y[rows] + y.dtype.type(mixture.noise_std) * noise)


def _through_tree(
    mixture: PreparedMixture, x: Floats, num_points: int, seed: int
) -> Cost | None:
    """By groups of neighbouring points; None where every pair is less work."""
    tree, threads = mixture._build(), runtime.num_threads()
    (n, d) = mixture._centers.shape
    budget = _SAMPLE_WORK * threads / pair_work(1, n, d, x.itemsize)
    count, size = _NUM_CLUMPS, 2 * _BLOCK
    while count > 4 and count * size > budget:
        count //= 2
    while True:
        sample = np.concatenate(_clumps(x, size, count, np.random.default_rng(seed)))
        path = tree.log_density(sample, _CHOOSE, threads, None)[1]
        if path == _EVERY_PAIR:
            return None
        seconds = _least_seconds(
            lambda sample=sample, path=path: tree.log_density(  # type: ignore[misc]
                sample, path, threads, None
            )
        )
        if seconds > _ENOUGH_SECONDS or len(sample) >= len(x):
            break
        size *= 4
    per_point = seconds / len(sample)
    return Cost(per_point * num_points, per_point, 0.0, _PATHS[path])


def _clumps(x: Floats, size: int, count: int, rng: np.random.Generator) -> list[Floats]:
    """Up to `count` groups of about `size` neighbours, from all over; a power of two.

    By halving along the widest side, as a tree orders its points: so a sample's blocks
    are as tight as those of all points.
    """
    if len(x) <= size or (count > 1 and len(x) <= size * count):
        return [x]
    few = x[:: max(1, len(x) // 256)]
    axis = int(np.ptp(few, axis=0).argmax())
    half = len(x) // 2
    order = np.argpartition(x[:, axis], half)
    if count == 1:
        kept = order[:half] if rng.random() < 0.5 else order[half:]
        return _clumps(x[kept], size, 1, rng)
    return _clumps(x[order[:half]], size, count // 2, rng) + _clumps(
        x[order[half:]], size, count // 2, rng
    )
