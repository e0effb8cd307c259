"""Every formula against quadrature, simulation, or the paper's own table.

Quadrature is in one dimension, where it is exact for our purposes; products of it stand
for more. Simulations have their seed fixed and allow four standard errors.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import ndtr

import oracles
from noisyflow import cli, entropy, theory

# P2, Table I: noise 1, n = 10^9.
TABLE_I = {
    1: 7.41e-4,
    2: 0.00166,
    3: 0.00369,
    5: 0.0179,
    7: 0.0856,
    9: 0.402,
    10: 0.869,
    11: 1.87,
    12: 4.02,
}

# -- one dimension by quadrature -------------------------------------------------------


def grid(noise_std: float, width: float) -> np.ndarray:
    return np.arange(-width - 12 * noise_std, width + 12 * noise_std, noise_std / 40)


def density_of(levels, noise_std, t, weights=None):
    """Of equally likely levels plus noise, at t."""
    terms = oracles.normal_density(t[:, None] - np.asarray(levels), noise_std)
    return terms.mean(axis=1) if weights is None else terms @ weights


def chi_square_of_levels(levels, noise_std: float) -> float:
    """int E[phi(y - S)^2] / q(y) dy - 1."""
    t = grid(noise_std, np.abs(levels).max())
    terms = oracles.normal_density(t[:, None] - np.asarray(levels), noise_std)
    q = terms.mean(axis=1)
    return np.trapezoid((terms**2).mean(axis=1) / np.where(q > 0, q, 1), t) - 1


def entropy_of(q: np.ndarray, t: np.ndarray) -> float:
    return -np.trapezoid(q * np.log(np.where(q > 0, q, 1)), t)


# -- the chi-square bounds -------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "noise_std"),
    [
        ([-1, 1], 0.6),
        ([-3, -1, 1, 3], 0.5),
        (np.linspace(-1, 1, 8), 0.2),
    ],
    ids=["2 points", "4 points", "8 points"],
)
def test_chi_square_information_is_the_mean_distance_and_bounds_the_bias(
    levels, noise_std: float, rng: np.random.Generator
) -> None:
    n, repeats = 100, 1500
    chi_square = chi_square_of_levels(levels, noise_std)
    t = grid(noise_std, np.abs(levels).max())
    q = density_of(levels, noise_std, t)
    kernels = oracles.normal_density(t[:, None] - np.asarray(levels), noise_std)
    distances, plug_ins = [], []
    for counts in rng.multinomial(n, np.full(len(levels), 1 / len(levels)), repeats):
        q_n = kernels @ (counts / n)
        distances.append(np.trapezoid((q_n - q) ** 2 / q, t))
        plug_ins.append(entropy_of(q_n, t))

    error = np.std(distances) / math.sqrt(repeats)
    assert abs(np.mean(distances) - chi_square / n) < 4 * error

    bias = entropy_of(q, t) - np.mean(plug_ins)
    error = np.std(plug_ins) / math.sqrt(repeats)
    assert bias <= theory.plug_in_bias_bound(n, chi_square) + 4 * error
    # The next order is about as large as the first one squared.
    first = theory.plug_in_bias_estimate(n, chi_square)
    assert abs(bias - first) < 4 * error + 2 * first**2

    assert chi_square <= theory.chi_square_atoms(len(levels))
    assert chi_square <= theory.chi_square_diameter(np.ptp(levels), noise_std)
    half_width = float(np.abs(levels).max())
    assert chi_square <= theory.chi_square_cube(1, noise_std, half_width=half_width)


def test_far_atoms_and_a_small_set_meet_their_bounds() -> None:
    assert chi_square_of_levels([0, 1, 2], 0.05) == pytest.approx(
        theory.chi_square_atoms(3), rel=1e-9
    )
    # Two points at distance D: I_chi2 is D^2/(4 beta^2) to first order, a quarter.
    bound = theory.chi_square_diameter(0.02, 1.0)
    assert chi_square_of_levels([-0.01, 0.01], 1.0) == pytest.approx(
        bound / 4, rel=1e-3
    )


@pytest.mark.parametrize("std", [0.3, 1.0, 2.5])
def test_chi_square_of_a_gaussian_is_exact(std: float) -> None:
    noise_std = 0.7
    narrow = 1 / (2 * math.sqrt(math.pi) * noise_std)  # phi^2 = narrow N(noise_std^2/2)

    inner, outer = math.hypot(std, noise_std / 2**0.5), math.hypot(std, noise_std)

    def integrand(y: float) -> float:
        log_ratio = stats.norm.logpdf(y, scale=inner) - stats.norm.logpdf(
            y, scale=outer
        )
        return narrow * math.exp(log_ratio)

    end = 12 / math.sqrt(inner**-2 - outer**-2)  # 12 standard deviations of the ratio
    quadrature = integrate.quad(integrand, -end, end, epsabs=0, epsrel=1e-11)
    one = theory.chi_square_gaussian(1, std, noise_std)
    assert one == pytest.approx(quadrature[0] - 1, rel=1e-8)
    five = theory.chi_square_gaussian(5, std, noise_std)
    assert five == pytest.approx((1 + one) ** 5 - 1)


@pytest.mark.parametrize("noise_std", [0.02, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("half_width", [1.0, 2.5])
def test_chi_square_of_the_uniform_law_is_exact(
    noise_std: float, half_width: float
) -> None:
    def integrand(y: float) -> float:
        low, high = (y - half_width) / noise_std, (y + half_width) / noise_std
        q = (stats.norm.sf(low) - stats.norm.sf(high)) / (2 * half_width)
        squares = stats.norm.sf(low * 2**0.5) - stats.norm.sf(high * 2**0.5)
        return squares / (4 * half_width * noise_std * math.pi**0.5) / q

    end = half_width + 10 * noise_std
    parts = [0, max(0, half_width - 5 * noise_std), half_width, end]
    total = 2 * sum(
        integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-11, limit=200)[0]
        for a, b in itertools.pairwise(parts)
    )
    one = theory.chi_square_uniform(1, noise_std, half_width=half_width)
    assert 1 + one == pytest.approx(total, rel=1e-8)
    three = theory.chi_square_uniform(3, noise_std, half_width=half_width)
    assert 1 + three == pytest.approx(total**3, rel=1e-7)


def test_chi_square_of_the_uniform_law_at_small_noise_has_its_limit() -> None:
    for noise_std in (1e-4, 0.9e-6, 1e-9):
        limit = 1 / (noise_std * math.sqrt(math.pi))
        # The edges, two of them, are of the order of one.
        assert theory.chi_square_uniform(1, noise_std) == pytest.approx(
            limit, abs=2 + 1e-9 * limit
        )


@pytest.mark.parametrize("noise_std", [0.01, 0.1, 0.7, 4.0])
def test_the_bound_of_the_cube_is_the_best_partition(noise_std: float) -> None:
    best = min(k * math.exp(min(700, (2 / k / noise_std) ** 2)) for k in range(1, 2000))
    assert theory.chi_square_cube(1, noise_std) == pytest.approx(best - 1)
    assert theory.chi_square_cube(4, noise_std) == pytest.approx(best**4 - 1)
    assert theory.chi_square_cube(2, noise_std) >= theory.chi_square_uniform(
        2, noise_std
    )
    tiny = theory.chi_square_cube(1, 1e-20)  # where k no longer fits into an integer
    assert tiny == pytest.approx(2 * 1e20 * math.sqrt(2 * math.e))


def test_the_sub_gaussian_bound_holds_for_gaussians_where_it_says_anything() -> None:
    for constant in (0.05, 0.2, 0.45):
        exact = theory.chi_square_gaussian(3, constant, 1.0)
        bound = theory.chi_square_sub_gaussian(3, constant, 1.0)
        assert exact < bound == pytest.approx((1 - 4 * constant**2) ** -1.5 - 1)
    assert theory.chi_square_sub_gaussian(3, 0.5, 1.0) == math.inf


# -- fluctuation -----------------------------------------------------------------------


def test_one_far_sample_moves_the_plug_in_by_what_the_deviation_bound_says() -> None:
    """The constant of McDiarmid's inequality is attained."""
    n, noise_std = 12, 0.1
    together = oracles.mixture_entropy_1d([0.0], noise_std)
    apart = oracles.mixture_entropy_1d(
        [0.0, 5.0], noise_std, weights=np.array([1 - 1 / n, 1 / n])
    )
    # c sqrt(n log(1/delta) / 2) with delta = e^-2 is c sqrt(n); std is half of it.
    deviation = theory.plug_in_deviation_bound(n, 1 - math.exp(-2))
    assert deviation / math.sqrt(n) == pytest.approx(apart - together, rel=1e-9)
    assert theory.plug_in_std_bound(n) == pytest.approx(deviation / 2)
    # What the paper's notes say of it, at n = 10,000 and 5 %.
    assert theory.plug_in_deviation_bound(10_000, 0.95) == pytest.approx(
        0.125, abs=5e-4
    )


