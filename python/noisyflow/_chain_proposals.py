"""Noise paths through a chain, proposed where they matter and weighted exactly.

A tail is what a chain makes of S_a: T_a = S_a + noise, S_{a+1} = f(T_a), ..., S_l. Its
latent variable is z, the noise of layers a .. l - 1 in units of their noise_std. For a
pair (S_a, y) the posterior of z is approximated by Gaussians at its modes,

    N(mode, (I + J'J)^-1),  J the Jacobian of S_l in units of noise_std,

and mixed with the prior. Whatever the quality of J, weights are exact: they are divided
by the density that was drawn from.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from noisyflow._chain_layers import ChainLayers, Tensor

# Above this width (and path length) Jacobians are never formed: products with vectors.
DENSE_WIDTH = 256
# Rank of what stands for them then.
_RANK = 64
_OVERSAMPLING = 8
# Doubles in one intermediate array: 64 MiB.
_DOUBLES_AT_A_TIME = 2**23

_PRIOR_SHARE = 0.1
_NEWTON_STEPS = 6
_CONVERGED = (
    1e-3  # squared length of a step: the proposal is as good with it or without
)
_LITTLE_GAIN = 0.02  # of minus twice the log-density: kinks keep steps long to no avail
_CONJUGATE_GRADIENT_STEPS = 64
_FLOOR_OF_MODES = 0.1  # spread evenly over the modes, the rest by their masses


def _pull_back(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Any]:
    """The output and the product u -> (J'u,) there."""
    output, pull_back, *_ = torch.func.vjp(function, at)
    return output, pull_back


def _push(function: Callable[[Tensor], Tensor], at: Tensor, v: Tensor) -> Tensor:
    """J v there."""
    with warnings.catch_warnings():
        # torch warns of its own code when this is called for the first time.
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
        pushed: Tensor = torch.func.jvp(function, (at,), (v,))[1]
    return pushed


class Tail:
    """S_l as a function of S_a and of the noise of layers a .. l - 1."""

    def __init__(self, layers: ChainLayers, first: int, last: int) -> None:
        self.layers = layers
        self.first, self.last = first, last
        self.latent_widths = layers.widths[first:last]
        self.length = sum(self.latent_widths)
        self.width = layers.widths[last]
        self.noise_std = layers.noise_stds[last - 1]
        self.is_dense = min(self.width, self.length) <= DENSE_WIDTH
        self.rank = min(self.width, self.length, 2**62 if self.is_dense else _RANK)

    def _output(self, clean: Tensor, path: Tensor) -> Tensor:
        column = 0
        for number, width in enumerate(self.latent_widths, self.first):
            noise = path[:, column : column + width]
            noisy = clean + self.layers.noise_stds[number - 1] * noise
            clean = self.layers.run(number + 1, noisy)
            column += width
        return clean

    def why_not_differentiable(self) -> str | None:
        """What keeps the tail from being linearised, naming the layer; or None."""
        reason = self.layers.why_not_differentiable(self.first + 1, self.last)
        is_forward = self.width > self.length or not self.is_dense
        if reason is None and is_forward:
            clean = self.layers.probe(self.first)
            path = torch.zeros(len(clean), self.length, dtype=torch.float64)
            try:
                _push(lambda z: self._output(clean, z), path, path)
            except Exception as error:  # a layer without forward derivatives
                reason = (
                    f"layers {self.first + 1} to {self.last} have no forward-mode "
                    f"derivative: {type(error).__name__}"
                )
        return reason

    @torch.no_grad()
    def output(self, clean: Tensor, path: Tensor) -> Tensor:
        """S_l (B, d_l) for S_a (B, d_a) and paths (B, length)."""
        step = max(1, _DOUBLES_AT_A_TIME // (4 * sum(self.layers.widths)))
        parts = [
            self._output(clean[i : i + step], path[i : i + step])
            for i in range(0, len(clean), step)
        ]
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def jacobian(self, clean: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
        """S_l (B, d_l) and its Jacobian (B, d_l, length) in units of noise_std."""
        per_pair = 4 * min(self.width, self.length) * (self.length + self.width)
        step = max(1, _DOUBLES_AT_A_TIME // per_pair)
        outputs, jacobians = [], []
        for i in range(0, len(clean), step):
            some = slice(i, i + step)
            output, jacobian = self._jacobian(clean[some], path[some])
            outputs.append(output)
            jacobians.append(jacobian / self.noise_std)
        return torch.cat(outputs), torch.cat(jacobians)

    def _jacobian(self, clean: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
        # Every row of a batch depends on its own path alone, so one product with a
        # vector serves the whole batch: no vmap over rows is needed.
        if self.width <= self.length:
            output, pull_back = _pull_back(lambda z: self._output(clean, z), path)
            basis = torch.eye(self.width, dtype=torch.float64)[:, None]
            chunk = max(1, _DOUBLES_AT_A_TIME // (4 * path.numel()))
            (rows,) = torch.func.vmap(pull_back, chunk_size=chunk)(
                basis.expand(-1, len(path), -1)
            )
            return output.detach(), rows.transpose(0, 1)

        def column(direction: Tensor) -> Tensor:
            return _push(lambda z: self._output(clean, z), path, direction)

        basis = torch.eye(self.length, dtype=torch.float64)[:, None]
        columns = torch.func.vmap(column)(basis.expand(-1, len(path), -1))
        return self.output(clean, path), columns.permute(1, 2, 0)

    def products(self, clean: Tensor, path: Tensor) -> _Products:
        """Products with the Jacobian at these paths, which is not formed."""
        output, pull_back = _pull_back(lambda z: self._output(clean, z), path)
        return _Products(self, clean, path, output.detach(), pull_back)


class _Products:
    """J v and J'u for a batch of pairs, in units of noise_std."""

    def __init__(
        self, tail: Tail, clean: Tensor, path: Tensor, output: Tensor, pull_back: Any
    ) -> None:
        self._tail, self._clean, self._path = tail, clean, path
        self.output = output
        self._pull_back = pull_back

    def times(self, v: Tensor) -> Tensor:
        """J v, (B, d_l)."""
        function = self._tail._output
        pushed = _push(lambda z: function(self._clean, z), self._path, v)
        return pushed / self._tail.noise_std

    def transposed_times(self, u: Tensor) -> Tensor:
        """J'u, (B, length)."""
        (pulled,) = self._pull_back(u)
        result: Tensor = pulled / self._tail.noise_std
        return result

    def solve(self, b: Tensor) -> Tensor:
        """(I + J'J)^-1 b by conjugate gradients."""
        x, residual = torch.zeros_like(b), b
        direction = residual
        size = (residual**2).sum(1, keepdim=True)
        enough = 1e-12 * size
        for _ in range(_CONJUGATE_GRADIENT_STEPS):
            if bool((size <= enough).all()):
                break
            image = direction + self.transposed_times(self.times(direction))
            rate = size / (direction * image).sum(1, keepdim=True).clamp_min(1e-300)
            x = x + rate * direction
            residual = residual - rate * image
            previous, size = size, (residual**2).sum(1, keepdim=True)
            direction = residual + size / previous.clamp_min(1e-300) * direction
        return x

    def sketch(self, rank: int, generator: torch.Generator) -> Tensor:
        """(B, rank, length): diag(s) V' of the leading singular values, about."""
        count = min(rank + _OVERSAMPLING, self._tail.width, self._tail.length)

        def times(matrix: Tensor) -> Tensor:  # (B, length, count) -> (B, d_l, count)
            columns = [self.times(v) for v in matrix.unbind(2)]
            return torch.stack(columns, 2)

        def transposed_times(matrix: Tensor) -> Tensor:
            columns = [self.transposed_times(u) for u in matrix.unbind(2)]
            return torch.stack(columns, 2)

        shape = (*self._path.shape, count)
        start = torch.randn(shape, generator=generator, dtype=torch.float64)
        basis, _ = torch.linalg.qr(times(start))
        basis, _ = torch.linalg.qr(times(transposed_times(basis)))
        rows = transposed_times(basis).transpose(1, 2)
        _, values, right = torch.linalg.svd(rows, full_matrices=False)
        leading: Tensor = values[:, :rank, None] * right[:, :rank]
        return leading


@dataclass(frozen=True)
class _Gaussians:
    """Proposals for B pairs with C modes each: precision I + J'J around the means."""

    mean: Tensor  # (B, C, length)
    jacobian: Tensor  # (B, C, rank, length), any J with that J'J
    factor: Tensor  # (B, C, rank, rank), Cholesky factor of I + J J'
    log_share: Tensor  # (B, C), log-weights of the modes

    @property
    def half_log_det(self) -> Tensor:
        return torch.diagonal(self.factor, dim1=-2, dim2=-1).log().sum(-1)


class Draws(NamedTuple):
    """Log-weights log [ N(z; 0, I) N(y; S_l(z)) / q(z | pair) ]."""

    proposed: Tensor  # one per draw
    known: Tensor  # one per known path


def draw_and_weigh(
    tail: Tail,
    clean: Tensor,
    points: Tensor,
    pair_of_draw: Tensor,
    known: Tensor,
    pair_of_known: Tensor,
    num_modes: int,
    generator: torch.Generator,
) -> Draws:
    """Proposes a path for every draw, and weighs it and every known path.

    clean (P, d_a), points (P, d_l): the pairs. known (Q, length). num_modes: searches
    for modes per pair; 0 proposes from the prior alone, and needs no derivatives.
    """
    proposed = torch.empty(len(pair_of_draw), dtype=torch.float64)
    weighed = torch.empty(len(pair_of_known), dtype=torch.float64)
    order = torch.argsort(pair_of_draw, stable=True)
    rows = tail.width if tail.is_dense else tail.rank + _OVERSAMPLING
    per_pair = max(1, num_modes * rows) * tail.length + tail.width
    step = max(1, _DOUBLES_AT_A_TIME // per_pair)
    ends = torch.searchsorted(
        pair_of_draw[order], torch.arange(step, len(clean) + step, step)
    )
    begin = 0
    for chunk, end in enumerate(ends.tolist()):
        pairs = slice(chunk * step, min((chunk + 1) * step, len(clean)))
        gaussians = None
        if num_modes > 0:
            gaussians = _find_modes(
                tail, clean[pairs], points[pairs], num_modes, generator
            )
        # Draws with their pair's Jacobian, gathered: bounded like the pairs.
        for some in torch.split(order[begin:end], step):
            if len(some) == 0:  # split gives one empty part for nothing
                continue
            pair = pair_of_draw[some] - pairs.start
            path = _draw(tail, gaussians, pair, generator)
            proposed[some] = _weigh(
                tail, gaussians, pair, clean[pairs], points[pairs], path
            )
        begin = end
        chosen = (pair_of_known >= pairs.start) & (pair_of_known < pairs.stop)
        for some in torch.split(torch.nonzero(chosen)[:, 0], step):
            if len(some) == 0:
                continue
            pair = pair_of_known[some] - pairs.start
            weighed[some] = _weigh(
                tail, gaussians, pair, clean[pairs], points[pairs], known[some]
            )
    return Draws(proposed, weighed)


def _draw(
    tail: Tail, gaussians: _Gaussians | None, pair: Tensor, generator: torch.Generator
) -> Tensor:
    """A path per entry of `pair`, independent draws of each pair's mixture."""
    shape = (len(pair), tail.length)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    if gaussians is None:
        return noise
    u = torch.rand(len(pair), generator=generator, dtype=torch.float64)
    shares = gaussians.log_share.exp().cumsum(1)[pair]
    mode = (torch.rand(len(pair), generator=generator)[:, None] > shares).sum(1)
    mode = mode.clamp_max(shares.shape[1] - 1)
    jacobian, factor = gaussians.jacobian[pair, mode], gaussians.factor[pair, mode]
    # e - J' G^-1 (J e + u) has covariance (I + J'J)^-1; only G = I + J J' is solved.
    extra = torch.randn(
        (len(pair), jacobian.shape[1]), generator=generator, dtype=torch.float64
    )
    along = torch.einsum("brl,bl->br", jacobian, noise) + extra
    solved = torch.cholesky_solve(along[..., None], factor)[..., 0]
    local = gaussians.mean[pair, mode] + noise
    local = local - torch.einsum("brl,br->bl", jacobian, solved)
    return torch.where((u < _PRIOR_SHARE)[:, None], noise, local)


def _weigh(
    tail: Tail,
    gaussians: _Gaussians | None,
    pair: Tensor,
    clean: Tensor,
    points: Tensor,
    path: Tensor,
) -> Tensor:
    prior = -0.5 * (path**2).sum(1)
    residual = (points[pair] - tail.output(clean[pair], path)) / tail.noise_std
    normaliser = 0.5 * tail.width * math.log(2 * math.pi * tail.noise_std**2)
    likelihood = -0.5 * (residual**2).sum(1) - normaliser
    if gaussians is None:
        return likelihood
    parts = [prior + math.log(_PRIOR_SHARE)]
    for mode in range(gaussians.mean.shape[1]):
        delta = path - gaussians.mean[pair, mode]
        along = torch.einsum("brl,bl->br", gaussians.jacobian[pair, mode], delta)
        squares = (delta**2).sum(1) + (along**2).sum(1)
        share = gaussians.log_share[pair, mode] + gaussians.half_log_det[pair, mode]
        parts.append(math.log1p(-_PRIOR_SHARE) + share - 0.5 * squares)
    return prior + likelihood - torch.logsumexp(torch.stack(parts), 0)


def _find_modes(
    tail: Tail,
    clean: Tensor,
    points: Tensor,
    num_modes: int,
    generator: torch.Generator,
) -> _Gaussians:
    """Gauss-Newton from z = 0 and from draws of the prior, and the Gaussians there."""
    count = len(clean)
    start = torch.zeros(count, num_modes, tail.length, dtype=torch.float64)
    start[:, 1:] = torch.randn(start[:, 1:].shape, generator=generator).double()
    repeated = clean.repeat_interleave(num_modes, 0)
    goals = points.repeat_interleave(num_modes, 0)
    search = _DenseSearch() if tail.is_dense else _ProductSearch(generator)
    mean, jacobian, objective = search.modes(
        tail, repeated, goals, start.reshape(count * num_modes, tail.length)
    )
    gram = jacobian @ jacobian.transpose(1, 2)
    gram.diagonal(dim1=1, dim2=2).add_(1.0)
    factor = torch.linalg.cholesky(gram)
    half_log_det = torch.diagonal(factor, dim1=1, dim2=2).log().sum(1)
    mass = (-0.5 * objective - half_log_det).reshape(count, num_modes)
    even = torch.full_like(mass, math.log(_FLOOR_OF_MODES / num_modes))
    share = torch.logaddexp(
        math.log1p(-_FLOOR_OF_MODES) + torch.log_softmax(mass, 1), even
    )
    return _Gaussians(
        mean.reshape(count, num_modes, -1),
        jacobian.reshape(count, num_modes, *jacobian.shape[1:]),
        factor.reshape(count, num_modes, *factor.shape[1:]),
        share,
    )


class _DenseSearch:
    """Gauss-Newton with the Jacobian as a matrix."""

    def modes(
        self, tail: Tail, clean: Tensor, points: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Modes (B, length), Jacobians (B, rank, length), objectives (B,)."""
        best = start.clone()
        jacobians = torch.zeros(len(clean), tail.rank, tail.length, dtype=torch.float64)
        least = torch.full((len(clean),), math.inf, dtype=torch.float64)
        trial, step = start.clone(), torch.zeros_like(start)
        active = torch.arange(len(clean))
        for _ in range(_NEWTON_STEPS):
            output, full = tail.jacobian(clean[active], trial[active])
            residual = (points[active] - output) / tail.noise_std
            z = trial[active]
            objective = (residual**2).sum(1) + (z**2).sum(1)
            better = objective <= least[active]
            gain = least[active] - objective
            won = active[better]
            short = self._shorten(full[better])
            jacobians[won], best[won], least[won] = short, z[better], objective[better]
            step[won] = (
                self._newton_target(full[better], short, residual[better], z[better])
                - z[better]
            )
            step[active[~better]] *= 0.5
            trial[active] = best[active] + step[active]
            is_long = (step[active] ** 2).sum(1) > _CONVERGED
            active = active[is_long & ~((gain >= 0) & (gain < _LITTLE_GAIN))]
            if len(active) == 0:
                break
        # A last step that is short, or was not tried: the mean may be anywhere.
        settled = (step**2).sum(1) <= _CONVERGED
        return torch.where(settled[:, None], trial, best), jacobians, least

    @staticmethod
    def _shorten(jacobian: Tensor) -> Tensor:
        """The Jacobian, or a triangle R with R'R = J'J where that has fewer rows."""
        if jacobian.shape[1] <= jacobian.shape[2]:
            return jacobian
        triangle: Tensor = torch.linalg.qr(jacobian, mode="r")[1]
        return triangle

    @staticmethod
    def _newton_target(
        full: Tensor, short: Tensor, residual: Tensor, z: Tensor
    ) -> Tensor:
        """(I + J'J)^-1 J'(residual + J z), by the identity of Woodbury."""
        along = residual + torch.einsum("bdl,bl->bd", full, z)
        b = torch.einsum("bdl,bd->bl", full, along)
        gram = short @ short.transpose(1, 2)
        gram.diagonal(dim1=1, dim2=2).add_(1.0)
        inner = torch.cholesky_solve(
            torch.einsum("brl,bl->br", short, b)[..., None], torch.linalg.cholesky(gram)
        )
        return b - torch.einsum("brl,br->bl", short, inner[..., 0])


class _ProductSearch:
    """Gauss-Newton by conjugate gradients, and a sketch of the Jacobian at the mode."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def modes(
        self, tail: Tail, clean: Tensor, points: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Modes (B, length), sketches (B, rank, length), objectives (B,)."""
        best, trial, step = start.clone(), start.clone(), torch.zeros_like(start)
        least = torch.full((len(clean), 1), math.inf, dtype=torch.float64)
        for _ in range(_NEWTON_STEPS):
            products = tail.products(clean, trial)
            residual = (points - products.output) / tail.noise_std
            objective = (residual**2).sum(1, keepdim=True)
            objective = objective + (trial**2).sum(1, keepdim=True)
            better = objective <= least
            best = torch.where(better, trial, best)
            least = torch.where(better, objective, least)
            b = products.transposed_times(residual + products.times(trial))
            step = torch.where(better, products.solve(b) - trial, 0.5 * step)
            trial = best + step
            if bool(((step**2).sum(1) <= _CONVERGED).all()):
                break
        jacobian = tail.products(clean, best).sketch(tail.rank, self._generator)
        return best, jacobian.contiguous(), least[:, 0]


@torch.no_grad()
def linear_log_densities(tail: Tail, clean: Tensor, points: Tensor) -> Tensor:
    """log p(y | S_a) of B pairs, exact where all layers after a are affine, (B,)."""
    if tail.length == 0:
        output, jacobian = clean, None
    else:
        path = torch.zeros(1, tail.length, dtype=torch.float64)
        output = tail.output(clean, path.expand(len(clean), -1))
        _, jacobian = tail.jacobian(clean[:1], path)
    factor = covariance_factor(tail, jacobian)
    white = torch.linalg.solve_triangular(factor, (points - output).T, upper=False)
    log_det = torch.diagonal(factor).log().sum()
    constant = 0.5 * tail.width * math.log(2 * math.pi)
    result: Tensor = -0.5 * (white**2).sum(0) - log_det - constant
    return result


def covariance_factor(tail: Tail, jacobian: Tensor | None) -> Tensor:
    """Cholesky factor (d_l, d_l) of noise_std^2 (I + J J')."""
    gram = torch.eye(tail.width, dtype=torch.float64)
    if jacobian is not None:
        gram = gram + jacobian[0] @ jacobian[0].T
    factor: Tensor = tail.noise_std * torch.linalg.cholesky(gram)
    return factor
