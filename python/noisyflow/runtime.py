"""Where the kernels run: how many threads, for which CPU, on which device."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from noisyflow import _core, _device, _machine

_num_threads: int | None = None


def num_threads() -> int:
    """Largest number of threads a kernel may use.

    Set by `set_num_threads`, else the environment variable NOISYFLOW_NUM_THREADS, else
    `torch.get_num_threads()` if torch is imported, else the CPUs of this process; in
    the last two cases no more than the quota of its control group, as of a container.
    No result depends on it.

    Examples
    --------
    >>> num_threads() >= 1
    True
    """
    if _num_threads is not None:
        return _num_threads
    wanted = os.environ.get("NOISYFLOW_NUM_THREADS", "")
    if wanted:
        if not wanted.isdigit() or int(wanted) < 1:
            raise ValueError(
                f"NOISYFLOW_NUM_THREADS must be a positive integer, got {wanted!r}"
            )
        return int(wanted)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return min(int(torch.get_num_threads()), _machine.granted_cpus())
    return _machine.num_cpus()


def set_num_threads(count: int | None) -> None:
    """Sets the largest number of threads; None returns to the automatic choice.

    Raises
    ------
    TypeError, ValueError
        If `count` is not a positive integer or None.

    Examples
    --------
    >>> set_num_threads(1)
    >>> num_threads()
    1
    >>> set_num_threads(None)
    """
    global _num_threads
    if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
        raise TypeError(
            f"count must be a positive integer or None, got {type(count).__name__}"
        )
    if count is not None and count < 1:
        raise ValueError(f"count must be a positive integer or None, got {count}")
    _num_threads = count


def _chosen_num_threads() -> int | None:
    """What `set_num_threads` was given last; None for the automatic choice."""
    return _num_threads


def available_cpu_targets() -> list[str]:
    """CPU targets this machine can run, best first: of avx512, avx2, baseline.

    On ARM64 there is one, neon.

    Examples
    --------
    >>> cpu_target() in available_cpu_targets()
    True
    """
    return _core.available_targets()


def cpu_target() -> str:
    """The CPU target in use.

    Forced by `set_cpu_target` or the environment variable NOISYFLOW_CPU_TARGET, else
    the best available. Raises ValueError if the variable names a target this CPU lacks.

    Examples
    --------
    >>> cpu_target() in available_cpu_targets()
    True
    """
    return _core.active_target()


def set_cpu_target(name: str | None) -> None:
    """Forces a CPU target; None returns to the automatic choice.

    Raises
    ------
    ValueError
        If `name` is not one of `available_cpu_targets()`.

    Examples
    --------
    >>> slowest = available_cpu_targets()[-1]
    >>> set_cpu_target(slowest)
    >>> cpu_target() == slowest
    True
    >>> set_cpu_target(None)
    """
    _core.force_target(name)


def check_device_name(name: Any) -> str:
    """The name of a device, if it is cpu, cuda or cuda:N; else a ValueError."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", str(name), re.ASCII):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {str(name)!r}")
    return str(name)


def checked_device(name: str) -> Any:
    """The torch.device of this name, if tensors and kernels can be put there.

    Raises
    ------
    ValueError
        If the name is not cpu, cuda or cuda:N, or if the device cannot be used; the
        message says why, and what would help.
    """
    name = check_device_name(name)
    try:
        import torch
    except ModuleNotFoundError:
        raise ValueError(
            f"device {name!r} needs torch: pip install 'noisyflow[train]'"
        ) from None
    device = torch.device(name)
    if device.type == "cpu":
        return device
    why = f"device {name!r} cannot be used: "
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        raise ValueError(
            f"{why}this torch, {torch.__version__}, was built without CUDA; install "
            "one with it (https://pytorch.org), or choose cpu"
        )
    try:
        torch.empty(1, device=device)
        _device.require(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(why + str(error).splitlines()[0]) from error
    return device


def device_name(name: str) -> str:
    """The device as results record it: "cpu", or a GPU's index and name.

    Examples
    --------
    >>> device_name("cpu")
    'cpu'
    """
    if name == "cpu":
        return name
    import torch

    device = torch.device(name)
    index = torch.cuda.current_device() if device.index is None else device.index
    return f"cuda:{index} ({torch.cuda.get_device_name(index)})"
