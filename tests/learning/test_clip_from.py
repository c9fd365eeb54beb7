"""The decoupled objective: older data, with the ratio clipped around the update's start."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from agent import PPOAgent
from learning.advantages import MOST_IMPORTANCE, measure_start
from learning.batches import Batches, Minibatch
from rollout import Rollout
from tests.test_agent import collect, make, small
from tests.test_algorithm import make_ppo, random_batch, slow_loss

WHOLE = {"minibatch_size": 256, "update_epochs": 1}  # the batch is one minibatch


def moved(env: str, by: float = 0.3, **settings) -> tuple[PPOAgent, Rollout]:
    """An agent at lag 1, and a fragment from before its policy moved by some noise."""
    agent, pool = make(small(env, **settings))
    rollout = copy.deepcopy(collect(agent, pool))
    pool.close()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in agent.alg.parameters:
            parameter.add_(by * torch.randn(parameter.shape, generator=generator) * 0.1)
    return agent, rollout


def first_minibatch(agent: PPOAgent, rollout: Rollout, advantage: np.ndarray) -> Minibatch:
    batches = Batches(agent.config, rollout, agent.model.device)
    measure_start(agent.config, rollout, batches, agent.model)
    zeros = np.zeros_like(advantage)
    batches.put(advantage=advantage, value_target=zeros, old_value=zeros)
    return batches.epoch(np.random.default_rng(0))[0][0]


def an_advantage(rollout: Rollout) -> np.ndarray:
    return np.random.default_rng(1).normal(size=rollout.reward.shape).astype(np.float32)


def test_the_objective_is_the_papers():
    """E[p_start / p_behaviour min(r A, clip(r) A)] with r = p / p_start, row by row."""
    settings = {"normalize_advantage": False} | WHOLE
    agent, rollout = moved("CartPole-v1", by=3.0, clip_from="start", **settings)
    advantage, model = an_advantage(rollout), agent.model
    batch = first_minibatch(agent, rollout, advantage)

    def probability() -> np.ndarray:
        with torch.no_grad():
            params = model.policy(torch.from_numpy(rollout.obs[:-1]).flatten(0, 1))
            chosen = params.log_softmax(-1).exp().numpy()
        return chosen.reshape(*rollout.reward.shape, 2)

    start = probability()
    with torch.no_grad():
        model.policy_head.get_parameter("bias").add_(torch.tensor([0.3, -0.3]))
    now = probability()
    terms, weights = [], []
    for t, n in np.argwhere(rollout.valid):
        a = rollout.action[t, n]
        ratio = now[t, n, a] / start[t, n, a]
        weights.append(start[t, n, a] / np.exp(rollout.behaviour_log_prob[t, n]))
        surrogate = min(ratio * advantage[t, n], np.clip(ratio, 0.8, 1.2) * advantage[t, n])
        terms.append(weights[-1] * surrogate)
    assert min(weights) < 0.8
    assert max(weights) > 1.6
    parts = agent.alg.loss(batch)[1]
    assert parts["clip_fraction"] > 0.1
    assert parts["policy_loss"].item() == pytest.approx(-np.mean(terms), rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dual_clip": 1.5},
        {"joint_loss": "sub_action", "dual_clip": 4.0},
        {"joint_loss": "mix_ratio", "mix_weight": 0.3},
        {"joint_loss": "mix_loss", "normalize_advantage": False},
        {"kl_penalty": "fixed", "kl_coefficient": 3.0},
        {"kl_penalty": "adaptive", "kl_excess_coefficient": 50.0, "value_clip": 0.2},
    ],
    ids=str,
)
def test_every_loss_weighs_its_rows(settings):
    ppo = make_ppo(**settings)
    batch = random_batch(ppo)
    importance = torch.rand(len(batch.weight), generator=torch.Generator().manual_seed(3))
    parts = ppo.loss(batch._replace(importance=importance))[1]
    expected = slow_loss(ppo, batch, importance.double().numpy())
    for name, part in parts.items():
        assert part.item() == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("HalfCheetah-v4", {}),
        ("HalfCheetah-v4", {"noisy_layers": True, "joint_loss": "mix_ratio"}),
        ("CartPole-v1", {"carried_steps": 32, "policy_lag": 0}),
        ("CartPole-v1", {"kl_penalty": "adaptive", "target_kl": 10.0}),
        ("CartPole-v1", {"policy_lag": 2}),
        ("CartPole-v1", {"estimator": "vtrace", "rho_clip": 3.0}),
        ("tests.toy_envs:Masked", {"joint_loss": "sub_action"}),
        ("tests.toy_envs:Remember", {"network": "lstm"}),
        ("tests.toy_envs:Remember", {"network": "transformer"}),
        ("microrts-8x8", {"opponents": ("passiveAI",)}),
    ],
    ids=str,
)
def test_the_first_minibatch_has_ratio_one_and_the_weighted_policy_gradient(env, settings):
    """At any lag."""
    settings = {"normalize_advantage": False, "value_coefficient": 0.0,
                "entropy_coefficient": 0.0, "precision": "float32"} | WHOLE | settings  # fmt: skip
    agent, rollout = moved(env, clip_from="start", **settings)
    batch = first_minibatch(agent, rollout, an_advantage(rollout)[: agent.config.steps_per_rollout])
    assert batch.importance is not None
    valid = batch.weight > 0
    assert 0 < batch.importance[valid].min() < 0.999
    assert batch.importance[valid].max() > 1.001
    model = agent.model
    distribution = model.distribution

    def log_prob() -> Tensor:
        params = model.policy(batch.obs, batch.action_mask, batch.past)
        return distribution.sub_log_prob(params, batch.action)

    total, parts = agent.alg.loss(batch)
    assert parts["approx_kl"].item() == pytest.approx(0.0, abs=1e-6)
    assert parts["clip_fraction"] == 0
    got = torch.autograd.grad(total, agent.alg.parameters, allow_unused=True)
    weight = batch.importance * batch.weight / batch.weight.sum() * batch.advantage
    chosen = log_prob()
    if agent.config.joint_loss == "sub_action":  # each sub-action's share of the mean
        assert batch.behaviour_log_prob.dim() == 2
        had_a_choice = (batch.behaviour_log_prob != 0).float()
        joint = (chosen * had_a_choice).sum(-1) / had_a_choice.sum(-1).clamp(min=1.0)
    elif agent.config.joint_loss == "mix_ratio":
        joint = 0.5 * chosen.mean(-1) + 0.5 * chosen.sum(-1)
    else:
        joint = chosen.sum(-1)
    loss = -torch.where(valid, weight * joint, 0.0).sum()
    expected = torch.autograd.grad(loss, agent.alg.parameters, allow_unused=True)
    pairs = [(g, e) for g, e in zip(got, expected, strict=True) if e is not None]
    assert sum(float(e.abs().sum()) for _, e in pairs) > 0
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    metrics = agent.learn(rollout, 0.0)
    assert abs(metrics["first_minibatch_kl"]) < 1e-6


def test_no_row_outweighs_the_others_beyond_measure():
    agent, rollout = moved("CartPole-v1", clip_from="start", **WHOLE)
    rollout.behaviour_log_prob[0, :2] = -200.0
    importance = first_minibatch(agent, rollout, an_advantage(rollout)).importance
    assert importance is not None
    assert importance.max().item() == pytest.approx(MOST_IMPORTANCE)


def learned(rollout: Rollout, agent: PPOAgent) -> dict[str, np.ndarray]:
    agent.learn(copy.deepcopy(rollout), 0.0)
    return agent.weights().arrays


@pytest.mark.parametrize("env", ["CartPole-v1", "HalfCheetah-v4", "tests.toy_envs:Masked"])
def test_where_the_data_are_new_nothing_changes(env):
    """To the bit at lag 0; at lag 1, where the policy that acted happens to be the start's, up to
    rounding: the rows are evaluated beside others than when they acted."""
    weights = {}
    for policy_lag in (0, 1):
        for clip_from in ("behaviour", "start"):
            config = small(env, policy_lag=policy_lag, clip_from=clip_from, update_epochs=1)
            agent, pool = make(config)
            weights[policy_lag, clip_from] = learned(collect(agent, pool), agent)
            pool.close()
    for name, array in weights[0, "behaviour"].items():
        np.testing.assert_array_equal(weights[0, "start"][name], array, err_msg=name)
        np.testing.assert_array_equal(weights[1, "behaviour"][name], array, err_msg=name)
        np.testing.assert_allclose(
            weights[1, "start"][name], array, rtol=1e-3, atol=2e-4, err_msg=name
        )


def test_where_the_data_are_older_something_else_is_learned():
    weights = []
    for clip_from in ("behaviour", "start"):
        agent, rollout = moved("CartPole-v1", by=3.0)
        agent.config = agent.alg.config = dataclasses.replace(agent.config, clip_from=clip_from)
        weights.append(learned(rollout, agent)["policy_head.weight"])
    assert np.abs(weights[0] - weights[1]).max() > 1e-4


def test_v_trace_has_the_weight_in_its_advantages_and_not_twice():
    weights = []
    for clip_from in ("behaviour", "start"):
        agent, rollout = moved("CartPole-v1", estimator="vtrace", clip_from=clip_from)
        weights.append(learned(rollout, agent))
    for name, array in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], array, err_msg=name)
