"""A run that begins with the weights of another one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from common.checkpoint import BadCheckpoint
from settings.config import ConfigError
from settings.sources import parse
from tests.training.runs import SMALL, running, train_until, weights_after
from training.summary import weights_digest

PENDULUM = ("--env", "Pendulum-v1", *SMALL)
NETWORK = ("--hidden_sizes", "16", "--activation", "relu", "--normalize_value")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder, and the hash of its newest weights."""
    folder = str(tmp_path_factory.mktemp("runs") / "trained")
    with running(*PENDULUM, *NETWORK, "--seed", "3", "--run_dir", folder) as run:
        train_until(run, 2)
        run.save()
        return folder, weights_digest(run.agent)


def test_its_network_comes_with_the_weights_and_all_else_begins_anew(trained, tmp_path):
    folder, digest = trained
    with running(*PENDULUM, "--initial_weights", folder, "--run_dir", str(tmp_path)) as run:
        assert weights_digest(run.agent) == digest
        assert run.config.hidden_sizes == (16,)
        assert (run.config.activation, run.config.normalize_value) == ("relu", True)
        assert (run.config.seed, run.agent.update, run.global_step) == (1, 0, 0)
        assert not run.agent.alg.descent.adam.moments.any()
        assert train_until(run, 1) != digest


def test_it_is_resumed_without_them(trained, tmp_path):
    flags = (*PENDULUM, "--initial_weights", trained[0])
    whole = weights_after(5, *flags, "--run_dir", str(tmp_path / "whole"))
    broken = str(tmp_path / "broken")
    weights_after(4, *flags, "--run_dir", broken)  # saved after the third
    config = tmp_path / "broken" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    assert content["config"]["initial_weights"] == trained[0]
    content["config"]["initial_weights"] = "gone"
    config.write_text(yaml.safe_dump(content))
    assert weights_after(5, "--resume", broken) == whole


def test_weights_of_another_kind_of_task_are_refused(trained, tmp_path):
    flags = ("--env", "CartPole-v1", *SMALL, "--initial_weights", trained[0])
    refused = r"actor.0.weight is \[16, 3\] there and \[16, 4\] here"
    run = running(*flags, "--run_dir", str(tmp_path / "run"))
    with pytest.raises(BadCheckpoint, match=refused), run:
        pass


def test_another_network_than_that_of_the_weights_is_refused(trained):
    flags = [*PENDULUM, "--initial_weights", trained[0]]
    expected = re.escape("hidden_sizes is (8,), but the weights in")
    with pytest.raises(ConfigError, match=expected):
        parse([*flags, "--hidden_sizes", "8"])
    assert parse([*flags, "--hidden_sizes", "16"]).hidden_sizes == (16,)


def test_a_distribution_is_that_of_the_weights_by_either_name(trained):
    flags = [*PENDULUM, "--initial_weights", trained[0], "--distribution"]
    assert parse([*flags, "normal"]).distribution == "normal"  # the run had auto
    with pytest.raises(ConfigError, match="distribution is beta, but the weights in"):
        parse([*flags, "beta"])


def test_weights_that_a_store_cannot_have_are_refused_with_a_remedy_that_works(trained):
    flags = [*PENDULUM, "--initial_weights", trained[0]]
    with pytest.raises(ConfigError, match=r"need it, so leave --initial_weights or --store out"):
        parse([*flags, "--store", "embedded"])


def test_a_resume_in_another_folder_finds_them(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = os.path.relpath(trained[0])
    assert parse([*PENDULUM, "--initial_weights", relative]).initial_weights == trained[0]
    folder = str(tmp_path / "begun")
    weights_after(1, *PENDULUM, "--initial_weights", relative, "--run_dir", folder)
    again = parse(["--resume", folder, "--initial_weights", relative])
    assert again.initial_weights == trained[0]


def test_a_deviation_that_the_network_puts_out_comes_with_the_weights(tmp_path):
    source, flags = str(tmp_path / "source"), ("--state_dependent_std", "--initial_log_std", "-2")
    weights_after(1, *PENDULUM, *flags, "--run_dir", source)
    assert parse([*PENDULUM, "--initial_weights", source]).initial_log_std == -2
    with pytest.raises(ConfigError, match=r"initial_log_std is -1.0, but the weights in"):
        parse([*PENDULUM, "--initial_weights", source, "--initial_log_std", "-1"])


def test_a_strangers_network_is_not_imported(trained, tmp_path):
    content = yaml.safe_load(Path(trained[0], "config.yaml").read_text())
    content["config"] |= {"network": "strangers:Net", "env": "strangers:Env"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    flags = [*PENDULUM, "--initial_weights", str(tmp_path)]
    with pytest.raises(ConfigError, match=r"network strangers:Net of .* is code: it would import"):
        parse(flags)
    assert parse([*flags, "--trust"]).network == "strangers:Net"
    (tmp_path / "own.yaml").write_text("seed: 7\n")
    with pytest.raises(ConfigError, match=r"network strangers:Net of .* is code: it would import"):
        parse([*flags, "--config", str(tmp_path / "own.yaml")])
    typed = [*flags, "--network", "strangers:Net"]
    assert parse([*typed, "--config", str(tmp_path / "own.yaml")]).network == "strangers:Net"
    content["config"]["network"] = "mlp"  # its environment is of no concern here
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert parse(flags).env == "Pendulum-v1"
