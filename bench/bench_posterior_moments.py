"""posterior_moments beside its peers: error, then pairs per second.

    python bench/bench_posterior_moments.py              # d = 2, 5, 10, 32, one thread
    python bench/bench_posterior_moments.py --dims 10 --dtype float64

Peers: NumPy with matrix products (weights times centers and their outer products, 128
points at a time), and torch.compile of the same formula. Both take moments about the
origin, as matrix products must, and lose digits at small noise; so does |x|^2 + |y|^2 -
2 x.y in their distances.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import bench_ports
import harness

Contestant = Callable[[np.ndarray], np.ndarray]
_CHECKED_NOISE = 0.005
_CHUNK = 128  # points: weights of 10,000 centers take 5 MB


class Mixture:
    """n centers uniform on [-1, 1]^d and points around them."""

    def __init__(self, n: int, d: int, noise_std: float, dtype: str) -> None:
        self._rng = np.random.default_rng(0)
        self.noise_std = noise_std
        self.centers = self._rng.uniform(-1, 1, (n, d)).astype(dtype)

    def points(self, m: int) -> np.ndarray:
        noise = self.noise_std * self._rng.standard_normal((m, self.centers.shape[1]))
        return (self.centers[:m] + noise).astype(self.centers.dtype)

    def features(self) -> np.ndarray:
        """1, y and the upper triangle of y y' of every center."""
        upper = np.triu_indices(self.centers.shape[1])
        outer = self.centers[:, :, None] * self.centers[:, None, :]
        ones = np.ones_like(self.centers[:, :1])
        return np.concatenate([ones, self.centers, outer[:, upper[0], upper[1]]], 1)


def noisyflow(mixture: Mixture) -> Contestant:
    from noisyflow import posterior_moments

    return lambda x: posterior_moments(x, mixture.centers, mixture.noise_std).covariance


def numpy_matmul(mixture: Mixture) -> Contestant:
    y, features = mixture.centers, mixture.features()
    norms, per_variance = (y * y).sum(axis=1), y.dtype.type(mixture.noise_std**-2)

    def formula(x: np.ndarray) -> np.ndarray:
        logits = x @ y.T
        logits -= 0.5 * norms
        logits -= logits.max(axis=1, keepdims=True)
        logits *= per_variance
        return np.exp(logits, out=logits) @ features

    def call(x: np.ndarray) -> np.ndarray:
        starts = range(0, len(x), _CHUNK)
        sums = np.concatenate([formula(x[i : i + _CHUNK]) for i in starts])
        return _covariances(sums, y.shape[1])

    return call


def torch_compile(mixture: Mixture) -> Contestant:
    import torch

    y = torch.from_numpy(mixture.centers)
    features = torch.from_numpy(mixture.features())
    norms, per_variance = y.square().sum(1), mixture.noise_std**-2

    def formula(x: torch.Tensor) -> torch.Tensor:
        logits = x @ y.T - 0.5 * norms
        top = logits.amax(1, keepdim=True)
        return torch.exp((logits - top) * per_variance) @ features

    torch._dynamo.reset()
    compiled = torch.compile(formula, dynamic=False)

    def call(x: np.ndarray) -> np.ndarray:
        padded = np.concatenate([x, np.repeat(x[-1:], -len(x) % _CHUNK, axis=0)])
        with torch.no_grad():
            parts = [compiled(part) for part in torch.from_numpy(padded).split(_CHUNK)]
        return _covariances(torch.cat(parts).numpy()[: len(x)], y.shape[1])

    return call


def _covariances(sums: np.ndarray, d: int) -> np.ndarray:
    means = sums[:, 1 : d + 1] / sums[:, :1]
    upper = np.triu_indices(d)
    moments = sums[:, d + 1 :] / sums[:, :1]
    covariances = np.empty((len(sums), d, d), sums.dtype)
    covariances[:, upper[0], upper[1]] = (
        moments - means[:, upper[0]] * means[:, upper[1]]
    )
    covariances[:, upper[1], upper[0]] = covariances[:, upper[0], upper[1]]
    return covariances


_OURS = "noisyflow"
CONTESTANTS: dict[str, tuple[Callable[[Mixture], Contestant], str]] = {
    _OURS: (noisyflow, "noisyflow"),
    "NumPy, matmul": (numpy_matmul, "numpy"),
    "torch.compile, matmul": (torch_compile, "torch"),
}


