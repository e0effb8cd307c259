"""mixture_log_density against its peers: error, then pairs per second, in one run.

    python bench/bench_log_density.py                    # all dimensions: 5 minutes
    python bench/bench_log_density.py --dims 3 10 --threads 2 --json out.json
    python bench/bench_log_density.py --quick            # half a minute, two peers

Peers at their best documented settings: torch.compile of the direct-difference formula
and JAX's jit of it inside lax.map, each at the best number of points at a time of a
trial; KeOps' LogSumExp reduction; scikit-learn's KernelDensity by k-d tree; the same
loops as ours by numba; the eager torch, SciPy and NumPy one-liners, in chunks that fit
the cache. The matmul expansion |x|^2 + |y|^2 - 2 x.y (JAX) is quick and inexact.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import bench_ports
import harness
from noisyflow._benchmarking import num_points
from noisyflow._peers import (
    Contestant,
    at_best_setting,
    jax_direct,
    jax_matmul,
    keops,
    scipy_cdist,
    sklearn_tree,
    torch_compile,
    torch_eager,
)

# The shares of the port bound, ratios and errors that the kernel is held to: float32,
# one thread, AVX-512. The peer is torch.compile, at d = 784 JAX.
BARS = {
    1: (0.70, 5.0, 1e-5),
    2: (0.72, 5.0, 1e-5),
    3: (0.72, 4.0, 1e-5),
    5: (0.72, 3.5, 1e-5),
    10: (0.78, 2.8, 1e-5),
    20: (0.85, 4.0, 2e-5),
    64: (0.88, 4.0, 2e-5),
    256: (0.85, 4.0, 2e-5),
    784: (0.85, 8.0, 2e-5),
}
_OURS = "noisyflow"
_INEXACT = 1e-3  # nats; a row beyond is marked
_CHECKED_NOISE = (1.0, 0.005)


def noisyflow(y: np.ndarray) -> Contestant:
    from noisyflow import mixture_log_density

    return lambda x, noise_std: mixture_log_density(x, y, noise_std, max_lost_mass=0)


def numpy_direct(y: np.ndarray) -> Contestant:
    (n, d) = y.shape
    chunk = max(1, 2**18 // n)
    columns = np.ascontiguousarray(y.T)

    def call(x: np.ndarray, noise_std: float) -> np.ndarray:
        factor = y.dtype.type(-0.5 / noise_std**2)
        parts = []
        for i in range(0, len(x), chunk):
            some = x[i : i + chunk]
            squares = np.zeros((len(some), n), y.dtype)
            for k in range(d):
                squares += (some[:, k, None] - columns[k]) ** 2
            squares *= factor
            top = squares.max(axis=1, keepdims=True)
            parts.append(np.log(np.exp(squares - top).sum(axis=1)) + top[:, 0])
        return np.concatenate(parts) + harness.constant(n, d, noise_std)

    return call


def numba_tiled(y: np.ndarray) -> Contestant:
    """Distances to 512 centers, then their exponentials; offset by the nearest."""
    import numba

    (n, d) = y.shape
    columns = np.ascontiguousarray(y.T)

    @numba.njit(parallel=True, fastmath=True)
    def evaluate(x, columns, factor, out):
        (d, n) = columns.shape
        for i in numba.prange(x.shape[0]):
            squares = np.empty(512, columns.dtype)
            top, total = -1e30, 0.0
            for begin in range(0, n, 512):
                count = min(512, n - begin)
                squares[:] = 0
                for k in range(d):
                    coordinate = x[i, k]
                    for j in range(count):
                        difference = coordinate - columns[k, begin + j]
                        squares[j] += difference * difference
                nearest = squares[0]
                for j in range(count):
                    nearest = min(nearest, squares[j])
                if -factor * nearest > top:
                    total *= math.exp(top + factor * nearest)
                    top = -factor * nearest
                offset = columns.dtype.type(top)
                some = columns.dtype.type(0)
                for j in range(count):
                    some += np.exp(-factor * squares[j] - offset)
                total += some
            out[i] = top + math.log(total)

    def call(x: np.ndarray, noise_std: float) -> np.ndarray:
        factor = y.dtype.type(0.5 / noise_std**2)
        out = np.empty(len(x))
        evaluate(x, columns, factor, out)
        return out + harness.constant(n, d, noise_std)

    return call


# Name: the modules it needs, and how it is made, once per setting to be tried.
CONTESTANTS: dict[str, tuple[tuple[str, ...], list[Callable[..., Contestant]]]] = {
    _OURS: (("noisyflow",), [noisyflow]),
    "torch.compile": (
        ("torch",),
        [partial(torch_compile, chunk=chunk) for chunk in (64, 256, 1024)],
    ),
    "JAX": (("jax",), [partial(jax_direct, chunk=chunk) for chunk in (32, 64, 256)]),
    "JAX matmul": (("jax",), [partial(jax_matmul, chunk=chunk) for chunk in (64, 256)]),
    "torch eager": (("torch",), [torch_eager]),
    "KeOps": (("pykeops", "torch"), [keops]),
    "numba": (("numba",), [numba_tiled]),
    "SciPy": (("scipy",), [scipy_cdist]),
    "NumPy": ((), [numpy_direct]),
    "scikit-learn 1e-6": (("sklearn",), [partial(sklearn_tree, rtol=1e-6)]),
    "scikit-learn 0": (("sklearn",), [partial(sklearn_tree, rtol=0.0)]),
}
_QUICK = ["torch.compile", "JAX"]


class Case:
    """One dimension: centers uniform on [-1,1]^d and points around them."""

    def __init__(self, n: int, d: int, dtype: str, seconds: float) -> None:
        self.n, self.d, self.seconds = n, d, seconds
        self._dtype = np.dtype(dtype)
        self._rng = np.random.default_rng(0)
        self.y = self._rng.uniform(-1, 1, (n, d)).astype(self._dtype)
        self._checked = {
            noise_std: self.points(256 if d <= 64 else 64, noise_std)
            for noise_std in _CHECKED_NOISE
        }
        self._exact = {
            noise_std: harness.log_density(x, self.y, noise_std)
            for noise_std, x in self._checked.items()
        }

    def points(self, m: int, noise_std: float) -> np.ndarray:
        x = self.y[np.arange(m) % self.n].astype(np.float32)
        x += np.float32(noise_std) * self._rng.standard_normal(x.shape, np.float32)
        return x.astype(self._dtype)

    def errors(self, contestant: Contestant) -> list[float]:
        return [
            harness.error_against(contestant(x, s), self._exact[s])
            for s, x in self._checked.items()
        ]

    def errors_beyond_rounding(self, contestant: Contestant) -> list[float]:
        """What the result's own rounding to its dtype, half an ulp, leaves."""
        beyond = []
        for s, x in self._checked.items():
            half_ulp = np.spacing(np.abs(self._exact[s]).astype(self._dtype)) / 2
            error = np.abs(contestant(x, s) - self._exact[s]) - half_ulp
            beyond.append(float(error.max(initial=0)))
        return beyond

    def sized(self, contestant: Contestant, noise_std: float) -> np.ndarray:
        """As many points as the contestant evaluates in about the seconds wanted."""
        size = num_points(
            lambda m: partial(contestant, self.points(m, noise_std), noise_std),
            self.seconds,
        )
        return self.points(size, noise_std)


