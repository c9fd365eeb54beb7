"""Acting by small perceptrons on the CPU, compiled: torch's dispatch costs more than the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from common.compiled import njit
from networks.layers import RunningMoments
from networks.tanh import tanh_of

_ACTIVATIONS: dict[type[nn.Module], int] = {nn.Tanh: 0, nn.ReLU: 1, nn.ELU: 2, nn.SiLU: 3}
_NONE = np.zeros(0)


class Perceptron:
    """A stack of linear layers, computed from views of its weights, or from a copy after `pack`.

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
        self._packed: tuple[np.ndarray, ...] | None = None

    def pack(self) -> None:
        """Keep the weights of now in the layout that acting reads. Must be called anew when they change."""
        self._packed = self._by_input()

    def _by_input(self) -> tuple[np.ndarray, ...]:
        # transposed, so that the innermost loop runs over outputs that are neighbours in memory
        return tuple([np.array(weight.T, order="C") for weight in self._weights])

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        """Raw observations [B, inputs or more], the rest being the critic's -> [B, outputs] float32."""
        weights = self._by_input() if self._packed is None else self._packed
        return _forward(
            obs,
            *self._moments,
            self._clip,
            weights,
            self._biases,
            self._activation,
            self._activated,
        )


_ROWS = 4  # that are computed at a time; with as many inputs, their numbers stay in registers


@njit(fastmath={"contract"}, error_model="numpy")
def _forward(
    obs: np.ndarray, mean: np.ndarray, var: np.ndarray, limit: float,
    weights: tuple[np.ndarray, ...], biases: tuple[np.ndarray, ...], activation: int, activated: int,
) -> np.ndarray:  # fmt: skip
    """The outputs [B, outputs], by weights [inputs, outputs]."""
    clip = np.float32(limit)
    scale = np.empty(len(mean), np.float32)
    for i in range(len(mean)):
        scale[i] = 1.0 / math.sqrt(var[i] + 1e-8)
    rows = len(obs) + -len(obs) % _ROWS
    layer = np.zeros((rows, weights[0].shape[0]), np.float32)
    for row in range(len(obs)):
        for i in range(layer.shape[1]):
            x = np.float32(obs[row, i])
            if len(mean):
                x = min(max((x - np.float32(mean[i])) * scale[i], -clip), clip)
            layer[row, i] = x
    for number in range(len(weights)):
        after = np.empty((rows, len(biases[number])), np.float32)
        _dense(layer, weights[number], biases[number], after)
        if number < activated:
            for row in range(len(obs)):
                _activate(after[row], activation)
        layer = after
    return layer[: len(obs)]


@njit(fastmath={"contract"}, error_model="numpy")
def _dense(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    """out [B, J] = bias [J] + x [B, I] @ weight [I, J]; B is a multiple of `_ROWS`.

    Each sum is formed in the order of the inputs, so its bits do not depend on the other rows.
    """
    rows, inputs = x.shape
    fours = inputs - inputs % 4
    for r in range(0, rows, _ROWS):
        for row in range(r, r + _ROWS):
            out[row] = bias
        for i in range(0, fours, 4):
            a0, a1, a2, a3 = x[r, i], x[r, i + 1], x[r, i + 2], x[r, i + 3]
            b0, b1, b2, b3 = x[r + 1, i], x[r + 1, i + 1], x[r + 1, i + 2], x[r + 1, i + 3]
            c0, c1, c2, c3 = x[r + 2, i], x[r + 2, i + 1], x[r + 2, i + 2], x[r + 2, i + 3]
            d0, d1, d2, d3 = x[r + 3, i], x[r + 3, i + 1], x[r + 3, i + 2], x[r + 3, i + 3]
            for j in range(len(bias)):
                w0, w1, w2, w3 = weight[i, j], weight[i + 1, j], weight[i + 2, j], weight[i + 3, j]
                out[r, j] = out[r, j] + a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
                out[r + 1, j] = out[r + 1, j] + b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3
                out[r + 2, j] = out[r + 2, j] + c0 * w0 + c1 * w1 + c2 * w2 + c3 * w3
                out[r + 3, j] = out[r + 3, j] + d0 * w0 + d1 * w1 + d2 * w2 + d3 * w3
        for i in range(fours, inputs):
            for row in range(r, r + _ROWS):
                for j in range(len(bias)):
                    out[row, j] += x[row, i] * weight[i, j]


@njit(fastmath={"contract"}, error_model="numpy")
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
