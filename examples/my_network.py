"""A network of your own: `python ../train.py --env Pendulum-v1 --network my_network:Residual`."""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Observations [B, *obs_shape], normalised, to features [B, any number]."""

    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__()
        self.enter = nn.Linear(obs_shape[0], 64)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))

    def forward(self, obs: Tensor) -> Tensor:
        x = self.enter(obs)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x
