"""A run on two machines whose network is cut: `python benchmarks/two_hosts.py` (root, iproute2).

The machines are network namespaces (`namespaces`). On the first are the store's server, which asks for a
password, and the trainer that founds the run; on the second a trainer that joins it, and samplers. In the
middle of a short run of CartPole-v1 the network is cut for 10 s: everybody waits, and goes on. All of it
is taken down at the end, also after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import runs
from namespaces import Network, NoNamespaces, wait_for

from cluster.store.address import Link
from cluster.store.embedded import carried
from cluster.store.run import RunGone, RunStore
from cluster.store.status import Status
from common.sources import ROOT
from settings.store_url import PASSWORD
from training.store_trainers import run_id

FIRST, SECOND = "first", "second"
PORT = 6379
START_S = 180.0  # for both trainers to learn
END_S = 300.0  # for the run to come to its end
GOES_ON_S = 60.0  # for both trainers to learn again after the cut
SILENT_S = 3.0  # after which what was on its way when the network was cut has been learned from


@dataclass
class Arguments:
    """Train on two machines, and cut the network between them."""

    steps: int = 150_000
    """Environment steps of the run."""
    samplers: int = 2
    """On the second machine."""
    cut: float = 10.0
    """Seconds for which the network is cut."""


class Machines:
    """What runs on the two machines.

    Args:
        network: of the machines.
        folder: for the run, and for what everybody prints.
    """

    def __init__(self, network: Network, folder: Path):
        self.network, self.folder = network, folder
        self.run_dir = folder / "run"
        self.run, self.url = run_id(self.run_dir), f"redis://{network.addresses[FIRST]}:{PORT}/0"
        self.processes: dict[str, subprocess.Popen] = {}
        self.store = RunStore(Link(self.url, 10.0, print), self.run)

    def start(self, name: str, machine: str, *command: str) -> None:
        with open(self.folder / name, "w") as output:
            self.processes[name] = self.network.start(
                machine, *command, cwd=ROOT, stdout=output, stderr=output,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    def start_server(self) -> None:
        """Start the store on the first machine. The password is in a file that others cannot read."""
        settings = (
            f"bind {self.network.addresses[FIRST]}", f"port {PORT}", "protected-mode yes",
            f"requirepass {os.environ[PASSWORD]}", 'save ""', "appendonly no", f"dir {self.folder}",
        )  # fmt: skip
        file = self.folder / "valkey.conf"
        file.touch(0o600)
        file.write_text("\n".join(settings))
        self.start("server", FIRST, str(carried()), str(file))

    def start_run(self, steps: int, samplers: int) -> None:
        python, trains = (sys.executable, "train.py"), ("--store", self.url)
        self.start(
            "founder", FIRST, *python, *trains, "--env", "CartPole-v1", "--samplers", "0",
            "--train_total_steps", str(steps), "--run_dir", str(self.run_dir), "--compile", "off",
        )  # fmt: skip
        self.start("joiner", SECOND, *python, *trains, "--join", self.run)
        self.start(
            "samplers", SECOND, sys.executable, "-m", "cluster.store", "sample", *trains, "--run",
            self.run, "--samplers", str(samplers),
        )  # fmt: skip

    def status(self) -> Status | None:
        """The run's counters; None where it is not there."""
        with self.network.inside(FIRST), contextlib.suppress(RunGone):
            return self.store.status()
        return None

    def learned(self) -> dict[str, int]:
        """Fragments that each trainer has learned from; a trainer's name in the store has its process."""
        status = self.status()
        by_pid = {str(p.pid): name for name, p in self.processes.items()}
        trainers = {} if status is None else status.trainers
        return {by_pid[name.split("-")[-2]]: of.learned for name, of in trainers.items()}

    def look(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait for a condition, as `namespaces.wait_for`, for as long as nobody fails."""

        def holds() -> bool:
            for name, process in self.processes.items():
                if process.poll():
                    said = (self.folder / name).read_text()
                    raise RuntimeError(f"{name} ended with {process.returncode}:\n{said}")
            return condition()

        return wait_for(holds, seconds, what)

    def have_learned_more(self, before: dict[str, int]) -> bool:
        """Whether two trainers have learned since there were these numbers."""
        return sum(count > before.get(name, 0) for name, count in self.learned().items()) >= 2


def experience(machines: Machines, given: Arguments) -> None:
    """The run, the cut, and the end; prints what happens.

    Raises:
        TimeoutError: where something that was to happen did not.
        RuntimeError: where a process has failed.
    """
    machines.start_server()
    machines.start_run(given.steps, given.samplers)
    took = machines.look(lambda: machines.have_learned_more({}), START_S, "both trainers")
    print(f"both trainers learn after {took:.0f} s: fragments {machines.learned()}", flush=True)

    machines.network.cut(SECOND)
    time.sleep(min(SILENT_S, given.cut / 2))
    silent = machines.learned()
    time.sleep(given.cut - min(SILENT_S, given.cut / 2))
    before = machines.learned()
    machines.network.mend(SECOND)
    waited = "everybody waits" if before == silent else "somebody has learned meanwhile"
    print(f"the network was cut for {given.cut:g} s; {waited}: fragments {before}", flush=True)
    if before != silent:
        raise RuntimeError("trainers have learned from fragments that could not reach them")
    took = machines.look(lambda: machines.have_learned_more(before), GOES_ON_S, "both trainers")
    print(
        f"both learn again {took:.1f} s after the cut: fragments {machines.learned()}", flush=True
    )

    machines.look(
        lambda: all(p.poll() is not None for n, p in machines.processes.items() if n != "server"),
        END_S, "the end of the run",
    )  # fmt: skip
    status = machines.status()
    assert status is not None, "the store keeps a run that has ended for an hour"
    gone = status.learned + sum(status.dropped.values()) + sum(status.refused.values())
    print(f"the run has ended after {status.steps:,} steps, fragments {machines.learned()}")
    print(
        f"pushed {status.appended} = learned {status.learned} + dropped"
        f" {sum(status.dropped.values())} + refused {sum(status.refused.values())} + pending"
        f" {status.depth}"
    )
    if status.appended != gone + status.depth:
        raise RuntimeError("the sum is wrong")


def main() -> None:
    import tyro

    given = tyro.cli(Arguments)
    os.environ[PASSWORD] = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="two-hosts-") as folder:
        try:
            with Network(FIRST, SECOND) as network:
                machines = Machines(network, Path(folder))
                try:
                    experience(machines, given)
                finally:
                    for name in machines.processes:
                        said = (machines.folder / name).read_text().splitlines()
                        about = [line for line in said if "store" in line or "weights" in line]
                        print(f"{name}:", *about[-6:], sep="\n    ")
        except (NoNamespaces, TimeoutError, RuntimeError) as error:
            print(error, file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    with runs.command("two_hosts.py"):  # however it ends, the network is taken down on the way out
        main()
