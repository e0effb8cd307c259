"""Noisy layers and networks, thin skins on torch.nn.

The model of Goldfeld et al. (2019): T_l = S_l + Z_l, where S_l is the output of hidden
layer l and Z_l ~ N(0, noise_std^2 I) is added after the activation, in every hidden
layer and never on the output. Noise is on in training mode and off in evaluation mode.
Every noise layer owns its generator, so that torch's global state neither matters nor
changes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from noisyflow._arrays import check_noise_std
from noisyflow._chain_layers import is_of_kind
from noisyflow._checks import as_int, as_real, as_seed

# Slope of leaky_relu below zero: 0.01, torch's default and that of the authors' code.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "linear": lambda values: values,
    "sigmoid": torch.sigmoid,
}

# What `add_noise` takes for an activation.
_ACTIVATION_MODULES: tuple[type[torch.nn.Module], ...] = tuple(
    getattr(torch.nn, name)
    for name in (
        *("CELU", "ELU", "GELU", "GLU", "Hardshrink", "Hardsigmoid", "Hardswish"),
        *("Hardtanh", "LeakyReLU", "LogSigmoid", "LogSoftmax", "Mish", "PReLU"),
        *("RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softmax", "Softmax2d"),
        *("Softmin", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink"),
        "Threshold",
    )
)

# 8 GiB in float32: far beyond what these networks are for.
_MOST_WEIGHTS = 2**31
# Keeps the draws of `clean_outputs` apart from the streams that a network of the same
# seed has for its weights and noise.
_CLEAN_OUTPUTS_STREAM = 1
_ADDED_NOISE_STREAM = 2


class GaussianNoise(torch.nn.Module):
    """Adds Gaussian noise in training mode, T = S + Z with Z ~ N(0, noise_std^2 I).

    Parameters
    ----------
    noise_std : float
        Standard deviation of the noise, in the units of the inputs. Positive.
        (beta in Goldfeld et al. 2019.)
    seed : int
        Starts the layer's own generator; same seed, same noise. In [0, 2**64).

    Raises
    ------
    TypeError, ValueError
        If `noise_std` is no number, not positive or out of the range of float32, or if
        `seed` is not allowed.

    Notes
    -----
    The generator lives on the device of the inputs. When that device changes, the noise
    begins anew from `seed`: a generator's state cannot move between kinds of device.

    Examples
    --------
    >>> import torch
    >>> layer = GaussianNoise(0.5, seed=0)
    >>> noise = layer(torch.zeros(10_000))
    >>> round(noise.std().item(), 1)
    0.5
    >>> layer.eval()(torch.zeros(2))
    tensor([0., 0.])
    """

    def __init__(self, noise_std: float, *, seed: int = 0) -> None:
        super().__init__()
        self._noise_std = check_noise_std(noise_std, np.dtype(np.float32))
        self.seed = as_seed(seed)
        self.generator = torch.Generator().manual_seed(self.seed)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise."""
        return self._noise_std

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs plus noise in training mode, the inputs themselves otherwise."""
        if not self.training:
            return inputs
        return self.add_noise(inputs, self.generator_on(inputs.device))

    def generator_on(self, device: torch.device) -> torch.Generator:
        """The layer's generator, begun anew if it was on another device."""
        if self.generator.device != device:
            self.generator = torch.Generator(device).manual_seed(self.seed)
        return self.generator

    def add_noise(
        self, inputs: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Inputs plus noise from `generator`, whatever the mode."""
        noise = torch.randn(
            inputs.shape, generator=generator, dtype=inputs.dtype, device=inputs.device
        )
        return torch.add(inputs, noise, alpha=self.noise_std)

    def extra_repr(self) -> str:
        """The settings, for torch's printing of modules."""
        return f"noise_std={self.noise_std}, seed={self.seed}"


class NoisyMLP(torch.nn.Module):
    """A multilayer perceptron with noise after every hidden activation.

    Hidden layers are Linear, activation, GaussianNoise; the last layer is Linear alone.

    Parameters
    ----------
    sizes : sequence of int
        Number of units per layer, from input to output; at least one hidden layer.
    activation : str
        One of `ACTIVATIONS`: tanh, relu, leaky_relu (slope 0.01), linear, sigmoid.
    noise_std : float
        Standard deviation of the noise of every hidden layer. Positive.
    seed : int
        Decides the initial weights and every noise stream; in [0, 2**64). The weights
        have the distribution of torch.nn.Linear.

    Raises
    ------
    TypeError, ValueError
        If `sizes` has fewer than three entries, one that is no integer of at least 1,
        or makes more than 2**31 weights, or if `activation`, `noise_std` or `seed` is
        not allowed.

    Examples
    --------
    >>> import torch
    >>> network = NoisyMLP([12, 10, 7, 2], noise_std=0.005, seed=0)
    >>> network(torch.zeros(5, 12)).shape
    torch.Size([5, 2])
    >>> network.num_hidden
    2
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str = "tanh",
        noise_std: float,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sizes = _checked_sizes(sizes)
        self.activation = check_activation(activation)
        self._activate = ACTIVATIONS[activation]
        init_seed, *noise_seeds = _spread_seed(as_seed(seed), len(self.sizes) - 1)
        generator = torch.Generator().manual_seed(init_seed)
        self.linears = torch.nn.ModuleList(
            _initialised_linear(num_inputs, num_outputs, generator)
            for num_inputs, num_outputs in pairwise(self.sizes)
        )
        self.noises = torch.nn.ModuleList(
            GaussianNoise(noise_std, seed=noise_seed) for noise_seed in noise_seeds
        )

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise, the same in every hidden layer."""
        found = {layer.noise_std for layer in _noise_layers(self)}
        if len(found) != 1:
            raise ValueError(
                f"the noise layers must have one noise_std, got {sorted(found)}"
            )
        return found.pop()

    @property
    def num_hidden(self) -> int:
        """Number of hidden, noisy layers, L - 1 in the paper."""
        return len(self.sizes) - 2

    @property
    def hidden_layers(self) -> list[torch.nn.Linear]:
        """The linear maps of the hidden layers, first to last."""
        return [
            layer for layer in self.linears[:-1] if isinstance(layer, torch.nn.Linear)
        ]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits of shape (m, sizes[-1]) for inputs of shape (m, sizes[0])."""
        self._check_inputs(inputs)
        hidden = inputs
        for linear, noise in zip(self.linears, self.noises, strict=False):
            hidden = noise(self._activate(linear(hidden)))
        logits: torch.Tensor = self.linears[-1](hidden)
        return logits

    @torch.no_grad()
    def clean_outputs(
        self, inputs: torch.Tensor, num_draws: int = 1, *, seed: int | None = None
    ) -> list[torch.Tensor]:
        """Samples of every S_l, the output of hidden layer l before its own noise.

        The noise of all earlier layers is on, whether the network is in training or in
        evaluation mode.

        Parameters
        ----------
        inputs : (m, sizes[0]) tensor
            On the device and of the dtype of the weights.
        num_draws : int
            Independent noise draws per input, at least 1.
        seed : int, optional
            Makes the draws reproducible and leaves the network's generators alone. By
            default the draws continue, and so advance, the network's own noise streams.

        Returns
        -------
        list of (m, num_draws, sizes[l]) tensors
            One per hidden layer. S_1 does not depend on the draw and is an expanded
            view.

        Notes
        -----
        Cost: `num_draws` forward passes, all held in memory together.
        """
        self._check_inputs(inputs)
        num_draws = as_int("num_draws", num_draws, at_least=1, at_most=2**31 - 1)
        generators: list[torch.Generator | None] = [None] * self.num_hidden
        if seed is not None:
            generators = [
                torch.Generator(inputs.device).manual_seed(stream)
                for stream in _spread_seed(
                    as_seed(seed), self.num_hidden, _CLEAN_OUTPUTS_STREAM
                )
            ]
        clean = self._activate(self.linears[0](inputs))[:, None]
        outputs = [clean.expand(-1, num_draws, -1)]
        for linear, noise, generator in zip(
            self.linears[1:-1], self.noises, generators, strict=False
        ):
            assert isinstance(noise, GaussianNoise)
            noisy = noise.add_noise(
                outputs[-1], generator or noise.generator_on(inputs.device)
            )
            outputs.append(self._activate(linear(noisy)))
        return outputs

    def _check_inputs(self, inputs: torch.Tensor) -> None:
        """Raises unless `inputs` fits the network's width, dtype and device."""
        if not isinstance(inputs, torch.Tensor):
            raise TypeError(
                "inputs must be a torch tensor, got "
                f"{type(inputs).__name__}; pass torch.as_tensor(inputs)"
            )
        weight = self.linears[0].weight
        if inputs.ndim != 2 or inputs.shape[1] != self.sizes[0]:
            raise ValueError(
                f"inputs must have shape (m, {self.sizes[0]}), "
                f"got {tuple(inputs.shape)}"
            )
        if inputs.dtype != weight.dtype:
            raise TypeError(
                f"inputs must have the weights' dtype {weight.dtype}, got "
                f"{inputs.dtype}"
            )
        if inputs.device != weight.device:
            raise ValueError(
                f"inputs must be on the weights' device {weight.device}, "
                f"got {inputs.device}"
            )


def add_noise(
    network: torch.nn.Sequential, noise_std: float, *, seed: int = 0
) -> torch.nn.Sequential:
    """A copy of a network with GaussianNoise after every hidden activation.

    Parameters
    ----------
    network : torch.nn.Sequential
        Of modules of torch.nn, Sequentials inside included. Not changed.
    noise_std : float
        Standard deviation of the noise of every hidden layer. Positive.
    seed : int
        Decides every noise stream; in [0, 2**64).

    Returns
    -------
    torch.nn.Sequential
        Every hidden activation is replaced by a Sequential of itself and its noise, so
        that all other modules keep their places and their names in `state_dict()`.

    Raises
    ------
    TypeError, ValueError
        If the network is no plain Sequential, has noise already, has no hidden
        activation, holds a module that noise may belong inside or after, which cannot
        be told, or a Sequential in two places.

    Notes
    -----
    An activation is hidden if a module with weights follows it: what comes after the
    last weights is the output, which gets no noise. Pooling and dropout that follow an
    activation act on what has noise already. For other networks place GaussianNoise by
    hand.

    Examples
    --------
    >>> network = torch.nn.Sequential(
    ...     *[torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)]
    ... )
    >>> add_noise(network, 0.1)[1][1].noise_std
    0.1
    """
    noise_std = check_noise_std(noise_std, np.dtype(np.float32))
    seed = as_seed(seed)
    if not is_of_kind(network, torch.nn.Sequential):
        kind = type(network).__name__
        if isinstance(network, torch.nn.Sequential):
            kind += " with a forward or forward hooks of its own"
        raise TypeError(f"network must be a plain torch.nn.Sequential, got {kind}")
    noisy = copy.deepcopy(network)
    places = list(_leaves(noisy, "", set()))
    for _, _, name, module in places:
        _check_leaf(name, module)
    with_weights = [
        at
        for at, (*_, module) in enumerate(places)
        if not isinstance(module, _ACTIVATION_MODULES)
        and next(module.parameters(), None) is not None
    ]
    hidden = [
        place
        for place in places[: max(with_weights, default=0)]
        if isinstance(place[-1], _ACTIVATION_MODULES)
    ]
    if not hidden:
        raise ValueError(
            "network must have an activation of torch.nn before its last module with "
            "weights, got none"
        )
    seeds = _spread_seed(seed, len(hidden), _ADDED_NOISE_STREAM)
    for (parent, key, _, module), own_seed in zip(hidden, seeds, strict=True):
        noise = GaussianNoise(noise_std, seed=own_seed).train(module.training)
        parent._modules[key] = torch.nn.Sequential(module, noise)
        parent._modules[key].training = module.training
    return noisy


def _leaves(
    parent: torch.nn.Sequential, prefix: str, seen: set[torch.nn.Module]
) -> Iterator[tuple[torch.nn.Sequential, str, str, torch.nn.Module]]:
    """Modules of nested plain Sequentials: where each is, under which key, its name.

    Not named_children(), which leaves out a module that is there for a second time.
    Raises ValueError at such a Sequential: noise in the one place would be in the
    other, too.
    """
    if parent in seen:
        raise ValueError(
            f"module {prefix.removesuffix('.')} is a Sequential that is there for a "
            "second time; place GaussianNoise by hand in this network"
        )
    seen.add(parent)
    for key, module in list(parent._modules.items()):
        assert module is not None
        if is_of_kind(module, torch.nn.Sequential):
            yield from _leaves(module, f"{prefix}{key}.", seen)
        else:
            yield parent, key, f"{prefix}{key}", module


def _check_leaf(name: str, module: torch.nn.Module) -> None:
    """Raises ValueError at a module that noise may belong inside or after."""
    kind = type(module).__name__
    if isinstance(module, GaussianNoise):
        raise ValueError(f"network must be without noise, got GaussianNoise as {name}")
    if isinstance(module, torch.nn.RNNBase):
        why = "which returns more than one tensor"
    elif next(module.children(), None) is not None:
        why = "whose activations, if it has any, are inside"
    elif not type(module).__module__.startswith("torch.nn."):
        why = "of which it cannot be told whether it is an activation"
    elif not is_of_kind(module, type(module)):
        why = "with a forward or forward hooks of its own"
    else:
        return
    raise ValueError(
        f"module {name} is a {kind}, {why}; place GaussianNoise by hand in this network"
    )


def noise_state(network: torch.nn.Module) -> list[torch.Tensor]:
    """States of the generators of all GaussianNoise layers, for checkpoints.

    Returns
    -------
    list of (k,) uint8 tensors
        On the CPU, in the order of `network.modules()`.

    Examples
    --------
    >>> import torch
    >>> layer = GaussianNoise(0.5)
    >>> kept = noise_state(layer)
    >>> first = layer(torch.zeros(3))
    >>> load_noise_state(layer, kept, torch.device("cpu"))
    >>> torch.equal(layer(torch.zeros(3)), first)
    True
    """
    return [layer.generator.get_state() for layer in _noise_layers(network)]


def load_noise_state(
    network: torch.nn.Module, states: Sequence[torch.Tensor], device: torch.device
) -> None:
    """Sets the generators of all GaussianNoise layers, so that their noise continues.

    Parameters
    ----------
    network : torch.nn.Module
        With as many noise layers as the network that `states` came from.
    states : sequence of (k,) uint8 tensors
        From `noise_state`, taken on the same kind of device.
    device : torch.device
        Where the network runs.

    Raises
    ------
    ValueError
        If the number of states is not that of the noise layers, or if a state is not
        one of such a generator. No generator is changed then.

    Examples
    --------
    >>> import torch
    >>> layer, copy_of_it = GaussianNoise(0.5, seed=1), GaussianNoise(0.5, seed=2)
    >>> load_noise_state(copy_of_it, noise_state(layer), torch.device("cpu"))
    >>> torch.equal(layer(torch.zeros(3)), copy_of_it(torch.zeros(3)))
    True
    """
    layers = _noise_layers(network)
    if not isinstance(states, Sequence):
        raise TypeError(f"states must be a sequence, got {type(states).__name__}")
    if len(states) != len(layers):
        raise ValueError(
            f"states must hold one state per noise layer ({len(layers)}), "
            f"got {len(states)}"
        )
    for index, state in enumerate(states):
        check_generator_state(f"states[{index}]", state, device)
    for layer, state in zip(layers, states, strict=True):
        layer.generator_on(device).set_state(state)


def check_generator_state(name: str, state: torch.Tensor, device: torch.device) -> None:
    """Raises ValueError unless a generator on `device` can take up this state."""
    try:
        torch.Generator(device).set_state(state)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{name} is not the state of a generator on {device}"
        ) from error


