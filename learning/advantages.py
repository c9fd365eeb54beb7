"""From a rollout and the current values to advantages and value targets, by `--estimator`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from learning.returns import gae, upgo, vtrace
from rollout import Rollout
from settings.config import Config


@dataclass
class Estimator:
    """Estimates over a rollout's T rows, of which the first are learned from.

    Args:
        rollout: [T, N].
        reward: as the learner sees it [T, N].
        intrinsic: RND's scaled rewards [T, N], for `obs[t + 1]`; None without RND.
        log_prob: of the actions under the policy at the update's start, as `behaviour_log_prob`;
            for V-trace.
        bonus: their mean before they were scaled, for the log.
        values: gives the current values [T + 1, N], or [T + 1, N, 2] with RND.
    """

    config: Config
    rollout: Rollout
    reward: np.ndarray
    intrinsic: np.ndarray | None
    log_prob: np.ndarray
    bonus: float | None
    values: Callable[[], np.ndarray]

    def __call__(self) -> dict[str, np.ndarray]:
        """`advantage` [T, N]; `value_target` and `old_value` [T, N], or [T, N, 2] with RND."""
        value = self.values()
        if self.intrinsic is None:
            advantage, target = self._extrinsic(value)
            return {"advantage": advantage, "value_target": target, "old_value": value[:-1]}
        advantage, target = self._extrinsic(np.ascontiguousarray(value[..., 0]))
        # intrinsic returns go on over the ends of episodes: nothing is over for curiosity
        shape = self.reward.shape
        never, always = np.zeros(shape, bool), np.ones(shape, bool)
        extra, extra_target = gae(
            self.intrinsic, np.ascontiguousarray(value[..., 1]), never, never, always,
            self.config.rnd_gamma, self.config.gae_lambda,
        )  # fmt: skip
        return {
            "advantage": advantage + np.float32(self.config.rnd_coefficient) * extra,
            "value_target": np.stack([target, extra_target], -1),
            "old_value": value[:-1],
        }

    def _extrinsic(self, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Advantages and value targets [T, N] of the environment's rewards."""
        config, rollout = self.config, self.rollout
        data = (self.reward, value, rollout.terminated, rollout.truncated, rollout.valid)
        if config.estimator == "vtrace":
            log_rho = self.log_prob - rollout.behaviour_log_prob
            if log_rho.ndim == 3:
                log_rho = log_rho.sum(-1)
            return vtrace(
                *data, log_rho, config.gamma, config.gae_lambda, config.rho_clip, config.c_clip
            )
        # the advantage of a TD(lambda) return is GAE(lambda); with lambda 1 it is Monte Carlo's,
        # bootstrapped where the fragment or the time limit cuts an episode
        lam = 1.0 if config.estimator == "monte_carlo" else config.gae_lambda
        advantage, target = gae(*data, config.gamma, lam)
        if config.estimator == "upgo":
            advantage = upgo(*data, config.gamma)
        return advantage, target
