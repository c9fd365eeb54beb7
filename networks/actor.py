"""Acting in N environments at once, from numpy arrays to numpy arrays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.backends import mkldnn

from distributions.base import Distribution
from networks.compiled_actor import Perceptron
from networks.compiled_lstm import LstmPolicy
from networks.layers import NoisyLinear
from networks.observations import Observations
from networks.packed import PackedNetwork
from networks.sequence import Lstm
from networks.trunks import Features, Past, Trunk


class Acted(NamedTuple):
    """Actions in N environments, and all that a rollout stores beside them."""

    action: np.ndarray  # [N, ...]
    log_prob: np.ndarray  # [N], or [N, K] where the loss is of sub-actions
    mask: np.ndarray | None  # [N, A] bool, the mask to store
    state: np.ndarray | None = None  # [N, S] of a recurrent network after these observations


class Policy(Protocol):
    """The parts of a model that acting needs; see `ActorCritic`."""

    observations: Observations
    trunk: Trunk
    distribution: Distribution
    actor: nn.Module
    critic: nn.Module
    policy_head: nn.Module
    log_std: nn.Parameter | None
    state_sizes: list[int]
    noisy_layers: list[NoisyLinear]
    by_sub_action: bool

    @property
    def device(self) -> torch.device: ...


# Observations and a state [N, S] -> the policy head's output, and a recurrent network's next state
CompiledPolicy = Callable[[np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray | None]]


class Actor:
    """Acts by a model's policy: by compiled code where the model allows it, or by torch.

    Where the weights change by `set_weights` alone, `pack` makes acting faster.

    An environment's action has the same bits whatever other environments act beside it.
    """

    def __init__(self, model: Policy):
        self._model = model
        self._compiled: CompiledPolicy | None = None
        self._layers: Perceptron | LstmPolicy | None = None  # what `_compiled` computes
        self._packed_as: torch.dtype | None = None  # None before `pack`
        self.packed: PackedNetwork | None = None  # by which it acts on images, after `pack`

    def __deepcopy__(self, memo: dict[int, Any]) -> Actor:
        """Of the copy of the model, to whose tensors it has views of its own."""
        return Actor(copy.deepcopy(self._model, memo))

    def forget(self) -> None:
        """Must be called when the model's tensors are replaced: compiled code has views of them.

        Changes in place, as the optimiser's and `set_weights`'s, show in the next action; but after
        `pack` those of `set_weights` alone.
        """
        self._compiled = self._layers = self._packed_as = self.packed = None

    def pack(self, dtype: torch.dtype) -> None:
        """Act by a copy of the weights of now, where the network is made for it.

        Args:
            dtype: of a trunk of images, float32 or bfloat16.
        """
        model, self._packed_as = self._model, dtype
        if model.trunk.acts_packed and model.device.type == "cpu" and mkldnn.is_available():
            self.packed = PackedNetwork(model.actor, dtype)
        if self.compiled is not None and self._layers is not None:
            self._layers.pack()

    def weights_changed(self) -> None:
        """Must be called when weights have been set: a copy of them is made anew."""
        if self._packed_as is not None:
            self.pack(self._packed_as)

    @property
    def compiled(self) -> CompiledPolicy | None:
        """The policy on the CPU up to its head's output, where its network acts compiled."""
        model = self._model
        plain = model.trunk.acts_compiled and not model.noisy_layers
        if self._compiled is None and plain and model.device.type == "cpu":
            self._compiled = self._compile()
        return self._compiled

    def _compile(self) -> CompiledPolicy:
        model, scaling = self._model, self._model.observations
        if isinstance(model.actor, Lstm) and isinstance(model.critic, Lstm):
            lstms = [model.actor, model.critic][: len(model.state_sizes)]
            self._layers = lstm = LstmPolicy(
                scaling.moments, scaling.clip, lstms, model.policy_head
            )
            return lstm
        layers = [*model.actor.children(), model.policy_head]
        self._layers = perceptron = Perceptron(scaling.moments, scaling.clip, layers)
        return lambda obs, _: (perceptron(obs), None)

    def __call__(
        self,
        obs: np.ndarray,
        noise: np.ndarray | None,
        mask: np.ndarray | None,
        state: np.ndarray | None,
        first: int,
    ) -> Acted:
        """See `ActorCritic.act`."""
        compiled = self._compiled or self.compiled
        if compiled is None:
            return self._act(obs, noise, mask, state, first)
        model = self._model
        output, after = compiled(obs, state)
        if noise is not None and mask is None:
            drawn = model.distribution.sample_compiled(output, model.log_std, noise)
            if drawn is not None:
                action, by_sub_action, joint = drawn
                return Acted(action, by_sub_action if model.by_sub_action else joint, None, after)
        with torch.inference_mode():
            return self._choose(torch.from_numpy(output), noise, mask, after)

    @torch.inference_mode()
    def _act(
        self,
        obs: np.ndarray,
        noise: np.ndarray | None,
        mask: np.ndarray | None,
        state: np.ndarray | None,
        first: int,
    ) -> Acted:
        model = self._model
        padding = model.trunk.padding(len(obs), first)
        rows = slice(padding[0], padding[0] + len(obs))
        images_in = torch.float32 if self.packed is None else self.packed.dtype
        batch = model.observations(self._padded(obs, padding), images_in)
        pasts: list[Past | None] = [None]
        if state is not None and model.state_sizes:
            goes_on = torch.zeros(len(batch), dtype=torch.bool, device=batch.device)
            states = self._padded(state, padding).split(model.state_sizes, -1)
            pasts = [Past(part, goes_on) for part in states]
        with NoisyLinear.quiet(model.noisy_layers if noise is None else []):
            features = self._features(model.observations.for_policy(batch), pasts[0])
            output = model.policy_head(features.policy[rows])
        if features.state is None:
            return self._choose(output, noise, mask, None)
        after = [features.state]
        for past in pasts[1:]:  # the critic's, with which the learner's critic begins
            of_critic = model.trunk.run_rowwise(model.critic, batch, past).state
            assert of_critic is not None
            after.append(of_critic)
        return self._choose(output, noise, mask, _array(torch.cat(after, -1)[rows]))

    def _features(self, obs: Tensor, past: Past | None) -> Features:
        if self.packed is None:
            return self._model.trunk.run_rowwise(self._model.actor, obs, past)
        whole = self.packed(obs)
        return Features(whole, whole)

    def _padded(self, array: np.ndarray, padding: tuple[int, int]) -> Tensor:
        """An array [N, ...] on the model's device, with rows of zeros before and after it."""
        tensor = torch.from_numpy(array).to(self._model.device)
        if padding == (0, 0):
            return tensor
        before, after = (tensor.new_zeros(rows, *tensor.shape[1:]) for rows in padding)
        return torch.cat([before, tensor, after])

    def _choose(
        self,
        output: Any,
        noise: np.ndarray | None,
        mask: np.ndarray | None,
        state: np.ndarray | None,
    ) -> Acted:
        model, distribution = self._model, self._model.distribution
        legal = None if mask is None else torch.from_numpy(mask).to(model.device)
        drawn = None if noise is None else torch.from_numpy(noise).to(model.device)
        params = distribution.shaped(output, model.log_std)
        chosen = distribution.choose(params, legal, drawn)
        log_prob = distribution.sub_log_prob(chosen.params, chosen.action)
        if not model.by_sub_action:
            log_prob = log_prob.sum(-1)
        return Acted(
            chosen.action.cpu().numpy(), log_prob.cpu().numpy(), _array(chosen.mask), state
        )


def _array(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.cpu().numpy()
