"""The model: an actor and a critic over one observation normaliser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.locks import lock_within
from common.randomness import draw_noise, stream
from distributions.base import Distribution
from distributions.make import Options, make_distribution
from envs import Spaces, spaces_of
from networks.actor import Acted, Actor
from networks.grid import GridHead
from networks.layers import (
    Gathered,
    Linear,
    NoisyLinear,
    ValueHead,
    WrongNetwork,
    alone,
    orthogonal,
)
from networks.observations import Observations
from networks.rnd import RND
from networks.rules import refuse_unfit
from networks.trunks import (
    TRUNKS,
    Features,
    Past,
    features_of,
    make_trunk,
    state_size_of,
    trunk_of,
)  # fmt: skip
from parl_compat.shim import load_parl
from settings.config import Config

parl = load_parl()


class ActorCritic(parl.Model):
    """Policy and value networks over one observation normaliser.

    Args:
        env_spaces: observations as the policy sees them (stacks included); see `Observations`.
        distribution: the policy's distribution.
        config: the networks' settings.

    Raises:
        WrongNetwork: where the network and the observations or actions do not fit.
    """

    def __init__(self, env_spaces: Spaces, distribution: Distribution, config: Config):
        super().__init__()
        refuse_unfit(env_spaces, config)
        self.spaces, self.distribution = env_spaces, distribution
        self.shared = config.shared_trunk
        self.by_sub_action = config.joint_loss != "compound"
        self.bfloat16 = False  # whether `forward` and `value` compute the trunks in bfloat16
        self.observations = observations = Observations(env_spaces, config)

        self.trunk = trunk = trunk_of(config.network)
        noisy = config.noisy_layers
        self.actor = make_trunk(config, observations.policy_shape, noisy and not self.shared)
        self.critic = self.actor if self.shared else make_trunk(config, observations.shape)
        for_policy, _ = features_of(trunk, self.actor, observations.policy_shape, config.network)
        _, for_values = features_of(trunk, self.critic, observations.shape, config.network)
        parts = [self.actor] if self.shared else [self.actor, self.critic]
        sizes = [state_size_of(trunk, part, config.network) for part in parts]
        self.state_sizes = sizes if trunk.remembers else []

        _refuse_unfit_actions(config.network, trunk.per_cell, distribution)
        if trunk.per_cell:
            self.policy_head = GridHead(for_policy, distribution.outputs)
        else:
            head = NoisyLinear if noisy else Linear
            self.policy_head = orthogonal(head(for_policy, distribution.outputs), 0.01)
        self.log_std = None if distribution.own is None else nn.Parameter(distribution.own.clone())
        shape, stacks_frames = env_spaces.observation.shape, env_spaces.frame_stack > 0
        self.rnd = RND(shape, stacks_frames) if config.rnd_coefficient > 0 else None
        heads = 2 if self.rnd is not None else 1
        self.value_head = ValueHead(for_values, heads, config.normalize_value)
        self.noisy_layers = [m for m in self.modules() if isinstance(m, NoisyLinear)]
        self.moments = observations.moments  # as a submodule, so that they are among the weights
        self._acts = Actor(self)

    @property
    def has_statistics(self) -> bool:
        """Whether there are statistics of observations to update."""
        return self.moments is not None or self.rnd is not None

    def value_parameters(self) -> list[nn.Parameter]:
        """Those of the value function alone."""
        own = [self.value_head] if self.shared else [self.critic, self.value_head]
        return [parameter for part in own for parameter in part.parameters()]

    def update_normalizer(self, obs: Tensor, gather: Gathered = alone) -> None:
        """Merge a batch of raw observations [B, ...] into the running statistics.

        Args:
            gather: gives the moments of all trainers' batches; default: there is one trainer.
        """
        self.observations.update(obs, gather)
        if self.rnd is not None:
            self.rnd.update(obs, gather)

    def resample_noise(self, generator: np.random.Generator) -> None:
        """Draw the noise of the noisy layers anew, where there are any."""
        for layer in self.noisy_layers:
            layer.resample(generator)

    # --- evaluating many observations, as the learner does
    def policy(self, obs: Tensor, mask: Tensor | None = None, past: Past | None = None) -> Any:
        """The distribution's parameters for raw observations [B, ...], as of `forward`."""
        obs = self.observations.for_policy(self._scaled(obs))
        return self._params(self._run(self.actor, obs, self._split(past)[0]), mask)

    def value(self, obs: Tensor, past: Past | None = None) -> Tensor:
        """State values [B]; with RND [B, 2], of extrinsic and of intrinsic rewards."""
        return self._value(self._run(self.critic, self._scaled(obs), self._split(past)[1]))

    def forward(
        self, obs: Tensor, mask: Tensor | None = None, past: Past | None = None
    ) -> tuple[Any, Tensor]:
        """The distribution's parameters and values, as of `value`, for raw observations [B, ...].

        Both in one pass: a shared trunk is run once.

        Args:
            mask: [B, A] bool of legal actions, where the environment has one.
            past: of a recurrent network, for which B is T * E, step by step.
        """
        obs = self._scaled(obs)
        for_actor, for_critic = self._split(past)
        features = self._run(self.actor, self.observations.for_policy(obs), for_actor)
        of_critic = features if self.shared else self._run(self.critic, obs, for_critic)
        return self._params(features, mask), self._value(of_critic)

    def _scaled(self, obs: Tensor) -> Tensor:
        # a network of the user's own is given float32: not all that it does need be rounded
        rounded = self.bfloat16 and self.trunk.bfloat16
        return self.observations(obs, torch.bfloat16 if rounded else torch.float32)

    def _run(self, module: nn.Module, obs: Tensor, past: Past | None) -> Features:
        """A trunk's features, in the arithmetic that the learner computes in."""
        if not self.bfloat16 or self.trunk.remembers:
            return self.trunk.run(module, obs, past)
        with torch.autocast(obs.device.type, torch.bfloat16):
            features = self.trunk.run(module, obs, past)
        return Features(features.policy.float(), features.whole.float())

    def _params(self, features: Features, mask: Tensor | None) -> Any:
        params = self.distribution.shaped(self.policy_head(features.policy), self.log_std)
        return self.distribution.masked(params, mask)

    def _value(self, features: Features) -> Tensor:
        return self.value_head(features.whole).squeeze(-1)

    # --- a recurrent network's state
    @property
    def state_size(self) -> int:
        """S, of a recurrent network's state; 0 of others."""
        return sum(self.state_sizes)

    def initial_state(self, envs: int) -> np.ndarray:
        """The state [envs, S] at the start of episodes."""
        return np.zeros((envs, self.state_size), np.float32)

    def _split(self, past: Past | None) -> tuple[Past | None, Past | None]:
        """The actor's past and the critic's; one for both where they share a trunk."""
        if past is None or self.shared:
            return past, past
        actor, critic = past.state.split(self.state_sizes, -1)
        return Past(actor, past.begins), Past(critic, past.begins)

    # --- acting in a few environments, as samplers do
    def act(
        self,
        obs: np.ndarray,
        noise: np.ndarray | None,
        mask: np.ndarray | None = None,
        state: np.ndarray | None = None,
        first: int = 0,
    ) -> Acted:
        """Act in N environments.

        Args:
            obs: [N, ...] raw observations, of any kind of number; they are taken as rollouts store
                them.
            noise: [N, ...] as the distribution wants it, or None for the greedy action.
            mask: [N, A] bool of legal actions, where the environment has one.
            state: [N, S] of a recurrent network before these observations; 0 where one is an
                episode's first.
            first: index of the first of these environments in the run. With it a network of the
                user's own gives the same bits however a run's environments are spread.
        """
        obs = obs.astype(np.uint8 if obs.ndim == 4 else np.float32, copy=False)
        return self._acts(obs, noise, mask, state, first)

    def prepare_to_act(self, dtype: torch.dtype = torch.float32) -> None:
        """Make acting fast on the CPU. From here on weights must be changed by `set_weights` alone.

        Where the acting is compiled, that is done here, so that no first action waits. One process
        of a machine does so at a time: the others find the result in numba's cache. A trunk of
        images is computed in `dtype`, float32 or bfloat16.
        """
        self._acts.pack(dtype)
        if self._acts.compiled is None:
            return
        with open(__file__, "rb") as lock:
            lock_within(lock, 60.0)  # who has it may be stopped: then two compile
            obs, shape = self.spaces.observation.shape, self.distribution.noise_shape
            noise = draw_noise(stream("action", 0), self.distribution.noise, (1, *shape))
            for drawn in (None, noise):  # greedily, and with noise
                self.act(np.zeros((1, *obs), np.float32), drawn, None, self.initial_state(1))

    def _apply(self, fn: Any, recurse: bool = True) -> ActorCritic:
        self._acts.forget()  # tensors are replaced, as by a move to another device
        self.distribution.apply(fn)  # it is no module
        return super()._apply(fn, recurse)

    # --- weights
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, those of a shared trunk once, by the actor's name."""
        live = self.state_dict(keep_vars=True)
        first = {id(tensor): name for name, tensor in reversed(live.items())}
        return {n: tensor.detach() for n, tensor in live.items() if first[id(tensor)] == n}

    def get_weights(self) -> dict[str, np.ndarray]:
        """Parameters and buffers by name, copied: PARL's own version aliases the live ones."""
        return _copies(self.tensors(), self.device)

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over parameters and buffers from arrays, read-only ones too."""
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(torch.from_numpy(np.array(weights[name])))
        self._acts.weights_changed()

    @property
    def device(self) -> torch.device:
        return self.value_head.weight.device


def _copies(tensors: dict[str, Tensor], device: torch.device) -> dict[str, np.ndarray]:
    if device.type == "cpu":
        return {name: tensor.numpy().copy() for name, tensor in tensors.items()}
    copies = {
        name: torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, True)
        for name, tensor in tensors.items()
    }
    torch.cuda.current_stream(device).synchronize()  # once, not for each
    return {name: copy.numpy() for name, copy in copies.items()}


def _refuse_unfit_actions(network: str, per_cell: bool, distribution: Distribution) -> None:
    if per_cell == (distribution.cells > 0):
        return
    grids = [name for name, trunk in TRUNKS.items() if trunk.per_cell]
    raise WrongNetwork(
        f"network {network} does not fit these actions: give --network"
        f" {' or '.join(grids) if distribution.cells else 'impala'}, or another --policy where there"
        f" is one"
    )


def make_model(env_spaces: Spaces, config: Config) -> ActorCritic:
    """The model for an environment's spaces, initialised from the run's seed.

    Raises:
        WrongNetwork, WrongDistribution: where the settings do not fit the spaces.
    """
    options = Options(config.scale_action, config.initial_log_std, config.state_dependent_std)
    distribution = make_distribution(
        config.distribution, env_spaces.action, options, env_spaces.action_structure
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = ActorCritic(env_spaces, distribution, config)
    model.resample_noise(stream("noisy", config.seed, 2**32))  # a number that no update has
    return model


def build_model(config: Config) -> ActorCritic:
    """The model of a run, for its environment's spaces."""
    return make_model(spaces_of(config.env, **config.env_options()), config)
