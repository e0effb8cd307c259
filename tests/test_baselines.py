"""Every baseline against the problems with known answers that it claims to handle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch

import oracles
from noisyflow import entropy_bounds
from noisyflow.baselines import (
    Binning,
    KernelDensity,
    NearestNeighbor,
    PairwiseDistance,
    sweep,
)
from noisyflow.estimate import Estimate

NUM_SAMPLES = 4000
METHODS = [Binning(0.1), KernelDensity(), NearestNeighbor(), PairwiseDistance(0.5)]
METHOD_IDS = [type(method).__name__ for method in METHODS]


@dataclass(frozen=True)
class EntropyRow:
    """A method on the table, and the problems whose h(S + Z) it claims to find."""

    name: str
    estimate: Callable[[oracles.Source, np.ndarray, np.ndarray], Estimate]
    claims: Callable[[oracles.Source], bool]

    def __str__(self) -> str:
        return self.name


def binned(source: oracles.Source, s: np.ndarray, t: np.ndarray) -> Estimate:
    """h(T) = H(Bin(T)) + d log(bin_width) for narrow bins."""
    width = source.noise_std / 4
    found = Binning(width).entropy(t)
    shift = source.num_dimensions * math.log(width)
    return Estimate(found.value + shift, found.standard_error, -np.inf, np.inf, 0, 0)


# Without a bound of their bias, the methods claim what is known of it: the bins' falls
# as (bins - 1) / 2n, so one dimension; the neighbours' and the kernels' as a power of n
# that is below the standard error in up to two dimensions; the distances are exact
# where components coincide or lie far apart.
ENTROPY_ROWS = [
    EntropyRow("binning", binned, lambda source: source.num_dimensions == 1),
    EntropyRow(
        "kde",
        lambda source, s, t: KernelDensity().entropy(t),
        lambda source: source.num_dimensions <= 2,
    ),
    EntropyRow(
        "knn",
        lambda source, s, t: NearestNeighbor().entropy(t),
        lambda source: source.num_dimensions <= 2,
    ),
    EntropyRow(
        "pairwise",
        lambda source, s, t: PairwiseDistance(source.noise_std).entropy(s),
        lambda source: source.name == "bpsk" and source.noise_std <= 0.1,
    ),
]
SOURCES = [
    oracles.gaussian(1, 1.0, 0.5),
    oracles.gaussian(2, 1.0, 0.5),
    oracles.uniform_cube(1, 0.3),
    oracles.uniform_cube(2, 0.5),
    oracles.four_pam(1, 0.5),
    oracles.bpsk_cube(1, 0.1),
    oracles.bpsk_cube(3, 0.1),
]


@pytest.mark.parametrize(
    ("row", "source"),
    [(row, source) for row in ENTROPY_ROWS for source in SOURCES if row.claims(source)],
    ids=str,
)
def test_entropy_is_within_five_standard_errors_where_claimed(
    row: EntropyRow, source: oracles.Source, rng: np.random.Generator
) -> None:
    s = source.sample(rng, NUM_SAMPLES)
    t = s + source.noise_std * rng.standard_normal(s.shape)
    estimate = row.estimate(source, s, t)
    assert estimate.standard_error < 0.05
    assert abs(estimate.value - source.entropy) < 5 * estimate.standard_error + 1e-4


@pytest.mark.parametrize("noise_std", [0.4, 1.0])
@pytest.mark.parametrize(
    "method",
    [Binning(0.1), KernelDensity(), NearestNeighbor()],
    ids=["binning", "kde", "knn"],
)
def test_information_about_the_label_of_bpsk(
    method: Any, noise_std: float, rng: np.random.Generator
) -> None:
    label = rng.integers(0, 2, NUM_SAMPLES)
    t = (2.0 * label - 1 + noise_std * rng.standard_normal(NUM_SAMPLES))[:, None]
    exact = oracles.mixture_entropy_1d((-1, 1), noise_std) - oracles.noise_entropy(
        1, noise_std
    )
    estimate = method.mutual_information(t, label)
    # Bins add their bias, (bins - labels' share of them) / 2n, at most 90 / 8000.
    assert abs(estimate.value - exact) < 5 * estimate.standard_error + 0.012


def test_information_about_a_label_of_several_levels(rng: np.random.Generator) -> None:
    """4-PAM, the label being the sign: h(T) less the entropy of a pair of levels."""
    level = rng.choice([-3.0, -1.0, 1.0, 3.0], NUM_SAMPLES)
    t = (level + rng.standard_normal(NUM_SAMPLES))[:, None]
    exact = oracles.mixture_entropy_1d(
        (-3, -1, 1, 3), 1.0
    ) - oracles.mixture_entropy_1d((1, 3), 1.0)
    names = np.where(level > 0, "plus", "minus")
    for method in (KernelDensity(), NearestNeighbor()):
        estimate = method.mutual_information(t, names)
        assert abs(estimate.value - exact) < 5 * estimate.standard_error


@pytest.mark.parametrize("correlation", [0.0, 0.6, -0.9])
def test_neighbours_find_the_information_of_correlated_gaussians(
    correlation: float, rng: np.random.Generator
) -> None:
    """Kraskov et al.'s own test: I = -log(1 - r^2) / 2."""
    (x, z) = rng.standard_normal((2, NUM_SAMPLES, 1))
    y = correlation * x + math.sqrt(1 - correlation**2) * z
    exact = -0.5 * math.log(1 - correlation**2)
    estimate = NearestNeighbor().mutual_information(x, y)
    assert abs(estimate.value - exact) < 5 * estimate.standard_error


