"""The samplers of a run in a store that a process starts on its own machine, and replaces."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable

from cluster.child import Child, ChildEnded, close_all
from cluster.pool import SamplerError
from cluster.store.address import Link
from cluster.store.keys import RunGone
from cluster.store.run import RunStore
from cluster.supervisor import LONGEST_PAUSE_S

_DEATHS = 5  # of one sampler's place in a row, without a fragment between


class SamplersFailed(SamplerError):
    """A sampler has ended because of an error that another one would meet too."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class LocalSamplers:
    """Sampler processes, which end with this one.

    Args:
        url: of the store.
        run: the id of the run.
        count: how many.
        trust: whether they may import a class that the run's settings name (module:Class).
        timeout: how long they wait for the store [s].
        say: prints a sentence for the user.

    Attributes:
        restarts: how many were started in place of lost ones.
    """

    def __init__(
        self, url: str, run: str, count: int, trust: bool, timeout: float,
        say: Callable[[str], None],
    ):  # fmt: skip
        self.restarts = 0
        told = {"url": url, "run": run, "trust": trust, "timeout": timeout}
        self._hello = json.dumps(told).encode()
        self._say = say
        self._store = RunStore(Link(url, 0.0, lambda _: None), run)
        self._numbers: dict[int, int] = {}  # of the sampler at each place
        self._begun: set[int] = set()  # places that have had a sampler
        self._due: dict[int, float] = {}  # when one that could not be started is tried again
        self._children: list[Child | None] = [None] * count
        self._deaths = [0] * count  # in a row
        for place in range(count):
            self._start(place)

    @property
    def pids(self) -> list[int | None]:
        """The processes that live, or are starting."""
        return [child.pid for child in self._children if child is not None]

    def _start(self, place: int) -> None:
        self._due.pop(place, None)
        try:
            # the learner is waited for by all: with fewer cores than processes it goes first
            child = Child("cluster.store.sample", niceness=5)
        except OSError as error:  # such as no memory, or no more processes
            self._wait(place, str(error))
            return
        with contextlib.suppress(ChildEnded):  # `look` sees it
            child.send(self._hello)
        self._children[place] = child
        self.restarts += place in self._begun
        self._begun.add(place)

    def _wait(self, place: int, why: str) -> None:
        self._children[place] = None
        self._due[place] = time.monotonic() + LONGEST_PAUSE_S
        self._say(
            f"a sampler cannot be started now: {why}; in {LONGEST_PAUSE_S:g} s it is tried again"
        )

    def look(self) -> bool:
        """Tell the user what samplers say, and put others in the place of those that have died.

        Returns:
            whether there are any: none is left once the run has ended.

        Raises:
            SamplerError: for an error that another one would meet too, and for a sampler that dies
                time and again.
        """
        for place in [place for place, due in self._due.items() if due < time.monotonic()]:
            self._start(place)
        for place, child in enumerate(self._children):
            if child is None:
                continue
            try:
                while self._children[place] is child and child.poll():
                    self._take_in(place, child, json.loads(child.receive()))
            except ChildEnded as ended:
                self._replace(place, child, ended)
        return any(self._children) or bool(self._due)

    def _take_in(self, place: int, child: Child, told: dict[str, object]) -> None:
        if "says" in told:
            self._say(str(told["says"]))
        elif "joined" in told:
            self._numbers[place] = int(str(told["joined"]))
        elif "collects" in told:
            self._deaths[place] = 0
        elif "ended" in told:
            child.close()
            self._children[place] = None
        elif "error" in told:
            raise SamplersFailed(str(told["error"]), int(str(told["exit_code"])))

    def _replace(self, place: int, child: Child, ended: ChildEnded) -> None:
        if child.pid is None:
            child.close()
            self._wait(place, str(ended))
            return
        self._deaths[place] += 1
        if self._deaths[place] >= _DEATHS:
            raise SamplerError(
                f"a sampler has died {_DEATHS} times in a row without a fragment, at last: {ended};"
                f" what it printed says why"
            )
        self._say(f"a sampler is lost: {ended}\nanother is starting")
        child.close()
        if place in self._numbers:
            # so that the next one takes its place; where the store is away, it is noticed in 10 s
            with contextlib.suppress(SamplerError, RunGone):
                self._store.leave("sampler", self._numbers.pop(place))
        self._start(place)

    def close(self) -> None:
        """End them."""
        close_all(child for child in self._children if child is not None)
        self._store.close()
