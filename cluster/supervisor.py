"""Notices a lost sampler, puts another in its place, and tells the user.

Stands between a schedule and an engine: the schedule gets outcomes, parts or losses, and goes on. A
sampler is lost where its process or machine ends, where it is silent for too long, and where its
environments or its policy raise an error. Only the same error time and again ends the run, because
then the environment is at fault and another sampler does not help.

A thread looks after the samplers while nobody waits for them, so that the loss of one is noticed
during a long update too.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cluster.engines.base import Engine, Part
from cluster.pool import Lost, Request, SamplerError
from rollout import Weights

LOOK_S = 0.5  # between two looks at samplers that nobody waits for
LONGEST_LOOK_S = 1.0  # what is beyond this between two looks is no silence of a sampler
SAME_ERROR_LIMIT = 5  # the same error at the same step, without a fragment between
LOSS_LIMIT = 20  # losses of any kind, without a fragment between
LONGEST_PAUSE_S = 30.0  # before a sampler that cannot be started is tried again
PLACING_S = 10.0  # in which a cluster gives a replacement a CPU: the lost sampler's, or another


class Outcome(NamedTuple):
    """What became of a request. `part` is None where the sampler was lost."""

    index: int
    request: Request
    part: Part | None


class _Row:
    """Losses of one sampler in a row, without a fragment between.

    Attributes:
        losses, same: how many of any kind, and how many of the last one's kind.
        first: the reason of the first of the last one's kind.
    """

    def __init__(self) -> None:
        self.losses = self.same = 0
        self.first = ""
        self._kind: tuple[str, int | None] | None = None

    def add(self, lost: Lost) -> None:
        kind = (lost.cause, lost.where)
        if not lost.cause or kind != self._kind:
            self._kind, self.same, self.first = kind, 0, lost.reason
        self.losses, self.same = self.losses + 1, self.same + 1

    def is_hopeless(self, lost: Lost) -> bool:
        return self.losses >= LOSS_LIMIT or (bool(lost.cause) and self.same >= SAME_ERROR_LIMIT)


def _answered(engine: Engine, timeout: float) -> Iterator[int]:
    """All samplers that have answered; each is received from before the next one is asked for.

    An engine may give one answer at a time. Nobody is silent whose answer waits to be taken in.
    """
    while ready := engine.answered(timeout):
        timeout = 0.0
        yield from ready


class Supervisor:
    """The samplers of an engine, with lost ones replaced.

    Args:
        engine: the samplers. Taken over.
        say: prints a sentence for the user.

    Attributes:
        restarts: how many samplers were started in place of lost ones.
    """

    def __init__(self, engine: Engine, say: Callable[[str], None]):
        self.engine, self._say = engine, say
        self.restarts = 0
        self._lock = threading.RLock()  # whoever has it talks to the samplers
        self._outcomes: list[Outcome] = []
        self._rows: dict[int, _Row] = {}
        self._away: dict[int, float] = {}  # since when a sampler has not been there to work
        self._due: dict[int, float] = {}  # when one that could not be started is tried again
        self._restarted: dict[int, float] = {}  # when a replacement was last started
        self._fresh: set[int] = set()  # begin with a reset when they are next asked
        self._given_up: set[int] = set()  # nobody waits for their answers any more
        self._told: set[str] = set()  # errors that the user has seen in full
        self._error: BaseException | None = None
        self._looked = time.monotonic()  # when it was last known who had been silent for too long
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if engine.works_aside:
            self._thread.start()

    @property
    def samplers_alive(self) -> int:
        """How many samplers are there to work."""
        return self.engine.samplers - len(self._away)

    @property
    def alarms(self) -> int:
        """How often something came up that may end the run."""
        return self.engine.alarms

    def publish(self, weights: Weights) -> None:
        """The weights of all requests that are sent from now on."""
        with self._lock:
            self.engine.publish(weights)

    def send(self, index: int, request: Request, waits: bool = False) -> bool:
        """Ask a sampler, if it is there and idle; whether an outcome of it will come.

        Args:
            waits: ask one that is being replaced too, which answers once it has started; but none that
                has no place to run.
        """
        with self._lock:
            if self.engine.request(index) is not None or index in self._due:
                return False
            if index not in self._away and self.engine.is_missed(index):
                self._away[index] = time.monotonic()
                self._fresh.add(index)
            if index in self._away and (not waits or self.engine.is_missed(index)):
                return False
            if index in self._fresh:
                request = request._replace(reset=True, restore=None)
                self._fresh.remove(index)
            self.engine.send(index, request)
            return True

    def may_come(self, index: int) -> bool:
        """Whether a sampler that cannot be asked yet has a place to run, or should soon have one."""
        with self._lock:
            since = time.monotonic() - self._restarted.get(index, -math.inf)
            return since < PLACING_S or not self.engine.is_missed(index)

    def give_up(self, index: int) -> None:
        """Wait no longer for the answer of a sampler: it is dropped when it comes, or has come."""
        with self._lock:
            others = [outcome for outcome in self._outcomes if outcome.index != index]
            if len(others) == len(self._outcomes):
                self._given_up.add(index)
            self._outcomes = others

    def wait(self) -> list[Outcome]:
        """The outcomes that have come meanwhile; waits `LOOK_S` for one, or until `wake`.

        Raises:
            SamplerError: where samplers are lost time and again.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            if not self._outcomes:
                self._look(LOOK_S)
            outcomes, self._outcomes = self._outcomes, []
            return outcomes

    def wake(self) -> None:
        """Let a `wait` of another thread return."""
        self.engine.wake()

    def close(self) -> None:
        self._closed.set()
        if self.engine.works_aside:
            self._thread.join()
        self.engine.close()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_S):
            if self._lock.acquire(blocking=False):  # otherwise somebody waits for the samplers
                try:
                    self._look(0.0)
                except BaseException as error:  # whatever it is, `wait` raises it
                    self._error = error
                    return
                finally:
                    self._lock.release()

    def _look(self, timeout: float) -> None:
        """Take in what samplers have answered, and replace those that are lost."""
        for sentence in self.engine.news():
            self._say(sentence)
        for index in _answered(self.engine, timeout):
            request = self.engine.request(index)
            try:
                part = self.engine.receive(index)
            except Lost as lost:
                self._replace(index, request, lost)
            else:
                assert request is not None
                self._rows.pop(index, None)
                self._keep(index, request, part)
        # The learner's process may have been stopped, with its samplers or while they answered. It may
        # also be stopped between two of these lines, so one moment is for all of them.
        now = time.monotonic()
        self.engine.excuse(max(0.0, now - self._looked - LONGEST_LOOK_S), now)
        self._looked = now
        for index, seconds in self.engine.overdue(now).items():
            request = self.engine.request(index)
            doing = "starting" if index in self.engine.starting else "in one step"
            self._replace(index, request, Lost(f"it has been {doing} for {seconds:g} s"))
        for index in [i for i, due in self._due.items() if due < time.monotonic()]:
            self._start(index)
        self._note_those_back()

    def _keep(self, index: int, request: Request, part: Part | None) -> None:
        if index in self._given_up:
            self._given_up.remove(index)
        else:
            self._outcomes.append(Outcome(index, request, part))

    def _replace(self, index: int, request: Request | None, lost: Lost) -> None:
        """End a sampler that is lost, and start another; where it gave NaN, only reset it.

        Raises:
            SamplerError: where that would not help.
        """
        if request is not None:
            self._keep(index, request, None)
        name = f"sampler {index} ({self.engine.kind})"
        row = self._rows.setdefault(index, _Row())
        row.add(lost)
        stops = lost.final or (lost.not_finite and self.engine.config.nan == "stop")
        was_starting = index in self.engine.starting
        if stops or (was_starting and lost.cause and index not in self._away):
            # an environment that cannot even be made: the user is to know at once
            raise SamplerError(f"{name}: {lost.reason}")
        if row.is_hopeless(lost):
            raise SamplerError(f"{name} was lost {row.losses} times in a row; the first time:"
                               f" {row.first}")  # fmt: skip
        seen = lost.cause in self._told
        self._told.add(lost.cause)
        reason = f"{lost.cause}, as before" if lost.cause and seen else lost.reason.rstrip()
        if lost.not_finite:  # only the numbers are of no use
            self._say(f"{name} lost its part of a fragment: {reason}\nits environments are reset")
            self._fresh.add(index)
            return
        self._say(f"{name} is lost: {reason}\nanother sampler {index} is starting")
        self._away.setdefault(index, time.monotonic())
        self.engine.end(index)
        if was_starting:  # a while later things may be better
            self._due[index] = time.monotonic() + min(2.0**row.losses, LONGEST_PAUSE_S)
        else:
            self._start(index)

    def _start(self, index: int) -> None:
        self._due.pop(index, None)
        try:
            self.engine.start(index)
        except OSError as error:  # such as no memory, or no more processes
            self._say(f"sampler {index} cannot be started now: {error}")
            self._due[index] = time.monotonic() + LONGEST_PAUSE_S
            return
        self.restarts += 1
        self._restarted[index] = time.monotonic()
        self._fresh.add(index)

    def _note_those_back(self) -> None:
        absent = self.engine.starting | self._due.keys()
        for index in self._away.keys() - absent:
            seconds = time.monotonic() - self._away.pop(index)
            self._say(f"sampler {index} is back after {seconds:.1f} s")
