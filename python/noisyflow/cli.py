"""The command `noisyflow`: argument parsing and nothing else.

Exit codes: 0 done, 1 the machine failed, 2 a mistake in the arguments or the folder,
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import difflib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from noisyflow import __version__, _ranks, _same_command, runtime
from noisyflow.experiments import EXPERIMENTS, load


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"noisyflow: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        `sys.argv[1:]` by default.

    Returns
    -------
    int
        The exit code.
    """
    is_whole_process = arguments is None
    if is_whole_process and isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may hold bytes that are no characters.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            code = _main(arguments)
            _ignore_interrupts(is_whole_process)
        except KeyboardInterrupt:
            _ignore_interrupts(is_whole_process)
            code = _fail(
                "stopped; the same command takes up what was saved, if anything was",
                130,
            )
    except KeyboardInterrupt:  # again, before the first was dealt with
        _ignore_interrupts(is_whole_process)
        code = 130
    if is_whole_process and not _flush(sys.stdout) and code == 0:
        code = _fail("cannot write to standard output", 1)
    if is_whole_process:
        _flush(sys.stderr)
    return code


def _main(arguments: Sequence[str] | None) -> int:
    """Does what the arguments ask for."""
    return _guarded(lambda: _command(arguments))


def _guarded(work: Callable[[], int]) -> int:
    """The exit code of work; an obstacle of the machine becomes a line."""
    try:
        return work()
    except SystemExit as end:  # argparse has said what it had to say
        return end.code if isinstance(end.code, int) else 2
    except BrokenPipeError as error:
        if error.filename is not None:
            raise
        return 1  # whoever read our output has left, and knows
    except OSError as error:
        where = error.filename or "to standard output"
        return _fail(f"cannot write {where}: {error.strerror}", 1)


def _command(arguments: Sequence[str] | None) -> int:
    """Parses the arguments and runs the command."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    if command == "list":
        return _list(**options)
    if command == "plan":
        return _plan(**options)
    if command == "estimate":
        return _over_ranks(lambda: _estimate(**options), options["device"], command)
    if command == "check":
        return _check(**options)
    if command == "bench":
        return _bench(**options)
    if command == "film":
        return _film(**options)
    if command == "gallery":
        return _gallery(**options)
    device = options["device"] or dict(options["more"]).get("device")
    name = f"{command} {options['experiment']}"
    return _over_ranks(lambda: _run(**options), device, name)


def _over_ranks(work: Callable[[], int], device: object, name: str = "") -> int:
    """Does work on all ranks, where torchrun started several; else by itself.

    On every rank the exit code is that of the first, or that of the failure that ended
    all; the first says what went wrong. Others repeat it where they may have logs of
    their own: torchrun shows all in one place. No rank works unless all are given the
    same command, `name`, and have the same packages.
    """
    try:
        is_alone = not _ranks.is_launched()
    except ValueError as error:
        return _fail(str(error), 2)
    if is_alone:
        return work()
    code = 0
    told: list[str] = []

    def tell(message: str) -> None:
        told.append(message)
        _complain(message)

    same = [
        *_same_command.of_command({"command": name, "device": device}),
        *_same_command.of_packages(),
    ]
    try:
        with contextlib.ExitStack() as leaving:
            with _ends_at_once_on_interrupt():
                ranks = leaving.enter_context(
                    _ranks.joined(str(device or "cpu"), tell=tell, same=same)
                )
            if not ranks.is_first:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            with contextlib.suppress(_ranks.Released):
                code = _of_rank(work)
            code = ranks.share_exit(code)
    except _ranks.RankError as error:
        if not error.is_told:
            _complain(str(error))
        elif not told and "TORCHELASTIC_RUN_ID" not in os.environ:
            _complain(f"rank {os.environ['RANK']} ends with the others: {error}")
        return error.code
    return code


def _of_rank(work: Callable[[], int]) -> int:
    """As `_guarded`; an end of this rank's own is one of all, who would wait for it."""
    try:
        return work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 2
        message = f"the command ended early, with exit code {code}; all ranks end"
        raise _ranks.Failure(message, code or 1) from end
    except BrokenPipeError as error:
        if error.filename is not None:
            raise
        message = "whoever read standard output has left; all ranks end"
        raise _ranks.Failure(message, 1) from error
    except OSError as error:
        where = error.filename or "to standard output"
        message = f"cannot write {where}: {error.strerror}"
        raise _ranks.Failure(message, 1) from error


