"""An update is done as a whole or not at all, and who asks meanwhile is told the state before."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from agent import PPOAgent
from algorithm import PPO
from learning.batches import Minibatch
from learning.undo import State
from rollout import Rollout
from tests.test_agent import collect, make, small

EVERYTHING = {
    "normalize_observation": True, "normalize_value": True, "rnd_coefficient": 0.1,
    "noisy_layers": True, "reward_transform": "return_std", "learning_rate_schedule": "kl",
}  # fmt: skip


class Interrupted(PPO):
    """Does something in the midst of its third gradient step."""

    steps = 0

    def learn(self, *shares: Minibatch) -> Tensor:
        self.steps += 1
        statistics = super().learn(*shares)
        if self.steps == 3:
            self.interrupt()
        return statistics

    def interrupt(self) -> None:
        """Replaced by each test."""


def interrupted() -> tuple[PPOAgent, Rollout]:
    """An agent that has learned once, and a rollout to learn from next."""
    agent, pool = make(small("CartPole-v1", **EVERYTHING), Interrupted)
    agent.learn(collect(agent, pool), 0.0)
    rollout = copy.deepcopy(collect(agent, pool, 1))
    pool.close()
    agent.alg.steps = 0
    return agent, rollout


def assert_same(one: State, two: State) -> None:
    assert one[1] == two[1]
    assert one[0].keys() == two[0].keys()
    for name, array in one[0].items():
        np.testing.assert_array_equal(array, two[0][name], err_msg=name)


def test_within_an_update_the_state_is_that_from_before_it():
    agent, rollout = interrupted()
    before, meanwhile = agent.state(), []
    weights = agent.weights().arrays["actor.0.weight"]

    def interrupt() -> None:
        assert not np.array_equal(agent.weights().arrays["actor.0.weight"], weights)
        meanwhile.append(agent.state())

    agent.alg.interrupt = interrupt
    agent.learn(rollout, 0.5)
    agent.learn(rollout, 0.5)  # writes over the copies that the update before it kept
    assert_same(meanwhile[0], before)
    assert agent.state()[1]["update"] == 3


def test_an_update_that_raises_is_undone():
    agent, rollout = interrupted()
    before = agent.state()

    def interrupt() -> None:
        raise MemoryError

    agent.alg.interrupt = interrupt
    with pytest.raises(MemoryError):
        agent.learn(rollout, 0.5)
    assert_same(agent.state(), before)
    agent.learn(rollout, 0.5)
    assert agent.update == 2


def test_the_state_can_be_asked_while_torch_computes_nothing():
    """As in a signal handler that comes while torch compiles."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    agent, rollout = interrupted()
    before, meanwhile = agent.state(), []

    def interrupt() -> None:
        with FakeTensorMode():
            assert type(torch.ones(2) + 1) is not Tensor
            meanwhile.append(agent.state())

    agent.alg.interrupt = interrupt
    agent.learn(rollout, 0.5)
    assert_same(meanwhile[0], before)


def test_compiling_ahead_of_a_density_beyond_floats_is_no_error():
    agent, pool = make(small("HalfCheetah-v4", initial_log_std=-20.0))
    before = agent.state()
    agent.alg.compiled = True
    agent.compile(pool.spec)
    assert_same(agent.state(), before)
    pool.close()


def test_compiling_ahead_leaves_no_trace():
    agent, pool = make(small("CartPole-v1", **EVERYTHING))
    before = agent.state()
    agent.alg.compiled = True  # the steps themselves stay eager, which saves the test a compiler
    agent.compile(pool.spec)
    assert_same(agent.state(), before)
    agent.learn(collect(agent, pool), 0.0)
    assert agent.update == 1
    pool.close()
