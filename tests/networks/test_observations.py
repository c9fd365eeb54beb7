from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces

from envs import Spaces
from networks.observations import Observations
from settings.config import Config

ACTION = spaces.Discrete(2)


def test_planes_of_zeros_and_ones_become_channels_first_and_are_not_scaled():
    observations = Observations(
        Spaces(spaces.Box(0, 1, (8, 10, 27), np.uint8), ACTION, 0), Config()
    )
    assert observations.shape == (27, 8, 10)
    planes = torch.randint(0, 2, (3, 8, 10, 27), dtype=torch.uint8)
    assert torch.equal(observations(planes), planes.permute(0, 3, 1, 2).float())


def test_the_marks_of_a_stack_are_not_normalised():
    config = Config(normalize_observation=True)
    observations = Observations(Spaces(spaces.Box(-9, 9, (4, 3), np.float32), ACTION, 0), config)
    rows = torch.randn(50, 4, 3) * 3 + 1
    rows[..., -1] = 1.0
    observations.update(rows)
    assert torch.equal(observations(rows)[..., -1], rows[..., -1])
    newest = observations(rows)[:, -1, :-1]
    torch.testing.assert_close(newest.mean(0), torch.zeros(2), atol=1e-5, rtol=0)


def test_the_policy_does_not_see_the_critics_part():
    env_spaces = Spaces(spaces.Box(-9, 9, (5,), np.float32), ACTION, 0, privileged=2)
    observations = Observations(env_spaces, Config())
    assert (observations.shape, observations.policy_shape) == ((5,), (3,))
    assert observations.for_policy(torch.zeros(7, 5)).shape == (7, 3)


def test_images_in_bfloat16_are_the_rounded_ones_of_float32():
    space = spaces.Box(0, 255, (1, 16, 16), np.uint8)
    observations = Observations(Spaces(space, ACTION, 0), Config(network="nature_cnn"))
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    rounded = observations(every).to(torch.bfloat16)
    assert torch.equal(observations(every, torch.bfloat16), rounded)
