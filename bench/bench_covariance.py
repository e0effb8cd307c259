"""gaussian_mixture_log_density beside its peers: error, then pairs per second.

    python bench/bench_covariance.py                     # d = 2, 5, 10, one thread
    python bench/bench_covariance.py --dims 20 32 --peers --dtype float64

Peers at the best settings found: torch.compile of the formula with every product
unrolled (64 points at a time, the best of 8 to 256), torch.compile of one matrix
product for all components (32 at a time; it does not difference first, and loses digits
at small noise), eager torch, torch.distributions, SciPy's components. Covariances have
random axes and a condition number up to 10.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import bench_ports
import harness

Contestant = Callable[[np.ndarray], np.ndarray]
_CHECKED_NOISE = 0.005
_LONGEST_UNROLLED = 10  # dimensions; beyond, compiling takes minutes


class Mixture:
    """n components, means uniform on [-1, 1]^d, and points around them.

    Standard deviations along random axes are noise_std times 1 to sqrt(10).
    """

    def __init__(self, n: int, d: int, noise_std: float, dtype: str) -> None:
        self._rng = np.random.default_rng(0)
        self._axes = np.linalg.qr(self._rng.standard_normal((n, d, d)))[0]
        self._stds = noise_std * 10 ** (0.5 * self._rng.random((n, d)))
        scaled = self._axes * self._stds[:, None, :]
        self.covariances = scaled @ scaled.swapaxes(1, 2)
        lower = np.linalg.cholesky(self.covariances)
        self.whitening = np.tril(np.linalg.inv(lower)).astype(dtype)
        self.centers = self._rng.uniform(-1, 1, (n, d)).astype(dtype)

    def points(self, m: int) -> np.ndarray:
        own = np.arange(m) % len(self.centers)
        noise = self._rng.standard_normal((m, self.centers.shape[1])) * self._stds[own]
        points = self.centers[own] + np.einsum("irk,ik->ir", self._axes[own], noise)
        return points.astype(self.centers.dtype)

    def log_factors(self) -> np.ndarray:
        """Per component, the logarithm of weight and normaliser."""
        (n, d) = self.centers.shape
        diagonals = np.diagonal(self.whitening, axis1=1, axis2=2).astype(np.float64)
        factors = np.log(diagonals).sum(axis=1) - math.log(n)
        return (factors - 0.5 * d * math.log(2 * math.pi)).astype(self.centers.dtype)


def noisyflow(mixture: Mixture) -> Contestant:
    from noisyflow import gaussian_mixture_log_density

    return lambda x: gaussian_mixture_log_density(x, mixture.centers, mixture.whitening)


def torch_unrolled(mixture: Mixture, *, chunk: int) -> Contestant:
    """Inductor's fusion of the formula, every product spelled out."""
    import torch

    d = mixture.centers.shape[1]
    means = torch.from_numpy(mixture.centers).T.contiguous()
    factors = torch.from_numpy(mixture.whitening).permute(1, 2, 0).contiguous()
    constants = torch.from_numpy(mixture.log_factors())

    def formula(points):
        differences = [points[:, k : k + 1] - means[k] for k in range(d)]
        rows = [
            sum(factors[r, k] * differences[k] for k in range(r + 1)) for r in range(d)
        ]
        squares = sum(row.square() for row in rows)
        return torch.logsumexp(constants - 0.5 * squares, 1)

    return _compiled(formula, chunk)


def _matrix_product(mixture: Mixture) -> Callable[[Any], Any]:
    """A_j x for all j at once, less A_j mu_j."""
    import torch

    (n, d) = mixture.centers.shape
    factors = torch.from_numpy(mixture.whitening).reshape(n * d, d).T.contiguous()
    moved = np.einsum("jrk,jk->jr", mixture.whitening, mixture.centers)
    moved_means = torch.from_numpy(moved).reshape(1, n * d)
    constants = torch.from_numpy(mixture.log_factors())

    def formula(points):
        rows = (points @ factors - moved_means).view(-1, n, d)
        return torch.logsumexp(constants - 0.5 * rows.square().sum(2), 1)

    return formula


def torch_matmul(mixture: Mixture, *, chunk: int) -> Contestant:
    return _compiled(_matrix_product(mixture), chunk)


def _compiled(formula: Callable[[Any], Any], chunk: int) -> Contestant:
    import torch

    torch._dynamo.reset()
    return _in_chunks(torch.compile(formula, dynamic=False), chunk)


def _in_chunks(formula: Callable[[Any], Any], chunk: int) -> Contestant:
    import torch

    def call(x: np.ndarray) -> np.ndarray:
        padded = np.concatenate([x, np.repeat(x[-1:], -len(x) % chunk, axis=0)])
        with torch.no_grad():
            parts = [formula(some) for some in torch.from_numpy(padded).split(chunk)]
        return torch.cat(parts).numpy()[: len(x)]

    return call


