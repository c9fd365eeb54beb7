"""How soon a lost sampler is noticed and replaced, and what its loss costs.

python benchmarks/faults.py                                   # local samplers
python benchmarks/faults.py --pool xparl                      # actors of a cluster that it starts
python benchmarks/faults.py --kills 300                       # and a kill every 10 s for 300 s
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil
from timing import cluster

from agent import make_agent
from cluster.make import make_pool
from settings.config import Config
from settings.sources import preset

FAULTS = ("kill", "exit", "segfault", "raise", "stop", "sleep", "gil")
TIMEOUT_S = 3.0
SAMPLERS = 4


class Loss(NamedTuple):
    """Seconds from a fault until the learner had the others' fragment, and the replacement's."""

    noticed: float
    replaced: float


def measure(config: Config, fault: str, folder: Path) -> Loss:
    """Let one environment fail once, and collect until all samplers are there again."""
    agent = make_agent(config)
    pool = make_pool(config, agent.model, agent.weights(), say=lambda line: None)
    update = 0

    def collect() -> bool:
        """Whether every environment has valid rows."""
        nonlocal update
        pool.request(agent.weights(), update, update == 0)
        update += 1
        return bool(pool.gather().valid.any(0).all())

    try:
        for _ in range(3):
            collect()
        (folder / fault).touch()
        start = time.monotonic()
        while collect():
            pass
        noticed = time.monotonic() - start
        while not collect():
            time.sleep(0.01)  # the learner's share
        return Loss(noticed, time.monotonic() - start - noticed)
    finally:
        pool.close()


def steps_per_second(seconds: float, kill_every_s: float | None) -> float:
    """Of the HalfCheetah preset's samplers and learner, while samplers are killed at random."""
    config = preset("HalfCheetah-v4")
    agent = make_agent(config)
    pool = make_pool(config, agent.model, agent.weights(), say=lambda line: None)
    agent.compile(pool.spec)
    try:
        pool.request(agent.weights(), 0, True)
        steps, start, killed = 0, 0.0, 0.0
        while not start or time.monotonic() - start < seconds:
            rollout = pool.gather()
            pool.request(agent.weights(), agent.update + 1, False)
            agent.learn(rollout, 0.0)
            if agent.update == 20:  # warm
                start = killed = time.monotonic()
            elif start:
                steps += rollout.steps
                if kill_every_s is not None and time.monotonic() - killed > kill_every_s:
                    killed = time.monotonic()
                    random.choice(samplers()).kill()
        return steps / (time.monotonic() - start)
    finally:
        pool.close()


def samplers() -> list[psutil.Process]:
    """The processes that were forked, and not the one that forks them."""
    return [p for p in psutil.Process().children(recursive=True) if not p.children()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pool", choices=("local", "xparl"), default="local")
    parser.add_argument("--kills", type=float, default=0.0, help="seconds")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FAULTS_FOLDER"] = folder  # for the cluster's actors too
        with cluster(arguments.pool, SAMPLERS + 1) as made:
            config = Config(
                env="tests.faulty_env:Faulty", env_num=2 * SAMPLERS, samplers=SAMPLERS,
                batch_size=256, minibatch_size=256, sampler_timeout=TIMEOUT_S,
                xparl_addr=made and made.flags[1],
            )  # fmt: skip
            for fault in FAULTS:
                loss = measure(config, fault, Path(folder))
                print(
                    f"{fault:8}  noticed {loss.noticed:5.2f} s  replaced {loss.replaced:5.2f} s",
                    flush=True,
                )
    if arguments.kills:
        for turn in range(2):
            for every in (None, 10.0):
                rate = steps_per_second(arguments.kills / 2, every)
                print(f"turn {turn}: killed every {every} s: {rate:,.0f} steps/s", flush=True)


if __name__ == "__main__":
    main()
