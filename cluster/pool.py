"""The interface of a pool of samplers, and what all pools share.

A pool consumes `Weights` and produces `Rollout`s. One fragment is in flight at a time: `request`
asks every sampler before any is awaited, `gather` waits for all of them. Two rollouts exist, so
the learner may read one while the samplers fill the other; a gathered rollout stays valid until
the second `request` after it.
"""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch

from cluster.sampler import Sampler, TimedEpisode
from common.errors import UserError
from envs import BadEnvironment
from rollout import Episode, Rollout, RolloutSpec, Weights, spread
from settings.config import Config


class SamplerError(UserError):
    """A sampler failed. The message names it and says why."""


class Request(NamedTuple):
    """What every sampler is asked for: one fragment, under one version of the weights."""

    fragment: int
    reset: bool
    version: int


def in_order(episodes: list[TimedEpisode]) -> list[Episode]:
    """Episodes in the order of time, whichever sampler saw them."""
    ordered = sorted(episodes, key=lambda e: (e.t, e.env))
    return [Episode(e.episode_return, e.length, e.extras) for e in ordered]


class SamplerPool(abc.ABC):
    """Samplers over all environments of a run.

    Args:
        config: the run's settings.
        spec: shapes of a rollout.
        samplers: number of samplers.
    """

    name: str
    dropped = 0  # fragments that came too late: none, where all are waited for

    def __init__(self, config: Config, spec: RolloutSpec, samplers: int):
        self.config, self.spec = config, spec
        self.ranges = spread(config.env_num, samplers, config.envs_together)
        self.slots = self._allocate()
        self._in_flight: Request | None = None

    @property
    def samplers(self) -> int:
        return len(self.ranges)

    def request(self, weights: Weights, fragment: int, reset: bool) -> None:
        """Ask every sampler for its part of a fragment. Returns at once."""
        if self._in_flight is not None:
            raise RuntimeError(f"fragment {self._in_flight.fragment} has not been gathered yet")
        self._in_flight = Request(fragment, reset, weights.version)
        self._publish(weights)
        for index in range(self.samplers):
            self._send(index, self._in_flight)

    def gather(self) -> Rollout:
        """Wait for the fragment that was requested: [T, env_num].

        Raises:
            SamplerError: where a sampler failed or is gone.
        """
        request, self._in_flight = self._in_flight, None
        if request is None:
            raise RuntimeError("nothing was requested")
        episodes: list[TimedEpisode] = []
        for index in range(self.samplers):
            episodes += self._receive(index, request)
        rollout = self._slot(request)
        rollout.policy_version, rollout.reset = request.version, request.reset
        rollout.carried = 0 if request.reset else self.config.carried_steps
        rollout.episodes = in_order(episodes)
        rollout.env_ranges = [(0, self.config.env_num)]
        return rollout

    # --- one sampler at a time, for asynchronous collection
    def send(self, index: int, request: Request, weights: Weights) -> None:
        """Start sampler `index`, which must be idle. Returns at once."""
        self._publish(weights)
        self._send(index, request)

    @abc.abstractmethod
    def answered(self, indices: list[int], timeout: float) -> list[int]:
        """Those of the busy samplers `indices` that have answered; waits [s] for one of them."""

    def receive(self, index: int, request: Request) -> Rollout:
        """A copy of what sampler `index` collected: [T, its environments].

        Raises:
            SamplerError: where it failed or is gone.
        """
        episodes = self._receive(index, request)
        first, last = self.ranges[index]
        columns = self._slot(request).columns(first, last)
        part = Rollout.of({name: array.copy() for name, array in columns.arrays().items()})
        part.policy_version, part.reset = request.version, request.reset
        part.episodes = in_order(episodes)
        part.env_ranges = [(first, last)]
        return part

    def _slot(self, request: Request) -> Rollout:
        return self.slots[request.fragment % 2]

    def _allocate(self) -> list[Rollout]:
        return [Rollout.empty(self.spec, self.config.env_num) for _ in range(2)]

    @abc.abstractmethod
    def _publish(self, weights: Weights) -> None:
        """Make the weights available to the samplers."""

    @abc.abstractmethod
    def _send(self, index: int, request: Request) -> None:
        """Start sampler `index` on its part."""

    @abc.abstractmethod
    def _receive(self, index: int, request: Request) -> list[TimedEpisode]:
        """Wait until sampler `index` has filled its columns of the slot."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the samplers; no process is left."""


class InlinePool(SamplerPool):
    """One sampler in the learner's own process, for debugging: `gather` does all the work."""

    name = "inline"

    def __init__(self, config: Config, spec: RolloutSpec):
        super().__init__(config, spec, samplers=1)
        self._sampler = Sampler(config, 0, config.env_num)

    def _publish(self, weights: Weights) -> None:
        self._sampler.model.set_weights(weights.arrays)

    def _send(self, index: int, request: Request) -> None:
        pass

    def answered(self, indices: list[int], timeout: float) -> list[int]:
        return indices

    def _receive(self, index: int, request: Request) -> list[TimedEpisode]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in every other pool: more would sum in another order
        try:
            return self._sampler.collect(request.fragment, request.reset, self._slot(request))
        except BadEnvironment as error:
            raise SamplerError(f"sampler 0: {error}") from None
        finally:
            torch.set_num_threads(threads)

    def close(self) -> None:
        self._sampler.close()
