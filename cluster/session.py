"""The sampler's side of the talk with the learner: bytes in, bytes out, wherever the sampler runs.

    learner                                     sampler
    hello: settings, first, last, index   ->    builds a `Sampler`
                                          <-    answer without episodes: it is ready
    request: fragment, reset, keep        ->    collects
      (weights, environments)             <-    `PROGRESS`, now and then, while it makes steps
                                          <-    answer: episodes (rollout, environments)
    ...                                         an error is an answer too

Messages have the format of `cluster.wire`. Arrays in brackets travel in the message, unless the two
sides share memory: then weights and rollouts lie there, and the message does without them.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from cluster import wire
from cluster.pool import Environments, Lost, Request
from cluster.sampler import Sampler, TimedEpisode, read_episodes, read_rate
from common.errors import UserError
from envs import NotFiniteNumber
from envs.scalar import where_it_failed
from rollout import Rollout, Weights
from settings.config import Config

PROGRESS = b""  # the message of a sampler that has made steps since the one before
_WEIGHTS, _ROLLOUT, _ENVIRONMENTS = "weights/", "rollout/", "environments/"


class Memory(Protocol):
    """Memory that the sampler shares with the learner."""

    def weights(self) -> dict[str, np.ndarray]:
        """The weights that the learner has last written."""
        ...

    def columns(self, sampler: Sampler, first: int, last: int) -> list[Rollout]:
        """The sampler's columns of each rollout slot, which has the environments [first, last)."""
        ...


class Answer(NamedTuple):
    """A sampler's answer to a request. Without arrays where these lie in shared memory."""

    episodes: list[TimedEpisode]
    raw_sps: float  # the rollout's
    arrays: dict[str, np.ndarray]
    environments: Environments | None


class Session:
    """Builds a `Sampler` at the first message, then serves it.

    Args:
        memory: where weights and rollouts lie; None: they travel in the messages.
    """

    def __init__(self, memory: Memory | None = None):
        self._memory = memory
        self._sampler: Sampler | None = None
        self._slots: list[Rollout] = []

    def handle(self, message: bytes | memoryview, weights: bytes | None = None) -> bytes:
        """Answer one message. Exceptions are answers too.

        Args:
            weights: those of a request (`pack_weights`), where they come beside it.
        """
        try:
            meta, arrays = wire.unpack(message)
            if weights is not None:
                arrays |= wire.unpack(weights)[1]
            if self._sampler is None:
                return self._start(meta)
            return self._collect(self._sampler, meta, arrays)
        except Exception as error:
            return wire.pack({"lost": describe(error, self._sampler)})

    @property
    def progress(self) -> object:
        """It changes with every step that the sampler makes."""
        return None if self._sampler is None else self._sampler.progress

    def close(self) -> None:
        """Close the environments."""
        if self._sampler is not None:
            self._sampler.close()

    def _start(self, hello: Mapping[str, Any]) -> bytes:
        import torch

        torch.set_num_threads(1)  # samplers share the cores; more would sum in another order
        sampler = Sampler(Config(**hello["config"]), hello["first"], hello["last"], hello["index"])
        if self._memory is None:
            self._slots = [Rollout.empty(sampler.spec, sampler.last - sampler.first)]
        else:
            self._slots = self._memory.columns(sampler, *hello["envs"])
        self._sampler = sampler
        return wire.pack({"episodes": [], "raw_sps": 0.0})

    def _collect(
        self, sampler: Sampler, request: Mapping[str, Any], arrays: dict[str, np.ndarray]
    ) -> bytes:
        shared = self._memory
        weights = wire.group(_WEIGHTS, arrays) if shared is None else shared.weights()
        sampler.model.set_weights(weights)
        if request["restore"]:
            sampler.restore(wire.group(_ENVIRONMENTS, arrays))
        out = self._slots[request["fragment"] % len(self._slots)]
        episodes = sampler.collect(request["fragment"], request["reset"], out, request["attempt"])
        answer = wire.prefixed(_ROLLOUT, out.arrays()) if shared is None else {}
        if request["keep"]:
            answer |= wire.prefixed(_ENVIRONMENTS, sampler.state())
        return wire.pack({"episodes": episodes, "raw_sps": out.raw_sps}, answer)


def describe(error: Exception, sampler: Sampler | None) -> dict[str, Any]:
    """The arguments of `Lost` for an error that a sampler's environments or policy raised."""
    told: dict[str, Any] = {"reason": str(error), "cause": f"{type(error).__name__}: {error}"}
    if isinstance(error, UserError):
        not_finite = isinstance(error, NotFiniteNumber)
        return told | {"not_finite": not_finite, "final": not not_finite}
    text = traceback.format_exc()
    if sampler is None:
        return told | {"reason": text}
    (fragment, step), env = sampler.progress, where_it_failed(error)
    envs = f"s {sampler.first} to {sampler.last - 1}" if env is None else f" {sampler.first + env}"
    place = f"at step {step} of fragment {fragment}, in environment{envs}"
    return told | {"reason": f"{place}:\n{text}", "where": step}


def pack_hello(config: Config, first: int, last: int, index: int, **more: Any) -> bytes:
    """The first message: the settings, and which environments [first, last) the sampler steps.

    Args:
        more: for whoever stands between learner and session.
    """
    hello = {"config": config.to_dict(), "first": first, "last": last, "index": index}
    return wire.pack(hello | more)


def pack_request(request: Request, weights: Mapping[str, np.ndarray]) -> bytes:
    """A request for a fragment, with the weights where these are not in shared memory."""
    restore = request.restore
    meta = {
        "fragment": request.fragment,
        "reset": request.reset,
        "keep": request.keep,
        "restore": restore is not None,
        "attempt": request.attempt,
    }
    arrays = wire.prefixed(_WEIGHTS, weights) | wire.prefixed(_ENVIRONMENTS, restore or {})
    return wire.pack(meta, arrays)


def pack_weights(weights: Weights) -> bytes:
    """Weights for themselves, for requests that are packed without them."""
    return wire.pack({"version": weights.version}, wire.prefixed(_WEIGHTS, weights.arrays))


def read_answer(message: bytes | memoryview) -> Answer:
    """What a sampler answered.

    Raises:
        Lost: where it answered with an error, or with something else than an answer.
    """
    try:
        meta, arrays = wire.unpack(message)
        if "lost" in meta:
            lost = Lost(**meta["lost"])
        else:
            lost = None
            episodes, raw_sps = read_episodes(meta.get("episodes")), read_rate(meta.get("raw_sps"))
    except (wire.WireError, TypeError, ValueError) as error:
        raise Lost(f"it gave an answer that cannot be read: {error}") from None
    if lost is not None:
        raise lost
    environments = wire.group(_ENVIRONMENTS, arrays) or None
    return Answer(episodes, raw_sps, wire.group(_ROLLOUT, arrays), environments)
