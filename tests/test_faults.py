"""Runs that are killed, starved, locked out and interrupted: a few of each.

The same code as `python bench/faults.py`, which meets real studies with many; here with
one that computes next to nothing. Its folder, tables and checkpoint are theirs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from noisyflow.runs import RunFolder

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="the harness reads names in /proc"
)

_HARNESS = Path(__file__).parent.parent / "bench" / "faults.py"

# In a process of its own: a fork of one with threads would be a fault of the test's.
_DRIVER = """
import sys, time, types
from dataclasses import asdict, dataclass
from functools import partial

sys.path.insert(0, sys.argv[1])
import faults
import numpy as np
from noisyflow import experiments, report
from noisyflow.experiments.cells import CellRows, CellTable
from noisyflow.runs import RunFolder

@dataclass(frozen=True)
class Config:
    seed: int = 0

@dataclass(frozen=True)
class Cell:
    number: int
    name: str = "cell"
    cost: float = 1.0

def compute(prepared, cell):
    time.sleep(0.005)
    value = np.random.default_rng([cell.number, *prepared["seed"]]).normal()
    rows = [{"value": value}]
    array = {f"array-{cell.number}": np.array(value)}
    return CellRows(rows, [{"seconds": 0.005}], array)

def run(name, config, out):
    folder = RunFolder(out)
    table = CellTable(folder, lambda: {"seed": np.array([config.seed])})
    with folder.open(name, asdict(config)):
        table.resume()
        cells = [Cell(number) for number in range(4)]
        if not table.complete(name, cells, partial(compute, table.prepared), "cells"):
            return False
        values = np.array([row["value"] for row in table.metrics])
        folder.save_figure("values.png", values.tobytes())
        report.write_page(folder, name, [report.work_table(folder)])
        print(f"{name}: report in {folder.report}")
    return True

faults.STUDIES.clear()
for name in ("tiny", "other"):
    module = types.SimpleNamespace(
        Config=Config, configure=lambda quick, **s: Config(**s), run=partial(run, name)
    )
    sys.modules[f"noisyflow.experiments.{name}"] = module
    faults.STUDIES[name] = ["--seed", "3"]
    experiments.EXPERIMENTS[name] = ""
BREAK
sys.exit(faults.main(["--studies", "tiny", *sys.argv[2:]]))
"""


def meet(folder: Path, *arguments: str, mutation: str = "") -> tuple[int, str]:
    """Exit code and output of the harness; `mutation` is run before it begins."""
    if not _HARNESS.exists():
        pytest.skip("bench/faults.py is not here: it is no part of the sdist")
    driver = _DRIVER.replace("BREAK", mutation)
    process = subprocess.run(
        [
            *(sys.executable, "-c", driver, str(_HARNESS.parent)),
            *("--work", str(folder), *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return process.returncode, process.stdout + process.stderr


def test_runs_that_met_a_fault_end_in_the_same_results(tmp_path: Path) -> None:
    code, output = meet(tmp_path, "--kills", "8", "--others", "3")
    assert code == 0, output
    for fault in ("kills", "full disks", "read-only", "interruptions", "second runs"):
        (line,) = [line for line in output.splitlines() if line.startswith(fault)]
        survived, _, came = line.split(": ")[1].split()[:3]
        assert survived == came
        assert int(came) >= 3


@pytest.mark.parametrize(
    ("mutation", "fault", "complaint"),
    [
        (
            "load = RunFolder.load_table\n"
            "RunFolder.load_table = lambda *arguments: [\n"
            "    {name: round(value, 6) for name, value in row.items()}\n"
            "    for row in load(*arguments)\n"
            "]",
            "kill",
            "differ from the undisturbed run: ",
        ),
        (  # no part beside the place, and no rename
            "from noisyflow import runs\n"
            "runs.write_atomically = lambda path, data: path.write_bytes(data)",
            "full",
            "expected",
        ),
    ],
    ids=["digits-are-lost", "files-are-not-whole"],
)
def test_the_harness_notices(
    tmp_path: Path, mutation: str, fault: str, complaint: str
) -> None:
    code, output = meet(
        tmp_path,
        *("--faults", fault, "--kills", "6", "--others", "3"),
        mutation=mutation,
    )
    assert code == 1, output
    assert complaint in output


@pytest.mark.parametrize("number", range(4))
def test_a_claim_can_be_given_up_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Ctrl-C before the first checkpoint, and again while that is cleared away."""
    folder = RunFolder(tmp_path / "run")
    unlink = Path.unlink
    calls = []

    def interrupted(path: Path, missing_ok: bool = False) -> None:
        calls.append(path)
        if len(calls) > number:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    def prepare() -> None:
        with folder.working():
            pass
        (folder.path / ".usage.json.tmp").write_text("half a")
        monkeypatch.setattr(Path, "unlink", interrupted)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), folder.open("cells", {}):
        prepare()
    monkeypatch.undo()
    with folder.open("cells", {}):
        assert folder.usage().seconds < 60
