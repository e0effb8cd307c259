"""Mixtures prepared for many points, and how their log-density is computed."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import _arrays, _checks, _core, _device
from noisyflow._rows import AbstractRows
from noisyflow.runtime import num_threads

Floats = NDArray[Any]

# Instructions, about: ordering a point or a center, and below how many of pairs nothing
# but evaluating them can pay.
_ORDER_WORK, _ORDER_WORK_PER_DIM = 1100.0, 40.0
SMALLEST_WORK = 3e7
_MAX_CELL_DIMS, _MOST_TERMS = 32, 16_000

_CHOOSE, _EVERY_PAIR = 0, 1
_PATHS = {1: "every pair", 2: "blocks of points", 3: "point by point"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a log-density is computed, and what that leaves to do.

    Expectations come from a sample of the points, which also chose the path. The counts
    of what was done stand beside them.

    Attributes
    ----------
    path : str
        "every pair", "blocks of points" (far leaves of a tree are left out, tight cells
        replaced by polynomials) or "point by point" (each through the tree alone).
    num_pairs : int
        Points times centers.
    expected_pairs, expected_terms : float
        Pairs evaluated one by one, and coefficients of polynomials evaluated.
    expected_seconds : float
        With one thread, on this machine, as the sample ran; with the tree if it was
        built for this.
    num_cells : int
        Groups of centers that a polynomial can stand for.
    num_bytes : int
        Memory of the tree, its two copies of the centers included; a copy of the points
        comes on top while they are evaluated.
    evaluated_pairs, aggregated_pairs, evaluated_terms : int
        What was done: pairs one by one, pairs that polynomials stood for, and the
        polynomials' coefficients. All other pairs were skipped.
    seconds : float
        Of the evaluation, all threads together on the clock.
    """

    path: str
    num_pairs: int
    expected_pairs: float
    expected_terms: float
    expected_seconds: float
    num_cells: int
    num_bytes: int
    evaluated_pairs: int
    aggregated_pairs: int
    evaluated_terms: int
    seconds: float

    def __str__(self) -> str:
        done = self.evaluated_pairs + self.aggregated_pairs
        skipped = 1 - done / self.num_pairs if self.num_pairs else 0.0
        return (
            f"{self.path}: {self.expected_pairs:.3g} of {self.num_pairs:.3g} pairs "
            f"expected one by one, {self.expected_terms:.3g} polynomial terms, "
            f"{self.expected_seconds:.2g} s; {self.num_bytes / 1e6:.3g} MB. "
            f"Evaluated {self.evaluated_pairs:.3g} pairs, "
            f"{self.aggregated_pairs:.3g} by {self.evaluated_terms:.3g} terms, "
            f"{skipped:.1%} skipped, in {self.seconds:.2g} s"
        )


def checked_max_lost_mass(value: Any, dtype: Any) -> float:
    """The default for the dtype, or a number in [0, 1)."""
    if value is None:
        return 1e-6 if dtype == np.float32 else 1e-13
    lost = _checks.as_real("max_lost_mass", value)
    if not 0 <= lost < 1:
        raise ValueError(f"max_lost_mass must be at least 0 and below 1, got {value}")
    return lost


def pair_work(num_points: int, num_centers: int, d: int, itemsize: int) -> float:
    """Instructions to evaluate every pair, in vectors of 16 floats or 8 doubles."""
    exponential = 9 if itemsize == 4 else 15
    return num_points * num_centers * (2 * d + exponential) * itemsize / 64


def order_work(num_points: int, num_centers: int, d: int) -> float:
    """Instructions to order points and centers."""
    return (num_points + num_centers) * (_ORDER_WORK + _ORDER_WORK_PER_DIM * d)


