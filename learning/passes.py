"""An update's passes over its batch: which part of the model learns in each, and what they measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from common.errors import UserError
from settings.config import Config


class NotFinite(UserError):
    """NaN or infinity appeared in an update. The agent is as it was before it, but for what Hogwild trainers
    share: there the steps before it stay."""


class Statistics(NamedTuple):
    """The numbers that the log shows: of one gradient step, or a column of each for many."""

    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    approx_kl: Tensor  # from the policy that the ratio is taken from
    update_kl: (
        Tensor  # from the policy at the update's start where that is measured, else `approx_kl`
    )
    clip_fraction: Tensor
    grad_norm: Tensor  # before it is clipped

    @classmethod
    def of(cls, table: Tensor) -> Statistics:
        """The columns of a table of `PPO.learn`'s results, one row a gradient step."""
        return cls(*table.unbind(1))

    def means(self) -> dict[str, float]:
        """The columns' means by their names in the log, where `policy_loss` is loss/policy."""
        means = torch.stack([column.mean() for column in self]).tolist()
        names = [f"loss/{n.removesuffix('_loss')}" if n.endswith("_loss") else n
                 for n in self._fields]  # fmt: skip
        return dict(zip(names, means, strict=True))


class Passes:
    """The passes of one update, numbered from 0: iterate, and `add` what each has measured.

    The policy learns in the first `update_epochs` of them, or until one's KL exceeds `target_kl`; the value
    function's own layers in the same ones, or in the first `value_epochs` where that is given.

    Args:
        config: how many there are, and what ends them.

    Attributes:
        of_policy: in how many the policy learns; they become fewer where `target_kl` is exceeded.
    """

    def __init__(self, config: Config):
        self._config = config
        self.of_policy = config.update_epochs
        self._tables: list[Tensor] = []

    def __iter__(self) -> Iterator[int]:
        while len(self._tables) < max(self.of_policy, self._config.value_epochs or 0):
            yield len(self._tables)

    def learning(self, number: int) -> tuple[bool, bool]:
        """Whether the policy, and the value function's own layers, learn in a pass."""
        of_value = self._config.value_epochs
        policy = number < self.of_policy
        return policy, policy if of_value is None else number < of_value

    def add(self, table: Tensor) -> None:
        """What the pass has measured: `Statistics`, one row a gradient step."""
        self._tables.append(table)
        done, most = len(self._tables), self._config.target_kl
        if most is not None and done <= self.of_policy and _update_kl(table) > most:
            self.of_policy = done

    @property
    def update_kl(self) -> Tensor:
        """The mean KL from the policy at the update's start, of the policy's last pass."""
        return _update_kl(self._tables[self.of_policy - 1])

    def metrics(self, update: int) -> dict[str, float]:
        """What all passes have measured; that of the policy is a mean over its own ones.

        Args:
            update: its number.

        Raises:
            NotFinite: if a number is not finite.
        """
        table = torch.cat(self._tables).cpu()
        refuse_not_finite(table, update)
        passes = len(self._tables)
        steps = Statistics.of(table[: len(table) // passes * self.of_policy])
        metrics = steps.means() | {
            "first_minibatch_kl": float(steps.approx_kl[0]),
            "epochs": self.of_policy,
        }
        if self._config.value_epochs is not None:
            metrics["value_epochs"] = self._config.value_epochs
            metrics["loss/value"] = float(Statistics.of(table).value_loss.mean())
        return metrics


def _update_kl(table: Tensor) -> Tensor:
    return Statistics.of(table).update_kl.mean()


def refuse_not_finite(table: Tensor, update: int) -> None:
    """Raise NotFinite if a number in a table of `Statistics` is not finite, and name it.

    Args:
        table: [gradient steps, statistics] on the CPU.
        update: the number of the update.
    """
    wrong = ~table.isfinite()
    if not bool(wrong.any()):
        return
    row = int(wrong.any(1).nonzero()[0])
    names = [name for name, bad in zip(Statistics._fields, wrong[row], strict=True) if bad]
    raise NotFinite(
        f"{', '.join(names)} became NaN or infinite in update {update}, gradient step {row + 1} of"
        f" {len(table)}; the weights are kept as before the update. Try a lower --learning_rate, or"
        f" --reward_transform return_std"
    )
