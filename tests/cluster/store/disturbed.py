"""A process that a test may kill: a trainer, or a sampler whose fragments no environment has made.

python -m tests.cluster.store.disturbed URL RUN hang             gathers once, then waits
python -m tests.cluster.store.disturbed URL RUN trainer FOLDER   learns, and tells in a file
python -m tests.cluster.store.disturbed URL RUN sampler FOLDER   appends
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests.cluster.store.stores import WEIGHTS, message, pool_of, run_at


def _hang(url: str, run: str) -> None:
    with pool_of(run_at(url, run)) as pool:
        print("gathered", *(f"{n:g}" for n in pool.gather().reward[0, ::2]), flush=True)
        time.sleep(600)


def _train(url: str, run: str, folder: Path) -> None:
    with (
        pool_of(run_at(url, run), policy_lag=10_000) as pool,
        open(folder / str(os.getpid()), "a") as file,
    ):
        while True:
            rollout = pool.gather()
            published = pool.weights.publish(WEIGHTS.arrays, pool.version)
            while published.outcome == "conflict":
                published = pool.weights.publish(WEIGHTS.arrays, published.version)
            if published.outcome == "done":
                file.write("".join(f"{n:g}\n" for n in rollout.reward[0, ::2].tolist()))
                file.flush()


def _sample(url: str, run: str) -> None:
    store = run_at(url, run)
    sampler, number, newest = store.join(2), 0, 0
    while True:
        appended = store.stream.append(sampler, number, message(sampler, number, newest))
        if appended is not None:
            newest, number = appended, number + 1
        time.sleep(0.01)


if __name__ == "__main__":
    url, run, kind, *more = sys.argv[1:]
    if kind == "hang":
        _hang(url, run)
    elif kind == "trainer":
        _train(url, run, Path(more[0]))
    else:
        _sample(url, run)
