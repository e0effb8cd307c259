"""mixture_log_density against its peers: error, then pairs per second, in one run.

    python bench/bench_log_density.py                    # d = 3 and 10, one thread
    python bench/bench_log_density.py --dims 1 3 64 --centers 10000 --json out.json

Peers at their best documented settings: torch.compile of the direct-difference
formula (unrolled over dimensions; 64 points at a time, the best of 8 to 256, and 256),
KeOps' LogSumExp reduction, the eager torch one-liner, SciPy's cdist + logsumexp.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import harness


def constant(n: int, d: int, noise_std: float) -> float:
    return -math.log(n) - 0.5 * d * math.log(2 * math.pi * noise_std**2)


def noisyflow_contestant(x, y, noise_std) -> Callable[[], np.ndarray]:
    from noisyflow import mixture_log_density

    return lambda: mixture_log_density(x, y, noise_std)


def torch_compile_contestant(x, y, noise_std, *, chunk: int) -> Callable[[], Any]:
    """Inductor's fusion of the formula, `chunk` points at a time."""
    import torch

    (n, d) = y.shape
    columns = torch.from_numpy(y).T.contiguous()
    factor = -0.5 / noise_std**2

    def formula(points):
        if d <= 20:
            squares = sum(
                (points[:, k : k + 1] - columns[k][None, :]).square() for k in range(d)
            )
        else:
            squares = (points[:, None, :] - columns.T[None, :, :]).square().sum(-1)
        return torch.logsumexp(squares * factor, 1)

    compiled = torch.compile(formula, dynamic=False)
    padded = np.concatenate([x, np.repeat(x[-1:], -len(x) % chunk, axis=0)])
    chunks = torch.from_numpy(padded).split(chunk)

    def call() -> np.ndarray:
        with torch.no_grad():
            result = torch.cat([compiled(points) for points in chunks])
        return result.numpy()[: len(x)] + constant(n, d, noise_std)

    return call


def torch_eager_contestant(x, y, noise_std) -> Callable[[], np.ndarray]:
    import torch

    (n, d) = y.shape
    points, centers = torch.from_numpy(x), torch.from_numpy(y)
    chunk = max(1, 2**19 // n)

    def call() -> np.ndarray:
        parts = []
        for some in points.split(chunk):
            distances = torch.cdist(
                some, centers, compute_mode="donot_use_mm_for_euclid_dist"
            )
            parts.append(
                torch.logsumexp(distances.square_().mul_(-0.5 / noise_std**2), 1)
            )
        return torch.cat(parts).numpy() + constant(n, d, noise_std)

    return call


def keops_contestant(x, y, noise_std) -> Callable[[], np.ndarray]:
    import torch
    from pykeops.torch import Genred

    (n, d) = y.shape
    reduction = Genred(
        "Minus(G*SqDist(x,y))",
        [f"x=Vi({d})", f"y=Vj({d})", "G=Pm(1)"],
        reduction_op="LogSumExp",
        axis=1,
    )
    points, centers = torch.from_numpy(x), torch.from_numpy(y)
    factor = torch.tensor([0.5 / noise_std**2], dtype=points.dtype)

    def call() -> np.ndarray:
        result = reduction(points, centers, factor, backend="CPU")
        return result.view(-1).numpy() + constant(n, d, noise_std)

    return call


def scipy_contestant(x, y, noise_std) -> Callable[[], np.ndarray]:
    from scipy.spatial.distance import cdist
    from scipy.special import logsumexp

    (n, d) = y.shape
    chunk = max(1, 2**21 // n)

    def call() -> np.ndarray:
        parts = [
            logsumexp(
                cdist(x[i : i + chunk], y, "sqeuclidean") * (-0.5 / noise_std**2),
                axis=1,
            )
            for i in range(0, len(x), chunk)
        ]
        return np.concatenate(parts) + constant(n, d, noise_std)

    return call


CONTESTANTS = {
    "noisyflow": noisyflow_contestant,
    "torch.compile": partial(torch_compile_contestant, chunk=64),
    "torch.compile 256": partial(torch_compile_contestant, chunk=256),
    "torch eager": torch_eager_contestant,
    "KeOps": keops_contestant,
    "SciPy": scipy_contestant,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--centers", type=int, default=20_000)
    parser.add_argument("--noise-std", type=float, default=1.0)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--peers", nargs="*", choices=list(CONTESTANTS), default=list(CONTESTANTS)
    )
    parser.add_argument("--json", help="write the record to this file")
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # KeOps reads it when it compiles
    import torch

    from noisyflow import _reference, runtime

    torch.set_num_threads(args.threads)
    runtime.set_num_threads(args.threads)
    record = {"machine": harness.machine(), "target": runtime.cpu_target(), "rows": []}
    print(record["machine"], record["target"])
    header = f"{'d':>4} {'contestant':17} {'G pairs/s':>9} {'(best)':>8}"
    print(f"{header} {'ratio':>7} {'error, nats':>12} {'at 0.005':>9}")
    for d in args.dims:
        rng = np.random.default_rng(0)
        y = rng.uniform(-1, 1, (args.centers, d)).astype(args.dtype)
        noise = rng.standard_normal((args.points, d))
        own = np.arange(args.points) % args.centers

        def points_at(noise_std, y=y, noise=noise, own=own):
            return (y[own] + noise_std * noise).astype(args.dtype)

        def errors(make, noise_std, y=y, points_at=points_at):
            checked = points_at(noise_std)[:256]
            exact = _reference.mixture_log_density(checked, y, noise_std)
            return harness.error_against(make(checked, y, noise_std)(), exact)

        names = ["noisyflow", *(name for name in args.peers if name != "noisyflow")]
        accuracy = {
            name: [errors(CONTESTANTS[name], s) for s in (args.noise_std, 0.005)]
            for name in names
        }
        timed = harness.time_interleaved(
            {
                name: CONTESTANTS[name](points_at(args.noise_std), y, args.noise_std)
                for name in names
            },
            repeats=args.repeats,
        )
        for name in names:
            pairs = args.points * args.centers / 1e9
            seconds = timed[name]["median"]
            ratio = seconds / timed["noisyflow"]["median"]
            print(
                f"{d:4} {name:17} {pairs / seconds:9.3f}"
                f" {pairs / timed[name]['best']:8.3f} {ratio:7.2f}"
                f" {accuracy[name][0]:12.1e} {accuracy[name][1]:9.1e}",
                flush=True,
            )
            record["rows"].append(
                {
                    "d": d,
                    "contestant": name,
                    "seconds": timed[name],
                    "pairs_per_second": 1e9 * pairs / seconds,
                    "times_slower_than_noisyflow": ratio,
                    "error": accuracy[name][0],
                    "error_at_noise_0.005": accuracy[name][1],
                }
            )
    harness.write_json(args.json, record)


if __name__ == "__main__":
    main()
