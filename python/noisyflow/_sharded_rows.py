"""Samples spread over ranks, for the estimators of one process.

The first rank runs the estimator; what it asks of its centers goes through
`ShardedRows`, which tells all ranks what to do and gathers what they find. The others
follow in `Team.follow` until the first has a result. So there is one copy of every
decision, and one clock; queries are drawn once, and the ranks may differ in their CPUs.

The one rule: everything between two collectives is attempted. What fails on one rank is
raised on all at the next agreement (`Peers.together`); or it arrives at the first as
NaN, which then asks who failed. Either way nobody is left to hear the first any more.
"""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import _device
from noisyflow._collectives import Peers
from noisyflow._device_mixture import DeviceRows, mixture_of, take_rows
from noisyflow._merge import block_hash, equal_keys, row_hash
from noisyflow._rows import AbstractRows
from noisyflow._shard import Shard
from noisyflow.mixture import mixture_block_log_sums, posterior_moments

Floats = NDArray[Any]
Indices = NDArray[np.int64]
Keys = NDArray[np.uint64]

# In one message: 32 MiB of rows or indices.
_NUMBERS_PER_MESSAGE = 2**22
_SECOND_SEED = 0x7365636F6E64  # "second": sets the hash that checks the other apart


class _Part(NamedTuple):
    """A rank's rows and their places, ascending, among those of all ranks."""

    rows: Any  # NumPy array or DeviceRows
    places: Indices
    num_rows: int  # of all ranks

    def find(self, places: Indices) -> tuple[NDArray[np.bool_], Indices]:
        """Which of these are here, and where; 0 of those that are not."""
        at = np.searchsorted(self.places, places)
        is_here = at < len(self.places)
        is_here[is_here] = self.places[at[is_here]] == places[is_here]
        return is_here, np.where(is_here, at, 0)

    def at(self, places: Indices) -> Floats:
        """The rows at these places; zeros for those that are not here."""
        (is_here, at) = self.find(places)
        found = np.zeros((len(places), self.rows.shape[1]), self.rows.dtype)
        if is_here.any():
            found[is_here] = self.rows[at[is_here]]
        return found


class _Blocks(NamedTuple):
    """Blocks of all ranks' centers, and which of their centers are here."""

    offsets: Indices
    outer: Indices
    begins: Indices  # of every block among the rows here; and the end
    outer_begins: Indices


