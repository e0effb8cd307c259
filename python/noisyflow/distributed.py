"""Mixtures whose centers are spread over the ranks of torch.distributed.

Every rank calls the same function with its own part of the centers, and all get the
answer of one process that has them all. Start the script with torchrun and call
torch.distributed.init_process_group first: gloo for CPUs, NCCL for GPUs, where each
rank chooses its own by torch.cuda.set_device. What is wrong on one rank is raised on
every rank; a rank that dies ends the others when the group notices, at its timeout.

Memory and traffic of a rank, for n centers in d dimensions on r ranks, m points, s
bytes a number (4 or 8):

- its centers n d s / r, a tree over them up to three times as much, and its points;
- points that are the same on every rank: 16 m (r - 1) / r bytes out and as many in, two
  collectives for each 2^20 points; 8 m (r - 1) in one collective where r m is at most
  2^15. Gradients of the points: the same for d numbers instead of one;
- points of its own, m / r of them: m (d s + 8) (r - 1) / r bytes out and in; gradients
  m (d s + 8 d + 16) (r - 1) / r bytes more.

Points travel, and not centers: work per byte grows with n / r. Measured figures:
docs/cluster.md. Source of the scheme: the LogSum pair, csrc/core/log_sum.h.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import _arrays, information
from noisyflow._collectives import Peers
from noisyflow._messages import AgreedError
from noisyflow._rows import SampledRows
from noisyflow._sharded_density import (
    Agreement,
    LogDensity,
    Work,
    check_weights,
    checked,
    checked_num_centers,
    checked_rows,
    checked_weights,
    detached,
    facts,
    require_same,
)
from noisyflow._sharded_rows import ShardedRows, Team
from noisyflow.estimate import Estimate, TargetWarning, UndersampledWarning

__all__ = [
    "conditional_entropy",
    "entropy",
    "mixture_log_density",
    "mutual_information",
]

Floats = NDArray[Any]
Indices = NDArray[np.int64]


def mixture_log_density(
    points: Any,
    centers: Any,
    noise_std: Any,
    *,
    weights: Any = None,
    points_are: Literal["replicated", "sharded"] = "replicated",
    max_lost_mass: float | None = None,
    group: Any = None,
) -> Any:
    """Log-density of a Gaussian mixture whose centers are spread over ranks.

    As `noisyflow.mixture_log_density` of the centers of all ranks. Every rank of the
    group calls it.

    Parameters
    ----------
    points : (m, d) array
        Where to evaluate. NumPy array or torch tensor, float32 or float64.
    centers : (n, d) array
        This rank's component means, (0, d) if it has none; same library and dtype as
        `points`. With NCCL both are on this rank's GPU.
    noise_std : float
        Standard deviation of every component; the same on every rank. With tensors it
        may be one, of shape ().
    weights : (n,) array, optional
        Weights of this rank's centers, not negative, summing to 1 over all ranks.
        Uniform by default: one over the number of centers on all ranks. Given by all
        ranks that have centers, or by none.
    points_are : {"replicated", "sharded"}
        "replicated": every rank gives the same points and gets all results, on CPUs of
        one kind the same bits. "sharded": every rank gives points of its own, maybe
        none, and gets their results.
    max_lost_mass : float, optional
        As in `noisyflow.mixture_log_density`, and with its meaning for the whole: each
        rank's part of the sum is off by at most this fraction of that part.
    group : torch.distributed.ProcessGroup, optional
        The ranks that take part; all by default.

    Returns
    -------
    (m,) array
        In nats; same library and dtype as `points`.

    Raises
    ------
    TypeError, ValueError
        On every rank, if one rank's input is wrong as in
        `noisyflow.mixture_log_density` or differs where it must be the same.
    RuntimeError
        If torch.distributed is not initialised.

    Notes
    -----
    Cost O(m n d) time on each rank for its n centers, and less where a tree pays;
    memory and traffic are at the head of this module. Parts are merged in float64 in
    the order of the ranks, so that the result is deterministic; it differs between
    numbers of ranks by rounding: 1e-12 relative to max(1, |result|) in float64, and
    within the stated error in float32.

    Tensors: differentiable once, in reverse mode, with respect to points, centers,
    noise_std and weights, where every rank calls backward. Replicated points: the loss
    is the same on every rank, and gradients are those of this one loss. Sharded points:
    of the sum of all ranks' losses. Gradients of centers and weights are those of this
    rank's; of noise_std, and of replicated points, they are complete on every rank.
    Parameters that all ranks share and that made the centers need the sum of their
    ranks' gradients, and DistributedDataParallel takes the mean.

    Examples
    --------
    One rank here; under torchrun `init_process_group("gloo")` is enough.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> every, first = dist.get_world_size(), dist.get_rank()
    >>> centers = torch.tensor([[-1.0], [1.0]])[first::every]  # this rank's
    >>> points = torch.tensor([[0.0], [1.0]])
    >>> mixture_log_density(points, centers, noise_std=1.0)
    tensor([-1.4189, -1.4852])
    >>> dist.destroy_process_group()
    """
    peers = Peers(group)
    outcome = peers.attempt(
        lambda: checked(points, centers, noise_std, weights, points_are, max_lost_mass)
    )
    told = Agreement(peers.agree("mixture_log_density", outcome, facts))
    work = Work(peers, outcome, told)
    result = work.log_density()
    if not outcome.is_tensor:
        return result.numpy().astype(outcome.dtype)
    result = result.to(points.dtype)
    if outcome.wants[2]:
        given = (points, centers, noise_std, weights)
        tensors = [v if _arrays.is_tensor(v) else None for v in given]
        return LogDensity.apply(work, result, *tensors)  # type: ignore[no-untyped-call]
    return result


def entropy(
    centers: Any,
    noise_std: float,
    *,
    weights: Any = None,
    standard_error: float | None = None,
    max_seconds: float | None = None,
    max_pairs: int | None = None,
    population: bool = False,
    seed: int = 0,
    group: Any = None,
) -> Estimate:
    """Differential entropy h(S + Z) of samples that are spread over ranks.

    As `noisyflow.entropy` of the samples of all ranks, one rank's after another's: the
    same queries, the same estimate. Every rank of the group calls it.

    Parameters
    ----------
    centers : (n, d) array
        This rank's samples of S, (0, d) if it has none. NumPy array or torch tensor,
        float32 or float64, without gradients.
    noise_std, standard_error, max_seconds, max_pairs, population, seed
        As in `noisyflow.entropy`; the same on every rank. Time is that of rank 0.
    weights : (n,) array, optional
        Weights of this rank's samples, summing to 1 over all ranks, as in
        `mixture_log_density`.
    group : torch.distributed.ProcessGroup, optional
        The ranks that take part; all by default.

    Returns
    -------
    Estimate
        The same on every rank. Against one process in float64 its numbers differ by
        the rounding of merged sums: within 1e-12 where the error of the queries does
        not come so close to its target that rounding decides on another round.

    Raises
    ------
    ValueError, TypeError
        On every rank, if one rank's input is wrong or differs where it must be the
        same; or if gradients are required, which are not computed over ranks.

    Warns
    -----
    UndersampledWarning, TargetWarning
        As `noisyflow.entropy`, on rank 0 of the group alone. Where warnings are errors,
        it alone raises them, and the others go on.

    Notes
    -----
    Rank 0 draws the queries, chooses and averages; the others evaluate them on their
    samples. For q queries and n samples on r ranks: O(q n d / r) time; O(n d / r)
    memory on every rank, and O(q) on rank 0. Traffic of a query: its center to rank 0,
    its point to all ranks, 2 d s bytes, and two sums back, 32 bytes; three collectives
    for every 65,536 queries, beside some of a few bytes.

    Rank 0 holds more where one process would order or merge: the n samples while it
    orders at most 200,000 of them; 60 bytes a sample where some are equal, and 30
    where they have weights. Whether some are equal is found by hashes, 8 bytes a
    sample, on all ranks alike.

    Examples
    --------
    One rank here; under torchrun `init_process_group("gloo")` is enough.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> far_apart = np.array([[-1.0], [1.0]])  # of this rank
    >>> round(entropy(far_apart, 0.1, population=True).value, 4)  # h(Z) + log 2
    -0.1905
    >>> dist.destroy_process_group()
    """
    options = _options(locals(), ("centers", "weights", "group"))
    peers = Peers(group)

    def check() -> _Samples:
        _refuse_gradients(centers=centers, weights=weights, noise_std=noise_std)
        rows = checked_rows("centers", centers)
        w = None if weights is None else checked_weights(weights, rows)
        return _Samples(rows, weights=w)

    def estimate(rows: ShardedRows, told: _OfAll) -> Estimate:
        return information.entropy(rows, weights=told.weights, **options)

    return _estimate("entropy", peers, check, options, estimate)


def conditional_entropy(
    samples: Any,
    noise_std: float,
    *,
    standard_error: float | None = None,
    max_seconds: float | None = None,
    max_pairs: int | None = None,
    seed: int = 0,
    group: Any = None,
) -> Estimate:
    """Conditional differential entropy h(T | X), inputs being spread over ranks.

    As `noisyflow.conditional_entropy` of the inputs of all ranks. Every rank of the
    group calls it.

    Parameters
    ----------
    samples : (inputs, draws, d) array, or sequence of (draws_i, d) arrays
        Samples of S for this rank's inputs, all draws of each; (0, 1, d) if it has
        none.
    noise_std, standard_error, max_seconds, max_pairs, seed
        As in `noisyflow.conditional_entropy`; the same on every rank.
    group : torch.distributed.ProcessGroup, optional
        The ranks that take part; all by default.

    Returns
    -------
    Estimate
        The same on every rank, and that of one process but for rounding, as `entropy`.

    Raises
    ------
    ValueError, TypeError
        As `entropy`.

    Notes
    -----
    As `entropy`; rank 0 holds some 100 bytes for every sample of all ranks.

    Examples
    --------
    One rank here; under torchrun `init_process_group("gloo")` is enough.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> draws = np.zeros((4, 1, 2))  # of this rank: 4 inputs, a draw each
    >>> round(conditional_entropy(draws, 1.0).value, 4)  # log(2 pi e), the noise's own
    2.8379
    >>> dist.destroy_process_group()
    """
    options = _options(locals(), ("samples", "group"))
    peers = Peers(group)

    def check() -> _Samples:
        _refuse_gradients(samples=samples, noise_std=noise_std)
        return _checked_samples(samples, None)

    def estimate(rows: ShardedRows, told: _OfAll) -> Estimate:
        sampled = SampledRows(rows, told.sizes)
        return information.conditional_entropy(sampled, **options)

    return _estimate("conditional_entropy", peers, check, options, estimate)


def mutual_information(
    samples: Any,
    noise_std: float,
    *,
    labels: Any = None,
    inputs: Literal["fixed", "sampled"] = "fixed",
    standard_error: float | None = None,
    max_seconds: float | None = None,
    max_pairs: int | None = None,
    seed: int = 0,
    group: Any = None,
) -> Estimate:
    """Mutual information I(X; T), or I(Y; T) with labels, inputs spread over ranks.

    As `noisyflow.mutual_information` of the inputs of all ranks. Every rank of the
    group calls it.

    Parameters
    ----------
    samples : (inputs, draws, d) array, or sequence of (draws_i, d) arrays
        Samples of S for this rank's inputs, all draws of each; (0, 1, d) if it has
        none.
    noise_std, inputs, standard_error, max_seconds, max_pairs, seed
        As in `noisyflow.mutual_information`; the same on every rank.
    labels : (inputs,) array of integers, booleans or strings, optional
        The label of each of this rank's inputs; a label may be on several ranks.
    group : torch.distributed.ProcessGroup, optional
        The ranks that take part; all by default.

    Returns
    -------
    Estimate
        The same on every rank, and that of one process but for rounding, as `entropy`.

    Raises
    ------
    ValueError, TypeError
        As `entropy`.

    Notes
    -----
    As `entropy`; rank 0 holds some 100 bytes for every sample of all ranks. Where S is
    a function of X and there are no labels, I(X; T) is `entropy` less that of the
    noise, which does without them.

    Examples
    --------
    One rank here; under torchrun `init_process_group("gloo")` is enough.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> far_apart = np.array([-1.0, 1.0, -1.0, 1.0]).reshape(4, 1, 1)  # of this rank
    >>> round(mutual_information(far_apart, noise_std=0.1).value, 6)  # log 2
    0.693147
    >>> dist.destroy_process_group()
    """
    options = _options(locals(), ("samples", "labels", "group"))
    peers = Peers(group)

    def check() -> _Samples:
        _refuse_gradients(samples=samples, noise_std=noise_std)
        return _checked_samples(samples, labels)

    def estimate(rows: ShardedRows, told: _OfAll) -> Estimate:
        sampled = SampledRows(rows, told.sizes)
        return information.mutual_information(sampled, labels=told.labels, **options)

    return _estimate("mutual_information", peers, check, options, estimate)


# -- estimates ------------------------------------------------------------------------


class _Facts(NamedTuple):
    """Numbers that a rank tells of its samples; or columns of these, of all ranks."""

    num_rows: Any
    dimension: Any
    itemsize: Any
    largest: Any
    has_weights: Any  # -1 without samples, which need none
    total_weight: Any
    has_labels: Any  # likewise
    kind_of_labels: Any


@dataclasses.dataclass(frozen=True)
class _Samples:
    """One rank's samples, fine by themselves; sizes and labels of its inputs."""

    rows: Any  # NumPy array or DeviceRows
    weights: Floats | None = None
    sizes: Indices | None = None
    labels: NDArray[Any] | None = None

    def facts(self, options: dict[str, Any]) -> list[float]:
        (n, d) = self.rows.shape
        largest = getattr(self.rows, "largest", None)
        if largest is None:
            largest = float(np.abs(self.rows).max(initial=0))
        (weights, labels) = (self.weights, self.labels)
        own = _Facts(
            num_rows=float(n),
            dimension=float(d),
            itemsize=float(self.rows.dtype.itemsize),
            largest=largest,
            has_weights=-1.0 if n == 0 else float(weights is not None),
            total_weight=(
                0.0 if weights is None else float(weights.sum(dtype=np.float64))
            ),
            has_labels=-1.0 if n == 0 else float(labels is not None),
            kind_of_labels=0.0 if labels is None else float(ord(labels.dtype.kind)),
        )
        hashes = [float(zlib.crc32(repr(v).encode())) for v in options.values()]
        return [*own, *hashes]


