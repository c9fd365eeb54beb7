"""Acting by small LSTMs on the CPU, compiled, one step of a few environments at a time."""

from __future__ import annotations

import numpy as np
from torch import nn

from common.compiled import njit
from networks.compiled_actor import Perceptron
from networks.layers import RunningMoments
from networks.recurrence import step_cell
from networks.sequence import Lstm


class LstmPolicy:
    """An actor and a critic, each an `Lstm`, computed from views of their weights, or packed copies.

    As in `Linear`, a row's bits depend on that row alone.

    Args:
        moments, clip: as of `Perceptron`.
        lstms: the actor, and the critic where it is another one; on the CPU.
        head: the linear layer over the actor.
    """

    def __init__(
        self, moments: RunningMoments | None, clip: float, lstms: list[Lstm], head: nn.Module
    ):
        self._width = lstms[0].width
        self._lstms = [
            (Perceptron(moments, clip, [*lstm.encoder.children()]), _arrays(lstm), lstm.state_size)
            for lstm in lstms
        ]
        self._head = Perceptron(None, clip, [head])

    def pack(self) -> None:
        """As `Perceptron.pack`, of the encoders and the head."""
        for encoder, *_ in self._lstms:
            encoder.pack()
        self._head.pack()

    def __call__(self, obs: np.ndarray, state: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Raw observations [B, inputs] and the state [B, S] -> the head's output, the next state."""
        assert state is not None
        # code for other strides adds in another order, and an array of one row has none
        state = np.ascontiguousarray(state)
        after, first = np.empty_like(state), 0
        for encoder, arrays, size in self._lstms:
            _step(encoder(obs), state, first, after, *arrays)
            first += size
        return self._head(np.ascontiguousarray(after[:, : self._width])), after


def _arrays(lstm: Lstm) -> list[np.ndarray]:
    layers = lstm.of_input, lstm.of_hidden
    return [part.detach().numpy() for layer in layers for part in (layer.weight, layer.bias)]


@njit(fastmath={"contract", "reassoc"}, error_model="numpy")
def _step(
    features: np.ndarray, state: np.ndarray, first: int, after: np.ndarray,
    input_weight: np.ndarray, input_bias: np.ndarray, hidden_weight: np.ndarray,
    hidden_bias: np.ndarray,
) -> None:  # fmt: skip
    """Step an LSTM whose state [B, 2 W] begins at column `first`."""
    rows, width = features.shape
    hidden, cell = slice(first, first + width), slice(first + width, first + 2 * width)
    gates = np.empty((rows, 4 * width), np.float32)
    for gate in range(4 * width):  # each row of the weights is read once
        of_input, of_hidden = input_weight[gate], hidden_weight[gate]
        for row in range(rows):
            feature, before = features[row], state[row, hidden]
            total = input_bias[gate] + hidden_bias[gate]
            for i in range(width):
                total += of_input[i] * feature[i] + of_hidden[i] * before[i]
            gates[row, gate] = total
    for row in range(rows):
        step_cell(gates[row], state[row, cell], after[row, cell], after[row, hidden])
