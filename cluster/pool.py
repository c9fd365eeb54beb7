"""What the training loop needs of its samplers, however they are scheduled and wherever they run.

Two schedules offer it, `lockstep` and `asynchronous`, each over any of the `engines`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from common.errors import UserError
from rollout import Rollout, RolloutSpec, Weights

Environments = dict[str, np.ndarray]
"""All that samplers need to go on after a fragment's last row, by name; first axis: environments."""


class SamplerError(UserError):
    """A sampler failed. The message names it and says why."""


class Request(NamedTuple):
    """A fragment, as it is asked of a sampler.

    Args:
        fragment: the fragment's number; with the seed it determines all noise.
        reset: reset the environments before the first row.
        version: of the weights.
        keep: answer with `Environments` too.
        restore: go on from these `Environments`, of the whole run, instead of from a reset.
    """

    fragment: int
    reset: bool
    version: int
    keep: bool = False
    restore: Environments | None = None


class SamplerPool(Protocol):
    """Samplers over all environments of a run: consumes `Weights`, produces `Rollout`s.

    Attributes:
        name: where the samplers run: inline, local or xparl.
        samplers: how many there are.
        spec: shapes of the rollouts.
        dropped: fragments that came too late to be learned from.
        dropped_steps: environment steps in those fragments.
        dropped_episodes: episodes that ended in those fragments.
    """

    name: str
    samplers: int
    spec: RolloutSpec
    dropped: int
    dropped_steps: int
    dropped_episodes: int

    @property
    def samplers_alive(self) -> int:
        """How many samplers are there to work, measured now."""
        ...

    @property
    def restarts(self) -> int:
        """How many samplers were started in place of lost ones."""
        ...

    def request(
        self,
        weights: Weights,
        fragment: int,
        reset: bool,
        keep: bool = False,
        restore: Environments | None = None,
    ) -> None:
        """Ask for a fragment under these weights. Returns at once.

        Args:
            fragment, reset, keep, restore: see `Request`. With `keep`, the gathered rollout's
                `environments` can be given as `restore` to any pool over the same environments.

        Raises:
            ValueError: where the schedule, or the shape of `restore`, does not allow it.
        """
        ...

    def gather(self) -> Rollout:
        """Wait for a rollout: [T, env_num].

        Raises:
            SamplerError: where a sampler failed or is gone.
        """
        ...

    def close(self) -> None:
        """Release the samplers. No process of this machine is left, nor a thread that waits."""
        ...
