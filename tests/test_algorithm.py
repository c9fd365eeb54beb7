from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from algorithm import PPO
from envs import Spaces
from learning.batches import Minibatch
from learning.passes import Statistics
from model import make_model
from networks.tanh import rational_tanh
from settings.config import Config
from tests.conftest import run_command

BOX = spaces.Box(-1, 1, (3,), np.float32)
OBS = spaces.Box(-np.inf, np.inf, (4,), np.float32)


def make_ppo(action: spaces.Space = BOX, **settings) -> PPO:
    config = Config(compile="off", **settings)
    return PPO(make_model(Spaces(OBS, action, 0), config), config)


def random_batch(ppo: PPO, size=64, seed=0) -> Minibatch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    obs = normal(size, 4)
    with torch.no_grad():
        params = ppo.model.policy(obs)
        distribution = ppo.model.distribution
        action = distribution.sample(params, normal(size, distribution.sub_actions))
        log_prob = distribution.sub_log_prob(params, action)
    if ppo.config.joint_loss == "compound":
        log_prob = log_prob.sum(-1)
    weight = (torch.rand(size, generator=generator) < 0.8).float()
    behaviour = log_prob + 0.3 * normal(*log_prob.shape)
    return Minibatch(obs, action, behaviour, normal(size), normal(size), normal(size), weight)


def slow_surrogate(config: Config, log_ratios: np.ndarray, chose: np.ndarray, a: float) -> float:
    """One transition's objective by the papers' equations, K sub-actions."""

    def clipped(r):
        value = min(r * a, np.clip(r, 0.8, 1.2) * a)
        return max(value, config.dual_clip * a) if config.dual_clip and a < 0 else value

    ratios, joint = np.exp(log_ratios[chose]), np.exp(log_ratios.sum())
    w = config.mix_weight
    if config.joint_loss == "compound":
        return clipped(joint)
    if config.joint_loss == "sub_action":
        return float(np.mean([clipped(r) for r in ratios]))
    if config.joint_loss == "mix_ratio":
        return float(np.mean([clipped(w * r + (1 - w) * joint) for r in ratios]))
    return w * float(np.mean([clipped(r) for r in ratios])) + (1 - w) * clipped(joint)


