"""A run goes on while its samplers are lost, and says so."""

from __future__ import annotations

import re

import pytest

from tests.commands.test_train import metrics_of, summary_of
from tests.conftest import run_command

pytestmark = pytest.mark.slow  # these start runs


@pytest.mark.parametrize("fault", ["raise", "exit"])
def test_a_run_finishes_though_its_environments_crash_by_chance(fault, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULTS_FOLDER", str(tmp_path))
    (tmp_path / "chance").write_text(f"{fault} 0.002")
    run_dir = tmp_path / "run"
    done = run_command(
        "train.py", "--env", "tests.faulty_env:Limited", "--env_num", "8", "--samplers", "4",
        "--batch_size", "256", "--update_epochs", "2", "--train_total_steps", "5000", "--compile",
        "off", "--test_every_steps", "1000000", "--test_episodes", "1", "--test_max_steps", "1",
        "--run_dir", str(run_dir),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert summary_of(run_dir)["exit_reason"] == "finished"
    crashes = len((tmp_path / "counted").read_bytes())
    last = metrics_of(run_dir)[-1]
    assert last["restarts"] == crashes > 0
    assert last["rows_lost"] >= 64 * crashes
    assert last["global_step"] >= 5000
    assert len(re.findall(r"sampler \d \(sampler process\) is lost: ", done.stdout)) == crashes
