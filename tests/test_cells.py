"""Tables that are computed cell by cell: what they cost, and what a field holds."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noisyflow.experiments.cells import CellRows, CellTable
from noisyflow.runs import RunFolder


@dataclass(frozen=True)
class Cell:
    """One that needs 20 ms."""

    name: str = "cell"
    cost: float = 1.0

    def compute(self) -> CellRows:
        time.sleep(0.02)
        return CellRows([{"value": 1.5}], [{"seconds": 0.02}])


def run(path: Path, num_cells: int) -> RunFolder:
    """A table whose preparation needs 50 ms, its figures 30 ms."""

    def prepare() -> dict[str, np.ndarray]:
        time.sleep(0.05)
        return {"numbers": np.arange(3)}

    folder = RunFolder(path)
    with folder.open("cells", {"num_cells": num_cells}):
        table = CellTable(folder, prepare)
        table.resume()
        assert table.complete("cells", [Cell()] * num_cells, Cell.compute, "cells")
        time.sleep(0.03)
    return folder


def peak_mib() -> float:
    """Of this process, as the system counts it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_run_costs_its_preparation_and_its_cells(tmp_path: Path) -> None:
    before = peak_mib()
    started = time.monotonic()
    usage = run(tmp_path / "run", 3).usage()
    assert usage.seconds >= 0.05 + 3 * 0.02
    assert usage.seconds <= time.monotonic() - started - 0.03 + 0.001  # of rounding
    assert before - 0.05 <= usage.peak_mib <= peak_mib() + 0.05


def test_to_make_the_report_again_costs_nothing(tmp_path: Path) -> None:
    usage = run(tmp_path / "run", 2).usage()
    assert run(tmp_path / "run", 2).usage() == usage
