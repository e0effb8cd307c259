"""Neurons, codes and the spiral: their exact values, and tiny runs from end to end."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracles
from noisyflow.experiments import (
    reed_muller,
    single_neuron,
    spiral,
    spiral_layer,
    two_neurons,
)
from noisyflow.experiments.exact_channels import (
    bent_densities,
    bent_information,
    gaussian_information,
)
from noisyflow.experiments.known_sources import full_code, reed_muller_words


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- Exact values


@pytest.mark.parametrize(
    ("levels", "std", "exact"),
    [
        ((-1, 1), 0.5, 0.632720193737),
        ((-1, 1), 2.0, 0.111421482185),
        ((-3, -1, 1, 3), 1.0, 0.845232755067),
        ((-3, -1, 1, 3), 0.1, 1.386294361120),
    ],
)
def test_quadrature_has_the_known_information_of_symbols(
    levels: tuple[float, ...], std: float, exact: float
) -> None:
    found = gaussian_information(np.array(levels, np.float64), std)
    assert found == pytest.approx(exact, abs=1e-10)


def test_quadrature_agrees_with_the_entropy_of_an_uneven_mixture() -> None:
    levels, std = np.array([-1.0, -0.97, -0.4, 0.9]), 0.05
    entropy = oracles.mixture_entropy_1d(tuple(levels), std)
    exact = entropy - oracles.noise_entropy(1, std)
    assert gaussian_information(levels, std) == pytest.approx(exact, abs=1e-9)


def test_bent_densities_are_the_integral_over_the_first_noise() -> None:
    """Density of max(U, U / 10) + Z, summed over U on a fine grid."""
    means, own, noise = np.array([-0.2, 0.02, 0.3]), 0.04, 0.05
    t = np.linspace(-0.3, 0.6, 19)
    z, step = np.linspace(-9, 9, 100_001, retstep=True)
    weight = np.exp(-0.5 * z**2) * step / math.sqrt(2 * math.pi)
    for mean, found in zip(
        means, bent_densities(t, means, own, 0.1, noise).T, strict=True
    ):
        u = mean + own * z
        bent = np.maximum(u, 0.1 * u)
        exact = [weight @ oracles.normal_density(point - bent, noise) for point in t]
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-8)


def test_without_noise_of_its_own_or_bend_it_is_a_gaussian_mixture() -> None:
    means = np.array([-0.4, 0.1, 0.5])
    straight = bent_information(means, 0.03, 1.0, 0.04)
    assert straight == pytest.approx(gaussian_information(means, 0.05), abs=1e-10)
    bent = np.maximum(means, 0.1 * means)
    assert bent_information(means, 0.0, 0.1, 0.05) == pytest.approx(
        gaussian_information(bent, 0.05), abs=1e-10
    )


@pytest.mark.parametrize(
    ("r", "m", "count", "distance"), [(0, 4, 2, 16), (1, 4, 32, 8), (2, 4, 2048, 4)]
)
def test_reed_muller_codes_have_their_words_and_distance(
    r: int, m: int, count: int, distance: int
) -> None:
    """2^k words, of which no two differ in fewer than 2^(m - r) bits."""
    words = reed_muller_words(r, m)
    assert words.shape == (count, 2**m)
    assert set(np.unique(words)) == {-1.0, 1.0}
    weights = (words > 0).sum(axis=1)
    assert weights[0] == 0
    assert weights[1:].min() == distance
    products = {tuple(word) for word in words}
    assert all(
        tuple(-a * b) in products for a, b in zip(words[1:], words[:-1], strict=True)
    )


def test_the_full_code_of_few_bits_is_every_word() -> None:
    assert len({tuple(word) for word in reed_muller_words(2, 2)}) == 16


def test_one_word_gives_the_information_of_the_code(rng: np.random.Generator) -> None:
    for words, exact in (
        (reed_muller_words(0, 3), full_code(1, 1.5 / math.sqrt(8)).information),
        (reed_muller_words(3, 3), full_code(8, 1.5).information),
    ):
        value, error = reed_muller.one_word(words, 1.5, rng)
        assert error < 0.02
        assert abs(value - exact) < 4 * error


# --- Training


def test_the_gradient_of_the_two_neurons_is_that_of_their_loss(
    rng: np.random.Generator,
) -> None:
    weights = np.array([[-0.7, 4.3, -0.4, 0.2], [0.3, -1.0, 0.8, -0.1]])
    noise = 0.05 * rng.standard_normal((2, 2, 8))

    def losses(at: Any) -> Any:
        off = two_neurons._forward(at, noise)[1] - two_neurons.TARGETS
        return (off**2).mean(axis=1)

    found = two_neurons._gradient(weights, noise)
    for k in range(4):
        step = np.zeros(4)
        step[k] = 1e-6
        slope = (losses(weights + step) - losses(weights - step)) / 2e-6
        np.testing.assert_allclose(found[:, k], slope, rtol=1e-5, atol=1e-7)


def test_the_neuron_learns_by_gradient_descent_on_its_squared_error() -> None:
    """With hardly any noise, two steps by hand from zero."""
    config = single_neuron.Config(num_steps=10, num_seeds=2, noise_std=0.01)
    trained = single_neuron.train(config)
    first = trained["weights"][1].mean(axis=0)
    # Of ((wx + b) - y)^2 / 4 at 0: in w -2 mean(x y) = -3, in b -2 mean(y) = 1.
    np.testing.assert_allclose(first, [0.01 * 3.0, -0.01 * 1.0], atol=1e-3)


# --- Runs


@pytest.fixture(scope="module")
def neuron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("neuron")
    config = single_neuron.configure(quick=True, num_steps=3000, learning_rate=0.1)
    assert single_neuron.run(config, out)
    return out


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two_neurons, "_NUM_LOGS", 8)
        patch.setattr(two_neurons, "_CHAIN_ERROR", 0.1)
        patch.setattr(two_neurons, "_DRAWS", 64)
        config = two_neurons.Config(num_seeds=2, num_steps=2500, learning_rate=5e-3)
        assert two_neurons.run(config, out)
    return out


def test_the_neurons_information_rises_and_falls_as_quadrature_says(
    neuron: Path,
) -> None:
    rows = [row for row in read(neuron / "metrics.csv") if row["repetition"] == "0"]
    exact = np.array([float(row["exact"]) for row in rows])
    found = np.array([float(row["mutual_information"]) for row in rows])
    assert exact[0] == pytest.approx(0, abs=1e-9)
    assert exact.max() == pytest.approx(math.log(4), abs=0.02)
    assert exact[-1] < 0.75
    np.testing.assert_allclose(found, exact, atol=1e-6)
    last = rows[-1]
    levels = np.tanh(float(last["weight"]) * single_neuron.INPUTS + float(last["bias"]))
    loss = ((levels - single_neuron.TARGETS) ** 2).mean() + 0.05**2
    assert float(last["loss"]) == pytest.approx(loss)


def test_the_two_neurons_bracket_holds_the_integral(chain: Path) -> None:
    rows = read(chain / "metrics.csv")
    enclosed = [row for row in rows if row["chain_lower"] != "nan"]
    assert len(enclosed) == 3
    for row in rows:
        exact, slack = float(row["exact_2"]), 4 * float(row["standard_error_2"]) + 1e-9
        assert float(row["lower_2"]) - slack <= exact <= float(row["upper_2"]) + slack
        assert exact <= float(row["exact_1"]) + 1e-9
    for row in enclosed:
        exact, slack = float(row["exact_2"]), 4 * float(row["chain_error"])
        assert float(row["chain_lower"]) - slack <= exact
        assert exact <= float(row["chain_upper"]) + slack


@pytest.mark.parametrize("name", ["neuron", "chain"])
def test_reports_stand_alone(name: str, request: pytest.FixtureRequest) -> None:
    page = (request.getfixturevalue(name) / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3
    assert "quadrature" in page
    assert "<script" not in page


def test_a_run_on_codes_finds_the_exact_values(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reed_muller, "_KNOWN", ((0, 4), (1, 4), (0, 5)))
        patch.setattr(reed_muller, "_KNOWN_NOISE", (0.5, 2.0))
        patch.setattr(reed_muller, "_NOISE", (0.1, 3.0))
        patch.setattr(reed_muller, "_DRAWS_OF_ONE_WORD", 5000)
        config = reed_muller.Config(num_repetitions=2, max_samples=100)
        assert reed_muller.run(config, tmp_path / "codes")
    rows = read(tmp_path / "codes" / "metrics.csv")
    known = [row for row in rows if row["method"] == "all words"]
    assert len(known) == 6
    by_code = {(row["source"], float(row["noise_std"])): row for row in known}
    repeated = by_code["RM(0,4)", 2.0]
    # One bit at noise 2 / 4, the known 0.632720193737 nats.
    exact = 0.632720193737 + oracles.noise_entropy(16, 2.0)
    slack = 4 * float(repeated["standard_error"])
    assert float(repeated["entropy"]) == pytest.approx(exact, abs=slack)
    assert "RM(5,5)" in (tmp_path / "codes" / "report.html").read_text()


def test_a_run_on_the_spiral_draws_the_network_it_measured(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spiral_layer, "_REFERENCE_DRAWS", 20)
        patch.setattr(spiral_layer, "_CHECK_POINTS", 600)
        config = spiral.Config(num_repetitions=2, max_samples=100, seed=3)
        assert spiral.run(config, tmp_path / "spiral")
    rows = read(tmp_path / "spiral" / "metrics.csv")
    assert {row["source"] for row in rows} == {"spiral-d10-noise0.2"}
    assert len(rows) == 3 * 3 * 2
    page = (tmp_path / "spiral" / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (single_neuron, {"num_seeds": 1}),
        (single_neuron, {"noise_std": 0.9}),
        (two_neurons, {"learning_rate": 0.0}),
        (two_neurons, {"num_steps": 5}),
        (reed_muller, {"max_samples": 10}),
        (spiral, {"num_repetitions": 1}),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    module: Any, settings: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        module.configure(**settings)
