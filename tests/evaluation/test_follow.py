from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common import checkpoint
from common.files import CannotWrite
from evaluation import curves
from evaluation.follow import Checkpoints, follow, line_of, record
from evaluation.process import Evaluation
from evaluation.score import Scores
from model import build_model
from rollout import Weights
from settings.config import Config
from tests.conftest import ROOT, run_command, wait_until
from tests.evaluation.fragile_env import FOLDER
from tests.evaluation.untrained import untrained
from tests.training.runs import SMALL, UPDATES_PER_CHECKPOINT, weights_after

TOY = Config(env="tests.toy_envs:ConstantReward")


class Run:
    """The folder of a run, whose checkpoints and end are written by a test."""

    def __init__(self, folder: Path):
        self.folder, self.said = untrained(TOY.env, folder), []
        self.source = Checkpoints(folder, build_model(TOY), self.said.append)
        self._arrays = checkpoint.load(folder / "checkpoints" / "last").arrays

    def save(self, update: int) -> Path:
        state = {"update": update, "global_step": 10 * update}
        checkpoint.save(self.folder / "checkpoints", update, self._arrays, state)
        return self.folder / "checkpoints" / f"update-{update:08d}"

    def newer(self) -> tuple[int, int] | None:
        """The update and the steps of the version that the source gives."""
        version = self.source.newer()
        return version and (version[0].version, version[1])

    def end(self) -> None:
        (self.folder / "summary.json").write_text("{}")

    def follow(self) -> Iterator[Evaluation]:
        return follow(self.source, build_model(TOY), TOY, episodes=2, seed=0, greedy=True)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_each_newest_version_is_given_once(run):
    assert run.newer() == (1, 0)
    assert run.newer() is None
    run.save(2)
    assert run.newer() == (2, 20)
    run.save(3)
    run.save(4)
    assert run.newer() == (4, 40)
    assert run.newer() is None
    run.save(4)  # as a run does that films its policy at its end
    assert run.newer() is None


def test_a_damaged_newest_checkpoint_is_named_once_and_waited_over(run):
    run.newer()
    damaged = run.save(2)
    manifest = (damaged / "manifest.json").read_bytes()
    (damaged / "manifest.json").write_text("{}")
    assert run.newer() is None
    assert run.newer() is None
    assert len(run.said) == 1
    assert f"checkpoint {damaged} is corrupt" in run.said[0]
    assert "waiting for the next one" in run.said[0]
    (damaged / "manifest.json").write_bytes(manifest)  # it was still being copied
    assert run.newer() == (2, 20)
    (run.save(3) / "state.json").unlink()
    assert run.newer() is None
    assert len(run.said) == 2
    run.save(4)
    assert run.newer() == (4, 40)


def test_a_run_that_ended_with_a_damaged_checkpoint_is_followed_no_longer(run):
    (run.save(2) / "state.json").unlink()
    run.end()
    assert list(run.follow()) == []
    assert len(run.said) == 1


def test_a_newest_checkpoint_that_cannot_be_read_is_named_once_and_looked_at_again(run):
    assert run.newer() == (1, 0)
    place = run.save(2) / "state.json"
    content = place.read_bytes()
    place.unlink()
    place.symlink_to("state.json")
    run.end()
    assert run.newer() is run.newer() is None
    assert len(run.said) == 1
    assert "cannot be read" in run.said[0]
    assert not run.source.has_ended()
    place.unlink()
    place.write_bytes(content)
    assert run.newer() == (2, 20)
    assert run.source.has_ended()


def test_a_checkpoint_of_another_network_is_named(run):
    run.source = Checkpoints(run.folder, build_model(Config(env="CartPole-v1")), run.said.append)
    assert run.newer() is None
    assert "does not fit the network" in run.said[0]


def test_a_run_is_followed_from_before_its_first_checkpoint_to_its_end(run):
    first = run.folder / "checkpoints"
    hidden = first.rename(run.folder / "later")
    following = run.follow()
    threading.Timer(0.1, lambda: hidden.rename(first)).start()
    evaluation = next(following)
    assert (evaluation.weights.version, evaluation.step) == (1, 0)
    assert evaluation.scores.returns == [10.0, 10.0]
    run.save(2)
    run.end()  # the last version appeared before the end
    assert [evaluation.step for evaluation in following] == [20]


def test_scores_are_lines_that_plot_draws_even_beside_torn_ones(run):
    path = run.folder / "followed.jsonl"
    for update in (1, 2):
        scores = Scores([1.0, 3.0 * update], [4, 6], [{"win": 1.0}, {"win": 0.0}])
        evaluation = Evaluation(scores, Weights(update, {}), 10 * update)
        record(run.folder, line_of(evaluation, seed=5, greedy=False))
        with open(path, "a") as file:
            file.write('{"update": 7, "glo')
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {
        "update": 1, "global_step": 10, "seed": 5, "stochastic": True, "followed/episodes": 2,
        "followed/return_mean": 2.0, "followed/return_std": 1.0, "followed/length_mean": 5.0,
        "followed/win": 0.5,
    }  # fmt: skip
    curve = curves.read(run.folder, "followed/return_mean")
    np.testing.assert_array_equal(curve.x, [10, 20])
    np.testing.assert_array_equal(curve.value, [2.0, 3.5])


def test_scores_that_cannot_be_written_are_said(run):
    (run.folder / "followed.jsonl").mkdir()
    evaluation = Evaluation(Scores([1.0], [1], [{}]), Weights(1, {}), 10)
    with pytest.raises(
        CannotWrite, match=r"followed\.jsonl cannot be written: .*scores at 10 steps"
    ):
        record(run.folder, line_of(evaluation, seed=0, greedy=True))


@pytest.mark.slow
def test_a_run_that_trains_is_followed_over_its_resume(tmp_path):
    """A follower that looks after a resume has begun does not take the first part's end for the end."""
    run_dir = tmp_path / "run"
    few = ("--env", "CartPole-v1", *SMALL, "--test_episodes", "1", "--test_max_steps", "50")
    weights_after(UPDATES_PER_CHECKPOINT, *few, "--run_dir", str(run_dir))
    (run_dir / "summary.json").write_text("{}")
    again = [sys.executable, "train.py", "--resume", str(run_dir), "--train_total_steps", "12000"]
    learner = subprocess.Popen(again, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: not (run_dir / "summary.json").exists(), 60, "the resume")
        done = run_command("evaluate.py", str(run_dir), "--follow", "--episodes", "1")
        assert learner.wait(60) == 0
    finally:
        learner.kill()
        learner.wait()
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("12,0")
    rows = [json.loads(line) for line in (run_dir / "followed.jsonl").open()]
    assert len(rows) == len(lines)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert rows[-1]["global_step"] == summary["global_step"]


@pytest.mark.slow
def test_ctrl_c_ends_a_follower_without_a_traceback(tmp_path):
    folder = untrained("tests.evaluation.fragile_env:Fragile", tmp_path)
    process = subprocess.Popen(
        [sys.executable, "evaluate.py", str(folder), "--follow", "--episodes", "1", "--trust"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), FOLDER: str(tmp_path)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("0 steps: return mean 10.00, std 0.00, episodes 1")
    process.send_signal(signal.SIGINT)  # while it waits for the next checkpoint
    printed = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, ("", ""))
