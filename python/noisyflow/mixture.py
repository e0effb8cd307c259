"""Log-densities of isotropic Gaussian mixtures: sums over all pairs."""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import numpy as np

from noisyflow import _arrays, _core, _device
from noisyflow._rows import AbstractRows
from noisyflow.prepared import (
    SMALLEST_WORK,
    Plan,
    PreparedMixture,
    checked_max_lost_mass,
    pair_work,
    prepare,
)
from noisyflow.runtime import num_threads

_MAX_MOMENT_DIM = 32  # kMaxMomentDim in csrc/core/views.h
_TORCH_VERSION = "2.13"  # that operators.py was written for, and is tested with


class BlockLogSums(NamedTuple):
    """A mixture's sum at each point, split by the point's own block of centers.

    Each (m,), in nats; -inf where a part has no center.
    """

    own_center: Any
    inner: Any
    outer: Any
    rest: Any


class PosteriorMoments(NamedTuple):
    """What a point tells about its center: moments of y given x_i.

    `mean` (m, d) is E[y | x_i] - x_i, `covariance` (m, d, d) that of y given x_i, and
    `log_density` (m,) is `mixture_log_density` at the points.
    """

    log_density: Any
    mean: Any
    covariance: Any


def _checked(
    points: Any, centers: Any, noise_std: Any, weights: Any
) -> tuple[Any, Any, float, Any]:
    """Points, centers, noise_std and weights, as the kernels take them."""
    x, y = _arrays.as_point_pair(points, centers)
    beta = _arrays.check_noise_std(noise_std, y.dtype)
    w = None if weights is None else _arrays.as_weights(weights, len(y), y.dtype)
    return x, y, beta, w


def mixture_log_density(
    points: Any,
    centers: Any,
    noise_std: Any,
    *,
    weights: Any = None,
    max_lost_mass: float | None = None,
) -> Any:
    """Log-density of a Gaussian mixture, log sum_j w_j N(x_i; y_j, noise_std^2 I).

    Parameters
    ----------
    points : (m, d) array
        Where to evaluate. NumPy array or torch tensor, float32 or float64.
    centers : (n, d) array
        Component means; same library and dtype as `points`.
    noise_std : float
        Standard deviation of every component, in the units of `points`. Positive. With
        tensors it may be one, of shape (). (beta in Goldfeld et al. 2019.)
    weights : (n,) array, optional
        Component weights, not negative, summing to 1. Uniform by default.
    max_lost_mass : float, optional
        Largest fraction of a point's density that the result may be off by, from 0
        (every pair is evaluated) to below 1. By construction, before rounding, the
        result is within log(1 - max_lost_mass) and log(1 + max_lost_mass) of the
        log-density, and not above it where no polynomials were used (`explain` says
        so). 1e-6 by default in float32 and 1e-13 in float64: about what rounding does
        anyway.

    Returns
    -------
    (m,) array
        In nats; same library and dtype as `points`. Finite even where the density
        itself would underflow.

    Raises
    ------
    TypeError
        If an array is not float32 or float64 (under torch.autocast a layer's output may
        not be), or library or dtype differ.
    ValueError
        If shapes disagree, a value is not finite, `noise_std` is not positive,
        `weights` do not sum to 1, `max_lost_mass` is not in [0, 1), or distances
        overflow the dtype.

    Notes
    -----
    Cost at most O(m n d) time, O((m + n) d) memory. Where a sample says that it pays,
    centers are ordered into a tree, which leaves out what is too far to matter and
    stands in with polynomials for centers that lie within the noise of each other:
    bench/README.md says what is gained. `prepare` keeps the tree for further points.
    Direct differences, so that nothing cancels at small noise. Error in float32 for
    data in [-1, 1]^d and noise_std from 0.005 to 1: 1e-5 nats up to d = 10, 2e-5 up to
    d = 784, beyond the rounding of the result itself; in float64 1e-12 relative to
    max(1, |result|) up to d = 4096 (docs/numerics.md). Deterministic; the number of
    threads does not change the result.

    Tensors: differentiable any number of times, in reverse and forward mode, with
    respect to points, centers, noise_std and weights. Works inside torch.func,
    torch.vmap (batched points in one call, a batch of anything else in one call each),
    torch.compile and torch.export. A gradient is a second pass in O((m + n) d) memory.
    On a CPU it leaves out pairs beyond a radius of its own around every point, with
    max_lost_mass as its bound: in units of 1 / noise_std for points, centers and
    noise_std (docs/numerics.md, 11). On a GPU it evaluates every pair. Second
    derivatives, and forward mode, are torch operations in float64 on every pair, a
    chunk of points at a time; only what torch records of them, for further derivatives,
    takes memory for every pair. In these N(x_i; y_j, noise_std^2 I) counts as at most
    e^300 times the largest term of the sum, which matters only to a center of weight
    below e^-300, such as 0, that is nearer than all others.

    Gradients take weights as free parameters, each on its own, while their sum is
    checked to be 1: a step along the gradient leaves that. To train weights, make them
    of parameters without a constraint, as torch.softmax(logits, 0).

    Source: Goldfeld et al. (2019), "Estimating Information Flow in Deep Neural
    Networks". The gradient with respect to a point is Tweedie's formula, see
    `posterior_moments`.

    Examples
    --------
    >>> import numpy as np
    >>> points, centers = np.array([[0.0], [1.0]]), np.array([[-1.0], [1.0]])
    >>> mixture_log_density(points, centers, noise_std=1.0)
    array([-1.41893853, -1.4851577 ])
    """
    if _arrays.is_tensor(points) and _arrays.is_tensor(centers):
        try:
            from noisyflow import operators  # imports torch
        except ImportError as error:
            return _without_operators(
                points, centers, noise_std, weights, max_lost_mass, error
            )
        return operators.mixture_log_density(
            points, centers, noise_std, weights, max_lost_mass
        )
    x, y, beta, w = _checked(points, centers, noise_std, weights)
    lost = checked_max_lost_mass(max_lost_mass, y.dtype)
    return log_density_of_arrays(x, y, beta, w, lost)


