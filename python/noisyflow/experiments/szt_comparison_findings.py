"""What comparisons of SZT networks measure, show and write down.

Measures are functions of a network's settings and results, taken at the last epoch
unless said otherwise, so that `Study` can take them over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from noisyflow import plotting, report, representations
from noisyflow.experiments import Claim, binned, measured
from noisyflow.experiments.szt_comparison import Measure, Spread, Study
from noisyflow.experiments.szt_findings import (
    SCATTER_INPUTS,
    activations_figure,
    scatter_epochs,
    scatter_figure,
)
from noisyflow.experiments.szt_network import (
    BRACKET_WIDTH,
    STANDARD_ERROR,
    Config,
    labels,
    layer_outputs,
)
from noisyflow.experiments.tracked_figures import information_plane
from noisyflow.experiments.verdicts import CHECKS
from noisyflow.report import Figure, Part, Table
from noisyflow.runs import Results, RunFolder

_MAX_PAIRS = 400_000  # for a mean distance: its error is then below 1 %


# -- measures -------------------------------------------------------------------


def information(layer: int) -> Measure:
    """I(X;T_l) at the end, in nats."""
    return lambda config, results: float(
        results.metrics["mutual_information"][-1, layer - 1]
    )


def fall(layer: int) -> Measure:
    """How far I(X;T_l) falls from its peak over the logged epochs to the end."""

    def measure(config: Config, results: Results) -> float:
        course = results.metrics["mutual_information"][:, layer - 1]
        return float(course.max() - course[-1])

    return measure


def history(column: str) -> Measure:
    """A column of `history.csv` at the end."""
    return lambda config, results: float(results.history[column][-1])


def binned_entropy(config: Config, results: Results) -> float:
    """H(Bin(T)) of the last hidden layer, in bins of the paper's width, in nats."""
    return float(_at_the_end(results, lambda one: binned.measure(config, one)))


def saturated_share(config: Config, results: Results) -> float:
    """Share of the last hidden layer's activations beyond 0.9 in size."""
    return float((np.abs(_last_layer(config, results)) > 0.9).mean())


def distance_ratio(config: Config, results: Results) -> float:
    """Mean distance within classes over that between classes, last hidden layer."""
    return _distances(config, results, -1).ratio


def first_distance_ratio(config: Config, results: Results) -> float:
    """The same at the first logged epoch."""
    return _distances(config, results, 0).ratio


def clusters(config: Config, results: Results) -> float:
    """Single-linkage clusters of the last hidden layer at the scale of the noise."""
    samples = _last_layer(config, results)
    return float(representations.num_clusters(samples, config.noise_std))


def _at_the_end(
    results: Results, measure: Callable[[Results], binned.BinnedCourse]
) -> float:
    """The last layer's binned entropy, computed for the last epoch alone."""
    last = Results(
        results.epochs[-1:],
        {name: column[-1:] for name, column in results.metrics.items()},
        {name: column[-1:] for name, column in results.history.items()},
        results.parameters[-1:],
    )
    return float(measure(last).entropies[-1, -1])


def _last_layer(config: Config, results: Results, at: int = -1) -> NDArray[np.float32]:
    """S of the last hidden layer at a logged epoch."""
    return layer_outputs(config, results.parameters[at])[-1]


def _distances(
    config: Config, results: Results, at: int
) -> representations.ClassDistances:
    """Distances of the last hidden layer's outputs at a logged epoch."""
    samples = _last_layer(config, results, at)
    return representations.class_distances(
        samples, labels(config), max_pairs=_MAX_PAIRS
    )


# -- claims ---------------------------------------------------------------------


def is_below(
    statement: str, difference: Spread, unit: str, *, bound: float = 0.0
) -> Claim:
    """A claim that a mean over seeds is below a bound at 95 % confidence, one-sided.

    It is false where the mean is above the bound with the same confidence, else open.

    Parameters
    ----------
    statement : str
    difference : Spread
    unit : str
        Of the values; " %" shows them in per cent, or " points" for differences of
        them.
    bound : float

    Returns
    -------
    Claim
    """
    holds = measured.is_above(-difference.mean, difference.margin, -bound)
    return Claim(statement, spread_text(difference, unit), holds)


