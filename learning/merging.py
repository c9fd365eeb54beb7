"""Weights of two trainers that have learned from the same ones, side by side, as one set of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from learning.reward_scale import SCALES
from networks.layers import RunningMoments

Arrays = Mapping[str, np.ndarray]
Moments = Sequence[np.ndarray] | np.ndarray


def merge(model: nn.Module, before: Arrays, mine: Arrays, theirs: Arrays) -> dict[str, np.ndarray]:
    """Weights with the changes of both.

    To parameters both changes are added. Running moments, and scales of rewards, are those of the rows of
    both. What else there is, such as noise, is this trainer's.

    Args:
        model: whose parameters and buffers the arrays are.
        before: the weights that this trainer has learned from.
        mine: what it has made of them.
        theirs: what others have made of them meanwhile.
    """
    merged = dict(mine)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            merged[name] = theirs[name] + (mine[name] - before[name])
    for name, module in model.named_modules():
        if isinstance(module, RunningMoments):
            names = [f"{name}.{part}" for part in ("count", "mean", "var")]
            moments = _add(*([of[n] for n in names] for of in (before, mine, theirs)))
            merged |= dict(zip(names, moments, strict=True))
    for name in mine.keys() & set(SCALES):
        merged[name] = np.array(_add(before[name], mine[name], theirs[name]))
    return merged


def _add(before: Moments, mine: Moments, theirs: Moments) -> list[np.ndarray]:
    """`theirs` and the rows by which `mine` has more than `before`; each is count, mean, variance."""
    count = mine[0] - before[0]
    if not count:
        return list(theirs)
    # the rows that were added, backwards by the formula of Chan et al. 1979
    mean = (mine[0] * mine[1] - before[0] * before[1]) / count
    spread = mine[0] * mine[2] - before[0] * before[2]
    spread = spread - (mean - before[1]) ** 2 * before[0] * count / mine[0]
    total, delta = theirs[0] + count, mean - theirs[1]
    whole = theirs[0] * theirs[2] + np.maximum(spread, 0.0)
    whole = whole + delta**2 * theirs[0] * count / total
    return [total, theirs[1] + delta * count / total, whole / total]