def _without_operators(
    points: Any,
    centers: Any,
    noise_std: Any,
    weights: Any,
    max_lost_mass: float | None,
    error: ImportError,
) -> Any:
    """The log-density of tensors that are no more than numbers to torch.

    For a torch that lacks what `operators` needs of it; raises RuntimeError where torch
    would want more than values.
    """
    torch = sys.modules["torch"]
    given = [points, centers, noise_std, weights]
    if any(map(_is_more_than_values, given)):
        raise RuntimeError(
            f"torch {torch.__version__} lacks what derivatives and torch.func need "
            f"here ({error}); this was written for torch "
            f"{_TORCH_VERSION}: install that, or pass detached tensors"
        ) from error
    x, y, beta, w = (
        value.detach() if _arrays.is_tensor(value) else value for value in given
    )
    if _arrays.is_tensor(beta) and beta.ndim == 0:
        beta = float(beta)
    if _device.is_any_on_device(x, y):
        lost = checked_max_lost_mass(max_lost_mass, _device.numpy_dtype(y))
        return _device.log_density(x, y, beta, w, lost)
    x, y, beta, w = _checked(x, y, beta, w)
    lost = checked_max_lost_mass(max_lost_mass, y.dtype)
    return _arrays.same_library(log_density_of_arrays(x, y, beta, w, lost), points)


def _is_more_than_values(value: Any) -> bool:
    """Whether torch records what is done to it, or it is one of a transform."""
    torch = sys.modules["torch"]
    if not _arrays.is_tensor(value):
        return False
    if value.requires_grad and torch.is_grad_enabled():
        return True
    try:
        value.data_ptr()
    except RuntimeError:
        return True
    return torch.autograd.forward_ad.unpack_dual(value).tangent is not None


def log_density_of_arrays(
    x: Any, y: Any, noise_std: float, weights: Any, max_lost_mass: float
) -> Any:
    """The log-density, (m,), by the path that suits it; everything `checked`."""
    is_small = pair_work(len(x), len(y), y.shape[1], y.itemsize) < SMALLEST_WORK
    if max_lost_mass > 0 and not is_small:
        return PreparedMixture(y, noise_std, weights, max_lost_mass)._evaluate(x)[0]
    result = _core.log_density(x, y, noise_std, weights, num_threads())
    _arrays.check_representable("the log-density", result, allow_minus_inf=False)
    return result


def explain(
    points: Any,
    centers: Any,
    noise_std: float,
    *,
    weights: Any = None,
    max_lost_mass: float | None = None,
) -> Plan:
    """How `mixture_log_density` computes its result, and what of it.

    Parameters
    ----------
    points, centers, noise_std, weights, max_lost_mass
        As in `mixture_log_density`.

    Returns
    -------
    Plan
        The path, the work and time expected from a sample, memory; and the pairs that
        were evaluated, aggregated and skipped, for the result is computed once.

    Raises
    ------
    TypeError, ValueError
        As `mixture_log_density`.

    Examples
    --------
    >>> import numpy as np
    >>> explain(np.zeros((2, 1)), np.zeros((3, 1)), noise_std=1.0).path
    'every pair'
    """
    if _device.is_any_on_device(points, centers, weights):
        mixture = prepare(
            centers, noise_std, weights=weights, max_lost_mass=max_lost_mass
        )
        return mixture.explain(points)
    x, y, beta, w = _checked(points, centers, noise_std, weights)
    lost = checked_max_lost_mass(max_lost_mass, y.dtype)
    return PreparedMixture(y, beta, w, lost)._evaluate(x)[1]


