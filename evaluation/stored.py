"""The weights of a run in a sample store, as a source of versions to score."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from cluster import wire
from cluster.store.keys import Ended, RunGone
from cluster.store.run import RunStore
from evaluation.follow import Line
from model import ActorCritic
from rollout import Weights

_PATIENCE_S = 60.0  # for a run that its store has lost


class Stored:
    """See `evaluation.follow.Source`.

    Args:
        store: the run.
        model: the run's.
        say: is told of weights that are damaged; the next ones are waited for.
    """

    def __init__(self, store: RunStore, model: ActorCritic, say: Callable[[str], None]):
        self._store, self._model, self._say = store, model, say
        self._seen = -1  # the version that was looked at last
        self._gone_at: float | None = None  # since when the store does not have the run

    def newer(self) -> tuple[Weights, int] | None:
        try:
            if self._store.version() == self._seen:
                return None
            self._seen, message, step = self._store.newest()
            _, arrays = wire.unpack(message)
            wire.refuse_unlike(arrays, self._model.get_weights())
        except RunGone:  # its store may come back with it
            return None
        except wire.WireError as error:
            self._say(f"weights {self._seen} in the store are refused: {error}")
            return None
        return Weights(self._seen, arrays), step

    def has_ended(self) -> bool:
        try:
            self._store.stream.has_room(0)
            self._gone_at = None
        except Ended:
            return True
        except RunGone:  # its store may come back with it
            self._gone_at = self._gone_at or time.monotonic()
        return self._gone_at is not None and time.monotonic() - self._gone_at > _PATIENCE_S

    def record(self, line: Line) -> None:
        """Leave the scores of a version in the store, where the run's first trainer takes them."""
        try:
            self._store.leave_scores(json.dumps(line))
        except (RunGone, Ended):
            self._say("the run has ended: these scores are here alone")
