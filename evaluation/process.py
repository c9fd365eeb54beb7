"""The process that evaluates a run's weights while it trains.

Consumes weights (shared memory) and requests (JSON over its connection), produces scores, and waits
for nothing but requests. While it plays it says so now and then: a process that is silent for long
hangs, and is replaced. Its loss costs an evaluation at most, and never ends the run.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from cluster import wire
from cluster.child import Child, ChildEnded, end_with_parent, parent
from cluster.shared_memory import SharedMemory
from common.errors import UserError
from evaluation.score import Scores, score
from model import build_model
from rollout import Weights
from settings.config import Config

SHORTEST_PATIENCE_S = 60.0  # the process has to start and to build its environment first
_LOOKS_EVERY_S = 0.05  # the process, whether it was told to abandon an evaluation


class Evaluation(NamedTuple):
    """A finished evaluation, with its weights and the environment steps they were trained for."""

    scores: Scores
    weights: Weights
    step: int


class Evaluator:
    """Evaluates in a process of its own, at low priority, so that training never waits for it.

    Weights that are submitted while an evaluation runs wait for its end, and newer ones replace
    them. An evaluation whose process ends is made once more, by another process. One that fails or
    hangs is given up; the next one gets another process.

    Args:
        config: the run's settings.
        weights: any of the model's, for their size.
        say: prints a sentence for the user, about an evaluation that was lost.

    Attributes:
        lost: how many evaluations were given up; `say` was told of each.
        patience_s: how long an evaluation may make no step [s].
    """

    def __init__(
        self,
        config: Config,
        weights: Weights,
        say: Callable[[str], None],
    ):
        self._config, self._say = config, say
        self.patience_s = max(config.sampler_timeout, SHORTEST_PATIENCE_S)
        self._memory = SharedMemory(len(wire.pack({}, weights.arrays)) + 4096)
        self._running: tuple[Weights, int] | None = None
        self._waiting: tuple[Weights, int] | None = None
        self._is_second_try = False  # of the evaluation that is running
        self._heard = 0.0  # when the process last said anything, or was last asked to
        self.lost = 0
        self._error = ""  # the last error of an evaluation
        self._child: Child | None = self._new_child()  # now, so that it is ready when it is needed

    @property
    def pid(self) -> int | None:
        """The process that evaluates, or None where none does."""
        return None if self._child is None else self._child.pid

    def submit(self, weights: Weights, step: int) -> None:
        """Evaluate these weights as soon as the process is free. Never waits."""
        self._waiting = (weights, step)
        if self._running is None:
            self._start()

    def poll(self) -> Evaluation | None:
        """A finished evaluation, if there is one. Never waits."""
        while self._running is not None and self._child is not None and self._child.poll():
            evaluation = self._receive(self._child, *self._running)
            if evaluation is not None:
                return evaluation
        if self._running is not None and time.monotonic() - self._heard > self.patience_s:
            reason = f"made no step for {self.patience_s:g} s: its process was ended"
            self._give_up(f"the evaluation at {self._running[1]:,} steps {reason}")
        return None

    def last(self, weights: Weights, step: int) -> list[Evaluation]:
        """Evaluate these weights, dropping what is running, and wait as long as there is progress.

        Returns:
            the evaluation that was running, where it finished all the same; then the one of these
            weights, where it was not lost.
        """
        if self._running is not None and self._child is not None:
            with contextlib.suppress(ChildEnded):  # `poll` says so
                self._child.send(b'{"abandon": true}')
        self.submit(weights, step)
        finished = []
        while self._running is not None:
            if self._child is not None:
                self._child.poll(min(1.0, self.patience_s))
            if (evaluation := self.poll()) is not None:
                finished.append(evaluation)
        return finished

    def close(self) -> None:
        """End the process, which holds nothing worth keeping, and free its memory."""
        self._end_child()
        self._memory.close()

    def _new_child(self) -> Child:
        child = Child("evaluation.process", [self._memory.descriptor], niceness=10)
        hello = {
            "config": self._config.to_dict(),
            "memory": self._memory.size,
            "says_so_every_s": self.patience_s / 10,
        }
        with contextlib.suppress(ChildEnded):  # `poll` says so
            child.send(json.dumps(hello).encode())
        return child

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._child = None

    def _start(self) -> None:
        """Start the evaluation that is waiting."""
        assert self._waiting is not None
        (weights, step), self._waiting = self._waiting, None
        packed = wire.pack({}, weights.arrays)
        self._memory.view()[: len(packed)] = packed
        if self._child is None:
            try:
                self._child = self._new_child()
            except OSError as error:  # such as no memory
                self._give_up(f"the evaluation at {step:,} steps cannot be made: {error}")
                return
        self._running, self._heard = (weights, step), time.monotonic()
        with contextlib.suppress(ChildEnded):  # `poll` says so
            self._child.send(b'{"evaluate": true}')

    def _receive(self, child: Child, weights: Weights, step: int) -> Evaluation | None:
        """Take in one message of the process, or its end."""
        try:
            answer: dict[str, Any] = json.loads(child.receive())
        except ChildEnded as error:
            self._try_again(error)
            return None
        self._heard = time.monotonic()
        if "progress" in answer:
            return None
        if "error" in answer:
            again, self._error = answer["error"] == self._error, answer["error"]
            reason = "failed with the same error" if again else f"failed: {self._error}"
            self._give_up(f"the evaluation at {step:,} steps {reason}")
            return None
        self._finish()
        return None if "abandoned" in answer else Evaluation(Scores(**answer), weights, step)

    def _finish(self) -> None:
        """The running evaluation is over; start the one that is waiting, if any."""
        self._running, self._is_second_try = None, False
        if self._waiting is not None:
            self._start()

    def _try_again(self, error: ChildEnded) -> None:
        """The process ended: have another make the evaluation, unless this one was the second."""
        assert self._running is not None
        if self._is_second_try or self._waiting is not None:
            self._give_up(f"the evaluation at {self._running[1]:,} steps is lost: {error}")
            return
        self._say(
            f"the evaluation process is lost: {error}; another makes the evaluation at"
            f" {self._running[1]:,} steps"
        )
        self._end_child()
        self._waiting, self._is_second_try = self._running, True
        self._start()

    def _give_up(self, reason: str) -> None:
        self._say(reason)
        self.lost += 1
        self._end_child()
        self._finish()


class _Abandoned(Exception):
    """A newer request makes this evaluation pointless."""


def serve() -> None:
    """Run the evaluation process: answer requests until the learner closes the connection."""
    connection, (descriptor,) = parent()
    end_with_parent(connection)
    with contextlib.suppress(EOFError, ConnectionError):  # the learner closed it, or ended
        hello = json.loads(connection.recv_bytes())
        evaluate: Callable[[], dict[str, Any]] | None = None
        while True:
            request = json.loads(connection.recv_bytes())
            if "abandon" in request:  # it was sent before the learner had the result
                continue
            try:
                evaluate = evaluate or _evaluation(connection, hello, descriptor)
                answer = evaluate()
            except _Abandoned:
                answer = {"abandoned": True}
            except UserError as error:
                answer = {"error": str(error)}
            except Exception:  # an environment may raise anything
                answer = {"error": traceback.format_exc()}
            connection.send_bytes(json.dumps(answer).encode())


def _evaluation(
    connection: Connection, hello: dict[str, Any], descriptor: int
) -> Callable[[], dict[str, Any]]:
    """A function that evaluates the weights that are in shared memory."""
    import torch

    torch.set_num_threads(1)
    config = Config(**hello["config"])
    model = build_model(config)
    model.prepare_to_act()
    weights = SharedMemory(hello["memory"], descriptor).view()
    looked = said = 0.0

    def after_step() -> None:
        nonlocal looked, said
        now = time.monotonic()
        if now - looked < _LOOKS_EVERY_S:
            return
        looked = now
        if connection.poll():
            raise _Abandoned
        if now - said > hello["says_so_every_s"]:
            said = now
            connection.send_bytes(b'{"progress": true}')

    def evaluate() -> dict[str, Any]:
        model.set_weights(wire.unpack(weights, verify=False)[1])
        scores = score(
            model,
            config,
            config.test_episodes,
            config.seed,
            after_step=after_step,
            purpose="selection",
        )
        return scores._asdict()

    return evaluate
