"""What a study of estimators found: figures, tables, and the papers' statements.

Everything here reads the rows of a finished run and estimates nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import plotting, report
from noisyflow.experiments import Claim
from noisyflow.experiments.known_sources import (
    Source,
    expected_plug_in_without_noise,
    full_code,
    noise_entropy,
)
from noisyflow.report import Figure, Table
from noisyflow.runs import Row, RunFolder, duration

OURS, NEIGHBORS, KERNELS = "noisyflow", "nearest neighbours", "kernel density"
METHODS = (OURS, NEIGHBORS, KERNELS)

# Dimensions of RM(5,5), on which all methods are tried, and of RM(4,4), ours alone.
LONG_CODE, SHORT_CODE = 32, 16

# What the paper's figure 7 (b) shows of the plug-in, read off by eye.
_LONG_CODE_FIGURE = {10: 1.9, 100: 3.0, 1000: 3.5, 100_000: 3.57}
_READING_ERROR = 0.15


class Study:
    """Rows of a finished run, by source, number of samples and method.

    Parameters
    ----------
    sources : sequence of Source
        In the order of the report.
    metrics, history : list of dict
        Rows of the two tables.
    prepared : dict
        The spiral network and its reference entropy.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        metrics: list[Row],
        history: list[Row],
        prepared: dict[str, NDArray[Any]],
    ) -> None:
        self.sources = {source.name: source for source in sources}
        self.history = history
        self.prepared = prepared
        self._rows: dict[tuple[str, int, str], list[Row]] = {}
        for row in metrics:
            key = (str(row["source"]), int(row["num_samples"]), str(row["method"]))
            self._rows.setdefault(key, []).append(row)

    def of_family(self, family: str, d: int | None = None) -> list[Source]:
        """Sources of a family, and of a dimension if one is given."""
        return [
            source
            for source in self.sources.values()
            if source.family == family and d in (None, source.num_dimensions)
        ]

    def num_samples(self, source: Source) -> list[int]:
        """Numbers of samples that a source was tried with."""
        return sorted({n for name, n, _ in self._rows if name == source.name})

    def column(
        self, source: Source, n: int, name: str = "entropy", method: str = OURS
    ) -> NDArray[np.float64]:
        """A column over the repetitions; empty where the method was not tried."""
        rows = self._rows.get((source.name, n, method), [])
        return np.array([float(row[name]) for row in rows])

    def runs(self, source: Source, *, offset: float = 0.0) -> dict[str, list[Any]]:
        """Per method the values of all repetitions, for every number of samples."""
        numbers = self.num_samples(source)
        return {
            method: [
                list(self.column(source, n, method=method) - offset) for n in numbers
            ]
            for method in METHODS
        }


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
    reading = (
        "Points: mean over repetitions; bars: their standard deviation; shaded: the "
        "bracket of noisyflow, from the plug-in value to the leave-one-out value, as "
        "far as the axes reach. Below or beside: root mean square error, also of the "
        "middle of the bracket."
    )
    figures = [
        Figure(
            folder.save_figure(
                f"cube-{d}.png", curves_figure(study, study.of_family("cube", d))
            ),
            f"Entropy of the truncated mixture at the {2**d} corners of the cube in "
            f"{d} dimensions. {reading}",
        )
        for d in (5, 10)
    ]
    figures += [
        Figure(
            folder.save_figure(
                "open-cube.png", curves_figure(study, study.of_family("open-cube"))
            ),
            f"Entropy of the mixture without truncation in 10 dimensions. {reading}",
        ),
        Figure(
            folder.save_figure(
                "spiral.png", curves_figure(study, study.of_family("spiral"))
            ),
            "Entropy of the third layer of the network 2-8-9-10-3 trained on the "
            f"spiral. {reading} Exact: to the precision stated below.",
        ),
        Figure(
            folder.save_figure("codes.png", codes_figure(study)),
            "Information over the Gaussian channel. Left: plug-in for the code RM(4,4) "
            "of 65,536 words in 16 dimensions; without noise it can be no more than "
            "the entropy of the words that were drawn. Right: RM(5,5), 2^32 words in "
            "32 dimensions, noise 2.",
        ),
    ]
    return figures


def claims(study: Study) -> list[Claim]:
    """What the papers' figures show, checked.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of Claim
    """
    return [
        *(dominance(study, source) for source in _compared(study)),
        *(_precision(study, 5, 1000, source) for source in study.of_family("cube", 5)),
        *(
            _precision(study, 10, 10_000, source)
            for source in study.of_family("cube", 10)
        ),
        brackets(study),
        plug_in_rises(study),
        *code_claims(study),
        spiral_claim(study),
    ]


