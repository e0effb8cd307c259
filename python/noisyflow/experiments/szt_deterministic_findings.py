"""What the SZT networks without and with noise show: figures, tables and claims.

Everything here reads finished results and trains nothing. X is uniform over the 4096
inputs, so that H(Bin(T_l)) of the deterministic network is the exact I(X;Bin(T_l)); of
the noisy one it is that of one output for each input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import datasets, plotting
from noisyflow.experiments import Claim, binned
from noisyflow.experiments.correlation import correlation
from noisyflow.experiments.measured import Measured, is_above, over_seeds
from noisyflow.experiments.szt_findings import by_two_errors, extreme, fall
from noisyflow.experiments.szt_network import CEILING, SIZES, layer_outputs
from noisyflow.experiments.szt_network import Config as NetworkConfig
from noisyflow.experiments.szt_without_noise import (
    Floats,
    Separation,
    clean_outputs,
    separations,
)
from noisyflow.experiments.tracked_figures import information_plane
from noisyflow.nn import NoisyMLP
from noisyflow.report import (
    Figure,
    Part,
    Table,
    claims_table,
    settings_table,
    work_table,
)
from noisyflow.runs import Results, Row, RunFolder, table_bytes, write_atomically
from noisyflow.training import set_parameters

if TYPE_CHECKING:
    from noisyflow.experiments.szt_deterministic import Config

WITHOUT, WITH = "without noise", "with noise"
_SEED = 0  # of the noise in the noisy outputs that are binned

# What counts as shown; written down before either network was trained.
_CONSTANT_WITHIN = 0.1  # nats
_LEAST_BINNED_FALL = 0.5  # nats
_LEAST_FALL = 1.0  # nats
_MOST_ACCURACY_APART = 0.01

# Where information varies less, nats, its correlation is one of errors.
_LEAST_RANGE = 0.1


@dataclass(frozen=True)
class Study:
    """The results of both networks, and what follows from their weights.

    Parameters
    ----------
    config : Config
    deterministic, noisy : Results
        At the same k epochs.
    """

    config: Config
    deterministic: Results
    noisy: Results

    @property
    def is_short(self) -> bool:
        """Whether training ends before what the paper shows has happened."""
        return self.config.epochs < NetworkConfig().epochs

    @property
    def widths(self) -> tuple[float, ...]:
        """Widths of the bins, increasing."""
        return tuple(self.config.bin_widths)

    @cached_property
    def course(self) -> binned.BinnedCourse:
        """The noisy network in bins of ten times its noise."""
        return binned.measure(self.config.network(), self.noisy)

    @cached_property
    def entropies(self) -> dict[str, dict[float, Floats]]:
        """H(Bin(T_l)) by network and width, each (k, L)."""
        noise = np.random.default_rng(_SEED)
        draws: list[Floats] = []
        found: dict[str, list[list[list[float]]]] = {WITHOUT: [], WITH: []}
        for quiet, noisy in zip(
            self.deterministic.parameters, self.noisy.parameters, strict=True
        ):
            before = layer_outputs(self.config.network(), noisy)
            # The same noise at every epoch: one chance less in the course.
            draws = draws or [
                noise.normal(0, self.config.noise_std, s.shape) for s in before
            ]
            outputs: dict[str, list[Floats]] = {
                WITHOUT: clean_outputs(quiet, np.float64),
                WITH: [s + z for s, z in zip(before, draws, strict=True)],
            }
            for name, layers in outputs.items():
                found[name].append(
                    [[binned.entropy(t, w) for t in layers] for w in self.widths]
                )
        return {
            name: {
                width: np.array(values)[:, number]
                for number, width in enumerate(self.widths)
            }
            for name, values in found.items()
        }

    @cached_property
    def in_noise_bins(self) -> Floats:
        """H(Bin(T_l)) without noise, in bins of 10 noise_std, (k, L)."""
        width = binned.PAPER_WIDTH * self.config.noise_std
        return np.array(
            [
                [binned.entropy(t, width) for t in clean_outputs(vector, np.float64)]
                for vector in self.deterministic.parameters
            ]
        )

    @cached_property
    def are_right(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether each test input is classified as it should be, noise off.

        At the last epoch; the network without noise first.
        """
        _, test = datasets.split(datasets.szt(), seed=self.config.seed)
        inputs = torch.from_numpy(test.inputs)
        found = []
        for results in (self.deterministic, self.noisy):
            network = NoisyMLP(SIZES, noise_std=self.config.noise_std).eval()
            set_parameters(network, results.parameters[-1])
            with torch.no_grad():
                answers = network(inputs).argmax(dim=1).numpy()
            found.append(answers == test.labels)
        return found[0], found[1]

    @cached_property
    def separations(self) -> list[list[Separation]]:
        """How far apart the outputs without noise are, by epoch and layer."""
        return [separations(vector) for vector in self.deterministic.parameters]

    def rows(self) -> list[Row]:
        """Binned entropies for a table."""
        return [
            {
                "network": name.split()[0] + "_noise",
                "epoch": int(epoch),
                "layer": layer + 1,
                "bin_width": width,
                "binned_entropy": float(values[at, layer]),
            }
            for name, by_width in self.entropies.items()
            for width, values in by_width.items()
            for at, epoch in enumerate(self.deterministic.epochs)
            for layer in range(values.shape[1])
        ]


