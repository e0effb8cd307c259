"""Runs the examples of Markdown pages, compares their output, and follows their links.

    check_readme.py PAGE.md ...

In a page, Python blocks run one after another in one namespace and one empty folder,
and so do the commands of `noisyflow` that show their output. What a block of text right
below one shows must be what is printed; `...` in it stands for anything. Commands
without output are only parsed. A block below the comment `<!-- fragment -->` is only
compiled.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from noisyflow import cli

_BLOCK = re.compile(
    r"(?P<fragment><!-- fragment -->\n+)?"
    r"^```(?P<kind>python|sh)\n(?P<code>.*?)^```$"
    r"(?:\n+```text\n(?P<shown>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
_LINK = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def main(pages: list[Path]) -> None:
    num_examples = 0
    wrong: list[str] = []
    for page in pages:
        text = page.read_text()
        check_links(page, text)
        before = Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                num_examples += run(page, text, before, wrong)
            finally:
                os.chdir(before)
    if wrong:
        sys.exit("\n".join(wrong))
    names = ", ".join(map(str, pages))
    print(f"{names}: {num_examples} examples print what they show")
    assert num_examples, "no example with its output was found"


# What torchrun sets, for examples over ranks, which run as one; any free port.
_ONE_RANK = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}


def check_links(page: Path, text: str) -> None:
    for target, _ in _LINK.findall(_FENCE.sub("", text)):
        assert (page.parent / target).exists(), f"{page}: {target} does not exist"


def run(page: Path, text: str, root: Path, wrong: list[str]) -> int:
    """Runs a page's examples; how many were compared, and which were `wrong`."""
    names: dict[str, Any] = {"__name__": "example"}
    os.environ.update(_ONE_RANK)
    num_compared = 0
    for block in _BLOCK.finditer(text):
        code, shown = block["code"], block["shown"]
        line = text.count("\n", 0, block.start("code")) + 1
        if block["kind"] == "python":
            program = compile("\n" * (line - 1) + code, str(page), "exec")
            if block["fragment"] or (shown is None and not is_run(page)):
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), warnings.catch_warnings():
                exec(program, names)
            got = printed.getvalue()
        elif shown is None or block["fragment"]:
            parse(code, root, f"{page}:{line}")
            continue
        else:
            got = output(code)
        if shown is not None:
            if not is_alike(shown, got):
                wrong.append(f"{page}:{line} prints\n{got}")
            num_compared += 1
    return num_compared


def is_run(page: Path) -> bool:
    """Whether blocks without output run, too: not in the README, whose are excerpts."""
    return page.name != "README.md"


def output(command: str) -> str:
    """What commands print, with the noisyflow that this Python imports."""
    printed = ""
    for line in command.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "noisyflow", f"`{line}` shows output and is not ours"
        printed += subprocess.run(
            [sys.executable, "-m", "noisyflow", *arguments],
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ).stdout
    return printed


def parse(command: str, root: Path, where: str) -> None:
    """Fails where a command of noisyflow has unknown arguments, or a script is none."""
    for line in command.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["noisyflow"] and len(words) > 1:
                with contextlib.redirect_stderr(io.StringIO()) as said:
                    try:
                        cli._parser().parse_args(words[1:])
                    except SystemExit:
                        raise AssertionError(
                            f"{where}: `{part.strip()}`: {said.getvalue()}"
                        ) from None
            if words[:1] == ["python"] and words[1:2] and words[1].endswith(".py"):
                assert (root / words[1]).exists(), f"{where}: {words[1]} does not exist"


def is_alike(shown: str, got: str) -> bool:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(shown.strip(), got.strip(), flags)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
