"""Gradients of the log-density beside the log-density and torch.compile, in one run.

    python bench/bench_gradients.py                      # float32, all: 5 minutes
    python bench/bench_gradients.py --dims 3 10 --dtype float64 --no-torch

Two tables. Gradients alone, from a saved log-density, as shares of the log-density's
pairs per second: with respect to points, and to points, centers, weights and noise_std.
Then a step of training: log-density and all four gradients, beside torch.compile's
forward and backward of the same formula by direct differences, at the best number of
points at a time of a trial. Errors come first: each result against float64.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import harness

# Shares of the log-density's rate that the gradient of points is held to, and how many
# times as fast as torch.compile a step is: float32, one thread, AVX-512.
BARS = {
    1: (0.60, 4.0),
    2: (0.60, 4.0),
    3: (0.60, 4.0),
    5: (0.40, 4.0),
    10: (0.40, 4.0),
    20: (0.40, 4.0),
    64: (None, 4.0),
}
_OURS, _PEER = "noisyflow", "torch.compile"
_CHECKED = 64  # points
# How the formula is written for torch.compile, and points at a time, of which a trial
# takes the best. Unrolled it is one loop with the exponentials, but compiles slowly for
# many dimensions.
_TRIED = [(True, 256), (True, 1024), (False, 64), (False, 256)]
_MOST_UNROLLED = 20

# Points and gains to gradients of points, centers, weights and noise_std.
Step = Callable[[np.ndarray, np.ndarray], tuple[Any, Any, Any, Any]]


class Problem:
    """n centers and m points around them, with gains."""

    def __init__(self, m: int, n: int, d: int, noise_std: float, dtype: str) -> None:
        rng = np.random.default_rng(0)
        self.noise_std = noise_std
        self.centers = rng.normal(size=(n, d)).astype(dtype)
        noise = noise_std * rng.standard_normal((m, d))
        self.points = (self.centers[rng.integers(0, n, m)] + noise).astype(dtype)
        self.gains = rng.normal(size=m).astype(dtype)
        self.weights = np.full(n, 1 / n, dtype)

    def density(self, x: np.ndarray, threads: int) -> np.ndarray:
        from noisyflow import _core

        return _core.log_density(x, self.centers, self.noise_std, self.weights, threads)

    def gradients(
        self,
        x: np.ndarray,
        gains: np.ndarray,
        saved: np.ndarray,
        threads: int,
        *,
        all_four: bool = True,
    ) -> tuple[Any, Any, Any, Any]:
        from noisyflow import _core

        return _core.log_density_gradients(
            *(x, self.centers, self.noise_std, self.weights, saved, gains),
            *(True, all_four, all_four, all_four, 0.0, threads),
        )

    def exact(self, x: np.ndarray, gains: np.ndarray) -> tuple[Any, Any, Any, Any]:
        from noisyflow import _reference

        return _reference.log_density_gradients(
            x, self.centers, self.noise_std, self.weights, gains, gains
        )


def noisyflow_step(problem: Problem, threads: int) -> Step:
    def step(x: np.ndarray, gains: np.ndarray) -> tuple[Any, Any, Any, Any]:
        return problem.gradients(x, gains, problem.density(x, threads), threads)

    return step


def torch_step(problem: Problem, is_unrolled: bool, chunk: int) -> Step:
    """Inductor's forward and backward, `chunk` points at a time."""
    import torch

    d = problem.centers.shape[1]
    centers = torch.from_numpy(problem.centers).requires_grad_()
    weights = torch.from_numpy(problem.weights).requires_grad_()
    noise_std = torch.tensor(problem.noise_std, dtype=centers.dtype).requires_grad_()
    torch._dynamo.reset()

    def formula(points, centers, weights, noise_std):
        if is_unrolled:
            squares = sum(
                (points[:, k : k + 1] - centers[:, k][None, :]).square()
                for k in range(d)
            )
        else:
            squares = (points[:, None, :] - centers[None, :, :]).square().sum(-1)
        terms = torch.log(weights) - squares / (2 * noise_std * noise_std)
        return torch.logsumexp(terms, 1) - d * torch.log(noise_std)

    compiled = torch.compile(formula, dynamic=False)

    def step(x: np.ndarray, gains: np.ndarray) -> tuple[Any, Any, Any, Any]:
        for leaf in (centers, weights, noise_std):
            leaf.grad = None
        padding = -len(x) % chunk
        points = torch.from_numpy(np.concatenate([x, np.repeat(x[-1:], padding, 0)]))
        points.requires_grad_()
        of_output = torch.from_numpy(
            np.concatenate([gains, gains[:1].repeat(padding) * 0])
        )
        for some, g in zip(points.split(chunk), of_output.split(chunk), strict=True):
            compiled(some, centers, weights, noise_std).backward(g)
        return (
            points.grad.numpy()[: len(x)],
            centers.grad.numpy(),
            weights.grad.numpy(),
            float(noise_std.grad),
        )

    return step


