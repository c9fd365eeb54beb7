from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from agent import NotFinite, PPOAgent, make_agent
from algorithm import PPO
from cluster.engines.inline import InlineEngine
from cluster.lockstep import LockstepPool
from cluster.sampler import spec_of
from cluster.supervisor import Supervisor
from envs import spaces_of
from learning.batches import Batches
from model import make_model
from rollout import Rollout
from settings.config import Config
from settings.sources import preset


def make(config: Config, algorithm: type[PPO] = PPO) -> tuple[PPOAgent, LockstepPool]:
    model = make_model(spaces_of(config.env, **config.env_options()), config)
    spec = spec_of(model, config)
    return PPOAgent(algorithm(model, config), config), LockstepPool(
        Supervisor(InlineEngine(config, spec), print)
    )


def small(env: str, **settings) -> Config:
    sizes = {"env_num": 4, "batch_size": 256, "minibatch_size": 64, "update_epochs": 2}
    return dataclasses.replace(preset(env), **({"compile": "off"} | sizes | settings))


def collect(agent: PPOAgent, pool: LockstepPool, fragment: int = 0) -> Rollout:
    pool.request(agent.weights(), fragment, fragment == 0)
    return pool.gather()


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("HalfCheetah-v4", {}),
        ("HalfCheetah-v4", {"distribution": "beta"}),
        ("CartPole-v1", {}),
        ("PongNoFrameskip-v4", {}),
        ("HalfCheetah-v4", {"distribution": "tanh_normal", "state_dependent_std": True}),
        ("HalfCheetah-v4", {"joint_loss": "mix_ratio", "noisy_layers": True}),
        ("HalfCheetah-v4", {"rnd_coefficient": 0.5, "normalize_value": True}),
        ("PongNoFrameskip-v4", {"rnd_coefficient": 0.5}),
        ("CartPole-v1", {"carried_steps": 32}),
        ("tests.toy_envs:Masked", {"joint_loss": "sub_action"}),
        ("tests.toy_envs:Hidden", {}),
        ("tests.toy_envs:Remember", {"network": "lstm", "normalize_observation": True}),
        ("tests.toy_envs:Remember", {"network": "lstm", "shared_trunk": True}),
        ("tests.toy_envs:Remember", {"network": "tests.networks.own:Average"}),
        (
            "tests.toy_envs:Remember",
            {"network": "transformer", "normalize_observation": True, "rnd_coefficient": 0.1},
        ),
        ("microrts-8x8", {"opponents": ("passiveAI",)}),
        ("microrts-8x8", {"policy": "unit_selection", "network": "impala", "sides": "both"}),
    ],
)
def test_the_first_minibatch_has_ratio_one_at_lag_0(env, settings):
    """Also in later updates, when the normaliser has moved.

    In float32: samplers act in it, so a learner that computes in bfloat16 is only near 1.
    """
    agent, pool = make(small(env, precision="float32", **settings))
    for fragment in range(2):
        rollout = collect(agent, pool, fragment)
        new = slice(rollout.carried, None)  # the others are of the policy before
        batches = Batches(agent.config, rollout, agent.model.device)
        obs = batches.obs[:-1][new].flatten(0, 1)
        mask = None
        if rollout.action_mask is not None:
            mask = torch.from_numpy(rollout.action_mask[new]).flatten(0, 1)
        past = batches.past
        if past is not None:
            past = past._replace(begins=past.begins[: len(obs)])
        with torch.no_grad():
            params = agent.model.policy(obs, mask, past)
        action = torch.from_numpy(rollout.action[new]).flatten(0, 1)
        log_prob = agent.model.distribution.sub_log_prob(params, action)
        behaviour = torch.from_numpy(rollout.behaviour_log_prob[new]).flatten(0, 1)
        if behaviour.dim() == 1:
            log_prob = log_prob.sum(-1)
        torch.testing.assert_close((log_prob - behaviour).exp(), torch.ones_like(behaviour),
                                   atol=2e-5, rtol=0)  # fmt: skip
        metrics = agent.learn(rollout, 0.0)
        if not rollout.carried:
            assert abs(metrics["first_minibatch_kl"]) < 1e-6
        assert metrics["approx_kl"] > 0
    pool.close()


