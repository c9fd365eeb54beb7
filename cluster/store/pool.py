"""A trainer's side of a run in a store: it takes fragments; `weights` publishes those made from them."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable

from cluster.asynchronous import merge
from cluster.pool import Environments, SamplerError
from cluster.store.address import Link
from cluster.store.consumer import Consumer
from cluster.store.heartbeat import Heartbeat
from cluster.store.keys import RunGone
from cluster.store.local import LocalSamplers
from cluster.store.run import Record, RunStore
from cluster.store.shared_weights import SharedWeights
from cluster.store.status import Status
from common.errors import UserError
from rollout import Rollout, RolloutSpec, Weights, spread
from settings.config import Config


class RunEnded(UserError):
    """Another trainer has ended the run."""

    exit_code = 0


class StorePool:
    """See `cluster.pool.SamplerPool`. `weights.publish` takes the place of most of `request`.

    Args:
        store: the run, which has been founded. Taken over.
        record: what it was founded with.
        config: the run's settings.
        spec: shapes of a rollout.
        weights: those that this trainer has.
        local: samplers that this trainer has started. Taken over.
        say: prints a sentence for the user.

    Attributes:
        trainer: the name of this trainer.
        weights: the run's weights, to be published and fetched.
    """

    name = "store"

    def __init__(
        self, store: RunStore, record: Record, config: Config, spec: RolloutSpec, weights: Weights,
        local: LocalSamplers | None, say: Callable[[str], None],
    ):  # fmt: skip
        self.spec, self.samplers = spec, record.samplers
        self.trainer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._store, self._local = store, local
        ranges = spread(config.env_num, record.samplers, config.envs_together)
        self._envs = ranges[0][1] - ranges[0][0]
        self._consumer = Consumer(
            store, self.trainer, spec, ranges, config.policy_lag, weights.version, say
        )
        self._began, self._waited = time.monotonic(), 0.0
        self._status: Status | None = None
        self._say = say
        self._heartbeat = Heartbeat(
            store.link.url, store.run, "trainer", self.trainer, lambda: (self.version, self.wait)
        )
        self.weights = SharedWeights(
            store, record, config, weights, self._consumer, self._heartbeat, say
        )

    @property
    def run(self) -> str:
        """The id of the run."""
        return self._store.run

    @property
    def version(self) -> int:
        """Of the newest weights in the store, as far as this trainer knows."""
        return self._consumer.version

    @property
    def dropped(self) -> int:
        return self._consumer.dropped

    @property
    def dropped_steps(self) -> int:
        return self._consumer.dropped_steps

    @property
    def dropped_episodes(self) -> int:
        return self._consumer.dropped_episodes

    @property
    def refused(self) -> int:
        """Fragments that were damaged, or unfit for this run."""
        return self._consumer.refused

    @property
    def wait(self) -> float:
        """The share of its time that this trainer has waited for fragments."""
        return self._waited / max(1e-9, time.monotonic() - self._began)

    @property
    def samplers_alive(self) -> int:
        """Samplers, of all machines, that were heard within 10 s, as known two seconds ago."""
        return 0 if self._heartbeat.last is None else self._heartbeat.last.samplers_alive

    @property
    def restarts(self) -> int:
        return 0 if self._local is None else self._local.restarts

    @property
    def alarms(self) -> int:
        """How often the store was away."""
        return self._store.link.outages

    @property
    def rows_lost(self) -> int:
        """Steps of environments in fragments that samplers have numbered, but did not append."""
        gaps = 0 if self._heartbeat.last is None else self._heartbeat.last.gaps
        return gaps * self.spec.steps * self._envs

    def request(
        self,
        weights: Weights,
        fragment: int,
        reset: bool,
        keep: bool = False,
        restore: Environments | None = None,
    ) -> None:
        """Nothing: samplers never rest, and take the weights that were last published.

        Raises:
            ValueError: for `keep` or `restore`: at no time do all environments stand still.
        """
        if keep or restore is not None:
            raise ValueError("the samplers of a store keep no state of their environments")

    def gather(self) -> Rollout:
        """Wait for a batch of fragments that are not too old: [T, env_num].

        They are this trainer's until `weights.publish` or `refuse`, or until it is dead for 10 s. Where
        neither was called, those that were gathered before are gathered again.

        Raises:
            SamplerError: where samplers fail time and again, or the store is away for too long.
            RunEnded: where another trainer has ended the run.
        """
        began, consumer = time.monotonic(), self._consumer
        consumer.give_back()
        try:
            while True:
                self._look()
                try:
                    consumer.receive(self.samplers - len(consumer.held))
                except RunGone:
                    self.weights.found_again()
                if len(consumer.held) >= self.samplers:
                    break
        finally:
            self._waited += time.monotonic() - began
        return merge([fragment.rollout for fragment in consumer.gather(self.samplers)])

    def _look(self) -> None:
        if self._local is not None:
            self._local.look()
        self.raise_if_ended()

    def raise_if_ended(self) -> None:
        """Raise RunEnded where another trainer has ended the run."""
        beat = self._heartbeat.last
        # a store may have come back with a state from before the run went on
        if beat is not None and beat.ended and beat.version >= self.version:
            raise RunEnded(f"the run {self.run} has ended")

    def refuse(self, reason: str) -> None:
        """Learn nothing from the fragments that were last gathered, and count them as refused."""
        try:
            self._consumer.refuse(reason)
        except RunGone:
            self.weights.found_again()

    def status(self) -> Status | None:
        """The run's counters at this instant; where the store has lost them, those from before."""
        with contextlib.suppress(RunGone):  # `gather` makes it anew
            status = self._store.status()
            if status.version >= self.version:
                self._status, self.weights.steps = status, status.steps
        return self._status

    def take_scores(self) -> list[bytes]:
        """What followers have scored since the last call: lines of JSON, which may be a stranger's."""
        with contextlib.suppress(RunGone):
            return self._store.take_scores()
        return []

    def end(self) -> list[bytes]:
        """End the run for everybody, samplers and other trainers too; what followers have scored.

        Waits for no store that is away.
        """
        link = Link(self._store.link.url, 0.0, lambda text: None)
        with contextlib.closing(RunStore(link, self.run)) as store:
            try:
                scores = store.take_scores()
                store.end()
                return scores
            except RunGone:
                return []  # it has ended already
            except SamplerError as error:
                self._say(f"the others are not told that the run has ended: {error}")
                return []

    def close(self) -> None:
        """Leave the run: other trainers take over what this one has not learned from."""
        self._heartbeat.close()
        if self._local is not None:
            self._local.close()
        self._store.close()
