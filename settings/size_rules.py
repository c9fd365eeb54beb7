"""The rules of what minibatches and trainers share, once the batch has been fitted. See `settings.rules`."""

from __future__ import annotations

from collections.abc import Iterator

from settings.config import MAY_CHANGE_ON_RESUME, Config, ConfigError


def validate_sizes(config: Config) -> None:
    """Check the sizes of a run's settings against one another.

    Raises:
        ConfigError: for the first rule that is broken.
    """
    for broken in (_batch, _trainers):
        for message in broken(config):
            raise ConfigError(message)


def _batch(config: Config) -> Iterator[str]:
    minibatch = config.minibatch_size
    if config.steps_per_update % minibatch:
        yield (
            f"minibatch_size {minibatch} does not divide the batch of rollout_steps"
            f" {config.rollout_steps} x env_num {config.env_num} = {config.steps_per_update} steps:"
            f" give a divisor, or leave --rollout_steps out"
        )
    trainers = config.trainers if config.trainer_mode == "hogwild" else 1  # that share a batch
    steps = config.steps_per_update // (trainers * minibatch) * config.update_epochs
    steps *= 1 + config.replay_batches
    controls = {
        f"target_kl {config.target_kl}": config.target_kl is not None,
        "learning_rate_schedule kl": config.learning_rate_schedule == "kl",
        "kl_penalty adaptive": config.kl_penalty == "adaptive",
    }
    if steps == 1 and any(controls.values()):
        yield (
            f"{next(name for name, on in controls.items() if on)} follows the KL that an update's gradient steps"
            f" find, but with update_epochs 1 and one minibatch there is one step, which finds 0: give"
            f" --update_epochs 2 or more"
        )
    first_fragment = config.fragment_steps * config.env_num
    if config.warms_up and config.train_total_steps <= first_fragment:
        yield (
            f"train_total_steps is {config.train_total_steps}, but the first {first_fragment} steps"
            f" only initialise the normaliser: give more, or a smaller --batch_size"
        )


def _trainers(config: Config) -> Iterator[str]:
    trainers, hogwild = config.trainers, config.trainer_mode == "hogwild"
    if config.store is not None:  # each has whole batches of whatever samplers send
        return
    if trainers == 1:
        if hogwild:
            yield (
                "trainer_mode is hogwild, but there is one trainer: give --trainers 2 or more, or"
                " --trainer_mode synchronous"
            )
        return
    if config.compile == "beside":
        yield (
            f"compile is beside, but trainers is {trainers}, and only one alone can change to the"
            f" compiled step when it is ready: give --compile auto, or leave --trainers out"
        )
    for name, value, together in (
        ("env_num", config.env_num, config.envs_together),
        ("samplers", config.samplers or 0, 1),
        *([] if hogwild else [("minibatch_size", config.minibatch_size, 1)]),
    ):
        multiple = trainers * together
        if value % multiple:
            nearest = multiple * max(1, round(value / multiple))
            fits = f"a multiple of {multiple}, such as --{name} {nearest}, or "
            if config.resume is not None and name not in MAY_CHANGE_ON_RESUME:
                fits = ""
            yield (
                f"trainers is {trainers}, but {name} {value} cannot be shared evenly: give {fits}another"
                f" --trainers"
            )
    if config.ray_address is not None:
        yield (
            f"trainers is {trainers}, but actors at ray_address {config.ray_address} work for one"
            f" trainer: leave one of them out, or give --xparl_addr"
        )
    yield from _alone(config) if hogwild else _together(config)


def _alone(config: Config) -> Iterator[str]:
    """Where each trainer steps when it likes."""
    if config.normalize_value:
        yield (
            "normalize_value scales the critic by statistics of one trainer, but those of trainer_mode"
            " hogwild move them side by side: give --no_normalize_value"
        )
    share = config.steps_per_update // config.trainers
    if share % config.minibatch_size:
        yield (
            f"minibatch_size {config.minibatch_size} does not divide a trainer's share of the batch,"
            f" {config.steps_per_update} / {config.trainers} = {share}: give a divisor, or"
            f" --batch_size {config.minibatch_size * config.trainers}"
        )


def _together(config: Config) -> Iterator[str]:
    """Where each gradient step is that of all trainers."""
    trainers = config.trainers
    if config.policy_lag > 1:
        yield (
            f"trainers is {trainers}, but with policy_lag {config.policy_lag} each would learn at its"
            f" own pace: give --policy_lag 1, or --trainer_mode hogwild"
        )
    if not config.loss_sums_over_rows:
        yield (
            f"trainers is {trainers}, but the penalty of kl_excess_coefficient"
            f" {config.kl_excess_coefficient} is no sum over rows, and cannot be shared: give"
            f" --kl_excess_coefficient 0, or leave --trainers out"
        )
