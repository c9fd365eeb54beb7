from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from distributions.make import make_distribution
from envs import Spaces
from envs.microrts.game import CHOICES, COMPONENTS
from model import ActorCritic, WrongNetwork, make_model
from networks.precision import takes_bfloat16
from settings.config import Config

VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float32)
IMAGE = spaces.Box(0, 255, (4, 84, 84), np.uint8)
CONTINUOUS = spaces.Box(-1, 1, (3,), np.float32)
DISCRETE = spaces.Discrete(4)


def vector_model(action: spaces.Space = CONTINUOUS, **settings) -> ActorCritic:
    normalized: dict[str, Any] = {"normalize_observation": True}
    return make_model(Spaces(VECTOR, action, 0), Config(**(normalized | settings)))


def test_the_seed_decides_the_weights_and_nothing_else_is_disturbed():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, two, other = vector_model(seed=0), vector_model(seed=0), vector_model(seed=1)
    assert torch.equal(torch.rand(1), expected)
    for name, array in one.get_weights().items():
        np.testing.assert_array_equal(array, two.get_weights()[name])
    assert not np.array_equal(
        one.get_weights()["actor.0.weight"], other.get_weights()["actor.0.weight"]
    )


@pytest.mark.parametrize("distribution", ["tanh_normal", "beta", "normal"])
def test_a_distributions_constants_move_to_another_device_with_the_model(distribution):
    model = vector_model(distribution=distribution).to("meta")
    constants = [x for x in vars(model.distribution).values() if isinstance(x, torch.Tensor)]
    assert constants
    assert {constant.device.type for constant in constants} == {"meta"}


def test_weights_are_a_copy():
    model = vector_model()
    weights = model.get_weights()
    assert model.log_std is not None
    assert model.moments is not None
    with torch.no_grad():
        model.log_std.add_(1)
        model.moments.mean.add_(1)
    assert weights["log_std"].max() == 0
    assert weights["moments.mean"].max() == 0
    model.set_weights(weights)
    assert model.log_std.max() == 0


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("image", [False, True])
def test_one_pass_equals_two(shared, image):
    config = Config(network="nature_cnn" if image else "mlp", shared_trunk=shared)
    model = make_model(Spaces(IMAGE if image else VECTOR, DISCRETE, 0), config)
    obs = torch.randint(0, 255, (6, 4, 84, 84), dtype=torch.uint8) if image else torch.randn(6, 5)
    params, value = model(obs)
    torch.testing.assert_close(params, model.policy(obs))
    torch.testing.assert_close(value, model.value(obs))
    assert (model.critic is model.actor) == shared
    params.sum().backward()
    touched = model.critic.get_parameter("0.weight").grad is not None
    assert touched == shared


needs_bfloat16 = pytest.mark.skipif(
    not takes_bfloat16(),
    reason="oneDNN has no bfloat16 for this processor: it needs AVX-512",
)
MAP = spaces.Box(0, 1, (8, 10, 27), np.uint8)
GRID = spaces.MultiDiscrete(list(COMPONENTS * 80))
UNIT = spaces.MultiDiscrete([80, *COMPONENTS])


def spaces_for(observation, action, privileged=0) -> Spaces:
    """As an environment says them; those of the map have masks and a structure."""
    structure = ("grid", 80) if action is GRID else ("unit_selection", 80)
    masks = action in (GRID, UNIT)
    return Spaces(observation, action, 0, masks, privileged, structure if masks else None)


