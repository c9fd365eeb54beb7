"""The model: networks, the observation normaliser, and the policy's distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from common.randomness import stream
from distributions.continuous import Distribution, Normal, make_distribution
from distributions.discrete import Categorical, GridMultiDiscrete, MultiDiscrete, masked
from envs import Spaces, spaces_of
from networks.compiled_actor import Perceptron, sample_categorical, sample_normal
from networks.grid import GridFeatures, GridHead, GridNet
from networks.layers import Linear, NoisyLinear, RunningMoments, ValueHead, orthogonal
from networks.rnd import RND
from networks.sequence import Lstm
from networks.trunks import GRIDS, WrongNetwork, features_of, make_trunk, refuse_unfit
from parl_compat.shim import load_parl
from settings.config import Config

parl = load_parl()

# A few images alone are convolved in a kernel of their own: see `Linear` for why that may not be.
_MIN_IMAGES = 4


class Acted(NamedTuple):
    """What a policy did for N environments."""

    action: np.ndarray  # [N, ...]
    log_prob: np.ndarray  # [N], or [N, K] where the loss is of sub-actions
    mask: np.ndarray | None  # [N, A] bool, the mask to store
    state: np.ndarray | None = None  # [N, S] of a recurrent network after these observations


class Past(NamedTuple):
    """Where a recurrent network stands before T steps of E environments."""

    state: Tensor  # [E, S]
    begins: Tensor  # [T * E] bool: an episode begins with this observation


class ActorCritic(parl.Model):
    """Policy and value networks over one observation normaliser.

    Args:
        env_spaces: observations as the policy sees them (stacks included). Images of bytes up to
            255 are [C, H, W] and scaled to [0, 1]; planes of zeros and ones are [H, W, C].
        distribution: the policy's distribution.
        config: the networks' settings.

    Raises:
        WrongNetwork: where the network and the observations do not fit.
    """

    def __init__(self, env_spaces: Spaces, distribution: Distribution, config: Config):
        super().__init__()
        self.spaces, self.distribution = env_spaces, distribution
        obs_space, privileged = env_spaces.observation, env_spaces.privileged
        obs_shape = obs_space.shape
        self.image, self.looks_back = len(obs_shape) == 3, len(obs_shape) == 2
        self.planes = self.image and int(obs_space.high.max()) == 1
        self.clip = config.observation_clip
        self.normalizes = config.normalize_observation
        self.privileged = privileged
        self.shared = config.shared_trunk
        self.bfloat16 = False  # whether `forward` and `value` compute the trunks in bfloat16
        refuse_unfit(env_spaces, config, planes=self.planes)
        seen = (obs_shape[2], *obs_shape[:2]) if self.planes else obs_shape
        policy_sees = (*seen[:-1], seen[-1] - privileged) if privileged else seen

        def trunk(shape: tuple[int, ...], noisy: bool) -> nn.Module:
            return make_trunk(config.network, shape, config.hidden_sizes, config.activation, noisy)

        self.actor = trunk(policy_sees, config.noisy_layers and not self.shared)
        self.critic = self.actor if self.shared else trunk(seen, False)
        self.state_sizes = [
            part.state_size for part in (self.actor, self.critic) if isinstance(part, Lstm)
        ][: 1 if self.shared else 2]
        features = features_of(self.actor, policy_sees, config.network)
        own_std = isinstance(distribution, Normal) and not config.state_dependent_std
        outputs = distribution.params // 2 if own_std else distribution.params
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
            head = NoisyLinear if config.noisy_layers else Linear
            self.policy_head = orthogonal(head(features, outputs), 0.01)
        self.rnd = RND(obs_shape) if config.rnd_coefficient > 0 else None
        heads = 2 if self.rnd is not None else 1
        self.value_head = ValueHead(features, heads, config.normalize_value)
        # whether to act takes nothing but a perceptron, which is made when it is first needed
        self.plain = config.network == "mlp" and not config.noisy_layers
        self._perceptron: Perceptron | None = None
        self.noisy_layers = [m for m in self.modules() if isinstance(m, NoisyLinear)]
        self.initial_log_std = config.initial_log_std
        if own_std:
            self.log_std = nn.Parameter(torch.full((outputs,), config.initial_log_std))
        self.own_std = own_std
        # whether actions too are drawn by what is compiled
        simple = own_std and type(distribution) is Normal
        self.samples_plainly = self.plain and (simple or isinstance(distribution, Categorical))
        self.by_sub_action = config.joint_loss != "compound"
        if self.normalizes:
            # of what looks back, each observation is scaled alike, and the mark beside it is not
            self.moments = RunningMoments((obs_shape[1] - 1,) if self.looks_back else obs_shape)

    def normalize(self, obs: Tensor) -> Tensor:
        """Observations as the networks take them: float32, images in [0, 1]."""
        if self.planes:
            return obs.permute(0, 3, 1, 2).float()
        if self.image:
            return obs.float() / 255.0
        if not self.normalizes:
            return obs
        if self.looks_back:
            return torch.cat([self.moments(obs[..., :-1], self.clip), obs[..., -1:]], -1)
        return self.moments(obs, self.clip)

    def update_normalizer(self, obs: Tensor) -> None:
        """Merge a batch of raw observations [B, ...] into the running statistics."""
        if self.normalizes:
            self.moments.update(obs[:, -1, :-1] if self.looks_back else obs)
        if self.rnd is not None:
            self.rnd.update(obs)

    def resample_noise(self, generator: np.random.Generator) -> None:
        """Draw the noise of the noisy layers anew, where there are any."""
        for layer in self.noisy_layers:
            layer.resample(generator)

    def _params(self, features: Any, mask: Tensor | None) -> Any:
        if isinstance(features, GridFeatures):
            assert mask is not None, "a policy over a grid needs a mask"
            return self.policy_head(features.cells, mask)
        return self._shaped(self.policy_head(features), mask)

    def _shaped(self, output: Tensor, mask: Tensor | None) -> Tensor:
        """The distribution's parameters, of the policy head's output."""
        if self.own_std:
            return torch.cat([output, self.log_std.expand_as(output)], -1)
        if isinstance(self.distribution, Normal):  # the standard deviation depends on the state
            mean, log_std = output.chunk(2, -1)
            return torch.cat([mean, (log_std + self.initial_log_std).clamp(-5.0, 2.0)], -1)
        return output if mask is None else masked(output, mask)

    @property
    def state_size(self) -> int:
        """S, of a recurrent network's state; 0 of others."""
        return sum(self.state_sizes)

    def _split(self, past: Past | None) -> tuple[Past | None, Past | None]:
        """The actor's past and the critic's; one for both where they share a trunk."""
        if past is None or self.shared:
            return past, past
        actor, critic = past.state.split(self.state_sizes, -1)
        return Past(actor, past.begins), Past(critic, past.begins)

    @staticmethod
    def _run_exactly(trunk: nn.Module, obs: Tensor, past: Past | None) -> tuple[Any, Tensor | None]:
        """A trunk's features, and its state after them, in float32."""
        if isinstance(trunk, Lstm):
            assert past is not None, "a recurrent network needs a state"
            return trunk(obs, *past)
        return trunk(obs), None

    def _run(self, trunk: nn.Module, obs: Tensor, past: Past | None) -> Any:
        """A trunk's features, in the arithmetic that the learner computes in."""
        if not self.bfloat16 or isinstance(trunk, Lstm):
            return self._run_exactly(trunk, obs, past)[0]
        with torch.autocast(obs.device.type, torch.bfloat16):
            features, _ = self._run_exactly(trunk, obs, past)
        return features if isinstance(features, GridFeatures) else features.float()

    def _for_policy(self, obs: Tensor) -> Tensor:
        return obs[..., : -self.privileged] if self.privileged else obs

    def _value(self, features: Any) -> Tensor:
        whole = features.whole if isinstance(features, GridFeatures) else features
        return self.value_head(whole).squeeze(-1)

    def policy(self, obs: Tensor, mask: Tensor | None = None, past: Past | None = None) -> Any:
        """The distribution's parameters for raw observations [B, ...], as of `forward`."""
        seen = self._for_policy(self.normalize(obs))
        return self._params(self._run(self.actor, seen, self._split(past)[0]), mask)

    def value(self, obs: Tensor, past: Past | None = None) -> Tensor:
        """State values [B]; with RND [B, 2], of extrinsic and of intrinsic rewards."""
        return self._value(self._run(self.critic, self.normalize(obs), self._split(past)[1]))

    def forward(
        self, obs: Tensor, mask: Tensor | None = None, past: Past | None = None
    ) -> tuple[Any, Tensor]:
        """The distribution's parameters and values, as of `value`, for raw observations [B, ...].

        Both in one pass: a shared trunk is run once.

        Args:
            mask: [B, A] bool of legal actions, where the environment has one.
            past: of a recurrent network, for which B is T * E, step by step.
        """
        obs = self.normalize(obs)
        for_actor, for_critic = self._split(past)
        features = self._run(self.actor, self._for_policy(obs), for_actor)
        critic_features = features
        if not self.shared:
            critic_features = self._run(self.critic, obs, for_critic)
        return self._params(features, mask), self._value(critic_features)

    def get_weights(self) -> dict[str, np.ndarray]:
        """Parameters and buffers by name, copied: PARL's own version aliases the live ones."""
        tensors = {name: tensor.detach() for name, tensor in self.state_dict().items()}
        if self.device.type == "cpu":
            return {name: tensor.numpy().copy() for name, tensor in tensors.items()}
        copies = {
            name: torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, True)
            for name, tensor in tensors.items()
        }
        torch.cuda.current_stream(self.device).synchronize()  # once, not for each
        return {name: copy.numpy() for name, copy in copies.items()}

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over parameters and buffers from arrays, read-only ones too."""
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                tensor.copy_(torch.from_numpy(np.array(weights[name])))

    @torch.inference_mode()
    def act(
        self,
        obs: np.ndarray,
        noise: np.ndarray | None,
        mask: np.ndarray | None = None,
        state: np.ndarray | None = None,
    ) -> Acted:
        """Act in N environments.

        Args:
            obs: [N, ...] raw observations.
            noise: [N, ...] as the distribution wants it, or None for the greedy action.
            mask: [N, A] bool of legal actions, where the environment has one.
            state: [N, S] of a recurrent network before these observations; 0 where one is an
                episode's first.
        """
        distribution = self.distribution
        if self.samples_plainly and noise is not None and mask is None:
            perceptron = self._compiled_actor()
            if perceptron is not None:
                output = perceptron(obs)
                if self.own_std:
                    drawn = sample_normal(output, self.log_std.detach().numpy(), noise)
                else:
                    drawn = sample_categorical(output, noise)
                action, log_prob, joint = drawn
                return Acted(action, log_prob if self.by_sub_action else joint, None)
        legal = None if mask is None else torch.from_numpy(mask).to(self.device)
        drawn = None if noise is None else torch.from_numpy(noise).to(self.device)
        params, after = self._acting_params(obs, noise is None, legal, state)
        if legal is not None and isinstance(distribution, Categorical | MultiDiscrete):
            action, params, legal = distribution.choose(params, legal, drawn)
        elif drawn is None:
            action = distribution.mode(params)
        else:
            action = distribution.sample(params, drawn)
        log_prob = distribution.sub_log_prob(params, action)
        if not self.by_sub_action:
            log_prob = log_prob.sum(-1)
        return Acted(
            action.cpu().numpy(), log_prob.cpu().numpy(),
            None if legal is None else legal.cpu().numpy(),
            None if after is None else after.cpu().numpy(),
        )  # fmt: skip

    def _acting_params(
        self, obs: np.ndarray, quiet: bool, legal: Tensor | None, state: np.ndarray | None
    ) -> tuple[Any, Tensor | None]:
        """The distribution's parameters for `act`, and the state after these observations."""
        perceptron = self._compiled_actor()
        if perceptron is not None:
            return self._shaped(torch.from_numpy(perceptron(obs)), None), None
        rows, device = len(obs), self.device
        batch = torch.from_numpy(obs).to(device)
        if self.image and rows < _MIN_IMAGES:
            batch = torch.cat([batch, batch.new_zeros(_MIN_IMAGES - rows, *batch.shape[1:])])
        batch = self.normalize(batch)
        for layer in self.noisy_layers:
            layer.quiet = quiet
        past = None
        if state is not None and self.state_size:
            no = torch.zeros(rows, dtype=torch.bool, device=device)
            past = Past(torch.from_numpy(state).to(device), no)
        for_actor, for_critic = self._split(past)
        features, after = self._run_exactly(self.actor, self._for_policy(batch), for_actor)
        if after is not None and not self.shared:  # what the learner's critic will begin with
            _, of_critic = self._run_exactly(self.critic, batch, for_critic)
            assert of_critic is not None
            after = torch.cat([after, of_critic], -1)
        if isinstance(features, GridFeatures):
            params = self._params(GridFeatures(features.cells[:rows], features.whole), legal)
        else:
            params = self._params(features[:rows], None)
        for layer in self.noisy_layers:
            layer.quiet = False
        return params, after

    def _compiled_actor(self) -> Perceptron | None:
        """What computes the policy head's output on the CPU, where the policy is a perceptron."""
        if self._perceptron is None and self.plain and self.device.type == "cpu":
            moments = self.moments if self.normalizes else None
            layers = [*self.actor.children(), self.policy_head]
            self._perceptron = Perceptron(moments, self.clip, layers)
        return self._perceptron

    def _apply(self, fn: Any, recurse: bool = True) -> ActorCritic:
        self._perceptron = None  # it has views of the tensors, which are now replaced
        return super()._apply(fn, recurse)

    def initial_state(self, envs: int) -> np.ndarray:
        """The state [envs, S] at the start of episodes."""
        return np.zeros((envs, self.state_size), np.float32)

    @property
    def device(self) -> torch.device:
        return self.value_head.weight.device


def make_model(env_spaces: Spaces, config: Config) -> ActorCritic:
    """The model for an environment's spaces, initialised from the run's seed.

    Raises:
        WrongNetwork, WrongDistribution: where the settings do not fit the spaces.
    """
    distribution = make_distribution(config.distribution, env_spaces.action, config.scale_action)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = ActorCritic(env_spaces, distribution, config)
    model.resample_noise(stream("noisy", config.seed, 2**32))  # a number that no update has
    return model


def build_model(config: Config) -> ActorCritic:
    """The model of a run, for its environment's spaces."""
    return make_model(spaces_of(config.env, **config.env_options()), config)
