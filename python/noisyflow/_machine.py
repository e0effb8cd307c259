"""What a machine is, as far as results and times depend on it, and what a process took.

Everything is read, nothing is run, and what cannot be read is left out. Texts are made
to be shown to others: they name no user, no host and no folder.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
# What decides the number of threads, the CPU target, or what a GPU can be.
VARIABLES = (
    "NOISYFLOW_NUM_THREADS",
    "NOISYFLOW_CPU_TARGET",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "RANK",
    "WORLD_SIZE",
    "SLURM_CPUS_PER_TASK",
)
# A value with anything else in it, such as a path, is not for others to see.
_SHAREABLE = re.compile(r"[\w.,:-]{0,60}", re.ASCII)
_GIB = 2**30
_UNLIMITED = 2**60  # bytes; cgroup v1 writes about 2^63 where there is no limit


def system() -> str:
    """Operating system, its version, architecture and C library."""
    parts = [f"{platform.system()} {platform.release()} {platform.machine()}"]
    if sys.platform == "darwin":
        parts = [f"macOS {platform.mac_ver()[0]} {platform.machine()}"]
    with contextlib.suppress(OSError, KeyError):
        parts.append(platform.freedesktop_os_release()["PRETTY_NAME"])
    parts.append(" ".join(platform.libc_ver()).strip())
    return ", ".join(filter(None, parts))


def processor() -> str:
    """The CPU's name, its cores, and how many of them this process may use."""
    cores = f"{os.cpu_count() or 'unknown'} logical"
    physical = _physical_cores()
    if physical:
        cores += f" of {physical} physical"
    parts = [cpu_name(), f"cores: {cores}"]
    allowed = len(cpus())
    if allowed != (os.cpu_count() or allowed):
        parts.append(f"{allowed} allowed to this process")
    quota = cpu_quota()
    if quota is not None:
        parts.append(f"quota of {quota:.3g} by a control group")
    return ", ".join(parts)


def cpus() -> list[int]:
    """Where this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def num_cpus() -> int:
    """CPUs that this process is granted: where it may run, or its quota if less."""
    return min(len(cpus()), granted_cpus())


@functools.cache
def granted_cpus() -> int:
    """The quota of its control groups, rounded up; as it was when first asked for."""
    quota = cpu_quota()
    return sys.maxsize if quota is None else max(1, math.ceil(quota))


def memory() -> str:
    """Total and free memory, and the limit of a control group; empty where unknown."""
    parts = []
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", _text(_MEMINFO), re.MULTILINE))
    if "MemTotal" in sizes:
        parts.append(f"{int(sizes['MemTotal']) * 1024 / _GIB:.1f} GiB")
        if "MemAvailable" in sizes:
            free = int(sizes["MemAvailable"]) * 1024 / _GIB
            parts.append(f"{free:.1f} GiB available")
    else:
        try:
            size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            parts.append(f"{size / _GIB:.1f} GiB")
        except (AttributeError, OSError, ValueError):
            pass
    limit = memory_limit()
    if limit is not None:
        parts.append(f"limit of {limit / _GIB:.3g} GiB by a control group")
    return ", ".join(parts)


def peak_bytes() -> int:
    """Largest memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    is_in_bytes = sys.platform == "darwin"  # in KiB everywhere else
    return peak if is_in_bytes else peak * 1024


def variables() -> str:
    """The environment variables that are set and matter, as far as fit to be shown."""
    shown = []
    for name in VARIABLES:
        value = os.environ.get(name)
        if value is not None:
            is_fit = _SHAREABLE.fullmatch(value)
            shown.append(f"{name}={value if is_fit else '(not shown)'}")
    return ", ".join(shown) or "none of those that matter is set"


def cpu_quota() -> float | None:
    """CPUs that a control group grants, processor seconds a second; None: no limit."""
    quotas = []
    for folder in _groups("cpu"):
        parts = _text(folder / "cpu.max").split()
        if not parts:  # version 1
            parts = [
                _text(folder / f"cpu.cfs_{name}_us").strip()
                for name in ("quota", "period")
            ]
        if len(parts) == 2 and all(part.isdigit() for part in parts) and int(parts[1]):
            quotas.append(int(parts[0]) / int(parts[1]))
    return min(quotas, default=None)


def memory_limit() -> int | None:
    """Bytes that a control group grants; None: no limit."""
    limits = []
    for folder in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(folder / name).strip()
            if text.isdigit() and int(text) < _UNLIMITED:
                limits.append(int(text))
    return min(limits, default=None)


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, and of those above them.

    Inside a container its own group often appears as the root.
    """
    for line in _text(_OWN_CGROUP).splitlines():
        (_, names, path) = [*line.split(":", 2), "", ""][:3]
        if names and controller not in names.split(","):
            continue
        root = _CGROUP / controller if names else _CGROUP
        here = root / path.lstrip("/")
        while True:
            yield here
            if here == root or root not in here.parents:
                break
            here = here.parent


def cpu_name() -> str:
    """As the CPU calls itself."""
    found = re.search(
        r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", _text(_CPUINFO), re.MULTILINE
    )
    if found:
        return found[1].strip()
    return platform.processor() or platform.machine()


def _physical_cores() -> int:
    """Cores that share nothing; 0 where the system does not say."""
    cores = set()
    for entry in _text(_CPUINFO).split("\n\n"):
        fields = dict(re.findall(r"^(physical id|core id)\s*:\s*(\d+)", entry, re.M))
        if len(fields) == 2:
            cores.add((fields["physical id"], fields["core id"]))
    return len(cores)


def _text(path: Path) -> str:
    """What a file of the system says; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
