"""The rules that the settings of a run keep together, each with its remedy.

What a setting may be by itself, and the settings without which it has no effect, stands in its
annotation: see `settings.owners`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from gymnasium import spaces

from common.values import is_port, needs
from envs import Spaces, family
from settings.config import HINTS, MOST_OFF, Config, ConfigError
from settings.fitting import fitted
from settings.store_url import EMBEDDED, RUN_ID, parse


def validate(config: Config) -> None:
    """Check a run's settings against one another.

    Raises:
        ConfigError: for the first rule that is broken.
        WrongOption: for the first that the environment's family has.
    """
    for broken in (_samplers, _minibatch, _contradictions, _store):
        for message in broken(config):
            raise ConfigError(message)
    family(config.env).validate(config)


def _samplers(config: Config) -> Iterator[str]:
    samplers, env_num = config.samplers, config.env_num
    if samplers == 0 and config.policy_lag > 1 and config.store is None:
        yield (
            f"policy_lag is {config.policy_lag}, but samplers 0 puts the environments in the"
            f" learner's own process, where nothing overlaps: give --samplers 1 or more"
        )
    for name in ("xparl_addr", "ray_address"):
        address = getattr(config, name)
        if samplers == 0 and address is not None:
            yield (
                f"samplers 0 puts the environments in the learner's own process, but {name}"
                f" {address} asks for a cluster: leave one of them out"
            )
    at_cluster = config.xparl_addr is not None or config.ray_address is not None
    if at_cluster and config.wait_for_cpus is not None and samplers is None:
        yield (
            f"wait_for_cpus is {config.wait_for_cpus:g}, but without samplers a run has as many as there are"
            f" free CPUs at its start: give --samplers too"
        )
    if config.ray_address is not None:
        if config.xparl_addr is not None:
            yield (
                f"xparl_addr {config.xparl_addr} and ray_address {config.ray_address} name two"
                f" clusters, but samplers run at one: leave one of them out"
            )
        host, _, port = config.ray_address.rpartition(":")
        if config.ray_address != "auto" and not (host and is_port(port) and "/" not in host):
            yield (
                f"ray_address is {config.ray_address!r}, but must be auto or HOST:PORT, such as"
                f" 10.0.0.1:6379, which `ray start --head` prints"
            )
    pairs = " in pairs" if config.envs_together > 1 else ""
    if samplers and config.policy_lag > 1 and env_num % (samplers * config.envs_together):
        # trainers of a store share no samplers
        one = dataclasses.replace(config, trainers=1) if config.store is not None else config
        even = one.trainers * one.default_samplers(max(1, samplers // one.trainers))
        fits = env_num % (even * config.envs_together) == 0
        yield (
            f"policy_lag {config.policy_lag} needs equally many environments in each sampler, but"
            f" {samplers} samplers do not divide env_num {env_num}{pairs}: give"
            f" {f'--samplers {even}, or ' if fits else ''}another --env_num"
        )
    most = env_num // config.envs_together
    if samplers is not None and samplers > most:
        more = ", or a larger --env_num" if config.resume is None else ""
        yield (
            f"samplers is {samplers}, but there are only {env_num} environments{pairs}"
            f" to spread over them: give --samplers {most} or fewer{more}"
        )


def _minibatch(config: Config) -> Iterator[str]:
    minibatch = config.minibatch_size
    if config.rollout_steps is None and config.batch_size % minibatch:
        divisible = minibatch * max(1, round(config.batch_size / minibatch))
        yield (
            f"minibatch_size {minibatch} does not divide batch_size {config.batch_size}: give a"
            f" divisor, or --batch_size {divisible}"
        )


def _contradictions(config: Config) -> Iterator[str]:
    if config.kl_penalty != "none" and config.joint_loss != "compound":
        yield (
            f"joint_loss {config.joint_loss} says what is clipped, but kl_penalty"
            f" {config.kl_penalty} clips nothing: give one of them"
        )
    if config.kl_penalty != "none" and config.dual_clip is not None:
        yield (
            f"dual_clip {config.dual_clip} bounds a clipped loss, but kl_penalty"
            f" {config.kl_penalty} clips nothing: give one of them"
        )
    if config.kl_penalty == "adaptive" and config.kl_coefficient == 0 and config.resume is None:
        yield (
            "kl_coefficient is 0, which kl_penalty adaptive would double and halve for ever: give one above 0,"
            " or --kl_penalty none"
        )
    # an older run is resumed as it was
    if (
        config.state_dependent_std
        and config.distribution in ("auto", "normal", "tanh_normal")
        and config.resume is None
        and not -5 <= config.initial_log_std <= 2
    ):
        yield (
            f"initial_log_std is {config.initial_log_std:g}, but with state_dependent_std it is bounded, and does"
            f" not learn there: give one from -5 to 2"
        )
    yield from _replay(config)
    if "none" in config.track and len(set(config.track)) > 1:
        yield (
            f"track is {' '.join(config.track)}, but none leaves the others out: give none alone, or"
            f" the others"
        )


def _replay(config: Config) -> Iterator[str]:
    drawn, kept = config.replay_batches, config.replay_size
    if drawn == 0:
        return
    if kept is not None and kept < drawn:
        yield (
            f"replay_size is {kept}, but replay_batches {drawn} are drawn from them: give"
            f" --replay_size {drawn} or more, or leave it out"
        )
    for name in ("rnd_coefficient", "carried_steps"):
        if getattr(config, name):
            why = "is for what is new" if name == "rnd_coefficient" else "needs whole streams"
            yield (
                f"replay_batches is {drawn}, but {name} {getattr(config, name)} {why}: give --{name}"
                f" 0, or leave --replay_batches out"
            )
    if config.trainers > 1 and config.store is None:
        yield (
            f"replay_batches is {drawn}, but trainers is {config.trainers}, and a checkpoint has the"
            f" batches of one: leave one of them out, or give --store"
        )


def _store(config: Config) -> Iterator[str]:
    if config.store is None:
        if config.join is not None:
            yield f"join is {config.join}, but the run is in a store: give its URL as --store"
        return
    if config.store != EMBEDDED:
        try:
            parse(config.store)
        except ValueError as rule:
            yield f"store is not shown, as it may hold a password, but it must be {rule}"
    if config.join is not None and not re.fullmatch(RUN_ID, config.join):
        yield (
            f"join is {config.join!r}, but the id of a run has letters, digits, -, _ and . alone: give"
            f" the one that the run has printed"
        )
    for name in ("xparl_addr", "ray_address"):
        address = getattr(config, name)
        if address is not None:
            yield (
                f"store {config.store} brings its own samplers, but {name} {address} asks for those"
                f" of a cluster: leave one of them out, and start samplers there by `python -m"
                f" cluster.store sample`"
            )
    if config.policy_lag < 2 and config.resume is not None:
        yield (
            f"the run in {config.resume} has policy_lag {config.policy_lag}, but fragments of a store are"
            f" learned from as they arrive: it cannot go on in a store, leave --store out"
        )
    if config.policy_lag < 2:
        yield (
            f"policy_lag is {config.policy_lag}, but fragments of a store are learned from as they"
            f" arrive: give --policy_lag 2 or more"
        )
    if config.store == EMBEDDED and config.join is not None:
        yield (
            f"store is embedded, but the run {config.join} that this trainer joins has a server"
            f" already: give the URL that it has printed"
        )
    if config.trainers > 1 and config.join is not None:
        yield (
            f"trainers is {config.trainers}, but join {config.join} adds one trainer to a run: leave"
            f" one of them out"
        )
    if config.normalize_value:
        remedy = "give --no_normalize_value"
        if config.initial_weights is not None and config.resume is None:
            remedy = f"the weights in {config.initial_weights} need it, so leave --initial_weights or --store out"
        yield (
            f"normalize_value scales the critic by statistics of one trainer, but the trainers of a"
            f" store move them side by side: {remedy}"
        )
    if config.carried_steps:
        yield (
            f"carried_steps is {config.carried_steps}, but the fragment that they are carried to may be"
            f" another trainer's: give --carried_steps 0"
        )
    if config.trainer_mode == "hogwild":
        yield (
            f"trainer_mode hogwild has one model in memory, but store {config.store} has it in the"
            f" store: leave one of them out"
        )


def remarks(config: Config, defaults: Config, env_spaces: Spaces | None = None) -> list[str]:
    """What a user should hear at the start of a run, one line each.

    Args:
        config: the settings of a run.
        defaults: what they would be if nothing had been given (`settings.sources.defaults`). What a
            preset or a recipe sets is in both, and so is never remarked on.
        env_spaces: of the run's environment; they tell which distribution is taken.
    """
    lines = without_effect(config, defaults, env_spaces)
    change = config.steps_per_update / defaults.steps_per_update
    fits = 1 / MOST_OFF <= change <= MOST_OFF and config.minibatch_size == defaults.minibatch_size
    other = f"{defaults.env_num} environments" if config.env_num != defaults.env_num else ""
    if not other and config.network != defaults.network:
        unfitted = dataclasses.replace(
            config, batch_size=defaults.batch_size, minibatch_size=defaults.minibatch_size
        )
        own = fitted(unfitted, ())  # what follows from the network, and was not given
        if (config.batch_size, config.minibatch_size) == (own.batch_size, own.minibatch_size):
            other = f"network {defaults.network}"
    if other and not fits:
        lines.append(
            f"a batch is {config.env_num} environments x {config.steps_per_rollout} steps ="
            f" {config.steps_per_update}, in minibatches of {config.minibatch_size}; with {other} it is"
            f" {defaults.steps_per_update}, of {defaults.minibatch_size}"
        )
    return lines


def without_effect(config: Config, defaults: Config, env_spaces: Spaces | None = None) -> list[str]:
    """Say which settings were given but change nothing, one line each: see `remarks`."""
    if env_spaces is not None and config.distribution == "auto":
        continuous = isinstance(env_spaces.action, spaces.Box)
        config = dataclasses.replace(config, distribution="normal" if continuous else "categorical")
    lines = []
    for name, hint in HINTS.items():
        value = getattr(config, name)
        if name == "distribution" or value == getattr(defaults, name):
            continue
        missing = [str(need) for need in needs(hint) if not need.hold(config)]
        missing += _missing_numbers(name, config, env_spaces)
        if missing:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            lines.append(f"{name} {shown} has no effect: it needs {' and '.join(missing)}")
    return lines


def _missing_numbers(name: str, config: Config, env_spaces: Spaces | None) -> Iterator[str]:
    """What a setting needs that is no value of another one (`Needs`)."""
    if name == "target_kl" and config.update_epochs == 1:
        yield "update_epochs of 2 or more"
    passes = max(config.update_epochs, config.value_epochs or 0)
    if name == "recompute_advantages" and config.recompute_advantages and passes == 1:
        yield "update_epochs of 2 or more"
    if name == "joint_loss" and env_spaces is not None and _is_one_choice(env_spaces.action):
        yield "actions of several parts"


def _is_one_choice(action: spaces.Space) -> bool:
    return isinstance(action, spaces.Discrete) or action.shape == (1,)
