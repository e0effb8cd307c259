"""What every rank of test_distributed.py runs, and what one process has of the same.

As a script: RANK and WORLD_SIZE in the environment, a file where ranks meet, a folder
for what is found: `<size>-<rank>.npz`, entries `<case>.<name>`; errors are text.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from unittest import mock

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


@dataclass(frozen=True)
class Estimation:
    """An estimator, its samples on all ranks and where they are cut."""

    name: str
    samples: Any  # an array, or a list of arrays; by inputs
    cuts: dict[int, list[int]]
    options: dict[str, Any]
    per_input: dict[str, Any]  # arrays that are cut like the samples

    def of_rank(self, rank: int, size: int) -> tuple[Any, dict[str, Any]]:
        mine = part(self.cuts, rank, size)
        cut = {key: value[mine] for key, value in self.per_input.items()}
        samples = self.samples[mine]
        if len(samples) == 0 and isinstance(samples, list):
            samples = self.samples[0][None, :1][:0]
        return samples, {**self.options, **cut}

    def run(self, module: Any, samples: Any, options: dict[str, Any]) -> Found:
        """All fields, and what was warned of."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimate = getattr(module, self.name)(samples, **options)
        fields = estimate.to_dict()
        fields["warnings"] = [f"{w.category.__name__}: {w.message}" for w in caught]
        return fields


def estimations() -> dict[str, Estimation]:
    """By name, what estimators are asked."""
    rng = np.random.default_rng(11)
    s = np.tanh(rng.normal(size=(240, 3)))
    uneven = {2: [200, 40], 3: [100, 0, 140]}
    equal = s[rng.integers(0, 60, size=240)]  # within ranks, and across
    weights = rng.exponential(size=240) * (np.arange(240) % 5 > 0)
    draws = s.reshape(24, 10, 3)
    of_inputs = {2: [20, 4], 3: [9, 0, 15]}
    lists = [s[start : start + size] for start, size in ((0, 70), (70, 90), (160, 80))]
    words = np.array(["cat", "lion", "ox"])

    def case(name: str, samples: Any, cuts: Any = uneven, **options: Any) -> Estimation:
        of_input = {}
        for key in ("weights", "labels"):
            if key in options:
                of_input[key] = options.pop(key)
        options = {"noise_std": 0.3, "seed": 3} | options
        return Estimation(name, samples, cuts, options, of_input)

    (h, c, i) = ("entropy", "conditional_entropy", "mutual_information")
    return {
        "entropy": case(h, s),
        "entropy-of-one-rank": case(h, s, {2: [0, 240], 3: [0, 240, 0]}),
        "entropy-d1": case(h, s[:, :1]),
        "entropy-d2": case(h, s[:, :2], max_pairs=5_000_000),
        "entropy-equal": case(h, equal),
        # The last rank's last sample is the first rank's first.
        "entropy-equal-across": case(h, np.concatenate([s[:239], s[:1]])),
        "entropy-all-equal": case(h, equal[:1].repeat(240, axis=0)),
        "entropy-weights": case(h, s, weights=weights / weights.sum()),
        "entropy-population": case(h, equal, population=True, noise_std=0.1),
        "entropy-float32": case(h, s.astype(np.float32)),
        "entropy-here-and-there": case(h, s, max_pairs=128 * 240),
        "entropy-isolated": case(h, s, noise_std=0.01),
        # Quadratic forms for controls, as this is known to be the last round.
        "entropy-forms": case(
            *(h, s[:60], {2: [50, 10], 3: [30, 0, 30]}),
            population=True,
            standard_error=1e-6,
            max_pairs=480_000,
        ),
        "entropy-target": case(h, s, standard_error=1e-4, max_pairs=4_000_000),
        "conditional": case(c, draws, of_inputs),
        "conditional-one-draw": case(c, s[:, None]),
        "conditional-lists": case(c, lists, {2: [1, 2], 3: [2, 0, 1]}),
        "conditional-equal": case(c, equal.reshape(24, 10, 3), of_inputs),
        "information": case(i, draws, of_inputs),
        "information-sampled": case(i, draws, of_inputs, inputs="sampled"),
        "information-labels": case(i, draws, of_inputs, labels=np.arange(24) % 3),
        "information-labels-sampled": case(
            i, draws, of_inputs, labels=words[np.arange(24) % 3], inputs="sampled"
        ),
        "information-one-draw": case(i, s[:, None]),
        "information-one-draw-labels": case(i, equal[:, None], labels=equal[:, 0] > 0),
        "information-one-draw-sampled": case(
            i, equal[:, None], labels=equal[:, 0] > 0, inputs="sampled"
        ),
        "information-equal": case(
            i, equal.reshape(24, 10, 3), of_inputs, labels=np.arange(24) // 8
        ),
        "information-d1": case(i, draws[:, :, :1], of_inputs, max_pairs=10_000_000),
    }


