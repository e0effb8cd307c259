"""Differential entropy and mutual information from samples, by sample propagation.

S is a layer's output before its noise, Z ~ N(0, noise_std^2 I) the noise, T = S + Z.
The samples of S are the centers of a Gaussian mixture, the plug-in estimate of the
density of T. A query is a center plus a noise draw; it knows its own center and block,
so one pass of the kernel gives every plug-in quantity and, by leaving the own part out,
the other end of its bias bracket. Random draws and standard errors: `sampling.py`; what
is left out for the mutual information: `_pool.py`.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, NamedTuple

import numpy as np

from noisyflow import _arrays, _checks
from noisyflow._pool import Pool, block_offsets, is_isolated
from noisyflow.estimate import Estimate, UndersampledWarning
from noisyflow.mixture import mixture_block_log_sums, mixture_log_density
from noisyflow.prepared import prepare
from noisyflow.sampling import (
    Floats,
    Indices,
    NoiseAverages,
    Points,
    QueryTerms,
    Sampled,
    average_over_noise,
    default_num_noise_draws,
    mean_and_standard_error,
)


class EntropyBounds(NamedTuple):
    """Bounds of a mixture's differential entropy, in nats."""

    lower: float
    upper: float


def entropy(
    centers: Any,
    noise_std: float,
    *,
    weights: Any = None,
    num_noise_draws: int | None = None,
    population: bool = False,
    seed: int = 0,
) -> Estimate:
    """Differential entropy h(S + Z), -E log sum_j w_j N(S + Z; s_j, noise_std^2 I).

    Parameters
    ----------
    centers : (n, d) array
        Independent samples s_j of S. NumPy array or CPU torch tensor, float32 or
        float64.
    noise_std : float
        Standard deviation of Z, in the units of `centers`. Positive.
        (beta in Goldfeld et al. 2019.)
    weights : (n,) array, optional
        Weights of the centers, non-negative, summing to 1. Uniform by default.
    num_noise_draws : int, optional
        Queries per center. By default as many as give 10,000 queries in all, and at
        least 2 for a population.
    population : bool
        True when S takes the values `centers` and no others, as when every possible
        input was fed to the first noisy layer: then only the noise is random.
    seed : int
        Seed of the noise draws; the result is reproducible bit for bit.

    Returns
    -------
    Estimate
        `value` is the plug-in estimate and `lower`; `upper` is the leave-one-out
        cross-entropy, E lower <= h <= E upper. Both have the same queries. With
        `population` there is no bias and the bracket closes on the value.
        `standard_error` holds sampling and Monte-Carlo error together; with
        `population` Monte-Carlo error only (one draw per center: an estimate that is
        too large, from the spread between centers).

    Raises
    ------
    ValueError, TypeError
        If an argument has the wrong shape, type or range.

    Warns
    -----
    UndersampledWarning
        If more than half of the queries see no center but their own.

    Notes
    -----
    Cost at most O(num_noise_draws n^2 d) time, O(n d) memory; far less where
    `mixture_log_density` need not look at every pair. Computed in the dtype of
    `centers`, accumulated in float64. |z|^2 is regressed out where that lowers the
    variance.

    Source: Goldfeld et al. (2019), "Estimating Information Flow in Deep Neural
    Networks"; Goldfeld, Greenewald, Polyanskiy (2018), arXiv 1810.11589, eq. (7).

    Examples
    --------
    >>> import numpy as np
    >>> one_gaussian = entropy(np.zeros((1, 3)), noise_std=1.0, population=True)
    >>> round(one_gaussian.value, 4)  # 3/2 log(2 pi e)
    4.2568
    """
    centers, noise_std, weights = _checked_mixture(centers, noise_std, weights)
    _arrays.check_resolution("centers", centers, noise_std)
    population = _arrays.check_flag("population", population)
    if weights is not None:
        centers, weights = centers[weights > 0], weights[weights > 0]
    (n, d) = centers.shape
    if n < 2 and not population:
        raise ValueError(
            "centers must hold at least 2 samples of positive weight, got 1; a single"
            " center is a distribution only with population=True"
        )
    num_draws = _checked_num_noise_draws(num_noise_draws, n, population)
    probabilities = _probabilities(weights, n)
    one_block = np.array([0, n])
    if not population and probabilities.max() == 1:
        raise ValueError(
            "weights must leave something for the other centers, got one weight that is"
            " 1 but for rounding; a single center is a distribution only with"
            " population=True"
        )
    log_others = np.zeros(n) if population else np.log1p(-probabilities)

    mixture = prepare(centers, noise_std, weights=weights)

    def evaluate(points: Points, own: Indices) -> QueryTerms:
        own_center, others = mixture.log_own_and_others(points, own)
        density = np.logaddexp(own_center, others)
        left_out = others - log_others[own]
        return QueryTerms(
            value=-density,
            lower_gap=0.0,
            upper_gap=0.0 if population else density - left_out,
            isolated=is_isolated(own_center, others),
        )

    averages = average_over_noise(
        centers,
        noise_std,
        num_draws,
        _checks.as_seed(seed),
        evaluate,
    )
    sampled: Sampled = "noise" if population else "draws"
    estimate = _estimate(averages, probabilities, one_block, sampled, n * n * num_draws)
    if estimate.isolated > 0.5 and not population:
        _warn_undersampled(
            estimate.isolated,
            f"{n} samples are too few for d = {d} at noise_std = {noise_std:g}",
            "about log(n) + (d/2) log(2 pi e noise_std^2)",
            "More samples, a larger noise_std or fewer dimensions help; if the centers"
            " are all the values that S can take, pass population=True.",
        )
    return estimate


