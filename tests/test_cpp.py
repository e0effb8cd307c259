"""What can be tested of csrc without Python, for every CPU target."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from noisyflow import runtime

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
FLAGS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "baseline": [],
    "neon": [],
}

pytestmark = pytest.mark.skipif(
    COMPILER is None or not (ROOT / "csrc").exists(),
    reason="needs a C++ compiler and the source tree",
)


@pytest.mark.parametrize("name", ["test_core", "test_tiles", "test_cells"])
def test_what_headers_promise_holds(name: str, cpu_target: str, tmp_path: Path) -> None:
    program = tmp_path / name
    source = ROOT / "tests" / "cpp" / f"{name}.cpp"
    flags = ["-std=c++17", "-O2", "-ffp-contract=fast", "-Wno-psabi"]
    command = [str(COMPILER), *flags, *FLAGS[cpu_target], str(source)]
    subprocess.run([*command, "-o", str(program)], check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.skipif(
    "avx2" not in runtime.available_cpu_targets() or shutil.which("nm") is None,
    reason="needs an x86-64 CPU with AVX2 and nm",
)
def test_no_code_is_shared_between_cpu_targets(tmp_path: Path) -> None:
    """A weak symbol in two targets would let the linker run AVX-512 code anywhere.

    Without optimisation, where nothing is inlined away.
    """
    weak: dict[str, set[str]] = {}
    for target in ("avx512", "avx2", "baseline"):
        flags = FLAGS[target]
        out = tmp_path / f"{target}.o"
        source = ROOT / "csrc" / "cpu" / f"target_{target}.cpp"
        options = ["-std=c++17", "-O0", "-fPIC", "-fno-exceptions", "-Wno-psabi"]
        command = [str(COMPILER), *options, *flags, "-c", str(source), "-o", str(out)]
        subprocess.run(command, check=True)
        listing = subprocess.run(
            ["nm", str(out)], check=True, capture_output=True, text=True
        ).stdout
        fields = [line.split() for line in listing.splitlines()]
        weak[target] = {f[-1] for f in fields if len(f) > 1 and f[-2] in "WVu"}
    for one, other in itertools.combinations(weak, 2):
        assert not weak[one] & weak[other]
