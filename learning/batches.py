"""A rollout on the learner's device, and its rows as minibatches in random order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from learning.trainers import Trainers
from model import ActorCritic
from networks.images import in_blocks
from networks.trunks import Past, trunk_of
from rollout import Rollout
from settings.config import Config

# bounds of a forward pass over all rows: beyond them its memory costs more time than it saves
_ROWS_AT_ONCE = 4096
_NUMBERS_AT_ONCE = 2**23  # of the observations


class Minibatch(NamedTuple):
    """B transitions. `weight` is 1 for a valid row and 0 for a reset row, which counts in `predicted` alone."""

    obs: Tensor  # [B, ...] raw
    action: Tensor  # [B, ...]
    # under the policy that the ratio is taken from: [B], or [B, K] where the loss is of sub-actions
    behaviour_log_prob: Tensor
    advantage: Tensor  # [B]
    value_target: Tensor  # [B], or [B, 2]: of extrinsic and of intrinsic rewards
    old_value: Tensor  # as the target
    weight: Tensor  # [B]
    action_mask: Tensor | None = None  # [B, A]
    predicted: Tensor | None = None  # [B] 1 for a row that RND's predictor learns from, or 0
    start_log_prob: Tensor | None = None  # [B] of the policy at the update's start, if it is needed
    importance: Tensor | None = None  # [B] weight in the policy's loss; None: 1
    # of the rows of all trainers [4]: their weight, the mean and the standard deviation of their
    # advantages, the number of those that RND's predictor learns from. None: there is one trainer
    whole: Tensor | None = None
    # of a recurrent network, for which B is T * E, step by step: see `Past`
    state: Tensor | None = None  # [E, S]
    begins: Tensor | None = None  # [B] bool

    @property
    def past(self) -> Past | None:
        if self.state is None or self.begins is None:
            return None
        return Past(self.state, self.begins)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on the learner's device; to a GPU it is copied while the CPU goes on."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    # torch gives pinned memory to the next copy once this one is over
    return tensor.pin_memory().to(device, non_blocking=True)


def observations(rollout: Rollout, device: torch.device) -> Tensor:
    """The observations that the policy saw [T+1, N, ...].

    Single frames are uploaded, and the stacks [T+1, N, k, ...] are rebuilt on the device. A stack
    holds no frame from before its episode's reset; such places are zero, as the Atari Learning
    Environment leaves them. `valid[t]` is False where `obs[t + 1]` is the first frame after a
    reset.
    """
    obs = to_device(rollout.obs, device)
    if rollout.history is None:
        return obs
    history = to_device(rollout.history, device)
    past, rows = len(history), len(obs)
    # in memory a pixel's frames are neighbours (channels_last), as convolutions want them
    stacked = obs.new_empty((rows, *obs.shape[1:], past + 1)).movedim(-1, 2)
    for place in range(past + 1):  # the frames that are past - place steps old
        old = min(past - place, rows)
        stacked[:old, :, place] = history[place : place + old]
        stacked[old:, :, place] = obs[: rows - old]
    foreign = [  # the frame that is `age` steps older than row t + 1 + later is of another episode
        (t + 1 + later, n, past - age)
        for t, n in np.argwhere(~rollout.valid).tolist()
        for age in range(1, past + 1)
        for later in range(min(age, rows - t - 1))
    ]
    if foreign:
        stacked[tuple(to_device(np.array(foreign).T.copy(), device))] = 0
    return stacked


def _laid_out(obs: Tensor, config: Config) -> Tensor:
    """Observations [T+1, N, ...] as the network learns from them; curiosity sees them as they are."""
    side = trunk_of(config.network).learns_in_blocks
    if side is None or config.rnd_coefficient > 0:
        return obs
    return in_blocks(obs.flatten(0, 1), side).unflatten(0, obs.shape[:2])


class EpochMemory:
    """Where the minibatches of epochs lie: those of every epoch, and of every update, in the same place.

    Attributes:
        fields: of `Minibatch`, for all rows in the order of an epoch.
        minibatches: views of them; another list where the memory is another one.
    """

    def __init__(self):
        self.fields: dict[str, Tensor] = {}
        self.minibatches: list[tuple[Minibatch, ...]] = []
        self._shapes: dict[str, tuple[torch.Size, torch.dtype]] = {}

    def fit(self, fields: Mapping[str, Tensor]) -> None:
        """Give the memory up where an epoch is of other fields [T, N, ...] than those before it."""
        shapes = {name: (field.shape, field.dtype) for name, field in fields.items()}
        if shapes != self._shapes:
            self.fields, self.minibatches, self._shapes = {}, [], shapes


class Batches:
    """A rollout on the learner's device. An update learns from its first `config.steps_per_rollout`
    rows; the others are there for the estimates.

    A recurrent network learns from whole sequences: a minibatch is all rows of some environments.

    Args:
        config: the sizes.
        rollout: [T, N].
        device: the learner's.
        trainers: that have a part of each minibatch. Default: there is one.
        shares: of a trainer's part of a minibatch, each of which is a `Minibatch`.
        memory: of the epochs of all updates. Default: one of this rollout's epochs.

    Attributes:
        obs: [T+1, N, ...] raw.
        past: of all T + 1 rows, where the network is recurrent.
    """

    def __init__(
        self,
        config: Config,
        rollout: Rollout,
        device: torch.device,
        trainers: Trainers | None = None,
        shares: int = 1,
        memory: EpochMemory | None = None,
    ):
        self.config, self.device = config, device
        self._trainers, self._shares = trainers or Trainers(), shares
        self._size = config.minibatch_size // self._trainers.size
        self._memory, self._fits = memory or EpochMemory(), False
        self.steps, self.envs = config.steps_per_rollout, rollout.reward.shape[1]
        self._new_columns = rollout.new_columns
        self._collected = rollout.valid.any(0)  # [N]
        self.obs = observations(rollout, device)
        self._fields = {
            "obs": _laid_out(self.obs, config),
            "weight": to_device(rollout.valid, device).float(),
        }
        self.put(action=rollout.action, behaviour_log_prob=rollout.behaviour_log_prob)
        if rollout.action_mask is not None:
            self.put(action_mask=rollout.action_mask)
        self.past = None
        if rollout.state is not None:
            begins = np.zeros((len(rollout.obs), self.envs), bool)
            begins[1:] = ~rollout.valid  # the row after a reset row is an episode's first
            self.put(begins=begins)
            self.past = Past(to_device(rollout.state[0], device), self._fields["begins"].flatten())

    def put(self, **fields: np.ndarray | Tensor) -> None:
        """Add fields of `Minibatch` [T, N, ...] before the first epoch, or replace them before a later one."""
        for name, field in fields.items():
            tensor = field if isinstance(field, Tensor) else to_device(field, self.device)
            self._fields[name] = tensor

    def draw_predicted(self, generator: np.random.Generator) -> None:
        """Choose the rows that RND's predictor learns from in an epoch.

        An episode's last observation is in a reset row. A bonus is paid for it as for any other, so it is
        learned from too; only the columns of a sampler that was lost are not.
        """
        chosen = generator.random((len(self.obs) - 1, self.envs)) < self.config.rnd_proportion
        self.put(predicted=(chosen & self._collected).astype(np.float32))

    @property
    def valid_obs(self) -> Tensor:
        """The observations [B, ...] of the valid rows that are learned from, but for replayed ones."""
        rows = slice(self.steps), self._new_columns
        return self.obs[rows][self._fields["weight"][rows] > 0]

    # --- forward passes over all rows
    @torch.no_grad()
    def values(self, value: Callable[[Tensor, Past | None], Tensor]) -> np.ndarray:
        """The values [T+1, N], or [T+1, N, 2] with RND, as `PPO.value` gives them for rows.

        They are needed in numpy, where the estimators are: a download on a GPU, which
        `recompute_advantages` repeats in every epoch.
        """
        rows = self._fields["obs"].flatten(0, 1)
        # as many rows at a time as are new: one compiled graph serves, however many are replayed
        at_once = len(self.obs) * self._new_columns.stop if self.past is None else len(rows)
        values = torch.cat([value(part, self.past) for part in rows.split(at_once)])
        return values.unflatten(0, self.obs.shape[:2]).cpu().numpy()

    @torch.no_grad()
    def log_prob(self, model: ActorCritic) -> Tensor:
        """Log-probabilities of the actions under the model [T, N, ...], as `behaviour_log_prob`."""
        behaviour, past = self._fields["behaviour_log_prob"], None
        names = ("obs", "action", "action_mask")
        rows = [self._fields.get(name) for name in names]
        rows = [row if row is None else row[: len(behaviour)].flatten(0, 1) for row in rows]
        if self.past is not None:
            past = self.past._replace(begins=self.past.begins[: len(behaviour) * self.envs])

        def log_prob(obs: Tensor, action: Tensor, mask: Tensor | None) -> Tensor:
            return model.distribution.sub_log_prob(model.policy(obs, mask, past), action)

        result = in_parts(log_prob, *rows, whole=past is not None)
        result = result.unflatten(0, behaviour.shape[:2])
        return result if behaviour.dim() == 3 else result.sum(-1)

    @torch.no_grad()
    def prediction_error(self, model: ActorCritic) -> np.ndarray | None:
        """RND's error [T, N] for obs[t + 1], to which action[t] led; None without RND."""
        if model.rnd is None:
            return None
        error = in_parts(model.rnd.error, self.obs[1:].flatten(0, 1))
        return error.unflatten(0, (len(self.obs) - 1, self.envs)).cpu().numpy()

    # --- minibatches
    def epoch(self, generator: np.random.Generator) -> list[tuple[Minibatch, ...]]:
        """Every row that is learned from, once, in the generator's order: minibatches in their shares.

        The next epoch's are written over them.
        """
        rows, memory = to_device(self._order(generator), self.device), self._memory
        if not self._fits:
            memory.fit(self._fields)
            self._fits = True
        fields = {
            name: _taken(field[: self.steps].flatten(0, 1), rows, memory.fields.get(name))
            for name, field in self._fields.items()
        }
        if self.past is not None:
            envs = rows.view(-1, self.steps, self._size // self.steps)[:, 0].flatten()
            fields["state"] = _taken(self.past.state, envs, memory.fields.get("state"))
        if self._trainers.size > 1 or self._shares > 1:
            whole = self._whole(fields)
            fields["whole"] = memory.fields.get("whole", whole).copy_(whole)
        assert not memory.fields or fields.keys() == memory.fields.keys(), "a field came too late"
        if not memory.minibatches:
            memory.fields, memory.minibatches = fields, self._parted(fields)
        return memory.minibatches

    def _parted(self, fields: Mapping[str, Tensor]) -> list[tuple[Minibatch, ...]]:
        """Views of rows in an epoch's order."""
        size = self._size // self._shares
        sizes = {"state": self._size // self.steps, "whole": 1}
        parts = {name: field.split(sizes.get(name, size)) for name, field in fields.items()}
        if "whole" in parts:  # all shares of a minibatch have the same
            parts["whole"] = [one[0] for one in parts["whole"] for _ in range(self._shares)]
        shares = [
            Minibatch(**dict[str, Any](zip(parts, share, strict=True)))
            for share in zip(*parts.values(), strict=True)
        ]
        return [tuple(shares[n : n + self._shares]) for n in range(0, len(shares), self._shares)]

    def _whole(self, fields: Mapping[str, Tensor]) -> Tensor:
        """What is to be known of each whole minibatch: `Minibatch.whole` [minibatches, 4]."""
        names = ("weight", "advantage", "predicted" if "predicted" in fields else "weight")
        weight, advantage, predicted = (fields[n].double().view(-1, self._size) for n in names)
        weighted = weight * advantage
        sums = torch.stack([weight, weighted, weighted * advantage, predicted]).sum(-1)
        self._trainers.sum(sums)
        total = sums[0].clamp(min=1.0)
        mean = sums[1] / total
        std = (sums[2] / total - mean * mean).clamp(min=0.0).sqrt()
        return torch.stack([total, mean, std, sums[3].clamp(min=1.0)], -1).float()

    def _order(self, generator: np.random.Generator) -> np.ndarray:
        """The rows [T * N] of all minibatches, one minibatch after the other."""
        if self.past is None:
            return generator.permutation(self.steps * self.envs)
        return self._rows_of(generator.permutation(self.envs), self._size // self.steps)

    def _rows_of(self, envs: np.ndarray, of_each: int) -> np.ndarray:
        """The rows [T * N] of minibatches of `of_each` environments each, step by step."""
        first_rows = np.arange(self.steps)[:, np.newaxis] * self.envs
        parts = [envs[first : first + of_each] for first in range(0, len(envs), of_each)]
        return np.concatenate([(first_rows + part).ravel() for part in parts])


def _taken(rows: Tensor, order: Tensor, place: Tensor | None) -> Tensor:
    """Rows [B, ...] in an order, laid out in memory as they were; `place`: where to put them."""
    if rows.dim() == 4 and rows.is_contiguous(memory_format=torch.channels_last):
        stored = None if place is None else place.permute(0, 2, 3, 1)
        return torch.index_select(rows.permute(0, 2, 3, 1), 0, order, out=stored).permute(
            0, 3, 1, 2
        )
    return torch.index_select(rows, 0, order, out=place)


def equal_parts(rows: int, least: int) -> int:
    """Into how many parts a pass over all rows is cut: a multiple of `least` that divides the rows, with
    few enough rows in each, or else 1."""
    most = 4 * -(-rows // _ROWS_AT_ONCE) + least
    fit = (n for n in range(least, most, least) if rows % n == 0 and rows // n <= _ROWS_AT_ONCE)
    return next(fit, 1)


def in_parts(
    function: Callable[..., Tensor], *tensors: Tensor | None, whole: bool = False
) -> Tensor:
    """A function of rows [B, ...], computed for some rows at a time, or for the whole."""
    assert tensors[0] is not None
    rows = len(tensors[0])
    numbers = max(1, math.prod(tensors[0].shape[1:]))  # observations may be empty
    some = min(_ROWS_AT_ONCE, max(1, _NUMBERS_AT_ONCE // numbers))
    at_once = rows if whole else some
    parts = []
    for first in range(0, rows, at_once):
        part = slice(first, first + at_once)
        parts.append(function(*[None if t is None else t[part] for t in tensors]))
    return torch.cat(parts)
