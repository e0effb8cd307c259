"""Names, links and texts that mean to be more: none is run, followed or taken up."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mutations
from noisyflow import cli, gallery, plotting
from noisyflow.experiments import Claim
from noisyflow.experiments.several_trainings import Arm, complete
from noisyflow.image_files import ImageFileError, read_idx
from noisyflow.report import Figure, Table, claims_table, settings_table, write_page
from noisyflow.runs import RunError, RunFolder, write_atomically

NAMES = ["$(touch run)", "`touch run`", "; touch run;", "a\nb", "a\x1b[2Jb", "--", "-x"]
NAMES += ["| touch run", "../out", "a b", "'\"", "%s{0}", "é\udcff"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with a file that nobody shall touch."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("whole")
    return tmp_path / "outside"


def is_whole(outside: Path) -> bool:
    names = [path.name for path in outside.iterdir()]
    return names == ["precious"] and (outside / "precious").read_text() == "whole"


# -- names ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "mnist", "--quick", "--data={}", "--out=out"],
        ["run", "mnist", "--quick", "--set=data={}", "--out=out"],
        ["run", "szt", "--set=epochs={}", "--out=out"],
        ["estimate", "--noise-std=1", "--", "{}"],
        ["film", "--out={}.gif", "--", "nowhere"],
        ["film", "--", "{}"],
        ["list", "--", "{}"],
        ["gallery", "--runs={}", "--", "{}"],
    ],
)
def test_a_name_is_but_a_name(
    name: str, arguments: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("{}", name) for argument in arguments]
    assert cli.main(given) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("noisyflow: ")
    assert captured.err.count("\n") == 1
    assert captured.err[:-1].isprintable()
    assert [path for path in place.rglob("*") if path.name != "docs"] in (
        [],
        [place / "docs" / "gallery"],  # where pages would go
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_to_the_folder_of_its_name(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "szt", "--epochs=0", f"--out={name}"]) == 2
    assert "epochs must be" in capsys.readouterr().err
    assert list(place.iterdir()) == []
    mutations.make_report(place / name)
    assert gallery.read_report(place / name).experiment == "szt"
    assert list(place.parent.glob("**/config.json")) == [
        Path(os.path.normpath(place / name)) / "config.json"
    ]


@pytest.mark.parametrize("text", ["__import__('os').mkdir('x')", "open('x','w')", "{"])
def test_a_setting_is_not_evaluated(
    text: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "szt", f"--set=epochs={text}"]) == 2
    assert "epochs must be an integer" in capsys.readouterr().err
    assert list(place.iterdir()) == []


def test_what_is_printed_of_a_name_without_characters(place: Path) -> None:
    """Where the locale is UTF-8, Python would not print half a character."""
    folder = os.fsencode("out-\udcff")
    code = f"import sys; sys.path[:0] = {sys.path!r}; from noisyflow.cli import main; "
    code += (
        "import noisyflow.experiments.spiral as e; e.run = lambda c, o: not print(o)"
    )
    command = [sys.executable, "-c", f"{code}; sys.exit(main())"]
    done = subprocess.run(
        [*command, "run", "spiral", "--out", folder],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"out-\\udcff\n"


def test_the_gallery_hands_a_folder_s_name_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that begins with a dash is no option of the run."""
    commands = []

    class Process:
        def __init__(self, command: list[str]) -> None:
            commands.append(command)

        def wait(self) -> int:
            return 3

    monkeypatch.setattr(gallery.subprocess, "Popen", Process)
    assert cli.main(["gallery", "szt", "--runs=-x", "--out=pages"]) == 1
    assert "ended with exit code 3" in capsys.readouterr().err
    assert commands[0][-1] == "--out=-x/szt"


# -- links ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [".lock", "figures", ".config.json.tmp", "figures/.a.png.tmp"]
)
def test_a_link_out_of_a_run_s_folder_is_not_followed(
    name: str, place: Path, outside: Path
) -> None:
    (place / "run" / name).parent.mkdir(parents=True)
    target = outside if name == "figures" else outside / "precious"
    (place / "run" / name).symlink_to(target)
    folder = RunFolder(place / "run")
    if name in (".lock", "figures"):
        with pytest.raises(RunError), folder.open("szt", {}):
            folder.save_figure("a.png", b"data")
    else:
        with folder.open("szt", {}):
            write_atomically(folder.path / "config.json", b"{}")
            assert folder.save_figure("a.png", b"data").read_bytes() == b"data"
    assert is_whole(outside)


@pytest.mark.parametrize(
    "name", ["config.json", "checkpoint.safetensors", "usage.json"]
)
def test_a_linked_file_is_replaced_not_its_target(
    name: str, place: Path, outside: Path
) -> None:
    (place / name).symlink_to(outside / "precious")
    write_atomically(place / name, b"new")
    assert (place / name).read_bytes() == b"new"
    assert is_whole(outside)


def test_a_half_written_file_may_be_a_link_or_a_pipe(
    place: Path, outside: Path
) -> None:
    for put in (lambda p: p.symlink_to(outside / "precious"), os.mkfifo):
        put(place / ".page.md.tmp")
        with mutations.within_limits():
            write_atomically(place / "page.md", b"new")
        assert [path.name for path in place.iterdir()] == ["page.md"]
    assert is_whole(outside)


