"""The estimates themselves: variance, coverage, seconds to a target, memory.

    python bench/bench_estimators.py                   # variance beside plain draws
    python bench/bench_estimators.py --suite coverage  # known answers
    python bench/bench_estimators.py --suite speed     # beside the papers' way
    python bench/bench_estimators.py --suite memory    # a file of ten million rows

variance: h of a known mixture (population=True, so that only the queries are random)
over many seeds, beside plain stratified draws at as many evaluations. All evaluations
are counted, by the kernels that do them: those at bare centers, the posterior moments
(as pairs), and quadrature that was tried and given up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import harness
from noisyflow._benchmarking import data

_TARGET = 0.01  # nats, of the suite speed
_PLAIN_DRAWS = 64  # per center, for the variance of plain draws: known to 2 %


@dataclass(frozen=True)
class Case:
    """A known mixture, and how many queries may be spent on it."""

    kind: str
    n: int
    d: int
    noise_std: float
    draws: float  # queries per center
    study: float | None = None  # the best factor of the study at this cost

    def centers(self) -> np.ndarray:
        return data(self.kind, self.n, self.d, seed=3)


# (d, data, noise) -> the best of all methods tried in the study, 8 and 32 draws.
_STUDY = {
    (2, "uniform", 0.1): (6.44, 24.4),
    (2, "clustered", 0.1): (155, 402),
    (2, "clustered", 0.01): (6.78, 35.9),
    (5, "uniform", 0.1): (9.21, 16.9),
    (5, "clustered", 0.1): (97.8, 398),
    (5, "clustered", 0.01): (8.08, 16.2),
    (10, "uniform", 0.1): (2.82e4, 3.24e4),
    (10, "clustered", 0.1): (2.25e3, 4.41e3),
    (10, "clustered", 0.01): (66.5, 83.8),
}


def cases() -> Iterator[Case]:
    """Those of the study, then more dimensions and data, then few queries."""
    for (d, kind, noise_std), factors in _STUDY.items():
        for draws, factor in zip((8, 32), factors, strict=True):
            yield Case(kind, 1000, d, noise_std, draws, factor)
    for d, draws in itertools.product((1, 3, 20), (8, 32)):
        yield Case("uniform", 1000, d, 0.1, draws)
        yield Case("clustered", 1000, d, 0.1, draws)
    for d, draws in itertools.product((1, 2, 5, 10), (8, 32)):
        yield Case("gaussian", 1000, d, 0.5, draws)
    for d, draws in ((1, 200), (2, 200)):  # enough for quadrature
        yield Case("uniform", 1000, d, 0.1, draws)
        yield Case("clustered", 1000, d, 0.1, draws)
    for kind, d in itertools.product(("uniform", "clustered"), (2, 5, 10)):
        yield Case(kind, 10_000, d, 0.1, 0.2)


@contextmanager
def counted_pairs() -> Iterator[list[int]]:
    """The pairs that kernels evaluate or skip, whatever the estimate says of them."""
    from noisyflow import _controls, prepared

    counted = [0]
    log_own_and_others = prepared.PreparedMixture.log_own_and_others
    moments = _controls.posterior_moments

    def counting_log(self: Any, points: Any, own: Any) -> Any:
        counted[0] += len(points) * self.num_centers
        return log_own_and_others(self, points, own)

    def counting_moments(points: Any, centers: Any, *args: Any, **kwargs: Any) -> Any:
        counted[0] += len(points) * len(centers)
        return moments(points, centers, *args, **kwargs)

    prepared.PreparedMixture.log_own_and_others = counting_log  # type: ignore[method-assign]
    _controls.posterior_moments = counting_moments
    try:
        yield counted
    finally:
        prepared.PreparedMixture.log_own_and_others = log_own_and_others  # type: ignore[method-assign]
        _controls.posterior_moments = moments


@dataclass(frozen=True)
class Plain:
    """Plain draws: the entropy, its error, and the variance that a draw adds."""

    value: float
    error: float
    within: float  # mean variance of a draw around its center's mean
    between: float  # variance of the centers' means

    def variance(self, queries: float, n: int) -> float:
        """Of the mean: stratified where every center is met, else at random centers."""
        spread = self.within if queries >= n else self.within + self.between
        return spread / queries


def plain_draws(case: Case) -> Plain:
    """The same number of draws at every center, our kernel, float64."""
    from noisyflow import mixture_log_density

    centers = case.centers()
    rng = np.random.default_rng(11)
    chosen = centers if case.n <= 1000 else centers[rng.permutation(case.n)[:1000]]
    noise = rng.standard_normal((len(chosen), _PLAIN_DRAWS, case.d))
    points = chosen[:, None] + case.noise_std * noise
    values = -mixture_log_density(points.reshape(-1, case.d), centers, case.noise_std)
    values = values.reshape(len(chosen), _PLAIN_DRAWS)
    within = float(values.var(axis=1, ddof=1).mean())
    between = max(0.0, float(values.mean(axis=1).var()) - within / _PLAIN_DRAWS)
    error = within / values.size
    if len(chosen) < case.n:
        error += between / len(chosen)
    return Plain(float(values.mean()), math.sqrt(error), within, between)


def check_kernel(case: Case) -> None:
    """Our log-density beside the formula, before anything is measured with it."""
    from noisyflow import mixture_log_density

    centers = case.centers()
    points = centers[:16] + case.noise_std
    exact = harness.log_density(points, centers, case.noise_std)
    error = harness.error_against(
        mixture_log_density(points, centers, case.noise_std), exact
    )
    if not error < 1e-6:
        raise SystemExit(f"wrong log-density for {case}: error {error:.1e}")


def repeated(case: Case, num_seeds: int) -> dict[str, Any]:
    """Estimates over seeds at a fixed cost, and what they claim of their error."""
    from noisyflow import TargetWarning, entropy

    centers = case.centers()
    allowed = int(case.draws * case.n) * case.n
    values, claims, pairs = [], [], []
    for seed in range(num_seeds):
        with counted_pairs() as counted, warnings.catch_warnings():
            warnings.simplefilter("ignore", TargetWarning)
            estimate = entropy(
                centers,
                case.noise_std,
                population=True,
                standard_error=1e-12,
                max_pairs=allowed,
                seed=seed,
            )
        values.append(estimate.value)
        claims.append(estimate.monte_carlo_error)
        pairs.append(counted[0])
    return {
        "values": np.array(values),
        "claims": np.array(claims),
        "pairs": float(np.mean(pairs)),
        "told_pairs": estimate.num_pairs,
    }


def variance_suite(args: Any) -> list[dict[str, Any]]:
    """Spread over seeds beside plain draws at as many evaluations."""
    rows: list[dict[str, Any]] = []
    table = harness.Table(
        [
            ("d", 3),
            ("data", 9),
            ("noise", 5),
            ("n", 6),
            ("draws asked", 11),
            ("evaluations / n", 15),
            ("plain error", 11),
            ("our error", 10),
            ("variance factor", 15),
            ("study's best", 12),
            ("spread / claim", 14),
            ("within 2 claims", 15),
            ("off plain", 9),
        ],
        markdown=args.markdown,
    )
    for case in cases():
        if args.dims and case.d not in args.dims:
            continue
        check_kernel(case)
        plain = plain_draws(case)
        runs = repeated(case, args.seeds)
        values, claims = runs["values"], runs["claims"]
        queries = runs["pairs"] / case.n
        spread = float(values.std(ddof=1))
        plain_error = math.sqrt(plain.variance(queries, case.n))
        # Quadrature, or every center isolated and the controls exact: no spread.
        is_fixed = bool(spread < 1e-14 * abs(values[0]))
        if is_fixed:
            spread = float(claims[0])
        # The mean over seeds stands for the truth: its error is 1/sqrt(seeds) of one
        # estimate's. That it is the truth, plain draws have to say.
        off = (values.mean() - plain.value) / math.hypot(plain.error, spread)
        row = {
            **case.__dict__,
            "evaluations_per_center": queries,
            "told_evaluations_per_center": runs["told_pairs"] / case.n**2,
            "plain_error": plain_error,
            "our_error": spread,
            "factor": (plain_error / spread) ** 2,
            "is_quadrature": is_fixed,
            "spread_over_claim": spread / math.sqrt((claims**2).mean()),
            "within_two": float((np.abs(values - values.mean()) <= 2 * claims).mean()),
            "deviations_from_plain": float(off),
        }
        rows.append(row)
        table.row(
            [
                str(case.d),
                case.kind,
                f"{case.noise_std:g}",
                f"{case.n:,}",
                f"{case.draws:g}",
                f"{queries / case.n:.3g}",
                f"{plain_error:.1e}",
                f"{spread:.1e}",
                "exact*" if is_fixed else f"{row['factor']:.3g}",
                "" if case.study is None else f"{case.study:.3g}",
                "" if is_fixed else f"{row['spread_over_claim']:.2f}",
                "" if is_fixed else f"{row['within_two']:.0%}",
                f"{off:+.1f}",
            ]
        )
    worst = max(abs(row["deviations_from_plain"]) for row in rows)
    print(
        "\n*: no spread, the error it states. Largest deviation from plain draws: "
        f"{worst:.1f} of their standard errors"
    )
    return rows


# -- seconds to a target ------------------------------------------------------


def plain_torch(
    centers: Any, noise_std: float, draws: int, *, seed: int, is_clamped: bool
) -> float:
    """The papers' estimator: the same number of draws at every center, in torch.

    |x|^2 - 2 x.y + |y|^2 by matrix product, then logsumexp, the fastest of the eager
    formulas, 64 points at a time, the best of 16 to 1024. `is_clamped`: logsumexp
    written out, with exponents below -80 raised to it before exp. Nobody writes that,
    but MKL's exp takes 40 times as long where it underflows (Intel Xeon, family 6 model
    207, torch 2.13).
    """
    import torch

    (n, d) = centers.shape
    generator = torch.Generator().manual_seed(seed)
    scaled = centers / noise_std
    squares = scaled.square().sum(1)
    total = 0.0
    for _ in range(draws):
        points = scaled + torch.randn((n, d), generator=generator, dtype=centers.dtype)
        for part in points.split(64):
            exponents = torch.addmm(-0.5 * squares, part, scaled.T)
            if is_clamped:
                top = exponents.amax(1)
                exponents.sub_(top[:, None]).clamp_(min=-80)
                sums = exponents.exp_().sum(1).log_() + top
            else:
                sums = torch.logsumexp(exponents, 1)
            values = sums - 0.5 * part.square().sum(1)
            total -= float(values.sum(dtype=torch.float64))
    return total / (n * draws) - harness.constant(n, d, noise_std)


def speed_suite(args: Any) -> list[dict[str, Any]]:
    """Seconds to a Monte-Carlo error of 0.01 nats, ours and the papers' way.

    torch's time is that of one draw at every center, times the draws it needs.
    """
    import torch

    from noisyflow import entropy

    torch.set_num_threads(args.threads)
    entropy(np.zeros((64, 3)), 1.0, population=True)  # what is imported at first use
    table = harness.Table(
        [
            ("data", 9),
            ("d", 3),
            ("n", 6),
            ("draws", 5),
            ("their error", 11),
            ("our claim", 10),
            ("our error", 10),
            ("our evaluations / n", 19),
            ("torch s", 8),
            ("clamped s", 9),
            ("ours s", 8),
            ("times", 6),
            ("clamped", 8),
            ("draws by theorem", 16),
            ("times", 9),
            ("difference", 10),
        ],
        markdown=args.markdown,
    )
    rows = []
    problems = itertools.product(
        (("clustered", 5), ("clustered", 10), ("uniform", 5)),
        args.points or [4096, 10_000],
    )
    for (kind, d), n in problems:
        case = Case(kind, n, d, 0.1, 1)
        check_kernel(case)
        centers = case.centers().astype(args.dtype)
        tensor = torch.from_numpy(centers)
        plain = plain_draws(case)
        draws = max(1, math.ceil(plain.within / (n * _TARGET**2)))
        # Theorem 5 of arXiv 1810.11589 for centers in the cube: what a user who does
        # not know the variance is told to spend.
        told = math.ceil(
            2 * d * (2 + case.noise_std**2) / (case.noise_std**2 * n * _TARGET**2)
        )
        options = {"population": True, "standard_error": _TARGET}
        reference = entropy(
            centers, case.noise_std, population=True, standard_error=5e-4, seed=99
        ).value
        estimates = [
            entropy(centers, case.noise_std, seed=seed, **options)
            for seed in range(args.seeds)
        ]
        claim = float(np.mean([e.monte_carlo_error for e in estimates]))
        error = math.sqrt(np.mean([(e.value - reference) ** 2 for e in estimates]))

        def theirs(draws: int, *, is_clamped: bool, tensor: Any = tensor) -> float:
            return plain_torch(tensor, 0.1, draws, seed=1, is_clamped=is_clamped)

        difference = theirs(draws, is_clamped=True) - reference
        timed = harness.time_interleaved(
            {
                "torch": lambda f=theirs: f(1, is_clamped=False),
                "clamped": lambda f=theirs: f(1, is_clamped=True),
                "ours": lambda c=centers, o=options: entropy(c, 0.1, **o),
            },
            repeats=args.repeats,
            warmups=1,
        )
        seconds = {name: run["median"] for name, run in timed.items()}
        seconds["torch"] *= draws
        seconds["clamped"] *= draws
        row = {
            "kind": kind,
            "d": d,
            "n": n,
            "dtype": args.dtype,
            "draws": draws,
            "their_error": math.sqrt(plain.within / (n * draws)),
            "claim": claim,
            "our_error": error,
            "evaluations_per_center": estimates[0].num_pairs / n**2,
            "seconds": seconds,
            "timed": timed,
            "times": seconds["torch"] / seconds["ours"],
            "times_clamped": seconds["clamped"] / seconds["ours"],
            "told": told,
            "times_told": seconds["torch"] * told / draws / seconds["ours"],
            "difference": difference,
        }
        rows.append(row)
        table.row(
            [
                kind,
                str(d),
                f"{n:,}",
                str(draws),
                f"{row['their_error']:.4f}",
                f"{claim:.1e}",
                f"{error:.1e}",
                f"{row['evaluations_per_center']:.2g}",
                f"{seconds['torch']:.3g}",
                f"{seconds['clamped']:.3g}",
                f"{seconds['ours']:.3g}",
                f"{row['times']:.1f}",
                f"{row['times_clamped']:.1f}",
                f"{told:,}",
                f"{row['times_told']:,.0f}",
                f"{difference:+.4f}",
            ]
        )
    return rows


# -- memory -------------------------------------------------------------------

_ROWS_PER_WRITE = 2**17
_CHILD = """
import json, sys, time
import numpy as np
from noisyflow import entropy, runtime
path, noise_std, threads, seconds = sys.argv[1:]
runtime.set_num_threads(int(threads))
options = {"max_seconds": float(seconds)} if float(seconds) else {}
centers = np.load(path, mmap_mode="r")
start = time.perf_counter()
estimate = entropy(centers, float(noise_std), **options)
took = time.perf_counter() - start
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps({"seconds": took, "peak_bytes": 1024 * peak, "text": str(estimate),
    "value": estimate.value, "stopped_by": estimate.stopped_by,
    "num_pairs": estimate.num_pairs}))
