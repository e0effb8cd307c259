"""What of this package can be used here, and why the rest cannot: `noisyflow check`.

The text is made to be shared: no user, no host and no folder is in it. torch takes
seconds to import. It is asked for its version by its metadata, and imported only where
there is a GPU to try.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import math
import platform
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from noisyflow import (
    __version__,
    _arrays,
    _core,
    _device,
    _machine,
    _reference,
    entropy,
    runtime,
)

_PACKAGES = ("numpy", "scipy", "torch", "matplotlib", "safetensors", "scikit-learn")
_OPTIONAL_PACKAGES = ("pytorch-lightning", "tensorboard", "jax", "pykeops", "numba")
# Rounding leaves a hundredth of this (docs/numerics.md), a wrong kernel much more.
_ALLOWED_ERROR = {"float32": 1e-4, "float64": 1e-12}
_MOST_STANDARD_ERRORS = 5.0  # the seed is fixed
_LOST_MASS = 1e-6  # that may be skipped in the test of skipping: nats, about
_PATHS = {"blocks": 2, "point by point": 3}  # of Prepared64.log_density

# h(S + Z) for S uniform on {-1, 1}^3 and Z of standard deviation 1/2: three times that
# of the mixture of N(-1, 1/4) and N(1, 1/4), by quadrature of 30 digits (mpmath).
_KNOWN_ENTROPY = 4.075534639144783


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
    Two seconds without a GPU; with one, also those that torch takes to import.

    Examples
    --------
    >>> findings = check()
    >>> findings.lines[0].startswith("noisyflow")
    True
    """
    found = Findings()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    found.add("noisyflow", f"{__version__}, {_installation()}, {python}")
    found.add("built with", _build())
    found.add("packages", ", ".join(map(_version, _PACKAGES)))
    others = [name for name in map(_version, _OPTIONAL_PACKAGES) if name[:3] != "no "]
    found.add("optional", ", ".join(others) or "no other package that could be used")
    found.add("system", _machine.system())
    found.add("processor", _machine.processor())
    found.add("memory", _machine.memory() or "unknown")
    found.add("environment", _machine.variables())
    try:
        chosen = runtime.cpu_target()
        threads = runtime.num_threads()
    except ValueError as error:  # an environment variable that cannot be followed
        found.add("CPU", f"not usable: {error}")
        found.failures.append("CPU")
        return found
    found.add("CPU", f"{chosen}, of {', '.join(runtime.available_cpu_targets())}")
    found.add("threads", f"at most {threads}{_about_threads(threads)}")
    _test_targets(found, chosen)
    _test_entropy(found)
    _check_cuda(found)
    return found


def _installation() -> str:
    """Whether this is a copy in site-packages, editable, or a source tree."""
    try:
        distribution = importlib.metadata.distribution("noisyflow")
    except importlib.metadata.PackageNotFoundError:
        return "not installed: a source tree on the path"
    try:
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        is_editable = bool(origin.get("dir_info", {}).get("editable"))
    except (ValueError, AttributeError):
        is_editable = False
    if is_editable:
        return "installed, editable"
    installed = Path(str(distribution.locate_file("noisyflow")))
    if installed.resolve() == Path(__file__).resolve().parent:
        return "installed"
    return f"a source tree on the path, before the installed {distribution.version}"


def _build() -> str:
    """Compiler, kind of build and pybind11 of the extension."""
    info = _core.build_info()
    return f"{info['compiler']}, {info['build_type']}, pybind11 {info['pybind11']}"


def _about_threads(threads: int) -> str:
    """Advice, where a control group grants fewer CPUs than there are threads."""
    quota = _machine.cpu_quota()
    if quota is None or threads <= math.ceil(quota):
        return ""
    return (
        f"; a control group grants {quota:.3g}: NOISYFLOW_NUM_THREADS="
        f"{math.ceil(quota)} would be quicker"
    )


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        found = getattr(sys.modules.get(package), "__version__", None)
        return f"{package} {found}" if found else f"no {package}"


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


