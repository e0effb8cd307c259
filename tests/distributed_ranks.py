"""What every rank of test_distributed.py runs, and what one process has of the same.

As a script: RANK and WORLD_SIZE in the environment, a file where ranks meet, a folder
for what is found: `<size>-<rank>.npz`, entries `<case>.<name>`; errors are text.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np

SIZES = (2, 3)


@dataclass(frozen=True)
class Mixture:
    """Centers of all ranks and where they are cut; points likewise where sharded."""

    points: np.ndarray
    centers: np.ndarray
    noise_std: float
    cuts: dict[int, list[int]]  # by the number of ranks: how many centers each has
    weights: np.ndarray | None = None
    point_cuts: dict[int, list[int]] | None = None  # None: replicated
    max_lost_mass: float | None = None

    @property
    def points_are(self) -> str:
        return "replicated" if self.point_cuts is None else "sharded"

    def of_rank(self, rank: int, size: int) -> dict[str, Any]:
        """Arguments of one rank."""
        mine = part(self.cuts, rank, size)
        its = slice(None)
        if self.point_cuts is not None:
            its = part(self.point_cuts, rank, size)
        return {
            "points": self.points[its],
            "centers": self.centers[mine],
            "noise_std": self.noise_std,
            "weights": None if self.weights is None else self.weights[mine],
            "points_are": self.points_are,
            "max_lost_mass": self.max_lost_mass,
        }


def part(cuts: dict[int, list[int]], rank: int, size: int) -> slice:
    ends = np.cumsum([0, *cuts[size]])
    return slice(int(ends[rank]), int(ends[rank + 1]))


def mixtures() -> dict[str, Mixture]:
    """By name, all of log-densities that one process can have."""
    rng = np.random.default_rng(7)
    points, centers = rng.uniform(-1, 1, (70, 3)), rng.uniform(-1, 1, (101, 3))
    uneven = {2: [90, 11], 3: [60, 1, 40]}
    plain = Mixture(points, centers, 0.1, uneven)
    weights = rng.exponential(size=101)
    some = np.where(np.arange(101) < 60, 0.0, weights)  # a rank of three without mass
    clusters = rng.uniform(-1, 1, (40, 2))
    many = clusters[np.arange(20_000) % 40] + 1e-3 * rng.normal(size=(20_000, 2))
    many = many[np.lexsort(many.T)]
    at = many[::10] + 1e-3 * rng.normal(size=(2000, 2))
    far = np.array([[0.0, 0.0], [1e200, 0.0], [1e200, 1.0]])
    point_cuts = {2: [70, 0], 3: [13, 0, 57]}
    return {
        "plain": plain,
        "small-noise": replace(plain, noise_std=1e-3),
        "float32": replace(
            plain,
            points=points.astype(np.float32),
            centers=centers.astype(np.float32),
            noise_std=0.05,
        ),
        "an-empty-shard": replace(plain, cuts={2: [101, 0], 3: [0, 100, 1]}),
        "one-center-in-all": replace(
            plain, centers=centers[:1], cuts={2: [0, 1], 3: [0, 0, 1]}
        ),
        "weights": replace(plain, weights=weights / weights.sum()),
        "a-shard-without-weight": replace(plain, weights=some / some.sum()),
        "many-dimensions": replace(
            plain,
            points=rng.normal(size=(20, 300)),
            centers=rng.normal(size=(101, 300)),
        ),
        "no-points": replace(plain, points=points[:0]),
        # Every merge in two steps: more rows than one collective takes to all.
        "many-points": replace(plain, points=rng.uniform(-1, 1, (20_001, 3))),
        "clusters": Mixture(at, many, 1e-3, {2: [12_000, 8000], 3: [100, 0, 19_900]}),
        "clusters-losing": Mixture(
            at, many, 1e-3, {2: [12_000, 8000], 3: [7000, 7000, 6000]}, None, None, 1e-3
        ),
        "own-points": replace(plain, point_cuts=point_cuts),
        "own-points-weights": replace(
            plain, point_cuts=point_cuts, weights=weights / weights.sum()
        ),
        "no-own-points-at-all": replace(
            plain, points=points[:0], point_cuts={2: [0, 0], 3: [0, 0, 0]}
        ),
        # Squared distances overflow on all ranks but the first.
        "a-shard-out-of-range": Mixture(
            np.zeros((4, 2)), far, 1.0, {2: [1, 2], 3: [1, 1, 1]}
        ),
    }


def wrong_inputs() -> dict[str, Callable[[dict[str, Any], int], None]]:
    """By name, what spoils the arguments; the last rank's unless it says otherwise."""

    def on_last(**changes: Any) -> Callable[[dict[str, Any], int], None]:
        def spoil(given: dict[str, Any], from_last: int) -> None:
            if from_last == 0:
                given.update(changes)

        return spoil

    def each(**changes: Any) -> Callable[[dict[str, Any], int], None]:
        return lambda given, _: given.update(changes)

    nan = np.zeros((70, 3))
    nan[5, 1] = np.nan
    quarter = np.full(101, 0.25)
    return {
        "nan-in-points": on_last(points=nan),
        "inf-in-centers": on_last(centers=np.full((4, 3), np.inf)),
        "shape-of-centers": on_last(centers=np.zeros(3)),
        "dimension": on_last(points=np.zeros((70, 2)), centers=np.zeros((4, 2))),
        "dtype": on_last(
            points=np.zeros((70, 3), np.float32), centers=np.zeros((4, 3), np.float32)
        ),
        "not-floats": on_last(centers=np.zeros((4, 3), int)),
        "noise-std": on_last(noise_std=0.2),
        "negative-noise-std": on_last(noise_std=-0.1),
        "lost-mass": on_last(max_lost_mass=0.5),
        "other-points": on_last(points=np.zeros((70, 3))),
        "number-of-points": on_last(points=np.zeros((69, 3))),
        "points-are": on_last(points_are="sharded"),
        "points-are-elsewhere": on_last(points_are="everywhere"),
        "weights-of-one": lambda given, from_last: given.update(
            weights=quarter[: len(given["centers"])] if from_last == 0 else None
        ),
        "weights-of-each-sum-to-1": lambda given, _: given.update(
            weights=np.full(len(given["centers"]), 1 / len(given["centers"]))
        ),
        "number-of-weights": lambda given, from_last: given.update(
            weights=quarter[: len(given["centers"]) - (from_last == 0)]
        ),
        "negative-weights": lambda given, from_last: given.update(
            weights=quarter[: len(given["centers"])] - (from_last == 0)
        ),
        "no-centers": each(centers=np.zeros((0, 3))),
        "all-out-of-range": each(centers=np.full((2, 3), 1e200), noise_std=1.0),
    }