def test_an_update_is_a_function_of_its_inputs():
    digests = []
    for _ in range(2):
        agent, pool = make(small("CartPole-v1"))
        for update in range(3):
            agent.learn(collect(agent, pool, update), update / 3)
        digests.append({n: a.tobytes() for n, a in agent.weights().arrays.items()})
    assert digests[0] == digests[1]


def test_a_saved_agent_is_restored_to_the_bit(tmp_path):
    config = small("HalfCheetah-v4", learning_rate_schedule="kl")
    agent, pool = make(config)
    rollouts = [collect(agent, pool, 0)]
    agent.learn(rollouts[0], 0.0)
    agent.save(tmp_path / "agent")
    other, _ = make(dataclasses.replace(config, seed=9))
    other.config = config
    other.restore(tmp_path / "agent")
    rollout = collect(agent, pool, 1)
    assert agent.learn(rollout, 0.5) == other.learn(rollout, 0.5)
    for one, two in zip(agent.state()[0].values(), other.state()[0].values(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "loss", [{}, {"joint_loss": "mix_ratio"}, {"kl_penalty": "fixed", "kl_coefficient": 1.0}]
)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_an_action_that_has_become_all_too_likely_harms_no_update(loss, advantage):
    agent, pool = make(small("HalfCheetah-v4", **loss))
    rollout = collect(agent, pool)
    rollout.behaviour_log_prob[3, 0] = -200.0
    rollout.reward[3] = 1000.0 * advantage
    assert np.isfinite(agent.learn(rollout, 0.0)["grad_norm"])
    pool.close()


def test_a_loss_that_is_not_finite_leaves_no_trace():
    agent, pool = make(small("CartPole-v1"))
    rollout = collect(agent, pool)
    agent.learn(rollout, 0.0)
    before = agent.state()[0]
    rollout.reward[3, 1] = np.nan
    with pytest.raises(NotFinite, match="update 1, gradient step"):
        agent.learn(rollout, 0.0)
    for name, array in agent.state()[0].items():
        np.testing.assert_array_equal(array, before[name])


def test_schedules_follow_progress():
    agent, pool = make(small("CartPole-v1"))
    rollout = collect(agent, pool)
    assert agent.learn(rollout, 0.0)["learning_rate"] == pytest.approx(1e-3)
    assert agent.learn(rollout, 0.75)["learning_rate"] == pytest.approx(0.25e-3)
    assert agent.alg.clip_range.item() == pytest.approx(0.2 * 0.25)  # clip_schedule linear


def test_learning_rate_follows_the_measured_kl():
    base = {"learning_rate_schedule": "kl", "learning_rate": 1e-3}
    agent, pool = make(small("CartPole-v1", **base, desired_kl=1e-9))
    agent.learn(collect(agent, pool), 0.0)
    assert agent.schedules.learning_rate == pytest.approx(1e-3 / 1.5)
    agent, pool = make(small("CartPole-v1", **base, desired_kl=10.0))
    agent.learn(collect(agent, pool), 0.0)
    assert agent.schedules.learning_rate == pytest.approx(1.5e-3)


def test_target_kl_ends_an_update_early():
    agent, pool = make(small("CartPole-v1", target_kl=0.0))
    agent.config.update_epochs = 5
    assert agent.learn(collect(agent, pool), 0.0)["epochs"] == 1


def test_sign_rewards_are_learned_from_and_raw_ones_reported():
    agent, pool = make(small("CartPole-v1", reward_transform="sign"))
    rollout = collect(agent, pool)
    rollout.reward *= 7
    assert set(np.unique(agent.rewards(rollout, None).reward)) <= {0.0, 1.0}
    assert rollout.reward.max() == 7
    assert all(e.episode_return == e.length for e in rollout.episodes)


def test_the_normaliser_can_be_given_its_first_statistics():
    agent, pool = make(small("CartPole-v1", normalize_observation=True))
    rollout = collect(agent, pool)
    agent.initialize_normalizer(rollout)
    seen = rollout.obs[:-1][rollout.valid].astype("f8")
    moments = agent.model.moments
    assert moments is not None
    np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments.var, seen.var(0), rtol=1e-6)


