"""Measures of a layer's representations: clustering made measurable.

The information that a noisy layer keeps falls where its symbols, the images of the
inputs before the noise, come closer than the noise. What is here sees this directly and
in any dimension: distances within and between classes, the similarity of two networks'
representations, and numbers of clusters. The entropy of binned activations is a further
such measure: `noisyflow.baselines.Binning`, and `noisyflow.baselines.sweep` over bin
widths. Figures of the results are in `noisyflow.plotting`.

NumPy arrays and torch tensors, also of a GPU, are accepted everywhere; the results are
NumPy's, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from noisyflow import _arrays, _checks
from noisyflow._device import is_on_device, on_host
from noisyflow.estimate import Estimate
from noisyflow.information import mutual_information

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_CHUNK_NUMBERS = 2**21  # numbers in one piece of work: 16 MiB
# Scales whose squares are numbers, with room for sums.
_SMALLEST_SCALE, _LARGEST_SCALE = 1e-140, 1e140
# Up to here trees are used: in 10 dimensions they were 2 to 50 times as fast as the
# comparison of all pairs for 20,000 normal samples, at every scale.
_MOST_TREE_DIMENSIONS = 12
_NUM_NEIGHBOURS = 8


# -- distances ----------------------------------------------------------------


@dataclass(frozen=True)
class ClassDistances:
    """Distances between pairs of representations, of one class and of two.

    Attributes
    ----------
    edges : (b + 1,) array
        Ends of the histograms' bins, from 0 to the largest distance, in the units of
        the samples.
    within, between : (b,) array
        Share of the pairs of one class, and of two classes, in each bin. Each sums to
        1.
    mean_within, mean_between : float
        Mean distances.
    within_error, between_error, ratio_error : float
        Standard errors of the two means and of `ratio` over repetitions with other
        points. Infinite where leaving out a point leaves no pair.
    num_within, num_between : int
        Number of pairs that were looked at.
    """

    edges: Floats
    within: Floats
    between: Floats
    mean_within: float
    mean_between: float
    within_error: float
    between_error: float
    ratio_error: float
    num_within: int
    num_between: int

    @property
    def ratio(self) -> float:
        """mean_within / mean_between: 0 where every class has collapsed to a point.

        About 1 where classes and positions have nothing to do with each other; NaN
        where all points coincide.
        """
        return self.mean_within / self.mean_between if self.mean_between else math.nan


def class_distances(
    samples: Any,
    labels: Any,
    *,
    num_bins: int = 50,
    max_pairs: int = 2_000_000,
    seed: int = 0,
) -> ClassDistances:
    """Histograms and means of the distances |s_i - s_j| within and between classes.

    Parameters
    ----------
    samples : (n, d) array
        Representations, one for each input. NumPy array or torch tensor, float32 or
        float64.
    labels : (n,) array of integers, booleans or strings
        At least two classes, one of them with at least two points.
    num_bins : int
        Bins of the histograms, from 0 to the largest distance.
    max_pairs : int
        The most pairs looked at. Half of them are for each kind, and a kind that has
        more is represented by so many of its pairs at random, all different. At least
        2.
    seed : int
        Of the choice of pairs.

    Returns
    -------
    ClassDistances

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape, type or range.

    Notes
    -----
    Pairs that share a point are not independent. The standard errors are therefore
    those of the jackknife over points: each point is left out in turn, with all its
    pairs. They stand for points drawn with their labels from a larger population, count
    the choice of pairs in, and are on average not too small (Efron and Stein, 1981).

    A distance of less than 1e-160 of the largest number in the samples may count as 0.

    Cost O(p d) time for p pairs and O(p + n) memory.

    Source: Goldfeld et al. (2019), where histograms of these distances show clustering.

    Examples
    --------
    >>> import numpy as np
    >>> activations = np.array([[0.0], [0.2], [2.0], [2.2]])
    >>> distances = class_distances(activations, [0, 0, 1, 1])
    >>> round(distances.mean_within, 6), round(distances.mean_between, 6)
    (0.2, 2.0)
    """
    x = _as_samples(samples)
    num_bins = _checks.as_int("num_bins", num_bins, at_least=1, at_most=1_000_000)
    max_pairs = _checks.as_int("max_pairs", max_pairs, at_least=2)
    generator = np.random.default_rng(_checks.as_seed(seed))
    order, sizes = _arrays.group_by_label(labels, len(x))
    if len(sizes) < 2:
        raise ValueError("labels must hold at least two classes, got one")
    if sizes.max() < 2:
        raise ValueError(
            "labels must hold a class of at least two points, got one point of each"
        )
    # By a power of two to below 1, which rounds nothing: squares must not be beyond
    # all numbers, nor those of numbers that are small but all there is.
    (_, exponent) = np.frexp(np.abs(x).max())
    x = np.ldexp(x[order], -exponent)
    # Class by class, the partners of a point are a range: what is left of its own class
    # and then all later classes. Every pair has one number.
    own_end = np.repeat(np.cumsum(sizes), sizes)
    place = np.arange(len(x))
    within = _distances(x, place + 1, own_end, max_pairs // 2, generator)
    between = _distances(
        x, own_end, np.full(len(x), len(x)), max_pairs - max_pairs // 2, generator
    )
    largest = max(within.values.max(), between.values.max())
    with np.errstate(over="ignore"):
        if not np.isfinite(np.ldexp(largest, exponent)):
            raise ValueError("samples must have finite distances; rescale them")
    bins = (num_bins, (0.0, float(largest) or 1.0))
    counts, edges = np.histogram(within.values, *bins)
    counts_between, _ = np.histogram(between.values, *bins)
    with np.errstate(divide="ignore", invalid="ignore"):  # no pair, or no distance left
        ratios = within.without_each / between.without_each

    def unscaled(value: float) -> float:
        return float(np.ldexp(value, exponent))

    return ClassDistances(
        edges=np.ldexp(edges, exponent),
        within=counts / len(within.values),
        between=counts_between / len(between.values),
        mean_within=unscaled(within.values.mean()),
        mean_between=unscaled(between.values.mean()),
        within_error=unscaled(_jackknife_error(within.without_each)),
        between_error=unscaled(_jackknife_error(between.without_each)),
        ratio_error=_jackknife_error(ratios),
        num_within=len(within.values),
        num_between=len(between.values),
    )


@dataclass(frozen=True)
class _Distances:
    """Distances of some pairs, and the mean without each point; NaN if none is left."""

    values: Floats
    without_each: Floats


def _distances(
    x: Floats, begin: Indices, end: Indices, limit: int, generator: np.random.Generator
) -> _Distances:
    """Distances of the points i to their partners begin[i] <= j < end[i], i < j."""
    last_number = np.cumsum(end - begin)
    num_pairs = int(last_number[-1])
    numbers = None
    if num_pairs > limit:
        numbers = np.sort(
            generator.choice(num_pairs, limit, replace=False, shuffle=False)
        )
        num_pairs = limit
    (n, d) = x.shape
    values = np.empty(num_pairs)
    sum_of_point, pairs_of_point = np.zeros(n), np.zeros(n)
    step = max(1, _CHUNK_NUMBERS // d)
    for start in range(0, num_pairs, step):
        stop = min(start + step, num_pairs)
        chosen = np.arange(start, stop) if numbers is None else numbers[start:stop]
        i = np.searchsorted(last_number, chosen, side="right")
        j = end[i] - (last_number[i] - chosen)
        distances = _lengths(x[i] - x[j])
        for points in (i, j):
            sum_of_point += np.bincount(points, distances, minlength=n)
            pairs_of_point += np.bincount(points, minlength=n)
        values[start:stop] = distances
    with np.errstate(divide="ignore", invalid="ignore"):
        without_each = (values.sum() - sum_of_point) / (num_pairs - pairs_of_point)
    # Rounding of the difference is no negative distance.
    return _Distances(values, np.maximum(without_each, 0.0))


def _lengths(differences: Floats) -> Floats:
    """Euclidean lengths of rows."""
    squares: Floats = np.einsum("ij,ij->i", differences, differences)
    return np.sqrt(squares)


def _jackknife_error(without_each: Floats) -> float:
    """Standard error of a statistic, from its values without one point each."""
    if not np.isfinite(without_each).all():
        return math.inf
    return math.sqrt((len(without_each) - 1) * float(without_each.var()))


# -- similarity ---------------------------------------------------------------


def cosine_similarity(first: Any, second: Any) -> Floats:
    """Cosines <a_i, b_i> / (|a_i| |b_i|) between two representations of each input.

    Compares two networks of the same shape, or one at two epochs, unit by unit: a
    network whose units are in another order is not similar to itself.

    Parameters
    ----------
    first, second : (m, ...) array
        Representations of the same m inputs, in the same order; all other dimensions,
        at least one, are flattened. NumPy arrays or torch tensors, float32 or float64.

    Returns
    -------
    (m,) array
        float64, between -1 and 1.

    Raises
    ------
    TypeError, ValueError
        If shapes differ or an array has the wrong type, if a number is not finite, or
        if a representation is zero and so has no direction.

    Notes
    -----
    Cost O(m d) time and memory.

    Source: Goldfeld et al. (2019), where it compares noisy networks with deterministic
    ones and with such that were trained with dropout.

    Examples
    --------
    >>> import numpy as np
    >>> cosine_similarity(np.array([[1.0, 0.0]]), np.array([[3.0, 4.0]]))
    array([0.6])
    """
    a, shape = _as_flat("first", first)
    b, other_shape = _as_flat("second", second)
    if shape != other_shape:
        raise ValueError(
            f"first and second must have the same shape, got {shape} and {other_shape}"
        )
    cosines = np.einsum("ij,ij->i", _directions("first", a), _directions("second", b))
    clipped: Floats = np.clip(cosines, -1.0, 1.0)
    return clipped


def _as_flat(name: str, value: Any) -> tuple[Floats, tuple[int, ...]]:
    """A finite array in float64 with all but its first dimension flattened."""
    array = _arrays.to_numpy(name, on_host(value))
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            f"{name} must have shape (m, ...), one vector or more for each input, and "
            f"not be empty, got shape {array.shape}"
        )
    flat = array.reshape(len(array), -1)
    flat = _arrays.as_matrix(name, flat, shape=array.shape)
    return np.asarray(flat, np.float64), array.shape


def _directions(name: str, rows: Floats) -> Floats:
    """Rows of length 1."""
    largest = np.abs(rows).max(axis=1, keepdims=True)
    if not largest.all():
        raise ValueError(
            f"{name} must not hold a vector of zeros, which has no direction, got one "
            f"at [{int(largest.argmin())}]; leave those inputs out of both"
        )
    scaled: Floats = rows / largest  # its squares neither overflow nor vanish
    return scaled / _lengths(scaled)[:, None]


# -- clusters -----------------------------------------------------------------


def num_clusters(samples: Any, scale: float) -> int:
    """Number of single-linkage clusters: of `single_linkage`, where to read more.

    Parameters
    ----------
    samples : (n, d) array
        NumPy array or torch tensor, float32 or float64.
    scale : float
        Points at most this far apart are linked, in the units of the samples. Between
        1e-140 and 1e140.

    Returns
    -------
    int
        Between 1 and n.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape, type or range.

    Examples
    --------
    >>> import numpy as np
    >>> activations = np.array([[-1.0], [-0.99], [-0.98], [0.3], [1.0]])
    >>> num_clusters(activations, 0.015), num_clusters(activations, 0.001)
    (3, 5)
    """
    return int(single_linkage(samples, scale).max()) + 1


def single_linkage(samples: Any, scale: float) -> Indices:
    """The cluster of every point, where points at most `scale` apart are linked.

    Links are transitive: clusters are the connected components of the graph of all
    links, and different clusters are more than `scale` apart everywhere. With the noise
    as the scale, neighbours that the noise confuses are in one cluster.

    Parameters
    ----------
    samples : (n, d) array
        NumPy array or torch tensor, float32 or float64.
    scale : float
        Points at most this far apart are linked, in the units of the samples. Between
        1e-140 and 1e140.

    Returns
    -------
    (n,) array of int
        Numbers of clusters from 0, in the order of their first points.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape, type or range.

    Notes
    -----
    The weakness is chains: points strung out at small steps are one cluster however far
    its ends are apart, so a continuum counts as 1 and one point halfway between two
    clusters may join them. `effective_clusters` has no such jumps.

    The links decide alone, but for rounding where a distance is `scale` itself. Up to
    twelve dimensions trees of the points are searched for neighbours in other clusters
    than their own, in O(n d) memory: in up to six dimensions a second or so for 100,000
    points, scattered or merged into blobs; more where gaps between large clusters are
    hardly wider than the scale, and in more dimensions. Beyond, all pairs are compared:
    O(n^2 d) time and O(n d) memory, a second for 5000 points in 500 dimensions.

    Source: Sibson (1973), "SLINK"; the rounds of Boruvka (1926).

    Examples
    --------
    >>> import numpy as np
    >>> single_linkage(np.array([[0.0], [1.0], [5.0], [0.5]]), 0.6)
    array([0, 0, 1, 0])
    """
    x = _as_samples(samples)
    scale = _checks.as_real("scale", scale)
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")
    if not _SMALLEST_SCALE <= scale <= _LARGEST_SCALE:
        raise ValueError(
            f"scale must be between {_SMALLEST_SCALE} and {_LARGEST_SCALE}, got "
            f"{scale}; rescale the samples"
        )
    # Points that coincide are one: most of a saturated layer's do.
    points, inverse = np.unique(x, axis=0, return_inverse=True)
    is_low = points.shape[1] <= _MOST_TREE_DIMENSIONS
    link = _linked_by_trees if is_low else _linked_by_all_pairs
    clusters = link(points, scale)[inverse.ravel()]
    _, first, clusters = np.unique(clusters, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[clusters.ravel()]


def _joined(clusters: Indices, i: Indices, j: Indices) -> Indices:
    """The clusters after the points i and j are linked, numbered anew from 0."""
    if len(i) == 0:
        return clusters
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    num = int(clusters.max()) + 1
    links = coo_array(
        (np.ones(len(i), np.bool_), (clusters[i], clusters[j])), shape=(num, num)
    )
    _, component = connected_components(links, directed=False)
    return np.asarray(component, np.int64)[clusters]


def _cells(points: Floats, scale: float) -> Indices:
    """The cell of each point in a grid whose cells have diagonals below `scale`."""
    side = scale / math.sqrt(points.shape[1])
    # Below 2^30 cells from zero, a quotient is wrong by at most 2^-23 of a cell.
    if np.abs(points).max() > 2.0**30 * side:
        return np.arange(len(points))
    corners = np.floor(points / (side * (1 - 1e-6)))
    return np.asarray(np.unique(corners, axis=0, return_inverse=True)[1].ravel())


def _linked_by_trees(points: Floats, scale: float) -> Indices:
    """Clusters of different points in few dimensions.

    A query for all neighbours would find n^2 of them in a blob. Here points in a cell
    with a diagonal of `scale` are linked at once. If that leaves many clusters, every
    point asks for a few neighbours: who has no more than these within the scale is
    settled, and a link that is still missing is one between two unsettled points. Then,
    in rounds, every unsettled point asks for its nearest in other clusters: two
    clusters differ in a binary digit of their numbers, so for each digit those with a 0
    ask those with a 1 and the other way around. Every cluster that is not finished
    finds another, which at least halves their number; one that finds none is finished.
    """
    from scipy.spatial import cKDTree

    n = len(points)
    below = np.nextafter(scale, np.inf)  # the tree finds what is nearer than its bound
    clusters = _cells(points, scale)
    active = np.arange(n)
    if clusters.max() * _NUM_NEIGHBOURS > n:
        # balanced_tree: medians of many equal coordinates take quadratic time.
        tree = cKDTree(points, balanced_tree=False)
        _, found = tree.query(points, _NUM_NEIGHBOURS + 1, distance_upper_bound=below)
        row, column = np.nonzero(found < n)
        clusters = _joined(clusters, row, found[row, column])
        active = np.flatnonzero(found[:, -1] < n)
    while len(active) and len(np.unique(clusters[active])) > 1:
        _, number = np.unique(clusters[active], return_inverse=True)
        ends: list[tuple[Indices, Indices]] = []
        for digit in range(int(number.max()).bit_length()):
            is_set = (number >> digit & 1).astype(bool)
            halves = active[is_set], active[~is_set]
            for asked, asking in (halves, halves[::-1]):
                tree = cKDTree(points[asked], balanced_tree=False)
                _, found = tree.query(points[asking], distance_upper_bound=below)
                has = found < len(asked)
                ends.append((asking[has], asked[found[has]]))
        i, j = (np.concatenate(side) for side in zip(*ends, strict=True))
        is_unfinished = np.isin(clusters, clusters[i])
        clusters = _joined(clusters, i, j)
        active = active[is_unfinished[active]]
    return clusters


def _open_pairs(
    clusters: Indices, is_pair: NDArray[np.bool_], start: int
) -> tuple[Indices, Indices]:
    """Pairs of points in different clusters, from a block that begins at `start`."""
    i, j = np.nonzero(is_pair)
    i, j = i + start, j + start
    is_open = clusters[i] != clusters[j]
    return i[is_open], j[is_open]


def _linked_by_all_pairs(points: Floats, scale: float) -> Indices:
    """Clusters of different points in many dimensions.

    Squared distances come from one product of matrices. Those that rounding leaves in
    doubt are computed again from differences, unless the two are in one cluster
    already.
    """
    n, d = points.shape
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", points, points)
    # Products and sums of d terms, each of at most |x| |y|, and those of two squares:
    # the bound of a dot product (Higham 2002, section 3.1), doubled. Infinite or NaN
    # where squares overflow: then all is in doubt.
    doubt = 2 * (d + 4) * np.finfo(np.float64).eps * 4 * squares.max()
    clusters = np.arange(n)
    step = max(1, _CHUNK_NUMBERS // n)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        with np.errstate(over="ignore", invalid="ignore"):
            squared = points[rows] @ points[start:].T
            squared *= -2
            squared += squares[rows, None]
            squared += squares[None, start:]
            squared -= scale**2
        i, j = _open_pairs(clusters, squared <= -doubt, start)
        clusters = _joined(clusters, i, j)
        i, j = _open_pairs(clusters, ~(np.abs(squared) > doubt), start)
        pieces = max(1, len(i) * d // _CHUNK_NUMBERS)
        for a, b in zip(
            np.array_split(i, pieces), np.array_split(j, pieces), strict=True
        ):
            with np.errstate(over="ignore"):
                is_near = _lengths(points[a] - points[b]) <= scale
            clusters = _joined(clusters, a[is_near], b[is_near])
    return clusters


# -- effective number of clusters ---------------------------------------------


@dataclass(frozen=True)
class EffectiveClusters:
    """A number of symbols that noise leaves apart, with both of its errors.

    Attributes
    ----------
    value : float
        exp of the information; 1 or more.
    standard_error : float
        `value` times the standard error of the information. Infinite where that is.
    lower, upper : float
        exp of the ends of the information's bias bracket. Not a confidence interval.
    information : Estimate
        I(S; S + Z), in nats, with its errors and its cost.

    Examples
    --------
    >>> information = Estimate(1.0986, 0.01, 1.0986, 1.0986, 0.0, 1000)
    >>> print(EffectiveClusters(3.0, 0.03, 3.0, 3.0, information))
    3 +- 0.03 (standard error), bias bracket [3, 3]
    """

    value: float
    standard_error: float
    lower: float
    upper: float
    information: Estimate

    def __str__(self) -> str:
        return (
            f"{self.value:.4g} +- {self.standard_error:.2g} (standard error),"
            f" bias bracket [{self.lower:.4g}, {self.upper:.4g}]"
        )


def effective_clusters(
    samples: Any,
    noise_std: float,
    *,
    inputs: Literal["fixed", "sampled"] = "fixed",
    standard_error: float | None = None,
    max_seconds: float | None = None,
    max_pairs: int | None = None,
    seed: int = 0,
) -> EffectiveClusters:
    """The number of symbols that noise leaves apart, exp I(S; S + Z).

    As many symbols of equal weight, well apart, would carry the same information.
    Choose it over `num_clusters` where clusters differ in weight or are not clear-cut:
    it changes without jumps, and chains do not mislead it.

    Parameters
    ----------
    samples : (n, d) array
        Representations S before the noise, one for each input, all equally probable.
        NumPy array or torch tensor, float32 or float64.
    noise_std : float
        Standard deviation of Z, in the units of `samples`. Positive.
    inputs : {"fixed", "sampled"}
        "fixed": there are no other inputs than these. "sampled": these are independent
        samples of a larger population, which the number is wanted for.
    standard_error : float, optional
        The standard error of the information wanted, in nats, and so about that of the
        number in parts of it. 0.01 by default.
    max_seconds, max_pairs, seed : optional
        As for `noisyflow.mutual_information`.

    Returns
    -------
    EffectiveClusters
        Fixed inputs: between 1, where the noise hides everything, and n, where it hides
        nothing; k symbols well apart with masses p_1, ..., p_k give exp H(p), which is
        k for equal masses; no bias, and the bracket closes. Sampled inputs: 1 or more.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape, type or range.

    Warns
    -----
    UndersampledWarning, TargetWarning
        As `noisyflow.mutual_information` does.

    Notes
    -----
    Cost of `noisyflow.mutual_information` with one draw for each input. The mean of exp
    is not exp of the mean: the value is too large by half the square of the
    information's standard error, in parts of it, 0.005 % by default.

    Source: Goldfeld et al. (2019), section 4: a layer as a constellation that is sent
    over a Gaussian channel; exp of an entropy as a number of species is due to Hill
    (1973).

    Examples
    --------
    >>> import numpy as np
    >>> symbols = np.array([[-1.0], [0.0], [1.0]])
    >>> round(effective_clusters(symbols, noise_std=0.05).value, 6)
    3.0
    """
    if is_on_device(samples):
        _arrays.refuse_gradients("samples", samples)
        _arrays.check_matrix_shape("samples", samples)
    else:
        samples = _arrays.as_matrix("samples", samples)
    information = mutual_information(
        samples[:, None],
        noise_std,
        inputs=inputs,
        standard_error=standard_error,
        max_seconds=max_seconds,
        max_pairs=max_pairs,
        seed=seed,
    ).detached()
    value = _exp(information.value)
    return EffectiveClusters(
        value=value,
        standard_error=value * information.standard_error,
        lower=_exp(information.lower),
        upper=_exp(information.upper),
        information=information,
    )


def _exp(nats: float) -> float:
    """exp, infinite where that is beyond all numbers."""
    return math.exp(nats) if nats < 709 else math.inf


def _as_samples(samples: Any) -> Floats:
    """(n, d) finite samples in float64."""
    return np.asarray(_arrays.as_matrix("samples", on_host(samples)), np.float64)