def _compared(study: Study) -> list[Source]:
    """Sources that all methods were tried on."""
    return [
        *study.of_family("cube"),
        *study.of_family("open-cube"),
        *study.of_family("spiral"),
        *study.of_family("code", LONG_CODE),
    ]


def dominance(study: Study, source: Source) -> Claim:
    """Whether our mean absolute error is the smallest at every number of samples."""
    closest, lost = (math.inf, ""), []
    for n in study.num_samples(source):
        ours = np.abs(study.column(source, n) - source.entropy)
        for method in METHODS[1:]:
            theirs = np.abs(study.column(source, n, method=method) - source.entropy)
            ratio = float(theirs.mean() / ours.mean())
            where = f"{method}, n = {n}"
            closest = min(closest, (ratio, where))
            difference = theirs - ours
            error = difference.std(ddof=1) / math.sqrt(len(difference))
            if difference.mean() < -2 * error:
                lost.append(f"{where} ({1 / ratio:.1f} times smaller)")
    measured = f"closest: {closest[1]}, {closest[0]:.2f} times our error"
    if lost:
        measured = f"{measured}; ahead of us: {', '.join(lost)}"
    return Claim(
        f"{in_words(source)}: at every n no other method has a smaller mean absolute "
        "error (within two standard errors over repetitions).",
        measured,
        not lost,
    )


def _precision(study: Study, d: int, n: int, source: Source) -> Claim:
    """Whether the plug-in is within 1 % at the number of samples that the paper says.

    Of the information: an entropy has no natural zero to be a percentage of. Read off a
    figure, hence up to 1.5: to first order the bias of any plug-in is the chi-square
    information divided by 2 n, which is 1.25 % for d = 10, noise 0.05 and n = 10,000.
    """
    statement = (
        f"{in_words(source)}: the plug-in is within about 1 % (1.5 %, read by eye) of "
        f"I(S;T) = {source.information:.3f} nats from n = {n} on."
    )
    numbers = [number for number in study.num_samples(source) if number >= n]
    if not numbers:
        return Claim(statement, "fewer samples were tried", None)
    biases = [study.column(source, k).mean() - source.entropy for k in numbers]
    worst = max(biases, key=abs)
    return Claim(
        statement,
        f"mean error {biases[0]:+.4f} nats at n = {numbers[0]}, that is "
        f"{100 * abs(biases[0]) / source.information:.2f} %; largest beyond "
        f"{100 * abs(worst) / source.information:.2f} %",
        bool(abs(worst) <= 0.015 * source.information),
    )


def brackets(study: Study) -> Claim:
    """Whether the exact value lies between the means of both ends."""
    outside, total = [], 0
    for source in study.sources.values():
        for n in study.num_samples(source):
            lower, upper = (study.column(source, n, end) for end in ("lower", "upper"))
            claimed = study.column(source, n, "standard_error")
            error = math.sqrt((claimed**2).mean() / len(claimed))
            total += 1
            if not (
                lower.mean() - 3 * error <= source.entropy <= upper.mean() + 3 * error
            ):
                outside.append(f"{source.name} at n = {n}")
    return Claim(
        "The exact value lies between the means of the bracket's ends, within three "
        "standard errors of the mean, for every source and n.",
        f"{total - len(outside)} of {total}"
        + (f"; not for {', '.join(outside)}" if outside else ""),
        not outside,
    )


def plug_in_rises(study: Study) -> Claim:
    """Whether the mean plug-in grows with n, as a biased-low estimate does."""
    falls, total = [], 0
    for source in study.sources.values():
        numbers = study.num_samples(source)
        runs = [study.column(source, n) for n in numbers]
        for n, before, after in zip(numbers[1:], runs[:-1], runs[1:], strict=True):
            spread = math.hypot(_error_of_mean(before), _error_of_mean(after))
            total += 1
            if after.mean() < before.mean() - 3 * spread - 0.02:
                falls.append(f"{source.name} at n = {n}")
    return Claim(
        "The mean plug-in rises with n from below (within three standard errors and "
        "0.02 nats).",
        f"{total - len(falls)} of {total} steps"
        + (f"; not {', '.join(falls)}" if falls else ""),
        not falls,
    )


