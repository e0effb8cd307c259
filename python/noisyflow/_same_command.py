"""What must be the same on all ranks before they work: their results are mixed."""

from __future__ import annotations

import importlib.metadata
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisyflow import __version__, _core, runtime

__all__ = ["Fact", "difference", "of_array", "of_command", "of_cpu", "of_packages"]

_SAME_COMMAND = "all ranks must be given the same command"
_SAME_PACKAGES = "all ranks must have the same packages"
# Those besides this one that numbers come from.
_PACKAGES = ("numpy", "scipy", "torch")
# Read from a file before any work: few enough for a disk that is far away.
_NUM_VALUES = 64


class Fact(NamedTuple):
    """One thing that all ranks share: its name, its value as shown, what is wanted."""

    name: str
    value: str
    wanted: str


def of_command(options: Mapping[str, object]) -> list[Fact]:
    """Options and settings by their names; of a device only whether it is a GPU.

    A rank may be given a GPU of its own.
    """
    shown = {name: _shown(value) for name, value in options.items()}
    if "device" in options:
        shown["device"] = str(options["device"] or "cpu").partition(":")[0]
    return [Fact(name, value, _SAME_COMMAND) for name, value in shown.items()]


def of_packages() -> list[Fact]:
    """Versions, and how the kernels were built."""
    build = _core.build_info()
    found = {
        "noisyflow": __version__,
        **{f"noisyflow's {name}": str(build[name]) for name in sorted(build)},
        **{name: _version(name) for name in _PACKAGES},
    }
    return [Fact(name, value, _SAME_PACKAGES) for name, value in found.items()]


def of_cpu() -> Fact:
    """The CPU target, by which results differ in rounding."""
    wanted = (
        "numbers would depend on which rank computed them: set NOISYFLOW_CPU_TARGET, on"
        " all ranks, to a target that every CPU has"
    )
    return Fact("CPU target", runtime.cpu_target(), wanted)


def of_array(name: str, values: NDArray[Any]) -> list[Fact]:
    """Shape, dtype and some values of an array that every rank reads from a file."""
    places = np.linspace(0, values.size - 1, min(values.size, _NUM_VALUES))
    some = np.ascontiguousarray(values.flat[places.astype(np.int64)])
    found = {
        "shape": str(values.shape),
        "dtype": str(values.dtype),
        f"checksum of {len(some)} values": f"{zlib.crc32(some.tobytes()):08x}",
    }
    wanted = "all ranks must read the same file"
    return [Fact(f"{what} of {name}", value, wanted) for what, value in found.items()]


def difference(everyone: Sequence[Sequence[Fact]]) -> str | None:
    """The first rank that differs from rank 0, and in what; None where none does."""
    first = {fact.name: fact for fact in everyone[0]}
    for rank, facts in enumerate(everyone):
        other = {fact.name: fact for fact in facts}
        for name in [*first, *(name for name in other if name not in first)]:
            (here, there) = (
                found[name].value if name in found else "nothing"
                for found in (first, other)
            )
            if here != there:
                wanted = (first.get(name) or other[name]).wanted
                return f"{name} = {here} on rank 0 and {there} on rank {rank}; {wanted}"
    return None


def _shown(value: object) -> str:
    return value if isinstance(value, str) else repr(value)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
