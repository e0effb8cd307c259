"""One rank of some, for test_ranks.py: does what its arguments name, one by one.

Prints a line of JSON for each: what this rank found. All in one process, as importing
torch takes seconds.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from noisyflow import _ranks, runtime

# A tenth of a second between beats, lost after two seconds.
PULSE = _ranks.Pulse(0.1, 20, 5.0, 60.0)


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
    """Items that were begun until the first rank had done two."""
    done: list[int] = []

    def one(item: int) -> int:
        time.sleep(0.02)
        done.append(item)
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
    """The last rank fails while the others compute, and never ask how it is."""
    if ranks.rank == ranks.size - 1:
        raise OSError(28, "No space left on device")
    while True:
        sum(range(10_000))


def failing_in_a_collective(ranks: _ranks.Ranks) -> Any:
    """The last rank fails while the others wait for it in torch."""
    import torch

    if ranks.rank == ranks.size - 1:
        raise _ranks.Failure("bad input", 2)
    torch.distributed.all_reduce(torch.ones(2))


def killed(ranks: _ranks.Ranks) -> Any:
    """The last rank is killed while the others compute."""
    if ranks.rank == ranks.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        sum(range(10_000))


def main(names: list[str]) -> None:
    for name in names:
        work: Callable[[_ranks.Ranks], Any] = globals()[name]
        told: list[str] = []
        started = time.monotonic()
        found: dict[str, Any] = {}
        try:
            with _ranks.joined(tell=told.append, pulse=PULSE) as ranks:
                started = time.monotonic()
                found["found"] = work(ranks)
        except _ranks.RankError as error:
            found["error"] = [str(error), error.rank, error.code]
        except OSError as error:
            found["own error"] = str(error)
        found |= {"told": told, "seconds": time.monotonic() - started}
        print(json.dumps({"name": name, **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
