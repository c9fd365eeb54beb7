from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from cluster.asynchronous import AsynchronousPool
from cluster.supervisor import Supervisor
from rollout import Weights
from tests.cluster.pools import make_engine, toy
from tests.commands.test_train import metrics_of, summary_of
from tests.conftest import run_command
from training.collector import WARM_UP_FRAGMENT

pytestmark = pytest.mark.slow  # these start runs, clusters or processes


def make_asynchronous(env: str, samplers: int, lag: int, **settings):
    engine, weights = make_engine(toy(env, policy_lag=lag, **settings), samplers)
    return AsynchronousPool(Supervisor(engine, print), lag), weights


def start(pool: AsynchronousPool, weights: Weights) -> None:
    """Wait until each sampler has given its first fragment, which takes long: it compiles."""
    pool.request(weights, 0, True)
    started: set[tuple[int, int]] = set()
    while len(started) < pool.samplers:
        started.update(pool.gather().env_ranges)


def test_a_slow_sampler_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.setenv("UNEVEN_FOLDER", str(tmp_path))
    pool, weights = make_asynchronous("Uneven", 4, 4, batch_size=32)
    fragments: Counter[tuple[int, int]] = Counter()
    try:
        start(pool, weights)
        for update in range(1, 13):
            pool.request(Weights(update, weights.arrays), update, False)
            rollout = pool.gather()
            assert rollout.reward.shape == (8, 4)
            assert update - 4 <= rollout.policy_version <= update
            fragments.update(rollout.env_ranges)
    finally:
        pool.close()
    # in lockstep every sampler would have given 12
    slowest, second = sorted(fragments[(n, n + 1)] for n in range(4))[:2]
    assert sum(fragments.values()) == 48
    assert second >= 2 * slowest


def test_fragments_of_a_policy_that_is_too_old_are_dropped_and_counted():
    pool, weights = make_asynchronous("ConstantReward", 2, 2)
    try:
        pool.request(weights, 0, True)
        assert pool.gather().policy_version == 0
        assert pool.dropped == 0
        time.sleep(0.5)  # more of version 0 becomes ready
        pool.request(Weights(3, weights.arrays), 3, False)
        assert pool.gather().policy_version == 3
        assert 0 < pool.dropped <= 4
        # 16 rows of two environments, in each an episode's end or two, and as many ignored actions
        assert 28 * pool.dropped <= pool.dropped_steps <= 30 * pool.dropped
        assert 2 * pool.dropped <= pool.dropped_episodes <= 4 * pool.dropped
    finally:
        pool.close()


def test_a_late_fragment_is_dropped_from_between_others(tmp_path, monkeypatch):
    monkeypatch.setenv("UNEVEN_FOLDER", str(tmp_path))
    pool, weights = make_asynchronous("Uneven", 4, 2, batch_size=32)
    try:
        for update in range(16):
            pool.request(Weights(update, weights.arrays), update, update == 0)
            assert pool.gather().policy_version >= update - 2
    finally:
        pool.close()
    assert pool.dropped > 0


def test_a_reset_begins_anew_and_leaves_what_was_collected_before_it():
    first = []
    for warms_up in (False, True):
        pool, weights = make_asynchronous("ConstantReward", 1, 2)
        try:
            if warms_up:
                pool.request(weights, WARM_UP_FRAGMENT, True)
                pool.gather()
                time.sleep(0.5)  # more of the same fragments become ready
            pool.request(weights, 7, True)
            first.append(pool.gather())
            assert not pool.gather().reset.any()
            assert (pool.dropped > 0) == warms_up
        finally:
            pool.close()
    assert all(rollout.reset.all() for rollout in first)
    for name, array in first[0].arrays().items():
        assert np.array_equal(array, first[1].arrays()[name]), name


def test_a_slow_learner_drops_nothing():
    pool, weights = make_asynchronous("ConstantReward", 2, 2)
    ages = []
    try:
        start(pool, weights)
        time.sleep(0.5)  # until nothing is in flight: the slower starter's would be overtaken
        for update in range(1, 7):
            pool.request(Weights(update, weights.arrays), update, False)
            ages.append(update - pool.gather().policy_version)
            time.sleep(0.5)
    finally:
        pool.close()
    assert pool.dropped == 0
    assert 0 < np.mean(ages[3:]) <= 2


@pytest.mark.parametrize("carried", [0, 3])
def test_fragments_of_one_sampler_follow_one_another(carried):
    """Steps of an episode go on where the sampler's fragment before ended, or with the rows that it
    carries over."""
    updates = 6  # none is dropped, even where a sampler starts late
    pool, weights = make_asynchronous(
        "Counter", 2, updates, distribution="normal", batch_size=32, carried_steps=carried
    )
    seen: dict[tuple[int, int], list[np.ndarray]] = {(0, 2): [], (2, 4): []}
    try:
        for update in range(updates):
            pool.request(Weights(update, weights.arrays), update, update == 0)
            rollout = pool.gather()
            for at, columns in enumerate(rollout.env_ranges):
                part = slice(2 * at, 2 * at + 2)
                if seen[columns]:
                    np.testing.assert_array_equal(
                        seen[columns][-1], rollout.obs[: carried + 1, part]
                    )
                seen[columns].append(rollout.obs[-1 - carried :, part])
                assert rollout.reset[part].all() == (len(seen[columns]) == 1)
            new = rollout.valid.copy()
            new[:carried, ~rollout.reset] = False
            assert rollout.steps == new.sum()
    finally:
        pool.close()


def test_a_run_trains_and_is_resumed(tmp_path):
    run_dir = tmp_path / "run"
    flags = ["--env", "HalfCheetah-v4", "--env_num", "8", "--batch_size", "512", "--policy_lag", "3",
             "--samplers", "2", "--update_epochs", "1", "--test_episodes", "1"]  # fmt: skip
    done = run_command("train.py", *flags, "--train_total_steps", "5000", "--run_dir", str(run_dir))
    assert (done.returncode, done.stderr) == (0, "")
    metrics = metrics_of(run_dir)
    assert all(0 <= m["policy_lag_mean"] <= 3 for m in metrics)
    assert any(m["policy_lag_mean"] > 0 for m in metrics)
    assert metrics[0]["episodes"] == 0
    done = run_command("train.py", "--resume", str(run_dir), "--train_total_steps", "6000")
    assert (done.returncode, done.stderr) == (0, "")
    assert summary_of(run_dir)["global_step"] >= 6_000
