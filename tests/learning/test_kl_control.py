"""Settings that the KL controls measure one update, whatever the lag of the data."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from agent import PPOAgent
from cluster.lockstep import LockstepPool
from learning.batches import Batches
from learning.schedules import Schedules
from rollout import Rollout
from settings.config import Config
from tests.test_agent import make, small


def lagged(agent: PPOAgent, pool: LockstepPool, updates: int) -> list[dict[str, float]]:
    """Learn at lag 1: each fragment is collected under the weights before the last update."""
    metrics, behaviour = [], agent.weights()
    for update in range(updates):
        pool.request(behaviour, update, update == 0)
        rollout = pool.gather()
        behaviour = agent.weights()
        metrics.append(agent.learn(rollout, 0.0))
    pool.close()
    return metrics


def move_policy(agent: PPOAgent) -> None:
    with torch.no_grad():
        agent.model.policy_head.get_parameter("bias").add_(torch.tensor([0.7, -0.7]))


def collected_before_a_move(**settings) -> tuple[PPOAgent, Rollout]:
    """An agent at the default lag 1, and data from before its policy moved far."""
    agent, pool = make(small("CartPole-v1", **settings))
    pool.request(agent.weights(), 0, True)
    rollout = copy.deepcopy(pool.gather())
    pool.close()
    move_policy(agent)
    return agent, rollout


def test_a_target_does_not_end_every_other_update_after_one_epoch():
    """At lag 1 the data are one update old before the first minibatch."""
    agent, pool = make(small("CartPole-v1", target_kl=0.02, learning_rate=3e-3))
    agent.config.update_epochs = 10
    epochs = [metrics["epochs"] for metrics in lagged(agent, pool, 8)]
    assert min(epochs) > 1
    assert min(epochs) < 10, "the target is never met, so this test shows nothing"


def test_the_learning_rate_follows_the_kl_of_the_update_alone():
    agent, rollout = collected_before_a_move(
        learning_rate_schedule="kl", learning_rate=1e-5, desired_kl=0.02
    )
    metrics = agent.learn(rollout, 0.0)
    assert metrics["approx_kl"] > 0.04  # from the policy that acted
    assert metrics["update_kl"] < 1e-3
    assert agent.schedules.learning_rate == pytest.approx(1.5e-5)


def test_an_adaptive_penalty_follows_the_kl_of_the_update_alone():
    agent, rollout = collected_before_a_move(
        kl_penalty="adaptive", learning_rate=1e-5, kl_coefficient=0.4, desired_kl=0.02
    )
    agent.learn(rollout, 0.0)
    assert agent.schedules.kl_coefficient == pytest.approx(0.2)


@pytest.mark.parametrize("start", [1e-8, 1e-3, 0.5])
@pytest.mark.parametrize(("kl", "factor"), [(0.0, 1.5), (1.0, 1 / 1.5)])
def test_a_learning_rate_beyond_the_usual_bounds_is_never_moved_the_wrong_way(start, kl, factor):
    config = Config(learning_rate_schedule="kl", learning_rate=start)
    schedules = Schedules(config)
    schedules.adapt(kl)
    moved = schedules.learning_rate / start
    assert moved == pytest.approx(factor) or moved == 1.0
    assert (start == 1e-3) <= (moved != 1.0)


@pytest.mark.parametrize(("kl", "start"), [(0.0, 0.0), (1.0, 1e5)])
def test_a_penalty_beyond_the_usual_bounds_is_not_moved_the_wrong_way(kl, start):
    schedules = Schedules(Config(kl_penalty="adaptive", kl_coefficient=start))
    schedules.adapt(kl)
    assert schedules.kl_coefficient == start


@pytest.mark.parametrize(
    "settings",
    [{}, {"joint_loss": "mix_ratio"}, {"estimator": "vtrace"}, {"clip_from": "start"}],
    ids=str,
)
def test_the_kl_is_from_the_update_start_to_the_policy_of_each_step(settings):
    """With the whole batch in a step the first measures 0, and the second the first's change."""
    settings |= {"target_kl": 100.0, "learning_rate": 1e-3, "minibatch_size": 256}
    agent, rollout = collected_before_a_move(**settings)
    batches = Batches(agent.config, rollout, agent.model.device)
    start = batches.log_prob(agent.model).numpy()
    agent.config.update_epochs = 1
    agent.learn(rollout, 0.0)
    change = batches.log_prob(agent.model).numpy() - start
    change = (change if change.ndim == 2 else change.sum(-1))[rollout.valid]
    expected = np.mean(np.exp(change) - 1 - change)
    assert expected > 1e-5

    again, _ = collected_before_a_move(**settings)
    metrics = again.learn(rollout, 0.0)
    assert metrics["epochs"] == 2
    assert 2 * metrics["update_kl"] == pytest.approx(expected, rel=1e-2)


def test_without_a_control_nothing_is_measured_twice():
    """The forward pass that measures is spent only where a setting depends on it."""
    agent, rollout = collected_before_a_move()
    metrics = agent.learn(rollout, 0.0)
    assert metrics["update_kl"] == metrics["approx_kl"]
