"""Opens report pages in headless Chromium and fails if a reader would miss something.

    check_browser.py REPORT.html ... [--screenshots DIR] [--dark] [--within SELECTOR]

A page must load without any request but its own, without a message of error or warning
on the console, with every picture decoded and visible; at 1280 and at 400 pixels width
nothing may be cut off or need sideways scrolling but in a box of its own, no text may
be smaller than 12 pixels, and no long text squeezed into a narrow column. With --dark
all this is so where the reader prefers dark pages. With --within only that part of a
page is judged, and files beside the page may be loaded: for pages of a site, whose
menus wait out of sight.

Chromium is driven over the pipe of its DevTools protocol; nothing is installed.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WIDTHS = (1280, 400)
SMALLEST_TEXT = 12  # pixels
NARROWEST_COLUMN = 120  # pixels, of a cell of more than 40 characters
SECONDS_TO_LOAD = 60.0
SECONDS_TO_CLOSE = 10.0
_QUIET_SECONDS = 0.2  # what a page does after it has loaded

# What is wrong with the page as it is laid out now, as a list of sentences.
_MEASURE = """
(async () => {
  const found = [], width = document.documentElement.clientWidth;
  const part = document.querySelector('WITHIN');
  if (!part) return ['there is no WITHIN'];
  const name = (e) => e.tagName.toLowerCase() + (e.className ? '.' + e.className : '')
    + ' "' + (e.alt || e.textContent || '').trim().slice(0, 40) + '"';
  // Pictures below the fold are decoded when asked for, or not at all.
  await Promise.allSettled([...document.images].map((image) => image.decode()));
  for (const image of part.querySelectorAll('img')) {
    const box = image.getBoundingClientRect(), style = getComputedStyle(image);
    if (!image.complete || image.naturalWidth === 0)
      found.push(name(image) + ' is not decoded');
    else if (!image.checkVisibility({opacityProperty: true, visibilityProperty: true})
             || box.width < 2 || box.height < 2)
      found.push(name(image) + ' is not visible');
    else if (Math.abs(box.width / box.height
                      / (image.naturalWidth / image.naturalHeight) - 1) > 0.02)
      found.push(name(image) + ' is distorted');
  }
  const scrolls = (e) => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
  const isBoxed = (e) => {
    for (let box = e.parentElement; box && box !== document.body;
         box = box.parentElement)
      if (scrolls(box) && box.getBoundingClientRect().right <= width + 1) return true;
    return false;
  };
  if (document.documentElement.scrollWidth > width)
    found.push('the page is ' + document.documentElement.scrollWidth + ' pixels wide');
  for (const element of part.querySelectorAll('*')) {
    const box = element.getBoundingClientRect();
    if (box.width > 0 && (box.right > width + 1 || box.left < -1) && !isBoxed(element))
      found.push(name(element) + ' reaches to ' + Math.round(box.right) + ' pixels');
  }
  const texts = document.createTreeWalker(part, NodeFilter.SHOW_TEXT);
  const isText = (node) => node.textContent.trim()
    && !['SCRIPT', 'STYLE', 'NOSCRIPT'].includes(node.parentElement.tagName);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const size = parseFloat(getComputedStyle(node.parentElement).fontSize);
    if (isText(node) && size < SMALLEST)
      found.push(name(node.parentElement) + ' has letters of ' + size + ' pixels');
  }
  for (const cell of part.querySelectorAll('td, th')) {
    const box = cell.getBoundingClientRect();
    if (cell.textContent.length > 40 && box.width > 0 && box.width < NARROWEST)
      found.push(name(cell) + ' is squeezed into ' + Math.round(box.width) + ' pixels');
  }
  return [...new Set(found)];
})()
"""


class Browser:
    """A page of headless Chromium, driven over a pipe.

    Parameters
    ----------
    chromium : str
        The program.
    profile : str
        An empty folder for what it keeps.
    """

    def __init__(self, chromium: str, profile: str) -> None:
        there, self._commands = os.pipe()
        self._answers, back = os.pipe()
        options = [
            "--headless=new",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "--disable-gpu",
            "--hide-scrollbars",  # they would take 15 pixels, on a telephone none
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing shall leave the machine
        ]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # it does not start as root otherwise
        # Chromium reads commands from descriptor 3 and answers on 4.
        script = f'exec "$@" 3</dev/fd/{there} 4>/dev/fd/{back}'
        self._process = subprocess.Popen(
            ["sh", "-c", script, "sh", chromium, *options],
            pass_fds=(there, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(back)
        self._unread = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        """Opens a page and listens to it."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send(
            "Target.attachToTarget", targetId=target, flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(
        self, method: str, *, seconds: float | None = None, **parameters: Any
    ) -> dict[str, Any]:
        """Sends a command and returns its result; events meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        answer = self._read_until(
            lambda found: found.get("id") == self._number, seconds or SECONDS_TO_LOAD
        )
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def wait_for(self, method: str) -> None:
        """Reads until an event of this name has come."""
        if not any(event["method"] == method for event in self.events):
            self._read_until(
                lambda found: found.get("method") == method, SECONDS_TO_LOAD
            )

    def listen(self, seconds: float) -> None:
        """Keeps the events that come within this time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if b"\0" in self._unread or select.select([self._answers], [], [], left)[0]:
                self._keep(self._read(time.monotonic() + SECONDS_TO_LOAD))

    def close(self) -> None:
        """Ends the browser."""
        self._session = None
        try:
            self.send("Browser.close", seconds=SECONDS_TO_CLOSE)
            self._process.wait(SECONDS_TO_CLOSE)
        except (OSError, RuntimeError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._commands)
            os.close(self._answers)

    def _read_until(self, is_wanted: Any, seconds: float) -> dict[str, Any]:
        """The first message that is wanted; events are kept on the way."""
        deadline = time.monotonic() + seconds
        while True:
            message = self._read(deadline)
            self._keep(message)
            if is_wanted(message):
                return message

    def _keep(self, message: dict[str, Any]) -> None:
        if "method" in message:
            self.events.append(message)

    def _read(self, deadline: float) -> dict[str, Any]:
        """The next message."""
        while b"\0" not in self._unread:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._answers], [], [], left)[0]:
                raise TimeoutError("no answer of the browser in time")
            part = os.read(self._answers, 2**20)
            if not part:
                raise RuntimeError("the browser ended; is it able to start here?")
            self._unread += part
        first, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--screenshots", type=Path, metavar="DIR")
    parser.add_argument("--dark", action="store_true", help="as in a dark environment")
    parser.add_argument("--within", metavar="SELECTOR", help="judge this part alone")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("check_browser: no chromium here", file=sys.stderr)
        return 2
    num_bad = 0
    with _browser(chromium) as browser:
        scheme = {"name": "prefers-color-scheme", "value": "dark"}
        if options.dark:
            browser.send("Emulation.setEmulatedMedia", features=[scheme])
        for page in options.pages:
            found = check(browser, page, options.screenshots, options.within)
            num_bad += bool(found)
            for problem in found:
                print(f"{page}: {problem}", file=sys.stderr)
            if not found:
                print(f"{page}: as it should be at {' and '.join(map(str, WIDTHS))}")
    return 1 if num_bad else 0


