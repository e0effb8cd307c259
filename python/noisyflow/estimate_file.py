"""Estimates from a file of samples: `noisyflow estimate`, and the record it writes.

An array (n, d) asks for the entropy of S + Z, an array (inputs, draws, d) for the
information that T = S + Z carries of the input. Files are memory-mapped and never
unpickled; a large one of shape (n, d) is read in blocks. Of several ranks
(`noisyflow._ranks`) each reads rows of its own, and evaluates pairs with these.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.stats  # noqa: F401  the queries need it: an import must not be interrupted
from numpy.typing import NDArray

from noisyflow import (
    __version__,
    _arrays,
    _checks,
    _core,
    _ranks,
    _same_command,
    information,
    runtime,
)
from noisyflow._device import memory_hint
from noisyflow._files import as_path, open_regular
from noisyflow._streamed import is_streamed
from noisyflow.bounds import EntropyBounds, entropy_bounds, noise_entropy
from noisyflow.cost import predict_pair_seconds
from noisyflow.estimate import Estimate

# Bounds look at every pair: up to here that is a second at most.
_MOST_BOUNDED_CENTERS = 10_000
_CONFIDENCE = 0.95
_UPLOADED_BYTES = 2**26
_LOGGED_QUERIES = 10_000  # about a first round
_WHY = {
    "target": "the target is met",
    "samples": "no number of queries would reach the target: more samples are needed",
    "pairs": "the limit of pairs is reached",
    "seconds": "the time is over",
    "exact": "there was nothing to estimate",
}


_logger = logging.getLogger("noisyflow")


class FileError(Exception):
    """A file that cannot be estimated from, and why, in one line."""


class Quantity(NamedTuple):
    """One estimate, with what can be said of its quantity without random numbers."""

    estimate: Estimate
    is_biased: bool = True  # by the number of samples: a bound for it is known
    bounds: EntropyBounds | None = None  # of the entropy of the samples' mixture
    follows: str = ""  # from which other one: same queries, same pairs
    floor: float = -math.inf  # what it cannot be below, whatever the samples


@dataclass(frozen=True)
class Report:
    """What `noisyflow estimate` found out.

    Attributes
    ----------
    settings : dict
        The file, its shape and dtype, and every option.
    quantities : dict of Quantity
        By name: "h(T)", "I(S;T)", "h(T|X)", "I(X;T)", "I(Y;T)".
    warnings : list of str
        What was warned of while they were estimated, each once.
    """

    settings: dict[str, Any]
    quantities: dict[str, Quantity]
    warnings: list[str]

    def __str__(self) -> str:
        return "\n".join(
            line
            for name, quantity in self.quantities.items()
            for line in _lines(name, quantity)
        )

    def to_json(self) -> str:
        """One line of strict JSON; a number that is not finite becomes null."""
        record = {
            **self.settings,
            "versions": {"noisyflow": __version__, "numpy": np.__version__},
            "cpu_target": _core.active_target(),
            "num_threads": runtime.num_threads(),
            "estimates": {
                name: _record_of(quantity) for name, quantity in self.quantities.items()
            },
            "warnings": self.warnings,
        }
        return json.dumps(_without_nonfinite(record), allow_nan=False)


def estimate_file(
    path: Path,
    noise_std: float,
    *,
    standard_error: float | None = None,
    max_seconds: float | None = None,
    max_pairs: int | None = None,
    population: bool = False,
    inputs: Literal["fixed", "sampled"] | None = None,
    labels_path: Path | None = None,
    conditional: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    """Entropy, or information of the input, from the samples in a .npy file.

    Parameters
    ----------
    path : Path
        Array (n, d) of samples of S, or (inputs, draws, d) of samples of S given each
        input; float32 or float64.
    noise_std, standard_error, max_seconds, max_pairs
        As in `entropy`. Each quantity has budgets of its own.
    population : bool
        Of (n, d): S takes these values and no others.
    inputs : {"fixed", "sampled"}, optional
        Of (inputs, draws, d): as in `mutual_information`; "fixed" by default.
    labels_path : Path, optional
        Of (inputs, draws, d): array (inputs,) of labels Y; adds I(Y; T).
    conditional : bool
        Of (inputs, draws, d): adds h(T | X), and h(T) = I(X; T) + h(T | X).
    seed : int
        As in `entropy`.
    device : str
        Where pairs are evaluated: cpu, cuda or cuda:N. On a GPU the file is held there
        whole, or this rank's rows of it.

    Returns
    -------
    Report
        For (n, d): h(T) and I(S; T) = h(T) - h(Z), of the same queries.

    Raises
    ------
    FileError, OSError
        If a file cannot be read or is not such an array.
    ValueError, TypeError
        If an option has the wrong range or does not fit the file.

    Notes
    -----
    Memory: (n, d) below 1 GiB, whatever the file; (inputs, draws, d) a few times the
    file. Of several ranks each holds a few times its rows, and the report is the same
    on all but for warnings, which the first has; `noisyflow.distributed` says what else
    there is.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> far_apart = np.repeat([[-1.0], [1.0]], 500, axis=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "layer.npy"
    ...     np.save(path, far_apart)
    ...     report = estimate_file(path, 0.1, population=True)
    >>> for name, quantity in report.quantities.items():
    ...     print(name, round(quantity.estimate.value, 4))
    h(T) -0.1905
    I(S;T) 0.6931
    """
    path = as_path("path", path)
    if labels_path is not None:
        labels_path = as_path("labels_path", labels_path)
    population = _arrays.check_flag("population", population)
    samples = _loaded(path, "samples")
    _check_dtype(path, samples)
    standard_error, max_seconds, max_pairs = _checked_budgets(
        standard_error, max_seconds, max_pairs
    )
    with _in_words_of_the_command(path):
        seed = _checks.as_seed(seed)
    if device != "cpu":
        runtime.checked_device(device)
    if samples.ndim not in (2, 3):
        raise FileError(
            f"{path} must hold an array (n, d) or (inputs, draws, d), got shape "
            f"{samples.shape}{_reshaped(samples)}"
        )
    if samples.size == 0:
        raise FileError(f"{path} must not be empty, got shape {samples.shape}")
    if samples.ndim == 3 and len(samples) == 1 and inputs == "sampled":
        raise FileError(
            f"{path} must hold at least 2 inputs with --inputs sampled, got shape "
            f"{samples.shape}; for h(T) and I(S;T) of these samples save shape "
            f"{samples.shape[1:]}: array[0]"
        )
    if samples.ndim == 2 and len(samples) == 1 and not population:
        raise FileError(
            f"{path} must hold at least 2 samples, got shape {samples.shape}; a single "
            "sample is a distribution only with --population"
        )
    (shape, dtype) = (samples.shape, samples.dtype)
    ranks = _ranks.current()
    if ranks.size > 1:
        ranks.check_same(_same_command.of_array("the samples", samples))
    if ranks.is_first and _logger.isEnabledFor(logging.INFO) and device == "cpu":
        _log_cost(path, samples)
    whole_file = samples
    own = _share_of(shape[0], ranks)
    samples = samples[own]
    if device != "cpu":
        samples = _on_device(samples, device)
    elif ranks.size > 1 or not is_streamed(samples):
        samples = np.array(samples, order="C")
        _check_finite(path, samples, own.start)
    options = {
        "standard_error": standard_error,
        "max_seconds": max_seconds,
        "max_pairs": max_pairs,
        "seed": seed,
    }
    with (
        warnings.catch_warnings(record=True) as caught,
        _in_words_of_the_command(path),
    ):
        warnings.simplefilter("always")
        if samples.ndim == 2:
            _refuse_options_of_inputs(inputs, labels_path, conditional)
            bounded = samples if ranks.size == 1 else whole_file
            quantities = _of_samples(samples, bounded, noise_std, population, options)
        else:
            if population:
                raise ValueError(
                    "--population is for an array (n, d); for (inputs, draws, d) it is "
                    "--inputs fixed, the default"
                )
            labels = None
            if labels_path is not None:
                labels = _labels(labels_path)
                if ranks.size > 1:
                    ranks.check_same(_same_command.of_array("the labels", labels))
                _arrays.group_by_label(labels, shape[0])  # which checks them
                labels = labels[own]
            quantities = _of_inputs(
                samples, noise_std, inputs or "fixed", labels, conditional, options
            )
    settings = {
        "file": str(path),
        "shape": list(shape),
        "dtype": str(dtype),
        "noise_std": float(noise_std),
        **options,
        "population": population,
        "inputs": inputs or ("fixed" if samples.ndim == 3 else None),
        "labels": None if labels_path is None else str(labels_path),
        "device": runtime.device_name(device),
    }
    if ranks.size > 1:
        settings["num_ranks"] = ranks.size
    said = [_as_options(str(warning.message)) for warning in caught]
    if samples.ndim == 3 and shape[0] == 1:
        said.insert(
            0,
            f"{path} holds one input, shape {shape}, so that I(X;T) = 0 whatever its "
            f"draws are; for h(T) and I(S;T) of these samples save shape {shape[1:]}: "
            "array[0]",
        )
    return Report(settings, quantities, list(dict.fromkeys(said)))


def _share_of(num_rows: int, ranks: _ranks.Ranks) -> slice:
    """The rows of a file that are this rank's."""
    (start, stop) = (
        num_rows * number // ranks.size for number in (ranks.rank, ranks.rank + 1)
    )
    return slice(start, stop)


def _estimators() -> ModuleType:
    """Where entropy and the others are: for one process, or for all ranks."""
    if _ranks.current().size == 1:
        return information
    from noisyflow import distributed

    return distributed


def _on_device(samples: NDArray[Any], device: str) -> Any:
    """The file's array on a GPU, by way of a small part of it at a time."""
    import torch

    flat = samples.reshape(-1, samples.shape[-1])
    dtype = getattr(torch, str(samples.dtype))
    rows = max(1, _UPLOADED_BYTES // (flat.shape[1] * flat.itemsize))
    with memory_hint("fewer samples need less, and --device cpu reads from the file"):
        whole = torch.empty(flat.shape, dtype=dtype, device=device)
        for start in range(0, len(flat), rows):
            part = np.array(flat[start : start + rows])
            whole[start : start + rows] = torch.from_numpy(part)
    return whole.reshape(samples.shape)


def _log_cost(path: Path, samples: NDArray[Any]) -> None:
    """What the file is, and what queries of it will take at most."""
    (n, d) = (math.prod(samples.shape[:-1]), samples.shape[-1])
    seconds = predict_pair_seconds(_LOGGED_QUERIES, n, d, dtype=samples.dtype)
    _logger.info(
        "%s: %s, shape %s; %d queries take %.2g s where all pairs are evaluated",
        *(path, samples.dtype, samples.shape, _LOGGED_QUERIES, seconds),
    )


def _of_samples(
    samples: Any,
    bounded: Any,
    noise_std: float,
    population: bool,
    options: dict[str, Any],
) -> dict[str, Quantity]:
    """h(T), and less the noise's own I(S; T); bounds from `bounded`, all samples."""
    whole = _estimators().entropy(samples, noise_std, population=population, **options)
    (n, d) = bounded.shape
    bounds = None
    if n <= _MOST_BOUNDED_CENTERS and _ranks.current().is_first:
        bounds = entropy_bounds(bounded, noise_std)
    own = noise_entropy(d, _arrays.check_noise_std(noise_std))
    return {
        "h(T)": Quantity(whole, not population, bounds),
        "I(S;T)": Quantity(
            _less(whole, own), not population, follows="h(T)", floor=0.0
        ),
    }


def _of_inputs(
    samples: Any,
    noise_std: float,
    inputs: Literal["fixed", "sampled"],
    labels: Any,
    conditional: bool,
    options: dict[str, Any],
) -> dict[str, Quantity]:
    """I(X; T), and what else was asked for."""
    if is_streamed(samples):
        samples = np.array(samples, order="C")
    estimators = _estimators()
    asked: dict[str, Callable[[], Estimate]] = {
        "I(X;T)": lambda: estimators.mutual_information(
            samples, noise_std, inputs=inputs, **options
        )
    }
    if labels is not None:
        asked["I(Y;T)"] = lambda: estimators.mutual_information(
            samples, noise_std, inputs=inputs, labels=labels, **options
        )
    if conditional:
        asked["h(T|X)"] = lambda: estimators.conditional_entropy(
            samples, noise_std, **options
        )
    found = {name: call() for name, call in asked.items()}
    quantities = {
        name: Quantity(estimate, floor=0.0 if name.startswith("I(") else -math.inf)
        for name, estimate in found.items()
    }
    if conditional:
        whole = _sum(found["I(X;T)"], found["h(T|X)"])
        quantities["h(T)"] = Quantity(whole, follows="I(X;T) + h(T|X)")
    return quantities


def _sum(information: Estimate, conditional: Estimate) -> Estimate:
    """h(T) by its parts: the plug-in of all draws, and the sum of both upper ends.

    `entropy` of all draws would leave out single draws, and the others of that input
    would still tell of it. What the plug-ins of both parts have in common cancels.
    """
    value = information.value + conditional.value
    return Estimate(
        value=value,
        standard_error=information.standard_error + conditional.standard_error,
        lower=value,
        upper=information.upper + conditional.upper,
        isolated=information.isolated,
        num_pairs=information.num_pairs + conditional.num_pairs,
        monte_carlo_error=math.hypot(
            information.monte_carlo_error, conditional.monte_carlo_error
        ),
        saturation=information.saturation,
    )


def _less(estimate: Estimate, constant: float) -> Estimate:
    """The estimate of an information: that of an entropy less the noise's own."""
    ends = {
        name: max(getattr(estimate, name) - constant, 0.0)
        for name in ("value", "lower", "upper")
    }
    return Estimate(**{**asdict(estimate), **ends})


# -- files --------------------------------------------------------------------


def _loaded(path: Path, what: str) -> NDArray[Any]:
    """The array of a .npy file, memory-mapped."""
    if path.is_dir():
        raise FileError(f"{path} is a folder, not a .npy file")
    with open_regular(path) as file:
        start = file.read(8)
    if start.startswith(b"PK"):
        raise FileError(
            f"{path} is a .npz archive; save the array by itself: "
            'np.save("file.npy", archive["name"])'
        )
    if not start.startswith(np.lib.format.MAGIC_PREFIX):
        raise FileError(f"{path} is not a .npy file; write one with numpy.save")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd ways to write a header
            return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except OSError:
        raise
    except Exception as error:  # a header is parsed as Python, by several modules
        if "Python object" in str(error) or "pickle" in str(error):
            raise FileError(
                f"{path} holds Python objects, which are never unpickled; save the "
                f"{what} as a numerical array"
            ) from None
        if "mmap" in str(error) and "empty" in str(error):
            raise FileError(f"{path} must not be empty") from None
        raise FileError(f"{path} is damaged or cut short: {error}") from None


def _check_dtype(path: Path, samples: NDArray[Any]) -> None:
    if samples.dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        return
    remedy = "save the samples as numbers"
    if samples.dtype.kind in "fiub":
        wide = samples.dtype.itemsize > 2 and samples.dtype.kind != "b"
        remedy = (
            "convert it: numpy.save(file, array.astype"
            f'("{"float64" if wide else "float32"}"))'
        )
    elif samples.dtype.kind == "c":
        remedy = "save real and imaginary parts as two coordinates"
    raise FileError(f"{path} must be float32 or float64, got {samples.dtype}; {remedy}")


def _check_finite(path: Path, samples: NDArray[Any], first_row: int) -> None:
    """Raises FileError at the first NaN or infinity, with its index in the file."""
    index = _core.first_nonfinite(samples.reshape(-1, samples.shape[-1]))
    if index >= 0:
        where = [int(i) for i in np.unravel_index(index, samples.shape)]
        value = samples[tuple(where)]
        where[0] += first_row
        raise FileError(f"{path} must be finite, got {value} at {where}")


def _labels(path: Path) -> NDArray[Any]:
    """Labels of any kind; their kind and number are checked with the inputs."""
    labels = _loaded(path, "labels")
    if labels.ndim != 1:
        raise FileError(
            f"{path} must hold one label per input, shape (inputs,), got shape "
            f"{labels.shape}"
        )
    return np.array(labels)


def _reshaped(samples: NDArray[Any]) -> str:
    """How an array with one axis too few, or too many, may be meant."""
    if samples.ndim == 1:
        return "; n samples in one dimension have shape (n, 1): array.reshape(-1, 1)"
    if samples.ndim == 4:
        return "; flatten the features of each sample into one axis"
    return ""


# -- options ------------------------------------------------------------------


def _checked_budgets(
    standard_error: float | None, max_seconds: float | None, max_pairs: int | None
) -> tuple[float | None, float | None, int | None]:
    """By the names that they have on the command line."""
    if standard_error is not None:
        standard_error = _checks.as_positive("--error", standard_error)
    if max_seconds is not None:
        max_seconds = _checks.as_positive("--max-seconds", max_seconds)
    if max_pairs is not None:
        max_pairs = _checks.as_int("--max-pairs", max_pairs, at_least=1)
    return standard_error, max_seconds, max_pairs


def _refuse_options_of_inputs(
    inputs: str | None, labels_path: Path | None, conditional: bool
) -> None:
    for name, is_given in (
        ("--inputs", inputs is not None),
        ("--labels", labels_path is not None),
        ("--conditional", conditional),
    ):
        if is_given:
            raise ValueError(
                f"{name} needs an array (inputs, draws, d), got one of (n, d); n "
                "inputs with one draw each have shape (n, 1, d)"
            )


# What the arguments of the estimators are called on the command line. A formula keeps
# its noise_std^2.
_OPTIONS = {
    r"\bcenters(?= are all| as large)": "samples",
    r"\bpass population=True": "pass --population",
    r"\bpopulation=True": "--population",
    r"\bnoise_std = ": "--noise-std ",
    r"\bnoise_std\b(?!\^)": "--noise-std",
    r"\bmax_pairs\b": "--max-pairs",
    r"\bmax_seconds\b": "--max-seconds",
    r"^(labels|seed)\b": r"--\1",
}


def _as_options(message: str) -> str:
    """What an estimator says, with the names that its arguments have here."""
    for name, option in _OPTIONS.items():
        message = re.sub(name, option, message)
    return message


@contextlib.contextmanager
def _in_words_of_the_command(path: Path) -> Iterator[None]:
    """What an estimator says of its samples and arguments, of the file and options."""
    try:
        yield
    except (ValueError, TypeError) as error:
        words = _as_options(str(error))
        words = re.sub(r"^(centers|samples)\b", lambda _: str(path), words)
        raise type(error)(words) from error


# -- what is printed ----------------------------------------------------------


def _lines(name: str, quantity: Quantity) -> list[str]:
    estimate = quantity.estimate
    lines = [f"{name} = {estimate}"]

    def line(what: str, text: str) -> None:
        lines.append(f"  {what:<22}{text}")

    bound = _confidence_bound(quantity)
    if bound is not None:
        line("at least", f"{bound:.4f} nats, with 95 % confidence, rigorous")
    if estimate.lower < estimate.upper < math.inf:
        line("middle of the bracket", f"{estimate.midpoint:.4f} nats")
    if quantity.follows:
        line("follows from", quantity.follows)
        return lines
    if quantity.bounds is not None:
        (low, high) = quantity.bounds
        line("bounds", f"[{low:.4f}, {high:.4f}] of the plug-in, by pairwise distances")
    line("saturation", f"{estimate.saturation:.3g}")
    line("error of the queries", f"{estimate.monte_carlo_error:.2g} nats")
    line("pairs", f"{estimate.num_pairs:,}")
    line("stopped", _WHY[estimate.stopped_by])
    return lines


def _confidence_bound(quantity: Quantity) -> float | None:
    """None where no such bound is known, or none is needed."""
    bound = quantity.estimate.lower_confidence_bound(_CONFIDENCE)
    if not quantity.is_biased or not math.isfinite(bound):
        return None
    return max(bound, quantity.floor)


def _record_of(quantity: Quantity) -> dict[str, Any]:
    estimate = quantity.estimate
    record = {f.name: getattr(estimate, f.name) for f in fields(estimate)}
    record["midpoint"] = estimate.midpoint
    record["lower_confidence_bound_95"] = _confidence_bound(quantity)
    record["entropy_bounds"] = quantity.bounds
    return record


def _without_nonfinite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN."""
    if isinstance(value, dict):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nonfinite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
