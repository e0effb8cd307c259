"""Your own network: an ordinary torch.nn.Sequential, made noisy, trained and tracked.

    python examples/own_network.py
    python examples/own_network.py --data mine.npz     # arrays `inputs` and `labels`

Change `build_network` to yours. Prints I(X;T_l), what every hidden layer tells of the
input, and I(Y;T_l), of the label, while the network learns; saves a figure.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch

from noisyflow import plotting
from noisyflow.chain import NoisyChain
from noisyflow.nn import add_noise
from noisyflow.tracking import InformationTracker, LayerInformation


def build_network(num_inputs: int, num_classes: int) -> torch.nn.Sequential:
    """A network like any other: nothing in it knows of noise."""
    return torch.nn.Sequential(
        torch.nn.Linear(num_inputs, 8),
        torch.nn.Tanh(),
        torch.nn.Linear(8, 3),
        torch.nn.Tanh(),
        torch.nn.Linear(3, num_classes),
    )


def load_data(path: Path | None, num_inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (m, d) and labels (m,), from 0, of a file; without one, two noisy rings.

    Raises ValueError where the file holds something else.
    """
    if path is not None:
        try:
            with np.load(path) as arrays:
                inputs, labels = arrays["inputs"].astype(np.float32), arrays["labels"]
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
        except Exception as error:  # whatever a file of another kind leads to
            raise ValueError(
                f"{path} must be an .npz file with the arrays inputs and labels"
            ) from error
        if inputs.ndim != 2:
            raise ValueError(f"inputs must have shape (m, d), got {inputs.shape}")
        if labels.dtype.kind not in "iubU":
            raise ValueError(
                f"labels must be integers, booleans or strings, got {labels.dtype}"
            )
        return inputs, np.unique(labels, return_inverse=True)[1]
    rng = np.random.default_rng(0)
    labels = np.arange(num_inputs) % 2
    angles = rng.uniform(0, 2 * np.pi, num_inputs)
    radii = 0.5 + labels + 0.1 * rng.standard_normal(num_inputs)
    inputs = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return inputs.astype(np.float32), labels


def _positive(text: str) -> int:
    """A number of things that there must be at least one of."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, metavar="FILE.npz")
    parser.add_argument("--inputs", type=_positive, default=100, help="without --data")
    parser.add_argument("--noise-std", type=float, default=0.1)
    parser.add_argument("--epochs", type=_positive, default=300)
    parser.add_argument("--measurements", type=_positive, default=5)
    parser.add_argument("--out", type=Path, default=Path("own_network.png"))
    options = parser.parse_args()

    torch.set_num_threads(1)  # small networks are faster on one
    torch.manual_seed(0)
    try:
        inputs, labels = load_data(options.data, options.inputs)
        network = build_network(inputs.shape[1], len(np.unique(labels)))

        # The three lines that make it a subject of study: noise after every hidden
        # activation, its layers as a chain (which shares the weights), and a tracker.
        network = add_noise(network, options.noise_std)
        chain = NoisyChain.from_module(network)
        tracker = InformationTracker(chain, inputs, labels)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")

    print("epoch    loss   I(X;T_l), I(Y;T_l) in nats, ± one standard error")
    epochs, found = [], []
    logged = sorted(
        {round(e) for e in np.geomspace(1, options.epochs, options.measurements)}
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    features, targets = torch.from_numpy(inputs), torch.from_numpy(labels)
    for epoch in range(1, options.epochs + 1):
        for batch in torch.randperm(len(features)).split(25):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                network(features[batch]), targets[batch]
            )
            loss.backward()
            optimizer.step()
        if epoch in logged:
            network.eval()  # for layers like dropout; the chain's noise stays on
            layers = tracker.measure(epoch)
            network.train()
            epochs.append(epoch)
            found.append(layers)
            print(
                f"{epoch:5d}{loss.item():8.3f}   " + "   ".join(map(in_words, layers))
            )

    save_figure(options.out, np.array(epochs), found, math.log(len(inputs)))
    print(f"figure in {options.out}")


def in_words(layer: LayerInformation) -> str:
    """Both kinds of information of a layer."""
    estimates = (layer.mutual_information, layer.label_information)
    return ", ".join(f"{e.value:.2f} ± {e.standard_error:.2f}" for e in estimates if e)


def save_figure(
    path: Path,
    epochs: np.ndarray,
    found: list[list[LayerInformation]],
    ceiling: float,
) -> None:
    """I(X;T_l) over epochs; bands: bias bracket and two standard errors."""
    estimates = [[layer.mutual_information for layer in layers] for layers in found]
    value, low, high = (
        np.array([[read(e) for e in row] for row in estimates])
        for read in (
            lambda e: e.value,
            lambda e: e.lower - 2 * e.standard_error,
            lambda e: e.upper + 2 * e.standard_error,
        )
    )
    figure, (axes,) = plotting.new_figure(7, 4.6)
    plotting.information(
        axes, epochs, value, low, high, ceiling=ceiling, ceiling_name="log m"
    )
    axes.set_ylabel("I(X;T), in nats", fontsize=13)
    plotting.legend_of_layers(axes)
    path.write_bytes(plotting.png(figure))


if __name__ == "__main__":
    main()
