"""The information in a layer of any known network, enclosed from both sides.

A chain is layers S_l = f_l(T_{l-1}) with Gaussian noise between them, T_l = S_l + Z_l:
convolutions, normalisation, pooling, residual blocks, or any function of a batch. What
`importance` does for multilayer perceptrons in a compiled kernel is done here with
derivatives from torch. The steps are in `_chain_layers` (the network),
`_chain_proposals` (noise paths), `_chain_brackets` (both sides at a point) and
`_chain_search` (rounds of points).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import _arrays, _checks
from noisyflow._chain_brackets import Chain
from noisyflow._chain_layers import ChainLayers, is_of_kind
from noisyflow._chain_proposals import Tail
from noisyflow._chain_search import Average, Search, Targets
from noisyflow.estimate import Estimate, TargetWarning
from noisyflow.nn import GaussianNoise, NoisyMLP
from noisyflow.tracking import LayerInformation

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]
Method = Literal["known-mixture", "path-importance", "prior-proposals"]

_STREAM = 0x636861696E  # "chain": sets this use of a seed apart from all others
_MOST_PROPOSALS = 2**16  # more than any bracket took; memory grows with them


class NotDifferentiableWarning(UserWarning):
    """A layer has no usable derivative, and a slower method took its place."""


class NoisyChain:
    """Layers with Gaussian noise after each, T_l = f_l(T_{l-1}) + Z_l.

    Parameters
    ----------
    layers : sequence of callables
        f_1 .. f_L, each a torch module or a function, batch to batch: (B, ...) to
        (B, ...), every input on its own, without randomness. Modules must be in
        evaluation mode where that makes a difference (normalisation, dropout). They
        may be on any device and of any precision: they are read at every measurement
        as copies in float64 on the CPU, and never changed. Functions get float64
        tensors.
    noise_std : float or sequence of float
        Standard deviation of the noise, one for all layers or one for each. Positive.
        (beta in Goldfeld et al. 2019.)

    Raises
    ------
    TypeError, ValueError
        If there is no layer, one is not callable, or `noise_std` is not allowed.

    Examples
    --------
    >>> from noisyflow.nn import GaussianNoise
    >>> _ = torch.manual_seed(0)
    >>> network = torch.nn.Sequential(
    ...     *[torch.nn.Conv2d(1, 2, 3), torch.nn.Tanh(), GaussianNoise(0.1)],
    ...     *[torch.nn.Flatten(), torch.nn.Linear(8, 2), torch.nn.Tanh()],
    ...     *[GaussianNoise(0.1), torch.nn.Linear(2, 3)],  # no noise on the output
    ... )
    >>> chain = NoisyChain.from_module(network)
    >>> images = torch.randn(20, 1, 4, 4)
    >>> second = chain_information(chain, images, 2, standard_error=0.05)
    >>> second.method, second.mutual_information.stopped_by
    ('path-importance', 'target')
    >>> low, high = second.mutual_information.lower, second.mutual_information.upper
    >>> bool(0 < low < high < math.log(20))
    True
    """

    def __init__(
        self, layers: Sequence[Callable[..., Any]], noise_std: float | Sequence[float]
    ) -> None:
        if not np.iterable(layers):
            raise TypeError(
                f"layers must be a sequence, got {type(layers).__name__}; pass [layer] "
                "or split a Sequential by NoisyChain.from_module"
            )
        self.layers = list(layers)
        if not self.layers:
            raise ValueError("layers must hold at least one layer, got none")
        for number, layer in enumerate(self.layers, 1):
            if not callable(layer):
                raise TypeError(
                    f"layer {number} must be a module or a function of a batch, got "
                    f"{type(layer).__name__}"
                )
        if isinstance(noise_std, Sequence) or (
            isinstance(noise_std, np.ndarray) and noise_std.ndim
        ):
            if len(noise_std) != len(self.layers):
                raise ValueError(
                    f"noise_std must be a number or hold one for each of the "
                    f"{len(self.layers)} layers, got {len(noise_std)}"
                )
            self.noise_stds = [_arrays.check_noise_std(value) for value in noise_std]
        else:
            value = _arrays.check_noise_std(noise_std)
            self.noise_stds = [value] * len(self.layers)

    @classmethod
    def from_module(cls, network: torch.nn.Module) -> NoisyChain:
        """The chain of a NoisyMLP, or of a Sequential split at its GaussianNoise.

        What follows the last GaussianNoise has no noise and is left out. Weights are
        shared with the network. A Sequential inside with a forward or with forward
        hooks of its own stays whole; the network itself must have neither.

        Raises
        ------
        TypeError, ValueError
            If the network is of another kind, has no noise, or has noise where it
            cannot be split.
        """
        if isinstance(network, NoisyMLP):
            layers: list[Callable[..., Any]] = [
                torch.nn.Sequential(linear, _Activation(network))
                for linear in network.hidden_layers
            ]
            return cls(layers, network.noise_std)
        if not isinstance(network, torch.nn.Sequential):
            raise TypeError(
                "network must be a torch.nn.Sequential or a NoisyMLP, got "
                f"{type(network).__name__}; pass its layers to NoisyChain"
            )
        if not is_of_kind(network, torch.nn.Sequential):
            raise TypeError(
                "network must do what its modules do one after the other, got "
                f"{type(network).__name__} with a forward or forward hooks of its own; "
                "pass its layers to NoisyChain"
            )
        found: list[Callable[..., Any]] = []
        noise_stds: list[float] = []
        pieces: list[torch.nn.Module] = []
        for module in _flattened(network):
            if is_of_kind(module, GaussianNoise):
                found.append(torch.nn.Sequential(*pieces))
                noise_stds.append(module.noise_std)
                pieces = []
            elif any(isinstance(part, GaussianNoise) for part in module.modules()):
                place = f"inside a {type(module).__name__}"
                if isinstance(module, GaussianNoise):
                    place = "with a forward or forward hooks of its own"
                raise ValueError(
                    f"GaussianNoise {place} cannot be separated from it; pass the "
                    "layers to NoisyChain"
                )
            else:
                pieces.append(module)
        if not found:
            raise ValueError("network must hold GaussianNoise modules, got none")
        return cls(found, noise_stds)

    @property
    def num_layers(self) -> int:
        """Number of layers, all of them noisy."""
        return len(self.layers)

    def layer_information(
        self, inputs: Any, layer: int, **options: Any
    ) -> ChainInformation:
        """`chain_information` of this chain, for `tracking.InformationTracker`."""
        return chain_information(self, inputs, layer, **options)


class _Activation(torch.nn.Module):
    """The activation of a NoisyMLP as a module."""

    def __init__(self, network: NoisyMLP) -> None:
        super().__init__()
        self._activate = network._activate

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The activation, elementwise."""
        return self._activate(values)


