"""What becomes of a run whose store, trainers or samplers are disturbed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from cluster.store import make
from cluster.store.address import StoreError, StoreLost
from cluster.store.keys import RunGone
from rollout import Weights
from settings.store_url import PASSWORD, parse
from tests.cluster.store.stores import (
    WEIGHTS,
    founded,
    is_conserved,
    message,
    pool_of,
    run_at,
    started_again,
)
from tests.conftest import ROOT, is_running, wait_until

NEXT = Weights(1, WEIGHTS.arrays)


@contextlib.contextmanager
def in_a_thread(action, *arguments) -> Iterator[list]:
    """Do something beside the test; at the end, wait until it is done. The list has the result."""
    results: list = []
    thread = threading.Thread(target=lambda: results.append(action(*arguments)))
    thread.start()
    yield results
    thread.join(60)
    assert not thread.is_alive()


def test_a_store_that_stands_still_is_waited_for(server):
    store, said = founded(server.url), []
    store.stream.append(0, 0, message(0, 0))
    with pool_of(run_at(server.url, store.run, said=said.append), said.append) as pool:
        os.kill(server.pid, signal.SIGSTOP)
        with (
            in_a_thread(pool.gather) as gathered,
            in_a_thread(store.stream.append, 0, 1, message(0, 1)),
        ):
            wait_until(lambda: said, 30, "a sentence about the store")
            assert gathered == []
            os.kill(server.pid, signal.SIGCONT)
        assert gathered[0].reward[0].tolist() == [0, 0, 1, 1]
        assert pool.alarms > 0
        assert pool.weights.publish(WEIGHTS.arrays, 0).outcome == "done"
    assert "is away" in said[0]
    assert any("is back after" in line for line in said)
    status = store.status()
    assert (status.appended, status.learned) == (2, 2)


def test_a_store_that_came_back_empty_is_founded_anew(server):
    store, said = founded(server.url), []
    store.stream.append(store.join(2), 0, message(0, 0))
    with pool_of(run_at(server.url, store.run, said=said.append), said.append) as pool:
        pool.weights.publish(WEIGHTS.arrays, 0)
        wait_until(lambda: pool.samplers_alive == 1, 20, "a heartbeat that has seen the sampler")
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not is_running(server.pid), 20, "its end")
        with contextlib.closing(started_again(server)):
            with in_a_thread(pool.gather) as gathered:
                wait_until(lambda: store.record() is not None, 30, "the run")
                assert store.version() == 1
                with pytest.raises(RunGone):  # its fragment may be of weights that are not there
                    store.stream.append(0, 1, message(0, 1))
                sampler = store.join(2)
                assert sampler > 64  # no sampler repeats the noise of one before
                for number in range(2):
                    store.stream.append(sampler, number, message(sampler, number, 1))
            first = 1000 * sampler
            assert gathered[0].reward[0, ::2].tolist() == [first, first + 1]
            assert pool.weights.publish(WEIGHTS.arrays, 1).outcome == "done"
            assert is_conserved(store.status())
    assert any("made anew, with weights 1" in line for line in said)


def test_a_database_that_the_server_does_not_have_is_named(server):
    with pytest.raises(
        StoreError, match=r"has no such database .*: give one that it has, such as /0"
    ):
        run_at(server.url.replace("/0", "/99")).record()


@pytest.mark.parametrize("key", ["record", "weights", "counters", "stream"])
def test_a_run_of_which_the_server_has_evicted_a_key_is_made_anew(server, key):
    store = founded(server.url)
    with pool_of(run_at(server.url, store.run)) as pool, in_a_thread(pool.gather) as gathered:
        store.link.client.delete(f"dppo:{{{store.run}}}:{key}")
        wait_until(lambda: store.link.client.exists(f"dppo:{{{store.run}}}:{key}"), 20, "the run")
        sampler = store.join(2)
        for number in range(2):
            store.stream.append(sampler, number, message(sampler, number))
    assert gathered[0].reward[0, 0].item() == 1000 * sampler


def test_a_snapshot_from_before_the_run_went_on_does_not_end_it(server):
    store = founded(server.url)
    store.end()
    ended = {key: store.link.client.dump(key) for key in store.link.client.scan_iter("dppo:*")}
    with pool_of(run_at(server.url, store.run)) as pool:
        assert pool.weights.publish(WEIGHTS.arrays, 0).outcome == "done"
        for key, content in ended.items():
            store.link.client.restore(key, 0, content or b"", replace=True)
        wait_until(lambda: pool._heartbeat.last and pool._heartbeat.last.ended, 20, "a heartbeat")
        pool.raise_if_ended()
        with in_a_thread(pool.gather) as gathered:
            wait_until(lambda: store.version() == 1, 20, "the run")
            sampler = store.join(2)
            for number in range(2):
                store.stream.append(sampler, number, message(sampler, number, 1))
        assert gathered


def test_fragments_that_went_down_with_the_store_are_not_learned_from(server):
    store = founded(server.url)
    for number in range(2):
        store.stream.append(0, number, message(0, number))
    with pool_of(run_at(server.url, store.run)) as pool:
        pool.gather()
        store.link.client.flushall()
        published = pool.weights.publish(WEIGHTS.arrays, 0)
        assert (published.outcome, published.version) == ("lost", 0)
    assert store.status().learned == 0


def test_a_store_that_is_away_for_longer_than_the_timeout_is_lost(server):
    store = run_at(server.url, founded(server.url).run, timeout=0.5)
    with pool_of(store) as pool:
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(StoreLost, match=r"has been away for 0\.5 s") as lost:
            pool.gather()
    assert lost.value.exit_code == 75


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stopped", [False, True])
def test_a_signal_ends_the_wait_for_fragments_and_none_is_lost(server, stopped):
    def interrupt(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    store, said = founded(server.url), []
    try:
        with pool_of(run_at(server.url, store.run, said=said.append)) as pool:
            store.stream.append(0, 0, message(0, 0))
            if stopped:
                os.kill(server.pid, signal.SIGSTOP)

            def send() -> None:
                is_waiting = (lambda: said) if stopped else (lambda: pool._consumer.held)
                wait_until(is_waiting, 30, "the wait")
                os.kill(os.getpid(), signal.SIGUSR1)

            with in_a_thread(send), pytest.raises(Interrupted):
                pool.gather()
            os.kill(server.pid, signal.SIGCONT)
            store.stream.append(0, 1, message(0, 1))
            assert pool.gather().reward[0].tolist() == [0, 0, 1, 1]
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("password", ["", "wrong"])
def test_nobody_is_served_without_the_password(server, monkeypatch, password):
    monkeypatch.setenv(PASSWORD, password)
    with pytest.raises(StoreError, match=PASSWORD) as refused:
        run_at(server.url).status()
    assert "wrong" not in str(refused.value).replace("WRONGPASS", "")


def test_the_embedded_server_and_its_password_are_there_for_the_context(monkeypatch):
    monkeypatch.setenv(PASSWORD, "mine")
    with make.server("embedded") as url:
        assert os.environ[PASSWORD] != "mine"
        assert run_at(url).record() is None
    assert os.environ[PASSWORD] == "mine"
    with pytest.raises(StoreLost):
        run_at(url, timeout=0.1).record()
    with make.server("redis://10.0.0.1:6379/0") as url:
        assert url == "redis://10.0.0.1:6379/0"


def test_it_listens_on_loopback_only_and_keeps_nothing(server):
    process = psutil.Process(server.pid)
    listening = [c.laddr for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
    assert [(address.ip, address.port) for address in listening] == [
        ("127.0.0.1", parse(server.url).port)
    ]
    client = run_at(server.url).link.client
    assert client.config_get("save")["save"] == ""
    assert client.config_get("appendonly")["appendonly"] == "no"


@pytest.mark.parametrize("command", ["CONFIG SET dir /tmp", "MODULE LOAD x.so", "DEBUG SLEEP 0"])
def test_a_holder_of_the_password_can_run_no_code(server, command):
    with pytest.raises(redis.ResponseError, match=r"(?i)not allowed|protected"):
        run_at(server.url).link.client.execute_command(*command.split())


def test_the_password_is_in_no_list_of_processes(server):
    password = os.environ[PASSWORD]
    assert len(password) >= 32
    process = psutil.Process(server.pid)
    assert password not in " ".join([*process.cmdline(), *process.environ().values()])
    assert password not in server.url


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_with_the_process_that_has_started_it(number):
    code = (
        "import time\n"
        "from cluster.store.embedded import EmbeddedServer\n"
        "server = EmbeddedServer()\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        assert is_running(server)
    finally:
        process.send_signal(number)
        process.communicate()
    wait_until(lambda: not is_running(server), 20, "the server's end")


@pytest.mark.slow
def test_a_killed_trainers_fragments_are_claimed_by_another(server):
    """It takes the ten seconds after which a trainer that is not heard counts as dead."""
    store = founded(server.url)
    for number in range(4):
        store.stream.append(0, number, message(0, number))
    child = trainer_process(server.url, store.run, "hang")
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "gathered 0 1\n"
    finally:
        killed(child)
    with pool_of(run_at(server.url, store.run)) as pool:
        assert pool.gather().reward[0].tolist() == [2, 2, 3, 3]
        assert pool.weights.publish(WEIGHTS.arrays, 0).outcome == "done"
        assert pool.gather().reward[0].tolist() == [0, 0, 1, 1]
        assert pool.weights.publish(WEIGHTS.arrays, 1).outcome == "done"
    status = store.status()
    assert (status.learned, status.depth) == (4, 0)


def trainer_process(url: str, run: str, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.store.disturbed", url, run, *more],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


@pytest.mark.slow
def test_no_fragment_is_lost_or_learned_from_twice_where_everybody_is_killed_at_random(
    server, tmp_path: Path
):
    generator = random.Random(1)
    store = founded(server.url, fragments=300)

    def begun(kind: str) -> subprocess.Popen[str]:
        return trainer_process(server.url, store.run, kind, str(tmp_path))

    crowd = {kind + str(n): begun(kind) for kind in ("trainer", "sampler") for n in range(2)}
    try:
        for _ in range(5):
            before = store.status().appended
            wait_until(lambda before=before: store.status().appended > before + 10, 60, "fragments")
            name = generator.choice(sorted(crowd))
            killed(crowd[name])
            crowd[name] = begun(name[:-1])
            assert is_conserved(store.status())
        for name in ("sampler0", "sampler1"):
            killed(crowd[name])
        # the trainers learn from what is left, and from what the dead ones had
        # each trainer may hold one, and wait for a second
        wait_until(lambda: store.status().depth <= 2, 60, "the last fragments")
    finally:
        for process in crowd.values():
            killed(process)
    status = store.status()
    assert is_conserved(status)
    assert (status.dropped, status.refused) == ({}, {})
    assert status.learned == status.appended - status.depth
    told = [line for path in tmp_path.iterdir() for line in path.read_text().split()]
    assert len(told) == len(set(told))
    # a trainer that is killed may not have told of what it has published last
    assert status.learned - 2 * 5 <= len(told) <= status.learned
    assert status.version * 2 == status.learned
