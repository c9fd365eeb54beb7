"""A lost sampler is noticed, said and replaced, and the others go on meanwhile."""

from __future__ import annotations

import fcntl
import signal
import sys
import termios
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from cluster.asynchronous import AsynchronousPool
from cluster.lockstep import LockstepPool
from cluster.pool import Request, SamplerError
from cluster.supervisor import Supervisor
from rollout import Rollout, Weights
from settings.config import Config
from tests.cluster.pools import assert_equal, copy_of, make_engine, toy
from tests.conftest import wait_until
from training.signals import STOPS, Stopped, StopSignals

pytestmark = pytest.mark.slow  # these start processes

TIMEOUT_S = 3.0
# how soon a fault is noticed [s]: at once where a process ends, else after the timeout
NOTICED_S = {
    "kill": 2.0, "exit": 2.0, "segfault": 2.0, "raise": 2.0,
    "stop": TIMEOUT_S + 3.0, "sleep": TIMEOUT_S + 3.0, "gil": TIMEOUT_S + 3.0,
}  # fmt: skip
REPLACED_S = 30.0  # a deadline, with room for a busy machine


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FAULTS_FOLDER", str(tmp_path))
    return tmp_path


def faulty(**settings) -> Config:
    sizes = {"env_num": 4, "batch_size": 64, "minibatch_size": 16, "sampler_timeout": TIMEOUT_S}
    return Config(env="tests.faulty_env:Faulty", **(sizes | settings))


class Watched:
    """A pool over faulty environments, and what it said.

    Args:
        engine_name: where its samplers run, as `make_engine` has it.
    """

    def __init__(self, samplers: int = 2, engine_name: str = "local", **settings):
        config = faulty(**settings)
        self.told: list[str] = []
        engine, self.weights = make_engine(config, samplers, engine_name)
        supervisor = Supervisor(engine, self.told.append)
        lag = config.policy_lag
        self.pool = AsynchronousPool(supervisor, lag) if lag > 1 else LockstepPool(supervisor)
        self.update = 0

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.close()

    def collect(self) -> Rollout:
        self.pool.request(Weights(self.update, self.weights.arrays), self.update, not self.update)
        self.update += 1
        return self.pool.gather()

    def pids(self) -> list[int]:
        return [child.pid for child in self.pool.engine._children.values()]


def lost_columns(rollout: Rollout) -> list[int]:
    return np.flatnonzero(~rollout.valid.any(0)).tolist()


@pytest.mark.parametrize("fault", NOTICED_S)
def test_a_lost_sampler_is_left_out_and_replaced(fault, folder):
    with Watched() as run:
        assert lost_columns(run.collect()) == []
        before = run.pids()
        (folder / fault).touch()
        start = time.monotonic()
        rollout = run.collect()
        noticed = time.monotonic() - start
        lost = lost_columns(rollout)
        assert lost in ([0, 1], [2, 3])
        assert noticed <= NOTICED_S[fault]
        there = [n for n in range(4) if n not in lost]
        assert rollout.valid[:, there].any(0).all()
        assert np.isfinite(rollout.obs).all()
        assert (run.pool.restarts, run.pool.rows_lost) == (1, 16 * 2)
        while lost_columns(rollout):
            assert time.monotonic() - start < noticed + REPLACED_S
            assert lost_columns(rollout) == lost  # the others have gone on all the time
            rollout = run.collect()
        assert rollout.reset.tolist() == [n in lost for n in range(4)]
        assert run.pool.samplers_alive == 2
        assert lost_columns(run.collect()) == []
        gone = set(before) - set(run.pids())
        assert len(gone) == 1
        assert not psutil.pid_exists(gone.pop())
    assert run.pool.restarts == 1
    index = lost[0] // 2
    assert run.told[0].startswith(f"sampler {index} (sampler process) is lost: ")
    assert run.told[1].startswith(f"sampler {index} is back after ")


