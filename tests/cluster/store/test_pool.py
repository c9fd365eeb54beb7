"""A trainer's pool over fragments that no environment has made."""

from __future__ import annotations

import pickle
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from cluster import wire
from cluster.store.pool import RunEnded, StorePool
from cluster.store.run import Record
from common.errors import UserError
from learning.trainers import Shared
from rollout import RolloutSpec, Weights
from settings.config import Config
from tests.cluster.sealed import sealed
from tests.cluster.store.stores import (
    CONFIG,
    SPEC,
    WEIGHTS,
    founded,
    is_conserved,
    message,
    pool_of,
    run_at,
)
from tests.conftest import wait_until
from training.store_trainers import StoreTrainers


def rewards(rollout: Any) -> list[float]:
    """Of each fragment: see `message`."""
    return rollout.reward[0, ::2].tolist()


def test_fragments_are_gathered_side_by_side_in_their_order_of_arrival(any_server):
    store = founded(any_server.url)
    for sampler, number in ((1, 0), (0, 0), (1, 1), (1, 2)):
        store.stream.append(sampler, number, message(sampler, number))
    with pool_of(run_at(any_server.url, store.run)) as pool:
        rollout = pool.gather()
        assert rewards(rollout) == [1000, 0]
        assert rollout.env_ranges == [(2, 4), (0, 2)]
        assert rollout.policy_version == 0
        assert rollout.reward.shape == (4, 4)
        assert pool.weights.publish(WEIGHTS.arrays, 0).outcome == "done"
        assert rewards(pool.gather()) == [1001, 1002]
        assert pool.version == 1


def test_two_trainers_learn_from_each_fragment_once(any_server):
    store = founded(any_server.url, fragments=100)
    for number in range(10):
        store.stream.append(0, number, message(0, number))
        store.stream.append(1, number, message(1, number))
    learned: list[float] = []
    with (
        pool_of(run_at(any_server.url, store.run), policy_lag=99) as one,
        pool_of(run_at(any_server.url, store.run), policy_lag=99) as two,
    ):
        for _ in range(5):
            for pool in (one, two):
                learned += rewards(pool.gather())
                if pool.weights.publish(WEIGHTS.arrays, pool.version).outcome == "conflict":
                    newest = pool.weights.newest()
                    assert newest is not None
                    assert pool.weights.publish(newest.arrays, newest.version).outcome == "done"
    assert sorted(learned) == [1000 * k + n for k in range(2) for n in range(10)]
    status = store.status()
    assert (status.learned, status.depth, status.version) == (20, 0, 10)
    assert [trainer.learned for trainer in status.trainers.values()] == [10, 10]


def test_a_trainer_whose_network_is_another_does_not_join_and_overwrites_nothing(any_server):
    store, record = founded(any_server.url), Record(CONFIG.to_dict(), 2)
    wider, said = Weights(0, {"w": np.zeros(5, np.float32)}), []
    with closing(StorePool(store, record, CONFIG, SPEC, wider, None, said.append)) as pool:
        trainers = StoreTrainers(lambda run: run_at(any_server.url, run), Config(join=store.run))
        trainers._pool = pool
        with pytest.raises(UserError, match="this trainer cannot join it"):
            trainers.join(Shared([], [], []))
    assert "in the store are refused" in said[0]
    assert store.version() == 0


def test_what_was_not_published_is_gathered_again(any_server):
    store = founded(any_server.url)
    for number in range(3):
        store.stream.append(0, number, message(0, number))
    with pool_of(run_at(any_server.url, store.run)) as pool:
        assert rewards(pool.gather()) == [0, 1]
        assert rewards(pool.gather()) == [0, 1]
        pool.refuse("not_finite")
        store.stream.append(0, 3, message(0, 3))
        assert rewards(pool.gather()) == [2, 3]
    assert store.status().refused == {"not_finite": 2}


def test_a_trainer_that_leaves_hands_its_fragments_on(any_server):
    store = founded(any_server.url)
    for number in range(2):
        store.stream.append(0, number, message(0, number))
    with pool_of(run_at(any_server.url, store.run)) as two:
        with pool_of(run_at(any_server.url, store.run)) as one:
            assert rewards(one.gather()) == [0, 1]
        assert rewards(two.gather()) == [0, 1]
        assert two.weights.publish(WEIGHTS.arrays, 0).outcome == "done"


