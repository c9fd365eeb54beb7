"""Small environments whose right answers are known."""

from __future__ import annotations

import ctypes
import itertools
import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec


class ConstantReward(gymnasium.Env):
    """Reward 1 for ever, cut off after 10 steps: with gamma 0.99 every state is worth 100."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)
    limit = 10
    step_s = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> Any:
        if self.step_s:
            time.sleep(self.step_s)
        self.t += 1
        return np.ones(1, np.float32), 1.0, False, self.t >= self.limit, {}


class Wide(ConstantReward):
    """Observes 50,000 numbers, so that the state of a few is a message of many bytes."""

    observation_space = spaces.Box(-1, 1, (50_000,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.ones(50_000, np.float32), {}

    def step(self, action: Any) -> Any:
        _, *others = super().step(action)
        return np.ones(50_000, np.float32), *others

    def get_state(self) -> dict[str, np.ndarray]:
        return {"t": np.asarray(self.t)}

    def set_state(self, arrays: dict[str, np.ndarray]) -> None:
        self.t = int(arrays["t"])


class HangingAtStart(ConstantReward):
    """It takes an hour to make, where a variable says so."""

    def __init__(self) -> None:
        if "HANGS_AT_START" in os.environ:
            time.sleep(3600)


class Closing(ConstantReward):
    """Leaves a file in a folder when it is closed."""

    def close(self) -> None:
        _instances_before(Path(os.environ["CLOSING_FOLDER"]))


class BadAtClosing(ConstantReward):
    def close(self) -> None:
        raise RuntimeError("closed already")


class Slow(ConstantReward):
    """A step takes 50 ms."""

    step_s = 0.05


class Limited(ConstantReward):
    """Observes noise, and is known to be cut off after 12 steps; its state cannot be saved."""

    limit = 12
    spec = EnvSpec("Limited-v0", max_episode_steps=12)

    def step(self, action: Any) -> Any:
        _, *rest = super().step(action)
        return (self.np_random.uniform(-1, 1, 1).astype(np.float32), *rest)


def _instances_before(folder: Path) -> int:
    """How many times this was called with the folder before, in any process."""
    for number in itertools.count():
        try:
            (folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        return number
    raise AssertionError


class Uneven(ConstantReward):
    """A step takes 10 ms, and 80 ms in the second instance (the first is asked for its spaces)."""

    def __init__(self) -> None:
        number = _instances_before(Path(os.environ["UNEVEN_FOLDER"]))
        self.step_s = 0.08 if number == 1 else 0.01


class Meeting(ConstantReward):
    """Steps on only once four instances and the learner have each left a file in a folder."""

    def step(self, action: Any) -> Any:
        from tests.conftest import wait_until

        folder = Path(os.environ["MEETING_FOLDER"])
        (folder / f"{os.getpid()}-{id(self)}").touch()
        wait_until(lambda: len(list(folder.iterdir())) >= 5, 60, "all five to come")
        return super().step(action)


class Counter(gymnasium.Env):
    """Observes (seed drawn at reset, step), ends after 3 steps or is cut off after 5 at random."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.number = self.np_random.integers(1000)
        self.t, self.ends = 0, bool(self.np_random.integers(2))
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        over = self.t >= (3 if self.ends else 5)
        return self._obs(), float(action[0]), over and self.ends, over and not self.ends, {}

    def _obs(self) -> np.ndarray:
        return np.array([self.number, self.t], np.float64)


class NotANumberReward(ConstantReward):
    """The 25th reward after the start is NaN."""

    limit = 100

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, float("nan") if self.t == 25 else reward, terminated, truncated, info


class NotANumberObservation(ConstantReward):
    """The 25th observation after the start is NaN."""

    limit = 100

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return (obs * np.nan if self.t == 25 else obs, *rest)


class Hanging(ConstantReward):
    """The 25th step takes an hour, in the first instance that comes there."""

    limit = 100

    def step(self, action: Any) -> Any:
        if self.t == 25 and _instances_before(Path(os.environ["HANGING_FOLDER"])) == 0:
            time.sleep(3600)
        return super().step(action)


