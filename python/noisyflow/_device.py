"""Tensors on a GPU: what goes into the compiled CUDA kernels, `_cuda`, and comes out.

A launch is given addresses, strides and torch's current stream. torch allocates all
results and scratch memory, so that its caching allocator knows of them. Nothing here
waits for the GPU but where a check must be answered: then inputs and result are reduced
together and read back once. While a CUDA graph is captured there is no such check.

torch is never imported here: a tensor exists only if the caller has imported it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import _arrays
from noisyflow._dense import posterior_moments as _dense_posterior_moments
from noisyflow._morton import morton_order

_MOST_ROWS = 2**31 - 1
_CHOOSE = 0  # the path of a launch; 1: every pair directly, 2: tensor cores
BUILD = (
    "install NVIDIA's nvcc, 12.0 or later, and run `NOISYFLOW_CUDA=ON pip install .` "
    "in a clone of the project"
)
_ON_CPU = "or pass tensors on the CPU"
# Skipping is considered where every pair takes longer than this: asking costs one wait
# for the GPU and ordering a million centers some 2 ms (computed, not measured).
_WORTH_A_QUESTION = 5e-3
# Instructions a second of an H200, for that question only: nine tenths of 132
# multiprocessors x 128 lanes x 1.98 GHz; of float64, a quarter (computed).
_INSTRUCTIONS_PER_SECOND = 3e13
# What skipping may leave, to pay for ordering and for testing boxes. Between the 0.35
# and 0.7 of the CPU's trees (most_share in csrc/cpu/gradients.cpp); not measured.
_MOST_SHARE = 0.5


def is_on_device(value: object) -> bool:
    """Whether the value is a torch tensor on a CUDA device."""
    return _arrays.is_tensor(value) and value.device.type == "cuda"  # type: ignore[attr-defined]


def is_any_on_device(*values: object) -> bool:
    """Whether one of the values is a torch tensor on a CUDA device."""
    return any(is_on_device(value) for value in values)


def refuse_gradients(**values: Any) -> None:
    """Raises ValueError at a tensor whose gradients would be lost."""
    for name, value in values.items():
        if is_on_device(value):
            _arrays.refuse_gradients(name, value)


def on_host(value: Any) -> Any:
    """A copy on the CPU of a tensor on a GPU; anything else as it is."""
    return value.cpu() if is_on_device(value) else value


# -- what is there ------------------------------------------------------------


def extension() -> Any:
    """The module `_cuda`, or None where the package was built without it."""
    try:
        return importlib.import_module("noisyflow._cuda")
    except ImportError:
        return None


def require(device: Any = None) -> Any:
    """The module `_cuda`, if its kernels can run on this device (0 by default).

    Raises RuntimeError with the reason and the remedy: not built, no driver, a driver
    that is too old, no device, or one of an architecture that was not compiled.
    """
    module = extension()
    if module is None:
        raise RuntimeError(f"this noisyflow was built without CUDA; {BUILD}, {_ON_CPU}")
    index = getattr(device, "index", device)
    _check_device(module, 0 if index is None else index)
    return module


@functools.cache
def _check_device(module: Any, index: int) -> None:
    """Raises RuntimeError unless the module's kernels run on this device."""
    compiled, offered = module.toolkit_version(), module.driver_version()
    if offered == 0:
        raise RuntimeError(
            "no NVIDIA driver was found (libcuda.so): install one for CUDA "
            f"{version_text(compiled)} or later, {_ON_CPU}"
        )
    try:
        count = module.device_count()
    except RuntimeError as error:
        remedy = _ON_CPU
        if offered < compiled:
            remedy = (
                f"the driver knows CUDA {version_text(offered)} and the kernels were "
                f"compiled with {version_text(compiled)}: update the driver, compile "
                f"noisyflow with the older toolkit, {_ON_CPU}"
            )
        raise RuntimeError(f"no GPU can be used: {error}; {remedy}") from error
    if index >= count:
        raise RuntimeError(
            f"there is no CUDA device {index}, there are {count}; "
            f"CUDA_VISIBLE_DEVICES may hide some, {_ON_CPU}"
        )
    info = module.device_info(index)
    built = module.compiled_architectures()
    if not is_covered(info["major"], info["minor"], built):
        capability = f"{info['major']}{info['minor']}"
        raise RuntimeError(
            f"{info['name']} has compute capability {info['major']}.{info['minor']}, "
            f"and the kernels were compiled for {', '.join(built)}; compile noisyflow "
            f"with NOISYFLOW_CUDA_ARCHITECTURES={capability} in the environment, "
            f"{_ON_CPU}"
        )


