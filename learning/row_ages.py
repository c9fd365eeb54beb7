"""How old the rows are that an update learns from."""

from __future__ import annotations

import numpy as np

from rollout import Rollout
from settings.config import Config


class RowAges:
    """Remembers under which weights carried rows were collected: older ones than the new rows.

    Attributes:
        versions: of the weights of the rows that the next fragment will carry [carried_steps], the mean
            over the environments.
    """

    def __init__(self, config: Config):
        self._learned = config.steps_per_rollout
        self.versions = np.zeros(config.carried_steps)

    def __call__(self, rollout: Rollout, update: int) -> float:
        """The mean age, in updates, of the rows that update number `update` learns from."""
        versions = np.full(len(rollout.reward), float(rollout.policy_version))
        if rollout.carried:  # environments that were reset have none of the fragment before
            before = self.versions[: rollout.carried] - versions[: rollout.carried]
            versions[: rollout.carried] += before * (1.0 - rollout.reset.mean())
        self.versions = versions[self._learned :]
        return float(update - versions[: self._learned].mean())