def is_above(
    statement: str, difference: Spread, unit: str, *, bound: float = 0.0
) -> Claim:
    """The same for above."""
    holds = measured.is_above(difference.mean, difference.margin, bound)
    return Claim(statement, spread_text(difference, unit), holds)


def spread_text(spread: Spread, unit: str) -> str:
    """A mean with its standard error and how far it may be off."""
    scale = 100 if unit in (" %", " points") else 1
    return (
        f"{scale * spread.mean:+.2f} ± {scale * spread.standard_error:.2f}{unit} over "
        f"{len(spread.values)} seeds, one-sided 95 % margin {scale * spread.margin:.2f}"
    )


def measurement_claims(study: Study) -> list[Claim]:
    """How good the measurement is, over all networks.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of Claim
    """
    checks = [report.data_processing(one) for one in study.results.values()]
    violations = sum(check.num_violations for check in checks)
    pairs = sum(check.num_pairs for check in checks)
    metrics = [one.metrics for one in study.results.values()]
    error = max(float(one["standard_error"].max()) for one in metrics)
    width = max(float((one["upper"] - one["lower"]).max()) for one in metrics)
    return [
        Claim(
            "Data processing: I(X;T_1) >= I(X;T_2) >= ... within two standard errors "
            "at every logged epoch of every network.",
            f"{violations} violations in {pairs} pairs",
            violations == 0,
        ),
        Claim(
            "Every standard error and every bracket of I(X;T_l) is at most 0.05 nats.",
            f"largest standard error {error:.4f}, widest bracket {width:.4f}",
            error <= 0.05 and width <= 0.05,
        ),
    ]


# -- figures --------------------------------------------------------------------


def figures(
    study: Study,
    folder: RunFolder,
    courses: Mapping[str, binned.BinnedCourse],
    titles: Mapping[str, str],
) -> list[Figure]:
    """All figures of a comparison.

    Parameters
    ----------
    study : Study
    folder : RunFolder
    courses : mapping of str to BinnedCourse
        Of the first seed's networks, by the titles of their arms.
    titles : mapping of str to str
        What each arm is called in figures.

    Returns
    -------
    list of Figure
    """
    made = [
        binned.information_over_bins(folder, courses, f" Seed {study.config.seed}."),
        _history_figure(study, folder, titles),
        _distances_figure(study, folder, titles),
        binned.bin_width_figure(folder, courses),
    ]
    for arm in study.arms:
        config, results = study.first(arm)
        wanted = scatter_epochs(config.epochs)
        shown = sorted({results.nearest(epoch) for epoch in wanted})
        made.append(
            Figure(
                folder.save_figure(
                    f"scatter-{arm}.png", scatter_figure(config, results, shown)
                ),
                f"{titles[arm].capitalize()}: the three units of the last hidden layer "
                f"for the first {SCATTER_INPUTS} inputs, before the layer's own noise.",
            )
        )
        made.append(
            Figure(
                folder.save_figure(
                    f"activations-{arm}.png", activations_figure(config, results)
                ),
                f"{titles[arm].capitalize()}: share of the activations (over all "
                "inputs and units of a layer, before its noise) in each of 100 bins, "
                "on a logarithmic colour scale.",
            )
        )
        made.append(
            information_plane(
                folder,
                results,
                labels(config),
                name=f"plane-{arm}.png",
                note=f"{titles[arm].capitalize()}. ",
            )
        )
    return made


def _history_figure(
    study: Study, folder: RunFolder, titles: Mapping[str, str]
) -> Figure:
    """Loss and accuracy of all arms."""
    figure, panels = plotting.new_figure(12, 4.4, columns=2)
    for axes, quantity, name in (
        (panels[0], "loss", "cross-entropy, in nats"),
        (panels[1], "accuracy", "accuracy"),
    ):
        plotting.histories(
            axes,
            {
                titles[arm]: (
                    study.first(arm)[1].epochs,
                    study.first(arm)[1].history[f"train_{quantity}"],
                    study.first(arm)[1].history[f"test_{quantity}"],
                )
                for arm in study.arms
            },
            name=name,
        )
    panels[0].set_ylim(bottom=0)
    plotting.legend_above(figure, panels)
    return Figure(
        folder.save_figure("history.png", plotting.png(figure)),
        "Cross-entropy (nats) and accuracy on the training inputs (lines) and the test "
        f"inputs (dashed), with the noise off. Seed {study.config.seed}.",
    )


