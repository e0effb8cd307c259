"""Chains of any layers: brackets against exact answers, and what is not a chain."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import noisyflow
import oracles

torch = pytest.importorskip("torch")
from noisyflow import _chain_brackets, _chain_proposals  # noqa: E402
from noisyflow._chain_layers import ChainLayers  # noqa: E402
from noisyflow.chain import (  # noqa: E402
    NoisyChain,
    NotDifferentiableWarning,
    TargetWarning,
    chain_information,
)
from noisyflow.nn import GaussianNoise, NoisyMLP  # noqa: E402
from noisyflow.tracking import InformationTracker  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small problems: on a busy machine torch's threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


INPUTS = np.linspace(-1.2, 1.2, 8)[:, None]
LABELS = [0, 0, 0, 1, 1, 1, 2, 2]


def tanh_layers(network: oracles.TanhNetwork) -> list[Callable[[Any], Any]]:
    return [
        lambda x: torch.tanh(network.first * x),
        lambda t: torch.tanh(network.second * t),
    ]


def linear(weight: np.ndarray) -> Any:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = torch.tensor(weight, dtype=torch.float32)
    return layer


def points(
    layers: list[Callable[[Any], Any]],
    noise_std: float,
    inputs: np.ndarray,
    num_points: int,
    *,
    num_proposals: int,
    num_modes: int = 1,
    given: int = 0,
    label_sizes: np.ndarray | None = None,
    left_out: bool = False,
    skips: bool = False,
) -> Any:
    """Both sides at many points of the last layer, each input used as often."""
    known = ChainLayers(layers, [noise_std] * len(layers), torch.from_numpy(inputs))
    chain = _chain_brackets.Chain(
        *(known, len(layers), given, label_sizes, num_modes > 0),
        torch.Generator().manual_seed(0),
    )
    return chain.sides(
        np.arange(num_points) % len(inputs),
        *(num_proposals, num_modes),
        left_out=left_out,
        skips=skips,
    )


def assert_holds(lower: Any, upper: Any, exact: float, name: str) -> None:
    """The exact value is within the mean sides, four standard errors allowed."""
    errors = [4 * side.std() / math.sqrt(len(side)) for side in (lower, upper)]
    assert lower.mean() - errors[0] <= exact <= upper.mean() + errors[1], name


# -- both sides at points -------------------------------------------------------------


@pytest.mark.parametrize(("num_proposals", "num_modes"), [(1, 1), (4, 0), (16, 3)])
@pytest.mark.parametrize(
    ("first", "second", "noise_std"), [(2.0, 4.0, 0.1), (1.5, 8.0, 0.15)]
)
def test_brackets_hold_the_quadrature_of_two_noisy_tanh_layers(
    first: float, second: float, noise_std: float, num_proposals: int, num_modes: int
) -> None:
    network = oracles.TanhNetwork(first, second, noise_std)
    entropy, conditional = network.entropies(INPUTS[:, 0])
    parts = [network.entropies(part)[0] for part in np.split(INPUTS[:, 0], [3, 6])]
    given_label = float(np.dot(parts, [3 / 8, 3 / 8, 2 / 8]))
    p = points(
        *(tanh_layers(network), noise_std, INPUTS, 4000),
        num_proposals=num_proposals,
        num_modes=num_modes,
        label_sizes=np.array([3, 3, 2]),
    )
    assert_holds(p.entropy_lower, p.entropy_upper, entropy, "entropy")
    assert_holds(p.conditional_lower, p.conditional_upper, conditional, "conditional")
    assert_holds(p.lower, p.upper, entropy - conditional, "information")
    assert_holds(p.label_lower, p.label_upper, entropy - given_label, "label")


@pytest.mark.parametrize("num_modes", [0, 1, 3])
def test_mean_weights_are_unbiased_and_their_inverses_too(num_modes: int) -> None:
    """E[mean w] = p at fixed points; with the known path, E[p / mean w] = 1."""
    network = oracles.TanhNetwork(1.5, 6.0, 0.2)
    known = ChainLayers(
        tanh_layers(network), [0.2, 0.2], torch.from_numpy(INPUTS).clone()
    )
    tail = _chain_proposals.Tail(known, 1, 2)
    generator = torch.Generator().manual_seed(0)
    n, k_all = 5000, 16
    own = torch.arange(n) % len(INPUTS)
    clean = torch.tanh(1.5 * torch.from_numpy(INPUTS))[own]
    path = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    y = tail.output(clean, path) + 0.2 * noise
    draws = _chain_proposals.draw_and_weigh(
        *(tail, clean, y, torch.arange(n).repeat_interleave(k_all)),
        *(path, torch.arange(n), num_modes, generator),
    )
    exact = network.densities(INPUTS[:, 0], y.numpy()[:, 0])[own, np.arange(n)]
    weights = draws.proposed.reshape(n, k_all).exp().numpy()
    with_known = np.c_[weights[:, 1:], draws.known.exp().numpy()]
    for name, ratio in (
        ("without", weights.mean(1) / exact),
        ("with", exact / with_known.mean(1)),
    ):
        error = ratio.std() / math.sqrt(n)
        assert abs(ratio.mean() - 1) <= 4 * error, name
        assert error < 0.03, name


@pytest.mark.parametrize("skips", [False, True])
def test_where_the_input_is_certain_the_bracket_closes(skips: bool) -> None:
    """Little noise: the linearised chain is sure of most inputs, rightly."""
    network = oracles.TanhNetwork(1.0, 1.0, 0.03)
    entropy, conditional = network.entropies(INPUTS[:, 0])
    p = points(
        *(tanh_layers(network), 0.03, INPUTS, 6000), num_proposals=8, skips=skips
    )
    assert (p.skipped.mean() > 0.2) == skips
    assert_holds(p.lower, p.upper, entropy - conditional, "information")
    assert np.mean(p.upper - p.lower) < 0.015


def test_two_sampled_inputs_enclose_a_population_of_two_on_average() -> None:
    """X is +-1 with probability 1/2 each; samples repeat it as often as it happens."""
    network = oracles.TanhNetwork(1.0, 1.5, 0.3)
    exact = network.information(np.array([-1.0, 1.0]))
    generator = np.random.default_rng(3)
    found = []
    for _ in range(12):
        inputs = generator.choice([-1.0, 1.0], (6, 1))
        p = points(
            *(tanh_layers(network), 0.3, inputs, 600), num_proposals=8, left_out=True
        )
        found.append((p.lower.mean(), p.left_out_upper.mean()))
    lower, upper = np.array(found).T
    error = 4 * max(lower.std(), upper.std()) / math.sqrt(len(found))
    assert lower.mean() - error <= exact <= upper.mean() + error
    assert upper.mean() - lower.mean() > 0.05  # six inputs do not settle it


# -- closed forms ---------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 50])
def test_a_linear_network_is_exact(d: int, rng: np.random.Generator) -> None:
    """(1/2) log det(I + W W' / b^2): X ~ N(0, I) is layer 1 of a chain of input 0."""
    network = oracles.LinearGaussianNetwork(
        *(rng.standard_normal((2, d, d)).astype(np.float32) / (3 * math.sqrt(d))), 0.5
    )
    layers = [torch.nn.Identity(), linear(network.first), linear(network.second)]
    found = chain_information(
        NoisyChain(layers, [1.0, 0.5, 0.5]),
        np.zeros((1, d)),
        layer=3,
        given_layer=1,
        standard_error=0.005,
    )
    information = found.mutual_information
    assert found.method == "known-mixture"
    assert found.conditional_entropy is not None
    assert abs(found.conditional_entropy.value - network.conditional_entropy) < 1e-6
    assert information.standard_error <= 0.005
    assert abs(information.value - network.information) <= 0.01
    assert information.lower == information.upper


@pytest.mark.parametrize("at_a_time", [2**23, 64])
@pytest.mark.parametrize("dense_width", [256, 1])
def test_the_proposal_of_a_linear_network_is_its_posterior(
    dense_width: int,
    at_a_time: int,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights of functions that nothing is known of are constant, but for the prior.

    With and without Jacobians as matrices; wide to narrow, and back; all pairs at once
    and few at a time.
    """
    monkeypatch.setattr(_chain_proposals, "_DOUBLES_AT_A_TIME", at_a_time)
    monkeypatch.setattr(_chain_proposals, "DENSE_WIDTH", dense_width)
    monkeypatch.setattr(_chain_proposals, "_PRIOR_SHARE", 1e-12)
    for widths in ((4, 6, 3), (4, 3, 8)):
        matrices = [
            torch.from_numpy(rng.standard_normal((b, a)) / 2)
            for a, b in zip((2, *widths), widths, strict=False)
        ]
        layers = [lambda t, w=w: t @ w.T for w in matrices]
        p = points(layers, 0.3, rng.standard_normal((3, 2)), 60, num_proposals=3)
        both = np.hstack([matrices[2] @ matrices[1], matrices[2]])
        covariance = 0.09 * (np.eye(widths[2]) + both @ both.T)
        exact = 0.5 * np.linalg.slogdet(2 * math.pi * math.e * covariance)[1]
        np.testing.assert_allclose(
            p.conditional_lower, p.conditional_upper, rtol=0, atol=1e-6
        )
        assert_holds(p.conditional_lower, p.conditional_upper, exact, str(widths))


def test_a_diagonal_network_far_from_linear_given_an_earlier_layer() -> None:
    """I(T_1;T_3) of two independent units is twice that of one, by quadrature."""
    noise_std, slopes = 0.25, (2.0, 3.0)
    z = np.linspace(-8, 8, 401)
    z_weights = oracles.normal_density(z, 1) * (z[1] - z[0])
    t = np.arange(-3.2, 3.2, noise_std / 10)
    # T_1 = 0.3 + Z_1; given T_1, S_2 = tanh(2 t_1), T_2 = S_2 + Z_2.
    hidden = np.tanh(slopes[0] * (0.3 + noise_std * z))[:, None]
    means = np.tanh(slopes[1] * (hidden + noise_std * z))
    given = np.array(
        [oracles.normal_density(t[:, None] - m, noise_std) @ z_weights for m in means]
    )

    def entropy(p: np.ndarray) -> np.ndarray:
        return -np.trapezoid(p * np.log(np.maximum(p, 1e-300)), t, axis=-1)

    conditional = 2 * z_weights @ entropy(given)
    exact = 2 * entropy(z_weights @ given) - conditional
    layers = [lambda x: x, *(lambda t, w=w: torch.tanh(w * t) for w in slopes)]
    inputs = np.full((1, 2), 0.3)
    for num_proposals in (1, 16):
        p = points(
            *(layers, noise_std, inputs, 2000), num_proposals=num_proposals, given=1
        )
        sides = p.conditional_lower, p.conditional_upper
        assert_holds(*sides, conditional, f"conditional, {num_proposals}")
    found = chain_information(NoisyChain(layers, noise_std), inputs, 3, given_layer=1)
    information = found.mutual_information
    assert found.missed == ""
    error = 4 * information.standard_error
    assert information.lower - error <= exact <= information.upper + error
    assert found.ceiling == math.inf


# -- whole calls ----------------------------------------------------------------------


def test_standard_errors_are_honest() -> None:
    """Errors over seeds are about what the standard errors claim, and unbiased."""
    network = oracles.TanhNetwork(1.0, 1.5, 0.1)
    entropy, conditional = network.entropies(INPUTS[:, 0])
    halves = [network.entropies(part)[0] for part in np.split(INPUTS[:, 0], 2)]
    exact = entropy - conditional, entropy - float(np.mean(halves))
    chain = NoisyChain(tanh_layers(network), 0.1)
    scores = []
    for seed in range(12):
        found = chain_information(
            *(chain, INPUTS, 2),
            labels=[0] * 4 + [1] * 4,
            seed=seed,
        )
        assert found.missed == ""
        assert found.num_points >= 512
        both = found.mutual_information, found.label_information
        scores.append(
            [(e.value - x) / e.standard_error for e, x in zip(both, exact, strict=True)]
        )
    scores = np.array(scores)
    # Errors may be overestimated: some points are added for what was not seen.
    assert np.abs(scores).max() < 4.5
    assert (np.abs(scores.mean(0)) < 4 / math.sqrt(len(scores))).all()
    assert (scores.std(0) > 0.3).all()


class Residual(torch.nn.Module):
    """t + conv(tanh(norm(t)))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(2)
        self.conv = torch.nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return t + self.conv(torch.tanh(self.norm(t)))


def convolutional_network() -> Any:
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(inplace=True)),
        GaussianNoise(0.2),
        Residual(),
        torch.nn.MaxPool2d(2),
        GaussianNoise(0.2),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 2),
        torch.nn.Tanh(),
        GaussianNoise(0.1),
        torch.nn.Linear(2, 3),
    ).eval()
    network[2].norm.running_mean += 0.3
    network[2].norm.running_var *= 2
    torch.set_rng_state(generator_state)
    return network


