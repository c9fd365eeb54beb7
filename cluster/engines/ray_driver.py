"""The process of a run that talks to Ray: a child of the learner's, in which nothing else runs.

Ray ends a process whose node or head is gone, and takes over the signals, the hooks and the terminal
of the one that imports it. Here that costs the samplers at most: another such process takes this
one's place. Actors are known by numbers that no two of a run share.

    learner                                  this process
    CONNECT: address, sources, CPUs    ->    joins the cluster, and waits for free CPUs
                                       <-    CONNECTED: address, CPUs; or REFUSED: why, and ends
    START actor: hello                 ->    makes an actor
                                       <-    PLACED actor: a CPU was found for it
    WEIGHTS                            ->    puts them into Ray's object store
    CALL actor: request                ->    hands it on, with the weights that came last
                                       <-    PROGRESS actor, now and then, while it makes steps
                                       <-    ANSWER actor; or LOST actor: why
    END actor                          ->    kills it

Ray tells at once of the end of an actor that is busy. Each is asked every second how far it is, so
that the end of an idle one is noticed too; a thread of the actor's own answers.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib
import os
import queue
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cluster import wire
from cluster.child import parent
from cluster.engines.actor import USERS_FOLDER, make_host
from common.errors import UserError
from common.sources import digest

PROGRESS_S = 1.0  # between two questions to an actor
CHECK_TIMEOUT_S = 3.0
LEAVE_S = 0.2  # for the actors to hear that they are to end
CPU_TIMEOUT_S = 10.0  # the CPUs of a run that has just ended are free after some seconds
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # Ray's own default from 2.61 on
    "RAY_USAGE_STATS_ENABLED": "0",
}
_HEAD = struct.Struct("<QQ")  # of a message: its kind, and the actor


class RayError(UserError):
    """The Ray cluster cannot do what was asked. The message says what it can."""


class Kind(enum.IntEnum):
    """What a message says: see the module."""

    CONNECT, START, WEIGHTS, CALL, END = range(5)
    CONNECTED, REFUSED, PLACED, PROGRESS, ANSWER, LOST = range(5, 11)


def pack(kind: Kind, actor: int = 0, body: bytes = b"") -> bytes:
    return _HEAD.pack(kind, actor) + body


def unpack(message: bytes) -> tuple[Kind, int, memoryview]:
    kind, actor = _HEAD.unpack_from(message)
    return Kind(kind), actor, memoryview(message)[_HEAD.size :]


def _status(address: str, headers: dict[str, str]) -> str:
    """How the head node at `address` answers the question whether it is there: OK, or an error."""
    import grpc

    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        metadata = tuple((name.lower(), value) for name, value in headers.items())
        try:
            ask(b"", timeout=CHECK_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            failed: Any = error  # every error of a call has a code
            return failed.code().name
        return "OK"


def _check(address: str) -> None:
    """Ray itself would try for minutes, and say less.

    Raises:
        RayError: where no Ray cluster is at the address, or none that this process is to talk to.
    """
    asks_for_token = _status(address, {})
    if asks_for_token not in ("OK", "UNAUTHENTICATED"):
        port = address.rpartition(":")[2]
        raise RayError(
            f"no Ray cluster answers at ray_address {address}: start one with `ray start --head"
            f" --port {port}`, or leave --ray_address out"
        )
    mode = os.environ["RAY_AUTH_MODE"].lower()
    if asks_for_token == "OK":
        if mode != "disabled":
            raise RayError(
                f"the Ray cluster at {address} asks nobody for a token, so whoever reaches it can"
                f" run code as you: run `ray get-auth-token --generate`, and start the cluster with"
                f" RAY_AUTH_MODE=token in its environment; or set RAY_AUTH_MODE=disabled here too"
            )
        return
    loader = importlib.import_module("ray._raylet").AuthenticationTokenLoader.instance()
    has_one = mode != "disabled" and loader.has_token(ignore_auth_mode=True)
    headers = loader.get_token_for_http_header() if has_one else {}
    if not headers or _status(address, headers) != "OK":
        raise RayError(
            f"the Ray cluster at {address} asks for a token, and"
            f" {'another one than yours' if headers else 'there is none here'}: put the cluster's"
            f" into ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
        )


def _connect(address: str, users_modules: dict[str, Any]) -> tuple[Any, str]:
    """Join a cluster: the module `ray`, and the address of the head node.

    Args:
        address: auto, or HOST:PORT.
        users_modules: files that go with it, in the folder that its actors work in.

    Raises:
        RayError: where that is not possible.
    """
    for name, value in ENVIRONMENT.items():  # read when Ray is imported
        os.environ.setdefault(name, value)
    ray = importlib.import_module("ray")
    services = importlib.import_module("ray._private.services")
    try:
        if address == "auto":
            address = services.canonicalize_bootstrap_address_or_die(address)
    except ConnectionError:
        raise RayError(
            "ray_address is auto, but no Ray cluster runs on this machine: start one with `ray"
            " start --head`, or give its HOST:PORT"
        ) from None
    _check(address)
    with tempfile.TemporaryDirectory(prefix="dppo") as folder:
        for name, content in ({".keep": b""} | users_modules).items():
            path = Path(folder) / USERS_FOLDER / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            ray.init(address, log_to_driver=False, runtime_env={"working_dir": folder})
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise RayError(f"ray_address {address}: {error}") from error
    return ray, address


def _cpus(ray: Any, wanted: int) -> tuple[int, int]:
    """The cluster's (free, total) CPUs; waits some seconds while fewer than `wanted` are free."""
    deadline = time.monotonic() + CPU_TIMEOUT_S
    while True:
        total = int(ray.cluster_resources().get("CPU", 0))
        free = int(ray.available_resources().get("CPU", 0))
        if free >= wanted or total < wanted or time.monotonic() > deadline:
            return free, total
        time.sleep(0.2)


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

        @ray.method(concurrency_group="progress")
        def leave(self) -> None:
            os._exit(0)

    Actor.__module__ = host.__module__
    return ray.remote(num_cpus=1, max_restarts=0, concurrency_groups={"progress": 1})(Actor)


