"""A run that is stopped: by SIGTERM in whatever it does, and by SIGSTOP for a while."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from common.checkpoint import load_newest
from tests.commands.test_train import (
    children_of,
    metrics_of,
    start_training,
    summary_of,
)
from tests.conftest import ROOT, still_running, wait_until
from tests.screen import Terminal

pytestmark = pytest.mark.slow  # these start runs

TOO_LONG = ("--test_episodes", "100000", "--env_num", "2", "--batch_size", "64",
            "--minibatch_size", "64", "--train_total_steps", "64")  # fmt: skip
# flags, and how it shows on the run's folder that it is in that phase
PHASES = {
    "connecting": (
        ("--env", "CartPole-v1", "--samplers", "2"), lambda run_dir: (run_dir / "metrics.jsonl").exists(),
    ),
    "evaluating": (
        ("--env", "tests.toy_envs:Slow", "--samplers", "1", "--compile", "off", *TOO_LONG),
        lambda run_dir: list(run_dir.glob("checkpoints/update-*0")),
    ),
    "saving": (
        ("--env", "CartPole-v1", "--hidden_sizes", "1500", "1500", "--checkpoint_minutes", "1e-6",
         "--compile", "off", "--update_epochs", "1", "--samplers", "1"),
        lambda run_dir: list(run_dir.glob("checkpoints/update-*[1-9]"))
        and list(run_dir.glob("checkpoints/.update-*.tmp")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_ends_a_run_in_time_whatever_it_does(phase, tmp_path):
    """Others are in `test_train`: in the midst of a fragment, and of a long update."""
    run_dir = tmp_path / "run"
    flags, is_there = PHASES[phase]
    process = start_training(run_dir, *flags)
    wait_until(lambda: is_there(run_dir), 90, phase)
    if phase == "evaluating":
        time.sleep(4)  # its one update is soon done
    children = children_of(process)
    start = time.monotonic()
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - start <= 25
    assert process.returncode in ((0, 130) if phase == "connecting" else (0,)), output
    assert still_running(children) == []
    if process.returncode == 0:
        assert summary_of(run_dir)["exit_reason"] == "sigterm"
        assert load_newest(run_dir / "checkpoints")[1] == []


def test_a_run_that_is_stopped_for_a_while_goes_on_with_its_samplers(tmp_path):
    """First the learner alone, while its samplers answer; then all of its processes."""
    run_dir: Path = tmp_path / "run"
    process = start_training(
        run_dir, "--env", "CartPole-v1", "--compile", "off", "--samplers", "2",
        "--sampler_timeout", "2", "--train_total_steps", "1e8",
    )  # fmt: skip
    try:
        for everything in (False, True):
            lines = len(metrics_of(run_dir)) if (run_dir / "metrics.jsonl").exists() else 0
            wait_until(
                lambda lines=lines: (run_dir / "metrics.jsonl").exists()
                and len(metrics_of(run_dir)) > lines + 20,
                90, "updates",
            )  # fmt: skip
            stopped = [psutil.Process(process.pid), *(children_of(process) if everything else [])]
            for one in stopped:
                one.suspend()
            time.sleep(6)
            for one in stopped:
                one.resume()
        lines = len(metrics_of(run_dir))
        wait_until(lambda: len(metrics_of(run_dir)) > lines + 20, 30, "the run to go on")
    finally:
        for one in (psutil.Process(process.pid), *children_of(process)):
            one.resume()
        process.terminate()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    last = metrics_of(run_dir)[-1]
    assert (last["restarts"], last["rows_lost"], last["samplers_alive"]) == (0, 0, 2), output


def test_ctrl_c_leaves_the_terminal_in_order(tmp_path):
    run_dir = tmp_path / "run"
    terminal = Terminal(
        [sys.executable, "train.py", "--env", "CartPole-v1", "--compile", "off", "--samplers", "1",
         "--train_total_steps", "1e8", "--run_dir", str(run_dir)],
        ROOT, echo=True,
    )  # fmt: skip
    terminal.wait_for(lambda text: any("loss" in line and "KL" in line for line in text))
    terminal.type(b"\x03")
    assert terminal.end() == 0
    assert summary_of(run_dir)["exit_reason"] == "sigint"
    (first,) = [n for n, line in enumerate(terminal.text) if "CartPole-v1, seed 1" in line]
    assert len(terminal.text) - first == 6  # the panel stands, and nothing below it
    assert any(line.startswith("sigint: ") for line in terminal.text[:first])
    assert not terminal.screen.cursor.hidden
    assert terminal.screen.cursor.x == 0
    assert terminal.after == terminal.before
