"""An agent that is saved and restored goes on as if nothing had happened."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from tests.learning.test_undo import assert_same
from tests.test_agent import collect, make, small


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("CartPole-v1", {"rnd_coefficient": 0.5}),
        ("CartPole-v1", {"normalize_value": True, "normalize_observation": True}),
        ("CartPole-v1", {"noisy_layers": True}),
        ("CartPole-v1", {"carried_steps": 96, "reward_transform": "return_std"}),
        ("CartPole-v1", {"learning_rate_schedule": "kl", "target_kl": 0.01}),
        ("CartPole-v1", {"kl_penalty": "adaptive", "entropy_schedule": "exponential"}),
        ("HalfCheetah-v4", {"estimator": "vtrace", "joint_loss": "mix_loss"}),
        ("tests.toy_envs:Remember", {"network": "lstm"}),
        ("tests.toy_envs:Masked", {}),
        ("tests.toy_envs:Masked", {"replay_batches": 1}),
        ("CartPole-v1", {"replay_batches": 1, "replay_size": 2, "value_epochs": 3}),
    ],
    ids=str,
)
def test_the_next_update_is_the_same_to_the_bit(env, settings, tmp_path):
    config = small(env, **settings)
    agent, pool = make(config)
    rollouts = []
    for fragment in range(3):
        rollouts.append(copy.deepcopy(collect(agent, pool, fragment)))
        if fragment == 2:
            agent.save(tmp_path / "agent")
        metrics = agent.learn(rollouts[-1], fragment / 3)
    pool.close()
    # another seed: everything must come from the checkpoint, and nothing from the start
    other, other_pool = make(dataclasses.replace(config, seed=config.seed + 1))
    other_pool.close()
    other.config = agent.config
    other.restore(tmp_path / "agent")
    assert other.learn(rollouts[-1], 2 / 3) == metrics
    assert_same(other.state(), agent.state())
