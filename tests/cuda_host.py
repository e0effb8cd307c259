"""The CUDA module compiled by the host's compiler, and arrays handed to it as pointers.

`build` compiles csrc/cuda and its bindings with tests/cuda/host_shim.h in the place
of CUDA's headers: a module with the interface of `_cuda` whose device memory is the
host's.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
GUARD = 64  # elements around every output, and bytes after the workspace


def missing() -> str | None:
    """Why the module cannot be built here, or None."""
    if COMPILER is None:
        return "needs a C++ compiler"
    if not (ROOT / "csrc" / "cuda" / "launch.cu").exists():
        return "needs the source tree"
    if importlib.util.find_spec("pybind11") is None:
        return "needs pybind11"
    return None


def flags() -> list[str]:
    shim = ROOT / "tests" / "cuda"
    # Contraction as nvcc does it. FMA in hardware, where there is one: fmaf() in
    # software takes most of the time otherwise.
    return [
        *("-std=c++17", "-march=native", "-ffp-contract=fast", "-Wno-unknown-pragmas"),
        *("-DNOISYFLOW_HOST_SHIM", f"-I{shim}"),
    ]


def compile_host(
    out: Path, sources: list[Path], options: list[str], environment: Any = None
) -> None:
    """One object per source, as many at a time as there are processors; then a link."""
    objects = [out.parent / f"{out.stem}_{source.name}.o" for source in sources]
    waiting = list(zip(sources, objects, strict=True))
    running: list[subprocess.Popen[bytes]] = []
    limit = os.cpu_count() or 1
    while waiting or running:
        while waiting and len(running) < limit:
            source, target = waiting.pop(0)
            command = [str(COMPILER), *flags(), *options, "-x", "c++", "-c"]
            running.append(subprocess.Popen([*command, str(source), "-o", str(target)]))
        assert running.pop(0).wait() == 0
    files = [str(target) for target in objects]
    subprocess.run([str(COMPILER), *options, *files, "-o", str(out)], check=True)


def build(folder: Path) -> ModuleType:
    """`_cuda_host`, compiled into a folder and imported."""
    import pybind11

    out = folder / ("_cuda_host" + str(sysconfig.get_config_var("EXT_SUFFIX")))
    options = [
        *("-O2", "-fPIC", "-shared", "-fvisibility=hidden"),
        f"-I{pybind11.get_include()}",
        f"-I{sysconfig.get_paths()['include']}",
    ]
    sources = [
        ROOT / "csrc" / "cuda" / "launch.cu",
        ROOT / "csrc" / "bindings" / "cuda_module.cpp",
        ROOT / "tests" / "cuda" / "host_shim.cpp",
    ]
    compile_host(out, sources, options)
    spec = importlib.util.spec_from_file_location("_cuda_host", out)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weight_shift(weights: Any, noise_std: float, dtype: Any) -> Any:
    """-2 noise_std^2 log w_j, and the far distance of a center that does not exist."""
    if weights is None:
        return None
    exact = np.asarray(weights, float)
    with np.errstate(divide="ignore", over="ignore"):
        shift = (-2 * noise_std**2 * np.log(exact)).astype(dtype)
    shift[exact == 0] = np.finfo(dtype).max / 8
    return shift


class Output:
    """An array with guards before and after it that nobody may write."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        size = int(np.prod(shape))
        self.memory = np.full(size + 2 * GUARD, -12345.0, dtype)
        self.array = self.memory[GUARD : GUARD + size].reshape(shape)
        self.array[...] = np.nan

    @property
    def pointer(self) -> int:
        return int(self.array.ctypes.data)

    def check(self) -> Any:
        assert (self.memory[:GUARD] == -12345.0).all(), "written before an output"
        assert (self.memory[-GUARD:] == -12345.0).all(), "written after an output"
        return self.array


def address(array: Any) -> int:
    return 0 if array is None else int(array.ctypes.data)


