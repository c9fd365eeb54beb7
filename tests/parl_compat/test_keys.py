from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import zmq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parl_compat import keys
from tests.conftest import BIN, ROOT


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home folder without a key."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(keys.KEY_VARIABLE, raising=False)
    return tmp_path


def xparl(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(BIN / "xparl"), *arguments],
        timeout=60, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_new_key_is_its_users_alone_and_overwrites_nothing(tmp_path):
    previous = os.umask(0)
    try:
        keys.write(tmp_path / "key")
    finally:
        os.umask(previous)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(keys.BadKey, match="exists, and is not overwritten"):
        keys.write(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before
    assert os.listdir(tmp_path) == ["key"]
    key = keys.read(tmp_path / "key")
    assert zmq.curve_public(key.own.secret) == key.own.public
    keys.write(tmp_path / "another")
    assert keys.read(tmp_path / "another") != key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o777])
def test_a_key_that_others_can_read_or_write_is_refused(tmp_path, mode):
    keys.write(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(keys.BadKey, match=r"chmod 600 .*make a new key"):
        keys.read(tmp_path / "key")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(tmp_path):
    keys.write(tmp_path / "key")
    os.chown(tmp_path / "key", 65534, 65534)
    with pytest.raises(keys.BadKey, match=r"belongs to user 65534.*install -m 600"):
        keys.read(tmp_path / "key")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("pipe", "none", ".", "null\0byte"):
        with pytest.raises(keys.BadKey, match="xparl keygen"):
            keys.read(tmp_path / name)


@settings(max_examples=int(os.environ.get("FUZZ_CASES", "60")))
@given(st.binary(max_size=300) | st.text(max_size=50).map(str.encode))
@example(b"dppo-xparl-key-1 " + b"~" * 40 + b"\n")
@example(b"dppo-xparl-key-1 " + b"0" * 40)
@example(b"0" * 40 + b"\n")
@example(b"dppo-xparl-worker-key-1 " + b"0" * 40 + b" " + b"~" * 40 + b"\n")
@example(b"dppo-xparl-worker-key-1 " + b"0" * 40 + b"\n")
def test_what_is_no_key_is_refused(content):
    path = Path(os.environ["HOME"]) / "malformed"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(keys.BadKey, match=r"holds no key: make one with `xparl keygen"):
        keys.read(path)


def test_processes_that_need_a_key_at_the_same_time_make_one(home):
    program = "from parl_compat import keys; print(keys.current())"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, text=True, stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]
    assert len({process.communicate(timeout=30)[0] for process in processes}) == 1
    path = home / ".config" / "dppo" / "key"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert os.listdir(path.parent) == ["key"]
    assert str(keys.read(path)) == str(keys.current())


def test_the_users_own_key_is_for_this_machine_only(home, monkeypatch):
    keys.choose(None, "localhost", "127.0.0.2")
    with pytest.raises(keys.BadKey, match=r"10\.0\.0\.1 can be reached.*`xparl keygen FILE`"):
        keys.choose(None, "127.0.0.1", "10.0.0.1")
    keys.write(home / "cluster")
    monkeypatch.chdir(home)
    monkeypatch.setenv(keys.KEY_VARIABLE, "")
    keys.choose("cluster", "10.0.0.1")
    assert os.environ[keys.KEY_VARIABLE] == str(home / "cluster")
    keys.choose(None, "10.0.0.1")
    assert keys.current() == keys.read(home / "cluster")


def answer_to(client_key: keys.Pair | None, server_key: bytes, port: int) -> list[bytes] | None:
    with zmq.Context() as context, context.socket(zmq.REQ) as request:
        request.linger = 0
        request.setsockopt(zmq.RCVTIMEO, 400)
        if client_key is not None:
            request.curve_publickey, request.curve_secretkey = client_key
            request.curve_serverkey = server_key
        request.connect(f"tcp://127.0.0.1:{port}")
        request.send_multipart([b"hello"])
        try:
            return request.recv_multipart()
        except zmq.error.Again:
            return None


@pytest.mark.parametrize("name", ["cluster.key", "~/cluster.key"])
def test_a_keys_name_is_the_same_in_every_folder(name, home, monkeypatch):
    """Jobs work in folders of their own."""
    keys.write(home / "cluster.key")
    monkeypatch.chdir(home)
    monkeypatch.setenv(keys.KEY_VARIABLE, name)
    keys.choose(None)
    monkeypatch.chdir("/")
    assert keys.current_file() == home / "cluster.key"
    assert keys.current() == keys.read(home / "cluster.key")


def test_only_the_keys_holder_is_heard():
    servers_key = keys.current().workers.public
    strangers = keys.Pair(*zmq.curve_keypair())
    with zmq.Context() as context:
        servers = [context.socket(zmq.REP) for _ in range(2)]  # one ZAP handler serves both
        ports = []
        for server in servers:
            keys.secure(server)
            server.setsockopt(zmq.RCVTIMEO, 5000)
            ports.append(server.bind_to_random_port("tcp://127.0.0.1"))
        assert answer_to(None, b"", ports[0]) is None
        assert answer_to(strangers, strangers.public, ports[0]) is None
        assert answer_to(strangers, servers_key, ports[0]) is None  # refused by ZAP alone
        for server, port in zip(servers, ports, strict=True):
            with zmq.Context() as other, other.socket(zmq.REQ) as request:
                request.linger = 0
                request.setsockopt(zmq.RCVTIMEO, 5000)
                keys.secure(request)
                request.connect(f"tcp://127.0.0.1:{port}")
                request.send(b"hello")
                assert server.recv() == b"hello"  # the first that it gets
                server.send(b"answer")
                assert request.recv() == b"answer"
            server.close(linger=0)


