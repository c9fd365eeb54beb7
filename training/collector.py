"""When fragments are requested and gathered: the policy's lag lives in this file.

    policy_lag 0    request k, gather k, learn k, request k+1 under the weights of update k
    policy_lag 1    gather k, request k+1 under the weights of update k-1, learn k meanwhile
    policy_lag 2+   the pool never rests: a request hands it newer weights, and a gather takes the
                    fragments that have arrived

A fragment's number, with the seed, decides the noise that its actions are drawn from. No two
fragments of a run share one:

    k                 the fragment of update k
    2**32             `WARM_UP_FRAGMENT`, before the first update
    k * 2**20 + n     policy_lag 2+: each sampler's n-th since the reset that fragment k begins with
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from agent import PPOAgent
from cluster.pool import SamplerPool
from common.checkpoint import Checkpoint, part
from rollout import Rollout, Weights
from settings.config import Config

WARM_UP_FRAGMENT = 2**32
# how the names of a start's arrays begin in a checkpoint
_BEHAVIOUR = "behaviour/"
_ENVIRONMENTS = "environments/"


class Start(NamedTuple):
    """Where a fragment begins.

    `weights`: the samplers act with them. `environments`: everything that the samplers go on from
    (`Rollout.environments`), or None where that cannot be saved.
    """

    weights: Weights
    environments: dict[str, np.ndarray] | None

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that a checkpoint holds of it, by name."""
        weights = {f"{_BEHAVIOUR}{n}": a for n, a in self.weights.arrays.items()}
        return weights | {f"{_ENVIRONMENTS}{n}": a for n, a in (self.environments or {}).items()}

    @classmethod
    def of(cls, saved: Checkpoint) -> Start:
        """The start that a checkpoint holds."""
        weights = Weights(saved.state["behaviour_version"], part(saved.arrays, _BEHAVIOUR))
        return cls(weights, part(saved.arrays, _ENVIRONMENTS) or None)


class Collector:
    """Produces the fragments that an agent learns from, in order.

    Args:
        config: the run's settings.
        agent: whose weights the samplers get; its `update` says which fragment is next.
        pool: the samplers.
        saves_state: whether the environments' state can be saved.
        start: where the next fragment begins. None: under the agent's weights, with a reset.
        reset_every: the environments are also reset before every so many updates. None: never.
        waiting: the context in which the pool is waited for.

    Attributes:
        times: seconds spent on the last fragment: time/sample_wait to wait for the samplers,
            time/transfer to hand them the next weights.
    """

    def __init__(
        self,
        config: Config,
        agent: PPOAgent,
        pool: SamplerPool,
        saves_state: bool,
        start: Start | None,
        reset_every: int | None,
        waiting: Callable[[], AbstractContextManager[None]],
    ):
        self.agent, self.pool = agent, pool
        self.times = {"time/sample_wait": 0.0, "time/transfer": 0.0}
        self._requests_ahead = config.policy_lag == 1
        self._keeps = saves_state and config.policy_lag <= 1
        self._reset_every, self._waiting = reset_every, waiting
        # by number, from the fragment that is learned from next on
        self._starts = {agent.update: start or Start(agent.weights(), None)}
        self._environments: dict[str, np.ndarray] | None = None  # after the last gathered fragment
        self._is_first = True
        self._in_flight: int | None = None

    def warm_up(self) -> Rollout:
        """Initialise the agent's normaliser from a fragment that is not learned from.

        Otherwise the first updates, on raw observations, drive tanh units into saturation, and the
        sudden normalisation after them finds the policy already spoilt.
        """
        self.pool.request(self.start(self.agent.update).weights, WARM_UP_FRAGMENT, reset=True)
        with self._waiting():
            rollout = self.pool.gather()
        self.agent.initialize_normalizer(rollout)
        self.begin_anew()
        return rollout

    def begin_anew(self) -> None:
        """The next fragment begins with a reset, under the agent's weights of now."""
        self._starts = {self.agent.update: Start(self.agent.weights(), None)}

    def collect(self, goes_on: Callable[[int], bool]) -> Iterator[Rollout]:
        """Fragments for as long as the run goes on; each is to be learned from before the next.

        Args:
            goes_on: whether there will be another update after so many more steps.
        """
        while goes_on(0):
            update, start = self.agent.update, time.perf_counter()
            if self._in_flight is None:
                self._request(update)
            asked = time.perf_counter()
            with self._waiting():
                rollout = self.pool.gather()
            self._in_flight, self._environments = None, rollout.environments
            gathered = time.perf_counter()
            self._starts = {k: begun for k, begun in self._starts.items() if k >= update}
            if self._requests_ahead:
                self.start(update + 1)  # under these weights, also where a resumed run asks for it
                if goes_on(rollout.steps):
                    self._request(update + 1)
            requested = time.perf_counter()
            self.times = {
                "time/sample_wait": gathered - asked,
                "time/transfer": (asked - start) + (requested - gathered),
            }
            yield rollout

    def start(self, fragment: int) -> Start:
        """Where a fragment begins that has not been learned from yet."""
        if fragment not in self._starts:
            self._starts[fragment] = Start(self.agent.weights(), self._environments)
        return self._starts[fragment]

    def _request(self, fragment: int) -> None:
        """Ask for a fragment; the first one of the run, or since its resume, restores or resets."""
        weights, environments = self.start(fragment)
        restore = environments if self._is_first else None
        reset = self._is_first and restore is None
        if self._reset_every is not None and fragment % self._reset_every == 0:
            reset = True
        self.pool.request(weights, fragment, reset, keep=self._keeps, restore=restore)
        self._is_first, self._in_flight = False, fragment
