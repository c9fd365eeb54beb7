"""Engines and pools over small environments, for the tests of this folder."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cluster.engines.base import Engine
from cluster.engines.inline import InlineEngine
from cluster.engines.local import LocalEngine
from cluster.engines.ray import RayEngine
from cluster.engines.xparl import XparlEngine
from cluster.lockstep import LockstepPool
from cluster.sampler import spec_of
from cluster.supervisor import Supervisor
from envs import spaces_of
from model import make_model
from rollout import Rollout, RolloutSpec, Weights
from settings.config import Config
from tests.cluster.threads import SessionsInThreads


def toy(name: str, **settings) -> Config:
    sizes: dict[str, Any] = {"env_num": 4, "batch_size": 64, "minibatch_size": 16}
    return Config(env=f"tests.toy_envs:{name}", **(sizes | settings))


def learners_side(config: Config) -> tuple[RolloutSpec, Weights]:
    """What a learner knows before it has samplers: the shapes, and the weights."""
    model = make_model(spaces_of(config.env, **config.env_options()), config)
    return spec_of(model, config), Weights(0, model.get_weights())


def make_engine(config: Config, samplers: int, engine: str = "local") -> tuple[Engine, Weights]:
    """Samplers: in this process for 0, otherwise local processes, threads or remote actors."""
    spec, weights = learners_side(config)
    if config.ray_address is not None:
        return RayEngine(config, spec, samplers), weights
    if samplers == 0:
        return InlineEngine(config, spec), weights
    if engine == "threads":
        return SessionsInThreads(config, spec, samplers), weights
    if engine == "xparl":
        return XparlEngine(config, spec, samplers), weights
    return LocalEngine(config, spec, samplers, weights), weights


def make(config: Config, samplers: int, engine: str = "local") -> tuple[LockstepPool, Weights]:
    made, weights = make_engine(config, samplers, engine)
    return LockstepPool(Supervisor(made, print)), weights


def copy_of(rollout: Rollout) -> Rollout:
    """The same, whatever is written into the pool's memory afterwards."""
    return dataclasses.replace(rollout, **{n: a.copy() for n, a in rollout.arrays().items()})


def assert_equal(one: Rollout, two: Rollout) -> None:
    assert one.policy_version == two.policy_version
    assert np.array_equal(one.reset, two.reset)
    assert one.episodes == two.episodes
    assert one.raw_sps > 0 < two.raw_sps
    assert list(one.arrays()) == list(two.arrays())
    for name, array in one.arrays().items():
        assert np.array_equal(array, two.arrays()[name]), name
