"""Where a remote object runs at the cluster: waited for, found, and given back.

PARL waits 300 s for a free CPU, and lets nobody end an object that hangs: its worker waits for the
object's heartbeats, half a minute, and then sends a signal that a stopped process never handles.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import zmq

KILL = b"[KILLJOB]"  # PARL's tag
_CONNECT_MS = 3_000
_LINGER_MS = 60_000  # a worker that is cut off is told once it can be reached again


class GivenUp(Exception):
    """The object is not wanted any more."""


def kill(context: zmq.Context, job: Any) -> None:
    """Have the worker of PARL's `job` kill it, and offer its CPU again. Returns at once."""
    with context.socket(zmq.REQ) as worker:
        worker.linger, worker.connect_timeout = _LINGER_MS, _CONNECT_MS
        worker.connect(f"tcp://{job.remove_job_address}")
        worker.send_multipart([KILL, job.job_address.encode()])


class Placement:
    """The place of one remote object, from the moment at which it is wanted.

    Args:
        found: called once a CPU has been found, by the thread that makes the object.

    Attributes:
        is_given_up: whether nobody wants the object any more.
        address: IP:PORT of the process in which it runs; None before there is one.
    """

    def __init__(self, found: Callable[[], None] = lambda: None):
        self.is_given_up = False
        self.address: str | None = None
        self._found = found
        self._lock = threading.Lock()
        self._end: Callable[[], None] = lambda: None

    def take(self, client: Any, job: Any, job_is_alive: Any) -> None:
        """The object runs in PARL's `job` from now on.

        Raises:
            GivenUp: where it is not wanted any more. The job has then been ended.
        """

        def end() -> None:
            job_is_alive.value = False  # whoever waits for its answer gets an error
            client.job_heartbeat_process.actors.forget(job.instance_id)
            client.instance_id_to_job.pop(job.instance_id, None)
            kill(client.ctx, job)

        with self._lock:
            self.address = job.job_address
            if self.is_given_up:
                end()
                raise GivenUp
            self._end = end
        self._found()

    def give_up(self) -> None:
        """Want the object no longer: end its process, whatever that is doing. Returns at once.

        The worker of the process kills it. Where that cannot be reached, the process ends by
        itself once its heartbeat to this one is refused.
        """
        with self._lock:
            if not self.is_given_up:
                self.is_given_up = True
                self._end()
