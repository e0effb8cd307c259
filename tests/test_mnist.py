"""The digits' experiment: a tiny run from end to end, its networks, what it concludes.

The digits are stood in for by random ones of 8 x 8 pixels: what is tested is that they
are learned and measured, and that a run goes on as if it had not been stopped.
"""

from __future__ import annotations

import csv
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noisyflow import cli
from noisyflow.datasets import ImageDataset, TrainTest
from noisyflow.experiments import cells, mnist
from noisyflow.experiments.mnist import Arm, Config, Dropout, Network
from noisyflow.experiments.mnist_findings import BIN_WIDTHS, Study, claims
from noisyflow.nn import GaussianNoise
from noisyflow.runs import RunError

# The first noise is so small that it should change next to nothing.
TINY = Config(noise_stds=(1e-7, 0.5), num_seeds=2, epochs=2, seed=3)
ARMS = ["deterministic", "noise 1e-07", "noise 0.5", "dropout 0.2"]


def made_up(count: int, seed: int) -> ImageDataset:
    """Noisy copies of four pictures of 8 x 8 pixels."""
    pictures = np.random.default_rng(0).random((4, 64))
    labels = np.arange(count) % 4
    noise = np.random.default_rng(seed).standard_normal((count, 64))
    inputs = (pictures[labels] + 0.3 * noise).astype(np.float32)
    return ImageDataset(inputs, labels, (1, 8, 8))


