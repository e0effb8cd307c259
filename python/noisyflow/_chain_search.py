"""Rounds of points for one layer of a chain, until targets are met or a budget ends.

A pilot on points of its own chooses the proposals; points follow until the standard
error is small enough, and decide nothing but how many they are.
The information of the linearised chain is the control variate: it costs no path, so
many more points show its mean.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow._chain_brackets import Chain, PointSides
from noisyflow._chain_proposals import covariance_factor, linear_log_densities
from noisyflow.mixture import mixture_block_log_sums

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

_PILOT_POINTS = 128
# Fewer say too little of how skewed the values are: errors were 1.7 times too small.
_FEWEST_POINTS = 512
_POINTS_BETWEEN_LOOKS = 64
_MOST_POINTS = 2**16
_MOST_MIXTURE_POINTS = 2**18
_FEWEST_PROPOSALS = 4
_MOST_PROPOSALS = 4096
_NUM_MODES = 4
# Below this share of K that carries weight, more modes are searched for.
_LOW_EFFECTIVE_SHARE = 0.5
_MIXTURE_POINTS = 4096
# A control variate is used where it lowers the variance at least so much.
_WORTHWHILE = 0.8
_MOST_CONTROLS_PER_POINT = 32
# Controls are cheap, and enough of them show rare events that few points miss.
_FEWEST_CONTROLS = 4096
_FEWEST_CONTROL_PAIRS = 2**27
# More modes must narrow the bracket to this, or proposals are the better buy.
_MODES_PAY = 0.6
# Of the target: what points without proposals may contribute to the bracket.
_SKIPPED_WIDTH = 0.25
# What is narrow enough at the pilot's points, two standard errors of their mean width
# included, shall be so at others.
_SAFETY = 0.9
# Of a budget: what the pilot may spend.
_PILOT_SHARE = 0.5


@dataclass(frozen=True)
class Targets:
    """What was asked for, and what it may cost."""

    standard_error: float
    bracket_width: float
    max_seconds: float
    max_pairs: float
    start: float

    def ended_by(self, num_pairs: int, share: float = 1.0) -> str:
        """The budget of which this share has been spent; "" if none."""
        if time.monotonic() - self.start >= share * self.max_seconds:
            return "seconds"
        return "pairs" if num_pairs >= share * self.max_pairs else ""


@dataclass(frozen=True)
class Average:
    """A mean over points with its control variate, and its standard errors."""

    lower: float
    value: float
    upper: float
    standard_error: float
    monte_carlo_error: float


class Search:
    """Rounds of points for one layer, until the targets are met or a budget ends."""

    def __init__(
        self,
        chain: Chain,
        targets: Targets,
        is_sampled: bool,
        with_entropies: bool,
        generator: np.random.Generator,
    ) -> None:
        self.chain, self.targets, self.is_sampled = chain, targets, is_sampled
        self._generator = generator
        self._skips = not with_entropies
        self._queue = np.empty(0, np.int64)
        self._points: PointSides | None = None
        self.num_pairs = 0
        self.num_proposals, self.num_modes = 0, 0
        self.stopped_by = ""
        self.closed_entropy: float | None = None  # h(T_l|T_k) where it has a formula
        self._control_own = np.empty(0, np.int64)
        self._controls = (np.empty(0), np.empty(0))

    def _next(self, count: int) -> Indices:
        """Inputs of the next points: every one once before any twice."""
        while len(self._queue) < count:
            order = self._generator.permutation(self.chain.num_inputs)
            self._queue = np.concatenate([self._queue, order])
        own, self._queue = self._queue[:count], self._queue[count:]
        return own

    # -- the method without bias ---------------------------------------------

    @torch.no_grad()  # functions may hold parameters that are being trained
    def run_known_mixture(self) -> None:
        """p(t) is a mixture of equal Gaussians, once whitened: the pairwise kernel."""
        chain = self.chain
        m, tail = chain.num_inputs, chain.tail
        jacobian = None
        clean = chain.first(torch.arange(m))
        if tail.length > 0:
            path = torch.zeros(1, tail.length, dtype=torch.float64)
            _, jacobian = tail.jacobian(clean[:1], path)
            clean = tail.output(clean, path.expand(m, -1))
        factor = covariance_factor(tail, jacobian)
        log_det = float(torch.diagonal(factor).log().sum())

        def whitened(values: torch.Tensor) -> Doubles:
            solved = torch.linalg.solve_triangular(factor, values.T, upper=False)
            return np.ascontiguousarray(solved.T.numpy())

        given_jacobian = None
        if chain.given_tail.length > 0:
            path = torch.zeros(1, chain.given_tail.length, dtype=torch.float64)
            start = torch.zeros(1, chain.layers.widths[chain.given + 1]).double()
            _, given_jacobian = chain.given_tail.jacobian(start, path)
        given_factor = covariance_factor(chain.given_tail, given_jacobian)
        self.closed_entropy = float(
            torch.diagonal(given_factor).log().sum()
        ) + 0.5 * tail.width * math.log(2 * math.pi * math.e)
        centers = whitened(clean)
        if (
            chain.given > 0
        ):  # a control whose mean is known: twice, so that it has a spread
            self._control_own = np.zeros(2, np.int64)
            self._controls = (np.full(2, -self.closed_entropy), np.zeros(2))
        count = _MIXTURE_POINTS
        while True:
            own = np.sort(self._next(count))  # neighbours: the kernel is fast
            _, starts, points = chain.sample(torch.from_numpy(own))
            given = linear_log_densities(chain.given_tail, starts, points).numpy()
            fresh = _known_sides(chain, own, given, whitened(points), centers, log_det)
            self._add(fresh)
            if self._is_done():
                return
            count = len(self.points.own)

    # -- the method for any chain --------------------------------------------

    @torch.no_grad()
    def run_path_importance(
        self, num_proposals: int | None, *, uses_modes: bool
    ) -> None:
        """Pilot rounds choose the proposals; then points until the target is met."""
        self.num_modes = 1 if uses_modes else 0
        self.num_proposals = num_proposals or _FEWEST_PROPOSALS
        if num_proposals is None:
            self._choose_proposals(uses_modes)
            # Kept because they were narrow, these would show a bracket narrower than
            # such proposals give, with ends that are no expectations.
            self._points, self._queue = None, np.empty(0, np.int64)
        self._round(_PILOT_POINTS)
        self._add_controls()
        while not self._is_done():
            self._round(self._num_missing())
            self._add_controls()

    def _round(self, count: int, share: float = 1.0) -> None:
        """At least some of so many new points; this share of a budget may end it."""
        while count > 0:
            own = self._next(min(count, _POINTS_BETWEEN_LOOKS))
            fresh = self.chain.sides(
                own,
                self.num_proposals,
                self.num_modes,
                left_out=self.is_sampled,
                skips=self._skips,
            )
            self._add(fresh)
            count -= len(own)
            if self.targets.ended_by(self.num_pairs, share):
                return

    def _choose_proposals(self, uses_modes: bool) -> None:
        """Pilot rounds with more and more proposals; more modes where they pay."""
        width_before = math.inf  # with one mode and as many proposals
        tried_modes = not uses_modes
        while True:
            self._points = None
            self._round(_PILOT_POINTS, _PILOT_SHARE)
            if self.num_modes == _NUM_MODES and width_before < math.inf:
                if self._width() > _MODES_PAY * width_before:
                    self.num_modes = 1
                width_before = math.inf
            if self._widest_expected() <= _SAFETY * self.targets.bracket_width:
                return
            p = self.points
            if self._skips and (
                float(np.mean((p.upper - p.lower) * p.skipped))
                > _SKIPPED_WIDTH * self.targets.bracket_width
            ):
                self._skips = False  # the linearised chain is sure and wrong
                continue
            if (
                not tried_modes
                and self.num_proposals >= 4 * _FEWEST_PROPOSALS
                and float(p.effective[~p.skipped].mean()) < _LOW_EFFECTIVE_SHARE
            ):
                tried_modes, width_before = True, self._width()
                self.num_modes = _NUM_MODES
            elif not self._more():
                return

    def _more(self) -> bool:
        """More proposals, as many as the width asks for; False if there cannot be."""
        at_the_end = self.num_proposals >= _MOST_PROPOSALS
        if at_the_end or self.targets.ended_by(self.num_pairs, _PILOT_SHARE):
            return False
        ratio = self._widest_expected() / (_SAFETY * self.targets.bracket_width)
        factor = 2.0 ** min(3, max(1, math.ceil(math.log2(ratio))))
        self.num_proposals = min(int(self.num_proposals * factor), _MOST_PROPOSALS)
        return True

    def _widths(self) -> list[Doubles]:
        """Of the brackets at every point; for labels, too."""
        p = self.points
        widths = [p.upper - p.lower]
        if self.chain.has_labels:
            widths.append(p.label_upper - p.label_lower)
        return widths

    def _width(self) -> float:
        return max(float(widths.mean()) for widths in self._widths())

    def _widest_expected(self) -> float:
        """The mean width, and two standard errors of it."""
        return max(
            float(widths.mean() + 2 * widths.std() / math.sqrt(len(widths)))
            for widths in self._widths()
        )

    def _num_missing(self) -> int:
        """Points of the next round: towards the target, at most as many again."""
        n = len(self.points.own)
        short = self._error() / self.targets.standard_error
        wanted = math.ceil(1.2 * n * short**2) - n
        wanted = max(_PILOT_POINTS, _FEWEST_POINTS - n, min(wanted, n))
        return max(1, min(wanted, _MOST_POINTS - n))

    def _add(self, fresh: PointSides) -> None:
        self.num_pairs += fresh.cost
        self._points = fresh if self._points is None else self._points.joined(fresh)

    def _add_controls(self) -> None:
        """So many that their error is half the target's, where they help at all."""
        p = self.points
        spread = 0.0
        for low, high, control in (
            (p.lower, p.upper, p.control),
            (p.label_lower, p.label_upper, p.label_control),
        ):
            c, gain = _coefficient(0.5 * (low + high), control)
            if gain < _WORTHWHILE:
                spread = max(spread, c * float(np.std(control)))
        wanted = math.ceil((2 * spread / self.targets.standard_error) ** 2)
        wanted = min(wanted, _MOST_CONTROLS_PER_POINT * len(p.own))
        fewest = _FEWEST_CONTROL_PAIRS // self.chain.num_inputs
        wanted = max(wanted, min(_FEWEST_CONTROLS, max(_PILOT_POINTS, fewest)))
        step = 16 * _PILOT_POINTS
        while len(self._control_own) < wanted:
            # Some in any case: nothing else lowers the error so much for so little.
            has_some = len(self._control_own) > 0
            if has_some and self.targets.ended_by(self.num_pairs):
                return
            own = self._next(min(step, wanted - len(self._control_own)))
            fresh = self.chain.controls(own)
            self.num_pairs += len(own) * self.chain.num_inputs
            self._control_own = np.concatenate([self._control_own, own])
            self._controls = (
                np.concatenate([self._controls[0], fresh[0]]),
                np.concatenate([self._controls[1], fresh[1]]),
            )

    def _is_done(self) -> bool:
        n = len(self.points.own)
        if self._error() <= self.targets.standard_error and n >= _FEWEST_POINTS:
            self.stopped_by = "target"
        elif ended := self.targets.ended_by(self.num_pairs):
            self.stopped_by = ended
        elif self.is_sampled and self._error_of_many() > self.targets.standard_error:
            self.stopped_by = "samples"
        elif n >= (_MOST_POINTS if self.num_proposals else _MOST_MIXTURE_POINTS):
            self.stopped_by = "pairs"
        return self.stopped_by != ""

    def _error(self) -> float:
        error = self.information().standard_error
        if self.chain.has_labels:
            error = max(error, self.label_information().standard_error)
        return error

    def _error_of_many(self) -> float:
        """What the spread between sampled inputs alone leaves; 0 while unknown."""
        if len(self.points.own) < 8 * self.chain.num_inputs:
            return 0.0
        found = [self.information()]
        if self.chain.has_labels:
            found.append(self.label_information())
        return max(
            math.sqrt(max(0.0, a.standard_error**2 - a.monte_carlo_error**2))
            for a in found
        )

    # -- averages ------------------------------------------------------------

    def information(self) -> Average:
        p = self.points
        upper = p.left_out_upper if self.is_sampled else p.upper
        middle = 0.5 * (p.lower + p.upper)
        return self.average(p.lower, middle, upper, p.control, self._controls[0])

    def label_information(self) -> Average:
        p = self.points
        lower, upper = p.label_lower, p.label_upper
        middle = 0.5 * (lower + upper)
        if self.is_sampled:
            lower, upper = p.label_left_out_lower, p.label_left_out_upper
        return self.average(lower, middle, upper, p.label_control, self._controls[1])

    @property
    def points(self) -> PointSides:
        """All points so far."""
        assert self._points is not None
        return self._points

    def average(
        self,
        lower: Doubles,
        middle: Doubles,
        upper: Doubles,
        control: Doubles | None = None,
        controls: Doubles | None = None,
    ) -> Average:
        p, m = self.points, self.chain.num_inputs
        best = (*_errors(middle, p.own, m, self.is_sampled), 0.0)
        if control is not None and controls is not None and len(controls) > 1:
            # Where many controls spread more than the few beside the points, the
            # points have missed something rare: their spread is corrected for it.
            missed = math.sqrt(max(1.0, _ratio(np.var(controls), np.var(control))))
            best = (missed * best[0], missed * best[1], 0.0)
            c, _ = _coefficient(middle, control)
            both = _errors(
                *(missed * (middle - c * control), p.own, m, self.is_sampled),
                *(c * controls, self._control_own),
            )
            if both[0] < best[0]:
                best = (*both, c)
        shift = 0.0
        if best[2] != 0 and control is not None and controls is not None:
            shift = best[2] * float(controls.mean() - control.mean())
        ends = [float(side.mean()) + shift for side in (lower, middle, upper)]
        return Average(ends[0], ends[1], ends[2], best[0], best[1])

    def missed_targets(self) -> tuple[str, ...]:
        """Which targets were missed."""
        reached = {
            "standard_error": self._error() <= self.targets.standard_error,
            "bracket_width": self._width() <= self.targets.bracket_width,
        }
        return tuple(name for name, is_reached in reached.items() if not is_reached)

    def missed(self) -> str:
        """Which targets were missed, by how much, and what ended the search."""
        found = []
        if "standard_error" in self.missed_targets():
            found.append(
                f"standard error {self._error():.3g} instead of "
                f"{self.targets.standard_error:.3g} nats "
                f"({len(self.points.own)} points)"
            )
        if "bracket_width" in self.missed_targets():
            found.append(
                f"bracket {self._width():.3g} wide instead of "
                f"{self.targets.bracket_width:.3g} nats ({self.num_proposals} "
                "proposals per point)"
            )
        if not found:
            return ""
        ended = {
            "seconds": "; max_seconds ended the search",
            "pairs": "; the largest number of pairs or points was reached",
            "samples": "; the spread between sampled inputs allows no less",
        }.get(self.stopped_by, "")
        return f"layer {self.chain.layer}: {' and '.join(found)}{ended}"


