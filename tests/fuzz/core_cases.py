"""For every function of `_core`: how to draw its arguments, and what an answer must be.

An answer has the right shapes; has no NaN where all that went in was finite and in
the range that the package lets through; and agrees with `_reference.py` where that is
quick.
Checks look at the arguments as they are in the end, however they came about.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import hostile
import numpy as np

from noisyflow import _reference

Arguments = dict[str, Any]

# As in _arrays.py, and in views.h: a quarter of a distance that no center has.
NOISE_RANGE = {"f": (1e-15, 1e15), "d": (1e-140, 1e140)}
MOST_SQUARE = {"f": 1e37, "d": 5e306}
MOST_COMPARED = 60_000  # pair-dimensions: the specification is slow
ACTIVATIONS = ["linear", "tanh", "sigmoid", "relu", "leaky_relu"]


class Failure(AssertionError):
    """An answer that is none."""


class Target(NamedTuple):
    """A function of `_core`."""

    name: str
    draw: Callable[[hostile.Rng], Arguments]
    check: Callable[[Arguments, Any], None]


def require(condition: Any, message: str) -> None:
    if not condition:
        raise Failure(message)


def require_array(name: str, array: Any, shape: tuple[int, ...], dtype: Any) -> None:
    require(isinstance(array, np.ndarray), f"{name} is {type(array).__name__}")
    require(array.shape == shape, f"{name} has shape {array.shape}, not {shape}")
    require(array.dtype == dtype, f"{name} has dtype {array.dtype}, not {dtype}")


def require_no_nan(name: str, array: Any) -> None:
    at = np.argwhere(np.isnan(array))
    require(len(at) == 0, f"{name} is NaN at {at[0].tolist() if len(at) else ''}")


def require_close(name: str, ours: Any, exact: Any, allowed: Any) -> None:
    """Within what is allowed; beyond the type's range, at its ends or infinite."""
    ours = np.asarray(ours)
    most = float(np.finfo(ours.dtype).max)
    with np.errstate(invalid="ignore", over="ignore"):
        is_beyond = np.abs(exact) >= most / 2
        error = np.abs(ours.astype(float) - exact)
        good = np.where(
            is_beyond,
            (np.sign(ours) == np.sign(exact)) & (np.abs(ours.astype(float)) > most / 4),
            error <= allowed,
        )
    if not good.all():
        at = tuple(int(i) for i in np.argwhere(~good)[0])
        allowed = np.broadcast_to(allowed, good.shape)[at]
        raise Failure(
            f"{name} at {list(at)} is {ours[at]!r}, not {np.asarray(exact)[at]!r} "
            f"within {allowed!r}"
        )


# -- mixtures ------------------------------------------------------------------------


