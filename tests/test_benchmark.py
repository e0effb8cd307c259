"""noisyflow beside its peers: what is wrong, missing or broken is told, not timed."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noisyflow import _benchmarking, _reference, benchmark, cli, runtime
from noisyflow._peers import Contestant, scipy_cdist
from noisyflow.benchmark import OURS, PEERS, Case, Peer, PlainDraws

TINY = Case("clustered", 96, 2, 0.3)
NUMPY = Peer("NumPy and SciPy", [scipy_cdist])
_FIRST = PEERS[0]


def off_by(nats: float) -> Callable[[Any], Contestant]:
    """A peer whose last result is wrong."""

    def make(centers: Any) -> Contestant:
        right = scipy_cdist(centers)

        def call(points: Any, noise_std: float) -> Any:
            result = right(points, noise_std)
            result[-1] += nats
            return result

        return call

    return make


def raises(centers: Any) -> Contestant:
    """A peer that cannot be made."""
    raise OSError("no such\ncompiler")


def raises_late(centers: Any) -> Contestant:
    """A peer that fails once all has been prepared."""
    right, calls = scipy_cdist(centers), []

    def call(points: Any, noise_std: float) -> Any:
        calls.append(len(points))
        if calls.count(calls[-1]) > 3 and len(calls) > 5:
            raise RuntimeError("out of luck")
        return right(points, noise_std)

    return call


def measured(*peers: Peer, case: Case = TINY) -> dict[str, benchmark.Row]:
    rows = benchmark.measure(case, [_FIRST, *peers], seconds=1e-4, repeats=2)
    return {row.peer: row for row in rows}


def test_the_exact_log_densities_are_those_of_the_specification() -> None:
    centers = TINY.centers()
    exact = _benchmarking.log_density(centers[:8] + 0.1, centers, 0.3)
    expected = _reference.mixture_log_density(centers[:8] + 0.1, centers, 0.3)
    np.testing.assert_allclose(exact, expected, atol=1e-13)


def test_a_peer_is_checked_and_timed() -> None:
    rows = measured(NUMPY)
    for row in rows.values():
        assert row.verdict == "timed"
        assert row.error < 1e-5
        assert row.seconds["best"] <= row.seconds["median"] <= row.seconds["worst"]
        pairs = row.points * TINY.n
        assert row.pairs_per_second == pytest.approx(pairs / row.seconds["median"])
        assert row.seconds_to_target > 0
    ours, theirs = rows[OURS], rows[NUMPY.name]
    assert ours.entropy_error <= 0.01
    # The same entropy by plain draws and another's log-density.
    spread = math.hypot(ours.entropy_error, theirs.entropy_error)
    assert abs(ours.entropy - theirs.entropy) < 5 * spread


@pytest.mark.parametrize("nats", [2e-3, -5.0, math.nan, math.inf])
def test_a_peer_that_is_wrong_is_called_wrong_and_not_timed(nats: float) -> None:
    row = measured(Peer("fake", [off_by(nats)]))["fake"]
    assert row.verdict == "wrong"
    assert row.error == pytest.approx(abs(nats) if math.isfinite(nats) else math.inf)
    assert not row.seconds
    assert "wrong, not timed" in benchmark.table([row])


def test_a_peer_that_is_as_exact_as_its_type_is_not_called_wrong() -> None:
    assert measured(Peer("fake", [off_by(5e-4)]))["fake"].verdict == "timed"


@pytest.mark.parametrize("make", [raises, raises_late], ids=["early", "late"])
def test_a_peer_that_raises_does_not_end_the_run(
    make: Callable[[Any], Contestant],
) -> None:
    rows = measured(Peer("broken", [make]), NUMPY)
    assert rows["broken"].verdict == "failed"
    assert rows["broken"].problem in ("OSError: no such", "RuntimeError: out of luck")
    assert rows[NUMPY.name].verdict == "timed"
    text = benchmark.table(list(rows.values()))
    assert f"failed: {rows['broken'].problem}" in text


def test_a_wrong_shape_is_a_failure() -> None:
    flat = Peer("flat", [lambda centers: lambda points, noise_std: np.zeros(1)])
    assert "shape (1,) instead of" in measured(flat)["flat"].problem


def test_the_quickest_setting_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that a call puts forward, far more than a busy machine delays it."""
    ahead = 0.0
    monkeypatch.setattr(_benchmarking, "_clock", lambda: time.perf_counter() + ahead)

    def make(centers: Any, *, chunk: int) -> Contestant:
        right = scipy_cdist(centers)

        def call(points: Any, noise_std: float) -> Any:
            nonlocal ahead
            ahead += chunk
            return right(points, noise_std)

        return call

    peer = Peer("fake", [partial(make, chunk=900), partial(make, chunk=8)])
    assert measured(peer)["fake"].setting == "fake, 8 points"


