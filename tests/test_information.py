"""Estimates against exact answers, laws of the subject, honest errors, bad input.

Tolerances: k standard errors with the seed fixed, k stated; 1e-9 for what is exact up
to rounding. Where the standard error itself is on trial, the spread over repetitions is
the reference.
"""

import dataclasses
import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from noisyflow import sampling
from noisyflow.bounds import entropy_bounds
from noisyflow.estimate import Estimate, TargetWarning, UndersampledWarning
from noisyflow.information import conditional_entropy, entropy, mutual_information
from noisyflow.mixture import mixture_log_density

# Small samples, on purpose; what warns and what does not has tests of its own.
pytestmark = pytest.mark.filterwarnings(
    "ignore::noisyflow.estimate.UndersampledWarning"
)

ROUNDING = 1e-9


def assert_bracketed(estimate, exact, num_errors=4):
    """The exact value lies in the bracket, widened by standard errors."""
    margin = num_errors * estimate.standard_error
    assert estimate.lower - margin <= exact <= estimate.upper + margin


# ---------------------------------------------------------------- oracles themselves


@pytest.mark.parametrize(
    ("levels", "noise_std", "information"),
    [
        # Binary-input Gaussian channel at Es/N0 = 0 dB: 0.7214515908 bit.
        ((-1, 1), 0.5**0.5, 0.721451590790 * np.log(2)),
        # The same channel carries half a bit at noise 0.9786945 (Es/N0 = -2.823 dB).
        ((-1, 1), 0.9786945, 0.5 * np.log(2)),
        # Four levels far apart; at high noise I tends to var(S) / (2 noise_std^2).
        ((-3, -1, 1, 3), 0.1, np.log(4)),
        ((-3, -1, 1, 3), 1000.0, 5 / 2e6),
    ],
)
def test_oracle_agrees_with_the_literature(levels, noise_std, information):
    computed = oracles.mixture_entropy_1d(levels, noise_std)
    computed -= oracles.noise_entropy(1, noise_std)
    assert computed == pytest.approx(information, abs=5e-7)  # seven digits are known


# ---------------------------------------------------------------- entropy, exact values


@pytest.mark.parametrize("source", oracles.sources(), ids=str)
def test_bracket_of_entropy_holds_the_exact_value(source):
    centers = source.sample(np.random.default_rng(1), 2000)
    estimate = entropy(centers, source.noise_std)
    assert_bracketed(estimate, source.entropy)


