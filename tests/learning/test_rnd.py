"""Random Network Distillation in an agent's updates: what its bonus is for, and when it wears off."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from networks.rnd import RND
from tests.test_agent import collect, make, small


def test_a_bonus_is_for_what_is_new_and_wears_off():
    agent, pool = make(small("CartPole-v1", rnd_coefficient=1.0, learning_rate=1e-3))
    rollout = collect(agent, pool)
    agent.initialize_normalizer(rollout)
    bonuses = []
    for update in range(40):
        rollout.reset = np.full(rollout.reward.shape[1], update == 0)
        bonuses.append(agent.learn(rollout, 0.0)["intrinsic_reward"])
    assert bonuses[-1] < 0.5 * bonuses[0]
    known = torch.from_numpy(rollout.obs[:-1]).flatten(0, 1)
    new = known + 4 * known.std(0)
    rnd = agent.model.rnd
    assert rnd is not None
    with torch.no_grad():
        assert rnd.error(new).mean() > 3 * rnd.error(known).mean()
    assert not rnd.target.get_parameter("0.0.weight").requires_grad
    pool.close()


def test_a_bonus_for_an_episodes_last_observation_wears_off_too():
    agent, pool = make(small("CartPole-v1", rnd_coefficient=1.0, learning_rate=1e-3))
    rollout = collect(agent, pool)
    agent.initialize_normalizer(rollout)
    # a final observation stands in the row of its episode's reset, which is not valid
    final = torch.tensor([1.0, -2.0, 0.0, 2.0])
    rollout.obs[:-1][~rollout.valid] = final
    assert 4 < (~rollout.valid).sum() < rollout.valid.sum()
    rnd = agent.model.rnd
    assert rnd is not None
    for update in range(40):
        rollout.reset = np.full(rollout.reward.shape[1], update == 0)
        agent.learn(rollout, 0.0)
    seen, unseen = rnd.error(torch.stack([final, -final])).tolist()
    assert seen < 0.1 * unseen
    pool.close()


@pytest.mark.parametrize(("shape", "stacks_frames"), [((3, 40, 40), False), ((4, 84, 84), True)])
def test_all_of_an_image_counts_but_of_stacked_frames_the_newest(shape, stacks_frames):
    rnd = RND(shape, stacks_frames)
    obs = torch.rand(2, *shape).round()
    other = obs.clone()
    other[:, :-1] = 1 - other[:, :-1]
    assert torch.equal(rnd.error(obs), rnd.error(other)) == stacks_frames
    assert not torch.equal(rnd.error(obs), rnd.error(1 - obs))
