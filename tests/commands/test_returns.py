"""One protocol for results: as a user types it, interrupted and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from returns import Arguments, begin_returns, markdown, summarise
from runs import Run, complete, typed

from common.errors import UserError
from evaluation.published import FIGURES
from tests.conftest import ROOT, assert_runs_are_kept, run_command, wait_until


@pytest.mark.slow
def test_results_of_two_seeds_after_an_interruption(tmp_path):
    out = tmp_path / "returns"
    command = ["benchmarks/returns.py", "--envs", "CartPole-v1", "--seeds", "1", "2", "--steps", "3000",
               "--out", str(out), "--", "--samplers", "0", "--compile", "off"]  # fmt: skip
    first = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    metrics = out / "CartPole-v1__s1" / "metrics.jsonl"
    wait_until(
        lambda: metrics.exists() and metrics.read_text().count("\n") > 1, 120, "the first run"
    )
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 143
    done = run_command(*command)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.with_name("returns.json").read_text())
    assert found["flags"] == ["--samplers", "0", "--compile", "off"]
    assert [(run["env"], run["seed"]) for run in found["runs"]] == [
        ("CartPole-v1", 1),
        ("CartPole-v1", 2),
    ]
    assert all(run["global_step"] >= 3000 for run in found["runs"])
    final = found["environments"]["CartPole-v1"]["final"]
    assert len(final["seeds"]) == 2
    assert (
        min(final["seeds"]) <= final["low"] <= final["iqm"] <= final["high"] <= max(final["seeds"])
    )
    assert out.with_name("returns.md").read_text() in done.stdout
    assert Image.open(tmp_path / "returns_classic.png").width > 0

    assert_runs_are_kept(command, out, "*/*.json*")


def test_the_password_of_a_store_is_in_no_results(monkeypatch):
    monkeypatch.setenv("DPPO_REDIS_PASSWORD", "")
    typed_words = ["--envs", "CartPole-v1", "--", "--store", "redis://:secret@host:6379/0"]
    monkeypatch.setattr(sys, "argv", ["returns.py", *typed_words])
    assert typed(Arguments)[1] == ["--store", "redis://host:6379/0"]
    assert os.environ["DPPO_REDIS_PASSWORD"] == "secret"  # for the runs, which inherit it


def test_a_mistake_is_found_before_the_first_run(tmp_path):
    (tmp_path / "file").touch()
    for envs, out, complaint in (
        (("CartPole-v1", "CartPol"), "returns", "did you mean CartPole-v1"),
        (("CartPole-v1", "CartPole-v1"), "returns", "each can be given once"),
        (("CartPole-v1",), "file/returns", "cannot be made: Not a directory"),
    ):
        with pytest.raises(UserError, match=complaint):
            begin_returns(Arguments(envs, out=tmp_path / out), [])
    assert not (tmp_path / "returns").exists()


def test_a_familys_shares_of_the_published_figures_are_over_all_its_runs():
    figures = FIGURES[1_000_000]
    rows = [
        {
            "env": env,
            "seed": seed,
            "training": share * figures[env],
            "final": figures[env],
            "best": 1.0,
        }
        for env, shares in {
            "Hopper-v4": (0.5, 0.6, 0.7, 0.8),
            "Ant-v4": (1.0, 1.1, 1.2, 1.3),
        }.items()
        for seed, share in enumerate(shares)
    ]
    found = summarise(rows, figures)
    shares = found["shares_of_published"]["mujoco"]["training"]
    assert shares["iqm"] == pytest.approx(np.mean([0.7, 0.8, 1.0, 1.1]))
    assert 0.5 < shares["low"] < shares["iqm"] < shares["high"] < 1.3
    assert found["shares_of_published"]["mujoco"]["final"]["iqm"] == pytest.approx(1)
    hopper = found["environments"]["Hopper-v4"]["training"]
    assert hopper["iqm"] == pytest.approx(0.65 * figures["Hopper-v4"])
    assert "| Hopper-v4 | last 100 training episodes | 1,742 |" in markdown(found, figures, "")


@pytest.mark.slow
def test_a_run_that_cannot_be_scored_is_named_and_the_others_go_on(tmp_path):
    flags = ("--samplers", "0", "--compile", "off", "--test_episodes", "1", "--track", "none")
    short = ("--batch_size", "32", "--minibatch_size", "32", "--env_num", "1")
    runs = [  # 150 steps end no episode of Pendulum, which has 200
        Run("Pendulum-v1", 1, tmp_path / "short", (*flags, *short, "--train_total_steps", "150")),
        Run("CartPole-v1", 1, tmp_path / "long", (*flags, *short, "--train_total_steps", "300")),
    ]
    # killed before its first checkpoint: all that was written is its settings
    run_command(
        "train.py", "--env", "CartPole-v1", *runs[1].flags, "--run_dir", str(runs[1].folder)
    )
    for left in runs[1].folder.iterdir():
        if left.name != "config.yaml":
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    (failed,) = complete(runs, 1)
    assert failed == f"no episode has ended in {runs[0].folder}: give more --steps"
    assert runs[1].row()["training"] > 0
    assert complete(runs, 1) == [failed]  # it is not trained again
