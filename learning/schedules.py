"""The coefficients of an update: by how much of the run is over, or by the measured KL."""

from __future__ import annotations

from typing import NamedTuple

from settings.config import Config


class Coefficients(NamedTuple):
    """The numbers of the loss and of the optimiser that change between updates."""

    learning_rate: float
    clip_range: float
    entropy_coefficient: float
    kl_coefficient: float
    mix_weight: float

    def metrics(self, config: Config) -> dict[str, float]:
        """Those that the log shows."""
        shown = {
            "entropy_coefficient": self.entropy_coefficient,
            "learning_rate": self.learning_rate,
        }
        if config.kl_penalty != "none":
            shown["kl_coefficient"] = self.kl_coefficient
        return shown


def controlled_by_kl(config: Config) -> bool:
    """Whether any setting depends on how far an update moves the policy."""
    return (
        config.target_kl is not None
        or config.learning_rate_schedule == "kl"
        or config.kl_penalty == "adaptive"
    )


class Schedules:
    """Gives the coefficients of each update.

    Attributes:
        learning_rate, kl_coefficient: the settings' own, as changed by `adapt` so far.
    """

    def __init__(self, config: Config):
        self.config = config
        self.learning_rate = config.learning_rate
        self.kl_coefficient = config.kl_coefficient

    def at(self, progress: float, update: int) -> Coefficients:
        """The coefficients of update number `update`, `progress` in [0, 1] of the run being over."""
        config, left = self.config, 1.0 - progress
        linear_rate = config.learning_rate_schedule == "linear"
        linear_clip = config.clip_schedule == "linear"
        mix_end = config.mix_weight if config.mix_weight_end is None else config.mix_weight_end
        entropy = {"constant": 1.0, "linear": left, "exponential": config.entropy_decay**update}
        return Coefficients(
            learning_rate=self.learning_rate * (left if linear_rate else 1.0),
            clip_range=config.clip_range * (left if linear_clip else 1.0),
            entropy_coefficient=config.entropy_coefficient * entropy[config.entropy_schedule],
            kl_coefficient=self.kl_coefficient,
            mix_weight=config.mix_weight + progress * (mix_end - config.mix_weight),
        )

    def adapt(self, kl: float) -> None:
        """Keep the KL of an update near desired_kl, by the learning rate or by the penalty.

        Args:
            kl: from the policy at an update's start to those before each gradient step of its last pass.
        """
        desired = self.config.desired_kl
        if self.config.learning_rate_schedule == "kl":
            if kl > 2 * desired:
                self.learning_rate = max(self.learning_rate / 1.5, min(self.learning_rate, 1e-6))
            elif kl < desired / 2:
                self.learning_rate = min(self.learning_rate * 1.5, max(self.learning_rate, 1e-2))
        if self.config.kl_penalty == "adaptive":
            if kl > 1.5 * desired:
                self.kl_coefficient = min(self.kl_coefficient * 2, max(self.kl_coefficient, 1e4))
            elif kl < desired / 1.5:
                self.kl_coefficient = max(self.kl_coefficient / 2, min(self.kl_coefficient, 1e-4))
