"""Settings that follow others: the batch and the minibatch for a number of environments."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator

from envs import family
from settings.config import MOST_OFF, Config


def fitted(config: Config, given: Collection[str]) -> Config:
    """The configuration with the settings that follow others.

    Args:
        given: names of the settings that the user gave.
    """
    follow = family(config.env).following(config, given)
    off, sequences = config.steps_per_update / config.batch_size, 0
    if config.network == "lstm":
        # as many for each trainer, whose environments they are; without equal shares it is refused
        sequences = math.gcd(config.env_num, config.trainers_in_step)
    alone = config.trainers if config.trainer_mode == "hogwild" and config.store is None else 1
    free = not {"batch_size", "minibatch_size"} & set(given)
    cut = sequences and config.minibatch_size % (sequences * config.steps_per_rollout) > 0
    uneven = config.steps_per_update // config.minibatch_size % alone > 0
    fits = 1 / MOST_OFF <= off <= MOST_OFF and not (free and (cut or uneven))
    if config.rollout_steps is None and not fits:
        follow["batch_size"], follow["minibatch_size"] = nearest_batch(
            config.env_num, config.batch_size, config.minibatch_size, sequences, alone
        )
    return dataclasses.replace(config, **follow)


def nearest_batch(
    env_num: int, batch_size: int, minibatch_size: int, sequences: int = 0, shares: int = 1
) -> tuple[int, int]:
    """The batch of whole steps of all environments, and the minibatch that divides it, nearest to
    the sizes asked for (by the sum of the logarithms of both ratios, then by the batch's).

    Args:
        sequences: a minibatch must hold a multiple of so many whole sequences, as an LSTM's does; 0: it
            may hold any rows.
        shares: of the batch, of which each must be cut into whole minibatches.

    Returns:
        the batch's size, within a factor `MOST_OFF` of `batch_size` where `env_num` allows it, and the
        minibatch's; those asked for, where none fit.
    """
    steps, most = batch_size / env_num, 4 * batch_size // minibatch_size

    def candidates() -> Iterator[tuple[float, float, int, int]]:
        for step in range(max(1, math.ceil(steps / MOST_OFF)), max(1, int(steps * MOST_OFF)) + 1):
            batch = step * env_num
            for minibatches in range(1, most + 1):
                if (sequences and env_num % (minibatches * sequences)) or minibatches % shares:
                    continue
                if batch % minibatches == 0:
                    minibatch = batch // minibatches
                    batch_off = abs(math.log(batch / batch_size))
                    off = batch_off + abs(math.log(minibatch / minibatch_size))
                    # rounded, so that equal sums are equal
                    yield round(off, 9), batch_off, batch, minibatch

    *_, batch, minibatch = min(candidates(), default=(batch_size, minibatch_size))
    return batch, minibatch
