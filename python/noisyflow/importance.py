"""Log-densities of a known noisy network, enclosed from both sides.

The density of a layer behind other noisy layers is an integral over their noise,
p(t | x) = E_z[ N(t; S(x, z), noise_std^2 I) ]. A plug-in over noise replicas needs
their number exponential in the width; here the network is known, so the noise paths
that matter are found (posterior mode) and weighted exactly. The path that made t is
known too, an exact sample of the posterior: averages without and with it enclose log p
in expectation. The same holds for p(t) and p(t | label), the input being one more
latent variable.

Where units saturate, the posterior has many modes and t few places to be: there plain
replicas of the noise path serve better (`replica_log_densities`), with the same two
sides.

The kernels are csrc/cpu/path_importance-inl.h and path_replicas-inl.h, their
specification `_reference.path_importance` and `_reference.path_replicas`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisyflow import _arrays, _checks, _core
from noisyflow._device import on_host
from noisyflow.runtime import num_threads

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

# The order of `Activation` in csrc/core/views.h.
ACTIVATIONS = ("linear", "tanh", "sigmoid", "relu", "leaky_relu")
_LEAKY_SLOPE = 0.01

# Random numbers are drawn for some points at a time: at most 64 MiB of them.
_NUMBERS_AT_A_TIME = 2**23
_FEWEST_PROPOSALS = 4
_MOST_DRAWS = 2**31 - 1  # beyond any patience
# Products of ten linear layers of such weights are still finite.
_LARGEST_WEIGHT = 1e30
# Points share this many times num_draws draws, each a window of its own: cheap, and the
# errors of two points hardly depend on each other.
_WINDOWS = 16


class LogDensityBracket(NamedTuple):
    """Both sides of log-densities, E lower <= log p <= E upper, nats.

    Each is (G, N) for groups of inputs, (N,) for the own input alone.
    """

    lower: Doubles
    upper: Doubles
    effective_sample_size: Doubles


@dataclass(frozen=True)
class NoisyLayers:
    """The hidden layers of a noisy multilayer perceptron, as plain arrays.

    T_l = S_l + Z_l, S_l = activation(W_l T_{l-1} + b_l), Z_l ~ N(0, noise_std^2 I).

    Parameters
    ----------
    weights : sequence of (d_l, d_{l-1}) arrays
        float32 or float64, NumPy arrays or torch tensors; kept in float64.
    biases : sequence of (d_l,) arrays
    activation : {"linear", "tanh", "sigmoid", "relu", "leaky_relu"}
        Applied in every layer; leaky_relu has slope 0.01 below zero.
    noise_std : float
        Standard deviation of the noise of every layer, in the units of the activations.
        Positive. (beta in Goldfeld et al. 2019.)

    Raises
    ------
    TypeError, ValueError
        If shapes do not chain, a value is not finite, or an argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> layers = NoisyLayers([np.eye(3), np.ones((2, 3))], [np.zeros(3), np.zeros(2)],
    ...                      activation="tanh", noise_std=0.1)
    >>> layers.widths
    [3, 2]
    """

    weights: Sequence[Any]
    biases: Sequence[Any]
    activation: str
    noise_std: float

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, "
                f"got {self.activation!r}"
            )
        if len(self.weights) != len(self.biases) or len(self.weights) == 0:
            raise ValueError(
                "weights and biases must hold one array for every layer, at least one, "
                f"got {len(self.weights)} and {len(self.biases)}"
            )
        weights = [
            _as_doubles(_arrays.as_matrix(f"weights[{i}]", on_host(w)))
            for i, w in enumerate(self.weights)
        ]
        biases = []
        for i, (w, b) in enumerate(zip(weights, self.biases, strict=True)):
            bias = _arrays.to_numpy(f"biases[{i}]", on_host(b))
            if bias.shape != (len(w),):
                raise ValueError(
                    f"biases[{i}] must have shape ({len(w)},), as weights[{i}] has "
                    f"shape {w.shape}, got {bias.shape}"
                )
            _arrays.check_finite(f"biases[{i}]", np.ascontiguousarray(bias)[None, :])
            biases.append(_as_doubles(bias))
            if i > 0 and w.shape[1] != len(weights[i - 1]):
                raise ValueError(
                    f"weights[{i}] must have {len(weights[i - 1])} columns, the width "
                    f"of the layer before, got shape {w.shape}"
                )
        for name, arrays in (("weights", weights), ("biases", biases)):
            for i, array in enumerate(arrays):
                largest = np.abs(array).max(initial=0)
                if largest > _LARGEST_WEIGHT:
                    raise ValueError(
                        f"{name}[{i}] must be at most {_LARGEST_WEIGHT:g} in size, "
                        f"got {largest:g}"
                    )
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "biases", biases)
        object.__setattr__(self, "noise_std", _arrays.check_noise_std(self.noise_std))

    @property
    def widths(self) -> list[int]:
        """(d_1, ..., d_L), the widths of the hidden layers."""
        return [len(w) for w in self.weights]

    def activate(self, values: Doubles) -> Doubles:
        """The activation, elementwise."""
        match self.activation:
            case "linear":
                return values
            case "tanh":
                return np.asarray(np.tanh(values))
            case "sigmoid":
                return np.asarray(0.5 + 0.5 * np.tanh(0.5 * values))
            case "relu":
                return np.maximum(values, 0.0)
            case _:
                return np.where(values < 0, _LEAKY_SLOPE * values, values)

    def slopes(self, outputs: Doubles) -> Doubles:
        """The activation's derivative, from what it returned."""
        match self.activation:
            case "linear":
                return np.ones_like(outputs)
            case "tanh":
                return np.asarray(1 - outputs**2)
            case "sigmoid":
                return np.asarray(outputs * (1 - outputs))
            case "relu":
                return (outputs > 0).astype(np.float64)
            case _:
                return np.where(outputs > 0, 1.0, _LEAKY_SLOPE)

    def clean_outputs(
        self, inputs: Doubles, noise: Doubles, *, last: int | None = None
    ) -> list[Doubles]:
        """S_1 .. S_last along noise paths; all hidden layers by default.

        Parameters
        ----------
        inputs : (N, d_0) array
        noise : (N, d_1 + ... + d_{L-1}) array or wider
            Standard normal noise of the layers, one after another, in units of
            noise_std; columns beyond the layer before the last are not used.

        Returns
        -------
        list of (N, d_l) arrays
        """
        outputs: list[Doubles] = []
        current = inputs
        column = 0
        for w, b in list(zip(self.weights, self.biases, strict=True))[:last]:
            if outputs:
                width = outputs[-1].shape[1]
                current = (
                    outputs[-1] + self.noise_std * noise[:, column : column + width]
                )
                column += width
            outputs.append(self.activate(current @ w.T + b))
        return outputs


