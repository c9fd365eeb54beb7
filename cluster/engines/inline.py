"""One sampler in the learner's own process, for debugging: `receive` does all the work."""

from __future__ import annotations

import torch

from cluster.engines.base import Engine, Part
from cluster.pool import Request, SamplerError
from cluster.sampler import Sampler
from envs import BadEnvironment
from rollout import Rollout, RolloutSpec
from settings.config import Config


class InlineEngine(Engine):
    """See `Engine`."""

    name = "inline"

    def __init__(self, config: Config, spec: RolloutSpec):
        super().__init__(config, spec, samplers=1)
        self.slots: list[Rollout] = [Rollout.empty(spec, config.env_num) for _ in range(2)]
        self._sampler = Sampler(config, 0, config.env_num)

    @property
    def samplers_alive(self) -> int:
        return 1

    def _send(self, index: int, request: Request) -> None:
        assert self._weights is not None, "no weights were published"
        self._sampler.model.set_weights(self._weights.arrays)

    def answered(self, timeout: float | None) -> list[int]:
        return list(self._requests)

    def _receive(self, index: int, request: Request) -> Part:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in every other engine: more would sum in another order
        try:
            if request.restore is not None:
                self._sampler.restore(request.restore)
            out = self.slots[request.fragment % 2]
            episodes = self._sampler.collect(request.fragment, request.reset, out)
            return Part(out, episodes, self._sampler.state() if request.keep else None)
        except BadEnvironment as error:
            raise SamplerError(f"sampler 0: {error}") from None
        finally:
            torch.set_num_threads(threads)

    def _restart(self, index: int) -> None:
        self._sampler.close()
        self._sampler = Sampler(self.config, 0, self.config.env_num)

    def wake(self) -> None:
        pass  # `answered` never waits

    def close(self) -> None:
        self._sampler.close()
