"""Evaluations in a process of their own, whatever becomes of the process."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evaluation.process import Evaluation, Evaluator
from model import build_model
from rollout import Weights
from settings.config import Config
from tests.conftest import run_command, wait_until
from tests.evaluation.fragile_env import FOLDER

pytestmark = pytest.mark.slow  # a process takes two seconds to start

FRAGILE = Config(env="tests.evaluation.fragile_env:Fragile", test_episodes=1)
ARRAYS = build_model(FRAGILE).get_weights()
LOST = r"the evaluation process is lost: process \d+ was killed by signal 9; another makes the"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


@pytest.fixture
def told() -> list[str]:
    """What the evaluator has said to the user."""
    return []


Make = Callable[..., Evaluator]


@pytest.fixture
def make(told: list[str], folder: Path) -> Iterator[Make]:
    evaluators: list[Evaluator] = []

    def make_one(config: Config = FRAGILE) -> Evaluator:
        evaluators.append(Evaluator(config, weights(0), told.append))
        return evaluators[-1]

    yield make_one
    for evaluator in evaluators:
        evaluator.close()


def weights(version: int) -> Weights:
    return Weights(version, ARRAYS)


def next_evaluation(evaluator: Evaluator) -> Evaluation:
    finished: list[Evaluation] = []

    def poll() -> bool:
        evaluation = evaluator.poll()
        if evaluation is not None:
            finished.append(evaluation)
        return bool(finished)

    wait_until(poll, 60, "an evaluation")
    return finished[0]


def kill(evaluator: Evaluator) -> None:
    assert evaluator.pid is not None
    os.kill(evaluator.pid, signal.SIGKILL)


def test_the_evaluator_never_waits_and_skips_to_the_newest_weights(make):
    evaluator = make(Config(env="tests.toy_envs:Slow", test_episodes=1))
    for step in range(5):
        evaluator.submit(weights(step), step)
    assert evaluator.poll() is None  # the first still runs
    first, second = next_evaluation(evaluator), next_evaluation(evaluator)
    assert (first.step, second.step) == (0, 4)
    assert first.scores.returns == [10.0]
    evaluator.submit(weights(5), 5)
    evaluator.submit(weights(6), 6)
    assert [evaluation.step for evaluation in evaluator.last(weights(7), 7)][-1] == 7
    assert evaluator.poll() is None


def test_a_result_that_came_before_the_last_evaluation_is_kept(make, folder):
    evaluator = make()
    evaluator.submit(weights(1), 1)
    wait_until((folder / "played").exists, 60, "the end of the episode")
    assert [evaluation.step for evaluation in evaluator.last(weights(2), 2)] == [1, 2]


def test_killed_while_idle(make, told):
    evaluator = make()
    evaluator.submit(weights(1), 1)
    assert next_evaluation(evaluator).step == 1
    kill(evaluator)
    assert evaluator.poll() is None
    evaluator.submit(weights(2), 2)
    assert next_evaluation(evaluator).step == 2
    kill(evaluator)
    assert [evaluation.step for evaluation in evaluator.last(weights(3), 3)] == [3]
    assert [bool(re.match(LOST, sentence)) for sentence in told] == [True, True]


def test_killed_while_it_evaluates(make, told, folder):
    (folder / "kill").touch()
    evaluator = make()
    evaluator.submit(weights(1), 1)
    assert next_evaluation(evaluator).step == 1
    assert len(told) == 1
    assert re.fullmatch(f"{LOST} evaluation at 1 steps", told[0])


def test_killed_while_newer_weights_wait(make, told, folder):
    (folder / "kill").touch()
    evaluator = make()
    evaluator.submit(weights(1), 1)
    evaluator.submit(weights(2), 2)
    assert next_evaluation(evaluator).step == 2
    assert len(told) == 1
    assert re.fullmatch(r"the evaluation at 1 steps is lost: .* was killed by signal 9", told[0])


def test_killed_in_the_last_evaluation(make, told, folder):
    (folder / "kill").touch()
    evaluator = make()
    assert [evaluation.step for evaluation in evaluator.last(weights(1), 1)] == [1]
    assert [bool(re.match(LOST, sentence)) for sentence in told] == [True]


def test_killed_twice_the_last_evaluation_is_missed_and_that_is_said(make, told, folder):
    (folder / "kill1").touch()
    (folder / "kill2").touch()
    evaluator = make()
    assert evaluator.last(weights(1), 1) == []
    assert [sentence.split(":")[0] for sentence in told] == [
        "the evaluation process is lost",
        "the evaluation at 1 steps is lost",
    ]


def test_an_environment_that_raises_costs_its_evaluation_alone(make, told, folder):
    (folder / "raise").touch()
    evaluator = make()
    first = evaluator.pid
    assert evaluator.last(weights(1), 1) == []
    assert evaluator.last(weights(2), 2) == []
    (folder / "raise").unlink()
    assert [evaluation.step for evaluation in evaluator.last(weights(3), 3)] == [3]
    assert evaluator.pid != first
    assert len(told) == 2
    assert re.match(r"(?s)the evaluation at 1 steps failed: .*RuntimeError: it is fragile", told[0])
    assert told[1] == "the evaluation at 2 steps failed with the same error"
    assert evaluator.lost == 2


def test_an_environment_that_hangs_is_given_up(make, told, folder):
    evaluator = make()
    assert len(evaluator.last(weights(1), 1)) == 1
    evaluator.patience_s = 1.0
    (folder / "hang").touch()
    assert evaluator.last(weights(2), 2) == []
    assert told == ["the evaluation at 2 steps made no step for 1 s: its process was ended"]
    evaluator.submit(weights(3), 3)
    wait_until(lambda: evaluator.poll() is None and len(told) == 2, 60, "the second to be given up")


def test_a_process_that_cannot_be_started_costs_its_evaluation_alone(make, told):
    evaluator = make()
    kill(evaluator)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # no more files, no connection
        assert evaluator.last(weights(1), 1) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert told[-1].startswith("the evaluation at 1 steps cannot be made: ")
    assert [evaluation.step for evaluation in evaluator.last(weights(2), 2)] == [2]


def test_a_run_outlives_its_evaluator_and_evaluates_the_weights_that_it_ends_with(folder):
    """An evaluation of older weights reaches the score, in which training steps are worth less."""
    (folder / "kill").touch()
    run_dir = folder / "run"
    done = run_command(
        "train.py", "--env", FRAGILE.env, "--env_num", "2", "--samplers", "1", "--batch_size", "64",
        "--minibatch_size", "64", "--update_epochs", "1", "--test_every_steps", "100", "--test_episodes", "1",
        "--solve_score", "15", "--compile", "off", "--run_dir", str(run_dir),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lost = [line for line in done.stdout.splitlines() if re.match("the evaluation.* is lost", line)]
    assert len(lost) == 1
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["exit_reason"], summary["eval_return_mean"]) == ("solved", 20.0)
    last_line = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last_line["eval/global_step"] == last_line["global_step"] == summary["global_step"]
