"""Fragments that are learned from again."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from common.errors import UserError
from learning.batches import Batches
from learning.replay import Replay
from learning.reward_scale import RewardTransform
from rollout import Rollout
from settings.sources import parse
from tests.learning.test_undo import assert_same
from tests.test_agent import collect, make, small


def fragments(env: str, many: int, **settings) -> list[Rollout]:
    agent, pool = make(small(env, **settings))
    found = []
    for number in range(many):
        found.append(copy.deepcopy(collect(agent, pool, number)))
        found[-1].policy_version = number
    pool.close()
    return found


@pytest.mark.parametrize("env", ["tests.toy_envs:Masked", "PongNoFrameskip-v4"])
def test_an_update_gets_the_new_fragment_and_some_of_the_last_ones(env):
    settings = {"replay_batches": 2, "replay_size": 3, "batch_size": 64}
    given, replay = fragments(env, 6, **settings), Replay(small(env, **settings))
    drawn = set()
    for update, new in enumerate(given):
        joined = replay(new, np.random.default_rng(update))
        assert joined.replayed == 4 * min(update, 2)
        before = given[max(0, update - 3) : update]
        parts = [joined.columns(first, first + 4) for first in range(0, joined.reward.shape[1], 4)]
        for name, array in new.arrays().items():
            np.testing.assert_array_equal(parts[0].arrays()[name], array, err_msg=name)
        versions = []
        for part in parts[1:]:
            versions += [
                n for n, old in enumerate(before)
                if all(np.array_equal(a, part.arrays()[k]) for k, a in old.arrays().items())
            ]  # fmt: skip
        assert len(versions) == len(set(versions)) == min(update, 2), "without replacement"
        ages = [update, *[before[n].policy_version for n in versions]]
        assert joined.policy_version == pytest.approx(np.mean(ages))
        drawn.add(tuple(sorted(versions)))
    assert len(drawn) > 2, "they are drawn at random"


def test_what_is_kept_is_not_the_pools_memory():
    config = small("CartPole-v1", replay_batches=1)
    replay, (first, second) = Replay(config), fragments("CartPole-v1", 2)
    rewards = first.reward.copy()
    replay(first, np.random.default_rng(0))
    first.reward[:] = 7  # as a pool writes the next fragment into the same memory
    joined = replay(second, np.random.default_rng(0))
    np.testing.assert_array_equal(joined.reward[:, 4:], rewards)


def test_replayed_rewards_have_the_scale_of_now_and_do_not_move_it():
    settings = {"reward_transform": "return_std", "reward_clip": 0.05}
    replay = Replay(small("CartPole-v1", replay_batches=2, **settings))
    alone, together = (RewardTransform(small("CartPole-v1", **settings)) for _ in range(2))
    for update, fragment in enumerate(fragments("CartPole-v1", 3)):
        expected = alone(fragment, None).reward
        joined = replay(fragment, np.random.default_rng(update))
        got = together(joined, None).reward
        np.testing.assert_array_equal(got[:, :4], expected)
        np.testing.assert_array_equal(together.scaler.moments, alone.scaler.moments)
        np.testing.assert_array_equal(together.scaler.running, alone.scaler.running)
        np.testing.assert_array_equal(got, together.scaler.scaled(joined.reward))


def test_the_normaliser_sees_each_observation_once():
    config = small("Pendulum-v1", replay_batches=1)
    replay = Replay(config)
    for update, fragment in enumerate(fragments("Pendulum-v1", 2)):
        seen = Batches(
            config, replay(fragment, np.random.default_rng(update)), torch.device("cpu")
        ).valid_obs
        alone = Batches(config, fragment, torch.device("cpu")).valid_obs
        assert torch.equal(seen, alone)


def test_each_row_of_all_fragments_is_learned_from_once_in_an_epoch():
    """By an lstm too, whose minibatches are whole sequences."""
    for env, settings in (("Pendulum-v1", {}), ("tests.toy_envs:Remember", {"network": "lstm"})):
        config = small(env, replay_batches=2, **settings)
        replay = Replay(config)
        for update, fragment in enumerate(fragments(env, 3, **settings)):
            joined = replay(fragment, np.random.default_rng(update))
        batches = Batches(config, joined, torch.device("cpu"))
        rows = np.arange(joined.reward.size, dtype=np.float32).reshape(joined.reward.shape)
        zeros = np.zeros_like(rows)
        batches.put(advantage=rows, value_target=zeros, old_value=zeros)
        epoch = batches.epoch(np.random.default_rng(0))
        learned = torch.cat([shares[0].advantage for shares in epoch]).numpy()
        np.testing.assert_array_equal(np.sort(learned), rows.ravel())
        assert len(epoch) == 3 * config.steps_per_update // config.minibatch_size


@pytest.mark.parametrize(
    ("env", "settings"),
    [("PongNoFrameskip-v4", {}), ("tests.toy_envs:Remember", {"network": "transformer"})],
    ids=str,
)
def test_values_are_computed_by_the_graph_for_a_new_fragment(env, settings):
    """It was compiled for rows [B, ...] of one layout in memory."""
    config = small(env, replay_batches=2, batch_size=64, **settings)
    replay, asked = Replay(config), []

    def value(obs: torch.Tensor, past: object) -> torch.Tensor:
        asked.append((obs.shape, obs.stride()))
        return obs.flatten(1).float().sum(1)

    for update, fragment in enumerate(fragments(env, 3, batch_size=64, **settings)):
        joined = replay(fragment, np.random.default_rng(update))
        batches = Batches(config, joined, torch.device("cpu"))
        values = batches.values(value)
        rows = batches.obs if settings else batches.obs.flatten(2)
        np.testing.assert_allclose(values, rows.flatten(2).float().sum(2), rtol=1e-4)
    assert len(asked) == 1 + 2 + 3
    assert len(set(asked)) == 1


def test_value_targets_are_counted_once():
    agent, pool = make(small("Pendulum-v1", replay_batches=2, normalize_value=True))
    steps = 0
    for update in range(3):
        rollout = collect(agent, pool, update)
        agent.learn(rollout, 0.0)
        steps += rollout.valid.sum()
        moments = agent.model.value_head.moments
        assert moments is not None
        assert moments.count.item() == pytest.approx(steps)
    pool.close()


@pytest.mark.parametrize("settings", [{"estimator": "vtrace"}, {"clip_from": "start"}], ids=str)
def test_older_rows_are_corrected_to_the_policy_of_now(settings):
    """At lag 0 too: the new fragment's first ratio is 1, and that of the others is to the update's start."""
    sizes = {"batch_size": 256, "minibatch_size": 256, "update_epochs": 1, "learning_rate": 0.01}
    agent, pool = make(small("CartPole-v1", policy_lag=0, replay_batches=1, **(sizes | settings)))
    for update in range(3):
        metrics = agent.learn(collect(agent, pool, update), 0.0)
        assert abs(metrics["first_minibatch_kl"]) < 1e-6
    assert metrics["policy_lag_mean"] == pytest.approx(0.5)
    pool.close()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--replay_size", "1"], "replay_size is 1, but replay_batches 2"),
        (["--rnd_coefficient", "1"], "rnd_coefficient 1.0 is for what is new"),
        (["--carried_steps", "8"], "carried_steps 8 needs whole streams"),
        (["--trainers", "2"], "trainers is 2, and a checkpoint"),
    ],
)
def test_what_does_not_go_with_replay_is_refused(flags, complaint):
    with pytest.raises(UserError, match=complaint):
        parse(["--env", "CartPole-v1", "--replay_batches", "2", *flags])


def test_each_trainer_of_a_store_may_have_its_own():
    flags = ["--store", "embedded", "--trainers", "2", "--replay_batches", "2"]
    assert parse(["--env", "CartPole-v1", *flags]).replay_batches == 2


def test_a_failed_update_gives_its_fragment_back():
    agent, pool = make(small("CartPole-v1", replay_batches=1))
    agent.learn(collect(agent, pool, 0), 0.0)
    before = agent.state()
    broken = copy.deepcopy(collect(agent, pool, 1))
    broken.reward[:] = np.nan
    with pytest.raises(UserError, match="NaN"):
        agent.learn(broken, 0.5)
    assert_same(agent.state(), before)
    pool.close()
