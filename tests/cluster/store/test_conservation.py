"""Whether `benchmarks/store_conservation.py` would notice a fragment that is lost, or given twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.store_conservation import judged
from benchmarks.store_crowd import message_of
from tests.cluster.store.stores import WEIGHTS, founded, pool_of

APPENDED = "appended 0/0\nappended 0/1\nappended 0/2"


@pytest.mark.parametrize(
    ("trainer", "sampler", "good"),
    [
        ("tries 0/0 0/1\nlearned", APPENDED, True),
        ("tries 0/0 0/1", APPENDED, True),  # killed before it could tell
        ("tries 0/0 0/1\nlearned", f"{APPENDED}\nappended 0/3", False),  # lost
        ("tries 0/0 0/1\nlearned\ntries 0/0 0/1\nlearned", APPENDED, False),  # twice
        ("tries 0/1 0/2\nlearned", APPENDED, False),  # 0/2 is still in the store, and 0/0 is not
        ("tries 0/0 0/1\nfailed", APPENDED, False),  # the store has counted them
    ],
)
def test_what_was_told_is_compared_with_the_store(server, tmp_path: Path, trainer, sampler, good):
    store = founded(server.url)
    for number in range(3):
        store.stream.append(0, number, message_of(0, number, 0))
    with pool_of(store) as pool:
        pool.gather()
        assert pool.weights.publish(WEIGHTS.arrays, 0).outcome == "done"
        (tmp_path / "trainer").write_text(trainer + "\n")
        (tmp_path / "sampler").write_text(sampler + "\n")
        assert judged(store, tmp_path) is good
