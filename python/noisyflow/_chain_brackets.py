"""Both sides of a chain's log-densities and information, at points that it made.

The input is one more latent variable: likely inputs of a point are proposed from the
linearised mixture, mixed with a uniform, and paths as in `_chain_proposals`. What each
side states in expectation, and why, is in docs/design.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import _chain_proposals as proposals
from noisyflow._chain_layers import ChainLayers, Tensor
from noisyflow._chain_proposals import Tail

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

# 2 %: a safeguard only, and every input drawn by it costs a search for its mode.
_UNIFORM_SHARE = 0.02
# Of a lower bound's guess of the input: keeps its logarithm above log of this.
_GUESS_UNIFORM_SHARE = 1e-3
# That guess is used where one input holds this much of the linearised posterior (its
# uniform share apart). Where several are likely, densities estimated one by one have
# more noise than their sum: half a bracket of 0.04 instead of 0.002 in one dimension.
_GUESS_MASS = 0.99
# Where all but this is held by one input, no paths are proposed unless asked for; also
# the uniform share of the guess there. It costs up to twice this of the bracket.
_SURE = 1e-4
_DOUBLES_AT_A_TIME = 2**22
_MOST_POINTS_AT_A_TIME = 256
# First outputs are kept where they fit into 256 MiB, else computed when needed.
_MOST_KEPT = 2**25
# A covariance per input where 128 MiB and these rows of Jacobians suffice, else one for
# all; beyond this width its diagonal alone.
_MOST_COVARIANCES = 2**24
_MOST_ROWS = 2**18
_WIDEST_SHARED = 2048
_MOST_SHARED_DRAWS = 8192


@dataclass
class PointSides:
    """Values at N points, (N,) each: upper and lower sides, controls of known mean."""

    own: Indices
    lower: Doubles  # of the information
    upper: Doubles
    left_out_upper: Doubles  # the same, own input left out of the mixture
    label_lower: Doubles
    label_upper: Doubles
    label_left_out_lower: Doubles
    label_left_out_upper: Doubles
    entropy_lower: Doubles  # of -log p(t)
    entropy_upper: Doubles
    entropy_left_out: Doubles
    conditional_lower: Doubles  # of -log p(t | given)
    conditional_upper: Doubles
    effective: Doubles
    control: Doubles
    label_control: Doubles
    skipped: NDArray[np.bool_]  # without paths, entropies are unknown there (NaN)
    cost: int

    def joined(self, other: PointSides) -> PointSides:
        """The points of both."""
        return PointSides(
            **{
                f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)])
                for f in fields(self)
                if f.name != "cost"  # what is left are arrays
            },
            cost=self.cost + other.cost,
        )


class Chain:
    """One layer of a chain of known layers, its inputs, and what it is conditioned on.

    label_sizes: inputs are sorted by label, so many for each. given: k of I(T_k;T_l),
    0 for the input. num_modes = 0: derivatives are not used at all.
    """

    def __init__(
        self,
        layers: ChainLayers,
        layer: int,
        given: int,
        label_sizes: Indices | None,
        has_jacobians: bool,
        generator: torch.Generator,
    ) -> None:
        self.layers, self.layer, self.given = layers, layer, given
        self.num_inputs = m = len(layers.inputs)
        sizes = np.array([m]) if label_sizes is None else label_sizes
        self.has_labels = label_sizes is not None
        self.label_sizes = torch.from_numpy(np.asarray(sizes, np.int64))
        self.labels = torch.repeat_interleave(self.label_sizes)
        self.tail = Tail(layers, 1, layer)
        self.given_tail = Tail(layers, given + 1, layer)
        self.generator = generator
        self._kept: Tensor | None = None
        if m * layers.widths[1] <= _MOST_KEPT:
            self._kept = self._first(torch.arange(m))
        self._has_jacobians = has_jacobians
        self._posterior: InputPosterior | None = None

    @property
    def posterior(self) -> InputPosterior:
        """The linearised posterior of the input; made when first needed."""
        if self._posterior is None:
            self._posterior = InputPosterior(self, self._has_jacobians)
        return self._posterior

    def first(self, index: Tensor) -> Tensor:
        """S_1 (B, d_1) of these inputs."""
        return self._first(index) if self._kept is None else self._kept[index]

    @torch.no_grad()
    def _first(self, index: Tensor) -> Tensor:
        step = max(1, 2**23 // (4 * sum(self.layers.widths[:2])))
        return torch.cat(
            [
                self.layers.run(1, self.layers.inputs[some])
                for some in torch.split(index, step)
            ]
        )

    @torch.no_grad()
    def sample(self, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Paths (N, length), S_{k+1} given T_k, and points t_l, of these inputs."""
        shape = (len(own), self.tail.length + self.tail.width)
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        step = max(1, 2**23 // (4 * sum(self.layers.widths)))
        starts, points = [], []
        for some in torch.split(torch.arange(len(own)), step):
            clean, column = self.first(own[some]), 0
            for number in range(1, self.layer + 1):
                if number == self.given + 1:
                    starts.append(clean)
                width = clean.shape[1]
                z = noise[some, column : column + width]
                noisy = clean + self.layers.noise_stds[number - 1] * z
                column += width
                if number < self.layer:
                    clean = self.layers.run(number + 1, noisy.clone())
            points.append(noisy)
        result = torch.cat(points)
        if not torch.isfinite(result).all():
            raise ValueError(
                f"layer {self.layer} must return finite values, got NaN or inf"
            )
        return noise[:, : self.tail.length], torch.cat(starts), result

    def points_at_a_time(self) -> int:
        """As many as their log-terms with all inputs fit into 32 MiB."""
        return max(
            1, min(_MOST_POINTS_AT_A_TIME, _DOUBLES_AT_A_TIME // self.num_inputs)
        )

    def controls(self, own: Indices) -> tuple[Doubles, Doubles]:
        """The controls of `PointSides` at new points of these inputs."""
        found = []
        for some in torch.split(torch.from_numpy(own), self.points_at_a_time()):
            _, _, points = self.sample(some)
            found.append(self._controls(self.posterior.log_terms(points), some))
        return tuple(torch.cat(c).numpy() for c in zip(*found, strict=True))  # type: ignore[return-value]

    def _controls(self, log_terms: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        log_r = _mixed(log_terms, None)[0]
        label = torch.zeros(len(own), dtype=torch.float64)
        if self.has_labels:
            same = self.labels[None] == self.labels[own][:, None]
            mass = torch.where(same, log_r.exp(), 0.0).sum(1)
            share = self.label_sizes[self.labels[own]] / self.num_inputs
            label = torch.log(mass / share)
        if self.given == 0:
            control = math.log(self.num_inputs) + _at(log_r, own)
        else:
            # Where the linearised density is absurdly low it controls nothing.
            peak = -self.tail.width * math.log(
                self.tail.noise_std * math.sqrt(2 * math.pi)
            )
            density = torch.logsumexp(log_terms, 1) - math.log(self.num_inputs)
            control = -density.clamp_min(peak - self.tail.width - 40)
        return control, label

    def sides(
        self,
        own: Indices,
        num_proposals: int,
        num_modes: int,
        *,
        left_out: bool,
        skips: bool,
    ) -> PointSides:
        """New points of these inputs, weighed with K proposals each.

        left_out: also with the own input left out. skips: no proposals where the
        linearised posterior is sure of the input; its own bound is as good there.
        """
        step = self.points_at_a_time()
        parts = []
        for some in torch.split(torch.from_numpy(own), step):
            path, starts, points = self.sample(some)
            log_terms = self.posterior.log_terms(points)
            is_sure = torch.zeros(len(some), dtype=torch.bool)
            if skips and not left_out and self.given == 0:
                r = torch.softmax(log_terms, 1)
                is_sure = r.amax(1) >= 1 - _SURE
                parts.append(self._sure_sides(some[is_sure], r[is_sure]))
            if not bool(is_sure.all()):
                rest = ~is_sure
                sampled = (path[rest], starts[rest], points[rest], log_terms[rest])
                parts.append(
                    self._sides(some[rest], sampled, num_proposals, num_modes, left_out)
                )
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.joined(part)
        return whole

    def _sure_sides(self, own: Tensor, r: Tensor) -> PointSides:
        """Bounds from the linearised posterior alone, where it is sure of the input.

        Any guess q(x | y) has log m + E log q <= I(X;T), and log m is never exceeded.
        """
        m, n = self.num_inputs, len(own)
        unknown, zeros = torch.full((n,), math.nan).double(), torch.zeros(n).double()
        guess = math.log(m) + torch.log((1 - _SURE) * _at(r, own) + _SURE / m)
        label, label_top = zeros, zeros
        if self.has_labels:
            same = self.labels[None] == self.labels[own][:, None]
            mass = torch.where(same, r, 0.0).sum(1)
            label_top = -torch.log(self.label_sizes[self.labels[own]] / m)
            even = _SURE / len(self.label_sizes)
            label = label_top + torch.log((1 - _SURE) * mass + even)
        control, label_control = self._controls(torch.log(r.clamp_min(1e-300)), own)
        top = torch.full((n,), math.log(m), dtype=torch.float64)
        values = (
            *(guess, top, top, label, label_top, label, label_top),
            *(unknown,) * 5,
            *(zeros + 1, control, label_control, torch.ones(n, dtype=torch.bool)),
        )
        return _point_sides(own, values, n * m)

    def _sides(
        self,
        own: Tensor,
        sampled: tuple[Tensor, Tensor, Tensor, Tensor],
        num_proposals: int,
        num_modes: int,
        left_out: bool,
    ) -> PointSides:
        m, n, k_all = self.num_inputs, len(own), num_proposals
        path, starts, points, log_terms = sampled
        groups = [_Group(self, own, log_terms, k_all, None)]
        same = self.labels[None] == self.labels[own][:, None]
        is_own = torch.arange(m)[None] == own[:, None]
        if self.has_labels:
            groups.append(_Group(self, own, log_terms, k_all, same))
        if left_out:
            groups.append(_Group(self, own, log_terms, k_all, ~is_own))
            if self.has_labels:
                groups.append(_Group(self, own, log_terms, k_all, same & ~is_own))
        rows = torch.arange(n)[:, None] * m
        keys = [(rows + own[:, None]).expand(-1, k_all if self.given == 0 else 0)]
        keys += [rows + group.inputs for group in groups]
        own_keys = rows[:, 0] + own
        pairs, pair_of = torch.unique(
            torch.cat([own_keys, torch.cat(keys, 1).flatten()]), return_inverse=True
        )
        draws = proposals.draw_and_weigh(
            self.tail,
            self.first(pairs % m),
            points[pairs // m],
            pair_of[n:],
            path,
            pair_of[:n],
            num_modes,
            self.generator,
        )
        counts = [k.shape[1] for k in keys]
        weighed = torch.split(draws.proposed.reshape(n, -1), counts, 1)
        in_pair = torch.split(pair_of[n:].reshape(n, -1), counts, 1)
        for group, log_weights in zip(groups, weighed[1:], strict=True):
            group.weigh(log_weights, draws.known)
        if self.given == 0:
            given_low, given_high, given_share = _sides_of(weighed[0], draws.known)
        else:
            given_low, given_high, given_share = self._given_sides(
                starts, points, path, k_all, num_modes
            )
        pool = groups[0]
        lower, upper = given_low - pool.high, given_high - pool.low
        if self.given == 0:
            rest = pool.log_others(own) - given_high
            by_rest = math.log(m) - torch.nn.functional.softplus(rest)
            guess = math.log(m) + pool.guess(own, in_pair[1], len(pairs))
            is_sure = pool.one_input_is_sure()
            lower = torch.where(is_sure, guess, lower)
            upper = torch.where(is_sure, by_rest, upper)
        zeros = torch.zeros(n, dtype=torch.float64)
        label_low, label_high = zeros, zeros
        effective = torch.minimum(given_share, pool.effective)
        if self.has_labels:
            label = groups[1]
            label_low, label_high = self._label_sides(own, pool, label)
            effective = torch.minimum(effective, label.effective)
        out_low, label_out_low, label_out_high = pool.low, label_low, label_high
        if left_out:
            out_low = groups[2 if self.has_labels else 1].low
            if self.has_labels:
                label_out_low = groups[3].low - pool.high
                label_out_high = groups[1].high - out_low
        control, label_control = self._controls(log_terms, own)
        values = (
            *(lower, upper, given_high - out_low),
            *(label_low, label_high, label_out_low, label_out_high),
            *(-pool.high, -pool.low, -out_low, -given_high, -given_low),
            *(effective, control, label_control, torch.zeros(n, dtype=torch.bool)),
        )
        cost = n * m + draws.proposed.numel() + n
        return _point_sides(own, values, cost)

    def _given_sides(
        self,
        starts: Tensor,
        points: Tensor,
        path: Tensor,
        num_proposals: int,
        num_modes: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both sides of log p(t_l | t_k)."""
        n, tail = len(points), self.given_tail
        numbers = range(self.given + 2, self.layer + 1)
        if all(self.layers.is_affine(number) for number in numbers):
            exact = proposals.linear_log_densities(tail, starts, points)
            return exact, exact, torch.ones(n, dtype=torch.float64)
        known = path[:, path.shape[1] - tail.length :]
        pair = torch.arange(n)
        draws = proposals.draw_and_weigh(
            tail,
            starts,
            points,
            pair.repeat_interleave(num_proposals),
            known,
            pair,
            num_modes,
            self.generator,
        )
        return _sides_of(draws.proposed.reshape(n, -1), draws.known)

    def _label_sides(
        self, own: Tensor, pool: _Group, label: _Group
    ) -> tuple[Tensor, Tensor]:
        """Both sides of log p(t | y) - log p(t)."""
        share = torch.log(self.label_sizes[self.labels[own]] / self.num_inputs)
        is_same = self.labels[pool.inputs] == self.labels[own][:, None]
        others = torch.where(is_same, -math.inf, pool.log_weights)
        rest = torch.logsumexp(others, 1) - math.log(others.shape[1])
        by_rest = -share - torch.nn.functional.softplus(rest - share - label.high)
        same = torch.where(is_same, pool.log_weights, -math.inf)
        found = torch.logsumexp(same, 1) - torch.logsumexp(pool.log_weights, 1)
        even = _GUESS_UNIFORM_SHARE / len(self.label_sizes)
        guess = torch.log((1 - _GUESS_UNIFORM_SHARE) * found.exp() + even) - share
        # As for the input: decided by the point alone.
        masses = torch.zeros(len(own), len(self.label_sizes), dtype=torch.float64)
        masses.index_add_(1, self.labels, pool.log_r.exp())
        is_sure = masses.amax(1) >= _GUESS_MASS * (1 - _UNIFORM_SHARE)
        return (
            torch.where(is_sure, guess, label.low - pool.high),
            torch.where(is_sure, by_rest, label.high - pool.low),
        )


class _Group:
    """Inputs proposed for every point from one group, and their paths' weights."""

    def __init__(
        self,
        chain: Chain,
        own: Tensor,
        log_terms: Tensor,
        num_proposals: int,
        mask: Tensor | None,
    ) -> None:
        self.log_r, sizes = _mixed(log_terms, mask)
        self._log_sizes = sizes.log()
        self.inputs = torch.multinomial(
            self.log_r.exp(), num_proposals, replacement=True, generator=chain.generator
        )
        self._own_log_r = _at(self.log_r, own)

    def weigh(self, log_weights: Tensor, known: Tensor) -> None:
        """Takes the log-weights of the paths; the known one is not in every group."""
        self.path_log_weights = log_weights
        log_r = torch.gather(self.log_r, 1, self.inputs)
        self.log_weights = log_weights - self._log_sizes[:, None] - log_r
        self.low, self.high, self.effective = _sides_of(
            self.log_weights, known - self._log_sizes - self._own_log_r
        )

    def log_others(self, own: Tensor) -> Tensor:
        """Log of the sum of p(y | x) over all inputs but the own, as weighed."""
        is_own = self.inputs == own[:, None]
        others = torch.where(is_own, -math.inf, self.log_weights)
        mean = torch.logsumexp(others, 1) - math.log(others.shape[1])
        return mean + self._log_sizes

    def one_input_is_sure(self) -> Tensor:
        """Whether one input holds nearly all of the linearised posterior, (N,).

        It may decide between two sides that are true on average: it depends on the
        point alone, not on its origin and not on what was drawn for it.
        """
        return self.log_r.exp().amax(1) >= _GUESS_MASS * (1 - _UNIFORM_SHARE)

    def guess(self, own: Tensor, pair_of: Tensor, num_pairs: int) -> Tensor:
        """log q(own | y), q a distribution over the inputs.

        Inputs that were drawn share their linearised mass by their mean weights; the
        others keep theirs.
        """
        times = torch.bincount(pair_of.flatten(), minlength=num_pairs)[pair_of]
        each = self.path_log_weights - times.log()
        is_own = self.inputs == own[:, None]
        own_part = torch.logsumexp(torch.where(is_own, each, -math.inf), 1)
        r = self._without_uniform(torch.gather(self.log_r, 1, self.inputs))
        share = torch.exp(own_part - torch.logsumexp(each, 1))
        own_r = self._without_uniform(self._own_log_r[:, None])[:, 0]
        q = torch.where(is_own.any(1), (r / times).sum(1) * share, own_r)
        even = _GUESS_UNIFORM_SHARE / self._log_sizes.exp()
        return torch.log((1 - _GUESS_UNIFORM_SHARE) * q + even)

    def _without_uniform(self, log_r: Tensor) -> Tensor:
        """The linearised posterior, from what it was mixed into."""
        even = _UNIFORM_SHARE / self._log_sizes.exp()[:, None]
        return ((log_r.exp() - even) / (1 - _UNIFORM_SHARE)).clamp_min(0.0)


class InputPosterior:
    """log N(y; mu_x, Sigma_x) of every input: the chain linearised around it.

    A covariance of its own for every input where that is affordable; else one for all,
    from differences between draws. Any density serves: it decides the spread of the
    weights, not their mean.
    """

    def __init__(self, chain: Chain, has_jacobians: bool) -> None:
        tail, m = chain.tail, chain.num_inputs
        d = tail.width
        index = torch.arange(m)
        rest = torch.zeros(1, tail.length, dtype=torch.float64)
        is_own = (
            has_jacobians
            and tail.is_dense
            and m * d * (d + 1) // 2 <= _MOST_COVARIANCES
            and m * min(d, tail.length) <= _MOST_ROWS
        )
        means, features = [], []
        step = max(1, 2**22 // (d * (d + tail.length) + chain.layers.widths[1]))
        for some in torch.split(index, step):
            clean, zeros = chain.first(some), rest.expand(len(some), -1)
            if is_own:
                output, jacobian = tail.jacobian(clean, zeros)
                features.append(_precision(jacobian, tail.noise_std))
            else:
                output = tail.output(clean, zeros)
            means.append(output)
        self._means = torch.cat(means)
        self._origin = self._means.mean(0)
        self._means = self._means - self._origin
        self._precisions: Tensor | None = None
        if is_own:
            self._prepare_own(torch.cat(features))
        else:
            self._prepare_shared(chain)

    def _prepare_own(self, precisions: Tensor) -> None:
        along = torch.einsum("xij,xj->xi", precisions, self._means)
        squares = (along * self._means).sum(1)
        self._constants = 0.5 * torch.linalg.slogdet(precisions)[1] - 0.5 * squares
        d = self._means.shape[1]
        self._upper = torch.triu_indices(d, d)
        twice = torch.where(self._upper[0] == self._upper[1], -0.5, -1.0)
        packed = precisions[:, self._upper[0], self._upper[1]] * twice
        self._precisions = torch.cat([packed, along], 1).T.contiguous()

    def _prepare_shared(self, chain: Chain) -> None:
        tail, d = chain.tail, chain.tail.width
        count = min(max(1024, 8 * d), _MOST_SHARED_DRAWS)
        index = torch.randint(chain.num_inputs, (count,), generator=chain.generator)
        moments = torch.zeros(d, d if d <= _WIDEST_SHARED else 1, dtype=torch.float64)
        for some in torch.split(index, max(1, 2**22 // (tail.length + d))):
            clean = chain.first(some)
            shape = (2, len(some), tail.length)
            z = torch.randn(shape, generator=chain.generator, dtype=torch.float64)
            difference = tail.output(clean, z[0]) - tail.output(clean, z[1])
            moments += (
                difference.T @ difference
                if d <= _WIDEST_SHARED
                else (difference**2).sum(0)[:, None]
            )
        moments /= 2 * count
        if d <= _WIDEST_SHARED:
            moments.diagonal().add_(tail.noise_std**2)
            identity = torch.eye(d, dtype=torch.float64)
            self._whitening = torch.linalg.solve_triangular(
                torch.linalg.cholesky(moments), identity, upper=False
            )
            self._means = self._means @ self._whitening.T
        else:
            self._whitening = (moments + tail.noise_std**2).rsqrt()[:, 0]
            self._means = self._means * self._whitening
        self._constants = -0.5 * (self._means**2).sum(1)

    def log_terms(self, points: Tensor) -> Tensor:
        """(N, m), up to a number per point where the covariance is shared."""
        y = points - self._origin
        if self._precisions is None:
            white = (
                y @ self._whitening.T
                if self._whitening.ndim == 2
                else y * self._whitening
            )
            return torch.addmm(self._constants, white, self._means.T)
        products = y[:, self._upper[0]] * y[:, self._upper[1]]
        both = torch.cat([products, y], 1)
        return torch.addmm(self._constants, both, self._precisions)


def _point_sides(own: Tensor, values: tuple[Tensor, ...], cost: int) -> PointSides:
    """From tensors in the order of the fields."""
    arrays: list[Any] = [own.numpy(), *(value.numpy() for value in values), cost]
    return PointSides(*arrays)


def _precision(jacobian: Tensor, noise_std: float) -> Tensor:
    """(I + J J')^-1 / noise_std^2."""
    gram = jacobian @ jacobian.transpose(1, 2)
    gram.diagonal(dim1=1, dim2=2).add_(1.0)
    return torch.cholesky_inverse(torch.linalg.cholesky(gram)) / noise_std**2


def _mixed(log_terms: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-probabilities of inputs, with a uniform share, and sizes of the groups."""
    n, m = log_terms.shape
    if mask is None:
        sizes = torch.full((n,), float(m), dtype=torch.float64)
    else:
        log_terms = torch.where(mask, log_terms, -math.inf)
        sizes = mask.sum(1).double()
    even = (math.log(_UNIFORM_SHARE) - sizes.log())[:, None]
    log_r = torch.logaddexp(
        torch.log_softmax(log_terms, 1) + math.log1p(-_UNIFORM_SHARE), even
    )
    return (log_r if mask is None else torch.where(mask, log_r, -math.inf)), sizes


def _sides_of(log_weights: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log of mean weights without and with the known path; effective share of K."""
    k_all = log_weights.shape[1]
    low = torch.logsumexp(log_weights, 1) - math.log(k_all)
    with_known = torch.cat([known[:, None], log_weights[:, 1:]], 1)
    high = torch.logsumexp(with_known, 1) - math.log(k_all)
    w = torch.exp(log_weights - log_weights.amax(1, keepdim=True))
    return low, high, w.sum(1) ** 2 / (w**2).sum(1) / k_all


def _at(values: Tensor, index: Tensor) -> Tensor:
    return torch.gather(values, 1, index[:, None])[:, 0]
