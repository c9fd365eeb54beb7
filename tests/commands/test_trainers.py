"""Several trainers as users start them, and what follows when one of them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.commands.test_train import (
    children_of,
    metrics_of,
    start_training,
    summary_of,
)
from tests.conftest import ROOT, run_command, still_running, wait_until
from tests.training.runs import running, train_until

pytestmark = [pytest.mark.xdist_group("xparl"), pytest.mark.slow]

FLAGS = ("--env", "CartPole-v1", "--env_num", "4", "--samplers", "2", "--batch_size", "64",
         "--minibatch_size", "32", "--update_epochs", "2", "--compile", "off",
         "--train_total_steps", "3000", "--test_every_steps", "1000000", "--test_episodes", "1",
         "--normalize_observation")  # fmt: skip


def kill_one(launcher: subprocess.Popen, rank: int, run_dir: Path) -> list[psutil.Process]:
    """Kill a trainer in the midst of the run; all the processes that there were."""
    metrics = run_dir / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(metrics_of(run_dir)) > 20, 90, "some updates")
    processes = children_of(launcher)
    victim = next(p for p in psutil.Process(launcher.pid).children()
                  if p.environ().get("RANK") == str(rank))  # fmt: skip
    os.kill(victim.pid, signal.SIGKILL)
    return processes


def test_a_killed_trainer_costs_no_bit_and_leaves_no_process(tmp_path, xparl_cluster):
    ours, torchs = tmp_path / "trainers", tmp_path / "torchrun"
    launcher = start_training(ours, *FLAGS, "--trainers", "2")
    processes = kill_one(launcher, 1, ours)
    output, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 75, output
    assert "trainer 1 was killed by signal 9" in output
    assert f"python train.py --resume {ours}" in output
    wait_until(lambda: not still_running(processes), 10, "the end of all processes")

    done = run_command("train.py", "--resume", str(ours), "--xparl_addr", xparl_cluster)
    assert (done.returncode, done.stderr) == (0, "")
    assert "(xparl pool, 2 samplers, cpu with 1 thread, 2 trainers)" in done.stdout
    summary = summary_of(ours)
    assert summary["exit_reason"] == "finished"
    assert summary["samplers"] == 2

    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--max_restarts",
         "1", "train.py", *FLAGS, "--samplers", "0", "--run_dir", str(torchs)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    kill_one(launcher, 0, torchs)
    output, _ = launcher.communicate(timeout=90)
    assert launcher.returncode == 0, output
    assert (torchs / "resumes.yaml").exists()
    assert summary_of(torchs)["weights_sha256"] == summary["weights_sha256"]

    more = ("--trainers", "1", "--train_total_steps", "4000")
    with running("--resume", str(torchs), *more) as run:
        update = run.agent.update
        train_until(run, update + 3)
        assert run.agent.update == update + 3


def test_sigterm_stops_all_trainers_with_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth9")  # they use loopback nevertheless
    launcher = start_training(tmp_path / "run", *FLAGS, "--trainers", "2")
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.stat().st_size, 90, "an update")
    processes = children_of(launcher)
    launcher.terminate()
    output, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 0, output
    assert summary_of(tmp_path / "run")["exit_reason"] == "sigterm"
    assert still_running(processes) == []


def test_trainers_whose_launcher_is_killed_at_once_end(tmp_path):
    launcher = start_training(tmp_path / "run", *FLAGS, "--trainers", "2")
    wait_until(lambda: len(children_of(launcher)) >= 2, 30, "both trainers")
    processes = children_of(launcher)
    launcher.kill()
    launcher.communicate(timeout=30)
    wait_until(lambda: not still_running(processes), 30, "the end of all processes")


@pytest.mark.parametrize("rank", [0, 1])
def test_hogwild_trainers_go_on_without_one_that_is_killed(rank, tmp_path):
    run_dir = tmp_path / "run"
    # long enough for another to take its place before the one that is left has done all
    flags = (*FLAGS, "--train_total_steps", "80000", "--trainers", "2", "--trainer_mode", "hogwild")
    launcher = start_training(run_dir, *flags)
    processes = kill_one(launcher, rank, run_dir)
    before = metrics_of(run_dir)[-1]
    output, _ = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, output
    assert f"trainer {rank} was killed by signal 9: another takes its place" in output
    summary, rows = summary_of(run_dir), metrics_of(run_dir)
    assert summary["exit_reason"] == "finished"
    assert summary["global_step"] >= 80000
    steps = [row["global_step"] for row in rows]
    assert steps == sorted(steps)  # nothing is begun again
    last = rows[-1]
    for trainer in range(2):
        assert last[f"trainer/{trainer}/updates"] > before[f"trainer/{trainer}/updates"]
    counted = last["trainer/0/steps"] + last["trainer/1/steps"]
    assert counted >= last["global_step"] - 64  # the warm-up is no trainer's
    assert last["staleness"] > 0
    assert still_running(processes) == []


def test_torchruns_trainers_cannot_be_hogwild():
    done = run_command("-m", "torch.distributed.run", "--nproc_per_node", "2", "train.py", *FLAGS,
                       "--trainer_mode", "hogwild")  # fmt: skip
    assert done.returncode != 0
    assert "give --trainers instead of torchrun" in done.stderr


def test_a_rank_without_a_launcher_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run_command("train.py", *FLAGS)
    assert done.returncode == 2
    assert done.stderr.startswith("train.py: RANK and WORLD_SIZE are set")
    assert done.stderr.count("\n") == 1


def test_torchruns_trainers_answer_a_dry_run_once():
    done = run_command("-m", "torch.distributed.run", "--nproc_per_node", "2", "train.py", *FLAGS,
                       "--dry_run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "another trainer" not in done.stderr
    assert done.stdout.count("train_total_steps") == 1
