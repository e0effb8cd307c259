"""The compiled border, readable. Shapes as in `_reference.py`; float32 or float64."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Indices = NDArray[np.int64]

def log_density(
    points: Floats,
    centers: Floats,
    noise_std: float,
    weights: Floats | None,
    num_threads: int,
) -> Floats: ...
def block_log_sums(
    points: Floats,
    centers: Floats,
    noise_std: float,
    own: Indices,
    offsets: Indices,
    outer_offsets: Indices,
    weights: Floats | None,
    include_rest: bool,
    num_threads: int,
) -> tuple[Floats, Floats, Floats, Floats]: ...
def first_nonfinite(array: Floats) -> int: ...
def available_targets() -> list[str]: ...
def active_target() -> str: ...
def force_target(name: str | None) -> None: ...
