"""What is left behind: memory after many calls, and threads at the interpreter's end.

    python tests/fuzz/fuzz_lifetimes.py --calls 100000 --exits 10

Calls that answer and calls that are refused, of every function, over and over: the
process must not grow. And a process whose daemon threads compute while it ends must end
as if they did not.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

# What caches of threads that have ended may hold. A hundred thousand calls that lose 32
# bytes in one function of forty lose 80,000.
MOST_GROWTH_BYTES = 40_000
# Of Python's own: its caches fill slowly, with up to 300 blocks seen. A
# block lost in one function of forty is 2,500 in a hundred thousand calls.
MOST_GROWTH_BLOCKS = 500

DYING = """
import sys, threading, time
import other_core
if sys.argv[1]:
    other_core.load_core(sys.argv[1])
import numpy as np
from noisyflow import _core
x = np.random.default_rng(0).normal(size=(int(sys.argv[2]), 3))
tree = _core.Prepared64(x, 0.1, None, 1e-6, True, 1)
def compute():
    while True:
        _core.log_density(x, x, 0.1, None, 2)
        tree.log_density(x, 2, 2, None)
for _ in range(4):
    threading.Thread(target=compute, daemon=True).start()
time.sleep(0.2)
"""


class MallInfo(ctypes.Structure):
    """mallinfo2() of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def held() -> tuple[int, int]:
    """Bytes that malloc has given out, and blocks of Python's own allocator."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = MallInfo
    info = mallinfo()
    return info.uordblks + info.hblkhd, sys.getallocatedblocks()


def make_calls(core: Any, count: int) -> list[Any]:
    """Small calls that answer, and those that are refused, each with its arguments."""
    import core_cases
    import numpy as np
    import prepared_cases

    calls: list[Any] = []
    for index in range(count):
        for target in core_cases.TARGETS:
            rng = np.random.default_rng([7, index])
            args = target.draw(rng)
            sizes = [v.size for v in args.values() if isinstance(v, np.ndarray)]
            if max(sizes, default=0) > 3000:
                continue
            function = getattr(core, target.name)
            calls += [(function, args), (function, dict(list(args.items())[:-1]))]
            if "num_threads" in args:
                calls.append((function, args | {"num_threads": 0}))
                args["num_threads"] = min(args["num_threads"], 2)
        args, points = prepared_cases.draw_prepared(np.random.default_rng([8, index]))
        if args["centers"].size < 3000 and points.size < 3000:
            is_single = args["centers"].dtype == np.float32
            kind = core.Prepared32 if is_single else core.Prepared64

            def ask(points: Any, kind: Any = kind, **made_of: Any) -> None:
                kind(**made_of).log_density(points, 2, 2)

            calls += [(ask, args | {"points": points})]
            calls.append((kind, args | {"max_lost_mass": 2.0}))
    return calls


def grow(core: Any, num_calls: int) -> tuple[int, int]:
    """Bytes and blocks more after so many calls, once a tenth of them has been made."""
    calls = make_calls(core, 12)

    def make(count: int) -> int:
        done = 0
        while done < count:
            for function, args in calls:
                with contextlib.suppress(ValueError, TypeError):
                    function(**args)
            done += len(calls)
        gc.collect()
        return done

    make(num_calls // 10)
    before = held()
    done = make(num_calls)
    after = held()
    core.force_target(None)
    grown = (after[0] - before[0], after[1] - before[1])
    print(f"{done} calls: {grown[0]} bytes and {grown[1]} blocks more", flush=True)
    return grown


def has_grown(grown: tuple[int, int]) -> bool:
    return grown[0] > MOST_GROWTH_BYTES or grown[1] > MOST_GROWTH_BLOCKS


def ends(core: str, num_exits: int, preload: str | None) -> int:
    """How many of the processes did not end as they should."""
    folders = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = os.environ | {"PYTHONPATH": folders}
    if preload:
        env["LD_PRELOAD"] = preload
    num_bad = 0
    for k in range(num_exits):
        command = [sys.executable, "-c", DYING, core, str([200, 1000, 4000][k % 3])]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=300
        )
        if done.returncode or done.stderr:
            num_bad += 1
            print(f"FAILED: ended with {done.returncode}\n{done.stderr[-3000:]}")
    print(f"{num_exits} processes ended in the midst of calls, {num_bad} badly")
    return num_bad


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--exits", type=int, default=10)
    parser.add_argument("--core", default="", help="as of fuzz_core.py")
    parser.add_argument("--preload", help="as of fuzz_core.py; of the ending processes")
    options = parser.parse_args()
    start = time.monotonic()
    num_bad = ends(options.core, options.exits, options.preload)
    if options.calls:
        import other_core

        if options.core:
            other_core.load_core(options.core)
        from noisyflow import _core

        num_bad += has_grown(grow(_core, options.calls))
    print(f"{num_bad} failures, {time.monotonic() - start:.0f} s")
    return 1 if num_bad else 0


if __name__ == "__main__":
    sys.exit(main())
