"""The fragments that one trainer has taken from a run's stream, and what becomes of each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from cluster.store.fragment import Fragment, Refused, read_fragment
from cluster.store.keys import RunGone
from cluster.store.run import RunStore
from rollout import RolloutSpec

_CLAIMS_EVERY_S = 1.0


class Consumer:
    """One member of the consumer group. All methods raise what `RunStore`'s do.

    Args:
        store: the run.
        trainer: the name of the trainer.
        spec: shapes of a rollout.
        ranges: the environments [first, last) of the samplers.
        lag: how many versions old the weights may be that a fragment was made with.
        version: of the weights in the store.
        say: prints a sentence for the user.

    Attributes:
        trainer: its name.
        version: of the newest weights in the store, as last heard.
        held: fragments that wait to be gathered, in the order of arrival.
        gathered: those that are being learned from.
        refused: how many were damaged, or unfit for this run.
        dropped, dropped_steps, dropped_episodes: how many were too old; what they held.
    """

    def __init__(
        self, store: RunStore, trainer: str, spec: RolloutSpec, ranges: list[tuple[int, int]],
        lag: int, version: int, say: Callable[[str], None],
    ):  # fmt: skip
        self.version = version
        self.held: list[Fragment] = []
        self.gathered: list[Fragment] = []
        self.refused = self.dropped = self.dropped_steps = self.dropped_episodes = 0
        self._store, self._say = store, say
        self.trainer = trainer
        self._spec, self._ranges, self._lag = spec, ranges, lag
        self._claimed, self._outages = -math.inf, 0
        # of each range, the sampler and the number of the fragment that was gathered last
        self._last: dict[tuple[int, int], tuple[int, int]] = {}

    def receive(self, most: int) -> None:
        """Hold fragments as they come, and drop those that are too old; waits half a second.

        Args:
            most: how many new ones to take. 0: none, and nothing is waited for.
        """
        # an answer that was lost in an outage may have brought fragments
        outages, now = self._store.link.outages, time.monotonic()
        if outages != self._outages or now - self._claimed > _CLAIMS_EVERY_S:
            self._claim()
            self._outages, self._claimed = outages, now
        if most > 0:
            version, entries = self._store.stream.read(self.trainer, most)
            self.hear(version)
            self._take_in(entries)
        else:
            self.hear(self._store.version())
        self._drop_old()

    def _claim(self) -> None:
        """Take over fragments of dead trainers; forget those that others have taken over."""
        mine = self._store.stream.claim(self.trainer)
        self.held = [fragment for fragment in self.held if fragment.id in mine]
        known = {fragment.id for fragment in (*self.held, *self.gathered)}
        if not mine <= known:
            entries = self._store.stream.fetch(sorted(mine - known))
            self.hear(self._store.version())  # the fragments may be of newer weights
            self._take_in(entries)

    def hear(self, version: int) -> None:
        """Note the version of the weights in the store.

        Raises:
            RunGone: for an older one than before: the store came back with an older state.
        """
        if version < self.version:
            raise RunGone
        self.version = version

    def _take_in(self, entries: list[tuple[bytes, bytes]]) -> None:
        for id_, message in entries:
            try:
                fragment = read_fragment(id_, message, self._spec, self._ranges, self.version)
            except Refused as refused:
                self.refused += 1
                self._say(f"a fragment in the store was refused: {refused}")
                self._store.stream.drop(self.trainer, f"refused:{refused.reason}", [id_])
            else:
                self.held.append(fragment)

    def _drop_old(self) -> None:
        oldest = self.version - self._lag
        old = [f for f in self.held if f.rollout.policy_version < oldest]
        if not old:
            return
        steps = sum(f.rollout.steps for f in old)
        self._store.stream.drop(self.trainer, "dropped:old", [f.id for f in old], steps)
        self.held = [f for f in self.held if f.rollout.policy_version >= oldest]
        self.dropped += len(old)
        self.dropped_steps += steps
        self.dropped_episodes += sum(len(f.rollout.episodes) for f in old)

    def gather(self, count: int) -> list[Fragment]:
        """The first fragments that are held, which are being learned from now."""
        self.gathered, self.held = self.held[:count], self.held[count:]
        for fragment in self.gathered:
            # Scales of rewards run along each environment's stream. Where other trainers may have
            # learned from what lies between, the stream begins anew, as at a reset.
            before = self._last.get(fragment.envs)
            if before != (fragment.sampler, fragment.number - 1):
                fragment.rollout.reset[:] = True
            self._last[fragment.envs] = (fragment.sampler, fragment.number)
        return self.gathered

    def settle(self) -> None:
        """The gathered fragments were learned from."""
        self.gathered = []

    def give_back(self, lost: frozenset[bytes] = frozenset()) -> None:
        """Hold the gathered fragments again, before all others.

        Args:
            lost: but for these.
        """
        if self.gathered:
            self.held = [*(f for f in self.gathered if f.id not in lost), *self.held]
            self.gathered = []
            self._last.clear()

    def refuse(self, reason: str) -> None:
        """Refuse the gathered fragments, and count them under a reason."""
        ids = [fragment.id for fragment in self.gathered]
        self._store.stream.drop(self.trainer, f"refused:{reason}", ids)
        self.refused += len(ids)
        self.gathered = []
        self._last.clear()

    def forget(self) -> None:
        """The store has lost all fragments."""
        self.held, self.gathered = [], []
        self._last.clear()
        self._claimed = -math.inf
