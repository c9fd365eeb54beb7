"""Small perceptrons forward on the CPU, compiled: torch's dispatch costs more than the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numba
import numpy as np
from torch import nn

from layers import RunningMoments, Tanh

_ACTIVATIONS: dict[type[nn.Module], int] = {Tanh: 0, nn.ReLU: 1, nn.ELU: 2, nn.SiLU: 3}
_NONE = np.zeros(0)


def perceptron(
    obs: np.ndarray, moments: RunningMoments | None, clip: float, layers: Sequence[nn.Module]
) -> np.ndarray:
    """What a stack of linear layers computes: [B, inputs] -> [B, outputs] float32.

    As `Linear`, it treats each row alone, bit for bit.

    Args:
        obs: raw, [B, inputs or more], of which the first are taken.
        moments: that normalise them, if any.
        clip: of a normalised observation.
        layers: `nn.Linear`s on the CPU, with one kind of activation between each two.
    """
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    mean, var = (_NONE, _NONE) if moments is None else (moments.mean.numpy(), moments.var.numpy())
    activation = _ACTIVATIONS[type(layers[1])] if len(layers) > 1 else 0
    weights = tuple(layer.weight.detach().numpy() for layer in linear)
    biases = tuple(layer.bias.detach().numpy() for layer in linear)
    return _forward(obs, mean, var, clip, weights, biases, activation)


@numba.njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
def _forward(
    obs: np.ndarray, mean: np.ndarray, var: np.ndarray, limit: float,
    weights: tuple[np.ndarray, ...], biases: tuple[np.ndarray, ...], activation: int,
) -> np.ndarray:  # fmt: skip
    clip = np.float32(limit)
    inputs, last = weights[0].shape[1], len(weights) - 1
    widest = inputs
    for bias in biases:
        widest = max(widest, len(bias))
    layer, after = np.empty(widest, np.float32), np.empty(widest, np.float32)
    scale = np.empty(len(mean), np.float32)
    for i in range(len(mean)):
        scale[i] = 1.0 / math.sqrt(var[i] + 1e-8)
    out = np.empty((len(obs), len(biases[last])), np.float32)
    for row in range(len(obs)):
        for i in range(inputs):
            x = np.float32(obs[row, i])
            if len(mean):
                x = min(max((x - np.float32(mean[i])) * scale[i], -clip), clip)
            layer[i] = x
        for at in range(len(weights)):
            weight, bias = weights[at], biases[at]
            for j in range(weight.shape[0]):
                total = np.float32(0.0)
                for i in range(weight.shape[1]):
                    total += layer[i] * weight[j, i]
                total += bias[j]
                if at == last:
                    out[row, j] = total
                elif activation == 0:
                    after[j] = math.tanh(total)
                elif activation == 1:
                    after[j] = max(total, np.float32(0.0))
                elif activation == 2:
                    after[j] = total if total > 0 else math.expm1(total)
                else:
                    after[j] = total / (1 + math.exp(-total))
            layer, after = after, layer
    return out
