"""Runs that are killed, starved, locked out and interrupted, then taken up: a score.

    python bench/faults.py                                # 50 kills and the rest
    python bench/faults.py --studies single-neuron --kills 4 --others 1   # a minute

Every run is the command `noisyflow run` in a process of its own, forked from this one,
which has imported everything and computed nothing. A fault meets it at a random time
after its second file operation, as a busy machine may be long in starting it, or
exactly before a random one of its file operations (open for writing, fsync, rename,
mkdir, remove), where it stops itself; at an fsync, half of what was written is taken
away first now and then. Then the same command runs to the end, and what is in the
folder is compared with an undisturbed run: every byte but the times that the work took.

kill          SIGKILL, in every third run also while it is taken up
full disk     as root a small tmpfs, filled while a file is written, and emptied again;
              else a limit on the size of a file
read-only     no permission to write in the folder, from one operation on, for a process
              without root's privileges; as root, too, a read-only file system
interrupts    SIGINT, in every other run twice
second run    of the same and of another study in a folder where one is at work
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import errno
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_THREADS = 1  # results do not depend on it; forked processes have no use for more
STUDIES = {
    "szt": ["--epochs", "6", "--set", "num_log_points=2"],
    "single-neuron": ["--set", "num_seeds=3", "--set", "num_steps=2000"],
    "szt-linear": [
        *("--set", "epochs=2", "--set", "num_log_points=1", "--set", "num_seeds=2"),
    ],
}
_SECONDS_LIMIT = 300.0  # for one process
_TIMES = {"seconds", "peak_mib", "training_seconds", "tracking_seconds"}
# What the work took, in the tables of a report.
_TOOK = re.compile(
    r'"[^"]* \([0-9.]+ s(, [0-9.]+ s per logged epoch)?\)(, [0-9]+ MiB)?"'
)
_has_own_mounts = False  # after `_prepare`, where it may
_OF_TIMES = {*_TIMES, "sha256"}  # arrays of a checkpoint that hold times, or a hash
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class FaultError(Exception):
    """What a run did that it should not have."""


@dataclass(frozen=True)
class Moment:
    """When a fault meets a run: `seconds` after its second file operation, or before
    the one of number `operation`, counted from 0; `is_torn` halves the file if that is
    an fsync."""

    seconds: float | None = None
    operation: int | None = None
    is_torn: bool = False

    def __str__(self) -> str:
        if self.operation is None:
            return f"after {self.seconds:.3f} s"
        return f"before operation {self.operation}" + (", torn" if self.is_torn else "")


# -- a run in a process of its own --------------------------------------------


class Run:
    """`noisyflow run STUDY --out FOLDER` in a forked process.

    Parameters
    ----------
    study : str
    folder : Path
    moment : Moment, optional
        If it names an operation, the process stops itself before it.
    trace : Path, optional
        Where the process writes its file operations at its end.
    is_bound : bool
        Whether permissions bind the process even where its user is root.
    largest : int, optional
        No file may grow beyond so many bytes.
    """

    def __init__(
        self,
        study: str,
        folder: Path,
        *,
        moment: Moment | None = None,
        trace: Path | None = None,
        is_bound: bool = False,
        largest: int | None = None,
    ) -> None:
        self.study = study
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self.code: int | None = None
        sys.stdout.flush()
        (self._begins, begins) = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(folder, moment, trace, is_bound, largest, begins)
        os.close(begins)

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        if self.code is None:
            status = self._waited(0)
            self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait_for_stop(self) -> bool:
        """Whether the process stopped itself; False if it has ended instead."""
        status = self._waited(os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return True
        self.code = os.waitstatus_to_exitcode(status)
        return False

    def is_at(self, moment: Moment) -> bool:
        """Waits for the moment; False if the run has ended before it."""
        if moment.operation is not None:
            return self.wait_for_stop()
        os.read(self._begins, 1)  # or nothing, where it ends before
        time.sleep(moment.seconds or 0)
        return not self.has_ended()

    def __del__(self) -> None:
        os.close(self._begins)

    def has_ended(self) -> bool:
        """Whether the process is gone, without waiting for it."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def send(self, number: signal.Signals) -> None:
        """A signal, to a process that has not been waited for."""
        if self.code is None:
            os.kill(self.pid, number)

    def output(self) -> str:
        """All that it has printed."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def expect(self, code: int, message: str) -> None:
        """Raises FaultError unless it ended so, without a traceback."""
        found, output = self.wait(), self.output()
        if found != code or not re.search(message, output) or "Traceback" in output:
            raise FaultError(
                f"exit code {found}, expected {code}; expected to read {message!r} "
                f"and no traceback, found:\n{output}"
            )

    def _waited(self, options: int) -> int:
        """The status of the process; it is killed where it takes too long."""
        before = signal.signal(signal.SIGALRM, lambda *_: self.send(signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, _SECONDS_LIMIT)
        try:
            return os.waitpid(self.pid, options)[1]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _become(
        self,
        folder: Path,
        moment: Moment | None,
        trace: Path | None,
        is_bound: bool,
        largest: int | None,
        begins: int,
    ) -> None:
        """In the child: runs the command and never returns."""
        code = 70
        try:
            for number in (1, 2):
                os.dup2(self._log.fileno(), number)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if largest is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
            operations = _watch(folder, moment, begins)
            if is_bound:
                _drop_capabilities()
            sys.argv = ["noisyflow", *command(self.study, folder)]
            from noisyflow import cli

            code = cli.main()
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # it would come too late now
            if trace is not None:
                trace.write_text("\n".join(operations))
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def command(study: str, folder: Path) -> list[str]:
    """The arguments of `noisyflow`."""
    return ["run", study, *STUDIES[study], "--out", str(folder)]


def _drop_capabilities() -> None:
    """Makes root a user like any other, whom permissions bind."""
    version_3 = (ctypes.c_uint32 * 2)(0x20080522, 0)
    none = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(version_3, none):
        raise OSError(ctypes.get_errno(), "cannot drop capabilities")


def _watch(folder: Path, moment: Moment | None, begins: int) -> list[str]:
    """Counts this process's file operations in a folder and stops before one of them.

    Writes a byte to `begins` at the second. The list grows. SIGKILL while a process is
    stopped ends it there and then: nothing of the operation has happened.
    """
    operations: list[str] = []
    within = str(folder)
    wanted = moment.operation if moment else None

    def count(what: str, path: Any, descriptor: int | None = None) -> None:
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if not name.startswith(within):
            return
        operations.append(f"{what} {name[len(within) :]}")
        if len(operations) == 2:
            os.write(begins, b".")
        if len(operations) - 1 == wanted:
            if descriptor is not None and moment is not None and moment.is_torn:
                with contextlib.suppress(OSError):  # a folder cannot be cut
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGSTOP)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & _WRITES:
                count("open", path)
        elif event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            count(event.removeprefix("os."), arguments[0])

    fsync = os.fsync

    def watched_fsync(descriptor: int) -> None:
        count("fsync", os.readlink(f"/proc/self/fd/{descriptor}"), descriptor)
        fsync(descriptor)

    os.fsync = watched_fsync
    sys.addaudithook(hook)
    return operations


# -- what a run leaves ----------------------------------------------------------


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a run's folder, without the times and memory that the work took."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = "folder"
        elif path.name in (".lock", "report.html"):
            found[name] = "there"
        elif path.name == "usage.json":
            continue  # a kill may lose it, and a full disk, as `Usage` says
        elif path.name == "history.csv":
            rows = csv.DictReader(io.StringIO(path.read_text()))
            found[name] = [
                {k: v for k, v in row.items() if k not in _TIMES} for row in rows
            ]
        elif path.name == "report.json":
            report = json.loads(_TOOK.sub('"took"', path.read_text()))
            found[name] = {k: v for k, v in report.items() if k not in _TIMES}
        elif path.name == "checkpoint.safetensors":
            found[name] = _arrays(path)
        else:
            found[name] = path.read_bytes()
    return found


def _arrays(path: Path) -> dict[str, bytes]:
    """A checkpoint's arrays; those that vouch for times are left out."""
    import safetensors.numpy

    arrays = safetensors.numpy.load(path.read_bytes())
    return {
        name: array.dtype.str.encode() + np.asarray(array).tobytes()
        for name, array in arrays.items()
        if name not in _OF_TIMES and not name.startswith("history.csv.")
    }


