"""A page per experiment, and one that leads to them, from the experiments' reports.

Pages are Markdown, for reading in a repository. They say what a run's `report.json`
says and nothing else, so the same reports give the same pages. Every run is made, taken
up or, if it is finished, written up again first, each in a process of its own: reports
are those of this code. What goes wrong with one experiment leaves the pages of all
others alone.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from noisyflow._files import open_regular, read_regular
from noisyflow.experiments import EXPERIMENTS, Claim, check_name, load
from noisyflow.experiments.verdicts import CHECKS
from noisyflow.report import Figure, Table, claims_table, picture_size
from noisyflow.runs import (
    DAMAGE,
    Interruption,
    RunError,
    RunFolder,
    duration,
    write_atomically,
)

INDEX = "README.md"
_INDEX_HEAD = "# Gallery"
# What `noisyflow film` leaves in a run's folder of its last hidden layer.
_FILM = "film.gif"
# A hundred times those that are written.
_MOST_REPORT_BYTES, _MOST_PICTURE_BYTES, _MOST_PAGE_BYTES = 2**25, 2**29, 2**22
_VERDICTS = {True: "yes", False: "**no**", None: "undecided"}


@dataclass(frozen=True)
class Report:
    """What a finished run's `report.json` says.

    Parameters
    ----------
    experiment : str
    title : str
    paragraphs : sequence of str
    figures : sequence of Figure
    tables : sequence of Table
        But for the claims.
    claims : mapping of str to sequence of Claim
        By their heading.
    seconds, peak_mib : float
        What the run took, figures apart.
    """

    experiment: str
    title: str
    paragraphs: Sequence[str]
    figures: Sequence[Figure]
    tables: Sequence[Table]
    claims: Mapping[str, Sequence[Claim]]
    seconds: float
    peak_mib: float


def build(
    out: Path,
    *,
    runs: Path,
    names: Sequence[str] = (),
    quick: bool = False,
    complain: Callable[[str], None] = print,
) -> bool:
    """Builds the pages of experiments, running what is not finished.

    Parameters
    ----------
    out : Path
        Where the pages are; created if needed. Pages of other experiments and files of
        other names stay as they are.
    runs : Path
        Where the runs are, as `noisyflow run` names them: `NAME`, or `NAME-quick`.
    names : sequence of str
        All experiments by default.
    quick : bool
        Whether pages show quick runs instead of whole ones.
    complain : callable
        Told, in one line each, which page could not be made and why.

    Returns
    -------
    bool
        Whether all pages that were asked for are up to date.

    Raises
    ------
    ValueError
        If there is no experiment of a name, or `out` holds something else under the
        name of a page or picture.
    KeyboardInterrupt
        After Ctrl-C, when the run at hand has saved its work. Taken up by the same
        call.
    OSError
        If `out` cannot be written.
    """
    for name in names:
        check_name(name)
    wanted = [name for name in EXPERIMENTS if name in names or not names]
    out.mkdir(parents=True, exist_ok=True)
    _check_out(out)
    num_failed = 0
    with Interruption(is_told=False) as interruption:
        for number, name in enumerate(wanted, 1):
            folder = runs / (f"{name}-quick" if quick else name)
            print(f"[{number} of {len(wanted)}] {name}", flush=True)
            try:
                report = _finished(name, folder, quick, interruption)
                _write(report, out, quick)
            except RunError as error:
                complain(f"{name}: {error}")
                num_failed += 1
            if interruption.is_wanted:
                raise KeyboardInterrupt
    _write_index(out)
    print(
        f"gallery: {len(wanted) - num_failed} of {len(wanted)} pages made from {runs}; "
        f"all that there are: {out / INDEX}"
    )
    return num_failed == 0


def read_report(folder: Path) -> Report:
    """The report of a finished run.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    Report

    Raises
    ------
    RunError
        If there is none, or it is damaged.
    """
    path = folder / "report.json"
    try:
        return _report(json.loads(read_regular(path, _MOST_REPORT_BYTES)), folder)
    except FileNotFoundError as error:
        raise RunError(f"{folder} holds no finished run") from error
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except (*DAMAGE, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is damaged; remove it and run again") from error


def page(report: Report, *, quick: bool = False, film: bool = False) -> str:
    """A report as Markdown, its first figure beside it as `EXPERIMENT.png`.

    Parameters
    ----------
    report : Report
    quick : bool
        Whether it is of a quick run, which the page says.
    film : bool
        Whether there is a film, `EXPERIMENT.gif`.

    Returns
    -------
    str
    """
    name = report.experiment
    blocks = [f"# {_escaped(report.title)}", _score(report, quick)]
    blocks += map(_escaped, report.paragraphs)
    if report.figures:
        caption = _escaped(report.figures[0].caption)
        blocks += [f"![{name}]({name}.png)", caption]
    if film:
        blocks += [
            f"![{name}, the film]({name}.gif)",
            "The last hidden layer while the network learns, beside the information "
            "that it carries.",
        ]
    for title, claims in report.claims.items():
        rows = [
            [_escaped(c.statement), _escaped(c.measured), _VERDICTS[c.holds]]
            for c in claims
        ]
        columns = claims_table(title, claims).columns
        blocks += [f"## {_escaped(title)}", _table(columns, rows)]
    command = f"noisyflow run {name}" + (" --quick" if quick else "")
    blocks += ["## To see it yourself", f"```sh\n{command}\n```"]
    blocks.append(
        "The report that this writes, `report.html`, has all figures, tables and "
        "settings."
    )
    for table in report.tables:
        if table.title == "What was run":
            rows = [list(map(_escaped, row)) for row in table.rows]
            blocks.append(_table(table.columns, rows))
    blocks.append(f"[All experiments]({INDEX})")
    return "\n\n".join(blocks) + "\n"


def _finished(
    name: str, folder: Path, quick: bool, interruption: Interruption
) -> Report:
    """The report of an experiment's run, made anew if it is finished."""
    config = asdict(_config(name, quick))
    device: list[str] = []
    if (folder / "config.json").exists():
        run = RunFolder(folder)
        # The same on a GPU is the same experiment, and goes on there.
        found = run.config()["settings"].get("device")
        if "device" in config and isinstance(found, str):
            config["device"] = found
            device = ["--device", found]
        run.compare(name, config, remedy="choose another --runs, or remove it")
    command = ["run", name, *(["--quick"] if quick else []), f"--out={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "noisyflow", *command, *device]
    )  # a Ctrl-C reaches it, too, and it saves its work
    code = process.wait()
    if interruption.is_wanted:
        raise KeyboardInterrupt
    if code != 0:
        raise RunError(f"its run in {folder} ended with exit code {code}")
    return read_report(folder)


