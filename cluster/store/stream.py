"""The fragments of a run in a store: samplers append them, and each trainer takes some of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import redis
from redis.exceptions import ResponseError

from cluster.store import scripts
from cluster.store.address import Link
from cluster.store.keys import Keys, RunGone

_NAME = b"name"  # the one field of an entry of the stream
_BLOCK_MS = 500  # for new fragments
# how the errors begin of a stream that was not there, or is gone now
_NO_STREAM = ("NOGROUP", "UNBLOCKED")


class Stream:
    """The fragments of a `RunStore`, whose errors all methods raise.

    Args:
        link: to the server.
        keys: of the run.
    """

    def __init__(self, link: Link, keys: Keys):
        self._link, self._key, self._step = link, keys.key, keys.step

    def has_room(self, size: int) -> int | None:
        """The version of the newest weights; None where so many bytes would not be taken now.

        Raises:
            Ended: where the run has ended.
        """
        happened, rest = self._step(scripts.ROOM, size)
        return rest[0] if happened == "room" else None

    def append(self, sampler: int, number: int, message: bytes) -> int | None:
        """Append a sampler's fragment; the version of the newest weights, or None where it is full.

        Args:
            number: of the fragment among the sampler's, from 0.

        Raises:
            Ended: where the run has ended.
        """
        if self.has_room(len(message)) is None:
            return None
        staged = (f"fragment:{sampler}:{number}", message, scripts.DAY_S)
        happened, rest = self._step(scripts.APPEND, sampler, number, staged=staged)
        return rest[0] if happened == "appended" else None

    def read(self, trainer: str, most: int) -> tuple[int, list[tuple[bytes, bytes]]]:
        """The version of the newest weights, and new fragments, by their ids; waits half a second.

        They are this trainer's from now on, also where the answer is lost: see `claim`.
        """

        def action(client: redis.Redis) -> tuple[bytes | None, list[tuple[bytes, bytes]]]:
            pipe = client.pipeline(transaction=False)
            pipe.xreadgroup(
                scripts.GROUP, trainer, {self._key("stream"): ">"}, most, block=_BLOCK_MS
            )
            pipe.hget(self._key("counters"), "version")
            answer, version = pipe.execute(raise_on_error=False)
            if isinstance(answer, ResponseError) and str(answer).startswith(_NO_STREAM):
                return None, []
            if isinstance(answer, Exception):
                raise answer
            return version, self._messages(client, answer[0][1] if answer else [])

        version, messages = self._link.call(action)
        if version is None:
            raise RunGone
        return int(version), messages

    def _messages(self, client: redis.Redis, entries: list[Any]) -> list[tuple[bytes, bytes]]:
        """The ids and the messages of entries of the stream; b"" where there is none."""
        names = [fields.get(_NAME, b"") for _, fields in entries]
        keys = [self._key("fragment:").encode() + name for name in names]
        messages: list[Any] = client.mget(keys) if keys else []
        return [(entry[0], m or b"") for entry, m in zip(entries, messages, strict=True)]

    def claim(self, trainer: str) -> set[bytes]:
        """Take over the fragments of trainers that are gone; the ids of all that this one has now."""
        return set(self._step(scripts.CLAIM, trainer)[1])

    def fetch(self, ids: Collection[bytes]) -> list[tuple[bytes, bytes]]:
        """Fragments by their ids; those that are not in the stream any more are b""."""

        def action(client: redis.Redis) -> list[tuple[bytes, bytes]]:
            pipe = client.pipeline(transaction=False)
            for id_ in ids:
                pipe.xrange(self._key("stream"), id_, id_)
            there = [entries[0] for entries in pipe.execute() if entries]
            return self._messages(client, there)

        found = dict(self._link.call(action))
        return [(id_, found.get(id_, b"")) for id_ in ids]

    def drop(self, trainer: str, counter: str, ids: Sequence[bytes], steps: int = 0) -> None:
        """Take fragments of this trainer's out of the stream.

        Args:
            counter: `dropped:REASON` or `refused:REASON`.
            steps: environment steps in them, where they are to be counted.
        """
        self._step(scripts.DROP, trainer, counter, steps, *ids)
