"""Compiled code is kept wherever there is a place for it, and the lack of one stops nobody."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from common.sources import ROOT

SCRIPT = """
from common.compiled import njit

@njit(fastmath={"contract"})
def doubled(x):
    return 2 * x

print(doubled(21), *doubled.stats.cache_hits.values())
"""


@pytest.fixture
def run(tmp_path):
    """Run the script where neither its folder's cache nor the home can be written."""
    (tmp_path / "__pycache__").touch()
    (tmp_path / "script.py").write_text(SCRIPT)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    variables |= {"HOME": "/proc/none", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    variables.pop("XDG_CACHE_HOME", None)

    def output() -> str:
        command = [sys.executable, str(tmp_path / "script.py")]
        return subprocess.run(
            command, env=variables, capture_output=True, text=True, check=True
        ).stdout

    return output


def test_code_is_kept_among_temporary_files_where_no_other_place_can_be_written(run):
    assert run() == "42\n"
    assert run() == "42 1\n"  # loaded instead of compiled


def test_code_is_not_kept_where_others_may_write(run, tmp_path):
    folder = tmp_path / f"numba_{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    assert run() == run() == "42\n"
    assert list(folder.iterdir()) == []