class HoldingTheLock(ConstantReward):
    """The 25th step holds Python's global lock for an hour, in the first instance that comes there."""

    limit = 100

    def step(self, action: Any) -> Any:
        if self.t == 25 and _instances_before(Path(os.environ["HANGING_FOLDER"])) == 0:
            ctypes.PyDLL(None).usleep(3600 * 10**6)  # PyDLL keeps the lock
        return super().step(action)


class Failing(ConstantReward):
    """Every 25th step after a reset raises an error."""

    limit = 100

    def step(self, action: Any) -> Any:
        if self.t == 25:
            raise ValueError("the wheel has come off")
        return super().step(action)


class ManyBits(ConstantReward):
    """An action space that no policy here offers."""

    action_space = spaces.MultiBinary(3)


class Masked(gymnasium.Env):
    """Two sub-actions, of which each step forbids some values; reward 1 for a legal (1, 2)."""

    observation_space = spaces.Dict(
        {"policy": spaces.Box(-1, 1, (2,), np.float32), "action_mask": spaces.MultiBinary(5)}
    )
    action_space = spaces.MultiDiscrete([2, 3])

    def _look(self) -> Any:
        self.mask = np.ones(5, np.int8)
        self.mask[self.np_random.integers(2)] = 0
        self.mask[2 + self.np_random.integers(3)] = 0
        return {"policy": self.np_random.random(2, np.float32), "action_mask": self.mask}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._look(), {}

    def step(self, action: Any) -> Any:
        if not (self.mask[action[0]] and self.mask[2 + action[1]]):
            raise ValueError(f"{action} is illegal under {self.mask}")
        self.t += 1
        return self._look(), float(action[0] == 1 and action[1] == 2), self.t >= 7, False, {}


class Hidden(gymnasium.Env):
    """A coin, tossed each episode, decides the reward of all its 10 steps: +1 or -1.

    Only the critic sees it. No action matters, so any advantage is noise: a critic that knows the
    coin predicts every return, one that does not sees returns of variance 1 per step.
    """

    observation_space = spaces.Dict(
        {"policy": spaces.Box(-1, 1, (1,), np.float32), "critic": spaces.Discrete(2)}
    )
    action_space = spaces.Discrete(2)

    def _look(self) -> Any:
        return {"policy": np.full(1, self.t / 10, np.float32), "critic": self.coin}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.coin = 0, int(self.np_random.integers(2))
        return self._look(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self._look(), 2.0 * self.coin - 1.0, self.t >= 10, False, {}


class HiddenFromAll(Hidden):
    """The same, without the critic's part."""

    observation_space = spaces.Dict({"policy": spaces.Box(-1, 1, (1,), np.float32)})

    def _look(self) -> Any:
        return {"policy": np.full(1, self.t / 10, np.float32)}


class Remember(gymnasium.Env):
    """The first observation says which action the last step wants; nothing else does."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    steps = 6

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.wanted = 0, int(self.np_random.integers(2))
        return np.array([2.0 * self.wanted - 1, 0.0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        over = self.t == self.steps
        reward = float(over and action == self.wanted)
        return np.array([0.0, self.t / self.steps], np.float32), reward, over, False, {}


class HiddenVelocity(gymnasium.Wrapper):
    """CartPole that shows positions only."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1", disable_env_checker=True))
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, **kwargs: Any) -> Any:
        obs, info = self.env.reset(**kwargs)
        return obs[[0, 2]], info

    def step(self, action: Any) -> Any:
        obs, *rest = self.env.step(action)
        return (obs[[0, 2]], *rest)


class Saving(Masked):
    """Saves its state: the step, and the mask; its generator is saved for it."""

    def get_state(self) -> dict[str, np.ndarray]:
        # names that the project has too
        return {"elapsed": np.asarray(self.t), "action_mask": self.mask.copy()}

    def set_state(self, arrays: dict[str, np.ndarray]) -> None:
        self.t, self.mask = int(arrays["elapsed"]), arrays["action_mask"].copy()

    def step(self, action: Any) -> Any:
        self.t += 1
        return self._look(), float(self.np_random.random()), self.t >= 7, False, {}
