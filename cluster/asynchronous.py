"""Asynchronous collection (policy_lag >= 2): fragments are learned from as they arrive.

No sampler waits for another. A thread waits for whichever sampler answers first, keeps its fragment
and asks it at once for the next, under the newest weights. The learner consumes batches of as many
fragments as there are samplers, in the order of arrival, whichever samplers they came from. A
fragment whose policy is more than `policy_lag` updates old is dropped and counted. So that a slow
learner drops nothing, no more than `policy_lag` batches are in flight or wait to be learned from.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

import numpy as np

from cluster.pool import Environments, Request
from cluster.sampler import in_order
from cluster.supervisor import Outcome, Supervisor
from rollout import Rollout, Weights

FRAGMENTS = 2**20  # more than a sampler collects between two resets
_CLOSE_TIMEOUT_S = 2.0


class AsynchronousPool:
    """See `cluster.pool.SamplerPool`.

    Args:
        supervisor: of the samplers, each with as many environments as the others. Taken over.
        lag: the greatest age of a fragment's policy, in updates.

    Attributes:
        rows_lost: steps of environments in the fragments of lost samplers.
    """

    def __init__(self, supervisor: Supervisor, lag: int):
        self.supervisor, self.lag = supervisor, lag
        self.engine = engine = supervisor.engine
        self.name, self.spec, self.samplers = engine.name, engine.spec, engine.samplers
        self.rows_lost = 0
        self.dropped = self.dropped_steps = self.dropped_episodes = 0
        self._changed = threading.Condition()  # guards everything below
        self._weights: Weights | None = None
        self._ready: deque[Rollout] = deque()  # in the order of arrival
        self._error: BaseException | None = None
        self._is_closed = False
        self._first = 0  # the number of each sampler's first fragment since the last reset
        self._thread: threading.Thread | None = None

    @property
    def samplers_alive(self) -> int:
        return self.supervisor.samplers_alive

    @property
    def restarts(self) -> int:
        return self.supervisor.restarts

    @property
    def alarms(self) -> int:
        return self.supervisor.alarms

    def request(
        self,
        weights: Weights,
        fragment: int,
        reset: bool,
        keep: bool = False,
        restore: Environments | None = None,
    ) -> None:
        """Let the samplers go on under these weights.

        With `reset`, which the first request has, each sampler begins again once it has finished
        its fragment: `fragment` then decides the noise, and no fragment from before is learned
        from.

        Raises:
            ValueError: for `keep` or `restore`: at no time do all environments stand still.
        """
        if keep or restore is not None:
            raise ValueError("asynchronous samplers keep no state of their environments")
        with self._changed:
            self._weights = weights
            if reset:  # each sampler numbers its own fragments, from here on
                self._first = fragment * FRAGMENTS
                self._drop(self._ready)
                self._ready = deque()
        if self._thread is not None:
            self.supervisor.wake()  # there may be room for more fragments
        else:
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()

    def gather(self) -> Rollout:
        """Wait for a batch of fragments that are not too old: [T, env_num].

        Raises:
            SamplerError: where samplers are lost time and again; any error of the thread too.
        """
        with self._changed:
            if self._weights is None:
                raise RuntimeError("nothing was requested")
            while True:
                if self._error is not None:
                    raise self._error
                oldest = self._weights.version - self.lag
                old = [part for part in self._ready if part.policy_version < oldest]
                if old:
                    self._drop(old)
                    self._ready = deque(p for p in self._ready if p.policy_version >= oldest)
                    self.supervisor.wake()  # there is room for more fragments
                if len(self._ready) >= self.samplers:
                    parts = [self._ready.popleft() for _ in range(self.samplers)]
                    break
                self._changed.wait()
        self.supervisor.wake()  # here too
        return merge(parts)

    def _drop(self, parts: Iterable[Rollout]) -> None:
        """Count fragments that nobody will learn from."""
        for part in parts:
            self.dropped += 1
            self.dropped_steps += part.steps
            self.dropped_episodes += len(part.episodes)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
        if self._thread is not None:
            self.supervisor.wake()
            self._thread.join(_CLOSE_TIMEOUT_S)  # it never waits for a fragment
        self.supervisor.close()

    def _serve(self) -> None:
        """The thread: the only one that talks to the samplers."""
        try:
            self._collect()
        except BaseException as error:  # whatever it is, `gather` raises it
            with self._changed:
                self._error = error
                self._changed.notify()

    def _collect(self) -> None:
        idle = set(range(self.samplers))
        first, numbers = -1, [0] * self.samplers  # of each sampler's next fragment
        while True:
            with self._changed:
                if self._is_closed:
                    return
                weights = self._weights
                if first != self._first:
                    first, numbers = self._first, [self._first] * self.samplers
                busy = self.samplers - len(idle)
                room = self.lag * self.samplers - len(self._ready) - busy
            assert weights is not None
            self.supervisor.publish(weights)
            for index in sorted(idle, key=numbers.__getitem__):
                request = Request(numbers[index], numbers[index] == first, weights.version)
                if room > 0 and self.supervisor.send(index, request):
                    idle.remove(index)
                    numbers[index] += 1
                    room -= 1
            for outcome in self.supervisor.wait():  # `gather` and `close` end this wait too
                idle.add(outcome.index)
                self._take_in(outcome)

    def _take_in(self, outcome: Outcome) -> None:
        index, request, part = outcome
        first_env, last_env = self.engine.ranges[index]
        if part is None:
            self.rows_lost += self.spec.steps * (last_env - first_env)
            return
        arrays = part.columns.arrays()
        if self.engine.slots is not None:  # the sampler writes there again
            arrays = {name: array.copy() for name, array in arrays.items()}
        rollout = Rollout.of(arrays)
        rollout.policy_version = request.version
        rollout.carried = 0 if request.reset else self.engine.config.carried_steps
        rollout.reset = np.full(last_env - first_env, request.reset)
        rollout.episodes, rollout.env_ranges = in_order(part.episodes), [(first_env, last_env)]
        rollout.raw_sps = part.columns.raw_sps
        with self._changed:
            if request.fragment // FRAGMENTS == self._first // FRAGMENTS:
                self._ready.append(rollout)
                self._changed.notify()
            else:  # it was asked for before the last reset
                self._drop([rollout])


def merge(parts: list[Rollout]) -> Rollout:
    """Fragments side by side, in their order of arrival."""
    arrays = [part.arrays() for part in parts]
    merged = Rollout.of({name: np.concatenate([a[name] for a in arrays], 1) for name in arrays[0]})
    merged.carried = max(part.carried for part in parts)  # none, where all have been reset
    merged.reset = np.concatenate([part.reset for part in parts])
    merged.policy_version = float(np.mean([part.policy_version for part in parts]))
    merged.episodes = [episode for part in parts for episode in part.episodes]
    merged.env_ranges = [part.env_ranges[0] for part in parts]
    merged.raw_sps = sum(part.raw_sps for part in parts)
    return merged
