"""Samples pooled over inputs and labels: which part of a mixture is a query's own.

The bracket of the mutual information rests on leaving out the right part, and only here
is that decided. Log-sums stay apart until the end: a difference of densities would lose
everything at small noise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow._device_mixture import take_rows
from noisyflow._merge import merge_duplicates, split_own_center
from noisyflow.mixture import mixture_block_log_sums
from noisyflow.prepared import prepare
from noisyflow.sampling import Floats, Indices, Points, QueryTerms

_ISOLATED = math.log(0.01)  # others below 1 % of the own term: less than 0.01 nats


class Pool:
    """All centers in blocks, one per input, and the inputs in groups, one per label.

    Evaluates log p(y | own block) - log p(y) at queries, the own block being the group
    if there are labels, and what leaving the own part out changes. Fixed inputs: the
    other draws of the own input stand in for the own one, so every input keeps its
    weight. Sampled inputs: the whole own input is left out of every mixture that is to
    stand for the population. Either way the left-out mixture is unbiased for the
    density and independent of the query, so its cross-entropy is at least the entropy.
    """

    def __init__(
        self,
        centers: Any,
        noise_std: float,
        sizes: Indices,
        group_sizes: Indices | None,
        inputs: str,
    ) -> None:
        num_inputs = len(sizes)
        self.noise_std = noise_std
        self.has_labels = group_sizes is not None
        self.is_fixed = inputs == "fixed"
        self.is_deterministic = bool(sizes[0] == 1)
        self.is_population = self.is_deterministic and self.is_fixed

        samples = block_offsets(sizes)  # first sample of every input
        if group_sizes is None:
            group_sizes = np.ones(num_inputs, np.int64)
            groups = samples if not self.is_deterministic else samples[[0, -1]]
        else:
            groups = samples[block_offsets(group_sizes)]
        # Equal samples are one center, within what stays apart: inputs with several
        # draws, else labels, else nothing.
        apart = groups if self.is_deterministic else samples
        probabilities = np.repeat(1 / (num_inputs * sizes), sizes)
        log_share = np.log(group_sizes / num_inputs)
        group_ratio = _log_left_out_ratio(group_sizes)
        per_sample = np.stack(  # of each: log-probability of its group; logs of
            [  # k / (k - 1), which restore the weight of k parts where one is left out
                np.repeat(np.repeat(log_share, group_sizes), sizes),
                np.repeat(_log_left_out_ratio(sizes), sizes),
                np.repeat(np.repeat(group_ratio, group_sizes), sizes),
            ]
        )
        self.counts: Indices | None = None
        merged = merge_duplicates(centers, apart)
        if merged is not None:
            centers = take_rows(centers, merged.first)
            self.counts = merged.counts
            probabilities = probabilities[merged.first] * merged.counts
            per_sample = per_sample[:, merged.first]
            (samples, groups) = (
                np.searchsorted(merged.first, offsets) for offsets in (samples, groups)
            )
        self.centers = centers
        self.probabilities = probabilities
        self.group_shares = group_sizes / num_inputs
        self.blocks = samples
        self.groups = groups
        self.weights: Points | None = None
        if np.ptp(probabilities) > 0:
            self.weights = probabilities.astype(centers.dtype)
        self._mixture = prepare(centers, noise_std, weights=self.weights)
        (self._log_share, self._log_draws_ratio, self._log_group_ratio) = per_sample
        self._log_inputs_ratio = math.log(num_inputs / max(num_inputs - 1, 1))

    def information_ceiling(self) -> float:
        """The most that the information can be, nats."""
        if self.is_fixed:
            return -float(self.group_shares @ np.log(self.group_shares))
        return math.log(len(self.group_shares)) if self.has_labels else math.inf

    def evaluate(self, points: Points, own: Indices) -> QueryTerms:
        """The information at queries of the centers `own`, and its gaps."""
        own_center, inner, outer, rest = self._log_sums(points, own)
        own_input = np.logaddexp(own_center, inner)
        other_inputs = np.logaddexp(outer, rest)
        own_block = np.logaddexp(own_input, outer) if self.has_labels else own_input
        pool = np.logaddexp(own_input, other_inputs)
        left_out_block, left_out_pool = self._left_out(inner, outer, other_inputs, own)

        # What has no sampling error has no gap: a known mixture, a known noise.
        is_block_known = self.is_deterministic and (
            self.is_fixed or not self.has_labels
        )
        biased = pool if is_block_known else own_block  # the mixture with more bias
        return QueryTerms(
            value=own_block - self._log_share[own] - pool,
            lower_gap=0.0 if is_block_known else own_block - left_out_block,
            upper_gap=0.0 if self.is_population else pool - left_out_pool,
            isolated=self._isolated(own_center, inner, outer, other_inputs),
            own_weight=np.exp(own_center - biased),
        )

    def _log_sums(self, points: Points, own: Indices) -> tuple[Floats, ...]:
        """The query's own sample, inner, outer and rest, as `mixture_block_log_sums`.

        Samples equal to the own one belong to the draws of its input, or if that has
        but one, to the inputs of its label, or to all inputs.
        """
        (own_center, inner, outer, rest) = self._center_log_sums(points, own)
        if self.counts is None:
            return own_center, inner, outer, rest
        (own_center, equal) = split_own_center(own_center, self.counts[own])
        if self.is_deterministic:
            return own_center, inner, np.logaddexp(outer, equal), rest
        return own_center, np.logaddexp(inner, equal), outer, rest

    def _center_log_sums(self, points: Points, own: Indices) -> tuple[Floats, ...]:
        """own_center, inner, outer and rest of `mixture_block_log_sums`, in float64."""
        if not self.is_deterministic:
            sums = mixture_block_log_sums(
                points,
                self.centers,
                self.noise_std,
                own,
                self.blocks,
                outer_offsets=self.groups,
                weights=self.weights,
            )
            return tuple(np.asarray(part, np.float64) for part in sums)
        # Blocks of one center: the kernel need split by label only, if by anything.
        if not self.has_labels:
            own_center, others = self._mixture.log_own_and_others(points, own)
            nothing = np.full(len(own), -np.inf)
            return (
                np.asarray(own_center, np.float64),
                nothing,
                np.asarray(others, np.float64),
                nothing,
            )
        sums = mixture_block_log_sums(
            points,
            self.centers,
            self.noise_std,
            own,
            self.groups,
            weights=self.weights,
        )
        own_center, outer, _, rest = (np.asarray(part, np.float64) for part in sums)
        return own_center, np.full_like(own_center, -np.inf), outer, rest

    def _left_out(
        self, inner: Floats, outer: Floats, other_inputs: Floats, own: Indices
    ) -> tuple[Floats, Floats]:
        """Log-sums of the own block and of the pool without the query's own part."""
        other_draws = inner + self._log_draws_ratio[own]
        if self.is_fixed:
            block = other_draws
            if self.has_labels:
                block = np.logaddexp(other_draws, outer)
            return block, np.logaddexp(other_draws, other_inputs)
        block = outer + self._log_group_ratio[own] if self.has_labels else other_draws
        return block, other_inputs + self._log_inputs_ratio

    def _isolated(
        self, own_center: Floats, inner: Floats, outer: Floats, other_inputs: Floats
    ) -> NDArray[np.bool_]:
        """Whether nothing is near a query but what would be left out."""
        own_input = np.logaddexp(own_center, inner)
        if self.has_labels:
            if self.is_fixed:
                return is_isolated(own_center, np.logaddexp(inner, outer))
            return is_isolated(own_input, outer)
        if self.is_deterministic:
            return is_isolated(own_center, other_inputs)
        is_alone_in_block = is_isolated(own_center, inner)
        if self.is_fixed:
            return is_alone_in_block
        return is_alone_in_block | is_isolated(own_input, other_inputs)


def block_offsets(sizes: Indices) -> Indices:
    """Where blocks of these sizes begin, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes)])


def is_isolated(own: Points, others: Points) -> NDArray[np.bool_]:
    """Whether the others' sum is below 1 % of the own one; both are logs."""
    return np.asarray(others < own + _ISOLATED)


def _log_left_out_ratio(sizes: Indices) -> Floats:
    """log( n / (n - 1) ); 0 for n = 1, where nothing is left to rescale."""
    return np.asarray(np.log(sizes / np.maximum(sizes - 1, 1)))
