"""The kernels of several builds of the extension: times beside the first, in one run.

    cmake -S . -B build/gcc -DCMAKE_BUILD_TYPE=Release -DNOISYFLOW_CUDA=OFF \\
        -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" && cmake --build build/gcc
    CXX=clang++ cmake -S . -B build/clang ...
    python bench/bench_compilers.py build/gcc build/clang

Each build lives in a process of its own. They take turns at every case, so that all
meet the same machine; the least processor time of the rounds counts. One thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_SERVE = "--serve"


def main(arguments: list[str]) -> None:
    if arguments[:1] == [_SERVE]:
        serve(Path(arguments[1]))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("builds", nargs="+", type=Path, help="folders with a _core")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    builds = [Build(folder) for folder in options.builds]
    try:
        for target in builds[0].targets:
            show(target, builds, options.rounds)
    finally:
        for build in builds:
            build.close()


def show(target: str, builds: list[Build], rounds: int) -> None:
    """Prints the ratios of one CPU target."""
    print(f"{target:<24}" + "".join(f"{build.compiler[:11]:>12}" for build in builds))
    for case in builds[0].cases:
        least = [float("inf")] * len(builds)
        for _ in range(rounds):
            for at, build in enumerate(builds):
                least[at] = min(least[at], build.seconds(target, case))
        ratios = "".join(f"{seconds / least[0]:12.2f}" for seconds in least)
        print(f"  {case:<22}{ratios}   {least[0] * 1e3:.1f} ms")


class Build:
    """An extension in its own process."""

    def __init__(self, folder: Path) -> None:
        found = sorted(folder.glob("_core*.so"))
        if len(found) != 1:
            raise SystemExit(f"{folder} holds {len(found)} extensions, not one")
        self._process = subprocess.Popen(
            [sys.executable, __file__, _SERVE, str(found[0].resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.compiler: str
        self.targets: list[str]
        self.cases: list[str]
        (self.compiler, self.targets, self.cases) = self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def seconds(self, target: str, case: str) -> float:
        """Processor time of one call."""
        assert self._process.stdin is not None
        print(json.dumps([target, case]), file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def serve(path: Path) -> None:
    """Answers on standard output what is asked on standard input."""
    spec = importlib.util.spec_from_file_location("_core", path)
    assert spec is not None
    assert spec.loader is not None
    core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)
    cases = calls(core)
    info = [core.build_info()["compiler"], core.available_targets(), list(cases)]
    print(json.dumps(info), flush=True)
    for line in sys.stdin:
        (target, case) = json.loads(line)
        core.force_target(target)
        start = time.process_time()
        cases[case]()
        print(time.process_time() - start, flush=True)


def calls(core: Any) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    generator = np.random.default_rng(0)
    found: dict[str, Callable[[], object]] = {}
    for d, n in ((3, 3000), (10, 3000), (64, 1500)):
        for dtype in ("float32", "float64"):
            (x, y) = generator.uniform(-1, 1, (2, n, d)).astype(dtype)
            found[f"{dtype}, d = {d}"] = lambda x=x, y=y: core.log_density(
                x, y, 1.0, None, 1
            )
    (x, y) = generator.uniform(-1, 1, (2, 2000, 3)).astype(np.float32)
    weights = np.full(len(y), 1 / len(y), np.float32)
    value = core.log_density(x, y, 1.0, None, 1)
    found["gradients, d = 3"] = lambda: core.log_density_gradients(
        *(x, y, 1.0, weights, value, np.ones_like(value)),
        *(True, True, False, False, 0.0, 1),
    )
    z = generator.uniform(-1, 1, (20_000, 3))
    found["skipping, d = 3"] = lambda: core.Prepared64(
        z, 0.02, None, 1e-6, True, 1
    ).log_density(z[:5000], 2, 1)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
