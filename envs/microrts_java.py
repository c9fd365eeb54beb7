"""A set of microRTS games in Java, as few calls into it as can be."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from envs.microrts_game import CHOICES, OPPONENTS, SELF, WITHOUT_TABLE, Game, java

_ENDLESS = 2**31 - 1  # the environments cut games off themselves
_REWARD_CLASSES = (
    "WinLoss", "ResourceGather", "ProduceWorker", "ProduceBuilding", "Attack", "ProduceCombatUnit",
)  # fmt: skip


@cache
def _field(name: str, field: str) -> Any:
    """A field of a Java class, made accessible."""
    found = java(name).class_.getDeclaredField(field)
    found.setAccessible(True)
    return found


def make_bot(opponent: str, table: Any) -> Any:
    made = java(OPPONENTS[opponent])
    return made() if opponent in WITHOUT_TABLE else made(table)


def reward_functions() -> Any:
    """Java's functions of the six raw rewards, in the order of `REWARDS`."""
    import jpype

    array: Any = jpype.JArray(java("ai.rewardfunction.RewardFunctionInterface"))
    return array([java(f"ai.rewardfunction.{name}RewardFunction")() for name in _REWARD_CLASSES])


class JavaGames:
    """The games of N environments; in self-play two environments are the sides of one game.

    One call of the package's vector client steps all games, except those that must be stepped one
    by one: against bots that play at random, since all games of a JVM draw from one generator and
    each must draw from its own, and partially observable ones, whose observations Java's client
    takes before the step.

    Java fills the same arrays of planes throughout an episode, so `_boards` keeps them, and one
    copy brings all observations here. The vector client starts a new game within the step that
    ends one; the arrays kept are still those of the game that ended.
    """

    def __init__(self, game: Game, map_path: str):
        import jpype

        ints: Any = jpype.JInt
        self.game, self._count = game, len(game.opponents)
        self._table = java("rts.units.UnitTypeTable")()
        self._rewards = reward_functions()
        self._alone: list[int] = []  # environments stepped one by one: the first side of each game
        self._together: list[int] = []  # environments of the vector client, in its order
        for env, opponent in enumerate(game.opponents):
            if not game.partial and opponent not in WITHOUT_TABLE:
                self._together.append(env)
            elif opponent != SELF or game.sides[env] == 0:
                self._alone.append(env)
        self._clients: list[Any] = [None] * self._count
        self._vector = self._make_vector_client(map_path) if self._together else None
        for env in self._alone:
            self._make_client(env, map_path)
        self._generators: dict[int, Any] = {}
        nothing: Any = jpype.JArray(ints, 2)
        self._nothing = nothing(0)
        self._orders = jpype.JArray(ints, 3)([self._nothing] * len(self._together))
        self._ordered: list[int] = []  # places of `_orders` that hold some
        self._sides = jpype.JArray.of(
            np.array([game.sides[env] for env in self._together], np.int32)
        )
        self._boards = jpype.JArray(ints, 4)(self._count)
        # JPype remembers an array's copy with the object that stands for it: this makes new ones
        self._holder = java("ai.jni.Responses")(self._boards, None, None)
        self._masks: list[list[Any]] = [[] for _ in range(self._count)]
        self.rewards = np.zeros((self._count, len(_REWARD_CLASSES)))

    def _make_vector_client(self, map_path: str) -> Any:
        import jpype

        opponents = [self.game.opponents[env] for env in self._together]
        selfplay = opponents.count(SELF)
        bots: Any = jpype.JArray(java("ai.core.AI"))
        made = bots([make_bot(name, self._table) for name in opponents[selfplay:]])
        vector = java("tests.JNIGridnetVecClient")(
            selfplay, len(made), _ENDLESS, self._rewards, "", map_path, made, self._table, False
        )
        for at, env in enumerate(self._together):
            paired = at < selfplay
            self._clients[env] = vector.selfPlayClients[at // 2] if paired else vector.clients[at]
        return vector

    def _make_client(self, env: int, map_path: str) -> None:
        opponent, partial = self.game.opponents[env], self.game.partial
        if opponent == SELF:
            self._clients[env] = self._clients[env + 1] = java("tests.JNIGridnetClientSelfPlay")(
                self._rewards, "", map_path, self._table, partial
            )
            return
        bot = make_bot(opponent, self._table)
        self._clients[env] = java("tests.JNIGridnetClient")(
            self._rewards, "", map_path, bot, self._table, partial
        )

    def seed(self, seeds: list[int]) -> None:
        """Give bots that play at random a stream of their own, whatever other games there are."""
        for env in self._alone:
            if self.game.opponents[env] in WITHOUT_TABLE:
                self._generators[env] = java("java.util.Random")(seeds[env])

    def reset(self, env: int) -> None:
        """Start a new game, of both environments where `env` is the first of a pair."""
        client, opponent = self._clients[env], self.game.opponents[env]
        if opponent == SELF:
            if self.game.sides[env] == 0:
                client.reset()
                for side in (0, 1):
                    self._keep(env + side, client.getResponse(side))
            return
        self._keep(env, client.reset(self.game.sides[env]))
        if opponent == "randomAI" and env in self._generators:  # it makes a new one each time
            _field(OPPONENTS[opponent], "r").set(client.ai2, self._generators[env])

    def _keep(self, env: int, response: Any) -> None:
        self._boards[env] = response.observation
        self.rewards[env] = 0.0
        if self.game.partial:
            self._look(env)

    def step(self, orders: np.ndarray, edges: np.ndarray, skipped: np.ndarray) -> None:
        """A cycle of all games but the `skipped` [N] bool, whose state is undefined thereafter.

        Args:
            orders: rows of a cell and an action's components [U, 8] int32.
            edges: [N + 1]; the rows of environment i are orders[edges[i]:edges[i + 1]].
        """
        if self._vector is not None:
            self._step_together(orders, edges.tolist())
        for env in self._alone:
            if not skipped[env]:
                self._step_alone(env, orders, edges.tolist())

    def _step_together(self, orders: np.ndarray, edges: list[int]) -> None:
        import jpype

        for at in self._ordered:
            self._orders[at] = self._nothing
        self._ordered = [at for at, env in enumerate(self._together) if edges[env] < edges[env + 1]]
        for at in self._ordered:
            env = self._together[at]
            self._orders[at] = jpype.JArray.of(orders[edges[env] : edges[env + 1]])
        assert self._vector is not None
        responses = self._vector.gameStep(self._orders, self._sides)
        self.rewards[self._together] = np.asarray(memoryview(responses.reward))

    def _step_alone(self, env: int, orders: np.ndarray, edges: list[int]) -> None:
        import jpype

        client = self._clients[env]
        if env in self._generators:
            _field("util.Sampler", "generator").set(None, self._generators[env])
        selfplay = self.game.opponents[env] == SELF
        envs = (env, env + 1) if selfplay else (env,)
        own = [
            jpype.JArray.of(orders[edges[i] : edges[i + 1]])
            if edges[i] < edges[i + 1]
            else self._nothing
            for i in envs
        ]
        if selfplay:
            client.gameStep(*own)
            responses = [client.getResponse(side) for side in (0, 1)]
        else:
            responses = [client.gameStep(own[0], self.game.sides[env])]
        for i, response in zip(envs, responses, strict=True):
            self.rewards[i] = np.frombuffer(response.reward)
            if self.game.partial:
                self._look(i)

    def _look(self, env: int) -> None:
        """Take what the side of `env` sees of the state as it is now."""
        client, side = self._clients[env], self.game.sides[env]
        state = _field(str(client.getClass().getName()), "gs").get(client)
        seen = java("rts.PartiallyObservableGameState")(state, side)
        self._boards[env] = seen.getMatrixObservation(side)

    def planes(self) -> np.ndarray:
        """What each environment sees: [N, P, H, W] int32."""
        return np.asarray(memoryview(self._holder.observation))

    def masks(self, envs: list[int], cells: list[int]) -> np.ndarray:
        """Of cells, those of an environment together: [U, 1 + 78] int32.

        First whether a unit there may act, then which values of the components are legal.
        """
        found, last = [], -1
        for env, cell in zip(envs, cells, strict=True):
            if env != last:
                last, rows = env, self._clients[env].getMasks(self.game.sides[env])
                if not self._masks[env]:  # Java fills the same arrays each time
                    self._masks[env] = [cell for row in rows for cell in row]
            found.append(np.frombuffer(self._masks[env][cell], np.int32))
        return np.array(found).reshape(-1, 1 + CHOICES)

    def close(self) -> None:
        for env in self._alone:
            self._clients[env].close()
        if self._vector is not None:
            self._vector.close()
