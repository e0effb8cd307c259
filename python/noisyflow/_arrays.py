"""NumPy or torch? Shapes, dtypes, devices: what public functions check at their door.

Arrays come in as NumPy arrays or CPU torch tensors and leave as NumPy views of the same
memory; `same_library` turns results back. Tensors on a GPU are checked in `_device.py`,
which shares the ranges and tolerances here. torch is never imported: a tensor can only
exist if the caller has imported it.
"""

from __future__ import annotations

import math
import numbers
import sys
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from noisyflow import _core

Floats = NDArray[np.floating]
Result = TypeVar("Result")

# Squares of differences, in units of noise_std, must neither overflow nor underflow.
_NOISE_RANGE = {
    np.dtype(np.float32): (1e-15, 1e15),
    np.dtype(np.float64): (1e-140, 1e140),
}
MOST_CENTERS = 2**31 - 2  # the kernels count them in int32
_WEIGHT_SUM_TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-9}
# A softmax divides by a sum in its own dtype. In 16 running sums, as of a vector
# register, of equal terms that all round the same way, it is off by a part of n eps /
# 64: n / 16 additions, each of half an eps of a sum that is half its last on average.
# Those of a million logits in float32 were off by up to a sixteenth of that.
_ACCUMULATED_ROUNDING = 1 / 64