@pytest.mark.parametrize(("levels", "noise_std"), [([-1, 1], 0.3), ([-0.1, 0.1], 0.3)])
def test_the_plug_in_spreads_less_than_its_bounds(
    levels, noise_std: float, rng: np.random.Generator
) -> None:
    n, repeats = 60, 800
    t = grid(noise_std, 1.0)
    kernels = oracles.normal_density(t[:, None] - np.asarray(levels), noise_std)
    counts = rng.binomial(n, 0.5, repeats)
    plug_ins = np.array(
        [entropy_of(kernels @ np.array([c, n - c]) / n, t) for c in counts]
    )
    diameter = float(np.ptp(levels))
    bound = theory.plug_in_std_bound(n, diameter=diameter, noise_std=noise_std)
    assert plug_ins.std() < bound <= theory.plug_in_std_bound(n)
    if diameter < noise_std:
        assert bound == pytest.approx(
            diameter**2 / (2 * noise_std**2 * math.sqrt(n)), rel=1e-12
        )
    above = plug_ins - plug_ins.mean() > theory.plug_in_deviation_bound(
        n, 0.9, diameter=diameter, noise_std=noise_std
    )
    assert above.mean() <= 0.1


# -- upper bounds of the risk ----------------------------------------------------------


def test_the_printed_risk_reproduces_the_table_of_the_paper() -> None:
    """Which its authors made with an epsilon between 0.001 and 0.01."""
    for dim, printed in TABLE_I.items():
        low, near, high = (
            theory.plug_in_risk_bounded(dim, 1.0, 10**9, epsilon=epsilon)
            for epsilon in (0.001, 0.004, 0.01)
        )
        rounding = 0.005 * printed
        assert low - rounding <= printed <= high + rounding
        assert near == pytest.approx(printed, rel=6e-3)