def test_an_error_is_told_with_its_place_and_in_full_once(folder):
    with Watched() as run:
        run.collect()
        for _ in range(2):
            (folder / "raise").touch()
            while not lost_columns(run.collect()):
                pass
            while lost_columns(run.collect()):
                pass
    first, _, second, _ = run.told
    assert "in environment " in first
    assert " of fragment 1" in first
    assert "Traceback (most recent call last)" in first
    assert "RuntimeError: it is faulty" in first
    assert "RuntimeError: it is faulty, as before" in second
    assert "Traceback" not in second


def test_the_part_of_a_lost_sampler_is_collected_again(folder):
    with Watched(on_loss="collect_again") as run:
        run.collect()
        (folder / "kill").touch()
        rollout = run.collect()
        assert lost_columns(rollout) == []
        assert sorted(rollout.reset.tolist()) == [False, False, True, True]
        assert (run.pool.restarts, run.pool.rows_lost) == (1, 0)


def test_a_sampler_that_is_lost_between_two_fragments_is_waited_for_too(folder):
    with Watched(on_loss="collect_again") as run:
        run.collect()
        psutil.Process(run.pids()[1]).kill()
        wait_until(lambda: run.told, 20, "the loss to be noticed")
        rollout = run.collect()
        assert lost_columns(rollout) == []
        assert rollout.reset.tolist() == [False, False, True, True]
        assert (run.pool.restarts, run.pool.rows_lost) == (1, 0)


def test_a_signal_while_the_learners_own_sampler_steps_is_no_loss(folder):
    before = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGALRM)}
    try:
        signals = StopSignals(abort=sys.exit)
        with Watched(samplers=0) as run:
            run.collect()
            (folder / "sigterm").touch()
            with pytest.raises(Stopped), signals.interrupting():
                run.collect()
            assert (run.pool.restarts, run.told) == (0, [])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_only_sampler_is_waited_for(folder):
    with Watched(samplers=1) as run:
        run.collect()
        (folder / "exit").touch()
        rollout = run.collect()
        assert lost_columns(rollout) == []
        assert rollout.reset.all()


def test_the_same_error_time_and_again_ends_it_with_the_first_one(folder):
    (folder / "chance").write_text("raise 1.0")
    with Watched() as run, pytest.raises(SamplerError) as error:
        run.collect()
    assert "was lost 5 times in a row; the first time: at step 0 of fragment 0" in str(error.value)
    assert "RuntimeError: it is faulty" in str(error.value)


def test_a_part_with_numbers_that_are_not_finite_is_refused(folder):
    with Watched() as run:
        run.collect()
        (folder / "nan").touch()
        lost = lost_columns(run.collect())
        assert len(lost) == 2
        rollout = run.collect()
        assert lost_columns(rollout) == []
        assert rollout.reset.tolist() == [n in lost for n in range(4)]
        assert (run.pool.restarts, run.pool.rows_lost, run.pool.samplers_alive) == (0, 32, 2)
    assert len(run.told) == 1
    assert "lost its part of a fragment: observation of environment" in run.told[0]


def test_numbers_that_are_not_finite_end_it_where_that_is_wanted(folder):
    with Watched(nan="stop") as run:
        run.collect()
        (folder / "nan").touch()
        with pytest.raises(SamplerError, match=r"observation of environment . .* is nan at step"):
            run.collect()


def test_a_loss_is_noticed_while_nobody_waits(folder):
    with Watched() as run:
        run.collect()
        run.pool.request(run.weights, 1, False)
        run.pool.gather()
        run.pool.request(run.weights, 2, False)
        psutil.Process(run.pids()[1]).kill()
        start = time.monotonic()
        while not run.pool.restarts:  # it is told first
            assert time.monotonic() - start < 2.0
            time.sleep(0.05)
        assert run.pool.restarts == 1
        assert run.told[0].startswith("sampler 1 (sampler process) is lost: ")


