"""Estimators over a rollout: pure functions of arrays [T, N], T steps of N environments.

Legend: r reward, V value of obs[t] ([T+1, N]: row T is the bootstrap row), d terminated,
u truncated, v valid. A row with v = 0 is a reset: its action was ignored, its estimate is 0 and
nothing flows through it. Because autoreset is NEXT_STEP, obs[t+1] after an end is the episode's
true final observation, so V[t+1] is what a truncated step bootstraps from.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True)
def _gae(
    reward: np.ndarray,
    value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    valid: np.ndarray,
    gamma: float,
    lam: float,
    advantage: np.ndarray,
) -> None:
    steps, envs = reward.shape
    carry = np.zeros(envs, np.float64)
    for t in range(steps - 1, -1, -1):
        for n in range(envs):
            if not valid[t, n]:
                carry[n] = 0.0
                advantage[t, n] = 0.0
                continue
            alive = 0.0 if terminated[t, n] else 1.0
            delta = reward[t, n] + gamma * value[t + 1, n] * alive - value[t, n]
            if truncated[t, n]:
                alive = 0.0
            carry[n] = delta + gamma * lam * alive * carry[n]
            advantage[t, n] = carry[n]


def gae(
    reward: np.ndarray,
    value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    valid: np.ndarray,
    gamma: float,
    lam: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16) and value targets.

        delta_t = r_t + gamma V_{t+1} (1 - d_t) - V_t
        A_t = delta_t + gamma lambda (1 - d_t) (1 - u_t) A_{t+1}

    Returns:
        advantage [T, N] float32, and advantage + V [T, N] float32.
    """
    advantage = np.empty(reward.shape, np.float32)
    _gae(reward, value, terminated, truncated, valid, gamma, lam, advantage)
    return advantage, advantage + value[:-1]


@numba.njit(cache=True)
def _discounted_returns(
    reward: np.ndarray,
    ended: np.ndarray,
    valid: np.ndarray,
    gamma: float,
    running: np.ndarray,
    out: np.ndarray,
) -> None:
    steps, envs = reward.shape
    for t in range(steps):
        for n in range(envs):
            running[n] = gamma * running[n] + reward[t, n] if valid[t, n] else 0.0
            out[t, n] = running[n]
            if ended[t, n]:
                running[n] = 0.0


class ReturnScaler:
    """Scales rewards by the running standard deviation of the discounted return.

    G_t = gamma G_{t-1} + r_t runs along each environment's own stream, over fragments, and starts
    at 0 with each episode. The rewards of a fragment are divided by the standard deviation of all
    G so far, this fragment's included, and clipped. Only the scale changes: a reward keeps its
    sign.
    """

    def __init__(self, envs: int, gamma: float, clip: float):
        self.gamma, self.clip = gamma, clip
        self.running = np.zeros(envs, np.float64)
        self.count, self.mean, self.var = 0.0, 0.0, 1.0

    def restart(self) -> None:
        """The environments were reset: every stream starts anew."""
        self.running[:] = 0.0

    def __call__(
        self, reward: np.ndarray, ended: np.ndarray, valid: np.ndarray,
        env_ranges: list[tuple[int, int]],
    ) -> np.ndarray:  # fmt: skip
        """Update with a fragment's raw rewards [T, N]; return them scaled, float32.

        Args:
            env_ranges: whose columns these are, from left to right and from earlier to later.
        """
        returns = np.empty(reward.shape, np.float64)
        at = 0
        for first, last in env_ranges:
            columns = slice(at, at := at + last - first)
            _discounted_returns(
                reward[:, columns], ended[:, columns], valid[:, columns],
                self.gamma, self.running[first:last], returns[:, columns],
            )  # fmt: skip
        seen = returns[valid]
        if seen.size:
            total = self.count + seen.size
            delta = seen.mean() - self.mean
            spread = self.var * self.count + seen.var() * seen.size
            self.var = (spread + delta**2 * self.count * seen.size / total) / total
            self.mean += delta * seen.size / total
            self.count = total
        scaled = reward / np.sqrt(self.var + 1e-8)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)
