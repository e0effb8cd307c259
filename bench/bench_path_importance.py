"""I(X;T_l) and I(Y;T_l) of the SZT networks, enclosed: interval, errors, seconds.

    python bench/bench_path_importance.py --train DIRECTORY
    python bench/bench_path_importance.py DIRECTORY [--own-noise] [--seeds 16]

--train trains 12-10-7-5-4-3-2 at noise 0.005, 0.02, 0.05 and 0.1 (a minute or two each)
and keeps the weights of eight epochs. The table has one line per noise, epoch and
layer; after it, whether data processing holds within two standard errors, and whether
the brackets are as narrow as they should be. --own-noise reads every network at the
noise it was trained at, else those of 0.005 are read at all. --seeds repeats the last
epoch: the spread of the values beside the standard error that each claims.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from noisyflow import UndersampledWarning, datasets, runtime
from noisyflow.tracking import InformationTracker, LayerInformation

EPOCHS = (1, 28, 126, 559, 1177, 2477, 5214, 9999)
# Noise: how wide I(X;T_l) may be enclosed, nats.
WIDTHS = {0.005: 0.02, 0.02: 0.05, 0.05: 0.1, 0.1: 0.2}
STANDARD_ERROR = 0.02


def train(folder: Path) -> None:
    import torch

    from noisyflow.experiments import szt, szt_network

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for noise in WIDTHS:
        config = szt.Config(noise_std=noise)
        trainer, _ = szt_network.build(
            config, datasets.split(datasets.szt(), seed=0)[0]
        )
        kept = {}
        for epoch in range(1, EPOCHS[-1] + 1):
            trainer.train_epoch()
            if epoch in EPOCHS:
                for index, layer in enumerate(trainer.network.hidden_layers):
                    kept[f"e{epoch}_w{index}"] = layer.weight.detach().numpy().copy()
                    kept[f"e{epoch}_b{index}"] = layer.bias.detach().numpy().copy()
        np.savez(folder / f"n{noise:g}_s0.npz", **kept)
        print(f"trained at noise {noise:g}", flush=True)


def network(folder: Path, trained_at: float, epoch: int, noise: float) -> Any:
    kept = np.load(folder / f"n{trained_at:g}_s0.npz")
    hidden = [
        SimpleNamespace(weight=kept[f"e{epoch}_w{i}"], bias=kept[f"e{epoch}_b{i}"])
        for i in range(5)
    ]
    return SimpleNamespace(hidden_layers=hidden, activation="tanh", noise_std=noise)


def measure(
    net: Any, labels: Any, seed: int = 0
) -> tuple[list[LayerInformation], float]:
    tracker = InformationTracker(
        *(net, datasets.szt().inputs, labels),
        standard_error=STANDARD_ERROR,
        bracket_width=WIDTHS[net.noise_std],
        seed=seed,
    )
    start = time.process_time()  # of all threads; other processes do not count
    return tracker.measure(0), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--own-noise", action="store_true")
    parser.add_argument("--no-labels", action="store_true")
    parser.add_argument("--noise", type=float, nargs="*", default=list(WIDTHS))
    parser.add_argument("--epochs", type=int, nargs="*", default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.folder)
    runtime.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore", UndersampledWarning)  # the table says it
    labels = None if arguments.no_labels else datasets.szt().labels
    measure(network(arguments.folder, 0.005, 1, 0.1), labels)  # warm up

    print("| noise, epoch | layer | I(X;T) | se | width | I(Y;T) | K | ess | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for noise, epoch in itertools.product(arguments.noise, arguments.epochs):
        trained_at = noise if arguments.own_noise else 0.005
        net = network(arguments.folder, trained_at, epoch, noise)
        layers, seconds = measure(net, labels)
        misses = []
        for layer in layers:
            x, y = layer.mutual_information, layer.label_information
            of_label = "" if y is None else f"[{y.lower:.3f}, {y.upper:.3f}]"
            print(
                f"| {noise:g}, {epoch} | {layer.layer} | [{x.lower:.3f}, {x.upper:.3f}]"
                f" | {x.standard_error:.3f} | {x.upper - x.lower:.4f} | {of_label} | "
                f"{layer.num_proposals} | {layer.effective_sample_size:.2f} / "
                f"{layer.effective_sample_size_low:.2f} | "
                f"{f'{seconds:.2f}' if layer.layer == 5 else ''} |",
                flush=True,
            )
            if x.upper - x.lower > WIDTHS[noise] or layer.missed_targets:
                misses.append(f"layer {layer.layer} missed {layer.missed_targets}")
        for before, after in itertools.pairwise(layers):
            a, b = before.mutual_information, after.mutual_information
            if b.value > a.value + 2 * math.hypot(a.standard_error, b.standard_error):
                misses.append(f"layer {after.layer} above {before.layer}")
        if misses:
            print("MISSED:", "; ".join(misses))

    for noise in arguments.noise if arguments.seeds else []:
        net = network(arguments.folder, 0.005, arguments.epochs[-1], noise)
        repeats = [measure(net, labels, seed)[0] for seed in range(arguments.seeds)]
        for at in range(5):
            found = [layers[at].mutual_information for layers in repeats]
            claimed = math.sqrt(statistics.fmean(e.standard_error**2 for e in found))
            spread = statistics.stdev(e.value for e in found)
            print(
                f"noise {noise:g}, layer {at + 1}: spread {spread:.4f} over "
                f"{arguments.seeds} seeds, claimed {claimed:.4f}, mean "
                f"{statistics.fmean(e.value for e in found):.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
