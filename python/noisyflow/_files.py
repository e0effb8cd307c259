"""Files that others may have damaged, or put something else in the place of.

A pipe where a file should be would keep a reader waiting for ever, a device would fill
its memory. So what is read is a regular file, of no more bytes than it can need.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO


def as_path(name: str, value: Any) -> Path:
    """A path, from one or from a text."""
    try:
        return Path(value)
    except TypeError:
        raise TypeError(f"{name} must be a path, got {type(value).__name__}") from None


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading; OSError at once where it is not a regular one."""
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "no file has NUL in its name", str(path))
    # Without O_NONBLOCK, opening a pipe waits for someone to write into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, at_most: int) -> bytes:
    """The bytes of a regular file; OSError where there are more than `at_most`."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > at_most:
            raise OSError(errno.EFBIG, f"it has more than {at_most} bytes", str(path))
        return file.read(at_most + 1)
