"""What the experiments say of made-up results: yes, no, and undecided between them."""

from __future__ import annotations

import numpy as np
import pytest

from noisyflow.experiments import Claim, szt, szt_deterministic
from noisyflow.experiments import szt_deterministic_findings as without_noise
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
