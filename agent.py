"""The agent: acts, learns from rollouts, and can be saved and restored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import checkpoint
from algorithm import PPO, STATISTICS, Minibatch
from cluster.xparl_shim import load_parl
from config import Config
from errors import UserError
from model import ActorCritic
from randomness import stream
from returns import ReturnScaler, gae
from rollout import Rollout, Weights

parl = load_parl()

_MODEL = "model/"  # prefix of the model's arrays in `state`


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
        self.scaler = ReturnScaler(config.env_num, config.gamma, config.reward_clip)
        self._before_update: State | None = None  # what an update that fails goes back to

    @property
    def model(self) -> ActorCritic:
        return self.alg.model

    # --- acting
    def sample(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Exploring actions [N, ...] for raw observations [N, ...], from noise drawn elsewhere."""
        return self.model.act(obs, noise).action.numpy()

    def predict(self, obs: np.ndarray) -> np.ndarray:
        """Greedy actions [N, ...] for raw observations [N, ...]."""
        return self.model.act(obs, None).action.numpy()

    def weights(self) -> Weights:
        """A copy of the model's parameters and buffers, as samplers take it."""
        return Weights(self.update, self.model.get_weights())

    # --- learning
    def learn(self, rollout: Rollout, progress: float, fresh: bool) -> dict[str, float]:
        """One update: values, advantages, epochs of minibatches, then the normaliser.

        The normaliser moves last, so that at lag 0 the first minibatch is evaluated by the very
        policy that acted, and its ratio is 1.

        Args:
            rollout: [T, env_num], raw rewards.
            progress: share of the run that is over, in [0, 1]; the schedules follow it.
            fresh: the environments were reset before it, so the return streams start anew.

        Returns:
            metrics of the update.

        Raises:
            NotFinite: where a loss or a gradient was; everything is as before the call.
        """
        config, alg = self.config, self.alg
        self._before_update = self.state()
        self._set_schedules(progress)
        device = self.model.device
        steps, envs = rollout.reward.shape
        obs = torch.from_numpy(rollout.observations()).to(device)
        rows = obs[:steps].flatten(0, 1)
        constant = {
            "obs": rows,
            "action": torch.from_numpy(rollout.action).to(device).flatten(0, 1),
            "behaviour_log_prob": torch.from_numpy(rollout.behaviour_log_prob).to(device).flatten(),
            "weight": torch.from_numpy(rollout.valid).to(device).flatten().float(),
        }
        if rollout.action_mask is not None:
            mask = torch.from_numpy(rollout.action_mask)
            constant["action_mask"] = mask.to(device).flatten(0, 1)
        if fresh:
            self.scaler.restart()
        reward = self._transform(rollout)
        statistics: list[Tensor] = []
        explained = 0.0
        epochs = 0
        for epoch in range(config.update_epochs):
            if epoch == 0 or config.recompute_advantages:
                estimates = self._estimate(rollout, reward, obs)
                if epoch == 0:
                    explained = _explained_variance(estimates, rollout.valid)
                fields = constant | {
                    name: torch.from_numpy(array).to(device).flatten()
                    for name, array in estimates.items()
                }
            order = self._shuffle(epoch, steps * envs).to(device)
            shuffled = {name: field[order] for name, field in fields.items()}
            first = len(statistics)
            for at in range(0, steps * envs, config.minibatch_size):
                batch = {n: f[at : at + config.minibatch_size] for n, f in shuffled.items()}
                statistics.append(alg.learn(Minibatch(**batch)))
            epochs += 1
            if config.target_kl is not None:
                kl = torch.stack(statistics[first:])[:, STATISTICS.index("approx_kl")].mean()
                if kl > config.target_kl:
                    break
        table = torch.stack(statistics).cpu()
        self._refuse_not_finite(table)
        valid = torch.from_numpy(rollout.valid).to(device).flatten()
        self.model.update_normalizer(rows[valid])
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
            "learning_rate": alg.learning_rate.item(),
            "epochs": epochs,
        }

    def initialize_normalizer(self, rollout: Rollout) -> None:
        """Give the normaliser its first statistics, before anything is learned."""
        seen = rollout.obs[:-1][rollout.valid]
        self.model.update_normalizer(torch.from_numpy(seen).to(self.model.device))

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
            return self.scaler(rollout.reward, ended, rollout.valid, rollout.env_ranges)
        return rollout.reward

    def _estimate(self, rollout: Rollout, reward: np.ndarray, obs: Tensor) -> dict[str, np.ndarray]:
        """Values, advantages and value targets [T, N] under the current weights."""
        with torch.no_grad():
            flat = obs.flatten(0, 1)
            value = torch.cat([self.model.value(part) for part in flat.split(4096)])
            value = value.view(obs.shape[:2]).cpu().numpy()
        advantage, target = gae(
            reward, value, rollout.terminated, rollout.truncated, rollout.valid,
            self.config.gamma, self.config.gae_lambda,
        )  # fmt: skip
        return {"advantage": advantage, "value_target": target, "old_value": value[:-1]}

    def _shuffle(self, epoch: int, size: int) -> Tensor:
        """The order of an epoch: a function of seed, update and epoch, so no state to save."""
        generator = stream("shuffle", self.config.seed, self.update, epoch)
        return torch.from_numpy(generator.permutation(size))

    def _set_schedules(self, progress: float) -> None:
        config, left = self.config, 1.0 - progress
        linear = config.learning_rate_schedule == "linear"
        self.alg.learning_rate.fill_(self.learning_rate * (left if linear else 1.0))
        clip_left = left if config.clip_schedule == "linear" else 1.0
        self.alg.clip_range.fill_(config.clip_range * clip_left)

    def _adapt(self, kl: float) -> None:
        """learning_rate_schedule kl: keep the KL of an update near desired_kl."""
        if self.config.learning_rate_schedule != "kl":
            return
        if kl > 2 * self.config.desired_kl:
            self.learning_rate = max(self.learning_rate / 1.5, 1e-6)
        elif kl < self.config.desired_kl / 2:
            self.learning_rate = min(self.learning_rate * 1.5, 1e-2)

    # --- state
    def state(self) -> State:
        """Everything that learning goes on from: arrays, and what JSON can hold.

        Within an update it is the state from before it, and no tensor is touched: a signal may
        have come in the midst of compiling, when torch's operations compute nothing. There is no
        random state in it: all noise is a function of the seed and of counters.
        """
        if self._before_update is not None:
            return self._before_update
        arrays = {f"{_MODEL}{name}": array for name, array in self.weights().arrays.items()}
        arrays["adam/moments"] = self.alg.moments.cpu().numpy().copy()
        arrays["scaler/running"] = self.scaler.running.copy()
        counters = {
            "update": self.update,
            "learning_rate": self.learning_rate,
            "adam_steps": int(self.alg.steps),
            "scaler": [self.scaler.count, self.scaler.mean, self.scaler.var],
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
        before, self._before_update = self._before_update, None
        self.load_state(*before)

    def load_state(self, arrays: dict[str, np.ndarray], counters: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        self.model.set_weights(model_arrays(arrays))
        self.alg.moments.copy_(torch.from_numpy(arrays["adam/moments"]))
        self.alg.steps.fill_(counters["adam_steps"])
        self.scaler.running[:] = arrays["scaler/running"]
        self.scaler.count, self.scaler.mean, self.scaler.var = counters["scaler"]
        self.update = counters["update"]
        self.learning_rate = counters["learning_rate"]


def model_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's own arrays out of those of an agent's `state`."""
    return {n.removeprefix(_MODEL): a for n, a in arrays.items() if n.startswith(_MODEL)}


def _explained_variance(estimates: dict[str, np.ndarray], valid: np.ndarray) -> float:
    """1 - Var[R - V] / Var[R] over valid rows; 0 where the targets do not vary."""
    target, value = estimates["value_target"][valid], estimates["old_value"][valid]
    variance = float(target.var()) if target.size else 0.0
    return 1.0 - float((target - value).var()) / variance if variance > 0 else 0.0
