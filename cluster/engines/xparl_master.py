"""What a learner asks of an xparl master before it has samplers there."""

from __future__ import annotations

import errno
import socket
import time

from common.errors import UserError
from common.values import is_port
from parl_compat import keys
from parl_compat.shim import load_parl

CONNECT_TIMEOUT_S = 3.0
# Workers report their CPUs every 10 s, a new worker after some seconds. A CPU that a run has just
# left is free once the worker has started its process anew.
CPU_TIMEOUT_S = 20.0
NEW_WORKER_S = 6.0  # a worker that has just been started does its imports before it has CPUs


class ClusterError(UserError):
    """The cluster cannot do what was asked. The message says what it can."""


def split(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT; raises ClusterError for anything else."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not is_port(port):
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
        keys.choose(file, split(address)[0])
        key = keys.current()
    except keys.BadKey as error:
        raise ClusterError(f"xparl_addr {address}: {error}") from None
    if key.is_workers:
        raise ClusterError(
            f"xparl_addr {address}: {keys.current_file()} is a worker's key, which may give actors no"
            f" code: give --key the one that it was made of"
        )
    return key


def cluster_cpus(address: str, wanted: int = 1) -> tuple[int, int]:
    """The cluster's (free, total) CPUs; waits some seconds while fewer than `wanted` are free.

    The numbers can be 10 s old: a run that started meanwhile may have taken those that are free.

    Raises:
        ClusterError: where no xparl master answers at the address to the key (see `choose_key`).
    """
    import zmq

    host, port = split(address)
    curve = choose_key(None, address)
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:  # a name such as a..b cannot be looked up
        reason = getattr(error, "strerror", None) or error
        raise ClusterError(
            f"nothing listens at xparl_addr {address} ({reason}): start a cluster"
            f" with `xparl start --port {port} --cpu_num 8`, or leave --xparl_addr out"
        ) from None
    start = time.monotonic()
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
            patience = NEW_WORKER_S if 0 < used + free < wanted else CPU_TIMEOUT_S
            if free >= wanted or time.monotonic() > start + patience:
                return free, used + free
            time.sleep(0.5)
    finally:
        context.term()


def connect(address: str, files: bytes) -> None:
    """Connect PARL's client of this process.

    Args:
        files: what each actor gets, as PARL packs it.

    Raises:
        ClusterError: where the master, which answered before, answers no more.
    """
    parl = load_parl()
    try:
        parl.connect(address)
    except OSError as error:  # of the memory that it shares with its threads' processes
        memory = error.errno in (errno.EACCES, errno.ENOENT, errno.ENOSPC, errno.EROFS)
        needs = ". It needs a /dev/shm that can be written" if memory else ""
        raise ClusterError(
            f"PARL's client cannot be started: {error.strerror or error}{needs}"
        ) from error
    except Exception as error:  # PARL raises no other kind
        raise ClusterError(
            f"the xparl master at {address} answers no more: look whether it lives, and start it"
            f" again with `xparl start --port {split(address)[1]} --cpu_num 8`"
        ) from error
    from parl.remote.client import get_global_client

    get_global_client().pyfiles = files
