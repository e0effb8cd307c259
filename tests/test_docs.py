"""The documentation: what is public has an example, links lead on, figures are true."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import noisyflow

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(
    not (ROOT / "bench").is_dir(), reason="pages name files of a clone"
)
PAGES = sorted(DOCS.glob("api/*.rst"))
_MODULE = re.compile(r"^\.\. (?:automodule|currentmodule):: (\S+)$", re.MULTILINE)
_ENTRY = re.compile(r"^\.\. auto(function|class|exception):: (\w+)$", re.MULTILINE)
_WARNING = re.compile(r"^class (\w+Warning)\(", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\]\(([^)\s#:]*)(?:#([^)\s]+))?\)")
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def documented() -> list[tuple[str, str, str]]:
    """Module, kind and name of all that the site documents."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for module in _MODULE.findall(text):
            found += [(module, kind, name) for kind, name in _ENTRY.findall(text)]
    return found


def test_every_documented_name_has_a_docstring_and_every_function_an_example() -> None:
    entries = documented()
    assert len(entries) > 80
    if importlib.util.find_spec("pytorch_lightning") is None:
        entries = [entry for entry in entries if entry[0] != "noisyflow.lightning"]
    bare = []
    for module, kind, name in entries:
        text = getattr(importlib.import_module(module), name).__doc__
        assert text, f"{module}.{name}"
        if kind == "function" and ">>> " not in text:
            bare.append(f"{module}.{name}")
    assert not bare


def test_every_public_name_is_documented() -> None:
    entries = {(module, name) for module, _, name in documented()}
    listed = ["noisyflow", "noisyflow.theory", "noisyflow.baselines"]
    for module in listed:
        for name in importlib.import_module(module).__all__:
            assert (module, name) in entries, f"{module}.{name}"
    assert noisyflow.__all__


def test_every_warning_of_the_package_has_a_section() -> None:
    text = (DOCS / "warnings.md").read_text()
    names = {
        name
        for source in (ROOT / "python").rglob("*.py")
        for name in _WARNING.findall(source.read_text())
    }
    assert names
    for name in names:
        assert f"\n## {name}\n" in text, name


def test_quoted_warnings_are_those_of_the_code() -> None:
    """What can be searched for in a quotation is found in the code, word by word."""
    text = (DOCS / "warnings.md").read_text()
    code = "".join(
        source.read_text() for source in (ROOT / "python/noisyflow").glob("*.py")
    )
    flat = re.sub(r'"\s*f?"', "", code)  # strings written in parts
    for words in (
        "of the density that it meets",
        "have no neighbour but their own sample",
        "the samples themselves leave more",
        "the limit of pairs is reached",
        "max_seconds is reached",
        "the bracket holds all the same",
        "noise paths are proposed from the prior instead of around the",
    ):
        assert words in flat, words
        assert words in re.sub(r"\n> | *\n", " ", text), words


@pytest.mark.parametrize("page", ["design.md", "numerics.md"])
def test_what_a_page_names_is_in_the_tree(page: str) -> None:
    """Files, tests, constants of the kernels, and names behind a dot."""
    folders = ("csrc", "python", "tests", "bench", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    sources = {".py", ".pyi", ".h", ".cpp", ".cu", ".cuh", ".sh"}
    names = {path.name for path in files}
    code = "".join(
        path.read_text()
        for path in files
        if path.suffix in sources and path != Path(__file__)
    )
    for quoted in re.findall(r"`([^`\n]+)`", (DOCS / page).read_text()):
        for file in re.findall(r"[\w./-]+\.(?:pyi?|h|cpp|cuh?|sh)\b", quoted):
            assert Path(file).name in names, file
        for word in re.findall(r"\btest_\w+\b(?!\.)|\bk[A-Z]\w+\b", quoted):
            assert re.search(rf"\b{word}\b", code) or f"{word}.py" in names, word
        if re.fullmatch(r"[a-z_]+\.[a-z_]+", quoted) and not quoted.endswith("json"):
            last = quoted.partition(".")[2]
            assert quoted in names or re.search(rf"\b{last}\b", code), quoted


def slug(heading: str) -> str:
    """A heading's anchor, as code hosts make it."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return kept.strip().replace(" ", "-")


@pytest.mark.parametrize(
    "page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS))
)
def test_links_and_their_anchors_exist(page: Path) -> None:
    text = _FENCE.sub("", page.read_text())
    for target, anchor in _LINK.findall(text):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{target}#{anchor}"


@pytest.fixture(scope="module")
def ideas() -> ModuleType:
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("ideas", DOCS / "figures/ideas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flat(numbers: object) -> np.ndarray:
    """All numbers of lists and dicts, in order."""
    if isinstance(numbers, dict):
        return np.concatenate([flat(part) for part in numbers.values()])
    return np.ravel(np.asarray(numbers, float))


@pytest.mark.parametrize("name", ["bins", "bracket", "noise"])
def test_the_figures_show_what_the_code_computes(ideas: ModuleType, name: str) -> None:
    """To 1e-4: AVX2 and AVX-512 differ by rounding, and a plot shows three digits."""
    drawn = json.loads((DOCS / "figures/ideas.json").read_text())[name]
    now = ideas.plain(ideas.FIGURES[name][0]())
    np.testing.assert_allclose(flat(now), flat(drawn), rtol=1e-4, atol=1e-4)


def test_the_bracket_of_the_figure_encloses_the_truth() -> None:
    """The means of the ends do, within three standard errors over 12 estimates."""
    drawn = json.loads((DOCS / "figures/ideas.json").read_text())["bracket"]
    rows = np.array(drawn["rows"])
    for n in np.unique(rows[:, 0]):
        mine = rows[rows[:, 0] == n]
        error = 3 * mine[:, 1:3].std(axis=0, ddof=1) / np.sqrt(len(mine))
        lower, upper = mine[:, 1:3].mean(axis=0)
        assert lower - error[0] <= drawn["truth"] <= upper + error[1]
