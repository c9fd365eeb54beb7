"""A set of microRTS games in Java, stepped with as few calls into Java as possible."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.microrts.classes import flattener, with_own_stream
from envs.microrts.game import CHOICES, OPPONENTS, SELF, Game, field, java

_AT_RANDOM = ("randomBiasedAI", "randomAI")

_ENDLESS = 2**31 - 1  # the environments cut games off themselves
_REWARD_CLASSES = (
    "WinLoss", "ResourceGather", "ProduceWorker", "ProduceBuilding", "Attack", "ProduceCombatUnit",
)  # fmt: skip


def make_bot(opponent: str, table: Any) -> Any:
    """A bot as a Java object."""
    if opponent in _AT_RANDOM:
        bot = with_own_stream(OPPONENTS[opponent])()
        bot.own = java("java.util.Random")()
        return bot
    bot_class = java(OPPONENTS[opponent])
    return bot_class() if opponent == "passiveAI" else bot_class(table)


def _seed(bot: Any, opponent: str, seed: int) -> None:
    """Seed a bot that plays at random; other bots stay as they are."""
    if opponent in _AT_RANDOM:
        bot.own = java("java.util.Random")(seed)
        field(OPPONENTS[opponent], "r").set(bot, bot.own)


def reward_functions() -> Any:
    """The Java objects that compute the six raw rewards, in the order of `REWARDS`."""
    import jpype

    array: Any = jpype.JArray(java("ai.rewardfunction.RewardFunctionInterface"))
    return array([java(f"ai.rewardfunction.{name}RewardFunction")() for name in _REWARD_CLASSES])


class JavaGames:
    """The games of N environments; in self-play two environments are the sides of one game.

    One call of the package's vector client steps all games. Java fills the same arrays of planes
    throughout an episode. `_boards` keeps these arrays, and one copy brings all observations to
    Python. The client starts a new game within the step that ends one, but the kept arrays still
    show the game that ended.

    Partially observable games are stepped one by one, because Java's response shows the state
    before the step: the view after it must be asked for.

    Args:
        game: its settings.
        map_path: the map's file.
        shape: of what `planes` returns.

    Attributes:
        rewards: [N, 6] of the last step; 0 where a game was reset since.
    """

    def __init__(self, game: Game, map_path: str, shape: tuple[int, ...]):
        import jpype

        self.game, self._count = game, len(game.opponents)
        selfplay = game.opponents.count(SELF)
        table = java("rts.units.UnitTypeTable")()
        bots: Any = jpype.JArray(java("ai.core.AI"))
        opponents = bots([make_bot(name, table) for name in game.opponents[selfplay:]])
        self._vector = java("tests.JNIGridnetVecClient")(
            selfplay, len(opponents), _ENDLESS, reward_functions(), "", map_path, opponents,
            table, game.partial,
        )  # fmt: skip
        self._clients = [
            self._vector.selfPlayClients[env // 2] if env < selfplay else self._vector.clients[env]
            for env in range(self._count)
        ]
        rows: Any = jpype.JArray(jpype.JInt, 2)
        orders: Any = jpype.JArray(jpype.JInt, 3)
        boards: Any = jpype.JArray(jpype.JInt, 4)
        self._nothing = rows(0)
        self._orders = orders([self._nothing] * self._count)
        self._ordered: list[int] = []  # environments that have orders in `_orders`
        self._sides = jpype.JArray.of(np.array(game.sides, np.int32))
        self._boards = boards(self._count)
        flat: Any = jpype.JArray(jpype.JInt)
        self._copied = flat(int(np.prod(shape)))
        self._shape, self._copy = shape, flattener().copy
        self._masks: list[list[Any]] = [[] for _ in range(self._count)]
        self.rewards = np.zeros((self._count, len(_REWARD_CLASSES)))

    def seed(self, seeds: list[int]) -> None:
        """Seed the bots that play at random."""
        for client, opponent, seed in zip(self._clients, self.game.opponents, seeds, strict=True):
            if opponent != SELF:
                _seed(client.ai2, opponent, seed)

    def reset(self, env: int) -> None:
        """Start a new game. The first side of a self-play pair starts it for both."""
        client, side = self._clients[env], self.game.sides[env]
        if self.game.opponents[env] == SELF:
            if side == 0:
                client.reset()
            response = client.getResponse(side)
        else:
            response = client.reset(side)
        self.rewards[env] = 0.0
        self._boards[env] = self._view(env) if self.game.partial else response.observation

    def step(self, orders: np.ndarray, edges: np.ndarray, ended: np.ndarray) -> None:
        """Play a cycle of all games. Games that had `ended` [N] bool get outcomes without meaning.

        Args:
            orders: rows of a cell and an action's components [U, 8] int32.
            edges: [N + 1]; the rows of environment i are orders[edges[i]:edges[i + 1]].
        """
        import jpype

        for env in self._ordered:
            self._orders[env] = self._nothing
        self._ordered = np.flatnonzero(np.diff(edges)).tolist()
        for env in self._ordered:
            self._orders[env] = jpype.JArray.of(orders[edges[env] : edges[env + 1]])
        if self.game.partial:
            self._step_one_by_one(ended)
        else:
            responses = self._vector.gameStep(self._orders, self._sides)
            self.rewards[:] = np.asarray(memoryview(responses.reward))

    def _step_one_by_one(self, ended: np.ndarray) -> None:
        for env in np.flatnonzero(~ended).tolist():
            client, side = self._clients[env], self.game.sides[env]
            if self.game.opponents[env] != SELF:
                response = client.gameStep(self._orders[env], side)
            else:
                if side == 0:
                    client.gameStep(self._orders[env], self._orders[env + 1])
                response = client.getResponse(side)
            self.rewards[env] = np.frombuffer(response.reward)
            self._boards[env] = self._view(env)

    def _view(self, env: int) -> Any:
        """The present view of the side of `env` in a partially observable game."""
        client, side = self._clients[env], self.game.sides[env]
        whole = field(str(client.getClass().getName()), "gs").get(client)
        return java("rts.PartiallyObservableGameState")(whole, side).getMatrixObservation(side)

    def planes(self) -> np.ndarray:
        """The view of each environment: [N, P, H, W] int32."""
        self._copy(self._boards, self._copied, 0)
        return np.array(self._copied).reshape(self._shape)

    def masks(self, envs: list[int], cells: list[int]) -> np.ndarray:
        """The masks of U cells [U, 1 + 78] int32; the cells of an environment must stand together.

        A row says whether the unit there may act, and which values of the components are legal.
        """
        gathered, last = [], -1
        for env, cell in zip(envs, cells, strict=True):
            if env != last:
                last, rows = env, self._clients[env].getMasks(self.game.sides[env])
                if not self._masks[env]:  # Java fills the same arrays each time
                    self._masks[env] = [cell for row in rows for cell in row]
            gathered.append(np.frombuffer(self._masks[env][cell], np.int32))
        return np.array(gathered).reshape(-1, 1 + CHOICES)

    def close(self) -> None:
        self._vector.close()
