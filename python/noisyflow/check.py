"""What of this package can be used here, and why the rest cannot: `noisyflow check`.

torch takes seconds to import. It is asked for its version by its metadata, and imported
only where there is a GPU to try.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from noisyflow import __version__, _arrays, _core, _device, _reference, runtime

_PACKAGES = ("numpy", "scipy", "torch", "matplotlib", "safetensors")
# Rounding leaves a hundredth of this (docs/numerics.md), a wrong kernel much more.
_ALLOWED_ERROR = 1e-4


@dataclass
class Findings:
    """What was found, as lines to print.

    Attributes
    ----------
    lines : list of str
        One fact each; what cannot be used is followed by why, and what would help.
    failures : list of str
        What is there and gives wrong results, or breaks.
    """

    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def is_usable(self) -> bool:
        """Whether all that is there passed its test."""
        return not self.failures

    def __str__(self) -> str:
        verdict = "usable" if self.is_usable else "NOT usable: "
        return "\n".join([*self.lines, verdict + "; ".join(self.failures)])

    def add(self, what: str, text: str) -> None:
        """A line of two columns."""
        self.lines.append(f"{what:<14}{text}")


def check() -> Findings:
    """What is available and why not, with a short test of every device.

    Returns
    -------
    Findings

    Notes
    -----
    Less than a second without a GPU; with one, the seconds that torch takes to import.

    Examples
    --------
    >>> findings = check()
    >>> findings.lines[0].startswith("noisyflow")
    True
    """
    found = Findings()
    found.add("noisyflow", f"{__version__}, Python {platform.python_version()}")
    found.add("packages", ", ".join(map(_version, _PACKAGES)))
    try:
        chosen = runtime.cpu_target()
        threads = runtime.num_threads()
    except ValueError as error:  # an environment variable that cannot be followed
        found.add("CPU", f"not usable: {error}")
        found.failures.append("CPU")
        return found
    found.add("CPU", f"{chosen}, of {', '.join(runtime.available_cpu_targets())}")
    found.add("threads", f"at most {threads}")
    _test(found, "CPU test", _cpu_functions())
    _check_cuda(found)
    return found


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"


def _check_cuda(found: Findings) -> None:
    """The CUDA half: extension, driver, devices, and a test of each that can run.

    Whatever is missing is named, not only what is missed first.
    """
    module = _device.extension()
    if module is None:
        found.add("CUDA", f"not built: {_device.BUILD}")
        offered = _driver_version()
    else:
        found.add(
            "CUDA",
            f"built with {_device.version_text(module.toolkit_version())} for "
            f"{', '.join(module.compiled_architectures())}",
        )
        offered = module.driver_version()
    if offered:
        found.add("driver", f"knows CUDA {_device.version_text(offered)}")
    elif module is None:
        found.add(
            "driver", "none: no NVIDIA driver was found (libcuda.so): install one"
        )
    without_cuda = _torch_without_cuda()
    if without_cuda:
        found.add("torch", f"cannot use a GPU: {without_cuda}")
    if module is None:
        return
    try:
        count = module.device_count() if offered else 0
    except RuntimeError:
        count = 0
    if count == 0:
        try:
            _device.require(0)
        except RuntimeError as error:
            found.add("GPU", f"none: {error}")
        return
    for index in range(count):
        info = module.device_info(index)
        found.add(
            f"GPU {index}",
            f"{info['name']}, compute capability {info['major']}.{info['minor']}, "
            f"{info['total_memory'] / 2**30:.0f} GiB",
        )
        try:
            device = runtime.checked_device(f"cuda:{index}")
            _device.require(index)
        except (RuntimeError, ValueError) as error:
            found.add("", f"cannot be used: {error}")
            continue
        _test(found, f"GPU {index} test", _gpu_functions(device))


def _driver_version() -> int:
    """The CUDA version that the driver knows, as 13000; 0 without a driver."""
    version = ctypes.c_int(0)
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0
    return 0 if failed else version.value


def _torch_without_cuda() -> str:
    """Why torch could not use any GPU, and what would help; empty if it could."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return "it is not installed; pip install 'noisyflow[train]'"
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return ""
    if not re.search(r"^cuda\b.*=\s*None\s*$", text, re.MULTILINE):
        return ""
    return (
        f"{_version('torch')} was built without CUDA; install one with it "
        "(https://pytorch.org)"
    )


def _test(found: Findings, name: str, functions: Any) -> None:
    """Log-density and gradient of a small mixture beside float64."""
    generator = np.random.default_rng(0)
    points, centers = generator.uniform(-1, 1, (2, 300, 3))
    weights = np.full(len(centers), 1 / len(centers))
    (value, mean, _) = _reference.posterior_moments(points, centers, 0.1)
    slope = mean / 0.1**2
    try:
        (log_density, gradient) = functions(
            *(part.astype(np.float32) for part in (points, centers, weights, value))
        )
    except Exception as error:  # whatever breaks here is what is asked for
        found.add(name, f"FAILED: {type(error).__name__}: {error}")
        found.failures.append(name)
        return
    errors = [
        float(np.abs(log_density - value).max()),
        float(np.abs(gradient - slope).max() / np.abs(slope).max()),
    ]
    is_right = all(error <= _ALLOWED_ERROR for error in errors)  # no for NaN
    found.add(
        name,
        f"{'passed' if is_right else 'FAILED'}: log-density within {errors[0]:.1g} "
        f"nats, gradient within {errors[1]:.1g} of its size, in float32",
    )
    if not is_right:
        found.failures.append(name)


def _cpu_functions() -> Any:
    def compute(points: Any, centers: Any, weights: Any, value: Any) -> Any:
        threads = runtime.num_threads()
        log_density = _core.log_density(points, centers, 0.1, weights, threads)
        (gradient, _, _, _) = _core.log_density_gradients(
            *(points, centers, 0.1, weights, value, np.ones_like(value)),
            *(True, False, False, False, 0.0, threads),
        )
        return log_density, gradient

    return compute


def _gpu_functions(device: Any) -> Any:
    def compute(*arrays: Any) -> Any:
        import torch

        tensors = [torch.as_tensor(array, device=device) for array in arrays]
        (points, centers, weights, value) = tensors
        log_density = _device.log_density(points, centers, 0.1, weights)
        (gradient, _, _, _) = _device.gradients(
            *(points, centers, 0.1, weights, value, torch.ones_like(value)),
            *(True, False, False, False),
        )
        return tuple(
            _arrays.to_numpy("result", part.cpu()) for part in (log_density, gradient)
        )

    return compute