def parts(study: Study, folder: RunFolder) -> Sequence[Part]:
    """The report, and `binned_entropy.csv` beside it.

    Parameters
    ----------
    study : Study
    folder : RunFolder

    Returns
    -------
    sequence of str, Figure or Table
    """
    write_atomically(folder.path / "binned_entropy.csv", table_bytes(study.rows()))
    return [
        _opening(study),
        *plot(study, folder),
        claims_table("What the paper claims", claims(study)),
        _end_table(study),
        _distinct_table(study),
        binned.correlation_table({WITH: study.course}),
        _proxy_table(study),
        _accuracy_table(study),
        settings_table(folder.config()["settings"]),
        work_table(folder),
    ]


def plot(study: Study, folder: RunFolder) -> list[Figure]:
    """Makes all figures of a run in its folder.

    Parameters
    ----------
    study : Study
    folder : RunFolder

    Returns
    -------
    list of Figure
        Files and captions, in the order of the report.
    """
    return [
        Figure(
            folder.save_figure("bins.png", _bins_figure(study)),
            "Entropy of the binned layers, H(Bin(T_l)), over epochs; from left to "
            "right with wider bins. Above: the deterministic network, where this is "
            "I(X;Bin(T_l)), exactly, while I(X;T_l) itself is log 4096 (dashed) in "
            "all layers at all logged epochs. Below: the network with noise "
            f"{study.config.noise_std:g}, one noisy output per input: in "
            "bins narrower than the noise hardly two of them are together.",
        ),
        Figure(
            folder.save_figure("information.png", _information_figure(study)),
            "I(X;T_l) itself. Left: without noise it is constant, log 4096 in every "
            "layer (all curves coincide). Right: with noise. Bands: "
            "the bias bracket with two standard errors on either side; where none is "
            "seen it is thinner than the line.",
        ),
        binned.information_over_bins(
            folder,
            {f"noise {study.config.noise_std:g}": study.course},
        ),
        information_plane(
            folder, study.noisy, datasets.szt().labels, note="The noisy network. "
        ),
        Figure(
            folder.save_figure("history.png", _history_figure(study)),
            "Cross-entropy on the training and the test inputs, noise off.",
        ),
    ]


def claims(study: Study) -> list[Claim]:
    """What the paper states, checked.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of Claim
    """
    return [
        *_constant_claims(study),
        _binned_fall_claim(study),
        _distinct_claim(study),
        _noisy_fall_claim(study),
        binned.tracks({WITH: study.course}),
        _accuracy_claim(study),
    ]


def summary(study: Study) -> str:
    """The end of the run in a few lines."""
    narrow, wide = study.widths[0], study.widths[-1]
    lines = [
        f"szt-deterministic: at epoch {study.noisy.epochs[-1]}, layers 1 to 5, in nats"
    ]
    ends = {
        "I(X;T) without noise": study.deterministic.metrics["mutual_information"],
        f"H(Bin(T)), bins of {narrow:g}": study.entropies[WITHOUT][narrow],
        f"H(Bin(T)), bins of {wide:g}": study.entropies[WITHOUT][wide],
        "I(X;T) with noise": study.noisy.metrics["mutual_information"],
    }
    return "\n".join(
        lines
        + [
            f"  {name}: " + " ".join(f"{value:.3f}" for value in values[-1])
            for name, values in ends.items()
        ]
    )