def torch_eager(mixture: Mixture) -> Contestant:
    return _in_chunks(_matrix_product(mixture), 32)


def torch_distributions(mixture: Mixture) -> Contestant:
    import torch
    from torch import distributions

    n = len(mixture.centers)
    lower = np.linalg.inv(mixture.whitening.astype(np.float64))
    components = distributions.MultivariateNormal(
        torch.from_numpy(mixture.centers),
        scale_tril=torch.from_numpy(np.tril(lower).astype(mixture.centers.dtype)),
    )
    weights = distributions.Categorical(torch.full((n,), 1 / n, dtype=torch.float64))
    whole = distributions.MixtureSameFamily(weights, components)
    return _in_chunks(whole.log_prob, 32)


def scipy_components(mixture: Mixture) -> Contestant:
    from scipy.special import logsumexp
    from scipy.stats import multivariate_normal

    components = [
        multivariate_normal(center, covariance)
        for center, covariance in zip(mixture.centers, mixture.covariances, strict=True)
    ]

    def call(x: np.ndarray) -> np.ndarray:
        terms = [component.logpdf(x) for component in components]
        return logsumexp(terms, axis=0) - math.log(len(components))

    return call


_OURS = "noisyflow"
# Constructor, package, points: slow peers get fewer, and their rate is the same.
CONTESTANTS: dict[str, tuple[Callable[[Mixture], Contestant], str, int]] = {
    _OURS: (noisyflow, "noisyflow", 10_000),
    "torch.compile, unrolled": (partial(torch_unrolled, chunk=64), "torch", 10_000),
    "torch.compile, matmul": (partial(torch_matmul, chunk=32), "torch", 4_000),
    "torch eager, matmul": (torch_eager, "torch", 500),
    "torch.distributions": (torch_distributions, "torch", 64),
    "SciPy": (scipy_components, "scipy", 500),
}


def bound(rates: dict[str, Any], dtype: str, d: int) -> float:
    """Pairs per second if every instruction of the formula ran at the measured rate.

    d differences, d (d + 1) / 2 products and d squares, then the exponential and its
    sum as bench_ports counts them (the multiplication by the scale, which is not
    needed here, pays for where accumulation starts).
    """
    of = rates[dtype]
    products = d * (d + 1) // 2 + d
    count = sum(bench_ports.instructions(rates, dtype).values()) + d
    if "fma" in of:
        count, rate = count + products, of["sub+fma"]["per_ns"]
    else:
        count, rate = count + 2 * products, of["sub+mul+add"]["per_ns"]
    return 1e9 * of["lanes"] * rate / count


def error_of(name: str, n: int, d: int, noise_std: float, dtype: str) -> float:
    """Largest error of 256 points against the specification in float64, nats."""
    from noisyflow import _reference

    mixture = Mixture(n, d, noise_std, dtype)
    make, _, points = CONTESTANTS[name]
    x = mixture.points(min(256, points))
    exact = [
        _reference.gaussian_mixture_log_density(
            x[i : i + 16], mixture.centers, mixture.whitening
        )
        for i in range(0, len(x), 16)
    ]
    return harness.error_against(make(mixture)(x), np.concatenate(exact))


def measure(names: list[str], d: int, args: Any) -> list[dict[str, Any]]:
    """Errors first, then times in turns."""
    errors = {
        name: [
            error_of(name, args.components, d, noise_std, args.dtype)
            for noise_std in (args.noise_std, _CHECKED_NOISE)
        ]
        for name in names
    }
    mixture = Mixture(args.components, d, args.noise_std, args.dtype)
    calls, pairs = {}, {}
    for name in names:
        make, _, points = CONTESTANTS[name]
        calls[name] = partial(make(mixture), mixture.points(points))
        pairs[name] = points * args.components
    timed = harness.time_interleaved(calls, repeats=args.repeats, warmups=1)
    rows = [
        {
            "d": d,
            "contestant": name,
            "seconds": timed[name],
            "pairs_per_second": pairs[name] / timed[name]["median"],
            "pairs_per_second_best": pairs[name] / timed[name]["best"],
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
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 5, 10])
    parser.add_argument("--components", type=int, default=10_000)
    parser.add_argument("--noise-std", type=float, default=1.0)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--peers", nargs="*", choices=list(CONTESTANTS)[1:], metavar="PEER"
    )
    harness.add_timing_arguments(parser)
    harness.add_output_arguments(parser)
    args = parser.parse_args()
    harness.use_cpus(args.threads)
    harness.use_clock(args)
    wanted = list(CONTESTANTS)[1:] if args.peers is None else args.peers
    absent = [n for n in wanted if not importlib.util.find_spec(CONTESTANTS[n][1])]
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
        names = [_OURS, *(name for name in wanted if name not in absent)]
        if d > _LONGEST_UNROLLED:
            names = [name for name in names if name != "torch.compile, unrolled"]
        rows = measure(names, d, args)
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
