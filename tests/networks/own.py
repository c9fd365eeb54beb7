"""Networks such as a user may bring, good ones and bad ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """A recurrent network: a running average of a layer's outputs, which is also its state."""

    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__()
        self.layer = nn.Linear(obs_shape[0], 6)
        self.state_size = 6

    def forward(self, obs: Tensor, state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        steps, envs = len(begins) // len(state), len(state)
        new = torch.tanh(self.layer(obs)).view(steps, envs, 6)
        goes_on = (~begins).view(steps, envs, 1)
        features = []
        for t in range(steps):
            state = 0.5 * state * goes_on[t] + new[t]
            features.append(state)
        return torch.cat(features), state


class WithoutSize(Average):
    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__(obs_shape)
        del self.state_size


class WrongSize(Average):
    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__(obs_shape)
        self.state_size = 7


class Pictures(nn.Module):
    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(obs_shape[0], 4, 5, 3), nn.ReLU(), nn.Flatten())
        self.dense = nn.Linear(self.layers(torch.zeros(1, *obs_shape)).shape[1], 32)

    def forward(self, obs: Tensor) -> Tensor:
        return self.dense(self.layers(obs))
