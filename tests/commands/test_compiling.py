"""`--compile beside`: a run learns while another process compiles its gradient step."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.commands.test_train import children_of, start_training, summary_of
from tests.conftest import still_running, wait_until

pytestmark = pytest.mark.slow  # these start runs

# an environment that waits leaves the cores to the compiler
BESIDE = ("--env", "tests.toy_envs:Slow", "--env_num", "1", "--batch_size", "64", "--minibatch_size", "32",
          "--compile", "beside", "--samplers", "0", "--train_total_steps", "1e8")  # fmt: skip


def lines_until(run: subprocess.Popen, *texts: str) -> list[str]:
    """What a run prints until one text after the other has come; then SIGTERM ends it."""
    assert run.stdout is not None
    lines = []
    for text in texts:
        for line in run.stdout:
            lines.append(line)
            if text in line:
                break
    run.terminate()
    rest, _ = run.communicate(timeout=30)
    assert run.returncode == 0, "".join(lines) + rest
    return lines


def test_a_run_learns_eagerly_until_its_step_is_compiled_and_the_next_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_OF_THIS_TEST", str(tmp_path))  # such variables tell kept steps apart
    first = start_training(tmp_path / "first", *BESIDE)
    *_, takes_over, _ = lines_until(first, "another process compiles", "takes over", "steps/s")
    assert int(takes_over.split()[-1]) > 0  # the number of the update
    for compiles in ("beside", "on"):
        again = start_training(tmp_path / compiles, *BESIDE, "--compile", compiles)
        assert not [line for line in lines_until(again, "steps/s") if "gradient step" in line]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_compiler_is_left_behind(number, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    run = start_training(tmp_path / "run", *BESIDE)

    def compilers() -> list[psutil.Process]:
        found = []
        for process in children_of(run):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                if process.name() == "cc1plus":
                    found.append(process)
        return found

    wait_until(compilers, 120, "the compiler")
    children = children_of(run)
    run.send_signal(number)
    output, _ = run.communicate(timeout=30)
    if number == signal.SIGINT:
        assert run.returncode == 0, output
        assert summary_of(tmp_path / "run")["exit_reason"] == "sigint"
        assert still_running(children) == []
    wait_until(lambda: not still_running(children), 20, "the end of all processes")


def test_a_run_goes_on_where_its_step_cannot_be_compiled(tmp_path, monkeypatch):
    compiler = Path(tmp_path, "g++")
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    run = start_training(tmp_path / "run", *BESIDE)
    *_, failed, _ = lines_until(run, "not compiled", "steps/s")
    assert "what was not compiled goes on eagerly" in failed
    assert "`--compile on` shows more" in failed
