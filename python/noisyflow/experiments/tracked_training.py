"""Training a network while its information is tracked, in a folder, resumable.

Shared by all experiments of this kind. At every logged epoch: measure, write both
tables, then the checkpoint that vouches for them; so whatever moment a run is killed
at, the checkpoint and the rows up to it are whole, and later rows are dropped.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow.datasets import Dataset
from noisyflow.runs import (
    Interruption,
    Progress,
    Row,
    RunError,
    RunFolder,
    duration,
)
from noisyflow.tracking import InformationTracker, LayerInformation
from noisyflow.training import Trainer, evaluate

_SECONDS_BETWEEN_CHECKPOINTS = 10.0
# What the figures add to the memory that training and tracking take, measured on the
# full SZT run.
_FIGURES_GIB = 0.15


class TrackedTraining:
    """A training run with its measurements so far, continued from its folder.

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
        Opened. Its checkpoint is loaded if it has one.

    Raises
    ------
    RunError
        If the tables in the folder lack rows that the checkpoint counts.
    """

    def __init__(
        self,
        build: Callable[[], tuple[Trainer, InformationTracker]],
        train: Dataset,
        test: Dataset,
        *,
        epochs: int,
        logged_epochs: Sequence[int],
        folder: RunFolder,
    ) -> None:
        self.trainer, self._tracker = build()
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
        checkpoint = folder.load_checkpoint()
        if checkpoint is not None:
            self._resume(checkpoint)

    @property
    def is_finished(self) -> bool:
        """Whether all passes are done and measured."""
        return self.trainer.epochs_done == self._epochs

    def calibrate(self) -> str:
        """How long the rest will take and how much memory, from a trial on a copy.

        Notes
        -----
        Takes as long as one measurement and a dozen passes.
        """
        trainer, tracker = self._build()
        trainer.load_state(self.trainer.state())
        trainer.train_epoch()  # the first pass also sets up the optimiser
        started = time.perf_counter()
        for _ in range(10):
            trainer.train_epoch()
        trained = time.perf_counter()
        tracker.measure(0)
        self._seconds_per_log = time.perf_counter() - trained
        self._seconds_per_epoch = (trained - started) / 10
        training, tracking = self._seconds_left()
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return (
            f"about {duration(training + tracking)} (training {duration(training)}, "
            f"tracking {duration(tracking)}) and {peak_gib + _FIGURES_GIB:.1f} GiB of "
            "memory"
        )

    def advance(self, interruption: Interruption) -> None:
        """Trains and measures until all is done or an interruption is wanted."""
        progress = Progress()
        saved_at = time.monotonic()
        while not self.is_finished and not interruption.is_wanted:
            started = time.perf_counter()
            self.trainer.train_epoch()
            self._training_seconds += time.perf_counter() - started
            epoch = self.trainer.epochs_done - 1
            is_logged = epoch == self._logged_epochs[len(self._history)]
            if is_logged:
                self._measure(epoch)
            if is_logged or time.monotonic() - saved_at > _SECONDS_BETWEEN_CHECKPOINTS:
                self._save()
                saved_at = time.monotonic()
            if progress.is_due():
                progress.show(self._progress_line())
        self._save()
        progress.finish()

    def _resume(self, checkpoint: dict[str, NDArray[Any]]) -> None:
        """Continues from a checkpoint, without the rows that are later than it."""
        self.trainer.load_state(
            {
                name.removeprefix("trainer."): torch.from_numpy(array.copy())
                for name, array in checkpoint.items()
                if name.startswith("trainer.")
            }
        )
        self._training_seconds = float(checkpoint["training_seconds"])
        self._tracking_seconds = float(checkpoint["tracking_seconds"])
        self._parameters = list(checkpoint["logged_parameters"])
        done = self.trainer.epochs_done
        logged = [epoch for epoch in self._logged_epochs if epoch < done]
        self._history = _rows_before(self._folder.read_rows("history.csv"), done)
        self._metrics = _rows_before(self._folder.read_rows("metrics.csv"), done)
        if (
            [row["epoch"] for row in self._history] != logged
            or sorted({row["epoch"] for row in self._metrics}) != logged
            or len(self._parameters) != len(logged)
        ):
            raise RunError(
                f"history.csv and metrics.csv in {self._folder.path} do not match its "
                "checkpoint; remove the folder to start anew"
            )

    def _measure(self, epoch: int) -> None:
        """Adds the rows of a logged epoch."""
        network = self.trainer.network
        on_train = evaluate(network, self._train.inputs, self._train.labels)
        on_test = evaluate(network, self._test.inputs, self._test.labels)
        if not math.isfinite(on_train.loss):
            raise RunError(
                f"training diverged: loss {on_train.loss} at epoch {epoch}; "
                "a smaller learning rate may help"
            )
        started = time.perf_counter()
        layers = self._tracker.measure(epoch)
        self._tracking_seconds += time.perf_counter() - started
        self._metrics += [_metrics_row(epoch, layer) for layer in layers]
        self._history.append(
            {
                "epoch": epoch,
                "train_loss": on_train.loss,
                "test_loss": on_test.loss,
                "train_accuracy": on_train.accuracy,
                "test_accuracy": on_test.accuracy,
                "training_seconds": round(self._training_seconds, 3),
                "tracking_seconds": round(self._tracking_seconds, 3),
            }
        )
        self._parameters.append(self.trainer.state()["parameters"].numpy())

    def _save(self) -> None:
        """Writes the tables, then the checkpoint that vouches for them."""
        if not self._history:
            return
        self._folder.write_table("metrics.csv", self._metrics)
        self._folder.write_table("history.csv", self._history)
        tensors: dict[str, NDArray[Any]] = {
            f"trainer.{name}": tensor.numpy()
            for name, tensor in self.trainer.state().items()
        }
        tensors["logged_parameters"] = np.stack(self._parameters)
        tensors["training_seconds"] = np.array(self._training_seconds)
        tensors["tracking_seconds"] = np.array(self._tracking_seconds)
        self._folder.save_checkpoint(tensors)

    def _seconds_left(self) -> tuple[float, float]:
        """Time left for training and for tracking, at the measured speeds."""
        passes_left = self._epochs - self.trainer.epochs_done
        logs_left = len(self._logged_epochs) - len(self._history)
        return passes_left * self._seconds_per_epoch, logs_left * self._seconds_per_log

    def _progress_line(self) -> str:
        """Epoch, loss, accuracy, information per layer and time left."""
        line = f"epoch {self.trainer.epochs_done - 1}/{self._epochs - 1}"
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
        return f"{line}  {duration(sum(self._seconds_left()))} left"


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


def _rows_before(rows: list[Row], epoch: int) -> list[Row]:
    """The rows of earlier epochs."""
    return [row for row in rows if row["epoch"] < epoch]
