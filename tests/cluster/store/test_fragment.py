"""Whatever the store holds is read, or refused in a sentence."""

from __future__ import annotations

import contextlib
import json

from hypothesis import given, settings

from cluster.store.fragment import Refused, read_fragment
from rollout import Rollout
from tests.cluster.sealed import sealed
from tests.cluster.store.stores import RANGES, SPEC, message
from tests.commands.test_hostile_input import mutated, restructured

MESSAGE = message(0, 0)
HEADER_END = 16 + int.from_bytes(MESSAGE[8:12], "little")
HEADER = json.loads(MESSAGE[16:HEADER_END])
DATA = MESSAGE[-(-HEADER_END // 64) * 64 :]


def with_header(header: object) -> bytes:
    content = json.dumps(header).encode()
    start = MESSAGE[:8] + len(content).to_bytes(4, "little") + bytes(4) + content
    return sealed(start + bytes(-len(start) % 64) + DATA)


@settings(max_examples=300)
@given(
    mutated(MESSAGE)
    | mutated(MESSAGE).map(sealed)
    | restructured(HEADER).map(with_header)
    | restructured(HEADER["meta"]).map(lambda meta: with_header({**HEADER, "meta": meta}))
)
def test_a_fragment_is_whole_or_refused(content):
    with contextlib.suppress(Refused):
        fragment = read_fragment(b"1-1", content, SPEC, RANGES, 0)
        expected = Rollout.empty(SPEC, 2).arrays()
        there = fragment.rollout.arrays()
        assert {n: (a.shape, a.dtype) for n, a in there.items()} == {
            n: (a.shape, a.dtype) for n, a in expected.items()
        }
        assert fragment.envs in RANGES
        assert fragment.rollout.policy_version == 0
        assert fragment.rollout.steps >= 0


def test_the_fragment_that_the_others_are_made_from_is_whole():
    assert with_header(HEADER) == MESSAGE
    assert read_fragment(b"1-1", MESSAGE, SPEC, RANGES, 0).envs == (0, 2)
