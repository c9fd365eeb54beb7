"""This process's connection to a Ray cluster: whether there is one, what it has, and its manners.

Ray, once imported, takes the process over: its handler of SIGTERM, its excepthook, lines of its own
on the terminal. All of that is undone here.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.engines.actor import USERS_FOLDER
from common import user_class
from common.errors import UserError

CONNECT_TIMEOUT_S = 3.0
CPU_TIMEOUT_S = 10.0  # the CPUs of a run that has just ended are free after some seconds
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # Ray's own default from 2.61 on
    "RAY_USAGE_STATS_ENABLED": "0",
}


class RayError(UserError):
    """The Ray cluster cannot do what was asked. The message says what it can."""


@contextlib.contextmanager
def _unchanged() -> Iterator[None]:
    """Keep Ray from handling this process's signals and exceptions."""
    hook, numbers = sys.excepthook, (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        sys.excepthook = hook
        if threading.current_thread() is threading.main_thread():  # elsewhere Ray leaves them too
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _load() -> Any:
    """The module `ray`.

    Raises:
        RayError: where it is not installed.
    """
    for name, value in ENVIRONMENT.items():  # read when Ray is imported
        os.environ.setdefault(name, value)
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise RayError(
            "ray_address was given, but Ray is not installed: run `make ray`, or leave it out"
        ) from None
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    # it prints each death of an actor, which the supervisor tells of
    importlib.import_module("ray._private.worker").listen_error_messages = lambda *_: None
    return ray


def _status(address: str, headers: dict[str, str]) -> str:
    """How the head node at `address` answers the question whether it is there: OK, or an error."""
    import grpc

    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        metadata = tuple((name.lower(), value) for name, value in headers.items())
        try:
            ask(b"", timeout=CONNECT_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            failed: Any = error  # every error of a call has a code
            return failed.code().name
        return "OK"


def _check(address: str) -> None:
    """Ray itself would try for minutes, and say less.

    Raises:
        RayError: where no Ray cluster is at the address, or none that this process is to talk to.
    """
    asks_for_token = _status(address, {})
    if asks_for_token not in ("OK", "UNAUTHENTICATED"):
        port = address.rpartition(":")[2]
        raise RayError(
            f"no Ray cluster answers at ray_address {address}: start one with `ray start --head"
            f" --port {port}`, or leave --ray_address out"
        )
    mode = os.environ["RAY_AUTH_MODE"].lower()
    if asks_for_token == "OK":
        if mode != "disabled":
            raise RayError(
                f"the Ray cluster at {address} asks nobody for a token, so whoever reaches it can"
                f" run code as you: run `ray get-auth-token --generate`, and start the cluster with"
                f" RAY_AUTH_MODE=token in its environment; or set RAY_AUTH_MODE=disabled here too"
            )
        return
    loader = importlib.import_module("ray._raylet").AuthenticationTokenLoader.instance()
    has_one = mode != "disabled" and loader.has_token(ignore_auth_mode=True)
    headers = loader.get_token_for_http_header() if has_one else {}
    if not headers or _status(address, headers) != "OK":
        raise RayError(
            f"the Ray cluster at {address} asks for a token, and"
            f" {'another one than yours' if headers else 'there is none here'}: put the cluster's"
            f" into ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
        )


def connect(address: str) -> Any:
    """Connect this process to a cluster, once; the module `ray`.

    The modules of the user's folder go with it, as the folder that its actors work in.

    Args:
        address: auto, or HOST:PORT of the head node.

    Raises:
        RayError: where that is not possible.
    """
    with _unchanged(), tempfile.TemporaryDirectory(prefix="dppo") as folder:
        ray = _load()
        if ray.is_initialized():
            return ray
        services = importlib.import_module("ray._private.services")
        try:
            if address == "auto":
                address = services.canonicalize_bootstrap_address_or_die(address)
        except ConnectionError:
            raise RayError(
                "ray_address is auto, but no Ray cluster runs on this machine: start one with `ray"
                " start --head`, or give its HOST:PORT"
            ) from None
        _check(address)
        for name, content in ({".keep": b""} | user_class.sources_in_use()).items():
            path = Path(folder) / USERS_FOLDER / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            ray.init(
                address, log_to_driver=False, configure_logging=False,
                runtime_env={"working_dir": folder},
            )  # fmt: skip
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise RayError(f"ray_address {address}: {error}") from error
        return ray


def cluster_cpus(address: str, wanted: int = 1) -> tuple[int, int]:
    """The cluster's (free, total) CPUs; waits some seconds while fewer than `wanted` are free.

    Raises:
        RayError: where the cluster cannot be reached.
    """
    ray = connect(address)
    deadline = time.monotonic() + CPU_TIMEOUT_S
    while True:
        total = int(ray.cluster_resources().get("CPU", 0))
        free = int(ray.available_resources().get("CPU", 0))
        if free >= wanted or total < wanted or time.monotonic() > deadline:
            return free, total
        time.sleep(0.2)
