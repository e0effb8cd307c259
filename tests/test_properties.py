"""Every public function against hostile arguments, one or two at a time.

A call ends in a result that obeys the function's laws, or in a ValueError or TypeError
that names an argument: never in another exception, a warning of NumPy's, a NaN, a hang
or a changed argument. `ENTRIES` holds for every public name a sound call, the kind of
each argument and the laws; a public name without an entry or a reason fails a test.

A long run: `NOISYFLOW_EXAMPLES=2000 pytest tests/test_properties.py`, each time with
other examples.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import io
import math
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hostile_values
import noisyflow
from noisyflow import (
    Estimate,
    TargetWarning,
    UndersampledWarning,
    _reference,
    baselines,
    bounds,
    chain,
    cost,
    covariance,
    datasets,
    estimate_file,
    image_files,
    importance,
    mixture,
    nn,
    operators,
    prepared,
    representations,
    runs,
    runtime,
    sampling,
    theory,
    tracking,
    training,
)

EXAMPLES = int(os.environ.get("NOISYFLOW_EXAMPLES", "0"))
# A sound call takes some milliseconds, but for the first, which may import torch.
SECONDS = 60
MODULES = (
    *(noisyflow, baselines, bounds, chain, cost, covariance, datasets, estimate_file),
    *(noisyflow.estimate, image_files, importance, mixture, nn, operators, prepared),
    *(representations, runs, runtime, sampling, theory, tracking, training),
)

Rng = np.random.Generator
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A public callable: how it is called, and what holds of its result.

    Parameters
    ----------
    names : tuple of str
        The public names that this entry is for, `module.name` within noisyflow.
    call : callable
    sound : callable
        `sound(rng)` gives arguments that must be accepted, small ones.
    kinds : mapping of str to str
        The kind of each argument that a hostile value may replace.
    laws : callable, optional
        `laws(arguments, result)` raises AssertionError where a law does not hold.
    also_named : tuple of str
        Words by which a message may name an argument beside its name.
    may_be_infinite : bool
        Documented so; a NaN never is.
    """

    names: tuple[str, ...]
    call: Callable[..., Any]
    sound: Callable[[Rng], Arguments]
    kinds: Mapping[str, str]
    laws: Callable[[Arguments, Any], None] | None = None
    also_named: tuple[str, ...] = ()
    may_be_infinite: bool = False

    def __str__(self) -> str:
        return self.names[0]


# -- sound arguments ----------------------------------------------------------------


def matrix(rng: Rng, n: int, d: int) -> np.ndarray:
    return rng.normal(size=(n, d))


def simplex(rng: Rng, n: int) -> np.ndarray:
    weights = rng.random(n) + 0.1
    return weights / weights.sum()


def of_mixture(rng: Rng) -> Arguments:
    (m, n, d) = rng.integers(1, [5, 7, 4])
    return {
        "points": matrix(rng, m, d),
        "centers": matrix(rng, n, d),
        "noise_std": float(rng.choice([0.01, 0.5, 3.0])),
        "weights": simplex(rng, n),
    }


MIXTURE = {
    "points": "array",
    "centers": "array",
    "noise_std": "real",
    "weights": "array",
}
BUDGET = {
    "standard_error": "real",
    "max_seconds": "real",
    "max_pairs": "int",
    "seed": "int",
}


def budget(rng: Rng) -> Arguments:
    return {
        "standard_error": 0.2,
        "max_seconds": 1e4,  # never reached: a clock would change the result
        "max_pairs": 4000,
        "seed": int(rng.integers(2**32)),
    }


# -- laws -----------------------------------------------------------------------------


