"""Acting by small perceptrons on the CPU, compiled: torch's dispatch costs more than the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numba
import numpy as np
from torch import nn

from networks.layers import RunningMoments
from networks.tanh import tanh_of

_ACTIVATIONS: dict[type[nn.Module], int] = {nn.Tanh: 0, nn.ReLU: 1, nn.ELU: 2, nn.SiLU: 3}
_NONE = np.zeros(0)


class Perceptron:
    """A stack of linear layers, computed from views of its weights.

    As in `Linear`, a row's bits depend on that row alone.

    Args:
        moments: they normalise the observations, if there are any.
        clip: bound of a normalised observation.
        layers: `nn.Linear`s on the CPU, with the same activation after each, or after all but the
            last.
    """

    def __init__(self, moments: RunningMoments | None, clip: float, layers: Sequence[nn.Module]):
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self._moments = (
            (_NONE, _NONE) if moments is None else (moments.mean.numpy(), moments.var.numpy())
        )
        self._clip = clip
        self._weights = tuple([layer.weight.detach().numpy() for layer in linear])
        self._biases = tuple([layer.bias.detach().numpy() for layer in linear])
        self._activation = _ACTIVATIONS[type(layers[1])] if len(layers) > 1 else 0
        self._activated = len(layers) - len(linear)

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        """Raw observations [B, inputs or more], the rest being the critic's -> [B, outputs] float32."""
        return _forward(
            obs, *self._moments, self._clip, self._weights, self._biases, self._activation,
            self._activated,
        )  # fmt: skip


@numba.njit(cache=True, fastmath={"contract"}, error_model="numpy")
def _forward(
    obs: np.ndarray, mean: np.ndarray, var: np.ndarray, limit: float,
    weights: tuple[np.ndarray, ...], biases: tuple[np.ndarray, ...], activation: int, activated: int,
) -> np.ndarray:  # fmt: skip
    clip = np.float32(limit)
    last = len(weights) - 1
    # transposed, so that the innermost loop runs over outputs that are neighbours in memory
    by_input = [np.ascontiguousarray(weight.T) for weight in weights]
    scale = np.empty(len(mean), np.float32)
    for i in range(len(mean)):
        scale[i] = 1.0 / math.sqrt(var[i] + 1e-8)
    out = np.empty((len(obs), len(biases[last])), np.float32)
    row_inputs = np.empty(by_input[0].shape[0], np.float32)
    for row in range(len(obs)):
        for i in range(len(row_inputs)):
            x = np.float32(obs[row, i])
            if len(mean):
                x = min(max((x - np.float32(mean[i])) * scale[i], -clip), clip)
            row_inputs[i] = x
        layer = row_inputs
        for number in range(len(weights)):
            after = biases[number].copy()
            weight = by_input[number]
            for i in range(len(layer)):
                x = layer[i]
                for j in range(len(after)):
                    after[j] += x * weight[i, j]
            if number < activated:
                _activate(after, activation)
            layer = after
        out[row] = layer
    return out


@numba.njit(cache=True, fastmath={"contract"}, error_model="numpy")
def _activate(values: np.ndarray, activation: int) -> None:
    """Apply an activation in place; tanh is the polynomial of the compiled gradient step."""
    if activation == 0:
        for j in range(len(values)):
            values[j] = tanh_of(values[j])
    elif activation == 1:
        for j in range(len(values)):
            values[j] = max(values[j], np.float32(0.0))
    elif activation == 2:
        for j in range(len(values)):
            values[j] = values[j] if values[j] > 0 else math.expm1(values[j])
    else:
        for j in range(len(values)):
            values[j] = values[j] / (1 + math.exp(-values[j]))