def _known_sides(
    chain: Chain,
    own: Indices,
    given: Doubles,
    points: Doubles,
    centers: Doubles,
    log_det: float,
) -> PointSides:
    """The sides where p(t) is a known mixture: one number each."""
    m, n = chain.num_inputs, len(own)
    sizes = chain.label_sizes.numpy()
    sums = mixture_block_log_sums(
        *(points, centers, 1.0, own, np.arange(m + 1)),
        outer_offsets=np.concatenate([[0], np.cumsum(sizes)]),
    )
    label = np.logaddexp(sums.own_center, sums.outer)  # no other center in the block
    pooled = np.logaddexp(label, sums.rest)
    information = given - (pooled - log_det)
    size = np.repeat(sizes, sizes)[own]
    label_information = np.log(m / size) + label - pooled
    zeros = np.zeros(n)
    out, label_out = pooled, label
    if m > 1:
        out = np.logaddexp(sums.outer, sums.rest) + math.log(m / (m - 1))
    if (size > 1).all():
        label_out = sums.outer + np.log(size / np.maximum(size - 1, 1))
    return PointSides(
        own=own,
        lower=information,
        upper=information,
        left_out_upper=information + pooled - out,
        label_lower=label_information,
        label_upper=label_information,
        label_left_out_lower=label_information + label_out - label,
        label_left_out_upper=label_information + pooled - out,
        entropy_lower=log_det - pooled,
        entropy_upper=log_det - pooled,
        entropy_left_out=log_det - out,
        conditional_lower=-given,
        conditional_upper=-given,
        effective=np.ones(n),
        control=given if chain.given > 0 else zeros,
        label_control=zeros,
        skipped=np.zeros(n, bool),
        cost=n * m,
    )


