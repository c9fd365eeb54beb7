"""Samplers as xparl remote actors: fragments, not steps, cross the network.

One thread per actor makes blocking calls (PARL's no-wait mode deadlocks after an error). A call is
bytes in and bytes out, and an exception comes back as data, so an error costs no actor. The code
of the project travels to the actors with the connection; their packages must be the learner's.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from cluster import wire
from cluster.engines.actor import make_host, modules_worked_in, versions
from cluster.pool import Request, SamplerError, SamplerPool
from cluster.sampler import Sampler, TimedEpisode
from common.errors import UserError
from common.sources import digest, sources
from envs import BadEnvironment
from parl_compat.shim import HOST_VARIABLE, load_parl
from rollout import Rollout, RolloutSpec, Weights
from settings.config import Config

CONNECT_TIMEOUT_S = 3.0
# workers report their CPUs now and then, first after some seconds; one that a run has just left is
# free once its process has been started anew
CPU_TIMEOUT_S = 20.0
# an actor begins with some seconds of imports; where many share a core, they delay each other's
# heartbeats until PARL takes them for dead
STARTS_AT_ONCE = 16


class ClusterError(UserError):
    """The cluster cannot do what was asked. The message says what it can."""


class Session:
    """An actor's side: builds a `Sampler` at the first message, then serves it."""

    def __init__(self) -> None:
        self._sampler: Sampler | None = None
        self._out: Rollout | None = None

    def handle(self, message: bytes) -> bytes:
        """Answer one message. Exceptions are answers too."""
        try:
            meta, arrays = wire.unpack(message)
            if self._sampler is None or self._out is None:
                return self._hello(meta)
            self._sampler.model.set_weights(arrays)
            episodes = self._sampler.collect(meta["fragment"], meta["reset"], self._out)
            return wire.pack({"episodes": episodes}, self._out.arrays())
        except BadEnvironment as error:
            return wire.pack({"error": str(error)})
        except Exception:
            return wire.pack({"error": traceback.format_exc()})

    def _hello(self, meta: dict[str, Any]) -> bytes:
        import torch

        here = versions()
        differing = [
            f"{name} {here.get(name)} (the learner has {theirs})"
            for name, theirs in meta["versions"].items()
            if here.get(name) != theirs
        ]
        if differing:
            return wire.pack({"error": f"this worker has {', '.join(differing)}: install the"
                                       f" project's requirements.txt there"})  # fmt: skip
        torch.set_num_threads(1)
        config = Config(**meta["config"])
        self._sampler = Sampler(config, meta["first"], meta["last"], meta["index"])
        self._out = Rollout.empty(self._sampler.spec, meta["last"] - meta["first"])
        return wire.pack({"episodes": []})


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ClusterError(f"xparl_addr {address!r} is not IP:PORT, such as localhost:8010")
    return host, int(port)


def cluster_cpus(address: str, wanted: int = 1) -> tuple[int, int]:
    """The cluster's (free, total) CPUs; waits some seconds while fewer than `wanted` are free.

    Raises:
        ClusterError: where no xparl master answers at the address.
    """
    import zmq

    host, port = _split(address)
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"nothing listens at xparl_addr {address} ({error.strerror or error}): start a cluster"
            f" with `xparl start --port {port} --cpu_num 8`, or leave --xparl_addr out"
        ) from None
    deadline = time.monotonic() + CPU_TIMEOUT_S
    context = zmq.Context()
    try:
        while True:
            with context.socket(zmq.REQ) as request:
                request.setsockopt(zmq.LINGER, 0)
                request.setsockopt(zmq.RCVTIMEO, int(CONNECT_TIMEOUT_S * 1000))
                request.connect(f"tcp://{host}:{port}")
                request.send_multipart([b"[STATUS]"])
                try:
                    words = request.recv_multipart()[1].decode().replace(",", " ").split()
                except zmq.error.Again:
                    raise ClusterError(
                        f"what listens at xparl_addr {address} does not answer as an xparl master"
                        f" does: check the port"
                    ) from None
            # "has 1 used cpus, 7 vacant cpus, ..."
            used, free = int(words[1]), int(words[4])
            hopeless = 0 < used + free < wanted
            if free >= wanted or hopeless or time.monotonic() > deadline:
                return free, used + free
            time.sleep(0.5)
    finally:
        context.term()


