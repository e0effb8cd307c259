"""The SZT network without noise: how it is trained, and what is said of its outputs."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from noisyflow import datasets, film, plotting
from noisyflow.experiments import szt_deterministic
from noisyflow.experiments.szt_deterministic_findings import (
    WITH,
    WITHOUT,
    Study,
    claims,
)
from noisyflow.experiments.szt_network import SIZES
from noisyflow.experiments.szt_without_noise import (
    clean_outputs,
    information,
    separations,
)
from noisyflow.nn import NoisyMLP
from noisyflow.runs import RunFolder
from noisyflow.training import Trainer

CONFIG = szt_deterministic.Config(
    epochs=3, num_log_points=2, bin_widths=[0.1, 1e-4], seed=3
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of three passes, measured at epochs 1 and 2."""
    out = tmp_path_factory.mktemp("runs") / "deterministic"
    assert szt_deterministic.run(CONFIG, out)
    return RunFolder(out)


@pytest.fixture(scope="module")
def study(folder: RunFolder) -> Study:
    without, noisy = (
        RunFolder(folder.path / "networks" / name).results()
        for name in ("deterministic", "noisy")
    )
    return Study(CONFIG, without, noisy)


def some_parameters(scale: float = 1.0) -> np.ndarray:
    """Weights and biases of an untrained network, times a number."""
    network = NoisyMLP(SIZES, noise_std=0.1, seed=5)
    return scale * np.concatenate(
        [one.detach().numpy().ravel() for one in network.parameters()]
    )


def test_training_without_noise_is_that_of_the_plain_network() -> None:
    network = NoisyMLP(SIZES, noise_std=0.5, seed=2)
    plain = torch.nn.Sequential()
    for linear in network.linears:
        layer = torch.nn.Linear(linear.in_features, linear.out_features)
        layer.load_state_dict(linear.state_dict())
        plain.extend([layer, torch.nn.Tanh()])
    plain = plain[:-1]
    data = datasets.szt()
    trainer = Trainer(
        network, data.inputs, data.labels, learning_rate=0.01, noise=False, seed=7
    )
    before = trainer.state()
    trainer.train_epoch()
    trainer.train_epoch()
    after = trainer.state()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01, fused=True)
    shuffle = torch.Generator().manual_seed(7)
    for _ in range(2):
        order = torch.randperm(len(data), generator=shuffle).numpy()
        for batch in np.split(order, 16):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(
                plain(torch.from_numpy(data.inputs[batch])),
                torch.from_numpy(data.labels[batch]),
            ).backward()
            optimizer.step()
    expected = torch.cat([one.detach().ravel() for one in plain.parameters()])
    # The order of float32 sums may differ: 32 steps of 0.01 are 0.3 at most.
    torch.testing.assert_close(after["parameters"], expected, rtol=0, atol=1e-4)
    assert not torch.allclose(after["parameters"], before["parameters"], atol=1e-2)
    assert torch.equal(before["noise.0"], after["noise.0"])


def test_information_of_outputs_is_the_entropy_of_those_that_differ() -> None:
    outputs = np.array([[0.0, 1.0], [0.0, 1.0], [0.5, 1.0], [0.0, 2.0]])
    labels = np.array([0, 1, 1, 1])
    assert information(outputs) == pytest.approx(1.5 * np.log(2))
    # Given the first point Y is a fair coin, else it is 1: H(Y) - log(2) / 2.
    of_label = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert information(outputs, labels) == pytest.approx(of_label - 0.5 * np.log(2))
    assert information(np.arange(4096.0)[:, None]) == np.log(4096)


