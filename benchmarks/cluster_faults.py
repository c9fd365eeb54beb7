"""Experiments of `chaos.py` that disturb a run on an xparl cluster of several machines."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from disturbed import SMALL, START_S, Row, Training
from namespaces import Cluster, Network, wait_for

BATCH = 2048
FLAGS = (*SMALL, "--train_total_steps", "1e9", "--batch_size", str(BATCH), "--env_num", "8")
BACK_S = 240.0  # after which a run that does not go on is given up
LOOK_S = 0.1


class Site:
    """A run at a cluster: its master is on the machine `head`, the workers' CPUs are given.

    Args:
        folder: an empty folder.
        network: its machines.
        cpus: how many each worker's machine has.
        desk: the machine of the learner.
        flags: of train.py.
    """

    def __init__(self, folder: Path, network: Network, cpus: dict[str, int], desk: str):
        self.folder, self.network, self.desk = folder, network, desk
        self.cluster = Cluster(network, "head", folder)
        self.master = self.cluster.start_master()
        for machine, number in cpus.items():
            self.connect(machine, number)

    def connect(self, machine: str, cpus: int) -> None:
        free, _ = self.cluster.cpus()
        self.cluster.connect(machine, cpus)
        self.wait(lambda: self.cluster.cpus()[0] == free + cpus, "its CPUs")

    def train(self, *flags: str) -> None:
        """Start a run, and wait until all of its samplers are there and 20 updates are done."""

        def start(command: Sequence[str], **options) -> subprocess.Popen:
            kept = {name: options[name] for name in ("cwd", "stdout", "stderr")}
            return self.network.start(
                self.desk, *command, env=self.cluster.environment(self.desk), **kept
            )

        flags = (*FLAGS, "--xparl_addr", self.cluster.address, *flags)
        self.run = Training(self.folder, *flags, start=start)
        self.run.wait_for(lambda: len(self.run.rows()) > 20, START_S)

    def last(self) -> dict:
        return self.run.rows()[-1]

    def has_all(self, samplers: int, restarts: int = 0) -> bool:
        last = self.last()
        return last["samplers_alive"] == samplers and last["restarts"] >= restarts

    def wait(self, condition: Callable[[], object], what: str) -> float:
        """The seconds until a condition holds."""

        def holds() -> object:
            time.sleep(LOOK_S)
            return condition()

        try:
            return wait_for(holds, BACK_S, what)
        except TimeoutError as error:
            output = self.run.said() if hasattr(self, "run") else ""
            raise TimeoutError(f"{error}:\n{output}") from None

    def wait_for_updates(self) -> float:
        """The seconds until another 20 updates are done."""
        done = len(self.run.rows())
        return self.wait(lambda: len(self.run.rows()) > done + 20, "updates")

    def all_cpus_are_free(self) -> float:
        """The seconds until no actor is left."""

        def are_free() -> bool:
            free, total = self.cluster.cpus()
            return free == total

        return self.wait(are_free, "free CPUs")


@contextlib.contextmanager
def site(cpus: dict[str, int], desk: str = "head") -> Iterator[Site]:
    machines = dict.fromkeys(("head", desk, "one", "two"))
    with Network(*machines) as network, tempfile.TemporaryDirectory() as folder:
        yield Site(Path(folder), network, cpus, desk)


def _row(name: str, experiment: Callable[[], str], times: int) -> Row:
    """Do an experiment, which returns what was measured, or raises TimeoutError."""
    good, measured = 0, []
    for _ in range(times):
        try:
            text = experiment()
            good += 1
        except (TimeoutError, RuntimeError) as error:
            if isinstance(error.__context__, (KeyboardInterrupt, SystemExit)):
                raise  # the network could not be taken down while the user ended this
            print(f"{name}: {error}", file=sys.stderr)
            text = "see above"
        measured.append(f"{text}; load {os.getloadavg()[0]:.0f}")
    return Row(name, good, times, "; ".join(measured))


def _losses(last: dict) -> str:
    fragments = last["rows_lost"] / BATCH
    return f"{last['rows_lost']} rows lost ({fragments:g} fragments of all), {last['restarts']} restarts"


def network_cut(seconds: float) -> str:
    """The network between a learner with its master, and both of its samplers."""
    with site({"one": 2}) as there:
        there.train()
        before = there.last()["restarts"]
        there.network.cut("one")
        threading.Timer(seconds, there.network.mend, ("one",)).start()
        time.sleep(seconds)
        back = there.wait_for_updates()
        back += there.wait(lambda: there.has_all(2), "both samplers")
        losses = _losses(there.last())
        assert before == 0
        there.run.end_well()
        free = there.all_cpus_are_free()
        return f"all there {back:.1f} s after its end; {losses}; no actor left {free:.1f} s after the run"


def machine_gone() -> str:
    """The machine of both samplers; another one has free CPUs."""
    with site({"one": 2}) as there:
        there.train()
        there.connect("two", 2)
        there.network.take_down("one")
        noticed = there.wait(lambda: there.run.said().count("is lost: ") == 2, "the losses")
        back = noticed + there.wait(lambda: there.has_all(2, 2), "both samplers")
        losses = _losses(there.last())
        there.run.end_well()
        return f"noticed after {noticed:.1f} s, moved after {back:.1f} s; {losses}"


def master_killed() -> str:
    """The master, which comes back after a minute's half; then for good."""
    with site({"one": 2}) as there:
        there.train("--master_timeout", "60", "--checkpoint_minutes", "1000")
        saved = set((there.run.run_dir / "checkpoints").iterdir())

        def has_saved() -> bool:
            return bool(set((there.run.run_dir / "checkpoints").iterdir()) - saved)

        there.master.kill()
        noticed = there.wait(lambda: "is away" in there.run.said(), "the learner to notice")
        stored = noticed + there.wait(has_saved, "a checkpoint")
        there.wait_for_updates()
        time.sleep(20.0)
        there.master = there.cluster.start_master()
        there.wait(lambda: "the xparl master is back" in there.run.said(), "the master")
        back = there.wait(lambda: there.has_all(2, 2), "both samplers at the new master")
        away = re.findall(r"master is back after ([\d.]+) s", there.run.said())[-1]
        there.master.kill()
        start = time.monotonic()
        there.run.process.wait(BACK_S)
        ended, code = time.monotonic() - start, there.run.process.returncode
        told = "--resume" in there.run.said().splitlines()[-1]
        if code != 75 or not told:
            raise RuntimeError(f"exit code {code}:\n{there.run.said()}")
        left = len(there.network.processes("head"))
        if left:
            raise RuntimeError(f"{left} processes are left on the learner's machine")
        none = there.wait(lambda: not there.network.processes("one"), "the worker's end")
        return (
            f"noticed after {noticed:.1f} s, saved after {stored:.1f} s; back after {away} s: all at"
            f" the new one {back:.1f} s later; away for good: exit code 75 after {ended:.1f} s, no"
            f" process of the worker {ended + none:.1f} s after"
        )


