"""The weights of a run in a store, as one of its trainers publishes and fetches them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import numpy as np

from cluster import wire
from cluster.store.consumer import Consumer
from cluster.store.heartbeat import Heartbeat
from cluster.store.keys import RunGone
from cluster.store.run import Published, Record, RunStore
from common import launched
from rollout import Weights
from settings.config import Config

MARGIN = 64  # numbers of each range that samplers may have taken unseen before a store was lost


class SharedWeights:
    """They are kept here too, so that a store that came back empty can be given them again.

    Args:
        store: the run.
        record, config: what it was founded with.
        weights: those that this trainer has.
        consumer: the fragments that this trainer learns from.
        heartbeat: of this trainer; it brings the number of samplers.
        say: prints a sentence for the user.

    Attributes:
        steps: environment steps that the run has taken, as last heard.
    """

    def __init__(
        self, store: RunStore, record: Record, config: Config, weights: Weights, consumer: Consumer,
        heartbeat: Heartbeat, say: Callable[[str], None],
    ):  # fmt: skip
        self._store, self._record, self._config = store, record, config
        self._weights, self._consumer, self._heartbeat = weights, consumer, heartbeat
        self._say = say
        self._publications = 0
        self.steps = 0

    def publish(self, arrays: Mapping[str, np.ndarray], expected: int) -> Published:
        """Publish weights, and count the fragments that were last gathered as learned from.

        Args:
            arrays: the weights.
            expected: the version that they were made from. The store must still have it.

        Returns:
            what became of them. `done`: they are the newest. `conflict`: nothing has changed, and
            `publish` can be called again, with weights that are made from the newest ones
            (`newest`). `lost`: this trainer was taken for dead, and some of the fragments are
            another's now, or went down with the store; the weights are to be forgotten (`newest` has
            those to go on from), and the other fragments are gathered again.

        Raises:
            StoreLost: where the store was away for too long.
        """
        consumer, weights = self._consumer, Weights(expected + 1, dict(arrays))
        gathered = consumer.gathered
        ids = [fragment.id for fragment in gathered]
        self._publications += 1
        try:
            published = self._store.publish(
                consumer.trainer, f"{consumer.trainer}/{self._publications}", expected, weights, ids,
                sum(fragment.rollout.steps for fragment in gathered),
            )  # fmt: skip
            consumer.hear(published.version)
        except RunGone:
            self.found_again()
            return Published("lost", consumer.version, frozenset(ids))
        if published.outcome == "done":
            self._weights = weights
            consumer.settle()
        elif published.outcome == "lost":
            consumer.give_back(published.lost)
        return published

    def newest(self) -> Weights | None:
        """The newest weights in the store; None where they are damaged, or no weights of this run.

        Weights that are published over damaged ones mend that.
        """
        try:
            version, message = self._store.weights()
            self._consumer.hear(version)
        except RunGone:
            self.found_again()
            return self.newest()
        try:
            _, arrays = wire.unpack(message)
            wire.refuse_unlike(arrays, self._weights.arrays)
        except wire.WireError as error:
            self._say(f"weights {self._consumer.version} in the store are refused: {error}")
            return None
        self._weights = Weights(self._consumer.version, arrays)
        return self._weights

    def found_again(self) -> None:
        """Make the run anew with this trainer's weights, in a store that came back empty, or with an
        older state."""
        ranges, samplers = self._record.samplers, self._heartbeat.samplers
        used = samplers // ranges + 1 if samplers else 0
        first = (used + MARGIN) * ranges
        if found(self._store, self._record, self._config, self._weights, first, self.steps, True):
            self._say(
                f"the store came back without the newest state of the run {self._store.run}: it is made"
                f" anew, with weights {self._weights.version}"
            )
        self._consumer.forget()
        with contextlib.suppress(RunGone):  # again: the next step meets it
            self._consumer.version = self._store.version()


def found(
    store: RunStore, record: Record, config: Config, weights: Weights, first_sampler: int = 0,
    steps: int = 0, again: bool = False,
) -> bool:  # fmt: skip
    """Make a run in a store, unless it is there; whether this made it.

    Args:
        first_sampler: the smallest number of a sampler, a multiple of the ranges.
        steps: environment steps that the run has taken so far.
        again: see `RunStore.found`.
    """
    fragments = config.store_fragments or record.samplers
    made = store.found(record, weights, fragments, config.store_bytes, first_sampler, steps, again)
    if made:
        with contextlib.suppress(RunGone):  # meanwhile: the next step meets it
            store.open(record, launched.start() or "")
    return made