IMAGES = TrainTest(made_up(100, 1), made_up(40, 2), is_split=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not disturbed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert mnist.run(TINY, out, images=IMAGES)
    return out


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- A run


def test_a_run_writes_all_that_it_promises(finished: Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*.*")}
    figures = ("errors", "similarity", "distances", "clustering", "units")
    assert files == {
        ".lock",
        "checkpoint.safetensors",
        "config.json",
        *(f"figures/{name}.png" for name in figures),
        "history.csv",
        "metrics.csv",
        "report.html",
        "report.json",
        "usage.json",
    }
    page = (finished / "report.html").read_text()
    assert "from memory" in page
    assert "came as one set" not in page
    assert "too small many times over" in page


def test_there_is_a_row_per_network_epoch_and_layer(finished: Path) -> None:
    rows = read(finished / "metrics.csv")
    keys = ("repetition", "arm", "epoch", "layer")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        (str(seed), arm, str(epoch), str(layer))
        for seed in range(2)
        for arm in ARMS
        for epoch in range(3)
        for layer in (1, 2, 3)
    ]
    for row in rows:
        assert 0 <= int(row["test_errors"]) <= 40
        assert 0 < float(row["within"]) < float(row["between"])
        for width in BIN_WIDTHS:
            assert 0 <= float(row[f"binned_entropy_{width:g}"]) <= math.log(40) + 1e-9
        for name in ("disturbed_test_errors", "recomputed_test_errors"):
            assert math.isnan(float(row[name])) == (row["epoch"] != "2")
        has_none = row["epoch"] != "2" or (row["arm"], row["repetition"]) == (
            "deterministic",
            "0",
        )
        for name in ("similarity", "recomputed_similarity"):
            assert math.isnan(float(row[name])) == has_none


def test_a_network_has_one_number_of_errors_whatever_the_layer(finished: Path) -> None:
    last = [row for row in read(finished / "metrics.csv") if row["epoch"] == "2"]
    names = ("test_errors", "recomputed_test_errors", "disturbed_test_errors")
    found = {
        (row["arm"], row["repetition"], *(row[name] for name in names)) for row in last
    }
    assert len(found) == 2 * len(ARMS)
    # Nothing to be on: as many as with nothing on.
    assert all(row[2] == row[4] for row in found if row[0] == "deterministic")


def test_networks_of_one_seed_start_alike_and_see_images_in_one_order(
    finished: Path,
) -> None:
    """All are one before training; noise that is next to nothing changes nothing."""
    rows = read(finished / "metrics.csv")
    for seed in "01":
        starts = [
            row for row in rows if (row["repetition"], row["epoch"]) == (seed, "0")
        ]
        for layer in "123":
            alike = [row for row in starts if row["layer"] == layer]
            assert len({(row["test_loss"], row["within"]) for row in alike}) == 1
    last = {
        (row["arm"], row["repetition"], row["layer"]): float(row["similarity"])
        for row in rows
        if row["epoch"] == "2"
    }
    for layer in "123":
        assert last["noise 1e-07", "1", layer] > 1 - 1e-6
        assert last["noise 0.5", "1", layer] < 0.999
        # Of another seed: units have nothing to do with each other.
        assert abs(last["deterministic", "1", layer]) < 0.5


def test_a_run_that_was_killed_ends_with_the_same_numbers(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within a cell that needs the deterministic network of one before it."""
    out = tmp_path / "run"
    compute = mnist._compute

    def killed(*arguments: Any) -> Any:
        if arguments[-1].repetition == 1 and arguments[-1].arm.noise_std == 0.5:
            raise SystemExit
        return compute(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        patch.setattr(mnist, "_compute", killed)
        with pytest.raises(SystemExit):
            mnist.run(TINY, out, images=IMAGES)
    assert len(read(out / "history.csv")) == 6
    other = TrainTest(made_up(100, 3), IMAGES.test, is_split=False)
    with pytest.raises(RunError, match="holds a run on other images than those given"):
        mnist.run(TINY, out, images=other)
    assert mnist.run(TINY, out, images=IMAGES)
    for name in ("metrics.csv", "figures/similarity.png", "figures/distances.png"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


def write_mnist(folder: Path) -> None:
    """The test files of MNIST alone, with 60 images of 4 x 4 pixels."""
    labels = (np.arange(60) % 3).astype("u1")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 4, 4)).astype("u1")
    pixels[:, 0, 0] = 80 * labels
    folder.mkdir()
    for name, values in (("images-idx3", pixels), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, values.ndim])
        header += struct.pack(f">{values.ndim}I", *values.shape)
        (folder / f"t10k-{name}-ubyte").write_bytes(header + values.tobytes())


def test_mnist_from_a_folder_from_the_shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    write_mnist(data)
    images = data / "t10k-images-idx3-ubyte"
    whole = images.read_bytes()
    words = ["run", "mnist", "--quick", "--data", str(data), "--out", str(out)]
    words += ["--set", "noise_stds=[0.1]"]
    images.write_bytes(whole[:-1])
    assert cli.main(words) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert f"{images} promises 60 x 4 x 4 values, 960 bytes" in complaint
    assert not out.exists()

    images.write_bytes(whole)
    assert cli.main(words) == 0
    page = (out / "report.html").read_text()
    assert "came as one set of 60, which was split by the seed: 48 to train" in page
    metrics = (out / "metrics.csv").read_bytes()

    # A finished run needs its images no more; figures can be made without them.
    shutil.rmtree(data)
    (out / "figures" / "distances.png").unlink()
    assert cli.main(words) == 0
    assert (out / "figures" / "distances.png").exists()
    assert (out / "metrics.csv").read_bytes() == metrics

    capsys.readouterr()
    assert cli.main([*words[:-3], str(out), "--seed", "1"]) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert cli.main([*words[:-4], "--out", str(tmp_path / "other")]) == 2
    assert f"{data} is missing; it must be a folder" in capsys.readouterr().err
    assert (out / "metrics.csv").read_bytes() == metrics


def test_without_scikit_learn_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("no module named 'sklearn'", name="sklearn")

    monkeypatch.setattr("noisyflow.datasets.digits", missing)
    with pytest.raises(RunError, match="pip install scikit-learn, or give --data"):
        mnist.run(TINY, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_that_leave_nothing_to_learn_are_refused(tmp_path: Path) -> None:
    blank = ImageDataset(0 * IMAGES.train.inputs, IMAGES.train.labels, (1, 8, 8))
    few = ImageDataset(IMAGES.train.inputs[:31], IMAGES.train.labels[:31], (1, 8, 8))
    for train, message in ((blank, "100, are equal$"), (few, "at least 32 inputs")):
        with pytest.raises(RunError, match=message):
            mnist.run(TINY, tmp_path / "run", images=IMAGES._replace(train=train))
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_stds": ()}, "noise_stds must increase, at least one"),
        ({"noise_stds": (0.2, 0.1)}, "noise_stds must increase"),
        ({"noise_stds": 0.1}, "noise_stds must be a list of numbers, got 0.1"),
        ({"noise_stds": (0.0,)}, "noise_std must be positive"),
        ({"dropout": 0.0}, "dropout must be between 0 and 1, got 0"),
        ({"dropout": 1.0}, "dropout must be between 0 and 1, got 1"),
        ({"momentum": -0.1}, "momentum must be between 0 and 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"num_seeds": 1}, "num_seeds must be at least 2"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"data": 3}, "data must be a folder's name, got int"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Config(**settings)


def test_larger_images_are_learned_for_fewer_epochs_unless_told() -> None:
    assert mnist.configure().epochs > mnist.configure(data="there").epochs
    assert mnist.configure(data="there", epochs=9).epochs == 9
    assert mnist.configure(data="there", quick=True).num_seeds == 2


# --- The networks


def test_the_network_is_that_of_the_paper() -> None:
    """Against torch's own layers, one after another."""
    nn = torch.nn
    network = Network((1, 28, 28), 10, Arm("deterministic"), seed=1)
    plain = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.Tanh()),
        *(nn.MaxPool2d(2), nn.Conv2d(16, 32, 5, padding=2), nn.BatchNorm2d(32)),
        *(nn.Tanh(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(1568, 128), nn.BatchNorm1d(128), nn.Tanh(), nn.Linear(128, 10)),
    )
    for ours, theirs in zip((0, 1, 2), (0, 4, 9), strict=True):
        plain[theirs].load_state_dict(network.maps[ours].state_dict())
    plain[12].load_state_dict(network.last.state_dict())
    images = torch.rand(5, 1, 28, 28)
    clean, logits = network(images)
    torch.testing.assert_close(logits, plain(images))
    for layer, depth in enumerate((3, 7, 12)):
        torch.testing.assert_close(clean[layer], plain[:depth](images))


def test_weights_are_uniform_as_glorot_has_them_and_biases_zero() -> None:
    network = Network((1, 28, 28), 10, Arm("deterministic"), seed=1)
    fans = [(25, 16 * 25), (16 * 25, 32 * 25), (1568, 128), (128, 10)]
    for layer, (fan_in, fan_out) in zip(
        (*network.maps, network.last), fans, strict=True
    ):
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert layer.weight.abs().max() <= bound
        # A uniform variable's deviation; 5 % is four of its errors for 400 weights.
        deviation = layer.weight.std().item()
        assert deviation == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert not layer.bias.any()


def test_noise_and_dropout_follow_every_hidden_layer_in_training_alone() -> None:
    noisy = Network((1, 8, 8), 10, Arm("n", noise_std=0.3), seed=1)
    assert [type(layer) for layer in noisy.disturbances] == [GaussianNoise] * 3
    assert [layer.noise_std for layer in noisy.disturbances] == [0.3] * 3
    assert len({layer.seed for layer in noisy.disturbances}) == 3
    images = torch.rand(6, 1, 8, 8)
    (before, _), (again, first), (_, second) = (noisy(images) for _ in range(3))
    torch.testing.assert_close(before[0], again[0])  # measured before the noise
    assert not torch.equal(first, second)
    noisy.eval()
    torch.testing.assert_close(noisy(images)[1], noisy(images)[1], rtol=0, atol=0)


def test_dropout_leaves_out_a_share_and_keeps_the_mean() -> None:
    dropout = Dropout(0.2, seed=5)
    values = torch.ones(200, 500)
    out = dropout(values)
    assert set(out.unique().tolist()) == {0.0, 1.25}
    # Four standard errors of a share of 100,000 units.
    error = math.sqrt(0.2 * 0.8 / values.numel())
    assert (out == 0).double().mean().item() == pytest.approx(0.2, abs=4 * error)
    torch.testing.assert_close(Dropout(0.2, seed=5)(values), out)
    assert not torch.equal(dropout(values), out)
    assert torch.equal(dropout.eval()(values), values)


@pytest.mark.parametrize("arm", [Arm("n", noise_std=0.3), Arm("d", dropout=0.2)])
def test_torchs_random_state_neither_matters_nor_changes(arm: Arm) -> None:
    images = torch.rand(6, 1, 8, 8)
    state = torch.get_rng_state()
    _, logits = Network((1, 8, 8), 10, arm, seed=1)(images)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    torch.testing.assert_close(Network((1, 8, 8), 10, arm, seed=1)(images)[1], logits)


def test_a_recomputed_normalisation_is_that_of_all_images_without_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against the moments of what the layers give, in parts of equal size."""
    arm = Arm("n", noise_std=0.5)
    network = Network((1, 8, 8), 4, arm, seed=1)
    images = torch.from_numpy(IMAGES.train.images)
    for _ in range(30):  # in training with noise, at which nothing of it may be left
        network(images)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    monkeypatch.setattr(mnist, "_MOST_IMAGES", 70)  # two parts of 50
    copy = mnist._calibrated(TINY, IMAGES, arm, network)
    assert not any(module.training for module in copy.modules())
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)

    def moments(values: list[torch.Tensor], axes: list[int]) -> list[torch.Tensor]:
        return [
            torch.stack([part.mean(dim=axes) for part in values]).mean(dim=0),
            torch.stack([part.var(dim=axes) for part in values]).mean(dim=0),
        ]

    hidden = [images[:50], images[50:]]
    for number, (weights, norm) in enumerate(zip(copy.maps, copy.norms, strict=True)):
        axes = [0, 2, 3] if number < 2 else [0]
        outputs = [weights(part) for part in hidden]
        mean, variance = moments(outputs, axes)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)
        fresh = norm.train()
        hidden = [torch.tanh(fresh(part)) for part in outputs]
        if number < 2:
            hidden = [torch.nn.functional.max_pool2d(part, 2) for part in hidden]
        if number == 1:
            hidden = [part.flatten(1) for part in hidden]


def test_the_entropy_of_single_units_is_that_of_their_counts() -> None:
    clean = np.array([[-0.9, 0.1], [-0.6, 0.2], [0.1, 0.3], [0.9, 0.4]], "f")
    # Bins of 0.5: counts 2, 1, 1 of the first unit, 4 of the second.
    expected = (1.5 * math.log(2) + 0) / 2
    assert mnist._unit_entropy(clean) == pytest.approx(expected, rel=1e-12)


# --- What is concluded


def study(
    errors: dict[str, list[float]],
    similarity: dict[str, float],
    fall: float,
    *,
    recomputed: dict[str, list[float]] | None = None,
    recomputed_similarity: dict[str, float] | None = None,
    entropy: float = 5.9,
) -> Study:
    """Made-up results of 1000 test images: what claims should say is known.

    With the normalisation recomputed they are the same unless given.
    """
    recomputed = recomputed or errors
    recomputed_similarity = recomputed_similarity or similarity
    rows = [
        {
            "arm": arm,
            "noise_std": float(arm.split()[1]) if arm.startswith("noise") else 0.0,
            "repetition": seed,
            "epoch": epoch,
            "layer": layer,
            "test_errors": errors[arm][seed],
            "recomputed_test_errors": recomputed[arm][seed],
            "within": 1.0 + 0.001 * seed - (fall if epoch else 0.0),
            "between": 1.0,
            "binned_entropy_0.5": entropy - (fall + 1e-5 * seed if epoch else 0.0),
            "unit_entropy": 1.0,
            "similarity": similarity.get(arm, math.nan) + 0.001 * seed,
            "recomputed_similarity": recomputed_similarity.get(arm, math.nan)
            + 0.001 * seed,
        }
        for arm in errors
        for seed in range(len(errors[arm]))
        for epoch in (0, 1)
        for layer in (1, 2, 3)
    ]
    images = {
        "num_train": np.array(4000),
        "num_test": np.array(1000),
        "num_measured": np.array(500),
        "is_split": np.array(1),
        "shape": np.array((1, 8, 8)),
    }
    return Study(rows, [], images, {})


ERRORS = {
    "deterministic": [20.0, 22.0, 19.0, 21.0],
    "noise 0.1": [21.0, 22.0, 18.0, 21.0],
    "noise 0.5": [60.0, 66.0, 58.0, 63.0],
    "dropout 0.2": [15.0, 17.0, 14.0, 17.0],
}
SIMILARITY = {"noise 0.1": 0.9, "noise 0.5": 0.5, "dropout 0.2": 0.7}


def verdicts(found: Study) -> list[bool | None]:
    """Noise 0.1 leaves errors, 0.5 raises them, dropout lowers them; 0.1 is closer.

    Then of the deterministic network and noise 0.1: classes contract, entropy falls.
    """
    return [claim.holds for claim in claims(found)]


def test_claims_hold_where_they_should() -> None:
    found = claims(study(ERRORS, SIMILARITY, fall=0.3))
    assert [claim.holds for claim in found] == [True] * 8
    # Differences 40, 44, 39, 42: their deviation is sqrt(14.75 / 3), over two.
    change = "+41.25 ± 1.11 errors, from 20.50"
    assert found[1].measured == f"{change}; with the normalisation recomputed {change}"
    assert all("±" in claim.measured for claim in found)


def test_claims_fail_where_they_should() -> None:
    worse = {**ERRORS, "noise 0.1": [41.0, 42.0, 38.0, 41.0]}
    worse |= {"noise 0.5": worse["deterministic"], "dropout 0.2": worse["noise 0.1"]}
    other = {**SIMILARITY, "dropout 0.2": 0.95}
    assert verdicts(study(worse, other, fall=-0.3)) == [False] * 8


def test_what_the_two_normalisations_disagree_on_is_undecided() -> None:
    """Harm that is of the remembered noise alone, a benefit that it hides, ..."""
    other = {
        "deterministic": ERRORS["deterministic"],
        "noise 0.1": ERRORS["noise 0.5"],
        "noise 0.5": ERRORS["noise 0.1"],
        "dropout 0.2": ERRORS["noise 0.5"],
    }
    closer = {**SIMILARITY, "dropout 0.2": 0.95}
    found = study(
        ERRORS, SIMILARITY, 0.3, recomputed=other, recomputed_similarity=closer
    )
    assert verdicts(found) == [None] * 4 + [True] * 4
    # Differences 1, 0, -1, 0.
    words = "; with the normalisation recomputed +0.00 ± 0.41 errors, from 20.50"
    assert claims(found)[1].measured == f"+41.25 ± 1.11 errors, from 20.50{words}"


def test_a_rise_by_two_thirds_of_the_errors_leaves_them_not_where_they_were() -> None:
    """However small a share of the images that is."""
    few = {arm: [value / 10 for value in values] for arm, values in ERRORS.items()}
    assert verdicts(study(few, SIMILARITY, fall=0.3))[0] is True
    few["noise 0.1"] = [5 / 3 * value for value in few["deterministic"]]
    assert verdicts(study(few, SIMILARITY, fall=0.3))[0] is False
    none = {**few, "deterministic": [0.0] * 4}
    assert verdicts(study(none, SIMILARITY, fall=0.3))[0] is None


def test_entropy_at_its_ceiling_is_not_judged() -> None:
    """All images in bins of their own, or in one network two of them together."""
    most = math.log(500)
    for fall in (0.0, 1.9 * math.log(2) / 500):
        found = claims(study(ERRORS, SIMILARITY, fall=fall, entropy=most))
        assert [claim.holds for claim in found[-2:]] == [None, None]
        assert "at the ceiling" in found[-1].measured
    found = claims(study(ERRORS, SIMILARITY, 2.1 * math.log(2) / 500, entropy=most))
    assert [claim.holds for claim in found[-2:]] == [True, True]


def test_few_seeds_judge_nothing() -> None:
    few = {arm: values[:3] for arm, values in ERRORS.items()}
    assert verdicts(study(few, SIMILARITY, fall=0.3)) == [None] * 8


def test_what_the_errors_leave_open_is_undecided() -> None:
    near = {**ERRORS, "noise 0.1": [29.0, 33.5, 27.5, 32.5]}  # half more, about
    near |= {"noise 0.5": [16.0, 34.0, 17.0, 33.0]}
    assert verdicts(study(near, SIMILARITY, fall=0.3))[:2] == [None, None]
