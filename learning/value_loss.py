"""How far a state value is from its target, as the loss counts it."""

from __future__ import annotations

import torch
from torch import Tensor

from learning.batches import Minibatch
from settings.config import Config


def value_error(config: Config, value: Tensor, batch: Minibatch, scale: Tensor | float) -> Tensor:
    """The error of each row [B], squared or Huber's, in units of `scale`; of two heads, summed.

    With `value_clip` c it is the larger of the error and that of the value clipped to
    [old value - c, old value + c], as the policy is clipped.

    Args:
        value: [B], or [B, 2] with RND.
        batch: its `value_target` and `old_value`.
        scale: the value normaliser's, or 1.
    """

    def penalty(error: Tensor) -> Tensor:
        error = error / scale
        if config.value_loss == "squared":
            return error**2
        return torch.where(error.abs() <= 1, error**2, 2 * error.abs() - 1)

    error = penalty(value - batch.value_target)
    if config.value_clip is not None:
        change = (value - batch.old_value) / scale
        clipped = batch.old_value + change.clamp(-config.value_clip, config.value_clip) * scale
        error = torch.maximum(error, penalty(clipped - batch.value_target))
    return error if error.dim() == 1 else error.sum(-1)
