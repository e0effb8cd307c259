"""How much a gradient of mutual_information differs from seed to seed, and its time.

    python bench/bench_gradient_spread.py

Samples are outputs of four tanh units. spread: root mean square distance of the
gradient of all samples from its mean over the seeds, in parts of the mean's length.
along: the same of its sum along one direction, the samples themselves. pairs: those
counted, value and gradient. The time of few pairs of few samples is what a call takes
in any case.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch

from noisyflow import UndersampledWarning, mutual_information


def measure(
    samples: torch.Tensor, noise_std: float, max_pairs: int | None, num_seeds: int
) -> tuple[float, float, int, float]:
    """Spread, spread along the samples, pairs of a call, its median seconds."""
    gradients, seconds, num_pairs = [], [], 0
    for seed in range(num_seeds):
        leaf = samples.clone().requires_grad_()
        start = time.perf_counter()
        estimate = mutual_information(
            leaf[:, None], noise_std, max_pairs=max_pairs, seed=seed
        )
        torch.autograd.backward(estimate.value)  # type: ignore[arg-type]
        seconds.append(time.perf_counter() - start)
        assert leaf.grad is not None
        gradients.append(leaf.grad.numpy().ravel())
        num_pairs = estimate.num_pairs
    found = np.array(gradients)
    mean = found.mean(axis=0)
    spread = np.sqrt(found.var(axis=0, ddof=1).sum()) / np.linalg.norm(mean)
    along = found @ samples.numpy().ravel()
    relative = along.std(ddof=1) / abs(along.mean())
    return float(spread), float(relative), num_pairs, float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12)
    num_seeds = parser.parse_args().seeds
    warnings.simplefilter("ignore", UndersampledWarning)
    generator = torch.Generator().manual_seed(0)
    print("| n | max_pairs | spread | along | pairs | ms |")
    print("|---|---|---|---|---|---|")
    for n, budgets in ((8, (256,)), (256, (8 * 256, 32 * 256, 128 * 256, None))):
        noise = torch.randn(n, 4, generator=generator, dtype=torch.float64)
        samples = torch.tanh(noise)
        for budget in budgets:
            most = None if budget is None else budget * n
            (spread, along, pairs, seconds) = measure(samples, 0.2, most, num_seeds)
            name = "default" if budget is None else f"{budget / n:g} n^2"
            print(
                f"| {n} | {name} | {spread:.2f} | {along:.4f} | {pairs / n**2:.0f} n^2 "
                f"| {1000 * seconds:.1f} |"
            )


if __name__ == "__main__":
    main()
