"""The experiments that `noisyflow run` knows, one module each.

A module holds a frozen `Config`, `configure()` to build it, `run()` that does the work
in an output folder, `plot()` that makes the figures and `claims()` that checks what was
measured against what the papers state.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType

# Every experiment by name, and what it does in one line. The module of `two-neurons` is
# `two_neurons`.
EXPERIMENTS = {
    "szt": "information in every layer of a noisy tanh network while it learns 4096 "
    "binary patterns",
    "szt-orthonormal": "the same with weights kept near orthonormal: less clustering, "
    "less compression",
    "szt-linear": "the same without any nonlinearity: compression without saturation",
    "szt-relu": "the same with ReLUs, with and without a penalty on the weights",
    "szt-deterministic": "the same without noise: binned entropy is a matter of the "
    "bins",
    "single-neuron": "one neuron merges three of its four symbols",
    "two-neurons": "two leaky ReLUs compress without saturation",
    "spiral": "entropy of a noisy network's third layer against the number of samples",
    "reed-muller": "information of codes over the Gaussian channel, against exact "
    "values",
    "mnist": "digits: noisy, deterministic and dropout networks beside one another",
    "estimators": "error against the number of samples, beside nearest neighbours and "
    "kernel densities",
    "bottleneck": "accuracy against information of a noisy layer with a penalty on "
    "I(X;T)",
}


@dataclass(frozen=True)
class Claim:
    """A statement that a run can confirm or refute.

    Parameters
    ----------
    statement : str
        What should be seen, with its numbers.
    measured : str
        What was seen.
    holds : bool or None
        None if this run cannot tell, as when it is too short.
    """

    statement: str
    measured: str
    holds: bool | None


def check_name(name: str) -> None:
    """Raises ValueError, with a guess, unless there is an experiment of this name."""
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, 1)
        guess = f", did you mean {near[0]}?" if near else ";"
        raise ValueError(
            f"unknown experiment {name!r}{guess} known: {', '.join(EXPERIMENTS)}"
        )


def load(name: str) -> ModuleType:
    """The module of an experiment, imported now.

    Raises
    ------
    ValueError
        If there is no experiment of this name.
    ModuleNotFoundError
        If what experiments need beside NumPy is not installed; matplotlib, too, is
        missed now rather than after the training.
    """
    check_name(name)
    for needed in ("torch", "matplotlib", "safetensors"):
        if importlib.util.find_spec(needed) is None:
            raise ModuleNotFoundError(f"no module named {needed!r}", name=needed)
    return importlib.import_module(f"noisyflow.experiments.{name.replace('-', '_')}")
