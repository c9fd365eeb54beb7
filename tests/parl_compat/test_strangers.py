"""Who does not have the cluster's key, before a real cluster with a run on it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
from pathlib import Path

import cloudpickle
import psutil
import pytest
import zmq

from cluster.engines.actor import USERS_FOLDER
from cluster.engines.xparl_master import cluster_cpus
from common.ports import free_port
from parl_compat import keys, local_clusters
from tests.conftest import BIN, cluster_processes, wait_until
from tests.parl_compat.conftest import metrics

pytestmark = [pytest.mark.xdist_group("xparl"), pytest.mark.slow]

# what a master, a worker and an actor unpickle
TAGS = (
    b"[WORKER_INITIALIZED]", b"[CLIENT_STATUS_UPDATE_TAG]", b"[WORKER_STATUS_UPDATE_TAG]",
    b"[NEW_JOB]", b"[NORMAL]", b"[SEND_FILE]", b"[INIT_OBJECT]", b"[CALL]",
)  # fmt: skip
BOMBS = 104  # for each port


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def listening(processes: list[int]) -> set[tuple[str, int]]:
    """The (address, port) of every listening socket of some processes."""
    found = set()
    for pid in processes:
        try:
            connections = psutil.Process(pid).net_connections(kind="tcp")
        except psutil.NoSuchProcess:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                found.add((connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port))
    return found


def throw(ports: list[int], bomb: bytes, key: keys.Pair | None) -> None:
    """Send bombs to each port, all at once, without CURVE or with a stranger's key."""
    with zmq.Context() as context:
        senders = []
        for port in ports:
            for tag in TAGS:
                sender = context.socket(zmq.DEALER)
                if key is not None:
                    sender.curve_publickey, sender.curve_secretkey = key
                    sender.curve_serverkey = key.public
                sender.linger = 0
                sender.connect(f"tcp://127.0.0.1:{port}")
                with contextlib.suppress(zmq.error.Again):  # it has been thrown out already
                    for _ in range(BOMBS // len(TAGS)):
                        sender.send_multipart([b"", tag, bomb, bomb], zmq.DONTWAIT)
                senders.append(sender)
        poller = zmq.Poller()
        for sender in senders:
            poller.register(sender, zmq.POLLIN)
        assert poller.poll(3000) == []  # nobody answers
        for sender in senders:
            sender.close()


def zmtp_greeting() -> bytes:
    """ZMQ's first 64 bytes, of a client that wants no security; then READY, by RFC 23."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 3) + b"REQ"
    return greeting + bytes([4, len(ready)]) + ready


def send_raw(port: int, content: bytes) -> None:
    connection = socket.create_connection(("127.0.0.1", port), 5)
    with connection, contextlib.suppress(OSError):  # it has been thrown out already
        connection.sendall(content)


def tree(pid: int) -> list[int]:
    """A process and all that it has started."""
    first = psutil.Process(pid)
    return [process.pid for process in (first, *first.children(recursive=True))]


def everybody(cluster: str, run: subprocess.Popen) -> list[int]:
    """The processes of the cluster, its actors, the learner and the evaluator."""
    return cluster_processes(int(cluster.partition(":")[2])) + tree(run.pid)


def test_a_whole_run_listens_on_this_machine_only(xparl_cluster, run):
    """The command that it prints for its curves too."""
    said = next(line for line in run[0].stdout if "curves: visualdl " in line)
    port = free_port()
    curves = subprocess.Popen(
        [BIN / "visualdl", *said.partition("curves: visualdl ")[2].split(), "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: port in {p for _, p in listening(tree(curves.pid))}, 60, "visualdl")
        processes = everybody(xparl_cluster, run[0])
        assert len(processes) >= 14  # 11 of the cluster with 4 CPUs, the learner and the evaluator
        found = listening([*processes, *tree(curves.pid)])
    finally:
        os.killpg(curves.pid, signal.SIGKILL)
        curves.wait()
    assert len(found) > 20
    assert {address for address, _ in found} == {"127.0.0.1"}


def test_pickles_of_strangers_execute_nothing_and_kill_nothing(xparl_cluster, run, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "executed"))
    before = everybody(xparl_cluster, run[0])
    ports = sorted(port for _, port in listening(before))
    for key in (None, keys.Pair(*zmq.curve_keypair())):
        throw(ports, bomb, key)
    for port in ports:
        for tag in TAGS * (BOMBS // len(TAGS)):
            parts = (1, b""), (1, tag), (0, bomb)
            frames = b"".join(bytes([flags, len(part)]) + part for flags, part in parts)
            send_raw(port, zmtp_greeting() + frames)
        send_raw(port, zmtp_greeting() + b"\x02" + b"\xff" * 8 + bytes(100_000))  # oversized
        send_raw(port, b"\xff" * 1000)
    assert not (tmp_path / "executed").exists()
    assert {pid for pid in before if psutil.pid_exists(pid)} == set(before)
    updates = metrics(run[1]).count("\n")
    wait_until(lambda: metrics(run[1]).count("\n") > updates + 2, 20, "the run to go on")
    assert cluster_cpus(xparl_cluster)[1] == 4


def ask(address: str, *message: bytes, timeout: int = 5000) -> list[bytes] | None:
    """The answer of a REP socket to the key's holder; None where none comes."""
    with zmq.Context() as context, context.socket(zmq.REQ) as request:
        request.linger = 0
        request.setsockopt(zmq.RCVTIMEO, timeout)
        keys.secure(request)
        request.connect(f"tcp://{address}")
        request.send_multipart(message)
        try:
            return request.recv_multipart()
        except zmq.error.Again:
            return None


def test_nothing_of_the_keys_holder_is_executed_by_the_master_or_kills_it(xparl_cluster, tmp_path):
    bomb = cloudpickle.dumps(Bomb(tmp_path / "executed"))
    deep = b"[" * 100_000
    for tag in (*TAGS[:4], b"[CLIENT_SUBMIT]", b"[MONITOR]", b"", os.urandom(9)):
        for more in ([], [b"\x80"], [b"a:1", b"\xff" * 99], [deep] * 5, [bomb, bomb]):
            assert ask(xparl_cluster, tag, *more)
    assert cluster_cpus(xparl_cluster)[1] == 4
    assert not (tmp_path / "executed").exists()
    pickle.loads(bomb)
    assert (tmp_path / "executed").exists()  # the bombs are real


def of_cluster(cluster: str, script: str, name: str | None = None) -> list[int]:
    """The processes of the cluster that run one of PARL's scripts."""
    port = int(cluster.partition(":")[2])
    return [
        found.process.pid
        for found in local_clusters.cluster_processes()
        if found.script == script and found.options.get("name") == name
        and found.process.pid in cluster_processes(port)
    ]  # fmt: skip


def test_a_worker_executes_nothing_on_other_machines(xparl_cluster, run, tmp_path):
    """Somebody who has the key of a worker, with which no actor must run code."""
    bomb = pickle.dumps(Bomb(tmp_path / "executed"))
    jobs, workers = (
        of_cluster(xparl_cluster, "job.py"), of_cluster(xparl_cluster, "start.py", "worker")
    )  # fmt: skip
    assert (len(jobs), len(workers)) == (8, 2)  # the worker, and what starts its jobs
    throw(sorted(port for _, port in listening(jobs)), bomb, keys.current().workers)
    for _, port in listening(workers):
        for more in ([], [b"\x80"], [b"["] * 9, [bomb], [bomb] * 3):
            for tag in (b"[NORMAL]", b"[KILLJOB]", b""):
                ask(f"127.0.0.1:{port}", tag, *more, timeout=50)
    before = metrics(run[1]).count("\n")
    # the worker reads its messages of jobs when it needs a new one
    os.kill(next(pid for pid in jobs if os.readlink(f"/proc/{pid}/cwd").endswith(USERS_FOLDER)), 9)
    wait_until(
        lambda: any(json.loads(line)["restarts"] for line in metrics(run[1]).splitlines()[before:-1]),
        100, "a sampler to be replaced",
    )  # fmt: skip
    wait_until(lambda: len(of_cluster(xparl_cluster, "job.py")) == 8, 60, "the worker's new job")
    assert not (tmp_path / "executed").exists()
    assert set(workers) <= set(of_cluster(xparl_cluster, "start.py", "worker"))
    assert cluster_cpus(xparl_cluster)[1] == 4


def test_no_command_line_shows_a_key(xparl_cluster, run):
    secret = keys.current().own.secret.decode()
    for pid in everybody(xparl_cluster, run[0]):
        try:
            words = psutil.Process(pid).cmdline()
        except psutil.NoSuchProcess:
            continue
        assert not any(secret in word for word in words)
