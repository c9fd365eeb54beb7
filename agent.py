"""The agent: acts, learns from rollouts, and can be saved and restored."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from algorithm import PPO
from common import checkpoint
from common.randomness import stream
from learning.advantages import estimate, explained_variance, measure_start, normalize_values
from learning.batches import Batches, EpochMemory, observations, to_device
from learning.passes import NotFinite, Passes
from learning.replay import Replay
from learning.reward_scale import RewardTransform
from learning.row_ages import RowAges
from learning.schedules import Schedules
from learning.trainers import Shared
from learning.undo import State, Undo
from model import ActorCritic, build_model
from networks.actor import Acted
from networks.layers import RunningMoments
from parl_compat.shim import load_parl
from rollout import Rollout, RolloutSpec, Weights
from settings.config import Config

parl = load_parl()

__all__ = ["NotFinite", "PPOAgent", "make_agent"]


class PPOAgent(parl.Agent):
    """Learner-side agent over a `PPO` algorithm.

    Args:
        algorithm: the loss, the optimiser and the model.
        config: the settings of an update.
    """

    def __init__(self, algorithm: PPO, config: Config):
        super().__init__(algorithm)
        self.alg: PPO = algorithm
        self.config, self.trainers = config, algorithm.trainers
        self.update = 0
        self.schedules = Schedules(config)
        self.rewards = RewardTransform(config, self.trainers)
        self.ages = RowAges(config, self.trainers)
        self.replay = Replay(config)
        self._epochs = EpochMemory()
        self.undo = Undo(self._tensors, self._numbers, self._load_numbers)

    @property
    def model(self) -> ActorCritic:
        return self.alg.model

    # --- acting
    def sample(
        self,
        obs: np.ndarray,
        noise: np.ndarray | None,
        mask: np.ndarray | None = None,
        state: np.ndarray | None = None,
    ) -> Acted:
        """Explore in N environments.

        Args:
            obs: [N, ...] raw.
            noise: [N, ...] as the distribution takes it, drawn by the caller; None: greedy.
            mask: [N, A] bool of legal actions, where the environment has one.
            state: [N, S] of a recurrent network, from `Acted.state` of the step before, with 0 in
                the rows where an episode begins. Default: episodes begin in all rows.

        Returns:
            the actions [N, ...], as `model.distribution.to_env` takes them for the environment, and with
            them log-probabilities, masks and the new state.
        """
        if state is None and self.model.state_size:
            state = self.model.initial_state(len(obs))
        return self.model.act(obs, noise, mask, state)

    def predict(
        self, obs: np.ndarray, mask: np.ndarray | None = None, state: np.ndarray | None = None
    ) -> Acted:
        """Act greedily in N environments. Arguments and result are those of `sample`."""
        return self.sample(obs, None, mask, state)

    def weights(self) -> Weights:
        """A copy of the model's parameters and buffers, as samplers take it."""
        return Weights(self.update, self.model.get_weights())

    # --- learning
    def learn(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """One update: values, advantages, epochs of minibatches, then the normaliser.

        This is Algorithm 1 of Schulman et al. 2017 after the actors' part. The normaliser moves
        last, so that at lag 0 the first minibatch is evaluated by the very policy that acted, and
        its ratio is 1. All randomness is a function of seed, update and epoch.

        With `replay_batches` it learns from earlier rollouts too, whose ratio is 1 then if it is taken from
        the update's start. With `value_epochs` some passes are those of the policy, or of the value function,
        alone.

        Args:
            rollout: [T, env_num], raw rewards.
            progress: share of the run that is over, in [0, 1]; the schedules follow it.

        Returns:
            metrics of the update.

        Raises:
            NotFinite: if a loss or a gradient is not. After this or any other error everything is
                as before the call, but for what Hogwild trainers share.
        """
        config, alg, model, trainers = self.config, self.alg, self.model, self.trainers
        with self.undo.on_failure():
            coefficients = self.schedules.at(progress, self.update)
            alg.set_coefficients(coefficients)
            rollout = self.replay(rollout, stream("replay", config.seed, self.update))
            shares = alg.threads.shares
            batches = Batches(config, rollout, model.device, trainers, shares, self._epochs)
            with trainers.moving_statistics():
                error = batches.prediction_error(model)  # None without RND
                rewards = self.rewards(rollout, error)
                log_rho = measure_start(config, rollout, batches, model)
                value = batches.values(alg.value)
                first = estimate(config, rollout, rewards, value, log_rho)
                if config.normalize_value:
                    normalize_values(config, model, first, rollout, trainers)
            batches.put(**first._asdict())
            passes = Passes(config)
            for epoch in passes:
                alg.descent.set_learning(*passes.learning(epoch))
                if epoch > 0 and config.recompute_advantages:
                    value = batches.values(alg.value)
                    anew = estimate(config, rollout, rewards, value, log_rho)
                    # the change that --value_clip bounds is that of the whole update
                    batches.put(**anew._replace(old_value=first.old_value)._asdict())
                if model.rnd is not None:
                    batches.draw_predicted(self._stream("rnd", epoch))
                passes.add(alg.learn_all(batches.epoch(self._stream("shuffle", epoch))))
            metrics = passes.metrics(self.update) | coefficients.metrics(config) | {
                "explained_variance": explained_variance(first, rollout.valid, trainers),
                "policy_lag_mean": self.ages(rollout, self.update),
            }  # fmt: skip
            if error is not None:
                metrics["intrinsic_reward"] = trainers.mean(float(error.mean()))
            if model.has_statistics:
                with trainers.moving_statistics():
                    model.update_normalizer(batches.valid_obs, trainers.moments)
            model.resample_noise(stream("noisy", config.seed, self.update))
            self.schedules.adapt(float(passes.update_kl))
            self.update += 1
        return metrics

    def _stream(self, purpose: Literal["shuffle", "rnd"], epoch: int) -> np.random.Generator:
        """The generator of an epoch of this update; of linked and of hogwild trainers each has its own."""
        counters = self.update, epoch, *self.trainers.counters
        return stream(purpose, self.config.seed, *counters)

    def compile(self, spec: RolloutSpec) -> None:
        """Have the gradient step compiled now, if it is to be compiled: while the samplers start.

        The agent learns from a made-up rollout, and undoes that.
        """
        if not self.alg.compiled:
            return
        rollout = Rollout.blank(spec, *self.trainers.envs(self.config))
        # made-up numbers may be too unlikely for floats; the step is compiled then too
        with contextlib.suppress(NotFinite), self.undo.on_failure():
            self.learn(rollout, 0.0)
            self.undo.go_back()

    def initialize_normalizer(self, rollout: Rollout) -> None:
        """Give the normaliser its first statistics, before anything is learned."""
        device = self.model.device
        obs = observations(rollout, device)[:-1]
        valid = to_device(rollout.valid, device)
        self.model.update_normalizer(obs[valid], self.trainers.moments)

    # --- state
    def state(self) -> State:
        """Everything that learning goes on from: arrays, and counters that JSON can hold.

        Within an update it is the state from before it: see `Undo.state`. It holds no random state,
        because all noise is a function of the seed and of counters.
        """
        if self.undo.keeps:
            return self.undo.state()
        arrays, counters = self._numbers()
        tensors = {name: tensor.cpu().numpy().copy() for name, tensor in self._tensors().items()}
        return tensors | arrays, counters

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors that an update changes."""
        tensors = {f"{checkpoint.MODEL}{n}": t for n, t in self.model.tensors().items()}
        adam = self.alg.descent.adam
        return tensors | {"adam/moments": adam.moments, "adam/decay": adam.decay}

    def shared(self) -> Shared:
        """The tensors that trainers can have in common memory (`--trainer_mode hogwild`)."""
        adam, scalers = self.alg.descent.adam, (self.rewards.scaler, self.rewards.bonus_scaler)
        moments = [m for m in self.model.modules() if isinstance(m, RunningMoments)]
        return Shared(
            [parameter.detach() for parameter in self.alg.parameters],
            [adam.moments, adam.decay] if self.config.hogwild_moments == "shared" else [],
            [buffer for one in moments for buffer in one.buffers()]
            + [torch.from_numpy(scaler.moments) for scaler in scalers],
        )

    def _numbers(self) -> State:
        """The part of the state that is in no tensor."""
        arrays, counters = self.rewards.state()
        replayed, versions = self.replay.state()
        return arrays | replayed | {"carried_versions": self.ages.versions}, counters | versions | {
            "update": self.update,
            "learning_rate": self.schedules.learning_rate,
            "kl_coefficient": self.schedules.kl_coefficient,
        }

    def _load_numbers(self, arrays: Mapping[str, np.ndarray], counters: Mapping[str, Any]) -> None:
        self.rewards.load(arrays, counters)
        self.replay.load(arrays, counters)
        # older checkpoints do not have them
        self.ages.versions = arrays.get("carried_versions", self.ages.versions)
        self.schedules.learning_rate = counters["learning_rate"]
        self.schedules.kl_coefficient = counters["kl_coefficient"]
        self.update = counters["update"]

    def save(self, save_path: str | Path) -> None:
        """Write the whole state as a checkpoint folder (PARL's own version pickles weights)."""
        checkpoint.write(Path(save_path), *self.state())

    def restore(self, save_path: str | Path) -> None:
        """Read a folder that `save` wrote.

        Raises:
            BadCheckpoint: if it is damaged or missing.
        """
        saved = checkpoint.load(Path(save_path))
        self.load_state(saved.arrays, saved.state)

    def load_state(self, arrays: dict[str, np.ndarray], counters: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        self.model.set_weights(checkpoint.part(arrays, checkpoint.MODEL))
        self.alg.descent.adam.moments.copy_(torch.from_numpy(arrays["adam/moments"]))
        self.alg.descent.adam.decay.copy_(torch.from_numpy(arrays["adam/decay"]))
        self._load_numbers(arrays, counters)


def make_agent(config: Config, device: str = "cpu") -> PPOAgent:
    """An agent for a run's environment, with its model and its algorithm.

    Raises:
        UserError: where the settings do not fit the environment, with the remedy.
    """
    return PPOAgent(PPO(build_model(config).to(device), config), config)
