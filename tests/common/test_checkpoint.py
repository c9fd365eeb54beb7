from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from common import checkpoint
from common.checkpoint import BadCheckpoint, UnreadCheckpoint
from common.files import CannotWrite
from tests.conftest import files_no_larger_than

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


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_a_corrupt_one(tmp_path):
    for update in (1, 2):
        checkpoint.save(tmp_path, update, ARRAYS, {"update": update})
    path = tmp_path / "update-00000002" / "arrays.safetensors"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(
        UnreadCheckpoint, match=r"update-00000002 cannot be read: .* It may be good"
    ):
        checkpoint.load_newest(tmp_path)


def test_checkpoints_on_a_disk_that_has_gone_are_not_taken_for_lost_ones(tmp_path):
    assert checkpoint.newest(tmp_path / "none") is None
    (tmp_path / "checkpoints").symlink_to(tmp_path / "unmounted" / "checkpoints")
    for look in (checkpoint.newest, checkpoint.load_newest):
        with pytest.raises(UnreadCheckpoint, match=r"cannot be read: .* It may be good"):
            look(tmp_path / "checkpoints")


def test_a_link_that_leads_to_itself_is_named(tmp_path):
    (tmp_path / "best").symlink_to("best")
    for look in (checkpoint.exists, checkpoint.load):
        with pytest.raises(BadCheckpoint, match="best is a link that leads to itself"):
            look(tmp_path / "best")


def test_a_later_checkpoint_that_cannot_be_read_is_not_set_aside_as_corrupt(tmp_path):
    for update in (1, 2):
        checkpoint.save(tmp_path, update, ARRAYS, {})
    path = tmp_path / "update-00000002" / "arrays.safetensors"
    path.unlink()
    path.symlink_to(path)
    checkpoint.save(tmp_path, 1, ARRAYS, {})
    assert (tmp_path / "superseded-00000002").is_dir()


def test_corrupt_checkpoints_take_no_room_of_good_ones(tmp_path):
    for update in (10, 20, 30, 40):
        checkpoint.save(tmp_path, update, ARRAYS, {})
    for corrupt in ("update-00000030", "update-00000040"):
        (tmp_path / corrupt / "state.json").write_bytes(b"{")
    assert checkpoint.load_newest(tmp_path)[0].path.name == "update-00000020"
    checkpoint.save(tmp_path, 25, ARRAYS, {})
    assert sorted(path.name for path in tmp_path.glob("*-*")) == [
        "corrupt-00000030", "corrupt-00000040", "update-00000020", "update-00000025",
    ]  # fmt: skip
    newest, complaints = checkpoint.load_newest(tmp_path)
    assert (newest.path.name, complaints) == ("update-00000025", [])


def test_a_whole_checkpoint_of_a_later_update_is_set_aside_and_not_called_corrupt(tmp_path):
    checkpoint.save(tmp_path, 30, ARRAYS, {})
    checkpoint.save(tmp_path, 20, ARRAYS, {})
    assert sorted(path.name for path in tmp_path.glob("*-*")) == [
        "superseded-00000030", "update-00000020",
    ]  # fmt: skip


def test_old_checkpoints_that_cannot_be_removed_are_said(tmp_path, monkeypatch):
    for update in (1, 2, 3):
        checkpoint.save(tmp_path, update, ARRAYS, {})

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint.shutil, "rmtree", refuse)
    with pytest.raises(CannotWrite, match="update-00000001; the newest, update-00000004, is whole"):
        checkpoint.save(tmp_path, 4, ARRAYS, {})
    assert checkpoint.load_newest(tmp_path)[0].path.name == "update-00000004"


def test_without_a_good_checkpoint_the_way_out_is_named(tmp_path):
    with pytest.raises(BadCheckpoint, match="it holds none; put back what is missing, or start"):
        checkpoint.load_newest(tmp_path)
    with pytest.raises(BadCheckpoint, match="best does not exist"):
        checkpoint.load(tmp_path / "best")


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("file", checkpoint.FILES)
@pytest.mark.parametrize("form", ["pickle", "numpy", "torch"])
def test_nothing_is_unpickled(tmp_path, file, form):
    """Behind a manifest that is right, so that the loader comes as far as reading the file."""
    import torch

    bomb = Bomb(tmp_path / "unpickled")
    folder = tmp_path / "update-00000001"
    checkpoint.save(tmp_path, 1, ARRAYS, {})
    if form == "pickle":
        (folder / file).write_bytes(pickle.dumps(bomb))
    elif form == "numpy":
        with open(folder / file, "wb") as opened:
            np.save(opened, np.array([bomb], object), allow_pickle=True)
    else:
        torch.save({"model": bomb}, folder / file)
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in checkpoint.FILES
    }
    (folder / "manifest.json").write_text(json.dumps({"sha256": digests}))
    with pytest.raises(BadCheckpoint, match="is corrupt"):
        checkpoint.load(folder)
    assert not bomb.trace.exists()


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "other"])
def test_a_manifest_cannot_have_other_files_read(tmp_path, name):
    checkpoint.save(tmp_path, 1, ARRAYS, {})
    manifest = tmp_path / "update-00000001" / "manifest.json"
    digests = json.loads(manifest.read_bytes())["sha256"]
    manifest.write_text(json.dumps({"sha256": digests | {name: "0"}}))
    with pytest.raises(BadCheckpoint, match=f"its manifest names .*{name}"):
        checkpoint.load(tmp_path / "update-00000001")


