"""The clusters that this user runs on this machine: `xparl keygen`, `xparl status`, `xparl stop`.

PARL's own two, status and stop, ask `ps` and `grep`. They miss a cluster that does not listen on localhost,
print errors of `kill` and `xargs`, and stop every cluster of the machine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import click
import psutil
import zmq

from parl_compat import keys
from parl_compat.shim import web_host

SCRIPTS = ("start.py", "job.py", "monitor.py", "log_server.py")
# with which the arguments of PARL's processes begin; an editor may have a script open
FIRST_OPTIONS = ("--name", "--worker_address", "--monitor_port", "--port")
MASTER_TIMEOUT_S = 10.0


class ClusterProcess(NamedTuple):
    """One of PARL's processes.

    `options` has its command line's options by name, such as {"port": "8010"}.
    """

    process: psutil.Process
    script: str
    options: dict[str, str]

    @property
    def master(self) -> str | None:
        """IP:PORT of its master; :PORT of a master itself; None for a job or a log server."""
        if self.options.get("name") == "master":
            return f":{self.options['port']}"
        return self.options.get("address")

    @property
    def port(self) -> str | None:
        return self.master.rpartition(":")[2] if self.master else None


def cluster_processes() -> list[ClusterProcess]:
    """Every process of PARL's that belongs to the user of this process."""
    processes = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        words, uids = process.info["cmdline"] or [], process.info["uids"]
        scripts = [i for i, word in enumerate(words) if _is_parls(word)]
        if not scripts or uids is None or uids.real != os.getuid():
            continue
        arguments = words[scripts[0] + 1 :]
        if not arguments or arguments[0] not in FIRST_OPTIONS:
            continue
        options = {
            name.removeprefix("--"): value
            for name, value in zip(arguments, [*arguments[1:], ""], strict=True)
            if name.startswith("--")
        }
        processes.append(ClusterProcess(process, os.path.basename(words[scripts[0]]), options))
    return processes


def _is_parls(word: str) -> bool:
    folder, name = os.path.split(word)
    return name in SCRIPTS and folder.endswith(os.path.join("parl", "remote"))


def keys_in_use(address: str, processes: list[ClusterProcess]) -> set[keys.Key]:
    """The keys of this user's processes that belong to the master at an address."""
    files = set()
    for process in processes:
        if process.options.get("address") == address:
            try:
                files.add(process.process.environ().get(keys.KEY_VARIABLE))
            except psutil.Error:
                continue
    return {keys.read(Path(file)) for file in files if file} or {keys.current()}


def ask_status(address: str, key: keys.Key | None = None) -> str | None:
    """The master's sentence about its CPUs, or None where it does not answer to the key."""
    with zmq.Context() as context, context.socket(zmq.REQ) as request:
        request.linger = 0
        keys.secure(request, key)
        request.setsockopt(zmq.RCVTIMEO, int(MASTER_TIMEOUT_S * 1000))
        request.connect(f"tcp://{address}")
        request.send_multipart([b"[STATUS]"])
        try:
            return request.recv_multipart()[1].decode()
        except zmq.error.Again:
            return None


@click.command("keygen", short_help="Make the key of a cluster.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--worker_of",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Write, into FILE, the part of the cluster's KEY that machines need which only work: who has"
    " it can give actors of other machines no code.",
)
def keygen(file: Path, worker_of: Path | None) -> None:
    """Write a new key into FILE. Every machine of the cluster needs a copy; nobody else may see it."""
    if worker_of is None:
        keys.write(file)
        commands = f"`xparl start`, `xparl connect` and `train.py` as --key {file}"
    else:
        key = keys.read(worker_of)
        if key.is_workers:
            raise keys.BadKey(f"{worker_of} is itself a worker's key: give copies of it")
        keys.write_workers(file, key)
        commands = f"`xparl connect` as --key {file}, on machines that only work"
    click.echo(f"{file}: give it to {commands}")


@click.command("status")
def status() -> None:
    """Show the CPUs of the clusters that this machine takes part in."""
    processes = cluster_processes()
    addresses = {p.options["address"] for p in processes if "address" in p.options}
    if not addresses:
        click.echo("No active cluster is found.")
    for address in sorted(addresses):
        try:
            answers = [ask_status(address, key) for key in keys_in_use(address, processes)]
        except keys.BadKey as error:
            click.echo(f"Can not connect to cluster {address}: {error}")
            continue
        answer = next(filter(None, answers), None)
        if answer is None:
            click.echo(f"Can not connect to cluster {address}, please try later.")
            continue
        click.echo(f"\n            # Cluster {address} {answer}\n")
        for process in processes:
            if process.script == "monitor.py" and process.options["address"] == address:
                host = web_host(address.rpartition(":")[0].replace("localhost", "127.0.0.1"))
                click.echo(
                    "            # If you want to check cluster status, please view:"
                    f" http://{host}:{process.options['monitor_port']}\n"
                )


@click.command("stop", short_help="Exit the cluster.")
@click.option("--port", help="Stop only what belongs to the master at this port.", type=str)
def stop(port: str | None) -> None:
    """End every process of your clusters on this machine, and whatever they started."""
    chosen = [p.process for p in cluster_processes() if port is None or p.port == port]
    ending: set[psutil.Process] = set(chosen)
    for process in chosen:
        try:
            ending.update(process.children(recursive=True))
        except psutil.NoSuchProcess:
            continue
    for process in ending:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(ending, timeout=5.0)
    click.echo(f"Stopped {len(ending)} processes." if ending else "No active cluster is found.")