class Caller:
    """A thread that makes one blocking call after another. It never keeps the process alive."""

    def __init__(self, name: str):
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.put((future, function, arguments))
        return future

    def stop(self) -> None:
        """End after the call in progress."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function, arguments = call
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # handed to whoever awaits the result
                future.set_exception(error)
            del call, future, function, arguments


class XparlPool(SamplerPool):
    """Samplers registered with an xparl master.

    Raises:
        ClusterError: where the cluster cannot be reached or is too small.
    """

    name = "xparl"

    def __init__(self, config: Config, spec: RolloutSpec, samplers: int):
        super().__init__(config, spec, samplers)
        assert config.xparl_addr is not None
        host, port = _split(config.xparl_addr)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect((socket.gethostbyname(host), port))
            # actors must reach this process at the address from which it reaches the master
            os.environ[HOST_VARIABLE] = route.getsockname()[0]
        self._parl = load_parl()
        self._parl.connect(config.xparl_addr)
        from parl.remote.client import get_global_client

        get_global_client().pyfiles = modules_worked_in()
        self._threads = [Caller(f"actor-{i}") for i in range(samplers)]
        self._packed_request: Request | None = None
        self._packed = b""
        host_class, files = self._parl.remote_class(make_host()), sources()
        version = digest(files)
        self._actors: dict[int, Any] = {}
        self._starts, self._closed = threading.Semaphore(STARTS_AT_ONCE), False
        # those that have not said yet that they stand: the learner has something to do meanwhile
        self._starting = {
            index: thread.submit(self._start, index, host_class, version, files)
            for index, thread in enumerate(self._threads)
        }
        self._answers: dict[int, Future[bytes]] = {}

    def _start(self, index: int, host_class: Any, version: str, sources: dict[str, bytes]) -> bytes:
        """In an actor's thread: create it, and send its first message."""
        with self._starts:
            if self._closed:
                raise RuntimeError("the pool was closed before this actor started")
            self._actors[index] = host_class(version, sources)
            return self._call(index, wire.pack(self._hello(index)))

    def _call(self, index: int, message: bytes) -> bytes:
        return self._actors[index].call(message)

    def _hello(self, index: int) -> dict[str, Any]:
        first, last = self.ranges[index]
        return {
            "versions": versions(), "config": self.config.to_dict(),
            "first": first, "last": last, "index": index,
        }  # fmt: skip

    def _answer(self, index: int, answer: Future[bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
        from parl.remote.exceptions import RemoteError, ResourceError

        try:
            meta, arrays = wire.unpack(answer.result())
        except (RemoteError, ResourceError) as error:
            raise SamplerError(f"sampler {index} (remote actor) is lost: {error}") from None
        if "error" in meta:
            raise SamplerError(f"sampler {index} (remote actor): {meta['error']}")
        return meta, arrays

    def _publish(self, weights: Weights) -> None:
        self._weights = weights

    def _send(self, index: int, request: Request) -> None:
        if self._packed_request != request:  # the same bytes go to every actor
            self._packed_request = request
            self._packed = wire.pack(request._asdict(), self._weights.arrays)
        self._answers[index] = self._threads[index].submit(self._call, index, self._packed)

    def _receive(self, index: int, request: Request) -> list[TimedEpisode]:
        if index in self._starting:
            self._answer(index, self._starting.pop(index))
        meta, arrays = self._answer(index, self._answers[index])
        columns = self._slot(request).columns(*self.ranges[index])
        for name, array in columns.arrays().items():
            array[...] = arrays[name]
        return [TimedEpisode(*row) for row in meta["episodes"]]

    def answered(self, indices: list[int], timeout: float) -> list[int]:
        futures = {self._answers[index]: index for index in indices}
        done, _ = wait(futures, timeout, FIRST_COMPLETED)
        return [futures[future] for future in done]

    def close(self) -> None:
        from parl.remote import client

        self._closed = True
        for thread in self._threads:
            thread.stop()
        self._actors.clear()  # PARL releases an actor when its last reference goes
        connection, client.GLOBAL_CLIENT = client.GLOBAL_CLIENT, None
        if connection is not None:
            # PARL's own `destroy` first waits for threads that sleep up to 10 s
            connection.connected_to_master = False
            connection.client_is_alive.value = False
            connection.dead_job_queue.put("exit")
            connection.master_heartbeat_thread.exit()
            connection.job_heartbeat_process.join()
            for reader in threading.enumerate():  # it must have read "exit" before Python ends
                if "_update_job_status" in reader.name:
                    reader.join(timeout=2.0)
