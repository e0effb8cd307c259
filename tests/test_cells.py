"""Tables that are computed cell by cell: what they cost, and what they hold."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

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
    units = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units


@pytest.mark.parametrize(("system", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_memory_is_counted_in_the_units_of_the_system(
    system: str, unit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = SimpleNamespace(ru_maxrss=345 * 2**20 // unit)
    monkeypatch.setattr(resource, "getrusage", lambda who: held)
    monkeypatch.setattr(sys, "platform", system)
    assert run(tmp_path / "run", 1).usage().peak_mib == 345


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


@pytest.mark.parametrize(
    "value",
    [
        *(0, -7, 2**63, 0.0, -0.5, 1e-5, 1e22, 1.5e-300, float("inf"), float("-inf")),
        *("", "noise 0.1", "1_0", " 1", "1 ", "+1", "007", "infinity", "NaN", "0x1"),
        *("1e", ".", "-", "\u0661", "True"),  # the fourth is a digit of another script
    ],
)
def test_a_field_comes_back_as_it_was(tmp_path: Path, value: float | str) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.open("cells", {}):
        folder.save({"metrics.csv": [{"first": value, "last": 1}]}, {})
        checkpoint = folder.load_checkpoint()
        assert checkpoint is not None
        (row,) = folder.load_table("metrics.csv", checkpoint)
    assert row == {"first": value, "last": 1}
    assert type(row["first"]) is type(value)


def test_numbers_of_numpy_and_nan_come_back_as_floats(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    numbers = [float("nan"), np.float64(0.1), np.float32(1e-5), np.float32(1e16)]
    with folder.open("cells", {}):
        folder.save({"metrics.csv": [{"value": value} for value in numbers]}, {})
        checkpoint = folder.load_checkpoint()
        assert checkpoint is not None
        rows = folder.load_table("metrics.csv", checkpoint)
    assert [str(row["value"]) for row in rows] == ["nan", "0.1", "1e-05", "1e+16"]
    assert all(isinstance(row["value"], float) for row in rows)
