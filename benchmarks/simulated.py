"""Simulated samplers and trainers, each in a process: they sleep where real ones would compute.

What they say to one another is real: fragments, weights and gradients of the size asked for go through
the store, through torch.distributed, or through shared memory. `trainers.py` starts them.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster.store.address import Link
from cluster.store.fragment import pack_fragment
from cluster.store.pool import StorePool
from cluster.store.run import Record, RunStore
from cluster.store.shared_weights import found
from rollout import Rollout, RolloutSpec, Weights
from settings.config import Config

PER_UPDATE = 4  # fragments
STEPS = 16  # rows of a fragment
RANGES = [(k, k + 1) for k in range(PER_UPDATE)]  # of environments
TIMEOUT_S = 30.0  # for the store


class Sizes(NamedTuple):
    """What is simulated.

    Args:
        fragment, weights, gradient: bytes.
        fragment_s: seconds in which a sampler makes a fragment.
        update_s: seconds in which a trainer learns from `PER_UPDATE` fragments.
        step_s: seconds in which a trainer computes a gradient.
    """

    fragment: int = 100_000
    weights: int = 100_000
    gradient: int = 100_000
    fragment_s: float = 0.1
    update_s: float = 0.1
    step_s: float = 0.02


class Signals(NamedTuple):
    """`ready`: all processes are there; `over`: they are to end."""

    ready: Barrier
    over: Event


def spec_of(sizes: Sizes) -> RolloutSpec:
    return RolloutSpec(STEPS, (1, 1, sizes.fragment // (STEPS + 1)), "uint8", (), "int64")


def weights_of(nbytes: int) -> Weights:
    return Weights(0, {"w": np.zeros(nbytes // 4, np.float32)})


def found_run(url: str, run: str, sizes: Sizes) -> None:
    """Make a run, of which many fragments may wait and none is too old."""
    store = RunStore(Link(url, TIMEOUT_S, print), run)
    found(store, Record({}, PER_UPDATE), _config(), weights_of(sizes.weights))
    store.close()


def _config() -> Config:
    return Config(
        env_num=PER_UPDATE, samplers=PER_UPDATE, rollout_steps=STEPS,
        batch_size=PER_UPDATE * STEPS, minibatch_size=STEPS, policy_lag=10**6, store="embedded",
        store_fragments=256,
    )  # fmt: skip


def sample(url: str, run: str, count: int, sizes: Sizes, signals: Signals) -> None:
    """Some samplers, each a thread: append a ready-made fragment every `fragment_s`."""
    rollout = Rollout.empty(spec_of(sizes), 1)
    rollout.obs[:] = np.random.default_rng(0).integers(0, 256, rollout.obs.shape)
    rollout.valid[:] = True
    stores = [RunStore(Link(url, TIMEOUT_S, print), run) for _ in range(count)]
    threads = [
        threading.Thread(target=_sample, args=(store, rollout, sizes, signals.over))
        for store in stores
    ]
    signals.ready.wait()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _sample(store: RunStore, rollout: Rollout, sizes: Sizes, over: Event) -> None:
    sampler, number, version = store.join(PER_UPDATE), 0, 0
    envs = RANGES[sampler % PER_UPDATE]
    due = time.perf_counter() + sizes.fragment_s * np.random.default_rng(sampler).random()
    while not over.wait(max(0.0, due - time.perf_counter())):
        message = pack_fragment(sampler, number, version, False, envs, [], rollout, False)
        newest = store.stream.append(sampler, number, message)
        if newest is None:  # full: trainers are waited for
            due = time.perf_counter() + sizes.fragment_s / 5
        else:
            number, version = number + 1, newest
            due = max(due + sizes.fragment_s, time.perf_counter() - sizes.fragment_s)


def learn(url: str, run: str, rank: int, sizes: Sizes, signals: Signals, conflicts: Any) -> None:
    """A trainer: gather, sleep for `update_s`, publish; count how often others were faster."""
    weights = weights_of(sizes.weights)
    store = RunStore(Link(url, TIMEOUT_S, print), run)
    record = Record({}, PER_UPDATE)
    with contextlib.closing(
        StorePool(store, record, _config(), spec_of(sizes), weights, None, print)
    ) as pool:
        signals.ready.wait()
        while not signals.over.is_set():
            pool.gather()
            if pool.weights.newest() is None:
                raise RuntimeError("the weights in the store are damaged")
            expected = pool.version
            time.sleep(sizes.update_s)
            while pool.weights.publish(weights.arrays, expected).outcome == "conflict":
                conflicts[rank] += 1
                pool.weights.newest()  # a trainer puts its own changes on top of these
                expected = pool.version


def step_together(rank: int, ranks: int, folder: str, sizes: Sizes, signals: Signals,
                  steps: Any) -> None:  # fmt: skip
    """A synchronous trainer: sleep for `step_s`, sum the gradient with the others, and so on."""
    import torch
    from torch._C._distributed_c10d import FileStore

    from learning.linked import Linked

    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": str(ranks)}
    torch.set_num_threads(1)
    trainers = Linked(FileStore(str(Path(folder) / "store"), ranks), rank, ranks)
    gradient, ends = torch.zeros(sizes.gradient // 4), torch.zeros(1)
    signals.ready.wait()
    while not ends.item():  # all end at the same step
        time.sleep(sizes.step_s)
        trainers.sum(gradient)
        steps[rank] += 1
        if steps[rank] % 10 == 0:
            ends.fill_(float(signals.over.is_set()))
            trainers.sum(ends)
    trainers.close()


def step_alone(rank: int, ranks: int, folder: str, sizes: Sizes, signals: Signals,
               steps: Any) -> None:  # fmt: skip
    """A Hogwild trainer: read the model, sleep for `step_s`, add a step to it, and so on.

    Args:
        folder: in which the file `memory` stands for the block of memory that all map.
    """
    import torch

    from learning.hogwild import Hogwild
    from learning.trainers import Joined, Shared

    torch.set_num_threads(1)
    memory = os.open(Path(folder) / "memory", os.O_RDWR)
    trainers = Hogwild(rank, ranks, Path(folder), memory)
    model = torch.zeros(sizes.gradient // 4)
    trainers.join(Shared([model], [], []))
    trainers.share(Joined(0, 0))
    signals.ready.wait()
    while not signals.over.is_set():
        with trainers.stepping():
            time.sleep(sizes.step_s)
            model.add_(1e-6)
        steps[rank] += 1
    trainers.close()
