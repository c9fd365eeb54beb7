"""Gradient steps without Python between them, and the shares of a minibatch on threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from algorithm import PPO
from envs import Spaces
from learning import gradient_steps
from learning.batches import Batches, Minibatch, equal_parts
from learning.hardware import Threads, choose_threads
from learning.passes import Statistics
from model import make_model
from rollout import Rollout, RolloutSpec
from settings.config import Config
from tests.conftest import run_command
from tests.test_algorithm import BOX, OBS

SHARES, STEPS, ENVS = 2, 32, 16


@pytest.fixture(autouse=True)
def operators_have_one_thread() -> Iterator[None]:
    """As in a run with shares: which thread computes a share is then the same to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def learner(shares: int, **settings) -> PPO:
    settings = {"minibatch_size": 256, "batch_size": 512, "compile": "on"} | settings
    config = Config(env_num=ENVS, torch_threads=shares, **settings)
    torch.manual_seed(0)
    return PPO(make_model(Spaces(OBS, BOX, 0), config), config)


def minibatches(ppo: PPO) -> list[tuple[Minibatch, ...]]:
    """Two minibatches of a rollout in which some rows are resets."""
    rollout = Rollout.empty(RolloutSpec(STEPS, OBS.shape, "float32", BOX.shape, "float32"), ENVS)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    rollout.obs[:] = normal(*rollout.obs.shape)
    rollout.valid[:] = rng.random((STEPS, ENVS)) < 0.9
    rollout.action[:] = normal(*rollout.action.shape)
    rollout.behaviour_log_prob[:] = normal(STEPS, ENVS) - 4
    batches = Batches(ppo.config, rollout, torch.device("cpu"), shares=ppo.threads.shares)
    heads = () if ppo.model.rnd is None else (2,)
    batches.put(
        advantage=normal(STEPS, ENVS),
        **{name: normal(STEPS, ENVS, *heads) for name in ("value_target", "old_value")},
    )
    if heads:
        batches.draw_predicted(rng)
    return batches.epoch(np.random.default_rng(1))


