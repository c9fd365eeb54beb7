from __future__ import annotations

import pytest
import redis

from cluster.store import scripts
from cluster.store.keys import Ended, RunGone
from cluster.store.run import Record, runs
from rollout import Weights
from tests.cluster.store.stores import CONFIG, WEIGHTS, founded, is_conserved, message, run_at

NEXT = Weights(1, WEIGHTS.arrays)


def test_a_run_is_founded_once(any_server):
    store = founded(any_server.url)
    record = store.record()
    assert record is not None
    assert (record.config, record.samplers) == (CONFIG.to_dict(), 2)
    assert not store.found(record, WEIGHTS, 1, 1)
    assert store.version() == 0
    assert store.run in runs(store.link)


def test_a_run_that_is_not_there(any_server):
    store = run_at(any_server.url)
    assert store.record() is None
    for step in (store.version, store.weights, store.status):
        with pytest.raises(RunGone):
            step()
    with pytest.raises(RunGone):
        store.join(2)
    with pytest.raises(RunGone):
        store.stream.read("a", 1)
    with pytest.raises(RunGone):
        store.stream.append(0, 0, b"x")


def test_a_fragment_is_learned_from_in_the_instant_in_which_its_weights_appear(any_server):
    store = founded(any_server.url)
    assert [store.stream.append(0, n, message(0, n)) for n in range(3)] == [0, 0, 0]
    version, entries = store.stream.read("a", 2)
    assert (version, [m for _, m in entries]) == (0, [message(0, 0), message(0, 1)])
    ids = [id_ for id_, _ in entries]
    assert store.publish("a", "first", 0, NEXT, ids, 16).outcome == "done"
    status = store.status()
    assert (status.version, status.learned, status.depth, status.steps) == (1, 2, 1, 16)
    assert status.bytes == len(message(0, 2))
    assert status.trainers["a"].learned == 2
    assert is_conserved(status)


def test_a_run_is_founded_also_where_the_answer_was_lost(any_server, monkeypatch):
    store, execute, lost = run_at(any_server.url), redis.Redis.execute_command, []

    def lose_the_first(client, *words, **options):
        answer = execute(client, *words, **options)
        if not lost and words[0] == "EVAL":
            lost.append(answer)
            raise redis.exceptions.TimeoutError("Timeout reading from socket")
        return answer

    monkeypatch.setattr(redis.Redis, "execute_command", lose_the_first)
    store.link.client.script_flush()  # scripts are then sent by EVAL
    assert store.found(Record(CONFIG.to_dict(), 2), WEIGHTS, 8, 2**20)
    assert lost
    assert not run_at(any_server.url, store.run).found(Record({}, 2), WEIGHTS, 8, 2**20)


def test_a_run_of_older_weights_is_what_a_store_had_kept_and_is_made_anew(any_server):
    store, record = founded(any_server.url), Record(CONFIG.to_dict(), 2)
    given = {store.join(2) for _ in range(3)}
    store.stream.append(0, 0, message(0, 0))
    assert store.found(record, NEXT, 8, 2**20)
    assert store.status().depth == 0
    assert not list(store.link.client.scan_iter(f"dppo:{{{store.run}}}:fragment:*"))
    assert not store.found(record, NEXT, 8, 2**20)
    assert not store.found(record, WEIGHTS, 8, 2**20)
    assert store.version() == 1
    assert not {store.join(2) for _ in range(3)} & given


def test_whoever_goes_on_with_a_run_that_lives_joins_it_however_new_its_weights_are(any_server):
    store, record = founded(any_server.url), Record(CONFIG.to_dict(), 2)
    store.beat("trainer", "other")
    assert not store.found(record, NEXT, 8, 2**20)
    assert store.found(record, NEXT, 8, 2**20, again=True)  # one of its trainers knows better


def test_a_step_that_is_made_again_changes_nothing(any_server):
    store = founded(any_server.url)
    for _ in range(2):
        assert store.stream.append(0, 0, message(0, 0)) == 0
    (id_, _), *others = store.stream.read("a", 9)[1]
    assert others == []
    for _ in range(2):
        assert store.publish("a", "first", 0, NEXT, [id_], 8).version == 1
    assert store.status().version == 1
    assert store.stream.append(0, 1, message(0, 1)) == 1
    (id_, _), *_ = store.stream.read("a", 9)[1]
    for _ in range(2):
        store.stream.drop("a", "dropped:old", [id_], 8)
    status = store.status()
    assert (status.learned, status.dropped, status.steps, status.bytes) == (1, {"old": 1}, 16, 0)
    assert is_conserved(status)


def test_weights_that_are_not_made_from_the_newest_are_refused(any_server):
    store = founded(any_server.url)
    store.stream.append(0, 0, message(0, 0))
    ids = [id_ for id_, _ in store.stream.read("a", 9)[1]]
    assert store.publish("b", "b1", 0, NEXT, [], 0).outcome == "done"
    assert store.publish("a", "a1", 0, NEXT, ids, 8)[:2] == ("conflict", 1)
    assert store.status().learned == 0
    assert store.publish("a", "a2", 1, Weights(2, WEIGHTS.arrays), ids, 8)[:2] == ("done", 2)


