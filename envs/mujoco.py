"""MuJoCo through gymnasium, ids -v4 and -v5, without gymnasium's notices about the older ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.classic import quiet_make, vectorize


def make(env: str, num_envs: int) -> VectorEnv:
    if env in _HEALTH:
        return LocomotionEnvs(env, num_envs)
    return vectorize(env, lambda: quiet_make(env), num_envs)


class LocomotionEnvs(VectorEnv):
    """gymnasium's robots that are rewarded for running, all of them stepped by one loop.

    gymnasium's Python around a step of HalfCheetah costs nearly as much as its physics. Here the
    environments' own objects make the resets, and hold the constants; a step calls the physics
    alone, and observations, rewards and ends are computed for all environments at once. The
    numbers are gymnasium's, bit for bit; infos are empty.
    """

    def __init__(self, env: str, num_envs: int):
        self.num_envs = num_envs
        made = [quiet_make(env) for _ in range(num_envs)]
        first, self.spec = made[0], made[0].spec
        assert first.spec is not None
        assert first.spec.max_episode_steps is not None
        self._limit: int = first.spec.max_episode_steps
        self.metadata = first.metadata | {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(first.observation_space, num_envs)
        self.action_space = batch_space(first.action_space, num_envs)
        self._envs: list[Any] = [one.unwrapped for one in made]
        task = self._envs[0]
        self._task, self._healthy = task, _HEALTH[env]
        self._model = task.model  # one for all: it is constant, and the cache holds it once
        self._datas = [one.data for one in self._envs]
        self._ctrls = [data.ctrl for data in self._datas]
        self._states = [(data.qpos, data.qvel) for data in self._datas]
        ant = env.startswith("Ant")
        # whose first coordinate is the way that the robot has come
        self._places = [data.body("torso").xpos if ant else data.qpos for data in self._datas]
        self._skipped = 2 if ant else 1  # coordinates that the policy does not see
        self._clips = env.startswith(("Hopper", "Walker2d"))
        self._qpos = np.zeros((num_envs, self._model.nq))
        self._qvel = np.zeros((num_envs, self._model.nv))
        self._x = np.zeros(num_envs)
        assert isinstance(first.observation_space, spaces.Box)
        self._obs = np.zeros((num_envs, *first.observation_space.shape))
        self._length = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is None or isinstance(seed, int):
            seed = [None if seed is None else seed + i for i in range(self.num_envs)]
        for env, one in zip(self._envs, seed, strict=True):
            env.reset(seed=one)
        self._length[:] = 0
        self._ended[:] = False
        self._look()
        return self._obs, {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        model, frames, step = self._model, self._task.frame_skip, mujoco.mj_step
        resetting, before = self._ended, self._x.copy()
        for i, (data, ctrl, action) in enumerate(
            zip(self._datas, self._ctrls, actions, strict=True)
        ):
            if resetting[i]:
                self._envs[i].reset()
            else:
                ctrl[:] = action
                step(model, data, frames)
        self._look()
        task = self._task
        velocity = (self._x - before) / task.dt
        reward = getattr(task, "_forward_reward_weight", 1.0) * velocity
        healthy = self._healthy(task, self._qpos, self._qvel)
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
        """Read the physics' state, and write the observations."""
        for i, (qpos, qvel) in enumerate(self._states):
            self._qpos[i], self._qvel[i] = qpos, qvel
        self._x[:] = [place[0] for place in self._places]
        split = self._qpos.shape[1] - self._skipped
        self._obs[:, :split] = self._qpos[:, self._skipped :]
        self._obs[:, split:] = np.clip(self._qvel, -10, 10) if self._clips else self._qvel

    def close(self, **kwargs: Any) -> None:
        for env in self._envs:
            env.close()


# --- whether robots are healthy [N], by their positions [N, nq] and velocities [N, nv]
_Health = Callable[[Any, np.ndarray, np.ndarray], np.ndarray | None]


def _always(task: Any, qpos: np.ndarray, qvel: np.ndarray) -> None:
    return None


def _upright(task: Any, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    (low, high), (least, most) = task._healthy_z_range, task._healthy_angle_range
    z, angle = qpos[:, 1], qpos[:, 2]
    return (low < z) & (z < high) & (least < angle) & (angle < most)


def _upright_and_bounded(task: Any, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    low, high = task._healthy_state_range
    state = np.concatenate([qpos[:, 2:], qvel], 1)
    return _upright(task, qpos, qvel) & ((low < state) & (state < high)).all(1)


def _at_height(task: Any, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    low, high = task._healthy_z_range
    finite = np.isfinite(qpos).all(1) & np.isfinite(qvel).all(1)
    return finite & (low <= qpos[:, 2]) & (qpos[:, 2] <= high)


_HEALTH: dict[str, _Health] = {
    "HalfCheetah-v4": _always,
    "HalfCheetah-v5": _always,
    "Hopper-v4": _upright_and_bounded,
    "Hopper-v5": _upright_and_bounded,
    "Walker2d-v4": _upright,
    "Walker2d-v5": _upright,
    "Ant-v4": _at_height,
}
