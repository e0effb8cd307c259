"""The SZT task: the paper's main figure, with error bars.

A network 12-10-7-5-4-3-2 with noise after every hidden activation learns 80 % of the
4096 binary patterns of Shwartz-Ziv and Tishby, while I(X;T_l) and I(Y;T_l) of its five
hidden layers are measured over all 4096. Epochs count from 0 as in the authors' code:
epoch e is the state after pass number e, that is after e + 1 passes over the training
inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import datasets, plotting, report
from noisyflow._arrays import check_noise_std
from noisyflow._checks import as_int, as_real
from noisyflow.experiments import Claim
from noisyflow.experiments.tracked_training import TrackedTraining
from noisyflow.nn import NoisyMLP, check_activation
from noisyflow.report import Figure, Table
from noisyflow.runs import (
    Interruption,
    Results,
    RunFolder,
    check_device,
    duration,
)
from noisyflow.runtime import check_device_name
from noisyflow.tracking import InformationTracker
from noisyflow.training import Trainer, set_parameters

SIZES = (12, 10, 7, 5, 4, 3, 2)
CEILING = math.log(4096)

# I(X;T_1) ... I(X;T_5) in nats that the authors saved of their own run (github.com/
# kgreenewald/smoothMI): tanh, noise 0.005, 10,000 epochs, one unknown seed.
AUTHORS = {
    1: (7.757, 7.811, 7.671, 5.520, 2.516),
    28: (7.725, 7.813, 7.723, 6.505, 4.633),
    559: (7.751, 7.868, 7.853, 7.089, 4.837),
    9999: (7.755, 7.903, 7.853, 5.571, 2.302),
}
# Mean plug-in information of 4096 inputs drawn with replacement from 4096, without
# noise.
_CEILING_WITH_REPLACEMENT = 7.7445

# Epochs of the scatter plots in the paper's figure.
_SCATTER_EPOCHS = (11, 35, 356, 7389)
# More points than the authors' first 1000 hide one another.
_SCATTER_INPUTS = 1000

# Fixed: the figures of a run must not depend on when they are made.
_FIGURE_SEED = 0

# A thousand times the authors' run; what is more is a slip of the keyboard.
_MOST_EPOCHS = 10_000_000


@dataclass(frozen=True)
class Config:
    """Settings of one run; the defaults are the authors'.

    Parameters
    ----------
    epochs : int
        Passes over the training inputs, from 2 to 10 million; the last epoch is
        `epochs - 1`.
    num_log_points : int
        Logarithmically spaced epochs to measure at, before rounding makes some of them
        coincide. 100 gives 84 of 10,000.
    noise_std : float
        Standard deviation of the noise in every hidden layer, positive.
    activation : str
        tanh, relu, leaky_relu, linear or sigmoid.
    learning_rate : float
        Of Adam; at most 1.
    batch_size : int
        Inputs per step.
    orthonormal_rate : float
        Step of the orthonormality regulariser; 0 leaves it out, 1e-4 is the authors'
        choice. Less than 1, where it would diverge.
    seed : int
        Decides split, initial weights, order of inputs, noise and measurement; in
        [0, 2**63).
    device : str
        Where network and data are: cpu, cuda, cuda:1, ... Path importance, which
        measures, runs on the CPU from a copy of the weights.

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.
    """

    epochs: int = 10_000
    num_log_points: int = 100
    noise_std: float = 0.005
    activation: str = "tanh"
    learning_rate: float = 4e-4
    batch_size: int = 256
    orthonormal_rate: float = 0.0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        whole = {
            "epochs": (2, _MOST_EPOCHS),
            "num_log_points": (1, 100_000),
            "batch_size": (1, None),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in whole.items():
            value = as_int(name, getattr(self, name), at_least=low, at_most=high)
            object.__setattr__(self, name, value)
        check_noise_std(self.noise_std, np.dtype(np.float32))
        check_activation(self.activation)
        if not 0 < as_real("learning_rate", self.learning_rate) <= 1:
            raise ValueError(
                f"learning_rate must be positive and at most 1, got "
                f"{self.learning_rate}"
            )
        if not 0 <= as_real("orthonormal_rate", self.orthonormal_rate) < 1:
            raise ValueError(
                f"orthonormal_rate must be 0 or more and below 1, got "
                f"{self.orthonormal_rate}"
            )
        for name in ("noise_std", "learning_rate", "orthonormal_rate"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "device", check_device_name(self.device))

    @property
    def is_authors_training(self) -> bool:
        """Whether training is as the authors', but for seed, device and length."""
        return self == Config(
            epochs=self.epochs,
            num_log_points=self.num_log_points,
            seed=self.seed,
            device=self.device,
        )


