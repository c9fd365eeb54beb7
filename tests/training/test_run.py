"""What a run counts and records."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import numpy as np
import pytest
from gymnasium import spaces

from agent import NotFinite
from common.sources import ROOT
from envs import Spaces
from settings.config import Config
from settings.sources import parse
from tests.training.runs import SMALL, running
from training.resets import plan_resets
from training.signals import Stopped, StopSignals
from training.summary import weights_digest


def metrics_of(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_the_documents_explain_every_metric(tmp_path):
    flags = ("--env", "Pendulum-v1", *SMALL, "--rnd_coefficient", "0.5", "--value_epochs", "3", "--kl_penalty",
             "adaptive", "--test_every_steps", "64", "--test_episodes", "1")  # fmt: skip
    with running(*flags, "--run_dir", str(tmp_path)) as run:
        for rollout in run.collect():
            run.record(rollout, run.agent.learn(rollout, run.progress()), run.collector.times)
            if run.progress() == 1.0:
                break
    names = {name for line in metrics_of(tmp_path) for name in line}
    assert {"eval/return_mean", "kl_coefficient", "intrinsic_reward", "value_epochs"} <= names
    text = (ROOT / "docs" / "training.md").read_text()
    section = text[text.index("### What the metrics mean") : text.index("\n## Evaluation")]
    assert names - set(re.findall(r"`([a-z_/]+)`", section)) == set()


def test_a_signal_in_the_last_evaluation_does_not_drop_the_last_update(tmp_path):
    flags = ("--env", "CartPole-v1", *SMALL, "--train_total_steps", "100")
    with running(*flags, "--run_dir", str(tmp_path)) as run:
        for rollout in run.collect():
            metrics = run.agent.learn(rollout, run.progress())
            if run.progress(rollout.steps) < 1.0:
                run.record(rollout, metrics, {})
            else:
                os.kill(os.getpid(), signal.SIGTERM)
                with pytest.raises(Stopped):
                    run.record(rollout, metrics, {})
                break
        assert run.agent.update == 2
    assert [line["update"] for line in metrics_of(tmp_path)] == [1, 2]


def test_no_second_signal_disturbs_the_end(tmp_path, monkeypatch):
    """The first one came in an update: its time for that runs out while the end saves."""
    monkeypatch.setattr(StopSignals, "GRACE_S", 0.2)
    saves = []
    with running("--env", "CartPole-v1", *SMALL, "--run_dir", str(tmp_path)) as run:
        next(run.collect())
        save = run.save

        def slow_save() -> None:
            saves.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
            save()

        monkeypatch.setattr(run, "save", slow_save)
        os.kill(os.getpid(), signal.SIGTERM)
        run.exit_reason = "sigterm"
        run.__exit__()
    assert saves == [1]
    assert json.loads((tmp_path / "summary.json").read_text())["exit_reason"] == "sigterm"


def test_an_update_of_nan_is_refused_and_the_fifth_in_a_row_ends_the_run(tmp_path, capsys):
    with running("--env", "CartPole-v1", *SMALL, "--run_dir", str(tmp_path)) as run:
        refused = []
        for rollout in run.collect():
            before = weights_digest(run.agent)
            if run.agent.update != 1:
                rollout.reward[:] = np.nan
            if run.agent.update == 6:  # the first was refused; the one after it was not
                with pytest.raises(NotFinite):
                    run.learn(rollout)
                break
            metrics = run.learn(rollout)
            assert (weights_digest(run.agent) == before) == (metrics == {})
            run.record(rollout, metrics, {})
            refused.append(metrics_of(tmp_path)[-1]["refused_updates"])
    assert refused == [1, 1, 2, 3, 4, 5]
    assert "an update was refused: " in capsys.readouterr().out


@pytest.mark.slow
def test_steps_of_dropped_fragments_are_counted(tmp_path, monkeypatch):
    (tmp_path / "uneven").mkdir()
    monkeypatch.setenv("UNEVEN_FOLDER", str(tmp_path / "uneven"))
    flags = (
        "--env", "tests.toy_envs:Uneven", *SMALL, "--batch_size", "32", "--samplers", "4",
        "--policy_lag", "2", "--train_total_steps", "100000", "--run_dir", str(tmp_path / "run"),
    )  # fmt: skip
    learned_from = 0
    with running(*flags) as run:
        for rollout in run.collect():
            learned_from += rollout.steps
            run.record(rollout, run.agent.learn(rollout, run.progress()), {})
            if run.pool.dropped_steps or run.agent.update == 100:
                break
    last = metrics_of(tmp_path / "run")[-1]
    assert last["dropped_steps"] > 0
    assert last["dropped_fragments"] > 0
    assert last["global_step"] == learned_from + last["dropped_steps"]
    assert (last["samplers_alive"], last["restarts"]) == (4, 0)


def env_spaces(**options) -> Spaces:
    return Spaces(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), 0, **options)


@pytest.mark.parametrize("envs", [1, 8, 64, 256, 1000])
@pytest.mark.parametrize("total", ["1e5", "1e6", "1e8"])
def test_resets_are_five_episodes_apart_or_are_left_out_with_a_word(envs, total):
    config = parse(
        ["--env", "HalfCheetah-v4", "--env_num", str(envs), "--train_total_steps", total]
    )
    assert plan_resets(config, env_spaces(saves_state=True, episode_limit=1000)) == (None, "")
    every, remark = plan_resets(config, env_spaces(episode_limit=1000))
    if every is None:
        assert "from no checkpoint: the run is too short" in remark
        assert config.updates * config.steps_per_rollout <= 5000 * 1.5
    else:
        assert every * config.steps_per_rollout >= 5000
        assert every % config.updates_per_checkpoint == 0
        assert "where all environments are reset" in remark


def test_environments_without_a_known_limit_are_never_reset():
    every, remark = plan_resets(Config(env="CartPole-v1"), env_spaces())
    assert every is None
    assert "no known limit" in remark
    asynchronous = Config(env="CartPole-v1", policy_lag=2)
    assert plan_resets(asynchronous, env_spaces(episode_limit=5)) == (None, "")