def mixture_block_log_sums(
    points: Any,
    centers: Any,
    noise_std: float,
    own: Any,
    offsets: Any,
    *,
    outer_offsets: Any = None,
    weights: Any = None,
    include_rest: bool = True,
) -> BlockLogSums:
    """The mixture's sum at each point, split by its own block of centers, in one pass.

    Everything a plug-in or leave-one-out estimate needs comes from these four parts;
    their log-sum-exp is `mixture_log_density`.

    Parameters
    ----------
    points : (m, d) array
        Where to evaluate. NumPy array or torch tensor, float32 or float64. Fastest
        if neighbouring points have neighbouring own centers.
    centers : (n, d) array
        Component means, block after block; same library and dtype as `points`.
    noise_std : float
        Standard deviation of every component, in the units of `points`. Positive.
    own : (m,) integer array
        Index of the center that each point belongs to.
    offsets : (b + 1,) integer array
        Block k holds the centers offsets[k] .. offsets[k + 1] - 1: increasing, from 0
        to n.
    outer_offsets : (c + 1,) integer array, optional
        The same for outer blocks, each a union of consecutive blocks (inputs within
        labels, say). The blocks themselves by default.
    weights : (n,) array, optional
        Component weights, not negative, summing to 1. Uniform by default.
    include_rest : bool
        False leaves out everything beyond a point's own block: `outer` and `rest` are
        -inf.

    Returns
    -------
    BlockLogSums
        own_center: log of the own center's term; inner: log sum over the other centers
        of its block; outer: over its outer block without its block; rest: over all
        others. Each (m,), nats, same library and dtype as `points`.

    Raises
    ------
    TypeError, ValueError
        As `mixture_log_density`; and if `own` or an offset is not as described.

    Notes
    -----
    Cost O(m n d), or O(m block d) without the rest; O(m + n) memory beyond the arrays.

    Examples
    --------
    >>> import numpy as np
    >>> centers = np.array([[0.0], [0.1], [3.0], [3.1]])  # two blocks of two
    >>> sums = mixture_block_log_sums(
    ...     centers, centers, 0.5, own=[0, 1, 2, 3], offsets=[0, 2, 4]
    ... )
    >>> parts = np.stack([sums.own_center, sums.inner, sums.outer, sums.rest])
    >>> whole = np.logaddexp.reduce(parts)
    >>> np.allclose(whole, mixture_log_density(centers, centers, 0.5))
    True
    """
    include_rest = _arrays.check_flag("include_rest", include_rest)
    if isinstance(centers, AbstractRows):  # from an estimator, whose queries are here
        return BlockLogSums(
            *centers.block_log_sums(
                *(points, noise_std, own, offsets, outer_offsets),
                *(weights, include_rest),
            )
        )
    if _device.is_any_on_device(points, centers, weights):
        inner, outer = _block_offsets(offsets, outer_offsets, len(centers))
        return BlockLogSums(
            *_device.block_log_sums(
                *(points, centers, noise_std, own, inner, outer),
                *(weights, include_rest),
            )
        )
    x, y, beta, w = _checked(points, centers, noise_std, weights)
    members = _indices("own", own)
    if members.shape != (len(x),):
        raise ValueError(
            f"own must have shape ({len(x)},), one center per point, "
            f"got shape {members.shape}"
        )
    # Negative ones are large when unsigned: one pass.
    if len(x) and members.view(np.uint64).max() >= len(y):
        raise ValueError(
            f"own must index the {len(y)} centers, "
            f"got values from {members.min()} to {members.max()}"
        )
    inner, outer = _block_offsets(offsets, outer_offsets, len(y))
    parts = _core.block_log_sums(
        x, y, beta, members, inner, outer, w, include_rest, num_threads()
    )
    names = ("own", "inner", "outer", "rest")[: 4 if include_rest else 2]
    for name, part in zip(names, parts, strict=False):
        _arrays.check_representable(f"the {name} sum", part, allow_minus_inf=True)
    return BlockLogSums(*(_arrays.same_library(part, points) for part in parts))