@pytest.mark.parametrize(
    ("obs_space", "action_space", "settings", "packed"),
    [
        (VECTOR, CONTINUOUS, {}, None),
        (VECTOR, DISCRETE, {}, None),
        (VECTOR, spaces.MultiDiscrete([2, 3]), {}, None),
        (VECTOR, CONTINUOUS, {"distribution": "tanh_normal"}, None),
        (VECTOR, spaces.Box(-1, 1, (1,), np.float32), {}, None),
        (spaces.Box(-1, 1, (376,), np.float32), CONTINUOUS, {"hidden_sizes": (256, 256)}, None),
        (spaces.Box(-1, 1, (376,), np.float32), CONTINUOUS, {"hidden_sizes": (61,)}, torch.float32),
        (IMAGE, DISCRETE, {"network": "nature_cnn"}, None),
        (IMAGE, DISCRETE, {"network": "nature_cnn"}, torch.float32),
        pytest.param(
            IMAGE, DISCRETE, {"network": "nature_cnn"}, torch.bfloat16, marks=needs_bfloat16
        ),
        (IMAGE, DISCRETE, {"network": "impala"}, None),
        (IMAGE, DISCRETE, {"network": "impala"}, torch.float32),
        pytest.param(IMAGE, DISCRETE, {"network": "impala"}, torch.bfloat16, marks=needs_bfloat16),
        (MAP, GRID, {"network": "gridnet", "shared_trunk": True}, None),
        (MAP, GRID, {"network": "gridnet_cnn"}, None),
        (MAP, UNIT, {"network": "impala"}, None),
        (MAP, UNIT, {"network": "impala"}, torch.float32),
        (MAP, UNIT, {"network": "microrts_cnn"}, None),
    ],
)
def test_an_action_does_not_depend_on_how_many_environments_stand_beside_it(
    obs_space, action_space, settings, packed
):
    config = Config(**({"initial_log_std": -0.5} | settings))
    model = make_model(spaces_for(obs_space, action_space), config)
    if packed is not None:
        model.prepare_to_act(packed)
    rows, rng = 40 if len(obs_space.shape) == 3 else 100, np.random.default_rng(0)
    obs = np.stack([obs_space.sample() for _ in range(rows)])
    noise = rng.random((rows, *model.distribution.noise_shape), np.float32)
    mask = rng.random((rows, 80 * CHOICES)) < 0.02 if obs_space is MAP else None
    acted = model.act(obs, noise, mask)
    for first, last in [(0, 1), (3, 5), (0, 3), (5, 12), (2, 22), (2, 36), (1, rows)]:
        columns = slice(first, last)
        part = model.act(obs[columns], noise[columns], None if mask is None else mask[columns])
        np.testing.assert_array_equal(part.log_prob, acted.log_prob[columns])
        np.testing.assert_array_equal(part.action, acted.action[columns])


