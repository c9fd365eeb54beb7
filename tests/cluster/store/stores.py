"""Runs in a store, with fragments that no environment has made, for the tests of this folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np

from cluster.store.address import Link
from cluster.store.embedded import EmbeddedServer, carried, start
from cluster.store.fragment import pack_fragment
from cluster.store.make import found_pool
from cluster.store.pool import StorePool
from cluster.store.run import Record, RunStore
from cluster.store.shared_weights import found
from cluster.store.status import Status
from rollout import Rollout, RolloutSpec, Weights
from settings.config import Config
from settings.store_url import PASSWORD, parse
from tests.cluster.pools import learners_side, toy

SPEC = RolloutSpec(4, (3,), "float32", (), "int64")
CONFIG = Config(
    env="CartPole-v1", env_num=4, samplers=2, rollout_steps=4, minibatch_size=16, policy_lag=2
)
RANGES = [(0, 2), (2, 4)]
WEIGHTS = Weights(0, {"w": np.arange(4.0, dtype=np.float32)})
_numbers = itertools.count()


def run_at(url: str, run: str | None = None, timeout: float = 20.0, said: Any = print) -> RunStore:
    """A run of the name given, or of one that no other test has."""
    return RunStore(Link(url, timeout, said), run or f"run-{next(_numbers)}")


def founded(url: str, fragments: int = 8, size: int = 2**20, run: str | None = None) -> RunStore:
    store = run_at(url, run)
    assert store.found(Record(CONFIG.to_dict(), 2), WEIGHTS, fragments, size)
    return store


def message(sampler: int, number: int, version: int = 0, **changes: Any) -> bytes:
    """A fragment whose rewards say which it is."""
    rollout = Rollout.empty(changes.pop("spec", SPEC), 2)
    rollout.reward[:] = 1000 * sampler + number
    rollout.valid[:] = True
    envs = RANGES[sampler % 2]
    return pack_fragment(sampler, number, version, False, envs, [], rollout, False)


@contextlib.contextmanager
def pool_of(store: RunStore, said: Any = print, **settings: Any) -> Iterator[StorePool]:
    """A trainer of a run, with fragments of `message`; it makes the run where it is not there."""
    config = Config(**CONFIG.to_dict() | settings)
    record = Record(config.to_dict(), 2)
    found(store, record, config, WEIGHTS)
    with contextlib.closing(StorePool(store, record, config, SPEC, WEIGHTS, None, said)) as pool:
        yield pool


@contextlib.contextmanager
def real_pool(
    url: str, env: str, local: int, said: Any = print, **settings: Any
) -> Iterator[tuple[StorePool, Config, Weights]]:
    """A trainer of a run over toy environments, with sampler processes of its own."""
    sizes: dict[str, Any] = {"samplers": 2, "policy_lag": 4, "store": url}
    config = toy(env, **(sizes | settings))
    spec, weights = learners_side(config)
    assert config.samplers is not None
    store = run_at(url, None, said=said)
    with contextlib.closing(
        found_pool(store, config, spec, weights, config.samplers, local, 0, False, said)
    ) as pool:
        yield pool, config, weights


def is_conserved(status: Status) -> bool:
    gone = status.learned + sum(status.dropped.values()) + sum(status.refused.values())
    return status.appended == gone + status.depth


class Restarted:
    """A server that `close` ends."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self._process = process

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def started_again(server: EmbeddedServer) -> Restarted:
    """Another server, which is empty, at the same port and with the same password."""
    return Restarted(start(carried(), parse(server.url).port, os.environ[PASSWORD]))
