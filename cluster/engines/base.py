"""What an engine is: samplers that run somewhere, and how to reach each of them.

An engine does not know when a sampler is asked: that is the schedule's to decide.
"""

from __future__ import annotations

import abc
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cluster.pool import Environments, Request
from cluster.sampler import TimedEpisode
from cluster.session import pack_request
from rollout import Rollout, RolloutSpec, Weights, spread
from settings.config import Config

SILENCE_S = 120.0  # a sampler that works on one fragment for longer is named to the user


class Part(NamedTuple):
    """What one sampler collected: its columns of the rollout [T, its environments].

    The columns can be memory that the sampler writes again: see `Engine.slots`.
    """

    columns: Rollout
    episodes: list[TimedEpisode]
    environments: Environments | None


class Engine(abc.ABC):
    """Samplers over the environments of a run, each asked and answering on its own.

    Args:
        config: the run's settings.
        spec: shapes of a rollout.
        samplers: how many; their shares of the environments are as equal as can be.

    Attributes:
        ranges: the environments [first, last) of each sampler.
        slots: two rollouts [T, env_num] in which the samplers' parts lie in place, side by side:
            those of fragment k in slot k % 2. None where parts come in messages.
        restarts: how many samplers were started in place of lost ones.
    """

    name: str
    slots: list[Rollout] | None = None

    def __init__(self, config: Config, spec: RolloutSpec, samplers: int):
        self.config, self.spec = config, spec
        self.ranges = spread(config.env_num, samplers, config.envs_together)
        self.restarts = 0
        self._starting: set[int] = set()  # have not said that they are ready: meanwhile we compile
        self._requests: dict[int, Request] = {}  # what each busy sampler works on
        self._since: dict[int, float] = {}  # when it was asked; without those named as silent
        self._weights: Weights | None = None
        self._packed: tuple[Request, Weights | None, bytes] | None = None

    @property
    def samplers(self) -> int:
        return len(self.ranges)

    @property
    @abc.abstractmethod
    def samplers_alive(self) -> int:
        """How many samplers are there to work."""

    def publish(self, weights: Weights) -> None:
        """The weights of all requests that are sent from now on."""
        self._weights = weights

    def send(self, index: int, request: Request) -> None:
        """Ask sampler `index`, which must be idle. Returns at once."""
        if index in self._requests:
            raise RuntimeError(f"sampler {index} has not given its last answer yet")
        self._requests[index], self._since[index] = request, time.monotonic()
        self._send(index, request)

    @abc.abstractmethod
    def answered(self, timeout: float | None) -> list[int]:
        """Samplers that have answered; `receive` is called for each of them.

        Args:
            timeout: how long to wait for one [s]; None: for ever. It also ends with `wake`.

        Raises:
            SamplerError: where any sampler could not be started, or is gone.
        """

    def receive(self, index: int) -> Part:
        """The answer of sampler `index`, which has come.

        Raises:
            SamplerError: where it failed.
        """
        request = self._requests.pop(index)
        self._since.pop(index, None)
        return self._receive(index, request)

    def wait(self, silence_s: float = SILENCE_S) -> list[int]:
        """Like `answered`, but name to the user, once a request, the samplers that are silent."""
        ready = self.answered(silence_s)
        before = time.monotonic() - silence_s
        idle = self._starting.union(ready)
        silent = [i for i, asked in self._since.items() if asked < before and i not in idle]
        if silent:
            for index in silent:
                del self._since[index]
            print(
                f"no answer for {silence_s:g} s from sampler {', '.join(map(str, silent))}: a step"
                f" of its environments takes long, or hangs",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        return ready

    def _is_ready(self, index: int) -> None:
        """Note that sampler `index` has started: now it begins with the request that it has."""
        self._starting.remove(index)
        if index in self._since:
            self._since[index] = time.monotonic()

    def restart(self, index: int) -> None:
        """Start a fresh sampler in place of one that is lost, or that hangs.

        It is idle, and its environments are new: its next request has to reset or restore them.
        """
        self._requests.pop(index, None)
        self._since.pop(index, None)
        self._restart(index)
        self.restarts += 1

    @abc.abstractmethod
    def wake(self) -> None:
        """Let an `answered` that waits in another thread return."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the samplers, whatever they are doing. Waits 2 s at most."""

    @abc.abstractmethod
    def _send(self, index: int, request: Request) -> None: ...

    @abc.abstractmethod
    def _receive(self, index: int, request: Request) -> Part: ...

    @abc.abstractmethod
    def _restart(self, index: int) -> None: ...

    def _message(self, request: Request, weights: Weights | None) -> bytes:
        """A request in bytes, packed once for all samplers that get the same."""
        packed = self._packed
        if packed is None or packed[0] is not request or packed[1] is not weights:
            arrays: Mapping[str, np.ndarray] = {} if weights is None else weights.arrays
            self._packed = packed = (request, weights, pack_request(request, arrays))
        return packed[2]