def _test_targets(found: Findings, chosen: str) -> None:
    """Tests the kernels of every CPU target, the chosen one first."""
    others = [name for name in runtime.available_cpu_targets() if name != chosen]
    try:
        for target in [chosen, *others]:
            runtime.set_cpu_target(target)
            for dtype in _ALLOWED_ERROR:
                _test(found, "CPU test", _cpu_functions(), target, dtype)
            _test_skipping(found, target)
    finally:
        runtime.set_cpu_target(None)
        if runtime.cpu_target() != chosen:  # it was forced by the caller
            runtime.set_cpu_target(chosen)


def _test(
    found: Findings, name: str, functions: Any, part: str = "", dtype: str = "float32"
) -> None:
    """Log-density and gradient of a small mixture beside float64; part: of a device."""
    generator = np.random.default_rng(0)
    points, centers = generator.uniform(-1, 1, (2, 300, 3)).astype(dtype)
    weights = np.full(len(centers), 1 / len(centers))
    (value, mean, _) = _reference.posterior_moments(
        points.astype(np.float64), centers.astype(np.float64), 0.1
    )
    slope = mean / 0.1**2
    arrays = (array.astype(dtype) for array in (points, centers, weights, value))

    def errors() -> dict[str, float]:
        (log_density, gradient) = functions(*arrays)
        return {
            "log-density within {} nats": np.abs(log_density - value).max(),
            "gradient within {} of its size": (
                np.abs(gradient - slope).max() / np.abs(slope).max()
            ),
        }

    what = f"{part} {dtype}" if part else ""
    _record(found, name, what, errors, _ALLOWED_ERROR[dtype])


def _test_skipping(found: Findings, target: str) -> None:
    """Tests what leaves far centers out, both ways, beside every pair in float64."""
    generator = np.random.default_rng(1)
    centers = generator.uniform(-1, 1, (3000, 2))
    points = centers[:200] + 0.02 * generator.normal(size=(200, 2))

    def errors() -> dict[str, float]:
        right = _reference.mixture_log_density(points, centers, 0.02)
        threads = runtime.num_threads()
        tree = _core.Prepared64(centers, 0.02, None, _LOST_MASS, True, threads)
        found_errors = {}
        for name, path in _PATHS.items():
            (value, *_, counts) = tree.log_density(points, path, threads)
            if value is None or not counts[0] < right.size * len(centers):
                raise RuntimeError(f"{name}: nothing was skipped")
            found_errors[f"{name} within {{}} nats"] = np.abs(value - right).max()
        return found_errors

    _record(found, "CPU test", f"{target} skipping", errors, 2 * _LOST_MASS)


def _test_entropy(found: Findings) -> None:
    """Tests an entropy that is known, from a sum over corners of a cube."""
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T

    def errors() -> dict[str, float]:
        estimate = entropy(corners, 0.5, standard_error=1e-3, population=True)
        error = abs(estimate.value - _KNOWN_ENTROPY)
        return {"off by {} standard errors": error / estimate.standard_error}

    _record(found, "CPU test", "entropy", errors, _MOST_STANDARD_ERRORS)


def _record(found: Findings, name: str, part: str, errors: Any, allowed: float) -> None:
    """A line for a test: what errors() returns, by its wording, or raises."""
    failure = f"{name} ({part})" if part else name
    prefix = f"{part}: " if part else ""
    try:
        measured = {text: float(error) for text, error in errors().items()}
    except Exception as error:  # whatever breaks here is what is asked for
        found.add(name, f"{prefix}FAILED: {type(error).__name__}: {error}")
        found.failures.append(failure)
        return
    is_right = all(error <= allowed for error in measured.values())  # no for NaN
    said = ", ".join(text.format(f"{error:.1g}") for text, error in measured.items())
    found.add(name, f"{prefix}{'passed' if is_right else 'FAILED'}: {said}")
    if not is_right:
        found.failures.append(failure)


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
