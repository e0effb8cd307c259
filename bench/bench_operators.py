"""What a call costs beside the sums: microseconds of tiny calls, part by part.

    python bench/bench_operators.py

Four points, eight centers, three dimensions, float32, one thread: the kernel itself
takes well under a microsecond. Bar: 25 microseconds without gradients.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np

import harness

_BAR = 25.0


def textbook(points: Any, centers: Any, noise_std: float) -> Any:
    import torch

    (n, d) = centers.shape
    squares = (points[:, None, :] - centers).square().sum(2)
    constant = math.log(n) + 0.5 * d * math.log(2 * math.pi * noise_std**2)
    return torch.logsumexp(squares / (-2 * noise_std**2), 1) - constant


def calls(m: int, n: int, d: int) -> dict[str, Callable[[], Any]]:
    """Contestants by name; the parts of a call follow it."""
    import torch

    from noisyflow import _core, mixture_log_density, operators

    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(k, d)).astype(np.float32) for k in (m, n))
    points, centers = torch.from_numpy(x), torch.from_numpy(y)
    tracked = points.clone().requires_grad_()
    arguments = (points, centers, 0.5, None, None)

    def inference() -> None:
        with torch.inference_mode():
            mixture_log_density(points, centers, 0.5)

    def trained(function: Callable[..., Any]) -> Callable[[], None]:
        return lambda: function(tracked, centers, 0.5).sum().backward()

    def hessian_product() -> None:
        result = mixture_log_density(tracked, centers, 0.5).sum()
        (grad,) = torch.autograd.grad(result, tracked, create_graph=True)
        torch.autograd.grad(grad.sum(), tracked)

    return {
        "tensors": lambda: mixture_log_density(points, centers, 0.5),
        "  the operator": lambda: operators._log_density(*arguments),
        "  its kernel in Python": lambda: operators._evaluate(*arguments),
        "  its kernel in C++": lambda: _core.log_density(x, y, 0.5, None, 1),
        "tensors, inference mode": inference,
        "arrays": lambda: mixture_log_density(x, y, 0.5),
        "textbook in torch": lambda: textbook(points, centers, 0.5),
        "tensors, recorded": lambda: mixture_log_density(tracked, centers, 0.5),
        "tensors, forward and backward": trained(mixture_log_density),
        "textbook, forward and backward": trained(textbook),
        "tensors, Hessian times a vector": hessian_product,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--calls", type=int, default=500, help="of one repeat")
    harness.add_timing_arguments(parser)
    harness.add_output_arguments(parser)
    args = parser.parse_args()
    harness.use_cpus(args.threads)
    harness.use_clock(args)
    import torch

    from noisyflow import mixture_log_density, runtime

    torch.set_num_threads(args.threads)
    runtime.set_num_threads(args.threads)
    (m, n, d) = (4, 8, 3)
    points, centers = torch.randn(m, d), torch.randn(n, d)
    exact = harness.log_density(points.numpy(), centers.numpy(), 0.5)
    error = harness.error_against(
        mixture_log_density(points, centers, 0.5).numpy(), exact
    )
    machine = harness.machine()
    print(f"{machine}\n{runtime.cpu_target()}, error {error:.1g} nats\n")

    def repeated(call: Callable[[], Any]) -> Callable[[], None]:
        def many() -> None:
            for _ in range(args.calls):
                call()

        return many

    times = harness.time_interleaved(
        {name: repeated(call) for name, call in calls(m, n, d).items()},
        repeats=args.repeats,
    )
    table = harness.Table(
        [("a call", 32), ("median, us", 10), ("best", 6), ("worst", 6)],
        markdown=args.markdown,
    )
    rows = []
    for name, seconds in times.items():
        each = {key: value / args.calls * 1e6 for key, value in seconds.items()}
        rows.append({"call": name, **each})
        table.row([name, *(f"{each[key]:.1f}" for key in ("median", "best", "worst"))])
    median = rows[0]["median"]
    print(
        f"\ntensors without gradients: {median:.1f} us, bar {_BAR:g}: "
        f"{'held' if median <= _BAR else 'MISSED'}"
    )
    harness.write_json(args.json, {"machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