def lemma_1(d: int, noise_std: float, n: int, log_volume: float) -> float:
    """P2, Lemma 1."""
    scale = 2 * (4 * math.pi * noise_std**2) ** (d / 4)
    inside = math.log(n) + log_volume - d / 2 * math.log(math.pi * noise_std**2)
    return inside * math.exp(log_volume / 2) / math.sqrt(n) / scale


def lemma_2(d: int, noise_std: float, second: float, fourth: float) -> float:
    """P2, Lemma 2, without the probability: E|S|^2 and E|S|^4 at most these."""
    c = d / 2 * math.log(2 * math.pi * noise_std**2)
    return (c + second / noise_std**2) * (
        c + (3 * second + 2 * noise_std**2 * d) / noise_std**2
    ) + 8 * (fourth + noise_std**4 * d * (2 + d)) / noise_std**4


@pytest.mark.parametrize(("d", "noise_std"), [(1, 1.0), (4, 0.3), (7, 2.0)])
def test_printed_risks_are_made_of_the_two_lemmas(d: int, noise_std: float) -> None:
    n, epsilon, k = 10**6, 0.3, 1.5
    side = 2 + 2 * noise_std * math.sqrt((2 + epsilon) * math.log(n))
    bounded = lemma_1(d, noise_std, n, d * math.log(side)) + 2 / n * lemma_2(
        d, noise_std, d, d**2
    )
    assert theory.plug_in_risk_bounded(
        d, noise_std, n, epsilon=epsilon
    ) == pytest.approx(bounded)

    side = 2 * math.sqrt(2 * (k + noise_std) ** 2 * math.log(n) / (math.e - 1))
    outside = 2 * math.e * d / n  # both densities; the union bound of d coordinates
    sub_gaussian = lemma_1(d, noise_std, n, d * math.log(side)) + outside * lemma_2(
        d, noise_std, 2 * d * k**2, 16 * d**2 * k**4
    )
    assert theory.plug_in_risk_sub_gaussian(
        d, noise_std, n, constant=k
    ) == pytest.approx(sub_gaussian)


def test_the_risk_for_every_n_is_below_the_printed_one_where_that_is_proven() -> None:
    for d, log_n in ((1, 40), (2, 50), (3, 80)):
        n, epsilon = int(math.exp(log_n)), 1.0
        assert epsilon * log_n > d + 2 * math.sqrt(d * log_n)  # P2: large enough
        ours = theory.plug_in_risk_bounded(d, 0.5, n)
        printed = theory.plug_in_risk_bounded(d, 0.5, n, epsilon=epsilon)
        assert ours < printed < 100 * ours