def test_a_workers_key_is_heard_by_servers_but_by_no_actor(home, monkeypatch):
    keys.write(home / "cluster")
    whole = keys.read(home / "cluster")
    keys.write_workers(home / "worker", whole)
    worker = keys.read(home / "worker")
    assert (whole.is_workers, worker.is_workers) == (False, True)
    assert worker.workers == whole.workers
    assert worker.learners == whole.own.public
    assert whole.own.secret not in (home / "worker").read_bytes()
    for hears_workers in (True, False):
        monkeypatch.setattr(keys, "_hears_workers", hears_workers)
        with zmq.Context() as context, context.socket(zmq.REP) as server:
            keys.secure(server, worker)  # as on a machine that only works
            server.linger = 0  # else ZMQ may wait for ever to send the answer to who has left
            server.setsockopt(zmq.RCVTIMEO, 5000)
            port = server.bind_to_random_port("tcp://127.0.0.1")
            with zmq.Context() as other:
                senders = {key: other.socket(zmq.REQ) for key in (worker, whole)}
                for key, sender in senders.items():
                    sender.linger = 0
                    keys.secure(sender, key)
                    sender.connect(f"tcp://127.0.0.1:{port}")
                    sender.send(key.own.public)
                heard = {server.recv()}
                server.send(b"")
                server.setsockopt(zmq.RCVTIMEO, 5000 if hears_workers else 400)
                with contextlib.suppress(zmq.error.Again):
                    heard.add(server.recv())
                for sender in senders.values():
                    sender.close()
        expected = {whole.own.public} | ({worker.own.public} if hears_workers else set())
        assert heard == expected


def own_address() -> str:
    """An address of this machine beyond loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect(("203.0.113.7", 9))
        except OSError:
            pytest.skip("this machine has no route to any other")
        return route.getsockname()[0]


def test_the_command_makes_a_key_and_wants_one_beyond_loopback(tmp_path):
    file, address = str(tmp_path / "cluster"), own_address()
    made = xparl("keygen", file)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout == (
        f"{file}: give it to `xparl start`, `xparl connect` and `train.py` as --key {file}\n"
    )
    keys.read(Path(file))
    workers = xparl("keygen", "--worker_of", file, f"{file}.worker")
    assert (workers.returncode, workers.stderr) == (0, "")
    assert workers.stdout == (
        f"{file}.worker: give it to `xparl connect` as --key {file}.worker, on machines that only"
        " work\n"
    )
    assert keys.read(Path(f"{file}.worker")).workers == keys.read(Path(file)).workers
    third = xparl("keygen", "--worker_of", f"{file}.worker", f"{file}.third")
    assert (third.returncode, third.stderr) == (
        1, f"xparl: {file}.worker is itself a worker's key: give copies of it\n"
    )  # fmt: skip
    again = xparl("keygen", file)
    assert (again.returncode, again.stderr) == (
        1, f"xparl: {file} exists, and is not overwritten: give another name\n"
    )  # fmt: skip
    for command in (["start", "--port", "9"], ["connect", "--address", f"{address}:9"]):
        done = xparl(*command, "--host", address)
        assert done.returncode == 1
        assert f"xparl: {address} can be reached from other machines" in done.stderr
        assert "make one with `xparl keygen FILE`" in done.stderr
    (tmp_path / "cluster").chmod(0o644)
    done = xparl("start", "--port", "9", "--key", file)
    assert done.returncode == 2
    assert "can be read or written by others (mode 644)" in done.stderr


def test_a_run_needs_a_key_for_another_machine():
    done = subprocess.run(
        [sys.executable, "train.py", "--env", "CartPole-v1", "--xparl_addr", "203.0.113.7:8010"],
        cwd=ROOT, timeout=60, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2
    assert "xparl_addr 203.0.113.7:8010: 203.0.113.7 can be reached from" in done.stderr


@pytest.mark.parametrize("host", ["nowhere.invalid", "10.0..1"])
def test_an_unknown_host_is_said_with_a_key_and_without(home, host, monkeypatch):
    from cluster.engines.xparl_master import ClusterError, cluster_cpus

    with pytest.raises(ClusterError, match=f"{host} has no IPv4 address"):
        cluster_cpus(f"{host}:8010")
    keys.write(home / "cluster")
    monkeypatch.setenv(keys.KEY_VARIABLE, str(home / "cluster"))
    with pytest.raises(ClusterError, match=f"nothing listens at xparl_addr {host}:8010"):
        cluster_cpus(f"{host}:8010")


def test_a_learner_with_a_workers_key_is_refused(home, monkeypatch):
    monkeypatch.setenv(keys.KEY_VARIABLE, "")  # what is chosen is forgotten at the end
    from cluster.engines.xparl_master import ClusterError, choose_key

    keys.write_workers(home / "worker", keys.current())
    with pytest.raises(ClusterError, match=r"worker is a worker's key, .* that it was made of"):
        choose_key(str(home / "worker"), "localhost:8010")
