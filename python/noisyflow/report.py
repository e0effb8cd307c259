"""A run's folder as one page, `report.html`, that stands alone.

Figures are embedded, styles are inline, nothing is scripted. `report.json` holds the
same for programs, with figures by their names.
"""

from __future__ import annotations

import base64
import html
import json
import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from noisyflow.experiments import Claim
from noisyflow.runs import Results, RunFolder, duration, write_atomically

# Below 48rem, as on a telephone, wide tables and figures scroll in boxes of their own,
# figures at half their size, where their letters are still 12 pixels; statements stand
# one part below another.
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --paper: #fff; --soft: #48525c;
        --line: #dfe3e8; --rule: #8a949e; --yes: #12703a; --no: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --paper: #16191d; --soft: #b3bbc4; --line: #333a42;
          --rule: #6b7580; --yes: #6fd39a; --no: #ff8f87; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
       background: var(--paper); max-width: 64rem; margin: 2rem auto;
       padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid var(--line); }
th { border-bottom: 2px solid var(--rule); font-weight: 600; }
.long { min-width: 12rem; }
figure { margin: 1.5rem 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; }
figcaption, .note, .hint { color: var(--soft); font-size: .93rem; max-width: 52rem; }
.yes { color: var(--yes); } .no { color: var(--no); } .yes, .no { font-weight: 600; }
.open, .short { white-space: nowrap; }
.hint { display: none; }
@media screen and (max-width: 48rem) {
  img { width: var(--half); max-width: none; }
  .hint { display: block; }
  .claims tr { display: block; padding: .5rem 0;
               border-bottom: 1px solid var(--rule); }
  .claims tr:first-child { display: none; }
  .claims td { display: block; border: 0; padding: 0; }
  .claims td::before { content: attr(data-column) ": "; color: var(--soft);
                       font-weight: 400; } }
@media print { .scroll { overflow: visible; } figure, tr { break-inside: avoid; } }
"""
# A cell of up to so many characters, a number mostly, stays on one line; one of more
# than so many is a text, which wraps, but not after every word.
_SHORT, _LONG = 24, 40
# Shown on narrow screens below a figure that is wider there than the narrowest.
_NARROW = 320
_HINT = '<div class="hint">The figure scrolls sideways.</div>'
_VERDICTS = {True: "yes", False: "no", None: "undecided"}
_UNDECIDED = (
    "Undecided: the error of what was measured reaches to both sides of what is "
    "stated, or the run is too short or too small to tell."
)
_VERDICT_STYLES = {
    "yes": ' class="yes"',
    "no": ' class="no"',
    "undecided": ' class="open"',
}


@dataclass(frozen=True)
class Figure:
    """A picture with its caption.

    Parameters
    ----------
    path : Path
        A PNG file.
    caption : str
        What is seen, in sentences.
    """

    path: Path
    caption: str


@dataclass(frozen=True)
class Table:
    """A table with its heading and a note below it.

    Parameters
    ----------
    title : str
    columns : sequence of str
    rows : sequence of sequences of str
        As many cells in each row as there are columns.
    note : str
        May be empty.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class ClaimsTable(Table):
    """A table of statements and whether they hold; made by `claims_table`.

    Parameters
    ----------
    claims : sequence of Claim
        What the rows say.
    """

    claims: Sequence[Claim] = ()


Part = str | Figure | Table


@dataclass(frozen=True)
class DataProcessing:
    """How well estimates obey I(X;T_1) >= I(X;T_2) >= ..., which the true values do.

    Parameters
    ----------
    num_pairs : int
        Neighbouring layers compared, over all logged epochs.
    num_violations : int
        Pairs whose later layer is ahead by more than two standard errors of the
        difference.
    largest_excess : float
        The farthest that a later layer is ahead, in nats; negative if none is.
    """

    num_pairs: int
    num_violations: int
    largest_excess: float


def data_processing(results: Results) -> DataProcessing:
    """The check that information does not grow from layer to layer.

    Parameters
    ----------
    results : Results

    Returns
    -------
    DataProcessing
        The standard errors of two layers are taken as independent.
    """
    information = results.metrics["mutual_information"]
    errors = results.metrics["standard_error"]
    excess = information[:, 1:] - information[:, :-1]
    allowed = 2 * np.hypot(errors[:, 1:], errors[:, :-1])
    return DataProcessing(
        num_pairs=excess.size,
        num_violations=int((excess > allowed).sum()),
        largest_excess=float(excess.max()) if excess.size else float("nan"),
    )


def write_report(
    folder: RunFolder,
    results: Results,
    *,
    title: str,
    figures: Sequence[Figure],
    comparison: Sequence[Table],
    claims: Sequence[Claim],
    claims_title: str,
) -> None:
    """Writes `report.html` of a finished run.

    Parameters
    ----------
    folder : RunFolder
    results : Results
        Of that run.
    title : str
        Heading of the page.
    figures : sequence of Figure
        Embedded in this order.
    comparison : sequence of Table
        Results beside published ones.
    claims : sequence of Claim
        Statements with what was measured.
    claims_title : str
        Heading of these statements.
    """
    config = folder.config()
    parts: list[Part] = [
        _opening(results),
        *figures,
        claims_table(claims_title, claims),
        *comparison,
        _end_table(results),
        _quality_table(results),
        settings_table(config["settings"]),
        work_table(folder, _tracking_rows(results)),
    ]
    write_page(folder, title, parts)