def close(found: Any, expected: Any) -> None:
    """Equal but for rounding, of sums of exponents as large as the values themselves.

    1e-12 relative to max(1, |L|) is the bar of the kernels; centers far off lose what
    their offset loses of a difference: nothing here, for the reference has the same.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected)
    assert found.shape == expected.shape
    with np.errstate(invalid="ignore"):
        error = np.abs(found - expected)
    allowed = 1e-11 * np.maximum(1, np.abs(expected))
    assert ((error <= allowed) | (found == expected)).all(), (found, expected)


def plain(value: Any) -> Any:
    """A tensor as an array."""
    if isinstance(value, torch.Tensor):
        return value.detach().resolve_neg().numpy()
    return np.asarray(value)


def is_single(*values: Any) -> bool:
    return any(plain(value).dtype == np.float32 for value in values)


def mixture_laws(arguments: Arguments, result: Any) -> None:
    x, y = plain(arguments["points"]), plain(arguments["centers"])
    assert plain(result).shape == (len(x),)
    if is_single(x, y):
        return
    w = arguments["weights"]
    noise_std = float(plain(arguments["noise_std"]))
    with np.errstate(over="ignore"):
        expected = _reference.mixture_log_density(
            x, y, noise_std, None if w is None else plain(w)
        )
    close(plain(result), expected)


def block_laws(arguments: Arguments, result: Any) -> None:
    x, y = plain(arguments["points"]), plain(arguments["centers"])
    assert all(plain(part).shape == (len(x),) for part in result if part is not None)
    if is_single(x, y):
        return
    w = arguments["weights"]
    with np.errstate(over="ignore"):
        expected = _reference.mixture_block_log_sums(
            *(x, y, float(plain(arguments["noise_std"])), plain(arguments["own"])),
            plain(arguments["offsets"]),
            weights=None if w is None else plain(w),
        )
    for part, right in zip(result, expected, strict=True):
        close(plain(part), right)


def moment_laws(arguments: Arguments, result: Any) -> None:
    mixture_laws(arguments, result.log_density)
    (m, d) = plain(arguments["points"]).shape
    covariances = plain(result.covariance)
    assert plain(result.mean).shape == (m, d)
    assert covariances.shape == (m, d, d)
    # Positive semidefinite but for rounding, relative to their size.
    if covariances.size and np.abs(covariances).max() < 1e100:
        scale = np.abs(covariances).max(initial=1.0)
        assert np.linalg.eigvalsh(covariances).min() >= -1e-5 * scale


def covariance_laws(arguments: Arguments, result: Any) -> None:
    x, y = plain(arguments["points"]), plain(arguments["centers"])
    assert plain(result).shape == (len(x),)
    if is_single(x, y):
        return
    w = arguments["weights"]
    with np.errstate(over="ignore"):
        expected = _reference.gaussian_mixture_log_density(
            *(x, y, plain(arguments["whitening"])), None if w is None else plain(w)
        )
    close(plain(result), expected)


def whitening_laws(arguments: Arguments, result: Any) -> None:
    covariances, factors = plain(arguments["covariances"]), plain(result)
    assert factors.shape == covariances.shape
    assert (np.triu(factors, 1) == 0).all()
    if (
        not is_single(covariances)
        and np.abs(np.log10(np.abs(factors[factors != 0]))).max() < 50
    ):
        product = factors @ covariances @ np.swapaxes(factors, 1, 2)
        condition = np.linalg.cond(covariances).max()
        np.testing.assert_allclose(
            product,
            np.broadcast_to(np.eye(factors.shape[1]), product.shape),
            atol=1e-13 * condition + 1e-12,
        )


def estimate_laws(estimate: Any, low: float, high: float) -> None:
    """Ordered, within the range that is proven, and with an error that is one."""
    assert isinstance(estimate, Estimate)
    estimate = estimate.detached()
    value = float(estimate.value)
    assert math.isfinite(value)
    assert estimate.standard_error >= 0
    assert 0 <= estimate.isolated <= 1
    assert estimate.lower <= value + 1e-9 * max(1, abs(value))
    assert value <= estimate.upper + 1e-9 * max(1, abs(value))
    # Six errors: one in 1e9, and as many as examples are run.
    margin = 6 * estimate.monte_carlo_error + 1e-4 * max(1, abs(low))
    assert low - margin <= value <= high + margin


def entropy_laws(arguments: Arguments, result: Any) -> None:
    y = plain(arguments["centers"])
    low = bounds.noise_entropy(y.shape[1], float(plain(arguments["noise_std"])))
    estimate_laws(result, low, low + math.log(len(y)))


def conditional_laws(arguments: Arguments, result: Any) -> None:
    (_, r, d) = plain(arguments["samples"]).shape
    low = bounds.noise_entropy(d, float(plain(arguments["noise_std"])))
    estimate_laws(result, low, low + math.log(r))


def information_laws(arguments: Arguments, result: Any) -> None:
    samples = plain(arguments["samples"])
    estimate_laws(result, 0.0, math.log(len(samples)))
    assert result.detached().value >= 0


def bound_laws(arguments: Arguments, result: Any) -> None:
    y = plain(arguments["centers"])
    low = bounds.noise_entropy(y.shape[1], float(plain(arguments["noise_std"])))
    margin = 1e-5 * max(1, abs(low))
    assert low - margin <= result.lower <= result.upper + margin
    assert result.upper <= low + math.log(len(y)) + margin


def plan_laws(arguments: Arguments, result: Any) -> None:
    assert result.num_pairs == len(arguments["points"]) * len(arguments["centers"])
    assert result.evaluated_pairs + result.aggregated_pairs <= result.num_pairs
    assert str(result)


def not_negative(arguments: Arguments, result: Any) -> None:
    assert result >= 0


def baseline_laws(arguments: Arguments, result: Any) -> None:
    for estimate in result:
        assert math.isfinite(estimate.value)
        assert estimate.standard_error >= 0


def bracket_laws(arguments: Arguments, result: Any) -> None:
    # On average the truth is between them; those of few proposals may cross.
    assert result.lower.shape == result.upper.shape
    assert (result.effective_sample_size >= 0).all()
    assert (result.effective_sample_size <= 1 + 1e-9).all()


def layer_laws(arguments: Arguments, result: Any) -> None:
    results = result if isinstance(result, list) else [result]
    most = math.log(len(arguments["inputs"]))
    for layer in results:
        for estimate in (layer.mutual_information, layer.label_information):
            if estimate is not None:
                value, spread = estimate.value, 6 * estimate.standard_error
                assert -spread <= value <= most + spread + 1e-9
                assert estimate.lower <= estimate.upper


def cluster_laws(arguments: Arguments, result: Any) -> None:
    n = len(arguments["samples"])
    found = np.unique(plain(result))
    if plain(result).ndim:
        assert plain(result).shape == (n,)
        assert len(found) <= n
    else:
        assert 1 <= result <= n


def cosine_laws(arguments: Arguments, result: Any) -> None:
    assert (np.abs(plain(result)) <= 1 + 1e-6).all()


def distance_laws(arguments: Arguments, result: Any) -> None:
    assert result.mean_within >= 0
    assert result.mean_between >= 0
    assert (result.within >= 0).all()
    assert (np.diff(result.edges) > 0).all()


def effective_laws(arguments: Arguments, result: Any) -> None:
    assert 1 - 1e-9 <= result.value <= len(arguments["samples"]) + 1e-9
    assert result.lower <= result.upper


def dataset_laws(arguments: Arguments, result: Any) -> None:
    assert len(result) == len(result.labels)
    assert np.isfinite(result.inputs).all()


# -- networks ------------------------------------------------------------------------


def network(seed: int = 1) -> nn.NoisyMLP:
    return nn.NoisyMLP([2, 3, 2], noise_std=0.5, seed=seed)


def linear_chain() -> chain.NoisyChain:
    torch.manual_seed(0)
    return chain.NoisyChain([torch.nn.Linear(2, 2).double()], noise_std=0.5)


def of_paths(rng: Rng) -> Arguments:
    """Two layers, four inputs, three points of the second layer."""
    layers = importance.NoisyLayers(
        [matrix(rng, 2, 2), matrix(rng, 2, 2)], [np.zeros(2), np.zeros(2)], "tanh", 0.5
    )
    own = np.array([0, 1, 3])
    return {
        "layers": layers,
        "layer": 2,
        "inputs": matrix(rng, 4, 2),
        "points": 0.3 * matrix(rng, 3, 2),
        "own": own,
        "path": matrix(rng, 3, 2),
        "generator": np.random.default_rng(0),
    }


PATHS = {
    "layers": "object",
    "layer": "int",
    "inputs": "array",
    "points": "array",
    "own": "labels",
    "path": "array",
    "generator": "object",
}
TRAINER = {
    "network": "object",
    "inputs": "array",
    "labels": "labels",
    "learning_rate": "real",
    "batch_size": "int",
    "orthonormal_rate": "real",
    "weight_decay": "real",
    "seed": "int",
    "device": "choice",
}


def train_once(**arguments: Any) -> float:
    """A pass, and the loss after it."""
    trainer = training.Trainer(**arguments)
    trainer.train_epoch()
    trainer.load_state(trainer.state())
    return training.evaluate(trainer.network, trainer.inputs, trainer.labels).loss


def track(epoch: int, **arguments: Any) -> Any:
    return tracking.InformationTracker(**arguments).measure(epoch)


def forward(inputs: Any, num_draws: int, seed: Any) -> Any:
    return network().clean_outputs(inputs, num_draws, seed=seed)


# -- files ----------------------------------------------------------------------------


@functools.cache
def files() -> Path:
    """A folder with one sound file of every kind; kept as long as the process."""
    keep = tempfile.TemporaryDirectory()
    files.keep = keep  # type: ignore[attr-defined]
    folder = Path(keep.name)
    pixels = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
    (folder / "t10k-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 5, 1, 7, 0, 9, 2])
    (folder / "t10k-labels-idx1-ubyte").write_bytes(labels)
    np.save(folder / "a.npy", np.random.default_rng(0).normal(size=(6, 2)))
    return folder


def in_a_folder(action: Callable[..., Any]) -> Callable[..., Any]:
    """The action with a folder of its own as first argument."""

    def call(**arguments: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return action(Path(folder), **arguments)

    return call


def use_run_folder(folder: Path, experiment: Any, settings: Any, rows: Any) -> Any:
    run = runs.RunFolder(folder / "run")
    with run.open(experiment, settings):
        run.save({"metrics.csv": rows}, {"a": np.arange(3)})
    return run.load_table(
        "metrics.csv",
        {
            **(run.load_checkpoint() or {}),
        },
    )


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Threads and CPU target as they were."""
    try:
        yield
    finally:
        runtime.set_num_threads(None)
        runtime.set_cpu_target(None)


def set_threads(count: Any) -> int:
    with restored():
        runtime.set_num_threads(count)
        return runtime.num_threads()


def set_target(name: Any) -> str:
    with restored():
        runtime.set_cpu_target(name)
        return runtime.cpu_target()


# -- the registry ---------------------------------------------------------------------


def numbers(**given: tuple[str, Any]) -> Callable[[Any], Entry]:
    """An entry of a function of numbers alone: name=(kind, sound value)."""

    def entry(function: Any) -> Entry:
        return Entry(
            (f"theory.{function.__name__}",),
            function,
            lambda rng: {name: value for name, (_, value) in given.items()},
            {name: kind for name, (kind, _) in given.items()},
            not_negative,
            may_be_infinite=True,
        )

    return entry


