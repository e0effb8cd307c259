"""Averages over centers and noise, to a target error: rounds of queries, quadrature.

Every estimator here is a mean over centers of E f(center + noise). This file spends
queries until the error asked for is met, removes from the noise what control variates
explain, and states the standard error: that of the queries from independent
randomisations, that of the samples from the spread between centers. It knows nothing of
densities: `information.py` says what f is, `_queries.py` where the queries are,
`_controls.py` what is regressed out.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisyflow import _checks
from noisyflow._controls import (
    LEVEL,
    MOST_MOMENT_DIMS,
    NUM_FORMS,
    Controls,
    least_squares_slopes,
)
from noisyflow._queries import NUM_REPLICATES, Queries, QuerySource, shifted_grids

Floats = NDArray[np.float64]
Points = NDArray[np.floating]
Indices = NDArray[np.int64]

# What is random beside the noise. "noise": nothing, the centers are the population;
# "draws": the centers of each block, the blocks are fixed; "inputs": the blocks.
Sampled = Literal["noise", "draws", "inputs"]

DEFAULT_STANDARD_ERROR = 0.01  # nats; a thousandth of what hidden layers carry
_STREAM = (0x6E6F697365,)  # "noise": sets this use of a seed apart from all others
# The first round takes some 10 ms of nets and Python anyway: no fewer queries.
_FIRST_QUERIES = 4096
_FIRST_EVERYWHERE = 8192
_FEWEST_STEPS = 8  # of a replicate
LEAST_QUERIES = NUM_REPLICATES * _FEWEST_STEPS
_QUERIES_EVERYWHERE = 4  # per center, for every center to be met by two replicates
_MOST_GROWTH = 8
# Of the seconds left for one round: new controls may take twice what its queries take.
# Of all seconds when no further round is begun.
_SHARE_OF_TIME = 0.4
_ENOUGH_TIME = 0.9
# Where no number of queries reaches the target, the noise of the queries shall add less
# than 5 % to the error of the samples.
_NEGLIGIBLE_SHARE = 0.3
# Limits without a budget: half an hour of every pair, and a few GB of records.
_MOST_PAIRS = 10**13
_MOST_QUERIES = 2**25
# Smaller blocks hide their error: the two centers of a pair have equal values whatever
# their distance. Measured understatement of the error by the spread within a block: up
# to 1.3 times at 10 centers, 1.5 at 5, 4 at 2.
_MIN_BLOCK = 10
# Two samples meet the same density from either side, so their spread says nothing, and
# that of four too little; test_information.py counts how often two errors of five hold.
_FEWEST_SAMPLES = 4.5
_QUERIES_PER_CALL = 65_536  # enough to occupy every core; 16 MiB of points at d = 32
_COORDINATES_PER_CALL = 2**21  # the same limit for larger d
_MOST_FORM_ENTRIES = 2**24  # 256 MiB of quadratic forms
# Spacings of the quadrature's grids, in units of noise_std, and the most queries of it.
# In three dimensions nets are better at any size tried.
GRID_SPACINGS = {1: ((1.0, 0.5, 0.25, 0.125), 2**21), 2: ((1.0, 0.5, 0.25), 2**20)}
_NEGLIGIBLE_QUADRATURE = 1e-3
_SAFE_PAIRS_PER_SECOND = 3e8  # of one old core, in one or two dimensions
_NORMAL_AT_TWO = 0.9772498680518208  # P(Z < 2)

_logger = logging.getLogger("noisyflow")


class QueryTerms(NamedTuple):
    """What single queries contribute, each (m,), in nats."""

    value: Points
    lower_gap: Points | float  # value minus the lower end of its bracket
    upper_gap: Points | float  # upper end of its bracket minus value
    isolated: NDArray[np.bool_]
    own_weight: Points  # posterior probability of the query's own sample


_VALUE, _LOWER, _UPPER, _ISOLATED, _OWN_WEIGHT = range(5)  # columns of a record


@dataclass(frozen=True)
class Budget:
    """When to stop: checked numbers, None where there is no limit."""

    standard_error: float
    max_seconds: float | None
    max_pairs: int | None
    is_explicit: bool  # the standard error was asked for

    @classmethod
    def checked(cls, standard_error: Any, max_seconds: Any, max_pairs: Any) -> Budget:
        """From the arguments of the public functions."""
        return cls(
            DEFAULT_STANDARD_ERROR
            if standard_error is None
            else _checks.as_target("standard_error", standard_error),
            None
            if max_seconds is None
            else _checks.as_positive("max_seconds", max_seconds),
            None
            if max_pairs is None
            else _checks.as_int("max_pairs", max_pairs, at_least=1),
            standard_error is not None,
        )


@dataclass(frozen=True)
class Problem:
    """An average to be taken, of `evaluate(points, own)` over centers and noise.

    Equal samples are one center. The points come with `own`, their centers' indices.
    """

    centers: Points  # (n, d)
    noise_std: float
    evaluate: Callable[[Points, Indices], QueryTerms]
    sampled: Sampled
    weights: Floats | None = None  # (n,) probabilities of the centers; None: all 1 / n
    counts: Indices | None = None  # (n,) samples at each center; None: one
    blocks: Indices | None = None  # begin of every block of centers, and the end
    mixture_weights: Points | None = None  # of the pooled mixture, in its dtype
    num_evaluated: int | None = None  # pairs of a query; None: all n
    is_streamed: bool = False  # centers stay on disk: one call per round

    @property
    def pairs_per_query(self) -> int:
        return self.num_evaluated or len(self.centers)

    def sample_weight(self, own: Indices) -> Floats:
        """Probability of one sample at these centers."""
        weight = np.full(len(own), 1 / len(self.centers))
        if self.weights is not None:
            weight = self.weights[own]
        return weight if self.counts is None else weight / self.counts[own]


@dataclass(frozen=True)
class Averages:
    """Means over centers and noise, and what is known of their error."""

    value: float
    standard_error: float
    monte_carlo_error: float
    lower_gap: float
    upper_gap: float
    isolated: float
    own_weight: float
    num_pairs: int
    stopped_by: str


def average_over_noise(problem: Problem, budget: Budget, seed: int) -> Averages:
    """The averages of `problem`: quadrature in one or two dimensions, else queries.

    The noise is added in the centers' dtype; all averages are float64. `value` has what
    control variates explain taken out.
    """
    start = time.perf_counter()
    (averages, num_pairs) = _by_quadrature(problem, budget)
    if averages is None:
        averages = _Rounds(problem, budget, seed, num_pairs, start).run()
    return averages


# -- quadrature ---------------------------------------------------------------


def _by_quadrature(problem: Problem, budget: Budget) -> tuple[Averages | None, int]:
    """Nodes around every center; None where queries are the better way.

    Either way with the pairs it took. The error stated is that of one of several
    shifted grids, larger than their mean's.
    """
    (n, d) = problem.centers.shape
    if d not in GRID_SPACINGS or problem.is_streamed:
        return None, 0
    (spacings, most_queries) = GRID_SPACINGS[d]
    allowed = budget.max_pairs if budget.max_pairs is not None else _MOST_PAIRS
    if budget.max_seconds is not None:
        allowed = int(min(allowed, _SAFE_PAIRS_PER_SECOND * budget.max_seconds))
    num_pairs = 0
    for spacing in spacings:
        (nodes, node_weights) = shifted_grids(spacing, d)
        queries = n * node_weights.size
        needed = num_pairs + (queries + LEAST_QUERIES) * problem.pairs_per_query
        if queries > most_queries or needed > allowed:
            return None, num_pairs
        num_pairs += queries * problem.pairs_per_query
        psi = _means_at_nodes(problem, nodes, node_weights)
        if not np.isfinite(psi[..., _VALUE]).all():
            return None, num_pairs
        averages = _from_grids(problem, psi, num_pairs)
        error = averages.monte_carlo_error
        sampling = averages.standard_error**2 - error**2
        goal = budget.standard_error
        if math.isfinite(sampling):
            goal = max(goal, math.sqrt(max(sampling, 0)))
        if error <= _NEGLIGIBLE_QUADRATURE * goal:
            return _stopped(averages, budget), num_pairs
    return None, num_pairs


def _means_at_nodes(problem: Problem, nodes: Floats, node_weights: Floats) -> Floats:
    """Every column of QueryTerms averaged over nodes around each center; (g, n, 5)."""
    (n, d) = problem.centers.shape
    (num_grids, num_nodes) = node_weights.shape
    psi = np.empty((num_grids, n, len(QueryTerms._fields)))
    step = max(1, _QUERIES_PER_CALL // num_nodes)
    for grid, weights in enumerate(node_weights):
        shift = (problem.noise_std * nodes[grid]).astype(problem.centers.dtype)
        for start in range(0, n, step):
            part = np.arange(start, min(start + step, n))
            points = problem.centers[part][:, None, :] + shift
            own = np.repeat(part, num_nodes)
            columns = _columns(problem.evaluate(points.reshape(-1, d), own), len(own))
            psi[grid, part] = np.einsum(
                "cqk,q->ck", columns.reshape(len(part), num_nodes, -1), weights
            )
    return psi


def _from_grids(problem: Problem, psi: Floats, num_pairs: int) -> Averages:
    """Averages from the means at all centers by several grids."""
    n = len(problem.centers)
    weights = np.full(n, 1 / n) if problem.weights is None else problem.weights
    of_grids = weights @ psi
    means = of_grids.mean(axis=0)
    variance = _sampling_variance(
        problem, np.arange(n), psi[..., _VALUE].mean(axis=0), weights, None
    )
    rounding = float(np.finfo(problem.centers.dtype).eps) * (1 + abs(means[_VALUE]))
    error = float(of_grids[:, _VALUE].std(ddof=1)) + float(rounding)
    return _summary(problem, means, error, variance, num_pairs)


def _summary(
    problem: Problem, means: Floats, error: float, variance: float, num_pairs: int
) -> Averages:
    """Means in the order of QueryTerms, the queries' error, the samples' variance."""
    return Averages(
        value=float(means[_VALUE]),
        standard_error=math.hypot(error, _sampling_error(problem, variance)),
        monte_carlo_error=error,
        lower_gap=float(means[_LOWER]),
        upper_gap=float(means[_UPPER]),
        isolated=float(means[_ISOLATED]),
        own_weight=float(means[_OWN_WEIGHT]),
        num_pairs=num_pairs,
        stopped_by="",
    )


def _stopped(
    averages: Averages,
    budget: Budget,
    reason: str = "samples",
    *,
    is_pilot: bool = False,
) -> Averages:
    """With the reason why no more queries are spent: the target, if it is met."""
    if averages.standard_error <= budget.standard_error and not is_pilot:
        reason = "target"
    return replace(averages, stopped_by=reason)


def _columns(terms: QueryTerms, num_queries: int) -> Floats:
    """(queries, 5), in the order of QueryTerms."""
    columns = np.empty((num_queries, len(QueryTerms._fields)))
    for index, term in enumerate(terms):
        columns[:, index] = term
    return columns


# -- rounds of queries --------------------------------------------------------


@dataclass(frozen=True)
class _Round:
    """Records: queries, or the averages of two mirrored ones, and their controls."""

    own: Indices  # (replicates, steps)
    values: Floats  # (replicates * steps, 5)
    controls: Floats  # (replicates * steps, c)
    num_queries: int


class _Rounds:
    """Queries until the target or a budget ends them.

    Two ways. "Everywhere", where there are several queries for every center: noise
    comes with its mirror image, the value at the bare centers is a control variate, and
    so are quadratic forms from the second such round on. "Here and there", where there
    are more centers than queries: single queries, each at a center of its own.
    """

    def __init__(
        self,
        problem: Problem,
        budget: Budget,
        seed: int,
        num_pairs: int,
        start: float,
    ) -> None:
        self._problem = problem
        self._budget = budget
        # Not default_rng(seed): the samples may well come from that very stream.
        self._generator = np.random.default_rng(
            np.random.SeedSequence(seed, spawn_key=_STREAM)
        )
        self._source = QuerySource(problem.centers, problem.weights, self._generator)
        self._rounds: list[_Round] = []
        self._controls = Controls(problem.centers, problem.noise_std)
        self._num_pairs = num_pairs  # that a quadrature took in vain
        self._num_queries = 0
        self._start = start
        self._most_pairs = min(budget.max_pairs or _MOST_PAIRS, _MOST_PAIRS)
        least = LEAST_QUERIES * problem.pairs_per_query
        if self._most_pairs < least:
            raise ValueError(
                f"max_pairs must allow {LEAST_QUERIES} queries of "
                f"{problem.pairs_per_query} centers, {least}, got {budget.max_pairs}"
            )

    def run(self) -> Averages:
        """The averages once they are good enough, or as good as the budget allows."""
        first = _FIRST_QUERIES
        if _QUERIES_EVERYWHERE * len(self._problem.centers) <= _FIRST_EVERYWHERE:
            first = _FIRST_EVERYWHERE
        # With a limit of seconds a small round shows how long a query takes. What is
        # rare it has not met, so that its error may be far too small: it ends nothing.
        has_pilot = self._budget.max_seconds is not None
        queries = LEAST_QUERIES if has_pilot else first
        is_pilot = False
        averages: Averages | None = None
        while True:
            queries, ended = self._affordable(queries, averages)
            if queries == 0:
                assert averages is not None
                return _stopped(averages, self._budget, ended, is_pilot=is_pilot)
            spent = self._spend(queries, is_last=bool(ended))
            is_pilot = has_pilot and averages is None
            averages = self._averages()
            if is_pilot and ended != "pairs":
                queries = first
                self._rounds = []
                continue
            goal = self._goal(averages)
            error = averages.monte_carlo_error
            if error <= goal:
                return _stopped(averages, self._budget)
            if ended == "pairs":
                return _stopped(averages, self._budget, ended)
            queries = self._next_queries(spent, error, goal)

    def _goal(self, averages: Averages) -> float:
        """The largest error of the queries that more of them need not lower."""
        target = self._budget.standard_error
        sampling = averages.standard_error**2 - averages.monte_carlo_error**2
        if math.isinf(sampling):
            return target
        return math.sqrt(
            max(target * target - sampling, _NEGLIGIBLE_SHARE**2 * sampling, 1e-30)
        )

    def _next_queries(self, spent: int, error: float, goal: float) -> int:
        """Queries of the next round, by the usual rate of the error."""
        counted = sum(r.num_queries for r in self._rounds)
        missing = (1.2 * (error / goal) ** 2 - 1) * counted
        everywhere = _QUERIES_EVERYWHERE * len(self._problem.centers)
        if missing > 0.5 * everywhere:  # mirrors and controls more than halve it
            missing = max(missing, everywhere)
        return int(min(max(missing, spent), max(_MOST_GROWTH * spent, everywhere)))

    def _affordable(self, queries: int, averages: Averages | None) -> tuple[int, str]:
        """What of these queries the budgets allow, and which budget they exhaust."""
        ended = ""
        left = (self._most_pairs - self._num_pairs) // self._problem.pairs_per_query
        left = min(left, _MOST_QUERIES - self._num_queries)
        if left <= queries:
            queries, ended = max(left, 0), "pairs"
        seconds = self._budget.max_seconds
        if seconds is not None and averages is not None:
            spent = time.perf_counter() - self._start
            rate = self._num_queries / max(spent, 1e-9)
            left = int(min(_SHARE_OF_TIME * (seconds - spent) * rate, 1e18))
            if spent > _ENOUGH_TIME * seconds:
                left = 0
            if left <= queries:
                queries, ended = left, "seconds"
        if queries < LEAST_QUERIES and averages is not None:
            queries = 0
        return queries, ended

    def _spend(self, queries: int, *, is_last: bool) -> int:
        """One round more of about these queries; returns how many.

        Better controls make a fresh start, as all rounds must have the same.
        """
        problem = self._problem
        n = len(problem.centers)
        if self._num_queries > 0:
            predicted = (time.perf_counter() - self._start) / self._num_queries
            _logger.info(
                "%d more queries of %d centers, about %.2g s",
                queries,
                n,
                predicted * queries,
            )
        queries = self._add_controls(queries, is_last)
        is_mirrored = self._controls.has_level
        per_step = (2 if is_mirrored else 1) * NUM_REPLICATES
        steps = self._source.steps_for(max(queries // per_step, 2))
        drawn = self._source.draw(steps)
        self._rounds.append(self._evaluated(drawn, is_mirrored))
        return steps * per_step

    def _add_controls(self, queries: int, is_last: bool) -> int:
        """Better controls where they pay; the queries that the budget then leaves.

        They make a fresh start, as all rounds must have the same: never for fewer
        queries than are given up. Quadratic forms shall cost no more than about twice
        the queries, and come from the second round everywhere on: the first may be good
        enough.
        """
        spent = sum(r.num_queries for r in self._rounds)
        problem = self._problem
        (n, d) = problem.centers.shape
        left = (self._most_pairs - self._num_pairs) // problem.pairs_per_query
        is_first = not self._controls.has_level
        if is_first:
            if problem.is_streamed or min(queries, left - n) < _QUERIES_EVERYWHERE * n:
                return min(queries, left)
            if min(queries, left - n) < spent:
                return min(queries, left)
            values = self._evaluate(problem.centers, np.arange(n))[:, _VALUE]
            self._num_pairs += n * problem.pairs_per_query
            left -= n
            if np.isfinite(values).all():
                self._controls.add_level(values, problem.weights)
                self._rounds = []
                spent = 0
        if (
            not self._controls.has_forms
            and self._controls.has_level
            and problem.num_evaluated is None  # all centers are one mixture
            and d <= MOST_MOMENT_DIMS
            and n * d**2 <= _MOST_FORM_ENTRIES
            and (is_last or not is_first)
            and min(queries, left - NUM_FORMS * n)
            >= max(_QUERIES_EVERYWHERE * n, spent)
            and n * (d * (d + 3) / 4 + 20) <= 2 * queries * (d + 5)
        ):
            self._controls.add_forms(problem.mixture_weights)
            self._num_pairs += NUM_FORMS * n * n
            left -= NUM_FORMS * n
            self._rounds = []
        return min(queries, left)

    def _evaluated(self, drawn: Queries, is_mirrored: bool) -> _Round:
        """The records of a round."""
        problem = self._problem
        d = problem.centers.shape[1]
        own = drawn.own.ravel()
        noise = drawn.noise.reshape(-1, d)
        centers = problem.centers[own]
        shift = (problem.noise_std * noise).astype(centers.dtype)
        values = self._evaluate(centers + shift, own)
        if is_mirrored:
            values = 0.5 * (values + self._evaluate(centers - shift, own))
        num_queries = (2 if is_mirrored else 1) * len(own)
        self._num_queries += num_queries
        self._num_pairs += num_queries * problem.pairs_per_query
        return _Round(drawn.own, values, self._controls.values(own, noise), num_queries)

    def _evaluate(self, points: Points, own: Indices) -> Floats:
        """QueryTerms as columns, in limited calls unless centers are on disk."""
        step = max(1, min(_QUERIES_PER_CALL, _COORDINATES_PER_CALL // points.shape[1]))
        if self._problem.is_streamed:
            step = len(points)
        columns = np.empty((len(points), len(QueryTerms._fields)))
        for start in range(0, len(points), step):
            part = slice(start, start + step)
            terms = self._problem.evaluate(points[part], own[part])
            columns[part] = _columns(terms, len(own[part]))
        return columns

    def _averages(self) -> Averages:
        """Of all rounds kept, every replicate with the weight of its queries."""
        values = np.concatenate([r.values for r in self._rounds])
        controls = np.concatenate([r.controls for r in self._rounds])
        nats = [c for c in (_VALUE, _LOWER, _UPPER) if np.isfinite(values[:, c]).all()]
        slopes = least_squares_slopes(values[:, nats], controls)
        values[:, nats] -= controls @ slopes
        means = values.mean(axis=0)
        of_centers = values[:, _VALUE].copy()
        if self._controls.has_level and _VALUE in nats:
            of_centers += controls[:, LEVEL] * slopes[LEVEL, nats.index(_VALUE)]
        variance, freedom = self._monte_carlo_variance(values[:, _VALUE])
        own = np.concatenate([r.own.ravel() for r in self._rounds])
        replicate = None  # single queries: their noise counts as the samples' too
        if self._controls.has_level:
            replicate = np.concatenate(
                [
                    NUM_REPLICATES * index + np.repeat(np.arange(len(rows)), steps)
                    for index, r in enumerate(self._rounds)
                    for (rows, steps) in [(r.own, r.own.shape[1])]
                ]
            )
        sampling = _sampling_variance(
            self._problem, own, of_centers, np.ones(len(own)), replicate
        )
        error = math.sqrt(variance) * _student_factor(freedom)
        if len(self._problem.centers) > 1:
            # What no isolated query has met it may meet one time more in as many, and
            # it changes one query's value by a nat or so.
            num_queries = sum(r.num_queries for r in self._rounds)
            error = math.hypot(error, float(means[_ISOLATED]) / num_queries)
        return _summary(self._problem, means, error, sampling, self._num_pairs)

    def _monte_carlo_variance(self, values: Floats) -> tuple[float, float]:
        """Variance of the mean over all records, from independent replicates."""
        total, start = len(values), 0
        variance, square = 0.0, 0.0
        for kept in self._rounds:
            count = kept.own.size
            groups = values[start : start + count].reshape(NUM_REPLICATES, -1)
            means = groups.mean(axis=1)
            start += count
            part = (count / total) ** 2 * means.var(ddof=1) / NUM_REPLICATES
            variance += part
            square += part**2 / (NUM_REPLICATES - 1)
        return float(variance), float(variance**2 / square) if square > 0 else math.inf


def _student_factor(freedom: float) -> float:
    """Two standard errors shall fail as often as two deviations of a normal."""
    if math.isinf(freedom):
        return 1.0
    from scipy.special import stdtrit

    return float(stdtrit(freedom, _NORMAL_AT_TWO)) / 2


# -- the error of the samples -------------------------------------------------


def _sampling_variance(
    problem: Problem,
    own: Indices,
    values: Floats,
    weights: Floats,
    replicate: Indices | None,
) -> float:
    """Variance that the samples give the mean of `values`, beside that of the queries.

    To first order the error of a plug-in entropy is that of a mean over its centers of
    their averages over the noise (influence function). Records (own, values) meet
    centers in proportion to `weights` times their probability. With `replicate` they
    hold noise, which products of different replicates do without; a spread that is
    unknown, within blocks of few centers, is replaced by the one a level higher, never
    smaller on average.
    """
    if problem.sampled == "noise":
        return 0.0
    blocks = problem.blocks
    block = np.zeros(len(own), np.int64)
    if blocks is not None:
        block = np.searchsorted(blocks, own, side="right") - 1
    if problem.sampled == "inputs" or _has_small_blocks(problem):
        (ids, unit) = np.unique(block, return_inverse=True)
        unit_weight = leverage = _block_shares(problem)[ids]
        stratum = np.zeros(len(own), np.int64)
    else:
        (ids, unit) = np.unique(own, return_inverse=True)
        unit_weight = leverage = problem.sample_weight(ids)
        stratum = block
        if blocks is not None and len(blocks) > 2:
            block_of_id = np.searchsorted(blocks, ids, side="right") - 1
            visited = np.bincount(block_of_id, minlength=len(blocks) - 1)
            if visited.min() < _MIN_BLOCK:
                stratum = np.zeros(len(own), np.int64)
            else:
                leverage = unit_weight / _block_shares(problem)[block_of_id]
    totals = np.bincount(stratum, weights)
    means = np.bincount(stratum, weights * values) / np.where(totals > 0, totals, 1)
    squares, visits = _unit_squares(unit, values - means[stratum], weights, replicate)
    if not visits.any():
        return math.inf
    # A center is part of its own mixture, which pulls its value towards the mean like a
    # regression point of that leverage (HC3, the jackknife to first order).
    pulled = visits * unit_weight / (1 - leverage) ** 2
    return max(float(pulled @ squares / visits.sum()), 0.0)


def _unit_squares(
    unit: Indices, deviations: Floats, weights: Floats, replicate: Indices | None
) -> tuple[Floats, Floats]:
    """Per unit the square of its mean deviation, without noise, and its weight."""
    if replicate is None:
        totals = np.bincount(unit, weights).astype(np.float64)
        mean = np.bincount(unit, weights * deviations) / np.where(totals > 0, totals, 1)
        return mean**2, totals
    size = int(unit.max()) + 1
    num_replicates = int(replicate.max()) + 1
    key, index, count = np.unique(
        unit * num_replicates + replicate, return_inverse=True, return_counts=True
    )
    means = np.bincount(index, deviations) / count
    of_unit = key // num_replicates
    met = np.bincount(of_unit, minlength=size)
    sums = np.bincount(of_unit, means, size)
    squares = np.bincount(of_unit, means**2, size)
    visits = np.where(met >= 2, np.bincount(of_unit, count, size), 0.0)
    return (sums**2 - squares) / np.maximum(met * (met - 1), 1), visits


def _sampling_error(problem: Problem, variance: float) -> float:
    """The root of the variance, enlarged where few samples show the spread."""
    if problem.sampled == "noise" or math.isinf(variance):
        return variance
    num_samples = _effective_samples(problem)
    if num_samples < _FEWEST_SAMPLES:
        return math.inf
    return math.sqrt(variance) * _student_factor(num_samples - 1)


def _effective_samples(problem: Problem) -> float:
    """1 over the sum of squared weights of what is independent (Kish)."""
    if problem.sampled == "inputs" or _has_small_blocks(problem):
        return 1 / float((_block_shares(problem) ** 2).sum())
    if problem.weights is None:
        return float(len(problem.centers))
    of_samples = problem.weights**2
    if problem.counts is not None:
        of_samples = of_samples / problem.counts
    return 1 / float(of_samples.sum())


def _block_shares(problem: Problem) -> Floats:
    """Probability of every block."""
    assert problem.blocks is not None
    if problem.weights is None:
        return np.diff(problem.blocks) / len(problem.centers)
    return np.asarray(np.add.reduceat(problem.weights, problem.blocks[:-1]))


def _has_small_blocks(problem: Problem) -> bool:
    if problem.blocks is None or len(problem.blocks) <= 2:
        return False
    sizes = np.diff(problem.blocks)
    if problem.counts is not None:
        sizes = np.add.reduceat(problem.counts, problem.blocks[:-1])
    return bool(sizes.min() < _MIN_BLOCK)
