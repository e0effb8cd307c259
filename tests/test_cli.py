"""The command: what it writes, how it stops and resumes, how it complains.

Runs are small (a dozen epochs) but whole: real training, real tracking, real figures.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from noisyflow import cli, datasets, plotting, runs
from noisyflow.experiments import EXPERIMENTS, szt, szt_network
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


# The same run in a process of its own, which saves after every pass and stops itself,
# as by Ctrl-Z, before the third that it does: so what comes then comes in time.
STOPPING = """
import os, signal, sys
from noisyflow import cli
from noisyflow.experiments import tracked_training as tracked
from noisyflow.training import Trainer

(advance, train_epoch) = (tracked.TrackedTraining.advance, Trainer.train_epoch)
num_passes = 0

def train_epoch_or_stop(trainer):
    global num_passes
    num_passes += 1
    if num_passes == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    train_epoch(trainer)

def advance_in_steps(*arguments):
    Trainer.train_epoch = train_epoch_or_stop
    advance(*arguments)

tracked._SECONDS_BETWEEN_CHECKPOINTS = 0.0
tracked.TrackedTraining.advance = advance_in_steps
sys.exit(cli.main(sys.argv[1:]))
"""


def start(out: Path) -> subprocess.Popen[str]:
    """Returns when the process has stopped itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPING, *SETTINGS, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), process.stdout and process.stdout.read()
    return process


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
        "binned_entropy.csv",
        "checkpoint.safetensors",
        "config.json",
        "figures/activations.png",
        "figures/bin_widths.png",
        "figures/binning.png",
        "figures/history.png",
        "figures/information.png",
        "figures/plane.png",
        "figures/scatter.png",
        "history.csv",
        "metrics.csv",
        "report.html",
        "report.json",
        "usage.json",
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
    assert page.count('src="data:image/png;base64,') == 7
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
    assert len(list((out / "figures").iterdir())) == 7
    assert (out / "report.html").exists()
    assert (out / "checkpoint.safetensors").read_bytes() == before