def test_a_run_names_what_is_missing_and_writes_all_it_found(tmp_path: Path) -> None:
    absent = Peer("absent", [raises], ["no_such_module"], "no-such-package")
    wrong = Peer("wrong", [off_by(math.inf)])
    shown: list[str] = []
    record = benchmark.run(
        [TINY],
        [_FIRST, NUMPY, wrong, absent],
        threads=1,
        seconds=1e-4,
        repeats=1,
        show=shown.append,
    )
    text = "\n".join(shown)
    assert "not installed: absent (pip install no-such-package)" in text
    assert "1 thread(s)" in text
    assert "numpy" in text
    figure, written = benchmark.save(record, tmp_path / "new" / "folder")
    assert figure.read_bytes().startswith(b"\x89PNG")
    found = json.loads(
        written.read_text(),
        parse_constant=lambda word: pytest.fail(f"{word} is no JSON"),
    )
    assert found == record
    assert [row["verdict"] for row in found["rows"]] == ["timed", "timed", "wrong"]
    assert {path.name for path in written.parent.iterdir()} == {
        "benchmark.png",
        "benchmark.json",
    }


def test_a_run_lets_go_of_threads_and_processors() -> None:
    def state() -> tuple[Any, ...]:
        affinity = getattr(os, "sched_getaffinity", lambda pid: None)(0)
        return runtime.num_threads(), affinity, dict(os.environ)

    before = state()
    benchmark.run([], threads=1, show=lambda text: None)
    assert state() == before


def test_plain_draws_have_the_error_of_normal_samples() -> None:
    """One center: minus the log-density of d = 2 has variance d/2 = 1."""
    case = Case("clustered", 1024, 2, 0.3)
    draws = benchmark._plain_draws(case, np.zeros((1024, 2)))
    # Half a square of a difference of two such has variance 5; 1024 of them.
    assert abs(draws.within - 1) < 5 * math.sqrt(5 / 1024)
    assert abs(draws.total - 1) < 5 * math.sqrt(8 / 2048)  # their fourth moment is 9
    plain = PlainDraws(within=1.0, total=3.0, n=500)
    assert plain.needed() == 10_000  # 1 / 0.01^2, twenty at every center
    assert plain.standard_error(10_000) == pytest.approx(0.01)
    assert plain.standard_error(300) == pytest.approx(0.1)  # not every center is met
    few = PlainDraws(within=1e-4, total=0.01, n=500)
    assert few.needed() == 100
    assert few.standard_error(100) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--peers", "torche"], "unknown peer 'torche'; known, to be separated by sp"),
        (["--peers", "torch,jax"], "by spaces: noisyflow 'noisyflow, every pair' "),
        (["--threads", "0"], "threads must be from 1 to "),
        (["--threads", "100000"], "the CPUs of this process, got 100000"),
        (["--threads", "1", "--clock", "sun"], "invalid choice: 'sun'"),
        (["--dtype", "float16"], "invalid choice: 'float16'"),
        (["--out", ""], "must name a folder"),
    ],
)
def test_bad_arguments_are_told_before_anything_is_measured(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "bench"
    assert cli.main(["bench", "--out", str(out)]) == 2
    assert f"cannot write to {out}: Not a directory" in capsys.readouterr().err


def test_an_interrupted_benchmark_leaves_no_folder(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "run", interrupted)
    assert cli.main(["bench", "--out", str(tmp_path / "new" / "bench")]) == 130
    assert "nothing is written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    (tmp_path / "old").mkdir()
    assert cli.main(["bench", "--out", str(tmp_path / "old")]) == 130
    assert (tmp_path / "old").is_dir()


def test_the_command_prints_and_writes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark, "CASES", (TINY,))
    monkeypatch.setattr(benchmark, "MORE_CASES", (Case("uniform", 64, 1, 1.0),))
    out = tmp_path / "bench"
    arguments = ["--threads", "1", "--peers", NUMPY.name, "--full", "--out", str(out)]
    assert cli.main(["bench", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "clustered, n = 96, d = 2, noise 0.3" in printed
    assert "uniform, n = 64, d = 1, noise 1" in printed
    assert f"written: {out / 'benchmark.png'}" in printed
    record = json.loads((out / "benchmark.json").read_text())
    assert {row["peer"] for row in record["rows"]} == {OURS, NUMPY.name}


def test_the_clock_of_the_processor_is_for_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4), raising=False)
    monkeypatch.setattr(runtime, "num_threads", lambda: 2)
    assert benchmark.checked_threads(None) == 2
    assert benchmark.checked_threads(1, "cpu") == 1
    with pytest.raises(ValueError, match=r"it needs threads = 1, got 2"):
        benchmark.checked_threads(None, "cpu")
