"""A model in memory that several processes map: its numbers, and what each of them has counted."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


class Count(enum.IntEnum):
    """What a process counts."""

    STEPS = 0  # of environments
    GRADIENT_STEPS = 1
    STALENESS = 2  # gradient steps of others between its reading and its writing, in sum
    UPDATES = 3
    WAITED = 4  # for samplers [s]
    LEARNED = 5  # [s]


class _Head(enum.IntEnum):
    READY = 0  # all numbers are there
    OVER = 1  # the run ends
    START = 2  # environment steps of the run when the memory was filled


class SharedModel:
    """Numbers that one process puts down, and all of them change.

    Args:
        descriptor: of a block of memory without a name, empty at first; it stays open.
        processes: how many count.
        stepped: tensors that gradient steps change, float32, on any device. They are one process's
            own copy, which `read` and `add` compare with what is shared.
        statistics: tensors that change under `locked` only, float64.
    """

    def __init__(
        self,
        descriptor: int,
        processes: int,
        stepped: Sequence[Tensor],
        statistics: Sequence[Tensor],
    ):
        self._descriptor = descriptor
        self._stepped, self._statistics = list(stepped), list(statistics)
        doubles = len(_Head) + processes * len(Count) + sum(t.numel() for t in statistics)
        size = 8 * doubles + 4 * sum(t.numel() for t in stepped)
        os.posix_fallocate(descriptor, 0, size)  # with zeros: nothing is ready
        self._map = mmap.mmap(descriptor, size)
        numbers = np.frombuffer(self._map, np.float64, doubles)
        self._head = numbers[: len(_Head)]
        end = len(_Head) + processes * len(Count)
        self.counts = numbers[len(_Head) : end].reshape(processes, len(Count))
        self._shared_statistics = _parts(torch.from_numpy(numbers[end:]), statistics)
        floats = np.frombuffer(self._map, np.float32, offset=8 * doubles)
        self._shared = _parts(torch.from_numpy(floats), stepped)
        self._before = [torch.empty_like(part) for part in self._shared]

    @property
    def is_ready(self) -> bool:
        """Whether a process has filled the memory."""
        return bool(self._head[_Head.READY])

    @property
    def is_over(self) -> bool:
        """Whether the run is over."""
        return bool(self._head[_Head.OVER])

    @property
    def environment_steps(self) -> int:
        """Those of the run."""
        return int(self._head[_Head.START] + self.counts[:, Count.STEPS].sum())

    def fill(self, environment_steps: int) -> None:
        """Put down this process's numbers, for all to begin with.

        Args:
            environment_steps: that the run has taken so far.
        """
        for shared, own in zip(self._shared, self._stepped, strict=True):
            shared.copy_(own)
        self._write_statistics()
        self._head[_Head.START] = environment_steps
        self._head[_Head.READY] = 1.0

    def end(self) -> None:
        """Tell all processes that the run is over."""
        self._head[_Head.OVER] = 1.0

    @torch.no_grad()
    def read(self) -> None:
        """Give this process's own tensors the values that are shared now."""
        for before, shared, own in zip(self._before, self._shared, self._stepped, strict=True):
            before.copy_(shared)  # others may write meanwhile: what is added is from this copy on
            own.copy_(before)

    @torch.no_grad()
    def add(self) -> None:
        """Add what has changed in this process's own tensors since `read` to what is shared.

        Nothing is added where a number is not finite. The losses tell of it; see `PPOAgent.learn`.
        """
        changes = [
            own.cpu() - before for own, before in zip(self._stepped, self._before, strict=True)
        ]
        if _are_finite(changes):
            for shared, change in zip(self._shared, changes, strict=True):
                shared.add_(change)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Change the statistics, and what depends on them, while no other process does.

        The lock ends with the process. A block that raises changes nothing that is shared.
        """
        with self._alone():
            self._read_all()
            yield
            self.add()
            self._write_statistics()

    def take_over(self) -> None:
        """Give this process's own tensors, statistics too, the values that are shared now."""
        with self._alone():
            self._read_all()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        # of this process: `flock` would lock for all that have inherited the descriptor
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _read_all(self) -> None:
        self.read()
        for shared, own in zip(self._shared_statistics, self._statistics, strict=True):
            own.copy_(shared)

    def _write_statistics(self) -> None:
        if not _are_finite(self._statistics):  # as in `add`
            return
        for shared, own in zip(self._shared_statistics, self._statistics, strict=True):
            shared.copy_(own)


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A flat tensor as views of the shapes of others."""
    parts = flat.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
