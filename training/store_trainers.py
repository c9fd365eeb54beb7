"""Trainers that share a run in a sample store: each learns from fragments that no other one has.

A trainer takes the newest weights, learns from a batch, and publishes what it has made of them, all in
one step with the fragments that it has learned from. Where another trainer was faster, the changes of
both are put together (`learning.merging`), and that is published.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from agent import NotFinite, PPOAgent
from cluster.sampler import spec_of
from cluster.store.make import found_pool, join_pool, joined
from cluster.store.pool import StorePool
from cluster.store.run import Record, RunStore
from cluster.store.status import Status
from common import launched
from common.cores import usable_cores
from common.errors import UserError
from evaluation.follow import read_line, record
from learning.merging import merge
from learning.trainers import Joined, Shared, Trainers
from learning.undo import State
from rollout import Weights
from settings.config import Config
from settings.flags import read_flags
from settings.store_url import RUN_ID_CHARACTERS
from settings.stored_run import keep_id, kept_id
from training.writes import Writes

_LOOKS_EVERY_S = 0.2


class StoreTrainers(Trainers):
    """The trainers of a run in a store, as one of them sees them. Its `size` is 1: none waits.

    Args:
        at: makes the way to a run of the store, given its id.
        config: the settings that were given.
        say: prints a sentence for the user.

    Attributes:
        rank: 0 for the one that has founded the run: it logs, evaluates and saves. Of others, their
            process.
    """

    def __init__(
        self, at: Callable[[str], RunStore], config: Config, say: Callable[[str], None] = print
    ):
        self._at, self._given, self._say = at, config, say
        self.rank = 0 if config.join is None else os.getpid()
        self._joined: RunStore | None = None
        self._record: Record | None = None
        self._pool: StorePool | None = None
        self._version = -1  # of the weights that the agent has
        self._status: Status | None = None
        self._rates = (time.monotonic(), 0, 0)
        self._writes = Writes(lambda text: self._say(text))
        self._scores: list[bytes] = []  # of followers, which the disk has not taken yet

    def envs(self, config: Config) -> tuple[int, int]:
        """A batch of fragments has as many columns as the run has environments, whoever sends them."""
        return 0, config.env_num

    # --- how they begin
    def from_first(self, make: Callable[[], State | None]) -> State | None:
        """A trainer that joins reads the settings of the run in the store, and needs nothing else."""
        if self._given.join is None:
            return make()
        if self._record is not None:
            return None
        self._joined = store = self._at(self._given.join)
        deadline = time.monotonic() + self._given.store_timeout
        start = launched.start()
        while time.monotonic() < deadline:
            # a first trainer that was started with this one has to make it, or go on with it, before
            if store.record() is not None and start in (None, store.opened()):
                break
            time.sleep(_LOOKS_EVERY_S)
        self._record, config = joined(store, self._given.trust, "--join")
        own = read_flags(sys.argv[1:])
        return {}, {"config": config.to_dict() | own, "run_dir": str(Path("runs") / store.run)}

    def open_pool(
        self, config: Config, run_dir: Path, agent: PPOAgent, steps: int, say: Callable[[str], None]
    ) -> StorePool:
        """The pool of this trainer: of a new run, or of one that others are in.

        Args:
            steps: environment steps that the run has taken so far.
        """
        self._say, self._run_dir = say, run_dir
        spec = spec_of(agent.model, config)
        weights = Weights(agent.update, shared(agent))
        if self._joined is not None:
            assert self._record is not None
            self._pool = join_pool(self._joined, self._record, config, spec, weights, say)
            return self._pool
        samplers = config.samplers or _default_samplers(config)
        local = samplers if config.samplers is None else config.samplers
        run = launched.run_id() or kept_id(run_dir) or run_id(run_dir)
        keep_id(run_dir, run)
        store = self._at(run)
        self._pool = found_pool(
            store, config, spec, weights, samplers, local, steps, config.resume is not None, say
        )
        url = store.link.url
        say(
            f"run {store.run} in the store at {url}: `python train.py --store {url} --join {store.run}`"
            f" adds a trainer, `python -m cluster.store sample --store {url} --run {store.run}` a"
            f" sampler"
        )
        return self._pool

    def join(self, shared: Shared) -> Joined | None:
        """Wait until the run's normaliser has seen observations.

        Raises:
            UserError: where this trainer joins a run whose weights do not fit its network: it would
                publish its own over them.
        """
        pool = self._open
        while True:
            newest = pool.weights.newest()
            if newest is None and not self.leads:
                raise UserError(
                    "the run's weights cannot be taken over, so this trainer cannot join it: give it the"
                    " code of the run's network, or join again where the weights were damaged"
                )
            counts = [] if newest is None else _counts(newest.arrays)
            if all(counts):
                break
            if self.leads:
                return None
            pool.raise_if_ended()
            time.sleep(_LOOKS_EVERY_S)
        status = pool.status()
        return None if status is None else Joined(pool.version, status.steps)

    # --- while they learn
    @contextlib.contextmanager
    def updating(self, agent: PPOAgent) -> Iterator[None]:
        """Learn from the newest weights, and publish what comes of them."""
        pool = self._open
        if pool.version != self._version:
            newest = pool.weights.newest()
            if newest is not None:
                _take(agent, newest.arrays)
        self._version = agent.update = pool.version
        before = shared(agent)
        with agent.undo.on_failure():
            try:
                yield
            except NotFinite:
                pool.refuse("not_finite")
                raise
            mine = arrays = shared(agent)
            expected = self._version
            while True:
                published = pool.weights.publish(arrays, expected)
                if published.outcome != "conflict":
                    break
                newest, expected = pool.weights.newest(), pool.version
                if newest is not None:
                    arrays = merge(agent.model, before, mine, newest.arrays)
            if published.outcome == "done":
                if arrays is not mine:
                    _take(agent, arrays)
                self._version = agent.update = published.version
                return
            self._say(
                "an update is forgotten: this trainer was taken for dead, others have its fragments"
            )
            agent.undo.go_back()
        self._version = -1

    def count(self, before: int, steps: int, times: Mapping[str, float]) -> int:
        self._status = self._open.status()
        if self.leads:
            self._write_scores(self._open.take_scores())
        return before if self._status is None else self._status.steps

    def metrics(self) -> dict[str, float]:
        status = self._status
        if status is None:
            return {}
        shown = {
            f"trainer/{name}/{what}": float(value)
            for name, of in status.trainers.items()
            for what, value in of._asdict().items()
        }
        now, (then, appended, learned) = time.monotonic(), self._rates
        seconds = max(1e-9, now - then)
        self._rates = (now, status.appended, status.learned)
        return shown | {
            "store/depth": float(status.depth),
            "store/bytes": float(status.bytes),
            "store/appended": float(status.appended),
            "store/learned": float(status.learned),
            "store/dropped": float(sum(status.dropped.values())),
            "store/refused": float(sum(status.refused.values())),
            "store/gaps": float(status.gaps),
            "store/appended_per_s": (status.appended - appended) / seconds,
            "store/learned_per_s": (status.learned - learned) / seconds,
            "store/trainers_alive": float(sum(of.alive for of in status.trainers.values())),
        }

    def _write_scores(self, lines: list[bytes]) -> None:
        """Write what followers have scored into the run's folder; what the disk does not take waits."""
        lines, self._scores = [*self._scores, *lines], []
        for number, line in enumerate(lines):
            try:
                read = read_line(line)
            except ValueError as error:
                self._say(f"a follower's scores in the store are refused: {error}")
                continue
            with self._writes.attempt("followed.jsonl"):
                record(self._run_dir, read)
            if self._writes.failing:
                self._scores = lines[number:]
                return

    # --- how they end
    def end_run(self) -> None:
        if self.leads and self._pool is not None:
            self._write_scores(self._pool.end())
            if self._scores:
                self._say(f"followed.jsonl lacks {len(self._scores)} scores of followers")

    @property
    def _open(self) -> StorePool:
        assert self._pool is not None, "the pool has not been opened"
        return self._pool


def shared(agent: PPOAgent) -> dict[str, np.ndarray]:
    """What the trainers of a store have in common: the weights, and the scales of rewards."""
    return agent.weights().arrays | agent.rewards.scales()


def _take(agent: PPOAgent, shared: Mapping[str, np.ndarray]) -> None:
    agent.model.set_weights(shared)
    agent.rewards.set_scales(shared)


def run_id(run_dir: Path) -> str:
    """The id of the run of a folder, which it has also when it goes on."""
    folder = run_dir.resolve()
    name = re.sub(f"[^{RUN_ID_CHARACTERS}]", "-", folder.name)[:48]
    return f"{name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"


def _default_samplers(config: Config) -> int:
    return dataclasses.replace(config, trainers=1).default_samplers(max(1, usable_cores()))


def _counts(arrays: Mapping[str, np.ndarray]) -> list[bool]:
    """Of each running moment in some weights, whether it has seen a row."""
    return [bool(array) for name, array in arrays.items() if name.endswith("moments.count")]
