"""Numbers at the door of what trains: seeds, counts and settings, checked by name."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np

# Of an integer that has no other limit: a float can still hold it.
_MOST_BITS = 1000


def as_int(name: str, value: Any, *, at_least: int, at_most: int | None = None) -> int:
    """An integer within limits; NumPy's integers too, booleans and floats never."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, got {type(value).__name__}"
        ) from None
    if at_most is None and number.bit_length() > _MOST_BITS:
        raise ValueError(f"{name} must be below 2^{_MOST_BITS}, got {_short(number)}")
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {_short(number)}")
    if at_most is not None and number > at_most:
        raise ValueError(f"{name} must be at most {at_most}, got {_short(number)}")
    return number


def as_seed(value: Any) -> int:
    """A seed: an integer in [0, 2**64), which every generator can take."""
    return as_int("seed", value, at_least=0, at_most=2**64 - 1)


def as_real(name: str, value: Any) -> float:
    """A finite real number; booleans never."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got a number beyond 1e308") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def as_positive(name: str, value: Any) -> float:
    """A finite real number above zero."""
    number = as_real(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return number


def as_target(name: str, value: Any) -> float:
    """An accuracy asked for: positive, and not below what float64 resolves."""
    number = as_positive(name, value)
    if number < 1e-12:
        raise ValueError(f"{name} must be at least 1e-12 nats, got {value}")
    return number


def _short(number: int) -> str:
    """A number for a message; Python refuses to print those of many thousand digits."""
    bits = number.bit_length()
    return str(number) if bits <= 128 else f"a number of {bits} bits"