@dataclasses.dataclass(frozen=True)
class _OfAll:
    """What rank 0 has of all samples; nothing on other ranks."""

    weights: Floats | None
    sizes: Indices
    labels: NDArray[Any] | None


def _options(arguments: dict[str, Any], without: Sequence[str]) -> dict[str, Any]:
    """The arguments that are the same on every rank."""
    return {k: v for k, v in arguments.items() if k not in without}


def _as_number(noise_std: Any) -> Any:
    """A tensor of shape () as a number."""
    if _arrays.is_tensor(noise_std) and noise_std.ndim == 0:
        return float(detached(noise_std))
    return noise_std


def _refuse_gradients(**values: Any) -> None:
    for name, value in values.items():
        parts = value if isinstance(value, list | tuple) else [value]
        if torch.is_grad_enabled() and any(
            _arrays.is_tensor(part) and part.requires_grad for part in parts
        ):
            raise ValueError(
                f"{name} requires gradients, which estimates over ranks do not have;"
                f" pass {name}.detach(). noisyflow.{_HAVE_GRADIENTS} have them in one"
                " process, and distributed.mixture_log_density over ranks"
            )


_HAVE_GRADIENTS = "entropy and noisyflow.mutual_information"


def _checked_samples(samples: Any, labels: Any) -> _Samples:
    if not isinstance(samples, list | tuple) and len(samples) == 0:
        if np.ndim(samples) != 3:
            raise ValueError(
                "samples must have shape (inputs, draws, d), got shape"
                f" {tuple(np.shape(samples))}"
            )
        rows = checked_rows("samples", samples.reshape(0, samples.shape[2]))
        return _Samples(rows, sizes=np.empty(0, np.int64))
    (rows, sizes) = information._checked_samples(_without_graph(samples))
    if labels is not None:
        labels = detached(labels).cpu() if _arrays.is_tensor(labels) else labels
        _arrays.group_by_label(labels, len(sizes))  # which checks them
        labels = np.asarray(labels)
    return _Samples(rows, sizes=sizes, labels=labels)


