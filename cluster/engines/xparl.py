"""Samplers as xparl remote actors: fragments, not steps, cross the network.

One thread per actor makes blocking calls (PARL's no-wait mode deadlocks after an error). A call is
bytes in and bytes out, and an exception comes back as data, so an error costs no actor. The code
of the project travels to the actors with their class; their packages must be the learner's.
"""

from __future__ import annotations

import os
import socket
import threading
import time

from cluster.engines.actor import make_host, packages_of, users_files, versions
from cluster.engines.remote import Call, RemoteEngine
from cluster.session import pack_hello
from common.errors import UserError
from common.sources import digest, sources
from envs import family_of
from parl_compat import keys
from parl_compat.shim import HOST_VARIABLE, load_parl
from rollout import RolloutSpec
from settings.config import Config

CONNECT_TIMEOUT_S = 3.0
# Workers report their CPUs every 10 s, a new worker after some seconds. A CPU that a run has just
# left is free once the worker has started its process anew.
CPU_TIMEOUT_S = 20.0


class ClusterError(UserError):
    """The cluster cannot do what was asked. The message says what it can."""


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ClusterError(f"xparl_addr {address!r} is not IP:PORT, such as localhost:8010")
    return host, int(port)


def choose_key(file: str | None, address: str) -> keys.Key:
    """The key for the cluster at an address; this process and its children use it from now on.

    Args:
        file: the setting `key`; None: what was chosen before, DPPO_KEY_FILE's, or the user's own.

    Raises:
        ClusterError: where it must not be used, or must be named.
    """
    try:
        keys.choose(file, _split(address)[0])
        return keys.current()
    except keys.BadKey as error:
        raise ClusterError(f"xparl_addr {address}: {error}") from None


def cluster_cpus(address: str, wanted: int = 1) -> tuple[int, int]:
    """The cluster's (free, total) CPUs; waits some seconds while fewer than `wanted` are free.

    The numbers can be 10 s old: a run that started meanwhile may have taken those that are free.

    Raises:
        ClusterError: where no xparl master answers at the address to the key (see `choose_key`).
    """
    import zmq

    host, port = _split(address)
    curve = choose_key(None, address)
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"nothing listens at xparl_addr {address} ({error.strerror or error}): start a cluster"
            f" with `xparl start --port {port} --cpu_num 8`, or leave --xparl_addr out"
        ) from None
    deadline = time.monotonic() + CPU_TIMEOUT_S
    context = zmq.Context()
    try:
        while True:
            with context.socket(zmq.REQ) as request:
                keys.secure(request, curve)
                request.setsockopt(zmq.LINGER, 0)
                request.setsockopt(zmq.RCVTIMEO, int(CONNECT_TIMEOUT_S * 1000))
                request.connect(f"tcp://{host}:{port}")
                request.send_multipart([b"[STATUS]"])
                try:
                    words = request.recv_multipart()[1].decode().replace(",", " ").split()
                except zmq.error.Again:
                    raise ClusterError(
                        f"what listens at xparl_addr {address} does not answer as an xparl master"
                        f" with this key does: check the port, and that --key (or"
                        f" {keys.KEY_VARIABLE}) is the key that the master was started with"
                    ) from None
            # "has 1 used cpus, 7 vacant cpus, ..."
            used, free = int(words[1]), int(words[4])
            hopeless = 0 < used + free < wanted
            if free >= wanted or hopeless or time.monotonic() > deadline:
                return free, used + free
            time.sleep(0.5)
    finally:
        context.term()


class XparlEngine(RemoteEngine):
    """Samplers registered with an xparl master.

    Raises:
        ClusterError: where the cluster cannot be reached or is too small.
    """

    name = "xparl"

    def __init__(self, config: Config, spec: RolloutSpec, samplers: int):
        assert config.xparl_addr is not None
        host, port = _split(config.xparl_addr)
        choose_key(config.key, config.xparl_addr)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect((socket.gethostbyname(host), port))
            # actors must reach this process at the address from which it reaches the master
            os.environ[HOST_VARIABLE] = route.getsockname()[0]
        self._sources = sources()
        self._version = digest(self._sources)
        self._versions = versions(packages_of(family_of(config.env)))
        files = users_files()  # may be refused: before there is a client whose threads go on
        parl = load_parl()
        parl.connect(config.xparl_addr)
        from parl.remote.client import get_global_client

        get_global_client().pyfiles = files
        self._host = parl.remote_class(make_host())
        super().__init__(config, spec, samplers)

    def _make(self, index: int) -> Call:
        return self._host(self._version, self._sources).call

    def _hello(self, index: int) -> bytes:
        return pack_hello(self.config, *self.ranges[index], index, versions=self._versions)

    def close(self) -> None:
        from parl.remote import client

        super().close()
        connection, client.GLOBAL_CLIENT = client.GLOBAL_CLIENT, None
        if connection is not None:
            # PARL's own `destroy` first waits for threads that sleep up to 10 s
            connection.connected_to_master = False
            connection.client_is_alive.value = False
            connection.dead_job_queue.put("exit")
            connection.master_heartbeat_thread.exit()
            connection.job_heartbeat_process.join()
            for reader in threading.enumerate():  # it must have read "exit" before Python ends
                if "_update_job_status" in reader.name:
                    reader.join(timeout=2.0)
