"""The model: networks, the observation normaliser, and the policy's distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from cluster.xparl_shim import load_parl
from config import Config
from distributions import Distribution, Normal, make_distribution
from errors import UserError

parl = load_parl()

# Libraries take another kernel, with another order of summation, for another number of rows. For an
# action not to depend on how many environments stand beside it, and so on how they are spread over
# samplers, matrices are multiplied in blocks of this many rows,
_BLOCK_ROWS = 16
# and as many images are convolved at the least (one alone takes a kernel of its own).
_MIN_IMAGES = 4

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU,
}  # fmt: skip


class WrongNetwork(UserError):
    """A network that does not fit the observations."""


def _orthogonal(layer: Any, gain: float) -> Any:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Linear(nn.Linear):
    """A linear layer [B, inputs] -> [B, outputs] that acts on each row alone, bit for bit.

    It does so in inference mode, in which the samplers act; the learner is spared the cost.
    """

    def forward(self, input: Tensor) -> Tensor:
        # in this order: the compiler cannot trace the second question
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return linear(input, self.weight, self.bias)
        rows = len(input)
        padded = pad(input, (0, 0, 0, -rows % _BLOCK_ROWS))
        blocks = [linear(block, self.weight, self.bias) for block in padded.split(_BLOCK_ROWS)]
        return torch.cat(blocks)[:rows]


def mlp(inputs: int, hidden_sizes: tuple[int, ...], activation: str) -> tuple[nn.Module, int]:
    """A multi-layer perceptron [B, inputs] -> [B, features]; also returns `features`."""
    layers: list[nn.Module] = []
    for width in hidden_sizes:
        layers += [_orthogonal(Linear(inputs, width), math.sqrt(2)), ACTIVATIONS[activation]()]
        inputs = width
    return nn.Sequential(*layers), inputs


def nature_cnn(obs_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """The network of Mnih et al. 2015: [B, C, H, W] in [0, 1] -> [B, 512]; also returns 512."""
    gain = math.sqrt(2)
    convolutions = nn.Sequential(
        _orthogonal(nn.Conv2d(obs_shape[0], 32, 8, 4), gain), nn.ReLU(),
        _orthogonal(nn.Conv2d(32, 64, 4, 2), gain), nn.ReLU(),
        _orthogonal(nn.Conv2d(64, 64, 3, 1), gain), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    with torch.no_grad():
        flat = convolutions(torch.zeros(1, *obs_shape)).shape[1]
    return nn.Sequential(*convolutions, _orthogonal(Linear(flat, 512), gain), nn.ReLU()), 512


class ActorCritic(parl.Model):
    """Policy and value networks over one observation normaliser.

    Args:
        obs_shape: of one observation as the policy sees it (stacks included).
        distribution: the policy's distribution.
        config: the networks' settings.

    Raises:
        WrongNetwork: where the network and the observations do not fit.
    """

    def __init__(self, obs_shape: tuple[int, ...], distribution: Distribution, config: Config):
        super().__init__()
        self.distribution = distribution
        self.image = len(obs_shape) == 3
        self.clip = config.observation_clip
        self.normalizes = config.normalize_observation
        if self.image != (config.network == "nature_cnn"):
            raise WrongNetwork(
                f"network {config.network} does not fit observations of shape {obs_shape}: give"
                f" --network {'nature_cnn' if self.image else 'mlp'}"
            )
        if self.image and (self.normalizes or min(obs_shape[1:]) < 36):
            raise WrongNetwork(
                f"network nature_cnn takes images of at least 36x36 and scales them itself; these"
                f" are {obs_shape}, with normalize_observation {self.normalizes}"
            )
        self.shared = config.shared_trunk
        self.bfloat16 = False  # whether `forward` and `value` compute the trunks in bfloat16

        def trunk() -> tuple[nn.Module, int]:
            if self.image:
                return nature_cnn(obs_shape)
            return mlp(obs_shape[0], config.hidden_sizes, config.activation)

        self.actor, features = trunk()
        self.critic = self.actor if self.shared else trunk()[0]
        normal = isinstance(distribution, Normal)
        outputs = distribution.params // 2 if normal else distribution.params
        self.policy_head = _orthogonal(Linear(features, outputs), 0.01)
        self.value_head = _orthogonal(Linear(features, 1), 1.0)
        if normal:
            self.log_std = nn.Parameter(torch.full((outputs,), config.initial_log_std))
        if self.normalizes:
            # float64: counts pass 2^24 in a long run. They travel with the weights.
            self.register_buffer("obs_mean", torch.zeros(obs_shape, dtype=torch.float64))
            self.register_buffer("obs_var", torch.ones(obs_shape, dtype=torch.float64))
            self.register_buffer("obs_count", torch.zeros((), dtype=torch.float64))

    def normalize(self, obs: Tensor) -> Tensor:
        """Observations as the networks take them: float32, images in [0, 1]."""
        if self.image:
            return obs.float() / 255.0
        if not self.normalizes:
            return obs
        scale = (self.obs_var + 1e-8).rsqrt().float()
        return ((obs - self.obs_mean.float()) * scale).clamp(-self.clip, self.clip)

    def update_normalizer(self, obs: Tensor) -> None:
        """Merge a batch of raw observations [B, ...] into the running statistics (Chan et al.)."""
        if not self.normalizes or len(obs) == 0:
            return
        obs = obs.double()
        count, mean, var = len(obs), obs.mean(0), obs.var(0, correction=0)
        total = self.obs_count + count
        delta = mean - self.obs_mean
        # before the first batch the variance is a placeholder of 1 with no weight (count 0)
        spread = self.obs_var * self.obs_count + var * count
        self.obs_var.copy_((spread + delta**2 * self.obs_count * count / total) / total)
        self.obs_mean.add_(delta * count / total)
        self.obs_count.copy_(total)

    def _params(self, features: Tensor) -> Tensor:
        output = self.policy_head(features)
        if isinstance(self.distribution, Normal):
            return torch.cat([output, self.log_std.expand_as(output)], -1)
        return output

    def _features(self, trunk: nn.Module, obs: Tensor) -> Tensor:
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bfloat16):
            return trunk(obs).float()

    def policy(self, obs: Tensor) -> Tensor:
        """Parameters of the policy's distribution [B, P] for raw observations [B, ...]."""
        return self._params(self.actor(self.normalize(obs)))

    def value(self, obs: Tensor) -> Tensor:
        """State values [B]."""
        return self.value_head(self._features(self.critic, self.normalize(obs))).squeeze(-1)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """`policy` and `value` in one pass: a shared trunk is run once."""
        obs = self.normalize(obs)
        features = self._features(self.actor, obs)
        critic_features = features if self.shared else self._features(self.critic, obs)
        return self._params(features), self.value_head(critic_features).squeeze(-1)

    def get_weights(self) -> dict[str, np.ndarray]:
        """Parameters and buffers by name, copied: PARL's own version aliases the live ones."""
        return {n: t.detach().cpu().numpy().copy() for n, t in self.state_dict().items()}

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over parameters and buffers from arrays, read-only ones too."""
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                tensor.copy_(torch.from_numpy(np.array(weights[name])))

    @torch.inference_mode()
    def act(self, obs: np.ndarray, noise: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Actions [N, ...] and distribution parameters [N, P] for N environments.

        Args:
            obs: [N, ...] raw observations.
            noise: [N, ...] as the distribution wants it, or None for the greedy action.
        """
        rows = len(obs)
        device = self.policy_head.weight.device
        batch = torch.from_numpy(obs).to(device)
        if self.image and rows < _MIN_IMAGES:
            batch = torch.cat([batch, batch.new_zeros(_MIN_IMAGES - rows, *batch.shape[1:])])
        params = self.policy(batch)[:rows].cpu()
        if noise is None:
            return self.distribution.mode(params), params
        return self.distribution.sample(params, torch.from_numpy(noise)), params


def make_model(obs_space: spaces.Space, action_space: spaces.Space, config: Config) -> ActorCritic:
    """The model for an environment's spaces, initialised from the run's seed.

    Raises:
        WrongNetwork, WrongDistribution: where the settings do not fit the spaces.
    """
    distribution = make_distribution(config.distribution, action_space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ActorCritic(obs_space.shape or (), distribution, config)
