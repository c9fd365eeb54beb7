"""The networks that `--network` names: functions of observations to features [B, features]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.user_class import find
from envs import Spaces
from networks.grid import GridNet
from networks.layers import Linear, convolution, mlp, orthogonal
from networks.sequence import Lstm, Transformer
from settings.config import Config

GRIDS = ("gridnet", "gridnet_cnn")  # networks that keep the map's cells apart
IMAGES = ("nature_cnn", "impala", "microrts_cnn", *GRIDS)
VECTORS = ("mlp", "lstm")  # and transformer, whose observations reach back


class WrongNetwork(UserError):
    """A network that does not fit the observations, or that does not exist."""


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
        convolution(obs_shape[0], 32, 8, 4), nn.ReLU(),
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


def refuse_unfit(env_spaces: Spaces, config: Config, planes: bool) -> None:
    """Raise `WrongNetwork` for settings that do not fit the observations.

    Args:
        planes: whether observations are planes of zeros and ones.
    """
    image = len(env_spaces.observation.shape) == 3
    if image and config.normalize_observation:
        raise WrongNetwork(
            "normalize_observation is for vectors, images are scaled as they are: leave it out"
        )
    if planes and config.rnd_coefficient > 0:
        raise WrongNetwork(
            f"rnd_coefficient is {config.rnd_coefficient}, but curiosity is for vectors and images,"
            f" not for planes of zeros and ones: leave it out"
        )
    if env_spaces.privileged and config.shared_trunk:
        raise WrongNetwork(
            f"the last {env_spaces.privileged} entries of this environment's observations are the"
            f" critic's alone, which cannot be in one trunk with the policy: leave"
            f" --shared_trunk out"
        )


def own_network(name: str, obs_shape: tuple[int, ...]) -> nn.Module:
    """The user's own class, `module:Class`, made for observations of a shape.

    Raises:
        WrongNetwork: where it cannot be found, or is no torch module.
    """
    found = find("network", name, WrongNetwork)
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
    if name == "transformer" and len(obs_shape) == 2:
        return Transformer(obs_shape)
    if name not in (IMAGES if image else VECTORS):
        raise WrongNetwork(
            f"network {name} does not fit observations of shape {obs_shape}: give --network"
            f" {', '.join(IMAGES if image else VECTORS)} or module:Class"
        )
    if name in GRIDS:
        return GridNet(obs_shape, plain=name == "gridnet_cnn")
    if name == "lstm":
        return Lstm(obs_shape[0], hidden_sizes, activation)
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
    if isinstance(trunk, Lstm):
        return trunk.width
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
