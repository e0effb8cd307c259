"""Seconds, errors and effective sample sizes for every layer of a small noisy CNN.

    python bench/bench_chain.py [--size 8] [--inputs 1000] [--seconds 60]

Random weights and inputs; a residual block, normalisation and pooling; ten labels.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch

from noisyflow import TargetWarning
from noisyflow.chain import NoisyChain, chain_information
from noisyflow.nn import GaussianNoise


class Residual(torch.nn.Module):
    """relu(t + conv(tanh(norm(conv(t)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(channels)
        self.second = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return torch.relu(t + self.second(torch.tanh(self.norm(self.first(t)))))


def network(size: int, noise_std: float) -> torch.nn.Sequential:
    stride = 2 if size >= 16 else 1
    side = size // stride // 2
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, stride=stride, padding=1),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        GaussianNoise(noise_std),
        Residual(4),
        torch.nn.MaxPool2d(2),
        GaussianNoise(noise_std),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * side**2, 16),
        torch.nn.Tanh(),
        GaussianNoise(noise_std),
        torch.nn.Linear(16, 10),
        torch.nn.Tanh(),
        GaussianNoise(noise_std),
        torch.nn.Linear(10, 10),
    ).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--noise-std", type=float, default=0.1)
    options = parser.parse_args()
    warnings.simplefilter("ignore", TargetWarning)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    chain = NoisyChain.from_module(network(options.size, options.noise_std))
    images = torch.randn(options.inputs, 1, options.size, options.size)
    labels = torch.randint(0, 10, (options.inputs,))
    print("layer seconds I(X;T) error bracket I(Y;T) ESS ESS5% K modes points skipped")
    for layer in range(1, chain.num_layers + 1):
        start = time.perf_counter()
        found = chain_information(
            chain, images, layer, labels=labels, max_seconds=options.seconds
        )
        seconds = time.perf_counter() - start
        i, y = found.mutual_information, found.label_information
        assert y is not None
        print(
            f"{layer} {seconds:.1f} {i.value:.3f} {i.standard_error:.3f} "
            f"[{i.lower:.3f}, {i.upper:.3f}] {y.value:.3f} "
            f"{found.effective_sample_size:.2f} {found.effective_sample_size_low:.2f} "
            f"{found.num_proposals} {found.num_modes} {found.num_points} "
            f"{found.num_skipped} {found.missed}",
            flush=True,
        )


if __name__ == "__main__":
    main()
