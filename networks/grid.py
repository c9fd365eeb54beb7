"""GridNet: networks that keep the cells of a map apart, for policies that act in each of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from networks.layers import Linear, convolution, orthogonal


class GridNet(nn.Module):
    """Planes [B, C, H, W] -> features of each cell [B, 64, H, W] and of the whole map [B, 128].

    The policy acts in each cell, and values are those of the whole map. The network is an encoder and a decoder
    after Huang et al. 2021 (arXiv 2105.13807, figure 5), with the first layer's own features beside the decoder's;
    or, plain, three layers at the map's resolution.
    """

    def __init__(self, obs_shape: tuple[int, ...], plain: bool):
        super().__init__()
        self.plain = plain
        planes, *size = obs_shape
        self.size = tuple(size)
        self.first = convolution(planes, 32, 3, padding=1)
        self.second = convolution(32, 64, 3, padding=1)
        if plain:
            self.third = convolution(64, 64, 3, padding=1)
            whole = 2 * 64
        else:
            self.third = convolution(64, 32, 3, padding=1)
            halved = [(side + 1) // 2 for side in size]
            whole = 64 * math.prod((side + 1) // 2 for side in halved)
        self.whole = orthogonal(Linear(whole, 128), math.sqrt(2))
        # planes come as [H, W, C], and cells are picked from [B, H, W]: no copy on either side
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        near = self.first(obs).relu()
        if self.plain:
            cells = self.third(self.second(near).relu()).relu()
            whole = torch.cat([cells.mean((2, 3)), cells.amax((2, 3))], -1)
        else:
            half = max_pool2d(near, 3, 2, 1)
            coarse = max_pool2d(self.second(half).relu(), 3, 2, 1)
            whole = coarse.flatten(1)
            back = interpolate(self.third(coarse).relu(), self.size, mode="nearest")
            cells = torch.cat([near, back], 1)
        return cells, self.whole(whole).relu()


class GridHead(nn.Module):
    """Logits of a cell's choices, for the cells that are asked for: few of a map may act.

    Args:
        channels: features of a cell.
        choices: S, sizes of its sub-actions, summed.
    """

    def __init__(self, channels: int, choices: int):
        super().__init__()
        self.layer = orthogonal(Linear(channels, choices), 0.01)

    def forward(self, cells: Tensor) -> Callable[[Tensor], Tensor]:
        """Features [B, channels, H, W] -> a function of cells [U], each row * H * W + cell.

        Its values are their logits [U, S].
        """
        by_cell = cells.permute(0, 2, 3, 1).flatten(0, 2)
        return lambda acting: self.layer(by_cell[acting])
