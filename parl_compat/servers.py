"""PARL's own processes (master, worker, job, monitor, log server), made to outlive an error.

This module is imported by `parl_compat.command`, once PARL is.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import signal
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import psutil
import zmq
from parl.remote import (
    cluster_monitor,
    communication,
    master,
    message,
    remote_constants,
    status,
    worker,
)
from parl.remote.grpc_heartbeat import HeartbeatClientThread

from parl_compat import messages, web
from parl_compat.nursery import Nursery

LAUNCHER_LOOK_S = 1.0  # how often it looks whether its worker is there
RESERVE_LOOK_S = 0.02  # how often a worker looks whether it has a job in reserve for each CPU
MASTER_TIMEOUT_S = (
    20.0  # a worker waits so long for the master that was started with it; PARL 0.5 s
)


def receive_or_reply(receive: Callable[[Any], None]) -> Callable[[Any], None]:
    """A message that cannot be handled must not end the master for everybody."""

    def receive_one(self: Any) -> None:
        try:
            receive(self)
        except zmq.error.Again:
            raise  # PARL's idle tick
        except Exception as error:
            master.logger.error(f"[Master] refused a message: {error!r}")
            with contextlib.suppress(zmq.ZMQError):  # it had been answered before it failed
                self.client_socket.send_multipart([b"[EXCEPTION]", repr(error).encode()])

    return receive_one


def guard_monitor() -> None:
    """Release the cluster monitor's lock also where one of its methods raises.

    PARL's methods call acquire and release in pairs, with code between them that can raise. Here
    the lock is taken around each method, and theirs does nothing.
    """
    guard = threading.Lock()  # a process has one master, and that has one monitor
    monitor = cluster_monitor.ClusterMonitor

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(self: Any, *arguments: Any) -> Any:
            with guard:
                return method(self, *arguments)

        return call

    def initialize(self: Any) -> None:
        begin(self)
        self.lock = types.SimpleNamespace(acquire=lambda: None, release=lambda: None)

    begin, monitor.__init__ = monitor.__init__, initialize
    for name in (
        "add_worker_status", "add_client_job", "update_client_status", "update_worker_status",
        "drop_worker_status", "drop_client_status", "get_status_info", "get_status",
    ):  # fmt: skip
        setattr(monitor, name, guarded(getattr(monitor, name)))
    update = monitor.update_worker_status

    def update_known(self: Any, status: Any, address: str, *cpus: int) -> None:
        # a worker that was given up for lost ends by itself a little later
        if address in self.status["workers"]:
            update(self, status, address, *cpus)

    monitor.update_worker_status = update_known


def tell_free_cpus(init: Callable[..., None]) -> Callable[..., None]:
    """A master whose status says what it would give now. PARL says what its workers last reported."""

    def initialize(self: master.Master, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        self.monitor_url = self.monitor_url.replace(f"//{self.master_ip}:", f"//{web.web_host()}:")
        manager = self.worker_manager

        def status_info() -> str:
            with manager.lock:
                cpus, gpus = manager.cpu_resource, manager.gpu_resource
                used = sum(cpus.worker_used_cpus.values())
                used_gpus = sum(len(ids) for ids in gpus.worker_used_gpus.values())
                counts = used, cpus.cpu_num(), used_gpus, gpus.gpu_num()
            return "has {} used cpus, {} vacant cpus, {} used_gpus, {} vacant_gpus.".format(*counts)

        self.cluster_monitor.get_status_info = status_info

    return initialize


def ask_master(self: worker.Worker, *message: bytes) -> list[bytes]:
    """Send the master a message and wait for its answer, as long as this worker lives.

    A master that answers late loses nothing. One that is gone sends no heartbeats, and the worker
    ends by that.

    Raises:
        ConnectionError: where this worker has ended meanwhile.
    """
    with self.lock:
        if self.worker_is_alive:  # else the socket may still wait for an earlier answer
            self.request_master_socket.send_multipart(message)
        while self.worker_is_alive:
            with contextlib.suppress(zmq.error.Again):
                return self.request_master_socket.recv_multipart()
    raise ConnectionError("the worker has ended")


def launch(self: worker.Worker, commands: Any) -> None:
    """In the worker's launcher: start the jobs that it asks for, and end them when it has ended.

    PARL's launcher outlived its worker, and left zombies.
    """
    parent = os.getppid()
    nursery = Nursery()
    while os.getppid() == parent:
        with contextlib.suppress(queue.Empty):
            nursery.start(commands.get(timeout=LAUNCHER_LOOK_S))
    nursery.close()


def wait_for_master(create_sockets: Callable[..., None]) -> Callable[..., None]:
    """A worker whose master may be slow to begin, on a busy machine."""

    def create_patient_sockets(self: worker.Worker) -> None:
        create_sockets(self)
        self.request_master_socket.setsockopt(zmq.RCVTIMEO, int(MASTER_TIMEOUT_S * 1000))

    return create_patient_sockets


def init_jobs(self: worker.Worker, job_num: int) -> list[Any]:
    """Have the launcher start jobs, and wait until each has told of itself.

    PARL's own took anybody's word for it. A job knows the address at which its worker can be asked to
    kill it.
    """
    script = os.path.join(os.path.dirname(worker.__file__), "job.py")
    addresses = {
        "--worker_address": self.reply_job_address,
        "--log_server_address": self.log_server_address,
    }
    command = [script, *(word for pair in addresses.items() for word in pair)]

    def lost(job: Any) -> None:
        job.is_alive = False
        if self.master_is_alive and self.worker_is_alive:
            self._remove_job(job.job_address)

    jobs: list[Any] = []
    with self.lock:  # not many jobs are to be killed and started at once
        for _ in range(job_num):
            self.cmd_queue.put(command)
        while len(jobs) < job_num:
            job = receive_job(self)
            if job is None:
                continue
            jobs.append(job)
            job.remove_job_address = self.remove_job_address
            heartbeats = HeartbeatClientThread(
                job.worker_heartbeat_address,
                heartbeat_exit_callback_func=lost,
                exit_func_args=(job,),
            )
            heartbeats.daemon = True
            heartbeats.start()
    return jobs


def keep_reserve(self: worker.Worker) -> None:
    """Keep a job in reserve for each of the worker's CPUs, for as long as the worker lives.

    PARL kept those that had died too, until one was needed.
    """
    reserve = self.job_buffer
    while self.worker_is_alive:
        with reserve.mutex:
            alive = [job for job in reserve.queue if job.is_alive]
            reserve.queue.clear()
            reserve.queue.extend(alive)
        if len(alive) < self.device_count:
            for job in self._init_jobs(self.device_count - len(alive)):
                reserve.put(job)
        time.sleep(RESERVE_LOOK_S)
    self.exit()


def is_job(pid: int) -> bool:
    """Whether a process is a fork of the nursery that this worker's launcher has started."""
    parents = [process.pid for process in psutil.Process(pid).parents()]
    return os.getpid() in parents[2:3]


