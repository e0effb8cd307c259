"""Path importance: kernel against reference, brackets against exact answers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import oracles
from noisyflow import _core, _reference, importance, runtime
from noisyflow.importance import (
    ACTIVATIONS,
    NoisyLayers,
    path_log_densities,
    replica_log_densities,
)


@pytest.mark.parametrize("widths", [(3, 2), (2, 1), (4, 3, 2), (3, 5, 4, 3)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_kernel_computes_the_reference(
    activation: str, widths: tuple[int, ...], cpu_target: str, rng: np.random.Generator
) -> None:
    """Same random numbers, same sides of every log-density: 1e-8 nats.

    Steep weights and little noise, so that Newton steps are halved and lanes stop at
    different steps. 1e-8: rounding, amplified by 1 / noise_std^2 = 2500 at the most.
    """
    noise_std = {2: 0.2, 3: 0.05, 4: 0.02}[len(widths)]
    num_inputs, num_points = 11, 9  # neither fills its last vector
    weights = [
        1.5 * rng.standard_normal((b, a)) / math.sqrt(a)
        for a, b in itertools.pairwise(widths)
    ]
    biases = [0.3 * rng.standard_normal(b) for b in widths[1:]]
    first = rng.uniform(-1, 1, (num_inputs, widths[0]))
    own = rng.integers(0, num_inputs, num_points)
    path = rng.standard_normal((num_points, sum(widths[:-1])))
    network = _reference._Network(weights, biases, activation, noise_std)
    points = np.array(
        [network.linearise(first[x], z)[0] for x, z in zip(own, path, strict=True)]
    )
    points += noise_std * rng.standard_normal(points.shape)
    groups = np.array(
        [
            [[x, x + 1] for x in own],
            [[0, num_inputs]] * num_points,
            [[min(x, 3), max(x + 1, 8)] for x in own],
        ]
    )
    for num_proposals in (4, 17):
        problem = (
            weights,
            biases,
            activation,
            noise_std,
            *(first, points, own, path, groups),
            rng.random((num_points, num_proposals + 2)),
            rng.standard_normal((num_points, num_proposals, sum(widths))),
        )
        exact = _reference.path_importance(*problem)
        code = ACTIVATIONS.index(activation)
        ours = _core.path_importance(*problem[:2], code, *problem[3:], 1)
        for side, expected in zip(ours, exact, strict=True):
            np.testing.assert_allclose(side, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("widths", [(2, 1), (3, 5, 4, 3)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_replica_kernel_computes_the_reference(
    activation: str, widths: tuple[int, ...], cpu_target: str, rng: np.random.Generator
) -> None:
    """Same draws, same sides: 1e-8 nats. 1, a whole vector, and vectors with a rest."""
    noise_std, num_inputs, num_points = 0.1, 5, 19  # more than one chunk of points
    weights = [
        1.5 * rng.standard_normal((b, a)) / math.sqrt(a)
        for a, b in itertools.pairwise(widths)
    ]
    biases = [0.3 * rng.standard_normal(b) for b in widths[1:]]
    first = rng.uniform(-1, 1, (num_inputs, widths[0]))
    own = rng.integers(0, num_inputs, num_points)
    path = rng.standard_normal((num_points, sum(widths[:-1])))
    network = _reference._Network(weights, biases, activation, noise_std)
    points = np.array(
        [network.linearise(first[x], z)[0] for x, z in zip(own, path, strict=True)]
    )
    points += noise_std * rng.standard_normal(points.shape)
    for num_draws in (1, 16, 21):
        problem = (
            *(noise_std, first, points, own, path),
            rng.standard_normal((path.shape[1], 40)),
            rng.integers(0, 40 - num_draws + 1, num_points),
            num_draws,
        )
        exact = _reference.path_replicas(weights, biases, activation, *problem)
        code = ACTIVATIONS.index(activation)
        ours = _core.path_replicas(weights, biases, code, *problem, 1)
        for side, expected in zip(ours, exact, strict=True):
            np.testing.assert_allclose(side, expected, rtol=0, atol=1e-8)


def sample(
    layers: NoisyLayers, inputs: Any, num_points: int, rng: np.random.Generator
) -> tuple[Any, Any, Any]:
    """Points of the last layer, their inputs, and their noise paths."""
    own = np.arange(num_points) % len(inputs)
    noise = rng.standard_normal((num_points, sum(layers.widths)))
    clean = layers.clean_outputs(inputs[own], noise)[-1]
    d = clean.shape[1]
    return clean + layers.noise_std * noise[:, -d:], own, noise[:, :-d]


def brackets(
    layers: NoisyLayers,
    inputs: Any,
    num_points: int,
    num_proposals: int,
    rng: np.random.Generator,
) -> dict[str, tuple[float, float, float]]:
    """(lower, upper, standard error) of h(T), h(T|X) and I(X;T) of the last layer."""
    points, own, path = sample(layers, inputs, num_points, rng)
    groups = np.stack(
        [
            np.stack([own, own + 1], axis=1),
            np.tile([0, len(inputs)], (num_points, 1)),
        ]
    )
    sides = path_log_densities(
        *(layers, len(layers.widths), inputs, points, own, path, groups),
        num_proposals=num_proposals,
        generator=rng,
    )
    (low, high) = (sides.lower, sides.upper)

    def of(lower: Any, upper: Any) -> tuple[float, float, float]:
        error = max(lower.std(), upper.std()) / math.sqrt(num_points)
        return lower.mean(), upper.mean(), error

    return {
        "conditional": of(-high[0], -low[0]),
        "entropy": of(-high[1], -low[1]),
        "information": of(low[0] - high[1], high[0] - low[1]),
    }


@pytest.mark.parametrize("num_proposals", [4, 17])
def test_mean_weights_are_unbiased_and_their_inverses_too(
    num_proposals: int, rng: np.random.Generator
) -> None:
    """E[mean w] = p at fixed points; with the own path, E[p / mean w] = 1 over points.

    These two identities are all that the bracket rests on. A network far from linear,
    so that every kind of strata matters; p(y | x) and p(y) by quadrature.
    """
    network = oracles.TanhNetwork(1.5, 6.0, 0.2)
    inputs = np.linspace(-1.2, 1.2, 5)[:, None]
    weights = [np.array([[network.first]]), np.array([[network.second]])]
    layers = NoisyLayers(weights, [np.zeros(1)] * 2, "tanh", network.noise_std)
    num_points = 40_000
    points, own, path = sample(layers, inputs, num_points, rng)
    groups = np.stack(
        [np.stack([own, own + 1], axis=1), np.tile([0, 5], (num_points, 1))]
    )
    sides = path_log_densities(
        *(layers, 2, inputs, points, own, path, groups),
        num_proposals=num_proposals,
        generator=rng,
    )
    given_input = network.densities(inputs[:, 0], points[:, 0])  # (5, points)
    exact = np.stack(
        [given_input[own, np.arange(num_points)], given_input.mean(axis=0)]
    )
    for name, ratio in (
        ("lower", np.exp(sides.lower) / exact),
        ("upper", exact / np.exp(sides.upper)),
    ):
        error = ratio.std(axis=1) / math.sqrt(num_points)
        assert (np.abs(ratio.mean(axis=1) - 1) <= 4 * error).all(), name
        assert (error < 0.02).all(), name


@pytest.mark.parametrize("num_draws", [30, 100])
def test_replicas_are_unbiased_and_their_inverses_too(
    num_draws: int, rng: np.random.Generator
) -> None:
    """As for proposals; a nearly stepwise unit. Few draws: p / mean has heavy tails."""
    network = oracles.TanhNetwork(1.0, 20.0, 0.2)
    inputs = np.linspace(-1.2, 1.2, 5)[:, None]
    weights = [np.array([[network.first]]), np.array([[network.second]])]
    layers = NoisyLayers(weights, [np.zeros(1)] * 2, "tanh", network.noise_std)
    # Over all t, any density would have the mean 1: near the middle it must be p's.
    means: dict[str, list[float]] = {"lower": [], "upper": []}
    for _ in range(40):  # points of a call share draws: the call is the sample
        points, own, path = sample(layers, inputs, 1000, rng)
        sides = replica_log_densities(
            *(layers, 2, inputs, points, own, path), num_draws=num_draws, generator=rng
        )
        exact = network.densities(inputs[:, 0], points[:, 0])[own, np.arange(1000)]
        middle = np.abs(points[:, 0]) < 0.8
        means["lower"].append(np.mean((np.exp(sides.lower) / exact)[middle]))
        means["upper"].append(np.mean((exact / np.exp(sides.upper))[middle]))
    for name, ratios in means.items():
        error = np.std(ratios, ddof=1) / math.sqrt(len(ratios))
        assert abs(np.mean(ratios) - 1) <= 4 * error, name
        assert error < 0.02, name


class RecordingGenerator(np.random.Generator):
    """Keeps what it drew."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))
        self.normals: list[Any] = []
        self.starts: list[Any] = []

    def standard_normal(self, *args: Any, **options: Any) -> Any:
        self.normals.append(super().standard_normal(*args, **options))
        return self.normals[-1]

    def integers(self, *args: Any, **options: Any) -> Any:
        self.starts.append(super().integers(*args, **options))
        return self.starts[-1]


