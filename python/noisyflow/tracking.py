"""The information in every hidden layer of a noisy network, measured while it trains.

Two methods. Path importance needs a network whose layers are known (`nn.NoisyMLP`, or
any torch layers as a `chain.NoisyChain`) and encloses I(X;T_l) and I(Y;T_l) from both
sides at a cost that does not grow exponentially with the width. Sample propagation, the
papers' estimator, needs only samples of S_l and works for any network that can yield
them; compare both where both apply.
"""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from noisyflow import _arrays, _checks, _device
from noisyflow.enclosure import LayerEstimate, enclose
from noisyflow.estimate import Estimate, TargetWarning
from noisyflow.importance import NoisyLayers
from noisyflow.information import mutual_information

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]
Method = Literal["path-importance", "sample-propagation"]

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
        Proposals, or draws of the noise, that a density took at a point (path
        importance), or noise replicas per input (sample propagation); 0 where the layer
        is a known mixture.
    effective_sample_size, effective_sample_size_low : float
        Mean and 5 % quantile over the points of the smallest share of a density's
        proposals that carries weight, in (0, 1]. Low: the proposals are poor there, and
        the bracket wide unless they are many. 1 where nothing is proposed.
    missed_targets : tuple of str
        Which of the tracker's targets, "standard_error" and "bracket_width", are out of
        reach for this layer, for I(X;T_l) or I(Y;T_l); empty where both are met.
    """

    layer: int
    mutual_information: Estimate
    label_information: Estimate | None
    num_proposals: int
    effective_sample_size: float
    effective_sample_size_low: float
    missed_targets: tuple[str, ...] = field(default=(), kw_only=True)


class AbstractTracker(Protocol):
    """What measures the layers of a network while it trains."""

    def measure(self, epoch: int) -> list[LayerInformation]:
        """The information of every hidden layer now, first layer first."""
        ...


@runtime_checkable
class AbstractEnclosedNetwork(Protocol):
    """A network that encloses the information of its layers: `chain.NoisyChain`."""

    @property
    def num_layers(self) -> int: ...

    def layer_information(
        self,
        inputs: Any,
        layer: int,
        *,
        labels: Any,
        standard_error: float,
        bracket_width: float,
        seed: int,
    ) -> LayerInformation:
        """What layer l = 1 .. num_layers tells of the input and of the labels."""
        ...


class InformationTracker:
    """I(X;T_l) and I(Y;T_l) of every hidden layer, at the epochs it is asked for.

    Parameters
    ----------
    network : NoisyMLP, NoisyChain, or any object with `clean_outputs`
        Read at every call of `measure`, never changed.
    inputs : (m, d_0) array
        X is uniform over these inputs. NumPy array or torch tensor, float32 or float64;
        (m, ...) for a NoisyChain.
    labels : (m,) array of integers, booleans or strings, optional
        The label Y of every input.
    method : {"path-importance", "sample-propagation"}, optional
        Path importance by default where the network's layers are known
        (`hidden_layers`, `activation` and `noise_std`, as `NoisyMLP` has them), else
        sample propagation.
    seed : int
        Randomness depends on `seed` and the epoch alone.
    standard_error, bracket_width : float
        Path importance takes rounds of points until every standard error, and chooses
        the proposals so that every upper - lower, is at most this, in nats. Where a
        limit (16 rounds, 1024 proposals, some 15 s for a layer on one core) comes
        first, a TargetWarning says what was reached, and `missed_targets`.
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
    Path importance of a `NoisyMLP`: the noise paths of one forward pass serve all
    layers, so that differences between layers have less error than the layers. A
    `NoisyChain` measures every layer on points of its own (`chain.chain_information`):
    what follows is not about it. A round has every input equally often, 16384 points or
    more; a random subset of as many where there are more inputs, whose choice is then
    part of the standard error. Layer 1 is a known mixture and has no bias. Values lie
    within [0, log m] and [0, H(Y)], where the truth is known to be: with m inputs
    nothing above log m can be seen.

    Outputs of a network on a GPU stay there in sample propagation; path importance runs
    on the CPU, from a copy of the weights, and so does a NoisyChain.

    A pilot on 1024 points of its own chooses for each layer how densities are enclosed
    (`importance.path_log_densities` or `importance.replica_log_densities`) and with how
    many proposals. The linearised network, cheap and nearly right at small noise, is a
    control variate at all points; the exact values are computed at as few as the
    standard error allows (docs/design.md).

    Examples
    --------
    >>> import torch
    >>> from noisyflow.nn import NoisyMLP
    >>> network = NoisyMLP([2, 3, 2, 2], noise_std=0.3, seed=0)
    >>> inputs = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    >>> tracker = InformationTracker(network, inputs, labels=[0, 1, 1, 0])
    >>> for layer in tracker.measure(epoch=0):  # again at later epochs
    ...     print(layer.layer, 0 <= layer.mutual_information.value <= math.log(4))
    1 True
    2 True
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
        self._network = network
        self._method = _choose_method(method, network)
        self._seed = _checks.as_seed(seed)
        self._standard_error = _checks.as_target("standard_error", standard_error)
        self._bracket_width = _checks.as_target("bracket_width", bracket_width)
        self._num_draws = _checks.as_int(
            "num_draws", num_draws, at_least=1, at_most=2**31 - 1
        )
        self._encloses_itself = self._method == "path-importance" and isinstance(
            network, AbstractEnclosedNetwork
        )
        if self._encloses_itself:
            if noise_std is not None:
                raise ValueError(f"noise_std is the chain's own, got {noise_std}")
            num_inputs = len(_arrays.as_batch("inputs", inputs))
            if labels is not None:
                _arrays.group_by_label(labels, num_inputs)
            (self._network_inputs, self._labels) = (inputs, labels)
            return
        matrix = _arrays.as_matrix("inputs", _arrays.host_copy("inputs", inputs))
        order, self._label_sizes = np.arange(len(matrix)), None
        if labels is not None:
            order, self._label_sizes = _arrays.group_by_label(labels, len(matrix))
        self._inputs = np.ascontiguousarray(matrix, np.float64)[order]
        self._network_inputs = (
            inputs[order] if _arrays.is_tensor(inputs) else matrix[order]
        )
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
        if self._encloses_itself:
            return self._by_its_own_means(self._network, epoch)
        if self._method == "sample-propagation":
            return self._by_sample_propagation(epoch)
        return self._by_path_importance(epoch)

    def _seeds(self, epoch: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(self._seed, spawn_key=(_STREAM, epoch))

    def _by_its_own_means(
        self, network: AbstractEnclosedNetwork, epoch: int
    ) -> list[LayerInformation]:
        (seed,) = self._seeds(epoch).generate_state(1)
        return [
            network.layer_information(
                self._network_inputs,
                layer,
                labels=self._labels,
                standard_error=self._standard_error,
                bracket_width=self._bracket_width,
                seed=int(seed),
            )
            for layer in range(1, network.num_layers + 1)
        ]

    # -- path importance -----------------------------------------------------

    def _by_path_importance(self, epoch: int) -> list[LayerInformation]:
        layers = _layers_of(self._network)
        if layers.weights[0].shape[1] != self._inputs.shape[1]:
            raise ValueError(
                f"inputs must have {layers.weights[0].shape[1]} columns, the network's "
                f"input width, got shape {self._inputs.shape}"
            )
        found = enclose(
            *(layers, self._inputs, self._label_sizes),
            standard_error=self._standard_error,
            bracket_width=self._bracket_width,
            generator=np.random.default_rng(self._seeds(epoch)),
        )
        return [self._summary(epoch, estimate) for estimate in found]

    def _summary(self, epoch: int, found: LayerEstimate) -> LayerInformation:
        ceilings = [math.log(len(self._inputs))]
        if self._label_sizes is not None:
            shares = self._label_sizes / self._label_sizes.sum()
            ceilings.append(float(-(shares * np.log(shares)).sum()))
        lower, upper, errors = found.results()
        missed = {
            "standard_error": (float(errors.max()), self._standard_error),
            "bracket_width": (float((upper - lower).max()), self._bracket_width),
        }
        missed = {name: pair for name, pair in missed.items() if pair[0] > pair[1]}
        estimates = [
            _bracketed(
                *(low, high, error, ceiling, found.num_pairs),
                stopped_by="pairs" if "standard_error" in missed else "target",
            )
            for low, high, error, ceiling in zip(
                lower, upper, errors, ceilings, strict=True
            )
        ]
        effective = np.hstack(found.effective)
        result = LayerInformation(
            layer=found.layer,
            mutual_information=estimates[0],
            label_information=estimates[1] if len(estimates) > 1 else None,
            num_proposals=found.recipe.num_proposals,
            effective_sample_size=float(effective.mean()),
            effective_sample_size_low=float(np.quantile(effective, 0.05)),
            missed_targets=tuple(missed),
        )
        if missed:
            reached = " and ".join(
                f"{name} {got:.3g} instead of {asked:.3g}"
                for name, (got, asked) in missed.items()
            )
            warnings.warn(
                f"layer {found.layer}, epoch {epoch}: reached {reached} nats with "
                f"{found.num_exact} points and {result.num_proposals} proposals "
                f"(effective sample size {result.effective_sample_size:.2f}, lowest "
                f"{result.effective_sample_size_low:.2f}); the bracket holds all the "
                "same",
                TargetWarning,
                stacklevel=4,
            )
        return result

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
            samples = output.detach() if _arrays.is_tensor(output) else output
            if not _device.is_on_device(samples):  # on a GPU they stay there
                samples = _arrays.to_numpy(f"clean_outputs(...)[{index}]", samples)
            expected = (len(self._inputs), self._num_draws)
            if samples.ndim != 3 or tuple(samples.shape[:2]) != expected:
                raise ValueError(
                    f"clean_outputs(...)[{index}] must have shape "
                    f"({expected[0]}, {expected[1]}, d), got {tuple(samples.shape)}"
                )
            if bool((samples == samples[:, :1]).all()):  # a function of the input
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


def _bracketed(
    low: float,
    high: float,
    standard_error: float,
    ceiling: float,
    num_pairs: int,
    stopped_by: str,
) -> Estimate:
    """The estimate from both ends, within [0, ceiling]."""
    if not standard_error <= ceiling + 1:  # no density ratio has such a spread
        raise ValueError(
            f"the information has a standard error of {standard_error:.3g} nats, more "
            f"than it can vary ({ceiling:.3g}): float64 cannot resolve this network at "
            "its noise_std; its weights are too large or noise_std too small"
        )
    (low, value, high) = (
        min(max(float(side), 0.0), ceiling) for side in (low, 0.5 * (low + high), high)
    )
    return Estimate(
        value=value,
        standard_error=float(standard_error),
        lower=min(low, high),  # noise can turn a closed bracket around
        upper=max(low, high),
        isolated=0.0,
        num_pairs=num_pairs,
        monte_carlo_error=float(standard_error),
        stopped_by=stopped_by,
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
    is_known = isinstance(network, AbstractEnclosedNetwork) or all(
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
            "network must have hidden_layers, activation and noise_std (NoisyMLP has), "
            'or be a NoisyChain of its layers, for method="path-importance", got '
            f'{type(network).__name__}; choose method="sample-propagation"'
        )
    if method == "sample-propagation" and not isinstance(
        network, AbstractSampledNetwork
    ):
        raise TypeError(
            "network must have a method clean_outputs(inputs, num_draws, seed=...), "
            f"got {type(network).__name__}; pass a Sequential with GaussianNoise in it "
            "as chain.NoisyChain.from_module(network)"
        )
    return "sample-propagation" if method == "sample-propagation" else "path-importance"
