"""What the digits' networks show: figures, tables, and what the paper says of them.

Everything here reads the rows and arrays of a finished run and trains nothing. Errors
over seeds are of the mean; differences are between trainings that share their seed, and
so their initial weights and the order of the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import plotting
from noisyflow.experiments import Claim
from noisyflow.experiments.measured import Measured, all_hold, is_above, over_seeds
from noisyflow.report import Figure, Table
from noisyflow.representations import ClassDistances
from noisyflow.runs import Row, RunFolder, duration

Floats = NDArray[np.float64]

DETERMINISTIC = "deterministic"
ANOTHER_SEED = "another seed"
NUM_LAYERS = 3
LAYERS = range(1, NUM_LAYERS + 1)
# Ten times the paper's default noise of 0.05, as it bins elsewhere; finer; and the
# signs of the units alone.
BIN_WIDTHS = (0.1, 0.5, 1.0)
JUDGED_WIDTH = 0.5

# What "small" noise is, and what is known to do harm.
_SMALL, _LARGE = 0.1, 0.5
# Test errors of 10,000 MNIST images: mean and standard deviation over 8 seeds, as they
# are remembered of the paper.
_REMEMBERED = {
    DETERMINISTIC: (50, 4.6),
    "noise 0.05": (50, 5.0),
    "noise 0.1": (51, 6.9),
    "noise 0.2": (86, 9.8),
    "noise 0.5": (2200, 520),
    "dropout 0.2": (39, 3.9),
}
# Of fewer seeds the standard error is itself known too badly to judge by it.
_ENOUGH_SEEDS = 4
# Of the deterministic network's test errors: a change of fewer is called none.
_SAME = 0.5
# A network with noise and dropout off is read twice: with the statistics that batch
# normalisation gathered in training, with noise or dropout on, and with those of the
# training images without. Prefixes of columns, and how claims name them.
_READINGS = {"": "", "recomputed_": "with the normalisation recomputed "}


class Study:
    """Rows and arrays of a finished run.

    Parameters
    ----------
    metrics, history : list of dict
        Rows of the two tables.
    images : mapping of str to array
        What was prepared: how many images of which size.
    arrays : mapping of str to array
        What the cells kept.
    """

    def __init__(
        self,
        metrics: list[Row],
        history: list[Row],
        images: Mapping[str, NDArray[Any]],
        arrays: Mapping[str, NDArray[Any]],
    ) -> None:
        self.history = history
        self.num_train, self.num_test, self.num_measured = (
            int(images[name]) for name in ("num_train", "num_test", "num_measured")
        )
        self.is_split = bool(images["is_split"])
        self.shape = tuple(int(size) for size in images["shape"])
        self.arms = list(dict.fromkeys(str(row["arm"]) for row in metrics))
        self.noise_stds = {str(row["arm"]): float(row["noise_std"]) for row in metrics}
        self.epochs = sorted({int(row["epoch"]) for row in metrics})
        self.num_seeds = 1 + max(int(row["repetition"]) for row in metrics)
        self._arrays = arrays
        self._rows = {
            (row["arm"], row["repetition"], row["epoch"], row["layer"]): row
            for row in metrics
        }

    @property
    def dropout(self) -> str:
        """The network with dropout, by its name."""
        return self.arms[-1]

    @property
    def small_noise(self) -> list[str]:
        """Networks of noise up to 0.1."""
        return [arm for arm in self.arms if 0 < self.noise_stds[arm] <= _SMALL]

    @property
    def least_binned_entropy(self) -> float:
        """Of whole layers: of all widths, layers, epochs, networks and seeds."""
        names = [_binned(width) for width in BIN_WIDTHS]
        return min(float(row[name]) for row in self._rows.values() for name in names)

    @property
    def has_enough_seeds(self) -> bool:
        """Whether errors over the seeds are known well enough to judge by them."""
        return self.num_seeds >= _ENOUGH_SEEDS

    def column(self, arm: str, name: str, layer: int = 1, epoch: int = -1) -> Floats:
        """A column over the seeds, after the last epoch unless another is given."""
        at = self.epochs[-1] if epoch < 0 else epoch
        return np.array(
            [
                float(self._rows[arm, seed, at, layer][name])
                for seed in range(self.num_seeds)
            ]
        )

    def difference(self, arm: str, name: str) -> Measured:
        """A column less that of the deterministic network."""
        return over_seeds(self.column(arm, name) - self.column(DETERMINISTIC, name))

    def ratio(self, arm: str, layer: int, epoch: int = -1) -> Floats:
        """Mean distance within classes over that between classes, by seed."""
        within, between = (
            self.column(arm, name, layer, epoch) for name in ("within", "between")
        )
        return np.asarray(within / between)

    def similarity(self, arm: str, layer: int, reading: str = "") -> Floats:
        """Mean similarity to the deterministic network, by seed.

        Of a deterministic one to that of the seed before, without the first.
        """
        values = self.column(arm, f"{reading}similarity", layer)
        return values[1:] if arm == DETERMINISTIC else values

    def similarities(self, name: str, layer: int) -> Floats:
        """That of every image, in one comparison of each kind."""
        return np.asarray(self._arrays[f"similarity.{name}.{layer}"], np.float64)

    def distances(self, arm: str, when: str, layer: int) -> ClassDistances:
        """Histograms of the first seed, before or after training."""
        prefix = f"distances.{arm}.{when}.{layer}."
        fields: dict[str, Any] = {
            name.removeprefix(prefix): value if value.ndim else value.item()
            for name, value in self._arrays.items()
            if name.startswith(prefix)
        }
        return ClassDistances(**fields)


def opening(study: Study) -> list[str]:
    """What is claimed and what was found, in words."""
    paragraphs = [_outcome(study), _protocol(study)]
    if study.is_split:
        paragraphs.append(
            f"The images came as one set of {study.num_train + study.num_test}, which "
            f"was split by the seed: {study.num_train} to train with, {study.num_test} "
            "to test with."
        )
    return paragraphs


def _outcome(study: Study) -> str:
    """The first paragraph."""
    errors, recomputed = (
        ", ".join(
            f"{study.column(arm, f'{reading}test_errors').mean():.1f} ({arm})"
            for arm in study.arms
        )
        for reading in _READINGS
    )
    layer = NUM_LAYERS
    closest = study.small_noise[-1] if study.small_noise else study.arms[1]
    noisy, dropped = (
        over_seeds(study.similarity(arm, layer)) for arm in (closest, study.dropout)
    )
    before, after = (
        over_seeds(study.ratio(DETERMINISTIC, layer, epoch)) for epoch in (0, -1)
    )
    return (
        "The paper says that a little noise leaves the errors of a network that reads "
        "digits where they are, that it changes the representations less than dropout "
        "does, and that representations of one class draw together while a network "
        f"learns. Here, of {study.num_test} test images, on average {errors} are "
        "misread; with the statistics of batch normalisation recomputed without noise "
        f"and dropout, {recomputed}. In the last hidden layer the {closest} network's "
        "representations "
        f"have a cosine similarity of {noisy} with those of the deterministic one, the "
        f"dropout network's of {dropped}. There, mean distances within classes over "
        f"those between classes go from {before} before training to {after} after it "
        "in the deterministic network. The table below says which claims hold."
    )


def _protocol(study: Study) -> str:
    """The second: how it was done."""
    (channels, height, width) = study.shape
    colours = "" if channels == 1 else f" in {channels} colours"
    return (
        f"Images of {height} x {width} pixels{colours}; a network of two convolutions "
        "and two linear layers with batch normalisation and tanh, and after every "
        "hidden tanh nothing, Gaussian noise or dropout. Networks of one seed share "
        "their initial weights and the order of the images. Noise and dropout are off "
        "when a network is measured, unless said otherwise. Batch normalisation then "
        "uses the running means and variances of its training, which were gathered "
        "with noise or dropout on and need not fit activations without: errors that "
        "come of it are not of what was learned. Errors and similarities are therefore "
        "given a second time, with the normalisation recomputed: its means and "
        "variances taken anew from all training images, noise and dropout off, no "
        "weight changed. Claims about errors and similarities are judged with both, "
        "and left undecided where the two disagree. Distances and entropies, and the "
        "figure of the similarities, are with the running ones. Before training all "
        "are of the training images. Similarities, distances and entropies are of the "
        f"first {study.num_measured} test images. ± is one standard error over "
        f"{study.num_seeds} seeds, of these very images. The paper "
        "trains for 128 epochs of 60000 images; of a momentum or a decay of its "
        "learning rate nothing is known: there is a momentum here, and no decay."
    )


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
    shown = _clustering_arms(study)[-1]
    others = " and ".join(_clustering_arms(study)[1:])
    return [
        Figure(
            folder.save_figure("errors.png", _errors_figure(study)),
            f"Errors on {study.num_test} test images after training; points: single "
            "seeds; bars: mean and one standard deviation over the seeds. Noise and "
            "dropout are off, with the running statistics of batch normalisation or "
            "with those of the training images without noise and dropout (filled), or "
            "on, as in training (hollow). A network without errors is drawn at a "
            "quarter of one.",
        ),
        Figure(
            folder.save_figure("similarity.png", _similarity_figure(study)),
            f"Cosine similarity of the representations of {study.num_measured} test "
            "images in a deterministic network and in others of the same initial "
            "weights and order of images, by hidden layer; and in a deterministic one "
            "of another seed. One seed; means over the seeds are in a table below.",
        ),
        Figure(
            folder.save_figure("distances.png", _distances_figure(study, shown)),
            "Distances between representations of two test images, of one class or of "
            f"two, before and after training: the {shown} network of one seed. Dashed "
            "lines: means, with their standard errors in the legends. Before training "
            "all networks of a seed are the same.",
        ),
        Figure(
            folder.save_figure("clustering.png", _clustering_figure(study)),
            "Mean distance within classes over that between classes, by hidden layer, "
            f"while the deterministic network and those with {others} learn; mean over "
            "the seeds, bands: one standard error. Lower: classes are more compact; "
            "dashed: they do not show in the distances.",
        ),
        Figure(
            folder.save_figure("units.png", _units_figure(study)),
            "Entropy of the bins that a single unit falls into, over the test images, "
            f"bins of {JUDGED_WIDTH:g}, mean over the units of a layer and over the "
            "seeds; bands: one standard error; dashed: all bins equally often. The "
            "bins of a whole layer are not drawn: of all widths, layers, epochs and "
            f"networks, their smallest entropy is {study.least_binned_entropy:.3f}, of "
            f"log {study.num_measured} = {math.log(study.num_measured):.3f} where "
            "every image has a bin of its own.",
        ),
    ]


def _clustering_arms(study: Study) -> list[str]:
    """The networks whose clustering is shown."""
    return [DETERMINISTIC, *(study.small_noise or study.arms[1:2])]


def _errors_figure(study: Study) -> bytes:
    figure, (axes,) = plotting.new_figure(9, 5)
    plotting.errors_by_network(
        axes,
        {
            name: {
                arm: study.column(arm, column)
                for arm in study.arms
                if arm != DETERMINISTIC or column != "disturbed_test_errors"
            }
            for name, column in (
                ("noise or dropout off", "test_errors"),
                ("off, normalisation recomputed", "recomputed_test_errors"),
                ("on", "disturbed_test_errors"),
            )
        },
        num_images=study.num_test,
        title="Errors on test images",
    )
    plotting.legend_above(figure, [axes])
    return plotting.png(figure)


def _similarity_figure(study: Study) -> bytes:
    figure, axes = plotting.new_figure(12, 4.5, columns=NUM_LAYERS)
    names = [*(study.small_noise or study.arms[1:2]), study.dropout, ANOTHER_SEED]
    for layer, panel in zip(LAYERS, axes, strict=True):
        plotting.similarity_histograms(
            panel,
            {name: study.similarities(name, layer) for name in names},
            title=f"hidden layer {layer}",
        )
    plotting.legend_above(figure, axes)
    return plotting.png(figure)


def _distances_figure(study: Study, arm: str) -> bytes:
    figure, axes = plotting.new_figure(11, 11, columns=2, rows=NUM_LAYERS)
    panels = iter(axes)
    for layer in LAYERS:
        for when in ("before", "after"):
            plotting.distance_histograms(
                next(panels),
                study.distances(arm, when, layer),
                title=f"hidden layer {layer}, {when} training",
            )
    return plotting.png(figure)


def _clustering_figure(study: Study) -> bytes:
    return _over_epochs(study, study.ratio, 1.0, "distance within / between classes")


def _units_figure(study: Study) -> bytes:
    def entropies(arm: str, layer: int, epoch: int) -> Floats:
        return study.column(arm, "unit_entropy", layer, epoch)

    # Values of tanh fall into so many bins.
    most = math.log(2 / JUDGED_WIDTH)
    return _over_epochs(study, entropies, most, "entropy of a binned unit, nats")


def _over_epochs(
    study: Study, values: Callable[[str, int, int], Floats], top: float, label: str
) -> bytes:
    """Values over the seeds, by layer, while networks learn."""
    figure, axes = plotting.new_figure(12, 4.5, columns=NUM_LAYERS)
    for layer, panel in zip(LAYERS, axes, strict=True):
        plotting.networks_over_epochs(
            panel,
            np.array(study.epochs),
            {
                arm: [over_seeds(values(arm, layer, epoch)) for epoch in study.epochs]
                for arm in _clustering_arms(study)
            },
            top=top,
            title=f"hidden layer {layer}",
        )
    axes[0].set_ylabel(label, fontsize=13)
    plotting.legend_above(figure, axes)
    return plotting.png(figure)


def _binned(width: float) -> str:
    """The column of a bin width."""
    return f"binned_entropy_{width:g}"


def caution(study: Study) -> list[str]:
    """What must be said before the claims: a paragraph where the seeds are few."""
    if study.has_enough_seeds:
        return []
    return [
        f"With {study.num_seeds} seeds the standard errors over the seeds may be too "
        "small many times over, and nothing is concluded from them below. It takes "
        f"{_ENOUGH_SEEDS} seeds or more."
    ]


def claims(study: Study) -> list[Claim]:
    """What the paper says of digits, checked; not judged where the seeds are too few.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of Claim
    """
    found = [
        *(_leaves_errors(study, arm) for arm in study.small_noise),
        *(
            _changes_errors(study, arm, "raises", 1)
            for arm in study.arms
            if study.noise_stds[arm] > _SMALL
        ),
        _changes_errors(study, study.dropout, "lowers", -1),
        *(_closer_than_dropout(study, arm) for arm in study.small_noise),
        *(_classes_contract(study, arm) for arm in _clustering_arms(study)),
        *(_entropy_falls(study, arm) for arm in _clustering_arms(study)),
    ]
    if study.has_enough_seeds:
        return found
    return [Claim(claim.statement, claim.measured, None) for claim in found]


def _agreed(verdicts: Iterable[bool | None]) -> bool | None:
    """The verdict of all readings; None where they disagree."""
    found = set(verdicts)
    return found.pop() if len(found) == 1 else None


def _leaves_errors(study: Study, arm: str) -> Claim:
    return Claim(
        f"{arm.capitalize()} leaves the test errors where they are: changed by less "
        "than half of the deterministic network's, by two standard errors, with either "
        "normalisation.",
        _changes(study, arm),
        _agreed(_is_left(study, arm, f"{reading}test_errors") for reading in _READINGS),
    )


def _is_left(study: Study, arm: str, name: str) -> bool | None:
    """Whether errors are within the tolerance of the deterministic network's."""
    errors, reference = study.column(arm, name), study.column(DETERMINISTIC, name)
    if not reference.any():
        return None  # no part of nothing
    # By seed, as the tolerance is itself known from the seeds alone.
    left = [
        over_seeds((1 + _SAME) * reference - errors),
        over_seeds(errors - (1 - _SAME) * reference),
    ]
    return all_hold(is_above(room.mean, 2 * room.error, 0) for room in left)


