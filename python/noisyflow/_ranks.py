"""What a process knows of the others that it works with, and how they share work.

A rank is one of the processes that `torchrun` or SLURM started for one piece of work.
They talk through torch's store: bytes under names, kept by one of them. `joined` brings
them together and sees to it that they end together (`_heartbeat.py`). Without other
ranks everything here works at no cost, and torch is not imported.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from noisyflow import estimate, runtime
from noisyflow._heartbeat import PULSE, Interrupted, Pulse, Store
from noisyflow._messages import AgreedError, decode, encode
from noisyflow._rank_group import (
    Failure,
    Group,
    RankError,
    check_same,
    whole_number,
)
from noisyflow._same_command import Fact

__all__ = [
    "PULSE",
    "AgreedError",
    "Failure",
    "Helpers",
    "Pulse",
    "RankError",
    "Ranks",
    "Released",
    "Spread",
    "current",
    "is_launched",
    "joined",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

# torch's store takes 8 MiB at once.
_PART_BYTES = 2**22
_LONGEST_SLEEP = 0.05
_EXIT = "exit"
_MEETING_PLACE = ["MASTER_ADDR", "MASTER_PORT"]


def is_launched() -> bool:
    """Whether this process is one of several ranks, as torchrun starts them.

    That is where RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set and WORLD_SIZE
    is more than 1.

    Raises
    ------
    ValueError
        If RANK or WORLD_SIZE is not what it must be; or if some are set so that several
        ranks are meant, and one is missing: each rank would work alone. They are meant
        where WORLD_SIZE is more than 1 and RANK, or both others, are set; and where
        only WORLD_SIZE is missing.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        _check_alone(missing)
        return False
    (rank, size) = (whole_number(name) for name in ("RANK", "WORLD_SIZE"))
    if not rank < size:
        raise ValueError(f"RANK must be below WORLD_SIZE = {size}, got {rank}")
    return size > 1


def _check_alone(missing: Sequence[str]) -> None:
    """Raises ValueError where several ranks are meant, but for what is missing."""
    if missing == ["WORLD_SIZE"]:
        given = "RANK, MASTER_ADDR and MASTER_PORT are set"
    elif missing in (["RANK"], ["MASTER_ADDR"], ["MASTER_PORT"], _MEETING_PLACE):
        size = whole_number("WORLD_SIZE")
        if size <= 1:
            return
        given = f"WORLD_SIZE = {size} is set"
    else:
        return
    verb = "is" if len(missing) == 1 else "are"
    raise ValueError(
        f"{given} but {' and '.join(missing)} {verb} not; several ranks need RANK, "
        "WORLD_SIZE, MASTER_ADDR and MASTER_PORT, one process alone needs none"
    )


def current() -> Ranks:
    """The ranks that this process has joined; itself alone where it has not."""
    return _current


@contextlib.contextmanager
def joined(
    device: str = "cpu",
    *,
    tell: Callable[[str], None] | None = None,
    pulse: Pulse | None = None,
    same: Sequence[Fact] = (),
) -> Iterator[Ranks]:
    """Joins the other ranks, and torch's default process group, until the block ends.

    Parameters
    ----------
    device : str
        Where tensors of collectives may be besides the CPU: cpu, cuda or cuda:N. With
        cuda the group has NCCL beside gloo, and the current GPU is the one whose number
        is LOCAL_RANK.
    tell : callable, optional
        `tell(message)` is called on one rank, the first where it lives, before an error
        is raised because ranks end.
    pulse : Pulse, optional
        `PULSE` by default.
    same : sequence of Fact, optional
        What must be the same on all ranks; else all end, with exit code 2.

    Yields
    ------
    Ranks
        Itself alone, without torch and without a group, where `is_launched()` is false.

    Raises
    ------
    RankError
        After the block, on every rank, where a rank failed, died or did not answer.
        Where this rank failed, its own exception, but for `Failure`, passes unchanged.
    ValueError
        If not called on the main thread, or if joined already.

    Notes
    -----
    An exception leaves the block on the others within `seconds_between_beats`, however
    long they compute, as soon as Python code runs; where that is not within
    `seconds_of_grace`, the process is ended. No `except Exception` catches it within
    the block. A rank that is killed or stopped is missed after `seconds_until_dead`, or
    at once where it held the store. The others end with an error that names it.

    Kernels use no more threads than this rank's share of the CPUs that it may run on,
    unless NOISYFLOW_NUM_THREADS says otherwise; torch uses no more either where
    OMP_NUM_THREADS is not set.
    """
    global _current
    if not is_launched():
        yield current()
        return
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("ranks must be joined on the main thread")
    if _current.size > 1:
        raise ValueError("ranks are joined already")
    group = Group(device, PULSE if pulse is None else pulse, tell)
    threads = runtime._chosen_num_threads()
    try:
        try:
            _current = Ranks(group.rank, group.size, group.join(same))
            with contextlib.suppress(Released):
                yield _current
            group.leave()
        except BaseException as error:
            group.end(error)
    except Interrupted as error:  # while an error was on its way to be dealt with
        group.end(error)
    finally:
        _current = Ranks()
        runtime.set_num_threads(threads)


