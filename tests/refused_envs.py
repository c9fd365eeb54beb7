"""Environments that the project refuses, each for one thing that it cannot use."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from tests.toy_envs import ConstantReward


class SavingAList(ConstantReward):
    def get_state(self) -> Any:
        return [self.t]

    def set_state(self, arrays: Any) -> None:
        raise AssertionError


class SavingText(SavingAList):
    def get_state(self) -> Any:
        return {"name": "a"}


class WholeNumbers(ConstantReward):
    action_space = spaces.Box(0, 10, (2,), np.int64)


class FromOne(ConstantReward):
    action_space = spaces.MultiDiscrete([3, 2], start=[1, 0])


class Growing(ConstantReward):
    observation_space = spaces.Sequence(spaces.Discrete(3))


class _Mask(ConstantReward):
    mask: spaces.Space = spaces.MultiBinary(2)

    def __init__(self) -> None:
        vector = spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = spaces.Dict({"policy": vector, "action_mask": self.mask})


class MaskTooLong(_Mask):
    action_space, mask = spaces.Discrete(2), spaces.MultiBinary(3)


class MaskOfParts(_Mask):
    action_space = spaces.Discrete(2)
    mask = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)])


class MaskOfFloats(_Mask):
    action_space = spaces.Box(-1, 1, (2,), np.float32)


class MaskAlone(ConstantReward):
    observation_space = spaces.Dict({"action_mask": spaces.MultiBinary(2)})