def test_a_convolutional_network_agrees_with_sample_propagation() -> None:
    """Many samples of a layer of two units, for which the plug-in is good."""
    network = convolutional_network()
    images = np.random.default_rng(1).uniform(-2, 2, (24, 1, 6, 6)).astype(np.float32)
    labels = np.arange(24) % 2
    before = copy.deepcopy(network.state_dict())
    found = chain_information(
        *(NoisyChain.from_module(network), images, 3),
        labels=labels,
        standard_error=0.05,
        bracket_width=0.05,
    )
    assert found.method == "path-importance"
    assert found.fallback == ""
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name

    pieces = [network[0], network[2:4], network[5:8]]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        t = torch.from_numpy(images).repeat_interleave(400, 0)
        for piece, std in zip(pieces, (0.2, 0.2, None), strict=True):
            t = piece(t)
            if std is not None:
                t = t + std * torch.randn(t.shape, generator=generator)
    samples = t.numpy().reshape(24, 400, 2)
    for ours, theirs in (
        (found.mutual_information, noisyflow.mutual_information(samples, 0.1)),
        (
            found.label_information,
            noisyflow.mutual_information(samples, 0.1, labels=labels),
        ),
    ):
        assert ours is not None
        error = 4 * math.hypot(ours.standard_error, theirs.standard_error)
        assert ours.lower - error <= theirs.upper
        assert theirs.lower <= ours.upper + error
        assert ours.upper - ours.lower <= 0.05