def draw_mixture(
    rng: hostile.Rng, *, most_dims: int = 1 << 20, needs_points: bool = False
) -> Arguments:
    dtype = hostile.pick(rng, [np.float32, np.float64])
    m, n = hostile.size(rng, least=int(needs_points)), hostile.size(rng, least=1)
    d = hostile.dim(rng, most=most_dims)
    if rng.random() < 0.003 and most_dims > 17:  # where the expanded form begins
        m, n, d = 256 + int(rng.integers(9)), 1024 + int(rng.integers(40)), max(d, 17)
        d = min(d, 48)
    while m * n * d > 8_000_000:
        d = max(1, d // 4)
    noise_std = hostile.noise_std(rng)
    centers = hostile.values(rng, (n, d), dtype)
    points = hostile.values(rng, (m, d), dtype)
    if rng.random() < 0.7:  # where the mixture is
        own = np.sort(rng.integers(0, n, m))
        noise = noise_std * rng.standard_normal((m, d))
        points = (centers[own] + noise).astype(dtype)
    if rng.random() < 0.02:  # nearly as large as the type allows
        factor = math.sqrt(MOST_SQUARE[np.dtype(dtype).char] / d) / 200
        centers, points = centers * dtype(factor), points * dtype(factor)
    if rng.random() < 0.02:
        noise_std = float(hostile.pick(rng, NOISE_RANGE[np.dtype(dtype).char]))
    if rng.random() < 0.15:
        points = hostile.lay_out(rng, points)
    if rng.random() < 0.15:
        centers = hostile.lay_out(rng, centers)
    weights = hostile.weights(rng, n, dtype)
    if weights is not None and rng.random() < 0.1:
        weights = np.repeat(weights, 2)[::2]
    return {
        "points": points,
        "centers": centers,
        "noise_std": noise_std,
        "weights": weights,
        "num_threads": hostile.pick(rng, hostile.THREADS),
    }


def largest_of(*arrays: Any) -> float:
    """The largest size of a number; NaN if there is one."""
    return float(np.max([np.abs(array).max(initial=0) for array in arrays]))


def is_in_range(args: Arguments, *, points: Any = None) -> bool:
    """Whether the package would let these through: finite, and squares are numbers."""
    points = args["points"] if points is None else points
    centers, noise_std, weights = args["centers"], args["noise_std"], args["weights"]
    dtype = centers.dtype
    if dtype.char not in NOISE_RANGE or points.dtype != dtype:
        return False
    low, high = NOISE_RANGE[dtype.char]
    if not low <= float(noise_std) <= high:
        return False
    if weights is not None:
        w = np.asarray(weights)
        if not ((w >= 0).all() and 0.5 < w.sum(dtype=float) < 2):
            return False
    largest = largest_of(points, centers)
    if not largest < 1e150:
        return False
    return 4 * largest**2 * centers.shape[1] < MOST_SQUARE[dtype.char]


def sample_of(args: Arguments, *, most: int = MOST_COMPARED) -> Any:
    """Indices of as many points as the specification should see."""
    (m, d), n = args["points"].shape, len(args["centers"])
    count = min(m, max(1, most // (n * d)))
    return np.arange(count) * m // max(count, 1)


def allowed_error(args: Arguments, exact: Any) -> Any:
    """A bound in nats from the order of operations: docs/numerics.md, sections 2 to 5.

    u = eps / 2. Exponents that matter exceed the smallest by log(n / u) and may start
    from an offset that lags 50 behind; the smallest is the result less its constant,
    but for log n. Their roundings are d + 4, or 17 each and 1.1 d with chunks (3.2).
    Sums have up to 512 additions; the expanded form errs by 5 times its factor of
    lambda; the specification itself rounds d + 4 times in float64.
    """
    (n, d), noise_std = args["centers"].shape, float(args["noise_std"])
    m = len(args["points"])
    u = float(np.finfo(args["centers"].dtype).eps) / 2
    constant = abs(0.5 * d * np.log(2 * np.pi * noise_std**2)) + np.log(n)
    exponent = np.abs(exact) + constant + np.log(n / u) + 50
    allowed = (u + 2**-53) * ((1.1 * d + 40) * exponent + min(n, 512) + 5)
    if d > 16 and m >= 256 and n >= 1024:
        allowed = allowed + (1e-4 if u > 1e-10 else 1.5e-12)
    return allowed


def check_log_density(args: Arguments, result: Any) -> None:
    points, centers = args["points"], args["centers"]
    require_array("log_density", result, (len(points),), centers.dtype)
    if not is_in_range(args):
        return
    require_no_nan("log_density", result)
    some = sample_of(args)
    with np.errstate(over="ignore"):
        exact = _reference.mixture_log_density(
            points[some], centers, float(args["noise_std"]), args["weights"]
        )
    require_close("log_density", result[some], exact, allowed_error(args, exact))


def draw_block_log_sums(rng: hostile.Rng) -> Arguments:
    args = draw_mixture(rng)
    m, n = len(args["points"]), len(args["centers"])
    cuts = rng.integers(1, n, min(n - 1, int(rng.integers(8)))) if n > 1 else []
    offsets = np.unique(np.concatenate([[0], cuts, [n]])).astype(np.int64)
    outer = np.unique(np.concatenate([[0], offsets[1:-1:3], [n]])).astype(np.int64)
    own = rng.integers(0, n, m)
    if rng.random() < 0.7:
        own.sort()
    threads = args.pop("num_threads")
    noise_std, weights = args.pop("noise_std"), args.pop("weights")
    return args | {
        "noise_std": noise_std,
        "own": own,
        "offsets": offsets,
        "outer_offsets": outer,
        "weights": weights,
        "include_rest": bool(rng.random() < 0.6),
        "num_threads": threads,
    }


def check_block_log_sums(args: Arguments, result: Any) -> None:
    points, centers = args["points"], args["centers"]
    m, own = len(points), np.array(args["own"], np.int64)
    require(isinstance(result, tuple) and len(result) == 4, "not four parts")
    names = ("own center", "inner", "outer", "rest")
    for name, part in zip(names, result, strict=True):
        require_array(name, part, (m,), centers.dtype)
    if not is_in_range(args):
        return
    for name, part in zip(names, result, strict=True):
        require_no_nan(name, part)
    some = sample_of(args)
    with np.errstate(over="ignore"):
        exact = _reference.mixture_block_log_sums(
            *(points[some], centers, float(args["noise_std"]), own[some]),
            np.array(args["offsets"], np.int64),
            np.array(args["outer_offsets"], np.int64),
            args["weights"],
        )
    for k, (name, part) in enumerate(zip(names, result, strict=True)):
        if k >= 2 and not args["include_rest"]:
            require(np.isneginf(part).all(), f"{name} was not asked for")
            continue
        is_none = np.isneginf(exact[k])
        require(
            np.isneginf(part[some][is_none]).all(), f"{name} of nothing is not -inf"
        )
        some_exact = exact[k][~is_none]
        allowed = allowed_error(args, some_exact)
        require_close(name, part[some][~is_none], some_exact, allowed)


def draw_posterior_moments(rng: hostile.Rng) -> Arguments:
    args = draw_mixture(rng, most_dims=32)
    threads = args.pop("num_threads")
    unit = float(hostile.pick(rng, [1.0, args["noise_std"], 3.0]))
    return args | {"unit": unit, "num_threads": threads}


def check_posterior_moments(args: Arguments, result: Any) -> None:
    points, centers, unit = args["points"], args["centers"], float(args["unit"])
    (m, d), dtype = points.shape, centers.dtype
    require(isinstance(result, tuple) and len(result) == 3, "not three parts")
    for part, shape in zip(result, [(m,), (m, d), (m, d, d)], strict=True):
        require_array("moment", part, shape, dtype)
    largest = largest_of(points, centers)
    # Farther away than that the nearest center is not known; the package refuses then.
    resolved = largest * float(np.finfo(dtype).eps) <= float(args["noise_std"])
    if not (is_in_range(args) and resolved and largest / unit < 1e9):
        return
    for name, part in zip(("log_density", "mean", "covariance"), result, strict=True):
        require_no_nan(name, part)
    noise_std = float(args["noise_std"])
    some = sample_of(args)
    if not (noise_std >= 1e-3 and largest <= 10 and 1e-3 <= unit <= 1e3):
        return  # the bound below would say nothing
    exact = _reference.posterior_moments(
        points[some], centers, noise_std, args["weights"]
    )
    u = float(np.finfo(dtype).eps) / 2
    errors = allowed_error(args, exact[0]) + 100 * u
    require_close("log_density", result[0][some], exact[0], errors)
    # A posterior's error is twice an exponent's, of lengths that none exceeds.
    x, y = points[some].astype(float), centers.astype(float)
    differences = np.abs(x[:, None] - y)
    unit_length = max(
        float(differences.max(initial=0)), 1e-300
    )  # squares may underflow
    squares = ((differences / unit_length) ** 2).sum(axis=2)
    farthest = unit_length * np.sqrt(squares).max(axis=1, initial=0)
    reach, relative = farthest / unit, np.expm1(np.minimum(2 * errors, 100))
    lags = 2.0**-48 if dtype == np.float32 else 2.0**-78  # blocks that are left out
    of_mean = (2 * (relative + lags) * reach)[:, None] + 1e-300
    of_covariance = (8 * (relative + lags) * reach**2)[:, None, None] + 1e-300
    require_close("mean", result[1][some], exact[1] / unit, of_mean)
    require_close("covariance", result[2][some], exact[2] / unit**2, of_covariance)


# -- gradients -----------------------------------------------------------------------


def draw_gradients(rng: hostile.Rng) -> Arguments:
    args = draw_mixture(rng)
    m, dtype = len(args["points"]), args["centers"].dtype
    threads = args.pop("num_threads")
    with np.errstate(all="ignore"):
        if rng.random() < 0.7 and args["centers"].size * m < 10 * MOST_COMPARED:
            saved = _reference.mixture_log_density(*args.values())
            saved = np.clip(saved, -np.finfo(dtype).max, np.finfo(dtype).max)
            saved = saved.astype(dtype)
        else:  # a wrong one costs time, not digits
            saved = (rng.standard_normal(m) * 10.0 ** rng.integers(-2, 9)).astype(dtype)
            if rng.random() < 0.1:
                saved = hostile.spoil_values(rng, saved)
    grad_output = rng.standard_normal(m).astype(dtype)
    if rng.random() < 0.2:
        grad_output[rng.random(m) < 0.5] = 0
    wants = rng.random(4) < 0.7
    return args | {
        "log_density": saved,
        "grad_output": grad_output,
        "want_points": bool(wants[0]),
        "want_centers": bool(wants[1]),
        "want_weights": bool(wants[2]),
        "want_noise_std": bool(wants[3]),
        "max_lost_mass": hostile.pick(rng, [0.0, 0.0, 1e-10, 1e-6, 1e-3]),
        "num_threads": threads,
    }


def check_gradients(args: Arguments, result: Any) -> None:
    points, centers = args["points"], args["centers"]
    (m, d), n, dtype = points.shape, len(centers), centers.dtype
    wants = [bool(args[f"want_{x}"]) for x in ("points", "centers", "weights")]
    wants.append(bool(args["want_noise_std"]))
    require(isinstance(result, tuple) and len(result) == 4, "not four gradients")
    names = ("of points", "of centers", "of weights", "of noise_std")
    shapes = [(m, d), (n, d), (n,)]
    for k, (name, part) in enumerate(zip(names, result, strict=True)):
        require((part is not None) == wants[k], f"gradient {name} is {type(part)}")
        if k < 3 and wants[k]:
            require_array(name, part, shapes[k], dtype)
    if not is_in_range(args):
        return
    gains = np.asarray(args["grad_output"])
    if not np.isfinite(gains).all():
        is_nan = [np.isnan(part).all() for part in result if part is not None]
        require(all(is_nan), "a gradient that is not finite cannot be seen")
        return
    for name, part in zip(names, result, strict=True):
        if part is not None:
            require(np.isfinite(part).all(), f"gradient {name} is not finite")
    noise_std = float(args["noise_std"])
    largest = largest_of(points, centers)
    gain = float(np.abs(gains).max(initial=0))
    if m * n * d > MOST_COMPARED or noise_std < 1e-2 or largest > 10 or gain > 1e3:
        return
    # As the tests of gradients bound it, but with one exponent for all and no terms
    # kept apart: the errors of sums in which nothing cancels.
    weights = None if args["weights"] is None else np.asarray(args["weights"], float)
    x, y = np.asarray(points, float), np.asarray(centers, float)
    mixture = (x, y, noise_std, weights)
    density = _reference.mixture_log_density(*mixture)
    posterior = np.exp(_reference._log_terms(*mixture) - density[:, None])
    relative = 2 * allowed_error(args, density) + 2 * args["max_lost_mass"]
    relative = np.expm1(np.minimum(relative + (2e-4 if d > 16 else 0), 100))
    if dtype == np.float64 and d > 16:
        relative = np.expm1(2 * allowed_error(args, density) + 1e-11)
        relative += 2 * args["max_lost_mass"]
    doubt = np.abs(gains).astype(float) * relative
    differences = y[None] - x[:, None]
    reach = np.abs(differences) / noise_std + (11 if d > 16 else 0)
    along = doubt[:, None, None] * posterior[:, :, None] * reach / noise_std
    # What was left out may lie farther away: its share, times any distance there is.
    lost = args["max_lost_mass"] * np.abs(gains).astype(float)
    far = float(np.sqrt((differences**2).sum(axis=2)).max(initial=0)) / noise_std**2
    floor = float(np.finfo(dtype).eps) * (gain + float(np.finfo(dtype).tiny))
    exact = _reference.log_density_gradients(*mixture, np.zeros(m), gains)
    if wants[0]:
        of_points = along.sum(axis=1) + (2 * lost * far)[:, None] + floor
        require_close("gradient of points", result[0], exact[0], of_points)
    if wants[1]:
        of_centers = along.sum(axis=0) + 2 * lost.sum() * far + floor
        require_close("gradient of centers", result[1], exact[1], of_centers)
    if wants[3] and args["max_lost_mass"] == 0:
        squares = (differences**2).sum(axis=2) / noise_std**2
        of_noise = (doubt[:, None] * posterior * (squares + d)).sum() / noise_std
        ours = np.array(result[3])
        require_close(
            "gradient of noise_std", ours, np.array(exact[3]), of_noise + floor
        )


def check_gradient_pairs(args: Arguments, result: Any) -> None:
    require(isinstance(result, int), f"{type(result).__name__} is no number of pairs")
    most = 4 * len(args["points"]) * (len(args["centers"]) + 64)
    require(0 <= result <= most + 4096, f"{result} pairs")


# -- orders, samples and what is not finite ------------------------------------------


def draw_kd_order(rng: hostile.Rng) -> Arguments:
    args = draw_mixture(rng)
    return {
        "centers": args["centers"][:0] if rng.random() < 0.03 else args["centers"],
        "leaf": hostile.pick(rng, [1, 2, 3, 16, 48, 100, 1 << 40]),
        "num_threads": args["num_threads"],
    }


def check_kd_order(args: Arguments, result: Any) -> None:
    n = len(args["centers"])
    require_array("order", result, (n,), np.int64)
    require((np.sort(result) == np.arange(n)).all(), "not an order of the centers")


def draw_sampled_squares(rng: hostile.Rng) -> Arguments:
    args = draw_mixture(rng)
    return {
        "points": args["points"],
        "centers": args["centers"],
        "num_x": int(rng.integers(0, 70)),
        "num_y": int(rng.integers(0, 70)),
    }


def check_sampled_squares(args: Arguments, result: Any) -> None:
    x, y = args["points"], args["centers"]
    num_x, num_y = min(int(args["num_x"]), len(x)), min(int(args["num_y"]), len(y))
    require_array("squares", result, (num_x, num_y), x.dtype)
    if hostile.NO_MACHINE in (len(x), len(y)):
        return
    if not is_in_range(args | {"noise_std": 1.0, "weights": None}):
        return
    x = x[np.arange(num_x) * len(x) // max(num_x, 1)].astype(float)
    y = y[np.arange(num_y) * len(y) // max(num_y, 1)].astype(float)
    exact = ((x[:, None] - y) ** 2).sum(axis=2)
    info = np.finfo(result.dtype)
    allowed = (y.shape[1] + 3) * (float(info.eps) * exact + 4 * float(info.tiny))
    require_close("squares", result, exact, allowed)


def draw_first_nonfinite(rng: hostile.Rng) -> Arguments:
    args = draw_mixture(rng)
    array = args["points"]
    if rng.random() < 0.5:
        strided = hostile.lay_out(rng, hostile.spoil_values(rng, array))
        array = strided if strided.dtype.kind == "f" else array
    return {"array": array}


def check_first_nonfinite(args: Arguments, result: Any) -> None:
    array = args["array"]
    found = np.flatnonzero(~np.isfinite(array)) if array.size else []
    expected = int(found[0]) if len(found) else -1
    require(result == expected, f"{result}, not {expected}")


def draw_first_unfit_factor(rng: hostile.Rng) -> Arguments:
    factors = draw_covariance(rng)["whitening"]
    return {
        "whitening": hostile.spoil_values(rng, factors)
        if rng.random() < 0.5
        else factors
    }


def check_first_unfit_factor(args: Arguments, result: Any) -> None:
    factors = args["whitening"]
    if factors.size == 0 or len(factors) == hostile.NO_MACHINE:
        factors = factors[:1]  # all alike: the first matrix tells
    d = factors.shape[1]
    rows, columns = np.indices((d, d))
    good = np.where(
        columns > rows, factors == 0, (columns < rows) | (factors > 0)
    ) & np.isfinite(factors)
    found = np.flatnonzero(~good)
    expected = int(found[0]) if len(found) else -1
    require(result == expected, f"{result}, not {expected}")


# -- components with their own covariance --------------------------------------------


def draw_covariance(rng: hostile.Rng) -> Arguments:
    args = draw_mixture(rng, most_dims=32)
    n, d = args["centers"].shape
    dtype = args["centers"].dtype
    whitening = np.tril(rng.standard_normal((n, d, d))) * 10.0 ** rng.uniform(-2, 2)
    diagonal = np.arange(d)
    whitening[:, diagonal, diagonal] = rng.uniform(0.1, 10, (n, d))
    return {
        "points": args["points"],
        "centers": args["centers"],
        "whitening": whitening.astype(dtype),
        "weights": hostile.weights(rng, n, dtype),
        "num_threads": args["num_threads"],
    }


def check_covariance(args: Arguments, result: Any) -> None:
    points, centers = args["points"], args["centers"]
    require_array("log_density", result, (len(points),), centers.dtype)
    factors, (n, d) = args["whitening"], centers.shape
    if not is_in_range(args | {"noise_std": 1.0}):
        return
    largest = largest_of(points, centers)
    if not (np.abs(factors).max() < 1e6 and largest < 1e8):
        return
    if (np.diagonal(factors, axis1=1, axis2=2) < 1e-6).any() or np.triu(
        factors, 1
    ).any():
        return
    require_no_nan("log_density", result)
    some = sample_of(args, most=MOST_COMPARED // d)
    x, y, a = points[some].astype(float), centers.astype(float), factors.astype(float)
    exact = _reference.gaussian_mixture_log_density(x, y, a, args["weights"])
    # As tests/test_covariance.py derives it.
    u = float(np.finfo(centers.dtype).eps) / 2
    differences = x[:, None, :] - y
    rows = np.einsum("jrk,ijk->ijr", a, differences)
    sizes = np.einsum("jrk,ijk->ijr", np.abs(a), np.abs(differences))
    squares = 0.5 * (rows**2).sum(axis=2)
    w = 1.0 if args["weights"] is None else np.asarray(args["weights"], float)
    with np.errstate(divide="ignore"):
        log_sizes = np.log(np.diagonal(a, axis1=1, axis2=2)).sum(axis=1) + np.log(w)
    exponents = squares - log_sizes
    of_rows = (d + 3) * (np.abs(rows) * sizes).sum(axis=2)
    of_squares = (d + 2) * (squares + np.log(n / u) + 30)
    # What is off by more may matter where it should not, or not matter where it should.
    errors = u * (of_rows + of_squares)
    least = (exponents + errors).min(axis=1, keepdims=True)
    matters = exponents - errors <= least + np.log(n / u)
    worst = np.where(matters, errors, 0).max(axis=1, initial=0)
    allowed = worst + u * (min(n, 512) + 5 + 2 * np.abs(exact) + d)
    require_close("log_density", result[some], exact, allowed)


# -- paths ---------------------------------------------------------------------------


def draw_network(rng: hostile.Rng) -> tuple[Arguments, Any, Any, Any]:
    """Arguments of both, noise paths, and how long these are."""
    widths = [int(w) for w in rng.integers(1, 6, int(rng.integers(2, 5)))]
    if rng.random() < 0.05:
        widths[int(rng.integers(len(widths)))] = int(hostile.pick(rng, [16, 33, 70]))
    m, num_points = (
        int(rng.integers(1, 20)),
        int(hostile.pick(rng, [0, 1, 3, 9, 17, 33])),
    )
    weights = [
        rng.standard_normal((b, a)) * 10.0 ** rng.uniform(-1, 0.3) / math.sqrt(a)
        for a, b in itertools.pairwise(widths)
    ]
    biases = [0.3 * rng.standard_normal(b) for b in widths[1:]]
    activation = int(rng.integers(len(ACTIVATIONS)))
    noise_std = float(10 ** rng.uniform(-1.5, 0.3))
    first = rng.uniform(-1, 1, (m, widths[0]))
    own = rng.integers(0, m, num_points)
    length = sum(widths[:-1])
    path = rng.standard_normal((num_points, length))
    network = _reference._Network(weights, biases, ACTIVATIONS[activation], noise_std)
    clean = [network.linearise(first[x], z)[0] for x, z in zip(own, path, strict=True)]
    points = np.reshape(clean, (num_points, widths[-1]))
    points = points + noise_std * rng.standard_normal(points.shape)
    args = {
        "weights": weights,
        "biases": biases,
        "activation": activation,
        "noise_std": noise_std,
        "first": first,
        "points": points,
        "own": own,
        "path": path,
    }
    return args, m, num_points, length


def draw_path_importance(rng: hostile.Rng) -> Arguments:
    args, m, num_points, length = draw_network(rng)
    num_proposals = int(hostile.pick(rng, [4, 5, 8, 17, 32]))
    own = args["own"]
    groups = [np.stack([own, own + 1], 1), np.stack([0 * own, 0 * own + m], 1)]
    low, high = np.minimum(own, m // 3), np.maximum(own + 1, 2 * m // 3)
    groups.append(np.stack([low, high], 1))
    count = int(rng.integers(0, 4))
    stacked = np.array(groups[:count]).reshape(count, num_points, 2).astype(np.int64)
    length_and_d = length + args["points"].shape[1]
    return args | {
        "groups": stacked,
        "uniforms": rng.random((num_points, num_proposals + 2)),
        "normals": rng.standard_normal((num_points, num_proposals, length_and_d)),
        "num_threads": hostile.pick(rng, hostile.THREADS),
    }


def is_known_network(args: Arguments) -> bool:
    """Whether the numbers are ones that both ways of computing agree on.

    Rounding is amplified by 1 / noise_std^2, and by steep layers.
    """
    arrays = [*args["weights"], *args["biases"]]
    arrays += [args[key] for key in ("first", "points", "path", "normals")]
    if not all(isinstance(a, np.ndarray) and a.dtype == np.float64 for a in arrays):
        return False
    is_small = all(a.size and np.abs(a).max() < 8 for a in arrays)
    return bool(is_small and 0.03 <= float(args["noise_std"]) <= 100)


def check_path_importance(args: Arguments, result: Any) -> None:
    groups = np.asarray(args["groups"])
    shape = groups.shape[:2]
    require(isinstance(result, tuple) and len(result) == 3, "not three parts")
    for name, part in zip(("lower", "upper", "effective"), result, strict=True):
        require_array(name, part, shape, np.float64)
    uniforms, num_proposals = args["uniforms"], np.shape(args["normals"])[1]
    if not is_known_network(args) or not uniforms.size:
        return
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        return
    for name, part in zip(("lower", "upper", "effective"), result, strict=True):
        require_no_nan(name, part)
    if 0 < math.prod(shape) * num_proposals <= 60 and max(map(len, args["biases"])) < 8:
        compare_sides(args, result, _reference.path_importance)


def compare_sides(args: Arguments, result: Any, reference: Any) -> None:
    problem = {key: value for key, value in args.items() if key != "num_threads"}
    problem["noise_std"] = float(args["noise_std"])
    for key in ("own", "groups", "offsets", "num_draws"):
        if key in problem:
            problem[key] = np.array(args[key], np.int64)
    problem["activation"] = ACTIVATIONS[int(args["activation"])]
    with np.errstate(all="ignore"):
        exact = reference(**problem)
    # As tests/test_path_importance.py: 1e-8 for 1 / noise_std^2 = 2500.
    scale = 1 + max(float(np.abs(exact[0]).max()), float(np.abs(exact[1]).max()))
    for name, ours, side in zip(("lower", "upper"), result, exact, strict=False):
        require_close(name, ours, side, 1e-8 * scale)


def draw_path_replicas(rng: hostile.Rng) -> Arguments:
    args, _, num_points, length = draw_network(rng)
    num_draws = int(hostile.pick(rng, [1, 2, 7, 8, 16, 21]))
    columns = num_draws + int(rng.integers(0, 20))
    offsets = rng.integers(0, columns - num_draws + 1, num_points)
    return args | {
        "normals": rng.standard_normal((length, columns)),
        "offsets": offsets,
        "num_draws": num_draws,
        "num_threads": hostile.pick(rng, hostile.THREADS),
    }


def check_path_replicas(args: Arguments, result: Any) -> None:
    num_points = len(np.asarray(args["own"]))
    require(isinstance(result, tuple) and len(result) == 3, "not three parts")
    for name, part in zip(("lower", "upper", "effective"), result, strict=True):
        require_array(name, part, (num_points,), np.float64)
    if not is_known_network(args):
        return
    for name, part in zip(("lower", "upper", "effective"), result, strict=True):
        require_no_nan(name, part)
    if 0 < num_points * args["num_draws"] <= 200:
        compare_sides(args, result, _reference.path_replicas)


# -- targets of the CPU --------------------------------------------------------------


def draw_force_target(rng: hostile.Rng) -> Arguments:
    names = ["baseline", "avx2", "avx512", "", "neon", "a\0b", "\ud800", "x" * 10_000]
    return {"name": None if rng.random() < 0.3 else hostile.pick(rng, names)}


def check_force_target(args: Arguments, result: Any) -> None:
    require(result is None, "force_target answers")


TARGETS = [
    Target("log_density", draw_mixture, check_log_density),
    Target("block_log_sums", draw_block_log_sums, check_block_log_sums),
    Target("posterior_moments", draw_posterior_moments, check_posterior_moments),
    Target("log_density_gradients", draw_gradients, check_gradients),
    Target("gradient_pairs", draw_gradients, check_gradient_pairs),
    Target("covariance_log_density", draw_covariance, check_covariance),
    Target("kd_order", draw_kd_order, check_kd_order),
    Target("sampled_squares", draw_sampled_squares, check_sampled_squares),
    Target("first_nonfinite", draw_first_nonfinite, check_first_nonfinite),
    Target("first_unfit_factor", draw_first_unfit_factor, check_first_unfit_factor),
    Target("path_importance", draw_path_importance, check_path_importance),
    Target("path_replicas", draw_path_replicas, check_path_replicas),
    Target("force_target", draw_force_target, check_force_target),
]
