"""Trainers that step one model without waiting for one another (Recht et al. 2011, arXiv 1106.5730).

Each trainer has its own environments, its own batches and its own copy of the model. One more copy
lies in memory that all of them map. Before a gradient step a trainer reads that; after the step it
adds its change to it. Neither is locked: what others add meanwhile is kept, but this step's gradient
was computed without it. Statistics move once or twice an update, one trainer after another.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from common import launched
from common.errors import UserError
from learning.messages import pack, unpack
from learning.shared_model import Count, SharedModel
from learning.trainers import Joined, Refused, Shared, Trainers
from learning.undo import State
from rollout import spread
from settings.config import Config

_LOOKS_EVERY_S = 0.02
_TOLD = "told {}"  # files with what the first trainer has told, in order
_NOTHING, _MADE, _REFUSED = b"n", b"m", b"r"  # how the first trainer's messages begin


class Hogwild(Trainers):
    """One of several trainers of this machine, each of which steps when it likes.

    Its `size` is 1: no step waits for another trainer.

    Args:
        rank, trainers: this one's number, and how many there are.
        folder: where the first one leaves what all have to know.
        memory: descriptor of a block of memory without a name.
    """

    meet_in_steps = True

    def __init__(self, rank: int, trainers: int, folder: Path, memory: int):
        self.rank, self.counters = rank, (rank,)
        self._trainers, self._folder, self._memory = trainers, folder, memory
        self._told = 0  # what the first trainer has told so far
        self._model: SharedModel | None = None  # until it is shared

    @classmethod
    def as_launched(cls) -> Hogwild:
        """The trainer that this process's environment variables describe."""
        folder, memory, trainers = launched.store(), launched.memory(), launched.world()
        assert folder is not None
        assert memory is not None
        assert trainers is not None
        return cls(launched.rank(), trainers, Path(folder).parent, memory)

    def envs(self, config: Config) -> tuple[int, int]:
        return spread(config.env_num, self._trainers, config.envs_together)[self.rank]

    # --- how they begin
    def run_dir(self) -> str | None:
        path = self._folder / _TOLD.format(0)
        begun = _read(path.read_bytes()) if launched.restarts() and path.exists() else None
        return None if begun is None else begun[1]["run_dir"]

    def from_first(self, make: Callable[[], State | None]) -> State | None:
        path = self._folder / _TOLD.format(self._told)
        self._told += 1
        if not self.leads:
            while not path.exists():  # the launcher ends all where the first one has failed
                time.sleep(_LOOKS_EVERY_S)
            return _read(path.read_bytes())
        try:
            made = make()
        except (UserError, SystemExit) as error:
            code = error.exit_code if isinstance(error, UserError) else error.code or 0
            _leave(path, _REFUSED + str(code).encode())
            raise
        _leave(path, _NOTHING if made is None else _MADE + pack(*made))
        return made

    def join(self, shared: Shared) -> Joined | None:
        self._model = model = SharedModel(
            self._memory, self._trainers, shared.parameters + shared.moments, shared.statistics
        )
        while not model.is_ready:
            if self.leads:
                return None
            time.sleep(_LOOKS_EVERY_S)
        model.take_over()
        return Joined(int(model.counts[self.rank, Count.UPDATES]), model.environment_steps)

    def share(self, begun: Joined) -> None:
        assert self._model is not None
        if not self._model.is_ready:
            self._model.counts[:, Count.UPDATES] = begun.updates
            self._model.fill(begun.environment_steps)

    # --- while they learn
    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        if self._model is None:  # to compile, a trainer steps on made-up data
            yield
            return
        own = self._model.counts[self.rank]
        begun = self._steps_of_others()
        self._model.read()
        yield
        self._model.add()
        own[Count.STALENESS] += self._steps_of_others() - begun
        own[Count.GRADIENT_STEPS] += 1

    def _steps_of_others(self) -> float:
        assert self._model is not None
        steps = self._model.counts[:, Count.GRADIENT_STEPS]
        return float(steps.sum() - steps[self.rank])

    def moving_statistics(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self._model is None else self._model.locked()

    def count(self, before: int, steps: int, times: Mapping[str, float]) -> int:
        if self._model is None or not self._model.is_ready:  # it is filled with what was before
            return before + steps
        own = self._model.counts[self.rank]
        own[Count.STEPS] += steps
        own[Count.UPDATES] += 1
        own[Count.WAITED] += times["time/sample_wait"]
        own[Count.LEARNED] += times["time/learn"]
        return self._model.environment_steps

    def metrics(self) -> dict[str, float]:
        assert self._model is not None
        shown: dict[str, float] = {}
        for rank, row in enumerate(self._model.counts):
            steps, gradient_steps, staleness, updates, waited, learned = row.tolist()
            shown |= {
                f"trainer/{rank}/steps": steps,
                f"trainer/{rank}/updates": updates,
                f"trainer/{rank}/gradient_steps": gradient_steps,
                f"trainer/{rank}/staleness": staleness / max(1.0, gradient_steps),
                f"trainer/{rank}/wait_share": waited / max(1e-9, waited + learned),
            }
        total = self._model.counts.sum(0)
        shown["gradient_steps"] = float(total[Count.GRADIENT_STEPS])
        shown["staleness"] = float(total[Count.STALENESS] / max(1.0, total[Count.GRADIENT_STEPS]))
        return shown

    # --- how they end
    def stopped(self) -> str | None:
        return "finished" if self._model is not None and self._model.is_over else None

    def end_run(self) -> None:
        if self.leads and self._model is not None:
            self._model.end()


def _leave(path: Path, message: bytes) -> None:
    """Write a file that is there as a whole, or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(message)
    unfinished.rename(path)


def _read(message: bytes) -> State | None:
    """What the first trainer made.

    Raises:
        Refused: where it could not.
    """
    kind, content = message[:1], message[1:]
    if kind == _REFUSED:
        refused = Refused()
        refused.exit_code = int(content)
        raise refused
    return unpack(content) if kind == _MADE else None
