"""Training a network while its information is tracked, in a folder, resumable.

Shared by all experiments of this kind. At every logged epoch: measure, write both
tables, then the checkpoint that vouches for them; so whatever moment a run is killed
at, the checkpoint and the rows up to it are whole, and later rows are dropped. The
first checkpoint is saved before the first pass.

Of several ranks (`noisyflow._ranks`) the first trains, and the others measure: each a
logged epoch as a whole, from the network's state then. Rows are added in the order of
the epochs, and the checkpoint is that of a state whose rows are all there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import _machine, _ranks
from noisyflow.datasets import Dataset
from noisyflow.runs import (
    DAMAGE,
    Interruption,
    Progress,
    Row,
    RunError,
    RunFolder,
    duration,
)
from noisyflow.tracking import AbstractTracker, LayerInformation
from noisyflow.training import Trainer, evaluate

_SECONDS_BETWEEN_CHECKPOINTS = 10.0
# What the figures add to the memory that training and tracking take, measured on the
# full SZT run.
_FIGURES_GIB = 0.15


@dataclass(frozen=True)
class Pace:
    """What one pass and one measurement take, in seconds."""

    seconds_per_epoch: float
    seconds_per_log: float


@dataclass(frozen=True)
class _State:
    """What a checkpoint holds besides the rows."""

    trainer: dict[str, NDArray[Any]]
    training_seconds: float


@dataclass
class _Logged:
    """A logged epoch whose rows are not in the tables yet."""

    epoch: int
    before: _State  # before its pass: what can be saved until its rows are there
    history: Row
    parameters: NDArray[np.float32]
    measured: dict[str, Any] | None = None  # rows and seconds, once it is


class TrackedTraining:
    """A training run with its measurements so far, in a folder.

    Building it touches no file: settings that cannot work fail before a folder is
    claimed for them.

    Parameters
    ----------
    build : callable
        Makes a fresh trainer and a tracker of its network, equal at every call.
    train, test : Dataset
        Where loss and accuracy are evaluated.
    epochs : int
        Passes over the training inputs in all.
    logged_epochs : sequence of int
        Increasing, the last is `epochs - 1`. Epoch e is the state after pass number e,
        counted from 0, that is after e + 1 passes.
    folder : RunFolder
        Opened before `resume` and `advance` are called.
    name : str, optional
        Of the network, where a folder has several; begins the progress line.
    passes_later, logs_later : int
        Passes and measurements of the networks that come after this one, for the time
        left that is told.

    Attributes
    ----------
    pace : Pace or None
        What the time left is told from; None before `calibrate`, unless it is set from
        that of a network like this.

    Raises
    ------
    RunError
        If trainer or tracker cannot be built.
    """

    def __init__(
        self,
        build: Callable[[], tuple[Trainer, AbstractTracker]],
        train: Dataset,
        test: Dataset,
        *,
        epochs: int,
        logged_epochs: Sequence[int],
        folder: RunFolder,
        name: str = "",
        passes_later: int = 0,
        logs_later: int = 0,
    ) -> None:
        try:
            self.trainer, self._tracker = build()
        except (ValueError, TypeError, RuntimeError, MemoryError) as error:
            raise RunError(f"cannot set up this run: {_first_line(error)}") from error
        self._build = build
        self._train = train
        self._test = test
        self._epochs = epochs
        self._logged_epochs = logged_epochs
        self._folder = folder
        self._metrics: list[Row] = []
        self._history: list[Row] = []
        self._parameters: list[NDArray[np.float32]] = []
        self._training_seconds = 0.0
        self._tracking_seconds = 0.0
        self._unsettled: list[_Logged] = []
        self._is_finished_on_the_first = False
        self._name = name
        self._later = (passes_later, logs_later)
        self.pace: Pace | None = None

    @property
    def is_finished(self) -> bool:
        """Whether all passes are done and measured."""
        return (
            self.trainer.epochs_done == self._epochs and not self._unsettled
        ) or self._is_finished_on_the_first

    def resume(self) -> None:
        """Continues from the folder's checkpoint if there is one.

        Raises
        ------
        RunError
            If the checkpoint is damaged or the tables are not those it vouches for.
        """
        ranks = _ranks.current()
        if ranks.is_first:
            self._resume()
        self._is_finished_on_the_first = ranks.share(self.is_finished)

    def _resume(self) -> None:
        """As `resume`, where the folder is."""
        checkpoint = self._folder.load_checkpoint()
        if checkpoint is None:
            return
        self._metrics = self._folder.load_table("metrics.csv", checkpoint)
        self._history = self._folder.load_table("history.csv", checkpoint)
        try:
            self._take_up(checkpoint)
        except DAMAGE as error:
            raise self._folder.damaged_checkpoint() from error

    def calibrate(self) -> str:
        """How long the rest will take and how much memory, from a trial on a copy.

        Notes
        -----
        Takes as long as one measurement and a dozen passes.

        Raises
        ------
        RunError
            If the copy cannot be measured.
        """
        ranks = _ranks.current()
        if not ranks.is_first:
            return ""
        trainer, tracker = self._build()
        trainer.load_state(self.trainer.state())
        trainer.train_epoch()  # the first pass also sets up the optimiser
        started = time.perf_counter()
        for _ in range(10):
            trainer.train_epoch()
        trained = time.perf_counter()
        _measured(tracker, 0)
        self.pace = Pace((trained - started) / 10, time.perf_counter() - trained)
        training, tracking = self._seconds_left() or (0.0, 0.0)
        peak_gib = _machine.peak_bytes() / 2**30
        return (
            f"about {duration(training + tracking)} (training {duration(training)}, "
            f"tracking {duration(tracking)}) and {peak_gib + _FIGURES_GIB:.1f} GiB of "
            "memory"
            + (f"; {ranks.size} processes share the tracking" * (ranks.size > 1))
        )

    def advance(self, interruption: Interruption) -> None:
        """Trains and measures until all is done or an interruption is wanted."""
        with self._folder.working():
            self._advance(interruption)

    def _advance(self, interruption: Interruption) -> None:
        """Trains and measures; what it takes is counted by the caller."""
        ranks = _ranks.current()
        helpers = _ranks.Helpers(ranks)
        if not ranks.is_first:
            helpers.serve(self._measured_for_the_first)
            self._is_finished_on_the_first = ranks.share()
            return
        self._save()
        progress = Progress()
        saved_at = time.monotonic()
        while self.trainer.epochs_done < self._epochs and not interruption.is_wanted:
            epoch = self.trainer.epochs_done
            is_logged = (
                epoch == self._logged_epochs[len(self._history) + len(self._unsettled)]
            )
            before = self._state() if is_logged and ranks.size > 1 else None
            started = time.perf_counter()
            self.trainer.train_epoch()
            self._training_seconds += time.perf_counter() - started
            if is_logged:
                self._log(epoch, before, helpers)
            if self._settle(helpers.results(waits=False)) or (
                time.monotonic() - saved_at > _SECONDS_BETWEEN_CHECKPOINTS
            ):
                self._save()
                saved_at = time.monotonic()
            if progress.is_due():
                progress.show(self._progress_line())
        self._settle(helpers.results(waits=True))
        helpers.dismiss()
        self._save()
        progress.finish()
        ranks.share(self.is_finished)

    def _measured_for_the_first(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """The rows of a logged epoch, from the state of the first rank's network."""
        self.trainer.load_state(
            {name: torch.from_numpy(array) for name, array in task["trainer"].items()}
        )
        return self._rows(task["epoch"])

    def _rows(self, epoch: int) -> dict[str, Any]:
        """What the network at hand has to say, and the seconds that it took."""
        started = time.perf_counter()
        layers = _measured(self._tracker, epoch)
        return {
            "rows": [_metrics_row(epoch, layer) for layer in layers],
            "seconds": time.perf_counter() - started,
        }

    def _state(self) -> _State:
        """The state now."""
        return _State(
            {name: tensor.numpy() for name, tensor in self.trainer.state().items()},
            self._training_seconds,
        )

    def _take_up(self, checkpoint: dict[str, NDArray[Any]]) -> None:
        """Continues from a checkpoint; raises one of DAMAGE where it cannot be ours."""
        self.trainer.load_state(
            {
                name.removeprefix("trainer."): torch.from_numpy(array.copy())
                for name, array in checkpoint.items()
                if name.startswith("trainer.")
            }
        )
        self._training_seconds = _seconds(checkpoint["training_seconds"])
        self._tracking_seconds = _seconds(checkpoint["tracking_seconds"])
        parameters = checkpoint["logged_parameters"]
        done = self.trainer.epochs_done
        logged = [epoch for epoch in self._logged_epochs if epoch < done]
        shape = (len(logged), *checkpoint["trainer.parameters"].shape)
        if (
            done > self._epochs
            or [row["epoch"] for row in self._history] != logged
            or sorted({row["epoch"] for row in self._metrics}) != logged
            or parameters.shape != shape
            or parameters.dtype != np.float32
            or not np.isfinite(parameters).all()
        ):
            raise ValueError("the checkpoint is at odds with itself")
        self._parameters = list(parameters)

    def _log(self, epoch: int, before: _State | None, helpers: _ranks.Helpers) -> None:
        """Evaluates a logged epoch, and has it measured, by a helper if one is free."""
        network = self.trainer.network
        on_train = evaluate(network, self._train.inputs, self._train.labels)
        on_test = evaluate(network, self._test.inputs, self._test.labels)
        if not math.isfinite(on_train.loss):
            raise RunError(
                f"training diverged: loss {on_train.loss} at epoch {epoch}; "
                "a smaller learning rate may help"
            )
        history = {
            "epoch": epoch,
            "train_loss": on_train.loss,
            "test_loss": on_test.loss,
            "train_accuracy": on_train.accuracy,
            "test_accuracy": on_test.accuracy,
            "training_seconds": round(self._training_seconds, 3),
        }
        now = self._state()
        logged = _Logged(epoch, before or now, history, now.trainer["parameters"])
        self._unsettled.append(logged)
        if helpers.is_one_free:
            helpers.send(epoch, {"epoch": epoch, "trainer": now.trainer})
        else:
            logged.measured = self._rows(epoch)

    def _settle(self, measured: Mapping[int, dict[str, Any]]) -> bool:
        """Adds the rows of logged epochs, up to the first that is not measured yet."""
        num_settled = 0
        for logged in self._unsettled:
            logged.measured = measured.get(logged.epoch, logged.measured)
        for logged in self._unsettled:
            if logged.measured is None:
                break
            self._tracking_seconds += logged.measured["seconds"]
            self._metrics += logged.measured["rows"]
            tracking_seconds = round(self._tracking_seconds, 3)
            self._history.append(
                {**logged.history, "tracking_seconds": tracking_seconds}
            )
            self._parameters.append(logged.parameters)
            num_settled += 1
        del self._unsettled[:num_settled]
        return num_settled > 0

    def _save(self) -> None:
        """Writes the tables, then the checkpoint that vouches for them."""
        state = self._unsettled[0].before if self._unsettled else self._state()
        tensors = {f"trainer.{name}": array for name, array in state.trainer.items()}
        width = tensors["trainer.parameters"].size
        tensors["logged_parameters"] = np.array(self._parameters, np.float32).reshape(
            -1, width
        )
        tensors["training_seconds"] = np.array(state.training_seconds)
        tensors["tracking_seconds"] = np.array(self._tracking_seconds)
        for name in ("parameters", "exp_avg", "exp_avg_sq"):
            if not np.isfinite(tensors[f"trainer.{name}"]).all():
                raise RunError(
                    f"training diverged: {name} not finite after "
                    f"{self.trainer.epochs_done} passes; a smaller learning rate or "
                    "less noise may help"
                )
        tables = {"metrics.csv": self._metrics, "history.csv": self._history}
        self._folder.save(tables, tensors)

    def _seconds_left(self) -> tuple[float, float] | None:
        """Time left for training and for tracking; None before `calibrate`."""
        if self.pace is None:
            return None
        passes_later, logs_later = self._later
        passes = self._epochs - self.trainer.epochs_done + passes_later
        logs = len(self._logged_epochs) - len(self._history) + logs_later
        logs_each = logs / _ranks.current().size
        return (
            passes * self.pace.seconds_per_epoch,
            logs_each * self.pace.seconds_per_log,
        )

    def _progress_line(self) -> str:
        """Epoch, loss, accuracy, information per layer and time left."""
        line = f"{self._name}  " if self._name else ""
        line += f"epoch {self.trainer.epochs_done - 1}/{self._epochs - 1}"
        if self._history:
            last = self._history[-1]
            values = " ".join(
                f"{row['mutual_information']:.2f}"
                for row in self._metrics
                if row["epoch"] == last["epoch"]
            )
            line += (
                f"  loss {last['train_loss']:.4f}  test accuracy "
                f"{last['test_accuracy']:.3f}  I(X;T) {values} nats"
            )
        left = self._seconds_left()
        return line if left is None else f"{line}  {duration(sum(left))} left"