def _opening(study: Study) -> str:
    """What is claimed and what was found, in a few sentences."""
    narrow, wide = study.widths[0], study.widths[-1]
    at_narrow = study.entropies[WITHOUT][narrow]
    at_wide = study.entropies[WITHOUT][wide][:, -1]
    fifth = study.noisy.metrics["mutual_information"][:, -1]
    return (
        "A network without noise loses no information about its input, and an "
        "estimate by bins that shows it compress shows its bins (Goldfeld et al., "
        "2019). Here the same network is trained twice, without and with noise. "
        f"{_distinct_text(study)} So I(X;T_l) is log 4096 = {CEILING:.3f} nats in all "
        f"layers at all logged epochs. In bins of {narrow:g}, H(Bin(T_l)) is never "
        f"below {at_narrow[:, :-1].min():.3f} nats in the layers before the last "
        f"hidden one, and between {at_narrow[:, -1].min():.3f} and "
        f"{at_narrow[:, -1].max():.3f} in that; in bins of {wide:g} it "
        f"goes up to {at_wide.max():.3f} nats there and ends at {at_wide[-1]:.3f}. "
        f"With noise {study.config.noise_std:g} the information is no constant: "
        f"I(X;T_{len(SIZES) - 2}) has its largest value, "
        f"{fifth.max():.3f} nats, at epoch {study.noisy.epochs[fifth.argmax()]} and "
        f"ends at {fifth[-1]:.3f}. Information is in nats; ± is one standard error. "
        "Binned entropies of the network without noise have no error: X is uniform "
        "over the inputs, and all of them are used."
    )


def _constant_claims(study: Study) -> list[Claim]:
    """Small bins see no change."""
    width = study.widths[0]
    values = study.entropies[WITHOUT][width]
    return [
        Claim(
            f"Without noise, bins of {width:g}: H(Bin(T_{layer + 1})) stays within "
            f"{_CONSTANT_WITHIN:g} nats of log 4096 = {CEILING:.3f} at every logged "
            "epoch.",
            f"between {course.min():.3f} (epoch "
            f"{study.deterministic.epochs[course.argmin()]}) and {course.max():.3f}",
            bool(course.min() >= CEILING - _CONSTANT_WITHIN),
        )
        for layer, course in enumerate(values.T)
    ]


def _binned_fall_claim(study: Study) -> Claim:
    """Large bins see compression."""
    width = study.widths[-1]
    values = study.entropies[WITHOUT][width]
    falls = values.max(axis=0) - values[-1]
    texts = [
        f"layer {layer + 1}: {values[:, layer].max():.2f} (epoch "
        f"{study.deterministic.epochs[values[:, layer].argmax()]}) to "
        f"{values[-1, layer]:.2f}"
        for layer in range(values.shape[1])
    ]
    return Claim(
        f"Without noise, bins of {width:g}: H(Bin(T_5)) falls by at least "
        f"{_LEAST_BINNED_FALL:g} nats from its peak to the end, as if it were "
        "compressed.",
        "; ".join(texts) + _short(study),
        None if study.is_short else bool(falls[-1] >= _LEAST_BINNED_FALL),
    )


def _distinct_claim(study: Study) -> Claim:
    """The true information is constant."""
    return Claim(
        "Without noise I(X;T_l) is log 4096 in all layers at all logged epochs: no two "
        "of the 4096 outputs are the same, in exact arithmetic.",
        _distinct_text(study),
        all(one.is_sure for layers in study.separations for one in layers),
    )


def _distinct_text(study: Study) -> str:
    """Of how many outputs it is certain that they differ."""
    every = [one for layers in study.separations for one in layers]
    closest = min(every, key=lambda one: one.gap)
    num_sure = sum(one.is_sure for one in every)
    where = (
        "at all logged epochs in all layers"
        if num_sure == len(every)
        else f"in {num_sure} of {len(every)} layers and epochs"
    )
    return (
        f"All 4096 outputs differ by more than rounding can do {where}; the closest "
        f"two are {closest.gap:.1e} apart, where rounding is below "
        f"{closest.rounding:.1e}."
    )