def errors(problem: Problem, step: Step) -> list[float]:
    """Of each gradient's largest entry, the largest error, as a share."""
    x, gains = problem.points[:_CHECKED], problem.gains[:_CHECKED]
    found, exact = step(x, gains), problem.exact(x, gains)
    return [
        float(np.abs(ours - truth).max() / np.abs(truth).max())
        for ours, truth in zip(found, exact, strict=True)
    ]


def best_way(problem: Problem) -> tuple[bool, int]:
    """Of a trial on few points."""
    seconds = {}
    for way in _TRIED:
        if way[0] and problem.centers.shape[1] > _MOST_UNROLLED:
            continue
        if way[1] * problem.centers.size > 2**30 and way[1] > 64:
            continue  # intermediates of gigabytes
        step = torch_step(problem, *way)
        x, gains = problem.points[:1024], problem.gains[:1024]
        step(x[: way[1]], gains[: way[1]])
        seconds[way] = min(harness.seconds_of(partial(step, x, gains)) for _ in "12")
    return min(seconds, key=lambda way: seconds[way])


def measure(d: int, args: Any, *, has_torch: bool) -> dict[str, Any]:
    """Errors first, then times in turns."""
    scale = d / 64 if d > 64 else 1  # fewer pairs where each takes long
    m = max(1024, int(args.points / scale))
    problem = Problem(m, args.centers, d, args.noise_std, args.dtype)
    x, gains = problem.points, problem.gains
    ours = noisyflow_step(problem, args.threads)
    row: dict[str, Any] = {
        "d": d,
        "points": m,
        "errors": {_OURS: errors(problem, ours)},
    }
    saved = problem.density(x, args.threads)
    of_all = partial(problem.gradients, x, gains, saved, args.threads)
    calls: dict[str, Callable[[], Any]] = {
        "log-density": partial(problem.density, x, args.threads),
        "points": partial(of_all, all_four=False),
        "all four": of_all,
        "step": partial(ours, x, gains),
    }
    fewer = min(m, args.torch_points)
    if has_torch:
        row["way"] = way = best_way(problem)
        row["errors"][_PEER] = errors(problem, torch_step(problem, way[0], _CHECKED))
        peer = torch_step(problem, *way)
        calls[_PEER] = partial(peer, x[:fewer], gains[:fewer])
    timed = harness.time_interleaved(calls, repeats=args.repeats, warmups=1)
    pairs = {name: (fewer if name == _PEER else m) * args.centers for name in calls}
    row["seconds"] = timed
    row["rates"] = {name: pairs[name] / timed[name]["median"] for name in calls}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dims", type=int, nargs="+", default=[1, 2, 3, 5, 10, 20, 64, 256, 784]
    )
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--centers", type=int, default=10_000)
    parser.add_argument(
        "--torch-points", type=int, default=2048, help="of torch.compile"
    )
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--noise-std", type=float, default=1.0)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    harness.add_timing_arguments(parser)
    harness.add_output_arguments(parser)
    args = parser.parse_args()
    harness.use_cpus(args.threads)
    harness.use_clock(args)
    from noisyflow import runtime

    has_torch = not args.no_torch and importlib.util.find_spec("torch") is not None
    if has_torch:
        import torch

        torch.set_num_threads(args.threads)
        torch.set_flush_denormal(True)  # or terms near zero take most of its time
    target = runtime.cpu_target()
    record: dict[str, Any] = {
        "machine": harness.machine(),
        "target": target,
        "dtype": args.dtype,
        "threads": args.threads,
        "rows": [],
    }
    print(f"{record['machine']}\n{target}, {args.dtype}, {args.threads} thread(s)\n")
    table = harness.Table(
        [
            ("d", 4),
            ("log-density, G pairs/s", 22),
            ("points", 7),
            ("bar", 5),
            ("all four", 8),
            ("step, G pairs/s", 15),
            (_PEER, 13),
            ("times", 6),
            ("bar", 4),
            ("errors: points, centers, weights, noise_std", 44),
            ("of the peer", 36),
        ],
        markdown=args.markdown,
    )
    for d in args.dims:
        row = measure(d, args, has_torch=has_torch)
        record["rows"].append(row)
        rates = row["rates"]
        least, times = BARS.get(d, (None, None))
        if args.dtype != "float32" or target != "avx512":
            least = times = None
        whole = rates["log-density"]
        table.row(
            [
                str(d),
                f"{whole / 1e9:.3g}",
                f"{rates['points'] / whole:.0%}",
                f"{least:.0%}" if least else "",
                f"{rates['all four'] / whole:.0%}",
                f"{rates['step'] / 1e9:.3g}",
                f"{rates[_PEER] / 1e9:.3g}" if has_torch else "",
                f"{rates['step'] / rates[_PEER]:.1f}" if has_torch else "",
                f"{times:g}" if times and has_torch else "",
                " ".join(f"{error:.1e}" for error in row["errors"][_OURS]),
                " ".join(f"{e:.1e}" for e in row["errors"].get(_PEER, [])),
            ]
        )
    harness.write_json(args.json, record)


if __name__ == "__main__":
    main()
