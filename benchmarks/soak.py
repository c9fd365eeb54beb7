"""Whether a run of hours grows or slows down: `python benchmarks/soak.py --hours 2`.

Trains by the flags after `--`, at full speed, and looks once a minute at the learner, its samplers
and its evaluator: memory, descriptors, threads, and the steps since the last look. Prints a line each
time, and what became of all that in the end: growth is the slope of a straight line through the looks
after the warm-up, and the speed of the last ten looks stands beside that of the first ten after it.
"""

from __future__ import annotations

import contextlib
import csv
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import psutil
import tyro
from runs import command

from common.sources import ROOT
from settings.config import ConfigError

LOOK_S = 60.0
END_S = 60.0  # for the run to save and to end
SPEED_LOOKS = 10


@dataclass
class Arguments:
    """Train for hours, and watch what the processes take."""

    flags: Annotated[tuple[str, ...], tyro.conf.Positional] = ("--env", "HalfCheetah-v4")
    """Of train.py, after `--`."""
    hours: float = 2.0
    """How long to train [h]."""
    warm_up_minutes: float = 10.0
    """What is left out of the growth at the beginning [minutes]."""
    out: Path = Path("benchmarks/results/soak.csv")
    """Where the looks are written."""


class Look(NamedTuple):
    """What there was at one time. Memory is in MB, in all samplers together and the learner."""

    minutes: float
    learner_rss: float
    others_rss: float
    processes: int
    descriptors: int
    threads: int
    steps: int
    cpu_s: float


def look(process: psutil.Process, start: float, run_dir: Path) -> Look:
    """Descriptors and threads are the learner's; `cpu_s` is of all processes that live."""
    others = process.children(recursive=True)
    rss, times = [], [process.cpu_times()]
    for other in others:
        with contextlib.suppress(psutil.NoSuchProcess):  # a compiler ends when it is done
            rss.append(other.memory_info().rss / 1e6)
            times.append(other.cpu_times())
    with open(run_dir / "metrics.jsonl", "rb") as file:
        file.seek(max(0, file.seek(0, 2) - 10_000))
        row = json.loads(file.read().splitlines()[-1])
    return Look(
        (time.monotonic() - start) / 60, process.memory_info().rss / 1e6, sum(rss), len(others),
        process.num_fds(), process.num_threads(), int(row["global_step"]),
        sum(t.user + t.system for t in times),
    )  # fmt: skip


def slope_per_hour(looks: list[Look], name: str) -> float:
    """The growth of a column, by least squares."""
    minutes = [one.minutes for one in looks]
    return 60 * float(np.polyfit(minutes, [getattr(one, name) for one in looks], 1)[0])


def speed(looks: list[Look]) -> tuple[float, float]:
    """Steps per second, and steps per second of the processors' time."""
    first, last = looks[0], looks[-1]
    steps = last.steps - first.steps
    return steps / (60 * (last.minutes - first.minutes)), steps / (last.cpu_s - first.cpu_s)


def wait(seconds: float, run: subprocess.Popen, output: Path) -> None:
    """Exit with what the run has printed, where it has ended after so many seconds."""
    time.sleep(seconds)
    if run.poll() is not None:
        sys.exit(f"the run ended:\n{output.read_text()}")


def main() -> None:
    arguments = tyro.cli(Arguments)
    if 60 * arguments.hours < arguments.warm_up_minutes + 2:
        raise ConfigError(
            f"hours is {arguments.hours:g}, but the warm-up takes {arguments.warm_up_minutes:g} minutes,"
            f" and two looks are to follow: give more --hours, or fewer --warm-up-minutes"
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    looks: list[Look] = []
    with tempfile.TemporaryDirectory() as folder, open(arguments.out, "w") as out:
        run_dir = Path(folder) / "run"
        words = [sys.executable, "train.py", *arguments.flags, "--train_total_steps", "1e12",
                   "--run_dir", str(run_dir)]  # fmt: skip
        with open(Path(folder) / "output", "w") as output:
            run = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=output)
        table = csv.writer(out)
        table.writerow(Look._fields)
        metrics = run_dir / "metrics.jsonl"
        try:
            while not (metrics.exists() and metrics.read_bytes()):
                wait(1.0, run, Path(folder) / "output")  # it compiles
            start = time.monotonic()
            process = psutil.Process(run.pid)
            while time.monotonic() - start < 3600 * arguments.hours:
                wait(LOOK_S, run, Path(folder) / "output")
                looks.append(look(process, start, run_dir))
                table.writerow(looks[-1])
                out.flush()
                print(" ".join(f"{n} {v:,.0f}" for n, v in looks[-1]._asdict().items()), flush=True)
        finally:
            run.terminate()
            try:
                code: int | str = run.wait(END_S)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
                code = f"SIGKILL: it had not ended {END_S:g} s after SIGTERM"
    warm = [one for one in looks if one.minutes >= arguments.warm_up_minutes]
    for name in ("learner_rss", "others_rss"):
        print(f"{name}: {slope_per_hour(warm, name):+.2f} MB/h")
    for name in ("descriptors", "threads", "processes"):
        seen = sorted({getattr(one, name) for one in warm})
        print(f"{name}: {', '.join(map(str, seen))}")
    first, last = speed(warm[:SPEED_LOOKS]), speed(warm[-SPEED_LOOKS:])
    print(f"steps/s: {first[0]:,.0f} at first, {last[0]:,.0f} at last ({last[0] / first[0]:.1%})")
    print(f"steps per second of processor: {first[1]:,.0f} at first, {last[1]:,.0f} at last"
          f" ({last[1] / first[1]:.1%})")  # fmt: skip
    print(f"ended with {code}")
    if code != 0:
        sys.exit(1)


if __name__ == "__main__":
    with command("soak.py"):
        main()
