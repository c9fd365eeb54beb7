"""The README's examples, run as they stand."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import ROOT, run_command

pytestmark = pytest.mark.slow  # these start runs, clusters or processes


def test_the_custom_loop_collects_learns_and_saves(tmp_path):
    shutil.copy(ROOT / "examples" / "custom_loop.py", tmp_path)
    done = run_command("custom_loop.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 20
    assert (tmp_path / "my_agent" / "manifest.json").exists()
    assert (ROOT / "examples" / "custom_loop.py").read_text() in (ROOT / "README.md").read_text()


def test_a_network_of_ones_own_trains_and_evaluates(tmp_path):
    shutil.copy(ROOT / "examples" / "my_network.py", tmp_path)
    done = run_command(
        str(ROOT / "train.py"), "--env", "Pendulum-v1", "--network", "my_network:Residual",
        "--train_total_steps", "5000", "--run_dir", "run", "--samplers", "2", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run_command(str(ROOT / "evaluate.py"), "run", "--episodes", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (ROOT / "examples" / "my_network.py").read_text() in (ROOT / "README.md").read_text()
