"""Networks such as a user may bring, good ones and bad ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """A running average of a layer's outputs, begun anew with each episode."""

    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__()
        self.layer = nn.Linear(obs_shape[0], 32)
        self.state_size = 32  # entries of one environment's state, which is 0 at first

    def forward(self, obs: Tensor, state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """Of T steps of E environments, step by step: obs [T * E, ...], state [E, state_size] before
        them, begins [T * E], whether an episode begins there -> features [T * E, any number], and the
        state after them."""
        new = torch.tanh(self.layer(obs)).view(-1, *state.shape)
        goes_on = (~begins).view(len(new), -1, 1)
        features = []
        for t in range(len(new)):
            state = 0.9 * state * goes_on[t] + new[t]
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


class Planes(nn.Module):
    """Takes for granted what it is given."""

    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__()
        self.dense = nn.Linear(obs_shape[2], 32)


class Asserts(nn.Module):
    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__()
        self.dense = nn.Linear(obs_shape[0], 32)

    def forward(self, obs: Tensor) -> Tensor:
        assert obs.dim() == 4, "images only"
        return self.dense(obs)


class Branches(nn.Module):
    """What it computes depends on what it sees."""

    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__()
        self.dense = nn.Linear(obs_shape[0], 32)

    def forward(self, obs: Tensor) -> Tensor:
        return self.dense(obs if obs.sum() > 0 else -obs)


class Half(Branches):
    """Keeps weights in half the bits."""

    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__(obs_shape)
        self.dense = self.dense.to(torch.bfloat16)

    def forward(self, obs: Tensor) -> Tensor:
        return self.dense(obs.to(torch.bfloat16)).float()


class Bessel(Branches):
    """ONNX has no such function."""

    def forward(self, obs: Tensor) -> Tensor:
        dense = self.dense(obs)
        return dense + torch.special.bessel_j0(dense.detach())


class Normalises(nn.Module):
    """Its output for a row depends on the others."""

    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(obs_shape[0], 8), nn.BatchNorm1d(8))

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs)


class Drops(Normalises):
    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__(obs_shape)
        self.layers = nn.Sequential(nn.Linear(obs_shape[0], 8), nn.Dropout(0.1))


class Attends(Normalises):
    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__(obs_shape)
        self.layers = nn.MultiheadAttention(obs_shape[0], 1, dropout=0.5)


class Double(nn.Module):
    """What it gives has twice the precision of the layers after it."""

    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__()
        self.dense = nn.Linear(obs_shape[0], 8).double()

    def forward(self, obs: Tensor) -> Tensor:
        return self.dense(obs.double())


class Frozen(Normalises):
    """Its first layers were learned elsewhere, and stay as they are."""

    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__(obs_shape)
        self.layers = self.layers.eval().requires_grad_(False)
        self.dense = nn.Linear(8, 8)

    def forward(self, obs: Tensor) -> Tensor:
        return self.dense(self.layers(obs))


class Forgets(Normalises):
    """It has a layer that it does not use."""

    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__(obs_shape)
        self.layers = nn.Linear(obs_shape[0], 8)
        self.spare = nn.Linear(8, 8, bias=False)
