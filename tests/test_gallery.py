"""The gallery: pages that say what reports say, and what it does where one is bad."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from noisyflow import cli, gallery, plotting, runs
from noisyflow.experiments import Claim, szt
from noisyflow.experiments.verdicts import CHECKS
from noisyflow.report import Figure, claims_table, write_page
from noisyflow.runs import RunFolder

CLAIMS = [
    Claim("a | b rises", "1 ± 2", True),
    Claim("T_1 < T_2", "it *is* not", False),
    Claim("x", "y", None),
    Claim("z", "w", True),
]


def make_run(runs: Path, name: str = "szt", **settings: Any) -> Path:
    """A finished quick run of szt, as far as its report goes."""
    folder = RunFolder(runs / f"{name}-quick")
    figure, _ = plotting.new_figure(1, 1)
    with folder.open(name, asdict(szt.configure(quick=True, **settings))):
        write_page(
            folder,
            "A title",
            [
                "We find <this>.",
                Figure(folder.save_figure("a.png", plotting.png(figure)), "Seen."),
                claims_table("What is claimed", CLAIMS),
                claims_table(CHECKS, CLAIMS[:2]),
            ],
        )
        folder.save_checkpoint({})
    return folder.path


def build(tmp_path: Path, *names: str) -> int:
    options = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "pages")]
    return cli.main(["gallery", "--quick", *options, *names])


@pytest.fixture
def no_runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been run; those without a report fail."""
    commands: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str]) -> None:
            commands.append(command[1:])

        def wait(self) -> int:
            (name,) = (word for word in commands[-1] if word.startswith("--out="))
            out = Path(name.removeprefix("--out="))
            return 0 if (out / "report.json").exists() else 3

    monkeypatch.setattr(gallery.subprocess, "Popen", Process)
    return commands


def test_a_page_says_what_the_report_says(
    tmp_path: Path, no_runs: list[list[str]]
) -> None:
    run = make_run(tmp_path / "runs")
    assert build(tmp_path, "szt") == 0
    pages = tmp_path / "pages"
    assert sorted(path.name for path in pages.iterdir()) == [
        "README.md",
        "szt.md",
        "szt.png",
    ]
    page, index = ((pages / name).read_text() for name in ("szt.md", "README.md"))
    assert page.startswith(
        "# A title\n\n**2 of 4 statements hold, 1 does not, 1 is undecided; 1 of 2 "
        "checks of the measurement pass.** **1 fails: distrust this run before the "
        "papers.** Failed: T_1 \\< T_2 Measured: it \\*is\\* not. A quick run"
    )
    assert "A quick run" in page
    assert "\n\nWe find \\<this>.\n\n![szt](szt.png)\n\nSeen.\n\n" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert rows[2:6] == [
        "| a \\| b rises | 1 ± 2 | yes |",
        "| T_1 \\< T_2 | it \\*is\\* not | **no** |",
        "| x | y | undecided |",
        "| z | w | yes |",
    ]
    assert "\nnoisyflow run szt --quick\n" in page
    assert (pages / "szt.png").read_bytes() == (run / "figures/a.png").read_bytes()
    assert "## [A title](szt.md)" in index
    assert page.split("\n\n")[1] in index
    assert '<img src="szt.png"' in index


def test_nothing_is_distrusted_where_no_check_failed() -> None:
    report = gallery.Report("szt", "A title", [], [], [], {CHECKS: CLAIMS[::2]}, 1, 1)
    assert "distrust" not in gallery.page(report)
    report = replace(report, claims={CHECKS: CLAIMS[1:2] * 2})
    assert "**2 fail: distrust this run before the papers.**" in gallery.page(report)


def test_every_link_leads_somewhere_and_the_same_reports_give_the_same_pages(
    tmp_path: Path, no_runs: list[list[str]]
) -> None:
    make_run(tmp_path / "runs")
    assert build(tmp_path, "szt") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "pages").iterdir()}
    for path, data in before.items():
        if path.suffix == ".md":
            for link in re.findall(rb'\]\(([^)]+)\)|(?:src|href)="([^"]+)"', data):
                assert (path.parent / (link[0] or link[1]).decode()).is_file(), link
    assert build(tmp_path, "szt") == 0
    assert before == {path: path.read_bytes() for path in before}


def test_a_film_of_the_whole_run_is_shown(
    tmp_path: Path, no_runs: list[list[str]]
) -> None:
    film = make_run(tmp_path / "runs") / "figures" / "film.gif"
    film.write_bytes(b"GIF89a\x05\0\x05\0rest")
    assert build(tmp_path, "szt") == 0
    assert (tmp_path / "pages/szt.gif").read_bytes() == film.read_bytes()
    assert "(szt.gif)" in (tmp_path / "pages/szt.md").read_text()
    film.with_name("film-layer-1.gif").write_bytes(b"of another layer")
    measured = (film.parent.parent / "checkpoint.safetensors").stat().st_mtime_ns
    os.utime(film, ns=(measured - 1, measured - 1))  # of a part of the run
    assert build(tmp_path, "szt") == 0
    assert not (tmp_path / "pages/szt.gif").exists()
    assert "szt.gif" not in (tmp_path / "pages/szt.md").read_text()


