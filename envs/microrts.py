"""microRTS (Ontañón 2013) as Gym-microRTS poses it (Huang et al. 2021, arXiv 2105.13807).

The game is Java's: the classes of the gym-microrts package, in a JVM inside this process, one a
process. A step is one cycle of the game. Observations are one-hot planes [H, W, 27] (29 under
partial observability), from the playing side's point of view:

    hit points 0..4 (5), carried resources 0..4 (5), owner none/own/other (3), unit type none or one
    of 7 (8), the unit's current action (6), and whether the cell is out of or in sight (2)

An action gives each cell seven components: type (6), direction to move (4), to harvest (4), to
return (4), to produce (4), unit type to produce (7), and the cell to attack, relative (49).
`action_mask` says which values are legal; where all of a component's are False, it has no effect.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.microrts_game import (
    CHOICES,
    COMPONENTS,
    OPPONENTS,
    REWARDS,
    SELF,
    WITHOUT_TABLE,
    Game,
    java,
    map_of,
    size_of,
)

_PLANES = np.array([5, 5, 3, 8, 6, 2])
_RESOURCE = 1  # the type plane's value for a resource


class _Client:
    """One game in Java, and what is read of it. A self-play game has two sides, others one.

    Args:
        game: the Java object.
        sides: those that the policy plays.
        envs: the environments that these are.
        opponent: the bot's name, or `SELF`.
        partial: whether observations are partial.
    """

    def __init__(
        self, game: Any, sides: tuple[int, ...], envs: range, opponent: str, partial: bool
    ):
        self.game, self.sides, self.envs, self.opponent = game, sides, envs, opponent
        self.partial = partial
        self.masks: list[list[Any]] = []  # by side and cell: the array that Java fills in place
        self._random: Any = None

    def seed(self, seed: int) -> None:
        """Give a bot that plays at random a stream of its own, whatever other games there are."""
        if self.opponent in WITHOUT_TABLE:
            self._random = java("java.util.Random")(seed)

    def _draw_from_own_stream(self) -> None:
        if self._random is not None:  # all games of the JVM draw from one field
            _field("util.Sampler", "generator").set(None, self._random)

    def reset(self) -> list[Any]:
        if self.opponent == SELF:
            self.game.reset()
            responses = [self.game.getResponse(side) for side in self.sides]
        else:
            responses = [self.game.reset(self.sides[0])]
            if self.opponent == "randomAI" and self._random is not None:  # a new one each time
                _field(OPPONENTS[self.opponent], "r").set(self.game.ai2, self._random)
        if not self.masks:
            self.masks = [
                [cell for row in self.game.getMasks(side) for cell in row] for side in self.sides
            ]
        return responses

    def step(self, orders: list[Any]) -> list[Any]:
        if self.opponent == SELF:
            self.game.gameStep(*orders)
            return [self.game.getResponse(side) for side in self.sides]
        self._draw_from_own_stream()
        return [self.game.gameStep(orders[0], self.sides[0])]

    def observation(self, side: int, response: Any) -> Any:
        """Java's planes [P, H, W] as a side sees them now."""
        if not self.partial:
            return response.observation
        # the response's own are of the state before the step: what a side sees is decided there
        state = _field(str(self.game.getClass().getName()), "gs").get(self.game)
        return java("rts.PartiallyObservableGameState")(state, side).getMatrixObservation(side)


@cache
def _field(name: str, field: str) -> Any:
    """A field of a Java class, made accessible."""
    found = java(name).class_.getDeclaredField(field)
    found.setAccessible(True)
    return found


