"""The rules between settings, and the settings that have no effect."""

from __future__ import annotations

import pytest
import yaml

from common.sources import ROOT
from common.values import needs
from envs import spaces_of
from settings.config import HINTS, ConfigError
from settings.rules import remarks, without_effect
from settings.sources import defaults, parse, recipes


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--env_num", "0"], "env_num is 0, but must be a whole number of at least 1"),
        (["--env_num", "-3"], "env_num is -3"),
        (["--minibatch_size", "100"], "minibatch_size 100 does not divide batch_size 1024"),
        (["--rollout_steps", "7"], "does not divide the batch of rollout_steps 7 x env_num 8"),
        (["--samplers", "9"], "only 8 environments"),
        (
            ["--target_kl", "0.1", "--update_epochs", "1", "--minibatch_size", "1024"],
            "target_kl 0.1 follows the KL .+ there is one step, which finds 0: give --update_epochs 2",
        ),
        (["--gamma", "1.5"], "gamma is 1.5, but must be a number from 0 to 1"),
        (["--learning_rate", "0"], "learning_rate is 0"),
        (["--policy_lag", "2", "--samplers", "0"], "give --samplers 1 or more"),
        (["--policy_lag", "2", "--samplers", "3"], "give --samplers 2, or another --env_num"),
        (
            [
                "--env",
                "microrts-8x8",
                "--selfplay_envs",
                "12",
                "--env_num",
                "12",
                "--policy_lag",
                "2",
                "--samplers",
                "4",
            ],
            "4 samplers do not divide env_num 12 in pairs: give --samplers 3",
        ),
        (
            ["--env_num", "9", "--store", "embedded", "--trainers", "2", "--samplers", "2"],
            "2 samplers do not divide env_num 9: give --samplers 1, or another --env_num",
        ),
        (
            ["--xparl_addr", "localhost:8010", "--wait_for_cpus", "5"],
            "without samplers a run has as many as there are free CPUs at its start: give --samplers",
        ),
        (
            [
                "--env_num",
                "10",
                "--trainers",
                "3",
                "--trainer_mode",
                "hogwild",
                "--samplers",
                "3",
                "--policy_lag",
                "2",
            ],
            "3 samplers do not divide env_num 10: give another --env_num",
        ),
        (
            ["--trainers", "2", "--trainer_mode", "hogwild", "--normalize_value"],
            "give --no_normalize_value",
        ),
        (["--env_num", "3", "--trainers", "4", "--policy_lag", "2"], "env_num 3 cannot be shared"),
        (["--seed", "-1"], "seed is -1"),
        (["--max_grad_norm", "0"], "max_grad_norm is 0, but must be a number greater than 0"),
        (["--reward_clip", "0"], "reward_clip is 0"),
        (["--observation_clip", "0"], "observation_clip is 0"),
        (["--adam_eps", "0"], "adam_eps is 0"),
        (["--desired_kl", "0"], "desired_kl is 0"),
        (["--value_clip", "0"], "value_clip is 0"),
        (["--rnd_proportion", "0"], "rnd_proportion is 0"),
        (["--initial_log_std", "50"], "initial_log_std is 50, but must be a number from -20 to 2"),
        (["--trainers", "3"], "env_num 8 cannot be shared evenly: give .* such as --env_num 9"),
        (["--trainers", "2", "--compile", "beside"], "compile is beside, but trainers is 2"),
        (["--trainers", "2", "--samplers", "3"], "samplers 3 cannot be shared evenly"),
        (
            ["--trainers", "2", "--minibatch_size", "1", "--batch_size", "64"],
            "minibatch_size 1 cannot",
        ),
        (["--trainers", "2", "--policy_lag", "2"], "each would learn at its own pace"),
        (["--trainers", "2", "--ray_address", "auto"], "leave one of them out"),
        (
            ["--trainers", "2", "--kl_penalty", "fixed", "--kl_excess_coefficient", "1"],
            "is no sum over rows",
        ),
        (["--config", "/nowhere.yaml"], "cannot read the settings in /nowhere.yaml"),
        (["--resume", "/tmp"], "/tmp is not the folder of a run"),
    ],
)
def test_bad_settings_name_the_value_and_the_rule(flags, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse(flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--joint_loss", "mix_loss", "--kl_penalty", "fixed"], "give one of them"),
        (["--kl_penalty", "adaptive", "--kl_coefficient", "0"], "give one above 0"),
        (["--mix_weight", "2"], "from 0 to 1"),
        (["--dual_clip", "3", "--kl_penalty", "fixed"], "give one of them"),
        (["--track", "none", "visualdl"], "track is none visualdl, but none leaves"),
        (["--track", "tensorbord"], "each entry visualdl or tensorboard or wandb or none"),
        (["--samplers", "0", "--xparl_addr", "localhost:8010"], "leave one of them out"),
        (
            ["--normalize_observation", "--train_total_steps", "256"],
            "only initialise the normaliser",
        ),
    ],
)
def test_settings_that_cannot_be_together_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse(["--env", "CartPole-v1", *flags])


