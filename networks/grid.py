"""GridNet: networks that keep the cells of a map apart, for policies that act in each of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from distributions.discrete import CellLogits, masked
from networks.layers import Linear, convolution, orthogonal


class GridFeatures(NamedTuple):
    """Features of each cell, for a policy that acts in each, and of the whole map, for values."""

    cells: Tensor  # [B, channels, H, W]
    whole: Tensor  # [B, 128]


class GridNet(nn.Module):
    """[B, C, H, W] -> `GridFeatures`.

    An encoder and a decoder after Huang et al. 2021 (arXiv 2105.13807, figure 5), with the first
    layer's own features beside the decoder's; or, plain, three layers at the map's resolution.
    """

    channels = 64
    features = 128

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
        self.whole = orthogonal(Linear(whole, self.features), math.sqrt(2))
        # as the planes come, and as cells are picked
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, obs: Tensor) -> GridFeatures:
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
        return GridFeatures(cells, self.whole(whole).relu())


class GridHead(nn.Module):
    """Logits of the choices of those cells that may act.

    Args:
        channels: features of a cell.
        choices: S, sizes of its sub-actions, summed.
    """

    def __init__(self, channels: int, choices: int):
        super().__init__()
        self.layer = orthogonal(Linear(channels, choices), 0.01)

    def forward(self, cells: Tensor, mask: Tensor) -> CellLogits:
        """`cells` [B, channels, H, W], `mask` [B, H * W * S] bool."""
        legal = mask.view(-1, self.layer.out_features)
        acting = legal.any(-1).nonzero().squeeze(-1)
        features = cells.permute(0, 2, 3, 1).flatten(0, 2)[acting]
        return CellLogits(masked(self.layer(features), legal[acting]), acting, len(cells))
