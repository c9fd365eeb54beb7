"""What networks ask of observations and of other settings."""

from __future__ import annotations

from collections.abc import Iterator

from envs import Spaces
from networks.images import LEAST_SIDE
from networks.layers import WrongNetwork
from networks.trunks import Trunk, trunk_of
from settings.config import Config, ConfigError


def refuse_unfit(env_spaces: Spaces, config: Config) -> None:
    """Refuse settings of the network that do not fit the observations or one another.

    Raises:
        WrongNetwork, ConfigError: with the remedy.
    """
    observation = env_spaces.observation
    image = len(observation.shape) == 3
    if image and config.normalize_observation:
        raise WrongNetwork(
            "normalize_observation is for vectors, images are scaled as they are: leave it out"
        )
    if image and int(observation.high.max()) == 1 and config.rnd_coefficient > 0:
        raise WrongNetwork(
            f"rnd_coefficient is {config.rnd_coefficient}, but curiosity is for vectors and images,"
            f" not for planes of zeros and ones: leave it out"
        )
    if image and min(observation.shape[1:]) < LEAST_SIDE and config.rnd_coefficient > 0:
        raise WrongNetwork(
            f"rnd_coefficient is {config.rnd_coefficient}, but curiosity is for images of at least"
            f" {LEAST_SIDE}x{LEAST_SIDE}, and these are {observation.shape[1:]}: leave it out"
        )
    if env_spaces.privileged and config.shared_trunk:
        raise WrongNetwork(
            f"the last {env_spaces.privileged} entries of this environment's observations are the"
            f" critic's alone, which cannot be in one trunk with the policy: leave"
            f" --shared_trunk out"
        )
    for broken in _rules(trunk_of(config.network), config):
        raise ConfigError(broken)


def _rules(trunk: Trunk, config: Config) -> Iterator[str]:
    """What a network asks of other settings, as sentences where it is not so."""
    name, steps = config.network, config.steps_per_rollout
    if trunk.remembers and config.minibatch_size % steps:
        yield (
            f"network {name} learns from whole sequences, but minibatch_size"
            f" {config.minibatch_size} is no multiple of the {steps} steps of each environment: give"
            f" a multiple, or --rollout_steps"
        )
    if trunk.remembers and config.minibatch_size // steps % config.trainers_in_step:
        yield (
            f"network {name} learns from whole sequences, but the {config.minibatch_size // steps}"
            f" of a minibatch cannot be shared by {config.trainers} trainers: give another"
            f" --minibatch_size, or another --trainers"
        )
    if trunk.remembers and config.carried_steps:
        yield (
            f"carried_steps is {config.carried_steps}, but network {name} has a state and cannot"
            f" carry steps over: give --carried_steps 0"
        )
    if trunk.remembers and config.precision == "bfloat16":
        yield (
            f"precision bfloat16 was given, but network {name} computes in float32 alone: leave it"
            f" out, or give another --network"
        )
    if trunk.per_cell and config.noisy_layers:
        yield (
            f"noisy_layers was given, but network {name} has no layer that can be perturbed: leave"
            f" it out, or give another --network"
        )
