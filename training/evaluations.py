"""When a run's weights are evaluated, and which of them were the best."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from common import checkpoint
from evaluation.process import Evaluation, Evaluator
from rollout import Weights
from settings.config import Config
from training.folder import Place
from training.writes import Writes


class Evaluations:
    """Has weights evaluated by another process, and keeps the best as a checkpoint.

    Args:
        config: the run's settings.
        place: the run's folder, in which the best weights are kept.
        weights: the first weights, which show how large a message has to be.
        step: environment steps already taken.
        say: prints a line.
        writes: takes note of those that fail.

    Attributes:
        best: the mean return of the best evaluation so far, or None.
        last_mean: the mean return of the last evaluation, or None.
    """

    def __init__(
        self,
        config: Config,
        place: Place,
        weights: Weights,
        step: int,
        say: Callable[[str], None],
        writes: Writes,
    ):
        self._place, self._say, self._writes = place, say, writes
        self._unsaved: Evaluation | None = None  # the best one, until it is saved
        self._every = config.steps_per_evaluation
        self._next = (step // self._every + 1) * self._every
        self.best: float | None = None
        self.last_mean: float | None = None
        self._evaluator = Evaluator(config, weights, say)

    @property
    def lost(self) -> int:
        """How many evaluations failed or hung; training went on without them."""
        return self._evaluator.lost

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint of the run says.

        The best are the weights that lie on the disk: the run may have been killed after a better
        evaluation than the checkpoint knows of, or before those that it knows of were written.
        """
        self.last_mean = state["last_evaluation"]
        best = self._place.checkpoints / "best"
        if checkpoint.exists(best):
            try:
                self.best = _return_mean(checkpoint.load(best))
            except checkpoint.BadCheckpoint as error:
                print(f"train.py: {error}; the next evaluation replaces it", file=sys.stderr)
        elif state["best"] is not None:
            self._say("the best weights are missing: the next evaluation has the best again")

    def finished(self) -> dict[str, Any]:
        """Metrics of an evaluation that has ended meanwhile; {} where none has. Never waits."""
        evaluation = self._evaluator.poll()
        return {} if evaluation is None else self._note(evaluation)

    def start(self, weights: Callable[[], Weights], step: int) -> None:
        """Have the weights evaluated, where enough steps have passed. Never waits."""
        if step >= self._next:
            self._next += self._every
            self._evaluator.submit(weights(), step)

    def last(self, weights: Weights, step: int) -> dict[str, Any]:
        """Metrics of these weights, evaluated now. Where that is lost: of the evaluation that had begun before,
        or {}."""
        metrics: dict[str, Any] = {}
        for evaluation in self._evaluator.last(weights, step):
            metrics = self._note(evaluation)
        return metrics

    def _note(self, evaluation: Evaluation) -> dict[str, Any]:
        scores, mean = evaluation.scores, evaluation.scores.mean()
        self.last_mean = mean
        self._say(
            f"evaluation at {evaluation.step:,} steps: return mean {mean:.2f}, std"
            f" {scores.std():.2f}, episodes {len(scores.returns)}"
        )
        if math.isfinite(mean) and (self.best is None or mean > self.best):
            self.best, self._unsaved = mean, evaluation
            self.save_best()
        return {
            "eval/return_mean": mean,
            "eval/return_std": scores.std(),
            "eval/episodes": len(scores.returns),
            **{f"eval/{name}": value for name, value in scores.means().items()},
            "eval/global_step": evaluation.step,
        }

    def save_best(self) -> None:
        """Write the weights of the best evaluation, where they have not been written yet."""
        if self._unsaved is None:
            return
        scores, weights, step = self._unsaved
        arrays = {f"{checkpoint.MODEL}{n}": a for n, a in weights.arrays.items()}
        state = {"update": weights.version, "global_step": step, "return_mean": scores.mean()}
        with self._writes.attempt("the best checkpoint"):
            self._place.check()
            checkpoint.save_best(self._place.checkpoints, step, arrays, state)
            self._unsaved = None

    def close(self) -> None:
        self._evaluator.close()


def _return_mean(saved: checkpoint.Checkpoint) -> float:
    mean = saved.state.get("return_mean")
    if not isinstance(mean, int | float) or not math.isfinite(mean):
        raise checkpoint.BadCheckpoint(f"checkpoint {saved.path} has no return_mean")
    return mean
