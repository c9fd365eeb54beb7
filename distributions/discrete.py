"""Distributions of discrete actions, with or without a mask of what is legal.

A mask is applied to the logits once, as minus infinity where an action is illegal (`masked`), so
that everything else is a function of the parameters alone. Where all values of a sub-action are
illegal it has no effect: its log-probability and its entropy are 0.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

_BELOW_ONE = 1 - 2**-22


def masked(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits [..., P] with minus infinity where the mask [..., P] is False."""
    return torch.where(mask, logits, -torch.inf)


def _inverse_cdf(logits: Tensor, noise: Tensor) -> Tensor:
    """The value at `noise` in [0, 1) of the cumulative distribution: [..., n], [...] -> [...]."""
    cumulative = torch.softmax(logits, -1).cumsum(-1)
    # the total is not quite 1; a little below it lies a value that is legal
    level = noise.unsqueeze(-1) * (cumulative[..., -1:] * _BELOW_ONE)
    return (level >= cumulative[..., :-1]).sum(-1)


class Categorical:
    """A discrete action by its logits."""

    noise: Literal["uniform"] = "uniform"
    noise_shape = ()
    action_shape = ()
    action_dtype = "int64"
    sub_actions = 1

    def __init__(self, space: spaces.Discrete):
        self.params = self.mask_size = int(space.n)

    def choose(
        self, params: Tensor, mask: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """An action under a mask: the action, the masked parameters, and the mask to store."""
        params = masked(params, mask)
        return (self.mode(params) if noise is None else self.sample(params, noise)), params, mask

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        return _inverse_cdf(params, noise)

    def mode(self, params: Tensor) -> Tensor:
        return params.argmax(-1)

    def sub_log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        return torch.log_softmax(params, -1).gather(-1, action.unsqueeze(-1))

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        return self.sub_log_prob(params, action).squeeze(-1)

    def entropy(self, params: Tensor) -> Tensor:
        log_probs = torch.log_softmax(params, -1)
        return -(log_probs.exp() * _finite(log_probs)).sum(-1)

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        log_probs, others = torch.log_softmax(params, -1), torch.log_softmax(other, -1)
        return (log_probs.exp() * (_finite(log_probs) - _finite(others))).sum(-1)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return action


def _finite(log_probs: Tensor) -> Tensor:
    """Illegal values, whose probability is 0, count nothing: 0 instead of minus infinity."""
    return torch.where(log_probs == -torch.inf, 0.0, log_probs)


class MultiDiscrete:
    """K independent discrete sub-actions. `params` are their logits one after the other [..., P].

    Args:
        components: sizes of the sub-actions.
    """

    noise: Literal["uniform"] = "uniform"

    def __init__(self, components: tuple[int, ...]):
        self.components = components
        self.edges = np.cumsum([0, *components]).tolist()
        self.params = self.mask_size = self.edges[-1]
        self.sub_actions = len(components)
        self.action_shape = self.noise_shape = (self.sub_actions,)
        self.action_dtype = "uint8" if max(components) <= 256 else "int32"

    def choose(self, params: Any, mask: Tensor, noise: Tensor | None) -> tuple[Tensor, Any, Tensor]:
        """An action under a mask: the action, the masked parameters, and the mask to store."""
        params = masked(params, mask)
        return (self.mode(params) if noise is None else self.sample(params, noise)), params, mask

    # --- between the shapes of callers and rows [U, ...], of which each is one set of components
    def _rows(self, params: Any) -> Tensor:
        return params.reshape(-1, self.params)

    def _gather(self, values: Tensor, params: Any) -> Tensor:
        return values.reshape(-1, self.sub_actions)

    def _spread(self, values: Tensor, params: Any) -> Tensor:
        return values.reshape(*params.shape[:-1], self.sub_actions)

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """Each component's logits; where none is legal, all equal."""
        parts = []
        for first, last in pairwise(self.edges):
            part = rows[:, first:last]
            nothing = (part == -torch.inf).all(-1, keepdim=True)
            parts.append(torch.where(nothing, 0.0, part))
        return parts

    def _is_legal(self, rows: Tensor) -> Tensor:
        """[U, components]: whether a component has any legal value, and so an effect."""
        legal = rows > -torch.inf
        return torch.stack([legal[:, a:b].any(-1) for a, b in pairwise(self.edges)], -1)

    def sample(self, params: Any, noise: Tensor) -> Tensor:
        rows, noise = self._rows(params), self._gather(noise, params)
        values = [_inverse_cdf(part, noise[:, k]) for k, part in enumerate(self._parts(rows))]
        return self._as_action(values, rows, params)

    def mode(self, params: Any) -> Tensor:
        rows = self._rows(params)
        return self._as_action([part.argmax(-1) for part in self._parts(rows)], rows, params)

    def _as_action(self, values: list[Tensor], rows: Tensor, params: Any) -> Tensor:
        action = torch.where(self._is_legal(rows), torch.stack(values, -1), 0)
        return self._spread(action, params).to(getattr(torch, self.action_dtype))

    def sub_log_prob(self, params: Any, action: Tensor) -> Tensor:
        rows, values = self._rows(params), self._gather(action, params).long()
        parts = [
            torch.log_softmax(part, -1).gather(-1, values[:, k : k + 1])
            for k, part in enumerate(self._parts(rows))
        ]
        log_prob = torch.where(self._is_legal(rows), torch.cat(parts, -1), 0.0)
        return self._spread(log_prob, params)

    def log_prob(self, params: Any, action: Tensor) -> Tensor:
        return self.sub_log_prob(params, action).sum(-1)

    def entropy(self, params: Any) -> Tensor:
        rows, parts = self._rows(params), []
        for part in self._parts(rows):
            log_probs = torch.log_softmax(part, -1)
            parts.append(-(log_probs.exp() * _finite(log_probs)).sum(-1))
        entropy = torch.where(self._is_legal(rows), torch.stack(parts, -1), 0.0)
        return self._spread(entropy, params).sum(-1)

    def kl(self, params: Any, other: Any) -> Tensor:
        rows, others, parts = self._rows(params), self._rows(other), []
        for one, two in zip(self._parts(rows), self._parts(others), strict=True):
            log_one, log_two = torch.log_softmax(one, -1), torch.log_softmax(two, -1)
            parts.append((log_one.exp() * (_finite(log_one) - _finite(log_two))).sum(-1))
        kl = torch.where(self._is_legal(rows), torch.stack(parts, -1), 0.0)
        return self._spread(kl, params).sum(-1)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return action


class CellLogits(NamedTuple):
    """Logits of those cells of B grids that may act; in a large grid they are few."""

    logits: Tensor  # [U, S], minus infinity where illegal
    acting: Tensor  # [U], row * cells + cell
    rows: int  # B


class GridMultiDiscrete(MultiDiscrete):
    """Every cell of a grid has the same components: K = cells * len(components) sub-actions.

    `params` are `CellLogits`, so that cells that may not act cost nothing.

    Args:
        components: sizes of one cell's sub-actions.
        cells: how many cells there are.
    """

    def __init__(self, components: tuple[int, ...], cells: int):
        super().__init__(components)
        self.cells = cells
        self.params = self.mask_size = cells * self.edges[-1]
        self.sub_actions = cells * len(components)
        self.action_shape = self.noise_shape = (self.sub_actions,)

    def choose(
        self, params: CellLogits, mask: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, CellLogits, Tensor]:
        """As of `MultiDiscrete`; the parameters are masked already."""
        return (self.mode(params) if noise is None else self.sample(params, noise)), params, mask

    def _rows(self, params: CellLogits) -> Tensor:
        return params.logits

    def _gather(self, values: Tensor, params: CellLogits) -> Tensor:
        return values.reshape(-1, len(self.components))[params.acting]

    def _spread(self, values: Tensor, params: CellLogits) -> Tensor:
        every = values.new_zeros(params.rows * self.cells, len(self.components))
        return every.index_copy(0, params.acting, values).view(params.rows, self.sub_actions)


class UnitSelection(MultiDiscrete):
    """One cell, and then the action of the unit there: sub-actions (cell, *components).

    The mask of the components is that of the cell that was chosen, so the choice is autoregressive
    (Huang et al. 2021, "unit action simulation"). What is stored is the mask of the cells and the
    one of the chosen cell, under which the joint log-probability is exact.

    Args:
        cells: how many cells there are.
        components: sizes of the sub-actions of a unit.
    """

    def __init__(self, cells: int, components: tuple[int, ...]):
        super().__init__((cells, *components))
        self.choices = self.params - cells

    def choose(
        self, params: Tensor, mask: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As of `MultiDiscrete`, under the masks [N, cells * choices] of all cells' units."""
        cells = self.components[0]
        units = mask.view(len(mask), cells, self.choices)
        may_act = units.any(-1)
        where = torch.where(may_act.any(-1, keepdim=True), masked(params[:, :cells], may_act), 0.0)
        cell = where.argmax(-1) if noise is None else _inverse_cdf(where, noise[:, 0])
        unit = units[torch.arange(len(mask)), cell]
        stored = torch.cat([may_act, unit], -1)
        params = masked(params, stored)
        action = self.mode(params) if noise is None else self.sample(params, noise)
        # drawn again above from the same noise, and so the same
        return action, params, stored
