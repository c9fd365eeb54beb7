"""Distributions of discrete actions, with or without a mask of the legal values.

A mask is applied to the logits once, as minus infinity where a value is illegal, so that everything
else is a function of the parameters alone. Where all values of a sub-action are illegal, as in an
environment that waits for its reset, the sub-action has no effect: it is 0, and its log-probability
and its entropy are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from distributions.base import Chosen, Distribution
from distributions.compiled import sample_categorical

_BELOW_ONE = 1 - 2**-22


def masked(logits: Tensor, mask: Tensor, edges: list[int]) -> Tensor:
    """Logits [..., P] with minus infinity where the mask [..., P] is False.

    Where a sub-action has no legal value its first one stays, as the only choice: probability 1, so
    its log-probability, its entropy and their gradients are 0.

    Args:
        edges: sub-action k has the logits from edges[k] up to edges[k + 1].
    """
    parts = []
    for first, last in pairwise(edges):
        legal = mask[..., first:last]
        parts += [legal[..., :1] | ~legal.any(-1, keepdim=True), legal[..., 1:]]
    return torch.where(torch.cat(parts, -1), logits, -torch.inf)


def _inverse_cdf(logits: Tensor, noise: Tensor) -> Tensor:
    """The value at `noise` in [0, 1) of the cumulative distribution: [..., n], [...] -> [...]."""
    cumulative = torch.softmax(logits, -1).cumsum(-1)
    # the total is not quite 1; a little below it lies a value that is legal
    level = noise.unsqueeze(-1) * (cumulative[..., -1:] * _BELOW_ONE)
    return (level >= cumulative[..., :-1]).sum(-1)


class Categorical(Distribution):
    """A discrete action by its logits."""

    noise = "uniform"
    noise_shape = ()
    action_shape = ()
    action_dtype = "int64"
    sub_actions = 1

    def __init__(self, space: spaces.Discrete):
        self.outputs = self.mask_size = int(space.n)

    def masked(self, params: Tensor, mask: Tensor | None) -> Tensor:
        return params if mask is None else masked(params, mask, [0, self.outputs])

    def sample_compiled(
        self, output: np.ndarray, own: Tensor | None, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return sample_categorical(output, noise)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        return _inverse_cdf(params, noise)

    def mode(self, params: Tensor) -> Tensor:
        return params.argmax(-1)

    def sub_log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        return torch.log_softmax(params, -1).gather(-1, action.unsqueeze(-1))

    def entropy(self, params: Tensor) -> Tensor:
        log_probs = torch.log_softmax(params, -1)
        return -(log_probs.exp() * _finite(log_probs)).sum(-1)


def _finite(log_probs: Tensor) -> Tensor:
    """0 instead of minus infinity: illegal values have probability 0 and must not count."""
    return torch.where(log_probs == -torch.inf, 0.0, log_probs)


class MultiDiscrete(Distribution):
    """K independent discrete sub-actions. `params` are their logits one after the other [..., P].

    Args:
        components: sizes of the sub-actions.
    """

    noise = "uniform"

    def __init__(self, components: tuple[int, ...]):
        self.components = components
        self.edges = np.cumsum([0, *components]).tolist()
        self.outputs = self.mask_size = self.edges[-1]
        self.sub_actions = len(components)
        self.action_shape = self.noise_shape = (self.sub_actions,)
        self.action_dtype = "uint8" if max(components) <= 256 else "int32"

    def masked(self, params: Any, mask: Tensor | None) -> Any:
        return params if mask is None else masked(params, mask, self.edges)

    # --- between the callers' shapes and rows [U, ...], each row with one set of components
    def _rows(self, params: Any) -> Tensor:
        return params.reshape(-1, self.outputs)

    def _gather(self, values: Tensor, params: Any) -> Tensor:
        return values.reshape(-1, self.sub_actions)

    def _spread(self, values: Tensor, params: Any) -> Tensor:
        return values.reshape(*params.shape[:-1], self.sub_actions)

    def _parts(self, params: Any) -> list[Tensor]:
        """Each component's logits [U, size]."""
        rows = self._rows(params)
        return [rows[:, first:last] for first, last in pairwise(self.edges)]

    def sample(self, params: Any, noise: Tensor) -> Tensor:
        noise = self._gather(noise, params)
        values = [_inverse_cdf(part, noise[:, k]) for k, part in enumerate(self._parts(params))]
        return self._as_action(values, params)

    def mode(self, params: Any) -> Tensor:
        return self._as_action([part.argmax(-1) for part in self._parts(params)], params)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return action.astype(np.int64)  # as gymnasium has it: 0 - 1 is not 255

    def to_env_tensor(self, action: Tensor) -> Tensor:
        return action.long()

    def _as_action(self, values: list[Tensor], params: Any) -> Tensor:
        return self._spread(torch.stack(values, -1), params).to(getattr(torch, self.action_dtype))

    def sub_log_prob(self, params: Any, action: Tensor) -> Tensor:
        values = self._gather(action, params).long()
        parts = [
            torch.log_softmax(part, -1).gather(-1, values[:, k : k + 1])
            for k, part in enumerate(self._parts(params))
        ]
        return self._spread(torch.cat(parts, -1), params)

    def entropy(self, params: Any) -> Tensor:
        parts = []
        for part in self._parts(params):
            log_probs = torch.log_softmax(part, -1)
            parts.append(-(log_probs.exp() * _finite(log_probs)).sum(-1))
        return self._spread(torch.stack(parts, -1), params).sum(-1)