@pytest.mark.parametrize(
    ("d", "noise_std", "n"), [(1, 1.0, 10**9), (3, 0.3, 10**7), (6, 1.0, 10**10)]
)
def test_the_risk_for_every_n_is_the_least_of_all_regions(
    d: int, noise_std: float, n: int
) -> None:
    """Lemma 1 inside; outside, the mean of (|Z|^2 + 4 d) / noise^2 by quadrature."""

    def square(z: float) -> float:
        return z**2 * math.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)

    best = math.inf
    for t in np.linspace(2, 9, 71):
        inside = lemma_1(d, noise_std, n, d * math.log(2 + 2 * t * noise_std))
        tail = 2 * float(ndtr(-t))
        squares = 2 * integrate.quad(square, t, t + 30, epsabs=0)[0]
        outside = d * (squares + (d - 1 + 4 * d / noise_std**2) * tail)
        best = min(best, inside + outside)
    assert theory.plug_in_risk_bounded(d, noise_std, n) == pytest.approx(best, rel=5e-3)


@pytest.mark.parametrize("noise_std", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("n", [2, 200])
def test_the_plug_in_errs_less_than_its_risk(
    noise_std: float, n: int, rng: np.random.Generator
) -> None:
    t = grid(noise_std, 1.0)
    for levels in ([-1, 1], np.linspace(-1, 1, 9)):
        kernels = oracles.normal_density(t[:, None] - np.asarray(levels), noise_std)
        exact = entropy_of(kernels.mean(axis=1), t)
        counts = rng.multinomial(n, np.full(len(levels), 1 / len(levels)), 200)
        errors = [abs(entropy_of(kernels @ c / n, t) - exact) for c in counts]
        assert np.mean(errors) <= theory.plug_in_risk_bounded(1, noise_std, n)
        assert np.mean(errors) <= theory.plug_in_risk_sub_gaussian(
            1, noise_std, n, constant=1.0
        )


def test_the_risk_is_never_below_what_no_plug_in_can_beat() -> None:
    for d in (1, 2, 5, 12, 40):
        for noise_std in (0.05, 0.1, 0.3):
            for n in (2, 1000, 10**8):
                least = theory.plug_in_bias_lower_bound(d, noise_std, n)
                most = theory.plug_in_risk_bounded(d, noise_std, n)
                assert least <= most <= d / 2 * math.log1p(noise_std**-2) * (1 + 1e-12)


def test_the_risk_falls_with_samples_like_their_root() -> None:
    risks = [theory.plug_in_risk_bounded(2, 0.5, 10**k) for k in range(2, 13)]
    assert all(a > b for a, b in itertools.pairwise(risks[1:]))
    assert 5 < risks[8] / risks[10] < 10  # 10, but for the logarithms


# -- lower bounds ----------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "n"), [(2, 10), (5, 100), (8, 1000)])
@pytest.mark.parametrize("noise_std", [0.05, 0.1, 0.25])
def test_a_grid_of_points_has_the_bias_of_the_lower_bound(
    dim: int, n: int, noise_std: float
) -> None:
    """The plug-in never exceeds h(Z) + log n; the grid's entropy is known."""
    bound = theory.plug_in_bias_lower_bound(dim, noise_std, n)
    noise = oracles.noise_entropy(1, noise_std)
    best = max(
        dim * (oracles.mixture_entropy_1d(np.linspace(-1, 1, k), noise_std) - noise)
        for k in range(2, 12)
    ) - math.log(n)
    assert bound <= max(0, best)


@pytest.mark.parametrize(("dim", "k"), [(5, 3), (11, 3), (12, 2), (100, 2)])
def test_the_lower_bound_of_the_bias_is_at_least_its_published_example(
    dim: int, k: int
) -> None:
    """Noise 0.1, error probability 0.01: k = 3 up to 11 dimensions, then 2."""
    published = 0.99 * dim * math.log(k) - 0.0561 - math.log(3)
    assert theory.plug_in_bias_lower_bound(dim, 0.1, 3) >= published


@pytest.mark.filterwarnings("ignore::noisyflow.UndersampledWarning")
def test_a_simulated_bias_is_above_the_lower_bound(rng: np.random.Generator) -> None:
    """BPSK in 6 dimensions, 8 samples: all that 2 levels per dimension can prove."""
    dim, noise_std, n = 6, 0.2, 8
    exact = dim * oracles.mixture_entropy_1d([-1.0, 1.0], noise_std)
    biases = []
    for seed in range(40):
        samples = rng.choice([-1.0, 1.0], (n, dim))
        biases.append(exact - entropy(samples, noise_std, seed=seed).value)
    bound = theory.plug_in_bias_lower_bound(dim, noise_std, n)
    assert 0.5 < bound < np.mean(biases)


def test_necessary_samples_are_where_the_lower_bound_ends() -> None:
    needed = theory.plug_in_samples_necessary(15, 0.1, 0.2)
    assert theory.plug_in_bias_lower_bound(15, 0.1, int(needed)) == pytest.approx(0.2)
    assert theory.plug_in_samples_necessary(1, 10.0, 0.2) == 1
    growth = [theory.plug_in_samples_necessary(d, 0.1, 0.2) for d in (20, 30, 40)]
    assert growth[2] / growth[1] > 2**9.9
    assert growth[1] / growth[0] > 2**9.9


def test_the_exponent_is_that_of_the_best_known_constellation() -> None:
    # Two values, the Gaussian channel with binary input: known values, in nats.
    for noise_std, nats in ((1.0, 0.336830820347), (3.0, 0.052671636863)):
        assert theory.sample_complexity_exponent(noise_std) == pytest.approx(
            nats / math.log(2), rel=1e-9
        )
    assert theory.sample_complexity_exponent(0.9786945) == pytest.approx(0.5, abs=1e-6)
    # Four values, at distance 2 of noise 0.5.
    four = theory.sample_complexity_exponent(0.5 / 3)
    assert four >= 1.295653827145 / math.log(2)
    before = 0.0
    for noise_std in (10.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.031, 0.029, 0.01, 1e-5):
        bits = theory.sample_complexity_exponent(noise_std)
        assert before < bits < 0.5 * math.log2(1 + noise_std**-2)  # power at most 1
        uniform = math.log2(2 / noise_std) - 0.5 * math.log2(2 * math.pi * math.e)
        assert bits >= uniform - 1e-12  # h(S) - h(Z)
        before = bits


# -- Monte-Carlo integration -----------------------------------------------------------


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 1000.0])
@pytest.mark.parametrize("dim", [1, 3, 10])
def test_a_query_varies_less_than_the_number_of_dimensions(
    dim: int, spread: float, rng: np.random.Generator
) -> None:
    centers = spread * rng.standard_normal((20, dim))
    z = rng.standard_normal((4000, 20, dim))
    points = (centers + z).reshape(-1, dim)
    squares = ((points[:, None] - centers) ** 2).sum(axis=2)
    values = np.logaddexp.reduce(-0.5 * squares, axis=1).reshape(4000, 20)
    variance = values.var(axis=0).mean()  # within centers: as many draws at each
    assert variance <= theory.monte_carlo_rmse(dim, 1) ** 2 == pytest.approx(dim)
    if spread in (0.0, 1000.0):  # one Gaussian, or each alone: d / 2
        assert variance == pytest.approx(dim / 2, rel=0.05)
    assert theory.monte_carlo_rmse(dim, 400) == pytest.approx(math.sqrt(dim) / 20)


