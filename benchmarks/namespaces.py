"""Machines that share a network which can be cut: Linux network namespaces, and a cluster on them.

All of it lies in namespaces that are made here: each machine's, and one for the switch between them.
No other network is touched. Making them needs root and `ip` (iproute2).
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from common.sources import ROOT
from parl_compat import keys
from parl_compat.local_clusters import ask_status
from parl_compat.shim import HOST_VARIABLE, load_parl

PORT = 8010  # the master's
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()
_WITH_CONSTANTS = """
import os, sys
os.environ["XPARL_igonre_core"] = "true"
from parl_compat.command import prepare, run_script
from parl_compat.shim import load_parl
load_parl()
from parl.remote import remote_constants
while "=" in sys.argv[1]:
    name, _, value = sys.argv.pop(1).partition("=")
    setattr(remote_constants, name, int(value))
sys.argv = sys.argv[1:]
prepare()
run_script(sys.argv[0])
"""


class NoNamespaces(Exception):
    """Network namespaces cannot be made here. The message says what is missing."""


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`ip {' '.join(words)}` failed: {done.stderr.strip()}")
    return done.stdout


class Network:
    """Machines on a switch. A context, whose end takes them down with all of their processes.

    Args:
        machines: their names.

    Raises:
        NoNamespaces: where they cannot be made.
    """

    def __init__(self, *machines: str):
        if shutil.which("ip") is None:
            raise NoNamespaces("there is no `ip`: install iproute2")
        self._prefix = f"dppo{os.getpid()}x{next(_numbers)}"
        self._switch = f"{self._prefix}-switch"
        self.addresses = {name: f"10.77.0.{n}" for n, name in enumerate(machines, 1)}
        try:
            self._make()
        except BaseException as error:
            self.close()
            if isinstance(error, RuntimeError):
                raise NoNamespaces(str(error)) from None
            raise

    def _make(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "switch", "up")
        for name, address in self.addresses.items():
            space = self._space(name)
            _ip("netns", "add", space)
            ends = ["eth0", "netns", space, "type", "veth", "peer", "name", name]
            _ip("link", "add", *ends, "netns", self._switch)
            _ip("-n", self._switch, "link", "set", name, "up")
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", space, "link", "set", device, "up")
            self.mend(name)

    def _space(self, machine: str) -> str:
        return f"{self._prefix}-{machine}"

    def start(self, machine: str, *command: str, **options) -> subprocess.Popen:
        """Start a command on a machine, in a session of its own. `options` are Popen's."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self._space(machine), *command],
            stdin=subprocess.DEVNULL, start_new_session=True, **options,
        )  # fmt: skip

    @contextlib.contextmanager
    def inside(self, machine: str) -> Iterator[None]:
        """In this context the calling thread, and those that it starts, are on a machine."""
        libc = ctypes.CDLL(None, use_errno=True)
        with (
            open("/proc/thread-self/ns/net") as here,
            open(f"/run/netns/{self._space(machine)}") as there,
        ):
            if libc.setns(there.fileno(), _CLONE_NEWNET):
                raise RuntimeError(f"setns failed: {os.strerror(ctypes.get_errno())}")
            try:
                yield
            finally:
                libc.setns(here.fileno(), _CLONE_NEWNET)

    def cut(self, machine: str) -> None:
        """Cut a machine off. No process is told: what is sent is lost."""
        _ip("-n", self._switch, "link", "set", machine, "nomaster")

    def mend(self, machine: str) -> None:
        _ip("-n", self._switch, "link", "set", machine, "master", "switch")

    def processes(self, machine: str) -> list[psutil.Process]:
        """The machine's processes that have not ended."""
        found = []
        for pid in _ip("netns", "pids", self._space(machine)).split():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(pid))
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def take_down(self, machine: str) -> None:
        """End a machine at once: nobody hears of it any more, and its processes are no more."""
        self.cut(machine)
        for process in self.processes(machine):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        there = {line.split()[0] for line in _ip("netns", "list").splitlines() if line}
        for machine in self.addresses:
            while self._space(machine) in there and (left := self.processes(machine)):
                for process in left:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                time.sleep(0.05)
        for space in there & {self._switch, *map(self._space, self.addresses)}:
            _ip("netns", "del", space)

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Cluster:
    """An xparl cluster on a network's machines. Its processes end with the network.

    Args:
        network: of the machines.
        head: the machine of its master.
        folder: for its key.
        constants: PARL's, where they are to be others than they are, such as HEARTBEAT_INTERVAL_S.
    """

    def __init__(self, network: Network, head: str, folder: Path, **constants: int):
        self.network, self.head = network, head
        self.address = f"{network.addresses[head]}:{PORT}"
        self.key = folder / "cluster.key"
        keys.write(self.key)
        self._secret = keys.read(self.key)
        self._constants = constants

    def environment(self, machine: str, **more: str) -> dict[str, str]:
        """The environment variables of its processes on a machine."""
        own = {
            keys.KEY_VARIABLE: str(self.key),
            HOST_VARIABLE: self.network.addresses[machine],
            "PYTHONPATH": str(ROOT),
        }
        return os.environ | own | more

    def _start(self, machine: str, name: str, *options: str, **more: str) -> subprocess.Popen:
        script = os.path.join(load_parl().__path__[0], "remote", "start.py")
        constants = [f"{constant}={value}" for constant, value in self._constants.items()]
        module = ["-c", _WITH_CONSTANTS, *constants] if constants else ["-m", "parl_compat.command"]
        return self.network.start(
            machine, sys.executable, "-W", "ignore", *module, script, "--name", name, *options,
            cwd=ROOT, stdout=subprocess.DEVNULL, env=self.environment(machine, **more),
        )  # fmt: skip

    def start_master(self) -> subprocess.Popen:
        """Start the master, and wait until it answers."""
        master = self._start(self.head, "master", "--port", str(PORT), "--monitor_port", "1")
        with self.network.inside(self.head):
            wait_for(lambda: ask_status(self.address, self._secret) is not None, 60, "the master")
        return master

    def connect(self, machine: str, cpus: int, **more: str) -> subprocess.Popen:
        """Start a worker on a machine, with these environment variables more."""
        options = ("--address", self.address, "--cpu_num", str(cpus), "--log_server_port", "8010")
        return self._start(machine, "worker", *options, **more)

    def cpus(self) -> tuple[int, int]:
        """The cluster's (free, total) CPUs, as its master has it.

        Raises:
            TimeoutError: where the master does not answer.
        """
        with self.network.inside(self.head):
            answer = ask_status(self.address, self._secret)
        if answer is None:
            raise TimeoutError(f"the master at {self.address} does not answer")
        used, free = (int(answer.split()[n]) for n in (1, 4))  # "has 1 used cpus, 3 vacant ..."
        return free, used + free


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> float:
    """Wait for a condition; the seconds that took.

    Raises:
        TimeoutError: after so many seconds.
    """
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.05)
    return time.monotonic() - start
