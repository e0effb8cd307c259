"""A stand-in for `_cuda` on memory of the host: NumPy in float64 at the same addresses.

It implements the interface of `_cuda` by the formulas, so that all the Python around
the kernels runs where there is no GPU. `posing` makes tensors of the CPU that pose as
tensors on a GPU, and so does what is computed from them.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import torch

NEVER = {4: float(np.finfo(np.float32).max) / 8, 8: float(np.finfo(np.float64).max) / 8}


class PosingTensor(torch.Tensor):
    """A tensor of the CPU that `_device.is_on_device` is told to take for another."""


def posing(array: Any) -> PosingTensor:
    """The array, or tensor, as a tensor that poses as one on a GPU."""
    tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(array)
    return tensor.as_subclass(PosingTensor)  # type: ignore[no-any-return]


def _at(address: int, shape: tuple[int, ...], kind: Any) -> Any:
    """The memory at an address as an array."""
    count = math.prod(shape)
    if count == 0:
        return np.empty(shape, kind)
    size = count * np.dtype(kind).itemsize
    buffer = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(buffer, kind).reshape(shape)


class Problem:
    """What the common arguments of every launch describe."""

    def __init__(self, *given: Any) -> None:
        (itemsize, x, x_stride, m, y, y_stride, n, d, noise_std, shift) = given
        self.kind = np.float32 if itemsize == 4 else np.float64
        (self.m, self.n, self.d, self.noise_std) = (m, n, d, noise_std)
        self.x = self._rows(x, x_stride, m).astype(np.float64)
        self.y = self._rows(y, y_stride, n).astype(np.float64)
        self.shift = None
        if shift:
            self.shift = _at(shift, (n,), self.kind).astype(np.float64)

    def _rows(self, address: int, stride: int, count: int) -> Any:
        itemsize = np.dtype(self.kind).itemsize
        assert stride >= self.d
        assert address % itemsize == 0
        flat = _at(address, ((count - 1) * stride + self.d,), self.kind)
        return np.lib.stride_tricks.as_strided(
            flat, (count, self.d), (stride * itemsize, itemsize)
        )

    def squares(self) -> Any:
        return ((self.x[:, None] - self.y) ** 2).sum(axis=2)

    def log_terms(self, *, is_weighted: bool = True) -> Any:
        """log w_j N(x_i; y_j, noise_std^2 I); (m, n)."""
        beta = self.noise_std
        constant = -0.5 * self.d * math.log(2 * math.pi) - self.d * math.log(beta)
        terms = constant - self.squares() / (2 * beta**2)
        if not is_weighted:
            return terms
        if self.shift is None:
            return terms - math.log(self.n)
        is_never = self.shift >= NEVER[np.dtype(self.kind).itemsize]
        weighted = terms - np.where(is_never, 0, self.shift) / (2 * beta**2)
        return np.where(is_never, -np.inf, weighted)


def _write(address: int, values: Any, kind: Any) -> None:
    """To memory, as kernels do: what overflows becomes infinite without a word."""
    with np.errstate(over="ignore"):
        _at(address, values.shape, kind)[:] = values


def _log_sum(terms: Any, mask: Any = True) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.logaddexp.reduce(np.where(mask, terms, -np.inf), axis=1)


class FakeCuda:
    """The functions of `_cuda`; `calls` counts launches by name."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.driver = 13000
        self.toolkit = 13000
        self.devices = [(9, 0)]
        self.architectures = ["80-real", "90-real", "90-virtual"]
        self.scratch = 16

    def compiled_architectures(self) -> list[str]:
        return self.architectures

    def toolkit_version(self) -> int:
        return self.toolkit

    def driver_version(self) -> int:
        return self.driver

    def device_count(self) -> int:
        if self.driver < self.toolkit:
            raise RuntimeError(
                "CUDA driver version is insufficient for CUDA runtime version"
            )
        return len(self.devices)

    def device_info(self, index: int) -> dict[str, Any]:
        (major, minor) = self.devices[index]
        return {
            "name": "a device of the host",
            "major": major,
            "minor": minor,
            "total_memory": 2**34,
            "multiprocessors": 4,
        }

    def workspace_bytes(self, kind: str, itemsize: int, m: int, n: int, d: int) -> int:
        assert kind in ("log_density", "block_log_sums", "gradients", "skipping")
        return self.scratch

    def _launched(self, name: str, workspace: int, size: int) -> None:
        assert size == self.scratch
        assert (workspace == 0) == (size == 0)
        self.calls[name] = self.calls.get(name, 0) + 1

    def log_density(self, *given: Any) -> None:
        (*common, out, path, workspace, size, stream) = given
        assert stream == 0
        assert path in (0, 1, 2)
        self._launched("log_density", workspace, size)
        problem = Problem(*common)
        _write(out, _log_sum(problem.log_terms()), problem.kind)

    def skipping_log_density(self, *given: Any) -> None:
        (*common, max_lost_mass, out, workspace, size, _) = given
        assert 0 < max_lost_mass < 1
        self._launched("skipping_log_density", workspace, size)
        problem = Problem(*common)
        _write(out, _log_sum(problem.log_terms()), problem.kind)

    def block_log_sums(self, *given: Any) -> None:
        (*common, own, membership, include_rest) = given[:13]
        (out_own, out_inner, out_outer, out_rest, workspace, size, _) = given[13:]
        self._launched("block_log_sums", workspace, size)
        problem = Problem(*common)
        of_point = _at(own, (problem.m,), np.int64)
        members = _at(membership, (problem.n, 4), np.int32)[of_point]
        center = np.arange(problem.n)
        (begin, end, outer_begin, outer_end) = (part[:, None] for part in members.T)
        is_own = center == of_point[:, None]
        is_inner = (center >= begin) & (center < end)
        is_outer = (center >= outer_begin) & (center < outer_end)
        terms = problem.log_terms()
        parts = [(out_own, is_own), (out_inner, is_inner & ~is_own)]
        if include_rest:
            parts += [(out_outer, is_outer & ~is_inner), (out_rest, ~is_outer)]
        else:
            assert (out_outer, out_rest) == (0, 0)
        for out, mask in parts:
            _write(out, _log_sum(terms, mask), problem.kind)

    def gradients(self, *given: Any) -> None:
        (*common, log_density, grad_output) = given[:12]
        (grad_points, grad_centers, mass, noise, workspace, size, _) = given[12:]
        self._launched("gradients", workspace, size)
        problem = Problem(*common)
        (m, n, d, beta) = (problem.m, problem.n, problem.d, problem.noise_std)
        value = _at(log_density, (m,), problem.kind).astype(np.float64)
        upstream = _at(grad_output, (m,), problem.kind).astype(np.float64)
        share = upstream[:, None] * np.exp(problem.log_terms() - value[:, None])
        away = problem.y - problem.x[:, None]
        if grad_points:
            _at(grad_points, (m, d), problem.kind)[:] = (
                np.einsum("ij,ijk->ik", share, away) / beta**2
            )
        if grad_centers:
            _at(grad_centers, (n, d), problem.kind)[:] = (
                -np.einsum("ij,ijk->jk", share, away) / beta**2
            )
        if mass:
            most = float(np.finfo(problem.kind).max)
            exponent = problem.log_terms(is_weighted=False) - value[:, None]
            free = np.exp(np.minimum(exponent, math.log(most) - 1))
            _at(mass, (n,), problem.kind)[:] = np.clip(upstream @ free, -most, most)
        if noise:
            terms = share * (problem.squares() / beta**3 - d / beta)
            _at(noise, (m,), np.float64)[:] = terms.sum(axis=1)
