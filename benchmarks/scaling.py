"""How throughput grows with samplers, and cost with size: `python benchmarks/scaling.py`.

The environment sleeps for 20 ms a step, so the ideal is 50 steps/s a sampler, on any machine that
can hold the samplers. Each point is a real `train.py` with one environment per sampler. Then four
samplers of which one is four times slower, in lockstep and asynchronously; and the time of an update
against batch size, network width and observation bytes. Writes `<out>.md`, `.json` and `.png`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from sleeping_env import STEP_S
from timing import Cluster, cluster, run_and_measure

from settings.config import Config

ROOT = Path(__file__).resolve().parent.parent
STEPS = 64  # rows of a fragment
UNEVEN_STEPS = 16  # the slow sampler's take four times as long, and several are to be measured
SMALL = ["--update_epochs", "1", "--hidden_sizes", "8", "--rollout_steps", str(STEPS)]


@dataclass
class Arguments:
    """Measure how training scales."""

    samplers: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of samplers to measure."""
    pools: tuple[Literal["local", "xparl", "ray"], ...] = ("local", "xparl")
    """The pools to measure; ray where `make ray` was run."""
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


def update_seconds(**settings: Any) -> float:
    """The median time of an update of `Config(**settings)` on made-up data (vectors of floats)."""
    import numpy as np
    import torch
    from gymnasium import spaces

    from agent import PPOAgent
    from algorithm import PPO
    from cluster.sampler import spec_of
    from envs import Spaces
    from model import make_model
    from rollout import Rollout

    width = settings.pop("observation")
    config = Config(update_epochs=1, compile="off", env_num=64, **settings)
    torch.set_num_threads(1)
    found = Spaces(spaces.Box(-1, 1, (width,), np.float32), spaces.Box(-1, 1, (6,), np.float32), 0)
    model = make_model(found, config)
    rollout = Rollout.empty(spec_of(model, config), config.env_num)
    generator = np.random.default_rng(0)
    rollout.obs[:] = generator.standard_normal(rollout.obs.shape)
    rollout.reward[:] = generator.standard_normal(rollout.reward.shape)
    rollout.behaviour_log_prob[:] = -8.0
    rollout.valid[:] = True
    rollout.env_ranges = [(0, config.env_num)]
    agent, times = PPOAgent(PPO(model, config), config), []
    for _ in range(6):
        start = time.perf_counter()
        agent.learn(rollout, 0.0)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def costs() -> list[dict[str, Any]]:
    """Seconds per update of one epoch while one size grows."""
    usual = {"batch_size": 2048, "minibatch_size": 256, "hidden_sizes": (64, 64), "observation": 17}
    changes: dict[str, list[dict[str, Any]]] = {
        "batch size": [{"batch_size": n} for n in (1024, 2048, 4096, 8192, 16384)],
        "network width": [{"hidden_sizes": (n, n)} for n in (32, 64, 128, 256, 512)],
        "observation bytes": [{"observation": n} for n in (16, 64, 256, 1024, 4096)],
    }
    rows = []
    for what, sizes in changes.items():
        for change in sizes:
            (value,) = change.values()
            size = value[0] if isinstance(value, tuple) else value
            size *= 4 if what == "observation bytes" else 1
            rows.append({"what": what, "size": size, "update_s": update_seconds(**usual | change)})
    return rows


def write(
    points: list[dict[str, Any]], shares: dict[str, float], cost: list[dict[str, Any]],
    arguments: Arguments,
) -> str:  # fmt: skip
    machine = f"{os.cpu_count()} cores ({platform.machine()}), {date.today()}"
    lines = [
        "# Scaling", "", f"{machine}. Environments that sleep for 20 ms a step.", "",
        "| pool | samplers | steps/s | of the ideal line | learn, ms per update | transfer, ms |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {p['pool']} | {p['samplers']} | {p['steps_per_s']:,.0f} | {p['of_ideal']:.1%}"
        f" | {p['learn_s'] * 1e3:.1f} | {p['transfer_s'] * 1e3:.1f} |"
        for p in points
    ]
    lines += [
        "",
        "Of the sum of what each takes in alone, four samplers of which one is four times slower:",
        "",
    ]
    lines += [f"- {share:.1%}: {name}" for name, share in shares.items()]
    lines += ["", "| growing | size | ms per update of one epoch |", "|---|---|---|"]
    lines += [f"| {c['what']} | {c['size']:,} | {c['update_s'] * 1e3:.1f} |" for c in cost]
    text = "\n".join(lines) + "\n"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text)
    content = {"machine": machine, "points": points, "uneven": shares, "costs": cost}
    arguments.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    draw(points, cost, arguments)
    return text


def draw(
    points: list[dict[str, Any]], cost: list[dict[str, Any]], arguments: Arguments
) -> None:  # fmt: skip
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    ideal = sorted(arguments.samplers)
    left.loglog(ideal, [n / STEP_S for n in ideal], "k--", label="ideal")
    for pool in arguments.pools:
        mine = [p for p in points if p["pool"] == pool]
        left.loglog(
            [p["samplers"] for p in mine], [p["steps_per_s"] for p in mine], "o-", label=pool
        )
    left.set(xlabel="samplers", ylabel="steps/s", title="20 ms environments")
    for what in dict.fromkeys(c["what"] for c in cost):
        mine = [c for c in cost if c["what"] == what]
        sizes = [c["size"] / mine[0]["size"] for c in mine]
        right.loglog(sizes, [c["update_s"] * 1e3 for c in mine], "o-", label=what)
    right.set(xlabel="size, times the smallest", ylabel="ms per update of one epoch")
    left.legend()
    right.legend()
    figure.savefig(arguments.out.with_suffix(".png"), dpi=120)
    pyplot.close(figure)


def main() -> None:
    import tyro

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    arguments = tyro.cli(Arguments)
    points = []
    cpus = max(arguments.samplers)
    for pool in arguments.pools:
        with cluster(pool, cpus) as made:
            for samplers in arguments.samplers:
                points.append(throughput(samplers, pool, arguments.seconds, made))
                print(f"{pool}, {samplers} samplers: {points[-1]['steps_per_s']:,.0f} steps/s,"
                      f" {points[-1]['of_ideal']:.1%} of the ideal", flush=True)  # fmt: skip
    print(write(points, uneven(arguments.seconds), costs(), arguments))


if __name__ == "__main__":
    main()
