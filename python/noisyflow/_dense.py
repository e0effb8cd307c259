"""What has no kernel on a GPU: dense torch operations in pieces of bounded memory.

Differences are taken directly, as everywhere: squares of norms would cancel at small
noise. No matrix products: torch may be set to round their factors to 10 bits (TF32).
These functions run on any device, so that they are tested on the CPU against the
kernels there. Arguments are trusted.
"""

from __future__ import annotations

import math
import sys
from typing import Any

# Entries of the largest temporary array: 256 MiB in float32, a few of them at a time.
_MOST_ENTRIES = 2**26


def _log_weights(weights: Any, centers: Any) -> Any:
    """log w_j in float64; log 0 is -inf, a center that is never met."""
    torch = sys.modules["torch"]
    if weights is None:
        return torch.full_like(
            centers[:, 0], -math.log(len(centers)), dtype=torch.float64
        )
    return torch.log(weights.double())


def posterior_moments(
    points: Any, centers: Any, noise_std: float, weights: Any, unit: float
) -> tuple[Any, Any, Any]:
    """Log-density (m,), mean (m, d) and covariance (m, d, d) in units of `unit`.

    Exponents and moments are taken relative to the center that is nearest by squared
    distance and weight, so that neither loses digits where a point is far from all:
    |x - y|^2 - |x - r|^2 = (y - r).(y - r + 2 (r - x)).
    """
    torch = sys.modules["torch"]
    (m, d) = points.shape
    log_weights = _log_weights(weights, centers)
    log_density = points.new_empty((m,))
    mean = points.new_empty((m, d))
    covariance = points.new_empty((m, d, d))
    constant = d * math.log(noise_std) + 0.5 * d * math.log(2 * math.pi)
    half_precision = 0.5 / noise_std**2
    columns = max(1, min(len(centers), _MOST_ENTRIES // d))
    step = max(1, _MOST_ENTRIES // (max(columns, d) * d))  # second is (step, d, d)
    blocks = [slice(j, j + columns) for j in range(0, len(centers), columns)]
    for start in range(0, m, step):
        x = points[start : start + step]
        nearest = _nearest(x, centers, log_weights, half_precision, blocks)
        reference = centers[nearest]
        away = reference - x
        total = x.new_zeros((len(x),), dtype=torch.float64)
        first = x.new_zeros((len(x), d), dtype=torch.float64)
        second = x.new_zeros((len(x), d, d), dtype=torch.float64)
        for block in blocks:
            shift = centers[block] - reference[:, None]
            farther = (shift * (shift + 2 * away[:, None])).sum(dim=2)
            log_ratio = log_weights[block] - log_weights[nearest, None]
            weight = torch.exp(log_ratio - half_precision * farther.double())
            weighted = weight.to(x.dtype)[:, :, None] * shift
            total += weight.sum(dim=1)
            first += weighted.sum(dim=1, dtype=torch.float64)
            for k in range(d):
                products = weighted * shift[:, :, k, None]
                second[:, k] += products.sum(dim=1, dtype=torch.float64)
        first /= total[:, None]
        spread = second / total[:, None, None] - first[:, :, None] * first[:, None, :]
        part = slice(start, start + step)
        log_density[part] = (
            torch.log(total)
            + log_weights[nearest]
            - half_precision * (away.double() ** 2).sum(dim=1)
            - constant
        ).to(x.dtype)
        mean[part] = ((first + away.double()) / unit).to(x.dtype)
        covariance[part] = (spread / unit**2).to(x.dtype)
    return log_density, mean, covariance


def _nearest(
    x: Any, centers: Any, log_weights: Any, half_precision: float, blocks: list[slice]
) -> Any:
    """For each point the center of the largest term."""
    torch = sys.modules["torch"]
    best = x.new_full((len(x),), -math.inf, dtype=torch.float64)
    found = torch.zeros_like(best, dtype=torch.int64)
    for block in blocks:
        squares = ((centers[block] - x[:, None]) ** 2).sum(dim=2)
        terms = log_weights[block] - half_precision * squares.double()
        (value, index) = terms.max(dim=1)
        is_better = value > best
        best = torch.where(is_better, value, best)
        found = torch.where(is_better, index + block.start, found)
    return found


def covariance_log_density(
    points: Any, centers: Any, whitening: Any, weights: Any
) -> Any:
    """log sum_j w_j N(x_i; mu_j, Sigma_j) with A_j Sigma_j A_j' = I; (m,)."""
    torch = sys.modules["torch"]
    (m, d) = points.shape
    diagonal = whitening.diagonal(dim1=1, dim2=2).double()
    log_scale = _log_weights(weights, centers) + torch.log(diagonal).sum(dim=1)
    log_scale -= 0.5 * d * math.log(2 * math.pi)
    result = points.new_empty((m,))
    columns = max(1, min(len(centers), _MOST_ENTRIES // d))
    step = max(1, _MOST_ENTRIES // (columns * d))
    for start in range(0, m, step):
        x = points[start : start + step]
        parts = []
        for j in range(0, len(centers), columns):
            block = slice(j, j + columns)
            difference = x[:, None] - centers[block]
            squares = torch.zeros_like(difference[..., 0], dtype=torch.float64)
            for row in range(d):
                factors = whitening[block, row, : row + 1]
                white = (factors * difference[..., : row + 1]).sum(dim=2)
                squares += white.double() ** 2
            parts.append(torch.logsumexp(log_scale[block] - 0.5 * squares, dim=1))
        log_sum = torch.logsumexp(torch.stack(parts, dim=1), dim=1)
        result[start : start + step] = log_sum.to(x.dtype)
    return result
