from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cluster.wire import WireError, pack, unpack

ARRAYS = st.dictionaries(
    st.text(max_size=8),
    npst.arrays(
        st.sampled_from(["float32", "float64", "uint8", "int64", "bool"]),
        npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    max_size=5,
)


@given(
    ARRAYS, st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3)
)
def test_what_is_packed_is_unpacked(arrays, meta):
    got_meta, got = unpack(pack(meta, arrays))
    assert got_meta == meta
    assert list(got) == list(arrays)
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


def test_columns_of_a_larger_array_are_packed_as_they_are():
    whole = np.arange(24.0).reshape(4, 6)
    np.testing.assert_array_equal(unpack(pack({}, {"a": whole[:, 2:4]}))[1]["a"], whole[:, 2:4])


def test_arrays_are_views_that_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        unpack(pack({}, {"a": np.zeros(3)}))[1]["a"][0] = 1


@given(st.data())
def test_a_damaged_message_is_refused_or_read_but_never_more(data):
    message = bytearray(pack({"x": 1}, {"a": np.arange(6.0), "b": np.ones((2, 2), bool)}))
    if data.draw(st.booleans()):
        message = message[: data.draw(st.integers(0, len(message) - 1))]
    else:
        message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        _, arrays = unpack(bytes(message))
    except WireError:
        return
    for array in arrays.values():
        assert array.dtype.kind in "biuf"
        assert array.nbytes <= len(message) - 64


@pytest.mark.parametrize("message", [b"", b"hello", b"\x80\x04]\x94.", b"DPPOwir1" + b"\xff" * 8])
def test_what_is_no_message_is_refused(message):
    with pytest.raises(WireError):
        unpack(message)


def test_arrays_of_objects_are_refused():
    message = pack({}, {"a": np.zeros(2)}).replace(b"<f8", b"|O8")
    with pytest.raises(WireError, match="not allowed"):
        unpack(message)