@dataclass(frozen=True)
class ChainInformation(LayerInformation):
    """What one layer of a chain tells of the input or of an earlier layer.

    `mutual_information` is I(T_k;T_l), with T_0 = X.

    Attributes
    ----------
    given_layer : int
        k.
    entropy, conditional_entropy : Estimate or None
        h(T_l) and h(T_l|T_k), nats, without any control variate; None where points were
        skipped that show all there is to see: ask for them with `with_entropies`.
    ceiling : float
        log m: m inputs cannot show more information than this, whatever that of the
        population they were sampled from. Infinite for k > 0.
    method : {"known-mixture", "path-importance", "prior-proposals"}
        A mixture with known components (layer 1, and where all later layers are affine)
        has no bias. Prior proposals are the fallback where a layer has no derivative.
    fallback : str
        Why that fallback was taken, naming the layer; "" where it was not.
    missed : str
        Which targets were missed, and by how much; "" where none was.
    num_points, num_skipped, num_modes : int
        Points that the averages are over; how many of them needed no proposals, as the
        linearised chain is sure of their input; and modes searched for per pair of
        input and point.
    """

    given_layer: int
    entropy: Estimate | None
    conditional_entropy: Estimate | None
    ceiling: float
    method: Method
    fallback: str
    missed: str
    num_points: int
    num_skipped: int
    num_modes: int


