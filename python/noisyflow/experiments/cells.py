"""A table computed cell by cell in a folder, resumable: for studies that train nothing.

A cell is one independent piece of work, a source at one number of samples, say, with
random numbers of its own; it gives a few rows. `metrics.csv` holds what the cells found
and is reproducible bit for bit, `history.csv` how long they took. The checkpoint holds
what was prepared before the first cell and the arrays that cells gave for later cells
and for figures, and vouches for both tables.

Where there are several ranks (`noisyflow._ranks`) they take the cells one by one, and
the first rank alone has the folder; what it writes does not depend on their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from noisyflow import _ranks
from noisyflow.runs import (
    Interruption,
    Progress,
    Row,
    RunError,
    RunFolder,
    duration,
)

_SECONDS_BETWEEN_CHECKPOINTS = 5.0


@dataclass(frozen=True)
class CellRows:
    """What one cell adds to the tables; the column `cell` is put in front.

    Arrays are kept by their names, which no two cells share.
    """

    metrics: list[Row]
    history: list[Row]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class Work(Protocol):
    """A cell to be computed: its name for the progress line, its cost in any unit."""

    @property
    def name(self) -> str: ...
    @property
    def cost(self) -> float: ...


Cell = TypeVar("Cell", bound=Work)


class CellTable:
    """The tables of a study so far, in a folder.

    Parameters
    ----------
    folder : RunFolder
        Opened before any other function is called.
    prepare : callable
        Makes what all cells need, as named arrays; called once per run, never again
        after its first checkpoint. Its time is part of the run's.
    """

    def __init__(
        self, folder: RunFolder, prepare: Callable[[], dict[str, NDArray[Any]]]
    ) -> None:
        self._folder = folder
        self._prepare = prepare
        self.prepared: dict[str, NDArray[Any]] = {}
        self.arrays: dict[str, NDArray[Any]] = {}
        self.metrics: list[Row] = []
        self.history: list[Row] = []
        self._work: _ranks.Spread | None = None
        self._first = 0  # cells that were done before this process began

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
        ranks = _ranks.current()
        if ranks.is_first:
            self._resume()
        (self.prepared, self.arrays, self.metrics, self.history) = ranks.share(
            (self.prepared, self.arrays, self.metrics, self.history)
        )

    def _resume(self) -> None:
        """As `resume`, where the folder is."""
        checkpoint = self._folder.load_checkpoint()
        if checkpoint is None:
            with self._folder.working():
                self.prepared = self._prepare()
            self._save()
            return
        self.metrics = self._folder.load_table("metrics.csv", checkpoint)
        self.history = self._folder.load_table("history.csv", checkpoint)
        self.prepared, self.arrays = (
            {
                name.removeprefix(prefix): array
                for name, array in checkpoint.items()
                if name.startswith(prefix)
            }
            for prefix in ("prepared.", "cells.")
        )

    def complete(
        self,
        experiment: str,
        cells: Sequence[Cell],
        compute: Callable[[Cell], CellRows],
        opening: str,
    ) -> bool:
        """Computes the cells that are left until Ctrl-C, and tells how it goes.

        Parameters
        ----------
        experiment : str
            Its name, which begins what is printed.
        cells : sequence
            All of them, those that are done included.
        compute : callable
            `compute(cell)` gives the rows of a cell.
        opening : str
            What is about to be done.

        Returns
        -------
        bool
            Whether all cells are done.

        Raises
        ------
        Released
            On all ranks but the first, when they have nothing more to do.
        """
        ranks = _ranks.current()
        _check_same_work(ranks, cells)
        if not ranks.is_first:
            if self.num_done < len(cells):
                self._advance(cells, compute, None)
            ranks.release()
        out = self._folder.path
        if self.num_done == len(cells):
            print(
                f"{experiment}: the run in {out} is finished; making its figures again"
            )
            return True
        print(f"{experiment}: {opening}")
        if self.num_done:
            print(f"  resumed after {self.num_done}")
        if ranks.size > 1:
            print(f"  pieces of work are shared by {ranks.size} processes")
        print(f"  into {out}; Ctrl-C stops, the same command resumes", flush=True)
        with Interruption() as interruption, self._folder.working():
            self._advance(cells, compute, interruption)
        if self.num_done == len(cells):
            return True
        print(
            f"{experiment}: stopped after {self.num_done} of {len(cells)} pieces of "
            "work; the same command takes it up from there"
        )
        return False

    def arrays_after(self, number: int) -> Mapping[str, NDArray[Any]]:
        """The arrays of earlier cells, those of a given one among them.

        Parameters
        ----------
        number : int
            Of a cell before the one that is computed; waited for where another rank
            computes it.
        """
        if self._work is None or number < self._first:
            return self.arrays
        return {**self.arrays, **self._work.result(number - self._first)["arrays"]}

    def _advance(
        self,
        cells: Sequence[Cell],
        compute: Callable[[Cell], CellRows],
        interruption: Interruption | None,
    ) -> None:
        """Computes the cells that are left until an interruption is wanted."""
        progress = Progress()
        started = saved_at = time.monotonic()
        costs = [cell.cost for cell in cells]
        first = self._first = self.num_done
        self._work = _ranks.Spread(_ranks.current(), len(cells) - first)

        def compute_one(index: int) -> dict[str, Any]:
            rows = compute(cells[first + index])
            return {
                "metrics": rows.metrics,
                "history": rows.history,
                "arrays": dict(rows.arrays),
            }

        def show(index: int) -> None:
            if progress.is_due():
                number = first + index
                progress.show(
                    f"{number} of {len(cells)} done, now {cells[number].name}"
                    + _left(time.monotonic() - started, costs, first, number)
                )

        def keep(index: int, rows: Mapping[str, Any]) -> None:
            nonlocal saved_at
            number = first + index
            self.metrics += [{"cell": number, **row} for row in rows["metrics"]]
            self.history += [{"cell": number, **row} for row in rows["history"]]
            self.arrays.update(rows["arrays"])
            if time.monotonic() - saved_at > _SECONDS_BETWEEN_CHECKPOINTS:
                self._save()
                saved_at = time.monotonic()

        self._work.run(
            compute_one,
            received=keep,
            is_stopped=lambda: interruption is not None and interruption.is_wanted,
            progress=show,
        )
        if _ranks.current().is_first:
            self._save()
            progress.finish()

    def _save(self) -> None:
        """Writes the tables, then the checkpoint that vouches for them."""
        self._folder.save(
            {"metrics.csv": self.metrics, "history.csv": self.history},
            {
                **{f"prepared.{name}": array for name, array in self.prepared.items()},
                **{f"cells.{name}": array for name, array in self.arrays.items()},
            },
        )


def _left(seconds: float, costs: Sequence[float], first: int, cell: int) -> str:
    """The time left, by what the cells since `first` took."""
    done = sum(costs[first:cell])
    if done == 0:
        return ""
    return f", about {duration(seconds / done * sum(costs[cell:]))} left"


def _check_same_work(ranks: _ranks.Ranks, cells: Sequence[Work]) -> None:
    """Raises RunError where this rank has other cells than the first."""
    names = [cell.name for cell in cells]
    first = ranks.share(names)
    if names != first:
        raise RunError(
            f"there is other work to do here ({len(names)} pieces) than on the first "
            f"rank ({len(first)}): all ranks need the same settings, data and packages"
        )
