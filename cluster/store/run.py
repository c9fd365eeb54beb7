"""A run's part of a store: its keys, and the steps that are made there.

Every step can be made again where its answer was lost (scores of followers may then be there twice, or
not at all). Nothing outside `dppo:{RUN_ID}:` is touched.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import redis

from cluster import wire
from cluster.store import scripts
from cluster.store.address import Link, StoreError
from cluster.store.keys import Keys, RunGone
from cluster.store.status import Status, read_status
from cluster.store.stream import Stream
from rollout import Weights

_STAGED_S = 600  # how long weights are kept that nobody has published


class Record(NamedTuple):
    """What whoever joins a run has to know of it.

    Args:
        config: the settings, as `Config.to_dict` gives them.
        samplers: into how many equal ranges the environments are spread; an update takes as many
            fragments.
    """

    config: dict[str, Any]
    samplers: int


class Published(NamedTuple):
    """What became of weights. They are in the store only if `outcome` is `done`.

    Args:
        outcome: `done`, `conflict` (there are newer ones than those they were made from) or `lost`
            (another trainer has taken over some of the fragments that they were made from).
        version: of the weights that are in the store now.
        lost: the fragments that were lost.
    """

    outcome: str
    version: int
    lost: frozenset[bytes] = frozenset()


class Beat(NamedTuple):
    """What a heartbeat brings back. `samplers`: the number of the last sampler, and 1; `gaps`: see `Status`."""

    ended: bool
    version: int
    samplers_alive: int
    samplers: int
    gaps: int


class RunStore:
    """One run at a store's server.

    Args:
        link: to the server. Taken over.
        run: the id of the run.

    Attributes:
        stream: the fragments.

    All methods wait for the server, and raise `StoreLost` where that takes too long. All but `found`,
    `opened` and `record` raise `RunGone`.
    """

    def __init__(self, link: Link, run: str):
        self.link, self.run = link, run
        keys = Keys(link, run)
        self._key, self._step = keys.key, keys.step
        self.stream = Stream(link, keys)

    def found(
        self, record: Record, weights: Weights, fragments: int, size: int, first_sampler: int = 0,
        steps: int = 0, again: bool = False,
    ) -> bool:  # fmt: skip
        """Make the run, unless it is there and has not ended; whether this made it.

        A run there whose weights are older than these is what a store had kept of this one: it is made
        anew, unless a trainer of it is alive.

        Args:
            fragments, size: what the stream may hold, in fragments and bytes.
            first_sampler: the smallest number of a sampler, a multiple of the ranges.
            steps: environment steps that the run has taken so far.
            again: by one of its trainers; then such a run is made anew whoever is alive.
        """
        message = wire.pack({"version": weights.version}, weights.arrays)
        happened, _ = self._step(
            scripts.FOUND, json.dumps(record._asdict()), message, weights.version, fragments, size,
            first_sampler, steps, secrets.token_hex(8), record.samplers, int(again),
        )  # fmt: skip
        return happened == "founded"

    def open(self, record: Record, start: str) -> None:
        """Tell, as its first trainer, what the run is from now on, and which start of it this is."""
        self._step(scripts.OPENED, json.dumps(record._asdict()), start)

    def opened(self) -> str | None:
        """Which start of the run was the last; None where there is no run."""
        start = self.link.call(lambda client: client.hget(self._key("counters"), "opened"))
        return None if start is None else start.decode()

    def record(self) -> Record | None:
        """What the run was founded with; None where there is none.

        Raises:
            StoreError: where another version of this project has founded it.
        """
        text = self.link.call(lambda client: client.get(self._key("record")))
        if text is None:
            return None
        try:
            record = Record(**json.loads(text))
            if not isinstance(record.config, dict) or record.samplers < 1:
                raise ValueError("its record is no record of a run")
            return record
        except (ValueError, TypeError, RecursionError) as error:
            raise StoreError(
                f"the run {self.run} was founded by another version of this project ({error}): give all"
                f" machines the same version"
            ) from None

    def weights(self) -> tuple[int, bytes]:
        """The version and the message of the newest weights."""
        version, message, _ = self.newest()
        return version, message

    def newest(self) -> tuple[int, bytes, int]:
        """The same, and the environment steps that they were trained for."""

        def action(client: redis.Redis) -> list[Any]:
            pipe = client.pipeline()  # as one step
            pipe.hmget(self._key("counters"), "version", "steps")
            pipe.get(self._key("weights"))
            return pipe.execute()

        (version, steps), message = self.link.call(action)
        if version is None or message is None:
            raise RunGone
        return int(version), message, int(steps)

    def version(self) -> int:
        """The version of the newest weights."""
        version = self.link.call(lambda client: client.hget(self._key("counters"), "version"))
        if version is None:
            raise RunGone
        return int(version)

    def join(self, ranges: int) -> int:
        """The number of a new sampler, which steps range `number % ranges` of the environments.

        It is a range with the fewest samplers that are alive. No two samplers have one number.

        Args:
            ranges: see `Record.samplers`.

        Raises:
            Ended: where the run has ended.
        """
        return self._step(scripts.JOIN, ranges)[1][0]

    def publish(
        self, trainer: str, token: str, expected: int, weights: Weights, ids: Sequence[bytes],
        steps: int,
    ) -> Published:  # fmt: skip
        """Put weights in the store, and count the fragments that they were made from as learned from.

        Args:
            token: another one for each publication.
            expected: the version that they were made from.
            weights: of the version after it.
            ids: the fragments.
            steps: environment steps in them.
        """
        message = wire.pack({"version": weights.version}, weights.arrays)
        staged = (f"staged:{trainer}", message, _STAGED_S)
        outcome, rest = self._step(
            scripts.PUBLISH, trainer, token, expected, steps, *ids, staged=staged
        )
        return Published(outcome, rest[0], frozenset(rest[1:]))

    def beat(self, kind: str, name: str | int, version: int = 0, wait: float = 0.0) -> Beat:
        """Be alive for another 10 s.

        Args:
            kind: trainer or sampler.
            version: of the weights that a trainer works from.
            wait: the share of its time that a trainer has waited.
        """
        ended, *rest = self._step(scripts.BEAT, kind, name, version, wait)[1]
        return Beat(bool(ended), *rest)

    def leave(self, kind: str, name: str | int) -> None:
        """Be gone at once: another trainer takes over what this one has."""
        self._step(scripts.LEAVE, kind, name)

    def end(self) -> None:
        """End the run for everybody. It expires in an hour."""
        self._step(scripts.END)

    def leave_scores(self, line: str) -> None:
        """Leave what a follower has scored, as JSON, for the run's first trainer.

        Raises:
            Ended: where nobody will take it.
        """
        self._step(scripts.SCORE, line)

    def take_scores(self) -> list[bytes]:
        """Take what followers have left."""
        return self._step(scripts.TAKE_SCORES)[1]

    def status(self) -> Status:
        """The run's counters at this instant."""
        return read_status(*self._step(scripts.STATUS)[1])

    def close(self) -> None:
        self.link.close()


def runs(link: Link) -> list[str]:
    """The ids of all runs at a server."""

    def action(client: redis.Redis) -> list[str]:
        keys = client.scan_iter("dppo:{*}:record", count=1000)
        return sorted(key.decode().split("{")[1].partition("}")[0] for key in keys)

    return link.call(action)
