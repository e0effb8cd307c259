"""A limit of pairs holds for all the work that kernels do, and the work is told."""

from __future__ import annotations

import numpy as np
import pytest

from noisyflow import _controls, prepared, sampling
from noisyflow.information import entropy


@pytest.fixture
def counted(monkeypatch):
    """Pairs that the kernels of an entropy evaluate or skip; a list of one number."""
    pairs = [0]
    log_own_and_others = prepared.PreparedMixture.log_own_and_others
    moments = _controls.posterior_moments

    def counting_log(self, points, own):
        pairs[0] += len(points) * self.num_centers
        return log_own_and_others(self, points, own)

    def counting_moments(points, centers, *args, **kwargs):
        pairs[0] += len(points) * len(centers)
        return moments(points, centers, *args, **kwargs)

    name = "log_own_and_others"
    monkeypatch.setattr(prepared.PreparedMixture, name, counting_log)
    monkeypatch.setattr(_controls, "posterior_moments", counting_moments)
    return pairs


# From 30 on a grid is tried in one dimension, and from 60 on in two: not good enough,
# and a finer one is out of reach, so queries take over.
@pytest.mark.filterwarnings("ignore::noisyflow.TargetWarning")
@pytest.mark.parametrize("queries", [1, 8, 30, 60, 100, 200, 400])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_no_more_pairs_are_evaluated_than_allowed(d, queries, rng, counted):
    n = 400
    centers = rng.uniform(-1, 1, (n, d))
    options = {"population": True, "standard_error": 1e-12}
    estimate = entropy(centers, 0.05, max_pairs=queries * n * n, **options)
    assert counted[0] == estimate.num_pairs
    assert estimate.num_pairs <= queries * n * n
    assert estimate.stopped_by == "pairs"


@pytest.mark.parametrize("d", [1, 2, 3])
def test_all_pairs_are_told_where_a_small_target_takes_many(d, rng, counted):
    centers = rng.uniform(-1, 1, (300, d))
    estimate = entropy(centers, 0.02, population=True, standard_error=1e-3)
    assert counted[0] == estimate.num_pairs


@pytest.mark.parametrize("seconds", [1.0, 10.0])
@pytest.mark.parametrize("overhead", [0.0, 0.05])
def test_most_of_the_time_is_used_and_little_more(seconds, overhead, rng, monkeypatch):
    """By a clock that only evaluations move: a call's overhead must not mislead."""
    now = [0.0]
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: now[0])

    def evaluate(points, own):
        now[0] += overhead + 1e-5 * len(points)
        nothing = np.zeros(len(points))
        return sampling.QueryTerms(rng.random(len(points)), 0.0, 0.0, own < 0, nothing)

    problem = sampling.Problem(
        rng.uniform(-1, 1, (20_000, 3)), 0.1, evaluate, "noise", num_evaluated=1
    )
    budget = sampling.Budget.checked(1e-9, seconds, None)
    averages = sampling.average_over_noise(problem, budget, seed=0)
    assert averages.stopped_by == "seconds"
    assert 0.75 * seconds <= now[0] <= 1.1 * seconds
