"""Checkpoints whose writers are killed, and checkpoints that are damaged, by the hundred."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from common import checkpoint
from tests.conftest import ROOT

ARRAYS = {"a": np.arange(30.0).reshape(5, 6), "b": np.ones((3, 5), np.float32)}


@pytest.mark.slow
def test_whoever_is_killed_while_it_saves_goes_on():
    """In memory, not on a disk: a process that is killed loses nothing that it has written."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.common.killed_saver", folder, "200"],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    resumed, left_behind = map(int, done.stdout.split())
    assert resumed == 200
    assert left_behind > 20  # otherwise the kills came too late to test anything


def damaged(content: bytes, form: str, choose: random.Random) -> bytes:
    if form == "truncated":
        return content[: choose.randrange(len(content))]
    flipped = bytearray(content)
    flipped[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    return bytes(flipped)


@pytest.mark.parametrize("form", ["truncated", "bit flipped"])
def test_a_hundred_damaged_checkpoints_are_named_and_the_one_before_is_used(form, tmp_path):
    choose = random.Random(0)
    for update in (1, 2):
        checkpoint.save(tmp_path, update, ARRAYS, {"update": update})
    for number in range(100):
        name = (*checkpoint.FILES, "manifest.json")[number % 3]
        path = tmp_path / "update-00000002" / name
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, form, choose))
        saved, complaints = checkpoint.load_newest(tmp_path)
        assert saved.state["update"] == 1
        assert len(complaints) == 1
        assert f"{tmp_path}/update-00000002 is corrupt" in complaints[0]
        path.write_bytes(whole)
    assert checkpoint.load_newest(tmp_path)[0].state["update"] == 2
