"""Estimators over a rollout: pure functions of arrays [T, N], T steps of N environments.

Legend: r reward, V value of obs[t] ([T+1, N]: row T is the bootstrap row), d terminated,
u truncated, v valid. A row with v = 0 is a reset: its action was ignored, its estimate is 0 and
nothing flows through it. Because autoreset is NEXT_STEP, obs[t+1] after an end is the episode's
true final observation, so a truncated step bootstraps from V[t+1].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np

from common.compiled import njit

P = ParamSpec("P")
R = TypeVar("R")


class Steps(NamedTuple):
    """The part of a rollout that every estimator reads."""

    reward: np.ndarray  # [T, N] float
    value: np.ndarray  # [T+1, N] float
    terminated: np.ndarray  # [T, N] bool
    truncated: np.ndarray  # [T, N] bool
    valid: np.ndarray  # [T, N] bool


def estimator(
    function: Callable[Concatenate[Steps, P], R],
) -> Callable[Concatenate[Steps, P], R]:
    """Compile an estimator with numba, and check its arrays at every call.

    The check is needed because compiled code does not check bounds: an array with too few rows
    would make it read foreign memory.
    """
    compiled = njit()(function)

    @functools.wraps(function)
    def checked(steps: Steps, *args: P.args, **kwargs: P.kwargs) -> R:
        _check(steps, [a for a in (*args, *kwargs.values()) if isinstance(a, np.ndarray)])
        return compiled(steps, *args, **kwargs)

    return checked


def _check(steps: Steps, others: list[np.ndarray]) -> None:
    """Raise ValueError unless the arrays have the shapes and dtypes of `Steps`.

    Args:
        others: further arrays of an estimator, which must be [T, N] float.
    """
    shape = steps.reward.shape
    if len(shape) != 2:
        raise ValueError(f"reward has shape {shape}, but must be [T, N]")
    rules = [(shape, "f"), ((shape[0] + 1, shape[1]), "f"), *[(shape, "b")] * 3]
    named = list(zip(Steps._fields, steps, rules, strict=True))
    named += [("a further array", array, (shape, "f")) for array in others]
    for name, array, (expected, kind) in named:
        if array.shape != expected or array.dtype.kind != kind:
            wanted = "float" if kind == "f" else "bool"
            raise ValueError(
                f"{name} has shape {array.shape} and dtype {array.dtype}, but must be"
                f" {expected} of {wanted} for rewards {shape}"
            )


@estimator
def gae(steps: Steps, gamma: float, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16) and value targets.

        delta_t = r_t + gamma V_{t+1} (1 - d_t) - V_t
        A_t = delta_t + gamma lambda (1 - d_t) (1 - u_t) A_{t+1}

    Returns:
        advantage [T, N] float32, and advantage + V [T, N] float32.
    """
    reward, value, terminated, truncated, valid = steps
    rows, envs = reward.shape
    advantage = np.empty((rows, envs), np.float32)
    carry = np.zeros(envs, np.float64)  # A_{t+1}
    for t in range(rows - 1, -1, -1):
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
    return advantage, (advantage + value[:-1]).astype(np.float32)


@estimator
def vtrace(
    steps: Steps, log_rho: np.ndarray, gamma: float, lam: float, rho_clip: float, c_clip: float
) -> tuple[np.ndarray, np.ndarray]:
    """V-trace advantages and targets (Espeholt et al. 2018, arXiv 1802.01561, eq. 1 and 4).

        rho_t = min(rho_clip, pi/mu), c_t = lambda min(c_clip, pi/mu)
        v_t - V_t = rho_t (r_t + gamma V_{t+1} - V_t) + gamma c_t (v_{t+1} - V_{t+1})
        A_t = r_t + gamma (lambda v_{t+1} + (1 - lambda) V_{t+1}) - V_t

    The policy's gradient is weighted by rho_t too. That is the loss's part, because advantages are
    normalised first: what is subtracted from all of them alike must have the weight as well. The mix of v
    and V in the advantage is DeepMind rlax's; with pi = mu it is GAE(lambda).

    Args:
        log_rho: log pi(a_t|s_t) - log mu(a_t|s_t) [T, N].

    Returns:
        A and v, both [T, N] float32.
    """
    reward, value, terminated, truncated, valid = steps
    rows, envs = reward.shape
    advantage = np.empty((rows, envs), np.float32)
    target = np.empty((rows, envs), np.float32)
    carry = np.zeros(envs, np.float64)  # v_{t+1} - V_{t+1}
    for t in range(rows - 1, -1, -1):
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
            advantage[t, n] = reward[t, n] + ahead - value[t, n]
            carry[n] = delta + gamma * goes_on * lam * min(c_clip, rho) * carry[n]
            target[t, n] += carry[n]
    return advantage, target


@estimator
def upgo(steps: Steps, gamma: float) -> np.ndarray:
    """Upgoing policy update's advantages (Vinyals et al. 2019, AlphaStar), [T, N] float32.

        G_t = r_t + gamma (G_{t+1} if r_{t+1} + gamma V_{t+2} >= V_{t+1} else V_{t+1})
        A_t = G_t - V_t

    A trajectory's own return is followed for as long as it does better than the value expects.
    """
    reward, value, terminated, truncated, valid = steps
    rows, envs = reward.shape
    advantage = np.empty((rows, envs), np.float32)
    ahead = value[rows].astype(np.float64)  # G_{t+1}, or V_{t+1} where that is better
    for t in range(rows - 1, -1, -1):
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
    return advantage