def test_a_multilayer_perceptron_agrees_with_the_tracker() -> None:
    network = NoisyMLP([4, 3, 2, 2], noise_std=0.2, seed=1)
    inputs = np.random.default_rng(2).choice([-1.0, 1.0], (40, 4)).astype(np.float32)
    labels = inputs[:, 0] > 0
    tracked = InformationTracker(network, inputs, labels).measure(0)
    for layer, other in enumerate(tracked, 1):
        found = chain_information(
            NoisyChain.from_module(network), inputs, layer, labels=labels
        )
        for ours, theirs in (
            (found.mutual_information, other.mutual_information),
            (found.label_information, other.label_information),
        ):
            assert ours is not None
            assert theirs is not None
            error = 4 * math.hypot(ours.standard_error, theirs.standard_error)
            assert ours.lower - error <= theirs.upper
            assert theirs.lower <= ours.upper + error


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda t: torch.sign(t) * 0.7, "derivative is zero everywhere"),
        (lambda t: torch.from_numpy(np.sign(t.numpy()) * 0.7), "not differentiable: "),
    ],
    ids=["step", "numpy"],
)
def test_a_layer_without_derivative_is_named_and_still_enclosed(
    layer: Callable[[Any], Any], reason: str
) -> None:
    """S_2 = +-0.7, so T_2 is a mixture of two Gaussians, given X as well."""
    clean = np.linspace(-0.3, 0.3, 4)[:, None]
    chain = NoisyChain([lambda x: x, layer], 0.2)
    with pytest.warns(NotDifferentiableWarning, match=f"layer 2 .*{reason}"):
        found = chain_information(chain, clean, 2, with_entropies=True)
    assert found.method == "prior-proposals"
    assert found.fallback.startswith("layer 2 is not differentiable")
    above = 0.5 * (1 + np.vectorize(math.erf)(clean[:, 0] / (0.2 * math.sqrt(2))))
    given = [
        oracles.mixture_entropy_1d([0.7, -0.7], 0.2, np.array([p, 1 - p]))
        for p in above
    ]
    p = float(above.mean())
    whole = oracles.mixture_entropy_1d([0.7, -0.7], 0.2, np.array([p, 1 - p]))
    information = found.mutual_information
    error = 4 * information.standard_error
    exact = whole - float(np.mean(given))
    assert information.lower - error <= exact <= information.upper + error
    assert found.conditional_entropy is not None
    error = 4 * found.conditional_entropy.standard_error
    assert abs(found.conditional_entropy.value - np.mean(given)) <= error + 0.01


