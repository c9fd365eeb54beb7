"""The cluster's key: who does not have it gets no answer from any of PARL's ZMQ sockets.

Whoever may send an actor its code runs code. Here every one of PARL's sockets speaks CURVE (ZMQ's
encryption), with two key pairs for a whole cluster. The workers' pair is that of all servers, and of
the clients on machines that only work. The learners' pair is that of clients who may give actors code:
an actor hears nobody else. A ZAP handler of each server's lets in whom that server hears.

The key is a file that only its user can read: the one that `--key` or DPPO_KEY_FILE names, or, for
clusters that listen on loopback only, one that is made for the user at the first need. It holds the
secret of the learners' pair, from which that of the workers' is derived; or, for machines that only
work, the secret of the workers' pair alone. Processes hand on the file's path, in DPPO_KEY_FILE; never
the key itself, and nothing on a command line.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import os
import secrets
import socket
import stat
import struct
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import zmq
from zmq.utils import z85

KEY_VARIABLE = "DPPO_KEY_FILE"
USERS_KEY = Path(".config") / "dppo" / "key"  # below the home folder
# A server closes the connection of whoever announces more, even before it has shown its key.
LARGEST_MESSAGE = 2**31  # bytes
_KIND = "dppo-xparl-key-1"
_WORKERS_KIND = "dppo-xparl-worker-key-1"
_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_plain_socket = zmq.Context.socket


class BadKey(ValueError):
    """There is no key that may be used. The message says why, and the remedy."""


class Pair(NamedTuple):
    """A CURVE key pair, in Z85."""

    public: bytes
    secret: bytes

    @classmethod
    def of(cls, secret: bytes) -> Pair:
        return cls(zmq.curve_public(secret), secret)


class Key(NamedTuple):
    """What a holder of a cluster's key knows.

    `own`: the pair that it shows as a client, which is `workers` or the learners'. `learners`: the
    public half of the learners' pair.
    """

    own: Pair
    workers: Pair
    learners: bytes

    @property
    def is_workers(self) -> bool:
        """Whether its holder may only work, and give no actor code."""
        return self.own == self.workers


def _learners_key(secret: bytes) -> Key:
    own = Pair.of(secret)
    derived = hashlib.blake2b(z85.decode(secret), digest_size=32, person=b"dppo-workers").digest()
    return Key(own, Pair.of(z85.encode(derived)), own.public)


def write(path: Path) -> None:
    """Make a new key, in a file that only this user can read.

    Raises:
        BadKey: where the file exists or cannot be written.
    """
    _, secret = zmq.curve_keypair()
    _write(path, f"{_KIND} {secret.decode()}\n")


def write_workers(path: Path, key: Key) -> None:
    """Write a key for machines that only work in the cluster of another key, as `write` does.

    Raises:
        BadKey: where the file exists or cannot be written.
    """
    _write(path, f"{_WORKERS_KIND} {key.workers.secret.decode()} {key.learners.decode()}\n")


def _write(path: Path, content: str) -> None:
    whole = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, content.encode())
            os.fchmod(descriptor, 0o600)  # whatever the umask takes away
            os.link(whole, path)  # whoever reads it sees all of it; it overwrites nothing
        finally:
            os.close(descriptor)
            os.unlink(whole)
    except FileExistsError:
        raise BadKey(f"{path} exists, and is not overwritten: give another name") from None
    except OSError as error:
        raise BadKey(
            f"the key {path} cannot be written ({error.strerror}): give a file in a folder of yours"
        ) from None


def read(path: Path) -> Key:
    """The key in a file.

    Raises:
        BadKey: where it cannot be read, is no key, or is not this user's alone.
    """
    remedy = f"make one with `xparl keygen {path}`, or copy the master's"
    try:
        # a pipe must not be waited for
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            about = os.fstat(file.fileno())
            content = file.read(200) if stat.S_ISREG(about.st_mode) else b""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadKey(f"the key {str(path)!r} cannot be read ({reason}): {remedy}") from None
    if about.st_uid != os.getuid():
        raise BadKey(
            f"the key {path} belongs to user {about.st_uid}, who could read it: use a copy of your"
            f" own, `install -m 600 {path} FILE`"
        )
    if about.st_mode & 0o077:
        raise BadKey(
            f"the key {path} can be read or written by others (mode {about.st_mode & 0o777:03o}):"
            f" run `chmod 600 {path}`, and make a new key if somebody may have read it"
        )
    key = _parse(content)
    if key is None:
        raise BadKey(f"{path} holds no key: {remedy}")
    return key


def _parse(content: bytes) -> Key | None:
    kind, *values = content.decode("ascii", errors="replace").removesuffix("\n").split(" ")
    halves = [value.encode() for value in values]
    whole = " ".join([kind, *values]).encode(errors="replace") + b"\n"
    if whole != content or any(len(half) != 40 for half in halves):
        return None
    try:
        if kind == _KIND and len(halves) == 1:
            return _learners_key(halves[0])
        if kind == _WORKERS_KIND and len(halves) == 2:
            z85.decode(halves[1])
            workers = Pair.of(halves[0])
            return Key(workers, workers, halves[1])
    except (zmq.ZMQError, KeyError, struct.error):
        pass  # it is no Z85
    return None


@functools.cache
def _read_once(path: Path) -> Key:
    return read(path)


def is_given() -> bool:
    """Whether the user has named a key."""
    return bool(os.environ.get(KEY_VARIABLE))


def current_file() -> Path:
    """The file with the key of this process."""
    return Path(os.environ[KEY_VARIABLE]) if is_given() else Path.home() / USERS_KEY


def current() -> Key:
    """The key of this process.

    Raises:
        BadKey: see `read`.
    """
    path = current_file()
    if not is_given() and not os.path.lexists(path):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.chmod(0o700)
            write(path)
        except OSError as error:
            raise BadKey(
                f"no key can be made at {path} ({error.strerror}): make one elsewhere with"
                f" `xparl keygen FILE`, and give --key FILE"
            ) from None
        except BadKey:
            if not path.exists():  # else another process was faster
                raise
    return _read_once(path)


def choose(file: str | None, *hosts: str) -> None:
    """Decide on the key of this process, and of all that it starts.

    Args:
        file: named by the user; None: DPPO_KEY_FILE's, or the user's own.
        hosts: the addresses that will be listened at or connected to.

    Raises:
        BadKey: where it must not be used (see `read`), or must be named: the user's own key is for
            loopback only.
    """
    if file is None and is_given():
        file = os.environ[KEY_VARIABLE]
    if file is not None:  # the processes of a cluster work in folders of their own
        os.environ[KEY_VARIABLE] = str(Path(os.path.expanduser(file)).absolute())
    else:
        for host in hosts:
            if not is_loopback(host):
                raise BadKey(
                    f"{host} can be reached from other machines, and whoever reaches a cluster"
                    f" without a key of its own runs code there: make one with `xparl keygen FILE`,"
                    f" copy it to every machine, and give --key FILE (or set {KEY_VARIABLE})"
                )
    current()


def is_loopback(host: str) -> bool:
    """Whether an address, or the host of a name, can be reached from this machine only.

    Raises:
        BadKey: where the name stands for no address.
    """
    try:
        address = socket.gethostbyname(host)
    except (OSError, ValueError) as error:  # ValueError: such as a..b
        reason = getattr(error, "strerror", None) or error
        raise BadKey(f"{host} has no IPv4 address ({reason}): check its name") from None
    return ipaddress.ip_address(address).is_loopback


_hears_workers = True


def hear_learners_only() -> None:
    """Let the servers of this process, an actor's, hear only those who may give it code."""
    global _hears_workers
    _hears_workers = False


