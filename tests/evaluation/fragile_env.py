"""An environment that dies, raises or hangs in the evaluation process, as files in a folder say."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.toy_envs import ConstantReward

FOLDER = "FRAGILE_FOLDER"


class Fragile(ConstantReward):
    """In the evaluation process, the nicest, a step is worth 2, and there is trouble in the fifth.

    A file whose name begins with kill is taken away, so that it works once.
    """

    def step(self, action: Any) -> Any:
        folder = Path(os.environ[FOLDER])
        # 10 are added to the niceness of whoever started the run, and 5 in a sampler
        nice = os.nice(0) > os.getpriority(os.PRIO_PROCESS, os.getppid()) + 5
        if self.t == 5 and nice:
            if (folder / "raise").exists():
                raise RuntimeError("it is fragile")
            if (folder / "hang").exists():
                time.sleep(600)
            for kill in folder.glob("kill*"):
                kill.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        if not nice and not (folder / "fast").exists():
            time.sleep(0.005)  # leave the processor to the evaluation
        obs, reward, *rest = super().step(action)
        return (obs, 2 * reward if nice else reward, *rest)

    def close(self) -> None:
        if getattr(self, "t", 0) == self.limit:
            (Path(os.environ[FOLDER]) / "played").touch()
