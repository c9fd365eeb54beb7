"""What engines promise: nothing hangs, errors name the sampler, nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.asynchronous import AsynchronousPool
from cluster.engines import base
from cluster.engines.base import Engine, Part
from cluster.engines.inline import InlineEngine
from cluster.engines.local import LocalEngine
from cluster.lockstep import LockstepPool
from cluster.pool import Lost, Request, SamplerError
from cluster.supervisor import Supervisor
from cluster.wire import pack, prefixed
from rollout import Weights
from tests.cluster.pools import learners_side, make, make_engine, toy
from tests.cluster.threads import Call, SessionsInThreads
from tests.conftest import wait_until

pytestmark = pytest.mark.slow  # these start runs, clusters or processes

CONFIG = toy("ConstantReward")
READY = pack({"episodes": [], "raw_sps": 0.0})  # what a session answers to the hello


def supervised(
    engine: Engine, say: Callable[[str], None] = print, lag: int = 1
) -> LockstepPool | AsynchronousPool:
    supervisor = Supervisor(engine, say)
    return LockstepPool(supervisor) if lag <= 1 else AsynchronousPool(supervisor, lag)


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


def test_an_error_that_is_final_ends_it_though_another_sampler_is_still_starting(never):
    def waits():
        never.wait()
        raise AssertionError

    def refuses():
        return lambda message: pack({"lost": {"reason": "other versions", "final": True}})

    spec, weights = learners_side(CONFIG)
    pool = supervised(SessionsInThreads(CONFIG, spec, 2, {0: waits, 1: refuses}))
    pool.request(weights, 0, True)
    with pytest.raises(SamplerError, match=r"sampler 1 \(remote actor\): other versions"):
        pool.gather()
    pool.close()


def test_samplers_that_do_not_start_are_left_out_and_tried_again(never, monkeypatch):
    def waits():
        never.wait()
        raise AssertionError

    monkeypatch.setattr(base, "START_TIMEOUT_S", 2.0)
    told: list[str] = []
    spec, weights = learners_side(CONFIG)
    engine = SessionsInThreads(CONFIG, spec, 2, {1: waits})
    pool = supervised(engine, told.append)
    pool.request(weights, 0, True)
    assert not pool.gather().valid[:, 2:].any()
    assert pool.samplers_alive == 1
    assert told[0].startswith("sampler 1 (remote actor) is lost: it has been starting for 2 s")
    engine.starts = {}
    for fragment in range(1, 1000):
        pool.request(weights, fragment, False)
        if pool.gather().valid[:, 2:].any():
            break
        time.sleep(0.1)
    assert pool.samplers_alive == 2
    pool.close()


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (RuntimeError("no answer"), "RuntimeError: no answer"),
        (b"HTTP/1.1", "it gave an answer that cannot be read: .*HTTP"),
        (
            pack({"episodes": [], "raw_sps": 0.0}, {"rollout/obs": np.zeros((3, 2), np.float32)}),
            "its answer has arrays of other names, shapes or types than this run's",
        ),
    ],
)
def test_whatever_a_call_comes_to_is_told_with_the_samplers_name(lag, answer, reason):
    def start():
        answers = iter([READY, answer])
        starts.clear()  # its replacement is a session

        def call(message: bytes) -> bytes:
            given = next(answers)
            if isinstance(given, BaseException):
                raise given
            return given

        return call

    told: list[str] = []
    spec, weights = learners_side(CONFIG)
    starts: dict[int, Callable[[], Call]] = {1: start}
    pool = supervised(SessionsInThreads(CONFIG, spec, 2, starts), told.append, lag)
    pool.request(weights, 0, True)
    pool.gather()
    wait_until(lambda: bool(told), 30, "the loss to be told")
    assert re.match(rf"sampler 1 \(remote actor\) is lost: {reason}", told[0])
    pool.close()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"episodes": [(16, 2, 1.0, 1, {})]}, "an episode of another time"),
        ({"episodes": [(0, 0, 1.0, 1, {})]}, "an episode of another time or another's"),
        ({"episodes": [(0, 2, float("nan"), 1, {})]}, "its episodes cannot be read: one is not of"),
        ({"episodes": [(0, 2, 1.0, 1, [3])]}, "its episodes cannot be read"),
        ({"raw_sps": "fast"}, "cannot be read: its raw_sps is 'fast', which is no rate"),
        ({"environments/length": np.zeros(3)}, r"has the state 'length' of shape \(3,\) for its 2"),
        ({"environments/length": np.zeros(())}, r"has the state 'length' of shape \(\)"),
    ],
)
def test_a_part_of_other_times_or_environments_is_refused(changed, reason):
    config = toy("Saving")
    spec, weights = learners_side(config)
    engine = SessionsInThreads(config, spec, 2, {})
    engine.publish(weights)
    request = Request(0, True, 0, True)
    for index in range(2):
        engine.send(index, request)
    parts = collect_all(engine)
    part = parts[1]
    assert part.environments is not None
    arrays = prefixed("rollout/", part.columns.arrays())
    meta = {"episodes": part.episodes, "raw_sps": 9.0}
    meta |= {name: changed[name] for name in meta.keys() & changed.keys()}
    states = prefixed("environments/", part.environments)
    states |= {name: array for name, array in changed.items() if name not in meta}
    assert (
        engine._part(1, request, pack({"episodes": part.episodes, "raw_sps": 9.0}, arrays)).episodes
        == part.episodes
    )
    with pytest.raises(Lost, match=reason):
        engine._part(1, request, pack(meta, arrays | states))
    engine.close()


def test_any_exception_of_the_serving_thread_reaches_who_gathers():
    class Broken(InlineEngine):
        def answered(self, timeout: float | None) -> list[int]:
            raise MemoryError("none left")

    spec, weights = learners_side(CONFIG)
    pool = supervised(Broken(CONFIG, spec), lag=2)
    pool.request(weights, 0, True)
    with pytest.raises(MemoryError, match="none left"):
        pool.gather()
    pool.close()


def test_asynchronous_samplers_are_closed_in_the_middle_of_a_fragment(tmp_path, monkeypatch):
    """They wait for a fifth, which never comes, and are not waited for."""
    monkeypatch.setenv("MEETING_FOLDER", str(tmp_path))
    engine, weights = make_engine(toy("Meeting", policy_lag=2, batch_size=32), 2)
    assert isinstance(engine, LocalEngine)
    pool = supervised(engine, lag=2)
    pool.request(weights, 0, True)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, 60, "both to be within a step")
    pool.close()
    assert [child.what_became_of_it() for child in engine._children.values()] == [
        "was killed by signal 9"
    ] * 2
    assert pool._thread not in threading.enumerate()


def test_a_remote_sampler_is_replaced_and_a_late_answer_of_the_old_one_is_ignored(never):
    def start():
        def call(message: bytes) -> bytes:
            if b"first" not in message:
                never.wait()
            return pack({"episodes": [[0, 0, 99.0, 1, {}]], "raw_sps": 9.0})

        return call

    spec, weights = learners_side(CONFIG)
    engine = SessionsInThreads(CONFIG, spec, 1, {0: start})
    engine.publish(weights)
    engine.send(0, Request(0, True, 0))
    wait_until(lambda: engine.answered(0.1) or not engine.starting, 30, "its start")
    old, engine.starts = engine._actors[0], {}
    engine.end(0)
    engine.start(0)
    never.set()
    wait_until(lambda: not old.thread.is_alive(), 30, "the old one to end")
    engine.send(0, Request(0, True, 0))
    assert {e.episode_return for e in collect_all(engine)[0].episodes} == {10.0}
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


def test_environments_are_closed(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOSING_FOLDER", str(tmp_path))
    pool, weights = make(toy("Closing"), 2)
    pool.request(weights, 0, True)
    pool.gather()
    before = len(list(tmp_path.iterdir()))
    pool.close()
    assert len(list(tmp_path.iterdir())) == before + 4


def test_closing_gives_back_descriptors_and_memory():
    def held() -> tuple[Counter[str], int]:
        """What this process has open, and how often it maps memory that it shares."""
        gc.collect()
        maps = Path("/proc/self/maps").read_text().count("memfd:dppo")
        opened: Counter[str] = Counter()
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # another thread has closed it
                opened[os.readlink(f"/proc/self/fd/{number}")] += 1
        return opened, maps

    make_engine(CONFIG, 2)[0].close()  # what is opened once, is by now
    before = held()
    engine, weights = make_engine(CONFIG, 2)
    pool = supervised(engine)
    pool.request(weights, 0, True)
    rollout = pool.gather()
    assert held()[1] == before[1] + 2
    pool.close()
    assert rollout.steps == 60  # what the learner holds can still be read
    del rollout
    # less where an earlier pool has closed its own meanwhile; another thread may open something
    wait_until(lambda: not held()[0] - before[0], 30, "all that was opened to be closed")
    assert held()[1] == before[1]
