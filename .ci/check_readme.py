"""Runs the README's Python examples, compares their output, and follows its links."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path


def main(readme: Path) -> None:
    text = readme.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (readme.parent / target).exists(), f"{target} does not exist"
    blocks = re.findall(r"```python\n(.*?)```\s*```text\n(.*?)```", text, re.DOTALL)
    assert blocks, "no example with its output was found"
    for code, shown in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(readme), "exec"), {})
        assert printed.getvalue().strip() == shown.strip(), printed.getvalue()
    print(f"{readme}: {len(blocks)} examples print what they show")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