def is_covered(major: int, minor: int, architectures: list[str]) -> bool:
    """Whether code for these architectures runs on a device of this capability.

    Machine code ("80-real") runs on later devices of its generation, that of a letter
    ("90a-real") on exactly its own; PTX ("90-virtual") is compiled by the driver for
    any later device.
    """
    capability = 10 * major + minor
    for architecture in architectures:
        match = re.fullmatch(
            r"(sm_|compute_)?(\d+)([a-z]?)(-real|-virtual)?", architecture
        )
        if match is None:
            continue
        (prefix, number, letter, kind) = match.groups()
        built = int(number)
        if letter:
            if built == capability:
                return True
            continue
        is_real = kind == "-real" or prefix == "sm_"
        is_virtual = kind == "-virtual" or prefix == "compute_"
        if not is_virtual and built // 10 == major and built <= capability:
            return True
        if not is_real and built <= capability:
            return True
    return False


def version_text(version: int) -> str:
    """CUDA's 13000 as "13.0"."""
    return f"{version // 1000}.{version % 1000 // 10}"


# -- launches -----------------------------------------------------------------


def _torch() -> Any:
    return sys.modules["torch"]


@contextlib.contextmanager
def _on(tensor: Any) -> Iterator[int]:
    """The tensor's device as the current one, and its current stream."""
    if tensor.device.type != "cuda":  # tests: memory of the host in its place
        yield 0
        return
    torch = _torch()
    with torch.cuda.device(tensor.device):
        yield torch.cuda.current_stream(tensor.device).cuda_stream


@contextlib.contextmanager
def memory_hint(hint: str) -> Iterator[None]:
    """Adds to torch's "out of memory" what the caller can do about it."""
    torch = _torch()
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"{error}\n{hint}") from error


def _is_capturing(tensor: Any) -> bool:
    """Whether a CUDA graph is being captured, which must not wait for the GPU."""
    if tensor.device.type != "cuda":
        return False
    return bool(_torch().cuda.is_current_stream_capturing())


def as_rows(name: str, value: Any, *, allow_empty: bool = False) -> Any:
    """An (n, d) tensor whose rows are contiguous and do not overlap.

    Copied only if it must be. Its values are not looked at.
    """
    _check_kind(name, value)
    if value.ndim != 2:
        raise ValueError(
            f"{name} must have shape (n, d), got shape {tuple(value.shape)}"
        )
    (n, d) = value.shape
    if d == 0 or (n == 0 and not allow_empty):
        raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}")
    if n > _MOST_ROWS:
        raise ValueError(
            f"{name} must have fewer than 2^31 rows, got {n}; pass it in parts"
        )
    value = value.detach().resolve_neg()
    has_rows = value.stride(1) == 1 or d == 1
    if not has_rows or (value.stride(0) < d and n > 1):
        value = value.contiguous()
    return _aligned(value)


def _check_kind(name: str, value: Any) -> None:
    """Raises unless the value is a dense tensor of floats on a GPU."""
    if not _arrays.is_tensor(value):
        raise TypeError(
            f"{name} must be a torch tensor like the others, got "
            f"{type(value).__name__}; pass torch.as_tensor({name}, device=...)"
        )
    if not is_on_device(value):
        raise ValueError(
            f"{name} is on {value.device}, and other arguments are on a GPU; pass "
            f"{name}.cuda(), or all of them on the CPU"
        )
    _arrays.check_dense_floats(name, value)


def numpy_dtype(tensor: Any) -> np.dtype[Any] | None:
    """float32 or float64 as NumPy's dtype; None of any other."""
    names = {"torch.float32": np.float32, "torch.float64": np.float64}
    found = names.get(str(tensor.dtype))
    return None if found is None else np.dtype(found)


def _aligned(tensor: Any) -> Any:
    """The tensor, or a copy where its memory begins within a number."""
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


def _as_vector(name: str, value: Any, like: Any, length: int) -> Any:
    """A contiguous (length,) tensor of the device and dtype of another one."""
    _check_kind(name, value)
    _check_alike(name, value, like)
    if tuple(value.shape) != (length,):
        raise ValueError(
            f"{name} must have shape ({length},), got shape {tuple(value.shape)}"
        )
    return _aligned(value.detach().resolve_neg().contiguous())


