"""microRTS (Ontañón 2013) as Gym-microRTS poses it (Huang et al. 2021, arXiv 2105.13807).

The game runs in Java, by the classes of the gym-microrts package in a JVM inside this process. A
process has at most one JVM. A step is one cycle of the game. Observations are one-hot planes [H, W, 27] (29 under
partial observability), from the playing side's point of view:

    hit points 0..4 (5), carried resources 0..4 (5), owner none/own/other (3), unit type none or one
    of 7 (8), the unit's current action (6), and whether the cell is out of or in sight (2)

An action gives each cell seven components: type (6), direction to move (4), to harvest (4), to
return (4), to produce (4), unit type to produce (7), and the cell to attack, relative (49).
`action_mask` says which values are legal. A component without a legal value has no effect.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from common.compiled import njit
from envs.convention import Environments
from envs.microrts.game import CHOICES, COMPONENTS, REWARDS, SELF, Game, map_of, size_of
from envs.microrts.java import JavaGames

_PLANES = np.array([5, 5, 3, 8, 6, 2])
_RESOURCE = 1  # the type plane's value for a resource


class MicrortsEnvs(Environments):
    """Games behind one vector interface, NEXT_STEP autoreset.

    Actions: [N, H * W * 7] under gridnet, [N, 8] (the cell, then its components) under
    unit_selection.

    Attributes:
        action_mask: [N, H * W * 78] bool, for the next action.
        raw_rewards: [N, 6] of the last step.
    """

    has_extras = True

    def __init__(self, env: str, num_envs: int, game: Game):
        if len(game.opponents) != num_envs or len(game.sides) != num_envs:
            raise ValueError(f"{len(game.opponents)} opponents for {num_envs} environments")
        selfplay = game.opponents.count(SELF)
        if selfplay % 2 or game.opponents[:selfplay] != (SELF,) * selfplay:
            raise ValueError("self-play environments must be the first, and in pairs")
        self.num_envs, self.game = num_envs, game
        size = size_of(env)
        assert size is not None
        self.height, self.width = size
        cells = self.height * self.width
        planes = _PLANES[: 6 if game.partial else 5]
        self.planes = int(planes.sum())
        self.single_observation_space = spaces.Box(0, 1, (*size, self.planes), np.uint8)
        selection = game.policy == "unit_selection"
        components = (cells, *COMPONENTS) if selection else COMPONENTS * cells
        self.action_structure = ("unit_selection" if selection else "grid", cells)
        self.single_action_space = spaces.MultiDiscrete(list(components))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.episode_limit = game.max_steps
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self._raw = np.zeros((num_envs, len(planes), *size), np.int32)
        self._games = JavaGames(game, str(map_of(env, game.map_path)), self._raw.shape)
        self._weights = np.array(game.reward_weights)
        self._obs = np.zeros((num_envs, *size, self.planes), np.uint8)
        self.action_mask = np.zeros((num_envs, cells * CHOICES), bool)
        self._cell_mask = self.action_mask.reshape(num_envs, cells, CHOICES)
        # (environment, cell) of the mask's True rows
        self._idle = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.raw_rewards = np.zeros((num_envs, len(REWARDS)))
        self._length = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, bool)
        self._sums = np.zeros((num_envs, len(REWARDS)))

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        if isinstance(seed, int):
            seed = [seed + i for i in range(self.num_envs)]
        if seed is not None:
            self._games.seed([int(value) for value in seed])
        for env in range(self.num_envs):
            self._games.reset(env)
        self._length[:] = 0
        self._sums[:] = 0.0
        self._ended[:] = False
        self._look()
        return self._obs, {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        resetting = self._ended
        self._games.step(*self._orders(actions), resetting)
        for env in np.flatnonzero(resetting).tolist():
            self._games.reset(env)
        self.raw_rewards[:] = self._games.rewards
        self._length += 1
        self._length[resetting] = 0
        self._sums[resetting] = 0.0
        self._sums += self.raw_rewards
        terminated = self.raw_rewards[:, 0] != 0
        truncated = (self._length >= self.game.max_steps) & ~terminated & ~resetting
        self._ended = terminated | truncated
        self._look()
        for env in np.flatnonzero(terminated).tolist():
            self._mend_draw(env)
        return self._obs, self.raw_rewards @ self._weights, terminated, truncated, {}

    def _mend_draw(self, env: int) -> None:
        """Make a draw of a game whose last units died in one cycle; Java calls it lost for both.

        Under partial observability the other side's units may be out of sight, so it is left as it is.
        """
        owner, unit = self._raw[env, 2], self._raw[env, 3]
        if not self.game.partial and not owner[unit != _RESOURCE].any():
            self._sums[env, 0] -= self.raw_rewards[env, 0]
            self.raw_rewards[env, 0] = 0.0

    def _orders(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turn actions into orders for Java.

        Returns:
            Rows of a cell and its components [U, 8] int32, and edges [N + 1]: the rows of
            environment i lie between edges i and i + 1.
        """
        envs, cells = self._idle
        if self.game.policy == "unit_selection":
            chosen = cells == actions[envs, 0]
            envs = envs[chosen]
            rows = actions[envs].astype(np.int32)
        else:
            rows = np.empty((len(cells), 1 + len(COMPONENTS)), np.int32)
            rows[:, 0] = cells
            rows[:, 1:] = actions.reshape(self.num_envs, -1, len(COMPONENTS))[envs, cells]
        return rows, np.searchsorted(envs, np.arange(self.num_envs + 1))

    def _look(self) -> None:
        """Encode the observations, and gather the masks of the units that may act."""
        self._raw = self._games.planes()
        _one_hot(self._raw, _PLANES, self._obs)
        self._cell_mask[self._idle] = False
        idle = (self._raw[:, 2] == 1) & (self._raw[:, 4] == 0)
        idle[self._ended] = False  # its next action has no effect
        envs, cells = np.nonzero(idle.reshape(self.num_envs, -1))
        masks = self._games.masks(envs.tolist(), cells.tolist())
        may_act = masks[:, 0] != 0  # the others still carry out an order to do nothing
        self._idle = envs[may_act], cells[may_act]
        self._cell_mask[self._idle] = masks[may_act, 1:]

    def extras(self, env: int) -> dict[str, float]:
        """The outcome by opponent and the raw rewards of the episode that `env` has just ended.

        An episode in progress is told as it would be if it were cut off now: as a draw.
        """
        outcome = np.sign(self._sums[env, 0])
        opponent = self.game.opponents[env]
        shares = {"win": outcome > 0, "draw": outcome == 0, "loss": outcome < 0}
        return {f"{name}/{opponent}": float(share) for name, share in shares.items()} | {
            f"raw_reward/{name}": float(total)
            for name, total in zip(REWARDS, self._sums[env], strict=True)
        }

    def picture(self) -> np.ndarray:
        return draw(self._raw[0])

    def close(self, **kwargs: Any) -> None:
        self._games.close()


