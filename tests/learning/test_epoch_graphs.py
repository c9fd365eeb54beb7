"""When steps are recorded, without a GPU; `test_gpu.py` compares what is recorded with a CPU's steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from learning.epoch_graphs import EpochGraphs


class Replayed:
    """In the place of a CUDA graph: it takes the steps again, and writes into the same table."""

    def __init__(self, steps, table):
        self._steps, self._table = steps, table

    def replay(self) -> None:
        self._table.copy_(self._steps())


class Graphs(EpochGraphs):
    recorded = 0

    def _record(self, minibatches) -> Any:
        self.recorded += 1
        table = torch.full((len(minibatches), 1), torch.nan)  # recording computes nothing
        return Replayed(lambda: self._steps(minibatches), table), table


def test_the_first_epoch_of_a_memory_is_stepped_the_second_recorded_and_others_replayed():
    taken = []

    def step(shares):
        taken.append(shares[0])
        return torch.tensor([float(len(taken))])

    graphs = Graphs(step)
    first: Any = [(n,) for n in range(70)]  # two graphs: no more than 64 steps in one
    tables = [graphs(first) for _ in range(3)]
    assert graphs.recorded == 2
    assert taken == [*range(70)] * 3
    assert torch.cat(tables).flatten().tolist() == list(range(1, 211))
    other: Any = [(100,), (101,)]
    graphs(other)
    assert graphs.recorded == 2
    graphs(other)
    assert graphs.recorded == 3
    assert taken[210:] == [100, 101] * 2


def test_after_a_first_epoch_that_failed_the_next_one_is_not_recorded():
    fails = [True]

    def step(shares):
        if fails:
            raise RuntimeError(fails.pop())
        return torch.zeros(1)

    graphs = Graphs(step)
    minibatches: Any = [(1,), (2,)]
    with pytest.raises(RuntimeError):
        graphs(minibatches)
    graphs(minibatches)
    assert graphs.recorded == 0
