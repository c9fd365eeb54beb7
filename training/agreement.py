"""What the trainers of a run decide together: that it is over, and that all are in the same state."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

from agent import PPOAgent
from common import launched
from common.errors import TrainerLost, UserError
from learning.trainers import Trainers
from training.signals import SIGNALS, Stopped, StopSignals

_COMPARED_EVERY = 50  # updates


class WeightsDiffer(UserError):
    """The trainers do not hold the same weights any more."""


class Agreement:
    """One trainer's part in the decisions of all.

    Args:
        trainers: all of them.
        agent: this one's, in the state that all begin with.
        run_dir: the run's folder.
        signals: this one's.
    """

    def __init__(self, trainers: Trainers, agent: PPOAgent, run_dir: Path, signals: StopSignals):
        self._trainers, self._agent, self._run_dir = trainers, agent, run_dir
        self._signals, self._quoted = signals, shlex.quote(str(run_dir))
        self._alike = agent.update  # after which the trainers were in the same state

    def decide(self, over: str | None) -> str | None:
        """Why the run is over, for all trainers; None where it is not.

        Args:
            over: why it is over for this one: the first reason, in the order of ranks, is that of all.

        Raises:
            Stopped: where a signal has asked one of them to end.
            WeightsDiffer: where the trainers do not hold the same weights; that is looked at now
                and then, and at the end.
        """
        if self._trainers.size == 1:
            return over or self._trainers.stopped()
        everyone = self._trainers.everyone({}, {"over": over or self._signals.asked})
        over = next((values["over"] for _, values in everyone if values["over"]), None)
        if over is not None or self._agent.update % _COMPARED_EVERY == 0:
            self._compare()
        if over is not None:
            self._trainers.end_watch()
        if over in SIGNALS:
            raise Stopped(SIGNALS[over])
        return over

    def _compare(self) -> None:
        """Look whether all are in the same state after this update."""
        update, mine = self._agent.update, {"state": self._digest()}
        states = [values["state"] for _, values in self._trainers.everyone({}, mine)]
        differing = [rank for rank, state in enumerate(states) if state != states[0]]
        if differing:
            raise WeightsDiffer(
                f"after update {update} trainer {differing[0]} is in another state than trainer 0, so"
                f" the machines do not compute alike; after update {self._alike} they were alike. Remove"
                f" newer checkpoints from {self._run_dir}, and go on by --resume {self._quoted}, on"
                f" machines with the same processors and packages"
            )
        self._alike = update

    def _digest(self) -> str:
        """A hash of all that learning goes on from: weights, moments, statistics, coefficients."""
        arrays, counters = self._agent.state()
        total = hashlib.sha256(json.dumps(counters, sort_keys=True).encode())
        for name in sorted(arrays):
            total.update(arrays[name].tobytes())
        return total.hexdigest()

    def without_others(self, lost: TrainerLost) -> str:
        """Why the run is over where another trainer is gone: a signal, to this one or to the other.

        Raises:
            TrainerLost: where there was none.
        """
        reason = self._signals.asked or self._trainers.stopped()
        if reason is not None:
            return reason
        raise TrainerLost(f"{lost}{self.way_on}")

    @property
    def way_on(self) -> str:
        """The end of a sentence about a trainer that is lost."""
        command = f"`python train.py --resume {self._quoted}`"
        if launched.store() is None:
            command = f"the same torchrun command with --resume {self._quoted}"
        return f": go on from the last checkpoint by {command}"