def check(
    browser: Browser, page: Path, screenshots: Path | None, within: str | None = None
) -> list[str]:
    """What is wrong with a page, or with a part of it."""
    problems = []
    for width in WIDTHS:
        problems += [
            f"at {width} pixels: {problem}"
            for problem in _at(browser, page.resolve(), width, screenshots, within)
        ]
    return problems


def _at(
    browser: Browser,
    page: Path,
    width: int,
    screenshots: Path | None,
    within: str | None,
) -> Iterator[str]:
    """What is wrong with a page at a width."""
    browser.send("Page.navigate", url="about:blank")
    browser.listen(_QUIET_SECONDS / 4)
    browser.send(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    browser.events.clear()
    failure = browser.send("Page.navigate", url=page.as_uri()).get("errorText")
    if failure:
        yield f"cannot be opened: {failure}"
        return
    browser.wait_for("Page.loadEventFired")
    browser.listen(_QUIET_SECONDS)
    script = _MEASURE.replace("SMALLEST", str(SMALLEST_TEXT))
    script = script.replace("WITHIN", within or "body")
    answer = browser.send(
        "Runtime.evaluate",
        expression=script.replace("NARROWEST", str(NARROWEST_COLUMN)),
        awaitPromise=True,
        returnByValue=True,
    )
    if "exceptionDetails" in answer:
        raise RuntimeError(f"the check itself failed: {answer['exceptionDetails']}")
    yield from answer["result"]["value"]
    yield from _events(browser.events, page, may_load_files=within is not None)
    if screenshots is not None:
        screenshots.mkdir(parents=True, exist_ok=True)
        picture = browser.send("Page.captureScreenshot", captureBeyondViewport=True)
        name = f"{page.parent.name}-{page.stem}-{width}.png"
        (screenshots / name).write_bytes(base64.b64decode(picture["data"]))


def _events(
    events: list[dict[str, Any]], page: Path, *, may_load_files: bool
) -> Iterator[str]:
    """Requests and messages that should not have been."""
    for event in events:
        given = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            url = given["request"]["url"]
            is_own = url.startswith("data:") or (
                may_load_files and url.startswith("file:")
            )
            if url != page.as_uri() and not is_own:
                yield f"requests {url[:100]}"
        elif event["method"] == "Runtime.exceptionThrown":
            details = given["exceptionDetails"]
            what = details.get("exception", {}).get("description", details["text"])
            yield f"script error: {what.splitlines()[0]}"
        elif event["method"] == "Runtime.consoleAPICalled":
            if given["type"] in ("error", "warning", "assert"):
                said = [str(a.get("value", a["type"])) for a in given["args"]]
                yield f"console {given['type']}: {' '.join(said)}"
        elif event["method"] == "Log.entryAdded":
            entry = given["entry"]
            if entry["level"] in ("error", "warning"):
                yield f"log {entry['level']}: {entry['text']}"


@contextmanager
def _browser(chromium: str) -> Iterator[Browser]:
    """A browser with a folder of its own, ended and removed afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(chromium, profile)
        try:
            yield browser
        finally:
            browser.close()


if __name__ == "__main__":
    sys.exit(main())
