"""The figures of docs/ideas.md and docs/choosing_noise.md, and the numbers in them.

    python docs/figures/ideas.py [--out DIR]

Writes a PNG for each figure and `ideas.json`, the numbers drawn, which the tests
compute again. Where a legend says "exact", the number comes from a formula.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

import noisyflow
from noisyflow.baselines import Binning

mpl.use("Agg")
from matplotlib.figure import Figure  # after the backend is chosen

Numbers = dict[str, Any]

_NUM_INPUTS = 256


def neuron(num_inputs: int = _NUM_INPUTS) -> Any:
    """Outputs of one tanh neuron at evenly spaced inputs, (m, 1)."""
    return np.tanh(2.5 * np.linspace(-1, 1, num_inputs))[:, None]


def bins() -> Numbers:
    """One network, one layer: entropy of bins, and information with noise."""
    outputs = neuron()
    widths = 2.0 / 2 ** np.arange(0, 19)
    stds = np.geomspace(0.001, 3, 25)
    return {
        "bin_widths": widths,
        "binned": [Binning(width).entropy(outputs).value for width in widths],
        "noise_stds": stds,
        "information": [
            noisyflow.mutual_information(outputs[:, None], std).value for std in stds
        ],
    }


def draw_bins(numbers: Numbers) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    ceiling = math.log(_NUM_INPUTS)
    left.semilogx(numbers["bin_widths"], numbers["binned"], "o-", color="tab:red")
    left.set(
        xlabel="width of a bin",
        ylabel="nats",
        title="Without noise: entropy of binned outputs",
        ylim=(-0.2, ceiling + 0.6),
    )
    right.semilogx(numbers["noise_stds"], numbers["information"], color="tab:blue")
    right.set(xlabel="noise_std", title="With noise: I(X;T), a property of the network")
    for axes in (left, right):
        axes.axhline(ceiling, color="gray", linestyle="--", linewidth=1)
        axes.invert_xaxis()
    left.annotate("log 256", (2, ceiling), (0, 4), textcoords="offset points")
    return figure


def true_density(points: Any, noise_std: float) -> Any:
    """Density of S + Z for S uniform on [-1, 1]."""
    root = noise_std * math.sqrt(2)
    above = np.array([math.erf((x + 1) / root) for x in points])
    below = np.array([math.erf((x - 1) / root) for x in points])
    return (above - below) / 4


def mixture() -> Numbers:
    """A Gaussian on every sample, and their mean."""
    samples = np.random.default_rng(3).uniform(-1, 1, size=(12, 1))
    points = np.linspace(-2, 2, 201)
    noise_std = 0.25
    single = np.exp(-0.5 * ((points[:, None] - samples.T) / noise_std) ** 2)
    single /= noise_std * math.sqrt(2 * math.pi)
    log_density = noisyflow.mixture_log_density(points[:, None], samples, noise_std)
    return {
        "samples": samples[:, 0],
        "points": points,
        "single": single.T / len(samples),
        "density": np.exp(log_density),
        "truth": true_density(points, noise_std),
    }


def draw_mixture(numbers: Numbers) -> Figure:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    points = numbers["points"]
    for single in numbers["single"]:
        axes.fill_between(points, single, color="tab:blue", alpha=0.15, linewidth=0)
    axes.plot(
        points, numbers["density"], color="tab:blue", label="mean of the Gaussians"
    )
    axes.plot(points, numbers["truth"], "--", color="black", label="true density of T")
    axes.plot(
        numbers["samples"],
        np.zeros(len(numbers["samples"])),
        "|",
        color="tab:red",
        markersize=14,
        label="12 samples of S",
    )
    axes.set(xlabel="t", ylabel="density", xlim=(-2, 2))
    axes.legend(frameon=False)
    return figure


def bracket() -> Numbers:
    """Repeated estimates from more and more samples, where the answer is known."""
    d, noise_std = 4, 0.5
    truth = 0.5 * d * math.log(2 * math.pi * math.e * (1 + noise_std**2))
    sizes = [30, 100, 300, 1000, 3000]
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", noisyflow.UndersampledWarning)  # the subject
        for n in sizes:
            for seed in range(12):
                samples = np.random.default_rng((n, seed)).normal(size=(n, d))
                found = noisyflow.entropy(
                    samples, noise_std, seed=seed, max_pairs=4096 * n
                )
                rows.append([n, found.lower, found.upper, found.standard_error])
    return {"truth": truth, "rows": rows}


def draw_bracket(numbers: Numbers) -> Figure:
    rows = np.array(numbers["rows"])
    sizes = np.unique(rows[:, 0])
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots()
    for n in sizes:
        mine = rows[rows[:, 0] == n]
        places = n * np.geomspace(0.76, 1.32, len(mine))
        for x, (_, lower, upper, error) in zip(places, mine, strict=True):
            for y in (lower, upper):
                axes.plot(
                    [x, x], [y - error, y + error], color="tab:orange", linewidth=1
                )
            axes.plot([x, x], [lower, upper], color="tab:blue", linewidth=3)
        for column in (1, 2):
            axes.plot(
                [places[0] * 0.96, places[-1] * 1.04],
                [mine[:, column].mean()] * 2,
                color="black",
                linewidth=1.5,
            )
    axes.axhline(numbers["truth"], color="gray", linestyle="--")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{n:.0f}" for n in sizes])
    axes.minorticks_off()
    axes.set(xlabel="number of samples", ylabel="entropy h(T), nats")
    axes.plot([], [], color="tab:blue", linewidth=3, label="bracket of one estimate")
    axes.plot([], [], color="tab:orange", label="one standard error at both ends")
    axes.plot([], [], color="black", label="mean of either end over 12 estimates")
    axes.plot([], [], "--", color="gray", label="truth, exact")
    axes.legend(frameon=False, loc="upper right", fontsize=9)
    return figure


def layer(num_samples: int = 2000) -> Any:
    """The layer of docs/choosing_noise.md: four tanh units."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(num_samples, 5))
    return np.tanh(inputs @ generator.normal(size=(5, 4)))


