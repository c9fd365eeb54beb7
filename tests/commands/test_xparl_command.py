"""The console command `xparl`, as a user types it."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from cluster.engines.xparl_master import cluster_cpus
from common.ports import free_port
from parl_compat import keys
from parl_compat.local_clusters import cluster_processes
from tests.conftest import BIN, run_command, wait_until

pytestmark = [pytest.mark.xdist_group("xparl"), pytest.mark.slow]


def xparl(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(BIN / "xparl"), *arguments],
        timeout=90, capture_output=True, text=True, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def listening_addresses(port: int) -> set[str]:
    """The addresses at which the processes of a cluster listen."""
    roots = [p.process for p in cluster_processes() if p.port == str(port)]
    processes = {p for root in roots for p in (root, *root.children(recursive=True))}
    return {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in processes
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.fixture(scope="module")
def two_machines():
    """A master with one CPU at 127.0.0.2, and a worker with one more at 127.0.0.3."""
    port = free_port("127.0.0.2")
    address = f"127.0.0.2:{port}"
    try:
        started = xparl("start", "--port", str(port), "--cpu_num", "1", "--host=127.0.0.2")
        assert started.returncode == 0, started.stderr
        assert f"The Parl cluster is started at {address}" in started.stdout
        assert "Fail to start" not in started.stdout, started.stderr
        connected = xparl("connect", "--address", address, "--cpu_num", "1", "--host", "127.0.0.3")
        assert connected.returncode == 0, connected.stderr
        yield address
    finally:
        stopped = xparl("stop", "--port", str(port))
    assert stopped.stdout.startswith("Stopped ")
    assert "No such process" not in stopped.stdout + stopped.stderr
    assert xparl("stop", "--port", str(port)).stdout == "No active cluster is found.\n"


def test_a_cluster_of_two_addresses_has_the_cpus_of_both(two_machines):
    wait_until(lambda: cluster_cpus(two_machines, 0) == (2, 2), 60, "the CPUs of both")
    status = xparl("status").stdout
    assert f"# Cluster {two_machines} has 0 used cpus, 2 vacant cpus" in status
    assert "please view: http://127.0.0.2:" in status
    port = int(two_machines.partition(":")[2])
    assert listening_addresses(port) == {"127.0.0.2", "127.0.0.3"}


RELEASE = """
import os, signal, sys, time
from parl_compat.shim import load_parl
parl = load_parl()
parl.connect(sys.argv[1])
class Actor: pass
Actor.__module__ = "made_up"
Remote = parl.remote_class(Actor)
actor = Remote()
os.kill(int(sys.argv[2]), signal.SIGSTOP)
del actor
time.sleep(12)  # PARL's worker waits 10 s for the master, and then never again
os.kill(int(sys.argv[2]), signal.SIGCONT)
for _ in range(2):  # what ended meanwhile was offered again; what ends from now on must be too
    actors = [Remote(), Remote()]
    del actors