def _changes_errors(study: Study, arm: str, verb: str, sign: int) -> Claim:
    found = [study.difference(arm, f"{reading}test_errors") for reading in _READINGS]
    harm = ", it does harm" if study.noise_stds[arm] >= _LARGE else ""
    return Claim(
        f"{arm.capitalize()} {verb} the test errors{harm}: by more than three standard "
        "errors, with either normalisation.",
        _changes(study, arm),
        _agreed(
            change.is_above(0) if sign > 0 else change.is_below(0) for change in found
        ),
    )


def _changes(study: Study, arm: str) -> str:
    """Test errors against those of the deterministic network, in words."""
    return "; ".join(
        f"{words}{change.mean:+.2f} ± {change.error:.2f} errors, from {before:.2f}"
        for words, change, before in (
            (
                words,
                study.difference(arm, f"{reading}test_errors"),
                study.column(DETERMINISTIC, f"{reading}test_errors").mean(),
            )
            for reading, words in _READINGS.items()
        )
    )


def _closer_than_dropout(study: Study, arm: str) -> Claim:
    changes = {
        reading: {
            layer: over_seeds(
                study.similarity(arm, layer, reading)
                - study.similarity(study.dropout, layer, reading)
            )
            for layer in LAYERS
        }
        for reading in _READINGS
    }
    return Claim(
        f"{arm.capitalize()} leaves representations closer to those of the "
        "deterministic network than dropout does: a higher cosine similarity in every "
        "hidden layer, by more than three standard errors, with either normalisation.",
        "; ".join(
            f"{words}difference "
            + ", ".join(
                f"{change.mean:+.3f} ± {change.error:.3f} (layer {layer})"
                for layer, change in changes[reading].items()
            )
            for reading, words in _READINGS.items()
        ),
        _agreed(
            all_hold(change.is_above(0) for change in found.values())
            for found in changes.values()
        ),
    )


