"""Samplers as actors of a Ray cluster: fragments cross the network, and weights once a machine.

An actor holds a `Session`, as an xparl actor does, and Ray carries bytes: a request and its answer,
and the weights, which lie in Ray's object store for all actors. Ray tells at once of an actor that
has died. Of one that hangs it tells nothing, so busy actors are asked now and then how far they are;
a thread of the actor's own answers. Ray restarts nothing: that is the supervisor's to do.
"""

from __future__ import annotations

import contextlib
import importlib
import queue
import time
from typing import Any

from cluster.engines.actor import make_host, packages_of, versions
from cluster.engines.base import Engine
from cluster.engines.ray_cluster import connect
from cluster.pool import Lost, Request
from cluster.session import PROGRESS, pack_hello, pack_weights
from common.sources import digest, sources
from envs import family_of
from rollout import RolloutSpec, Weights
from settings.config import Config

PROGRESS_S = 1.0  # between two questions to a busy actor


def make_actor(ray: Any) -> Any:
    """The remote class. As xparl's it is sent by value, and brings the project's sources."""
    host: Any = make_host()

    class Actor(host):
        def __init__(self, version: str, sources: dict[str, bytes]):
            super().__init__(version, sources)
            self.session = importlib.import_module("cluster.engines.actor").ActorSession()

        def call(self, message: bytes, weights: bytes | None = None) -> bytes:
            return self.session.handle(message, weights)

        @ray.method(concurrency_group="progress")
        def progress(self) -> object:
            return self.session.progress

    Actor.__module__ = host.__module__
    return ray.remote(num_cpus=1, max_restarts=0, concurrency_groups={"progress": 1})(Actor)


class RayEngine(Engine):
    """Samplers in actors of a Ray cluster, one CPU of the cluster each.

    Raises:
        RayError: where there is no Ray, or the cluster cannot be reached.
    """

    name, kind = "ray", "remote actor"

    def __init__(self, config: Config, spec: RolloutSpec, samplers: int):
        super().__init__(config, spec, samplers)
        assert config.ray_address is not None
        self._ray = connect(config.ray_address)
        self._class = make_actor(self._ray)
        project = sources()
        self._project = digest(project), self._ray.put(project)
        self._versions = versions(packages_of(family_of(config.env)))
        self._stored: tuple[Weights, Any] | None = None  # where in the object store they lie
        # (actor, whether it was asked for its progress, the answer); None: `wake`
        self._done: queue.SimpleQueue[tuple[Any, bool, Any] | None] = queue.SimpleQueue()
        self._actors: dict[int, Any] = {}
        self._reached: dict[int, object] = {}  # how far an actor was when it was last asked
        self._asked: set[int] = set()  # actors that have not said yet how far they are
        self._next_look = 0.0
        for index in range(samplers):
            self.start(index)

    def _start(self, index: int) -> None:
        self._reached.pop(index, None)
        self._asked.discard(index)
        self._actors[index] = self._class.remote(*self._project)
        hello = pack_hello(self.config, *self.ranges[index], index, versions=self._versions)
        self._await(index, self._actors[index].call.remote(hello))

    def _await(self, index: int, answer: Any, is_progress: bool = False) -> None:
        """Put an answer, or the error that came instead, into `_done` once it is there."""
        actor, done = self._actors[index], self._done
        answer.future().add_done_callback(lambda future: done.put((actor, is_progress, future)))

    def _end(self, index: int) -> None:
        actor = self._actors.pop(index, None)
        if actor is not None:
            self._ray.kill(actor)

    def _send(self, index: int, request: Request) -> None:
        weights = self._weights
        assert weights is not None, "no weights were published"
        if self._stored is None or self._stored[0] is not weights:
            self._stored = weights, self._ray.put(pack_weights(weights))
        message = self._message(request, None)
        self._await(index, self._actors[index].call.remote(message, self._stored[1]))

    def answered(self, timeout: float | None) -> list[int]:
        if time.monotonic() > self._next_look:
            self._next_look = time.monotonic() + PROGRESS_S
            for index in self._requests.keys() - self.starting - self._asked:
                self._asked.add(index)
                self._await(index, self._actors[index].progress.remote(), is_progress=True)
        ready = []
        with contextlib.suppress(queue.Empty):
            event = self._done.get(timeout=timeout)
            while True:
                if event is not None:
                    ready += self._take_in(*event)
                event = self._done.get_nowait()
        return ready

    def _take_in(self, actor: Any, is_progress: bool, answer: Any) -> list[int]:
        """The sampler whose answer or end this is, unless it is one that was replaced."""
        index = next((i for i, current in self._actors.items() if current is actor), None)
        if index is None:
            return []
        error = answer.exception()
        if is_progress:
            self._asked.discard(index)
            if error is None:  # otherwise the call that it is busy with comes to the same
                reached = answer.result()
                if reached != self._reached.setdefault(index, reached):
                    self._reached[index] = reached
                    self.note(index, PROGRESS)
            return []
        message = answer.result() if error is None else Lost(_what_became_of_it(error))
        return [index] if self.note(index, message) else []

    def wake(self) -> None:
        self._done.put(None)

    def close(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._ray.shutdown()


def _what_became_of_it(error: BaseException) -> str:
    """Ray's error without the lines that name the actor in Ray's numbers."""
    lines = [line.strip() for line in str(error).splitlines() if not line.startswith("\t")]
    return f"{type(error).__name__}: {' '.join(lines)}"
