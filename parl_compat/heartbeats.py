"""PARL's heartbeats, for processes that may be stopped for a while and go on.

PARL measures silence by the wall clock. So Ctrl-Z, a laptop's sleep or a corrected clock made
live partners look dead. Here a process counts only the seconds in which it was able to listen.

This module is imported by `load_parl`, once PARL is.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import grpc
import psutil
from parl.remote import remote_constants
from parl.remote.grpc_heartbeat import (
    heartbeat_client,
    heartbeat_pb2,
    heartbeat_pb2_grpc,
    heartbeat_server,
)

TICK_S = 1.0
# An actor whose learner is there but does not answer (it is stopped) waits so long for it.
LEARNER_PATIENCE_S = 300.0


class ListeningClock:
    """Seconds in which this process was able to hear a heartbeat. It stands still otherwise."""

    def __init__(self) -> None:
        self.now = 0.0
        self._last = time.monotonic()

    def tick(self) -> None:
        """Count the time since the last call. It is meant to be called every `TICK_S`."""
        last, self._last = self._last, time.monotonic()
        self.now += min(self._last - last, 2 * TICK_S)


def wait_for_silence(self: heartbeat_server.GrpcHeartbeatServer) -> None:
    """Return when the partner has been silent for too long, or the process `host_pid` is gone."""
    clock, last_beat, heard = ListeningClock(), self.last_heartbeat_time, 0.0
    while not self.exit_flag:
        time.sleep(TICK_S)
        clock.tick()
        if self.last_heartbeat_time != last_beat:
            last_beat, heard = self.last_heartbeat_time, clock.now
        if self.host_pid is not None and not psutil.pid_exists(self.host_pid):
            self.exit()
        if clock.now - heard > remote_constants.HEARTBEAT_RCVTIMEO_S:
            return


def send_heartbeats(self: heartbeat_client.HeartbeatClientThread) -> None:
    """Send heartbeats until the partner is gone, then call the thread's exit function.

    A learner's process that ended refuses connections, so its actors end at once. One that is
    stopped accepts them without an answer: its actors wait for `LEARNER_PATIENCE_S`. Only an
    actor's heartbeats to its learner carry an id.
    """
    to_learner = self.client_id != "default"
    patience = LEARNER_PATIENCE_S if to_learner else 0.0
    with grpc.insecure_channel(self.heartbeat_server_addr) as channel:
        stub = heartbeat_pb2_grpc.GrpcHeartbeatStub(channel)
        answered = time.monotonic()
        while not self.exit_flag:
            message: Any = heartbeat_pb2.Request()
            message.tag = self.stop_tag or remote_constants.HEARTBEAT_TAG
            message.extra_message = self.stop_message or ""
            message.client_id = self.client_id
            self.exit_flag = self.exit_flag or self.stop_tag is not None
            try:
                stub.Send(message, timeout=remote_constants.HEARTBEAT_RCVTIMEO_S)
            except grpc.RpcError as error:
                silent = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # pyright: ignore
                if not silent or time.monotonic() - answered > patience:
                    break
                continue
            answered = time.monotonic()
            time.sleep(remote_constants.HEARTBEAT_INTERVAL_S)
    self.heartbeat_exit_callback_func(*self._exit_func_args, **self._exit_func_kwargs)


class ActorTable(heartbeat_server.GrpcHeartbeatServer):
    """Which actors this learner has, and when each was heard last.

    An actor's heartbeat is answered only while its id stands here. An actor that is refused gives
    its CPU back: so does one that answered its first ping too late, or was given up for dead.
    """

    def __init__(self) -> None:
        super().__init__()
        self._clock = ListeningClock()
        self._heard: dict[str, float] = {}
        self._lock = threading.Lock()
        self._reply: Any = heartbeat_pb2.Reply()
        self._reply.tag = remote_constants.HEARTBEAT_TAG

    def expect(self, instance: str) -> None:
        """From now on, `instance` is an actor of this learner. It counts as heard."""
        with self._lock:
            self._heard[instance] = self._clock.now

    def forget(self, instance: str) -> None:
        with self._lock:
            self._heard.pop(instance, None)

    def Send(self, request: Any, context: Any) -> Any:
        with self._lock:
            known = request.client_id in self._heard
            if known:
                self._heard[request.client_id] = self._clock.now
        if not known:
            context.abort(grpc.StatusCode.NOT_FOUND, "no actor of this learner")
        return self._reply

    def silent(self) -> list[str]:
        """Forget the actors that have been silent for too long, and return their ids."""
        with self._lock:
            self._clock.tick()
            deadline = self._clock.now - remote_constants.HEARTBEAT_RCVTIMEO_S
            lost = [instance for instance, heard in self._heard.items() if heard < deadline]
            for instance in lost:
                del self._heard[instance]
        return lost

    def __len__(self) -> int:
        return len(self._heard)


class HeartbeatServerInProcess:
    """Answers the heartbeats of remote actors from this process.

    It has the interface of PARL's HeartbeatServerProcess, whose server cannot work with a current
    gRPC: it is built before a fork and started after it.
    """

    daemon = True

    def __init__(self, port: Any, client_count: Any, host_is_alive: Any, dead_job_queue: Any):
        from concurrent import futures

        self._count, self._alive, self._dead = client_count, host_is_alive, dead_job_queue
        self.actors = ActorTable()
        pool = futures.ThreadPoolExecutor(max_workers=8, thread_name_prefix="xparl-heartbeat")
        self._server = heartbeat_server.grpc.server(pool)
        heartbeat_pb2_grpc.add_GrpcHeartbeatServicer_to_server(self.actors, self._server)
        port.value = self._server.add_insecure_port("[::]:0")
        self._watch = threading.Thread(target=self._watch_actors, daemon=True)

    def start(self) -> None:
        self._server.start()
        self._watch.start()

    def join(self) -> None:
        self._server.stop(0)

    def _watch_actors(self) -> None:
        while self._alive.value:
            time.sleep(TICK_S)
            for instance in self.actors.silent():
                self._dead.put(instance)
            self._count.value = len(self.actors)


def mend() -> None:
    heartbeat_server.GrpcHeartbeatServer.timeout_timer = wait_for_silence
    heartbeat_client.HeartbeatClientThread.run = send_heartbeats