@njit()
def _one_hot(raw: np.ndarray, sizes: np.ndarray, out: np.ndarray) -> None:
    """raw [N, P, H, W] of the game -> out [N, H, W, sum of the first P sizes], 0 and 1."""
    envs, planes, height, width = raw.shape
    out[:] = 0
    for n in range(envs):
        for y in range(height):
            for x in range(width):
                first = 0
                for p in range(planes):
                    value = min(max(raw[n, p, y, x], 0), sizes[p] - 1)
                    # the game shows resources, which belong to nobody, as the second player's
                    if p == 2 and raw[n, 3, y, x] == _RESOURCE:
                        value = 0
                    out[n, y, x, first + value] = 1
                    first += sizes[p]


_COLOURS = np.array(
    [[245, 245, 240], [90, 170, 80], [190, 190, 200], [90, 90, 100], [170, 170, 170],
     [240, 200, 60], [230, 120, 40], [150, 90, 170]], np.uint8,
)  # fmt: skip


def draw(raw: np.ndarray, cell: int = 32) -> np.ndarray:
    """One game's planes [P, H, W] as an image: units by colour, their owner as the frame."""
    height, width = raw.shape[1:]
    image = np.full((height * cell, width * cell, 3), 255, np.uint8)
    for y in range(height):
        for x in range(width):
            tile = image[y * cell : (y + 1) * cell - 1, x * cell : (x + 1) * cell - 1]
            tile[:] = _COLOURS[0]
            unit = raw[3, y, x]
            if unit == 0:
                continue
            owner = 0 if unit == _RESOURCE else raw[2, y, x]
            tile[:] = ([120, 160, 120], [40, 90, 220], [220, 50, 50])[owner]
            edge = 1 if unit == _RESOURCE else 5
            tile[edge:-edge, edge:-edge] = _COLOURS[unit]
            for health in range(int(raw[0, y, x])):
                tile[-4:-2, 2 + 4 * health : 5 + 4 * health] = (20, 20, 20)
            if raw[1, y, x]:  # resources in store or carried
                tile[cell // 2 - 3 : cell // 2 + 3, cell // 2 - 3 : cell // 2 + 3] = (20, 160, 60)
    return image
