"""How long training takes here: `python benchmarks/timing.py --env PongNoFrameskip-v4 --env_num 8`.

One row per pool and policy lag, each a real `train.py` that is stopped after `--seconds` of
measuring: steps/s (the median over windows, after warm-up), its ratio to the raw stepping rate of
the same environments on all cores with random actions, where the time went, the share of the machine's
peak in multiplying matrices that the gradient steps reach, peak memory, and the bytes that cross
between processes per step. The time for 10M steps is extrapolated from the rate,
and marked so. Writes `<out>.md`, `<out>.json` and `<out>.png`.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import secrets
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
import runs
import torch
from gemm import gemm_peak, gradient_flop

from common.cores import usable_cores
from common.ports import free_port
from common.sources import ROOT
from envs import make_vec_env, spaces_of
from learning.hardware import choose_threads
from networks.precision import choose_bfloat16, has_bfloat16
from settings.config import Config, ConfigError
from settings.sources import parse

WINDOW_S = 2.0
WARM_UP_S = 5.0  # after the first update, which compiles
TOTAL_STEPS = 100_000_000  # of which no measured run takes all
# PARL's PPO, 10M Atari steps with 8 environments, hardware unstated (its README of August 2022)
PARL_HOURS = {"PongNoFrameskip-v4": {"local": 61.67, "xparl": 29.05},
              "BreakoutNoFrameskip-v4": {"local": 578.05, "xparl": 476.2}}  # fmt: skip


@dataclass
class Arguments:
    """Measure how fast training runs on this machine."""

    env: str = "PongNoFrameskip-v4"
    """The environment."""
    env_num: int | None = None
    """Number of environments. Default: the preset's."""
    samplers: int | None = None
    """Number of samplers. Default: what train.py chooses."""
    pools: tuple[Literal["inline", "local", "xparl", "ray"], ...] = ("inline", "local", "xparl")
    """The pools to measure; ray where `make ray` was run."""
    policy_lag: tuple[int, ...] = (0, 1)
    """The policy lags to measure."""
    seconds: float = 30.0
    """Seconds to measure, per row."""
    out: Path = Path("benchmarks/results/timing")
    """Where to write, without the ending."""


def step_at_random(env: str, count: int, seconds: float) -> float:
    """Steps/s of `count` environments in this process, the actions drawn beforehand."""
    venv = make_vec_env(env, count)
    venv.reset(seed=list(range(count)))
    venv.action_space.seed(0)
    actions = [venv.action_space.sample() for _ in range(64)]
    for action in actions[:16]:
        venv.step(action)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for action in actions:
            venv.step(action)
        steps += len(actions) * count
    return steps / (time.perf_counter() - start)


def raw_rate(env: str, count: int, seconds: float) -> float:
    """Steps/s of the environments, spread over a process per core."""
    cores = min(os.cpu_count() or 1, count)
    shares = [count // cores + (i < count % cores) for i in range(cores)]
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        return sum(pool.starmap(step_at_random, [(env, share, seconds) for share in shares]))


class Cluster(NamedTuple):
    """A cluster: the flags that name it, and the session that all its processes are in."""

    flags: list[str]
    session: int

    def processes(self) -> list[int]:
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == self.session:
                    found.append(pid)
        return found


def train_for(arguments: Arguments, pool: str, lag: int, made: Cluster | None) -> dict[str, Any]:
    """A run of train.py with the asked environments, pool and lag, measured."""
    flags = ["--env", arguments.env, "--policy_lag", str(lag)]
    if arguments.env_num is not None:
        flags += ["--env_num", str(arguments.env_num)]
    if made is not None:
        flags += made.flags
    if pool == "inline":
        flags += ["--samplers", "0"]
    elif arguments.samplers is not None or made is not None:
        flags += ["--samplers", str(arguments.samplers or os.cpu_count() or 1)]
    with tempfile.TemporaryDirectory() as folder:
        return run_and_measure(flags, arguments.seconds, Path(folder), made)


def run_and_measure(
    flags: list[str], seconds: float, folder: Path, made: Cluster | None = None
) -> dict[str, Any]:
    """Run train.py in a folder, stop it after the measuring time, and read its metrics.

    Memory is that of the run's processes, and of the cluster's where there is one.
    """
    command = [sys.executable, str(ROOT / "train.py"), *flags, "--run_dir", "run",
               "--train_total_steps", str(TOTAL_STEPS), "--test_share", "1"]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, cwd=folder, start_new_session=True
    )
    peak, rows = 0, []
    try:
        while not rows or rows[-1]["time_s"] - rows[0]["time_s"] <= WARM_UP_S + seconds:
            time.sleep(0.5)
            if process.poll() is not None:
                raise RuntimeError(f"train.py {' '.join(flags)} ended with {process.returncode}")
            peak = max(peak, resident_memory(process.pid, made))
            rows = read_metrics(folder / "run" / "metrics.jsonl")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return measure(rows) | {"peak_rss_mib": peak / 2**20, "samplers": summary["samplers"]}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def resident_memory(leader: int, made: Cluster | None) -> int:
    """Bytes resident in a process and its children, and a cluster's (shared pages in each)."""
    total = 0
    children = [child.pid for child in psutil.Process(leader).children(recursive=True)]
    for pid in [leader, *children, *(made.processes() if made else [])]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += psutil.Process(pid).memory_info().rss
    return total


