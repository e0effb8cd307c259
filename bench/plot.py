"""Pairs per second against the dimension, for all contestants of a sweep.

python bench/bench_log_density.py --json sweep.json
python bench/plot.py sweep.json docs/pairs_per_second.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

import bench_ports


def draw(record: dict[str, Any], axes: plt.Axes) -> plt.Axes:
    """One line per contestant; hollow where its error is above 1e-3 nats."""
    rows = [row for row in record["rows"] if "pairs_per_second" in row]
    names = dict.fromkeys(row["peer"] for row in rows)
    colors = plt.get_cmap("tab10")
    for i, name in enumerate(names):
        of = sorted((row for row in rows if row["peer"] == name), key=lambda r: r["d"])
        color = "black" if name == "noisyflow" else colors((i - 1) % 10)
        axes.plot(
            [row["d"] for row in of],
            [row["pairs_per_second"] for row in of],
            color=color,
            linewidth=2.2 if name == "noisyflow" else 1.2,
            label=name,
        )
        for row in of:
            errors = [v for k, v in row.items() if k.startswith("error_at")]
            axes.plot(
                row["d"],
                row["pairs_per_second"],
                "o",
                markersize=5,
                color=color,
                markerfacecolor="white" if max(errors) > 1e-3 else color,
            )
    dims = sorted({row["d"] for row in rows})
    dims = sorted({*dims, *(d for d in range(dims[0], dims[-1]) if d < 100)})
    bound = [
        record["threads"] * bench_ports.bound(record["ports"], record["dtype"], d)
        for d in dims
    ]
    axes.plot(dims, bound, color="gray", linestyle=":", label="port bound")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="dimension d",
        ylabel="pairs per second",
        title=f"{record['dtype']}, {record['threads']} thread(s), {record['target']}",
    )
    ticks = sorted({row["d"] for row in rows})
    axes.set_xticks(ticks, [str(d) for d in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2, title="hollow: error above 1e-3 nats")
    axes.get_legend().get_title().set_fontsize(7)
    return axes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", help="JSON of bench_log_density.py")
    parser.add_argument("image", help="where to write the picture")
    args = parser.parse_args()
    record = json.loads(Path(args.sweep).read_text())
    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    draw(record, axes)
    figure.savefig(args.image, dpi=110)
    print(args.image)


if __name__ == "__main__":
    main()
