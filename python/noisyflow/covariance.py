"""Gaussian mixtures whose components have their own covariance."""

from __future__ import annotations

from typing import Any

import numpy as np

from noisyflow import _arrays, _core, _device
from noisyflow._dense import covariance_log_density
from noisyflow.runtime import num_threads

_MAX_DIM = 32  # kMaxCovarianceDim in csrc/core/views.h


def gaussian_mixture_log_density(
    points: Any, centers: Any, whitening: Any, *, weights: Any = None
) -> Any:
    """Log-density of a Gaussian mixture, log sum_j w_j N(x_i; mu_j, Sigma_j).

    Every component has its own covariance, given by a triangular factor A_j that makes
    it white: A_j Sigma_j A_j' = I. `whitening_from_covariances` computes the factors.
    Where all covariances are noise_std^2 I, `mixture_log_density` is faster.

    Parameters
    ----------
    points : (m, d) array
        Where to evaluate, d at most 32. NumPy array or torch tensor, float32 or
        float64.
    centers : (n, d) array
        Component means mu_j; same library, dtype and device as `points`.
    whitening : (n, d, d) array
        The factors A_j: lower triangular with a positive diagonal, in units of
        1 / `points`; same library and dtype as `points`.
    weights : (n,) array, optional
        Component weights, not negative, summing to 1. Uniform by default.

    Returns
    -------
    (m,) array
        In nats; same library and dtype as `points`. Finite even where the density
        itself would underflow.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or library or dtype differ.
    ValueError
        If shapes disagree, d is above 32, a value is not finite, a factor is not lower
        triangular or its diagonal not positive, `weights` do not sum to 1, or distances
        overflow the dtype.

    Notes
    -----
    Cost O(m n d^2) time, O(m + n d^2) memory beyond the arrays: a packed copy of the
    factors. Direct differences, and log-determinants that enter exactly. Error for
    covariances of condition number up to 10, standard deviations from 0.005 to 1 and
    data in [-1, 1]^d: 1e-5 nats in float32 for d up to 10, 2e-5 up to 32. A larger
    condition number multiplies the error, as for any method that is given A_j in the
    same precision. Deterministic; the number of threads does not change the result.

    Source: the component densities of Goldfeld et al. (2019), "Estimating Information
    Flow in Deep Neural Networks", for layers linearised around every input.

    Examples
    --------
    >>> import numpy as np
    >>> points, centers = np.zeros((1, 2)), np.array([[0.0, 0.0], [1.0, 0.0]])
    >>> whitening = np.array([[[1.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [1.0, 1.0]]])
    >>> gaussian_mixture_log_density(points, centers, whitening)
    array([-1.75898733])
    """
    if _device.is_any_on_device(points, centers, whitening, weights):
        return _on_device(points, centers, whitening, weights)
    x, y = _arrays.as_point_pair(points, centers)
    (n, d) = y.shape
    _check_dim(d)
    factors = _as_factors(whitening, n, d)
    _arrays.check_same_kind("whitening", whitening, "centers", centers)
    w = None if weights is None else _arrays.as_weights(weights, n, y.dtype)
    _check_range(_largest(x) + _largest(y), _largest(factors), d, y.dtype)
    result = _core.covariance_log_density(
        *(x, y, factors),
        None if w is None else np.ascontiguousarray(w),
        num_threads(),
    )
    _arrays.check_representable("the log-density", result, allow_minus_inf=False)
    return _arrays.same_library(result, points)


def _on_device(points: Any, centers: Any, whitening: Any, weights: Any) -> Any:
    """The log-density of tensors on one GPU, by torch operations there.

    The factors are checked on the host, once for every call.
    """
    _device.refuse_gradients(
        points=points, centers=centers, whitening=whitening, weights=weights
    )
    mixture = _device.Mixture.of(centers, 1.0, weights)
    (x, (n, d)) = (mixture.points(points), mixture.centers.shape)
    _check_dim(d)
    _device.require_alike("whitening", whitening, mixture.centers)
    factors = _as_factors(_device.on_host(whitening), n, d)
    largest = mixture.check(x, {})
    _check_range(sum(largest), _largest(factors), d, factors.dtype)
    with _device.memory_hint("fewer points or centers in a call need less"):
        result = covariance_log_density(x, mixture.centers, whitening, mixture.weights)
    mixture.check(x, {"the log-density": result})
    return result


def _check_dim(d: int) -> None:
    if d > _MAX_DIM:
        raise ValueError(
            f"points must have at most {_MAX_DIM} dimensions, got {d}; "
            "project them first, or use mixture_log_density"
        )


