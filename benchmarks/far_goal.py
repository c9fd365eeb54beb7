"""A task without any reward until its goal, which random actions do not reach."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

_MOVES = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])


class FarGoal(gymnasium.Env):
    """Corridors of 11 cells, one above the other, each joined to the next at one end: 1 at the end of the last.

    An episode of 400 steps is cut off. Random actions cover some 20 of the 70 steps to the goal.
    """

    width, corridors, limit = 11, 6, 400
    observation_space = spaces.Box(0, 1, (width * (2 * corridors - 1),), np.float32)
    action_space = spaces.Discrete(4)

    def __init__(self) -> None:
        rows = 2 * self.corridors - 1  # every second one is a wall, with a door at its one end
        self._open = np.ones((self.width, rows), bool)
        self._open[:, 1::2] = False
        self._open[-1, 1::4] = self._open[0, 3::4] = True
        self._goal = (0, rows - 1)  # the last corridor is walked from the right to the left

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._at, self._t = np.zeros(2, int), 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        to = self._at + _MOVES[int(action)]
        if (to >= 0).all() and (to < self._open.shape).all() and self._open[tuple(to)]:
            self._at = to
        self._t += 1
        there = tuple(self._at) == self._goal
        return self._observation(), float(there), there, self._t >= self.limit, {}

    def _observation(self) -> np.ndarray:
        """A number for each cell, which is 1 where the walker is."""
        seen = np.zeros(self._open.shape, np.float32)
        seen[tuple(self._at)] = 1.0
        return seen.ravel()