def _classes_contract(study: Study, arm: str) -> Claim:
    changes = {
        layer: over_seeds(study.ratio(arm, layer) - study.ratio(arm, layer, 0))
        for layer in LAYERS
    }
    return Claim(
        f"{_network(arm)}: distances within classes shrink in training as parts of "
        "those between classes, in every hidden layer, by more than three standard "
        "errors.",
        ", ".join(
            f"{over_seeds(study.ratio(arm, layer, 0)).mean:.3f} → "
            f"{over_seeds(study.ratio(arm, layer)).mean:.3f} ({change.mean:+.3f} ± "
            f"{change.error:.3f}, layer {layer})"
            for layer, change in changes.items()
        ),
        all_hold(change.is_below(0) for change in changes.values()),
    )


def _entropy_falls(study: Study, arm: str) -> Claim:
    name = _binned(JUDGED_WIDTH)
    before, after = (
        study.column(arm, name, NUM_LAYERS, epoch) for epoch in (0, study.epochs[-1])
    )
    change = over_seeds(after - before)
    most = math.log(study.num_measured)
    # With two images in one bin and every other in one of its own.
    one_pair = most - 2 * math.log(2) / study.num_measured
    is_at_ceiling = min(before.min(), after.min()) > one_pair - 1e-9
    return Claim(
        f"{_network(arm)}: binned entropy falls as classes draw together: in the last "
        f"hidden layer, bins of {JUDGED_WIDTH:g}, by more than three standard errors. "
        "Not judged at the ceiling, where at most two images ever share a bin.",
        f"{change.mean:+.4f} ± {change.error:.4f} nats, to {after.mean():.4f} of log "
        f"{study.num_measured} = {most:.4f}"
        + (
            ": at the ceiling before and after, where no change can be seen"
            if is_at_ceiling
            else ""
        ),
        None if is_at_ceiling else change.is_below(0),
    )


