"""I(X;T_l) and I(Y;T_l) of a known noisy network, enclosed from both sides.

At points t that the network made, the information is the mean of log p(t|x) - log p(t).
Two ways to enclose each density, chosen per layer by a pilot on points of its own:
importance sampling around the posterior modes, and plain replicas of the noise, which
win where units saturate. The mean has two levels: the linearised network, a mixture
with covariances of its own, at many points, and the exact difference at few of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisyflow import _arrays
from noisyflow.covariance import (
    gaussian_mixture_log_density,
    whitening_from_covariances,
)
from noisyflow.importance import (
    NoisyLayers,
    path_log_densities,
    replica_log_densities,
)
from noisyflow.mixture import mixture_block_log_sums

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

_POINTS_PER_ROUND = 16384
_MOST_ROUNDS = 16
_PILOT_POINTS = 1024
_FEWEST_POINTS = 256  # of the exact level: its variance is estimated from them
# What is narrow enough at the pilot's points shall be so at others.
_SAFETY = 0.8
# A pilot point with a bracket this many times the target is one of a kind that decides
# the mean, and of which the pilot need not have its share: the first rung will not do.
_FAR_OUT = 25
# A way that leaves this many times the other's gap stays on the first rung.
_HOPELESS = 4
# Four times the proposals must bring the pilot's gap below this share of what it was.
_LEAST_CLOSING = 0.7
# Limit of the exact level, in forward passes per layer: some 15 s on one core.
_MOST_PASSES = 3e8
# The linearised value is left out unless it takes away this share of the variance.
_LEAST_GAIN = 0.2
# A covariance for every input: 256 MiB, and in making them 64 MiB at a time.
_MOST_COVARIANCES = 2**25
_MOST_UNITS = 32  # of `gaussian_mixture_log_density`
_NUMBERS_AT_A_TIME = 2**23
# Below this (nats) the linearised value says no more than that it failed.
_FLOOR = -2.0


@dataclass(frozen=True)
class Proposals:
    """How a density is enclosed.

    By proposals around the posterior modes and by replicas of the noise, averaged: one
    of the two has nearly all the weight. The replicas are those of the own input for
    p(t|x), of every input for p(t).
    """

    importance: int
    replicas: int
    prefers_replicas: bool

    @property
    def count(self) -> int:
        return self.replicas if self.prefers_replicas else self.importance


# Each rung costs some four times the one before.
_CONDITIONAL = [(16, 256), (64, 1024), (256, 4096), (1024, 16384)]
# Here replicas are those of all inputs together; at least one of each.
_POOLED = [(16, 2**14), (64, 2**16), (256, 2**18)]
# Weight of the way that is not preferred: a net below the one point in ten thousand
# where the preferred misses all that matters, by hundreds of nats; there it loses 9.
# Its price is the weight times the nats that the own path has above other replicas,
# 0.002 at d = 50 and next to nothing in few dimensions.
_NET = 1e-4


@dataclass(frozen=True)
class Recipe:
    """How the densities of one layer are enclosed; None where they are known."""

    conditional: Proposals | None
    pooled: Proposals | None

    @property
    def num_proposals(self) -> int:
        """The most that a density takes at a point."""
        both = [p for p in (self.conditional, self.pooled) if p is not None]
        return max((p.count for p in both), default=0)

    def pairs_per_point(self, num_inputs: int) -> int:
        """Gaussians evaluated, or what costs as much."""
        if self.conditional is None or self.pooled is None:
            return num_inputs
        conditional = self.conditional.importance + self.conditional.replicas
        pooled = 2 * self.pooled.importance + num_inputs * self.pooled.replicas
        return conditional + pooled + num_inputs

    def most_points(self, num_inputs: int) -> int:
        """What _MOST_PASSES allow; 20 for a proposal, one for 50 pairs, as measured."""
        passes = num_inputs / 50
        if self.conditional is not None and self.pooled is not None:
            passes += 20 * (self.conditional.importance + 2 * self.pooled.importance)
            passes += self.conditional.replicas + num_inputs * self.pooled.replicas / 50
        return max(_FEWEST_POINTS, int(_MOST_PASSES / passes))


@dataclass(frozen=True)
class Points:
    """Inputs, sorted, their noise paths, and what every layer makes of them."""

    layers: NoisyLayers
    own: Indices
    noise: Doubles  # (N, d_1 + ... + d_L), in units of noise_std
    clean: list[Doubles]
    copies: int  # how often every input occurs; 0 where they are a random subset
    order: Indices  # random, every input once before any twice

    def __len__(self) -> int:
        return len(self.own)

    def path(self, layer: int) -> Doubles:
        """Noise of the layers before, (N, d_1 + ... + d_{l-1}), in noise_std."""
        return self.noise[:, : sum(self.layers.widths[: layer - 1])]

    def at(self, layer: int) -> Doubles:
        """t_l, (N, d_l)."""
        begin = sum(self.layers.widths[: layer - 1])
        own_noise = self.noise[:, begin : begin + self.layers.widths[layer - 1]]
        return np.asarray(self.clean[layer - 1] + self.layers.noise_std * own_noise)

    def first(self, count: int) -> Indices:
        """Places of the first `count` in the random order, ascending."""
        return np.sort(self.order[:count])

    def at_places(self, places: Indices) -> Points:
        """Some of the points: their own copies and order are lost."""
        return replace(
            self,
            own=self.own[places],
            noise=self.noise[places],
            clean=[output[places] for output in self.clean],
            copies=0,
            order=np.arange(len(places)),
        )


def draw_points(
    layers: NoisyLayers, inputs: Doubles, at_least: int, generator: np.random.Generator
) -> Points:
    """Every input equally often, at least twice; a random subset where m > at_least."""
    m = len(inputs)
    if m > at_least:
        copies = 0
        own = np.sort(generator.choice(m, at_least, replace=False))
        order = generator.permutation(at_least)
    else:
        copies = max(2, -(-at_least // m))
        own = np.repeat(np.arange(m), copies)
        order = np.concatenate(
            [generator.permutation(m) * copies + copy for copy in range(copies)]
        )
    noise = generator.standard_normal((len(own), sum(layers.widths)))
    clean = layers.clean_outputs(inputs[own], noise)
    for index, output in enumerate(clean):
        _arrays.check_finite(f"the output of layer {index + 1}", output)
        _arrays.check_resolution(
            f"outputs of layer {index + 1}", output, layers.noise_std
        )
    return Points(layers, own, noise, clean, copies, order)


class Sides(NamedTuple):
    """Both sides, each (N,), of log p(t|x), log p(t) and log p(t|y), by these names:

    conditional, pooled, label.
    """

    densities: dict[str, tuple[Doubles, Doubles]]
    effective: Doubles

    def joined(self, other: Sides) -> Sides:
        return Sides(
            self.densities | other.densities,
            np.minimum(self.effective, other.effective),
        )

    def gap(self, term: str) -> float:
        """Mean of upper - lower and two standard errors of it; 0 without such a term.

        The errors tell methods with few, far outliers from those that have none.
        """
        if term not in self.densities:
            return 0.0
        lower, upper = self.densities[term]
        gaps = upper - lower
        return float(gaps.mean() + 2 * gaps.std() / math.sqrt(len(gaps)))

    def widest(self) -> float:
        """The widest bracket of a density at a point."""
        return max(float((high - low).max()) for low, high in self.densities.values())

    def information(self) -> tuple[Doubles, Doubles]:
        """Lower and upper sides of those of X and, with labels, of Y, (1 or 2, N)."""
        low, high = self.densities["pooled"]
        own = [
            self.densities[t] for t in ("conditional", "label") if t in self.densities
        ]
        return (
            np.stack([lower - high for lower, _ in own]),
            np.stack([upper - low for _, upper in own]),
        )


class Enclosure:
    """Both sides of I(X;T_l) and I(Y;T_l), X uniform over inputs sorted by label."""

    def __init__(
        self, layers: NoisyLayers, inputs: Doubles, label_sizes: Indices | None
    ) -> None:
        self.layers = layers
        self.inputs = inputs
        sizes = [len(inputs)] if label_sizes is None else label_sizes
        self.has_labels = label_sizes is not None
        self.terms = ["conditional", "pooled"] + ["label"] * self.has_labels
        self.sizes = np.asarray(sizes)
        self.ends = np.cumsum(self.sizes)
        self._clean = layers.clean_outputs(
            inputs, np.zeros((len(inputs), sum(layers.widths)))
        )
        self._linear: dict[int, tuple[Doubles, Doubles] | None] = {}

    def label_range(self, own: Indices) -> Indices:
        """First and one past the last input with the own label, (N, 2)."""
        label = np.searchsorted(self.ends, own, side="right")
        return np.stack([self.ends[label] - self.sizes[label], self.ends[label]], 1)

    # -- the exact level -------------------------------------------------------------

    def sides(
        self, points: Points, layer: int, recipe: Recipe, generator: np.random.Generator
    ) -> Sides:
        if recipe.conditional is None or recipe.pooled is None:
            return self._first_layer(points)
        conditional = self.evaluate(
            self.terms[:1], points, layer, recipe.conditional, generator
        )
        pooled = self.evaluate(self.terms[1:], points, layer, recipe.pooled, generator)
        return conditional.joined(pooled)

    def evaluate(
        self,
        terms: Sequence[str],
        points: Points,
        layer: int,
        proposals: Proposals,
        generator: np.random.Generator,
    ) -> Sides:
        """Both sides of some terms; of the conditional alone or of the others.

        An average of unbiased estimates is one, whatever the weights, and its
        logarithm too low. For the upper side the own path joins one of the two ways,
        chosen with that weight: the density of all draws is then the usual one times
        the average over p(t), as for a single way.
        """
        importance = self._by_importance(
            terms, points, layer, proposals.importance, generator
        )
        replicas = self._by_replicas(
            terms, points, layer, proposals.replicas, generator
        )
        return self._average(importance, replicas, proposals, generator)

    def choose(
        self,
        terms: Sequence[str],
        points: Points,
        layer: int,
        counts: tuple[int, int],
        generator: np.random.Generator,
    ) -> tuple[Proposals, Sides, float]:
        """The way to prefer, by both at all points, what it gives, and how much better.

        The last is the gap of proposals over that of replicas.
        """
        importance = self._by_importance(terms, points, layer, counts[0], generator)
        replicas = self._by_replicas(terms, points, layer, counts[1], generator)
        either = [Proposals(*counts, prefers) for prefers in (False, True)]
        found = [
            self._average(importance, replicas, proposals, generator)
            for proposals in either
        ]
        gaps = [max(map(sides.gap, terms)) for sides in found]
        best = int(gaps[1] < gaps[0])
        return either[best], found[best], gaps[0] / max(gaps[1], 1e-300)

    @staticmethod
    def _average(
        importance: Sides,
        replicas: Sides,
        proposals: Proposals,
        generator: np.random.Generator,
    ) -> Sides:
        preferred, net = importance, replicas
        if proposals.prefers_replicas:
            preferred, net = replicas, importance
        joins_net = generator.random(len(preferred.effective)) < _NET
        densities = {}
        for term, sides in preferred.densities.items():
            (low, high), (net_low, net_high) = sides, net.densities[term]
            densities[term] = (
                np.logaddexp(math.log1p(-_NET) + low, math.log(_NET) + net_low),
                np.logaddexp(
                    math.log1p(-_NET) + np.where(joins_net, low, high),
                    math.log(_NET) + np.where(joins_net, net_high, net_low),
                ),
            )
        return Sides(densities, preferred.effective)

    def _by_importance(
        self,
        terms: Sequence[str],
        points: Points,
        layer: int,
        count: int,
        generator: np.random.Generator,
    ) -> Sides:
        own = points.own
        groups = {
            "conditional": np.stack([own, own + 1], 1),
            "pooled": np.tile([0, len(self.inputs)], (len(own), 1)),
            "label": self.label_range(own),
        }
        lower, upper, effective = path_log_densities(
            *(self.layers, layer, self.inputs, points.at(layer), own),
            points.path(layer),
            np.stack([groups[term] for term in terms]),
            num_proposals=count,
            generator=generator,
        )
        return Sides(
            dict(zip(terms, zip(lower, upper, strict=True), strict=True)),
            effective.min(axis=0),
        )

    def _by_replicas(
        self,
        terms: Sequence[str],
        points: Points,
        layer: int,
        count: int,
        generator: np.random.Generator,
    ) -> Sides:
        if "conditional" not in terms:
            return self._from_pool(points, layer, count, generator)
        lower, upper, effective = replica_log_densities(
            *(self.layers, layer, self.inputs, points.at(layer), points.own),
            points.path(layer),
            num_draws=count,
            generator=generator,
        )
        return Sides({"conditional": (lower, upper)}, effective)

    def _first_layer(self, points: Points) -> Sides:
        """T_1 given X is one Gaussian, so all densities are known mixtures."""
        m = len(self.inputs)
        sums = mixture_block_log_sums(
            *(points.at(1), self._clean[0], self.layers.noise_std, points.own),
            np.arange(m + 1),
            outer_offsets=np.concatenate([[0], self.ends]),
        )
        label = np.logaddexp(sums.own_center, sums.outer)  # no other in the block
        pooled = np.logaddexp(label, sums.rest)
        own = sums.own_center + math.log(m)
        label += np.log(m / np.diff(self.label_range(points.own))[:, 0])
        known = {"conditional": own, "pooled": pooled, "label": label}
        return Sides(
            {term: (known[term], known[term]) for term in self.terms},
            np.ones(len(points)),
        )

    def _from_pool(
        self, points: Points, layer: int, replicas: int, generator: np.random.Generator
    ) -> Sides:
        """p(t) and p(t|y) from replicas of all inputs, without and with the own path.

        The own path takes the place of one replica of its input, so that the replicas
        with it are distributed as they are given t: the upper side is exact, too.
        """
        m, (n, d) = len(self.inputs), points.at(layer).shape
        path = generator.standard_normal((m * replicas, points.path(layer).shape[1]))
        pool = self.layers.clean_outputs(
            np.repeat(self.inputs, replicas, axis=0), path, last=layer
        )[-1]
        replaced = points.own * replicas + generator.integers(0, replicas, n)
        t, noise_std = points.at(layer), self.layers.noise_std
        sums = mixture_block_log_sums(
            *(t, pool, noise_std, replaced, np.arange(m + 1) * replicas),
            outer_offsets=np.concatenate([[0], self.ends]) * replicas,
        )
        own = -0.5 * (((t - points.clean[layer - 1]) / noise_std) ** 2).sum(axis=1)
        own -= 0.5 * d * math.log(2 * math.pi * noise_std**2) + math.log(m * replicas)
        share = np.log(m / np.diff(self.label_range(points.own))[:, 0])
        others = np.logaddexp(sums.inner, sums.outer)
        label = [np.logaddexp(others, one) for one in (sums.own_center, own)]
        low, high = (np.logaddexp(side, sums.rest) for side in label)
        densities = {"pooled": (low, high)}
        if self.has_labels:
            densities["label"] = (label[0] + share, label[1] + share)
        return Sides(densities, np.ones(n))

    # -- the linearised level --------------------------------------------------------

    def linearised(self, points: Points, layer: int) -> Doubles | None:
        """The information at the points, (1 or 2, N), of linear layers; clipped.

        None where that is no help: layer 1, covariances beyond float64, more than 32
        units, or more than 2^25 entries of covariances.
        """
        linear = self._linear_layer(layer)
        if linear is None:
            return None
        centers, whitening = linear
        t = points.at(layer)
        m, d = centers.shape
        by_label = np.stack(
            [
                gaussian_mixture_log_density(t, centers[some], whitening[some])
                for some in map(slice, self.ends - self.sizes, self.ends)
            ]
        )
        pooled = np.logaddexp.reduce(by_label + np.log(self.sizes / m)[:, None])
        white = np.einsum("nij,nj->ni", whitening[points.own], t - centers[points.own])
        log_det = np.log(np.diagonal(whitening, axis1=1, axis2=2)).sum(axis=1)
        own = log_det[points.own] - 0.5 * (white**2).sum(axis=1)
        own -= 0.5 * d * math.log(2 * math.pi)
        values = [np.clip(own - pooled, _FLOOR, math.log(m))]
        if self.has_labels:
            label = np.searchsorted(self.ends, points.own, side="right")
            own_label = by_label[label, np.arange(len(t))]
            values.append(np.clip(own_label - pooled, _FLOOR, math.log(m)))
        return np.stack(values)

    def _linear_layer(self, layer: int) -> tuple[Doubles, Doubles] | None:
        """Means and whitening factors of t_l for every input, linearised at no noise.

        Cov(T_l) = noise_std^2 (I + B_l B_l' + B_{l-1} B_{l-1}' + ...), B_l = A_l and
        B_k = B_{k+1} A_k down to k = 2, where A_k is the slope of layer k: matrices of
        d_l rows, however wide the layers before are.
        """
        m, d = self._clean[layer - 1].shape
        if layer == 1 or d > _MOST_UNITS or m * d * d > _MOST_COVARIANCES:
            return None
        if layer not in self._linear:
            output = self._clean[layer - 1]
            most = d * max(self.layers.widths[:layer])
            step = max(1, _NUMBERS_AT_A_TIME // most)
            try:
                covariance = np.concatenate(
                    [
                        self._linear_covariances(layer, slice(start, start + step))
                        for start in range(0, m, step)
                    ]
                )
                factors = whitening_from_covariances(covariance)
                gaussian_mixture_log_density(output[:1], output, factors)
            except ValueError:  # LinAlgError is one
                self._linear[layer] = None
            else:
                self._linear[layer] = (output, factors)
        return self._linear[layer]

    def _linear_covariances(self, layer: int, some: slice) -> Doubles:
        """Cov(T_l) given these inputs, layers linearised at no noise."""
        d = self.layers.widths[layer - 1]
        covariance = np.eye(d)
        b = np.eye(d)[None]
        for index in range(layer - 1, 0, -1):
            slopes = self.layers.slopes(self._clean[index][some])
            b = (b * slopes[:, None, :]) @ self.layers.weights[index]
            covariance = covariance + b @ b.transpose(0, 2, 1)
        covariance = 0.5 * (covariance + covariance.transpose(0, 2, 1))
        return np.asarray(self.layers.noise_std**2 * covariance)


# -- one layer: pilot, rounds, estimate ----------------------------------------------


@dataclass
class LayerEstimate:
    """What is known of I(X;T_l) and, with labels, of I(Y;T_l), round by round.

    `slopes`, of the exact values on the linearised ones, and `variances`, of what
    remains, are the pilot's: points of the estimate itself decide nothing but how many
    are drawn.
    """

    layer: int
    recipe: Recipe
    slopes: Doubles
    variances: Doubles
    # Per round; the last axis is over points, (copies, m) where they are stratified.
    linear: list[Doubles] = field(default_factory=list)
    linear_at_exact: list[Doubles] = field(default_factory=list)
    lower: list[Doubles] = field(default_factory=list)
    upper: list[Doubles] = field(default_factory=list)
    effective: list[Doubles] = field(default_factory=list)
    num_points: int = 0
    num_pairs: int = 0
    copies: int = 0

    @property
    def num_exact(self) -> int:
        return sum(len(values) for values in self.effective)

    def measure(
        self,
        enclosure: Enclosure,
        points: Points,
        target: float,
        generator: np.random.Generator,
    ) -> None:
        """One more round, with as many exact points as the target seems to need."""
        uses_linear = bool(self.slopes.any())
        linear = enclosure.linearised(points, self.layer) if uses_linear else None
        if linear is None:
            linear = np.zeros((len(self.slopes), len(points)))
        self.linear.append(linear)
        self.num_points += len(points)
        self.copies = points.copies
        m = len(enclosure.inputs)
        most = self.recipe.most_points(m) - self.num_exact
        places = points.first(min(most, self._num_needed(target, len(points))))
        few = points.at_places(places)
        sides = enclosure.sides(few, self.layer, self.recipe, generator)
        lower, upper = sides.information()
        self.linear_at_exact.append(linear[:, places])
        self.lower.append(lower)
        self.upper.append(upper)
        self.effective.append(sides.effective)
        self.num_pairs += m * (len(points) if uses_linear else 0) + len(few) * (
            self.recipe.pairs_per_point(m)
        )

    def _num_needed(self, target: float, num_points: int) -> int:
        """Exact points for this round."""
        room = target * target - self._linear_variances()
        variances = self.variances
        if self.num_exact >= _FEWEST_POINTS:
            variances = self._residual().var(axis=1, ddof=1)
        # Where many more linearised points are needed, the exact ones can wait.
        room = np.maximum(room, 0.25 * target * target)
        needed = math.ceil(1.1 * float((variances / room).max())) - self.num_exact
        # One outlier among the pilot's points must not ask for all of these.
        most = max(1024, 3 * self.num_exact)
        return min(max(needed, _FEWEST_POINTS), most, num_points)

    def _residual(self) -> Doubles:
        middle = 0.5 * (np.hstack(self.lower) + np.hstack(self.upper))
        return middle - self.slopes[:, None] * np.hstack(self.linear_at_exact)

    def _linear_variances(self) -> Doubles:
        """Of the mean of slope x linearised value over all points."""
        return self.slopes**2 * self._variances_of_mean(self.linear)

    def _variances_of_mean(self, rounds: list[Doubles]) -> Doubles:
        """Of means over all points: within inputs where each is used equally often."""
        if self.copies == 0:
            values = np.hstack(rounds)
            return np.asarray(values.var(axis=1, ddof=1) / values.shape[1])
        by_input = np.concatenate(
            [r.reshape(len(r), -1, self.copies) for r in rounds], axis=2
        )
        within = by_input.var(axis=2, ddof=1).mean(axis=1)
        return np.asarray(within / (by_input.shape[1] * by_input.shape[2]))

    def results(self) -> tuple[Doubles, Doubles, Doubles]:
        """Lower and upper ends, and standard errors of their middles, (1 or 2,)."""
        lower, upper = np.hstack(self.lower), np.hstack(self.upper)
        n = lower.shape[1]
        if n == self.num_points:  # nothing is left for the linearised level to tell
            middles = [
                0.5 * (a + b) for a, b in zip(self.lower, self.upper, strict=True)
            ]
            variances = self._variances_of_mean(middles)
            return lower.mean(axis=1), upper.mean(axis=1), np.sqrt(variances)
        linear, at_exact = np.hstack(self.linear), np.hstack(self.linear_at_exact)
        shift = self.slopes * (linear.mean(axis=1) - at_exact.mean(axis=1))
        residual = self._residual()
        centered = at_exact - at_exact.mean(axis=1, keepdims=True)
        both = (residual * centered).sum(axis=1) / (n - 1)
        variances = (
            residual.var(axis=1, ddof=1) / n
            + self._linear_variances()
            + 2 * np.abs(self.slopes * both) / self.num_points
        )
        return (
            lower.mean(axis=1) + shift,
            upper.mean(axis=1) + shift,
            np.sqrt(variances),
        )


def plan_layer(
    enclosure: Enclosure,
    points: Points,
    layer: int,
    width: float,
    generator: np.random.Generator,
) -> LayerEstimate:
    """The cheapest recipe whose brackets are narrow enough at the pilot's points."""
    if layer == 1:
        recipe = Recipe(None, None)
        sides = enclosure.sides(points, layer, recipe, generator)
    else:
        recipe, sides = _choose_recipe(
            enclosure, points, layer, _SAFETY * width, generator
        )
    lower, upper = sides.information()
    middle = 0.5 * (lower + upper)
    linear = enclosure.linearised(points, layer)
    slopes, variances = np.zeros(len(middle)), middle.var(axis=1, ddof=1)
    if linear is not None:
        for at, (exact, value) in enumerate(zip(middle, linear, strict=True)):
            spread = value.var(ddof=1)
            if not spread > 0:
                continue
            slope = min(max(np.cov(exact, value)[0, 1] / spread, 0.0), 1.2)
            left = (exact - slope * value).var(ddof=1)
            if left < (1 - _LEAST_GAIN) * variances[at]:
                slopes[at], variances[at] = slope, left
    return LayerEstimate(layer, recipe, slopes, variances)


