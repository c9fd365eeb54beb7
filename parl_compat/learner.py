"""The learner's side of PARL: its connection to the master, and its calls to remote actors.

PARL keeps a lock after an error here and there, and whoever comes next waits for ever. The
functions below replace PARL's own: every wait has an end, and every lock is released.

This module is imported by `load_parl`, once PARL is.
"""

from __future__ import annotations

import datetime
import secrets
import time
from typing import Any

import cloudpickle
import zmq
from parl.remote import client, remote_constants, remote_wrapper
from parl.remote.grpc_heartbeat import HeartbeatServerThread

from parl_compat.heartbeats import TICK_S, HeartbeatServerInProcess

MASTER_TIMEOUT_S = 20.0
PING_TIMEOUT_S = 10.0  # PARL waits 0.9 s; an actor on a busy host needs longer
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

    Raises:
        ConnectionError: where it has not answered for `MASTER_TIMEOUT_S`, now or before.
    """
    with self.lock:
        if self.connected_to_master:
            self.submit_job_socket.setsockopt(zmq.RCVTIMEO, int(MASTER_TIMEOUT_S * 1000))
            try:
                self.submit_job_socket.send_multipart(message)
                return self.submit_job_socket.recv_multipart()
            except zmq.error.Again:
                self.connected_to_master = False
    raise ConnectionError(
        f"the xparl master at {self.master_address} has not answered for {MASTER_TIMEOUT_S:.0f} s"
    )


def submit_job(self: client.Client, max_memory: Any, n_gpu: int, job_is_alive: Any) -> Any:
    """Ask the master for a free CPU or GPU, until the job that it gives answers a ping.

    Args:
        job_is_alive: PARL's flag, set to False when the job is lost.

    Returns:
        PARL's InitializedJob; None, after a second, where nothing is free.

    Raises:
        ConnectionError: where the master does not answer.
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
        job = cloudpickle.loads(content[0])
        if ping(self, job, max_memory, job_is_alive):
            return job


def ping(self: client.Client, job: Any, max_memory: Any, job_is_alive: Any) -> bool:
    """Tell a job whose actor it is. Return whether it answered.

    The id is known before the job is: a job may send its first heartbeat at once. A job that
    answers too late finds its heartbeats refused, and gives its CPU back.
    """
    instance = secrets.token_hex(8)  # nobody who cannot read our messages can keep it alive
    self.instance_id_to_job[instance] = job_is_alive
    self.job_heartbeat_process.actors.expect(instance)
    request = [self.job_heartbeat_server_addr, str(max_memory), job.allocated_gpu.gpu, instance]
    with self.ctx.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.setsockopt(zmq.RCVTIMEO, int(PING_TIMEOUT_S * 1000))
        socket.connect(f"tcp://{job.ping_heartbeat_address}")
        socket.send_multipart(
            [remote_constants.HEARTBEAT_TAG, *(part.encode() for part in request)]
        )
        try:
            socket.recv_multipart()
        except zmq.error.Again:
            self.job_heartbeat_process.actors.forget(instance)
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
    """Tell the master every 10 s that this learner is there; end where it does not answer."""
    while self.connected_to_master:
        status = {
            "file_path": self.executable_path,
            "actor_num": self.actor_num.value,
            "time": str(datetime.timedelta(seconds=int(time.time() - self.start_time))),
            "log_monitor_url": self.log_monitor_url,
        }
        address = self.reply_master_heartbeat_address.encode()
        try:
            ask_master(
                self,
                remote_constants.CLIENT_STATUS_UPDATE_TAG,
                address,
                cloudpickle.dumps(status),
            )
        except ConnectionError:  # `connected_to_master` says so to everybody
            return
        time.sleep(remote_constants.HEARTBEAT_INTERVAL_S)


def read_local_files(self: client.Client, distributed_files: Any = ()) -> bytes:
    """No files: PARL would send every *.py beside the program, and fail on a dangling link."""
    return cloudpickle.dumps({"python_files": {}, "other_files": {}, "empty_subfolders": set()})


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


def mend() -> None:
    client.HeartbeatServerProcess = HeartbeatServerInProcess  # pyright: ignore
    client.HeartbeatServerThread = AnswersToMaster
    client.Client.submit_job = submit_job
    client.Client._update_job_status = _update_job_status
    client.Client._update_client_status_to_master = send_status
    client.Client.read_local_files = read_local_files
    remote_wrapper.RemoteWrapper._receive_from_remote_instance = receive
    remote_wrapper.RemoteWrapper.send_file = send_file
