"""What an engine is: samplers that run somewhere, and how to reach each of them.

An engine does not know when a sampler is asked: that is the schedule's to decide. It tells of a
sampler that is lost, and can end it and start another; when that is done is the supervisor's to
decide.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cluster.pool import Environments, Lost, Request
from cluster.sampler import TimedEpisode
from cluster.session import PROGRESS, pack_request, read_answer
from rollout import Rollout, RolloutSpec, Weights, spread
from settings.config import Config

START_TIMEOUT_S = 180.0  # to import, to build the environments, to compile what they need
FIRST_STEP_TIMEOUT_S = 60.0  # the first step may start a Java machine, or compile


class Part(NamedTuple):
    """What one sampler collected: its columns of the rollout [T, its environments].

    The columns can be memory that the sampler writes again: see `Engine.slots`.
    """

    columns: Rollout
    episodes: list[TimedEpisode]
    environments: Environments | None


def read_part(message: bytes | memoryview, spec: RolloutSpec, envs: tuple[int, int]) -> Part:
    """The part of the environments [first, last) that an answer brings.

    Raises:
        Lost: where it is an error, cannot be read, or is no part of this run's rollouts.
    """
    answer, own = read_answer(message), range(*envs)
    found = {name: (array.shape, array.dtype) for name, array in answer.arrays.items()}
    if found != spec.arrays(len(own)):
        raise Lost("its answer has arrays of other names, shapes or types than this run's rollouts")
    if not all(e.t in range(spec.steps) and e.env in own for e in answer.episodes):
        raise Lost("its answer has an episode of another time or another's environment")
    for name, array in (answer.environments or {}).items():
        if array.shape[:1] != (len(own),):
            raise Lost(
                f"its answer has the state {name!r} of shape {array.shape} for its"
                f" {len(own)} environments"
            )
    columns = Rollout.of(answer.arrays)
    columns.raw_sps = answer.raw_sps
    return Part(columns, answer.episodes, answer.environments)


class Engine(abc.ABC):
    """Samplers over the environments of a run, each asked and answering on its own.

    Args:
        config: the run's settings.
        spec: shapes of a rollout.
        samplers: how many; their shares of the environments are as equal as can be.
        envs: the run's environments [first, last) that they step. Default: all.

    Attributes:
        envs: these environments; a rollout has a column for each.
        ranges: the environments [first, last) of each sampler.
        columns: the same as columns of a rollout.
        slots: two rollouts [T, N] in which the samplers' parts lie in place, side by side:
            those of fragment k in slot k % 2. None where parts come in messages.
        works_aside: whether samplers work while nobody waits for them.
        starting: the samplers that have not said yet that they are ready.
    """

    name: str
    kind = "sampler process"  # what a sampler is called in messages
    slots: list[Rollout] | None = None
    works_aside = True

    def __init__(
        self,
        config: Config,
        spec: RolloutSpec,
        samplers: int,
        envs: tuple[int, int] | None = None,
    ):
        self.config, self.spec = config, spec
        self.envs = first, last = envs or (0, config.env_num)
        self.columns = spread(last - first, samplers, config.envs_together)
        self.ranges = [(first + left, first + right) for left, right in self.columns]
        self.starting: set[int] = set()
        self._requests: dict[int, Request] = {}  # what each busy sampler works on
        self._heard: dict[int, float] = {}  # when a sampler last began something, or made a step
        self._stepped: set[int] = set()  # samplers that have made a step since their start
        self._answers: dict[
            int, bytes | memoryview | Lost
        ] = {}  # those that `receive` has not taken yet
        self._weights: Weights | None = None
        self._packed: tuple[Request, Weights | None, bytes] | None = None

    @property
    def samplers(self) -> int:
        return len(self.ranges)

    @property
    def width(self) -> int:
        """N: environments, and columns of a rollout."""
        return self.envs[1] - self.envs[0]

    def request(self, index: int) -> Request | None:
        """What sampler `index` works on; None where it is idle."""
        return self._requests.get(index)

    def publish(self, weights: Weights) -> None:
        """The weights of all requests that are sent from now on."""
        self._weights = weights

    def send(self, index: int, request: Request) -> None:
        """Ask sampler `index`, which must be idle or starting. Returns at once."""
        if index in self._requests:
            raise RuntimeError(f"sampler {index} has not given its last answer yet")
        self._requests[index] = request
        if index not in self.starting:
            self._heard[index] = time.monotonic()
        self._send(index, request)

    @abc.abstractmethod
    def answered(self, timeout: float | None) -> list[int]:
        """Samplers that have answered or are lost; `receive` is called for each of them.

        Args:
            timeout: how long to wait for one [s]; None: for ever. It also ends with `wake`.
        """

    def receive(self, index: int) -> Part:
        """The answer of sampler `index`, which has come.

        Raises:
            Lost: where the sampler is gone, or answered with an error.
        """
        answer = self._answers.pop(index)
        request = self._requests.pop(index, None)
        if isinstance(answer, Lost):
            raise answer
        if request is None:
            raise Lost("it answered without having been asked")
        return self._part(index, request, answer)

    def note(self, index: int, message: bytes | memoryview | Lost) -> bool:
        """Take in a message of sampler `index`, or its end; whether `receive` has one to give."""
        self._heard[index] = time.monotonic()
        if not isinstance(message, Lost) and message == PROGRESS:
            self._stepped.add(index)
            return False
        if index in self.starting and not isinstance(message, Lost):
            try:
                read_answer(message)
            except Lost as lost:
                message = lost
            else:
                self.starting.remove(index)
                return False
        if index in self._requests:
            self._stepped.add(index)
        self._answers[index] = message
        return True

    def is_missed(self, index: int) -> bool:
        """Whether sampler `index` has no place to run yet, and nobody knows when it will."""
        return False

    @property
    def alarms(self) -> int:
        """How often something came up that may end the run: it is saved then."""
        return 0

    def news(self) -> list[str]:
        """Sentences for the user about where the samplers run, told once.

        Raises:
            SamplerError: where nothing will run there any more.
        """
        return []

    def overdue(self, now: float) -> dict[int, float]:
        """Samplers that had been silent for too long at a moment, and for how long that is [s].

        Args:
            now: that moment, by the monotonic clock [s].
        """
        limits = {i: self._patience(i) for i in self.starting | self._requests.keys()}
        late = {i: s for i, s in limits.items() if now - self._heard[i] > s}
        return {i: s for i, s in late.items() if i not in self._answers}

    def excuse(self, seconds: float, now: float) -> None:
        """Count so much less silence of all samplers [s] until `now`, as nobody listened."""
        self._heard = {i: min(heard + seconds, now) for i, heard in self._heard.items()}

    def _patience(self, index: int) -> float:
        """How long sampler `index`, which has something to do, may be silent [s]."""
        if index in self.starting:
            return START_TIMEOUT_S
        limit = self.config.sampler_timeout
        return limit if index in self._stepped else max(limit, FIRST_STEP_TIMEOUT_S)

    def end(self, index: int) -> None:
        """End sampler `index` for good, whatever it is doing, and forget what it was asked."""
        self._requests.pop(index, None)
        self._answers.pop(index, None)
        self.starting.discard(index)
        self._end(index)

    def start(self, index: int) -> None:
        """Start sampler `index`. Returns at once.

        Its environments are new: its first request has to reset or restore them.

        Raises:
            OSError: where it cannot be started now.
        """
        self._stepped.discard(index)
        self._start(index)
        self.starting.add(index)
        self._heard[index] = time.monotonic()

    @abc.abstractmethod
    def wake(self) -> None:
        """Let an `answered` that waits in another thread return."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the samplers, whatever they are doing. Waits 2 s at most."""

    @abc.abstractmethod
    def _start(self, index: int) -> None: ...

    @abc.abstractmethod
    def _end(self, index: int) -> None: ...

    @abc.abstractmethod
    def _send(self, index: int, request: Request) -> None: ...

    def _part(self, index: int, request: Request, message: bytes | memoryview) -> Part:
        """The part that an answer brings; raises Lost as `read_part` does."""
        return read_part(message, self.spec, self.ranges[index])

    def _message(self, request: Request, weights: Weights | None) -> bytes:
        """A request in bytes, packed once for all samplers that get the same."""
        packed = self._packed
        if packed is None or packed[0] is not request or packed[1] is not weights:
            arrays: Mapping[str, np.ndarray] = {} if weights is None else weights.arrays
            self._packed = packed = (request, weights, pack_request(request, arrays))
        return packed[2]
