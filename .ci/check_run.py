"""Reads the output folder of `noisyflow run szt` and fails if a promise is not kept."""

from __future__ import annotations

import csv
import json
import math
import sys
from itertools import pairwise
from pathlib import Path

WIDEST = LARGEST_ERROR = 0.05  # nats
CEILING = math.log(4096)


def main(folder: Path) -> None:
    json.loads((folder / "config.json").read_text())
    with (folder / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert history, "history.csv is empty"
    assert rows, "metrics.csv is empty"

    by_epoch: dict[int, list[dict[str, float]]] = {}
    for row in rows:
        numbers = {name: float(value) for name, value in row.items()}
        assert all(math.isfinite(value) for value in numbers.values()), row
        by_epoch.setdefault(int(numbers["epoch"]), []).append(numbers)
    assert len(by_epoch) == len(history), "an epoch was measured but not recorded"

    for epoch, layers in by_epoch.items():
        assert [int(layer["layer"]) for layer in layers] == [1, 2, 3, 4, 5]
        for layer in layers:
            where = f"epoch {epoch}, layer {layer['layer']:.0f}"
            assert layer["standard_error"] <= LARGEST_ERROR, where
            assert layer["upper"] - layer["lower"] <= WIDEST, where
            assert 0 <= layer["lower"] <= layer["mutual_information"], where
            assert layer["mutual_information"] <= layer["upper"] <= CEILING, where
        for before, after in pairwise(layers):
            error = math.hypot(before["standard_error"], after["standard_error"])
            grown = after["mutual_information"] - before["mutual_information"]
            assert grown <= 2 * error, f"data processing fails at epoch {epoch}"
    assert abs(by_epoch[1][0]["mutual_information"] - CEILING) < 0.01
    assert float(history[-1]["test_accuracy"]) > 0.85

    figures = list((folder / "figures").glob("*.png"))
    assert len(figures) >= 4, figures
    for figure in figures:
        assert figure.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n", figure
    report = (folder / "report.html").read_text()
    assert report.count("data:image/png;base64,") >= 4
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert (folder / "checkpoint.safetensors").stat().st_size > 0
    assert not list(folder.glob("*.tmp*")), "a temporary file was left behind"
    print(f"{folder.name}: {len(by_epoch)} epochs keep every promise")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
