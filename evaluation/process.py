"""The process that evaluates a run's weights while it trains."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from common.errors import UserError
from common.sources import ROOT
from evaluation.score import Scores, score
from rollout import Weights
from settings.config import Config


class EvaluationError(UserError):
    """The evaluation process failed. The message says why."""


class Abandoned(Exception):
    """A newer request makes this evaluation pointless."""


class Evaluation(NamedTuple):
    """A finished evaluation, and the weights and the step that it is of."""

    scores: Scores
    weights: Weights
    step: int


class Evaluator:
    """Evaluates in a process of its own, at low priority, so that training never waits for it.

    Consumes weights by `submit`; where an evaluation is still running, they wait in its place for
    the next, and newer ones replace them. Produces `Evaluation`s, by `poll`.
    """

    def __init__(self, config: Config, weights: Weights):
        from cluster import wire
        from cluster.engines.local import SharedMemory

        self._pack = wire.pack
        self._memory = SharedMemory(len(wire.pack({}, weights.arrays)) + 4096)
        ours, theirs = socket.socketpair()
        descriptors = (theirs.fileno(), self._memory.descriptor)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c",
             "import os; os.nice(10); from evaluation.process import serve; serve()", *map(str, descriptors)],
            pass_fds=descriptors, env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
        theirs.close()
        self._connection = Connection(ours.detach())
        hello = {"config": config.to_dict(), "memory": self._memory.size}
        self._connection.send_bytes(json.dumps(hello).encode())
        self._running: tuple[Weights, int] | None = None
        self._waiting: tuple[Weights, int] | None = None

    def submit(self, weights: Weights, step: int) -> None:
        """Evaluate these weights as soon as the process is free. Never waits."""
        self._waiting = (weights, step)
        if self._running is None:
            self._start()

    def poll(self) -> Evaluation | None:
        """A finished evaluation, if there is one. Never waits.

        Raises:
            EvaluationError: where it failed.
        """
        if self._running is None or not self._connection.poll(0):
            return None
        return self._finish()

    def last(self, weights: Weights, step: int) -> Evaluation:
        """Evaluate these weights now, dropping what is running, and wait for the result."""
        self._waiting = None
        if self._running is not None:
            self._connection.send_bytes(b'{"abandon": true}')
            self._finish()
        self.submit(weights, step)
        evaluation = self._finish()
        assert evaluation is not None  # nothing asked to abandon this one
        return evaluation

    def _start(self) -> None:
        assert self._waiting is not None
        self._running, self._waiting = self._waiting, None
        weights, step = self._running
        packed = self._pack({}, weights.arrays)
        self._memory.view()[: len(packed)] = packed
        self._connection.send_bytes(json.dumps({"step": step}).encode())

    def _finish(self) -> Evaluation | None:
        assert self._running is not None
        try:
            answer = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise EvaluationError("the evaluation process ended") from None
        if "error" in answer:
            raise EvaluationError(f"the evaluation failed: {answer['error']}")
        (weights, step), self._running = self._running, None
        if self._waiting is not None:
            self._start()
        if "abandoned" in answer:
            return None
        return Evaluation(Scores(**answer), weights, step)

    def close(self) -> None:
        self._connection.close()
        self._process.kill()  # it holds nothing worth keeping
        self._process.wait()


def serve() -> None:
    """The evaluation process. Arguments: the descriptors of its pipe and of the weights."""
    from cluster import wire
    from cluster.engines.local import SharedMemory

    connection = Connection(int(sys.argv[1]))

    def answer(**content: Any) -> None:
        connection.send_bytes(json.dumps(content).encode())

    def look() -> None:
        if connection.poll(0):
            raise Abandoned

    with contextlib.suppress(EOFError, ConnectionError):  # the learner closed the pipe, or ended
        hello = json.loads(connection.recv_bytes())
        try:
            import torch

            torch.set_num_threads(1)
            config = Config(**hello["config"])
            from model import build_model

            model = build_model(config)
            weights = SharedMemory(hello["memory"], int(sys.argv[2])).view()
            while True:
                request = json.loads(connection.recv_bytes())
                if "abandon" in request:  # it had finished before the word came
                    continue
                model.set_weights(wire.unpack(weights)[1])
                try:
                    scores = score(
                        model, config, config.test_episodes, config.seed,
                        after_step=look,
                    )  # fmt: skip
                except Abandoned:
                    answer(abandoned=True)
                else:
                    answer(**scores._asdict())
        except (EOFError, ConnectionError):
            raise
        except Exception:
            answer(error=traceback.format_exc())