def _network(arm: str) -> str:
    """A network at the beginning of a sentence."""
    return f"{arm.capitalize()} network"


def error_table(study: Study) -> Table:
    """Test errors of all networks, beside those that are remembered of the paper.

    Parameters
    ----------
    study : Study

    Returns
    -------
    Table
    """
    rows = []
    for arm in study.arms:
        errors, recomputed, disturbed, train = (
            study.column(arm, name)
            for name in (
                "test_errors",
                "recomputed_test_errors",
                "disturbed_test_errors",
                "train_loss",
            )
        )
        remembered = _REMEMBERED.get(arm)
        rows.append(
            [
                arm,
                _spread(errors),
                f"{100 * errors.mean() / study.num_test:.2f} %",
                _spread(recomputed),
                "the same" if arm == DETERMINISTIC else _spread(disturbed),
                f"{train.mean():.2g}",
                "not known"
                if remembered is None
                else f"{remembered[0]} ± {remembered[1]:g}",
                "" if remembered is None else f"{remembered[0] / 100:.2f} %",
            ]
        )
    return Table(
        f"Errors on {study.num_test} test images",
        [
            "network",
            "errors, mean ± deviation",
            "share",
            "noise off, normalisation recomputed",
            "with noise or dropout on",
            "training loss",
            "paper, of 10000 (from memory)",
            "paper, share",
        ],
        rows,
        f"Deviation: standard deviation over {study.num_seeds} seeds, not the error of "
        "the mean. Normalisation recomputed: from the training images with noise and "
        "dropout off. The numbers of the paper are for MNIST and 8 seeds; they are "
        "quoted from memory and not verified. Training loss: cross-entropy on the "
        "training images, nats.",
    )


