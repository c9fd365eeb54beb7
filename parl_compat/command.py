"""The console command `xparl`, and the processes that it starts.

`main` is PARL's own command line, same flags, plus `--host IP` and `--key FILE` for start and
connect, and `xparl keygen FILE`. As
`python -m parl_compat.command SCRIPT ARGS` this module runs one of PARL's own processes
(master, worker, job, monitor, log server) with the shim in place.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import socket
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

from parl_compat import keys
from parl_compat.shim import (
    HOST_VARIABLE,
    INSTALL_COMMAND,
    SKIP_CORE_VARIABLE,
    ParlMissing,
    bind_host,
    load_parl,
    parl_modules,
    web_host,
)

ROOT = Path(__file__).resolve().parent.parent
MASTER_ANSWERS_MS = 5_000  # in which `xparl connect` must hear of the master


def _mend_children() -> None:
    """Make PARL start its child processes through this shim."""
    for module in parl_modules():
        if hasattr(module, "XPARL_PYTHON"):
            module.XPARL_PYTHON = [  # pyright: ignore
                sys.executable, "-W", "ignore", "-m", "parl_compat.command",
            ]  # fmt: skip


def _take_host(context: Any, option: Any, value: str | None) -> None:
    """The callback of `--host`: this process and its children listen on that address."""
    import click

    if value is None:
        return
    try:
        address = ipaddress.IPv4Address(value)
        with socket.socket() as probe:
            probe.bind((value, 0))
    except (ipaddress.AddressValueError, OSError):
        address = None
    if address is None or address.is_unspecified:
        raise click.BadParameter(
            f"{value!r} is not an IPv4 address of this machine, such as 192.168.1.10: see `ip addr`"
        )
    os.environ[HOST_VARIABLE] = value


def _take_key(context: Any, option: Any, value: str | None) -> None:
    """The callback of `--key`: this process and its children use that file."""
    import click

    try:
        if value is not None:
            keys.choose(value)
    except keys.BadKey as error:
        raise click.BadParameter(str(error)) from None


def _hand_on_key(*hosts: str) -> None:
    """Tell the processes of the cluster, and `xparl status` by them, where its key lies."""
    keys.choose(None, *hosts)
    os.environ[keys.KEY_VARIABLE] = str(keys.current_file())


def _at_host(start: FunctionType) -> Callable[..., None]:
    """PARL's `xparl start`, with a key, and mended in three of its words.

    It says localhost:PORT to the processes that it starts, where nothing listens when the cluster
    has another address. It looks for its monitor by `ps -ef`, which cuts lines at 80 characters
    where there is no terminal.
    """

    def start_there(**options: Any) -> None:
        for name in ("port", "monitor_port"):
            if options[name] is not None and not _is_port(options[name]):
                sys.exit(f"xparl: --{name} {options[name]!r} is not a port: give 1 to 65535")
        _hand_on_key(bind_host())
        # the monitor's page is on loopback, wherever the rest is
        words = {"ps -ef ": "ps -efww ", "http://{}:{}": f"http://{web_host()}:{{1}}"}
        if HOST_VARIABLE in os.environ:
            words["localhost:"] = f"{bind_host()}:"
        constants = list(start.__code__.co_consts)
        for old, new in words.items():
            constants = [c.replace(old, new) if isinstance(c, str) else c for c in constants]
        start.__code__ = start.__code__.replace(co_consts=tuple(constants))
        start(**options)

    return start_there


def _is_port(word: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}", word) is not None and 0 < int(word) < 2**16


def _reachable(connect: Callable[..., None]) -> Callable[..., None]:
    """PARL's `xparl connect`, refused where the master could not reach this machine's worker."""

    def connect_there(address: str, **options: Any) -> None:
        host, _, port = address.rpartition(":")
        if not host or not _is_port(port):
            sys.exit(f"xparl: --address {address!r} is not IP:PORT, such as 10.0.0.1:8010")
        try:
            master = ipaddress.ip_address(socket.gethostbyname(host))
        except OSError as error:
            sys.exit(f"xparl: --address {address}: {host} is unknown ({error.strerror})")
        except UnicodeError:
            sys.exit(f"xparl: --address {address}: {host} is no name of a machine")
        if not master.is_loopback and ipaddress.ip_address(bind_host()).is_loopback:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
                route.connect((str(master), int(port)))
                own = route.getsockname()[0]
            sys.exit(
                f"xparl: the master at {address} cannot reach {bind_host()}, where this machine's"
                f" worker would listen: add --host {own}, the address from which this machine"
                f" reaches the master"
            )
        _hand_on_key(str(master), bind_host())
        connect(address=address, **options)

    return connect_there


HOST_HELP = "The address at which other machines reach this one. Default: 127.0.0.1"
KEY_HELP = (
    "The cluster's key, made by `xparl keygen`. Default: DPPO_KEY_FILE, or your own key in"
    " ~/.config/dppo, on this machine only"
)


def main() -> None:
    """The console command `xparl`: see this module's docstring."""
    os.environ[SKIP_CORE_VARIABLE] = "true"  # a cluster command has no use for torch
    try:
        load_parl()
    except ParlMissing as error:
        sys.exit(f"xparl: {error}")
    if importlib.util.find_spec("setproctitle") is None:  # else jobs could not be started, later
        sys.exit(f"xparl: setproctitle is not installed: run `{INSTALL_COMMAND}`")
    import click
    from parl.remote import scripts

    from parl_compat.local_clusters import keygen, status, stop

    for command, mended in ((scripts.start_master, _at_host), (scripts.start_worker, _reachable)):
        command.callback = mended(command.callback)  # pyright: ignore[reportArgumentType]
        for flag, metavar, take, text in (
            ("--host", "IP", _take_host, HOST_HELP),
            ("--key", "FILE", _take_key, KEY_HELP),
        ):
            option = click.Option(
                [flag], expose_value=False, callback=take, metavar=metavar, help=text
            )
            command.params.append(option)
    # PARL asks its log server whether it is there at the cluster's address
    asked = scripts.check_log_server_started
    scripts.check_log_server_started = lambda address, port: asked(web_host(), port)
    # It waits half a second for a master's answer, which is too short where the machine is busy
    code = scripts.is_master_started.__code__
    assert 500 in code.co_consts
    patient = tuple(MASTER_ANSWERS_MS if c == 500 else c for c in code.co_consts)
    scripts.is_master_started.__code__ = code.replace(co_consts=patient)
    scripts.cli.add_command(keygen)
    scripts.cli.add_command(status)
    scripts.cli.add_command(stop)
    _mend_children()
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)  # children must find this module
    sys.argv = ["xparl", *sys.argv[1:]]
    try:
        scripts.cli(standalone_mode=True)
    except Exception as error:  # PARL raises bare Exceptions with a sentence for the user
        sys.exit(f"xparl: {error}")