def receive_job(self: worker.Worker) -> Any:
    """A job that has told this worker of itself; None for a message that is not a job's of its own."""
    content = self.reply_job_socket.recv_multipart()
    address, pid = self.remove_job_address.encode(), self.pid.encode()
    self.reply_job_socket.send_multipart([remote_constants.NORMAL_TAG, address, pid])
    try:
        job = messages.unpack(content[-1])
        # whoever has the key could name any process of this user's to be killed
        if isinstance(job, message.InitializedJob) and is_job(job.pid):
            return job
        reason = "it names no job of this worker"
    except psutil.NoSuchProcess:
        return job  # its heartbeats will say so
    except messages.BadMessage as error:
        reason = str(error)
    worker.logger.error(f"[Worker] refused a message to it: {reason}")
    return None


def _kill(job: Any) -> None:
    """End a job at once, whatever it is doing: one that is stopped handles no SIGTERM."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(job.pid, signal.SIGKILL)


def kill_job(self: status.WorkerStatus, address: str) -> bool:
    """Kill one of the worker's jobs; whether it had it still."""
    with self._lock:
        job = self.jobs.pop(address, None)
        if job is not None:
            _kill(job)
        return job is not None


def kill_jobs(self: status.WorkerStatus) -> None:
    """Kill all of the worker's jobs."""
    with self._lock:
        for job in self.jobs.values():
            _kill(job)
        self.jobs = {}


def answer_removals(self: worker.Worker) -> None:
    """Kill the jobs that jobs themselves, or their learners, ask this worker to kill.

    A new job can take some seconds to come, so each request is worked on in a thread of its own.
    """
    self.remove_job_socket.linger = 0
    self.remove_job_socket.setsockopt(zmq.RCVTIMEO, 1000)
    while self.worker_is_alive and self.master_is_alive:
        try:
            message = self.remove_job_socket.recv_multipart()
        except zmq.error.Again:
            continue
        tag, address = message[0], message[-1].decode(errors="replace")
        if tag == remote_constants.KILLJOB_TAG:
            threading.Thread(target=self._remove_job, args=(address,), daemon=True).start()
        self.remove_job_socket.send_multipart([remote_constants.NORMAL_TAG])


def remove_job(self: worker.Worker, job_address: str) -> None:
    """Kill a job, and offer the master a new one in its place."""
    assert self.worker_status is not None  # set before the first job can end
    if not self.worker_status.remove_job(job_address):
        return
    while not (job := self.job_buffer.get()).is_alive:
        worker.logger.warning("[Worker] a job of the buffer is dead: taking the next")
    job.worker_address = self.master_heartbeat_address
    self.worker_status.add_job(job)
    with contextlib.suppress(ConnectionError):  # the worker has ended, and its jobs with it
        ask_master(self, remote_constants.NEW_JOB_TAG, messages.pack(job), job_address.encode())


def send_status(self: worker.Worker) -> None:
    """Tell the master every 10 s how this worker fares."""
    while self.worker_is_alive:
        status = messages.pack(self._get_worker_status())
        address = self.master_heartbeat_address.encode()
        try:
            ask_master(self, remote_constants.WORKER_STATUS_UPDATE_TAG, address, status)
        except ConnectionError:
            return
        time.sleep(remote_constants.HEARTBEAT_INTERVAL_S)


def mend() -> None:
    web.mend()
    for module in (master, worker, cluster_monitor):
        module.cloudpickle = messages.PICKLES
    communication.dumps_return = messages.pack  # before a job's script imports it
    master.Master._receive_message = receive_or_reply(master.Master._receive_message)
    master.Master.__init__ = tell_free_cpus(master.Master.__init__)
    guard_monitor()
    status.WorkerStatus.remove_job = kill_job
    status.WorkerStatus.clear = kill_jobs
    worker.Worker._launch_cmd = launch
    worker.Worker._create_sockets = wait_for_master(worker.Worker._create_sockets)
    worker.Worker._init_jobs = init_jobs
    worker.Worker._fill_job_buffer = keep_reserve
    worker.Worker._reply_remove_job = answer_removals
    worker.Worker._remove_job = remove_job
    worker.Worker._update_worker_status_to_master = send_status
