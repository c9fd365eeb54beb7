from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from learning.surrogate import MOST_LOG_RATIO, bounded, joint_surrogate
from settings.config import Config
from tests.test_algorithm import make_ppo, random_batch


def test_a_log_ratio_is_bounded_above_alone():
    """Actions that have become unlikely keep the KL's gradient, which is to bring them back."""
    given = torch.tensor([-300.0, -25.0, 0.0, 19.0, 25.0, 300.0], requires_grad=True)
    log_ratio = bounded(given)
    divergence = log_ratio.exp() - 1 - log_ratio
    divergence.sum().backward()
    assert divergence.isfinite().all()
    assert log_ratio.tolist() == [-300.0, -25.0, 0.0, 19.0, MOST_LOG_RATIO, MOST_LOG_RATIO]
    assert given.grad is not None
    torch.testing.assert_close(given.grad[:2], torch.tensor([-1.0, -1.0]))
    assert given.grad.isfinite().all()


@pytest.mark.parametrize("joint_loss", ["sub_action", "mix_ratio", "mix_loss"])
def test_with_one_sub_action_every_joint_loss_is_the_compound_one(joint_loss):
    one = spaces.Box(-1, 1, (1,), np.float32)
    compound = make_ppo(one)
    other = make_ppo(one, joint_loss=joint_loss)
    batch = random_batch(compound)
    by_sub_action = batch._replace(behaviour_log_prob=batch.behaviour_log_prob.unsqueeze(-1))
    torch.testing.assert_close(compound.loss(batch), other.loss(by_sub_action))


def test_sub_actions_without_a_choice_count_in_no_mean():
    log_ratio = torch.tensor([[0.1, -0.1, 0.0, 0.0]])
    behaviour = torch.tensor([[-1.0, -2.0, 0.0, 0.0]])
    config = Config(joint_loss="sub_action")
    clip, advantage = torch.tensor(0.5), torch.tensor([2.0])
    weight = torch.tensor(config.mix_weight)
    got = joint_surrogate(config, log_ratio, behaviour, advantage, clip, weight)
    expected = joint_surrogate(config, log_ratio[:, :2], behaviour[:, :2], advantage, clip, weight)
    torch.testing.assert_close(got, expected)
