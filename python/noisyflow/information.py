"""Differential entropy and mutual information from samples, by sample propagation.

S is a layer's output before its noise, Z ~ N(0, noise_std^2 I) the noise, T = S + Z.
The samples of S are the centers of a Gaussian mixture, the plug-in estimate of the
density of T. A query is a center plus a noise draw; it knows its own center and block,
so one pass of the kernel gives every plug-in quantity and, by leaving the own part out,
the other end of its bias bracket. Random draws and standard errors: `sampling.py`; what
is left out for the mutual information: `_pool.py`; gradients: `_differentiable.py`.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal, ParamSpec

import numpy as np

from noisyflow import _arrays, _checks
from noisyflow._device import is_any_on_device
from noisyflow._device_mixture import checked_samples, take_rows
from noisyflow._merge import merge_duplicates, split_own_center
from noisyflow._pool import Pool, block_offsets, is_isolated
from noisyflow._rows import SampledRows
from noisyflow._streamed import StreamedMixture, is_streamed
from noisyflow.bounds import as_probabilities, checked_mixture, noise_entropy
from noisyflow.estimate import Estimate, TargetWarning, UndersampledWarning
from noisyflow.mixture import mixture_block_log_sums
from noisyflow.prepared import prepare
from noisyflow.sampling import (
    Averages,
    Budget,
    Floats,
    Indices,
    Points,
    Problem,
    QueryTerms,
    average_over_noise,
)

_Arguments = ParamSpec("_Arguments")
# Python shows a text once for every line that warns: a training loop needs one without
# numbers that change from step to step.
_is_repeated: ContextVar[bool] = ContextVar("_is_repeated", default=False)


def _with_gradients(
    estimator: Callable[_Arguments, Estimate],
) -> Callable[_Arguments, Estimate]:
    """The estimator, whose value has gradients where its arguments require them."""
    signature = inspect.signature(estimator)
    name = estimator.__name__

    @functools.wraps(estimator)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Estimate:
        if not _arrays.has_tensor(*args, *kwargs.values()):
            return estimator(*args, **kwargs)
        from noisyflow import _differentiable

        if _differentiable.is_traced():
            untraced: Callable[_Arguments, Estimate] = _differentiable.untraced(call)
            return untraced(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        this = _differentiable.Call(name, bound.arguments)
        plain: dict[str, Any] = this.arguments
        is_repeated = _is_repeated.set(this.wants_gradients)
        try:
            estimate = estimator(**plain)  # type: ignore[call-arg]
        finally:
            _is_repeated.reset(is_repeated)
        return this.attach(estimate)

    return call


@_with_gradients
def entropy(
    centers: Any,
    noise_std: float,
    *,
    weights: Any = None,
    standard_error: float | None = None,
    max_seconds: float | None = None,
    max_pairs: int | None = None,
    population: bool = False,
    seed: int = 0,
) -> Estimate:
    """Differential entropy h(S + Z), -E log sum_j w_j N(S + Z; s_j, noise_std^2 I).

    Parameters
    ----------
    centers : (n, d) array
        Independent samples s_j of S. NumPy array or torch tensor, float32 or float64;
        on a GPU they stay there, and pairs are evaluated there. A memory-mapped array
        of more than 64 MiB is read in blocks and never held whole.
    noise_std : float or tensor without dimensions
        Standard deviation of Z, in the units of `centers`. Positive.
        (beta in Goldfeld et al. 2019.)
    weights : (n,) array, optional
        Weights of the centers, non-negative, summing to 1. Uniform by default. A
        weighted center counts as one sample; repeat the row of one seen several times.
    standard_error : float, optional
        The standard error wanted, in nats; queries are added until it is met, or until
        only more samples could lower it. 0.01 by default.
    max_seconds : float, optional
        Stop with what was reached after about this time. The result then depends on
        the speed of the machine; bit-for-bit repetition needs `max_pairs`.
    max_pairs : int, optional
        Stop with what was reached before more pairs of a query and a center than this
        are evaluated or skipped. At least 128 n, and 256 n where gradients are
        wanted.
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
        `standard_error` holds sampling and Monte-Carlo error together, with
        `population` Monte-Carlo error only. `lower_confidence_bound()` is rigorous.
        Where `centers`, `noise_std` or `weights` are tensors that require gradients,
        `value` is a tensor that has them, as in `mutual_information`; those of the
        weights take them as free parameters, whose sum need not stay 1.

    Raises
    ------
    ValueError, TypeError
        If an argument has the wrong shape, type or range.

    Warns
    -----
    UndersampledWarning
        If the samples are too few to trust the value (`Estimate.is_undersampled`).
        Where gradients are wanted the text is the same every time, so that Python
        shows it once for a line of a training loop.
    TargetWarning
        If a `standard_error` was asked for and is not reached; the message says why.

    Notes
    -----
    Cost O(q n d) time for q queries, 4096 or 8192 to begin with, far less where
    `mixture_log_density` need not look at every pair; O(n d) memory. Computed in the
    dtype of `centers`, accumulated in float64.

    Queries: scrambled Sobol nets in 16 independent randomisations, whose spread is the
    Monte-Carlo error; where there are several for each center, mirrored in pairs, and
    |z|^2, the log-density at the bare center and its second-order Taylor terms are
    control variates. In one and two dimensions grids around every center replace them.
    Equal samples are merged into one center.

    Source: Goldfeld et al. (2019), "Estimating Information Flow in Deep Neural
    Networks"; Goldfeld, Greenewald, Polyanskiy (2018), arXiv 1810.11589, eq. (7).

    Examples
    --------
    >>> import numpy as np
    >>> one_gaussian = entropy(np.zeros((1, 3)), noise_std=1.0, population=True)
    >>> round(one_gaussian.value, 4)  # 3/2 log(2 pi e)
    4.2568
    """
    budget = Budget.checked(standard_error, max_seconds, max_pairs)
    population = _arrays.check_flag("population", population)
    seed = _checks.as_seed(seed)
    if is_streamed(centers):
        return _streamed_entropy(centers, noise_std, weights, budget, population, seed)
    centers, noise_std, weights = checked_mixture(centers, noise_std, weights)
    _arrays.check_resolution("centers", centers, noise_std)
    if weights is not None:
        centers = take_rows(centers, weights > 0)
        weights = weights[weights > 0]
    num_samples = len(centers)
    probabilities: Any = None if weights is None else as_probabilities(weights)
    _check_others(num_samples, probabilities, population)
    bounded_difference = 0.0
    if not population:
        bounded_difference = _bounded_difference(num_samples, probabilities)

    # Equal samples of unequal weight stay apart: each is left out by itself.
    merged = merge_duplicates(centers) if weights is None or population else None
    counts: Indices | None = None
    if merged is not None:
        centers = take_rows(centers, merged.first)
        if probabilities is None:
            probabilities = merged.counts / num_samples
        else:
            probabilities = np.bincount(merged.center, probabilities)
        weights = probabilities.astype(centers.dtype)
        counts = None if population else merged.counts
    mixture = prepare(centers, noise_std, weights=weights)
    problem = Problem(
        centers,
        noise_std,
        _entropy_terms(mixture, num_samples, probabilities, counts, population),
        "noise" if population else "draws",
        weights=probabilities,
        counts=counts,
        mixture_weights=weights,
    )
    return _entropy_estimate(problem, budget, seed, num_samples, bounded_difference)


def _streamed_entropy(
    centers: Any,
    noise_std: Any,
    weights: Any,
    budget: Budget,
    population: bool,
    seed: int,
) -> Estimate:
    """`entropy` of centers that stay on disk."""
    name = "centers"
    _arrays.check_matrix_shape(name, _arrays.to_numpy(name, centers))
    noise_std = _arrays.check_noise_std(noise_std, centers.dtype)
    probabilities = None
    n = len(centers)
    if weights is not None:
        weights = _arrays.as_weights(weights, n, centers.dtype)
        probabilities = as_probabilities(weights)
    _check_others(n, probabilities, population)
    mixture = StreamedMixture(centers, noise_std, weights)
    mixture.check(name)
    problem = Problem(
        np.asarray(centers),
        noise_std,
        _entropy_terms(mixture, n, probabilities, None, population),
        "noise" if population else "draws",
        weights=probabilities,
        is_streamed=True,
    )
    bounded_difference = 0.0 if population else _bounded_difference(n, probabilities)
    return _entropy_estimate(problem, budget, seed, n, bounded_difference)


def _entropy_terms(
    mixture: Any,
    num_samples: int,
    probabilities: Floats | None,
    counts: Indices | None,
    population: bool,
) -> Any:
    """-log g at queries, and what leaving the own sample out of g changes."""
    log_others: Any = math.log1p(-1 / num_samples) if num_samples > 1 else 0.0
    if probabilities is not None and counts is None and not population:
        log_others = np.log1p(-probabilities)

    def evaluate(points: Points, own: Indices) -> QueryTerms:
        own_center, others = mixture.log_own_and_others(points, own)
        density = np.logaddexp(own_center, others)
        if counts is not None:
            (own_center, equal) = split_own_center(own_center, counts[own])
            others = np.logaddexp(others, equal)
        rescaled = log_others if np.isscalar(log_others) else log_others[own]
        return QueryTerms(
            value=-density,
            lower_gap=0.0,
            upper_gap=0.0 if population else density - (others - rescaled),
            isolated=is_isolated(own_center, others),
            own_weight=np.exp(own_center - density),
        )

    return evaluate


def _entropy_estimate(
    problem: Problem,
    budget: Budget,
    seed: int,
    num_samples: int,
    bounded_difference: float,
) -> Estimate:
    averages = average_over_noise(problem, budget, seed)
    estimate = _estimate(averages, budget, bounded_difference=bounded_difference)
    if estimate.is_undersampled:
        d = problem.centers.shape[1]
        _warn_undersampled(
            estimate,
            f"{num_samples} samples are too few for d = {d} at"
            f" noise_std = {problem.noise_std:g}",
            "about log(n) + (d/2) log(2 pi e noise_std^2)",
            "More samples, a larger noise_std or fewer dimensions help; if the centers"
            " are all the values that S can take, pass population=True.",
        )
    return estimate


def _check_others(
    num_samples: int, probabilities: Floats | None, population: bool
) -> None:
    """Raises where leaving one sample out would leave nothing."""
    if population:
        return
    if num_samples < 2:
        raise ValueError(
            "centers must hold at least 2 samples of positive weight, got 1; a single"
            " center is a distribution only with population=True"
        )
    if probabilities is not None and probabilities.max() == 1:
        raise ValueError(
            "weights must leave something for the other centers, got one weight that is"
            " 1 but for rounding; a single center is a distribution only with"
            " population=True"
        )


def _bounded_difference(num_samples: int, probabilities: Floats | None) -> float:
    """Root of the sum of squares of H_b(w_i), what exchanging sample i can change.

    The mixture with and without it are parts of one of two components, w_i and 1 - w_i.
    """
    if probabilities is None:
        return math.sqrt(num_samples) * float(_binary_entropy(1 / num_samples))
    met = probabilities[probabilities > 0]
    return float(np.sqrt((_binary_entropy(met) ** 2).sum()))


def _binary_entropy(p: Any) -> Any:
    """-p log p - (1 - p) log(1 - p), p in (0, 1)."""
    return -p * np.log(p) - (1 - p) * np.log1p(-p)


@_with_gradients
def conditional_entropy(
    samples: Any,
    noise_std: float,
    *,
    standard_error: float | None = None,
    max_seconds: float | None = None,
    max_pairs: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Conditional differential entropy h(T | X), the mean of h(T | X = x), in nats.

    Parameters
    ----------
    samples : (inputs, draws, d) array, or sequence of (draws_i, d) arrays
        Independent samples of S given each input; X is uniform over the inputs. NumPy
        arrays or torch tensors on one device, float32 or float64. One draw for every
        input means that S is a function of X.
    noise_std : float or tensor without dimensions
        Standard deviation of the noise, in the units of `samples`. Positive.
    standard_error : float, optional
        The standard error wanted, in nats; queries are added until it is met, or until
        only more samples could lower it. 0.01 by default.
    max_seconds : float, optional
        Stop with what was reached after about this time. The result then depends on
        the speed of the machine; bit-for-bit repetition needs `max_pairs`.
    max_pairs : int, optional
        Stop with what was reached before more pairs of a query and a center than this
        are evaluated or skipped. At least 128 times the draws of an input, and
        256 times the most draws of one where gradients are wanted.
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
        `value` is a tensor with gradients where tensors require them, as in
        `mutual_information`.

    Raises
    ------
    ValueError, TypeError
        If an argument has the wrong shape, type or range.

    Warns
    -----
    UndersampledWarning
        If the draws are too few to trust the value (`Estimate.is_undersampled`). The
        number needed grows exponentially with d. Where gradients are wanted the text is
        the same every time, so that Python shows it once for a line of a training loop.
    TargetWarning
        If a `standard_error` was asked for and is not reached; the message says why.

    Notes
    -----
    Cost O(q draws d) time for q queries, spent as in `entropy`; O(n d) memory for n
    samples.

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
    budget = Budget.checked(standard_error, max_seconds, max_pairs)
    seed = _checks.as_seed(seed)
    if sizes[0] == 1:
        exact = noise_entropy(d, noise_std)
        return Estimate(
            exact, 0.0, exact, exact, 0.0, 0, bounded_difference=0.0, stopped_by="exact"
        )

    blocks = block_offsets(sizes)
    size_of_center = np.repeat(sizes, sizes)
    probabilities = 1 / (len(sizes) * size_of_center)
    share = 1 / len(sizes) * _binary_entropy(1 / sizes)
    counts: Indices | None = None
    merged = merge_duplicates(centers, blocks)
    if merged is not None:
        (counts, size_of_center) = (merged.counts, size_of_center[merged.first])
        centers = take_rows(centers, merged.first)
        probabilities = probabilities[merged.first] * counts
        blocks = np.searchsorted(merged.first, blocks)
    log_sizes, log_others = np.log(size_of_center), np.log(size_of_center - 1)
    # Only ratios within a block matter: every sample has weight 1/n in the kernel.
    weights = None if counts is None else (counts / n).astype(centers.dtype)

    def evaluate(points: Points, own: Indices) -> QueryTerms:
        sums = mixture_block_log_sums(
            points,
            centers,
            noise_std,
            own,
            blocks,
            weights=weights,
            include_rest=False,
        )
        own_center = sums.own_center + math.log(n)
        inner = sums.inner + math.log(n)
        density = np.logaddexp(own_center, inner)
        if counts is not None:
            (own_center, equal) = split_own_center(own_center, counts[own])
            inner = np.logaddexp(inner, equal)
        return QueryTerms(
            value=log_sizes[own] - density,
            lower_gap=0.0,
            upper_gap=density - log_sizes[own] - (inner - log_others[own]),
            isolated=is_isolated(own_center, inner),
            own_weight=np.exp(own_center - density),
        )

    problem = Problem(
        centers,
        noise_std,
        evaluate,
        "draws",
        weights=None if np.ptp(probabilities) == 0 else probabilities,
        counts=counts,
        blocks=blocks,
        num_evaluated=max(1, int(sizes @ sizes) // n),
    )
    averages = average_over_noise(problem, budget, seed)
    estimate = _estimate(
        averages,
        budget,
        bounded_difference=float(np.sqrt((sizes * share**2).sum())),
    )
    if estimate.is_undersampled:
        _warn_undersampled(
            estimate,
            f"{_sizes_in_words(sizes)} are too few for d = {d} at"
            f" noise_std = {noise_std:g}",
            "about log(draws) + (d/2) log(2 pi e noise_std^2)",
            "More draws per input, a larger noise_std or fewer dimensions help; the"
            " draws needed grow exponentially with d.",
        )
    return estimate


@_with_gradients
def mutual_information(
    samples: Any,
    noise_std: float,
    *,
    labels: Any = None,
    inputs: Literal["fixed", "sampled"] = "fixed",
    standard_error: float | None = None,
    max_seconds: float | None = None,
    max_pairs: int | None = None,
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
        arrays or torch tensors on one device, float32 or float64. One draw for every
        input means that S is a function of X.
    noise_std : float or tensor without dimensions
        Standard deviation of the noise, in the units of `samples`. Positive.
    labels : (inputs,) array of integers, booleans or strings, optional
        The label Y of each input; the result is then I(Y; T), Y distributed as in
        `labels`.
    inputs : {"fixed", "sampled"}
        "fixed": X takes these inputs and no others. "sampled": they are independent
        samples of a larger population and I(X; T) is wanted for that population.
    standard_error : float, optional
        The standard error wanted, in nats; queries are added until it is met, or until
        only more samples could lower it. 0.01 by default.
    max_seconds : float, optional
        Stop with what was reached after about this time. The result then depends on
        the speed of the machine; bit-for-bit repetition needs `max_pairs`.
    max_pairs : int, optional
        Stop with what was reached before more pairs of a query and a center than this
        are evaluated or skipped. At least 128 n for n samples in all, and 256 n
        where gradients are wanted.
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
        inputs with one draw each are a known mixture: no bias, the bracket closes. One
        fixed input: exactly 0, without error or work.
        `standard_error`, fixed inputs: of the draws and the noise, as in
        `conditional_entropy`; sampled inputs: of the inputs as well.
        `isolated` counts the queries whose conditional mixture (for sampled inputs also
        whose pooled mixture) holds nothing near but what would be left out.
        Where `samples` or `noise_std` are tensors that require gradients, and outside
        torch.no_grad, `value` is a tensor without dimensions that has them; all else
        are numbers. `detached()` and `to_dict()` make a number of it.

    Raises
    ------
    ValueError, TypeError
        If an argument has the wrong shape, type or range.

    Warns
    -----
    UndersampledWarning
        If the samples are too few to trust the value (`Estimate.is_undersampled`).
        Where gradients are wanted the text is the same every time, so that Python
        shows it once for a line of a training loop.
    TargetWarning
        If a `standard_error` was asked for and is not reached; the message says why.

    Notes
    -----
    Cost O(q n d) time for q queries, spent as in `entropy`, and O(n d) memory, for n
    samples in all. With too few draws per input the plug-in is biased upwards, and
    `lower` says how far.

    Gradients are those of the plug-in before it is limited to the range above, once and
    not twice differentiable. They come from as many queries as the value, at least two
    at every sample: in one and two dimensions from the value's grid, exact but for that
    grid's error, and else drawn and mirrored. Drawn ones are unbiased, but for that of
    `noise_std`: from 400 queries on it has a control variate, whose slope is fitted to
    the same draws, and a bias of order 1 / queries, below its own error. A query costs
    two passes over the pairs, counted in `num_pairs`, and on a CPU two to three times
    the time of one of the value (bench/bench_gradients.py); of `max_seconds` and
    `max_pairs` value and gradients have a half each. Where these allow less than two
    queries a sample, some samples have a gradient of zero and the others so much more.
    For 256 samples of 4 tanh units at noise 0.2 the spread over the seeds of the
    gradient of all samples, in parts of its length, is 0.15 by default (97 n^2 pairs),
    0.47 with 32 n^2 and 0.93 with 8 n^2; of its sum along the samples 0.004, 0.03 and
    0.04. In training take another `seed` at every step, so that these errors average
    out. A call with gradients takes some 10 ms however few its pairs, and these 15 to
    30 ms, on two cores (bench/bench_gradient_spread.py).

    Source: Goldfeld et al. (2019), "Estimating Information Flow in Deep Neural
    Networks".

    Examples
    --------
    >>> import numpy as np
    >>> far_apart = np.array([-1.0, 1.0, -1.0, 1.0]).reshape(4, 1, 1)
    >>> round(mutual_information(far_apart, noise_std=0.1).value, 6)  # log 2
    0.693147

    As a penalty in a training loop, on the information that each batch leaves:

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> inputs = torch.randn(64, 8)
    >>> encoder = torch.nn.Sequential(torch.nn.Linear(8, 3), torch.nn.Tanh())
    >>> decoder = torch.nn.Linear(3, 2)
    >>> weights = [*encoder.parameters(), *decoder.parameters()]
    >>> optimizer = torch.optim.Adam(weights, 0.01)
    >>> for step in range(3):
    ...     s = encoder(inputs)
    ...     logits = decoder(s + 0.2 * torch.randn_like(s))
    ...     loss = torch.nn.functional.cross_entropy(logits, (inputs[:, 0] > 0).long())
    ...     information = mutual_information(
    ...         s[:, None], noise_std=0.2, max_pairs=1000 * len(s), seed=step
    ...     )
    ...     optimizer.zero_grad()
    ...     (loss + 0.1 * information.value).backward()
    ...     optimizer.step()
    >>> information.value.grad_fn is not None
    True
    """
    centers, sizes = _checked_samples(samples)
    noise_std = _arrays.check_noise_std(noise_std, centers.dtype)
    _arrays.check_resolution("samples", centers, noise_std)
    budget = Budget.checked(standard_error, max_seconds, max_pairs)
    seed = _checks.as_seed(seed)
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
        rows = np.concatenate([draws_of_input[i] for i in order])
        centers = take_rows(centers, rows)
        sizes = sizes[order]
    if len(sizes) == 1:  # T cannot tell of what is known
        return Estimate(
            0.0, 0.0, 0.0, 0.0, 0.0, 0, bounded_difference=0.0, stopped_by="exact"
        )
    pool = Pool(centers, noise_std, sizes, group_sizes, inputs)
    (n, d) = centers.shape
    # One draw per input: inputs and draws are the same samples.
    blocks = None if pool.is_deterministic else pool.blocks
    is_sampled = inputs == "sampled" and not pool.is_deterministic
    problem = Problem(
        pool.centers,
        noise_std,
        pool.evaluate,
        "noise" if pool.is_population else "inputs" if is_sampled else "draws",
        weights=None if pool.weights is None else pool.probabilities,
        counts=pool.counts,
        blocks=blocks,
        mixture_weights=pool.weights,
    )
    bounded_difference = math.inf
    if pool.is_population:
        bounded_difference = 0.0
    elif pool.is_deterministic and labels is None:  # the entropy, less the noise's
        bounded_difference = _bounded_difference(n, None)
    estimate = _estimate(
        average_over_noise(problem, budget, seed),
        budget,
        bounded_difference=bounded_difference,
        within=(0.0, pool.information_ceiling()),
    )
    if estimate.is_undersampled:
        is_fixed = inputs == "fixed"
        what = _sizes_in_words(sizes) if is_fixed else f"{len(sizes)} inputs"
        _warn_undersampled(
            estimate,
            f"{what} are too few for d = {d} at noise_std = {noise_std:g}",
            f"about {'log(inputs)' if labels is None else 'the entropy of the labels'}",
            f"More {'draws per input' if is_fixed else 'inputs and draws'}, a larger"
            " noise_std or fewer dimensions help.",
        )
    return estimate


