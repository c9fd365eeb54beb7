"""Film an episode: `python evaluate.py RUN_DIR --video FILE.mp4`."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.randomness import stream
from envs import family, make_vec_env
from evaluation.play import play
from model import ActorCritic
from settings.config import Config


class BadVideo(UserError):
    """A video file that cannot be written. The message names it."""


def film(model: ActorCritic, config: Config, path: Path, seed: int, greedy: bool) -> int:
    """Play one episode and write it as an mp4; return the number of frames.

    Raises:
        BadEnvironment: where the environment cannot be rendered.
        BadVideo: where the file cannot be written.
    """
    import imageio.v2 as imageio

    if path.suffix != ".mp4":
        raise BadVideo(f"video {path} must be an mp4: give a name that ends with .mp4")
    if path.is_dir():
        raise BadVideo(f"video {path} is a folder: give another name")
    images = frames(model, config, seed, greedy)
    first = next(images)  # before there is a file: the environment may have no picture
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise BadVideo(f"video {path} cannot be written: {error.strerror}") from None
    fps = family(config.env).frames_per_second
    count = 0
    try:
        with imageio.get_writer(path, format="FFMPEG", fps=fps, macro_block_size=2) as video:  # pyright: ignore
            for image in itertools.chain([first], images):
                video.append_data(image)
                count += 1
    except OSError as error:  # its encoder has ended
        raise BadVideo(
            f"video {path} could not be written to its end: is the disk full?"
        ) from error
    return count


def frames(model: ActorCritic, config: Config, seed: int, greedy: bool) -> Iterator[np.ndarray]:
    """The frames of one episode, the first from before the first step: [height, width, 3] uint8."""
    os.environ.setdefault(
        "SDL_VIDEODRIVER", "dummy"
    )  # pygame is to draw, and to look for no screen
    venv = make_vec_env(config.env, 1, filmed=True, **config.evaluation_options(range(1)))
    with contextlib.closing(venv):
        generator = stream("film", seed)
        obs, _ = venv.reset(seed=[int(generator.integers(2**31 - 1))])
        yield venv.picture()
        for _ in play(model, venv, obs, generator, greedy, config.test_max_steps):
            yield venv.picture()
