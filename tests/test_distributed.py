"""Two and three ranks of gloo give what one process gives, and wrong input ends all.

The ranks are processes of their own, which run every case once (distributed_ranks.py);
tests look at what they found. Truths: the specification `_reference` in float64, and
for estimates one process with all samples.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import noisyflow
from distributed_ranks import (
    ESTIMATED_ON_GPU,
    ON_GPU,
    SIZES,
    estimations,
    grad_output,
    gradient_cases,
    mixtures,
    part,
    wrong_inputs,
)
from noisyflow import _reference

# For all cases of all ranks, so that nothing hangs: some 5 on two cores that are idle.
SECONDS = 240
# Of parts that are rounded once each and merged: a few ulps, far below this bar.
TOLERANCE = 1e-12

Ranks = Callable[[int], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What every rank found, by the number of ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("distributed_ranks.py")
    package = str(Path(noisyflow.__file__).parents[1])
    running = []
    for size in SIZES:
        for rank in range(size):
            running.append(
                subprocess.Popen(
                    [sys.executable, script, folder / f"meeting-{size}", folder],
                    env=os.environ
                    | {"RANK": str(rank), "WORLD_SIZE": str(size)}
                    | {"PYTHONPATH": package, "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
    try:
        said = [process.communicate(timeout=SECONDS)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert [process.returncode for process in running] == [0] * len(running), said
    found = {}
    for size in SIZES:
        files = [np.load(folder / f"{size}-{rank}.npz") for rank in range(size)]
        found[size] = [dict(file) for file in files]
    return found.__getitem__


def of_all(found: list[dict[str, Any]], name: str, *, is_sharded: bool) -> Any:
    """The results of all ranks: one after another, or the same bits everywhere."""
    parts = [rank[name] for rank in found]
    if is_sharded:
        return np.concatenate(parts)
    for other in parts[1:]:
        np.testing.assert_array_equal(other, parts[0])
    return parts[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", mixtures())
def test_log_density_is_that_of_the_specification(
    name: str, size: int, ranks: Ranks
) -> None:
    mixture = mixtures()[name]
    is_sharded = mixture.point_cuts is not None
    found = of_all(ranks(size), f"log-density.{name}", is_sharded=is_sharded)
    assert found.dtype == mixture.points.dtype
    assert found.shape == mixture.points.shape[:1]
    some = slice(None, None, max(1, len(found) // 200))
    found = found[some]
    with np.errstate(over="ignore"):
        exact = _reference.mixture_log_density(
            mixture.points[some], mixture.centers, mixture.noise_std, mixture.weights
        )
    tolerance = TOLERANCE if found.dtype == np.float64 else 1e-5
    if mixture.max_lost_mass is not None:
        error = found - exact
        lost = mixture.max_lost_mass
        assert (error >= np.log1p(-lost) - TOLERANCE).all()
        assert (error <= np.log1p(lost) + TOLERANCE).all()
    else:
        # 1e-13 of the mass may be lost by default: below the tolerance.
        error = np.abs(found - exact) / np.maximum(1, np.abs(exact))
        assert error.max(initial=0) <= tolerance


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", gradient_cases())
def test_gradients_are_those_of_the_specification(
    name: str, size: int, ranks: Ranks
) -> None:
    mixture = gradient_cases()[name]
    at = (mixture.points, mixture.centers, mixture.noise_std, mixture.weights)
    log_density = _reference.mixture_log_density(*at)
    exact = _reference.log_density_gradients(*at, log_density, grad_output(mixture))
    names = ("points", "centers", "weights", "noise_std")
    # A posterior probability is e^(a difference of logs), each rounded in its dtype.
    eps = np.finfo(mixture.points.dtype).eps
    tolerance = 16 * eps * (8 + np.abs(log_density).max(initial=1))
    for key, wanted in zip(names, exact, strict=True):
        if key == "weights" and mixture.weights is None:
            continue
        is_sharded = {
            "points": mixture.point_cuts is not None,
            "noise_std": False,
        }.get(key, True)
        found = of_all(ranks(size), f"gradient.{name}.{key}", is_sharded=is_sharded)
        assert found.dtype == mixture.points.dtype
        most = np.abs(wanted).max(initial=1e-300)
        np.testing.assert_allclose(found / most, wanted / most, 0, tolerance)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ON_GPU)
def test_tensors_on_a_gpu_have_the_results_of_others(
    name: str, size: int, ranks: Ranks
) -> None:
    """Where kernels are stood in for; both sides are float64, of other sums."""
    keys = [f"log-density.{name}"]
    keys += [f"gradient.{name}.{k}" for k in ("points", "centers", "weights")]
    for found in ranks(size):
        for key in [*keys, f"gradient.{name}.noise_std"]:
            wanted = found[key]
            most = np.abs(wanted).max(initial=1)
            np.testing.assert_allclose(found[f"gpu.{key}"], wanted, 0, TOLERANCE * most)


@pytest.mark.filterwarnings("ignore::noisyflow.UndersampledWarning")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ESTIMATED_ON_GPU)
def test_estimates_on_a_gpu_are_those_of_a_cpu(
    name: str, size: int, ranks: Ranks
) -> None:
    for found in ranks(size):
        keys = [key for key in found if key.startswith(f"estimate.{name}.")]
        for key in keys:
            (mine, wanted) = (found[f"gpu.{key}"], found[key])
            if wanted.ndim == 0 and wanted.dtype == float and np.isfinite(wanted):
                assert abs(mine - wanted) <= TOLERANCE * max(1, abs(wanted)), key
            else:
                assert mine.tolist() == wanted.tolist(), key


@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_centers_alone_may_be_wanted_by_one_rank(
    size: int, ranks: Ranks
) -> None:
    mixture = mixtures()["plain"]
    (points, centers) = (mixture.points, mixture.centers)
    log_density = _reference.mixture_log_density(points, centers, 0.1)
    (_, exact, _, _) = _reference.log_density_gradients(
        points, centers, 0.1, None, log_density, np.ones(len(points))
    )
    found = ranks(size)[0]["gradient.centers-of-one"]
    wanted = exact[part(mixture.cuts, 0, size)]
    np.testing.assert_allclose(found, wanted, 0, TOLERANCE * np.abs(wanted).max())


def test_the_clusters_are_worth_skipping() -> None:
    """So that the cases above do meet the tree, on two ranks as on one."""
    mixture = mixtures()["clusters"]
    for mine in (slice(None), part(mixture.cuts, 0, 2), part(mixture.cuts, 1, 2)):
        plan = noisyflow.explain(mixture.points, mixture.centers[mine], 1e-3)
        assert plan.path != "every pair"


@pytest.mark.filterwarnings("ignore::noisyflow.UndersampledWarning")
@pytest.mark.filterwarnings("ignore::noisyflow.TargetWarning")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", estimations())
def test_estimates_are_those_of_one_process(name: str, size: int, ranks: Ranks) -> None:
    case = estimations()[name]
    wanted = case.run(noisyflow, case.samples, {**case.options, **case.per_input})
    # In float32 sums are rounded, of one process before and of ranks after merging.
    tolerance = 1e-5 if name == "entropy-float32" else TOLERANCE
    for rank, found in enumerate(ranks(size)):
        if rank > 0:  # rank 0 warns for all
            wanted = {**wanted, "warnings": []}
        for key, value in wanted.items():
            mine = found[f"estimate.{name}.{key}"]
            if isinstance(value, float) and np.isfinite(value):
                assert abs(float(mine) - value) <= tolerance * max(1, abs(value)), key
            else:
                assert mine.tolist() == value, key


@pytest.mark.parametrize("size", SIZES)
def test_an_estimate_that_ends_by_the_clock_is_the_same_on_every_rank(
    size: int, ranks: Ranks
) -> None:
    (first, *others) = ranks(size)
    for key in [k for k in first if k.startswith("estimate.seconds.")]:
        for other in others:
            assert other[key].tolist() == first[key].tolist()


MESSAGES = {
    "estimate-nan": "ValueError: on rank {last} of {size}: centers must be finite",
    "estimate-seed": "ValueError: seed must be the same on every rank",
    "estimate-noise": "ValueError: noise_std must be the same on every rank",
    "estimate-pairs": "ValueError: max_pairs must allow 128 queries of 240 centers",
    "estimate-option": "TypeError: standard_error must be a real number, got str",
    "estimate-one-sample": "ValueError: centers must hold at least 2 samples",
    "estimate-gradients": "ValueError: on rank {last} of {size}: centers requires grad",
    "estimate-labels": "TypeError: labels must be of one type on all ranks, got text",
    "estimate-one-draw-here": "ValueError: samples must hold at least 2 draws of every",
    "estimate-noise-tensor": "AgreedError: on rank {last} of {size}: RuntimeError: ",
    "estimate-alone-0": "AgreedError: MemoryError: no memory is left",
    **{
        f"estimate-{name}": f"AgreedError: on rank {who} of {{size}}: MemoryError: no"
        for who, names in (
            ("0", "prepare-0 rows-0 keys-0 take-0 moments-0 collect-0"),
            ("{last}", "within prepare rows keys take moments places labels"),
        )
        for name in names.split()
    },
    "other-call": "RuntimeError: every rank must call the same functions in the same",
    "nan-in-points": "ValueError: on rank {last} of {size}: points must be finite, got"
    " nan at [5, 1]",
    "inf-in-centers": "ValueError: on rank {last} of {size}: centers must be finite",
    "shape-of-centers": "ValueError: on rank {last} of {size}: centers must have shape",
    "dimension": "ValueError: the dimension d must be the same on every rank, got 3 on"
    " rank 0 and 2 on rank {last}",
    "dtype": "ValueError: the dtype must be the same on every rank, got float64 on rank"
    " 0 and float32 on rank {last}",
    "not-floats": "TypeError: on rank {last} of {size}: points and centers must have",
    "noise-std": "ValueError: noise_std must be the same on every rank, got 0.1 on"
    " rank 0 and 0.2 on rank {last}",
    "negative-noise-std": "ValueError: on rank {last} of {size}: noise_std must be",
    "lost-mass": "ValueError: max_lost_mass must be the same on every rank, got",
    "other-points": "ValueError: points must be the same on every rank; points_are=",
    "number-of-points": "ValueError: the number of points must be the same on every",
    "points-are": "ValueError: points_are must be the same on every rank, got"
    " replicated on rank 0 and sharded on rank {last}",
    "points-are-elsewhere": "ValueError: on rank {last} of {size}: points_are must",
    "weights-of-one": "ValueError: weights must be given by all ranks that have centers"
    " or by none, got none on rank 0 and some on rank {last}",
    "weights-of-each-sum-to-1": "ValueError: weights must sum to 1 over all ranks",
    "number-of-weights": "ValueError: on rank {last} of {size}: weights must have",
    "negative-weights": "ValueError: on rank {last} of {size}: weights must be finite",
    "no-centers": "ValueError: centers must not be empty on every rank",
    "all-out-of-range": "ValueError: the log-density is not representable in float64",
    "points-of-one": "ValueError: whether points requires gradients must be the same on"
    " every rank, got no on rank 0 and yes on rank 1",
    "noise-std-of-one": "ValueError: whether noise_std requires gradients must be the",
    "own-points-any": "ValueError: whether any argument requires gradients, with",
    "twice": "RuntimeError: log-densities over ranks can be differentiated once",
    "backward-replicated": "AgreedError: on rank {last} of {size}: MemoryError: no",
    "backward-sharded": "AgreedError: on rank {last} of {size}: MemoryError: no",
    **{
        f"{name}{points}": "AgreedError: on rank {last} of {size}: MemoryError: no"
        for name in ("within", "prepare", "facts")
        for points in ("", "-own-points")
    },
}


def test_every_wrong_input_has_its_message() -> None:
    assert set(wrong_inputs()) < set(MESSAGES)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MESSAGES)
def test_wrong_input_of_one_rank_is_an_error_on_every_rank(
    name: str, size: int, ranks: Ranks
) -> None:
    wanted = MESSAGES[name].format(last=size - 1, size=size)
    for found in ranks(size):
        assert str(found[f"error.{name}"]).startswith(wanted)


def test_mixtures_that_nobody_asks_any_more_are_forgotten() -> None:
    import torch.distributed as dist

    from noisyflow._collectives import Peers
    from noisyflow._sharded_rows import ShardedRows, Team

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        samples = np.random.default_rng(0).normal(size=(40, 2))
        team = Team(Peers(None), samples)
        rows = ShardedRows(team, 0, samples.shape, samples.dtype, 9.0)
        first = rows.mixture(0.3, None, 0.0)
        for noise_std in (0.4, 0.5, 0.6):
            last = rows.mixture(noise_std, None, 0.0)
        del last
        gc.collect()
        last = rows.mixture(0.7, None, 0.0)
        assert len(team._shards) == 2
        at = (samples[:5], np.arange(5))
        for mixture, noise_std in ((first, 0.3), (last, 0.7)):
            exact = _reference.mixture_log_density(samples[:5], samples, noise_std)
            found = np.logaddexp(*mixture.log_own_and_others(*at))
            np.testing.assert_allclose(found, exact, TOLERANCE, TOLERANCE)
    finally:
        dist.destroy_process_group()
