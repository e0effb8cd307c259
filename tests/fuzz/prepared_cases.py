"""Prepared mixtures of `_core`: what is asked of one, and how long it lives.

The tree must have copied what it was made of; any number of Python threads may ask it
at once; and nothing can be had of one that was never made.
"""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hostile
import numpy as np
from core_cases import (
    MOST_COMPARED,
    Arguments,
    allowed_error,
    draw_mixture,
    is_in_range,
    largest_of,
    require,
    require_array,
    require_close,
    require_no_nan,
    sample_of,
)

from noisyflow import _reference

EVERY_PAIR = 1  # TreePath of dispatch.h


def draw_prepared(rng: hostile.Rng) -> tuple[Arguments, Any]:
    """Arguments of the constructor, and points."""
    args = draw_mixture(rng)
    if rng.random() < 0.02:  # a tree worth its name, at times with cells
        n, d = int(rng.integers(1000, 4000)), int(rng.integers(1, 6))
        dtype = args["centers"].dtype
        args["centers"] = hostile.values(rng, (n, d), dtype)
        args["weights"] = hostile.weights(rng, n, dtype)
        args["points"] = args["centers"][:300] + dtype.type(args["noise_std"])
    points, threads = args.pop("points"), args.pop("num_threads")
    return args | {
        "max_lost_mass": hostile.pick(rng, [1e-10, 1e-6, 1e-3, 0.3, 5e-324]),
        "has_cells": bool(rng.random() < 0.6),
        "num_threads": threads,
    }, points


def draw_question(rng: hostile.Rng, points: Any, num_centers: int) -> Arguments:
    own = None
    if rng.random() < 0.3:
        own = rng.integers(0, num_centers, len(points))
    return {
        "points": points,
        "path": int(rng.integers(0, 4)),
        "num_threads": hostile.pick(rng, hostile.THREADS),
        "own": own,
    }


def check_answer(made_of: Arguments, question: Arguments, answer: Any) -> None:
    """made_of: the constructor's arguments."""
    points, centers = question["points"], made_of["centers"]
    require(isinstance(answer, tuple) and len(answer) == 6, "not six parts")
    densities, path, sampled, sample, seconds, counts = answer
    require(path in range(4), f"{path} is no path")
    require(seconds >= 0 and sampled >= 0, "a sample of less than nothing")
    require(min(*sample, *counts) >= 0, "less than nothing was counted")
    asked = int(question["path"])
    if asked != 0:
        require(path == asked, f"path {path} in the place of {asked}")
    if path == EVERY_PAIR:
        require(densities is None, "densities of a path that finds none")
        return
    require_array("log_density", densities, (len(points),), centers.dtype)
    if not is_in_range(made_of, points=points):
        return
    if question["own"] is not None:
        # Estimators alone leave these out, and refuse noise that rounding swallows.
        largest = largest_of(points, centers)
        if made_of["noise_std"] < 32 * np.finfo(centers.dtype).eps * largest:
            return
    require_no_nan("log_density", densities)
    args = made_of | {"points": points}
    some = sample_of(args)
    noise_std, weights = float(made_of["noise_std"]), made_of["weights"]
    terms = _reference._log_terms(points[some], centers, noise_std, weights)
    there = np.ones(terms.shape, bool)
    if question["own"] is not None:
        there[np.arange(len(some)), np.array(question["own"], np.int64)[some]] = False
    with np.errstate(over="ignore"):
        exact = _reference._log_sum_exp(terms, there)
    is_none = np.isneginf(exact)
    of_none = densities[some][is_none]
    require((of_none < -np.finfo(centers.dtype).max / 16).all(), "a sum of nothing")
    lost = -np.log1p(-made_of["max_lost_mass"])  # docs/numerics.md, (6.2) and (7.3)
    # Polynomials in T: what the tests of the tree allow them.
    rounding = 2e-5 if centers.dtype == np.float32 else 1e-11
    exact = exact[~is_none]
    allowed = allowed_error(args, exact) + lost + rounding
    require_close("log_density", densities[some][~is_none], exact, allowed)


def same(one: Any, other: Any) -> bool:
    """Bit for bit, but for NaN and the seconds."""
    if one is None or other is None:
        return one is other
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return True
    return bool(np.array_equal(one, other, equal_nan=isinstance(one, np.ndarray)))


def forget(args: Arguments) -> None:
    """Overwrites arrays that the caller may do with as he likes."""
    for value in args.values():
        if isinstance(value, np.ndarray) and value.flags.writeable:
            value.fill(1)


def copied(args: Arguments) -> Arguments:
    return {
        key: value.copy() if isinstance(value, np.ndarray) else value
        for key, value in args.items()
    }


def check_lifetime(core: Any, prepared: Any, kind: str) -> None:
    """Cannot be copied, nor had without having been made."""
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        try:
            attempt(prepared)
        except TypeError:
            continue
        require(False, f"{attempt.__name__} makes another {kind}")
    unmade = getattr(core, kind)
    try:
        unmade.__new__(unmade).num_leaves  # noqa: B018
    except TypeError:
        return
    require(False, f"a {kind} that was never made has leaves")


def check_together(prepared: Any, questions: list[Arguments]) -> None:
    """Several Python threads at once get what each alone gets."""
    alone = [prepared.log_density(**question) for question in questions]
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(prepared.log_density, **question) for question in questions * 3
        ]
        for job, expected in zip(jobs, alone * 3, strict=True):
            require(same(job.result(), expected), "another answer beside other threads")


def is_quick(made_of: Arguments, points: Any) -> bool:
    return len(points) * made_of["centers"].size <= 50 * MOST_COMPARED
