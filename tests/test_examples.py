"""The examples as a user runs them, and the Lightning callback."""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noisyflow.nn import GaussianNoise, add_noise

EXAMPLES = Path(__file__).parents[1] / "examples"
# Its own dependencies warn: of a deprecated import, of a training without workers.
WARNS = pytest.mark.filterwarnings("ignore")


def run(script: str, *options: str) -> str:
    """The output of an example on one thread."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_your_own_network_on_your_own_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    inputs = rng.standard_normal((20, 4))
    np.savez(
        tmp_path / "mine.npz", inputs=inputs, labels=np.sign(inputs[:, 0]).astype(int)
    )
    files = ("--data", str(tmp_path / "mine.npz"), "--out", str(tmp_path / "a.png"))
    said = run("own_network.py", *files, "--epochs", "8", "--measurements", "2")
    rows = re.findall(r"^ +(\d+) +[\d.]+ +([\d.]+) ± [\d.]+, ([\d.]+)", said, re.M)
    assert [int(epoch) for epoch, *_ in rows] == [1, 8]
    for _, information, label in rows:
        assert 0 < float(label) <= 0.70 < float(information) <= 3.0  # log 2, log 20
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (None, "cannot read .*: No such file"),
        ({"x": [1.0]}, "must be an .npz file with the arrays inputs and labels"),
        ({"inputs": [[1.0], [math.nan]], "labels": [0, 1]}, "inputs must be finite"),
        ({"inputs": [[1.0], [2.0]], "labels": [0]}, r"labels must have shape \(2,\)"),
        ({"inputs": [1.0, 2.0], "labels": [0, 1]}, r"inputs must have shape \(m, d\)"),
        ({"inputs": [[1.0]], "labels": [0.5]}, "labels must be integers, booleans or"),
    ],
)
def test_useless_data_are_told_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arrays: dict[str, list[Any]] | None,
    words: str,
) -> None:
    path = tmp_path / "mine.npz"
    if arrays is not None:
        np.savez(path, **{name: np.array(value) for name, value in arrays.items()})
    monkeypatch.setattr(sys, "argv", ["own_network.py", "--data", str(path)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / "own_network.py"), run_name="__main__")
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert re.match(f"own_network.py: .*{words}", said)
    assert said.count("\n") == 1


def linear(num_inputs: int, num_outputs: int) -> torch.nn.Linear:
    return torch.nn.utils.skip_init(torch.nn.Linear, num_inputs, num_outputs)


def test_noise_goes_after_every_hidden_activation_and_weights_keep_their_names() -> (
    None
):
    tanh = torch.nn.Tanh()  # one module in two places
    network = torch.nn.Sequential(
        *[torch.nn.Conv2d(1, 2, 3), torch.nn.PReLU(), torch.nn.MaxPool2d(2)],
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 3), tanh),
        *[torch.nn.Dropout(0.5), torch.nn.Linear(3, 3), tanh],
        *[torch.nn.Linear(3, 2), torch.nn.Softmax(1)],
    )
    noisy = add_noise(network, 0.1, seed=1)
    kinds = [type(m).__name__ for m in noisy.modules() if not list(m.children())]
    assert kinds.count("GaussianNoise") == 3
    assert [type(noisy[at]) is torch.nn.Sequential for at in range(8)] == [
        *[False, True, False, True, False, False, True, False]
    ]
    assert isinstance(noisy[3][2][1], GaussianNoise)
    assert isinstance(noisy[8], torch.nn.Softmax)
    seeds = {m.seed for m in noisy.modules() if isinstance(m, GaussianNoise)}
    assert len(seeds) == 3
    names = {name.replace("1.0.weight", "1.weight") for name in noisy.state_dict()}
    assert names == set(network.state_dict())
    assert not any(isinstance(m, GaussianNoise) for m in network.modules())
    images = torch.ones(2, 1, 4, 4)
    torch.testing.assert_close(noisy.eval()(images), network.eval()(images))
    noisy[1].train()
    assert not torch.equal(noisy(images), network(images))


def test_an_activation_with_weights_is_no_layer() -> None:
    network = torch.nn.Sequential(
        *[linear(2, 2), torch.nn.Tanh(), linear(2, 2), torch.nn.PReLU()],
        torch.nn.PReLU(),
    )
    kinds = [type(module).__name__ for module in add_noise(network, 0.1)]
    assert kinds == ["Linear", "Sequential", "Linear", "PReLU", "PReLU"]


def test_noise_is_off_where_its_activation_is_in_evaluation_mode() -> None:
    network = torch.nn.Sequential(linear(2, 2), torch.nn.Tanh(), linear(2, 2))
    network[1].eval()
    noisy = add_noise(network, 0.1)
    assert [module.training for module in noisy] == [True, False, True]
    assert not noisy[1][1].training


def hooked() -> torch.nn.Module:
    layer = linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


def rewired() -> torch.nn.Module:
    layer = torch.nn.Tanh()
    layer.forward = torch.sin  # type: ignore[method-assign]
    return layer


TWICE = torch.nn.Sequential(linear(2, 2), torch.nn.Tanh())


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.ReLU()


class Swish(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([linear(2, 2)], "must have an activation .* before its last module with"),
        ([linear(2, 2), torch.nn.Tanh()], "must have an activation"),
        ([linear(2, 2), Block(), linear(2, 2)], "module 1 is a Block, whose act"),
        ([linear(2, 2), Swish(), linear(2, 2)], "module 1 is a Swish, of which it"),
        ([torch.nn.LSTM(2, 2), linear(2, 2)], "module 0 is a LSTM, which returns"),
        ([torch.nn.Tanh(), GaussianNoise(0.1), linear(2, 2)], "must be without noise"),
        (
            [TWICE, torch.nn.Sequential(TWICE, linear(2, 2))],
            "module 1.0 is a Seq.* sec",
        ),
        ([hooked(), torch.nn.Tanh(), linear(2, 2)], "module 0 is a Linear, with a for"),
        ([linear(2, 2), rewired(), linear(2, 2)], "module 1 is a Tanh, with a forw"),
    ],
)
def test_what_noise_cannot_be_added_to_is_named(
    modules: list[torch.nn.Module], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        add_noise(torch.nn.Sequential(*modules), 0.1)


def test_only_a_plain_sequential_is_taken() -> None:
    network = torch.nn.Sequential(linear(2, 2), torch.nn.Tanh(), linear(2, 2))
    with pytest.raises(TypeError, match=r"plain torch\.nn\.Sequential, got Tanh"):
        add_noise(torch.nn.Tanh(), 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="noise_std must be positive"):
        add_noise(network, 0.0)
    network.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match="Sequential with a forward or forward hooks"):
        add_noise(network, 0.1)


def lightning() -> Any:
    return pytest.importorskip("pytorch_lightning", reason="needs pytorch-lightning")


def fit(
    path: Path,
    *,
    rate: float,
    callbacks: list[Any],
    epochs: int = 2,
    resumes: Path | None = None,
    **settings: Any,
) -> Any:
    """A training of three far points through a layer that keeps them apart."""
    pl = lightning()

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            first, last = torch.nn.Linear(1, 1), torch.nn.Linear(1, 2)
            torch.nn.init.constant_(first.weight, 2.0)
            torch.nn.init.zeros_(first.bias)
            torch.nn.init.constant_(last.weight, 0.5)
            torch.nn.init.zeros_(last.bias)
            drop, tanh = torch.nn.Dropout(0.5), torch.nn.Tanh()
            body = torch.nn.Sequential(first, drop, tanh, last)
            self.network = add_noise(body, 1e-3)

        def training_step(self, batch: Any) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=rate)

    torch.manual_seed(0)
    module = Module()
    inputs, labels = torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([0, 1, 0])
    data = torch.utils.data.TensorDataset(inputs, labels)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        logger=pl.loggers.TensorBoardLogger(path, name=None),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **settings,
    )
    loader = torch.utils.data.DataLoader(data, batch_size=3)
    trainer.fit(module, loader, ckpt_path=None if resumes is None else str(resumes))
    return module


@WARNS
def test_the_callback_logs_and_keeps_what_is_known_exactly(tmp_path: Path) -> None:
    lightning()
    from noisyflow.lightning import InformationCallback

    inputs, labels = np.array([[-1.0], [-0.3], [0.3], [1.0]]), np.array([0, 1, 0, 1])
    callback = InformationCallback(inputs, labels, epochs=[1])
    fit(tmp_path, rate=0.0, callbacks=[callback])
    # Symbols a hundred noise deviations apart or more: I(X;T) = log 4, I(Y;T) = log 2.
    exact = {
        "information/layer_1": math.log(4),
        "label_information/layer_1": math.log(2),
    }
    (row,) = callback.table
    assert (row["epoch"], row["layer"]) == (1, 1)
    found = [row["mutual_information"], row["label_information"]]
    assert found == pytest.approx(list(exact.values()), abs=1e-9)
    with (tmp_path / "version_0" / "information.csv").open() as file:
        (written,) = csv.DictReader(file)
    assert {name: float(value) for name, value in written.items()} == row

    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    events = accumulator.EventAccumulator(str(tmp_path / "version_0")).Reload()
    for name, value in exact.items():
        (scalar,) = events.Scalars(name)
        assert scalar.value == pytest.approx(value, rel=1e-6)  # a float32 there
        prefix = "label_" if name.startswith("label") else ""
        for ending, column in (("error", "standard_error"), ("upper", "upper")):
            (scalar,) = events.Scalars(f"{name}_{ending}")
            kept = row[f"{prefix}{column}"]
            assert scalar.value == pytest.approx(kept, rel=1e-6), (name, ending)


@WARNS
def test_training_is_the_same_with_and_without_the_callback(tmp_path: Path) -> None:
    lightning()
    from noisyflow.lightning import InformationCallback

    callback = InformationCallback(np.array([[-1.0], [1.0]]))
    with_it = fit(tmp_path, rate=0.1, callbacks=[callback], epochs=3)
    without = fit(tmp_path, rate=0.1, callbacks=[], epochs=3)
    assert [row["epoch"] for row in callback.table] == [0, 1, 2]
    assert all(module.training for module in with_it.modules())
    for name, tensor in without.state_dict().items():
        assert torch.equal(tensor, with_it.state_dict()[name]), name


@WARNS
def test_the_last_epoch_is_kept_however_training_ends_and_a_new_fit_begins_anew(
    tmp_path: Path,
) -> None:
    lightning()
    from noisyflow.lightning import InformationCallback

    callback = InformationCallback(np.array([[-1.0], [1.0]]))
    fit(tmp_path, rate=0.0, callbacks=[callback], epochs=50, max_steps=11)
    # The eleventh of 50 epochs is not due, but the last.
    assert [row["epoch"] for row in callback.table] == list(range(11))
    assert callback.table[-1]["step"] == 11
    fit(tmp_path, rate=0.0, callbacks=[callback], epochs=1)
    assert [row["epoch"] for row in callback.table] == [0]
    lines = {
        number: (tmp_path / f"version_{number}/information.csv").read_text().count("\n")
        for number in (0, 1)
    }
    assert lines == {0: 1 + 11, 1: 1 + 1}
    (saved,) = tmp_path.glob("version_1/checkpoints/*.ckpt")
    fit(tmp_path, rate=0.0, callbacks=[callback], epochs=2, resumes=saved)
    assert [row["epoch"] for row in callback.table] == [0, 1]
    chosen = InformationCallback(np.array([[-1.0], [1.0]]), epochs=[0])
    fit(tmp_path, rate=0.0, callbacks=[chosen], epochs=9, max_steps=2)
    assert [row["epoch"] for row in chosen.table] == [0]

    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    events = accumulator.EventAccumulator(str(tmp_path / "version_0")).Reload()
    assert len(events.Scalars("information/layer_1")) == 11


@WARNS
def test_epochs_are_logarithmically_spaced_and_the_state_resumes() -> None:
    lightning()
    from noisyflow.lightning import InformationCallback, _is_log_spaced

    spaced = [number for number in range(1, 201) if _is_log_spaced(number)]
    expected = {round(10 ** (k / 10)) for k in range(10, 24)} | set(range(1, 10))
    assert set(spaced) == {number for number in expected if number <= 200}
    first, second = InformationCallback([[0.0]]), InformationCallback([[0.0]])
    assert [first._is_due(10, last) for last in (11, 12, None)] == [True, False, False]
    first.table.append({"epoch": 3})
    second.table.append({"epoch": 1})
    second.load_state_dict(first.state_dict())
    first.table[0]["epoch"] = 4
    assert second.table == [{"epoch": 3}]
    with pytest.raises(ValueError, match=r"must have one attribute .* got none"):
        second._tracker(torch.nn.Sequential(torch.nn.Tanh()))


def test_without_lightning_the_callback_says_what_to_install() -> None:
    if importlib.util.find_spec("pytorch_lightning") is not None:
        pytest.skip("pytorch-lightning is installed")
    with pytest.raises(ModuleNotFoundError, match=r"noisyflow\[lightning\]"):
        importlib.import_module("noisyflow.lightning")


def test_the_lightning_example_runs(tmp_path: Path) -> None:
    lightning()
    options = ("--epochs", "2", "--inputs", "10", "--out", str(tmp_path))
    said = run("lightning_tracking.py", *options)
    rows = re.findall(r"^ +(\d+) +(\d) +[\d.]+ ±", said, re.M)
    assert rows == [("0", "1"), ("0", "2"), ("1", "1"), ("1", "2")]
    assert (tmp_path / "version_0" / "information.csv").exists()