def test_a_run_interrupted_and_then_killed_ends_with_the_same_numbers(
    finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "disturbed"
    process = start(out)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "5 layers at 6 epochs, 1 to 6" in output
    assert "GiB of memory" in output
    assert "the same command takes it up" in output
    assert_whole(out)

    process = start(out)
    process.kill()
    process.communicate(timeout=300)
    assert_whole(out)
    assert int(read(out / "history.csv")[-1]["epoch"]) == 4
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
        history = out / "history.csv"
        if history.exists() and len(read(history)) == 4:
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
        (["run", "szzt"], "unknown experiment 'szzt', did you mean szt? known: szt"),
        (["run", "qqqq"], "unknown experiment 'qqqq'; known: szt"),
        (["run", "szt", "--set", "epochs"], "must be NAME=VALUE, got 'epochs'"),
        (
            ["run", "szt", "--set", "wings=2"],
            "szt has no setting wings; its settings a",
        ),
        (
            ["run", "szt", "--set", "epoch=2"],
            "no setting epoch, did you mean epochs? i",
        ),
        (["run", "szt", "--set", "learning_rate=nan"], "learning_rate must be finite"),
        (
            ["run", "bottleneck", "--set", "betas=0"],
            "betas must be a list of numbers, s",
        ),
        (["run", "szt", "--out", ""], "must name a folder, got an empty name"),
        (["run", "mnist", "--data", ""], "must name a folder, got an empty name"),
        (["list", "szzt"], "unknown experiment 'szzt', did you mean szt?"),
        (["run", "szt", "--set", "epochs=x"], "epochs must be an integer, got str"),
        (["run", "szt", "--seed", "1", "--set", "seed=1"], "seed is given twice"),
        (["run", "szt", "--epochs", "1"], "epochs must be at least 2, got 1"),
        (["run", "szt", "--noise-std", "-1"], "noise_std must be positive and finite"),
        (["run", "szt", "--noise-std", "nan"], "noise_std must be positive and finite"),
        (["run", "szt", "--activation", "x"], "activation must be one of tanh, relu"),
        (["run", "szt", "--orthonormal", "-1"], "orthonormal_rate must be 0 or"),
        (["run", "szt", "--seed", "-1"], "seed must be at least 0, got -1"),
        (["run", "szt", "--device", "abacus"], "must be cpu, cuda or cuda:N, got 'aba"),
        (["run", "szt", "--device", "meta"], "must be cpu, cuda or cuda:N, got 'meta'"),
        (["run", "szt", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["run", "szt", "--noise-std", "1e-300"], "noise_std must be between 1e-15"),
        (["run", "szt", "--noise-std", "1e-150"], "noise_std must be between 1e-15"),
        (["run", "szt", "--noise-std", "1e200"], "noise_std must be between 1e-15"),
        (["run", "szt", "--seed", str(2**64)], "seed must be at most 922337203685477"),
        (["run", "szt", "--seed", "9" * 4000], "got a number of 13288 bits"),
        (["run", "szt", "--orthonormal", "1e300"], "must be 0 or more and below 1"),
        (["run", "szt", "--epochs", str(10**15)], "epochs must be at most 10000000"),
        (["run", "estimators", "--epochs", "9"], "estimators has no --epochs"),
        (["run", "estimators", "--noise-std", "1"], "estimators has no --noise-std"),
        (["run", "estimators", "--activation", "x"], "estimators has no --activation"),
        (["run", "estimators", "--orthonormal"], "estimators has no --orthonormal"),
        (["run", "estimators", "--device", "cuda:99"], "'cuda:99' cannot be used"),
        (["run", "estimators", "--device", "tpu"], "must be cpu, cuda or cuda:N"),
        (["run", "estimators", "--seed", "-1"], "seed must be at least 0, got -1"),
        (["run", "--orthonormal", "szt"], "put 'szt' before --orthonormal"),
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
    for name in ("torch", "matplotlib", "safetensors", "scipy"):
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


def test_other_settings_are_not_held_against_the_authors() -> None:
    results, config = made_up([1.0] * 8, EPOCHS_OF_A_COURSE), szt.Config(noise_std=0.1)
    assert [claim.holds for claim in szt.claims(config, results)] == [True] * 3
    assert szt.compare(config, results) == []


def damage(out: Path, file: str, change: object) -> None:
    """Alters a file: `change` maps its bytes, or the checkpoint's arrays."""
    path = out / file
    if file.endswith(".safetensors"):
        tensors = safetensors.numpy.load_file(path)
        tensors.update(change(tensors))
        kept = {name: array for name, array in tensors.items() if array is not None}
        safetensors.numpy.save_file(kept, path)
    else:
        path.write_bytes(change(path.read_bytes()))


def replaced(number: bytes) -> object:
    """Puts something else into the second field of a table's third row."""

    def change(data: bytes) -> bytes:
        lines = data.split(b"\n")
        fields = lines[2].split(b",")
        lines[2] = b",".join([fields[0], fields[1], number, *fields[3:]])
        return b"\n".join(lines)

    return change


CHECKPOINT = "checkpoint.safetensors"


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (CHECKPOINT, lambda t: {"trainer.exp_avg": t["trainer.exp_avg"][:5].copy()}),
        (CHECKPOINT, lambda t: {"trainer.exp_avg": t["trainer.exp_avg"] * np.nan}),
        (CHECKPOINT, lambda t: {"trainer.step": np.zeros(3, np.float32)}),
        (CHECKPOINT, lambda t: {"trainer.epochs_done": np.array([1, 2])}),
        (CHECKPOINT, lambda t: {"trainer.epochs_done": np.array(99)}),
        (CHECKPOINT, lambda t: {"trainer.shuffle": np.zeros(5, np.uint8)}),
        (CHECKPOINT, lambda t: {"trainer.parameters": None}),
        (CHECKPOINT, lambda t: {"training_seconds": None}),
        (CHECKPOINT, lambda t: {"training_seconds": np.array([1.0, 2.0])}),
        (CHECKPOINT, lambda t: {"metrics.csv.sha256": None}),
        (CHECKPOINT, lambda t: {"metrics.csv.size": np.array([1, 2])}),
        (
            CHECKPOINT,
            lambda t: {"logged_parameters": t["logged_parameters"][:, :5].copy()},
        ),
        *(
            (name, change)
            for name in ("metrics.csv", "history.csv")
            for change in (
                replaced(b"nan"),
                replaced(b"99999"),
                replaced(b"some"),
                replaced(b"1,2"),
                lambda data: data.replace(b"epoch", b"time"),
                lambda data: data[: len(data) // 2],
                lambda data: b"\xff\xfe" + data,
                lambda data: b"",
            )
        ),
        *(
            ("config.json", lambda data, text=text: text)
            for text in (b"3", b"{}", b"[]", b"\xff", b"[" * 100_000)
        ),
        (
            "config.json",
            lambda data: data.replace(b'"settings": {', b'"settings": null, "x": {'),
        ),
        (
            "config.json",
            lambda data: data.replace(b'"noisyflow": "', b'"noisyflow": "9.'),
        ),
    ],
)
def test_whatever_was_altered_is_refused_in_one_line(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    change: object,
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    damage(out, file, change)
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    assert cli.main([*SETTINGS, "--out", str(out)]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("noisyflow: ")
    assert complaint.count("\n") == 1
    assert str(out) in complaint
    after = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    "name",
    ["config.json", "metrics.csv", "history.csv", CHECKPOINT, "report.html"],
)
def test_a_folder_in_place_of_a_file_is_named_before_any_work(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    shutil.copy(finished / "config.json", tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    assert cli.main([*SETTINGS, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"noisyflow: {tmp_path / name} is in the way: it is not a file\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", name}


def test_tables_without_a_checkpoint_are_not_overwritten(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "metrics.csv"):
        shutil.copy(finished / name, tmp_path)
    assert cli.main([*SETTINGS, "--out", str(tmp_path)]) == 2
    assert "holds metrics.csv but no checkpoint" in capsys.readouterr().err


def test_a_foreign_config_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"lint": true}')
    assert cli.main([*SETTINGS, "--out", str(tmp_path)]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"config.json"}


@pytest.mark.parametrize("error", [RunError("no"), KeyboardInterrupt()], ids=repr)
def test_a_failed_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(szt.TrackedTraining, "calibrate", fail)
    assert cli.main([*SETTINGS, "--out", str(tmp_path / "run")]) in (2, 130)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_built_fails_before_the_folder_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **settings: object) -> None:
        raise RuntimeError("no room\nfor this")

    monkeypatch.setattr(szt_network, "NoisyMLP", fail)
    assert cli.main([*SETTINGS, "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "noisyflow: cannot set up this run: no room\n"
    assert not list(tmp_path.iterdir())


def test_a_run_stopped_before_its_first_measurement_is_taken_up(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = szt_network.Trainer.train_epoch

    def train_and_interrupt(trainer: szt_network.Trainer) -> None:
        train(trainer)
        os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(szt.TrackedTraining, "calibrate", lambda _: "soon")
        patch.setattr(szt_network.Trainer, "train_epoch", train_and_interrupt)
        assert cli.main([*SETTINGS, "--out", str(out)]) == 130
    saved = RunFolder(out).load_checkpoint()
    assert saved["trainer.epochs_done"] == 1
    assert len(saved["logged_parameters"]) == 0
    with pytest.raises(RunError, match="holds no measurements yet"):
        RunFolder(out).results()


@pytest.mark.parametrize("is_told", [True, False])
def test_a_wish_to_stop_is_answered_at_once(
    is_told: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with runs.Interruption(is_told=is_told) as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.is_wanted
        said = capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    line = "noisyflow: stopping once the work at hand is saved; Ctrl-C again stops at"
    assert said == (f"{line} once\n" if is_told else "")
    assert capfd.readouterr().err == ""


def test_an_interrupt_while_figures_are_made_is_not_swallowed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    monkeypatch.setattr(szt, "plot", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert cli.main([*SETTINGS, "--out", str(out)]) == 130


@pytest.mark.parametrize(
    ("name", "value"),
    [("NUM_THREADS", text) for text in ("abc", "0", "²", "1e25", "9" * 25)]
    + [("CPU_TARGET", "foo")],
)
def test_a_bad_environment_is_named(
    name: str,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name == "CPU_TARGET":  # read once per process
        message = "NOISYFLOW_CPU_TARGET=foo"

        def fail() -> str:
            raise ValueError(message)

        monkeypatch.setattr(cli.runtime, "cpu_target", fail)
    monkeypatch.setenv(f"NOISYFLOW_{name}", value)
    assert cli.main([*SETTINGS, "--out", str(tmp_path / "run")]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_and_its_space_freed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "run"
    monkeypatch.setattr(runs.os, "fsync", fail)
    assert cli.main([*SETTINGS, "--out", str(out)]) == 1
    assert capsys.readouterr().err == (
        f"noisyflow: cannot write {out}/config.json: No space left on device\n"
    )
    assert not list(tmp_path.iterdir())


SCRIPT = f"{sys.executable} -m noisyflow.cli"


@pytest.mark.parametrize(
    ("line", "code", "complaint"),
    [
        (f"{SCRIPT} list | head -c 0; exit ${{PIPESTATUS[0]}}", (0, 1), ""),
        (f"{SCRIPT} list > /dev/full", (1,), "cannot write to standard output"),
        (f"{SCRIPT} run nothing 2> /dev/full", (2,), ""),
        (f"{SCRIPT} run nothing 2>&-", (2,), ""),
        (f"{SCRIPT} list >&-", (0,), ""),
    ],
)
def test_closed_and_full_outputs_end_without_a_traceback(
    line: str, code: tuple[int, ...], complaint: str
) -> None:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode in code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert complaint in done.stderr


def test_an_interrupt_while_torch_is_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\n"
        "time.sleep(5)\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "noisyflow.cli",
            *SETTINGS,
            "--out",
            str(tmp_path / "r"),
        ],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130
    assert done.stderr == "noisyflow: stopped before anything was done\n"


def test_more_interrupts_end_the_process_as_the_first_did() -> None:
    code = (
        "import atexit, os, signal, sys\n"
        "from noisyflow import cli\n"
        "press = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "def run(*_):\n"
        "    try:\n"
        "        press()\n"
        "    finally:\n"
        "        press()\n"
        "cli._command = run\n"
        "atexit.register(press)\n"
        "sys.exit(cli.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == (
        "noisyflow: stopped; the same command takes up what was saved, if anything "
        "was\n"
    )


def test_help_states_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    config = szt.Config()
    for value in (config.epochs, config.seed, config.noise_std, config.activation):
        assert f"(default: {value})" in said
    assert f"{szt.configure(quick=True).epochs} epochs" in said


def test_a_report_of_one_epoch_shows_points_and_no_epoch_twice(
    finished: Path,
) -> None:
    results = RunFolder(finished).results()
    single = Results(
        results.epochs[:1],
        {name: column[:1] for name, column in results.metrics.items()},
        {name: column[:1] for name, column in results.history.items()},
        results.parameters[:1],
    )
    titles = []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            plotting,
            "scatter_3d",
            lambda axes, *_, title: axes.scatter(
                [], [], [], label=str(titles.append(title))
            ),
        )
        patch.setattr(RunFolder, "save_figure", lambda _, name, data: Path(name))
        szt.plot(szt.Config(epochs=2), single, RunFolder(finished))
    assert titles == ["epoch 1"]
    _, (axes,) = plotting.new_figure(4, 4)
    plotting.history(axes, single.epochs, *[np.ones(1)] * 2, name="loss")
    assert all(line.get_marker() == "o" for line in axes.lines)


def test_list_shows_the_settings_of_an_experiment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["list", "szt"]) == 0
    said = capsys.readouterr().out
    assert "epochs              10000 (--quick: 600)\n" in said
    assert said.count("\n") == 1 + len(dataclasses.fields(szt.Config))


def test_names_of_few_epochs_do_not_touch() -> None:
    _, (axes,) = plotting.new_figure(4, 4)
    epochs = np.array([1, 3, 13, 24, 45, 84, 159, 299])
    plotting.history(axes, epochs, *[np.ones(8)] * 2, name="loss")
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names == ["3", "24", "84", "299"]