DIM, NOISE = ("int", 3), ("real", 0.5)
COUNT, BOUND = ("int", 1000), ("real", 2.0)
ENTRIES: list[Entry] = [
    Entry(
        ("mixture_log_density", "mixture.mixture_log_density"),
        noisyflow.mixture_log_density,
        lambda rng: {**of_mixture(rng), "max_lost_mass": 0.0},
        {**MIXTURE, "max_lost_mass": "real"},
        mixture_laws,
    ),
    Entry(
        ("operators.mixture_log_density",),
        lambda points, centers, noise_std, weights: operators.mixture_log_density(
            *(
                torch.tensor(value.copy()) if isinstance(value, np.ndarray) else value
                for value in (points, centers, noise_std, weights)
            )
        ),
        of_mixture,
        {name: "real" for name in ("noise_std",)},
        mixture_laws,
        ("Float", "float", "Argument", "argument"),  # torch checks its operators' types
    ),
    Entry(
        ("explain", "mixture.explain"),
        noisyflow.explain,
        of_mixture,
        MIXTURE,
        plan_laws,
    ),
    Entry(
        ("prepare", "PreparedMixture", "prepared.prepare", "prepared.PreparedMixture"),
        lambda points, **given: noisyflow.prepare(**given).log_density(points),
        of_mixture,
        MIXTURE,
        mixture_laws,
    ),
    Entry(
        ("mixture_block_log_sums", "mixture.mixture_block_log_sums"),
        noisyflow.mixture_block_log_sums,
        lambda rng: {
            "points": matrix(rng, 3, 2),
            "centers": matrix(rng, 4, 2),
            "noise_std": 0.5,
            "own": np.array([0, 3, 2]),
            "offsets": np.array([0, 2, 4]),
            "weights": simplex(rng, 4),
        },
        {**MIXTURE, "own": "labels", "offsets": "labels"},
        block_laws,
        may_be_infinite=True,  # the log of nothing
    ),
    Entry(
        ("posterior_moments", "mixture.posterior_moments"),
        noisyflow.posterior_moments,
        of_mixture,
        MIXTURE,
        moment_laws,
    ),
    Entry(
        ("gaussian_mixture_log_density", "covariance.gaussian_mixture_log_density"),
        noisyflow.gaussian_mixture_log_density,
        lambda rng: {
            "points": matrix(rng, 3, 2),
            "centers": matrix(rng, 4, 2),
            "whitening": np.tril(rng.random((4, 2, 2)) + 0.5),
            "weights": simplex(rng, 4),
        },
        {
            "points": "array",
            "centers": "array",
            "whitening": "array",
            "weights": "array",
        },
        covariance_laws,
    ),
    Entry(
        ("whitening_from_covariances", "covariance.whitening_from_covariances"),
        noisyflow.whitening_from_covariances,
        lambda rng: {"covariances": np.eye(2) + np.tile(rng.random((3, 1, 1)), (2, 2))},
        {"covariances": "array"},
        whitening_laws,
    ),
    Entry(
        ("entropy",),
        noisyflow.entropy,
        lambda rng: {
            **{"centers": matrix(rng, 5, 2), "noise_std": 0.5, "population": False},
            **{"weights": None, **budget(rng)},
        },
        {
            **{"centers": "array", "noise_std": "real", "population": "flag"},
            **{"weights": "array_or_none", **BUDGET},
        },
        entropy_laws,
        ("samples",),
    ),
    Entry(
        ("entropy",),
        noisyflow.entropy,
        lambda rng: {
            **{"centers": matrix(rng, 5, 2), "noise_std": 0.5, "population": True},
            **{"weights": simplex(rng, 5), **budget(rng)},
        },
        {"centers": "array", "noise_std": "real", "weights": "array", **BUDGET},
        entropy_laws,
    ),
    Entry(
        ("conditional_entropy",),
        noisyflow.conditional_entropy,
        lambda rng: {
            "samples": rng.normal(size=(3, 4, 2)),
            "noise_std": 0.5,
            **budget(rng),
        },
        {"samples": "array", "noise_std": "real", **BUDGET},
        conditional_laws,
    ),
    Entry(
        ("mutual_information",),
        noisyflow.mutual_information,
        lambda rng: {
            "samples": rng.normal(size=(4, 3, 2)),
            "noise_std": 0.5,
            "labels": np.array([0, 1, 1, 0]),
            "inputs": "fixed",
            **budget(rng),
        },
        {
            "samples": "array",
            "noise_std": "real",
            "labels": "labels",
            "inputs": "choice",
            **BUDGET,
        },
        information_laws,
    ),
    Entry(
        ("entropy_bounds", "bounds.entropy_bounds"),
        noisyflow.entropy_bounds,
        lambda rng: {
            "centers": matrix(rng, 5, 2),
            "noise_std": 0.5,
            "weights": simplex(rng, 5),
        },
        {"centers": "array", "noise_std": "real", "weights": "array"},
        bound_laws,
    ),
    Entry(
        ("Estimate", "estimate.Estimate"),
        lambda confidence: Estimate(
            1.0, 0.1, 0.5, 1.5, 0.0, 10, bounded_difference=0.1
        ).lower_confidence_bound(confidence),
        lambda rng: {"confidence": 0.9},
        {"confidence": "real"},
        may_be_infinite=True,
    ),
    # -- baselines
    *(
        Entry(
            (f"baselines.{method.__name__}",),
            functools.partial(
                lambda method, samples, about, seed, **given: (
                    method(**given).entropy(samples, seed=seed),
                    method(**given).mutual_information(samples, about, seed=seed),
                ),
                method,
            ),
            functools.partial(
                lambda given, rng: {
                    "samples": matrix(rng, 24, 2),
                    "about": np.arange(24) % 2,
                    "seed": 1,
                    "num_resamples": 3,
                    **{name: value for name, (_, value) in given.items()},
                },
                given,
            ),
            {
                **{"samples": "array", "about": "labels", "seed": "int"},
                **{name: kind for name, (kind, _) in given.items()},
                "num_resamples": "int",
            },
            baseline_laws,
            ("labels", "label"),
            may_be_infinite=True,  # no bracket is known, and few samples have no error
        )
        for method, given in (
            (baselines.Binning, {"bin_width": ("real", 0.5)}),
            (
                baselines.KernelDensity,
                {
                    "bandwidth": ("real", 0.5),
                    "evaluate": ("choice", "leave-one-out"),
                    "num_queries": ("int", 10),
                },
            ),
            (
                baselines.NearestNeighbor,
                {"num_neighbors": ("int", 3), "num_queries": ("int", 10)},
            ),
            (
                baselines.PairwiseDistance,
                {"noise_std": ("real", 0.5), "bound": ("choice", "upper")},
            ),
        )
    ),
    Entry(
        ("baselines.sweep",),
        lambda **given: tuple(baselines.sweep(**given).values()),
        lambda rng: {
            "samples": matrix(rng, 12, 2),
            "bin_widths": [0.5, 1.0],
            "about": np.arange(12) % 2,
            "num_resamples": 2,
            "seed": 1,
        },
        {
            "samples": "array",
            "bin_widths": "object",
            "about": "labels",
            "num_resamples": "int",
            "seed": "int",
        },
        baseline_laws,
        ("labels", "bin_width"),
        may_be_infinite=True,
    ),
    # -- theory
    numbers(num_atoms=COUNT)(theory.chi_square_atoms),
    numbers(dim=DIM, noise_std=NOISE, half_width=BOUND)(theory.chi_square_cube),
    numbers(diameter=BOUND, noise_std=NOISE)(theory.chi_square_diameter),
    numbers(dim=DIM, std=BOUND, noise_std=NOISE)(theory.chi_square_gaussian),
    numbers(dim=DIM, constant=("real", 0.1), noise_std=NOISE)(
        theory.chi_square_sub_gaussian
    ),
    numbers(dim=DIM, noise_std=NOISE, half_width=BOUND)(theory.chi_square_uniform),
    numbers(
        dim=DIM,
        noise_std=NOISE,
        num_samples=COUNT,
        probabilities=("array", [0.25, 0.75]),
    )(theory.label_information_risk),
    numbers(dim=DIM, num_queries=COUNT)(theory.monte_carlo_rmse),
    numbers(dim=DIM, noise_std=NOISE, num_queries=COUNT)(
        theory.monte_carlo_rmse_bounded
    ),
    numbers(dim=DIM, noise_std=NOISE, num_queries=COUNT, second_moment=BOUND)(
        theory.monte_carlo_rmse_second_moment
    ),
    numbers(
        **{"dim": DIM, "noise_std": NOISE, "num_samples": COUNT},
        num_draws=COUNT,
        inputs=("choice", "fixed"),
    )(theory.mutual_information_risk),
    numbers(num_samples=COUNT, chi_square=BOUND)(theory.plug_in_bias_bound),
    numbers(num_samples=COUNT, chi_square=BOUND)(theory.plug_in_bias_estimate),
    numbers(dim=DIM, noise_std=NOISE, num_samples=COUNT)(
        theory.plug_in_bias_lower_bound
    ),
    numbers(
        num_samples=COUNT, confidence=("real", 0.9), diameter=BOUND, noise_std=NOISE
    )(theory.plug_in_deviation_bound),
    numbers(dim=DIM, noise_std=NOISE, num_samples=COUNT, epsilon=("real", 0.1))(
        theory.plug_in_risk_bounded
    ),
    numbers(dim=DIM, noise_std=NOISE, num_samples=COUNT, constant=BOUND)(
        theory.plug_in_risk_sub_gaussian
    ),
    numbers(dim=DIM, noise_std=NOISE, bias=("real", 0.1))(
        theory.plug_in_samples_necessary
    ),
    numbers(num_samples=COUNT, diameter=BOUND, noise_std=NOISE)(
        theory.plug_in_std_bound
    ),
    numbers(noise_std=NOISE)(theory.sample_complexity_exponent),
    numbers(dim=DIM, constant=("real", 0.1), noise_std=NOISE, num_samples=COUNT)(
        theory.total_variation_bound
    ),
    numbers(dim=DIM, constant=("real", 0.1), noise_std=NOISE, num_samples=COUNT)(
        theory.wasserstein_bound
    ),
    Entry(
        ("theory.plan", "theory.SamplePlan", "theory.Requirement"),
        lambda **given: (theory.plan(**given).to_json(), str(theory.plan(**given))),
        lambda rng: {
            **{"dim": 3, "noise_std": 0.5, "error": 0.1, "half_width": 1.0},
            **{"max_num_samples": 10**6, "max_seconds": 60.0},
        },
        {
            **{"dim": "int", "noise_std": "real", "error": "real"},
            **{"half_width": "real", "max_num_samples": "int", "max_seconds": "real"},
        },
    ),
    # -- bounds, cost
    Entry(
        ("bounds.noise_entropy",),
        bounds.noise_entropy,
        lambda rng: {"d": 3, "noise_std": 0.5},
        {},
        lambda arguments, result: close(
            result, 1.5 * math.log(2 * math.pi * math.e * 0.25)
        ),
    ),
    Entry(
        ("cost.predict_pair_seconds",),
        cost.predict_pair_seconds,
        lambda rng: {"num_points": 5, "num_centers": 7, "dim": 2},
        {"num_points": "int", "num_centers": "int", "dim": "int"},
        not_negative,
    ),
    Entry(
        ("cost.predict_seconds", "cost.measure_cost", "cost.Cost"),
        cost.predict_seconds,
        lambda rng: {
            "num_points": 5,
            "centers": matrix(rng, 6, 2),
            "noise_std": 0.5,
            "points": matrix(rng, 3, 2),
            "seed": 1,
        },
        {
            "num_points": "int",
            "centers": "array",
            "noise_std": "real",
            "points": "array",
            "seed": "int",
        },
        not_negative,
    ),
    # -- networks
    Entry(
        ("importance.NoisyLayers",),
        lambda weight, bias, activation, noise_std: importance.NoisyLayers(
            [weight], [bias], activation, noise_std
        ).clean_outputs(np.ones((3, np.shape(weight)[-1])), np.zeros((3, 2))),
        lambda rng: {
            **{"weight": matrix(rng, 2, 2), "bias": np.zeros(2)},
            **{"activation": "tanh", "noise_std": 0.5},
        },
        {
            **{"weight": "array", "bias": "array"},
            **{"activation": "choice", "noise_std": "real"},
        },
        None,
        ("inputs",),
    ),
    Entry(
        ("importance.path_log_densities", "importance.LogDensityBracket"),
        importance.path_log_densities,
        lambda rng: {
            **of_paths(rng),
            "groups": np.tile([0, 4], (1, 3, 1)),
            "num_proposals": 8,
        },
        {**PATHS, "groups": "labels", "num_proposals": "int"},
        bracket_laws,
        may_be_infinite=True,
    ),
    Entry(
        ("importance.replica_log_densities",),
        importance.replica_log_densities,
        lambda rng: {**of_paths(rng), "num_draws": 8},
        {**PATHS, "num_draws": "int"},
        bracket_laws,
        may_be_infinite=True,
    ),
    Entry(
        ("chain.NoisyChain",),
        lambda layers, noise_std: chain.NoisyChain(layers, noise_std).num_layers,
        lambda rng: {"layers": [torch.nn.Linear(2, 2)], "noise_std": [0.5]},
        {"layers": "object", "noise_std": "real"},
        None,
        ("layer 1",),
    ),
    Entry(
        ("chain.chain_information", "chain.ChainInformation"),
        lambda **given: chain.chain_information(linear_chain(), **given),
        lambda rng: {
            "inputs": matrix(rng, 4, 2),
            "layer": 1,
            "labels": np.array([0, 1, 1, 0]),
            "input_kind": "fixed",
            **{"standard_error": 0.5, "bracket_width": 0.5, "num_proposals": 4},
            **{"with_entropies": False, "max_seconds": 1e4, "max_pairs": 2000},
            "seed": 1,
        },
        {
            "inputs": "array",
            "layer": "int",
            "labels": "labels",
            "input_kind": "choice",
            **{"standard_error": "real", "bracket_width": "real"},
            **{"num_proposals": "int", "with_entropies": "flag"},
            **BUDGET,
        },
        layer_laws,
        ("layer", "dtype"),
        may_be_infinite=True,
    ),
    Entry(
        ("nn.GaussianNoise",),
        lambda inputs, noise_std, seed: nn.GaussianNoise(noise_std, seed=seed)(inputs),
        lambda rng: {"inputs": torch.ones(2, 3), "noise_std": 0.5, "seed": 1},
        {"noise_std": "real", "seed": "int"},
    ),
    Entry(
        ("nn.NoisyMLP",),
        lambda **given: nn.NoisyMLP(**given)(torch.ones(3, 2)),
        lambda rng: {
            **{"sizes": [2, 3, 2], "activation": "tanh"},
            **{"noise_std": 0.5, "seed": 1},
        },
        {
            **{"sizes": "object", "activation": "choice"},
            **{"noise_std": "real", "seed": "int"},
        },
    ),
    Entry(
        ("nn.NoisyMLP",),
        forward,
        lambda rng: {"inputs": torch.ones(3, 2), "num_draws": 2, "seed": 1},
        {"inputs": "object", "num_draws": "int", "seed": "int"},
    ),
    Entry(
        ("nn.add_noise",),
        lambda network, noise_std, seed: nn.add_noise(network, noise_std, seed=seed)(
            torch.ones(3, 2)
        ),
        lambda rng: {
            "network": torch.nn.Sequential(
                torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)
            ),
            "noise_std": 0.5,
            "seed": 1,
        },
        {"network": "object", "noise_std": "real", "seed": "int"},
    ),
    Entry(
        ("nn.noise_state", "nn.load_noise_state", "nn.check_generator_state"),
        lambda network, states, device: nn.load_noise_state(network, states, device),
        lambda rng: {
            "network": network(),
            "states": nn.noise_state(network()),
            "device": torch.device("cpu"),
        },
        {"network": "object", "states": "object"},
        None,
        ("state",),
    ),
    Entry(
        ("nn.check_activation",),
        nn.check_activation,
        lambda rng: {"activation": "tanh"},
        {"activation": "choice"},
    ),
    Entry(
        ("nn.orthonormality_step",),
        nn.orthonormality_step,
        lambda rng: {"layers": [torch.nn.Linear(2, 2)], "rate": 0.1},
        {"layers": "object", "rate": "real"},
    ),
    Entry(
        ("tracking.InformationTracker", "tracking.LayerInformation"),
        track,
        lambda rng: {
            **{"network": network(), "inputs": matrix(rng, 4, 2).astype(np.float32)},
            **{"labels": np.array([0, 1, 1, 0]), "epoch": 0, "seed": 1},
            **{"method": "sample-propagation", "noise_std": 0.5, "num_draws": 4},
        },
        {
            **{"network": "object", "inputs": "array", "labels": "labels"},
            **{"epoch": "int", "seed": "int", "method": "choice"},
            **{"noise_std": "real", "num_draws": "int"},
        },
        layer_laws,
        ("samples",),  # what the network makes of the inputs
    ),
    Entry(
        ("tracking.InformationTracker",),
        track,
        lambda rng: {
            **{"network": network(), "inputs": matrix(rng, 4, 2).astype(np.float32)},
            **{"labels": None, "epoch": 0, "seed": 1, "method": "path-importance"},
            **{"standard_error": 0.5, "bracket_width": 0.5},
        },
        {
            **{"inputs": "array", "standard_error": "real"},
            **{"bracket_width": "real", "seed": "int"},
        },
        layer_laws,
    ),
    # -- training
    Entry(
        ("training.Trainer", "training.one_thread"),
        train_once,
        lambda rng: {
            **{"network": network(), "inputs": matrix(rng, 4, 2)},
            **{"labels": np.array([0, 1, 1, 0]), "learning_rate": 1e-3},
            **{"batch_size": 2, "orthonormal_rate": 0.1, "weight_decay": 0.1},
            **{"seed": 1, "device": "cpu"},
        },
        TRAINER,
        not_negative,
        ("state[",),  # a rate that makes the weights infinite
    ),
    Entry(
        ("training.evaluate", "training.Evaluation"),
        lambda **given: training.evaluate(**given).loss,
        lambda rng: {
            **{"network": network(), "inputs": matrix(rng, 4, 2)},
            "labels": np.array([0, 1, 1, 0]),
        },
        {"network": "object", "inputs": "array", "labels": "labels"},
        not_negative,
    ),
    Entry(
        ("training.set_parameters",),
        training.set_parameters,
        lambda rng: {
            "network": network(),
            "parameters": rng.normal(size=17).astype(np.float32),
        },
        {"network": "object", "parameters": "array"},
    ),
    # -- data
    Entry(
        ("datasets.Dataset",),
        datasets.Dataset,
        lambda rng: {
            "inputs": matrix(rng, 4, 2).astype(np.float32),
            "labels": np.array([0, 1, 1, 0]),
        },
        {"inputs": "array", "labels": "labels"},
        dataset_laws,
    ),
    Entry(
        ("datasets.ImageDataset",),
        datasets.ImageDataset,
        lambda rng: {
            "inputs": matrix(rng, 4, 6).astype(np.float32),
            "labels": np.array([0, 1, 1, 0]),
            "shape": (1, 2, 3),
        },
        {"inputs": "array", "labels": "labels", "shape": "object"},
        dataset_laws,
    ),
    Entry(
        ("datasets.spiral",),
        datasets.spiral,
        lambda rng: {"num_classes": 2, "num_per_class": 3, "jitter": 0.1, "seed": 1},
        {
            **{"num_classes": "int", "num_per_class": "int"},
            **{"jitter": "real", "seed": "int"},
        },
        dataset_laws,
    ),
    Entry(
        ("datasets.split", "datasets.szt"),
        lambda **given: datasets.split(**given)[0],
        lambda rng: {"dataset": datasets.szt(), "train_share": 0.5, "seed": 1},
        {"dataset": "object", "train_share": "real", "seed": "int"},
        dataset_laws,
    ),
    Entry(
        ("datasets.check_learnable",),
        datasets.check_learnable,
        lambda rng: {
            "train": datasets.spiral(num_per_class=4),
            "test": datasets.spiral(num_per_class=4),
            "num_train": 2,
        },
        {"train": "object", "test": "object", "num_train": "int"},
    ),
    Entry(
        ("datasets.from_torch",),
        datasets.from_torch,
        lambda rng: {"dataset": [(rng.random((2, 3)), 1), (rng.random((2, 3)), 0)]},
        {"dataset": "object"},
        dataset_laws,
    ),
    Entry(
        ("datasets.from_torch",),
        lambda image, label: datasets.from_torch(
            [(np.ones((2, 3)), 1), (image, label)]
        ),
        lambda rng: {"image": rng.random((2, 3)), "label": 1},
        {"image": "array", "label": "int"},
        dataset_laws,
        ("dataset",),
    ),
    Entry(
        ("datasets.mnist", "datasets.TrainTest", "datasets.ImageFileError"),
        lambda folder, seed: datasets.mnist(folder, seed=seed).train,
        lambda rng: {"folder": files(), "seed": 1},
        {"folder": "path", "seed": "int"},
        dataset_laws,
    ),
    Entry(
        ("image_files.read_idx", "image_files.ImageFileError"),
        image_files.read_idx,
        lambda rng: {
            "path": files() / "t10k-images-idx3-ubyte",
            "max_bytes": 100,
        },
        {"path": "path", "max_bytes": "int"},
    ),
    Entry(
        ("image_files.read_images",),
        image_files.read_images,
        lambda rng: {
            "images": files() / "t10k-images-idx3-ubyte",
            "labels": files() / "t10k-labels-idx1-ubyte",
        },
        {"images": "path", "labels": "path"},
    ),
    Entry(
        ("image_files.read_mnist",),
        image_files.read_mnist,
        lambda rng: {"folder": files()},
        {"folder": "path"},
    ),
    Entry(
        (
            *("estimate_file.estimate_file", "estimate_file.FileError"),
            *("estimate_file.Report", "estimate_file.Quantity"),
        ),
        lambda **given: estimate_file.estimate_file(**given).to_json(),
        lambda rng: {
            **{"path": files() / "a.npy", "noise_std": 0.5, "population": False},
            **{"device": "cpu", **budget(rng)},
        },
        {
            **{"path": "path", "noise_std": "real", "population": "flag"},
            **{"device": "choice", **BUDGET},
        },
        None,
        ("--error", "--max-seconds", "--max-pairs"),
    ),
    # -- representations
    Entry(
        ("representations.class_distances", "representations.ClassDistances"),
        representations.class_distances,
        lambda rng: {
            **{"samples": matrix(rng, 8, 2), "labels": np.arange(8) % 2},
            **{"num_bins": 4, "max_pairs": 100, "seed": 1},
        },
        {
            **{"samples": "array", "labels": "labels"},
            **{"num_bins": "int", "max_pairs": "int", "seed": "int"},
        },
        distance_laws,
        may_be_infinite=True,
    ),
    Entry(
        ("representations.cosine_similarity",),
        representations.cosine_similarity,
        lambda rng: {"first": matrix(rng, 3, 2), "second": matrix(rng, 3, 2)},
        {"first": "array", "second": "array"},
        cosine_laws,
    ),
    Entry(
        ("representations.num_clusters",),
        representations.num_clusters,
        lambda rng: {"samples": matrix(rng, 8, 2), "scale": 0.5},
        {"samples": "array", "scale": "real"},
        cluster_laws,
    ),
    Entry(
        ("representations.single_linkage",),
        representations.single_linkage,
        lambda rng: {"samples": matrix(rng, 8, 2), "scale": 0.5},
        {"samples": "array", "scale": "real"},
        cluster_laws,
    ),
    Entry(
        ("representations.effective_clusters", "representations.EffectiveClusters"),
        representations.effective_clusters,
        lambda rng: {
            **{"samples": rng.normal(size=(5, 2)), "noise_std": 0.5},
            **{"inputs": "fixed", **budget(rng)},
        },
        {"samples": "array", "noise_std": "real", "inputs": "choice", **BUDGET},
        effective_laws,
        may_be_infinite=True,
    ),
    # -- runs
    Entry(
        ("runs.duration",),
        runs.duration,
        lambda rng: {"seconds": 100.0 * rng.random()},
        {},
    ),
    Entry(
        ("runs.check_device",),
        runs.check_device,
        lambda rng: {"name": "cpu"},
        {"name": "choice"},
        None,
        ("device",),
    ),
    Entry(
        (
            "runs.RunFolder",
            "runs.table_bytes",
            "runs.write_atomically",
            "runs.RunError",
        ),
        in_a_folder(use_run_folder),
        lambda rng: {
            "experiment": "szt",
            "settings": {"epochs": 3},
            "rows": [{"a": 1, "b": float(rng.normal()), "c": 'x,\n"y'}],
        },
        {},
        lambda arguments, result: close(result[0]["b"], arguments["rows"][0]["b"]),
    ),
    # -- the process
    Entry(
        ("runtime.set_num_threads", "runtime.num_threads"),
        set_threads,
        lambda rng: {"count": 2},
        {"count": "int"},
    ),
    Entry(
        (
            *("runtime.set_cpu_target", "runtime.cpu_target"),
            "runtime.available_cpu_targets",
        ),
        set_target,
        lambda rng: {"name": runtime.available_cpu_targets()[0]},
        {"name": "choice"},
        None,
        ("target",),
    ),
    Entry(
        (
            *("runtime.checked_device", "runtime.check_device_name"),
            "runtime.device_name",
        ),
        lambda name: str(runtime.checked_device(name)),
        lambda rng: {"name": "cpu"},
        {"name": "choice"},
        None,
        ("device",),
    ),
]

