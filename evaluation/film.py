"""Film an episode: `python evaluate.py RUN_DIR --video FILE.mp4`."""

from __future__ import annotations

import ctypes.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.randomness import stream
from envs import BadEnvironment, family_of
from envs.classic import plain_spaces
from envs.custom import maker
from model import ActorCritic
from settings.config import Config


def choose_renderer(env: str) -> None:
    """Choose MuJoCo's off-screen renderer; it must be done before mujoco is first imported.

    EGL where there is a graphics card, else OSMesa, which draws on the CPU.

    Raises:
        BadEnvironment: where the renderer's library is missing.
    """
    if family_of(env) != "mujoco" or "DISPLAY" in os.environ:
        return
    cards = [*Path("/dev").glob("nvidiactl"), *Path("/dev").glob("dri/renderD*")]
    renderer = os.environ.setdefault("MUJOCO_GL", "egl" if cards else "osmesa")
    library = {"egl": ("EGL", "libegl1"), "osmesa": ("OSMesa", "libosmesa6")}.get(renderer)
    if library and ctypes.util.find_library(library[0]) is None:
        raise BadEnvironment(
            f"MuJoCo's renderer {renderer} needs the system library {library[0]}: install it with"
            f" `apt-get install {library[1]}`"
        )


def film(model: ActorCritic, config: Config, path: Path, seed: int, greedy: bool) -> int:
    """Play one episode and write it as an mp4; return the number of frames.

    Raises:
        BadEnvironment: where the environment cannot be rendered.
    """
    import imageio.v2 as imageio

    family = family_of(config.env)
    frames = {"atari": _play_atari, "microrts": _play_microrts}.get(family, _play)
    atari = family == "atari"
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with imageio.get_writer(
        path, format="FFMPEG", fps=15 if atari else 30, macro_block_size=2
    ) as out:  # pyright: ignore
        for frame in frames(model, config, seed, greedy):
            out.append_data(frame)
            count += 1
    return count


def _play(model: ActorCritic, config: Config, seed: int, greedy: bool) -> Iterator[np.ndarray]:
    try:
        options = {"render_mode": "rgb_array", **_camera(config.env)}
        env = plain_spaces(config.env, maker(config.env, **options)())
        obs, _ = env.reset(seed=seed)
        first = env.render()
    except Exception as error:  # whatever a renderer raises, the user needs to know one thing
        raise BadEnvironment(f"env {config.env} cannot be rendered as images: {error!r}") from None
    if not isinstance(first, np.ndarray):
        raise BadEnvironment(f"env {config.env} renders {type(first).__name__}, not an image")
    yield first
    generator = stream("film", seed)
    for _ in range(config.test_max_steps):
        action = _act(model, np.asarray(obs)[None], generator, greedy)[0]
        obs, _, terminated, truncated, _ = env.step(action if action.shape else int(action))
        yield np.asarray(env.render())
        if terminated or truncated:
            break
    env.close()


def _camera(env: str) -> dict[str, str]:
    """The option that makes MuJoCo's camera follow the robot, where the model has such a camera."""
    if family_of(env) != "mujoco":
        return {}
    model: Any = maker(env)().unwrapped.model  # pyright: ignore[reportAttributeAccessIssue]
    names = [model.camera(i).name for i in range(model.ncam)]
    return {"camera_name": "track"} if "track" in names else {}


def _play_atari(
    model: ActorCritic, config: Config, seed: int, greedy: bool
) -> Iterator[np.ndarray]:
    """Two emulators with one seed and the same actions: one for the policy's eyes, one in colour."""
    from envs.atari import make

    seen, shown = make(config.env, 1), make(config.env, 1, colour=True)
    obs, _ = seen.reset(seed=[seed])
    picture, _ = shown.reset(seed=[seed])
    yield picture[0, -1]
    generator = stream("film", seed)
    for _ in range(config.test_max_steps):
        action = _act(model, obs, generator, greedy)
        obs, _, terminated, truncated, _ = seen.step(action)
        yield shown.step(action)[0][0, -1]
        if terminated[0] or truncated[0]:
            break
    seen.close()
    shown.close()


def _play_microrts(
    model: ActorCritic, config: Config, seed: int, greedy: bool
) -> Iterator[np.ndarray]:
    """A game against the first of the run's opponents."""
    from envs.microrts.vector import make

    opponent = config.opponents[0].partition(":")[0]
    venv = make(config.env, 1, config.game((opponent,)))
    obs, _ = venv.reset(seed=[seed])
    yield venv.picture()
    generator = stream("film", seed)
    for _ in range(config.test_max_steps):
        action = _act(model, obs, generator, greedy, venv.action_mask)
        obs, _, terminated, truncated, _ = venv.step(action)
        yield venv.picture()
        if terminated[0] or truncated[0]:
            break
    venv.close()


def _act(
    model: ActorCritic,
    obs: np.ndarray,
    generator: np.random.Generator,
    greedy: bool,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    from evaluate import as_stored, draw_noise

    noise = draw_noise(model.distribution, generator, len(obs), greedy)
    return model.distribution.to_env(model.act(as_stored(obs), noise, mask).action)