TASKS = {
    "mujoco": "HalfCheetah-v4", "atari": "PongNoFrameskip-v4", "microrts": "microrts-16x16",
    "any": "CartPole-v1",
}  # fmt: skip
NO_EFFECT = [
    ("--kl_penalty fixed --clip_range 0.3", "clip_range 0.3", "kl_penalty none"),
    ("--kl_coefficient 2", "kl_coefficient 2.0", "kl_penalty fixed or adaptive"),
    ("--kl_excess_coefficient 2", "kl_excess_coefficient 2.0", "kl_penalty fixed or adaptive"),
    ("--desired_kl 0.02", "desired_kl 0.02", "learning_rate_schedule kl or kl_penalty adaptive"),
    ("--reward_clip 5", "reward_clip 5.0", "reward_transform return_std"),
    ("--observation_clip 5", "observation_clip 5.0", "normalize_observation"),
    ("--rho_clip 2", "rho_clip 2.0", "estimator vtrace"),
    ("--policy_lag 0 --clip_from start", "clip_from start", "policy_lag or carried_steps or"),
    ("--estimator vtrace --clip_from start", "clip_from start", "estimator gae or td_lambda or"),
    (
        "--update_epochs 1 --minibatch_size 64 --target_kl 0.1",
        "target_kl 0.1",
        "update_epochs of 2 or more",
    ),
    ("--update_epochs 1 --recompute_advantages", "recompute_advantages True", "update_epochs of 2"),
    ("--joint_loss sub_action", "joint_loss sub_action", "actions of several parts"),
    ("--replay_size 4", "replay_size 4", "replay_batches"),
    ("--key cluster.key", "key cluster.key", "xparl_addr"),
    ("--hogwild_moments shared", "hogwild_moments shared", "trainer_mode hogwild"),
    ("--c_clip 2", "c_clip 2.0", "estimator vtrace"),
    ("--estimator monte_carlo --gae_lambda 0.5", "gae_lambda 0.5", "estimator gae or td_lambda"),
    ("--mix_weight 0.2", "mix_weight 0.2", "joint_loss mix_ratio or mix_loss"),
    ("--mix_weight_end 0.9", "mix_weight_end 0.9", "joint_loss mix_ratio or mix_loss"),
    ("--entropy_schedule linear", "entropy_schedule linear", "entropy_coefficient"),
    ("--entropy_decay 0.5", "entropy_decay 0.5", "entropy_schedule exponential"),
    ("--rnd_gamma 0.5", "rnd_gamma 0.5", "rnd_coefficient"),
    ("--rnd_proportion 0.5", "rnd_proportion 0.5", "rnd_coefficient"),
    ("--initial_log_std -1", "initial_log_std -1.0", "distribution normal or tanh_normal"),
    (
        f"--env Pendulum-v1 --initial_weights {ROOT}/pretrained/Pendulum-v1 --initial_log_std -1",
        "initial_log_std -1.0",
        "distribution normal or tanh_normal and no initial_weights or state_dependent_std",
    ),
    ("--state_dependent_std", "state_dependent_std True", "distribution normal or tanh_normal"),
    ("--scale_action", "scale_action True", "distribution normal"),
    ("--network transformer --hidden_sizes 8", "hidden_sizes 8", "network mlp or lstm"),
    ("--network transformer --activation relu", "activation relu", "network mlp or lstm"),
    ("--memory_steps 4", "memory_steps 4", "network transformer"),
    ("--critic_obs all", "critic_obs all", "family custom"),
    ("--wait_for_cpus 5", "wait_for_cpus 5.0", "xparl_addr or ray_address"),
    ("--master_timeout 5", "master_timeout 5.0", "xparl_addr or ray_address"),
    ("--store_timeout 5", "store_timeout 5.0", "store"),
    ("--store_fragments 5", "store_fragments 5", "store"),
    ("--store_bytes 5", "store_bytes 5", "store"),
    ("--store_compression zstd", "store_compression zstd", "store"),
    ("--policy_lag 2 --on_loss collect_again", "on_loss collect_again", "policy_lag 0 or 1"),
    ("--policy_lag 2 --straggler_share 0.5", "straggler_share 0.5", "policy_lag 0 or 1"),
    ("--batch_size 512 --rollout_steps 32", "batch_size 512", "no rollout_steps"),
    ("--test_share 0.5 --test_every_steps 9000", "test_share 0.5", "no test_every_steps"),
    ("--opponents coacAI", "opponents coacAI", "family microrts"),
    ("--selfplay_envs 2", "selfplay_envs 2", "family microrts"),
    ("--episodic_life", "episodic_life True", "family atari"),
    ("--sides both", "sides both", "family microrts"),
    ("--map_path x.xml", "map_path x.xml", "family microrts"),
    ("--max_steps 9", "max_steps 9", "family microrts"),
    ("--partial_observability", "partial_observability True", "family microrts"),
    ("--policy unit_selection", "policy unit_selection", "family microrts"),
]