def code_claims(study: Study) -> list[Claim]:
    """Plateaus and merging of RM(4,4), and the curve of RM(5,5)."""
    short = study.of_family("code", SHORT_CODE)
    found = []
    for n in study.num_samples(short[0]):
        plateau = expected_plug_in_without_noise(n, 2**SHORT_CODE)
        value = float(_information(study, short[0], n).mean())
        # Draws that repeat are about Poisson, n^2 / 2^17 of them, and each takes off
        # 2 log 2 / n; the rest is the integration's.
        error = 2 * math.log(2) / math.sqrt(2 * 2**SHORT_CODE)
        error = math.hypot(error, float(study.column(short[0], n, "standard_error")[0]))
        found.append((n, value, plateau, abs(value - plateau) <= 3 * error))
    merged = [source for source in short if source.noise_std > 2]
    gaps = [
        abs(float(_information(study, source, n).mean()) - source.information)
        for source in merged
        for n in study.num_samples(source)
    ]
    claims = [
        Claim(
            "RM(4,4): at noise 0.1 the plug-in sits at the mean entropy of n draws "
            "from 65,536 words, "
            + ", ".join(f"{plateau:.4f} (n = {n})" for n, _, plateau, _ in found)
            + " (within three standard errors).",
            ", ".join(f"{value:.4f}" for _, value, _, _ in found),
            all(holds for *_, holds in found),
        ),
        Claim(
            "RM(4,4): above noise 2 the curves of all n merge with the exact one "
            "(within 0.15 nats).",
            f"largest distance {max(gaps):.3f} nats",
            bool(max(gaps) <= 0.15),
        ),
    ]
    (long,) = study.of_family("code", LONG_CODE)
    known = {
        n: value
        for n, value in _LONG_CODE_FIGURE.items()
        if n in study.num_samples(long)
    }
    means = {n: float(_information(study, long, n).mean()) for n in known}
    claims.append(
        Claim(
            f"RM(5,5) at noise 2: exact {long.information:.4f}; the plug-in as in the "
            "paper's figure, "
            + ", ".join(f"{value:g} (n = {n})" for n, value in known.items())
            + f" (within {_READING_ERROR:g}, read by eye).",
            ", ".join(f"{value:.3f}" for value in means.values()),
            all(abs(means[n] - value) <= _READING_ERROR for n, value in known.items()),
        )
    )
    return claims


def spiral_claim(study: Study) -> Claim:
    """Whether the reference agrees with the enclosure of the known network."""
    exact, own_error = study.prepared["spiral.reference"]
    low, high, error = study.prepared["spiral.check"]
    slack = 2 * math.hypot(own_error, error)
    return Claim(
        "Spiral: the value called exact, from 150,000 samples of their own, lies in "
        "the enclosure that path importance finds from the known weights (within two "
        "standard errors).",
        f"{exact:.4f} ± {own_error:.4f} in [{low:.3f}, {high:.3f}] ± {error:.3f}",
        bool(low - slack <= exact <= high + slack),
    )


def _information(study: Study, source: Source, n: int) -> NDArray[np.float64]:
    """Our estimates of I(S; T) over the repetitions."""
    return study.column(source, n) - noise_entropy(
        source.num_dimensions, source.noise_std
    )


def _error_of_mean(values: NDArray[np.float64]) -> float:
    """Standard error of a mean over repetitions; 0 of a single one."""
    if len(values) < 2:
        return 0.0
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def curves_figure(study: Study, sources: Sequence[Source]) -> bytes:
    """Values above, errors below, a column per source."""
    columns = len(sources)
    if columns == 1:  # one beside the other
        figure, axes = plotting.new_figure(12, 5, columns=2)
    else:
        figure, axes = plotting.new_figure(5 * columns, 8.5, columns=columns, rows=2)
    tops, bottoms = axes[:columns], axes[columns:]
    for source, top, bottom in zip(sources, tops, bottoms, strict=True):
        numbers = np.array(study.num_samples(source))
        runs = study.runs(source)
        lower, upper = (
            [study.column(source, n, end) for n in numbers]
            for end in ("lower", "upper")
        )
        plotting.estimates(
            top,
            numbers,
            runs,
            exact=source.entropy,
            bracket=(_means(lower), _means(upper)),
            title=f"d = {source.num_dimensions}, noise {source.noise_std:g}",
        )
        middles = [list(0.5 * (a + b)) for a, b in zip(lower, upper, strict=True)]
        plotting.errors(
            bottom,
            numbers,
            {**runs, "middle of the bracket": middles},
            exact=source.entropy,
            title="",
        )
    tops[0].set_ylabel("entropy, in nats", fontsize=13)
    bottoms[0].set_ylabel("root mean square error, in nats", fontsize=13)
    plotting.legend_above(figure, axes)
    return plotting.png(figure)


