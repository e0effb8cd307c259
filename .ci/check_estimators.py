"""Reads what `noisyflow run estimators` wrote and fails if a promise is not kept."""

from __future__ import annotations

import csv
import math
import sys
from collections import defaultdict
from pathlib import Path

OURS = "noisyflow"


def main(folder: Path) -> None:
    errors: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(dict)
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            error = float(row["entropy"]) - float(row["exact"])
            assert math.isfinite(error), row
            if row["method"] == OURS:
                assert float(row["lower"]) <= float(row["upper"]), row
                assert float(row["upper"]) < math.inf, row
            cell = errors[row["source"], int(row["num_samples"])]
            cell.setdefault(row["method"], []).append(abs(error))
    assert len(errors) > 50, f"{len(errors)} sources and sizes only"
    for (source, n), methods in errors.items():
        means = {name: sum(found) / len(found) for name, found in methods.items()}
        assert means[OURS] == min(means.values()), f"{source}, n = {n}: {means}"

    figures = list((folder / "figures").glob("*.png"))
    assert len(figures) == 5, figures
    report = (folder / "report.html").read_text()
    assert report.count("data:image/png;base64,") == len(figures)
    assert "http://" not in report
    assert ">no</td>" not in report, "a statement does not hold"
    assert not list(folder.glob("**/.*.tmp")), "a temporary file was left behind"
    print(f"{folder.name}: {len(errors)} sources and sizes, every promise kept")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
