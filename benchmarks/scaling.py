"""How throughput grows with samplers, and cost with size: `python benchmarks/scaling.py`.

The parts of `costs.py` measure what an update, a step and a sampler cost while one size grows, and how
far that is from the line that it should follow. The part `local`, `xparl` or `ray` measures throughput
with environments that sleep for 20 ms a step, so that the ideal is 50 steps/s a sampler on any machine
that can hold the samplers; each point is a real `train.py` with one environment per sampler. The part
`uneven` has four samplers of which one is four times slower, in lockstep and asynchronously.

`--only batch width` measures some parts; the others keep what `<out>.json` has of them. Writes
`<out>.md`, `.json` and `.png`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import runs
from costs import PARTS, Point
from sleeping_env import STEP_S
from timing import Cluster, cluster, run_and_measure

from common.sources import ROOT
from settings.config import Config

STEPS = 64  # rows of a fragment
UNEVEN_STEPS = 16  # the slow sampler's take four times as long, and several are to be measured
SMALL = ["--update_epochs", "1", "--hidden_sizes", "8", "--rollout_steps", str(STEPS)]


POOLS = ("local", "xparl", "ray")
Part = Literal[
    "batch", "width", "observation", "environments", "robots", "samplers", "memory", "local",
    "xparl", "ray", "uneven"
]  # fmt: skip
UNITS = {
    "batch": ("rows of a batch", "ms an update"),
    "width": ("width of the layers", "ms an update"),
    "observation": ("bytes of an observation", "ms an update"),
    "environments": ("environments, 8,192 rows", "ms an update"),
    "robots": ("HalfCheetahs in a sampler", "us a step of one"),
    "samplers": ("simulated samplers, 2,048 rows", "ms to gather"),
    "memory": ("local samplers", "MiB each"),
}
"""Of each part of `costs.py`: what grows, and what is measured."""
LEAVES = 0.8  # a point that reaches less of its line has left it


@dataclass
class Arguments:
    """Measure how training scales."""

    samplers: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of samplers to measure."""
    only: tuple[Part, ...] = (
        "batch", "width", "observation", "environments", "robots", "samplers", "memory", "local",
        "xparl", "uneven",
    )  # fmt: skip
    """The parts to measure; ray where `make ray` was run."""
    seconds: float = 10.0
    """Seconds to measure, per point."""
    out: Path = Path("benchmarks/results/scaling")
    """Where to write, without the ending."""


def throughput(samplers: int, pool: str, seconds: float, made: Cluster | None) -> dict[str, Any]:
    """Train on sleeping environments, one per sampler: steps/s and seconds per update."""
    batch = str(samplers * STEPS)
    flags = ["--env", "sleeping_env:Sleeping", "--env_num", str(samplers), "--samplers",
             str(samplers), "--batch_size", batch, "--minibatch_size", batch, *SMALL]  # fmt: skip
    if made is not None:
        flags += made.flags
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "benchmarks" / "sleeping_env.py", folder)
        row = run_and_measure(flags, seconds, Path(folder))
    ideal = samplers / STEP_S
    return {
        "pool": pool, "samplers": samplers, "steps_per_s": row["steps_per_s"],
        "of_ideal": row["steps_per_s"] / ideal,
        "learn_s": row["learn"] * samplers * STEPS / row["steps_per_s"],
        "transfer_s": row["transfer"] * samplers * STEPS / row["steps_per_s"],
    }  # fmt: skip


