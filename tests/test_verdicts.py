"""What the experiments say of made-up results: yes, no, and undecided between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from noisyflow.experiments import (
    Claim,
    reed_muller_findings,
    single_neuron,
    single_neuron_findings,
    spiral_findings,
    szt,
    szt_deterministic,
    two_neurons,
    two_neurons_findings,
)
from noisyflow.experiments import szt_deterministic_findings as without_noise
from noisyflow.experiments.estimator_findings import (
    KERNELS,
    LONG_CODE,
    NEIGHBORS,
    OURS,
)
from noisyflow.experiments.known_sources import Source, full_code, noise_entropy
from noisyflow.experiments.measured import Measured, two_digits
from noisyflow.experiments.verdicts import counts
from noisyflow.runs import Results


def claim(claims: list[Claim], words: str) -> Claim:
    """The one whose statement has these words."""
    (found,) = (one for one in claims if words in one.statement)
    return found


# --- SZT

EPOCHS = np.array([1, 20, 100, 400, 800, 2000, 9999])
COURSE = np.array([1.0, 3.0, 2.0, 3.5, 4.0, 3.5, 2.0])  # of layer 5, rises and falls


def szt_results(fifth: np.ndarray, error: float = 0.02) -> Results:
    """Made-up information of five layers: four that are constant, and the last."""
    information = np.tile([8.3, 8.3, 8.3, 6.0, 0.0], (len(EPOCHS), 1))
    information[:, 4] = fifth
    errors = np.full_like(information, error)
    history = {
        "train_loss": 0.01 + 0 * fifth,
        "test_loss": 0.1 + 0 * fifth,
        "train_accuracy": 1 + 0 * fifth,
        "test_accuracy": 0.97 + 0 * fifth,
    }
    metrics = {
        "mutual_information": information,
        "standard_error": errors,
        "lower": information,
        "upper": information,
    }
    return Results(EPOCHS, metrics, history, np.zeros((len(EPOCHS), 294), np.float32))


def of_szt(results: Results, words: str) -> Claim:
    return claim(szt.claims(szt.Config(), results), words)


# Two standard errors of the difference of two values that are 0.02 off: 0.057.
@pytest.mark.parametrize(
    ("end", "holds"), [(2.9, True), (3.1, False), (2.96, None), (3.04, None)]
)
def test_a_fall_near_its_bound_is_undecided(end: float, holds: bool | None) -> None:
    results = szt_results(np.r_[COURSE[:-1], end])
    found = of_szt(results, "falls by at least one nat")
    assert found.holds is holds
    assert f"{4 - end:.3f} ± 0.028" in found.measured
    study = without_noise.Study(szt_deterministic.Config(), results, results)
    again = without_noise._noisy_fall_claim(study)
    assert again.holds is holds
    assert f"{4 - end:.3f} ± 0.028" in again.measured


@pytest.mark.parametrize(
    ("at_400", "at_800", "holds"),
    [(3.5, 4.0, True), (4.0, 3.5, False), (3.97, 4.0, None), (4.0, 3.97, None)],
)
def test_a_peak_is_where_no_other_epoch_may_be_higher(
    at_400: float, at_800: float, holds: bool | None
) -> None:
    course = COURSE.copy()
    course[3:5] = at_400, at_800
    found = of_szt(szt_results(course), "peaks between epochs 500 and 1,200")
    assert found.holds is holds


@pytest.mark.parametrize(
    ("dip", "holds"), [(2.8, True), (2.97, False), (2.88, None), (2.92, None)]
)
def test_a_bump_and_a_dip_are_apart_beyond_their_errors(
    dip: float, holds: bool | None
) -> None:
    course = COURSE.copy()
    course[2] = dip
    found = of_szt(szt_results(course), "a dip near 126")
    assert found.holds is holds


def test_a_layer_at_half_a_nat_below_the_ceiling_is_undecided() -> None:
    for value, holds in ((7.9, True), (7.7, False), (7.83, None)):
        results = szt_results(COURSE)
        results.metrics["mutual_information"][2, 2] = value
        assert of_szt(results, "Layer 3 stays within").holds is holds


# Of 800 inputs one network alone is right on `alone` and the other alone on `other`.
@pytest.mark.parametrize(
    ("alone", "other", "holds"),
    [(2, 3, True), (3, 2, True), (40, 2, False), (2, 40, False), (4, 9, None)],
)
def test_accuracies_are_compared_in_pairs(
    alone: int, other: int, holds: bool | None
) -> None:
    first, second = np.ones((2, 800), bool)
    second[:alone] = False
    first[alone : alone + other] = False
    results = szt_results(COURSE)
    study = without_noise.Study(szt_deterministic.Config(), results, results)
    study.__dict__["are_right"] = (first, second)
    found = without_noise._accuracy_claim(study)
    assert found.holds is holds
    apart = without_noise.accuracy_difference(first, second)
    share, both = (alone - other) / 800, (alone + other) / 800
    assert apart.mean == pytest.approx(share)
    assert apart.error == pytest.approx(np.sqrt((both - share**2) / 799))


# --- Neurons: two seeds, whose standard error is half of what they are apart


def neuron(
    peaks: tuple[float, float] = (1.386, 1.386),
    ends: tuple[float, float] = (0.5624, 0.5624),
    weights: tuple[float, float] = (3.0, 3.0),
    learnt_at: tuple[float, float] = (1.3, 1.3),
) -> single_neuron_findings.Study:
    """Four logged steps: the start, the peak, when it is learnt, and the end."""
    rows = []
    for seed in (0, 1):
        exact = (0.0, peaks[seed], learnt_at[seed], ends[seed])
        weight = (0.0, 1.0, 1.0, weights[seed])
        for step in range(4):
            rows.append(
                {
                    "repetition": seed,
                    "step": step,
                    "weight": weight[step],
                    "bias": -2 * weight[step],
                    "mutual_information": exact[step] + 1e-9,
                    "standard_error": 1e-8,
                    "exact": exact[step],
                    "loss": 1.0 - 0.1 * step,
                    "error_rate": (0.5, 0.2, 1e-4, 1e-9)[step],
                }
            )
    return single_neuron_findings.Study(
        rows, single_neuron.INPUTS, single_neuron.TARGETS, 0.05
    )


@pytest.mark.parametrize(
    ("words", "settings", "holds"),
    [
        ("rises towards log 4", {}, True),
        ("rises towards log 4", {"peaks": (1.2, 1.21)}, False),
        ("rises towards log 4", {"peaks": (1.32, 1.38)}, None),
        ("falls to H(1/4)", {}, True),
        ("falls to H(1/4)", {"ends": (0.8, 0.81)}, False),
        ("falls to H(1/4)", {"ends": (0.58, 0.65)}, None),
        ("symbols that merge", {}, True),  # tanh of -15, -9, -3 and 3
        ("symbols that merge", {"weights": (1.2, 1.2)}, False),  # 3.3 noises wide
        ("symbols that merge", {"weights": (3.0, 0.5)}, None),
        ("after the task is learnt", {}, True),
        ("after the task is learnt", {"learnt_at": (0.6, 0.6)}, False),
        ("after the task is learnt", {"learnt_at": (1.3, 0.6)}, None),
    ],
)
def test_what_is_said_of_the_neuron(
    words: str, settings: dict[str, Any], holds: bool | None
) -> None:
    found = claim(single_neuron_findings.claims(neuron(**settings)), words)
    assert found.holds is holds


def test_checks_of_the_neuron_are_no_claims_and_notice_a_wrong_estimate() -> None:
    study = neuron()
    claims, checks = (
        getattr(single_neuron_findings, kind)(study) for kind in ("claims", "checks")
    )
    assert not {one.statement for one in claims} & {one.statement for one in checks}
    assert [one.holds for one in checks] == [True] * 3
    assert counts(claims, checks) == (
        "4 of 4 statements of the paper hold, 0 undecided; 3 of 3 checks of the "
        "measurement pass"
    )
    study._rows[1, 2]["mutual_information"] = 1.3001
    again = single_neuron_findings.checks(study)
    assert claim(again, "agrees with quadrature").holds is False
    assert counts(claims, again).endswith("2 of 3 checks of the measurement pass")


def chain(
    first: tuple[float, float] = (1.7, 1.7),
    second: tuple[float, float] = (0.70, 0.70),
    wrong: tuple[float, float] = (0.01, 0.01),
    tops: tuple[float, float] = (2.07, 2.07),
) -> two_neurons_findings.Study:
    """Three logged steps: the start, the peak and the end."""
    rows = []
    for seed in (0, 1):
        for step in range(3):
            exact_1 = (0.0, tops[seed], first[seed])[step]
            exact_2 = (0.0, 0.95, second[seed])[step]
            row = dict.fromkeys(
                ("standard_error_2", "chain_lower", "chain_upper", "chain_error"), 0.0
            )
            row |= {"repetition": seed, "step": step, "error_rate": wrong[seed]}
            row |= {"w1": -1.0, "b1": 4.5, "w2": -0.25, "b2": 0.3}
            row |= {"exact_1": exact_1, "information_1": exact_1}
            row |= dict.fromkeys(
                ("exact_2", "information_2", "lower_2", "upper_2"), exact_2
            )
            row |= dict.fromkeys(("chain_lower", "chain_upper"), exact_2)
            rows.append(row)
    return two_neurons_findings.Study(
        rows, two_neurons.INPUTS, two_neurons.TARGETS, 0.05, np.array([1, 1])
    )


@pytest.mark.parametrize(
    ("words", "settings", "holds"),
    [
        ("I(X;T_1) rises to log 8", {}, True),
        ("I(X;T_1) rises to log 8", {"tops": (1.9, 1.9)}, False),
        ("I(X;T_1) rises to log 8", {"tops": (2.0, 2.06)}, None),
        ("Then I(X;T_1) falls", {}, True),
        ("Then I(X;T_1) falls", {"first": (2.02, 2.03)}, False),
        ("Then I(X;T_1) falls", {"first": (1.7, 2.03)}, None),
        ("I(X;T_2) rises and then falls", {}, True),
        ("I(X;T_2) rises and then falls", {"second": (0.90, 0.91)}, False),
        ("I(X;T_2) rises and then falls", {"second": (0.70, 0.91)}, None),
        ("I(X;T_2) falls to log 2", {}, True),
        ("I(X;T_2) falls to log 2", {"second": (0.78, 0.781)}, False),
        ("I(X;T_2) falls to log 2", {"second": (0.70, 0.75)}, None),
        ("task is learnt", {}, True),
        ("task is learnt", {"wrong": (0.05, 0.051)}, False),
        ("task is learnt", {"wrong": (0.01, 0.025)}, None),
    ],
)
def test_what_is_said_of_two_neurons(
    words: str, settings: dict[str, Any], holds: bool | None
) -> None:
    found = claim(two_neurons_findings.claims(chain(**settings)), words)
    assert found.holds is holds


def test_checks_of_two_neurons_notice_information_out_of_nowhere() -> None:
    assert {one.holds for one in two_neurons_findings.checks(chain())} == {True}
    study = chain(first=(0.6, 0.6), second=(0.7, 0.7))
    found = claim(two_neurons_findings.checks(study), "T_2 never tells more")
    assert found.holds is False


def test_neighbours_are_measured_in_noise() -> None:
    """Outputs 3.5, 2.5, 1.5, 0.5 and then a tenth of -0.5, -1.5, -2.5, -3.5."""
    found = two_neurons_findings.spacings(chain())
    np.testing.assert_allclose(found[0], [[20, 20], [2, 2]])
    # Of the second: 0.3 less a quarter, bent at zero; from 3.5: -0.575 / 10, ...
    outputs = np.array([-0.0575, -0.0325, -0.0075, 0.175])
    gaps = np.diff(outputs) / 0.05
    np.testing.assert_allclose(found[1, 0], [gaps.min(), gaps.max()])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (0.0123, "1.235 ± 0.012"),
        (0.000067, "1.234568 ± 0.000067"),
        (2.94e-8, "1.234568 ± 2.9e-08"),
        (0.5, "1.235 ± 0.500"),
        (np.inf, "1.235"),
    ],
)
def test_an_error_has_two_digits(error: float, text: str) -> None:
    assert two_digits(Measured(1.23456789, error)) == text


# --- Spiral and codes


def spiral_study(
    entropy: float, values: dict[tuple[str, int], tuple[float, float]]
) -> spiral_findings.Study:
    """Of two repetitions, by method and number of samples."""
    source = Source("spiral", 10, 0.2, entropy, lambda generator, n: np.zeros((n, 10)))
    rows = [
        {"source": source.name, "num_samples": n, "method": method, "entropy": value}
        for (method, n), pair in values.items()
        for value in pair
    ]
    return spiral_findings.Study(
        [source], rows, [], {"spiral.reference": np.array([entropy, 0.005])}
    )


@pytest.mark.parametrize(
    ("entropy", "off", "holds"),
    [
        (0.2, (0.01, 0.02), True),
        (0.2, (0.5, 0.51), False),
        (0.2, (0.05, 0.14), None),
        (2.4, (0.01, 0.02), None),  # of another network
        (2.4, (0.5, 0.51), None),
    ],
)
def test_samples_needed_are_judged_where_the_entropy_is_the_papers(
    entropy: float, off: tuple[float, float], holds: bool | None
) -> None:
    values = {(OURS, 1000): (entropy + off[0], entropy + off[1])}
    study = spiral_study(entropy, values)
    found = spiral_findings._reaches(study, OURS, "The plug-in", 500)
    assert found.holds is holds
    assert ("does not give the data" in found.measured) is (entropy != 0.2)


@pytest.mark.parametrize(
    ("entropy", "holds"), [(0.21, True), (0.28, True), (0.295, None), (2.4, None)]
)
def test_another_network_has_another_entropy(entropy: float, holds: bool) -> None:
    values = {
        (method, 1000): (entropy + 0.01, entropy + 0.02)
        for method in (OURS, NEIGHBORS, KERNELS)
    }
    claims = spiral_findings.claims(spiral_study(entropy, values))
    assert claim(claims, "The entropy is about").holds is holds


@pytest.mark.parametrize(
    ("off", "holds"),
    [((-1.5, -1.4), True), ((0.4, 0.5), False), ((-1.2, -0.7), None)],
)
def test_kernel_densities_are_far_below_or_not(
    off: tuple[float, float], holds: bool | None
) -> None:
    study = spiral_study(2.4, {(KERNELS, 100_000): (2.4 + off[0], 2.4 + off[1])})
    assert spiral_findings._kernels(study, 100_000).holds is holds


@pytest.mark.parametrize(
    ("neighbors", "kernels", "holds"),
    [
        ((5.0, 5.05), (4.7, 4.75), True),
        ((5.0, 5.05), (5.9, 6.0), False),
        ((5.0, 5.5), (4.7, 4.75), None),
        ((5.0, 5.5), (5.9, 6.0), False),  # one is enough
    ],
)
def test_other_methods_on_the_long_code(
    neighbors: tuple[float, float], kernels: tuple[float, float], holds: bool | None
) -> None:
    source = full_code(LONG_CODE, 2.0)
    shift = noise_entropy(LONG_CODE, 2.0)
    rows = [
        {
            "source": source.name,
            "num_samples": 100_000,
            "method": method,
            "entropy": value + shift,
        }
        for method, pair in {
            OURS: (3.5, 3.5),
            NEIGHBORS: neighbors,
            KERNELS: kernels,
        }.items()
        for value in pair
    ]
    study = reed_muller_findings.Study([source], rows, [])
    assert reed_muller_findings._others(study).holds is holds


@pytest.mark.parametrize(("off", "holds"), [(0.02, True), (0.06, False)])
def test_a_code_looks_the_same_from_one_word(off: float, holds: bool) -> None:
    common = {
        "source": "RM(1,4)",
        "noise_std": 1.0,
        "num_dimensions": 16,
        "num_samples": 32,
        "standard_error": 0.01,
    }
    rows = [
        {**common, "method": method, "entropy": value}
        for method, value in (("all words", 20.0), ("one word", 20.0 + off))
    ]
    study = reed_muller_findings.Study([], rows, [])
    assert reed_muller_findings._symmetry(study, "RM(1,4)").holds is holds