def configure(*, quick: bool = False, **settings: Any) -> Config:
    """The settings of a run: the authors', or a quick version, with some replaced.

    Parameters
    ----------
    quick : bool
        A run of about a minute instead of some minutes: 600 epochs, measured at 31 of
        them.
    **settings
        Fields of `Config`.
    """
    brief = {"epochs": 600, "num_log_points": 36} if quick else {}
    return Config(**{**brief, **settings})


def logged_epochs(epochs: int, num_log_points: int) -> list[int]:
    """Epochs at which a run of `epochs` passes is measured, from 1 to `epochs - 1`.

    Returns
    -------
    list of int
        unique(round(logspace(0, log10(epochs - 1), num_log_points))), as the authors
        did.
    """
    spaced = np.logspace(0, math.log10(epochs - 1), num_log_points)
    return sorted({round(epoch) for epoch in spaced} | {epochs - 1})


def run(config: Config, out: Path) -> bool:
    """Trains and measures in an output folder, from its last checkpoint if it has one.

    Parameters
    ----------
    config : Config
    out : Path
        Created if needed. A finished run there has its figures and report made again.

    Returns
    -------
    bool
        Whether the run is finished; False after Ctrl-C.

    Raises
    ------
    RunError
        If the folder cannot be used or holds a run with other settings, the device is
        not there, or training diverges.

    Notes
    -----
    Full size: some minutes on two cores. Resuming gives the same numbers bit for bit as
    not having stopped, on the same machine.
    """
    check_device(config.device)
    folder = RunFolder(out)
    train, test = datasets.split(datasets.szt(), seed=config.seed)
    work = TrackedTraining(
        lambda: _build(config, train),
        train,
        test,
        epochs=config.epochs,
        logged_epochs=logged_epochs(config.epochs, config.num_log_points),
        folder=folder,
    )
    with folder.open("szt", asdict(config)):
        work.resume()
        if work.is_finished:
            print(f"szt: the run in {out} is finished; making its figures again")
        else:
            _announce(config, work, folder)
            with Interruption() as interruption:
                work.advance(interruption)
        if not work.is_finished:
            done = work.trainer.epochs_done
            print(
                f"szt: stopped after {done} of {config.epochs} passes; the same "
                "command takes it up from there"
            )
            return False
        results = folder.results()
        report.write_report(
            folder,
            results,
            title="Information flow in a noisy network on the SZT task",
            figures=plot(config, results, folder),
            comparison=compare(config, results),
            claims=claims(config, results),
            claims_title=(
                "What a reproduction must show"
                if config.is_authors_training
                else "What any run must show"
            ),
        )
        print(_summary(results))
        print(f"szt: report in {folder.report}")
    return True