Found = dict[str, Any]


def _estimates(rank: int, size: int) -> Found:
    from noisyflow import distributed

    found = {}
    for name, case in estimations().items():
        fields = case.run(distributed, *case.of_rank(rank, size))
        found |= {f"{name}.{key}": value for key, value in fields.items()}
    case = replace(estimations()["entropy"], options={"noise_std": 0.3})
    (samples, options) = case.of_rank(rank, size)
    fields = case.run(distributed, samples, {**options, "max_seconds": 0.05})
    return found | {f"seconds.{key}": value for key, value in fields.items()}


def _estimate_errors(rank: int, size: int) -> Found:
    import torch

    from noisyflow import _sharded_rows, distributed
    from noisyflow._shard import Shard
    from noisyflow._sharded_rows import ShardedMixture

    (samples, options) = estimations()["entropy"].of_rank(rank, size)
    (equal, _) = estimations()["entropy-equal"].of_rank(rank, size)
    (of_inputs, _) = estimations()["information"].of_rank(rank, size)
    is_last = rank == size - 1
    found = {}

    def record(name: str, call: Callable[[], Any]) -> None:
        found[name] = _raised(call)

    def entropy(samples: Any, **changes: Any) -> Callable[[], Any]:
        return lambda: distributed.entropy(samples, **{**options, **changes})

    spoilt = samples.copy()
    spoilt[-1:] = np.nan
    record("estimate-nan", entropy(spoilt if is_last else samples))
    record("estimate-seed", entropy(samples, seed=rank))
    record("estimate-noise", entropy(samples, noise_std=0.3 + 0.1 * is_last))
    record("estimate-pairs", entropy(samples, max_pairs=10))
    record("estimate-option", entropy(samples, standard_error="small"))
    record("estimate-one-sample", entropy(samples[: int(rank == 0)]))
    tensor = torch.from_numpy(samples).requires_grad_(is_last)
    record("estimate-gradients", entropy(tensor))
    labels = np.arange(len(of_inputs))
    record(
        "estimate-labels",
        lambda: distributed.mutual_information(
            of_inputs, 0.3, labels=labels.astype(str) if is_last else labels
        ),
    )
    record(
        "estimate-one-draw-here",
        lambda: distributed.mutual_information(of_inputs[:, : 1 + 9 * is_last], 0.3),
    )
    complex_noise = torch.tensor(0.3 + 1j) if is_last else 0.3
    record("estimate-noise-tensor", entropy(samples, noise_std=complex_noise))
    forms = estimations()["entropy-forms"]
    (few, of_forms) = forms.of_rank(rank, size)

    def covariances() -> Any:
        return distributed.entropy(few, **of_forms)

    def information() -> Any:
        return distributed.mutual_information(of_inputs, 0.3, labels=labels)

    # What fails where it is local, on the first rank, which leads, or on the last.
    for name, owner, method, who, call in (
        ("within", Shard, "log_density", size - 1, entropy(samples)),
        ("prepare-0", Shard, "_prepared", 0, entropy(samples)),
        ("prepare", Shard, "_prepared", size - 1, entropy(samples)),
        ("rows-0", _sharded_rows._Part, "at", 0, entropy(samples)),
        ("rows", _sharded_rows._Part, "at", size - 1, entropy(samples)),
        ("keys-0", _sharded_rows.Team, "_keys", 0, entropy(samples)),
        ("keys", _sharded_rows.Team, "_keys", size - 1, entropy(samples)),
        ("take-0", _sharded_rows, "take_rows", 0, entropy(equal)),
        ("take", _sharded_rows, "take_rows", size - 1, entropy(equal)),
        ("moments-0", _sharded_rows, "_moments", 0, covariances),
        ("moments", _sharded_rows, "_moments", size - 1, covariances),
        ("collect-0", torch, "empty_like", 0, information),
        ("places", np, "arange", size - 1, entropy(samples)),
        ("labels", np, "save", size - 1, information),
        ("alone-0", ShardedMixture, "log_own_and_others", 0, entropy(samples)),
    ):
        with _failing(owner, method, rank == who):
            record(f"estimate-{name}", call)
    if is_last:
        record(
            "other-call",
            lambda: distributed.mixture_log_density(
                **{"points": samples, "centers": samples, "noise_std": 0.3}
            ),
        )
    else:
        record("other-call", entropy(samples))
    return found


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
        found |= _gradients_of(name, mixture, rank, size, lambda tensor: tensor)
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


