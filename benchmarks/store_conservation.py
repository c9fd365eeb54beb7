"""Whether a store loses fragments, or gives one twice: `python benchmarks/store_conservation.py`.

Trainers and samplers of a run in the embedded store (`store_crowd`) are killed at random instants, and
others take their places. Every one of them tells in a file what it has done. In the end each fragment
that was pushed must have been learned from once, or still be in the store; the exit code is 1 otherwise.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import runs

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the run is one of the tests'

from benchmarks.store_crowd import named  # noqa: E402
from cluster.store.embedded import EmbeddedServer  # noqa: E402
from cluster.store.fragment import read_fragment  # noqa: E402
from cluster.store.run import RunStore  # noqa: E402
from tests.cluster.store.stores import RANGES, SPEC, founded, is_conserved  # noqa: E402

START_S = 120.0  # in which the first fragments are learned from
END_S = 60.0  # in which a trainer learns from what is left
SAYS_EVERY_S = 15.0
LOOKS_EVERY_S = 0.05


@dataclass
class Arguments:
    """Kill trainers and samplers of a run in a store, and count its fragments."""

    minutes: float = 5.0
    """How long they are killed."""
    trainers: int = 2
    """How many there are at a time."""
    samplers: int = 3
    """How many there are at a time."""
    life: float = 5.0
    """Seconds from one kill to the next, on average."""
    seed: int = 1
    """Of who is killed, and when."""


class Told(NamedTuple):
    """What the processes have told.

    `learned`: fragments, with how often; `open`: groups of which a killed trainer did not tell whether
    it has published them; `appended`: fragments that are in the store for certain.
    """

    learned: Counter[str]
    open: list[list[str]]
    appended: set[str]


def read_told(folder: Path) -> Told:
    told = Told(Counter(), [], set())
    for path in folder.iterdir():
        tried: list[str] = []
        for line in path.read_text().splitlines():
            word, *names = line.split()
            if word == "tries":
                tried = names
                continue
            if word == "appended":
                told.appended.update(names)
            elif word == "learned":
                told.learned.update(tried)
            tried = []
        if tried:
            told.open.append(tried)
    return told


def pending(store: RunStore) -> list[str]:
    """The fragments that are still in the store."""
    entries: Any = store.link.client.xrange(f"dppo:{{{store.run}}}:stream")
    newest, found = store.version(), []
    for id_, message in store.stream.fetch([id_ for id_, _ in entries]):
        found += named(read_fragment(id_, message, SPEC, RANGES, newest).rollout)
    return found


def judged(store: RunStore, folder: Path) -> bool:
    """Print the sums, and what is wrong; whether nothing is."""
    status, told, left = store.status(), read_told(folder), pending(store)
    dropped, refused = sum(status.dropped.values()), sum(status.refused.values())
    print(
        f"pushed {status.appended} = learned {status.learned} + dropped {dropped} + refused"
        f" {refused} + pending {status.depth}"
    )
    # a trainer that was killed between its publication and its word has learned from them too
    untold = [
        group for group in told.open if not set(group) & (told.learned.keys() | set(left))
    ]  # fmt: skip
    learned = Counter(told.learned)
    for group in untold:
        learned.update(set(group) - learned.keys())
    twice = sorted(name for name, count in (learned + Counter(left)).items() if count > 1)
    lost = sorted(told.appended - learned.keys() - set(left))
    print(
        f"{len(learned)} unique ids were learned from, {sum(map(len, untold))} of them by trainers"
        f" that were killed before they told; {len(lost)} lost, {len(twice)} twice"
    )
    wrong = {
        "the sum is wrong": not is_conserved(status),
        f"lost: {' '.join(lost[:10])}": bool(lost),
        f"twice: {' '.join(twice[:10])}": bool(twice),
        "the store has counted others as learned": len(learned) != status.learned,
        "fragments were dropped or refused": dropped + refused > 0,
        "nothing was learned from": status.learned == 0,
    }
    for sentence, holds in wrong.items():
        if holds:
            print(sentence)
    return not any(wrong.values())


class Crowd:
    """The processes of a run, by their places. A context, whose end kills them."""

    def __init__(self, url: str, run: str, folder: Path, places: Iterable[str]):
        self._command = [sys.executable, "-m", "benchmarks.store_crowd", url, run]
        self._folder = folder
        self._processes = {place: self._start(place) for place in places}
        self.failed: list[str] = []  # places whose processes have ended by themselves

    def _start(self, place: str) -> subprocess.Popen[bytes]:
        kind = place.split()[0]
        return subprocess.Popen([*self._command, kind, str(self._folder)], cwd=ROOT)

    def kill(self, place: str, replace: bool) -> None:
        process = self._processes.pop(place)
        if process.poll() is not None:
            self.failed.append(place)
        process.kill()
        process.wait()
        if replace:
            self._processes[place] = self._start(place)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *error: object) -> None:
        for place in list(self._processes):
            self.kill(place, replace=False)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition, but no longer than so many seconds: `judged` sees what is missing."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(LOOKS_EVERY_S)


def disturb(given: Arguments, crowd: Crowd, places: list[str], store: RunStore) -> None:
    """Kill processes for as long as was asked, once they are at work."""
    wait_for(lambda: store.status().learned > 0, START_S)
    generator, now = random.Random(given.seed), time.monotonic()
    end, said, kills = now + 60 * given.minutes, now, 0
    while time.monotonic() < end:
        time.sleep(min(generator.expovariate(1 / given.life), end - time.monotonic()))
        crowd.kill(generator.choice(places), replace=True)
        kills += 1
        if time.monotonic() - said > SAYS_EVERY_S:
            said, status = time.monotonic(), store.status()
            print(f"{kills} kills: pushed {status.appended}, learned {status.learned}", flush=True)
    print(f"{kills} kills in {given.minutes:g} minutes")


def main() -> None:
    import tyro

    given = tyro.cli(Arguments)
    samplers = [f"sampler {n}" for n in range(given.samplers)]
    trainers = [f"trainer {n}" for n in range(given.trainers)]
    with contextlib.closing(EmbeddedServer()) as server, tempfile.TemporaryDirectory() as name:
        folder, store = Path(name), founded(server.url, fragments=1000)
        with Crowd(server.url, store.run, folder, samplers + trainers) as crowd:
            disturb(given, crowd, samplers + trainers, store)
            for place in (*samplers, *trainers[1:]):
                crowd.kill(place, replace=False)
            # one trainer learns from what is left, and from what the dead ones had: several could each
            # hold one fragment, and wait for another
            wait_for(lambda: store.status().depth < len(RANGES), END_S)
        good = judged(store, folder)
        if crowd.failed:
            print(f"ended by themselves: {', '.join(crowd.failed)}; what they printed says why")
        store.close()
    sys.exit(0 if good and not crowd.failed else 1)


if __name__ == "__main__":
    with runs.command("store_conservation.py"):
        main()