def plot(config: Config, results: Results, folder: RunFolder) -> list[Figure]:
    """Makes all figures of a run in its folder.

    Parameters
    ----------
    config : Config
    results : Results
        Of that run.
    folder : RunFolder

    Returns
    -------
    list of Figure
        Files and captions, in the order of the report.
    """
    wanted = (results.nearest(epoch) for epoch in _scatter_epochs(config.epochs))
    shown = sorted(set(wanted))
    return [
        Figure(
            folder.save_figure("information.png", _information_figure(results)),
            "Information about the input, I(X;T_l), and about the label, I(Y;T_l), "
            "in every hidden layer. Bands: from the lower to the upper end of the "
            "bias bracket, with two standard errors on either side; where no band is "
            "seen it is thinner than the line. Dashed: the largest possible value, "
            "the entropy of the input and of the label; the first layers lie on it, "
            "one over another.",
        ),
        Figure(
            folder.save_figure("history.png", _history_figure(results)),
            "Cross-entropy (nats) and accuracy, both with the noise off.",
        ),
        Figure(
            folder.save_figure("scatter.png", _scatter_figure(config, results, shown)),
            "The three units of the last hidden layer for the first "
            f"{_SCATTER_INPUTS} inputs, before the layer's own noise. "
            "Clusters that come closer than the noise lose information; clusters of "
            "one class lose none that the label needs.",
        ),
        Figure(
            folder.save_figure("activations.png", _activations_figure(config, results)),
            "Share of the activations (over all inputs and units of a layer, before "
            "its noise) in each of 100 bins, on a logarithmic colour scale.",
        ),
    ]


def claims(config: Config, results: Results) -> list[Claim]:
    """What a reproduction of the authors' run must show, checked.

    Parameters
    ----------
    config : Config
        Statements about the course of training are left out where settings are not the
        authors', and not judged where the run is shorter.
    results : Results
        Of a run with that configuration.

    Returns
    -------
    list of Claim

    Notes
    -----
    The epochs are those of five runs with different seeds and of the authors' saved
    numbers; the thresholds were set before this code was first run.
    """
    if not config.is_authors_training:
        return _accuracy_claims(results)
    course = _course_claims(config, results)
    if config.epochs < Config().epochs:
        course = [
            Claim(claim.statement, f"{claim.measured} (too short a run)", None)
            for claim in course
        ]
    return course + _accuracy_claims(results)


def compare(config: Config, results: Results) -> list[Table]:
    """Our I(X;T_l) beside the authors' saved numbers, at four epochs.

    Returns
    -------
    list of Table
        One table with its explanation; none where settings are not the authors'.
    """
    if not config.is_authors_training:
        return []
    rows = []
    epochs = [epoch for epoch in AUTHORS if epoch < config.epochs]
    for epoch in epochs:
        at = results.nearest(epoch)
        metrics = {name: column[at] for name, column in results.metrics.items()}
        for layer, theirs in enumerate(AUTHORS[epoch]):
            value = metrics["mutual_information"][layer]
            rows.append(
                [
                    f"{results.epochs[at]} ({epoch})",
                    f"{layer + 1}",
                    f"{value:.3f} ± {metrics['standard_error'][layer]:.3f}",
                    f"[{metrics['lower'][layer]:.3f}, {metrics['upper'][layer]:.3f}]",
                    f"{theirs:.3f}",
                    f"{value - theirs:+.3f}",
                ]
            )
    return [
        Table(
            "I(X;T_l) beside the authors' numbers (nats)",
            [
                "epoch (theirs)",
                "layer",
                "here ± std. error",
                "bracket",
                "authors",
                "difference",
            ],
            rows,
            "The authors drew their 4096 inputs with replacement, so that their "
            f"first layer sits at a ceiling of {_CEILING_WITH_REPLACEMENT:.4f} "
            f"instead of log 4096 = {CEILING:.4f}: "
            f"{CEILING - _CEILING_WITH_REPLACEMENT:.3f} nats of the difference "
            "wherever a layer is near its ceiling. Their conditional entropy is a "
            "plug-in over noise replicas, which is too low in few replicas and "
            "pushes layers 2 and later up: their layer 2 lies above their layer 1, "
            "which no true values can do. The rest of the difference in layers 4 and "
            "5 is that of two networks with different initial weights, split and "
            "order of inputs.",
        )
    ]


