"""How many samples, queries and seconds an answer needs, or that none will do."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from noisyflow.cost import measure_cost
from noisyflow.prepared import prepare
from noisyflow.theory._numbers import as_count, as_dim, as_noise_std, as_positive
from noisyflow.theory.chi_square import (
    chi_square_atoms,
    chi_square_cube,
    chi_square_diameter,
    chi_square_gaussian,
    chi_square_sub_gaussian,
    chi_square_uniform,
    plug_in_std_bound,
)
from noisyflow.theory.risk import plug_in_samples_necessary

_MOST_CENTERS, _MOST_COORDINATES = 2**16, 2**22  # that seconds are measured with
_MOST_TIMED_DIMS = 2**16
_FEW_QUERIES = 1000  # below which an error bar is not to be trusted


@dataclasses.dataclass(frozen=True)
class Requirement:
    """What an answer needs; infinite where float64 ends, NaN where nothing is known.

    Attributes
    ----------
    num_samples : float
        Independent samples of S.
    num_queries : float
        Noise draws over all samples together.
    seconds : float
        On this machine, about: measured with up to 65,536 centers, and in proportion
        from there.
    """

    num_samples: float
    num_queries: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class SamplePlan:
    """What an entropy of this error needs. Made by `plan`; prints as a few sentences.

    Attributes
    ----------
    dim : int
    noise_std, error : float
    source : str
        What is assumed of S.
    guaranteed : Requirement
        Proven to be enough, for every S of that kind.
    typical : Requirement
        Enough where S is spread out evenly, to first order; not a bound.
    necessary_samples : float
        With fewer, the bias exceeds the error for some S of that kind: P2, Theorem 4,
        for the cube; 1 where no such theorem is known.
    is_feasible, is_guarantee_feasible : bool
        Whether the typical, and the guaranteed, samples and seconds are within the
        limits that were given.
    feasible_noise_std : float
        The least noise, and
    feasible_dim : int
        the most dimensions, at which the typical number of samples is within its limit;
        infinity and 0 where there are none.
    """

    dim: int
    noise_std: float
    error: float
    source: str
    guaranteed: Requirement
    typical: Requirement
    necessary_samples: float
    is_feasible: bool
    is_guarantee_feasible: bool
    feasible_noise_std: float
    feasible_dim: int

    def to_json(self) -> str:
        """One JSON object; null stands for what is infinite or not known."""

        def finite(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: finite(part) for key, part in value.items()}
            is_infinite = isinstance(value, float) and not math.isfinite(value)
            return None if is_infinite else value

        return json.dumps(finite(dataclasses.asdict(self)))

    def __str__(self) -> str:
        lines = [
            f"{self.source}, d = {self.dim}, noise_std {self.noise_std:g}: entropy with"
            f" bias and standard error of at most {self.error:g} nats each",
            f"typical:    {_described(self.typical)} (S spread out evenly; no bound)",
            f"guaranteed: {_described(self.guaranteed)} (for every such S)",
        ]
        if self.necessary_samples > 1:
            lines.append(
                "For some such S it takes at least "
                f"{_rounded(self.necessary_samples)} samples (P2, Theorem 4)."
            )
        if self.is_feasible and self.is_guarantee_feasible:
            return "\n".join(lines)
        if self.is_feasible:
            lines.append(
                "A guarantee is out of reach. Take the typical number and look at the "
                "bracket: it tells for the samples at hand."
            )
            return "\n".join(lines)
        lines.append("No feasible number of samples will do, typically or guaranteed.")
        helps = []
        if self.noise_std < self.feasible_noise_std < math.inf:
            helps.append(f"noise_std of at least {self.feasible_noise_std:.2g}")
        if 0 < self.feasible_dim < self.dim:
            helps.append(f"at most {self.feasible_dim} dimensions at this noise")
        if helps:
            lines.append(f"What would help: {', or '.join(helps)}.")
        else:
            lines.append("What would help: a larger error, or more samples and time.")
        lines.append(
            "A network that is known needs no samples: see noisyflow.importance."
        )
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _Source:
    """A kind of S: its chi-square information as functions of dim and noise_std."""

    name: str
    worst: Callable[[int, float], float]
    typical: Callable[[int, float], float]
    draw: Callable[[np.random.Generator, int, int], Any]  # (n, d), to be timed
    diameter: Callable[[int], float] | None = None
    num_centers: float = math.inf
    is_unit_cube: bool = False


def plan(
    dim: int,
    noise_std: float,
    error: float,
    *,
    half_width: float | None = None,
    diameter: float | None = None,
    sub_gaussian: float | None = None,
    num_atoms: int | None = None,
    max_num_samples: int = 10**8,
    max_seconds: float = 3600.0,
) -> SamplePlan:
    """The samples, queries and seconds that a plug-in entropy of this error needs.

    Parameters
    ----------
    dim : int
        Number of dimensions d of the layer.
    noise_std : float
        Standard deviation beta of its noise.
    error : float
        The largest bias, and the largest standard error, nats.
    half_width : float, optional
        S is in the cube [-w, w]^d. The default, with w = 1: layers of tanh units.
    diameter : float, optional
        Or: S is in a set of this diameter.
    sub_gaussian : float, optional
        Or: S is K-sub-Gaussian as a vector, as of ReLU layers with such an input.
    num_atoms : int, optional
        Or: S has that many values. (Where all of them are known and used,
        `entropy(..., population=True)` has no bias and needs no samples.)
    max_num_samples : int
        The most samples that are feasible.
    max_seconds : float
        The most seconds.

    Returns
    -------
    SamplePlan
        Prints as a few sentences.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or range, or more than one kind of S is given.

    Notes
    -----
    Guaranteed: the bias by log(1 + I_chi2 / n), I_chi2 at its largest (`chi_square`);
    the fluctuation of the samples by bounded differences (`plug_in_std_bound`); that of
    the queries by d / N (`monte_carlo_rmse`), one at least for every sample. Typical:
    the bias by I_chi2 / (2 n), for S uniform on the cube, Gaussian of the same constant
    or of the same mean square radius, or of as many values that are far apart;
    fluctuations by the spread of a Gaussian's log-density, sqrt(d / 2), over sqrt n and
    sqrt N, or what is guaranteed if that is less. Half of the variance may come from
    either. Control variates and quadrature lower the number of queries below both.

    Seconds are measured on the machine: some tenths of a second for the answer.

    Examples
    --------
    >>> answer = plan(2, noise_std=0.5, error=0.02)
    >>> answer.is_feasible, answer.typical.num_samples < answer.guaranteed.num_samples
    (True, True)
    >>> print(plan(64, noise_std=0.01, error=0.1).is_feasible)
    False
    """
    dim, beta = as_dim(dim), as_noise_std(noise_std)
    error = as_positive("error", error)
    most = as_count("max_num_samples", max_num_samples)
    max_seconds = as_positive("max_seconds", max_seconds)
    source = _source(half_width, diameter, sub_gaussian, num_atoms)

    samples = _guaranteed_samples(source, dim, beta, error)
    queries = max(samples, 2 * dim / error**2)
    typical_samples = _typical_samples(source, dim, beta, error)
    typical_queries = max(_FEW_QUERIES, dim / error**2)
    if not math.isnan(samples):  # what is proven to be enough is enough
        typical_samples = min(typical_samples, samples)
        typical_queries = min(typical_queries, queries)
    guaranteed = _requirement(source, dim, beta, samples, queries)
    typical = _requirement(source, dim, beta, typical_samples, typical_queries)
    necessary = 1.0
    if source.is_unit_cube:
        necessary = plug_in_samples_necessary(dim, beta, error)

    def is_within(need: Requirement) -> bool:
        return need.num_samples <= most and need.seconds <= max_seconds

    return SamplePlan(
        dim=dim,
        noise_std=beta,
        error=error,
        source=source.name,
        guaranteed=guaranteed,
        typical=typical,
        necessary_samples=necessary,
        is_feasible=is_within(typical),
        is_guarantee_feasible=is_within(guaranteed),
        feasible_noise_std=_feasible_noise_std(source, dim, beta, error, most),
        feasible_dim=_feasible_dim(source, dim, beta, error, most),
    )


def _source(
    half_width: float | None,
    diameter: float | None,
    sub_gaussian: float | None,
    num_atoms: int | None,
) -> _Source:
    given = {
        "half_width": half_width,
        "diameter": diameter,
        "sub_gaussian": sub_gaussian,
        "num_atoms": num_atoms,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ValueError(f"S can be of one kind only, got {' and '.join(names)}")
    if diameter is not None:
        return _bounded_source(as_positive("diameter", diameter))
    if sub_gaussian is not None:
        return _sub_gaussian_source(as_positive("sub_gaussian", sub_gaussian))
    if num_atoms is not None:
        return _discrete_source(as_count("num_atoms", num_atoms))
    return _cube_source(1.0 if half_width is None else half_width)


def _cube_source(half_width: float) -> _Source:
    w = as_positive("half_width", half_width)
    return _Source(
        name=f"S in the cube [-{w:g}, {w:g}]^d",
        worst=lambda d, beta: chi_square_cube(d, beta, half_width=w),
        typical=lambda d, beta: chi_square_uniform(d, beta, half_width=w),
        draw=lambda rng, n, d: rng.uniform(-w, w, (n, d)),
        diameter=lambda d: 2 * w * math.sqrt(d),
        is_unit_cube=w == 1,
    )


def _bounded_source(size: float) -> _Source:
    def worst(d: int, beta: float) -> float:
        in_cube = chi_square_cube(d, beta, half_width=size / 2)
        return min(chi_square_diameter(size, beta), in_cube)

    return _Source(
        name=f"S in a set of diameter {size:g}",
        worst=worst,
        typical=lambda d, beta: min(
            worst(d, beta), chi_square_gaussian(d, size / 2 / math.sqrt(d), beta)
        ),
        draw=lambda rng, n, d: size / 2 / math.sqrt(d) * rng.standard_normal((n, d)),
        diameter=lambda d: size,
    )


def _sub_gaussian_source(constant: float) -> _Source:
    return _Source(
        name=f"S {constant:g}-sub-Gaussian",
        worst=lambda d, beta: (
            chi_square_sub_gaussian(d, constant, beta)
            if constant < beta / 2
            else math.nan
        ),
        typical=lambda d, beta: chi_square_gaussian(d, constant, beta),
        draw=lambda rng, n, d: constant * rng.standard_normal((n, d)),
    )


def _discrete_source(num_atoms: int) -> _Source:
    chi_square = chi_square_atoms(num_atoms)
    return _Source(
        name=f"S of {num_atoms} values",
        worst=lambda d, beta: chi_square,
        typical=lambda d, beta: chi_square,
        draw=lambda rng, n, d: rng.uniform(-1, 1, (n, d)),
        num_centers=num_atoms,  # samples of one value are one center with a weight
    )


def _guaranteed_samples(source: _Source, d: int, beta: float, error: float) -> float:
    """The least n whose bounds of bias and fluctuation are small enough."""
    for_bias = source.worst(d, beta) / math.expm1(min(error, 700.0))
    if math.isnan(for_bias):  # max() below would not see it
        return math.nan
    wanted = error / math.sqrt(2)
    for_spread = _least_count(lambda n: plug_in_std_bound(n) <= wanted)
    if source.diameter is not None:
        ratio = source.diameter(d) / beta
        if ratio < 1e60:
            for_spread = min(for_spread, ratio**4 / (4 * wanted * wanted))
    return _whole(max(2.0, for_bias, for_spread))


def _least_count(is_enough: Callable[[int], bool]) -> float:
    """The least count, within a thousandth, for which a claim that stays true holds."""
    low, high = 0.0, math.log(1e290)
    if not is_enough(int(math.exp(high))):
        return math.inf
    while high - low > 1e-3:
        middle = 0.5 * (low + high)
        low, high = (
            (low, middle) if is_enough(int(math.exp(middle))) else (middle, high)
        )
    return math.exp(high)


def _typical_samples(source: _Source, d: int, beta: float, error: float) -> float:
    """n of first-order bias, and of the spread of a Gaussian's log-density."""
    return _whole(max(2.0, source.typical(d, beta) / (2 * error), d / error / error))