def slow_loss(ppo: PPO, batch: Minibatch, importance: np.ndarray | None = None) -> dict[str, float]:
    """The papers' equations in float64, one transition at a time, valid ones only."""
    config, model = ppo.config, ppo.model
    scale = float(model.value_head.scale())
    with torch.no_grad():
        params, value = model(batch.obs)
        log_prob = model.distribution.sub_log_prob(params, batch.action).double().numpy()
        entropy = model.distribution.entropy(params).double().numpy()
    behaviour = batch.behaviour_log_prob.double().numpy()
    if behaviour.ndim == 1:
        log_prob, behaviour = log_prob.sum(-1, keepdims=True), behaviour[:, None]
    rows = [i for i in range(len(log_prob)) if batch.weight[i] == 1]
    advantage = batch.advantage.double().numpy()[rows]
    if config.normalize_advantage:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)

    def penalty(error):
        error /= scale
        if config.value_loss == "huber" and abs(error) > 1:
            return 2 * abs(error) - 1
        return error**2

    policy, values, clipped, kl, penalty_kl = [], [], 0, [], []
    for i, a in zip(rows, advantage, strict=True):
        log_ratios = log_prob[i] - behaviour[i]
        r = np.exp(log_ratios.sum())
        share = 1.0 if importance is None else importance[i]
        kl.append(r - 1 - log_ratios.sum())
        penalty_kl.append(share * kl[-1])
        if config.kl_penalty == "none":
            policy.append(share * slow_surrogate(config, log_ratios, behaviour[i] != 0, a))
        else:
            policy.append(share * r * a)
        v, old, target = value[i].item(), batch.old_value[i].item(), batch.value_target[i].item()
        error = penalty(v - target)
        if config.value_clip is not None:
            limit = config.value_clip * scale
            bounded = old + np.clip(v - old, -limit, limit)
            error = max(error, penalty(bounded - target))
        values.append(error)
        clipped += abs(r - 1) > 0.2
    policy_loss = -np.mean(policy)
    if config.kl_penalty != "none":
        excess = max(0.0, np.mean(penalty_kl) - 2 * config.desired_kl)
        policy_loss += config.kl_coefficient * np.mean(penalty_kl)
        policy_loss += config.kl_excess_coefficient * excess**2
    mean_kl = float(np.mean(kl))
    return {
        "policy_loss": float(policy_loss), "value_loss": float(np.mean(values)),
        "entropy": float(np.mean(entropy[rows])), "approx_kl": mean_kl, "update_kl": mean_kl,
        "clip_fraction": clipped / len(rows),
    }  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalize_advantage": False, "entropy_coefficient": 0.1},
        {"value_clip": 0.2, "value_coefficient": 0.25},
        {"value_loss": "huber", "value_clip": 0.5},
        {"value_clip": 0.2, "normalize_value": True},
        {"value_loss": "huber", "value_clip": 0.02, "normalize_value": True},
        {"dual_clip": 1.5},
        {"joint_loss": "sub_action", "dual_clip": 4.0},
        {"joint_loss": "mix_ratio", "mix_weight": 0.3},
        {"joint_loss": "mix_loss", "mix_weight": 0.8, "normalize_advantage": False},
        {"kl_penalty": "fixed", "kl_coefficient": 3.0},
        {"kl_penalty": "adaptive", "kl_excess_coefficient": 50.0, "desired_kl": 0.01},
    ],
)
def test_loss_is_the_papers(settings):
    ppo = make_ppo(**settings)
    if ppo.config.normalize_value:  # values that were learned in units of 3
        targets = torch.randn(100, 1, generator=torch.Generator().manual_seed(5))
        ppo.model.value_head.update_normalizer(3 * targets)
    batch = random_batch(ppo)
    total, parts = ppo.loss(batch)
    expected = slow_loss(ppo, batch)
    assert parts.keys() == expected.keys()
    for name, part in parts.items():
        assert part.item() == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    combined = (
        expected["policy_loss"]
        + ppo.config.value_coefficient * expected["value_loss"]
        - ppo.config.entropy_coefficient * expected["entropy"]
    )
    assert total.item() == pytest.approx(combined, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"joint_loss": "mix_ratio"}, {"kl_penalty": "fixed"}], ids=str
)
def test_reset_rows_have_no_influence_at_all(settings):
    """Also where the behaviour policy's log-probability is NaN, because no action was legal."""
    ppo = make_ppo(**settings)
    batch = random_batch(ppo)
    reset = batch.weight == 0
    rows = reset.unsqueeze(-1) if batch.behaviour_log_prob.dim() == 2 else reset
    spoilt = batch._replace(
        advantage=torch.where(reset, 1e3, batch.advantage),
        value_target=torch.where(reset, -1e3, batch.value_target),
        behaviour_log_prob=torch.where(rows, torch.nan, batch.behaviour_log_prob),
        start_log_prob=torch.where(reset, torch.nan, 0.0),
        importance=torch.where(reset, torch.nan, 1.3),
    )
    batch = batch._replace(
        start_log_prob=torch.zeros(len(reset)), importance=torch.full((len(reset),), 1.3)
    )
    torch.testing.assert_close(ppo.loss(batch), ppo.loss(spoilt), rtol=0, atol=0)
    gradients = [torch.autograd.grad(ppo.loss(b)[0], ppo.parameters) for b in (batch, spoilt)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_the_kl_of_an_update_is_measured_from_its_start():
    ppo = make_ppo()
    batch = random_batch(ppo)
    with torch.no_grad():
        distribution = ppo.model.distribution
        start = distribution.log_prob(ppo.model.policy(batch.obs), batch.action)
    unchanged = ppo.loss(batch._replace(start_log_prob=start))[1]
    assert unchanged["approx_kl"] > 0.01
    assert unchanged["update_kl"] == 0
    moved = ppo.loss(batch._replace(start_log_prob=start - 0.1))[1]
    assert moved["update_kl"].item() == pytest.approx(np.exp(0.1) - 1.1, rel=1e-3)


def test_on_policy_the_ratio_is_one_and_the_gradient_that_of_the_policy_gradient():
    ppo = make_ppo(normalize_advantage=False, value_coefficient=0.0)
    batch = random_batch(ppo)
    with torch.no_grad():
        params = ppo.model.policy(batch.obs)
        log_prob = ppo.model.distribution.log_prob(params, batch.action)
    batch = batch._replace(behaviour_log_prob=log_prob)
    total, parts = ppo.loss(batch)
    assert parts["approx_kl"] == 0
    assert parts["clip_fraction"] == 0
    total.backward()
    log_std = ppo.model.log_std
    assert log_std is not None
    assert log_std.grad is not None
    got = log_std.grad.clone()
    ppo.model.zero_grad()
    log_prob = ppo.model.distribution.log_prob(ppo.model.policy(batch.obs), batch.action)
    (-(log_prob * batch.advantage * batch.weight).sum() / batch.weight.sum()).backward()
    torch.testing.assert_close(got, log_std.grad)


def test_a_step_goes_down_and_reports_the_norm_before_clipping():
    ppo = make_ppo(learning_rate=1e-3, max_grad_norm=0.1)
    batch = random_batch(ppo)
    before = ppo.loss(batch)[0].item()
    norms = [Statistics(*ppo.learn(batch)).grad_norm.item() for _ in range(20)]
    assert ppo.loss(batch)[0].item() < before
    assert max(norms) > 0.1


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("values_rate", "clips"), [(None, "together"), (2e-3, "together"), (None, "apart")]
)
def test_a_step_is_clipping_and_adam_as_torch_has_them(values_rate, clips, shared):
    config = Config(learning_rate=1e-2, value_learning_rate=values_rate, shared_trunk=shared,
                    max_grad_norm=0.1, clip_gradients=clips, compile="off")  # fmt: skip
    ppo, reference = (PPO(make_model(Spaces(OBS, BOX, 0), config), config) for _ in range(2))
    critics = [p for name, p in reference.model.named_parameters()
               if name.startswith(("value_head", "critic")) and not (shared and "critic" in name)]  # fmt: skip
    others = [p for p in reference.parameters if not any(p is critic for critic in critics)]
    groups = [{"params": others}, {"params": critics, "lr": values_rate or 1e-2}]
    optimizer = torch.optim.Adam(groups, lr=1e-2, eps=config.adam_eps)
    for seed in range(5):
        batch = random_batch(ppo, seed=seed)
        ppo.learn(batch)
        optimizer.zero_grad()
        reference.loss(batch)[0].backward()
        for clipped in [reference.parameters] if clips == "together" else [others, critics]:
            torch.nn.utils.clip_grad_norm_(clipped, 0.1)
        optimizer.step()
        for ours, theirs in zip(ppo.parameters, reference.parameters, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


EVERYTHING: dict[str, Any] = {
    "distribution": "tanh_normal", "state_dependent_std": True, "joint_loss": "mix_ratio",
    "dual_clip": 4.0, "normalize_value": True, "noisy_layers": True, "value_loss": "huber",
    "rnd_coefficient": 0.5, "value_coefficient": 7.0, "clip_gradients": "apart",
    "value_epochs": 3,
}  # fmt: skip


def state_of(ppo: PPO) -> list[torch.Tensor]:
    return [*ppo.parameters, ppo.descent.adam.moments, ppo.descent.adam.decay]


def test_compiled_steps_are_the_eager_ones_of_each_learners_own_settings():
    learners = []
    for settings in ({}, EVERYTHING):
        eager = make_ppo(**settings)
        config = dataclasses.replace(eager.config, compile="on")
        compiled = PPO(make_model(Spaces(OBS, BOX, 0), config), config)
        assert compiled.compiled, "the tests need a C++ compiler"
        batch = random_batch(eager)
        if eager.model.rnd is not None:
            two = [torch.stack([x, x + 0.1], -1) for x in (batch.value_target, batch.old_value)]
            batch = batch._replace(
                value_target=two[0], old_value=two[1], predicted=batch.weight.clone(),
                importance=torch.rand(len(batch.weight)),
            )  # fmt: skip
        learners.append((eager, compiled, batch))
    for step in range(5):
        for eager, compiled, batch in learners:
            batch = batch._replace(advantage=batch.advantage + step)
            for ppo in (eager, compiled):
                ppo.descent.policy_learns.fill_(step != 1)
                ppo.descent.value_learns.fill_(step != 2)
            with torch.no_grad():  # Adam makes much of a gradient's last bits, so begin alike
                for ours, theirs in zip(state_of(compiled), state_of(eager), strict=True):
                    ours.copy_(theirs)
            torch.testing.assert_close(
                compiled.learn(batch), eager.learn(batch), rtol=1e-4, atol=1e-5
            )
    # torch's compiler, which takes seconds to import, is of no use to the next run
    program = """
import dataclasses, sys
from tests.test_algorithm import *
config = dataclasses.replace(make_ppo().config, compile="on")
ppo = PPO(make_model(Spaces(OBS, BOX, 0), config), config)
torch.set_num_threads(THREADS)
ppo.learn(random_batch(ppo))
print("torch._dynamo" in sys.modules)
""".replace("THREADS", str(torch.get_num_threads()))
    done = run_command("-c", program)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("x", [torch.linspace(-12, 12, 100_001), torch.logspace(-30, 0, 1001)])
def test_the_tanh_that_is_compiled_is_tanh(x):
    y = rational_tanh(x)
    torch.testing.assert_close(y.double(), x.double().tanh(), rtol=5e-7, atol=0.0)
    assert y.abs().max() <= 1


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 20.0])
def test_the_tanh_of_a_row_whose_halves_share_a_division_is_tanh(scale):
    x = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0)) * scale
    y = rational_tanh(x)
    torch.testing.assert_close(y.double(), x.double().tanh(), rtol=8e-7, atol=0.0)
    assert y.abs().max() <= 1
    x[0, 40] = torch.nan
    assert rational_tanh(x)[0, 40].isnan()


def test_bfloat16_points_where_float32_does_and_leaves_acting_alone():
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    config = Config(network="nature_cnn", shared_trunk=True, compile="off", precision="bfloat16")
    ppo = PPO(make_model(Spaces(space, spaces.Discrete(4), 4), config), config)
    rng = np.random.default_rng(0)
    obs = rng.integers(0, 255, (16, 4, 84, 84), np.uint8)
    acted = ppo.model.act(obs, np.full(16, 0.3, np.float32)).log_prob
    gradients = []
    for bfloat16 in (True, False):
        ppo.model.bfloat16 = bfloat16
        params, value = ppo.model(torch.from_numpy(obs))
        assert params.dtype == value.dtype == torch.float32
        loss = (params * torch.arange(4)).sum() + (value - 3).square().sum()
        parts = torch.autograd.grad(loss, ppo.parameters)
        gradients.append(torch.cat([part.flatten() for part in parts]))
        np.testing.assert_array_equal(
            ppo.model.act(obs, np.full(16, 0.3, np.float32)).log_prob, acted
        )
    assert not torch.equal(*gradients)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