# Public names that are not called by users, each with the reason.
RESULTS = "a result, made by a function that has an entry"
WARNING = "a warning, raised by the estimators"
PROTOCOL = "a protocol: it has no code"
INNER = "for modules of the package, which check their arguments before"
PROCESS = "holds a terminal or a signal; tests/test_cli.py drives it"
APART = {
    "BlockLogSums": RESULTS,
    "EntropyBounds": RESULTS,
    "Plan": RESULTS,
    "PosteriorMoments": RESULTS,
    "TargetWarning": WARNING,
    "UndersampledWarning": WARNING,
    "baselines.AbstractBaseline": PROTOCOL,
    "bounds.EntropyBounds": RESULTS,
    "bounds.as_probabilities": INNER,
    "bounds.checked_mixture": INNER,
    "chain.NotDifferentiableWarning": "a warning of chain_information",
    "datasets.digits": "takes no arguments and needs scikit-learn",
    "estimate.TargetWarning": WARNING,
    "estimate.UndersampledWarning": WARNING,
    "mixture.BlockLogSums": RESULTS,
    "mixture.PosteriorMoments": RESULTS,
    "mixture.log_density_of_arrays": INNER,
    "prepared.Plan": RESULTS,
    **{
        f"prepared.{name}": INNER
        for name in (
            *("cell_work_share", "checked_max_lost_mass", "is_worth_a_tree"),
            *("order_work", "pair_work"),
        )
    },
    "runs.Interruption": PROCESS,
    "runs.Progress": PROCESS,
    "runs.Results": RESULTS,
    "runs.Usage": RESULTS,
    "runs.check_is_within": INNER,
    **{
        f"sampling.{name}": INNER
        for name in (
            *("Averages", "Budget", "Problem", "QueryTerms", "average_over_noise"),
        )
    },
    "tracking.AbstractEnclosedNetwork": PROTOCOL,
    "tracking.AbstractSampledNetwork": PROTOCOL,
    "tracking.AbstractTracker": PROTOCOL,
}


