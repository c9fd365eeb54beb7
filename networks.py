"""The networks that `--network` names: functions of observations to features [B, features]."""

from __future__ import annotations

import importlib
import math
import os
import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, max_pool2d, pad

from categorical import CellLogits, masked
from errors import UserError

# Libraries take another kernel, with another order of summation, for another number of rows. For an
# action not to depend on how many environments stand beside it, and so on how they are spread over
# samplers, matrices are multiplied in blocks of this many rows
_BLOCK_ROWS = 16

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU,
}  # fmt: skip
GRIDS = ("gridnet", "gridnet_cnn")  # networks that keep the map's cells apart
IMAGES = ("nature_cnn", "impala", "microrts_cnn", *GRIDS)
VECTORS = ("mlp",)


class WrongNetwork(UserError):
    """A network that does not fit the observations, or that does not exist."""


def orthogonal(layer: Any, gain: float) -> Any:
    """Initialise a layer's weights orthogonally with this gain (Saxe et al. 2014), biases at 0."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Linear(nn.Linear):
    """A linear layer [B, inputs] -> [B, outputs] that acts on each row alone, bit for bit.

    It does so in inference mode, in which the samplers act; the learner is spared the cost.
    """

    def forward(self, input: Tensor) -> Tensor:
        return self.rowwise(input, self.weight, self.bias)

    @staticmethod
    def rowwise(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # in this order: the compiler cannot trace the second question
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return linear(input, weight, bias)
        rows = len(input)
        padded = pad(input, (0, 0, 0, -rows % _BLOCK_ROWS))
        blocks = [linear(block, weight, bias) for block in padded.split(_BLOCK_ROWS)]
        return torch.cat(blocks)[:rows]


class NoisyLinear(Linear):
    """A linear layer whose weights are perturbed: w + sigma * noise (Fortunato et al. 2018).

    The noise is a buffer, drawn anew after each update (`resample`), so that it travels with the
    weights: learner and samplers perturb alike, and the ratio of an unchanged policy is 1.
    """

    SIGMA = 0.017  # at the start, for independent noise
    weight_noise: Tensor
    bias_noise: Tensor

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.weight_sigma = nn.Parameter(torch.full((outputs, inputs), self.SIGMA))
        self.bias_sigma = nn.Parameter(torch.full((outputs,), self.SIGMA))
        self.register_buffer("weight_noise", torch.zeros(outputs, inputs))
        self.register_buffer("bias_noise", torch.zeros(outputs))
        self.quiet = False  # for greedy actions: as if the noise were 0

    def resample(self, generator: np.random.Generator) -> None:
        for noise in (self.weight_noise, self.bias_noise):
            drawn = generator.standard_normal(tuple(noise.shape), np.float32)
            noise.copy_(torch.from_numpy(drawn))

    def forward(self, input: Tensor) -> Tensor:
        if self.quiet:
            return self.rowwise(input, self.weight, self.bias)
        weight = self.weight + self.weight_sigma * self.weight_noise
        return self.rowwise(input, weight, self.bias + self.bias_sigma * self.bias_noise)


def mlp(
    inputs: int, hidden_sizes: tuple[int, ...], activation: str, noisy: bool = False
) -> nn.Sequential:
    """A multi-layer perceptron [B, inputs] -> [B, hidden_sizes[-1]]; `noisy`: in its last layer."""
    layers: list[nn.Module] = []
    for at, width in enumerate(hidden_sizes, 1):
        kind = NoisyLinear if noisy and at == len(hidden_sizes) else Linear
        layers += [orthogonal(kind(inputs, width), math.sqrt(2)), ACTIVATIONS[activation]()]
        inputs = width
    return nn.Sequential(*layers)


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0) -> Any:
    return orthogonal(nn.Conv2d(inputs, outputs, size, stride, padding), math.sqrt(2))


def _flattened(
    convolutions: nn.Sequential, obs_shape: tuple[int, ...], width: int
) -> nn.Sequential:
    """Convolutions, and then one dense layer of ReLU units: [B, C, H, W] -> [B, width]."""
    with torch.no_grad():
        flat = convolutions(torch.zeros(1, *obs_shape)).shape[1]
    dense = orthogonal(Linear(flat, width), math.sqrt(2))
    return nn.Sequential(*convolutions, dense, nn.ReLU())


def nature_cnn(obs_shape: tuple[int, ...]) -> nn.Sequential:
    """The network of Mnih et al. 2015: [B, C, H, W] in [0, 1] -> [B, 512]."""
    if min(obs_shape[1:]) < 36:
        raise WrongNetwork(
            f"network nature_cnn takes images of at least 36x36, these are {obs_shape[1:]}: give"
            f" --network impala"
        )
    convolutions = nn.Sequential(
        _convolution(obs_shape[0], 32, 8, 4), nn.ReLU(),
        _convolution(32, 64, 4, 2), nn.ReLU(),
        _convolution(64, 64, 3), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    return _flattened(convolutions, obs_shape, 512)


class _Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = _convolution(channels, channels, 3, padding=1)
        self.second = _convolution(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x.relu()).relu())


def impala(obs_shape: tuple[int, ...]) -> nn.Sequential:
    """The residual network of Espeholt et al. 2018 (arXiv 1802.01561, figure 3): -> [B, 256]."""
    layers: list[nn.Module] = []
    inputs = obs_shape[0]
    for channels in (16, 32, 32):
        layers += [
            _convolution(inputs, channels, 3, padding=1), nn.MaxPool2d(3, 2, 1),
            _Residual(channels), _Residual(channels),
        ]  # fmt: skip
        inputs = channels
    return _flattened(nn.Sequential(*layers, nn.ReLU(), nn.Flatten()), obs_shape, 256)


def microrts_cnn(obs_shape: tuple[int, ...]) -> nn.Sequential:
    """The small network for microRTS's planes of Song et al. 2023 (arXiv 2301.10919)."""
    convolutions = nn.Sequential(
        _convolution(obs_shape[0], 16, 3, 2), nn.ReLU(), _convolution(16, 32, 2), nn.ReLU(),
        nn.Flatten(),
    )  # fmt: skip
    return _flattened(convolutions, obs_shape, 256)


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
        self.first = _convolution(planes, 32, 3, padding=1)
        self.second = _convolution(32, 64, 3, padding=1)
        if plain:
            self.third = _convolution(64, 64, 3, padding=1)
            whole = 2 * 64
        else:
            self.third = _convolution(64, 32, 3, padding=1)
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


