"""The border of the extension: a few of the fuzzer's cases, and what it once found.

`tests/fuzz/run.sh` runs a hundred thousand under sanitizers.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from noisyflow import _core, _reference

FUZZ = Path(__file__).parent / "fuzz"


@pytest.fixture
def fuzz_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FUZZ))
    import fuzz_core

    yield fuzz_core
    _core.force_target(None)


def first_failure(fuzz_core: Any, core: Any, count: int, only: str | None) -> Any:
    for index in range(count):
        message = fuzz_core.failure_of(fuzz_core.Case(core, 20, index, only))
        if message is not None:
            return f"case {index}: {message}"
    return None


def test_random_calls_end_in_an_answer_or_a_refusal(fuzz_core: Any) -> None:
    assert first_failure(fuzz_core, _core, 300, None) is None


def test_arrays_of_times_are_spoilt_as_others_are(fuzz_core: Any) -> None:
    case = fuzz_core.Case(_core, 1, 25769)
    assert fuzz_core.failure_of(case) is None


def nan(result: Any) -> Any:
    result[-1:] = math.nan
    return result


def wrong_number(result: Any) -> Any:
    return result * result.dtype.type(1.001)


def wrong_exception(result: Any) -> Any:
    raise SystemError("error return without exception set")


@pytest.mark.parametrize(
    "plant",
    [nan, wrong_number, wrong_exception, lambda x: x[:, None], lambda x: x.tolist()],
)
def test_the_fuzzer_notices_a_planted_fault(
    plant: Callable[[Any], Any], fuzz_core: Any
) -> None:
    names = [name for name in dir(_core) if not name.startswith("__")]
    planted = SimpleNamespace(**{name: getattr(_core, name) for name in names})
    planted.log_density = lambda *args, **named: plant(
        _core.log_density(*args, **named)
    )
    assert first_failure(fuzz_core, planted, 60, "log_density") is not None


def test_the_fuzzer_goes_on_behind_a_case_that_dies(
    fuzz_core: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, sys\n"
        "begin, end, progress = sys.argv[2:5]\n"
        "open(progress, 'wb').write((int(begin) + 3).to_bytes(8, 'little'))\n"
        "os.abort()\n"
    )
    monkeypatch.setattr(fuzz_core, "__file__", str(worker))
    options = argparse.Namespace(seed=5, limit=9, core=None, only=None, preload=None)
    assert fuzz_core.run_chunk(options, 10, 20, collections.Counter()) == (1, 14)
    assert "--seed 5 --case 13" in capsys.readouterr().out


# -- what it found -------------------------------------------------------------------

X = np.linspace(0, 1, 12).reshape(4, 3)


def test_an_object_that_was_never_prepared_says_so() -> None:
    unmade = _core.Prepared64.__new__(_core.Prepared64)
    for name in ("num_leaves", "num_cells", "num_bytes"):
        with pytest.raises(TypeError, match="has not been prepared"):
            getattr(unmade, name)
    with pytest.raises(TypeError, match="has not been prepared"):
        unmade.log_density(X, 2, 1)


@pytest.mark.parametrize("threads", [0, -3])
def test_no_threads_are_refused(threads: int) -> None:
    factors = np.tile(np.eye(3), (4, 1, 1))
    own, ones = np.zeros(4, np.int64), np.ones(4)
    blocks = np.array([0, 4])
    calls: list[Callable[[], Any]] = [
        lambda: _core.log_density(X, X, 1.0, None, threads),
        lambda: _core.kd_order(X, 1, threads),
        lambda: _core.posterior_moments(X, X, 1.0, None, 1.0, threads),
        lambda: _core.covariance_log_density(X, X, factors, None, threads),
        lambda: _core.block_log_sums(
            X, X, 1.0, own, blocks, blocks, None, True, threads
        ),
        lambda: _core.log_density_gradients(
            X, X, 1.0, None, ones, ones, True, True, True, True, 0.0, threads
        ),
        lambda: _core.Prepared64(X, 1.0, None, 1e-6, True, threads),
        lambda: _core.Prepared64(X, 1.0, None, 1e-6, True, 1).log_density(
            X, 2, threads
        ),
        lambda: _core.path_replicas(
            *([np.eye(3)], [np.zeros(3)], 1, 1.0, X, X, own, X, X.T.copy()),
            *(own, 1, threads),
        ),
        lambda: _core.path_importance(
            *([np.eye(3)], [np.zeros(3)], 1, 1.0, X, X, own, X),
            np.tile([0, 4], (1, 4, 1)),
            *(np.zeros((4, 6)), np.zeros((4, 4, 6)), threads),
        ),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="num_threads must be positive"):
            call()


@pytest.mark.parametrize("path", [-1, 4, 7])
def test_a_path_that_does_not_exist_is_refused(path: int) -> None:
    prepared = _core.Prepared64(X, 1.0, None, 1e-6, True, 1)
    with pytest.raises(ValueError, match="no such path"):
        prepared.log_density(X, path, 1)


def test_numbers_that_straddle_their_places_are_read_as_they_are() -> None:
    """Weights of a structured array, for instance, which the package passes on."""
    table = np.zeros(4, [("flag", "u1"), ("weight", "f8")])
    table["weight"] = [0.1, 0.2, 0.3, 0.4]
    weights = table["weight"]
    assert not weights.flags.aligned
    ours = _core.log_density(X, X, 1.0, weights, 1)
    np.testing.assert_array_equal(ours, _core.log_density(X, X, 1.0, weights.copy(), 1))


def test_any_number_of_empty_rows_is_looked_through_at_once() -> None:
    assert _core.first_nonfinite(np.empty((1 << 58, 0))) == -1
    assert _core.first_unfit_factor(np.empty((1 << 58, 0, 0))) == -1


def test_no_order_is_made_of_what_has_none() -> None:
    centers = np.random.default_rng(0).normal(size=(500, 2))
    centers[::3] = math.nan
    with pytest.raises(ValueError, match="finite"):
        _core.kd_order(centers, 1, 1)
    with pytest.raises(ValueError, match="finite"):
        _core.Prepared64(centers, 1.0, None, 1e-6, True, 1)


def test_gradients_of_points_that_are_no_numbers_do_not_order_them() -> None:
    """Enough pairs for a tree; the points that are numbers keep their gradients."""
    rng = np.random.default_rng(1)
    points, centers = rng.normal(size=(1200, 2)), rng.normal(size=(1000, 2))
    density = _core.log_density(points, centers, 0.01, None, 1)
    points[5] = math.nan
    gradients = _core.log_density_gradients(
        *(points, centers, 0.01, None, density, np.ones(1200)),
        *(True, True, False, False, 1e-6, 1),
    )[0]
    assert np.isfinite(gradients[:5]).all()


def test_a_leaf_may_be_as_large_as_a_number_can_be() -> None:
    order = _core.kd_order(X, sys.maxsize, 1)
    np.testing.assert_array_equal(np.sort(order), np.arange(4))


def test_less_than_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least nothing"):
        _core.sampled_squares(X, X, -(2**63), 3)


def test_samples_are_taken_of_however_many_rows() -> None:
    many = np.broadcast_to(X[:1], (1 << 45, 3))
    squares = _core.sampled_squares(many, X, 1 << 18, 1)
    np.testing.assert_array_equal(squares, np.zeros((1 << 18, 1)))


@pytest.mark.parametrize("d", [2, 31])
def test_moments_of_points_a_million_away_are_those_of_the_nearest_centers(
    d: int,
) -> None:
    """In float32, where the nearest center is known to 30,000 nats at first."""
    rng = np.random.default_rng(3)
    points = (1e6 + rng.normal(size=(47, d))).astype(np.float32)
    centers = rng.normal(size=(64, d)).astype(np.float32)
    exact = _reference.posterior_moments(points, centers, 7.5)
    for target in _core.available_targets():
        _core.force_target(target)
        ours = _core.posterior_moments(points, centers, 7.5, None, 1.0, 1)
        _core.force_target(None)
        u = 2.0**-24
        assert (np.abs(ours[0] - exact[0]) <= 4 * u * np.abs(exact[0])).all()
        # One center has nearly all: the mean is the way to it, rounded once.
        assert (np.abs(ours[1] - exact[1]) <= 4 * u * np.abs(exact[1])).all()


def test_own_inputs_are_looked_at_where_there_are_no_groups() -> None:
    with pytest.raises(ValueError, match="own must be rows of first"):
        _core.path_importance(
            *([np.eye(3)], [np.zeros(3)], 1, 1.0, X, X, np.full(4, 1 << 40), X),
            np.empty((0, 4, 2), np.int64),
            *(np.zeros((4, 6)), np.zeros((4, 4, 6)), 1),
        )


def test_threads_that_compute_at_the_end_of_the_interpreter_do_not_abort_it(
    fuzz_core: Any,
) -> None:
    import fuzz_lifetimes

    assert fuzz_lifetimes.ends("", 3, None) == 0


def test_repeated_calls_leave_nothing_behind(fuzz_core: Any) -> None:
    import fuzz_lifetimes

    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("needs the malloc of glibc 2.33 or newer")
    assert not fuzz_lifetimes.has_grown(fuzz_lifetimes.grow(_core, 2000))
    names = [name for name in dir(_core) if not name.startswith("__")]
    leaking = SimpleNamespace(**{name: getattr(_core, name) for name in names})
    kept = []

    def first_nonfinite(array: Any) -> int:
        kept.append(bytearray(20_000))
        return _core.first_nonfinite(array)

    leaking.first_nonfinite = first_nonfinite
    assert fuzz_lifetimes.has_grown(fuzz_lifetimes.grow(leaking, 300))
