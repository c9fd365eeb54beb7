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
def _vtrace(
    reward: np.ndarray,
    value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    valid: np.ndarray,
    log_rho: np.ndarray,
    gamma: float,
    lam: float,
    rho_clip: float,
    c_clip: float,
    advantage: np.ndarray,
    target: np.ndarray,
) -> None:
    steps, envs = reward.shape
    carry = np.zeros(envs, np.float64)  # v_{t+1} - V_{t+1}
    for t in range(steps - 1, -1, -1):
        for n in range(envs):
            target[t, n] = value[t, n]
            if not valid[t, n]:
                carry[n] = 0.0
                advantage[t, n] = 0.0
                continue
            rho = np.exp(log_rho[t, n])
            clipped = min(rho_clip, rho)
            alive = 0.0 if terminated[t, n] else 1.0
            goes_on = 0.0 if truncated[t, n] else alive
            bootstrap = gamma * value[t + 1, n] * alive
            delta = clipped * (reward[t, n] + bootstrap - value[t, n])
            ahead = bootstrap + gamma * goes_on * lam * carry[n]
            advantage[t, n] = clipped * (reward[t, n] + ahead - value[t, n])
            carry[n] = delta + gamma * goes_on * lam * min(c_clip, rho) * carry[n]
            target[t, n] += carry[n]


def vtrace(
    reward: np.ndarray,
    value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    valid: np.ndarray,
    log_rho: np.ndarray,
    gamma: float,
    lam: float,
    rho_clip: float,
    c_clip: float,
) -> tuple[np.ndarray, np.ndarray]:
    """V-trace advantages and targets (Espeholt et al. 2018, arXiv 1802.01561, eq. 1 and 4).

        rho_t = min(rho_clip, pi/mu), c_t = lambda min(c_clip, pi/mu)
        v_t - V_t = rho_t (r_t + gamma V_{t+1} - V_t) + gamma c_t (v_{t+1} - V_{t+1})
        A_t = rho_t (r_t + gamma (lambda v_{t+1} + (1 - lambda) V_{t+1}) - V_t)

    The mix of v and V in the advantage is DeepMind rlax's; with pi = mu it is GAE(lambda).

    Args:
        log_rho: log pi(a_t|s_t) - log mu(a_t|s_t) [T, N].

    Returns:
        A and v, both [T, N] float32.
    """
    advantage, target = np.empty(reward.shape, np.float32), np.empty(reward.shape, np.float32)
    _vtrace(
        reward, value, terminated, truncated, valid, log_rho, gamma, lam, rho_clip, c_clip,
        advantage, target,
    )  # fmt: skip
    return advantage, target


@numba.njit(cache=True)
def _upgo(
    reward: np.ndarray,
    value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    valid: np.ndarray,
    gamma: float,
    advantage: np.ndarray,
) -> None:
    steps, envs = reward.shape
    ahead = value[steps].astype(np.float64)  # G_{t+1}, or V_{t+1} where that is better
    for t in range(steps - 1, -1, -1):
        for n in range(envs):
            if not valid[t, n]:
                advantage[t, n] = 0.0
                ahead[n] = value[t, n]
                continue
            alive = 0.0 if terminated[t, n] else 1.0
            one_step = reward[t, n] + gamma * value[t + 1, n] * alive
            after = value[t + 1, n] if truncated[t, n] else ahead[n]
            returned = reward[t, n] + gamma * alive * after
            advantage[t, n] = returned - value[t, n]
            ahead[n] = returned if one_step >= value[t, n] else value[t, n]


def upgo(
    reward: np.ndarray,
    value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    valid: np.ndarray,
    gamma: float,
) -> np.ndarray:
    """Upgoing policy update's advantages (Vinyals et al. 2019, AlphaStar), [T, N] float32.

        G_t = r_t + gamma (G_{t+1} if r_{t+1} + gamma V_{t+2} >= V_{t+1} else V_{t+1})
        A_t = G_t - V_t

    A trajectory's own return is followed for as long as it does better than the value expects.
    """
    advantage = np.empty(reward.shape, np.float32)
    _upgo(reward, value, terminated, truncated, valid, gamma, advantage)
    return advantage


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

    def moments(self) -> list[float]:
        """Count, mean and variance of the discounted returns so far."""
        return [self.count, self.mean, self.var]

    def __call__(
        self, reward: np.ndarray, ended: np.ndarray, valid: np.ndarray,
        env_ranges: list[tuple[int, int]], carried: int = 0,
    ) -> np.ndarray:  # fmt: skip
        """Update with a fragment's raw rewards [T, N]; return them scaled, float32.

        Args:
            env_ranges: whose columns these are, from left to right and from earlier to later.
            carried: the first rows, that an earlier fragment had already: they are only scaled.
        """
        every, reward, ended = reward, reward[carried:], ended[carried:]
        valid = valid[carried:]
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
        scaled = every / np.sqrt(self.var + 1e-8)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)
