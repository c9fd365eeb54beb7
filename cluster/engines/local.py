"""Samplers as local processes. Arrays travel through shared memory, control through a pipe.

A sampler process consumes requests (JSON over its pipe) and weights (shared memory), produces its
columns of a rollout (shared memory), and waits for nothing else. It ends when its pipe closes, so
none outlives the learner, however that ends. The shared memory has no name: the kernel frees it
with the last process that holds it.
"""

from __future__ import annotations

import contextlib
import json
import traceback
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from cluster import wire
from cluster.child import Child, ChildEnded, close_all, parent
from cluster.pool import Request, SamplerError, SamplerPool
from cluster.sampler import Sampler, TimedEpisode
from cluster.shared_memory import SharedMemory
from envs import BadEnvironment
from rollout import Rollout, RolloutSpec, Weights
from settings.config import Config


def _slot_layout(spec: RolloutSpec, envs: int) -> tuple[dict[str, int], int]:
    """Offset of each array of a rollout in its block, 64-byte aligned, and the block's size."""
    offsets, size = {}, 0
    for name, (shape, dtype) in spec.arrays(envs).items():
        offsets[name] = size
        size += -(-int(np.prod(shape)) * dtype.itemsize // 64) * 64
    return offsets, size


def _slots(memory: SharedMemory, spec: RolloutSpec, envs: int) -> list[Rollout]:
    """The two rollouts that live in a block of shared memory."""
    offsets, size = _slot_layout(spec, envs)
    view = memory.view()

    def array(slot: int, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        offset = slot * size + offsets[name]
        return np.frombuffer(view, dtype, int(np.prod(shape)), offset).reshape(shape)

    shapes = spec.arrays(envs).items()
    return [
        Rollout.of({name: array(slot, name, *shape) for name, shape in shapes}) for slot in range(2)
    ]


class LocalPool(SamplerPool):
    """Sampler processes on this machine."""

    name = "local"

    def __init__(self, config: Config, spec: RolloutSpec, samplers: int, weights: Weights):
        self._rollouts = SharedMemory(2 * _slot_layout(spec, config.env_num)[1])
        # every version of the weights packs to the same size: only the version's digits vary
        size = len(_pack(weights)) + 4096
        # all samplers read one copy; those that run asynchronously, each its own
        copies = samplers if config.policy_lag > 1 else 1
        self._weights = [SharedMemory(size) for _ in range(copies)] * (samplers // copies)
        self._published: Weights | None = None
        self._packed = b""
        self._written: dict[int, bytes] = {}  # what each copy holds, by its descriptor
        super().__init__(config, spec, samplers)
        self._children = [
            self._start(index, first, last) for index, (first, last) in enumerate(self.ranges)
        ]
        # those that have not said yet that they stand: the learner has something to do meanwhile
        self._starting = set(range(samplers))

    def _allocate(self) -> list[Rollout]:
        return _slots(self._rollouts, self.spec, self.config.env_num)

    def _start(self, index: int, first: int, last: int) -> Child:
        weights = self._weights[index]
        child = Child("cluster.engines.local", [self._rollouts.descriptor, weights.descriptor])
        hello = {
            "config": self.config.to_dict(), "first": first, "last": last, "index": index,
            "rollouts": self._rollouts.size, "weights": weights.size,
        }  # fmt: skip
        child.send(json.dumps(hello).encode())
        return child

    def _answer(self, index: int) -> list[TimedEpisode]:
        try:
            answer: dict[str, Any] = json.loads(self._children[index].receive())
        except ChildEnded as error:
            raise SamplerError(f"sampler {index} is lost: {error}") from None
        if "error" in answer:
            raise SamplerError(f"sampler {index}: {answer['error']}")
        return [TimedEpisode(*row) for row in answer["episodes"]]

    def _publish(self, weights: Weights) -> None:
        if self._published is not weights:
            self._published, self._packed = weights, _pack(weights)

    def _send(self, index: int, request: Request) -> None:
        memory, packed = self._weights[index], self._packed
        if self._written.get(memory.descriptor) is not packed:
            memory.view()[: len(packed)] = packed
            self._written[memory.descriptor] = packed
        with contextlib.suppress(ChildEnded):  # `_receive` reports it
            self._children[index].send(json.dumps(request._asdict()).encode())

    def _receive(self, index: int, request: Request) -> list[TimedEpisode]:
        if index in self._starting:
            self._starting.remove(index)
            self._answer(index)
        return self._answer(index)

    def answered(self, indices: list[int], timeout: float) -> list[int]:
        descriptors = {self._children[index].fileno(): index for index in indices}
        return [descriptors[ready] for ready in wait(list(descriptors), timeout)]  # pyright: ignore

    def close(self) -> None:
        close_all(self._children)


def _pack(weights: Weights) -> bytes:
    return wire.pack({"version": weights.version}, weights.arrays)


def serve() -> None:
    """A sampler process. Its descriptors are those of the rollouts and of the weights."""
    connection, descriptors = parent()

    def answer(**content: Any) -> None:
        connection.send_bytes(json.dumps(content).encode())

    with contextlib.suppress(EOFError, ConnectionError):  # the learner closed the pipe, or ended
        hello = json.loads(connection.recv_bytes())
        try:
            import torch

            torch.set_num_threads(1)
            config = Config(**hello["config"])
            sampler = Sampler(config, hello["first"], hello["last"], hello["index"])
            slots = _slots(
                SharedMemory(hello["rollouts"], descriptors[0]), sampler.spec, config.env_num
            )
            columns = [slot.columns(sampler.first, sampler.last) for slot in slots]
            weights = SharedMemory(hello["weights"], descriptors[1]).view()
            answer(episodes=[])
            while True:
                request = Request(**json.loads(connection.recv_bytes()))
                sampler.model.set_weights(wire.unpack(weights)[1])
                out = columns[request.fragment % 2]
                answer(episodes=sampler.collect(request.fragment, request.reset, out))
        except (EOFError, ConnectionError):
            raise
        except BadEnvironment as error:
            answer(error=str(error))
        except Exception:
            answer(error=traceback.format_exc())
