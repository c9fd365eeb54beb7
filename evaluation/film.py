"""Film an episode: `python evaluate.py RUN_DIR --video FILE.mp4`."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import replacing
from common.randomness import stream
from envs import make_vec_env
from envs.convention import Environments
from envs.scalar import not_drawn
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
    path = Path(os.path.expanduser(path)).absolute()  # as its writer and its reader take it
    if path.suffix != ".mp4":
        raise BadVideo(f"video {path} must be an mp4: give a name that ends with .mp4")
    if os.path.isdir(path):
        raise BadVideo(f"video {path} is a folder: give another name")
    with _filmed(config) as venv:
        images = _episode(model, venv, config, seed, greedy)
        first = next(images)  # before there is a file: the environment may have no picture
        first, fps = _like(config.env, first, first), venv.frames_per_second
        images = itertools.chain([first], map(partial(_like, config.env, first), images))
        with replacing(path, partial(_cannot_write, path)) as part:
            return _encode(path, part, images, fps)


def _encode(path: Path, part: Path, images: Iterable[np.ndarray], fps: float) -> int:
    """Write images as an mp4; return their number.

    Args:
        path: of the film, for messages.
        part: the file to write.

    Raises:
        BadVideo: where it cannot be written to its end.
    """
    import imageio.v2 as imageio

    count = 0
    video = imageio.get_writer(part, format="FFMPEG", fps=fps, macro_block_size=2)  # pyright: ignore
    try:
        for image in images:
            with _encoding(path):
                video.append_data(image)
            count += 1
    finally:
        with _encoding(path):
            video.close()
    if _frames_in(part) < count:
        raise _unfinished(path)
    return count


def _cannot_write(path: Path, error: OSError) -> BadVideo:
    return BadVideo(f"video {path} cannot be written: {error.strerror}")


def _like(env: str, first: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A picture as a film takes it: [height, width, 3] uint8 of the first one's even sides.

    Raises:
        BadEnvironment: for a picture of another kind.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise not_drawn(env, f"its render() returns {image.dtype} {image.shape}, not [height, width,"
                             f" 3] of uint8")  # fmt: skip
    height, width = (side // 2 * 2 for side in image.shape[:2])
    if (height, width) != tuple(side // 2 * 2 for side in first.shape[:2]):
        raise not_drawn(env, f"its render() returns {image.shape} after {first.shape}")
    return image[:height, :width]


def _unfinished(path: Path) -> BadVideo:
    return BadVideo(f"video {path} could not be written to its end: is the disk full?")


@contextlib.contextmanager
def _encoding(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # the encoder has ended
        raise _unfinished(path) from error


def _frames_in(path: Path) -> int:
    """How many frames a film has; 0 where it cannot be read, as its encoder did not end it."""
    from imageio_ffmpeg import count_frames_and_secs

    try:
        return count_frames_and_secs(path)[0] or 0
    except RuntimeError:
        return 0


def frames(model: ActorCritic, config: Config, seed: int, greedy: bool) -> Iterator[np.ndarray]:
    """The frames of one episode, the first from before the first step: [height, width, 3] uint8."""
    with _filmed(config) as venv:
        yield from _episode(model, venv, config, seed, greedy)


def _filmed(config: Config) -> contextlib.closing[Environments]:
    """One environment that can be filmed."""
    # pygame is to draw, and to look for no screen
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    venv = make_vec_env(config.env, 1, filmed=True, **config.evaluation_options(range(1)))
    return contextlib.closing(venv)


def _episode(
    model: ActorCritic, venv: Environments, config: Config, seed: int, greedy: bool
) -> Iterator[np.ndarray]:
    generator = stream("film", seed)
    obs, _ = venv.reset(seed=[int(generator.integers(2**31 - 1))])
    yield venv.picture()
    for _ in play(model, venv, obs, generator, greedy, config.test_max_steps):
        yield venv.picture()
