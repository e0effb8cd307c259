"""The information bottleneck: a tiny run from end to end, and what it concludes.

The digits are stood in for by random ones: scikit-learn is optional, and not needed to
see that they are learned, measured, left out and added again.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from noisyflow import cli
from noisyflow.datasets import Dataset
from noisyflow.experiments import bottleneck, bottleneck_findings, cells
from noisyflow.experiments.bottleneck import Config
from noisyflow.experiments.bottleneck_findings import Study, claims
from noisyflow.information import mutual_information
from noisyflow.runs import RunError, RunFolder

REAL_DIGITS = bottleneck._digits
TINY = Config(betas=(0.0, 0.3), num_seeds=2, num_steps=40, seed=3)


def made_up_digits() -> Dataset:
    """Ten noisy pictures of 64 pixels, 60 times each."""
    generator = np.random.default_rng(0)
    labels = np.arange(600) % 10
    pictures = generator.random((10, 64))
    inputs = pictures[labels] + 0.1 * generator.standard_normal((600, 64))
    return Dataset(inputs.astype(np.float32), labels)


@pytest.fixture(scope="module", autouse=True)
def small_data() -> Any:
    """Few measurements, and digits that need no other package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bottleneck, "_digits", made_up_digits)
        patch.setattr(bottleneck, "_NUM_LOGS", 2)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not disturbed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert bottleneck.run(TINY, out)
    return out


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- A run


