"""How much of the Java game's own speed is left: `python benchmarks/microrts.py`.

One process, one core: the sampler's environments under random legal actions, against the same games
stepped through the package's vector client and nothing else, with and without what every trainer needs
of a step, the masks and the observations as arrays.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.compiled import njit
from envs.microrts.game import CHOICES, COMPONENTS, Game, java, map_of
from envs.microrts.java import make_bot, reward_functions
from envs.microrts.vector import MicrortsEnvs

WARM_UP = 400  # steps
TURN = 50
NAMES = ("sampler", "Java, as arrays", "Java alone")


@njit()
def random_actions(mask: np.ndarray, uniform: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """A random legal action of every cell: mask [N, cells, CHOICES] -> [N, cells * 7]."""
    envs, cells, _ = mask.shape
    out = np.zeros((envs, cells * len(sizes)), np.uint8)
    for n in range(envs):
        for cell in range(cells):
            if not mask[n, cell, 0]:  # doing nothing is legal wherever a unit may act
                continue
            first = 0
            for k in range(len(sizes)):
                legal = np.flatnonzero(mask[n, cell, first : first + sizes[k]])
                if len(legal):
                    pick = int(uniform[n, cell] * 977 * (k + 1)) % len(legal)
                    out[n, cell * len(sizes) + k] = legal[pick]
                first += sizes[k]
    return out


def measure(env: str, opponent: str, games: int, steps: int) -> dict[str, float]:
    """Steps per second, the median of turns of `TURN` steps: of the sampler, and of Java."""
    venv = MicrortsEnvs(env, games, Game((opponent,) * games, (0,) * games))
    venv.reset(seed=1)
    rng, sizes = np.random.default_rng(0), np.array(COMPONENTS)
    cells = venv.height * venv.width
    vector = _vector_client(venv, opponent)
    sides = _ints([0] * games)
    vector.reset(sides)

    def sampler() -> None:
        assert venv.action_mask is not None
        mask = venv.action_mask.reshape(games, cells, CHOICES)
        venv.step(random_actions(mask, rng.random((games, cells)), sizes))

    def in_java() -> tuple[float, float]:
        """Seconds of Java's calls, and those with masks and observations as arrays."""
        start = time.perf_counter()
        java_masks = vector.getMasks(0)
        alone = time.perf_counter() - start
        masks = np.asarray(memoryview(java_masks))
        arrays = time.perf_counter() - start
        legal = masks[..., 1:].reshape(games, cells, CHOICES) == 1
        orders = _orders(masks, random_actions(legal, rng.random((games, cells)), sizes))
        start = time.perf_counter()
        responses = vector.gameStep(orders, sides)
        alone += time.perf_counter() - start
        _ = np.asarray(memoryview(responses.observation)), np.asarray(memoryview(responses.reward))
        return alone, arrays + time.perf_counter() - start

    rates: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range((WARM_UP + steps) // TURN):  # turns, lest the games push each other from caches
        start = time.perf_counter()
        for _ in range(TURN):
            sampler()
        elapsed = time.perf_counter() - start
        alone, arrays = np.sum([in_java() for _ in range(TURN)], axis=0)
        for name, seconds in zip(NAMES, (elapsed, arrays, alone), strict=True):
            rates[name].append(games * TURN / seconds)
    venv.close()
    return {name: statistics.median(found[WARM_UP // TURN :]) for name, found in rates.items()}


def _ints(values: Any) -> Any:
    import jpype

    return jpype.JArray.of(np.array(values, np.int32))


def _vector_client(venv: MicrortsEnvs, opponent: str) -> Any:
    """The package's own vector client over the same games."""
    import jpype

    table = java("rts.units.UnitTypeTable")()
    bots: Any = jpype.JArray(java("ai.core.AI"))
    made = [make_bot(opponent, table) for _ in range(venv.num_envs)]
    path = str(map_of(f"microrts-{venv.height}x{venv.width}", None))
    return java("tests.JNIGridnetVecClient")(
        0, venv.num_envs, 2000, reward_functions(), "", path, bots(made), table, False
    )


def _orders(masks: np.ndarray, actions: np.ndarray) -> Any:
    """Java's orders: for each game the rows [cell, components] of the units that may act."""
    import jpype

    games, array = [], jpype.JArray.of
    nothing: Any = jpype.JArray(jpype.JInt, 2)
    for mask, action in zip(masks, actions, strict=True):
        cells = np.flatnonzero(mask[..., 0])
        rows = np.concatenate([cells[:, None], action.reshape(-1, 7)[cells]], 1).astype(np.int32)
        games.append(array(rows) if len(rows) else nothing(0))
    every: Any = jpype.JArray(jpype.JInt, 3)
    return every(games)


def main() -> None:
    parser = argparse.ArgumentParser(description="microRTS: the sampler against the Java game.")
    parser.add_argument("--env", default="microrts-16x16")
    parser.add_argument("--opponent", default="coacAI")
    parser.add_argument("--games", type=int, default=24)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    rates = measure(arguments.env, arguments.opponent, arguments.games, arguments.steps)
    for name, rate in rates.items():
        print(f"{name:<16} {rate:>8,.0f} steps/s  {rates['sampler'] / rate:>5.2f}")


if __name__ == "__main__":
    main()
