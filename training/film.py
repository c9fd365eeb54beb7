"""The film that `--film` makes at a run's end: of the best policy, by a process of its own."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

from common import checkpoint
from common.files import remove_unfinished
from common.sources import ROOT

LONGEST_S = 120.0  # an episode may have many steps, and a picture of each
_MOST_FRAMES = 100  # of a moving image, which shows the whole film in
_SHOWN_S = 10.0  # at most
_WIDTH = 320  # pixels at most


class NoFilm(Exception):
    """The film could not be made. Says why."""


def film_best(run_dir: Path) -> Path:
    """Film an episode of a run's best policy, or of its newest one where none was evaluated.

    `evaluate.py` does it in a process of its own: it has to prepare for drawing before it imports
    MuJoCo, and what draws may end its process.

    Raises:
        NoFilm: where there is none.
    """
    path = run_dir / "best.mp4"
    which = "best" if checkpoint.exists(run_dir / "checkpoints" / "best") else "last"
    # --trust: this run has imported what its settings name
    command = [
        sys.executable, str(ROOT / "evaluate.py"), str(run_dir), "--checkpoint", which,
        "--episodes", "0", "--video", str(path), "--trust",
    ]  # fmt: skip
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            process_group=0,  # a Ctrl-C is the learner's to handle
        )  # fmt: skip
    except OSError as error:  # such as no memory
        raise NoFilm(str(error)) from None
    with child:  # which closes its pipe
        try:
            _, errors = child.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            raise NoFilm(f"it was not there after {LONGEST_S:g} s") from None
        finally:
            child.kill()
            child.wait()
            remove_unfinished(path, child.pid)  # it was killed, by this function or by what draws
    if child.returncode != 0:
        said = errors.decode(errors="replace").strip()
        reason = said.rpartition("\n")[2].removeprefix("evaluate.py: ")
        raise NoFilm(reason or f"evaluate.py was ended with code {child.returncode}")
    return path


def as_gif(film: Path) -> bytes:
    """A film as a small moving image, for pages that show images only.

    A process of its own makes it: imageio forks one that reads the film, and understands what that says
    only if nobody else writes there, as grpc does in processes forked from a client of PARL.

    Raises:
        NoFilm: where the film cannot be read.
    """
    code = "import sys; from training.film import write_gif; write_gif(sys.argv[1])"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, str(film)], stdin=subprocess.DEVNULL,
            capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, process_group=0,
            timeout=LONGEST_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoFilm(f"{film} was not read after {LONGEST_S:g} s") from None
    except OSError as error:
        raise NoFilm(str(error)) from None
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise NoFilm(f"{film} cannot be read: {reason}")
    return done.stdout


def write_gif(film: str) -> None:
    """In that process: write the moving image to the output."""
    import imageio.v3 as imageio

    about = imageio.immeta(film)
    every = max(1, math.ceil(about["duration"] * about["fps"] / _MOST_FRAMES))
    smaller = math.ceil(about["size"][0] / _WIDTH)
    # frame by frame: a long film does not fit into memory
    shown = [
        frame[::smaller, ::smaller]
        for frame in itertools.islice(imageio.imiter(film), 0, None, every)
    ]
    milliseconds = 1000 * min(about["duration"], _SHOWN_S) / len(shown)
    gif = imageio.imwrite("<bytes>", shown, extension=".gif", duration=milliseconds, loop=0)
    sys.stdout.buffer.write(gif)
