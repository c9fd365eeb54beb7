"""Film an episode: `python evaluate.py RUN_DIR --video FILE.mp4`."""

from __future__ import annotations

import contextlib
import ctypes.util
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from common.errors import UserError
from common.randomness import stream
from envs import BadEnvironment, family_of
from envs.classic import vectorize
from envs.custom import maker
from evaluation.play import play
from model import ActorCritic
from settings.config import Config

# Draws the environment as an image [height, width, 3] uint8, after a reset (None) or these actions
Draw = Callable[[np.ndarray | None], np.ndarray]


class BadVideo(UserError):
    """A video file that cannot be written. The message names it."""


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
        BadVideo: where the file cannot be written.
    """
    import imageio.v2 as imageio

    if path.suffix != ".mp4":
        raise BadVideo(f"video {path} must be an mp4: give a name that ends with .mp4")
    images = frames(model, config, seed, greedy)
    first = next(images)  # before there is a file: the environment may have no picture
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise BadVideo(f"video {path} cannot be written: {error.strerror}") from None
    fps = 15 if family_of(config.env) == "atari" else 30
    count = 0
    with imageio.get_writer(path, format="FFMPEG", fps=fps, macro_block_size=2) as video:  # pyright: ignore
        for image in itertools.chain([first], images):
            video.append_data(image)
            count += 1
    return count


def frames(model: ActorCritic, config: Config, seed: int, greedy: bool) -> Iterator[np.ndarray]:
    """The frames of one episode, the first from before the first step: [height, width, 3] uint8."""
    venv, draw = _drawn(config, seed)
    with contextlib.closing(venv):
        obs, _ = venv.reset(seed=[seed])  # pyright: ignore[reportArgumentType] - gymnasium takes lists
        yield draw(None)
        generator = stream("film", seed)
        for step in play(model, venv, obs, generator, greedy, config.test_max_steps):
            yield draw(step.action)


def _drawn(config: Config, seed: int) -> tuple[VectorEnv, Draw]:
    """One environment as the policy plays it, and how it is drawn."""
    family = family_of(config.env)
    if family == "atari":
        return _atari(config, seed)
    if family == "microrts":
        return _microrts(config)
    return _rendered(config)


def _rendered(config: Config) -> tuple[VectorEnv, Draw]:
    """An environment that draws itself, by gymnasium's `render`."""
    env = config.env
    options = config.env_options()
    memory = options.pop("memory", 0)
    try:
        make_one = maker(env, render_mode="rgb_array", **_camera(env))
        inner = vectorize(env, make_one, 1, **options)
    except UserError:
        raise
    except Exception as error:  # an environment may raise anything about an option it lacks
        raise _not_drawn(env, repr(error)) from None

    def draw(action: np.ndarray | None) -> np.ndarray:
        try:
            image: Any = inner.envs[0].render()
        except Exception as error:  # a renderer may raise anything
            raise _not_drawn(env, repr(error)) from None
        if not isinstance(image, np.ndarray):
            raise _not_drawn(env, f"its render() returns a {type(image).__name__}")
        return image

    if not memory:
        return inner, draw
    from envs.memory import Memory

    return Memory(inner, memory), draw


def _not_drawn(env: str, reason: str) -> BadEnvironment:
    return BadEnvironment(
        f"env {env} cannot be rendered as images, {reason}: leave --video out, or offer"
        f' render_mode "rgb_array" in the environment'
    )


def _camera(env: str) -> dict[str, str]:
    """The option that makes MuJoCo's camera follow the robot, where the model has such a camera."""
    if family_of(env) != "mujoco":
        return {}
    model: Any = maker(env)().unwrapped.model  # pyright: ignore[reportAttributeAccessIssue]
    names = [model.camera(i).name for i in range(model.ncam)]
    return {"camera_name": "track"} if "track" in names else {}


def _atari(config: Config, seed: int) -> tuple[VectorEnv, Draw]:
    """A second emulator, with the same seed and actions, shows in colour what the first plays."""
    from envs.atari import make

    shown = make(config.env, 1, colour=True)

    def draw(action: np.ndarray | None) -> np.ndarray:
        screen = shown.reset(seed=[seed])[0] if action is None else shown.step(action)[0]
        return screen[0, -1]

    return make(config.env, 1), draw


def _microrts(config: Config) -> tuple[VectorEnv, Draw]:
    """A game against the first of the run's opponents."""
    from envs.microrts.vector import make

    opponent = config.opponents[0].partition(":")[0]
    venv = make(config.env, 1, config.game((opponent,)))
    return venv, lambda action: venv.picture()
