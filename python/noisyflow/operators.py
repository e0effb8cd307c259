"""Torch operators of the mixture's log-density, differentiable any number of times.

Two operators hand tensors to the compiled kernels: noisyflow::mixture_log_density and
noisyflow::mixture_log_density_backward, each with an overload for a noise_std that is a
tensor. The gradient of the first is the second; that of the second is a formula in
torch (_second_derivatives.py). What else torch wants to know of an operator is
registered with it: what fake tensors give (torch.compile, torch.export), a rule for
batches (torch.vmap), and an autograd.Function (reverse and forward mode), which the
dispatcher calls. So all transforms meet at one place, in any order.

The one rule: only the kernels look at values, and only they use NumPy; what surrounds
them is traced. Importing this module imports torch; noisyflow itself does so only once
it is given a tensor. It raises ImportError where torch lacks one of the private names
below, before anything is registered.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from noisyflow import _arrays, _core, _device, mixture
from noisyflow._second_derivatives import (
    Mixture,
    cast_like,
    derivative_along,
    gradient_along,
)
from noisyflow.prepared import checked_max_lost_mass
from noisyflow.runtime import num_threads

Tensor = torch.Tensor

# torch offers no other way to them, and may rename them.
try:
    from torch._functorch.utils import enable_single_level_autograd_function

    _BelowAutograd = torch._C._AutoDispatchBelowAutograd
    _KEYS_BELOW_AUTOGRAD = torch._C._after_autograd_keyset
    _is_under_transform = torch._C._are_functorch_transforms_active
    _forward_mode: Any = forward_ad._set_fwd_grad_enabled
    forward_ad._current_level  # noqa: B018  changes, so it is read where it is needed
except AttributeError as error:
    raise ImportError(str(error)) from error


def mixture_log_density(
    points: Tensor,
    centers: Tensor,
    noise_std: float | Tensor,
    weights: Any = None,
    max_lost_mass: float | None = None,
) -> Tensor:
    """`noisyflow.mixture_log_density` of tensors.

    Examples
    --------
    >>> centers = torch.tensor([[-1.0], [1.0]], dtype=torch.float64, requires_grad=True)
    >>> mixture_log_density(torch.zeros(1, 1).double(), centers, 1.0).sum().backward()
    >>> centers.grad.tolist()
    [[0.5], [-0.5]]
    """
    op = _log_density
    if isinstance(noise_std, torch.Tensor):
        op = _log_density_tensor
    elif type(noise_std) is int and noise_std.bit_length() < 1000:
        noise_std = float(noise_std)
    elif type(noise_std) is not float:
        noise_std = _arrays.check_noise_std(noise_std)
    if weights is not None and not isinstance(weights, torch.Tensor):
        dtype = np.float32 if centers.dtype == torch.float32 else np.float64
        weights = _arrays.with_dtype(weights, dtype)
        weights = torch.tensor(_arrays.to_numpy("weights", weights))
    if max_lost_mass is not None and type(max_lost_mass) is not float:
        max_lost_mass = checked_max_lost_mass(max_lost_mass, None)
    result: Tensor = op(points, centers, noise_std, weights, max_lost_mass)
    return result


# -- kernels -------------------------------------------------------------------


def _evaluate(
    points: Tensor,
    centers: Tensor,
    noise_std: float | Tensor,
    weights: Tensor | None,
    max_lost_mass: float | None,
) -> Tensor:
    """The log-density, (m,)."""
    if _device.is_on_device(points):
        at = _as_plain(points, centers, noise_std, weights)
        on_device: Tensor = _device.log_density(*at, _lost(max_lost_mass, points))
        return on_device
    x, y, beta, w = _as_arrays(points, centers, noise_std, weights)
    lost = checked_max_lost_mass(max_lost_mass, y.dtype)
    return torch.from_numpy(mixture.log_density_of_arrays(x, y, beta, w, lost))


def _evaluate_backward(
    grad_output: Tensor,
    points: Tensor,
    centers: Tensor,
    noise_std: float | Tensor,
    weights: Tensor | None,
    log_density: Tensor,
    output_mask: list[bool],
    max_lost_mass: float | None,
) -> tuple[Tensor, ...]:
    """Gradients: points (m, d), centers (n, d), noise_std () in float64, weights (n,).

    Of sum_i grad_output[i] log_density[i]; (0,) where output_mask is False.
    """
    want_points, want_centers, want_noise_std, want_weights = output_mask
    wanted = (want_points, want_centers, want_weights, want_noise_std)
    found: Any
    if _device.is_on_device(points):
        at = _as_plain(points, centers, noise_std, weights)
        known = (_plain(log_density), _plain(grad_output))
        found = _device.gradients(*at, *known, *wanted, _lost(max_lost_mass, points))
    else:
        x, y, beta, w = _as_arrays(points, centers, noise_std, weights)
        lost = checked_max_lost_mass(max_lost_mass, y.dtype)
        grad = _per_point("grad_output", grad_output, x)
        known = (_per_point("log_density", log_density, x), grad)
        arrays = _core.log_density_gradients(
            *(x, y, beta, w, *known, *wanted, lost, num_threads())
        )
        found = [g if g is None else torch.from_numpy(np.asarray(g)) for g in arrays]
    grad_points, grad_centers, grad_weights, grad_noise_std = found
    return tuple(
        points.new_empty(0) if grad is None else grad
        for grad in (grad_points, grad_centers, grad_noise_std, grad_weights)
    )


def _as_plain(
    points: Tensor, centers: Tensor, noise_std: float | Tensor, weights: Tensor | None
) -> tuple[Any, Any, float, Any]:
    """Without gradients: kernels are below autograd, which has seen to them."""
    if isinstance(noise_std, torch.Tensor):
        _check_scalar(noise_std)
        noise_std = float(_plain(noise_std))
    return _plain(points), _plain(centers), noise_std, _plain(weights)


def _plain(tensor: Any) -> Any:
    return tensor.detach() if tensor is not None and tensor.requires_grad else tensor


def _as_arrays(*args: Any) -> tuple[Any, Any, float, Any]:
    return mixture._checked(*_as_plain(*args))


def _lost(max_lost_mass: float | None, points: Tensor) -> float:
    is_single = points.dtype == torch.float32
    return checked_max_lost_mass(max_lost_mass, np.float32 if is_single else np.float64)


def _check_has_value(noise_std: Tensor, points: Tensor) -> None:
    """One on the meta device sends the operator here, where the points have values."""
    if noise_std.is_meta and not points.is_meta:
        raise ValueError(
            "points and noise_std must be on the same device, "
            f"got {points.device} and {noise_std.device}"
        )


def _check_scalar(noise_std: Tensor) -> None:
    _arrays.check_scalar_shape(noise_std)
    if noise_std.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"noise_std must be float32 or float64, got {noise_std.dtype}; pass "
            "noise_std.float()"
        )


def _per_point(name: str, value: Tensor, points: Any) -> Any:
    array = _arrays.to_numpy(name, _plain(value))
    if array.shape != points.shape[:1] or array.dtype != points.dtype:
        raise ValueError(
            f"{name} must have shape ({len(points)},) and dtype {points.dtype}, "
            f"got {array.shape} and {array.dtype}"
        )
    return np.ascontiguousarray(array)


# -- without values ------------------------------------------------------------


def _fake(
    points: Tensor,
    centers: Tensor,
    noise_std: float | Tensor,
    weights: Tensor | None,
    max_lost_mass: float | None,
) -> Tensor:
    """What the log-density looks like; the checks that need no values."""
    _arrays.check_matrix_shape("points", points, allow_empty=True)
    _arrays.check_matrix_shape("centers", centers)
    _arrays.check_same_kind("points", points, "centers", centers)
    if points.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"points must be float32 or float64, got {points.dtype}; pass "
            "points.float()"
        )
    if points.shape[1] != centers.shape[1]:
        raise ValueError(
            "points and centers must have the same dimension, "
            f"got shapes {tuple(points.shape)} and {tuple(centers.shape)}"
        )
    if weights is not None:
        if weights.dtype != centers.dtype:
            raise TypeError(
                f"weights must have the dtype of centers, {centers.dtype}, "
                f"got {weights.dtype}"
            )
        if weights.dim() != 1 or weights.shape[0] != centers.shape[0]:
            raise ValueError(
                f"weights must have shape ({centers.shape[0]},), one per center, "
                f"got shape {tuple(weights.shape)}"
            )
    for name, other in (("centers", centers), ("weights", weights)):
        if other is not None and other.device != points.device:
            raise ValueError(
                f"points and {name} must be on the same device, "
                f"got {points.device} and {other.device}"
            )
    if isinstance(noise_std, torch.Tensor):
        _check_scalar(noise_std)
        _check_has_value(noise_std, points)
    return points.new_empty(points.shape[0])


def _fake_backward(
    grad_output: Tensor,
    points: Tensor,
    centers: Tensor,
    noise_std: float | Tensor,
    weights: Tensor | None,
    log_density: Tensor,
    output_mask: list[bool],
    max_lost_mass: float | None,
) -> tuple[Tensor, ...]:
    if isinstance(noise_std, torch.Tensor):
        _check_has_value(noise_std, points)
    shapes: Any = (points.shape, centers.shape, (), centers.shape[:1])
    dtypes = (points.dtype, points.dtype, torch.float64, points.dtype)
    return tuple(
        points.new_empty(shape, dtype=dtype) if want else points.new_empty(0)
        for shape, dtype, want in zip(shapes, dtypes, output_mask, strict=True)
    )


# -- batches -------------------------------------------------------------------


def _batched(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
    """Batched points in one call; one call each for a batch of anything else."""
    points, *rest = args
    op = _log_density_tensor if isinstance(rest[1], torch.Tensor) else _log_density
    if in_dims[0] is not None and all(dim is None for dim in in_dims[1:]):
        points = points.movedim(in_dims[0], 0)
        result = op(points.flatten(0, 1), *rest)
        return result.reshape(points.shape[:2]), 0
    if info.batch_size == 0:
        member = _fake(*_shapes(in_dims, args))
        return member.new_empty((0, *member.shape)), 0
    results = [op(*_member(i, in_dims, args)) for i in range(info.batch_size)]
    return torch.stack(results), 0


def _batched_backward(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    """As _batched; gradients of centers, noise_std or weights take one call each."""
    grad_output, points, centers, noise_std, weights, log_density, wanted, lost = args
    op = _backward_tensor if isinstance(noise_std, torch.Tensor) else _backward
    is_shared = all(dim is None for dim in in_dims[2:5])
    if not is_shared or tuple(wanted) != (True, False, False, False):
        if info.batch_size == 0:
            member = _fake_backward(*_shapes(in_dims, args))
            return tuple(part.new_empty((0, *part.shape)) for part in member), (0,) * 4
        results = [op(*_member(i, in_dims, args)) for i in range(info.batch_size)]
        parts = zip(*results, strict=True)
        return tuple(torch.stack(part) for part in parts), (0, 0, 0, 0)
    if in_dims[1] is None and in_dims[5] is None:
        # A Jacobian's rows: each is the same gradients, scaled.
        unit, *nothing = op(torch.ones_like(log_density), *args[1:])
        grads = grad_output.movedim(in_dims[0], 0)[:, :, None] * unit
    else:
        grad_output, points, log_density = (
            value[None].expand(info.batch_size, *value.shape)
            if dim is None
            else value.movedim(dim, 0)
            for value, dim in zip(
                (grad_output, points, log_density),
                (in_dims[0], in_dims[1], in_dims[5]),
                strict=True,
            )
        )
        flat = (grad_output.flatten(), points.flatten(0, 1), centers, noise_std)
        rest = (weights, log_density.flatten(), wanted, lost)
        grads, *nothing = op(*flat, *rest)
        grads = grads.reshape(points.shape)
    return (grads, *nothing), (0, None, None, None)


def _member(index: int, in_dims: Any, args: Any) -> list[Any]:
    """The arguments of one member of a batch; their dimensions may be fewer."""
    return [
        value.select(dim, index) if isinstance(dim, int) else value
        for value, dim in itertools.zip_longest(args, in_dims)
    ]


def _shapes(in_dims: Any, args: Any) -> list[Any]:
    """The arguments of a member of a batch that has none; of no values."""
    return [
        value.new_empty(value.movedim(dim, 0).shape[1:])
        if isinstance(dim, int)
        else value
        for value, dim in itertools.zip_longest(args, in_dims)
    ]


# -- derivatives ---------------------------------------------------------------


class _LogDensity(torch.autograd.Function):
    """The log-density, as one operation to autograd.

    args: the operator's own; then the operator, and the keys it was called with.
    """

    @staticmethod
    def forward(*args: Any) -> Any:
        return _in_function(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *inputs, ctx.max_lost_mass, _, _ = inputs
        inputs = _save_noise_std(ctx, 2, inputs)
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Any) -> Any:
        points, centers, noise_std, weights, log_density = ctx.saved_tensors
        op = _backward if noise_std is None else _backward_tensor
        at = (points, centers, _noise_std(ctx, noise_std), weights)
        wanted = ctx.needs_input_grad[:4]
        found = op(grad_output, *at, log_density, list(wanted), ctx.max_lost_mass)
        grads = [
            grad if want else None for grad, want in zip(found, wanted, strict=True)
        ]
        if grads[2] is not None:  # in float64; torch's own cast would overflow
            grads[2] = cast_like(grads[2], noise_std)
        return (*grads, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        with _forward_mode(True):
            points, centers, noise_std, weights = _primals(ctx)
            at = Mixture(points, centers, _noise_std(ctx, noise_std), weights)
            return cast_like(derivative_along(at, Mixture(*tangents[:4])), points)


class _Gradients(torch.autograd.Function):
    """The gradients of sum_i grad_output[i] log_density[i].

    log_density follows from the other arguments. It is there to spare work, and nothing
    is differentiated with respect to it.
    """

    @staticmethod
    def forward(*args: Any) -> Any:
        return _in_function(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *inputs, ctx.wanted, ctx.max_lost_mass, _, _ = inputs
        inputs = _save_noise_std(ctx, 3, inputs)
        ctx.save_for_backward(*inputs[:5])
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        grad_output, points, centers, noise_std, weights = ctx.saved_tensors
        at = Mixture(points, centers, _noise_std(ctx, noise_std), weights)
        along = Mixture(
            *(
                v if want else None
                for v, want in zip(cotangents, ctx.wanted, strict=True)
            )
        )
        mean, second = gradient_along(grad_output, at, along)
        needed = ctx.needs_input_grad[:5]
        grads = [
            cast_like(grad, value) if need else None
            for grad, value, need in zip(
                (mean, *second), (grad_output, *at), needed, strict=True
            )
        ]
        return (*grads, None, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        with _forward_mode(True):
            grad_output, points, centers, noise_std, weights, found = _primals(ctx)
            op = _backward if noise_std is None else _backward_tensor
            at = Mixture(points, centers, _noise_std(ctx, noise_std), weights)
            # Linear in grad_output; and second derivatives are symmetric.
            firsts = op(tangents[0], *at, found, ctx.wanted, ctx.max_lost_mass)
            _, second = gradient_along(grad_output, at, Mixture(*tangents[1:5]))
            return tuple(
                first + cast_like(change, first) if want else first
                for first, change, want in zip(firsts, second, ctx.wanted, strict=True)
            )


def _save_noise_std(ctx: Any, index: int, inputs: list[Any]) -> list[Any]:
    """The tensors among the inputs, which torch keeps for us, and None for a number."""
    ctx.noise_std = None
    if not isinstance(inputs[index], torch.Tensor):
        ctx.noise_std, inputs[index] = inputs[index], None
    return inputs


def _noise_std(ctx: Any, saved: Tensor | None) -> float | Tensor:
    return ctx.noise_std if saved is None else saved


def _primals(ctx: Any) -> list[Any]:
    """What is saved for forward mode, at its own level only.

    torch switches forward mode off where a Function's jvp runs, so that the tangents of
    an outer forward mode would silently be lost. Switched on again, only those of the
    inner one must go.
    """
    unpack_dual: Any = forward_ad.unpack_dual
    return [
        None if value is None else unpack_dual(value, level=0).primal
        for value in ctx.saved_tensors
    ]


def _in_function(*args: Any) -> Any:
    *args, op, keys = args  # type: ignore[assignment]
    # A Function switches both modes off; transforms that are further out want them.
    with torch.enable_grad(), _forward_mode(True), _BelowAutograd():
        return op.redispatch(keys & _KEYS_BELOW_AUTOGRAD, *args)


def _autograd_kernel(function: Any, op: Any) -> Any:
    # Not Function.apply: it would start anew with the transforms of torch.func, but the
    # dispatcher has come here through them already and is inside the innermost one.
    apply, redispatch = super(torch.autograd.Function, function).apply, op.redispatch

    def kernel(keys: Any, *args: Any) -> Any:
        if (
            forward_ad._current_level >= 0
            or _is_under_transform()
            or (torch.is_grad_enabled() and _requires_grad(args))
        ):
            with enable_single_level_autograd_function():
                return apply(*args, op, keys)
        with _BelowAutograd():
            return redispatch(keys & _KEYS_BELOW_AUTOGRAD, *args)

    return kernel


def _requires_grad(args: Any) -> bool:
    return any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)


# -- registration --------------------------------------------------------------

_Library: Any = torch.library.Library
_library = _Library("noisyflow", "DEF")


def _define(
    name: str, schema: str, kernel: Any, fake: Any, batched: Any, function: Any
) -> Any:
    _library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    # The third key is for devices and layouts that the kernel names and refuses.
    for key in ("CPU", "CUDA", "CompositeExplicitAutograd"):
        _library.impl(name, kernel, key)
    torch.library.register_fake(f"noisyflow::{name}", fake, lib=_library)
    torch.library.register_vmap(f"noisyflow::{name}", batched, lib=_library)
    packet_name, _, overload = name.partition(".")
    packet = getattr(torch.ops.noisyflow, packet_name)
    op = getattr(packet, overload or "default")
    _library.impl(name, _autograd_kernel(function, op), "Autograd", with_keyset=True)
    return op


_log_density, _log_density_tensor = (
    _define(
        f"mixture_log_density{suffix}",
        f"(Tensor points, Tensor centers, {kind} noise_std, Tensor? weights, "
        "float? max_lost_mass) -> Tensor",
        *(_evaluate, _fake, _batched, _LogDensity),
    )
    for suffix, kind in (("", "float"), (".Tensor", "Tensor"))
)
_backward, _backward_tensor = (
    _define(
        f"mixture_log_density_backward{suffix}",
        f"(Tensor grad_output, Tensor points, Tensor centers, {kind} noise_std, "
        "Tensor? weights, Tensor log_density, bool[4] output_mask, "
        "float? max_lost_mass) -> (Tensor, Tensor, Tensor, Tensor)",
        *(_evaluate_backward, _fake_backward, _batched_backward, _Gradients),
    )
    for suffix, kind in (("", "float"), (".Tensor", "Tensor"))
)
