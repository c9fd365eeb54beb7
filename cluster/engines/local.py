"""Samplers as local processes. Arrays travel through shared memory, control through a pipe.

A sampler process consumes requests (JSON over its pipe) and weights (shared memory), produces its
columns of a rollout (shared memory), and waits for nothing else. It ends when its pipe closes, so
none outlives the learner, however that ends. The shared memory has no name: the kernel frees it
with the last process that holds it.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from cluster import wire
from cluster.pool import Request, SamplerError, SamplerPool
from cluster.sampler import Sampler, TimedEpisode
from common.sources import ROOT
from envs import BadEnvironment
from rollout import Rollout, RolloutSpec, Weights
from settings.config import Config

_CLOSE_TIMEOUT_S = 2.0


class SharedMemory:
    """A block of anonymous memory that child processes can map by its file descriptor."""

    def __init__(self, size: int, descriptor: int | None = None):
        if descriptor is None:
            folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
            with tempfile.TemporaryFile(dir=folder) as file:
                file.truncate(size)
                descriptor = os.dup(file.fileno())
        self.descriptor, self.size = descriptor, size
        self._map = mmap.mmap(descriptor, size)

    def view(self) -> memoryview:
        return memoryview(self._map)


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
        self._processes: list[subprocess.Popen] = []
        self._connections: list[Connection] = []
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
        for index, (first, last) in enumerate(self.ranges):
            self._start(index, first, last)
        # those that have not said yet that they stand: the learner has something to do meanwhile
        self._starting = set(range(samplers))

    def _allocate(self) -> list[Rollout]:
        return _slots(self._rollouts, self.spec, self.config.env_num)

    def _start(self, index: int, first: int, last: int) -> None:
        import socket

        ours, theirs = socket.socketpair()
        weights = self._weights[index]
        descriptors = (theirs.fileno(), self._rollouts.descriptor, weights.descriptor)
        code = "from cluster.engines.local import serve; serve()"
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, *map(str, descriptors)],
            pass_fds=descriptors,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            process_group=0,  # a Ctrl-C is the learner's to handle
        )
        theirs.close()
        connection = Connection(ours.detach())
        hello = {
            "config": self.config.to_dict(), "first": first, "last": last, "index": index,
            "rollouts": self._rollouts.size, "weights": weights.size,
        }  # fmt: skip
        connection.send_bytes(json.dumps(hello).encode())
        self._processes.append(process)
        self._connections.append(connection)

    def _answer(self, index: int) -> list[TimedEpisode]:
        process = self._processes[index]
        try:
            answer: dict[str, Any] = json.loads(self._connections[index].recv_bytes())
        except (EOFError, ConnectionError):
            try:
                code: Any = process.wait(timeout=_CLOSE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                code = "unknown"
            reason = (
                f"was killed by signal {-code}"
                if isinstance(code, int) and code < 0
                else f"ended with code {code}"
            )
            raise SamplerError(f"sampler {index} (process {process.pid}) {reason}") from None
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
        with contextlib.suppress(ConnectionError):  # a dead sampler is reported by `_receive`
            self._connections[index].send_bytes(json.dumps(request._asdict()).encode())

    def _receive(self, index: int, request: Request) -> list[TimedEpisode]:
        if index in self._starting:
            self._starting.remove(index)
            self._answer(index)
        return self._answer(index)

    def answered(self, indices: list[int], timeout: float) -> list[int]:
        ready = wait([self._connections[index] for index in indices], timeout)
        return [index for index in indices if self._connections[index] in ready]

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S  # for all of them
        for process in self._processes:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _pack(weights: Weights) -> bytes:
    return wire.pack({"version": weights.version}, weights.arrays)


def serve() -> None:
    """A sampler process. Arguments: the descriptors of its pipe, the rollouts, the weights."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    descriptors = [int(argument) for argument in sys.argv[1:]]
    connection = Connection(descriptors[0])

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
                SharedMemory(hello["rollouts"], descriptors[1]), sampler.spec, config.env_num
            )
            columns = [slot.columns(sampler.first, sampler.last) for slot in slots]
            weights = SharedMemory(hello["weights"], descriptors[2]).view()
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