def chain_information(
    chain: NoisyChain,
    inputs: Any,
    layer: int,
    *,
    labels: Any = None,
    given_layer: int = 0,
    input_kind: Literal["fixed", "sampled"] = "fixed",
    standard_error: float = 0.02,
    bracket_width: float = 0.02,
    num_proposals: int | None = None,
    with_entropies: bool = False,
    max_seconds: float | None = None,
    max_pairs: int | None = None,
    seed: int = 0,
) -> ChainInformation:
    """I(X;T_l), I(Y;T_l) and I(T_k;T_l) of a known chain, enclosed from both sides.

    Choose it over `mutual_information` wherever the network is known: the cost does not
    grow exponentially with the width. For a `NoisyMLP`, `InformationTracker` is faster.

    Parameters
    ----------
    chain : NoisyChain
    inputs : (m, ...) array
        What f_1 takes. NumPy array or torch tensor, float32 or float64, any device.
    layer : int
        l, counted from 1.
    labels : (m,) array of integers, booleans or strings, optional
        The label Y of every input.
    given_layer : int
        k of I(T_k;T_l), below `layer`; 0 is the input X.
    input_kind : {"fixed", "sampled"}
        "fixed": X is uniform over these inputs. "sampled": they are independent samples
        of X. Then the bracket is wider by the bias of so many samples, the standard
        error includes the spread between inputs, and I(X;T) above `ceiling` cannot be
        seen: `upper` is far above, and `isolated` near 1.
    standard_error, bracket_width : float
        Targets in nats, positive. Points are added until every standard error is at
        most this; proposals until a pilot's every upper - lower (without the bias of
        sampled inputs) is, with a margin. Its points are no part of the result, which
        can be wider: then it says so.
    num_proposals : int, optional
        K, at least 1; chosen from the pilot's brackets by default, up to 4096.
    with_entropies : bool
        Also h(T_l) and h(T_l|T_k) where they cost more than the information does.
    max_seconds : float, optional
        Ends the search for accuracy early, at the next round. Positive.
    max_pairs : int, optional
        The same for `num_pairs` of the estimates: one for every input at every point
        (its linearised Gaussian), and one for every noise path that is proposed or
        known, whatever it costs; the pilot's count, too. Looked at after every 64
        points, of which there are some in any case. Positive.
    seed : int
        Same seed, same result on one machine.

    Returns
    -------
    ChainInformation

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, shape or range, or a layer does not accept
        the output of the one before, mixes the inputs of a batch, is random, or has or
        makes a NaN: layers are named.

    Warns
    -----
    TargetWarning
        If a target was missed, with what was reached.
    NotDifferentiableWarning
        If a layer after the first has no usable derivative: noise paths are then
        proposed from the prior. Both sides remain true; closing them takes a number of
        proposals exponential in the width.

    Notes
    -----
    Exact where layers 2 .. l are modules known to be affine (Linear, convolutions,
    average pooling, normalisation, and Sequentials of them; no subclasses, no forward
    hooks), up to the standard error.
    Elsewhere Jacobians are formed where the width of T_l or the length of the noise
    path (d_1 + ... + d_{l-1}) is at most 256, and replaced by products with vectors,
    conjugate gradients and 64 leading singular values above. Beyond 256 in both, only
    what those 64 directions explain is proposed well; the bracket shows the rest.
    Every input has a covariance of its own up to about m d^2 = 2^25 and m d = 2^18,
    d = d_l, above that all share one. Memory: about a GiB at most, beyond the inputs
    and m d_l doubles. float64 throughout.

    All m inputs stay in the mixture p(t), by proposing likely ones: no subset is taken,
    whatever m.

    Sources: Burda, Grosse, Salakhutdinov (2016), "Importance Weighted Autoencoders";
    Sobolev and Vetrov (2019), "Importance Weighted Hierarchical Variational Inference";
    Barber and Agakov (2003), "The IM Algorithm"; docs/design.md.

    Examples
    --------
    >>> chain = NoisyChain([torch.nn.Identity(), torch.nn.Linear(1, 1)], [1.0, 1.0])
    >>> _ = chain.layers[1].weight.data.fill_(2.0)
    >>> one = chain_information(chain, torch.zeros(1, 1), 2, given_layer=1)
    >>> abs(one.mutual_information.value - 0.5 * math.log(5)) < 0.05
    True
    """
    if not isinstance(chain, NoisyChain):
        raise TypeError(f"chain must be a NoisyChain, got {type(chain).__name__}")
    values = _as_inputs(inputs)
    layer = _checks.as_int("layer", layer, at_least=1, at_most=chain.num_layers)
    given = _checks.as_int("given_layer", given_layer, at_least=0, at_most=layer - 1)
    if not isinstance(input_kind, str) or input_kind not in ("fixed", "sampled"):
        raise ValueError(f'input_kind must be "fixed" or "sampled", got {input_kind!r}')
    order, sizes = np.arange(len(values)), None
    if labels is not None:
        order, sizes = _arrays.group_by_label(labels, len(values))
    if input_kind == "sampled":
        _check_sampled(len(values), sizes)
    targets = Targets(
        _checks.as_target("standard_error", standard_error),
        _checks.as_target("bracket_width", bracket_width),
        math.inf
        if max_seconds is None
        else _checks.as_positive("max_seconds", max_seconds),
        math.inf
        if max_pairs is None
        else _checks.as_int("max_pairs", max_pairs, at_least=1),
        time.monotonic(),
    )
    if num_proposals is not None:
        num_proposals = _checks.as_int(
            "num_proposals", num_proposals, at_least=1, at_most=_MOST_PROPOSALS
        )
    seeds = np.random.SeedSequence(_checks.as_seed(seed), spawn_key=(_STREAM, layer))
    words = seeds.generate_state(2, np.uint64)
    layers = ChainLayers(chain.layers[:layer], chain.noise_stds, values[order])
    _check_resolution(layers)
    is_known = all(layers.is_affine(number) for number in range(2, layer + 1))
    reason = None
    if not is_known:
        reason = Tail(layers, 1, layer).why_not_differentiable()
    measured = Chain(
        *(layers, layer, given, sizes, reason is None),
        torch.Generator().manual_seed(int(words[0] >> np.uint64(1))),
    )
    search = Search(
        measured,
        targets,
        input_kind == "sampled",
        _arrays.check_flag("with_entropies", with_entropies),
        np.random.default_rng(words[1]),
    )
    if reason is not None:
        warnings.warn(
            f"{reason}; noise paths are proposed from the prior instead of around the "
            "posterior's modes, which takes many more of them",
            NotDifferentiableWarning,
            stacklevel=2,
        )
    if is_known:
        search.run_known_mixture()
    else:
        search.run_path_importance(num_proposals, uses_modes=reason is None)
    result = _summary(
        search,
        "known-mixture"
        if is_known
        else ("path-importance" if reason is None else "prior-proposals"),
        reason or "",
    )
    if result.missed:
        warnings.warn(result.missed, TargetWarning, stacklevel=2)
    return result


