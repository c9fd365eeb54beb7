"""The example that is in no page, run as it stands; `test_tutorial.py` runs the others."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import ROOT, run_command

pytestmark = pytest.mark.slow  # it starts processes


def test_the_custom_loop_collects_learns_and_saves(tmp_path):
    shutil.copy(ROOT / "examples" / "custom_loop.py", tmp_path)
    done = run_command("custom_loop.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 20
    assert (tmp_path / "my_agent" / "manifest.json").exists()
