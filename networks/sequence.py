"""Networks over time: an LSTM, whose state fragments carry, and a small Transformer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from networks.layers import Linear, WrongNetwork, mlp, orthogonal
from networks.recurrence import unroll


def _each(layer: nn.Module, x: Tensor) -> Tensor:
    """A `Linear` of all rows [A, B, inputs] -> [A, B, outputs].

    The bias is added last, in the last shape: the compiler makes it one loop with what follows. As
    a part of the product it would be copied into all rows first, which takes longer than to add it.
    """
    assert isinstance(layer, Linear)
    return (
        Linear.rowwise(x.flatten(0, 1), layer.weight, None).unflatten(0, x.shape[:2]) + layer.bias
    )


class Lstm(nn.Module):
    """An mlp, and over it an LSTM (Hochreiter & Schmidhuber 1997) as wide as its last layer.

    A state [E, 2 * width] is the hidden and the cell state; at the start of an episode it is 0.
    """

    def __init__(self, inputs: int, hidden_sizes: tuple[int, ...], activation: str):
        super().__init__()
        if not hidden_sizes:
            raise WrongNetwork(
                "hidden_sizes is empty, but network lstm is as wide as the last of them: give one"
            )
        self.encoder = mlp(inputs, hidden_sizes, activation)
        self.width = hidden_sizes[-1]
        self.state_size = 2 * self.width
        self.of_input = orthogonal(Linear(self.width, 4 * self.width), 1.0)
        self.of_hidden = orthogonal(Linear(self.width, 4 * self.width), 1.0)
        with torch.no_grad():
            self.of_input.bias[self.width : 2 * self.width] = (
                1.0  # the forget gate is open at first
            )

    def _step(self, gates: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden, cell = state.chunk(2, -1)
        put, keep, new, show = (gates + self.of_hidden(hidden)).chunk(4, -1)
        cell = keep.sigmoid() * cell + put.sigmoid() * new.tanh()
        hidden = show.sigmoid() * cell.tanh()
        return hidden, torch.cat([hidden, cell], -1)

    def forward(self, obs: Tensor, state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """Features [T * E, width] and the state after the last step [E, 2 * width].

        On the CPU no gradient flows through the states before and after: nothing learns from them.

        Args:
            obs: [T * E, inputs], step by step.
            state: [E, 2 * width] before the first.
            begins: [T * E] bool, whether an episode begins with this observation.
        """
        envs = len(state)
        gates = _each(self.of_input, self.encoder(obs).unflatten(0, (-1, envs)))
        if len(gates) > 1 and not gates.is_cuda:  # one step, as in acting, is done by torch alone
            gates, begins = gates + self.of_hidden.bias, begins.view(-1, envs)
            hidden, cell, _ = unroll(gates, self.of_hidden.weight, state, begins)
            return hidden.flatten(0, 1), torch.cat([hidden[-1], cell[-1]], -1).detach()
        goes_on = (~begins).view(-1, envs, 1)
        features = []
        for t in range(len(gates)):
            hidden, state = self._step(gates[t], state * goes_on[t])
            features.append(hidden)
        return torch.cat(features), state


class Transformer(nn.Module):
    """Self-attention over an episode's last observations (Vaswani et al. 2017), normalised first.

    [B, steps, inputs] -> [B, 64], taken at the newest observation's place. An observation whose last
    input is 0 is missing, and nothing attends to it.
    """

    width, heads, layers = 64, 4, 2

    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__()
        steps, inputs = obs_shape
        self.embed = orthogonal(Linear(inputs, self.width), 1.0)
        self.place = nn.Parameter(torch.zeros(steps, self.width))
        gain = 0.5  # residual branches begin small
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(self.width),
                    "split": orthogonal(Linear(self.width, 3 * self.width), 1.0),
                    "join": orthogonal(Linear(self.width, self.width), gain),
                    "norm_after": nn.LayerNorm(self.width),
                    "widen": orthogonal(Linear(self.width, 2 * self.width), math.sqrt(2)),
                    "narrow": orthogonal(Linear(2 * self.width, self.width), gain),
                }
            )
            for _ in range(self.layers)
        )
        self.norm = nn.LayerNorm(self.width)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, present: Tensor) -> Tensor:
        """Queries [B, places, width], keys and values [B, steps, width] -> [B, places, width]."""
        query, key, value = (
            rows.unflatten(-1, (self.heads, -1)).transpose(1, 2) for rows in (query, key, value)
        )
        score = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        score = score.masked_fill(~present[:, None, None, :], -1e9)
        return (score.softmax(-1) @ value).transpose(1, 2).flatten(2)

    def forward(self, obs: Tensor) -> Tensor:
        present = obs[..., -1] > 0

        x = _each(self.embed, obs) + self.place
        for number, block in enumerate(self.blocks, 1):
            assert isinstance(block, nn.ModuleDict)
            query, key, value = _each(block["split"], block["norm"](x)).chunk(3, -1)
            if number == self.layers:  # nothing reads the older places of the last block
                x, query = x[:, -1:], query[:, -1:]
            x = x + _each(block["join"], self._attend(query, key, value, present))
            wide = _each(block["widen"], block["norm_after"](x)).relu()
            x = x + _each(block["narrow"], wide)
        return self.norm(x[:, -1])
