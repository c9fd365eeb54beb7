"""What pools take in where nothing is learned: `python benchmarks/exchange.py`.

Two real samplers step environments that cost nothing but their bytes (`wide_env`), through local
processes, an xparl cluster, a Ray cluster and a store, all of this machine, and a loop gathers. For the
store it also publishes weights, which takes the fragments out of it. Then one process sends real
fragments through a store, in this project's form and pickled (`messages`). Writes `<out>.md` and `.json`.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import runs
from messages import compared, table
from timing import cluster

from settings.config import Config

HERE = Path(__file__).resolve().parent
SAMPLERS = 2
STEPS = 8  # rows of a fragment
WARM_UP = 10  # gathered batches
LAG = 4  # batches that may wait


class Size(NamedTuple):
    """Fragments of about so many bytes: the environment, and how many a sampler has."""

    env: str
    envs: int


SIZES = {"1 KB": Size("Kilobyte", 1), "100 KB": Size("Hundred", 16), "7 MB": Size("Megabytes", 16)}


@dataclass
class Arguments:
    """Measure how fast fragments come from samplers to a trainer."""

    pools: tuple[Literal["local", "xparl", "ray", "store"], ...] = (
        "local", "xparl", "ray", "store",
    )  # fmt: skip
    """The pools to measure; ray where `make ray` was run."""
    seconds: float = 10.0
    """Seconds to measure, per point."""
    out: Path = Path("benchmarks/results/exchange")
    """Where to write, without the ending."""


@contextlib.contextmanager
def opened(config: Config) -> Iterator[tuple[Any, Any]]:
    """The pool of some settings, and the weights that it begins with."""
    from cluster.make import make_pool
    from cluster.sampler import spec_of
    from cluster.store.make import found_pool, run_at, server
    from envs import spaces_of
    from model import make_model
    from rollout import Weights

    model = make_model(spaces_of(config.env), config)
    weights = Weights(0, model.get_weights())
    with contextlib.ExitStack() as stack:
        if config.store is None:
            pool = make_pool(config, model, weights)
        else:
            url = stack.enter_context(server(config.store))
            store = run_at(url, config, print, "exchange")
            pool = found_pool(
                store, config, spec_of(model, config), weights, SAMPLERS, SAMPLERS, 0, False, print
            )
        stack.callback(pool.close)
        yield pool, weights


def taken_in(pool_name: str, size: Size, seconds: float, address: dict[str, str]) -> dict[str, Any]:
    """Fragments/s and bytes/s of a pool, in a process of its own."""
    from rollout import Weights

    envs = size.envs * SAMPLERS
    place: dict[str, Any] = {"store": "embedded"} if pool_name == "store" else address
    config = Config(
        env=f"wide_env:{size.env}", network="wide_env:Glance", env_num=envs, samplers=SAMPLERS,
        rollout_steps=STEPS, batch_size=envs * STEPS, minibatch_size=envs * STEPS, policy_lag=LAG,
        normalize_observation=False, compile="off", **place,
    )  # fmt: skip
    with opened(config) as (pool, weights):
        batches, fragments, nbytes, start = 0, 0, 0, 0.0
        while batches <= WARM_UP or time.perf_counter() - start < seconds:
            pool.request(Weights(batches, weights.arrays), batches, batches == 0)
            rollout = pool.gather()
            if pool_name == "store":
                pool.weights.publish(weights.arrays, pool.version)
            batches += 1
            if batches == WARM_UP:
                start = time.perf_counter()
            elif batches > WARM_UP:
                fragments += len(rollout.env_ranges)
                nbytes += sum(array.nbytes for array in rollout.arrays().values())
        elapsed = time.perf_counter() - start
        return {
            "fragment_bytes": nbytes / fragments, "fragments_per_s": fragments / elapsed,
            "mb_per_s": nbytes / elapsed / 1e6, "dropped": pool.dropped,
        }  # fmt: skip


def alone(size: Size, seconds: float) -> float:
    """Fragments/s of one sampler whose fragments go nowhere."""
    from cluster.sampler import Sampler
    from rollout import Rollout

    steps = size.envs * STEPS
    config = Config(
        env=f"wide_env:{size.env}", network="wide_env:Glance", env_num=size.envs, samplers=1,
        rollout_steps=STEPS, batch_size=steps, minibatch_size=steps, normalize_observation=False,
    )  # fmt: skip
    import torch

    torch.set_num_threads(1)
    sampler = Sampler(config, 0, size.envs)
    out, number, start = Rollout.empty(sampler.spec, size.envs), 0, 0.0
    while number <= WARM_UP or time.perf_counter() - start < seconds:
        sampler.collect(number, number == 0, out)
        number += 1
        if number == WARM_UP:
            start = time.perf_counter()
    return (number - WARM_UP) / (time.perf_counter() - start)


def in_a_process(action: partial[Any]) -> Any:
    """The result of an action in a process of its own, in a folder with a copy of `wide_env`."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(HERE / "wide_env.py", folder)
        os.chdir(folder)  # samplers, remote ones too, get the modules of the folder worked in
        try:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, context) as executor:
                return executor.submit(action).result()
        finally:
            os.chdir(before)


def address_of(flags: list[str]) -> dict[str, str]:
    return {flags[0].removeprefix("--"): flags[1]} if flags else {}


def measure(arguments: Arguments) -> list[dict[str, Any]]:
    """A row for each pool and size."""
    ceilings = {
        name: in_a_process(partial(alone, size, arguments.seconds / 2))
        for name, size in SIZES.items()
    }
    rows = []
    for pool in arguments.pools:
        with cluster(pool, SAMPLERS) as made:
            address = address_of([] if made is None else made.flags)
            for name, size in SIZES.items():
                row = in_a_process(partial(taken_in, pool, size, arguments.seconds, address))
                row |= {"pool": pool, "size": name, "one_sampler_alone": ceilings[name]}
                rows.append(row)
                print(
                    f"{pool}, {name}: {row['fragments_per_s']:,.1f} fragments/s,"
                    f" {row['mb_per_s']:,.1f} MB/s",
                    flush=True,
                )
    local = {row["size"]: row["fragments_per_s"] for row in rows if row["pool"] == "local"}
    for row in rows:
        row["of_local"] = row["fragments_per_s"] / local[row["size"]] if local else None
    return rows


def write(rows: list[dict[str, Any]], ways: list[dict[str, Any]], out: Path) -> str:
    machine = f"{runs.machine()}, {date.today()}"
    lines = [
        "# Fragments from samplers to a trainer", "",
        f"{machine}. {SAMPLERS} samplers, no learning.", "",
        "| pool | fragments of | bytes | fragments/s | MB/s | of local | dropped"
        " | one sampler alone, fragments/s |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        ratio = "-" if row["of_local"] is None else f"{row['of_local']:.2f}"
        lines.append(
            f"| {row['pool']} | {row['size']} | {row['fragment_bytes']:,.0f}"
            f" | {row['fragments_per_s']:,.1f} | {row['mb_per_s']:,.1f} | {ratio}"
            f" | {row['dropped']} | {row['one_sampler_alone']:,.1f} |"
        )
    lines += ["", "One fragment through a store, in one process:", "", *table(ways)]
    text = "\n".join(lines) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(text)
    content = {"machine": machine, "pools": rows, "messages": ways}
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    return text


def main() -> None:
    import tyro

    arguments = tyro.cli(Arguments)
    print(write(measure(arguments), compared(min(3.0, arguments.seconds)), arguments.out))


if __name__ == "__main__":
    with runs.command("exchange.py"):
        main()
