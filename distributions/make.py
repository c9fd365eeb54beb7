"""Which distribution a run's policy has: a table of names, and what an action space asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from distributions.base import Distribution, WrongDistribution
from distributions.continuous import Beta, Normal, TanhNormal
from distributions.discrete import Categorical, GridMultiDiscrete, MultiDiscrete, UnitSelection


class Options(NamedTuple):
    """Settings of a distribution beside its name; see `Normal`."""

    scaled: bool = False
    initial_log_std: float = 0.0
    state_dependent_std: bool = False


# continuous distributions by the name that `--distribution` takes
CONTINUOUS: dict[str, Callable[[spaces.Box, Options], Distribution]] = {
    "normal": lambda space, options: Normal(space, *options),
    "tanh_normal": lambda space, options: TanhNormal(space, *options[1:]),
    "beta": lambda space, options: Beta(space),
}
_NEED_BOUNDS = ("tanh_normal", "beta")

# How the sub-actions of a MultiDiscrete space belong to the cells of a grid: by the name that a
# vector environment gives in `action_structure`, beside the number of cells
STRUCTURES: dict[str, Callable[[tuple[int, ...], int], Distribution]] = {
    "grid": lambda sizes, cells: GridMultiDiscrete(sizes[: len(sizes) // cells], cells),
    "unit_selection": lambda sizes, cells: UnitSelection(cells, sizes[1:]),
}


def make_distribution(
    name: str,
    space: spaces.Space,
    options: Options = Options(),  # noqa: B008 - immutable
    structure: tuple[str, int] | None = None,
) -> Distribution:
    """The distribution called `name` (`auto`: the usual one) over an action space.

    Args:
        structure: the name in `STRUCTURES` and the number of cells, where the environment's
            actions are those of units on a grid.

    Raises:
        WrongDistribution: with the ones that fit.
    """
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        if name not in ("auto", "categorical"):
            raise WrongDistribution(
                f"distribution {name} is for continuous actions, this environment has {space}:"
                f" give categorical or auto"
            )
        if isinstance(space, spaces.Discrete):
            return Categorical(space)
        sizes = tuple(int(n) for n in space.nvec)
        return (
            MultiDiscrete(sizes)
            if structure is None
            else STRUCTURES[structure[0]](sizes, structure[1])
        )
    assert isinstance(space, spaces.Box)
    if name == "categorical":
        raise WrongDistribution(
            f"distribution categorical is for discrete actions, this environment has {space}: give"
            f" {', '.join(CONTINUOUS)} or auto"
        )
    with np.errstate(over="ignore"):
        width = space.high.astype(np.float32) - space.low.astype(np.float32)
    bounded = np.all(width < np.inf)
    if (name in _NEED_BOUNDS and not (bounded and np.all(width > 0))) or (
        options.scaled and not bounded
    ):
        asked = f"distribution {name}" if name in _NEED_BOUNDS else "scale_action"
        raise WrongDistribution(
            f"{asked} needs actions between two bounds, this environment has {space}: give normal"
            f"{' without scale_action' if options.scaled else ''}"
        )
    return CONTINUOUS["normal" if name == "auto" else name](space, options)
