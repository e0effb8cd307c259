"""Layers of a noisy chain as they are measured: copied, in float64, on the CPU.

Vectors are flat here, (B, d_l); a layer sees them in its own shape. Every complaint
names the layer it is about.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard, TypeVar, cast

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

Tensor = torch.Tensor
Kind = TypeVar("Kind", bound=torch.nn.Module)

# Differences that batching leaves in float64, with room; mixing inputs is far above.
_SAME = 1e-7
_NUM_PROBES = 32

# Layers that are affine whatever their settings (normalisation: in evaluation mode).
_AFFINE = (
    torch.nn.Linear,
    torch.nn.Identity,
    torch.nn.Flatten,
    torch.nn.Unflatten,
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.ConvTranspose1d,
    torch.nn.ConvTranspose2d,
    torch.nn.ConvTranspose3d,
    torch.nn.AvgPool1d,
    torch.nn.AvgPool2d,
    torch.nn.AvgPool3d,
    torch.nn.AdaptiveAvgPool1d,
    torch.nn.AdaptiveAvgPool2d,
    torch.nn.AdaptiveAvgPool3d,
    torch.nn.BatchNorm1d,
    torch.nn.BatchNorm2d,
    torch.nn.BatchNorm3d,
    # In evaluation mode, or they are rejected.
    torch.nn.Dropout,
    torch.nn.Dropout1d,
    torch.nn.Dropout2d,
    torch.nn.Dropout3d,
    torch.nn.AlphaDropout,
    torch.nn.FeatureAlphaDropout,
)


class ChainLayers:
    """S_l = f_l(T_{l-1}) for l = 1 .. L, checked on a few inputs.

    inputs: (m, ...) float64 tensor. A layer that fails, mixes the inputs of a batch, or
    is random is a ValueError that names it.
    """

    def __init__(
        self,
        layers: Sequence[Callable[..., Any]],
        noise_stds: Sequence[float],
        inputs: Tensor,
    ) -> None:
        self.noise_stds = list(noise_stds)
        self.functions = [_private_copy(i + 1, f) for i, f in enumerate(layers)]
        self.shapes = [tuple(inputs.shape[1:])]
        self.inputs = inputs.reshape(len(inputs), -1)
        generator = torch.Generator().manual_seed(0)
        index = torch.arange(_NUM_PROBES) % len(inputs)
        self._probes = [self.inputs[index]]
        for number in range(1, len(layers) + 1):
            clean = self._checked_output(number, self._probes[-1])
            self._probes.append(self.noisy(number, clean, generator))

    @property
    def widths(self) -> list[int]:
        """(d_0, d_1, ..., d_L)."""
        return [probe.shape[1] for probe in self._probes]

    def probe(self, number: int) -> Tensor:
        """A few T_l of layer `number`."""
        return self._probes[number]

    def noisy(self, number: int, clean: Tensor, generator: torch.Generator) -> Tensor:
        """T_l for S_l."""
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        return clean + self.noise_stds[number - 1] * noise

    def run(self, number: int, before: Tensor) -> Tensor:
        """S_l (B, d_l) for T_{l-1} (B, d_{l-1}); may write into `before`."""
        shaped = before.reshape(len(before), *self.shapes[number - 1])
        output = self.functions[number - 1](shaped)
        if not isinstance(output, Tensor):
            output = torch.as_tensor(output)
        return output.to(torch.float64).reshape(len(before), -1)

    def is_affine(self, number: int) -> bool:
        """Whether layer `number` is known to be affine, by the kind of its modules."""
        return _is_affine(self.functions[number - 1])

    def why_not_differentiable(self, first: int, last: int) -> str | None:
        """What keeps layers first .. last from being linearised; None if nothing."""
        for number in range(first, last + 1):
            reason = self._why_not_differentiable(number)
            if reason is not None:
                return f"layer {number} is not differentiable: {reason}"
        return None

    def _why_not_differentiable(self, number: int) -> str | None:
        before = self._probes[number - 1].clone()
        generator = torch.Generator().manual_seed(1)

        def function(values: Tensor) -> Tensor:
            return self.run(number, values * 1.0)  # a copy: layers may work in place

        try:
            output, pull_back, *_ = torch.func.vjp(function, before)
            (slope,) = pull_back(
                torch.randn(output.shape, generator=generator, dtype=torch.float64)
            )
        except Exception as error:  # whatever the layer's own code may raise
            return _first_line(error)
        if not torch.isfinite(slope).all():
            return "its derivative is not finite"
        if (slope != 0).any():
            return None
        with torch.no_grad():
            moved = function(self.noisy(number - 1, before, generator))
        if bool((moved != output).any()):
            return "its derivative is zero everywhere, but its output varies"
        return None

    @torch.no_grad()
    def _checked_output(self, number: int, before: Tensor) -> Tensor:
        try:
            output = self.functions[number - 1](
                before.clone().reshape(len(before), *self.shapes[number - 1])
            )
            output = torch.as_tensor(output).to(torch.float64)
        except Exception as error:
            source = "the inputs" if number == 1 else f"T_{number - 1}"
            raise ValueError(
                f"layer {number} must accept {source}, shape "
                f"(batch, {', '.join(map(str, self.shapes[-1]))}), in float64 on the "
                f"CPU; it raised {_first_line(error)}"
            ) from error
        if output.ndim < 2 or len(output) != len(before) or output.numel() == 0:
            raise ValueError(
                f"layer {number} must return one output per input, shape "
                f"({len(before)}, ...) for {len(before)} inputs, got "
                f"{tuple(output.shape)}"
            )
        if not torch.isfinite(output).all():
            raise ValueError(
                f"layer {number} must return finite values, got NaN or inf"
            )
        self.shapes.append(tuple(output.shape[1:]))
        flat = output.reshape(len(output), -1)
        if not torch.equal(self.run(number, before.clone()), flat):
            raise ValueError(
                f"layer {number} must be deterministic, got two outputs for one input; "
                "noise belongs between the layers"
            )
        alone = torch.cat([self.run(number, row[None].clone()) for row in before[:3]])
        if not torch.allclose(alone, flat[:3], rtol=_SAME, atol=_SAME):
            raise ValueError(
                f"layer {number} must treat every input of a batch on its own, got an "
                "output that depends on the other inputs"
            )
        return flat


def _private_copy(number: int, layer: Callable[..., Any]) -> Callable[..., Any]:
    """A float64 CPU copy of a module; any other callable as it is."""
    if not callable(layer):
        raise TypeError(
            f"layer {number} must be a module or a function of a batch, got "
            f"{type(layer).__name__}"
        )
    if not isinstance(layer, torch.nn.Module):
        return layer
    for name, module in layer.named_modules():
        where = f"layer {number}" + (f", module {name!r}" if name else "")
        _check_mode(where, module)
    for name, values in [*layer.named_parameters(), *layer.named_buffers()]:
        if values.is_floating_point() and not torch.isfinite(values).all():
            bad = values[~torch.isfinite(values)].flatten()[0].item()
            raise ValueError(f"layer {number} must have finite {name}, got {bad}")
    try:
        own = copy.deepcopy(layer).to("cpu", torch.float64)
    except RuntimeError as error:
        raise ValueError(
            f"layer {number} cannot be copied: {_first_line(error)}"
        ) from error
    own.requires_grad_(False)
    return cast(Callable[..., Any], own)


def _check_mode(where: str, module: torch.nn.Module) -> None:
    """Raises for modules whose output is random or depends on the batch."""
    kind = type(module).__name__
    if isinstance(module, _NormBase):
        if module.training and not kind.startswith(("Instance", "LazyInstance")):
            raise ValueError(
                f"{where}: {kind} must be in evaluation mode, as in training mode it "
                "mixes the inputs of a batch; call .eval()"
            )
        if not module.track_running_stats and kind.startswith("BatchNorm"):
            raise ValueError(
                f"{where}: {kind} must track running statistics, as without them it "
                "mixes the inputs of a batch"
            )
    is_random = isinstance(module, _DropoutNd) or kind in (
        "RReLU",
        "FractionalMaxPool2d",
    )
    if is_random and module.training and getattr(module, "p", 1.0) > 0:
        raise ValueError(
            f"{where}: {kind} must be in evaluation mode, as in training mode it is "
            "random; call .eval()"
        )


def is_of_kind(module: Any, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether a module does what its kind does: no forward of its own, no hooks."""
    return (
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and type(module).__call__ is torch.nn.Module.__call__
        and "forward" not in vars(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def _is_affine(function: Any) -> bool:
    if is_of_kind(function, torch.nn.Sequential):
        return all(_is_affine(child) for child in function)
    return type(function) in _AFFINE and is_of_kind(function, type(function))


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
