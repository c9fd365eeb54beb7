"""From a rollout to the estimates that an update learns from."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from agent import PPOAgent
from learning.advantages import ESTIMATORS, Estimates, estimate, measure_start
from learning.batches import Batches
from learning.reward_scale import Rewards
from rollout import Rollout
from settings.config import Config
from tests.learning.test_returns import slow_vtrace
from tests.test_agent import collect, make, small


@pytest.mark.slow
def test_endless_reward_cut_off_by_a_time_limit_is_worth_100():
    """Reward 1, limit 10, gamma 0.99: 1 / (1 - 0.99) where cutting off is not ending."""
    config = Config(
        env="tests.toy_envs:ConstantReward", env_num=4, batch_size=128, minibatch_size=32,
        learning_rate=3e-3, learning_rate_schedule="constant", compile="off", hidden_sizes=(16,),
        activation="relu", max_grad_norm=100.0, gae_lambda=0.99,
    )  # fmt: skip
    agent, pool = make(config)
    for update in range(150):
        agent.learn(collect(agent, pool, update), 0.0)
    value = agent.model.value(torch.ones(1, 1)).item()
    assert value == pytest.approx(100.0, abs=2.0)


def test_recomputing_advantages_changes_what_later_epochs_learn():
    runs = {}
    for recompute in (False, True):
        agent, pool = make(small("CartPole-v1", recompute_advantages=recompute))
        agent.learn(collect(agent, pool), 0.0)
        runs[recompute] = agent.weights().arrays["value_head.weight"]
    assert not np.array_equal(runs[False], runs[True])


def estimates_of(agent: PPOAgent, rollout: Rollout) -> tuple[Estimates, np.ndarray | None]:
    """The estimates of an update's first epoch, and V-trace's log-ratios."""
    batches = Batches(agent.config, rollout, agent.model.device)
    log_rho = measure_start(agent.config, rollout, batches, agent.model)
    values = batches.values(agent.alg.value)
    return estimate(agent.config, rollout, Rewards(rollout.reward), values, log_rho), log_rho


def test_vtrace_on_policy_is_gae():
    """rho = 1 but for rounding: the rows are evaluated beside other rows than when they acted."""
    estimates = {}
    for estimator in ("gae", "vtrace", "td_lambda"):
        agent, pool = make(small("CartPole-v1", estimator=estimator))
        estimates[estimator], _ = estimates_of(agent, collect(agent, pool))
        pool.close()
    for one, two in zip(estimates["gae"], estimates["vtrace"], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
    for one, two in zip(estimates["gae"], estimates["td_lambda"], strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("settings", [{}, {"joint_loss": "sub_action"}], ids=str)
def test_vtrace_corrects_for_a_policy_that_has_moved_on(settings):
    agent, pool = make(small("tests.toy_envs:Masked", estimator="vtrace", **settings))
    rollout = collect(agent, pool)
    with torch.no_grad():
        agent.model.policy_head.get_parameter("bias").add_(
            torch.tensor([0.7, -0.7, 0.5, 0.0, -0.5])
        )
    estimates, log_rho = estimates_of(agent, rollout)
    assert log_rho is not None
    obs, action, mask = (
        torch.from_numpy(a).flatten(0, 1)
        for a in (rollout.obs[:-1], rollout.action, rollout.action_mask)
    )
    with torch.no_grad():
        params = agent.model.policy(obs, mask)
        new = agent.model.distribution.log_prob(params, action).view(rollout.valid.shape).numpy()
        values = agent.model.value(torch.from_numpy(rollout.obs).flatten(0, 1)).numpy()
    old = rollout.behaviour_log_prob
    expected = new - (old if old.ndim == 2 else old.sum(-1))
    valid, config = rollout.valid, agent.config
    np.testing.assert_allclose(log_rho[valid], expected[valid], atol=1e-4)
    assert np.abs(expected[valid]).max() > 0.3
    advantage, target = slow_vtrace(
        rollout.reward, values.reshape(len(valid) + 1, -1), rollout.terminated, rollout.truncated,
        valid, expected, config.gamma, config.gae_lambda, config.rho_clip, config.c_clip,
    )  # fmt: skip
    np.testing.assert_allclose(estimates.advantage, advantage, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(estimates.value_target[valid], target[valid], rtol=1e-3, atol=1e-3)
    # V-trace has the correction up to the update's start, so the ratio begins at 1
    assert abs(agent.learn(rollout, 0.0)["first_minibatch_kl"]) < 1e-6
    pool.close()


def test_vtrace_corrects_what_is_expected_of_curiosity_too():
    agent, pool = make(small("CartPole-v1", estimator="vtrace", rnd_coefficient=0.5))
    rollout = collect(agent, pool)
    pool.close()
    config, shape = agent.config, rollout.valid.shape
    assert not rollout.valid.all()
    draw = np.random.default_rng(1)
    bonus = draw.uniform(size=shape).astype(np.float32)
    value = draw.normal(size=(len(bonus) + 1, shape[1], 2)).astype(np.float32)
    log_rho = np.where(rollout.valid, draw.normal(size=shape), np.nan)
    got = estimate(config, rollout, Rewards(rollout.reward, bonus), value, log_rho)
    clips = config.gae_lambda, config.rho_clip, config.c_clip
    ends = rollout.terminated, rollout.truncated, rollout.valid
    extrinsic, target = slow_vtrace(
        rollout.reward, value[..., 0], *ends, log_rho, config.gamma, *clips
    )
    never, always = np.zeros(shape, bool), np.ones(shape, bool)
    known = np.where(rollout.valid, log_rho, 0.0)
    intrinsic, bonus_target = slow_vtrace(
        bonus, value[..., 1], never, never, always, known, config.rnd_gamma, *clips
    )
    np.testing.assert_allclose(got.advantage, extrinsic + 0.5 * intrinsic, rtol=1e-3, atol=1e-3)
    valid = rollout.valid
    np.testing.assert_allclose(got.value_target[valid, 0], target[valid], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got.value_target[..., 1], bonus_target, rtol=1e-3, atol=1e-3)


def test_an_update_learns_from_the_estimates_with_the_correction():
    """Data whose age is hidden are learned from otherwise."""
    weights = []
    for age_is_told in (True, False):
        agent, pool = make(small("CartPole-v1", estimator="vtrace"))
        rollout = collect(agent, pool)
        with torch.no_grad():
            agent.model.policy_head.get_parameter("bias").add_(torch.tensor([0.7, -0.7]))
        if not age_is_told:
            start = Batches(agent.config, rollout, agent.model.device).log_prob(agent.model)
            rollout.behaviour_log_prob[:] = start.numpy()
        agent.learn(rollout, 0.0)
        weights.append(agent.weights().arrays["policy_head.weight"])
        pool.close()
    assert np.abs(weights[0] - weights[1]).max() > 1e-4


def test_every_estimator_of_the_table_is_a_setting():
    assert set(get_args(get_type_hints(Config)["estimator"])) == set(ESTIMATORS)


@pytest.mark.parametrize("estimator", ["monte_carlo", "upgo"])
def test_every_estimator_learns(estimator):
    agent, pool = make(small("CartPole-v1", estimator=estimator))
    before = agent.model.get_weights()["actor.0.weight"]
    metrics = agent.learn(collect(agent, pool), 0.0)
    assert np.isfinite(list(metrics.values())).all()
    assert not np.array_equal(before, agent.model.get_weights()["actor.0.weight"])
    pool.close()


def test_carried_rows_are_older_and_are_counted_once():
    """64 rows are learned from, 96 are carried: the last 32 of the 64 were there once before."""
    agent, pool = make(small("CartPole-v1", carried_steps=96, normalize_value=True))
    ages, learned = [], 0
    for fragment in range(4):
        rollout = collect(agent, pool, fragment)
        rollout.policy_version = fragment
        ages.append(agent.learn(rollout, 0.0)["policy_lag_mean"])
        learned += rollout.valid[:64].sum()
    moments = agent.model.value_head.moments
    assert moments is not None
    assert moments.count == learned
    # fragment 1 learns from rows 64 to 127 of fragment 0; fragment 2 from its last 32 rows and 32
    # that came with fragment 1; fragment 3 from 32 of fragment 1 and 32 of fragment 2
    assert ages == [0.0, 1.0, 1.5, 1.5]
    pool.close()
