"""gymnasium's MuJoCo tasks, stepped by one compiled loop over MuJoCo's physics."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from llvmlite.binding import add_symbol
from numba import types

from common.compiled import njit
from envs.convention import Environments
from envs.mujoco.tasks import TASKS, Step
from envs.scalar import quiet_make
from envs.state import generator_of, generator_words

# a robot's next state depends on the action and these alone: positions, velocities, and the point
# from which the solver of contact forces starts
_PHYSICS = ("qpos", "qvel", "qacc_warmstart")


class MujocoEnvs(Environments):
    """gymnasium's MuJoCo environments of one task, all of them stepped by one compiled loop.

    gymnasium's Python around a step of HalfCheetah costs nearly as much as its physics. Here its
    environment makes the resets, and holds the constants; a step calls the physics alone, for one
    robot after another in the same memory, which the processor's caches then hold. Observations,
    rewards and ends are computed for all at once, as `tasks` says. The numbers are gymnasium's, bit
    for bit; infos are empty.
    """

    saves_state = True

    def __init__(self, env: str, num_envs: int):
        self.num_envs = num_envs
        made = quiet_make(env)
        self.spec = made.spec
        assert self.spec is not None
        assert self.spec.max_episode_steps is not None
        self.episode_limit = self._limit = self.spec.max_episode_steps
        self.metadata = made.metadata | {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = made.observation_space
        self.single_action_space = made.action_space
        self.observation_space = batch_space(made.observation_space, num_envs)
        self.action_space = batch_space(made.action_space, num_envs)
        self._env: Any = made.unwrapped
        self._task = TASKS[env]
        self._generators: list[np.random.Generator] = [
            np.random.default_rng() for _ in range(num_envs)
        ]  # of the resets
        names = (*_PHYSICS, *self._task.reads)
        self._data = tuple([getattr(self._env.data, name).reshape(-1) for name in names])
        self._robots = {
            name: np.zeros((num_envs, len(part)))
            for name, part in zip(names, self._data, strict=True)
        }
        self._obs = np.zeros((num_envs, *(made.observation_space.shape or ())))
        self._measured = np.zeros(num_envs)
        self._length = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, bool)
        # Not to time each part of each step, which takes a sixth of a Hopper's step. Python's own setter,
        # given None, puts its clock back
        ctypes.c_void_p.in_dll(_MUJOCO, "mjcb_time").value = None

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is None or isinstance(seed, int):
            seed = [None if seed is None else seed + i for i in range(self.num_envs)]
        for i, one in enumerate(seed):
            self._reset(i, one)
        self._length[:] = 0
        self._ended[:] = False
        self._look()
        return self._obs, {}

    def _reset(self, i: int, seed: int | None = None) -> None:
        self._env.np_random = self._generators[i]
        self._env.reset(seed=seed)
        self._generators[i] = self._env.np_random
        for robots, part in zip(self._robots.values(), self._data, strict=True):
            robots[i] = part

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        env, resetting, before = self._env, self._ended, self._measured
        _simulate(
            env.model._address, env.data._address, env.frame_skip, "cfrc_ext" in self._robots,
            env.data.ctrl, self._data, actions, resetting, tuple(self._robots.values()),
        )  # fmt: skip
        for i in np.flatnonzero(resetting).tolist():
            self._reset(i)
        self._look()
        step = Step(self._robots, actions, self._measured, before)
        reward, terminated = self._task.outcome(env, step)
        reward = np.where(resetting, 0.0, reward)
        terminated = terminated & ~resetting
        self._length += 1
        self._length[resetting] = 0
        truncated = (self._length >= self._limit) & ~resetting
        self._ended = terminated | truncated
        return self._obs, reward, terminated, truncated, {}

    def _look(self) -> None:
        """Write the observations, and what the next rewards are compared with."""
        parts = [part(self._env, self._robots) for part in self._task.observation]
        np.concatenate(parts, 1, out=self._obs)
        self._measured = self._task.measure(self._env, self._robots).copy()

    def get_state(self) -> dict[str, np.ndarray]:
        return {name: self._robots[name].copy() for name in _PHYSICS} | {
            "measured": self._measured.copy(),
            "length": self._length.copy(),
            "ended": self._ended.copy(),
            "generator": np.stack([generator_words(one) for one in self._generators]),
        }

    def set_state(self, arrays: dict[str, np.ndarray]) -> None:
        for name in _PHYSICS:
            self._robots[name][:] = arrays[name]
        self._measured = arrays["measured"].copy()
        self._length = arrays["length"].copy()
        self._ended = arrays["ended"].copy()
        self._generators = [generator_of(words) for words in arrays["generator"]]

    def close(self, **kwargs: Any) -> None:
        self._env.close()


(_LIBRARY,) = Path(mujoco.__file__).parent.glob("libmujoco.*")
_MUJOCO = ctypes.CDLL(str(_LIBRARY))  # the one that its package has loaded


def _of_mujoco(name: str) -> Any:
    """MuJoCo's function of this name, of a model and its data, for compiled code."""
    add_symbol(name, ctypes.cast(_MUJOCO[name], ctypes.c_void_p).value)
    return types.ExternalFunction(name, types.void(types.intp, types.intp))


_mj_step = _of_mujoco("mj_step")
_mj_rnePostConstraint = _of_mujoco("mj_rnePostConstraint")
_STATE = len(_PHYSICS)


@njit()
def _simulate(
    model: int, data: int, frames: int, contact_forces: bool, ctrl: np.ndarray,
    parts: tuple[np.ndarray, ...], actions: np.ndarray, resetting: np.ndarray,
    robots: tuple[np.ndarray, ...],
) -> None:  # fmt: skip
    """Step the robots that are not `resetting`, by `frames` steps of the physics each.

    Args:
        contact_forces: compute those on the bodies (cfrc_ext) too, which no step needs.
        parts: mjData's arrays, those of the physics first; `robots` has all robots' values of them.
    """
    for i in range(len(actions)):
        if resetting[i]:
            continue
        for k in range(_STATE):
            parts[k][:] = robots[k][i]
        ctrl[:] = actions[i]
        for _ in range(frames):
            _mj_step(model, data)
        if contact_forces:
            _mj_rnePostConstraint(model, data)
        for k in range(len(robots)):
            robots[k][i] = parts[k]
