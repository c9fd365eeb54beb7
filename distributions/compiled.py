"""Sampling on the CPU, compiled: torch's dispatch costs more than the arithmetic of a few rows."""

from __future__ import annotations

import math

import numpy as np

from common.compiled import njit

_HALF_LOG_2PI = np.float32(0.5 * math.log(2 * math.pi))


@njit(fastmath={"contract"})
def sample_normal(
    mean: np.ndarray, log_std: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Actions of independent normals, as `continuous.Normal` has them.

    Args:
        mean, noise: [B, K] float32.
        log_std: [K] float32.

    Returns:
        actions [B, K], their log-probabilities [B, K], and the sums of these [B].
    """
    action, log_prob = np.empty_like(mean), np.empty_like(mean)
    joint = np.zeros(len(mean), np.float32)
    std = np.exp(log_std)
    for row in range(len(mean)):
        for k in range(len(log_std)):
            action[row, k] = mean[row, k] + std[k] * noise[row, k]
            # the action is rounded to float32, and this is the deviation of the rounded one
            deviation = (action[row, k] - mean[row, k]) / std[k]
            log_prob[row, k] = np.float32(-0.5) * deviation * deviation - log_std[k] - _HALF_LOG_2PI
            joint[row] += log_prob[row, k]
    return action, log_prob, joint


@njit()
def sample_categorical(
    logits: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Actions of a categorical distribution, as `discrete.Categorical` has them.

    Args:
        logits: [B, A] float32.
        noise: [B], uniform in [0, 1).

    Returns:
        actions [B], their log-probabilities as [B, 1] and as [B].
    """
    rows, actions = logits.shape
    action, log_prob = np.empty(rows, np.int64), np.empty((rows, 1), np.float32)
    weight = np.empty(actions)  # unnormalised probabilities
    for row in range(rows):
        greatest = logits[row].max()
        total = 0.0
        for a in range(actions):
            weight[a] = math.exp(logits[row, a] - greatest)
            total += weight[a]
        # the first action at which the cumulative distribution passes the noise
        level, cumulative, chosen = noise[row] * total, 0.0, 0
        for a in range(actions):
            if weight[a] > 0.0:
                chosen = a
            cumulative += weight[a]
            if cumulative > level:
                break
        action[row] = chosen
        log_prob[row, 0] = logits[row, chosen] - greatest - math.log(total)
    return action, log_prob, log_prob[:, 0]