def is_tensor(value: object) -> bool:
    """Whether the value is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def has_tensor(*values: object) -> bool:
    """Whether one of the values is a torch tensor, or a list that holds one."""
    return "torch" in sys.modules and any(
        any(map(is_tensor, value))
        if isinstance(value, list | tuple)
        else is_tensor(value)
        for value in values
    )


def to_numpy(name: str, value: Any) -> NDArray[Any]:
    """A NumPy view of a float32 or float64 array or CPU tensor of any shape."""
    if is_tensor(value):
        array = _tensor_to_numpy(name, value)
    else:
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(
                f"{name} must not be a masked array, whose mask would be ignored; "
                f"pass its valid rows"
            )
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name} must be an array of numbers: {error}") from error
    if array.dtype not in _NOISE_RANGE:
        remedy = ""
        if is_tensor(value):
            remedy = f"; pass {name}.float()"
        elif array.dtype.kind in "biuf":
            remedy = f"; pass {name}.astype(np.float64)"
        raise TypeError(f"{name} must be float32 or float64, got {array.dtype}{remedy}")
    return array


def _tensor_to_numpy(name: str, value: Any) -> NDArray[Any]:
    # Nearly every tensor is one that NumPy can view; what is wrong with others is asked
    # only then, for a question costs as much as a small evaluation.
    try:
        array: NDArray[Any] = value.numpy()
    except (TypeError, RuntimeError):
        pass
    else:
        return array
    if value.device.type != "cpu":
        raise ValueError(
            f"{name} must be on the CPU, got a tensor on {value.device}; "
            f"pass {name}.cpu()"
        )
    refuse_gradients(name, value)
    check_dense_floats(name, value)
    return value.resolve_conj().resolve_neg().numpy()  # type: ignore[no-any-return]


def refuse_gradients(name: str, tensor: Any) -> None:
    """Raises ValueError at a tensor whose gradients would be lost."""
    if tensor.requires_grad:
        raise ValueError(
            f"{name} requires gradients, which this function does not compute; pass "
            f"{name}.detach(). mixture_log_density computes them, and entropy and "
            "mutual_information do"
        )


def check_dense_floats(name: str, tensor: Any) -> None:
    """Raises TypeError unless a tensor is a dense one of float32 or float64."""
    if str(tensor.dtype) not in ("torch.float32", "torch.float64"):
        raise TypeError(
            f"{name} must be float32 or float64, got {tensor.dtype}; pass "
            f"{name}.float()"
        )
    if str(tensor.layout) != "torch.strided":
        raise TypeError(
            f"{name} must be a dense tensor, got layout {tensor.layout}; pass "
            f"{name}.to_dense()"
        )


def check_finite(
    name: str, array: Floats, shape: tuple[int, ...] | None = None
) -> None:
    """Raises ValueError at the first NaN or infinity; (n, d), contiguous rows.

    shape: that of the array as it was given.
    """
    index = _core.first_nonfinite(array)
    if index >= 0:
        row, column = divmod(index, array.shape[1])
        at = [int(i) for i in np.unravel_index(index, shape or array.shape)]
        raise ValueError(f"{name} must be finite, got {array[row, column]} at {at}")


def check_matrix_shape(name: str, array: Any, *, allow_empty: bool = False) -> None:
    """Raises ValueError unless the array or tensor is (n, d) and holds something."""
    shape = tuple(array.shape)
    if len(shape) != 2:
        remedy = f"; pass {name}.reshape(-1, 1)" if len(shape) == 1 else ""
        raise ValueError(f"{name} must have shape (n, d), got shape {shape}{remedy}")
    if shape[1] == 0 or (shape[0] == 0 and not allow_empty):
        raise ValueError(f"{name} must not be empty, got shape {shape}")


def as_matrix(
    name: str,
    value: Any,
    *,
    allow_empty: bool = False,
    most_rows: int | None = None,
    shape: tuple[int, ...] | None = None,
) -> Floats:
    """A finite (n, d) array with contiguous rows, copied only if it must be.

    shape: that of the array as it was given, to name an entry by.
    """
    array = to_numpy(name, value)
    check_matrix_shape(name, array, allow_empty=allow_empty)
    (n, d), (row_stride, stride), itemsize = array.shape, array.strides, array.itemsize
    if most_rows is not None and n > most_rows:
        raise ValueError(
            f"{name} must have at most {most_rows} rows, got {n}; evaluate them in "
            "parts, and add up the densities"
        )
    contiguous_rows = d == 1 or stride == itemsize
    if not contiguous_rows or row_stride % itemsize or not array.flags.aligned:
        array = np.ascontiguousarray(array)
    check_finite(name, array, shape)
    return array


def host_copy(name: str, value: Any) -> Any:
    """A tensor on the CPU and without gradients; anything else as it is."""
    if not is_tensor(value):
        return value
    try:
        return value.detach().cpu()
    except RuntimeError as error:  # one without data
        reason = str(error).splitlines()[0]
        raise TypeError(f"{name} must hold numbers: {reason}") from error


def as_batch(name: str, value: Any) -> NDArray[np.float64]:
    """A finite (m, ...) array as a copy in float64 on the CPU."""
    array = to_numpy(name, host_copy(name, value))
    if array.ndim < 2:
        raise ValueError(f"{name} must have shape (m, ...), got {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}")
    values = np.array(array, np.float64, order="C")
    check_finite(name, values.reshape(len(values), -1), values.shape)
    return values


def check_same_kind(name: str, value: Any, other_name: str, other: Any) -> None:
    """Raises TypeError unless both are of one library and dtype."""
    if is_tensor(value) != is_tensor(other):
        raise TypeError(
            f"{name} and {other_name} must both be NumPy arrays or both torch tensors, "
            f"got {type(value).__name__} and {type(other).__name__}"
        )
    dtypes = [
        array.dtype if is_tensor(array) else np.asarray(array).dtype
        for array in (value, other)
    ]
    if dtypes[0] != dtypes[1]:
        raise TypeError(
            f"{name} and {other_name} must have the same dtype, "
            f"got {dtypes[0]} and {dtypes[1]}"
        )


def as_point_pair(points: Any, centers: Any) -> tuple[Floats, Floats]:
    """Points, maybe none, and centers: of one library, dtype and dimension."""
    if is_tensor(points) != is_tensor(centers) and (
        getattr(points, "requires_grad", False)
        or getattr(centers, "requires_grad", False)
    ):  # before it is refused for its gradients, which two tensors would have
        check_same_kind("points", points, "centers", centers)
    x = as_matrix("points", points, allow_empty=True)
    y = as_matrix("centers", centers, most_rows=MOST_CENTERS)
    if x.dtype != y.dtype or is_tensor(points) != is_tensor(centers):
        check_same_kind("points", points, "centers", centers)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            "points and centers must have the same dimension, "
            f"got shapes {x.shape} and {y.shape}"
        )
    return x, y


def check_scalar_shape(noise_std: Any) -> None:
    """Raises ValueError unless the array or tensor has no dimensions."""
    shape = tuple(noise_std.shape)
    if shape:
        remedy = f"; pass noise_std[{', '.join('0' * len(shape))}]"
        raise ValueError(
            "noise_std must be a number or a tensor of shape (), got shape "
            f"{shape}{remedy if math.prod(shape) == 1 else ''}"
        )


def check_noise_std(noise_std: Any, dtype: np.dtype[Any] | None = None) -> float:
    """noise_std as a float: positive, finite and within the range of the dtype."""
    low, high = _NOISE_RANGE[np.dtype(dtype or np.float64)]
    if type(noise_std) is float and low <= noise_std <= high:
        return noise_std
    if is_tensor(noise_std) or isinstance(noise_std, np.ndarray):
        check_scalar_shape(noise_std)
        raise TypeError(
            f"noise_std must be a real number, got {type(noise_std).__name__}; pass "
            "float(noise_std)"
        )
    if isinstance(noise_std, bool) or not isinstance(noise_std, numbers.Real):
        raise TypeError(
            f"noise_std must be a real number, got {type(noise_std).__name__}"
        )
    try:
        value = float(noise_std)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value) or value <= 0:
        raise ValueError(
            f"noise_std must be positive and finite, got {value}; "
            "it is a standard deviation, in the units of the data"
        )
    if not low <= value <= high:
        raise ValueError(
            f"noise_std must be between {low} and {high} for {np.dtype(dtype)}, "
            f"got {value}; rescale the data"
        )
    return value


def check_resolution(name: str, array: Floats, noise_std: float) -> None:
    """Raises ValueError where adding the noise to the array would round it away.

    32 units in the last place: rounding then adds less than 1e-4 of the noise variance.
    """
    eps = float(np.finfo(array.dtype).eps)
    # Rows on a GPU know theirs: `_device_mixture.DeviceRows`.
    known = getattr(array, "largest", None)
    largest = float(np.abs(array).max(initial=0)) if known is None else known
    if noise_std < 32 * eps * largest:
        raise ValueError(
            f"noise_std must be at least {32 * eps * largest:.3g} for {name} as large "
            f"as {largest:.3g} in {array.dtype}, got {noise_std:.3g}, which rounding "
            "would swallow; subtract an offset, or use float64"
        )


def check_flag(name: str, value: Any) -> bool:
    """A bool, and nothing that merely counts as one."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def to_any_numpy(name: str, value: Any) -> NDArray[Any]:
    """A NumPy array of any dtype, from any library; an error by name where none is."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array, whose mask would be lost")
    try:
        return np.asarray(value.detach().cpu() if is_tensor(value) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise TypeError(f"{name} must be an array: {reason}") from error


def group_by_label(
    labels: Any, num_inputs: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An order of the inputs that groups them by label, and the size of each group."""
    if isinstance(labels, list | tuple):
        kinds = {type(label) for label in labels}
        if str in kinds and len(kinds) > 1:
            raise TypeError("labels must be of one type, got strings and numbers")
    array = to_any_numpy("labels", labels)
    if array.dtype.kind not in "iubUS":
        raise TypeError(
            f"labels must be integers, booleans or strings, got {array.dtype}"
        )
    if array.shape != (num_inputs,):
        raise ValueError(
            f"labels must have shape ({num_inputs},), one label per input, "
            f"got {array.shape}"
        )
    _, index, sizes = np.unique(array, return_inverse=True, return_counts=True)
    return np.argsort(index, kind="stable"), sizes


