"""Score each version of a policy as it appears: `python evaluate.py RUN_DIR --follow`.

Where versions come from is a `Source`. The scores of a run's versions are lines of `followed.jsonl` in
its folder. They are not in metrics.jsonl, because that file has one writer, the learner, and a follower
may be on another machine, where appending to a shared file is not atomic.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from common import checkpoint
from common.checkpoint import BadCheckpoint, UnreadCheckpoint
from common.files import CannotWrite
from evaluation.load import weights_of
from evaluation.process import Evaluation
from evaluation.score import score
from model import ActorCritic
from rollout import Weights
from settings.config import Config

Line = dict[str, Any]
"""A line of followed.jsonl: values that JSON can hold."""

_LOOKS_EVERY_S = 1.0  # network file systems do not say that a file has changed


class Source(Protocol):
    """Where the versions of a policy come from."""

    def newer(self) -> tuple[Weights, int] | None:
        """The newest weights and the environment steps that they were trained for.

        None where they have been given already. Never waits.
        """
        ...

    def has_ended(self) -> bool:
        """Whether no newer weights will come than those that `newer` gives from now on."""
        ...


class Checkpoints:
    """The checkpoints of a run's folder, as a `Source`. The folder may be written meanwhile.

    Args:
        run_dir: the run's folder.
        model: the run's.
        say: is told of a newest checkpoint that is damaged; the next one is waited for.
    """

    def __init__(self, run_dir: Path, model: ActorCritic, say: Callable[[str], None]):
        self._run_dir, self._model, self._say = run_dir, model, say
        self._checkpoints = run_dir / "checkpoints"
        self._seen: Any = None  # the files of the newest checkpoint that was looked at
        # update and step of the newest that was given: a run that is filmed saves its last one twice
        self._given = (-1, -1)
        self._unread = ""  # why the newest cannot be read now
        self._is_policy = False  # a folder without a run's state, which is not trained on

    def newer(self) -> tuple[Weights, int] | None:
        said, self._unread = self._unread, ""
        try:
            return self._look()
        except UnreadCheckpoint as error:  # the same files may be read at the next look
            self._seen, self._unread = None, str(error)
            if self._unread != said:
                self._say(self._unread)
            return None

    def _look(self) -> tuple[Weights, int] | None:
        folder = checkpoint.newest(self._checkpoints)
        if folder is None or (files := _files(folder)) == self._seen:
            return None
        self._seen = files
        try:
            saved = checkpoint.load(folder)
            self._is_policy = all(name.startswith(checkpoint.MODEL) for name in saved.arrays)
            arrays = weights_of(saved, self._model, self._run_dir)
            before, self._given = self._given, (saved.update, saved.step)
            return None if before == self._given else (Weights(saved.update, arrays), saved.step)
        except BadCheckpoint as error:
            if checkpoint.newest(self._checkpoints) == folder:  # else newer ones took its place
                self._say(f"{error}; waiting for the next one")
            return None

    def has_ended(self) -> bool:
        return not self._unread and (self._is_policy or (self._run_dir / "summary.json").exists())


def _files(folder: Path) -> tuple[Path, list[tuple[str, int, int]]]:
    """A checkpoint's place and its files, each with its size and its time."""
    try:
        files = [(entry.name, entry.stat()) for entry in os.scandir(folder)]
    except OSError:  # it is being replaced, or is no folder
        return folder, []
    return folder, sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)


def follow(
    source: Source, model: ActorCritic, config: Config, episodes: int, seed: int, greedy: bool
) -> Iterator[Evaluation]:
    """Score the newest version until there will be no newer one.

    Versions that appear while one is scored are passed over, but for the newest.

    Args:
        model: the run's; it is given each version's weights.
        episodes, seed, greedy: as for `score`.
    """
    while True:
        has_ended = source.has_ended()  # asked first: a run saves its last version before it ends
        version = source.newer()
        if version is not None:
            weights, step = version
            model.set_weights(weights.arrays)
            yield Evaluation(score(model, config, episodes, seed, greedy), weights, step)
        elif has_ended:
            return
        else:
            time.sleep(_LOOKS_EVERY_S)


def line_of(evaluation: Evaluation, seed: int, greedy: bool) -> Line:
    """The scores of a version, as followed.jsonl has them."""
    scores = evaluation.scores
    metrics = {
        "return_mean": scores.mean(),
        "return_std": scores.std(),
        "length_mean": sum(scores.lengths) / len(scores.lengths),
        **scores.means(),
    }
    line: Line = {
        "update": evaluation.weights.version,
        "global_step": evaluation.step,
        "seed": seed,
        "stochastic": not greedy,
        "followed/episodes": len(scores.returns),
    }
    for name, value in metrics.items():  # JSON has no NaN
        line[f"followed/{name}"] = value if math.isfinite(value) else None
    return line


def read_line(text: bytes) -> Line:
    """A line of followed.jsonl that came from elsewhere.

    Raises:
        ValueError: where it is none.
    """
    try:
        line = json.loads(text)
    except RecursionError:
        raise ValueError("it is too deep") from None
    if not isinstance(line, dict):
        raise ValueError("it is no JSON object")
    for name, value in line.items():
        if not isinstance(value, int | float | None):
            raise ValueError(f"its {name!r} is no number")
    if not isinstance(line.get("global_step"), int):
        raise ValueError("it has no global_step")
    return line


def record(run_dir: Path, line: Line) -> None:
    """Append the scores of a version to the run's followed.jsonl, by one write of one line.

    Raises:
        CannotWrite: for a full disk, a folder that may only be read, and the like.
    """
    path = run_dir / "followed.jsonl"
    try:
        with open(path, "a+b") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            # the disk may have been full in the midst of the last line
            begin = b"" if file.read() in (b"", b"\n") else b"\n"
            file.write(begin + json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise CannotWrite(
            f"{path} cannot be written: {error.strerror}; the scores at {line['global_step']:,} steps are"
            f" not in it. Make room, or make the folder writable",
            error,
        ) from None
