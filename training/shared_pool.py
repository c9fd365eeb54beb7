"""A trainer's own samplers, of which it tells the other trainers: the run counts those of all."""

from __future__ import annotations

import numpy as np

from cluster.pool import Environments, SamplerPool
from learning.trainers import Trainers
from rollout import Episode, Rollout, Weights


class SharedPool:
    """See `cluster.pool.SamplerPool`; the counters are those of all trainers' samplers.

    A gathered rollout has this trainer's rows, and the episodes and `environments` of all trainers,
    in the order of the environments. So each of them counts the same, and the first can save the
    run without asking the others.

    Args:
        pool: this trainer's, in lockstep. Taken over.
        trainers: all of them, who gather at the same time.
    """

    dropped = dropped_steps = dropped_episodes = 0  # no fragment comes too late

    def __init__(self, pool: SamplerPool, trainers: Trainers):
        self._pool, self._trainers = pool, trainers
        self.name, self.spec = pool.name, pool.spec
        self.samplers = self.samplers_alive = self.restarts = self.alarms = self.rows_lost = 0
        self._note([values for _, values in trainers.everyone({}, self._counters())])

    def _counters(self) -> dict[str, int]:
        names = ("samplers", "samplers_alive", "restarts", "alarms", "rows_lost")
        return {name: getattr(self._pool, name) for name in names}

    def _note(self, counters: list[dict[str, int]]) -> None:
        for name in self._counters():
            setattr(self, name, sum(own[name] for own in counters))

    def request(
        self,
        weights: Weights,
        fragment: int,
        reset: bool,
        keep: bool = False,
        restore: Environments | None = None,
    ) -> None:
        self._pool.request(weights, fragment, reset, keep, restore)

    def gather(self) -> Rollout:
        """Wait for this trainer's rollout [T, N], and for the others'."""
        rollout = self._pool.gather()
        environments = rollout.environments
        mine = self._counters() | {
            "steps": rollout.steps,
            "episodes": rollout.episodes,
            "keeps": environments is not None,
        }
        parts = self._trainers.everyone(environments or {}, mine)
        self._note([values for _, values in parts])
        rollout.elsewhere = sum(values["steps"] for _, values in parts) - mine["steps"]
        rollout.episodes = [Episode(*row) for _, values in parts for row in values["episodes"]]
        if environments is not None:
            rollout.environments = None
            if all(values["keeps"] for _, values in parts):
                rollout.environments = {
                    name: np.concatenate([arrays[name] for arrays, _ in parts])
                    for name in environments
                }
        return rollout

    def close(self) -> None:
        self._pool.close()
