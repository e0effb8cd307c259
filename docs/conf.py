"""The documentation site: sphinx-build -W docs build/docs.

Pages are Markdown that reads as well on a code host; docs/api/*.rst names what is
public, and the docstrings are the text. Nothing is fetched, neither while the site is
built nor while it is read.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

import noisyflow

project = "noisyflow"
author = "The noisyflow developers"
copyright = "the noisyflow developers, BSD-3-Clause"
version = release = noisyflow.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
root_doc = "index"
exclude_patterns = ["figures"]
nitpicky = True  # a link that leads nowhere is an error

# Links to headings, `page.md#heading`, are checked; images may have a width.
myst_enable_extensions = ["html_image"]
myst_heading_anchors = 3
# Words of a docstring's types are words ("(n, d) array"), never links.
numpydoc_xref_param_type = False
numpydoc_show_class_members = False
# Parameters of a docstring exist, and its sections are in order.
numpydoc_validation_checks = {"PR02", "GL06", "GL07"}
numpydoc_class_members_toctree = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say it
default_role = "code"  # `name` in a docstring, as in Markdown

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"noisyflow {release}"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

# Pages that list others, by hand or by a program: here their lists also make the menu.
_LISTS = ("gallery/README", "decisions/README")
_LISTED = re.compile(r"\]\(([\w-]+)\.md\)")
_PAGE_LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)\s#]+\.md)(#[^)\s]*)?\)")


def _link_pages_of_the_repository(app: Any, page: str, source: list[str]) -> None:
    """Markdown beyond docs/ is no page here: a link to it becomes a file to read."""

    def is_page(target: str) -> bool:
        here = Path(app.srcdir, page).parent
        return (here / target).resolve().is_relative_to(app.srcdir)

    source[0] = _PAGE_LINK.sub(
        lambda link: (
            link[0] if is_page(link[2]) else f"{{download}}`{link[1]} <{link[2]}>`"
        ),
        source[0],
    )


def _add_contents(app: Any, page: str, source: list[str]) -> None:
    if page in _LISTS:
        names = "\n".join(dict.fromkeys(_LISTED.findall(source[0])))
        source[0] += f"\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"


# In a docstring |x| is an absolute value, and in reStructuredText a substitution.
_LITERAL = re.compile(r"(``.*?``|`[^`]*`)")


def _escape_bars(
    app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    for number, line in enumerate(lines):
        if "|" in line and not line.startswith((" ", ">>>")):
            parts = _LITERAL.split(line)
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            lines[number] = "".join(parts)


def _stand_in_for_lightning() -> None:
    """A module with the one class that noisyflow.lightning derives from, if need be."""
    if importlib.util.find_spec("pytorch_lightning") is None:
        stand_in = types.ModuleType("pytorch_lightning")
        stand_in.__spec__ = importlib.machinery.ModuleSpec("pytorch_lightning", None)
        stand_in.Callback = type("Callback", (), {})  # type: ignore[attr-defined]
        sys.modules["pytorch_lightning"] = stand_in


def setup(app: Any) -> None:
    _stand_in_for_lightning()
    app.connect("source-read", _add_contents)
    app.connect("source-read", _link_pages_of_the_repository)
    app.connect("autodoc-process-docstring", _escape_bars)
