"""Gradients of entropy and information with respect to samples, noise and weights.

The plug-in entropy is that of a known mixture g = sum_j w_j N(s_j, noise_std^2 I),

    H = -sum_j w_j E_z log g(x_j),    x_j = s_j + noise_std z,    z ~ N(0, I).

A parameter that moves s_j or noise_std moves the points x_j and the function log g. The
second part vanishes: E_g[d log g(x) at fixed x] is the derivative of the integral of g,
which stays 1. What is left is the gradient of log g with respect to its points alone,

    dH/ds_j       = -w_j E_z[ grad log g(x_j) ],
    dH/dnoise_std = -sum_j w_j E_z[ grad log g(x_j) . z ],

half the work of differentiating through log g, and without that part's noise. Adding
z / noise_std to the gradient, whose share of the averages is known exactly, leaves

    pull(x_j) = grad log g(x_j) + z / noise_std = (E[center | x_j] - s_j) / noise_std^2,

nothing at all where a center stands alone. Weights are free parameters, so g need not
stay normalised: dH/dw_j = -E_z[ log g(x_j) ] - 1, whose constant matters in no
direction in which their sum stays 1.

Every quantity here is a difference of such entropies, of the pool of all centers and of
their blocks, at the same queries: only pulls add up. torch is imported with this
module, which is imported when an estimator first meets a tensor.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import _arrays, _core, _device
from noisyflow._controls import least_squares_slopes
from noisyflow._merge import merge_duplicates
from noisyflow._pool import block_offsets
from noisyflow._queries import QuerySource, shifted_grids
from noisyflow.bounds import as_probabilities
from noisyflow.estimate import Estimate
from noisyflow.prepared import PreparedMixture, prepare
from noisyflow.runtime import num_threads
from noisyflow.sampling import GRID_SPACINGS, LEAST_QUERIES, Budget

Floats = NDArray[np.float64]
Points = NDArray[np.floating]
Indices = NDArray[np.int64]

_STREAM = (0x67726164,)  # "grad": apart from the noise of the value
_PASSES = 2  # of a query over its centers: the log-density, its gradient
# Of a gradient's pass, beside one of the log-density: 1.1 to 2.2 on a CPU (the shares
# of bench/bench_gradients.py); some more for a GPU, where gradients leave out no pair.
_SECONDS_PER_PAIR = 2.5
# Beyond two queries for every center, no more than this: a gradient is used once. A
# choice: 2e10 pairs in both passes for 10^4 centers.
_MOST_QUERIES = 2**20
_FEWEST_QUERIES = 16
_COORDINATES_PER_CALL = 2**21


class Call:
    """A call of an estimator with tensors among its arguments.

    `arguments` are those of the estimator itself: detached, with half of the budgets
    where gradients are wanted, the other half being theirs.
    `wants_gradients`: whether they are.
    """

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self._name = name
        self._given = arguments
        self.arguments = {key: _detached(value) for key, value in arguments.items()}
        noise_std = arguments["noise_std"]
        if _arrays.is_tensor(noise_std):
            self.arguments["noise_std"] = _noise_as_float(noise_std)
        self.wants_gradients = torch.is_grad_enabled() and any(
            _requires_gradients(value) for value in arguments.values()
        )
        if self.wants_gradients:
            self._budget = _Budget(name, arguments)
            self.arguments.update(self._budget.of_value())

    def attach(self, estimate: Estimate) -> Estimate:
        """The estimate, its value a tensor with gradients if they are wanted."""
        if not self.wants_gradients:
            return estimate
        parts = self._parts()
        gradient = _gradient(
            parts,
            self.arguments["noise_std"],
            int(self.arguments["seed"]),
            estimate,
            self._budget.after(estimate),
        )
        known: list[tuple[torch.Tensor, Floats | float]]
        known = [(parts.samples, gradient.samples)]
        for name in ("noise_std", "weights"):
            tensor = self._given.get(name)
            if tensor is not None and _requires_gradients(tensor):
                known.append((tensor, getattr(gradient, name)))
        value = _with_gradients(estimate.value, known)
        return dataclasses.replace(
            estimate, value=value, num_pairs=estimate.num_pairs + gradient.num_pairs
        )

    def _parts(self) -> _Parts:
        """Samples (n, d) within the graph, and what the quantity is made of."""
        if self._name == "entropy":
            samples = torch.as_tensor(self._given["centers"])
            weights = self.arguments["weights"]
            n = len(samples)
            probabilities = np.full(n, 1 / n)
            if weights is not None:
                probabilities = as_probabilities(torch.as_tensor(weights).cpu().numpy())
            return _Parts(samples, probabilities, 1, 0, np.array([0, n]))
        (samples, sizes) = _flat(self._given["samples"])
        probabilities = np.repeat(1 / (len(sizes) * sizes), sizes)
        blocks = block_offsets(sizes)
        if self._name == "conditional_entropy":
            return _Parts(samples, probabilities, 0, 1, blocks)
        labels = self._given["labels"]
        if labels is not None:
            (inputs, group_sizes) = _arrays.group_by_label(labels, len(sizes))
            of_inputs = np.split(np.arange(len(samples)), blocks[1:-1])
            order = np.concatenate([of_inputs[i] for i in inputs])
            samples = samples[torch.from_numpy(order).to(samples.device)]
            probabilities = probabilities[order]
            blocks = block_offsets(sizes[inputs])[block_offsets(group_sizes)]
        return _Parts(samples, probabilities, 1, -1, blocks)


class _Budget:
    """What limits the gradient: as many queries as the value, and half of any limit."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self._whole = Budget.checked(
            arguments["standard_error"],
            arguments["max_seconds"],
            arguments["max_pairs"],
        )
        sizes = _sizes(arguments.get("samples", arguments.get("centers")))
        self._check_pairs(sizes, only_own=name == "conditional_entropy")
        self._start = time.perf_counter()
        self._spent_pairs = 0
        self._spent_seconds = 0.0

    def of_value(self) -> dict[str, Any]:
        """The value's half of the limits, as arguments."""
        (seconds, pairs) = (self._whole.max_seconds, self._whole.max_pairs)
        return {
            "max_seconds": None if seconds is None else seconds / 2,
            "max_pairs": None if pairs is None else (pairs + 1) // 2,
        }

    def _check_pairs(self, sizes: list[int], *, only_own: bool) -> None:
        """Raises ValueError where a half of the pairs is too few for the value.

        The gradient's half is then enough for 32 of its queries or more, each of two
        passes over the pool and its own block.
        """
        n = sum(sizes)
        # Equal samples are merged: no more centers than in the largest block.
        centers = max(1, max(sizes, default=0) if only_own else n)
        least = 2 * LEAST_QUERIES * centers
        given = self._whole.max_pairs
        if given is not None and given < least:
            raise ValueError(
                f"max_pairs must be at least {least} for value and gradient of {n} "
                f"samples, {2 * LEAST_QUERIES} queries of {centers} centers, got "
                f"{given}"
            )

    def after(self, estimate: Estimate) -> _Budget:
        """Told what the value has spent."""
        self._spent_seconds = max(time.perf_counter() - self._start, 1e-6)
        self._spent_pairs = estimate.num_pairs
        return self

    def queries(self, distinct: _Distinct, *, least: int) -> int:
        """How many: as many a center as the value's, at least these if allowed."""
        pairs = _PASSES * distinct.pairs_per_query
        # The value leaves out what has no weight.
        share = distinct.share_weighted
        of_value = self._spent_pairs / (distinct.pairs_per_query * share)
        wanted = max(min(round(of_value / share), _MOST_QUERIES), least)
        if self._whole.max_seconds is not None:
            left = max(self._whole.max_seconds - self._spent_seconds, 0.0)
            rate = self._spent_pairs / self._spent_seconds / _SECONDS_PER_PAIR
            wanted = min(wanted, max(int(left * rate) // pairs, _FEWEST_QUERIES))
        if self._whole.max_pairs is not None:
            wanted = min(wanted, (self._whole.max_pairs - self._spent_pairs) // pairs)
        return wanted


class _Parts(NamedTuple):
    """of_pool times the entropy of all centers, of_blocks times that of the blocks."""

    samples: torch.Tensor  # (n, d)
    probabilities: Floats  # (n,)
    of_pool: int
    of_blocks: int
    blocks: Indices  # begin of every block, and the end


class _Gradient(NamedTuple):
    samples: Floats  # (n, d)
    noise_std: float
    weights: Floats  # (n,)
    num_pairs: int


def _with_gradients(
    value: float, known: list[tuple[torch.Tensor, Floats | float]]
) -> Any:
    """The value as a tensor whose gradients with respect to these tensors are known."""
    (tensors, gradients) = zip(*known, strict=True)
    gradients = tuple(
        torch.as_tensor(gradient, dtype=torch.float64).to(tensor.detach())
        for tensor, gradient in known
    )
    return _KnownGradient.apply(value, gradients, *tensors)  # type: ignore[no-untyped-call]


class _KnownGradient(torch.autograd.Function):
    """A value whose gradients with respect to some tensors are known beforehand."""

    @staticmethod
    def forward(
        ctx: Any,
        value: float,
        gradients: Sequence[torch.Tensor],
        *tensors: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(*gradients, *tensors)
        return tensors[0].new_tensor(value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        half = len(ctx.saved_tensors) // 2
        (gradients, tensors) = (ctx.saved_tensors[:half], ctx.saved_tensors[half:])
        scaled = [gradient * grad_outputs[0] for gradient in gradients]
        if torch.is_grad_enabled():  # create_graph=True
            scaled = [
                _Final.apply(gradient, *tensors)  # type: ignore[no-untyped-call]
                for gradient in scaled
            ]
        return (None, None, *scaled)


class _Final(torch.autograd.Function):
    """A gradient that depends on tensors in a way that is not known.

    once_differentiable would take it for a constant where grad_output is one.
    """

    @staticmethod
    def forward(
        ctx: Any, gradient: torch.Tensor, *tensors: torch.Tensor
    ) -> torch.Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        raise RuntimeError(
            "entropy and information can be differentiated once, not twice"
        )


class _Visits(NamedTuple):
    """Queries of centers: which, their noise, and their shares of the center's mean."""

    own: Indices  # (v,)
    noise: Floats  # (v, d)
    share: Floats  # (v,), 1 in all for every center that is visited
    is_mirrored: bool  # the queries with the noise reversed belong to them


def _gradient(
    parts: _Parts,
    noise_std: float,
    seed: int,
    estimate: Estimate,
    budget: _Budget,
) -> _Gradient:
    """The gradients, from queries at every center, or at an even part of them."""
    samples = np.ascontiguousarray(parts.samples.detach().cpu().numpy())
    (n, d) = samples.shape
    distinct = _Distinct(parts, samples, noise_std)
    from_noise = (parts.of_pool + parts.of_blocks) * d / noise_std
    if distinct.pairs_per_query == 0:  # every center a block of its own
        return _Gradient(np.zeros((n, d)), from_noise, np.zeros(n), 0)
    visits = _grid_visits(distinct, budget)
    if visits is None:
        visits = _net_visits(distinct, budget, seed)
    (pulls, along, logs) = distinct.averages(visits)

    # Of the sum over centers, a part of which may stand for all.
    k = len(distinct.centers)
    is_visited = np.bincount(visits.own, minlength=k) > 0
    scale = k / np.count_nonzero(is_visited)
    share = scale * distinct.probabilities[visits.own] * visits.share
    if visits.is_mirrored:
        norm = ((visits.noise**2).sum(axis=1) - d) / noise_std
        along -= norm * least_squares_slopes(along[:, None], norm[:, None])[0, 0]
    from_noise -= float(share @ along)
    of_samples = -scale * parts.probabilities[:, None] * pulls[distinct.center]
    # As a difference from the value: centers without a visit have that for an answer.
    value = float(estimate.value)
    of_weights = value - 1 - scale * np.where(is_visited, logs + value, 0.0)
    queries = (2 if visits.is_mirrored else 1) * len(visits.own)
    return _Gradient(
        of_samples,
        from_noise,
        of_weights[distinct.center],
        _PASSES * queries * distinct.pairs_per_query,
    )


def _grid_visits(distinct: _Distinct, budget: _Budget) -> _Visits | None:
    """In one or two dimensions the value's own grid, where it came from grids."""
    (n, d) = distinct.centers.shape
    most = budget.queries(distinct, least=0) // n
    if d not in GRID_SPACINGS:
        return None
    for spacing in reversed(GRID_SPACINGS[d][0]):
        (nodes, shares) = shifted_grids(spacing, d)
        if shares.size <= most:
            return _Visits(
                np.repeat(np.arange(n), shares.size),
                np.tile(nodes.reshape(-1, d), (n, 1)),
                np.tile(shares.ravel() / len(shares), n),
                is_mirrored=False,
            )
    return None


def _net_visits(distinct: _Distinct, budget: _Budget, seed: int) -> _Visits:
    """Mirrored noise from one net."""
    n = len(distinct.centers)
    queries = budget.queries(distinct, least=2 * n)
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=_STREAM))
    drawn = QuerySource(distinct.centers, None, generator).visit(queries // 2)
    share = 1 / np.bincount(drawn.own)[drawn.own]
    return _Visits(drawn.own, drawn.noise, share, is_mirrored=True)


class _Distinct:
    """The mixtures of distinct centers: equal samples of a block are one center."""

    def __init__(self, parts: _Parts, samples: Points, noise_std: float) -> None:
        blocks = parts.blocks
        merged = merge_duplicates(samples, blocks)
        self.center = np.arange(len(samples))
        if merged is not None:
            self.center = merged.center
            samples = np.ascontiguousarray(samples[merged.first])
            blocks = np.searchsorted(merged.first, blocks)
        self.centers = samples
        self.probabilities = np.bincount(self.center, parts.probabilities)
        self.share_weighted = float((self.probabilities > 0).mean())
        self._noise_std = noise_std
        self._parts = parts
        self._blocks = blocks
        self._pool: _Mixture | None = None
        (n, sizes) = (len(samples), np.diff(blocks))
        self.pairs_per_query = 0
        if parts.of_pool:
            self._pool = self._mixture(slice(None))
            self.pairs_per_query += n
        if parts.of_blocks and sizes.max() > 1:
            self.pairs_per_query += max(1, int(sizes @ sizes) // n)

    def averages(self, visits: _Visits) -> tuple[Floats, Floats, Floats]:
        """Mean pull at every center (k, d), pull . z of every visit, mean log g (k,).

        Zeros at centers that were not visited.
        """
        (k, d) = self.centers.shape
        pulls, logs = np.zeros((k, d)), np.zeros(k)
        along = np.empty(len(visits.own))
        step = max(1, _COORDINATES_PER_CALL // d)
        for start in range(0, len(along), step):
            part = slice(start, start + step)
            (own, noise) = (visits.own[part], visits.noise[part])
            share = visits.share[part]
            (pull, log) = self._pulls(own, noise)
            along[part] = (pull * noise).sum(axis=1)
            if visits.is_mirrored:
                (behind, log_behind) = self._pulls(own, -noise)
                along[part] = 0.5 * (along[part] - (behind * noise).sum(axis=1))
                (pull, log) = 0.5 * (pull + behind), 0.5 * (log + log_behind)
            np.add.at(pulls, own, share[:, None] * pull)
            np.add.at(logs, own, share * log)
        return pulls, along, logs

    def _pulls(self, own: Indices, noise: Floats) -> tuple[Floats, Floats]:
        """The pull of pool and blocks at queries (m, d), and the pool's log-density."""
        shift = (self._noise_std * noise).astype(self.centers.dtype)
        points = self.centers[own] + shift
        # The noise that rounding has left of it.
        away = (points - self.centers[own]).astype(np.float64) / self._noise_std**2
        pull, logs = np.zeros(points.shape), np.zeros(len(points))
        if self._pool is not None:
            (score, logs) = self._pool.score(points)
            pull += self._parts.of_pool * (score + away)
        if self._parts.of_blocks and len(self._blocks) <= len(self.centers):
            pull += self._parts.of_blocks * self._block_pulls(points, own, away)
        return pull, logs

    def _block_pulls(self, points: Points, own: Indices, away: Floats) -> Floats:
        """The pull of every query's own block; none where that is its center alone."""
        pull = np.zeros(points.shape)
        order = np.argsort(own, kind="stable")
        bounds = np.searchsorted(own[order], self._blocks)
        for b in np.flatnonzero((np.diff(bounds) > 0) & (np.diff(self._blocks) > 1)):
            rows = order[bounds[b] : bounds[b + 1]]
            block = self._mixture(slice(self._blocks[b], self._blocks[b + 1]))
            pull[rows] = block.score(points[rows])[0] + away[rows]
        return pull

    def _mixture(self, members: slice) -> _Mixture:
        probabilities = self.probabilities[members]
        weights = None
        if np.ptp(probabilities) > 0:
            weights = probabilities / probabilities.sum()
            weights = weights.astype(self.centers.dtype)
        like = self._parts.samples
        return _Mixture(self.centers[members], self._noise_std, weights, like)


class _Mixture:
    """Centers whose log-density and its gradient at points are wanted."""

    def __init__(
        self,
        centers: Points,
        noise_std: float,
        weights: Points | None,
        like: torch.Tensor,
    ) -> None:
        self._noise_std = noise_std
        self._on_device: torch.Tensor | None = None
        self._centers: Any = centers
        self._weights: Any = weights
        if _device.is_on_device(like):
            self._on_device = like.detach()
            self._centers = self._on_device.new_tensor(centers)
            if weights is not None:
                self._weights = self._on_device.new_tensor(weights)
        self._prepared: PreparedMixture = prepare(
            self._centers, noise_std, weights=self._weights
        )

    def score(self, points: Points) -> tuple[Floats, Floats]:
        """The gradient of log g with respect to its points (m, d), and log g (m,)."""
        x: Any = points
        if self._on_device is not None:
            x = self._on_device.new_tensor(points)
        log_density = self._prepared.log_density(x)
        lost = self._prepared.max_lost_mass
        at = (x, self._centers, self._noise_std, self._weights, log_density)
        only_points = (True, False, False, False)
        if self._on_device is not None:
            ones = torch.ones_like(log_density)
            gradient = _device.gradients(*at, ones, *only_points, lost)[0].cpu().numpy()
            log_density = log_density.cpu().numpy()
        else:
            gradient = _core.log_density_gradients(
                *(*at, np.ones_like(log_density)), *only_points, lost, num_threads()
            )[0]
        return np.asarray(gradient, np.float64), np.asarray(log_density, np.float64)


def is_traced() -> bool:
    """Whether torch.compile is looking on: it would take NumPy's arrays for its own."""
    return torch.compiler.is_dynamo_compiling()


def untraced(function: Any) -> Any:
    """The function, for torch.compile to call and not to look into."""
    return torch.compiler.disable(function)  # type: ignore[no-untyped-call]


def _flat(samples: Any) -> tuple[torch.Tensor, Indices]:
    """Checked samples as (n, d) within the graph, and the draws of each input."""
    if isinstance(samples, list | tuple):
        tensors = [torch.as_tensor(block) for block in samples]
        return torch.cat(tensors), np.array([len(block) for block in tensors])
    tensor = torch.as_tensor(samples)
    (num_inputs, num_draws, d) = tensor.shape
    return tensor.reshape(-1, d), np.full(num_inputs, num_draws)


def _requires_gradients(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_requires_gradients(part) for part in value)
    return isinstance(value, torch.Tensor) and value.requires_grad


def _sizes(samples: Any) -> list[int]:
    """Samples of every block, of arguments that are not checked yet."""
    if isinstance(samples, list | tuple):
        return [sum(_sizes(part)) for part in samples]
    shape: tuple[int, ...] = np.shape(samples)
    return [math.prod(shape[1:-1])] * (shape[0] if shape else 0)


def _detached(value: Any) -> Any:
    """The value without its graph."""
    if isinstance(value, list | tuple) and _requires_gradients(value):
        return [_detached(part) for part in value]
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        try:
            value.data_ptr()
        except RuntimeError:
            raise TypeError(
                "entropy and information need tensors with data, got one of a transform"
                " such as torch.func.grad or torch.vmap; use backward() or"
                " torch.autograd.grad"
            ) from None
    return value.detach() if _requires_gradients(value) else value


def _noise_as_float(noise_std: torch.Tensor) -> float:
    _arrays.check_scalar_shape(noise_std)
    if not noise_std.is_floating_point():
        raise TypeError(
            f"noise_std must be a floating-point number, got {noise_std.dtype}; pass "
            "float(noise_std)"
        )
    if noise_std.is_meta:
        raise ValueError("noise_std must have a value, got a tensor on meta")
    return float(noise_std.detach())