@pytest.mark.parametrize(("arguments", "setting", "needed"), NO_EFFECT, ids=lambda x: x.split()[0])
def test_a_setting_without_effect_is_said_once(arguments, setting, needed):
    config = parse(["--env", "CartPole-v1", *arguments.split()])
    lines = without_effect(config, defaults(config), spaces_of("CartPole-v1"))
    assert len(lines) == 1
    assert lines[0].startswith(f"{setting} has no effect: it needs {needed}")


def test_every_setting_that_needs_another_is_tried_above():
    tried = {setting.split()[0] for _, setting, _ in NO_EFFECT}
    needy = {name for name, hint in HINTS.items() if any(needs(hint))}
    assert needy - tried == {"clip_schedule", "reward_weights"}  # as clip_range and opponents


@pytest.mark.parametrize(
    "arguments",
    [
        "--env Pendulum-v1 --initial_log_std -1 --scale_action --observation_clip 5",
        "--env Pendulum-v1 --distribution beta",
        "--env CartPole-v1 --estimator vtrace --rho_clip 2 --gae_lambda 0.5",
        "--env CartPole-v1 --clip_from start",
        "--env CartPole-v1 --update_epochs 1 --value_epochs 2 --recompute_advantages",
        "--env HalfCheetah-v4 --joint_loss sub_action",
        "--env CartPole-v1 --network transformer --memory_steps 4",
        "--env CartPole-v1 --estimator monte_carlo --rnd_coefficient 1 --gae_lambda 0.5",
        "--env CartPole-v1 --kl_penalty adaptive --desired_kl 0.02 --kl_coefficient 2",
        "--env PongNoFrameskip-v4 --batch_size 512",
    ],
)
def test_settings_that_have_an_effect_are_not_remarked_on(arguments):
    config = parse(arguments.split())
    assert remarks(config, defaults(config), spaces_of(config.env, **config.env_options())) == []


@pytest.mark.parametrize("recipe", recipes())
def test_presets_and_recipes_are_not_remarked_on(recipe):
    """A recipe may set more than its loss needs; the user did not ask for that."""
    content = yaml.safe_load((ROOT / "presets" / "recipes" / f"{recipe}.yaml").read_text())
    for family in content:
        config = parse(["--env", TASKS[family], "--preset", recipe, "--seed", "2"])
        assert remarks(config, defaults(config)) == []


def test_resuming_repeats_no_remark(tmp_path):
    config = parse(["--env", "CartPole-v1", "--mix_weight", "0.2"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"config": config.to_dict()}))
    resumed = parse(["--resume", str(tmp_path)])
    assert remarks(resumed, defaults(resumed)) == []


def test_a_batch_that_does_not_fit_is_remarked_on():
    def said(env_num: int) -> list[str]:
        config = parse(["--env", "HalfCheetah-v4", "--env_num", str(env_num)])
        return remarks(config, defaults(config))

    assert said(8) == said(128) == []
    (line,) = said(33)
    assert line.startswith("a batch is 33 environments x 64 steps = 2112, in minibatches of 264")
    assert "with 64 environments it is 2048, of 256" in line
    assert len(said(5000)) == 1
