from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from envs import UnknownEnv
from settings.config import FIELDS, Config, ConfigError
from settings.rules import validate
from settings.sources import ROOT, parse, preset, recipes


def test_precedence_default_family_env_file_flags(tmp_path):
    settings = tmp_path / "mine.yaml"
    settings.write_text("gamma: 0.5\nlearning_rate: 0.125\n")
    config = parse(["--env", "CartPole-v1", "--config", str(settings), "--learning_rate", "0.25"])
    assert config.adam_eps == Config.adam_eps  # the default
    assert config.minibatch_size == 256  # the family's
    assert config.gae_lambda == 0.8  # the env's, over the family's
    assert config.gamma == 0.5  # the file's, over the env's
    assert config.learning_rate == 0.25  # the flag's, over the file's


def test_a_file_may_name_the_env(tmp_path):
    settings = tmp_path / "mine.yaml"
    settings.write_text("env: HalfCheetah-v4\nseed: 0\n")
    config = parse(["--config", str(settings)])
    assert (config.env, config.seed, config.env_num) == ("HalfCheetah-v4", 0, 64)


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda p: p.stem)
def test_presets_are_valid_for_every_task_they_name(path: Path):
    content = yaml.safe_load(path.read_text())
    assert set(content["family"]) <= FIELDS
    for task, settings in content.get("tasks", {}).items():
        assert set(settings) <= FIELDS
        validate(preset(task))


@pytest.mark.parametrize("env_num", [1, 2, 5, 7, 8, 24, 64, 100, 300])
def test_any_number_of_environments_gives_whole_minibatches_near_the_batch_size(env_num):
    config = parse(["--env", "HalfCheetah-v4", "--env_num", str(env_num)])
    assert config.steps_per_update % config.minibatch_size == 0
    assert config.steps_per_update == config.steps_per_rollout * env_num
    assert config.steps_per_rollout >= 1
    if env_num <= 8:
        assert 0.6 < config.steps_per_update / config.batch_size < 1.7


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--env_num", "0"], "env_num is 0, but must be at least 1"),
        (["--env_num", "-3"], "env_num is -3"),
        (["--minibatch_size", "100"], "minibatch_size 100 does not divide batch_size 1024"),
        (["--rollout_steps", "7"], "does not divide the batch of rollout_steps 7 x env_num 8"),
        (["--samplers", "9"], "only 8 environments"),
        (["--gamma", "1.5"], "gamma is 1.5, but must lie between 0 and 1"),
        (["--learning_rate", "0"], "learning_rate is 0"),
        (["--policy_lag", "2", "--samplers", "0"], "give --samplers 1 or more"),
        (["--policy_lag", "2", "--samplers", "3"], "give --samplers 2, or another --env_num"),
        (["--seed", "-1"], "seed is -1"),
        (["--config", "/nowhere.yaml"], "cannot read the settings in /nowhere.yaml"),
        (["--resume", "/tmp"], "/tmp is not the folder of a run"),
    ],
)
def test_bad_settings_name_the_value_and_the_rule(flags, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse(flags)


def test_unknown_settings_in_a_file_are_refused(tmp_path):
    settings = tmp_path / "mine.yaml"
    settings.write_text("gama: 0.9\n")
    with pytest.raises(ConfigError, match="gama: no such setting"):
        parse(["--config", str(settings)])


def test_unknown_env():
    with pytest.raises(UnknownEnv, match="CartPole-v1"):
        parse(["--env", "CartPol-v1"])


def saved_run(folder: Path) -> Path:
    config = parse(["--env", "CartPole-v1", "--seed", "0"])
    (folder / "config.yaml").write_text(yaml.safe_dump({"config": config.to_dict()}))
    return folder


def test_resuming_takes_the_runs_settings(tmp_path):
    config = parse(["--resume", str(saved_run(tmp_path)), "--samplers", "0"])
    assert (config.env, config.seed, config.samplers) == ("CartPole-v1", 0, 0)
    assert config.run_dir == str(tmp_path)


@pytest.mark.parametrize("flags", [["--seed", "3"], ["--env", "Acrobot-v1"], ["--env_num", "4"]])
def test_a_flag_that_contradicts_the_resumed_run_is_refused(tmp_path, flags):
    with pytest.raises(ConfigError, match=f"{flags[0]} {flags[1]} contradicts the run"):
        parse(["--resume", str(saved_run(tmp_path)), *flags])


def test_every_setting_is_read_somewhere():
    sources = "".join(
        path.read_text()
        for folder in (
            ".",
            "cluster",
            "envs",
            "evaluation",
            "learning",
            "networks",
            "settings",
            "training",
        )
        for path in (ROOT / folder).glob("*.py" if folder == "." else "**/*.py")
    )
    unread = [
        name
        for name in FIELDS
        if not any(use in sources for use in (f"config.{name}", f"self.{name}", f'"--{name}"'))
    ]
    assert unread == []


def test_asynchronous_samplers_share_environments_evenly():
    assert Config(env_num=10).default_samplers(8) == 8
    assert Config(env_num=10, policy_lag=2).default_samplers(8) == 5
    assert Config(env_num=7, policy_lag=2).default_samplers(4) == 1


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_is_valid_for_the_families_it_names(recipe):
    tasks = {"mujoco": "HalfCheetah-v4", "atari": "PongNoFrameskip-v4", "microrts": "microrts-16x16",
             "any": "CartPole-v1"}  # fmt: skip
    content = yaml.safe_load((ROOT / "presets" / "recipes" / f"{recipe}.yaml").read_text())
    for family, settings in content.items():
        assert set(settings) <= FIELDS
        config = parse(["--env", tasks[family], "--preset", recipe])
        assert config.preset == recipe
        for name, value in settings.items():
            expected = tuple(value) if isinstance(value, list) else value
            assert getattr(config, name) == expected


def test_an_unknown_recipe_names_those_that_exist_and_a_misfit_the_families():
    with pytest.raises(ConfigError, match="cleanrl, ddrl"):
        parse(["--env", "CartPole-v1", "--preset", "nothing"])
    with pytest.raises(
        ConfigError, match="is for mujoco and atari, but env CartPole-v1 is classic"
    ):
        parse(["--env", "CartPole-v1", "--preset", "cleanrl"])


def test_flags_come_before_a_recipe_and_a_recipe_before_the_presets_of_the_env():
    recipe = ["--env", "HalfCheetah-v4", "--preset", "tianshou"]
    assert parse(recipe).gae_lambda == 0.95  # the preset of HalfCheetah has another
    assert parse([*recipe, "--gae_lambda", "0.5"]).gae_lambda == 0.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--network", "lstm", "--minibatch_size", "16"], "no multiple of the"),
        (["--carried_steps", "8", "--policy_lag", "2"], "cannot carry"),
        (["--joint_loss", "mix_loss", "--kl_penalty", "fixed"], "give one of them"),
        (["--mix_weight", "2"], "between 0 and 1"),
        (["--reward_weights", "1", "2"], "must be 6 numbers"),
    ],
)
def test_settings_that_cannot_be_together_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse(["--env", "CartPole-v1", *flags])