class Released(BaseException):
    """Ends the block of `joined` where all but the first rank have nothing to do."""


class Ranks:
    """The ranks that work together; one alone where no store is given.

    Attributes
    ----------
    rank, size : int
        This one's number, from 0, and how many there are.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, store: Store | None = None
    ) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._num_calls = 0
        self._unread: list[str] = []

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that owns files and prints."""
        return self.rank == 0

    def spread(
        self,
        items: Sequence[Item],
        compute: Callable[[Item], Result],
        *,
        assignment: Literal["dynamic", "static"] = "dynamic",
        everywhere: bool = False,
        received: Callable[[int, Result], None] | None = None,
        is_stopped: Callable[[], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Result]:
        """Results of all items, each computed by one rank; the others wait at the end.

        Parameters
        ----------
        items : sequence
            The same on every rank.
        compute : callable
            `compute(item)` may depend on nothing but the item; it gives numbers, words,
            arrays, and lists, tuples and dicts (of string keys) of these.
        assignment : {"dynamic", "static"}
            Whoever is free takes the next item; or rank r takes r, r + size, ...
        everywhere : bool
            Whether all ranks get the results, or the first alone and others an empty
            list.
        received : callable, optional
            `received(index, result)` on the first rank, in the order of the items, as
            soon as all before are there and the first rank is not computing.
        is_stopped : callable, optional
            On the first rank, asked between items: whether no more shall be begun. The
            results are then those of the items begun, and these come first in `items`.
        progress : callable, optional
            `progress(index)` on the first rank before it computes an item.

        Returns
        -------
        list
            In the order of the items, whatever the number of ranks.
        """
        work = Spread(self, len(items), assignment)
        return work.run(
            lambda index: compute(items[index]),
            everywhere=everywhere,
            received=received,
            is_stopped=is_stopped,
            progress=progress,
        )

    def share(self, value: Any = None) -> Any:
        """What the first rank gives, on every rank.

        Parameters
        ----------
        value : numbers, words, arrays, and lists, tuples and dicts of these
            Of the first rank; not looked at on the others.
        """
        if self._store is None:
            return value
        key = self._key("share")
        if not self.is_first:
            value = decode(self.fetch(key))
            self._store.add(f"{key}/read", 1)
            return value
        for old in list(self._unread):
            if self._store.add(f"{old}/read", 0) == self.size - 1:
                self.drop(old)
                self._unread.remove(old)
        self.post(key, encode(value))
        self._unread.append(key)
        return value

    def share_exit(self, code: int) -> int:
        """The first rank's exit code, on every rank, by which its work is done.

        The name is its own: a rank that is elsewhere shall not take the code for what
        it waits for, and does not wait on.
        """
        if self._store is None:
            return code
        if not self.is_first:
            return int(decode(self.fetch(_EXIT)))
        self.post(_EXIT, encode(code))
        return code

    def check_same(self, facts: Sequence[Fact]) -> None:
        """Compares what must be the same on all ranks.

        Raises
        ------
        Failure
            On every rank, where one differs from the first.
        """
        if self._store is None:
            return
        key = self._key("same")
        self.post(f"{key}/{self.rank}", encode([list(fact) for fact in facts]))
        everyone = [decode(self.fetch(f"{key}/{rank}")) for rank in range(self.size)]
        check_same([[Fact(*fact) for fact in of_rank] for of_rank in everyone])

    def barrier(self) -> None:
        """Waits until all ranks are here."""
        if self._store is None:
            return
        key = self._key("barrier")
        if self._store.add(key, 1) == self.size:
            self._store.set(f"{key}/all", "")
        self.wait_for(f"{key}/all")

    def release(self) -> None:
        """Lets the first rank go on alone: on the others, ends the block of `joined`.

        Raises
        ------
        Released
            On all but the first rank.
        """
        if not self.is_first:
            raise Released

    # -- the store -----------------------------------------------------------

    def post(self, key: str, data: bytes) -> None:
        """Puts bytes under a name: parts first, so that a reader sees all or nothing"""
        assert self._store is not None
        parts = range(0, len(data), _PART_BYTES)
        for number, start in enumerate(parts):
            self._store.set(f"{key}/{number}", data[start : start + _PART_BYTES])
        self._store.set(key, str(len(parts)))

    def fetch(self, key: str) -> bytes:
        """The bytes under a name, waited for."""
        assert self._store is not None
        self.wait_for(key)
        return b"".join(
            self._store.get(f"{key}/{number}")
            for number in range(int(self._store.get(key)))
        )

    def drop(self, key: str) -> None:
        """Forgets the bytes under a name."""
        assert self._store is not None
        for number in range(int(self._store.get(key))):
            self._store.delete_key(f"{key}/{number}")
        self._store.delete_key(key)

    def is_posted(self, key: str) -> bool:
        """Whether there are bytes under a name."""
        assert self._store is not None
        return self._store.check([key])

    def wait_for(self, key: str) -> None:
        """Waits for a name. Not in torch: Python must see that all ranks end."""
        sleep = 0.001
        while not self.is_posted(key):
            # What the first gives comes before its exit code: looked for once more.
            if self.is_posted(_EXIT) and not self.is_posted(key):
                raise RuntimeError(
                    f"rank 0 has come to its end while rank {self.rank} waited for "
                    f"{key!r}; all ranks must do the same calls"
                )
            time.sleep(sleep)
            sleep = min(1.5 * sleep, _LONGEST_SLEEP)

    def count(self, key: str, amount: int) -> int:
        """Adds to a number that all ranks share, and returns what it is then."""
        assert self._store is not None
        return self._store.add(key, amount)

    def _key(self, kind: str) -> str:
        """A name for the next call of this kind, the same on every rank."""
        self._num_calls += 1
        return f"{self._num_calls}/{kind}"


_current = Ranks()


class Spread:
    """Items that ranks take, one by one, and their results: `Ranks.spread` in steps.

    Parameters
    ----------
    ranks : Ranks
        All of them make the same `Spread`.
    num_items : int
    assignment : {"dynamic", "static"}
        As for `Ranks.spread`.

    Notes
    -----
    Whoever takes an item computes it. So `compute` may wait for the `result` of any
    item before its own where the assignment is dynamic: a rank has begun it.
    """

    def __init__(
        self,
        ranks: Ranks,
        num_items: int,
        assignment: Literal["dynamic", "static"] = "dynamic",
    ) -> None:
        if assignment not in ("dynamic", "static"):
            raise ValueError(
                f'assignment must be "dynamic" or "static", got {assignment!r}'
            )
        self._ranks = ranks
        self._is_static = assignment == "static"
        self._own: dict[int, Any] = {}
        self._next = ranks.rank
        self._is_stopped = False
        self._num_begun = num_items
        self._key = ranks._key("spread")

    def run(
        self,
        compute: Callable[[int], Any],
        *,
        everywhere: bool = False,
        received: Callable[[int, Any], None] | None = None,
        is_stopped: Callable[[], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Any]:
        """As `Ranks.spread`; `compute(index)` is given the number of an item."""
        if is_stopped is not None and self._is_static:
            raise ValueError('is_stopped needs assignment="dynamic"')
        is_first = self._ranks.is_first
        found: list[Any] = []

        def shall_stop() -> bool:
            return is_first and is_stopped is not None and is_stopped()

        def collect(*, waits: bool) -> None:
            while len(found) < self._num_begun and (waits or self._has(len(found))):
                found.append(self.result(len(found)))
                if is_first and received is not None:
                    received(len(found) - 1, found[-1])
                # Others may bring results faster than they are received here.
                if not waits and shall_stop():
                    return

        while True:
            if shall_stop():
                self._stop()
            index = self._take()
            if index is None:
                break
            if is_first and progress is not None:
                progress(index)
            self._compute(compute, index)
            if is_first:
                collect(waits=False)
        if is_first:
            collect(waits=True)
        elif everywhere:
            self._num_begun = int(self._ranks.fetch(f"{self._key}/all"))
            collect(waits=True)
        self._finish(everywhere)
        return found

    def result(self, index: int) -> Any:
        """The result of an item that some rank took, waited for."""
        if index in self._own:
            return self._own[index]
        return _result(self._ranks.fetch(f"{self._key}/{index}"))

    def _take(self) -> int | None:
        """The next item for this rank; None where none is left."""
        if self._is_stopped:
            return None
        if self._is_static or self._ranks.size == 1:
            (index, self._next) = (self._next, self._next + self._ranks.size)
        else:
            index = self._ranks.count(f"{self._key}/taken", 1) - 1
        return index if index < self._num_begun else None

    def _stop(self) -> None:
        """Lets no rank take another item."""
        if self._is_stopped:
            return
        self._is_stopped = True
        begun = self._next
        if self._ranks.size > 1:
            many = self._num_begun
            begun = self._ranks.count(f"{self._key}/taken", many) - many
        self._num_begun = min(begun, self._num_begun)

    def _compute(self, compute: Callable[[int], Any], index: int) -> None:
        """Keeps the result of an item, for all ranks."""
        if self._ranks.is_first:
            self._own[index] = compute(index)
            if self._ranks.size > 1:
                self._ranks.post(f"{self._key}/{index}", _message(self._own[index]))
            return
        (self._own[index], message) = _noted(compute, index)
        self._ranks.post(f"{self._key}/{index}", message)

    def _has(self, index: int) -> bool:
        return index in self._own or (
            self._ranks.size > 1 and self._ranks.is_posted(f"{self._key}/{index}")
        )

    def _finish(self, everywhere: bool) -> None:
        """Waits until the first rank has all results, or all ranks have."""
        if self._ranks.size == 1:
            return
        if self._ranks.is_first:
            self._ranks.post(f"{self._key}/all", str(self._num_begun).encode())
        self._ranks.wait_for(f"{self._key}/all")
        if everywhere:
            self._ranks.barrier()
        if self._ranks.is_first:
            for index in range(self._num_begun):
                self._ranks.drop(f"{self._key}/{index}")


class Helpers:
    """The other ranks, doing what the first sends them while it does work of its own.

    Parameters
    ----------
    ranks : Ranks
        All of them make the same `Helpers`; one alone has none.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._key = ranks._key("helpers")
        self._num_sent = [0] * ranks.size
        self._busy: dict[int, int] = {}  # tag of the task by rank

    @property
    def is_one_free(self) -> bool:
        """Whether some helper has nothing to do."""
        return len(self._busy) < self._ranks.size - 1

    def send(self, tag: int, task: Any) -> None:
        """Has a free helper compute a task; `tag` comes back with its result."""
        rank = next(r for r in range(1, self._ranks.size) if r not in self._busy)
        self._busy[rank] = tag
        self._ranks.post(f"{self._key}/{rank}/{self._num_sent[rank]}", encode([task]))

    def results(self, *, waits: bool) -> dict[int, Any]:
        """What is done by now, by its tag; or all, waited for."""
        found = {}
        for rank, tag in list(self._busy.items()):
            key = f"{self._key}/{rank}/{self._num_sent[rank]}/done"
            if waits or self._ranks.is_posted(key):
                found[tag] = _result(self._ranks.fetch(key))
                self._ranks.drop(key)
                self._num_sent[rank] += 1
                del self._busy[rank]
        return found

    def dismiss(self) -> None:
        """Ends `serve` on all helpers, which are free."""
        for rank in range(1, self._ranks.size):
            self._ranks.post(f"{self._key}/{rank}/{self._num_sent[rank]}", encode([]))

    def serve(self, compute: Callable[[Any], Any]) -> None:
        """On a helper: computes what it is sent until it is dismissed."""
        for number in itertools.count():
            key = f"{self._key}/{self._ranks.rank}/{number}"
            tasks = decode(self._ranks.fetch(key))
            self._ranks.drop(key)
            if not tasks:
                return
            (_, message) = _noted(compute, tasks[0])
            self._ranks.post(f"{key}/done", message)


def _noted(compute: Callable[[Any], Any], item: Any) -> tuple[Any, bytes]:
    """A result, and with it as a message what was warned of: the first rank says it."""
    with warnings.catch_warnings(record=True) as caught:
        result = compute(item)
    return result, _message(result, caught)


def _message(result: Any, caught: Sequence[warnings.WarningMessage] = ()) -> bytes:
    said = [[warning.category.__name__, str(warning.message)] for warning in caught]
    return encode({"result": result, "warnings": said})


def _result(message: bytes) -> Any:
    """The result in a message; warns of what was warned of."""
    found = decode(message)
    for name, text in found["warnings"]:
        kind = getattr(estimate, name, None) or getattr(builtins, name, None)
        if not (isinstance(kind, type) and issubclass(kind, Warning)):
            kind = UserWarning
        warnings.warn(text, kind, stacklevel=4)
    return found["result"]
