"""Passes over a batch of the value function's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from algorithm import PPO
from envs import Spaces
from model import make_model
from settings.config import Config
from tests.test_agent import collect, make, small
from tests.test_algorithm import BOX, OBS, random_batch


def learned(updates: int = 1, **settings) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The weights after some updates, and the last one's metrics."""
    agent, pool = make(small("Pendulum-v1", clip_gradients="apart", **settings))
    for update in range(updates):
        metrics = agent.learn(collect(agent, pool, update), 0.0)
    pool.close()
    return agent.weights().arrays, metrics


def differing(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> set[str]:
    names = {name for name, array in one.items() if not np.array_equal(array, two[name])}
    return {"value" if name.startswith(("critic", "value_head")) else "policy" for name in names}


@pytest.mark.parametrize(("policy", "value"), [(1, 3), (3, 1)])
def test_the_longer_one_goes_on_alone(policy, value):
    alike, _ = learned(update_epochs=1, value_epochs=1)
    weights, metrics = learned(update_epochs=policy, value_epochs=value)
    assert (metrics["epochs"], metrics["value_epochs"]) == (policy, value)
    assert differing(weights, alike) == {"value" if value > policy else "policy"}


def test_as_many_of_both_are_as_without_the_setting():
    usual, _ = learned(updates=3, update_epochs=2)
    weights, _ = learned(updates=3, update_epochs=2, value_epochs=2)
    for name, array in usual.items():
        np.testing.assert_allclose(weights[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("value", "differs"), [(3, {"value"}), (1, set())])
def test_the_value_function_goes_on_where_a_target_stops_the_policy(value, differs):
    """The policy stays where it is, though it would be let go on by the other's passes."""
    settings = {"target_kl": 0.0, "update_epochs": 4}
    alike, metrics = learned(**settings)
    assert metrics["epochs"] == 1
    weights, metrics = learned(value_epochs=value, **settings)
    assert (metrics["epochs"], metrics["value_epochs"]) == (1, value)
    assert differing(weights, alike) == differs


def test_what_is_said_of_the_policy_is_of_its_own_passes():
    _, usual = learned(update_epochs=2, learning_rate_schedule="kl")
    _, longer = learned(update_epochs=2, value_epochs=6, learning_rate_schedule="kl")
    for name in ("loss/policy", "entropy", "approx_kl", "update_kl", "clip_fraction"):
        assert longer[name] == pytest.approx(usual[name], rel=1e-4, abs=1e-7), name
    assert longer["loss/value"] < usual["loss/value"]


def test_a_trunk_in_common_is_the_policys():
    alike, _ = learned(shared_trunk=True, update_epochs=1, value_epochs=1)
    weights, _ = learned(shared_trunk=True, update_epochs=1, value_epochs=3)
    changed = {name for name, array in alike.items() if not np.array_equal(array, weights[name])}
    assert changed == {"value_head.weight", "value_head.bias"}


@pytest.mark.parametrize("shared", [False, True])
def test_policy_and_value_function_learn_each_in_its_own_steps(shared):
    """As if each had an optimiser of its own, which rests where the other learns alone."""
    config = Config(learning_rate=1e-2, shared_trunk=shared, max_grad_norm=0.1, value_epochs=1,
                    compile="off")  # fmt: skip
    ppo, reference = (PPO(make_model(Spaces(OBS, BOX, 0), config), config) for _ in range(2))
    critics = reference.model.value_parameters()
    others = [p for p in reference.parameters if not any(p is critic for critic in critics)]
    adams = [torch.optim.Adam(some, lr=1e-2, eps=config.adam_eps) for some in (others, critics)]
    learning = [(True, True), (False, True), (True, True), (True, False), (False, True)]
    for seed, learns in enumerate(learning):
        batch = random_batch(ppo, seed=seed)
        for algorithm in (ppo, reference):
            algorithm.descent.policy_learns.fill_(learns[0])
            algorithm.descent.value_learns.fill_(learns[1])
        ppo.learn(batch)
        for adam in adams:
            adam.zero_grad()
        total, parts = reference.loss(batch)
        if not learns[1]:  # then a shared trunk learns for the policy alone
            total = reference.loss(batch._replace(value_target=batch.value_target + 5))[0]
        total.backward()
        moving = [p for some, on in zip((others, critics), learns, strict=True) if on for p in some]
        torch.nn.utils.clip_grad_norm_(moving, 0.1)
        for adam, on in zip(adams, learns, strict=True):
            if on:
                adam.step()
        for ours, theirs in zip(ppo.parameters, reference.parameters, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert parts["value_loss"] > 0
