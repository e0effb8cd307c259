"""Second derivatives of the mixture's log-density, in plain torch: chunks of points.

With p_ij = w_j N(x_i; y_j, s^2 I) / exp(L_i), l_ij the logarithm of that term of the
sum, v a direction (a tangent of points, centers, noise_std and weights), and e_ij the
derivative of l_ij along v,

    E_i := derivative of L_i along v = sum_j p_ij e_ij,
    d/dtheta of sum_i g_i E_i = sum_ij g_i p_ij [(e_ij - E_i) dl_ij/dtheta
                                                 + de_ij/dtheta].

That is all of forward mode, of reverse over reverse, and of forward over reverse; and
torch can differentiate it again. All in float64, by direct differences: these are
differences of numbers that grow like the square of a distance in units of the noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor

# Pairs times dimensions at a time: 0.5 MB, and some ten of them at once. The best of
# 2^12 to 2^20 on a CPU with 2 MB of cache per core; the largest took 1.5 times as long.
_CHUNK = 2**16
# Of exp() where a center of weight 0 is nearer than all others. Weights from e^-300 up
# are not concerned, and products of a few such terms do not overflow.
_MOST_EXPONENT = 300.0


class Mixture(NamedTuple):
    """Where L is, or a tangent or cotangent of that, None where it is zero."""

    points: Any
    centers: Any
    noise_std: Any
    weights: Any


class _Chunk(NamedTuple):
    """Some of the points, with every center.

    differences x_i - y_j (c, n, d) and moves, those of the direction; squares
    |x_i - y_j|^2; ratios p_ij / w_j; slopes, e_ij without what the direction's weights
    add; mean, E_i.
    """

    rows: slice
    differences: Tensor
    moves: Tensor
    squares: Tensor
    ratios: Tensor
    slopes: Tensor
    mean: Tensor


def derivative_along(at: Mixture, along: Mixture) -> Tensor:
    """E (m,), in float64."""
    at = _completed(at)
    chunks = _chunks(at, _direction(along, at))
    return torch.cat([chunk.mean for chunk in chunks])


def gradient_along(
    grad_output: Tensor, at: Mixture, along: Mixture
) -> tuple[Tensor, Mixture]:
    """E (m,), and the gradient of sum_i grad_output[i] E[i]; in float64.

    O(m n d) time; O((m + n) d) memory unless torch records it, for a third derivative.
    """
    x, y, s, w = at = _completed(at)
    _, _, vs, vw = along = _direction(along, at)
    d = x.shape[1]
    means, grads_x = [], []
    grad_y, grad_s, grad_w = torch.zeros_like(y), y.new_zeros(()), torch.zeros_like(w)
    for chunk in _chunks(at, along):
        g = grad_output[chunk.rows, None].double()
        mass = g * w * chunk.ratios
        excess = g * chunk.ratios * (chunk.slopes - chunk.mean[:, None])
        change = w * excess + g * chunk.ratios * vw
        pairs = (2 * vs * mass / s**3 - change / s**2)[:, :, None] * chunk.differences
        pairs = pairs - (mass / s**2)[:, :, None] * chunk.moves
        inner = (chunk.moves * chunk.differences).sum(2)
        means.append(chunk.mean)
        grads_x.append(pairs.sum(1))
        grad_y = grad_y - pairs.sum(0)
        grad_w = grad_w + excess.sum(0)
        grad_s = (
            grad_s
            + (
                change * (chunk.squares / s**3 - d / s)
                + mass * (2 * inner / s**3 + vs * (d / s**2 - 3 * chunk.squares / s**4))
            ).sum()
        )
    return torch.cat(means), Mixture(torch.cat(grads_x), grad_y, grad_s, grad_w)


def cast_like(value: Tensor, other: Tensor) -> Tensor:
    """In the dtype and on the device of the other; at most its largest number."""
    most = torch.finfo(other.dtype).max
    return value.clamp(-most, most).to(other.device, other.dtype)


def _chunks(at: Mixture, along: Mixture) -> Iterator[_Chunk]:
    x, y, s, w = at
    vx, vy, vs, vw = along
    (m, d), n = x.shape, y.shape[0]
    step = max(1, _CHUNK // (n * d))
    for begin in range(0, max(m, 1), step):  # no points: one empty chunk
        rows = slice(begin, begin + step)
        differences = x[rows, None, :] - y
        moves = vx[rows, None, :] - vy
        squares = differences.square().sum(2)
        exponents = squares / (-2 * s**2)
        # Any reference will do, so none is differentiated. A weight of 0 is never one.
        top = (exponents + w.log()).amax(1, keepdim=True).detach()
        terms = (exponents - top).clamp(max=_MOST_EXPONENT).exp()
        ratios = terms / (terms * w).sum(1, keepdim=True)
        slopes = vs * (squares / s**3 - d / s) - (moves * differences).sum(2) / s**2
        mean = (ratios * (w * slopes + vw)).sum(1)
        yield _Chunk(rows, differences, moves, squares, ratios, slopes, mean)


def _completed(at: Mixture) -> Mixture:
    """In float64, with the weights that no weights stand for."""
    x, y, s, w = at
    y = y.double()
    w = y.new_full(y.shape[:1], 1 / y.shape[0]) if w is None else w.double()
    return Mixture(x.double(), y, s.double() if isinstance(s, Tensor) else s, w)


def _direction(along: Mixture, at: Mixture) -> Mixture:
    """In float64, with zeros."""
    shapes = (at.points.shape, at.centers.shape, (), at.weights.shape)
    return Mixture(
        *(
            at.centers.new_zeros(shape) if value is None else value.double()
            for value, shape in zip(along, shapes, strict=True)
        )
    )