def write_page(folder: RunFolder, title: str, parts: Sequence[Part]) -> None:
    """Writes `report.html` from its parts, and `report.json`.

    Parameters
    ----------
    folder : RunFolder
    title : str
        Heading of the page.
    parts : sequence of str, Figure or Table
        Paragraphs, pictures and tables in their order; a picture is embedded.
    """
    body = "\n".join(_html(part) for part in parts)
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )
    # A file's name may hold bytes that are no characters; no page can.
    write_atomically(folder.report, page.encode(errors="replace"))
    summary = {
        "experiment": folder.config()["experiment"],
        "noisyflow": folder.config()["noisyflow"],
        "title": title,
        **asdict(folder.usage()),
        "parts": [_plain(part, folder) for part in parts],
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder.path / "report.json", text.encode(errors="replace"))


def claims_table(title: str, claims: Sequence[Claim]) -> ClaimsTable:
    """Statements, what was measured, and whether they hold.

    Parameters
    ----------
    title : str
    claims : sequence of Claim

    Returns
    -------
    ClaimsTable
    """
    return ClaimsTable(
        title,
        ["statement", "measured", "holds"],
        [[claim.statement, claim.measured, _VERDICTS[claim.holds]] for claim in claims],
        _UNDECIDED if any(claim.holds is None for claim in claims) else "",
        claims=tuple(claims),
    )


def settings_table(settings: Mapping[str, object]) -> Table:
    """The settings of a run.

    Parameters
    ----------
    settings : mapping

    Returns
    -------
    Table
    """
    rows = [[name, str(value)] for name, value in settings.items()]
    return Table("Settings", ["name", "value"], rows)


def work_table(folder: RunFolder, rows: Sequence[Sequence[str]] = ()) -> Table:
    """What was run, on what, what it took.

    Parameters
    ----------
    folder : RunFolder
        Its usage is what the work took.
    rows : sequence of (str, str)
        More to say, of this experiment.

    Returns
    -------
    Table
    """
    import torch

    config, usage = folder.config(), folder.usage()
    return Table(
        "What was run",
        ["what", "value"],
        [
            ["experiment", str(config["experiment"])],
            *rows,
            [
                "time and largest memory, figures apart",
                f"{duration(usage.seconds)} ({usage.seconds:.1f} s), "
                f"{usage.peak_mib:.0f} MiB",
            ],
            ["device", str(config.get("device", "not recorded"))],
            ["version of the run", f"noisyflow {config['noisyflow']}"],
            [
                "versions when this page was made",
                f"Python {platform.python_version()}, torch {torch.__version__}, "
                f"NumPy {np.__version__}",
            ],
        ],
    )


def _opening(results: Results) -> str:
    """The outcome in a few sentences."""
    last = {name: column[-1] for name, column in results.history.items()}
    values = results.metrics["mutual_information"][-1]
    errors = results.metrics["standard_error"][-1]
    layers = ", ".join(
        f"{value:.3f} ± {error:.3f}"
        for value, error in zip(values, errors, strict=True)
    )
    return (
        f"At epoch {results.epochs[-1]} the network classifies "
        f"{100 * last['train_accuracy']:.2f} % of the training and "
        f"{100 * last['test_accuracy']:.2f} % of the test inputs correctly (noise "
        f"off). I(X;T_l) of its hidden layers, first to last: {layers} nats. Epochs "
        "count from 0: epoch e is the state after e + 1 passes over the training "
        "inputs. Information is in nats throughout; ± is one standard error; the "
        "bracket [lower, upper] holds the bias of the estimate, on average over "
        "repetitions, and does not include the standard error."
    )


def _end_table(results: Results) -> Table:
    """Every layer at the last epoch."""
    last = {name: column[-1] for name, column in results.metrics.items()}
    rows = []
    for layer in range(results.num_layers):
        row = {name: column[layer] for name, column in last.items()}
        rows.append(
            [
                f"{layer + 1}",
                f"{row['mutual_information']:.4f} ± {row['standard_error']:.4f}",
                f"[{row['lower']:.4f}, {row['upper']:.4f}]",
                f"{row['label_information']:.4f} ± {row['label_standard_error']:.4f}",
                f"[{row['label_lower']:.4f}, {row['label_upper']:.4f}]",
                f"{row['num_proposals']:.0f}",
                f"{row['effective_sample_size']:.3f} / "
                f"{row['effective_sample_size_low']:.3f}",
            ]
        )
    return Table(
        f"All layers at epoch {results.epochs[-1]} (nats)",
        ["layer", "I(X;T)", "bracket", "I(Y;T)", "bracket", "proposals", "ESS"],
        rows,
        "ESS: effective sample size of the importance weights as a share of the "
        "proposals, mean / 5 % quantile over the queries. Near 1 the proposals fit; "
        "near 0 the bracket is wide.",
    )


