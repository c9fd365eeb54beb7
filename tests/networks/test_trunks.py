from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces

from cluster.sampler import Sampler
from envs import Spaces
from model import make_model
from networks.images import NATURE_BLOCK, in_blocks, nature_cnn
from networks.layers import NoisyLinear, WrongNetwork
from networks.rules import refuse_unfit
from networks.trunks import IMAGE, TRUNKS, VECTOR, trunk_of
from rollout import Rollout
from settings.config import Config, ConfigError
from tests.conftest import ROOT
from tests.networks import own

VECTORS = Spaces(spaces.Box(-np.inf, np.inf, (5,), np.float32), spaces.Discrete(4), 0)
BYTES = Spaces(spaces.Box(0, 255, (3, 40, 40), np.uint8), spaces.Discrete(4), 0)
OWN = "tests.networks.own"


@pytest.mark.parametrize(
    ("env_spaces", "network", "settings"),
    [
        (VECTORS, "examples.my_network:Residual", {}),
        (VECTORS, "examples.my_network:Residual", {"distribution": "categorical"}),
        (VECTORS, f"{OWN}:Average", {"batch_size": 64, "minibatch_size": 64}),
        (VECTORS, f"{OWN}:Average", {"shared_trunk": True, "minibatch_size": 256}),
        (VECTORS, "lstm", {"minibatch_size": 256}),
        (VECTORS, "mlp", {"noisy_layers": True}),
        (BYTES, f"{OWN}:Pictures", {}),
    ],
)
def test_a_row_acts_alike_in_any_company(env_spaces, network, settings):
    config = Config(network=network, normalize_observation=env_spaces is VECTORS, **settings)
    model = make_model(env_spaces, config)
    rng = np.random.default_rng(0)
    obs = np.stack([env_spaces.observation.sample() for _ in range(64)])
    noise, state = (
        rng.random((64, *model.distribution.noise_shape), np.float32),
        model.initial_state(64),
    )
    state[:] = rng.standard_normal(state.shape)
    whole = model.act(obs, noise, None, state)
    for rows in (slice(0, 1), slice(1, 3), slice(3, 6), slice(5, 22), slice(40, 64)):
        part = model.act(obs[rows], noise[rows], None, state[rows], rows.start)
        np.testing.assert_array_equal(part.log_prob, whole.log_prob[rows])
        np.testing.assert_array_equal(part.action, whole.action[rows])
        assert (part.state is None) == (model.state_size == 0)
        if part.state is not None and whole.state is not None:
            np.testing.assert_array_equal(part.state, whole.state[rows])


@pytest.mark.parametrize("network", ["examples.my_network:Residual", f"{OWN}:Average"])
def test_networks_of_ones_own_collect_alike_however_environments_are_spread(network):
    config = Config(
        env="tests.toy_envs:Remember", network=network, env_num=5, rollout_steps=20,
        minibatch_size=20,
    )  # fmt: skip
    rollouts = []
    for edges in ([0, 5], [0, 3, 5], [0, 1, 2, 3, 4, 5]):
        parts = []
        for first, last in itertools.pairwise(edges):
            sampler = Sampler(config, first, last)
            parts.append(Rollout.empty(sampler.spec, last - first))
            sampler.collect(0, True, parts[-1])
            sampler.collect(1, False, parts[-1])
            sampler.close()
        arrays = [part.arrays() for part in parts]
        rollouts.append({name: np.concatenate([a[name] for a in arrays], 1) for name in arrays[0]})
    for rollout in rollouts[1:]:
        for name, array in rollout.items():
            np.testing.assert_array_equal(array, rollouts[0][name], err_msg=name)


def test_the_documents_example_of_a_network_with_a_state_is_the_tested_one():
    assert inspect.getsource(own.Average) in (ROOT / "docs" / "algorithms.md").read_text()


def test_a_class_of_ones_own_is_recurrent_where_its_forward_takes_a_state():
    assert trunk_of(f"{OWN}:Average").remembers
    assert not trunk_of("examples.my_network:Residual").remembers
    assert (
        make_model(VECTORS, Config(network=f"{OWN}:Average", minibatch_size=256)).state_size == 64
    )


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nosuch", "give --network mlp, lstm, transformer, nature_cnn"),
        ("impala", "--network mlp, lstm or module:Class"),
        ("lstm", "hidden_sizes is empty"),
        (f"{OWN}:WithoutSize", "attribute state_size is None"),
        (f"{OWN}:WrongSize", r"(?s)fails on observations|state \[2, 32\]"),
        (f"{OWN}:Tensor", "is no subclass of nn.Module"),
        (f"{OWN}:Pictures", "cannot be made for observations of shape .5,."),
        (f"{OWN}:Planes", "cannot be made for .*: IndexError: tuple index out of range"),
        (f"{OWN}:Asserts", "fails on observations .*: AssertionError: images only"),
        (f"{OWN}:Normalises", "has a BatchNorm1d, whose output depends on the other observations"),
        (f"{OWN}:Drops", "has a Dropout, whose output depends on chance"),
        (f"{OWN}:Double", r"gives torch.float64, but .* end its forward with .float\(\)"),
        (f"{OWN}:Half", r"has dense.weight of torch.bfloat16, which numpy does not have"),
        (f"{OWN}:Attends", "has a MultiheadAttention, whose output depends on chance"),
    ],
)
def test_a_network_that_cannot_be_used_says_why(name, complaint):
    with pytest.raises(WrongNetwork, match=complaint):
        make_model(VECTORS, Config(network=name, minibatch_size=256, hidden_sizes=()))


