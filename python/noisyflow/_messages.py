"""What ranks send one another: numbers, words and arrays as bytes, and no pickle."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


class AgreedError(RuntimeError):
    """What failed on one rank, in its words, raised on all: none waits for another."""


def encode(value: Any) -> bytes:
    """Numbers, words, arrays, and lists, tuples and dicts of these, as bytes.

    Parameters
    ----------
    value : None, bool, int, float, str, NumPy array or scalar, list, tuple, dict
        A dict has words for keys.

    Raises
    ------
    TypeError
        If there is anything else in it: nothing is pickled.
    """
    arrays: list[Any] = []

    def plain(part: Any) -> Any:
        if isinstance(part, np.ndarray | np.generic):
            arrays.append(part)
            return {"array" if isinstance(part, np.ndarray) else "scalar": None}
        if part is None or isinstance(part, bool | int | float | str):
            return part
        if isinstance(part, list):
            return [plain(inner) for inner in part]
        if isinstance(part, tuple):
            return {"tuple": [plain(inner) for inner in part]}
        if isinstance(part, Mapping) and all(isinstance(key, str) for key in part):
            return {"dict": {key: plain(inner) for key, inner in part.items()}}
        raise TypeError(
            "ranks send numbers, words, arrays, and lists, tuples and dicts of these, "
            f"got {type(part).__name__}"
        )

    text = json.dumps(plain(value)).encode()
    data = io.BytesIO()
    data.write(len(text).to_bytes(8, "little") + text)
    for array in arrays:
        if array.dtype.hasobject:
            raise TypeError(f"ranks send numbers and words, got {array.dtype} arrays")
        np.lib.format.write_array(data, np.asanyarray(array), allow_pickle=False)
    return data.getvalue()


def decode(data: bytes) -> Any:
    """What was given to `encode`: the same numbers, bit for bit, and types."""
    stream = io.BytesIO(data)
    tree = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))

    def whole(part: Any) -> Any:
        if isinstance(part, list):
            return [whole(inner) for inner in part]
        if not isinstance(part, dict):
            return part
        ((kind, inside),) = part.items()
        if kind == "tuple":
            return tuple(whole(inner) for inner in inside)
        if kind == "dict":
            return {key: whole(inner) for key, inner in inside.items()}
        array = np.lib.format.read_array(stream, allow_pickle=False)
        return array if kind == "array" else array[()]

    return whole(tree)
