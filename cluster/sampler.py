"""The sampler: a vector environment and a policy that turn `Weights` into a `Rollout`.

The same class runs in every pool. What it collects is a function of the weights, the environments'
state, the seed, the fragment's number and the environments' indices alone: noise is drawn for all environments of the
run and each sampler takes its columns, so neither the pool nor the number of samplers shows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from cluster.wire import group, prefixed
from common.randomness import draw_noise, stream
from envs import BadEnvironment, NotFiniteNumber, make_vec_env, spaces_of_vec_env
from model import ActorCritic, make_model
from networks.precision import choose_acting_dtype
from rollout import Episode, Rollout, RolloutSpec
from settings.config import Config


class TimedEpisode(NamedTuple):
    """An episode that ended at step `t` of a fragment, in environment `env` of the run."""

    t: int
    env: int
    episode_return: float
    length: int
    extras: dict[str, float]


def read_episodes(rows: Any) -> list[TimedEpisode]:
    """Episodes that came in a message.

    Raises:
        ValueError: where it has something else in their place.
    """
    try:
        episodes = [TimedEpisode(*row) for row in rows]
        for episode in episodes:
            if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in episode[:4]):
                raise TypeError("one is not of finite numbers")
            if not all(isinstance(value, (int, float)) for value in episode.extras.values()):
                raise TypeError("one has extras that are no numbers")
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"its episodes cannot be read: {error}") from None
    return episodes


def read_rate(value: Any) -> float:
    """Steps per second that came in a message.

    Raises:
        ValueError: where it is something else.
    """
    if not isinstance(value, (int, float)) or not 0 <= value < 1e300:
        raise ValueError(f"its raw_sps is {value!r:.50}, which is no rate")
    return float(value)


def in_order(episodes: Iterable[TimedEpisode]) -> list[Episode]:
    """Episodes in the order of time, whichever samplers they come from."""
    ordered = sorted(episodes, key=lambda e: (e.t, e.env))
    return [Episode(e.episode_return, e.length, e.extras) for e in ordered]


def spec_of(model: ActorCritic, config: Config) -> RolloutSpec:
    """Shapes and dtypes of a run's fragments: floats are float32, images stay uint8."""
    env_spaces, distribution = model.spaces, model.distribution
    mask_size = distribution.mask_size if env_spaces.masks else 0
    observation, frames = env_spaces.observation, env_spaces.frame_stack
    shape = observation.shape[1:] if frames else observation.shape
    image = len(observation.shape) == 3
    return RolloutSpec(
        config.fragment_steps, shape, "uint8" if image else "float32",
        distribution.action_shape, distribution.action_dtype, frames, mask_size,
        0 if config.joint_loss == "compound" else distribution.sub_actions, model.state_size,
    )  # fmt: skip


def _again(attempt: int) -> tuple[int, ...]:
    """Counters of a stream that make it another one where a fragment is collected again.

    The zeros keep it apart from those of fragments whose number takes two words.
    """
    return (0, 0, attempt) if attempt else ()


