"""The policy's distributions: pure functions of what the policy head puts out.

Shapes: `output` [..., outputs] is the policy head's output, `params` are the distribution's
parameters, for most distributions a tensor [..., P], `action` [..., K] holds K independent
sub-actions (Categorical: K = 1, without the axis). `sub_log_prob` is [..., K]; log-probabilities
and entropies of the joint action are sums over K: [...].

Sampling is a pure function of noise that is drawn elsewhere, so that the same noise gives the same
action wherever it is computed. For the same reason every operation gives the same bits for a row
whatever other rows stand beside it (softplus is spelled out: torch's own does not).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from common.errors import UserError


class WrongDistribution(UserError):
    """A distribution that does not fit the action space."""


class Chosen(NamedTuple):
    """Actions of N environments, and all that the learner needs to weigh them again."""

    action: Tensor  # [N, ...]
    params: Any  # under the mask
    mask: Tensor | None  # [N, A] bool, the mask to store


class Distribution:
    """A policy's distribution. Subclasses set the attributes and give the functions below `masked`.

    Attributes:
        noise: which noise `sample` consumes: standard normal, or uniform in [0, 1).
        noise_shape: of one action.
        action_shape, action_dtype: of one stored action.
        sub_actions: K.
        outputs: numbers that the policy head puts out for one action (or for each cell).
        cells: of a grid, where every cell has the same sub-actions; 0 for all others.
        mask_size: A, entries of the mask that is stored with an action, where there is one.
        own: initial values of learned parameters that do not depend on the observation, or None.
    """

    noise: Literal["normal", "uniform"]
    noise_shape: tuple[int, ...]
    action_shape: tuple[int, ...]
    action_dtype: str
    sub_actions: int
    outputs: int
    cells: int = 0
    mask_size: int = 0
    own: Tensor | None = None

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace each tensor by what a function makes of it, such as a copy on another device."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, function(value))

    @property
    def env_mask_size(self) -> int:
        """Entries of the mask that the environment gives for an action, where it gives one."""
        return self.mask_size

    def shaped(self, output: Tensor, own: Tensor | None) -> Any:
        """The parameters, from the policy head's output and the current values of `own`."""
        return output

    def masked(self, params: Any, mask: Tensor | None) -> Any:
        """The parameters under a stored mask [..., A] of legal actions."""
        return params

    def choose(self, params: Any, mask: Tensor | None, noise: Tensor | None) -> Chosen:
        """An action under the environment's mask; the greedy one where there is no noise."""
        params = self.masked(params, mask)
        action = self.mode(params) if noise is None else self.sample(params, noise)
        return Chosen(action, params, mask)

    def sample_compiled(
        self, output: np.ndarray, own: Tensor | None, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """`shaped` and `sample` on the CPU in one compiled function; None where there is none.

        Returns:
            actions [N, ...], their log-probabilities [N, K], and the sums of these [N].
        """
        return None

    def sample(self, params: Any, noise: Tensor) -> Tensor:
        raise NotImplementedError

    def mode(self, params: Any) -> Tensor:
        """The greedy action."""
        raise NotImplementedError

    def sub_log_prob(self, params: Any, action: Tensor) -> Tensor:
        raise NotImplementedError

    def log_prob(self, params: Any, action: Tensor) -> Tensor:
        return self.sub_log_prob(params, action).sum(-1)

    def entropy(self, params: Any) -> Tensor:
        raise NotImplementedError

    def to_env(self, action: np.ndarray) -> np.ndarray:
        """The action that the environment is given, inside its bounds."""
        return action

    def to_env_tensor(self, action: Tensor) -> Tensor:
        """`to_env` in operations of torch, which can be exported."""
        return action
