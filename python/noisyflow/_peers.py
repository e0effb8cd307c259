"""Log-densities of Gaussian mixtures by other packages, at their best settings.

One function per peer: it takes the centers, (n, d), and returns a function of points,
(m, d), and the noise's standard deviation, that returns the m log-densities. What
depends on the centers alone is made beforehand.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow._benchmarking import constant, seconds_of

Array = NDArray[Any]
Contestant = Callable[[Array, float], Array]


def scipy_cdist(y: Array) -> Contestant:
    from scipy.spatial.distance import cdist
    from scipy.special import logsumexp

    (n, d) = y.shape
    chunk = max(1, 2**18 // n)

    def call(x: Array, noise_std: float) -> Array:
        parts = [
            logsumexp(
                cdist(x[i : i + chunk], y, "sqeuclidean") * (-0.5 / noise_std**2),
                axis=1,
            )
            for i in range(0, len(x), chunk)
        ]
        return np.concatenate(parts) + constant(n, d, noise_std)

    return call


def torch_eager(y: Array) -> Contestant:
    import torch

    (n, d) = y.shape
    centers = torch.from_numpy(y)
    chunk = max(1, 2**19 // n)

    def call(x: Array, noise_std: float) -> Array:
        parts = []
        for some in torch.split(torch.from_numpy(x), chunk):
            distances = torch.cdist(
                some, centers, compute_mode="donot_use_mm_for_euclid_dist"
            )
            parts.append(
                torch.logsumexp(distances.square_().mul_(-0.5 / noise_std**2), 1)
            )
        return torch.cat(parts).numpy() + constant(n, d, noise_std)

    return call


def torch_compile(y: Array, *, chunk: int) -> Contestant:
    """Inductor's fusion of the formula, `chunk` points at a time."""
    import torch

    (n, d) = y.shape
    centers = torch.from_numpy(y)
    columns = centers.T.contiguous()
    torch._dynamo.reset()

    def formula(points: Any, factor: Any) -> Any:
        if d <= 20:  # unrolled, so that it is one loop with the exponentials
            squares = sum(
                (points[:, k : k + 1] - columns[k][None, :]).square() for k in range(d)
            )
        else:
            squares = (points[:, None, :] - centers[None, :, :]).square().sum(-1)
        return torch.logsumexp(squares * factor, 1)

    compiled = torch.compile(formula, dynamic=False)

    def call(x: Array, noise_std: float) -> Array:
        with torch.no_grad():
            factor = torch.tensor(-0.5 / noise_std**2, dtype=centers.dtype)
            chunks = torch.split(torch.from_numpy(_padded(x, chunk)), chunk)
            result = torch.cat([compiled(points, factor) for points in chunks])
        return result.numpy()[: len(x)] + constant(n, d, noise_std)

    return call


def jax_direct(y: Array, *, chunk: int) -> Contestant:
    """Direct differences, compiled inside lax.map, `chunk` points at a time."""

    def squares_of(jnp: Any, centers: Any) -> Callable[[Any], Any]:
        def squares(points: Any) -> Any:
            if centers.shape[1] <= 20:
                return sum(
                    (points[:, k : k + 1] - centers[:, k][None, :]) ** 2
                    for k in range(centers.shape[1])
                )
            return ((points[:, None, :] - centers[None, :, :]) ** 2).sum(-1)

        return squares

    return _jax_map(y, chunk, squares_of)


def jax_matmul(y: Array, *, chunk: int) -> Contestant:
    """|x|^2 + |y|^2 - 2 x.y, which cancels at small noise."""

    def squares_of(jnp: Any, centers: Any) -> Callable[[Any], Any]:
        norms, columns = (centers * centers).sum(1), centers.T

        def squares(points: Any) -> Any:
            own = (points * points).sum(1, keepdims=True)
            return jnp.maximum(norms[None, :] + own - 2 * (points @ columns), 0)

        return squares

    return _jax_map(y, chunk, squares_of)


def _jax_map(y: Array, chunk: int, squares_of: Callable[..., Any]) -> Contestant:
    jax: Any = importlib.import_module("jax")
    jnp = jax.numpy
    jax.config.update("jax_enable_x64", True)
    (n, d) = y.shape
    centers = jnp.asarray(y)
    squares = squares_of(jnp, centers)
    mapped = jax.jit(
        lambda chunks, factor: jax.lax.map(
            lambda x: jax.scipy.special.logsumexp(squares(x) * factor, axis=1), chunks
        )
    )

    def call(x: Array, noise_std: float) -> Array:
        chunks = jnp.asarray(_padded(x, chunk).reshape(-1, chunk, d))
        factor = jnp.asarray(-0.5 / noise_std**2, centers.dtype)
        result = np.asarray(mapped(chunks, factor)).reshape(-1)
        return result[: len(x)] + constant(n, d, noise_std)

    return call


def _padded(x: Array, chunk: int) -> Array:
    """The last point repeated, so that every chunk is full."""
    missing = -len(x) % chunk
    return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x


def keops(y: Array) -> Contestant:
    import torch

    genred = importlib.import_module("pykeops.torch").Genred
    (n, d) = y.shape
    reduction = genred(
        "Minus(G*SqDist(x,y))",
        [f"x=Vi({d})", f"y=Vj({d})", "G=Pm(1)"],
        reduction_op="LogSumExp",
        axis=1,
    )
    centers = torch.from_numpy(y)

    def call(x: Array, noise_std: float) -> Array:
        factor = torch.tensor([0.5 / noise_std**2], dtype=centers.dtype)
        result = reduction(torch.from_numpy(x), centers, factor, backend="CPU")
        return np.asarray(result.view(-1)) + constant(n, d, noise_std)

    return call


def sklearn_tree(y: Array, *, rtol: float) -> Contestant:
    """Computes in float64 whatever it is given. One tree per noise_std."""
    neighbors: Any = importlib.import_module("sklearn.neighbors")

    @functools.cache
    def tree(noise_std: float) -> Any:
        density = neighbors.KernelDensity(
            bandwidth=noise_std, algorithm="kd_tree", rtol=rtol
        )
        return density.fit(y)

    def call(x: Array, noise_std: float) -> Array:
        return np.asarray(tree(noise_std).score_samples(x))

    return call


def at_best_setting(
    name: str,
    makers: Sequence[Callable[..., Contestant]],
    centers: Array,
    points: Array,
    noise_std: float,
) -> tuple[str, Contestant]:
    """The quickest of the settings in a trial, and its label.

    Parameters
    ----------
    name : str
        What the label begins with.
    makers : sequence of callable
        `maker(centers)` for every setting that may be best.
    centers, points : (n, d) and (m, d) arrays
        The trial's.
    noise_std : float

    Returns
    -------
    (str, callable)
    """
    settings = [(name + _setting_of(make), make(centers)) for make in makers]
    if len(settings) == 1:
        return settings[0]
    trials = []
    for label, contestant in settings:
        call = partial(contestant, points, noise_std)
        call()
        seconds = min(seconds_of(call) for _ in range(3))
        trials.append((seconds, label, contestant))
    _, label, contestant = min(trials, key=lambda trial: trial[0])
    return label, contestant


def _setting_of(make: Callable[..., Contestant]) -> str:
    """What distinguishes a setting of a peer."""
    chunk = getattr(make, "keywords", {}).get("chunk")
    return f", {chunk} points" if chunk else ""