def posterior_moments(
    points: Any,
    centers: Any,
    noise_std: float,
    *,
    weights: Any = None,
    in_noise_units: bool = False,
) -> PosteriorMoments:
    """Mean and covariance of a point's center, p(y_j | x_i) ~ w_j N(x_i; y_j, s^2 I).

    They are the derivatives of the log-density g, with s the noise_std: the gradient is
    mean / s^2, the Hessian (covariance / s^2 - I) / s^2.

    Parameters
    ----------
    points : (m, d) array
        Where to evaluate, d at most 32. NumPy array or torch tensor, float32 or
        float64.
    centers : (n, d) array
        Component means; same library and dtype as `points`.
    noise_std : float
        Standard deviation of every component, in the units of `points`. Positive.
    weights : (n,) array, optional
        Component weights, not negative, summing to 1. Uniform by default.
    in_noise_units : bool
        True gives mean / noise_std and covariance / noise_std^2.

    Returns
    -------
    PosteriorMoments
        log_density (m,), nats; mean (m, d), of the center relative to the point; and
        covariance (m, d, d), symmetric. Same library and dtype as `points`.

    Raises
    ------
    TypeError, ValueError
        As `mixture_log_density`; and if d is above 32.

    Notes
    -----
    Cost O(m n d^2) time, where distances alone, O(m n d), are found for centers too far
    to matter; O(m d^2) memory. Differences from the point itself, or from a center near
    the mean for points that are far from all. Error in float32 of the covariance in
    units of noise_std^2, for points of mixtures in [-1, 1]^d and noise_std from 0.005
    to 1: 1e-4 times the larger of 1 and its largest entry. Deterministic; the number of
    threads does not change the result.

    Source: Tweedie's formula, in Robbins (1956), "An Empirical Bayes Approach to
    Statistics"; its second order in Efron (2011), "Tweedie's Formula and Selection
    Bias".

    Examples
    --------
    >>> import numpy as np
    >>> points, centers = np.array([[0.0]]), np.array([[-1.0], [1.0]])
    >>> moments = posterior_moments(points, centers, noise_std=1.0)
    >>> moments.mean, moments.covariance
    (array([[0.]]), array([[[1.]]]))
    """
    in_noise_units = _arrays.check_flag("in_noise_units", in_noise_units)
    if _device.is_any_on_device(points, centers, weights):
        beta = _arrays.check_noise_std(noise_std)
        _check_moment_dim(np.shape(points))
        unit = beta if in_noise_units else 1.0
        return PosteriorMoments(
            *_device.posterior_moments(points, centers, beta, weights, unit)
        )
    x, y, beta, w = _checked(points, centers, noise_std, weights)
    _check_moment_dim(x.shape)
    unit = beta if in_noise_units else 1.0
    moments = _core.posterior_moments(x, y, beta, w, unit, num_threads())
    names = ("log-density", "mean", "covariance")
    for name, part in zip(names, moments, strict=True):
        of_point = np.abs(part).reshape(len(x), math.prod(part.shape[1:])).max(axis=1)
        _arrays.check_representable(f"the {name}", of_point, allow_minus_inf=False)
    return PosteriorMoments(*(_arrays.same_library(part, points) for part in moments))


def _check_moment_dim(shape: tuple[int, ...]) -> None:
    if len(shape) == 2 and shape[1] > _MAX_MOMENT_DIM:
        raise ValueError(
            f"points must have at most {_MAX_MOMENT_DIM} dimensions, got {shape[1]}; "
            "project them first"
        )


def _block_offsets(offsets: Any, outer_offsets: Any, num_centers: int) -> Any:
    """Checked offsets of blocks and of outer blocks, on the host."""
    inner = _offsets("offsets", _device.on_host(offsets), num_centers)
    outer = inner
    if outer_offsets is not None:
        outer = _offsets("outer_offsets", _device.on_host(outer_offsets), num_centers)
        if not np.isin(outer, inner).all():
            raise ValueError(
                "outer_offsets must be a subset of offsets, so that an outer block "
                f"is a union of blocks, got {outer[~np.isin(outer, inner)][0]}"
            )
    return inner, outer


def _indices(name: str, value: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    array = _arrays.to_any_numpy(name, value)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must fit into 64 bits, got {array.max()}")
    return np.ascontiguousarray(array, np.int64)


def _offsets(
    name: str, value: Any, num_centers: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    array = _indices(name, value)
    if array.ndim != 1 or len(array) < 2 or array[0] != 0 or array[-1] != num_centers:
        raise ValueError(
            f"{name} must run from 0 to the number of centers, {num_centers}, "
            f"got {array.tolist() if array.size <= 8 else array.shape}"
        )
    if (np.diff(array) <= 0).any():
        at = int((np.diff(array) <= 0).argmax())
        raise ValueError(
            f"{name} must increase, got {array[at]} followed by {array[at + 1]}"
        )
    return array
