"""What engines promise: nothing hangs, errors name the sampler, nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.asynchronous import AsynchronousPool
from cluster.engines.base import Engine, Part
from cluster.engines.inline import InlineEngine
from cluster.engines.local import LocalEngine
from cluster.lockstep import LockstepPool
from cluster.pool import Request, SamplerError
from cluster.wire import pack
from rollout import Weights
from tests.cluster.pools import SessionsInThreads, learners_side, make_engine, toy
from tests.conftest import wait_until

pytestmark = pytest.mark.slow  # these start runs, clusters or processes

CONFIG = toy("ConstantReward")
READY = pack({"episodes": []})  # what a session answers to the hello


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """Something to wait for in vain, as long as the test lasts."""
    event = threading.Event()
    yield event
    event.set()


def collect_all(engine: Engine) -> dict[int, Part]:
    """What all busy samplers answer."""
    parts: dict[int, Part] = {}
    while engine._requests:
        for index in engine.answered(None):
            parts[index] = engine.receive(index)
    return parts


def test_a_sampler_that_cannot_start_is_an_error_though_another_is_still_starting(never):
    def waits():
        never.wait()
        raise AssertionError

    def fails():
        raise OSError("Resource temporarily unavailable")

    spec, weights = learners_side(CONFIG)
    pool = LockstepPool(SessionsInThreads(CONFIG, spec, 2, {0: waits, 1: fails}))
    pool.request(weights, 0, True)
    with pytest.raises(
        SamplerError,
        match=r"sampler 1 \(remote actor\) is lost: OSError: Resource temporarily unavailable",
    ):
        pool.gather()
    pool.close()


def test_samplers_that_do_not_start_are_an_error_in_the_end(never):
    def waits():
        never.wait()
        raise AssertionError

    spec, weights = learners_side(CONFIG)
    engine = SessionsInThreads(CONFIG, spec, 4, {1: waits, 3: waits})
    pool = LockstepPool(engine)
    wait_until(lambda: engine.answered(0.1) or engine.samplers_alive == 2, 60, "the others")
    engine.start_timeout_s = 0.5
    pool.request(weights, 0, True)
    with pytest.raises(
        SamplerError, match=r"sampler 1, 3 \(remote actor\) did not start within 0.5 s: another run"
    ):
        pool.gather()
    assert pool.samplers_alive == 2
    pool.close()


@pytest.mark.parametrize("lag", [1, 2])
def test_any_exception_of_a_call_is_an_error_that_names_the_sampler(lag):
    def start():
        errors = iter([None, RuntimeError("no answer"), RuntimeError("never called")])

        def call(message: bytes) -> bytes:
            if (error := next(errors)) is not None:
                raise error
            return READY

        return call

    spec, weights = learners_side(CONFIG)
    engine = SessionsInThreads(CONFIG, spec, 2, {1: start})
    pool = LockstepPool(engine) if lag == 1 else AsynchronousPool(engine, lag)
    pool.request(weights, 0, True)
    with pytest.raises(
        SamplerError, match=r"sampler 1 \(remote actor\) is lost: RuntimeError: no answer"
    ):
        pool.gather()
    pool.close()


def test_an_answer_that_cannot_be_read_is_an_error_that_names_the_sampler():
    spec, weights = learners_side(CONFIG)
    pool = LockstepPool(
        SessionsInThreads(CONFIG, spec, 2, {1: lambda: lambda message: b"HTTP/1.1"})
    )
    pool.request(weights, 0, True)
    with pytest.raises(SamplerError, match=r"sampler 1 .* cannot be read: .*HTTP"):
        pool.gather()
    pool.close()


def test_any_exception_of_the_serving_thread_reaches_who_gathers():
    class Broken(InlineEngine):
        def answered(self, timeout: float | None) -> list[int]:
            raise MemoryError("none left")

    spec, weights = learners_side(CONFIG)
    pool = AsynchronousPool(Broken(CONFIG, spec), 2)
    pool.request(weights, 0, True)
    with pytest.raises(MemoryError, match="none left"):
        pool.gather()
    pool.close()


def test_asynchronous_samplers_are_closed_in_the_middle_of_a_fragment(tmp_path, monkeypatch):
    """They wait for a fifth, which never comes, and are not waited for."""
    monkeypatch.setenv("MEETING_FOLDER", str(tmp_path))
    engine, weights = make_engine(toy("Meeting", policy_lag=2, batch_size=32), 2)
    assert isinstance(engine, LocalEngine)
    pool = AsynchronousPool(engine, 2)
    pool.request(weights, 0, True)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, 60, "both to be within a step")
    pool.close()
    assert [child.what_became_of_it() for child in engine._children] == [
        "was killed by signal 9"
    ] * 2
    assert pool._thread not in threading.enumerate()


def test_who_is_silent_is_named_once_a_request(never, capsys):
    def start():
        def call(message: bytes) -> bytes:
            if b"first" not in message:  # the hello has it
                never.wait()
            return READY

        return call

    spec, weights = learners_side(CONFIG)
    engine = SessionsInThreads(CONFIG, spec, 1, {0: start})
    engine.publish(weights)
    engine.send(0, Request(0, True, 0))
    for _ in range(100):
        assert not engine.wait(0.01)
    engine.close()
    assert capsys.readouterr().err.count("no answer for 0.01 s from sampler 0: a step") == 1


def test_a_killed_sampler_is_replaced():
    engine, weights = make_engine(CONFIG, 2)
    assert isinstance(engine, LocalEngine)
    pool = LockstepPool(engine)
    try:
        pool.request(weights, 0, True)
        pool.gather()
        assert (pool.samplers_alive, pool.restarts) == (2, 0)
        os.kill(engine._children[1].pid, signal.SIGKILL)
        wait_until(lambda: pool.samplers_alive == 1, 10, "the sampler to end")
        pool.request(weights, 1, False)
        with pytest.raises(SamplerError, match="sampler 1 is lost"):
            collect_all(engine)
        engine.restart(1)
        assert (pool.samplers_alive, pool.restarts) == (2, 1)
        engine.send(1, Request(2, True, 0))
        episodes = collect_all(engine)[1].episodes
        assert [(e.t, e.env) for e in episodes] == [(9, 2), (9, 3)]  # begun by the reset
    finally:
        pool.close()


def test_an_idle_sampler_that_is_gone_is_noticed():
    engine, weights = make_engine(CONFIG, 2)
    assert isinstance(engine, LocalEngine)
    pool = LockstepPool(engine)
    pool.request(weights, 0, True)
    pool.gather()
    os.kill(engine._children[1].pid, signal.SIGKILL)
    with pytest.raises(
        SamplerError, match=r"sampler 1 is lost: process \d+ was killed by signal 9"
    ):
        engine.answered(30)
    pool.close()


def test_a_remote_sampler_is_replaced_and_a_late_answer_of_the_old_one_is_ignored(never):
    def start():
        def call(message: bytes) -> bytes:
            if b"first" not in message:
                never.wait()
            return pack({"episodes": [[0, 0, 99.0, 1, {}]]})

        return call

    spec, weights = learners_side(CONFIG)
    engine = SessionsInThreads(CONFIG, spec, 1, {0: start})
    engine.publish(weights)
    engine.send(0, Request(0, True, 0))
    wait_until(lambda: engine.answered(0.1) or engine.samplers_alive == 1, 30, "its start")
    old, engine.starts = engine._actors[0], {}
    engine.restart(0)
    never.set()
    wait_until(lambda: not old.thread.is_alive(), 30, "the old one to end")
    engine.send(0, Request(0, True, 0))
    assert {e.episode_return for e in collect_all(engine)[0].episodes} == {10.0}
    assert engine.restarts == 1
    engine.close()


def test_other_weights_of_the_same_version_are_sent():
    """As after the warm-up, which changes the normaliser and not the version."""
    config = toy("Counter", distribution="normal")
    spec, weights = learners_side(config)
    engine = SessionsInThreads(config, spec, 1)
    request = Request(0, True, 0)
    actions = []
    for scale in (1, 3):
        arrays = {
            name: array * np.asarray(scale, array.dtype) for name, array in weights.arrays.items()
        }
        engine.publish(Weights(0, arrays))
        engine.send(0, request)
        actions.append(collect_all(engine)[0].columns.action.copy())
    engine.close()
    assert not np.array_equal(*actions)


def test_closing_gives_back_descriptors_and_memory():
    def held() -> tuple[int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text().count("memfd:dppo")
        return len(list(Path("/proc/self/fd").iterdir())), maps

    make_engine(CONFIG, 0)[0].close()  # what is opened once, is by now
    before = held()
    engine, weights = make_engine(CONFIG, 2)
    pool = LockstepPool(engine)
    pool.request(weights, 0, True)
    rollout = pool.gather()
    assert held()[1] == before[1] + 2
    pool.close()
    assert rollout.steps == 60  # what the learner holds can still be read
    del rollout
    assert held() == before
