"""Random Network Distillation (Burda et al. 2018, arXiv 1810.12894): a bonus for what is new."""

from __future__ import annotations

import math

from torch import Tensor, nn

from networks.images import nature_cnn
from networks.layers import Gathered, Linear, RunningMoments, alone, mlp, orthogonal

_FEATURES = 64
_CLIP = 5.0  # bound of a normalised observation


class RND(nn.Module):
    """A network that learns to predict the output of a fixed random one.

    Args:
        obs_shape: of one raw observation. Of the last observations of an episode [steps, inputs],
            only the newest counts.
        stacks_frames: an image [C, H, W] is a stack of frames, of which only the newest counts.
    """

    def __init__(self, obs_shape: tuple[int, ...], stacks_frames: bool = False):
        super().__init__()
        self.looks_back = len(obs_shape) == 2
        self.stacks_frames = stacks_frames and not self.looks_back
        newest = obs_shape[1:] if self.looks_back else obs_shape
        if self.stacks_frames:
            newest = (1, *obs_shape[1:])
        self.moments = RunningMoments(newest)

        def trunk() -> tuple[nn.Module, int]:
            if len(newest) == 3:
                return nature_cnn(newest), 512
            return mlp(newest[0], (128,), "relu"), 128

        body, width = trunk()
        self.target = nn.Sequential(body, orthogonal(Linear(width, _FEATURES), math.sqrt(2)))
        self.target.requires_grad_(False)
        body, width = trunk()
        self.predictor = nn.Sequential(
            body, orthogonal(Linear(width, 128), math.sqrt(2)), nn.ReLU(),
            orthogonal(Linear(128, _FEATURES), math.sqrt(2)),
        )  # fmt: skip

    def _newest(self, obs: Tensor) -> Tensor:
        if self.looks_back:
            return obs[:, -1]
        return obs[:, -1:] if self.stacks_frames else obs

    def update(self, obs: Tensor, gather: Gathered = alone) -> None:
        """Merge observations [B, ...] into the moments that scale them."""
        self.moments.update(self._newest(obs), gather)

    def error(self, obs: Tensor) -> Tensor:
        """The predictor's squared error [B], averaged over features: large where it has learned little."""
        x = self.moments(self._newest(obs), _CLIP)
        return ((self.predictor(x) - self.target(x)) ** 2).mean(-1)