def _whole(count: float) -> float:
    """Rounded up; NaN and infinity as they are."""
    return float(math.ceil(count)) if count < 2**53 else count


def _requirement(
    source: _Source, d: int, beta: float, num_samples: float, num_queries: float
) -> Requirement:
    num_queries = _whole(num_queries)
    if math.isnan(num_samples):
        return Requirement(math.nan, math.nan, math.nan)
    seconds = math.inf
    if max(num_samples, num_queries) < 1e18 and d <= _MOST_TIMED_DIMS:
        seconds = _seconds(source, d, beta, int(num_samples), int(num_queries))
    return Requirement(num_samples, num_queries, seconds)


def _seconds(
    source: _Source, d: int, beta: float, num_samples: int, num_queries: int
) -> float:
    """Of the log-densities at the queries; float64, where any noise may be."""
    n = min(num_samples, source.num_centers)
    timed = int(min(n, _MOST_CENTERS, max(64, _MOST_COORDINATES // d)))
    centers = np.asarray(source.draw(np.random.default_rng(0), timed, d))
    return n / timed * measure_cost(prepare(centers, beta), num_queries).seconds


def _feasible_noise_std(
    source: _Source, d: int, beta: float, error: float, most: int
) -> float:
    """The least noise whose typical samples are few enough; infinity if none is."""

    def is_enough(noise_std: float) -> bool:
        return _typical_samples(source, d, noise_std, error) <= most

    if is_enough(beta):
        return beta
    low = high = beta
    while not is_enough(high):
        low, high = high, high * 4
        if high > 1e9 * beta:
            return math.inf
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _feasible_dim(source: _Source, d: int, beta: float, error: float, most: int) -> int:
    """The most dimensions, up to d, whose typical samples are few enough; 0 if none."""

    def is_enough(dim: int) -> bool:
        return _typical_samples(source, dim, beta, error) <= most

    if is_enough(d):
        return d
    low, high = 0, d
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_enough(middle) else (low, middle)
    return low


def _described(need: Requirement) -> str:
    if math.isnan(need.num_samples):
        return "no number of samples is known to be enough"
    if need.seconds < 1e5:
        seconds = f"about {need.seconds:.2g} s"
    elif need.seconds < 1e10:
        seconds = f"about {need.seconds / 86_400:,.0f} days"
    else:
        seconds = "longer than a lifetime"
    return (
        f"{_rounded(need.num_samples)} samples, {_rounded(need.num_queries)} queries, "
        f"{seconds}"
    )


def _rounded(count: float) -> str:
    if count == math.inf:
        return "more than 1e300"
    return f"{count:,.0f}" if count < 1e7 else f"{count:.1e}"
