"""Where settings come from: presets, recipes, files, flags, a run that is resumed."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import yaml

from envs import UnknownEnv, family_of
from settings.config import FIELDS, OF_LEARNING, Config, ConfigError
from settings.fitting import nearest_batch
from settings.rules import validate
from settings.sources import ROOT, load_run, parse, parse_again, preset, recipes


def test_precedence_default_family_env_file_flags(tmp_path):
    settings = tmp_path / "mine.yaml"
    settings.write_text("gamma: 0.5\nlearning_rate: 0.125\n")
    config = parse(["--env", "CartPole-v1", "--config", str(settings), "--learning_rate", "0.25"])
    assert config.adam_eps == Config.adam_eps  # the default
    assert config.minibatch_size == 256  # the family's
    assert config.gae_lambda == 0.8  # the env's, over the family's
    assert config.gamma == 0.5  # the file's, over the env's
    assert config.learning_rate == 0.25  # the flag's, over the file's


def test_of_an_env_that_is_given_twice_the_last_one_has_its_presets_too():
    config = parse(["--env", "CartPole-v1", "--env=HalfCheetah-v4"])
    assert (config.env, config.env_num, config.gae_lambda) == ("HalfCheetah-v4", 64, 0.8)


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


def test_unknown_settings_in_a_file_are_refused(tmp_path):
    settings = tmp_path / "mine.yaml"
    settings.write_text("gama: 0.9\n")
    with pytest.raises(ConfigError, match="there is no setting gama: did you mean gamma"):
        parse(["--config", str(settings)])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"x: [", "mine.yaml: line 1: expected the node content"),
        (b"gamma: 0.9\n\tseed: 1", "mine.yaml: line 2: found character '.t'"),
        (b"\xff", "mine.yaml: 'utf-8' codec"),
        (None, "mine.yaml: No such file or directory$"),
    ],
)
def test_a_file_that_cannot_be_read_says_why_in_one_line(content, complaint, tmp_path):
    settings = tmp_path / "mine.yaml"
    if content is not None:
        settings.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as error:
        parse(["--config", str(settings)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["resume", "join"])
def test_a_file_cannot_say_which_run_goes_on(name, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"{name}: another\nenv: CartPole-v1\n")
    with pytest.raises(
        ConfigError, match=rf"{name} is no setting of a file.* give --{name} another"
    ):
        parse(["--config", str(tmp_path / "mine.yaml")])


def test_a_folders_name_is_that_of_the_home_or_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("run_dir: ~/here\n")
    assert parse(["--config=~/mine.yaml"]).run_dir == str(tmp_path / "here")
    with pytest.raises(ConfigError, match=r"run_dir.* must be text that is not empty"):
        parse(["--run_dir", ""])


def test_unknown_env():
    with pytest.raises(UnknownEnv, match="CartPole-v1"):
        parse(["--env", "CartPol-v1"])


def saved_run(folder: Path, command: list[str] | None = None, **settings) -> Path:
    config = parse(["--env", "CartPole-v1", "--seed", "0"])
    content = {"config": config.to_dict() | settings, "versions": {}, "command": command or []}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_resuming_takes_the_runs_settings(tmp_path):
    config = parse(["--resume", str(saved_run(tmp_path)), "--samplers", "0"])
    assert (config.env, config.seed, config.samplers) == ("CartPole-v1", 0, 0)
    assert config.run_dir == str(tmp_path)


@pytest.mark.parametrize("flags", [["--seed", "3"], ["--env", "Acrobot-v1"], ["--env_num", "4"]])
def test_a_flag_that_contradicts_the_resumed_run_is_refused(tmp_path, flags):
    with pytest.raises(ConfigError, match=f"{flags[0]} {flags[1]} contradicts the run"):
        parse(["--resume", str(saved_run(tmp_path)), *flags])


def test_a_resumed_run_may_be_longer_but_not_shorter(tmp_path):
    run = str(saved_run(tmp_path))
    assert parse(["--resume", run, "--train_total_steps", "200000"]).train_total_steps == 200_000
    with pytest.raises(ConfigError, match=r"less than the 100000 of the run .* may be raised"):
        parse(["--resume", run, "--train_total_steps", "50000"])


def test_a_resumed_run_may_run_elsewhere(tmp_path):
    elsewhere = ["--device", "cpu", "--torch_threads", "2", "--compile", "off", "--precision",
                 "float32", "--checkpoint_minutes", "1", "--test_max_steps", "7"]  # fmt: skip
    config = parse(["--resume", str(saved_run(tmp_path)), *elsewhere])
    assert (config.device, config.torch_threads, config.compile) == ("cpu", 2, "off")
    assert (config.precision, config.checkpoint_minutes, config.test_max_steps) == ("float32", 1, 7)
    with pytest.raises(ConfigError, match="--policy_lag 0 contradicts the run"):
        parse(["--resume", str(tmp_path), "--policy_lag", "0"])


def test_a_settings_file_beside_resume_is_refused(tmp_path):
    settings = tmp_path / "mine.yaml"
    settings.write_text("gamma: 0.5\n")
    with pytest.raises(ConfigError, match=r"--config .* contradicts the run"):
        parse(["--resume", str(saved_run(tmp_path)), "--config", str(settings)])


def test_a_run_of_the_first_layout_is_resumed_as_it_was(tmp_path, capsys):
    """Its batch is too, which a new run with so many environments would not have."""
    old = Path(__file__).with_name("older_config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(old)
    config = parse(["--resume", str(tmp_path)])
    assert capsys.readouterr().err == ""
    assert (config.env, config.seed, config.gae_lambda) == ("HalfCheetah-v4", 0, 0.8)
    assert (config.env_num, config.steps_per_update, config.minibatch_size) == (100, 6400, 256)
    assert not config.episodic_life  # a setting that it did not have


def test_the_config_of_an_older_version_stays_readable(tmp_path, capsys):
    config = parse(["--env", "CartPole-v1", "--seed", "0"])
    assert load_run(saved_run(tmp_path)) == config
    assert capsys.readouterr().err == ""
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del content["config"]["checkpoint_minutes"]
    content["config"]["a_setting_of_old"] = 3
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert load_run(tmp_path) == config
    assert "this version has no a_setting_of_old" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("recipe", "env"),
    [("cleanrl", "Ant-v4"), ("heess", "Hopper-v4"), ("ppo-paper", "Humanoid-v4"), ("ddrl", "CartPole-v1"),
     ("ddrl", "MountainCarContinuous-v0"), ("ppo-paper", "PongNoFrameskip-v4"),
     ("dppo-2301.10919", "microrts-10x10")],
)  # fmt: skip
def test_with_a_recipe_the_presets_of_the_env_do_not_say_how_it_is_learned(recipe, env):
    content = yaml.safe_load((ROOT / "presets" / "recipes" / f"{recipe}.yaml").read_text())
    says = content.get("any") or content[family_of(env)]
    config, defaults = parse(["--env", env, "--preset", recipe]), Config()
    assert config.train_total_steps == preset(env).train_total_steps
    for name in set(OF_LEARNING) - set(says) - {"batch_size"}:  # which follows from the others
        assert getattr(config, name) == getattr(defaults, name)
    assert {"shared_trunk", "scale_action", "initial_log_std", "gamma", "normalize_value"} <= set(
        OF_LEARNING
    )


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
    ("line", "complaint"),
    [
        ("hidden_sizes: 256", "hidden_sizes is 256, but must be a list, each entry a whole number"),
        ("hidden_sizes: [64, wide]", "hidden_sizes is .*wide.*, but must be a list"),
        ("activation: gelu", "activation is 'gelu', but must be tanh or relu or elu or silu"),
        ("seed: 1.5", "seed is 1.5, but must be a whole number of at least 0"),
        ("seed: true", "seed is True, but must be a whole number"),
        ("opponents: coacAI", "opponents is 'coacAI', but must be a list, each entry text"),
        ("learning_rate: fast", "learning_rate is 'fast', but must be a number greater than 0"),
        ("learning_rate: .nan", "learning_rate is nan, but must be a number"),
        ("learning_rate: null", "learning_rate is None, but must be a number"),
        ("shared_trunk: 1", "shared_trunk is 1, but must be true or false"),
        ("network: 3", "network is 3, but must be text"),
        ("preset: 2301.1", "preset is 2301.1, but must be text, or null"),
    ],
)
def test_a_file_with_a_value_of_another_type_is_refused(line, complaint, tmp_path):
    settings = tmp_path / "mine.yaml"
    settings.write_text(f"env: CartPole-v1\n{line}\n")
    with pytest.raises(ConfigError, match=f"mine.yaml: {complaint}"):
        parse(["--config", str(settings)])


def test_a_value_that_can_mean_one_thing_only_is_converted(tmp_path):
    settings = tmp_path / "mine.yaml"
    settings.write_text(
        "env: CartPole-v1\nlearning_rate: 3e-4\ntrain_total_steps: 1e6\ncompile: on\n"
        "hidden_sizes: [32]\nmax_minutes: 2\ntarget_kl: null\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = parse(["--config", str(settings)])
    assert (config.learning_rate, config.train_total_steps) == (3e-4, 1_000_000)
    assert isinstance(config.train_total_steps, int)
    assert (config.compile, config.hidden_sizes) == ("on", (32,))
    assert (config.max_minutes, config.target_kl) == (2.0, None)


@pytest.mark.parametrize("env_num", [33, 100, 200, 300, 512, 3000])
@pytest.mark.parametrize("env", ["HalfCheetah-v4", "PongNoFrameskip-v4"])
def test_more_environments_than_the_presets_keep_the_batch(env, env_num):
    asked, config = preset(env), parse(["--env", env, "--env_num", str(env_num)])
    validate(config)
    if env_num <= 1.5 * asked.batch_size:
        assert 1 / 1.5 <= config.steps_per_update / asked.batch_size <= 1.5
    assert config.steps_per_update == config.batch_size == env_num * config.steps_per_rollout
    assert 1 / 1.5 <= config.minibatch_size / asked.minibatch_size <= 1.5


def test_minibatches_keep_their_size_where_the_batch_is_near_anyway():
    for env_num in (1, 2, 4, 5, 7, 8, 24, 64, 512):
        config = parse(["--env", "HalfCheetah-v4", "--env_num", str(env_num)])
        assert (config.batch_size, config.minibatch_size) == (2048, 256)


def test_an_lstm_learns_from_whole_sequences_with_any_number_of_environments():
    config = parse(["--env", "HalfCheetah-v4", "--network", "lstm", "--env_num", "100"])
    assert config.minibatch_size % config.steps_per_rollout == 0
    shared = ["--network", "lstm", "--env_num", "6", "--trainers", "2"]
    config = parse(["--env", "HalfCheetah-v4", *shared])
    assert config.minibatch_size // config.steps_per_rollout % 2 == 0


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_a_share_of_each_hogwild_trainer_is_cut_into_whole_minibatches(network):
    config = parse(["--env", "HalfCheetah-v4", "--network", network, "--env_num", "24", "--trainers", "3",
                    "--trainer_mode", "hogwild"])  # fmt: skip
    assert config.steps_per_update // 3 % config.minibatch_size == 0


def test_the_nearest_batch():
    assert nearest_batch(33, 2048, 256) == (2112, 264)
    assert nearest_batch(5000, 2048, 256) == (5000, 250)
    assert nearest_batch(4, 4096, 256, sequences=1) == (4096, 1024)  # not 2732 and 683, as far off
    assert nearest_batch(24, 2048, 256, shares=3) == (2088, 232)
    assert nearest_batch(6, 2048, 256, sequences=1, shares=4) == (2048, 256)  # none fits
    for trainers in (1, 3, 11):
        batch, minibatch = nearest_batch(33, 2048, 256, sequences=trainers)
        assert batch % minibatch == 0
        assert minibatch // (batch // 33) % trainers == 0


def test_games_of_an_evaluation_are_as_long_as_those_of_the_training():
    game = ["--env", "microrts-10x10"]
    assert parse(game).test_max_steps == 1000
    assert parse([*game, "--max_steps", "2500"]).test_max_steps == 2500
    assert parse([*game, "--preset", "dppo-2301.10919"]).test_max_steps == 5000
    assert parse([*game, "--max_steps", "2500", "--test_max_steps", "9"]).test_max_steps == 9


def test_trainers_are_those_that_a_launcher_has_started(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parse(["--env", "CartPole-v1"]).trainers == 2
    assert parse(["--resume", str(saved_run(tmp_path))]).trainers == 2  # the run had one
    with pytest.raises(ConfigError, match="trainers is 4, but 2 were started together"):
        parse(["--env", "CartPole-v1", "--trainers", "4"])


def test_trainers_that_are_started_anew_go_on_with_the_run(tmp_path, monkeypatch):
    flags = ["--env", "CartPole-v1", "--run_dir", str(tmp_path)]
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(ConfigError, match="give --run_dir"):
        parse_again(flags[:2])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert parse_again(flags).resume is None  # it was lost before it had begun
    file = tmp_path / "own.yaml"
    file.write_text(f"run_dir: {tmp_path}\n")
    gone = str(tmp_path / "gone")  # what was needed to begin only
    for command in (
        flags,
        [*flags, "--initial_weights", gone],
        [*flags, "--config", f"{gone}.yaml"],
        [*flags[:2], "--config", str(file)],
    ):
        saved_run(tmp_path, ["train.py", *command])
        assert parse_again(command).resume == str(tmp_path)
    # a run that was there before, of which the first start has said so
    saved_run(tmp_path, ["train.py", "--env", "Acrobot-v1", *flags[2:]])
    again = parse_again(flags)
    assert (again.resume, again.env) == (None, "CartPole-v1")
    assert parse_again(flags, str(tmp_path)).resume == str(tmp_path)  # begun in this one's place
    longer = ["--resume", str(tmp_path), "--train_total_steps", "9000000"]
    assert parse_again(longer, str(tmp_path)).train_total_steps == 9_000_000