def _as_doubles(array: NDArray[Any]) -> Doubles:
    return np.ascontiguousarray(array, np.float64)


def path_log_densities(
    layers: NoisyLayers,
    layer: int,
    inputs: Doubles,
    points: Doubles,
    own: Indices,
    path: Doubles,
    groups: Indices,
    *,
    num_proposals: int,
    generator: np.random.Generator,
) -> LogDensityBracket:
    """Both sides of log p(t_l | X in group) where the noise path is known, in nats.

    X is uniform over a group of inputs: one input gives log p(t | x), all inputs
    log p(t).

    Parameters
    ----------
    layers : NoisyLayers
    layer : int
        l, from 2: layer 1 is a known mixture, see `mixture_log_density`.
    inputs : (m, d_0) array
        All inputs; groups are ranges of their rows.
    points : (N, d_l) array
        t_l, with noise, as the network produced it
    own : (N,) integer array
        from these rows of `inputs`
    path : (N, d_1 + ... + d_{l-1}) array
        by this noise of the earlier layers, in units of noise_std.
    groups : (G, N, 2) integer array
        First and one past the last input of every group; each contains the own input.
    num_proposals : int
        K, at least 4. The bracket closes like 1/K, and the cost grows like K.
    generator : numpy.random.Generator
        Source of the proposals; shared by the groups, so that their differences have
        less noise.

    Returns
    -------
    LogDensityBracket
        `lower`, `upper` and `effective_sample_size` (a share of K), each (G, N).

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, shape or range.

    Notes
    -----
    Cost per point: O(m d_l^2) to find likely inputs, and K or more evaluations of the
    network, its Jacobian and a d_l x d_l factorisation. Memory O(m d_l^2). float64
    throughout. A poor
    proposal makes the bracket wide, not wrong.

    Sources: Burda, Grosse, Salakhutdinov (2016), "Importance Weighted Autoencoders"
    (lower side); Sobolev and Vetrov (2019), "Importance Weighted Hierarchical
    Variational Inference" (upper side).

    Examples
    --------
    >>> import numpy as np
    >>> one, none = np.ones((1, 1)), np.zeros(1)
    >>> layers = NoisyLayers([one, one], [none, none], "linear", noise_std=0.5)
    >>> path = np.array([[0.6]])  # of T_1 = 0 + 0.5 * 0.6; then T_2 = T_1 - 0.5 * 0.2
    >>> sides = path_log_densities(
    ...     *(layers, 2, np.zeros((1, 1)), np.array([[0.2]]), np.array([0]), path),
    ...     groups=np.array([[[0, 1]]]),
    ...     num_proposals=64,
    ...     generator=np.random.default_rng(0),
    ... )
    >>> exact = -0.5 * np.log(2 * np.pi * 0.5) - 0.2**2  # T_2 ~ N(0, 0.5)
    >>> np.allclose([sides.lower, sides.upper], exact, atol=0.1)
    True
    """
    inputs, points, own, path, groups = _checked(
        layers, layer, inputs, points, own, path, groups
    )
    num_proposals = _checks.as_int(
        "num_proposals",
        num_proposals,
        at_least=_FEWEST_PROPOSALS,
        at_most=_MOST_DRAWS,
    )
    _check_generator(generator)
    first = layers.activate(inputs @ layers.weights[0].T + layers.biases[0])
    num_points, width = path.shape[0], path.shape[1] + points.shape[1]
    step = max(16, _NUMBERS_AT_A_TIME // (num_proposals * width))
    parts = []
    for start in range(0, max(num_points, 1), step):
        some = slice(start, min(start + step, num_points))
        count = some.stop - some.start
        parts.append(
            _core.path_importance(
                list(layers.weights[1:layer]),
                list(layers.biases[1:layer]),
                ACTIVATIONS.index(layers.activation),
                layers.noise_std,
                first,
                points[some],
                own[some],
                path[some],
                np.ascontiguousarray(groups[:, some]),
                generator.random((count, num_proposals + 2)),
                generator.standard_normal((count, num_proposals, width)),
                num_threads(),
            )
        )
    bracket = LogDensityBracket(
        *(np.concatenate(side, axis=1) for side in zip(*parts, strict=True))
    )
    _check_representable(bracket, layer)
    return bracket


def replica_log_densities(
    layers: NoisyLayers,
    layer: int,
    inputs: Doubles,
    points: Doubles,
    own: Indices,
    path: Doubles,
    *,
    num_draws: int,
    generator: np.random.Generator,
) -> LogDensityBracket:
    """Both sides of log p(t_l | own input) from draws of the noise path, in nats.

    The mean of N(t_l; S_l(x, z_k), noise_std^2 I) over draws z_k of the noise, without
    and with the path that made t_l. Choose it over `path_log_densities` where
    `effective_sample_size` is larger here: narrow layers of saturated units, at any
    noise. A draw costs one forward pass, some twenty times less than a proposal there.

    Parameters
    ----------
    layers, layer, inputs, points, own, path
        As for `path_log_densities`.
    num_draws : int
        K, at least 1. The bracket closes like 1/K, and the cost grows like K.
    generator : numpy.random.Generator
        Source of the draws. Points share pools of them, at most 64 MiB at once, each a
        window of its own.

    Returns
    -------
    LogDensityBracket
        `lower`, `upper` and `effective_sample_size` (a share of K), each (N,).

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, shape or range.

    Notes
    -----
    Cost O(K) forward passes per point. float64 throughout.

    Examples
    --------
    >>> import numpy as np
    >>> one, none = np.ones((1, 1)), np.zeros(1)
    >>> layers = NoisyLayers([one, one], [none, none], "linear", noise_std=0.5)
    >>> path = np.array([[0.6]])  # of T_1 = 0 + 0.5 * 0.6; then T_2 = T_1 - 0.5 * 0.2
    >>> sides = replica_log_densities(
    ...     *(layers, 2, np.zeros((1, 1)), np.array([[0.2]]), np.array([0]), path),
    ...     num_draws=4096,
    ...     generator=np.random.default_rng(0),
    ... )
    >>> exact = -0.5 * np.log(2 * np.pi * 0.5) - 0.2**2  # T_2 ~ N(0, 0.5)
    >>> np.allclose([sides.lower, sides.upper], exact, atol=0.1)
    True
    """
    own = _integers("own", own)
    groups = np.stack([own, own + 1], axis=-1)[None]
    inputs, points, own, path, _ = _checked(
        layers, layer, inputs, points, own, path, groups
    )
    num_draws = _checks.as_int("num_draws", num_draws, at_least=1, at_most=_MOST_DRAWS)
    _check_generator(generator)
    first = layers.activate(inputs @ layers.weights[0].T + layers.biases[0])
    most = max(1, _NUMBERS_AT_A_TIME // (_WINDOWS * max(1, path.shape[1])))
    counts = [min(most, num_draws - done) for done in range(0, num_draws, most)]
    parts = []
    for count in counts:
        num_columns = _WINDOWS * count
        part = _core.path_replicas(
            list(layers.weights[1:layer]),
            list(layers.biases[1:layer]),
            ACTIVATIONS.index(layers.activation),
            layers.noise_std,
            first,
            points,
            own,
            path,
            generator.standard_normal((path.shape[1], num_columns)),
            generator.integers(0, num_columns - count + 1, len(points)),
            count,
            num_threads(),
        )
        parts.append(LogDensityBracket(*part))
    bracket = parts[0] if len(parts) == 1 else _joined_draws(parts, counts)
    _check_representable(bracket, layer)
    return bracket


def _joined_draws(
    parts: list[LogDensityBracket], counts: list[int]
) -> LogDensityBracket:
    """The bracket of all draws; the known path takes the place of one, in one part."""
    log_counts = np.log(counts)[:, None]
    total = np.log(sum(counts))
    sums = np.stack([part.lower for part in parts]) + log_counts
    effective = np.stack([part.effective_sample_size for part in parts])
    log_sum = np.logaddexp.reduce(sums)
    with_known = np.vstack([sums[:-1], (parts[-1].upper + log_counts[-1])[None]])
    log_squares = np.logaddexp.reduce(2 * sums - np.log(effective) - log_counts)
    return LogDensityBracket(
        log_sum - total,
        np.logaddexp.reduce(with_known) - total,
        np.exp(2 * log_sum - log_squares - total),
    )


def _check_generator(generator: Any) -> None:
    if not isinstance(generator, np.random.Generator):
        raise TypeError(
            f"generator must be a numpy Generator, got {type(generator).__name__}"
        )


def _check_representable(bracket: LogDensityBracket, layer: int) -> None:
    if not all(np.isfinite(side).all() for side in bracket):
        raise ValueError(
            f"the log-densities of layer {layer} are not representable in float64: "
            "points, paths or weights are too large for this noise_std"
        )


def _integers(name: str, value: Any) -> NDArray[Any]:
    array = _arrays.to_any_numpy(name, value)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    return array


def _checked(
    layers: NoisyLayers,
    layer: int,
    inputs: Any,
    points: Any,
    own: Any,
    path: Any,
    groups: Any,
) -> tuple[Doubles, Doubles, Indices, Doubles, Indices]:
    """The arguments of `path_log_densities`: contiguous, of the right shapes."""
    if not isinstance(layers, NoisyLayers):
        raise TypeError(f"layers must be NoisyLayers, got {type(layers).__name__}")
    widths = layers.widths
    layer = _checks.as_int("layer", layer, at_least=0)
    if not 2 <= layer <= len(widths):
        raise ValueError(
            f"layer must be between 2 and the number of layers, {len(widths)}, "
            f"got {layer}"
        )
    inputs = _as_doubles(_arrays.as_matrix("inputs", on_host(inputs)))
    points = _as_doubles(_arrays.as_matrix("points", on_host(points), allow_empty=True))
    path = _as_doubles(_arrays.as_matrix("path", on_host(path), allow_empty=True))
    own, groups = _integers("own", own), _integers("groups", groups)
    num_points = len(points)
    shapes = {
        "inputs": (inputs.shape, (len(inputs), layers.weights[0].shape[1])),
        "points": (points.shape, (num_points, widths[layer - 1])),
        "own": (own.shape, (num_points,)),
        "path": (path.shape, (num_points, sum(widths[: layer - 1]))),
        "groups": (groups.shape, (*groups.shape[:1], num_points, 2)),
    }
    for name, (seen, right) in shapes.items():
        if seen != right:
            raise ValueError(f"{name} must have shape {right}, got {seen}")
    begin, end = groups[..., 0], groups[..., 1]
    if not ((begin >= 0) & (begin <= own) & (own < end) & (end <= len(inputs))).all():
        raise ValueError(
            "groups must be ranges [begin, end) of inputs with the point's own, "
            f"0 <= begin <= own < end <= {len(inputs)}"
        )
    return (
        inputs,
        points,
        np.ascontiguousarray(own, np.int64),
        path,
        np.ascontiguousarray(groups, np.int64),
    )
