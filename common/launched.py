"""What a launcher, `--trainers` or torchrun, has told this process of its place among the trainers.

Both do it by environment variables, and these have torchrun's names.
"""

from __future__ import annotations

import os
import signal
import threading
import time

# the variables that torchrun does not have
_STORE = "DPPO_TRAINERS_STORE"
_LAUNCHER = "DPPO_TRAINERS_LAUNCHER"
_MEMORY = "DPPO_TRAINERS_MEMORY"
_RUN_ID, _STORE_URL, _START = "DPPO_STORE_RUN", "DPPO_STORE_URL", "DPPO_STORE_START"
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
_PARENT = os.getppid()  # as early as possible: torchrun's agent does not say its own number
_LOOKS_EVERY_S = 1.0


def variables(
    rank: int, trainers: int, store: str, memory: int | None = None, restarts: int = 0
) -> dict[str, str]:
    """Those that `--trainers` gives to one of the trainers, which are all on this machine.

    Args:
        store: a file, in which they find one another.
        memory: descriptor of a block of memory, where they have the model in common.
        restarts: how often this trainer was started in another's place.
    """
    common = {} if memory is None else {_MEMORY: str(memory), _RESTARTS: str(restarts)}
    return common | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(trainers),
        "LOCAL_WORLD_SIZE": str(trainers), _STORE: store, _LAUNCHER: str(os.getpid()),
        # whatever the user has exported: these trainers need no port that others can reach
        "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo",
    }  # fmt: skip


def store_variables(rank: int, trainers: int, url: str, run_id: str, start: str) -> dict[str, str]:
    """Those that `--trainers` gives to one of the trainers that share a run in a store.

    Args:
        url: of the store's server, without the password.
        run_id: of the run.
        start: which start of the run it is, in a word that no other one has.
    """
    return {
        "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(trainers),
        _STORE_URL: url, _RUN_ID: run_id, _START: start, _LAUNCHER: str(os.getpid()),
    }  # fmt: skip


def store_url() -> str | None:
    """Where the store is that `--trainers` has started, or found."""
    return os.environ.get(_STORE_URL)


def run_id() -> str | None:
    """The id of the run in a store for which `--trainers` has started this process."""
    return os.environ.get(_RUN_ID)


def start() -> str | None:
    """Which start of a run in a store `--trainers` has started this process for."""
    return os.environ.get(_START)


def end_with_launcher() -> None:
    """From now on, send this process SIGTERM once its launcher is gone: no trainer is left over."""
    launcher = _number(_LAUNCHER) or _PARENT

    def look() -> None:
        while os.getppid() == launcher:
            time.sleep(_LOOKS_EVERY_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()


def store() -> str | None:
    """The file in which the trainers find one another; None where torchrun has started them."""
    return os.environ.get(_STORE)


def memory() -> int | None:
    """Descriptor of the memory where the trainers have the model in common; None: they have not."""
    return _number(_MEMORY)


def world() -> int | None:
    """How many trainers were started together; None where no launcher has started this process."""
    return _number("WORLD_SIZE") if "RANK" in os.environ else None


def rank() -> int:
    """This trainer's number, from 0."""
    return _number("RANK") or 0


def here() -> int:
    """How many trainers this machine has."""
    return _number("LOCAL_WORLD_SIZE") or 1


def local_rank() -> int:
    """This trainer's number among those of this machine, from 0."""
    return _number("LOCAL_RANK") or 0


def restarts() -> int:
    """How often torchrun has started the trainers anew, or `--trainers` this one."""
    return _number(_RESTARTS) or 0


def may_restart() -> bool:
    """Whether torchrun starts the trainers anew where one of them is lost."""
    return bool(_number("TORCHELASTIC_MAX_RESTARTS"))


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else None
