"""Values that a caller may pass by mistake or on purpose, one family per kind.

A family maps a name to a function of a sound value and a generator. What `SAME` gives
says the same in another way, and has to give the same result; what `HOSTILE` gives may
be refused.
"""

from __future__ import annotations

import fractions
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Rng = np.random.Generator
Family = dict[str, Callable[[Any, Rng], Any]]


def _name(value: Any) -> str:
    """A value for a message, large integers by their size."""
    if isinstance(value, int) and value.bit_length() > 65:
        return f"an integer of {'-' * (value < 0)}{value.bit_length()} bits"
    return f"{type(value).__name__} {value!r:.20}"


def _with(value: float) -> Callable[[Any, Rng], Any]:
    """The array with this number at one place."""

    def change(array: np.ndarray, rng: Rng) -> np.ndarray:
        changed = array.copy()
        if changed.size:
            changed[np.unravel_index(rng.integers(changed.size), array.shape)] = value
        return changed

    return change


def _unaligned(array: np.ndarray, rng: Rng) -> np.ndarray:
    buffer = np.empty(array.nbytes + 1, np.uint8)
    view = buffer[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def _read_only(array: np.ndarray, rng: Rng) -> np.ndarray:
    view = array.copy()
    view.flags.writeable = False
    return view


def _strided(array: np.ndarray, rng: Rng) -> np.ndarray:
    """Every other entry of an array whose rest is NaN."""
    wide = np.full([2 * size for size in array.shape], np.nan, array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


SAME_ARRAYS: Family = {
    "Fortran order": lambda a, rng: np.asfortranarray(a),
    "negative strides": lambda a, rng: np.flip(np.flip(a).copy()),
    "every other entry": _strided,
    "read-only": _read_only,
    "unaligned": _unaligned,
}
ARRAYS: Family = {
    **{f"a {value}": _with(value) for value in (np.nan, np.inf, -np.inf, 5e-324, -0.0)},
    **{f"a {value}": _with(value) for value in (1.7e308, -1.7e308, 1e200, 1e30)},
    "opposite ends": lambda a, rng: np.where(rng.random(a.shape) < 0.5, 1e308, -1e308),
    "huge": lambda a, rng: a * 1e150,
    "far off": lambda a, rng: a + 1e9,
    "subnormal": lambda a, rng: a * 1e-310,
    "all equal": lambda a, rng: np.ones_like(a),
    "zeros": lambda a, rng: np.zeros_like(a),
    "no rows": lambda a, rng: a[:0],
    "one row": lambda a, rng: a[:1],
    "no columns": lambda a, rng: a[..., :0],
    "one row less": lambda a, rng: a[1:],
    "one column less": lambda a, rng: a[..., 1:],
    "0-d": lambda a, rng: np.array(0.5),
    "flat": lambda a, rng: a.ravel(),
    "one axis more": lambda a, rng: a[None],
    "70 axes": lambda a, rng: a.reshape((1,) * 30 + a.shape),
    "transposed": lambda a, rng: a.T,
    "broadcast": lambda a, rng: np.broadcast_to(a[:1], a.shape) if a.ndim else a,
    "float32": lambda a, rng: a.astype(np.float32),
    "float16": lambda a, rng: a.astype(np.float16),
    "longdouble": lambda a, rng: a.astype(np.longdouble),
    "big-endian": lambda a, rng: a.astype(">f8"),
    "integers": lambda a, rng: np.round(a).astype(np.int64),
    "bytes": lambda a, rng: np.ones(a.shape, np.uint8),
    "booleans": lambda a, rng: a > 0,
    "complex": lambda a, rng: a + 1j,
    "objects": lambda a, rng: a.astype(object),
    "odd objects": lambda a, rng: np.array([object()] * 3),
    "texts": lambda a, rng: a.astype(str),
    "dates": lambda a, rng: np.zeros(a.shape, "M8[s]"),
    "records": lambda a, rng: np.zeros(a.shape, "f8,i4"),
    "masked": lambda a, rng: np.ma.masked_array(a, rng.random(a.shape) < 0.5),
    "lists": lambda a, rng: a.tolist(),
    "ragged": lambda a, rng: [[1.0, 2.0], [3.0]],
    "a list of tensors": lambda a, rng: [torch.tensor(1.0), torch.tensor(2.0)],
    "None": lambda a, rng: None,
    "a text": lambda a, rng: "abc",
    "a number": lambda a, rng: 3,
    "a dictionary": lambda a, rng: {"a": 1},
    "an object": lambda a, rng: object(),
    "a generator": lambda a, rng: (x for x in (1, 2)),
    "a tensor": lambda a, rng: torch.tensor(a),
    "a float32 tensor": lambda a, rng: torch.tensor(a).float(),
    "a bfloat16 tensor": lambda a, rng: torch.tensor(a).bfloat16(),
    "a tensor with gradients": lambda a, rng: torch.tensor(a, requires_grad=True),
    "a complex tensor": lambda a, rng: torch.tensor(a).to(torch.complex128),
    "a conjugate view": lambda a, rng: torch.tensor(a + 1j).conj(),
    "a negative view": lambda a, rng: torch.tensor(a + 1j).conj().imag,
    "a tensor of booleans": lambda a, rng: torch.tensor(a) > 0,
    "a tensor of integers": lambda a, rng: torch.tensor(a).long(),
    "a sparse tensor": lambda a, rng: torch.tensor(a).to_sparse(),
    "a meta tensor": lambda a, rng: torch.tensor(a).to("meta"),
    "a tensor of NaN": lambda a, rng: torch.tensor(a) * np.nan,
    "an expanded tensor": lambda a, rng: torch.tensor(a[:1]).expand(a.shape),
    "an empty tensor": lambda a, rng: torch.empty(0, 2, dtype=torch.float64),
    "a parameter": lambda a, rng: torch.nn.Parameter(torch.tensor(a)),
}
REALS: Family = {
    **{
        _name(value): lambda v, rng, value=value: value
        for value in (
            *(np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 5e-324, 1e-200, 1e-30, 1e30),
            *(1e200, 1.7e308, 10**400, -(10**400), 2**63, True, np.True_, None),
            *("1", "", b"1", 1j, (), [0.5], {}, object, fractions.Fraction(1, 3)),
            *(np.float32(0.5), np.float16(0.5), np.int8(1), np.float64("nan")),
            *(np.array(0.5), np.array([0.5]), np.array([]), np.ma.masked),
        )
    },
    "a tensor": lambda v, rng: torch.tensor(0.5),
    "a tensor of one": lambda v, rng: torch.tensor([0.5]),
    "a tensor with gradients": lambda v, rng: torch.tensor(0.5, requires_grad=True),
    "a meta tensor": lambda v, rng: torch.tensor(0.5, device="meta"),
    "a decimal": lambda v, rng: __import__("decimal").Decimal("0.5"),
}
INTS: Family = {
    _name(value): lambda v, rng, value=value: value
    for value in (
        *(-1, 0, -(2**63), 10**20, 2**200, -(2**200), 10**4000, True, np.False_),
        *(1.5, 2.0, np.nan, np.inf, "3", "", b"3", None, [], (2,), 1j, object),
        *(np.int8(3), np.uint8(3), np.uint64(2**64 - 1), np.float64(2.0)),
        *(np.array(3), np.array([3]), np.array(2.5), fractions.Fraction(3)),
        *(torch.tensor(3), torch.tensor([3, 4]), torch.tensor(2.5)),
    )
}
FLAGS: Family = {
    _name(value): lambda v, rng, value=value: value
    for value in (None, 1, 0, "yes", np.True_, np.array([True]), [], torch.tensor(True))
}
CHOICES: Family = {
    _name(value): lambda v, rng, value=value: value
    for value in ("", "FIXED", "x" * 100, None, 0, b"fixed", [], np.array("fixed"))
}
LABELS: Family = {
    "texts": lambda v, rng: np.array(["a", "b"] * len(v))[: len(v)],
    "booleans": lambda v, rng: np.arange(len(v)) % 2 == 0,
    "all equal": lambda v, rng: np.zeros(len(v), int),
    "all different": lambda v, rng: np.arange(len(v)),
    "huge": lambda v, rng: np.arange(len(v)) + 2**62,
    "unsigned": lambda v, rng: np.full(len(v), 2**64 - 1, np.uint64),
    "below zero": lambda v, rng: np.arange(len(v)) - 2,
    "a list": lambda v, rng: v.tolist(),
    "a mixed list": lambda v, rng: ["a", 1] * len(v),
    "one less": lambda v, rng: v[1:],
    "none": lambda v, rng: v[:0],
    "a column": lambda v, rng: v[:, None],
    "0-d": lambda v, rng: np.array(1),
    "floats": lambda v, rng: v.astype(float),
    "NaN": lambda v, rng: np.full(len(v), np.nan),
    "objects": lambda v, rng: np.array([object()] * len(v)),
    "numbers as objects": lambda v, rng: v.astype(object),
    "dates": lambda v, rng: v.astype("M8[s]"),
    "records": lambda v, rng: np.zeros(len(v), "i4,i4"),
    "masked": lambda v, rng: np.ma.masked_array(v, v > 0),
    "reversed view": lambda v, rng: v[::-1],
    "a text": lambda v, rng: "ab",
    "a number": lambda v, rng: 3,
    "a generator": lambda v, rng: iter(v),
    "ragged": lambda v, rng: [[1, 2], [3]],
    "a tensor": lambda v, rng: torch.tensor(v),
    "a tensor of floats": lambda v, rng: torch.tensor(v).double(),
    "a tensor with gradients": lambda v, rng: torch.ones(len(v), requires_grad=True),
    "a meta tensor": lambda v, rng: torch.tensor(v).to("meta"),
    "a sparse tensor": lambda v, rng: torch.tensor(v).to_sparse(),
    "a complex tensor": lambda v, rng: torch.tensor(v) + 1j,
}
OBJECTS: Family = {
    _name(value): lambda v, rng, value=value: value
    for value in (None, 0, "x", (), [], {}, object(), np.zeros(3), len, int)
}
PATHS: Family = {
    _name(value): lambda v, rng, value=value: value
    for value in (None, 3, 1.5, b"a", object(), [], "\0", "", "nowhere", "a" * 5000)
}
HOSTILE: dict[str, Family] = {
    "array": ARRAYS,
    "real": REALS,
    "int": INTS,
    "flag": FLAGS,
    "choice": CHOICES,
    "labels": LABELS,
    "object": OBJECTS,
    "path": PATHS,
}
SAME: dict[str, Family] = {"array": SAME_ARRAYS}
