"""An engine for tests: samplers in threads of this process, reached by messages.

The samplers answer one at a time. Elsewhere each has a process of its own, and some environments need
that: the bots of microRTS that play at random exchange the one random generator of their JVM.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable

from cluster.engines.base import Engine
from cluster.pool import Lost, Request
from cluster.session import Session, pack_hello
from rollout import RolloutSpec
from settings.config import Config

CLOSE_TIMEOUT_S = 2.0
Call = Callable[[bytes], bytes]
_ANSWERING = threading.Lock()


def session() -> Call:
    """What answers a sampler's messages."""
    handle = Session().handle

    def one_at_a_time(message: bytes) -> bytes:
        with _ANSWERING:
            return handle(message)

    return one_at_a_time


class Actor:
    """One sampler and its thread.

    Args:
        start: makes the sampler and returns the function that calls it. Runs in the thread.
        hello: the first message to the sampler.
        done: gets (this actor, an answer or the exception that came instead) for each message.
    """

    def __init__(self, start: Callable[[], Call], hello: bytes, done: queue.SimpleQueue):
        self.messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.messages.put(hello)
        self._start, self._done = start, done
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            call = self._start()
            while (message := self.messages.get()) is not None:
                self._done.put((self, call(message)))
        except BaseException as error:  # it is the engine's to tell
            self._done.put((self, Lost(f"{type(error).__name__}: {error}")))


class SessionsInThreads(Engine):
    """Samplers that answer bytes with bytes, as remote actors do.

    Args:
        starts: what some samplers' threads run instead of making a session, by index.
    """

    name, kind = "threads", "remote actor"

    def __init__(
        self,
        config: Config,
        spec: RolloutSpec,
        samplers: int,
        starts: dict[int, Callable[[], Call]] | None = None,
    ):
        super().__init__(config, spec, samplers)
        self.starts = {} if starts is None else starts
        self._done: queue.SimpleQueue[tuple[Actor, bytes | Lost] | None] = queue.SimpleQueue()
        self._actors: dict[int, Actor] = {}
        for index in range(samplers):
            self.start(index)

    def _start(self, index: int) -> None:
        start = self.starts.get(index, session)
        hello = pack_hello(self.config, *self.ranges[index], index)
        self._actors[index] = Actor(start, hello, self._done)

    def _end(self, index: int) -> None:
        actor = self._actors.pop(index, None)
        if actor is not None:
            actor.messages.put(None)

    def _send(self, index: int, request: Request) -> None:
        self._actors[index].messages.put(self._message(request, self._weights))

    def answered(self, timeout: float | None) -> list[int]:
        try:
            event = self._done.get(timeout=timeout)
        except queue.Empty:
            return []
        return [i for i, actor in self._actors.items()
                if event is not None and event[0] is actor and self.note(i, event[1])]  # fmt: skip

    def _patience(self, index: int) -> float:
        # a call tells nothing until it is over
        return super()._patience(index) if index in self.starting else math.inf

    def wake(self) -> None:
        self._done.put(None)

    def close(self) -> None:
        actors = list(self._actors.values())
        for index in list(self._actors):
            self._end(index)
        deadline = time.monotonic() + CLOSE_TIMEOUT_S  # for all of them
        for actor in actors:
            actor.thread.join(max(0.0, deadline - time.monotonic()))