"""


def write_cube(path: Path, n: int, d: int) -> None:
    """A float32 file of points uniform on [-1, 1]^d, written in blocks."""
    rng = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (n, d))
    for start in range(0, n, _ROWS_PER_WRITE):
        block = file[start : start + _ROWS_PER_WRITE]
        block[:] = 2 * rng.random(block.shape, np.float32) - 1
    file.flush()


def memory_suite(args: Any) -> list[dict[str, Any]]:
    """Peak resident memory of a fresh process that reads a memory-mapped file."""
    (d,) = args.dims or [10]
    n = (args.points or [10_000_000])[0]
    noise_std = args.noise_std
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.npy"
        write_cube(path, n, d)
        result = subprocess.run(
            [
                *(sys.executable, "-c", _CHILD, str(path)),
                *(str(noise_std), str(args.threads), str(args.max_seconds)),
            ],
            capture_output=True,
            text=True,
            env=os.environ,
        )
        size = path.stat().st_size
    if result.returncode:
        raise SystemExit(result.stderr)
    row: dict[str, Any] = json.loads(result.stdout)
    table = harness.Table(
        [
            ("n", 12),
            ("d", 3),
            ("noise", 6),
            ("file MB", 8),
            ("peak MB", 8),
            ("seconds", 8),
            ("estimate", 60),
        ],
        markdown=args.markdown,
    )
    table.row(
        [
            f"{n:,}",
            str(d),
            f"{noise_std:g}",
            f"{size / 1e6:.0f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['seconds']:.1f}",
            row["text"],
        ]
    )
    if row["peak_bytes"] >= 2**30:
        print(f"peak of {row['peak_bytes'] / 2**20:.0f} MiB: above the bar of 1 GiB")
    return [row]


def coverage_suite(args: Any) -> list[dict[str, Any]]:
    """Brackets beside known answers."""
    import known_answers

    return known_answers.run(args)


_SUITES: dict[str, Callable[[Any], list[dict[str, Any]]]] = {
    "variance": variance_suite,
    "coverage": coverage_suite,
    "speed": speed_suite,
    "memory": memory_suite,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=list(_SUITES), default="variance")
    parser.add_argument(
        "--seeds", type=int, default=64, help="repetitions of each case"
    )
    parser.add_argument("--dims", type=int, nargs="+", help="of variance and memory")
    parser.add_argument("--points", type=int, nargs="+", help="of speed and memory")
    parser.add_argument("--problems", type=int, default=240, help="of coverage")
    parser.add_argument("--noise-std", type=float, default=0.1, help="of memory")
    parser.add_argument("--max-seconds", type=float, default=0, help="of memory")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--repeats", type=int, default=5, help="of the suite speed")
    harness.add_timing_arguments(parser)
    harness.add_output_arguments(parser)
    args = parser.parse_args()
    harness.use_cpus(args.threads)
    harness.use_clock(args)
    from noisyflow import runtime

    runtime.set_num_threads(args.threads)
    record: dict[str, Any] = {
        "machine": harness.machine(),
        "target": runtime.cpu_target(),
        "threads": args.threads,
        "suite": args.suite,
    }
    print(f"{record['machine']}\n{record['target']}, {args.threads} thread(s)\n")
    start = time.perf_counter()
    record["rows"] = _SUITES[args.suite](args)
    record["seconds"] = time.perf_counter() - start
    print(f"\n{record['seconds']:.0f} s in all")
    harness.write_json(args.json, record)


if __name__ == "__main__":
    main()