def test_a_run_writes_all_that_it_promises(finished: Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*.*")}
    assert files == {
        ".lock",
        "checkpoint.safetensors",
        "config.json",
        "figures/information.png",
        "figures/trade-off.png",
        "figures/training.png",
        "history.csv",
        "metrics.csv",
        "report.html",
        "report.json",
        "usage.json",
    }


def test_every_training_is_measured_as_the_columns_say(finished: Path) -> None:
    rows = read(finished / "metrics.csv")
    assert [
        (row["task"], float(row["beta"]), int(row["repetition"]), int(row["step"]))
        for row in rows
    ] == [
        (task, beta, seed, step)
        for task in ("szt", "digits")
        for beta in (0.0, 0.3)
        for seed in (0, 1)
        for step in (0, 8, 40)
    ]
    for row in rows:
        number = {name: float(row[name]) for name in list(row)[5:]}
        assert number["lower"] == number["mutual_information"]
        is_population = row["task"] == "szt"
        assert (number["upper"] == number["lower"]) is is_population
        assert 0 <= number["label_information"] <= np.log(10)
        for name in ("standard_error", "label_standard_error", "test_standard_error"):
            assert 0 < number[name] < 0.1
        assert 0 <= number["test_accuracy"] <= 1


def test_trainings_of_one_seed_begin_alike_and_of_two_do_not(finished: Path) -> None:
    rows = [row for row in read(finished / "metrics.csv") if row["step"] == "0"]
    values = np.array([float(row["mutual_information"]) for row in rows])
    by_beta = values.reshape(2, 2, 2)  # task, beta, seed
    np.testing.assert_array_equal(by_beta[:, 0], by_beta[:, 1])
    assert (by_beta[:, :, 0] != by_beta[:, :, 1]).all()


def test_the_penalty_lowers_the_information_and_training_raises_accuracy(
    finished: Path,
) -> None:
    """Already after forty steps: 0.2 nats or more, where seeds differ by 0.1."""
    study = study_of(finished)
    for task in ("szt", "digits"):
        plain, held = (
            study.column(task, beta, "mutual_information") for beta in (0.0, 0.3)
        )
        assert (held < plain - 0.2).all()
        before, after = (
            study.column(task, 0.0, "train_accuracy", step) for step in (0, 40)
        )
        assert (after > before + 0.2).all()


def test_the_report_stands_alone_and_says_what_the_penalty_does(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    study = study_of(finished)
    moved = study.difference("szt", 0.3, "mutual_information")
    for text in (
        f"lowers I(X;T) by {-moved.mean:.3f} ± {moved.error:.3f}",
        "log 4096 = 8.318",
        "num_steps",
        "± over test inputs",
    ):
        assert text in page


def test_a_run_interrupted_and_then_killed_ends_with_the_same_numbers(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "disturbed"
    compute = bottleneck._compute
    calls = []

    def disturbed(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 5:
            raise MemoryError
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(*arguments)

    monkeypatch.setattr(bottleneck, "plot", lambda *_: [])
    monkeypatch.setattr(bottleneck, "_compute", disturbed)
    monkeypatch.setattr(cells, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    assert not bottleneck.run(TINY, out)
    with pytest.raises(MemoryError):
        bottleneck.run(TINY, out)
    assert len(read(out / "history.csv")) == 4
    assert bottleneck.run(TINY, out)
    assert (out / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_threads_and_random_state_are_left_alone(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    cell = bottleneck.Cell(bottleneck._tasks(TINY)[1], 0.3, 0)
    rows = bottleneck._compute(TINY, cell).metrics
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    found = read(finished / "metrics.csv")[18:21]
    assert [str(row["train_loss"]) for row in rows] == [r["train_loss"] for r in found]


def test_the_trained_batch_information_is_that_of_the_layer() -> None:
    """The network's own S, of which nothing but the noise is random."""
    network = bottleneck.Network(12, 2, 0.25, seed=5)
    network.train()
    inputs = torch.from_numpy(bottleneck.szt().inputs[:64])
    (clean, logits) = network(inputs)
    assert clean.shape == (64, 5)
    assert logits.shape == (64, 2)
    assert torch.equal(clean, network.encoder(inputs))
    assert not torch.equal(logits, network.decoder(clean))
    mutual_information(clean[:, None], 0.25).value.backward()
    of_encoder = [parameter.grad is not None for parameter in network.parameters()]
    assert of_encoder == [True] * 4 + [False] * 4


def test_without_scikit_learn_the_digits_are_left_out_and_later_added(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "without"
    with monkeypatch.context() as patch:
        patch.setattr(bottleneck, "_digits", lambda: None)
        assert bottleneck.run(TINY, out)
    said = capsys.readouterr().out
    assert "as scikit-learn is not installed; pip install scikit-learn" in said
    assert "The digits are missing" in (out / "report.html").read_text()
    assert {row["task"] for row in read(out / "metrics.csv")} == {"szt"}
    monkeypatch.setattr(bottleneck, "plot", lambda *_: [])
    assert bottleneck.run(TINY, out)
    assert "resumed after 4" in capsys.readouterr().out
    assert "The digits are missing" not in (out / "report.html").read_text()
    assert (out / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    monkeypatch.setattr(bottleneck, "_digits", lambda: None)
    with pytest.raises(RunError, match="scikit-learn is not installed"):
        bottleneck.run(TINY, out)


def test_the_digits_are_those_of_scikit_learn() -> None:
    pytest.importorskip("sklearn.datasets")
    found = REAL_DIGITS()
    assert found is not None
    assert found.inputs.shape == (1797, 64)
    assert found.inputs.max() == 1
    assert np.bincount(found.labels).tolist() == [
        *(178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
    ]


def test_a_finished_run_makes_its_figures_and_report_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "figures")
    (out / "report.html").unlink()
    assert bottleneck.run(TINY, out)
    assert "is finished" in capsys.readouterr().out
    assert len(list((out / "figures").iterdir())) == 3
    assert (out / "report.html").read_bytes() == (finished / "report.html").read_bytes()


# --- The command and its settings


def test_the_options_reach_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        bottleneck, "run", lambda *arguments: seen.append(arguments) or True
    )
    assert cli.main(["run", "bottleneck", "--seed", "5", "--noise-std", "0.3"]) == 0
    assert cli.main(["run", "bottleneck", "--quick"]) == 0
    assert seen[0] == (Config(seed=5, noise_std=0.3), Path("runs/bottleneck"))
    assert seen[1] == (
        Config(betas=(0.0, 0.1, 0.4), num_seeds=2, num_steps=250),
        Path("runs/bottleneck-quick"),
    )
    assert cli.main(["run", "bottleneck", "--epochs", "5"]) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_seeds": 1}, "num_seeds must be at least 2, got 1"),
        ({"num_steps": 5}, "num_steps must be at least 10, got 5"),
        ({"noise_std": 0.01}, "noise_std must be between 0.05 and 1 .* got 0.01"),
        ({"noise_std": "a"}, "noise_std must be a real number"),
        ({"betas": (0.1, 0.2)}, "betas must begin with 0 and increase"),
        ({"betas": (0.0, 0.2, 0.1)}, "betas must begin with 0 and increase"),
        ({"betas": (0.0,)}, "betas must begin with 0 and increase, at least two"),
        ({"betas": (0.0, 1.0)}, "betas must be below 1, got 1"),
        ({"betas": (0.0, "a")}, "betas must be a real number"),
        ({"seed": 2**63}, "seed must be at most"),
        ({"device": "abacus"}, "must be cpu, cuda or cuda:N, got 'abacus'"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Config(**settings)


# --- Conclusions


def study_of(folder: Path, *, num_pairs: int = 1, **columns: Any) -> Study:
    """The run's rows; with these columns, by task, beta and seed, in their place.

    num_pairs: how often its two seeds are counted.
    """
    checkpoint = RunFolder(folder).load_checkpoint()
    metrics, history = (
        RunFolder(folder).load_table(name, checkpoint)
        for name in ("metrics.csv", "history.csv")
    )
    for row in metrics:
        for name, value in columns.items():
            row[name] = value(row["task"], row["beta"], row["repetition"])
    rows = [
        {**row, "repetition": row["repetition"] + 2 * pair}
        for pair in range(num_pairs)
        for row in metrics
    ]
    return Study(rows, history, {"szt": 0.69, "digits": 2.3}, {"szt": 1, "digits": 1})


def verdicts(study: Study) -> list[bool | None]:
    """Of the patterns: it moves, it falls, some is free, the label is within."""
    return [claim.holds for claim in claims(study)[:4]]


@pytest.mark.parametrize(
    ("change", "spread", "moves", "falls"),
    [(-0.5, 0.1, True, True), (-0.5, 1.0, False, True), (0.5, 0.1, False, False)],
)
def test_a_move_is_judged_by_the_seeds_spread(
    finished: Path, change: float, spread: float, moves: bool, falls: bool
) -> None:
    """Twice two seeds that differ by this spread: its root mean square over 12."""
    study = study_of(
        finished,
        num_pairs=2,
        mutual_information=lambda _, beta, seed: (
            2 + (change + spread * (seed - 0.5)) * (beta > 0)
        ),
        test_accuracy=lambda *_: 0.9,
    )
    moved = study.difference("szt", 0.3, "mutual_information")
    assert moved.mean == pytest.approx(change)
    assert moved.error == pytest.approx(spread / math.sqrt(12))
    assert verdicts(study)[:3] == [moves, falls, moves]
    assert bottleneck_findings.caution(study) == []
    row = bottleneck_findings.difference_table(study, "szt").rows[0]
    assert row[-1] == ("yes" if moves else "no")


def test_two_seeds_conclude_nothing(finished: Path) -> None:
    study = study_of(
        finished, mutual_information=lambda _, beta, seed: 2 - (1 + seed) * (beta > 0)
    )
    assert verdicts(study) == [None, None, None, True]  # the last is of every seed
    row = bottleneck_findings.difference_table(study, "szt").rows[0]
    assert row[-1] == "too few seeds"
    assert "too few to conclude anything" in bottleneck_findings._outcome(study, "szt")
    assert "strongest penalty" not in bottleneck_findings._outcome(study, "szt")
    page = (finished / "report.html").read_text()
    (said,) = bottleneck_findings.caution(study)
    assert "one degree of freedom" in said
    assert 0 < page.index(said) < page.index("What the penalty does")


def test_a_rise_within_its_error_is_not_printed_as_a_fall(finished: Path) -> None:
    study = study_of(
        finished,
        num_pairs=2,
        mutual_information=lambda _, beta, seed: 2 + (seed - 0.3) * (beta > 0),
    )
    falls = claims(study)[1]
    assert (falls.holds, falls.measured) == (True, "2.000 → 2.200")


def test_the_time_of_a_step_leaves_measurements_out(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a step takes 1 s, every third 0.5 s, and a measurement 100 s.

    On one of the machine's own half of the steps may be as slow as all of them.
    """
    now, num_steps = 0.0, 0
    (step, measured) = (torch.optim.Adam.step, bottleneck._measured)

    def steps(*arguments: Any, **options: Any) -> Any:
        nonlocal now, num_steps
        num_steps += 1
        now += 0.5 if num_steps % 3 == 0 else 1.0
        return step(*arguments, **options)

    def measures(*arguments: Any) -> Any:
        nonlocal now
        now += 100.0
        return measured(*arguments)

    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr(bottleneck, "time", clock)
    monkeypatch.setattr(torch.optim.Adam, "step", steps)
    monkeypatch.setattr(bottleneck, "_measured", measures)
    found = bottleneck._compute(TINY, bottleneck.Cell(bottleneck._tasks(TINY)[1], 0, 0))
    (row,) = found.history
    assert row["step_seconds"] == 1.0
    assert row["seconds"] == 100 * len(found.metrics) + 40 - 13 * 0.5
    page = (finished / "report.html").read_text()
    assert "median time of a training step" in page


@pytest.mark.parametrize(
    ("cost", "spread", "is_free"),
    # Its error is spread / sqrt(12): 0.009 is within two of them of 0.01.
    [(0.005, 0.0, True), (0.02, 0.0, False), (0.009, 0.01, False), (0.0, 0.01, True)],
)
def test_what_is_free_is_judged_by_the_accuracy_and_its_error(
    finished: Path, cost: float, spread: float, is_free: bool
) -> None:
    study = study_of(
        finished,
        num_pairs=2,
        mutual_information=lambda _, beta, seed: 2 - (1 + 0.01 * seed) * (beta > 0),
        test_accuracy=lambda _, beta, seed: (
            0.9 - (cost + spread * (seed - 0.5)) * (beta > 0)
        ),
    )
    assert verdicts(study)[2] is is_free
    text = bottleneck_findings._outcome(study, "szt")
    assert ("costs less than one percent" in text) is is_free


@pytest.mark.parametrize(("label", "holds"), [(0.5, True), (5.0, False)])
def test_a_label_known_better_than_the_input_is_noticed(
    finished: Path, label: float, holds: bool
) -> None:
    study = study_of(
        finished,
        label_information=lambda *_: label,
        mutual_information=lambda *_: 1.0,
        upper=lambda *_: 1.1,
    )
    assert verdicts(study)[3] is holds


def test_errors_of_accuracy_are_of_seeds_and_inputs(finished: Path) -> None:
    study = study_of(
        finished,
        test_accuracy=lambda task, beta, seed: 0.8 + 0.06 * seed,
        test_standard_error=lambda *_: 0.04,
    )
    accuracy = study.accuracy("szt", 0.3)
    assert accuracy.mean == pytest.approx(0.83)
    assert accuracy.error == pytest.approx(0.05)  # 0.03 and 0.04


def test_an_undersampled_estimate_is_marked(finished: Path, tmp_path: Path) -> None:
    study = study_of(finished, is_undersampled=lambda task, *_: int(task == "digits"))
    assert not study.is_undersampled("szt", 0.3)
    assert study.is_undersampled("digits", 0.3)
    folder = RunFolder(tmp_path)
    with folder.open("bottleneck", {}):
        captions = [
            figure.caption for figure in bottleneck_findings.plot(study, folder)
        ]
    assert ["Hollow" in caption for caption in captions] == [True, True, False]
    assert "100 %" in bottleneck_findings.curve_table(study, "digits").rows[0]
