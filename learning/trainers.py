"""The trainers of a run: each learns from its own environments, and every step is that of all.

Trainer r of R has the r-th share of the environments and of each minibatch. Its gradient is a sum
over its own rows, divided by what all of them weigh; the sum over the trainers is then the gradient
of the whole minibatch. What else an update computes over all rows (`sum`, `moments`, `variance`,
`everyone`) is put together in the order of the ranks, so that all trainers get the same bits, take
the same decisions and hold the same weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from common.errors import UserError
from learning.undo import State
from rollout import spread
from settings.config import Config


class Refused(UserError):
    """The run cannot begin. The first trainer says why; there is no message."""


class Shared(NamedTuple):
    """The tensors of an agent that trainers can have in common memory."""

    parameters: list[Tensor]
    moments: list[Tensor]  # Adam's
    statistics: list[Tensor]  # running moments, float64


class Joined(NamedTuple):
    """Where a run is: how many updates this trainer has to its name, and all environment steps."""

    updates: int
    environment_steps: int


class Trainers:
    """A group of one trainer, whose sums are its own numbers.

    Attributes:
        rank: this trainer's number, from 0.
        size: how many take each step together.
        counters: what sets this trainer's random streams apart from the others'.
        meet_in_steps: whether something is to be done with the others in each gradient step.
    """

    rank, size = 0, 1
    counters: tuple[int, ...] = ()
    meet_in_steps = False

    @property
    def leads(self) -> bool:
        """Whether this trainer logs, evaluates and saves."""
        return self.rank == 0

    def envs(self, config: Config) -> tuple[int, int]:
        """The run's environments [first, last) that this trainer learns from."""
        return spread(config.env_num, self.size, config.envs_together)[self.rank]

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all trainers.

        Raises:
            TrainerLost: where another trainer is gone; so do all methods that wait for others.
        """

    def everyone(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> list[State]:
        """What each trainer gives: arrays, and values that JSON can hold, in the order of ranks."""
        return [(dict(arrays), dict(values))]

    def moments(self, count: int, mean: Tensor, var: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """Each trainer's number of rows, with their mean and variance."""
        return [(count, mean, var)]

    def variance(self, numbers: np.ndarray) -> float:
        """The variance of the numbers [B] of all trainers; 0 where there are none."""
        return float(numbers.var()) if numbers.size else 0.0

    def mean(self, number: float) -> float:
        """The mean of what each trainer gives."""
        numbers = [values["number"] for _, values in self.everyone({}, {"number": number})]
        return sum(numbers) / len(numbers)

    def from_first(self, make: Callable[[], State | None]) -> State | None:
        """What the first trainer makes, for all of them.

        Raises:
            UserError: where the first one does; `Refused` in the others.
        """
        return make()

    def run_dir(self) -> str | None:
        """The folder of the run that another process has begun in this one's place."""
        return None

    def use(self, device: str) -> None:
        """Prepare sums of tensors on the learner's device."""

    def join(self, shared: Shared) -> Joined | None:
        """Go on from what other trainers share already; wait until it is there.

        Returns:
            where the run is; None where there is nothing to join.
        """
        return None

    def share(self, begun: Joined) -> None:
        """Put this trainer's numbers where the others wait for them."""

    def updating(self, agent: Any) -> AbstractContextManager[None]:
        """The context of an update of the agent."""
        return contextlib.nullcontext()

    def stepping(self) -> AbstractContextManager[None]:
        """The context of a gradient step."""
        return contextlib.nullcontext()

    def moving_statistics(self) -> AbstractContextManager[None]:
        """The context in which running moments, and what depends on them, are changed."""
        return contextlib.nullcontext()

    def count(self, before: int, steps: int, times: Mapping[str, float]) -> int:
        """Count an update; the environment steps of the whole run, which were `before`.

        Args:
            steps: what this trainer knows of, and has not counted yet.
            times: seconds spent on it: time/sample_wait and time/learn.
        """
        return before + steps

    def metrics(self) -> dict[str, float]:
        """What the log shows of each trainer."""
        return {}

    def watch(self, lost: Callable[[str], None]) -> None:
        """Wait for all, then look out, in a thread, for trainers that are gone without a word.

        Args:
            lost: called in the thread with a sentence; it must end the process.
        """

    def note_stop(self, reason: str) -> None:
        """Leave word that this trainer ends now because a signal has asked for it."""

    def stopped(self) -> str | None:
        """The signal for which one of the trainers has ended by itself; None where none has."""
        return None

    def end_watch(self) -> None:
        """Look out no more: from now on the trainers end, each at its own time."""

    def end_run(self) -> None:
        """Tell the others that the run is over, and saved."""

    def close(self) -> None:
        """End the connections to the others."""