def require_alike(name: str, value: Any, like: Any, other: str = "centers") -> None:
    """Raises unless both are dense tensors of one dtype on one GPU."""
    _check_kind(name, value)
    _check_alike(name, value, like, other)


def _check_alike(name: str, value: Any, like: Any, other: str = "centers") -> None:
    """Raises unless both tensors are on one device and of one dtype."""
    if value.device != like.device:
        raise ValueError(
            f"{name} is on {value.device} and {other} on {like.device}; move one of "
            "them: a kernel runs on one device"
        )
    if value.dtype != like.dtype:
        raise TypeError(
            f"{name} and {other} must have the same dtype, got {value.dtype} and "
            f"{like.dtype}"
        )


@dataclasses.dataclass
class Mixture:
    """Centers on a GPU, ready for launches: `as_rows` and a shift for every weight.

    The shift is made with the mixture. Made by the first launch that needs it, it might
    be recorded into a CUDA graph: a kept mixture would hold memory of that graph, which
    holds nothing before a replay.
    """

    centers: Any  # (n, d)
    noise_std: float
    weights: Any  # (n,) or None
    is_checked: bool = False  # the values of centers and weights
    shift: Any = dataclasses.field(init=False)  # (n,) or None
    _ordered: Any = None  # centers and shifts in Morton order

    @classmethod
    def of(cls, centers: Any, noise_std: Any, weights: Any) -> Mixture:
        """Everything checked but the values, which `check` looks at with a result."""
        y = as_rows("centers", centers)
        beta = _arrays.check_noise_std(noise_std, numpy_dtype(y))
        w = None
        if weights is not None:
            w = _as_vector("weights", weights, y, len(y))
        return cls(y, beta, w)

    def points(self, points: Any) -> Any:
        """Points (m, d) that fit the centers."""
        x = as_rows("points", points, allow_empty=True)
        _check_alike("points", x, self.centers)
        if x.shape[1] != self.centers.shape[1]:
            raise ValueError(
                "points and centers must have the same dimension, "
                f"got shapes {tuple(x.shape)} and {tuple(self.centers.shape)}"
            )
        return x

    def __post_init__(self) -> None:
        """-log w_j as a squared distance, `weight_shift` of csrc/core/views.h."""
        self.shift = None
        if self.weights is not None:
            torch = _torch()
            never = torch.finfo(self.weights.dtype).max / 8
            shift = -2 * self.noise_std**2 * torch.log(self.weights.double())
            self.shift = shift.clamp(max=never).to(self.weights.dtype)

    def ordered(self) -> tuple[Any, Any]:
        """Centers and shifts with neighbours in space as neighbours in memory.

        Never while a CUDA graph is captured: then nothing is skipped.
        """
        if self._ordered is None:
            order = morton_order(self.centers)
            shift = None if self.shift is None else self.shift[order]
            self._ordered = (self.centers[order], shift)
        return self._ordered  # type: ignore[no-any-return]

    def check(self, points: Any, results: dict[str, Any], **kwargs: Any) -> list[float]:
        """One look at all values; raises ValueError as the functions for the CPU do.

        Returns the largest entry, by size, of the points, and of centers not yet seen.
        """
        largest = check_values(
            {
                "points": points,
                **({} if self.is_checked else {"centers": self.centers}),
            },
            None if self.is_checked else self.weights,
            results,
            **kwargs,
        )
        # While a CUDA graph is captured nothing has been looked at.
        self.is_checked = self.is_checked or not _is_capturing(self.centers)
        return largest


