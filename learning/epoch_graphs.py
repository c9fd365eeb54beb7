"""An epoch's gradient steps on a GPU, recorded as CUDA graphs: one call starts the kernels of many steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from learning.batches import Minibatch

_STEPS_AT_ONCE = 64  # in one graph: the driver keeps each kernel of it


class EpochGraphs:
    """Gradient steps on minibatches that lie in the same memory in every epoch.

    The first epoch of a memory is done step by step, since torch compiles and loads kernels in it,
    which cannot be recorded. The second one records, and all others replay.

    Args:
        step: a gradient step on a minibatch's shares, by tensors on the GPU alone; its statistics.
    """

    def __init__(self, step: Callable[[Sequence[Minibatch]], Tensor]):
        self._step = step
        self._minibatches: Sequence[tuple[Minibatch, ...]] = []
        self._recorded: list[tuple[torch.cuda.CUDAGraph, Tensor]] = []

    def __call__(self, minibatches: Sequence[tuple[Minibatch, ...]]) -> Tensor:
        """A step on each minibatch: a table of statistics with a row for each.

        Args:
            minibatches: the same list as before where they lie in the same memory.
        """
        if minibatches is not self._minibatches:
            table = self._steps(minibatches)
            self._minibatches, self._recorded = minibatches, []
            return table
        if not self._recorded:
            firsts = range(0, len(minibatches), _STEPS_AT_ONCE)
            parts = [minibatches[first : first + _STEPS_AT_ONCE] for first in firsts]
            self._recorded = [self._record(part) for part in parts]
        for graph, _ in self._recorded:
            graph.replay()
        return torch.cat([table for _, table in self._recorded])  # a copy: replays write over them

    def _steps(self, minibatches: Sequence[tuple[Minibatch, ...]]) -> Tensor:
        return torch.stack([self._step(shares) for shares in minibatches])

    def _record(
        self, minibatches: Sequence[tuple[Minibatch, ...]]
    ) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may download what it saves meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            table = self._steps(minibatches)
        return graph, table
