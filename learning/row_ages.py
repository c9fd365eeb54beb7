"""How old the rows are that an update learns from."""

from __future__ import annotations

import numpy as np

from learning.trainers import Trainers
from rollout import Rollout
from settings.config import Config


class RowAges:
    """Remembers under which weights carried rows were collected: older ones than the new rows.

    Attributes:
        versions: of the weights of the rows that the next fragment will carry [carried_steps], the mean
            over all trainers' environments.
    """

    def __init__(self, config: Config, trainers: Trainers):
        self._trainers = trainers
        self._learned = config.steps_per_rollout
        self.versions = np.zeros(config.carried_steps)

    def __call__(self, rollout: Rollout, update: int) -> float:
        """The mean age, in updates, of the rows that update number `update` learns from."""
        versions = np.full(len(rollout.reward), float(rollout.policy_version))
        if len(self.versions):
            # environments that were reset have none of the fragment before; they may be other trainers'
            kept = 1.0 - self._trainers.mean(float(rollout.reset.mean()))
            before = self.versions[: rollout.carried] - versions[: rollout.carried]
            versions[: rollout.carried] += before * kept
        self.versions = versions[self._learned :]
        return float(update - versions[: self._learned].mean())