def test_the_printed_monte_carlo_bound_has_its_published_values() -> None:
    for dim, noise_std, mse in ((1, 0.1, 402), (3, 0.1, 1206), (10, 0.5, 180)):
        rmse = theory.monte_carlo_rmse_bounded(dim, noise_std, 1)
        assert rmse**2 == pytest.approx(mse)
        assert theory.monte_carlo_rmse_bounded(dim, noise_std, 100) == pytest.approx(
            rmse / 10
        )


def test_the_second_moment_bound_does_not_depend_on_units() -> None:
    d, noise_std, moment = 3, 0.2, 1.7
    expected = 9 * d * 0.04 + 49 * moment + 42 * 0.2 * math.sqrt(d * moment)
    rmse = theory.monte_carlo_rmse_second_moment(d, noise_std, 50, second_moment=moment)
    assert rmse**2 == pytest.approx(expected / (0.04 * 50))
    assert rmse == pytest.approx(
        theory.monte_carlo_rmse_second_moment(
            d, 10 * noise_std, 50, second_moment=100 * moment
        )
    )
    sharp = theory.monte_carlo_rmse(d, 50)
    assert sharp <= theory.monte_carlo_rmse_bounded(d, noise_std, 50)
    assert sharp <= theory.monte_carlo_rmse_second_moment(
        d, 1e6, 50, second_moment=1e-6
    )


# -- mutual information ----------------------------------------------------------------


def test_the_risk_of_an_information_is_made_of_those_of_entropies() -> None:
    d, noise_std, n = 2, 0.4, 5000
    risk = theory.plug_in_risk_bounded(d, noise_std, n)
    fewer = theory.plug_in_risk_bounded(d, noise_std, 800)
    fixed = theory.mutual_information_risk(d, noise_std, n, 800, inputs="fixed")
    assert fixed == pytest.approx(risk + fewer)
    assert theory.mutual_information_risk(d, noise_std, n, inputs="fixed") == 2 * risk
    # A mean of n variables in [h(Z), h of a Gaussian with the cube's second moment].
    low = oracles.noise_entropy(d, noise_std)
    high = oracles.noise_entropy(d, math.sqrt(1 + noise_std**2))
    between = (high - low) / 2 / math.sqrt(n)
    sampled = theory.mutual_information_risk(d, noise_std, n)
    assert sampled - 2 * risk == pytest.approx(between)


