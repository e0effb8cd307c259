"""H(Bin(T_l)) beside I(X;T_l): the paper's cheap measure of clustering, over epochs.

Computed from the weights of the logged epochs: one noisy output T_l = S_l + Z_l for
every input, rounded to bins of ten times the noise's standard deviation, as in the
lower panels of the paper's figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from noisyflow import plotting
from noisyflow.baselines import Binning
from noisyflow.experiments import Claim
from noisyflow.experiments.correlation import Correlation, correlation
from noisyflow.experiments.measured import all_hold
from noisyflow.experiments.szt_network import CEILING, Config, layer_outputs
from noisyflow.report import Figure, Table
from noisyflow.runs import Results, Row, RunFolder, table_bytes, write_atomically

Floats = NDArray[np.float64]

# Widths of bins in units of noise_std: the paper's, and those around it.
PAPER_WIDTH = 10.0
_WIDTHS = (3.0, 10.0, 30.0, 100.0)
_SEED = 0  # of the noise: figures must not depend on when they are made

# What "tracks" means; written down before a binned entropy of a run was looked at.
_LEAST_CORRELATION = 0.9
_LEAST_LOW = 0.5
_LEAST_RANGE = 0.5  # nats over which information must vary, for there to be a course
_FEWEST_EPOCHS = 10


@dataclass(frozen=True)
class BinnedCourse:
    """Binned entropies of a network's layers at its k logged epochs, in nats.

    Parameters
    ----------
    noise_std : float
        What widths are in units of.
    results : Results
        Of the same network.
    entropies : (k, L) array
        With bins of `PAPER_WIDTH`.
    swept : dict of float to (k,) array
        Of the last hidden layer, by width.
    shifted : (k,) array
        Of the last hidden layer with bins of `PAPER_WIDTH`, the grid moved by half a
        bin.
    """

    noise_std: float
    results: Results
    entropies: Floats
    swept: Mapping[float, Floats]
    shifted: Floats

    def rows(self) -> list[Row]:
        """For a table: a row per epoch, layer and width."""
        rows: list[Row] = []
        num_layers = self.entropies.shape[1]
        for at, epoch in enumerate(self.results.epochs):
            found = [
                (layer + 1, PAPER_WIDTH, self.entropies[at, layer])
                for layer in range(num_layers)
            ]
            found += [
                (num_layers, width, values[at])
                for width, values in self.swept.items()
                if width != PAPER_WIDTH
            ]
            rows += [
                {
                    "epoch": int(epoch),
                    "layer": layer,
                    "bin_width": width * self.noise_std,
                    "binned_entropy": float(value),
                }
                for layer, width, value in found
            ]
        return rows

    def correlations(self, *, of_ranks: bool = False) -> list[Correlation]:
        """Of H(Bin(T_l)) with I(X;T_l) over epochs, one for each layer."""
        information = self.results.metrics["mutual_information"]
        return [
            correlation(
                information[:, layer], self.entropies[:, layer], of_ranks=of_ranks
            )
            for layer in range(information.shape[1])
        ]


def measure(config: Config, results: Results) -> BinnedCourse:
    """The binned entropies of a run.

    Parameters
    ----------
    config : Config
    results : Results
        Of a run with that configuration.

    Returns
    -------
    BinnedCourse
    """
    noise = np.random.default_rng(_SEED)
    draws: list[Floats] = []
    entropies, swept, shifted = [], [], []
    width = PAPER_WIDTH * config.noise_std
    for parameters in results.parameters:
        outputs = layer_outputs(config, parameters)
        # The same noise at every epoch: one chance less in the course.
        draws = draws or [noise.normal(0, config.noise_std, s.shape) for s in outputs]
        noisy = [s + z for s, z in zip(outputs, draws, strict=True)]
        entropies.append([entropy(t, width) for t in noisy])
        shifted.append(entropy(noisy[-1] + width / 2, width))
        swept.append([entropy(noisy[-1], w * config.noise_std) for w in _WIDTHS])
    by_width = np.array(swept).T
    return BinnedCourse(
        config.noise_std,
        results,
        np.array(entropies),
        dict(zip(_WIDTHS, by_width, strict=True)),
        np.array(shifted),
    )


def entropy(samples: NDArray[np.floating], bin_width: float) -> float:
    """H(Bin(T)) of samples, in nats, without its error."""
    return Binning(bin_width, num_resamples=0).entropy(samples).value


def save(folder: RunFolder, courses: Mapping[str, BinnedCourse]) -> None:
    """Writes `binned_entropy.csv`, with a column `network` where there are several."""
    rows = [
        {"network": name, **row} if len(courses) > 1 else row
        for name, course in courses.items()
        for row in course.rows()
    ]
    write_atomically(folder.path / "binned_entropy.csv", table_bytes(rows))


def information_over_bins(
    folder: RunFolder, courses: Mapping[str, BinnedCourse], note: str = ""
) -> Figure:
    """I(X;T_l) above H(Bin(T_l)), a column for each network.

    Parameters
    ----------
    folder : RunFolder
    courses : mapping of str to BinnedCourse
        By what stands above the column.
    note : str
        More for the caption.

    Returns
    -------
    Figure
    """
    columns = len(courses)
    figure, axes = plotting.new_figure(2 + 5.2 * columns, 7.8, columns=columns, rows=2)
    for (name, course), top, bottom in zip(
        courses.items(), axes[:columns], axes[columns:], strict=True
    ):
        metrics = course.results.metrics
        error = 2 * metrics["standard_error"]
        plotting.information(
            top,
            course.results.epochs,
            metrics["mutual_information"],
            metrics["lower"] - error,
            metrics["upper"] + error,
            ceiling=CEILING,
            ceiling_name="log 4096",
        )
        plotting.information(
            bottom,
            course.results.epochs,
            *(course.entropies,) * 3,
            ceiling=CEILING,
            ceiling_name="log 4096",
        )
        top.set_title(name, fontsize=15)
        top.set_xlabel("")
    axes[0].set_ylabel("I(X;T), in nats", fontsize=13)
    axes[columns].set_ylabel("H(Bin(T)), in nats", fontsize=13)
    plotting.legend_of_layers(axes[columns - 1])
    return Figure(
        folder.save_figure("binning.png", plotting.png(figure)),
        "Above: information about the input, I(X;T_l), in every hidden layer. Bands: "
        "the bias bracket with two standard errors on either side; where none is seen "
        "it is thinner than the line. Below: the entropy of the same layers' noisy "
        "outputs in bins of ten times the noise's standard deviation, one output for "
        f"each of the 4096 inputs.{note}",
    )


def bin_width_figure(folder: RunFolder, courses: Mapping[str, BinnedCourse]) -> Figure:
    """H(Bin(T)) of the last hidden layer at several widths, a column for each network.

    Parameters
    ----------
    folder : RunFolder
    courses : mapping of str to BinnedCourse

    Returns
    -------
    Figure
    """
    columns = len(courses)
    figure, axes = plotting.new_figure(2.5 + 4.8 * columns, 4.6, columns=columns)
    for (name, course), panel in zip(courses.items(), axes, strict=True):
        plotting.bin_widths(
            panel,
            course.results.epochs,
            course.results.metrics["mutual_information"][:, -1],
            course.swept,
            ceiling=CEILING,
            title=name,
        )
    axes[0].set_ylabel("in nats", fontsize=13)
    axes[-1].legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=12, frameon=False
    )
    return Figure(
        folder.save_figure("bin_widths.png", plotting.png(figure)),
        "The last hidden layer: its binned entropy at several widths of the bins, and "
        "its information (dashed). The level is a matter of the width: the narrower "
        "the bins, the nearer to the ceiling log 4096 (thin, dashed), where every "
        "output has a bin of its own and nothing is seen.",
    )


def correlation_table(courses: Mapping[str, BinnedCourse]) -> Table:
    """How H(Bin(T_l)) and I(X;T_l) go together over the logged epochs.

    Parameters
    ----------
    courses : mapping of str to BinnedCourse

    Returns
    -------
    Table
    """
    rows = []
    several = len(courses) > 1
    for name, course in courses.items():
        pairs = zip(
            course.correlations(), course.correlations(of_ranks=True), strict=True
        )
        for layer, (pearson, spearman) in enumerate(pairs):
            rows.append(
                [
                    *([name] if several else []),
                    f"{layer + 1}",
                    f"{_range(course.results, layer):.2f}",
                    f"{np.ptp(course.entropies[:, layer]):.2f}",
                    str(pearson),
                    str(spearman),
                    f"{pearson.num_effective:.1f} of {len(course.results.epochs)}",
                ]
            )
    return Table(
        "Correlation of H(Bin(T_l)) with I(X;T_l) over the logged epochs",
        [
            *(["network"] if several else []),
            "layer",
            "range of I (nats)",
            "range of H (nats)",
            "Pearson [95 %]",
            "Spearman [95 %]",
            "epochs that count (Pearson)",
        ],
        rows,
        "Of one network each, of the first seed. The intervals are Fisher's for the "
        "effective number of epochs, which is that of independent pairs that would say "
        "as much, for courses that are stationary: neighbouring epochs are alike "
        "(Bartlett's formula with the autocorrelations of both courses). Where "
        "I(X;T_l) hardly varies, its correlation is one of measurement errors.",
    )


def grid_table(courses: Mapping[str, BinnedCourse]) -> Table:
    """How the correlation of the last hidden layer depends on the grid of the bins.

    Parameters
    ----------
    courses : mapping of str to BinnedCourse

    Returns
    -------
    Table
    """
    several = len(courses) > 1
    rows = []
    for name, course in courses.items():
        information = course.results.metrics["mutual_information"][:, -1]
        grids = {f"{width:g}": values for width, values in course.swept.items()}
        grids[f"{PAPER_WIDTH:g}, moved by half a bin"] = course.shifted
        rows += [
            [
                *([name] if several else []),
                grid,
                f"{values[-1]:.2f}",
                str(correlation(information, values)),
                str(correlation(information, values, of_ranks=True)),
            ]
            for grid, values in grids.items()
        ]
    return Table(
        "The last hidden layer: correlation of H(Bin(T)) with I(X;T) by the bins' grid",
        [
            *(["network"] if several else []),
            "bin width (noise_std)",
            "H at the end (nats)",
            "Pearson [95 %]",
            "Spearman [95 %]",
        ],
        rows,
        "Bins have edges at the multiples of their width: at 0, where ReLUs are "
        "silent, and for a width that divides 1 at -1 and 1, where tanh units "
        "saturate. There the noise scatters one cluster over two bins in each unit, "
        "which adds up to log 2 = 0.69 nats for each. Moved by half a bin, the grid "
        "has its edges elsewhere.",
    )


def tracks(courses: Mapping[str, BinnedCourse]) -> Claim:
    """Whether the binned entropy tracks the information, in layers that move.

    Parameters
    ----------
    courses : mapping of str to BinnedCourse

    Returns
    -------
    Claim
    """
    statement = (
        "H(Bin(T_l)) tracks I(X;T_l): Pearson's correlation over epochs is at least "
        f"{_LEAST_CORRELATION:g}, the lower end of its 95 % interval above "
        f"{_LEAST_LOW:g}, in every layer whose information varies by more than "
        f"{_LEAST_RANGE:g} nats."
    )
    texts: list[str] = []
    holds: list[bool | None] = []
    for name, course in courses.items():
        if len(course.results.epochs) < _FEWEST_EPOCHS:
            return Claim(statement, "too few epochs", None)
        for layer, found in enumerate(course.correlations()):
            if _range(course.results, layer) > _LEAST_RANGE:
                prefix = f"{name} " if len(courses) > 1 else ""
                texts.append(f"{prefix}layer {layer + 1}: {found}")
                holds.append(_tracks(found))
    if not texts:
        return Claim(statement, "no layer's information varies so much", None)
    return Claim(statement, "; ".join(texts), all_hold(holds))


def _tracks(found: Correlation) -> bool | None:
    """Whether one correlation is as high as claimed; None where too little is known."""
    if found.value < _LEAST_CORRELATION:
        return None if found.high >= _LEAST_CORRELATION else False
    return True if found.low > _LEAST_LOW else None


def _range(results: Results, layer: int) -> float:
    """Largest minus smallest I(X;T_l) over the logged epochs."""
    return float(np.ptp(results.metrics["mutual_information"][:, layer]))
