"""What the trainers of a store have in common, and what becomes of an update that comes too late."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from agent import PPOAgent, make_agent
from cluster.sampler import spec_of
from cluster.store.make import found_pool
from cluster.store.pool import StorePool
from cluster.store.run import RunStore
from rollout import Weights
from settings.config import Config
from tests.cluster.store.stores import founded, message, run_at
from tests.conftest import wait_until
from training.store_trainers import StoreTrainers, shared

CONFIG = Config(
    env="CartPole-v1", env_num=4, samplers=2, rollout_steps=4, minibatch_size=16, policy_lag=9,
    reward_transform="return_std", compile="off",
)  # fmt: skip


@contextlib.contextmanager
def trainer(store: RunStore) -> Iterator[tuple[StoreTrainers, PPOAgent, StorePool]]:
    """A trainer of a run, which it founds where it is not there, without samplers."""
    agent, trainers = make_agent(CONFIG), StoreTrainers(lambda _: store, CONFIG, print)
    spec, weights = spec_of(agent.model, CONFIG), Weights(0, shared(agent))
    pool = found_pool(store, CONFIG, spec, weights, 2, 0, 0, True, print)
    trainers._pool = pool
    with contextlib.closing(pool):
        yield trainers, agent, pool


def append(store: RunStore, agent: PPOAgent, numbers: range) -> None:
    for number in numbers:
        for sampler in range(2):
            made: Any = message(sampler, number, spec=spec_of(agent.model, CONFIG))
            store.stream.append(sampler, number, made)


def test_trainers_scale_rewards_alike_by_the_returns_of_both(server):
    store = run_at(server.url)
    with trainer(store) as (one, agent, pool), \
            trainer(run_at(server.url, store.run)) as (two, other, others):  # fmt: skip
        append(store, agent, range(1))
        mine = pool.gather()
        append(store, agent, range(1, 2))
        theirs = others.gather()
        with one.updating(agent):
            agent.learn(mine, 0.0)
            alone = agent.rewards.scales()["scales/reward"]
            with two.updating(other):
                other.learn(theirs, 0.0)
        count, mean, _ = agent.rewards.scales()["scales/reward"]
        both = [alone, other.rewards.scales()["scales/reward"]]
        assert count == 32
        assert mean == np.mean([part[1] for part in both])
        append(store, agent, range(2, 3))
        others.gather()
        with two.updating(other):
            taken = other.rewards.scales()["scales/reward"]
            np.testing.assert_array_equal(taken, agent.rewards.scales()["scales/reward"])


def test_a_run_that_goes_on_in_a_new_store_has_the_scales_that_it_had(server, tmp_path):
    store, scale = run_at(server.url), np.array([1e6, 50.0, 400.0])
    agent = make_agent(CONFIG)
    agent.rewards.set_scales(agent.rewards.scales() | {"scales/reward": scale})
    leader = StoreTrainers(lambda _: store, CONFIG, print)
    config = dataclasses.replace(CONFIG, samplers=0)  # none is started
    with contextlib.closing(leader.open_pool(config, tmp_path, agent, 1000, print)), \
            trainer(run_at(server.url, store.run)) as (_, _, pool):  # fmt: skip
        newest = pool.weights.newest()
        assert newest is not None
        np.testing.assert_array_equal(newest.arrays["scales/reward"], scale)


def test_an_update_that_is_forgotten_leaves_nothing_behind(server):
    store = run_at(server.url)
    with trainer(store) as (trainers, agent, pool):
        append(store, agent, range(1))
        rollout = pool.gather()
        wait_until(lambda: store.status().trainers, 20, "a heartbeat; the next one is 2 s away")
        before = agent.state()
        with trainers.updating(agent):
            agent.learn(rollout, 0.0)
            store.leave("trainer", pool.trainer)
            first, *_ = sorted(store.stream.claim("other"))
            store.stream.drop("other", "dropped:old", [first])
        arrays, counters = agent.state()
        assert counters == before[1]
        for name, array in before[0].items():
            np.testing.assert_array_equal(arrays[name], array, err_msg=name)


@pytest.mark.parametrize("ended", [True, False])
def test_a_trainer_that_is_started_with_the_first_one_waits_for_it(server, monkeypatch, ended):
    store = founded(server.url)  # an earlier start of the run
    if ended:
        store.end()
    monkeypatch.setenv("DPPO_STORE_START", "second")
    monkeypatch.setattr("sys.argv", ["train.py", "--store", server.url, "--join", store.run])
    joining = dataclasses.replace(CONFIG, store=server.url, join=store.run, trust=True)
    trainers, states = StoreTrainers(lambda run: run_at(server.url, run), joining, print), []
    thread = threading.Thread(target=lambda: states.append(trainers.from_first(lambda: None)))
    thread.start()
    thread.join(1)
    assert states == []
    longer = dataclasses.replace(CONFIG, train_total_steps=123_456)
    agent = make_agent(longer)
    spec, weights = spec_of(agent.model, longer), Weights(0, shared(agent))
    found_pool(store, longer, spec, weights, 2, 0, 0, True, print).close()
    thread.join(20)
    assert states[0][1]["config"]["train_total_steps"] == 123_456


def test_scores_of_followers_wait_for_a_disk_that_takes_them(tmp_path):
    said: list[str] = []
    trainers = StoreTrainers(run_at, CONFIG, said.append)
    trainers._run_dir = tmp_path
    scores = tmp_path / "followed.jsonl"
    scores.mkdir()
    trainers._write_scores([b'{"global_step": 10}'])
    trainers._write_scores([b"[]", b'{"global_step": 20}'])
    assert len(said) == 1
    assert "the scores at 10 steps are not in it" in said[0]
    scores.rmdir()
    trainers._write_scores([b'{"global_step": 30}'])
    steps = [json.loads(line)["global_step"] for line in scores.read_text().splitlines()]
    assert steps == [10, 20, 30]
    assert "followed.jsonl is written again" in said[1]
    assert said[2:] == ["a follower's scores in the store are refused: it is no JSON object"]
