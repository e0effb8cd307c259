"""Gates on what nvcc makes of the kernels: registers, spills, instructions per pair.

Without a GPU the number of instructions is what tells a fast kernel from a slow one.
The figures on record (tests/cuda/instructions.json) are those of one toolkit; written
anew by

    NOISYFLOW_RECORD_INSTRUCTIONS=1 pytest tests/test_cuda_compile.py

Registers and spills are told by ptxas; instructions by cuobjdump and nvdisasm, from
the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm, or where
NOISYFLOW_CUOBJDUMP says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NVCC = shutil.which("nvcc")
RECORD = ROOT / "tests" / "cuda" / "instructions.json"
ARCHITECTURES = ("80", "90")

# Registers of a thread at most: 65536 / (128 threads x blocks at a time), 8 at a time.
MOST_REGISTERS = {
    "log_sums_kernel": 168,
    "tiled_log_sums_kernel": 168,
    "skipping_kernel": 168,
    "tensor_kernel": 168,
}
MOST_REGISTERS_ELSEWHERE = 255  # what a thread can have: beyond, ptxas spills

pytestmark = pytest.mark.skipif(
    NVCC is None or not (ROOT / "csrc" / "cuda").exists(),
    reason="needs nvcc and the source tree",
)


def find_cuobjdump() -> str | None:
    named = os.environ.get("NOISYFLOW_CUOBJDUMP")
    if named is not None:
        return named  # promised: if it is not there, what runs it fails
    packages = Path(sysconfig.get_paths()["platlib"]) / "nvidia"
    found = sorted(packages.glob("*/bin/cuobjdump"))
    return str(found[-1]) if found else shutil.which("cuobjdump")


@dataclass
class Kernel:
    """A kernel as compiled; `name` as in "log_sums_kernel float 3 8 8"."""

    name: str
    registers: int = 0
    spilled: int = 0
    code: list[tuple[int, str]] = field(default_factory=list)

    @property
    def family(self) -> str:
        return self.name.split()[0]

    @property
    def constants(self) -> list[int]:
        return [int(word) for word in self.name.split() if word.isdigit()]

    def loops(self) -> list[Counter[str]]:
        """Instructions of the innermost loops, by name."""
        ends = []
        for address, text in self.code:
            jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
            if jump is not None and int(jump[1], 16) < address:
                ends.append((int(jump[1], 16), address))
        inner = [
            (low, high)
            for low, high in ends
            if not any(
                low <= other[0] and other[1] <= high and other != (low, high)
                for other in ends
            )
        ]
        return [self.count(low, high) for low, high in inner]

    def count(self, low: int, high: int) -> Counter[str]:
        names = (
            re.sub(r"^@!?U?P\w+\s+", "", text).split()[0]
            for address, text in self.code
            if low <= address <= high
        )
        return Counter(name.split(".")[0] for name in names)

    def main_loop(self) -> Counter[str]:
        """The innermost loop that computes most; with matrices, if there are any."""
        matrices = any(loop["HMMA"] for loop in self.loops())
        work = ("HMMA",) if matrices else ("FFMA", "DFMA", "MUFU")
        return max(self.loops(), key=lambda loop: sum(loop[name] for name in work))

    def pairs(self) -> int:
        """Of point and center (and dimension, where tiled) in a turn of that loop."""
        if self.family == "tensor_kernel":
            return self.main_loop()["HMMA"]  # of instructions for a product
        if self.family.startswith("tiled"):
            return (32 if " float" in self.name else 16) * 2
        _, rows, columns = self.constants[:3]
        return rows * columns


def readable(mangled: str) -> str:
    """_ZN9noisyflow4cuda15log_sums_kernelIfLi3E..: "log_sums_kernel float 3"."""
    at = mangled.index("4cuda") + 5
    length = re.match(r"\d+", mangled[at:])
    assert length is not None
    begin = at + length.end()
    name = mangled[begin : begin + int(length[0])]
    rest = mangled[begin + int(length[0]) :]
    arguments = re.match(r"I([fd]?)((?:Li\d+E)*)E", rest)
    if arguments is None:
        return name
    types = {"f": " float", "d": " double", "": ""}
    numbers = "".join(f" {n}" for n in re.findall(r"Li(\d+)E", arguments[2]))
    return name + types[arguments[1]] + numbers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cubins")


@pytest.fixture(scope="module")
def compiled(folder: Path) -> dict[str, dict[str, Kernel]]:
    """Kernels by name, for each architecture, without their code."""
    source = ROOT / "csrc" / "cuda" / "launch.cu"
    running = {}
    for number in ARCHITECTURES:
        command = [str(NVCC), "-std=c++17", f"-arch=sm_{number}", "-cubin", "-Xptxas"]
        command += ["-v", str(source), "-o", str(folder / f"{number}.cubin")]
        running[number] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    kernels: dict[str, dict[str, Kernel]] = {}
    for number, process in running.items():
        _, report = process.communicate()
        assert process.returncode == 0, report
        kernels[number] = {}
        kernel = None
        for line in report.splitlines():
            if (
                entry := re.search(r"Compiling entry function '(\S+)'", line)
            ) is not None:
                kernel = Kernel(readable(entry[1]))
                kernels[number][kernel.name] = kernel
            elif kernel is not None and "bytes spill stores" in line:
                numbers = [int(n) for n in re.findall(r"(\d+) bytes", line)]
                kernel.spilled = sum(numbers)  # the stack frame, too
            elif kernel is not None and (used := re.search(r"Used (\d+) reg", line)):
                kernel.registers = int(used[1])
    return kernels


@pytest.fixture(scope="module")
def disassembled(
    compiled: dict[str, dict[str, Kernel]], folder: Path
) -> dict[str, dict[str, Kernel]]:
    """The same with their code."""
    tool = find_cuobjdump()
    if tool is None:
        pytest.skip(
            "no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        )
    for number, kernels in compiled.items():
        command = [tool, "-sass", str(folder / f"{number}.cubin")]
        listing = subprocess.run(command, check=True, capture_output=True, text=True)
        kernel = None
        for line in listing.stdout.splitlines():
            if (entry := re.search(r"Function : (\S+)", line)) is not None:
                kernel = kernels[readable(entry[1])]
            code = re.match(r"\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);", line)
            if kernel is not None and code is not None:
                kernel.code.append((int(code[1], 16), code[2].strip()))
        assert all(kernel.code for kernel in kernels.values())
    return compiled


def toolkit() -> str:
    text = subprocess.run(
        [str(NVCC), "--version"], check=True, capture_output=True, text=True
    ).stdout
    version = re.search(r"release (\d+\.\d+)", text)
    assert version is not None
    return version[1]


def has_record(kernel: Kernel) -> bool:
    forward = ("log_sums_kernel", "tiled_log_sums_kernel", "tensor_kernel")
    others = ("moments_kernel", "tiled_moments_kernel", "skipping_kernel")
    return kernel.family in (*forward, *others)


@pytest.mark.parametrize("number", ARCHITECTURES)
def test_nothing_is_spilled_and_registers_are_within_bounds(
    number: str, compiled: dict[str, dict[str, Kernel]]
) -> None:
    kernels = compiled[number].values()
    assert len(kernels) > 20
    for kernel in kernels:
        most = MOST_REGISTERS.get(kernel.family, MOST_REGISTERS_ELSEWHERE)
        assert kernel.spilled == 0, kernel.name
        assert 0 < kernel.registers <= most, kernel.name


@pytest.mark.parametrize("number", ARCHITECTURES)
def test_no_kernel_touches_local_memory(
    number: str, disassembled: dict[str, dict[str, Kernel]]
) -> None:
    for kernel in disassembled[number].values():
        traffic = [text for _, text in kernel.code if re.search(r"\b(LDL|STL)\b", text)]
        assert not traffic, kernel.name


@pytest.mark.parametrize("number", ARCHITECTURES)
def test_exponentials_and_products_of_matrices_are_single_instructions(
    number: str, disassembled: dict[str, dict[str, Kernel]]
) -> None:
    """One MUFU.EX2 for each pair in float32; HMMA on the tensor path."""
    seen = Counter[str]()
    for kernel in disassembled[number].values():
        if kernel.family in ("log_sums_kernel", "moments_kernel", "skipping_kernel"):
            if " float" in kernel.name:
                assert kernel.main_loop()["MUFU"] == kernel.pairs(), kernel.name
                seen[kernel.family] += 1
        elif kernel.family == "tensor_kernel":
            (parts,) = kernel.constants
            assert kernel.main_loop()["HMMA"] == {2: 32, 3: 48}[parts]
            seen[kernel.family] += 1
    assert seen["log_sums_kernel"] > 5
    assert seen["tensor_kernel"] == 2


def test_instructions_per_pair_are_within_5_percent_of_the_record(
    disassembled: dict[str, dict[str, Kernel]],
) -> None:
    ours = {
        number: {
            kernel.name: round(kernel.main_loop().total() / kernel.pairs(), 3)
            for kernel in kernels.values()
            if has_record(kernel)
        }
        for number, kernels in disassembled.items()
    }
    if os.environ.get("NOISYFLOW_RECORD_INSTRUCTIONS"):
        record = {"nvcc": toolkit(), "instructions_per_pair": ours}
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    record = json.loads(RECORD.read_text())
    if record["nvcc"] != toolkit():
        pytest.skip(f"figures on record are of nvcc {record['nvcc']}, not {toolkit()}")
    recorded = record["instructions_per_pair"]
    for number, figures in ours.items():
        assert figures.keys() == recorded[number].keys()
        for name, figure in figures.items():
            expected = recorded[number][name]
            assert abs(figure - expected) <= 0.05 * expected, (number, name, figure)