def _config(name: str, quick: bool) -> Any:
    """The settings of an experiment.

    Raises RunError where what it needs is not installed.
    """
    try:
        return load(name).configure(quick=quick)
    except ModuleNotFoundError as error:
        raise RunError(f"{error.name} is not installed") from error


def _report(found: Any, folder: Path) -> Report:
    """A `report.json`, taken apart."""
    report = Report(
        experiment=_text(found["experiment"]),
        title=_text(found["title"]),
        paragraphs=[],
        figures=[],
        tables=[],
        claims={},
        seconds=_amount(found["seconds"]),
        peak_mib=_amount(found["peak_mib"]),
    )
    check_name(report.experiment)
    paragraphs, figures, tables = [], [], []
    claims: dict[str, list[Claim]] = {}
    for part in found["parts"]:
        if part["kind"] == "paragraph":
            paragraphs.append(_text(part["text"]))
        elif part["kind"] == "figure":
            path = (folder / part["path"]).resolve()
            if not path.is_relative_to((folder / "figures").resolve()):
                raise ValueError(part["path"])
            figures.append(Figure(path, _text(part["caption"])))
        elif part["kind"] == "claims":
            claims.setdefault(_text(part["title"]), []).extend(
                Claim(_text(c["statement"]), _text(c["measured"]), _verdict(c["holds"]))
                for c in part["claims"]
            )
        elif part["kind"] == "table":
            tables.append(
                Table(
                    _text(part["title"]),
                    [_text(name) for name in part["columns"]],
                    [[_text(cell) for cell in row] for row in part["rows"]],
                    _text(part["note"]),
                )
            )
        else:
            raise ValueError(part["kind"])
    return replace(
        report, paragraphs=paragraphs, figures=figures, tables=tables, claims=claims
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be a text, got {value!r}")
    value.encode()  # JSON can hold halves of characters, which no page can
    return value


def _amount(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"must be a number, got {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"must be finite and not negative, got {value!r}")
    return float(value)


def _verdict(value: object) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"must be a verdict, got {value!r}")
    return value


def _write(report: Report, out: Path, quick: bool) -> None:
    """Writes a page, its pictures first: it never leads to one that is not there."""
    pictures = {}
    if report.figures:
        path = report.figures[0].path
        pictures["png"] = _picture(path)
        if _is_up_to_date(path.parent / _FILM):
            pictures["gif"] = _picture(path.parent / _FILM)
    for ending, data in pictures.items():
        write_atomically(out / f"{report.experiment}.{ending}", data)
    text = page(report, quick=quick, film="gif" in pictures)
    write_atomically(out / f"{report.experiment}.md", text.encode())
    for ending in {"png", "gif"} - pictures.keys():
        (out / f"{report.experiment}.{ending}").unlink(missing_ok=True)


def _is_up_to_date(film: Path) -> bool:
    """Whether there is a film that was made after the run's last measurement."""
    try:
        measured = (film.parent.parent / "checkpoint.safetensors").stat().st_mtime_ns
        return film.stat().st_mtime_ns >= measured
    except FileNotFoundError:
        return False


def _picture(path: Path) -> bytes:
    """The bytes of a picture, if it is one."""
    try:
        data = read_regular(path, _MOST_PICTURE_BYTES)
        picture_size(data)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}; run it again") from error
    return data


