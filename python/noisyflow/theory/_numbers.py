"""Arguments of the theorems, checked, and the few functions that they are made of."""

from __future__ import annotations

import math
from typing import Any

from noisyflow import _arrays, _checks

_LARGEST_EXPONENT = 709.0  # of exp() in float64


def as_dim(value: Any) -> int:
    return _checks.as_int("dim", value, at_least=1)


def as_count(name: str, value: Any, *, at_least: int = 1) -> int:
    """A count that float64 can hold."""
    return _checks.as_int(name, value, at_least=at_least, at_most=10**300)


def as_positive(name: str, value: Any) -> float:
    """A positive number whose square float64 can hold."""
    number = _checks.as_real(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be positive, got {number}")
    if not 1e-150 < number < 1e150:
        raise ValueError(f"{name} must be between 1e-150 and 1e150, got {number}")
    return number


def as_noise_std(value: Any) -> float:
    return _arrays.check_noise_std(value)


def as_share(name: str, value: Any) -> float:
    """A number between 0 and 1, both excluded."""
    number = _checks.as_real(name, value)
    if not 0 < number < 1:
        raise ValueError(f"{name} must be between 0 and 1, both excluded, got {number}")
    return number


def exp(x: float) -> float:
    """e^x; infinite where float64 ends."""
    return math.exp(x) if x < _LARGEST_EXPONENT else math.inf


def expm1(x: float) -> float:
    """e^x - 1; infinite where float64 ends."""
    return math.expm1(x) if x < _LARGEST_EXPONENT else math.inf


def square_ratio(a: float, b: float) -> float:
    """(a / b)^2; infinite where float64 ends."""
    ratio = a / b
    return ratio * ratio if ratio < 1e150 else math.inf


def binary_entropy(p: float) -> float:
    """H_b(p) = -p log p - (1 - p) log(1 - p), nats."""
    if p in (0.0, 1.0):
        return 0.0
    return -p * math.log(p) - (1 - p) * math.log1p(-p)


def normal_tail(x: float) -> float:
    """Q(x) = P(N(0, 1) > x)."""
    return 0.5 * math.erfc(x / math.sqrt(2))
