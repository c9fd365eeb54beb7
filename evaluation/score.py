"""Score a policy: the returns, lengths and outcomes of evaluation episodes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from common.randomness import stream
from envs import make_vec_env
from evaluation.play import play
from model import ActorCritic
from rollout import mean_extras
from settings.config import Config

_PARALLEL = 16  # environments of a round, each of which plays one episode


class Scores(NamedTuple):
    """Raw returns and lengths of evaluation episodes, and the numbers that the env adds to each."""

    returns: list[float]
    lengths: list[int]
    extras: list[dict[str, float]]

    def mean(self) -> float:
        return float(np.mean(self.returns))

    def std(self) -> float:
        with np.errstate(invalid="ignore"):  # an environment may give rewards without end
            return float(np.std(self.returns))

    def means(self) -> dict[str, float]:
        """The mean of each extra over the episodes that have it."""
        return mean_extras(self.extras)


def score(
    model: ActorCritic,
    config: Config,
    episodes: int,
    seed: int,
    greedy: bool = True,
    opponents: tuple[str, ...] = (),
    after_step: Callable[[], None] = lambda: None,
    purpose: Literal["evaluation", "selection"] = "evaluation",
) -> Scores:
    """Play `episodes` episodes, each from its own seed and for at most test_max_steps steps.

    Every environment plays one episode a round, so that short episodes are not counted more often
    than long ones. A game that is cut off after test_max_steps counts as a draw.

    Args:
        seed: the episodes are a function of it.
        opponents: microRTS bots to play against in turn. (): the run's.
        after_step: called after each step of the environments; it ends the evaluation by raising.
        purpose: a run's own evaluations, by which it selects its best weights, are of other episodes
            than later ones of the same seed.
    """
    scores = Scores([], [], [])
    while (first := len(scores.returns)) < episodes:
        count = min(_PARALLEL, episodes - first)
        generator = stream(purpose, seed, first)
        options = config.evaluation_options(range(first, first + count), opponents)
        venv = make_vec_env(config.env, count, **options)
        with contextlib.closing(venv):
            seeds = generator.integers(2**31 - 1, size=count)
            obs, _ = venv.reset(seed=seeds.tolist())
            returns, lengths = np.zeros(count), np.zeros(count, np.int64)
            extras: list[dict[str, float]] = [{} for _ in range(count)]
            for step in play(model, venv, obs, generator, greedy, config.test_max_steps):
                returns += np.where(step.playing, step.reward, 0.0)
                lengths += step.playing
                for i in np.flatnonzero(step.ended).tolist():
                    extras[i] = venv.extras(i) or {}
                after_step()
        scores.returns.extend(returns.tolist())
        scores.lengths.extend(lengths.tolist())
        scores.extras.extend(extras)
    return scores
