"""The policy of a run: its settings and a checkpoint's weights."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import checkpoint
from envs import family
from model import ActorCritic, build_model
from settings.config import Config
from settings.sources import load_run
from settings.trust import refuse_strangers_code


class Policy(NamedTuple):
    """A model with the weights of a checkpoint.

    `saved`: the checkpoint. `complaints`: one sentence for each damaged checkpoint that was passed over.
    """

    model: ActorCritic
    config: Config
    saved: checkpoint.Checkpoint
    complaints: list[str]


def load_policy(
    run_dir: Path, which: str = "last", filmed: bool = False, trust: bool = False
) -> Policy:
    """The policy of a run's newest good checkpoint, or of its best evaluation.

    Args:
        which: last or best.
        filmed: prepare this process for filming the policy (see `envs.Family.prepare_film`).
        trust: import the modules that the settings of a run of somebody else name, `module:Class`.

    Raises:
        ConfigError: where the folder is not a run's, or names code that is not trusted.
        BadCheckpoint: where there is no such checkpoint, or it does not fit the run's settings.
        UnreadCheckpoint: where it cannot be read now.
        BadEnvironment: where the environment cannot be made, or filmed.
    """
    config = settings_of(run_dir, trust)
    if filmed:
        family(config.env).prepare_film(config.env)
    saved, complaints = chosen(run_dir, which)
    model = build_model(config)
    model.set_weights(weights_of(saved, model, run_dir))
    return Policy(model, config, saved, complaints)


def chosen(run_dir: Path, which: str) -> tuple[checkpoint.Checkpoint, list[str]]:
    """A run's newest good checkpoint, or that of its best evaluation, and the complaints about
    damaged ones that were passed over; see `load_policy`."""
    checkpoints = run_dir / "checkpoints"
    if which not in ("last", "best"):
        raise checkpoint.BadCheckpoint(f"checkpoint is {which}, but must be last or best")
    if which == "last":
        return checkpoint.load_newest(checkpoints)
    if checkpoint.exists(checkpoints / "best"):
        return checkpoint.load(checkpoints / "best"), []
    raise checkpoint.BadCheckpoint(
        f"run {run_dir} has no best checkpoint: its first evaluation writes one; leave"
        f" --checkpoint out for the newest weights"
    )


def settings_of(run_dir: Path, trust: bool) -> Config:
    """A run's settings, where the code that they name may be imported; see `load_policy`.

    Raises:
        ConfigError: where the folder is not a run's, or names code that is not trusted.
    """
    config = load_run(run_dir)
    config.trust = trust
    refuse_strangers_code(config, run_dir)
    return config


def weights_of(
    saved: checkpoint.Checkpoint, model: ActorCritic, run_dir: Path
) -> dict[str, np.ndarray]:
    """The model's parameters and buffers in a checkpoint of a run.

    Raises:
        BadCheckpoint: where they do not fit the model, which is made from the run's settings.
    """
    arrays = checkpoint.part(saved.arrays, checkpoint.MODEL)
    # older checkpoints have a shared trunk by both of its names
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = model.tensors().keys()
    if not names <= arrays.keys() or any(shapes.get(n) != a.shape for n, a in arrays.items()):
        raise checkpoint.BadCheckpoint(
            f"checkpoint {saved.path} does not fit the network that {run_dir / 'config.yaml'}"
            f" describes: put back the config.yaml that the run was started with"
        )
    return {name: arrays[name] for name in names}