@pytest.mark.parametrize(
    ("network", "settings", "complaint"),
    [
        ("lstm", {"minibatch_size": 16}, "lstm learns from whole .* no multiple of the 256 steps"),
        ("own:Average", {"minibatch_size": 16}, "network .*Average learns from whole sequences"),
        ("own:Average", {"carried_steps": 8}, "cannot carry steps over"),
        ("lstm", {"precision": "bfloat16"}, "float32 alone"),
        ("gridnet", {"noisy_layers": True}, "no layer that can be perturbed"),
    ],
)
def test_settings_that_a_network_cannot_have_are_refused(network, settings, complaint):
    config = Config(network=network.replace("own", OWN), **{"minibatch_size": 256} | settings)
    with pytest.raises(ConfigError, match=complaint):
        refuse_unfit(VECTORS, config)


@pytest.mark.parametrize("name", TRUNKS)
def test_every_network_of_the_table_is_made_and_acts(name):
    trunk, action, structure = TRUNKS[name], spaces.Discrete(4), None
    if trunk.axes == IMAGE:
        observation = spaces.Box(0, 255, (3, 40, 40), np.uint8)
    else:
        shape = (5,) if trunk.axes == VECTOR else (6, 4)
        observation = spaces.Box(-1, 1, shape, np.float32)
    if trunk.per_cell:
        action, structure = spaces.MultiDiscrete([3, 2] * 1600), ("grid", 1600)
    env_spaces = Spaces(observation, action, 0, trunk.per_cell, 0, structure)
    model = make_model(env_spaces, Config(network=name, minibatch_size=256))
    mask = np.ones((1, 8000), bool) if trunk.per_cell else None
    acted = model.act(observation.sample()[None], None, mask, model.initial_state(1))
    assert acted.action.shape == (1, *model.distribution.action_shape)
    assert np.isfinite(acted.log_prob).all()


def test_a_greedy_action_that_fails_leaves_the_noise_on():
    model = make_model(VECTORS, Config(noisy_layers=True))
    obs, noise = np.ones((3, 5), np.float32), np.full(3, 0.4, np.float32)
    before = model.act(obs, noise).log_prob
    with pytest.raises(RuntimeError, match="shape"):
        model.act(np.ones((3, 4), np.float32), None)
    np.testing.assert_array_equal(model.act(obs, noise).log_prob, before)
    layers = [m for m in model.modules() if isinstance(m, NoisyLinear)]
    with NoisyLinear.quiet(layers):
        assert not np.array_equal(model.act(obs, noise).log_prob, before)


@pytest.mark.parametrize("network", ["gridnet", "gridnet_cnn", "microrts_cnn", "mlp"])
def test_trunks_compute_in_bfloat16_and_heads_in_float32(network):
    if network == "mlp":
        env_spaces, mask = VECTORS, None
    else:
        observation, action = (
            spaces.Box(0, 1, (8, 8, 27), np.uint8),
            spaces.MultiDiscrete([3, 2] * 64),
        )
        env_spaces = Spaces(observation, action, 0, True, 0, ("grid", 64))
        if network == "microrts_cnn":
            action = spaces.MultiDiscrete([64, 3, 2])
            env_spaces = Spaces(observation, action, 0, True, 0, ("unit_selection", 64))
        mask = torch.ones(2, 320 if network != "microrts_cnn" else 69, dtype=torch.bool)
    model = make_model(env_spaces, Config(network=network))
    model.bfloat16 = True
    obs = torch.from_numpy(np.stack([env_spaces.observation.sample() for _ in range(2)]))
    params, value = model(obs, mask)
    assert value.dtype == torch.float32
    assert model.distribution.entropy(params).dtype == torch.float32


def test_images_in_blocks_have_the_same_features():
    network, images = nature_cnn((3, 90, 70)), torch.rand(2, 3, 90, 70)  # no multiples of a block
    with torch.no_grad():
        torch.testing.assert_close(network(in_blocks(images, NATURE_BLOCK)), network(images))