STEPS = ("mkdir", "fsync", "rename", "replace", "symlink", "rmdir", "unlink")  # that change a disk


class PowerCut(BaseException):
    """Nothing that comes after it is done."""


@contextmanager
def cut_after(steps: int, monkeypatch) -> Iterator[None]:
    """Let the power fail before the step that follows so many others."""
    done = 0

    def counted(call: Callable) -> Callable:
        def step(*arguments, **options):
            nonlocal done
            if done >= steps:
                raise PowerCut
            done += 1
            return call(*arguments, **options)

        return step

    with monkeypatch.context() as patched:
        for name in STEPS:
            patched.setattr(os, name, counted(getattr(os, name)))
        yield


@pytest.mark.parametrize("form", ["links", "folder of an earlier version"])
def test_best_is_one_or_the_other_wherever_its_replacement_is_interrupted(
    tmp_path, monkeypatch, form
):
    outcomes = []
    for steps in range(100):
        folder = tmp_path / str(steps)
        if form == "links":
            checkpoint.save_best(folder, 10, ARRAYS, {"return": 1})
        else:
            checkpoint.write(folder / "best", ARRAYS, {"return": 1})
        completed = False
        with cut_after(steps, monkeypatch):
            try:
                checkpoint.save_best(folder, 20, ARRAYS, {"return": 2})
                completed = True
            except PowerCut:
                pass
        assert checkpoint.exists(folder / "best")
        outcomes.append(checkpoint.load(folder / "best").state["return"])
        checkpoint.save_best(folder, 30, ARRAYS, {"return": 3})  # whatever was left lying about
        assert checkpoint.load(folder / "best").state["return"] == 3
        if completed:
            break
    assert completed
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {1, 2}


@pytest.mark.parametrize("again", [False, True], ids=["the next", "the same"])
def test_the_newest_is_one_or_the_other_wherever_a_save_is_interrupted(
    tmp_path, monkeypatch, again
):
    for steps in range(100):
        folder, completed = tmp_path / str(steps), False
        checkpoint.save(folder, 1, ARRAYS, {"part": 1})
        with cut_after(steps, monkeypatch):
            try:
                checkpoint.save(folder, 1 if again else 2, ARRAYS, {"part": 2})
                completed = True
            except PowerCut:
                pass
        saved, complaints = checkpoint.load_newest(folder)
        assert (saved.state["part"] in (1, 2), complaints) == (True, [])
        assert checkpoint.load(folder / "last").state["part"] in (1, 2)
        if completed:
            break
    assert completed


@pytest.mark.parametrize("relative", [False, True])
def test_the_best_one_before_is_kept_for_whoever_reads_it(relative, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path() if relative else tmp_path
    for step in (10, 20, 5):  # a resumed run may find its best at an earlier step
        checkpoint.save_best(folder, step, ARRAYS, {"step": step})
    assert checkpoint.load(folder / "best").state == {"step": 5}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "best-000000000005", "best-000000000020"]  # fmt: skip


def test_a_full_disk_leaves_the_old_checkpoint_and_no_rubbish(tmp_path):
    checkpoint.save(tmp_path, 1, ARRAYS, {"update": 1})
    large = {"large": np.zeros(100_000)}
    with files_no_larger_than(100_000), pytest.raises(CannotWrite, match="File too large"):
        checkpoint.save(tmp_path, 2, large, {"update": 2})
    saved, complaints = checkpoint.load_newest(tmp_path)
    assert (saved.state["update"], complaints) == (1, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "update-00000001"]


def test_replacing_a_checkpoint(tmp_path):
    for best in (1, 2):
        checkpoint.write(tmp_path / "best", ARRAYS, {"return": best})
    assert checkpoint.load(tmp_path / "best").state == {"return": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    (tmp_path / "best").rename(tmp_path / ".best.old")  # as a crash between two renames leaves it
    assert checkpoint.load(tmp_path / "best").state == {"return": 2}
    shutil.rmtree(tmp_path / ".best.old")
