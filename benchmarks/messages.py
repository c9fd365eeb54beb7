"""What a fragment costs on its way through a store, as this project sends it and as others have.

`exchange.py` is the command. The fragments are real ones. What is compared sends the same arrays as a
Python list of steps, each a list, pickled and compressed by zlib, through LPUSH and BRPOP. Unpickling
runs code that the bytes name; here this process has made the bytes itself.
"""

from __future__ import annotations

import contextlib
import pickle
import statistics
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from cluster.sampler import Sampler
from cluster.store.address import Link
from cluster.store.embedded import EmbeddedServer
from cluster.store.fragment import pack_fragment, read_fragment
from cluster.store.run import Record, RunStore
from rollout import Rollout, RolloutSpec, Weights
from settings.config import Config

REAL = {  # environment -> environments, steps: fragments of about 1 KB, 100 KB and 7 MB
    "CartPole-v1": (1, 32), "HalfCheetah-v4": (4, 256), "PongNoFrameskip-v4": (8, 128),
}  # fmt: skip
PARTS = ("pack", "append", "take", "unpack")  # taking a fragment also removes it


def collected(env: str, envs: int, steps: int) -> tuple[RolloutSpec, Rollout]:
    """A fragment [steps, envs] of an environment, and its shapes."""
    network = {"PongNoFrameskip-v4": "nature_cnn"}.get(env, "mlp")
    config = Config(
        env=env, env_num=envs, samplers=1, rollout_steps=steps, batch_size=envs * steps,
        minibatch_size=envs * steps, network=network, store="embedded", policy_lag=2,
    )  # fmt: skip
    sampler = Sampler(config, 0, envs)
    out = Rollout.empty(sampler.spec, envs)
    for fragment in range(2):  # the first one begins with screens that are all alike
        sampler.collect(fragment, fragment == 0, out)
    sampler.close()
    return sampler.spec, out


def by_steps(rollout: Rollout) -> tuple[list[list[Any]], list[np.ndarray]]:
    """A rollout as a list of steps, each a list of what the step has of every array; what is left."""
    arrays, count = list(rollout.arrays().values()), len(rollout.reward)
    steps = [[array[t] for array in arrays if len(array) >= count] for t in range(count)]
    return steps, [rollout.obs[-1], *(array for array in arrays if len(array) < count)]


def stacked(steps: list[list[Any]]) -> list[np.ndarray]:
    """Arrays [T, ...] of a list of steps, as a learner needs them."""
    return [np.stack(column) for column in zip(*steps, strict=True)]


Way = Callable[[], tuple[int, list[float]]]
"""Sends a fragment once: its bytes, and the time after each of `PARTS` and before them [s]."""


def ours(store: RunStore, spec: RolloutSpec, rollout: Rollout, compress: bool) -> Way:
    envs, sampler = (0, rollout.reward.shape[1]), store.join(1)
    number = 0

    def send() -> tuple[int, list[float]]:
        nonlocal number
        times = [time.perf_counter()]
        message = pack_fragment(sampler, number, 0, False, envs, [], rollout, compress)
        times.append(time.perf_counter())
        store.stream.append(sampler, number, message)
        times.append(time.perf_counter())
        _, [(id_, message)] = store.stream.read("trainer", 1)
        store.stream.drop("trainer", "dropped:old", [id_])
        times.append(time.perf_counter())
        read_fragment(id_, message, spec, [envs], 0)
        times.append(time.perf_counter())
        number += 1
        return len(message), times

    return send


def pickled(store: RunStore, rollout: Rollout) -> Way:
    content, client = by_steps(rollout), store.link.client

    def send() -> tuple[int, list[float]]:
        times = [time.perf_counter()]
        message = zlib.compress(pickle.dumps(content, pickle.HIGHEST_PROTOCOL))
        times.append(time.perf_counter())
        client.lpush("pickled", message)
        times.append(time.perf_counter())
        answer: Any = client.brpop(["pickled"], 5)
        times.append(time.perf_counter())
        steps, _ = pickle.loads(zlib.decompress(answer[1]))
        stacked(steps)
        times.append(time.perf_counter())
        return len(message), times

    return send


def measured(way: Way, seconds: float) -> dict[str, float]:
    """Bytes, and the median milliseconds of each part, of a fragment sent for so many seconds."""
    deadline, rows, size = time.perf_counter() + seconds, [], 0
    while len(rows) < 3 or time.perf_counter() < deadline:
        size, times = way()
        rows.append(np.diff(times) * 1e3)
    medians = {part: statistics.median(r[n] for r in rows) for n, part in enumerate(PARTS)}
    return {"bytes": size, **medians, "ms": statistics.median(float(r.sum()) for r in rows)}


def compared(seconds: float) -> list[dict[str, Any]]:
    """A row for each environment of `REAL` and each way; see `measured`. `ratio`: to this project's."""
    rows = []
    with contextlib.closing(EmbeddedServer()) as server:
        for env, (envs, steps) in REAL.items():
            spec, rollout = collected(env, envs, steps)
            with contextlib.closing(RunStore(Link(server.url, 20.0, print), env)) as store:
                store.found(Record({}, 1), Weights(0, {}), 8, 2**30)
                ways = {
                    "this project": ours(store, spec, rollout, False),
                    "this project, zstd": ours(store, spec, rollout, True),
                    "pickle and zlib": pickled(store, rollout),
                }
                first = 0.0
                for name, way in ways.items():
                    row = measured(way, seconds)
                    first = first or row["ms"]
                    rows.append({"env": env, "way": name, **row, "ratio": row["ms"] / first})
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as lines of Markdown."""
    return [
        "| fragment of | way | bytes | pack, ms | append, ms | take, ms | unpack, ms | in all, ms | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {row['env']} | {row['way']} | {row['bytes']:,} | {row['pack']:.3f}"
            f" | {row['append']:.3f} | {row['take']:.3f} | {row['unpack']:.3f} | {row['ms']:.3f}"
            f" | {row['ratio']:.2f} |"
            for row in rows
        ),
    ]
