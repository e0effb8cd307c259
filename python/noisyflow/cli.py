"""The command `noisyflow`: argument parsing and nothing else.

Exit codes: 0 done, 1 the machine failed, 2 a mistake in the arguments or the folder,
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from noisyflow import __version__
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
        The exit code. Mistakes that argparse finds leave through SystemExit with code
        2.
    """
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    if command == "list":
        for name, summary in EXPERIMENTS.items():
            print(f"{name:<8}{summary}")
        return 0
    return _run(**options)


def _run(experiment: str, quick: bool, out: Path | None, **settings: object) -> int:
    """Runs an experiment with those settings that were given."""
    given = {name: value for name, value in settings.items() if value is not None}
    if out is None:
        out = Path("runs") / (f"{experiment}-quick" if quick else experiment)
    try:
        module = load(experiment)
    except ValueError as error:
        return _fail(str(error), 2)
    except ModuleNotFoundError as error:
        return _fail(
            f"{error.name} is not installed; run: pip install 'noisyflow[train]'", 2
        )
    from noisyflow.runs import RunError

    try:
        config = module.configure(quick=quick, **given)
    except ValueError as error:
        return _fail(str(error), 2)
    try:
        finished = module.run(config, out)
    except RunError as error:
        return _fail(str(error), 2)
    except OSError as error:
        return _fail(f"cannot write {error.filename}: {error.strerror}", 1)
    except KeyboardInterrupt:
        return _fail("stopped at once; the same command resumes at the checkpoint", 130)
    return 0 if finished else 130


def _fail(message: str, code: int) -> int:
    """Says what went wrong in one line."""
    print(f"noisyflow: {' '.join(message.split())}", file=sys.stderr)
    return code


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
    commands.add_parser("list", help="show what can be run")
    run = commands.add_parser(
        "run",
        help="run an experiment, or resume it",
        description="Runs an experiment. A second run into the same folder resumes the "
        "first. Settings that are not given are those of the paper.",
    )
    run.add_argument("experiment", help="its name, as `noisyflow list` shows it")
    run.add_argument("--quick", action="store_true", help="a run of about a minute")
    run.add_argument("--epochs", type=int, metavar="N", help="passes over the data")
    run.add_argument("--seed", type=int, metavar="S", help="0 by default")
    run.add_argument(
        "--noise-std", type=float, metavar="B", help="noise of every hidden layer"
    )
    run.add_argument(
        "--activation", metavar="A", help="tanh, relu, leaky_relu, linear or sigmoid"
    )
    run.add_argument(
        "--orthonormal",
        dest="orthonormal_rate",
        type=float,
        nargs="?",
        const=1e-4,
        metavar="RATE",
        help="keep weights near orthonormal; 1e-4 if no rate is given",
    )
    run.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, ...")
    run.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="runs/NAME or runs/NAME-quick by default",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
