"""The critic: what it sees, its units, and how far an update moves it."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from algorithm import PPO
from learning.batches import Minibatch
from settings.sources import parse
from tests.test_agent import collect, make, small


def test_popart_keeps_every_value_when_its_units_move():
    agent, pool = make(small("CartPole-v1", normalize_value=True, rnd_coefficient=0.1))
    obs = torch.randn(50, 4)
    with torch.no_grad():
        before = agent.model.value(obs)
        agent.model.value_head.update_normalizer(torch.randn(200, 2) * 30 + 7)
        torch.testing.assert_close(agent.model.value(obs), before, atol=1e-4, rtol=1e-4)
    assert agent.model.value_head.scale().mean() == pytest.approx(30, rel=0.2)
    pool.close()


def test_a_critic_that_sees_more_than_the_policy_explains_what_the_other_cannot():
    explained = {}
    for name in ("Hidden", "HiddenFromAll"):
        agent, pool = make(small(f"tests.toy_envs:{name}", learning_rate=3e-3, gae_lambda=1.0))
        for fragment in range(15):
            metrics = agent.learn(collect(agent, pool, fragment), 0.0)
        explained[name] = metrics["explained_variance"]
        pool.close()
    assert explained["Hidden"] > 0.8
    assert explained["HiddenFromAll"] < 0.4


def test_what_only_the_critic_sees_does_not_reach_the_policy():
    agent, pool = make(small("tests.toy_envs:Hidden"))
    obs, noise = np.zeros((4, 3), np.float32), np.full(4, 0.3, np.float32)
    other = obs.copy()
    other[:, 1:] = 9.0  # the coin
    torch.testing.assert_close(
        agent.model.act(obs, noise).log_prob, agent.model.act(other, noise).log_prob
    )
    assert not torch.equal(
        agent.model.value(torch.from_numpy(obs)), agent.model.value(torch.from_numpy(other))
    )
    pool.close()


def test_value_clip_bounds_the_change_of_a_whole_update_where_values_are_recomputed_too():
    seen = []

    class Watched(PPO):
        def learn(self, *shares: Minibatch) -> torch.Tensor:
            seen.append(torch.cat([share.old_value for share in shares]).sort().values)
            return super().learn(*shares)

    one_step = {"minibatch_size": 256, "update_epochs": 3, "learning_rate": 0.01}
    config = small("CartPole-v1", value_clip=0.2, recompute_advantages=True, **one_step)
    agent, pool = make(config, Watched)
    agent.learn(collect(agent, pool), 0.0)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    pool.close()


def test_a_critic_of_normalised_values_that_are_clipped_learns_returns_in_the_hundreds():
    """It clips the change of a value at 0.2 of the returns' deviation, not at 0.2."""
    config = parse(["--env", "HalfCheetah-v4", "--preset", "rl-games"])
    config = dataclasses.replace(
        config, env="tests.toy_envs:ConstantReward", env_num=8, rollout_steps=64, batch_size=512,
        minibatch_size=128, compile="off", hidden_sizes=(16,), distribution="auto",
        learning_rate=3e-3, learning_rate_schedule="constant", value_clip=0.2,
    )  # fmt: skip
    assert config.normalize_value
    agent, pool = make(config)
    for update in range(30):
        rollout = copy.deepcopy(collect(agent, pool, update))
        rollout.reward *= 5  # for ever, with gamma 0.99: worth 500
        agent.learn(rollout, 0.0)
    obs = torch.from_numpy(rollout.obs[0])
    # clipped at 0.2 it would stop near 30 x 0.2 = 6
    assert agent.model.value(obs).mean().item() > 100
    pool.close()