def _noisy_fall_claim(study: Study) -> Claim:
    """Noise makes compression a fact."""
    epochs = study.noisy.epochs
    fifth = study.noisy.metrics["mutual_information"][:, -1]
    statement = (
        "With noise, I(X;T_5) falls by at least one nat from its peak after epoch 300 "
        "to the end."
    )
    peak = extreme(study.noisy, fifth, 300, int(epochs[-1]), largest=True)
    if peak is None:
        return Claim(statement, "the run is too short", None)
    by = fall(study.noisy, 5, peak, -1)
    return Claim(
        statement,
        f"falls by {by}, from {fifth[peak]:.3f} at epoch {epochs[peak]} to "
        f"{fifth[-1]:.3f}{_short(study)}",
        None if study.is_short else by_two_errors(by, _LEAST_FALL),
    )


def _accuracy_claim(study: Study) -> Claim:
    """Noise is harmless."""
    ends = [
        float(results.history["test_accuracy"][-1])
        for results in (study.deterministic, study.noisy)
    ]
    apart = accuracy_difference(*study.are_right)
    return Claim(
        "Little noise changes the network's use little: test accuracies at the end "
        "are within one percentage point.",
        f"{100 * ends[0]:.2f} % without noise, {100 * ends[1]:.2f} % with: "
        f"{100 * apart.mean:+.2f} ± {100 * apart.error:.2f} percentage points over "
        f"{len(study.are_right[0])} test inputs, of which one network alone is right "
        f"on {np.sum(study.are_right[0] != study.are_right[1])}; one training of each"
        + _short(study),
        None if study.is_short else _is_within(apart, _MOST_ACCURACY_APART),
    )


def accuracy_difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_]
) -> Measured:
    """By how much one network is right more often than another on the same inputs.

    Parameters
    ----------
    first, second : (m,) array of bool
        Where each is right.

    Returns
    -------
    Measured
        With the standard error over inputs, in pairs: only those count on which one
        network alone is right.
    """
    return over_seeds(first.astype(float) - second)


def _is_within(apart: Measured, bound: float) -> bool | None:
    """Whether a difference is at most so large; None within two errors of it."""
    return is_above(-abs(apart.mean), 2 * apart.error, -bound)


def _short(study: Study) -> str:
    """What is said of a number that comes too early."""
    return " (too short a run)" if study.is_short else ""


def _end_table(study: Study) -> Table:
    """Binned entropies at the last epoch."""
    rows = [
        [name, f"{width:g}", *(f"{value:.3f}" for value in values[-1])]
        for name, by_width in study.entropies.items()
        for width, values in by_width.items()
    ]
    layers = range(1, len(SIZES) - 1)
    return Table(
        f"H(Bin(T_l)) at epoch {study.noisy.epochs[-1]} (nats)",
        ["network", "width of bins", *(f"layer {layer}" for layer in layers)],
        rows,
        "Without noise these numbers are exact. With noise they are of one noisy "
        "output per input, too low where most inputs have a bin of their own: no more "
        "than log 4096 can be seen.",
    )


def _distinct_table(study: Study) -> Table:
    """How far apart the outputs without noise are."""
    rows = []
    for layer, every in enumerate(zip(*study.separations, strict=True), start=1):
        closest = min(range(len(every)), key=lambda at: every[at].gap)
        fewest = min(range(len(every)), key=lambda at: every[at].num_distinct_float32)
        rows.append(
            [
                f"{layer}",
                f"{min(one.num_distinct for one in every)}",
                f"{every[closest].gap:.1e} (epoch "
                f"{study.deterministic.epochs[closest]})",
                f"{max(one.rounding for one in every):.1e}",
                f"{every[fewest].num_distinct_float32} (epoch "
                f"{study.deterministic.epochs[fewest]})",
            ]
        )
    return Table(
        "Outputs without noise that differ, over all logged epochs",
        [
            "layer",
            "fewest in float64",
            "smallest distance",
            "largest bound on rounding",
            "fewest in float32",
        ],
        rows,
        "Of 4096. The distance is the largest difference of two outputs' coordinates "
        "in float64; outputs that are more than twice the bound on rounding apart "
        "differ in exact arithmetic. In float32, in which the network is trained, some "
        "may coincide where units saturate: that is rounding, a bin of its own.",
    )


