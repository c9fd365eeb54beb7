from __future__ import annotations

import pickle

import numpy as np
import pytest

from common import checkpoint
from common.checkpoint import BadCheckpoint

ARRAYS = {
    "f4": np.arange(6, dtype="f4").reshape(2, 3), "f8": np.array(1e300), "u1": np.zeros((0, 2), "u1"),
    "transposed": np.arange(6.0).reshape(2, 3).T,
}  # fmt: skip


def test_what_is_saved_is_loaded(tmp_path):
    checkpoint.save(tmp_path, 5, ARRAYS, {"update": 5, "best": None})
    saved, complaints = checkpoint.load_newest(tmp_path)
    assert (saved.state, complaints) == ({"update": 5, "best": None}, [])
    for name, array in ARRAYS.items():
        assert saved.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(saved.arrays[name], array)


def test_the_newest_three_are_kept_and_last_points_at_the_newest(tmp_path):
    for update in (1, 2, 9, 10, 100):
        checkpoint.save(tmp_path, update, ARRAYS, {"update": update})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "last", "update-00000009", "update-00000010", "update-00000100",
    ]  # fmt: skip
    assert checkpoint.load(tmp_path / "last").state["update"] == 100


@pytest.mark.parametrize("file", ["arrays.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_used(tmp_path, file, damage):
    for update in (1, 2):
        checkpoint.save(tmp_path, update, ARRAYS, {"update": update})
    path = tmp_path / "update-00000002" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    saved, complaints = checkpoint.load_newest(tmp_path)
    assert saved.state["update"] == 1
    assert len(complaints) == 1
    assert "update-00000002 is corrupt" in complaints[0]


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a checkpoint was unpickled",))

    checkpoint.save(tmp_path, 1, ARRAYS, {})
    for file in ("arrays.safetensors", "state.json", "manifest.json"):
        (tmp_path / "update-00000001" / file).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BadCheckpoint, match="no good checkpoint"):
        checkpoint.load_newest(tmp_path)


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, ARRAYS, {"update": 1})

    def crash(descriptor):
        raise OSError("the power went")

    monkeypatch.setattr(checkpoint.os, "fsync", crash)
    with pytest.raises(OSError, match="power"):
        checkpoint.save(tmp_path, 2, ARRAYS, {"update": 2})
    saved, complaints = checkpoint.load_newest(tmp_path)
    assert (saved.state["update"], complaints) == (1, [])


def test_replacing_a_checkpoint(tmp_path):
    for best in (1, 2):
        checkpoint.write(tmp_path / "best", ARRAYS, {"return": best})
    assert checkpoint.load(tmp_path / "best").state == {"return": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