def measure(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The median rate over windows, and the shares of the time, after warm-up."""
    begin = rows[0]["time_s"] + WARM_UP_S
    rows = [row for row in rows if row["time_s"] >= begin]
    rates, first = [], rows[0]
    for row in rows:
        elapsed = row["time_s"] - first["time_s"]
        if elapsed >= WINDOW_S:
            rates.append((row["global_step"] - first["global_step"]) / elapsed)
            first = row
    elapsed = rows[-1]["time_s"] - rows[0]["time_s"]
    shares = {
        name: sum(row[f"time/{name}"] for row in rows[1:]) / elapsed
        for name in ("sample_wait", "learn", "transfer")
    }
    return {"steps_per_s": statistics.median(rates), "windows": len(rates), **shares}


def bytes_per_step(config: Config, pool: str, samplers: int) -> float:
    """Bytes of rollouts and weights that cross between processes, per environment step."""
    if pool == "inline":
        return 0.0
    from cluster.sampler import spec_of
    from model import make_model

    found = spaces_of(config.env)
    model = make_model(found, config)
    spec = spec_of(model, config)
    rollout = sum(
        dtype.itemsize * math.prod(shape) for shape, dtype in spec.arrays(config.env_num).values()
    )
    weights = sum(array.nbytes for array in model.get_weights().values())
    copies = samplers if pool == "xparl" else 1  # those of a machine read one shared copy
    return (rollout + weights * copies) / config.steps_per_update


def write(
    arguments: Arguments, raw: float, peaks: dict[str, float], rows: list[dict[str, Any]]
) -> str:
    """Write the three files; return the Markdown.

    Args:
        peaks: `gemm_peak` by the names that the text gives them.
    """
    machine = f"{runs.machine()}, {date.today()}"
    published = PARL_HOURS.get(arguments.env, {})
    lines = [
        f"# Training time, {arguments.env}", "",
        f"{machine}. Raw stepping, random actions, all cores: {raw:,.0f} steps/s.",
        f"Large matrices, GFLOP/s: {', '.join(f'{n} {p / 1e9:,.0f}' for n, p in peaks.items())}.", "",
        "| pool | lag | samplers | steps/s | of raw | waiting | learning | transfer | of gemm peak"
        " | peak RSS | bytes/step | 10M steps (extrapolated) | PARL's PPO, published |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        hours = 1e7 / row["steps_per_s"] / 3600
        theirs = f"{published[row['pool']]} h" if row["pool"] in published else "-"
        lines.append(
            f"| {row['pool']} | {row['policy_lag']} | {row['samplers']} | {row['steps_per_s']:,.0f}"
            f" | {row['steps_per_s'] / raw:.0%} | {row['sample_wait']:.0%} | {row['learn']:.0%}"
            f" | {row['transfer']:.1%} | {row['of_peak']:.1%} | {row['peak_rss_mib']:,.0f} MiB | {row['bytes_per_step']:,.0f}"
            f" | {hours:.2f} h | {theirs} |"
        )
    text = "\n".join(lines) + "\n"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text)
    content = {"env": arguments.env, "machine": machine, "raw_steps_per_s": raw, "peaks": peaks,
               "rows": rows}  # fmt: skip
    arguments.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    draw(arguments, raw, rows)
    return text


def draw(arguments: Arguments, raw: float, rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    names = [f"{row['pool']}, lag {row['policy_lag']}" for row in rows]
    axis.barh(names, [row["steps_per_s"] for row in rows])
    axis.axvline(raw, color="black", linestyle="--", label="raw stepping, all cores")
    axis.set(title=arguments.env, xlabel="steps/s")
    axis.legend()
    figure.savefig(arguments.out.with_suffix(".png"), dpi=120)
    pyplot.close(figure)


@contextlib.contextmanager
def cluster(pool: str, cpus: int) -> Iterator[Cluster | None]:
    """The cluster on this machine that a pool needs, for as long as the block lasts, or None."""
    if pool not in ("xparl", "ray"):
        yield None
        return
    port = str(free_port())
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # a socket's path has to be short
        if pool == "xparl":
            flags = ["--xparl_addr", f"localhost:{port}"]
            xparl = str(Path(sys.executable).parent / "xparl")
            command = [xparl, "start", "--port", port, "--cpu_num", str(cpus)]
        else:
            flags = ["--ray_address", f"127.0.0.1:{port}"]
            token = Path(folder) / "token"
            token.write_text(secrets.token_hex(32))
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head",
                       "--port", port, "--num-cpus", str(cpus), "--include-dashboard", "false",
                       "--disable-usage-stats", "--temp-dir", folder]  # fmt: skip
        said = Path(folder) / "said"
        with open(said, "w") as output:
            starter = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True
            )
        made = Cluster(flags, starter.pid)
        try:
            if starter.wait() != 0:
                raise ConfigError(
                    f"no cluster: `{shlex.join(command)}` ended with {starter.returncode}:\n"
                    f"{said.read_text()}"
                )
            yield made
        finally:
            for pid in made.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def main() -> None:
    import tyro

    arguments = tyro.cli(Arguments)
    given = [] if arguments.env_num is None else ["--env_num", str(arguments.env_num)]
    config = parse(["--env", arguments.env, *given])
    raw = raw_rate(arguments.env, config.env_num, 4.0)
    cores = usable_cores()
    # emulated, bfloat16 takes minutes
    dtypes = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if has_bfloat16() else {})
    peaks = {
        f"{name} on {threads} thread{'s' * (threads > 1)}": gemm_peak(dtype, threads)
        for name, dtype in dtypes.items()
        for threads in sorted({1, cores})
    }
    learned = torch.bfloat16 if choose_bfloat16(config, torch.device("cpu")) else torch.float32
    flop = gradient_flop(config) * config.times_learned
    rows = []
    cpus = max(arguments.samplers or 1, os.cpu_count() or 1)
    for pool in arguments.pools:
        with cluster(pool, cpus) as made:
            for lag in arguments.policy_lag:
                row = train_for(arguments, pool, lag, made)
                row |= {"pool": pool, "policy_lag": lag}
                run = replace(config, policy_lag=lag, train_total_steps=TOTAL_STEPS)
                peak = gemm_peak(learned, choose_threads(run, "cpu", 1).most)
                row["of_peak"] = flop * row["steps_per_s"] / row["learn"] / peak
                row["bytes_per_step"] = bytes_per_step(config, pool, row["samplers"])
                rows.append(row)
                print(f"{pool}, lag {lag}: {row['steps_per_s']:,.0f} steps/s", flush=True)
    print(write(arguments, raw, peaks, rows))


if __name__ == "__main__":
    with runs.command("timing.py"):
        main()
