from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.returns import Steps, gae, upgo, vtrace


def random_rollout(seed: int, steps: int, envs: int) -> Steps:
    """Random rewards and values, with ends and the reset rows that follow them."""
    rng = np.random.default_rng(seed)
    ends = rng.random((steps, envs)) < 0.25
    valid = np.ones((steps, envs), bool)
    valid[0] = rng.random(envs) < 0.8
    for t in range(steps):
        ends[t] &= valid[t]
        if t + 1 < steps:
            valid[t + 1] = ~ends[t]
    kind = rng.random((steps, envs)) < 0.5
    reward = np.where(valid, rng.normal(size=(steps, envs)), 0.0)
    value = rng.normal(size=(steps + 1, envs))
    return Steps(reward, value, ends & kind, ends & ~kind, valid)


def slow_gae(reward, value, terminated, truncated, valid, gamma, lam):
    """The definition, for each t a sum over the rest of its episode."""
    steps, envs = reward.shape
    advantage = np.zeros((steps, envs))
    for n in range(envs):
        for t in range(steps):
            if not valid[t, n]:
                continue
            for k in range(t, steps):
                bootstrap = 0.0 if terminated[k, n] else value[k + 1, n]
                delta = reward[k, n] + gamma * bootstrap - value[k, n]
                advantage[t, n] += (gamma * lam) ** (k - t) * delta
                if terminated[k, n] or truncated[k, n]:
                    break
    return advantage


