"""The seconds that cost.py predicts against those that calls take.

    python bench/bench_cost.py              # a designed set, one thread
    python bench/bench_cost.py --threads 2

A set of sizes, dimensions, noises and kinds of data, in float32 and float64, with the
default max_lost_mass and with every pair. The prediction comes first, from the centers
alone; then the call is timed. Bar: within a factor of two.
"""

from __future__ import annotations

import argparse
import itertools
import math
from typing import Any

import numpy as np

import bench_skipping
import harness
from noisyflow import _benchmarking

_BAR = 2.0


def cases(count: int) -> list[tuple[bench_skipping.Case, str, bool]]:
    """Every pair of settings appears; the rest of the grid is left to chance."""
    grid = itertools.product(
        ("uniform", "clustered"),
        (1000, 10_000, 100_000, 300_000),
        (1, 2, 3, 5, 10, 20, 64),
        (0.005, 0.02, 0.1, 1.0),
        ("float32", "float64"),
        (True, False),
    )
    all_cases = [
        (bench_skipping.Case(kind, n, d, noise_std), dtype, may_skip)
        for kind, n, d, noise_std, dtype, may_skip in grid
    ]
    picked = np.random.default_rng(0).permutation(len(all_cases))[:count]
    return [all_cases[i] for i in sorted(picked)]


def measure(
    case: bench_skipping.Case, dtype: str, may_skip: bool, args: argparse.Namespace
) -> dict[str, Any]:
    from noisyflow import cost, mixture_log_density, prepare

    lost = None if may_skip else 0.0
    # As many points as every pair of takes a few seconds, were nothing skipped.
    pairs = args.pairs / (case.d + 4)
    m = int(np.clip(pairs / case.n, 64, 4 * case.n))
    rng = np.random.default_rng(1)
    y = bench_skipping.centers_of(case.kind, case.n, case.d, rng).astype(dtype)
    noise = rng.standard_normal((m, case.d), np.float32).astype(dtype)
    x = y[np.arange(m) % case.n] + np.dtype(dtype).type(case.noise_std) * noise

    predictions: list[float] = []
    asking = harness.seconds_of(
        lambda: predictions.append(
            cost.predict_seconds(m, y, case.noise_std, max_lost_mass=lost)
        )
    )
    path = cost.measure_cost(
        prepare(y, case.noise_std, max_lost_mass=lost), m, is_kept=False
    ).path
    seconds = bench_skipping.median_of(
        lambda: mixture_log_density(x, y, case.noise_std, max_lost_mass=lost), 0.2
    )
    return case._asdict() | {
        "dtype": dtype,
        "m": m,
        "may_skip": may_skip,
        "path": path,
        "predicted": predictions[0],
        "seconds": seconds,
        "ratio": predictions[0] / seconds,
        "by_sizes": None
        if may_skip
        else cost.predict_pair_seconds(m, case.n, case.d, dtype=dtype) / seconds,
        "asking": asking,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=120)
    parser.add_argument("--pairs", type=float, default=2e10, help="times (d + 4), each")
    harness.add_timing_arguments(parser)
    harness.add_output_arguments(parser)
    args = parser.parse_args()
    harness.use_cpus(args.threads)
    harness.use_clock(args)
    from noisyflow import cost, runtime

    runtime.set_num_threads(args.threads)
    cost._clock = _benchmarking._clock  # both sides by one clock
    machine = harness.machine()
    print(f"{machine}\n{runtime.cpu_target()}, {args.threads} thread(s)\n")
    columns = [
        *(("data", 10), ("n", 8), ("m", 9), ("d", 3), ("noise", 6), ("dtype", 8)),
        *(("path", 17), ("predicted, s", 12), ("taken, s", 9), ("ratio", 6)),
        ("asking, s", 9),
    ]
    table = harness.Table(columns, markdown=args.markdown)
    rows = []
    for case, dtype, may_skip in cases(args.cases):
        row = measure(case, dtype, may_skip, args)
        rows.append(row)
        table.row(
            [
                *(case.kind, f"{case.n:,}", f"{row['m']:,}", str(case.d)),
                *(f"{case.noise_std:g}", dtype, row["path"] if may_skip else "forced"),
                *(f"{row['predicted']:.3g}", f"{row['seconds']:.3g}"),
                *(f"{row['ratio']:.2f}", f"{row['asking']:.2g}"),
            ]
        )
    print()
    summary = harness.Table(
        [
            *(("path", 20), ("cases", 5), ("within 2", 8), ("least", 6)),
            *(("median", 6), ("most", 6)),
        ],
        markdown=args.markdown,
    )
    ratios_of = {
        path: [r["ratio"] for r in rows if path in (r["path"], "all")]
        for path in ("every pair", "blocks of points", "point by point", "all")
    }
    ratios_of["every pair, by sizes"] = [
        row["by_sizes"] for row in rows if row["by_sizes"] is not None
    ]
    for path, unsorted in ratios_of.items():
        ratios = sorted(unsorted)
        if ratios:
            within = sum(abs(math.log(r)) <= math.log(_BAR) for r in ratios)
            summary.row(
                [
                    *(path, str(len(ratios)), f"{within / len(ratios):.0%}"),
                    *(f"{ratios[0]:.2f}", f"{ratios[len(ratios) // 2]:.2f}"),
                    f"{ratios[-1]:.2f}",
                ]
            )
    harness.write_json(
        args.json, {"machine": machine, "threads": args.threads, "rows": rows}
    )


if __name__ == "__main__":
    main()
