"""PPO's clipped surrogate objective, of whole actions and of sub-actions, and its advantages."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learning.batches import Minibatch
from settings.config import Config

# of a log-ratio: above it, e to its power overflows sooner or later, and a clipped row's gradient is NaN
MOST_LOG_RATIO = 20.0


def bounded(log_ratio: Tensor) -> Tensor:
    """The log-ratio, but at most `MOST_LOG_RATIO`, far above every sensible one."""
    return log_ratio.clamp(max=MOST_LOG_RATIO)


def normalized(batch: Minibatch, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """The advantages [B] of a minibatch, with mean 0 and standard deviation 1 over all of its valid rows.

    Args:
        batch: a whole minibatch, or a share of one, whose `whole` says what that of all is.
        mean: of numbers [B] over the valid rows.
    """
    if batch.whole is not None:
        return (batch.advantage - batch.whole[1]) / (batch.whole[2] + 1e-8)
    centred = batch.advantage - mean(batch.advantage)
    return centred / (mean(centred * centred).sqrt() + 1e-8)


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, clip_range: Tensor, dual_clip: float | None
) -> Tensor:
    """min(r A, clip(r, 1 - c, 1 + c) A) (Schulman et al. 2017, eq. 7), elementwise.

    With `dual_clip` d, where A < 0: max(that, d A) (Ye et al. 2020, eq. 2), so that one very large
    ratio cannot outweigh the batch.
    """
    surrogate = torch.minimum(
        ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage
    )
    if dual_clip is None:
        return surrogate
    bounded = torch.maximum(surrogate, dual_clip * advantage)
    return torch.where(advantage < 0, bounded, surrogate)


def joint_surrogate(
    config: Config, log_ratio: Tensor, behaviour: Tensor, advantage: Tensor, clip_range: Tensor,
    mix_weight: Tensor,
) -> Tensor:  # fmt: skip
    """The clipped surrogate objective of each row [B] under `joint_loss`.

    With r_k the ratio of sub-action k and r = prod r_k (Song et al. 2023, arXiv 2301.10919):

        compound    S(r)                    sub_action  mean_k S(r_k)
        mix_ratio   mean_k S(w r_k + (1 - w) r)
        mix_loss    w mean_k S(r_k) + (1 - w) S(r)

    A sub-action whose choice was certain (behaviour log-probability 0), as where one alone was legal, counts in
    no mean.

    Args:
        log_ratio, behaviour: [B], or [B, K] unless compound.
        mix_weight: w.
    """

    def surrogate(ratio: Tensor) -> Tensor:
        each = advantage if ratio.dim() == 1 else advantage.unsqueeze(-1)
        return clipped_surrogate(ratio, each, clip_range, config.dual_clip)

    if config.joint_loss == "compound":
        return surrogate(bounded(log_ratio).exp())
    chose = (behaviour != 0).float()
    share = chose / chose.sum(-1, keepdim=True).clamp(min=1.0)
    ratio, joint = bounded(log_ratio).exp(), bounded(log_ratio.sum(-1)).exp()
    if config.joint_loss == "mix_ratio":
        ratio = mix_weight * ratio + (1 - mix_weight) * joint.unsqueeze(-1)
    by_sub_action = (surrogate(ratio) * share).sum(-1)
    if config.joint_loss == "mix_loss":
        return mix_weight * by_sub_action + (1 - mix_weight) * surrogate(joint)
    return by_sub_action
