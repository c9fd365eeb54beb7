"""Locks of files, between processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from common.locks import lock, lock_within
from tests.conftest import ROOT

HOLDER = """
import sys
from common.locks import lock
with open(sys.argv[1], "rb") as file:
    lock(file)
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_one_processes_and_ends_with_it(tmp_path):
    path = tmp_path / "file"
    path.touch()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with open(path, "rb") as file:
        with pytest.raises(BlockingIOError):
            lock(file)
        assert not lock_within(file, 0.2)
        holder.kill()
        holder.communicate()
        assert lock_within(file, 10.0)


def test_a_file_that_cannot_be_locked_is_not_waited_for(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with os.fdopen(os.open(path, os.O_PATH), "rb", buffering=0) as file:
        with pytest.raises(OSError, match="Bad file descriptor"):
            lock(file)
        assert not lock_within(file, 60.0)
