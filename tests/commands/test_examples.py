"""The examples that are in no page, run as they stand; `test_tutorial.py` runs the others."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.conftest import ROOT, run_command
from tests.evaluation.untrained import untrained

pytestmark = pytest.mark.slow  # it starts processes


def test_the_custom_loop_collects_learns_and_saves(tmp_path):
    shutil.copy(ROOT / "examples" / "custom_loop.py", tmp_path)
    done = run_command("custom_loop.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 20
    assert (tmp_path / "my_agent" / "manifest.json").exists()


def test_an_exported_policy_plays_with_onnxruntime_and_gymnasium(tmp_path):
    run_dir, path = str(untrained("CartPole-v1", tmp_path)), str(tmp_path / "policy.onnx")
    done = run_command("evaluate.py", run_dir, "--episodes", "1", "--export", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == path
    played = run_command(str(ROOT / "examples" / "play_onnx.py"), path, cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    assert len(re.findall(r"^episode \d: return \d+$", played.stdout, re.MULTILINE)) == 5
