"""The rules that the settings of a run must keep, each with its remedy."""

from __future__ import annotations

from envs import family_of
from envs.microrts.game import REWARDS, assign_opponents
from settings.config import Config, ConfigError

_AT_LEAST = {
    "env_num": 1, "seed": 0, "train_total_steps": 1, "samplers": 0, "policy_lag": 0,
    "torch_threads": 0, "test_every_steps": 1, "test_episodes": 1, "test_max_steps": 1,
    "batch_size": 1, "rollout_steps": 1, "minibatch_size": 1, "update_epochs": 1,
    "max_steps": 1, "selfplay_envs": 0, "carried_steps": 0, "max_minutes": 0, "rnd_coefficient": 0, "memory_steps": 1, "dual_clip": 1,
    "kl_coefficient": 0, "kl_excess_coefficient": 0, "rho_clip": 0, "c_clip": 0,
    "entropy_coefficient": 0, "value_coefficient": 0, "max_grad_norm": 0, "target_kl": 0,
    "reward_clip": 0, "observation_clip": 0, "value_clip": 0, "adam_eps": 0,
}  # fmt: skip


def validate(config: Config) -> None:
    """Check a run's settings against one another.

    Raises:
        ConfigError: for the first rule that is broken.
    """
    for name, least in _AT_LEAST.items():
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise ConfigError(f"{name} is {value}, but must be at least {least}")
    for name in (
        "gamma",
        "gae_lambda",
        "test_share",
        "checkpoint_share",
        "rnd_gamma",
        "rnd_proportion",
        "mix_weight",
        "entropy_decay",
    ):
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} is {value}, but must lie between 0 and 1")
    for name in ("test_share", "checkpoint_share", "learning_rate", "clip_range"):
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} is {getattr(config, name)}, but must be greater than 0")
    if config.policy_lag > 1 and config.samplers == 0:
        raise ConfigError(
            f"policy_lag is {config.policy_lag}, but samplers 0 puts the environments in the"
            f" learner's own process, where nothing overlaps: give --samplers 1 or more"
        )
    if config.policy_lag > 1 and config.samplers and config.env_num % config.samplers:
        raise ConfigError(
            f"policy_lag {config.policy_lag} needs equally many environments in each sampler, but"
            f" {config.samplers} samplers do not divide env_num {config.env_num}: give --samplers"
            f" {config.default_samplers(config.samplers)}, or another --env_num"
        )
    most = config.env_num // config.envs_together
    if config.samplers is not None and config.samplers > most:
        pairs = " in pairs" if config.envs_together > 1 else ""
        raise ConfigError(
            f"samplers is {config.samplers}, but there are only {config.env_num} environments{pairs}"
            f" to spread over them: give --samplers {most} or fewer, or a larger --env_num"
        )
    if len(config.reward_weights) != len(REWARDS):
        raise ConfigError(
            f"reward_weights {config.reward_weights} must be {len(REWARDS)} numbers, of"
            f" {', '.join(REWARDS)}"
        )
    if family_of(config.env) == "microrts":
        assign_opponents(config.opponents, config.env_num, config.selfplay_envs)
        if config.env_num % config.envs_together:
            raise ConfigError(f"env_num is {config.env_num}, but must be even with selfplay_envs")
    if config.batch_size % config.minibatch_size and config.rollout_steps is None:
        raise ConfigError(
            f"minibatch_size {config.minibatch_size} does not divide batch_size {config.batch_size}:"
            f" give a divisor, or --batch_size"
            f" {config.minibatch_size * max(1, round(config.batch_size / config.minibatch_size))}"
        )
    if config.steps_per_update % config.minibatch_size:
        raise ConfigError(
            f"minibatch_size {config.minibatch_size} does not divide the batch of rollout_steps"
            f" {config.rollout_steps} x env_num {config.env_num} = {config.steps_per_update} steps:"
            f" give a divisor, or leave --rollout_steps out"
        )
    steps = config.steps_per_rollout
    if config.network == "lstm" and config.minibatch_size % steps:
        raise ConfigError(
            f"network lstm learns from whole sequences, but minibatch_size {config.minibatch_size} is"
            f" no multiple of the {steps} steps of each environment: give a multiple, or"
            f" --rollout_steps"
        )
    if config.carried_steps and (config.network == "lstm" or config.policy_lag > 1):
        raise ConfigError(
            f"carried_steps is {config.carried_steps}, but network lstm and policy_lag 2 or more"
            f" cannot carry steps over: leave it out"
        )
    if config.joint_loss != "compound" and config.kl_penalty != "none":
        raise ConfigError(
            f"joint_loss {config.joint_loss} says what is clipped, but kl_penalty"
            f" {config.kl_penalty} clips nothing: give one of them"
        )