def _detach_stderr() -> None:
    """Send errors of the long-lived processes to a file.

    PARL leaves them the terminal's stderr. Whoever reads the output of `xparl start` through a
    pipe would wait for them for ever.
    """
    folder = os.path.expanduser("~/.parl_data")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    log = os.open(os.path.join(folder, "stderr.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    os.close(log)


def prepare() -> None:
    """Make this process one in which PARL's scripts can be run."""
    _detach_stderr()
    os.environ[SKIP_CORE_VARIABLE] = "true"
    load_parl()
    from parl_compat import rejoin, servers

    _mend_children()
    servers.mend()
    rejoin.mend()


def run_script(script: str) -> None:
    """Run one of PARL's scripts as the main module of this process, which `prepare` has made ready."""
    from parl_compat import messages

    sys.path[0] = os.path.dirname(script)
    source = Path(script).read_text()
    if os.path.basename(script) == "job.py":
        keys.hear_learners_only()
        # it refuses to run where torch has been imported, as it has where jobs are forked
        source = source.replace("for dl_framework in DL_FRAMEWORKS:", "for dl_framework in ():")
    own_builtins = messages.imports_of(os.path.basename(script))
    # an actor must import the learner's own `parl_compat` package, not the one that started it
    for name in [name for name in sys.modules if name.partition(".")[0] == "parl_compat"]:
        del sys.modules[name]
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    vars(module).update(__file__=script, __builtins__=own_builtins)
    exec(compile(source, script, "exec"), vars(module))


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    prepare()
    run_script(sys.argv[0])
