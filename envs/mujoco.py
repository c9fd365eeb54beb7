"""MuJoCo through gymnasium, ids -v4 and -v5, without gymnasium's notices about the older ones."""

from __future__ import annotations

from gymnasium.vector import VectorEnv

from envs.classic import quiet_make, vectorize


def make(env: str, num_envs: int) -> VectorEnv:
    return vectorize(env, lambda: quiet_make(env), num_envs)
