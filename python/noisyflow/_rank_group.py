"""How a process joins the other ranks, and how it leaves them, in order or not."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

from noisyflow import _machine, runtime
from noisyflow._heartbeat import (
    End,
    Heart,
    Interrupted,
    Pulse,
    Store,
    first_line,
)
from noisyflow._same_command import Fact, difference

# Collectives wait this long; it is the heartbeat that tells who is gone.
_COLLECTIVE_SECONDS = 7 * 24 * 3600
_SECONDS_BETWEEN_LOOKS = 0.05
# How often this process has joined others: each time has names of its own in the store.
_joinings = itertools.count()


class RankError(RuntimeError):
    """Another rank failed, died or did not answer; or this one, while others waited.

    Attributes
    ----------
    rank : int
        Which.
    code : int
        With what this process should exit.
    is_told : bool
        Whether one of the ranks has told it by the `tell` of `joined`.
    """

    def __init__(self, message: str, rank: int, code: int = 1) -> None:
        super().__init__(message)
        self.rank = rank
        self.code = code
        self.is_told = False


class Failure(Exception):
    """A failure that all ranks share: what to tell, and the exit code.

    is_of_all: found by all ranks alike, so that it is not told as the one's or other's.
    """

    def __init__(self, message: str, code: int, *, is_of_all: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.is_of_all = is_of_all


class Group:
    """This process among the others, from joining to leaving."""

    def __init__(
        self, device: str, pulse: Pulse, tell: Callable[[str], None] | None
    ) -> None:
        self._device = device
        self._pulse = pulse
        self._tell = tell
        self.rank, self.size = (whole_number(name) for name in ("RANK", "WORLD_SIZE"))
        self._store: Store | None = None
        self._heart: Heart | None = None
        self._is_leaving = False

    def join(self, same: Sequence[Fact] = ()) -> Store:
        """Waits for all ranks and makes the group, if `same` is the same on all."""
        # Lost connections are told in one line here, not with a trace by torch.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        try:
            torch: Any = importlib.import_module("torch")
            dist: Any = importlib.import_module("torch.distributed")
        except ModuleNotFoundError:
            raise RankError(
                "several ranks need torch: pip install 'noisyflow[train]'",
                *(self.rank, 2),
            ) from None
        if not dist.is_available():
            raise RankError(
                "this torch was built without torch.distributed", self.rank, 2
            )
        if dist.is_initialized():
            raise RankError(
                "torch's default process group exists already", self.rank, 2
            )
        backend = "gloo"
        if self._device.startswith("cuda"):
            backend = "cpu:gloo,cuda:nccl"
            if torch.cuda.is_available() and self._device == "cuda":
                local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
                number = int(local) if local else self.rank
                torch.cuda.set_device(number % torch.cuda.device_count())
        (host, port) = (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
        is_kept_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        try:
            whole = dist.TCPStore(
                *(host, int(port), self.size),
                self.rank == 0 and not is_kept_by_torchrun,
                timeout=timedelta(seconds=self._pulse.seconds_to_join),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except (RuntimeError, ValueError) as error:
            raise RankError(
                f"rank {self.rank} of {self.size} cannot reach the others at "
                f"{host}:{port} (MASTER_ADDR, MASTER_PORT): {first_line(error)}",
                self.rank,
            ) from error
        store: Store = dist.PrefixStore(f"noisyflow/{next(_joinings)}", whole)
        self._store = store
        self._wait_for_all("beat", "0")
        self._heart = Heart(self.rank, self.size, store.clone(), self._pulse)
        self._heart.start()
        everyone = self._wait_for_all("same", json.dumps(same))
        check_same([[Fact(*fact) for fact in json.loads(facts)] for facts in everyone])
        self._share_threads(torch)
        dist.init_process_group(
            backend,
            store=store.clone(),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=_COLLECTIVE_SECONDS),
        )
        return store

    def leave(self) -> None:
        """Goes when all have come to the end; the first, which has the store, last."""
        assert self._store is not None
        assert self._heart is not None
        import torch.distributed as dist

        num_left = self._count_leaving()
        while self.rank == 0 and num_left < self.size:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            num_left = self._store.add("left", 0)
        # One that failed has left too, and has said before that all end.
        if self.rank == 0 and self._store.check(["end"]):
            self._heart.wait_for_end()
        self._heart.stop()
        if self._heart.end is not None:
            raise Interrupted
        dist.destroy_process_group()

    def end(self, error: BaseException) -> NoReturn:
        """Ends all ranks after an exception in the block; this one with an error."""
        heart, store = self._heart, self._store
        if heart is None or store is None:  # nobody waits for this rank
            raise error
        heart.is_deaf = True
        if isinstance(error, Interrupted) or _is_of_connection(error):
            end = heart.wait_for_end()
            if end is None:
                text = f"rank {self.rank} lost its connection: {first_line(error)}"
                end = self._post(heart, End(self.rank, text, 1, 0))
        else:
            (text, code) = self._told(error)
            end = self._post(heart, End(self.rank, text, code, 0))
        _close_connections(error)
        is_told = self._tell_all(end)
        heart.stop()
        if end.rank == self.rank and not isinstance(error, Failure | Interrupted):
            raise error
        found = RankError(end.message, end.rank, end.code)
        found.is_told = is_told
        raise found from (None if isinstance(error, Failure | Interrupted) else error)

    def _post(self, heart: Heart, end: End) -> End:
        """Makes it the end of all, unless they have one already."""
        return heart.post(end) or end

    def _told(self, error: BaseException) -> tuple[str, int]:
        """What the others are told of this rank's error, and with what code to exit."""
        if isinstance(error, Failure):
            is_own = self.rank and not error.is_of_all
            where = f"rank {self.rank}: " if is_own else ""
            return where + str(error), error.code
        if isinstance(error, KeyboardInterrupt):
            return f"rank {self.rank} was stopped by Ctrl-C", 130
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else 1
            return f"rank {self.rank} ended with exit code {code}", code or 1
        what = type(error).__name__
        return f"rank {self.rank} failed: {what}: {first_line(error)}", 1

    def _tell_all(self, end: End) -> bool:
        """Tells why, or waits until the rank that tells it has; whether anyone did."""
        assert self._store is not None
        assert self._heart is not None
        is_teller = end.teller == self.rank
        if is_teller:
            self._tell_once(end)
        if self._heart.has_store:
            with contextlib.suppress(RuntimeError):  # the store may go at any moment
                self._take_leave(is_teller)
                # One that ends too soon may have torchrun end the one that would tell.
                if not is_teller and not self._waited_for(
                    lambda store: store.check(["told"])
                ):
                    is_teller = end.rank == self.rank
                    if is_teller:
                        self._tell_once(end)
                if self.rank == 0:
                    num_ranks = self.size - (end.rank != self.rank and end.is_silent)
                    self._waited_for(lambda store: store.add("left", 0) >= num_ranks)
        return self._tell is not None

    def _tell_once(self, end: End) -> None:
        assert self._heart is not None
        if self._tell is not None and not self._heart.is_told:
            self._tell(end.message)
        self._heart.is_told = True

    def _take_leave(self, is_teller: bool) -> None:
        assert self._store is not None
        if is_teller:
            self._store.set("told", "")
        self._count_leaving()

    def _count_leaving(self) -> int:
        """How many leave, with this one: once, though an end may meet it leaving."""
        assert self._store is not None
        (amount, self._is_leaving) = (0 if self._is_leaving else 1, True)
        return self._store.add("left", amount)

    def _waited_for(self, is_so: Callable[[Store], bool]) -> bool:
        """Whether something comes true in the store within half of the grace."""
        assert self._store is not None
        until = time.monotonic() + self._pulse.seconds_of_grace / 2
        while not is_so(self._store):
            if time.monotonic() > until:
                return False
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return True

    def _wait_for_all(self, kind: str, value: str) -> list[str]:
        """What every rank has put in; RankError names those that put nothing."""
        assert self._store is not None
        self._store.set(f"{kind}/{self.rank}", value)
        keys = [f"{kind}/{rank}" for rank in range(self.size)]
        until = time.monotonic() + self._pulse.seconds_to_join
        while not self._store.check(keys):
            if time.monotonic() > until:
                missing = [
                    rank
                    for rank, key in enumerate(keys)
                    if not self._store.check([key])
                ]
                raise RankError(
                    f"rank {', '.join(map(str, missing))} of {self.size} did not come "
                    f"within {self._pulse.seconds_to_join:g} s; every rank needs the "
                    "same MASTER_ADDR, MASTER_PORT and WORLD_SIZE, and a RANK of its "
                    "own",
                    missing[0],
                )
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return [self._store.get(key).decode() for key in keys]

    def _share_threads(self, torch: Any) -> None:
        """No more threads than this rank's share of the CPUs that it may run on."""
        cpus = _machine.cpus()
        here = {"host": socket.gethostname(), "cpus": cpus}
        everyone = map(json.loads, self._wait_for_all("host", json.dumps(here)))
        num_sharing = sum(
            other["host"] == here["host"] and bool({*other["cpus"]} & {*cpus})
            for other in everyone
        )
        share = max(1, _machine.num_cpus() // num_sharing)
        if not os.environ.get("NOISYFLOW_NUM_THREADS"):
            runtime.set_num_threads(share)
        if not os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(share)


def check_same(everyone: Sequence[Sequence[Fact]]) -> None:
    """Raises Failure, on every rank, where one differs from rank 0."""
    message = difference(everyone)
    if message is not None:
        raise Failure(message, 2, is_of_all=True)


def _close_connections(error: BaseException) -> None:
    """Lets those that wait for this rank in a collective of gloo know at once."""
    dist: Any = importlib.import_module("torch.distributed")
    # With NCCL it would itself wait for the others.
    if dist.is_initialized() and dist.get_backend() == "gloo":
        # Connections last as long as the group, and that in the frame of a collective.
        traceback.clear_frames(error.__traceback__)
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _is_of_connection(error: BaseException) -> bool:
    """Whether torch lost a connection: another rank may be the cause."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)


def whole_number(name: str) -> int:
    """A number of ranks in the environment."""
    text = os.environ[name]
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} must be a whole number from 0, got {text!r}")
    return int(text)