def _list(experiment: str | None) -> int:
    """Prints the experiments, or the settings of one."""
    if experiment is None:
        for name, summary in EXPERIMENTS.items():
            print(f"{name:<19}{summary}")
        return 0
    try:
        with _ends_at_once_on_interrupt():
            module = load(experiment)
        full, quick = module.configure(), module.configure(quick=True)
    except ValueError as error:
        return _fail(str(error), 2)
    except ModuleNotFoundError as error:
        return _fail(_is_missing(error), 2)
    print(f"{experiment}: {EXPERIMENTS[experiment]}; --set NAME=VALUE")
    for field in dataclasses.fields(full):
        value, brief = (getattr(config, field.name) for config in (full, quick))
        shown = f"{value} (--quick: {brief})" if brief != value else f"{value}"
        print(f"  {field.name:<20}{shown}")
    return 0


def _plan(json: bool, **settings: float | None) -> int:
    """Prints what an answer needs."""
    from noisyflow.theory import plan

    given = {name: value for name, value in settings.items() if value is not None}
    try:
        answer = plan(**given)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        return _fail(str(error), 2)
    print(answer.to_json() if json else answer)
    return 0


def _check(accuracy: bool, full: bool) -> int:
    """Prints what can be used here, or how accurate it is."""
    if full and not accuracy:
        return _fail("--full belongs to --accuracy", 2)
    with _ends_at_once_on_interrupt():
        if accuracy:
            return _check_accuracy(full)
        from noisyflow.check import check

        found = check()
    print(found)
    return 0 if found.is_usable else 1


def _check_accuracy(is_full: bool) -> int:
    """Prints the errors of every kernel that can run here."""
    from noisyflow import accuracy

    try:
        report = accuracy.measure(is_full=is_full, progress=_complain)
    except ImportError as error:
        return _fail(str(error), 2)
    print(report)
    return 1 if report.broken else 0


def _estimate(
    path: Path, noise_std: float, json: bool, verbose: bool, **settings: Any
) -> int:
    """Estimates from a file of samples with those settings that were given."""
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        with _ends_at_once_on_interrupt():
            from noisyflow.estimate_file import FileError, estimate_file
        _check_environment()
        compared = {"noise_std": noise_std, **settings}
        # Files may have other names on other machines; what is in them is compared.
        compared["labels"] = (
            "given" if compared.pop("labels_path", None) else "not given"
        )
        _ranks.current().check_same(_same_command.of_command(compared))
        with _logs_to_stderr(verbose):
            report = estimate_file(path, noise_std, **given)
    except (FileError, ValueError, TypeError) as error:
        return _fail(str(error), 2)
    except OSError as error:
        return _fail(f"cannot read {error.filename or path}: {error.strerror}", 2)
    except MemoryError:
        return _fail(f"{path} needs more memory than there is", 1)
    except _ranks.AgreedError as error:
        return _fail(str(error), 1)
    except RuntimeError as error:
        if _ranks.current().size > 1:
            raise  # a lost connection, whose rank is still to be found
        if given.get("device", "cpu") == "cpu":
            raise
        return _fail(str(error), 1)  # out of memory, a launch that failed
    except KeyboardInterrupt:
        return _fail("stopped before the estimate was done", 130)
    if not _ranks.current().is_first:
        return 0
    for warning in report.warnings:
        _complain(f"warning: {warning}")
    print(report.to_json() if json else report)
    return 0