def _coefficient(values: Doubles, control: Doubles) -> tuple[float, float]:
    """Regression coefficient within [0, 1], and the share of the variance it leaves."""
    spread = float(np.var(control))
    whole = float(np.var(values))
    if not (0 < spread < math.inf and 0 < whole < math.inf):
        return 0.0, 1.0
    covariance = float(np.mean((values - values.mean()) * (control - control.mean())))
    c = min(max(covariance / spread, 0.0), 1.0)
    return c, (whole - 2 * c * covariance + c * c * spread) / whole


def _ratio(variance: Any, other: Any) -> float:
    """Of two variances; 1 where both are nothing but rounding."""
    tiny = 1e-24
    return (float(variance) + tiny) / (float(other) + tiny)


def _errors(
    values: Doubles,
    own: Indices,
    num_inputs: int,
    is_sampled: bool,
    others: Doubles | None = None,
    others_own: Indices | None = None,
) -> tuple[float, float]:
    """Standard error of the sum of one or two means, and its Monte-Carlo part.

    Two means are over independent points of the same inputs. One point more, a nat
    away, is part of it: what happens less often than once in N points was not seen.
    """
    variance = _noise_variance(values, own, num_inputs) + 1 / len(values) ** 2
    influence = np.bincount(own, (values - values.mean()) / len(values), num_inputs)
    if others is not None and others_own is not None:
        variance += _noise_variance(others, others_own, num_inputs)
        influence += np.bincount(
            others_own, (others - others.mean()) / len(others), num_inputs
        )
    noise = math.sqrt(variance)
    if not is_sampled:
        return noise, noise
    # Inputs are the independent units: what each adds to the average, squared.
    used = len(np.union1d(own, own if others_own is None else others_own))
    whole = float((influence**2).sum()) * used / max(1, used - 1)
    whole = math.sqrt(whole + 1 / len(values) ** 2)
    return whole, min(noise, whole)


def _noise_variance(values: Doubles, own: Indices, num_inputs: int) -> float:
    """Variance of a mean where every input is used as often: that within inputs.

    Where it is not, or nothing is known of the spread within, that of all values, which
    is too large.
    """
    n = len(values)
    times = np.bincount(own, minlength=num_inputs)
    if times.min() >= 2 and times.max() - times.min() <= 1:
        means = np.bincount(own, values, num_inputs) / times
        within = np.bincount(own, (values - means[own]) ** 2, num_inputs) / (times - 1)
        # The extra draw that some inputs have adds their deviation from the mean.
        extra = times - times.min()
        share = float(extra.sum()) / n
        return float((times * within).sum()) / n**2 + share * float(np.var(values)) / n
    return float(np.var(values, ddof=1)) / n
