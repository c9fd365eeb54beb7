"""A trainer or a sampler of a run in a store, which may be killed at any instant and tells of all it did.

python -m benchmarks.store_crowd URL RUN trainer FOLDER
python -m benchmarks.store_crowd URL RUN sampler FOLDER

What it is about to do stands in a file before it does so, and what came of it afterwards:

    trainer    `tries 3/17 3/18`, then `learned` or `failed`: fragments 17 and 18 of sampler 3
    sampler    `appended 3/19`
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TextIO

from cluster.store.fragment import pack_fragment
from rollout import Rollout
from tests.cluster.store.stores import RANGES, SPEC, WEIGHTS, pool_of, run_at

POLICY_LAG = 10**6  # no fragment is too old
FRAGMENT_S = 0.02


def named(rollout: Rollout) -> list[str]:
    """The fragments of a rollout by their names, which their rewards hold."""
    samplers, numbers = rollout.reward[0, ::2], rollout.reward[1, ::2]
    return [f"{int(s)}/{int(n)}" for s, n in zip(samplers, numbers, strict=True)]


def say(file: TextIO, words: str) -> None:
    """Write a line that outlives the process."""
    file.write(words + "\n")
    file.flush()


def train(url: str, run: str, file: TextIO) -> None:
    with pool_of(run_at(url, run), policy_lag=POLICY_LAG) as pool:
        while True:
            say(file, f"tries {' '.join(named(pool.gather()))}")
            published = pool.weights.publish(WEIGHTS.arrays, pool.version)
            while published.outcome == "conflict":
                published = pool.weights.publish(WEIGHTS.arrays, published.version)
            say(file, "learned" if published.outcome == "done" else "failed")


def message_of(sampler: int, number: int, version: int) -> bytes:
    """A fragment that no environment has made, and whose rewards are its name."""
    rollout = Rollout.empty(SPEC, 2)
    rollout.reward[0], rollout.reward[1], rollout.valid[:] = sampler, number, True
    envs = RANGES[sampler % len(RANGES)]
    return pack_fragment(sampler, number, version, False, envs, [], rollout, False)


def sample(url: str, run: str, file: TextIO) -> None:
    store = run_at(url, run)
    sampler, number, newest = store.join(len(RANGES)), 0, 0
    while True:
        appended = store.stream.append(sampler, number, message_of(sampler, number, newest))
        if appended is not None:
            say(file, f"appended {sampler}/{number}")
            newest, number = appended, number + 1
        time.sleep(FRAGMENT_S)


if __name__ == "__main__":
    url, run, kind, folder = sys.argv[1:]
    with open(Path(folder) / f"{kind}-{os.getpid()}", "a") as file:
        (train if kind == "trainer" else sample)(url, run, file)