def is_worth_a_tree(
    x: Floats,
    y: Floats,
    noise_std: float,
    max_lost_mass: float,
    *,
    is_kept: bool = False,
    num_points: int | None = None,
) -> bool:
    """Whether a tree is likely to save more than it costs, by a sample of pairs.

    Either few pairs are near enough to matter, or many centers lie so close together
    that polynomials can stand for them. is_kept: the tree is for other points too.
    num_points: where x is but a sample of the points.
    """
    (m, n, d) = (num_points or len(x), len(y), y.shape[1])
    all_pairs = pair_work(m, n, d, y.itemsize)
    ordering = order_work(m, 0 if is_kept else n, d)
    if all_pairs < max(SMALLEST_WORK, 1.5 * ordering):
        return False
    size = max(8, min(64, 2**21 // (256 * d)))
    squares = _core.sampled_squares(x, y, size, 256)
    reach = noise_std**2 * (d + 2 * math.log(n / max_lost_mass))
    # Boxes are wider than the points in them: of blocks, hence the square root; and in
    # many dimensions, where leaves are as wide as the data in most of them.
    is_costly = ordering > 0.05 * all_pairs
    share = float((squares < (12 if d >= 8 and is_costly else 1) * reach).mean())
    if math.sqrt(share) * all_pairs + 1.5 * ordering < 0.8 * all_pairs:
        return True
    if d > _MAX_CELL_DIMS:
        return False
    squares = _core.sampled_squares(y, y, 64, 256) / noise_std**2
    share = cell_work_share(squares, n, d, max_lost_mass)
    # In more dimensions cells are as often too wide for this estimate as not.
    return share + 3 * ordering / all_pairs < (0.8 if d <= 3 else 0.4)


def cell_work_share(squares: Floats, n: int, d: int, max_lost_mass: float) -> float:
    """Work with cells as a share of that of every pair, by the centers' distances.

    squares: squared distances of a sample of centers, in units of noise_std.
    """
    bits = -math.log2(max_lost_mass) + 7
    best = 1.0
    for mean_square in (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4):
        order = _order_for(mean_square, bits)
        terms = math.comb(order - 1 + d, d) if order else _MOST_TERMS
        if terms >= _MOST_TERMS:
            continue
        # Centers within a cell of this mean square around a center; the center itself,
        # once per row of the sample, says nothing about the others.
        share = float((squares < 2 * mean_square).mean()) - 1 / squares.shape[1]
        count = max(1.0, n * share)
        best = min(best, (2.3 * terms + 60) / (count * (2 * d + 9)))
    return best


def _order_for(mean_square: float, bits: float) -> int:
    """The order whose truncation error is small enough, about; 0 beyond 24."""
    for order in range(2, 25, 2):
        reached = 0.5 * math.lgamma(order + 1) / math.log(2)
        if reached - 0.5 * order * math.log2(2 * mean_square) >= bits:
            return order
    return 0


class PreparedMixture:
    """A Gaussian mixture ordered once, for the log-density at many sets of points.

    Made by `prepare`.

    Attributes
    ----------
    num_centers, dimension : int
    noise_std, max_lost_mass : float
    """

    def __init__(
        self, centers: Floats, noise_std: float, weights: Any, max_lost_mass: float
    ) -> None:
        self._centers = centers
        self._weights = weights
        self._noise_std = noise_std
        self._max_lost_mass = max_lost_mass
        self._tree: Any = None
        self._tree_seconds = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tree": None}  # built again where it is wanted

    def __repr__(self) -> str:
        return (
            f"PreparedMixture({self.num_centers} centers, d = {self.dimension}, "
            f"noise_std = {self._noise_std:g}, max_lost_mass = {self._max_lost_mass:g})"
        )

    @property
    def noise_std(self) -> float:
        return self._noise_std

    @property
    def max_lost_mass(self) -> float:
        return self._max_lost_mass

    @property
    def num_centers(self) -> int:
        return len(self._centers)

    @property
    def dimension(self) -> int:
        return int(self._centers.shape[1])

    def log_density(self, points: Any) -> Any:
        """Log-density at points (m, d), as `mixture_log_density`; (m,), in nats."""
        x = self._as_points(points)
        result, _ = self._evaluate(x, is_kept=True)
        return _arrays.same_library(result, points)

    def explain(self, points: Any) -> Plan:
        """The `Plan` of `log_density(points)`, which is computed for it."""
        return self._evaluate(self._as_points(points), is_kept=True)[1]

    def _as_points(self, points: Any) -> Floats:
        x = _arrays.as_matrix("points", points, allow_empty=True)
        if x.dtype != self._centers.dtype:
            raise TypeError(
                f"points must have the dtype of the centers, {self._centers.dtype}, "
                f"got {x.dtype}"
            )
        if x.shape[1] != self.dimension:
            raise ValueError(
                f"points must have the dimension of the centers, {self.dimension}, "
                f"got shape {x.shape}"
            )
        return x

    def _build(self) -> Any:
        if self._tree is None:
            start = time.perf_counter()
            kind = _core.Prepared32 if self._centers.itemsize == 4 else _core.Prepared64
            self._tree = kind(
                self._centers,
                self._noise_std,
                self._weights,
                self._max_lost_mass,
                True,
                num_threads(),
            )
            self._tree_seconds = time.perf_counter() - start
        return self._tree

    def log_own_and_others(
        self, points: Floats, own: NDArray[np.int64]
    ) -> tuple[Floats, Floats]:
        """The own center's term at each point and the sum of all others; (m,), logs.

        What the plug-in and the leave-one-out density are made of. max_lost_mass is of
        the others' sum. points (m, d) and own (m,), indices of centers, are trusted.
        """
        answer = self._through_tree(points, own)
        if answer is None or answer[0] is None:
            sums = _core.block_log_sums(
                points,
                self._centers,
                self._noise_std,
                own,
                np.array([0, self.num_centers]),
                np.array([0, self.num_centers]),
                self._weights,
                False,
                num_threads(),
            )
            own_center, others = sums[0], sums[1]
        else:
            others = answer[0]
            difference = points.astype(np.float64) - self._centers[own]
            own_center = self._log_constant(own) - (difference**2).sum(axis=1) / (
                2 * self._noise_std**2
            )
        _arrays.check_representable("the own sum", own_center, allow_minus_inf=True)
        _arrays.check_representable("the others' sum", others, allow_minus_inf=True)
        return own_center, others

    def _log_constant(self, own: NDArray[np.int64]) -> Floats:
        """log w_j (2 pi noise_std^2)^(-d/2)."""
        n, d = self._centers.shape
        log_weight: Any = -math.log(n)
        if self._weights is not None:
            log_weight = np.log(self._weights[own].astype(np.float64))
        constant: Floats = np.asarray(
            log_weight - 0.5 * d * math.log(2 * math.pi * self._noise_std**2)
        )
        return constant

    def _through_tree(
        self, x: Floats, own: NDArray[np.int64] | None = None, *, is_kept: bool = False
    ) -> Any:
        """What the tree answers (_core.pyi); None where a sample of pairs is against.

        is_kept: the tree is for more than these points.
        """
        n, d = self._centers.shape
        is_large = pair_work(len(x), n, d, x.itemsize) >= SMALLEST_WORK
        if self._max_lost_mass == 0 or not is_large:
            return None
        if self._tree is None and not is_worth_a_tree(
            x, self._centers, self._noise_std, self._max_lost_mass, is_kept=is_kept
        ):
            return None
        return self._build().log_density(x, _CHOOSE, num_threads(), own)

    def log_partial(self, points: Floats) -> Floats:
        """As `log_density`, of trusted points, where other centers join the sum.

        -inf where all centers here are too far for the dtype: others may be near.
        """
        return self._evaluate(points, is_kept=True, allow_minus_inf=True)[0]

    def _evaluate(
        self, x: Floats, *, is_kept: bool = False, allow_minus_inf: bool = False
    ) -> tuple[Floats, Plan]:
        """The log-density and how it was computed; is_kept as in _through_tree."""
        start = time.perf_counter()
        (m, n) = (len(x), self.num_centers)
        result = None
        expected = (float(m) * n, 0.0, 0.0)
        had_tree = self._tree is not None
        counts, cells, num_bytes, path = (m * n, 0, 0, 0), 0, 0, _EVERY_PAIR
        answer = self._through_tree(x, is_kept=is_kept)
        if answer is not None:
            result, path, sampled, sample, seconds, done = answer
            if result is not None:
                scale = m / sampled
                expected = (
                    sample[0] * scale,
                    sample[2] * scale,
                    seconds * scale + (0 if had_tree else self._tree_seconds),
                )
                counts = done
                cells = self._tree.num_cells
            num_bytes = self._tree.num_bytes
        if result is None:
            result = _core.log_density(
                x, self._centers, self._noise_std, self._weights, num_threads()
            )
        _arrays.check_representable("the log-density", result, allow_minus_inf)
        elapsed = time.perf_counter() - start
        if path == _EVERY_PAIR:
            expected = (expected[0], 0.0, elapsed)
        return result, Plan(
            path=_PATHS[path],
            num_pairs=m * n,
            expected_pairs=expected[0],
            expected_terms=expected[1],
            expected_seconds=expected[2],
            num_cells=cells,
            num_bytes=num_bytes,
            evaluated_pairs=counts[0],
            aggregated_pairs=counts[1],
            evaluated_terms=counts[2],
            seconds=elapsed,
        )


def prepare(
    centers: Any,
    noise_std: float,
    *,
    weights: Any = None,
    max_lost_mass: float | None = None,
) -> PreparedMixture:
    """A mixture ordered into a tree once, for log-densities at many sets of points.

    Parameters
    ----------
    centers : (n, d) array
        Component means. NumPy array or torch tensor, float32 or float64. On a GPU, so
        are the points: all is evaluated there, without a tree.
    noise_std : float
        Standard deviation of every component, in the units of `centers`. Positive.
    weights : (n,) array, optional
        Component weights, not negative, summing to 1. Uniform by default.
    max_lost_mass : float, optional
        As in `mixture_log_density`.

    Returns
    -------
    PreparedMixture
        With `log_density(points)` and `explain(points)`.

    Raises
    ------
    TypeError, ValueError
        As `mixture_log_density`.

    Notes
    -----
    The tree is built at the first evaluation that is large enough and for which a
    sample of pairs is promising: O(n log n) time, a few percent of every pair at
    n = 100,000, and two to three times the memory of the centers. The centers are kept,
    not copied; once they are changed, results are meaningless.

    Examples
    --------
    >>> import numpy as np
    >>> mixture = prepare(np.array([[-1.0], [1.0]]), noise_std=1.0)
    >>> mixture.log_density(np.array([[0.0], [1.0]]))
    array([-1.41893853, -1.4851577 ])
    """
    from noisyflow import _device_mixture as device  # which builds on this module

    if isinstance(centers, AbstractRows):  # from an estimator, checked
        lost = checked_max_lost_mass(max_lost_mass, centers.dtype)
        found: PreparedMixture = centers.mixture(noise_std, weights, lost)
        return found
    if _device.is_any_on_device(centers, weights):
        rows = device.DeviceRows.checked("centers", centers)
        beta = _arrays.check_noise_std(noise_std, rows.dtype)
        w = None if weights is None else device.host_weights(weights, rows)
        lost = checked_max_lost_mass(max_lost_mass, rows.dtype)
        return device.DeviceMixture(rows, beta, w, lost)
    y = _arrays.as_matrix("centers", centers)
    beta = _arrays.check_noise_std(noise_std, y.dtype)
    w = None if weights is None else _arrays.as_weights(weights, len(y), y.dtype)
    return PreparedMixture(y, beta, w, checked_max_lost_mass(max_lost_mass, y.dtype))