def noise() -> Numbers:
    """What a layer tells of its input over the noise, bracket and instant bounds."""
    samples = layer()
    stds = np.geomspace(0.03, 3, 13)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", noisyflow.UndersampledWarning)  # the subject
        for std in stds:
            own = 2 * math.log(2 * math.pi * math.e * std**2)  # h(Z), d = 4
            found = noisyflow.entropy(samples, std, max_pairs=10_000_000)
            rows.append(
                [
                    std,
                    found.lower - own,
                    found.upper - own,
                    found.standard_error,
                    found.saturation,
                ]
            )
    return {"log_n": math.log(len(samples)), "rows": rows}


def draw_noise(numbers: Numbers) -> Figure:
    rows = np.array(numbers["rows"])
    std, lower, upper, error, saturation = rows.T
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.fill_between(
        std, lower - 2 * error, upper + 2 * error, color="tab:blue", alpha=0.2
    )
    left.fill_between(std, lower, upper, color="tab:blue", alpha=0.6, label="bracket")
    left.axhline(numbers["log_n"], color="gray", linestyle="--", linewidth=1)
    left.annotate(
        "log 2000", (0.5, numbers["log_n"]), (0, 4), textcoords="offset points"
    )
    left.set(xlabel="noise_std", ylabel="I(S;T), nats", xscale="log", ylim=(0, 14))
    left.legend(frameon=False)
    right.loglog(std, saturation, "o-", color="tab:blue")
    right.axhline(0.1, color="tab:red", linestyle="--", linewidth=1)
    right.annotate("above: a warning", (0.5, 0.1), (0, 4), textcoords="offset points")
    right.set(xlabel="noise_std", ylabel="saturation")
    return figure


FIGURES = {
    "bins": (bins, draw_bins),
    "mixture": (mixture, draw_mixture),
    "bracket": (bracket, draw_bracket),
    "noise": (noise, draw_noise),
}


def plain(numbers: Any) -> Any:
    """Arrays as lists, numbers with 9 digits."""
    if isinstance(numbers, dict):
        return {key: plain(part) for key, part in numbers.items()}
    return json.loads(
        json.dumps(np.asarray(numbers).tolist()),
        parse_float=lambda text: float(f"{float(text):.9g}"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, (compute, draw) in FIGURES.items():
        found[name] = plain(compute())
        draw(found[name]).savefig(
            out / f"{name}.png", dpi=100, metadata={"Software": None}
        )
    kept = {name: found[name] for name in ("bins", "bracket", "noise")}
    (out / "ideas.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
