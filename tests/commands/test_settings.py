"""Settings as a user types them: what is answered, and how shortly."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT, run_command


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("train.py", "--help"),
        ("train.py", "--dry_run"),
        ("evaluate.py", "--help"),
        ("plot.py", "--help"),
    ],
)
def test_what_is_cut_off_prints_no_traceback(command, flag):
    """As by `--help | head`: the pipe is closed before anything is read."""
    process = subprocess.Popen(
        [sys.executable, command, flag],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["--gama", "0.9"], "train.py: there is no setting --gama: did you mean --gamma?"),
        (["--seed", "abc"], "train.py: seed is abc, but must be a whole number of at least 0"),
        (["--config", "mine.yaml"], "train.py: mine.yaml: activation is 'gelu', but must be tanh"),
    ],
)
def test_a_mistake_is_answered_in_one_line(flags, answer, tmp_path):
    (tmp_path / "mine.yaml").write_text("env: CartPole-v1\nactivation: gelu\n")
    done = run_command(str(ROOT / "train.py"), *flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(answer)
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_setting_without_effect_is_said_once_in_a_run(tmp_path):
    done = run_command(
        "train.py", "--env", "CartPole-v1", "--train_total_steps", "512", "--samplers", "0",
        "--compile", "off", "--test_episodes", "1", "--mix_weight", "0.2",
        "--run_dir", str(tmp_path / "run"),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("mix_weight 0.2 has no effect: it needs joint_loss mix_ratio") == 1
    assert done.stdout.count("has no effect") == 1