def bound(rates: dict[str, Any], dtype: str, d: int) -> float:
    """Pairs per second if every instruction of the formula ran at the measured rate.

    d differences and squares, the exponential and the mass as bench_ports counts them,
    and d + d (d + 1) / 2 multiply-adds.
    """
    of = rates[dtype]
    products = d * (d + 1) // 2 + 2 * d
    count = sum(bench_ports.instructions(rates, dtype).values()) + d
    if "fma" in of:
        count, rate = count + products, of["sub+fma"]["per_ns"]
    else:
        count, rate = count + 2 * products, of["sub+mul+add"]["per_ns"]
    return 1e9 * of["lanes"] * rate / count


def error_of(name: str, n: int, d: int, noise_std: float, dtype: str) -> float:
    """Largest error of 64 covariances in float64, in units of noise_std^2.

    Relative to the largest entry where that is above 1.
    """
    from noisyflow import _reference

    mixture = Mixture(n, d, noise_std, dtype)
    x = mixture.points(64)
    ours = CONTESTANTS[name][0](mixture)(x) / noise_std**2
    exact = np.concatenate(
        [
            _reference.posterior_moments(x[i : i + 8], mixture.centers, noise_std)[2]
            for i in range(0, len(x), 8)
        ]
    )
    exact /= noise_std**2
    scale = np.maximum(1, np.abs(exact).max(axis=(1, 2)))
    return float((np.abs(ours - exact).max(axis=(1, 2)) / scale).max())


def measure(names: list[str], d: int, args: Any) -> list[dict[str, Any]]:
    """Errors first, then times in turns."""
    noise_stds = (args.noise_std, _CHECKED_NOISE)
    errors = {
        name: [error_of(name, args.centers, d, std, args.dtype) for std in noise_stds]
        for name in names
    }
    mixture = Mixture(args.centers, d, args.noise_std, args.dtype)
    x = mixture.points(args.points)
    calls = {name: partial(CONTESTANTS[name][0](mixture), x) for name in names}
    timed = harness.time_interleaved(calls, repeats=args.repeats, warmups=1)
    pairs = args.points * args.centers
    rows = [
        {
            "d": d,
            "contestant": name,
            "seconds": timed[name],
            "pairs_per_second": pairs / timed[name]["median"],
            "pairs_per_second_best": pairs / timed[name]["best"],
            "error": errors[name][0],
            "error_at_noise_0.005": errors[name][1],
        }
        for name in names
    ]
    for row in rows:
        row["times_slower"] = rows[0]["pairs_per_second"] / row["pairs_per_second"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 5, 10, 32])
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--centers", type=int, default=10_000)
    parser.add_argument("--noise-std", type=float, default=1.0)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    harness.add_timing_arguments(parser)
    harness.add_output_arguments(parser)
    args = parser.parse_args()
    harness.use_cpus(args.threads)
    harness.use_clock(args)
    absent = [n for n in CONTESTANTS if not importlib.util.find_spec(CONTESTANTS[n][1])]
    from noisyflow import runtime

    runtime.set_num_threads(args.threads)
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(args.threads)
    target = runtime.cpu_target()
    record: dict[str, Any] = {
        "machine": harness.machine(),
        "target": target,
        "dtype": args.dtype,
        "threads": args.threads,
        "noise_std": args.noise_std,
        "absent": absent,
        "rows": [],
    }
    print(f"{record['machine']}\n{target}, {args.dtype}, {args.threads} thread(s)\n")
    table = harness.Table(
        [
            ("d", 4),
            ("contestant", 24),
            ("G pairs/s, median (best)", 24),
            ("times slower", 12),
            ("of its bound", 12),
            ("error", 8),
            (f"at noise {_CHECKED_NOISE}", 14),
        ],
        markdown=args.markdown,
    )
    ports = []
    for d in args.dims:
        rows = measure([n for n in CONTESTANTS if n not in absent], d, args)
        ports.append(bench_ports.measure(target))
        limit = args.threads * bound(bench_ports.best_of(ports), args.dtype, d)
        rows[0]["share_of_bound"] = rows[0]["pairs_per_second"] / limit
        rows[0]["share_of_bound_best"] = rows[0]["pairs_per_second_best"] / limit
        for row in rows:
            rate, best = row["pairs_per_second"], row["pairs_per_second_best"]
            shares = [row.get("share_of_bound"), row.get("share_of_bound_best")]
            table.row(
                [
                    str(d),
                    row["contestant"],
                    f"{rate / 1e9:.3g} ({best / 1e9:.3g})",
                    f"{row['times_slower']:.1f}",
                    f"{shares[0]:.0%} ({shares[1]:.0%})" if shares[0] else "",
                    f"{row['error']:.1e}",
                    f"{row['error_at_noise_0.005']:.1e}",
                ]
            )
        record["rows"] += rows
    record["ports"] = bench_ports.best_of(ports)
    harness.write_json(args.json, record)


if __name__ == "__main__":
    main()
