"""Samplers that are reached by blocking calls, bytes in and bytes out: one thread for each.

A call may take as long as it likes, and may raise anything: its thread hands the answer or the
exception to whoever waits in `answered`. No thread keeps the process alive.
"""

from __future__ import annotations

import abc
import queue
import threading
import time
from collections.abc import Callable

from cluster.engines.base import Engine, Part
from cluster.pool import Request, SamplerError
from cluster.session import Answer, pack_hello, read_answer
from rollout import Rollout, RolloutSpec
from settings.config import Config

# an actor begins with some seconds of imports; where many share a core, they delay each other's
# heartbeats until their cluster takes them for dead
STARTS_AT_ONCE = 16
START_TIMEOUT_S = 180.0
_CLOSE_TIMEOUT_S = 2.0

Call = Callable[[bytes], bytes]
Outcome = bytes | BaseException


class Actor:
    """One remote sampler and the thread that makes its calls.

    Args:
        start: makes the sampler and returns the function that calls it. Runs in the thread.
        hello: the first message to the sampler.
        gate: bounds how many actors start at once.
        done: gets (this actor, outcome) after the hello and after each call.
    """

    def __init__(
        self,
        start: Callable[[], Call],
        hello: bytes,
        gate: threading.Semaphore,
        done: queue.SimpleQueue[tuple[Actor, Outcome] | None],
    ):
        self.is_lost = False
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._start, self._gate, self._done = start, gate, done
        self._is_stopped = False
        self.thread = threading.Thread(target=self._run, args=(hello,), daemon=True)
        self.thread.start()

    def call(self, message: bytes) -> None:
        """Call the sampler once it is free. Returns at once."""
        self._messages.put(message)

    def stop(self) -> None:
        """Release the sampler after the call in progress. Returns at once."""
        self._is_stopped = True
        self._messages.put(None)

    def _run(self, hello: bytes) -> None:
        try:
            with self._gate:
                if self._is_stopped:
                    return
                call = self._start()
                answer = call(hello)
            while True:
                self._done.put((self, answer))
                message = self._messages.get()
                if message is None:
                    return
                answer = call(message)
        except BaseException as error:  # whoever waits for the answer raises it
            self._done.put((self, error))


class RemoteEngine(Engine):
    """See `Engine`; a subclass says how one sampler is made.

    Args:
        start_timeout_s: how long samplers may be starting without any of them getting ready [s].
    """

    kind = "remote actor"  # what a sampler is called in messages

    def __init__(
        self,
        config: Config,
        spec: RolloutSpec,
        samplers: int,
        start_timeout_s: float = START_TIMEOUT_S,
    ):
        super().__init__(config, spec, samplers)
        self.start_timeout_s = start_timeout_s
        self._gate = threading.Semaphore(STARTS_AT_ONCE)
        self._done: queue.SimpleQueue[tuple[Actor, Outcome] | None] = queue.SimpleQueue()
        self._outcomes: dict[int, Outcome] = {}
        self._actors = [self._new_actor(index) for index in range(samplers)]
        self._last_start = time.monotonic()  # when a sampler was last ready, or asked to start

    @abc.abstractmethod
    def _start(self, index: int) -> Call:
        """Make sampler `index`, which answers as a `Session` does. Runs in its thread."""

    def _hello(self, index: int) -> bytes:
        return pack_hello(self.config, *self.ranges[index], index)

    def _new_actor(self, index: int) -> Actor:
        self._starting.add(index)
        return Actor(lambda: self._start(index), self._hello(index), self._gate, self._done)

    @property
    def samplers_alive(self) -> int:
        ready = (a for i, a in enumerate(self._actors) if i not in self._starting)
        return sum(not actor.is_lost for actor in ready)

    def _send(self, index: int, request: Request) -> None:
        assert self._weights is not None, "no weights were published"
        self._actors[index].call(self._message(request, self._weights))

    def answered(self, timeout: float | None) -> list[int]:
        ready = []
        try:
            event = self._done.get(timeout=self._patience(timeout))
            while True:
                if event is not None and event[0] in self._actors:  # not of one that was replaced
                    index = self._actors.index(event[0])
                    if self._note(index, event[1]):
                        ready.append(index)
                event = self._done.get_nowait()
        except queue.Empty:
            self._refuse_slow_starts()
        return ready

    def _note(self, index: int, outcome: Outcome) -> bool:
        """Keep what a call of sampler `index` came to; whether it is the answer to a request."""
        actor = self._actors[index]
        actor.is_lost = isinstance(outcome, BaseException)
        if index in self._starting:
            self._read(index, outcome)
            self._is_ready(index)
            self._last_start = time.monotonic()
            return False
        self._outcomes[index] = outcome
        return True

    def _read(self, index: int, outcome: Outcome) -> Answer:
        name = f"sampler {index} ({self.kind})"
        if isinstance(outcome, BaseException):
            raise SamplerError(f"{name} is lost: {type(outcome).__name__}: {outcome}") from outcome
        return read_answer(outcome, name)

    def _receive(self, index: int, request: Request) -> Part:
        answer = self._read(index, self._outcomes.pop(index))
        return Part(Rollout.of(answer.arrays), answer.episodes, answer.environments)

    def _patience(self, timeout: float | None) -> float | None:
        """How long to wait for an event [s]: no longer than starting samplers have time."""
        if not self._starting:
            return timeout
        left = max(0.0, self._last_start + self.start_timeout_s - time.monotonic())
        return left if timeout is None else min(timeout, left)

    def _refuse_slow_starts(self) -> None:
        late = time.monotonic() - self._last_start >= self.start_timeout_s
        if late and self._starting:
            raise SamplerError(
                f"sampler {', '.join(map(str, sorted(self._starting)))} ({self.kind}) did not start within"
                f" {self.start_timeout_s:g} s: another run may have taken the CPUs that were free"
                f" a moment ago; give fewer --samplers, or try again when it has ended"
            )

    def _restart(self, index: int) -> None:
        self._actors[index].stop()
        self._outcomes.pop(index, None)
        self._actors[index] = self._new_actor(index)
        self._last_start = time.monotonic()

    def wake(self) -> None:
        self._done.put(None)

    def close(self) -> None:
        for actor in self._actors:
            actor.stop()
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S  # for all of them
        for actor in self._actors:
            actor.thread.join(max(0.0, deadline - time.monotonic()))
