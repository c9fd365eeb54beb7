"""From raw observations to the numbers that networks take."""

from __future__ import annotations

import torch
from torch import Tensor

from envs import Spaces
from networks.layers import Gathered, RunningMoments, alone
from settings.config import Config


class Observations:
    """Scales observations, and keeps the critic's own part from the policy.

    The number of an observation's axes says what it is:

    - 1: a vector. Its last `privileged` entries are for the critic alone.
    - 2: the last observations of an episode [steps, inputs + 1], a mark beside each.
    - 3: an image of bytes [C, H, W], scaled to [0, 1]; where its bound is 1, planes of zeros and
      ones [H, W, C].

    Args:
        env_spaces: observations as the policy sees them (stacks included).
        config: whether and how vectors are normalised.

    Attributes:
        shape, policy_shape: of one observation, as the critic's and the policy's networks take it.
        moments: the running moments of vectors, where they are normalised. A module, so the model
            has it too.
    """

    def __init__(self, env_spaces: Spaces, config: Config):
        raw = env_spaces.observation.shape
        self.privileged = env_spaces.privileged
        self.image, self.looks_back = len(raw) == 3, len(raw) == 2
        self.planes = self.image and int(env_spaces.observation.high.max()) == 1
        self.shape = (raw[2], *raw[:2]) if self.planes else raw
        self.policy_shape = (*self.shape[:-1], self.shape[-1] - self.privileged)
        self.clip = config.observation_clip
        self.moments: RunningMoments | None = None
        if config.normalize_observation:
            # all observations of a stack are scaled alike, and the mark beside each is not scaled
            self.moments = RunningMoments((raw[1] - 1,) if self.looks_back else raw)

    def __call__(self, obs: Tensor, images_in: torch.dtype = torch.float32) -> Tensor:
        """Raw observations [B, ...] as the critic's network takes them: vectors in float32.

        Args:
            images_in: dtype of images; in bfloat16 they have the bits to which autocast rounds float32.
        """
        if self.planes:
            return obs.permute(0, 3, 1, 2).to(images_in)
        if self.image:
            return obs.to(images_in).div_(255.0)
        if self.moments is None:
            return obs
        if self.looks_back:
            return torch.cat([self.moments(obs[..., :-1], self.clip), obs[..., -1:]], -1)
        return self.moments(obs, self.clip)

    def for_policy(self, obs: Tensor) -> Tensor:
        """The policy's part of what `__call__` returned."""
        return obs[..., : -self.privileged] if self.privileged else obs

    def update(self, obs: Tensor, gather: Gathered = alone) -> None:
        """Merge a batch of raw observations [B, ...] into the running moments."""
        if self.moments is not None:
            self.moments.update(obs[:, -1, :-1] if self.looks_back else obs, gather)
