"""The pool that a run's settings ask for."""

from __future__ import annotations

from collections.abc import Callable

from cluster.asynchronous import AsynchronousPool
from cluster.engines.base import Engine
from cluster.engines.inline import InlineEngine
from cluster.engines.local import LocalEngine
from cluster.lockstep import LockstepPool
from cluster.pool import SamplerPool
from cluster.sampler import spec_of
from cluster.supervisor import Supervisor
from common import launched
from common.cores import usable_cores
from model import ActorCritic
from rollout import Weights
from settings.config import Config, ConfigError


def make_pool(
    config: Config,
    model: ActorCritic,
    weights: Weights,
    say: Callable[[str], None] = print,
    envs: tuple[int, int] | None = None,
) -> SamplerPool:
    """Start samplers, and schedule them as `policy_lag` says.

    Args:
        model: the learner's; samplers make copies of their own.
        weights: any of the model's, for their size.
        say: prints a sentence for the user, about samplers that were lost.
        envs: the run's environments [first, last) that this trainer's samplers step. Default: all.

    Raises:
        UserError: where the samplers cannot be started, with the remedy.
    """
    supervisor = Supervisor(make_engine(config, model, weights, envs), say)
    # one sampler in the learner's own process leaves nothing to be asynchronous with
    if config.policy_lag > 1 and config.samplers != 0:
        return AsynchronousPool(supervisor, config.policy_lag)
    return LockstepPool(supervisor)


def choose_samplers(config: Config) -> None:
    """Ask the cluster that the settings name for its CPUs; it decides `samplers`, unless they are given.

    Raises:
        ConfigError: where it has too few.
        UserError: where it cannot be reached, or does not accept the key.
    """
    address = config.xparl_addr
    if address is not None:
        from cluster.engines.xparl_master import choose_key, cluster_cpus

        choose_key(config.key, address)
        adds = "xparl connect"
    else:
        from cluster.engines.ray import cluster_cpus

        address, adds = config.ray_address, "ray start --address"
    assert address is not None
    wanted = config.samplers or config.trainers if config.wait_for_cpus is None else 0
    free, total = cluster_cpus(address, wanted)
    if free < wanted:
        fewer = "give fewer --samplers"
        if config.resume is not None:  # the run may have had as many as were free at its start
            fewer += ", or --samplers None for as many as are free"
        raise ConfigError(
            f"samplers is {wanted}, but the cluster at {address} has {total} CPUs, {free} of"
            f" them free: {fewer}, or add CPUs with `{adds}`"
        )
    if config.samplers is None:
        each = config.default_samplers(max(1, free // config.trainers))
        config.samplers = each * config.trainers


def make_engine(
    config: Config, model: ActorCritic, weights: Weights, envs: tuple[int, int] | None = None
) -> Engine:
    """Start samplers: in this process, in local ones, or at an xparl or a Ray cluster."""
    spec = spec_of(model, config)
    if config.samplers == 0:
        return InlineEngine(config, spec, envs)
    if config.samplers is None:
        samplers = config.default_samplers(max(1, usable_cores() // launched.here()))
    else:
        samplers = config.samplers // config.trainers
    if config.xparl_addr is not None:
        from cluster.engines.xparl import XparlEngine

        return XparlEngine(config, spec, samplers, envs)
    if config.ray_address is not None:
        from cluster.engines.ray import RayEngine

        return RayEngine(config, spec, samplers, envs)
    return LocalEngine(config, spec, samplers, weights, envs)
