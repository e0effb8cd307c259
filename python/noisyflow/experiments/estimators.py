"""Error against the number of samples: ours, nearest neighbours and kernel densities.

The simulation study of Goldfeld, Greenewald and Polyanskiy (2018), arXiv 1810.11589,
figures 2, 3, 4, 6 and 7: Gaussians at the corners of a cube, the third layer of a noisy
network, and codes over the Gaussian channel. Ours sees samples of S and knows the
noise; the others see samples of T = S + Z, as in the paper.
"""

from __future__ import annotations

import math
import platform
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import datasets, plotting, report
from noisyflow._checks import as_int
from noisyflow.baselines import KernelDensity, NearestNeighbor
from noisyflow.estimate import Estimate, UndersampledWarning
from noisyflow.experiments import Claim
from noisyflow.experiments.cells import CellRows, CellTable
from noisyflow.experiments.known_sources import (
    Source,
    cube_mixture,
    expected_plug_in_without_noise,
    full_code,
    noise_entropy,
)
from noisyflow.importance import NoisyLayers, path_log_densities
from noisyflow.information import entropy
from noisyflow.nn import NoisyMLP
from noisyflow.report import Figure, Table
from noisyflow.runs import Interruption, Row, RunError, RunFolder, duration
from noisyflow.sampling import TargetWarning
from noisyflow.training import Trainer, evaluate, set_parameters

OURS, NEIGHBORS, KERNELS = "noisyflow", "nearest neighbours", "kernel density"
METHODS = (OURS, NEIGHBORS, KERNELS)

_STREAM = 0x65737469  # "esti": apart from samples drawn elsewhere with the same seed
_CUBE_NOISE = (0.05, 0.1, 0.2)
_OPEN_CUBE_NOISE = (0.1, 0.2)

# The spiral network, [P2] section V-B: tanh layers of 8, 9 and 10 units, noise 0.2,
# trained to 98 %. The paper gives neither optimiser nor rate.
_SPIRAL_SIZES = (2, 8, 9, 10, 3)
_SPIRAL_NOISE = 0.2
_SPIRAL_ACCURACY = 0.98
_MOST_PASSES = 3000
_PASSES_BETWEEN_LOOKS = 10
# Reference: independent draws per input, and points of the two-sided check.
_REFERENCE_DRAWS = 500
_REFERENCE_ERROR = 0.002
_MOST_REFERENCE_PAIRS = 10**10
_CHECK_POINTS = 12_000
_CHECK_PROPOSALS = 64

_LONG_CODE, _SHORT_CODE = 32, 16
_LONG_CODE_NOISE = 2.0
_SHORT_CODE_NOISE = tuple(float(s) for s in np.logspace(-1, 1, 11).round(4))
# Samples that the baselines' averages run over. Of a hundred thousand samples in 32
# dimensions a tree query looks at all; the spread of a single term, 4 nats at most,
# divided by the root of this number is far below their errors there.
_QUERIES, _QUERIES_OF_LONG_CODE = 10_000, 1000

# The standard error asked of ours, below what the samples themselves leave in most
# cases, and where it ends in any case: some 30,000 queries of 100,000 samples.
_TARGET = 0.002
_MOST_PAIRS = 3 * 10**9