@pytest.mark.parametrize("d", [1, 3])
def test_left_out_kernels_see_the_cross_entropy_to_the_smoothed_density(
    d: int, rng: np.random.Generator
) -> None:
    """N(0, 1) against N(0, 1 + w^2): d (log(2 pi (1 + w^2)) + 1 / (1 + w^2)) / 2."""
    width = 1.5
    total = 1 + width**2
    estimate = KernelDensity(width).entropy(rng.standard_normal((NUM_SAMPLES, d)))
    exact = 0.5 * d * (math.log(2 * math.pi * total) + 1 / total)
    assert abs(estimate.value - exact) < 5 * estimate.standard_error


def test_kernels_are_summed_as_the_formula_says(rng: np.random.Generator) -> None:
    points, width = rng.standard_normal((40, 3)), 0.7
    squares = ((points[:, None] - points) ** 2).sum(axis=2)
    kernel = np.exp(-squares / (2 * width**2)) / (2 * math.pi * width**2) ** 1.5
    others = (kernel.sum(axis=1) - np.diag(kernel)) / 39
    for evaluate, density in (
        ("leave-one-out", others),
        ("resubstitution", kernel.mean(axis=1)),
    ):
        method = KernelDensity(width, evaluate=evaluate, num_resamples=0)
        assert method.entropy(points).value == pytest.approx(-np.log(density).mean())