def learner_paused() -> str:
    """SIGSTOP of the learner for 60 s, then SIGCONT."""
    with site({"one": 2}) as there:
        there.train()
        there.run.process.send_signal(signal.SIGSTOP)
        time.sleep(60.0)
        there.run.process.send_signal(signal.SIGCONT)
        on = there.wait_for_updates()
        there.wait(lambda: there.has_all(2), "both samplers")
        losses = _losses(there.last())
        there.run.end_well()
        return f"goes on, 20 updates after {on:.1f} s; {losses}"


def learner_killed() -> str:
    """SIGKILL of the learner; then its machine is cut off for good."""
    with site({"one": 2}, desk="desk") as there:
        there.train()
        there.run.process.kill()
        there.run.process.wait()
        killed = there.all_cpus_are_free()
        there.folder = there.folder / "second"
        there.folder.mkdir()
        there.train()
        there.network.take_down("desk")
        cut_off = there.all_cpus_are_free()
        return (
            f"CPUs free {killed:.1f} s after the kill, {cut_off:.1f} s after its machine was gone"
        )


def capacity() -> str:
    """Four samplers where two CPUs are free; a worker brings two, and goes."""
    with site({"one": 2}) as there:
        there.train("--samplers", "4", "--wait_for_cpus", "5")
        began = there.last()["samplers_alive"]
        there.cluster.connect("two", 2)
        joined = there.wait(lambda: there.has_all(4), "all four")
        for process in there.network.processes("two"):
            process.kill()
        missed = there.wait(lambda: there.last()["samplers_alive"] == 2, "two to be missed")
        there.wait_for_updates()
        losses = _losses(there.last())
        there.run.end_well()
        free = there.all_cpus_are_free()
        return (
            f"begins with {began} of 4; all 4 {joined:.1f} s after `xparl connect`; its worker stopped:"
            f" goes on with 2 after {missed:.1f} s; {losses}; CPUs free {free:.1f} s after the run"
        )


CLUSTER_FAULTS: dict[str, Callable[[int], Row]] = {
    name: functools.partial(_row, name, experiment)
    for name, experiment in {
        "network_cut_10": functools.partial(network_cut, 10.0),
        "network_cut_60": functools.partial(network_cut, 60.0),
        "machine_gone": machine_gone,
        "master_killed": master_killed,
        "learner_paused_xparl": learner_paused,
        "learner_killed_xparl": learner_killed,
        "capacity": capacity,
    }.items()
}
