"""Fails if an sdist lacks a file that builds or tests need, or has a stray one."""

from __future__ import annotations

import re
import sys
import tarfile
from pathlib import Path, PurePosixPath

# Tracked files of these are in the sdist, whatever is added to them.
WHOLE = ("csrc", "python", "tests", "examples")
SINGLE = ("CMakeLists.txt", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml")
UNWANTED = re.compile(
    r"(^|/)(\.|__pycache__|bench/|runs/|build/)|\.(so|pyc|o|npy|npz|gif|whl|gz)$"
)
LARGEST = 2 * 2**20  # bytes compressed: code, text and a few pictures, no data


def problems(sdist: Path, tree: Path) -> list[str]:
    """What is wrong with an sdist made of this tree."""
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    names = set()
    found = []
    for member in members:
        (_, _, name) = member.name.partition("/")
        names.add(name)
        if not (member.isfile() or member.isdir()) or ".." in PurePosixPath(name).parts:
            found.append(f"{name} is no plain file")
        if UNWANTED.search(name):
            found.append(f"{name} should not be in it")
    wanted = set(SINGLE)
    for folder in WHOLE:
        for path in (tree / folder).rglob("*"):
            name = path.relative_to(tree).as_posix()
            if path.is_file() and not UNWANTED.search(name):
                wanted.add(name)
    found += [f"{name} is missing" for name in sorted(wanted - names)]
    if sdist.stat().st_size > LARGEST:
        found.append(f"it has {sdist.stat().st_size} bytes, more than {LARGEST}")
    return found


def main(sdist: Path) -> int:
    found = problems(sdist, Path(__file__).parents[1])
    for problem in found:
        print(f"{sdist.name}: {problem}", file=sys.stderr)
    if not found:
        print(f"{sdist.name}: {sdist.stat().st_size / 1024:.0f} KiB, all that it needs")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