# What the paper's figure 7 (b) shows of the plug-in, read off by eye.
_LONG_CODE_FIGURE = {10: 1.9, 100: 3.0, 1000: 3.5, 100_000: 3.57}
_READING_ERROR = 0.15


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Parameters
    ----------
    num_repetitions : int
        Independent repetitions up to 1000 samples, at least 2; fewer beyond, as the
        root of their number, but 3 where so many are asked for.
    max_samples : int
        Largest number of samples, from 100 to 10 million. The paper went to 10 million
        in figure 2.
    seed : int
        Decides all random numbers; in [0, 2**63).

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.
    """

    num_repetitions: int = 10
    max_samples: int = 100_000
    seed: int = 0

    def __post_init__(self) -> None:
        whole = {
            "num_repetitions": (2, 1000),
            "max_samples": (100, 10_000_000),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in whole.items():
            value = as_int(name, getattr(self, name), at_least=low, at_most=high)
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Cell:
    """One repetition of all methods on one source at one number of samples."""

    source: Source
    num_samples: int
    repetition: int
    methods: Sequence[str]

    @property
    def cost(self) -> float:
        """About in proportion to its seconds."""
        d, n = self.source.num_dimensions, self.num_samples
        return 0.01 + 1e-5 * n + (1e-5 * d * n / 16 if d > 10 else 0.0)


def configure(*, quick: bool = False, **settings: Any) -> Config:
    """The settings of a run: full size, or a quick version, with some replaced.

    Parameters
    ----------
    quick : bool
        3 repetitions of up to 3162 samples: less than a minute.
    **settings
        Fields of `Config`.
    """
    brief = {"num_repetitions": 3, "max_samples": 3162} if quick else {}
    return Config(**{**brief, **settings})


def run(config: Config, out: Path) -> bool:
    """Estimates everything in an output folder, from its last checkpoint if it has one.

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
        If the folder cannot be used or holds a run with other settings, or if the
        spiral network does not learn.

    Notes
    -----
    Full size: some minutes on two cores. Resuming gives the same numbers bit for bit as
    not having stopped, on the same machine.
    """
    folder = RunFolder(out)
    table = CellTable(folder, lambda: _prepared(config))
    with folder.open("estimators", asdict(config)):
        table.resume()
        cells = list(_cells(config, _spiral_source(table.prepared)))
        if table.num_done == len(cells):
            print(f"estimators: the run in {out} is finished; making its figures again")
        else:
            _announce(cells, table.num_done, folder)
            with Interruption() as interruption:
                table.advance(
                    lambda number: _compute(config, cells[number]),
                    [f"{cell.source.name} n={cell.num_samples}" for cell in cells],
                    [cell.cost for cell in cells],
                    interruption,
                )
        if table.num_done < len(cells):
            print(
                f"estimators: stopped after {table.num_done} of {len(cells)} pieces of "
                "work; the same command takes it up from there"
            )
            return False
        study = Study(config, table.metrics, table.history, table.prepared)
        report.write_page(
            folder,
            "Estimators of entropy against the number of samples",
            [
                _opening(study),
                *plot(study, folder),
                report.claims_table("What the papers' figures show", claims(study)),
                *_error_tables(study),
                report.settings_table(asdict(config)),
                _work_table(study, folder),
            ],
        )
        print(_summary(study))
        print(f"estimators: report in {folder.report}")
    return True


class Study:
    """Rows of a finished run, by source, number of samples and method.

    Parameters
    ----------
    config : Config
    metrics, history : list of dict
        Rows of the two tables.
    prepared : dict
        The spiral network and its reference entropy.
    """

    def __init__(
        self,
        config: Config,
        metrics: list[Row],
        history: list[Row],
        prepared: dict[str, NDArray[Any]],
    ) -> None:
        self.config = config
        self.history = history
        self.prepared = prepared
        self._rows: dict[tuple[str, int, str], list[Row]] = {}
        for row in metrics:
            key = (str(row["source"]), int(row["num_samples"]), str(row["method"]))
            self._rows.setdefault(key, []).append(row)
        spiral = _spiral_source(prepared)
        self.sources = {source.name: source for source in _sources(spiral)}

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
        "far as the axes reach. Second: root mean square error, also of the middle of "
        "the bracket."
    )
    figures = [
        Figure(
            folder.save_figure(
                f"cube-{d}.png", _curves_figure(study, study.of_family("cube", d))
            ),
            f"Entropy of the truncated mixture at the {2**d} corners of the cube in "
            f"{d} dimensions. {reading}",
        )
        for d in (5, 10)
    ]
    figures += [
        Figure(
            folder.save_figure(
                "open-cube.png", _curves_figure(study, study.of_family("open-cube"))
            ),
            f"Entropy of the mixture without truncation in 10 dimensions. {reading}",
        ),
        Figure(
            folder.save_figure(
                "spiral.png", _curves_figure(study, study.of_family("spiral"))
            ),
            "Entropy of the third layer of the network 2-8-9-10-3 trained on the "
            f"spiral. {reading} Exact: to the precision stated below.",
        ),
        Figure(
            folder.save_figure("codes.png", _codes_figure(study)),
            "Information over the Gaussian channel. Left: plug-in for the code RM(4,4) "
            "of 65,536 words in 16 dimensions; without noise it can be no more than "
            "the entropy of the words that were drawn. Right: RM(5,5), 2^32 words in "
            f"32 dimensions, noise {_LONG_CODE_NOISE:g}.",
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
        *(_dominance(study, source) for source in _compared(study)),
        *(_precision(study, 5, 1000, source) for source in study.of_family("cube", 5)),
        *(
            _precision(study, 10, 10_000, source)
            for source in study.of_family("cube", 10)
        ),
        _brackets(study),
        _plug_in_rises(study),
        *_code_claims(study),
        _spiral_claim(study),
    ]


def _entropy(
    samples: NDArray[np.float32],
    noise_std: float,
    seed: int,
    *,
    standard_error: float = _TARGET,
    max_pairs: int = _MOST_PAIRS,
) -> Estimate:
    """Our estimate: the only call of it in this study."""
    with warnings.catch_warnings():
        # Few samples, and what they leave out of reach, are what is studied here.
        warnings.simplefilter("ignore", UndersampledWarning)
        warnings.simplefilter("ignore", TargetWarning)
        return entropy(
            samples,
            noise_std,
            standard_error=standard_error,
            max_pairs=max_pairs,
            seed=seed,
        )


def _sources(spiral: Source) -> list[Source]:
    """Everything that is estimated, in the order of the report."""
    return [
        *(
            cube_mixture(d, noise_std, is_truncated=True)
            for d in (5, 10)
            for noise_std in _CUBE_NOISE
        ),
        *(cube_mixture(10, noise, is_truncated=False) for noise in _OPEN_CUBE_NOISE),
        spiral,
        full_code(_LONG_CODE, _LONG_CODE_NOISE),
        *(full_code(_SHORT_CODE, noise_std) for noise_std in _SHORT_CODE_NOISE),
    ]


def _cells(config: Config, spiral: Source) -> Iterator[Cell]:
    """All pieces of work, in their order."""
    for source in _sources(spiral):
        is_swept = source.num_dimensions == _SHORT_CODE
        exponents = np.arange(4, 15, 2) if is_swept else np.arange(2, 15)
        for n in (round(10 ** (exponent / 2)) for exponent in exponents):
            if n > config.max_samples:
                break
            most = config.num_repetitions
            wanted = round(most * min(1.0, math.sqrt(1000 / n)))
            count = max(wanted, min(3, most))
            if is_swept:
                count = max(1, count // 3)
            methods = (OURS,) if is_swept else METHODS
            for repetition in range(count):
                yield Cell(source, n, repetition, methods)


def _compute(config: Config, cell: Cell) -> CellRows:
    """Estimates of all methods of a cell, from the same samples of S."""
    source = cell.source
    key = (_STREAM, *source.name.encode(), cell.num_samples, cell.repetition)
    generator = np.random.default_rng(
        np.random.SeedSequence(config.seed, spawn_key=key)
    )
    clean = source.sample(generator, cell.num_samples)
    noise = generator.standard_normal(clean.shape)
    noisy = clean.astype(np.float64) + source.noise_std * noise
    seed = int(generator.integers(2**63))
    is_long = source.num_dimensions == _LONG_CODE
    queries = _QUERIES_OF_LONG_CODE if is_long else _QUERIES
    metrics, history = [], []
    for method in cell.methods:
        started = time.perf_counter()
        if method == OURS:
            estimate = _entropy(clean, source.noise_std, seed)
        elif method == NEIGHBORS:
            estimate = NearestNeighbor(num_queries=queries, num_resamples=0).entropy(
                noisy, seed=seed
            )
        else:
            estimate = KernelDensity(num_queries=queries, num_resamples=0).entropy(
                noisy, seed=seed
            )
        seconds = time.perf_counter() - started
        metrics.append(
            {
                "source": source.name,
                "num_dimensions": source.num_dimensions,
                "noise_std": source.noise_std,
                "num_samples": cell.num_samples,
                "repetition": cell.repetition,
                "method": method,
                "entropy": estimate.value,
                "standard_error": estimate.standard_error,
                "lower": estimate.lower,
                "upper": estimate.upper,
                "exact": source.entropy,
            }
        )
        history.append({"method": method, "seconds": round(seconds, 4)})
    return CellRows(metrics, history)


def _prepared(config: Config) -> dict[str, NDArray[Any]]:
    """The spiral network, and what the entropy of its third layer is."""
    print("estimators: training the network on the spiral", flush=True)
    data = datasets.spiral(seed=config.seed)
    network = NoisyMLP(_SPIRAL_SIZES, noise_std=_SPIRAL_NOISE, seed=config.seed)
    trainer = Trainer(
        network,
        data.inputs,
        data.labels,
        learning_rate=0.02,
        batch_size=50,
        seed=config.seed,
    )
    accuracy = 0.0
    while accuracy < _SPIRAL_ACCURACY:
        if trainer.epochs_done >= _MOST_PASSES:
            raise RunError(
                f"the spiral network reached an accuracy of {accuracy:.3f} only; "
                "another seed may help"
            )
        for _ in range(_PASSES_BETWEEN_LOOKS):
            trainer.train_epoch()
        accuracy = evaluate(network, data.inputs, data.labels).accuracy
    outputs = network.clean_outputs(
        torch.from_numpy(data.inputs), _REFERENCE_DRAWS, seed=config.seed
    )
    samples = outputs[2].reshape(-1, _SPIRAL_SIZES[3]).numpy()
    reference = _entropy(
        samples,
        _SPIRAL_NOISE,
        config.seed,
        standard_error=_REFERENCE_ERROR,
        max_pairs=_MOST_REFERENCE_PAIRS,
    )
    return {
        "spiral.parameters": trainer.state()["parameters"].numpy(),
        "spiral.passes": np.array(trainer.epochs_done),
        "spiral.accuracy": np.array(accuracy),
        "spiral.inputs": data.inputs,
        "spiral.reference": np.array([reference.midpoint, reference.standard_error]),
        "spiral.check": _enclosed_spiral(network, data.inputs, config.seed),
    }


def _enclosed_spiral(
    network: NoisyMLP, inputs: NDArray[np.float32], seed: int
) -> NDArray[np.float64]:
    """h of the third layer from the known network: [low, high, standard error].

    A second way that shares no line with the reference: points t_3 along noise paths
    and path importance sampling of their log-density, averaged.
    """
    layers = NoisyLayers(
        [layer.weight.detach() for layer in network.hidden_layers],
        [layer.bias.detach() for layer in network.hidden_layers],
        network.activation,
        network.noise_std,
    )
    generator = np.random.default_rng(
        np.random.SeedSequence(seed, spawn_key=(_STREAM, 1))
    )
    points = inputs.astype(np.float64)
    own = np.arange(_CHECK_POINTS) % len(points)
    noise = generator.standard_normal((len(own), sum(_SPIRAL_SIZES[1:4])))
    clean = layers.clean_outputs(points[own], noise)[2]
    own_noise = noise[:, -_SPIRAL_SIZES[3] :]
    sides = path_log_densities(
        layers,
        3,
        points,
        clean + _SPIRAL_NOISE * own_noise,
        own,
        np.ascontiguousarray(noise[:, : -_SPIRAL_SIZES[3]]),
        np.tile(np.array([0, len(points)]), (len(own), 1))[None],
        num_proposals=_CHECK_PROPOSALS,
        generator=generator,
    )
    # The known mean of |z|^2 takes part of the noise away.
    control = 0.5 * (own_noise**2).sum(axis=1) - 0.5 * own_noise.shape[1]
    ends, errors = [], []
    for side in (-sides.upper[0], -sides.lower[0]):
        slope = np.cov(side, control)[0, 1] / control.var(ddof=1)
        rest = side - slope * control
        ends.append(rest.mean())
        errors.append(rest.std(ddof=1) / math.sqrt(len(rest)))
    return np.array([*ends, max(errors)])


def _spiral_source(prepared: dict[str, NDArray[Any]]) -> Source:
    """The third layer of the trained network, X uniform over the spiral's points."""
    network = NoisyMLP(_SPIRAL_SIZES, noise_std=_SPIRAL_NOISE)
    set_parameters(network, prepared["spiral.parameters"])
    inputs = torch.from_numpy(prepared["spiral.inputs"].copy())

    def sample(generator: np.random.Generator, n: int) -> NDArray[np.float32]:
        chosen = torch.from_numpy(generator.integers(0, len(inputs), n))
        seed = int(generator.integers(2**63))
        outputs = network.clean_outputs(inputs[chosen], seed=seed)
        return np.asarray(outputs[2][:, 0].numpy(), np.float32)

    exact = float(prepared["spiral.reference"][0])
    return Source("spiral", _SPIRAL_SIZES[3], _SPIRAL_NOISE, exact, sample)