def check_weight_sum(total: float, num_centers: int, dtype: np.dtype[Any]) -> None:
    """Raises ValueError unless the weights sum to 1, but for rounding."""
    rounding = _ACCUMULATED_ROUNDING * num_centers * float(np.finfo(dtype).eps)
    if abs(total - 1) > max(_WEIGHT_SUM_TOLERANCE[dtype], rounding):
        remedy = "; pass weights / weights.sum()" if total > 0 else ""
        raise ValueError(f"weights must sum to 1, got a sum of {total}{remedy}")


def with_dtype(weights: Any, dtype: Any) -> Any:
    """Lists of numbers and integers, whose dtype says nothing, in this one."""
    array = weights
    if isinstance(weights, list | tuple):
        try:
            array = np.asarray(weights)
        except ValueError:
            return weights
    is_list = array is not weights and array.dtype.kind == "f"
    if is_list or (isinstance(array, np.ndarray) and array.dtype.kind in "iu"):
        return array.astype(dtype)
    return weights


def as_weights(weights: Any, num_centers: int, dtype: np.dtype[Any]) -> Floats:
    """(n,) non-negative weights that sum to 1, in the dtype of the centers."""
    array = as_partial_weights(weights, num_centers, dtype)
    with np.errstate(over="ignore"):  # infinity is refused as any other sum
        total = float(array.sum(dtype=np.float64))
    check_weight_sum(total, num_centers, dtype)
    return array


def as_partial_weights(weights: Any, num_centers: int, dtype: np.dtype[Any]) -> Floats:
    """As `as_weights`, of some of the centers: their sum is not looked at."""
    array = to_numpy("weights", with_dtype(weights, dtype))
    if array.shape != (num_centers,):
        raise ValueError(
            f"weights must have shape ({num_centers},), one per center, "
            f"got shape {array.shape}"
        )
    if array.dtype != dtype:
        raise TypeError(
            f"weights must have the dtype of centers, {dtype}, got {array.dtype}"
        )
    if not np.isfinite(array).all() or array.min(initial=0) < 0:
        worst = array[~(array >= 0) | ~np.isfinite(array)][0]
        raise ValueError(f"weights must be finite and not negative, got {worst}")
    return array


def check_representable(name: str, result: Floats, allow_minus_inf: bool) -> None:
    """Raises ValueError where finite input was too far apart for the dtype.

    result: (m,), contiguous.
    """
    if _core.first_nonfinite(result[None, :]) < 0:
        return
    bad = ~np.isfinite(result)
    if allow_minus_inf:
        bad &= ~np.isneginf(result)
    if bad.any():
        raise ValueError(
            f"{name} is not representable in {result.dtype} at index "
            f"{int(bad.argmax())}: squared distances overflow; "
            "use float64 or rescale the data"
        )


def same_library(result: Floats, like: Any) -> Any:
    """The result as a tensor, sharing memory, if `like` is one."""
    if is_tensor(like):
        return sys.modules["torch"].from_numpy(result)
    return result
