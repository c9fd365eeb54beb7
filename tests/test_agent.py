from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from agent import NotFinite, PPOAgent
from algorithm import PPO
from cluster.pool import InlinePool
from cluster.sampler import spec_of
from config import Config
from envs import spaces_of
from model import make_model
from rollout import Rollout
from settings import preset


def make(config: Config) -> tuple[PPOAgent, InlinePool]:
    found = spaces_of(config.env)
    model = make_model(found, config)
    spec = spec_of(found, model.distribution, config.steps_per_rollout)
    return PPOAgent(PPO(model, config), config), InlinePool(config, spec)


def small(env: str, **settings) -> Config:
    return dataclasses.replace(preset(env), env_num=4, batch_size=256, minibatch_size=64,
                               update_epochs=2, compile="off", **settings)  # fmt: skip


def collect(agent: PPOAgent, pool: InlinePool, fragment: int = 0) -> Rollout:
    pool.request(agent.weights(), fragment, fragment == 0)
    return pool.gather()


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("HalfCheetah-v4", {}),
        ("HalfCheetah-v4", {"distribution": "beta"}),
        ("CartPole-v1", {}),
        ("PongNoFrameskip-v4", {"precision": "float32"}),
    ],
)
def test_the_first_minibatch_has_ratio_one_at_lag_0(env, settings):
    """Also in later updates, when the normaliser has moved."""
    agent, pool = make(small(env, **settings))
    for fragment in range(2):
        rollout = collect(agent, pool, fragment)
        obs = torch.from_numpy(rollout.observations()[:-1]).flatten(0, 1)
        with torch.no_grad():
            params = agent.model.policy(obs)
        action = torch.from_numpy(rollout.action).flatten(0, 1)
        log_prob = agent.model.distribution.log_prob(params, action).numpy()
        ratio = np.exp(log_prob - rollout.behaviour_log_prob.flatten())
        np.testing.assert_allclose(ratio, 1.0, atol=2e-5)
        metrics = agent.learn(rollout, 0.0, fragment == 0)
        assert abs(metrics["first_minibatch_kl"]) < 1e-6
        assert metrics["approx_kl"] > 0


def test_endless_reward_cut_off_by_a_time_limit_is_worth_100():
    """Reward 1, limit 10, gamma 0.99: 1 / (1 - 0.99) where cutting off is not ending."""
    config = Config(
        env="tests.toy_envs:ConstantReward", env_num=4, batch_size=128, minibatch_size=32,
        learning_rate=3e-3, learning_rate_schedule="constant", compile="off", hidden_sizes=(16,),
        activation="relu", max_grad_norm=100.0, gae_lambda=0.99,
    )  # fmt: skip
    agent, pool = make(config)
    for update in range(150):
        agent.learn(collect(agent, pool, update), 0.0, update == 0)
    value = agent.model.value(torch.ones(1, 1)).item()
    assert value == pytest.approx(100.0, abs=2.0)


def test_an_update_is_a_function_of_its_inputs():
    digests = []
    for _ in range(2):
        agent, pool = make(small("CartPole-v1"))
        for update in range(3):
            agent.learn(collect(agent, pool, update), update / 3, update == 0)
        digests.append({n: a.tobytes() for n, a in agent.weights().arrays.items()})
    assert digests[0] == digests[1]


def test_a_saved_agent_is_restored_to_the_bit(tmp_path):
    config = small("HalfCheetah-v4", learning_rate_schedule="kl")
    agent, pool = make(config)
    rollouts = [collect(agent, pool, 0)]
    agent.learn(rollouts[0], 0.0, True)
    agent.save(tmp_path / "agent")
    other, _ = make(dataclasses.replace(config, seed=9))
    other.config = config
    other.restore(tmp_path / "agent")
    rollout = collect(agent, pool, 1)
    assert agent.learn(rollout, 0.5, False) == other.learn(rollout, 0.5, False)
    for one, two in zip(agent.state()[0].values(), other.state()[0].values(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_loss_that_is_not_finite_leaves_no_trace():
    agent, pool = make(small("CartPole-v1"))
    rollout = collect(agent, pool)
    agent.learn(rollout, 0.0, True)
    before = agent.state()[0]
    rollout.reward[3, 1] = np.nan
    with pytest.raises(NotFinite, match="update 1, gradient step"):
        agent.learn(rollout, 0.0, True)
    for name, array in agent.state()[0].items():
        np.testing.assert_array_equal(array, before[name])


def test_schedules_follow_progress():
    agent, pool = make(small("CartPole-v1"))
    rollout = collect(agent, pool)
    assert agent.learn(rollout, 0.0, True)["learning_rate"] == pytest.approx(1e-3)
    assert agent.learn(rollout, 0.75, False)["learning_rate"] == pytest.approx(0.25e-3)
    assert agent.alg.clip_range.item() == pytest.approx(0.2 * 0.25)  # clip_schedule linear


def test_learning_rate_follows_the_measured_kl():
    base = {"learning_rate_schedule": "kl", "learning_rate": 1e-3}
    agent, pool = make(small("CartPole-v1", **base, desired_kl=1e-9))
    agent.learn(collect(agent, pool), 0.0, True)
    assert agent.learning_rate == pytest.approx(1e-3 / 1.5)
    agent, pool = make(small("CartPole-v1", **base, desired_kl=10.0))
    agent.learn(collect(agent, pool), 0.0, True)
    assert agent.learning_rate == pytest.approx(1.5e-3)


def test_target_kl_ends_an_update_early():
    agent, pool = make(small("CartPole-v1", target_kl=0.0))
    agent.config.update_epochs = 5
    assert agent.learn(collect(agent, pool), 0.0, True)["epochs"] == 1


def test_recomputing_advantages_changes_what_later_epochs_learn():
    runs = {}
    for recompute in (False, True):
        agent, pool = make(small("CartPole-v1", recompute_advantages=recompute))
        agent.learn(collect(agent, pool), 0.0, True)
        runs[recompute] = agent.weights().arrays["value_head.weight"]
    assert not np.array_equal(runs[False], runs[True])


def test_sign_rewards_are_learned_from_and_raw_ones_reported():
    agent, pool = make(small("CartPole-v1", reward_transform="sign"))
    rollout = collect(agent, pool)
    rollout.reward *= 7
    assert set(np.unique(agent._transform(rollout))) <= {0.0, 1.0}
    assert rollout.reward.max() == 7
    assert all(e.episode_return == e.length for e in rollout.episodes)


def test_the_normaliser_can_be_given_its_first_statistics():
    agent, pool = make(small("CartPole-v1", normalize_observation=True))
    rollout = collect(agent, pool)
    agent.initialize_normalizer(rollout)
    seen = rollout.obs[:-1][rollout.valid].astype("f8")
    np.testing.assert_allclose(agent.model.obs_mean, seen.mean(0), rtol=1e-6)
    np.testing.assert_allclose(agent.model.obs_var, seen.var(0), rtol=1e-6)


def test_the_normaliser_sees_no_reset_rows():
    agent, pool = make(small("CartPole-v1", normalize_observation=True))
    rollout = collect(agent, pool)
    assert (~rollout.valid).any()
    agent.learn(rollout, 0.0, True)
    assert agent.model.obs_count == rollout.steps
    np.testing.assert_allclose(
        agent.model.obs_mean, rollout.obs[:-1][rollout.valid].astype("f8").mean(0), rtol=1e-6
    )
