"""Every Monte-Carlo entropy of every test lies between bounds without random numbers.

`conftest.py` makes it a fixture of all tests. It looks where `entropy` has its mixture
and its average, after weights are checked and duplicates merged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from noisyflow import information
from noisyflow.bounds import entropy_bounds
from noisyflow.sampling import Averages, Problem

MOST_CENTERS = 5000  # bounds look at every pair
# Errors have 15 degrees of freedom at least: one estimate in a million is further off.
NUM_ERRORS = 7


@pytest.fixture(autouse=True)
def bounds_hold_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares every plug-in entropy of up to 5000 centers with `entropy_bounds`."""
    average = information.average_over_noise

    def checked(problem: Problem, *args: Any) -> Averages:
        averages = average(problem, *args)
        is_entropy = problem.evaluate.__qualname__.startswith("_entropy_terms")
        if is_entropy and len(problem.centers) <= MOST_CENTERS:
            check(problem, averages)
        return averages

    monkeypatch.setattr(information, "average_over_noise", checked)


def check(problem: Problem, averages: Averages) -> None:
    """Raises AssertionError unless the plug-in lies between its bounds."""
    (low, high) = entropy_bounds(
        problem.centers[:], problem.noise_std, weights=problem.mixture_weights
    )
    rounding = 1e3 * float(np.finfo(problem.centers.dtype).eps)  # exponents up to 700
    margin = NUM_ERRORS * averages.monte_carlo_error + rounding * (1 + abs(low))
    assert low - margin <= averages.value <= high + margin, (
        f"{averages.value} +- {averages.monte_carlo_error} (queries) is not between "
        f"{low} and {high}"
    )
