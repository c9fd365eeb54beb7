"""PARL 2.2.1 made to run on today's Python packages.

PARL has been unmaintained since 2023. Four things stop it from working as installed. This package
mends them from outside and leaves PARL's own files alone:

* Its pins do not resolve. Its protobuf code is replaced by the same messages built at run time,
  and `pkg_resources` by a stub, so that any current protobuf and no setuptools will do.
* It listens on every interface, without authentication. Here it listens on one address:
  127.0.0.1, unless `xparl start --host IP` says otherwise; and it speaks only to who has the
  cluster's key (`keys`).
* With any grpcio that has wheels for Python 3.11, every remote actor dies 20 s after its
  creation: PARL builds its heartbeat server in the parent and serves it from a forked child,
  which modern gRPC cannot do. `heartbeats` builds and starts the server in one process.
* A lock that is kept after an error makes everybody wait for ever. `learner` and `servers` mend
  that on the two sides of the connection.

`load_parl()` is the project's `import parl`. This package imports nothing of the project, so any
floor may import it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import ipaddress
import logging
import os
import socket
import sys
import types
import warnings
from typing import Any

PARL_VERSION = "2.2.1"
HOST_VARIABLE = "DPPO_XPARL_HOST"
SKIP_CORE_VARIABLE = "XPARL_igonre_core"  # PARL's own spelling
INSTALL_COMMAND = "make venv"


class ParlMissing(RuntimeError):
    """PARL is not installed, or not in the version that this shim mends."""


def bind_host() -> str:
    """The one address that this process and its children listen on."""
    return os.environ.get(HOST_VARIABLE, "127.0.0.1")


def web_host(host: str | None = None) -> str:
    """The address of PARL's web pages, which know no key: loopback, also where the rest is not.

    Args:
        host: where the rest listens; `bind_host()` by default.
    """
    host = bind_host() if host is None else host
    return host if ipaddress.ip_address(host).is_loopback else "127.0.0.1"


def load_parl() -> Any:
    """Import PARL quietly, mended, and without its side effects; return the module.

    Raises:
        ParlMissing: with the one command that mends it.
    """
    if "parl" in sys.modules:
        return sys.modules["parl"]
    try:
        version = importlib.metadata.version("parl")
    except importlib.metadata.PackageNotFoundError:
        raise ParlMissing(f"PARL is not installed: run `{INSTALL_COMMAND}`") from None
    if version != PARL_VERSION:
        raise ParlMissing(
            f"PARL {version} is installed, this project needs {PARL_VERSION}: run `{INSTALL_COMMAND}`"
        )
    with _without_side_effects():
        parl = importlib.import_module("parl")
        # the package PARL's job processes reload: it must exist under this name already
        importlib.import_module("parl.remote.grpc_heartbeat.heartbeat_server")
    _mend_logging()
    _mend_addresses(parl.__path__[0])
    # PARL compares the versions of pyarrow, which it does not get to use here
    _replace_everywhere("get_version", lambda name: None)
    from parl_compat import heartbeats, keys, learner

    keys.mend(parl.__path__[0], os.path.dirname(__file__))
    heartbeats.mend()
    learner.mend()
    return parl


@contextlib.contextmanager
def _without_side_effects():
    """Undo what `import parl` does to its process.

    It prints its arguments to stdout, resets the warning filters, sets torch to one thread,
    drops the proxy variables, writes parl_debug.log where DEBUG is set, and starts two helper
    processes only to learn whether torch is installed.
    """
    environment = dict(os.environ)
    os.environ.pop("DEBUG", None)
    os.environ.setdefault("PARL_BACKEND", "torch")
    threads = None
    if SKIP_CORE_VARIABLE not in os.environ:
        import torch

        threads = torch.get_num_threads()
    stand_ins = {
        "pkg_resources": _pkg_resources_stub(),
        "parl.remote.grpc_heartbeat.heartbeat_pb2": _heartbeat_messages(),
        # PARL calls an interface that pyarrow has dropped; None makes its import fail cleanly.
        "pyarrow": None,
        # a second to import, for one function: scipy loads it when it is first used
        "scipy.signal": types.ModuleType("scipy.signal"),
    }
    originals = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
    sys.modules.update(stand_ins)  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _no_probing():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in ("pkg_resources", "pyarrow", "scipy.signal"):
            sys.modules.pop(name, None)
            if name in originals:
                sys.modules[name] = originals[name]
        for name, value in environment.items():
            os.environ[name] = value
        if "PARL_BACKEND" not in environment:
            os.environ.pop("PARL_BACKEND", None)
        if threads is not None:
            import torch

            torch.set_num_threads(threads)


@contextlib.contextmanager
def _no_probing():
    """Answer PARL's question «which frameworks are installed?» without a helper process."""
    import multiprocessing

    class Probe:
        def __init__(self, target: Any, args: tuple[dict[str, bool]]):
            self.answer = args[0]

        def start(self) -> None:
            has_torch = importlib.util.find_spec("torch") is not None
            self.answer.update(_HAS_FLUID=False, _HAS_PADDLE=False, _HAS_TORCH=has_torch)

        def join(self) -> None:
            pass

    real = multiprocessing.Manager, multiprocessing.Process
    multiprocessing.Manager = lambda: types.SimpleNamespace(dict=dict)  # pyright: ignore
    multiprocessing.Process = Probe  # pyright: ignore
    try:
        yield
    finally:
        multiprocessing.Manager, multiprocessing.Process = real  # pyright: ignore