def test_the_normaliser_sees_no_reset_rows():
    agent, pool = make(small("CartPole-v1", normalize_observation=True))
    rollout = collect(agent, pool)
    assert (~rollout.valid).any()
    agent.learn(rollout, 0.0)
    moments = agent.model.moments
    assert moments is not None
    assert moments.count == rollout.steps
    np.testing.assert_allclose(
        moments.mean, rollout.obs[:-1][rollout.valid].astype("f8").mean(0), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.1, 0.1]), ("linear", [0.1, 0.05]), ("exponential", [0.1, 0.09])],
)
def test_the_entropy_bonus_follows_its_schedule(schedule, expected):
    agent, pool = make(
        small("CartPole-v1", entropy_coefficient=0.1, entropy_schedule=schedule, entropy_decay=0.9)
    )
    got = [agent.learn(collect(agent, pool, i), 0.5 * i)["entropy_coefficient"] for i in range(2)]
    assert got == pytest.approx(expected)
    pool.close()


@pytest.mark.parametrize(("desired", "factor"), [(1e-6, 2.0), (10.0, 0.5)])
def test_an_adaptive_penalty_is_doubled_or_halved_and_survives_a_checkpoint(
    desired, factor, tmp_path
):
    config = small("CartPole-v1", kl_penalty="adaptive", kl_coefficient=0.3, desired_kl=desired)
    agent, pool = make(config)
    agent.learn(collect(agent, pool), 0.0)
    assert agent.schedules.kl_coefficient == pytest.approx(0.3 * factor)
    agent.save(tmp_path / "saved")
    other, pool_of_other = make(config)
    other.restore(tmp_path / "saved")
    assert other.schedules.kl_coefficient == agent.schedules.kl_coefficient
    pool.close()
    pool_of_other.close()


def test_noisy_layers_perturb_the_policy_anew_after_each_update_but_not_greedy_actions():
    agent, pool = make(small("CartPole-v1", noisy_layers=True))
    obs, noise = np.random.default_rng(0).normal(size=(9, 4)).astype("f"), np.full(9, 0.5, "f")
    greedy, before = agent.predict(obs).action, agent.model.act(obs, noise).log_prob
    agent.model.resample_noise(np.random.default_rng(1))
    assert not np.array_equal(agent.model.act(obs, noise).log_prob, before)
    np.testing.assert_array_equal(agent.predict(obs).action, greedy)
    first = agent.weights().arrays["policy_head.weight_noise"]
    agent.learn(collect(agent, pool), 0.0)
    assert not np.array_equal(agent.weights().arrays["policy_head.weight_noise"], first)
    ones = np.eye(4, dtype=int)  # observations of any kind of number
    whole, floats = (agent.predict(obs).action for obs in (ones, ones.astype("f")))
    np.testing.assert_array_equal(whole, floats)
    pool.close()


@pytest.mark.slow
@pytest.mark.parametrize("network", ["lstm", "transformer"])
def test_a_network_over_time_remembers_what_is_no_longer_seen(network):
    """A memory-less policy gets 0.5."""
    config = dataclasses.replace(
        preset("tests.toy_envs:Remember"), env_num=32, batch_size=1536, rollout_steps=48,
        minibatch_size=384, update_epochs=6, compile="off", network=network, learning_rate=3e-3,
        hidden_sizes=(32,), gamma=1.0, memory_steps=8,
    )  # fmt: skip
    agent, pool = make(config)
    mean, fragment = 0.0, 0
    while mean <= 0.9 and fragment < 15:
        rollout = collect(agent, pool, fragment)
        mean = np.mean([episode.episode_return for episode in rollout.episodes])
        agent.learn(rollout, 0.0)
        fragment += 1
    assert mean > 0.9
    pool.close()


