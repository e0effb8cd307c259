"""Many small mixtures at once against Python loops over them.

    python bench/bench_batched.py

1000 mixtures of 50 centers and 64 of 500, 8 points around every center: what an
information estimate within labels, or along a training run, asks for. Ours is one call
of mixture_block_log_sums, which also tells the own center from the rest; the peers
compute the log-sum alone: a torch loop over mixtures, the same with a compiled body,
JAX's lax.map over mixtures and vmap.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

import harness

_SIZES = ((1000, 50), (64, 500))
_POINTS_PER_CENTER = 8


def noisyflow_call(
    x: np.ndarray, y: np.ndarray, noise_std: float, *, adds: bool
) -> Callable[[], np.ndarray]:
    """x: (mixtures, points, d); y: (mixtures, centers, d)."""
    from noisyflow import mixture_block_log_sums

    (mixtures, n, d) = y.shape
    own = np.repeat(np.arange(mixtures * n), x.shape[1] // n)
    offsets = np.arange(mixtures + 1) * n
    points, centers = x.reshape(-1, d), y.reshape(-1, d)

    def call() -> np.ndarray:
        parts = mixture_block_log_sums(
            points, centers, noise_std, own, offsets, include_rest=False
        )
        if not adds:
            return parts.inner
        # The weights are 1 / (mixtures n) there, 1 / n within a mixture.
        return np.logaddexp(parts.own_center, parts.inner) + np.log(mixtures)

    return call


def torch_call(
    x: np.ndarray, y: np.ndarray, noise_std: float, *, compiles: bool
) -> Callable[[], np.ndarray]:
    import torch

    (_, n, d) = y.shape
    points, centers = torch.from_numpy(x), torch.from_numpy(y)
    factor = -0.5 / noise_std**2

    def formula(points, centers):
        squares = sum(
            (points[:, k, None] - centers[None, :, k]).square() for k in range(d)
        )
        return torch.logsumexp(squares * factor, 1)

    body = torch.compile(formula, dynamic=False) if compiles else formula

    def call() -> np.ndarray:
        with torch.no_grad():
            sums = [body(p, c) for p, c in zip(points, centers, strict=True)]
        return torch.cat(sums).numpy() + harness.constant(n, d, noise_std)

    return call


def jax_call(
    x: np.ndarray, y: np.ndarray, noise_std: float, *, maps: str
) -> Callable[[], np.ndarray]:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    (_, n, d) = y.shape
    points, centers = jnp.asarray(x), jnp.asarray(y)
    factor = y.dtype.type(-0.5 / noise_std**2)

    def formula(points, centers):
        squares = sum((points[:, k, None] - centers[None, :, k]) ** 2 for k in range(d))
        return jax.scipy.special.logsumexp(squares * factor, axis=1)

    if maps == "lax.map":
        mapped = jax.jit(lambda p, c: jax.lax.map(lambda pair: formula(*pair), (p, c)))
    else:
        mapped = jax.jit(jax.vmap(formula))

    def call() -> np.ndarray:
        sums = np.asarray(mapped(points, centers)).reshape(-1)
        return sums + harness.constant(n, d, noise_std)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 10])
    parser.add_argument("--noise-std", type=float, default=1.0)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    harness.add_timing_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5)
    harness.add_output_arguments(parser)
    args = parser.parse_args()
    harness.use_cpus(args.threads)
    harness.use_clock(args)
    from noisyflow import mixture_log_density, runtime

    runtime.set_num_threads(args.threads)
    record: dict[str, Any] = {
        "machine": harness.machine(),
        "target": runtime.cpu_target(),
        "dtype": args.dtype,
        "threads": args.threads,
        "rows": [],
    }
    print(f"{record['machine']}\n{record['target']}, {args.dtype}\n")
    present = {name: harness.has_module(name) for name in ("torch", "jax")}
    table = harness.Table(
        [
            ("mixtures", 12),
            ("d", 3),
            ("contestant", 22),
            ("G pairs/s, median (best)", 24),
            ("times slower", 12),
            ("of dense rate", 13),
            ("error", 8),
        ],
        markdown=args.markdown,
    )
    for mixtures, n in _SIZES:
        for d in args.dims:
            rng = np.random.default_rng(0)
            y = rng.uniform(-1, 1, (mixtures, n, d)).astype(args.dtype)
            noise = rng.standard_normal((mixtures, n * _POINTS_PER_CENTER, d))
            x = np.repeat(y, _POINTS_PER_CENTER, axis=1) + args.noise_std * noise
            x = x.astype(args.dtype)
            made: dict[str, Callable[[], np.ndarray]] = {
                "noisyflow": noisyflow_call(x, y, args.noise_std, adds=False),
                "noisyflow, parts added": noisyflow_call(
                    x, y, args.noise_std, adds=True
                ),
            }
            if present["torch"]:
                import torch

                torch.set_num_threads(args.threads)
                made["torch loop"] = torch_call(x, y, args.noise_std, compiles=False)
                made["torch.compile in loop"] = torch_call(
                    x, y, args.noise_std, compiles=True
                )
            if present["jax"]:
                for maps in ("lax.map", "vmap"):
                    made[f"JAX {maps}"] = jax_call(x, y, args.noise_std, maps=maps)

            # -- check: the first and last mixture -------------------------------------
            errors = {}
            m = n * _POINTS_PER_CENTER
            exact = np.concatenate(
                [harness.log_density(x[g], y[g], args.noise_std) for g in (0, -1)]
            )
            for name, call in made.items():
                result = call()
                ends = np.concatenate([result[:m], result[-m:]])
                errors[name] = harness.error_against(ends, exact)
            # Its parts are not the sum that the others compute: checked added.
            errors["noisyflow"] = errors["noisyflow, parts added"]

            # -- then time, beside one large mixture of as many pairs ------------------
            centers = rng.uniform(-1, 1, (10_000, d)).astype(args.dtype)
            points = x.reshape(-1, d)[: x.size // d * n // 10_000]
            made["dense"] = lambda points=points, centers=centers: mixture_log_density(
                points, centers, args.noise_std, max_lost_mass=0
            )
            timed = harness.time_interleaved(made, repeats=args.repeats)
            dense = len(points) * len(centers) / timed.pop("dense")["median"]
            pairs = mixtures * m * n
            for name, seconds in timed.items():
                rate = pairs / seconds["median"]
                slower = seconds["median"] / timed["noisyflow"]["median"]
                record["rows"].append(
                    {
                        "mixtures": mixtures,
                        "n": n,
                        "d": d,
                        "contestant": name,
                        "seconds": seconds,
                        "pairs_per_second": rate,
                        "times_slower": slower,
                        "of_dense": rate / dense,
                        "error": errors[name],
                    }
                )
                table.row(
                    [
                        f"{mixtures} x {n}",
                        str(d),
                        name,
                        f"{rate / 1e9:.3g} ({pairs / seconds['best'] / 1e9:.3g})",
                        f"{slower:.3g}",
                        f"{rate / dense:.0%}",
                        f"{errors[name]:.1e}",
                    ]
                )
    harness.write_json(args.json, record)


if __name__ == "__main__":
    main()
