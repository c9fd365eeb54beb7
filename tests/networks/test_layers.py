from __future__ import annotations

import pytest
import torch

from networks.layers import Linear


@pytest.mark.parametrize("outputs", [1, 2, 3, 5, 6, 8, 11, 12, 17, 64])
def test_a_row_of_a_linear_layer_has_the_same_bits_at_any_place(outputs):
    torch.manual_seed(0)
    for inputs in (1, 2, 3, 5, 6, 7, 9, 11, 14, 17, 27, 33, 39, 63, 64, 100, 111, 128):
        layer, rows = Linear(inputs, outputs), torch.randn(40, inputs)
        with torch.inference_mode():
            whole = layer(rows)
            for first, last in ((0, 1), (1, 2), (3, 10), (5, 22), (13, 40), (24, 40)):
                assert torch.equal(layer(rows[first:last]), whole[first:last]), (inputs, first)
