"""Where several trainers stop helping: `python benchmarks/trainers.py`.

Trainers and samplers sleep where real ones would compute, so that one machine can hold many of them
(`simulated`). First 1 to 8 trainers with 1 to 64 samplers in one embedded store; then 1 to 8 trainers
that sum their gradients, and as many that share a model by Hogwild. Each point stands beside the ideal,
in which messages take no time, and beside the cores that the server and the processes were busy on.
Writes `<out>.md`, `.json` and `.png`.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import runs
import simulated
from simulated import PER_UPDATE, Signals, Sizes

from cluster.store.address import Link
from cluster.store.embedded import EmbeddedServer
from cluster.store.run import RunStore

CONTEXT = multiprocessing.get_context("spawn")
SAMPLER_PROCESSES = 4  # at most
START_S = 120.0  # for all processes to be there
END_S = 2.0  # for all processes to end by themselves
WARM_UP_S = 1.0
GOOD, BUSY = 0.9, 0.9  # of the ideal; of a core, or of all


@dataclass
class Arguments:
    """Measure how throughput grows with trainers."""

    trainers: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of trainers to measure."""
    samplers: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of samplers to measure."""
    seconds: float = 10.0
    """Seconds to measure, per point."""
    fragment_bytes: int = 100_000
    """Of a fragment; a sampler makes one in 0.1 s, a trainer learns from four in 0.1 s."""
    weights_bytes: int = 100_000
    """Of the weights."""
    gradient_bytes: int = 100_000
    """Of a gradient; a trainer computes one in 0.02 s."""
    out: Path = Path("benchmarks/results/trainers")
    """Where to write, without the ending."""


@contextlib.contextmanager
def running(jobs: Iterable[tuple[Any, tuple[Any, ...]]]):
    """Processes, each of a function of `simulated` and its arguments; their signals come last."""
    jobs = list(jobs)
    signals = Signals(CONTEXT.Barrier(len(jobs) + 1), CONTEXT.Event())
    processes = [
        CONTEXT.Process(target=target, args=tuple(signals if a is Signals else a for a in given))
        for target, given in jobs
    ]
    try:
        for process in processes:
            process.start()
        signals.ready.wait(START_S)
        time.sleep(WARM_UP_S)
        yield [process.pid for process in processes]
    finally:
        signals.over.set()
        deadline = time.monotonic() + END_S  # trainers may wait for fragments that will not come
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()


def cpu_seconds(pids: Iterable[int | None]) -> float:
    """Processor time that processes have used so far."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(t.user + t.system for t in times)


