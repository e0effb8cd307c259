"""One rank of some, for test_ranks.py: does what its arguments name, one by one.

Prints a line of JSON for each: what this rank found. All in one process, as importing
torch takes seconds.
"""

import contextlib
import io
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import numpy as np

from noisyflow import _ranks, runtime

# On a busy machine a process may wait for seconds: nobody is lost for that, and nobody
# waits in vain for who is to tell why all end.
PULSE = _ranks.Pulse(0.25, 240, 60.0, 60.0)
# Where a rank is killed: silent for six seconds.
PULSE_OF_KILLED = _ranks.Pulse(0.25, 24, 60.0, 60.0)
NUM_CELLS = 7


def compute(item: int) -> dict[str, Any]:
    time.sleep(0.01 * (item % 3))  # so that ranks take turns
    return {"third": item / 3, "array": np.arange(item), "pair": (item, "word")}


def readable(results: list[dict[str, Any]]) -> list[Any]:
    return [
        [result["third"], result["array"].tolist(), list(result["pair"])]
        for result in results
    ]


def spread(ranks: _ranks.Ranks) -> Any:
    """Results of 7, 1 and 0 items, in every way."""
    found: dict[str, Any] = {"rank": ranks.rank, "size": ranks.size}
    for num_items in (7, 1, 0):
        for assignment in ("dynamic", "static"):
            results = ranks.spread(
                range(num_items),
                compute,
                assignment=assignment,  # type: ignore[arg-type]
                everywhere=True,
            )
            found[f"{assignment} {num_items}"] = readable(results)
    received: list[int] = []
    results = ranks.spread(
        range(5), compute, received=lambda index, result: received.append(index)
    )
    return found | {"to the first": readable(results), "received": received}


def stopped(ranks: _ranks.Ranks) -> Any:
    """Items that were begun until the first rank had done two.

    The others wait for these before a third: one that is faster might take all.
    """
    done: list[int] = []

    def one(item: int) -> int:
        while len(done) == 2 and ranks.count("done by the first", 0) < 2:
            time.sleep(0.01)
        time.sleep(0.02)
        done.append(item)
        ranks.count("done by the first", int(ranks.is_first))
        return item

    results = ranks.spread(range(1000), one, is_stopped=lambda: len(done) >= 2)
    return {"results": results, "done": done}


def earlier(ranks: _ranks.Ranks) -> Any:
    """Sums of 0 ... i, each from the one before, whoever has that."""
    work = _ranks.Spread(ranks, 6)
    return work.run(lambda i: i + (work.result(i - 1) if i else 0))


def shared(ranks: _ranks.Ranks) -> Any:
    """An array of 5 MiB and odd numbers from the first rank; threads meanwhile."""
    mine = {
        "array": np.arange(5 * 2**17, dtype=np.float64),
        "numbers": [float("inf"), -0.0, 2**70, 0.1, None, True],
        "scalar": np.float32(0.1),
    }
    got = ranks.share(mine if ranks.is_first else None)
    ranks.barrier()
    is_same = bool((got["array"] == mine["array"]).all())
    numbers = [repr(number) for number in got["numbers"]]
    return [is_same, numbers, repr(got["scalar"]), runtime.num_threads()]


def failing(ranks: _ranks.Ranks) -> Any:
    """The last rank fails while the others do not ask how it is."""
    if ranks.rank == ranks.size - 1:
        raise OSError(28, "No space left on device")
    while True:  # with a pause, as the machine may be busy
        time.sleep(0.01)


def failing_in_a_collective(ranks: _ranks.Ranks) -> Any:
    """The last rank fails while the others wait for it in torch."""
    import torch

    if ranks.rank == ranks.size - 1:
        raise _ranks.Failure("bad input", 2)
    torch.distributed.all_reduce(torch.ones(2))


def killed(ranks: _ranks.Ranks) -> Any:
    """The last rank is killed while the others do not ask how it is."""
    if ranks.rank == ranks.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:  # with a pause, as the machine may be busy
        time.sleep(0.01)


def cells(ranks: _ranks.Ranks, out: Path) -> Any:
    """A study whose cells use arrays of earlier ones; then again, when it is done."""
    from noisyflow.experiments.cells import CellRows, CellTable
    from noisyflow.runs import RunFolder

    @dataclass(frozen=True)
    class Cell:
        number: int
        cost: float = 1.0

        @property
        def name(self) -> str:
            return f"cell {self.number}"

    folder = RunFolder(out)
    with folder.open("cells", {}):
        table = CellTable(folder, lambda: {"start": np.arange(3.0)})
        table.resume()

        def compute(cell: Cell) -> CellRows:
            value = table.prepared["start"].sum() / (1 + cell.number)
            if cell.number:
                earlier = table.arrays_after(cell.number - 1)
                value = value + earlier[f"value.{cell.number - 1}"]
            array = np.array(value)
            return CellRows(
                [{"v": value}], [{"s": 0.0}], {f"value.{cell.number}": array}
            )

        return table.complete(
            "cells", list(map(Cell, range(NUM_CELLS))), compute, "sums"
        )


