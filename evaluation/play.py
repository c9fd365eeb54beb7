"""The one loop that plays episodes with a policy: scores, films and leagues stand on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv

from common.randomness import draw_noise
from model import ActorCritic


class Step(NamedTuple):
    """A step of N environments, each of which plays one episode.

    The environments step on until the last episode has ended, so `playing` says which rows count.
    """

    action: np.ndarray  # [N, ...], as the environments took it
    reward: np.ndarray  # [N], raw
    playing: np.ndarray  # [N] bool: the step belongs to the episode
    ended: np.ndarray  # [N] bool: the episode ended with this step, or was cut off after it


def play(
    model: ActorCritic,
    venv: VectorEnv,
    obs: np.ndarray,
    generator: np.random.Generator,
    greedy: bool,
    limit: int,
) -> Iterator[Step]:
    """Play one episode in each environment.

    Args:
        venv: environments that were just reset, under the project's convention (see `envs`).
        obs: [N, ...] the observations of that reset.
        generator: what exploring actions are drawn from.
        greedy: take the most probable actions, and draw nothing.
        limit: steps after which the episodes still in progress are cut off.
    """
    envs, distribution = venv.num_envs, model.distribution
    playing, state = np.ones(envs, bool), model.initial_state(envs)
    shape = (envs, *distribution.noise_shape)
    for number in range(1, limit + 1):
        noise = None if greedy else draw_noise(generator, distribution.noise, shape)
        mask = venv.action_mask if model.spaces.masks else None
        acted = model.act(obs, noise, mask, state)
        if acted.state is not None:
            state = acted.state
        action = distribution.to_env(acted.action)
        obs, reward, terminated, truncated, _ = venv.step(action)
        ended = playing & (terminated | truncated | (number == limit))
        yield Step(action, reward, playing, ended)
        playing = playing & ~ended
        if not playing.any():
            return
