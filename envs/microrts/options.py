"""microRTS's settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from common.values import Count, Natural, Needs
from envs.convention import WrongOption
from envs.microrts.game import REWARDS, SELF, Game, assign_opponents

_HERE = Needs(family="microrts")


@dataclass
class MicrortsOptions:
    """What is played in microRTS, and against whom."""

    opponents: Annotated[tuple[str, ...], _HERE] = ("randomBiasedAI",)
    """Bots, each with the number of environments it plays in, as coacAI:6 workerRushAI:2. Those
    without a number share the environments that are left."""
    selfplay_envs: Annotated[Natural, _HERE] = 0
    """Environments, in pairs, in which the policy plays both sides."""
    sides: Annotated[Literal["first", "both"], _HERE] = "first"
    """Which side the policy plays against bots. both: the second one in every other environment."""
    map_path: Annotated[str | None, _HERE] = None
    """A map file, or one of the package's as maps/SIZE/NAME.xml. Default: basesWorkers."""
    max_steps: Annotated[Count, _HERE] = 2000
    """Steps after which a game is cut off, as a draw."""
    reward_weights: Annotated[tuple[float, ...], _HERE] = (10.0, 1.0, 1.0, 0.2, 1.0, 4.0)
    """Weights of the rewards for winning, resources, workers, buildings, attacks and combat units."""
    partial_observability: Annotated[bool, _HERE] = False
    """Hide what the player's own units do not see."""
    policy: Annotated[Literal["gridnet", "unit_selection"], _HERE] = "gridnet"
    """gridnet: every idle unit acts in each step. unit_selection: one unit, which the policy selects."""


def training_game(config: MicrortsOptions, env_num: int, envs: range) -> Game:
    """The games of the environments `envs` of a run's `env_num`.

    Raises:
        WrongOpponents: where the opponents do not fit the number of environments.
    """
    opponents = assign_opponents(config.opponents, env_num, config.selfplay_envs)
    return _game(config, opponents[envs.start : envs.stop], [i % 2 for i in envs])


def evaluation_game(
    config: MicrortsOptions, episodes: range, opponents: tuple[str, ...] = ()
) -> Game:
    """The games of evaluation episodes, an environment each.

    Args:
        opponents: bots to play against in turn. (): the run's own.
    """
    bots = opponents or tuple(entry.partition(":")[0] for entry in config.opponents)
    playing = tuple(bots[i % len(bots)] for i in episodes)
    # sides alternate, and each bot is met from one side and then from the other
    return _game(config, playing, [(i % len(bots) + i // len(bots)) % 2 for i in episodes])


def _game(config: MicrortsOptions, opponents: tuple[str, ...], turns: Sequence[int]) -> Game:
    """A game against each of these opponents.

    Args:
        turns: the side, 0 or 1, on which the policy plays each game where it plays both.
    """
    sides = tuple(
        side if config.sides == "both" or opponent == SELF else 0
        for side, opponent in zip(turns, opponents, strict=True)
    )
    return Game(
        opponents, sides, config.map_path, config.max_steps, config.reward_weights,
        config.partial_observability, config.policy,
    )  # fmt: skip


def validate(config: MicrortsOptions, env_num: int) -> None:
    """Check the settings against one another.

    Raises:
        WrongOption: for the first rule that is broken.
    """
    if len(config.reward_weights) != len(REWARDS):
        raise WrongOption(
            f"reward_weights {config.reward_weights} must be {len(REWARDS)} numbers, of"
            f" {', '.join(REWARDS)}"
        )
    assign_opponents(config.opponents, env_num, config.selfplay_envs)
    if config.selfplay_envs and env_num % 2:
        raise WrongOption(f"env_num is {env_num}, but must be even with selfplay_envs")