print("offered again", flush=True)
os._exit(0)
"""


def test_a_worker_whose_master_answered_late_goes_on_offering_its_cpus(two_machines):
    port = two_machines.partition(":")[2]
    master = next(
        p.process.pid
        for p in cluster_processes()
        if p.options.get("name") == "master" and p.port == port
    )
    done = run_command("-c", RELEASE, two_machines, str(master), timeout=80)
    assert done.stdout == "offered again\n", done.stderr


def test_a_run_trains_on_both_addresses(two_machines, tmp_path):
    done = run_command(
        "train.py", "--env", "CartPole-v1", "--train_total_steps", "3000", "--samplers", "2",
        "--xparl_addr", two_machines, "--run_dir", str(tmp_path / "run"),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["pool"], summary["samplers"]) == ("xparl", 2)


def test_a_port_that_is_taken_at_the_address_is_refused(two_machines):
    port = two_machines.partition(":")[2]
    done = xparl("start", "--port", port, "--host", "127.0.0.2")
    assert done.returncode == 1
    assert f"The master address {two_machines} is already in use" in done.stderr


@pytest.mark.parametrize("host", ["203.0.113.7", "0.0.0.0", "::1", "myhost"])
def test_a_host_that_cannot_be_reached_is_refused(host):
    done = xparl("start", "--port", "8010", "--host", host)
    assert done.returncode == 2
    assert f"{host!r} is not an IPv4 address of this machine" in done.stderr


def test_a_worker_that_the_master_cannot_reach_is_refused():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect(("203.0.113.7", 8010))
        except OSError:
            pytest.skip("this machine has no route to any other")
    done = xparl("connect", "--address", "203.0.113.7:8010")
    assert done.returncode == 1
    assert "cannot reach 127.0.0.1" in done.stderr
    assert "add --host " in done.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["start", "--port", "abc"], "--port 'abc' is not a port: give 1 to 65535"),
        (["start", "--port", "8010", "--monitor_port", "65536"], "--monitor_port '65536' is not"),
        (["connect", "--address", "8010"], "is not IP:PORT"),
        (["connect", "--address", "a..b:8010"], "a..b is no name of a machine"),
    ],
)
def test_what_is_no_port_and_no_machine_is_refused_in_a_line(words, complaint):
    done = xparl(*words)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_who_reads_a_script_of_parls_is_no_part_of_a_cluster():
    package = importlib.util.find_spec("parl")
    assert package is not None
    assert package.origin is not None
    script = str(Path(package.origin).parent / "remote" / "job.py")
    for more in ([], ["-n", "3"]):
        reader = subprocess.Popen(["tail", "-f", script, *more], stdout=subprocess.DEVNULL)
        try:
            assert xparl("status").returncode == 0
            assert reader.pid not in [p.process.pid for p in cluster_processes()]
        finally:
            reader.kill()
            reader.wait()


def test_the_command_line_is_parls_own():
    done = xparl("--help")
    assert done.returncode == 0
    assert {"start", "connect", "stop", "status"} <= set(done.stdout.split())
    assert "--host IP" in xparl("start", "--help").stdout
    done = xparl("start", "--port", "9", "--host")
    assert done.returncode == 2
    assert "'--host' requires an argument" in done.stderr


def test_a_cluster_beyond_this_machine_answers_to_its_key_only(tmp_path, monkeypatch):
    monkeypatch.delenv(keys.KEY_VARIABLE, raising=False)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect(("203.0.113.7", 9))
        except OSError:
            pytest.skip("this machine has no route to any other")
        host = route.getsockname()[0]
    port, key = free_port(host), str(tmp_path / "cluster.key")
    address = f"{host}:{port}"
    assert xparl("keygen", key).returncode == 0
    flags = ["--port", str(port), "--cpu_num", "1", "--host", host, "--key", key]
    try:
        started = xparl("start", *flags)
        assert started.returncode == 0, started.stderr
        assert "Fail to start" not in started.stdout
        assert "please view:\n\n            http://127.0.0.1:" in started.stdout
        # processes say in their environment where the key lies
        status = xparl("status").stdout
        assert f"# Cluster {address} has 0 used cpus" in status
        assert status.count("please view: http://127.0.0.1:") >= 1
        with monkeypatch.context() as change:
            change.setenv(keys.KEY_VARIABLE, key)
            assert cluster_cpus(address, 1) == (1, 1)
            assert (
                xparl("connect", "--address", address, "--cpu_num", "1", "--host", host).stderr
                == ""
            )
            wait_until(lambda: cluster_cpus(address, 0) == (2, 2), 60, "the CPUs of both")
        keys.write(tmp_path / "another.key")
        with monkeypatch.context() as change:  # the cluster's own key counts
            change.setenv(keys.KEY_VARIABLE, str(tmp_path / "another.key"))
            assert f"# Cluster {address} has 0 used cpus" in xparl("status").stdout
        run = ["train.py", "--env", "CartPole-v1", "--xparl_addr", address]
        refused = run_command(*run, "--key", str(tmp_path / "another.key"))
        assert refused.returncode == 2
        assert "does not answer as an xparl master with this key does" in refused.stderr
        assert "make one with `xparl keygen FILE`" in run_command(*run).stderr
    finally:
        xparl("stop", "--port", str(port))
