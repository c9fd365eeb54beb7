"""The keys of one run at a store's server, and the scripts that are executed over them."""

from __future__ import annotations

import hashlib
from typing import Any

import redis
from redis.exceptions import NoScriptError

from cluster.store import scripts
from cluster.store.address import Link


class RunGone(Exception):
    """The store does not have the run: it came back empty, or the run has expired."""


class Ended(Exception):
    """The run has ended.

    Args:
        version: of its weights.
    """

    def __init__(self, version: int):
        super().__init__(version)
        self.version = version


class Keys:
    """All keys of a run begin with `dppo:{RUN_ID}:`, and nothing else is touched."""

    def __init__(self, link: Link, run: str):
        self._link = link
        self._prefix = f"dppo:{{{run}}}:"  # in braces: a cluster keeps all keys of a run together
        self._keys = [self.key(name) for name in scripts.KEYS]

    def key(self, name: str) -> str:
        return self._prefix + name

    def step(
        self, script: str, *arguments: Any, staged: tuple[str, bytes, int] | None = None
    ) -> tuple[str, list[Any]]:
        """Execute a script; what happened, and the rest of its answer.

        Args:
            staged: a key, a message that is set there before, and how long it is kept if the script
                leaves it there [s].

        Raises:
            RunGone: where the run is not there.
            Ended: where it has ended, and the step is one of a run that goes on.
            StoreLost, StoreError: see `Link.call`.
        """
        digest = hashlib.sha1(script.encode()).hexdigest()  # as Redis names scripts
        words: list[Any] = [len(self._keys), *self._keys, *arguments]

        def action(client: redis.Redis) -> list[Any]:
            pipe = client.pipeline(transaction=False)
            if staged is not None:
                name, message, seconds = staged
                pipe.set(self.key(name), message, ex=seconds)
            pipe.evalsha(digest, *words)
            *others, answer = pipe.execute(raise_on_error=False)
            if isinstance(answer, NoScriptError):
                answer = client.eval(script, *words)
            for result in (*others, answer):
                if isinstance(result, Exception):
                    raise result
            return answer

        happened, *rest = self._link.call(action)
        if happened == b"gone":
            raise RunGone
        if happened == b"ended":
            raise Ended(rest[0])
        return happened.decode(), rest