@pytest.mark.parametrize(
    "source",
    [
        oracles.gaussian(1, 1.0, 0.5),
        oracles.gaussian(3, 1.0, 2.0),
        oracles.four_pam(1, 0.5),
        oracles.uniform_cube(2, 1.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_entropy_without_much_bias_is_within_four_standard_errors(source, dtype):
    centers = source.sample(np.random.default_rng(2), 4000).astype(dtype)
    estimate = entropy(centers, source.noise_std)
    assert estimate.upper - estimate.lower < 4 * estimate.standard_error
    assert abs(estimate.midpoint - source.entropy) <= 4 * estimate.standard_error


@pytest.mark.parametrize("noise_std", [0.3, 0.7, 1.5])
@pytest.mark.parametrize("d", [1, 2, 4, 8, 10])
def test_entropy_of_a_population_has_monte_carlo_error_only(d, noise_std):
    estimate = entropy(oracles.cube_corners(d), noise_std, population=True)
    exact = oracles.bpsk_cube(d, noise_std).entropy
    assert abs(estimate.value - exact) <= 4 * estimate.standard_error
    # |grad log g| <= |z| / noise_std on average, so Var <= d / queries (Poincare).
    num_queries = estimate.num_pairs / 2**d
    assert 0 < estimate.standard_error <= 1.1 * np.sqrt(d / num_queries)
    assert estimate.lower == estimate.value == estimate.upper


def test_entropy_of_weighted_levels_agrees_with_quadrature():
    levels, weights = np.array([-1.0, 0.0, 2.0]), np.array([0.6, 0.1, 0.3])
    exact = oracles.mixture_entropy_1d(levels, 0.4, weights)
    estimate = entropy(levels[:, None], 0.4, weights=weights, population=True)
    assert 0 < estimate.standard_error < 0.02
    assert abs(estimate.value - exact) <= 4 * estimate.standard_error
    wider = np.column_stack([levels, np.zeros((3, 2))])  # no quadrature there
    estimate = entropy(wider, 0.4, weights=weights, population=True)
    assert 0 < estimate.standard_error < 0.02
    exact += oracles.noise_entropy(2, 0.4)
    assert abs(estimate.value - exact) <= 4 * estimate.standard_error


def test_a_weight_of_zero_removes_its_center():
    centers = np.array([[0.0], [5.0], [1.0]])
    with_zero = entropy(centers, 0.5, weights=np.array([0.5, 0.0, 0.5]), seed=3)
    without = entropy(centers[[0, 2]], 0.5, weights=np.array([0.5, 0.5]), seed=3)
    assert with_zero == without


@pytest.mark.parametrize("d", [1, 3, 10])
@pytest.mark.parametrize("noise_std", [0.005, 1.0, 40.0])
def test_entropy_of_one_center_is_that_of_one_gaussian(d, noise_std):
    estimate = entropy(np.ones((1, d)), noise_std, population=True)
    assert estimate.value == pytest.approx(
        oracles.noise_entropy(d, noise_std), abs=ROUNDING
    )
    # |z|^2 by the trapezoidal rule of spacing 1: (2 pi)^2 exp(-2 pi^2) = 1e-7.
    assert estimate.standard_error < 1e-6


@pytest.mark.parametrize("d", [1, 3, 10])
def test_entropy_of_coincident_centers_is_that_of_one_gaussian(d):
    estimate = entropy(np.full((20, d), 0.3), 0.1)
    exact = oracles.noise_entropy(d, 0.1)
    for value in (estimate.value, estimate.lower, estimate.upper):
        assert value == pytest.approx(exact, abs=ROUNDING)
    assert estimate.isolated == 0


@pytest.mark.parametrize("d", [1, 3, 10])
def test_entropy_of_far_centers_adds_the_log_of_their_number(d):
    centers = 1e3 * np.arange(7.0)[:, None] * np.ones(d)
    estimate = entropy(centers, 0.1, population=True)
    exact = oracles.noise_entropy(d, 0.1) + np.log(7)
    assert estimate.value == pytest.approx(exact, abs=1e-7)
    assert estimate.isolated == pytest.approx(1)


def test_upper_end_stays_finite_when_every_center_is_isolated():
    centers = 1e6 * np.arange(6.0)[:, None]
    with pytest.warns(UndersampledWarning):
        estimate = entropy(centers, 0.01)
    # The nearest other center is 1e8 noise standard deviations away.
    assert estimate.upper == pytest.approx(0.5 * 1e16, rel=1e-6)


# ---------------------------------------------------------------- networks


@pytest.fixture(scope="module")
def linear_network():
    generator = np.random.default_rng(5)
    return oracles.LinearGaussianNetwork(
        generator.standard_normal((3, 2)), generator.standard_normal((2, 3)), 0.5
    )


def test_conditional_entropy_of_a_linear_network(linear_network):
    samples = linear_network.samples(np.random.default_rng(6), 300, 40)
    estimate = conditional_entropy(samples, linear_network.noise_std)
    assert_bracketed(estimate, linear_network.conditional_entropy)
    assert estimate.upper - estimate.lower < 0.2


def test_information_of_a_linear_network_with_sampled_inputs(linear_network):
    samples = linear_network.samples(np.random.default_rng(6), 300, 40)
    estimate = mutual_information(
        samples, linear_network.noise_std, inputs="sampled", max_pairs=10**9
    )
    assert_bracketed(estimate, linear_network.information)
    assert estimate.upper - estimate.lower < 0.3


def test_information_may_exceed_the_log_of_the_sampled_inputs():
    """I(X; X + Z) = (d/2) log(1 + 1/noise_std^2) for X ~ N(0, I): no cap at log m."""
    samples = np.random.default_rng(0).standard_normal((20, 1, 2))
    estimate = mutual_information(samples, 0.2, inputs="sampled")
    assert estimate.value <= np.log(20) < np.log(1 + 1 / 0.2**2) <= estimate.upper


def test_deterministic_representation_has_the_entropy_of_its_noise():
    samples = np.random.default_rng(0).standard_normal((5, 1, 3))
    estimate = conditional_entropy(samples, 0.2)
    exact = oracles.noise_entropy(3, 0.2)
    assert (estimate.lower, estimate.upper) == (estimate.value, estimate.value)
    assert estimate.value == pytest.approx(exact, abs=ROUNDING)
    assert (estimate.standard_error, estimate.num_pairs) == (0, 0)


def test_information_of_a_deterministic_representation_is_that_of_a_known_mixture():
    corners = oracles.cube_corners(3)
    estimate = mutual_information(corners[:, None, :], 0.7)
    exact = oracles.bpsk_cube(3, 0.7).entropy - oracles.noise_entropy(3, 0.7)
    assert abs(estimate.value - exact) <= 4 * estimate.standard_error
    assert 0 < estimate.standard_error < 0.02
    assert estimate.lower == estimate.value == estimate.upper


def test_information_of_labels_counts_what_distinguishes_them():
    """Label = sign of the first of three coordinates: one binary channel, not three."""
    corners = oracles.cube_corners(3)
    estimate = mutual_information(corners[:, None, :], 0.7, labels=corners[:, 0] > 0)
    exact = oracles.bpsk_cube(1, 0.7).entropy - oracles.noise_entropy(1, 0.7)
    assert abs(estimate.value - exact) <= 4 * estimate.standard_error
    assert 0 < estimate.standard_error < 0.02


def test_information_of_separate_blocks_is_exactly_the_log_of_their_number():
    generator = np.random.default_rng(0)
    samples = 100 * np.arange(5.0)[:, None, None] + generator.normal(size=(5, 4, 2))
    labels = ["a", "b", "a", "b", "b"]
    for_inputs = mutual_information(samples, 1.0)
    for_labels = mutual_information(samples, 1.0, labels=labels)
    assert for_inputs.value == pytest.approx(np.log(5), abs=ROUNDING)
    assert for_labels.value == pytest.approx(
        -0.4 * np.log(0.4) - 0.6 * np.log(0.6), abs=ROUNDING
    )


def test_information_does_not_grow_along_noisy_layers():
    network, inputs = oracles.TanhNetwork(1.0, 1.5, 0.1), np.linspace(-1, 1, 8)
    first = np.tanh(network.first * inputs).reshape(-1, 1, 1)
    second = network.samples(np.random.default_rng(0), inputs, 100)
    known = mutual_information(first, network.noise_std)
    estimate = mutual_information(second, network.noise_std)
    errors = np.hypot(known.standard_error, estimate.standard_error)
    assert estimate.value < known.value + 2 * errors


# ---------------------------------------------------------------- what is left out


def column_blocks(*blocks):
    return [np.array(block)[:, None] for block in blocks]


BLOCKS = column_blocks(
    [0.0, 0.1, 1.3], [1.0, 1.8], [-0.9, -0.5, -0.6, -0.7, -1.1], [0.7, 0.9]
)
LABELLED_BLOCKS = column_blocks(
    [-1.4, -0.9, -0.2],
    [0.3, 1.9],
    [-0.8, -1.3, -0.6, -0.7, -1.1],
    [0.9, 0.8],
    [1.2, 1.0, 1.3],
)
LABELS = [0, 1, 0, 1, 1]


def first_draws(blocks, num_draws):
    return [block[:num_draws] for block in blocks]


def in_more_dimensions(blocks, extra):
    """The same problem with coordinates that hold nothing but noise."""
    return [np.pad(block, ((0, 0), (0, extra))) for block in blocks]


def assert_agrees_with_quadrature(estimate, exact, num_centers, shift=0.0):
    # Queries of short blocks weigh up to 3/2 of the mean: twice the variance suffices.
    num_queries = estimate.num_pairs / num_centers
    error = 4 * exact.query_std * np.sqrt(2 / num_queries)
    if estimate.monte_carlo_error < 1e-4:  # quadrature here, too
        error = 1e-4
    assert abs(estimate.value - shift - exact.value) <= error
    assert abs(estimate.lower - shift - exact.lower) <= error
    assert abs(estimate.upper - shift - exact.upper) <= error


@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize(
    ("blocks", "labels", "inputs"),
    [
        (BLOCKS, None, "fixed"),
        (BLOCKS, None, "sampled"),
        (first_draws(BLOCKS, 2), None, "fixed"),
        (first_draws(BLOCKS, 2), None, "sampled"),
        (LABELLED_BLOCKS, LABELS, "fixed"),
        (LABELLED_BLOCKS, LABELS, "sampled"),
        (first_draws(LABELLED_BLOCKS, 2), LABELS, "fixed"),
        (first_draws(LABELLED_BLOCKS, 1), LABELS, "sampled"),
    ],
)
def test_information_and_its_bracket_agree_with_quadrature(
    blocks, labels, inputs, extra
):
    """The rules of leaving out, taken literally: oracles.bracket_1d."""
    estimate = mutual_information(
        in_more_dimensions(blocks, extra),
        0.8,
        labels=labels,
        inputs=inputs,
        max_pairs=2 * 10**6,
    )
    exact = oracles.bracket_1d(
        blocks, 0.8, "mutual_information", labels=labels, inputs=inputs
    )
    assert exact.lower > 0  # or the estimate would be cut off there
    assert_agrees_with_quadrature(estimate, exact, sum(map(len, blocks)))


@pytest.mark.parametrize("num_draws", [1, 20])
@pytest.mark.parametrize("labels", [None, ["a"]])
def test_one_input_carries_no_information_and_takes_no_work(num_draws, labels):
    """H(X) = 0. So few draws of 8 dimensions would not do for anything else."""
    samples = np.random.default_rng(0).standard_normal((1, num_draws, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = mutual_information(samples, 0.05, labels=labels)
    assert (found.value, found.lower, found.upper) == (0, 0, 0)
    assert (found.standard_error, found.num_pairs) == (0, 0)
    with pytest.raises(ValueError, match="at least 2 inputs"):
        mutual_information(samples, 0.05, inputs="sampled")


def test_one_label_for_all_inputs_carries_no_information():
    estimate = mutual_information(BLOCKS, 0.8, labels=[1, 1, 1, 1])
    assert (estimate.lower, estimate.value, estimate.upper) == (0, 0, 0)


@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("blocks", [BLOCKS, LABELLED_BLOCKS, first_draws(BLOCKS, 2)])
def test_conditional_entropy_and_its_bracket_agree_with_quadrature(blocks, extra):
    estimate = conditional_entropy(in_more_dimensions(blocks, extra), 0.4)
    exact = oracles.bracket_1d(blocks, 0.4, "conditional_entropy")
    shift = oracles.noise_entropy(extra, 0.4)
    largest = max(map(len, blocks))
    assert_agrees_with_quadrature(estimate, exact, largest, shift)


@pytest.mark.parametrize("extra", [0, 2])
def test_entropy_and_its_bracket_agree_with_quadrature(extra):
    centers = np.concatenate(BLOCKS)
    (wider,) = in_more_dimensions([centers], extra)
    estimate = entropy(wider, 0.4)
    exact = oracles.bracket_1d([centers], 0.4, "entropy")
    shift = oracles.noise_entropy(extra, 0.4)
    assert_agrees_with_quadrature(estimate, exact, len(centers), shift)


def clipped(bracket, ceiling):
    """What an estimate says that knows the range of the information."""
    return dataclasses.replace(
        bracket, lower=max(bracket.lower, 0), upper=min(bracket.upper, ceiling)
    )


REPEATED = column_blocks(
    [0.0, 0.0, 0.0, 1.3], [1.0, 1.0], [-0.9, 0.0, -0.9, 1.0, -0.9], [0.7, 0.9]
)


@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("inputs", ["fixed", "sampled"])
@pytest.mark.parametrize("labels", [None, [0, 1, 0, 1]])
def test_equal_samples_are_left_out_one_by_one(labels, inputs, extra):
    """They are one center to the kernel; the rules speak of samples."""
    estimate = mutual_information(
        in_more_dimensions(REPEATED, extra), 0.4, labels=labels, inputs=inputs
    )
    exact = oracles.bracket_1d(
        REPEATED, 0.4, "mutual_information", labels=labels, inputs=inputs
    )
    assert exact.value > 0
    ceiling = np.log(4) if labels is None else np.log(2)
    if labels is None and inputs == "sampled":
        ceiling = np.inf
    exact = clipped(exact, ceiling)
    assert_agrees_with_quadrature(estimate, exact, sum(map(len, REPEATED)))


@pytest.mark.parametrize("extra", [0, 2])
def test_equal_inputs_of_one_draw_are_left_out_one_by_one(extra):
    levels = np.array([0.0, 1.0, 0.0, 2.0, 1.0, 0.0, -1.0, 2.0])
    labels = [0, 1, 0, 1, 1, 0, 0, 1]
    blocks = [level.reshape(1, 1) for level in levels]
    samples = np.stack(in_more_dimensions(blocks, extra))
    shift = oracles.noise_entropy(1, 0.4)

    known = mutual_information(samples, 0.4)
    exact = oracles.mixture_entropy_1d(levels, 0.4) - shift
    assert abs(known.value - exact) <= 4 * known.standard_error + 1e-9

    sampled = mutual_information(samples, 0.4, inputs="sampled")
    exact = oracles.bracket_1d([levels[:, None]], 0.4, "entropy")
    assert_agrees_with_quadrature(sampled, exact, len(levels), -shift)

    of_labels = mutual_information(samples, 0.4, labels=labels, inputs="sampled")
    exact = oracles.bracket_1d(
        blocks, 0.4, "mutual_information", labels=labels, inputs="sampled"
    )
    assert exact.lower > 0
    assert_agrees_with_quadrature(of_labels, clipped(exact, np.log(2)), len(levels))


@pytest.mark.parametrize("extra", [0, 2])
def test_entropies_leave_equal_samples_out_one_by_one(extra):
    centers = np.concatenate(REPEATED)
    (wider,) = in_more_dimensions([centers], extra)
    shift = oracles.noise_entropy(extra, 0.4)
    exact = oracles.bracket_1d([centers], 0.4, "entropy")
    assert_agrees_with_quadrature(entropy(wider, 0.4), exact, len(centers), shift)
    exact = oracles.bracket_1d(REPEATED, 0.4, "conditional_entropy")
    estimate = conditional_entropy(in_more_dimensions(REPEATED, extra), 0.4)
    assert_agrees_with_quadrature(estimate, exact, 5, shift)


def test_a_label_with_one_sampled_input_has_no_lower_end_but_zero():
    estimate = mutual_information(BLOCKS, 0.4, labels=[1, 0, 0, 0], inputs="sampled")
    assert estimate.lower == 0
    assert estimate.value > 0


@pytest.mark.parametrize("num_draws", [2, 5])
def test_brackets_enclose_the_information_of_fixed_inputs_on_average(num_draws):
    network, inputs = oracles.TanhNetwork(1.0, 1.5, 0.3), np.linspace(-1, 1, 8)
    exact = network.information(inputs)

    def estimate(seed):
        samples = network.samples(np.random.default_rng(seed), inputs, num_draws)
        return mutual_information(samples, 0.3, seed=seed)

    assert_bracketed_on_average(estimate, exact)


@pytest.mark.parametrize("num_draws", [2, 5])
def test_brackets_enclose_the_information_of_sampled_inputs_on_average(num_draws):
    network = oracles.TanhNetwork(1.0, 1.5, 0.3)
    # X uniform on [-1, 1], as the midpoints of 40 cells: 80 cells differ by 4e-5.
    exact = network.information((np.arange(40) + 0.5) / 20 - 1)

    def estimate(seed):
        generator = np.random.default_rng(seed)
        samples = network.samples(generator, generator.uniform(-1, 1, 20), num_draws)
        return mutual_information(samples, 0.3, inputs="sampled", seed=seed)

    assert_bracketed_on_average(estimate, exact)


def assert_bracketed_on_average(estimate, exact, num_repeats=150):
    """E lower <= exact <= E upper, within 3 standard errors of the two means."""
    estimates = [estimate(seed) for seed in range(num_repeats)]
    lower = np.array([e.lower for e in estimates])
    upper = np.array([e.upper for e in estimates])
    assert lower.mean() - 3 * lower.std() / np.sqrt(num_repeats) <= exact
    assert exact <= upper.mean() + 3 * upper.std() / np.sqrt(num_repeats)


# ---------------------------------------------------------------- standard errors


def spread_over_claim(estimate, num_repeats=100):
    """Standard deviation over repetitions, in units of the standard error claimed."""
    estimates = [
        estimate(np.random.default_rng(seed), seed) for seed in range(num_repeats)
    ]
    values = np.array([e.value for e in estimates])
    claims = np.array([e.standard_error for e in estimates])
    return values.std(ddof=1) / np.sqrt((claims**2).mean())


# The standard deviation of 100 normal values has itself a relative error of
# 1 / sqrt(2 * 99) = 0.07; four of those.
HONEST = (0.72, 1.28)

WEIGHTS = np.where(np.arange(200) % 4 == 0, 10.0, 1.0) / 650
UNLIKE_STDS = np.array([0.1, 1.0, 10.0, 100.0]).reshape(4, 1, 1)
INPUTS = np.linspace(-1, 1, 8)
NETWORK = oracles.TanhNetwork(1.0, 1.5, 0.3)
FAR_AND_NEAR = np.array([0.0, 0.1, 0.5, 3.0, 3.5, 9.0])[:, None]


def in_three_dimensions(samples):
    """Scalar samples (..., 1) where no quadrature takes the noise away."""
    return np.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(0, 2)])


@pytest.mark.parametrize(
    "estimate",
    [
        pytest.param(
            lambda generator, seed: entropy(
                generator.normal(size=(200, 2)), 1.0, seed=seed
            ),
            id="entropy, quadrature",
        ),
        pytest.param(
            lambda generator, seed: entropy(
                generator.normal(size=(200, 3)), 1.0, seed=seed
            ),
            id="entropy",
        ),
        pytest.param(
            lambda generator, seed: entropy(
                generator.normal(size=(300, 3)), 1.0, max_pairs=300 * 400, seed=seed
            ),
            id="entropy, about a query a center",
        ),
        pytest.param(
            lambda generator, seed: entropy(
                generator.normal(size=(1000, 3)), 1.0, max_pairs=1000 * 256, seed=seed
            ),
            id="entropy, fewer queries than centers",
        ),
        pytest.param(
            lambda generator, seed: entropy(
                generator.normal(size=(200, 3)),
                1.0,
                weights=WEIGHTS,
                seed=seed,
            ),
            id="weighted entropy",
        ),
        pytest.param(
            lambda generator, seed: entropy(
                np.round(generator.normal(size=(300, 3))), 1.0, seed=seed
            ),
            id="entropy of repeated samples",
        ),
        pytest.param(
            lambda generator, seed: entropy(
                in_three_dimensions(FAR_AND_NEAR), 1.0, population=True, seed=seed
            ),
            id="entropy of a population",
        ),
        pytest.param(
            lambda generator, seed: entropy(
                in_three_dimensions(FAR_AND_NEAR),
                1.0,
                population=True,
                standard_error=1e-3,
                seed=seed,
            ),
            id="entropy of a population, several rounds",
        ),
        pytest.param(
            lambda generator, seed: conditional_entropy(
                NETWORK.samples(generator, INPUTS, 40), 0.3, seed=seed
            ),
            id="conditional entropy, quadrature",
        ),
        pytest.param(
            lambda generator, seed: conditional_entropy(
                in_three_dimensions(NETWORK.samples(generator, INPUTS, 40)),
                0.3,
                seed=seed,
            ),
            id="conditional entropy",
        ),
        pytest.param(
            lambda generator, seed: conditional_entropy(
                in_three_dimensions(UNLIKE_STDS * generator.normal(size=(4, 40, 1))),
                1.0,
                seed=seed,
            ),
            id="conditional entropy of unlike inputs",
        ),
        pytest.param(
            lambda generator, seed: conditional_entropy(
                generator.normal(size=(30, 2, 3)), 1.0, seed=seed
            ),
            id="conditional entropy of pairs",
        ),
        pytest.param(
            lambda generator, seed: mutual_information(
                in_three_dimensions(NETWORK.samples(generator, INPUTS, 40)),
                0.3,
                seed=seed,
            ),
            id="information, fixed inputs",
        ),
        pytest.param(
            lambda generator, seed: mutual_information(
                NETWORK.samples(generator, INPUTS, 40),
                0.3,
                labels=INPUTS > 0.3,
                seed=seed,
            ),
            id="label information, fixed inputs",
        ),
        pytest.param(
            lambda generator, seed: mutual_information(
                in_three_dimensions(FAR_AND_NEAR)[:, None, :], 1.0, seed=seed
            ),
            id="information of a known mixture",
        ),
        pytest.param(
            lambda generator, seed: mutual_information(
                in_three_dimensions(
                    NETWORK.samples(generator, generator.normal(size=60), 10)
                ),
                0.3,
                inputs="sampled",
                seed=seed,
            ),
            id="information, sampled inputs",
        ),
    ],
)
def test_standard_error_is_the_spread_over_repetitions(estimate):
    assert HONEST[0] <= spread_over_claim(estimate) <= HONEST[1]


def test_standard_error_of_sampled_labels_is_the_spread_over_repetitions():
    def estimate(generator, seed):
        x = generator.normal(size=80)
        samples = NETWORK.samples(generator, x, 5)
        return mutual_information(
            samples, 0.3, labels=x > 0.3, inputs="sampled", seed=seed
        )

    assert HONEST[0] <= spread_over_claim(estimate) <= HONEST[1]


def sampling_error(values, weights, blocks, sampled):
    """The error of the samples where the values of all centers are known exactly."""
    (n,) = values.shape
    problem = sampling.Problem(
        np.zeros((n, 1)),
        1.0,
        lambda points, own: None,
        sampled,
        weights=weights,
        blocks=np.array(blocks),
    )
    variance = sampling._sampling_variance(problem, np.arange(n), values, weights, None)
    return np.sqrt(variance)


def jackknife_error(values):
    """Standard error of a mean over n, with deviations enlarged by n / (n - 1)."""
    (n,) = values.shape
    return values.std() * n / (n - 1) / np.sqrt(n)


def test_standard_error_of_equal_weights_is_that_of_the_jackknife():
    values = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    error = sampling_error(values, np.full(5, 0.2), [0, 5], "draws")
    assert error == pytest.approx(jackknife_error(values))


def test_standard_error_of_fixed_blocks_ignores_their_differences():
    first, second = np.arange(10.0), 100 + np.arange(12.0) ** 2
    error = sampling_error(
        np.concatenate([first, second]),
        np.repeat([0.5 / 10, 0.5 / 12], [10, 12]),
        [0, 10, 22],
        "draws",
    )
    errors = jackknife_error(first), jackknife_error(second)
    assert error == pytest.approx(0.5 * np.hypot(*errors))


@pytest.mark.parametrize("sampled", ["inputs", "draws"])
def test_standard_error_of_sampled_or_short_blocks_is_that_of_their_means(sampled):
    error = sampling_error(
        np.array([3.0, 1.0, 2.0, 4.0, 1.0, 9.0, 11.0]),
        np.repeat([1 / 9, 1 / 6], [3, 4]),
        [0, 3, 5, 7],
        sampled,
    )
    assert error == pytest.approx(jackknife_error(np.array([2.0, 2.5, 10.0])))


def test_noise_of_the_queries_is_not_taken_for_error_of_the_samples():
    """Equal centers but for the noise: products of different replicates cancel."""
    generator = np.random.default_rng(0)
    problem = sampling.Problem(np.zeros((500, 1)), 1.0, lambda x, own: None, "draws")
    own = np.tile(np.arange(500), 16)
    values = generator.standard_normal(len(own))
    replicate = np.repeat(np.arange(16), 500)
    variance = sampling._sampling_variance(
        problem, own, values, np.ones(len(own)), replicate
    )
    # Var = 1/16 a center if noise counted; the products' mean has spread 1/(16 sqrt n).
    assert variance < 4 * np.sqrt(2 / (16 * 15 * 500)) / 500


def test_control_variate_removes_the_noise_of_isolated_centers():
    centers = 1e3 * np.arange(50.0)[:, None] * np.ones(8)
    estimate = entropy(centers, 1.0, population=True)
    # Without it: sqrt(d / 2 / queries) = 0.02. All queries are isolated: 1 / queries.
    assert estimate.standard_error < 1.1 / 8000
    exact = np.log(50) + oracles.noise_entropy(8, 1.0)
    assert estimate.value == pytest.approx(exact, abs=1e-9)


# ---------------------------------------------------------------- targets and budgets


def cloud(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize("target", [0.02, 0.005, 1e-3])
def test_queries_are_spent_until_the_target_is_met(target):
    estimate = entropy(cloud(300, 4), 0.7, population=True, standard_error=target)
    assert estimate.stopped_by == "target"
    assert estimate.standard_error <= target
    reference = entropy(
        cloud(300, 4), 0.7, population=True, standard_error=2e-4, seed=1
    )
    assert abs(estimate.value - reference.value) < 4 * np.hypot(
        estimate.standard_error, reference.standard_error
    )


def test_a_smaller_target_costs_more():
    costs = [
        entropy(cloud(300, 4), 0.7, population=True, standard_error=target).num_pairs
        for target in (0.01, 1e-3, 3e-4)
    ]
    assert costs == sorted(costs)
    assert costs[0] < costs[2]


@pytest.mark.parametrize("d", [1, 4])
def test_a_target_below_the_error_of_the_samples_is_reported(d):
    with pytest.warns(
        TargetWarning, match="not the 0.001 asked for.*samples themselves"
    ):
        estimate = entropy(cloud(300, d), 0.7, standard_error=1e-3)
    assert estimate.stopped_by == "samples"
    sampling_part = np.sqrt(estimate.standard_error**2 - estimate.monte_carlo_error**2)
    assert estimate.monte_carlo_error <= 0.31 * sampling_part


def test_a_default_target_out_of_reach_is_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate = entropy(cloud(100, 1), 0.7)
    assert estimate.stopped_by == "samples"


@pytest.mark.parametrize("n", [300, 5000])
def test_a_budget_of_pairs_is_kept(n):
    budget = n * 3000
    with pytest.warns(TargetWarning, match="limit of pairs is reached"):
        estimate = entropy(
            cloud(n, 4), 0.7, population=True, standard_error=1e-6, max_pairs=budget
        )
    assert estimate.stopped_by == "pairs"
    assert 0.3 * budget <= estimate.num_pairs <= budget
    assert estimate.standard_error > 1e-6


@pytest.fixture
def clock_of_looks(monkeypatch):
    """Every look at the clock is 50 ms later, however busy the machine is."""
    looks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: 0.05 * next(looks))
    monkeypatch.setattr(sampling, "time", clock)


def test_a_budget_of_seconds_ends_the_queries(clock_of_looks):
    with pytest.warns(TargetWarning, match="max_seconds is reached"):
        estimate = entropy(
            cloud(2000, 6), 0.7, population=True, standard_error=1e-9, max_seconds=0.2
        )
    assert estimate.stopped_by == "seconds"
    assert estimate.num_pairs > 2000 * 128


def test_a_limit_of_seconds_does_not_end_at_what_a_few_queries_agree_on(clock_of_looks):
    """One clump among isolated centers: most small sets of queries do not meet it."""
    centers = 10.0 * np.arange(12_800.0)[:, None] * np.ones(3)
    centers[:100] = 0.1 * cloud(100, 3)
    centers[100:] += 10
    for seed in range(4):
        estimate = entropy(
            centers,
            1.0,
            population=True,
            max_seconds=30,
            standard_error=0.01,
            seed=seed,
        )
        # 100 of 12,800 share one density: log 12,800 - (100 / 12,800) log 100.
        exact = np.log(12_800) - np.log(100) / 128 + oracles.noise_entropy(3, 1.0)
        assert estimate.num_pairs >= 4096 * 12_800
        assert abs(estimate.value - exact) < 4 * estimate.standard_error


def test_no_target_is_met_by_the_queries_that_only_show_the_time():
    centers = 100.0 * np.arange(2000.0)[:, None] * np.ones(3)
    estimate = entropy(centers, 1.0, population=True, max_seconds=1e-6)
    assert estimate.stopped_by == "seconds"
    assert estimate.num_pairs == 128 * 2000


@pytest.mark.parametrize("budget", [128, 400, 1600, 8192])
def test_errors_are_honest_however_few_the_queries(budget):
    """Uneven small mixtures, where slopes fitted to few records would follow chance."""
    generator = np.random.default_rng(3)
    centers = generator.uniform(-1, 1, (7, 10))
    weights = generator.gamma(0.3, size=7)
    weights /= weights.sum()

    def estimate(seed, **options):
        return entropy(
            centers, 0.4, weights=weights, population=True, seed=seed, **options
        )

    best = estimate(99, standard_error=2e-4)
    scores = []
    for seed in range(60):
        found = estimate(seed, max_pairs=7 * budget)
        error = np.hypot(found.standard_error, best.standard_error)
        scores.append((found.value - best.value) / error)
    # 4.6 % beyond two errors are due; 60 of them have a standard deviation of 2.7 %.
    assert np.mean(np.abs(scores) > 2) < 0.046 + 4 * 0.027
    assert np.abs(scores).max() < 5


@pytest.mark.parametrize("d", [5, 8])
def test_equal_densities_at_all_centers_are_no_control(d):
    """On a symmetric grid they differ by rounding alone."""
    exact = oracles.bpsk_cube(d, 1.0).entropy
    for seed in range(8):
        estimate = entropy(oracles.cube_corners(d), 1.0, population=True, seed=seed)
        assert abs(estimate.value - exact) < 4 * estimate.standard_error


def test_a_handful_of_samples_does_not_show_its_error():
    for d in (1, 3):
        assert entropy(cloud(4, d), 2.0).standard_error == np.inf
        assert entropy(cloud(5, d), 2.0).standard_error < np.inf
    uneven = np.array([1 - 1e-6, 1e-6])
    assert entropy(cloud(2, 3), 2.0, weights=uneven).standard_error == np.inf


def test_few_samples_are_bracketed_as_often_as_two_errors_promise():
    source = oracles.gaussian(3, 1.0, 2.0)
    held = []
    for seed in range(200):
        estimate = entropy(source.sample(np.random.default_rng(seed), 5), 2.0)
        margin = 2 * estimate.standard_error
        held.append(
            estimate.lower - margin <= source.entropy <= estimate.upper + margin
        )
    assert np.mean(held) > 0.95 - 3 * 0.015


def test_a_budget_is_not_blamed_for_what_the_samples_leave():
    with pytest.warns(TargetWarning, match="more of them are needed, roughly"):
        estimate = entropy(cloud(300, 4), 0.7, standard_error=1e-3, max_pairs=300 * 200)
    assert estimate.stopped_by == "pairs"


@pytest.mark.parametrize("d", [1, 2])
def test_quadrature_is_exact_to_its_stated_error(d):
    centers = np.random.default_rng(0).uniform(-1, 1, (40, 1))
    exact = oracles.mixture_entropy_1d(centers[:, 0], 0.3)
    wider = np.pad(centers, ((0, 0), (0, d - 1)))
    estimate = entropy(wider, 0.3, population=True)
    error = abs(estimate.value - exact - oracles.noise_entropy(d - 1, 0.3))
    assert error <= estimate.standard_error + 1e-9  # the oracle's own
    assert estimate.standard_error < 1e-4


def test_controls_and_nets_lower_the_variance_of_clusters_more_than_fiftyfold():
    """Against draws at every center, at no more pairs (figures: bench/)."""
    generator = np.random.default_rng(0)
    middles = generator.choice([-1.0, 1.0], (32, 5)) * generator.uniform(
        0.85, 1, (32, 1)
    )
    centers = np.repeat(middles, 32, axis=0) + 0.02 * generator.normal(size=(1024, 5))
    estimates = [
        entropy(centers, 0.1, population=True, max_pairs=8 * 1024**2, seed=seed)
        for seed in range(40)
    ]
    plain = []
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(size=(8192, 5))
        points = np.repeat(centers, 8, axis=0) + 0.1 * noise
        plain.append(mixture_log_density(points, centers, 0.1).mean())
    assert np.var(plain) > 50 * np.var([e.value for e in estimates])


# ---------------------------------------------------------------- what Estimate tells


def test_saturation_is_the_chi_square_information_of_the_samples():
    """n saturation - 1 = E p(own | T) n - 1, by quadrature for 5 levels."""
    levels, noise_std = np.array([-1.0, -0.4, 0.1, 0.5, 2.0]), 0.5
    grid = np.linspace(-6, 7, 20_001)
    terms = np.exp(-0.5 * ((grid[:, None] - levels) / noise_std) ** 2) / (
        5 * noise_std * np.sqrt(2 * np.pi)
    )
    own_weight = np.trapezoid((terms**2).sum(axis=1) / terms.sum(axis=1), grid)
    for extra in (0, 2):
        wider = np.pad(levels[:, None], ((0, 0), (0, extra)))
        estimate = entropy(wider, noise_std, population=True)
        assert estimate.saturation == pytest.approx(own_weight, abs=0.01)


def test_bias_is_about_half_the_saturation_and_absent_in_the_midpoint():
    source = oracles.gaussian(3, 1.0, 1.0)
    estimates = [
        entropy(source.sample(np.random.default_rng(seed), 400), 1.0, seed=seed)
        for seed in range(60)
    ]
    error = np.std([e.value for e in estimates]) / np.sqrt(60)
    bias = source.entropy - np.mean([e.value for e in estimates])
    half = 0.5 * np.mean([e.saturation - 1 / 400 for e in estimates])
    assert abs(bias - half) < 4 * error
    assert abs(source.entropy - np.mean([e.midpoint for e in estimates])) < 4 * error


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_lower_confidence_bound_is_that_of_mcdiarmid(confidence):
    estimate = entropy(cloud(10_000, 1), 0.7)
    p = 1 / 10_000
    change = -p * np.log(p) - (1 - p) * np.log(1 - p)
    deviation = change * np.sqrt(10_000 * np.log(1 / (0.5 * (1 - confidence))) / 2)
    bound = estimate.lower_confidence_bound(confidence)
    assert bound == pytest.approx(estimate.value - deviation, abs=1e-4)
    exact = 0.5 * np.log(2 * np.pi * np.e * 1.49)
    assert bound < exact


@pytest.mark.parametrize(
    ("confidence", "error"),
    [(0.0, ValueError), (1, ValueError), (np.nan, ValueError), ("a", TypeError)],
)
def test_confidence_is_a_probability(confidence, error):
    with pytest.raises(error, match="confidence"):
        Estimate(1.0, 0.1, 0.9, 1.1, 0.0, 1).lower_confidence_bound(confidence)


def test_no_confidence_bound_is_claimed_where_none_is_known():
    estimate = mutual_information(BLOCKS, 0.8)
    assert estimate.lower_confidence_bound() == -np.inf


@pytest.mark.parametrize("source", oracles.sources(), ids=str)
def test_every_bound_without_random_numbers_holds_the_plug_in(source):
    centers = source.sample(np.random.default_rng(3), 500)
    estimate = entropy(centers, source.noise_std, population=True)
    bounds = entropy_bounds(centers, source.noise_std)
    margin = 4 * estimate.standard_error + ROUNDING
    assert bounds.lower - margin <= estimate.value <= bounds.upper + margin


@pytest.mark.parametrize(
    ("d", "noise_std", "best_lower", "best_upper"),
    [
        (2, 0.1, "expected likelihood", "pairwise"),
        (10, 0.05, "pairwise", "no overlap"),
        (10, 2.0, "pairwise", "gaussian"),
    ],
)
def test_bounds_are_the_best_of_their_formulas(d, noise_std, best_lower, best_upper):
    """Kolchinsky and Tracey 2017; Huber et al. 2008; each the best somewhere."""
    centers = np.random.default_rng(0).uniform(-1, 1, (50, d))
    squares = ((centers[:, None] - centers) ** 2).sum(axis=2) / noise_std**2
    noise = oracles.noise_entropy(d, noise_std)

    def mean_log_kernel(divisor):
        return np.log(np.exp(-squares / divisor).mean(axis=1)).mean()

    lower = {
        "pairwise": noise - mean_log_kernel(8),
        "expected likelihood": 0.5 * d * np.log(4 * np.pi * noise_std**2)
        - mean_log_kernel(4),
    }
    covariance = np.cov(centers.T, bias=True) + noise_std**2 * np.eye(d)
    upper = {
        "pairwise": noise - mean_log_kernel(2),
        "no overlap": noise + np.log(50),
        "gaussian": 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1],
    }
    assert max(lower, key=lower.get) == best_lower
    bounds = entropy_bounds(centers, noise_std)
    assert bounds.lower == pytest.approx(lower[best_lower], abs=ROUNDING)
    assert bounds.upper == pytest.approx(min(upper.values()), abs=ROUNDING)
    assert upper[best_upper] == pytest.approx(min(upper.values()), abs=1e-6)


# ---------------------------------------------------------------- laws


def arrays(min_rows=1):
    """Small center sets in one to three dimensions, coincident centers included."""
    coordinate = st.integers(-8, 8).map(lambda k: k / 4)
    shapes = st.tuples(st.integers(min_rows, 8), st.integers(1, 3))
    return shapes.flatmap(
        lambda shape: st.lists(
            st.lists(coordinate, min_size=shape[1], max_size=shape[1]),
            min_size=shape[0],
            max_size=shape[0],
        ).map(np.array)
    )


noise_stds = st.sampled_from([0.05, 0.3, 1.0, 4.0])
law = settings(derandomize=True, deadline=None, max_examples=40, database=None)


def population_entropy(centers, noise_std, **options):
    return entropy(centers, noise_std, population=True, **options)


def assert_equal_within_errors(a, b):
    """Five standard errors: 40 examples a law, each one draw of the noise."""
    margin = 5 * np.hypot(a.standard_error, b.standard_error) + ROUNDING
    assert abs(a.value - b.value) <= margin


@law
@given(arrays(), noise_stds)
def test_pairwise_bounds_bracket_every_estimate(centers, noise_std):
    estimate = population_entropy(centers, noise_std)
    bounds = entropy_bounds(centers, noise_std)
    margin = 5 * estimate.standard_error + ROUNDING
    assert bounds.lower - margin <= estimate.value <= bounds.upper + margin


@law
@given(arrays(), noise_stds)
def test_information_lies_between_zero_and_the_log_of_the_inputs(centers, noise_std):
    estimate = mutual_information(centers[:, None, :], noise_std)
    assert 0 <= estimate.lower <= estimate.value <= estimate.upper
    assert estimate.upper <= np.log(len(centers))


@law
@given(arrays(min_rows=2), noise_stds)
def test_information_is_at_most_that_of_a_gaussian_input(centers, noise_std):
    """I <= (1/2) log det(I + cov / noise_std^2): the Gaussian maximises the entropy."""
    estimate = mutual_information(centers[:, None, :], noise_std)
    covariance = np.atleast_2d(np.cov(centers.T, bias=True))
    limit = (
        0.5 * np.linalg.slogdet(np.eye(len(covariance)) + covariance / noise_std**2)[1]
    )
    assert estimate.value <= limit + 5 * estimate.standard_error + ROUNDING


@law
@given(arrays(), noise_stds)
def test_information_of_labels_is_at_most_that_of_inputs(centers, noise_std):
    samples = centers[:, None, :]
    labels = np.arange(len(centers)) % 3
    of_labels = mutual_information(samples, noise_std, labels=labels)
    of_inputs = mutual_information(samples, noise_std)
    margin = 5 * np.hypot(of_labels.standard_error, of_inputs.standard_error)
    assert of_labels.value <= of_inputs.value + margin + ROUNDING


@law
@given(arrays(), noise_stds)
def test_information_is_entropy_less_that_of_the_noise(centers, noise_std):
    information = mutual_information(centers[:, None, :], noise_std)
    noise = oracles.noise_entropy(centers.shape[1], noise_std)
    estimate = population_entropy(centers, noise_std)
    estimate = dataclasses.replace(estimate, value=estimate.value - noise)
    assert_equal_within_errors(information, estimate)


@law
@given(arrays(), noise_stds, st.randoms(use_true_random=False))
def test_entropy_does_not_depend_on_the_order_of_centers(centers, noise_std, random):
    order = list(range(len(centers)))
    random.shuffle(order)
    assert_equal_within_errors(
        population_entropy(centers, noise_std),
        population_entropy(centers[order], noise_std, seed=1),
    )


@law
@given(arrays(), noise_stds)
def test_entropy_does_not_depend_on_the_origin(centers, noise_std):
    here = population_entropy(centers, noise_std)
    there = population_entropy(centers + 16.0, noise_std)
    assert there.value == pytest.approx(here.value, abs=ROUNDING)


@law
@given(arrays(), noise_stds)
def test_entropy_does_not_depend_on_the_axes(centers, noise_std):
    d = centers.shape[1]
    rotation = np.linalg.qr(np.random.default_rng(d).standard_normal((d, d)))[0]
    assert_equal_within_errors(
        population_entropy(centers, noise_std),
        population_entropy(centers @ rotation, noise_std, seed=1),
    )


@law
@given(arrays(min_rows=2), noise_stds, st.sampled_from([-3.0, 0.01, 0.5, 100.0]))
def test_scaling_adds_the_log_of_the_scale(centers, noise_std, scale):
    """h(aT) = h(T) + d log |a|, for the estimate and its bracket."""
    estimate = entropy(centers, noise_std)
    scaled = entropy(scale * centers, abs(scale) * noise_std)
    if scale < 0:  # not the mirrored noise, so equal up to Monte-Carlo error only
        scaled = entropy(-scale * centers, abs(scale) * noise_std)
    shift = centers.shape[1] * np.log(abs(scale))
    assert scaled.value == pytest.approx(estimate.value + shift, abs=ROUNDING)
    assert scaled.upper == pytest.approx(estimate.upper + shift, rel=1e-9, abs=1e-9)
    assert scaled.isolated == estimate.isolated


@law
@given(arrays(), noise_stds)
def test_a_coordinate_of_noise_adds_its_own_entropy(centers, noise_std):
    wider = np.column_stack([centers, np.zeros(len(centers))])
    estimate = population_entropy(centers, noise_std)
    noise = oracles.noise_entropy(1, noise_std)
    estimate = dataclasses.replace(estimate, value=estimate.value + noise)
    assert_equal_within_errors(estimate, population_entropy(wider, noise_std))


@law
@given(arrays(min_rows=2), noise_stds)
def test_merging_coincident_centers_into_weights_changes_nothing(centers, noise_std):
    merged, counts = np.unique(centers, axis=0, return_counts=True)
    weights = counts / counts.sum()
    assert_equal_within_errors(
        population_entropy(centers, noise_std),
        population_entropy(merged, noise_std, weights=weights, seed=1),
    )
    assert entropy_bounds(centers, noise_std) == pytest.approx(
        entropy_bounds(merged, noise_std, weights=weights), abs=ROUNDING
    )


@pytest.mark.parametrize("inputs", ["fixed", "sampled"])
def test_information_is_the_difference_of_the_two_entropies(inputs):
    samples = in_three_dimensions(NETWORK.samples(np.random.default_rng(0), INPUTS, 50))
    information = mutual_information(samples, 0.3, inputs=inputs)
    whole = entropy(samples.reshape(-1, 3), 0.3, population=True)
    conditional = conditional_entropy(samples, 0.3)
    # Same samples, so Monte-Carlo errors only.
    error = 4 * sum(e.monte_carlo_error for e in (information, whole, conditional))
    difference = whole.value - conditional.value
    assert information.value == pytest.approx(difference, abs=error)


def test_labels_that_name_the_inputs_give_the_information_of_the_inputs():
    of_inputs = mutual_information(BLOCKS, 0.4)
    of_labels = mutual_information(BLOCKS, 0.4, labels=[3, 5, 7, 9])
    assert of_labels.value == pytest.approx(of_inputs.value, abs=ROUNDING)
    assert of_labels.lower == pytest.approx(of_inputs.lower, abs=ROUNDING)
    assert of_labels.upper == pytest.approx(of_inputs.upper, abs=ROUNDING)


# ---------------------------------------------------------------- arrays and seeds


CALLS = [
    pytest.param(lambda s, **o: entropy(s[:, 0], 0.5, **o), id="entropy"),
    pytest.param(
        lambda s, **o: conditional_entropy(s, 0.5, **o), id="conditional_entropy"
    ),
    pytest.param(
        lambda s, **o: mutual_information(s, 0.5, **o), id="mutual_information"
    ),
]


@pytest.fixture
def samples():
    return np.random.default_rng(0).standard_normal((6, 5, 3))


@pytest.mark.parametrize("call", CALLS)
def test_seed_makes_the_estimate_reproducible_bit_for_bit(call, samples):
    assert call(samples, seed=7) == call(samples, seed=7)
    assert call(samples, seed=7).value != call(samples, seed=8).value


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_torch_tensors_give_the_same_estimate(call, samples, dtype):
    torch = pytest.importorskip("torch")
    samples = samples.astype(dtype)
    assert call(torch.from_numpy(samples)) == call(samples)


def test_a_sparse_tensor_is_refused_by_name(samples):
    torch = pytest.importorskip("torch")
    sparse = torch.from_numpy(samples[:, 0]).to_sparse()
    with pytest.raises(TypeError, match=r"centers must be a dense .*sparse_coo"):
        entropy(sparse, 0.5)


@pytest.mark.parametrize("call", CALLS)
def test_single_precision_agrees_with_double(call, samples):
    # Other noise, so equal up to four standard errors of 10,000 queries each.
    single = call(samples.astype(np.float32))
    double = call(samples)
    assert single.value != double.value
    assert single.value == pytest.approx(double.value, abs=0.1)
    assert single.upper == pytest.approx(double.upper, abs=0.3)


@pytest.mark.parametrize("call", CALLS)
def test_memory_layout_changes_nothing(call, samples):
    wide = np.zeros((6, 5, 6))
    wide[:, :, ::2] = samples
    assert call(wide[:, :, ::2]) == call(samples)
    assert call(np.asfortranarray(samples)) == call(samples)


@pytest.mark.parametrize("function", [conditional_entropy, mutual_information])
def test_a_list_of_blocks_is_the_array_of_them(function, samples):
    assert function(list(samples), 0.5) == function(samples, 0.5)


@pytest.mark.parametrize("queries_per_call", [1, 7, 100])
@pytest.mark.parametrize("d", [1, 3])
def test_the_way_the_work_is_cut_changes_nothing(
    monkeypatch, samples, queries_per_call, d
):
    centers = np.ascontiguousarray(samples[:, 0, :d])
    whole = entropy(centers, 0.5, population=True, max_pairs=6 * 3000)
    monkeypatch.setattr(sampling, "_QUERIES_PER_CALL", queries_per_call)
    parts = entropy(centers, 0.5, population=True, max_pairs=6 * 3000)
    assert parts.num_pairs == whole.num_pairs
    assert parts.value == pytest.approx(whole.value, abs=ROUNDING)
    assert parts.standard_error == pytest.approx(whole.standard_error)


# ---------------------------------------------------------------- warnings


def test_entropy_warns_that_samples_are_too_few():
    centers = np.random.default_rng(0).uniform(-1, 1, (500, 10))
    with pytest.warns(
        UndersampledWarning,
        match=r"500 samples are too few for d = 10 at noise_std = 0.1",
    ) as record:
        estimate = entropy(centers, 0.1)
    assert record[0].filename == __file__
    assert estimate.isolated > 0.99
    ceiling = np.log(500) + oracles.noise_entropy(10, 0.1)
    assert estimate.value == pytest.approx(ceiling, abs=0.01)
    assert estimate.upper - estimate.lower > 10


def test_conditional_entropy_warns_that_draws_are_too_few():
    samples = np.random.default_rng(0).uniform(-1, 1, (4, 20, 8))
    with pytest.warns(UndersampledWarning, match="20 draws per input are too few"):
        conditional_entropy(samples, 0.1)


@pytest.mark.parametrize(
    ("inputs", "labels", "words"),
    [
        ("fixed", None, "20 draws per input are too few"),
        ("fixed", [0, 1, 0, 1], "20 draws per input are too few"),
        ("sampled", None, "4 inputs are too few"),
        ("sampled", [0, 1, 0, 1], "4 inputs are too few"),
    ],
)
def test_information_warns_that_samples_are_too_few(inputs, labels, words):
    samples = np.random.default_rng(0).uniform(-1, 1, (4, 20, 8))
    with pytest.warns(UndersampledWarning, match=words):
        estimate = mutual_information(samples, 0.1, inputs=inputs, labels=labels)
    assert estimate.lower == 0


def test_saturated_mixtures_warn_before_all_samples_are_isolated():
    centers = cloud(300, 3)
    with pytest.warns(
        UndersampledWarning, match=r"own sample makes up 2\d % .* the bracket \[4.13, "
    ):
        estimate = entropy(centers, 0.3)
    assert estimate.isolated < 0.1
    assert estimate.is_undersampled


def test_enough_samples_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate = entropy(cloud(2000, 3), 0.7)
        assert not estimate.is_undersampled
        assert not mutual_information(cloud(2000, 3)[:, None], 0.7).is_undersampled
        conditional_entropy(cloud(2000, 2).reshape(20, 100, 2), 0.7)


def test_isolation_in_a_known_population_is_no_reason_to_warn():
    centers = 100 * np.arange(8.0)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert entropy(centers, 1.0, population=True).isolated == 1
        assert mutual_information(centers[:, None], 1.0).isolated == 1
        labels = np.arange(8)
        assert mutual_information(centers[:, None], 1.0, labels=labels).isolated == 1


def test_repeated_samples_of_far_points_are_not_isolated():
    centers = np.repeat(100 * np.arange(8.0), 5)[:, None]
    assert entropy(centers, 1.0).isolated == 0


# ---------------------------------------------------------------- Estimate


def test_printing_gives_one_line_with_units_and_both_errors():
    assert str(Estimate(2.6210, 0.0031, 2.6180, 2.6402, 0.03, 10)) == (
        "2.6210 nats +- 0.0031 (standard error),"
        " bias bracket [2.6180, 2.6402], 3 % isolated"
    )


def test_printing_shows_two_digits_of_a_small_error():
    line = str(Estimate(1.0, 0.0000234, 1.0, np.inf, 0.0, 10))
    assert line.startswith("1.000000 nats +- 0.000023 (standard error),")
    assert "[1.000000, inf]" in line


def test_estimate_cannot_be_changed():
    estimate = Estimate(1.0, 0.1, 0.9, 1.1, 0.0, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimate.value = 2.0


# ---------------------------------------------------------------- bad input


CENTERS = np.zeros((3, 2))
SAMPLES = np.zeros((3, 2, 2))
WITH_NAN = np.array([[0.0, np.nan]])
ONE_NAN = np.zeros((3, 4, 2))
ONE_NAN[1, 2, 0] = np.nan


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: entropy(np.zeros(3), 1.0), ValueError, r"centers .* \(3,\)"),
        (lambda: entropy(np.zeros((0, 2)), 1.0), ValueError, "centers .* empty"),
        (lambda: entropy(np.zeros((3, 0)), 1.0), ValueError, "centers .* empty"),
        (lambda: entropy(CENTERS.astype(int), 1.0), TypeError, "centers .* int64"),
        (lambda: entropy(CENTERS.astype(complex), 1.0), TypeError, "complex128"),
        (lambda: entropy(CENTERS.astype(np.float16), 1.0), TypeError, "float16"),
        (lambda: entropy("abc", 1.0), TypeError, "centers"),
        (lambda: entropy(WITH_NAN, 1.0), ValueError, "centers .* nan"),
        (lambda: entropy(np.full((2, 1), np.inf), 1.0), ValueError, "centers .* inf"),
        (lambda: entropy(CENTERS[:1], 1.0), ValueError, "population=True"),
        (lambda: entropy(CENTERS, 0.0), ValueError, "noise_std must be positive"),
        (lambda: entropy(CENTERS, -0.1), ValueError, r"noise_std .* -0\.1"),
        (lambda: entropy(CENTERS, np.nan), ValueError, "noise_std .* nan"),
        (lambda: entropy(CENTERS, np.inf), ValueError, "noise_std .* inf"),
        (lambda: entropy(CENTERS, "1"), TypeError, "noise_std .* str"),
        (lambda: entropy(CENTERS, True), TypeError, "noise_std .* bool"),
        (lambda: entropy(CENTERS, np.ones(1)), ValueError, r"noise_std .*std\[0\]"),
        (lambda: entropy(CENTERS, np.array(1.0)), TypeError, "noise_std .* ndarray"),
        (
            lambda: entropy(CENTERS, 1.0, weights=np.array([0.5, 0.5])),
            ValueError,
            r"weights .* \(3,\)",
        ),
        (
            lambda: entropy(CENTERS, 1.0, weights=np.array([0.5, 0.7, -0.2])),
            ValueError,
            r"weights .* -0\.2",
        ),
        (
            lambda: entropy(CENTERS, 1.0, weights=np.array([0.5, 0.7, 0.2])),
            ValueError,
            r"weights must sum to 1, got .* 1\.4|1\.39",
        ),
        (
            lambda: entropy(CENTERS, 1.0, weights=np.array([0.5, np.nan, 0.5])),
            ValueError,
            "weights .* nan",
        ),
        (
            lambda: entropy(CENTERS, 1.0, weights=np.array([True, False, False])),
            TypeError,
            "weights .* bool",
        ),
        (
            lambda: entropy(CENTERS, 1.0, standard_error=0.0),
            ValueError,
            "standard_error must be positive, got 0",
        ),
        (
            lambda: entropy(CENTERS, 1.0, standard_error=1e-300),
            ValueError,
            "standard_error must be at least 1e-12 nats, got 1e-300",
        ),
        (
            lambda: entropy_bounds(np.eye(3) * 1e300, 1.0),
            ValueError,
            "noise_std must be at least",
        ),
        (
            lambda: conditional_entropy(SAMPLES, 1.0, standard_error="small"),
            TypeError,
            "standard_error .* str",
        ),
        (
            lambda: mutual_information(SAMPLES, 1.0, max_seconds=-1),
            ValueError,
            "max_seconds must be positive, got -1",
        ),
        (
            lambda: entropy(CENTERS, 1.0, max_seconds=np.inf),
            ValueError,
            "max_seconds must be finite",
        ),
        (
            lambda: entropy(CENTERS, 1.0, max_pairs=0),
            ValueError,
            "max_pairs must be at least 1, got 0",
        ),
        (
            lambda: entropy(cloud(100, 3), 1.0, max_pairs=1000),
            ValueError,
            "max_pairs must allow 128 queries of 100 centers, 12800, got 1000",
        ),
        (
            lambda: entropy(CENTERS, 1.0, max_pairs=1e6),
            TypeError,
            "max_pairs .* float",
        ),
        (lambda: entropy(CENTERS, 1.0, seed=-1), ValueError, "seed .* -1"),
        (lambda: entropy(CENTERS, 1.0, seed=0.5), TypeError, "seed .* float"),
        (lambda: entropy_bounds(CENTERS, 0.0), ValueError, "noise_std"),
        (lambda: entropy_bounds(WITH_NAN, 1.0), ValueError, "centers"),
        (lambda: conditional_entropy(CENTERS, 1.0), ValueError, r"samples .* \(3, 2\)"),
        (lambda: conditional_entropy(SAMPLES[:0], 1.0), ValueError, "samples .* empty"),
        (lambda: conditional_entropy([], 1.0), ValueError, "samples .* empty list"),
        (
            lambda: conditional_entropy([CENTERS, CENTERS[:, :1]], 1.0),
            ValueError,
            r"samples .* 2 in samples\[0\] and 1 in samples\[1\]",
        ),
        (
            lambda: conditional_entropy([CENTERS, CENTERS.astype(np.float32)], 1.0),
            TypeError,
            r"samples\[1\] .* float32",
        ),
        (
            lambda: conditional_entropy([CENTERS, CENTERS[:1]], 1.0),
            ValueError,
            r"2 draws of every input.* got 1 in samples\[1\]",
        ),
        (
            lambda: conditional_entropy([CENTERS, WITH_NAN], 1.0),
            ValueError,
            r"samples\[1\] .* nan",
        ),
        (
            lambda: conditional_entropy(SAMPLES[:, :1], 1.0, seed="a"),
            TypeError,
            "seed .* str",
        ),
        (
            lambda: mutual_information(SAMPLES * np.nan, 1.0),
            ValueError,
            r"samples must be finite, got nan at \[0, 0, 0\]",
        ),
        (
            lambda: mutual_information(ONE_NAN, 1.0),
            ValueError,
            r"samples must be finite, got nan at \[1, 2, 0\]",
        ),
        (
            lambda: mutual_information(SAMPLES.astype(int), 1.0),
            TypeError,
            "samples .* int64",
        ),
        (
            lambda: mutual_information(SAMPLES, 1.0, labels=[0, 1]),
            ValueError,
            r"labels must have shape \(3,\).* \(2,\)",
        ),
        (
            lambda: mutual_information(SAMPLES, 1.0, labels=[0.0, 1.0, 0.0]),
            TypeError,
            "labels .* float64",
        ),
        (
            lambda: mutual_information(SAMPLES, 1.0, inputs="all"),
            ValueError,
            "inputs .* 'all'",
        ),
        (
            lambda: mutual_information(SAMPLES[:1], 1.0, inputs="sampled"),
            ValueError,
            "samples must hold at least 2 inputs",
        ),
    ],
)
def test_bad_input_is_named_with_the_value_seen(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("seed", [0, 5])
def test_samples_from_the_stream_of_the_same_seed_are_not_their_own_noise(seed):
    samples = np.random.default_rng(seed).standard_normal((10_000, 3))
    estimate = entropy(samples, 0.5, seed=seed)
    exact = 1.5 * np.log(2 * np.pi * np.e * 1.25)
    assert estimate.lower - 4 * estimate.standard_error <= exact
    assert exact <= estimate.upper + 4 * estimate.standard_error


@pytest.mark.parametrize(
    ("offset", "noise_std", "dtype"),
    [(1e6, 0.01, np.float32), (1.0, 1e-15, np.float32), (1e300, 0.5, np.float64)],
)
def test_noise_below_the_resolution_of_the_data_is_refused(offset, noise_std, dtype):
    centers = np.full((4, 3), offset, dtype)
    calls = (
        lambda: entropy(centers, noise_std, population=True),
        lambda: conditional_entropy(centers[None], noise_std),
        lambda: mutual_information(centers[:, None], noise_std),
    )
    for call in calls:
        with pytest.raises(ValueError, match="noise_std must be at least"):
            call()


def test_a_weight_of_one_but_for_rounding_leaves_nothing_to_leave_out():
    weights = np.array([1.0, 1e-300, 0.0])
    with pytest.raises(ValueError, match="weights must leave something"):
        entropy(np.arange(3.0)[:, None], 1.0, weights=weights)


@pytest.mark.parametrize("kind", ["numpy", "torch", "gradient"])
@pytest.mark.parametrize(
    ("estimator", "n"), [(entropy, 3000), (mutual_information, 3000), (entropy, 20)]
)
def test_a_warning_is_of_the_line_that_asked(kind, estimator, n) -> None:
    """Far too little time for the error asked for; or too few samples."""
    samples = np.random.default_rng(0).normal(size=(n, 2))
    if kind != "numpy":
        torch = pytest.importorskip("torch")
        samples = torch.as_tensor(samples).requires_grad_(kind == "gradient")
    if estimator is mutual_information:
        samples = samples[:, None]
    options = {"standard_error": 1e-9, "max_pairs": 10**7} if n > 20 else {}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        estimator(samples, 0.5 if n > 20 else 0.01, **options)
    assert found
    assert {warning.filename for warning in found} == {__file__}