Found = dict[str, Any]


def _log_densities(rank: int, size: int) -> Found:
    from noisyflow import distributed

    return {
        name: distributed.mixture_log_density(**mixture.of_rank(rank, size))
        for name, mixture in mixtures().items()
    }


def gradient_cases() -> dict[str, Mixture]:
    """Those of `mixtures` whose gradients are taken, with weights throughout."""
    found = {}
    for name, mixture in mixtures().items():
        n = len(mixture.centers)
        if name.startswith(("many-p", "clusters", "a-shard-out", "no-own")):
            continue
        found[name] = mixture
        if mixture.weights is None:
            dtype = mixture.centers.dtype
            found[f"{name}-uniform"] = mixture
            found[name] = replace(mixture, weights=np.full(n, 1 / n, dtype))
    return found


def grad_output(mixture: Mixture) -> np.ndarray:
    """What comes in, one number for every point, some of them 0."""
    m = len(mixture.points)
    found = np.random.default_rng(m).normal(size=m).astype(mixture.points.dtype)
    found[::7] = 0
    return found


def _gradients(rank: int, size: int) -> Found:
    import torch

    from noisyflow import distributed

    found = {}
    for name, mixture in gradient_cases().items():
        given = mixture.of_rank(rank, size)
        dtype = torch.from_numpy(mixture.points).dtype
        for key in ("points", "centers", "weights"):
            if given[key] is not None:
                given[key] = torch.from_numpy(given[key]).requires_grad_()
        noise_std = torch.tensor(mixture.noise_std, dtype=dtype, requires_grad=True)
        result = distributed.mixture_log_density(**given | {"noise_std": noise_std})
        upstream = torch.from_numpy(grad_output(mixture))
        if mixture.point_cuts is not None:
            upstream = upstream[part(mixture.point_cuts, rank, size)]
        (result * upstream).sum().backward()
        for key in ("points", "centers", "weights"):
            if given[key] is not None:
                found[f"{name}.{key}"] = given[key].grad.numpy()
        found[f"{name}.noise_std"] = noise_std.grad.numpy()
    # Gradients of centers alone need no other rank, and no agreement.
    given = mixtures()["plain"].of_rank(rank, size)
    given = {k: torch.from_numpy(given[k]) for k in ("points", "centers")}
    if rank == 0:
        given["centers"].requires_grad_()
    result = distributed.mixture_log_density(**given, noise_std=0.1)
    if rank == 0:
        result.sum().backward()
        found["centers-of-one"] = given["centers"].grad.numpy()
    return found