class _Actor:
    """An actor, as this process sees it.

    Attributes:
        handle: Ray's.
        is_asked: whether it has not said yet how far it is.
        is_placed: whether it has ever said so.
        reached: how far it was.
    """

    def __init__(self, handle: Any):
        self.handle = handle
        self.is_asked = self.is_placed = False
        self.reached: object = None


class Driver:
    """Does what the learner asks, with the actors of one cluster.

    Args:
        connection: to the learner.
        events: what is to be done, from other threads.
    """

    def __init__(self, connection: Connection, events: queue.SimpleQueue[Callable[[], None]]):
        self._connection, self._events = connection, events
        self._actors: dict[int, _Actor] = {}
        self._weights: Any = None  # where in the object store they lie

    def connect(self, message: bytes) -> None:
        """Join the cluster that the first message names.

        Raises:
            RayError: where that is not possible.
        """
        meta, arrays = wire.unpack(unpack(message)[2])
        self._ray, address = _connect(meta["address"], wire.group("users/", arrays))
        free, total = _cpus(self._ray, meta["cpus"])
        self._class = make_actor(self._ray)
        project = {n: array.tobytes() for n, array in wire.group("project/", arrays).items()}
        self._project = digest(project), self._ray.put(project)
        self._say(Kind.CONNECTED, 0, wire.pack({"address": address, "free": free, "total": total}))

    def serve(self) -> None:
        """Go on for ever."""
        next_look = 0.0
        while True:
            with contextlib.suppress(queue.Empty):
                self._events.get(timeout=max(0.0, next_look - time.monotonic()))()
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + PROGRESS_S
                for number, actor in self._actors.items():
                    if not actor.is_asked:
                        actor.is_asked = True
                        self._await(number, actor.handle.progress.remote(), self._progress)

    def take_in(self, message: bytes) -> None:
        """Do what the learner says."""
        kind, number, body = unpack(message)
        if kind == Kind.WEIGHTS:
            self._weights = self._ray.put(bytes(body))
        elif kind == Kind.START:
            actor = self._actors[number] = _Actor(self._class.remote(*self._project))
            self._await(number, actor.handle.call.remote(bytes(body)), self._answer)
        elif number in self._actors:  # it may have been lost meanwhile
            if kind == Kind.END:
                self._end(number)
            else:
                call = self._actors[number].handle.call
                self._await(number, call.remote(bytes(body), self._weights), self._answer)

    def leave(self) -> None:
        """Have all actors end. Ray does that too, unless the head node is gone."""
        for actor in list(self._actors.values()):
            actor.handle.leave.remote()
        time.sleep(LEAVE_S if self._actors else 0.0)

    def _await(self, number: int, answer: Any, then: Callable[[int, Any], None]) -> None:
        """Take in an answer, or the error that comes instead, once it is there."""

        def arrived(future: Any) -> None:
            self._events.put(functools.partial(self._arrived, number, future, then))

        answer.future().add_done_callback(arrived)

    def _arrived(self, number: int, future: Any, then: Callable[[int, Any], None]) -> None:
        error = future.exception()
        if number not in self._actors:
            return
        if error is None:
            then(number, future.result())
        else:
            self._end(number)
            self._say(Kind.LOST, number, _what_became_of_it(error).encode())

    def _answer(self, number: int, answer: Any) -> None:
        if isinstance(answer, bytes):
            self._say(Kind.ANSWER, number, answer)
        else:
            self._say(Kind.LOST, number, b"its answer is no message")

    def _progress(self, number: int, reached: object) -> None:
        actor = self._actors[number]
        actor.is_asked = False
        if not actor.is_placed:
            actor.is_placed = True
            self._say(Kind.PLACED, number)
        elif reached != actor.reached and actor.reached is not None:
            self._say(Kind.PROGRESS, number)
        actor.reached = reached

    def _end(self, number: int) -> None:
        handle = self._actors.pop(number).handle
        # it waits for the head node, and the other actors must not
        threading.Thread(target=self._ray.kill, args=(handle,), daemon=True).start()

    def _say(self, kind: Kind, number: int = 0, body: bytes = b"") -> None:
        self._connection.send_bytes(pack(kind, number, body))


def _what_became_of_it(error: BaseException) -> str:
    """Ray's error without the lines that name the actor in Ray's numbers."""
    lines = [line.strip() for line in str(error).splitlines() if not line.startswith("\t")]
    return f"{type(error).__name__}: {' '.join(lines)}"


def serve() -> None:
    """Run this process until the learner closes its connection, or ends."""
    connection, _ = parent()
    with open(os.devnull, "w") as nothing:  # the supervisor tells the user what there is to tell
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    first = connection.recv_bytes()
    events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    driver = Driver(connection, events)

    def read() -> None:  # at all times, so that the learner never waits for Ray
        with contextlib.suppress(EOFError, OSError):
            while True:
                events.put(functools.partial(driver.take_in, connection.recv_bytes()))
        driver.leave()
        os._exit(0)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        driver.connect(first)
        driver.serve()
    except ConnectionError:  # the learner is gone, as the reader finds out too
        reader.join()
    except Exception as error:
        said = str(error) if isinstance(error, RayError) else f"{type(error).__name__}: {error}"
        connection.send_bytes(pack(Kind.REFUSED, 0, said.encode()))
