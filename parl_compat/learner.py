"""The learner's side of PARL: its connection to the master, and its calls to remote actors.

PARL keeps a lock after an error here and there, and whoever comes next waits for ever. The
functions below replace PARL's own: every wait has an end, and every lock is released.

This module is imported by `load_parl`, once PARL is.
"""

from __future__ import annotations

import contextlib
import datetime
import secrets
import socket
import threading
import time
from typing import Any

import cloudpickle
import zmq
from parl.remote import client, remote_constants, remote_decorator, remote_wrapper
from parl.remote.grpc_heartbeat import HeartbeatServerThread

from parl_compat import messages
from parl_compat.heartbeats import TICK_S, HeartbeatServerInProcess
from parl_compat.placement import GivenUp, Placement, kill

MASTER_TIMEOUT_S = 20.0
PING_TIMEOUT_S = 10.0  # PARL waits 0.9 s; an actor on a busy host needs longer
CONNECT_TIMEOUT_S = 3.0  # the kernel of its host connects, however busy that is
ACTOR_POLL_S = 1.0  # how often a waiting call asks whether its actor is alive


class AnswersToMaster(HeartbeatServerThread):
    """Answers the master's heartbeats, and takes its silence for no loss.

    A learner that was stopped for a while finds that the master has given up sending them. The
    status messages of `send_status` notice a dead master, and sooner.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.heartbeat_server.timeout_timer = self._until_exit

    def _until_exit(self) -> None:
        while not self.heartbeat_server.exit_flag:
            time.sleep(TICK_S)


def ask_master(self: client.Client, *message: bytes) -> list[bytes]:
    """Send the master a message, and return its answer. Threads take turns.

    A master that is there again later, at the same address, is asked as if nothing had happened.

    Raises:
        ConnectionError: where none listens, or has not answered for `MASTER_TIMEOUT_S`.
    """
    with self.lock:
        reach_master(self.master_address)
        question = self.submit_job_socket
        question.setsockopt(zmq.RCVTIMEO, int(MASTER_TIMEOUT_S * 1000))
        try:
            question.send_multipart(message)
            return question.recv_multipart()
        except zmq.error.Again:
            question.close(0)  # it would wait for that answer for ever
            self.submit_job_socket = self.ctx.socket(zmq.REQ)
            self.submit_job_socket.linger = 0
            self.submit_job_socket.connect(f"tcp://{self.master_address}")
    raise ConnectionError(
        f"the xparl master at {self.master_address} has not answered for {MASTER_TIMEOUT_S:.0f} s"
    )


def reach_master(address: str) -> None:
    """Return where something listens at the master's address.

    Raises:
        ConnectionError: otherwise, with the reason.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConnectionError(
            f"the xparl master at {address} cannot be reached ({error.strerror or error})"
        ) from None


def submit_job(self: client.Client, max_memory: Any, n_gpu: int, job_is_alive: Any) -> Any:
    """Ask the master for a free CPU or GPU, until the job that it gives answers a ping.

    Args:
        job_is_alive: PARL's flag, set to False when the job is lost.

    Returns:
        PARL's InitializedJob; None, after a second, where nothing is free.

    Raises:
        ConnectionError: where the master does not answer.
        BadMessage: where its answer is none.
        RuntimeError: where the cluster has no such device.
    """
    devices = [str(int(n_gpu == 0)).encode(), str(n_gpu).encode()]
    address, client_id = self.reply_master_heartbeat_address.encode(), self.client_id.encode()
    while True:
        tag, *content = ask_master(
            self, remote_constants.CLIENT_SUBMIT_TAG, address, client_id, *devices
        )
        if tag in (remote_constants.CPU_TAG, remote_constants.GPU_TAG):
            time.sleep(1.0)
            return None
        if tag != remote_constants.NORMAL_TAG:
            raise RuntimeError(
                f"the xparl master at {self.master_address} gives no {'GPU' if n_gpu else 'CPU'}:"
                f" it answered {tag.decode()}"
            )
        job = messages.unpack_granted(content[0])
        if ping(self, job, max_memory, job_is_alive):
            return job
        kill(self.ctx, job)  # for the master it has a learner now


def ping(self: client.Client, job: Any, max_memory: Any, job_is_alive: Any) -> bool:
    """Tell a job whose actor it is. Return whether it answered.

    The id is known before the job is: a job may send its first heartbeat at once. A job that
    answers too late finds its heartbeats refused, and gives its CPU back. The master can offer
    jobs of a worker that has ended for some 10 s more, which refuse the connection, and jobs of one
    that is cut off for 40 s, which cannot be reached.
    """
    host, _, port = job.ping_heartbeat_address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    instance = secrets.token_hex(8)  # nobody who cannot read our messages can keep it alive
    job.instance_id = instance
    self.instance_id_to_job[instance] = job_is_alive
    self.job_heartbeat_process.actors.expect(instance)
    request = [self.job_heartbeat_server_addr, str(max_memory), job.allocated_gpu.gpu, instance]
    with self.ctx.socket(zmq.REQ) as question:
        question.linger = 0
        question.setsockopt(zmq.RCVTIMEO, int(PING_TIMEOUT_S * 1000))
        question.connect(f"tcp://{job.ping_heartbeat_address}")
        question.send_multipart(
            [remote_constants.HEARTBEAT_TAG, *(part.encode() for part in request)]
        )
        try:
            question.recv_multipart()
        except zmq.error.Again:
            self.job_heartbeat_process.actors.forget(instance)
            self.instance_id_to_job.pop(instance, None)
            return False
    return True