def _write_index(out: Path) -> None:
    """Writes the page that leads to all pages that there are, old ones included."""
    blocks = [
        _INDEX_HEAD,
        "One page per experiment: what the papers claim, what a run finds, and the "
        "command to see it yourself. `noisyflow gallery` rebuilds all of it.",
    ]
    for name, summary in EXPERIMENTS.items():
        head = _head(out / f"{name}.md")
        if head is None:
            continue
        title, score = head
        blocks += [
            f"## [{title}]({name}.md)",
            f"`{name}`: {_escaped(summary)}.",
            score,
        ]
        if (out / f"{name}.png").exists():
            picture = f'<img src="{name}.png" alt="{name}" width="480">'
            blocks.append(f"[{picture}]({name}.md)")
    write_atomically(out / INDEX, ("\n\n".join(blocks) + "\n").encode())


def _check_out(out: Path) -> None:
    """Raises ValueError where a page or picture would replace what is not ours."""
    index = out / INDEX
    ours = {f"{_INDEX_HEAD}\n", _INDEX_HEAD}
    if index.exists() and "".join(_text_of(index).splitlines(True)[:1]) not in ours:
        raise ValueError(
            f"{index} is not the first page of a gallery; choose another --out"
        )
    for name in EXPERIMENTS:
        page = out / f"{name}.md"
        if _head(page) is not None:
            continue
        for path in (page, page.with_suffix(".png"), page.with_suffix(".gif")):
            if path.exists():
                raise ValueError(
                    f"{path} is not of a gallery; choose another --out, or remove it"
                )


def _head(path: Path) -> tuple[str, str] | None:
    """Title and score of a page, its first two blocks; None where it is not ours."""
    if not path.exists():
        return None
    blocks = _text_of(path).split("\n\n", 2)
    if len(blocks) < 3 or not blocks[0].startswith("# ") or not _SCORE.match(blocks[1]):
        return None
    return blocks[0].removeprefix("# "), blocks[1]


def _text_of(path: Path) -> str:
    """The text of a file, whatever it is, or its beginning."""
    try:
        with open_regular(path) as file:
            return file.read(_MOST_PAGE_BYTES).decode(errors="replace")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


# How the score of a page begins.
_SCORE = re.compile(r"\*\*(\d+ of \d+ statements hold|Nothing is claimed)")


def _score(report: Report, quick: bool) -> str:
    """How many claims hold, in words, and which checks of the measurement do not."""
    measurement = report.claims.get(CHECKS, ())
    checks = [c.holds for c in measurement]
    verdicts = [
        c.holds
        for title, claims in report.claims.items()
        if title != CHECKS
        for c in claims
    ]
    yes, no = verdicts.count(True), verdicts.count(False)
    score = (
        f"**{yes} of {len(verdicts)} statements {'holds' if yes == 1 else 'hold'}, "
        f"{no} {'does' if no == 1 else 'do'} not"
    )
    if num_open := verdicts.count(None):
        score += f", {num_open} {'is' if num_open == 1 else 'are'} undecided"
    if not verdicts:
        score = "**Nothing is claimed"
    if checks:
        score += (
            f"; {checks.count(True)} of {len(checks)} checks of the measurement pass"
        )
    score += ".**"
    failed = [c for c in measurement if c.holds is False]
    if failed:
        score += (
            f" **{len(failed)} {'fails' if len(failed) == 1 else 'fail'}: distrust "
            "this run before the papers.** "
        ) + " ".join(
            f"Failed: {_escaped(c.statement)} Measured: {_escaped(c.measured)}."
            for c in failed
        )
    what = "A quick run, smaller than what the papers did" if quick else "The run"
    return (
        f"{score} {what}: {duration(report.seconds)}, {report.peak_mib:.0f} MiB of "
        "memory."
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """A text on one line that Markdown leaves as it is."""
    line = " ".join(text.split())
    return "".join(_escapes(line))


# What Markdown would take for something else: anywhere, where a word begins or ends
# (which keeps T_1 readable), or where the line begins: a quotation, a heading, an item
# of a list, a rule.
_SPECIAL = re.compile(
    r"[\\`*\[\]<|~$&]|(?<![^\W_])_|_(?![^\W_])"
    r"|^>|^#(?=#{0,5}(?:\s|$))|^[+-](?=\s|$)|^-(?=[-\s]*$)"
    r"|^(\d+)([.)])(?=\s|$)"
)


def _escapes(line: str) -> Iterator[str]:
    """The pieces of a line, what is special with a backslash before it."""
    at = 0
    for match in _SPECIAL.finditer(line):
        yield line[at : match.start()]
        if match[1]:
            yield f"{match[1]}\\{match[2]}"
        else:
            yield f"\\{match[0]}"
        at = match.end()
    yield line[at:]