def entropy_bounds(
    centers: Any, noise_std: float, *, weights: Any = None
) -> EntropyBounds:
    """Pairwise-distance bounds of the mixture's entropy h(g), without random numbers.

    c - sum_i w_i log sum_j w_j exp(-|s_i - s_j|^2 / (a noise_std^2)), a = 8 and 2, with
    c = (d/2) log(2 pi e noise_std^2). Choose them for an instant preview of `entropy`,
    or to check it; they bound its plug-in value, not its sampling error.

    Parameters
    ----------
    centers : (n, d) array
        Component means s_j. NumPy array or CPU torch tensor, float32 or float64.
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
    Cost O(n^2 d) time, O(n) memory. Deterministic.

    Source: Kolchinsky and Tracey (2017), "Estimating Mixture Entropy with Pairwise
    Distances", Entropy 19, 361: Chernoff-1/2 (lower) and Kullback-Leibler (upper).

    Examples
    --------
    >>> import numpy as np
    >>> lower, upper = entropy_bounds(np.zeros((5, 3)), noise_std=1.0)
    >>> round(lower, 4), round(upper, 4)
    (4.2568, 4.2568)
    """
    centers, noise_std, weights = _checked_mixture(centers, noise_std, weights)
    (n, d) = centers.shape
    probabilities = _probabilities(weights, n)

    def bound(pair_std: float) -> float:
        log_density = mixture_log_density(centers, centers, pair_std, weights=weights)
        log_kernel_mean = np.asarray(log_density, np.float64) + 0.5 * d * math.log(
            2 * math.pi * pair_std**2
        )
        return _noise_entropy(d, noise_std) - float(probabilities @ log_kernel_mean)

    return EntropyBounds(lower=bound(2 * noise_std), upper=bound(noise_std))