# PARL starts a thread on it, and the name of that thread has the name of the function
def _update_job_status(self: client.Client, dead_job_queue: Any) -> None:
    """Mark the actors that are reported dead, until "exit" is."""
    while (instance := dead_job_queue.get()) != "exit":
        alive = self.instance_id_to_job.pop(instance, None)
        if alive is not None:
            alive.value = False


def send_status(self: client.Client) -> None:
    """Tell the master every 10 s that this learner is there, as long as it is."""
    while self.connected_to_master:
        status = {
            "file_path": self.executable_path,
            "actor_num": self.actor_num.value,
            "time": str(datetime.timedelta(seconds=int(time.time() - self.start_time))),
            "log_monitor_url": self.log_monitor_url,
        }
        address = self.reply_master_heartbeat_address.encode()
        with contextlib.suppress(ConnectionError):  # it may come back
            ask_master(
                self,
                remote_constants.CLIENT_STATUS_UPDATE_TAG,
                address,
                messages.pack(status),
            )
        time.sleep(remote_constants.HEARTBEAT_INTERVAL_S)


def read_local_files(self: client.Client, distributed_files: Any = ()) -> bytes:
    """No files: PARL would send every *.py beside the program, and fail on a dangling link."""
    return cloudpickle.dumps({"python_files": {}, "other_files": {}, "empty_subfolders": set()})


class PlacedObject(remote_wrapper.RemoteWrapper):
    """A remote object that waits for its CPU, and keeps it, as long as its placement is wanted.

    It waits for a master that is away, too.
    """

    def __init__(self, *args: Any, placement: Placement | None = None, **options: Any):
        self.placement = placement
        super().__init__(*args, **options)

    def request_resource(self, global_client: client.Client, max_memory: Any, n_gpu: int) -> Any:
        place = self.placement
        if place is None:
            return super().request_resource(global_client, max_memory, n_gpu)
        while not place.is_given_up:
            try:
                job = global_client.submit_job(max_memory, n_gpu, self.job_is_alive)
            except ConnectionError:
                time.sleep(1.0)
                continue
            if job is not None:
                place.take(global_client, job, self.job_is_alive)
                return job
        raise GivenUp


def receive(self: remote_wrapper.RemoteWrapper, attr: str) -> list[bytes]:
    """An actor's answer, waited for as long as the actor lives."""
    self.job_socket.setsockopt(zmq.RCVTIMEO, int(ACTOR_POLL_S * 1000))
    while True:
        try:
            return self.job_socket.recv_multipart()
        except zmq.error.Again:
            if not self.job_is_alive.value:
                raise remote_wrapper.RemoteError(
                    attr, "This instance is disconnected from the remote instance."
                ) from None


def send_file(self: remote_wrapper.RemoteWrapper) -> None:
    """Send the files, and wait until the actor has them. PARL went on after 20 s without."""
    pyfiles = self.GLOBAL_CLIENT.pyfiles
    self.job_socket.send_multipart([remote_constants.SEND_FILE_TAG, pyfiles])
    receive(self, "send_file")


def disconnect() -> None:
    """End this process's connection to its master. PARL's own first waits for threads that sleep."""
    connection, client.GLOBAL_CLIENT = client.GLOBAL_CLIENT, None
    if connection is None:
        return
    connection.connected_to_master = False
    connection.client_is_alive.value = False
    connection.dead_job_queue.put("exit")
    connection.master_heartbeat_thread.exit()
    connection.job_heartbeat_process.join()
    for reader in threading.enumerate():  # it must have read "exit" before Python ends
        if "_update_job_status" in reader.name:
            reader.join(timeout=2.0)
    # whoever collected the context as garbage would wait for what it still has to send
    threading.Thread(target=connection.ctx.term, daemon=True).start()


def mend() -> None:
    client.HeartbeatServerProcess = HeartbeatServerInProcess  # pyright: ignore
    client.HeartbeatServerThread = AnswersToMaster
    remote_decorator.RemoteWrapper = PlacedObject
    client.Client.submit_job = submit_job
    client.Client._update_job_status = _update_job_status
    client.Client._update_client_status_to_master = send_status
    client.Client.read_local_files = read_local_files
    remote_wrapper.loads_return = messages.unpack
    remote_wrapper.RemoteWrapper._receive_from_remote_instance = receive
    remote_wrapper.RemoteWrapper.send_file = send_file