class Team:
    """The ranks of a call: one leads, and all do what it says.

    Methods that begin with `do_` are run by all ranks, with the leader's arguments.
    """

    def __init__(self, peers: Peers, rows: Any) -> None:
        self._peers = peers
        counts = peers.gather(torch.tensor([len(rows)])).flatten().cpu().numpy()
        start = int(counts[: peers.rank].sum())
        places = peers.together(
            "places", lambda: np.arange(start, start + len(rows), dtype=np.int64)
        )
        self._parts = [_Part(rows, places, int(counts.sum()))]
        self._shards: dict[int, tuple[_Part, Shard | None]] = {}
        self._blocks: _Blocks | None = None
        self._growing: list[list[Indices]] = []
        self._weights: Floats | None = None
        self._error: Exception | None = None
        # Of the leader: those that it may still ask.
        self.mixtures: weakref.WeakSet[ShardedMixture] = weakref.WeakSet()
        self.is_listening = True  # whether the others wait for what the leader says

    # -- who says what ---------------------------------------------------------------

    def lead(self, name: str, *args: Any) -> Any:
        """All ranks do this; what the leader's own part returns.

        An error here is one of all ranks, or the others wait within a collective.
        """
        if not self.is_listening:
            raise RuntimeError(f"the ranks of this call have ended, before {name}")
        (words, arrays) = _message(name, args)
        self.is_listening = False
        self._say(words, arrays)
        found = getattr(self, name)(*args)
        self.is_listening = True
        return found

    def dismiss(self, words: str) -> None:
        """Ends `follow` on the other ranks, which return these words."""
        self._say(*_message("dismiss", (words,)))

    def follow(self) -> str:
        """Does what the leader says, until it says what came of it."""
        while True:
            (name, args) = self._hear()
            if name == "dismiss":
                return str(args[0])
            getattr(self, name)(*args)

    def _say(self, words: bytes, arrays: list[NDArray[Any]]) -> None:
        self._peers.broadcast(torch.tensor([len(words)]))
        self._peers.broadcast(torch.from_numpy(np.frombuffer(words, np.uint8).copy()))
        if arrays:
            self._together("hear", lambda: None)
        for a in arrays:
            self._peers.broadcast(torch.from_numpy(a))

    def _hear(self) -> tuple[str, list[Any]]:
        length = int(self._peers.broadcast(torch.zeros(1, dtype=torch.int64)))
        words = self._peers.broadcast(torch.zeros(length, dtype=torch.uint8))
        (name, forms) = json.loads(words.cpu().numpy().tobytes())
        if not any("shape" in form for form in forms):
            return name, [form["value"] for form in forms]

        def places() -> list[Any]:
            return [
                form["value"]
                if "value" in form
                else torch.from_numpy(np.zeros(form["shape"], form["dtype"]))
                for form in forms
            ]

        args = self._together("hear", places)
        for index, arg in enumerate(args):
            if isinstance(arg, torch.Tensor):
                args[index] = self._peers.broadcast(arg).cpu().numpy()
        return name, args

    # -- rows ------------------------------------------------------------------------

    def do_rows(self, part: int, places: Indices) -> Floats:
        """Rows of all ranks at these places, on the leader."""
        mine = self._parts[part]
        return self._peers.reduce(self._together("rows", lambda: mine.at(places)))

    def do_take(self, part: int, start: int, places: Indices) -> None:
        """Places from `start` on of a new part are those of rows of another."""

        def grow() -> None:
            (is_here, at) = self._parts[part].find(places)
            self._growing.append([start + np.flatnonzero(is_here), at[is_here]])

        self._attempt(grow)

    def do_taken(self, part: int, num_rows: int) -> int:
        """The number of the new part."""

        def take() -> _Part:
            nothing = np.empty(0, np.int64)
            (places, at) = (
                np.concatenate([nothing, *column])
                for column in (
                    zip(*self._growing, strict=True) if self._growing else ((),) * 2
                )
            )
            return _Part(take_rows(self._parts[part].rows, at), places, num_rows)

        self._parts.append(self._together("taken", take))
        self._growing = []
        return len(self._parts) - 1

    # -- mixtures ----------------------------------------------------------------------

    def do_weights(self, part: int, start: int, weights: Floats) -> None:
        """Weights of the rows at places from `start` on."""
        mine = self._parts[part]

        def keep() -> None:
            if start == 0:
                self._weights = np.zeros(len(mine.rows), weights.dtype)
            assert self._weights is not None
            (low, high) = np.searchsorted(mine.places, [start, start + len(weights)])
            self._weights[low:high] = weights[mine.places[low:high] - start]

        self._attempt(keep)

    def do_mixture(
        self,
        part: int,
        number: int,
        kept: list[int],
        noise_std: float,
        lost: float,
        weighs: bool,
    ) -> None:
        """A new mixture of a part, with the weights last told; only some are kept."""
        self._shards = {old: self._shards[old] for old in kept}
        mine = self._parts[part]
        weights = self._weights if weighs else None
        made = self._attempt(
            lambda: Shard(mine.rows, noise_std, weights, mine.num_rows, lost)
        )
        self._shards[number] = (mine, made)

    def do_own_and_others(self, mixture: int, points: Floats, own: Indices) -> Floats:
        """(2, m): the own center's term and the sum of all others; logs."""
        (part, shard) = self._shards[mixture]

        def find() -> Floats:
            assert shard is not None
            (is_here, at) = part.find(own)
            found = np.full((2, len(own)), -math.inf)
            here, elsewhere = np.flatnonzero(is_here), np.flatnonzero(~is_here)
            if shard.mixture is None:
                return found
            if len(here):
                sums = shard.mixture.log_own_and_others(points[here], at[here])
                found[:, here] = sums
                found[:, here] += shard.log_share
            if len(elsewhere):
                found[1, elsewhere] = shard.log_density(points[elsewhere]).cpu()
            return found

        return self._merged(find, (2, len(own)))

    def do_blocks(self, part: int, offsets: Indices, outer: Indices) -> None:
        """Blocks of a part, for `do_block_sums`."""
        places = self._parts[part].places

        def find() -> _Blocks:
            begins = [np.searchsorted(places, ends) for ends in (offsets, outer)]
            return _Blocks(offsets, outer, *begins)

        self._blocks = self._attempt(find)

    def do_block_sums(
        self, mixture: int, include_rest: bool, points: Floats, own: Indices
    ) -> Floats:
        """(4, m), or (2, m) without the rest: own, inner, outer and rest; logs."""
        (part, shard) = self._shards[mixture]
        blocks = self._blocks
        count = 4 if include_rest else 2

        def find() -> Floats:
            assert shard is not None
            assert blocks is not None
            found = np.full((4, len(own)), -math.inf)
            if shard.mixture is not None:
                _find_block_sums(found, part, shard, blocks, points, own, include_rest)
            return found[:count]

        return self._merged(find, (count, len(own)))

    def do_moments(self, mixture: int, points: Floats) -> Floats:
        """Posterior covariance of the center at points (m, d, d); of all ranks."""
        (part, shard) = self._shards[mixture]
        (m, d) = points.shape

        def find() -> Floats:
            assert shard is not None
            found = np.zeros((m, 1 + d + d * d))
            found[:, 0] = -math.inf
            if shard.mixture is not None:
                (log_density, mean, covariance) = _moments(part.rows, shard, points)
                found[:, 0] = log_density + shard.log_share
                found[:, 1 : 1 + d] = mean
                found[:, 1 + d :] = covariance.reshape(m, -1)
            return found

        mine = self._or_nan(find, (m, 1 + d + d * d))
        whole = self._merged(lambda: mine[:, 0].copy(), (m,))
        mean = mine[:, 1 : 1 + d]
        mean_of_all = self._summed(
            lambda: np.exp(mine[:, 0] - whole)[:, None] * mean, (m, d)
        )

        def of_own() -> Floats:
            # About the mean of all: nothing cancels.
            away = mean - mean_of_all
            covariance = mine[:, 1 + d :].reshape(m, d, d)
            covariance = covariance + away[:, :, None] * away[:, None, :]
            share = np.exp(mine[:, 0] - whole)
            return np.asarray(share[:, None, None] * covariance)

        return self._summed(of_own, (m, d, d))

    def _summed(self, find: Callable[[], Floats], shape: tuple[int, ...]) -> Floats:
        found = self._or_nan(find, shape)
        return self._peers.sum(torch.from_numpy(found)).cpu().numpy()

    def _merged(self, find: Callable[[], Floats], shape: tuple[int, ...]) -> Floats:
        found = self._or_nan(find, shape)
        merged = self._peers.log_sum_exp(torch.from_numpy(found).flatten())
        return merged.cpu().numpy().reshape(shape)

    def _or_nan(self, find: Callable[[], Floats], shape: tuple[int, ...]) -> Floats:
        found = self._attempt(find)
        return np.full(shape, math.nan) if found is None else found

    def _together(self, call: str, function: Callable[[], Any]) -> Any:
        """What it returns; raises on all where it, or one before, raised on one."""
        found = self._attempt(function)
        self._peers.agree(call, self._error or found, lambda _: [])
        return found

    def _attempt(self, function: Callable[[], Any]) -> Any:
        """What it returns; None, and the first error is kept, where it raises."""
        if self._error is not None:
            return None
        found = self._peers.attempt(function)
        if isinstance(found, Exception):
            self._error = found
            return None
        return found

    def do_raise(self) -> None:
        """Raises, on every rank, what went wrong on one."""
        self._peers.raise_together(self._error)

    # -- equal rows --------------------------------------------------------------------

    def do_has_duplicates(self, part: int, blocks: Indices) -> bool:
        """Whether two rows of all ranks have the same hash.

        Hashes are sent to the rank that looks after their kind, a part of each rank's.
        """
        (key, repeats) = self._together(
            "sorted keys", lambda: _sorted(self._keys(part, blocks)[0])
        )
        if self._any(repeats):
            return True
        size = self._peers.size

        def by_kind() -> list[Indices]:
            order = np.argsort(key % np.uint64(size), kind="stable")
            ends = np.searchsorted((key % np.uint64(size))[order], np.arange(size + 1))
            return np.split(key[order].view(np.int64), ends[1:-1])

        met = self._peers.redistribute(self._together("kinds", by_kind))
        return self._any(self._together("sorted kinds", lambda: _sorted(met))[1])

    def do_keys(self, part: int, blocks: Indices) -> list[Indices]:
        """On the leader place and two hashes of the rows of every rank, (n_r, 3)."""

        def find() -> Indices:
            keys = [key.view(np.int64) for key in self._keys(part, blocks)]
            return np.stack([self._parts[part].places, *keys], axis=1)

        return self._peers.collect(self._together("keys", find))

    def _keys(self, part: int, blocks: Indices) -> tuple[Keys, Keys]:
        mine = self._parts[part]
        (n, d) = mine.rows.shape
        keys: tuple[Keys, Keys] = (np.zeros(n, np.uint64), np.zeros(n, np.uint64))
        step = max(1, _NUMBERS_PER_MESSAGE // d)
        for start in range(0, n, step):
            rows = np.ascontiguousarray(mine.rows[start : start + step])
            of_block = np.zeros(len(rows), np.uint64)
            if len(blocks):
                place = mine.places[start : start + step]
                of_block = block_hash(np.searchsorted(blocks, place, side="right") - 1)
            keys[0][start : start + step] = row_hash(rows) + of_block
            keys[1][start : start + step] = row_hash(rows, _SECOND_SEED) + of_block
        return keys

    def _any(self, claim: bool) -> bool:
        return bool(self._peers.gather(torch.tensor([int(claim)])).any())


def _message(name: str, args: tuple[Any, ...]) -> tuple[bytes, list[NDArray[Any]]]:
    """What to do, in words, and the arrays that it is done with."""
    forms = [
        {"dtype": a.dtype.str, "shape": a.shape}
        if isinstance(a, np.ndarray)
        else {"value": a}
        for a in args
    ]
    arrays = [np.ascontiguousarray(a) for a in args if isinstance(a, np.ndarray)]
    return json.dumps([name, forms]).encode(), arrays


def _sorted(key: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """In order, and whether one is there twice."""
    key = np.sort(key)
    return key, bool((key[1:] == key[:-1]).any())


def _find_block_sums(
    found: Floats,
    part: _Part,
    shard: Shard,
    blocks: _Blocks,
    points: Floats,
    own: Indices,
    include_rest: bool,
) -> None:
    """This rank's part of `mixture_block_log_sums` at all queries.

    The kernel wants a center for every query. Where the own one is on another rank, one
    of its block stands in, or one of its outer block, or any: its parts then belong to
    what it stands for, and what is nearer to the query than that is empty here.
    """
    (is_here, at) = part.find(own)
    block = np.searchsorted(blocks.offsets, own, side="right") - 1
    outer = np.searchsorted(blocks.outer, own, side="right") - 1
    (begin, end) = (blocks.begins[block], blocks.begins[block + 1])
    (outer_begin, outer_end) = (
        blocks.outer_begins[outer],
        blocks.outer_begins[outer + 1],
    )
    (in_block, in_outer) = (begin < end, outer_begin < outer_end)
    stand_in = np.where(in_outer, outer_begin, 0)
    stand_in = np.where(in_block, begin, stand_in)
    stand_in = np.where(is_here, at, stand_in)
    asked = np.arange(len(own)) if include_rest else np.flatnonzero(in_block)
    if not len(asked):
        return
    sums = mixture_block_log_sums(
        np.ascontiguousarray(points[asked]),
        part.rows,
        shard.noise_std,
        stand_in[asked],
        np.unique(blocks.begins),  # without those that have no row here
        outer_offsets=np.unique(blocks.outer_begins),
        weights=shard.weights,
        include_rest=include_rest,
    )
    parts = [np.asarray(p, np.float64) + shard.log_share for p in sums]
    # How far from the query its stand-in is: 0 itself, 1 its block, 2 outer, 3 any.
    level = np.where(is_here, 0, np.where(in_block, 1, np.where(in_outer, 2, 3)))[asked]
    for index in range(4):
        # Of level k, everything up to part k is part k.
        below = np.logaddexp.reduce(parts[: index + 1], axis=0)
        of_part = np.where(level == index, below, parts[index])
        found[index, asked] = np.where(level > index, -math.inf, of_part)


def _moments(rows: Any, shard: Shard, points: Floats) -> tuple[Floats, Floats, Floats]:
    """`posterior_moments` of this rank's own mixture."""
    if not isinstance(rows, DeviceRows):
        moments = posterior_moments(
            points, rows, shard.noise_std, weights=shard.weights
        )
        return moments.log_density, moments.mean, moments.covariance
    on_device = mixture_of(rows, shard.noise_std, shard.weights)
    found = _device.checked_moments(on_device, _device.upload(points, rows.tensor), 1.0)
    (a, b, c) = (part.cpu().numpy() for part in found)
    return a, b, c


class ShardedRows(AbstractRows):
    """All ranks' rows, as the leader sees them."""

    def __init__(
        self,
        team: Team,
        part: int,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        largest: float,
    ) -> None:
        self._team = team
        self._part = part
        self._shape = shape
        self._dtype = dtype
        self.largest = largest
        self._blocks: Any = None  # that the ranks were told last, and of which mixture
        self._last: tuple[Any, ShardedMixture] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    def __getitem__(self, rows: Any) -> Floats:
        n = len(self)
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(n))
        places = np.asarray(rows, np.int64)
        found = np.empty((len(places), self._shape[1]), self._dtype)
        step = max(1, _NUMBERS_PER_MESSAGE // self._shape[1])
        for start in range(0, len(places), step):
            part = places[start : start + step]
            found[start : start + step] = self._team.lead("do_rows", self._part, part)
        return found

    def take(self, rows: NDArray[Any]) -> ShardedRows:
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        places = np.asarray(rows, np.int64)
        for start in range(0, len(places), _NUMBERS_PER_MESSAGE):
            part = places[start : start + _NUMBERS_PER_MESSAGE]
            self._team.lead("do_take", self._part, start, part)
        number = self._team.lead("do_taken", self._part, len(places))
        shape = (len(places), self._shape[1])
        return ShardedRows(self._team, number, shape, self._dtype, self.largest)

    def duplicates(
        self, blocks: Indices | None
    ) -> tuple[Indices, Indices, Indices] | None:
        ends = np.empty(0, np.int64) if blocks is None else np.asarray(blocks, np.int64)
        if not self._team.lead("do_has_duplicates", self._part, ends):
            return None
        keys = np.concatenate(self._team.lead("do_keys", self._part, ends))
        keys = keys[np.argsort(keys[:, 0])]
        merged = equal_keys(keys[:, 1].view(np.uint64))
        if merged is None:
            return None
        second = keys[:, 2]
        if not (second == second[merged.first[merged.center]]).all():
            return None  # two different rows of one hash: once in 2^64 pairs
        return merged.first, merged.counts, merged.center

    def mixture(
        self, noise_std: float, weights: Floats | None, max_lost_mass: float
    ) -> ShardedMixture:
        if weights is not None:
            step = _NUMBERS_PER_MESSAGE
            for start in range(0, len(self), step):
                part = weights[start : start + step]
                self._team.lead("do_weights", self._part, start, part)
        # A tree is as large as the rows: those that nobody asks any more go first.
        kept = sorted(mixture.number for mixture in self._team.mixtures)
        made = ShardedMixture(self._team, 1 + max(kept, default=-1))
        told = (made.number, kept, noise_std, max_lost_mass, weights is not None)
        self._team.lead("do_mixture", self._part, *told)
        return made

    def block_log_sums(
        self,
        points: Floats,
        noise_std: float,
        own: Indices,
        offsets: Indices,
        outer_offsets: Indices | None,
        weights: Floats | None,
        include_rest: bool,
    ) -> tuple[Floats, Floats, Floats, Floats]:
        outer = offsets if outer_offsets is None else outer_offsets
        told = (noise_std, offsets, outer, weights)
        if self._last is None or any(
            a is not b for a, b in zip(told, self._last[0], strict=True)
        ):
            mixture = self.mixture(noise_std, weights, 0.0)
            self._team.lead("do_blocks", self._part, offsets, outer)
            self._last = (told, mixture)
        number = self._last[1].number
        sums = self._team.lead("do_block_sums", number, include_rest, points, own)
        _raise_if_nan(self._team, sums)
        if include_rest:
            return sums[0], sums[1], sums[2], sums[3]
        nothing = np.full(len(points), -math.inf)
        return sums[0], sums[1], nothing, nothing

    def covariances(self, noise_std: float, weights: Floats | None) -> Floats:
        mixture = self.mixture(noise_std, weights, 0.0)
        (n, d) = self._shape
        found = np.empty((n, d, d))
        step = max(1, _NUMBERS_PER_MESSAGE // (4 * d * d))
        for start in range(0, n, step):
            points = self[start : start + step]
            part = self._team.lead("do_moments", mixture.number, points)
            _raise_if_nan(self._team, part)
            found[start : start + step] = part
        return found


class ShardedMixture:
    """What estimators ask of a `PreparedMixture`."""

    def __init__(self, team: Team, number: int) -> None:
        self._team = team
        self.number = number
        team.mixtures.add(self)

    def log_own_and_others(self, points: Floats, own: Indices) -> tuple[Floats, Floats]:
        """As that of `PreparedMixture`, in float64."""
        sums = self._team.lead("do_own_and_others", self.number, points, own)
        _raise_if_nan(self._team, sums)
        return sums[0], sums[1]


def _raise_if_nan(team: Team, values: Floats) -> None:
    if np.isnan(values).any():
        team.lead("do_raise")
