"""What it costs that no result depends on the number of threads.

    python bench/bench_determinism.py --threads 2        # half a minute

Beside each call stands one that does not care: as many threads, each with its own slice
of the points, cut by their number; gradients with respect to centers, which such slices
share, are added up at the end. Both in turns, in one run. The ratio of CPU time says
what fixed tasks add to the work, that of wall time what they cost in idle threads; on a
busy machine the former is the one to trust. Exits with 1 if a ratio is above 1.1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import harness
from noisyflow import _core, runtime

_BAR = 1.1


def log_density(x: Any, y: Any, noise_std: float, threads: int) -> Any:
    return _core.log_density(x, y, noise_std, None, threads)


def tree(x: Any, y: Any, noise_std: float, threads: int) -> Any:
    return _prepared(y, noise_std).log_density(x, 2, threads)[0]


_trees: dict[int, Any] = {}


def _prepared(y: Any, noise_std: float) -> Any:
    """One tree for both: building it is not what is compared."""
    if id(y) not in _trees:
        _trees.clear()
        kind = _core.Prepared32 if y.itemsize == 4 else _core.Prepared64
        _trees[id(y)] = kind(y, noise_std, None, 1e-6, True, 1)
    return _trees[id(y)]


def gradients(x: Any, y: Any, noise_std: float, threads: int) -> Any:
    value = _core.log_density(x, y, noise_std, None, threads)
    wanted = (True, True, True, True, 0.0, threads)
    return _core.log_density_gradients(
        *(x, y, noise_std, None, value, np.ones_like(value)), *wanted
    )


CALLS: dict[str, Callable[..., Any]] = {
    "log-density, every pair": log_density,
    "log-density, tree": tree,
    "log-density and gradients": gradients,
}


def free(call: Callable[..., Any], x: Any, *rest: Any, pool: Any, threads: int) -> Any:
    """The same in slices cut by the number of threads."""
    parts = list(
        pool.map(lambda part: call(part, *rest, 1), np.array_split(x, threads))
    )
    if call is gradients:
        return [sum(part[at] for part in parts) for at in (1, 2, 3)]
    return np.concatenate(parts)


def measure(
    calls: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, dict[str, list[float]]]:
    """CPU and wall seconds of calls taken in turns."""
    seconds: dict[str, dict[str, list[float]]] = {
        name: {"cpu": [], "wall": []} for name in calls
    }
    for at in range(repeats + 1):
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            taken = time.process_time() - cpu, time.perf_counter() - wall
            if at > 0:  # the first is a warm-up
                for clock, value in zip(("cpu", "wall"), taken, strict=True):
                    seconds[name][clock].append(value)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    harness.add_output_arguments(parser)
    args = parser.parse_args()
    runtime.set_num_threads(args.threads)
    record: dict[str, Any] = {"machine": harness.machine(), "rows": []}
    print(f"{record['machine']}\n{runtime.cpu_target()}, {args.threads} threads\n")
    table = harness.Table(
        [("call", 26), ("points", 7), ("d", 3), ("CPU ratio", 9), ("wall ratio", 10)],
        markdown=args.markdown,
    )
    rng = np.random.default_rng(0)
    with ThreadPoolExecutor(args.threads) as pool:
        for name, call in CALLS.items():
            for m, n, d in ((1000, 20_000, 3), (8192, 8192, 3), (2000, 4000, 64)):
                if call is tree and d > 3:
                    continue
                y = rng.uniform(-1, 1, (n, d)).astype(np.float32)
                x = (y[np.arange(m) % n] + 0.3 * rng.standard_normal((m, d))).astype(
                    np.float32
                )
                seconds = measure(
                    {
                        "fixed": lambda c=call, x=x, y=y: c(x, y, 0.3, args.threads),
                        "free": lambda c=call, x=x, y=y: free(
                            c, x, y, 0.3, pool=pool, threads=args.threads
                        ),
                    },
                    args.repeats,
                )
                ratios = {
                    clock: statistics.median(seconds["fixed"][clock])
                    / statistics.median(seconds["free"][clock])
                    for clock in ("cpu", "wall")
                }
                record["rows"].append({"call": name, "m": m, "n": n, "d": d} | ratios)
                table.row(
                    [
                        *(name, str(m), str(d)),
                        *(f"{ratios['cpu']:.2f}", f"{ratios['wall']:.2f}"),
                    ]
                )
    harness.write_json(args.json, record)
    return 1 if any(row["cpu"] > _BAR for row in record["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
