"""The information in every hidden layer of a noisy network, measured while it trains.

Two methods. Path importance needs a network whose layers are known (`nn.NoisyMLP`) and
encloses I(X;T_l) and I(Y;T_l) from both sides at a cost that does not grow
exponentially with the width. Sample propagation, the papers' estimator, needs only
samples of S_l and works for any network that can yield them; compare both where both
apply.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from noisyflow import _arrays, _checks
from noisyflow.estimate import Estimate
from noisyflow.importance import NoisyLayers, path_log_densities
from noisyflow.information import mutual_information
from noisyflow.mixture import mixture_block_log_sums

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]
Method = Literal["path-importance", "sample-propagation"]

_POINTS_PER_ROUND = 4096
_MOST_ROUNDS = 16
_MOST_PROPOSALS = 256
_STREAM = 0x747261636B  # "track": sets this use of a seed apart from all others


@runtime_checkable
class AbstractSampledNetwork(Protocol):
    """A network that yields its layers' outputs before their noise."""

    def clean_outputs(
        self, inputs: Any, num_draws: int = 1, *, seed: int | None = None
    ) -> list[Any]:
        """S_l for l = 1, 2, ..., each (inputs, num_draws, d_l)."""
        ...


@dataclass(frozen=True)
class LayerInformation:
    """What one hidden layer tells of the input and of the label.

    Attributes
    ----------
    layer : int
        l, counted from 1.
    mutual_information : Estimate
        I(X;T_l) in nats, X uniform over the tracked inputs.
    label_information : Estimate or None
        I(Y;T_l) in nats; None if the tracker has no labels.
    num_proposals : int
        Proposals per point that the bracket took (path importance), or noise replicas
        per input (sample propagation); 0 where the layer is a known mixture.
    effective_sample_size, effective_sample_size_low : float
        Mean and 5 % quantile over the points of the smaller of the shares of
        `num_proposals` that carry weight, in (0, 1]. Low: the proposal is poor there,
        and the bracket wide. 1 where nothing is proposed.
    """

    layer: int
    mutual_information: Estimate
    label_information: Estimate | None
    num_proposals: int
    effective_sample_size: float
    effective_sample_size_low: float


