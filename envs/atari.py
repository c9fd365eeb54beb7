"""Atari through ale-py's C++ vector environment: 84x84 grey frames, four stacked, frame skip 4.

`PongNoFrameskip-v4` is the classic id: no sticky actions. `ALE/Pong-v5` repeats the previous
action with probability 0.25 (Machado et al. 2018, arXiv 1709.06009). Both begin an episode with FIRE where
the game has it and then noops, up to 30 frames in all, and take the maximum of two frames, which gymnasium's
environment of the second id does not. Rewards are raw: training clips them to their sign.

ale-py's vector environment offers no way to save its state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import numpy as np
from ale_py import Action, roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from common.values import Needs
from envs.convention import Environments, Family

FRAMES = 4
_SKIP = 4  # frames of the emulator in a step
_MOST_FRAMES = 108_000  # of an episode: 30 minutes of play
_COLOUR = {"grayscale": False, "img_height": 210, "img_width": 160}


@dataclass
class AtariOptions:
    """Settings of Atari."""

    episodic_life: Annotated[bool, Needs(family="atari")] = False
    """Atari: a lost life ends the episode for the learner, though the game goes on (Mnih et al.
    2015). Logged returns, and evaluation, are of full games."""


class Atari(Family):
    def owns(self, env: str) -> bool:
        return rom_of(env) is not None

    def ids(self) -> Iterable[str]:
        return [id for game in _roms() for id in (f"{game}NoFrameskip-v4", f"ALE/{game}-v5")]

    def make(
        self, env: str, num_envs: int, *, filmed: bool = False, episodic_life: bool = False,
        **options: Any,
    ) -> Environments:  # fmt: skip
        if filmed:
            return FilmedAtariEnvs(env, num_envs)
        return (EpisodicLifeEnvs if episodic_life else AtariEnvs)(env, num_envs)

    def options(self, config: AtariOptions, envs: range | None) -> dict[str, Any]:
        return {"episodic_life": config.episodic_life}

    def evaluation_options(
        self, config: Any, episodes: range, opponents: tuple[str, ...]
    ) -> dict[str, Any]:
        return {}  # full games


def _camel(rom: str) -> str:
    return "".join(part.capitalize() for part in rom.split("_"))


@cache
def _roms() -> dict[str, str]:
    """Game name as in an id -> ROM name, for every ROM that ale-py carries."""
    return {_camel(rom): rom for rom in roms.get_all_rom_ids()}


def rom_of(env: str) -> str | None:
    """The ROM that an id plays, or None where it is not an Atari id."""
    match = re.fullmatch(r"ALE/(\w+)-v5|(\w+)NoFrameskip-v4", env)
    return _roms().get(match[1] or match[2]) if match else None


class AtariEnvs(Environments, AtariVectorEnv):
    """ale-py's vector environment, under the ids' settings.

    Args:
        screen: the size and the colours of the frames, where they are not for a policy.
    """

    frame_stack = FRAMES
    episode_limit = _MOST_FRAMES // _SKIP

    def __init__(self, env: str, num_envs: int, **screen: Any):
        rom = rom_of(env)
        assert rom is not None, env
        AtariVectorEnv.__init__(
            self,
            rom,
            num_envs,
            num_threads=1,  # a sampler is one process on one core
            max_num_frames_per_episode=_MOST_FRAMES,
            frameskip=_SKIP,
            stack_num=FRAMES,
            repeat_action_probability=0.25 if env.startswith("ALE/") else 0.0,
            full_action_space=False,
            reward_clipping=False,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            **screen,
        )
        self.metadata = self.metadata | {"render_fps": 60 // _SKIP}

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        seeds: Any = np.asarray(seed) if isinstance(seed, list) else seed  # ale-py takes no lists
        return super().reset(seed=seeds, options=options)


class EpisodicLifeEnvs(AtariEnvs):
    """A lost life ends an episode, though not the game.

    Such an end is a termination, and the row after it looks like a reset: its action is ignored,
    and the frames before it leave the stack. In fact the game goes on by a step of FIRE, or of NOOP
    where there is no FIRE, as it does under Baselines' `EpisodicLifeEnv` and `FireResetEnv`. The
    reward of that step is told, so that a game's return can be counted. ale-py's own option
    `episodic_life` begins a new game instead, which shows nothing but first lives.
    """

    has_extras = True

    def __init__(self, env: str, num_envs: int):
        super().__init__(env, num_envs)
        actions = self.ale.get_action_set()
        self._start = actions.index(Action.FIRE) if Action.FIRE in actions else 0
        self._lives = np.zeros(num_envs, np.int64)
        self._lost = np.zeros(num_envs, bool)  # a life was lost with the last step
        self._frames = np.full(num_envs, FRAMES)  # in the stack since the last lost life, at most 4

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        obs, infos = super().reset(seed=seed, options=options)
        self._lives = infos["lives"].astype(np.int64)
        self._lost[:] = False
        self._frames[:] = FRAMES
        return obs, infos

    def step(self, actions: np.ndarray) -> Any:
        starting = self._lost
        actions = np.where(starting, self._start, actions)
        obs, reward, terminated, truncated, infos = super().step(actions)
        lives = infos["lives"].astype(np.int64)
        over = terminated | truncated
        self._lost = (lives < self._lives) & (lives > 0) & ~over & ~starting
        self._lives = lives
        self._frames = np.where(starting, 1, np.minimum(self._frames + 1, FRAMES))
        for env in np.flatnonzero(self._frames < FRAMES).tolist():
            obs[env, : -self._frames[env]] = 0
        return obs, reward, terminated | self._lost, truncated, infos

    def extras(self, env: int) -> dict[str, float] | None:
        return None if self._lost[env] else {}


class FilmedAtariEnvs(AtariEnvs):
    """Emulators for the policy's eyes, and one in colour that plays the same as the first."""

    def __init__(self, env: str, num_envs: int):
        super().__init__(env, num_envs)
        self._shown = AtariEnvs(env, 1, **_COLOUR)
        self._screen = np.zeros(0)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        seed = seed if isinstance(seed, list) else list(range(self.num_envs))
        self._screen = self._shown.reset(seed=seed[:1])[0][0, -1]
        return super().reset(seed=seed, options=options)

    def step(self, actions: np.ndarray) -> Any:
        self._screen = self._shown.step(actions[:1])[0][0, -1]
        return super().step(actions)

    def picture(self) -> np.ndarray:
        return self._screen

    def close(self, **kwargs: Any) -> None:
        self._shown.close()
        super().close(**kwargs)


FAMILY = Atari()