def test_a_fragment_of_newer_weights_can_be_claimed(any_server):
    store = founded(any_server.url)
    with pool_of(run_at(any_server.url, store.run)) as pool:
        store.publish("other", "o1", 0, Weights(1, WEIGHTS.arrays), [], 0)
        for number in range(2):
            store.stream.append(0, number, message(0, number, 1))
        store.beat("trainer", "other")
        assert len(store.stream.read("other", 2)[1]) == 2
        store.leave("trainer", "other")
        assert rewards(pool.gather()) == [0, 1]
        assert pool.refused == 0


def test_a_trainer_that_was_taken_for_dead_forgets_its_weights(any_server):
    store = founded(any_server.url)
    for number in range(2):
        store.stream.append(0, number, message(0, number))
    with pool_of(run_at(any_server.url, store.run)) as pool:
        pool.gather()
        wait_until(lambda: store.status().trainers, 20, "a heartbeat; the next one is 2 s away")
        store.leave("trainer", pool.trainer)
        first, *_ = sorted(store.stream.claim("other"))
        store.stream.drop("other", "dropped:old", [first])
        published = pool.weights.publish(WEIGHTS.arrays, 0)
        assert (published.outcome, published.version) == ("lost", 0)
        assert len(published.lost) == 2
    assert store.status().learned == 0


def test_fragments_that_are_too_old_are_dropped_and_counted(any_server):
    store = founded(any_server.url)
    for version in range(3):
        store.publish("other", f"{version}", version, Weights(version + 1, WEIGHTS.arrays), [], 0)
    for number, version in enumerate((0, 1, 0, 3)):
        store.stream.append(0, number, message(0, number, version))
    with pool_of(run_at(any_server.url, store.run), policy_lag=2) as pool:
        rollout = pool.gather()
        assert rewards(rollout) == [1, 3]
        assert rollout.policy_version == 2
        assert (pool.dropped, pool.dropped_steps) == (2, 16)
    status = store.status()
    assert status.dropped == {"old": 2}
    assert is_conserved(status)


def test_an_environments_stream_begins_anew_where_another_trainer_may_have_its_middle(any_server):
    """The scale of rewards runs along it: see `learning.reward_scale`."""
    store = founded(any_server.url)
    # sampler 2 steps the environments of sampler 0 too
    for sampler, number in ((0, 0), (0, 1), (1, 0), (0, 3), (1, 1), (2, 0), (2, 1), (1, 2)):
        store.stream.append(sampler, number, message(sampler, number))
    torn = []
    with pool_of(run_at(any_server.url, store.run), policy_lag=9) as pool:
        for version in range(4):
            torn += pool.gather().reset[::2].tolist()
            pool.weights.publish(WEIGHTS.arrays, version)
    assert torn == [True, False, True, True, False, True, False, False]


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('it was unpickled')",)


def _flipped(content: bytes) -> bytes:
    return content[:200] + bytes([content[200] ^ 1]) + content[201:]


def _meta(**changes: Any) -> bytes:
    """A fragment that is whole, with another meta."""
    meta, arrays = wire.unpack(message(0, 0))
    return wire.pack(meta | changes, arrays)


