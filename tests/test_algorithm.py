from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from algorithm import PPO, STATISTICS, Minibatch, choose_bfloat16, choose_compile
from config import Config
from envs import Spaces
from model import make_model

BOX = spaces.Box(-1, 1, (3,), np.float32)
OBS = spaces.Box(-np.inf, np.inf, (4,), np.float32)


def make_ppo(action=BOX, **settings) -> PPO:
    config = Config(compile="off", **settings)
    return PPO(make_model(Spaces(OBS, action, 0), config), config)


def random_batch(ppo: PPO, size=64, seed=0) -> Minibatch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    obs = normal(size, 4)
    with torch.no_grad():
        params = ppo.model.policy(obs)
        action = ppo.model.distribution.sample(params, normal(size, 3))
        log_prob = ppo.model.distribution.log_prob(params, action)
    weight = (torch.rand(size, generator=generator) < 0.8).float()
    return Minibatch(
        obs, action, log_prob + 0.3 * normal(size), normal(size), normal(size), normal(size), weight
    )


def slow_loss(ppo: PPO, batch: Minibatch, clip: float) -> dict[str, float]:
    """The paper's equations in float64, one transition at a time, valid ones only."""
    config, model = ppo.config, ppo.model
    with torch.no_grad():
        params, value = model(batch.obs)
        log_prob = model.distribution.log_prob(params, batch.action).double().numpy()
        entropy = model.distribution.entropy(params).double().numpy()
    rows = [i for i in range(len(log_prob)) if batch.weight[i] == 1]
    advantage = batch.advantage.double().numpy()[rows]
    if config.normalize_advantage:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy, values, clipped, kl = [], [], 0, []
    for i, a in zip(rows, advantage, strict=True):
        log_ratio = log_prob[i] - batch.behaviour_log_prob[i].item()
        r = np.exp(log_ratio)
        policy.append(min(r * a, np.clip(r, 1 - clip, 1 + clip) * a))
        v, old, target = value[i].item(), batch.old_value[i].item(), batch.value_target[i].item()
        error = (v - target) ** 2
        if config.value_clip is not None:
            bounded = old + np.clip(v - old, -config.value_clip, config.value_clip)
            error = max(error, (bounded - target) ** 2)
        values.append(error)
        clipped += abs(r - 1) > clip
        kl.append(r - 1 - log_ratio)
    return {
        "policy_loss": -np.mean(policy), "value_loss": np.mean(values),
        "entropy": np.mean(entropy[rows]), "approx_kl": np.mean(kl),
        "clip_fraction": clipped / len(rows),
    }  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalize_advantage": False, "entropy_coefficient": 0.1},
        {"value_clip": 0.2, "value_coefficient": 0.25},
    ],
)
def test_loss_is_the_papers(settings):
    ppo = make_ppo(**settings)
    batch = random_batch(ppo)
    total, parts = ppo.loss(batch, torch.tensor(0.2))
    expected = slow_loss(ppo, batch, 0.2)
    for name, part in zip(STATISTICS, parts.tolist(), strict=False):
        assert part == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    combined = (
        expected["policy_loss"]
        + ppo.config.value_coefficient * expected["value_loss"]
        - ppo.config.entropy_coefficient * expected["entropy"]
    )
    assert total.item() == pytest.approx(combined, rel=1e-4, abs=1e-5)


def test_reset_rows_have_no_influence_at_all():
    ppo = make_ppo()
    batch = random_batch(ppo)
    spoilt = batch._replace(
        advantage=torch.where(batch.weight == 0, 1e3, batch.advantage),
        value_target=torch.where(batch.weight == 0, -1e3, batch.value_target),
    )
    for one, two in zip(
        ppo.loss(batch, torch.tensor(0.2)), ppo.loss(spoilt, torch.tensor(0.2)), strict=True
    ):
        assert torch.equal(one, two)


def test_on_policy_the_ratio_is_one_and_the_gradient_that_of_the_policy_gradient():
    ppo = make_ppo(normalize_advantage=False, value_coefficient=0.0)
    batch = random_batch(ppo)
    with torch.no_grad():
        params = ppo.model.policy(batch.obs)
        log_prob = ppo.model.distribution.log_prob(params, batch.action)
    batch = batch._replace(behaviour_log_prob=log_prob)
    total, parts = ppo.loss(batch, torch.tensor(0.2))
    assert parts[STATISTICS.index("approx_kl")] == 0
    assert parts[STATISTICS.index("clip_fraction")] == 0
    total.backward()
    got = ppo.model.log_std.grad.clone()
    ppo.model.zero_grad()
    log_prob = ppo.model.distribution.log_prob(ppo.model.policy(batch.obs), batch.action)
    (-(log_prob * batch.advantage * batch.weight).sum() / batch.weight.sum()).backward()
    torch.testing.assert_close(got, ppo.model.log_std.grad)


def test_a_step_goes_down_and_reports_the_norm_before_clipping():
    ppo = make_ppo(learning_rate=1e-3, max_grad_norm=0.1)
    batch = random_batch(ppo)
    before = ppo.loss(batch, torch.tensor(0.2))[0].item()
    norms = [ppo.learn(batch)[STATISTICS.index("grad_norm")].item() for _ in range(20)]
    assert ppo.loss(batch, torch.tensor(0.2))[0].item() < before
    assert max(norms) > 0.1


def test_a_step_is_clipping_and_adam_as_torch_has_them():
    config = Config(learning_rate=1e-2, max_grad_norm=0.1)
    ppo, reference = (PPO(make_model(Spaces(OBS, BOX, 0), config), config) for _ in range(2))
    optimizer = torch.optim.Adam(reference.parameters, lr=1e-2, eps=config.adam_eps)
    for seed in range(5):
        batch = random_batch(ppo, seed)
        ppo.learn(batch)
        optimizer.zero_grad()
        reference.loss(batch, torch.tensor(0.2))[0].backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters, 0.1)
        optimizer.step()
        for ours, theirs in zip(ppo.parameters, reference.parameters, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_compiled_step_is_the_eager_one():
    eager = make_ppo()
    config = Config(compile="on")
    compiled = PPO(make_model(Spaces(OBS, BOX, 0), config), config)
    assert compiled.compiled, "the tests need a C++ compiler"
    batch = random_batch(eager)
    for _ in range(5):
        torch.testing.assert_close(eager.learn(batch), compiled.learn(batch), rtol=1e-4, atol=1e-5)


def test_compiling_is_for_runs_that_are_long_enough(monkeypatch):
    assert not choose_compile(Config(train_total_steps=100_000))[0]
    assert choose_compile(Config(train_total_steps=10_000_000))[0]
    assert not choose_compile(Config(train_total_steps=10_000_000, compile="off"))[0]
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    wanted, note = choose_compile(Config(compile="on"))
    assert not wanted
    assert "no C++ compiler" in note


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
        assert torch.equal(ppo.model.act(obs, np.full(16, 0.3, np.float32)).log_prob, acted)
    assert not torch.equal(*gradients)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_bfloat16_is_for_images_where_the_processor_has_it(monkeypatch):
    cpu = torch.device("cpu")
    for has_it in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has_it: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert choose_bfloat16(Config(network="nature_cnn"), cpu) == has_it
        assert not choose_bfloat16(Config(network="mlp"), cpu)
        assert not choose_bfloat16(Config(network="nature_cnn", precision="float32"), cpu)