def _gradients_of(
    name: str, mixture: Mixture, rank: int, size: int, place: Callable[[Any], Any]
) -> Found:
    """Gradients of all that has some; place: where tensors are put."""
    import torch

    from noisyflow import distributed

    found = {}
    given = mixture.of_rank(rank, size)
    dtype = torch.from_numpy(mixture.points).dtype
    for key in ("points", "centers", "weights"):
        if given[key] is not None:
            tensor = place(torch.from_numpy(given[key]))
            given[key] = tensor.detach().requires_grad_()
    noise_std = torch.tensor(mixture.noise_std, dtype=dtype, requires_grad=True)
    result = distributed.mixture_log_density(**given | {"noise_std": noise_std})
    upstream = torch.from_numpy(grad_output(mixture))
    if mixture.point_cuts is not None:
        upstream = upstream[part(mixture.point_cuts, rank, size)]
    # A tensor that poses would do so no more within its own backward.
    (result.as_subclass(torch.Tensor) * upstream).sum().backward()
    for key in ("points", "centers", "weights"):
        if given[key] is not None:
            found[f"{name}.{key}"] = given[key].grad.numpy()
    found[f"{name}.noise_std"] = noise_std.grad.numpy()
    return found


ON_GPU = ("plain", "weights", "an-empty-shard", "own-points-weights")
ESTIMATED_ON_GPU = (
    "entropy",
    "entropy-equal",
    "entropy-forms",
    "conditional-equal",
    "information-labels",
    "information-one-draw-labels",
)


def _on_gpu(rank: int, size: int) -> Found:
    """Tensors that pose as some on a GPU, and kernels that stand in for its."""
    from fake_cuda import FakeCuda, PosingTensor, posing
    from noisyflow import _device, distributed

    (module, kept) = (FakeCuda(), (_device.is_on_device, _device.extension))
    _device.is_on_device = lambda value: isinstance(value, PosingTensor)
    _device.extension = lambda: module
    found = {}
    for name in ON_GPU:
        mixture = gradient_cases()[name]
        given = mixture.of_rank(rank, size)
        for key in ("points", "centers", "weights"):
            given[key] = posing(given[key])
        result = distributed.mixture_log_density(**given)
        assert isinstance(result, PosingTensor), name
        found[f"log-density.{name}"] = result.numpy()
        gradients = _gradients_of(name, mixture, rank, size, posing)
        found |= {f"gradient.{key}": value for key, value in gradients.items()}
    for name in ESTIMATED_ON_GPU:
        case = estimations()[name]
        (samples, options) = case.of_rank(rank, size)
        fields = case.run(distributed, posing(samples), options)
        found |= {f"estimate.{name}.{key}": value for key, value in fields.items()}
    (_device.is_on_device, _device.extension) = kept
    return found


def _errors(rank: int, size: int) -> Found:
    from noisyflow import distributed
    from noisyflow._shard import Shard

    plain = mixtures()["plain"]
    found = {}
    for name, spoil in wrong_inputs().items():
        given = plain.of_rank(rank, size)
        spoil(given, size - 1 - rank)
        found[name] = _raised(lambda g=given: distributed.mixture_log_density(**g))
    # A rank that fails within the evaluation, with what it cannot have.
    whole = plain.of_rank(rank, size)
    for name, where in (("", {}), ("-own-points", plain_points(size))):
        given = whole | replace(plain, **where).of_rank(rank, size)
        for kind, owner, method in (
            ("within", Shard, "log_density"),
            ("prepare", Shard, "_prepared"),
            ("facts", distributed, "facts"),
        ):
            with _failing(owner, method, rank == size - 1):
                found[f"{kind}{name}"] = _raised(
                    lambda g=given: distributed.mixture_log_density(**g)
                )
    import torch

    given = {k: torch.from_numpy(whole[k]) for k in ("points", "centers")}
    for name in ("replicated", "sharded"):
        points = given["points"].clone().requires_grad_()
        result = distributed.mixture_log_density(
            **given | {"points": points}, noise_std=0.1, points_are=name
        )
        find = Shard.gradients
        if rank == size - 1:
            Shard.gradients = _fail
        found[f"backward-{name}"] = _raised(lambda r=result: r.sum().backward())
        Shard.gradients = find
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


def _fail(*_: Any, **__: Any) -> Any:
    raise MemoryError("no memory is left")


@contextlib.contextmanager
def _failing(owner: Any, method: str, here: bool) -> Iterator[None]:
    """No memory for this method or function, where it is here that it fails."""
    with mock.patch.object(owner, method, _fail if here else getattr(owner, method)):
        yield


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
        timeout=timedelta(seconds=120),
    )
    parts = [
        ("log-density", _log_densities),
        ("gradient", _gradients),
        ("error", _errors),
        ("estimate", _estimates),
        ("error", _estimate_errors),
        ("gpu", _on_gpu),
    ]
    found = {
        f"{kind}.{name}": value
        for kind, run in parts
        for name, value in run(rank, size).items()
    }
    np.savez(os.path.join(folder, f"{size}-{rank}.npz"), **found)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
