"""The process that talks to Weights & Biases.

Consumes the settings of a run, then its metrics and its film, as JSON over its connection; answers the
first message and the last one, and says so where wandb raises an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cluster.child import parent


def serve() -> None:
    """Track a run until the learner has finished, or closes the connection."""
    connection, _ = parent()
    with contextlib.suppress(EOFError, ConnectionError):  # the learner closed it, or ended
        begin = json.loads(connection.recv_bytes())
        _say_nothing(Path(begin["folder"]) / "wandb" / "output.log")
        try:
            _track(connection, begin)
        except Exception as error:  # a package of others' may raise anything
            words = f"{type(error).__name__}: {error}".split()
            _answer(connection, {"error": " ".join(words)})


def _say_nothing(log: Path) -> None:
    """Let what wandb prints go into a file: the terminal is the run's."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _track(connection: Connection, begin: dict[str, Any]) -> None:
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", begin["project"]),
        name=begin["name"],
        dir=begin["folder"],
        id=begin["id"],
        resume="allow",
        config=begin["settings"],
        settings=wandb.Settings(console="off", disable_git=True, save_code=False),
    )
    run.define_metric("*", step_metric="global_step")
    offline = f"wandb sync {shlex.quote(str(Path(run.dir).parent))}"
    _answer(connection, {"page": offline if run.offline else run.url or ""})
    while True:
        message = json.loads(connection.recv_bytes())
        if "finish" in message:
            break
        if "film" in message:
            film = wandb.Video(message.pop("film"), format="mp4")
            message["scalars"] = {"eval/film": film, "global_step": message["global_step"]}
        run.log(message["scalars"])
    run.finish()
    wandb.teardown()  # which ends its own processes
    _answer(connection, {"finished": True})


def _answer(connection: Connection, answer: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(answer).encode())
