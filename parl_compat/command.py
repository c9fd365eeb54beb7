"""The console command `xparl`, and the processes that it starts.

`main` is PARL's own command line, same flags, plus `--host IP` for start and connect. As
`python -m parl_compat.command SCRIPT ARGS` this module runs one of PARL's own processes
(master, worker, job, monitor, log server) with the shim in place.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from parl_compat.shim import (
    HOST_VARIABLE,
    SKIP_CORE_VARIABLE,
    ParlMissing,
    bind_host,
    load_parl,
    parl_modules,
)

ROOT = Path(__file__).resolve().parent.parent


def _mend_children() -> None:
    """Make PARL start its child processes through this shim."""
    for module in parl_modules():
        if hasattr(module, "XPARL_PYTHON"):
            module.XPARL_PYTHON = [  # pyright: ignore
                sys.executable, "-W", "ignore", "-m", "parl_compat.command",
            ]  # fmt: skip


def _mend_servers() -> None:
    """For PARL's own processes: Flask on one address, and a master that survives a bad message."""
    import flask
    import zmq
    from parl.remote import master

    run, receive = flask.Flask.run, master.Master._receive_message

    def run_on_host(self: Any, host: str | None = None, *args: Any, **options: Any) -> None:
        run(self, bind_host(), *args, **options)

    def receive_or_reply(self: Any) -> None:
        try:
            receive(self)
        except zmq.error.Again:
            raise  # PARL's idle tick
        except Exception as error:  # one bad frame must not end the master for everybody
            master.logger.error(f"[Master] refused a message: {error!r}")
            with contextlib.suppress(zmq.ZMQError):  # it had been answered before it failed
                self.client_socket.send_multipart([b"[EXCEPTION]", repr(error).encode()])

    flask.Flask.run = run_on_host  # pyright: ignore
    master.Master._receive_message = receive_or_reply


def main() -> None:
    """The console command `xparl`: PARL's own, same flags, plus `--host IP` for start and connect."""
    arguments = sys.argv[1:]
    if "--host" in arguments:
        at = arguments.index("--host")
        if at + 1 >= len(arguments):
            sys.exit("xparl: --host needs an IP address, for example --host 192.168.1.10")
        os.environ[HOST_VARIABLE] = arguments[at + 1]
        del arguments[at : at + 2]
    os.environ[SKIP_CORE_VARIABLE] = "true"  # a cluster command has no use for torch
    try:
        load_parl()
    except ParlMissing as error:
        sys.exit(f"xparl: {error}")
    from parl.remote import scripts

    scripts.get_ip_address = bind_host  # imported here for the first time, so not yet mended
    _mend_children()
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)  # children must find this module
    sys.argv = ["xparl", *arguments]
    try:
        scripts.cli(standalone_mode=True)
    except Exception as error:  # PARL raises bare Exceptions with a sentence for the user
        sys.exit(f"xparl: {error}")


def _detach_stderr() -> None:
    """Errors of the long-lived processes go to a file: PARL leaves them the terminal's stderr,
    and whoever reads the output of `xparl start` through a pipe would wait for them for ever."""
    folder = os.path.expanduser("~/.parl_data")
    os.makedirs(folder, exist_ok=True)
    log = os.open(os.path.join(folder, "stderr.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    os.close(log)


def _run_child() -> None:
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    _detach_stderr()
    sys.path[0] = os.path.dirname(script)
    os.environ[SKIP_CORE_VARIABLE] = "true"
    load_parl()
    _mend_children()
    _mend_servers()
    # an actor must import the learner's own `parl_compat` package, not the one that started it
    for name in [name for name in sys.modules if name.partition(".")[0] == "parl_compat"]:
        del sys.modules[name]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    _run_child()