def _quality_table(results: Results) -> Table:
    """How good the measurement was over the whole run."""
    metrics = results.metrics
    check = data_processing(results)
    width = metrics["upper"] - metrics["lower"]
    return Table(
        "Quality of the measurement, all logged epochs and layers",
        ["check", "value"],
        [
            [
                "pairs of neighbouring layers that break I(X;T_l) >= I(X;T_l+1) by "
                "more than two standard errors",
                f"{check.num_violations} of {check.num_pairs}",
            ],
            [
                "farthest that a later layer is ahead (nats; negative: never)",
                f"{check.largest_excess:.4f}",
            ],
            [
                "largest standard error of I(X;T_l) (nats)",
                _largest(metrics["standard_error"], results),
            ],
            ["widest bracket of I(X;T_l) (nats)", _largest(width, results)],
            [
                "smallest effective sample size, mean over queries",
                f"{metrics['effective_sample_size'].min():.3f}",
            ],
        ],
    )


def _largest(values: np.ndarray, results: Results) -> str:
    """The largest of (k, L) values and where it is."""
    at, layer = np.unravel_index(values.argmax(), values.shape)
    return f"{values.max():.4f} (layer {layer + 1}, epoch {results.epochs[at]})"


def _tracking_rows(results: Results) -> list[list[str]]:
    """How many epochs were logged, and what training and tracking took."""
    last = {name: column[-1] for name, column in results.history.items()}
    training, tracking = last["training_seconds"], last["tracking_seconds"]
    num_logs = len(results.epochs)
    return [
        [
            "logged epochs",
            f"{num_logs}, {results.epochs[0]} to {results.epochs[-1]}"
            if num_logs > 1
            else f"1, epoch {results.epochs[0]}",
        ],
        ["time in training", f"{duration(training)} ({training:.1f} s)"],
        [
            "time in tracking",
            f"{duration(tracking)} ({tracking:.1f} s, {tracking / num_logs:.2f} s "
            "per logged epoch)",
        ],
    ]


def _plain(part: Part, folder: RunFolder) -> dict[str, object]:
    """A part for `report.json`."""
    if isinstance(part, Figure):
        path = part.path.relative_to(folder.path).as_posix()
        return {"kind": "figure", "path": path, "caption": part.caption}
    if isinstance(part, Table):
        kind = "claims" if isinstance(part, ClaimsTable) else "table"
        return {"kind": kind, **asdict(part)}
    return {"kind": "paragraph", "text": part}


def _html(part: Part) -> str:
    """A paragraph, a picture or a table."""
    if isinstance(part, Figure):
        return _figure(part)
    if isinstance(part, Table):
        return _table(part)
    return f"<p>{html.escape(part)}</p>"


def _figure(figure: Figure) -> str:
    """A picture, embedded."""
    picture = figure.path.read_bytes()
    data = base64.b64encode(picture).decode()
    name = html.escape(figure.path.stem)
    width, height = picture_size(picture)
    kind = "gif" if picture.startswith(b"GIF8") else "png"
    return (
        f'<figure><div class="scroll" tabindex="0"><img alt="{name}" width="{width}" '
        f'height="{height}" style="--half: {width // 2}px" '
        f'src="data:image/{kind};base64,{data}"></div>'
        f"{_HINT if width // 2 > _NARROW else ''}"
        f"<figcaption>{html.escape(figure.caption)}</figcaption></figure>"
    )


def picture_size(picture: bytes) -> tuple[int, int]:
    """Width and height in pixels of a PNG or GIF file, by its first bytes.

    Parameters
    ----------
    picture : bytes

    Returns
    -------
    (int, int)

    Raises
    ------
    ValueError
        If it is no such file.
    """
    if picture.startswith(b"\x89PNG\r\n\x1a\n") and len(picture) >= 24:
        width, height = struct.unpack(">II", picture[16:24])
    elif picture.startswith((b"GIF87a", b"GIF89a")) and len(picture) >= 10:
        width, height = struct.unpack("<HH", picture[6:10])
    else:
        raise ValueError("neither a PNG nor a GIF file")
    return int(width), int(height)


def _table(table: Table) -> str:
    """A heading, the table and its note."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    body = "\n".join(
        "<tr>" + "".join(map(_cell, row, table.columns)) + "</tr>" for row in table.rows
    )
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    style = ' class="claims"' if isinstance(table, ClaimsTable) else ""
    return (
        f'<h2>{html.escape(table.title)}</h2>\n<div class="scroll" tabindex="0">'
        f"<table{style}>\n<tr>{head}</tr>\n{body}\n</table></div>\n{note}"
    )


def _cell(text: str, column: str) -> str:
    """A cell; verdicts are coloured and stay on one line."""
    if len(text) <= _SHORT:
        style = _VERDICT_STYLES.get(text, ' class="short"')
    else:
        style = ' class="long"' if len(text) > _LONG else ""
    return f'<td{style} data-column="{html.escape(column)}">{html.escape(text)}</td>'