def conditional_entropy(
    samples: Any,
    noise_std: float,
    *,
    num_noise_draws: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Conditional differential entropy h(T | X), the mean of h(T | X = x), in nats.

    Parameters
    ----------
    samples : (inputs, draws, d) array, or sequence of (draws_i, d) arrays
        Independent samples of S given each input; X is uniform over the inputs. NumPy
        arrays or CPU torch tensors, float32 or float64. One draw for every input means
        that S is a function of X.
    noise_std : float
        Standard deviation of the noise, in the units of `samples`. Positive.
    num_noise_draws : int, optional
        Queries per sample. By default as many as give 10,000 queries in all.
    seed : int
        Seed of the noise draws; the result is reproducible bit for bit.

    Returns
    -------
    Estimate
        `value` and `lower` are the mean plug-in, `upper` the mean leave-one-out
        estimate, E lower <= h(T | X) <= E upper. The inputs count as fixed:
        `standard_error` holds the error of the draws and of the noise (fewer than 10
        draws of an input: an error that is too large, from the spread between inputs).
        One draw per input: exactly (d/2) log(2 pi e noise_std^2), without error.

    Raises
    ------
    ValueError, TypeError
        If an argument has the wrong shape, type or range.

    Warns
    -----
    UndersampledWarning
        If more than half of the queries see no sample but their own. The number of
        draws needed grows exponentially with d.

    Notes
    -----
    Cost O(num_noise_draws sum_i draws_i^2 d) time, O(n d) memory for n samples.

    Source: Goldfeld et al. (2019), "Estimating Information Flow in Deep Neural
    Networks". Leave-one-out: E[-log q] under p is at least h(p) for any density q
    independent of the query.

    Examples
    --------
    >>> import numpy as np
    >>> print(conditional_entropy(np.zeros((8, 1, 3)), noise_std=1.0))
    4.2568 nats +- 0.0000 (standard error), bias bracket [4.2568, 4.2568], 0 % isolated
    """
    centers, sizes = _checked_samples(samples)
    noise_std = _arrays.check_noise_std(noise_std, centers.dtype)
    _arrays.check_resolution("samples", centers, noise_std)
    (n, d) = centers.shape
    num_draws = _checked_num_noise_draws(num_noise_draws, n, population=False)
    seed = _checks.as_seed(seed)
    if sizes[0] == 1:
        exact = _noise_entropy(d, noise_std)
        return Estimate(exact, 0.0, exact, exact, isolated=0.0, num_pairs=0)

    blocks = block_offsets(sizes)
    size_of_center = np.repeat(sizes, sizes)
    log_sizes, log_others = np.log(size_of_center), np.log(size_of_center - 1)

    def evaluate(points: Points, own: Indices) -> QueryTerms:
        # Uniform weights 1/n in the kernel: only ratios within a block matter here.
        sums = mixture_block_log_sums(
            points, centers, noise_std, own, blocks, include_rest=False
        )
        density = np.logaddexp(sums.own_center, sums.inner) + math.log(n)
        left_out = sums.inner + math.log(n) - log_others[own]
        return QueryTerms(
            value=log_sizes[own] - density,
            lower_gap=0.0,
            upper_gap=density - log_sizes[own] - left_out,
            isolated=is_isolated(sums.own_center, sums.inner),
        )

    averages = average_over_noise(centers, noise_std, num_draws, seed, evaluate)
    probabilities = 1 / (len(sizes) * size_of_center)
    num_pairs = int(sizes @ sizes) * num_draws
    estimate = _estimate(averages, probabilities, blocks, "draws", num_pairs)
    if estimate.isolated > 0.5:
        _warn_undersampled(
            estimate.isolated,
            f"{_sizes_in_words(sizes)} are too few for d = {d} at"
            f" noise_std = {noise_std:g}",
            "about log(draws) + (d/2) log(2 pi e noise_std^2)",
            "More draws per input, a larger noise_std or fewer dimensions help; the"
            " draws needed grow exponentially with d.",
        )
    return estimate


def mutual_information(
    samples: Any,
    noise_std: float,
    *,
    labels: Any = None,
    inputs: Literal["fixed", "sampled"] = "fixed",
    num_noise_draws: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Mutual information I(X; T), or I(Y; T) with labels, in nats.

    E[ log p(T | own block) - log p(T) ], both mixtures at the same noisy query, so that
    the noise common to both cancels. Choose this over `entropy` minus
    `conditional_entropy`: same plug-in, smaller error, tighter bracket.

    Parameters
    ----------
    samples : (inputs, draws, d) array, or sequence of (draws_i, d) arrays
        Independent samples of S given each input; X is uniform over the inputs. NumPy
        arrays or CPU torch tensors, float32 or float64. One draw for every input means
        that S is a function of X.
    noise_std : float
        Standard deviation of the noise, in the units of `samples`. Positive.
    labels : (inputs,) array of integers, booleans or strings, optional
        The label Y of each input; the result is then I(Y; T), Y distributed as in
        `labels`.
    inputs : {"fixed", "sampled"}
        "fixed": X takes these inputs and no others. "sampled": they are independent
        samples of a larger population and I(X; T) is wanted for that population.
    num_noise_draws : int, optional
        Queries per sample. By default as many as give 10,000 queries in all, and at
        least 2 where only the noise is random (fixed inputs, one draw each).
    seed : int
        Seed of the noise draws; the result is reproducible bit for bit.

    Returns
    -------
    Estimate
        `value` is the plug-in estimate. `lower` leaves the own sample (the own input,
        where labels of sampled inputs are the blocks) out of the conditional term,
        `upper` out of the pooled term: E lower <= I <= E upper. Fixed inputs: value and
        bracket lie within [0, log inputs], or [0, H(Y)] with labels. Sampled inputs:
        within [0, inf), or [0, log(number of labels)]; the information of a larger
        population may exceed the log of the number of inputs drawn from it. Fixed
        inputs with one draw each are a known mixture: no bias, the bracket closes.
        `standard_error`, fixed inputs: of the draws and the noise, as in
        `conditional_entropy`; sampled inputs: of the inputs as well.
        `isolated` counts the queries whose conditional mixture (for sampled inputs also
        whose pooled mixture) holds nothing near but what would be left out.

    Raises
    ------
    ValueError, TypeError
        If an argument has the wrong shape, type or range.

    Warns
    -----
    UndersampledWarning
        If more than half of the queries are isolated and the samples are not the whole
        population.

    Notes
    -----
    Cost O(num_noise_draws n^2 d) time, O(n d) memory for n samples in all. With too few
    draws per input the plug-in is biased upwards, and `lower` says how far.

    Source: Goldfeld et al. (2019), "Estimating Information Flow in Deep Neural
    Networks".

    Examples
    --------
    >>> import numpy as np
    >>> far_apart = np.array([-1.0, 1.0, -1.0, 1.0]).reshape(4, 1, 1)
    >>> round(mutual_information(far_apart, noise_std=0.1).value, 6)  # log 2
    0.693147
    """
    centers, sizes = _checked_samples(samples)
    noise_std = _arrays.check_noise_std(noise_std, centers.dtype)
    _arrays.check_resolution("samples", centers, noise_std)
    if not isinstance(inputs, str) or inputs not in ("fixed", "sampled"):
        raise ValueError(f'inputs must be "fixed" or "sampled", got {inputs!r}')
    if inputs == "sampled" and len(sizes) < 2:
        raise ValueError(
            'samples must hold at least 2 inputs when inputs="sampled", got 1; one'
            " input tells nothing of its population"
        )
    group_sizes = None
    if labels is not None:
        order, group_sizes = _arrays.group_by_label(labels, len(sizes))
        draws_of_input = np.split(np.arange(len(centers)), block_offsets(sizes)[1:-1])
        centers = centers[np.concatenate([draws_of_input[i] for i in order])]
        sizes = sizes[order]
    pool = Pool(centers, noise_std, sizes, group_sizes, inputs)
    (n, d) = centers.shape
    num_draws = _checked_num_noise_draws(num_noise_draws, n, pool.is_population)
    averages = average_over_noise(
        centers,
        noise_std,
        num_draws,
        _checks.as_seed(seed),
        pool.evaluate,
    )
    sampled: Sampled = "inputs" if inputs == "sampled" else "draws"
    estimate = _estimate(
        averages,
        pool.probabilities,
        pool.blocks,
        "noise" if pool.is_population else sampled,
        n * n * num_draws,
        within=(0.0, pool.information_ceiling()),
    )
    if estimate.isolated > 0.5 and not pool.is_population:
        is_fixed = inputs == "fixed"
        what = _sizes_in_words(sizes) if is_fixed else f"{len(sizes)} inputs"
        _warn_undersampled(
            estimate.isolated,
            f"{what} are too few for d = {d} at noise_std = {noise_std:g}",
            f"about {'log(inputs)' if labels is None else 'the entropy of the labels'}",
            f"More {'draws per input' if is_fixed else 'inputs and draws'}, a larger"
            " noise_std or fewer dimensions help.",
        )
    return estimate


def _noise_entropy(d: int, noise_std: float) -> float:
    """(d/2) log(2 pi e noise_std^2), without squaring a small noise_std."""
    return d * (0.5 * math.log(2 * math.pi * math.e) + math.log(noise_std))


def _estimate(
    averages: NoiseAverages,
    probabilities: Floats,
    blocks: Indices,
    sampled: Sampled,
    num_pairs: int,
    *,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """The estimate; gaps below zero are noise around zero, hence no gap."""
    value, standard_error = mean_and_standard_error(
        averages, probabilities, blocks, sampled
    )
    lower = value - max(0.0, float(probabilities @ averages.lower_gap))
    upper = value + max(0.0, float(probabilities @ averages.upper_gap))
    (floor, ceiling) = within
    return Estimate(
        value=min(max(value, floor), ceiling) + 0.0,
        standard_error=standard_error,
        lower=min(max(lower, floor), ceiling) + 0.0,  # no -0.0
        upper=min(max(upper, floor), ceiling) + 0.0,
        isolated=min(float(probabilities @ averages.isolated), 1.0),
        num_pairs=num_pairs,
    )


def _warn_undersampled(share: float, too_few: str, then: str, remedy: str) -> None:
    warnings.warn(
        f"{100 * share:.0f} % of the queries have no neighbour but their own sample:"
        f" {too_few}. The value is then {then},"
        " whatever the distribution; trust only the bracket [lower, upper]."
        f" {remedy}",
        UndersampledWarning,
        stacklevel=3,
    )


def _sizes_in_words(sizes: Indices) -> str:
    (low, high) = (sizes.min(), sizes.max())
    return f"{low if low == high else f'{low} to {high}'} draws per input"


def _checked_samples(samples: Any) -> tuple[Points, Indices]:
    """All samples as centers (n, d), input after input, and the draws of each input."""
    if isinstance(samples, list | tuple):
        if len(samples) == 0:
            raise ValueError("samples must hold at least one block, got an empty list")
        blocks = [_arrays.as_matrix(f"samples[{i}]", x) for i, x in enumerate(samples)]
        for i, block in enumerate(blocks):
            if block.shape[1] != blocks[0].shape[1]:
                raise ValueError(
                    f"samples must share one dimension d, got {blocks[0].shape[1]} in"
                    f" samples[0] and {block.shape[1]} in samples[{i}]"
                )
            _arrays.check_same_kind(
                "samples[0]", samples[0], f"samples[{i}]", samples[i]
            )
        centers = np.concatenate(blocks)
        sizes = np.array([len(block) for block in blocks])
    else:
        array = _arrays.to_numpy("samples", samples)
        if array.ndim != 3:
            raise ValueError(
                "samples must have shape (inputs, draws, d), or be a list of (draws, d)"
                f" arrays, got shape {array.shape}"
            )
        if array.size == 0:
            raise ValueError(f"samples must not be empty, got shape {array.shape}")
        (num_inputs, num_draws, d) = array.shape
        centers = _arrays.as_matrix(f"samples.reshape(-1, {d})", array.reshape(-1, d))
        sizes = np.full(num_inputs, num_draws)
    if sizes.min() == 1 and sizes.max() > 1:
        raise ValueError(
            "samples must hold at least 2 draws of every input, or 1 of every input (S"
            f" a function of X), got 1 in samples[{sizes.argmin()}] and"
            f" {sizes.max()} in samples[{sizes.argmax()}]"
        )
    return centers, sizes


def _checked_mixture(
    centers: Any, noise_std: Any, weights: Any
) -> tuple[Points, float, Points | None]:
    centers = _arrays.as_matrix("centers", centers)
    noise_std = _arrays.check_noise_std(noise_std, centers.dtype)
    if weights is not None:
        weights = _arrays.as_weights(weights, len(centers), centers.dtype)
    return centers, noise_std, weights


def _probabilities(weights: Points | None, n: int) -> Floats:
    """The weights in float64, summing to 1; uniform for None."""
    if weights is None:
        return np.full(n, 1 / n)
    exact = np.asarray(weights, np.float64)
    return np.asarray(exact / exact.sum())


def _checked_num_noise_draws(value: Any, num_centers: int, population: bool) -> int:
    if value is None:
        return default_num_noise_draws(num_centers, at_least=2 if population else 1)
    # One query of one center has no spread.
    least = 2 if num_centers == 1 else 1
    return _checks.as_int("num_noise_draws", value, at_least=least)