class InformationTracker:
    """I(X;T_l) and I(Y;T_l) of every hidden layer, at the epochs it is asked for.

    Parameters
    ----------
    network : NoisyMLP, or any object with `clean_outputs`
        Read at every call of `measure`, never changed.
    inputs : (m, d_0) array
        X is uniform over these inputs. NumPy array or torch tensor, float32 or float64.
    labels : (m,) array of integers, booleans or strings, optional
        The label Y of every input.
    method : {"path-importance", "sample-propagation"}, optional
        Path importance by default where the network's layers are known
        (`hidden_layers`, `activation` and `noise_std`, as `NoisyMLP` has them), else
        sample propagation.
    seed : int
        Randomness depends on `seed` and the epoch alone.
    standard_error, bracket_width : float
        Path importance takes rounds of points, and proposals per point, until every
        standard error and every upper - lower is at most this, in nats, or its limit
        (16 rounds of 4096 points, 256 proposals) is reached.
    num_draws : int
        Noise replicas per input for sample propagation.
    noise_std : float, optional
        Needed for sample propagation where the network has no `noise_std`.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, shape or range, or the method does not fit
        the network.

    Notes
    -----
    Path importance: the noise paths of one forward pass serve all layers, so that
    differences between layers have less error than the layers. Every input is used once
    before any is used twice. Layer 1 is a known mixture and has no bias. Cost per round
    and layer: see `importance.path_log_densities`. Values lie within [0, log m] and [0,
    H(Y)], where the truth is known to be.
    """

    def __init__(
        self,
        network: Any,
        inputs: Any,
        labels: Any = None,
        *,
        method: Method | None = None,
        seed: int = 0,
        standard_error: float = 0.04,
        bracket_width: float = 0.04,
        num_draws: int = 16,
        noise_std: float | None = None,
    ) -> None:
        on_cpu = inputs.detach().cpu() if _arrays.is_tensor(inputs) else inputs
        matrix = _arrays.as_matrix("inputs", on_cpu)
        order, self._label_sizes = np.arange(len(matrix)), None
        if labels is not None:
            order, self._label_sizes = _arrays.group_by_label(labels, len(matrix))
        self._inputs = np.ascontiguousarray(matrix, np.float64)[order]
        self._network_inputs = (
            inputs[order] if _arrays.is_tensor(inputs) else matrix[order]
        )
        self._network = network
        self._method = _choose_method(method, network)
        self._seed = _checks.as_seed(seed)
        self._standard_error = _positive("standard_error", standard_error)
        self._bracket_width = _positive("bracket_width", bracket_width)
        self._num_draws = _checks.as_int("num_draws", num_draws, at_least=1)
        if self._method == "sample-propagation":
            noise_std = (
                getattr(network, "noise_std", None) if noise_std is None else noise_std
            )
            if noise_std is None:
                raise ValueError(
                    "noise_std is needed for sample propagation, as the network has no "
                    "attribute of that name"
                )
            self._noise_std = _arrays.check_noise_std(noise_std)
        elif noise_std is not None:
            raise ValueError(
                f"noise_std is the network's own in path importance, got {noise_std}"
            )

    def measure(self, epoch: int) -> list[LayerInformation]:
        """The information of every hidden layer now, first layer first."""
        epoch = _checks.as_int("epoch", epoch, at_least=0)
        if self._method == "sample-propagation":
            return self._by_sample_propagation(epoch)
        return self._by_path_importance(epoch)

    def _seeds(self, epoch: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(self._seed, spawn_key=(_STREAM, epoch))

    # -- path importance -----------------------------------------------------

    def _by_path_importance(self, epoch: int) -> list[LayerInformation]:
        layers = _layers_of(self._network)
        if layers.weights[0].shape[1] != self._inputs.shape[1]:
            raise ValueError(
                f"inputs must have {layers.weights[0].shape[1]} columns, the network's "
                f"input width, got shape {self._inputs.shape}"
            )
        paths = _Paths(layers, self._inputs)
        results: list[_PointInformation | None] = [None] * len(layers.widths)
        generator = np.random.default_rng(self._seeds(epoch))
        for _ in range(_MOST_ROUNDS):
            paths.draw_round(generator)
            for index in range(len(results)):
                previous = results[index]
                if (
                    previous is not None
                    and previous.standard_error <= self._standard_error
                ):
                    continue
                fresh = self._round(paths, index + 1, generator)
                results[index] = fresh if previous is None else previous.joined(fresh)
            if all(
                r is not None and r.standard_error <= self._standard_error
                for r in results
            ):
                break
        m = len(self._inputs)
        return [
            r.summary(index + 1, m, self._label_sizes)
            for index, r in enumerate(results)
            if r is not None
        ]

    def _round(
        self, paths: _Paths, layer: int, generator: np.random.Generator
    ) -> _PointInformation:
        if layer == 1:
            return _first_layer(paths, self._label_sizes)
        num_proposals = 16
        while True:
            result = _later_layer(
                paths, layer, self._label_sizes, num_proposals, generator
            )
            if result.width <= self._bracket_width or num_proposals >= _MOST_PROPOSALS:
                return result
            num_proposals *= 4

    # -- sample propagation --------------------------------------------------

    def _by_sample_propagation(self, epoch: int) -> list[LayerInformation]:
        draw_seed, query_seed = self._seeds(epoch).generate_state(2)
        outputs = self._network.clean_outputs(
            _as_the_network_reads(self._network_inputs, self._network),
            self._num_draws,
            seed=int(draw_seed),
        )
        if len(outputs) == 0:
            raise ValueError("clean_outputs must return an array per layer, got none")
        labels = None
        if self._label_sizes is not None:
            labels = np.repeat(np.arange(len(self._label_sizes)), self._label_sizes)
        results = []
        for index, output in enumerate(outputs):
            on_cpu = output.detach().cpu() if _arrays.is_tensor(output) else output
            samples = _arrays.to_numpy(f"clean_outputs(...)[{index}]", on_cpu)
            expected = (len(self._inputs), self._num_draws)
            if samples.ndim != 3 or samples.shape[:2] != expected:
                raise ValueError(
                    f"clean_outputs(...)[{index}] must have shape "
                    f"({expected[0]}, {expected[1]}, d), got {samples.shape}"
                )
            if (samples == samples[:, :1]).all():  # a function of the input
                samples = samples[:, :1]
            num_draws = samples.shape[1]

            def information(labels: Indices | None, samples: Any = samples) -> Estimate:
                return mutual_information(
                    samples, self._noise_std, labels=labels, seed=int(query_seed)
                )

            results.append(
                LayerInformation(
                    layer=index + 1,
                    mutual_information=information(None),
                    label_information=None if labels is None else information(labels),
                    num_proposals=0 if num_draws == 1 else num_draws,
                    effective_sample_size=1.0,
                    effective_sample_size_low=1.0,
                )
            )
        return results


class _Paths:
    """Rounds of points: inputs, noise paths, and what every layer makes of them."""

    def __init__(self, layers: NoisyLayers, inputs: Doubles) -> None:
        self.layers = layers
        self.inputs = inputs
        self.first = layers.clean_outputs(inputs, np.empty((len(inputs), 0)), last=1)[0]
        self._queue = np.empty(0, np.int64)

    def draw_round(self, generator: np.random.Generator) -> None:
        """New points: every input once before any twice, over rounds as within one."""
        m = len(self.inputs)
        while len(self._queue) < _POINTS_PER_ROUND:
            self._queue = np.concatenate([self._queue, generator.permutation(m)])
        # Neighbouring points have neighbouring centers: the kernels are fastest so.
        self.own = np.sort(self._queue[:_POINTS_PER_ROUND])
        self._queue = self._queue[_POINTS_PER_ROUND:]
        widths = self.layers.widths
        self.noise = generator.standard_normal((len(self.own), sum(widths)))
        self.clean = self.layers.clean_outputs(self.inputs[self.own], self.noise)
        for index, output in enumerate(self.clean):
            _arrays.check_finite(f"the output of layer {index + 1}", output)
            _arrays.check_resolution(
                f"outputs of layer {index + 1}", output, self.layers.noise_std
            )
        self.ends = np.cumsum(widths)

    def path(self, layer: int) -> Doubles:
        """Noise of the layers before, (N, d_1 + ... + d_{l-1}), in noise_std."""
        return self.noise[:, : self.ends[layer - 2]] if layer > 1 else self.noise[:, :0]

    def points(self, layer: int) -> Doubles:
        """t_l, (N, d_l)."""
        begin = self.ends[layer - 2] if layer > 1 else 0
        own_noise = self.noise[:, begin : self.ends[layer - 1]]
        return np.asarray(self.clean[layer - 1] + self.layers.noise_std * own_noise)


@dataclass(frozen=True)
class _PointInformation:
    """Both sides of log p(t | x) - log p(t), and of log p(t | y) - log p(t); (N,)."""

    lower: Doubles
    upper: Doubles
    label_lower: Doubles | None
    label_upper: Doubles | None
    effective: Doubles
    num_proposals: int
    num_pairs: int

    @property
    def standard_error(self) -> float:
        """That of I(X;T) or I(Y;T), whichever is larger."""
        error = _standard_error(self.lower, self.upper)
        if self.label_lower is not None and self.label_upper is not None:
            error = max(error, _standard_error(self.label_lower, self.label_upper))
        return error

    @property
    def width(self) -> float:
        """The wider of the two brackets."""
        width = float(np.mean(self.upper - self.lower))
        if self.label_lower is not None and self.label_upper is not None:
            width = max(width, float(np.mean(self.label_upper - self.label_lower)))
        return width

    def joined(self, other: _PointInformation) -> _PointInformation:
        def join(ours: Doubles | None, theirs: Doubles | None) -> Doubles | None:
            if ours is None or theirs is None:
                return None
            return np.concatenate([ours, theirs])

        return _PointInformation(
            np.concatenate([self.lower, other.lower]),
            np.concatenate([self.upper, other.upper]),
            join(self.label_lower, other.label_lower),
            join(self.label_upper, other.label_upper),
            np.concatenate([self.effective, other.effective]),
            max(self.num_proposals, other.num_proposals),
            self.num_pairs + other.num_pairs,
        )

    def summary(
        self, layer: int, num_inputs: int, label_sizes: Indices | None
    ) -> LayerInformation:
        ceiling = math.log(num_inputs)
        information = _bracketed(self.lower, self.upper, ceiling, self.num_pairs)
        label_information = None
        if (
            label_sizes is not None
            and self.label_lower is not None
            and self.label_upper is not None
        ):
            shares = label_sizes / label_sizes.sum()
            label_entropy = float(-(shares * np.log(shares)).sum())
            label_information = _bracketed(
                self.label_lower, self.label_upper, label_entropy, self.num_pairs
            )
        return LayerInformation(
            layer=layer,
            mutual_information=information,
            label_information=label_information,
            num_proposals=self.num_proposals,
            effective_sample_size=float(self.effective.mean()),
            effective_sample_size_low=float(np.quantile(self.effective, 0.05)),
        )


def _standard_error(lower: Doubles, upper: Doubles) -> float:
    """Of the mean midpoint; a little too large where every input is used once."""
    return float(np.std(0.5 * (lower + upper), ddof=1) / math.sqrt(len(lower)))


def _bracketed(
    lower: Doubles, upper: Doubles, ceiling: float, num_pairs: int
) -> Estimate:
    """The estimate from both sides at every point, within [0, ceiling]."""
    midpoints = 0.5 * (lower + upper)
    standard_error = _standard_error(lower, upper)
    if not standard_error <= ceiling + 1:  # no density ratio has such a spread
        raise ValueError(
            f"the information has a standard error of {standard_error:.3g} nats, more "
            f"than it can vary ({ceiling:.3g}): float64 cannot resolve this network at "
            "its noise_std; its weights are too large or noise_std too small"
        )
    (low, value, high) = (
        min(max(float(side.mean()), 0.0), ceiling) for side in (lower, midpoints, upper)
    )
    return Estimate(
        value=value,
        standard_error=standard_error,
        lower=min(low, high),  # noise can turn a closed bracket around
        upper=max(low, high),
        isolated=0.0,
        num_pairs=num_pairs,
    )


def _first_layer(paths: _Paths, label_sizes: Indices | None) -> _PointInformation:
    """T_1 given X is one Gaussian, so all densities are known mixtures."""
    m, n = len(paths.inputs), len(paths.own)
    sizes = np.array([m]) if label_sizes is None else label_sizes
    sums = mixture_block_log_sums(
        paths.points(1),
        paths.first,
        paths.layers.noise_std,
        paths.own,
        np.arange(m + 1),
        outer_offsets=np.concatenate([[0], np.cumsum(sizes)]),
    )
    label = np.logaddexp(sums.own_center, sums.outer)  # no other center in the block
    pooled = np.logaddexp(label, sums.rest)
    information = math.log(m) + sums.own_center - pooled
    label_information = None
    if label_sizes is not None:
        size = np.repeat(label_sizes, label_sizes)[paths.own]
        label_information = np.log(m / size) + label - pooled
    return _PointInformation(
        information,
        information,
        label_information,
        label_information,
        np.ones(n),
        num_proposals=0,
        num_pairs=n * m,
    )


def _later_layer(
    paths: _Paths,
    layer: int,
    label_sizes: Indices | None,
    num_proposals: int,
    generator: np.random.Generator,
) -> _PointInformation:
    """Brackets of log p(t|x), log p(t|y) and log p(t) from shared proposals."""
    m, n = len(paths.inputs), len(paths.own)
    groups = [
        np.stack([paths.own, paths.own + 1], axis=1),
        np.tile(np.array([0, m]), (n, 1)),
    ]
    if label_sizes is not None:
        ends = np.cumsum(label_sizes)
        label = np.searchsorted(ends, paths.own, side="right")
        groups.append(np.stack([ends[label] - label_sizes[label], ends[label]], axis=1))
    sides = path_log_densities(
        paths.layers,
        layer,
        paths.inputs,
        paths.points(layer),
        paths.own,
        paths.path(layer),
        np.stack(groups),
        num_proposals=num_proposals,
        generator=generator,
    )
    (low, high) = (sides.lower, sides.upper)
    has_labels = label_sizes is not None
    return _PointInformation(
        low[0] - high[1],
        high[0] - low[1],
        low[2] - high[1] if has_labels else None,
        high[2] - low[1] if has_labels else None,
        sides.effective_sample_size.min(axis=0),
        num_proposals=num_proposals,
        num_pairs=n * (m + len(groups) * num_proposals),
    )


def _layers_of(network: Any) -> NoisyLayers:
    """The hidden layers of a NoisyMLP, as they are now."""

    def array(parameter: Any) -> Any:
        return parameter.detach().cpu() if _arrays.is_tensor(parameter) else parameter

    return NoisyLayers(
        [array(layer.weight) for layer in network.hidden_layers],
        [array(layer.bias) for layer in network.hidden_layers],
        network.activation,
        network.noise_std,
    )


def _as_the_network_reads(inputs: Any, network: Any) -> Any:
    """Inputs as a tensor like the network's parameters, if any; else as given."""
    if not hasattr(network, "parameters"):
        return inputs
    parameter = next(iter(network.parameters()), None)
    if parameter is None or not _arrays.is_tensor(parameter):
        return inputs
    torch = sys.modules["torch"]
    return torch.as_tensor(inputs, dtype=parameter.dtype, device=parameter.device)


def _choose_method(method: Any, network: Any) -> Method:
    is_known = all(
        hasattr(network, name) for name in ("hidden_layers", "activation", "noise_std")
    )
    if method is None:
        method = "path-importance" if is_known else "sample-propagation"
    if not isinstance(method, str) or method not in (
        "path-importance",
        "sample-propagation",
    ):
        raise ValueError(
            f'method must be "path-importance" or "sample-propagation", got {method!r}'
        )
    if method == "path-importance" and not is_known:
        raise TypeError(
            "network must have hidden_layers, activation and noise_std (NoisyMLP has) "
            f'for method="path-importance", got {type(network).__name__}; '
            'choose method="sample-propagation"'
        )
    if method == "sample-propagation" and not isinstance(
        network, AbstractSampledNetwork
    ):
        raise TypeError(
            "network must have a method clean_outputs(inputs, num_draws, seed=...), "
            f"got {type(network).__name__}"
        )
    return "sample-propagation" if method == "sample-propagation" else "path-importance"


def _positive(name: str, value: float) -> float:
    number = _checks.as_real(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return number