def secure(connection: zmq.Socket, key: Key | None = None) -> None:
    """Make a socket, not bound or connected yet, speak to holders of the key only.

    A REP or ROUTER socket is a server's, any other a client's.

    Args:
        key: `current` by default.
    """
    key = key or current()
    is_server = connection.socket_type in (zmq.REP, zmq.ROUTER)
    pair = key.workers if is_server else key.own
    connection.curve_publickey, connection.curve_secretkey = pair
    if is_server:
        allowed = [key.learners, key.workers.public] if _hears_workers else [key.learners]
        _let_in(connection.context, [z85.decode(public) for public in allowed])
        connection.curve_server = True
        connection.zap_domain = b"dppo"
        connection.setsockopt(zmq.MAXMSGSIZE, LARGEST_MESSAGE)
    else:
        connection.curve_serverkey = key.workers.public


_letting_in = threading.Lock()


def _let_in(context: zmq.Context, allowed: list[bytes]) -> None:
    """Start the thread that answers ZMQ's question who may connect to this context's servers."""
    with _letting_in:
        # by a second name of the context: its thread closes it, whatever else closes sockets
        reply = _plain_socket(zmq.Context.shadow(context), zmq.REP)
        try:
            reply.bind(_ZAP_ADDRESS)
        except zmq.ZMQError as error:
            reply.close()
            if error.errno != zmq.EADDRINUSE:
                raise
            return  # an earlier server of the context has started it
        name = "xparl-key"
        threading.Thread(target=_answer, args=(reply, allowed), daemon=True, name=name).start()


def _answer(reply: zmq.Socket, allowed: list[bytes]) -> None:
    """Answer by ZMQ's authentication protocol (RFC 27) until the context ends."""
    while True:
        try:
            version, request, _, _, _, mechanism, *credentials = reply.recv_multipart()
            if mechanism == b"CURVE" and len(credentials) == 1 and credentials[0] in allowed:
                answer = [b"200", b"OK", b"key holder", b""]
            else:
                answer = [b"400", b"another key", b"", b""]
            reply.send_multipart([version, request, *answer])
        except zmq.ContextTerminated:
            reply.close(linger=0)
            return


def mend(*folders: str) -> None:
    """Make every socket that code in these folders makes a secure one.

    An environment of the user's may make sockets of its own: those stay as they are.
    """

    def secured(self: zmq.Context, socket_type: int, *args: Any, **options: Any) -> Any:
        made = _plain_socket(self, socket_type, *args, **options)
        caller = sys._getframe(1).f_code.co_filename
        if socket_type in (zmq.REQ, zmq.REP) and caller.startswith(folders):
            secure(made)
        return made

    zmq.Context.socket = secured