@pytest.mark.parametrize("network", ["nature_cnn", "impala"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), pytest.param(torch.bfloat16, 8e-2, marks=needs_bfloat16)],
    ids=str,
)
def test_a_sampler_acts_by_packed_images_as_the_learner_computes(network, dtype, tolerance):
    def made(seed: int) -> ActorCritic:
        model = make_model(Spaces(IMAGE, DISCRETE, 0), Config(network=network, seed=seed))
        with torch.no_grad():
            model.policy_head.get_parameter("weight").mul_(100)  # else all actions are alike
        return model

    learner, sampler = made(1), made(2)
    sampler.prepare_to_act(dtype)
    sampler.set_weights(learner.get_weights())
    obs = np.random.default_rng(0).integers(0, 256, (6, 4, 84, 84), np.uint8)
    with torch.no_grad():
        logits = learner.policy(torch.from_numpy(obs))
    acted = sampler.act(obs, None)
    assert len(np.unique(acted.log_prob)) == len(obs)
    expected = logits.log_softmax(-1).gather(-1, torch.from_numpy(acted.action).reshape(-1, 1))
    np.testing.assert_allclose(acted.log_prob, expected[:, 0], atol=tolerance)


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_a_sampler_of_vectors_acts_by_the_weights_that_were_set_last(network):
    settings = [Config(network=network, seed=seed) for seed in (1, 2)]
    learner, sampler = (make_model(Spaces(VECTOR, CONTINUOUS, 0), config) for config in settings)
    sampler.prepare_to_act()
    obs = np.random.default_rng(0).normal(size=(7, *VECTOR.shape)).astype(np.float32)
    state = np.random.default_rng(1).normal(size=(7, learner.state_size)).astype(np.float32)
    for _ in range(2):
        sampler.set_weights(learner.get_weights())
        mine, theirs = (model.act(obs, None, None, state) for model in (sampler, learner))
        np.testing.assert_array_equal(mine.action, theirs.action)
        if network == "lstm":  # the critic's too
            np.testing.assert_array_equal(mine.state, theirs.state)
        with torch.no_grad():
            for parameter in [*learner.actor.parameters(), *learner.critic.parameters()]:
                parameter.mul_(-2)
            learner.policy_head.get_parameter("weight").mul_(-2)


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu"])
@pytest.mark.parametrize("normalizes", [False, True])
@pytest.mark.parametrize("action_space", [CONTINUOUS, DISCRETE], ids=["normal", "categorical"])
def test_a_small_network_acts_by_what_the_learner_computes(activation, normalizes, action_space):
    # of an observation's 5 entries the last 2 are the critic's alone
    config = Config(
        activation=activation, hidden_sizes=(32, 7), normalize_observation=normalizes,
        observation_clip=2.0, initial_log_std=-1.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = make_model(Spaces(VECTOR, action_space, 0, False, 2), config)
    assert model._acts.compiled is not None
    rng = np.random.default_rng(0)
    obs = rng.normal(3.0, 2.0, (20, 5)).astype(np.float32)
    noise = rng.random((20, *model.distribution.noise_shape), np.float32)
    for _ in range(3):
        with torch.no_grad():
            params = model.policy(torch.from_numpy(obs))
            action = model.distribution.sample(params, torch.from_numpy(noise))
            log_prob = model.distribution.log_prob(params, action)
        acted = model.act(obs, noise)
        np.testing.assert_allclose(acted.action, action, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(acted.log_prob, log_prob, rtol=1e-5, atol=1e-4)
        if normalizes:
            model.update_normalizer(torch.from_numpy(obs))
        with torch.no_grad():  # what is learned in place shows in the next action
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)


@pytest.mark.parametrize("action_space", [GRID, UNIT])
def test_only_legal_actions_are_taken_and_illegal_ones_have_no_probability(action_space):
    network = "gridnet" if action_space is GRID else "impala"
    model = make_model(spaces_for(MAP, action_space), Config(network=network))
    rng = np.random.default_rng(0)
    obs = np.stack([MAP.sample() for _ in range(8)])
    mask = rng.random((8, 80, CHOICES)) < 0.3
    mask[:, rng.random(80) < 0.9] = False
    mask[7] = False  # nobody may act
    edges = np.cumsum([0, *COMPONENTS])
    for noise in (None, rng.random((8, *model.distribution.noise_shape), np.float32)):
        acted = model.act(obs, noise, mask.reshape(8, -1))
        action = acted.action.astype(int)
        if action_space is UNIT:
            cells, components = action[:, 0], action[:, 1:]
            assert mask[np.arange(7), cells[:7]].any(1).all()
            units = mask[np.arange(8), cells][:, None]
            components = components[:, None]
        else:
            units, components = mask, action.reshape(8, 80, 7)
        for k in range(7):
            legal = units[..., edges[k] : edges[k + 1]]
            chosen = np.take_along_axis(legal, components[..., k : k + 1], -1)[..., 0]
            assert (chosen | ~legal.any(-1)).all()
            assert (components[..., k][~legal.any(-1)] == 0).all()
        assert acted.log_prob[7] == 0
        # the learner's probability of the same action under the stored mask
        params, _ = model(torch.from_numpy(obs), torch.from_numpy(acted.mask))
        log_prob = model.distribution.log_prob(params, torch.from_numpy(acted.action))
        np.testing.assert_allclose(log_prob.detach(), acted.log_prob, rtol=1.3e-6, atol=1e-5)


MLP = ["0.bias", "0.weight", "2.bias", "2.weight"]
HEADS = ["policy_head.bias", "policy_head.weight", "value_head.bias", "value_head.weight"]
MOMENTS = ["moments.count", "moments.mean", "moments.var"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, [*MOMENTS, "log_std"]),
        ({"state_dependent_std": True}, MOMENTS),
        ({"distribution": "beta"}, MOMENTS),
        ({"normalize_value": True}, [*MOMENTS, "log_std", *(f"value_head.{m}" for m in MOMENTS)]),
        (
            {"noisy_layers": True, "normalize_observation": False},
            ["log_std", *(f"{layer}.{part}_{what}" for layer in ("actor.2", "policy_head")
             for part in ("bias", "weight") for what in ("noise", "sigma"))],
        ),
    ],
)  # fmt: skip
def test_weights_keep_the_names_that_saved_runs_have(settings, names):
    model = vector_model(**settings)
    trunks = [f"{part}.{name}" for part in ("actor", "critic") for name in MLP]
    assert sorted(model.get_weights()) == sorted([*trunks, *HEADS, *names])