def trainings(ranks: _ranks.Ranks, out: Path) -> Any:
    """Two small networks, measured at four epochs each."""
    from noisyflow import datasets
    from noisyflow.experiments.several_trainings import Arm, complete
    from noisyflow.nn import NoisyMLP
    from noisyflow.runs import RunFolder
    from noisyflow.tracking import InformationTracker
    from noisyflow.training import Trainer

    inputs = datasets.szt().inputs[:64]
    data = datasets.Dataset(inputs, datasets.szt().labels[:64] ^ (np.arange(64) % 2))

    def arm(name: str, seed: int) -> Arm:
        def build() -> tuple[Trainer, InformationTracker]:
            network = NoisyMLP((12, 3, 2), noise_std=0.2, seed=seed)
            trainer = Trainer(
                network, data.inputs, data.labels, batch_size=32, seed=seed
            )
            return trainer, InformationTracker(network, inputs, data.labels, seed=seed)

        return Arm(name, build, data, data, (0, 1, 3, 4), {"seed": seed})

    folder = RunFolder(out)
    with folder.open("trial", {}):
        found = complete("trial", folder, [arm("a", 1), arm("b", 2)], opening="small")
    return found is not None


def study(ranks: _ranks.Ranks, out: Path, *, stop_after: float = math.inf) -> None:
    """Both of them, new or taken up; Ctrl-C is pressed so many looks after it."""
    from noisyflow.runs import Interruption

    looks = 0

    def is_wanted(_: Interruption) -> bool:
        nonlocal looks
        looks += 1
        return looks > stop_after

    take = _ranks.Spread._take
    taken: list[int | None] = []

    def take_few(work: _ranks.Spread) -> int | None:
        """The others wait for Ctrl-C after two: one that is faster would take all."""
        if not ranks.is_first and len(taken) == 2:
            while ranks.count(f"{work._key}/taken", 0) < NUM_CELLS:
                time.sleep(0.01)
        taken.append(take(work))
        return taken[-1]

    with contextlib.ExitStack() as patches:
        wanted = property(is_wanted, lambda *_: None)
        patches.enter_context(
            mock.patch.object(Interruption, "is_wanted", wanted, create=True)
        )
        if stop_after < math.inf:
            patches.enter_context(mock.patch.object(_ranks.Spread, "_take", take_few))
        for work in (cells, trainings):
            looks = 0
            with contextlib.suppress(_ranks.Released):
                is_finished = work(ranks, out / work.__name__)
                assert is_finished == (stop_after == math.inf)


def tell(found: object) -> None:
    """Prints a line of JSON in one piece: ranks share the output, unbuffered."""
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def estimates(file: Path) -> None:
    """What `noisyflow estimate` says of a file, of none, and of a mistake in one."""
    from noisyflow import cli

    for name in (file.name, "missing.npy", "nan.npy"):
        options = ["--noise-std", "0.3", "--error", "0.02", "--json"]
        code = cli.main(["estimate", str(file.with_name(name)), *options])
        tell({"code": code})


