"""The agent: acts, learns from rollouts, and can be saved and restored."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithm import PPO, STATISTICS
from common import checkpoint
from common.errors import UserError
from common.randomness import stream
from learning.advantages import Estimator
from learning.batches import Batches, to_device
from learning.returns import ReturnScaler
from model import ActorCritic, Past, build_model
from parl_compat.shim import load_parl
from rollout import Rollout, RolloutSpec, Weights
from settings.config import Config

parl = load_parl()

_ROWS_AT_ONCE = 4096  # that are evaluated, for the memory's sake

State = tuple[dict[str, np.ndarray], dict[str, Any]]  # arrays, and what JSON can hold


class NotFinite(UserError):
    """NaN or infinity appeared in an update. The agent is as it was before it."""


class PPOAgent(parl.Agent):
    """Learner-side agent over a `PPO` algorithm.

    Args:
        algorithm: the loss, the optimiser and the model.
        config: the settings of an update.
    """

    def __init__(self, algorithm: PPO, config: Config):
        super().__init__(algorithm)
        self.alg: PPO = algorithm
        self.config = config
        self.update = 0
        self.learning_rate = config.learning_rate
        self.kl_coefficient = config.kl_coefficient
        self.scaler = ReturnScaler(config.env_num, config.gamma, config.reward_clip)
        # intrinsic rewards are scaled as the paper does it, and not clipped
        self.bonus_scaler = ReturnScaler(config.env_num, config.rnd_gamma, math.inf)
        self._before_update: State | None = None  # what an update that fails goes back to

    @property
    def model(self) -> ActorCritic:
        return self.alg.model

    # --- acting
    def sample(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Exploring actions [N, ...] for raw observations [N, ...], from noise drawn elsewhere."""
        return self.model.act(obs, noise).action

    def predict(self, obs: np.ndarray) -> np.ndarray:
        """Greedy actions [N, ...] for raw observations [N, ...]."""
        return self.model.act(obs, None).action

    def weights(self) -> Weights:
        """A copy of the model's parameters and buffers, as samplers take it."""
        return Weights(self.update, self.model.get_weights())

    # --- learning
    def learn(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """One update: values, advantages, epochs of minibatches, then the normaliser.

        The normaliser moves last, so that at lag 0 the first minibatch is evaluated by the very
        policy that acted, and its ratio is 1.

        Args:
            rollout: [T, env_num], raw rewards.
            progress: share of the run that is over, in [0, 1]; the schedules follow it.

        Returns:
            metrics of the update.

        Raises:
            NotFinite: where a loss or a gradient was; everything is as before the call.
        """
        config, alg = self.config, self.alg
        self._before_update = self.state()
        self._set_schedules(progress)
        obs = to_device(rollout.observations(), self.model.device)
        batches = Batches(config, rollout, obs)
        if rollout.reset:  # the return streams start anew
            self.scaler.restart()
            self.bonus_scaler.restart()
        estimates = self._estimator(rollout, obs, batches.past)
        if config.estimator == "vtrace":
            # the estimates correct from the behaviour policy to the one at the update's start; what
            # is left to the ratio is from there on
            batches.put({"behaviour_log_prob": estimates.log_prob})
        statistics: list[Tensor] = []
        explained, epochs = 0.0, 0
        for epoch in range(config.update_epochs):
            if epoch == 0 or config.recompute_advantages:
                found = estimates()
                if epoch == 0:
                    explained = _explained_variance(found, rollout.valid)
                    if config.normalize_value:
                        self._normalize_values(found["value_target"], rollout.valid)
                batches.put(found)
            if self.model.rnd is not None:
                share = stream("rnd", config.seed, self.update, epoch).random(rollout.reward.shape)
                batches.put({"predicted": (share < config.rnd_proportion).astype(np.float32)})
            # a function of seed, update and epoch, so no state to save
            order = stream("shuffle", config.seed, self.update, epoch)
            of_epoch = [alg.learn(batch) for batch in batches.epoch(order)]
            statistics += of_epoch
            epochs += 1
            if config.target_kl is not None:
                kl = torch.stack(of_epoch)[:, STATISTICS.index("approx_kl")].mean()
                if kl > config.target_kl:
                    break
        table = torch.stack(statistics).cpu()
        self._refuse_not_finite(table)
        self.model.update_normalizer(batches.obs[batches.weight > 0])
        self.model.resample_noise(stream("noisy", config.seed, self.update))
        means = dict(zip(STATISTICS, table.mean(0).tolist(), strict=True))
        last_epoch = table[-(len(table) // epochs) :].mean(0)
        self._adapt(float(last_epoch[STATISTICS.index("approx_kl")]))
        self.update += 1
        self._before_update = None
        return {
            "loss/policy": means["policy_loss"],
            "loss/value": means["value_loss"],
            "entropy": means["entropy"],
            "approx_kl": means["approx_kl"],
            "clip_fraction": means["clip_fraction"],
            "grad_norm": means["grad_norm"],
            "first_minibatch_kl": float(table[0, STATISTICS.index("approx_kl")]),
            "explained_variance": explained,
            "entropy_coefficient": alg.entropy_coefficient.item(),
            "learning_rate": alg.learning_rate.item(),
            "epochs": epochs,
            **({} if estimates.bonus is None else {"intrinsic_reward": estimates.bonus}),
            **(
                {} if config.kl_penalty == "none" else {"kl_coefficient": alg.kl_coefficient.item()}
            ),
        }

    def compile(self, spec: RolloutSpec) -> None:
        """Have the gradient step compiled now, where it is to be: while the samplers start.

        It is by an update on a made-up rollout, which is undone.
        """
        if not self.alg.compiled:
            return
        rollout = Rollout.empty(spec, self.config.env_num)
        rollout.valid[:] = True
        if rollout.action_mask is not None:
            rollout.action_mask[:] = True
        rollout.env_ranges = [(0, self.config.env_num)]
        before = self.state()
        rollout.reset = True
        self.learn(rollout, 0.0)
        self._before_update = before
        self.abandon_update()

    def initialize_normalizer(self, rollout: Rollout) -> None:
        """Give the normaliser its first statistics, before anything is learned."""
        seen = rollout.observations()[:-1][rollout.valid]
        self.model.update_normalizer(to_device(seen, self.model.device))

    def _refuse_not_finite(self, table: Tensor) -> None:
        """Raise `NotFinite`, and undo the update, where a gradient step's statistics are not."""
        finite = table.isfinite()
        if bool(finite.all()):
            return
        self.abandon_update()
        row = int((~finite).any(1).nonzero()[0])
        names = [name for name, good in zip(STATISTICS, finite[row], strict=True) if not good]
        raise NotFinite(
            f"{', '.join(names)} became NaN or infinite in update {self.update}, gradient step"
            f" {row + 1} of {len(table)}; the weights are kept as before the update. Try a lower"
            f" --learning_rate, or --reward_transform return_std"
        )

    def _transform(self, rollout: Rollout) -> np.ndarray:
        """The rewards that are learned from [T, N]."""
        if self.config.reward_transform == "sign":
            return np.sign(rollout.reward)
        if self.config.reward_transform == "return_std":
            ended = rollout.terminated | rollout.truncated
            return self.scaler(
                rollout.reward, ended, rollout.valid, rollout.env_ranges, rollout.carried
            )
        return rollout.reward

    def _normalize_values(self, target: np.ndarray, valid: np.ndarray) -> None:
        rows = to_device(target[valid], self.model.device)
        self.model.value_head.update_normalizer(rows.view(len(rows), -1))

    def _estimator(self, rollout: Rollout, obs: Tensor, past: Past | None) -> Estimator:
        """What gives the advantages of a rollout, under the weights of the time it is asked."""
        reward, bonus, mean_bonus = self._transform(rollout), None, None
        if self.model.rnd is not None:
            bonus = _by_row(self.model.rnd.error, obs[1:])
            mean_bonus = float(bonus.mean())
            no, yes = np.zeros(bonus.shape, bool), np.ones(bonus.shape, bool)
            bonus = self.bonus_scaler(bonus, no, yes, rollout.env_ranges, rollout.carried)

        def values() -> np.ndarray:
            if past is None:
                return _by_row(self.model.value, obs)
            with torch.no_grad():
                value = self.model.value(obs.flatten(0, 1), past)
            return value.unflatten(0, obs.shape[:2]).cpu().numpy()

        log_prob = np.zeros(0, np.float32)
        if self.config.estimator == "vtrace":
            log_prob = self._log_prob(rollout, obs[:-1], past)
        return Estimator(self.config, rollout, reward, bonus, log_prob, mean_bonus, values)

    @torch.no_grad()
    def _log_prob(self, rollout: Rollout, obs: Tensor, past: Past | None) -> np.ndarray:
        """Log-probabilities of a rollout's actions under the current weights."""
        action = to_device(rollout.action, obs.device).flatten(0, 1)
        mask = rollout.action_mask
        masks = None if mask is None else to_device(mask, obs.device).flatten(0, 1)
        if past is not None:
            past = Past(past.state, past.begins[: len(action)])
        rows, parts = obs.flatten(0, 1), []
        at_once = _ROWS_AT_ONCE if past is None else len(rows)
        for at in range(0, len(rows), at_once):
            part = slice(at, at + at_once)
            params = self.model.policy(rows[part], None if masks is None else masks[part], past)
            parts.append(self.model.distribution.sub_log_prob(params, action[part]))
        log_prob = torch.cat(parts).unflatten(0, obs.shape[:2])
        if rollout.behaviour_log_prob.ndim == 2:
            log_prob = log_prob.sum(-1)
        return log_prob.cpu().numpy()

    def _set_schedules(self, progress: float) -> None:
        config, left = self.config, 1.0 - progress
        linear = config.learning_rate_schedule == "linear"
        self.alg.learning_rate.fill_(self.learning_rate * (left if linear else 1.0))
        clip_left = left if config.clip_schedule == "linear" else 1.0
        self.alg.clip_range.fill_(config.clip_range * clip_left)
        factor = {"linear": left, "exponential": config.entropy_decay**self.update}
        entropy = config.entropy_coefficient * factor.get(config.entropy_schedule, 1.0)
        self.alg.entropy_coefficient.fill_(entropy)
        self.alg.kl_coefficient.fill_(self.kl_coefficient)

    def _adapt(self, kl: float) -> None:
        """Keep the KL of an update near desired_kl, by the learning rate or by the penalty."""
        desired = self.config.desired_kl
        if self.config.learning_rate_schedule == "kl":
            if kl > 2 * desired:
                self.learning_rate = max(self.learning_rate / 1.5, 1e-6)
            elif kl < desired / 2:
                self.learning_rate = min(self.learning_rate * 1.5, 1e-2)
        if self.config.kl_penalty == "adaptive":
            if kl > 1.5 * desired:
                self.kl_coefficient = min(self.kl_coefficient * 2, 1e4)
            elif kl < desired / 1.5:
                self.kl_coefficient = max(self.kl_coefficient / 2, 1e-4)

    # --- state
    def state(self) -> State:
        """Everything that learning goes on from: arrays, and what JSON can hold.

        Within an update it is the state from before it, and no tensor is touched: a signal may
        have come in the midst of compiling, when torch's operations compute nothing. There is no
        random state in it: all noise is a function of the seed and of counters.
        """
        if self._before_update is not None:
            return self._before_update
        arrays = {
            f"{checkpoint.MODEL}{name}": array for name, array in self.weights().arrays.items()
        }
        arrays["adam/moments"] = self.alg.moments.cpu().numpy().copy()
        arrays["adam/decay"] = self.alg.decay.cpu().numpy().copy()
        arrays["scaler/running"] = self.scaler.running.copy()
        arrays["bonus_scaler/running"] = self.bonus_scaler.running.copy()
        counters = {
            "update": self.update,
            "learning_rate": self.learning_rate,
            "kl_coefficient": self.kl_coefficient,
            "scaler": self.scaler.moments(),
            "bonus_scaler": self.bonus_scaler.moments(),
        }
        return arrays, counters

    def save(self, save_path: str | Path) -> None:
        """Write the whole state as a checkpoint folder (PARL's own version pickles weights)."""
        checkpoint.write(Path(save_path), *self.state())

    def restore(self, save_path: str | Path) -> None:
        """Read what `save` wrote.

        Raises:
            BadCheckpoint: where it is damaged or missing.
        """
        saved = checkpoint.load(Path(save_path))
        self.load_state(saved.arrays, saved.state)

    def abandon_update(self) -> None:
        """Go back to the state from before the update in progress."""
        assert self._before_update is not None
        self.load_state(*self._before_update)
        self._before_update = None  # only now: a signal in the midst of it saves the whole

    def load_state(self, arrays: dict[str, np.ndarray], counters: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        self.model.set_weights(checkpoint.part(arrays, checkpoint.MODEL))
        self.alg.moments.copy_(torch.from_numpy(arrays["adam/moments"]))
        self.alg.decay.copy_(torch.from_numpy(arrays["adam/decay"]))
        for name, scaler in (("scaler", self.scaler), ("bonus_scaler", self.bonus_scaler)):
            scaler.running[:] = arrays[f"{name}/running"]
            scaler.count, scaler.mean, scaler.var = counters[name]
        self.kl_coefficient = counters["kl_coefficient"]
        self.update = counters["update"]
        self.learning_rate = counters["learning_rate"]


def make_agent(config: Config, device: str = "cpu") -> PPOAgent:
    """An agent for a run's environment, with its model and its algorithm.

    Raises:
        UserError: where the settings do not fit the environment, with the remedy.
    """
    return PPOAgent(PPO(build_model(config).to(device), config), config)


@torch.no_grad()
def _by_row(function: Callable[[Tensor], Tensor], obs: Tensor) -> np.ndarray:
    """A function of observations [B, ...] -> [B, ...], for [T, N, ...]."""
    parts = [function(part) for part in obs.flatten(0, 1).split(_ROWS_AT_ONCE)]
    return torch.cat(parts).unflatten(0, obs.shape[:2]).cpu().numpy()


def _explained_variance(estimates: dict[str, np.ndarray], valid: np.ndarray) -> float:
    """1 - Var[R - V] / Var[R] over valid rows, of extrinsic rewards; 0 where R does not vary."""
    target, value = estimates["value_target"], estimates["old_value"]
    if target.ndim == 3:
        target, value = target[..., 0], value[..., 0]
    target, value = target[valid], value[valid]
    variance = float(target.var()) if target.size else 0.0
    return 1.0 - float((target - value).var()) / variance if variance > 0 else 0.0
