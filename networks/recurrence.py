"""An LSTM's steps through time on the CPU: one compiled loop forward, and one back.

With torch's operations a step of a small LSTM is some twenty of them and their gradients. To call
them takes ten times as long as to compute.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.compiled import njit
from networks.tanh import sigmoid_of, tanh_of

_ONE = np.float32(1.0)
# not by `torch.library.custom_op`, at whose first call torch imports its compiler
_UNROLL, _BACK = "dppo::unroll_lstm", "dppo::unroll_lstm_back"
torch.library.define(
    _UNROLL,
    "(Tensor gates, Tensor weight, Tensor state, Tensor begins) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    _BACK,
    "(Tensor gradient, Tensor weight, Tensor state, Tensor begins, Tensor cell, Tensor opened)"
    " -> Tensor",
)


def unroll(
    gates: Tensor, weight: Tensor, state: Tensor, begins: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """T steps of E environments through an LSTM of width W.

    Gradients flow from the hidden states to the gates and the weight. To differentiate the cell
    states or the gates after their activation is an error; nothing flows to the state before.

    Args:
        gates: [T, E, 4 W], what the inputs and the biases add to the gates. These are the input
            gate, the forget gate, the new content and the output gate.
        weight: [4 W, W], what the hidden state before a step adds to them.
        state: [E, 2 W], the hidden and the cell state before the first step.
        begins: [T, E] bool, whether an episode begins: the state before this step is then 0.

    Returns:
        the hidden states [T, E, W] and the cell states [T, E, W] after each step, and the gates
        [T, E, 4 W] after their activation, for the way back.
    """
    return torch.ops.dppo.unroll_lstm(gates, weight, state, begins)


@torch.library.impl(_UNROLL, "cpu")
def _unroll(
    gates: Tensor, weight: Tensor, state: Tensor, begins: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, cell = (gates.new_empty(*gates.shape[:2], weight.shape[1]) for _ in range(2))
    opened = gates.clone(memory_format=torch.contiguous_format)
    tensors = opened, weight.t(), state, begins, hidden, cell
    _forward(*[tensor.detach().contiguous().numpy() for tensor in tensors])
    return hidden, cell, opened


@torch.library.impl(_BACK, "cpu")
def _unroll_back(
    gradient: Tensor, weight: Tensor, state: Tensor, begins: Tensor, cell: Tensor, opened: Tensor
) -> Tensor:
    """The gradient of the gates [T, E, 4 W], given that of the hidden states [T, E, W]."""
    of_gates = torch.empty_like(opened, memory_format=torch.contiguous_format)
    tensors = gradient, weight, state, begins, cell, opened, of_gates
    _back(*[tensor.detach().contiguous().numpy() for tensor in tensors])
    return of_gates


@torch.library.register_fake(_UNROLL)
def _(gates: Tensor, weight: Tensor, state: Tensor, begins: Tensor) -> tuple[Tensor, ...]:
    shape = *gates.shape[:2], weight.shape[1]
    return gates.new_empty(shape), gates.new_empty(shape), gates.new_empty(gates.shape)


@torch.library.register_fake(_BACK)
def _(
    gradient: Tensor, weight: Tensor, state: Tensor, begins: Tensor, cell: Tensor, opened: Tensor
) -> Tensor:
    return opened.new_empty(opened.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    _, weight, state, begins = inputs
    ctx.save_for_backward(weight, state, begins, *output)
    ctx.set_materialize_grads(False)  # None for what is not differentiated


def _differentiate(
    ctx: Any, gradient: Tensor | None, *others: Tensor | None
) -> tuple[Tensor | None, ...]:
    if gradient is None or any(other is not None for other in others):
        raise NotImplementedError("an LSTM's hidden states alone can be differentiated")
    weight, state, begins, hidden, cell, opened = ctx.saved_tensors
    of_gates = torch.ops.dppo.unroll_lstm_back(gradient, weight, state, begins, cell, opened)
    before = torch.cat([state[:, : weight.shape[1]].unsqueeze(0), hidden[:-1]])
    before = before.masked_fill(begins.unsqueeze(-1), 0.0)
    of_weight = of_gates.flatten(0, 1).t() @ before.flatten(0, 1)
    return of_gates, of_weight, None, None


torch.library.register_autograd(_UNROLL, _differentiate, setup_context=_keep)


@njit(fastmath={"contract"}, error_model="numpy")
def _forward(
    gates: np.ndarray, weight: np.ndarray, state: np.ndarray, begins: np.ndarray,
    hidden: np.ndarray, cell: np.ndarray,
) -> None:  # fmt: skip
    """As `unroll`: gates are opened in place, and the weight is [W, 4 W], by input."""
    steps, envs, width = hidden.shape
    before, cell_before = np.empty((envs, width), np.float32), np.empty((envs, width), np.float32)
    for t in range(steps):
        for e in range(envs):
            for j in range(width):
                if begins[t, e]:
                    before[e, j] = cell_before[e, j] = 0.0
                elif t == 0:
                    before[e, j], cell_before[e, j] = state[e, j], state[e, width + j]
                else:
                    before[e, j], cell_before[e, j] = hidden[t - 1, e, j], cell[t - 1, e, j]
        _add_product(before, weight, gates[t])
        for e in range(envs):
            step_cell(gates[t, e], cell_before[e], cell[t, e], hidden[t, e])


@njit(fastmath={"contract"}, error_model="numpy")
def step_cell(gate: np.ndarray, before: np.ndarray, cell: np.ndarray, hidden: np.ndarray) -> None:
    """One step of one environment's cell [W]; opens its gates [4 W], in place."""
    width = len(before)
    put, kept = gate[:width], gate[width : 2 * width]
    new, show = gate[2 * width : 3 * width], gate[3 * width :]
    for j in range(width):  # a loop for each array, so that all of them are vectorised
        put[j] = sigmoid_of(put[j])
    for j in range(width):
        kept[j] = sigmoid_of(kept[j])
    for j in range(width):
        new[j] = tanh_of(new[j])
    for j in range(width):
        show[j] = sigmoid_of(show[j])
    for j in range(width):
        cell[j] = kept[j] * before[j] + put[j] * new[j]
    for j in range(width):
        hidden[j] = show[j] * tanh_of(cell[j])


