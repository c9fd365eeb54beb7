"""Trainers with one model in common memory: what each adds, what each sees, and what none spoils."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from agent import NotFinite, PPOAgent
from algorithm import PPO
from cluster.engines.inline import InlineEngine
from cluster.lockstep import LockstepPool
from cluster.sampler import spec_of
from cluster.supervisor import Supervisor
from common.errors import UserError
from envs import spaces_of
from learning.hogwild import Hogwild
from learning.trainers import Joined, Refused, Trainers
from model import make_model
from rollout import Rollout
from settings.config import Config, ConfigError
from settings.size_rules import validate_sizes
from tests.test_agent import small

STATISTICS = {
    "normalize_observation": True, "reward_transform": "return_std", "normalize_value": True,
}  # fmt: skip
TIMES = {"time/sample_wait": 1.0, "time/learn": 3.0}


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = os.memfd_create("model")
    yield descriptor
    os.close(descriptor)


def make_trainer(trainers: Trainers, config: Config) -> tuple[PPOAgent, Rollout]:
    """A trainer's agent, and a fragment of its environments."""
    model = make_model(spaces_of(config.env), config)
    agent = PPOAgent(PPO(model, config, trainers), config)
    engine = InlineEngine(config, spec_of(model, config), trainers.envs(config))
    pool = LockstepPool(Supervisor(engine, print))
    pool.request(agent.weights(), 0, reset=True)
    rollout = pool.gather()
    pool.close()
    return agent, rollout


def two(memory: int, config: Config) -> list[tuple[Hogwild, PPOAgent, Rollout]]:
    """Two trainers of one model, in this process."""
    made = []
    for rank in range(2):
        trainers = Hogwild(rank, 2, Path("unused"), memory)
        agent, rollout = make_trainer(trainers, config)
        assert trainers.join(agent.shared()) == (None if rank == 0 else (0, 100))
        trainers.share(Joined(0, 100))
        made.append((trainers, agent, rollout))
    return made


def flat(agent: PPOAgent) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in agent.alg.parameters]).numpy()


@pytest.mark.parametrize("moments", ["private", "shared"])
def test_alone_it_learns_what_a_lone_trainer_learns(moments, memory):
    config = small("CartPole-v1", hogwild_moments=moments, **STATISTICS)
    lone, rollout = make_trainer(Trainers(), config)
    trainers = Hogwild(0, 1, Path("unused"), memory)
    trainers.counters = ()  # the same minibatches
    agent, same = make_trainer(trainers, config)
    trainers.join(agent.shared())
    trainers.share(Joined(0, 0))
    for progress in (0.0, 0.5):
        expected, metrics = lone.learn(rollout, progress), agent.learn(same, progress)
        assert metrics == pytest.approx(expected, rel=1e-3, abs=1e-5)
    for name, array in lone.state()[0].items():
        np.testing.assert_allclose(
            agent.state()[0][name], array, rtol=1e-4, atol=1e-6, err_msg=name
        )
    assert trainers.metrics()["staleness"] == 0.0


def test_no_step_of_the_others_is_lost_and_staleness_is_what_was_not_seen(memory):
    (first, agent, _), (second, other, _) = two(memory, small("CartPole-v1"))
    start = flat(agent)
    (one, *_), (another, *_) = agent.alg.parameters, other.alg.parameters
    with torch.no_grad():
        with first.stepping():
            for _ in range(3):
                with second.stepping():
                    another.add_(1.0)
            one.add_(10.0)
        with second.stepping():  # it sees all steps now
            assert float(
                (another - torch.from_numpy(start[: one.numel()]).view_as(one)).mean()
            ) == (pytest.approx(13.0, abs=1e-4))
    shown = first.metrics()
    assert shown["trainer/0/staleness"] == 3.0
    assert shown["trainer/1/staleness"] == 0.0
    assert (shown["gradient_steps"], shown["staleness"]) == (5.0, 0.6)


