"""The game of microRTS stepped by hand, cell by cell, as the environments are to step it."""

from __future__ import annotations

from typing import Any

import jpype
import numpy as np

from envs.microrts.game import CHOICES, COMPONENTS, OPPONENTS, java, map_of, size_of

PLANES = (5, 5, 3, 8, 6, 2)


def slow_planes(raw: np.ndarray) -> np.ndarray:
    """The observation [H, W, planes] of Java's [P, H, W], cell by cell."""
    planes, height, width = raw.shape
    out = np.zeros((height, width, sum(PLANES[:planes])), np.uint8)
    for y in range(height):
        for x in range(width):
            first = 0
            for p in range(planes):
                value = min(raw[p, y, x], PLANES[p] - 1)
                if p == 2 and raw[3, y, x] == 1:
                    value = 0  # a resource is nobody's
                out[y, x, first + value] = 1
                first += PLANES[p]
    return out


class Reference:
    """One game, stepped by hand under NEXT_STEP autoreset."""

    def __init__(self, env: str, opponent: str, side: int, limit: int, partial: bool):
        table = java("rts.units.UnitTypeTable")()
        names = ("WinLoss", "ResourceGather", "ProduceWorker", "ProduceBuilding", "Attack")
        names += ("ProduceCombatUnit",)
        interface = java("ai.rewardfunction.RewardFunctionInterface")
        array: Any = jpype.JArray(interface)
        rewards = array([java(f"ai.rewardfunction.{name}RewardFunction")() for name in names])
        bot = java(OPPONENTS[opponent])
        bot = bot() if opponent == "passiveAI" else bot(table)
        path = str(map_of(env, None))
        self.game = java("tests.JNIGridnetClient")(rewards, "", path, bot, table, partial)
        self.side, self.limit, self.partial = side, limit, partial
        self.cells = int(np.prod(size_of(env) or ()))
        self.reset()

    def look(self, response) -> np.ndarray:
        if not self.partial:
            return slow_planes(np.array(response.observation))
        state = self.game.getClass().getDeclaredField("gs")
        state.setAccessible(True)
        seen = java("rts.PartiallyObservableGameState")(state.get(self.game), self.side)
        return slow_planes(np.array(seen.getMatrixObservation(self.side)))

    def reset(self) -> None:
        self.length, self.over = 0, False
        self.obs = self.look(self.game.reset(self.side))

    def mask(self) -> np.ndarray:
        if self.over:  # the next action has no effect
            return np.zeros(self.cells * CHOICES, bool)
        return np.array(self.game.getMasks(self.side))[..., 1:].reshape(-1) == 1

    def step(self, action: np.ndarray):
        if self.over:
            self.reset()
            return np.zeros(6), False, False
        masks = np.array(self.game.getMasks(self.side)).reshape(-1, 1 + CHOICES)
        rows = [[cell, *action.reshape(-1, 7)[cell]] for cell in np.flatnonzero(masks[:, 0])]
        rows = np.array(rows, np.int32).reshape(-1, 8)
        array: Any = jpype.JArray(jpype.JInt, 2)
        order = jpype.JArray.of(rows) if len(rows) else array(0)
        response = self.game.gameStep(order, self.side)
        self.obs = self.look(response)
        self.length += 1
        terminated = bool(response.done[0])
        truncated = not terminated and self.length >= self.limit
        self.over = terminated or truncated
        return np.array(response.reward), terminated, truncated


def legal_action(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random legal action of every cell, [cells * 7]."""
    cells = mask.reshape(-1, CHOICES)
    edges = np.cumsum([0, *COMPONENTS])
    action = np.zeros((len(cells), 7), np.int64)
    for cell in np.flatnonzero(cells.any(1)):
        for k in range(7):
            legal = np.flatnonzero(cells[cell, edges[k] : edges[k + 1]])
            action[cell, k] = rng.choice(legal) if len(legal) else 0
    return action.reshape(-1)
