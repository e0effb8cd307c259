"""A table computed cell by cell in a folder, resumable: for studies that train nothing.

A cell is one independent piece of work, a source at one number of samples, say, with
random numbers of its own; it gives a few rows. `metrics.csv` holds what the cells found
and is reproducible bit for bit, `history.csv` how long they took. The checkpoint holds
what was prepared before the first cell and vouches for both tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from noisyflow.runs import Interruption, Progress, Row, RunFolder, duration

_SECONDS_BETWEEN_CHECKPOINTS = 5.0


@dataclass(frozen=True)
class CellRows:
    """What one cell adds to the tables; the column `cell` is put in front."""

    metrics: list[Row]
    history: list[Row]


class CellTable:
    """The tables of a study so far, in a folder.

    Parameters
    ----------
    folder : RunFolder
        Opened before any other function is called.
    prepare : callable
        Makes what all cells need, as named arrays; called once per run, never again
        after its first checkpoint.
    """

    def __init__(
        self, folder: RunFolder, prepare: Callable[[], dict[str, NDArray[Any]]]
    ) -> None:
        self._folder = folder
        self._prepare = prepare
        self.prepared: dict[str, NDArray[Any]] = {}
        self.metrics: list[Row] = []
        self.history: list[Row] = []

    @property
    def num_done(self) -> int:
        """Cells that are computed."""
        return 1 + int(self.metrics[-1]["cell"]) if self.metrics else 0

    def resume(self) -> None:
        """Takes up what the folder's checkpoint holds, or prepares and saves one.

        Raises
        ------
        RunError
            If the checkpoint is damaged or the tables are not those it vouches for.
        """
        checkpoint = self._folder.load_checkpoint()
        if checkpoint is None:
            self.prepared = self._prepare()
            self._save()
            return
        self.metrics = self._folder.load_table("metrics.csv", checkpoint)
        self.history = self._folder.load_table("history.csv", checkpoint)
        self.prepared = {
            name.removeprefix("prepared."): array
            for name, array in checkpoint.items()
            if name.startswith("prepared.")
        }

    def advance(
        self,
        compute: Callable[[int], CellRows],
        names: Sequence[str],
        costs: Sequence[float],
        interruption: Interruption,
    ) -> None:
        """Computes the cells that are left until an interruption is wanted.

        Parameters
        ----------
        compute : callable
            `compute(cell)` gives the rows of cell number `cell`.
        names : sequence of str
            Of the cells, for the progress line.
        costs : sequence of float
            Their costs in any one unit, for the time left.
        interruption : Interruption
        """
        progress = Progress()
        started = saved_at = time.monotonic()
        first = self.num_done
        for cell in range(first, len(names)):
            if interruption.is_wanted:
                break
            if progress.is_due():
                progress.show(
                    f"{cell} of {len(names)} done, now {names[cell]}"
                    + _left(time.monotonic() - started, costs, first, cell)
                )
            rows = compute(cell)
            self.metrics += [{"cell": cell, **row} for row in rows.metrics]
            self.history += [{"cell": cell, **row} for row in rows.history]
            if time.monotonic() - saved_at > _SECONDS_BETWEEN_CHECKPOINTS:
                self._save()
                saved_at = time.monotonic()
        self._save()
        progress.finish()

    def _save(self) -> None:
        """Writes the tables, then the checkpoint that vouches for them."""
        self._folder.save(
            {"metrics.csv": self.metrics, "history.csv": self.history},
            {f"prepared.{name}": array for name, array in self.prepared.items()},
        )


def _left(seconds: float, costs: Sequence[float], first: int, cell: int) -> str:
    """The time left, by what the cells since `first` took."""
    done = sum(costs[first:cell])
    if done == 0:
        return ""
    return f", about {duration(seconds / done * sum(costs[cell:]))} left"