def whitening_from_covariances(covariances: Any) -> Any:
    """Lower-triangular A_j with A_j Sigma_j A_j' = I, inverses of Cholesky factors.

    Parameters
    ----------
    covariances : (n, d, d) array
        Symmetric positive definite Sigma_j. NumPy array or torch tensor, float32 or
        float64.

    Returns
    -------
    (n, d, d) array
        Positive diagonals, zeros above them; same library, dtype and device. Computed
        in float64, on the host.

    Raises
    ------
    TypeError
        If the array is not float32 or float64.
    ValueError
        If the shape is not (n, d, d), a value is not finite, or a matrix is not
        symmetric.
    numpy.linalg.LinAlgError
        If a matrix is not positive definite; the first such is named. (A ValueError,
        too.)

    Notes
    -----
    Cost O(n d^3) time, O(n d^2) memory.

    Examples
    --------
    >>> import numpy as np
    >>> whitening_from_covariances(np.array([[[4.0, 2.0], [2.0, 2.0]]]))
    array([[[ 0.5,  0. ],
            [-0.5,  1. ]]])
    """
    given = _as_matrices("covariances", _device.on_host(covariances))
    _check_finite("covariances", given)
    sigma = given.astype(np.float64)
    with np.errstate(over="ignore"):  # infinity is no rounding
        asymmetry = np.abs(sigma - sigma.swapaxes(1, 2)).max(axis=(1, 2), initial=0)
    # What rounding of sums in another order leaves; a mistaken matrix is far beyond.
    allowed = 1e3 * np.finfo(given.dtype).eps * np.abs(sigma).max(axis=(1, 2))
    if (asymmetry > allowed).any():
        at = int((asymmetry > allowed).argmax())
        raise ValueError(
            f"covariances must be symmetric, got covariances[{at}] with entries that "
            f"differ from their mirror images by up to {asymmetry[at]:.3g}"
        )
    factors = _inverses(_cholesky_factors(sigma)).astype(given.dtype)
    if _device.is_on_device(covariances):
        return _device.upload(factors, covariances)
    return _arrays.same_library(factors, covariances)


def _cholesky_factors(sigma: Any) -> Any:
    try:
        return np.linalg.cholesky(sigma)
    except np.linalg.LinAlgError:
        for j, matrix in enumerate(sigma):
            try:
                np.linalg.cholesky(matrix)
            except np.linalg.LinAlgError:
                lowest = float(np.linalg.eigvalsh(matrix)[0])
                raise np.linalg.LinAlgError(
                    f"covariances[{j}] is not positive definite, "
                    f"its lowest eigenvalue is {lowest:.3g}"
                ) from None
        raise


def _inverses(lower: Any) -> Any:
    """Inverses of lower-triangular matrices, by forward substitution."""
    inverse = np.zeros_like(lower)
    for r in range(lower.shape[1]):
        inverse[:, r, r] = 1 / lower[:, r, r]
        above = np.einsum("jk,jkc->jc", lower[:, r, :r], inverse[:, :r, :r])
        inverse[:, r, :r] = -inverse[:, r, r, None] * above
    return inverse


def _as_matrices(name: str, value: Any) -> Any:
    """An (n, d, d) array, contiguous; copied only if it must be."""
    array = _arrays.to_numpy(name, value)
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        raise ValueError(f"{name} must have shape (n, d, d), got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}")
    return np.require(array, requirements=["C", "A"])


def _check_finite(name: str, array: Any) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        at = np.unravel_index(int(bad.argmax()), array.shape)
        raise ValueError(f"{name} must be finite, got {array[at]} at {_index(at)}")


def _as_factors(value: Any, n: int, d: int) -> Any:
    """Whitening factors, one per center: finite, lower triangular, diagonal > 0."""
    array = _as_matrices("whitening", value)
    if array.shape != (n, d, d):
        raise ValueError(
            f"whitening must have shape ({n}, {d}, {d}), one factor per center, "
            f"got shape {array.shape}"
        )
    index = _core.first_unfit_factor(array)
    if index >= 0:
        at = np.unravel_index(index, array.shape)
        if not np.isfinite(array[at]):
            claim = "be finite"
        elif at[2] > at[1]:
            claim = "be lower triangular"
        else:
            claim = "have a positive diagonal"
        raise ValueError(f"whitening must {claim}, got {array[at]} at {_index(at)}")
    return array


def _index(at: tuple[Any, ...]) -> str:
    return str([int(i) for i in at])


def _check_range(reach: float, factor: float, d: int, dtype: Any) -> None:
    """Raises ValueError where a product of factor and difference could overflow.

    Sums of infinities of both signs would be NaN. Squares may overflow: such a
    component is infinitely far away.
    """
    if max(1.0, d * factor) * reach > np.finfo(dtype).max:
        raise ValueError(
            f"whitening times points - centers overflows {dtype}; "
            "use float64 or rescale the data"
        )


def _largest(array: Any) -> float:
    return max(float(array.max(initial=0)), -float(array.min(initial=0)))
