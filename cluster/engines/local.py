"""Samplers as local processes. Arrays lie in shared memory, messages go over a connection.

A sampler process consumes requests (messages) and weights (shared memory), produces its columns of
a rollout (shared memory) and answers (messages), and waits for nothing but the next request. It
ends when its connection closes, so none outlives the learner, however the learner ends.
"""

from __future__ import annotations

import contextlib
import os
import selectors

import numpy as np

from cluster import wire
from cluster.child import Child, ChildEnded, answer_all, close_all, parent
from cluster.engines.base import Engine, Part
from cluster.pool import Lost, Request
from cluster.sampler import Sampler
from cluster.session import PROGRESS, Session, pack_hello, read_answer
from cluster.shared_memory import SharedMemory
from rollout import Rollout, RolloutSpec, Weights
from settings.config import Config

_WEIGHTS_ROOM = 4096  # bytes: the version's digits make the header of some weights longer


class LocalEngine(Engine):
    """Sampler processes on this machine.

    Args:
        weights: any of the model's, for their size.

    Raises:
        OutOfSharedMemory: where the machine has not the memory for two rollouts.
    """

    name = "local"

    def __init__(
        self,
        config: Config,
        spec: RolloutSpec,
        samplers: int,
        weights: Weights,
        envs: tuple[int, int] | None = None,
    ):
        super().__init__(config, spec, samplers, envs)
        self._rollouts = SharedMemory(2 * _layout(spec, self.width)[1])
        self.slots: list[Rollout] = _slots(self._rollouts, spec, self.width)
        self._columns = [[slot.columns(*own) for own in self.columns] for slot in self.slots]
        # in lockstep all samplers are idle when weights are written, so one block does for all
        size = len(_pack(weights)) + _WEIGHTS_ROOM
        blocks = samplers if config.policy_lag > 1 else 1
        self._blocks = [SharedMemory(size) for _ in range(blocks)]
        self._written: list[Weights | None] = [None] * blocks  # what each block holds
        self._packed_weights: tuple[Weights, bytes] | None = None
        self._selector = selectors.DefaultSelector()
        self._waker = os.eventfd(0)
        self._selector.register(self._waker, selectors.EVENT_READ, None)
        self._children: dict[int, Child] = {}
        for index in range(samplers):
            self.start(index)

    def _start(self, index: int) -> None:
        block = self._blocks[index % len(self._blocks)]
        # the learner is waited for by all: with fewer cores than processes it goes first
        child = Child(__name__, [self._rollouts.descriptor, block.descriptor], niceness=5)
        self._children[index] = child
        with contextlib.suppress(ChildEnded):  # `answered` reports it
            child.send(pack_hello(self.config, *self.ranges[index], index, envs=self.envs))
        self._selector.register(child, selectors.EVENT_READ, index)

    def _end(self, index: int) -> None:
        child = self._children.pop(index, None)
        if child is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(child)
            child.kill()

    def _send(self, index: int, request: Request) -> None:
        self._write_weights(index % len(self._blocks))
        with contextlib.suppress(ChildEnded):  # `answered` reports it
            self._children[index].send(self._message(request, None))

    def _write_weights(self, block: int) -> None:
        weights = self._weights
        assert weights is not None, "no weights were published"
        if self._written[block] is weights:
            return
        if self._packed_weights is None or self._packed_weights[0] is not weights:
            self._packed_weights = (weights, _pack(weights))
        packed = self._packed_weights[1]
        self._blocks[block].view()[: len(packed)] = packed
        self._written[block] = weights

    def answered(self, timeout: float | None) -> list[int]:
        ready = []
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                os.eventfd_read(self._waker)
                continue
            message = self._read(key.data)
            if message is not None and self.note(key.data, message):
                ready.append(key.data)
        return ready

    def _read(self, index: int) -> bytes | Lost | None:
        """A message, or the end, of a sampler; None where the message has not come whole yet."""
        child = self._children[index]
        try:
            return child.receive() if child.poll() else None
        except ChildEnded as ended:
            self._selector.unregister(child)  # it would be ready for ever
            return Lost(str(ended))

    def _part(self, index: int, request: Request, message: bytes | memoryview) -> Part:
        answer = read_answer(message)
        columns = self._columns[request.fragment % 2][index]
        columns.raw_sps = answer.raw_sps
        return Part(columns, answer.episodes, answer.environments)

    def wake(self) -> None:
        os.eventfd_write(self._waker, 1)

    def close(self) -> None:
        self._selector.close()
        close_all(self._children.values())
        os.close(self._waker)
        self.slots, self._columns = [], []
        for memory in (self._rollouts, *self._blocks):
            memory.close()


class LearnersMemory:
    """The learner's shared memory, in a sampler process.

    Args:
        rollouts, weights: descriptors of the two blocks.
    """

    def __init__(self, rollouts: int, weights: int):
        self._rollouts = SharedMemory.of(rollouts)
        self._weights = SharedMemory.of(weights).view()

    def weights(self) -> dict[str, np.ndarray]:
        return wire.unpack(self._weights, verify=False)[1]

    def columns(self, sampler: Sampler, first: int, last: int) -> list[Rollout]:
        slots = _slots(self._rollouts, sampler.spec, last - first)
        return [slot.columns(sampler.first - first, sampler.last - first) for slot in slots]


def serve() -> None:
    """Run a sampler process; its descriptors are those of the rollouts and of the weights."""
    connection, (rollouts, weights) = parent()
    session = Session(LearnersMemory(rollouts, weights))
    answer_all(connection, session.handle, lambda: session.progress, PROGRESS)
    session.close()


def _pack(weights: Weights) -> bytes:
    return wire.pack({"version": weights.version}, weights.arrays)


def _layout(spec: RolloutSpec, envs: int) -> tuple[dict[str, int], int]:
    """Offset of each array of a rollout in its slot, and the slot's size, in bytes."""
    offsets, size = {}, 0
    for name, (shape, dtype) in spec.arrays(envs).items():
        offsets[name] = size
        size += wire.aligned(int(np.prod(shape)) * dtype.itemsize)
    return offsets, size


def _slots(memory: SharedMemory, spec: RolloutSpec, envs: int) -> list[Rollout]:
    """The two rollouts that live in a block of shared memory."""
    offsets, size = _layout(spec, envs)
    view = memory.view()

    def array(slot: int, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        offset = slot * size + offsets[name]
        return np.frombuffer(view, dtype, int(np.prod(shape)), offset).reshape(shape)

    shapes = spec.arrays(envs).items()
    return [
        Rollout.of({name: array(slot, name, *shape) for name, shape in shapes}) for slot in range(2)
    ]
