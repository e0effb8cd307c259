"""Ranks share work and end together: started as SLURM does, and by torchrun."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import noisyflow
import ranks_at_work
from noisyflow import _machine, _ranks, cli, runtime
from noisyflow._heartbeat import Heart, Interrupted
from noisyflow._messages import decode, encode

HERE = Path(__file__).parent
SIZE = 3
SECONDS = 300  # for all that a launch does, on a busy machine


def launch(arguments: list[str], size: int) -> list[subprocess.CompletedProcess[str]]:
    """Runs a Python program on several ranks, without torchrun."""
    with free_port() as port:
        return _launch(arguments, size, port)


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """One that no other program is given before the first rank listens there.

    Where the system lets a socket keep it that does not listen; others would take the
    connections that are meant for the rank.
    """
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        port = keeper.getsockname()[1]
        if sys.platform != "linux":
            keeper.close()
        yield port


def _launch(
    arguments: list[str], size: int, port: int
) -> list[subprocess.CompletedProcess[str]]:
    place = {"WORLD_SIZE": f"{size}", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **place, "MASTER_PORT": f"{port}", "RANK": f"{rank}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        outputs = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


@pytest.fixture(scope="module")
def three() -> list[dict[str, dict[str, Any]]]:
    """What each of three ranks found, by the name of what it did."""
    names = "spread stopped earlier shared failing failing_in_a_collective killed"
    done = launch([str(HERE / "ranks_at_work.py"), *names.split()], SIZE)
    codes = [process.returncode for process in done]
    assert codes == [0, 0, -9], [process.stderr for process in done]
    return [
        {
            record["name"]: record
            for record in map(json.loads, process.stdout.split("\n")[:-1])
        }
        for process in done
    ]


def results_of_one(num_items: int) -> list[Any]:
    return [[i / 3, list(range(i)), [i, "word"]] for i in range(num_items)]


def test_results_are_those_of_one_process_in_the_order_of_the_items(three) -> None:
    for rank, records in enumerate(three):
        found = records["spread"]["found"]
        assert (found["rank"], found["size"]) == (rank, SIZE)
        for num_items in (7, 1, 0):  # 1: fewer items than ranks
            for assignment in ("dynamic", "static"):
                expected = results_of_one(num_items)
                assert found[f"{assignment} {num_items}"] == expected
        is_first = rank == 0
        assert found["to the first"] == (results_of_one(5) if is_first else [])
        assert found["received"] == (list(range(5)) if is_first else [])


def test_what_was_begun_is_finished_when_the_first_rank_stops(three) -> None:
    (first, *others) = (records["stopped"]["found"] for records in three)
    done = sorted(item for found in (first, *others) for item in found["done"])
    assert first["results"] == done == list(range(len(done)))
    assert len(first["done"]) == 2
    assert len(done) < 1000  # all there are
    assert all(found["results"] == [] for found in others)


def test_an_item_may_use_the_result_of_one_before_on_another_rank(three) -> None:
    assert three[0]["earlier"]["found"] == [0, 1, 3, 6, 10, 15]


def test_shared_values_arrive_bit_for_bit_and_with_their_types(three) -> None:
    numbers = ["inf", "-0.0", f"{2**70}", "0.1", "None", "True"]
    share = max(1, _machine.num_cpus() // SIZE)
    if os.environ.get("NOISYFLOW_NUM_THREADS"):
        share = int(os.environ["NOISYFLOW_NUM_THREADS"])
    for records in three:
        expected = [True, numbers, "np.float32(0.1)", share]
        assert records["shared"]["found"] == expected


def test_an_exception_reaches_all_ranks_and_is_told_once_by_the_first(three) -> None:
    message = "rank 2 failed: OSError: [Errno 28] No space left on device"
    for records in three[:2]:
        assert records["failing"]["error"] == [message, 2, 1]
    assert three[2]["failing"]["own error"] == "[Errno 28] No space left on device"
    assert [records["failing"]["told"] for records in three] == [[message], [], []]


def test_a_failure_reaches_ranks_that_wait_in_a_collective(three) -> None:
    for rank, records in enumerate(three):
        record = records["failing_in_a_collective"]
        assert record["error"] == ["rank 2: bad input", 2, 2]
        assert record["told"] == (["rank 2: bad input"] if rank == 0 else [])


def test_a_killed_rank_ends_the_others_in_seconds(three) -> None:
    for rank, records in enumerate(three[:2]):
        (message, lost, code) = records["killed"]["error"]
        assert message.startswith("rank 2 has not answered for 6 s: it was killed")
        assert (lost, code) == (2, 1)
        assert len(records["killed"]["told"]) == (rank == 0)
        # 6 s of silence, and none of the grace; the rest is for a busy machine.
        assert records["killed"]["seconds"] < 30


def test_by_default_a_silent_rank_ends_the_others_within_a_minute() -> None:
    pulse = _ranks.PULSE
    # The silence begins just after a beat and is noticed, and heard of, at others.
    beats = pulse.seconds_until_dead + 3 * pulse.seconds_between_beats
    assert beats + pulse.seconds_of_grace < 60


def test_one_process_shares_work_with_itself_and_needs_no_torch() -> None:
    program = (
        "import sys\n"
        "from noisyflow import _ranks\n"
        "with _ranks.joined() as ranks:\n"
        "    assert (ranks.rank, ranks.size, ranks.is_first) == (0, 1, True)\n"
        "    assert ranks.spread([3, 4], str) == ['3', '4']\n"
        "    assert ranks.share({'a': 1}) == {'a': 1}\n"
        "    ranks.barrier()\n"
        "assert 'torch' not in sys.modules\n"
    )
    alone = {name: value for name, value in os.environ.items() if name != "RANK"}
    subprocess.run(
        [sys.executable, "-c", program], env=alone, check=True, timeout=SECONDS
    )


def test_one_process_stops_between_items() -> None:
    done: list[int] = []
    found = _ranks.Ranks().spread(
        range(9),
        lambda item: done.append(item) or item,
        is_stopped=lambda: len(done) == 3,
    )
    assert found == done == [0, 1, 2]


class Quick(_ranks.Ranks):
    """The first of two, where the other has done all that is left at every look."""

    def __init__(self, num_items: int) -> None:
        super().__init__(0, 2)
        self.num_items = num_items
        self.num_taken = 0

    def count(self, key: str, amount: int) -> int:
        self.num_taken += amount
        return self.num_taken

    def is_posted(self, key: str) -> bool:
        index = int(key.rpartition("/")[2])
        if index == self.num_taken < self.num_items:
            self.num_taken += 1
        return index < self.num_taken <= self.num_items

    def fetch(self, key: str) -> bytes:
        return _ranks._message(int(key.rpartition("/")[2]))

    def post(self, key: str, data: bytes) -> None: ...
    def wait_for(self, key: str) -> None: ...
    def drop(self, key: str) -> None: ...


def test_a_wish_to_stop_is_heard_while_others_bring_results() -> None:
    received: list[int] = []
    found = Quick(1000).spread(
        range(1000),
        lambda item: item,
        received=lambda index, result: received.append(index),
        is_stopped=lambda: len(received) >= 3,
    )
    assert found == received == [0, 1, 2]


def test_launched_is_what_torchrun_sets(monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert not _ranks.is_launched()
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", **place}.items():
        monkeypatch.setenv(name, value)
    assert _ranks.is_launched()
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ValueError, match="RANK must be below WORLD_SIZE = 2, got 2"):
        _ranks.is_launched()
    monkeypatch.setenv("RANK", "-1")
    with pytest.raises(ValueError, match="RANK must be a whole number from 0"):
        _ranks.is_launched()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("RANK WORLD_SIZE MASTER_ADDR", "WORLD_SIZE = 2 is set but MASTER_PORT is not"),
        ("RANK WORLD_SIZE MASTER_PORT", "WORLD_SIZE = 2 is set but MASTER_ADDR is not"),
        ("RANK WORLD_SIZE", "= 2 is set but MASTER_ADDR and MASTER_PORT are not"),
        ("WORLD_SIZE MASTER_ADDR MASTER_PORT", "WORLD_SIZE = 2 is set but RANK is not"),
        ("RANK MASTER_ADDR MASTER_PORT", "are set but WORLD_SIZE is not"),
    ],
)
def test_what_is_missing_for_several_ranks_is_named(
    given: str, message: str, monkeypatch, capsys
) -> None:
    values = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value if name in given.split() else "")
    assert cli.main(["estimate", "missing.npy", "--noise-std", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    if "WORLD_SIZE" in given:
        monkeypatch.setenv("WORLD_SIZE", "1")
        assert not _ranks.is_launched()


@pytest.mark.parametrize(
    "given", ["RANK", "WORLD_SIZE", "WORLD_SIZE MASTER_ADDR", "MASTER_ADDR MASTER_PORT"]
)
def test_some_variables_alone_mean_no_ranks(given: str, monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "4" if name in given.split() else "")
    assert not _ranks.is_launched()


@pytest.fixture(scope="module")
def disagreeing(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[dict[str, tuple[int, str]]]]:
    """What two ranks with different commands say, and how they end."""
    folder = tmp_path_factory.mktemp("disagreeing")
    samples = np.random.default_rng(0).standard_normal((200, 4))
    np.save(folder / "one.npy", samples)
    np.save(folder / "other.npy", samples + 1)
    done = launch([str(HERE / "ranks_at_work.py"), "disagreeing", str(folder)], 2)
    assert [process.returncode for process in done] == [0, 0], done
    return folder, [
        {
            name: (code, said)
            for name, code, said in map(json.loads, process.stdout.splitlines())
        }
        for process in done
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("setting", "noise_std = 0.05 on rank 0 and 0.2 on rank 1; all ranks must be"),
        ("experiment", "command = run single-neuron on rank 0 and run spiral on rank"),
        ("command", "command = run single-neuron on rank 0 and estimate on rank 1; "),
        ("option", "seed = None on rank 0 and 1 on rank 1; all ranks must be given"),
        ("file", "checksum of 64 values of the samples = "),
        ("version", f"noisyflow = {noisyflow.__version__} on rank 0 and 0.0 on rank 1"),
        ("target", f"CPU target = {runtime.cpu_target()} on rank 0 and other on rank"),
    ],
)
def test_ranks_that_are_not_given_the_same_end_and_do_nothing(
    name: str, message: str, disagreeing
) -> None:
    (folder, found) = disagreeing
    for rank, (code, said) in enumerate(ended[name] for ended in found):
        assert code == 2
        (line,) = said.splitlines()
        start = f"rank {rank} ends with the others: " if rank else ""
        assert line.startswith(f"noisyflow: {start}{message}")
    assert not list(folder.glob(f"{name}-*"))


@pytest.mark.parametrize(
    "value",
    [object(), {1: 2}, [{"a": {3}}], np.array([object()]), np.array(["a", None])],
    ids=["object", "number-as-key", "set", "objects", "none"],
)
def test_nothing_is_pickled(value: Any) -> None:
    with pytest.raises(TypeError, match="ranks send numbers"):
        encode(value)


def test_messages_keep_values_and_types() -> None:
    value = {
        "tuple": (1, (2.5, [])),
        "array": np.arange(6, dtype=np.int16).reshape(2, 3).T,
        "none": np.zeros((0, 2), np.float32),
        "scalar": np.float64(0.1),
        "dict": {"dict": {"tuple": "\ud800 ü"}},
        "nan": float("nan"),
    }
    found = decode(encode(value))
    assert repr(found) == repr(value)
    assert found["array"].dtype == np.int16
    assert type(found["scalar"]) is np.float64


@pytest.mark.parametrize("name", ["print", "KeyError", "Estimate", "None", "True"])
def test_only_a_name_of_a_warning_makes_one(name: str) -> None:
    message = encode({"result": 3, "warnings": [[name, "little"]]})
    with pytest.warns(UserWarning, match="little"):
        assert _ranks._result(message) == 3


class Slow:
    """A store that answers a rank's farewell only when it is told to, if it is slow."""

    def __init__(self, *, is_slow: bool) -> None:
        self.answers = threading.Event()
        if not is_slow:
            self.answers.set()
        self.beats: list[str] = []

    def set(self, key: str, value: str) -> None:
        if value == "left":
            self.answers.wait(SECONDS)
        self.beats.append(value)

    def check(self, keys: list[str]) -> bool:
        return False

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [str(len(self.beats)).encode() for _ in keys]


