"""The sampler's side of the talk with the learner: bytes in, bytes out, wherever the sampler runs.

    learner                                     sampler
    hello: settings, first, last, index   ->    builds a `Sampler`
                                          <-    answer without episodes: it is ready
    request: fragment, reset, keep        ->    collects
      (weights, environments)             <-    answer: episodes (rollout, environments)
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
from cluster.pool import Environments, Request, SamplerError
from cluster.sampler import Sampler, TimedEpisode
from envs import BadEnvironment
from rollout import Rollout
from settings.config import Config

_WEIGHTS, _ROLLOUT, _ENVIRONMENTS = "weights/", "rollout/", "environments/"


class Memory(Protocol):
    """Memory that the sampler shares with the learner."""

    def weights(self) -> dict[str, np.ndarray]:
        """The weights that the learner has last written."""
        ...

    def columns(self, sampler: Sampler) -> list[Rollout]:
        """The sampler's columns of each rollout slot."""
        ...


class Answer(NamedTuple):
    """A sampler's answer to a request. Without arrays where these lie in shared memory."""

    episodes: list[TimedEpisode]
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

    def handle(self, message: bytes) -> bytes:
        """Answer one message. Exceptions are answers too."""
        try:
            meta, arrays = wire.unpack(message)
            if self._sampler is None:
                return self._start(meta)
            return self._collect(self._sampler, meta, arrays)
        except BadEnvironment as error:
            return wire.pack({"error": str(error)})
        except Exception:
            return wire.pack({"error": traceback.format_exc()})

    def _start(self, hello: Mapping[str, Any]) -> bytes:
        import torch

        torch.set_num_threads(1)  # samplers share the cores; more would sum in another order
        sampler = Sampler(Config(**hello["config"]), hello["first"], hello["last"], hello["index"])
        if self._memory is None:
            self._slots = [Rollout.empty(sampler.spec, sampler.last - sampler.first)]
        else:
            self._slots = self._memory.columns(sampler)
        self._sampler = sampler
        return wire.pack({"episodes": []})

    def _collect(
        self, sampler: Sampler, request: Mapping[str, Any], arrays: dict[str, np.ndarray]
    ) -> bytes:
        shared = self._memory
        weights = wire.group(_WEIGHTS, arrays) if shared is None else shared.weights()
        sampler.model.set_weights(weights)
        if request["restore"]:
            sampler.restore(wire.group(_ENVIRONMENTS, arrays))
        out = self._slots[request["fragment"] % len(self._slots)]
        episodes = sampler.collect(request["fragment"], request["reset"], out)
        answer = wire.prefixed(_ROLLOUT, out.arrays()) if shared is None else {}
        if request["keep"]:
            answer |= wire.prefixed(_ENVIRONMENTS, sampler.state())
        return wire.pack({"episodes": episodes}, answer)


def pack_hello(config: Config, first: int, last: int, index: int, **more: Any) -> bytes:
    """The first message: the settings, and which environments [first, last) the sampler steps.

    Args:
        more: for whoever stands between learner and session.
    """
    hello = {"config": config.to_dict(), "first": first, "last": last, "index": index}
    return wire.pack(hello | more)


def pack_request(request: Request, weights: Mapping[str, np.ndarray]) -> bytes:
    """A request for a fragment, with the weights where these are not in shared memory."""
    meta = {"fragment": request.fragment, "reset": request.reset, "keep": request.keep}
    restore = request.restore
    arrays = wire.prefixed(_WEIGHTS, weights) | wire.prefixed(_ENVIRONMENTS, restore or {})
    return wire.pack(meta | {"restore": restore is not None}, arrays)


def read_answer(message: bytes, sampler: str) -> Answer:
    """What a sampler answered.

    Args:
        sampler: its name, for the error.

    Raises:
        SamplerError: where it answered with an error, or with something else than an answer.
    """
    try:
        meta, arrays = wire.unpack(message)
    except wire.WireError as error:
        raise SamplerError(f"{sampler} gave an answer that cannot be read: {error}") from None
    if "error" in meta:
        raise SamplerError(f"{sampler}: {meta['error']}")
    episodes = [TimedEpisode(*row) for row in meta["episodes"]]
    return Answer(episodes, wire.group(_ROLLOUT, arrays), wire.group(_ENVIRONMENTS, arrays) or None)