def through_a_store(trainers: int, samplers: int, seconds: float, sizes: Sizes) -> dict[str, Any]:
    """Fragments/s that trainers learn from."""
    processes = min(samplers, SAMPLER_PROCESSES)
    shares = [samplers // processes + (k < samplers % processes) for k in range(processes)]
    with contextlib.closing(EmbeddedServer()) as server:
        place = (server.url, "trainers")
        simulated.found_run(*place, sizes)
        store = RunStore(Link(server.url, 20.0, print), "trainers")
        jobs = [(simulated.sample, (*place, share, sizes, Signals)) for share in shares]
        conflicts = CONTEXT.RawArray("q", trainers)
        jobs += [
            (simulated.learn, (*place, rank, sizes, Signals, conflicts)) for rank in range(trainers)
        ]
        with running(jobs) as pids:
            groups = {"server": [server.pid], "samplers": pids[:processes],
                      "trainers": pids[processes:]}  # fmt: skip

            def counts() -> dict[str, float]:
                return {
                    "learned": store.status().learned, "conflicts": sum(conflicts),
                    "idle": psutil.cpu_times().idle, "at": time.perf_counter(),
                } | {name: cpu_seconds(group) for name, group in groups.items()}  # fmt: skip

            before = counts()
            time.sleep(seconds)
            after = counts()
            depth = store.status().depth
        store.close()
    passed, learned = after["at"] - before["at"], after["learned"] - before["learned"]
    updates = max(1.0, learned / PER_UPDATE)
    ideal = min(samplers / sizes.fragment_s, trainers * PER_UPDATE / sizes.update_s)
    return {
        "trainers": trainers, "samplers": samplers, "per_s": learned / passed, "ideal": ideal,
        "depth": depth, "conflicts_per_update": (after["conflicts"] - before["conflicts"]) / updates,
        "idle_cores": (after["idle"] - before["idle"]) / passed,
        **{f"{name}_cores": (after[name] - before[name]) / passed for name in groups},
    }  # fmt: skip


def by_gradients(mode: str, trainers: int, seconds: float, sizes: Sizes) -> dict[str, Any]:
    """Gradients/s that trainers compute and give to one another."""
    target = {"synchronous": simulated.step_together, "hogwild": simulated.step_alone}[mode]
    steps = CONTEXT.RawArray("q", trainers)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        (Path(folder) / "memory").touch()
        jobs = [(target, (n, trainers, folder, sizes, Signals, steps)) for n in range(trainers)]
        with running(jobs) as pids:
            before, start, cpu = sum(steps), time.perf_counter(), cpu_seconds(pids)
            idle = psutil.cpu_times().idle
            time.sleep(seconds)
            passed = time.perf_counter() - start
            rate, cores = (sum(steps) - before) / passed, (cpu_seconds(pids) - cpu) / passed
            idle = (psutil.cpu_times().idle - idle) / passed
    ideal = trainers / sizes.step_s
    return {"mode": mode, "trainers": trainers, "per_s": rate, "ideal": ideal,
            "trainers_cores": cores, "idle_cores": idle}  # fmt: skip


def why(row: dict[str, Any]) -> str:
    """Why a point lies below its ideal, as far as processor time tells."""
    if row["per_s"] >= GOOD * row["ideal"]:
        return ""
    if row.get("server_cores", 0.0) >= BUSY:
        return "the server has one thread, and it is busy"
    if row["idle_cores"] <= (1 - BUSY) * (os.cpu_count() or 1):
        return "all cores of this machine are busy, with other processes too"
    return "messages are waited for"


def write(stored: list[dict[str, Any]], stepped: list[dict[str, Any]], sizes: Sizes,
          out: Path) -> str:  # fmt: skip
    machine = f"{runs.machine()}, {date.today()}"
    lines = [
        "# Several trainers", "",
        f"{machine}. Trainers and samplers sleep where real ones would compute. Fragments of"
        f" {sizes.fragment / 1000:,g} KB, weights of {sizes.weights / 1000:,g} KB, gradients of"
        f" {sizes.gradient / 1000:,g} KB.", "",
        "| trainers | samplers | fragments/s | of the ideal | fragments in the store"
        " | conflicts per update | server, cores"
        " | samplers, cores | trainers, cores | idle, cores | why it bends |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {r['trainers']} | {r['samplers']} | {r['per_s']:,.1f} | {r['per_s'] / r['ideal']:.0%}"
        f" | {r['depth']} | {r['conflicts_per_update']:.2f} | {r['server_cores']:.2f} | {r['samplers_cores']:.2f}"
        f" | {r['trainers_cores']:.2f} | {r['idle_cores']:.2f} | {why(r)} |"
        for r in stored
    ]
    lines += ["", "| mode | trainers | gradients/s | of the ideal | trainers, cores | idle, cores"
              " | why it bends |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {r['mode']} | {r['trainers']} | {r['per_s']:,.1f} | {r['per_s'] / r['ideal']:.0%}"
        f" | {r['trainers_cores']:.2f} | {r['idle_cores']:.2f} | {why(r)} |"
        for r in stepped
    ]
    text = "\n".join(lines) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(text)
    content = {"machine": machine, "sizes": sizes._asdict(), "store": stored, "gradients": stepped}
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    draw(stored, stepped, out)
    return text


def draw(stored: list[dict[str, Any]], stepped: list[dict[str, Any]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    curves = [
        (left, "samplers", [("trainers", n, f"{n} trainers") for n in _all(stored, "trainers")], stored),
        (right, "trainers", [("mode", m, m) for m in _all(stepped, "mode")], stepped),
    ]  # fmt: skip
    for axis, x, lines, rows in curves:
        for number, (name, value, label) in enumerate(lines):
            mine = [row for row in rows if row[name] == value]
            at = [row[x] for row in mine]
            axis.loglog(at, [row["per_s"] for row in mine], "o-", color=f"C{number}", label=label)
            axis.loglog(at, [row["ideal"] for row in mine], "--", color=f"C{number}", alpha=0.6)
        axis.legend(title="dashed: ideal")
    left.set(xlabel="samplers", ylabel="fragments/s learned from", title="one store")
    right.set(xlabel="trainers", ylabel="gradients/s", title="without a store")
    figure.savefig(out.with_suffix(".png"), dpi=120)
    pyplot.close(figure)


def _all(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def main() -> None:
    import tyro

    given = tyro.cli(Arguments)
    sizes = Sizes(given.fragment_bytes, given.weights_bytes, given.gradient_bytes)
    stored, stepped = [], []
    for trainers in given.trainers:
        for samplers in given.samplers:
            stored.append(row := through_a_store(trainers, samplers, given.seconds, sizes))
            print(f"trainers {trainers}, samplers {samplers}: {row['per_s']:,.1f} fragments/s,"
                  f" ideally {row['ideal']:,.0f}", flush=True)  # fmt: skip
    for mode in ("synchronous", "hogwild"):
        for trainers in given.trainers:
            stepped.append(row := by_gradients(mode, trainers, given.seconds, sizes))
            print(f"{mode}, trainers {trainers}: {row['per_s']:,.1f} gradients/s,"
                  f" ideally {row['ideal']:,.0f}", flush=True)  # fmt: skip
    print(write(stored, stepped, sizes, given.out))


if __name__ == "__main__":
    with runs.command("trainers.py"):
        main()
