"""Several SZT networks beside one another: the driver, what is measured, what is said.

Networks are trained for a few passes and measured at two epochs.
"""

from __future__ import annotations

import csv
import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from noisyflow import cli, datasets, runs
from noisyflow.experiments import binned, szt, szt_linear, szt_orthonormal, szt_relu
from noisyflow.experiments import szt_comparison_findings as findings
from noisyflow.experiments.correlation import correlation
from noisyflow.experiments.several_trainings import Arm, complete, network_folder
from noisyflow.experiments.szt_comparison import Spread, Study
from noisyflow.experiments.szt_network import layer_outputs
from noisyflow.experiments.tracked_training import TrackedTraining
from noisyflow.nn import NoisyMLP
from noisyflow.runs import Interruption, Results, RunError, RunFolder
from noisyflow.tracking import InformationTracker
from noisyflow.training import Trainer, set_parameters

INPUTS = datasets.szt().inputs[:64]
LABELS = datasets.szt().labels[:64] ^ (np.arange(64) % 2)
DATA = datasets.Dataset(INPUTS, LABELS)


def small_arm(name: str, seed: int, *, epochs: tuple[int, ...] = (0, 2)) -> Arm:
    """A small network on 64 inputs: a measurement takes some milliseconds."""

    def build() -> tuple[Trainer, InformationTracker]:
        network = NoisyMLP((12, 3, 2), noise_std=0.2, seed=seed)
        trainer = Trainer(network, INPUTS, LABELS, batch_size=32, seed=seed)
        return trainer, InformationTracker(network, INPUTS, LABELS, seed=seed)

    return Arm(name, build, DATA, DATA, epochs, {"seed": seed})


ARMS = [small_arm("one", 1), small_arm("two", 2), small_arm("three", 3)]