def check_values(
    inputs: dict[str, Any],
    weights: Any,
    results: dict[str, Any],
    *,
    allow_minus_inf: bool = False,
) -> list[float]:
    """Checks of values on a GPU, all in one wait for it.

    inputs: tensors that must be finite; results: those that must be representable.
    Returns the largest entry of every input, by its size.
    """
    torch = _torch()
    found = []
    for tensor in inputs.values():
        # Not isfinite().all(): this reads the tensor once and writes nothing.
        is_empty = tensor.numel() == 0
        found.append(
            tensor.new_zeros(())
            if is_empty
            else torch.linalg.vector_norm(tensor, math.inf)
        )
    if weights is not None:
        found += [weights.sum(dtype=torch.float64), weights.min()]
    for result in results.values():
        fine = torch.isfinite(result)
        if allow_minus_inf:
            fine |= torch.isneginf(result)
        found.append(fine.all())
    if not found or _is_capturing(found[0]):
        return [0.0] * len(inputs)
    values = torch.stack([value.double() for value in found]).tolist()
    for (name, tensor), largest in zip(inputs.items(), values, strict=False):
        if not math.isfinite(largest):
            _raise_nonfinite(name, tensor)
    if weights is not None:
        (total, least) = values[len(inputs) : len(inputs) + 2]
        _check_weights(weights, total, least)
    for (name, result), is_fine in zip(
        results.items(), values[len(values) - len(results) :], strict=True
    ):
        if not is_fine:
            bad = ~torch.isfinite(result)
            if allow_minus_inf:
                bad &= ~torch.isneginf(result)
            raise ValueError(
                f"{name} is not representable in {numpy_dtype(result)} at index "
                f"{int(bad.flatten().int().argmax())}: squared distances overflow; "
                "use float64 or rescale the data"
            )
    return [float(value) for value in values[: len(inputs)]]


def _raise_nonfinite(name: str, tensor: Any) -> None:
    flat = (~_torch().isfinite(tensor)).flatten().int().argmax()
    index = [int(i) for i in np.unravel_index(int(flat), tuple(tensor.shape))]
    raise ValueError(
        f"{name} must be finite, got {float(tensor[tuple(index)])} at {index}"
    )


def _check_weights(weights: Any, total: float, least: float) -> None:
    dtype = numpy_dtype(weights)
    assert dtype is not None
    if not math.isfinite(total) or not least >= 0:
        worst = weights[~(weights >= 0) | ~_torch().isfinite(weights)][0]
        raise ValueError(f"weights must be finite and not negative, got {float(worst)}")
    _arrays.check_weight_sum(total, len(weights), dtype)


def _problem(x: Any, y: Any, noise_std: float, shift: Any) -> tuple[Any, ...]:
    """What every launch begins with."""
    (m, d) = x.shape
    return (
        x.element_size(),
        *(x.data_ptr(), x.stride(0) if m > 1 else d, m),
        *(y.data_ptr(), y.stride(0) if len(y) > 1 else d, len(y)),
        *(d, noise_std, 0 if shift is None else shift.data_ptr()),
    )


def _workspace(module: Any, kind: str, x: Any, y: Any) -> tuple[Any, int, int]:
    """Scratch memory of a launch, its address and its size."""
    (m, d) = x.shape
    size = module.workspace_bytes(kind, x.element_size(), m, len(y), d)
    scratch = x.new_empty((size,), dtype=_torch().uint8)
    return scratch, scratch.data_ptr() if size else 0, size


def log_density(
    points: Any,
    centers: Any,
    noise_std: float,
    weights: Any = None,
    max_lost_mass: float = 0.0,
) -> Any:
    """`mixture_log_density` of tensors on one GPU; (m,), nats."""
    mixture = Mixture.of(centers, noise_std, weights)
    return mixture_log_density(mixture, points, max_lost_mass)


def mixture_log_density(mixture: Mixture, points: Any, max_lost_mass: float) -> Any:
    """As `log_density`, of a mixture that is kept."""
    x = mixture.points(points)
    with memory_hint("fewer points in a call need less"):
        result = launch_log_density(mixture, x, max_lost_mass)
    mixture.check(x, {"the log-density": result})
    return result


def launch_log_density(
    mixture: Mixture, x: Any, max_lost_mass: float, path: int = _CHOOSE
) -> Any:
    """The log-density at checked points, by skipping where a sample says it pays."""
    y = mixture.centers
    module = require(y.device)
    result = x.new_empty((len(x),))
    if len(x) == 0:
        return result
    with _on(x) as stream:
        if is_worth_skipping(x, mixture, max_lost_mass):
            order = morton_order(x)
            (sorted_x, (sorted_y, shift)) = (x[order], mixture.ordered())
            (scratch, address, size) = _workspace(module, "skipping", x, y)
            out = x.new_empty((len(x),))
            module.skipping_log_density(
                *_problem(sorted_x, sorted_y, mixture.noise_std, shift),
                *(max_lost_mass, out.data_ptr(), address, size, stream),
            )
            result[order] = out
        else:
            (scratch, address, size) = _workspace(module, "log_density", x, y)
            module.log_density(
                *_problem(x, y, mixture.noise_std, mixture.shift),
                *(result.data_ptr(), path, address, size, stream),
            )
        del scratch  # torch keeps it until the stream is done with it
    return result


