from __future__ import annotations

import numpy as np
import pytest

from learning.reward_scale import ReturnScaler
from tests.learning.test_returns import random_rollout


def slow_scaler(fragments, gamma, clip):
    """One environment at a time, one step at a time, all returns kept."""
    envs = fragments[0][0].shape[1]
    running, seen, out = [0.0] * envs, [], []
    for reward, ended, valid in fragments:
        for t in range(len(reward)):
            for n in range(envs):
                running[n] = gamma * running[n] + reward[t, n] if valid[t, n] else 0.0
                if valid[t, n]:
                    seen.append(running[n])
                if ended[t, n]:
                    running[n] = 0.0
        out.append(np.clip(reward / np.sqrt(np.var(seen) + 1e-8), -clip, clip))
    return out


def test_rewards_are_scaled_by_the_deviation_of_all_discounted_returns_so_far():
    fragments: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for seed in range(4):
        reward, _, terminated, truncated, valid = random_rollout(seed, 15, 3)
        fragments.append((reward * 5, terminated | truncated, valid))
    scaler = ReturnScaler(3, 0.9, 2.0)
    for fragment, expected in zip(fragments, slow_scaler(fragments, 0.9, 2.0), strict=True):
        np.testing.assert_allclose(
            scaler(*fragment, np.zeros(3, bool), [(0, 3)]), expected, rtol=1e-5, atol=1e-6
        )


def test_a_restart_forgets_the_streams_but_not_the_scale():
    ones, no, yes = np.ones((5, 2)), np.zeros((5, 2), bool), np.ones((5, 2), bool)
    scaler = ReturnScaler(2, 0.9, 10.0)
    scaler(ones, no, yes, np.array([False, False]), [(0, 2)])
    count = scaler.moments[0]
    five, ten = (sum(0.9**k for k in range(steps)) for steps in (5, 10))
    assert scaler.running == pytest.approx([five, five])
    scaler(ones, no, yes, np.array([True, False]), [(0, 2)])
    assert scaler.running == pytest.approx([five, ten])
    assert scaler.moments[0] == 2 * count


def test_columns_of_one_environment_are_scaled_one_after_the_other():
    reward, _, terminated, truncated, valid = random_rollout(0, 15, 4)
    ended = terminated | truncated
    merged = ReturnScaler(4, 0.9, 10.0)
    merged(reward, ended, valid, np.zeros(4, bool), [(2, 4), (2, 4)])
    apart = ReturnScaler(4, 0.9, 10.0)
    for columns in (slice(0, 2), slice(2, 4)):
        apart(reward[:, columns], ended[:, columns], valid[:, columns], np.zeros(2, bool), [(2, 4)])
    np.testing.assert_array_equal(merged.running, apart.running)
    assert merged.moments == pytest.approx(apart.moments)
    assert not merged.running[:2].any()


def test_rows_that_were_there_before_are_scaled_but_not_counted_again():
    reward, _, terminated, truncated, valid = random_rollout(1, 30, 3)
    ended = terminated | truncated
    no = np.zeros(3, bool)
    whole, parts = ReturnScaler(3, 0.9, 10.0), ReturnScaler(3, 0.9, 10.0)
    whole(reward, ended, valid, no, [(0, 3)])
    parts(reward[:20], ended[:20], valid[:20], no, [(0, 3)])
    rows = slice(10, 30)  # of which ten were there
    scaled = parts(reward[rows], ended[rows], valid[rows], no, [(0, 3)], carried=10)
    assert parts.moments == pytest.approx(whole.moments)
    np.testing.assert_allclose(scaled, reward[rows] / np.sqrt(whole.moments[2]), rtol=1e-4)


def test_columns_and_ranges_that_do_not_fit_are_refused():
    ones, no = np.ones((5, 2)), np.zeros((5, 2), bool)
    scaler = ReturnScaler(3, 0.9, 10.0)
    with pytest.raises(ValueError, match="has 3 environments, but the rewards have 2 columns"):
        scaler(ones, no, ~no, no[0], [(0, 3)])
    with pytest.raises(ValueError, match="must be bool"):
        scaler(ones, no[:4], ~no, no[0], [(0, 2)])


def test_rows_are_counted_once_where_some_are_carried_over_and_some_environments_begin_anew():
    """As in a merged batch of asynchronous samplers, one of which has just begun."""
    ones, no = np.ones((8, 2), np.float32), np.zeros((8, 2), bool)
    scaler = ReturnScaler(2, 1.0, 10.0)
    scaler(ones, no, ~no, np.array([True, False]), [(0, 1), (1, 2)], carried=5)
    assert scaler.running == pytest.approx([8, 3])
    assert scaler.moments[0] == 8 + 3
