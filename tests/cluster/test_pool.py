from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import psutil
import pytest
import torch

from cluster.engines.local import LocalEngine
from cluster.pool import Lost, SamplerError
from learning.batches import observations
from rollout import Rollout, Weights
from settings.config import Config
from settings.sources import preset
from tests.cluster.pools import assert_equal, copy_of, make, toy
from tests.conftest import run_command, still_running, wait_until

pytestmark = pytest.mark.slow  # these start runs, clusters or processes


def gathered(config: Config, samplers: int, engine: str = "local") -> list[Rollout]:
    """Copies of three rollouts, with a reset before the first and the last."""
    pool, weights = make(config, samplers, engine)
    rollouts = []
    try:
        for fragment in range(3):
            changed = {n: a * np.asarray(1 + fragment, a.dtype) for n, a in weights.arrays.items()}
            pool.request(Weights(fragment, changed), fragment, reset=fragment in (0, 2))
            rollouts.append(copy_of(pool.gather()))
    finally:
        pool.close()
    return rollouts


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("CartPole-v1", {}),
        ("PongNoFrameskip-v4", {}),
        # episodes of 3 and 5 steps end before, in, and after the rows that are seen again
        ("tests.toy_envs:Counter", {"network": "transformer", "memory_steps": 5}),
        ("tests.toy_envs:Counter", {"network": "transformer", "memory_steps": 12}),
    ],
)
def test_a_carried_tail_is_what_the_fragment_before_ended_with(env, settings):
    """With the steps that are learned from it makes the same stream as fragments without one."""
    plain = dataclasses.replace(preset(env), env_num=2, batch_size=48, minibatch_size=16)
    carrying = dataclasses.replace(plain, carried_steps=8, **settings)
    pool, weights = make(carrying, 0)
    fragments: list[dict[str, np.ndarray]] = []
    stacks = np.zeros(0)
    for fragment in range(3):
        pool.request(weights, fragment, fragment == 0)
        rollout = pool.gather()
        assert rollout.carried == (0 if fragment == 0 else 8)
        assert rollout.steps == rollout.valid[rollout.carried :].sum()
        fragments.append({n: a.copy() for n, a in rollout.arrays().items()})
        rebuilt = observations(rollout, torch.device("cpu")).numpy().copy()
        if fragment:
            np.testing.assert_array_equal(rebuilt[:9], stacks[24:])
        stacks = rebuilt
    pool.close()
    for one, two in itertools.pairwise(fragments):
        assert len(one["reward"]) == 32
        for name in set(one) - {"history"}:
            np.testing.assert_array_equal(two[name][:8], one[name][24:32])


@pytest.mark.parametrize(
    "env", ["CartPole-v1", "HalfCheetah-v4", "PongNoFrameskip-v4", "microrts-8x8"]
)
def test_neither_the_pool_nor_the_number_of_samplers_shows_in_a_rollout(env):
    config = dataclasses.replace(preset(env), env_num=5, batch_size=160, minibatch_size=32)
    expected = gathered(config, 0)
    # of two environments, two, and one
    for engine in ("local", "threads"):
        for one, two in zip(expected, gathered(config, 3, engine), strict=True):
            assert_equal(one, two)


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("CartPole-v1", {"network": "lstm"}),
        ("CartPole-v1", {"network": "transformer", "memory_steps": 4}),
        ("CartPole-v1", {"noisy_layers": True}),
        ("CartPole-v1", {"rnd_coefficient": 1.0, "normalize_observation": True}),
        ("Pendulum-v1", {"distribution": "beta"}),
        ("Pendulum-v1", {"distribution": "tanh_normal", "state_dependent_std": True}),
        ("tests.toy_envs:Masked", {}),
        ("tests.toy_envs:Hidden", {}),
    ],
)
def test_no_setting_shows_the_number_of_samplers(env, settings):
    config = Config(env=env, **({"env_num": 5, "batch_size": 160, "minibatch_size": 32} | settings))
    expected = gathered(config, 0)
    for samplers in (1, 3, 5):
        for one, two in zip(expected, gathered(config, samplers, "threads"), strict=True):
            assert_equal(one, two)


