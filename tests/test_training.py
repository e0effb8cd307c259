"""The training loop: what it optimises, that it repeats and resumes exactly."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch

from noisyflow.datasets import split, szt
from noisyflow.nn import NoisyMLP, orthonormality_step
from noisyflow.training import Trainer, evaluate, set_parameters

SIZES = (12, 10, 7, 5, 4, 3, 2)


def make_trainer(**settings: object) -> Trainer:
    """A trainer on the SZT task, fresh and always the same."""
    train, _ = split(szt(), seed=0)
    network = NoisyMLP(SIZES, noise_std=0.05, seed=1)
    return Trainer(network, train.inputs, train.labels, **{"seed": 2, **settings})


def assert_equal_states(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]
) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_one_pass_is_adam_on_the_noisy_cross_entropy_in_shuffled_batches() -> None:
    trainer = make_trainer(batch_size=1000)
    network = NoisyMLP(SIZES, noise_std=0.05, seed=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-4)
    order = torch.randperm(3277, generator=torch.Generator().manual_seed(2))
    for batch in order.split(1000):
        optimizer.zero_grad()
        logits = network(trainer.inputs[batch])
        torch.nn.functional.cross_entropy(logits, trainer.labels[batch]).backward()
        optimizer.step()

    trainer.train_epoch()
    expected = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    # Adam moves a weight by 4e-4 a step; its arithmetic differs in rounding only.
    torch.testing.assert_close(
        trainer.state()["parameters"], expected, atol=4e-7, rtol=1e-5
    )


def test_training_learns_the_task() -> None:
    _, test = split(szt(), seed=0)
    trainer = make_trainer()
    before = evaluate(trainer.network, test.inputs, test.labels)
    for _ in range(60):
        trainer.train_epoch()
    after = evaluate(trainer.network, test.inputs, test.labels)
    assert before.accuracy < 0.6
    assert after.accuracy > 0.8  # five other seeds: 0.86 to 0.89
    assert after.loss < before.loss - 0.2


def test_same_seed_gives_the_same_bits_and_two_seeds_differ() -> None:
    first, again, other = (make_trainer(seed=seed) for seed in (2, 2, 3))
    for trainer in (first, again, other):
        trainer.train_epoch()
    assert_equal_states(first.state(), again.state())
    assert not torch.equal(first.state()["parameters"], other.state()["parameters"])


@pytest.mark.parametrize("orthonormal_rate", [0.0, 1e-2])
def test_resumed_training_equals_undisturbed_bit_for_bit(
    orthonormal_rate: float,
) -> None:
    undisturbed = make_trainer(orthonormal_rate=orthonormal_rate)
    for _ in range(5):
        undisturbed.train_epoch()

    first = make_trainer(orthonormal_rate=orthonormal_rate)
    for _ in range(3):
        first.train_epoch()
    saved = safetensors.torch.save(first.state())
    second = make_trainer(orthonormal_rate=orthonormal_rate)
    second.load_state(safetensors.torch.load(saved))
    for _ in range(2):
        second.train_epoch()
    assert second.epochs_done == 5
    assert_equal_states(second.state(), undisturbed.state())


def test_a_state_taken_before_the_first_pass_resumes_too() -> None:
    first, second = make_trainer(), make_trainer(seed=9)
    second.load_state(first.state())
    first.train_epoch()
    second.train_epoch()
    assert_equal_states(first.state(), second.state())


def test_a_state_is_a_copy_that_training_leaves_alone() -> None:
    trainer = make_trainer()
    trainer.train_epoch()
    state = trainer.state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    trainer.train_epoch()
    assert_equal_states(state, kept)


def test_training_goes_on_after_someone_clears_the_gradients() -> None:
    first, second = make_trainer(), make_trainer()
    first.train_epoch()
    second.train_epoch()
    second.network.zero_grad(set_to_none=True)
    first.train_epoch()
    second.train_epoch()
    assert_equal_states(first.state(), second.state())


def test_orthonormality_follows_every_step_in_all_layers_but_the_last() -> None:
    plain = make_trainer(batch_size=4096)
    constrained = make_trainer(batch_size=4096, orthonormal_rate=0.1)
    plain.train_epoch()
    constrained.train_epoch()
    orthonormality_step(plain.network.hidden_layers, 0.1)
    assert_equal_states(plain.state(), constrained.state())


def test_training_leaves_the_number_of_threads_and_the_global_generator() -> None:
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    trainer = make_trainer()
    try:
        torch.set_num_threads(3)
        trainer.train_epoch()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), generator)


def test_evaluation_is_without_noise_and_keeps_the_mode() -> None:
    data = szt()
    network = NoisyMLP(SIZES, noise_std=10.0)
    first = evaluate(network, data.inputs, data.labels)
    assert network.training
    assert evaluate(network, data.inputs, data.labels) == first
    network.eval()
    logits = network(torch.from_numpy(data.inputs)).detach().double().numpy()
    logs = logits - np.logaddexp(logits[:, :1], logits[:, 1:])
    expected = -logs[np.arange(4096), data.labels].mean()
    assert first.loss == pytest.approx(expected, rel=1e-5)
    assert first.accuracy == (logits.argmax(axis=1) == data.labels).mean()


def test_set_parameters_restores_a_logged_network() -> None:
    trainer = make_trainer()
    trainer.train_epoch()
    other = NoisyMLP(SIZES, noise_std=0.05, seed=7)
    set_parameters(other, trainer.state()["parameters"].numpy())
    inputs = torch.from_numpy(szt().inputs)
    trainer.network.eval()
    other.eval()
    assert torch.equal(other(inputs), trainer.network(inputs))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite, got nan"),
        ({"learning_rate": None}, "learning_rate must be a real number, got NoneType"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer, got float"),
        ({"orthonormal_rate": -1.0}, "orthonormal_rate must be 0 or more and below 1"),
        ({"orthonormal_rate": 1e300}, "orthonormal_rate must be 0 or more and below"),
        ({"seed": 2**64}, "seed must be at most 18446744073709551615, got 1844674"),
        ({"seed": None}, "seed must be an integer, got NoneType"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_trainer(**settings)


@pytest.mark.parametrize(
    ("inputs", "labels", "error", "message"),
    [
        (np.zeros((0, 12)), np.zeros(0, int), ValueError, "inputs must be non-empty"),
        (np.zeros(12), np.zeros(12, int), ValueError, r"got shape \(12,\)"),
        (
            np.full((4, 12), np.inf),
            np.zeros(4, int),
            ValueError,
            "inputs must be finite",
        ),
        (np.zeros((4, 12)), np.zeros(4), TypeError, "labels must be integers"),
        (np.zeros((4, 12)), np.zeros(3, int), ValueError, "one class per input"),
        (np.zeros((4, 12)), np.full(4, -1), ValueError, "labels must be 0 or more"),
        (np.zeros((4, 12)), np.full(4, 2), ValueError, "labels must be below 2, .*got"),
        (np.zeros((4, 12)), np.ones(4, bool), TypeError, "labels must be integers"),
        (None, np.zeros(4, int), TypeError, "inputs must be an array of numbers"),
        (np.zeros((4, 12)), "abcd", TypeError, "labels must be an array of numbers"),
    ],
)
def test_bad_data_is_named(
    inputs: np.ndarray, labels: np.ndarray, error: type[Exception], message: str
) -> None:
    network = NoisyMLP(SIZES, noise_std=0.05)
    with pytest.raises(error, match=message):
        Trainer(network, inputs, labels)
    with pytest.raises(error, match=message):
        evaluate(network, inputs, labels)


def test_a_foreign_state_is_refused() -> None:
    trainer = make_trainer()
    state = trainer.state()
    with pytest.raises(ValueError, match=r"state must hold exp_avg, noise\.3"):
        trainer.load_state(
            {k: v for k, v in state.items() if k not in ("exp_avg", "noise.3")}
        )
    with pytest.raises(ValueError, match=r"parameters must have shape \(\d+,\)"):
        set_parameters(trainer.network, np.zeros(3))


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("parameters", torch.zeros(3)),
        ("parameters", torch.full((294,), float("nan"))),
        ("exp_avg", torch.zeros(5)),
        ("exp_avg", torch.zeros(267, dtype=torch.float64)),
        ("exp_avg_sq", torch.full((294,), -1.0)),
        ("step", torch.zeros(3)),
        ("epochs_done", torch.tensor([1, 2])),
        ("epochs_done", torch.tensor(-1)),
        ("shuffle", torch.zeros(5056, dtype=torch.uint8)),
        ("shuffle", torch.zeros(8, dtype=torch.uint8)),
        ("noise.1", torch.zeros(5056, dtype=torch.uint8)),
        ("noise.4", torch.zeros(5056)),
        ("step", 3.0),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(
    name: str, bad: torch.Tensor
) -> None:
    trainer = make_trainer()
    trainer.train_epoch()
    before = trainer.state()
    assert before["parameters"].shape == (294,)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        trainer.load_state({**before, name: bad})
    assert_equal_states(trainer.state(), before)


def test_labels_that_no_signed_number_holds_are_refused() -> None:
    labels = np.array([0, 1, 2**63 + 5], np.uint64)
    inputs = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match=r"labels must be below 2\^63, got 92.*813"):
        Trainer(NoisyMLP((2, 2, 2), noise_std=0.1), inputs, labels)
    Trainer(NoisyMLP((2, 2, 2), noise_std=0.1), inputs, labels % 2)