class HostCuda:
    """The functions of `_cuda` over NumPy arrays of one dtype, rows contiguous."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self._counts = ctypes.CDLL(str(module.__file__))
        self._counts.shim_num_barriers.restype = ctypes.c_uint64
        self._counts.shim_num_tensor_products.restype = ctypes.c_uint64

    def num_barriers(self) -> int:
        """How often blocks met at barriers so far: about two for each tile of work."""
        return int(self._counts.shim_num_barriers())

    def num_tensor_products(self) -> int:
        """Products of matrices by warps so far."""
        return int(self._counts.shim_num_tensor_products())

    def _launch(
        self,
        kind: str,
        function: Any,
        points: Any,
        centers: Any,
        noise_std: float,
        weights: Any,
        arguments: list[Any],
    ) -> None:
        (m, d), n, itemsize = points.shape, len(centers), points.itemsize
        shift = weight_shift(weights, noise_std, points.dtype)
        size = self.module.workspace_bytes(kind, itemsize, m, n, d)
        # As torch hands it out: anything is in it, NaN for instance.
        workspace = np.full(size + GUARD + 16, 0xFF, np.uint8)
        begin = -workspace.ctypes.data % 16
        workspace[begin + size :] = 77
        function(
            *(itemsize, address(points), points.strides[0] // itemsize, m),
            *(address(centers), centers.strides[0] // itemsize, n, d),
            *(float(noise_std), address(shift)),
            *arguments,
            *(address(workspace[begin:]), size, 0),
        )
        assert (workspace[begin + size :] == 77).all(), "written after the workspace"

    def log_density(
        self, points: Any, centers: Any, noise_std: float, weights: Any = None, path=1
    ) -> Any:
        out = Output((len(points),), points.dtype)
        problem = (points, centers, noise_std, weights)
        self._launch(
            *("log_density", self.module.log_density, *problem, [out.pointer, path])
        )
        return out.check()

    def skipping_log_density(
        self,
        points: Any,
        centers: Any,
        noise_std: float,
        max_lost_mass: float,
        weights: Any = None,
    ) -> Any:
        out = Output((len(points),), points.dtype)
        problem = (points, centers, noise_std, weights)
        function = self.module.skipping_log_density
        self._launch("skipping", function, *problem, [max_lost_mass, out.pointer])
        return out.check()

    def block_log_sums(
        self,
        points: Any,
        centers: Any,
        noise_std: float,
        own: Any,
        offsets: Any,
        outer_offsets: Any,
        weights: Any = None,
        include_rest: bool = True,
    ) -> list[Any]:
        """own, inner, outer and rest; the last two None without the rest."""
        membership = np.empty((len(centers), 4), np.int32)
        for column, ends in ((0, offsets), (2, outer_offsets)):
            block = np.searchsorted(ends, np.arange(len(centers)), side="right") - 1
            membership[:, column] = np.asarray(ends)[block]
            membership[:, column + 1] = np.asarray(ends)[block + 1]
        own = np.ascontiguousarray(own, np.int64)
        wanted = [True, True, include_rest, include_rest]
        outs = [Output((len(points),), points.dtype) if w else None for w in wanted]
        pointers = [0 if out is None else out.pointer for out in outs]
        self._launch(
            *("block_log_sums", self.module.block_log_sums),
            *(points, centers, noise_std, weights),
            [address(own), address(membership), include_rest, *pointers],
        )
        return [None if out is None else out.check() for out in outs]

    def gradients(
        self,
        points: Any,
        centers: Any,
        noise_std: float,
        weights: Any,
        log_density: Any,
        grad_output: Any,
        wanted: tuple[bool, bool, bool, bool] = (True, True, True, True),
    ) -> list[Any]:
        """grad_points, grad_centers, weight_mass, noise_terms; None if not wanted."""
        shapes = [points.shape, centers.shape, (len(centers),), (len(points),)]
        dtypes = [points.dtype, points.dtype, points.dtype, np.dtype(float)]
        outs = [
            Output(shape, dtype) if want else None
            for shape, dtype, want in zip(shapes, dtypes, wanted, strict=True)
        ]
        pointers = [0 if out is None else out.pointer for out in outs]
        self._launch(
            *("gradients", self.module.gradients),
            *(points, centers, noise_std, weights),
            [address(log_density), address(grad_output), *pointers],
        )
        return [None if out is None else out.check() for out in outs]
