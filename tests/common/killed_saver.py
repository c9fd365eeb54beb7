"""Processes that are killed while they save checkpoints, time and again in one folder.

    python -m tests.common.killed_saver FOLDER KILLS

Each is forked, saves as fast as it can, the newest and the best, and is killed at a random moment.
After each of them the folder has to be as `common.checkpoint` promises. Prints how often it was,
and how often the kill left a temporary file or a replaced one behind.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from common import checkpoint

ARRAYS = {"a": np.zeros(30_000), "b": np.ones((3, 5), np.float32)}


def save(folder: Path, update: int) -> None:
    """Save the newest and the best; every third update replaces the one before, as a resume may."""
    number = update - update % 3
    checkpoint.save(folder, number, ARRAYS, {"update": update})
    checkpoint.save_best(folder, number, ARRAYS, {"update": update})


def updates(folder: Path) -> list[int]:
    """Of the newest, of what `last` points at, and of the best: those that a resume goes on from.

    Raises:
        AssertionError: where one of them is damaged.
    """
    saved, complaints = checkpoint.load_newest(folder)
    assert complaints == []
    named = (checkpoint.load(folder / name) for name in ("last", "best"))
    return [saved.state["update"], *(one.state["update"] for one in named)]


def main(folder: Path, kills: int) -> None:
    choose, resumed, left_behind = random.Random(0), 0, 0
    save(folder, 3)
    start = time.monotonic()
    save(folder, 3)
    longest_s = 4 * (time.monotonic() - start)
    before = updates(folder)
    for name in (".update-00000099.tmp", ".best-000000000099.tmp"):  # of earlier kills, elsewhere
        (folder / name).mkdir()
    (folder / ".best.tmp").symlink_to("nothing")
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            for number in itertools.count(max(before) + 1):
                save(folder, number)
        time.sleep(choose.uniform(0, longest_s))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left_behind += any(folder.glob(".*"))
        found = updates(folder)
        resumed += all(now >= then for now, then in zip(found, before, strict=True))
        before = found  # what was saved is never lost
    update = max(before) + 3
    save(folder, update)
    assert updates(folder) == [update] * 3
    assert not list(folder.glob(".*"))
    print(resumed, left_behind)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
