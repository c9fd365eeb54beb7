"""Runs in a sample store as users start them: trainers and samplers that come, go and are killed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.store.embedded import EmbeddedServer
from common import checkpoint
from settings.store_url import PASSWORD
from tests.commands.test_train import (
    children_of,
    metrics_of,
    start_training,
    summary_of,
)
from tests.conftest import ROOT, run_command, still_running, wait_until

pytestmark = pytest.mark.slow

FLAGS = ("--env", "CartPole-v1", "--env_num", "4", "--batch_size", "64", "--minibatch_size", "32",
         "--update_epochs", "2", "--compile", "off", "--train_total_steps", "20000",
         "--test_every_steps", "1000000", "--test_episodes", "1",
         "--normalize_observation")  # fmt: skip


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    with contextlib.closing(EmbeddedServer()) as server:
        yield server


def has_learned(run_dir: Path, updates: int = 20) -> bool:
    return (run_dir / "metrics.jsonl").exists() and len(metrics_of(run_dir)) > updates


def start(*command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def updates_by_trainer(row: dict) -> list[float]:
    return [value for name, value in row.items() if re.fullmatch("trainer/.*/updates", name)]


def both_have_learned(run_dir: Path) -> bool:
    updates = updates_by_trainer(metrics_of(run_dir)[-1]) if has_learned(run_dir) else []
    return len(updates) == 2 and min(updates) > 5


def test_a_killed_trainer_of_a_store_is_replaced_and_nothing_is_left(tmp_path):
    run_dir = tmp_path / "run"
    launcher = start_training(
        run_dir, *FLAGS, "--store", "embedded", "--trainers", "2", "--samplers", "2",
        "--compile", "on", "--train_total_steps", "60000", "--env", "tests.toy_envs:ConstantReward",
    )  # fmt: skip
    wait_until(lambda: has_learned(run_dir), 120, "some updates")
    wait_until(lambda: both_have_learned(run_dir), 60, "updates of both")
    processes = children_of(launcher)
    joined = next(p for p in psutil.Process(launcher.pid).children() if "--join" in p.cmdline())
    joined.send_signal(signal.SIGKILL)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, output
    assert "trainer 1 was killed by signal 9: another takes its place" in output
    summary, rows = summary_of(run_dir), metrics_of(run_dir)
    assert (summary["exit_reason"], summary["pool"]) == ("finished", "store")
    assert summary["global_step"] >= 60000
    assert [row["global_step"] for row in rows] == sorted(row["global_step"] for row in rows)
    last = rows[-1]
    # each version is one trainer's; what others publish before a row is counted comes before the next
    for row, after in itertools.pairwise(rows):
        assert row["update"] <= sum(updates_by_trainer(row)) < after["update"]
    assert sum(updates_by_trainer(last)) >= last["update"]
    assert last["store/appended"] >= last["store/learned"] + last["store/dropped"]
    assert still_running(processes) == []
    config = (run_dir / "config.yaml").read_text()
    assert "store: embedded" in config
    assert "DPPO_REDIS" not in config


def test_trainers_and_samplers_come_and_go_and_the_first_one_goes_on_where_the_run_is(
    server, tmp_path
):
    run_dir, store, password = tmp_path / "run", ("--store", server.url), os.environ[PASSWORD]
    typed = server.url.replace("redis://", f"redis://:{password}@")
    first = start_training(run_dir, *FLAGS, "--store", typed, "--samplers", "0",
                           "--train_total_steps", "1e6")  # fmt: skip
    run = None
    for line in first.stdout or ():
        if found := re.search(r"run (\S+) in the store at", line):
            run = found[1]
            break
    assert run is not None
    samplers = start("-m", "cluster.store", "sample", *store, "--samplers", "2")
    joined = start("train.py", *store, "--join", run)
    wait_until(lambda: both_have_learned(run_dir), 90, "updates of both")
    follower = start("evaluate.py", *store, "--follow", "--episodes", "1")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    before = metrics_of(run_dir)[-1]

    again = start(
        "train.py", "--resume", str(run_dir), "--samplers", "1"
    )  # they are not decided anew
    size = len(metrics_of(run_dir))
    wait_until(lambda: len(metrics_of(run_dir)) > size + 5, 90, "updates of the first one again")
    assert metrics_of(run_dir)[size]["global_step"] > before["global_step"]  # of the joined one
    followed = run_dir / "followed.jsonl"
    wait_until(followed.exists, 60, "scores of a follower")
    again.terminate()
    processes = (again, joined, samplers, follower)
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0], outputs
    line = json.loads(followed.read_text().splitlines()[0])
    assert f"{line['global_step']:,} steps: return mean" in outputs[3]
    assert f"the run {run} has ended" in outputs[1]
    assert summary_of(run_dir)["exit_reason"] == "sigterm"
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert not any(password.encode() in path.read_bytes() for path in files)


def test_a_store_that_is_lost_ends_the_run_with_a_checkpoint(server, tmp_path):
    run_dir = tmp_path / "run"
    run = start_training(run_dir, *FLAGS, "--store", server.url, "--samplers", "1", "--store_timeout",
                         "2", "--train_total_steps", "1e6")  # fmt: skip
    wait_until(lambda: has_learned(run_dir), 90, "some updates")
    os.kill(server.pid, signal.SIGKILL)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 75, output
    assert "has been away for 2 s" in output
    assert summary_of(run_dir)["exit_reason"] == "error"
    saved = [checkpoint.load(path).step for path in (run_dir / "checkpoints").glob("update-*")]
    assert max(saved) == metrics_of(run_dir)[-1]["global_step"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--store", "redis://127.0.0.1:1/0", "--join", "run", "--env", "CartPole-v1"),
         "--env CartPole-v1 is what the run run decides"),
        (("--store", "embedded", "--join", "run"), "store is embedded, but the run run"),
        (("--store", "embedded", "--policy_lag", "1"), "give --policy_lag 2 or more"),
        (("--store", "embedded", "--trainers", "2", "--trainer_mode", "hogwild"),
         "leave one of them out"),
    ],
)  # fmt: skip
def test_what_a_store_cannot_do_is_one_clear_error(flags, complaint):
    done = run_command("train.py", *flags)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_that_is_not_there_is_waited_for_and_then_named(server):
    done = run_command("train.py", "--store", server.url, "--join", "none", "--store_timeout", "1")
    assert done.returncode == 2
    assert "has no run none: give --join the id that the run has printed" in done.stderr