def test_neighbours_are_counted_as_the_formulas_say(rng: np.random.Generator) -> None:
    """Every distance written out; k = 2, 60 samples."""
    k, n, d = 2, 60, 3
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, 2))
    label = np.arange(n) % 3
    x[label == 1] += 1
    psi = scipy.special.digamma
    method = NearestNeighbor(k, num_resamples=0)

    distance = np.sqrt(((x[:, None] - x) ** 2).sum(axis=2))
    radius = np.sort(distance, axis=1)[:, k]
    ball = math.pi ** (d / 2) / math.gamma(d / 2 + 1)
    exact = psi(n) - psi(k) + math.log(ball) + d * np.log(radius).mean()
    assert method.entropy(x).value == pytest.approx(exact)

    of_x, of_y = (np.abs(p[:, None] - p).max(axis=2) for p in (x, y))
    radius = np.sort(np.maximum(of_x, of_y), axis=1)[:, k : k + 1]
    n_x, n_y = ((part < radius).sum(axis=1) - 1 for part in (of_x, of_y))
    exact = psi(k) + psi(n) - (psi(n_x + 1) + psi(n_y + 1)).mean()
    assert method.mutual_information(x, y).value == pytest.approx(exact)

    same = np.where(label[:, None] == label, distance, np.inf)
    radius = np.sort(same, axis=1)[:, k : k + 1]
    count = (distance < radius).sum(axis=1)
    exact = psi(k) + psi(n) - (psi(count) + psi(n // 3)).mean()
    assert method.mutual_information(x, label).value == pytest.approx(exact)


def test_chosen_bandwidth_is_the_likeliest_of_all(rng: np.random.Generator) -> None:
    """Clusters, where the likelihood has a second maximum at their distance."""
    corners = rng.choice([-1.0, 1.0], (300, 4))
    points = corners + 0.05 * rng.standard_normal((300, 4))
    best = KernelDensity().chosen_bandwidth(points)

    def loss(width: float) -> float:
        return KernelDensity(width, num_resamples=0).entropy(points).value

    least = loss(best)
    assert all(least <= loss(w) + 1e-3 for w in np.geomspace(0.005, 5, 60))


@pytest.mark.parametrize(
    ("method", "of_noisy"),
    [
        (Binning(0.5, num_resamples=20), True),
        (KernelDensity(num_resamples=20), True),
        (NearestNeighbor(num_resamples=20), True),
        (PairwiseDistance(0.5, num_resamples=20), False),
    ],
    ids=METHOD_IDS,
)
def test_standard_error_is_the_spread_over_repetitions(
    method: Any, of_noisy: bool, rng: np.random.Generator
) -> None:
    """Of 150 repetitions, known to 6 %; a fifth is three such errors."""
    estimates = []
    for seed in range(150):
        s = rng.uniform(-1, 1, (400, 2))
        t = s + 0.5 * rng.standard_normal(s.shape)
        estimates.append(method.entropy(t if of_noisy else s, seed=seed))
    spread = np.std([estimate.value for estimate in estimates])
    claimed = np.sqrt(np.mean([estimate.standard_error**2 for estimate in estimates]))
    assert 0.8 * spread < claimed < 1.25 * spread


@pytest.mark.parametrize(
    "method",
    [
        KernelDensity(0.3, num_queries=50, num_resamples=20),
        NearestNeighbor(num_queries=50, num_resamples=20),
    ],
    ids=["KernelDensity", "NearestNeighbor"],
)
def test_standard_error_holds_that_of_few_queries(
    method: Any, rng: np.random.Generator
) -> None:
    """A tenth of the samples as queries: their spread is most of the error."""
    estimates = [
        method.entropy(rng.standard_normal((500, 2)), seed=seed) for seed in range(150)
    ]
    spread = np.std([estimate.value for estimate in estimates])
    claimed = np.sqrt(np.mean([estimate.standard_error**2 for estimate in estimates]))
    assert 0.75 * spread < claimed < 1.3 * spread


def test_bins_of_an_unbounded_activation_are_all_counted() -> None:
    """ReLU: zeros, and values beyond any fixed range; counts 4, 2, 1, 1 of 8."""
    relu = np.array([0.0, 0.0, 0.0, 0.3, 3.1, 3.2, 1e6, 2e6])[:, None]
    exact = -(0.5 * math.log(0.5) + 0.25 * math.log(0.25) + 0.25 * math.log(0.125))
    assert Binning(0.5).entropy(relu).value == pytest.approx(exact)


def test_bins_do_not_join_across_zero() -> None:
    assert Binning(1.0).entropy(np.array([[-0.1], [0.1]])).value == pytest.approx(
        math.log(2)
    )


def test_binned_information_about_distinct_inputs_is_the_binned_entropy(
    rng: np.random.Generator,
) -> None:
    s = rng.uniform(-1, 1, (500, 3))
    about = Binning(0.4).mutual_information(s, np.arange(500))
    assert about.value == pytest.approx(Binning(0.4).entropy(s).value)


def test_binned_information_about_a_known_table() -> None:
    """Joint counts [[3, 1], [1, 3]] of 8."""
    s = np.array([0.5, 0.5, 0.5, 1.5, 0.5, 1.5, 1.5, 1.5])[:, None]
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    exact = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert Binning(1.0).mutual_information(s, label).value == pytest.approx(exact)


def test_sweep_goes_from_every_sample_alone_to_one_bin(
    rng: np.random.Generator,
) -> None:
    s = rng.uniform(0, 1, (200, 2))
    estimates = sweep(s, [1e-9, 0.1, 2.0])
    assert list(estimates) == [1e-9, 0.1, 2.0]
    values = [estimate.value for estimate in estimates.values()]
    assert values[0] == pytest.approx(math.log(200))
    assert values[2] == 0
    assert values[0] > values[1] > values[2]
    informed = sweep(s, [1e-9], about=(s[:, 0] > 0.5).astype(int))
    (only,) = informed.values()
    assert only.value == pytest.approx(
        Binning(1e-9).mutual_information(s, (s[:, 0] > 0.5).astype(int)).value
    )


def test_pairwise_values_are_the_bounds(rng: np.random.Generator) -> None:
    s = rng.standard_normal((60, 2))
    bounds = entropy_bounds(s, 0.3)
    upper = PairwiseDistance(0.3).entropy(s)
    lower = PairwiseDistance(0.3, "lower").entropy(s)
    assert (lower.value, upper.value) == (bounds.lower, bounds.upper)
    assert lower.lower == upper.lower == bounds.lower
    assert upper.upper == math.inf


def test_pairwise_information_of_single_samples_takes_off_the_noise(
    rng: np.random.Generator,
) -> None:
    """What Saxe et al. take for I(X; T): h(T) less (d/2) log(2 pi e noise_std^2)."""
    s = rng.standard_normal((60, 2))
    for bound in ("upper", "lower"):
        method = PairwiseDistance(0.3, bound)
        expected = method.entropy(s).value - oracles.noise_entropy(2, 0.3)
        found = method.mutual_information(s, np.arange(60)).value
        assert found == pytest.approx(expected)


def test_pairwise_information_about_labels(rng: np.random.Generator) -> None:
    s, label = rng.standard_normal((90, 2)), np.repeat([0, 1], [60, 30])
    expected = entropy_bounds(s, 0.3).upper
    expected -= 2 / 3 * entropy_bounds(s[:60], 0.3).upper
    expected -= 1 / 3 * entropy_bounds(s[60:], 0.3).upper
    order = rng.permutation(90)
    found = PairwiseDistance(0.3).mutual_information(s[order], label[order])
    assert found.value == pytest.approx(expected)


@pytest.mark.parametrize("method", METHODS, ids=METHOD_IDS)
def test_results_depend_on_the_seed_alone(
    method: Any, rng: np.random.Generator
) -> None:
    t, label = rng.standard_normal((80, 2)), np.arange(80) % 3
    assert method.entropy(t, seed=5) == method.entropy(t, seed=5)
    first, again, other = (
        method.mutual_information(t, label, seed=seed) for seed in (5, 5, 6)
    )
    assert first == again
    assert other.value == first.value
    assert other.standard_error != first.standard_error
    assert first.upper == math.inf
    assert first.lower == -math.inf


@pytest.mark.parametrize("method", METHODS, ids=METHOD_IDS)
def test_tensors_and_float32_give_what_arrays_give(
    method: Any, rng: np.random.Generator
) -> None:
    t = rng.standard_normal((50, 2)).astype(np.float32)
    expected = method.entropy(t.astype(np.float64))
    assert method.entropy(torch.from_numpy(t)) == method.entropy(t) == expected


@pytest.mark.parametrize(
    "method", [KernelDensity(num_queries=200), NearestNeighbor(num_queries=200)]
)
def test_fewer_queries_move_the_value_by_their_own_error(
    method: Any, rng: np.random.Generator
) -> None:
    t = rng.standard_normal((3000, 2))
    everything = type(method)().entropy(t)
    some = method.entropy(t)
    assert some.value != everything.value
    assert abs(some.value - everything.value) < 5 * 1.5 / math.sqrt(200)


def test_neighbours_refuse_samples_that_repeat(rng: np.random.Generator) -> None:
    t = np.repeat(rng.standard_normal((20, 2)), 4, axis=0)
    with pytest.raises(ValueError, match="must not repeat, got 4 or more equal rows"):
        NearestNeighbor().entropy(t)
    with pytest.raises(ValueError, match="must not repeat"):
        NearestNeighbor().mutual_information(t, np.arange(80) // 40)
    with pytest.raises(ValueError, match="must not repeat"):
        NearestNeighbor().mutual_information(t, t)
    pairs = np.repeat(rng.standard_normal((20, 2)), 2, axis=0)  # fewer than k repeats
    assert math.isfinite(NearestNeighbor().entropy(pairs).value)


def test_kernels_take_samples_that_repeat_only_with_a_bandwidth() -> None:
    t = np.repeat(np.arange(20.0), 3)[:, None]
    with pytest.raises(ValueError, match="must not repeat for a bandwidth"):
        KernelDensity().entropy(t)
    with pytest.raises(ValueError, match="must differ for a bandwidth"):
        KernelDensity().entropy(np.ones((7, 2)))
    one_point = KernelDensity(0.5).entropy(np.ones((7, 1)))
    assert one_point.value == pytest.approx(0.5 * math.log(2 * math.pi * 0.25))


def test_too_few_samples_for_an_error_leave_it_infinite(
    rng: np.random.Generator,
) -> None:
    t = rng.standard_normal((7, 2))
    assert NearestNeighbor().entropy(t).standard_error == math.inf
    assert math.isfinite(NearestNeighbor().entropy(t).value)
    about = KernelDensity().mutual_information(t, np.array([0, 0, 0, 0, 1, 1, 1]))
    assert about.standard_error == math.inf
    assert Binning(0.1, num_resamples=0).entropy(t).standard_error == math.inf


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Binning(), TypeError, "bin_width"),
        (lambda: Binning(0), ValueError, "bin_width must be positive, got 0"),
        (lambda: Binning(-0.1), ValueError, "bin_width must be positive"),
        (lambda: Binning(math.nan), ValueError, "bin_width must be finite"),
        (lambda: Binning("a"), TypeError, "bin_width must be a real number"),
        (lambda: Binning(0.1, -1), ValueError, "num_resamples must be at least 0"),
        (lambda: Binning(0.1, 1), ValueError, "must be 0 or at least 2, got 1"),
        (lambda: KernelDensity(0), ValueError, "bandwidth must be positive"),
        (lambda: KernelDensity(True), TypeError, "bandwidth must be a real"),
        (lambda: KernelDensity(evaluate="all"), ValueError, "evaluate must be"),
        (lambda: KernelDensity(num_queries=0), ValueError, "num_queries must be at"),
        (lambda: NearestNeighbor(0), ValueError, "num_neighbors must be at least 1"),
        (lambda: NearestNeighbor(1.5), TypeError, "num_neighbors must be an integer"),
        (lambda: PairwiseDistance(-1), ValueError, "noise_std must be positive"),
        (lambda: PairwiseDistance(1, "mean"), ValueError, "bound must be"),
        (lambda: sweep(np.zeros((3, 1)), []), ValueError, "at least one width"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("method", METHODS, ids=METHOD_IDS)
@pytest.mark.parametrize(
    ("samples", "about", "error", "message"),
    [
        (np.zeros(9), None, ValueError, r"samples must have shape \(n, d\)"),
        (np.zeros((0, 2)), None, ValueError, "samples must not be empty"),
        (np.zeros((9, 2), int), None, TypeError, "samples must be float32 or float64"),
        (np.full((9, 2), np.nan), None, ValueError, "samples must be finite"),
        ([["a"]], None, TypeError, "samples must be float32 or float64"),
        (np.ones((9, 2)), np.zeros(8, int), ValueError, r"labels must have shape \(9,"),
        (np.ones((9, 2)), np.zeros(9), TypeError, "labels must be integers"),
    ],
)
def test_samples_that_make_no_sense_are_named(
    method: Any, samples: Any, about: Any, error: type[Exception], message: str
) -> None:
    arguments = (samples,) if about is None else (samples, about)
    function = method.entropy if about is None else method.mutual_information
    with pytest.raises(error, match=message):
        function(*arguments)


@pytest.mark.parametrize("method", METHODS, ids=METHOD_IDS)
def test_seeds_that_make_no_sense_are_named(method: Any) -> None:
    t = np.arange(20.0)[:, None] ** 1.5
    with pytest.raises(ValueError, match="seed must be at least 0"):
        method.entropy(t, seed=-1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KernelDensity().entropy(np.ones((1, 2))), "2 rows, got 1"),
        (lambda: NearestNeighbor().entropy(np.ones((3, 2))), "= 4 rows, got 3"),
        (
            lambda: NearestNeighbor().mutual_information(
                np.eye(9), np.array([0] * 6 + [1] * 3)
            ),
            "= 4 rows of every label, got 3",
        ),
        (
            lambda: KernelDensity().mutual_information(np.eye(3), np.array([0, 0, 1])),
            "2 rows of every label, got 1",
        ),
        (
            lambda: NearestNeighbor().mutual_information(np.eye(9), np.eye(8)),
            "about must have a row for every sample, 9, got 8",
        ),
        (
            lambda: Binning(1e-300).entropy(np.full((3, 1), 1e9)),
            "bin_width must be at least 2\\^-53 of the largest sample",
        ),
        (
            lambda: KernelDensity(1e-9).entropy(np.full((3, 1), 1e9)),
            "noise_std must be at least",
        ),
    ],
)
def test_samples_that_a_method_cannot_use_are_named(
    call: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
