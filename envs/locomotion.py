"""gymnasium's running robots, stepped by one compiled loop over MuJoCo's physics."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numba
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from llvmlite.binding import add_symbol
from numba import types

from envs.convention import Environments
from envs.scalar import quiet_make
from envs.state import generator_of, generator_words


class LocomotionEnvs(Environments):
    """gymnasium's robots that are rewarded for running, all of them stepped by one compiled loop.

    gymnasium's Python around a step of HalfCheetah costs nearly as much as its physics. Here its
    environment makes the resets, and holds the constants; a step calls the physics alone, for one
    robot after another in the same memory, which the processor's caches then hold. Observations,
    rewards and ends are computed for all at once. The numbers are gymnasium's, bit for bit; infos
    are empty.
    """

    saves_state = True

    def __init__(self, env: str, num_envs: int):
        self.num_envs = num_envs
        task = quiet_make(env)
        self.spec = task.spec
        assert self.spec is not None
        assert self.spec.max_episode_steps is not None
        self.episode_limit = self._limit = self.spec.max_episode_steps
        self.metadata = task.metadata | {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = task.observation_space
        self.single_action_space = task.action_space
        self.observation_space = batch_space(task.observation_space, num_envs)
        self.action_space = batch_space(task.action_space, num_envs)
        self._task: Any = task.unwrapped
        self._healthy = HEALTH[env]
        self._generators: list[np.random.Generator] = [
            np.random.default_rng() for _ in range(num_envs)
        ]  # of the resets
        data = self._task.data
        ant = env.startswith("Ant")
        # the first coordinate of this view is the robot's x position
        self._place = data.body("torso").xpos if ant else data.qpos
        self._skipped = 2 if ant else 1  # coordinates that the policy does not see
        self._clips = env.startswith(("Hopper", "Walker2d"))
        # a robot's next state depends on the action and these alone: positions, velocities, and the
        # point from which the solver of contact forces starts
        self._physics = data.qpos, data.qvel, data.qacc_warmstart
        self._robots = tuple([np.zeros((num_envs, len(part))) for part in self._physics])
        self._x = np.zeros(num_envs)
        assert isinstance(task.observation_space, spaces.Box)
        self._obs = np.zeros((num_envs, *task.observation_space.shape))
        self._length = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, bool)
        mujoco.set_mjcb_time(None)  # not to time each part of each step

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
        self._task.np_random = self._generators[i]
        self._task.reset(seed=seed)
        self._generators[i] = self._task.np_random
        for robots, part in zip(self._robots, self._physics, strict=True):
            robots[i] = part
        self._x[i] = self._place[0]

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        task, resetting, before = self._task, self._ended, self._x.copy()
        _simulate(
            task.model._address, task.data._address, task.frame_skip, task.data.ctrl,
            self._physics, self._place, actions, resetting, self._robots, self._x,
        )  # fmt: skip
        for i in np.flatnonzero(resetting).tolist():
            self._reset(i)
        self._look()
        velocity = (self._x - before) / task.dt
        reward = getattr(task, "_forward_reward_weight", 1.0) * velocity
        healthy = self._healthy(task, *self._robots[:2])
        terminated = np.zeros(self.num_envs, bool)
        if healthy is not None:
            # -v4 pays it in the step that ends the episode too
            paid = healthy if self._pays_by_health else True
            reward = reward + paid * task._healthy_reward
            terminated = ~healthy & ~resetting
        cost = task._ctrl_cost_weight * np.square(actions).sum(1)
        reward = np.where(resetting, 0.0, reward - cost)
        self._length += 1
        self._length[resetting] = 0
        truncated = (self._length >= self._limit) & ~resetting
        self._ended = terminated | truncated
        return self._obs, reward, terminated, truncated, {}

    @property
    def _pays_by_health(self) -> bool:
        return self.spec is not None and self.spec.version == 5

    def _look(self) -> None:
        """Write the observations."""
        qpos, qvel, _ = self._robots
        split = qpos.shape[1] - self._skipped
        self._obs[:, :split] = qpos[:, self._skipped :]
        self._obs[:, split:] = np.clip(qvel, -10, 10) if self._clips else qvel

    def get_state(self) -> dict[str, np.ndarray]:
        generators = np.stack([generator_words(one) for one in self._generators])
        return {name: array.copy() for name, array in self._arrays().items()} | {
            "ended": self._ended.copy(),
            "generator": generators,
        }

    def set_state(self, arrays: dict[str, np.ndarray]) -> None:
        for name, array in self._arrays().items():
            array[:] = arrays[name]
        self._ended = arrays["ended"].copy()
        self._generators = [generator_of(words) for words in arrays["generator"]]
        self._look()

    def _arrays(self) -> dict[str, np.ndarray]:
        """The arrays that a step reads and writes in place; first axis N."""
        names = ("qpos", "qvel", "qacc_warmstart")
        robots = dict(zip(names, self._robots, strict=True))
        return robots | {"x": self._x, "length": self._length}

    def close(self, **kwargs: Any) -> None:
        self._task.close()


# the address of MuJoCo's own function, which compiled code calls
(_LIBRARY,) = Path(mujoco.__file__).parent.glob("libmujoco.*")
add_symbol("mj_step", ctypes.cast(ctypes.CDLL(str(_LIBRARY)).mj_step, ctypes.c_void_p).value)
_mj_step = types.ExternalFunction("mj_step", types.void(types.intp, types.intp))


@numba.njit(cache=True)
def _simulate(
    model: int, data: int, frames: int, ctrl: np.ndarray,
    physics: tuple[np.ndarray, ...], place: np.ndarray,
    actions: np.ndarray, resetting: np.ndarray, robots: tuple[np.ndarray, ...], x: np.ndarray,
) -> None:  # fmt: skip
    """Step the robots that are not `resetting`, by `frames` steps of the physics each."""
    for i in range(len(actions)):
        if resetting[i]:
            continue
        for part in range(len(robots)):
            physics[part][:] = robots[part][i]
        ctrl[:] = actions[i]
        for _ in range(frames):
            _mj_step(model, data)
        for part in range(len(robots)):
            robots[part][i] = physics[part]
        x[i] = place[0]


# --- which robots are healthy [N], by their positions [N, nq] and velocities [N, nv]
_Health = Callable[[Any, np.ndarray, np.ndarray], np.ndarray | None]


def _always(task: Any, qpos: np.ndarray, qvel: np.ndarray) -> None:
    return None


def _upright(task: Any, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    (low, high), (least, most) = task._healthy_z_range, task._healthy_angle_range
    z, angle = qpos[:, 1], qpos[:, 2]
    return (low < z) & (z < high) & (least < angle) & (angle < most)


def _upright_and_bounded(task: Any, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    low, high = task._healthy_state_range
    bounded = np.concatenate([qpos[:, 2:], qvel], 1)
    return _upright(task, qpos, qvel) & ((low < bounded) & (bounded < high)).all(1)


def _at_height(task: Any, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    low, high = task._healthy_z_range
    finite = np.isfinite(qpos).all(1) & np.isfinite(qvel).all(1)
    return finite & (low <= qpos[:, 2]) & (qpos[:, 2] <= high)


HEALTH: dict[str, _Health] = {
    "HalfCheetah-v4": _always,
    "HalfCheetah-v5": _always,
    "Hopper-v4": _upright_and_bounded,
    "Hopper-v5": _upright_and_bounded,
    "Walker2d-v4": _upright,
    "Walker2d-v5": _upright,
    "Ant-v4": _at_height,
}
