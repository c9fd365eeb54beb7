"""The learner on a GPU does what it does on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agent import PPOAgent
from algorithm import PPO
from cluster.sampler import spec_of
from envs import Spaces
from model import make_model
from rollout import Rollout
from settings.config import Config
from training.device_check import what_is_wrong

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")

VECTOR = Spaces(spaces.Box(-1, 1, (5,), np.float32), spaces.Box(-1, 1, (2,), np.float32), 0)
IMAGE = Spaces(spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(6), 4)

NETWORKS = pytest.mark.parametrize(
    ("env_spaces", "settings"),
    [
        (VECTOR, {}),
        (VECTOR, {"value_epochs": 4, "replay_batches": 1, "clip_from": "start"}),
        (VECTOR, {"distribution": "tanh_normal"}),
        (VECTOR, {"distribution": "beta"}),
        (IMAGE, {"network": "nature_cnn", "shared_trunk": True}),
    ],
    ids=["vector", "replay", "tanh_normal", "beta", "image"],
)


def learned(env_spaces: Spaces, device: str, **settings) -> dict[str, np.ndarray]:
    """The weights after three updates on made-up data."""
    config = Config(
        env_num=8, batch_size=256, minibatch_size=64, update_epochs=2, precision="float32",
        **settings,
    )  # fmt: skip
    model = make_model(env_spaces, config).to(device)
    agent = PPOAgent(PPO(model, config), config)
    rollout = Rollout.empty(spec_of(model, config), config.env_num)
    generator = np.random.default_rng(0)
    for _update in range(3):
        for array in (rollout.obs, rollout.history):
            if array is not None and array.dtype == np.uint8:
                array[:] = generator.integers(0, 255, array.shape)
        if rollout.obs.dtype != np.uint8:
            rollout.obs[:] = generator.standard_normal(rollout.obs.shape)
        if rollout.action.dtype == np.int64:
            rollout.action[:] = generator.integers(0, 6, rollout.action.shape)
        rollout.reward[:] = generator.standard_normal(rollout.reward.shape)
        rollout.behaviour_log_prob[:] = -2.0
        rollout.valid[:] = True
        rollout.env_ranges = [(0, config.env_num)]
        agent.learn(rollout, 0.0)
    return agent.weights().arrays


@NETWORKS
def test_the_data_of_this_file_is_learned_from(env_spaces, settings):
    before = make_model(env_spaces, Config(**settings)).get_weights()
    after = learned(env_spaces, "cpu", compile="off", **settings)
    assert any(np.abs(after[name] - before[name]).max() > 1e-4 for name in after)


@needs_gpu
@pytest.mark.parametrize("compile", ["off", "on"])
@NETWORKS
def test_a_gpu_learns_what_the_cpu_learns(env_spaces, settings, compile, monkeypatch):
    # of float32, cuDNN's convolutions would keep TF32's 11 bits
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    on_cpu = learned(env_spaces, "cpu", compile="off", **settings)
    on_gpu = learned(env_spaces, "cuda", compile=compile, **settings)
    for name, expected in on_cpu.items():
        np.testing.assert_allclose(on_gpu[name], expected, rtol=1e-2, atol=1e-3, err_msg=name)


@needs_gpu
@pytest.mark.parametrize("compile", ["off", "on"])
@NETWORKS
def test_a_run_that_begins_on_a_gpu_finds_nothing_wrong(env_spaces, settings, compile):
    config = Config(env_num=8, batch_size=256, minibatch_size=64, compile=compile, **settings)
    assert what_is_wrong(config, env_spaces, "cuda") == ""