def test_a_target_out_of_reach_is_reported() -> None:
    network = oracles.TanhNetwork(1.0, 20.0, 0.2)
    chain = NoisyChain(tanh_layers(network), 0.2)
    with pytest.warns(TargetWarning, match="layer 2: standard error .* max_sec"):
        found = chain_information(
            *(chain, INPUTS, 2),
            standard_error=1e-4,
            bracket_width=1e-5,
            max_seconds=0.2,
            seed=2**64 - 1,
        )
    assert found.mutual_information.stopped_by == "seconds"
    assert "bracket" in found.missed
    assert found.missed_targets == ("standard_error", "bracket_width")
    with pytest.warns(TargetWarning, match="1 proposals"):
        found = chain_information(chain, INPUTS, 2, num_proposals=1, max_pairs=100)
    assert found.mutual_information.stopped_by == "pairs"
    assert found.num_proposals == 1


def test_the_pilot_that_chose_the_proposals_is_no_part_of_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Widths of known mean, whatever the proposals: what is reported has that mean."""
    generator = np.random.default_rng(0)
    sides = _chain_brackets.Chain.sides

    def sides_of_known_width(
        chain: Any, own: Any, num_proposals: int, num_modes: int, **options: Any
    ) -> Any:
        p = sides(chain, own, 1, num_modes, **options)
        return dataclasses.replace(
            p, upper=p.lower + (generator.random(len(own)) < 0.04)
        )

    monkeypatch.setattr(_chain_brackets.Chain, "sides", sides_of_known_width)
    chain = NoisyChain(tanh_layers(oracles.TanhNetwork(1.0, 2.0, 0.3)), 0.3)
    widths = []
    for seed in range(40):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TargetWarning)
            found = chain_information(
                *(chain, INPUTS, 2), standard_error=0.1, bracket_width=0.04, seed=seed
            )
        information = found.mutual_information
        widths.append(information.upper - information.lower)
    error = math.sqrt(0.04 * 0.96 / (40 * 512))
    assert abs(np.mean(widths) - 0.04) <= 4 * error


def test_a_budget_leaves_points_to_the_result() -> None:
    network = oracles.TanhNetwork(1.0, 20.0, 0.2)
    chain = NoisyChain(tanh_layers(network), 0.2)
    with pytest.warns(TargetWarning, match="largest number of pairs"):
        found = chain_information(chain, INPUTS, 2, bracket_width=1e-4, max_pairs=2**21)
    assert found.num_points > 64  # the fewest at a time


def test_sampled_inputs_say_what_they_cannot_show() -> None:
    inputs = np.random.default_rng(0).standard_normal((30, 3))
    chain = NoisyChain([lambda x: x, lambda t: torch.tanh(t)], 0.01)
    found = chain_information(chain, inputs, 2, input_kind="sampled")
    information = found.mutual_information
    assert found.ceiling == math.log(30)
    assert abs(information.lower - math.log(30)) < 0.01
    assert information.upper > 100
    assert information.isolated > 0.99
    broad = NoisyChain([lambda x: x, lambda t: torch.tanh(t)], 1.0)
    with pytest.warns(TargetWarning, match="spread between sampled inputs"):
        found = chain_information(
            *(broad, inputs, 2), input_kind="sampled", standard_error=0.01
        )
    spread = found.mutual_information
    assert spread.stopped_by == "samples"
    assert spread.monte_carlo_error < spread.standard_error
    fixed = chain_information(broad, inputs, 2)
    assert fixed.mutual_information.upper < spread.upper


class PlusItself(torch.nn.Sequential):
    def forward(self, values: Any) -> Any:
        return values + 5 * torch.relu(super().forward(values))


class LoudNoise(GaussianNoise):
    def forward(self, inputs: Any) -> Any:
        return super().forward(2 * inputs)


def tanh_hook(module: Any, given: Any, output: Any) -> Any:
    return torch.tanh(3 * output)


def hooked() -> Any:
    layer = linear(np.array([[0.7, -1.1], [0.4, 0.9]]))
    layer.register_forward_hook(tanh_hook)
    return layer


def pre_hooked() -> Any:
    layer = torch.nn.Sequential(torch.nn.Identity())
    layer.register_forward_pre_hook(lambda module, given: (torch.tanh(given[0]),))
    return layer


def with_another_forward() -> Any:
    layer = torch.nn.Identity()
    layer.forward = torch.tanh
    return layer


class TanhInPlaceOfDropout(torch.nn.Dropout):
    def forward(self, values: Any) -> Any:
        return torch.tanh(values)


@pytest.mark.parametrize(
    "build",
    [
        lambda: PlusItself(linear(np.array([[0.7, -1.1], [0.4, 0.9]]))),
        lambda: torch.nn.Sequential(PlusItself(linear(np.eye(2)))),
        hooked,
        pre_hooked,
        with_another_forward,
        lambda: TanhInPlaceOfDropout().eval(),
    ],
)
def test_what_a_module_adds_to_its_kind_is_measured(build: Callable[[], Any]) -> None:
    """As the same layer given as a function, draw by draw."""
    layer, double = build(), build().double()
    inputs = np.random.default_rng(0).standard_normal((6, 2))
    first, noise = torch.nn.Identity(), GaussianNoise(0.3)
    network = torch.nn.Sequential(first, noise, layer, noise)
    found = [
        chain_information(chain, inputs, 2, standard_error=0.1, bracket_width=0.1)
        for chain in (
            NoisyChain.from_module(network),
            NoisyChain([first, layer], 0.3),
            NoisyChain([first, lambda t: double(t)], 0.3),
        )
    ]
    assert {one.method for one in found} == {"path-importance"}
    values = [one.mutual_information.value for one in found]
    np.testing.assert_allclose(values, values[2], rtol=0, atol=1e-6)


def test_functions_may_hold_trainable_parameters() -> None:
    """Detached or not, the same result; the parameters keep no gradient."""
    module = torch.nn.Linear(2, 2).double()
    inputs = np.random.default_rng(0).standard_normal((6, 2))
    weight, bias = module.weight.detach(), module.bias.detach()

    def measured(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Any:
        chain = NoisyChain([first, second], 0.3)
        return chain_information(
            *(chain, inputs, 2), standard_error=0.1, bracket_width=0.1
        )

    found = measured(
        lambda x: torch.tanh(module(x)), lambda t: torch.tanh(2 * module(t))
    )
    assert found == measured(
        lambda x: torch.tanh(torch.nn.functional.linear(x, weight, bias)),
        lambda t: torch.tanh(2 * torch.nn.functional.linear(t, weight, bias)),
    )
    assert module.weight.grad is None
    assert module.weight.requires_grad


def test_the_first_layer_is_a_known_mixture() -> None:
    found = chain_information(
        NoisyChain([lambda x: x], 0.4), np.array([[-1.0], [1.0]]), 1, labels=[0, 1]
    )
    exact = 0.675942577381  # log 2 - E log(1 + e^-2(1 + 0.4 Z) / 0.16), quadrature
    for estimate in (found.mutual_information, found.label_information):
        assert estimate is not None
        assert abs(estimate.value - exact) <= 4 * estimate.standard_error
        assert estimate.lower == estimate.upper
    assert found.num_proposals == 0


def test_the_same_seed_gives_the_same_result() -> None:
    chain = NoisyChain(tanh_layers(oracles.TanhNetwork(1.0, 2.0, 0.2)), 0.2)
    first, second, other = (
        chain_information(chain, INPUTS, 2, seed=seed) for seed in (5, 5, 6)
    )
    assert first == second
    assert first.mutual_information.value != other.mutual_information.value


# -- what is not a chain --------------------------------------------------------------


def conv() -> Any:
    return torch.nn.Conv2d(1, 2, 3)


def with_nan() -> Any:
    layer = torch.nn.Linear(1, 1)
    layer.weight.data.fill_(math.nan)
    return layer


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ([lambda x: x, torch.nn.Linear(3, 1)], ValueError, r"layer 2 must accept T_1"),
        ([conv()], ValueError, r"layer 1 must accept the inputs, shape \(batch, 1\)"),
        ([lambda x: x, with_nan()], ValueError, "layer 2 must have finite weight"),
        ([lambda x: x / 0], ValueError, "layer 1 must return finite values"),
        ([lambda x: x[:1]], ValueError, "layer 1 must return one output per input"),
        ([lambda x: x.sum()], ValueError, "layer 1 must return one output per input"),
        ([lambda x: x - x.mean()], ValueError, "layer 1 must treat every input"),
        ([lambda x: x + torch.rand(1)], ValueError, "layer 1 must be deterministic"),
        (
            [lambda x: x, torch.nn.Sequential(torch.nn.Dropout(0.5))],
            ValueError,
            "layer 2, module '0': Dropout must be in evaluation mode",
        ),
        (
            [torch.nn.BatchNorm1d(1)],
            ValueError,
            "layer 1: BatchNorm1d must be in evaluation mode",
        ),
        (
            [torch.nn.BatchNorm1d(1, track_running_stats=False).eval()],
            ValueError,
            "layer 1: BatchNorm1d must track running statistics",
        ),
        ([lambda x: 1e15 * (2 + x)], ValueError, "outputs of layer 1"),
    ],
)
def test_bad_layers_are_named(
    layers: list[Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        chain_information(NoisyChain(layers, 0.1), INPUTS, len(layers))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"chain": None}, TypeError, "chain must be a NoisyChain, got NoneType"),
        ({"inputs": INPUTS[:, 0]}, ValueError, r"inputs must have shape \(m, ...\)"),
        ({"inputs": INPUTS[:0]}, ValueError, "inputs must not be empty"),
        ({"inputs": INPUTS * np.nan}, ValueError, "inputs must be finite"),
        ({"inputs": INPUTS > 0}, TypeError, "inputs must be float32 or float64"),
        ({"layer": 0}, ValueError, "layer must be at least 1, got 0"),
        ({"layer": 3}, ValueError, "layer must be at most 2, got 3"),
        ({"given_layer": 2}, ValueError, "given_layer must be at most 1, got 2"),
        ({"labels": [0, 1]}, ValueError, r"labels must have shape \(8,\)"),
        ({"input_kind": "random"}, ValueError, "got 'random'"),
        (
            {"input_kind": "sampled", "inputs": INPUTS[:1]},
            ValueError,
            "at least 2 for",
        ),
        (
            {"input_kind": "sampled", "labels": [0] * 7 + [1]},
            ValueError,
            "at least 2 inputs each",
        ),
        ({"standard_error": 0.0}, ValueError, "standard_error must be positive"),
        ({"bracket_width": -1}, ValueError, "bracket_width must be positive, got -1"),
        ({"num_proposals": 0}, ValueError, "num_proposals must be at least 1, got 0"),
        ({"max_seconds": 0}, ValueError, "max_seconds must be positive, got 0"),
        ({"max_pairs": 0}, ValueError, "max_pairs must be at least 1, got 0"),
        ({"with_entropies": 1}, TypeError, "with_entropies must be True or False"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_bad_arguments_are_named(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    call = {
        "chain": NoisyChain([lambda x: x, torch.tanh], 0.1),
        "inputs": INPUTS,
        "layer": 2,
    }
    with pytest.raises(error, match=message):
        chain_information(**{**call, **change})


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: NoisyChain([], 0.1), ValueError, "at least one layer"),
        (lambda: NoisyChain([torch.tanh, 3], 0.1), TypeError, "layer 2 .* got int"),
        (lambda: NoisyChain([torch.tanh], 0.0), ValueError, "noise_std must be pos"),
        (lambda: NoisyChain([torch.tanh], [0.1, 0.1]), ValueError, "1 layers, got 2"),
        (
            lambda: NoisyChain.from_module(torch.nn.Linear(1, 1)),
            TypeError,
            "must be a torch.nn.Sequential or a NoisyMLP, got Linear",
        ),
        (
            lambda: NoisyChain.from_module(torch.nn.Sequential(torch.nn.Tanh())),
            ValueError,
            "must hold GaussianNoise modules, got none",
        ),
        (
            lambda: NoisyChain.from_module(
                torch.nn.Sequential(NoisyMLP([1, 1, 1], noise_std=0.1))
            ),
            ValueError,
            "inside a NoisyMLP",
        ),
        (
            lambda: NoisyChain.from_module(PlusItself(GaussianNoise(0.1))),
            TypeError,
            "got PlusItself with a forward or forward hooks of its own",
        ),
        (
            lambda: NoisyChain.from_module(
                torch.nn.Sequential(PlusItself(GaussianNoise(0.1)))
            ),
            ValueError,
            "inside a PlusItself",
        ),
        (
            lambda: NoisyChain.from_module(torch.nn.Sequential(LoudNoise(0.1))),
            ValueError,
            "GaussianNoise with a forward",
        ),
    ],
)
def test_what_is_no_chain_is_refused(
    build: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build()


def test_noise_of_every_layer_may_differ() -> None:
    """I(T_1;T_2) of T_2 = T_1 + Z_2, layer 1 constant: (1/2) log(1 + a^2 / b^2)."""
    chain = NoisyChain([lambda x: x, lambda t: t * 1.0], [0.6, 0.2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = chain_information(chain, np.zeros((1, 1)), 2, given_layer=1)
    information = found.mutual_information
    exact = 0.5 * math.log(10)
    error = 4 * information.standard_error
    assert information.lower - error <= exact <= information.upper + error


def test_a_tracker_measures_every_layer_of_a_chain() -> None:
    network = oracles.TanhNetwork(1.0, 1.5, 0.3)
    chain = NoisyChain(tanh_layers(network), 0.3)
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    tracker = InformationTracker(chain, INPUTS, labels)
    layers = tracker.measure(epoch=3)
    assert [found.layer for found in layers] == [1, 2]
    for found in layers:
        assert found.missed_targets == ()
        assert found.label_information is not None
    exact = network.information(INPUTS[:, 0])
    information = layers[1].mutual_information
    margin = 4 * information.standard_error
    assert information.lower - margin <= exact <= information.upper + margin
    assert tracker.measure(epoch=3) == layers
    with pytest.raises(ValueError, match="noise_std is the chain"):
        InformationTracker(chain, INPUTS, noise_std=0.1)
    with pytest.raises(ValueError, match=r"finite, got nan at \[0, 0\]"):
        InformationTracker(chain, INPUTS * math.nan, labels)
    with pytest.raises(ValueError, match=r"labels must have shape \(8,\)"):
        InformationTracker(chain, INPUTS, labels[:-1])
    with pytest.raises(TypeError, match="clean_outputs"):
        InformationTracker(chain, INPUTS, method="sample-propagation")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: NoisyChain(torch.nn.Linear(1, 1), 0.1),
            TypeError,
            r"layers must be a sequence, got Linear; pass \[layer\]",
        ),
        (
            lambda: chain_information(
                NoisyChain([torch.tanh], 0.1), INPUTS, 1, num_proposals=10**9
            ),
            ValueError,
            "num_proposals must be at most 65536, got 1000000000",
        ),
        (
            lambda: chain_information(
                NoisyChain([torch.tanh], 0.1), INPUTS, 1, standard_error=1e-300
            ),
            ValueError,
            "standard_error must be at least 1e-12 nats, got 1e-300",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(call: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        call()