def _without_graph(samples: Any) -> Any:
    if isinstance(samples, list | tuple):
        return [detached(part) for part in samples]
    return detached(samples)


def _estimate(
    name: str,
    peers: Peers,
    check: Callable[[], _Samples],
    options: dict[str, Any],
    estimate: Callable[[ShardedRows, _OfAll], Estimate],
) -> Estimate:
    """Rank 0's estimate on every rank; what was warned of on rank 0."""

    def checked() -> _Samples:
        options["noise_std"] = _as_number(options["noise_std"])
        return check()

    mine = peers.attempt(checked)
    found = peers.agree(name, mine, lambda samples: samples.facts(options))
    (facts_of_all, hashes) = np.split(found.T, [len(_Facts._fields)])
    told = _Facts(*facts_of_all)
    require_same("the dimension d", told.dimension)
    require_same("the dtype", told.itemsize, names={4: "float32", 8: "float64"})
    for key, value in zip(options, hashes, strict=True):
        if len(set(value.tolist())) > 1:
            other = int((value != value[0]).argmax())
            raise ValueError(
                f"{key} must be the same on every rank, got another on rank {other}"
                f" than on rank 0; here {options[key]!r}"
            )
    kind = "centers" if name == "entropy" else "samples"
    num_rows = checked_num_centers(told.num_rows, kind)
    itemsize = int(told.itemsize[0])
    check_weights(told.has_weights, told.total_weight, num_rows, itemsize)
    if len({flag for flag in told.has_labels.tolist() if flag >= 0}) > 1:
        raise ValueError("labels must be given by all ranks that have samples")
    kinds = {chr(int(code)) for code in told.kind_of_labels[told.has_labels > 0]}
    if len({"U" if code in "US" else "i" for code in kinds}) > 1:
        raise TypeError("labels must be of one type on all ranks, got text and numbers")

    has_weights = bool((told.has_weights > 0).any())
    collected = _collected(peers, mine, has_weights, bool(kinds))
    team = Team(peers, mine.rows)
    if peers.rank > 0:
        return _from_words(team.follow(), warns=False)
    shape = (num_rows, int(told.dimension[0]))
    rows = ShardedRows(team, 0, shape, mine.rows.dtype, float(told.largest.max()))
    words = _in_words(team, lambda: estimate(rows, collected()))
    team.dismiss(words)
    return _from_words(words, warns=True)


