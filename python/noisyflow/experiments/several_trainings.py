"""Several tracked trainings in one folder, one after another, resumable at any moment.

The outer folder is a run like any other: its settings, report and figures. Each network
has a complete run of its own in `networks/NAME`, from which it is taken up. When all
are done, the outer `metrics.csv` and `history.csv` hold the rows of all of them, with
the name of the network in the first column.

Of several ranks (`noisyflow._ranks`) the first trains all networks, and the others
measure them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from noisyflow import _ranks
from noisyflow.datasets import Dataset
from noisyflow.experiments.tracked_training import Pace, TrackedTraining
from noisyflow.runs import (
    Interruption,
    Results,
    Row,
    RunError,
    RunFolder,
    check_is_within,
)
from noisyflow.tracking import AbstractTracker
from noisyflow.training import Trainer

_TABLES = ("metrics.csv", "history.csv")


@dataclass(frozen=True)
class Arm:
    """One of the networks that an experiment compares.

    Parameters
    ----------
    name : str
        Names its folder, its rows and its progress lines: letters, digits, `-`, `_` and
        `.`, the first a letter or a digit.
    build : callable
        Makes a fresh trainer and a tracker of its network, equal at every call.
    train, test : Dataset
        Where loss and accuracy are evaluated.
    logged_epochs : sequence of int
        When to measure; increasing, training ends with the last. Epoch e is the state
        after e + 1 passes.
    settings : mapping
        All that decides its numbers, as JSON knows it; for its `config.json`.
    experiment : str
        Whose run the network's is, for its `config.json`; the comparison's by default.

    Raises
    ------
    ValueError
        If the name cannot be a folder's or the epochs do not increase from 0 or more.
    """

    name: str
    build: Callable[[], tuple[Trainer, AbstractTracker]]
    train: Dataset
    test: Dataset
    logged_epochs: Sequence[int]
    settings: Mapping[str, Any]
    experiment: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name must be fit for a folder, got {self.name!r}")
        epochs = list(self.logged_epochs)
        if not epochs or epochs[0] < 0 or epochs != sorted(set(epochs)):
            raise ValueError(
                f"logged_epochs must increase from 0 or more, got {epochs}"
            )

    @property
    def num_passes(self) -> int:
        """Passes over the training inputs in all."""
        return self.logged_epochs[-1] + 1


def network_folder(folder: RunFolder, name: str) -> RunFolder:
    """Where the run of one network is, in the folder of all."""
    return RunFolder(folder.path / "networks" / name)


def complete(
    experiment: str, folder: RunFolder, arms: Sequence[Arm], *, opening: str
) -> dict[str, Results] | None:
    """Trains and measures the networks that are left, until Ctrl-C.

    Parameters
    ----------
    experiment : str
        Its name, which begins what is printed.
    folder : RunFolder
        Open; its usage counts the work on all networks.
    arms : sequence of Arm
        All of them, in the order in which they are trained.
    opening : str
        What is about to be done.

    Returns
    -------
    dict of str to Results, or None
        By name, in the order of `arms`; None after Ctrl-C.

    Raises
    ------
    ValueError
        If two names are the same.
    RunError
        If a network cannot be set up or diverges, or a folder within is not what it
        should be.
    Released
        On all ranks but the first, when they have nothing more to do.
    """
    if len({arm.name for arm in arms}) < len(arms):
        raise ValueError(f"names must differ, got {[arm.name for arm in arms]}")
    works = [_work(folder, arms, number) for number in range(len(arms))]
    ranks = _ranks.current()
    if ranks.is_first:
        for inner in (network_folder(folder, arm.name) for arm in arms):
            check_is_within(inner.path.parent)
            check_is_within(inner.path)
        _claim(folder)
    print(f"{experiment}: {opening}")
    with Interruption() as interruption:
        results = _advance(experiment, folder, arms, works, interruption)
    ranks.release()
    if results is not None:
        _join_tables(folder, arms)
    return results


def _work(folder: RunFolder, arms: Sequence[Arm], number: int) -> TrackedTraining:
    """The training of one network, not yet taken up."""
    arm, later = arms[number], arms[number + 1 :]
    with _told_of(arm):
        return TrackedTraining(
            arm.build,
            arm.train,
            arm.test,
            epochs=arm.num_passes,
            logged_epochs=arm.logged_epochs,
            folder=network_folder(folder, arm.name),
            name=arm.name,
            passes_later=sum(other.num_passes for other in later),
            logs_later=sum(len(other.logged_epochs) for other in later),
        )


def _claim(folder: RunFolder) -> None:
    """Saves a checkpoint before the first network has a folder, or checks the tables.

    A run that fails without a checkpoint gives its folder up, which it could not with
    other folders in it.
    """
    checkpoint = folder.load_checkpoint()
    if checkpoint is None:
        folder.save(dict.fromkeys(_TABLES, ()), {})
    else:
        for name in _TABLES:
            folder.load_table(name, checkpoint)


def _advance(
    experiment: str,
    folder: RunFolder,
    arms: Sequence[Arm],
    works: Sequence[TrackedTraining],
    interruption: Interruption,
) -> dict[str, Results] | None:
    """Trains and measures, network by network; None where it was stopped."""
    results = {}
    pace: Pace | None = None
    for number, (arm, work) in enumerate(zip(arms, works, strict=True)):
        inner = network_folder(folder, arm.name)
        with _told_of(arm), inner.open(arm.experiment or experiment, arm.settings):
            work.resume()
            if not work.is_finished:
                if pace is None:
                    _announce(folder, work, number, len(arms))
                else:
                    work.pace = pace
                with folder.working():
                    work.advance(interruption)
                pace = work.pace
            if not work.is_finished:
                print(
                    f"{experiment}: stopped in network {arm.name} ({number} of "
                    f"{len(arms)} done) after {work.trainer.epochs_done} of "
                    f"{arm.num_passes} passes; the same command takes it up from there"
                )
                return None
            if _ranks.current().is_first:
                results[arm.name] = inner.results()
    if pace is None:
        print(f"  the run in {folder.path} is finished; making its figures again")
    return results


def _announce(
    folder: RunFolder, work: TrackedTraining, number: int, num_arms: int
) -> None:
    """Says from where the work goes on, how long it will take and how much memory."""
    if number or work.trainer.epochs_done:
        print(
            f"  resumed after {number} of {num_arms} networks and "
            f"{work.trainer.epochs_done} passes of the next"
        )
    print(
        f"  {work.calibrate()}\n"
        f"  into {folder.path}; Ctrl-C stops, the same command resumes",
        flush=True,
    )


def _join_tables(folder: RunFolder, arms: Sequence[Arm]) -> None:
    """Writes the rows of all networks into the outer tables."""
    tables: dict[str, list[Row]] = {name: [] for name in _TABLES}
    for arm in arms:
        inner = network_folder(folder, arm.name)
        checkpoint = inner.load_checkpoint()
        assert checkpoint is not None, "a finished network has one"
        for name, rows in tables.items():
            rows += [
                {"network": arm.name, **row}
                for row in inner.load_table(name, checkpoint)
            ]
    folder.save(tables, {})


@contextlib.contextmanager
def _told_of(arm: Arm) -> Iterator[None]:
    """Names the network in what is complained of."""
    try:
        yield
    except RunError as error:
        raise RunError(f"network {arm.name}: {error}") from error
