"""Checks a built site of documentation: it loads nothing from elsewhere, links lead on.

    check_site.py FOLDER

No script, style, font or picture may come from another host, and every link within the
site must lead to a file, and to an anchor that the file has.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

_CSS_URL = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
_RESOURCES = {"script": "src", "img": "src", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page loads, where it leads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(given.get("href", ""))
        if tag in _RESOURCES:
            self.loads.append(given.get(_RESOURCES[tag], ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])


def main(folder: Path) -> int:
    pages = {path: Page(path.read_text()) for path in sorted(folder.rglob("*.html"))}
    if not pages:
        print(f"check_site: no page in {folder}", file=sys.stderr)
        return 1
    wrong = [
        f"{path.relative_to(folder)}: {problem}"
        for path, page in pages.items()
        for problem in problems(path, page, pages)
    ]
    for style in sorted(folder.rglob("*.css")):
        for found in _CSS_URL.findall(style.read_text()):
            if is_elsewhere(found[0] or found[1]):
                wrong.append(f"{style.relative_to(folder)}: loads {found}")
    for line in wrong:
        print(line, file=sys.stderr)
    num_links = sum(len(page.links) for page in pages.values())
    print(f"{folder}: {len(pages)} pages, {num_links} links, {len(wrong)} wrong")
    return 1 if wrong else 0


def problems(path: Path, page: Page, pages: dict[Path, Page]) -> list[str]:
    """What is wrong with a page, a sentence each."""
    found = [f"loads {url}" for url in page.loads if is_elsewhere(url)]
    for url in [*page.loads, *page.links]:
        if not url or urlsplit(url).scheme or is_elsewhere(url):
            continue
        target, anchor = urldefrag(url)
        there = (path.parent / unquote(urlsplit(target).path)) if target else path
        there = there.resolve()
        if not there.exists():
            found.append(f"leads to {url}, which is not there")
        elif anchor and there in pages and unquote(anchor) not in pages[there].anchors:
            found.append(f"leads to {url}, an anchor that is not there")
    return found


def is_elsewhere(url: str) -> bool:
    """Whether a browser would ask another host for this."""
    parts = urlsplit(url.strip())
    return parts.scheme in ("http", "https", "ftp") or url.strip().startswith("//")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
