"""One sampler in the learner's own process, for debugging: `receive` does all the work."""

from __future__ import annotations

import torch

from cluster.engines.base import Engine, Part
from cluster.pool import Lost, Request
from cluster.sampler import Sampler
from cluster.session import describe
from rollout import Rollout, RolloutSpec
from settings.config import Config


class InlineEngine(Engine):
    """See `Engine`."""

    name = kind = "inline"
    works_aside = False

    def __init__(self, config: Config, spec: RolloutSpec, envs: tuple[int, int] | None = None):
        super().__init__(config, spec, samplers=1, envs=envs)
        self.slots: list[Rollout] = [Rollout.empty(spec, self.width) for _ in range(2)]
        self._sampler = Sampler(config, *self.envs)

    def _send(self, index: int, request: Request) -> None:
        assert self._weights is not None, "no weights were published"
        self._sampler.model.set_weights(self._weights.arrays)

    def answered(self, timeout: float | None) -> list[int]:
        return list(self._requests)

    def receive(self, index: int) -> Part:
        request, sampler = self._requests.pop(index), self._sampler
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in every other engine: more would sum in another order
        try:
            if request.restore is not None:
                sampler.restore(request.restore)
            out = self.slots[request.fragment % 2]
            episodes = sampler.collect(request.fragment, request.reset, out, request.attempt)
            return Part(out, episodes, sampler.state() if request.keep else None)
        except Exception as error:  # an environment may raise anything
            raise Lost(**describe(error, sampler)) from error
        finally:
            torch.set_num_threads(threads)

    def _start(self, index: int) -> None:
        self._sampler = Sampler(self.config, *self.envs)

    def start(self, index: int) -> None:
        super().start(index)
        self.starting.clear()  # it is ready at once

    def _end(self, index: int) -> None:
        self._sampler.close()

    def wake(self) -> None:
        pass  # `answered` never waits

    def close(self) -> None:
        self._sampler.close()
