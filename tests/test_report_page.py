"""The report as a page: what it embeds, and what a browser says of it."""

from __future__ import annotations

import base64
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from noisyflow.experiments import Claim
from noisyflow.report import (
    Figure,
    Table,
    claims_table,
    picture_size,
    work_table,
    write_page,
)
from noisyflow.runs import RunFolder

CHECK = Path(__file__).parents[1] / ".ci" / "check_browser.py"
HEAD = '<!DOCTYPE html><html lang="en"><head><title>t</title></head><body>'
LONG = "a statement that goes on and on, as statements about information do " * 3


def png(width: int, height: int) -> bytes:
    """A white picture, by the PNG specification."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff" * width) * height)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all kinds of parts: a wide figure, long and many cells."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    with folder.open("szt", {"epochs": 2}):
        figure = Figure(folder.save_figure("wide.png", png(1800, 600)), LONG)
        write_page(
            folder,
            "A title that is long enough to need a second line on a telephone",
            [
                LONG,
                figure,
                claims_table(
                    "Claims", [Claim(LONG, LONG, True), Claim("a", "b", None)]
                ),
                Table(
                    "Wide",
                    [f"column {number}" for number in range(12)],
                    [["0.12 ± 0.01"] * 11 + [LONG]],
                    LONG,
                ),
                Table("Short", ["name", "value"], [["a" * 200, "1"]]),
                work_table(folder),
            ],
        )
    return folder.report


def test_the_size_of_a_picture_is_read_from_its_header() -> None:
    assert picture_size(png(1800, 600)) == (1800, 600)
    assert picture_size(b"GIF89a" + struct.pack("<HH", 7, 300) + b"rest") == (7, 300)
    for damaged in (b"", png(5, 5)[:20], b"GIF89a\1", b"<svg/>"):
        with pytest.raises(ValueError, match="neither a PNG nor a GIF"):
            picture_size(damaged)


def test_a_figure_is_embedded_as_it_is(report: Path) -> None:
    data = base64.b64encode(png(1800, 600)).decode()
    text = report.read_text()
    assert f'src="data:image/png;base64,{data}"' in text
    assert 'width="1800" height="600" style="--half: 900px"' in text
    assert text.count('<div class="hint">The figure scrolls') == 1


def test_verdicts_are_coloured_and_texts_may_wrap(report: Path) -> None:
    text = report.read_text()
    for cell in ('class="yes" data-column="holds">yes<', 'class="open" data-column='):
        assert text.count(f"<td {cell}") == 1
    assert f'<td class="long" data-column="statement">{LONG}</td>' in text
    assert '<td class="short" data-column="name">' not in text
    assert '<td class="short" data-column="value">1</td>' in text


@pytest.mark.parametrize("script", ["sleep 60", "printf '{' >&4; sleep 60", "exit 1"])
def test_a_browser_that_does_not_start_is_ended(tmp_path: Path, script: str) -> None:
    """One that says nothing, one that says half a message, one that ends."""
    program = tmp_path / "chromium"
    program.write_text(f'#!/bin/sh\nexec sh -c "{script}"\n')
    program.chmod(0o755)
    specification = importlib.util.spec_from_file_location("check_browser", CHECK)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.SECONDS_TO_LOAD = module.SECONDS_TO_CLOSE = 0.5
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def kept(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, **options))
        return started[-1]

    with (
        mock.patch.object(module.subprocess, "Popen", kept),
        pytest.raises((TimeoutError, RuntimeError, OSError)),
    ):
        module.Browser(str(program), str(tmp_path))
    (process,) = started
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


# What is wrong, and what is to be said of it.
BAD = {
    "missing": ('<img alt="gone" src="gone.png">', "is not decoded"),
    "external": ('<img src="http://example.org/a.png">', "requests http://example.org"),
    "script": ("<script>undefined_name()</script>", "script error: ReferenceError"),
    "console": ("<script>console.warn('careful')</script>", "console warning: careful"),
    "hidden": (
        f'<img style="opacity: 0" src="data:image/png;base64,'
        f'{base64.b64encode(png(9, 9)).decode()}">',
        "is not visible",
    ),
    "wide": (
        "<table><tr>" + "<td>1234567890123</td>" * 9 + "</tr></table>",
        "pixels wide",
    ),
    "cut": (
        '<div style="overflow: hidden"><p style="width: 2000px">a</p></div>',
        "reaches to 20",
    ),
    "small": ('<p style="font-size: 11px">fine print</p>', "letters of 11 pixels"),
    "squeezed": (
        f'<table style="width: 90px"><tr><td>{LONG}</td></tr></table>',
        "is squeezed into",
    ),
}


@pytest.mark.skipif(
    not (shutil.which("chromium") or shutil.which("chromium-browser")),
    reason="needs chromium",
)
def test_a_browser_finds_nothing_wrong_with_a_report_and_all_with_bad_pages(
    report: Path, tmp_path: Path
) -> None:
    pages = [report]
    for name, (body, _) in BAD.items():
        pages.append(tmp_path / f"{name}.html")
        pages[-1].write_text(f"{HEAD}{body}</body></html>")
    done = subprocess.run(
        [sys.executable, str(CHECK), *map(str, pages)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert not [line for line in said if line.startswith(str(report))]
    assert done.stdout.startswith(f"{report}: as it should be at 1280 and 400")
    for name, (_, expected) in BAD.items():
        about = [line for line in said if f"{name}.html: at 400" in line]
        assert any(expected in line for line in about), (name, about)
