from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cluster.wire import WireError, pack, unpack
from tests.cluster.sealed import sealed

ARRAYS = st.dictionaries(
    st.text(max_size=8),
    npst.arrays(
        st.sampled_from(["float32", "float64", "uint8", "int64", "bool"]),
        npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    max_size=5,
)


@given(
    ARRAYS,
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
    st.booleans(),
)
def test_what_is_packed_is_unpacked(arrays, meta, compress):
    got_meta, got = unpack(pack(meta, arrays, compress))
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
    whole = data.draw(st.booleans())  # as if whoever sent it had made its checksum fit
    try:
        _, arrays = unpack(sealed(bytes(message)) if whole else bytes(message))
    except WireError:
        return
    for array in arrays.values():
        assert array.dtype.kind in "biuf"
        assert array.nbytes <= len(message) - 64


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"hello",
        b"\x80\x04]\x94.",
        b"DPPOwir2" + b"\xff" * 8,
        pack({}).replace(b"wir2", b"wir1"),
    ],
)
def test_what_is_no_message_is_refused(message):
    with pytest.raises(WireError):
        unpack(message)


def test_arrays_of_objects_are_refused():
    message = sealed(pack({}, {"a": np.zeros(2)}).replace(b"<f8", b"|O8"))
    with pytest.raises(WireError, match="not allowed"):
        unpack(message)


@pytest.mark.parametrize("compress", [False, True])
def test_every_flipped_bit_is_refused(compress):
    message = pack({"version": 7}, {"a": np.arange(5.0), "b": np.ones(3, bool)}, compress)
    for bit in range(8 * len(message)):
        damaged = bytearray(message)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            unpack(bytes(damaged))


@pytest.mark.parametrize("compress", [False, True])
def test_what_is_cut_or_longer_is_refused(compress):
    message = pack({"version": 7}, {"a": np.arange(50.0)}, compress)
    for size in range(len(message)):
        with pytest.raises(WireError):
            unpack(message[:size])
    with pytest.raises(WireError, match="checksum"):
        unpack(message + b"\0")


def test_a_block_that_holds_more_than_the_message_is_read_without_the_checksum():
    block = pack({}, {"a": np.arange(3.0)}) + bytes(100)
    np.testing.assert_array_equal(unpack(block, verify=False)[1]["a"], np.arange(3.0))


def test_what_is_compressed_is_smaller():
    zeros = {"a": np.zeros(100_000)}
    assert len(pack({}, zeros, compress=True)) < len(pack({}, zeros)) / 100


def test_nothing_larger_than_is_allowed_is_decompressed():
    message = pack({}, {"a": np.zeros(100_000)}, compress=True)
    assert unpack(message, largest=800_000)[1]["a"].nbytes == 800_000
    with pytest.raises(WireError, match="at most 799999"):
        unpack(message, largest=799_999)


def test_compressed_data_of_another_size_than_it_says_is_refused():
    message = pack({}, {"a": np.zeros(1000)}, compress=True)
    with pytest.raises(WireError, match="compressed data of 8001 bytes"):
        unpack(sealed(message.replace(b'"zstd": 8000', b'"zstd": 8001')))
