"""How old the rows are that an update learns from."""

from __future__ import annotations

import numpy as np

from rollout import Rollout
from settings.config import Config


class RowAges:
    """Remembers under which weights carried rows were collected: older ones than the new rows.

    Attributes:
        versions: of the weights of the rows that the next fragment will carry [carried_steps].
    """

    def __init__(self, config: Config):
        self._learned = config.steps_per_rollout
        self.versions = np.zeros(config.carried_steps)

    def __call__(self, rollout: Rollout, update: int) -> float:
        """The mean age, in updates, of the rows that update number `update` learns from."""
        new = np.full(len(rollout.reward) - rollout.carried, float(rollout.policy_version))
        versions = np.concatenate([self.versions[: rollout.carried], new])
        self.versions = versions[self._learned :]
        return float(update - versions[: self._learned].mean())
