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
    """The samplers cannot go on. The message names one and says why."""


class MasterLost(SamplerError):
    """The cluster's master has been away for too long."""

    exit_code = 75  # sysexits.h: a temporary failure, try again later


class Lost(Exception):
    """What was asked of a sampler will not come: the sampler is of no use any more.

    Args:
        reason: what became of it, or the traceback of its error.
        cause: the error in a line, the same for the same error; "" where there was none.
        where: the fragment's step at which it came, or None.
        not_finite: the error was a number that is not finite.
        final: the error says what the user has to do: another sampler would not help.
    """

    def __init__(
        self,
        reason: str,
        cause: str = "",
        where: int | None = None,
        not_finite: bool = False,
        final: bool = False,
    ):
        # an actor's words: on a terminal they must be no commands to it
        reason, cause = (
            "".join(
                c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
            )
            for text in (reason, cause)
        )
        super().__init__(reason)
        self.reason, self.cause, self.where = reason, cause, where
        self.not_finite, self.final = not_finite, final


class Request(NamedTuple):
    """A fragment, as it is asked of a sampler.

    Args:
        fragment: the fragment's number; with the seed it determines all noise.
        reset: reset the environments before the first row.
        version: of the weights.
        keep: answer with `Environments` too.
        restore: go on from these `Environments`, of the whole run, instead of from a reset.
        attempt: how often this part of the fragment was lost before. It changes the noise.
    """

    fragment: int
    reset: bool
    version: int
    keep: bool = False
    restore: Environments | None = None
    attempt: int = 0


class SamplerPool(Protocol):
    """Samplers over all environments of a run: consumes `Weights`, produces `Rollout`s.

    Attributes:
        name: where the samplers run: inline, local, xparl, ray or store.
        samplers: how many there are.
        spec: shapes of the rollouts.
    """

    name: str
    samplers: int
    spec: RolloutSpec

    @property
    def dropped(self) -> int:
        """Fragments that came too late to be learned from."""
        ...

    @property
    def dropped_steps(self) -> int:
        """Environment steps in those fragments."""
        ...

    @property
    def dropped_episodes(self) -> int:
        """Episodes that ended in those fragments."""
        ...

    @property
    def samplers_alive(self) -> int:
        """How many samplers are there to work, measured now."""
        ...

    @property
    def restarts(self) -> int:
        """How many samplers were started in place of lost ones."""
        ...

    @property
    def alarms(self) -> int:
        """How often something came up that may end the run, which is saved then."""
        ...

    @property
    def rows_lost(self) -> int:
        """Steps of environments that fragments lack, because samplers were lost or given up."""
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
            SamplerError: where samplers fail time and again.
        """
        ...

    def close(self) -> None:
        """Release the samplers. No process of this machine is left, nor a thread that waits."""
        ...


def counters(pool: SamplerPool) -> dict[str, int]:
    """What a run's metrics say of its pool, by their names there."""
    return {
        "dropped_fragments": pool.dropped,
        "dropped_steps": pool.dropped_steps,
        "dropped_episodes": pool.dropped_episodes,
        "samplers_alive": pool.samplers_alive,
        "restarts": pool.restarts,
        "rows_lost": pool.rows_lost,
    }
