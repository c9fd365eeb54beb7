"""State values of many rows, computed as gradient steps are: compiled, and on threads."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType

import torch
from torch import Tensor

from learning.batches import equal_parts, in_parts
from learning.compiled_step import Compiled
from model import ActorCritic
from networks.trunks import Past


class StateValues:
    """`ActorCritic.value` for whole batches. It is not to be differentiated.

    Args:
        model: the networks.
        compiler: compiles a method. None: it runs as it is, on some rows at a time.
        threads: on which it runs where it is compiled.

    Attributes:
        graph: what the compiler has made of it; None without one.
    """

    def __init__(
        self,
        model: ActorCritic,
        compiler: Callable[[MethodType], Compiled] | None,
        threads: int,
    ):
        self._model, self._threads = model, threads
        self.graph = None if compiler is None else compiler(self._of)

    @torch.no_grad()
    def __call__(self, obs: Tensor, past: Past | None = None) -> Tensor:
        """The values of rows [B], as of `ActorCritic.value`."""
        if past is not None:
            return self._model.value(obs, past)
        if self.graph is None:
            return in_parts(self._model.value, obs)
        parts = obs.chunk(equal_parts(len(obs), self._threads))
        return torch.cat(self.graph.each([(part,) for part in parts]))

    def _of(self, batch: tuple[Tensor]) -> Tensor:
        return self._model.value(batch[0])