def _information_figure(results: Results) -> bytes:
    """I(X;T_l) and I(Y;T_l) side by side."""
    figure, (left, right) = plotting.new_figure(12, 4.6, columns=2)
    metrics = results.metrics
    labels = datasets.szt().labels
    share = float(labels.mean())
    label_entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    for axes, prefix, value, ceiling, name, title in (
        (left, "", "mutual_information", CEILING, "log 4096", "I(X;T), in nats"),
        (
            right,
            "label_",
            "label_information",
            label_entropy,
            "H(Y)",
            "I(Y;T), in nats",
        ),
    ):
        error = 2 * metrics[f"{prefix}standard_error"]
        plotting.information(
            axes,
            results.epochs,
            metrics[value],
            metrics[f"{prefix}lower"] - error,
            metrics[f"{prefix}upper"] + error,
            ceiling=ceiling,
            ceiling_name=name,
        )
        axes.set_ylabel(title, fontsize=13)
    plotting.legend_of_layers(right)
    return plotting.png(figure)


def _history_figure(results: Results) -> bytes:
    """Loss and accuracy side by side."""
    figure, (left, right) = plotting.new_figure(12, 4, columns=2)
    history = results.history
    for axes, quantity, name in (
        (left, "loss", "cross-entropy, in nats"),
        (right, "accuracy", "accuracy"),
    ):
        plotting.history(
            axes,
            results.epochs,
            history[f"train_{quantity}"],
            history[f"test_{quantity}"],
            name=name,
        )
    left.set_ylim(bottom=0)
    return plotting.png(figure)


def _scatter_figure(config: Config, results: Results, shown: list[int]) -> bytes:
    """The last hidden layer at some of the logged epochs."""
    figure, panels = plotting.new_figure(15, 4.2, columns=len(shown), projection="3d")
    labels = datasets.szt().labels[:_SCATTER_INPUTS]
    for axes, at in zip(panels, shown, strict=True):
        points = _layer_outputs(config, results.parameters[at])[-1][:_SCATTER_INPUTS]
        plotting.scatter_3d(axes, points, labels, title=f"epoch {results.epochs[at]}")
    panels[0].legend(loc="upper left", fontsize=12, markerscale=2, frameon=False)
    return plotting.png(figure)


def _activations_figure(config: Config, results: Results) -> bytes:
    """Histograms of every layer's activations over epochs."""
    outputs = [_layer_outputs(config, vector) for vector in results.parameters]
    figure, panels = plotting.new_figure(14, 3.8, columns=results.num_layers)
    for layer, axes in enumerate(panels):
        values = [epoch_outputs[layer] for epoch_outputs in outputs]
        edges = np.linspace(*_activation_range(config.activation, values), 101)
        counts = np.stack([np.histogram(value, edges)[0] for value in values])
        shares = counts / [[value.size] for value in values]
        plotting.activation_histograms(
            axes, results.epochs, edges, shares, title=f"layer {layer + 1}"
        )
        axes.locator_params(axis="y", nbins=5)
    panels[0].set_ylabel("activation", fontsize=13)
    bar = figure.colorbar(panels[-1].collections[-1], ax=panels, pad=0.01)
    bar.set_label("share of activations", fontsize=13)
    return plotting.png(figure)


def _activation_range(
    activation: str, values: Iterable[NDArray[Any]]
) -> tuple[float, float]:
    """The interval that a histogram covers."""
    bounded = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}
    if activation in bounded:
        return bounded[activation]
    arrays = list(values)
    low = min(float(array.min()) for array in arrays)
    high = max(float(array.max()) for array in arrays)
    return low, max(high, low + 1e-6)