def check_activation(activation: Any) -> str:
    """The name of an activation, if it is one of `ACTIVATIONS`."""
    if not isinstance(activation, str):
        raise TypeError(f"activation must be a str, got {type(activation).__name__}")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}"
        )
    return activation


@torch.no_grad()
def orthonormality_step(layers: Sequence[torch.nn.Linear], rate: float) -> None:
    """Moves weights towards orthonormal rows, W <- W - rate (W W' W - W), in place.

    Parameters
    ----------
    layers : sequence of torch.nn.Linear
        Their biases are left alone.
    rate : float
        Step size, positive; 1e-4 is the default of the authors' code.

    Notes
    -----
    One gradient step on rate/4 |W W' - I|^2 per call. Where a layer has more outputs
    than inputs, the columns become orthonormal instead.

    Source: Cisse et al. (2017), "Parseval Networks", as used by Goldfeld et al. (2019).

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(3, 2)
    >>> for _ in range(500):
    ...     orthonormality_step([layer], rate=0.1)
    >>> torch.allclose(layer.weight @ layer.weight.T, torch.eye(2), atol=1e-4)
    True
    """
    rate = as_real("rate", rate)
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be 0 or more and below 1, got {rate}")
    if not isinstance(layers, Sequence) or not all(
        isinstance(getattr(layer, "weight", None), torch.Tensor) for layer in layers
    ):
        raise TypeError(
            f"layers must be a sequence of torch.nn.Linear, got {type(layers).__name__}"
        )
    for layer in layers:
        weight = layer.weight
        weight.sub_(weight @ weight.T @ weight - weight, alpha=rate)