def require_equal(folder: Path, expected: dict[str, Any]) -> None:
    """Raises FaultError unless a finished run left what the undisturbed one did."""
    found = contents(folder)
    differing = [
        name
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    if differing:
        raise FaultError(f"differ from the undisturbed run: {', '.join(differing)}")


@dataclass
class Reference:
    """An undisturbed run: what it left, how long it took, its operations, bytes in
    all and in the largest file."""

    contents: dict[str, Any]
    seconds: float
    operations: list[str]
    size: int
    largest: int


def undisturbed(study: str, work: Path) -> Reference:
    """Runs a study twice; raises FaultError where the two differ by themselves."""
    folder, trace = work / "undisturbed", work / "operations"
    seconds = []
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        started = time.monotonic()
        Run(study, folder, trace=trace).expect(0, "report in")
        seconds.append(time.monotonic() - started)
        if len(seconds) == 1:
            first = contents(folder)
    require_equal(folder, first)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Reference(
        contents=first,
        seconds=min(seconds),
        operations=trace.read_text().splitlines(),
        size=sum(sizes),
        largest=max(sizes),
    )


# -- the faults -----------------------------------------------------------------


class Harness:
    """Meets runs of one study with faults, at moments drawn with a seed.

    A fault that comes too late for its run does not count and is drawn again; what the
    run left has to be right all the same. Every function returns how many faults came.
    """

    def __init__(self, study: str, work: Path, seed: int) -> None:
        self.study = study
        self._work = work
        self._random = random.Random(f"{study} {seed}")
        self._number = 0
        self.told = ""  # of the fault at hand, for who has to find out
        self.reference = undisturbed(study, work)

    def moment(self, *, least: int = 0, is_end: bool = True) -> Moment:
        """A random time or a random file operation; the latter from `least` on.

        Nothing is torn unless the moment is the run's end: one that goes on would put a
        file in place that it knows nothing wrong of.
        """
        if self._random.random() < 0.5:
            seconds = self._random.uniform(0, self.reference.seconds)
            return Moment(seconds=seconds)
        operation = self._random.randrange(least, len(self.reference.operations))
        is_torn = self._random.random() < 0.5
        return Moment(operation=operation, is_torn=is_torn and is_end)

    def kill(self) -> int:
        """SIGKILL, also while the run is taken up in every third case."""
        with self._folder() as folder:
            kills = 0
            for _ in range(self._random.choice([1, 1, 2])):
                moment = self.moment()
                self.told = f"{self.told}; killed {moment}"
                run = Run(self.study, folder, moment=moment)
                if not run.is_at(moment):
                    run.expect(0, "report in")
                    continue
                run.send(signal.SIGKILL)
                kills += run.wait() == -signal.SIGKILL
                if "Traceback" in run.output():
                    raise FaultError(run.output())
            self._finish(folder)
            return kills

    def fill_disk(self) -> int:
        """No space left, while a file is written or from a random time on."""
        if not can_mount():
            return self._limit_file_size()
        with self._folder() as folder, mounted(folder, 4 * self.reference.size + 2**20):
            run_folder = folder / "run"
            writes = [
                number
                for number, operation in enumerate(self.reference.operations)
                if operation.startswith("open") and ".lock" not in operation
            ]
            moment = Moment(operation=self._random.choice(writes))
            free = 4096 * self._random.choice([0, 0, 1, 2, 4])
            self.told = f"disk filled but for {free} bytes {moment}"
            run = Run(self.study, run_folder, moment=moment)
            if not run.is_at(moment):
                run.expect(0, "report in")
                return 0
            ballast = folder / "ballast"
            _fill(ballast, free)
            run.send(signal.SIGCONT)
            is_stopped = run.wait() != 0  # else nothing more had to be written
            if is_stopped:
                run.expect(1, rf"cannot write {run_folder}.*: No space left on device")
                # It says so again, and does no harm, as long as the disk is full.
                again = Run(self.study, run_folder)
                if again.wait() not in (1, 2) or "Traceback" in again.output():
                    again.expect(1, "No space left on device")
            ballast.unlink()
            self._finish(run_folder)
            return int(is_stopped)

    def _limit_file_size(self) -> int:
        """No file may be larger than one of the run's: what ulimit -f does."""
        with self._folder() as folder:
            # The limit is on what is printed, too, which needs some hundred bytes.
            least = self.reference.largest // 2
            largest = self._random.randrange(least, self.reference.largest)
            self.told = f"files limited to {largest} bytes"
            run = Run(self.study, folder, largest=largest)
            run.expect(1, rf"cannot write {folder}.*: File too large")
            self._finish(folder)
            return 1

    def lock_out(self) -> int:
        """No permission to write, from an operation on; then a read-only disk."""
        with self._folder() as folder:
            # The first two make the folder itself.
            operation = self._random.randrange(2, len(self.reference.operations))
            moment = Moment(operation=operation)
            self.told = f"folder read-only {moment}"
            run = Run(self.study, folder, moment=moment, is_bound=True)
            if not run.is_at(moment):
                run.expect(0, "report in")
                return 0
            modes = {p: p.stat().st_mode for p in [folder, *folder.rglob("*")]}
            for path in modes:
                path.chmod(0o555 if path.is_dir() else 0o444)
            run.send(signal.SIGCONT)
            is_stopped = run.wait() != 0
            if is_stopped:
                run.expect(1, rf"cannot write {folder}.*: Permission denied")
            again = Run(self.study, folder, is_bound=True)
            again.expect(2, rf"cannot (write|read)[^\n]*{folder}.*: Permission denied")
            for path, mode in modes.items():
                path.chmod(mode)
            self._finish(folder)
        return int(is_stopped) + (self._lock_disk() if can_mount() else 0)

    def _lock_disk(self) -> int:
        """A run that was killed is taken up on a read-only file system.

        The kernel does not let a file system become read-only while a run is at work
        on it, whose lock is open for writing.
        """
        size = 4 * self.reference.size + 2**20
        with self._folder() as folder, mounted(folder, size) as remount:
            run_folder = folder / "run"
            moment = self.moment(least=2)
            self.told = f"killed {moment}, then its disk read-only"
            run = Run(self.study, run_folder, moment=moment)
            if run.is_at(moment):
                run.send(signal.SIGKILL)
            run.wait()
            remount("ro")
            Run(self.study, run_folder).expect(
                2, rf"cannot write to {run_folder}: Read-only file system"
            )
            remount("rw")
            self._finish(run_folder)
            return 1

    def interrupt(self) -> int:
        """SIGINT, in every other case twice."""
        with self._folder() as folder:
            moment = self.moment(least=1, is_end=False)
            wait = self._random.choice([None, None, 0.0, self._random.uniform(0, 1)])
            self.told = f"SIGINT {moment}" + (
                "" if wait is None else f" and {wait:.3f} s later"
            )
            run = Run(self.study, folder, moment=moment)
            if not run.is_at(moment):
                run.expect(0, "report in")
                return 0
            run.send(signal.SIGINT)
            run.send(signal.SIGCONT)
            if wait is not None:
                time.sleep(wait)
                if not run.has_ended():
                    run.send(signal.SIGINT)
            came = run.wait() != 0
            if came:
                # The second may come before the first was answered.
                told = "" if wait is not None else "; the same command takes (it )?up"
                run.expect(130, told)
            self._finish(folder)
            return int(came)

    def run_twice(self) -> int:
        """A second run, of the same and of another study, where one is at work."""
        with self._folder() as folder:
            # Once the lock is there and held: operations 0 to 2 make it.
            moment = Moment(
                operation=self._random.randrange(4, len(self.reference.operations))
            )
            self.told = f"a second run {moment}"
            run = Run(self.study, folder, moment=moment)
            if not run.is_at(moment):
                run.expect(0, "report in")
                return 0
            Run(self.study, folder).expect(2, f"another run is working in {folder}")
            other = next(name for name in STUDIES if name != self.study)
            Run(other, folder).expect(
                2, f"{folder} holds a run of {self.study}, not of {other}|another run"
            )
            run.send(signal.SIGCONT)
            run.expect(0, "report in")
            require_equal(folder, self.reference.contents)
            return 1

    def _finish(self, folder: Path) -> None:
        """Takes the run up to its end and compares."""
        Run(self.study, folder).expect(0, "report in")
        require_equal(folder, self.reference.contents)

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        """A new folder's name; it is kept only where something went wrong."""
        self._number += 1
        self.told = f"{self.study}"
        folder = self._work / f"{self._number}"
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def _fill(ballast: Path, free: int) -> None:
    """Writes a file until nothing more fits, then gives `free` bytes back."""
    with ballast.open("wb", buffering=0) as file:
        block = bytes(2**16)
        while True:
            try:
                file.write(block)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                if len(block) == 4096:
                    break
                block = bytes(4096)
        file.truncate(max(0, file.tell() - free))


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """A tmpfs of so many bytes; gives a function that remounts it `ro` or `rw`."""
    folder.mkdir(exist_ok=True)
    options = f"size={size}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)

    def remount(mode: str) -> None:
        options = f"remount,{mode},size={size}"
        subprocess.run(["mount", "-o", options, folder], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def can_mount() -> bool:
    """Whether this process may mount a tmpfs, which goes when it goes."""
    return _has_own_mounts


def _separate_mounts() -> bool:
    """Gives this process mounts of its own; False where it may not have them."""
    if os.getuid() != 0 or not shutil.which("mount"):
        return False
    clone_newns = 0x00020000
    if ctypes.CDLL(None).unshare(clone_newns):
        return False
    private = ["mount", "--make-rprivate", "/"]
    return subprocess.run(private, capture_output=True, check=False).returncode == 0


# -- the score --------------------------------------------------------------------

_FAULTS: dict[str, tuple[str, Callable[[Harness], int]]] = {
    "kill": ("kills", Harness.kill),
    "full": ("full disks", Harness.fill_disk),
    "read-only": ("read-only folders and disks", Harness.lock_out),
    "interrupt": ("interruptions", Harness.interrupt),
    "second": ("second runs", Harness.run_twice),
}


def score(
    harnesses: list[Harness], fault: str, wanted: int, *, verbose: bool
) -> list[str]:
    """Meets studies in turn with a fault until it came so often; what went wrong."""
    name, meet = _FAULTS[fault]
    came, survived, attempts = 0, 0, 0
    problems: list[str] = []
    started = time.monotonic()
    while came < wanted and attempts < 4 * wanted + 10:
        harness = harnesses[attempts % len(harnesses)]
        attempts += 1
        try:
            number = meet(harness)
            came += number
            survived += number
        except FaultError as error:
            came += 1
            problems.append(f"{harness.told}: {error}")
            print(f"  {problems[-1]}", flush=True)
        if verbose:
            print(f"  {harness.told}", flush=True)
    print(
        f"{name}: {survived} of {came} ended in the results of an undisturbed run "
        f"({attempts} runs, {time.monotonic() - started:.0f} s)",
        flush=True,
    )
    if came < wanted:
        problems.append(f"{name}: only {came} of {wanted} came in {attempts} runs")
        print(problems[-1])
    return problems


def _prepare() -> None:
    """Imports all that runs need, so that a fork starts at once; computes nothing."""
    global _has_own_mounts
    _has_own_mounts = _separate_mounts()
    for name in ("OMP", "OPENBLAS", "MKL", "NOISYFLOW"):
        os.environ[f"{name}_NUM_THREADS"] = str(_THREADS)
    import matplotlib.backends.backend_agg  # noqa: F401
    import torch  # noqa: F401

    from noisyflow import cli, experiments, plotting  # noqa: F401
    from noisyflow.experiments import cells
    from noisyflow.plotting.common import new_figure, png

    for study in STUDIES:
        experiments.load(study)
    png(new_figure(2, 2)[0])
    cells._SECONDS_BETWEEN_CHECKPOINTS = 0  # after every cell, as in a long run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, metavar="N")
    parser.add_argument(
        "--others", type=int, default=9, metavar="N", help="of every other fault"
    )
    parser.add_argument("--faults", nargs="+", choices=list(_FAULTS), metavar="FAULT")
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), metavar="STUDY")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="kept; a temporary folder by default")
    parser.add_argument("--verbose", action="store_true", help="one line per run")
    args = parser.parse_args(arguments)
    _prepare()
    work = args.work or Path(tempfile.mkdtemp(prefix="noisyflow-faults-"))
    problems: list[str] = []
    harnesses = []
    for study in args.studies or list(STUDIES):
        (work / study).mkdir(parents=True, exist_ok=True)
        harness = Harness(study, (work / study).resolve(), args.seed)
        harnesses.append(harness)
        reference = harness.reference
        print(
            f"{study}: {reference.seconds:.1f} s undisturbed, "
            f"{len(reference.operations)} file operations, {reference.size} bytes",
            flush=True,
        )
    for fault in args.faults or list(_FAULTS):
        wanted = args.kills if fault == "kill" else args.others
        problems += score(harnesses, fault, wanted, verbose=args.verbose)
    if problems:
        print(f"what they left is in {work}")
    elif args.work is None:
        shutil.rmtree(work)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