def run(out: Path, arms: list[Arm] = ARMS, number: int | None = None) -> object:
    folder = RunFolder(out)
    with folder.open("trial", {"number": len(arms) if number is None else number}):
        return complete("trial", folder, arms, opening="small networks")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(out: Path) -> list[bytes]:
    """All that must not depend on when a run was disturbed."""
    return [
        (folder / "metrics.csv").read_bytes()
        for folder in (out, *(out / "networks" / arm.name for arm in ARMS))
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("several") / "undisturbed"
    assert run(out) is not None
    return out


# -- the driver -----------------------------------------------------------------


def test_the_outer_table_holds_the_rows_of_all_networks(undisturbed: Path) -> None:
    for name in ("metrics.csv", "history.csv"):
        rows = read(undisturbed / name)
        expected = [
            {"network": arm.name, **row}
            for arm in ARMS
            for row in read(undisturbed / "networks" / arm.name / name)
        ]
        assert rows == expected
    assert [(row["network"], row["epoch"]) for row in rows[:3]] == [
        ("one", "0"),
        ("one", "2"),
        ("two", "0"),
    ]


def test_each_network_is_a_run_of_its_own_as_if_alone(
    undisturbed: Path, tmp_path: Path
) -> None:
    folder, arm = RunFolder(tmp_path / "alone"), ARMS[1]
    with folder.open("trial", arm.settings), Interruption() as interruption:
        work = TrackedTraining(
            arm.build, DATA, DATA, epochs=3, logged_epochs=(0, 2), folder=folder
        )
        work.advance(interruption)
    inner = network_folder(RunFolder(undisturbed), "two")
    assert inner.config()["settings"] == {"seed": 2}
    np.testing.assert_array_equal(
        inner.results().parameters, folder.results().parameters
    )
    assert (inner.path / "metrics.csv").read_bytes() == (
        folder.path / "metrics.csv"
    ).read_bytes()


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is saved on the way out."""


@pytest.mark.parametrize("saves", [1, 4, 7])
def test_a_run_killed_at_any_moment_ends_with_the_same_numbers(
    saves: int, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many checkpoints, of the outer folder and of the networks."""
    save, count = RunFolder.save_checkpoint, 0

    def save_or_die(folder: RunFolder, tensors: dict[str, np.ndarray]) -> None:
        nonlocal count
        count += 1
        if count > saves:
            raise Killed
        save(folder, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", save_or_die)
        with pytest.raises(Killed):
            run(tmp_path)
    done = [path.parent.name for path in tmp_path.glob("networks/*/history.csv")]
    assert len(done) <= 1 + saves // 4
    results = run(tmp_path)
    assert results is not None
    assert numbers(tmp_path) == numbers(undisturbed)


def test_an_interrupted_run_says_where_and_goes_on(
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train_epoch, passes = Trainer.train_epoch, 0

    def interrupted(trainer: Trainer) -> None:
        nonlocal passes
        passes += 1
        # The trial takes 11, the first network 3, and the second is at its second.
        if passes == 11 + 3 + 2:
            signal.raise_signal(signal.SIGINT)
        train_epoch(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", interrupted)
        assert run(tmp_path) is None
    said, progress = capsys.readouterr()
    assert "one  epoch" in progress
    assert "stopped in network two (1 of 3 done) after 2 of 3 passes" in said
    assert not (tmp_path / "metrics.csv").exists()
    assert run(tmp_path) is not None
    assert "resumed after 1 of 3 networks and 2 passes" in capsys.readouterr().out
    assert numbers(tmp_path) == numbers(undisturbed)


def test_the_work_on_all_networks_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a pass takes a second, and all else nothing."""
    now, train_epoch = 0.0, Trainer.train_epoch

    def in_a_second(trainer: Trainer) -> None:
        nonlocal now
        now += 1.0
        train_epoch(trainer)

    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(Trainer, "train_epoch", in_a_second)
    assert run(tmp_path) is not None
    inner = [
        network_folder(RunFolder(tmp_path), arm.name).usage().seconds for arm in ARMS
    ]
    assert inner == [3.0, 3.0, 3.0]
    assert RunFolder(tmp_path).usage().seconds == 9.0


def test_what_is_wrong_names_the_network(undisturbed: Path, tmp_path: Path) -> None:
    other = [ARMS[0], small_arm("two", 7), ARMS[2]]
    with pytest.raises(RunError, match=r"network two: .* with seed = 2, not 7"):
        run(undisturbed, other)
    foreign = tmp_path / "foreign"
    run(foreign, ARMS[:1], number=3)
    (foreign / "networks" / "two").mkdir()
    (foreign / "networks" / "two" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"network two: .*holds other files"):
        run(foreign)
    assert (foreign / "networks" / "two" / "notes.txt").read_text() == "mine"


def test_an_altered_outer_table_is_noticed(tmp_path: Path) -> None:
    run(tmp_path, ARMS[:1])
    table = tmp_path / "metrics.csv"
    table.write_text(table.read_text().replace("one", "two", 1))
    with pytest.raises(RunError, match="do not match its checkpoint"):
        run(tmp_path, ARMS[:1])


def test_a_network_that_cannot_be_set_up_leaves_no_folder(tmp_path: Path) -> None:
    def fail() -> tuple[Trainer, InformationTracker]:
        raise ValueError("no such layer")

    bad = Arm("bad", fail, DATA, DATA, (0,), {})
    with pytest.raises(RunError, match=r"network bad: cannot set up .*no such layer"):
        run(tmp_path / "out", [ARMS[0], bad])
    assert not (tmp_path / "out").exists()


def test_names_and_epochs_of_networks_are_checked() -> None:
    for name in ("", "a/b", "..", ".hidden"):
        with pytest.raises(ValueError, match="fit for a folder"):
            small_arm(name, 1)
    for epochs in ((), (2, 1), (-1, 2)):
        with pytest.raises(ValueError, match="must increase"):
            small_arm("one", 1, epochs=epochs)
    with pytest.raises(ValueError, match="names must differ"):
        complete("trial", RunFolder("nowhere"), [ARMS[0], ARMS[0]], opening="")


# -- training with a penalty ------------------------------------------------------


def test_weight_decay_is_the_penalty_of_its_docstring() -> None:
    """One Adam step of its own, from the gradient of the penalised loss."""
    network = NoisyMLP((12, 3, 2), noise_std=1e-6, seed=1)
    trainer = Trainer(
        network, INPUTS, LABELS, learning_rate=0.01, batch_size=64, weight_decay=0.3
    )
    before = trainer.state()["parameters"]
    copy = NoisyMLP((12, 3, 2), noise_std=1e-6, seed=1)
    set_parameters(copy, before.numpy())
    loss = torch.nn.functional.cross_entropy(
        copy.eval()(torch.from_numpy(INPUTS)), torch.from_numpy(LABELS)
    )
    penalty = sum((part**2).sum() for part in copy.parameters())
    parts = torch.autograd.grad(loss + 0.15 * penalty, list(copy.parameters()))
    gradient = torch.cat([part.reshape(-1) for part in parts])
    trainer.train_epoch()
    moment = trainer.state()["exp_avg"]  # 0.1 of the gradient after one step
    torch.testing.assert_close(moment, 0.1 * gradient, rtol=1e-3, atol=1e-6)


def test_weight_decay_must_be_a_penalty() -> None:
    network = NoisyMLP((12, 3, 2), noise_std=0.1)
    for value in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"weight_decay must be (fin|0)"):
            Trainer(network, INPUTS, LABELS, weight_decay=value)


# -- correlations -----------------------------------------------------------------


def smooth(generator: np.random.Generator, memory: float, k: int) -> np.ndarray:
    """An autoregression of order one, stationary from its start."""
    values = generator.normal(size=k)
    for at in range(1, k):
        values[at] = memory * values[at - 1] + math.sqrt(1 - memory**2) * values[at]
    return values


@pytest.mark.parametrize(("memory", "least"), [(0.0, 0.92), (0.8, 0.88)])
def test_intervals_of_smooth_courses_cover(memory: float, least: float) -> None:
    """Of independent courses, whose correlation is 0; a plain interval covers 67 %."""
    generator = np.random.default_rng(1)
    covered, plainly = 0, 0
    for _ in range(400):
        x, y = (smooth(generator, memory, 84) for _ in range(2))
        found = correlation(x, y)
        covered += found.low <= 0 <= found.high
        plainly += abs(math.atanh(found.value)) < 1.96 / math.sqrt(81)
    assert covered / 400 >= least
    assert memory == 0 or plainly / 400 < 0.75


def test_correlations_are_those_of_the_formulas() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    y = np.array([1.0, 8.0, 27.0, 64.0, 125.0])
    assert correlation(x, y).value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert correlation(x, y, of_ranks=True).value == pytest.approx(1)
    assert correlation(x, -y, of_ranks=True).value == pytest.approx(-1)
    assert str(correlation(x, np.ones(5))) == "constant"


# -- comparisons ------------------------------------------------------------------

SETTINGS = {
    "epochs": 2,
    "num_log_points": 1,
    "num_seeds": 2,
    "seed": 5,
}


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of two passes from the command line."""
    out = tmp_path_factory.mktemp("comparisons") / "linear"
    given = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    assert cli.main(["run", "szt-linear", *given, "--out", str(out)]) == 0
    return out


def test_a_comparison_writes_what_it_promises(linear: Path) -> None:
    rows = read(linear / "history.csv")
    assert [row["network"] for row in rows] == ["linear-5", "linear-6"]
    report = json.loads((linear / "report.json").read_text())
    kinds = [part["kind"] for part in report["parts"]]
    assert kinds[:2] == ["paragraph", "figure"]
    assert kinds.count("claims") == 2
    for part in report["parts"]:
        if part["kind"] == "figure":
            assert (linear / part["path"]).stat().st_size > 10_000
    assert len(read(linear / "binned_entropy.csv")) == 5 + 3  # layers, other widths


def test_a_network_within_is_a_run_of_szt(linear: Path) -> None:
    settings = network_folder(RunFolder(linear), "linear-6").config()["settings"]
    config = szt_linear.configure(**SETTINGS).networks()["linear-6"]
    assert szt.Config(**settings) == config
    with RunFolder(linear / "networks" / "linear-6").open("szt", settings):
        pass


def test_the_networks_of_a_seed_differ_in_the_penalty_alone() -> None:
    networks = szt_relu.configure(**SETTINGS, weight_decay=0.25).networks()
    assert list(networks) == ["plain-5", "decay-5", "plain-6", "decay-6"]
    plain, decay = networks["plain-6"], networks["decay-6"]
    assert (plain.weight_decay, plain.seed) == (0, 6)
    assert replace(plain, weight_decay=0.25) == decay


def made_up(fifth: float) -> Results:
    """Two epochs, after which layer 5 has this information."""
    course = np.array([[8.0, 8.0, 8.0, 8.0, 4.0], [8.0, 8.0, 8.0, 8.0, fifth]])
    return Results(
        np.array([1, 2]), {"mutual_information": course}, {}, np.zeros((2, 1))
    )


def test_differences_are_paired_by_seed() -> None:
    """Their error is that of the differences, here none, and not of the arms."""
    config = szt_relu.configure(**SETTINGS)
    ends = {"plain-5": 3.0, "decay-5": 2.5, "plain-6": 2.0, "decay-6": 1.5}
    results = {name: made_up(value) for name, value in ends.items()}
    study = Study(config, config.networks(), results)
    found = study.difference("decay", "plain", findings.information(5))
    assert found.values == (-0.5, -0.5)
    assert found.standard_error == 0
    assert study.spread("plain", findings.fall(5)).values == (1, 2)


def test_margins_are_student_s() -> None:
    """t of 2 degrees at 95 %, one-sided: 2.920 in every table."""
    spread = Spread((1.0, 2.0, 3.0))
    assert spread.mean == 2
    assert spread.standard_error == pytest.approx(1 / math.sqrt(3))
    assert spread.margin == pytest.approx(2.920 / math.sqrt(3), rel=1e-3)
    bounds = (0.3, 0.4, 3.6, 3.7)  # the interval is [0.314, 3.686]
    assert [findings.is_above("", spread, "", bound=b).holds for b in bounds] == [
        True,
        None,
        None,
        False,
    ]
    assert [findings.is_below("", spread, "", bound=b).holds for b in bounds] == [
        False,
        None,
        None,
        True,
    ]


@pytest.mark.parametrize(
    ("orthonormal", "verdict"),
    [
        # The plain networks fall by 2, 2.2 and 1.8: half of that is 1.
        ((3.9, 4.0, 3.8), True),
        ((2.0, 2.2, 1.9), False),
        ((4.0, 2.0, 3.0), None),
    ],
)
def test_compression_is_inhibited_where_it_is_less_than_half(
    orthonormal: tuple[float, ...], verdict: bool | None
) -> None:
    config = szt_orthonormal.configure(**{**SETTINGS, "num_seeds": 3})
    names = [f"{arm}-{seed}" for arm in ("plain", "orthonormal") for seed in (5, 6, 7)]
    ends = dict(zip(names, (2.0, 1.8, 2.2, *orthonormal), strict=True))
    results = {name: made_up(value) for name, value in ends.items()}
    study = Study(config, config.networks(), results)
    found = szt_orthonormal.fall_claim(study, 5)
    assert found.holds is verdict


def course_like(information: np.ndarray, entropies: np.ndarray) -> binned.BinnedCourse:
    """Of a network whose last layer alone moves."""
    k = len(information)
    columns = np.full((k, 5), 8.0)
    columns[:, 4] = information
    metrics = {"mutual_information": columns}
    results = Results(np.arange(1, k + 1), metrics, {}, np.zeros((k, 1)))
    return binned.BinnedCourse(
        0.01, results, columns * 0 + entropies[:, None], {}, entropies
    )


def test_binned_entropy_tracks_information_where_both_move_alike() -> None:
    generator = np.random.default_rng(0)
    x = 5 + generator.normal(size=60)
    near = x + 0.1 * generator.normal(size=60)
    loose = x + 0.7 * generator.normal(size=60)  # a correlation of 0.82
    few = slice(0, 11)
    for entropies, chosen, verdict in (
        (near, slice(None), True),
        (generator.normal(size=60), slice(None), False),
        (loose, few, None),
    ):
        claim = binned.tracks({"": course_like(x[chosen], entropies[chosen])})
        assert claim.holds is verdict, claim.measured


def test_a_short_run_leaves_what_the_paper_says_open(linear: Path) -> None:
    report = json.loads((linear / "report.json").read_text())
    papers, checks = (part for part in report["parts"] if part["kind"] == "claims")
    assert [claim["holds"] for claim in papers["claims"]] == [None] * 4
    assert [claim["holds"] for claim in checks["claims"]] == [True, True]


def test_binned_entropies_are_those_of_a_noisy_pass(linear: Path) -> None:
    """By hand: the weights, noise, ten-fold bins, counted."""
    results = network_folder(RunFolder(linear), "linear-5").results()
    course = binned.measure(
        szt_linear.configure(**SETTINGS).networks()["linear-5"], results
    )
    config = szt_linear.configure(**SETTINGS).networks()["linear-5"]
    clean = layer_outputs(config, results.parameters[-1])
    generator = np.random.default_rng(0)
    for layer, outputs in enumerate(clean):
        noisy = outputs + generator.normal(0, 0.01, outputs.shape)
        counts = np.unique(np.floor(noisy / 0.1), axis=0, return_counts=True)[1]
        shares = counts / 4096
        by_hand = -(shares * np.log(shares)).sum()
        assert course.entropies[-1, layer] == pytest.approx(by_hand, abs=1e-9)
    assert by_hand < 7  # so that the noise matters
    np.testing.assert_array_equal(course.swept[10.0], course.entropies[:, -1])


def test_settings_that_cannot_be_are_refused() -> None:
    for settings, message in (
        ({"num_seeds": 1}, "num_seeds must be at least 2"),
        ({"weight_decay": 0.0}, "weight_decay must be positive"),
        ({"noise_std": -1.0}, "noise_std must be positive"),
        ({"seed": 2**63 - 1}, "must be at most"),
        ({"num_log_points": 0}, "num_log_points must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            szt_relu.configure(**settings)
