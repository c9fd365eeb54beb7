"""Samplers that go on from the state that others kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cluster.asynchronous import AsynchronousPool
from cluster.lockstep import LockstepPool
from cluster.pool import SamplerError
from cluster.supervisor import Supervisor
from rollout import Rollout, Weights
from settings.config import Config
from tests.cluster.pools import assert_equal, copy_of, make, make_engine, toy

CASES = [
    ("CartPole-v1", {}),
    ("CartPole-v1", {"network": "lstm"}),
    ("CartPole-v1", {"network": "transformer", "memory_steps": 4}),
    ("CartPole-v1", {"carried_steps": 4}),
    ("Pendulum-v1", {"distribution": "beta"}),
    ("HalfCheetah-v4", {}),
]


def small(env: str, settings: dict[str, Any]) -> Config:
    sizes: dict[str, Any] = {"env_num": 5, "batch_size": 160, "minibatch_size": 32}
    return Config(env=env, **(sizes | settings))


def collect(pool: LockstepPool, weights: Weights, fragment: int, **request) -> Rollout:
    pool.request(weights, fragment, fragment == 0, **request)
    return copy_of(pool.gather())


@pytest.mark.parametrize(("env", "settings"), CASES)
def test_the_number_of_samplers_may_change_between_keeping_and_restoring(env, settings):
    config = small(env, settings)
    pool, weights = make(config, 2, "threads")
    begun = [collect(pool, weights, fragment, keep=fragment == 1) for fragment in range(2)]
    expected = [collect(pool, weights, fragment) for fragment in (2, 3)]
    pool.close()
    kept = begun[1].environments
    assert begun[0].environments is None
    assert kept is not None
    assert {len(array) for array in kept.values()} == {5}
    for samplers in (0, 1, 3):
        pool, weights = make(config, samplers, "threads")
        assert_equal(expected[0], collect(pool, weights, 2, restore=kept))
        assert_equal(expected[1], collect(pool, weights, 3))
        pool.close()


@pytest.mark.parametrize(("env", "settings"), CASES[:4])
def test_what_is_kept_does_not_show_the_number_of_samplers(env, settings):
    config = small(env, settings)
    kept = []
    for samplers in (0, 3):
        pool, weights = make(config, samplers, "threads")
        kept.append(collect(pool, weights, 0, keep=True).environments)
        pool.close()
    assert list(kept[0]) == list(kept[1])
    for name, array in kept[0].items():
        np.testing.assert_array_equal(array, kept[1][name], name)


@pytest.mark.slow
def test_a_lost_local_sampler_is_replaced_by_one_that_goes_on_where_all_stood():
    config = small("HalfCheetah-v4", {})
    pool, weights = make(config, 0)
    kept = collect(pool, weights, 0, keep=True).environments
    expected = collect(pool, weights, 1)
    pool.close()
    pool, weights = make(config, 2)
    try:
        pool.engine.end(1)
        pool.engine.start(1)
        assert_equal(expected, collect(pool, weights, 1, restore=kept))
    finally:
        pool.close()


@pytest.mark.parametrize("samplers", [0, 2])
def test_an_environment_that_cannot_save_its_state_says_so(samplers):
    pool, weights = make(toy("Counter"), samplers, "threads")
    pool.request(weights, 0, True, keep=True)
    with pytest.raises(SamplerError, match=r"env tests.toy_envs:Counter cannot save its state"):
        pool.gather()
    pool.close()


def test_the_state_of_another_number_of_environments_is_refused():
    pool, weights = make(small("CartPole-v1", {}), 0)
    kept = collect(pool, weights, 0, keep=True).environments
    pool.close()
    pool, weights = make(small("CartPole-v1", {"env_num": 4, "batch_size": 128}), 0)
    with pytest.raises(ValueError, match=r"restore has .* of 5 environments, but env_num is 4"):
        pool.request(weights, 1, False, restore=kept)
    pool.close()


def test_asynchronous_samplers_keep_no_state():
    engine, weights = make_engine(toy("ConstantReward", policy_lag=2), 2, "threads")
    pool = AsynchronousPool(Supervisor(engine, print), 2)
    with pytest.raises(ValueError, match="keep no state"):
        pool.request(weights, 0, True, keep=True)
    pool.close()