def test_a_trainer_that_has_lost_a_fragment_does_not_learn_from_it(any_server):
    store = founded(any_server.url)
    for number in range(2):
        store.stream.append(0, number, message(0, number))
    store.beat("trainer", "a")
    ids = [id_ for id_, _ in store.stream.read("a", 9)[1]]
    store.beat("trainer", "b")
    assert store.stream.claim("b") == set()
    store.leave("trainer", "a")
    assert store.stream.claim("b") == set(ids)
    assert [m for _, m in store.stream.fetch(ids)] == [message(0, 0), message(0, 1)]
    store.stream.drop("b", "dropped:old", ids[:1])
    published = store.publish("a", "a1", 0, NEXT, ids, 8)
    assert (published.outcome, published.version, published.lost) == ("lost", 0, set(ids))
    assert store.publish("b", "b1", 0, NEXT, ids[1:], 8).outcome == "done"
    assert is_conserved(store.status())


def test_the_stream_is_bounded_by_fragments(any_server):
    store = founded(any_server.url, fragments=2)
    assert [store.stream.append(0, n, b"x") for n in range(3)] == [0, 0, None]
    assert store.stream.has_room(1) is None
    (id_, _), *_ = store.stream.read("a", 1)[1]  # it waits no more
    assert store.stream.has_room(1) == 0
    assert [store.stream.append(0, n, b"x") for n in (2, 3)] == [0, None]
    store.publish("a", "a1", 0, NEXT, [id_], 0)
    assert store.stream.append(0, 3, b"x") is None


def test_the_stream_is_bounded_by_bytes(any_server):
    store = founded(any_server.url, size=10)
    assert store.stream.append(0, 0, b"x" * 11) == 0  # otherwise it would never be learned from
    assert store.stream.append(0, 1, b"x") is None
    (id_, _), *_ = store.stream.read("a", 1)[1]
    store.stream.drop("a", "refused:damaged", [id_])
    assert [store.stream.append(0, n, b"x" * 5) for n in (1, 2, 3)] == [0, 0, None]
    assert store.status().bytes == 10


def test_trainers_that_hold_too_few_fragments_to_learn_from_do_not_fill_the_stream(any_server):
    store = founded(any_server.url, size=3)
    for number, trainer in enumerate("abc"):
        assert store.stream.append(0, number, b"x") == 0
        assert len(store.stream.read(trainer, 2)[1]) == 1
    assert store.stream.append(0, 3, b"x") == 0
    assert store.stream.append(0, 4, b"x") is None
    assert len(store.stream.read("a", 1)[1]) == 1


def test_gaps_in_a_samplers_numbers_are_counted(any_server):
    store = founded(any_server.url)
    for sampler, number in ((0, 0), (1, 2), (0, 1), (0, 5), (1, 3)):
        store.stream.append(sampler, number, b"x")
    assert store.status().gaps == 2 + 3


def test_samplers_and_trainers_are_counted_while_they_are_heard(any_server):
    store = founded(any_server.url)
    assert [store.join(2) for _ in range(3)] == [0, 1, 2]
    beat = store.beat("trainer", "a", 0, 0.25)
    assert (beat.ended, beat.samplers_alive, beat.samplers) == (False, 3, 3)
    store.leave("sampler", 1)
    status = store.status()
    assert status.samplers_alive == 2
    assert (status.trainers["a"].alive, status.trainers["a"].wait) == (True, 0.25)
    store.publish("b", "b1", 0, NEXT, [], 0)
    assert store.status().trainers["a"].behind == 1


def test_a_new_sampler_takes_the_environments_that_have_the_fewest(any_server):
    store = founded(any_server.url)
    assert [store.join(3) for _ in range(4)] == [0, 1, 2, 3]
    store.leave("sampler", 1)
    assert [store.join(3) for _ in range(3)] == [4, 7, 5]


def test_a_run_that_has_ended_takes_nothing(any_server):
    store = founded(any_server.url)
    store.end()
    assert store.beat("sampler", 0).ended
    for step in (
        lambda: store.join(2),
        lambda: store.stream.has_room(1),
        lambda: store.stream.append(0, 0, b"x"),
    ):
        with pytest.raises(Ended):
            step()


def test_nothing_outside_the_run_is_touched_and_all_of_it_expires(any_server):
    other, client = founded(any_server.url), run_at(any_server.url).link.client
    client.set("theirs", "1")
    before = {key: client.dump(key) for key in client.keys("*")}
    store = founded(any_server.url)
    sampler = store.join(2)
    store.stream.append(sampler, 0, message(0, 0))
    store.beat("trainer", "a")
    ids = [id_ for id_, _ in store.stream.read("a", 1)[1]]
    store.publish("a", "a1", 0, NEXT, ids, 8)
    store.stream.claim("a")
    store.stream.append(sampler, 1, message(0, 1))
    for lifetime in (scripts.DAY_S, scripts.HOUR_S):
        new = set(client.keys("*")) - before.keys()
        assert new
        assert all(key.decode().startswith(f"dppo:{{{store.run}}}:") for key in new)
        assert all(0 < client.ttl(key) <= lifetime for key in new)
        store.end()
        store.beat("trainer", "a")
    assert {key: client.dump(key) for key in before} == before
    assert other.status().appended == 0
    client.delete("theirs")
