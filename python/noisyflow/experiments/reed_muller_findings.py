"""What the run on Reed-Muller codes found: figures, tables, and what they show.

Everything here reads the rows of a finished run and estimates nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from noisyflow import plotting
from noisyflow.experiments import Claim, estimator_findings
from noisyflow.experiments.estimator_findings import LONG_CODE, METHODS, OURS
from noisyflow.experiments.known_sources import Source, full_code, noise_entropy
from noisyflow.experiments.measured import Measured, all_hold, over_seeds
from noisyflow.experiments.verdicts import counts
from noisyflow.report import Figure, Table
from noisyflow.runs import Row, RunFolder

ALL_WORDS, ONE_WORD = "all words", "one word"

# What figure 7 (b) of the paper shows of the other methods at its largest n, and the
# error of reading it.
_OTHERS_FIGURE = {"nearest neighbours": 5.0, "kernel density": 4.7}
_READING_ERROR = 0.3


class Study(estimator_findings.Study):
    """Rows of a finished run: of sampled codes, and of known ones by code and noise.

    Parameters
    ----------
    sources : sequence of Source
        What was sampled.
    metrics, history : list of dict
    """

    def __init__(
        self, sources: Sequence[Source], metrics: list[Row], history: list[Row]
    ) -> None:
        known = (ALL_WORDS, ONE_WORD)
        super().__init__(
            sources,
            [row for row in metrics if row["method"] not in known],
            history,
            {},
        )
        of_known = [row for row in metrics if row["method"] in known]
        self.codes = list(dict.fromkeys(str(row["source"]) for row in of_known))
        self.noise = np.array(sorted({float(row["noise_std"]) for row in of_known}))
        self._known = {
            (str(row["source"]), float(row["noise_std"]), str(row["method"])): row
            for row in of_known
        }

    def known(
        self, code: str, name: str = "entropy", method: str = ALL_WORDS
    ) -> NDArray[np.float64]:
        """A column of a known code over the noise; entropies less that of the noise."""
        found = []
        for noise_std in self.noise:
            row = self._known[code, float(noise_std), method]
            shift = noise_entropy(int(row["num_dimensions"]), float(noise_std))
            is_entropy = name in ("entropy", "lower", "upper", "exact")
            found.append(float(row[name]) - (shift if is_entropy else 0.0))
        return np.array(found)

    def num_words(self, code: str) -> int:
        """Words of a known code."""
        return int(self._known[code, float(self.noise[0]), ALL_WORDS]["num_samples"])

    def num_dimensions(self, code: str) -> int:
        """Bits of a word."""
        row = self._known[code, float(self.noise[0]), ALL_WORDS]
        return int(row["num_dimensions"])


def opening(study: Study) -> list[str]:
    """What the paper says, and what was found."""
    (long,) = study.of_family("code", LONG_CODE)
    n = study.num_samples(long)[-1]
    value = study.column(long, n).mean() - noise_entropy(LONG_CODE, long.noise_std)
    return [
        "The paper (Goldfeld, Greenewald, Polyanskiy 2018, figure 7) estimates the "
        "information of Reed-Muller codes over the Gaussian channel from samples of "
        "their words, and shows that the plug-in reaches the true value of RM(5,5), "
        "2^32 words in 32 dimensions, with far fewer samples than there are words. "
        f"Found: {value:.4f} nats from {n} samples, the exact value being "
        f"{long.information:.4f}. {counts(claims(study), checks(study))}.",
        "Bits are sent as -1 and 1, and noise is added. RM(m,m) is every word of 2^m "
        "bits: its information is exactly 2^m times that of one bit. RM(0,m) repeats "
        "one bit: it has exactly the information of one bit at noise / 2^(m/2). Of the "
        "codes in between all words are known, so that nothing is sampled but the "
        "noise; and since a linear code looks the same from each of its words, one "
        "word is enough for a second value. Nats throughout.",
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
            folder.save_figure("sampled.png", estimator_findings.codes_figure(study)),
            "Codes from samples of their words. Left: plug-in for RM(4,4), 65,536 "
            "words in 16 dimensions; without noise it can be no more than the entropy "
            "of the words that were drawn. Right: RM(5,5), 2^32 words in 32 "
            "dimensions, beside two other methods; points: mean over repetitions, "
            "bars: their standard deviation, shaded: the bracket.",
        ),
        Figure(
            folder.save_figure("known.png", _known_figure(study)),
            "Codes whose words are all used, information over noise. Dashed: exact "
            "values of the codes of lowest and of full order. A code of higher order "
            "has more words and more information at little noise; at much noise all "
            "but the repetition of one bit have nearly that of all words.",
        ),
    ]


def _known_figure(study: Study) -> bytes:
    figure, axes = plotting.new_figure(13, 5, columns=2)
    fine = np.geomspace(study.noise[0], study.noise[-1], 80)
    for panel, d in zip(axes, (16, 32), strict=True):
        m = int(math.log2(d))
        codes = [code for code in study.codes if study.num_dimensions(code) == d]
        repeated = [full_code(1, s / math.sqrt(d)).information for s in fine]
        everything = [full_code(d, float(s)).information for s in fine]
        plotting.information_of_codes(
            panel,
            study.noise,
            {
                f"{code}, {study.num_words(code)} words": study.known(code)
                for code in codes
            },
            {
                f"exact: RM(0,{m}), RM({m},{m})": (fine, np.array(repeated)),
                "": (fine, np.array(everything)),
            },
            title=f"{d} bits per word",
        )
        handles, names = panel.get_legend_handles_labels()
        shown = [(h, n) for h, n in zip(handles, names, strict=True) if n]
        panel.legend(*zip(*shown, strict=True), fontsize=12, frameon=False)
    axes[0].set_ylabel("information, in nats", fontsize=13)
    return plotting.png(figure)


def claims(study: Study) -> list[Claim]:
    """What the paper shows of sampled codes, checked.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of Claim
    """
    return [*estimator_findings.code_claims(study), _others(study)]


def checks(study: Study) -> list[Claim]:
    """What must be so whatever the paper says: the measurement is checked.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of Claim
    """
    return [
        _bracketed(study),
        *(_repetition(study, code) for code in study.codes if code.startswith("RM(0")),
        *(
            _symmetry(study, code)
            for code in study.codes
            if not code.startswith("RM(0")
        ),
        _more_words(study),
    ]


def _others(study: Study) -> Claim:
    """Whether the other methods are as far off as in the paper."""
    (long,) = study.of_family("code", LONG_CODE)
    n = study.num_samples(long)[-1]
    shift = noise_entropy(LONG_CODE, long.noise_std)
    found = {
        method: over_seeds(study.column(long, n, method=method) - shift)
        for method in METHODS[1:]
    }
    statement = (
        "RM(5,5) at noise 2 and n = 100,000: nearest neighbours still say 5.0 and "
        f"kernel densities 4.7 (within {_READING_ERROR:g}, read by eye)."
    )
    measured = ", ".join(f"{method} {value}" for method, value in found.items())
    if n < 100_000:
        return Claim(statement, f"at n = {n}: {measured}", None)
    return Claim(
        statement,
        measured,
        all_hold(
            Measured(abs(found[method].mean - value), found[method].error).is_below(
                _READING_ERROR
            )
            for method, value in _OTHERS_FIGURE.items()
        ),
    )


def _bracketed(study: Study) -> Claim:
    """Brackets of all sampled codes."""
    claim = estimator_findings.brackets(study)
    return Claim(f"Sampled codes: {claim.statement}", claim.measured, claim.holds)


def _repetition(study: Study, code: str) -> Claim:
    off = study.known(code) - study.known(code, "exact")
    error = study.known(code, "standard_error")
    worst = int((np.abs(off) / error).argmax())
    d = study.num_dimensions(code)
    return Claim(
        f"{code}, one bit repeated {d} times: the information at every noise is that "
        f"of one bit at noise / {math.sqrt(d):.3g} (within three standard errors).",
        f"largest distance {np.abs(off).max():.4f} nats; farthest "
        f"{abs(off[worst]) / error[worst]:.1f} standard errors ({off[worst]:+.4f} ± "
        f"{error[worst]:.4f} at noise {study.noise[worst]:g})",
        bool((np.abs(off) <= 3 * error).all()),
    )


def _symmetry(study: Study, code: str) -> Claim:
    off = study.known(code) - study.known(code, method=ONE_WORD)
    error = np.hypot(
        study.known(code, "standard_error"),
        study.known(code, "standard_error", method=ONE_WORD),
    )
    worst = int((np.abs(off) / error).argmax())
    return Claim(
        f"{code}, {study.num_words(code)} words: the information from all words is "
        "that from one word, at every noise (within three standard errors of the "
        "difference).",
        f"largest distance {np.abs(off).max():.4f} nats; farthest "
        f"{abs(off[worst]) / error[worst]:.1f} standard errors ({off[worst]:+.4f} ± "
        f"{error[worst]:.4f} at noise {study.noise[worst]:g})",
        bool((np.abs(off) <= 3 * error).all()),
    )


def _more_words(study: Study) -> Claim:
    """The order of the codes of 16 bits, which contain one another."""
    nested = [code for code in study.codes if study.num_dimensions(code) == 16]
    full = np.array([full_code(16, float(s)).information for s in study.noise])
    ladder = [*(study.known(code) for code in nested), full]
    errors = [*(study.known(code, "standard_error") for code in nested), 0 * full]
    worst = max(
        float((low - high - 3 * np.hypot(a, b)).max())
        for low, high, a, b in zip(
            ladder[:-1], ladder[1:], errors[:-1], errors[1:], strict=True
        )
    )
    ends = [f"{some[0]:.4f}" for some in ladder]
    return Claim(
        f"{', '.join(nested)} and RM(4,4), each within the next: the larger has at "
        "least the information of the smaller at every noise (within three standard "
        "errors).",
        f"largest excess beyond them {max(worst, 0):.4f} nats; at noise "
        f"{study.noise[0]:g}: {', '.join(ends)}",
        worst <= 0,
    )


def known_table(study: Study) -> Table:
    """All values of known codes.

    Parameters
    ----------
    study : Study

    Returns
    -------
    Table
    """
    rows = []
    for code in study.codes:
        columns = zip(
            study.noise,
            study.known(code),
            study.known(code, "standard_error"),
            study.known(code, method=ONE_WORD),
            study.known(code, "standard_error", method=ONE_WORD),
            study.known(code, "exact"),
            strict=True,
        )
        for noise, value, error, other, its_error, exact in columns:
            rows.append(
                [
                    code,
                    str(study.num_words(code)),
                    f"{noise:g}",
                    f"{value:.4f} ± {error:.4f}",
                    f"{other:.4f} ± {its_error:.4f}",
                    f"{exact:.4f}" if math.isfinite(exact) else "",
                ]
            )
    return Table(
        "Codes whose words are known (nats)",
        ["code", "words", "noise", "all words", "one word", "exact"],
        rows,
        "All words: noisyflow, a known mixture. One word: by symmetry, in plain NumPy.",
    )


def sampled_table(study: Study) -> Table:
    """All values of sampled codes.

    Parameters
    ----------
    study : Study

    Returns
    -------
    Table
    """
    rows = []
    for source in study.sources.values():
        shift = noise_entropy(source.num_dimensions, source.noise_std)
        for n in study.num_samples(source):
            values, lower, upper = (
                study.column(source, n, name) - shift
                for name in ("entropy", "lower", "upper")
            )
            others = [
                study.column(source, n, method=method) - shift for method in METHODS[1:]
            ]
            rows.append(
                [
                    "RM(5,5)" if source.num_dimensions == LONG_CODE else "RM(4,4)",
                    f"{source.noise_std:g}",
                    str(n),
                    f"{values.mean():.4f}",
                    f"[{lower.mean():.4f}, {upper.mean():.4f}]",
                    f"{source.information:.4f}",
                    *(f"{other.mean():.3f}" if len(other) else "" for other in others),
                    str(len(values)),
                ]
            )
    return Table(
        "Codes from samples of their words: means over repetitions (nats)",
        ["code", "noise", "n", OURS, "bracket", "exact", *METHODS[1:], "repetitions"],
        rows,
        "noisyflow: the plug-in, the lower end of its bracket.",
    )


def summary(study: Study) -> str:
    """The end of the run in a few lines."""
    (long,) = study.of_family("code", LONG_CODE)
    n = study.num_samples(long)[-1]
    shift = noise_entropy(LONG_CODE, long.noise_std)
    return (
        f"reed-muller: RM(5,5) at noise {long.noise_std:g} from {n} samples: "
        f"{study.column(long, n).mean() - shift:.4f} nats, exact "
        f"{long.information:.4f}\n"
        f"  {counts(claims(study), checks(study))}"
    )
