"""The CPU ladder: every rung checked against float64, then timed.

    python bench/bench_ladder.py

naive: two loops and exp(). blocked: distances of 12 vectors of pairs in registers,
tiles of centers in L1. staged: 2^x by a polynomial, for all 12 vectors stage by stage
(these three: ladder/log_density.cpp, -march=native). dense: the shipped kernel, which
searches for the nearest center only where sums overflow. skipping: leaves out far
pairs. aggregating: the default of mixture_log_density, which chooses among all these.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import bench_skipping
import harness

_LOST_MASS = 1e-6
_NAIVE, _BLOCKED, _STAGED = "naive", "blocked", "staged"

Rung = Callable[[np.ndarray], np.ndarray]  # points to log-densities


def lower_rung(
    library: ctypes.CDLL, name: str, y: np.ndarray, noise_std: float
) -> Rung:
    function = getattr(library, name)
    function.restype = None
    function.argtypes = [
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_float,
        ctypes.c_void_p,
    ]
    (n, d) = y.shape

    def call(x: np.ndarray) -> np.ndarray:
        out = np.empty(len(x), np.float32)
        factor = 0.5 / noise_std**2
        function(x.ctypes.data, y.ctypes.data, len(x), n, d, factor, out.ctypes.data)
        return out + harness.constant(n, d, noise_std)

    return call


_BLOCKS = 2  # the path of points in blocks


def rungs(library: ctypes.CDLL, y: np.ndarray, noise_std: float) -> dict[str, Rung]:
    from noisyflow import _core, mixture_log_density

    made: dict[str, Rung] = {
        name: lower_rung(library, name, y, noise_std)
        for name in (_NAIVE, _BLOCKED, _STAGED)
    }
    made["dense"] = lambda x: mixture_log_density(x, y, noise_std, max_lost_mass=0)
    kind = _core.Prepared32 if y.dtype == np.float32 else _core.Prepared64

    def skipping(x: np.ndarray) -> np.ndarray:
        tree = kind(y, noise_std, None, _LOST_MASS, False, 1)  # no polynomials
        return tree.log_density(x, _BLOCKS, 1)[0]

    made["skipping"] = skipping
    made["aggregating"] = lambda x: mixture_log_density(
        x, y, noise_std, max_lost_mass=_LOST_MASS
    )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 3, 10])
    parser.add_argument("--points", type=int, default=99_996, help="a multiple of 6")
    parser.add_argument("--noise-std", type=float, default=0.1)
    parser.add_argument("--kinds", nargs="+", default=["uniform", "clustered"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.2, help="of one run, about")
    harness.add_timing_arguments(parser)
    harness.add_output_arguments(parser)
    args = parser.parse_args()
    if args.points % 6:
        parser.error(
            "--points must be a multiple of 6: the lower rungs end nowhere else"
        )
    if args.threads != 1:
        parser.error("the lower rungs have one thread")
    harness.use_cpus(1)
    harness.use_clock(args)
    from noisyflow import runtime

    runtime.set_num_threads(1)
    library = ctypes.CDLL(
        str(harness.compiled("ladder/log_density.cpp", "native", library=True))
    )
    record: dict[str, Any] = {
        "machine": harness.machine(),
        "target": runtime.cpu_target(),
        "rows": [],
    }
    print(f"{record['machine']}\n{record['target']}, float32, one thread")
    print(
        f"n = {args.points:,}, noise {args.noise_std:g}; the rungs to dense on as many "
        "points as fit, the rest on all\n"
    )
    table = harness.Table(
        [
            ("data", 10),
            ("d", 3),
            ("rung", 12),
            ("G pairs/s, median (best)", 24),
            ("times naive", 11),
            ("times the rung before", 21),
            ("error", 8),
        ],
        markdown=args.markdown,
    )
    for kind in args.kinds:
        for d in args.dims:
            case = bench_skipping.Case(kind, args.points, d, args.noise_std)
            x, y = bench_skipping.data(case, args.points, "float32")
            made = rungs(library, y, args.noise_std)

            # -- check -----------------------------------------------------------------
            checked = np.ascontiguousarray(x[:: args.points // 64])
            exact = harness.log_density(checked, y, args.noise_std)
            errors = {
                name: harness.error_against(rung(checked), exact)
                for name, rung in made.items()
            }

            # -- then time -------------------------------------------------------------
            calls, sizes = {}, {}
            for name, rung in made.items():
                size = args.points
                if name not in ("skipping", "aggregating"):
                    some = x[:64]
                    taken = min(harness.seconds_of(partial(rung, some)) for _ in "12")
                    size = int(np.clip(64 * args.seconds / taken, 64, args.points))
                sizes[name] = size
                calls[name] = partial(rung, x[:size])
            timed = harness.time_interleaved(calls, repeats=args.repeats, warmups=1)
            before: dict[str, Any] | None = None
            for name, seconds in timed.items():
                pairs = sizes[name] * args.points
                row: dict[str, Any] = {
                    "kind": kind,
                    "d": d,
                    "rung": name,
                    "points": sizes[name],
                    "seconds": seconds,
                    "pairs_per_second": pairs / seconds["median"],
                    "error": errors[name],
                }
                rate = row["pairs_per_second"]
                naive = sizes[_NAIVE] * args.points / timed[_NAIVE]["median"]
                step = rate / before["pairs_per_second"] if before else 1.0
                table.row(
                    [
                        kind,
                        str(d),
                        name,
                        f"{rate / 1e9:.3g} ({pairs / seconds['best'] / 1e9:.3g})",
                        f"{rate / naive:.3g}",
                        f"{step:.2f}",
                        f"{errors[name]:.1e}",
                    ]
                )
                record["rows"].append(row)
                before = row
    harness.write_json(args.json, record)


if __name__ == "__main__":
    main()
