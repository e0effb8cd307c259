"""The experiments that `noisyflow run` knows, one module each.

A module holds a frozen `Config`, `configure()` to build it, `run()` that does the work
in an output folder, `plot()` that makes the figures and `claims()` that checks what was
measured against what the papers state.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType

# Name of each module in this folder, and what it does in one line.
EXPERIMENTS = {
    "szt": "information in every layer of a noisy tanh network while it learns 4096 "
    "binary patterns",
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
    if name not in EXPERIMENTS:
        raise ValueError(
            f"unknown experiment {name!r}; known: {', '.join(EXPERIMENTS)}"
        )
    for needed in ("torch", "matplotlib", "safetensors"):
        if importlib.util.find_spec(needed) is None:
            raise ModuleNotFoundError(f"no module named {needed!r}", name=needed)
    return importlib.import_module(f"noisyflow.experiments.{name}")
