"""PPO's loss and its gradient step (Schulman et al. 2017, arXiv 1707.06347)."""

from __future__ import annotations

import math
import os
import shutil
from typing import NamedTuple

import torch
from torch import Tensor

from cluster.xparl_shim import load_parl
from config import Config
from model import ActorCritic

parl = load_parl()

STATISTICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm")

# Gradient steps from which compiling pays for itself: it costs some 25 s, or 5 s where it is cached,
# and saves about 1.5 ms a step of a small mlp, tens of milliseconds of a CNN. Networks that are not
# named here stay eager: their shapes depend on the data, or are the user's own.
_STEPS_THAT_PAY = {"mlp": 10_000, "nature_cnn": 1_500, "impala": 1_500}

_ADAM_BETAS = 0.9, 0.999


class Minibatch(NamedTuple):
    """B transitions. `weight` is 1 for a valid row and 0 for a reset row, which counts nowhere."""

    obs: Tensor  # [B, ...] raw
    action: Tensor  # [B, ...]
    behaviour_log_prob: Tensor  # [B]
    advantage: Tensor  # [B]
    value_target: Tensor  # [B]
    old_value: Tensor  # [B]
    weight: Tensor  # [B]
    action_mask: Tensor | None = None  # [B, A]


class PPO(parl.Algorithm):
    """The clipped surrogate objective over an `ActorCritic`, and Adam (Kingma & Ba 2015).

    A gradient step, from the forward pass to Adam, is one function of tensors, so that it can be
    compiled as one: at 256 rows of a small mlp that is 2 to 3 times as fast as compiling the loss.

    Args:
        model: the networks, already on their device.
        config: the loss's and the optimiser's settings.

    Attributes:
        moments: Adam's running means of the gradient and of its square [2, parameters], flat in
            the order of `parameters`.
        steps: gradient steps so far (a tensor, as all that changes between steps).
        learning_rate, clip_range: of the next steps (tensors; set their values in place).
    """

    def __init__(self, model: ActorCritic, config: Config):
        super().__init__(model)
        self.model: ActorCritic = model
        self.config = config
        self.parameters = list(model.parameters())
        self._sizes = [p.numel() for p in self.parameters]
        device = self.parameters[0].device
        self.moments = torch.zeros(2, sum(self._sizes), device=device)
        self.steps = torch.zeros((), device=device)
        self.learning_rate = torch.tensor(config.learning_rate, device=device)
        self.clip_range = torch.tensor(config.clip_range, device=device)
        self.compiled, self.note = choose_compile(config)
        model.bfloat16 = choose_bfloat16(config, device)
        self._step = self._gradient_step
        if self.compiled:
            torch._dynamo.config.trace_autograd_ops = True
            self._step = torch.compile(self._gradient_step, dynamic=False, fullgraph=True)

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

        params, value = model(batch.obs, batch.action_mask)
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
        return self._step(batch)

    def _gradient_step(self, batch: Minibatch) -> Tensor:
        total, parts = self.loss(batch, self.clip_range)
        gradients = torch.autograd.grad(total, self.parameters)
        with torch.no_grad():
            gradient = torch.cat([g.flatten() for g in gradients])
            norm = gradient.norm()
            self._adam(gradient * (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        return torch.cat([parts, norm.reshape(1)])

    def _adam(self, gradient: Tensor) -> None:
        """Algorithm 1 of Kingma & Ba 2015 (arXiv 1412.6980)."""
        (beta1, beta2), (mean, square) = _ADAM_BETAS, self.moments
        self.steps += 1
        mean.lerp_(gradient, 1 - beta1)
        square.lerp_(gradient * gradient, 1 - beta2)
        denominator = (square / (1 - beta2**self.steps)).sqrt() + self.config.adam_eps
        change = mean / denominator * (self.learning_rate / (1 - beta1**self.steps))
        for parameter, part in zip(self.parameters, change.split(self._sizes), strict=True):
            parameter.sub_(part.view_as(parameter))


def choose_compile(config: Config) -> tuple[bool, str]:
    """Whether the minibatch loss is compiled, and a line for the user where that is news."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    steps_per_epoch = config.steps_per_update // config.minibatch_size
    gradient_steps = config.updates * config.update_epochs * steps_per_epoch
    pays = gradient_steps >= _STEPS_THAT_PAY.get(config.network, math.inf)
    if config.compile == "off" or (config.compile == "auto" and not pays):
        return False, ""
    if compiler is None:
        return False, "no C++ compiler found: the gradient step is not compiled, training is slower"
    return (
        True,
        "compiling the gradient step: the first update takes some 20 s, or 5 s where it is cached",
    )


def choose_bfloat16(config: Config, device: torch.device) -> bool:
    """Whether the learner's trunks compute in bfloat16; emulated, it would be slower."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if config.network not in ("nature_cnn", "impala"):
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
