"""Environments that the project refuses, each for one thing that it cannot use."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers
from gymnasium.envs.classic_control import CartPoleEnv

from tests.toy_envs import ConstantReward, Saving


class SavingAList(ConstantReward):
    def get_state(self) -> Any:
        return [self.t]

    def set_state(self, arrays: Any) -> None:
        raise AssertionError


class SavingLongDoubles(SavingAList):
    def get_state(self) -> Any:
        return {"x": np.longdouble(1)}


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


class Wrapped(gymnasium.Wrapper):
    """Has a state of its own, and CartPole's."""

    def __init__(self) -> None:
        super().__init__(CartPoleEnv())
        self.steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.env.step(action)

    def get_state(self) -> dict[str, np.ndarray]:
        return {
            "steps": np.asarray(self.steps),
            "state": np.asarray(self.env.unwrapped.state, float),
        }

    def set_state(self, arrays: dict[str, np.ndarray]) -> None:
        self.steps, self.env.unwrapped.state = int(arrays["steps"]), arrays["state"]


class SavesSteps:
    """The two methods, for a wrapper that counts its steps."""

    steps = 0

    def get_state(self: Any) -> dict[str, np.ndarray]:
        return {"steps": np.asarray(self.steps), **self.env.get_state()}

    def set_state(self: Any, arrays: dict[str, np.ndarray]) -> None:
        self.steps = int(arrays["steps"])
        self.env.set_state({name: array for name, array in arrays.items() if name != "steps"})


class MixedIn(wrappers.TransformAction, SavesSteps):
    """Has a state of its own by a class that comes after the wrapper's."""

    def __init__(self) -> None:
        env = Saving()
        super().__init__(env, self.counted, env.action_space)

    def counted(self, action: Any) -> Any:
        self.steps += 1
        return action


class Limited(wrappers.TimeLimit):
    """Adds nothing but a limit to an environment that saves its state."""

    def __init__(self) -> None:
        super().__init__(Saving(), 20)


class OtherShapes(SavingAList):
    def get_state(self) -> Any:
        return {"past": np.zeros(id(self) // 16 % 1000)}


class OtherGenerator(ConstantReward):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        result = super().reset(seed=seed)
        self.np_random = np.random.Generator(np.random.MT19937(1))
        return result

    def get_state(self) -> Any:
        return {}

    def set_state(self, arrays: Any) -> None:
        raise AssertionError


class NeedsArguments(ConstantReward):
    def __init__(self, size: int) -> None:
        self.size = size


class OtherObservation(ConstantReward):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.ones(2, np.float32), {}


class WithoutOptions(ConstantReward):
    def reset(self, *, seed: int | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().reset(seed=seed)


class WithParts(ConstantReward):
    observation_space = spaces.Dict(
        {"policy": spaces.Box(-1, 1, (2,)), "hidden": spaces.Discrete(3)}
    )
