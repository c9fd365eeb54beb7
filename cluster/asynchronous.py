"""Asynchronous collection (policy_lag >= 2): fragments are learned from as they arrive.

No sampler waits for another. A thread waits for whichever sampler answers first, keeps its fragment
and sends it on at once under the newest weights. The learner consumes batches of as many fragments
as there are samplers, in the order of arrival, whichever samplers they came from. Fragments whose
policy is more than `policy_lag` updates old are dropped and counted. So that a slow learner drops
nothing, no more than `policy_lag` batches are in flight or waiting to be learned from.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np

from cluster.pool import Request, SamplerError, SamplerPool
from rollout import Rollout, Weights

_POLL_S = 0.01  # how soon an idle sampler notices that the learner took a batch


class AsynchronousPool:
    """A pool whose samplers never wait for one another.

    Args:
        pool: the samplers, each with as many environments as the others. Taken over.
        lag: the greatest age of a fragment's policy, in updates.

    Attributes:
        dropped: fragments that came too late.
    """

    def __init__(self, pool: SamplerPool, lag: int):
        self.pool, self.lag = pool, lag
        self.name, self.samplers, self.spec = pool.name, pool.samplers, pool.spec
        self.dropped = 0
        self._changed = threading.Condition()  # guards all that follows
        self._weights: Weights | None = None
        self._ready: deque[Rollout] = deque()
        self._error: SamplerError | None = None
        self._closed = False
        self._is_first = True  # whether no batch has been gathered yet
        self._thread: threading.Thread | None = None

    def request(self, weights: Weights, fragment: int, reset: bool) -> None:
        """Let the samplers go on under these weights.

        The first request starts them, with a reset; `fragment` then decides their noise.
        """
        with self._changed:
            self._weights = weights
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, args=(fragment << 20,), daemon=True)
            self._thread.start()

    def gather(self) -> Rollout:
        """Wait for a batch of fragments that are not too old: [T, env_num].

        Raises:
            SamplerError: where a sampler failed or is gone.
        """
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                assert self._weights is not None, "nothing was requested"
                oldest = self._weights.version - self.lag
                fresh = deque(part for part in self._ready if part.policy_version >= oldest)
                self.dropped += len(self._ready) - len(fresh)
                self._ready = fresh
                if len(self._ready) >= self.samplers:
                    merged = _merge([self._ready.popleft() for _ in range(self.samplers)])
                    merged.reset, self._is_first = self._is_first, False
                    return merged
                self._changed.wait()

    def close(self) -> None:
        with self._changed:
            self._closed = True
        if self._thread is not None:
            self._thread.join()
        self.pool.close()

    def _serve(self, fragment: int) -> None:
        """The thread: the only one that talks to the samplers."""
        idle = list(range(self.samplers))
        requests: dict[int, Request] = {}  # in flight, by sampler
        numbers = [fragment] * self.samplers
        try:
            while True:
                with self._changed:
                    if self._closed:
                        return
                    weights = self._weights
                    room = self.lag * self.samplers - len(self._ready) - len(requests)
                assert weights is not None
                starting, idle = idle[: max(0, room)], idle[max(0, room) :]
                for index in starting:
                    reset = numbers[index] == fragment
                    requests[index] = Request(numbers[index], reset, weights.version)
                    numbers[index] += 1
                    self.pool.send(index, requests[index], weights)
                if not requests:  # all wait for the learner to take a batch
                    time.sleep(_POLL_S)
                    continue
                for index in self.pool.answered(list(requests), _POLL_S):
                    part = self.pool.receive(index, requests.pop(index))
                    idle.append(index)
                    with self._changed:
                        self._ready.append(part)
                        self._changed.notify()
        except SamplerError as error:
            with self._changed:
                self._error = error
                self._changed.notify()


def _merge(parts: list[Rollout]) -> Rollout:
    """Fragments side by side, in their order of arrival."""
    arrays = [part.arrays() for part in parts]
    merged = Rollout.of({name: np.concatenate([a[name] for a in arrays], 1) for name in arrays[0]})
    merged.policy_version = float(np.mean([part.policy_version for part in parts]))
    merged.episodes = [episode for part in parts for episode in part.episodes]
    merged.env_ranges = [part.env_ranges[0] for part in parts]
    return merged
