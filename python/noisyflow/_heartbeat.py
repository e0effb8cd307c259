"""How ranks notice that one of them failed, died or hangs, and end together.

Each rank writes a growing number into the store every few seconds. The first rank reads
those of all, the others read the first one's; who finds a number that no longer grows,
or fails itself, writes under `end` why, and all others find it there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, Protocol

# Nobody uses this one, and a process that does not know it ignores it.
_SIGNAL = signal.SIGURG
# The last beat of a rank that has come to its end in order.
_LEFT = "left"


@dataclass(frozen=True)
class Pulse:
    """How soon a rank that does not answer is given up.

    Parameters
    ----------
    seconds_between_beats : float
    beats_until_dead : int
        So many beats of one's own without one of the other's. Not seconds: a rank that
        was itself suspended shall not blame the others.
    seconds_of_grace : float
        For the main thread to end once another rank is lost, until the process is
        ended where it stands.
    seconds_to_join : float
        For all ranks to come.
    """

    seconds_between_beats: float = 2.0
    beats_until_dead: int = 15
    seconds_of_grace: float = 10.0
    seconds_to_join: float = 300.0

    @property
    def seconds_until_dead(self) -> float:
        """How long a rank may be silent."""
        return self.seconds_between_beats * self.beats_until_dead


PULSE = Pulse()


@dataclass(frozen=True)
class End:
    """Why all ranks end. `teller` is the rank that says so to the user."""

    rank: int
    message: str
    code: int
    teller: int
    is_silent: bool = False  # it did not say so itself


class Interrupted(BaseException):
    """Raised in the main thread where all ranks end: nothing but `joined` catches it.

    Were it a RuntimeError, a checkpoint that was being read would seem damaged.
    """


class Store(Protocol):
    """What is used of torch.distributed.Store."""

    def set(self, key: str, value: Any) -> None: ...
    def get(self, key: str) -> bytes: ...
    def add(self, key: str, amount: int) -> int: ...
    def check(self, keys: list[str]) -> bool: ...
    def clone(self) -> Store: ...
    def multi_get(self, keys: list[str]) -> list[bytes]: ...
    def delete_key(self, key: str) -> bool: ...
    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...


class Heart:
    """Beats for this rank, listens to the others, and ends the main thread.

    One thread talks with the store, another watches it, as a call of a store whose
    machine is gone need not return. The first rank listens to all, the others to the
    first.
    """

    def __init__(self, rank: int, size: int, store: Store, pulse: Pulse) -> None:
        self._rank = rank
        self._store = store
        self._pulse = pulse
        self._others = [
            other for other in (range(size) if rank == 0 else [0]) if other != rank
        ]
        self._last: dict[int, bytes] = {}
        self._missed = dict.fromkeys(self._others, 0)
        self._lock = threading.Lock()  # of the store
        self._stopped = threading.Event()
        self._ended = threading.Event()
        self._returned_at = time.monotonic()
        self.end: End | None = None
        self.is_deaf = False
        self.is_told = False
        self.has_store = True
        self._threads = [
            threading.Thread(target=run, daemon=True)
            for run in (self._beat, self._watch)
        ]

    def start(self) -> None:
        """Begins; the signal that ends the main thread is now ours."""
        self._before = signal.signal(_SIGNAL, self._interrupt)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Falls silent: the others do not expect to hear of this rank any more.

        Within the grace, as nobody watches the store from here on.
        """
        self.is_deaf = True
        self._stopped.set()
        until = time.monotonic() + self._pulse.seconds_of_grace
        for thread in self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))
        signal.signal(_SIGNAL, self._before)

    def wait_for_end(self) -> End | None:
        """Why all end, once it is known; None where nobody knows of anything."""
        self._ended.wait(
            self._pulse.seconds_until_dead + 3 * self._pulse.seconds_between_beats
        )
        return self.end

    def post(self, end: End) -> End | None:
        """Tells all ranks that they end; why they do, where that was earlier."""
        text = json.dumps(asdict(end))
        with contextlib.suppress(RuntimeError), self._lock:
            found = self._store.compare_set("end", "", text)
            end = End(**json.loads(found))
        self._set_end(end)
        return self.end

    def _set_end(self, end: End) -> None:
        if self.end is None:
            self.end = end
        self._ended.set()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """On the main thread."""
        if self.end is not None and not self.is_deaf:
            raise Interrupted

    def _beat(self) -> None:
        """Beats until stopped, or until all end."""
        count = 0
        while not self._stopped.wait(self._pulse.seconds_between_beats):
            count += 1
            try:
                with self._lock:
                    self._store.set(f"beat/{self._rank}", str(count))
                    self._listen()
            except RuntimeError as error:  # torch's errors of the store are such
                if not self._stopped.is_set():
                    self._set_end(self._no_store(first_line(error)))
            self._returned_at = time.monotonic()
            if self.end is not None:
                return
        if self.end is None:
            with contextlib.suppress(RuntimeError), self._lock:
                self._store.set(f"beat/{self._rank}", _LEFT)

    def _listen(self) -> None:
        """Notes whose beats are missing, and whether all end."""
        if self._store.check(["end"]):
            self._set_end(End(**json.loads(self._store.get("end"))))
            return
        beats = self._store.multi_get([f"beat/{rank}" for rank in self._others])
        for rank, beat in zip(self._others, beats, strict=True):
            is_new = beat != self._last.get(rank) or beat == _LEFT.encode()
            self._missed[rank] = 0 if is_new else self._missed[rank] + 1
            self._last[rank] = beat
        silent = [
            rank
            for rank, missed in self._missed.items()
            if missed >= self._pulse.beats_until_dead
        ]
        if silent:
            end = End(silent[0], self._dead(silent), 1, self._rank, is_silent=True)
            found = self._store.compare_set("end", "", json.dumps(asdict(end)))
            self._set_end(End(**json.loads(found)))

    def _dead(self, silent: list[int]) -> str:
        """What to tell of ranks that do not answer."""
        return (
            f"rank {', '.join(map(str, silent))} has not answered for "
            f"{self._pulse.seconds_until_dead:g} s: it was killed (out of memory?), "
            "stopped, or its machine is not reached; all other ranks end. "
            "The same command takes up what was saved, if anything was"
        )

    def _no_store(self, why: str) -> End:
        """The end where the store does not answer: it is where the first rank is."""
        self.has_store = False
        text = (
            f"rank {self._rank} has lost rank 0 or the store beside it ({why}): it "
            "ended, was killed, or its machine is not reached; all other ranks end. "
            "The same command takes up what was saved, if anything was"
        )
        return End(0, text, 1, self._rank, is_silent=True)

    def _watch(self) -> None:
        """Interrupts the main thread where all end, and then the process."""
        until = None
        while not self._stopped.wait(min(0.5, self._pulse.seconds_between_beats)):
            silent = time.monotonic() - self._returned_at
            if self.end is None and silent > (
                self._pulse.seconds_until_dead + self._pulse.seconds_between_beats
            ):
                self._set_end(self._no_store(f"no answer for {silent:.0f} s"))
            if self.end is None:
                continue
            now = time.monotonic()
            if until is None:
                until = now + self._pulse.seconds_of_grace
            if not self.is_deaf:
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, _SIGNAL)
            if now > until:
                if self.end.teller == self._rank and not self.is_told:
                    os.write(2, f"noisyflow: {self.end.message}\n".encode())
                os._exit(self.end.code or 1)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
