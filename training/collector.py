"""When fragments are requested and gathered: the policy's lag lives in this file.

    policy_lag 0    request k, gather k, learn k, request k+1 under the weights of update k
    policy_lag 1    gather k, request k+1 under the weights of update k-1, learn k meanwhile
    policy_lag 2+   the pool never rests: a request hands it newer weights, and a gather takes the
                    fragments that have arrived

A fragment's number, with the seed, decides the noise that its actions are drawn from. There are
three kinds of numbers, so that no two fragments of a run share one:

    k                 the fragment of update k
    2**32             `WARM_UP_FRAGMENT`, before the first update
    k * 2**20 + n     policy_lag 2+: each sampler's n-th, in a run that began or resumed at update k
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

from agent import PPOAgent
from cluster.pool import SamplerPool
from rollout import Rollout, Weights
from settings.config import Config

WARM_UP_FRAGMENT = 2**32


class Start(NamedTuple):
    """Where a fragment begins: the weights that its samplers act with."""

    weights: Weights


class Collector:
    """Produces the fragments that an agent learns from, in order.

    Args:
        config: the run's settings.
        agent: whose weights the samplers get; its `update` says which fragment is next.
        pool: the samplers.
        start: where the next fragment begins. Default: under the agent's weights.
        resets_before: whether the environments are reset before an update's fragment.
        waiting: the context in which the pool is waited for.

    Attributes:
        times: seconds spent on the last fragment: `sample_wait` for the samplers, `transfer` to
            hand them the next weights.
    """

    def __init__(
        self,
        config: Config,
        agent: PPOAgent,
        pool: SamplerPool,
        start: Start | None,
        resets_before: Callable[[int], bool],
        waiting: Callable[[], AbstractContextManager[None]],
    ):
        self.agent, self.pool = agent, pool
        self.times = {"sample_wait": 0.0, "transfer": 0.0}
        self._requests_ahead = config.policy_lag == 1
        self._resets_before, self._waiting = resets_before, waiting
        # by number, from the fragment that is learned from next on
        self._starts = {agent.update: start or Start(agent.weights())}
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
        self._starts = {self.agent.update: Start(self.agent.weights())}
        return rollout

    def collect(self, goes_on: Callable[[int], bool]) -> Iterator[Rollout]:
        """Fragments for as long as the run goes on; each is to be learned from before the next.

        Args:
            goes_on: whether there will be another update after so many more steps.
        """
        while goes_on(0):
            update, start = self.agent.update, time.perf_counter()
            if self._in_flight is None:
                self._request(update)
            with self._waiting():
                rollout = self.pool.gather()
            self._in_flight = None
            gathered = time.perf_counter()
            self._starts = {k: begun for k, begun in self._starts.items() if k >= update}
            if self._requests_ahead:
                self.start(update + 1)  # under these weights, also where a resumed run asks for it
                if goes_on(rollout.steps):
                    self._request(update + 1)
            requested = time.perf_counter()
            self.times = {"sample_wait": gathered - start, "transfer": requested - gathered}
            yield rollout

    def start(self, fragment: int) -> Start:
        """Where a fragment begins that has not been learned from yet."""
        if fragment not in self._starts:
            self._starts[fragment] = Start(self.agent.weights())
        return self._starts[fragment]

    def _request(self, fragment: int) -> None:
        weights = self.start(fragment).weights
        self.pool.request(weights, fragment, self._resets_before(fragment))
        self._in_flight = fragment