def public_names() -> set[str]:
    """All public callables of `MODULES`, by their names within noisyflow."""
    names = set()
    for module in MODULES:
        prefix = module.__name__.removeprefix("noisyflow").lstrip(".")
        listed = getattr(module, "__all__", None)
        for name, value in vars(module).items():
            is_own = getattr(value, "__module__", None) == module.__name__
            is_public = name in listed if listed else is_own and name[0] != "_"
            if is_public and callable(value):
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def test_every_public_name_has_an_entry_or_a_reason() -> None:
    covered = {name for entry in ENTRIES for name in entry.names}
    names = public_names()
    assert len(names) > 100
    assert sorted(names - covered - APART.keys()) == []
    assert sorted((covered | APART.keys()) - names) == [], "no longer public"
    assert sorted(covered & APART.keys()) == []


def test_every_public_module_is_looked_at() -> None:
    """But for experiments, figures, ranks and commands, whose tests run them."""
    apart = {"check", "cli", "enclosure", "experiments", "film", "gallery", "lightning"}
    apart |= {"plotting", "report", "information", "__main__", "accuracy"}
    apart |= {"benchmark", "distributed"}
    folder = Path(noisyflow.__file__).parent
    found = {
        path.stem
        for path in folder.iterdir()
        if path.stem[0] != "_" and path.suffix in (".py", "")
    }
    looked_at = {module.__name__.rpartition(".")[2] for module in MODULES}
    assert found - apart - {"py"} == looked_at - {"noisyflow"}