def _distances_figure(
    study: Study, folder: RunFolder, titles: Mapping[str, str]
) -> Figure:
    """Distances within and between classes at the end."""
    columns = len(study.arms)
    figure, panels = plotting.new_figure(2 + 5 * columns, 4.4, columns=columns)
    for axes, arm in zip(panels, study.arms, strict=True):
        config, results = study.first(arm)
        distances = _distances(config, results, -1)
        plotting.distance_histograms(axes, distances, title=titles[arm])
    return Figure(
        folder.save_figure("distances.png", plotting.png(figure)),
        "Distances between outputs of the last hidden layer at the end, within and "
        "between the two classes; dashed lines: their means. Seed "
        f"{study.config.seed}.",
    )


# -- tables ---------------------------------------------------------------------


def layers_table(study: Study, titles: Mapping[str, str]) -> Table:
    """Peak, end and fall of I(X;T_l), and its fall over seeds.

    Parameters
    ----------
    study : Study
    titles : mapping of str to str

    Returns
    -------
    Table
    """
    rows = []
    for arm in study.arms:
        _, results = study.first(arm)
        course = results.metrics["mutual_information"]
        errors = results.metrics["standard_error"]
        for layer in range(results.num_layers):
            top = int(course[:, layer].argmax())
            rows.append(
                [
                    titles[arm],
                    f"{layer + 1}",
                    f"{course[top, layer]:.2f} ± {errors[top, layer]:.2f} "
                    f"({results.epochs[top]})",
                    f"{course[-1, layer]:.2f} ± {errors[-1, layer]:.2f}",
                    study.spread(arm, fall(layer + 1)).text(),
                    study.spread(arm, information(layer + 1)).text(),
                ]
            )
    seed = study.config.seed
    return Table(
        "Every layer: I(X;T_l) in nats",
        [
            "network",
            "layer",
            f"peak (epoch), seed {seed}",
            f"end, seed {seed}",
            "fall, over seeds",
            "end, over seeds",
        ],
        rows,
        "± in the columns of one seed: one standard error of the measurement; over "
        "seeds: of the mean over seeds. The fall is from the largest logged value, "
        "which chance raises: a course that stays level shows a fall of the order of "
        "its standard error.",
    )


def end_table(
    study: Study, titles: Mapping[str, str], *, saturates: bool = True
) -> Table:
    """Measures at the end, over seeds, with the paired difference of two arms.

    Parameters
    ----------
    study : Study
    titles : mapping of str to str
    saturates : bool
        Whether the activation is bounded.

    Returns
    -------
    Table
    """
    measures: list[tuple[str, Measure, int, bool]] = [
        ("training accuracy", history("train_accuracy"), 2, True),
        ("test accuracy", history("test_accuracy"), 2, True),
        ("training loss (nats)", history("train_loss"), 4, False),
        ("test loss (nats)", history("test_loss"), 4, False),
        ("H(Bin(T_5)) (nats)", binned_entropy, 2, False),
        ("distance within / between classes, layer 5", distance_ratio, 3, False),
        ("the same at the first logged epoch", first_distance_ratio, 3, False),
        ("clusters at the scale noise_std, layer 5", clusters, 0, False),
    ]
    if saturates:
        measures.append(("activations of layer 5 beyond 0.9", saturated_share, 1, True))
    rows = []
    for name, measure, digits, percent in measures:
        spreads = [study.spread(arm, measure) for arm in study.arms]
        if len(study.arms) == 2:
            spreads.append(study.difference(study.arms[1], study.arms[0], measure))
        rows.append([name, *(one.text(digits, percent=percent) for one in spreads)])
    columns = [titles[arm] for arm in study.arms]
    if len(study.arms) == 2:
        columns.append("difference, by seed")
    return Table(
        f"At the end, mean over {len(study.seeds)} seeds ± its standard error",
        ["what", *columns],
        rows,
        "Differences of percentages are in points.",
    )


