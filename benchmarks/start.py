"""How long a run takes from its command to the end of its first update, and what its processes hold.

    python benchmarks/start.py --turns 3
    python benchmarks/start.py --env CartPole-v1 --flags="--compile off"
    python benchmarks/start.py --cold --flags="--compile beside"

The first turn may compile; later ones find what it has kept, unless they are cold. A process's memory
is measured a second after the first update: resident, and proportional, where a page that n processes
share counts as an n-th. The sum of the latter is what the run costs the machine.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from runs import command

from common.sources import ROOT

PATIENCE_S = 180.0


@dataclass
class Arguments:
    """Measure how long a run takes to its first update, and what its processes hold."""

    env: str = "HalfCheetah-v4"
    """What is trained."""
    flags: str = ""
    """More flags of train.py."""
    turns: int = 3
    """How often it is measured."""
    cold: bool = False
    """Begin each turn with empty caches of compiled steps: torch's, and that of kept steps."""


def start(arguments: Arguments) -> None:
    """Start a run, print its figures, and end it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--env", arguments.env, "--run_dir", f"{folder}/run"]
        metrics = Path(folder) / "run" / "metrics.jsonl"
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"} if arguments.cold else {}
        begun = time.monotonic()
        run = psutil.Popen(
            [*command, *shlex.split(arguments.flags)], cwd=ROOT, env=os.environ | caches,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not (metrics.exists() and "\n" in metrics.read_text()):
                if run.poll() is not None or time.monotonic() - begun > PATIENCE_S:
                    sys.exit(f"{shlex.join(command)} has made no update")
                time.sleep(0.005)
            seconds = time.monotonic() - begun
            everyone = [run, *run.children(recursive=True)]
            used = 0.0
            for process in everyone:
                with contextlib.suppress(psutil.NoSuchProcess):  # a compiler ends when it is done
                    used += sum(process.cpu_times()[:4])
            print(f"first update after {seconds:.2f} s, {used:.2f} s of processor time", flush=True)
            time.sleep(1.0)
            for process in everyone:
                with contextlib.suppress(psutil.NoSuchProcess):
                    name, of = process.name(), process.nice() - os.nice(0)
                    held = process.memory_full_info()
                    print(f"  {name}: {held.rss / 2**20:.0f} MiB resident, {held.pss / 2**20:.0f} MiB"
                          f" proportional, {held.uss / 2**20:.0f} MiB its own, niceness {of}", flush=True)  # fmt: skip
        finally:
            run.terminate()
            run.wait()


def main() -> None:
    import tyro

    arguments = tyro.cli(Arguments)
    with command("start.py"):
        for _ in range(arguments.turns):
            start(arguments)


if __name__ == "__main__":
    main()
