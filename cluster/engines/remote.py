"""Samplers that are reached by blocking calls, bytes in and bytes out: one thread for each.

A call may take as long as it likes, and may raise anything: its thread hands the answer or the
exception to whoever waits in `answered`. No thread keeps the process alive.
"""

from __future__ import annotations

import abc
import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable

from cluster.engines.base import Engine
from cluster.pool import Lost, Request
from cluster.session import pack_hello
from rollout import RolloutSpec
from settings.config import Config

# an actor begins with some seconds of imports; where many share a core, they delay each other's
# heartbeats until their cluster takes them for dead
STARTS_AT_ONCE = 16
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
    """See `Engine`; a subclass says how one sampler is made."""

    kind = "remote actor"

    def __init__(self, config: Config, spec: RolloutSpec, samplers: int):
        super().__init__(config, spec, samplers)
        self._gate = threading.Semaphore(STARTS_AT_ONCE)
        self._done: queue.SimpleQueue[tuple[Actor, Outcome] | None] = queue.SimpleQueue()
        self._actors: dict[int, Actor] = {}
        for index in range(samplers):
            self.start(index)

    @abc.abstractmethod
    def _make(self, index: int) -> Call:
        """Make sampler `index`, which answers as a `Session` does. Runs in its thread."""

    def _hello(self, index: int) -> bytes:
        return pack_hello(self.config, *self.ranges[index], index)

    def _start(self, index: int) -> None:
        hello = self._hello(index)
        self._actors[index] = Actor(lambda: self._make(index), hello, self._gate, self._done)

    def _end(self, index: int) -> None:
        actor = self._actors.pop(index, None)
        if actor is not None:
            actor.stop()

    def _send(self, index: int, request: Request) -> None:
        assert self._weights is not None, "no weights were published"
        self._actors[index].call(self._message(request, self._weights))

    def answered(self, timeout: float | None) -> list[int]:
        ready = []
        with contextlib.suppress(queue.Empty):
            event = self._done.get(timeout=timeout)
            while True:
                if event is not None:
                    ready += self._take_in(*event)
                event = self._done.get_nowait()
        return ready

    def _take_in(self, actor: Actor, outcome: Outcome) -> list[int]:
        """The sampler whose answer or end this is, unless it is one that was replaced."""
        for index, current in self._actors.items():
            if current is actor:
                if isinstance(outcome, BaseException):
                    outcome = Lost(f"{type(outcome).__name__}: {outcome}")
                return [index] if self.note(index, outcome) else []
        return []

    def _patience(self, index: int) -> float:
        # a call tells nothing until it is over
        return super()._patience(index) if index in self.starting else math.inf

    def wake(self) -> None:
        self._done.put(None)

    def close(self) -> None:
        for actor in self._actors.values():
            actor.stop()
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S  # for all of them
        for actor in self._actors.values():
            actor.thread.join(max(0.0, deadline - time.monotonic()))