def _compared(study: Study) -> list[Source]:
    """Sources that all methods were tried on."""
    return [
        *study.of_family("cube"),
        *study.of_family("open-cube"),
        *study.of_family("spiral"),
        *study.of_family("code", _LONG_CODE),
    ]


def _dominance(study: Study, source: Source) -> Claim:
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
        f"{_in_words(source)}: at every n no other method has a smaller mean absolute "
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
        f"{_in_words(source)}: the plug-in is within about 1 % (1.5 %, read by eye) of "
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


def _brackets(study: Study) -> Claim:
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


def _plug_in_rises(study: Study) -> Claim:
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


def _code_claims(study: Study) -> list[Claim]:
    """Plateaus and merging of RM(4,4), and the curve of RM(5,5)."""
    short = study.of_family("code", _SHORT_CODE)
    found = []
    for n in study.num_samples(short[0]):
        plateau = expected_plug_in_without_noise(n, 2**_SHORT_CODE)
        value = float(_information(study, short[0], n).mean())
        # Draws that repeat are about Poisson, n^2 / 2^17 of them, and each takes off
        # 2 log 2 / n; the rest is the integration's.
        error = 2 * math.log(2) / math.sqrt(2 * 2**_SHORT_CODE)
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
    (long,) = study.of_family("code", _LONG_CODE)
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


