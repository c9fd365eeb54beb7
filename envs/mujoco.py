"""MuJoCo through gymnasium, ids -v4 and -v5, rendered off screen.

gymnasium imports mujoco lazily and chooses its renderer from MUJOCO_GL, so the choice is made
here, before: EGL where nothing was asked for and there is no display.
"""

from __future__ import annotations

import os

from gymnasium.vector import VectorEnv

from envs.classic import quiet_make, vectorize

if "DISPLAY" not in os.environ:
    os.environ.setdefault("MUJOCO_GL", "egl")


def make(env: str, num_envs: int) -> VectorEnv:
    return vectorize(env, lambda: quiet_make(env), num_envs)
