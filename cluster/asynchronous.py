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

from cluster.engines.base import Engine, Part
from cluster.pool import Environments, Request
from cluster.sampler import in_order
from rollout import Rollout, Weights

FRAGMENTS = 2**20  # more than a sampler collects between two resets
_CLOSE_TIMEOUT_S = 2.0


class AsynchronousPool:
    """See `cluster.pool.SamplerPool`.

    Args:
        engine: the samplers, each with as many environments as the others. Taken over.
        lag: the greatest age of a fragment's policy, in updates.
    """

    def __init__(self, engine: Engine, lag: int):
        self.engine, self.name, self.spec = engine, engine.name, engine.spec
        self.samplers, self.lag = engine.samplers, lag
        self.dropped = self.dropped_steps = self.dropped_episodes = 0
        self._changed = threading.Condition()  # guards everything below
        self._weights: Weights | None = None
        self._ready: deque[Rollout] = deque()  # in the order of arrival
        self._error: BaseException | None = None
        self._is_closed = False
        self._first = 0  # the number of each sampler's first fragment since the last reset
        self._is_first = True  # no batch has been gathered since the last reset
        self._thread: threading.Thread | None = None

    @property
    def samplers_alive(self) -> int:
        return self.engine.samplers_alive

    @property
    def restarts(self) -> int:
        return self.engine.restarts

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
                self._first, self._is_first = fragment * FRAGMENTS, True
                self._drop(self._ready)
                self._ready = deque()
        if self._thread is not None:
            self.engine.wake()  # there may be room for more fragments
        else:
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()

    def gather(self) -> Rollout:
        """Wait for a batch of fragments that are not too old: [T, env_num].

        Raises:
            SamplerError: where a sampler failed or is gone; any error of the serving thread too.
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
                    self.engine.wake()  # there is room for more fragments
                if len(self._ready) >= self.samplers:
                    parts = [self._ready.popleft() for _ in range(self.samplers)]
                    break
                self._changed.wait()
            is_first, self._is_first = self._is_first, False
        self.engine.wake()  # here too
        rollout = _merge(parts)
        rollout.reset = is_first
        return rollout

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
            self.engine.wake()
            self._thread.join(_CLOSE_TIMEOUT_S)  # it never waits for a fragment
        self.engine.close()

    def _serve(self) -> None:
        """The thread: the only one that talks to the samplers."""
        try:
            self._collect()
        except BaseException as error:  # whatever it is, `gather` raises it
            with self._changed:
                self._error = error
                self._changed.notify()

    def _collect(self) -> None:
        idle = deque(range(self.samplers))
        requests: dict[int, Request] = {}  # in flight, by sampler
        first, numbers = -1, [0] * self.samplers  # of each sampler's next fragment
        while True:
            with self._changed:
                if self._is_closed:
                    return
                weights = self._weights
                if first != self._first:
                    first, numbers = self._first, [self._first] * self.samplers
                room = self.lag * self.samplers - len(self._ready) - len(requests)
            assert weights is not None
            self.engine.publish(weights)
            while idle and room > 0:
                index = idle.popleft()
                reset = numbers[index] == first
                requests[index] = Request(numbers[index], reset, weights.version)
                self.engine.send(index, requests[index])
                numbers[index] += 1
                room -= 1
            for index in self.engine.wait():  # `gather` and `close` end this wait too
                part, request = self.engine.receive(index), requests.pop(index)
                rollout = self._rollout(part, request, self.engine.ranges[index])
                idle.append(index)
                with self._changed:
                    if request.fragment // FRAGMENTS == self._first // FRAGMENTS:
                        self._ready.append(rollout)
                        self._changed.notify()
                    else:  # it was asked for before the last reset
                        self._drop([rollout])

    def _rollout(self, part: Part, request: Request, envs: tuple[int, int]) -> Rollout:
        arrays = part.columns.arrays()
        if self.engine.slots is not None:  # the sampler writes there again
            arrays = {name: array.copy() for name, array in arrays.items()}
        rollout = Rollout.of(arrays)
        rollout.policy_version, rollout.reset = request.version, request.reset
        rollout.episodes, rollout.env_ranges = in_order(part.episodes), [envs]
        return rollout


def _merge(parts: list[Rollout]) -> Rollout:
    """Fragments side by side, in their order of arrival."""
    arrays = [part.arrays() for part in parts]
    merged = Rollout.of({name: np.concatenate([a[name] for a in arrays], 1) for name in arrays[0]})
    merged.policy_version = float(np.mean([part.policy_version for part in parts]))
    merged.episodes = [episode for part in parts for episode in part.episodes]
    merged.env_ranges = [part.env_ranges[0] for part in parts]
    return merged
