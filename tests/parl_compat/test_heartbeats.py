"""Heartbeats between real gRPC servers and clients, in seconds instead of PARL's half minutes."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from parl_compat.shim import load_parl
from tests.conftest import ROOT, wait_until

load_parl()

from parl.remote import remote_constants  # noqa: E402
from parl.remote.client import Client  # noqa: E402
from parl.remote.grpc_heartbeat import HeartbeatClientThread  # noqa: E402

from parl_compat.heartbeats import HeartbeatServerInProcess  # noqa: E402


class Learner:
    """The heartbeat server of a learner, and the queue in which it reports dead actors."""

    def __init__(self) -> None:
        self.dead: queue.Queue[str] = queue.Queue()
        port, count = types.SimpleNamespace(value=0), types.SimpleNamespace(value=0)
        self.alive = types.SimpleNamespace(value=True)
        self.server = HeartbeatServerInProcess(port, count, self.alive, self.dead)
        self.server.start()
        self.address = f"127.0.0.1:{port.value}"

    def actor(self, instance: str) -> HeartbeatClientThread:
        thread = HeartbeatClientThread(self.address, lambda: None, client_id=instance)
        thread.daemon = True
        thread.start()
        return thread


@pytest.fixture(autouse=True)
def seconds(monkeypatch):
    monkeypatch.setattr(remote_constants, "HEARTBEAT_INTERVAL_S", 0.1)
    monkeypatch.setattr(remote_constants, "HEARTBEAT_RCVTIMEO_S", 2.0)


@pytest.fixture
def learner():
    learner = Learner()
    yield learner
    learner.alive.value = False
    learner.server.join()


def test_an_actor_that_the_learner_does_not_know_ends(learner):
    learner.server.actors.expect("known")
    known, unknown = learner.actor("known"), learner.actor("unknown")
    unknown.join(timeout=20)
    assert not unknown.is_alive()
    assert known.is_alive()
    learner.server.actors.forget("known")  # it answered its ping too late, for instance
    known.join(timeout=20)
    assert not known.is_alive()
    assert learner.dead.empty()


def test_an_actor_that_never_sends_a_heartbeat_is_reported(learner):
    learner.server.actors.expect("quiet")
    assert learner.dead.get(timeout=20) == "quiet"


def test_the_thread_that_marks_dead_actors_outlives_an_unknown_one():
    alive = types.SimpleNamespace(value=True)
    client = types.SimpleNamespace(instance_id_to_job={"one": alive})
    dead: queue.Queue[str] = queue.Queue()
    thread = threading.Thread(target=Client._update_job_status, args=(client, dead), daemon=True)
    thread.start()
    for instance in ("never registered", "one", "exit"):
        dead.put(instance)
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert alive.value is False


STOPPED = """
import sys, time, types
from tests.parl_compat.test_heartbeats import Learner, remote_constants
remote_constants.HEARTBEAT_RCVTIMEO_S = 3.5
learner = Learner()
learner.server.actors.expect("one")
print(learner.address, flush=True)
sys.stdin.readline()
time.sleep(2.5)  # the watch looks about it twice
print(len(learner.server.actors), learner.dead.qsize(), flush=True)
"""


@pytest.mark.slow
def test_a_learner_that_was_stopped_finds_its_actors_alive():
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED], cwd=ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        actor = HeartbeatClientThread(address, lambda: None, client_id="one")
        actor.daemon = True
        actor.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGSTOP)
        time.sleep(5.0)  # longer than the time after which silence means death
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline().split() == ["1", "0"]
        assert actor.is_alive()
    finally:
        process.kill()
        process.communicate()
    wait_until(lambda: not actor.is_alive(), 20, "the actor of a dead learner to end")