@pytest.mark.parametrize("noise_std", [0.05, 0.4])
@pytest.mark.parametrize("n", [100, 4000])
def test_the_risk_of_a_label_information_is_made_of_those_of_entropies(
    noise_std: float, n: int
) -> None:
    d, shares = 2, [0.2, 0.3, 0.5]
    low = oracles.noise_entropy(d, noise_std)
    high = oracles.noise_entropy(d, math.sqrt(1 + noise_std**2))
    worst = high - low
    expected = (
        theory.plug_in_risk_bounded(d, noise_std, n)
        + max(-low, high) * math.sqrt(2 / n)
        + 3 * worst * math.exp(-n * 0.2**2 / (8 * 0.5))
        + 3 * theory.plug_in_risk_bounded(d, noise_std, n // 10)
    )
    risk = theory.label_information_risk(d, noise_std, n, shares)
    assert risk == pytest.approx(expected)


def test_an_information_errs_less_than_its_risk(rng: np.random.Generator) -> None:
    """One label bit sent as -1 or 1, in one dimension."""
    noise_std, n = 0.5, 200
    exact = 0.632720193737  # BPSK at 0.5, by the trapezoid rule
    t = grid(noise_std, 1.0)
    kernels = oracles.normal_density(t[:, None] - np.array([-1.0, 1.0]), noise_std)
    noise = oracles.noise_entropy(1, noise_std)
    errors = [
        abs(entropy_of(kernels @ np.array([c, n - c]) / n, t) - noise - exact)
        for c in rng.binomial(n, 0.5, 100)
    ]
    assert np.mean(errors) <= theory.label_information_risk(1, noise_std, n, [0.5, 0.5])
    assert np.mean(errors) <= theory.mutual_information_risk(1, noise_std, n)


# -- other distances -------------------------------------------------------------------


@pytest.mark.parametrize(("n", "std"), [(20, 0.5), (200, 2.0)])
def test_smoothed_samples_are_nearer_than_their_bounds(
    n: int, std: float, rng: np.random.Generator
) -> None:
    t = np.arange(-12, 12, 0.02)
    exact = oracles.normal_density(t, math.hypot(std, 1))
    variations, transports = [], []
    for _ in range(200):
        q_n = density_of(std * rng.standard_normal(n), 1.0, t)
        variations.append(0.5 * np.trapezoid(np.abs(q_n - exact), t))
        gap = np.cumsum(q_n - exact) * 0.02
        transports.append(np.trapezoid(np.abs(gap), t))
    variation = theory.total_variation_bound(1, std, 1.0, n)
    transport = theory.wasserstein_bound(1, std, 1.0, n)
    assert np.mean(variations) < variation < 8 * np.mean(variations)
    assert np.mean(transports) < transport < 8 * np.mean(transports)
    assert theory.total_variation_bound(100, std, 1.0, n) <= 1


# -- large numbers, bad numbers --------------------------------------------------------

CALLS: dict[str, Callable[[int, float, int], Any]] = {
    "chi_square_cube": lambda d, s, n: theory.chi_square_cube(d, s),
    "chi_square_diameter": lambda d, s, n: theory.chi_square_diameter(1e9, s),
    "chi_square_gaussian": lambda d, s, n: theory.chi_square_gaussian(d, 1.0, s),
    "chi_square_sub_gaussian": lambda d, s, n: theory.chi_square_sub_gaussian(
        d, s * 0.499, s
    ),
    "chi_square_uniform": lambda d, s, n: theory.chi_square_uniform(d, s),
    "plug_in_bias_bound": lambda d, s, n: theory.plug_in_bias_bound(n, math.inf),
    "plug_in_bias_estimate": lambda d, s, n: theory.plug_in_bias_estimate(n, 1e308),
    "plug_in_std_bound": lambda d, s, n: theory.plug_in_std_bound(n),
    "plug_in_deviation_bound": lambda d, s, n: theory.plug_in_deviation_bound(
        n, 0.99, diameter=1e9, noise_std=s
    ),
    "plug_in_risk_bounded": lambda d, s, n: theory.plug_in_risk_bounded(d, s, n),
    "plug_in_risk_bounded, printed": lambda d, s, n: theory.plug_in_risk_bounded(
        d, s, n, epsilon=0.01
    ),
    "plug_in_risk_sub_gaussian": lambda d, s, n: theory.plug_in_risk_sub_gaussian(
        d, s, n, constant=3.0
    ),
    "plug_in_bias_lower_bound": lambda d, s, n: theory.plug_in_bias_lower_bound(
        d, s, n
    ),
    "plug_in_samples_necessary": lambda d, s, n: theory.plug_in_samples_necessary(
        d, s, 0.1
    ),
    "sample_complexity_exponent": lambda d, s, n: theory.sample_complexity_exponent(s),
    "monte_carlo_rmse": lambda d, s, n: theory.monte_carlo_rmse(d, n),
    "monte_carlo_rmse_bounded": lambda d, s, n: theory.monte_carlo_rmse_bounded(
        d, s, n
    ),
    "monte_carlo_rmse_second_moment": lambda d, s, n: (
        theory.monte_carlo_rmse_second_moment(d, s, n, second_moment=2.0)
    ),
    "mutual_information_risk": lambda d, s, n: theory.mutual_information_risk(d, s, n),
    "label_information_risk": lambda d, s, n: theory.label_information_risk(
        d, s, n, [0.5, 0.5]
    ),
    "total_variation_bound": lambda d, s, n: theory.total_variation_bound(d, 1.0, s, n),
    "wasserstein_bound": lambda d, s, n: theory.wasserstein_bound(d, 1.0, s, n),
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_overflows(name: str) -> None:
    for d in (1, 10**6):
        for noise_std in (1e-100, 1e-6, 1.0, 1e6, 1e100):
            for n in (2, 10**18, 10**200):
                assert CALLS[name](d, noise_std, n) >= 0, (d, noise_std, n)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: theory.chi_square_cube(0, 0.1), ValueError, "dim must be at least 1"),
        (lambda: theory.chi_square_cube(2.0, 0.1), TypeError, "dim must be an integer"),
        (
            lambda: theory.chi_square_cube(2, 0),
            ValueError,
            "noise_std must be positive",
        ),
        (
            lambda: theory.chi_square_gaussian(2, -1.0, 0.1),
            ValueError,
            "std must be positive, got -1.0",
        ),
        (
            lambda: theory.chi_square_atoms(True),
            TypeError,
            "num_atoms must be an integer",
        ),
        (
            lambda: theory.plug_in_bias_bound(10, -1.0),
            ValueError,
            "chi_square must not be negative, got -1.0",
        ),
        (
            lambda: theory.plug_in_bias_bound(10, math.nan),
            ValueError,
            "chi_square must be finite, got nan",
        ),
        (
            lambda: theory.plug_in_std_bound(10, diameter=2.0),
            ValueError,
            "diameter and noise_std belong together",
        ),
        (
            lambda: theory.plug_in_deviation_bound(10, 1.0),
            ValueError,
            "confidence must be between 0 and 1, both excluded, got 1.0",
        ),
        (
            lambda: theory.plug_in_risk_bounded(1, 0.1, 1),
            ValueError,
            "num_samples must be at least 2, got 1",
        ),
        (
            lambda: theory.plug_in_risk_bounded(1, 0.1, 10, epsilon=0.0),
            ValueError,
            "epsilon must be positive, got 0.0",
        ),
        (
            lambda: theory.mutual_information_risk(1, 0.1, 10, inputs="some"),
            ValueError,
            "inputs must be 'fixed' or 'sampled', got 'some'",
        ),
        (
            lambda: theory.label_information_risk(1, 0.1, 10, 1.0),
            TypeError,
            "probabilities must be a sequence, one for every label, got float",
        ),
        (
            lambda: theory.label_information_risk(1, 0.1, 10, [0.5, 0.6]),
            ValueError,
            "probabilities must sum to 1, got 1.1",
        ),
        (
            lambda: theory.label_information_risk(1, 0.1, 10, [1.5, -0.5]),
            ValueError,
            "probabilities must be positive and at most 1, got 1.5",
        ),
        (lambda: theory.plan(2, 0.1, 0.0), ValueError, "error must be positive"),
        (lambda: theory.plan(2, 0.1, 0.1, max_seconds=0), ValueError, "max_seconds"),
        (
            lambda: theory.plan(2, 0.1, 0.1, diameter=1.0, num_atoms=3),
            ValueError,
            "S can be of one kind only, got diameter and num_atoms",
        ),
    ],
)
def test_bad_input_is_named(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")):
        call()


# -- planning --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"half_width": 0.5},
        {"diameter": 1.0},
        {"sub_gaussian": 0.19},
        {"num_atoms": 9000},
    ],
    ids=str,
)
@pytest.mark.parametrize(("d", "noise_std"), [(2, 0.5), (3, 0.4), (2, 5.0)])
def test_what_a_plan_guarantees_is_what_the_bounds_say(
    source: dict[str, Any], d: int, noise_std: float
) -> None:
    error = 0.05
    answer = theory.plan(d, noise_std, error, **source)
    n, queries, seconds = (
        int(answer.guaranteed.num_samples),
        int(answer.guaranteed.num_queries),
        answer.guaranteed.seconds,
    )
    chi_square, diameter = {
        "": (theory.chi_square_cube(d, noise_std), 2 * d**0.5),
        "half_width": (theory.chi_square_cube(d, noise_std, half_width=0.5), d**0.5),
        "diameter": (theory.chi_square_cube(d, noise_std, half_width=0.5), 1.0),
        "sub_gaussian": (theory.chi_square_sub_gaussian(d, 0.19, noise_std), None),
        "num_atoms": (theory.chi_square_atoms(9000), None),
    }["".join(source)]
    if "diameter" in source:
        chi_square = min(chi_square, theory.chi_square_diameter(1.0, noise_std))
    of_support = {} if diameter is None else {"diameter": diameter}
    if of_support:
        of_support["noise_std"] = noise_std

    def is_enough(n: int) -> bool:
        bias = theory.plug_in_bias_bound(n, chi_square)
        std = theory.plug_in_std_bound(n, **of_support)
        # Half of the variance each; counts are found within a thousandth.
        return bias <= error and std <= error / math.sqrt(2) * 1.001

    assert theory.monte_carlo_rmse(d, queries) <= error / math.sqrt(2)
    assert is_enough(n)
    assert not is_enough(int(0.99 * n)) or n == 2
    assert queries >= n
    assert 0 < seconds < math.inf
    assert answer.typical.num_samples <= n
    assert answer.is_feasible