def test_a_sampler_that_stops_within_a_large_answer_is_replaced():
    config = toy(
        "Wide", batch_size=16, minibatch_size=4, hidden_sizes=(4,), sampler_timeout=TIMEOUT_S
    )
    told: list[str] = []
    engine, weights = make_engine(config, 2)
    pool = LockstepPool(Supervisor(engine, told.append))
    pool.request(weights, 0, True)
    pool.gather()
    child = engine._children[1]

    def waiting_bytes() -> int:
        return int.from_bytes(
            fcntl.ioctl(child.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder
        )

    with pool.supervisor._lock:  # nobody reads
        pool.request(weights, 1, False, keep=True)
        wait_until(lambda: waiting_bytes() > 100_000, 30, "the beginning of an answer")
        sampler = psutil.Process(child.pid)
        sampler.suspend()
        wait_until(lambda: sampler.status() == psutil.STATUS_STOPPED, 30, "its stop")
    rollout = pool.gather()
    assert lost_columns(rollout) == [2, 3]
    assert rollout.environments is None
    assert told[0].startswith(
        f"sampler 1 (sampler process) is lost: it has been in one step for {TIMEOUT_S:g} s"
    )
    pool.close()


def test_a_learner_that_was_stopped_takes_no_sampler_for_lost(folder, monkeypatch):
    """At the worst moment: it has looked for answers and not yet at the clock, and they come meanwhile."""
    with Watched(sampler_timeout=2.0) as run:
        run.collect()
        engine = run.pool.engine
        answered = engine.answered

        def nothing_yet(timeout: float | None) -> list[int]:
            time.sleep(2.5)
            return []

        monkeypatch.setattr(engine, "answered", nothing_yet)
        run.pool.request(run.weights, 1, False)
        time.sleep(4.0)  # one look of the supervisor's thread, or two
        monkeypatch.setattr(engine, "answered", answered)
        run.pool.gather()
        assert (run.told, run.pool.restarts) == ([], 0)


def test_asynchronous_samplers_are_replaced_while_the_others_go_on(folder):
    # with a small lag the replacement's first fragment is too old, and dropped, where the others are fast
    with Watched(policy_lag=1000) as run:
        run.collect()
        (folder / "kill").touch()
        start = time.monotonic()
        is_back = False
        while not is_back:  # until the replacement's first fragment comes
            assert time.monotonic() - start < 2.0 + REPLACED_S
            begins = run.collect().reset.any()
            is_back = begins and (run.pool.restarts, run.pool.samplers_alive) == (1, 2)
        assert run.pool.rows_lost == 16 * 2


def test_stragglers_are_given_up_for_a_fragment(folder):
    with Watched(samplers=4, straggler_share=0.75, sampler_timeout=60.0) as run:
        while lost_columns(run.collect()):  # one may have been given up because it started last
            pass
        slow = psutil.Process(run.pids()[2])
        slow.suspend()
        start = time.monotonic()
        rollouts = [copy_of(run.collect()) for _ in range(5)]
        assert time.monotonic() - start < 5.0
        assert [lost_columns(rollout) for rollout in rollouts] == [[2]] * 5
        slow.resume()
        while lost_columns(run.collect()):
            assert time.monotonic() - start < 20.0
        assert run.pool.restarts == 0
        assert run.pool.rows_lost >= 5 * 16  # one column of 16 rows in five fragments


def test_an_answer_that_came_before_its_sampler_was_given_up_is_dropped(folder):
    with Watched() as run:
        supervisor = run.pool.supervisor
        run.collect()
        supervisor.send(1, Request(1, False, 0))
        wait_until(lambda: supervisor._outcomes, 20, "the watch to take the answer in")
        supervisor.give_up(1)
        supervisor.send(1, Request(2, False, 0))
        outcomes = []
        wait_until(lambda: outcomes.extend(supervisor.wait()) or outcomes, 20, "the next answer")
        assert [outcome.request.fragment for outcome in outcomes] == [2]


def test_without_a_fault_nothing_is_different(folder):
    rollouts = []
    for settings in ({}, {"on_loss": "collect_again", "straggler_share": 1.0}):
        with Watched(**settings) as run:
            rollouts.append([copy_of(run.collect()) for _ in range(3)])
            assert (run.pool.restarts, run.pool.rows_lost, run.told) == (0, 0, [])
    for one, two in zip(*rollouts, strict=True):
        assert_equal(one, two)