@pytest.mark.parametrize(
    ("network", "names"),
    [
        ("gridnet", "first second third whole"),
        ("lstm", "encoder.0 encoder.2 of_input of_hidden"),
        ("impala", "0 2.first 2.second 3.first 3.second 4 6.first 6.second 7.first 7.second 8"
                   " 10.first 10.second 11.first 11.second 14"),
    ],
)  # fmt: skip
def test_weights_of_larger_networks_keep_their_names(network, names):
    env_spaces = {"gridnet": spaces_for(MAP, GRID), "lstm": Spaces(VECTOR, DISCRETE, 0),
                  "impala": Spaces(IMAGE, DISCRETE, 0)}[network]  # fmt: skip
    model = make_model(env_spaces, Config(network=network, shared_trunk=True, minibatch_size=256))
    layers = [f"actor.{name}" for name in names.split()]  # the critic has the same ones
    layers += ["policy_head.layer" if network == "gridnet" else "policy_head", "value_head"]
    expected = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    assert sorted(model.get_weights()) == sorted(expected)


def test_normaliser_merges_batches_as_if_they_were_one():
    model = vector_model()
    rng = np.random.default_rng(0)
    batches = [rng.normal(3, 2, (n, 5)) for n in (1, 7, 300)]
    for batch in batches:
        model.update_normalizer(torch.from_numpy(batch))
    model.update_normalizer(torch.zeros(0, 5))
    every = np.concatenate(batches)
    moments = model.moments
    assert moments is not None
    np.testing.assert_allclose(moments.mean, every.mean(0), rtol=1e-9)
    np.testing.assert_allclose(moments.var, every.var(0), rtol=1e-9)
    assert moments.count == 308
    normal = model.observations(torch.from_numpy(every).float())
    torch.testing.assert_close(normal.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(5), atol=1e-4, rtol=0)


def test_normalised_observations_are_clipped():
    model = vector_model(observation_clip=2.0)
    assert model.observations(torch.full((1, 5), 1e9)).max() == 2.0


def test_initial_policy_is_nearly_uniform_and_layers_are_orthogonal():
    model = vector_model(action=DISCRETE)
    logits = model.policy(torch.randn(100, 5))
    assert logits.abs().max() < 0.1
    weight = model.actor.get_parameter("2.weight")
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(64), atol=1e-4, rtol=0)


def test_images_are_scaled_to_one():
    model = make_model(Spaces(IMAGE, DISCRETE, 0), Config(network="nature_cnn"))
    assert model.observations(torch.full((1, 4, 84, 84), 255, dtype=torch.uint8)).max() == 1.0


def test_a_network_that_does_not_fit_names_the_one_that_does():
    with pytest.raises(WrongNetwork, match="--network nature_cnn"):
        make_model(Spaces(IMAGE, DISCRETE, 0), Config(network="mlp"))
    with pytest.raises(WrongNetwork, match="--network mlp"):
        make_model(Spaces(VECTOR, DISCRETE, 0), Config(network="nature_cnn"))
    with pytest.raises(WrongNetwork, match="curiosity is for vectors"):
        make_model(spaces_for(MAP, GRID), Config(network="gridnet", rnd_coefficient=1.0))
    with pytest.raises(WrongNetwork, match="the critic's alone"):
        make_model(Spaces(VECTOR, DISCRETE, 0, False, 2), Config(shared_trunk=True))
    with pytest.raises(WrongNetwork, match="gridnet or gridnet_cnn"):
        make_model(spaces_for(MAP, GRID), Config(network="impala"))
    with pytest.raises(WrongNetwork, match="36x36"):
        ActorCritic(
            Spaces(spaces.Box(0, 255, (3, 20, 20), np.uint8), DISCRETE, 0),
            make_distribution("auto", DISCRETE),
            Config(network="nature_cnn"),
        )  # fmt: skip
