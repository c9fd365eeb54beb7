"""What an update, a step and a sampler cost while one size grows, each beside its line; for `scaling.py`.

A part is a function that returns points. A point's `work` is what its cost should follow: rows of a
batch, multiply-adds of a network, or 1 where nothing should change.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from gymnasium import spaces

from agent import PPOAgent
from algorithm import PPO
from cluster.engines.base import Engine, Part
from cluster.lockstep import LockstepPool
from cluster.make import make_pool
from cluster.pool import Request
from cluster.sampler import spec_of
from cluster.supervisor import Supervisor
from cluster.wire import pack, unpack
from envs import Spaces, make_vec_env, spaces_of
from model import make_model
from rollout import Rollout, RolloutSpec, Weights
from settings.config import Config

OBSERVATION, ACTIONS, WIDTH = 17, 6, 64
BATCH = 2048
_USUAL: dict[str, Any] = {"batch_size": BATCH, "minibatch_size": 256, "env_num": 64}


class Point(NamedTuple):
    """What one size costs: `value` in the part's unit."""

    part: str
    size: int
    value: float
    work: float


def update_ms(width: int = WIDTH, observation: int = OBSERVATION, **sizes: Any) -> float:
    """The median time of an update of one epoch on made-up data, in one thread, not compiled."""
    config = Config(update_epochs=1, compile="off", hidden_sizes=(width, width), **_USUAL | sizes)
    torch.set_num_threads(1)
    model = make_model(vectors(observation), config)
    agent = PPOAgent(PPO(model, config), config)
    rollout, times = random_rollout(spec_of(model, config), config.env_num), []
    for _ in range(6):
        start = time.perf_counter()
        agent.learn(rollout, 0.0)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[1:])


def vectors(observation: int) -> Spaces:
    return Spaces(
        spaces.Box(-1, 1, (observation,), np.float32), spaces.Box(-1, 1, (ACTIONS,), np.float32), 0
    )


def random_rollout(spec: RolloutSpec, envs: int) -> Rollout:
    rollout, generator = Rollout.empty(spec, envs), np.random.default_rng(0)
    rollout.obs[:] = generator.standard_normal(rollout.obs.shape, np.float32)
    rollout.reward[:] = generator.standard_normal(rollout.reward.shape)
    rollout.behaviour_log_prob[:] = -8.0
    rollout.valid[:] = True
    rollout.env_ranges = [(0, envs)]
    return rollout


def multiply_adds(width: int, observation: int) -> float:
    """Of a row through actor and critic."""
    return 2 * (observation * width + width * width) + width * (ACTIONS + 1)


def batch() -> list[Point]:
    sizes = [2**k for k in range(10, 17)]
    return [Point("batch", n, update_ms(batch_size=n), n) for n in sizes]


def width() -> list[Point]:
    sizes = [2**k for k in range(4, 11)]
    return [Point("width", n, update_ms(width=n), multiply_adds(n, OBSERVATION)) for n in sizes]


def observation() -> list[Point]:
    """By bytes; the batch moves, and the first layer grows with it."""
    sizes = [2**k for k in range(4, 15, 2)]
    return [
        Point("observation", 4 * n, update_ms(observation=n), multiply_adds(WIDTH, n))
        for n in sizes
    ]


def environments() -> list[Point]:
    """At one batch of 8,192 rows: more environments give shorter fragments."""
    sizes = [2**k for k in range(3, 13)]
    return [Point("environments", n, update_ms(env_num=n, batch_size=8192), 1) for n in sizes]


def robots() -> list[Point]:
    """HalfCheetahs that one sampler steps, in microseconds per step of one."""
    points = []
    for envs in [2**k for k in range(3, 13)]:
        vector = make_vec_env("HalfCheetah-v4", envs)
        vector.reset(seed=1)
        generator = np.random.default_rng(0)
        actions = generator.uniform(-1, 1, (8, envs, 6)).astype(np.float32)
        times = []
        for _ in range(max(2, 2048 // envs)):
            start = time.perf_counter()
            for action in actions:
                vector.step(action)
            times.append((time.perf_counter() - start) / len(actions) / envs * 1e6)
        points.append(Point("robots", envs, statistics.median(times), 1))
        vector.close()
    return points


class Simulated(Engine):
    """Samplers that answer at once, by messages that were made before."""

    name = "simulated"

    def __init__(self, config: Config, spec: RolloutSpec, samplers: int):
        super().__init__(config, spec, samplers)
        rollout = random_rollout(spec, config.env_num)
        self._made = [
            bytes(pack({"episodes": []}, rollout.columns(*own).arrays())) for own in self.columns
        ]

    def _send(self, index: int, request: Request) -> None:
        self._message(request, self._weights)

    def _part(self, index: int, request: Request, message: bytes | memoryview) -> Part:
        return Part(Rollout.of(unpack(message)[1]), [], None)

    def answered(self, timeout: float | None) -> list[int]:
        return [i for i in self._requests if self.note(i, self._made[i])]

    def wake(self) -> None: ...

    def close(self) -> None: ...

    def _start(self, index: int) -> None: ...

    def _end(self, index: int) -> None: ...


def samplers() -> list[Point]:
    """Milliseconds to ask simulated samplers for one batch and to put their messages together.

    Each message should cost the same.
    """
    points = []
    for count in [2**k for k in range(9)]:
        config = dataclasses.replace(Config(**_USUAL), env_num=256, samplers=count)
        model = make_model(vectors(OBSERVATION), config)
        engine = Simulated(config, spec_of(model, config), count)
        pool, times = LockstepPool(Supervisor(engine, print)), []
        weights = model.get_weights()
        for fragment in range(60):
            start = time.perf_counter()
            pool.request(Weights(fragment, weights), fragment, fragment == 0)
            pool.gather()
            times.append(1e3 * (time.perf_counter() - start))
        pool.close()
        points.append(Point("samplers", count, statistics.median(times[10:]), count))
    return points


def memory() -> list[Point]:
    """Megabytes that a local sampler of HalfCheetah holds: resident, and its share of shared pages."""
    points = []
    for count in (1, 2, 4, 8, 16):
        config = Config(
            env="HalfCheetah-v4", samplers=count, env_num=16, batch_size=1024, minibatch_size=256
        )
        model = make_model(spaces_of(config.env), config)
        weights = model.get_weights()
        pool = make_pool(config, model, Weights(0, weights))
        try:
            pool.request(Weights(0, weights), 0, True)
            pool.gather()
            for part in ("Rss", "Pss"):
                megabytes = [resident(pid, part) for pid in samplers_of_this_process()]
                assert len(megabytes) == count
                points.append(Point(part.lower(), count, statistics.median(megabytes), 1))
        finally:
            pool.close()
    return points


def samplers_of_this_process() -> list[int]:
    """The processes below this one that have none below them: not the nursery that forks samplers."""
    below = psutil.Process().children(recursive=True)
    return [process.pid for process in below if not process.children()]


def resident(pid: int, part: str) -> float:
    """A process's Rss or Pss, in MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{part}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{pid}/smaps_rollup has no {part}")


PARTS: dict[str, Callable[[], list[Point]]] = {
    part.__name__: part
    for part in (batch, width, observation, environments, robots, samplers, memory)
}