@given(
    st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 4), st.floats(0, 1), st.floats(0, 1)
)
def test_gae_is_its_definition(seed, steps, envs, gamma, lam):
    rollout = random_rollout(seed, steps, envs)
    advantage, target = gae(rollout, gamma, lam)
    expected = slow_gae(*rollout, gamma, lam)
    np.testing.assert_allclose(advantage, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(target, expected + rollout[1][:-1], rtol=1e-4, atol=1e-5)


def slow_vtrace(reward, value, terminated, truncated, valid, log_rho, gamma, lam, rho_bar, c_bar):
    """The sums of IMPALA's equation 1, for each t over the rest of its episode."""
    steps, envs = reward.shape
    target, advantage = value[:-1].copy(), np.zeros((steps, envs))
    rho = np.exp(log_rho)

    def ends(t, n):
        return terminated[t, n] or truncated[t, n]

    for n in range(envs):
        for t in range(steps):
            if not valid[t, n]:
                continue
            weight = 1.0
            for k in range(t, steps):
                after = 0.0 if terminated[k, n] else value[k + 1, n]
                delta = min(rho_bar, rho[k, n]) * (reward[k, n] + gamma * after - value[k, n])
                target[t, n] += weight * delta
                weight *= gamma * lam * min(c_bar, rho[k, n])
                if ends(k, n):
                    break
        for t in range(steps):
            if not valid[t, n]:
                continue
            after = 0.0 if terminated[t, n] else value[t + 1, n]
            if not ends(t, n) and t + 1 < steps:
                after = lam * target[t + 1, n] + (1 - lam) * value[t + 1, n]
            advantage[t, n] = reward[t, n] + gamma * after - value[t, n]
    return advantage, target


@given(
    st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 4), st.floats(0, 1), st.floats(0, 1),
    st.floats(0.1, 3), st.floats(0.1, 3),
)  # fmt: skip
def test_vtrace_is_its_definition(seed, steps, envs, gamma, lam, rho_bar, c_bar):
    rollout = random_rollout(seed, steps, envs)
    log_rho = np.random.default_rng(seed + 1).normal(size=(steps, envs))
    got = vtrace(rollout, log_rho, gamma, lam, rho_bar, c_bar)
    expected = slow_vtrace(*rollout, log_rho, gamma, lam, rho_bar, c_bar)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-3, atol=1e-4)


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_vtrace_with_equal_policies_is_gae(seed, gamma, lam):
    rollout = random_rollout(seed, 15, 3)
    got = vtrace(rollout, np.zeros((15, 3)), gamma, lam, 1.0, 1.0)
    for one, two in zip(got, gae(rollout, gamma, lam), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def slow_upgo(reward, value, terminated, truncated, valid, gamma):
    """The recursion of the returns, written as one."""

    def returned(t, n):
        if terminated[t, n]:
            return reward[t, n]
        if truncated[t, n] or t + 1 == len(reward):
            return reward[t, n] + gamma * value[t + 1, n]
        after = 0.0 if terminated[t + 1, n] else value[t + 2, n]
        better = reward[t + 1, n] + gamma * after >= value[t + 1, n]
        return reward[t, n] + gamma * (returned(t + 1, n) if better else value[t + 1, n])

    advantage = np.zeros(reward.shape)
    for t, n in np.argwhere(valid):
        advantage[t, n] = returned(t, n) - value[t, n]
    return advantage


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 4), st.floats(0, 1))
def test_upgo_is_its_definition(seed, steps, envs, gamma):
    rollout = random_rollout(seed, steps, envs)
    expected = slow_upgo(*rollout, gamma)
    np.testing.assert_allclose(upgo(rollout, gamma), expected, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_lambda_1_is_the_monte_carlo_return(seed, gamma):
    reward, value, terminated, truncated, valid = rollout = random_rollout(seed, 12, 3)
    _, target = gae(rollout, gamma, 1.0)
    for t, n in np.argwhere(valid):
        returned, discount = 0.0, 1.0
        for k in range(t, len(reward)):
            returned += discount * reward[k, n]
            discount *= gamma
            if terminated[k, n]:
                break
            if truncated[k, n] or k + 1 == len(reward):
                returned += discount * value[k + 1, n]
                break
        assert target[t, n] == pytest.approx(returned, rel=1e-4, abs=1e-4)


def test_gae_with_lambda_0_is_the_one_step_error():
    reward, value, terminated, _, valid = steps = random_rollout(3, 20, 5)
    advantage, _ = gae(steps, 0.9, 0.0)
    delta = reward + 0.9 * np.where(terminated, 0, value[1:]) - value[:-1]
    np.testing.assert_allclose(advantage, np.where(valid, delta, 0), rtol=1e-5, atol=1e-6)


def test_a_cut_off_episode_bootstraps_from_its_final_observation_and_an_ended_one_does_not():
    reward, value = np.ones((2, 2)), np.array([[0.0, 0.0], [50.0, 50.0], [7.0, 7.0]])
    terminated, truncated = np.zeros((2, 2), bool), np.zeros((2, 2), bool)
    terminated[0, 0] = truncated[0, 1] = True
    valid = np.array([[True, True], [False, False]])
    advantage, _ = gae(Steps(reward, value, terminated, truncated, valid), 0.99, 0.95)
    np.testing.assert_allclose(advantage, [[1.0, 1.0 + 0.99 * 50.0], [0.0, 0.0]], rtol=1e-6)


def test_what_stands_in_a_reset_row_changes_nothing():
    steps = random_rollout(5, 30, 4)
    one, _ = gae(steps, 0.99, 0.95)
    spoilt = steps._replace(reward=np.where(steps.valid, steps.reward, 1e6))
    two, _ = gae(spoilt, 0.99, 0.95)
    assert np.array_equal(one, two)


WRONG = [
    ("value", np.zeros((5, 3)), r"value has shape \(5, 3\) .* must be \(6, 3\)"),
    ("value", np.zeros((6, 3, 2)), "value has shape"),
    ("valid", np.ones((5, 3)), "valid has .* dtype float64.* bool"),
    ("terminated", np.zeros((5, 2), bool), r"terminated has shape \(5, 2\)"),
    ("reward", np.zeros(5), r"reward has shape \(5,\)"),
    ("reward", np.zeros((5, 3), int), "reward has .* dtype int64.* float"),
]


@pytest.mark.parametrize("function", [gae, vtrace, upgo])
@pytest.mark.parametrize(("name", "array", "message"), WRONG)
def test_arrays_of_another_shape_or_dtype_are_refused(function, name, array, message):
    """Compiled code would read beyond their ends."""
    numbers = {gae: (0.9, 0.9), vtrace: (np.zeros((5, 3)), 0.9, 0.9, 1.0, 1.0), upgo: (0.9,)}
    steps = random_rollout(0, 5, 3)
    function(steps, *numbers[function])
    with pytest.raises(ValueError, match=message):
        function(steps._replace(**{name: array}), *numbers[function])


def test_importance_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="a further array has shape"):
        vtrace(random_rollout(0, 5, 3), np.zeros((4, 3)), 0.9, 0.9, 1.0, 1.0)
