"""Samplers as actors of a Ray cluster: fragments cross the network, and weights once a machine.

An actor holds a `Session`, as an xparl actor does, and Ray carries bytes: a request and its answer,
and the weights, which lie in Ray's object store for all actors. It is a child process that talks to
Ray (`ray_driver`), so Ray can end no learner. Where the child ends, which it does with its node and
its cluster, another is started until one is connected: the samplers' actors are new then.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import math
import os
import selectors
import shlex
import time
from typing import Any

import numpy as np

from cluster import wire
from cluster.child import Child, ChildEnded
from cluster.engines.actor import packages_of, versions
from cluster.engines.base import Engine
from cluster.engines.master import MasterWatch, reach
from cluster.engines.ray_driver import Kind, RayError, pack, unpack
from cluster.pool import Lost, Request
from cluster.session import PROGRESS, pack_hello, pack_weights
from common import user_class
from common.sources import sources
from envs import family_of
from rollout import RolloutSpec, Weights
from settings.config import Config

CONNECT_TIMEOUT_S = 60.0
RETRY_S = 2.0  # between two attempts to connect again


def _first_message(address: str, cpus: int = 0) -> bytes:
    """The message that connects a driver, with the project's and the user's modules of now."""
    users = wire.prefixed("users/", _arrays(user_class.sources_in_use()))
    project = wire.prefixed("project/", _arrays(sources()))
    return pack(Kind.CONNECT, 0, wire.pack({"address": address, "cpus": cpus}, users | project))


def _arrays(files: dict[str, bytes]) -> dict[str, np.ndarray]:
    return {name: np.frombuffer(content, np.uint8) for name, content in files.items()}


def _driver(first_message: bytes) -> Child:
    child = Child("cluster.engines.ray_driver")
    with contextlib.suppress(ChildEnded):  # whoever receives finds out
        child.send(first_message)
    return child


def _connect(first_message: bytes) -> tuple[Child, dict[str, Any]]:
    """A driver that is connected, and the cluster's address and CPUs.

    Raises:
        RayError: where there is no Ray, or the cluster cannot be reached.
    """
    if importlib.util.find_spec("ray") is None:
        raise RayError(
            "ray_address was given, but Ray is not installed: run `make ray`, or leave it out"
        )
    driver = _driver(first_message)
    try:
        kind, _, body = unpack(driver.receive(CONNECT_TIMEOUT_S))
    except (ChildEnded, TimeoutError) as error:
        driver.kill()
        raise RayError(f"ray_address: the process that connects to Ray failed: {error}") from None
    if kind == Kind.REFUSED:
        driver.close()
        raise RayError(str(body, "utf-8"))
    return driver, wire.unpack(body)[0]


def cluster_cpus(address: str, wanted: int = 1) -> tuple[int, int]:
    """The cluster's (free, total) CPUs; waits some seconds while fewer than `wanted` are free.

    Raises:
        RayError: where the cluster cannot be reached.
    """
    driver, cluster = _connect(_first_message(address, wanted))
    driver.close()
    return cluster["free"], cluster["total"]


class RayEngine(Engine):
    """Samplers in actors of a Ray cluster, one CPU of the cluster each.

    Raises:
        RayError: where there is no Ray, or the cluster cannot be reached.
    """

    name, kind = "ray", "remote actor"

    def __init__(
        self,
        config: Config,
        spec: RolloutSpec,
        samplers: int,
        envs: tuple[int, int] | None = None,
    ):
        super().__init__(config, spec, samplers, envs)
        assert config.ray_address is not None
        self._versions = versions(packages_of(family_of(config.env)))
        self._first_message = _first_message(config.ray_address)
        driver, cluster = _connect(self._first_message)
        self._driver: Child | None = driver
        self._started = time.monotonic()
        self._refusal: str | None = None  # why there is no connection
        self._retry = 0.0  # when the next attempt is made
        self._waker = os.eventfd(0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._selector.register(driver, selectors.EVENT_READ)
        self._numbers = itertools.count()
        self._actors: dict[int, int] = {}  # the number of each sampler's actor
        self._unplaced: set[int] = set()  # samplers for whose actors no CPU has been found yet
        self._put: Weights | None = None  # the weights that the driver has
        host, _, port = cluster["address"].rpartition(":")
        self._address = host.strip("[]"), int(port)  # of IPv6 it is in brackets
        self._was_away = self._was_there = 0.0  # the head node, when it was last looked for
        resume = f"python train.py --resume {shlex.quote(config.run_dir or 'RUN_FOLDER')}"
        self._head = MasterWatch(
            "Ray cluster", cluster["address"], self._look, config.master_timeout, resume
        )
        for index in range(samplers):
            self.start(index)
        self._early: list[int] = []  # what `answered` has to give already
        self._missing = self._wait_for_cpus()

    def _look(self) -> None:
        """In a thread: see whether there is a cluster, and a connection to it.

        Raises:
            OSError: where there is not.
        """
        try:
            reach(*self._address)
        except OSError:
            self._was_away = time.monotonic()
            raise
        self._was_there = time.monotonic()
        if (refusal := self._refusal) is not None:
            raise OSError(refusal)

    def _wait_for_cpus(self) -> int:
        """Wait for CPUs as long as `wait_for_cpus` says; how many samplers have none then."""
        deadline = time.monotonic() + (self.config.wait_for_cpus or 0.0)
        early: list[int] = []
        while self._unplaced and time.monotonic() < deadline:
            early += self.answered(0.1)
        self._early = early
        return len(self._unplaced)

    def _say(self, kind: Kind, actor: int = 0, body: bytes = b"") -> None:
        if self._driver is not None:
            with contextlib.suppress(ChildEnded):  # `answered` reports it
                self._driver.send(pack(kind, actor, body))

    def _start(self, index: int) -> None:
        self._unplaced.add(index)
        self._actors[index] = next(self._numbers)
        hello = pack_hello(self.config, *self.ranges[index], index, versions=self._versions)
        self._say(Kind.START, self._actors[index], hello)

    def _end(self, index: int) -> None:
        self._unplaced.discard(index)
        if index in self._actors:
            self._say(Kind.END, self._actors.pop(index))

    def _send(self, index: int, request: Request) -> None:
        weights = self._weights
        assert weights is not None, "no weights were published"
        if self._put is not weights:
            self._put = weights
            self._say(Kind.WEIGHTS, 0, pack_weights(weights))
        self._say(Kind.CALL, self._actors[index], self._message(request, None))

    def answered(self, timeout: float | None) -> list[int]:
        if self._driver is None and time.monotonic() > self._retry:
            self._connect_again()
        ready, self._early = self._early, []
        if self._driver is not None and self._started < self._was_away < self._was_there:
            # a head node that has ended, and started again, does not know its old drivers
            return ready + self._disconnected("the cluster has started again")
        for key, _ in self._selector.select(0.0 if ready else timeout):
            if key.fileobj is self._waker:
                os.eventfd_read(self._waker)
            else:
                # A message may have come in part, or several. An answer is received before the next
                # is taken in: it may say that the same actor has ended.
                while not ready and self._driver is not None and self._driver.poll():
                    ready += self._take_in()
        return ready

    def _take_in(self) -> list[int]:
        """Take in the driver's message, or its end; the samplers that have something to give."""
        driver = self._driver
        assert driver is not None
        try:
            kind, number, body = unpack(driver.receive())
        except ChildEnded as ended:
            return self._disconnected(str(ended))
        if kind == Kind.CONNECTED:  # it is the driver's, whatever its number
            self._refusal = None
            return []
        if kind == Kind.REFUSED:
            return self._disconnected(str(body, "utf-8"))
        index = next((i for i, actor in self._actors.items() if actor == number), None)
        if index is None:  # the driver itself, or another one was put in its place
            return []
        if index in self._answers:  # its end, after the error that `_wait_for_cpus` has kept
            return []
        if kind == Kind.PLACED:
            self._unplaced.discard(index)
            self._heard[index] = time.monotonic()
            return []
        if kind == Kind.PROGRESS:
            return [index] if self.note(index, PROGRESS) else []
        message = body if kind == Kind.ANSWER else Lost(str(body, "utf-8"))
        return [index] if self.note(index, message) else []

    def _disconnected(self, reason: str) -> list[int]:
        """The driver has ended, and with it all actors."""
        assert self._driver is not None
        self._selector.unregister(self._driver)
        self._driver.kill()
        self._driver, self._put, self._refusal = None, None, self._refusal or reason
        self._retry = time.monotonic() + RETRY_S
        lost = self._actors.keys() - self._unplaced - self._answers.keys()
        return [i for i in lost if self.note(i, Lost(f"there is no connection to Ray: {reason}"))]

    def _connect_again(self) -> None:
        """Start another driver, and make the actors that there were none for."""
        self._driver, self._started = _driver(self._first_message), time.monotonic()
        self._selector.register(self._driver, selectors.EVENT_READ)
        for index in sorted(self._unplaced):
            self._start(index)
            request = self._requests.get(index)
            if request is not None:
                self._send(index, request)

    def _patience(self, index: int) -> float:
        return math.inf if index in self._unplaced else super()._patience(index)

    def is_missed(self, index: int) -> bool:
        return self.config.wait_for_cpus is not None and index in self._unplaced

    @property
    def alarms(self) -> int:
        return self._head.losses

    def news(self) -> list[str]:
        missing, self._missing = self._missing, 0
        if not missing or self.config.wait_for_cpus is None:
            return self._head.news()
        said = f"{missing} of {self.samplers} samplers have no CPU yet: they join when there is one"
        return [said, *self._head.news()]

    def wake(self) -> None:
        os.eventfd_write(self._waker, 1)

    def close(self) -> None:
        self._head.close()
        self._selector.close()
        if self._driver is not None:
            self._driver.close()
        os.close(self._waker)
