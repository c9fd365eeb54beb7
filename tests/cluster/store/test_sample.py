"""Samplers of a run in a store: real processes, which step real environments."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from typing import Any, NoReturn

import numpy as np
import psutil
import pytest

from cluster.asynchronous import FRAGMENTS
from cluster.child import Child
from cluster.pool import SamplerError
from cluster.sampler import Sampler, in_order
from cluster.store import make
from cluster.store.address import StoreError
from cluster.store.pool import RunEnded, StorePool
from cluster.store.run import Record
from rollout import Rollout, RolloutSpec, Weights
from settings.config import Config
from settings.store_url import PASSWORD
from tests.cluster.pools import learners_side, toy
from tests.cluster.store.stores import is_conserved, real_pool, run_at, started_again
from tests.conftest import ROOT, wait_until

pytestmark = pytest.mark.slow  # these start processes


def sample_command(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.store", "sample", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        **({"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}} | options),
    )  # fmt: skip


def gather_for_ever(pool: StorePool) -> NoReturn:
    while True:
        pool.gather()


def made_here(config: Config, weights: Weights, spec: RolloutSpec, number: int, first: int):
    """The fragments that a sampler makes in this process, from a number on."""
    sampler = Sampler(config, 0, config.env_num, number)
    sampler.model.set_weights(weights.arrays)
    for fragment in range(first, first + 3):
        out = Rollout.empty(spec, config.env_num)
        episodes = in_order(sampler.collect(fragment, fragment == first, out))
        yield out, episodes
    sampler.close()


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_fragments_are_those_of_a_sampler_in_this_process(server, compression):
    config = toy("Counter", samplers=1, policy_lag=9, store_compression=compression)
    spec, weights = learners_side(config)
    store, record = run_at(server.url), Record(config.to_dict(), 1)
    store.found(record, weights, 9, 2**30, first_sampler=3)
    command = sample_command("--store", server.url, "--run", store.run, "--trust")
    pool = StorePool(run_at(server.url, store.run), record, config, spec, weights, None, print)
    try:
        for version, (made, episodes) in enumerate(
            made_here(config, weights, spec, 3, 3 * FRAGMENTS)
        ):
            rollout = pool.gather()
            assert rollout.policy_version <= version
            assert rollout.reset.all() == (version == 0)
            assert rollout.episodes == episodes
            assert list(rollout.arrays()) == list(made.arrays())
            for name, array in made.arrays().items():
                np.testing.assert_array_equal(rollout.arrays()[name], array, err_msg=name)
            assert pool.weights.publish(weights.arrays, version).outcome == "done"
        pool.close()
        run_at(server.url, store.run).end()
        said, errors = command.communicate(timeout=30)
    finally:
        command.kill()
    assert (command.returncode, errors) == (0, "")
    assert os.environ[PASSWORD] not in said


def test_samplers_take_newer_weights_as_they_are_published(server):
    with real_pool(server.url, "ConstantReward", 2) as (pool, _, weights):
        for version in range(12):
            rollout = pool.gather()
            assert version - 4 <= rollout.policy_version <= version
            assert pool.weights.publish(weights.arrays, version).outcome == "done"
        assert rollout.policy_version > 4
        wait_until(lambda: pool.samplers_alive == 2, 20, "a heartbeat that has seen both")
        status = run_at(server.url, pool.run).status()
    assert is_conserved(status)
    assert (status.learned, status.gaps) == (24, 0)


def test_a_killed_sampler_is_replaced_and_its_number_is_not_used_again(server):
    said: list[str] = []
    with real_pool(server.url, "ConstantReward", 2, said.append) as (pool, _, weights):
        for version in range(3):
            pool.gather()
            pool.weights.publish(weights.arrays, version)
        assert pool._local is not None
        victim = pool._local.pids[0]
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        version, ranges = 3, set()
        while pool.restarts == 0 or len(ranges) < 2:
            rollout = pool.gather()
            if pool.restarts:
                ranges.update(rollout.env_ranges)
            pool.weights.publish(weights.arrays, version)
            version += 1
        assert run_at(server.url, pool.run).beat("trainer", "x").samplers > 2
    assert any("was killed by signal 9" in line for line in said)


@pytest.mark.parametrize("env", ["Hanging", "HoldingTheLock"])
def test_a_sampler_whose_environment_hangs_is_ended_and_replaced(
    server, env, tmp_path, monkeypatch
):
    monkeypatch.setenv("HANGING_FOLDER", str(tmp_path))
    with real_pool(server.url, env, 1, samplers=1, sampler_timeout=2.0) as (pool, _, weights):
        for version in range(4):
            pool.gather()
            pool.weights.publish(weights.arrays, version)
        assert pool.restarts == 1


def test_a_sampler_whose_environment_hangs_while_it_is_made_ends(server):
    config = toy("HangingAtStart", samplers=1, policy_lag=2)
    store = run_at(server.url)
    store.found(Record(config.to_dict(), 1), learners_side(config)[1], 9, 2**30)
    code = (
        "from envs import family; family('tests.toy_envs:HangingAtStart');"  # it imports for a while
        " import tests.toy_envs; from cluster.store import sample;"
        " from tests.cluster.store.stores import run_at; sample.START_TIMEOUT_S = 1.0;"
        f" sample.collect(run_at({server.url!r}, {store.run!r}), True, 5.0, lambda **words: None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"HANGS_AT_START": "yes"},
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("Timeout")
    assert "tests/toy_envs.py" in done.stderr


def test_a_sampler_that_cannot_be_started_is_tried_again(server, monkeypatch):
    monkeypatch.setattr("cluster.store.local.LONGEST_PAUSE_S", 0.2)
    tries = []

    def child(*arguments: Any, **more: Any) -> Child:
        tries.append(arguments)
        if len(tries) == 1:
            raise OSError("no more processes")
        return Child(*arguments, **more)

    monkeypatch.setattr("cluster.store.local.Child", child)
    said: list[str] = []
    with real_pool(server.url, "ConstantReward", 1, said.append, samplers=1) as (pool, *_):
        pool.gather()
        assert pool.restarts == 0
    assert len(tries) == 2
    assert "a sampler cannot be started now: no more processes; in 0.2 s it is tried again" in said


def test_an_environments_error_is_told_and_the_same_one_time_and_again_ends_the_run(server):
    said: list[str] = []
    with (
        # fragments of 32 rows: there is never a whole one
        real_pool(server.url, "Failing", 1, said.append, samplers=1, batch_size=128) as (pool, *_),
        pytest.raises(SamplerError, match="5 times in a row") as error,
    ):
        pool.gather()
    assert "the wheel has come off" in str(error.value)
    assert len([line for line in said if "Traceback" in line]) == 4


def test_code_that_nobody_trusts_is_not_imported(server):
    config = toy("ConstantReward", samplers=1, policy_lag=2)
    store = run_at(server.url)
    store.found(Record(config.to_dict(), 1), learners_side(config)[1], 9, 2**30)
    command = sample_command("--store", server.url)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 2
    assert "tests.toy_envs:ConstantReward" in errors
    assert "--trust" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_samplers_end_with_their_command(server, number):
    config = toy("ConstantReward", samplers=2, policy_lag=2)
    store = run_at(server.url)
    store.found(Record(config.to_dict(), 2), learners_side(config)[1], 9, 2**30)
    url = server.url.replace("//", f"//default:{os.environ[PASSWORD]}@")
    command = sample_command("--store", url, "--samplers", "2", "--trust")
    wait_until(lambda: store.status().appended >= 4, 60, "fragments of both")
    family = psutil.Process(command.pid).children(recursive=True)
    assert len(family) >= 2
    for process in family:
        assert os.environ[PASSWORD] not in " ".join(process.cmdline())
    command.send_signal(number)
    said, errors = command.communicate(timeout=30)
    assert command.returncode == (0 if number == signal.SIGTERM else -9)
    assert os.environ[PASSWORD] not in said + errors
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def test_the_command_works_in_a_folder_with_modules_of_the_same_names(server, tmp_path):
    for name in ("model", "rollout", "agent"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    config = Config(
        env="CartPole-v1", samplers=1, policy_lag=2, env_num=4, batch_size=64, minibatch_size=16
    )
    store = run_at(server.url)
    store.found(Record(config.to_dict(), 1), learners_side(config)[1], 9, 2**30)
    command = sample_command("--store", server.url, cwd=tmp_path)
    try:
        wait_until(lambda: store.status().appended > 0, 60, "a fragment")
    finally:
        command.terminate()
        _, errors = command.communicate(timeout=30)
    assert errors == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--store", "redis://:hush@127.0.0.1:1/0", "--store_timeout", "0.3"], "has been away"),
        (["--store", "redis://:hush"], "must be the URL of a server: redis://"),
        (["--store", "embedded"], "must be the URL of a server: redis://"),
    ],
)
def test_a_store_that_cannot_be_used_is_told_in_a_line_without_the_password(arguments, words):
    command = sample_command(*arguments)
    said, errors = command.communicate(timeout=60)
    assert command.returncode in (2, 75)
    assert words in errors
    assert "hush" not in said + errors
    assert "Traceback" not in errors


def test_samplers_join_again_where_the_store_came_back_empty(server):
    said: list[str] = []
    with real_pool(server.url, "ConstantReward", 2, said.append) as (pool, _, weights):
        for version in range(3):
            pool.gather()
            pool.weights.publish(weights.arrays, version)
        os.kill(server.pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(server.pid)], timeout=20)
        with contextlib.closing(started_again(server)):
            ranges = set()
            while len(ranges) < 2:
                ranges.update(pool.gather().env_ranges)
                pool.weights.publish(weights.arrays, pool.version)
            assert pool.version > 3
            assert is_conserved(run_at(server.url, pool.run).status())
    assert any("is made anew" in line for line in said)


def test_samplers_and_trainers_go_on_where_the_store_came_back_with_an_older_state(server):
    said: list[str] = []
    with real_pool(server.url, "ConstantReward", 2, said.append) as (pool, _, weights):
        store = run_at(server.url, pool.run)
        client = store.link.client
        for version in range(6):
            if version == 2:
                kept = {key: client.dump(key) for key in client.scan_iter("dppo:*")}
            pool.gather()
            pool.weights.publish(weights.arrays, version)
        numbers = store.beat("trainer", "x").samplers
        pipe = client.pipeline()  # as one step
        pipe.flushall()
        for key, content in kept.items():
            pipe.restore(key, 0, content or b"", replace=True)
        pipe.execute()
        for _ in range(8):
            pool.gather()
            pool.weights.publish(weights.arrays, pool.version)
        assert pool.version > 6  # no update was lost, but for those that were being made
        assert pool.refused == 0
        assert store.beat("trainer", "x").samplers > numbers  # none has a number twice
    assert any("is made anew, with weights 6" in line for line in said)


def test_samplers_end_where_the_store_is_lost(server):
    config = toy("ConstantReward", samplers=1, policy_lag=2)
    store = run_at(server.url)
    store.found(Record(config.to_dict(), 1), learners_side(config)[1], 9, 2**30)
    command = sample_command("--store", server.url, "--trust", "--store_timeout", "1")
    wait_until(lambda: store.status().appended > 0, 60, "a fragment")
    os.kill(server.pid, signal.SIGKILL)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 75
    assert "has been away for 1 s" in errors


def test_trainers_join_and_the_one_that_ends_the_run_ends_it_for_all(server):
    with real_pool(server.url, "ConstantReward", 2) as (pool, config, weights):
        store = run_at(server.url, pool.run)
        record, its_config = make.joined(store, True, "--join")
        assert dataclasses.replace(its_config, trust=False) == config
        other = make.join_pool(store, record, its_config, pool.spec, weights, print)
        with contextlib.closing(other):
            for trainer in (pool, other, pool, other):
                assert trainer.gather().reward.shape == (16, 4)
                newest = trainer.weights.newest()
                assert newest is not None
                assert trainer.weights.publish(newest.arrays, newest.version).outcome == "done"
            samplers = pool._local
            assert samplers is not None
            pool.end()
            wait_until(lambda: not samplers.look(), 30, "the samplers' end")
            # a heartbeat brings the news
            with pytest.raises(RunEnded):
                gather_for_ever(other)


def test_a_run_that_is_not_there_cannot_be_joined(server):
    store = run_at(server.url, "1a2b")
    with pytest.raises(StoreError, match="no run 1a2b: give --join"):
        make.joined(store, False, "--join")


def test_a_store_without_runs_or_with_several_is_told(server):
    for run in (None, "one", "two"):
        if run is not None:
            config = toy("ConstantReward", samplers=1, policy_lag=2)
            store = run_at(server.url, run)
            store.found(Record(config.to_dict(), 1), Weights(0, {}), 9, 2**30)
        if run == "one":
            continue
        command = sample_command("--store", server.url)
        _, errors = command.communicate(timeout=60)
        assert command.returncode == 2
        assert ("has no run" in errors) if run is None else ("2 runs, one, two" in errors)