def _spread(values: Floats) -> str:
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


def difference_table(study: Study) -> Table:
    """What noise and dropout change, against the deterministic network of their seed.

    Parameters
    ----------
    study : Study

    Returns
    -------
    Table
    """
    rows = []
    for arm in study.arms[1:]:
        off, recomputed, on, loss = (
            study.difference(arm, name)
            for name in (
                "test_errors",
                "recomputed_test_errors",
                "disturbed_test_errors",  # as off, of the deterministic network
                "test_loss",
            )
        )
        is_clear = (
            off.is_clear and recomputed.is_clear and off.mean * recomputed.mean > 0
        )
        rows.append(
            [
                arm,
                f"{off.mean:+.2f} ± {off.error:.2f}",
                f"{recomputed.mean:+.2f} ± {recomputed.error:.2f}",
                f"{on.mean:+.2f} ± {on.error:.2f}",
                f"{loss.mean:+.4f} ± {loss.error:.4f}",
                "too few seeds"
                if not study.has_enough_seeds
                else "yes"
                if is_clear
                else "no",
            ]
        )
    return Table(
        "Against the deterministic network of the same seed",
        [
            "network",
            "change of test errors",
            "normalisation recomputed",
            "with noise or dropout on",
            "change of test loss, nats",
            "clear",
        ],
        rows,
        "Mean over the seeds of paired differences, and its standard error. Clear: "
        "with noise and dropout off, beyond three standard errors to the same side "
        "with either normalisation.",
    )


