from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from agent import NotFinite, PPOAgent
from algorithm import PPO
from cluster.pool import InlinePool
from cluster.sampler import spec_of
from envs import spaces_of
from learning.batches import Batches
from model import make_model
from rollout import Rollout
from settings.config import Config
from settings.sources import preset


def make(config: Config) -> tuple[PPOAgent, InlinePool]:
    found = spaces_of(config.env, **config.env_options())
    model = make_model(found, config)
    spec = spec_of(model, config)
    return PPOAgent(PPO(model, config), config), InlinePool(config, spec)


def small(env: str, **settings) -> Config:
    return dataclasses.replace(preset(env), env_num=4, batch_size=256, minibatch_size=64,
                               update_epochs=2, compile="off", **settings)  # fmt: skip


def collect(agent: PPOAgent, pool: InlinePool, fragment: int = 0) -> Rollout:
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
        ("CartPole-v1", {"carried_steps": 32}),
        ("tests.toy_envs:Masked", {"joint_loss": "sub_action"}),
        ("tests.toy_envs:Hidden", {}),
        ("tests.toy_envs:Remember", {"network": "lstm", "normalize_observation": True}),
        ("tests.toy_envs:Remember", {"network": "lstm", "shared_trunk": True}),
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


def test_endless_reward_cut_off_by_a_time_limit_is_worth_100():
    """Reward 1, limit 10, gamma 0.99: 1 / (1 - 0.99) where cutting off is not ending."""
    config = Config(
        env="tests.toy_envs:ConstantReward", env_num=4, batch_size=128, minibatch_size=32,
        learning_rate=3e-3, learning_rate_schedule="constant", compile="off", hidden_sizes=(16,),
        activation="relu", max_grad_norm=100.0, gae_lambda=0.99,
    )  # fmt: skip
    agent, pool = make(config)
    for update in range(150):
        agent.learn(collect(agent, pool, update), 0.0)
    value = agent.model.value(torch.ones(1, 1)).item()
    assert value == pytest.approx(100.0, abs=2.0)


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


def test_recomputing_advantages_changes_what_later_epochs_learn():
    runs = {}
    for recompute in (False, True):
        agent, pool = make(small("CartPole-v1", recompute_advantages=recompute))
        agent.learn(collect(agent, pool), 0.0)
        runs[recompute] = agent.weights().arrays["value_head.weight"]
    assert not np.array_equal(runs[False], runs[True])


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
    np.testing.assert_allclose(agent.model.moments.mean, seen.mean(0), rtol=1e-6)
    np.testing.assert_allclose(agent.model.moments.var, seen.var(0), rtol=1e-6)


def test_the_normaliser_sees_no_reset_rows():
    agent, pool = make(small("CartPole-v1", normalize_observation=True))
    rollout = collect(agent, pool)
    assert (~rollout.valid).any()
    agent.learn(rollout, 0.0)
    assert agent.model.moments.count == rollout.steps
    np.testing.assert_allclose(
        agent.model.moments.mean, rollout.obs[:-1][rollout.valid].astype("f8").mean(0), rtol=1e-6
    )


def test_vtrace_on_policy_is_gae():
    """rho = 1: the same advantages, and so the same update but for rounding."""
    weights = []
    for estimator in ("gae", "vtrace", "td_lambda"):
        agent, pool = make(small("CartPole-v1", estimator=estimator))
        agent.learn(collect(agent, pool), 0.0)
        weights.append(agent.model.get_weights()["actor.0.weight"])
        pool.close()
    np.testing.assert_allclose(weights[0], weights[1], atol=2e-5)
    np.testing.assert_array_equal(weights[0], weights[2])


def test_vtrace_corrects_for_a_policy_that_has_moved_on():
    agent, pool = make(small("CartPole-v1", estimator="vtrace"))
    rollout = collect(agent, pool)
    with torch.no_grad():
        agent.model.policy_head.bias += torch.tensor([0.7, -0.7])
    metrics = agent.learn(rollout, 0.0)
    # V-trace has the correction up to the update's start, so the ratio begins at 1
    assert abs(metrics["first_minibatch_kl"]) < 1e-6
    pool.close()


@pytest.mark.parametrize("estimator", ["monte_carlo", "upgo"])
def test_every_estimator_learns(estimator):
    agent, pool = make(small("CartPole-v1", estimator=estimator))
    before = agent.model.get_weights()["actor.0.weight"]
    metrics = agent.learn(collect(agent, pool), 0.0)
    assert np.isfinite(list(metrics.values())).all()
    assert not np.array_equal(before, agent.model.get_weights()["actor.0.weight"])
    pool.close()


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


def test_a_bonus_is_for_what_is_new_and_wears_off():
    agent, pool = make(small("CartPole-v1", rnd_coefficient=1.0, learning_rate=1e-3))
    rollout = collect(agent, pool)
    agent.initialize_normalizer(rollout)
    bonuses = []
    for update in range(40):
        rollout.reset = update == 0
        bonuses.append(agent.learn(rollout, 0.0)["intrinsic_reward"])
    assert bonuses[-1] < 0.5 * bonuses[0]
    known = torch.from_numpy(rollout.obs[:-1]).flatten(0, 1)
    new = known + 4 * known.std(0)
    with torch.no_grad():
        assert agent.model.rnd.error(new).mean() > 3 * agent.model.rnd.error(known).mean()
    target = agent.model.rnd.target[0][0].weight
    assert not target.requires_grad
    pool.close()


def test_popart_keeps_every_value_when_its_units_move():
    agent, pool = make(small("CartPole-v1", normalize_value=True, rnd_coefficient=0.1))
    obs = torch.randn(50, 4)
    with torch.no_grad():
        before = agent.model.value(obs)
        agent.model.value_head.update_normalizer(torch.randn(200, 2) * 30 + 7)
        torch.testing.assert_close(agent.model.value(obs), before, atol=1e-4, rtol=1e-4)
    assert agent.model.value_head.scale().mean() == pytest.approx(30, rel=0.2)
    pool.close()


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
    other, pool_of_other = make(small("CartPole-v1", noisy_layers=True))
    np.testing.assert_array_equal(first.shape, other.model.policy_head.weight_noise.shape)
    pool.close()
    pool_of_other.close()


def test_a_critic_that_sees_more_than_the_policy_explains_what_the_other_cannot():
    explained = {}
    for name in ("Hidden", "HiddenFromAll"):
        agent, pool = make(small(f"tests.toy_envs:{name}", learning_rate=3e-3, gae_lambda=1.0))
        for fragment in range(15):
            metrics = agent.learn(collect(agent, pool, fragment), 0.0)
        explained[name] = metrics["explained_variance"]
        pool.close()
    assert explained["Hidden"] > 0.8
    assert explained["HiddenFromAll"] < 0.4


def test_what_only_the_critic_sees_does_not_reach_the_policy():
    agent, pool = make(small("tests.toy_envs:Hidden"))
    obs, noise = np.zeros((4, 3), np.float32), np.full(4, 0.3, np.float32)
    other = obs.copy()
    other[:, 1:] = 9.0  # the coin
    torch.testing.assert_close(
        agent.model.act(obs, noise).log_prob, agent.model.act(other, noise).log_prob
    )
    assert not torch.equal(
        agent.model.value(torch.from_numpy(obs)), agent.model.value(torch.from_numpy(other))
    )
    pool.close()


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