def _errors(rank: int, size: int) -> Found:
    from noisyflow import distributed

    plain = mixtures()["plain"]
    found = {}
    for name, spoil in wrong_inputs().items():
        given = plain.of_rank(rank, size)
        spoil(given, size - 1 - rank)
        found[name] = _raised(lambda g=given: distributed.mixture_log_density(**g))
    # A rank that fails within the evaluation, with what it cannot have.
    whole, evaluate = plain.of_rank(rank, size), distributed.Shard.log_density
    for name, where in (("within", {}), ("within-own-points", plain_points(size))):
        given = whole | replace(plain, **where).of_rank(rank, size)
        if rank == size - 1:
            distributed.Shard.log_density = _fail
        found[name] = _raised(lambda g=given: distributed.mixture_log_density(**g))
        distributed.Shard.log_density = evaluate
    import torch

    given = {k: torch.from_numpy(whole[k]) for k in ("points", "centers")}
    for name, key in (("points-of-one", "points"), ("noise-std-of-one", "noise_std")):
        mine = given | {"noise_std": torch.tensor(0.1, dtype=torch.float64)}
        if rank == 1:
            mine[key] = mine[key].clone().requires_grad_()
        found[name] = _raised(lambda g=mine: distributed.mixture_log_density(**g))
    mine = {**given, "noise_std": 0.1, "points_are": "sharded"}
    mine["centers"] = given["centers"].clone().requires_grad_(rank == 0)
    found["own-points-any"] = _raised(lambda: distributed.mixture_log_density(**mine))
    mine["centers"].requires_grad_()
    (grad,) = torch.autograd.grad(
        distributed.mixture_log_density(**mine).sum(),
        mine["centers"],
        create_graph=True,
    )
    found["twice"] = _raised(lambda: grad.sum().backward())
    return found


def plain_points(size: int) -> dict[str, Any]:
    return {"point_cuts": {size: [70, *[0] * (size - 1)]}}


def _fail(*_: Any) -> Any:
    raise MemoryError("no memory is left")


def _raised(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(meeting: str, folder: str) -> None:
    import torch
    import torch.distributed as dist

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    (rank, size) = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=40),
    )
    parts = {"log-density": _log_densities, "gradient": _gradients, "error": _errors}
    found = {
        f"{kind}.{name}": value
        for kind, run in parts.items()
        for name, value in run(rank, size).items()
    }
    np.savez(os.path.join(folder, f"{size}-{rank}.npz"), **found)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
