"""Samplers as xparl remote actors: fragments, not steps, cross the network.

PARL finds each actor a process and sends it the project's code, in one call that lasts as long as
the actor. The talk itself goes over a connection of our own (`exchange`), which shows at once when
an actor ends, and over which one that hangs is silent. The actors' packages must be the learner's.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Callable

from cluster.engines.actor import make_host, packages_of, users_files, versions
from cluster.engines.base import Engine
from cluster.engines.exchange import PROGRESS_S, Exchange
from cluster.engines.master import MasterWatch, reach
from cluster.engines.xparl_master import choose_key, connect, split
from cluster.pool import Lost, Request
from cluster.session import pack_hello
from common.sources import digest, sources
from envs import family_of
from parl_compat.placement import Placement
from parl_compat.shim import HOST_VARIABLE, load_parl
from rollout import RolloutSpec
from settings.config import Config

# an actor may begin with seconds of work, such as starting Java; where many share a core, they delay
# each other's heartbeats until their cluster takes them for dead
STARTS_AT_ONCE = 16
_CLOSE_TIMEOUT_S = 1.0


class _Actor:
    """One sampler at the cluster, as the learner sees it.

    Attributes:
        token: by which its messages are known.
        placement: its place at the cluster.
        has_cpu: whether a CPU has been found for it.
        unsent: messages for it, until it has connected; None from then on.
        is_gone: whether it has connected, and is there no more.
        thread: makes it, and waits for its end; None until then.
    """

    def __init__(self, hello: bytes, found: Callable[[_Actor], None]):
        self.token = secrets.token_hex(16).encode()
        self.placement = Placement(lambda: found(self))
        self.has_cpu = self.is_gone = False
        self.unsent: list[bytes] | None = [hello]
        self.thread: threading.Thread | None = None


class XparlEngine(Engine):
    """Samplers registered with an xparl master.

    Raises:
        ClusterError: where the cluster cannot be reached or is too small.
    """

    name = "xparl"
    kind = "remote actor"

    def __init__(
        self,
        config: Config,
        spec: RolloutSpec,
        samplers: int,
        envs: tuple[int, int] | None = None,
    ):
        super().__init__(config, spec, samplers, envs)
        assert config.xparl_addr is not None
        host, port = split(config.xparl_addr)
        choose_key(config.key, config.xparl_addr)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect((socket.gethostbyname(host), port))
            # actors must reach this process at the address from which it reaches the master
            os.environ[HOST_VARIABLE] = route.getsockname()[0]
        self._sources = sources()
        self._version = digest(self._sources)
        self._versions = versions(packages_of(family_of(config.env)))
        files = users_files()  # may be refused: before there is a client whose threads go on
        connect(config.xparl_addr, files)
        self._host = load_parl().remote_class(make_host())
        self._exchange = Exchange(os.environ[HOST_VARIABLE])
        resume = f"python train.py --resume {shlex.quote(config.run_dir or 'RUN_FOLDER')}"
        self._master = MasterWatch(
            "xparl master", config.xparl_addr, lambda: reach(host, port), config.master_timeout, resume
        )  # fmt: skip
        self._actors: dict[int, _Actor] = {}
        self._asked = 0.0  # when the actors were last asked whether they are there
        # from the threads of actors: a CPU has been found (None), or it has ended
        self._events: queue.SimpleQueue[tuple[_Actor, BaseException | None]] = queue.SimpleQueue()
        for index in range(samplers):
            self.start(index)
        self._missing = self._wait_for_cpus()

    def _wait_for_cpus(self) -> int:
        """Wait for CPUs as long as `wait_for_cpus` says; how many samplers have none then."""
        deadline = time.monotonic() + (self.config.wait_for_cpus or 0.0)
        while True:
            missing = sum(actor.placement.address is None for actor in self._actors.values())
            if not missing or time.monotonic() > deadline:
                return missing
            time.sleep(0.1)

    def _start(self, index: int) -> None:
        hello = pack_hello(self.config, *self.ranges[index], index, versions=self._versions)
        self._actors[index] = _Actor(hello, lambda actor: self._tell(actor, None))
        self._make_some()

    def _make_some(self) -> None:
        """Begin to make those actors that wait for it, where not too many are on their way."""
        waiting = [actor for actor in self._actors.values() if actor.thread is None]
        on_their_way = self.starting & self._actors.keys()
        room = STARTS_AT_ONCE - sum(self._actors[i].thread is not None for i in on_their_way)
        for actor in waiting[: max(0, room)]:
            actor.thread = threading.Thread(target=self._run, args=(actor,), daemon=True)
            actor.thread.start()

    def _run(self, actor: _Actor) -> None:
        """Make an actor and wait for its end, in a thread that no process waits for."""
        try:
            host = self._host(self._version, self._sources, placement=actor.placement)
            host.serve(self._exchange.endpoint, actor.token)
        except BaseException as error:  # whatever it is, `receive` tells it
            self._tell(actor, error)

    def _tell(self, actor: _Actor, event: BaseException | None) -> None:
        self._events.put((actor, event))
        self._exchange.wake()

    def _end(self, index: int) -> None:
        actor = self._actors.pop(index, None)
        if actor is not None:
            actor.placement.give_up()
        self._make_some()

    def _send(self, index: int, request: Request) -> None:
        assert self._weights is not None, "no weights were published"
        actor, message = self._actors[index], self._message(request, self._weights)
        if actor.unsent is None:
            self._exchange.send(actor.token, message)  # `answered` finds out where it is gone
        else:
            actor.unsent.append(message)

    def answered(self, timeout: float | None) -> list[int]:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            wait = max(0.0, min(deadline - time.monotonic(), PROGRESS_S))
            messages, was_woken = self._exchange.receive(wait)
            ready: set[int] = set()
            by_token = {actor.token: index for index, actor in self._actors.items()}
            for token, message in messages:
                if token in by_token:
                    ready |= self._take_in(by_token[token], message)
            ready |= self._ended() | self._gone()
            if ready or was_woken or time.monotonic() >= deadline:
                self._make_some()
                return sorted(ready)

    def _take_in(self, index: int, message: memoryview) -> set[int]:
        """Take in an actor's message; the sampler if it has something to be received."""
        actor = self._actors[index]
        if actor.unsent is not None:  # its first message: it is there
            for first in actor.unsent:
                self._exchange.send(actor.token, first)
            actor.unsent = None
            self._heard[index] = time.monotonic()
            return set()
        has_answered = index in self._answers
        return {index} if not has_answered and self.note(index, message) else set()

    def _ended(self) -> set[int]:
        """Samplers whose threads have ended, which never happens to one that works."""
        ended = set()
        with contextlib.suppress(queue.Empty):
            while True:
                actor, error = self._events.get_nowait()
                index = next((i for i, a in self._actors.items() if a is actor), None)
                if index is None:
                    continue  # another one was put in its place
                if error is None:
                    actor.has_cpu = True
                    self._heard[index] = time.monotonic()
                else:
                    ended |= self._lose(index, f"{type(error).__name__}: {error}")
        return ended

    def _gone(self) -> set[int]:
        """Samplers that had connected, and are there no more. They are asked twice a second."""
        gone: set[int] = set()
        if time.monotonic() - self._asked < PROGRESS_S:
            return gone
        self._asked = time.monotonic()
        for index, actor in self._actors.items():
            if actor.unsent is None and not self._exchange.send(actor.token):
                address = actor.placement.address
                gone |= self._lose(index, f"its process at {address} has ended, or is cut off")
        return gone

    def _lose(self, index: int, reason: str) -> set[int]:
        actor = self._actors[index]
        if actor.is_gone or index in self._answers:  # that comes first
            return set()
        actor.is_gone = True
        return {index} if self.note(index, Lost(reason)) else set()

    def _patience(self, index: int) -> float:
        if index in self.starting and not self._actors[index].has_cpu:
            return math.inf  # it comes when a CPU is free
        return super()._patience(index)

    def is_missed(self, index: int) -> bool:
        waits = self.config.wait_for_cpus is not None and index in self.starting
        return waits and not self._actors[index].has_cpu

    @property
    def alarms(self) -> int:
        return self._master.losses

    def news(self) -> list[str]:
        missing, self._missing = self._missing, 0
        if not missing or self.config.wait_for_cpus is None:
            return self._master.news()
        said = f"{missing} of {self.samplers} samplers have no CPU yet: they join when there is one"
        return [said, *self._master.news()]

    def wake(self) -> None:
        self._exchange.wake()

    def _end_all(self) -> None:
        """Have the actors end by themselves, or be killed where that takes longer than a second."""
        for actor in self._actors.values():
            if not actor.has_cpu:
                actor.placement.give_up()
        self._exchange.close()
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        for actor in self._actors.values():
            if actor.thread is not None:
                actor.thread.join(max(0.0, deadline - time.monotonic()))
        for actor in self._actors.values():
            if actor.thread is not None and actor.thread.is_alive():
                actor.placement.give_up()

    def close(self) -> None:
        from parl_compat.learner import disconnect

        self._master.close()
        self._end_all()
        disconnect()
