"""When all environments of a run are reset, so that a resumed run can do the same.

A run is repeated to the bit from a checkpoint where the environments' state is in it, or where they
are reset there in any case. A reset cuts off the episodes in progress. Were it done at every
checkpoint, long episodes would never end where there are many environments, and the policy would
never learn from their later parts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from envs import Spaces
from settings.config import Config

EPISODES_BETWEEN = 5  # of the greatest length, at least


class Resets(NamedTuple):
    """Resets between the updates of a run.

    `every`: they come before each update whose number is a multiple of this; None: never.
    `remark`: what the user is to know of it, or "".
    """

    every: int | None
    remark: str


def plan_resets(config: Config, env_spaces: Spaces) -> Resets:
    """Resets for environments whose state cannot be saved, at least five episode limits apart.

    Asynchronous samplers (policy_lag >= 2), which no two runs repeat, are never reset.
    """
    if config.policy_lag > 1 or env_spaces.saves_state:
        return Resets(None, "")
    cannot = f"the state of {config.env} cannot be saved, so a resumed run goes on to the bit"
    limit = env_spaces.episode_limit
    if limit is None:
        return Resets(None, f"{cannot} from no checkpoint: its episodes have no known limit")
    saves = config.updates_per_checkpoint
    gap = math.ceil(EPISODES_BETWEEN * limit / config.steps_per_rollout)
    every = saves * math.ceil(gap / saves)
    if every >= config.updates:
        return Resets(
            None,
            f"{cannot} from no checkpoint: the run is too short to reset episodes of {limit} steps",
        )
    which = "every checkpoint" if every == saves else f"one checkpoint in {every // saves}"
    return Resets(every, f"{cannot} from {which} only, where all environments are reset")
