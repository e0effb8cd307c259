"""What every estimator returns: a value that never travels without its errors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

from noisyflow import _checks


class UndersampledWarning(UserWarning):
    """Too few samples for this dimension and noise to support the estimate."""


class TargetWarning(UserWarning):
    """A standard error or a width that was asked for is not reached."""


@dataclass(frozen=True)
class Estimate:
    """An estimated entropy or information, with both of its errors, in nats.

    Attributes
    ----------
    value : float
        A tensor without dimensions, with a gradient, where an estimator was given
        tensors that require gradients. From samples: the plug-in estimate (sample
        propagation, "SP", in Goldfeld et al. 2019). From a known network (path
        importance): the middle of the bracket.
    standard_error : float
        One standard deviation of `value` over repetitions: random samples and random
        noise draws together. Enlarged where few samples or randomisations show it, so
        that two of it fail as often as two deviations of a normal; infinite where fewer
        than five samples cannot show it. It knows nothing of the bias.
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
        Gaussians evaluated, or pairs that skipping them stood for: the cost.
    monte_carlo_error : float
        The part of `standard_error` that is due to the random queries, and which more
        of them lower; the rest is due to the samples, and only more samples lower it.
    saturation : float
        Mean posterior weight of a query's own sample in the mixture, between 0 and 1.
        The chi-square information of the n-sample mixture is n saturation - 1, and half
        the saturation is about the bias of the plug-in where it is small. Near 1, a
        plug-in entropy is log n plus the noise's own, and no correction of bias helps.
    bounded_difference : float
        Root of the sum, over the samples, of the squares of the most that exchanging
        one of them can move the plug-in, nats; infinite where there is no such bound.
    stopped_by : str
        Why no more queries were spent. "target": the standard error that was asked for
        is met; "samples": it is out of reach for any number of queries; "pairs",
        "seconds": a budget ended; "exact": there was nothing to estimate; "": does not
        apply.

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
    monte_carlo_error: float = 0.0
    saturation: float = 0.0
    bounded_difference: float = math.inf
    stopped_by: str = ""

    @property
    def is_undersampled(self) -> bool:
        """Whether the samples are too few to trust `value` or `midpoint`.

        More than 10 % saturation or 1 % isolated, where there is a bracket at all: of
        480 random problems with known answers (`bench/README.md`) all whose value was
        off by more than 0.1 nats are among these. The bracket holds all the same.
        """
        is_biased = self.upper > self.lower
        is_sparse = self.saturation > 0.1 or self.isolated > 0.01
        return is_biased and is_sparse

    @property
    def midpoint(self) -> float:
        """Middle of the bracket: without the bias of order 1/n that both ends have.

        Choose it over `value` where the bracket is narrow; where it is wide, the two
        ends have biases of different size and the middle is no better than either.
        """
        return 0.5 * (self.lower + self.upper)

    def detached(self) -> Estimate:
        """The same with a float for a value, also where that is a tensor."""
        value: Any = self.value
        if not hasattr(value, "detach"):
            return self
        return replace(self, value=float(value.detach()))

    def __deepcopy__(self, memo: object) -> Estimate:
        """A copy, `detached()`: torch copies no graph."""
        return replace(self.detached())

    def to_dict(self) -> dict[str, float | int | str]:
        """All fields by name, as plain numbers and words: what a file can hold.

        Examples
        --------
        >>> Estimate(2.0, 0.01, 2.0, 2.1, 0.0, 100).to_dict()["standard_error"]
        0.01
        """
        return asdict(self.detached())

    def lower_confidence_bound(self, confidence: float = 0.95) -> float:
        """What an entropy exceeds with at least this probability, whatever the density.

        Rigorous in the samples: the plug-in is biased downwards, and exchanging one
        sample moves it by at most the binary entropy of the sample's weight, so
        McDiarmid's inequality bounds how far above its mean it can be. The error of the
        random queries enters as normal, with half of what may fail.

        Parameters
        ----------
        confidence : float
            Between 0 and 1, both excluded.

        Returns
        -------
        float
            In nats; -infinity where no such bound is known.

        Raises
        ------
        TypeError, ValueError
            If `confidence` is not a number between 0 and 1.

        Notes
        -----
        Source: McDiarmid (1989), "On the Method of Bounded Differences".

        Examples
        --------
        >>> estimate = Estimate(
        ...     2.0, 0.01, 2.0, 2.1, 0.0, 100, bounded_difference=0.09
        ... )
        >>> round(estimate.lower_confidence_bound(0.95), 3)
        1.89
        """
        confidence = _checks.as_real("confidence", confidence)
        if not 0 < confidence < 1:
            raise ValueError(
                f"confidence must be between 0 and 1, both excluded, got {confidence}"
            )
        failing = 1 - confidence
        deviate = 0.0
        if self.monte_carlo_error > 0:
            failing /= 2
            deviate = NormalDist().inv_cdf(1 - failing)
        from_samples = 0.0
        if self.bounded_difference > 0:
            from_samples = self.bounded_difference * math.sqrt(-0.5 * math.log(failing))
        return self.detached().value - from_samples - deviate * self.monte_carlo_error

    def __str__(self) -> str:
        digits = 4
        if 0 < self.standard_error < math.inf:  # two digits of the error, at least four
            digits = min(max(4, 1 - math.floor(math.log10(self.standard_error))), 10)

        def number(x: float) -> str:
            return f"{x:.{digits}f}" if abs(x) < 1e6 else f"{x:.6g}"

        return (
            f"{number(self.detached().value)} nats"
            f" +- {number(self.standard_error)} (standard error),"
            f" bias bracket [{number(self.lower)}, {number(self.upper)}],"
            f" {100 * self.isolated:.0f} % isolated"
        )
