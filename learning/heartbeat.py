"""Notices trainers that are gone without a word, such as those of a machine without power.

Where a process dies, its connections are closed, and whoever sums with it knows at once. Where a
machine dies, nobody closes them: so every trainer says in the trainers' store that it lives.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch._C._distributed_c10d import PrefixStore, Store

EVERY_S = 4.0
MISSED = 5  # beats of another trainer, after which it counts as lost


class Heartbeat:
    """Threads that beat, and listen to the other trainers' beats.

    Args:
        store: the trainers'.
        rank, size: this trainer's number, and how many there are.
        lost: called in a thread with a sentence; it must end the process.
    """

    def __init__(self, store: Store, rank: int, size: int, lost: Callable[[str], None]):
        self._store, self._lost = PrefixStore("beats", store), lost
        self._rank, self._others = rank, [other for other in range(size) if other != rank]
        self._ended = threading.Event()
        self._rounds = 0  # in which the store has answered
        for target in (self._beat, self._listen):
            threading.Thread(target=target, daemon=True).start()

    def _beat(self) -> None:
        # counted in beats of one's own, not in seconds: whoever was stopped in between, by Ctrl-Z or
        # a busy machine, accuses nobody
        heard, silent = dict.fromkeys(self._others, 0), dict.fromkeys(self._others, 0)
        while not self._ended.wait(EVERY_S):
            try:
                self._store.add(str(self._rank), 1)
                now = {other: self._store.add(str(other), 0) for other in self._others}
            except RuntimeError:
                # the store's process may have done its work: this one is told so by the others then
                if not self._ended.wait(EVERY_S):
                    self._lost("the trainers' store is gone")
                return
            for other, beats in now.items():
                silent[other] = 0 if beats != heard[other] else silent[other] + 1
                if silent[other] == MISSED:
                    self._lost(f"trainer {other} has said nothing for {MISSED * EVERY_S:.0f} s")
                    return
            heard = now
            self._rounds += 1

    def _listen(self) -> None:
        """The store may be on a machine that is gone: then whoever asks it waits for minutes."""
        known = silent = 0
        while not self._ended.wait(EVERY_S):
            silent = silent + 1 if self._rounds == known else 0
            known = self._rounds
            if silent > MISSED:
                self._lost(f"the trainers' store has not answered for {MISSED * EVERY_S:.0f} s")

    def end(self) -> None:
        """Listen no more."""
        self._ended.set()
