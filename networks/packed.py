"""Networks of images on a CPU, with their weights in the layouts that oneDNN computes with."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

# oneDNN takes another kernel for more rows, which sums a dense layer in another order
_MOST_ROWS = 32


class PackedNetwork:
    """A copy of a network's weights for acting, in oneDNN's own layouts.

    torch else arranges the weights anew in every call, which for a few images costs as much as the
    convolutions. Of 4 images and more, the features of each have the same bits in any company.

    Args:
        network: images [B, C, H, W] -> features [B, F], of layers that oneDNN has.
        dtype: of the arithmetic, float32 or bfloat16.
    """

    @torch.no_grad()
    def __init__(self, network: nn.Module, dtype: torch.dtype):
        self.dtype = dtype
        # the copy keeps the network's own parameters until they are packed
        own = {id(parameter): parameter for parameter in network.parameters()}
        self._network = _packed(copy.deepcopy(network, own), dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, F] float32 of images in `dtype`."""
        blocks = images.tensor_split(-(-len(images) // _MOST_ROWS))
        features = [self._network(block.to_mkldnn()).to_dense() for block in blocks]
        return torch.cat(features).float()


class _Convolution(nn.Module):
    """A convolution of images in oneDNN's layout."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype):
        super().__init__()
        padding, weight = layer.padding, layer.weight.to_mkldnn(dtype)
        assert not isinstance(padding, str), "the project's convolutions have numbers"
        self._settings = padding, layer.stride, layer.dilation, layer.groups
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight, *self._settings)
        self._bias = _bias(layer, dtype)

    def forward(self, images: Tensor) -> Tensor:
        return torch.mkldnn_convolution(images, self._weight, self._bias, *self._settings)


class _Dense(nn.Module):
    """A dense layer of features in oneDNN's layout."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self._weight, self._bias = layer.weight.to_mkldnn(dtype), _bias(layer, dtype)

    def forward(self, features: Tensor) -> Tensor:
        return torch._C._nn.mkldnn_linear(features, self._weight, self._bias)


def _bias(layer: nn.Conv2d | nn.Linear, dtype: torch.dtype) -> Tensor | None:
    return None if layer.bias is None else layer.bias.to_mkldnn(dtype)


def _packed(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module with packed layers in the place of its own."""
    if isinstance(module, nn.Conv2d):
        return _Convolution(module, dtype)
    if isinstance(module, nn.Linear):
        return _Dense(module, dtype)
    for name, child in module.named_children():
        setattr(module, name, _packed(child, dtype))
    return module