@contextlib.contextmanager
def _logs_to_stderr(verbose: bool) -> Iterator[None]:
    """Shows what is logged of cost and progress, if that is wanted."""
    if not verbose:
        yield
        return
    logger = logging.getLogger("noisyflow")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("noisyflow: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def _run(
    experiment: str,
    quick: bool,
    out: Path | None,
    more: Sequence[tuple[str, object]],
    **settings: object,
) -> int:
    """Runs an experiment with those settings that were given."""
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in more:
        if name in given:
            return _fail(f"{name} is given twice", 2)
        given[name] = value
    if out is None:
        out = Path("runs") / (f"{experiment}-quick" if quick else experiment)
    try:
        _check_environment()
        with _ends_at_once_on_interrupt():
            module = load(experiment)
            from noisyflow.runs import RunError
    except ValueError as error:
        return _fail(str(error), 2)
    except ModuleNotFoundError as error:
        return _fail(_is_missing(error), 2)
    allowed = sorted(field.name for field in dataclasses.fields(module.Config))
    for name in given:
        if name not in allowed:
            what = f"setting {name}"
            if name in settings:
                option = "orthonormal" if name == "orthonormal_rate" else name
                what = f"--{option.replace('_', '-')}"
            near = difflib.get_close_matches(name, allowed, 1)
            guess = f", did you mean {near[0]}?" if near else ";"
            return _fail(
                f"{experiment} has no {what}{guess} its settings are "
                f"{', '.join(allowed)}",
                2,
            )
    try:
        config = module.configure(quick=quick, **given)
    except (ValueError, TypeError) as error:
        return _fail(str(error), 2)
    options = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(config)
    }
    _ranks.current().check_same(
        [*_same_command.of_command(options), _same_command.of_cpu()]
    )
    try:
        finished = module.run(config, out)
    except RunError as error:
        return _fail(str(error), 2)
    except MemoryError:
        return _fail("this run needs more memory than there is", 1)
    return 0 if finished else 130


def _bench(
    full: bool,
    threads: int | None,
    clock: str,
    dtype: str,
    names: Sequence[str],
    out: Path,
) -> int:
    """Measures this package beside its peers."""
    try:
        _check_environment()
        with _ends_at_once_on_interrupt():
            from noisyflow import benchmark
            from noisyflow.runs import Progress, RunError
        peers = benchmark.chosen(names)
        benchmark.checked_threads(threads, clock)
        benchmark.check_out(out)  # what cannot work is missed now, not at the end
    except (ValueError, RunError) as error:
        return _fail(str(error), 2)
    except ModuleNotFoundError as error:
        return _fail(_is_missing(error), 2)
    cases = [*benchmark.CASES, *(benchmark.MORE_CASES if full else ())]
    progress = Progress()
    try:
        record = benchmark.run(
            cases,
            peers,
            threads=threads,
            clock=clock,
            dtype=dtype,
            tell=progress.show,
        )
    except MemoryError:
        return _fail("the benchmark needs more memory than there is", 1)
    except KeyboardInterrupt:
        return _fail("stopped before the benchmark was done; nothing is written", 130)
    for path in benchmark.save(record, out):
        print(f"written: {path}")
    return 0


def _film(path: Path, out: Path | None, fps: int, layer: int | None) -> int:
    """Makes the film of a run."""
    try:
        _check_environment()
        with _ends_at_once_on_interrupt():
            from noisyflow.film import make_film
            from noisyflow.runs import RunError
    except ValueError as error:
        return _fail(str(error), 2)
    except ModuleNotFoundError as error:
        return _fail(_is_missing(error), 2)
    try:
        film = make_film(path, out, fps=fps, layer=layer)
    except (RunError, ValueError, TypeError) as error:
        return _fail(str(error), 2)
    except ModuleNotFoundError as error:
        return _fail(_is_missing(error), 2)
    print(f"film in {film}")
    return 0


def _is_missing(error: ModuleNotFoundError) -> str:
    """What to do about a package that is not installed."""
    return f"{error.name} is not installed; run: pip install 'noisyflow[train]'"


def _gallery(names: Sequence[str], quick: bool, runs: Path, out: Path) -> int:
    """Builds the pages of experiments."""
    try:
        if _ranks.is_launched():  # each run would join those of the other ranks
            return _fail(
                "gallery is not for several ranks: it starts runs of its own; start it "
                "without torchrun, or `noisyflow run` with it and then gallery without",
                2,
            )
        _check_environment()
        with _ends_at_once_on_interrupt():
            from noisyflow.gallery import build
        is_whole = build(out, runs=runs, names=names, quick=quick, complain=_complain)
    except ValueError as error:
        return _fail(str(error), 2)
    except ModuleNotFoundError as error:
        return _fail(_is_missing(error), 2)
    return 0 if is_whole else 1


def _check_environment() -> None:
    """Raises ValueError at environment variables that the kernels could not follow."""
    runtime.cpu_target()
    if runtime.num_threads() > 2**31 - 1:
        raise ValueError("NOISYFLOW_NUM_THREADS must be less than 2147483648")


