"""Runs that are killed and resumed do what uninterrupted ones do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from common import checkpoint
from evaluation.process import Evaluation
from evaluation.score import Scores
from tests.training.runs import (
    SMALL,
    UPDATES_PER_CHECKPOINT,
    running,
    saved_updates,
    train_until,
    weights_after,
)

CARTPOLE = ("--env", "CartPole-v1", *SMALL)
PENDULUM = ("--env", "Pendulum-v1", *SMALL)
KINDS = {
    "lag 1": CARTPOLE,
    "lag 0": (*CARTPOLE, "--policy_lag", "0"),
    "rnd, popart, noisy layers, kl schedule": (
        *PENDULUM, "--rnd_coefficient", "0.5", "--normalize_value", "--noisy_layers",
        "--learning_rate_schedule", "kl",
    ),
    "carried steps, kl penalty, normalisers": (
        *PENDULUM, "--carried_steps", "4", "--kl_penalty", "adaptive", "--normalize_observation",
        "--reward_transform", "return_std",
    ),
    "lstm": (*CARTPOLE, "--network", "lstm"),
    "transformer": (*CARTPOLE, "--network", "transformer", "--memory_steps", "4"),
    "masks": ("--env", "tests.toy_envs:Saving", *SMALL),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_as_if_it_had_not_been(kind, tmp_path):
    whole = weights_after(6, *KINDS[kind], "--run_dir", str(tmp_path / "whole"))
    broken = tmp_path / "broken"
    weights_after(5, *KINDS[kind], "--run_dir", str(broken))
    assert saved_updates(broken)[-1] == f"update-{UPDATES_PER_CHECKPOINT:08d}"
    with running("--resume", str(broken)) as run:
        assert run.agent.update == UPDATES_PER_CHECKPOINT
        assert train_until(run, 6) == whole


def test_a_killed_warm_up_goes_on_as_if_it_had_not_been(tmp_path):
    flags = (*PENDULUM, "--normalize_observation")
    whole = weights_after(2, *flags, "--run_dir", str(tmp_path / "whole"))
    broken = tmp_path / "broken"
    with running(*flags, "--run_dir", str(broken)) as run:
        run.collect()  # a checkpoint, then the fragment for the normaliser, and no more
        assert run.global_step > 0
    assert saved_updates(broken) == ["update-00000000"]
    assert weights_after(2, "--resume", str(broken)) == whole


def test_a_finished_run_goes_on_with_a_raised_total(tmp_path):
    """With a constant learning rate it is the longer run."""
    flags = (*CARTPOLE, "--learning_rate_schedule", "constant", "--test_episodes", "1",
             "--test_max_steps", "1")  # fmt: skip
    whole = weights_after(8, *flags, "--run_dir", str(tmp_path / "whole"))
    short = tmp_path / "short"
    with running(*flags, "--train_total_steps", "200", "--run_dir", str(short)) as run:
        for rollout in run.collect():
            if run.record(rollout, run.agent.learn(rollout, run.progress()), {}):
                break
        assert run.agent.update < 8
        run.save()
    assert weights_after(8, "--resume", str(short), "--train_total_steps", "1280") == whole
    with running("--resume", str(short)) as run:  # the raised total is remembered
        assert run.config.train_total_steps == 1280


def test_environments_without_a_state_are_reset_where_a_checkpoint_is_exact(tmp_path):
    """Of an environment with a limit of 12 steps: 5 episodes are 60 steps, 4 updates, 6 with saves."""
    flags = ("--env", "tests.toy_envs:Limited", *SMALL)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with running(*flags, "--run_dir", str(whole)) as run:
        assert "cannot be saved" in run.remark
        assert "one checkpoint in 2" in run.remark
        resets = []
        for rollout in run.collect():
            resets.append(bool(rollout.reset.all()))
            run.record(rollout, run.agent.learn(rollout, run.progress()), {})
            if run.agent.update == 8:
                break
        assert [k for k, reset in enumerate(resets) if reset] == [0, 6]
    weights_after(8, *flags, "--run_dir", str(broken))
    with running("--resume", str(broken)) as run:
        assert run.agent.update == 6
        with running(*flags, "--run_dir", str(tmp_path / "again")) as again:
            assert train_until(run, 8) == train_until(again, 8)


@pytest.mark.parametrize("env", ["Pendulum-v1", "tests.toy_envs:Limited"])
def test_episodes_end_however_many_environments_there_are(env, tmp_path):
    """With 64 environments of 8 steps an update, and a checkpoint every update."""
    flags = (
        "--env", env, *SMALL, "--env_num", "64", "--batch_size", "512", "--train_total_steps",
        "25600", "--checkpoint_share", "0.02", "--run_dir", str(tmp_path),
    )  # fmt: skip
    with running(*flags) as run:
        train_until(run, 27)
        assert run.report.episodes >= 64


def test_a_run_can_be_resumed_from_its_start_and_after_so_many_minutes(tmp_path):
    flags = (*CARTPOLE, "--checkpoint_share", "1", "--run_dir", str(tmp_path))
    with running(*flags) as run:
        updates = []
        for rollout in run.collect():
            updates.append(saved_updates(tmp_path)[-1])
            run.record(rollout, run.agent.learn(rollout, run.progress()), {})
            if run.agent.update == 3:
                break
            if run.agent.update == 1:
                run.config.checkpoint_minutes = 1e-9
    assert updates == ["update-00000000", "update-00000000", "update-00000002"]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_at_its_resume(tmp_path, capsys):
    whole = weights_after(2, *CARTPOLE, "--run_dir", str(tmp_path / "whole"))
    broken = tmp_path / "broken"
    with running(*CARTPOLE, "--run_dir", str(broken)):
        pass  # config.yaml is there, and no checkpoint
    assert weights_after(2, "--resume", str(broken)) == whole
    assert "before its first checkpoint: it begins now" in capsys.readouterr().err
    # one that lost its checkpoints has not just begun
    shutil.rmtree(broken / "checkpoints")
    with pytest.raises(checkpoint.BadCheckpoint, match="it holds none"):
        weights_after(2, "--resume", str(broken))


def test_a_better_best_of_the_time_before_the_kill_is_kept(tmp_path):
    flags = (*CARTPOLE, "--test_episodes", "1", "--test_max_steps", "3", "--run_dir", str(tmp_path))
    weights_after(UPDATES_PER_CHECKPOINT, *flags)
    best = {"global_step": 77, "return_mean": 1000.0}
    with running("--resume", str(tmp_path)) as run:
        arrays, _ = run.agent.state()
    checkpoint.save_best(tmp_path / "checkpoints", 77, arrays, best)
    with running("--resume", str(tmp_path)) as run:
        assert run.evaluations.last(run.agent.weights(), 78)["eval/return_mean"] == 3.0
        assert run.evaluations.best == 1000.0
    assert checkpoint.load(tmp_path / "checkpoints" / "best").state == best


def test_a_best_that_cannot_be_read_now_is_not_replaced(tmp_path):
    weights_after(UPDATES_PER_CHECKPOINT, *CARTPOLE, "--run_dir", str(tmp_path))
    best = tmp_path / "checkpoints" / "best-000000000077"
    with running("--resume", str(tmp_path)) as run:
        arrays, _ = run.agent.state()
    checkpoint.save_best(best.parent, 77, arrays, {"global_step": 77, "return_mean": 1000.0})
    (best / "state.json").unlink()
    (best / "state.json").symlink_to("state.json")
    with pytest.raises(checkpoint.UnreadCheckpoint, match="best-000000000077 cannot be read"):
        weights_after(6, "--resume", str(tmp_path))
    assert best.is_dir()


def test_that_a_resumed_run_has_reached_its_score_is_said(tmp_path, capsys):
    weights_after(UPDATES_PER_CHECKPOINT, *CARTPOLE, "--run_dir", str(tmp_path))
    evaluated = checkpoint.load(tmp_path / "checkpoints" / "last")
    state = evaluated.state | {"last_evaluation": 20.0}
    checkpoint.save(tmp_path / "checkpoints", evaluated.update, evaluated.arrays, state)
    for score, is_said in ((20, True), (21, False)):
        with running("--resume", str(tmp_path), "--solve_score", str(score)):
            said = f"solve_score is {score}, which this run has reached" in capsys.readouterr().out
            assert said == is_said


def test_a_run_of_the_version_before_goes_on(tmp_path):
    """`run_of_0.1.0`: a run of CartPole by the version that saved no environments."""
    run_dir = tmp_path / "run"
    shutil.copytree(Path(__file__).parent / "run_of_0.1.0", run_dir)
    before = (run_dir / "config.yaml").read_bytes()
    lines = len((run_dir / "metrics.jsonl").read_text().splitlines())
    with running("--resume", str(run_dir), "--train_total_steps", "2000") as run:
        update, best = run.agent.update, run.evaluations.best
        assert best == checkpoint.load(run_dir / "checkpoints" / "best").state["return_mean"]
        train_until(run, update + 2)
        run.save()
        checkpoint.save_best(run.checkpoints, 1, run.agent.state()[0], {"return_mean": 1e9})
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [m["update"] for m in metrics[lines:]] == [update + 1, update + 2]
    assert (run_dir / "config.yaml").read_bytes() == before
    assert checkpoint.load(run_dir / "checkpoints" / "best").state == {"return_mean": 1e9}
    with running("--resume", str(run_dir)) as run:
        assert (run.agent.update, run.evaluations.best) == (update + 2, 1e9)


def test_the_last_state_is_saved_before_the_best_policy_is_filmed(tmp_path, monkeypatch):
    with running(*CARTPOLE, "--film", "--run_dir", str(tmp_path)) as run:
        train_until(run, UPDATES_PER_CHECKPOINT + 1)
        saved = []
        monkeypatch.setattr(
            run.report,
            "film",
            lambda _: saved.append(checkpoint.load(tmp_path / "checkpoints" / "last")),
        )
        run.exit_reason = "finished"
        run.film()
    assert [one.state["update"] for one in saved] == [UPDATES_PER_CHECKPOINT + 1]


def test_where_the_last_evaluation_is_lost_the_one_before_it_is_in_the_metrics(
    tmp_path, monkeypatch
):
    flags = (*CARTPOLE, "--test_episodes", "1", "--test_max_steps", "3", "--run_dir", str(tmp_path))
    with running(*flags) as run:
        weights = run.agent.weights()
        before = Evaluation(Scores([3.0], [3], [{}]), weights, 64)
        monkeypatch.setattr(run.evaluations._evaluator, "last", lambda *_: [before])
        metrics = run.evaluations.last(weights, 128)
    assert (metrics["eval/global_step"], metrics["eval/return_mean"]) == (64, 3.0)