def _metrics_row(epoch: int, layer: LayerInformation) -> Row:
    """One row of `metrics.csv`."""
    about_input, about_label = layer.mutual_information, layer.label_information
    assert about_label is not None, "the tracker was built with labels"
    return {
        "epoch": epoch,
        "layer": layer.layer,
        "mutual_information": about_input.value,
        "standard_error": about_input.standard_error,
        "lower": about_input.lower,
        "upper": about_input.upper,
        "label_information": about_label.value,
        "label_standard_error": about_label.standard_error,
        "label_lower": about_label.lower,
        "label_upper": about_label.upper,
        "num_proposals": layer.num_proposals,
        "effective_sample_size": layer.effective_sample_size,
        "effective_sample_size_low": layer.effective_sample_size_low,
    }


def _measured(tracker: AbstractTracker, epoch: int) -> list[LayerInformation]:
    """A measurement; RunError where the network is beyond being measured."""
    try:
        return tracker.measure(epoch)
    except (ValueError, TypeError) as error:
        raise RunError(
            f"the network cannot be measured at epoch {epoch}: {_first_line(error)}"
        ) from error


def _seconds(value: NDArray[Any]) -> float:
    """A time span of a checkpoint."""
    seconds = float(value)
    if value.shape != () or not 0 <= seconds < math.inf:
        raise ValueError(f"seconds must be finite and not negative, got {value}")
    return seconds


def _first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
