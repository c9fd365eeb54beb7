from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from config import Config
from distributions import make_distribution
from model import ActorCritic, WrongNetwork, make_model

VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float32)
IMAGE = spaces.Box(0, 255, (4, 84, 84), np.uint8)
CONTINUOUS = spaces.Box(-1, 1, (3,), np.float32)
DISCRETE = spaces.Discrete(4)


def vector_model(action=CONTINUOUS, **settings) -> ActorCritic:
    return make_model(VECTOR, action, Config(**({"normalize_observation": True} | settings)))


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


def test_weights_are_a_copy():
    model = vector_model()
    weights = model.get_weights()
    with torch.no_grad():
        model.log_std += 1
        model.obs_mean += 1
    assert weights["log_std"].max() == 0
    assert weights["obs_mean"].max() == 0
    model.set_weights(weights)
    assert model.log_std.max() == 0


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("image", [False, True])
def test_one_pass_equals_two(shared, image):
    config = Config(network="nature_cnn" if image else "mlp", shared_trunk=shared)
    model = make_model(IMAGE if image else VECTOR, DISCRETE, config)
    obs = torch.randint(0, 255, (6, 4, 84, 84), dtype=torch.uint8) if image else torch.randn(6, 5)
    params, value = model(obs)
    torch.testing.assert_close(params, model.policy(obs))
    torch.testing.assert_close(value, model.value(obs))
    assert (model.critic is model.actor) == shared
    params.sum().backward()
    touched = model.critic[0].weight.grad is not None
    assert touched == shared


@pytest.mark.parametrize(
    ("obs_space", "action_space", "hidden_sizes"),
    [
        (VECTOR, CONTINUOUS, (64, 64)),
        (VECTOR, DISCRETE, (64, 64)),
        (VECTOR, spaces.Box(-1, 1, (1,), np.float32), (64, 64)),
        (spaces.Box(-1, 1, (376,), np.float32), CONTINUOUS, (256, 256)),
        (IMAGE, DISCRETE, ()),
    ],
)
def test_an_action_does_not_depend_on_how_many_environments_stand_beside_it(
    obs_space, action_space, hidden_sizes
):
    network = "nature_cnn" if obs_space is IMAGE else "mlp"
    config = Config(network=network, hidden_sizes=hidden_sizes, initial_log_std=-0.5)
    model = make_model(obs_space, action_space, config)
    rows, rng = 24 if obs_space is IMAGE else 100, np.random.default_rng(0)
    obs = np.stack([obs_space.sample() for _ in range(rows)])
    noise = rng.random((rows, *action_space.shape), np.float32)
    torch.set_num_threads(1)
    action, params = model.act(obs, noise)
    for first, last in [(0, 1), (3, 5), (0, 3), (5, 12), (2, 22), (1, rows)]:
        part_action, part = model.act(obs[first:last], noise[first:last])
        assert torch.equal(part, params[first:last])
        assert torch.equal(part_action, action[first:last])


def test_normaliser_merges_batches_as_if_they_were_one():
    model = vector_model()
    rng = np.random.default_rng(0)
    batches = [rng.normal(3, 2, (n, 5)) for n in (1, 7, 300)]
    for batch in batches:
        model.update_normalizer(torch.from_numpy(batch))
    model.update_normalizer(torch.zeros(0, 5))
    every = np.concatenate(batches)
    np.testing.assert_allclose(model.obs_mean, every.mean(0), rtol=1e-9)
    np.testing.assert_allclose(model.obs_var, every.var(0), rtol=1e-9)
    assert model.obs_count == 308
    normal = model.normalize(torch.from_numpy(every).float())
    torch.testing.assert_close(normal.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(5), atol=1e-4, rtol=0)


def test_normalised_observations_are_clipped():
    model = vector_model(observation_clip=2.0)
    assert model.normalize(torch.full((1, 5), 1e9)).max() == 2.0


def test_initial_policy_is_nearly_uniform_and_layers_are_orthogonal():
    model = vector_model(action=DISCRETE)
    logits = model.policy(torch.randn(100, 5))
    assert logits.abs().max() < 0.1
    weight = model.actor[2].weight
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(64), atol=1e-4, rtol=0)


def test_images_are_scaled_to_one():
    model = make_model(IMAGE, DISCRETE, Config(network="nature_cnn"))
    assert model.normalize(torch.full((1, 4, 84, 84), 255, dtype=torch.uint8)).max() == 1.0


def test_a_network_that_does_not_fit_names_the_one_that_does():
    with pytest.raises(WrongNetwork, match="--network nature_cnn"):
        make_model(IMAGE, DISCRETE, Config(network="mlp"))
    with pytest.raises(WrongNetwork, match="--network mlp"):
        make_model(VECTOR, DISCRETE, Config(network="nature_cnn"))
    with pytest.raises(WrongNetwork, match="36x36"):
        ActorCritic((3, 20, 20), make_distribution("auto", DISCRETE), Config(network="nature_cnn"))