def _collected(
    peers: Peers, mine: _Samples, has_weights: bool, has_labels: bool
) -> Callable[[], _OfAll]:
    """Sizes, labels and weights of all ranks, to be put together on rank 0."""
    n = len(mine.rows)
    nothing = np.empty(0, np.int64)

    def own_weights() -> Floats:
        w = np.empty(n, mine.rows.dtype) if mine.weights is None else mine.weights
        return np.ascontiguousarray(w)

    def own_sizes() -> Indices:
        return nothing if mine.sizes is None else mine.sizes.astype(np.int64)

    weights: list[Floats] = []
    if has_weights:
        weights = peers.collect(peers.together("weights", own_weights))
    sizes = peers.collect(peers.together("sizes", own_sizes))
    labels = []
    if has_labels:
        own = nothing if mine.labels is None else mine.labels
        labels = [a for a in peers.gather_arrays(own) if len(a)]
    return lambda: _OfAll(
        np.concatenate(weights) if weights else None,
        np.concatenate(sizes) if sizes else nothing,
        np.concatenate(labels) if labels else None,
    )


_WARNINGS = {kind.__name__: kind for kind in (TargetWarning, UndersampledWarning)}
_ERRORS = {
    **{kind.__name__: kind for kind in (TypeError, ValueError)},
    **{kind.__name__: AgreedError for kind in (RuntimeError, AgreedError)},
}


def _in_words(team: Team, estimate: Callable[[], Estimate]) -> str:
    """What came of an estimate, for all ranks: fields and warnings, or an error.

    Raises where the others are not there to hear it: they raise too, or wait for what
    this rank could not do, and then its end is what ends them.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fields: dict[str, Any] = {"estimate": estimate().to_dict()}
        except Exception as error:
            if not team.is_listening:
                raise
            name = type(error).__name__
            words = str(error) if name in _ERRORS else f"{name}: {error}"
            fields = {"error": [name, words]}
    said = [[w.category.__name__, str(w.message)] for w in caught]
    return json.dumps(fields | {"warnings": said})


def _from_words(words: str, *, warns: bool) -> Estimate:
    """The estimate; raises what the words say, and warns of it where that is wanted."""
    fields = json.loads(words)
    for name, text in fields["warnings"] if warns else ():
        warnings.warn(text, _WARNINGS.get(name, UserWarning), stacklevel=4)
    if "error" in fields:
        (name, text) = fields["error"]
        raise _ERRORS.get(name, AgreedError)(text)
    return Estimate(**fields["estimate"])
