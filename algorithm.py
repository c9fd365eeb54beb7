"""PPO's loss and its gradient step (Schulman et al. 2017, arXiv 1707.06347)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType

import torch
from torch import Tensor, nn

from learning.batches import Minibatch
from learning.compiled_step import Compiled
from learning.descent import Descent
from learning.gradient_steps import GradientSteps
from learning.hardware import choose_compile, choose_threads
from learning.passes import Statistics
from learning.schedules import Coefficients
from learning.state_values import StateValues
from learning.surrogate import bounded, joint_surrogate, normalized
from learning.trainers import Trainers
from learning.value_loss import value_error
from model import ActorCritic
from networks.precision import choose_bfloat16
from networks.trunks import Past, trunk_of
from parl_compat.shim import load_parl
from settings.config import Config, learning_settings

parl = load_parl()


class PPO(parl.Algorithm):
    """The clipped surrogate objective over an `ActorCritic`, and Adam.

    Args:
        model: the networks, already on their device.
        config: the loss's and the optimiser's settings.
        trainers: over whose gradients each step sums. Default: there is one.
        compiles_here: called where a step is to be compiled that no earlier run has kept; whether to
            do that then and there (`learning.compiled_step`).

    Attributes:
        descent: the optimiser, and which part of the model moves in the next steps.
        learning_rate, clip_range, entropy_coefficient, kl_coefficient, mix_weight: of the next steps
            (tensors; set their values in place).
        state_values: gives those of many rows.
        threads: in which a step is computed; each of a minibatch's shares has one. A subclass is given
            whole minibatches: its loss may be no sum over rows.
    """

    def __init__(
        self,
        model: ActorCritic,
        config: Config,
        trainers: Trainers | None = None,
        compiles_here: Callable[[], bool] = lambda: True,
    ):
        super().__init__(model)
        self.model: ActorCritic = model
        self.config, self.trainers = config, trainers or Trainers()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        device = self.parameters[0].device
        self.learning_rate = torch.tensor(config.learning_rate, device=device)
        self.descent = Descent(
            self.parameters, model.value_parameters(), self.learning_rate, config
        )
        self.clip_range = torch.tensor(config.clip_range, device=device)
        self.entropy_coefficient = torch.tensor(config.entropy_coefficient, device=device)
        self.kl_coefficient = torch.tensor(config.kl_coefficient, device=device)
        self.mix_weight = torch.tensor(config.mix_weight, device=device)
        self.compiled, self.note = choose_compile(config, device.type)
        model.bfloat16 = choose_bfloat16(config, device)
        self.threads = choose_threads(config, device.type, self.trainers.size)
        if type(self) is not PPO:
            self.threads = self.threads._replace(shares=1)
        compiler = self._compiler(compiles_here) if self.compiled else None
        size = self.descent.size + len(Statistics._fields) - 1
        self._steps = GradientSteps(
            self._gradient, self.descent.step, compiler, self.trainers, size, config.minibatch_size,
            on_gpu=device.type == "cuda",
        )  # fmt: skip
        by_parts = device.type != "cpu" or trunk_of(config.network).bfloat16
        self.state_values = StateValues(model, None if by_parts else compiler, self.threads.shares)

    def _compiler(self, compiles_here: Callable[[], bool]) -> Callable[[MethodType], Compiled]:
        # a subclass is code of a user's own, which nothing here could tell from another version of it
        settings, tensors = None, self._tensors()
        if type(self) is PPO:
            # an environment's spaces are no settings: its code may change under the same name
            settings = learning_settings(self.config) | {"spaces": repr(self.model.spaces)}
        on_gpu = self.learning_rate.device.type == "cuda"
        return lambda method: Compiled(method, on_gpu, tensors, settings, compiles_here)

    def _tensors(self) -> dict[str, Tensor]:
        """All that a gradient step reads and changes beside the minibatch, by name."""
        model = self.model
        own = {
            **vars(model.distribution), **vars(self.descent.adam), **vars(self.descent), **vars(self),
        }  # fmt: skip
        return {
            **dict(model.named_parameters(prefix="model")),
            **dict(model.named_buffers(prefix="model")),
            **{name: value for name, value in own.items() if isinstance(value, Tensor)},
        }

    def set_coefficients(self, coefficients: Coefficients) -> None:
        """Set the coefficients of the next gradient steps."""
        for name, value in coefficients._asdict().items():
            getattr(self, name).fill_(value)

    def loss(self, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and its parts for the log.

            L = L_policy + c_v L_value - c_e E[H] + L_RND

        (Schulman et al. 2017, eq. 9). Every mean but that of L_RND is over valid rows; where there are other
        trainers, it is this one's share of the mean over the rows of all.

        Returns:
            the scalar loss, and the `Statistics` by name, without the gradient's norm.
        """
        config, model = self.config, self.model
        valid = batch.weight > 0
        whole = batch.whole
        total_weight = batch.weight.sum().clamp(min=1.0) if whole is None else whole[0]
        weight = batch.weight / total_weight

        def mean(x: Tensor) -> Tensor:
            return (x * weight).sum()

        def counted(x: Tensor) -> Tensor:
            # a reset row may hold NaN, such as a log-probability where no action was legal
            return torch.where(valid if x.dim() == 1 else valid.unsqueeze(-1), x, 0.0)

        def expected(x: Tensor) -> Tensor:
            # over the actions of the policy that the ratio is taken from
            return mean(x if batch.importance is None else x * counted(batch.importance))

        params, value = model(batch.obs, batch.action_mask, batch.past)
        log_prob = model.distribution.sub_log_prob(params, batch.action)
        behaviour = batch.behaviour_log_prob
        if behaviour.dim() == 1:
            log_prob = log_prob.sum(-1)
        log_ratio = counted(log_prob - behaviour)
        joint_log_ratio = bounded(log_ratio if behaviour.dim() == 1 else log_ratio.sum(-1))
        joint_ratio = joint_log_ratio.exp()
        # Schulman's low-variance, non-negative estimate of KL(behaviour || policy); its gradient's
        # expectation is that of the KL
        divergence = joint_ratio - 1 - joint_log_ratio
        kl = mean(divergence)
        policy_loss = self._policy_loss(
            batch, log_ratio, joint_ratio, expected(divergence), mean, expected
        )
        value_loss = mean(value_error(config, value, batch, model.value_head.scale()))
        entropy = mean(model.distribution.entropy(params))
        value_part = config.value_coefficient * value_loss
        # a trunk in common learns for the policy alone where the value rests
        if self.descent.some_rest:
            value_part = torch.where(self.descent.value_learns, value_part, 0.0)
        total = policy_loss + value_part - self.entropy_coefficient * entropy
        if batch.predicted is not None:
            assert model.rnd is not None
            error = (model.rnd.error(batch.obs) * batch.predicted).sum()
            predicted = batch.predicted.sum().clamp(min=1.0) if whole is None else whole[3]
            total = total + error / predicted
        with torch.no_grad():
            clipped = (joint_ratio - 1).abs() > self.clip_range
            update_kl = kl
            if batch.start_log_prob is not None:
                joint = log_prob if behaviour.dim() == 1 else log_prob.sum(-1)
                change = bounded(counted(joint - batch.start_log_prob))
                update_kl = mean(change.exp() - 1 - change)
            return total, {
                "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy,
                "approx_kl": kl, "update_kl": update_kl, "clip_fraction": mean(clipped.float()),
            }  # fmt: skip

    def _policy_loss(
        self, batch: Minibatch, log_ratio: Tensor, joint_ratio: Tensor, kl: Tensor,
        mean: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor],
    ) -> Tensor:  # fmt: skip
        """The clipped surrogate objective or the penalised one, to be minimised."""
        config = self.config
        advantage = normalized(batch, mean) if config.normalize_advantage else batch.advantage
        if config.kl_penalty == "none":
            behaviour = batch.behaviour_log_prob
            return -expected(
                joint_surrogate(
                    config, log_ratio, behaviour, advantage, self.clip_range, self.mix_weight
                )
            )
        excess = (kl - 2 * config.desired_kl).clamp(min=0.0)
        return (
            self.kl_coefficient * kl
            + config.kl_excess_coefficient * excess**2
            - expected(joint_ratio * advantage)
        )

    def learn(self, *shares: Minibatch) -> Tensor:
        """One gradient step on a minibatch, given whole or in shares; its `Statistics` as one tensor."""
        return self._steps.one(shares)

    def learn_all(self, minibatches: Sequence[tuple[Minibatch, ...]]) -> Tensor:
        """A gradient step on each minibatch, given in its shares: a table with a row for each step."""
        own = type(self).learn is not PPO.learn  # a subclass's step must be asked for each
        table = None if own else self._steps.at_once(minibatches)
        if table is None:
            table = torch.stack([self.learn(*shares) for shares in minibatches])
        return table

    def value(self, obs: Tensor, past: Past | None = None) -> Tensor:
        """State values of many rows: see `StateValues`."""
        return self.state_values(obs, past)

    def take_compiled(self) -> bool:
        """Take what another process has compiled, from now on; whether all of it is there."""
        parts = [
            *self._steps.halves,
            *([] if self.state_values.graph is None else [self.state_values.graph]),
        ]
        taken = [part.take_kept() for part in parts]
        return all(taken)

    def _gradient(self, batch: Minibatch) -> Tensor:
        """A share of the gradient, flat, and behind it of the `Statistics`."""
        total, parts = self.loss(batch)
        gradients = _gradients(total, self.parameters, self.model)
        with torch.no_grad():
            numbers = [parts[name].reshape(1) for name in Statistics._fields[:-1]]
            return torch.cat([*[g.flatten() for g in gradients], *numbers])


def _gradients(
    total: Tensor, parameters: list[nn.Parameter], model: ActorCritic
) -> Sequence[Tensor]:
    if model.trunk.blocks:  # a network of the user's own need not use all that it has
        return torch.autograd.grad(total, parameters, materialize_grads=True)
    return torch.autograd.grad(total, parameters)
