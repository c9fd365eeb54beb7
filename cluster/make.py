"""The pool that a run's settings ask for."""

from __future__ import annotations

from cluster.asynchronous import AsynchronousPool
from cluster.pool import InlinePool, SamplerPool
from cluster.sampler import spec_of
from common.cores import usable_cores
from model import ActorCritic
from rollout import Weights
from settings.config import Config


def make_pool(
    config: Config, model: ActorCritic, weights: Weights
) -> SamplerPool | AsynchronousPool:
    """Start samplers: in this process, in local ones, or at an xparl cluster.

    Args:
        model: of which the samplers make copies of their own.
        weights: the first that they will get.

    Raises:
        UserError: where they cannot be started, with the remedy.
    """
    spec = spec_of(model, config)
    if config.samplers == 0:
        return InlinePool(config, spec)
    samplers = config.samplers or config.default_samplers(usable_cores())
    if config.xparl_addr is not None:
        from cluster.engines.xparl import XparlPool

        pool: SamplerPool = XparlPool(config, spec, samplers)
    else:
        from cluster.engines.local import LocalPool

        pool = LocalPool(config, spec, samplers, weights)
    return AsynchronousPool(pool, config.policy_lag) if config.policy_lag > 1 else pool