def is_worth_skipping(x: Any, mixture: Mixture, max_lost_mass: float) -> bool:
    """Whether few enough pairs are near enough to matter, by a sample of them.

    Waits for the GPU once, where every pair would take milliseconds.
    """
    y = mixture.centers
    (m, (n, d)) = (len(x), y.shape)
    rate = _INSTRUCTIONS_PER_SECOND / (1 if x.element_size() == 4 else 4)
    seconds = float(m) * n * max(8, 2 * d + 3) / rate
    if max_lost_mass == 0 or seconds < _WORTH_A_QUESTION or _is_capturing(x):
        return False
    return near_share(x, mixture, max_lost_mass) < _MOST_SHARE


def near_share(x: Any, mixture: Mixture, max_lost_mass: float) -> float:
    """Share of the pairs that boxes of neighbours leave to be evaluated, estimated.

    Boxes are wider than the points in them: of blocks, hence the square root; and in
    many dimensions, where boxes are as wide as the data in most of them, hence 12.
    A rough guide: right for even data in two dimensions, too large for clusters, and
    far too small for even data in five dimensions and more, where boxes are then tested
    for nothing.
    """
    y = mixture.centers
    (n, d) = y.shape
    size = max(8, min(256, 2**24 // (1024 * d)))
    some_x = x[:: max(1, len(x) // size)][:size]
    some_y = y[:: max(1, n // 1024)][:1024]
    squares = ((some_x[:, None] - some_y) ** 2).sum(dim=2)
    reach = mixture.noise_std**2 * (d + 2 * math.log(n / max_lost_mass))
    near = squares < (12 if d >= 8 else 1) * reach
    return math.sqrt(float(near.double().mean()))


def block_log_sums(
    points: Any,
    centers: Any,
    noise_std: float,
    own: Any,
    offsets: NDArray[np.int64],
    outer_offsets: NDArray[np.int64],
    weights: Any = None,
    include_rest: bool = True,
) -> tuple[Any, Any, Any, Any]:
    """`mixture_block_log_sums` of tensors on one GPU; offsets are checked already.

    own: (m,) integers, a tensor on the GPU or anything NumPy understands.
    """
    refuse_gradients(points=points, centers=centers, weights=weights)
    mixture = Mixture.of(centers, noise_std, weights)
    x = mixture.points(points)
    members = _own(own, x, len(mixture.centers))
    parts = launch_block_log_sums(
        mixture, x, members, membership(offsets, outer_offsets, x), include_rest
    )
    checked = dict(zip(("own", "inner", "outer", "rest"), parts, strict=True))
    if not include_rest:
        del checked["outer"], checked["rest"]
    checked = {f"the {name} sum": part for name, part in checked.items()}
    mixture.check(x, checked, allow_minus_inf=True)
    return parts


def _own(own: Any, x: Any, n: int) -> Any:
    """(m,) int64 indices of centers on the GPU, checked before any kernel follows."""
    torch = _torch()
    if is_on_device(own):
        if own.device != x.device:
            raise ValueError(f"own is on {own.device} and points on {x.device}")
        kind = own.dtype
        is_integer = not (
            kind.is_floating_point or kind.is_complex or kind == torch.bool
        )
    else:
        own = np.asarray(own)
        kind = own.dtype
        is_integer = np.issubdtype(kind, np.integer)
    if not is_integer:
        raise TypeError(f"own must be integers, got {kind}")
    if tuple(own.shape) != (len(x),):
        raise ValueError(
            f"own must have shape ({len(x)},), one center per point, "
            f"got shape {tuple(own.shape)}"
        )
    if len(x):
        ends = (own.min(), own.max())
        (low, high) = torch.stack(ends).tolist() if is_on_device(own) else ends
        if low < 0 or high >= n:
            raise ValueError(
                f"own must index the {n} centers, got values from {low} to {high}"
            )
    if is_on_device(own):
        return _aligned(own.long().contiguous())
    return upload(np.ascontiguousarray(own, np.int64), x)


def upload(array: NDArray[Any], like: Any) -> Any:
    """A NumPy array as a contiguous tensor on the device of another one."""
    return _torch().as_tensor(np.ascontiguousarray(array), device=like.device)


def membership(
    offsets: NDArray[np.int64], outer_offsets: NDArray[np.int64], like: Any
) -> Any:
    """(n, 4) int32: inner_begin, inner_end, outer_begin, outer_end of every center."""
    torch = _torch()
    columns = []
    for ends in (offsets, outer_offsets):
        n = int(ends[-1])
        sizes = upload(np.diff(ends), like)
        for edge in (ends[:-1], ends[1:]):
            values = upload(edge.astype(np.int32), like)
            columns.append(torch.repeat_interleave(values, sizes, output_size=n))
    return torch.stack(columns, dim=1).contiguous()


def launch_block_log_sums(
    mixture: Mixture, x: Any, own: Any, members: Any, include_rest: bool
) -> tuple[Any, Any, Any, Any]:
    """The four parts at checked points of checked centers."""
    y = mixture.centers
    module = require(y.device)
    with memory_hint("fewer points in a call need less"), _on(x) as stream:
        out = [x.new_empty((len(x),)) for _ in range(4 if include_rest else 2)]
        if len(x):
            (scratch, address, size) = _workspace(module, "block_log_sums", x, y)
            module.block_log_sums(
                *_problem(x, y, mixture.noise_std, mixture.shift),
                *(own.data_ptr(), members.data_ptr(), include_rest),
                *(part.data_ptr() for part in out),
                *(() if include_rest else (0, 0)),
                *(address, size, stream),
            )
            del scratch
        while len(out) < 4:
            out.append(x.new_full((len(x),), -math.inf))
    return (out[0], out[1], out[2], out[3])


def gradients(
    points: Any,
    centers: Any,
    noise_std: float,
    weights: Any,
    log_density: Any,
    grad_output: Any,
    want_points: bool,
    want_centers: bool,
    want_weights: bool,
    want_noise_std: bool,
    max_lost_mass: float = 0.0,
) -> tuple[Any, Any, Any, Any]:
    """Gradients of the log-density on a GPU, as `_core.log_density_gradients`.

    That of noise_std is a 0-d float64 tensor. Every pair is evaluated, whatever
    max_lost_mass is; values are not looked at, so that nothing waits for the GPU.
    """
    mixture = Mixture.of(centers, noise_std, weights)
    (x, y) = (mixture.points(points), mixture.centers)
    (m, n) = (len(x), len(y))
    saved = _as_vector("log_density", log_density, y, m)
    upstream = _as_vector("grad_output", grad_output, y, m)
    module = require(y.device)
    with memory_hint("fewer points in a call need less"), _on(x) as stream:
        grad_points = x.new_empty(tuple(x.shape)) if want_points else None
        grad_centers = y.new_empty(tuple(y.shape)) if want_centers else None
        mass = y.new_empty((n,)) if want_weights else None
        terms = None
        if want_noise_std:
            terms = x.new_empty((m,), dtype=_torch().float64)
        wanted = (grad_points, grad_centers, mass, terms)
        if m == 0:
            for part in wanted:
                if part is not None:
                    part.zero_()
        elif any(part is not None for part in wanted):
            (scratch, address, size) = _workspace(module, "gradients", x, y)
            module.gradients(
                *_problem(x, y, mixture.noise_std, mixture.shift),
                *(saved.data_ptr(), upstream.data_ptr()),
                *(0 if part is None else part.data_ptr() for part in wanted),
                *(address, size, stream),
            )
            del scratch
        return grad_points, grad_centers, mass, None if terms is None else terms.sum()


def posterior_moments(
    points: Any, centers: Any, noise_std: float, weights: Any, unit: float
) -> tuple[Any, Any, Any]:
    """`posterior_moments` of tensors on one GPU, in units of `unit`; torch operations.

    No kernel: their cost is of order m n d^2, and they serve controls of few centers.
    """
    refuse_gradients(points=points, centers=centers, weights=weights)
    mixture = Mixture.of(centers, noise_std, weights)
    return checked_moments(mixture, mixture.points(points), unit)


def checked_moments(mixture: Mixture, x: Any, unit: float) -> tuple[Any, Any, Any]:
    """As `posterior_moments`, at checked points of a mixture that is kept."""
    with memory_hint("fewer points or centers in a call need less"):
        parts = _dense_posterior_moments(
            x, mixture.centers, mixture.noise_std, mixture.weights, unit
        )
    names = ("the log-density", "the mean", "the covariance")
    mixture.check(x, dict(zip(names, parts, strict=True)))
    return parts