@pytest.mark.parametrize(
    ("is_slow", "grace", "last"), [(False, SECONDS, ["left"]), (True, 0.5, [])]
)
def test_a_farewell_takes_no_longer_than_the_grace(is_slow, grace, last) -> None:
    store = Slow(is_slow=is_slow)
    heart = Heart(0, 2, store, _ranks.Pulse(0.05, 10**6, grace, 1.0))
    heart.start()
    heart.stop()  # comes back while the slow one has not answered
    assert [beat for beat in store.beats if beat == "left"] == last
    store.answers.set()


def test_a_rank_that_an_end_meets_leaving_leaves_once(monkeypatch) -> None:
    """The first waits for as many as there are: it must not go before the last."""
    from noisyflow._rank_group import Group

    class Counting:
        def __init__(self) -> None:
            self.counts: Counter[str] = Counter()

        def add(self, key: str, amount: int) -> int:
            self.counts[key] += amount
            return self.counts[key]

    for name, value in {"RANK": "1", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    group = Group("cpu", _ranks.PULSE, None)
    store = Counting()
    group._store = store  # type: ignore[assignment]
    assert group._count_leaving() == 1  # Group.leave, before an end interrupts it
    group._take_leave(False)  # and Group.end
    assert store.counts == {"left": 1}


def test_an_end_of_all_that_meets_an_error_on_its_way_is_dealt_with(
    monkeypatch,
) -> None:
    class Met:
        """A group that hears of the end of all just before it is deaf to it."""

        (rank, size) = (1, 2)

        def __init__(self, *_: object) -> None:
            self.is_heard = False

        def join(self) -> None:
            return None

        def end(self, error: BaseException) -> None:
            if not self.is_heard:
                self.is_heard = True
                raise Interrupted
            raise _ranks.RankError("rank 0 failed", 0) from error

    monkeypatch.setattr(_ranks, "Group", Met)
    monkeypatch.setattr(_ranks, "is_launched", lambda: True)
    with pytest.raises(_ranks.RankError, match="rank 0 failed"), _ranks.joined():
        raise OSError("here too")
    assert _ranks.current().size == 1


def test_a_gallery_is_not_for_several_ranks(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(_ranks, "is_launched", lambda: True)
    arguments = ["szt", "--runs", str(tmp_path), "--out", str(tmp_path / "pages")]
    with mock.patch("noisyflow.gallery.build", side_effect=AssertionError):
        assert cli.main(["gallery", *arguments]) == 2
    assert "gallery is not for several ranks" in capsys.readouterr().err


# -- studies and estimates ------------------------------------------------------------


@dataclass(frozen=True)
class Both:
    """The folders of studies, and what was printed, by one process and by two ranks."""

    folders: dict[str, Path]
    one: str
    two: str
    complaints: str  # of two ranks


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    out = tmp_path_factory.mktemp("ranks")
    folders = {name: out / name for name in ("one", "two", "one-two", "two-one")}
    for folder in folders.values():
        folder.mkdir()
    samples = np.random.default_rng(0).standard_normal((2001, 4))
    np.save(out / "samples.npy", samples)
    samples[1500, 2] = np.nan
    np.save(out / "nan.npy", samples)
    alone = _ranks.Ranks()
    with contextlib.redirect_stdout(io.StringIO()):
        ranks_at_work.study(alone, folders["one"])
        ranks_at_work.study(alone, folders["one-two"], stop_after=3)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        ranks_at_work.estimates(out / "samples.npy")
    of_two = [str(folders[name]) for name in ("two", "one-two", "two-one")]
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", str(HERE / "ranks_at_work.py"), "commands"),
            *(*of_two, str(out / "samples.npy")),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert launched.returncode == 0, launched.stderr
    with contextlib.redirect_stdout(io.StringIO()):
        ranks_at_work.study(alone, folders["two-one"])
    return Both(folders, printed.getvalue(), launched.stdout, launched.stderr)


def tables(folder: Path) -> dict[str, bytes]:
    """All that must not depend on how many ranks there are."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("metrics.csv")
    }


@pytest.mark.parametrize("how", ["two", "one-two", "two-one"])
def test_metrics_are_those_of_one_process_byte_for_byte(both: Both, how: str) -> None:
    """By two ranks; stopped with one process or two, and taken up with the other."""
    expected = tables(both.folders["one"])
    assert len(expected) == 4  # of the cells, the trainings and two networks
    assert tables(both.folders[how]) == expected
    for name in ("cells", "trainings"):
        history = both.folders[how] / name / "history.csv"
        reference = both.folders["one"] / name / "history.csv"
        assert len(history.read_text().splitlines()) == len(
            reference.read_text().splitlines()
        )


def test_an_estimate_of_two_ranks_is_that_of_one_process(both: Both) -> None:
    (one, two) = (
        [json.loads(line) for line in printed.splitlines()]
        for printed in (both.one, both.two)
    )
    estimates = [line for line in two if "estimates" in line]
    assert len(estimates) == 1  # printed by the first rank alone
    assert estimates[0]["num_ranks"] == 2
    for name, expected in one[0]["estimates"].items():
        found = estimates[0]["estimates"][name]
        for key, value in expected.items():
            # 1e-12 is what noisyflow.distributed states in float64.
            assert found[key] == (
                pytest.approx(value, rel=1e-12, abs=1e-12)
                if isinstance(value, float)
                else value
            ), (name, key)
    assert estimates[0]["warnings"] == one[0]["warnings"]


def test_mistakes_are_told_once_and_all_ranks_end_with_their_code(both: Both) -> None:
    assert both.one.count('{"code": 2}') == 2
    assert both.two.count('{"code": 2}') == 4
    assert both.two.count('{"code": 0}') == 2
    lines = [line for line in both.complaints.splitlines() if "noisyflow:" in line]
    assert sum("cannot read" in line for line in lines) == 1
    (where,) = [line for line in lines if "must be finite" in line]
    assert where.startswith("noisyflow: rank 1: ")  # which has the second half
    assert where.endswith("must be finite, got nan at [1500, 2]")


def test_an_early_end_on_one_rank_ends_all_with_its_message(both: Both) -> None:
    """Whatever ends it: the other waits elsewhere, and nobody else would end that."""
    found = [json.loads(line) for line in both.two.splitlines() if "early" in line]
    codes = {(f["early"], f["rank"]): f["code"] for f in found}
    left = "whoever read standard output has left; all ranks end"
    ended = "the command ended early, with exit code"
    own = "MemoryError('no memory')"
    for name, message, expected in (
        ("estimate 0", "on rank 0 of 2: MemoryError: no memory", [1, 1]),
        ("estimate 1", "on rank 1 of 2: MemoryError: no memory", [1, 1]),
        ("left 0", left, [1, 1]),
        ("left 1", f"rank 1: {left}", [1, 1]),
        ("exit 0", f"{ended} 3; all ranks end", [3, 3]),
        ("exit 1", f"rank 1: {ended} 2; all ranks end", [2, 2]),
        ("memory 0", "rank 0 failed: MemoryError: no memory", [own, 1]),
        ("memory 1", "rank 1 failed: MemoryError: no memory", [1, own]),
        ("stopped 0", "rank 0 was stopped by Ctrl-C", [130, 130]),
        (
            "finished 0",
            "rank 1 failed: RuntimeError: rank 0 has come to its",
            [1, "RuntimeError"],
        ),
    ):
        assert [str(codes[name, rank])[:12] for rank in (0, 1)] == [
            str(code)[:12] for code in expected
        ], name
        # All ranks know of it where they agreed; either is the first to say so.
        by = ("", "rank 1: ") if name.startswith("estimate") else ("",)
        said = [
            line
            for line in both.complaints.splitlines()
            if line.startswith(tuple(f"noisyflow: {who}{message}" for who in by))
        ]
        assert len(said) == 1, (name, both.complaints)
