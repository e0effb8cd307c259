"""mixture_log_density with its default max_lost_mass against every pair, both ours.

    python bench/bench_skipping.py                # kinds of data, up to 100,000 points
    python bench/bench_skipping.py --suite bars   # up to a million points
    python bench/bench_skipping.py --suite floor  # where little can be gained

Far pairs may be left out and tight groups of centers replaced by moments, within
max_lost_mass. As many points as centers, around them; times include the building of
trees. Every pair, and scikit-learn's k-d tree (rtol 1e-6), are timed on a part of the
points and scaled where all would take long: * after a figure. Errors: against the
formula in float64 (harness.log_density); what exceeds the certificate, and the error of
every pair, is rounding.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

import harness

KINDS = (
    "uniform",
    "clustered",
    "clustered 0.1",
    "heavy-tailed",
    "duplicated",
    "collinear",
)
_DEFAULT_LOST_MASS = {"float32": 1e-6, "float64": 1e-13}
_FLOOR = 0.93


class Case(NamedTuple):
    kind: str
    n: int
    d: int
    noise_std: float


def centers_of(kind: str, n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Most of them within [-1,1]^d."""
    if kind == "uniform":
        return rng.uniform(-1, 1, (n, d))
    if kind.startswith("clustered"):  # 32 of width 0.02 (or 0.1) near the corners
        width = float(kind.partition(" ")[2] or 0.02)
        corners = rng.choice([-1.0, 1.0], (32, d)) * (1 - 0.15 * rng.random((32, d)))
        return corners[rng.integers(0, 32, n)] + width * rng.standard_normal((n, d))
    if kind == "heavy-tailed":
        return rng.standard_t(2, (n, d))
    if kind == "duplicated":  # each about 50 times
        return rng.uniform(-1, 1, (max(1, n // 50), d))[rng.integers(0, n // 50, n)]
    if kind == "collinear":
        return rng.uniform(-1, 1, (n, 1)) * np.ones(d)
    raise ValueError(f"no data called {kind!r}")


def data(case: Case, m: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Points around the first m centers, and the centers."""
    rng = np.random.default_rng(0)
    y = centers_of(case.kind, case.n, case.d, rng).astype(dtype)
    noise = rng.standard_normal((m, case.d), np.float32).astype(dtype)
    return y[:m] + np.dtype(dtype).type(case.noise_std) * noise, y


def median_of(call: Callable[[], Any], least_seconds: float = 0.5) -> float:
    """Median of up to five runs; fewer where one is long."""
    runs = [harness.seconds_of(call)]
    while sum(runs) < least_seconds and len(runs) < 5:
        runs.append(harness.seconds_of(call))
    return statistics.median(runs)


def scaled(
    call: Callable[[np.ndarray], Any], x: np.ndarray, start: int, seconds: float
) -> tuple[float, bool]:
    """Seconds for all points, from as many of them as fit; whether that was a part."""
    size = min(start, len(x))
    while True:
        taken = harness.seconds_of(lambda size=size: call(x[:size]))
        if size == len(x) or taken > seconds / 4:
            break
        size = min(len(x), max(size + 1, int(size * min(8, seconds / 2 / taken))))
    taken = median_of(lambda: call(x[:size]), seconds / 4)
    return taken * len(x) / size, size < len(x)


def skipping_alone(
    x: np.ndarray, y: np.ndarray, noise_std: float, lost: float
) -> tuple[float, bool]:
    """Seconds with far pairs left out, by blocks of points, and nothing else.

    On every eighth point from 100,000 points on.
    """
    from noisyflow import _core, runtime

    kind = _core.Prepared32 if y.dtype == np.float32 else _core.Prepared64
    threads, blocks = runtime.num_threads(), 2

    def kernel(some: np.ndarray) -> None:
        tree = kind(y, noise_std, None, lost, False, threads)  # no polynomials
        tree.log_density(some, blocks, threads)

    step = 8 if len(x) >= 100_000 else 1
    some = np.ascontiguousarray(x[::step])
    taken = harness.seconds_of(lambda: kernel(some))
    return taken * len(x) / len(some), step > 1


def measure(
    case: Case,
    args: argparse.Namespace,
    *,
    peer: bool = False,
    skipping: bool = False,
) -> dict[str, Any]:
    from noisyflow import mixture_log_density

    x, y = data(case, case.n, args.dtype)
    lost = args.max_lost_mass
    noise_std = case.noise_std

    # -- check -------------------------------------------------------------------------
    results = []
    first = harness.seconds_of(
        lambda: results.append(mixture_log_density(x, y, noise_std, max_lost_mass=lost))
    )
    ours = results.pop()
    some = int(np.clip(2e8 / (case.n * case.d), 16, 256))
    picked = np.linspace(0, case.n - 1, min(some, case.n)).astype(int)
    exact = harness.log_density(x[picked], y, noise_std)
    error = harness.error_against(ours[picked], exact)
    row: dict[str, Any] = case._asdict() | {
        "error": error,
        "beyond_certificate": max(0.0, error - math.log1p(lost)),
        "dense_error": harness.error_against(
            mixture_log_density(x[picked], y, noise_std, max_lost_mass=0), exact
        ),
    }

    # -- then time ---------------------------------------------------------------------
    row["seconds"] = first  # a run of seconds needs no second one
    if first < 2:
        row["seconds"] = median_of(
            lambda: mixture_log_density(x, y, noise_std, max_lost_mass=lost)
        )
    row["dense_seconds"], row["dense_is_scaled"] = scaled(
        lambda points: mixture_log_density(points, y, noise_std, max_lost_mass=0),
        x,
        512,
        args.dense_seconds,
    )
    row["times_dense"] = row["dense_seconds"] / row["seconds"]
    if skipping:
        alone = skipping_alone(x, y, noise_std, lost)
        if alone is not None:
            row["skipping_seconds"], row["skipping_is_scaled"] = alone
    if peer and args.has_sklearn:
        from sklearn.neighbors import KernelDensity

        def build() -> KernelDensity:
            return KernelDensity(
                bandwidth=noise_std, algorithm="kd_tree", rtol=1e-6
            ).fit(y)

        tree = build()
        building = harness.seconds_of(build)
        queries, row["sklearn_is_scaled"] = scaled(
            tree.score_samples, x, 32, args.peer_seconds
        )
        row["sklearn_seconds"] = building + queries
        row["times_sklearn"] = row["sklearn_seconds"] / row["seconds"]
    return row


def exponent(row: dict[str, Any], before: dict[str, Any] | None) -> float | None:
    """Growth of total time from the smaller n of the same case."""
    if before is None:
        return None
    return math.log(row["seconds"] / before["seconds"]) / math.log(
        row["n"] / before["n"]
    )


_COLUMNS = [
    ("n", 9),
    ("d", 3),
    ("noise", 6),
    ("data", 13),
    ("ours, s", 8),
    ("every pair, s", 13),
    ("times", 6),
    ("scikit-learn, s", 15),
    ("times", 6),
    ("error", 8),
    ("beyond certificate", 18),
    ("every pair's", 12),
    ("exponent", 8),
]


def run(
    cases: Iterable[tuple[Case, dict[str, bool]]], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Cases of one family must come by increasing n."""
    table = harness.Table(_COLUMNS, markdown=args.markdown)
    rows: list[dict[str, Any]] = []
    last: dict[Any, dict[str, Any]] = {}
    for case, options in cases:
        row = measure(case, args, **options)
        family = (case.kind, case.d, case.noise_std)
        row["exponent"] = exponent(row, last.get(family))
        last[family] = row
        rows.append(row)

        def seconds(name: str, row: dict[str, Any] = row) -> str:
            if f"{name}_seconds" not in row:
                return ""
            star = "*" if row[f"{name}_is_scaled"] else ""
            return f"{row[f'{name}_seconds']:.3g}{star}"

        peer = f"{row['times_sklearn']:.3g}" if "times_sklearn" in row else ""
        growth = "" if row["exponent"] is None else f"{row['exponent']:.2f}"
        table.row(
            [
                f"{case.n:,}",
                str(case.d),
                f"{case.noise_std:g}",
                case.kind,
                f"{row['seconds']:.3g}",
                seconds("dense"),
                f"{row['times_dense']:.3g}",
                seconds("sklearn"),
                peer,
                f"{row['error']:.1e}",
                f"{row['beyond_certificate']:.1e}",
                f"{row['dense_error']:.1e}",
                growth,
            ]
        )
    return rows


def kinds_suite(args: argparse.Namespace) -> list[dict[str, Any]]:
    cases = [
        (Case(kind, n, d, noise_std), {"peer": True})
        for d, noise_std, kind in itertools.product(
            args.dims or [2, 3, 5, 10], args.noise_std, args.kinds
        )
        for n in sorted(args.points or (10_000, 100_000))
    ]
    return run(cases, args)


def bars_suite(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The sizes that the package is held to, and whether it holds."""
    sizes = tuple(sorted(args.points or (100_000, 1_000_000)))
    if len(sizes) != 2:
        raise SystemExit("--suite bars compares two --points")
    uniform = [
        (Case("uniform", n, d, s), {"peer": n == sizes[0]})
        for s, d, n in itertools.product((0.02, 0.005), (3, 5, 10), sizes)
    ]
    line = [(Case("uniform", n, d, 0.1), {}) for d in (1, 2) for n in sizes]
    clustered = [
        (Case("clustered", n, d, 0.1), {"skipping": n == sizes[1]})
        for d in (2, 3, 5)
        for n in sizes
    ]
    rows = run([*uniform, *line, *clustered], args)
    of = {(r["kind"], r["n"], r["d"], r["noise_std"]): r for r in rows}
    claims: list[tuple[str, float, str, float]] = []
    for s, d in itertools.product((0.02, 0.005), (3, 5, 10)):
        small, large = (of["uniform", n, d, s] for n in sizes)
        name = f"uniform, d = {d}, noise {s:g}"
        most = 1.5 if s == 0.02 else 1.35
        claims.append((f"{name}: exponent", large["exponent"], "<=", most))
        if s == 0.02:
            times = large["times_dense"]
            claims.append(
                (f"{name}: times every pair, n = {sizes[1]:,}", times, ">=", 40)
            )
        if "times_sklearn" in small:
            times = small["times_sklearn"]
            claims.append(
                (f"{name}: times scikit-learn, n = {sizes[0]:,}", times, ">=", 80)
            )
    for d in (1, 2):
        row = of["uniform", sizes[1], d, 0.1]
        name = f"uniform, d = {d}, noise 0.1, n = {sizes[1]:,}"
        claims.append((f"{name}: seconds", row["seconds"], "<=", 1))
        claims.append((f"{name}: error", row["error"], "<=", 1e-6))
    for d in (2, 3, 5):
        row = of["clustered", sizes[1], d, 0.1]
        name = f"clustered, d = {d}, noise 0.1"
        claims.append((f"{name}: exponent", row["exponent"], "<=", 1.2))
        if "skipping_seconds" in row:
            times = row["skipping_seconds"] / row["seconds"]
            claims.append(
                (f"{name}: times skipping alone, n = {sizes[1]:,}", times, ">=", 10)
            )
    print()
    table = harness.Table(
        [("bar", 66), ("measured", 9), ("wanted", 9), ("", 6)], markdown=args.markdown
    )
    for name, value, relation, wanted in claims:
        holds = value <= wanted if relation == "<=" else value >= wanted
        mark = "" if holds else "missed"
        table.row([name, f"{value:.3g}", f"{relation} {wanted:g}", mark])
    return rows


def floor_suite(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Ratio to every pair where little can be gained: taken in turns, worst per d.

    At d > 64, every pair takes seconds: 500 points there.
    """
    from noisyflow import mixture_log_density

    rows: list[dict[str, Any]] = []
    table = harness.Table(
        [
            ("n", 7),
            ("d", 3),
            ("cases", 5),
            ("least times every pair", 22),
            ("data", 13),
            ("noise", 6),
            ("below 0.93", 10),
            ("largest error", 13),
        ],
        markdown=args.markdown,
    )
    sizes = [(10_000, d) for d in (1, 2, 3, 5, 10, 20, 64, 784)]
    sizes += [(20_000, d) for d in (1, 2, 3, 5, 10, 20)]
    sizes = [
        (n, d)
        for n, d in sizes
        if (not args.points or n in args.points) and (not args.dims or d in args.dims)
    ]
    for n, d in sizes:
        of_size = []
        for kind, noise_std in itertools.product(KINDS, (0.005, 0.02, 0.1, 1.0, 10.0)):
            x, y = data(Case(kind, n, d, noise_std), 500 if d > 64 else n, args.dtype)
            calls = {
                name: lambda lost=lost, x=x, y=y, s=noise_std: mixture_log_density(
                    x, y, s, max_lost_mass=lost
                )
                for name, lost in (("ours", args.max_lost_mass), ("dense", 0.0))
            }
            picked = slice(0, 16)
            exact = harness.log_density(x[picked], y, noise_std)
            error = harness.error_against(calls["ours"]()[picked], exact)
            timed = harness.time_interleaved(calls, repeats=args.repeats, warmups=0)
            ratio = timed["dense"]["median"] / timed["ours"]["median"]
            if ratio < _FLOOR:  # again, and longer: noise of the machine, or not
                timed = harness.time_interleaved(
                    calls, repeats=3 * args.repeats, warmups=0
                )
                ratio = timed["dense"]["median"] / timed["ours"]["median"]
            row = {
                "kind": kind,
                "n": n,
                "m": len(x),
                "d": d,
                "noise_std": noise_std,
                "times_dense": ratio,
                "error": error,
                "seconds": timed["ours"]["median"],
            }
            of_size.append(row)
        rows += of_size
        worst = min(of_size, key=lambda row: row["times_dense"])
        table.row(
            [
                f"{n:,}",
                str(d),
                str(len(of_size)),
                f"{worst['times_dense']:.2f}",
                worst["kind"],
                f"{worst['noise_std']:g}",
                str(sum(row["times_dense"] < _FLOOR for row in of_size)),
                f"{max(row['error'] for row in of_size):.1e}",
            ]
        )
    for row in rows:
        if row["times_dense"] < _FLOOR:
            print(
                f"below {_FLOOR}: n = {row['n']}, d = {row['d']}, {row['kind']}, "
                f"noise {row['noise_std']:g}: {row['times_dense']:.2f}"
            )
    return rows


_SUITES = {"kinds": kinds_suite, "bars": bars_suite, "floor": floor_suite}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=list(_SUITES), default="kinds")
    parser.add_argument("--points", type=int, nargs="+", help="of kinds and bars")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 3, 5, 10])
    parser.add_argument("--noise-std", type=float, nargs="+", default=[0.02, 0.1])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--max-lost-mass", type=float, help="the default of the dtype")
    harness.add_timing_arguments(parser)
    parser.add_argument("--repeats", type=int, default=3, help="of the suite floor")
    parser.add_argument("--dense-seconds", type=float, default=0.5)
    parser.add_argument("--peer-seconds", type=float, default=0.5)
    harness.add_output_arguments(parser)
    args = parser.parse_args()
    if args.max_lost_mass is None:
        args.max_lost_mass = _DEFAULT_LOST_MASS[args.dtype]

    harness.use_cpus(args.threads)
    harness.use_clock(args)
    from noisyflow import runtime

    runtime.set_num_threads(args.threads)
    record: dict[str, Any] = {
        "machine": harness.machine(),
        "target": runtime.cpu_target(),
        "dtype": args.dtype,
        "threads": args.threads,
        "max_lost_mass": args.max_lost_mass,
        "suite": args.suite,
    }
    print(
        f"{record['machine']}\n{record['target']}, {args.dtype}, "
        f"{args.threads} thread(s), max_lost_mass {args.max_lost_mass:g}; "
        "*: timed on a part of the points and scaled\n"
    )
    args.has_sklearn = args.suite != "floor" and harness.has_module("sklearn")
    record["rows"] = _SUITES[args.suite](args)
    harness.write_json(args.json, record)


if __name__ == "__main__":
    main()