@pytest.mark.parametrize("most", [2**23, 16 * 40, 16 * 14, 1])
def test_replicas_in_parts_are_those_of_all_draws(
    most: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean weights of all draws by the formula; the known path replaces the last."""
    monkeypatch.setattr(importance, "_NUMBERS_AT_A_TIME", most)
    weights = [rng.standard_normal((2, 3)), rng.standard_normal((1, 2))]
    layers = NoisyLayers(weights, [np.zeros(2), np.zeros(1)], "tanh", 0.3)
    inputs = rng.standard_normal((4, 3))
    points, own, path = sample(layers, inputs, 10, rng)
    generator = RecordingGenerator()
    found = replica_log_densities(
        *(layers, 2, inputs, points, own, path), num_draws=50, generator=generator
    )
    assert max(draws.size for draws in generator.normals) <= max(most, 16 * 2)
    first = np.tanh(inputs @ weights[0].T)
    for i, x in enumerate(own):
        windows = [
            draws[:, starts[i] : starts[i] + draws.shape[1] // 16].T
            for draws, starts in zip(generator.normals, generator.starts, strict=True)
        ]
        z = np.concatenate([*windows, path[i : i + 1]])
        assert len(z) == 51
        residual = points[i] - np.tanh((first[x] + 0.3 * z) @ weights[1].T)
        w = np.exp(-0.5 * (residual[:, 0] / 0.3) ** 2) / math.sqrt(2 * math.pi * 0.09)
        assert abs(found.lower[i] - math.log(w[:50].mean())) < 1e-9
        with_known = (w[:49].sum() + w[50]) / 50
        assert abs(found.upper[i] - math.log(with_known)) < 1e-9
        share = w[:50].sum() ** 2 / (w[:50] ** 2).sum() / 50
        assert abs(found.effective_sample_size[i] - share) < 1e-9


def test_an_own_input_that_seems_impossible_leaves_the_bracket_finite(
    cpu_target: str, rng: np.random.Generator
) -> None:
    """Steps so steep that the linearised network is certain, and wrong."""
    layers = NoisyLayers(
        [np.ones((6, 1)), 1e4 * np.eye(6)], [np.zeros(6)] * 2, "tanh", 0.1
    )
    inputs = np.array([[0.0], [1.0]])
    points, own, path = sample(layers, inputs, 20_000, rng)
    groups = np.tile([0, 2], (1, 20_000, 1))
    sides = path_log_densities(
        *(layers, 2, inputs, points, own, path, groups), num_proposals=16, generator=rng
    )
    # Six clean outputs of size at most 1 with noise 0.1: no density is above its peak.
    assert sides.upper.mean() <= -6 * math.log(0.1 * math.sqrt(2 * math.pi)) + 1
    assert sides.lower.mean() <= sides.upper.mean()


@pytest.mark.parametrize("num_proposals", [4, 64])
@pytest.mark.parametrize(
    ("first", "second", "noise_std"),
    [(1.0, 1.5, 0.1), (2.0, 4.0, 0.1), (1.5, 8.0, 0.15)],
)
def test_brackets_hold_the_quadrature_of_two_noisy_tanh_layers(
    first: float,
    second: float,
    noise_std: float,
    num_proposals: int,
    rng: np.random.Generator,
) -> None:
    inputs = np.linspace(-1.2, 1.2, 8)[:, None]
    network = oracles.TanhNetwork(first, second, noise_std)
    entropy, conditional = network.entropies(inputs[:, 0])
    exact = {
        "entropy": entropy,
        "conditional": conditional,
        "information": entropy - conditional,
    }
    layers = NoisyLayers(
        [np.array([[first]]), np.array([[second]])],
        [np.zeros(1), np.zeros(1)],
        "tanh",
        noise_std,
    )
    found = brackets(layers, inputs, 20_000, num_proposals, rng)
    for name, truth in exact.items():
        lower, upper, error = found[name]
        assert lower - 4 * error <= truth <= upper + 4 * error, name


def test_a_linear_network_has_its_closed_form(rng: np.random.Generator) -> None:
    """T_3 given X = x is Gaussian with covariance noise_std^2 (I + J J')."""
    widths = (4, 3, 2)
    weights = [
        rng.standard_normal((b, a)) for a, b in zip((5, *widths), widths, strict=False)
    ]
    layers = NoisyLayers(weights, [np.zeros(w) for w in widths], "linear", 0.3)
    inputs = rng.standard_normal((3, 5))
    propagated = np.hstack([weights[2] @ weights[1], weights[2]])
    gram = np.eye(2) + propagated @ propagated.T
    exact = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * 0.3**2 * gram)[1]
    lower, upper, error = brackets(layers, inputs, 4000, 64, rng)["conditional"]
    assert lower - 4 * error <= exact <= upper + 4 * error
    assert upper - lower < 0.01  # the proposal is exact: only its safeguards cost


def test_the_bracket_closes_as_proposals_grow(rng: np.random.Generator) -> None:
    layers = NoisyLayers(
        [np.array([[2.0]]), np.array([[4.0]])], [np.zeros(1), np.ones(1)], "tanh", 0.1
    )
    inputs = np.linspace(-1, 1, 6)[:, None]
    widths = []
    for num_proposals in (4, 16, 64, 256):
        lower, upper, _ = brackets(layers, inputs, 4000, num_proposals, rng)["entropy"]
        widths.append(upper - lower)
    assert all(later < 0.6 * earlier for earlier, later in itertools.pairwise(widths))


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    layers = NoisyLayers(
        [np.eye(3), np.ones((2, 3))], [np.zeros(3), np.zeros(2)], "tanh", 0.1
    )
    inputs = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    results = []
    for count in (1, 2, 3, 7):
        runtime.set_num_threads(count)
        found = brackets(layers, inputs, 300, 8, np.random.default_rng(1))
        results.append(found)
    runtime.set_num_threads(None)
    assert all(result == results[0] for result in results)


W1, W2 = np.ones((3, 4)), np.ones((2, 3))
B1, B2 = np.zeros(3), np.zeros(2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([W1, W2], [B1, B2], "cosine", 0.1), ValueError, "activation must be one of"),
        (([W1, W2], [B1], "tanh", 0.1), ValueError, "one array for every layer"),
        (([], [], "tanh", 0.1), ValueError, "at least one"),
        (([W1, W2], [B1, B1], "tanh", 0.1), ValueError, r"biases\[1\].*\(2,\)"),
        (([W1, W1], [B1, B1], "tanh", 0.1), ValueError, r"weights\[1\].*3 columns"),
        (([W1, W2 * np.nan], [B1, B2], "tanh", 0.1), ValueError, "must be finite"),
        (([W1, W2], [B1, B2 + np.inf], "tanh", 0.1), ValueError, r"biases\[1\]"),
        (([W1, W2], [B1, B2], "tanh", 0.0), ValueError, "noise_std must be positive"),
        (([W1 > 0, W2], [B1, B2], "tanh", 0.1), TypeError, "float32 or float64"),
    ],
)
def test_bad_layers_are_named(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        NoisyLayers(*arguments)


def valid_call() -> dict[str, Any]:
    return {
        "layers": NoisyLayers([W1, W2], [B1, B2], "tanh", 0.1),
        "layer": 2,
        "inputs": np.zeros((5, 4)),
        "points": np.zeros((6, 2)),
        "own": np.zeros(6, int),
        "path": np.zeros((6, 3)),
        "groups": np.tile([0, 5], (1, 6, 1)),
        "num_proposals": 4,
        "generator": np.random.default_rng(0),
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layer": 1}, ValueError, "layer must be between 2 and .* 2, got 1"),
        ({"layer": 3}, ValueError, "got 3"),
        ({"layer": 2.0}, TypeError, "layer must be an integer, got float"),
        ({"inputs": np.zeros((5, 3))}, ValueError, r"inputs must have shape \(5, 4\)"),
        ({"points": np.zeros((6, 3))}, ValueError, r"points must have .*got \(6, 3\)"),
        ({"points": np.full((6, 2), np.nan)}, ValueError, "points must be finite"),
        ({"own": np.zeros(5, int)}, ValueError, r"own must have shape \(6,\)"),
        ({"own": np.zeros(6)}, TypeError, "own must be integers, got float64"),
        ({"own": np.full(6, 5)}, ValueError, "groups must be ranges"),
        ({"path": np.zeros((6, 2))}, ValueError, r"path must have shape \(6, 3\)"),
        ({"groups": np.tile([0, 6], (1, 6, 1))}, ValueError, "end <= 5"),
        ({"groups": np.tile([1, 5], (1, 6, 1))}, ValueError, "with the point's own"),
        ({"groups": np.zeros((1, 6), int)}, ValueError, "groups must have shape"),
        ({"num_proposals": 3}, ValueError, "num_proposals must be at least 4, got 3"),
        ({"num_proposals": 4.5}, TypeError, "num_proposals must be an integer"),
        ({"generator": 0}, TypeError, "generator must be a numpy Generator, got int"),
        ({"layers": None}, TypeError, "layers must be NoisyLayers, got NoneType"),
        ({"points": np.full((6, 2), 1e300)}, ValueError, "not representable"),
        ({"path": np.full((6, 3), 1e300)}, ValueError, "not representable"),
    ],
)
def test_bad_arguments_are_named(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    path_log_densities(**valid_call())
    with pytest.raises(error, match=message):
        path_log_densities(**{**valid_call(), **change})


def test_no_points_give_empty_sides() -> None:
    empty = {"points": np.zeros((0, 2)), "own": np.zeros(0, int)}
    empty |= {"path": np.zeros((0, 3)), "groups": np.zeros((2, 0, 2), int)}
    sides = path_log_densities(**{**valid_call(), **empty})
    assert [side.shape for side in sides] == [(2, 0)] * 3


def valid_replica_call() -> dict[str, Any]:
    call = valid_call()
    del call["groups"], call["num_proposals"]
    return {**call, "num_draws": 3}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_draws": 0}, ValueError, "num_draws must be at least 1, got 0"),
        ({"num_draws": 1.5}, TypeError, "num_draws must be an integer"),
        ({"own": np.full(6, 5)}, ValueError, "groups must be ranges"),
        ({"generator": 0}, TypeError, "generator must be a numpy Generator, got int"),
        ({"points": np.full((6, 2), 1e300)}, ValueError, "not representable"),
    ],
)
def test_bad_arguments_of_replicas_are_named(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    replica_log_densities(**valid_replica_call())
    with pytest.raises(error, match=message):
        replica_log_densities(**{**valid_replica_call(), **change})