def test_outputs_are_those_of_the_network_in_evaluation_mode() -> None:
    network = NoisyMLP(SIZES, noise_std=0.1, seed=5).eval().double()
    hidden = torch.from_numpy(datasets.szt().inputs).double()
    for linear, outputs in zip(
        network.hidden_layers, clean_outputs(some_parameters(), np.float64), strict=True
    ):
        hidden = torch.tanh(linear(hidden))
        np.testing.assert_allclose(outputs, hidden.detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_rounding_stays_within_its_bound(scale: float) -> None:
    parameters = some_parameters(scale)
    if np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps:
        pytest.skip("no type longer than float64 here")
    longer = clean_outputs(parameters, np.longdouble)
    outputs = clean_outputs(parameters, np.float64)
    for one, exact, found in zip(outputs, longer, separations(parameters), strict=True):
        error = np.abs(one - exact).max()
        assert 0 < error <= found.rounding
        assert found.rounding < 1e-3 * found.gap  # small enough to be of use


def test_outputs_that_saturation_makes_coincide_are_not_called_different() -> None:
    apart, together = separations(some_parameters()), separations(some_parameters(60.0))
    assert all(one.is_sure and one.num_distinct == 4096 for one in apart)
    assert together[-1].num_distinct < 4096
    assert together[-1].gap == 0
    assert not together[-1].is_sure
    assert together[-1].num_distinct_float32 < together[-1].num_distinct


def test_gap_is_the_smallest_distance_of_two_outputs() -> None:
    parameters = some_parameters()
    outputs = clean_outputs(parameters, np.float64)[-1]
    gap = np.inf
    for at, one in enumerate(outputs[:-1]):
        gap = min(gap, np.abs(outputs[at + 1 :] - one).max(axis=1).min())
    assert separations(parameters)[-1].gap == gap > 0


def test_binned_entropy_is_that_of_counted_cells(study: Study) -> None:
    outputs = clean_outputs(study.deterministic.parameters[1], np.float64)[4]
    counts = Counter(tuple(cell) for cell in np.floor(outputs / 0.1).tolist())
    shares = np.array(list(counts.values())) / 4096
    expected = -(shares * np.log(shares)).sum()
    assert study.entropies[WITHOUT][0.1][1, 4] == pytest.approx(expected)
    assert 0 < expected < np.log(4096)


def test_noise_adds_entropy_to_narrow_bins(study: Study) -> None:
    for name in (WITHOUT, WITH):
        narrow, wide = (study.entropies[name][width] for width in (1e-4, 0.1))
        assert narrow.shape == wide.shape == (2, 5)
        assert (narrow >= wide).all()
    # 4096 outputs spread over (0.005 / 1e-4)^3 bins and more: hardly two in one.
    assert study.entropies[WITH][1e-4].min() > np.log(4096) - 0.05


def test_both_networks_begin_alike_and_only_one_has_noise(study: Study) -> None:
    quiet, noisy = study.deterministic.parameters[0], study.noisy.parameters[0]
    start = NoisyMLP(SIZES, noise_std=CONFIG.noise_std, seed=CONFIG.seed)
    first = np.concatenate([one.detach().ravel() for one in start.parameters()])
    apart = np.abs(quiet - noisy).max()
    assert 0 < apart < 0.1 * np.abs(quiet - first).max()


def test_answers_are_those_whose_accuracy_was_logged(study: Study) -> None:
    for right, results in zip(
        study.are_right, (study.deterministic, study.noisy), strict=True
    ):
        assert right.mean() == pytest.approx(results.history["test_accuracy"][-1])
        assert len(right) == 819


def test_information_without_noise_is_constant_and_claimed(study: Study) -> None:
    assert (study.deterministic.metrics["mutual_information"] == np.log(4096)).all()
    assert (study.deterministic.metrics["standard_error"] == 0).all()
    assert study.noisy.metrics["mutual_information"][0, 4] < 5
    found = {claim.statement: claim for claim in claims(study)}
    (distinct,) = (one for key, one in found.items() if "log 4096 in all" in key)
    assert distinct.holds is True
    (fall,) = (one for key, one in found.items() if "as if it were" in key)
    assert fall.holds is None
    assert "too short" in fall.measured


def test_report_shows_every_figure_and_saves_the_binned_entropies(
    folder: RunFolder, study: Study
) -> None:
    page = folder.report.read_text()
    assert page.count("<img") == len(list(folder.figures.glob("*.png"))) == 5
    with (folder.path / "binned_entropy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * 5  # networks, widths, epochs, layers
    assert {row["network"] for row in rows} == {"without_noise", "with_noise"}


def test_film_of_the_network_without_noise_shows_its_constant(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[plotting.Scenes] = []
    monkeypatch.setattr(
        plotting, "film", lambda scenes, suffix, fps: seen.append(scenes) or b""
    )
    inner = folder.path / "networks" / "deterministic"
    film.make_film(inner, tmp_path / "film.gif")
    assert (seen[0].values == np.log(4096)).all()
    assert seen[0].points[0].shape == (1000, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bin_widths": []}, "must be positive and all different"),
        ({"bin_widths": [0.0]}, "must be positive and all different"),
        ({"bin_widths": [0.1, 0.1]}, "must be positive and all different"),
        ({"bin_widths": [float("nan")]}, "bin_widths"),
        ({"bin_widths": "0.1"}, "must be a sequence of numbers, got str"),
        ({"bin_widths": 0.1}, "must be a sequence of numbers, got float"),
        ({"noise_std": 0.0}, "noise_std must be positive"),
        ({"epochs": 1}, "epochs must be at least 2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        szt_deterministic.configure(**settings)


def test_information_plane_has_ellipses_of_two_errors_and_half_the_bracket() -> None:
    generator = np.random.default_rng(0)
    estimates = []
    for _ in range(2):
        value = 1 + generator.random((4, 2))
        estimates.append(
            {
                "value": value,
                "standard_error": generator.random((4, 2)),
                "lower": value - generator.random((4, 2)),
                "upper": value + generator.random((4, 2)),
            }
        )
    figure, (axes,) = plotting.new_figure(4, 4)
    epochs = np.array([1, 10, 100, 1000])
    plotting.information_plane(
        axes, epochs, *estimates, input_entropy=3.0, label_entropy=2.5
    )
    figure.draw_without_rendering()
    first_layer, points = axes.collections[:2]
    (x, y) = estimates
    np.testing.assert_allclose(
        points.get_offsets(), np.stack([x["value"], y["value"]], axis=2)[:, 0]
    )
    for at, (width, height) in enumerate(
        zip(first_layer.get_widths(), first_layer.get_heights(), strict=True)
    ):
        for whole, one in ((width, x), (height, y)):
            low, high, error = (
                one[key][at, 0] for key in ("lower", "upper", "standard_error")
            )
            assert whole == pytest.approx(high - low + 4 * error)
    assert axes.collections[-1].norm(10) == pytest.approx(1 / 3)  # logarithmic
    assert axes.get_xlim()[1] > 3
    assert axes.get_ylim()[1] > 2.5
