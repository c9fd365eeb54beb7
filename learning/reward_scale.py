"""The rewards that are learned from: the environment's transformed, and RND's scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from common.compiled import njit
from learning.trainers import Trainers
from rollout import Rollout
from settings.config import Config

SCALES = "scales/reward", "scales/bonus"


class Rewards(NamedTuple):
    """The rewards that are learned from."""

    reward: np.ndarray  # [T, N], the environment's, transformed
    bonus: np.ndarray | None = None  # [T, N] with RND: its error for obs[t + 1], scaled


class RewardTransform:
    """Transforms the environment's rewards by `reward_transform`, and scales RND's errors.

    Attributes:
        scaler, bonus_scaler: the running scales of both.
    """

    def __init__(self, config: Config, trainers: Trainers | None = None):
        self._transform = config.reward_transform
        self.scaler = ReturnScaler(config.env_num, config.gamma, config.reward_clip, trainers)
        # intrinsic rewards are scaled as the RND paper does it, and not clipped
        self.bonus_scaler = ReturnScaler(config.env_num, config.rnd_gamma, math.inf, trainers)

    def __call__(self, rollout: Rollout, error: np.ndarray | None) -> Rewards:
        """Move the running scales on by a rollout, and transform its rewards.

        Args:
            error: RND's for obs[t + 1] [T, N], or None without it.
        """
        reward, ranges, carried = rollout.reward, rollout.env_ranges, rollout.carried
        reset, new = rollout.reset, rollout.new_columns
        if self._transform == "sign":
            reward = np.sign(reward)
        elif self._transform == "return_std":
            ended, valid = rollout.terminated | rollout.truncated, rollout.valid
            self.scaler.add(reward[:, new], ended[:, new], valid[:, new], reset, ranges, carried)
            reward = self.scaler.scaled(reward)
        if error is None:
            return Rewards(reward)
        # intrinsic returns go on over the ends of episodes: nothing is over for curiosity
        never = np.zeros(error.shape, bool)
        there = np.broadcast_to(rollout.valid.any(0), error.shape)  # no sampler was lost
        return Rewards(reward, self.bonus_scaler(error, never, there, reset, ranges, carried))

    def scales(self) -> dict[str, np.ndarray]:
        """A copy of the moments of discounted returns [3], by `SCALES`, as trainers of a store share them."""
        moments = self.scaler.moments, self.bonus_scaler.moments
        return {name: of.copy() for name, of in zip(SCALES, moments, strict=True)}

    def set_scales(self, scales: Mapping[str, np.ndarray]) -> None:
        """Go on from what `scales` returned, of this trainer or another."""
        for name, scaler in zip(SCALES, (self.scaler, self.bonus_scaler), strict=True):
            scaler.moments[:] = scales[name]

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The running scales: arrays, and counters that JSON can hold."""
        arrays = {
            "scaler/running": self.scaler.running.copy(),
            "bonus_scaler/running": self.bonus_scaler.running.copy(),
        }
        return arrays, {
            "scaler": self.scaler.moments.tolist(),
            "bonus_scaler": self.bonus_scaler.moments.tolist(),
        }

    def load(self, arrays: Mapping[str, np.ndarray], counters: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        self.scaler.load(arrays["scaler/running"], counters["scaler"])
        self.bonus_scaler.load(arrays["bonus_scaler/running"], counters["bonus_scaler"])


@njit()
def _discounted_returns(
    reward: np.ndarray, ended: np.ndarray, valid: np.ndarray, first: np.ndarray, gamma: float,
    running: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """G_t = gamma G_{t-1} + r_t [T, N] float64, from row `first` [N] of each environment on.

    `running` [N] is G of the row before it, and becomes G_{T-1}.
    """
    steps, envs = reward.shape
    returns = np.zeros((steps, envs), np.float64)
    for t in range(steps):
        for n in range(envs):
            if t < first[n]:
                continue
            running[n] = gamma * running[n] + reward[t, n] if valid[t, n] else 0.0
            returns[t, n] = running[n]
            if ended[t, n]:
                running[n] = 0.0
    return returns


class ReturnScaler:
    """Scales rewards by the running standard deviation of the discounted return.

    G_t = gamma G_{t-1} + r_t runs along each environment's own stream, over fragments, and starts
    at 0 with each episode. The rewards of a fragment are divided by the standard deviation of all
    G so far, this fragment's included, and clipped. Only the scale changes: a reward keeps its
    sign.

    Args:
        envs: the run's environments.
        gamma: the discount of G.
        clip: the bound of a scaled reward.
        trainers: that learn from a share of the environments each. Default: there is one.

    Attributes:
        running: G of each environment after its last step [envs].
        moments: how many G there were so far, their mean and their variance [3].
    """

    def __init__(self, envs: int, gamma: float, clip: float, trainers: Trainers | None = None):
        self.gamma, self.clip = gamma, clip
        self._trainers = trainers or Trainers()
        self.running = np.zeros(envs, np.float64)
        self.moments = np.array([0.0, 0.0, 1.0])

    def load(self, running: np.ndarray, moments: list[float]) -> None:
        """Go on from the values that `running` and `moments` had."""
        self.running[:], self.moments[:] = running, moments

    def __call__(
        self, reward: np.ndarray, ended: np.ndarray, valid: np.ndarray, reset: np.ndarray,
        env_ranges: list[tuple[int, int]], carried: int = 0,
    ) -> np.ndarray:  # fmt: skip
        """`add` a fragment's raw rewards [T, N]; return them `scaled`."""
        self.add(reward, ended, valid, reset, env_ranges, carried)
        return self.scaled(reward)

    def scaled(self, reward: np.ndarray) -> np.ndarray:
        """Raw rewards by the scale of now, and clipped, float32."""
        scaled = reward / np.sqrt(self.moments[2] + 1e-8)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)

    def add(
        self, reward: np.ndarray, ended: np.ndarray, valid: np.ndarray, reset: np.ndarray,
        env_ranges: list[tuple[int, int]], carried: int = 0,
    ) -> None:  # fmt: skip
        """Move the scale on by a fragment's raw rewards [T, N].

        Args:
            ended, valid: [T, N] bool; an invalid row's reward is not counted.
            reset: [N] bool, the environments whose streams begin anew.
            env_ranges: the environments [first, last) of the columns, from left to right and from
                earlier to later.
            carried: how many of the first rows an earlier fragment had too, unless the environment was
                reset. They were counted then, so they are only scaled now.
        """
        for array in (ended, valid):
            if array.shape != reward.shape or array.dtype != bool:
                raise ValueError(f"ended and valid must be bool {reward.shape}, not"
                                 f" {array.dtype} {array.shape}")  # fmt: skip
        width = sum(last - first for first, last in env_ranges)
        if width != reward.shape[1]:
            raise ValueError(f"env_ranges {env_ranges} has {width} environments, but the rewards"
                             f" have {reward.shape[1]} columns")  # fmt: skip
        begins = np.where(reset, 0, carried)
        new = valid & (np.arange(len(reward))[:, None] >= begins)
        parts, left = [], 0
        for first, last in env_ranges:
            columns = slice(left, left + last - first)
            self.running[first:last][reset[columns]] = 0.0
            parts.append(
                _discounted_returns(
                    reward[:, columns], ended[:, columns], valid[:, columns], begins[columns],
                    self.gamma, self.running[first:last],
                )
            )  # fmt: skip
            left = columns.stop
        self._add_all(np.concatenate(parts, 1)[new], env_ranges)

    def _add_all(self, returns: np.ndarray, env_ranges: list[tuple[int, int]]) -> None:
        """Add discounted returns [B], and the other trainers', to the moments."""
        mine = {"count": returns.size, "envs": env_ranges}
        if returns.size:
            mine |= {"mean": float(returns.mean()), "var": float(returns.var())}
        for arrays, theirs in self._trainers.everyone({"running": self.running}, mine):
            for first, last in theirs["envs"]:
                self.running[first:last] = arrays["running"][first:last]
            if theirs["count"]:
                self._merge(theirs["count"], theirs["mean"], theirs["var"])

    def _merge(self, count: int, mean: float, var: float) -> None:
        """Add the moments of so many discounted returns (Chan et al. 1979)."""
        before, its_mean, its_var = self.moments.tolist()
        total = before + count
        delta = mean - its_mean
        spread = its_var * before + var * count
        whole = (spread + delta**2 * before * count / total) / total
        self.moments[:] = total, its_mean + delta * count / total, whole
