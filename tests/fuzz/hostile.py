"""Arguments as nobody should pass them: layouts, values, types and shapes.

Everything is drawn from the generator that is passed, so that a case is its seed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Rng = np.random.Generator

# Around what vectors hold (2 to 32 numbers), groups of points, and tiles of centers.
SIZES = [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 23, 31, 32, 33, 47, 48, 49, 63, 64, 65, 96]
LARGE_SIZES = [127, 129, 255, 257, 384, 511, 513, 1023, 1025, 1100]
DIMS = [1, 2, 3, 4, 5, 8, 10, 15, 16, 17, 20, 31, 32, 33, 48, 64, 100]
LARGE_DIMS = [257, 784, 1025]
THREADS = [1, 2, 3, 7]
KINDS = ["normal", "uniform", "grid", "same", "clusters", "offset", "tiny", "zero"]

# Rows that no machine holds: whoever answers for each of them must refuse.
NO_MACHINE = 1 << 45


def pick(rng: Rng, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def size(rng: Rng, *, least: int = 0) -> int:
    """0 at times, and seldom a large one."""
    kind = rng.random()
    if kind < 0.06 and least == 0:
        return 0
    if kind > 0.99:
        return int(pick(rng, LARGE_SIZES))
    return int(pick(rng, SIZES))


def dim(rng: Rng, *, most: int = 1 << 20) -> int:
    """Mostly few; of the last, none is above 1025."""
    kind = rng.random()
    choices = LARGE_DIMS if kind > 0.99 else DIMS if kind > 0.5 else DIMS[:7]
    return min(int(pick(rng, choices)), most)


def values(rng: Rng, shape: tuple[int, ...], dtype: Any) -> Any:
    """Numbers of one kind."""
    kind = pick(rng, KINDS) if rng.random() < 0.6 else "normal"
    x = rng.standard_normal(shape)
    if kind == "uniform":
        x = rng.uniform(-1, 1, shape)
    elif kind == "grid":
        x = np.round(2 * x)
    elif kind == "same":
        x[:] = rng.standard_normal(shape[1:])
    elif kind == "clusters":
        x = 0.01 * x + rng.integers(-3, 4, (*shape[:1], *[1] * (len(shape) - 1)))
    elif kind == "offset":
        x += 10.0 ** rng.integers(2, 7)
    elif kind == "tiny":
        x *= 10.0 ** rng.integers(-320, -3)
    elif kind == "zero":
        x = np.where(rng.random(shape) < 0.5, 0.0, -0.0)
    return x.astype(dtype)


def noise_std(rng: Rng) -> float:
    return float(10 ** rng.uniform(-3, 1))


def weights(rng: Rng, n: int, dtype: Any) -> Any:
    """None, or weights that sum to 1; some, but never all, are zero or tiny."""
    if rng.random() < 0.5 or n == 0:
        return None
    w = rng.random(n) + 1e-3
    kind = rng.random()
    if kind < 0.3:
        w[rng.random(n) < 0.5] = 0
    elif kind < 0.4:
        w *= 10.0 ** rng.uniform(-40, 0, n)
    w[int(rng.integers(n))] = 1
    return (w / w.sum()).astype(dtype)


def lay_out(rng: Rng, array: Any, *, rows_alone: bool = True) -> Any:
    """The same values, otherwise in memory; with rows_alone, as rows() takes them."""
    kinds = ["rows", "reversed", "broadcast", "readonly"]
    if not rows_alone:
        kinds += ["columns", "reversed columns", "fortran", "odd stride"]
        kinds += [] if array.dtype.hasobject else ["misaligned"]
    kind = pick(rng, kinds)
    shape, dtype = array.shape, array.dtype
    if array.ndim == 0:
        return array
    if kind == "rows":
        base = np.full((3 * shape[0] + 1, *shape[1:]), 77, dtype)
        base[1::3] = array
        return base[1::3]
    if kind == "reversed":
        return np.ascontiguousarray(array[::-1])[::-1]
    if kind == "broadcast":
        return np.broadcast_to(array[:1], shape) if shape[0] else array
    if kind == "readonly":
        array = array.copy()
        array.flags.writeable = False
        return array
    if kind == "columns":
        base = np.zeros((*shape[:-1], 2 * shape[-1]), dtype)
        base[..., ::2] = array
        return base[..., ::2]
    if kind == "reversed columns":
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    if kind == "fortran":
        return np.asfortranarray(array)
    if kind == "odd stride":
        record = np.dtype([("rest", "u1"), ("row", dtype, shape[1:])])
        base = np.zeros(shape[0], record)
        base["row"] = array
        return base["row"]
    memory = np.zeros(array.nbytes + 1, np.uint8)
    memory[1:] = np.frombuffer(array.tobytes(), np.uint8)
    return memory[1:].view(dtype).reshape(shape)


def spoil_array(rng: Rng, array: Any) -> Any:
    """Another thing than the array that was wanted."""
    if array.ndim == 0 or max(array.shape) > 1 << 32:  # spoilt already
        return None
    kind = int(rng.integers(12))
    if kind == 0:
        things = [None, "text", b"bytes", 1.5, {}, object(), [], [[]], [[1.0], [1, 2]]]
        things += [np.float64(1), np.array(None), np.ma.masked_array(array), range(3)]
        return pick(rng, things)
    if kind == 1:
        dtypes = [np.float32, np.float64, np.float16, np.longdouble, np.int32, np.int64]
        dtypes += [np.uint8, bool, object, complex, ">f8", ">f4", ">i8", "S8", "M8[s]"]
        with np.errstate(all="ignore"):
            return array.astype(np.dtype(pick(rng, dtypes)))
    if kind == 2:
        return array.tolist() if array.size else [[]]
    if kind == 3:
        return pick(rng, [array[None], array.ravel(), array[..., None], array.T])
    if kind == 4:
        return pick(rng, [array[:-1], array[1:], array[..., :-1], array[:0]])
    if kind == 5:
        return np.concatenate([array, array[:1]]) if array.ndim else array
    if kind == 6:
        empties = [
            (1 << 58, 0),
            (0, 1 << 40),
            (0, 0),
            (0,),
            (),
            (1 << 50, 0, 0),
            (3, 0),
        ]
        return np.empty(pick(rng, empties), array.dtype)
    if kind == 7 and array[:1].nbytes < 1 << 17:
        return np.broadcast_to(
            np.zeros((), array.dtype), (NO_MACHINE, *array.shape[1:])
        )
    if kind < 10:
        return lay_out(rng, array, rows_alone=False)
    return spoil_values(rng, array)


def spoil_values(rng: Rng, array: Any) -> Any:
    """The array with a few entries that should not be there."""
    array = np.array(array, order="C")
    if array.size == 0 or array.dtype.kind not in "fi":
        return array
    if array.dtype.kind == "i":
        bad: list[Any] = [-1, 0, 1, array.size, 2**31 - 1, 2**31, 2**62, -(2**63)]
    else:
        info = np.finfo(array.dtype)
        bad = [math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, info.max, -info.max]
        bad += [info.tiny, info.smallest_subnormal, 1e30, info.max / 4, 1e-30]
    count = pick(rng, [1, 1, 2, array.size])
    where = rng.integers(0, array.size, count)
    array.reshape(-1)[where] = pick(rng, bad)
    return array


def spoil(rng: Rng, value: Any) -> Any:
    """Something else in the place of an argument."""
    if isinstance(value, np.ndarray):
        return spoil_array(rng, value)
    if isinstance(value, list):
        spoilt = list(value)
        at = int(rng.integers(len(value))) if value else 0
        kind = int(rng.integers(5))
        if kind == 0 or not value:
            return pick(rng, [None, [], "text", [None], 3, [value], {}])
        if kind == 1:
            return spoilt[:-1]
        if kind == 2:
            return (*spoilt, spoilt[at])
        old = value[at]
        spoilt[at] = spoil_array(rng, old) if isinstance(old, np.ndarray) else None
        return spoilt
    if isinstance(value, bool):
        return pick(rng, [None, 2, "x", [], np.bool_(not value), not value])
    if isinstance(value, int):
        numbers = [0, -1, -7, 1, 2, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63)]
        return pick(rng, [*numbers, None, 1.5, "2", True, np.int64(2), [1], 1e300])
    if isinstance(value, float):
        tiny = [5e-324, 1e-200, 1e-160, 1e-40, 1e-15, 1e-7]
        large = [1e15, 1e30, 1e140, 1e200, 1.7e308, 2**2000]
        odd = [
            math.nan,
            math.inf,
            -math.inf,
            0.0,
            -0.0,
            -1.0,
            None,
            "x",
            1j,
            [1.0],
            True,
        ]
        return pick(rng, [*tiny, *large, *odd, np.float32(0.5), np.array(0.5)])
    return pick(rng, [None, "text", np.zeros(3), np.zeros(3, np.float32), [0.5], 0, {}])