def _layer_outputs(
    config: Config, parameters: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    """S_l (4096, d_l) of every hidden layer with these weights."""
    network = NoisyMLP(SIZES, activation=config.activation, noise_std=config.noise_std)
    set_parameters(network, parameters)
    inputs = torch.from_numpy(datasets.szt().inputs)
    outputs = network.clean_outputs(inputs, seed=_FIGURE_SEED)
    return [layer[:, 0].numpy() for layer in outputs]


def _scatter_epochs(epochs: int) -> list[int]:
    """The authors' four epochs in a full run, four spread ones in a shorter."""
    if epochs > _SCATTER_EPOCHS[-1]:
        return list(_SCATTER_EPOCHS)
    return [round((epochs - 1) ** share) for share in (0.25, 0.5, 0.75, 1.0)]


def _course_claims(config: Config, results: Results) -> list[Claim]:
    """How information rises and falls while the authors' network learns."""
    information = results.metrics["mutual_information"]
    fifth = information[:, 4]
    early = _extreme(results, fifth, 10, 70, largest=True)
    dip = _extreme(results, fifth, 70, 300, largest=False)
    peak = _extreme(results, fifth, 300, 9999, largest=True)
    fourth_peak = int(information[:, 3].argmax())
    flat = information[:, :3]
    train_loss, test_loss = results.history["train_loss"], results.history["test_loss"]
    near_ends = _share_near_ends(config, results)
    claims = [
        Claim(
            f"Layer {layer} stays within 0.5 nats of the ceiling log 4096 = 8.318.",
            f"between {low:.3f} and {high:.3f}",
            bool(low > CEILING - 0.5),
        )
        for layer, (low, high) in enumerate(
            zip(flat.min(axis=0), flat.max(axis=0), strict=True), start=1
        )
    ]
    if early is None or dip is None or peak is None:
        return [*claims, _too_short("I(X;T_5) rises, dips, rises again and falls.")]
    return [
        *claims,
        Claim(
            "I(X;T_5) has a first bump near epoch 28 (10 to 70) and a dip near 126 "
            "(70 to 300), more than 0.1 nats apart.",
            f"bump {fifth[early]:.2f} at {results.epochs[early]}, dip "
            f"{fifth[dip]:.2f} at {results.epochs[dip]}",
            bool(fifth[early] - fifth[dip] > 0.1),
        ),
        Claim(
            "I(X;T_5) then peaks between epochs 500 and 1,200.",
            f"{fifth[peak]:.2f} at {results.epochs[peak]}",
            bool(500 <= results.epochs[peak] <= 1200),
        ),
        Claim(
            "From that peak I(X;T_5) falls by at least one nat to the end.",
            f"falls by {fifth[peak] - fifth[-1]:.2f} to {fifth[-1]:.2f}",
            bool(fifth[peak] - fifth[-1] >= 1),
        ),
        Claim(
            "Layer 4 is compressed too: I(X;T_4) ends at least 0.1 nats below its peak "
            "(four of five earlier seeds did, by 0.2 to 0.9).",
            f"peak {information[fourth_peak, 3]:.2f} at {results.epochs[fourth_peak]}, "
            f"end {information[-1, 3]:.2f}",
            bool(information[fourth_peak, 3] - information[-1, 3] >= 0.1),
        ),
        Claim(
            "The training loss goes below 0.05 nats while the test loss ends above its "
            "minimum.",
            f"train {train_loss[-1]:.4f}, test {test_loss[-1]:.4f} after a minimum of "
            f"{test_loss.min():.4f} at {results.epochs[test_loss.argmin()]}",
            bool(train_loss[-1] < 0.05 and test_loss[-1] > test_loss.min()),
        ),
        Claim(
            "Test accuracy ends between 95 and 99.9 %.",
            f"{100 * results.history['test_accuracy'][-1]:.2f} %",
            bool(0.95 <= results.history["test_accuracy"][-1] <= 0.999),
        ),
        Claim(
            "The units of layer 5 saturate: at the end more than half of their "
            "activations are beyond 0.9 in size, and more than at epoch 11.",
            f"{100 * near_ends[1]:.0f} % at the end, {100 * near_ends[0]:.0f} % at "
            f"epoch {results.epochs[results.nearest(11)]}",
            bool(near_ends[1] > max(0.5, near_ends[0])),
        ),
    ]


def _accuracy_claims(results: Results) -> list[Claim]:
    """How good the measurement is, whatever the settings."""
    check = report.data_processing(results)
    errors = results.metrics["standard_error"]
    widths = results.metrics["upper"] - results.metrics["lower"]
    return [
        Claim(
            "Data processing: I(X;T_1) >= I(X;T_2) >= ... within two standard errors "
            "at every logged epoch.",
            f"{check.num_violations} violations in {check.num_pairs} pairs",
            check.num_violations == 0,
        ),
        Claim(
            "Every standard error of I(X;T_l) is at most 0.05 nats.",
            f"largest {errors.max():.4f}",
            bool(errors.max() <= 0.05),
        ),
        Claim(
            "Every bracket of I(X;T_l) is at most 0.05 nats wide.",
            f"widest {widths.max():.4f}",
            bool(widths.max() <= 0.05),
        ),
    ]


def _share_near_ends(config: Config, results: Results) -> tuple[float, float]:
    """Share of layer 5's activations beyond 0.9 in size, at epoch 11 and at the end."""
    first, last = (
        np.abs(_layer_outputs(config, results.parameters[at])[-1]) > 0.9
        for at in (results.nearest(11), -1)
    )
    return float(first.mean()), float(last.mean())


def _extreme(
    results: Results, values: NDArray[Any], first: int, last: int, *, largest: bool
) -> int | None:
    """Index of the largest or smallest value between two epochs, if any."""
    inside = np.flatnonzero((results.epochs >= first) & (results.epochs <= last))
    if inside.size == 0:
        return None
    chosen = values[inside].argmax() if largest else values[inside].argmin()
    return int(inside[chosen])


def _too_short(statement: str) -> Claim:
    """A claim that a run of too few epochs can say nothing about."""
    return Claim(statement, "the run is too short", None)


def _announce(config: Config, work: TrackedTraining, folder: RunFolder) -> None:
    """Says what will be done, how long it will take and how much memory."""
    epochs = logged_epochs(config.epochs, config.num_log_points)
    rate = config.orthonormal_rate
    print(
        f"szt: a {'-'.join(map(str, SIZES))} {config.activation} network with noise "
        f"{config.noise_std:g} learns the 4096 patterns\n"
        f"  {config.epochs} passes over the training inputs, Adam "
        f"{config.learning_rate:g}, batches of {config.batch_size}"
        + (f", orthonormality {rate:g}" if rate else "")
        + f", seed {config.seed}, on {config.device}\n"
        f"  I(X;T) and I(Y;T) of {len(SIZES) - 2} layers at "
        + (
            f"epoch {epochs[0]}"
            if len(epochs) == 1
            else f"{len(epochs)} epochs, {epochs[0]} to {epochs[-1]}"
        )
    )
    if work.trainer.epochs_done:
        print(f"  resumed after {work.trainer.epochs_done} passes")
    print(
        f"  {work.calibrate()}\n"
        f"  into {folder.path}; Ctrl-C stops, the same command resumes",
        flush=True,
    )


def _build(
    config: Config, train: datasets.Dataset
) -> tuple[Trainer, InformationTracker]:
    """A fresh network's trainer and tracker."""
    network = NoisyMLP(
        SIZES,
        activation=config.activation,
        noise_std=config.noise_std,
        seed=config.seed,
    )
    trainer = Trainer(
        network,
        train.inputs,
        train.labels,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        orthonormal_rate=config.orthonormal_rate,
        seed=config.seed,
        device=config.device,
    )
    everything = datasets.szt()
    tracker = InformationTracker(
        network, everything.inputs, everything.labels, seed=config.seed
    )
    return trainer, tracker


def _summary(results: Results) -> str:
    """The end of the run in three lines."""
    last = {name: column[-1] for name, column in results.history.items()}
    information = results.metrics["mutual_information"][-1]
    return "\n".join(
        [
            f"szt: at epoch {results.epochs[-1]}: accuracy "
            f"{last['train_accuracy']:.4f} (train), {last['test_accuracy']:.4f} (test)",
            "  I(X;T), layers 1 to 5: "
            + " ".join(f"{value:.3f}" for value in information)
            + " nats",
            f"  training took {duration(last['training_seconds'])}, "
            f"tracking {duration(last['tracking_seconds'])}",
        ]
    )
