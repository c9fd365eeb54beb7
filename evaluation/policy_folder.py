"""Write a policy without the run around it: `python evaluate.py RUN_DIR --export FOLDER`.

The folder is a run's, with all that evaluating needs and nothing else: config.yaml and one checkpoint
that holds the model's arrays alone. `evaluate.py FOLDER` plays, films and exports it as any run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path

import yaml

from common import checkpoint
from evaluation.export import BadExport
from settings import owners
from settings.sources import load_run

# where a run's samplers, keys and files were, and how its learner computed
_LEFT_OUT = {"initial_weights"} | {
    field.name
    for owner in (owners.Cluster, owners.Store, owners.Machine, owners.Files)
    for field in dataclasses.fields(owner)
}


def export_folder(run_dir: Path, saved: checkpoint.Checkpoint, folder: Path) -> None:
    """Write the policy of a run's checkpoint into a new folder.

    Raises:
        BadExport: where the folder exists with something in it, or cannot be written.
        ConfigError: where the run cannot be read.
    """
    arrays = {
        name: array for name, array in saved.arrays.items() if name.startswith(checkpoint.MODEL)
    }
    run = load_run(run_dir).to_dict()
    content = yaml.safe_load((run_dir / "config.yaml").read_text())
    about = {name: content[name] for name in ("versions", "project") if name in content}
    kept = {name: value for name, value in run.items() if name not in _LEFT_OUT}
    checkpoints, settings = folder / "checkpoints", folder / "config.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise BadExport(
                f"export {folder} is a folder that holds something: name a new one, or empty it"
            )
        with contextlib.ExitStack() as undone:  # also by a signal that ends this process
            undone.callback(shutil.rmtree, checkpoints, ignore_errors=True)
            undone.callback(settings.unlink, missing_ok=True)
            state = {"update": saved.update, "global_step": saved.step}
            checkpoint.write(checkpoints / f"update-{saved.update:08d}", arrays, state)
            settings.write_text(yaml.safe_dump({"config": kept} | about, sort_keys=False))
            undone.pop_all()
    except OSError as error:
        raise BadExport(f"export {folder} cannot be written: {error.strerror}") from None