def test_a_rollout_keeps_its_version_when_its_arrays_are_written_again():
    pool, weights = make(toy("Counter", distribution="normal"), 0)
    rollouts = []
    for fragment in range(3):
        pool.request(Weights(fragment, weights.arrays), fragment, fragment == 0)
        rollouts.append(pool.gather())
    pool.close()
    assert [rollout.policy_version for rollout in rollouts] == [0, 1, 2]
    assert [rollout.reset.all() for rollout in rollouts] == [True, False, False]
    assert not any(rollout.reset.any() for rollout in rollouts[1:])


def test_episodes_are_raw_and_complete_across_fragments():
    config = toy("ConstantReward", env_num=2, batch_size=48, minibatch_size=16)
    pool, weights = make(config, 0)
    episodes = []
    for fragment in range(4):
        pool.request(weights, fragment, fragment == 0)
        episodes += pool.gather().episodes
    # 96 rows an environment, 11 rows an episode: 10 steps and a reset
    assert [(e.episode_return, e.length) for e in episodes] == [(10.0, 10)] * 16


def test_a_reset_begins_episodes_anew():
    config = toy("ConstantReward", env_num=2, batch_size=16, minibatch_size=16)
    pool, weights = make(config, 0)
    for fragment in range(6):
        pool.request(weights, fragment, reset=True)
        rollout = pool.gather()
        assert rollout.episodes == []  # 8 steps a fragment never reach 10
        assert rollout.valid.all()


def test_samplers_work_at_the_same_time_and_while_the_learner_does(tmp_path, monkeypatch):
    monkeypatch.setenv("MEETING_FOLDER", str(tmp_path))
    pool, weights = make(toy("Meeting", batch_size=32), 4)
    try:
        pool.request(weights, 0, True)
        (tmp_path / "learner").touch()
        assert pool.gather().valid.all()  # or samplers that wait for one another give up
    finally:
        pool.close()


def test_a_gathered_rollout_outlives_the_next_request():
    config = toy("Counter", distribution="normal")
    pool, weights = make(config, 2)
    try:
        pool.request(weights, 0, True)
        rollout = pool.gather()
        before = rollout.obs.copy()
        pool.request(weights, 1, True)
        np.testing.assert_array_equal(rollout.obs, before)
        other = pool.gather()
        np.testing.assert_array_equal(rollout.obs, before)
        assert not np.array_equal(other.obs, before)
    finally:
        pool.close()


@pytest.mark.parametrize("samplers", [0, 2])
@pytest.mark.parametrize(
    ("env", "what"), [("NotANumberReward", "reward"), ("NotANumberObservation", "observation")]
)
def test_nan_names_environment_step_and_sampler(samplers, env, what):
    pool, weights = make(toy(env, batch_size=128, minibatch_size=32, nan="stop"), samplers)
    try:
        pool.request(weights, 0, True)
        # all samplers fail at that step; one of them is the first
        place = r"(0 .* at step 2[45] .*sampler 0|2 .* at step 2[45] .*sampler 1)"
        with pytest.raises(SamplerError, match=f"{what} of environment {place}"):
            pool.gather()
    finally:
        pool.close()


def test_closing_leaves_no_process():
    pool, _ = make(toy("Counter"), 2)
    assert isinstance(pool.engine, LocalEngine)
    processes = [psutil.Process(child.pid) for child in pool.engine._children.values()]
    pool.close()
    wait_until(lambda: not still_running(processes), 5, "samplers to end")


def test_a_second_request_before_the_first_is_gathered_is_refused():
    pool, weights = make(toy("Counter"), 0)
    pool.request(weights, 0, True)
    with pytest.raises(RuntimeError, match="fragment 0 has not been gathered"):
        pool.request(weights, 1, False)


def test_an_actors_words_are_no_commands_to_the_terminal():
    lost = Lost("\x1b]0;title\x07bad\n\tline", "\x9bAé")
    assert (lost.reason, lost.cause) == ("\ufffd]0;title\ufffdbad\n\tline", "\ufffdAé")


def test_a_sampler_carries_nothing_that_only_the_learner_needs():
    """Each of these costs every sampler tens of megabytes."""
    program = """
import sys
import cluster.engines.local, evaluation.process
from cluster.sampler import Sampler
from rollout import Rollout
from settings.sources import preset
sampler = Sampler(preset("CartPole-v1"), 0, 2)
sampler.collect(0, True, Rollout.empty(sampler.spec, 2))
print([name for name in ("torch._dynamo", "torch._inductor", "visualdl", "agent") if name in sys.modules])
"""
    done = run_command("-c", program)
    assert done.stdout == "[]\n", done.stderr