def _noise_layers(network: torch.nn.Module) -> list[GaussianNoise]:
    """All noise layers of a network, in the order of its modules."""
    if not isinstance(network, torch.nn.Module):
        raise TypeError(
            f"network must be a torch.nn.Module, got {type(network).__name__}"
        )
    return [module for module in network.modules() if isinstance(module, GaussianNoise)]


def _checked_sizes(sizes: Any) -> tuple[int, ...]:
    """Units per layer as plain integers."""
    if isinstance(sizes, str):
        raise TypeError("sizes must be a sequence of integers, got str")
    try:
        entries = tuple(sizes)
    except TypeError:
        raise TypeError(
            f"sizes must be a sequence of integers, got {type(sizes).__name__}"
        ) from None
    whole = tuple(
        as_int(f"sizes[{index}]", size, at_least=1, at_most=_MOST_WEIGHTS)
        for index, size in enumerate(entries)
    )
    if len(whole) < 3:
        raise ValueError(
            "sizes must name an input, at least one hidden and an output layer, "
            f"got {whole}"
        )
    num_weights = sum((width + 1) * after for width, after in pairwise(whole))
    if num_weights > _MOST_WEIGHTS:
        raise ValueError(
            f"sizes must make at most {_MOST_WEIGHTS} weights, got {num_weights}"
        )
    return whole


def _spread_seed(seed: int, count: int, *stream: int) -> list[int]:
    """Seeds of independent streams; neighbouring seeds give unrelated ones."""
    sequence = np.random.SeedSequence(seed, spawn_key=stream)
    words = sequence.generate_state(count, np.uint64)
    return [int(word) for word in words]


def _initialised_linear(
    num_inputs: int, num_outputs: int, generator: torch.Generator
) -> torch.nn.Linear:
    """torch.nn.Linear with torch's default initialisation drawn from `generator`."""
    layer = torch.nn.Linear(num_inputs, num_outputs, device="meta").to_empty(
        device="cpu"
    )
    torch.nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(num_inputs)
    torch.nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer
