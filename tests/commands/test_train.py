"""The commands, as a user types them."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from common.checkpoint import load, load_newest
from tests.conftest import ROOT, run_command, still_running, wait_until
from training.signals import STOPS

pytestmark = pytest.mark.slow  # these start runs, clusters or processes


def summary_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


def metrics_of(run_dir: Path) -> list[dict]:
    text = (run_dir / "metrics.jsonl").read_text()
    whole, _, _ = text.rpartition("\n")  # a line may be in the making
    return [json.loads(line) for line in whole.splitlines()]


def start_training(run_dir: Path, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "train.py", "--run_dir", str(run_dir), *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def test_a_run_from_end_to_end(tmp_path):
    run_dir = tmp_path / "run"
    done = run_command(
        "train.py", "--env", "CartPole-v1", "--train_total_steps", "50000", "--seed", "0",
        "--run_dir", str(run_dir), "--film",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "curves: visualdl --logdir" in done.stdout
    assert f"film of the best policy: {run_dir}/best.mp4" in done.stdout
    assert (run_dir / "best.mp4").stat().st_size > 1000
    assert b"GIF89a" in next((run_dir / "visualdl").iterdir()).read_bytes()
    assert "Warning" not in done.stdout
    assert " steps/s  return " in done.stdout

    summary, metrics = summary_of(run_dir), metrics_of(run_dir)
    assert summary["exit_reason"] == "finished"
    assert summary["pool"] == "local"
    assert summary["global_step"] >= 50_000
    # the last weights are always evaluated; which others are is up to the machine
    assert summary["eval_return_best"] >= summary["eval_return_mean"] >= 475
    assert [m["update"] for m in metrics] == list(range(1, len(metrics) + 1))
    last = metrics[-1]
    assert last["global_step"] == summary["global_step"]
    assert last["policy_lag_mean"] == 1.0
    assert last["eval/episodes"] == 10
    assert {"sps", "time_s", "episode_return_mean", "episode_length_mean", "episodes",
            "dropped_fragments", "samplers_alive", "restarts", "loss/policy", "loss/value",
            "time/sample_wait", "time/learn", "time/transfer", "learning_rate",
            "explained_variance", "approx_kl", "clip_fraction", "entropy"} <= set(last)  # fmt: skip
    # the clock in metrics is the clock: throughput is not made up
    assert summary["global_step"] / summary["time_s"] <= summary["sps"] * 1.05

    saved = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert saved["config"]["env"] == "CartPole-v1"
    assert saved["config"]["seed"] == 0
    assert saved["versions"]["torch"].startswith("2.")

    scored = run_command("evaluate.py", str(run_dir), "--episodes", "5")
    assert scored.returncode == 0, scored.stderr
    assert "greedy: return mean" in scored.stdout
    assert "episodes 5" in scored.stdout
    assert run_command("evaluate.py", str(run_dir), "--checkpoint", "best", "--stochastic").stdout

    again = run_command("train.py", "--env", "CartPole-v1", "--run_dir", str(run_dir))
    assert again.returncode == 2
    assert "already holds a run" in again.stderr

    (run_dir / "best.mp4").unlink()
    over = run_command("train.py", "--resume", str(run_dir), "--film")
    assert over.returncode == 0, over.stderr
    assert len(metrics_of(run_dir)) == len(metrics), "the run was over"
    assert (run_dir / "best.mp4").stat().st_size > 1000


def test_without_flags_it_trains_pong(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py")], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: list(tmp_path.glob("runs/*/metrics.jsonl")), 60, "a run folder")
        metrics = next(tmp_path.glob("runs/PongNoFrameskip-v4__s1__*/metrics.jsonl"))
        wait_until(metrics.read_text, 120, "an update")
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=30)
    assert re.search(r"samplers, cpu with \d+ threads?\)", output)  # the preset takes all cores
    assert process.returncode == 0, output
    assert summary_of(metrics.parent)["exit_reason"] == "sigterm"


SMALL = {
    "CartPole-v1": ["--train_total_steps", "6000", "--test_episodes", "1"],
    "HalfCheetah-v4": ["--train_total_steps", "6000", "--env_num", "8", "--batch_size", "512",
                       "--update_epochs", "2", "--checkpoint_share", "0.25", "--test_episodes", "1"],
}  # fmt: skip


def children_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that a run has started: samplers and the evaluator."""
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("env", SMALL)
def test_kill_and_resume_gives_what_an_uninterrupted_run_gives(env, tmp_path):
    """Killed, resumed with another number of samplers, ended by SIGTERM, and resumed again."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ["--env", env, *SMALL[env]]
    # in its own process: with the default lag of 1, the pools' equality is tested on the way
    done = run_command("train.py", *flags, "--samplers", "0", "--run_dir", str(whole))
    assert done.returncode == 0, done.stderr

    process = start_training(broken, *flags, "--samplers", "2")
    wait_until(lambda: list(broken.glob("checkpoints/update-*[1-9]")), 90, "a checkpoint")
    children = children_of(process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (broken / "summary.json").exists(), "it was killed too late to test anything"
    assert len(children) >= 3
    wait_until(lambda: not still_running(children), 20, "the end of samplers and evaluator")

    lines = len(metrics_of(broken))
    process = start_training(broken, "--resume", str(broken), "--samplers", "1")
    wait_until(lambda: len(metrics_of(broken)) > lines, 90, "an update after the resume")
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert summary_of(broken)["exit_reason"] == "sigterm", "it was ended too late to test anything"

    resumed = run_command("train.py", "--resume", str(broken))
    assert (resumed.returncode, resumed.stderr) == (0, "")
    for name in ("weights_sha256", "global_step", "train_return_last100"):
        assert summary_of(broken)[name] == summary_of(whole)[name]


def test_the_pool_does_not_change_the_result_at_lag_0(tmp_path):
    digests = set()
    for samplers in ("0", "2"):
        run_dir = tmp_path / samplers
        flags = ["--env", "HalfCheetah-v4", *SMALL["HalfCheetah-v4"], "--policy_lag", "0"]
        done = run_command("train.py", *flags, "--samplers", samplers, "--run_dir", str(run_dir))
        assert done.returncode == 0, done.stderr
        digests.add(summary_of(run_dir)["weights_sha256"])
        # one fragment before the first update, for the normaliser alone, is counted too
        assert metrics_of(run_dir)[0]["global_step"] == 2 * 512
    assert len(digests) == 1


def test_a_corrupt_checkpoint_is_named_and_the_one_before_is_resumed(tmp_path):
    run_dir = tmp_path / "run"
    flags = ["--env", "CartPole-v1", "--train_total_steps", "3000", "--run_dir", str(run_dir)]
    assert run_command("train.py", *flags).returncode == 0
    newest = (run_dir / "checkpoints" / "last").resolve()
    (newest / "arrays.safetensors").write_bytes(b"spoilt")
    done = run_command("train.py", "--resume", str(run_dir))
    assert done.returncode == 0
    assert f"{newest.name} is corrupt" in done.stderr
    assert "using the one before it" in done.stderr


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_saves_and_ends_within_ten_seconds(number, tmp_path):
    """Also while samplers are in the middle of a long fragment."""
    run_dir = tmp_path / "run"
    process = start_training(
        run_dir, "--env", "tests.toy_envs:Slow", "--env_num", "2", "--batch_size", "2048",
        "--minibatch_size", "64", "--samplers", "2",
    )  # fmt: skip
    wait_until(lambda: (run_dir / "metrics.jsonl").exists(), 60, "the run to start")
    # two samplers, the evaluator, and the process that they are forked from
    wait_until(lambda: len(children_of(process)) == 4, 60, "its processes")
    time.sleep(1)
    children = children_of(process)
    start = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert process.returncode == 0, output
    assert summary_of(run_dir)["exit_reason"] == signal.Signals(number).name.lower()
    assert (run_dir / "checkpoints" / "last" / "manifest.json").exists()
    assert still_running(children) == []


def test_a_signal_in_a_long_update_goes_back_to_the_state_before_it(tmp_path):
    """Such as the first update, which compiles."""
    run_dir = tmp_path / "run"
    process = start_training(
        run_dir, "--env", "CartPole-v1", "--update_epochs", "100000", "--samplers", "1",
    )  # fmt: skip
    wait_until(lambda: (run_dir / "metrics.jsonl").exists(), 60, "the run to start")
    time.sleep(4)
    children = children_of(process)
    start = time.monotonic()
    process.terminate()
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert process.returncode == 0, output
    assert summary_of(run_dir)["exit_reason"] == "sigterm"
    assert summary_of(run_dir)["global_step"] == 0
    assert load(run_dir / "checkpoints" / "last").state["update"] == 0
    assert still_running(children) == []


def test_a_run_goes_on_without_room_for_its_files_and_says_so_at_its_end(tmp_path):
    """A bound on the size of files stands for a full disk: the system refuses to write more."""
    run_dir, output = tmp_path / "run", tmp_path / "output"
    with open(output, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "train.py", "--env", "CartPole-v1", "--run_dir", str(run_dir),
             "--samplers", "0", "--hidden_sizes", "256", "256", "--checkpoint_minutes", "1e-6"],
            cwd=ROOT, stdout=file, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    wait_until(lambda: list(run_dir.glob("checkpoints/update-*[1-9]")), 90, "a checkpoint")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (500_000, 500_000))
    wait_until(lambda: "cannot be written" in output.read_text(), 30, "the warning")
    lines = len(metrics_of(run_dir))
    wait_until(lambda: len(metrics_of(run_dir)) > lines + 3, 30, "the run to go on")
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.fullmatch(
        r"train.py: the run's end could not be saved in .* \(the checkpoint: File too large\):"
        r" make room and go on from update-\d+ by --resume .*\n",
        errors,
    )
    assert len(re.findall("cannot be written: File too large", output.read_text())) == 1
    assert summary_of(run_dir)["exit_reason"] == "sigterm"
    saved, complaints = load_newest(run_dir / "checkpoints")
    assert complaints == []
    assert saved.state["update"] >= 1


def test_a_run_goes_on_when_nobody_reads_what_it_says(tmp_path):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "train.py", "--env", "CartPole-v1", "--train_total_steps", "20000",
         "--samplers", "0", "--compile", "off", "--test_episodes", "1", "--run_dir", str(run_dir)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.wait(timeout=60)
    assert summary_of(run_dir)["exit_reason"] == "finished"


NOT_A_NUMBER = (
    "train.py", "--env", "tests.toy_envs:NotANumberReward", "--env_num", "4", "--batch_size", "64",
    "--minibatch_size", "32", "--test_episodes", "1", "--test_max_steps", "9", "--samplers", "2",
    "--compile", "off",
)  # fmt: skip


def test_a_run_goes_on_without_the_parts_that_hold_nan(tmp_path):
    done = run_command(
        *NOT_A_NUMBER, "--train_total_steps", "600", "--run_dir", str(tmp_path / "run")
    )
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"sampler \d .* lost its part of a fragment: reward of environment", done.stdout
    )
    last = metrics_of(tmp_path / "run")[-1]
    assert last["rows_lost"] > 0
    assert (last["restarts"], last["refused_updates"]) == (0, 0)
    assert last["global_step"] >= 600


def test_nan_ends_the_run_with_its_place_and_clean_weights(tmp_path):
    run_dir = tmp_path / "run"
    done = run_command(*NOT_A_NUMBER, "--nan", "stop", "--run_dir", str(run_dir))
    assert done.returncode == 2
    assert re.search(r"reward of environment \d", done.stderr)
    assert "at step" in done.stderr
    assert re.search(r"sampler \d", done.stderr)
    assert "Traceback" not in done.stderr
    assert summary_of(run_dir)["exit_reason"] == "error"
    done = run_command("evaluate.py", str(run_dir), "--episodes", "1")
    assert done.returncode == 0, done.stderr


def test_a_run_ends_when_its_score_or_its_time_is_reached(tmp_path):
    for name, flags, reason in (
        ("solved", ["--solve_score", "20"], "solved"),
        ("time", ["--max_minutes", "0.05"], "max_minutes"),
    ):
        run_dir = tmp_path / name
        done = run_command(
            "train.py", "--env", "CartPole-v1", "--run_dir", str(run_dir), "--samplers", "1", *flags
        )
        assert done.returncode == 0, done.stderr
        summary = summary_of(run_dir)
        assert summary["exit_reason"] == reason
        assert summary["global_step"] < 100_000
        assert summary["eval_return_mean"] is not None
        assert load(run_dir / "checkpoints" / "last").state["global_step"] == summary["global_step"]