def intake(env: str, samplers: int, lag: int, seconds: float) -> float:
    """Steps/s that a pool takes in, of sleeping environments, one per sampler, without learning."""
    from cluster.make import make_pool
    from envs import spaces_of
    from model import make_model
    from rollout import Weights

    config = Config(
        env=f"sleeping_env:{env}", env_num=samplers, samplers=samplers,
        batch_size=samplers * UNEVEN_STEPS, minibatch_size=UNEVEN_STEPS,
        rollout_steps=UNEVEN_STEPS, hidden_sizes=(8,), policy_lag=lag,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        slow = Path(folder) / "slow"
        os.environ["SLOW_SAMPLER"] = str(slow)
        os.environ["PYTHONPATH"] = str(ROOT / "benchmarks")  # where samplers find sleeping_env
        found = spaces_of(config.env)
        slow.unlink(missing_ok=True)  # it was created for the question
        model = make_model(found, config)
        weights = model.get_weights()
        pool = make_pool(config, model, Weights(0, weights))
        steps, update, start = 0, 0, 0.0
        try:
            while update < 4 or time.perf_counter() - start < seconds:
                pool.request(Weights(update, weights), update, update == 0)
                rollout = pool.gather()
                update += 1
                if update == 4:
                    start = time.perf_counter()
                elif update > 4:
                    steps += rollout.steps
            return steps / (time.perf_counter() - start)
        finally:
            pool.close()


def uneven(seconds: float) -> dict[str, float]:
    """What four samplers take in, one of them four times slower, by policy lag.

    As shares of the sum of what each takes in alone.
    """
    alone = 3 * intake("Sleeping", 1, 1, seconds) + intake("Slow", 1, 1, seconds)
    shares = {f"policy_lag {lag}": intake("Uneven", 4, lag, seconds) / alone for lag in (1, 4)}
    return shares | {"the environments without samplers": (3 + 1 / 4) / STEP_S / alone}


def of_line(points: list[Point]) -> list[float]:
    """How much of its line each point reaches: the line goes through the best of them.

    A point's cost should be proportional to its work; 50% is twice the cost of the line.
    """
    best = min(point.value / point.work for point in points)
    return [best * point.work / point.value for point in points]


def measure(part: str, arguments: Arguments) -> list[Any]:
    if part in PARTS:
        return [point._asdict() for point in PARTS[part]()]
    if part == "uneven":
        return list(uneven(arguments.seconds).items())
    with cluster(part, max(arguments.samplers)) as made:
        return [throughput(n, part, arguments.seconds, made) for n in arguments.samplers]


def curves(found: dict[str, list[Any]]) -> dict[str, list[Point]]:
    """The points of `costs.py` by name; `memory` has two curves."""
    points = [Point(**row) for part in PARTS for row in found.get(part, ())]
    names = dict.fromkeys(point.part for point in points)
    return {name: [point for point in points if point.part == name] for name in names}


def write(found: dict[str, list[Any]], origins: dict[str, str], arguments: Arguments) -> str:
    """Write the three files; return the Markdown.

    Args:
        origins: by part, where and when it was measured.
    """
    measured = [
        f"{origin}: {', '.join(part for part in found if origins[part] == origin)}"
        for origin in dict.fromkeys(origins.values())
    ]
    lines = ["# Scaling", "", *measured, ""]
    rows = [row for pool in POOLS for row in found.get(pool, ())]
    if rows:
        lines += ["| pool | samplers | steps/s | of the ideal line | learn, ms per update | transfer, ms |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {p['pool']} | {p['samplers']} | {p['steps_per_s']:,.0f} | {p['of_ideal']:.1%}"
        f" | {p['learn_s'] * 1e3:.1f} | {p['transfer_s'] * 1e3:.1f} |"
        for p in rows
    ]
    for name, share in found.get("uneven", ()):
        lines += [
            "",
            f"Four samplers, one four times slower, {name}: {share:.1%} of their sum alone.",
        ]
    for name, points in curves(found).items():
        what, unit = UNITS.get(name, UNITS["memory"])
        title = f"{name}, {unit}" if name in ("rss", "pss") else unit
        lines += ["", f"| {what} | {' | '.join(f'{p.size:,}' for p in points)} |"]
        lines += ["|---" * (len(points) + 1) + "|"]
        lines += [f"| {title} | {' | '.join(f'{p.value:,.3g}' for p in points)} |"]
        lines += [f"| of the line | {' | '.join(f'{share:.0%}' for share in of_line(points))} |"]
    text = "\n".join(lines) + "\n"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text)
    content = {"origins": origins, "parts": found}
    arguments.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    draw(found, arguments)
    return text


def draw(found: dict[str, list[Any]], arguments: Arguments) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 4, figsize=(15, 7), layout="constrained")
    panels = dict(zip([*PARTS, "throughput"], axes.flat, strict=True))
    for name, points in curves(found).items():
        panel = panels[name if name in PARTS else "memory"]
        sizes, shares = [p.size for p in points], of_line(points)
        line = [p.value * share for p, share in zip(points, shares, strict=True)]
        (drawn,) = panel.loglog(sizes, [p.value for p in points], "o-", label=name)
        panel.loglog(sizes, line, "--", color=drawn.get_color(), label="the line")
        left = [(p.size, p.value) for p, s in zip(points, shares, strict=True) if s < LEAVES]
        panel.loglog(*zip(*left, strict=True) if left else ([], []), "rx", markersize=10)
        what, unit = UNITS.get(name, UNITS["memory"])
        panel.set(xlabel=what, ylabel=unit)
    panel = panels["throughput"]
    for pool in [pool for pool in POOLS if pool in found]:
        sizes = [row["samplers"] for row in found[pool]]
        panel.loglog(sizes, [row["steps_per_s"] for row in found[pool]], "o-", label=pool)
        panel.loglog(sizes, [n / STEP_S for n in sizes], "k--")
    panel.set(xlabel="samplers of 20 ms environments", ylabel="steps/s")
    for panel in axes.flat:
        if not panel.lines:  # not measured yet
            panel.set_axis_off()
            continue
        low, high = panel.get_ylim()
        panel.set_ylim(min(low, high / 10), 1.3 * high)  # what is flat shall look flat
        panel.legend()
    figure.suptitle(f"Crosses: less than {LEAVES:.0%} of the line is reached")
    figure.savefig(arguments.out.with_suffix(".png"), dpi=100)
    pyplot.close(figure)


def main() -> None:
    import tyro

    arguments = tyro.cli(Arguments)
    path = arguments.out.with_suffix(".json")
    before = json.loads(path.read_text()) if path.exists() else {}
    found = before.get("parts", {})
    origins = before.get("origins", dict.fromkeys(found, before.get("machine", "")))
    for part in arguments.only:
        found[part] = measure(part, arguments)
        origins[part] = f"{runs.machine()}, {date.today()}"
        print(f"{part} is measured", flush=True)
        write(found, origins, arguments)
    print(write(found, origins, arguments))


if __name__ == "__main__":
    with runs.command("scaling.py"):
        main()
