"""What a run begins with or goes on from, at its start; and what to go on from, at its end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agent import PPOAgent
from common import checkpoint
from learning.trainers import Trainers
from learning.undo import State
from settings.config import Config

# what a checkpoint's state has, beside the agent's own
_SAVED = ("behaviour_version", "global_step", "best", "last_evaluation", "report")


def restored(config: Config, run_dir: Path, agent: PPOAgent) -> checkpoint.Checkpoint | None:
    """The newest good checkpoint of the run that is resumed, once the agent goes on from it.

    Returns:
        None where the run has not begun yet.

    Raises:
        BadCheckpoint: where there is none, or it does not fit the run.
        UnreadCheckpoint: where it cannot be read now.
    """
    if config.resume is None:
        return None
    checkpoints, metrics = run_dir / "checkpoints", run_dir / "metrics.jsonl"
    has_begun = metrics.exists() and metrics.stat().st_size > 0
    if checkpoint.newest(checkpoints) is None and not has_begun:
        print("train.py: the run was stopped before its first checkpoint: it begins now",
              file=sys.stderr)  # fmt: skip
        return None
    saved, complaints = checkpoint.load_newest(checkpoints)
    for complaint in complaints:
        print(f"train.py: {complaint}; using the one before it", file=sys.stderr)
    if all(name.startswith(checkpoint.MODEL) for name in saved.arrays):
        raise checkpoint.BadCheckpoint(
            f"{run_dir} holds a policy alone, without the state of its training: play it with"
            f" evaluate.py, or resume the run that it was exported from"
        )
    try:
        lacks = [name for name in _SAVED if name not in saved.state]
        if lacks:
            raise ValueError(f"it lacks {', '.join(lacks)}")
        agent.load_state(saved.arrays, saved.state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise checkpoint.BadCheckpoint(
            f"checkpoint {saved.path} does not fit the run that {run_dir / 'config.yaml'}"
            f" describes: {error}; put back the config.yaml that the run was started with"
        ) from None
    return saved


def restored_by_all(
    config: Config, run_dir: Path, agent: PPOAgent, trainers: Trainers
) -> checkpoint.Checkpoint | None:
    """The same for each of several trainers, for which the first one reads the checkpoint.

    A run that has not begun yet gets its initial weights.
    """
    saved: checkpoint.Checkpoint | None = None

    def read() -> State | None:
        nonlocal saved
        saved = restored(config, run_dir, agent)
        return saved and (saved.arrays, saved.state)

    state = trainers.from_first(read)
    if state is not None and saved is None:
        agent.load_state(*state)
        saved = checkpoint.Checkpoint(*state, run_dir)
    if state is None and config.initial_weights is not None:
        folder = Path(config.initial_weights)
        initial = trainers.from_first(lambda: (_initial(folder, config.env, agent), {}))
        if initial is not None:  # a trainer that joins has those of the run
            agent.model.set_weights(initial[0])
    return saved


def _initial(folder: Path, env: str, agent: PPOAgent) -> dict[str, np.ndarray]:
    """The newest good weights of another run.

    Raises:
        BadCheckpoint: where there are none, or they do not fit the agent's model.
    """
    saved, complaints = checkpoint.load_newest(folder / "checkpoints")
    for complaint in complaints:
        print(f"train.py: {complaint}; using the one before it", file=sys.stderr)
    arrays = checkpoint.part(saved.arrays, checkpoint.MODEL)
    own = agent.model.get_weights()
    for name, array in own.items():
        shape = arrays[name].shape if name in arrays else None
        if shape != array.shape:
            there = "not there" if shape is None else f"{list(shape)} there"
            raise checkpoint.BadCheckpoint(
                f"the weights in {saved.path} do not fit env {env}, its settings and this code:"
                f" {name} is {there} and {list(array.shape)} here; begin with those of a run whose"
                f" observations, actions and rewards are of the same kind, or leave initial_weights out"
            )
    return {name: arrays[name] for name in own}


def not_saved(run_dir: Path, failing: Mapping[str, str]) -> str:
    """What is to be known where a run ends, and not all of it could be saved.

    Args:
        failing: the causes, by what could not be written.
    """
    causes = "; ".join(f"{what}: {cause}" for what, cause in failing.items())
    try:
        newest = checkpoint.load_newest(run_dir / "checkpoints")[0].path.name
    except checkpoint.UnreadCheckpoint as error:
        way = str(error)
    except checkpoint.BadCheckpoint:
        way = "it left no checkpoint"
    else:
        way = f"make room and go on from {newest} by --resume {shlex.quote(str(run_dir))}"
    return f"the run's end could not be saved in {run_dir} ({causes}): {way}"