def similarity_table(study: Study) -> Table:
    """Mean cosine similarities with the deterministic network, by layer.

    Parameters
    ----------
    study : Study

    Returns
    -------
    Table
    """
    rows = [
        [
            ANOTHER_SEED if arm == DETERMINISTIC else arm,
            *(
                str(over_seeds(study.similarity(arm, layer, reading)))
                for reading in _READINGS
                for layer in LAYERS
            ),
        ]
        for arm in (*study.arms[1:], DETERMINISTIC)
    ]
    return Table(
        "Cosine similarity to the deterministic network",
        [
            "network",
            *(f"hidden layer {layer}" for layer in LAYERS),
            *(f"normalisation recomputed, layer {layer}" for layer in LAYERS),
        ],
        rows,
        f"Mean over {study.num_measured} test images and over the seeds, and its "
        "standard error over the seeds. Same initial weights and order of images, but "
        "for the last row: deterministic networks of two seeds, what units in another "
        "order leave; each seed against the one before, so that pairs share networks "
        "and their error is rough. Normalisation recomputed: in both networks.",
    )


def clustering_table(study: Study) -> Table:
    """Compactness of classes and binned entropies before and after training.

    Parameters
    ----------
    study : Study

    Returns
    -------
    Table
    """
    rows = []
    for arm in study.arms:
        for layer in LAYERS:
            ratio = over_seeds(study.ratio(arm, layer))
            rows.append(
                [
                    arm,
                    str(layer),
                    f"{study.ratio(arm, layer, 0).mean():.3f} → {ratio}",
                    *(
                        f"{study.column(arm, _binned(width), layer, 0).mean():.3f} → "
                        f"{over_seeds(study.column(arm, _binned(width), layer))}"
                        for width in BIN_WIDTHS
                    ),
                    f"{study.column(arm, 'unit_entropy', layer, 0).mean():.3f} → "
                    f"{over_seeds(study.column(arm, 'unit_entropy', layer))}",
                ]
            )
    return Table(
        "Clustering, before → after training",
        [
            "network",
            "layer",
            "within / between",
            *(f"H(Bin), width {width:g}" for width in BIN_WIDTHS),
            f"single units, width {JUDGED_WIDTH:g}",
        ],
        rows,
        "Within / between: mean distance of representations of one class over that of "
        "two classes. H(Bin): entropy of the binned representations, nats; the most "
        f"that it can be is log {study.num_measured} = "
        f"{math.log(study.num_measured):.3f}, where every image has a bin of its own. "
        "Single units: mean over the units of the entropy of each one's bins. Before "
        "training: with batch normalisation as the training images would have it.",
    )


def work_rows(study: Study) -> list[list[str]]:
    """How many trainings there were, and what a step took."""
    step = np.median([float(row["step_seconds"]) for row in study.history])
    longest = max(float(row["seconds"]) for row in study.history)
    return [
        ["trainings", f"{len(study.history)}, the longest {duration(longest)}"],
        ["median time of a training step", f"{1000 * step:.1f} ms"],
    ]


def summary(study: Study) -> str:
    """The end of the run in a few lines."""
    lines = [f"mnist: errors on {study.num_test} test images, mean ± deviation"]
    lines += [
        f"  {arm:<15}{_spread(study.column(arm, 'test_errors'))}" for arm in study.arms
    ]
    return "\n".join(lines)