@pytest.mark.parametrize("name", ["networks", "networks/one"])
def test_a_network_s_folder_is_not_a_link(
    name: str, place: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "run" / name).parent.mkdir(parents=True)
    (place / "run" / name).symlink_to(outside)
    arm: Any = Arm.__new__(Arm)
    object.__setattr__(arm, "name", "one")
    monkeypatch.setattr(
        "noisyflow.experiments.several_trainings._work", lambda *_: None
    )
    with pytest.raises(RunError, match="it is a link"):
        complete("szt-linear", RunFolder(place / "run"), [arm], opening="")
    assert is_whole(outside)


@pytest.mark.parametrize("name", ["../a", "/tmp/a", "a/b", "", ".", "a\0", "-a"])
def test_a_network_s_name_stays_within_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="fit for a folder"):
        Arm(name, *[None] * 3, logged_epochs=[0], settings={})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path",
    ["../outside/precious", "/etc/hostname", "figures/../config.json", "figures/link"],
)
def test_a_report_s_pictures_are_its_own(path: str, place: Path, outside: Path) -> None:
    mutations.make_report(place / "run")
    (place / "run" / "figures" / "link").symlink_to(outside / "precious")
    file = place / "run" / "report.json"
    file.write_text(file.read_text().replace("figures/information.png", path))
    with pytest.raises(RunError, match=r"report\.json is damaged"):
        gallery.read_report(place / "run")


# -- what is packed -----------------------------------------------------------------


@pytest.mark.parametrize("promised", ["little", "much"])
def test_a_gzip_bomb_is_not_unpacked(promised: str, place: Path) -> None:
    """A gigabyte of zeros in a megabyte, behind a header of 16 bytes or of 2^31."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9) as file:
        size = 16 if promised == "little" else 2**31
        file.write(b"\0\0\x08\x01" + size.to_bytes(4, "big"))
        for _ in range(64):  # enough to be seen, at little cost
            file.write(bytes(2**20))
    (place / "images.gz").write_bytes(buffer.getvalue())
    tracemalloc.start()
    try:
        with pytest.raises(ImageFileError, match=r"images\.gz"):
            read_idx(place / "images.gz")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_gzip_file_s_inner_name_is_not_used(place: Path) -> None:
    data = mutations.idx(np.arange(6, dtype=np.uint8))
    with (
        (place / "labels.gz").open("wb") as out,
        gzip.GzipFile("../../escaped", "wb", fileobj=out) as file,
    ):
        file.write(data)
    assert b"escaped" in (place / "labels.gz").read_bytes()
    np.testing.assert_array_equal(read_idx(place / "labels.gz"), np.arange(6))
    assert [path.name for path in place.parent.iterdir()] == ["here"]


# -- texts --------------------------------------------------------------------------

TEXTS = [
    '<script>alert("x")</script>',
    "</td></table></style><img src=x onerror=alert(1)>",
    "\" onmouseover='alert(1)' x=\"",
    "<!-- &lt; &#60; ]]>",
    "$\\frac{$ \\input{/etc/passwd}",
    "a\udcffb",
    "\x1b[31m\x07\x00",
]


class Elements(HTMLParser):
    """The elements of a page with their attributes, and all of its text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # What attributes hold, a text for instance, cannot add one.
        self.found.append(" ".join([tag, *sorted(name for name, _ in attrs)]))

    def handle_comment(self, data: str) -> None:
        self.found.append("comment")

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(text: str, place: Path) -> Elements:
    """A report with the text wherever one may stand."""
    folder = RunFolder(place)
    with folder.open("szt", {"data": text}):
        name = "".join(c for c in text if c not in "/\0") or "x"
        picture = folder.save_figure(f"{name}.png", mutations.png(4, 2))
        parts = [
            text,
            Figure(picture, text),
            Table(text, [text], [[text]], text),
            claims_table(text, [Claim(text, text, True)]),
            settings_table(folder.config()["settings"]),
        ]
        write_page(folder, text, parts)
    elements = Elements()
    elements.feed(folder.report.read_text())
    return elements


@pytest.mark.parametrize("text", TEXTS)
def test_no_text_adds_an_element_to_a_report(text: str, place: Path) -> None:
    words = "w" * len(text)  # long cells have a style of their own
    sound = page_of(words, place / "sound")
    found = page_of(text, place / "run")
    assert found.found == sound.found
    shown = text.encode(errors="replace").decode()
    assert found.text.count(shown) == sound.text.count(words)
    report = json.loads((place / "run" / "report.json").read_bytes())
    assert report["title"] == shown


@pytest.mark.parametrize("label", ["$\\frac{$", "$x_1$", "a$b", "_hidden", "\\", "{}%"])
def test_a_label_is_drawn_as_it_is_written(label: str) -> None:
    figure, (axes,) = plotting.new_figure(3, 2)
    points = np.arange(4.0)[:, None]
    labels = np.array([label, label, "b", "b"])
    plotting.constellation(axes, points, 0.1, labels=labels, title="")
    axes.legend()
    assert plotting.png(figure).startswith(b"\x89PNG")
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    # As matplotlib wants dollars that begin no formula.
    assert f"label {label}".replace("$", r"\$") in shown
