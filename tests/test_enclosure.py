"""The enclosure of I(X;T_l): exact statements, closed forms, quadrature."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

import oracles
from noisyflow import enclosure
from noisyflow.enclosure import Enclosure, Proposals, Recipe, draw_points, enclose
from noisyflow.importance import ACTIVATIONS, NoisyLayers

LABEL_SIZES = np.array([2, 3])
INPUTS = np.linspace(-1.2, 1.2, 5)


def chain(network: oracles.TanhNetwork) -> NoisyLayers:
    """The oracle's two layers of one unit each."""
    weights = [np.array([[network.first]]), np.array([[network.second]])]
    return NoisyLayers(weights, [np.zeros(1)] * 2, "tanh", network.noise_std)


@pytest.mark.parametrize("prefers_replicas", [False, True])
def test_both_sides_are_exact_statements(
    prefers_replicas: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E[exp(lower) / p] = 1 at given t; E[p / exp(upper)] = 1 over t.

    For all three densities, a steep network, and a net heavy enough to be seen.
    """
    monkeypatch.setattr(enclosure, "_NET", 0.2)
    network = oracles.TanhNetwork(1.5, 6.0, 0.2)
    layers, inputs = chain(network), INPUTS[:, None]
    recipe = Recipe(*(Proposals(8, 40, prefers_replicas) for _ in range(2)))
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(40):  # points share a pool of replicas: the batch is the sample
        points = draw_points(layers, inputs, 500, rng)
        sides = Enclosure(layers, inputs, LABEL_SIZES).sides(points, 2, recipe, rng)
        given_input = network.densities(INPUTS, points.at(2)[:, 0])
        label = np.repeat([0, 1], LABEL_SIZES)[points.own]
        by_label = np.stack([given_input[:2].mean(0), given_input[2:].mean(0)])
        everywhere = np.arange(len(points))
        exact = {
            "conditional": given_input[points.own, everywhere],
            "pooled": given_input.mean(axis=0),
            "label": by_label[label, everywhere],
        }
        # Over all t, any density would have the mean 1: near the middle it must be p's.
        middle = np.abs(points.at(2)[:, 0]) < 0.6
        for term, density in exact.items():
            low, high = sides.densities[term]
            for name, ratio in (
                ("lower", np.exp(low) / density),
                ("upper", density / np.exp(high)),
            ):
                for where, some in (("all", slice(None)), ("middle", middle)):
                    key = (term, name, where)
                    ratios.setdefault(key, []).append(float(np.mean(ratio[some])))
    for name, means in ratios.items():
        error = np.std(means, ddof=1) / math.sqrt(len(means))
        assert abs(np.mean(means) - 1) <= 4 * error, name
        assert error < 0.02, name  # else it would notice nothing


@pytest.mark.parametrize(
    ("first", "second", "noise_std"),
    [(1.0, 1.5, 0.1), (2.0, 4.0, 0.1), (1.5, 8.0, 0.15), (1.0, 20.0, 0.2)],
)
def test_the_enclosure_holds_the_quadrature(
    first: float, second: float, noise_std: float
) -> None:
    """Two noisy tanh layers; the last is nearly a step function."""
    inputs = np.linspace(-1.2, 1.2, 8)
    network = oracles.TanhNetwork(first, second, noise_std)
    (_, found) = enclose(
        *(chain(network), inputs[:, None], None),
        standard_error=0.003,
        bracket_width=0.01,
        generator=np.random.default_rng(0),
    )
    lower, upper, error = (side[0] for side in found.results())
    exact = network.information(inputs)
    assert lower - 4 * error <= exact <= upper + 4 * error
    assert error <= 0.003
    assert upper - lower <= 0.01


@pytest.mark.parametrize("recipe", [Proposals(4, 1, False), Proposals(4, 1, True)])
def test_bad_proposals_widen_the_bracket_around_the_truth(
    recipe: Proposals, rng: np.random.Generator
) -> None:
    """A step function seen through four proposals, or one replica of each input."""
    inputs = np.linspace(-1.2, 1.2, 8)
    network = oracles.TanhNetwork(1.0, 20.0, 0.2)
    layers = chain(network)
    points = draw_points(layers, inputs[:, None], 20_000, rng)
    sides = Enclosure(layers, inputs[:, None], None).sides(
        points, 2, Recipe(recipe, recipe), rng
    )
    (lower,), (upper,) = sides.information()
    exact = network.information(inputs)
    assert upper.mean() - lower.mean() > 0.2
    assert lower.mean() < exact < upper.mean()


def linear_problem(d: int, rng: np.random.Generator) -> tuple[NoisyLayers, Any, Any]:
    """Two linear layers, 40 inputs; log p(t|x) - log p(t) as a function of points."""
    weights = [rng.standard_normal((d, 6)), rng.standard_normal((d, d)) / math.sqrt(d)]
    layers = NoisyLayers(weights, [np.zeros(d)] * 2, "linear", 0.3)
    inputs = 0.1 * rng.standard_normal((40, 6))
    covariance = 0.3**2 * (np.eye(d) + weights[1] @ weights[1].T)
    means = inputs @ weights[0].T @ weights[1].T

    def information(points: enclosure.Points) -> Any:
        difference = points.at(2)[:, None, :] - means
        solved = np.linalg.solve(covariance, difference.reshape(-1, d).T).T
        terms = -0.5 * (difference * solved.reshape(difference.shape)).sum(axis=2)
        own = terms[np.arange(len(points)), points.own]
        return own - np.logaddexp.reduce(terms, axis=1) + math.log(len(inputs))

    return layers, inputs, information


@pytest.mark.parametrize("d", [2, 10, 50])
def test_linear_networks_have_their_closed_form(
    d: int, rng: np.random.Generator
) -> None:
    """t given x is Gaussian and p(t) a known mixture: 0.01 nats at the same points."""
    layers, inputs, information = linear_problem(d, rng)
    points = draw_points(layers, inputs, 2000, rng)
    recipe = Recipe(Proposals(256, 1, False), Proposals(256, 1, False))
    sides = Enclosure(layers, inputs, None).sides(points, 2, recipe, rng)
    (lower,), (upper,) = sides.information()
    exact = information(points).mean()
    assert lower.mean() - 0.001 <= exact <= upper.mean() + 0.001
    assert upper.mean() - lower.mean() < 0.01


def test_the_linearised_level_is_exact_for_linear_networks(
    rng: np.random.Generator,
) -> None:
    layers, inputs, information = linear_problem(5, rng)
    points = draw_points(layers, inputs, 500, rng)
    (found,) = Enclosure(layers, inputs, None).linearised(points, 2)
    expected = np.clip(information(points), -2, math.log(40))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    labelled = Enclosure(layers, inputs, np.array([40])).linearised(points, 2)
    np.testing.assert_allclose(labelled[1], 0, rtol=0, atol=1e-9)  # a single label


@pytest.mark.parametrize("numbers_at_a_time", [2**23, 2000])
def test_a_narrow_layer_after_wide_ones_is_linearised(
    numbers_at_a_time: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cov(T_3) = s^2 (I + W_3 W_3' + W_3 W_2 (W_3 W_2)') of a linear network."""
    monkeypatch.setattr(enclosure, "_NUMBERS_AT_A_TIME", numbers_at_a_time)
    shapes = [(60, 4), (40, 60), (3, 40)]
    w = [rng.standard_normal(shape) / math.sqrt(shape[1]) for shape in shapes]
    layers = NoisyLayers(w, [np.zeros(len(a)) for a in w], "linear", 0.3)
    inputs = rng.standard_normal((20, 4))
    points = draw_points(layers, inputs, 200, rng)
    found = Enclosure(layers, inputs, None)
    assert found.linearised(points, 2) is None  # 40 units
    both = w[2] @ w[1]
    covariance = 0.09 * (np.eye(3) + w[2] @ w[2].T + both @ both.T)
    difference = points.at(3)[:, None] - (inputs @ (both @ w[0]).T)[None]
    squares = np.einsum(
        "nmi,ij,nmj->nm", difference, np.linalg.inv(covariance), difference
    )
    own = -0.5 * squares[np.arange(len(points)), points.own]
    expected = own - np.logaddexp.reduce(-0.5 * squares, axis=1) + math.log(20)
    (values,) = found.linearised(points, 3)
    np.testing.assert_allclose(
        values, np.clip(expected, -2, math.log(20)), rtol=0, atol=1e-9
    )
    monkeypatch.setattr(enclosure, "_MOST_COVARIANCES", 20 * 9 - 1)
    assert Enclosure(layers, inputs, None).linearised(points, 3) is None


def test_wide_layers_form_no_covariances(rng: np.random.Generator) -> None:
    m, d = 300, 100
    weights = [rng.standard_normal((d, d)) / 20 for _ in range(3)]
    layers = NoisyLayers(weights, [np.zeros(d)] * 3, "tanh", 0.1)
    inputs = rng.standard_normal((m, d))
    points = draw_points(layers, inputs, 50, rng)
    found = Enclosure(layers, inputs, None)
    tracemalloc.start()
    try:
        assert found.linearised(points, 3) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < m * d * d


def test_covariances_beyond_float64_leave_the_linearised_level_out() -> None:
    weights = [np.eye(2), 1e10 * np.eye(2) @ np.ones((2, 2))]
    layers = NoisyLayers(weights, [np.zeros(2)] * 2, "linear", 0.1)
    points = draw_points(layers, np.eye(2), 10, np.random.default_rng(0))
    assert Enclosure(layers, np.eye(2), None).linearised(points, 2) is None


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slopes_are_derivatives(activation: str) -> None:
    layers = NoisyLayers([np.eye(1)], [np.zeros(1)], activation, 0.1)
    x, step = np.array([-1.3, -0.2, 0.4, 2.0]), 1e-6
    change = layers.activate(x + step) - layers.activate(x - step)
    found = layers.slopes(layers.activate(x))
    np.testing.assert_allclose(found, change / (2 * step), atol=1e-8)


def test_two_levels_have_an_honest_standard_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """48 seeds, few exact points: the spread is that claimed, around the quadrature.

    A sample standard deviation of 48 has a relative error of 1/10: three of them.
    """
    monkeypatch.setattr(enclosure, "_POINTS_PER_ROUND", 2048)
    monkeypatch.setattr(enclosure, "_MOST_ROUNDS", 1)
    inputs = np.linspace(-1.2, 1.2, 16)
    network = oracles.TanhNetwork(1.5, 8.0, 0.15)  # both levels matter
    values, errors = [], []
    for seed in range(48):
        (_, found) = enclose(
            *(chain(network), inputs[:, None], None),
            standard_error=0.05,
            bracket_width=0.01,
            generator=np.random.default_rng(seed),
        )
        assert found.num_exact < found.num_points
        assert found.slopes[0] > 0
        lower, upper, error = (side[0] for side in found.results())
        values.append(0.5 * (lower + upper))
        errors.append(error)
    claimed = math.sqrt(np.mean(np.square(errors)))
    assert 0.7 <= np.std(values, ddof=1) / claimed <= 1.3
    off = abs(np.mean(values) - network.information(inputs))
    assert off <= 4 * claimed / math.sqrt(48) + 0.005
