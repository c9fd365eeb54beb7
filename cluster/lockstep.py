"""Collection in lockstep (policy_lag 0 and 1): each rollout is one fragment of every sampler.

Consumes weights, which `request` hands to all samplers at once, and produces whole rollouts, for
which `gather` waits. Two rollouts exist, so the learner may read one while the samplers fill the
other: a gathered rollout stays valid until the second `request` after it.
"""

from __future__ import annotations

import numpy as np

from cluster.engines.base import Engine, Part
from cluster.pool import Environments, Request
from cluster.sampler import in_order
from rollout import Rollout, Weights


class LockstepPool:
    """See `cluster.pool.SamplerPool`.

    Args:
        engine: the samplers. Taken over.
    """

    dropped = dropped_steps = dropped_episodes = 0  # all fragments are waited for

    def __init__(self, engine: Engine):
        self.engine, self.name, self.spec = engine, engine.name, engine.spec
        self.samplers = engine.samplers
        envs = engine.config.env_num
        self._slots = engine.slots or [Rollout.empty(self.spec, envs) for _ in range(2)]
        self._in_flight: Request | None = None

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
        """Ask every sampler for its part of a fragment. Returns at once."""
        if self._in_flight is not None:
            raise RuntimeError(f"fragment {self._in_flight.fragment} has not been gathered yet")
        envs = self.engine.config.env_num
        for name, array in (restore or {}).items():
            if len(array) != envs:
                raise ValueError(
                    f"restore has {name!r} of {len(array)} environments, but env_num is {envs}"
                )
        self._in_flight = Request(fragment, reset, weights.version, keep, restore)
        self.engine.publish(weights)
        for index in range(self.samplers):
            self.engine.send(index, self._in_flight)

    def gather(self) -> Rollout:
        """Wait for the fragment that was requested: [T, env_num].

        Raises:
            SamplerError: where any sampler failed or is gone, whichever is noticed first.
        """
        request, self._in_flight = self._in_flight, None
        if request is None:
            raise RuntimeError("nothing was requested")
        slot = self._slots[request.fragment % 2]
        parts: dict[int, Part] = {}
        while len(parts) < self.samplers:
            for index in self.engine.wait():
                parts[index] = self.engine.receive(index)
                if self.engine.slots is None:
                    _copy(parts[index].columns, slot.columns(*self.engine.ranges[index]))
        config = self.engine.config
        rollout = Rollout.of(slot.arrays())
        rollout.policy_version, rollout.reset = request.version, request.reset
        rollout.carried = 0 if request.reset else config.carried_steps
        rollout.episodes = in_order(e for part in parts.values() for e in part.episodes)
        rollout.env_ranges = [(0, config.env_num)]
        if request.keep:
            rollout.environments = _side_by_side([parts[i] for i in range(self.samplers)])
        return rollout

    def close(self) -> None:
        self._slots = []
        self.engine.close()


def _copy(source: Rollout, target: Rollout) -> None:
    arrays = source.arrays()
    for name, array in target.arrays().items():
        array[...] = arrays[name]


def _side_by_side(parts: list[Part]) -> Environments:
    """The parts' environments in one set of arrays [env_num, ...]."""
    kept = [part.environments or {} for part in parts]
    return {name: np.concatenate([arrays[name] for arrays in kept]) for name in kept[0]}