def early_ends(out: Path, file: Path) -> None:
    """Commands that end early on one rank, while the other is elsewhere."""
    from noisyflow import _sharded_rows, cli

    rank = int(os.environ["RANK"])

    def study_of_cells(_: int) -> int:
        cells(_ranks.current(), out)
        return 0

    def raising(error: BaseException) -> Callable[[int], int]:
        def work(who: int) -> int:
            if rank == who:
                raise error
            _ranks.current().share()
            _ranks.current().barrier()
            return 0

        return work

    def finished(who: int) -> int:
        if rank != who:
            _ranks.current().share()
        return 0

    def estimate(who: int) -> int:
        """With no memory for rows on one rank."""
        part = _sharded_rows._Part
        at = mock.Mock(side_effect=MemoryError("no memory"))
        with mock.patch.object(part, "at", at if rank == who else part.at):
            return cli._estimate(file, noise_std=0.3, json=True, verbose=False)

    ends = {
        "estimate 0": estimate,
        "estimate 1": estimate,
        "left 0": study_of_cells,  # with nobody to read what is printed
        "left 1": raising(BrokenPipeError(32, "Broken pipe")),
        "exit 0": raising(SystemExit(3)),
        "exit 1": raising(SystemExit("a word")),
        "memory 0": raising(MemoryError("no memory")),
        "memory 1": raising(MemoryError("no memory")),
        "stopped 0": raising(KeyboardInterrupt()),
        "finished 0": finished,
    }
    for name, work in ends.items():
        code: object
        with contextlib.ExitStack() as leaving:
            if name == "left 0" and rank == 0:
                (reader, writer) = os.pipe()
                os.close(reader)
                unread = leaving.enter_context(_broken(writer))
                leaving.enter_context(contextlib.redirect_stdout(unread))
            who = int(name[-1])
            leaving.enter_context(
                mock.patch.object(
                    cli,
                    "_command",
                    lambda _, w=work, who=who: cli._over_ranks(lambda: w(who), "cpu"),
                )
            )
            try:
                code = cli.main([])
            except (MemoryError, RuntimeError) as error:
                code = repr(error)
        tell({"early": name, "rank": rank, "code": code})


@contextlib.contextmanager
def _broken(writer: int) -> Iterator[TextIO]:
    """A pipe that nobody reads, which cannot be flushed at its end either."""
    file = os.fdopen(writer, "w")
    try:
        yield file
    finally:
        with contextlib.suppress(BrokenPipeError):
            file.close()


def disagreeing(folder: Path) -> None:
    """Commands that differ between two ranks; what each prints, and its exit code."""
    from torch.distributed import TCPStore

    from noisyflow import _same_command, cli

    # Kept for all commands: a rank may else come to the store of the one before.
    place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), 2)
    is_keeper = os.environ["RANK"] == "0"
    store = TCPStore(*place, is_keeper, wait_for_workers=False, multi_tenant=True)
    is_last = os.environ["RANK"] == "1"
    (one, other) = (str(folder / name) for name in ("one.npy", "other.npy"))
    run = ["run", "single-neuron", "--quick"]
    estimate = ["estimate", one, "--noise-std", "0.3"]
    cases = {
        "setting": (run, [*run, "--noise-std", "0.2"]),
        "experiment": (run, ["run", "spiral", "--quick"]),
        "command": (run, estimate),
        "option": (estimate, [*estimate, "--seed", "1"]),
        "file": (estimate, ["estimate", other, *estimate[2:]]),
        "version": (run, run),
        "target": (run, run),
    }
    changes = {
        "version": mock.patch.object(_same_command, "__version__", "0.0"),
        "target": mock.patch.object(runtime, "cpu_target", return_value="other"),
    }
    for name, arguments in cases.items():
        out = ["--out", str(folder / f"{name}-{is_last:d}")]
        mine = arguments[is_last]
        change = changes.get(name) if is_last else None
        with (
            contextlib.redirect_stderr(io.StringIO()) as said,
            change or contextlib.nullcontext(),
        ):
            code = cli.main(mine + (out if mine[0] == "run" else []))
        tell([name, code, said.getvalue()])
    store.add("done", 1)
    while is_keeper and store.add("done", 0) < 2:
        time.sleep(0.01)


def commands(new: Path, begun: Path, stopped: Path, file: Path) -> None:
    """A study from its beginning, one that is taken up, one to be taken up; estimates.

    Nothing is printed but by the estimates.
    """
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        _ranks.joined() as ranks,
    ):
        study(ranks, new)
        study(ranks, begun)
        study(ranks, begun)  # which is finished
        study(ranks, stopped, stop_after=3)
    estimates(file)
    early_ends(new.with_name("early"), file)


def main(names: list[str]) -> None:
    _ranks.PULSE = PULSE
    if names[0] == "disagreeing":
        disagreeing(Path(names[1]))
        return
    if names[0] == "commands":
        commands(*map(Path, names[1:]))
        return
    for name in names:
        work: Callable[[_ranks.Ranks], Any] = globals()[name]
        told: list[str] = []
        started = time.monotonic()
        found: dict[str, Any] = {}
        try:
            pulse = PULSE_OF_KILLED if name == "killed" else PULSE
            with _ranks.joined(tell=told.append, pulse=pulse) as ranks:
                started = time.monotonic()
                found["found"] = work(ranks)
        except _ranks.RankError as error:
            found["error"] = [str(error), error.rank, error.code]
        except OSError as error:
            found["own error"] = str(error)
        found |= {"told": told, "seconds": time.monotonic() - started}
        tell({"name": name, **found})


if __name__ == "__main__":
    main(sys.argv[1:])
