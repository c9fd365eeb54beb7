"""The settings of a run as one flat dataclass, and what follows from them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, get_type_hints

from common.errors import UserError
from common.values import convert
from envs import FamilyOptions, family, family_of
from settings import learning, owners
from settings.store_url import without_password

MOST_OFF = 1.5  # factor by which a batch may miss batch_size before minibatches change their size


class ConfigError(UserError):
    """A setting that cannot work. The message names the value, the rule and the remedy."""


@dataclass
class Config(
    learning.Ppo,
    learning.Batch,
    learning.Rewards,
    FamilyOptions,
    learning.Networks,
    owners.Files,
    owners.Evaluation,
    owners.Machine,
    owners.Store,
    owners.Cluster,
    owners.Length,
    owners.Task,
):
    """Everything that a run depends on. (Fields come in the order of the bases, from the last.)

    Raises:
        ConfigError: for a value of the wrong type, or beyond its bounds. Values that can mean one
            thing only are converted (`common.values.convert`).
    """

    def __post_init__(self) -> None:
        for name, hint in HINTS.items():
            value = getattr(self, name)
            try:
                setattr(self, name, convert(hint, value))
            except ValueError as rule:
                raise ConfigError(f"{name} is {value}, but must be {rule}") from None
        if self.store is not None:
            self.store = without_password(self.store)

    @property
    def family(self) -> str:
        """The family of the environment (`envs.family_of`)."""
        return family_of(self.env)

    @property
    def steps_per_rollout(self) -> int:
        """Rows that an update learns from. A whole number of minibatches fits in T * env_num."""
        if self.rollout_steps is not None:
            return self.rollout_steps
        multiple = self.minibatch_size // math.gcd(self.minibatch_size, self.env_num)
        return multiple * max(1, round(self.batch_size / self.env_num / multiple))

    @property
    def fragment_steps(self) -> int:
        """Rows of a fragment: those that are learned from, and those that are carried over."""
        return self.steps_per_rollout + self.carried_steps

    @property
    def steps_per_update(self) -> int:
        return self.steps_per_rollout * self.env_num

    @property
    def updates(self) -> int:
        """Updates in the run, about: the reset rows of ended episodes are not counted as steps."""
        return max(1, math.ceil(self.train_total_steps / self.steps_per_update))

    @property
    def most_epochs(self) -> int:
        """Passes over a batch, those of the policy or the value function alone among them."""
        return max(self.update_epochs, self.value_epochs or 0)

    @property
    def times_learned(self) -> int:
        """Rows that an update's passes take in all, by the rows that are new."""
        return self.most_epochs * (1 + self.replay_batches)

    @property
    def warms_up(self) -> bool:
        """Whether the first fragment is not learned from, but initialises normalisers."""
        return self.normalize_observation or self.rnd_coefficient > 0

    @property
    def updates_per_checkpoint(self) -> int:
        return max(1, round(self.updates * self.checkpoint_share))

    @property
    def checkpoint_seconds(self) -> float:
        return 60 * self.checkpoint_minutes

    @property
    def steps_per_evaluation(self) -> int:
        return self.test_every_steps or max(1, round(self.train_total_steps * self.test_share))

    def env_options(self, envs: range | None = None) -> dict[str, Any]:
        """What `make_vec_env` needs beside the id and the number of environments.

        Args:
            envs: which of the run's environments are made. Default: any one, to look at its spaces.
        """
        return self._memory | family(self.env).options(self, envs)

    def evaluation_options(
        self, episodes: range, opponents: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The same for evaluation episodes, one an environment.

        Args:
            opponents: whom to play against in turn, in a game. (): the run's own.
        """
        return self._memory | family(self.env).evaluation_options(self, episodes, opponents)

    @property
    def _memory(self) -> dict[str, Any]:
        return {"memory": self.memory_steps} if self.network == "transformer" else {}

    @property
    def envs_together(self) -> int:
        """Environments that no two samplers can share, such as the two sides of a game."""
        return family(self.env).envs_together(self)

    @property
    def trainers_in_step(self) -> int:
        """How many trainers take each gradient step together."""
        return self.trainers if self.trainer_mode == "synchronous" and self.store is None else 1

    @property
    def loss_sums_over_rows(self) -> bool:
        """Whether the loss of a minibatch is the sum of its parts' losses."""
        return self.kl_penalty == "none" or not self.kl_excess_coefficient

    def default_samplers(self, available: int) -> int:
        """Of one trainer, as many as its `available` processors allow; asynchronous ones share
        environments evenly."""
        shares = self.env_num // self.trainers // self.envs_together
        most = min(shares, available)
        if self.policy_lag <= 1:
            return most
        return max((n for n in range(1, most + 1) if shares % n == 0), default=1)

    def to_dict(self) -> dict[str, Any]:
        """The fields as YAML and JSON can hold them."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


HINTS: dict[str, Any] = get_type_hints(Config, include_extras=True)
FIELDS = set(HINTS)

# `--resume` may change how long a run is, where it runs, and what it shows and saves of itself.
_CHANGEABLE = (
    owners.Length, owners.Cluster, owners.Store, owners.Machine, owners.Evaluation, owners.Files,
)  # fmt: skip
MAY_CHANGE_ON_RESUME = {field.name for owner in _CHANGEABLE for field in dataclasses.fields(owner)}
MAY_CHANGE_ON_RESUME -= {"run_dir", "config"}
# what an update may read: what else it is given changes where and how long it computes
_NOT_LEARNING = {"seed", "compile", "continuous_action", "preset", "initial_weights"} | {
    field.name
    for owner in _CHANGEABLE
    if owner is not owners.Machine
    for field in dataclasses.fields(owner)
}
# how a run learns, and by what kind of network: a published recipe says it, and no preset of an environment
# beside it; which network fits the observations is the environment's matter
OF_LEARNING = {
    field.name
    for owner in (learning.Networks, learning.Rewards, learning.Batch, learning.Ppo)
    for field in dataclasses.fields(owner)
} - {"network", "memory_steps"}
# what goes with a model's weights, which mean something else by another value
OF_WEIGHTS = {field.name for field in dataclasses.fields(learning.Networks)} - {"initial_log_std"}
OF_WEIGHTS |= {"normalize_value"}
# What a trainer that joins a run decides for itself.
MAY_CHANGE_ON_JOIN = {"trust", "store", "join", "store_timeout"} | {
    field.name for field in dataclasses.fields(owners.Machine)
}


def learning_settings(config: Config) -> dict[str, Any]:
    """The settings that a gradient step may follow, as JSON can hold them."""
    return {n: value for n, value in config.to_dict().items() if n not in _NOT_LEARNING}