class Sampler:
    """Steps the environments [first, last) of a run.

    Args:
        config: the run's settings.
        first, last: this sampler's environments.
        index: this sampler's number, for messages.
    """

    def __init__(self, config: Config, first: int, last: int, index: int = 0):
        self.config, self.first, self.last, self.index = config, first, last, index
        self.venv = make_vec_env(config.env, last - first, **config.env_options(range(first, last)))
        self.model = make_model(spaces_of_vec_env(self.venv), config)
        self.spec = spec_of(self.model, config)
        envs = last - first
        self._obs: np.ndarray = np.zeros(0)  # what the environments last returned
        self._resetting = np.zeros(envs, bool)  # the next action of these is ignored
        self._return = np.zeros(envs, np.float64)  # of the episodes in progress
        self._length = np.zeros(envs, np.int64)
        self._state = self.model.initial_state(envs)  # before `_obs`
        self._tail: dict[str, np.ndarray] = {}
        self.progress = (-1, -1)  # the fragment that was begun last, and the step in it
        self.model.prepare_to_act(choose_acting_dtype(config))

    def collect(
        self, fragment: int, reset: bool, out: Rollout, attempt: int = 0
    ) -> list[TimedEpisode]:
        """Fill `out` with the next T steps under the current weights.

        Args:
            fragment: the fragment's number in the run; with the seed it determines all noise.
            reset: reset every environment first, with seeds derived from `fragment`.
            out: [T, last - first], overwritten, with its `raw_sps`.
            attempt: another number gives the same fragment other noise and other seeds.

        Raises:
            NotFiniteNumber: for NaN or infinity in an observation, an action or a reward.
        """
        self.progress = (fragment, -1)
        if reset:
            self._reset(fragment, attempt)
        carried = 0 if reset else self._restore_tail(out)
        noise = self._noise(fragment, attempt, self.spec.steps - carried)
        distribution = self.model.distribution
        extras: dict[tuple[int, int], dict[str, float] | None] = {}
        stack, stepping_s = self.spec.frame_stack, 0.0
        if out.history is not None and not carried:
            out.history[:] = self._obs[:, :-1].swapaxes(0, 1)
        if out.state is not None:
            out.state[0] = self._state
        for t in range(carried, self.spec.steps):
            self.progress = (fragment, t)
            out.obs[t] = self._obs[:, -1] if stack else self._obs
            # the policy sees observations as they are stored, so that the learner sees the same bits
            mask = self.venv.action_mask if out.action_mask is not None else None
            acted = self.model.act(
                self._obs if stack else out.obs[t],
                noise[t - carried],
                mask,
                self._state,
                self.first,
            )
            out.action[t], out.behaviour_log_prob[t] = acted.action, acted.log_prob
            if out.action_mask is not None:
                out.action_mask[t] = acted.mask
            if acted.state is not None:
                self._state = acted.state
                self._state[self._resetting] = 0.0  # an episode begins with the next observation
            action = distribution.to_env(out.action[t])
            began = time.perf_counter()
            self._obs, reward, terminated, truncated, _ = self.venv.step(action)
            stepping_s += time.perf_counter() - began
            out.valid[t] = ~self._resetting
            out.reward[t], out.terminated[t], out.truncated[t] = reward, terminated, truncated
            np.logical_or(terminated, truncated, out=self._resetting)
            if self.venv.has_extras:
                for n in np.flatnonzero(self._resetting).tolist():
                    extras[t, n] = self.venv.extras(n)
        out.obs[self.spec.steps] = self._obs[:, -1] if stack else self._obs
        self._refuse_not_finite(out)
        self._keep_tail(out)
        out.raw_sps = len(noise) * (self.last - self.first) / stepping_s
        return self._episodes(out, carried, extras)

    def state(self) -> dict[str, np.ndarray]:
        """A copy of everything that the next fragment depends on beside the weights and the noise.

        The first axis of each array is this sampler's environments, so that they can be divided
        among another number of samplers.

        Raises:
            BadEnvironment: where the environments cannot save their state.
        """
        if not self.venv.saves_state:
            raise BadEnvironment(f"env {self.config.env} cannot save its state")
        arrays = {
            "observation": self._obs, "resetting": self._resetting, "return": self._return,
            "length": self._length,
        }  # fmt: skip
        if self.spec.state_size:
            arrays["recurrent"] = self._state
        carried = {name: rows.swapaxes(0, 1) for name, rows in self._tail.items()}
        arrays |= prefixed("carried/", carried) | prefixed("env/", self.venv.get_state())
        return {name: np.array(array, order="C") for name, array in arrays.items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from the `state` of all the run's environments: [env_num, ...]."""
        mine = {name: array[self.first : self.last].copy() for name, array in arrays.items()}
        self._obs, self._resetting = mine.pop("observation"), mine.pop("resetting")
        self._return, self._length = mine.pop("return"), mine.pop("length")
        if self.spec.state_size:
            self._state = mine.pop("recurrent")
        self._tail = {n: a.swapaxes(0, 1) for n, a in group("carried/", mine).items()}
        self.venv.set_state(group("env/", mine))

    def _keep_tail(self, out: Rollout) -> None:
        """Copy the rows that are not learned from in this fragment: the next one begins with them."""
        if self.config.carried_steps:
            first = self.config.steps_per_rollout
            self._tail = {name: array[first:].copy() for name, array in out.arrays().items()}
            if out.history is not None:
                past = len(out.history)
                history = np.concatenate([out.history, out.obs[:first]])[-past:]
                # after a reset row t an episode begins with obs[t + 1]: a stack holds no older frame
                begins = np.where(out.valid[:first], -past, np.arange(1, first + 1)[:, None]).max(0)
                history[np.arange(first - past, first)[:, None] < begins] = 0
                self._tail["history"] = history

    def _restore_tail(self, out: Rollout) -> int:
        """Begin `out` with the rows that were kept; returns how many there are."""
        carried = self.config.carried_steps
        if carried:
            for name, array in out.arrays().items():
                rows = len(array) if name == "history" else carried
                array[:rows] = self._tail[name][:rows]
        return carried

    def close(self) -> None:
        self.venv.close()

    def _reset(self, fragment: int, attempt: int) -> None:
        generator = stream("reset", self.config.seed, fragment, *_again(attempt))
        seeds = generator.integers(2**31 - 1, size=self.config.env_num)
        self._obs, _ = self.venv.reset(seed=seeds[self.first : self.last].tolist())
        self._resetting[:] = False
        self._state[:] = 0.0
        self._return[:] = 0.0
        self._length[:] = 0

    def _noise(self, fragment: int, attempt: int, steps: int) -> np.ndarray:
        """This sampler's columns [steps, N, ...] of the noise of all the run's environments."""
        distribution = self.model.distribution
        generator = stream("action", self.config.seed, fragment, *_again(attempt))
        shape = (steps, self.config.env_num, *distribution.noise_shape)
        noise = draw_noise(generator, distribution.noise, shape)
        return noise[:, self.first : self.last]

    def _refuse_not_finite(self, out: Rollout) -> None:
        for name, array in (
            ("reward", out.reward),
            ("observation", out.obs),
            ("action", out.action),
        ):
            if array.dtype == np.uint8 or np.isfinite(array.sum()):
                continue
            where = np.argwhere(~np.isfinite(array))
            if not len(where):
                continue  # finite values whose sum overflowed
            t, n = where[0][:2]
            raise NotFiniteNumber(
                f"{name} of environment {self.first + n} ({self.config.env}) is"
                f" {array[tuple(where[0])]} at step {t} of the fragment (sampler {self.index}):"
                f" an environment must give finite numbers"
            )

    def _episodes(
        self, out: Rollout, carried: int, extras: dict[tuple[int, int], dict[str, float] | None]
    ) -> list[TimedEpisode]:
        """The episodes that ended in the new rows of `out`; keeps the sums of those in progress.

        Rewards of reset rows are summed too: they are 0, but where a game goes on after a lost life.
        """
        episodes = []
        valid = out.valid[carried:]
        returns = np.cumsum(out.reward[carried:], 0, np.float64)
        lengths = np.cumsum(valid, 0)
        for t, n in np.argwhere((out.terminated | out.truncated)[carried:]).tolist():
            known = extras.get((carried + t, n), {})
            if known is None:  # the episode of the learner alone
                continue
            self._return[n] += returns[t, n]
            self._length[n] += lengths[t, n]
            total, length = float(self._return[n]), int(self._length[n])
            episodes.append(TimedEpisode(carried + t, self.first + n, total, length, known))
            # what this fragment gives to the next episode begins after t
            self._return[n], self._length[n] = -returns[t, n], -lengths[t, n]
        self._return += returns[-1]
        self._length += lengths[-1]
        return episodes
