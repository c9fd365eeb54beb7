"""The examples that are in no page, run as they stand; `test_tutorial.py` runs the others."""

from __future__ import annotations

import contextlib
import shutil

import numpy as np
import pytest

from envs import make_vec_env
from evaluation.load import load_policy
from evaluation.play import play
from tests.conftest import ROOT, run_command
from tests.evaluation.untrained import untrained

pytestmark = pytest.mark.slow  # it starts processes


def test_the_custom_loop_collects_learns_and_saves(tmp_path):
    shutil.copy(ROOT / "examples" / "custom_loop.py", tmp_path)
    done = run_command("custom_loop.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 20
    assert (tmp_path / "my_agent" / "manifest.json").exists()


def test_an_exported_policy_plays_with_onnxruntime_and_gymnasium_as_it_does_here(tmp_path):
    run_dir, path = untrained("CartPole-v1", tmp_path), str(tmp_path / "policy.onnx")
    done = run_command("evaluate.py", str(run_dir), "--episodes", "1", "--export", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == path
    played = run_command(str(ROOT / "examples" / "play_onnx.py"), path, cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    policy = load_policy(run_dir)
    with contextlib.closing(make_vec_env("CartPole-v1", 5)) as venv:
        obs, _ = venv.reset(seed=list(range(5)))
        steps = play(policy.model, venv, obs, np.random.default_rng(0), greedy=True, limit=500)
        returns = np.sum([step.playing for step in steps], 0)
    lines = [f"episode {episode}: return {total}" for episode, total in enumerate(returns)]
    assert played.stdout.splitlines() == lines
