"""mixture_log_density with max_lost_mass against every pair: time, and what is lost.

    python bench/bench_skipping.py                       # up to 100,000 points
    python bench/bench_skipping.py --points 1000000      # some minutes

Points around the centers, as many as centers; times include ordering into blocks. All
pairs are timed on a part of the points and scaled where they would take minutes.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import harness
from noisyflow import mixture_log_density, runtime

_PAIRS_TIMED = 5e9


def centers_of(kind: str, n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform on the cube, or 32 clusters of width 0.02 near its corners."""
    if kind == "uniform":
        return rng.uniform(-1, 1, (n, d))
    corners = rng.choice([-1.0, 1.0], (32, d)) * (1 - 0.15 * rng.random((32, d)))
    return corners[rng.integers(0, 32, n)] + 0.02 * rng.standard_normal((n, d))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument(
        "--noise-std", type=float, nargs="+", default=[0.005, 0.02, 0.1, 1.0]
    )
    parser.add_argument("--max-lost-mass", type=float, default=1e-6)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    runtime.set_num_threads(args.threads)
    print(harness.machine(), runtime.cpu_target())
    print(
        "       n   d  noise data       skipping, s  all pairs, s  ratio   lost, nats"
    )
    for n in args.points:
        for d in args.dims:
            for noise_std in args.noise_std:
                for kind in ("uniform", "clustered"):
                    rng = np.random.default_rng(0)
                    y = centers_of(kind, n, d, rng).astype(np.float32)
                    noise = rng.standard_normal((n, d), np.float32)
                    x = y + np.float32(noise_std) * noise
                    start = time.perf_counter()
                    ours = mixture_log_density(
                        x, y, noise_std, max_lost_mass=args.max_lost_mass
                    )
                    skipping = time.perf_counter() - start
                    some = min(n, max(256, int(_PAIRS_TIMED / n)))
                    start = time.perf_counter()
                    exact = mixture_log_density(x[:some], y, noise_std)
                    dense = (time.perf_counter() - start) * n / some
                    lost = float((exact - ours[:some]).max())
                    print(
                        f"{n:8} {d:3} {noise_std:6} {kind:9} {skipping:12.3f}"
                        f" {dense:13.3f} {dense / skipping:6.1f} {lost:12.1e}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
