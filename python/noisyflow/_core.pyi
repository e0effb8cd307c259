"""The compiled border, readable. Shapes as in `_reference.py`; float32 or float64."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Indices = NDArray[np.int64]
Counts = tuple[int, int, int, int]

def log_density(
    points: Floats,
    centers: Floats,
    noise_std: float,
    weights: Floats | None,
    num_threads: int,
) -> Floats: ...

class _Prepared:
    def __init__(
        self,
        centers: Floats,
        noise_std: float,
        weights: Floats | None,
        max_lost_mass: float,
        has_cells: bool,
        num_threads: int,
    ) -> None: ...
    def log_density(
        self, points: Floats, path: int, num_threads: int, own: Indices | None = None
    ) -> tuple[Floats | None, int, int, Counts, float, Counts]: ...
    num_leaves: int
    num_cells: int
    num_bytes: int

class Prepared32(_Prepared): ...
class Prepared64(_Prepared): ...

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
def covariance_log_density(
    points: Floats,
    centers: Floats,
    whitening: Floats,
    weights: Floats | None,
    num_threads: int,
) -> Floats: ...
def posterior_moments(
    points: Floats,
    centers: Floats,
    noise_std: float,
    weights: Floats | None,
    unit: float,
    num_threads: int,
) -> tuple[Floats, Floats, Floats]: ...
def log_density_gradients(
    points: Floats,
    centers: Floats,
    noise_std: float,
    weights: Floats | None,
    log_density: Floats,
    grad_output: Floats,
    want_points: bool,
    want_centers: bool,
    want_weights: bool,
    want_noise_std: bool,
    max_lost_mass: float,
    num_threads: int,
) -> tuple[Floats | None, Floats | None, Floats | None, float | None]: ...
def gradient_pairs(
    points: Floats,
    centers: Floats,
    noise_std: float,
    weights: Floats | None,
    log_density: Floats,
    grad_output: Floats,
    want_points: bool,
    want_centers: bool,
    want_weights: bool,
    want_noise_std: bool,
    max_lost_mass: float,
    num_threads: int,
) -> int: ...
def kd_order(centers: Floats, leaf: int, num_threads: int) -> Indices: ...
def first_unfit_factor(whitening: Floats) -> int: ...
def sampled_squares(
    points: Floats, centers: Floats, num_x: int, num_y: int
) -> Floats: ...
def first_nonfinite(array: Floats) -> int: ...
def path_importance(
    weights: list[NDArray[np.float64]],
    biases: list[NDArray[np.float64]],
    activation: int,
    noise_std: float,
    first: NDArray[np.float64],
    points: NDArray[np.float64],
    own: Indices,
    path: NDArray[np.float64],
    groups: Indices,
    uniforms: NDArray[np.float64],
    normals: NDArray[np.float64],
    num_threads: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]: ...
def path_replicas(
    weights: list[NDArray[np.float64]],
    biases: list[NDArray[np.float64]],
    activation: int,
    noise_std: float,
    first: NDArray[np.float64],
    points: NDArray[np.float64],
    own: Indices,
    path: NDArray[np.float64],
    normals: NDArray[np.float64],
    offsets: Indices,
    num_draws: int,
    num_threads: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]: ...
def build_info() -> dict[str, str]: ...
def available_targets() -> list[str]: ...
def active_target() -> str: ...
def force_target(name: str | None) -> None: ...
