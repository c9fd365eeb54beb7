"""Networks over images [C, H, W]: convolutions, and then one dense layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from networks.layers import Linear, WrongNetwork, convolution, orthogonal

LEAST_SIDE = 36  # pixels, of nature_cnn's images
NATURE_BLOCK = 4  # pixels a side that nature_cnn takes together


def _flattened(
    convolutions: nn.Sequential, obs_shape: tuple[int, ...], width: int
) -> nn.Sequential:
    """Convolutions, and then one dense layer of ReLU units: [B, C, H, W] -> [B, width]."""
    with torch.no_grad():
        flat = convolutions(torch.zeros(1, *obs_shape)).shape[1]
    dense = orthogonal(Linear(flat, width), math.sqrt(2))
    return nn.Sequential(*convolutions, dense, nn.ReLU())


def in_blocks(images: Tensor, side: int) -> Tensor:
    """Images [B, C, H, W] in blocks of side x side pixels: [B, side * side * C, H / side, W / side].

    What is left over at the right and below is cut off. In memory the channels come last.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // side, width // side
    pixels = images.permute(0, 2, 3, 1)[:, : rows * side, : columns * side]
    blocks = pixels.reshape(batch, rows, side, columns, side * channels).transpose(2, 3)
    return blocks.reshape(batch, rows, columns, side * side * channels).permute(0, 3, 1, 2)


class BlockConv2d(nn.Conv2d):
    """A convolution of a size that its stride s divides, of images [B, C, H, W] or of `in_blocks`.

    Over blocks of s x s pixels it is one of stride 1. Processors multiply matrices faster the longer
    their rows are, and Atari's 4 channels are few.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[1] == self.in_channels:
            return super().forward(input)
        side = self.stride[0]
        weight = self.weight.unflatten(3, (-1, side)).unflatten(2, (-1, side))
        weight = weight.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
        return conv2d(input, weight, self.bias)


def nature_cnn(obs_shape: tuple[int, ...]) -> nn.Sequential:
    """The network of Mnih et al. 2015: [B, C, H, W] in [0, 1], or `in_blocks` -> [B, 512]."""
    if min(obs_shape[1:]) < LEAST_SIDE:
        raise WrongNetwork(
            f"network nature_cnn takes images of at least {LEAST_SIDE}x{LEAST_SIDE}, these are {obs_shape[1:]}: give"
            f" --network impala"
        )
    convolutions = nn.Sequential(
        orthogonal(BlockConv2d(obs_shape[0], 32, 8, NATURE_BLOCK), math.sqrt(2)), nn.ReLU(),
        convolution(32, 64, 4, 2), nn.ReLU(),
        convolution(64, 64, 3), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    return _flattened(convolutions, obs_shape, 512)


class _Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = convolution(channels, channels, 3, padding=1)
        self.second = convolution(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x.relu()).relu())


def impala(obs_shape: tuple[int, ...]) -> nn.Sequential:
    """The residual network of Espeholt et al. 2018 (arXiv 1802.01561, figure 3): -> [B, 256]."""
    layers: list[nn.Module] = []
    inputs = obs_shape[0]
    for channels in (16, 32, 32):
        layers += [
            convolution(inputs, channels, 3, padding=1), nn.MaxPool2d(3, 2, 1),
            _Residual(channels), _Residual(channels),
        ]  # fmt: skip
        inputs = channels
    return _flattened(nn.Sequential(*layers, nn.ReLU(), nn.Flatten()), obs_shape, 256)


def microrts_cnn(obs_shape: tuple[int, ...]) -> nn.Sequential:
    """The small network for microRTS's planes of Song et al. 2023 (arXiv 2301.10919)."""
    convolutions = nn.Sequential(
        convolution(obs_shape[0], 16, 3, 2), nn.ReLU(), convolution(16, 32, 2), nn.ReLU(),
        nn.Flatten(),
    )  # fmt: skip
    return _flattened(convolutions, obs_shape, 256)
