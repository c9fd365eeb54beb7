"""Whatever becomes of the process that evaluates, training goes on, and the next one is made."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from evaluation.process import Evaluation
from evaluation.score import Scores
from tests.conftest import wait_until
from tests.evaluation.fragile_env import FOLDER
from tests.training.runs import SMALL, running
from training.summary import weights_digest, write_summary

pytestmark = pytest.mark.slow  # a process takes two seconds to start

FLAGS = (
    *SMALL, "--env", "tests.evaluation.fragile_env:Fragile", "--train_total_steps", "832",
    "--test_every_steps", "200", "--test_episodes", "1",
)  # fmt: skip
# the updates after which an evaluation is due, beside the last: an update has 58 or 59 valid steps
FIRST, FAULT, NEXT = 4, 7, 11
SAID = {
    "kill": r"the evaluation process is lost: process \d+ was killed",
    "raise": r"the evaluation at 4\d\d steps failed: ",
    "hang": r"the evaluation at 4\d\d steps made no step for 1 s: its process was ended",
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights that a run without a fault ends with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        return train(folder, None)[0]


def train(folder: Path, fault: str | None) -> tuple[str, int | None, int | None]:
    """Train with a fault in the second evaluation; the weights, and who evaluated before and after."""
    (folder / "fast").touch()
    before = after = None
    with running(*FLAGS, "--run_dir", str(folder / "run")) as run:
        evaluator = run.evaluations._evaluator
        patience = evaluator.patience_s
        for rollout in run.collect():
            metrics = run.agent.learn(rollout, run.progress())
            if run.record(rollout, metrics, {}) is not None:
                break
            update = run.agent.update
            if fault is None:
                continue
            if update == FIRST:
                wait_until(run.evaluations.finished, 60, "the first evaluation")
                before = evaluator.pid
                (folder / fault).touch()
                evaluator.patience_s = 1.0 if fault == "hang" else patience
            elif update == FAULT and fault == "kill":
                wait_until(run.evaluations.finished, 60, "another process's evaluation")
            elif update == FAULT:
                wait_until(
                    lambda: run.evaluations.finished() or run.evaluations.lost, 60, "the loss"
                )
                (folder / fault).unlink()
                evaluator.patience_s = patience
            elif update == NEXT:
                wait_until(run.evaluations.finished, 60, "a new process's evaluation")
                after = evaluator.pid
        return weights_digest(run.agent), before, after


@pytest.mark.parametrize("fault", SAID)
def test_a_fault_of_the_evaluator_leaves_training_as_it_was(
    fault, undisturbed, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    digest, before, after = train(tmp_path, fault)
    assert digest == undisturbed
    assert None not in (before, after)
    assert before != after
    assert re.search(SAID[fault], capsys.readouterr().out)
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["global_step"] == lines[-1]["eval/global_step"]
    assert lines[-1]["lost_evaluations"] == (0 if fault == "kill" else 1)


def test_that_the_last_evaluation_is_missing_is_said(undisturbed, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    (tmp_path / "raise").touch()
    assert train(tmp_path, None)[0] == undisturbed
    assert re.search(r"the evaluation at 8\d\d steps failed", capsys.readouterr().out)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert "eval/return_mean" not in last
    assert last["lost_evaluations"] >= 1


def test_a_mean_that_is_no_number_is_never_the_best(tmp_path, capsys):
    with running(*FLAGS, "--run_dir", str(tmp_path)) as run:
        weights = run.agent.weights()
        for mean, best in ((np.nan, None), (1.0, 1.0), (np.inf, 1.0), (2.0, 2.0), (np.nan, 2.0)):
            run.evaluations._note(Evaluation(Scores([mean], [1], [{}]), weights, 10))
            assert run.evaluations.best == best
    write_summary(tmp_path, {"eval_return_mean": np.nan, "eval_return_best": 2.0})
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (summary["eval_return_mean"], summary["eval_return_best"]) == (None, 2)