def _spiral_claim(study: Study) -> Claim:
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


def _curves_figure(study: Study, sources: Sequence[Source]) -> bytes:
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


def _codes_figure(study: Study) -> bytes:
    """Both codes: information over noise, and over the number of samples."""
    figure, (left, right) = plotting.new_figure(13, 5, columns=2)
    short = study.of_family("code", _SHORT_CODE)
    noise = np.array([source.noise_std for source in short])
    fine = np.geomspace(noise[0], noise[-1], 80)
    exact = np.array([full_code(_SHORT_CODE, float(s)).information for s in fine])
    means = {
        n: np.array([_information(study, source, n).mean() for source in short])
        for n in study.num_samples(short[0])
    }
    plotting.information_over_noise(
        left, noise, means, (fine, exact), title="RM(4,4), d = 16"
    )
    left.set_ylabel("I(S;T), in nats", fontsize=13)
    left.legend(fontsize=12, frameon=False)
    (long,) = study.of_family("code", _LONG_CODE)
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


def _opening(study: Study) -> str:
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


def _error_tables(study: Study) -> list[Table]:
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
    return [
        Table(
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
    ]


def _work_table(study: Study, folder: RunFolder) -> Table:
    """What was run, on what, and how long it took."""
    seconds = {
        method: sum(
            float(row["seconds"]) for row in study.history if row["method"] == method
        )
        for method in METHODS
    }
    return Table(
        "What was run",
        ["what", "value"],
        [
            *(
                [f"time in {method}", f"{duration(spent)} ({spent:.1f} s)"]
                for method, spent in seconds.items()
            ),
            [
                "versions",
                f"noisyflow {folder.config()['noisyflow']}, Python "
                f"{platform.python_version()}, torch {torch.__version__}, NumPy "
                f"{np.__version__}",
            ],
        ],
    )


def _announce(cells: Sequence[Cell], num_done: int, folder: RunFolder) -> None:
    """Says what will be done."""
    print(
        f"estimators: {len({cell.source.name for cell in cells})} sources, "
        f"{len(cells)} pieces of work, up to n = "
        f"{max(cell.num_samples for cell in cells)}"
    )
    if num_done:
        print(f"  resumed after {num_done}")
    print(
        f"  into {folder.path}; Ctrl-C stops, the same command resumes",
        flush=True,
    )


def _in_words(source: Source) -> str:
    """A source for a sentence."""
    names = {
        "cube": "Truncated mixture",
        "open-cube": "Untruncated mixture",
        "spiral": "Spiral network",
        "code": "RM(5,5)" if source.num_dimensions == _LONG_CODE else "RM(4,4)",
    }
    return (
        f"{names[source.family]}, d = {source.num_dimensions}, noise "
        f"{source.noise_std:g}"
    )


def _summary(study: Study) -> str:
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
        f"{verdicts.count(None)} not judged"
    )
    return "\n".join(lines)
