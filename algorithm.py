"""PPO's loss and its gradient step (Schulman et al. 2017, arXiv 1707.06347)."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cluster.xparl_shim import load_parl
from config import Config
from model import ActorCritic

parl = load_parl()

STATISTICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm")

# Gradient steps from which compiling pays for itself: it costs some 25 s and saves about 1 ms a
# step of a small mlp, tens of milliseconds of a CNN.
_STEPS_THAT_PAY = {"mlp": 20_000, "nature_cnn": 1_500}


class Minibatch(NamedTuple):
    """B transitions. `weight` is 1 for a valid row and 0 for a reset row, which counts nowhere."""

    obs: Tensor  # [B, ...] raw
    action: Tensor  # [B, ...]
    behaviour_log_prob: Tensor  # [B]
    advantage: Tensor  # [B]
    value_target: Tensor  # [B]
    old_value: Tensor  # [B]
    weight: Tensor  # [B]


class PPO(parl.Algorithm):
    """The clipped surrogate objective over an `ActorCritic`, and Adam.

    Args:
        model: the networks, already on their device.
        config: the loss's and the optimiser's settings.
    """

    def __init__(self, model: ActorCritic, config: Config):
        super().__init__(model)
        self.model: ActorCritic = model
        self.config = config
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=config.learning_rate, eps=config.adam_eps, fused=True
        )
        self.compiled, self.note = choose_compile(config)
        self._loss = torch.compile(self.loss, dynamic=False) if self.compiled else self.loss
        device = next(model.parameters()).device
        self._clip = torch.tensor(config.clip_range, device=device)

    def loss(self, batch: Minibatch, clip_range: Tensor) -> tuple[Tensor, Tensor]:
        """The loss to minimise, and its parts for the log.

            L = -E[min(r A, clip(r, 1 - c, 1 + c) A)] + c_v E[(V - R)^2] - c_e E[H]

        with r = pi(a|s) / pi_behaviour(a|s) (eq. 7 and 9). Every mean is over valid rows.

        Returns:
            the scalar loss, and [5] statistics in the order of `STATISTICS`.
        """
        config, model = self.config, self.model
        weight = batch.weight / batch.weight.sum().clamp(min=1.0)

        def mean(x: Tensor) -> Tensor:
            return (x * weight).sum()

        params, value = model(batch.obs)
        log_ratio = model.distribution.log_prob(params, batch.action) - batch.behaviour_log_prob
        ratio = log_ratio.exp()
        advantage = batch.advantage
        if config.normalize_advantage:
            centred = advantage - mean(advantage)
            advantage = centred / (mean(centred * centred).sqrt() + 1e-8)
        clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
        policy_loss = -mean(torch.minimum(ratio * advantage, clipped * advantage))
        error = (value - batch.value_target) ** 2
        if config.value_clip is not None:
            change = (value - batch.old_value).clamp(-config.value_clip, config.value_clip)
            error = torch.maximum(error, (batch.old_value + change - batch.value_target) ** 2)
        value_loss = mean(error)
        entropy = mean(model.distribution.entropy(params))
        total = (
            policy_loss
            + config.value_coefficient * value_loss
            - config.entropy_coefficient * entropy
        )
        with torch.no_grad():
            # Schulman's low-variance, non-negative estimate of KL(behaviour || policy)
            approx_kl = mean(ratio - 1 - log_ratio)
            clip_fraction = mean(((ratio - 1).abs() > clip_range).float())
        parts = torch.stack([policy_loss, value_loss, entropy, approx_kl, clip_fraction])
        return total, parts.detach()

    def learn(self, batch: Minibatch) -> Tensor:
        """One gradient step on a minibatch; returns its [6] `STATISTICS`, still on the device."""
        total, parts = self._loss(batch, self._clip)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return torch.cat([parts, norm.detach().reshape(1)])

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def set_clip_range(self, clip_range: float) -> None:
        self._clip.fill_(clip_range)


def choose_compile(config: Config) -> tuple[bool, str]:
    """Whether the minibatch loss is compiled, and a line for the user where that is news."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    steps_per_epoch = config.steps_per_update // config.minibatch_size
    gradient_steps = config.updates * config.update_epochs * steps_per_epoch
    pays = gradient_steps >= _STEPS_THAT_PAY[config.network]
    if config.compile == "off" or (config.compile == "auto" and not pays):
        return False, ""
    if compiler is None:
        return False, "no C++ compiler found: the loss is not compiled, training is slower"
    return True, "compiling the loss: the first update takes some 20 s, or 5 s where it is cached"