@pytest.mark.slow
@pytest.mark.parametrize("shares", [1, SHARES])
def test_steps_at_once_are_those_one_by_one(shares, monkeypatch):
    one_by_one, at_once = learner(shares), learner(shares)
    given = minibatches(one_by_one)
    assert [len(parts) for parts in given] == [shares, shares]
    for ours, theirs in zip(at_once.parameters, one_by_one.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg="they begin unlike")
    # the first time at_once compiles, or loads what is kept; the last time it takes two calls
    for rows_at_once in (4096, 4096, 256):
        monkeypatch.setattr(gradient_steps, "_ROWS_AT_ONCE", rows_at_once)
        rows = [one_by_one.learn(*parts) for parts in given]
        torch.testing.assert_close(at_once.learn_all(given), torch.stack(rows), rtol=0, atol=0)
    for ours, theirs in zip(at_once.parameters, one_by_one.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert torch.equal(at_once.descent.adam.moments, one_by_one.descent.adam.moments)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"compile": "off"},
        {"compile": "off", "rnd_coefficient": 0.5, "rnd_proportion": 0.4, "value_loss": "huber",
         "value_clip": 0.2},
        {"compile": "off", "normalize_advantage": False, "kl_penalty": "fixed"},
    ],
    ids=str,
)  # fmt: skip
def test_a_step_on_shares_is_that_on_the_whole_minibatch(settings):
    whole, parted = learner(1, **settings), learner(SHARES, **settings)
    parted.threads = Threads(SHARES, 1)  # not compiled it would not have shares
    tables = [ppo.learn_all(minibatches(ppo)) for ppo in (whole, parted)]
    torch.testing.assert_close(*tables, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(parted.parameters, whole.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_values_are_the_models():
    """In as many parts as there are threads, where these divide the rows."""
    rows = 33 * ENVS
    ppo, obs = learner(SHARES), torch.randn(rows, *OBS.shape)
    with torch.no_grad():
        expected = ppo.model.value(obs)
    torch.testing.assert_close(ppo.value(obs), expected, rtol=1e-4, atol=1e-5)
    assert ppo.state_values.graph is not None
    assert list(ppo.state_values.graph._compiled) == [
        ((rows // SHARES, *OBS.shape),)
    ]  # one graph for both parts
    assert [equal_parts(n, 2) for n in (528, 527, 20_000, 3 * 4099)] == [2, 1, 8, 1]


def test_epochs_have_the_same_memory_and_orders_of_their_own():
    ppo = learner(SHARES)
    rollout = Rollout.empty(RolloutSpec(STEPS, OBS.shape, "float32", BOX.shape, "float32"), ENVS)
    rollout.obs[:] = np.arange(STEPS + 1)[:, None, None] * ENVS + np.arange(ENVS)[:, None]
    rollout.valid[:] = True
    batches = Batches(ppo.config, rollout, torch.device("cpu"), shares=SHARES)
    rows = np.arange(STEPS * ENVS, dtype=np.float32).reshape(STEPS, ENVS)
    orders = []
    for epoch in range(3):
        batches.put(**dict.fromkeys(("advantage", "value_target", "old_value"), rows + epoch))
        shares = [share for parts in batches.epoch(np.random.default_rng(epoch)) for share in parts]
        order = torch.cat([share.obs[:, 0] for share in shares])
        assert torch.equal(torch.cat([share.advantage for share in shares]), order + epoch)
        whole = torch.stack([share.whole for share in shares if share.whole is not None])
        means = torch.stack([share.advantage.mean() for share in shares]).view(-1, SHARES).mean(1)
        torch.testing.assert_close(whole[::SHARES, 1], means)
        assert torch.equal(whole[::SHARES], whole[1::SHARES])
        assert torch.equal(order.sort().values, torch.from_numpy(rows.ravel()))
        orders.append((order, shares[0].obs.data_ptr()))
    assert orders[0][1] == orders[1][1] == orders[2][1]
    assert not torch.equal(orders[0][0], orders[1][0])


@pytest.mark.slow
def test_the_number_of_cores_changes_no_bit():
    program = """
import hashlib, os
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
from tests.learning.test_native import *
torch.set_num_threads(1)
ppo = learner(SHARES)
for _ in range(3):
    ppo.learn_all(minibatches(ppo))
print(hashlib.sha256(torch.cat([p.detach().flatten() for p in ppo.parameters]).numpy()).hexdigest())
"""
    done = [run_command("-c", program.replace("CORES", cores)) for cores in ("1", "2")]
    assert done[0].stdout, done[0].stderr
    assert done[0].stdout == done[1].stdout


@pytest.mark.slow
def test_the_thread_of_a_share_changes_no_bit():
    ppo = learner(SHARES)
    given = minibatches(ppo)
    first = ppo._steps.gradients(given[0])  # compiles, or loads what is kept
    for _ in range(20):
        on_threads = ppo._steps.gradients(given[0])
        alone = [ppo._steps.gradients([share])[0] for share in given[0]]
        for share in range(SHARES):
            torch.testing.assert_close(on_threads[share], alone[share], rtol=0, atol=0)
            torch.testing.assert_close(first[share], alone[share], rtol=0, atol=0)


def test_an_error_on_any_thread_is_raised_and_the_threads_go_on():
    ppo = learner(SHARES)
    given = minibatches(ppo)
    ppo.learn_all(given)
    ppo.learn_all(given)
    ((graph,), (after,)) = (half._compiled.values() for half in ppo._steps.halves)
    first, second, place = graph.native, after.native, graph.places[0]
    assert first is not None
    assert second is not None
    assert place is not None
    places = [p for p in after.places if p is not None]
    inputs = [one for parts in given for part in parts for one in graph.inputs_for(part)]
    tensors = [*inputs, *after.inputs]
    uses = [tensor._use_count() for tensor in tensors]
    for share in range(SHARES):
        wrong, last = list(inputs), len(inputs) - (SHARES - share) * len(graph.inputs)
        wrong[last + place] = torch.zeros(3)  # not a share's observations
        with pytest.raises(RuntimeError, match="expected ndim 2"):
            first(wrong[-SHARES * len(graph.inputs) :])
        with pytest.raises(RuntimeError, match="expected ndim 2"):
            first.steps(wrong, second, after.inputs, places)
    del wrong
    assert [tensor._use_count() for tensor in tensors] == uses  # nothing holds their memory
    assert ppo.learn_all(given).isfinite().all()


def test_threads_are_for_shares_where_these_pay():
    long = Config(train_total_steps=10_000_000, policy_lag=0, minibatch_size=512)
    assert choose_threads(long, "cpu", 1) == Threads(2, 1)
    assert choose_threads(dataclasses.replace(long, minibatch_size=256), "cpu", 1) == Threads(2, 1)
    assert choose_threads(dataclasses.replace(long, minibatch_size=254), "cpu", 1) == Threads(1, 1)
    assert choose_threads(dataclasses.replace(long, policy_lag=1), "cpu", 1) == Threads(1, 1)
    assert choose_threads(long, "cuda", 1) == Threads(1, 1)
    two = dataclasses.replace(long, trainers=2, minibatch_size=1024)  # the other core is busy
    assert choose_threads(two, "cpu", 2) == Threads(1, 1)
    assert choose_threads(dataclasses.replace(long, torch_threads=4), "cpu", 1) == Threads(4, 1)
    # of three trainers each has 85 rows of 255, which 2 does not divide; 5 would be few rows each
    odd = dataclasses.replace(long, minibatch_size=255, torch_threads=8)
    assert choose_threads(odd, "cpu", 3) == Threads(1, 1)
    eager = dataclasses.replace(long, compile="off")
    assert choose_threads(eager, "cpu", 1) == Threads(1, 1)
    assert choose_threads(dataclasses.replace(eager, torch_threads=3), "cpu", 1) == Threads(1, 3)
    images = dataclasses.replace(long, network="nature_cnn", torch_threads=3)
    assert choose_threads(images, "cpu", 1) == Threads(1, 3)


def test_a_loss_that_may_be_no_sum_over_rows_is_of_whole_minibatches():
    class Own(PPO):
        """Its loss may be anything."""

    config = Config(train_total_steps=10_000_000, policy_lag=0, minibatch_size=512)
    for kind, shares in ((PPO, 2), (Own, 1)):
        assert kind(make_model(Spaces(OBS, BOX, 0), config), config).threads.shares == shares
    penalised = dataclasses.replace(config, kl_penalty="fixed", kl_excess_coefficient=1.0)
    assert choose_threads(penalised, "cpu", 1) == Threads(1, 1)
    assert choose_threads(dataclasses.replace(penalised, torch_threads=3), "cpu", 1) == Threads(
        1, 3
    )


def test_a_subclass_with_a_step_of_its_own_takes_it(monkeypatch):
    """Also where many steps could be taken at once, as on a GPU."""

    class Own(PPO):
        def learn(self, *shares: Minibatch) -> torch.Tensor:
            return torch.full((len(Statistics._fields),), 7.0)

    config = Config(compile="off", env_num=ENVS, batch_size=512, minibatch_size=256)
    for kind, expected in ((PPO, 0.0), (Own, 7.0)):
        ppo = kind(make_model(Spaces(OBS, BOX, 0), config), config)
        at_once = torch.zeros(2, len(Statistics._fields))
        monkeypatch.setattr(ppo._steps, "at_once", lambda _, table=at_once: table)
        assert torch.equal(ppo.learn_all(minibatches(ppo)), at_once + expected)
