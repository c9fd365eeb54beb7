"""Atari through ale-py's C++ vector environment: 84x84 grey frames, four stacked, frame skip 4.

`PongNoFrameskip-v4` is the classic id: no sticky actions. `ALE/Pong-v5` repeats the previous
action with probability 0.25 (Machado et al. 2018, arXiv 1709.06009). Rewards are raw: training
clips them to their sign. A lost life ends no episode.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

FRAMES = 4


def _camel(rom: str) -> str:
    return "".join(part.capitalize() for part in rom.split("_"))


@cache
def _roms() -> dict[str, str]:
    """Game name as in an id -> ROM name, for every ROM that ale-py carries."""
    return {_camel(rom): rom for rom in roms.get_all_rom_ids()}


def supported_ids() -> list[str]:
    return [id for game in _roms() for id in (f"{game}NoFrameskip-v4", f"ALE/{game}-v5")]


def rom_of(env: str) -> str | None:
    """The ROM that an id plays, or None where it is not an Atari id."""
    match = re.fullmatch(r"ALE/(\w+)-v5|(\w+)NoFrameskip-v4", env)
    return _roms().get(match[1] or match[2]) if match else None


class AtariEnvs(AtariVectorEnv):
    """`AtariVectorEnv` that takes a list of seeds and says how many frames it stacks."""

    frame_stack = FRAMES

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(
            seed=np.asarray(seed) if isinstance(seed, list) else seed, options=options
        )


def make(env: str, num_envs: int, colour: bool = False) -> AtariEnvs:
    """The environments of an id. `colour`: the whole screen in colour, for people to look at."""
    rom = rom_of(env)
    assert rom is not None, env
    screen = {"grayscale": False, "img_height": 210, "img_width": 160} if colour else {}
    return AtariEnvs(
        rom,
        num_envs,
        num_threads=1,  # a sampler is one process on one core
        stack_num=FRAMES,
        repeat_action_probability=0.25 if env.startswith("ALE/") else 0.0,
        full_action_space=False,
        reward_clipping=False,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        **screen,
    )