class MicrortsEnvs(VectorEnv):
    """Games behind one vector interface, NEXT_STEP autoreset.

    Actions: [N, H * W * 7] under gridnet, [N, 8] (the cell, then its components) under
    unit_selection.

    Attributes:
        action_mask: [N, H * W * 78] bool, for the next action.
        raw_rewards: [N, 6] of the last step.
    """

    def __init__(self, env: str, num_envs: int, game: Game):
        import jpype

        if len(game.opponents) != num_envs or len(game.sides) != num_envs:
            raise ValueError(f"{len(game.opponents)} opponents for {num_envs} environments")
        if game.opponents.count(SELF) % 2:
            raise ValueError("a self-play environment has no neighbour")
        self.num_envs, self.game = num_envs, game
        size = size_of(env)
        assert size is not None
        self.height, self.width = size
        cells = self.height * self.width
        path = str(map_of(env, game.map_path))
        planes = _PLANES[: 6 if game.partial else 5]
        self.planes = int(planes.sum())
        self.single_observation_space = spaces.Box(0, 1, (*size, self.planes), np.uint8)
        selection = game.policy == "unit_selection"
        components = (cells, *COMPONENTS) if selection else COMPONENTS * cells
        self.single_action_space = spaces.MultiDiscrete(list(components))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self._clients = self._start(path)
        # by environment: its game, and its place among the game's sides
        self._place = [(c, at) for c in self._clients for at in range(len(c.envs))]
        self._to_java = jpype.JArray.of
        rows: Any = jpype.JArray(jpype.JInt, 2)
        self._nothing = rows(0)
        self._weights = np.array(game.reward_weights)
        self._raw = np.zeros((num_envs, len(planes), *size), np.int32)
        self._obs = np.zeros((num_envs, *size, self.planes), np.uint8)
        self.action_mask = np.zeros((num_envs, cells * CHOICES), bool)
        self._cell_mask = self.action_mask.reshape(num_envs, cells, CHOICES)
        self._idle: list[tuple[int, int]] = []  # (environment, cell) of the mask's True rows
        self.raw_rewards = np.zeros((num_envs, len(REWARDS)))
        self._length = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, bool)
        self._sums = np.zeros((num_envs, len(REWARDS)))

    def _start(self, path: str) -> list[_Client]:
        import jpype

        table = java("rts.units.UnitTypeTable")()
        interface = java("ai.rewardfunction.RewardFunctionInterface")
        names = (
            "WinLoss", "ResourceGather", "ProduceWorker", "ProduceBuilding", "Attack",
            "ProduceCombatUnit",
        )  # fmt: skip
        array: Any = jpype.JArray(interface)
        self.rewards = rewards = array(
            [java(f"ai.rewardfunction.{name}RewardFunction")() for name in names]
        )
        clients, env = [], 0
        while env < self.num_envs:
            opponent, partial = self.game.opponents[env], self.game.partial
            if opponent == SELF:
                started = java("tests.JNIGridnetClientSelfPlay")(rewards, "", path, table, partial)
                clients.append(_Client(started, (0, 1), range(env, env + 2), SELF, partial))
                env += 2
                continue
            bot = java(OPPONENTS[opponent])
            bot = bot() if opponent in WITHOUT_TABLE else bot(table)
            started = java("tests.JNIGridnetClient")(rewards, "", path, bot, table, partial)
            clients.append(
                _Client(started, (self.game.sides[env],), range(env, env + 1), opponent, partial)
            )
            env += 1
        return clients

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        if isinstance(seed, int):
            seed = [seed + i for i in range(self.num_envs)]
        for client in self._clients:
            if seed is not None:
                client.seed(int(seed[client.envs[0]]))
            self._read(client, client.reset())
        self._length[:] = 0
        self._sums[:] = 0.0
        self._ended[:] = False
        self._look()
        return self._obs, {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        resetting = self._ended
        self.raw_rewards[:] = 0.0
        orders, edges = self._orders(actions)
        for client in self._clients:
            if resetting[client.envs[0]]:
                self._read(client, client.reset())
            else:
                own = [orders[edges[i] : edges[i + 1]] for i in client.envs]
                self._read(client, client.step([self._as_java(rows) for rows in own]))
        self._look()
        self._length += 1
        self._length[resetting] = 0
        self._sums[resetting] = 0.0
        self._sums += self.raw_rewards
        terminated = self.raw_rewards[:, 0] != 0
        truncated = (self._length >= self.game.max_steps) & ~terminated & ~resetting
        self._ended = terminated | truncated
        for i in np.flatnonzero(terminated).tolist():
            self._mend_draw(i)
        return self._obs, self.raw_rewards @ self._weights, terminated, truncated, {}

    def _mend_draw(self, env: int) -> None:
        """The game calls it a loss for both where the last units of both died in one cycle."""
        if not self.game.partial and not self._raw[env, 2].any():
            self._sums[env, 0] -= self.raw_rewards[env, 0]
            self.raw_rewards[env, 0] = 0.0

    def _orders(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions as Java takes them: rows of a cell and its components [U, 8] int32.

        Also the edges [N + 1]: the rows of environment i lie between edges i and i + 1.
        """
        envs, cells = np.array(self._idle, np.int64).reshape(-1, 2).T
        if self.game.policy == "unit_selection":
            chosen = cells == actions[envs, 0]
            envs = envs[chosen]
            rows = actions[envs].astype(np.int32)
        else:
            rows = np.empty((len(cells), 1 + len(COMPONENTS)), np.int32)
            rows[:, 0] = cells
            rows[:, 1:] = actions.reshape(self.num_envs, -1, len(COMPONENTS))[envs, cells]
        return rows, np.searchsorted(envs, np.arange(self.num_envs + 1))

    def _as_java(self, orders: np.ndarray) -> Any:
        return self._to_java(orders) if len(orders) else self._nothing

    def _read(self, client: _Client, responses: list[Any]) -> None:
        for env, side, response in zip(client.envs, client.sides, responses, strict=True):
            planes = np.frombuffer(client.observation(side, response), np.int32)
            self._raw[env] = planes.reshape(self._raw.shape[1:])
            self.raw_rewards[env] = np.frombuffer(response.reward)

    def _look(self) -> None:
        """Encode the observations, and gather the masks of the units that may act."""
        _one_hot(self._raw, _PLANES, self._obs)
        for env, cell in self._idle:
            self._cell_mask[env, cell] = False
        self._idle = []
        candidates = (self._raw[:, 2] == 1) & (self._raw[:, 4] == 0)
        envs, cells = np.nonzero(candidates.reshape(self.num_envs, -1))
        last = -1
        for env, cell in zip(envs.tolist(), cells.tolist(), strict=True):
            if env != last:  # Java is asked for masks only where a unit may be idle
                client, at = self._place[env]
                client.game.getMasks(client.sides[at])
                masks, last = client.masks[at], env
            mask = np.frombuffer(masks[cell], np.int32)
            if mask[0]:  # otherwise it was told to do nothing, and that is not over yet
                self._cell_mask[env, cell] = mask[1:]
                self._idle.append((env, cell))

    def extras(self, env: int) -> dict[str, float]:
        """Of the episode of `env` that has just ended: outcome by opponent, and raw rewards."""
        outcome = np.sign(self._sums[env, 0])
        opponent = self.game.opponents[env]
        shares = {"win": outcome > 0, "draw": outcome == 0, "loss": outcome < 0}
        return {f"{name}/{opponent}": float(share) for name, share in shares.items()} | {
            f"raw_reward/{name}": float(total)
            for name, total in zip(REWARDS, self._sums[env], strict=True)
        }

    def picture(self, env: int = 0) -> np.ndarray:
        """The game as an image [height, width, 3] uint8."""
        return draw(self._raw[env])

    def close(self, **kwargs: Any) -> None:
        for client in self._clients:
            client.game.close()


def make(env: str, num_envs: int, game: Game | None = None) -> MicrortsEnvs:
    """Games of an id; where none are described, against a passive opponent."""
    return MicrortsEnvs(env, num_envs, game or Game(("passiveAI",) * num_envs, (0,) * num_envs))


@numba.njit(cache=True)
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
                    # to the second player the game shows resources, which are nobody's, as own
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
            kind = raw[3, y, x]
            if kind == 0:
                continue
            owner = 0 if kind == _RESOURCE else raw[2, y, x]
            tile[:] = ([120, 160, 120], [40, 90, 220], [220, 50, 50])[owner]
            edge = 1 if kind == _RESOURCE else 5
            tile[edge:-edge, edge:-edge] = _COLOURS[kind]
            for health in range(int(raw[0, y, x])):
                tile[-4:-2, 2 + 4 * health : 5 + 4 * health] = (20, 20, 20)
            if raw[1, y, x]:  # resources in store or carried
                tile[cell // 2 - 3 : cell // 2 + 3, cell // 2 - 3 : cell // 2 + 3] = (20, 160, 60)
    return image