def _means(runs: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean over the repetitions at every number of samples."""
    return np.array([run.mean() for run in runs])


def codes_figure(study: Study) -> bytes:
    """Both codes: information over noise, and over the number of samples."""
    figure, (left, right) = plotting.new_figure(13, 5, columns=2)
    short = study.of_family("code", SHORT_CODE)
    noise = np.array([source.noise_std for source in short])
    fine = np.geomspace(noise[0], noise[-1], 80)
    exact = np.array([full_code(SHORT_CODE, float(s)).information for s in fine])
    means = {
        n: np.array([_information(study, source, n).mean() for source in short])
        for n in study.num_samples(short[0])
    }
    plotting.information_over_noise(
        left, noise, means, (fine, exact), title="RM(4,4), d = 16"
    )
    left.set_ylabel("I(S;T), in nats", fontsize=13)
    left.legend(fontsize=12, frameon=False)
    (long,) = study.of_family("code", LONG_CODE)
    numbers = np.array(study.num_samples(long))
    offset = noise_entropy(long.num_dimensions, long.noise_std)
    lower, upper = (
        _means([study.column(long, n, end) for n in numbers]) - offset
        for end in ("lower", "upper")
    )
    plotting.estimates(
        right,
        numbers,
        study.runs(long, offset=offset),
        exact=long.information,
        bracket=(lower, upper),
        title=f"RM(5,5), d = 32, noise {long.noise_std:g}",
    )
    right.legend(fontsize=12, frameon=False)
    return plotting.png(figure)


def opening(study: Study) -> str:
    """What was done, in a few sentences."""
    passes = int(study.prepared["spiral.passes"])
    accuracy = float(study.prepared["spiral.accuracy"])
    return (
        "Entropy h(S + Z) estimated from n samples by three methods. noisyflow sees "
        "the samples of S and knows the noise; its value is the plug-in, its bracket "
        "reaches to the leave-one-out value. Nearest neighbours (Kozachenko and "
        "Leonenko, k = 3) and kernel density (leave-one-out, bandwidth of the largest "
        "leave-one-out likelihood) see the same samples with noise added. All values "
        "are in nats. The spiral network reached "
        f"{100 * accuracy:.1f} % after {passes} passes; the paper does not say how its "
        "own was trained, so the level of that figure is not comparable, its shape is."
    )


def error_table(study: Study) -> Table:
    """Mean errors and root mean square errors of every method, source and n."""
    rows = []
    for source in _compared(study):
        for n in study.num_samples(source):
            cells = []
            for method in METHODS:
                errors = study.column(source, n, method=method) - source.entropy
                rmse = math.sqrt((errors**2).mean())
                cells.append(f"{errors.mean():+.3f} / {rmse:.3f}")
            lower, upper = (study.column(source, n, end) for end in ("lower", "upper"))
            middle = (0.5 * (lower + upper) - source.entropy).mean()
            rows.append(
                [
                    source.name,
                    str(n),
                    *cells,
                    f"{(upper - lower).mean():.3f}",
                    f"{middle:+.3f}",
                    str(len(lower)),
                ]
            )
    return Table(
        "Errors: mean / root mean square over repetitions (nats)",
        [
            "source",
            "n",
            *METHODS,
            "bracket's width",
            "error of its middle",
            "repetitions",
        ],
        rows,
        "noisyflow: the plug-in value. The middle of the bracket is the better "
        "estimate where the bracket is narrow, and useless where it is wide.",
    )


def work_table(study: Study, folder: RunFolder) -> Table:
    """What was run, on what, and how long it took, by method."""
    seconds = {
        method: sum(
            float(row["seconds"]) for row in study.history if row["method"] == method
        )
        for method in METHODS
    }
    return report.work_table(
        folder,
        [
            [f"time in {method}", f"{duration(spent)} ({spent:.1f} s)"]
            for method, spent in seconds.items()
        ],
    )


def in_words(source: Source) -> str:
    """A source for a sentence."""
    names = {
        "cube": "Truncated mixture",
        "open-cube": "Untruncated mixture",
        "spiral": "Spiral network",
        "code": "RM(5,5)" if source.num_dimensions == LONG_CODE else "RM(4,4)",
    }
    return (
        f"{names[source.family]}, d = {source.num_dimensions}, noise "
        f"{source.noise_std:g}"
    )


def summary(study: Study) -> str:
    """The end of the run in a few lines."""
    lines = ["estimators: root mean square errors at the largest n (nats)"]
    for source in _compared(study):
        n = study.num_samples(source)[-1]
        errors = (
            math.sqrt(
                ((study.column(source, n, method=method) - source.entropy) ** 2).mean()
            )
            for method in METHODS
        )
        lines.append(
            f"  {source.name:<24} n = {n}: "
            + ", ".join(
                f"{method} {error:.4f}"
                for method, error in zip(METHODS, errors, strict=True)
            )
        )
    verdicts = [claim.holds for claim in claims(study)]
    lines.append(
        f"  {verdicts.count(True)} of {len(verdicts)} statements hold, "
        f"{verdicts.count(None)} undecided"
    )
    return "\n".join(lines)
