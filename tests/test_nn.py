"""Noisy layers and networks: where noise is, where it is not, and whose it is."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch

from noisyflow.nn import (
    ACTIVATIONS,
    GaussianNoise,
    NoisyMLP,
    load_noise_state,
    noise_state,
    orthonormality_step,
)

SIZES = (4, 6, 5, 3, 2)


@pytest.fixture
def network() -> NoisyMLP:
    return NoisyMLP(SIZES, noise_std=0.1, seed=5)


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(50, 4, generator=torch.Generator().manual_seed(1))


def test_noise_has_the_stated_deviation_and_no_mean() -> None:
    noise = GaussianNoise(0.3, seed=1)(torch.zeros(400, 500))
    # 200,000 draws: 4 standard errors of the mean and of the deviation
    assert abs(noise.mean()) < 4 * 0.3 / 200_000**0.5
    assert abs(noise.std() - 0.3) < 4 * 0.3 / 400_000**0.5


def test_noise_is_off_in_evaluation_mode(
    network: NoisyMLP, inputs: torch.Tensor
) -> None:
    network.eval()
    hidden = inputs
    for linear in network.linears[:-1]:
        hidden = torch.tanh(linear(hidden))
    assert torch.equal(network(inputs), network.linears[-1](hidden))
    assert torch.equal(network(inputs), network(inputs))


def test_the_output_layer_has_no_noise(inputs: torch.Tensor) -> None:
    network = NoisyMLP(SIZES, noise_std=0.1)
    torch.nn.init.zeros_(network.linears[-1].weight)
    torch.nn.init.zeros_(network.linears[-1].bias)
    assert torch.equal(network(inputs), torch.zeros(50, 2))


def test_noise_is_added_after_every_hidden_activation(inputs: torch.Tensor) -> None:
    network = NoisyMLP((4, 6, 2), activation="relu", noise_std=0.1)
    seen: list[torch.Tensor] = []
    network.linears[-1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(inputs)
    clean = torch.relu(network.linears[0](inputs))
    assert (seen[0] < 0).any()  # after the activation, which alone is never negative
    assert 0.08 < (seen[0] - clean).std() < 0.12


def test_same_seed_same_bits_and_two_seeds_differ(inputs: torch.Tensor) -> None:
    first, again, other = (NoisyMLP(SIZES, noise_std=0.1, seed=s) for s in (0, 0, 1))
    assert torch.equal(first(inputs), again(inputs))
    assert not torch.equal(first.linears[0].weight, other.linears[0].weight)
    streams = [layer.generator.initial_seed() for layer in first.noises]
    streams += [layer.generator.initial_seed() for layer in other.noises]
    assert len(set(streams)) == len(streams)


def test_the_global_generator_is_neither_used_nor_changed(inputs: torch.Tensor) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    network = NoisyMLP(SIZES, noise_std=0.1, seed=3)
    network(inputs)
    network.clean_outputs(inputs, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_are_those_of_torch() -> None:
    ours = NoisyMLP(SIZES, noise_std=0.1, seed=8)
    seed = int(np.random.SeedSequence(8).generate_state(4, np.uint64)[0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        theirs = [torch.nn.Linear(a, b) for a, b in pairwise(SIZES)]
    for our_layer, their_layer in zip(ours.linears, theirs, strict=True):
        assert torch.equal(our_layer.weight, their_layer.weight)
        assert torch.equal(our_layer.bias, their_layer.bias)


@pytest.mark.parametrize("training", [True, False])
def test_clean_outputs_have_the_noise_of_earlier_layers_only(
    network: NoisyMLP, inputs: torch.Tensor, training: bool
) -> None:
    network.train(training)
    first, second, third = network.clean_outputs(inputs, 7, seed=2)
    assert [tuple(s.shape) for s in (first, second, third)] == [
        (50, 7, 6),
        (50, 7, 5),
        (50, 7, 3),
    ]
    exact = torch.tanh(network.linears[0](inputs))
    torch.testing.assert_close(first, exact[:, None].expand(-1, 7, -1))
    assert (second.std(dim=1) > 0).all()
    assert not first.requires_grad


def test_clean_outputs_follow_the_noise_they_were_given(
    network: NoisyMLP, inputs: torch.Tensor
) -> None:
    recorded = []
    plain = GaussianNoise.add_noise

    def recording(
        layer: GaussianNoise, clean: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        recorded.append((clean, plain(layer, clean, generator)))
        return recorded[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GaussianNoise, "add_noise", recording)
        outputs = network.clean_outputs(inputs, 2, seed=0)
    assert len(recorded) == 2  # nothing behind the last hidden layer
    for (clean, noisy), linear, output in zip(
        recorded, network.linears[1:-1], outputs[1:], strict=True
    ):
        assert 0.05 < (noisy - clean).std() < 0.15
        torch.testing.assert_close(output, torch.tanh(linear(noisy)))


def test_seeded_clean_outputs_leave_the_network_as_it_was(
    network: NoisyMLP, inputs: torch.Tensor
) -> None:
    before = noise_state(network)
    first = network.clean_outputs(inputs, 2, seed=4)
    again = network.clean_outputs(inputs, 2, seed=4)
    other = network.clean_outputs(inputs, 2, seed=5)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[2], other[2])
    assert all(map(torch.equal, noise_state(network), before))


def test_unseeded_clean_outputs_go_on_with_the_networks_own_noise(
    network: NoisyMLP, inputs: torch.Tensor
) -> None:
    first, second = network.clean_outputs(inputs), network.clean_outputs(inputs)
    assert not torch.equal(first[1], second[1])


def test_noise_continues_from_a_saved_state(
    network: NoisyMLP, inputs: torch.Tensor
) -> None:
    network(inputs)
    saved = noise_state(network)
    expected = network(inputs)
    load_noise_state(network, saved, torch.device("cpu"))
    assert torch.equal(network(inputs), expected)


def test_a_copied_network_makes_the_same_noise(
    network: NoisyMLP, inputs: torch.Tensor
) -> None:
    network(inputs)
    copied = copy.deepcopy(network)
    assert torch.equal(copied(inputs), network(inputs))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_applied(activation: str, inputs: torch.Tensor) -> None:
    expected = {
        "tanh": np.tanh,
        "relu": lambda a: np.maximum(a, 0),
        "leaky_relu": lambda a: np.where(a > 0, a, 0.01 * a),
        "linear": lambda a: a,
        "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    }
    network = NoisyMLP((4, 30, 2), activation=activation, noise_std=0.1)
    before = network.hidden_layers[0](inputs).detach().numpy()
    after = network.clean_outputs(inputs)[0][:, 0].numpy()
    np.testing.assert_allclose(after, expected[activation](before), rtol=1e-5)


def test_the_tracker_finds_what_it_reads(network: NoisyMLP) -> None:
    assert network.sizes == SIZES
    assert network.num_hidden == 3
    assert network.noise_std == 0.1
    assert network.activation == "tanh"
    assert [layer.out_features for layer in network.hidden_layers] == [6, 5, 3]


def test_orthonormality_step_is_the_formula() -> None:
    layer = NoisyMLP((4, 3, 2), noise_std=0.1).hidden_layers[0]
    weight = layer.weight.detach().double().numpy()
    bias = layer.bias.detach().clone()
    orthonormality_step([layer], 0.2)
    expected = weight - 0.2 * (weight @ weight.T @ weight - weight)
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=1e-5)
    assert torch.equal(layer.bias, bias)


@pytest.mark.parametrize("sizes", [(6, 4, 2), (4, 6, 2)])
def test_orthonormality_steps_make_rows_or_columns_orthonormal(
    sizes: tuple[int, ...],
) -> None:
    layer = NoisyMLP(sizes, noise_std=0.1).hidden_layers[0]
    for _ in range(500):
        orthonormality_step([layer], 0.2)
    singular_values = torch.linalg.svdvals(layer.weight.detach())
    torch.testing.assert_close(singular_values, torch.ones(4), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("noise_std", "message"),
    [
        (0.0, "noise_std must be positive and finite, got 0.0"),
        (float("nan"), "noise_std must be positive and finite, got nan"),
        (1e-300, "noise_std must be between 1e-15"),
        (1e300, "noise_std must be between 1e-15"),
        (True, "noise_std must be a real number, got bool"),
        ("0.1", "noise_std must be a real number, got str"),
    ],
)
def test_noise_std_must_be_a_positive_number(noise_std: float, message: str) -> None:
    for build in (
        GaussianNoise,
        lambda noise_std: NoisyMLP(SIZES, noise_std=noise_std),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            build(noise_std)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (-1, "seed must be at least 0, got -1"),
        (2**64, "seed must be at most 18446744073709551615, got 18446744073709551616"),
        pytest.param(
            10**5000, "seed must be at most .* got a number of 16610 bits", id="long"
        ),
        (None, "seed must be an integer, got NoneType"),
        (1.5, "seed must be an integer, got float"),
        ("a", "seed must be an integer, got str"),
        (True, "seed must be an integer, got bool"),
    ],
)
def test_seeds_are_integers_of_64_bits(seed: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        GaussianNoise(0.1, seed=seed)
    with pytest.raises((ValueError, TypeError), match=message):
        NoisyMLP(SIZES, noise_std=0.1, seed=seed)


def test_numpy_integers_are_integers(inputs: torch.Tensor) -> None:
    theirs = NoisyMLP(np.array(SIZES), noise_std=0.1, seed=np.int64(5))
    assert torch.equal(theirs(inputs), NoisyMLP(SIZES, noise_std=0.1, seed=5)(inputs))
    assert theirs.sizes == SIZES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": (4, 2)}, "sizes must name"),
        ({"sizes": (4, 0, 2)}, r"sizes\[1\] must be at least 1, got 0"),
        ({"sizes": (2, 2.5, 2)}, r"sizes\[1\] must be an integer, got float"),
        ({"sizes": (2, 10**12, 2)}, r"sizes\[1\] must be at most"),
        ({"sizes": (2, 10**6, 10**6)}, "sizes must make at most 2147483648 weights"),
        ({"sizes": None}, "sizes must be a sequence of integers, got NoneType"),
        ({"sizes": 5}, "sizes must be a sequence of integers, got int"),
        ({"sizes": "345"}, "sizes must be a sequence of integers, got str"),
        (
            {"activation": "tanhh"},
            "activation must be one of tanh, relu, .* got 'tanhh'",
        ),
        ({"activation": ["tanh"]}, "activation must be a str, got list"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        NoisyMLP(**{"sizes": SIZES, "noise_std": 0.1} | settings)


def test_the_noise_of_network_and_layers_cannot_differ_unseen(
    network: NoisyMLP,
) -> None:
    for owner in (network, network.noises[0]):
        with pytest.raises(AttributeError, match="noise_std"):
            owner.noise_std = 0.5
    network.noises[1] = GaussianNoise(0.5)
    with pytest.raises(ValueError, match=r"one noise_std, got \[0.1, 0.5\]"):
        _ = network.noise_std


def test_seeded_clean_outputs_do_not_reuse_the_networks_own_streams(
    inputs: torch.Tensor,
) -> None:
    network = NoisyMLP(SIZES, noise_std=0.1, seed=5)
    used = []
    plain = GaussianNoise.add_noise

    def recording(
        layer: GaussianNoise, clean: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        used.append(generator.initial_seed())
        return plain(layer, clean, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GaussianNoise, "add_noise", recording)
        network.clean_outputs(inputs, seed=5)
    own = np.random.SeedSequence(5).generate_state(4, np.uint64).tolist()
    assert len(used) == 2
    assert not {*used} & {*own}


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (
            torch.zeros(5, 3),
            ValueError,
            r"inputs must have shape \(m, 4\), got \(5, 3\)",
        ),
        (torch.zeros(4), ValueError, r"got \(4,\)"),
        (torch.zeros(5, 4, dtype=torch.float64), TypeError, "got torch.float64"),
        (torch.zeros(5, 4, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.zeros(5, 4, device="meta"), ValueError, "device cpu, got meta"),
        (None, TypeError, "inputs must be a torch tensor, got NoneType"),
        ([[0.0] * 4], TypeError, "got list; pass torch.as_tensor"),
        (np.zeros((5, 4), "f"), TypeError, "got ndarray; pass torch.as_tensor"),
    ],
)
def test_bad_inputs_are_named(
    network: NoisyMLP, inputs: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        network(inputs)
    with pytest.raises(error, match=message):
        network.clean_outputs(inputs)


def test_num_draws_must_be_positive(network: NoisyMLP, inputs: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        network.clean_outputs(inputs, 0)
    with pytest.raises(TypeError, match="num_draws must be an integer, got float"):
        network.clean_outputs(inputs, 1.5)


def test_noise_states_must_fit_the_network(network: NoisyMLP) -> None:
    with pytest.raises(ValueError, match="one state per noise layer"):
        load_noise_state(network, [], torch.device("cpu"))
    before = noise_state(network)
    foreign = [*before[:-1], torch.zeros(7, dtype=torch.uint8)]
    with pytest.raises(ValueError, match=r"states\[2\] is not the state of"):
        load_noise_state(network, foreign, torch.device("cpu"))