def _choose_recipe(
    enclosure: Enclosure,
    points: Points,
    layer: int,
    width: float,
    generator: np.random.Generator,
) -> tuple[Recipe, Sides]:
    m = len(enclosure.inputs)
    ladders = {
        "conditional": _CONDITIONAL,
        "pooled": [(k, -(-total // m)) for k, total in _POOLED],
    }
    terms = {"conditional": enclosure.terms[:1], "pooled": enclosure.terms[1:]}
    chosen: dict[str, Proposals] = {}
    found: dict[str, Sides] = {}
    gaps: dict[str, float] = {}
    ratio: dict[str, float] = {}
    rung = dict.fromkeys(ladders, -1)

    def climb(part: str) -> None:
        rung[part] += 1
        proposals, replicas = ladders[part][rung[part]]
        if part in ratio and ratio[part] > _HOPELESS:
            proposals = ladders[part][0][0]
        if part in ratio and ratio[part] < 1 / _HOPELESS:
            replicas = ladders[part][0][1]
        before = gaps.get(part, math.inf)
        chosen[part], found[part], ratio[part] = enclosure.choose(
            terms[part], points, layer, (proposals, replicas), generator
        )
        gaps[part] = max(map(found[part].gap, terms[part]))
        if gaps[part] > _LEAST_CLOSING * before:  # more of the same will not do
            ladders[part] = ladders[part][: rung[part] + 1]

    for part in terms:
        climb(part)
    while True:
        sides = found["conditional"].joined(found["pooled"])
        others = max(sides.gap("conditional"), sides.gap("label"))
        is_narrow = sides.gap("pooled") + others <= width
        climbing = [
            part
            for part in sorted(gaps, key=lambda part: -gaps[part])
            if rung[part] + 1 < len(ladders[part])
            and (
                (rung[part] == 0 and found[part].widest() > _FAR_OUT * width)
                or (not is_narrow and gaps[part] > 0.25 * width)
            )
        ]
        if not climbing:
            return Recipe(chosen["conditional"], chosen["pooled"]), sides
        climb(climbing[0])


def enclose(
    layers: NoisyLayers,
    inputs: Doubles,
    label_sizes: Indices | None,
    *,
    standard_error: float,
    bracket_width: float,
    generator: np.random.Generator,
) -> list[LayerEstimate]:
    """All layers, with rounds of points until every standard error is met."""
    enclosure = Enclosure(layers, inputs, label_sizes)
    pilot = draw_points(layers, inputs, _PILOT_POINTS, generator)
    pilot = pilot.at_places(pilot.first(_PILOT_POINTS))
    found = [
        plan_layer(enclosure, pilot, layer, bracket_width, generator)
        for layer in range(1, len(layers.widths) + 1)
    ]
    unfinished = found
    for _ in range(_MOST_ROUNDS):
        points = draw_points(layers, inputs, _POINTS_PER_ROUND, generator)
        for estimate in unfinished:
            estimate.measure(enclosure, points, standard_error, generator)
        unfinished = [
            estimate
            for estimate in unfinished
            if estimate.results()[2].max() > standard_error
            and estimate.num_exact < estimate.recipe.most_points(len(inputs))
        ]
        if not unfinished:
            break
    return found
