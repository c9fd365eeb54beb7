"""Random streams as functions of the seed and of counters: there is no random state to save."""

from __future__ import annotations

from typing import Literal

import numpy as np

Purpose = Literal[
    "reset", "action", "shuffle", "evaluation", "film", "rnd", "noisy", "replay", "selection"
]
_NUMBER: dict[Purpose, int] = {
    "reset": 1, "action": 2, "shuffle": 3, "evaluation": 4, "film": 5, "rnd": 6,
    "noisy": 7, "replay": 8, "selection": 9,
}  # fmt: skip


def stream(purpose: Purpose, seed: int, *counters: int) -> np.random.Generator:
    """The generator for one purpose at one place of a run; streams are independent.

    Args:
        counters: the place, such as the fragment's number. As many for a purpose throughout a run
            (several trainers add their rank): numpy may take a missing one for 0.
    """
    key = np.random.SeedSequence([_NUMBER[purpose], seed, *counters])
    return np.random.Generator(np.random.Philox(key))


def draw_noise(
    generator: np.random.Generator, kind: Literal["normal", "uniform"], shape: tuple[int, ...]
) -> np.ndarray:
    """Noise that actions are made from, float32 of `shape`: standard normal, or uniform on [0, 1)."""
    if kind == "normal":
        return generator.standard_normal(shape, np.float32)
    return generator.random(shape, np.float32)
