"""Weights & Biases, in a process of its own (`wandb_process`).

There its threads, its hooks and what it prints reach neither the learner nor the terminal, and the
learner never waits for a network. Where the process is lost, the run goes on without it.
"""

from __future__ import annotations

import json
import select
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.child import Child, ChildEnded
from common.errors import UserError
from training.trackers.tracker import Settings, TrackerEnded

_PROJECT = "dppo"
START_S = 90.0  # to log in, over a network
FINISH_S = 5.0  # a run that is asked to end has ten seconds for everything


class Wandb:
    """A run at Weights & Biases, or in files for it where WANDB_MODE is offline.

    Args:
        run_dir: the run's folder, which has wandb's files. A resumed run goes on in its own run there.
        settings: the run's.

    Raises:
        UserError: where wandb does not begin.
    """

    name = "wandb"

    def __init__(self, run_dir: Path, settings: Settings):
        self._folder = run_dir.resolve() / "wandb"
        self._folder.mkdir(exist_ok=True)
        self._child = Child("training.trackers.wandb_process")
        begin = {
            "project": _PROJECT,
            "name": run_dir.name,
            "folder": str(run_dir.resolve()),
            "id": _earlier_id(self._folder),
            "settings": dict(settings),
        }
        try:
            self._child.send(json.dumps(begin).encode())
            answer = json.loads(self._child.receive(START_S))
        except (ChildEnded, TimeoutError) as error:
            answer = {"error": str(error)}
        if "error" in answer:
            self._child.kill()
            raise UserError(
                f"track is wandb, but wandb does not begin: {answer['error']}; run `wandb login` once,"
                f" set WANDB_MODE=offline, or give another --track"
            )
        self.page = answer["page"]

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._send({"scalars": {**values, "global_step": step}})

    def film(self, path: Path, step: int) -> None:
        self._send({"film": str(path.resolve()), "global_step": step})

    def reopen(self) -> None:
        raise self._ended("its files were removed with the run's folder")

    def close(self) -> None:
        try:
            self._send({"finish": True})
            self._child.receive(FINISH_S)
        except (ChildEnded, TimeoutError) as error:
            raise self._ended(str(error)) from None
        finally:
            self._child.kill()

    def _send(self, message: dict[str, Any]) -> None:
        """Send a message without waiting.

        Raises:
            TrackerEnded: where the process has ended, or takes no more.
        """
        try:
            if self._child.poll():
                raise self._ended(json.loads(self._child.receive())["error"])
            if not select.select([], [self._child], [], 0)[1]:
                raise self._ended("its process hangs")
            self._child.send(json.dumps(message).encode())
        except ChildEnded as error:
            raise self._ended(str(error)) from None

    def _ended(self, why: str) -> TrackerEnded:
        self._child.kill()
        latest = shlex.quote(f"{self._folder}/latest-run")
        return TrackerEnded(f"{why}; `wandb sync {latest}` uploads what it has in its files")


def _earlier_id(folder: Path) -> str | None:
    """The id that wandb knows an earlier part of the run by: it names its folders by their ids."""
    latest = folder / "latest-run"
    return latest.readlink().name.rpartition("-")[2] if latest.is_symlink() else None
