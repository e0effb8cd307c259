"""The command: what it writes, how it stops and resumes, how it complains.

Runs are small (a dozen epochs) but whole: real training, real tracking, real figures.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from noisyflow import cli, datasets, runs
from noisyflow.experiments import EXPERIMENTS, szt
from noisyflow.nn import NoisyMLP
from noisyflow.runs import Results, RunError, RunFolder
from noisyflow.training import evaluate, set_parameters

EPOCHS = 7
SETTINGS = ["run", "szt", "--epochs", str(EPOCHS), "--seed", "4"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not disturbed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert cli.main([*SETTINGS, "--out", str(out)]) == 0
    return out


def start(out: Path) -> subprocess.Popen[str]:
    """The same run in a process of its own."""
    command = [sys.executable, "-m", "noisyflow.cli", *SETTINGS, "--out", str(out)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_checkpoint(out: Path, process: subprocess.Popen[str]) -> None:
    """Returns when the process has written a checkpoint."""
    checkpoint = out / "checkpoint.safetensors"
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.01)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_whole(out: Path) -> None:
    """Every file that is there can be read to its end."""
    safetensors.numpy.load_file(out / "checkpoint.safetensors")
    json.loads((out / "config.json").read_text())
    for name in ("metrics.csv", "history.csv"):
        text = (out / name).read_text()
        assert text.endswith("\n")
        assert all(None not in row.values() for row in read(out / name))


def test_a_run_writes_all_that_it_promises(finished: Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*.*")}
    assert files == {
        ".lock",
        "checkpoint.safetensors",
        "config.json",
        "figures/activations.png",
        "figures/history.png",
        "figures/information.png",
        "figures/scatter.png",
        "history.csv",
        "metrics.csv",
        "report.html",
    }
    settings = json.loads((finished / "config.json").read_text())["settings"]
    assert (settings["epochs"], settings["seed"], settings["noise_std"]) == (
        EPOCHS,
        4,
        0.005,
    )


def test_tables_have_a_row_per_logged_epoch_and_layer(finished: Path) -> None:
    metrics, history = read(finished / "metrics.csv"), read(finished / "history.csv")
    assert [int(row["epoch"]) for row in history] == list(range(1, EPOCHS))
    assert [(int(row["epoch"]), int(row["layer"])) for row in metrics] == [
        (epoch, layer) for epoch in range(1, EPOCHS) for layer in range(1, 6)
    ]
    for row in metrics:
        value, low, high = (
            float(row[key]) for key in ("mutual_information", "lower", "upper")
        )
        assert 0 <= low <= value <= high <= np.log(4096) + 1e-9
        assert 0 <= float(row["label_information"]) <= np.log(2)
        assert float(row["standard_error"]) <= 0.05
    for row in history:
        assert 0.4 < float(row["test_accuracy"]) < 1
        assert float(row["tracking_seconds"]) > 0


def test_logged_weights_give_the_logged_accuracy(finished: Path) -> None:
    results = RunFolder(finished).results()
    train, _ = datasets.split(datasets.szt(), seed=4)
    network = NoisyMLP(szt.SIZES, noise_std=0.005)
    for at, parameters in enumerate(results.parameters):
        set_parameters(network, parameters)
        evaluation = evaluate(network, train.inputs, train.labels)
        assert evaluation.loss == results.history["train_loss"][at]


def test_the_report_stands_alone(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 4
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    for text in (
        "log 4096 = 8.3178",
        "7.7445",
        "time in tracking",
        "noise_std",
        "5.520",
    ):
        assert text in page


def test_a_finished_run_makes_its_figures_and_report_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "figures")
    (out / "report.html").unlink()
    before = (out / "checkpoint.safetensors").read_bytes()
    assert cli.main([*SETTINGS, "--out", str(out)]) == 0
    assert "is finished" in capsys.readouterr().out
    assert len(list((out / "figures").iterdir())) == 4
    assert (out / "report.html").exists()
    assert (out / "checkpoint.safetensors").read_bytes() == before


def test_a_run_interrupted_and_then_killed_ends_with_the_same_numbers(
    finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "disturbed"
    process = start(out)
    wait_for_checkpoint(out, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "5 layers at 6 epochs, 1 to 6" in output
    assert "GiB of memory" in output
    assert "the same command takes it up" in output
    assert_whole(out)

    process = start(out)
    wait_for_checkpoint(out, process)
    time.sleep(random.uniform(0, 1.5))
    process.kill()
    process.communicate(timeout=60)
    assert_whole(out)
    (out / ".metrics.csv.tmp").write_text("half a")  # as a kill while writing leaves it

    assert cli.main([*SETTINGS, "--out", str(out)]) == 0
    assert not list(out.glob("**/.*.tmp"))
    assert (out / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    ours, theirs = (RunFolder(folder).results() for folder in (out, finished))
    np.testing.assert_array_equal(ours.parameters, theirs.parameters)
    for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
        np.testing.assert_array_equal(ours.history[name], theirs.history[name])


def test_rows_later_than_the_checkpoint_are_dropped(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "late"
    killed_at = []

    def killed_between_tables_and_checkpoint(*_: object) -> None:
        if len(read(out / "history.csv")) == 4:
            killed_at.append(4)
            raise KeyboardInterrupt
        save(*_)

    save = RunFolder.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(
            RunFolder,
            "save_checkpoint",
            lambda *arguments: killed_between_tables_and_checkpoint(*arguments),
        )
        assert cli.main([*SETTINGS, "--out", str(out)]) == 130
    assert killed_at == [4]
    assert len(RunFolder(out).load_checkpoint()["logged_parameters"]) == 3
    assert cli.main([*SETTINGS, "--out", str(out)]) == 0
    assert (out / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_other_settings_on_the_same_folder_are_refused_by_name(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SETTINGS, "--noise-std", "0.01", "--out", str(finished)]
    assert cli.main(command) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "noise_std = 0.005, not 0.01" in message


def test_two_runs_cannot_work_in_one_folder(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path).open("szt", {}),
        pytest.raises(RunError, match="another run is working"),
        RunFolder(tmp_path).open("szt", {}),
    ):
        pass


def test_a_damaged_checkpoint_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "damaged"
    shutil.copytree(finished, out)
    (out / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    assert cli.main([*SETTINGS, "--out", str(out)]) == 2
    assert "checkpoint.safetensors is damaged" in capsys.readouterr().err


def test_tables_that_lack_rows_are_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lacking"
    shutil.copytree(finished, out)
    (out / "metrics.csv").unlink()
    assert cli.main([*SETTINGS, "--out", str(out)]) == 2
    assert "do not match its checkpoint" in capsys.readouterr().err


def test_a_folder_with_other_things_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert cli.main([*SETTINGS, "--out", str(tmp_path)]) == 2
    assert "holds other files and no run" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex"}


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main([*SETTINGS, "--out", str(tmp_path / "file" / "run")]) == 2
    assert capsys.readouterr().err == (
        f"noisyflow: cannot write to {tmp_path}/file/run: Not a directory\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "arguments are required: experiment"),
        (["run", "szt", "--epochs", "many"], "invalid int value: 'many'"),
        (["run", "szt", "--wings"], "unrecognized arguments: --wings"),
        (["run", "szzt"], "unknown experiment 'szzt'; known: szt"),
        (["run", "szt", "--epochs", "1"], "epochs must be at least 2, got 1"),
        (["run", "szt", "--noise-std", "-1"], "noise_std must be positive and finite"),
        (["run", "szt", "--noise-std", "nan"], "noise_std must be positive and finite"),
        (["run", "szt", "--activation", "x"], "activation must be one of tanh, relu"),
        (["run", "szt", "--orthonormal", "-1"], "orthonormal_rate must be 0 or"),
        (["run", "szt", "--seed", "-1"], "seed must be at least 0, got -1"),
        (["run", "szt", "--device", "abacus"], "device 'abacus' cannot be used"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(arguments)
    except SystemExit as end:
        code = end.code
    complaint = capsys.readouterr().err
    assert code == 2
    assert complaint.startswith("noisyflow: ")
    assert complaint.count("\n") == 1
    assert message in complaint
    assert not list(tmp_path.iterdir())


def test_list_and_version_need_no_torch(tmp_path: Path) -> None:
    for name in ("torch", "matplotlib", "safetensors"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def noisyflow(argument: str) -> str:
        command = [sys.executable, "-m", "noisyflow.cli", argument]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert all(name in noisyflow("list") for name in EXPERIMENTS)
    assert noisyflow("--version").startswith("noisyflow ")


@pytest.mark.parametrize("missing", ["torch", "matplotlib", "safetensors"])
def test_a_missing_package_is_named_before_any_work(
    missing: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == missing else find(name),
    )
    assert cli.main([*SETTINGS, "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        f"noisyflow: {missing} is not installed; run: pip install 'noisyflow[train]'\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.csv"
    runs.write_atomically(path, b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(runs.os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            runs.write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"


def test_the_options_reach_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(szt, "run", lambda *arguments: seen.append(arguments) or True)
    cli.main(["run", "szt"])
    cli.main(["run", "szt", "--quick", "--orthonormal", "--activation", "relu"])
    cli.main(["run", "szt", "--orthonormal", "0.01", "--out", "there"])
    assert seen[0] == (szt.Config(), Path("runs/szt"))
    quick, quick_out = seen[1]
    assert quick_out == Path("runs/szt-quick")
    assert (quick.epochs, quick.orthonormal_rate, quick.activation) == (
        600,
        1e-4,
        "relu",
    )
    assert seen[2] == (szt.Config(orthonormal_rate=0.01), Path("there"))


def test_logged_epochs_are_those_of_the_authors() -> None:
    epochs = szt.logged_epochs(10_000, 100)
    assert len(epochs) == 84
    assert {1, 5, 14, 20, 28, 41, 60, 126, 266, 559, 1177, 2477, 5214, 9999} <= {
        *epochs
    }
    assert szt.logged_epochs(2, 100) == [1]
    assert szt.logged_epochs(50, 1)[-1] == 49


def made_up(fifth: list[float], epochs: list[int]) -> Results:
    """Results with this I(X;T_5) and everything else as it should be."""
    k = len(epochs)
    information = np.tile([8.31, 8.3, 8.2, 6.5, 0.0], (k, 1))
    information[:, 4] = fifth
    information[-1, 3] = 6.0
    flat = np.full((k, 5), 0.01)
    loss = np.linspace(0.7, 0.01, k)
    test_loss = loss.copy()
    test_loss[-1] = 0.2
    network = NoisyMLP(szt.SIZES, noise_std=0.005)
    vector = np.concatenate([p.detach().numpy().ravel() for p in network.parameters()])
    return Results(
        epochs=np.array(epochs),
        metrics={
            "mutual_information": information,
            "standard_error": flat,
            "lower": information - 0.01,
            "upper": information + 0.01,
        },
        history={
            "train_loss": loss,
            "test_loss": test_loss,
            "test_accuracy": np.full(k, 0.97),
        },
        parameters=np.tile(vector, (k, 1)).astype(np.float32),
    )


EPOCHS_OF_A_COURSE = [1, 11, 28, 126, 350, 700, 3000, 9999]


@pytest.mark.parametrize(
    ("fifth", "refuted"),
    [
        ([2.5, 3.5, 4.5, 3.5, 4.0, 4.8, 3.4, 2.3], []),
        ([2.5, 3.5, 3.4, 3.5, 4.0, 4.8, 3.4, 2.3], ["first bump"]),
        ([2.5, 3.5, 4.5, 3.5, 4.9, 4.8, 3.4, 2.3], ["peaks between"]),
        ([2.5, 3.5, 4.5, 3.5, 4.0, 4.8, 3.9, 3.9], ["falls by at least"]),
        ([2.5, 3.5, 4.5, 3.5, 4.0, 7.0, 3.4, 2.3], ["Data processing"]),
    ],
)
def test_claims_notice_a_course_that_differs(
    fifth: list[float], refuted: list[str]
) -> None:
    claims = szt.claims(szt.Config(), made_up(fifth, EPOCHS_OF_A_COURSE))
    failed = [claim.statement for claim in claims if claim.holds is False]
    failed = [statement for statement in failed if "saturate" not in statement]
    assert len(failed) == len(refuted)
    assert all(words in said for words, said in zip(refuted, failed, strict=True))


def test_other_settings_are_not_judged_by_the_authors_course() -> None:
    results = made_up([1.0] * 8, EPOCHS_OF_A_COURSE)
    claims = szt.claims(szt.Config(noise_std=0.1), results)
    assert {claim.holds for claim in claims[:-3]} == {None}
    assert [claim.holds for claim in claims[-3:]] == [True, True, True]