def test_what_is_missing_is_run_with_its_own_command(
    tmp_path: Path,
    no_runs: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert build(tmp_path, "szt") == 1
    folder = tmp_path / "runs" / "szt-quick"
    command = ["-m", "noisyflow", "run", "szt", "--quick", f"--out={folder}"]
    assert no_runs == [command]
    said = capsys.readouterr()
    assert "[1 of 1] szt" in said.out
    assert said.err == f"noisyflow: szt: its run in {folder} ended with exit code 3\n"


def test_a_finished_run_is_written_up_again_on_its_device(
    tmp_path: Path, no_runs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its report may be of older code, or of none that can be read."""
    monkeypatch.setattr(runs.runtime, "device_name", str)
    folder = make_run(tmp_path / "runs", device="cuda")
    whole = (folder / "report.json").read_bytes()
    (folder / "report.json").write_bytes(b"{}")
    start = gallery.subprocess.Popen

    def write_up(command: list[str]) -> Any:
        (folder / "report.json").write_bytes(whole)
        return start(command)

    monkeypatch.setattr(gallery.subprocess, "Popen", write_up)
    assert build(tmp_path, "szt") == 0
    (command,) = no_runs
    assert command[-2:] == ["--device", "cuda"]
    assert (tmp_path / "pages/szt.md").read_text().startswith("# A title\n")


def test_ctrl_c_in_a_run_stops_the_gallery(
    tmp_path: Path, no_runs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "runs")
    start = gallery.subprocess.Popen

    def interrupted(command: list[str]) -> Any:
        signal.raise_signal(signal.SIGINT)
        return start(command)

    monkeypatch.setattr(gallery.subprocess, "Popen", interrupted)
    assert build(tmp_path, "szt", "estimators") == 130
    assert len(no_runs) == 1
    # What a run leaves that was stopped is not for a page, even if it can be read.
    assert list((tmp_path / "pages").iterdir()) == []


def test_the_first_page_lists_all_that_there_are(
    tmp_path: Path, no_runs: list[list[str]]
) -> None:
    make_run(tmp_path / "runs")
    assert build(tmp_path, "szt") == 0
    page = (tmp_path / "pages/szt.md").read_text()
    (tmp_path / "pages/estimators.md").write_text(page.replace("A title", "Another"))
    assert build(tmp_path, "szt") == 0
    index = (tmp_path / "pages/README.md").read_text()
    assert "## [A title](szt.md)" in index
    assert "## [Another](estimators.md)" in index


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.md", "# Gallery of my photographs\n"),
        ("README.md", ""),
        ("szt.md", "# A title\n\nMy notes.\n\nThat is all.\n"),
        ("szt.png", "a picture"),
        ("mnist.gif", "a film"),
    ],
)
def test_files_of_somebody_else_are_left_alone(
    tmp_path: Path,
    no_runs: list[list[str]],
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str,
) -> None:
    make_run(tmp_path / "runs")
    path = tmp_path / "pages" / name
    path.parent.mkdir()
    path.write_text(text)
    assert build(tmp_path, "szt") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"noisyflow: {path} is not")
    assert "choose another --out" in said
    assert said.count("\n") == 1
    assert no_runs == []
    assert [path.name for path in path.parent.iterdir()] == [name]
    assert path.read_text() == text


def without_parts(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name != "parts"}


def with_a_strange_verdict(report: dict[str, Any]) -> dict[str, Any]:
    report["parts"][2]["claims"][0]["holds"] = "yes"
    return report


def with_a_picture_from_elsewhere(report: dict[str, Any]) -> dict[str, Any]:
    report["parts"][1]["path"] = "figures/../../secret.png"
    return report


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_parts, "report.json is damaged; remove it and run again"),
        (with_a_strange_verdict, "report.json is damaged"),
        (with_a_picture_from_elsewhere, "report.json is damaged"),
    ],
)
def test_a_report_that_is_not_whole_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    path = make_run(tmp_path) / "report.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(gallery.RunError, match=message):
        gallery.read_report(path.parent)


def test_one_bad_run_leaves_all_pages_as_they_are(
    tmp_path: Path,
    no_runs: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path / "runs")
    assert build(tmp_path, "szt") == 0
    pages = {path: path.read_bytes() for path in (tmp_path / "pages").iterdir()}
    (run / "figures" / "a.png").write_bytes(b"\x89PNG\r\n")
    capsys.readouterr()
    assert build(tmp_path, "szt", "estimators") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "a.png is damaged: neither a PNG nor a GIF file" in said[0]
    assert said[1].startswith("noisyflow: estimators: its run in")
    assert pages == {path: path.read_bytes() for path in pages}


def test_a_run_with_other_settings_is_not_shown(
    tmp_path: Path,
    no_runs: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_run(tmp_path / "runs", epochs=7)
    assert build(tmp_path, "szt") == 1
    said = capsys.readouterr().err
    assert "with epochs = 7, not 600; choose another --runs, or remove it" in said
    assert no_runs == []
    assert not (tmp_path / "pages" / "szt.md").exists()


def test_unknown_names_are_guessed_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(tmp_path, "estimator") == 2
    assert "did you mean estimators?" in capsys.readouterr().err
    assert not (tmp_path / "pages").exists()


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pages").write_text("a file")
    assert build(tmp_path, "szt") == 1
    said = capsys.readouterr().err
    assert said == f"noisyflow: cannot write {tmp_path / 'pages'}: File exists\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I(X;T_1) >= 0.5 - 1", "I(X;T_1) >= 0.5 - 1"),
        ("-1.39 ± 0.14", "-1.39 ± 0.14"),
        ("_x_ *y* `z`", "\\_x\\_ \\*y\\* \\`z\\`"),
        ("- no list", "\\- no list"),
        ("1. no list", "1\\. no list"),
        ("## no heading", "\\## no heading"),
        ("######", "\\######"),
        ("#5 of 7", "#5 of 7"),
        ("---", "\\---"),
        ("- - -", "\\- - -"),
        ("+", "\\+"),
        ("two\nlines | one", "two lines \\| one"),
    ],
)
def test_markdown_leaves_texts_as_they_are(text: str, expected: str) -> None:
    assert gallery._escaped(text) == expected
