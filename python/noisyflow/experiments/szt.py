"""The SZT task: the paper's main figure, with error bars.

A network 12-10-7-5-4-3-2 with noise after every hidden activation learns 80 % of the
4096 binary patterns of Shwartz-Ziv and Tishby, while I(X;T_l) and I(Y;T_l) of its five
hidden layers are measured over all 4096. Epochs count from 0 as in the authors' code:
epoch e is the state after pass number e, that is after e + 1 passes over the training
inputs.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from noisyflow import _ranks, datasets, report
from noisyflow.experiments import Claim, binned
from noisyflow.experiments.measured import Measured
from noisyflow.experiments.szt_findings import (
    SCATTER_INPUTS,
    accuracy_claims,
    activations_figure,
    by_two_errors,
    extreme,
    fall,
    history_figure,
    information_figure,
    scatter_epochs,
    scatter_figure,
    share_near_ends,
    too_short,
)
from noisyflow.experiments.szt_network import (
    CEILING,
    SIZES,
    Config,
    build,
    labels,
    layer_outputs,
    logged_epochs,
)
from noisyflow.experiments.tracked_figures import information_plane
from noisyflow.experiments.tracked_training import TrackedTraining
from noisyflow.report import Figure, Table
from noisyflow.runs import Interruption, Results, RunFolder, check_device, duration

__all__ = [
    "AUTHORS",
    "SIZES",
    "Config",
    "claims",
    "compare",
    "configure",
    "labels",
    "layer_outputs",
    "logged_epochs",
    "plot",
    "run",
]

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
        lambda: build(config, train),
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
        _ranks.current().release()
        if not work.is_finished:
            done = work.trainer.epochs_done
            print(
                f"szt: stopped after {done} of {config.epochs} passes; the same "
                "command takes it up from there"
            )
            return False
        results = folder.results()
        binned_course = {"": binned.measure(config, results)}
        binned.save(folder, binned_course)
        report.write_report(
            folder,
            results,
            title="Information flow in a noisy network on the SZT task",
            figures=[
                *plot(config, results, folder),
                binned.information_over_bins(folder, binned_course),
                binned.bin_width_figure(folder, binned_course),
            ],
            comparison=[
                *compare(config, results),
                binned.correlation_table(binned_course),
                binned.grid_table(binned_course),
            ],
            claims=[*claims(config, results), binned.tracks(binned_course)],
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
    wanted = (results.nearest(epoch) for epoch in scatter_epochs(config.epochs))
    shown = sorted(set(wanted))
    return [
        Figure(
            folder.save_figure("information.png", information_figure(results)),
            "Information about the input, I(X;T_l), and about the label, I(Y;T_l), "
            "in every hidden layer. Bands: from the lower to the upper end of the "
            "bias bracket, with two standard errors on either side; where no band is "
            "seen it is thinner than the line. Dashed: the largest possible value, "
            "the entropy of the input and of the label; the first layers lie on it, "
            "one over another.",
        ),
        information_plane(folder, results, labels(config)),
        Figure(
            folder.save_figure("history.png", history_figure(results)),
            "Cross-entropy (nats) and accuracy, both with the noise off.",
        ),
        Figure(
            folder.save_figure("scatter.png", scatter_figure(config, results, shown)),
            "The three units of the last hidden layer for the first "
            f"{SCATTER_INPUTS} inputs, before the layer's own noise. "
            "Clusters that come closer than the noise lose information; clusters of "
            "one class lose none that the label needs.",
        ),
        Figure(
            folder.save_figure("activations.png", activations_figure(config, results)),
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
        return accuracy_claims(results)
    course = _course_claims(config, results)
    if config.epochs < Config().epochs:
        course = [
            Claim(claim.statement, f"{claim.measured} (too short a run)", None)
            for claim in course
        ]
    return course + accuracy_claims(results)


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


def _course_claims(config: Config, results: Results) -> list[Claim]:
    """How information rises and falls while the authors' network learns."""
    information = results.metrics["mutual_information"]
    errors = results.metrics["standard_error"]
    fifth = information[:, 4]
    early = extreme(results, fifth, 10, 70, largest=True)
    dip = extreme(results, fifth, 70, 300, largest=False)
    peak = extreme(results, fifth, 300, 9999, largest=True)
    fourth_peak = int(information[:, 3].argmax())
    train_loss, test_loss = results.history["train_loss"], results.history["test_loss"]
    near_ends = share_near_ends(config, results)
    claims = []
    for layer in (0, 1, 2):
        course = information[:, layer]
        low = Measured(course.min(), errors[course.argmin(), layer])
        claims.append(
            Claim(
                f"Layer {layer + 1} stays within 0.5 nats of the ceiling log 4096 = "
                "8.318.",
                f"between {low} and {course.max():.3f}",
                by_two_errors(low, CEILING - 0.5),
            )
        )
    if early is None or dip is None or peak is None:
        return [*claims, too_short("I(X;T_5) rises, dips, rises again and falls.")]
    bump = fall(results, 5, early, dip)
    last_fall = fall(results, 5, peak, -1)
    fourth_fall = fall(results, 4, fourth_peak, -1)
    return [
        *claims,
        Claim(
            "I(X;T_5) has a first bump near epoch 28 (10 to 70) and a dip near 126 "
            "(70 to 300), more than 0.1 nats apart.",
            f"bump {fifth[early]:.2f} at {results.epochs[early]}, dip "
            f"{fifth[dip]:.2f} at {results.epochs[dip]}: {bump} apart",
            by_two_errors(bump, 0.1),
        ),
        Claim(
            "I(X;T_5) then peaks between epochs 500 and 1,200.",
            f"{fifth[peak]:.2f} at {results.epochs[peak]}",
            _peaks_between(results, peak, 500, 1200),
        ),
        Claim(
            "From that peak I(X;T_5) falls by at least one nat to the end.",
            f"falls by {last_fall} to {fifth[-1]:.3f}",
            by_two_errors(last_fall, 1),
        ),
        Claim(
            "Layer 4 is compressed too: I(X;T_4) ends at least 0.1 nats below its peak "
            "(four of five earlier seeds did, by 0.2 to 0.9).",
            f"peak {information[fourth_peak, 3]:.2f} at {results.epochs[fourth_peak]}, "
            f"end {information[-1, 3]:.2f}: {fourth_fall} below",
            by_two_errors(fourth_fall, 0.1),
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


def _peaks_between(results: Results, peak: int, first: int, last: int) -> bool | None:
    """Whether I(X;T_5) is largest between two epochs; None where others may be higher.

    Those are the logged epochs from 300 on that lie within two errors of the largest.
    """
    highest = [
        bool(first <= epoch <= last)
        for at, epoch in enumerate(results.epochs)
        if epoch >= 300 and not by_two_errors(fall(results, 5, peak, at), 0)
    ]
    return None if len(set(highest)) > 1 else highest[0]


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
            f"tracking {duration(last['tracking_seconds'])}"
            + " in all processes together"
            * (_ranks.current().size > 1),
        ]
    )