# -- the property -------------------------------------------------------------------


class HangError(BaseException):
    """A call took too long; no `except Exception` shall hide it."""


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def called(entry: Entry, arguments: Arguments) -> Any:
    """The result, with warnings of the estimators' own allowed and no others."""
    with (
        deadline(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        for kind in (
            UndersampledWarning,
            TargetWarning,
            chain.NotDifferentiableWarning,
        ):
            warnings.simplefilter("ignore", kind)
        return entry.call(**arguments)


# Of an estimate, infinite as documented: no bracket or bound is known, or fewer than
# five samples cannot show an error.
OPEN = ("lower", "upper", "bounded_difference", "standard_error")


def check_finite(value: Any, may_be_infinite: bool, where: str = "result") -> None:
    """Raises AssertionError at a NaN anywhere in a result, and at infinity."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, float | np.ndarray | np.floating):
        array = np.asarray(value)
        if array.dtype.kind in "fc":
            assert not np.isnan(array).any(), f"{where} is NaN: {value}"
            assert may_be_infinite or np.isfinite(array).all(), f"{where}: {value}"
    elif isinstance(value, Estimate):
        for field in dataclasses.fields(value):
            is_open = field.name in OPEN
            check_finite(
                getattr(value, field.name), may_be_infinite or is_open, field.name
            )
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            check_finite(getattr(value, field.name), may_be_infinite, field.name)
    elif isinstance(value, tuple | list):
        for number, part in enumerate(value):
            check_finite(part, may_be_infinite, f"{where}[{number}]")


def bytes_of(value: Any) -> Any:
    """What of an argument a call must leave as it was."""
    if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
        if value.device.type == "meta" or value.layout != torch.strided:
            return str(value)
        return (
            value.detach().resolve_neg().resolve_conj().clone().numpy().tobytes()
            if value.dtype != torch.bfloat16
            else None
        )
    if isinstance(value, np.ma.MaskedArray):
        return None
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return (value.shape, value.strides, value.tobytes())
    if isinstance(value, list | dict):
        return repr(value)
    return None


def values_of(kind: str) -> hostile_values.Family:
    return hostile_values.HOSTILE[kind.removesuffix("_or_none")]


@st.composite
def cases(draw: st.DrawFn, entry: Entry) -> tuple[int, dict[str, str], str]:
    """A seed, the names of hostile values by argument, and a way to say the same."""
    seed = draw(st.integers(0, 2**16))
    number = draw(st.sampled_from([1, 1, 1, 0, 2])) if entry.kinds else 0
    names = sorted(entry.kinds)
    chosen = (
        draw(
            st.lists(
                st.sampled_from(names), min_size=number, max_size=number, unique=True
            )
            if number <= len(names)
            else st.just(names)
        )
        if number
        else []
    )
    values = {
        name: draw(st.sampled_from(sorted(values_of(entry.kinds[name]))))
        for name in chosen
    }
    same = (
        draw(st.sampled_from(sorted(hostile_values.SAME_ARRAYS))) if not chosen else ""
    )
    return seed, values, same


def check_case(entry: Entry, case: tuple[int, dict[str, str], str]) -> None:
    seed, chosen, same = case
    rng = np.random.default_rng(seed)
    arguments = entry.sound(rng)
    if not chosen:
        check_sound(entry, arguments, same, rng)
        return
    for name, value in chosen.items():
        make = values_of(entry.kinds[name])[value]
        try:
            arguments[name] = make(arguments[name], rng)
        except Exception:  # this value has no such variant
            return
    before = {name: bytes_of(value) for name, value in arguments.items()}
    allowed = (ValueError, TypeError, runs.RunError, image_files.ImageFileError)
    try:
        result = called(entry, arguments)
    except (*allowed, estimate_file.FileError) as error:
        check_message(entry, arguments, error)
    except OSError:
        if "path" not in entry.kinds.values():
            raise
    else:
        check_finite(result, entry.may_be_infinite)
        if entry.laws is not None:
            entry.laws(arguments, result)
    after = {name: bytes_of(value) for name, value in arguments.items()}
    assert before == after, "an argument was changed"


def check_message(entry: Entry, arguments: Arguments, error: Exception) -> None:
    """Raises AssertionError unless the error is the package's own and names one."""
    words = str(error)
    # What overflows in the middle is the matter of all arguments alike.
    options = (f"--{name.replace('_', '-')}" for name in arguments)  # of the command
    named = (*arguments, *options, *entry.also_named, "rescale the data")
    if isinstance(error, image_files.ImageFileError | estimate_file.FileError):
        assert words
        return
    assert any(name in words for name in named), f"names no argument: {error!r}"
    # A RuntimeWarning and its like, made an error by pytest, is no ValueError; what
    # NumPy or torch itself complains of was not checked at the door.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    where = trace.tb_frame.f_globals.get("__name__", "")
    assert where.startswith("noisyflow"), f"raised in {where}: {error!r}"


def check_sound(entry: Entry, arguments: Arguments, same: str, rng: Rng) -> None:
    """A sound call is accepted, obeys its laws, and is one whatever the strides."""
    first = called(entry, copy.deepcopy(arguments))
    check_finite(first, entry.may_be_infinite)
    if entry.laws is not None:
        entry.laws(arguments, first)
    other = {
        name: hostile_values.SAME_ARRAYS[same](value, rng)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
        else copy.deepcopy(value)
        for name, value in arguments.items()
    }
    before = {name: bytes_of(value) for name, value in other.items()}
    second = called(entry, other)
    assert before == {name: bytes_of(value) for name, value in other.items()}
    if not entry.names[0].startswith(("cost", "explain")):  # these measure a time
        # A loss is of float32 throughout, some hundred operations of eps = 1.2e-7 each.
        is_float32 = entry.names[0].startswith("training")
        check_equal(first, second, 1e-5 if is_float32 else 1e-9)


def check_equal(first: Any, second: Any, rtol: float) -> None:
    """Raises AssertionError unless both results are the same but for rounding."""
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        for field in dataclasses.fields(first):
            check_equal(getattr(first, field.name), getattr(second, field.name), rtol)
    elif isinstance(first, tuple | list):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            check_equal(one, other, rtol)
    elif isinstance(first, torch.Tensor | np.ndarray | float):
        np.testing.assert_allclose(plain(first), plain(second), rtol=rtol, atol=1e-12)


def examples(entry: Entry) -> int:
    """Few where a call takes long."""
    return EXAMPLES or 8


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_hostile_arguments_are_refused_by_name_or_obey_the_laws(entry: Entry) -> None:
    @settings(
        max_examples=examples(entry),
        deadline=None,  # a clock of its own, see `deadline`
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(cases(entry))
    def holds(case: tuple[int, dict[str, str], str]) -> None:
        check_case(entry, case)

    holds()


# What the package once did not name, or took for something else: by entry, the
# argument and its value.
FOUND: dict[str, list[tuple[str, str]]] = {
    "operators.mixture_log_density": [("noise_std", "an integer of 1329 bits")],
    "mixture_block_log_sums": [
        ("weights", "opposite ends"),
        ("own", "ragged"),
        ("offsets", "ragged"),
    ],
    "whitening_from_covariances": [
        ("covariances", "opposite ends"),
    ],
    "entropy": [
        ("standard_error", "float 1e+200"),
        ("max_seconds", "float 1.7e+308"),
    ],
    "conditional_entropy": [
        ("max_seconds", "float 1.7e+308"),
    ],
    "mutual_information": [
        ("labels", "ragged"),
        ("labels", "a meta tensor"),
        ("max_seconds", "float 1.7e+308"),
    ],
    "baselines.Binning": [
        ("about", "ragged"),
        ("about", "a meta tensor"),
    ],
    "baselines.KernelDensity": [
        ("about", "ragged"),
        ("about", "a meta tensor"),
        ("num_queries", "an integer of 13288 bits"),
    ],
    "baselines.NearestNeighbor": [
        ("samples", "a 1.7e+308"),
        ("about", "ragged"),
        ("about", "a meta tensor"),
        ("num_queries", "an integer of 13288 bits"),
    ],
    "baselines.PairwiseDistance": [
        ("about", "ragged"),
        ("about", "a meta tensor"),
    ],
    "baselines.sweep": [
        ("bin_widths", "NoneType None"),
        ("about", "ragged"),
        ("about", "a meta tensor"),
    ],
    "theory.chi_square_cube": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.chi_square_gaussian": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.chi_square_sub_gaussian": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.chi_square_uniform": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.label_information_risk": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.monte_carlo_rmse": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.monte_carlo_rmse_bounded": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.monte_carlo_rmse_second_moment": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.mutual_information_risk": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.plug_in_bias_lower_bound": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.plug_in_risk_bounded": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.plug_in_risk_sub_gaussian": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.plug_in_samples_necessary": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.total_variation_bound": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.wasserstein_bound": [
        ("dim", "an integer of 13288 bits"),
    ],
    "theory.plan": [
        ("dim", "an integer of 13288 bits"),
    ],
    "importance.NoisyLayers": [
        ("weight", "opposite ends"),
    ],
    "importance.path_log_densities": [
        ("own", "ragged"),
        ("groups", "0-d"),
        ("groups", "ragged"),
        ("num_proposals", "an integer of 13288 bits"),
    ],
    "importance.replica_log_densities": [
        ("own", "texts"),
        ("num_draws", "an integer of 201 bits"),
    ],
    "chain.NoisyChain": [
        ("noise_std", "ndarray array(0.5)"),
    ],
    "chain.chain_information": [
        ("inputs", "transposed"),
        ("inputs", "a meta tensor"),
        ("labels", "ragged"),
        ("labels", "a meta tensor"),
    ],
    "nn.NoisyMLP": [
        ("num_draws", "an integer of 13288 bits"),
    ],
    "nn.noise_state": [
        ("network", "NoneType None"),
        ("states", "NoneType None"),
    ],
    "nn.orthonormality_step": [
        ("layers", "NoneType None"),
        ("layers", "str 'x'"),
        ("rate", "float 1e+200"),
    ],
    "tracking.InformationTracker": [
        ("inputs", "a meta tensor"),
        ("labels", "ragged"),
        ("labels", "a meta tensor"),
        ("num_draws", "an integer of 13288 bits"),
        ("standard_error", "float 1e+200"),
    ],
    "training.Trainer": [
        ("inputs", "complex"),
        ("inputs", "a tensor with gradients"),
        ("inputs", "a sparse tensor"),
        ("labels", "unsigned"),
        ("learning_rate", "Fraction Fraction(1, 3)"),
        ("batch_size", "an integer of 13288 bits"),
        ("weight_decay", "Fraction Fraction(1, 3)"),
        ("device", "str ''"),
    ],
    "training.evaluate": [
        ("inputs", "a sparse tensor"),
        ("labels", "unsigned"),
    ],
    "training.set_parameters": [
        ("network", "NoneType None"),
        ("parameters", "opposite ends"),
    ],
    "datasets.ImageDataset": [
        ("shape", "NoneType None"),
    ],
    "datasets.spiral": [
        ("num_classes", "an integer of 13288 bits"),
        ("num_per_class", "an integer of 13288 bits"),
        ("jitter", "float 1.7e+308"),
        ("jitter", "Fraction Fraction(1, 3)"),
    ],
    "datasets.check_learnable": [
        ("train", "NoneType None"),
        ("train", "ndarray array([0., 0., 0.])"),
        ("test", "NoneType None"),
        ("num_train", "str '3'"),
    ],
    "datasets.from_torch": [
        ("image", "a nan"),
        ("image", "a 1.7e+308"),
        ("image", "ragged"),
        ("label", "Tensor tensor([3, 4])"),
    ],
    "datasets.mnist": [
        ("folder", "NoneType None"),
    ],
    "image_files.read_idx": [
        ("path", "NoneType None"),
        ("max_bytes", "str '3'"),
    ],
    "image_files.read_images": [
        ("images", "NoneType None"),
        ("labels", "NoneType None"),
    ],
    "image_files.read_mnist": [
        ("folder", "NoneType None"),
    ],
    "estimate_file.estimate_file": [
        ("path", "NoneType None"),
        ("population", "bool np.True_"),
        ("standard_error", "float 1e+200"),
        ("standard_error", "Fraction Fraction(1, 3)"),
        ("max_seconds", "float 1.7e+308"),
        ("max_seconds", "Fraction Fraction(1, 3)"),
        ("max_pairs", "uint64 np.uint64(1844674407"),
        ("seed", "int8 np.int8(3)"),
    ],
    "representations.class_distances": [
        ("labels", "ragged"),
        ("labels", "a meta tensor"),
    ],
    "representations.effective_clusters": [
        ("standard_error", "float 1e+200"),
        ("max_seconds", "float 1.7e+308"),
    ],
}


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [(name, *pair) for name, pairs in FOUND.items() for pair in pairs],
)
def test_what_was_found_stays_mended(name: str, argument: str, value: str) -> None:
    entries = [e for e in ENTRIES if str(e) == name and argument in e.kinds]
    assert entries
    for entry in entries:
        check_case(entry, (0, {argument: value}, ""))


@pytest.mark.parametrize("same", hostile_values.SAME_ARRAYS)
@pytest.mark.parametrize("name", ["chain.chain_information", "training.Trainer"])
def test_any_strides_will_do(name: str, same: str) -> None:
    for entry in ENTRIES:
        if str(entry) == name:
            check_case(entry, (0, {}, same))


# Arguments without hostile values, by function.
LEFT_OUT = {
    "mixture_block_log_sums": {"outer_offsets", "include_rest"},
    "posterior_moments": {"in_noise_units"},
    "explain": {"max_lost_mass"},
    "predict_pair_seconds": {"dtype"},
    "predict_seconds": {"weights", "max_lost_mass"},
    "plan": {"diameter", "sub_gaussian", "num_atoms"},  # in place of half_width
    "chain_information": {"given_layer"},
    "noise_entropy": {"d", "noise_std"},  # checked by its callers
    "duration": {"seconds"},  # of a clock
}


def test_every_argument_has_a_kind() -> None:
    """One that is added to a function needs a kind, or a place in `LEFT_OUT`."""
    num_functions = 0
    for entry in ENTRIES:
        name = entry.names[0].rpartition(".")[2]
        is_direct = inspect.isfunction(entry.call) and entry.call.__name__ == name
        if is_direct and entry.call.__module__.startswith("noisyflow"):
            names = set(inspect.signature(entry.call).parameters)
            together = (set(e.kinds) for e in ENTRIES if e.names[0] == entry.names[0])
            kinds = set().union(*together)
            assert names - LEFT_OUT.get(name, set()) <= kinds, name
            num_functions += 1
    assert num_functions > 40


@settings(
    max_examples=EXAMPLES or 10, deadline=None, derandomize=not EXAMPLES, database=None
)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_mixture_does_not_care_for_order_place_or_scale(
    seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    given_here = of_mixture(rng)
    x, y, w = (given_here[name] for name in ("points", "centers", "weights"))
    noise_std, (n, d) = given_here["noise_std"], y.shape
    direct = noisyflow.mixture_log_density(x, y, noise_std, weights=w)
    order = rng.permutation(n)
    permuted = noisyflow.mixture_log_density(x, y[order], noise_std, weights=w[order])
    close(permuted, direct)
    # A shift by up to 1 rounds differences by 2^-52 and so log-densities by that times
    # their distance in noise, here at most 10 / noise_std^2 per coordinate.
    rounding = 2.0**-50 * 10 / noise_std**2 * d
    shift = rng.random(d)
    moved = noisyflow.mixture_log_density(x + shift, y + shift, noise_std, weights=w)
    np.testing.assert_allclose(moved, direct, rtol=1e-11, atol=1e-11 + rounding)
    scaled = noisyflow.mixture_log_density(
        scale * x, scale * y, scale * noise_std, weights=w
    )
    np.testing.assert_allclose(
        scaled + d * math.log(scale), direct, rtol=1e-11, atol=1e-11 + rounding
    )
    bounds_here = noisyflow.entropy_bounds(y, noise_std)
    shuffled = noisyflow.entropy_bounds(y[order] + shift, noise_std)
    np.testing.assert_allclose(shuffled, bounds_here, rtol=1e-9, atol=1e-9)


@settings(
    max_examples=EXAMPLES or 3, deadline=None, derandomize=not EXAMPLES, database=None
)
@given(st.integers(0, 2**32 - 1))
def test_an_information_is_one_whatever_the_order_place_and_scale(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(5, 6, 2))
    order, shift = rng.permutation(5), rng.random(2)

    def information(values: np.ndarray, noise_std: float) -> Estimate:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndersampledWarning)
            warnings.simplefilter("ignore", TargetWarning)
            return noisyflow.mutual_information(
                values, noise_std, standard_error=0.05, max_pairs=50_000, seed=seed
            )

    first = information(samples, 0.5)
    for other in (
        information(samples[order] + shift, 0.5),
        information(1e3 * samples, 500.0),
    ):
        # The samples are the same: the errors of the queries alone, seven of them.
        error = math.hypot(first.monte_carlo_error, other.monte_carlo_error)
        assert abs(first.value - other.value) <= 7 * error + 1e-9