def quality_table(study: Study) -> Table:
    """Where the tracker's targets were missed.

    Parameters
    ----------
    study : Study

    Returns
    -------
    Table
    """
    rows = []
    for name, results in study.results.items():
        metrics = results.metrics
        errors = np.maximum(metrics["standard_error"], metrics["label_standard_error"])
        widths = np.maximum(
            metrics["upper"] - metrics["lower"],
            metrics["label_upper"] - metrics["label_lower"],
        )
        missed = (errors > STANDARD_ERROR) | (widths > BRACKET_WIDTH)
        rows.append(
            [
                name,
                f"{int(missed.any(axis=1).sum())} of {len(results.epochs)}",
                f"{errors.max():.4f}",
                f"{widths.max():.4f}",
                f"{metrics['effective_sample_size'].min():.2f}",
            ]
        )
    return Table(
        "Quality of the measurement",
        [
            "network",
            "epochs at which a layer missed a target",
            "largest standard error (nats)",
            "widest bracket (nats)",
            "smallest effective sample size",
        ],
        rows,
        f"Targets: standard errors of {STANDARD_ERROR:g} and brackets of "
        f"{BRACKET_WIDTH:g} nats, for I(X;T_l) and I(Y;T_l). A bracket that is wider "
        "holds the bias all the same.",
    )


# -- the page -------------------------------------------------------------------


def write(
    study: Study,
    folder: RunFolder,
    *,
    title: str,
    titles: Mapping[str, str],
    opening: str,
    claims: Sequence[Claim],
    courses: Mapping[str, binned.BinnedCourse],
    claims_title: str = "What the paper says",
    saturates: bool = True,
) -> str:
    """Makes figures, tables and the report of a comparison.

    Parameters
    ----------
    study : Study
    folder : RunFolder
    title : str
        Heading of the page.
    titles : mapping of str to str
        What each arm is called.
    opening : str
        What the paper claims, and how claims are judged.
    claims : sequence of Claim
        Left open where the run is too short for them.
    courses : mapping of str to BinnedCourse
    claims_title : str
        Heading of the claims.
    saturates : bool
        Whether the activation is bounded.

    Returns
    -------
    str
        The outcome in a few lines.
    """
    binned.save(folder, courses)
    config = study.config
    if not study.is_long_enough:
        claims = [
            Claim(claim.statement, f"{claim.measured} (too short a run)", None)
            for claim in claims
        ]
    verdicts = [claim.holds for claim in claims]
    outcome = (
        f"{verdicts.count(True)} of {len(claims)} statements hold, "
        f"{verdicts.count(False)} do not, {verdicts.count(None)} are undecided"
    )
    parts: list[Part] = [
        f"{opening} Networks are trained for {config.epochs:,} passes (the paper: "
        f"10,000), {config.num_seeds} seeds in each arm. A statement about means over "
        "seeds holds, or does not, where Student's t says so at 95 % confidence, and "
        f"is undecided between. {outcome}. Information is in nats.",
        *figures(study, folder, courses, titles),
        report.claims_table(claims_title, claims),
        report.claims_table(CHECKS, measurement_claims(study)),
        layers_table(study, titles),
        end_table(study, titles, saturates=saturates),
        binned.correlation_table(courses),
        binned.grid_table(courses),
        quality_table(study),
        report.settings_table(folder.config()["settings"]),
        report.work_table(
            folder,
            [
                [
                    "networks",
                    f"{len(study.results)}: {', '.join(study.results)}; each in "
                    "networks/NAME, with checkpoint and tables of its own",
                ],
                ["passes of each", f"{config.epochs}"],
            ],
        ),
    ]
    report.write_page(folder, title, parts)
    lines = [f"  {outcome}"]
    for arm in study.arms:
        values = " ".join(
            f"{study.spread(arm, information(layer)).mean:.2f}" for layer in range(1, 6)
        )
        accuracy = study.spread(arm, history("test_accuracy")).text(2, percent=True)
        lines.append(
            f"  {titles[arm]}: I(X;T) at the end, layers 1 to 5: {values} nats; test "
            f"accuracy {accuracy}"
        )
    return "\n".join(lines)


def tracked_courses(
    study: Study, titles: Mapping[str, str]
) -> dict[str, binned.BinnedCourse]:
    """Binned entropies of the first seed's networks, by their arms' titles.

    Parameters
    ----------
    study : Study
    titles : mapping of str to str

    Returns
    -------
    dict of str to BinnedCourse
    """
    return {titles[arm]: binned.measure(*study.first(arm)) for arm in study.arms}
