"""Random calls of `_core`, hostile ones too: each ends in an answer or a refusal.

    python tests/fuzz/fuzz_core.py --cases 100000 --seed 0

An answer is checked (core_cases.py); a refusal is a ValueError or a TypeError with a
message. Anything else is a defect: a crash, a case that takes longer than --limit,
another exception, NaN from finite input, a wrong shape or a wrong number. Cases run in
processes of their own, so that one that dies is only one; every failure is printed with
the command that runs it alone. A build under sanitizers is made and fuzzed by
tests/fuzz/run.sh.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from other_core import load_core

CHUNK = 4000  # cases in a process
Tally = collections.Counter[str]


def describe(value: Any) -> str:
    """An argument in a line: an array by its memory, and few numbers by themselves."""
    if isinstance(value, np.ndarray):
        head = f"array {value.shape} {value.dtype}, strides {value.strides}"
        has_few = 0 < value.size <= 12 and value.dtype.kind in "fiub"
        return f"{head}: {value.tolist()}" if has_few else head
    if isinstance(value, list):
        return f"[{', '.join(describe(v) for v in value[:4])}]"
    return repr(value)[:200]


class Case:
    """One case: its arguments are kept to be told of."""

    def __init__(
        self, core: Any, seed: int, index: int, only: str | None = None
    ) -> None:
        self.core = core
        self.rng = np.random.default_rng([seed, index])
        self.only = only
        self.name = "?"
        self.args: dict[str, Any] = {}
        self.tally: Tally = collections.Counter()

    def run(self) -> None:
        """Raises what is wrong."""
        target = str(hostile.pick(self.rng, self.core.available_targets()))
        self.core.force_target(target)
        by_name = {t.name: t for t in core_cases.TARGETS} | {"Prepared": None}
        # force_target has little to say; a Prepared has much.
        names = [name for name in by_name if name != "force_target"] + 3 * ["Prepared"]
        if self.rng.random() < 0.01:
            names = ["force_target"]
        self.name = self.only or str(hostile.pick(self.rng, names))
        chosen = by_name[self.name]
        if chosen is None:
            self.run_prepared()
        else:
            self.run_function(chosen)

    def run_function(self, target: Any) -> None:
        args = self.args = target.draw(self.rng)
        is_spoilt = self.spoil(args)
        function = getattr(self.core, target.name)
        result = self.call(function, args, is_spoilt or target.name == "force_target")
        if result is not None:
            target.check(as_arrays(args), result[0])
        if is_spoilt or result is None or self.rng.random() > 0.05:
            return
        if target.name in ("force_target", "path_importance", "path_replicas"):
            return
        with ThreadPoolExecutor(3) as pool:  # several Python threads at once
            jobs = [pool.submit(function, **args) for _ in range(4)]
            for job in jobs:
                is_same = prepared_cases.same(job.result(), result[0])
                core_cases.require(is_same, "another answer beside other threads")

    def run_prepared(self) -> None:
        require = core_cases.require
        args, points = prepared_cases.draw_prepared(self.rng)
        self.args = args
        is_spoilt = self.spoil(args, chance=0.3)
        is_single = getattr(args["centers"], "dtype", None) == np.float32
        kind = "Prepared32" if is_single else "Prepared64"
        if is_spoilt and self.rng.random() < 0.1:
            kind = "Prepared32"
        made = self.call(getattr(self.core, kind), args, is_spoilt)
        if made is None:
            return
        prepared, made_of = made[0], prepared_cases.copied(as_arrays(args))
        require(prepared.num_leaves >= 1, "a tree without leaves")
        require(prepared.num_cells >= 0 < prepared.num_bytes, "a tree of nothing")
        if self.rng.random() < 0.1:
            prepared_cases.check_lifetime(self.core, prepared, kind)
        points = points.copy()
        if self.rng.random() < 0.5:
            prepared_cases.forget(args)
        del args
        questions = []
        for _ in range(3):
            question = prepared_cases.draw_question(
                self.rng, points, len(made_of["centers"])
            )
            is_odd = self.spoil(question, chance=0.3)
            self.args = made_of | {f"asked {k}": v for k, v in question.items()}
            is_odd = is_odd or points.shape[1] != made_of["centers"].shape[1]
            answer = self.call(prepared.log_density, question, is_odd or is_spoilt)
            if answer is not None:
                prepared_cases.check_answer(made_of, as_arrays(question), answer[0])
                questions.append(question)
        if questions and self.rng.random() < 0.1:
            prepared_cases.check_together(prepared, questions)

    def spoil(self, args: dict[str, Any], chance: float = 0.6) -> bool:
        """Replaces an argument or two at times; says whether."""
        if self.rng.random() > chance:
            return False
        for _ in range(1 + int(self.rng.random() < 0.2)):
            key = str(hostile.pick(self.rng, list(args)))
            spoilt = hostile.spoil(self.rng, args[key])
            if self.name == "first_nonfinite" and is_endless(spoilt):
                continue  # it would look at every number, and rightly so
            args[key] = spoilt
        return True

    def call(self, function: Any, args: dict[str, Any], may_refuse: bool) -> Any:
        """A tuple of the answer alone; None if it was refused, as it may be."""
        arguments, named = list(args.values()), {}
        kind = self.rng.random()
        if kind < 0.5:
            arguments, named = [], dict(args)
        elif kind < 0.52:
            arguments, may_refuse = arguments[:-1], True
        elif kind < 0.54:
            arguments, may_refuse = [*arguments, None], True
        elif kind < 0.55:
            named, may_refuse = {"nothing": 1}, True
        refusals: tuple[type[Exception], ...] = (ValueError, TypeError)
        if any(map(is_endless, args.values())):
            refusals += (MemoryError,)
        try:
            answer = function(*arguments, **named)
        except refusals as error:
            if not may_refuse:
                raise
            if not str(error).strip():
                raise
            self.tally[f"{self.name} refused"] += 1
            return None
        self.tally[f"{self.name} answered"] += 1
        return (answer,) if kind >= 0.55 or kind < 0.5 else None


def is_endless(value: Any) -> bool:
    """Whether these are more rows than any machine holds, all in the place of one."""
    return isinstance(value, np.ndarray) and value.shape[:1] == (hostile.NO_MACHINE,)


def as_arrays(args: dict[str, Any]) -> dict[str, Any]:
    """What the extension makes of lists, tuples and masked arrays."""

    def plain(key: str, value: Any) -> Any:
        if isinstance(value, list | tuple) and key in ("weights", "biases"):
            return [np.asarray(v) for v in value]
        is_many = isinstance(value, list | tuple | np.ndarray)
        return np.asarray(value) if is_many else value

    return {key: plain(key, value) for key, value in args.items()}


def failure_of(case: Case) -> str | None:
    """What is wrong about a case, None if nothing is."""
    try:
        case.run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        case.core.force_target(None)
    return None


def work(options: argparse.Namespace, begin: int, end: int, progress: Path) -> None:
    """The cases of a process; reports them as lines of JSON."""
    from noisyflow import _core

    tally: Tally = collections.Counter()
    with progress.open("r+b") as file, mmap.mmap(file.fileno(), 8) as at:
        for index in range(begin, end):
            at[:] = index.to_bytes(8, "little")
            faulthandler.dump_traceback_later(options.limit, exit=True)
            case = Case(_core, options.seed, index, options.only)
            message = failure_of(case)
            faulthandler.cancel_dump_traceback_later()
            tally.update(case.tally)
            if message is not None:
                arguments = {k: describe(v) for k, v in case.args.items()}
                report = {"case": index, "name": case.name, "message": message}
                print(json.dumps(report | {"arguments": arguments}), flush=True)
    print(json.dumps({"tally": tally}), flush=True)


def show(options: argparse.Namespace, failure: dict[str, Any]) -> None:
    where = f" --core {options.core}" if options.core else ""
    only = f" --only {options.only}" if options.only else ""
    print(f"\nFAILED: {failure['name']}, case {failure['case']}: {failure['message']}")
    for name, value in failure.get("arguments", {}).items():
        print(f"    {name}: {value}")
    print(
        f"    python tests/fuzz/fuzz_core.py --seed {options.seed} "
        f"--case {failure['case']}{only}{where}",
        flush=True,
    )


def run_chunk(
    options: argparse.Namespace, begin: int, end: int, tally: Tally
) -> tuple[int, int]:
    """Runs cases in a process; returns how many failed and where to go on."""
    with tempfile.TemporaryDirectory() as folder:
        progress, errors = Path(folder, "at"), Path(folder, "errors")
        progress.write_bytes(begin.to_bytes(8, "little"))
        command = [sys.executable, "-X", "faulthandler", __file__, "--worker"]
        command += [str(begin), str(end), str(progress)]
        command += ["--seed", str(options.seed), "--limit", str(options.limit)]
        command += ["--core", options.core] if options.core else []
        command += ["--only", options.only] if options.only else []
        env = os.environ | ({"LD_PRELOAD": options.preload} if options.preload else {})
        with errors.open("w") as file:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=file, text=True, env=env
            )
        reports = [json.loads(line) for line in done.stdout.splitlines()]
        failures = [report for report in reports if "case" in report]
        for failure in failures:
            show(options, failure)
        is_finished = bool(reports) and "tally" in reports[-1]
        if is_finished:
            tally.update(reports[-1]["tally"])
        if done.returncode == 0 and is_finished:
            return len(failures), end
        at = int.from_bytes(progress.read_bytes(), "little")
        what = "ended with" if is_finished else "died with"
        said = errors.read_text(errors="replace")[-6000:]
        message = f"the process {what} {done.returncode}\n{said}"
        show(options, {"case": at, "name": "process", "message": message})
        return len(failures) + 1, end if is_finished else at + 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first case")
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--only", help="calls of this name alone")
    parser.add_argument("--limit", type=float, default=60, help="seconds for a case")
    parser.add_argument("--core", help="an extension in the place of the package's")
    parser.add_argument("--preload", help="libraries to load first: a sanitizer's")
    parser.add_argument("--most-failures", type=int, default=20)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        begin, end, progress = options.worker
        work(options, int(begin), int(end), Path(progress))
        return 0
    begin, end = options.first, options.first + options.cases
    if options.case is not None:
        begin, end = options.case, options.case + 1
    start, num_failures, cases = time.monotonic(), 0, end - begin
    tally: Tally = collections.Counter()
    while begin < end and num_failures < options.most_failures:
        failed, begin = run_chunk(options, begin, min(end, begin + CHUNK), tally)
        num_failures += failed
    cases -= end - begin
    for name in sorted({key.rsplit(" ", 1)[0] for key in tally}):
        answered, refused = tally[f"{name} answered"], tally[f"{name} refused"]
        print(f"{name:24} {answered:8} answered {refused:8} refused")
    seconds = time.monotonic() - start
    print(
        f"{cases} cases, seed {options.seed}, {num_failures} failures, {seconds:.0f} s"
    )
    return 1 if num_failures else 0


if __name__ == "__main__" and "--worker" in sys.argv and "--core" in sys.argv:
    load_core(sys.argv[sys.argv.index("--core") + 1])

import core_cases  # noqa: E402  after `_core`, which may be another than the package's
import hostile  # noqa: E402
import prepared_cases  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