def _summary(search: Search, method: Method, fallback: str) -> ChainInformation:
    """What was found, with what was missed."""
    p, chain = search.points, search.chain
    ceiling = math.log(chain.num_inputs) if chain.given == 0 else math.inf
    is_sampled = search.is_sampled
    isolated = 0.0
    if is_sampled and chain.given == 0:  # the measure of `Estimate`
        others = math.log(chain.num_inputs - 1) - p.entropy_left_out
        isolated = float((others < math.log(0.01) - p.conditional_upper).mean())
    limits = (0.0, ceiling, math.inf if is_sampled else ceiling)
    label_information = None
    if chain.has_labels:
        shares = chain.label_sizes.numpy() / chain.num_inputs
        top = float(-(shares * np.log(shares)).sum())
        average = search.label_information()
        label_information = _estimate(search, average, (0.0, top, top), isolated)
    entropy, conditional = None, None
    if not p.skipped.any():
        high = p.entropy_left_out if is_sampled else p.entropy_upper
        middle = 0.5 * (p.entropy_lower + p.entropy_upper)
        average = search.average(p.entropy_lower, middle, high)
        entropy = _estimate(search, average, isolated=isolated)
        low, high = p.conditional_lower, p.conditional_upper
        conditional = _estimate(search, search.average(low, 0.5 * (low + high), high))
    if search.closed_entropy is not None:
        exact = search.closed_entropy
        conditional = Estimate(exact, 0.0, exact, exact, 0.0, 0, stopped_by="exact")
    return ChainInformation(
        layer=chain.layer,
        mutual_information=_estimate(search, search.information(), limits, isolated),
        label_information=label_information,
        num_proposals=search.num_proposals,
        effective_sample_size=float(p.effective.mean()),
        effective_sample_size_low=float(np.quantile(p.effective, 0.05)),
        missed_targets=search.missed_targets(),
        given_layer=chain.given,
        entropy=entropy,
        conditional_entropy=conditional,
        ceiling=ceiling,
        method=method,
        fallback=fallback,
        missed=search.missed(),
        num_points=len(p.own),
        num_skipped=int(p.skipped.sum()),
        num_modes=search.num_modes,
    )


