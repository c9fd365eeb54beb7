"""The end of a gradient step: from the shares of a gradient to weights that have moved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from learning.adam import Adam, among, clip
from learning.gradient_steps import summed
from settings.config import Config


class Descent:
    """Sums the shares of a gradient, bounds its norm, and takes Adam's step.

    Args:
        parameters: all that learn, on one device.
        of_value: those of the value function alone.
        learning_rate: of the next steps; its value is set in place.
        config: the optimiser's settings.

    Attributes:
        adam: the optimiser.
        policy_learns, value_learns: whether all but the value function's own layers, and these, move in
            the next steps (tensors; read with `value_epochs` alone).
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        of_value: Iterable[Tensor],
        learning_rate: Tensor,
        config: Config,
    ):
        values = among(of_value, parameters)
        faster = (config.value_learning_rate or config.learning_rate) / config.learning_rate
        self.some_rest = config.value_epochs is not None
        self.adam = Adam(
            parameters, learning_rate, config.adam_eps,
            None if faster == 1.0 else torch.where(values, faster, 1.0), self.some_rest,
        )  # fmt: skip
        self.policy_learns, self.value_learns = (
            torch.ones((), dtype=torch.bool, device=learning_rate.device) for _ in range(2)
        )
        self._values = values if self.some_rest else None
        self._clipped_apart = values if config.clip_gradients == "apart" else None
        self._most_norm = config.max_grad_norm

    @property
    def size(self) -> int:
        """n, of a gradient."""
        return self.adam.moments.shape[1]

    def set_learning(self, policy: bool, value: bool) -> None:
        """Set which part moves in the next steps."""
        self.policy_learns.fill_(policy)
        self.value_learns.fill_(value)

    def step(self, shares: tuple[Tensor, ...]) -> Tensor:
        """One step.

        Args:
            shares: of the gradient [n], and behind each its share of the statistics.

        Returns:
            the statistics, and behind them the gradient's norm before it was bounded.
        """
        size = self.size
        with torch.no_grad():
            total = summed(shares)
            gradient, statistics, learns = total[:size], total[size:], None
            if self._values is not None:
                learns = torch.where(self._values, self.value_learns, self.policy_learns)
                gradient = torch.where(learns, gradient, 0.0)
            norm = gradient.norm()
            clipped = clip(gradient, norm, self._most_norm, self._clipped_apart)
            self.adam.step(clipped, learns)
            return torch.cat([statistics, norm.reshape(1)])
