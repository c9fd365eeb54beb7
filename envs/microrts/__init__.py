"""microRTS: the family's face. `game` has its rules, `vector` its environments, `java` its engine."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from envs.convention import Environments, Family
from envs.microrts.game import Game, size_of
from envs.microrts.options import (
    MicrortsOptions,
    evaluation_game,
    training_game,
    validate,
)


class Microrts(Family):
    def owns(self, env: str) -> bool:
        return size_of(env) is not None

    def make(
        self, env: str, num_envs: int, *, filmed: bool = False, game: Game | None = None,
        **options: Any,
    ) -> Environments:  # fmt: skip
        """Games of an id; where none are described, against a passive opponent."""
        from envs.microrts.vector import MicrortsEnvs

        return MicrortsEnvs(env, num_envs, game or Game(("passiveAI",) * num_envs, (0,) * num_envs))

    def options(self, config: Any, envs: range | None) -> dict[str, Any]:
        if envs is None:
            validate(config, config.env_num)
            return {"game": evaluation_game(config, range(1), ("passiveAI",))}
        return {"game": training_game(config, config.env_num, envs)}

    def evaluation_options(
        self, config: MicrortsOptions, episodes: range, opponents: tuple[str, ...]
    ) -> dict[str, Any]:
        return {"game": evaluation_game(config, episodes, opponents)}

    def following(self, config: Any, given: Collection[str]) -> dict[str, Any]:
        if "test_max_steps" in given:
            return {}
        return {"test_max_steps": max(config.test_max_steps, config.max_steps)}

    def validate(self, config: Any) -> None:
        validate(config, config.env_num)

    def envs_together(self, config: MicrortsOptions) -> int:
        return 2 if config.selfplay_envs else 1


FAMILY = Microrts()
