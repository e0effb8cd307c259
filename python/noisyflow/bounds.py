"""Bounds of a mixture's entropy without random numbers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisyflow import _arrays, _device
from noisyflow._device_mixture import DeviceRows, host_weights, mixture_of
from noisyflow._rows import AbstractRows
from noisyflow.mixture import mixture_log_density
from noisyflow.prepared import checked_max_lost_mass

Floats = NDArray[np.float64]
Points = NDArray[np.floating]


class EntropyBounds(NamedTuple):
    """Bounds of a mixture's differential entropy, in nats."""

    lower: float
    upper: float


def entropy_bounds(
    centers: Any, noise_std: float, *, weights: Any = None
) -> EntropyBounds:
    """Bounds of the mixture's differential entropy h(g), without random numbers.

    Choose them for an instant preview of `entropy`, or to check it; they bound its
    plug-in value, not its sampling error. With c = (d/2) log(2 pi e noise_std^2) and
    k_a(i) = log sum_j w_j exp(-|s_i - s_j|^2 / (a noise_std^2)), `lower` is the largest
    of

    - c - sum_i w_i k_8(i), pairwise distances, Chernoff-1/2 (Kolchinsky and Tracey)
    - c - d/2 (1 - log 2) - sum_i w_i k_4(i), expected likelihood (Huber et al.)

    and `upper` the smallest of

    - c - sum_i w_i k_2(i), pairwise distances, Kullback-Leibler (Kolchinsky and Tracey)
    - c - sum_i w_i log w_i, components that do not overlap (Huber et al.)
    - 1/2 log det(2 pi e (noise_std^2 I + Cov S)), the Gaussian of equal covariance

    Parameters
    ----------
    centers : (n, d) array
        Component means s_j. NumPy array or torch tensor, float32 or float64.
    noise_std : float
        Standard deviation of every component, in the units of `centers`. Positive.
    weights : (n,) array, optional
        Component weights, non-negative, summing to 1. Uniform by default.

    Returns
    -------
    EntropyBounds
        `lower` and `upper`, in nats, each within log n of h(g); both exact where any
        two components coincide or lie far apart.

    Raises
    ------
    ValueError, TypeError
        If an argument has the wrong shape, type or range.

    Notes
    -----
    Cost O(n^2 d + n d^2 + d^3) time, O(n d + d^2) memory. Deterministic.

    Sources: Kolchinsky and Tracey (2017), "Estimating Mixture Entropy with Pairwise
    Distances", Entropy 19, 361; Huber, Bailey, Durrant-Whyte, Hanebeck (2008), "On
    Entropy Approximation for Gaussian Mixture Random Vectors".

    Examples
    --------
    >>> import numpy as np
    >>> lower, upper = entropy_bounds(np.zeros((5, 3)), noise_std=1.0)
    >>> round(lower, 4), round(upper, 4)
    (4.2568, 4.2568)
    """
    (centers, noise_std, weights) = checked_mixture(centers, noise_std, weights)
    _arrays.check_resolution("centers", centers, noise_std)
    (n, d) = centers.shape
    probabilities = np.full(n, 1 / n) if weights is None else as_probabilities(weights)
    own = noise_entropy(d, noise_std)

    def mean_log_kernel(pair_std: float) -> float:
        """sum_i w_i log sum_j w_j exp(-|s_i - s_j|^2 / (2 pair_std^2))."""
        if isinstance(centers, DeviceRows):
            mixture = mixture_of(centers, pair_std, weights)
            log_density = _device.mixture_log_density(
                mixture,
                centers.tensor,
                checked_max_lost_mass(None, centers.dtype),
            ).cpu()
        else:
            log_density = mixture_log_density(
                centers, centers, pair_std, weights=weights
            )
        log_constant = 0.5 * d * math.log(2 * math.pi) + d * math.log(pair_std)
        mean = np.dot(probabilities, np.asarray(log_density, np.float64))
        return float(mean + log_constant)

    lower = own - min(
        mean_log_kernel(2 * noise_std),
        0.5 * d * (1 - math.log(2)) + mean_log_kernel(math.sqrt(2) * noise_std),
    )
    met = probabilities[probabilities > 0]
    upper = min(
        own - mean_log_kernel(noise_std),
        own - float(met @ np.log(met)),
        own + _gaussian_information(centers, noise_std, probabilities),
    )
    return EntropyBounds(lower=min(lower, upper), upper=upper)  # but for rounding


def _gaussian_information(
    centers: Any, noise_std: float, probabilities: Floats
) -> float:
    """1/2 log det(I + Cov S / noise_std^2), the most that S + Z can tell of S."""
    if isinstance(centers, DeviceRows):
        share = _device.upload(probabilities, centers.tensor)
        rows = centers.tensor.double() / noise_std
        rows = rows - share @ rows
        covariance = ((share[:, None] * rows).T @ rows).cpu().numpy()
    else:
        scaled = np.asarray(centers, np.float64) / noise_std
        scaled = scaled - probabilities @ scaled
        covariance = (probabilities[:, None] * scaled).T @ scaled
    eigenvalues = np.linalg.eigvalsh(covariance)
    return 0.5 * float(np.log1p(np.maximum(eigenvalues, 0)).sum())


def noise_entropy(d: int, noise_std: float) -> float:
    """(d/2) log(2 pi e noise_std^2), without squaring a small noise_std."""
    return d * (0.5 * math.log(2 * math.pi * math.e) + math.log(noise_std))


def checked_mixture(
    centers: Any, noise_std: Any, weights: Any
) -> tuple[Any, float, Points | None]:
    """Centers, noise and weights at the door of a public function.

    Centers on a GPU stay there, as `DeviceRows`; weights always come to the host.
    """
    if isinstance(centers, AbstractRows):  # checked
        if weights is not None:
            weights = _arrays.as_weights(weights, len(centers), centers.dtype)
        return centers, _arrays.check_noise_std(noise_std, centers.dtype), weights
    if _device.is_any_on_device(centers, weights):
        rows = DeviceRows.checked("centers", centers)
        noise_std = _arrays.check_noise_std(noise_std, rows.dtype)
        if weights is not None:
            weights = host_weights(weights, rows)
        return rows, noise_std, weights
    centers = _arrays.as_matrix("centers", centers)
    noise_std = _arrays.check_noise_std(noise_std, centers.dtype)
    if weights is not None:
        weights = _arrays.as_weights(weights, len(centers), centers.dtype)
    return centers, noise_std, weights


def as_probabilities(weights: Points) -> Floats:
    """The weights in float64, summing to 1."""
    exact = np.asarray(weights, np.float64)
    return np.asarray(exact / exact.sum())