def own_network(name: str, obs_shape: tuple[int, ...]) -> nn.Module:
    """The user's own class, `module:Class`, made for observations of a shape.

    Raises:
        WrongNetwork: where it cannot be found, or is no torch module.
    """
    module_name, _, class_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise  # the user's module was found; something that it imports is missing
        raise WrongNetwork(
            f"network {name!r}: there is no module {module_name!r} here or on PYTHONPATH: name a"
            f" file of this folder without its .py"
        ) from None
    except AttributeError:
        raise WrongNetwork(f"network {name!r}: {module_name} has no {class_name!r}") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise WrongNetwork(f"network {name!r} is {found!r}, which is no subclass of nn.Module")
    return found(obs_shape)


def make_trunk(
    name: str,
    obs_shape: tuple[int, ...],
    hidden_sizes: tuple[int, ...],
    activation: str,
    noisy: bool = False,
) -> nn.Module:
    """The network of a name, for observations as it takes them.

    Args:
        obs_shape: [inputs] of a vector, or [C, H, W] of an image.
        hidden_sizes, activation, noisy: of an mlp.

    Raises:
        WrongNetwork: with the names that fit.
    """
    if ":" in name:
        return own_network(name, obs_shape)
    image = len(obs_shape) == 3
    if name not in (IMAGES if image else VECTORS):
        raise WrongNetwork(
            f"network {name} does not fit observations of shape {obs_shape}: give --network"
            f" {', '.join(IMAGES if image else VECTORS)} or module:Class"
        )
    if name in GRIDS:
        return GridNet(obs_shape, plain=name == "gridnet_cnn")
    if name == "mlp":
        return mlp(obs_shape[0], hidden_sizes, activation, noisy)
    return {"nature_cnn": nature_cnn, "impala": impala, "microrts_cnn": microrts_cnn}[name](
        obs_shape
    )


def features_of(trunk: nn.Module, obs_shape: tuple[int, ...], name: str) -> int:
    """How many features a network gives, by a dry run.

    Raises:
        WrongNetwork: where it fails, or gives anything but [B, features].
    """
    if isinstance(trunk, GridNet):
        return trunk.features
    try:
        with torch.no_grad():
            features = trunk(torch.zeros(2, *obs_shape))
    except RuntimeError as error:
        raise WrongNetwork(
            f"network {name} fails on observations [2, {', '.join(map(str, obs_shape))}]: {error}"
        ) from None
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 2:
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise WrongNetwork(f"network {name} gives {shape} for 2 observations, not [2, features]")
    return features.shape[1]
