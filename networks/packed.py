"""Networks of images on the CPU, with their weights in the order that its instructions take them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.mkldnn import to_mkldnn


class PackedNetwork:
    """A copy of a network of images for acting, in oneDNN's own layouts.

    torch else arranges the weights anew in every call, which for a few images costs as much as the
    convolutions.

    Args:
        network: images [B, C, H, W] -> features [B, F].
        dtype: of the arithmetic, float32 or bfloat16.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        self.dtype = dtype
        self._network = to_mkldnn(copy.deepcopy(network).eval(), dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, F] float32 of images in `dtype`."""
        return self._network(images.to_mkldnn()).to_dense().float()
