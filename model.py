"""The model: networks, the observation normaliser, and the policy's distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from categorical import Categorical, GridMultiDiscrete, MultiDiscrete, masked
from cluster.xparl_shim import load_parl
from config import Config
from distributions import Distribution, Normal, make_distribution
from envs import Spaces, spaces_of
from networks import (
    GRIDS,
    GridFeatures,
    GridHead,
    GridNet,
    Linear,
    WrongNetwork,
    features_of,
    make_trunk,
    orthogonal,
)

parl = load_parl()

# A few images alone are convolved in a kernel of their own: see `Linear` for why that may not be.
_MIN_IMAGES = 4


class Acted(NamedTuple):
    """What a policy did for N environments."""

    action: Tensor  # [N, ...]
    log_prob: Tensor  # [N]
    mask: Tensor | None  # [N, A], the mask to store


class ActorCritic(parl.Model):
    """Policy and value networks over one observation normaliser.

    Args:
        obs_space: of one observation as the policy sees it (stacks included). Images of bytes up
            to 255 are [C, H, W] and scaled to [0, 1]; planes of zeros and ones are [H, W, C].
        distribution: the policy's distribution.
        config: the networks' settings.

    Raises:
        WrongNetwork: where the network and the observations do not fit.
    """

    def __init__(self, obs_space: spaces.Box, distribution: Distribution, config: Config):
        super().__init__()
        self.distribution = distribution
        obs_shape = obs_space.shape
        self.image = len(obs_shape) == 3
        self.planes = self.image and int(obs_space.high.max()) == 1
        self.clip = config.observation_clip
        self.normalizes = config.normalize_observation
        if self.image and self.normalizes:
            raise WrongNetwork(
                "normalize_observation is for vectors, images are scaled as they are: leave it out"
            )
        self.shared = config.shared_trunk
        self.bfloat16 = False  # whether `forward` and `value` compute the trunks in bfloat16
        seen = (obs_shape[2], *obs_shape[:2]) if self.planes else obs_shape

        def trunk() -> nn.Module:
            return make_trunk(config.network, seen, config.hidden_sizes, config.activation)

        self.actor = trunk()
        self.critic = self.actor if self.shared else trunk()
        features = features_of(self.actor, seen, config.network)
        normal = isinstance(distribution, Normal)
        outputs = distribution.params // 2 if normal else distribution.params
        if isinstance(self.actor, GridNet) != isinstance(distribution, GridMultiDiscrete):
            fitting = GRIDS if isinstance(distribution, GridMultiDiscrete) else ("impala",)
            raise WrongNetwork(
                f"network {config.network} does not fit these actions: give --network"
                f" {' or '.join(fitting)}, or another --policy where there is one"
            )
        if isinstance(self.actor, GridNet):
            self.policy_head = GridHead(
                self.actor.channels, distribution.params // math.prod(seen[1:])
            )
        else:
            self.policy_head = orthogonal(Linear(features, outputs), 0.01)
        self.value_head = orthogonal(Linear(features, 1), 1.0)
        if normal:
            self.log_std = nn.Parameter(torch.full((outputs,), config.initial_log_std))
        if self.normalizes:
            # float64: counts pass 2^24 in a long run. They travel with the weights.
            self.register_buffer("obs_mean", torch.zeros(obs_shape, dtype=torch.float64))
            self.register_buffer("obs_var", torch.ones(obs_shape, dtype=torch.float64))
            self.register_buffer("obs_count", torch.zeros((), dtype=torch.float64))

    def normalize(self, obs: Tensor) -> Tensor:
        """Observations as the networks take them: float32, images in [0, 1]."""
        if self.planes:
            return obs.permute(0, 3, 1, 2).float()
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

    def _params(self, features: Any, mask: Tensor | None) -> Any:
        if isinstance(features, GridFeatures):
            assert mask is not None, "a policy over a grid needs a mask"
            return self.policy_head(features.cells, mask)
        output = self.policy_head(features)
        if isinstance(self.distribution, Normal):
            return torch.cat([output, self.log_std.expand_as(output)], -1)
        return output if mask is None else masked(output, mask)

    def _features(self, trunk: nn.Module, obs: Tensor) -> Any:
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bfloat16):
            features = trunk(obs)
        return features if isinstance(features, GridFeatures) else features.float()

    def _value(self, features: Any) -> Tensor:
        whole = features.whole if isinstance(features, GridFeatures) else features
        return self.value_head(whole).squeeze(-1)

    def policy(self, obs: Tensor, mask: Tensor | None = None) -> Any:
        """The distribution's parameters for raw observations [B, ...], as of `forward`."""
        return self._params(self._features(self.actor, self.normalize(obs)), mask)

    def value(self, obs: Tensor) -> Tensor:
        """State values [B]."""
        return self._value(self._features(self.critic, self.normalize(obs)))

    def forward(self, obs: Tensor, mask: Tensor | None = None) -> tuple[Any, Tensor]:
        """The distribution's parameters and values [B] for raw observations [B, ...].

        Both in one pass: a shared trunk is run once.

        Args:
            mask: [B, A] bool of legal actions, where the environment has one.
        """
        obs = self.normalize(obs)
        features = self._features(self.actor, obs)
        critic_features = features if self.shared else self._features(self.critic, obs)
        return self._params(features, mask), self._value(critic_features)

    def get_weights(self) -> dict[str, np.ndarray]:
        """Parameters and buffers by name, copied: PARL's own version aliases the live ones."""
        return {n: t.detach().cpu().numpy().copy() for n, t in self.state_dict().items()}

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over parameters and buffers from arrays, read-only ones too."""
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                tensor.copy_(torch.from_numpy(np.array(weights[name])))

    @torch.inference_mode()
    def act(
        self, obs: np.ndarray, noise: np.ndarray | None, mask: np.ndarray | None = None
    ) -> Acted:
        """Act in N environments.

        Args:
            obs: [N, ...] raw observations.
            noise: [N, ...] as the distribution wants it, or None for the greedy action.
            mask: [N, A] bool of legal actions, where the environment has one.
        """
        rows = len(obs)
        device = self.device
        batch = torch.from_numpy(obs).to(device)
        if self.image and rows < _MIN_IMAGES:
            batch = torch.cat([batch, batch.new_zeros(_MIN_IMAGES - rows, *batch.shape[1:])])
        features = self.actor(self.normalize(batch))
        drawn = None if noise is None else torch.from_numpy(noise).to(device)
        legal = None if mask is None else torch.from_numpy(mask).to(device)
        distribution = self.distribution
        if isinstance(features, GridFeatures):
            features = GridFeatures(features.cells[:rows], features.whole)
            params = self._params(features, legal)
        else:
            params = self._params(features[:rows], None)
        if legal is not None and isinstance(distribution, Categorical | MultiDiscrete):
            action, params, legal = distribution.choose(params, legal, drawn)
        elif drawn is None:
            action = distribution.mode(params)
        else:
            action = distribution.sample(params, drawn)
        log_prob = distribution.log_prob(params, action)
        return Acted(action.cpu(), log_prob.cpu(), None if legal is None else legal.cpu())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def make_model(env_spaces: Spaces, config: Config) -> ActorCritic:
    """The model for an environment's spaces, initialised from the run's seed.

    Raises:
        WrongNetwork, WrongDistribution: where the settings do not fit the spaces.
    """
    distribution = make_distribution(config.distribution, env_spaces.action, config.scale_action)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ActorCritic(env_spaces.observation, distribution, config)


def build_model(config: Config) -> ActorCritic:
    """The model of a run, for its environment's spaces."""
    return make_model(spaces_of(config.env, **config.env_options()), config)