def test_a_recurrent_policy_acts_from_the_state_that_it_is_given():
    agent, pool = make(small("tests.toy_envs:Remember", network="lstm"))
    obs, noise = np.ones((3, 2), np.float32), np.full(3, 0.4, np.float32)
    first = agent.sample(obs, noise)
    assert first.state is not None
    assert first.state.shape == (3, agent.model.state_size)
    second = agent.sample(obs, noise, state=first.state)
    assert second.state is not None
    assert np.abs(second.log_prob - first.log_prob).min() > 0
    # a row of zeros is the start of an episode
    state = np.concatenate([first.state[:1] * 0, first.state[1:]])
    mixed = agent.sample(obs, noise, state=state)
    np.testing.assert_array_equal(mixed.log_prob[0], first.log_prob[0])
    np.testing.assert_array_equal(mixed.log_prob[1:], second.log_prob[1:])
    greedy = agent.predict(obs, state=first.state)
    np.testing.assert_array_equal(greedy.state, second.state)
    pool.close()


def test_actions_that_a_mask_forbids_are_neither_sampled_nor_predicted():
    agent, pool = make(small("tests.toy_envs:Masked"))
    obs = np.zeros((50, 2), np.float32)
    noise = np.random.default_rng(0).random((50, 2), np.float32)
    mask = np.tile([True, False, False, True, True], (50, 1))
    for acted in (agent.sample(obs, noise, mask), agent.predict(obs, mask)):
        assert set(acted.action[:, 0]) == {0}
        assert set(acted.action[:, 1]) <= {1, 2}
    pool.close()


def test_masks_that_forbid_everything_in_reset_rows_change_nothing():
    """Board games return such masks once they are over."""
    weights = []
    for spoil in (False, True):
        agent, pool = make(small("tests.toy_envs:Masked"))
        rollout = collect(agent, pool)
        assert rollout.action_mask is not None
        assert (~rollout.valid).any()
        if spoil:
            rollout.action_mask[~rollout.valid] = False
            rollout.behaviour_log_prob[~rollout.valid] = np.nan
        agent.learn(rollout, 0.0)
        weights.append(agent.weights().arrays)
        pool.close()
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name], err_msg=name)


@pytest.mark.parametrize("settings", [{}, {"rnd_coefficient": 0.1, "normalize_observation": True}])
def test_a_fragment_without_a_valid_row_is_survived(settings):
    """As of episodes of one step that end in step with one another."""
    agent, pool = make(small("CartPole-v1", normalize_value=True, **settings))
    agent.learn(collect(agent, pool), 0.0)
    moments = agent.model.value_head.moments
    assert moments is not None
    count = float(moments.count)
    rollout = collect(agent, pool, 1)
    rollout.valid[:] = False
    metrics = agent.learn(rollout, 0.0)
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["loss/policy"] == metrics["loss/value"] == 0
    assert float(moments.count) == count
    pool.close()


@pytest.mark.parametrize("name", ["Forgets", "Frozen"])
def test_a_network_of_ones_own_learns_by_the_layers_that_it_uses(name):
    config = Config(
        env="CartPole-v1", network=f"tests.networks.own:{name}", env_num=2, batch_size=16,
        minibatch_size=8,
    )  # fmt: skip
    agent = make_agent(config)
    before = agent.weights().arrays
    rollout = Rollout.blank(spec_of(agent.model, config), 0, 2)
    rollout.obs[:] = 1.0
    agent.learn(rollout, 0.0)
    after = agent.weights().arrays
    changed = {name for name, array in after.items() if not np.array_equal(array, before[name])}
    used = "actor.dense" if name == "Frozen" else "actor.layers"
    assert {name for name in changed if name.startswith("actor.")} == {
        f"{used}.weight", f"{used}.bias",
    }  # fmt: skip
