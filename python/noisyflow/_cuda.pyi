"""The compiled border to CUDA, readable.

Addresses are `data_ptr()`, strides count elements.
"""

Address = int

def compiled_architectures() -> list[str]: ...  # "sm_90": code, "compute_90": PTX
def toolkit_version() -> int: ...
def driver_version() -> int: ...  # 0: no driver
def device_count() -> int: ...
def device_info(index: int) -> dict[str, str | int]: ...
def workspace_bytes(kind: str, itemsize: int, m: int, n: int, d: int) -> int: ...
def log_density(
    itemsize: int,
    points: Address,
    point_stride: int,
    m: int,
    centers: Address,
    center_stride: int,
    n: int,
    d: int,
    noise_std: float,
    weight_shift: Address,
    out: Address,
    path: int,
    workspace: Address,
    workspace_bytes: int,
    stream: Address,
) -> None: ...
def tensor_error_bound(d: int, largest_norm_squared_over_2s2: float) -> float: ...
def skipping_log_density(
    itemsize: int,
    points: Address,
    point_stride: int,
    m: int,
    centers: Address,
    center_stride: int,
    n: int,
    d: int,
    noise_std: float,
    weight_shift: Address,
    max_lost_mass: float,
    out: Address,
    workspace: Address,
    workspace_bytes: int,
    stream: Address,
) -> None: ...
def block_log_sums(
    itemsize: int,
    points: Address,
    point_stride: int,
    m: int,
    centers: Address,
    center_stride: int,
    n: int,
    d: int,
    noise_std: float,
    weight_shift: Address,
    own: Address,
    membership: Address,
    include_rest: bool,
    out_own: Address,
    out_inner: Address,
    out_outer: Address,
    out_rest: Address,
    workspace: Address,
    workspace_bytes: int,
    stream: Address,
) -> None: ...
def gradients(
    itemsize: int,
    points: Address,
    point_stride: int,
    m: int,
    centers: Address,
    center_stride: int,
    n: int,
    d: int,
    noise_std: float,
    weight_shift: Address,
    log_density: Address,
    grad_output: Address,
    grad_points: Address,
    grad_centers: Address,
    weight_mass: Address,
    noise_terms: Address,
    workspace: Address,
    workspace_bytes: int,
    stream: Address,
) -> None: ...