BAD = {
    "pickle": pickle.dumps(Bomb()),
    "empty": b"",
    "cut": message(0, 0)[:-1],
    "flipped": _flipped(message(0, 0)),
    "earlier_format": message(0, 0).replace(b"DPPOwir2", b"DPPOwir1"),
    "objects": sealed(message(0, 0).replace(b"<f4", b"|O4")),
    "longer": message(0, 0, spec=RolloutSpec(5, (3,), "float32", (), "int64")),
    "wider": message(0, 0, spec=RolloutSpec(4, (4,), "float32", (), "int64")),
    "other_type": message(0, 0, spec=RolloutSpec(4, (3,), "uint8", (), "int64")),
    "of_the_future": message(0, 0, version=1),
    "version": _meta(version="0"),
    "number": _meta(number=True),
    "sampler": _meta(sampler=-1),
    "envs": _meta(envs=[1, 3]),
    "envs_missing": _meta(envs=None),
    "reset": _meta(reset=0),
    "episodes": _meta(episodes=[[0, 0, 1.0]]),
    "episodes_text": _meta(episodes=[[0, 0, 1.0, 5, {"a": "b"}]]),
    "episodes_nan": _meta(episodes=[[0, 0, float("nan"), 5, {}]]),
    "episodes_none": _meta(episodes=None),
    "raw_sps": _meta(raw_sps="fast"),
    "raw_sps_missing": _meta(raw_sps=None),
    "raw_sps_huge": _meta(raw_sps=10**400),
}


def test_what_is_no_fragment_of_this_run_is_refused_and_training_goes_on(any_server):
    store, said = founded(any_server.url, fragments=100), []
    for number, bad in enumerate(BAD.values()):
        store.stream.append(0, number, bad)
    for number in range(2):
        store.stream.append(1, number, message(1, number))
    with pool_of(run_at(any_server.url, store.run), said.append) as pool:
        assert rewards(pool.gather()) == [1000, 1001]
        assert pool.refused == len(BAD)
    assert len(said) == len(BAD)
    assert all(line.startswith("a fragment in the store was refused: ") for line in said)
    status = store.status()
    assert status.refused == {"damaged": 6, "unfit": len(BAD) - 6}
    assert is_conserved(status)


def test_a_fragment_that_somebody_has_removed_is_counted_and_holds_nobody_up(any_server):
    store = founded(any_server.url)
    for number in range(3):
        store.stream.append(0, number, message(0, number))
    with pool_of(run_at(any_server.url, store.run)) as pool:
        store.beat("trainer", "other")
        (id_, _), *_ = store.stream.read("other", 1)[1]
        store.link.client.xdel(f"dppo:{{{store.run}}}:stream", id_)
        store.leave("trainer", "other")
        assert rewards(pool.gather()) == [1, 2]
        store.stream.append(0, 3, message(0, 3))
        store.stream.append(0, 4, message(0, 4))
        pool.weights.publish(WEIGHTS.arrays, 0)
        assert rewards(pool.gather()) == [3, 4]


def test_weights_that_are_damaged_are_refused_and_mended_by_newer_ones(any_server):
    store, said = founded(any_server.url), []
    with pool_of(run_at(any_server.url, store.run), said.append) as pool:
        for content in (pickle.dumps(Bomb()), b"", wire.pack({}, {"w": np.zeros(3, np.float32)})):
            store.link.client.set(f"dppo:{{{store.run}}}:weights", content)
            assert pool.weights.newest() is None
        assert len(said) == 3
        assert pool.weights.publish(WEIGHTS.arrays, 0).outcome == "done"
        newest = pool.weights.newest()
    assert newest is not None
    assert newest.version == 1
    np.testing.assert_array_equal(newest.arrays["w"], WEIGHTS.arrays["w"])


def test_a_trainer_learns_that_another_has_ended_the_run(any_server):
    store = founded(any_server.url)
    with pool_of(run_at(any_server.url, store.run)) as pool:
        store.end()
        with pytest.raises(RunEnded, match=store.run):
            pool.gather()


def test_the_pool_keeps_no_state_of_environments(any_server):
    with pool_of(run_at(any_server.url)) as pool:
        pool.request(WEIGHTS, 0, True)
        with pytest.raises(ValueError, match="no state"):
            pool.request(WEIGHTS, 0, False, keep=True)


def test_the_share_of_waiting_is_told(any_server):
    store = founded(any_server.url)
    for number in range(2):
        store.stream.append(0, number, message(0, number))
    with pool_of(run_at(any_server.url, store.run)) as pool:
        pool.gather()

        def told() -> bool:
            trainers = store.status().trainers
            return pool.trainer in trainers and trainers[pool.trainer].wait > 0

        wait_until(told, 20, "a heartbeat")
        assert 0 < pool.wait <= 1
        assert pool.spec == SPEC
