"""What ranks of torch.distributed say to each other: agreements and merged sums.

A partial sum travels as the logarithm of its LogSum pair, the pair (value, 1): kernels
return values, and an empty sum is -inf. Sums are merged in the order of the ranks, once
for each row, so that every rank has the same bits whatever the backend does.

The one rule: a rank never raises where others would wait for it. What is wrong on one
rank is told to all by `Peers.agree` or travels as NaN, and then all of them raise.
Importing this module imports torch.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from noisyflow._messages import AgreedError

Tensor = torch.Tensor

# One merge: 8 MiB to and from all ranks together, which bounds the memory for it.
_ROWS_PER_MERGE = 2**20
# Below, one collective that brings everything everywhere beats two that do not: 2 ranks
# of gloo, 10,000 rows: 0.4 ms against 0.6; a million rows: 26 ms against 16
# (bench/README.md, bench_distributed.py).
_MOST_GATHERED = 2**15
_KINDS: tuple[type[Exception], ...] = (AgreedError, TypeError, ValueError)
_MESSAGE_BYTES = 2048


class Elsewhere(Exception):
    """Something is wrong, and another rank knows what."""


class Peers:
    """The ranks of a process group, and this one among them."""

    def __init__(self, group: Any) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "torch.distributed is not initialised: run the script under torchrun"
                " and call torch.distributed.init_process_group first"
            )
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError(
                "group must hold this process, got one of other ranks; only members of"
                " the group may call"
            )
        # NCCL moves nothing but memory of a GPU, and gloo works on the host.
        is_on_gpu = "nccl" in str(dist.get_backend(group))
        self.device = torch.device("cuda" if is_on_gpu else "cpu")

    # -- collectives -----------------------------------------------------------------

    def gather(self, values: Tensor) -> Tensor:
        """(ranks, *shape): the values of every rank, which share a shape."""
        values = values.to(self.device).contiguous()
        if self.size == 1:
            return values[None]
        out = values.new_empty((self.size, *values.shape))
        dist.all_gather(list(out.unbind(0)), values, group=self.group)
        return out

    def exchange(self, values: Tensor) -> Tensor:
        """Row r of (ranks, k) goes to rank r; row r of the result is from rank r."""
        values = values.to(self.device).contiguous()
        out = torch.empty_like(values)
        dist.all_to_all_single(out, values, group=self.group)
        return out

    def broadcast(self, values: Tensor) -> Tensor:
        """The first rank's values; the others' say shape and dtype."""
        values = values.to(self.device).contiguous()
        if self.size > 1:
            dist.broadcast(values, group_src=0, group=self.group)
        return values

    def collect(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """On the first rank the arrays of all, alike but in length; else nothing."""
        lengths = self.gather(torch.tensor([len(array)])).flatten().tolist()
        values = torch.from_numpy(array)

        def places() -> tuple[Tensor, list[Tensor] | None]:
            shape = (max(lengths), *values.shape[1:])
            padded = values.new_zeros(shape).to(self.device)
            padded[: len(values)] = values
            if self.rank > 0:
                return padded, None
            return padded, [torch.empty_like(padded) for _ in lengths]

        (padded, rows) = self.together("collect", places)
        if self.size > 1:
            dist.gather(padded, rows, group_dst=0, group=self.group)
        elif rows is not None:
            rows[0] = padded
        if rows is None:
            return []
        pairs = zip(rows, lengths, strict=True)
        return [row[:length].cpu().numpy() for row, length in pairs]

    def reduce(self, array: NDArray[Any]) -> NDArray[Any]:
        """The sum of all ranks' arrays, on the first; elsewhere it means nothing.

        Exact where all but one are zero.
        """
        values = torch.from_numpy(array).to(self.device)
        if self.size > 1:
            dist.reduce(values, group_dst=0, group=self.group)
        return values.cpu().numpy()

    def redistribute(self, parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Part r goes to rank r; what came from all ranks, one after another."""
        counts = torch.tensor([[len(part)] for part in parts])
        expected = self.exchange(counts).flatten().tolist()

        def places() -> tuple[Tensor, Tensor]:
            values = torch.from_numpy(np.concatenate(parts)).to(self.device)
            return values, values.new_empty(sum(expected))

        (values, out) = self.together("redistribute", places)
        sent = [len(part) for part in parts]
        dist.all_to_all_single(out, values, expected, sent, group=self.group)
        return np.asarray(out.cpu().numpy(), np.int64)

    def gather_arrays(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """An array of every rank, of any shape and dtype but objects."""

        def data() -> bytes:
            file = io.BytesIO()
            np.save(file, array, allow_pickle=False)
            return file.getvalue()

        found = self.gather_bytes(self.together("gather arrays", data))
        return [np.load(io.BytesIO(data), allow_pickle=False) for data in found]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of every rank."""
        lengths = self.gather(torch.tensor([len(data)])).flatten().tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(data)] = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        rows = self.gather(padded).cpu().numpy()
        return [
            row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)
        ]

    # -- sums ------------------------------------------------------------------------

    def log_sum_exp(self, values: Tensor) -> Tensor:
        """log of the sum over ranks of exp(values), (k,) float64, on every rank."""
        return self._merged(values, _log_sum_exp)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks of float64 values of any shape, on every rank."""
        return self._merged(values.flatten(), _sum).reshape(values.shape)

    def log_sum_exp_of_own(self, values: Tensor) -> Tensor:
        """As `log_sum_exp`, (ranks, k): to each rank the sums of its own row, (k,)."""
        return _log_sum_exp(self.exchange(values))

    def sum_of_own(self, values: Tensor) -> Tensor:
        """As `sum`, (ranks, ...): to each rank the sum of its own part."""
        return _sum(self.exchange(values.flatten(1))).reshape(values.shape[1:])

    def _merged(self, values: Tensor, combine: Callable[[Tensor], Tensor]) -> Tensor:
        parts = [self._merge(v, combine) for v in torch.split(values, _ROWS_PER_MERGE)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _merge(self, values: Tensor, combine: Callable[[Tensor], Tensor]) -> Tensor:
        if self.size * len(values) <= _MOST_GATHERED:
            return combine(self.gather(values))
        # Each rank merges a part of the rows, and then all have it.
        step = -(-len(values) // self.size)
        padded = values.new_zeros(self.size * step)
        padded[: len(values)] = values
        merged = combine(self.exchange(padded.reshape(self.size, step)))
        return self.gather(merged).flatten()[: len(values)]

    # -- agreements ------------------------------------------------------------------

    def attempt(self, function: Callable[[], Any]) -> Any:
        """What a local function returns, or the error that it raises."""
        try:
            return function()
        except Exception as error:
            return error

    def agree(
        self, call: str, outcome: Any, facts: Callable[[Any], Sequence[float]]
    ) -> NDArray[np.float64]:
        """What every rank found, (ranks, facts); raises on all if one has an error.

        call: what all ranks do here; outcome: of `attempt`; facts: numbers of it.
        """
        code = float(zlib.crc32(call.encode()))
        numbers = outcome
        if not isinstance(outcome, Exception):
            numbers = self.attempt(lambda: list(facts(outcome)))
        has_failed = isinstance(numbers, Exception)
        header = [0.0, code] if has_failed else [1.0, code, *numbers]
        # Of one length whether it failed or not, and whatever others have called.
        row = torch.zeros(_NUM_FACTS, dtype=torch.float64)
        row[: len(header)] = torch.tensor(header, dtype=torch.float64)
        found = self.gather(row).cpu().numpy()
        others = np.flatnonzero(found[:, 1] != code)
        if len(others):
            raise RuntimeError(
                f"every rank must call the same functions in the same order, got {call}"
                f" on rank {self.rank} and another on rank {others[0]}"
            )
        if (found[:, 0] == 0).any():
            self.raise_together(numbers if has_failed else None)
        return np.asarray(found[:, 2 : len(header)], np.float64)

    def together(self, call: str, function: Callable[[], Any]) -> Any:
        """What a local function returns; raises on all if it raises on one."""
        outcome = self.attempt(function)
        self.agree(call, outcome, lambda _: [])
        return outcome

    def raise_together(self, error: Exception | None) -> None:
        """Raises, on every rank, the first error that one has; called by all.

        None, or `Elsewhere`, where it is not this rank's.
        """
        words = b""
        if error is not None and not isinstance(error, Elsewhere):
            kind = next(
                (i for i, k in enumerate(_KINDS[1:], 1) if isinstance(error, k)), 0
            )
            name = "" if kind else f"{type(error).__name__}: "
            words = bytes([kind]) + f"{name}{error}".encode()[:_MESSAGE_BYTES]
        for rank, found in enumerate(self.gather_bytes(words)):
            if found:
                text = found[1:].decode(errors="replace")
                message = f"on rank {rank} of {self.size}: {text}"
                raise _KINDS[found[0]](message) from error
        raise AgreedError("a rank failed, and none says why")


# Numbers in an agreement: the 2 of its header, and 14 of `distributed.entropy`, which
# has the most, with room; 192 bytes, and a few cost as much as one.
_NUM_FACTS = 24


def _log_sum_exp(values: Tensor) -> Tensor:
    """Over the first axis, in order; -inf of nothing but -inf, NaN if one is NaN."""
    top = values.amax(dim=0)
    shift = torch.where(top == -math.inf, torch.zeros_like(top), top)
    total = torch.zeros_like(top)
    for row in values:
        total += torch.exp(row - shift)
    return shift + torch.log(total)


def _sum(values: Tensor) -> Tensor:
    """Over the first axis, in order."""
    total = values[0].clone()
    for row in values[1:]:
        total += row
    return total
