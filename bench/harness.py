"""What the scripts of this folder share beside what `noisyflow bench` has too."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from noisyflow._benchmarking import (
    Table,
    constant,
    error_against,
    log_density,
    machine,
    peak_bytes,
    seconds_of,
    set_clock,
    time_interleaved,
    use_cpus,
)

__all__ = [
    "Table",
    "add_output_arguments",
    "add_timing_arguments",
    "compiled",
    "constant",
    "error_against",
    "has_module",
    "log_density",
    "machine",
    "peak_bytes",
    "seconds_of",
    "time_interleaved",
    "use_clock",
    "use_cpus",
    "write_json",
]

# What CMakeLists.txt compiles the kernels with.
_FLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
]
_TARGET_FLAGS = {
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"),
        "-mprefer-vector-width=512",
    ],
    "avx2": ["-mavx2", "-mfma"],
    "baseline": [],
    "native": ["-march=native"],
}


def has_module(name: str) -> bool:
    """Whether a peer can be imported; says so if not."""
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a broken installation raises
        print(f"{name}: absent ({type(error).__name__}: {error})".splitlines()[0])
        return False
    return True


def compiled(source: str, target: str, *, library: bool = False) -> Path:
    """A C++ file of this folder as a program or library, for one target or "native".

    $CXX or g++; built once per content of its sources, in the temporary folder.
    """
    here = Path(__file__).parent
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        raise SystemExit(
            f"bench/{source} needs a C++ compiler: install g++ or set CXX to one"
        )
    command = [*compiler.split(), *_FLAGS, *_TARGET_FLAGS[target]]
    if library:
        command += ["-shared", "-fPIC"]
    headers = sorted((here.parent / "csrc").rglob("*.h"))
    content = hashlib.sha256(" ".join(command).encode())
    for path in (here / source, *headers):
        content.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"noisyflow-bench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise SystemExit(f"{folder} belongs to someone else")
    program = folder / f"{Path(source).stem}-{content.hexdigest()[:16]}"
    if not program.exists():
        # -w: the compiler warns of its own AVX-512 headers.
        built = program.with_suffix(f".{os.getpid()}")
        result = subprocess.run(
            [*command, "-w", str(here / source), "-o", str(built)],
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr}")
        built.rename(program)
    return program


def use_clock(args: Any) -> None:
    """The clock of --clock; see add_timing_arguments."""
    if args.clock == "cpu" and args.threads > 1:
        raise SystemExit("--clock cpu adds up all threads: for one thread only")
    set_clock(time.process_time if args.clock == "cpu" else time.perf_counter)


def add_timing_arguments(parser: Any) -> None:
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: leave out what other processes take of a machine that is not idle",
    )


def add_output_arguments(parser: Any) -> None:
    parser.add_argument("--markdown", action="store_true", help="print markdown tables")
    parser.add_argument("--json", help="write the record to this file")


def write_json(path: str | None, record: dict[str, Any]) -> None:
    if path:
        Path(path).write_text(json.dumps(record, indent=2) + "\n")
