"""CartPole that can be made to fail: by a file in a folder, once, or by chance.

`FAULTS_FOLDER` names the folder. The first environment that finds a file named after a fault there
takes it away and fails so; the file `chance` holds a fault and its probability at each step. The
file `counted` grows by a byte for each failure, so it counts those that no process survives.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

LONG_S = 3600.0


def _raise() -> None:
    raise RuntimeError("it is faulty")


def _hold_the_gil() -> None:
    ctypes.PyDLL(None).sleep(70)  # unlike CDLL it does not give the lock up meanwhile


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1.0)  # another thread may be the one that receives the signal, a little later


FAULTS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "segfault": lambda: ctypes.string_at(0),
    "stop": _stop,
    "sleep": lambda: time.sleep(LONG_S),
    "gil": _hold_the_gil,
    "raise": _raise,
    "sigterm": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "nan": lambda: None,
    "helper": lambda: subprocess.Popen(["sleep", "600"]),  # no fault, but a process to be ended
}


class Faulty(CartPoleEnv):
    """See the module. An episode has 200 steps at most."""

    def __init__(self, render_mode: str | None = None):
        super().__init__(render_mode=render_mode)
        self._folder = Path(os.environ["FAULTS_FOLDER"])
        self._generator = np.random.default_rng()
        chance = self._folder / "chance"
        self._by_chance, self._probability = "", 0.0
        if chance.exists():
            self._by_chance, probability = chance.read_text().split()
            self._probability = float(probability)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        fault = self._due()
        if fault is not None:
            with open(self._folder / "counted", "ab", buffering=0) as counted:
                counted.write(b".")
            FAULTS[fault]()
            if fault == "nan":
                obs = np.full_like(obs, np.nan)
        return obs, reward, terminated, truncated, info

    def _due(self) -> str | None:
        if self._probability:
            return self._by_chance if self._generator.random() < self._probability else None
        for name in os.listdir(self._folder):
            if name in FAULTS:
                try:
                    os.unlink(self._folder / name)
                except FileNotFoundError:  # another one was faster
                    continue
                return name
        return None


class Limited(gymnasium.wrappers.TimeLimit):
    """CartPole-v1 with faults, as `module:Class`."""

    def __init__(self, render_mode: str | None = None):
        super().__init__(Faulty(render_mode), 500)