class CellLogits(NamedTuple):
    """Logits of the cells of B grids that may act; in a large grid they are few."""

    logits: Tensor  # [U, S], minus infinity where illegal
    acting: Tensor  # [U], row * cells + cell
    rows: int  # B


class GridMultiDiscrete(MultiDiscrete):
    """Every cell of a grid has the same components: K = cells * len(components) sub-actions.

    The policy head's output is a function from acting cells [U] to their logits [U, S]. With a mask
    [B, cells * S] it becomes the parameters, `CellLogits`, so that cells that may not act cost
    nothing.

    Args:
        components: sizes of one cell's sub-actions, S in all.
        cells: how many cells there are.
    """

    def __init__(self, components: tuple[int, ...], cells: int):
        super().__init__(components)
        self.cells = cells
        self.mask_size = cells * self.outputs
        self.sub_actions = cells * len(components)
        self.action_shape = self.noise_shape = (self.sub_actions,)

    def masked(self, params: Callable[[Tensor], Tensor], mask: Tensor | None) -> CellLogits:
        assert mask is not None, "a policy over a grid needs a mask"
        legal = mask.view(-1, self.outputs)
        acting = legal.any(-1).nonzero().squeeze(-1)
        return CellLogits(masked(params(acting), legal[acting], self.edges), acting, len(mask))

    def _rows(self, params: CellLogits) -> Tensor:
        return params.logits

    def _gather(self, values: Tensor, params: CellLogits) -> Tensor:
        return values.reshape(-1, len(self.components))[params.acting]

    def _spread(self, values: Tensor, params: CellLogits) -> Tensor:
        every = values.new_zeros(params.rows * self.cells, len(self.components))
        return every.index_copy(0, params.acting, values).view(params.rows, self.sub_actions)


class UnitSelection(MultiDiscrete):
    """One cell, and then the action of the unit there: sub-actions (cell, *components).

    The mask of the components is that of the chosen cell, so the choice is autoregressive (Huang et
    al. 2021, "unit action simulation"). The stored mask is the mask of the cells and the one of the
    chosen cell; under it the joint log-probability is exact.

    Args:
        cells: how many cells there are.
        components: sizes of the sub-actions of a unit.
    """

    def __init__(self, cells: int, components: tuple[int, ...]):
        super().__init__((cells, *components))
        self.choices = self.outputs - cells

    @property
    def env_mask_size(self) -> int:
        return self.components[0] * self.choices

    def choose(self, params: Tensor, mask: Tensor | None, noise: Tensor | None) -> Chosen:
        """As `Distribution.choose`, under the masks [N, cells * choices] of all cells' units."""
        assert mask is not None, "the selection of a unit needs a mask"
        cells = self.components[0]
        units = mask.view(len(mask), cells, self.choices)
        may_act = units.any(-1)
        where = masked(params[:, :cells], may_act, [0, cells])
        cell = where.argmax(-1) if noise is None else _inverse_cdf(where, noise[:, 0])
        # drawing the cell again from the same noise, as `choose` does, gives the same cell
        stored = torch.cat([may_act, units[torch.arange(len(mask)), cell]], -1)
        return super().choose(params, stored, noise)