@contextlib.contextmanager
def _ends_at_once_on_interrupt() -> Iterator[None]:
    """Ctrl-C ends the process with one line: half-imported torch cannot go on.

    An exception would not do. Raised inside an import, it may come out as another.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_main and _ranks.current().is_first):  # the first rank ends the others
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, b"noisyflow: stopped before anything was done\n")
        os._exit(130)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ignore_interrupts(is_whole_process: bool) -> None:
    """No further Ctrl-C may change how a process that is done comes to its end."""
    if is_whole_process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _flush(stream: TextIO | None) -> bool:
    """Whether all that was printed went out; where not, Python shall not try again."""
    try:
        if stream is not None:
            stream.flush()
        return True
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            assert stream is not None
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False


def _fail(message: str, code: int) -> int:
    """Says what went wrong in one line; of several ranks, the first does for all."""
    if _ranks.current().size > 1:
        raise _ranks.Failure(message, code)
    _complain(message)
    return code


def _complain(message: str) -> None:
    """One line on standard error, if there is one.

    A message may quote a file, whose bytes shall not steer a terminal.
    """
    line = "".join(
        character if character.isprintable() else repr(character)[1:-1]
        for character in " ".join(message.split())
    )
    with contextlib.suppress(OSError):
        print(f"noisyflow: {line}", file=sys.stderr)


def _count(text: str) -> int:
    """A whole number, also as 1e9."""
    try:
        return int(text)
    except ValueError:
        try:
            number = float(text)
            if number.is_integer():
                return int(number)
        except (ValueError, OverflowError):
            pass
    raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")


def _setting(text: str) -> tuple[str, object]:
    """NAME=VALUE: a number, a list of numbers, or else a word."""
    name, equals, value = (part.strip() for part in text.partition("="))
    name = name.replace("-", "_")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        with contextlib.suppress(ValueError):
            return name, float(value)  # nan and inf, to be told what they are
        return name, value


def _folder(text: str) -> Path:
    """A folder's name, which `Path` takes for `.` where it is empty."""
    if not text:
        raise argparse.ArgumentTypeError("must name a folder, got an empty name")
    return Path(text)