@njit(fastmath={"contract"}, error_model="numpy")
def _back(
    gradient: np.ndarray, weight: np.ndarray, state: np.ndarray, begins: np.ndarray,
    cell: np.ndarray, opened: np.ndarray, of_gates: np.ndarray,
) -> None:  # fmt: skip
    """Fill in the gradient of the gates before their activation."""
    steps, envs, width = cell.shape
    # of the hidden and the cell state after a step, by the steps after it
    later, cell_later = np.zeros((envs, width), np.float32), np.zeros((envs, width), np.float32)
    of_hidden, of_cell = np.empty(width, np.float32), np.empty(width, np.float32)
    for t in range(steps - 1, -1, -1):
        for e in range(envs):
            put, kept = opened[t, e, :width], opened[t, e, width : 2 * width]
            new, show = opened[t, e, 2 * width : 3 * width], opened[t, e, 3 * width :]
            of_gate, content = of_gates[t, e], cell[t, e]
            content_before = state[e, width:] if t == 0 else cell[t - 1, e]
            goes_on = np.float32(0.0) if begins[t, e] else _ONE
            for j in range(width):
                of_hidden[j] = gradient[t, e, j] + later[e, j]
            for j in range(width):
                seen = tanh_of(content[j])
                of_gate[3 * width + j] = of_hidden[j] * seen * show[j] * (_ONE - show[j])
                of_cell[j] = cell_later[e, j] + of_hidden[j] * show[j] * (_ONE - seen * seen)
            for j in range(width):
                of_gate[j] = of_cell[j] * new[j] * put[j] * (_ONE - put[j])
                of_gate[2 * width + j] = of_cell[j] * put[j] * (_ONE - new[j] * new[j])
            for j in range(width):
                before = goes_on * content_before[j]
                of_gate[width + j] = of_cell[j] * before * kept[j] * (_ONE - kept[j])
                cell_later[e, j] = goes_on * of_cell[j] * kept[j]
            later[e] = 0.0
        _add_product(of_gates[t], weight, later)
        for e in range(envs):
            if begins[t, e]:
                later[e] = 0.0


@njit(fastmath={"contract"}, error_model="numpy")
def _add_product(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    """out [rows, n] += left [rows, k] @ right [k, n].

    By blocks of 4 x 4 of the left: then each number that is loaded is used four times.
    """
    rows, inputs, outputs = *left.shape, right.shape[1]
    whole_rows, whole_inputs = rows - rows % 4, inputs - inputs % 4
    for r in range(0, whole_rows, 4):
        l0, l1, l2, l3 = left[r], left[r + 1], left[r + 2], left[r + 3]
        o0, o1, o2, o3 = out[r], out[r + 1], out[r + 2], out[r + 3]
        for i in range(0, whole_inputs, 4):
            r0, r1, r2, r3 = right[i], right[i + 1], right[i + 2], right[i + 3]
            a0, a1, a2, a3 = l0[i], l0[i + 1], l0[i + 2], l0[i + 3]
            b0, b1, b2, b3 = l1[i], l1[i + 1], l1[i + 2], l1[i + 3]
            c0, c1, c2, c3 = l2[i], l2[i + 1], l2[i + 2], l2[i + 3]
            d0, d1, d2, d3 = l3[i], l3[i + 1], l3[i + 2], l3[i + 3]
            for j in range(outputs):
                x0, x1, x2, x3 = r0[j], r1[j], r2[j], r3[j]
                o0[j] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
                o1[j] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
                o2[j] += c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3
                o3[j] += d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3
    for r in range(rows):  # what is left over
        for i in range(whole_inputs if r < whole_rows else 0, inputs):
            for j in range(outputs):
                out[r, j] += left[r, i] * right[i, j]