def test_what_is_typical_is_enough_where_samples_fill_the_cube(
    rng: np.random.Generator,
) -> None:
    d, noise_std, error = 2, 0.2, 0.05
    exact = d * 0.8737866377  # uniform on [-1, 1], noise 0.2, by the trapezoid rule
    answer = theory.plan(d, noise_std, error)
    n = int(answer.typical.num_samples)
    errors = np.array(
        [
            entropy(rng.uniform(-1, 1, (n, d)), noise_std, seed=seed).value - exact
            for seed in range(30)
        ]
    )
    assert abs(errors.mean()) < error
    assert errors.std() < error
    assert n < answer.guaranteed.num_samples / 10


def test_a_hopeless_plan_says_so_and_what_would_help() -> None:
    answer = theory.plan(64, 0.01, 0.1)
    assert not answer.is_feasible
    assert not answer.is_guarantee_feasible
    assert 1e80 < answer.necessary_samples < answer.guaranteed.num_samples
    text = str(answer)
    assert "No feasible number of samples will do" in text
    assert f"at most {answer.feasible_dim} dimensions" in text
    assert f"noise_std of at least {answer.feasible_noise_std:.2g}" in text
    for d, noise_std in (
        (answer.feasible_dim, 0.01),
        (64, answer.feasible_noise_std * 1.001),
    ):
        assert theory.plan(d, noise_std, 0.1).typical.num_samples <= 1e8
    for d, noise_std in (
        (answer.feasible_dim + 1, 0.01),
        (64, answer.feasible_noise_std * 0.99),
    ):
        assert theory.plan(d, noise_std, 0.1).typical.num_samples > 1e8


