"""Gradient steps: their gradients are summed over trainers, they are compiled, and one call takes many."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from learning.batches import Minibatch
from learning.compiled_step import Compiled, Steps
from learning.epoch_graphs import EpochGraphs
from learning.trainers import Trainers

_ROWS_AT_ONCE = 4096  # of the gradient steps in one call: signals wait for its end


class GradientSteps:
    """Steps of two functions of tensors: from the forward pass to the gradient, and from there to Adam's
    end. At 256 rows of a small mlp that is 2 to 3 times as fast as compiling the loss alone.

    Args:
        gradient: of a share of a minibatch, flat, and behind it of the statistics [size].
        descend: moves the weights by these, of all shares; gives the statistics.
        compiler: compiles a method. None: they run as they are.
        trainers: over whose gradients each step sums.
        size: of what `gradient` gives.
        rows: of a minibatch.
        on_gpu: whether the tensors are on one.
    """

    def __init__(
        self,
        gradient: types.MethodType,
        descend: types.MethodType,
        compiler: Callable[[types.MethodType], Compiled] | None,
        trainers: Trainers,
        size: int,
        rows: int,
        on_gpu: bool,
    ):
        self._trainers, self._size, self._rows = trainers, size, rows
        self.halves = [] if compiler is None else [compiler(gradient), compiler(descend)]
        self._descends: Callable[[tuple[Tensor, ...]], Tensor] = descend
        self.gradients: Callable[[Sequence[Minibatch]], Sequence[Tensor]]
        self.gradients = lambda shares: [gradient(share) for share in shares]
        if self.halves:
            self.gradients, self._descends = self.halves[0].each, self.halves[1]
        recorded = on_gpu and self.halves and not trainers.meet_in_steps
        self._graphs = EpochGraphs(self.one) if recorded else None

    def one(self, shares: Sequence[Minibatch]) -> Tensor:
        """A step on a minibatch, given whole or in shares; its statistics."""
        with self._trainers.stepping():
            gradients = self.gradients(shares)
            if self._trainers.size > 1:
                gradients = [summed(gradients)]
                self._trainers.sum(gradients[0])
            return self._descends(tuple(gradients))

    def at_once(self, minibatches: Sequence[tuple[Minibatch, ...]]) -> Tensor | None:
        """A step on each minibatch, given in its shares, without Python between them: a table of
        statistics with a row for each. On a GPU see `EpochGraphs`.

        Returns:
            the table; None where steps are not compiled, or something else is to be done between them.
        """
        if self._graphs is not None:
            return self._graphs(minibatches)
        steps = self._native(minibatches[0])
        if steps is None:
            return None
        at_once = max(1, _ROWS_AT_ONCE // self._rows)
        parts = [minibatches[n : n + at_once] for n in range(0, len(minibatches), at_once)]
        return torch.stack([statistics for part in parts for statistics in steps(part)])

    def _native(self, shares: Sequence[Minibatch]) -> Steps | None:
        if not self.halves or self._trainers.meet_in_steps:
            return None
        first, second = self.halves
        like = tuple([torch.empty(self._size) for _ in shares])
        return first.native_with(second, shares, like)


def summed(shares: Sequence[Tensor]) -> Tensor:
    """The sum of the shares' gradients, in their order."""
    total = shares[0]
    for share in shares[1:]:
        total = total + share
    return total