def _proxy_table(study: Study) -> Table:
    """How the binned entropy without noise goes with the noisy information."""
    information = study.noisy.metrics["mutual_information"]
    rows = [
        [
            f"{layer + 1}",
            f"{np.ptp(information[:, layer]):.2f}",
            f"{np.ptp(study.in_noise_bins[:, layer]):.2f}",
            str(correlation(information[:, layer], study.in_noise_bins[:, layer]))
            if np.ptp(information[:, layer]) > _LEAST_RANGE
            else "I hardly varies",
        ]
        for layer in range(information.shape[1])
    ]
    width = binned.PAPER_WIDTH * study.config.noise_std
    return Table(
        "H(Bin(T_l)) without noise beside I(X;T_l) of the noisy network",
        ["layer", "range of I (nats)", "range of H (nats)", "Pearson [95 %]"],
        rows,
        f"Bins of 10 noise_std = {width:g}. Two networks of the same seed: whether the "
        "noisy one stands for the one without noise.",
    )


def _accuracy_table(study: Study) -> Table:
    """What both networks have learned."""
    rows = []
    for name, results in ((WITHOUT, study.deterministic), (WITH, study.noisy)):
        last = {key: column[-1] for key, column in results.history.items()}
        rows.append(
            [
                name,
                *(f"{last[f'{part}_loss']:.4f}" for part in ("train", "test")),
                *(
                    f"{100 * last[f'{part}_accuracy']:.2f} %"
                    for part in ("train", "test")
                ),
            ]
        )
    return Table(
        f"What was learned, at epoch {study.noisy.epochs[-1]} (noise off)",
        [
            "network",
            "train loss (nats)",
            "test loss",
            "train accuracy",
            "test accuracy",
        ],
        rows,
    )


def _bins_figure(study: Study) -> bytes:
    """H(Bin(T_l)) over epochs: networks above one another, widths side by side."""
    columns = len(study.widths)
    figure, panels = plotting.new_figure(
        1.5 + 2.9 * columns, 6.4, columns=columns, rows=2
    )
    for row, (name, by_width) in enumerate(study.entropies.items()):
        for column, (width, values) in enumerate(by_width.items()):
            axes = panels[row * columns + column]
            plotting.information(
                axes,
                study.deterministic.epochs,
                *(values,) * 3,
                ceiling=CEILING,
                ceiling_name="log 4096",
            )
            if row == 0:
                axes.set_title(f"bins of {width:g}", fontsize=14)
                axes.set_xlabel("")
            if column == 0:
                axes.set_ylabel(f"{name}\nH(Bin(T)), in nats", fontsize=13)
    plotting.legend_above(figure, panels)
    return plotting.png(figure)


def _information_figure(study: Study) -> bytes:
    """I(X;T_l) without and with noise."""
    figure, (left, right) = plotting.new_figure(12, 4.6, columns=2)
    for axes, name, results in (
        (left, WITHOUT, study.deterministic),
        (right, WITH, study.noisy),
    ):
        metrics = results.metrics
        reach = 2 * metrics["standard_error"]
        plotting.information(
            axes,
            results.epochs,
            metrics["mutual_information"],
            metrics["lower"] - reach,
            metrics["upper"] + reach,
            ceiling=CEILING,
            ceiling_name="log 4096",
        )
        axes.set_title(name, fontsize=15)
    left.set_ylabel("I(X;T), in nats", fontsize=13)
    plotting.legend_of_layers(right)
    return plotting.png(figure)


def _history_figure(study: Study) -> bytes:
    """Losses of both networks."""
    figure, panels = plotting.new_figure(12, 4, columns=2)
    networks = {WITHOUT: study.deterministic, WITH: study.noisy}
    for axes, (name, results) in zip(panels, networks.items(), strict=True):
        losses = (results.history[f"{part}_loss"] for part in ("train", "test"))
        plotting.history(axes, results.epochs, *losses, name="cross-entropy, in nats")
        axes.set_ylim(0, 0.8)
        axes.set_title(name, fontsize=15)
    return plotting.png(figure)