def _pkg_resources_stub() -> types.ModuleType:
    stub = types.ModuleType("pkg_resources")
    stub.get_distribution = importlib.metadata.distribution  # pyright: ignore
    return stub


def _heartbeat_messages() -> types.ModuleType:
    """PARL's two heartbeat messages, built at run time (its generated code needs protobuf < 4).

    Field numbers and names are the wire format of PARL's heartbeat.proto. `extra_message` is the
    name that PARL's code uses for the field that its .proto calls `extra_msg`.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    text, raw = (
        descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
        descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    )
    fields = {
        "Request": [
            ("client_id", 1, text),
            ("tag", 2, raw),
            ("instance_id", 4, text),
            ("extra_message", 8, text),
        ],
        "Reply": [("tag", 1, raw), ("extra_message", 8, text)],
    }
    file = descriptor_pb2.FileDescriptorProto(
        name="dppo_parl_heartbeat.proto", package="dppo_parl", syntax="proto3"
    )
    for message_name, message_fields in fields.items():
        message = file.message_type.add(name=message_name)
        for name, number, field_type in message_fields:
            message.field.add(
                name=name,
                number=number,
                type=field_type,
                label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    module = types.ModuleType("parl.remote.grpc_heartbeat.heartbeat_pb2")
    for name in fields:
        message_class = message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"dppo_parl.{name}")
        )
        setattr(module, name, message_class)
    return module


def parl_modules() -> list[types.ModuleType]:
    return [m for name, m in list(sys.modules.items()) if name.partition(".")[0] == "parl" and m]


def _mend_logging() -> None:
    """Keep PARL's log in its files. This project itself tells a user what there is to know."""
    from parl.utils import logger as parl_logger

    parl_logger._logger.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("PARL: %(message)s"))
    parl_logger._logger.addHandler(handler)
    handler.setLevel(logging.CRITICAL)


def _replace_everywhere(name: str, replacement: Any) -> None:
    """Replace a function of PARL's in every module that has imported it by its name."""
    for module in parl_modules():
        if hasattr(module, name):
            setattr(module, name, replacement)


def port_is_free(port: int | str) -> bool:
    """Whether this process may listen on a port of `bind_host()`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bind_host(), int(port)))
        except (OSError, OverflowError):  # taken; beyond 65535
            return False
    return True


def _mend_addresses(parl_folder: str) -> None:
    """Make every listening socket of PARL's listen on `bind_host()` only."""
    import grpc
    import zmq
    from parl.remote.grpc_heartbeat import heartbeat_server

    _replace_everywhere("get_ip_address", bind_host)
    _replace_everywhere("is_port_available", port_is_free)

    def on_host(method: Any) -> Any:
        def bind(self: Any, addr: str, *args: Any, **options: Any) -> Any:
            # an environment of the user's may bind sockets of its own: those stay as they are
            if sys._getframe(1).f_code.co_filename.startswith(parl_folder):
                addr = addr.replace("tcp://*", f"tcp://{bind_host()}")
            return method(self, addr, *args, **options)

        return bind

    zmq.Socket.bind = on_host(zmq.Socket.bind)
    zmq.Socket.bind_to_random_port = on_host(zmq.Socket.bind_to_random_port)

    class BoundServer:
        """A gRPC server whose ports are opened on `bind_host()`."""

        def __init__(self, *args: Any, **options: Any):
            self._server = grpc.server(*args, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._server, name)

        def add_insecure_port(self, address: str) -> int:
            return self._server.add_insecure_port(address.replace("[::]", bind_host()))

    heartbeat_server.grpc = types.SimpleNamespace(server=BoundServer)
