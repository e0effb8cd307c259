"""What every estimator returns: a value that never travels without its errors."""

from __future__ import annotations

import math
from dataclasses import dataclass


class UndersampledWarning(UserWarning):
    """Too few samples for this dimension and noise to support the estimate."""


@dataclass(frozen=True)
class Estimate:
    """An estimated entropy or information, with both of its errors, in nats.

    Attributes
    ----------
    value : float
        From samples: the plug-in estimate (sample propagation, "SP", in Goldfeld et al.
        2019). From a known network (path importance): the middle of the bracket.
    standard_error : float
        One standard deviation of `value` over repetitions: random samples and random
        noise draws together. It knows nothing of the bias.
    lower, upper : float
        Bias bracket: on average over repetitions the true quantity is at least `lower`
        and at most `upper`. It is NOT a confidence interval: each end has a statistical
        error of its own, of the size of `standard_error`. Equal to `value` where the
        plug-in has no bias. `upper` is infinite where the samples set no upper limit.
    isolated : float
        Share of the queries without a neighbour: the density that the other samples
        give them is below 1 % of what their own sample gives. Between 0 and 1; near 1
        the samples are too few and `value` hardly depends on them, unless they are the
        whole population. 0 where densities are computed and not estimated from samples.
    num_pairs : int
        Gaussians evaluated, the cost of the estimate.

    Examples
    --------
    >>> print(Estimate(2.6210, 0.0031, 2.6180, 2.6402, 0.03, 4_000_000))
    2.6210 nats +- 0.0031 (standard error), bias bracket [2.6180, 2.6402], 3 % isolated
    """

    value: float
    standard_error: float
    lower: float
    upper: float
    isolated: float
    num_pairs: int

    def __str__(self) -> str:
        digits = 4
        if 0 < self.standard_error < math.inf:  # two digits of the error, at least four
            digits = min(max(4, 1 - math.floor(math.log10(self.standard_error))), 10)

        def number(x: float) -> str:
            return f"{x:.{digits}f}" if abs(x) < 1e6 else f"{x:.6g}"

        return (
            f"{number(self.value)} nats"
            f" +- {number(self.standard_error)} (standard error),"
            f" bias bracket [{number(self.lower)}, {number(self.upper)}],"
            f" {100 * self.isolated:.0f} % isolated"
        )