def _rate(text: str) -> float:
    """The optional value of --orthonormal, which may catch a word that follows it."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"RATE must be a number, got {text!r}; put {text!r} before --orthonormal, "
            "or give the rate too"
        ) from None


def _parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = _Parser(
        prog="noisyflow",
        description="Measures how information flows through noisy neural networks.",
    )
    parser.add_argument(
        "--version", action="version", version=f"noisyflow {__version__}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser(
        "list",
        help="show what can be run, or the settings of one experiment",
    )
    listing.add_argument(
        "experiment", nargs="?", help="its settings and their defaults"
    )
    checking = commands.add_parser(
        "check",
        help="show what can be used on this machine, and why not the rest",
        description="Shows what can be used on this machine: CPU, threads, the CUDA "
        "kernels, driver and GPUs, each with a short test; and why not the rest. Exits "
        "with 0 where all that is there works.",
    )
    checking.add_argument(
        "--accuracy",
        action="store_true",
        help="compare every kernel with 50 digits instead; exit with 1 beyond a bar",
    )
    checking.add_argument(
        "--full", action="store_true", help="with --accuracy: minutes, not seconds"
    )
    _add_bench(commands)
    _add_estimate(commands)
    _add_plan(commands)
    _add_gallery(commands)
    run = commands.add_parser(
        "run",
        help="run an experiment, or resume it",
        description="Runs an experiment. A second run into the same folder resumes the "
        "first. Settings that are not given are those of the paper.",
    )
    run.add_argument("experiment", help="its name, as `noisyflow list` shows it")
    run.add_argument(
        "--quick",
        action="store_true",
        help="a run of about a minute, too short for many statements to be judged; "
        "szt: 600 epochs unless --epochs says otherwise",
    )
    run.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="passes over the data, where networks are trained by passes; szt "
        "(default: 10000)",
    )
    run.add_argument(
        "--seed", type=int, metavar="S", help="0 or more, below 2^63 (default: 0)"
    )
    run.add_argument(
        "--noise-std",
        type=float,
        metavar="B",
        help="noise, where an experiment has one; szt: of every hidden layer (default: "
        "0.005), bottleneck: of its noisy layer (default: 0.25)",
    )
    run.add_argument(
        "--activation",
        metavar="A",
        help="szt: tanh, relu, leaky_relu, linear or sigmoid (default: tanh)",
    )
    run.add_argument(
        "--orthonormal",
        dest="orthonormal_rate",
        type=_rate,
        nargs="?",
        const=1e-4,
        metavar="RATE",
        help="szt: keep weights near orthonormal; 1e-4 if no rate is given (default: "
        "off)",
    )
    run.add_argument(
        "--device",
        metavar="D",
        help="where networks, data and estimates are, if there are networks: cpu, "
        "cuda, cuda:1, ... (default: cpu)",
    )
    run.add_argument(
        "--data",
        type=lambda text: str(_folder(text)),
        metavar="DIR",
        help="mnist: folder with MNIST's IDX files (default: scikit-learn's digits)",
    )
    run.add_argument(
        "--set",
        dest="more",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any setting that `noisyflow list EXPERIMENT` shows; may be repeated",
    )
    run.add_argument(
        "--out",
        type=_folder,
        metavar="DIR",
        help="output folder (default: runs/NAME, or runs/NAME-quick)",
    )
    film = commands.add_parser(
        "film",
        help="an animation of a run: a layer's points beside its I(X;T)",
        description="Makes a film of a run with tracked information, finished or not: "
        "the points of its last hidden layer, coloured by class, beside the growing "
        "curve of I(X;T) with its band.",
    )
    film.add_argument("path", type=Path, metavar="RUN_FOLDER", help="as --out of run")
    film.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="ends in .gif, or .mp4 where ffmpeg is installed (default: "
        "RUN_FOLDER/figures/film.gif, or film-layer-L.gif there where --layer names "
        "another than the last)",
    )
    film.add_argument(
        "--fps",
        type=int,
        default=10,
        metavar="N",
        help="logged epochs per second, at most 50 (default: 10)",
    )
    film.add_argument(
        "--layer", type=int, metavar="L", help="from 1 (default: the last hidden layer)"
    )
    return parser


def _add_bench(commands: argparse._SubParsersAction[_Parser]) -> None:
    """The options of `noisyflow bench`: those of `noisyflow.benchmark.run`."""
    bench = commands.add_parser(
        "bench",
        help="compare speed, error and memory with other packages on this machine",
        description="Evaluates log-densities of Gaussian mixtures with this package "
        "and with those others that are installed, in one run on the same data and "
        "threads: first the error against the formula in float64, then pairs per "
        "second, memory, and the seconds to an entropy within 0.01 nats. Prints "
        "tables; writes benchmark.png and benchmark.json.",
    )
    bench.add_argument(
        "--full", action="store_true", help="more sizes and noises: some ten minutes"
    )
    bench.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of every contestant (default: the CPUs of this process)",
    )
    bench.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: leave out what other processes take of a machine that is not idle; "
        "with --threads 1",
    )
    bench.add_argument(
        "--dtype",
        choices=["float32", "float64"],
        default="float32",
        help="of the data (default: float32)",
    )
    bench.add_argument(
        "--peers",
        dest="names",
        nargs="+",
        default=[],
        metavar="PEER",
        help="only these beside noisyflow, separated by spaces, such as torch.compile "
        "scikit-learn (default: all)",
    )
    bench.add_argument(
        "--out",
        type=_folder,
        default=Path("runs/bench"),
        metavar="DIR",
        help="output folder (default: runs/bench)",
    )


def _add_gallery(commands: argparse._SubParsersAction[_Parser]) -> None:
    """The options of `noisyflow gallery`: those of `noisyflow.gallery.build`."""
    gallery = commands.add_parser(
        "gallery",
        help="build a page per experiment from its report, running what is missing",
        description="Writes one Markdown page per experiment, and one that leads to "
        "them, from the reports of finished runs. An experiment without a finished run "
        "is run, or taken up, first, and a finished one writes its report again, each "
        "in a process of its own; Ctrl-C stops, the same command goes on. Exits with "
        "1 where a page could not be made; all others are.",
    )
    gallery.add_argument(
        "names", nargs="*", metavar="NAME", help="experiments (default: all)"
    )
    gallery.add_argument(
        "--quick", action="store_true", help="from quick runs, a minute each"
    )
    gallery.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where the runs are (default: runs)",
    )
    gallery.add_argument(
        "--out",
        type=Path,
        default=Path("docs/gallery"),
        metavar="DIR",
        help="where the pages go (default: docs/gallery)",
    )


def _add_estimate(commands: argparse._SubParsersAction[_Parser]) -> None:
    """The options of `noisyflow estimate`: those of `estimate_file`."""
    estimate = commands.add_parser(
        "estimate",
        help="entropy or information from a .npy file of samples",
        description="Estimates from samples of S, a layer before its noise, what T = S "
        "+ Z carries, Z being Gaussian noise: h(T) and I(S;T) from an array (n, d), "
        "I(X;T) from an array (inputs, draws, d) of samples for each input X. All in "
        "nats. Nothing is written.",
    )
    estimate.add_argument(
        "path", type=Path, metavar="FILE.npy", help="float32 or float64, numpy.save"
    )
    estimate.add_argument(
        "--noise-std",
        type=float,
        required=True,
        metavar="B",
        help="standard deviation of Z, in the units of the samples",
    )
    estimate.add_argument(
        "--error",
        dest="standard_error",
        type=float,
        metavar="E",
        help="standard error wanted, nats (default: 0.01)",
    )
    estimate.add_argument(
        "--max-seconds", type=float, metavar="S", help="stop after about this time"
    )
    estimate.add_argument(
        "--max-pairs",
        type=_count,
        metavar="P",
        help="stop before more pairs of a query and a sample than this",
    )
    estimate.add_argument(
        "--population",
        action="store_true",
        help="of (n, d): S takes these values and no others",
    )
    estimate.add_argument(
        "--inputs",
        choices=["fixed", "sampled"],
        help="of (inputs, draws, d): X takes these inputs and no others, or they are "
        "samples of more (default: fixed)",
    )
    estimate.add_argument(
        "--labels",
        dest="labels_path",
        type=Path,
        metavar="LABELS.npy",
        help="one label Y per input: I(Y;T) too",
    )
    estimate.add_argument(
        "--conditional", action="store_true", help="h(T|X) and h(T) too"
    )
    estimate.add_argument(
        "--seed", type=_count, metavar="N", help="of the noise (default: 0)"
    )
    estimate.add_argument(
        "--device",
        metavar="D",
        help="where pairs are evaluated: cpu, cuda, cuda:1, ... (default: cpu)",
    )
    estimate.add_argument("--json", action="store_true", help="print one JSON object")
    estimate.add_argument(
        "--verbose", action="store_true", help="say what the work will cost"
    )


def _add_plan(commands: argparse._SubParsersAction[_Parser]) -> None:
    """The options of `noisyflow plan`: those of `noisyflow.theory.plan`."""
    plan = commands.add_parser(
        "plan",
        help="how many samples and seconds an entropy needs, or that none will do",
        description="Says how many samples, noise draws and seconds the entropy of a "
        "noisy layer needs, guaranteed and typically, or that no feasible number will "
        "do. S, the layer before its noise, is in [-1, 1]^D unless said otherwise.",
    )
    plan.add_argument("--dim", type=int, required=True, metavar="D", help="units")
    plan.add_argument(
        "--noise-std", type=float, required=True, metavar="B", help="of the noise"
    )
    plan.add_argument(
        "--error",
        type=float,
        required=True,
        metavar="E",
        help="largest bias, and largest standard error, nats",
    )
    kind = plan.add_mutually_exclusive_group()
    kind.add_argument("--half-width", type=float, metavar="W", help="S in [-W, W]^D")
    kind.add_argument("--diameter", type=float, metavar="A", help="of all values of S")
    kind.add_argument("--sub-gaussian", type=float, metavar="K", help="constant of S")
    kind.add_argument("--num-atoms", type=int, metavar="M", help="values that S takes")
    plan.add_argument(
        "--max-num-samples", type=_count, metavar="N", help="default: 10^8"
    )
    plan.add_argument("--max-seconds", type=float, metavar="T", help="default: 3600")
    plan.add_argument("--json", action="store_true", help="print one JSON object")


if __name__ == "__main__":
    sys.exit(main())