def prepare(case: Case, name: str, noise_std: float) -> tuple[str, Contestant]:
    """The contestant at its best setting, and the setting's label."""
    x = case.points(1024 if case.d <= 64 else 256, noise_std)
    return at_best_setting(name, CONTESTANTS[name][1], case.y, x, noise_std)


def measure(
    case: Case, names: list[str], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per contestant, all timed in turns."""
    rows, calls = [], {}
    for name in names:
        row: dict[str, Any] = {"d": case.d, "n": case.n, "contestant": name}
        rows.append(row)
        try:
            label, contestant = prepare(case, name, args.noise_std)
            errors = case.errors(contestant)  # no time counts for a wrong result
            x = case.sized(contestant, args.noise_std)
        except Exception as error:  # a peer that fails is a row, not the end
            row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        row |= {"contestant": label, "peer": name, "points": len(x)}
        row |= {f"error_at_{s}": e for s, e in zip(_CHECKED_NOISE, errors, strict=True)}
        row["error_beyond_rounding"] = max(case.errors_beyond_rounding(contestant))
        calls[name] = partial(contestant, x, args.noise_std)
        row["peak_bytes"] = harness.peak_bytes(calls[name])
    timed = harness.time_interleaved(calls, repeats=args.repeats, warmups=1)
    for row in rows:
        if "failed" not in row:
            seconds = timed[row["peer"]]
            pairs = row["points"] * case.n
            row["seconds"] = seconds
            row["pairs_per_second"] = pairs / seconds["median"]
            row["pairs_per_second_best"] = pairs / seconds["best"]
    ours = rows[0]["pairs_per_second"]
    for row in rows:
        if "failed" not in row:
            row["times_slower"] = ours / row["pairs_per_second"]
    return rows


def cells(row: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [str(row["d"]), row["contestant"], row["failed"][:60], *[""] * 6]
    rate, best = row["pairs_per_second"] / 1e9, row["pairs_per_second_best"] / 1e9
    errors = [row[f"error_at_{s}"] for s in _CHECKED_NOISE]
    peak = row["peak_bytes"]
    inexact = " (inexact)" if max(errors) > _INEXACT else ""
    return [
        str(row["d"]),
        row["contestant"] + inexact,
        f"{rate:.3g} ({best:.3g})",
        f"{row['times_slower']:.3g}",
        f"{row['share_of_bound']:.0%} ({row['share_of_bound_best']:.0%})"
        if "share_of_bound" in row
        else "",
        *(f"{error:.1e}" for error in errors),
        "" if peak is None else f"{peak / 2**20:.0f}",
    ]


def print_rates(rows: list[dict[str, Any]], *, markdown: bool) -> None:
    """All contestants by dimension."""
    print(f"\nG pairs/s, median; ~ where the error is above {_INEXACT:g} nats.\n")
    dims = list(dict.fromkeys(row["d"] for row in rows))
    of: dict[str, dict[int, str]] = {}
    for row in rows:
        if "failed" in row:
            continue
        inexact = (
            "~" if max(row[f"error_at_{s}"] for s in _CHECKED_NOISE) > _INEXACT else ""
        )
        cell = f"{inexact}{row['pairs_per_second'] / 1e9:.3g}"
        of.setdefault(row["peer"], {})[row["d"]] = cell
    table = harness.Table(
        [("contestant", 17), *((f"d = {d}", 8) for d in dims)], markdown=markdown
    )
    for name, cells_of in of.items():
        table.row([name, *(cells_of.get(d, "failed") for d in dims)])


def print_bars(rows: list[dict[str, Any]], *, markdown: bool) -> None:
    """What the kernel is held to, beside what was measured."""
    print(
        "\nBars: measured (at least, or at most for the error); ! where missed. Errors "
        "beyond the\nresult's own rounding to float32, half an ulp, at noise "
        f"{_CHECKED_NOISE[0]:g} and {_CHECKED_NOISE[1]:g}.\n"
    )
    table = harness.Table(
        [("d", 4), ("share of port bound", 22), ("times peer", 22), ("error", 22)],
        markdown=markdown,
    )
    for d, (share, ratio, error) in BARS.items():
        of = {row.get("peer"): row for row in rows if row["d"] == d}
        if _OURS not in of:
            continue
        ours = of[_OURS]
        peer = of.get("JAX" if d == 784 else "torch.compile")
        worst = ours["error_beyond_rounding"]

        def mark(holds: bool) -> str:
            return "" if holds else " !"

        is_faster = peer is not None and peer["times_slower"] >= ratio
        table.row(
            [
                str(d),
                f"{ours['share_of_bound']:.0%} ({share:.0%})"
                + mark(ours["share_of_bound"] >= share),
                (f"{peer['times_slower']:.3g}" if peer else "absent")
                + f" ({ratio:g})"
                + mark(is_faster),
                f"{worst:.1e} ({error:.0e})" + mark(worst <= error),
            ]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=list(bench_ports.DIMS))
    parser.add_argument(
        "--centers", type=int, help="10,000 by default, 5,000 at d >= 256"
    )
    parser.add_argument("--noise-std", type=float, default=1.0)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    harness.add_timing_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.15, help="of one run, about")
    parser.add_argument(
        "--peers", nargs="*", choices=list(CONTESTANTS)[1:], metavar="PEER"
    )
    parser.add_argument(
        "--quick", action="store_true", help="torch.compile and JAX alone, short runs"
    )
    harness.add_output_arguments(parser)
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.repeats = 0.1, 5
    wanted = _QUICK if args.quick else list(CONTESTANTS)[1:]
    if args.peers is not None:
        wanted = args.peers

    harness.use_cpus(args.threads)
    harness.use_clock(args)
    present = {
        module: harness.has_module(module)
        for name in wanted
        for module in CONTESTANTS[name][0]
    }
    names = [_OURS]
    names += [n for n in wanted if all(present[m] for m in CONTESTANTS[n][0])]
    from noisyflow import runtime

    runtime.set_num_threads(args.threads)
    if present.get("torch"):
        import torch

        torch.set_num_threads(args.threads)
    target = runtime.cpu_target()
    record: dict[str, Any] = {
        "machine": harness.machine(),
        "target": target,
        "dtype": args.dtype,
        "threads": args.threads,
        "noise_std": args.noise_std,
        "absent": [name for name in wanted if name not in names],
        "rows": [],
    }
    print(f"{record['machine']}\n{target}, {args.dtype}, {args.threads} thread(s)\n")
    table = harness.Table(
        [
            ("d", 4),
            ("contestant", 34),
            ("G pairs/s, median (best)", 24),
            ("times slower", 12),
            ("of port bound", 13),
            ("error", 8),
            (f"at noise {_CHECKED_NOISE[1]}", 14),
            ("peak MiB", 8),
        ],
        markdown=args.markdown,
    )
    ports = []
    for d in args.dims:
        n = args.centers or (5_000 if d >= 256 else 10_000)
        # Before and after: the clock of a shared machine is not the same all day.
        around = [bench_ports.measure(target)]
        rows = measure(Case(n, d, args.dtype, args.seconds), names, args)
        around.append(bench_ports.measure(target))
        rates = bench_ports.best_of(around)
        ports += around
        limit = args.threads * bench_ports.bound(rates, args.dtype, d)
        ours = rows[0]
        ours["share_of_bound"] = ours["pairs_per_second"] / limit
        ours["share_of_bound_best"] = ours["pairs_per_second_best"] / limit
        for row in rows:
            table.row(cells(row))
        record["rows"] += rows
    record["ports"] = bench_ports.best_of(ports)
    print_rates(record["rows"], markdown=args.markdown)
    is_held = args.dtype == "float32" and args.threads == 1 and target == "avx512"
    if is_held and args.noise_std == 1:
        print_bars(record["rows"], markdown=args.markdown)
    harness.write_json(args.json, record)


if __name__ == "__main__":
    main()
