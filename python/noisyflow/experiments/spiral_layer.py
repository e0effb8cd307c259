"""The third layer of a noisy network that tells the arms of a spiral apart.

Its entropy has no closed form. It is found twice: from many samples, and from the known
weights by path importance sampling, which shares no line with the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import datasets
from noisyflow.estimate import Estimate
from noisyflow.experiments.known_sources import Source
from noisyflow.importance import NoisyLayers, path_log_densities
from noisyflow.nn import NoisyMLP
from noisyflow.runs import RunError
from noisyflow.training import Trainer, evaluate, set_parameters

# arXiv 1810.11589, figure 6: tanh layers of 8, 9 and 10 units, trained to 98 %. The
# paper gives neither optimiser nor rate.
SIZES = (2, 8, 9, 10, 3)
NOISE_STD = 0.2
_ACCURACY = 0.98
_MOST_PASSES = 3000
_PASSES_BETWEEN_LOOKS = 10

_STREAM = 0x73706972  # "spir": apart from samples drawn elsewhere with the same seed
# Reference: independent draws per input, and points of the two-sided check.
_REFERENCE_DRAWS = 500
_CHECK_POINTS = 12_000
_CHECK_PROPOSALS = 64


def prepare(
    seed: int,
    estimate: Callable[[Any, float, int], Estimate],
    *,
    device: str = "cpu",
) -> dict[str, NDArray[Any]]:
    """Trains the network and finds what the entropy of its third layer is.

    Parameters
    ----------
    seed : int
        Of the spiral, the network, its training and the reference.
    estimate : callable
        `estimate(samples, noise_std, seed)`, our entropy, of a tensor on the device.
    device : str
        Where the network is trained.

    Returns
    -------
    dict of arrays
        `spiral.parameters`, `.inputs`, `.passes`, `.accuracy` of the network;
        `.reference` [entropy, standard error], the middle of the bracket from many
        samples; `.check` [low, high, standard error], an enclosure found another way.

    Raises
    ------
    RunError
        If the network does not learn.
    """
    data = datasets.spiral(seed=seed)
    network = NoisyMLP(SIZES, noise_std=NOISE_STD, seed=seed)
    trainer = Trainer(
        network,
        data.inputs,
        data.labels,
        learning_rate=0.02,
        batch_size=50,
        seed=seed,
        device=device,
    )
    accuracy = 0.0
    while accuracy < _ACCURACY:
        if trainer.epochs_done >= _MOST_PASSES:
            raise RunError(
                f"the spiral network reached an accuracy of {accuracy:.3f} only; "
                "another seed may help"
            )
        for _ in range(_PASSES_BETWEEN_LOOKS):
            trainer.train_epoch()
        accuracy = evaluate(network, data.inputs, data.labels).accuracy
    outputs = network.clean_outputs(
        torch.as_tensor(data.inputs, device=device), _REFERENCE_DRAWS, seed=seed
    )
    samples = outputs[2].reshape(-1, SIZES[3])
    reference = estimate(samples, NOISE_STD, seed)
    return {
        "spiral.parameters": trainer.state()["parameters"].numpy(),
        "spiral.passes": np.array(trainer.epochs_done),
        "spiral.accuracy": np.array(accuracy),
        "spiral.inputs": data.inputs,
        "spiral.reference": np.array([reference.midpoint, reference.standard_error]),
        "spiral.check": _enclosed(network, data.inputs, seed),
    }


def _enclosed(
    network: NoisyMLP, inputs: NDArray[np.float32], seed: int
) -> NDArray[np.float64]:
    """h of the third layer from the known network: [low, high, standard error].

    A second way that shares no line with the reference: points t_3 along noise paths
    and path importance sampling of their log-density, averaged.
    """
    layers = NoisyLayers(
        [layer.weight.detach() for layer in network.hidden_layers],
        [layer.bias.detach() for layer in network.hidden_layers],
        network.activation,
        network.noise_std,
    )
    generator = np.random.default_rng(
        np.random.SeedSequence(seed, spawn_key=(_STREAM,))
    )
    points = inputs.astype(np.float64)
    own = np.arange(_CHECK_POINTS) % len(points)
    noise = generator.standard_normal((len(own), sum(SIZES[1:4])))
    clean = layers.clean_outputs(points[own], noise)[2]
    own_noise = noise[:, -SIZES[3] :]
    sides = path_log_densities(
        layers,
        3,
        points,
        clean + NOISE_STD * own_noise,
        own,
        np.ascontiguousarray(noise[:, : -SIZES[3]]),
        np.tile(np.array([0, len(points)]), (len(own), 1))[None],
        num_proposals=_CHECK_PROPOSALS,
        generator=generator,
    )
    # The known mean of |z|^2 takes part of the noise away.
    control = 0.5 * (own_noise**2).sum(axis=1) - 0.5 * own_noise.shape[1]
    ends, errors = [], []
    for side in (-sides.upper[0], -sides.lower[0]):
        slope = np.cov(side, control)[0, 1] / control.var(ddof=1)
        rest = side - slope * control
        ends.append(rest.mean())
        errors.append(rest.std(ddof=1) / math.sqrt(len(rest)))
    return np.array([*ends, max(errors)])


def trained(prepared: dict[str, NDArray[Any]]) -> NoisyMLP:
    """The network, as it was trained.

    Parameters
    ----------
    prepared : dict of arrays
        As `prepare` returned it.

    Returns
    -------
    NoisyMLP
    """
    network = NoisyMLP(SIZES, noise_std=NOISE_STD)
    set_parameters(network, prepared["spiral.parameters"])
    return network


def source(prepared: dict[str, NDArray[Any]]) -> Source:
    """The third layer of the trained network, X uniform over the spiral's points.

    Parameters
    ----------
    prepared : dict of arrays
        As `prepare` returned it.

    Returns
    -------
    Source
        Its entropy is the reference.
    """
    network = trained(prepared)
    inputs = torch.from_numpy(prepared["spiral.inputs"].copy())

    def sample(generator: np.random.Generator, n: int) -> NDArray[np.float32]:
        chosen = torch.from_numpy(generator.integers(0, len(inputs), n))
        seed = int(generator.integers(2**63))
        outputs = network.clean_outputs(inputs[chosen], seed=seed)
        return np.asarray(outputs[2][:, 0].numpy(), np.float32)

    exact = float(prepared["spiral.reference"][0])
    return Source("spiral", SIZES[3], NOISE_STD, exact, sample)