def test_statistics_are_those_of_all_trainers(memory):
    config = small("CartPole-v1", update_epochs=1, **STATISTICS)
    rows = []
    for _, agent, rollout in two(memory, config):
        agent.learn(rollout, 0.0)
        rows.append(rollout.obs[:-1][rollout.valid])
    assert agent.model.moments is not None
    rows = np.concatenate(rows).astype(np.float64)
    assert int(agent.model.moments.count) == len(rows)
    np.testing.assert_allclose(agent.model.moments.mean, rows.mean(0), rtol=1e-9)
    np.testing.assert_allclose(agent.model.moments.var, rows.var(0), rtol=1e-9)
    assert agent.rewards.scaler.moments[0] == len(rows)


def test_at_lag_0_the_kl_of_an_update_is_not_that_of_others_steps(memory):
    """The others move the weights while a trainer's samplers collect."""
    config = small(
        "CartPole-v1", policy_lag=0, learning_rate=1e-9, clip_from="start", trainer_mode="hogwild"
    )
    (_, agent, rollout), (second, other, _) = two(memory, config)
    name = "policy_head.bias"
    before = agent.weights().arrays[name]
    with torch.no_grad(), second.stepping():
        other.model.get_parameter(name).add_(torch.tensor([0.0, 1.0]))
    metrics = agent.learn(rollout, 0.0)
    np.testing.assert_allclose(agent.weights().arrays[name] - before, [0.0, 1.0], atol=1e-3)
    assert metrics["update_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-6)


def test_a_trainer_whose_numbers_are_not_finite_spoils_nobodys(memory):
    (_, agent, rollout), (_, other, good) = two(memory, small("CartPole-v1", **STATISTICS))
    spoilt = dataclasses.replace(rollout, reward=rollout.reward.copy())
    spoilt.reward[3, 0] = np.nan
    with pytest.raises(NotFinite):
        agent.learn(spoilt, 0.0)
    other.learn(good, 0.0)
    agent.learn(rollout, 0.0)
    for array in (*agent.state()[0].values(), *other.state()[0].values()):
        assert np.isfinite(array).all()


def test_all_count_the_steps_of_the_run(memory):
    (first, _, _), (second, agent, _) = two(memory, small("CartPole-v1"))
    assert first.count(100, 20, TIMES) == 120
    assert second.count(100, 5, TIMES) == 125
    assert second.metrics()["trainer/0/wait_share"] == 0.25
    assert second.stopped() is None
    second.end_run()
    assert second.stopped() is None  # it has ended by itself
    first.end_run()
    assert second.stopped() == "finished"
    again = Hogwild(1, 2, Path("unused"), second._memory)
    assert again.join(agent.shared()) == (
        1,
        125,
    )  # another process in its place goes on with its numbers


def test_statistics_are_locked_for_processes_that_have_the_same_descriptor(memory):
    (first, _, _), _ = two(memory, small("CartPole-v1", **STATISTICS))
    program = f"import fcntl; fcntl.lockf({memory}, fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def errors() -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, pass_fds=[memory], stderr=subprocess.PIPE, text=True).stderr

    with first.moving_statistics():
        assert "BlockingIOError" in errors()
    assert errors() == ""


def test_what_the_first_trainer_makes_or_refuses_is_told_to_the_others(tmp_path, memory):
    first, other = (Hogwild(rank, 2, tmp_path, memory) for rank in range(2))
    made = {"a": np.arange(3.0)}, {"run_dir": "there"}
    assert first.from_first(lambda: made) is made
    arrays, values = other.from_first(lambda: pytest.fail("the first one makes it")) or ({}, {})
    assert values == {"run_dir": "there"}
    assert np.array_equal(arrays["a"], made[0]["a"])
    assert first.from_first(lambda: None) is other.from_first(lambda: None) is None

    def refuse() -> None:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        first.from_first(refuse)
    with pytest.raises(Refused) as refused:
        other.from_first(refuse)
    assert refused.value.exit_code == UserError.exit_code


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"trainers": 1}, "give --trainers 2 or more"),
        ({"trainers": 3}, "env_num 4 cannot be shared evenly"),
        ({"trainers": 2, "minibatch_size": 256}, "256 / 2 = 128: give a divisor, or --batch_size 512"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused(settings, complaint):
    with pytest.raises(ConfigError) as error:
        validate_sizes(small("CartPole-v1", trainer_mode="hogwild", **settings))
    assert complaint in str(error.value)