def _estimate(
    averages: Averages,
    budget: Budget,
    *,
    bounded_difference: float,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """The estimate; gaps below zero are noise around zero, hence no gap."""
    value = averages.value
    lower = value - max(0.0, averages.lower_gap)
    upper = value + max(0.0, averages.upper_gap)
    (floor, ceiling) = within
    estimate = Estimate(
        value=min(max(value, floor), ceiling) + 0.0,
        standard_error=averages.standard_error,
        lower=min(max(lower, floor), ceiling) + 0.0,  # no -0.0
        upper=min(max(upper, floor), ceiling) + 0.0,
        isolated=min(averages.isolated, 1.0),
        num_pairs=averages.num_pairs,
        monte_carlo_error=averages.monte_carlo_error,
        saturation=min(max(averages.own_weight, 0.0), 1.0),
        bounded_difference=bounded_difference,
        stopped_by=averages.stopped_by,
    )
    if budget.is_explicit and averages.stopped_by != "target":
        _warn_target(estimate, budget)
    return estimate


_WHY = {
    "samples": "the samples themselves leave more: more of them are needed, {how_many}",
    "pairs": "the limit of pairs is reached; a larger max_pairs would get there",
    "seconds": "max_seconds is reached; more time would get there",
}


def _warn_target(estimate: Estimate, budget: Budget) -> None:
    of_samples = math.sqrt(
        max(estimate.standard_error**2 - estimate.monte_carlo_error**2, 0)
    )
    reason = estimate.stopped_by
    if of_samples > budget.standard_error:  # then no budget would do
        reason = "samples"
    factor = (of_samples / budget.standard_error) ** 2
    how_many = f"roughly {factor:.0f} times as many" if factor < 1e9 else "many"
    warnings.warn(
        f"the standard error is {estimate.standard_error:.2g} nats and not the"
        f" {budget.standard_error:.2g} asked for:"
        f" {_WHY[reason].format(how_many=how_many)}",
        TargetWarning,
        stacklevel=_level_of_caller(),
    )


def _level_of_caller() -> int:
    """The stacklevel, for who asks, of the line that called this package."""
    (frame, level) = (sys._getframe(1), 1)
    while frame.f_back and frame.f_globals.get("__package__") == __package__:
        (frame, level) = (frame.f_back, level + 1)
    return level


def _warn_undersampled(
    estimate: Estimate, too_few: str, then: str, remedy: str
) -> None:
    if _is_repeated.get():
        found = (
            "the samples are too few for this dimension and noise_std: the value is"
            " biased; trust only the bracket [lower, upper]. The estimate's `isolated`"
            " and `saturation` say how far, and without gradients this warning does."
        )
    elif estimate.isolated > 0.5:
        found = (
            f"{100 * estimate.isolated:.0f} % of the queries have no neighbour but"
            f" their own sample: {too_few}. The value is then {then}, whatever the"
            " distribution; trust only the bracket"
            f" [{estimate.lower:.3g}, {estimate.upper:.3g}]."
        )
    else:
        found = (
            f"{too_few}: a query's own sample makes up"
            f" {100 * estimate.saturation:.0f} % of the density that it meets. The"
            " value is biased; trust only the bracket"
            f" [{estimate.lower:.3g}, {estimate.upper:.3g}]."
        )
    level = _level_of_caller()
    warnings.warn(f"{found} {remedy}", UndersampledWarning, stacklevel=level)


def _sizes_in_words(sizes: Indices) -> str:
    (low, high) = (sizes.min(), sizes.max())
    return f"{low if low == high else f'{low} to {high}'} draws per input"


def _checked_samples(samples: Any) -> tuple[Any, Indices]:
    """All samples as centers (n, d), input after input, and the draws of each input."""
    if isinstance(samples, SampledRows):
        _check_draws(samples.sizes)
        return samples.rows, samples.sizes
    if is_any_on_device(*(samples if isinstance(samples, list | tuple) else [samples])):
        rows, sizes = checked_samples(samples)
        _check_draws(sizes)
        return rows, sizes
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
                + "; pass samples[:, None] for one draw per input"
                * (array.ndim == 2)
            )
        if array.size == 0:
            raise ValueError(f"samples must not be empty, got shape {array.shape}")
        (num_inputs, num_draws, d) = array.shape
        centers = _arrays.as_matrix("samples", array.reshape(-1, d), shape=array.shape)
        sizes = np.full(num_inputs, num_draws)
    _check_draws(sizes)
    return centers, sizes


def _check_draws(sizes: Indices) -> None:
    if sizes.min() == 1 and sizes.max() > 1:
        raise ValueError(
            "samples must hold at least 2 draws of every input, or 1 of every input (S"
            f" a function of X), got 1 in samples[{sizes.argmin()}] and"
            f" {sizes.max()} in samples[{sizes.argmax()}]"
        )