def test_a_plan_without_a_theorem_promises_nothing() -> None:
    answer = theory.plan(3, 1.0, 0.1, sub_gaussian=0.7)
    assert math.isnan(answer.guaranteed.num_samples)
    assert answer.is_feasible
    assert not answer.is_guarantee_feasible
    assert "no number of samples is known to be enough" in str(answer)


def test_a_plan_beyond_all_numbers_still_prints() -> None:
    answer = theory.plan(10**6, 1e-5, 1e-4)
    assert not answer.is_feasible
    assert "more than 1e300" in str(answer)
    assert json.loads(answer.to_json())["typical"]["num_samples"] is None


def test_a_limit_makes_a_plan_infeasible() -> None:
    assert theory.plan(2, 0.5, 0.05).is_feasible
    assert not theory.plan(2, 0.5, 0.05, max_num_samples=100).is_feasible
    assert not theory.plan(2, 0.5, 0.05, max_seconds=1e-9).is_feasible


def test_the_command_plans(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--dim", "2", "--noise-std", "0.5", "--error", "0.05"]
    assert cli.main(arguments) == 0
    assert "guaranteed:" in capsys.readouterr().out
    assert cli.main([*arguments, "--num-atoms", "7", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["source"] == "S of 7 values"
    assert record["guaranteed"]["num_samples"] > record["typical"]["num_samples"] > 0
    assert cli.main(["plan", "--dim", "0", *arguments[3:]]) == 2
    assert capsys.readouterr().err == "noisyflow: dim must be at least 1, got 0\n"
