"""gymnasium's classic control."""

from __future__ import annotations

from typing import Any

from envs.convention import Environments, Family
from envs.scalar import comes_from, quiet_make, render_options, vectorize
from envs.state import CLASSIC


class Classic(Family):
    def owns(self, env: str) -> bool:
        return comes_from(env, "gymnasium.envs.classic_control.")

    def make(
        self, env: str, num_envs: int, *, filmed: bool = False, **options: Any
    ) -> Environments:
        return vectorize(
            env,
            lambda: quiet_make(env, **render_options(filmed)),
            num_envs,
            state_of=lambda _: CLASSIC,
        )


FAMILY = Classic()