def _estimate(
    search: Search,
    average: Average,
    limits: tuple[float, float, float] = (-math.inf, math.inf, math.inf),
    isolated: float = 0.0,
) -> Estimate:
    """The average within limits: the least, the most, and the most of the upper end."""
    floor, ceiling, upper_ceiling = limits
    low = min(max(average.lower, floor), ceiling)
    high = min(max(average.upper, floor), upper_ceiling)
    return Estimate(
        value=min(max(average.value, floor), ceiling),
        standard_error=average.standard_error,
        lower=min(low, high),  # noise can turn a closed bracket around
        upper=max(low, high),
        isolated=isolated,
        num_pairs=search.num_pairs,
        monte_carlo_error=average.monte_carlo_error,
        stopped_by=search.stopped_by,
    )


def _check_sampled(num_inputs: int, label_sizes: Indices | None) -> None:
    if num_inputs < 2:
        raise ValueError('inputs must hold at least 2 for input_kind="sampled", got 1')
    if label_sizes is not None and label_sizes.min() < 2:
        raise ValueError(
            'labels must have at least 2 inputs each for input_kind="sampled", got one '
            "with 1"
        )


def _check_resolution(layers: ChainLayers) -> None:
    """Noise that float64 would swallow is refused, layer by layer."""
    for number, std in enumerate(layers.noise_stds[: len(layers.functions)], 1):
        probe = layers.probe(number).numpy()
        _arrays.check_resolution(f"outputs of layer {number}", probe, std)


def _as_inputs(inputs: Any) -> torch.Tensor:
    """Finite (m, ...) inputs as a float64 CPU tensor."""
    # A copy: layers may work in place.
    return torch.from_numpy(_arrays.as_batch("inputs", inputs))


def _flattened(module: torch.nn.Sequential) -> list[torch.nn.Module]:
    """Modules of nested plain Sequentials, in order."""
    return [
        part
        for child in module
        for part in (
            _flattened(child) if is_of_kind(child, torch.nn.Sequential) else [child]
        )
    ]
