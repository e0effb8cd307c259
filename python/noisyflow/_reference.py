"""The specification: what every kernel computes, in plain NumPy and float64.

Kernels are optimisations of these functions and are tested against them. Nothing here
is fast, and memory is O(m n d). The one rule: direct differences, never |x|^2 + |y|^2 -
2 x.y, which loses all digits at small noise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def _log_terms(
    points: Array, centers: Array, noise_std: float, weights: Array | None
) -> Array:
    """log( w_j N(x_i; y_j, noise_std^2 I) ), (m, n)."""
    points = np.asarray(points, np.float64)
    centers = np.asarray(centers, np.float64)
    (n, d) = centers.shape
    squares = ((points[:, None, :] - centers[None, :, :]) ** 2).sum(axis=2)
    exponents = -squares / (2 * noise_std**2)
    with np.errstate(divide="ignore"):
        log_weights = (
            np.full(n, -np.log(n))
            if weights is None
            else np.log(np.asarray(weights, np.float64))
        )
    normaliser = 0.5 * d * np.log(2 * np.pi * noise_std**2)
    return np.asarray(exponents + log_weights - normaliser)


def _log_sum_exp(terms: Array, where: NDArray[np.bool_]) -> Array:
    """log sum over axis 1 of the chosen terms; -inf where none is chosen."""
    terms = np.where(where, terms, -np.inf)
    top = terms.max(axis=1, initial=-np.inf)
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(terms - shift[:, None]).sum(axis=1)) + shift)


def mixture_log_density(
    points: Array, centers: Array, noise_std: float, weights: Array | None = None
) -> Array:
    """log sum_j w_j N(x_i; y_j, noise_std^2 I), (m,), nats; w_j = 1/n by default."""
    terms = _log_terms(points, centers, noise_std, weights)
    return _log_sum_exp(terms, np.ones(terms.shape, bool))


def gaussian_mixture_log_density(
    points: Array, centers: Array, whitening: Array, weights: Array | None = None
) -> Array:
    """log sum_j w_j N(x_i; mu_j, Sigma_j), (m,), nats; w_j = 1/n by default.

    whitening: (n, d, d), A_j lower triangular with A_j Sigma_j A_j' = I, so that a
    component's squared distance is |A_j (x - mu_j)|^2 and det Sigma_j = det(A_j)^-2.
    """
    points = np.asarray(points, np.float64)
    centers = np.asarray(centers, np.float64)
    factors = np.asarray(whitening, np.float64)
    (n, d) = centers.shape
    differences = points[:, None, :] - centers[None, :, :]
    squares = (np.einsum("jrk,ijk->ijr", factors, differences) ** 2).sum(axis=2)
    log_dets = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
    w = np.full(n, 1 / n) if weights is None else np.asarray(weights, np.float64)
    with np.errstate(divide="ignore"):
        log_weights = np.log(w)
    terms = log_weights + log_dets - 0.5 * d * np.log(2 * np.pi) - 0.5 * squares
    return _log_sum_exp(terms, np.ones(terms.shape, bool))


def posterior_moments(
    points: Array, centers: Array, noise_std: float, weights: Array | None = None
) -> tuple[Array, Array, Array]:
    """The log-density, (m,), and mean and covariance of the center given the point.

    p_ij = w_j N(x_i; y_j, noise_std^2 I) / g(x_i); mean sum_j p_ij (y_j - x_i), (m, d),
    and covariance sum_j p_ij (y_j - x_i)(y_j - x_i)' - mean mean', (m, d, d).
    """
    terms = _log_terms(points, centers, noise_std, weights)
    log_density = _log_sum_exp(terms, np.ones(terms.shape, bool))
    posterior = np.exp(terms - log_density[:, None])
    posterior /= posterior.sum(axis=1, keepdims=True)
    differences = (
        np.asarray(centers, np.float64) - np.asarray(points, np.float64)[:, None, :]
    )
    mean = np.einsum("ij,ijk->ik", posterior, differences)
    # About the mean itself: nothing cancels.
    differences -= mean[:, None, :]
    covariance = np.einsum("ij,ijk,ijl->ikl", posterior, differences, differences)
    return log_density, mean, covariance


def log_density_gradients(
    points: Array,
    centers: Array,
    noise_std: float,
    weights: Array | None,
    log_density: Array,
    grad_output: Array,
    want_points: bool = True,
    want_centers: bool = True,
    want_weights: bool = True,
    want_noise_std: bool = True,
    max_lost_mass: float = 0.0,
    num_threads: int = 1,
) -> tuple[Array | None, Array | None, Array | None, float | None]:
    """Gradients of sum_i grad_output[i] log_density[i], None where not wanted.

    With p_ij = w_j N(x_i; y_j, noise_std^2 I) / g(x_i), which sums to 1 over j, and
    s = noise_std,

        points[i]  = grad_output[i] sum_j p_ij (y_j - x_i) / s^2             (m, d)
        centers[j] = sum_i grad_output[i] p_ij (x_i - y_j) / s^2             (n, d)
        weights[j] = sum_i grad_output[i] N(x_i; y_j, s^2 I) / g(x_i)        (n,)
        noise_std  = sum_i grad_output[i] sum_j p_ij (|x_i - y_j|^2 / s^3 - d / s).

    Weights are free parameters: what keeps their sum at 1 is the caller's. A gradient
    with respect to one of weight zero may be larger than any number, and is the largest
    then. The last two parameters are the kernels'; log_density, too: here it is found
    again. Memory is O((m + n) d) beside a constant.
    """
    points = np.asarray(points, np.float64)
    centers = np.asarray(centers, np.float64)
    grad_output = np.asarray(grad_output, np.float64)
    (m, d), n = points.shape, len(centers)
    variance = float(noise_std) ** 2
    log_normaliser = 0.5 * d * np.log(2 * np.pi * variance)
    grad_points, grad_centers = np.zeros((m, d)), np.zeros((n, d))
    grad_weights, units, grad_noise_std = np.zeros(n), np.full(n, -np.inf), 0.0
    step = max(1, 2**21 // (n * d))
    for begin in range(0, m, step):
        x, g = points[begin : begin + step], grad_output[begin : begin + step]
        terms = _log_terms(x, centers, noise_std, weights)
        found = _log_sum_exp(terms, np.ones(terms.shape, bool))
        posterior = g[:, None] * np.exp(terms - found[:, None])
        differences = centers[None, :, :] - x[:, None, :]
        squares = (differences**2).sum(axis=2)
        along = posterior[:, :, None] * differences
        grad_points[begin : begin + step] = along.sum(axis=1) / variance
        grad_centers -= along.sum(axis=0) / variance
        grad_noise_std += float((posterior * (squares / variance - d)).sum())
        kernels = -squares / (2 * variance) - log_normaliser - found[:, None]
        # In units of the largest term, which may be larger than any number.
        top = np.maximum(units, kernels.max(axis=0))
        grad_weights = grad_weights * np.exp(units - top) + g @ np.exp(kernels - top)
        units = top
    most = np.finfo(np.float64).max
    with np.errstate(over="ignore", invalid="ignore"):
        grad_weights = np.clip(grad_weights * np.exp(units), -most, most)
    grad_weights[np.isnan(grad_weights)] = 0  # none at all of what would be infinite
    return (
        grad_points if want_points else None,
        grad_centers if want_centers else None,
        grad_weights if want_weights else None,
        grad_noise_std / float(noise_std) if want_noise_std else None,
    )


def mixture_block_log_sums(
    points: Array,
    centers: Array,
    noise_std: float,
    own: NDArray[np.integer],
    offsets: NDArray[np.integer],
    outer_offsets: NDArray[np.integer] | None = None,
    weights: Array | None = None,
) -> tuple[Array, Array, Array, Array]:
    """The mixture's sum at each point, split by the point's own block of centers.

    Block b holds the centers offsets[b] .. offsets[b+1]-1; outer blocks are unions of
    consecutive blocks, by default the same blocks. Point i belongs to center own[i],
    and

        own_center[i] = log of that center's term,
        inner[i]      = log sum over the other centers of its block,
        outer[i]      = log sum over its outer block without its block,
        rest[i]       = log sum over all other centers,

    so that the mixture's log-density is the log-sum-exp of the four.
    """
    terms = _log_terms(points, centers, noise_std, weights)
    (n,) = terms.shape[1:]
    own = np.asarray(own)
    outer_offsets = offsets if outer_offsets is None else outer_offsets
    block = np.searchsorted(offsets, np.arange(n), side="right")
    outer_block = np.searchsorted(outer_offsets, np.arange(n), side="right")
    is_own = np.arange(n)[None, :] == own[:, None]
    is_inner = block[None, :] == block[own][:, None]
    is_outer = outer_block[None, :] == outer_block[own][:, None]
    return (
        _log_sum_exp(terms, is_own),
        _log_sum_exp(terms, is_inner & ~is_own),
        _log_sum_exp(terms, is_outer & ~is_inner),
        _log_sum_exp(terms, ~is_outer),
    )


# -- path importance -----------------------------------------------------------------


class _Network(NamedTuple):
    """Layers 2 .. l, given S_1; `slope` is the derivative, from the output."""

    weights: list[Array]
    biases: list[Array]
    activation: str
    noise_std: float

    def activate(self, values: Array) -> Array:
        outputs: dict[str, Array] = {
            "linear": values,
            "tanh": np.tanh(values),
            "sigmoid": 1 / (1 + np.exp(-values)),
            "relu": np.maximum(values, 0),
            "leaky_relu": np.where(values < 0, 0.01 * values, values),
        }
        return outputs[self.activation]

    def slope(self, output: Array) -> Array:
        slopes: dict[str, Array] = {
            "linear": np.ones_like(output),
            "tanh": 1 - output**2,
            "sigmoid": output * (1 - output),
            "relu": (output > 0).astype(float),
            "leaky_relu": np.where(output > 0, 1.0, 0.01),
        }
        return slopes[self.activation]

    def linearise(self, first: Array, z: Array) -> tuple[Array, Array]:
        """S_l (d,) at noise path z (L,), and its Jacobian (d, L) per noise_std."""
        output = first
        jacobian = np.zeros((len(first), 0))
        for w, b in zip(self.weights, self.biases, strict=True):
            width, seen = len(output), jacobian.shape[1]
            hidden = output + self.noise_std * z[seen : seen + width]
            jacobian = np.hstack([jacobian, np.eye(width)])
            output = self.activate(w @ hidden + b)
            jacobian = self.slope(output)[:, None] * (w @ jacobian)
        return output, jacobian

    def find_proposal(self, first: Array, y: Array) -> tuple[Array, Array, Array]:
        """Mean, J and G = I + J J' of the Gaussian proposal for z given x and y.

        Gauss-Newton on |y - S(z)|^2 / noise_std^2 + |z|^2 from z = 0. A step that does
        not improve is halved; a step shorter than 0.03 is the last.
        """
        num_steps, converged = 6, 1e-3
        length = sum(w.shape[1] for w in self.weights)
        best, trial, step = np.zeros(length), np.zeros(length), np.zeros(length)
        least = np.inf
        for _ in range(num_steps):
            output, jacobian = self.linearise(first, trial)
            residual = (y - output) / self.noise_std
            g = np.eye(len(y)) + jacobian @ jacobian.T
            target = jacobian.T @ np.linalg.solve(g, residual + jacobian @ trial)
            objective = residual @ residual + trial @ trial
            if objective <= least:
                best, step, least = trial, target - trial, objective
                if step @ step < converged:
                    return target, jacobian, g
            else:
                step = 0.5 * step
            trial = best + step
        _, jacobian = self.linearise(first, best)
        return best, jacobian, np.eye(len(y)) + jacobian @ jacobian.T

    def log_densities(
        self, first: Array, y: Array, z: Array, proposal: tuple[Array, Array, Array]
    ) -> tuple[float, float, float]:
        """Of prior, prior x likelihood, and proposal at z, without (2 pi)^(-L/2)."""
        mean, jacobian, g = proposal
        output, _ = self.linearise(first, z)
        residual = (y - output) / self.noise_std
        prior = -0.5 * z @ z
        normaliser = 0.5 * len(y) * np.log(2 * np.pi * self.noise_std**2)
        delta = z - mean
        along = jacobian @ delta
        gaussian = 0.5 * np.linalg.slogdet(g)[1] - 0.5 * (delta @ delta + along @ along)
        target = prior - 0.5 * residual @ residual - normaliser
        return float(prior), float(target), float(gaussian)


def path_importance(
    weights: list[Array],
    biases: list[Array],
    activation: str,
    noise_std: float,
    first: Array,
    points: Array,
    own: NDArray[np.integer],
    path: Array,
    groups: NDArray[np.integer],
    uniforms: Array,
    normals: Array,
) -> tuple[Array, Array, Array]:
    """Both sides of log p(t_l | X in group), and effective sample sizes, each (G, N).

    weights, biases: of layers 2 .. l. first (m, d_1): S_1 of all inputs. points (N,
    d_l): made by input own[i] and the noise path[i] (L,). groups (G, N, 2): ranges of
    inputs. uniforms (N, K + 2), normals (N, K, L + d_l): the proposals' randomness. The
    estimator is described in docs/design.md; K proposals are strata whose mixture is
    the density that a weight is divided by.
    """
    network = _Network(weights, biases, activation, noise_std)
    rest = np.zeros(path.shape[1])
    linear = [network.linearise(row, rest) for row in first]
    shape = groups.shape[:2]
    lower, upper, effective = np.empty(shape), np.empty(shape), np.empty(shape)
    for g, i in np.ndindex(shape):
        lower[g, i], upper[g, i], effective[g, i] = _path_sides(
            *(network, first, linear, points[i], int(own[i]), path[i]),
            *(range(*groups[g, i]), uniforms[i], normals[i]),
        )
    return lower, upper, effective


def _path_sides(
    network: _Network,
    first: Array,
    linear: list[tuple[Array, Array]],
    y: Array,
    own: int,
    path: Array,
    group: range,
    uniforms: Array,
    normals: Array,
) -> tuple[float, float, float]:
    """Both sides of log p(y | X in group), and the effective sample size."""
    k_all, length, size = len(normals), len(path), len(group)
    counts = [0, max(1, k_all // 8), max(1, k_all // 16), max(1, k_all // 16)]
    counts[0] = k_all - sum(counts)
    # Kinds of strata: input from r plain or flat, z from the Gaussian or the prior.
    kind_of = np.repeat(np.arange(4), counts)
    place_of = np.concatenate([np.arange(count) for count in counts])

    # r: the posterior of the input, were the network linear.
    log_r = np.full(len(first), -np.inf)
    for x in group:
        output, jacobian = linear[x]
        gram = np.eye(len(y)) + jacobian @ jacobian.T
        white = (y - output) / network.noise_std
        squares = white @ np.linalg.solve(gram, white)
        log_r[x] = -0.5 * (squares + np.linalg.slogdet(gram)[1])

    def distribution(power: float, uniform_share: float) -> tuple[Array, Array]:
        """Over inputs, proportional to e^(power log_r) but for a uniform share."""
        below = power * (log_r.max() - log_r)
        weights = np.where(below < 45, np.exp(-below), 0.0)
        weights *= (1 - uniform_share) / weights.sum()
        weights[group.start : group.stop] += uniform_share / size
        return weights, np.concatenate([[0.0], np.cumsum(weights)])

    # The flattened r is for points far off every input's linearised layer.
    (r, before), (r_flat, before_flat) = distribution(1, 0), distribution(0.125, 0.25)

    def at_quantile(sums: Array, u: float) -> int:
        x = int(np.searchsorted(sums, u, side="right")) - 1
        return min(max(x, group.start), group.stop - 1)

    def weigh(x: int, z: Array, proposal: tuple[Array, Array, Array]) -> Any:
        """Log-weight of (x, z), and K times the density of each kind of strata."""
        prior, target, gaussian = network.log_densities(first[x], y, z, proposal)
        top = max(gaussian, prior)
        kinds = np.exp(np.array([gaussian, gaussian, prior, prior]) - top)
        kinds *= np.array(counts) * [r[x], r_flat[x], r[x], r_flat[x]]
        return target - np.log(size) - top - np.log(kinds.sum() / k_all), kinds

    def log_mean(log_weights: Array) -> float:
        top = log_weights.max()
        return float(top + np.log(np.exp(log_weights - top).mean()))

    log_weights = np.empty(k_all)
    for k in range(k_all):
        z: Array = normals[k, :length]
        u = normals[k, length:]
        kind = kind_of[k]
        quantile = (place_of[k] + uniforms[k]) / counts[kind]
        x = at_quantile(before if kind in (0, 2) else before_flat, quantile)
        mean, jacobian, g = proposal = network.find_proposal(first[x], y)
        if kind < 2:
            z = mean + z - jacobian.T @ np.linalg.solve(g, jacobian @ z + u)
        log_weights[k] = weigh(x, z, proposal)[0]
    lower = log_mean(log_weights)
    w = np.exp(log_weights - log_weights.max())
    effective = float(w.sum() ** 2 / (w**2).sum() / k_all)

    # The path that made y replaces one stratum, chosen by its share of the mixture.
    own_log_weight, kinds = weigh(own, path, network.find_proposal(first[own], y))
    kind = int(np.searchsorted(np.cumsum(kinds), uniforms[k_all] * kinds.sum()))
    u = uniforms[k_all + 1]
    by_r, by_flat = before[own] + u * r[own], before_flat[own] + u * r_flat[own]
    place = int((by_r if kind in (0, 2) else by_flat) * counts[kind])
    log_weights[sum(counts[:kind]) + min(place, counts[kind] - 1)] = own_log_weight
    return lower, log_mean(log_weights), effective


def path_replicas(
    weights: list[Array],
    biases: list[Array],
    activation: str,
    noise_std: float,
    first: Array,
    points: Array,
    own: NDArray[np.integer],
    path: Array,
    normals: Array,
    offsets: NDArray[np.integer],
    num_draws: int,
) -> tuple[Array, Array, Array]:
    """Both sides of log p(t_l | own input), and effective sample sizes, each (N,).

    As `path_importance` with the prior as the only proposal: the noise paths of point i
    are num_draws columns of normals (L, P), from offsets[i] on; for the upper side
    path[i] takes the place of the last.
    """
    network = _Network(weights, biases, activation, noise_std)
    sides = np.empty((3, len(points)))
    for i, (y, x) in enumerate(zip(points, own, strict=True)):
        draws = normals[:, offsets[i] : offsets[i] + num_draws].T
        noise = np.vstack([draws, path[i]])
        clean = np.array([network.linearise(first[x], z)[0] for z in noise])
        terms = -0.5 * (((y - clean) / noise_std) ** 2).sum(axis=1)
        terms -= 0.5 * len(y) * np.log(2 * np.pi * noise_std**2) + np.log(num_draws)
        without, included = np.delete(terms, -1), np.delete(terms, -2)
        w = np.exp(without - without.max())
        sides[:, i] = (
            np.logaddexp.reduce(without),
            np.logaddexp.reduce(included),
            w.sum() ** 2 / (w**2).sum() / num_draws,
        )
    return sides[0], sides[1], sides[2]
